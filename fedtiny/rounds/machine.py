"""The rounds of a run as a pure function: ``step(state, event) -> (state, commands)``.

A round asks for devices in windows. A window gives ``missing * over_selection`` leases, or as many
as the measured drop-out calls for. It is over when all of them are given (or ``deadline_s`` has
passed since its first one) and none is live any more. A round is complete as soon as ``cohort``
updates are accepted. If a window is over before, ``minimum`` updates complete the round too; with
fewer, another window opens, at most ``max_extensions`` times; then the round has failed and the
model stays as it is. So no round waits longer than ``2 * deadline_s * (1 + max_extensions)`` from
its first lease, windows that wait for their first device apart.

Events carry columns (NumPy arrays), so that a cohort of a thousand costs little more than one.
The shell obeys three rules. It gives each `Fold` its `Folded` and each `Commit` its `Committed`.
It journals `Open` and `Grant` before a device hears of them, and what it folded before it says
`Folded`. After a crash it rebuilds the state with `opened`, `granted`, `accepted` and `committed`,
and goes on with a `Tick`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedtiny import values
from fedtiny.errors import RunError
from fedtiny.rounds.drop_out import DropOut
from fedtiny.rounds.events import (
    NEVER,
    Abandon,
    Begin,
    CheckIns,
    ComeBack,
    Commands,
    Commit,
    Committed,
    Done,
    Event,
    Fold,
    Folded,
    GiveUp,
    Grant,
    Offers,
    Open,
    Reply,
    Tick,
)  # fmt: skip
from fedtiny.rounds.selection import choose, leases_wanted
from fedtiny.values import lease_id, ordinal_of, round_of

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float64, Int8, Int64


@dataclass(frozen=True, slots=True)
class Rules:
    """What does not change during a run. ``seed`` keys the choice of devices.

    With ``over_selection`` 0 the drop-out is measured, and as many devices are asked as it takes.
    """

    rounds: int
    cohort: int
    deadline_s: float
    minimum: int
    over_selection: float = 1.0
    max_extensions: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.cohort:
            raise RunError(
                f"minimum = {self.minimum} updates with a cohort of {self.cohort}: no round could "
                f"ever complete; choose a minimum from 1 to {self.cohort}"
            )
        for name in ("rounds", "max_extensions"):
            if getattr(self, name) < 0:
                raise RunError(f"{name} = {getattr(self, name)}; it must be at least 0")
        if self.over_selection != 0 and not self.over_selection >= 1:
            raise RunError(
                f"over_selection = {self.over_selection}; it must be at least 1, or 0: measured"
            )
        if not 0 < self.deadline_s < math.inf:
            raise RunError(f"deadline_s = {self.deadline_s}; a lease needs a positive, finite time")


# ---- state -----------------------------------------------------------------------------------

LIVE, FOLDING, ACCEPTED, REFUSED, ENDED = range(5)
"""What has become of a lease; ENDED is expired, or released because its round is over."""

_NO_IDS = np.empty(0, np.int64)
_NO_TIMES = np.empty(0, np.float64)
_NO_STATUS = np.empty(0, np.int8)


class Past:
    """The accepted leases of every committed round: an append-only value that shares its memory."""

    __slots__ = ("_length", "_rounds")

    def __init__(self, rounds: list[Int64] | None = None) -> None:
        self._rounds = [] if rounds is None else rounds
        self._length = len(self._rounds)

    def then(self, leases: Int64) -> Past:
        """This history and one more round. Only a second continuation costs a copy."""
        shared = self._rounds
        if self._length < len(shared):
            shared = shared[: self._length]
        shared.append(leases)
        return Past(shared)

    def __len__(self) -> int:
        return self._length

    def accepted(self, leases: Int64) -> Bools:
        """Which of these leases, all of committed rounds, were accepted."""
        rounds = round_of(leases)
        were = np.zeros(leases.size, bool)
        for round in np.unique(rounds):
            ours = rounds == round
            were[ours] = np.isin(leases[ours], self._rounds[round])
        return were


@dataclass(frozen=True)
class State:
    """Where a run stands. The columns are the leases of the open round, by ordinal.

    ``given`` leases of the open window, of which ``came`` brought an update that could count.
    ``phase``: "idle" before Begin, "between" rounds, "open", "committing", "done".
    """

    rules: Rules
    phase: Literal["idle", "between", "open", "committing", "done"] = "idle"
    round: int = 0
    version: int = 0
    window: int = 0
    wanted: int = 0
    given: int = 0
    came: int = 0
    closes_at: float = NEVER
    accepted: int = 0
    devices: Int64 = field(default_factory=lambda: _NO_IDS)
    deadlines: Float64 = field(default_factory=lambda: _NO_TIMES)
    status: Int8 = field(default_factory=lambda: _NO_STATUS)
    past: Past = field(default_factory=Past)
    drop_out: DropOut = field(default_factory=DropOut)

    @property
    def demand(self) -> int:
        """How many more leases this window would give."""
        return self.wanted - self.given if self.phase == "open" else 0

    @property
    def wakes_at(self) -> float:
        """When a `Tick` will change something if nothing else happens before."""
        live = self.deadlines[self.status == LIVE]
        latest = float(live.max()) if live.size else -NEVER
        if self.phase == "open" and self.demand:
            latest = max(latest, self.closes_at)
        return latest if latest > -NEVER else NEVER


def start(rules: Rules) -> State:
    """The state before anything has happened."""
    return State(rules)


def _with(state: State, **changes: Any) -> State:
    # dataclasses.replace takes seven times as long, which a serial run would notice.
    new = object.__new__(State)
    vars(new).update(vars(state), **changes)
    return new


# ---- facts: what the journal records, applied alike when it happens and after a crash ----------


def opened(state: State, window: Open) -> State:
    """A window has opened; leases of an earlier window of the round have ended."""
    state = _with(
        state,
        phase="open",
        window=window.window,
        wanted=window.wanted,
        given=0,
        came=0,
        closes_at=NEVER,
        drop_out=state.drop_out.recalled(window.drop_out),
    )
    return _released(state)


def granted(state: State, grant: Grant) -> State:
    """New leases have been given."""
    fresh = np.full(grant.leases.size, LIVE, np.int8)
    first_deadline = float(grant.deadlines[0])
    return _with(
        state,
        given=state.given + grant.leases.size,
        closes_at=min(state.closes_at, first_deadline),
        devices=np.concatenate([state.devices, grant.devices]),
        deadlines=np.concatenate([state.deadlines, grant.deadlines]),
        status=np.concatenate([state.status, fresh]),
    )


def accepted(state: State, leases: Int64) -> State:
    """These leases count."""
    marked = _marked(state, leases, ACCEPTED)
    count = int(np.count_nonzero(marked.status == ACCEPTED))
    return _with(marked, accepted=count, came=state.came + leases.size)


def committed(state: State, leases: Int64, changed: bool, drop_out: float) -> State:
    """The round is over; these leases made what came of it."""
    return State(
        rules=state.rules,
        phase="between",
        round=state.round + 1,
        version=state.version + changed,
        past=state.past.then(leases),
        drop_out=state.drop_out.recalled(drop_out),
    )


# ---- decisions -------------------------------------------------------------------------------


def step(state: State, event: Event) -> tuple[State, Commands]:
    """What an event leads to."""
    state = _expired(state, event.now)
    state, commands = _DECISIONS[type(event)](state, event)
    state, more = _settled(state, event.now)
    return state, commands + more


def accepted_leases(state: State) -> Int64:
    """The ids of the leases that count in the open round, ascending."""
    return np.asarray(lease_id(state.round, np.flatnonzero(state.status == ACCEPTED)))


def _begun(state: State, event: Begin) -> tuple[State, Commands]:
    if state.phase != "idle":
        raise RunError(f"the run has begun already; it stands at round {state.round:,}")
    if event.devices < state.rules.minimum:
        raise RunError(
            f"{event.devices:,} devices can run the Program, each round needs updates of "
            f"{state.rules.minimum:,}; lower minimum, give the Program a larger budget, or add "
            "devices"
        )
    return _with(state, phase="between"), ()


def _checked_in(state: State, event: CheckIns) -> tuple[State, Commands]:
    fresh, again, held = _sorted_out(state, event.devices)
    demand = state.demand if event.now < state.closes_at else 0
    seed = state.rules.seed
    chosen = choose(seed, state.round, fresh, demand)
    if chosen.size < demand and again.size:
        rest = choose(seed, state.round, again, demand - chosen.size)
        chosen = np.concatenate([chosen, rest])
    commands: Commands = ()
    if held.size:
        columns = state.devices[held], state.deadlines[held]
        commands = (Grant(state.round, state.version, lease_id(state.round, held), *columns, True),)
    if chosen.size:
        ordinals = np.arange(state.devices.size, state.devices.size + chosen.size)
        deadlines = np.full(chosen.size, event.now + state.rules.deadline_s)
        leases = lease_id(state.round, ordinals)
        grant = Grant(state.round, state.version, leases, chosen, deadlines)
        state, commands = granted(state, grant), (*commands, grant)
    if held.size + chosen.size < event.devices.size:
        commands = (*commands, ComeBack(_next_chance(state, event.now)))
    return state, commands


def _sorted_out(state: State, devices: Int64) -> tuple[Int64, Int64, Int64]:
    """Devices without a lease in this round, devices whose lease has ended, ordinals still live.

    Who has delivered, or is delivering, is in none of them.
    """
    if not state.devices.size:
        return devices, _NO_IDS, _NO_IDS
    order = np.argsort(state.devices, kind="stable")
    known = state.devices[order]
    at = np.searchsorted(known, devices, side="right") - 1
    had_one = known[at] == devices  # at = -1 names the largest, which is not this one
    ordinals = order[at[had_one]]  # side "right" of a stable order: each device's latest lease
    status = state.status[ordinals]
    ended = (status == REFUSED) | (status == ENDED)
    return devices[~had_one], devices[had_one][ended], np.unique(ordinals[status == LIVE])


def _next_chance(state: State, now: float) -> float:
    if state.phase == "done":
        return NEVER
    latest = now + state.rules.deadline_s
    return min(state.wakes_at, latest) if state.wakes_at > now else latest


_ADMIT, _SILENT = "admit", ""
_ANSWERS = (
    _ADMIT, _SILENT, values.DUPLICATE, values.INVALID, values.LATE, values.STALE, values.UNKNOWN,
)  # fmt: skip
_STALE, _UNKNOWN = 5, 6  # the others stand at the status of their lease


def _offered(state: State, event: Offers) -> tuple[State, Commands]:
    answers = _judged(state, event)
    admitted = np.flatnonzero(answers == LIVE)
    if admitted.size > 1:
        first = np.empty(state.status.size, np.int64)
        ordinals = ordinal_of(event.leases[admitted])
        first[ordinals[::-1]] = admitted[::-1]  # of several copies the first is written last
        is_copy = first[ordinals] != admitted
        answers[admitted[is_copy]] = FOLDING  # that is: silence
        admitted = admitted[~is_copy]
    folding = np.count_nonzero(state.status == FOLDING)
    room = state.rules.cohort - state.accepted - folding
    admitted, surplus = admitted[:room], admitted[room:]
    if state.drop_out.given:
        late = event.leases[answers == ENDED]
        state = _with(state, drop_out=state.drop_out.late(late))
    answers[surplus] = ENDED
    state = _marked(state, event.leases[surplus], ENDED)
    state = _with(state, came=state.came + surplus.size)
    state = _marked(state, event.leases[answers == _STALE], REFUSED)
    commands = _replies(event.leases, answers)
    if admitted.size:
        leases = event.leases[admitted]
        state = _marked(state, leases, FOLDING)
        commands = (*commands, Fold(state.round, admitted, leases, event.devices[admitted]))
    return state, commands


def _judged(state: State, event: Offers) -> Int8:
    """An index of `_ANSWERS` for each offer.

    Of past rounds it is known which leases counted; whose they were, for the window that the
    drop-out watches alone. A stranger who offers an older lease learns what became of it.
    """
    answers = np.full(event.leases.size, _UNKNOWN, np.int8)
    rounds, ordinals = round_of(event.leases), ordinal_of(event.leases)
    now = np.flatnonzero((rounds == state.round) & (ordinals < state.devices.size))
    at = ordinals[now]
    status = state.status[at]
    stale = (status == LIVE) & (event.versions[now] != state.version)
    status = np.where(stale, np.int8(_STALE), status)
    answers[now] = np.where(state.devices[at] == event.devices[now], status, np.int8(_UNKNOWN))
    past = np.flatnonzero((rounds >= 0) & (rounds < len(state.past)))
    if past.size:
        answers[past] = np.where(state.past.accepted(event.leases[past]), ACCEPTED, ENDED)
        answers[state.drop_out.strangers(event.leases, event.devices)] = _UNKNOWN
    return answers


def _replies(leases: Int64, answers: Int8) -> Commands:
    present = np.flatnonzero(np.bincount(answers))
    return tuple(
        Reply(leases[answers == answer], _ANSWERS[answer])
        for answer in present
        if answer not in (LIVE, FOLDING)
    )


def _folded(state: State, event: Folded) -> tuple[State, Commands]:
    _check_folded(state, event)
    state = accepted(_marked(state, event.refused, REFUSED), event.leases)
    commands: Commands = ()
    if event.leases.size:
        commands = (Reply(event.leases, values.ACCEPTED),)
    if event.refused.size:
        commands = (*commands, Reply(event.refused, values.INVALID, event.reasons))
    return state, commands


def _check_folded(state: State, event: Folded) -> None:
    leases = np.concatenate([event.leases, event.refused])
    ordinals = leases - lease_id(state.round, 0)
    known = ((ordinals >= 0) & (ordinals < state.status.size)).all()
    folding = known and (state.status[ordinals] == FOLDING).all()
    if not folding or len(event.reasons) != event.refused.size:
        raise RunError(
            f"Folded names the leases {leases[:5]} (of {leases.size:,}) and gives "
            f"{len(event.reasons):,} reasons for {event.refused.size:,} refusals; in round "
            f"{state.round:,} {np.count_nonzero(state.status == FOLDING):,} are being folded"
        )


def _committed(state: State, event: Committed) -> tuple[State, Commands]:
    if state.phase != "committing":
        raise RunError(f"round {state.round:,} is {state.phase}: there is nothing to commit")
    leases = _NO_IDS if _too_few(state) else accepted_leases(state)
    return committed(state, leases, event.changed, state.drop_out.share), ()


def _given_up(state: State, event: GiveUp) -> tuple[State, Commands]:
    mine = event.leases[round_of(event.leases) == state.round]
    mine = mine[ordinal_of(mine) < state.status.size]
    live = mine[state.status[ordinal_of(mine)] == LIVE]
    return _marked(state, live, ENDED), ()


def _abandoned(state: State, event: Abandon) -> tuple[State, Commands]:
    if state.phase not in ("open", "done"):
        raise RunError(f"round {state.round:,} is {state.phase}: it cannot be abandoned")
    ended = np.full_like(state.status, ENDED)
    state = _with(state, phase="committing", status=ended, accepted=0)
    return state, (Commit(state.round, _NO_IDS, failed=True),)


def _ticked(state: State, event: Tick) -> tuple[State, Commands]:
    return state, ()


_DECISIONS: dict[type[Event], Callable[[State, Any], tuple[State, Commands]]] = {
    Begin: _begun,
    CheckIns: _checked_in,
    Offers: _offered,
    Folded: _folded,
    Committed: _committed,
    Tick: _ticked,
    Abandon: _abandoned,
    GiveUp: _given_up,
}


def _settled(state: State, now: float) -> tuple[State, Commands]:
    """What follows by itself: a window opens, a round is over, the run is done."""
    rules = state.rules
    if state.phase == "between":
        if state.round >= rules.rounds:
            return _with(state, phase="done"), (Done(state.round),)
        return _open(state, 0)
    if state.phase != "open":
        return state, ()
    if state.accepted < rules.cohort and not _window_is_over(state, now):
        return state, ()
    state = _learned(state, now)
    if _too_few(state) and state.window < rules.max_extensions:
        return _open(state, state.window + 1)
    state = _with(_released(state), phase="committing")
    return state, (Commit(state.round, accepted_leases(state), _too_few(state)),)


def _window_is_over(state: State, now: float) -> bool:
    if state.demand and now < state.closes_at:
        return False
    return not (state.status <= FOLDING).any()


def _too_few(state: State) -> bool:
    return state.accepted < state.rules.minimum


def _open(state: State, window: int) -> tuple[State, Commands]:
    cohort = state.rules.cohort
    missing, share = cohort - state.accepted, state.drop_out.share
    wanted = leases_wanted(missing, cohort, state.rules.over_selection, share)
    command = Open(state.round, window, wanted, share)
    return opened(state, command), (command,)


def _learned(state: State, now: float) -> State:
    """The window closes: what has come of its leases tells how many drop out."""
    begins = state.devices.size - state.given
    out = state.status[begins:] == LIVE
    until = float(state.deadlines[begins:].max(initial=now, where=out))
    drop_out = state.drop_out.closed(
        lease_id(state.round, begins), state.devices[begins:], out, state.came, until, now
    )
    return _with(state, drop_out=drop_out)


def _marked(state: State, leases: Int64, status: int) -> State:
    if not leases.size:
        return state
    column = state.status.copy()
    column[ordinal_of(leases)] = status
    return _with(state, status=column)


def _expired(state: State, now: float) -> State:
    if state.drop_out.until <= now:
        state = _with(state, drop_out=state.drop_out.at(now))
    return _ended(state, (state.status == LIVE) & (state.deadlines <= now))


def _released(state: State) -> State:
    return _ended(state, state.status == LIVE)


def _ended(state: State, which: Bools) -> State:
    if not which.any():
        return state
    return _with(state, status=np.where(which, np.int8(ENDED), state.status))
