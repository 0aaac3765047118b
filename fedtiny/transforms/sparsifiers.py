"""Transforms that send some coordinates alone: those with the largest values, or drawn ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fedtiny import rng
from fedtiny.layout import Layout, Parameter
from fedtiny.masks import Mask, drawn_places
from fedtiny.transforms.arithmetic import arithmetic

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.transforms.arithmetic import Place, Positions, Vector
    from fedtiny.values import Transform


PLACE_BYTES = 4
"""A place of an update is a uint32."""


@dataclass(frozen=True, slots=True)
class Cover:
    """What a device trained, of a vector of ``size``."""

    ranges: Ranges
    mask: Mask | None
    size: int

    @property
    def coordinates(self) -> Positions:
        """One by one."""
        return arithmetic().covered(self.ranges, self.mask)


@dataclass(frozen=True)
class Chosen:
    """Which values of a delta are sent: those ``at`` these positions, or all of them (None).

    ``places`` and ``mask`` are those of the update.
    """

    at: Positions | None = None
    places: bytes | None = None
    mask: Mask | None = None


def count_of(share: float, count: int) -> int:
    """That share of so many, to the nearest; one at least."""
    return max(1, math.floor(share * count + 0.5))


def topk(delta: Vector, share: float, cover: Cover, place: Place) -> Chosen:
    """The largest magnitudes; of equal ones the lower coordinate."""
    numbers, count = arithmetic(), count_of(share, len(delta))
    if count >= len(delta):
        return Chosen(mask=cover.mask)
    at = numbers.largest(delta, count)
    return Chosen(at, numbers.uint32(cover.coordinates, at), cover.mask)


def randomk(delta: Vector, share: float, cover: Cover, place: Place) -> Chosen:
    """Those of a mask that all devices of a round draw alike: it is what they have trained."""
    mask = shared_mask(place.run, place.round, cover.size, share)
    drawn = Cover(cover.ranges, mask, cover.size)
    return Chosen(arithmetic().found(drawn.coordinates, cover.coordinates), mask=mask)


@lru_cache(maxsize=32)
def shared_mask(run: int, round: int, size: int, share: float) -> Mask:
    """That of a round: the first positions of the `rng.shuffle` whose key is the block 0 of the
    stream (run, round, 0, SUBSET)."""
    key = rng.block(run, round, 0, rng.Purpose.SUBSET, 0)
    places = drawn_places(key, size, count_of(share, size))
    layout = Layout.of([Parameter("", (size,))])
    return Mask(size, Mask.keeping(layout, {"": places}).bits)


_CHOOSERS: Mapping[str, Callable[[Vector, float, Cover, Place], Chosen]] = {
    "topk": topk,
    "randomk": randomk,
}


def chosen(step: Transform | None, delta: Vector, cover: Cover, place: Place) -> Chosen:
    """What a step of this family sends; without one everything."""
    if step is None:
        return Chosen(mask=cover.mask)
    return _CHOOSERS[step.name](delta, step.figure, cover, place)
