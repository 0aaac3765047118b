"""Labelled samples in columns, whatever data set they come from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.errors import DataError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Float32, Int32, Int64, UInt32

TRAINING, TEST = 0, 1
NO_CLIENT = -1


class Dealing(IntEnum):
    """What a stream of `Purpose.SPLIT` decides; it stands where other streams have the round."""

    SHARES = 0
    ROWS = 1
    HELD_OUT_CLASSES = 2
    SHARDS = 3
    SIZES = 4
    MIXING = 5
    CLIENTS = 6
    PUBLIC = 7


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A data set in memory; equal only to itself.

    Attributes:
        x: float32 [n, features].
        label: int32 [n], in [0, classes).
        client: int32 [n], whose sample it is; NO_CLIENT where nobody is known.
        split: uint8 [n], TRAINING or TEST.
        class_names: One a class.
        superclass: int32 [classes], such as the alphabet of a character; None: there are none.
        overlapping: A client's rows are in the order of time, and neighbours share raw samples.
    """

    x: Float32
    label: Int32
    client: Int32
    split: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    superclass: Int32 | None = None
    overlapping: bool = False

    def __post_init__(self) -> None:
        n = len(self.x)
        for name, shape in (("label", (n,)), ("client", (n,)), ("split", (n,))):
            if getattr(self, name).shape != shape:
                raise DataError(f"{name} has shape {getattr(self, name).shape}; x has {n} rows")
        if self.x.ndim != 2 or not self.x.size:
            raise DataError(f"x has shape {self.x.shape}; it must be (samples, features)")
        if not np.isfinite(self.x).all():
            raise DataError(f"{np.count_nonzero(~np.isfinite(self.x))} values of x are not finite")
        _check_range("label", self.label, 0, self.classes - 1)
        _check_range("client", self.client, NO_CLIENT, n - 1)
        _check_range("split", self.split, TRAINING, TEST)
        if self.superclass is not None and self.superclass.shape != (self.classes,):
            raise DataError(f"{self.classes} classes have superclasses {self.superclass.shape}")
        self.x.flags.writeable = False

    @property
    def features(self) -> int:
        """Floats of one sample."""
        return int(self.x.shape[1])

    @property
    def classes(self) -> int:
        """How many classes have a name."""
        return len(self.class_names)

    @property
    def has_test(self) -> bool:
        """Whether some samples are kept for the test."""
        return bool(self.split.any())

    def counts(self, split: int) -> Int64:
        """Samples of each class: [classes]."""
        return np.bincount(self.label[self.split == split], minlength=self.classes)

    def rows_by_class(self, run: int) -> UInt32:
        """All rows, class by class, training before test, else in an order of this run's own."""
        return _rows_by_class(self, run)


def _check_range(name: str, column: npt.NDArray[np.integer], low: int, high: int) -> None:
    least, most = int(column.min()), int(column.max())
    if least < low or most > high:
        raise DataError(f"{name} is {least} to {most}; it must lie in [{low}, {high}]")


@lru_cache(maxsize=8)
def _rows_by_class(data: Labelled, run: int) -> UInt32:
    rows = np.arange(len(data.label))
    word = draws.words(run, Dealing.ROWS, rows, Purpose.SPLIT, 1)[:, 0]
    return np.lexsort((word, data.split, data.label)).astype(np.uint32)
