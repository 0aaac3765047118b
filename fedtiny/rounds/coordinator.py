"""The coordinator of one run: it carries out what the machine of rounds decides.

It decides, appends to the journal, and returns the answers. Its shell commits the journal before it
lets them out: one commit may serve many calls. A coordinator keeps nothing that the journal does
not have, so that a new one on the same journal goes on where the last one fell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.errors import RunError, UpdateError
from fedtiny.fold import Total
from fedtiny.layout import Layout
from fedtiny.rounds import journal as records
from fedtiny.rounds import machine
from fedtiny.rounds.content import Conclusion, Gate, OpenRound, Part
from fedtiny.rounds.events import (
    NEVER,
    Abandon,
    Begin,
    Carry,
    CheckIns,
    ComeBack,
    Command,
    Commit,
    Committed,
    Event,
    Fold,
    Folded,
    GiveUp,
    Grant,
    Offers,
    Open,
    Reply,
    Tick,
)
from fedtiny.rounds.invitation import remaining
from fedtiny.rounds.measures import Measures
from fedtiny.rounds.rules import Rules
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import Instruction, Lease, Receipt, Update, round_of

if TYPE_CHECKING:
    from fedtiny.rounds.journal import Journal
    from fedtiny.tensors import Float32, Int64

_NO_FLAWS: Mapping[int, str] = {}


class Coordinator:
    """Runs the rounds of one strategy over the devices that call its methods.

    ``devices`` is the number of devices that the Program fits; ``model`` the initial model. After
    an exception, make a new one: it recovers from the journal. ``on_commit`` is called with each
    round that is committed, as it is journalled, and the number of leases that it gave. ``gate``
    holds back models that must not be published. ``bases`` are the models, by version, that work
    can start from: the current one, and those of leases that live.
    """

    def __init__(
        self,
        rules: Rules,
        strategy: Strategy,
        layout: Layout,
        model: Float32,
        journal: Journal,
        devices: int,
        now: float = 0.0,
        on_commit: Callable[[records.Published, int], None] = lambda published, leases: None,
        gate: Gate | None = None,
    ) -> None:
        self.on_commit, self.gate = on_commit, gate
        self.rules, self.strategy, self.layout, self.journal = rules, strategy, layout, journal
        self.rounds = records.recover(rules, journal)
        self.model, self.strategy_state = journal.latest() or (
            model, calls.start(strategy, layout, model),
        )  # fmt: skip
        known = {0: model, **journal.bases(), self.rounds.version: self.model}
        self.bases = {version: known[version] for version in self._versions(self.rounds.version)}
        self._now, self.devices = now, devices
        self._arrived: Sequence[Update] = ()
        self._flaws: Mapping[int, str] = _NO_FLAWS
        self._replacement: Float32 | None = None
        if self.rounds.phase == "open":
            self._begin_round()
        self._handle(Begin(now, devices) if self.rounds.phase == "idle" else Tick(now))

    # ---- what devices and clocks call

    def check_in(self, now: float, device: int) -> tuple[Lease, Instruction] | float:
        """Work for the device, or when it may ask again (`NEVER`: the run is over)."""
        work, later = self.check_ins(now, np.array([device]))
        return work.get(device, later)

    def check_ins(
        self, now: float, devices: Int64
    ) -> tuple[dict[int, tuple[Lease, Instruction]], float]:
        """Work by device, and when those that got none may ask again (`NEVER`: the run is over)."""
        work: dict[int, tuple[Lease, Instruction]] = {}
        later = NEVER
        for answer in self._handle(CheckIns(now, devices)):
            if isinstance(answer, Grant):
                work |= {lease.device: (lease, self.open.instruction) for lease in _leases(answer)}
            if isinstance(answer, ComeBack):
                later = answer.at
        return work, later

    @property
    def demand(self) -> int:
        """How many leases the open window would give now."""
        return self.rounds.demand if self._now < self.rounds.closes_at else 0

    def fetch(self, version: int) -> bytes:
        """The bytes of the current model, or of one that a lease lives on; RunError for others."""
        if version not in self.bases:
            raise RunError(
                f"version {version:,} of the model is gone, the current one is "
                f"{self.rounds.version:,}; check in again"
            )
        return self.bases[version].tobytes()

    def submit(
        self, now: float, updates: Sequence[Update], flaws: Mapping[int, str] = _NO_FLAWS
    ) -> list[Receipt]:
        """Receipts for the updates, which have arrived in this order.

        A copy of an update in the same call has no receipt of its own. ``flaws`` says by lease why
        an update cannot be folded, where that is known before its content is looked at.
        """
        receipts: list[Receipt] = []
        while updates:
            room = self.rounds.room
            receipts += self._submit(now, updates[:room], flaws)
            updates = updates[room:]
        return receipts

    def _submit(
        self, now: float, updates: Sequence[Update], flaws: Mapping[int, str]
    ) -> list[Receipt]:
        self._arrived, self._flaws = updates, flaws
        columns = ([u.lease, u.device, u.version] for u in updates)
        leases, devices, versions = np.array(list(columns), np.int64).reshape(-1, 3).T
        answers = self._handle(Offers(now, leases, devices, versions))
        self._arrived = ()
        return [
            Receipt(int(lease), answer.status, detail)
            for answer in answers
            if isinstance(answer, Reply)
            for lease, detail in zip(
                answer.leases, answer.details or [""] * answer.leases.size, strict=True
            )
        ]

    def give_up(self, now: float, leases: Sequence[int]) -> None:
        """No update will come on these leases.

        Not journalled: after a crash they live on to their deadline, or are given up again.
        """
        self._handle(GiveUp(now, np.array(leases, np.int64)))

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._handle(Tick(now))

    # ---- what operators call

    def abandon(self, now: float) -> None:
        """End the open round as failed, whatever has been accepted in it."""
        if self.rounds.phase == "done":
            raise RunError(f"the run is over after {self.rounds.round:,} rounds; none is open")
        self._handle(Abandon(now))

    def publish(self, now: float, model: Float32) -> None:
        """Abandon the open round and go on from this model, under a new version.

        The strategy's state stays. Raises RunError for what is no model of this run.
        """
        if model.shape != self.model.shape or model.dtype != np.float32:
            raise RunError(
                f"{model.dtype} {model.shape} is no model of this run, which has float32 "
                f"{self.model.shape}"
            )
        if not np.isfinite(model).all():
            raise RunError("the model has values that are not finite; publish another version")
        self._replacement = model
        self._handle(Abandon(now))

    # ---- carrying out

    def _handle(self, event: Event) -> list[Command]:
        answers: list[Command] = []
        self._now = event.now
        events = deque([event])
        while events:
            self.rounds, commands = machine.step(self.rounds, events.popleft())
            for command in commands:
                follow_up = self._act(command, event.now)
                events.extend([follow_up] if follow_up else [])
            answers.extend(commands)
        return answers

    def _act(self, command: Command, now: float) -> Event | None:
        action = _ACTIONS.get(type(command))
        return action(self, command, now) if action else None

    def _open(self, command: Open, now: float) -> None:
        self.journal.append(command)
        self._begin_round()

    def _begin_round(self) -> None:
        turn, version = Round(self.rounds.round, self.rules.rounds), self.rounds.version
        self.open = OpenRound.of(
            self.strategy, turn, self.layout, self.model, self.strategy_state, version, self.bases
        )
        remaining(np.arange(self.devices), self.open.barred, self.rules.needed)

    def _versions(self, newest: int) -> set[int]:
        """Those of the newest model, and of the models that live leases are on."""
        leases = self.rounds.leases
        return {newest, *leases.versions[leases.is_open].tolist()}

    def _carry(self, command: Carry, now: float) -> None:
        self.journal.append(command)

    def _grant(self, command: Grant, now: float) -> None:
        if not command.repeated:
            self.journal.append(command)

    def _fold(self, command: Fold, now: float) -> Folded:
        offered = [self._arrived[at] for at in command.at]
        flaws = [self._flaws.get(update.lease) or _flaw(update) for update in offered]
        sound = [update for update, flaw in zip(offered, flaws, strict=True) if not flaw]
        part, told = self.open.add_all(self.open.nothing, sound)
        reasons = {u.lease: flaw for u, flaw in zip(offered, flaws, strict=True) if flaw}
        reasons |= {u.lease: why for u, why in zip(sound, told, strict=True) if why}
        taken = [update for update in sound if update.lease not in reasons]
        leases = np.array([update.lease for update in taken], np.int64)
        if taken:
            measures = reduce(Measures.merge, (Measures.of(u.measures) for u in taken))
            self.journal.append(records.Accepted(command.round, leases, part, measures))
        refused = np.array(list(reasons), np.int64)
        return Folded(now, leases, refused, tuple(reasons.values()))

    def _commit(self, command: Commit, now: float) -> Committed:
        accepted = [r for r in self.journal.pending() if isinstance(r, records.Accepted)]
        measures = reduce(Measures.merge, (r.measures for r in accepted), Measures())
        done = self._conclude([r.part for r in accepted], measures, command.failed)
        self.model, self.strategy_state = done.model, done.state
        version = self.rounds.version + done.changed
        self.bases[version] = done.model
        self.bases = {kept: self.bases[kept] for kept in sorted(self._versions(version))}
        published = records.Published(
            round=command.round,
            leases=command.leases[:0] if command.failed else command.leases,
            version=version,
            digest=records.digest(self.model),
            changed=done.changed,
            total=done.contribution if isinstance(done.contribution, Total) else None,
            model=done.model,
            state=self.strategy_state,
            measures=measures,
            failed=command.failed,
            drop_out=self.rounds.drop_out.share,
            bases=tuple(self.bases) if self.rules.asynchronous else (),
            gated=done.gated,
        )
        self.journal.append(published)
        self.on_commit(published, self.rounds.ordinals)
        return Committed(now, done.changed)

    def _conclude(self, parts: Sequence[Part], measures: Measures, failed: bool) -> Conclusion:
        replacement, self._replacement = self._replacement, None
        if replacement is None:
            return self.open.conclude(parts, measures, failed, self.gate)
        return Conclusion((), replacement, self.strategy_state)


def _flaw(update: Update) -> str:
    """What is wrong with its measures."""
    try:
        Measures.of(update.measures)
    except UpdateError as error:
        return str(error)
    return ""


def _leases(grant: Grant) -> Iterator[Lease]:
    columns = grant.leases.tolist(), grant.devices.tolist(), grant.deadlines.tolist()
    for lease, device, deadline in zip(*columns, strict=True):
        yield Lease(lease, device, round_of(lease), grant.version, deadline)


_ACTIONS: dict[type[Command], Callable[[Coordinator, Any, float], Event | None]] = {
    Open: Coordinator._open,
    Carry: Coordinator._carry,
    Grant: Coordinator._grant,
    Fold: Coordinator._fold,
    Commit: Coordinator._commit,
}
