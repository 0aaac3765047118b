"""The rounds of a run as a pure function: ``step(state, event) -> (state, commands)``.

A round asks for devices in windows. A window gives ``missing * over_selection`` leases, or as many
as the measured drop-out calls for. It is over when all of them are given (or ``deadline_s`` has
passed since its first one) and none is live any more. A round is complete as soon as ``cohort``
updates are accepted. If a window is over before, ``minimum`` updates complete the round too; with
fewer, another window opens, at most ``max_extensions`` times; then the round has failed and the
model stays as it is. So no round waits longer than ``2 * deadline_s * (1 + max_extensions)`` from
its first lease, windows that wait for their first device apart.

In an asynchronous run ``concurrency`` leases are live at any time. They outlive the commit of their
round and count in whichever is open when their updates come, unless those are more than
``max_staleness`` versions late. Any ``cohort`` of them complete a round; it has no windows, waits
for as long as that takes, and counts each device once. Only when as many leases have come to
nothing as ``1 + max_extensions`` windows would give, ``minimum`` updates complete it too; with
fewer it has failed.

Events carry columns (NumPy arrays), so that a cohort of a thousand costs little more than one.
The shell obeys three rules. It gives each `Fold` its `Folded` and each `Commit` its `Committed`.
It journals `Open` and `Grant` before a device hears of them, and what it folded before it says
`Folded`. After a crash it rebuilds the state with `committed`, `carried`, `opened`, `granted` and
`accepted`, and goes on with a `Tick`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    Carry,
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
from fedtiny.rounds.leases import ACCEPTED, ENDED, FOLDING, LIVE, NO_LEASES, REFUSED, Leases, Past
from fedtiny.rounds.rules import Rules
from fedtiny.rounds.selection import choose, leases_wanted
from fedtiny.values import lease_id, ordinal_of, round_of

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Int8, Int64

_NO_IDS = np.empty(0, np.int64)
_MANY = 2**62


@dataclass(frozen=True)
class State:
    """Where a run stands: its open round and the ``leases`` that may count in it.

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
    leases: Leases = NO_LEASES
    past: Past = field(default_factory=Past)
    drop_out: DropOut = field(default_factory=DropOut)

    @property
    def demand(self) -> int:
        """How many more leases this window would give."""
        if self.phase != "open":
            return 0
        if self.rules.asynchronous:
            return max(0, self.wanted - int(np.count_nonzero(self.leases.is_live)))
        return self.wanted - self.given

    @property
    def ordinals(self) -> int:
        """How many leases the open round has given."""
        ids = self.leases.ids
        return int(ordinal_of(ids[-1])) + 1 if ids.size and round_of(ids[-1]) == self.round else 0

    def renewable(self, now: float) -> Bools:
        """After which leases their device may have another one in this round.

        An asynchronous round, which waits as long as it takes, has no other lease on the same model
        for it until the deadline of the first: else who fails at once would get them without end.
        """
        ended, leases = self.leases.is_ended, self.leases
        if not self.rules.asynchronous:
            return ended
        return ended & ((leases.deadlines <= now) | (leases.versions < self.version))

    @property
    def exhausted(self) -> bool:
        """Whether an asynchronous round has given leases in vain for long enough."""
        if not self.rules.asynchronous or self.phase != "open":
            return False
        in_vain = int(np.count_nonzero(self.leases.is_ended))
        folding = bool((self.leases.status == FOLDING).any())
        return not folding and in_vain >= self.rules.concurrency * (1 + self.rules.max_extensions)

    @property
    def room(self) -> int:
        """How many offers can be told at once: the next ones may count in the next round."""
        if not self.rules.asynchronous or self.phase != "open":
            return _MANY
        return self._missing

    @property
    def _missing(self) -> int:
        """How many updates can still be folded in this round."""
        folding = int(np.count_nonzero(self.leases.status == FOLDING))
        return self.rules.cohort - self.accepted - folding

    @property
    def wakes_at(self) -> float:
        """When a `Tick` will change something if nothing else happens before."""
        live = self.leases.deadlines[self.leases.is_live]
        if self.rules.asynchronous:  # each one that ends gives its place to another
            return float(live.min(initial=NEVER))
        latest = float(live.max(initial=-NEVER))
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
    return _released(state) if window.window else state


def granted(state: State, grant: Grant) -> State:
    """New leases have been given."""
    versions = np.full(grant.leases.size, grant.version)
    fresh = Leases.live(grant.leases, grant.devices, versions, grant.deadlines)
    closes_at = min(state.closes_at, float(grant.deadlines[0]))
    return _with(
        state,
        given=state.given + grant.leases.size,
        closes_at=NEVER if state.rules.asynchronous else closes_at,
        leases=state.leases.joined(fresh),
    )


