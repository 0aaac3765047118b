"""Krum and Multi-Krum: whom to believe is who has enough others close by.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent", NeurIPS 2017, section 4, applied to model deltas. Of n devices
f may be Byzantine, 2 f + 2 < n; i -> j are the n - f - 2 devices that are closest to i:

    s(i) = sum over i -> j of  |Delta_i - Delta_j|^2

Krum takes the Delta with the smallest score, Multi-Krum (section 6) the mean of the m smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.strategies.base import require
from fedtiny.strategies.robust import Robust, distances, mean

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float64, Int64


@dataclass(frozen=True, kw_only=True)
class Krum(Robust):
    """The one delta with the smallest score; suspects are among those with the largest.

    Attributes:
        byzantine: The most devices of a cohort that may lie (the paper's f).
    """

    byzantine: int = 1

    def __post_init__(self) -> None:
        Robust.__post_init__(self)
        most = (self.cohort - 3) // 2
        require(
            self, "byzantine", 0 <= self.byzantine <= most,
            f"0 or more, and at most (cohort - 3) / 2 = {most}; take a cohort of "
            f"{2 * self.byzantine + 3} or more",
        )  # fmt: skip

    def taken(self, count: int) -> int:
        """How many of so many deltas are averaged."""
        return 1

    def aggregate(self, rows: Float64) -> Float64:
        """The mean of the deltas with the smallest scores."""
        best = self._ranked(rows)[: self.taken(len(rows))]
        return mean(rows[best], np.ones(len(best)))

    def suspects(self, rows: Float64, aggregate: Float64) -> Bools:
        """Of those that lie far away, the ones with the largest scores."""
        worst = self._ranked(rows)[max(0, len(rows) - self.byzantine) :]
        return super().suspects(rows, aggregate) & np.isin(np.arange(len(rows)), worst)

    def _ranked(self, rows: Float64) -> Int64:
        """The rows by their scores, the smallest first."""
        closest = max(1, len(rows) - self.byzantine - 2)
        scores = [
            np.sum(np.sort(np.delete(distances(rows, row), at) ** 2)[:closest])
            for at, row in enumerate(rows)
        ]
        return np.argsort(scores, kind="stable")


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Krum):
    """The mean of the deltas with the smallest scores.

    Attributes:
        kept: How many (the paper's m); 0: all but ``byzantine``.
    """

    kept: int = 0

    def __post_init__(self) -> None:
        Krum.__post_init__(self)
        most = self.cohort - self.byzantine
        require(self, "kept", 0 <= self.kept <= most, f"0 or up to cohort - byzantine = {most}")

    def taken(self, count: int) -> int:
        """How many of so many deltas are averaged."""
        return self.kept or max(1, count - self.byzantine)
