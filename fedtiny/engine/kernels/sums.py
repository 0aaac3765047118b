"""The orders of summation, and the small integers that are packed into words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LANES = 8
WORD_BITS = 32


def tree8(lanes: Array) -> Array:
    """The fixed tree over the last axis of eight lanes."""
    a, b, c, d, e, f, g, h = np.moveaxis(lanes, -1, 0)
    return np.asarray(((a + b) + (c + d)) + ((e + f) + (g + h)))


def add_lanes(lanes: Array, terms: Array) -> None:
    """Add term i of the last axis to lane i mod 8, ascending."""
    for start in range(0, terms.shape[-1], LANES):
        group = terms[..., start : start + LANES]
        lanes[..., : group.shape[-1]] += group


def lane_sum(terms: Array) -> Array:
    """Eight-lane sum over the last axis."""
    lanes = np.zeros((*terms.shape[:-1], LANES), terms.dtype)
    add_lanes(lanes, terms)
    return tree8(lanes)


def row_sum(rows: Array) -> Array:
    """Sequential sum over the first axis, from +0."""
    total = np.zeros(rows.shape[1:], rows.dtype)
    for row in rows:
        total = total + row
    return total


def in_rows(x: Array) -> Array:
    """[rows, channels]: every axis but the innermost is a row."""
    return x.reshape(-1, x.shape[-1])


def pack(values: Array, bits: int) -> Array:
    """[B, n] small integers as [B, words] of int32, the first in the lowest bits."""
    at = WORD_BITS // bits
    padded = np.zeros((len(values), -(-values.shape[1] // at) * at), np.uint32)
    padded[:, : values.shape[1]] = values
    shifted = padded.reshape(len(values), -1, at) << (np.arange(at, dtype=np.uint32) * bits)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=2), np.uint32).view(np.int32)


def unpack(words: Array, bits: int, shape: Iterable[int]) -> Array:
    """The integers again, in a shape that starts with the batch."""
    shape = tuple(shape)
    shifts = np.arange(WORD_BITS // bits, dtype=np.uint32) * bits
    values = (words.view(np.uint32)[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    count = int(np.prod(shape[1:]))
    return values.reshape(len(words), -1)[:, :count].reshape(shape).astype(np.int64)
