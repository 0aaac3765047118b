"""Who is chosen, and how many. Pure: the same run, round and candidates choose the same devices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws

if TYPE_CHECKING:
    from fedtiny.tensors import Int64


def leases_wanted(missing: int, cohort: int, over_selection: float) -> int:
    """How many devices to ask when ``missing`` updates are still needed.

    A serial round (a cohort of 1) asks one device at a time: a second one would train on a model
    that the first is about to replace.
    """
    return missing if cohort == 1 else math.ceil(missing * over_selection)


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
