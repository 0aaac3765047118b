"""What a visit costs a device: seconds and joules, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedtiny.registry.profiles import BoardProfile

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@dataclass(frozen=True, slots=True)
class BoardColumns:
    """The figures of `BoardProfile` that cost something, one row a board (or a device)."""

    macs_per_s: Float64
    downlink_bps: Float64
    uplink_bps: Float64
    latency_s: Float64
    active_w: Float64
    idle_w: Float64
    radio_w: Float64

    @classmethod
    def of(cls, boards: Sequence[BoardProfile]) -> BoardColumns:
        """One row a board, in their order."""
        return cls(*(np.array([getattr(b, f.name) for b in boards], float) for f in fields(cls)))

    def take(self, rows: npt.NDArray[np.integer]) -> BoardColumns:
        """One row for each entry of ``rows``: from boards to devices."""
        return BoardColumns(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class VisitCost:
    """Where the time of each visit goes, and its energy."""

    download_s: Float64
    wait_s: Float64
    compute_s: Float64
    upload_s: Float64
    joules: Float64

    @property
    def seconds(self) -> Float64:
        """From the lease to the delivered update; the four parts follow each other."""
        return self.download_s + self.wait_s + self.compute_s + self.upload_s


def visit_cost(
    boards: BoardColumns,
    *,
    macs: npt.ArrayLike,
    download_bytes: npt.ArrayLike,
    upload_bytes: npt.ArrayLike,
    samples: npt.ArrayLike = 0,
    sample_period_s: npt.ArrayLike = 0.0,
) -> VisitCost:
    """The cost of one visit a row; every argument is one figure or one a row.

    ``samples`` are those that the device waits for, one each ``sample_period_s``. Waiting and
    computing are added, not overlapped, which bounds the true time from above.
    Energy = active_w x compute + radio_w x both transfers + idle_w x wait.
    """
    download_s = _transfer_s(download_bytes, boards.downlink_bps, boards.latency_s)
    upload_s = _transfer_s(upload_bytes, boards.uplink_bps, boards.latency_s)
    compute_s: Float64 = np.asarray(macs, float) / boards.macs_per_s
    wait_s = np.asarray(samples, float) * np.asarray(sample_period_s, float) + 0 * compute_s
    link_j = boards.radio_w * (download_s + upload_s)
    joules = boards.active_w * compute_s + link_j + boards.idle_w * wait_s
    return VisitCost(download_s, wait_s, compute_s, upload_s, joules)


def _transfer_s(nbytes: npt.ArrayLike, bps: Float64, latency_s: Float64) -> Float64:
    """Nothing to carry costs nothing, not even the latency."""
    nbytes = np.asarray(nbytes, float)
    return np.where(nbytes > 0, latency_s + 8 * nbytes / bps, 0.0)
