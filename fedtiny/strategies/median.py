"""The coordinate-wise median: a few devices that send nonsense cannot move the model far.

D. Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
2018, definition 1 and algorithm 1 (option I), applied to model deltas:

    Delta_j = median {Delta_k,j : k in S}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.strategies.base import trimmed_mean
from fedtiny.strategies.robust import Robust

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@dataclass(frozen=True, kw_only=True)
class Median(Robust):
    """FedAvg with the median of each coordinate, over those who trained it, for the mean."""

    def aggregate(self, rows: Float64) -> Float64:
        """The median delta."""
        return trimmed_mean(rows, 0.5)
