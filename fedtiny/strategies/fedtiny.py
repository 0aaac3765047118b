"""FedTiny: adaptive batch-normalisation selection, then progressive pruning.

H. Huang et al., "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS
2023. Before it trains, the fleet chooses among candidate masks of one budget. In a first round
each device sends the statistics of every candidate's normalisations on its own data, in a second
one the loss of each candidate with the pooled statistics; the least mean loss wins. Then, every
few rounds, layers exchange weights: it grows the dead coordinates with the largest gradients
of the fleet, and prunes as many of its smallest weights.

What differs: the least loss wins only with a lead over the ERK mask (`LEAD`). Candidates travel as
seeds: in these two rounds a device is sent all weights of the model, from which it takes its own.
Variances are pooled from second moments, where the published code averages them. They are
pooled over all classes of devices, though a candidate has another density in each. Devices send
(place, gradient) of their largest only, where the code sends dense gradients. A growth is a round
of its own, at the model that the fleet has. And a weight that was just grown is never pruned at
once. A net without tracked normalisations selects by the loss alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from fedtiny import pruning
from fedtiny.errors import StrategyError
from fedtiny.fold import Total
from fedtiny.layout import Layout
from fedtiny.strategies.base import FleetFacts, Observed, Round, require
from fedtiny.strategies.pruned import Adjusting, alive, largest_of, part
from fedtiny.values import CALIBRATE, SCORE, Instruction

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Bools, Float32, Float64

LEAD = 0.05
"""By what share of its loss the first candidate must be beaten. At low densities all candidates
begin near chance, and the least of such losses says nothing."""

SELECTIONS = ("auto", "bn", "loss")


@dataclass(frozen=True, kw_only=True)
class FedTiny(Adjusting):
    """Progressive pruning of the best of ``candidates`` masks (0 or 1: of the ERK mask).

    ``selection`` "bn" judges candidates with pooled statistics, "loss" as they are, and "auto" as
    the model allows.
    """

    candidates: int = 5
    selection: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "candidates", self.candidates >= 0, "0 (no selection) or a number")
        require(self, "selection", self.selection in SELECTIONS, f"one of {', '.join(SELECTIONS)}")

    def fitted(self, fleet: FleetFacts) -> Self:
        """The same for these Programs; selection by statistics needs some."""
        if self.selection == "bn" and self.candidates > 1 and not fleet.tracked:
            raise StrategyError(
                f"FedTiny: selection = 'bn' with {self.candidates} candidates, but the model has "
                "no normalisation that tracks its statistics; add batch normalisation, or set "
                "selection = 'loss'"
            )
        return super().fitted(fleet)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The candidates."""
        return tuple(range(self.candidates))

    def counts(self, density: float, state: State) -> Mapping[str, int]:
        """Those of the chosen candidate; before the choice, of the first."""
        layout, prunable = self.facts.layout, self.facts.prunable
        return pruning.candidate_counts(layout, prunable, density, int(state.get("chosen", 0)))

    def start(self, layout: Layout, model: Float32) -> State:
        """The first masks; every candidate must have weights in each layer of each class."""
        for density in self.facts.densities:
            for seed in self.seeds:
                self.counts(density, {"chosen": seed})
        return super().start(layout, model)

    @property
    def first_counts(self) -> tuple[Mapping[str, int], ...]:
        """The counts of every candidate."""
        densest = self.facts.densities[-1]
        return tuple(self.counts(densest, {"chosen": seed}) for seed in self.seeds or (0,))

    def scheduled(self, round: Round, state: State) -> dict[str, int]:
        """Nothing is exchanged before a candidate is chosen."""
        return {} if self._selects(state) else super().scheduled(round, state)

    def _selects(self, state: State) -> bool:
        return self.candidates > 1 and "chosen" not in state

    # ---- selection

    def ask(self, round: Round, state: State) -> Instruction:
        """Calibrate the candidates, score them, then train and adjust."""
        if not self._selects(state):
            return super().ask(round, state)
        pooled = state.get("statistics")
        if pooled is not None:
            rows = np.asarray(pooled, np.float32).tobytes()
            return Instruction(kind=SCORE, candidates=self.seeds, statistics=rows)
        by_statistics = self.selection != "loss" and self.facts.tracked
        return Instruction(kind=CALIBRATE if by_statistics else SCORE, candidates=self.seeds)

    def observe(
        self, round: Round, model: Float32, seen: Observed, state: State
    ) -> tuple[Float32, State]:
        """Keep the pooled statistics; then choose the candidate of the least mean loss."""
        if seen.total is not None:
            return model, {**state, "statistics": seen.total.mean()}
        # Every candidate saw the same samples: the least sum is the least mean.
        losses = np.array([seen.measures[f"loss_sum.{seed}"] for seed in self.seeds])
        best = int(np.argmin(losses))
        chosen = best if losses[best] < (1.0 - LEAD) * losses[0] else 0
        return self._begun(chosen, round, model, state)

    def _begun(
        self, chosen: int, round: Round, model: Float32, state: State
    ) -> tuple[Float32, State]:
        """The chosen candidate as the model: its mask, its weights, its pooled statistics."""
        after = {**state, "chosen": float(chosen)}
        pooled = after.pop("statistics", None)
        if pooled is not None:
            rows = np.asarray(pooled).reshape(self.candidates, -1)
            model = self._with_statistics(model, rows[chosen])
        counts = self.counts(self.facts.densities[-1], after)
        pool = pruning.largest(model, self.facts.layout, counts)
        model = alive(model, pool.bools)
        return model, self.masked(pool, model, after, round.t)

    def _with_statistics(self, model: Float32, row: Float64) -> Float32:
        """The model with these first and second moments as its running means and variances."""
        model, tracked, at = model.copy(), self.facts.tracked, 0
        for mean, var in zip(tracked[::2], tracked[1::2], strict=True):
            mean_at, var_at = part(self.facts.layout[mean]), part(self.facts.layout[var])
            size = mean_at.stop - mean_at.start
            means, squares = row[at : at + size], row[at + size : at + 2 * size]
            model[mean_at], model[var_at] = means, np.maximum(squares - means * means, 0.0)
            at += 2 * size
        return model

    # ---- progressive pruning

    def adjusted(
        self,
        round: Round,
        model: Float32,
        total: Total,
        state: State,
        scheduled: Mapping[str, int],
    ) -> tuple[Float32, Bools, State]:
        """Grow where the mean gradient is largest, and prune as many of the smallest weights."""
        gradients, sizes = np.abs(total.mean()), np.abs(model)
        live = self.pool(state).bools.copy()
        for name, count in scheduled.items():
            own = part(self.facts.layout[name])
            before, gradient = live[own], np.where(live[own], 0.0, gradients[own])
            grown = pruning.top(gradient, count) & (gradient > 0)
            kept = int(np.count_nonzero(before) - np.count_nonzero(grown))
            live[own] = largest_of(before, sizes[own], kept) | grown
        return model, live, state
