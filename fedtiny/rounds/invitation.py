"""Who is invited into a window: a drawn order of the devices, the same real and simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws, rng
from fedtiny.errors import StrategyError

if TYPE_CHECKING:
    from fedtiny.tensors import Int64, UInt32


def key(run: int, round: int, window: int) -> UInt32:
    """What the order is drawn by. In the counter the window stands in place of a device."""
    return np.array(rng.block(run, round, window, rng.Purpose.CONTACT, 0), np.uint32)


def invited(training: Int64, places: Int64, key: UInt32) -> Int64:
    """The devices at these places of the order of all that train."""
    return training[draws.shuffle(places, training.size, key)]


def remaining(training: Int64, barred: Int64, needed: int) -> Int64:
    """The devices that a round may ask. Raises StrategyError if it can never complete with them."""
    left = training[~np.isin(training, barred)] if barred.size else training
    if left.size < needed:
        raise StrategyError(
            f"{training.size - left.size:,} of the {training.size:,} devices that train are "
            f"barred, and each round needs updates of {needed:,}; let the strategy bar fewer, or "
            "for fewer rounds, or add devices"
        )
    return left


def order(run: int, round: int, window: int, training: Int64) -> Int64:
    """All that train, in the order of their invitation."""
    return invited(training, np.arange(training.size), key(run, round, window))
