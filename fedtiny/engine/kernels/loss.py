"""Losses: of each row, and of a batch with the gradient by the prediction."""

from __future__ import annotations

import numpy as np

from fedtiny import elementary
from fedtiny.engine.kernels.sums import Array, lane_sum, row_sum


def mse_rows(prediction: Array, target: Array) -> Array:
    """Mean squared error of each row."""
    e = (prediction - target).reshape(len(target), -1)
    return np.asarray(lane_sum(e * e) / e.dtype.type(e.shape[1]))


def mse(prediction: Array, target: Array, gradient: Array, loss: Array) -> None:
    """Mean over all elements, and its gradient by the prediction."""
    one = prediction.dtype.type
    rows, e = mse_rows(prediction, target), prediction - target
    loss[:] = row_sum(rows) / one(len(rows))
    gradient[:] = (one(2) / one(e.size)) * e


def exponentials(z: Array) -> tuple[Array, Array, Array]:
    """Over the last axis: z less its largest element m; q = exp(z - m); the sum of q."""
    m = z[..., 0]
    for c in range(1, z.shape[-1]):
        m = np.where(z[..., c] > m, z[..., c], m)
    below = z - m[..., None]
    q = elementary.exp(below)
    return below, q, lane_sum(q)


def cross_entropy_rows(logits: Array, label: Array) -> Array:
    """-log softmax(logits)[label] of each row."""
    below, _, s = exponentials(logits)
    return np.asarray(elementary.log(s) - below[np.arange(len(label)), label])


def cross_entropy(logits: Array, label: Array, gradient: Array, loss: Array) -> None:
    """Mean over the rows of the cross-entropy with class labels, and its gradient."""
    one = logits.dtype.type
    rows, (_, q, s) = cross_entropy_rows(logits, label), exponentials(logits)
    share = one(1) / one(len(rows))
    loss[:] = row_sum(rows) / one(len(rows))
    gradient[:] = q * (share / s)[:, None]
    gradient[np.arange(len(rows)), label] -= share


def weighted_cross_entropy(
    logits: Array, label: Array, gradient: Array, loss: Array, weight: Array
) -> None:
    """The mean weighted by the weights of the labels' classes, and its gradient."""
    rows, (_, q, s) = cross_entropy_rows(logits, label), exponentials(logits)
    w = weight[label]
    total = row_sum(w)
    share = w / total
    loss[:] = row_sum(w * rows) / total
    gradient[:] = q * (share / s)[:, None]
    gradient[np.arange(len(rows)), label] -= share


def soft_cross_entropy_rows(logits: Array, label: Array) -> Array:
    """-sum(label * log softmax(logits)) of each row."""
    below, _, s = exponentials(logits)
    return lane_sum(label * (elementary.log(s)[:, None] - below))


def soft_cross_entropy(logits: Array, label: Array, gradient: Array, loss: Array) -> None:
    """Mean over the rows of the cross-entropy with probabilities, and its gradient."""
    one = logits.dtype.type
    rows, (_, q, s) = soft_cross_entropy_rows(logits, label), exponentials(logits)
    loss[:] = row_sum(rows) / one(len(rows))
    scale = lane_sum(label) / s
    gradient[:] = (q * scale[:, None] - label) * (one(1) / one(len(rows)))
