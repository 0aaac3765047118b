"""The journal of a run: what must be known to go on after a crash, and to rebuild every model.

A shell appends records and then commits: nothing that they say may be answered before. While a
round is open its windows, leases and accepted updates are kept. When it commits they are destroyed,
and one `Published` stays: who was accepted, what was folded (or, for strategies that need every
update, what `finish` returned), and the strategy's next state. Leases that outlive their round are
written again with the next one. To go on takes the last model, and those that such leases are on;
`replay` rebuilds all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedtiny.errors import RunError
from fedtiny.fold import Total
from fedtiny.layout import Layout
from fedtiny.rounds import machine
from fedtiny.rounds.events import Carry, Grant, Open
from fedtiny.rounds.measures import Measures
from fedtiny.rounds.rules import Rules
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, Strategy

if TYPE_CHECKING:
    from fedtiny.rounds.content import Part
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float32, Int64


@dataclass(frozen=True, slots=True)
class Accepted:
    """Updates that count, and what they add to the round; written before their devices hear."""

    round: int
    leases: Int64
    part: Part
    measures: Measures


@dataclass(frozen=True, slots=True)
class Published:
    """A committed round. ``version`` and ``digest`` (SHA-256, hex) are those of the model after it.

    ``total`` makes that model from the one before. Without it the round changed nothing, or the
    ``model`` itself is what came of it: the strategy needs every update, it made the model of what
    was measured, or an operator gave it.
    A journal need not keep a ``model`` that is made by a ``total`` or is that of the round before.
    ``bases`` are the versions that the work of asynchronous rounds goes on from. ``gated`` tells of
    a model that was held back; it is for those who watch, no journal keeps it.
    """

    round: int
    leases: Int64
    version: int
    digest: str
    changed: bool
    total: Total | None
    model: Float32 | None
    state: State
    measures: Measures
    failed: bool
    drop_out: float
    bases: tuple[int, ...] = ()
    gated: Mapping[str, float | None] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the rounds must know of a committed round to go on; much less than a Published."""

    leases: Int64
    changed: bool
    drop_out: float


Pending = Open | Grant | Carry | Accepted
Record = Pending | Published


class Commits(Protocol):
    """The committed rounds of a run."""

    def commits(self) -> Iterable[Published]:
        """Every committed round, in order."""
        ...

    def outcomes(self) -> Iterable[Outcome]:
        """The same, as far as the rounds need it to go on."""
        ...

    def latest(self) -> tuple[Float32, State] | None:
        """The model and the strategy's state after the last of them; None before the first."""
        ...

    def bases(self) -> Mapping[int, Float32]:
        """The models of the versions that the last of them names as ``bases``."""
        ...


class Journal(Commits, Protocol):
    """Where records go."""

    def append(self, record: Record) -> None:
        """Note the record; a Published destroys what was pending."""
        ...

    def commit(self) -> None:
        """What was appended survives a crash from here on; nothing may be answered before."""
        ...

    def pending(self) -> Iterable[Pending]:
        """The records since the last committed round, in order."""
        ...


class MemoryJournal:
    """A Journal that lives as long as the process: for simulations and tests."""

    def __init__(self) -> None:
        self._pending: list[Pending] = []
        self._commits: list[Published] = []

    def append(self, record: Record) -> None:
        """Keep the record; a Published destroys what was pending."""
        if isinstance(record, Published):
            self._commits.append(record)
            self._pending.clear()
        else:
            self._pending.append(record)

    def commit(self) -> None:
        """Nothing to do: a crash takes the memory with it."""

    def pending(self) -> Iterable[Pending]:
        """The records since the last committed round, in order."""
        return tuple(self._pending)

    def commits(self) -> Iterable[Published]:
        """Every committed round, in order."""
        return tuple(self._commits)

    def outcomes(self) -> Iterable[Outcome]:
        """The same, as far as the rounds need it to go on."""
        return (Outcome(c.leases, c.changed, c.drop_out) for c in self._commits)

    def latest(self) -> tuple[Float32, State] | None:
        """The model and the strategy's state after the last of them; None before the first."""
        if not self._commits:
            return None
        last = self._commits[-1]
        assert last.model is not None
        return last.model, last.state

    def bases(self) -> Mapping[int, Float32]:
        """The models of the versions that the last of them names as ``bases``."""
        wanted = self._commits[-1].bases if self._commits else ()
        made = {c.version: c.model for c in self._commits if c.model is not None and c.changed}
        return {version: made[version] for version in wanted if version in made}


def recover(rules: Rules, journal: Journal) -> machine.State:
    """The state of the rounds after a crash: what was accepted still is, live leases still live."""
    state = machine.start(rules)
    for outcome in journal.outcomes():
        state = machine.committed(state, outcome.leases, outcome.changed, outcome.drop_out)
    for record in journal.pending():
        match record:
            case Carry():
                state = machine.carried(state, record)
            case Open():
                state = machine.opened(state, record)
            case Grant():
                state = machine.granted(state, record)
            case Accepted():
                state = machine.accepted(state, record.leases)
    return state


def replay(
    journal: Commits, rounds: int, strategy: Strategy, layout: Layout, model: Float32
) -> Iterator[tuple[Float32, State]]:
    """The model and the strategy's state before each round, and after the last, bit by bit.

    ``model`` is the initial one. Raises RunError when a rebuilt model is not the one published.
    """
    state = calls.start(strategy, layout, model)
    yield model, state
    for commit in journal.commits():
        if commit.total is not None:
            turn = Round(commit.round, rounds)
            model, _ = calls.finish(strategy, turn, model, commit.total, state)
        elif commit.changed:
            assert commit.model is not None
            model = commit.model
        state = commit.state
        if digest(model) != commit.digest:
            raise RunError(
                f"round {commit.round:,} gives the model {digest(model)[:12]}, its journal says "
                f"{commit.digest[:12]}; the strategy or the initial model is not that of this run"
            )
        yield model, state


def digest(model: Float32) -> str:
    """SHA-256 (hex) of a model's bytes."""
    return hashlib.sha256(model.tobytes()).hexdigest()
