"""The columns in which a cohort's samples travel, and what the simulator asks of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedtiny.values import QUERY, SUPPORT

if TYPE_CHECKING:
    from fedtiny.data.tasks import SineTask
    from fedtiny.tensors import Float32, Int32, Int64, UInt32

    Samples = tuple[Float32, Float32 | Int32]

PARTS = (SUPPORT, QUERY)


class Sampler(Protocol):
    """The least that a task of your own must have; `task_of` makes a Task of it.

    ``classes`` is None for a regression, whose targets are float32 [n, outputs]; else targets are
    int32 [n] in [0, classes). ``samples`` may return no samples, x of shape [0, features].
    """

    @property
    def features(self) -> int: ...  # noqa: D102
    @property
    def outputs(self) -> int: ...  # noqa: D102
    @property
    def classes(self) -> int | None: ...  # noqa: D102

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        """One part of one device's samples in one round: x float32 [n, features], targets."""


class Task(Sampler, Protocol):
    """What the simulator asks of the data."""

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort, in its order."""

    def native(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable | SineTask:
        """The same for the C runtime, which makes those of a SineTask itself."""


@dataclass(frozen=True, slots=True, eq=False)
class RowTable:
    """Samples of a cohort: positions ``starts[2v + p]`` to ``starts[2v + p + 1]`` of ``rows`` (and
    of ``labels``) are part p of visit v, and name rows of ``x`` (and of ``y``)."""

    x: Float32
    y: Float32 | None
    labels: Int32 | None
    rows: UInt32
    starts: UInt32

    def samples(self, visit: int, part: str) -> Samples:
        """One part of one visit."""
        at = 2 * visit + PARTS.index(part)
        place = slice(self.starts[at], self.starts[at + 1])
        rows = self.rows[place]
        if self.labels is not None:
            return self.x[rows], self.labels[place]
        assert self.y is not None
        return self.x[rows], self.y[rows]

    @classmethod
    def from_samples(cls, parts: Iterable[Samples], classes: int | None) -> RowTable:
        """The table of samples that lie apart: support and query of each visit in turn."""
        xs, targets = zip(*parts, strict=True)
        x = np.concatenate(xs)
        starts = np.cumsum([0, *map(len, xs)]).astype(np.uint32)
        rows = np.arange(len(x), dtype=np.uint32)
        y = np.concatenate(targets)
        return cls(x, y, None, rows, starts) if classes is None else cls(x, None, y, rows, starts)


class Tabled:
    """What follows from a table."""

    def samples(self: Any, run: int, round: int, device: int, part: str) -> Samples:
        """One part of one device's samples in one round: x float32 [n, features], targets."""
        table: RowTable = self.table(run, round, np.array([device]))
        return table.samples(0, part)


def even_starts(visits: int, support: int, query: int) -> UInt32:
    """`RowTable.starts` of visits with this many samples each."""
    return np.cumsum([0, *[support, query] * visits]).astype(np.uint32)
