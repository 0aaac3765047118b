"""RFA: the geometric median, the point with the smallest sum of distances to all deltas.

K. Pillutla, S. M. Kakade, Z. Harchaoui, "Robust Aggregation for Federated Learning", IEEE
Transactions on Signal Processing 70, 2022, algorithm 2 (the smoothed Weiszfeld algorithm), with
equal weights. From v = the mean:

    beta_k = 1 / max(nu, |v - Delta_k|)
    v      = sum of beta_k Delta_k / sum of beta_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.strategies.robust import Robust, distances, mean

if TYPE_CHECKING:
    from fedtiny.tensors import Float64

NU = 1e-6
"""The paper's smoothing: two points that are closer count as if they were so far apart."""
PASSES, TOLERANCE = 1000, 1e-6
"""It ends when a pass moves v by less than so much of the median distance, or after so many."""


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Robust):
    """FedAvg with the geometric median of the deltas for their mean."""

    def aggregate(self, rows: Float64) -> Float64:
        """The geometric median."""
        v = mean(rows, np.ones(len(rows)))
        for _ in range(PASSES):
            away = distances(rows, v)
            before, v = v, mean(rows, 1.0 / np.maximum(NU, away))
            if np.abs(v - before).max(initial=0.0) <= TOLERANCE * np.median(away):
                break
        return v
