"""The coordinate-wise median: a few devices that send nonsense cannot move the model far.

D. Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
2018, definition 1 and algorithm 1 (option I), applied to model deltas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedtiny.fold import Total
from fedtiny.strategies.base import Averaging, Round, deltas, trimmed_mean

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32


@dataclass(frozen=True, kw_only=True)
class Median(Averaging):
    """FedAvg with the median of each coordinate, over those who trained it, for the mean."""

    needs: ClassVar[Literal["sum", "all"]] = "all"

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """One step of the server's optimiser along the median delta."""
        assert not isinstance(contribution, Total)
        median = trimmed_mean(deltas(contribution, model), 0.5)
        return self.server(round).step(model, median, state)
