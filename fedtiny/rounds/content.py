"""What a round is made of, where `machine` sees leases alone: the same real and simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import UpdateError
from fedtiny.fold import FoldRule, Total, covered, delta_of
from fedtiny.layout import Layout, length
from fedtiny.masks import remembered
from fedtiny.rounds import calibration
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import calls
from fedtiny.strategies.base import Observed, Round, Strategy
from fedtiny.tensors import FLOAT_BYTES, raw
from fedtiny.values import TRAIN, Instruction, Update

if TYPE_CHECKING:
    from fedtiny.layout import Coverage
    from fedtiny.masks import Mask
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32, Float64, Int64

Gate = Callable[["Float32", "Float32"], Mapping[str, float | None] | None]
"""Given the model before a round and the one after it: why that is held back; None if it is not."""

Part = Total | tuple[Update, ...] | None
"""What some updates add to a round: for ``needs = "all"`` themselves; None if it only measures."""

_NO_BASES: Mapping[int, Float32] = {}

STATISTICS_BOUND = 2.0**20
"""The largest mean, mean square or sum of features that can be pooled."""


@dataclass(frozen=True, eq=False)
class Conclusion:
    """What a round has come to.

    ``contribution`` made the model from the one before; empty: it is a model of its own; None: it
    is the one before. ``gated`` says why a gate has held its model back, if it has.
    """

    contribution: Contribution | None
    model: Float32
    state: State
    gated: Mapping[str, float | None] | None = None

    @property
    def changed(self) -> bool:
        """Whether there is a new model."""
        return self.contribution is not None


@dataclass(frozen=True, eq=False)
class OpenRound:
    """A round of a strategy that has begun with this model, of this ``version``, and this state.

    ``bases`` are models of other versions that its updates may start from.
    """

    strategy: Strategy
    round: Round
    layout: Layout
    instruction: Instruction
    model: Float32
    state: State
    version: int = 0
    bases: Mapping[int, Float32] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        strategy: Strategy,
        round: Round,
        layout: Layout,
        model: Float32,
        state: State,
        version: int = 0,
        bases: Mapping[int, Float32] = _NO_BASES,
    ) -> OpenRound:
        """The round as the strategy asks for it, or one that calibrates the model for it."""
        if due := calibration.due(layout, model, strategy, round):
            masks = calls.masks(strategy, round, state, layout)
            asked = calibration.instruction(strategy, due, masks)
        else:
            asked = calls.ask(strategy, round, state, layout)
        return cls(strategy, round, layout, asked, model, state, version, bases)

    @property
    def trains(self) -> bool:
        """Whether its updates make a model."""
        return self.instruction.kind == TRAIN

    @cached_property
    def barred(self) -> Int64:
        """The devices that it must not ask."""
        return calls.barred(self.strategy, self.round, self.state)

    @property
    def pools(self) -> bool:
        """Whether its updates are statistics or sums, to be added up as they are."""
        return self.instruction.pools or self.instruction.sums is not None

    @property
    def sends_deltas(self) -> bool:
        """Whether its updates are differences already."""
        asked = self.instruction
        return asked.sends_gradient or self.pools or bool(asked.transforms)

    @property
    def base(self) -> Float32 | None:
        """What an update that starts from its model is the difference to, if it is not one."""
        return self._base_of(self.version)

    def _base_of(self, version: int) -> Float32 | None:
        return None if self.sends_deltas else self.bases.get(version, self.model)

    def late(self, version: int) -> OpenRound:
        """The same round for those of its updates that come when the model has that version."""
        return replace(self, version=version, bases={self.version: self.model})

    def mask(self, density: float) -> Mask | None:
        """That of devices whose Program has this density; None if it is dense."""
        blob = self.instruction.of(density).mask
        return None if blob is None else remembered(blob, self.layout)

    @cached_property
    def rule(self) -> FoldRule:
        """The fixed point in which its updates are added up."""
        rule = calls.fold_rule(self.strategy, self.round)
        if not self.pools:
            return rule
        cap = rule.weight_cap if self.instruction.pools else 1.0
        return FoldRule.for_round(rule.cohort, cap, default_bound=STATISTICS_BOUND)

    @property
    def size(self) -> int:
        """Coordinates of what its updates are about."""
        return self.instruction.floats(self.layout)

    @property
    def nothing(self) -> Part:
        """The part to begin with."""
        if not self.trains and not self.pools:
            return None
        if self.trains and self.strategy.needs == "all":
            return ()
        return Total.zero(self.size, self.rule)

    def weights(self, samples: Float64, version: int) -> Float64:
        """What updates of so many samples count for that start from the model of a version; sums
        are added up as they are."""
        if self.instruction.sums is not None:
            return np.ones_like(samples)
        late = np.full_like(samples, self.version - version) if version != self.version else None
        return calls.weight(self.strategy, self.round, samples, late)

    def add(self, part: Part, update: Update) -> Part:
        """The part and one more update; raises UpdateError if its content is not admissible."""
        if part is None:
            if update.nbytes:
                raise UpdateError(f"{update.nbytes:,} bytes of values in a round that measures")
            return None
        if update.samples < 1:
            raise UpdateError(f"{update.samples:,} samples; an update is made of at least one")
        if self.instruction.asks_ranges and not update.ranges:
            return part  # its Program observes none
        if isinstance(part, Total):
            weight = self.weights(np.array([update.samples], np.float64), update.version)
            return part.add(update, self._base_of(update.version), float(weight[0]))
        self.rule.check(delta_of(update, self._base_of(update.version), self.size))
        moves = self.instruction.transforms and not self.instruction.sends_gradient
        return (*part, _arrived(update, self.model) if moves else update)

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
        """What can be added at once, as it covers and starts from the same; and the places of the
        others."""
        alike: dict[tuple[Coverage, int], list[int]] = {}
        left: list[int] = []
        for at, update in enumerate(updates):
            good = update.samples > 0 and _is_whole(update)
            key = update.coverage, update.version
            (alike.setdefault(key, []) if good else left).append(at)
        for (_, version), places in alike.items():
            samples = np.array([updates[at].samples for at in places], np.float64)
            weights, base = self.weights(samples, version), self._base_of(version)
            try:
                total, taken = total.add_all([updates[at] for at in places], base, weights)
            except UpdateError:  # coordinates that no model has: each is told by itself
                left += places
            else:
                left += [at for at, good in zip(places, taken, strict=True) if not good]
        return total, left

    def conclude(
        self, parts: Sequence[Part], measures: Measures, failed: bool, gate: Gate | None = None
    ) -> Conclusion:
        """Make the next model and state of what was accepted and measured.

        None if it failed, or the ``gate`` holds the model back.
        """
        if failed:
            return Conclusion(None, self.model, self.state)
        done = self._finish(parts) if self.trains else self._observe(parts, measures)
        gated = gate(self.model, done.model) if gate and done.changed else None
        return Conclusion(None, self.model, self.state, gated) if gated else done

    def _finish(self, parts: Sequence[Part]) -> Conclusion:
        contribution = _contribution(parts)
        model, state = calls.finish(self.strategy, self.round, self.model, contribution, self.state)
        return Conclusion(contribution, model, state)

    def _observe(self, parts: Sequence[Part], measures: Measures) -> Conclusion:
        totals = [part for part in parts if isinstance(part, Total)]
        total, state = reduce(Total.merge, totals) if totals else None, self.state
        if self.instruction.asks_ranges:
            model = calibration.calibrated(self.layout, self.model, total, self.round)
        else:
            seen = Observed(total, measures.values())
            model, state = calls.observe(self.strategy, self.round, self.model, seen, state)
        return Conclusion(None if model is self.model else (), model, state)


def _is_whole(update: Update) -> bool:
    """Whether it has a value for each coordinate that it covers."""
    if update.places is not None:
        return False
    count = length(update.ranges) if update.mask is None else update.mask.length(update.ranges)
    return update.nbytes == FLOAT_BYTES * count


def _arrived(update: Update, start: Float32) -> Update:
    """An update of values for one of deltas: what a strategy that gets every update expects."""
    at = covered(update.coverage)
    if update.places is not None:
        at = np.frombuffer(update.places, np.uint32).astype(np.int64)
    values = start[at] + np.frombuffer(raw(update.values), np.float32)
    return replace(update, values=values.tobytes(), quantised=None)


def _contribution(parts: Sequence[Part]) -> Contribution:
    """What `Strategy.finish` gets: the Total, or the updates in the order of their devices."""
    totals = [part for part in parts if isinstance(part, Total)]
    if totals:
        return reduce(Total.merge, totals)
    updates = [update for part in parts if isinstance(part, tuple) for update in part]
    return sorted(updates, key=lambda update: update.device)
