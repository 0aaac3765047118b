"""Partitions of Hugging Face data sets as the samples of devices, without importing either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedtiny import draws
from fedtiny.data.labelled import Dealing
from fedtiny.errors import DataError
from fedtiny.rng import Purpose
from fedtiny.values import QUERY

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples

_CACHED = 1024  # devices whose columns stay in memory


class Dataset(Protocol):
    """What is asked of a ``datasets.Dataset``."""

    def with_format(self, type: str) -> Any:  # noqa: D102
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """Each device has one partition, such as those that flwr-datasets loads.

    Attributes:
        load: From a device's index to its ``datasets.Dataset``.
        features: Floats of one sample.
        classes: How many labels there are.
        x: The column of the samples; integers of 8 bits, such as pixels, become [0, 1].
        label: The column of the labels.
        query_share: The share of a partition that a device is judged on.
    """

    load: Callable[[int], Dataset]
    features: int
    classes: int
    x: str = "image"
    label: str = "label"
    query_share: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 <= self.query_share < 1.0:
            raise DataError(f"query_share = {self.query_share} must be in [0, 1)")

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return self.classes

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        """The same in every round; which rows are the query is drawn."""
        x, label = _columns(self, device)
        n = len(label)
        key = draws.words(run, Dealing.ROWS, np.array([device]), Purpose.SPLIT, 4)
        rows = draws.shuffle(np.arange(n), n, key)
        support = n - int(n * self.query_share)
        rows = rows[support:] if part == QUERY else rows[:support]
        return x[rows], label[rows]


@lru_cache(maxsize=_CACHED)
def _columns(source: DatasetSource, device: int) -> Samples:
    columns = source.load(device).with_format("numpy")[:]
    for name in (source.x, source.label):
        if name not in columns:
            raise DataError(
                f"the partition of device {device} has no column {name!r}; it has "
                f"{', '.join(columns)}: name the right ones as x and label"
            )
    x, label = np.asarray(columns[source.x]), np.asarray(columns[source.label])
    if not len(label):
        raise DataError(f"the partition of device {device} is empty")
    if x.dtype == object or x.size != len(label) * source.features:
        raise DataError(
            f"column {source.x!r} of device {device} is {x.dtype} {x.shape} for {len(label)} "
            f"labels; features = {source.features} says {len(label)} x {source.features} numbers"
        )
    if label.dtype.kind not in "iu" or not 0 <= label.min() <= label.max() < source.classes:
        raise DataError(
            f"column {source.label!r} of device {device} has {label.dtype} from {label.min()} to "
            f"{label.max()}; classes = {source.classes} says integers from 0 to "
            f"{source.classes - 1}"
        )
    scale = np.float32(255.0 if x.dtype == np.uint8 else 1.0)
    pixels = np.divide(x.reshape(len(label), source.features), scale, dtype=np.float32)
    return pixels, label.astype(np.int32)
