"""FedAvg: the weighted mean of what the devices have trained.

H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1: ``x = sum_k (n_k / n) x_k``, with n_k the samples of device k.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.strategies.base import Averaging


@dataclass(frozen=True, kw_only=True)
class FedAvg(Averaging):
    """Local gradient descent, then the mean model, weighted by samples."""
