"""FedNova: devices that take many steps do not drag the model towards their own data.

J. Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020: each device's change is divided by a_i, what its tau_i steps came to,
and the mean direction is taken as far as the steps came to on average,
``x = x + tau_eff sum_i p_i (x_i - x) / a_i`` with ``tau_eff = sum_i p_i a_i`` and p_i the share of
the samples that device i has. Of plain gradient descent a = tau; with momentum rho
``a = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedtiny.fold import Total
from fedtiny.strategies.base import Averaging, Round, deltas

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32, Float64


@dataclass(frozen=True, kw_only=True)
class FedNova(Averaging):
    """FedAvg of normalised changes, each coordinate over those who trained it."""

    needs: ClassVar[Literal["sum", "all"]] = "all"

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """One step of the server's optimiser along the normalised mean."""
        assert not isinstance(contribution, Total)
        updates = list(contribution)
        a = self.accumulated([update.measures["steps"] for update in updates])[:, None]
        n = self.weight(np.array([[update.samples] for update in updates], np.float64))
        rows = deltas(updates, model)
        trained = ~np.isnan(rows)
        weights = np.maximum((n * trained).sum(axis=0), 1.0)
        tau_eff = (n * a * trained).sum(axis=0) / weights
        direction = np.where(trained, n * rows / a, 0.0).sum(axis=0) / weights
        return self.server(round).step(model, tau_eff * direction, state)

    def accumulated(self, steps: list[float]) -> Float64:
        """The a of so many steps: how often the first gradient counts, and the second, ...

        Nobody can check how many they were: what samples may count is the most that they do.
        """
        tau, rho = np.clip(np.array(steps), 1.0, self.weight_cap), self.momentum
        powers = np.array([rho**t for t in tau.tolist()])
        a: Float64 = (tau - rho * (1.0 - powers) / (1.0 - rho)) / (1.0 - rho)
        return a
