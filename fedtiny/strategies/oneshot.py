"""One-shot magnitude pruning: the baseline whose mask is made once and never moves.

S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015:
the weights of the smallest magnitude go. Here that is done once, to the model before the first
round, with layer densities by Erdos-Renyi-Kernel; then FedAvg trains what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.strategies.pruned import Pruned


@dataclass(frozen=True, kw_only=True)
class OneShot(Pruned):
    """FedAvg of the largest weights of the initial model."""
