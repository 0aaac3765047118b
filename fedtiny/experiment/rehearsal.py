"""The rounds of a run without any device: what the strategy will ask, as far as one can tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedtiny.rounds.content import OpenRound
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.values import SCORE, Instruction

if TYPE_CHECKING:
    from fedtiny.strategies.base import Strategy
    from fedtiny.tensors import Float32
    from fedtiny.values import Layout


def rehearsed(
    strategy: Strategy, layout: Layout, model: Float32, rounds: int
) -> Iterator[Instruction]:
    """What each round asks when no update moves anything and all candidates are alike."""
    state = calls.start(strategy, layout, model)
    for t in range(rounds):
        turn = OpenRound.of(strategy, Round(t, rounds), layout, model, state)
        yield turn.instruction
        done = turn.conclude([turn.nothing], _alike(turn.instruction), False)
        model, state = done.model, done.state


def _alike(asked: Instruction) -> Measures:
    """The measures of a round that scores candidates of loss 1 on one sample."""
    if asked.kind != SCORE:
        return Measures()
    names = [*(f"loss_sum.{index}" for index in range(len(asked.candidates))), "count"]
    return Measures.of(dict.fromkeys(names, 1.0))
