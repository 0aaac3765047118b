"""The rounds of a run without any device: what the strategy will ask, as far as one can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.experiment.asking import picks_masks
from fedtiny.rounds.content import OpenRound
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.values import SCORE, TRAIN, Instruction

if TYPE_CHECKING:
    from fedtiny.layout import Layout
    from fedtiny.strategies.base import Strategy
    from fedtiny.tensors import Float32


@dataclass(frozen=True)
class Outlook:
    """What the Programs of a fleet are made for, of all that its rounds ask.

    Attributes:
        first: What the first round asks.
        training: What the first round asks that trains and does not grow; without one, the first.
        selects: Whether a round asks for candidates by their seeds.
        growths: Of the rounds that grow the same layers the one that grows most, and its number.
    """

    first: Instruction
    training: Instruction
    selects: bool
    growths: tuple[tuple[int, Instruction], ...]

    @classmethod
    def of(cls, rounds: Iterable[Instruction]) -> Outlook:
        """That of at least one round. No more of them is kept: each has masks of its own."""
        first = training = None
        selects, growths = False, dict[frozenset[str], tuple[int, Instruction]]()
        for t, asked in enumerate(rounds):
            first, selects = first or asked, selects or picks_masks(asked)
            if asked.grow:
                layers = frozenset(name for name, _ in asked.grow)
                growths[layers] = max(growths.get(layers, (t, asked)), (t, asked), key=_grown)
            elif asked.kind == TRAIN:
                training = training or asked
        assert first is not None
        return cls(first, training or first, selects, tuple(growths.values()))


def _grown(growth: tuple[int, Instruction]) -> int:
    return sum(count for _, count in growth[1].grow)


def rehearsed(
    strategy: Strategy, layout: Layout, model: Float32, rounds: int
) -> Iterator[Instruction]:
    """What each round asks when no update moves anything and all candidates are alike."""
    state = calls.start(strategy, layout, model)
    for t in range(rounds):
        turn = OpenRound.of(strategy, Round(t, rounds), layout, model, state)
        yield turn.instruction
        nothing = turn.nothing
        # Of no update at all a sum is 0, but a median is nothing: such a round moves nothing.
        done = turn.conclude([nothing], _alike(turn.instruction), failed=nothing == ())
        model, state = done.model, done.state


def _alike(asked: Instruction) -> Measures:
    """The measures of a round that scores candidates of loss 1 on one sample."""
    if asked.kind != SCORE:
        return Measures()
    names = [*(f"loss_sum.{index}" for index in range(len(asked.candidates))), "count"]
    return Measures.of(dict.fromkeys(names, 1.0))
