"""What is done with a gradient: measured, and taken off the parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtiny.engine.kernels.int8 import Int8
from fedtiny.engine.kernels.sums import LANES, Array, add_lanes, in_rows, tree8
from fedtiny.quantised import clamped

FURTHEST = 256.0
"""Steps that an int8 weight goes at most in one update: from either end past the other."""


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
    """w -= lr v."""
    w[:] = w - w.dtype.type(rule.lr) * _direction(g, w, scale, rule)


def apply_update8(g: Array, w: Int8, scale: Array | None, rule: Rule, u: Array) -> None:
    """w -= lr v, in steps: rounded up with the probability of what is left, by a uniform u.

    In float64 nothing is rounded, and nothing saturates.
    """
    values, step = w.values.reshape(-1), np.broadcast_to(w.scale, w.values.shape).reshape(-1)
    v = _direction(g, w.real.reshape(-1), scale, rule)
    t = (v.dtype.type(rule.lr) * v) / step
    if values.dtype != np.int8:
        values[:] = values - t
        return
    within = clamped(np.where(np.isnan(t), 0, t), -FURTHEST, FURTHEST)
    values[:] = np.clip(values - np.floor(within + u).astype(np.int64), -127, 127)


def _direction(g: Array, w: Array, scale: Array | None, rule: Rule) -> Array:
    """v: with clipping, decay, proximal term, correction and momentum in this order."""
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
    return g


def zero(total: Array) -> None:
    """All elements +0."""
    total[:] = 0


def norm_scale(total: Array, scale: Array, clip: float) -> None:
    """scale = clip / sqrt(total) if that norm exceeds the clip, else 1."""
    norm, one = np.sqrt(total[0]), total.dtype.type
    scale[0] = one(clip) / norm if clip > 0 and norm > one(clip) else one(1)
