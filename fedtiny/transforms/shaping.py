"""Transforms that leave a value for every coordinate: clip and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from fedtiny.rng import Purpose
from fedtiny.transforms.arithmetic import arithmetic

if TYPE_CHECKING:
    from fedtiny.transforms.arithmetic import Place, Vector
    from fedtiny.values import Transform

_ROUNDED = 1.0 - 2.0**-23
"""Scaled values are rounded to float32; by so much less, their norm is still within the bound."""


def clip(delta: Vector, norm: float, place: Place) -> Vector:
    """``delta * min(1, norm / |delta|)``."""
    numbers = arithmetic()
    found = numbers.norm(delta)
    return delta if found <= norm else numbers.scaled(delta, norm / found * _ROUNDED)


def noise(delta: Vector, sigma: float, place: Place) -> Vector:
    """``delta + sigma * z``, z standard normal."""
    numbers = arithmetic()
    count = len(delta) + len(delta) % 2  # they come in pairs
    return numbers.noised(delta, sigma, numbers.words(place, Purpose.NOISE, count))


_SHAPERS: Mapping[str, Callable[[Vector, float, Place], Vector]] = {"clip": clip, "noise": noise}


def shaped(steps: Iterable[Transform], delta: Vector, place: Place) -> Vector:
    """The delta after those of the steps that are of this family."""
    for step in steps:
        if step.name in _SHAPERS:
            delta = _SHAPERS[step.name](delta, step.figure, place)
    return delta
