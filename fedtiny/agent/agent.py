"""The agent: the table of the session, carried out over a link, a learner and a folder.

A finished update is on the disk before it is sent, and is gone from there when it has its receipt:
after a loss of power it is sent again, and the coordinator knows whether it had come before.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fedtiny.agent.card import device_card, keep_speed
from fedtiny.agent.faults import NoAnswerError
from fedtiny.agent.figures import duration
from fedtiny.agent.grpc_link import GrpcLink
from fedtiny.agent.limits import POWER_SUPPLIES, Hindrance, Limits, Paced, battery_hindrance
from fedtiny.agent.reports import VisitReport
from fedtiny.agent.sources import Sampler, Source
from fedtiny.agent.store import Held, Origin, Store, Trained
from fedtiny.device.learner import Key, Learner, Outcome
from fedtiny.device.session import Command, Event, Session, State, advance
from fedtiny.device.visit import fitting
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, FedtinyError, IdentityError, OutdatedError, RunError
from fedtiny.tensors import raw
from fedtiny.values import (
    ACCEPTED,
    CALIBRATE,
    DUPLICATE,
    TRAIN,
    Instruction,
    Lease,
    Receipt,
    Update,
)
from fedtiny.wire.codec import given_mask
from fedtiny.wire.int8 import grid_of, on_grid, sent_model

if TYPE_CHECKING:
    from fedtiny.engine.program import Executor

_LEARNERS = 2  # of training, and of evaluation
_LONGEST_SLEEP_S, _STAY_S = 3600.0, 600.0
_MOST_WHY = 300  # characters
_DOING = {
    State.ASKING: "waits at the coordinator for work", State.FETCHING: "fetches a model",
    State.WORKING: "works", State.SENDING: "sends an update", State.STOPPED: "is done",
    State.HOLDING: "keeps an update that is not sent yet",
}  # fmt: skip


class Agent:
    """One device.

    Args:
        link: To the coordinator.
        store: The state folder.
        source: The device's samples.
        limits: What its owner allows.
        report: Hears of each visit, and of what went wrong.
        upkeep: Called before a check-in; renews the certificate when it is time.
        power: The folder of the machine's batteries.
        stay: Wait for the next run when one is over.
    """

    def __init__(
        self,
        link: GrpcLink,
        store: Store,
        source: Source,
        limits: Limits | None = None,
        *,
        report: Callable[[VisitReport | str], None] = lambda _: None,
        upkeep: Callable[[], None] = lambda: None,
        power: Path = POWER_SUPPLIES,
        stay: bool = False,
    ) -> None:
        self.link, self.store, self.source = link, store, source
        self.limits = limits or Limits.load(store)
        self.report, self.upkeep, self.power, self.stay = report, upkeep, power, stay
        self.session = Session(run=0, device=link.peer.device)
        self.held: Held | None = None
        self.finished = 0
        self._instruction = Instruction()
        self._model = self._image = b""
        self._learners: dict[str, Learner] = {}
        self._seconds: float | None = None
        self._said = self._fault = ""
        self._is_away = False
        self._before = link.traffic.up, link.traffic.down
        self._stop = threading.Event()

    # -- the loop --

    def run(self, visits: int = 0) -> None:
        """Work until the run is over, `stop` is called, or so many visits are finished (0: any).

        Raises IdentityError when the device was taken out, OutdatedError when the coordinator
        speaks another protocol.
        """
        self.link.card = device_card(self.store, self.limits)
        self._resume()
        try:
            while not self._is_done(visits):
                self._turn()
        finally:
            self.link.close()
            self._remember()

    def stop(self) -> None:
        """End `run` soon, from another thread."""
        self._stop.set()
        self.link.close()

    @property
    def doing(self) -> str:
        """What the agent is at, in a few words."""
        session, said = self.session, self._said
        if session.state in (State.IDLE, State.HOLDING) and said:
            return said
        if session.state == State.IDLE:
            left_s = max(0.0, session.wakes_at - self.link.clock())
            return f"rests; asks for work in {duration(left_s)}"
        round = f", round {session.lease.round:,}" if session.lease else ""
        return _DOING[session.state] + round

    def _is_done(self, visits: int) -> bool:
        over = self._stop.is_set() or self.session.state == State.STOPPED
        return over or bool(visits and self.finished >= visits)

    def _resume(self) -> None:
        """After a loss of power: the update that has no receipt is sent first."""
        trained = self.store.trained()
        self.link.blobs.pinned = trained.program if trained else b""
        self.held = self.store.held()
        if self.held is None:
            return
        update, self.link.origin = self.held.update, self.held.origin
        lease = Lease(update.lease, update.device, update.round, update.version, math.inf)
        self.session = replace(
            self.session, state=State.HOLDING, lease=lease, wakes_at=self.link.clock()
        )

    def _turn(self) -> None:
        """What is due now, and all that follows from it; or a sleep."""
        event = self.session.due(self.link.clock())
        if event == Event.WAKE:
            event = self._wake()
        if event is None:
            left_s = self.session.wakes_at - self.link.clock()
            self._stop.wait(min(max(left_s, 0.0), _LONGEST_SLEEP_S))
        while event is not None and not self._stop.is_set():
            event = self._meet(event)

    def _wake(self) -> Event | None:
        """WAKE, unless the owner's limits or a failed renewal say: later."""
        hindrance = self._hindrance()
        if hindrance is None:
            return Event.WAKE
        self._say(f"{hindrance.reason}: looking again in {duration(hindrance.seconds)}")
        later = self.link.clock() + hindrance.seconds
        self.session = replace(self.session, wakes_at=later)
        return None

    def _hindrance(self) -> Hindrance | None:
        try:
            self.upkeep()
        except RunError as error:
            return Hindrance(str(error), 60.0)
        battery = battery_hindrance(self.limits, self.power)
        return battery or self.link.traffic.hindrance(self.limits)

    # -- the table --

    def _meet(self, event: Event, lease: Lease | None = None, until: float = 0.0) -> Event | None:
        """One event, and the command that it leads to."""
        now = self.link.clock()
        self.session, command = advance(self.session, event, now, lease, until)
        if command == Command.FORGET:
            self._forget()
        try:
            return self._carry_out(command)
        except (IdentityError, OutdatedError) as refusal:
            self._refused(refusal)
            raise
        except (OSError, FedtinyError) as error:
            return self._lost(error)

    def _carry_out(self, command: Command) -> Event | None:
        match command:
            case Command.CHECK_IN:
                return self._check_in()
            case Command.FETCH:
                return self._fetch()
            case Command.WORK:
                return self._work()
            case Command.SUBMIT:
                return self._submit()
            case Command.BACK_OFF:
                self._tell_fault()
        return None

    def _check_in(self) -> Event | None:
        answer = self.link.check_in()
        if isinstance(answer, float):
            self._reached()
        if answer == math.inf:
            return self._dismissed(self.link.reason or "the run is over")
        if isinstance(answer, float):
            self._tell_why_not(self.link.reason)
            return self._meet(Event.TOLD_TO_WAIT, until=answer)
        return self._meet(Event.INSTRUCTED, lease=answer[0])

    def _dismissed(self, reason: str) -> Event | None:
        if not self.stay:
            self._say(reason)
            return Event.DISMISSED
        self._say(f"{reason}: asking for another every {_STAY_S / 60:.0f} min")
        return self._meet(Event.TOLD_TO_WAIT, until=self.link.clock() + _STAY_S)

    def _fetch(self) -> Event:
        self._before = self.link.traffic.up, self.link.traffic.down
        self._model = self.link.fetch(self._lease.version)
        self._image = self.link.program()
        self._instruction = self.link.instruction()
        self._reached()
        return self.session.due(self.link.clock()) or Event.FETCHED

    def _work(self) -> Event:
        begun = time.perf_counter()
        try:
            self.held = self._visit()
            self.store.hold(self.held)
        except FedtinyError as error:
            self._count("failures")
            self.finished += 1
            self.link.gave_up = self._lease.id, _public(error)
            self._say(f"round {self._lease.round:,} · cannot be done: {error}")
            return Event.FAILED
        self._seconds = time.perf_counter() - begun
        return self.session.due(self.link.clock()) or Event.FINISHED

    def _submit(self) -> Event:
        assert self.held
        receipt = self.link.submit(self.held.update)
        self._reached()
        delivered = receipt.status in (ACCEPTED, DUPLICATE)
        if delivered:
            self.store.keep(self.held.origin.run, self.held.kept)
        self.finished += 1
        self._count("visits" if delivered else "refusals")
        self._told(self.held.update, receipt)
        return Event.ACCEPTED if delivered else Event.REFUSED

    def _forget(self) -> None:
        if self.held is not None:
            self.held = None
            self.store.drop_held()

    # -- a visit --

    def _visit(self) -> Held:
        lease, instruction, work = self._lease, self._instruction, self.link.work
        assert work
        learner = self._learner()
        key = Key(work.seed, lease.round, lease.device)
        samples = self.source.sampler(learner, key, labelled=instruction.kind != CALIBRATE)
        kept = fitting(self.store.kept(work.run), learner.program)
        program = learner.program
        model = sent_model(program, program.layout, instruction, self._model)
        done = learner.visit(instruction, model, samples, key, kept)
        steps = grid_of(program, program.layout, instruction, self._model)
        update = on_grid(_update(lease, done), steps) if steps else _update(lease, done)
        floats = instruction.floats(program.layout)
        given = given_mask(update, instruction)
        origin = self.link.origin = Origin(work.run, work.model.digest, floats, given)
        if instruction.kind == TRAIN:
            self._keep_trained(learner, origin, lease)
            self._keep_speed(learner, instruction, samples)
        return Held(update, origin, done.kept)

    def _learner(self) -> Learner:
        """The Learner of the Program that was fetched, made once while it is in use."""
        program = Program(self._image)
        if program.digest not in self._learners:
            card = device_card(self.store, self.limits)
            self.limits.check_ram(program.footprint, card)
            learner = Learner(program)
            paced = Paced(learner.executor, self.limits.cpu_percent, sleep=self._stop.wait)
            learner.executor = cast("Executor", paced)
            self._learners[program.digest] = learner
        learner = self._learners.pop(program.digest)
        self._learners[program.digest] = learner  # the one used last is the last to go
        for digest in list(self._learners)[:-_LEARNERS]:
            del self._learners[digest]
        return learner

    def _keep_trained(self, learner: Learner, origin: Origin, lease: Lease) -> None:
        digest = bytes.fromhex(learner.program.digest)
        self.link.blobs.pinned = digest
        mask = learner.mask.blob if learner.mask else b""
        vector = learner.executor.store_live() if mask else raw(learner.vector())
        self.store.keep_trained(Trained(digest, origin.run, lease.round, bytes(vector), mask))

    def _keep_speed(self, learner: Learner, instruction: Instruction, samples: Sampler) -> None:
        """What the first visit tells of this machine's speed goes onto its card."""
        if self.store.document("speed"):
            return
        phases = *instruction.phases, *instruction.own
        counts = {phase.part: samples(phase.part).count for phase in phases}
        busy_s = cast("Paced", learner.executor).busy_s
        keep_speed(self.store, instruction.macs(counts, learner.program.footprint), busy_s)
        self.link.card = device_card(self.store, self.limits)

    @property
    def _lease(self) -> Lease:
        assert self.session.lease
        return self.session.lease

    # -- telling --

    def _lost(self, error: Exception) -> Event:
        if not self._stop.is_set():
            self._count("lost")
            if isinstance(error, NoAnswerError):
                self._fault = f"no answer from {self._peer} ({error})"
            else:
                self._say(f"{error}; trying again")
        return Event.LOST

    def _tell_fault(self) -> None:
        """Once: an outage of hours is one line, whatever its faults, and one when it is over."""
        if self._fault and not self._is_away:
            left_s = self.session.wakes_at - self.link.clock()
            self._say(f"{self._fault}; next try in {duration(left_s)}")
            self._is_away = True
        self._fault = ""

    def _reached(self) -> None:
        """Not after a check-in that gave work: what it needs may still not be there."""
        if self._is_away:
            self._is_away, self._said = False, ""
            self.report(f"connected again to {self._peer}")

    @property
    def _peer(self) -> str:
        return self.link.peer.address

    def _tell_why_not(self, reason: str) -> None:
        if reason:
            hint = self.limits.remedy if " of RAM" in reason else ""
            self._say("; ".join(filter(None, (f"no work: {reason}", hint))))

    def _refused(self, refusal: FedtinyError) -> None:
        """The device was taken out: what it holds is of no use to anybody any more."""
        if isinstance(refusal, IdentityError) and refusal.reason == "revoked":
            self.session, _ = advance(self.session, Event.REVOKED, self.link.clock())
            self._forget()

    def _told(self, update: Update, receipt: Receipt) -> None:
        up, down = self.link.traffic.up - self._before[0], self.link.traffic.down - self._before[1]
        kind = None if self._seconds is None else self._instruction.kind
        told = VisitReport(
            kind, update.round, update.samples, self._seconds, up, down, receipt.status,
            receipt.detail, self.link.next_s,
        )  # fmt: skip
        self._said = ""
        self.report(told)
        self._remember(told)

    def _remember(self, told: VisitReport | None = None) -> None:
        """What `status` shows; of no use to anybody if it cannot be written."""
        try:
            self.link.traffic.save()
            if told:
                self.store.write_document("last", asdict(told), durable=False)
        except RunError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        """Once: an outage of hours is one line."""
        if text != self._said:
            self._said = text
            self.report(text)

    def _count(self, name: str, more: float = 1) -> None:
        self.link.counters[name] = self.link.counters.get(name, 0) + more


def _public(error: FedtinyError) -> str:
    """The reason in a line for the coordinator, which sees no value of the samples."""
    told = error.public if isinstance(error, DataError) else str(error)
    return " ".join(told.split())[:_MOST_WHY]


def _update(lease: Lease, done: Outcome) -> Update:
    return Update(
        lease.id, lease.device, lease.round, lease.version, done.samples, done.values, done.ranges,
        done.measures, done.mask, done.places, done.quantised,
    )  # fmt: skip
