"""Who is invited into a window: a drawn order of the devices, the same real and simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws, rng

if TYPE_CHECKING:
    from fedtiny.tensors import Int64, UInt32


def key(run: int, round: int, window: int) -> UInt32:
    """What the order is drawn by. In the counter the window stands in place of a device."""
    return np.array(rng.block(run, round, window, rng.Purpose.CONTACT, 0), np.uint32)


def invited(training: Int64, places: Int64, key: UInt32) -> Int64:
    """The devices at these places of the order of all that train."""
    return training[draws.shuffle(places, training.size, key)]


def order(run: int, round: int, window: int, training: Int64) -> Int64:
    """All that train, in the order of their invitation."""
    return invited(training, np.arange(training.size), key(run, round, window))
