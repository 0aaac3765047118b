"""The journal of a run: what must be known to go on after a crash, and to rebuild every model.

While a round is open its windows, leases and accepted updates are kept. When it commits they are
destroyed, and one `Published` stays: who was accepted, what was folded (or, for strategies that
need every update, what `finish` returned), and the strategy's next state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedtiny.errors import RunError
from fedtiny.fold import Total
from fedtiny.rounds import machine
from fedtiny.rounds.events import Grant, Open
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import Layout

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

    ``total`` makes that model from the one before; ``model`` is the model itself, where the
    strategy needs every update; both are None if the round changed nothing.
    """

    round: int
    leases: Int64
    version: int
    digest: str
    total: Total | None
    model: Float32 | None
    state: State
    measures: Measures
    failed: bool

    @property
    def changed(self) -> bool:
        """Whether the round made a model."""
        return self.total is not None or self.model is not None


Record = Open | Grant | Accepted | Published


class Journal(Protocol):
    """Where records go. `append` returns when the record would survive a crash."""

    def append(self, record: Record) -> None:
        """Keep the record; a Published destroys what was pending."""
        ...

    def pending(self) -> Iterable[Open | Grant | Accepted]:
        """The records since the last commit, in order."""
        ...

    def commits(self) -> Iterable[Published]:
        """Every committed round, in order."""
        ...


class MemoryJournal:
    """A Journal that lives as long as the process: for simulations and tests."""

    def __init__(self) -> None:
        self._pending: list[Open | Grant | Accepted] = []
        self._commits: list[Published] = []

    def append(self, record: Record) -> None:
        """Keep the record; a Published destroys what was pending."""
        if isinstance(record, Published):
            self._commits.append(record)
            self._pending.clear()
        else:
            self._pending.append(record)

    def pending(self) -> Iterable[Open | Grant | Accepted]:
        """The records since the last commit, in order."""
        return tuple(self._pending)

    def commits(self) -> Iterable[Published]:
        """Every committed round, in order."""
        return tuple(self._commits)


def recover(rules: machine.Rules, journal: Journal) -> machine.State:
    """The state of the rounds after a crash: what was accepted still is, live leases still live."""
    state = machine.start(rules)
    for commit in journal.commits():
        state = machine.committed(state, commit.leases, commit.changed)
    for record in journal.pending():
        match record:
            case Open():
                state = machine.opened(state, record)
            case Grant():
                state = machine.granted(state, record)
            case Accepted():
                state = machine.accepted(state, record.leases)
    return state


def replay(
    journal: Journal, rounds: int, strategy: Strategy, layout: Layout, model: Float32
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
        elif commit.model is not None:
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
