"""The arrays of samples that people give, as a Program takes them, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedtiny.errors import DataError
from fedtiny.tensors import all_finite, floats, has_numpy, ints

if TYPE_CHECKING:
    from fedtiny.engine.program import Program


@dataclass(frozen=True)
class Input:
    """One of the two arrays: how it is called, the shape of one sample, and how it is read.

    An array of that shape is stored in the order of its ``axes``; flat rows are in that order
    already.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[Any], memoryview[Any]]
    remedy: str
    axes: tuple[int, ...] = ()

    @classmethod
    def features(cls, program: Program) -> Input:
        """``x`` of a Program."""
        shape, axes = program.sample_shape, program.axes
        order = " with the channels last" if axes else ""
        remedy = f"give [n, {_told(shape)}], or flat rows of numbers{order}"
        return cls("x", shape, floats, remedy, axes)

    @classmethod
    def labels(cls, program: Program) -> Input:
        """``y`` of a Program: the values that it learns, or a class label for each sample."""
        shape = program.output_shape
        if program.loss != "cross_entropy":
            return cls("y", shape, floats, f"give [n, {_told(shape)}], or flat rows of numbers")
        classes = f"one integer from 0 to {math.prod(shape) - 1} for each sample"
        return cls("y", (), ints, f"give {classes}: argmax(1) of one-hot rows, astype(int)")

    @property
    def width(self) -> int:
        """Values of one sample."""
        return math.prod(self.shape)

    def take(self, values: Any) -> tuple[memoryview[Any], int]:
        """The values, flat, and how many samples they are.

        Raises DataError for a wrong shape, for what are no numbers, and for NaN and infinity.
        """
        try:
            view = self.read(values)
        except DataError as error:
            told, public = (f"{self.name}: {flaw}; {self.remedy}" for flaw in (error, error.public))
            raise DataError(told, public) from None
        given = tuple(getattr(values, "shape", ()))
        count = self._count(view, given)
        if self.read is floats and not all_finite(view):
            raise DataError(self._not_finite(view))
        if self.axes and self.shape in (given, given[1:]):
            view = self._stored(view, count)
        return view, count

    def _stored(self, view: memoryview[float], count: int) -> memoryview[float]:
        """The samples in the order in which the device stores them."""
        if not has_numpy():
            starts = range(0, len(view), self.width)
            return floats([view[start + place] for start in starts for place in self._order])
        import numpy as np

        return floats(np.asarray(view).reshape(count, self.width)[:, self._order])

    @cached_property
    def _order(self) -> list[int]:
        """Of each stored value of a sample, its place in the shape."""
        places = [0]
        for axis in self.axes:
            step = math.prod(self.shape[axis + 1 :])
            places = [place + i * step for place in places for i in range(self.shape[axis])]
        return places

    def _count(self, view: memoryview[Any], given: tuple[int, ...]) -> int:
        """Samples in it, by the shape in which it was given; () is flat."""
        if len(given) < 2:
            if len(view) % self.width:
                shape = f" {self.shape}" if len(self.shape) > 1 else ""
                raise DataError(
                    f"{self.name}: a sample has {self.width} values{shape}; {len(view)} values "
                    f"are no whole number of samples; {self.remedy}"
                )
            return len(view) // self.width
        if given == self.shape:
            return 1
        if given[1:] in (self.shape, (self.width,)):
            return int(given[0])
        raise DataError(
            f"{self.name} has the shape {given}, a sample of it {self.shape}; {self.remedy}"
        )

    def _not_finite(self, view: memoryview[float]) -> str:
        nan = sum(map(math.isnan, view))
        infinite = sum(map(math.isinf, view))
        return (
            f"{self.name}: {nan:,} of {len(view):,} values are NaN and {infinite:,} are infinite; "
            "leave those samples out, or mend them"
        )


def _told(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
