"""Norm bounding: no device moves the model further than any other may.

Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can You Really Backdoor Federated Learning?",
NeurIPS 2019 workshop on federated learning for data privacy and confidentiality, section 3
("norm thresholding of updates"):

    x = x + 1/|S| sum over k in S of  Delta_k / max(1, |Delta_k| / M)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.strategies.base import require
from fedtiny.strategies.robust import Robust, mean

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@dataclass(frozen=True, kw_only=True)
class NormBound(Robust):
    """FedAvg of deltas that are shortened to the norm ``bound`` (the paper's M)."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        Robust.__post_init__(self)
        require(self, "bound", self.bound > 0, "a norm above 0")

    def aggregate(self, rows: Float64) -> Float64:
        """The mean of the shortened deltas."""
        norm = np.sqrt(np.nansum(rows * rows, axis=1))
        shortened = rows / np.maximum(1.0, norm / self.bound)[:, None]
        return mean(shortened, np.ones(len(rows)))
