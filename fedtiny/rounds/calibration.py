"""Rounds that a strategy does not see, in which devices observe the ranges of activations for int8.

Before the first one, where there are none yet, by devices whose Programs compute in float32; a
round in which no such device takes part leaves the model as it is, and another one follows. Then
behind 2, 4, 8 ... rounds, since training moves activations, and most at its beginning: by all
devices, of which those in int8 see where activations reach the end of their range.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import StrategyError
from fedtiny.layout import RANGE
from fedtiny.quantised import LEAST, extent
from fedtiny.values import CALIBRATE, RANGES, WIDER, Instruction

if TYPE_CHECKING:
    from fedtiny.fold import Total
    from fedtiny.layout import Layout
    from fedtiny.strategies.base import Round, Strategy
    from fedtiny.tensors import Float32, Int64
    from fedtiny.values import Masks


def is_due(layout: Layout, model: Float32) -> bool:
    """Whether an activation of the model has no range."""
    return bool(_without(layout, model))


def due(layout: Layout, model: Float32, strategy: Strategy, round: Round) -> str:
    """What comes back in a round that calibrates: RANGES or WIDER; "" if this one does not."""
    if is_due(layout, model):
        return RANGES
    again = layout.activations and round.t > 1 and not round.t & (round.t - 1)
    return WIDER if again and not strategy.asynchronous else ""


def instruction(strategy: Strategy, returns: str, masks: Masks) -> Instruction:
    """What such a round asks. StrategyError for asynchronous rounds, which are all alike."""
    if strategy.asynchronous:
        raise StrategyError(
            f"{type(strategy).__name__} lets rounds overlap, which leaves none to observe the "
            "ranges of activations for int8; set data.public, or name a model that has them in "
            "model.start"
        )
    return Instruction(CALIBRATE, returns=returns, masks=masks)


def calibrated(layout: Layout, model: Float32, total: Total | None, round: Round) -> Float32:
    """The model with the mean ranges of the devices; itself if none has sent any. An activation
    that has died in training keeps its range.

    StrategyError for an activation that never changes, and has no range yet.
    """
    if total is None or not total.count:
        return model
    made = model.copy()
    made[_places(layout)] = total.mean()
    for name in _without(layout, made):
        own = layout[name + RANGE]
        made[own.offset : own.offset + own.size] = model[own.offset : own.offset + own.size]
    for name in _without(layout, made):
        raise StrategyError(
            f"round {round.t:,} calibrates, and {name} is 0 on all samples of {total.count:,} "
            "devices, so that int8 has no range for it; take other initial values, or train in "
            "float32 first and start from there by model.start"
        )
    return made


def _without(layout: Layout, model: Float32) -> list[str]:
    """The activations that have none."""
    pairs = model[_places(layout)].reshape(-1, 2)
    each = zip(layout.activations, pairs.tolist(), strict=True)
    return [p.name.removesuffix(RANGE) for p, pair in each if not LEAST <= extent(*pair) < math.inf]


def _places(layout: Layout) -> Int64:
    """The coordinates of the ranges."""
    starts = [p.offset for p in layout.activations]
    return np.array([[at, at + 1] for at in starts], np.int64).reshape(-1)
