"""The coordinate-wise trimmed mean: of each coordinate the extremes are left out.

D. Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
2018, definition 2 and algorithm 1 (option II), applied to model deltas:

    Delta_j = 1 / ((1 - 2 beta) m)  sum of x in U_j,

where U_j are the Delta_k,j of the m devices without the largest and the smallest beta m of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.strategies.base import require, trimmed_mean
from fedtiny.strategies.robust import Robust

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Robust):
    """FedAvg with the mean of what is left; ``share`` is left out at each end (the paper's beta).

    It is to be no smaller than the share of the cohort that may lie.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        Robust.__post_init__(self)
        require(self, "share", 0 <= self.share < 0.5, "in [0, 0.5)")

    def aggregate(self, rows: Float64) -> Float64:
        """The trimmed mean delta."""
        return trimmed_mean(rows, self.share)
