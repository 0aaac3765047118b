"""The reference kernels: NumPy, one function an op, slow and obvious.

They write into their last operands in place. In float32 they follow the canonical order of
summation of ``runtime/ft_runtime.h`` bit for bit; in float64 the same order with exact functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtiny import elementary

Array = npt.NDArray[Any]
LANES = 8


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


def tree8(lanes: Array) -> Array:
    """The fixed tree over the last axis of eight lanes."""
    a, b, c, d, e, f, g, h = np.moveaxis(lanes, -1, 0)
    return np.asarray(((a + b) + (c + d)) + ((e + f) + (g + h)))


def lane_sum(terms: Array) -> Array:
    """Eight-lane sum over the last axis: lane i mod 8, ascending, then the tree."""
    lanes = np.zeros((*terms.shape[:-1], LANES), terms.dtype)
    for start in range(0, terms.shape[-1], LANES):
        group = terms[..., start : start + LANES]
        lanes[..., : group.shape[-1]] += group
    return tree8(lanes)


def row_sum(rows: Array) -> Array:
    """Sequential sum over the first axis, from +0."""
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row in rows:
        total = total + row
    return total


# ---- forward ---------------------------------------------------------------------------------


def linear(x: Array, w: Array, b: Array | None, y: Array) -> None:
    """y[B,O] = x[B,I] @ w[I,O] + b[O]."""
    if w.shape[1] == 1:
        dot = lane_sum(x * w[:, 0])[:, None]
        y[:] = dot if b is None else dot + b
        return
    total = np.zeros(y.shape, y.dtype) if b is None else np.broadcast_to(b, y.shape).copy()
    for i in range(w.shape[0]):
        total += x[:, i : i + 1] * w[i]
    y[:] = total


def bias(x: Array, b: Array, y: Array) -> None:
    """y = x + b over the last axis."""
    y[:] = x + b


def relu(x: Array, y: Array) -> None:
    """y = max(x, 0); NaN passes."""
    y[:] = np.where((x > 0) | np.isnan(x), x, x.dtype.type(0))


def tanh(x: Array, y: Array) -> None:
    """y = tanh(x)."""
    y[:] = elementary.tanh(x)


def sigmoid(x: Array, y: Array) -> None:
    """y = 1 / (1 + exp(-x))."""
    y[:] = elementary.sigmoid(x)


def add(a: Array, b: Array, y: Array) -> None:
    """y = a + b."""
    y[:] = a + b


# ---- losses ----------------------------------------------------------------------------------


def mse_rows(prediction: Array, target: Array) -> Array:
    """Mean squared error of each row."""
    e = prediction - target
    return np.asarray(lane_sum(e * e) / e.dtype.type(e.shape[1]))


def mse(prediction: Array, target: Array, gradient: Array, loss: Array) -> None:
    """Mean over all elements, and its gradient by the prediction."""
    one = prediction.dtype.type
    rows, e = mse_rows(prediction, target), prediction - target
    loss[:] = row_sum(rows) / one(len(rows))
    gradient[:] = (one(2) / one(e.size)) * e


def cross_entropy_rows(logits: Array, label: Array) -> Array:
    """-log softmax(logits)[label] of each row."""
    return _softmax(logits, label)[0]


def _softmax(logits: Array, label: Array) -> tuple[Array, Array, Array]:
    top = logits[:, 0]
    for column in logits.T[1:]:
        top = np.where(column > top, column, top)
    q = elementary.exp(logits - top[:, None])
    s = lane_sum(q)
    own = logits[np.arange(len(label)), label]
    return elementary.log(s) - (own - top), q, s


def cross_entropy(logits: Array, label: Array, gradient: Array, loss: Array) -> None:
    """Mean over the rows of the cross-entropy with class labels, and its gradient."""
    one = logits.dtype.type
    rows, q, s = _softmax(logits, label)
    share = one(1) / one(len(rows))
    loss[:] = row_sum(rows) / one(len(rows))
    gradient[:] = q * (share / s)[:, None]
    gradient[np.arange(len(rows)), label] -= share


# ---- backward --------------------------------------------------------------------------------


def linear_dx(dy: Array, w: Array, dx: Array) -> None:
    """dx[B,I] = dy[B,O] @ w[I,O].T."""
    dx[:] = dy * w[:, 0] if w.shape[1] == 1 else lane_sum(w[None] * dy[:, None])


def relu_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy where y > 0."""
    dx[:] = np.where(y > 0, dy, dy.dtype.type(0))


def tanh_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy (1 - y^2)."""
    dx[:] = dy * (y.dtype.type(1) - y * y)


def sigmoid_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy y (1 - y)."""
    dx[:] = dy * (y * (y.dtype.type(1) - y))


# ---- updates ---------------------------------------------------------------------------------


def linear_gradient(x: Array, dy: Array) -> Array:
    """g[I,O] = x.T @ dy, summed over the batch in order."""
    return row_sum(x[:, :, None] * dy[:, None, :])


def bias_gradient(_x: None, dy: Array) -> Array:
    """g[C] = dy summed over all axes but the last, in order."""
    return row_sum(dy.reshape(-1, dy.shape[-1]))


def squared_norm(gradient: Array) -> Array:
    """Lane c mod 8 gathers g[..., c]^2 in order; then the tree."""
    squares = (gradient * gradient).reshape(-1, gradient.shape[-1])
    lanes = np.zeros(LANES, gradient.dtype)
    for row in squares:
        for start in range(0, len(row), LANES):
            group = row[start : start + LANES]
            lanes[: len(group)] += group
    return tree8(lanes)


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


def norm_scale(total: Array, scale: Array, clip: float) -> None:
    """scale = clip / sqrt(total) if that norm exceeds the clip, else 1."""
    norm, one = np.sqrt(total[0]), total.dtype.type
    scale[0] = one(clip) / norm if clip > 0 and norm > one(clip) else one(1)
