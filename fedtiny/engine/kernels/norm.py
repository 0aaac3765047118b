"""Normalisations without their scale and shift, and these: affine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedtiny.engine.ir import Scalars
from fedtiny.engine.kernels.sums import Array, in_rows, lane_sum, row_sum

Sum = Callable[[Array], Array]


def affine(x: Array, g: Array, b: Array, y: Array) -> None:
    """y = x * g + b over the last axis."""
    y[:] = x * g + b


def affine_dx(dy: Array, g: Array, dx: Array) -> None:
    """dx = dy * g."""
    dx[:] = dy * g


def affine_gradient(x: Array, dy: Array, _g: Array | None) -> Array:
    """g[C] = x * dy summed over all axes but the last, in order."""
    return row_sum(in_rows(x * dy))


def frozen_normalize(x: Array, mean: Array, var: Array, y: Array, eps: Scalars) -> None:
    """y = (x - mean) / sqrt(var + eps), with the statistics that are given."""
    y[:] = (x - mean) * _rstd(var, eps)


def frozen_normalize_dx(dy: Array, var: Array, dx: Array, eps: Scalars) -> None:
    """dx = dy / sqrt(var + eps)."""
    dx[:] = dy * _rstd(var, eps)


def _rstd(var: Array, eps: Scalars) -> Array:
    one = var.dtype.type
    return np.asarray(one(1) / np.sqrt(var + one(eps.value)))


def _normalize(x: Array, sums: Sum, count: int, eps: Scalars) -> tuple[Array, Array]:
    """The normalised x, and 1 / its standard deviation."""
    n = x.dtype.type(count)
    e = x - sums(x) / n
    rstd = _rstd(sums(e * e) / n, eps)
    return e * rstd, rstd


def _normalize_dx(dy: Array, y: Array, rstd: Array, sums: Sum, count: int) -> Array:
    n = dy.dtype.type(count)
    a, b = sums(dy) / n, sums(dy * y) / n
    return np.asarray(rstd * ((dy - a) - y * b))


# ---- over the batch, channel by channel ------------------------------------------------------


def batch_normalize(x: Array, y: Array, rstd: Array, eps: Scalars) -> None:
    """y = (x - mean) / sqrt(var + eps) over the rows of the batch."""
    rows = in_rows(x)
    normal, rstd[:] = _normalize(rows, row_sum, len(rows), eps)
    y[:] = normal.reshape(y.shape)


RUNNING, BATCH, MOVING = "running", "batch", "moving"
"""The statistics that a tracked normalisation uses: its running ones, those of the batch, or those
of the batch with the running ones moved towards them."""


def tracked_normalize(
    x: Array, mean: Array, var: Array, y: Array, rstd: Array, scalars: Scalars, use: str
) -> None:
    """As batch_normalize in training; by the running statistics elsewhere."""
    if use == RUNNING:
        rstd[:] = _rstd(var, scalars)
        y[:] = (x - mean) * rstd
        return
    if use == MOVING:
        _move(in_rows(x), mean, var, scalars)
    batch_normalize(x, y, rstd, scalars)


def _move(rows: Array, mean: Array, var: Array, scalars: Scalars) -> None:
    """The statistics a step towards those of the rows; the variance without bias, as torch."""
    one, count = rows.dtype.type, len(rows)
    momentum = one(scalars.number) / one(1000)
    found = row_sum(rows) / one(count)
    e = rows - found
    mean[:] = mean + momentum * (found - mean)
    var[:] = var + momentum * (row_sum(e * e) / one(count - 1) - var)


def batch_normalize_dx(dy: Array, y: Array, rstd: Array, dx: Array, _eps: Scalars) -> None:
    """Through the mean and the variance."""
    rows = in_rows(dy)
    dx[:] = _normalize_dx(rows, in_rows(y), rstd, row_sum, len(rows)).reshape(dx.shape)


# ---- over a sample, group by group -----------------------------------------------------------


def _grouped(x: Array, groups: int) -> Array:
    """[rows, B, G, channels of a group]."""
    channels = x.shape[-1]
    return x.reshape(len(x), -1, groups, channels // groups).swapaxes(0, 1)


def _ungrouped(x: Array, y: Array) -> Array:
    return x.swapaxes(0, 1).reshape(y.shape)


def _group_sum(x: Array) -> Array:
    """Each channel over the rows, then eight lanes over the channels of a group."""
    return lane_sum(row_sum(x))[..., None]


def group_normalize(x: Array, y: Array, rstd: Array, scalars: Scalars) -> None:
    """y = (x - mean) / sqrt(var + eps) over each group of a sample's channels."""
    grouped = _grouped(x, scalars.number)
    count = grouped.shape[0] * grouped.shape[3]
    normal, found = _normalize(grouped, _group_sum, count, scalars)
    y[:], rstd[:] = _ungrouped(normal, y), found[..., 0]


def group_normalize_dx(dy: Array, y: Array, rstd: Array, dx: Array, scalars: Scalars) -> None:
    """Through the mean and the variance."""
    ds, ys = (_grouped(t, scalars.number) for t in (dy, y))
    count = ds.shape[0] * ds.shape[3]
    dx[:] = _ungrouped(_normalize_dx(ds, ys, rstd[..., None], _group_sum, count), dx)
