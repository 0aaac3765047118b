"""Reptile: learn an initialisation from which a few steps adapt to any task.

A. Nichol, J. Achiam, J. Schulman, "On First-Order Meta-Learning Algorithms", 2018, algorithm 2
(batched): each task i adapts phi to theta_i by k steps of gradient descent, then
``phi = phi + alpha_t / n * sum_i (theta_i - phi)`` with alpha_t falling to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.strategies.base import MetaAveraging


@dataclass(frozen=True, kw_only=True)
class Reptile(MetaAveraging):
    """Batched Reptile with ``steps`` mini-batch steps on a stored support set."""

    cohort: int = 5
    steps: int = 8
