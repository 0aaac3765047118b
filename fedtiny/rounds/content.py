"""What a round is made of, where `machine` sees leases alone: the same real and simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import UpdateError
from fedtiny.fold import FoldRule, Total, delta_of
from fedtiny.masks import remembered
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import calls
from fedtiny.strategies.base import Observed, Round, Strategy
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.values import TRAIN, Instruction, Layout, Update, length

if TYPE_CHECKING:
    from fedtiny.masks import Mask
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32, Float64
    from fedtiny.values import Coverage

Part = Total | tuple[Update, ...] | None
"""What some updates add to a round: for ``needs = "all"`` themselves; None if it only measures."""

STATISTICS_BOUND = 2.0**20
"""The largest mean, or mean square, of a channel that can be pooled."""


@dataclass(frozen=True, eq=False)
class Conclusion:
    """What a round has come to.

    ``contribution`` made the model from the one before; empty: it is a model of its own; None: it
    is the one before.
    """

    contribution: Contribution | None
    model: Float32
    state: State

    @property
    def changed(self) -> bool:
        """Whether there is a new model."""
        return self.contribution is not None


@dataclass(frozen=True, eq=False)
class OpenRound:
    """A round of a strategy that has begun with this model and this state."""

    strategy: Strategy
    round: Round
    layout: Layout
    instruction: Instruction
    model: Float32
    state: State

    @classmethod
    def of(
        cls, strategy: Strategy, round: Round, layout: Layout, model: Float32, state: State
    ) -> OpenRound:
        """The round as the strategy asks for it."""
        asked = calls.ask(strategy, round, state, layout)
        return cls(strategy, round, layout, asked, model, state)

    @property
    def trains(self) -> bool:
        """Whether its updates make a model."""
        return self.instruction.kind == TRAIN

    @property
    def base(self) -> Float32 | None:
        """What an update is the difference to; a gradient is one already, and statistics are."""
        asked = self.instruction
        return None if asked.sends_gradient or asked.pools else self.model

    def mask(self, density: float) -> Mask | None:
        """That of devices whose Program has this density; None if it is dense."""
        blob = self.instruction.of(density).mask
        return None if blob is None else remembered(blob, self.layout)

    @cached_property
    def rule(self) -> FoldRule:
        """The fixed point in which its updates are added up."""
        rule = calls.fold_rule(self.strategy, self.round)
        if not self.instruction.pools:
            return rule
        return FoldRule.for_round(rule.cohort, rule.weight_cap, default_bound=STATISTICS_BOUND)

    @property
    def size(self) -> int:
        """Coordinates of what its updates are about."""
        return self.instruction.floats(self.layout)

    @property
    def nothing(self) -> Part:
        """The part to begin with."""
        if not self.trains and not self.instruction.pools:
            return None
        if self.strategy.needs == "all":
            return ()
        return Total.zero(self.size, self.rule)

    def weights(self, samples: Float64) -> Float64:
        """What updates of so many samples count for."""
        return calls.weight(self.strategy, self.round, samples)

    def add(self, part: Part, update: Update) -> Part:
        """The part and one more update; raises UpdateError if its content is not admissible."""
        if part is None:
            if update.nbytes:
                raise UpdateError(f"{update.nbytes:,} bytes of values in a round that measures")
            return None
        if update.samples < 1:
            raise UpdateError(f"{update.samples:,} samples; an update is made of at least one")
        if isinstance(part, Total):
            weight = self.weights(np.array([update.samples], np.float64))
            return part.add(update, self.base, float(weight[0]))
        self.rule.check(delta_of(update, self.base, self.size))
        return (*part, update)

    def add_all(self, part: Part, updates: Sequence[Update]) -> tuple[Part, list[str]]:
        """The part and those updates that `add` would take; why each of the others is refused.

        The same as `add` for each, bit for bit; those of a sum are looked at together.
        """
        reasons, alone = [""] * len(updates), list(range(len(updates)))
        if isinstance(part, Total):
            part, alone = self._add_together(part, updates)
        for at in alone:
            try:
                part = self.add(part, updates[at])
            except UpdateError as error:
                reasons[at] = str(error)
        return part, reasons

    def _add_together(self, total: Total, updates: Sequence[Update]) -> tuple[Total, list[int]]:
        """What can be added at once, by what it covers; and the places of the others."""
        alike: dict[Coverage, list[int]] = {}
        left: list[int] = []
        for at, update in enumerate(updates):
            good = update.samples > 0 and _is_whole(update)
            (alike.setdefault(update.coverage, []) if good else left).append(at)
        for places in filter(None, alike.values()):
            samples = np.array([updates[at].samples for at in places], np.float64)
            try:
                total, taken = total.add_all(
                    [updates[at] for at in places], self.base, self.weights(samples)
                )
            except UpdateError:  # coordinates that no model has: each is told by itself
                left += places
            else:
                left += [at for at, good in zip(places, taken, strict=True) if not good]
        return total, left

    def conclude(self, parts: Sequence[Part], measures: Measures, failed: bool) -> Conclusion:
        """Make the next model and state of what was accepted and measured; none if it failed."""
        if failed:
            return Conclusion(None, self.model, self.state)
        if not self.trains:
            return self._observe(parts, measures)
        contribution = _contribution(parts)
        model, state = calls.finish(self.strategy, self.round, self.model, contribution, self.state)
        return Conclusion(contribution, model, state)

    def _observe(self, parts: Sequence[Part], measures: Measures) -> Conclusion:
        totals = [part for part in parts if isinstance(part, Total)]
        seen = Observed(reduce(Total.merge, totals) if totals else None, measures.values())
        model, state = calls.observe(self.strategy, self.round, self.model, seen, self.state)
        return Conclusion(None if model is self.model else (), model, state)


def _is_whole(update: Update) -> bool:
    """Whether it has a value for each coordinate that it covers."""
    if update.places is not None:
        return False
    count = length(update.ranges) if update.mask is None else update.mask.length(update.ranges)
    return update.nbytes == FLOAT_BYTES * count


def _contribution(parts: Sequence[Part]) -> Contribution:
    """What `Strategy.finish` gets: the Total, or the updates in the order of their devices."""
    totals = [part for part in parts if isinstance(part, Total)]
    if totals:
        return reduce(Total.merge, totals)
    updates = [update for part in parts if isinstance(part, tuple) for update in part]
    return sorted(updates, key=lambda update: update.device)