def accepted(state: State, leases: Int64) -> State:
    """These leases count."""
    marked = _marked(state, leases, ACCEPTED)
    count = marked.leases.accepted.size
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


def carried(state: State, carry: Carry) -> State:
    """The round that is to open has these leases of earlier ones."""
    columns = carry.leases, carry.devices, carry.versions, carry.deadlines
    return _with(state, leases=Leases.live(*columns))


# ---- decisions -------------------------------------------------------------------------------


def step(state: State, event: Event) -> tuple[State, Commands]:
    """What an event leads to."""
    state = _expired(state, event.now)
    state, commands = _DECISIONS[type(event)](state, event)
    state, more = _settled(state, event.now)
    return state, commands + more


def _begun(state: State, event: Begin) -> tuple[State, Commands]:
    if state.phase != "idle":
        raise RunError(f"the run has begun already; it stands at round {state.round:,}")
    rules = state.rules
    if event.devices < rules.needed:
        less = "the cohort" if rules.asynchronous else "minimum"
        raise RunError(
            f"{event.devices:,} devices can run the Program, each round needs updates of "
            f"{rules.needed:,}; lower {less}, give the Program a larger budget, or add devices"
        )
    return _with(state, phase="between"), ()


def _checked_in(state: State, event: CheckIns) -> tuple[State, Commands]:
    if state.exhausted:  # it ends now, maybe the run with it
        return state, (ComeBack(event.now),)
    fresh, again, held = _sorted_out(state, event)
    demand = state.demand if event.now < state.closes_at else 0
    seed = state.rules.seed
    chosen = choose(seed, state.round, fresh, demand)
    if chosen.size < demand and again.size:
        rest = choose(seed, state.round, again, demand - chosen.size)
        chosen = np.concatenate([chosen, rest])
    commands: Commands = tuple(_repeated(state, held))
    if chosen.size:
        ordinals = np.arange(state.ordinals, state.ordinals + chosen.size)
        deadlines = np.full(chosen.size, event.now + state.rules.deadline_s)
        leases = lease_id(state.round, ordinals)
        grant = Grant(state.round, state.version, leases, chosen, deadlines)
        state, commands = granted(state, grant), (*commands, grant)
    if held.size + chosen.size < event.devices.size:
        commands = (*commands, ComeBack(_next_chance(state, event.now)))
    return state, commands


def _repeated(state: State, held: Int64) -> Iterator[Grant]:
    """These leases once more, each on the model that it was given with."""
    leases = state.leases.take(held)
    for version in np.unique(leases.versions).tolist():
        same = leases.take(leases.versions == version)
        yield Grant(state.round, version, same.ids, same.devices, same.deadlines, True)


def _sorted_out(state: State, event: CheckIns) -> tuple[Int64, Int64, Int64]:
    """Devices without a lease in this round, devices that may have another, places of live ones.

    Who has delivered, or is delivering, is in none of them.
    """
    devices = event.devices
    if not state.leases.ids.size:
        return devices, _NO_IDS, _NO_IDS
    order = np.argsort(state.leases.devices, kind="stable")
    known = state.leases.devices[order]
    at = np.searchsorted(known, devices, side="right") - 1
    had_one = known[at] == devices  # at = -1 names the largest, which is not this one
    places = order[at[had_one]]  # side "right" of a stable order: each device's latest lease
    status = state.leases.status[places]
    again = state.renewable(event.now)[places]
    return devices[~had_one], devices[had_one][again], np.unique(places[status == LIVE])


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
    admitted = _first_copies(state, event, answers)
    admitted, surplus = admitted[: state._missing], admitted[state._missing :]
    if state.drop_out.given:
        late = event.leases[answers == ENDED]
        state = _with(state, drop_out=state.drop_out.late(late))
    if state.rules.asynchronous:
        answers[surplus] = FOLDING  # that is: silence
    else:
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


def _first_copies(state: State, event: Offers, answers: Int8) -> Int64:
    """The offers that can be folded; copies among them are answered with silence."""
    admitted = np.flatnonzero(answers == LIVE)
    if admitted.size < 2:
        return admitted
    first = np.empty(state.leases.ids.size, np.int64)
    places = state.leases.places(event.leases[admitted])
    first[places[::-1]] = admitted[::-1]  # of several copies the first is written last
    is_copy = first[places] != admitted
    answers[admitted[is_copy]] = FOLDING
    return np.asarray(admitted[~is_copy])


