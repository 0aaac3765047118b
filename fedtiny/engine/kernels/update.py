"""What is done with a gradient: measured, and taken off the parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtiny.engine.kernels.sums import LANES, Array, add_lanes, in_rows, tree8


@dataclass(frozen=True, slots=True)
class Rule:
    """What the update of one parameter may use, at run time. Arrays have the parameter's shape."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    prox: float = 0.0
    base: Array | None = None
    correction: Array | None = None
    velocity: Array | None = None


def buffered_gradient(_x: None, g: Array, _w: Array | None) -> Array:
    """A gradient that was summed in a buffer."""
    return g


def norm_by_rows(gradient: Callable[..., Array]) -> Callable[..., Array]:
    """The squared norm of that gradient: lane o mod 8 gathers g[..., o]^2 row by row."""

    def squared(*operands: Any) -> Array:
        g = in_rows(gradient(*operands))
        lanes = np.zeros(LANES, g.dtype)
        for row in g * g:
            add_lanes(lanes, row)
        return tree8(lanes)

    return squared


def norm_by_columns(gradient: Callable[..., Array]) -> Callable[..., Array]:
    """The squared norm of that gradient: over eight columns o at a time, then the rows."""

    def squared(*operands: Any) -> Array:
        g = in_rows(gradient(*operands))
        lanes = np.zeros(LANES, g.dtype)
        for start in range(0, g.shape[1], LANES):
            for row in g[:, start : start + LANES]:
                add_lanes(lanes, row * row)
        return tree8(lanes)

    return squared


def apply_update(g: Array, w: Array, scale: Array | None, rule: Rule) -> None:
    """w -= lr v, with clipping, decay, proximal term, correction and momentum in this order."""
    one = w.dtype.type
    if scale is not None:
        g = scale[0] * g
    if rule.weight_decay:
        g = g + one(rule.weight_decay) * w
    if rule.prox:
        assert rule.base is not None
        g = g + one(rule.prox) * (w - rule.base)
    if rule.correction is not None:
        g = g + rule.correction
    if rule.velocity is not None:
        rule.velocity[:] = one(rule.momentum) * rule.velocity + g
        g = rule.velocity
    w[:] = w - one(rule.lr) * g


def zero(total: Array) -> None:
    """All elements +0."""
    total[:] = 0


def norm_scale(total: Array, scale: Array, clip: float) -> None:
    """scale = clip / sqrt(total) if that norm exceeds the clip, else 1."""
    norm, one = np.sqrt(total[0]), total.dtype.type
    scale[0] = one(clip) / norm if clip > 0 and norm > one(clip) else one(1)
