"""Few-shot tasks on scikit-learn's handwritten digits.

The last ``held_out`` of the ``devices`` never train; what they are judged on, training never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny import draws
from fedtiny.data.labelled import NO_CLIENT, TRAINING, Labelled
from fedtiny.data.tables import RowTable, Tabled, even_starts
from fedtiny.errors import DataError, ExperimentError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Int64, UInt32

DIGIT_CLASSES, DIGIT_PIXELS = 10, 64
_ORDER_WORDS = 12  # those that order the classes, in whole blocks of four


@cache
def digits() -> Labelled:
    """1,797 images of 8 x 8 pixels in [0, 1] and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; "
            "pip install 'fedtiny[simulate]'"
        ) from error
    x, label = load_digits(return_X_y=True)
    n, names = len(label), tuple(map(str, range(DIGIT_CLASSES)))
    pixels = np.ascontiguousarray(x / 16.0, np.float32)
    nobody, training = np.full(n, NO_CLIENT, np.int32), np.full(n, TRAINING, np.uint8)
    return Labelled(pixels, label.astype(np.int32), nobody, training, names)


def _ordered(words: UInt32, allowed: Bools) -> Int64:
    """For each line of words the columns in a drawn order, those allowed first."""
    last = (~allowed).astype(np.uint64) << np.uint64(32)
    order: Int64 = np.argsort(words + last, axis=1, kind="stable")
    return order


class _Pool(NamedTuple):
    """The samples that one kind of device draws from: ``size[c]`` from ``start[c]`` on."""

    start: Int64
    size: Int64
    classes: Bools


@dataclass(frozen=True, slots=True)
class FewShotDigits(Tabled):
    """Few-shot classification: in each round each device meets a new episode.

    An episode is ``ways`` classes in a private order (which numbers its labels), with ``shots``
    support and ``queries`` query samples of each, all different. The classes come from the
    device's own ``pool`` of classes. If there are held-out devices, they draw from the share
    ``held_out_samples`` of each class, which training devices never see, and with
    ``held_out_classes`` from that many classes that training devices never see either.
    """

    devices: int
    held_out: int = 0
    ways: int = 5
    shots: int = 5
    queries: int = 10
    pool: int = DIGIT_CLASSES
    held_out_samples: float = 0.25
    held_out_classes: int = 0

    features = DIGIT_PIXELS

    @property
    def outputs(self) -> int:
        """One logit a way."""
        return self.ways

    @property
    def classes(self) -> int:
        """Labels are positions in the episode."""
        return self.ways

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out_samples < 1.0:
            raise ExperimentError(
                f"held_out_samples = {self.held_out_samples} must lie between 0 and 1"
            )
        least = min(self.ways, self.shots, self.queries, self.pool - self.ways + 1)
        if least < 1 or not 0 <= self.held_out_classes < DIGIT_CLASSES:
            raise ExperimentError(
                f"ways = {self.ways}, shots = {self.shots}, queries = {self.queries}, "
                f"pool = {self.pool}, held_out_classes = {self.held_out_classes}: each must be 1 "
                f"or more (held_out_classes 0 to {DIGIT_CLASSES - 1}), and ways at most pool"
            )
        for name, pool in zip(("training", "held-out"), _pools(self, 0), strict=True):
            if name == "training" or self.held_out:
                self._check_pool(name, int(pool.classes.sum()), int(pool.size[pool.classes].min()))

    def _check_pool(self, name: str, classes: int, samples: int) -> None:
        if self.ways > classes:
            raise ExperimentError(
                f"{self.ways} ways of {classes} classes for {name} devices; lower ways"
                + (" or held_out_classes" if self.held_out_classes else "")
            )
        if self.shots + self.queries > samples:
            raise DataError(
                f"{self.shots} shots and {self.queries} queries need "
                f"{self.shots + self.queries} samples of a class; {name} devices have {samples}: "
                "lower shots or queries, or change held_out_samples"
            )

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        of_one = np.array([self.ways * self.shots, self.ways * self.queries])
        return np.tile(of_one, (len(devices), 1))

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The episodes of a cohort; samples take turns by class, as in a stream."""
        device = np.asarray(devices)
        pools = _pools(self, run)
        kind = (device >= self.devices - self.held_out).astype(np.int64)
        of_device = draws.words(run, 0, device, Purpose.TASK, DIGIT_CLASSES)
        allowed = np.stack([pool.classes for pool in pools])[kind]
        own = np.zeros_like(allowed)
        np.put_along_axis(own, _ordered(of_device, allowed)[:, : self.pool], True, axis=1)
        words = draws.words(run, round, device, Purpose.EPISODE, _ORDER_WORDS + 4 * self.ways)
        chosen = _ordered(words[:, :DIGIT_CLASSES], own & allowed)[:, : self.ways]
        keys = words[:, _ORDER_WORDS:].reshape(len(device), 1, self.ways, 4)
        line = kind[:, None], chosen
        start = np.stack([pool.start for pool in pools])[line][:, None]
        size = np.stack([pool.size for pool in pools])[line][:, None]
        draw = np.arange(self.shots + self.queries)[None, :, None]
        rows = digits().rows_by_class(run)[start + draws.shuffle(draw, size, keys)]
        labels = np.broadcast_to(np.arange(self.ways, dtype=np.int32), rows.shape)
        starts = even_starts(len(device), self.ways * self.shots, self.ways * self.queries)
        return RowTable(digits().x, None, labels.ravel(), rows.ravel(), starts)

    native = table


@lru_cache(maxsize=8)
def _pools(task: FewShotDigits, run: int) -> tuple[_Pool, _Pool]:
    """Of training devices, and of held-out ones; sizes do not depend on the run."""
    counts = digits().counts(TRAINING)
    start = np.cumsum(counts) - counts
    share = task.held_out_samples if task.held_out else 0.0
    kept = (counts * (1.0 - share)).astype(np.int64)
    held = np.zeros(DIGIT_CLASSES, bool)
    order = np.argsort(draws.words(run, 2, np.arange(DIGIT_CLASSES), Purpose.SPLIT, 1)[:, 0])
    held[order[: task.held_out_classes]] = True
    return (
        _Pool(start, kept, ~held),
        _Pool(start + kept, counts - kept, held if held.any() else ~held),
    )