def _judged(state: State, event: Offers) -> Int8:
    """An index of `_ANSWERS` for each offer.

    Of past rounds it is known which leases counted; whose they were, for the window that the
    drop-out watches alone. A stranger who offers an older lease learns what became of it.
    """
    answers = np.full(event.leases.size, _UNKNOWN, np.int8)
    places, rounds = state.leases.places(event.leases), round_of(event.leases)
    now = np.flatnonzero(places >= 0)
    held = state.leases.take(places[now])
    too_late = state.version - held.versions > state.rules.max_staleness
    stale = held.is_live & (too_late | (event.versions[now] != held.versions))
    status = np.where(stale, np.int8(_STALE), held.status)
    answers[now] = np.where(held.devices == event.devices[now], status, np.int8(_UNKNOWN))
    past = np.flatnonzero((places < 0) & (rounds >= 0) & (rounds < len(state.past)))
    if past.size:
        counted = state.past.accepted(event.leases[past], state.rules.asynchronous)
        answers[past] = np.where(counted, ACCEPTED, ENDED)
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
    places = state.leases.places(leases)
    folding = (places >= 0).all() and (state.leases.status[places] == FOLDING).all()
    if not folding or len(event.reasons) != event.refused.size:
        raise RunError(
            f"Folded names the leases {leases[:5]} (of {leases.size:,}) and gives "
            f"{len(event.reasons):,} reasons for {event.refused.size:,} refusals; in round "
            f"{state.round:,} {np.count_nonzero(state.leases.status == FOLDING):,} are being folded"
        )


def _committed(state: State, event: Committed) -> tuple[State, Commands]:
    if state.phase != "committing":
        raise RunError(f"round {state.round:,} is {state.phase}: there is nothing to commit")
    counted = _NO_IDS if _too_few(state) else state.leases.accepted
    going_on = state.leases.take(state.leases.is_live)
    state = committed(state, counted, event.changed, state.drop_out.share)
    if not going_on.ids.size:
        return state, ()
    columns = going_on.ids, going_on.devices, going_on.versions, going_on.deadlines
    carry = Carry(state.round, *columns)
    return carried(state, carry), (carry,)


def _given_up(state: State, event: GiveUp) -> tuple[State, Commands]:
    which = state.leases.is_live & np.isin(state.leases.ids, event.leases)
    return _ended(state, which), ()


def _abandoned(state: State, event: Abandon) -> tuple[State, Commands]:
    if state.phase not in ("open", "done"):
        raise RunError(f"round {state.round:,} is {state.phase}: it cannot be abandoned")
    ended = state.leases.ended(np.full(state.leases.ids.size, True))
    state = _with(state, phase="committing", leases=ended, accepted=0)
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
    if not rules.asynchronous:
        state = _learned(state, now)
        if _too_few(state) and state.window < rules.max_extensions:
            return _open(state, state.window + 1)
    if not rules.asynchronous or state.round == rules.rounds - 1:
        state = _released(state)
    state = _with(state, phase="committing")
    return state, (Commit(state.round, state.leases.accepted, _too_few(state)),)


def _window_is_over(state: State, now: float) -> bool:
    if state.rules.asynchronous:
        return state.exhausted
    if state.demand and now < state.closes_at:
        return False
    return not state.leases.is_open.any()


def _too_few(state: State) -> bool:
    return state.accepted < state.rules.minimum


def _open(state: State, window: int) -> tuple[State, Commands]:
    rules, share = state.rules, state.drop_out.share
    missing, cohort = rules.cohort - state.accepted, rules.cohort
    wanted = rules.concurrency or leases_wanted(missing, cohort, rules.over_selection, share)
    command = Open(state.round, window, wanted, share)
    return opened(state, command), (command,)


def _learned(state: State, now: float) -> State:
    """The window closes: what has come of its leases tells how many drop out."""
    begins = state.ordinals - state.given
    window = state.leases.take(np.arange(begins, state.ordinals))
    out = window.is_live
    until = float(window.deadlines.max(initial=now, where=out))
    first = lease_id(state.round, begins)
    drop_out = state.drop_out.closed(first, window.devices, out, state.came, until, now)
    return _with(state, drop_out=drop_out)


def _marked(state: State, leases: Int64, status: int) -> State:
    return _with(state, leases=state.leases.marked(leases, status)) if leases.size else state


def _expired(state: State, now: float) -> State:
    if state.drop_out.until <= now:
        state = _with(state, drop_out=state.drop_out.at(now))
    return _ended(state, state.leases.is_live & (state.leases.deadlines <= now))


def _released(state: State) -> State:
    return _ended(state, state.leases.is_live)


def _ended(state: State, which: Bools) -> State:
    return _with(state, leases=state.leases.ended(which)) if which.any() else state
