"""Who is chosen, and how many. Pure: the same run, round and candidates choose the same devices."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

CONFIDENCE = 0.99
"""How sure a window with a measured drop-out is to bring all that is missing."""


def leases_wanted(missing: int, cohort: int, over_selection: float, drop_out: float = 0.0) -> int:
    """How many devices to ask when ``missing`` updates are still needed.

    With ``over_selection`` 0 the ``drop_out`` decides: as few as bring them with `CONFIDENCE`. A
    serial round (a cohort of 1) asks one device at a time: a second one would train on a model
    that the first is about to replace.
    """
    if cohort == 1:
        return missing
    return math.ceil(missing * over_selection) if over_selection else _enough(missing, drop_out)


@lru_cache(maxsize=256)
def _enough(missing: int, drop_out: float) -> int:
    """The least n with P(Binomial(n, 1 - drop_out) >= missing) >= CONFIDENCE; 3 * missing + 10
    at most: beyond it, another window is cheaper."""
    low, high = missing, 3 * missing + 10
    while low < high:
        middle = (low + high) // 2
        if _sure(middle, missing, drop_out):
            high = middle
        else:
            low = middle + 1
    return low


def _sure(n: int, missing: int, drop_out: float) -> bool:
    """Whether ``n`` leases are enough. The terms are relative to the largest: none overflows."""
    if not 0 < drop_out < 1:
        return drop_out <= 0
    odds = (1 - drop_out) / drop_out
    most_likely = min(int((n + 1) * (1 - drop_out)), n)
    above = np.arange(most_likely, n)
    below = np.arange(most_likely, 0, -1)
    rising = np.cumprod((n - above) / (above + 1) * odds)
    falling = np.cumprod(below / (n - below + 1) / odds)
    terms = np.concatenate([falling[::-1], [1.0], rising])
    return bool(terms[missing:].sum() >= CONFIDENCE * terms.sum())


def choose(run: int, round: int, devices: Int64, count: int) -> Int64:
    """``count`` of the devices: those with the lowest draws of the round, in their order.

    If there are no more than ``count``, all of them, ascending. A device that is named twice is
    chosen once.
    """
    if not count or devices.size == 1:
        return devices[:count]
    asking = np.unique(devices)
    if asking.size <= count:
        return asking
    return draws.lowest(run, round, asking, count).astype(np.int64)
