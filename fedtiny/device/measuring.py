"""Visits that measure: evaluate, calibrate, score, and sums of features. Needs no NumPy."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from fedtiny import pruning
from fedtiny.device.feature_sums import summed
from fedtiny.device.growing import tracked_elements
from fedtiny.device.vectors import copied
from fedtiny.device.visit import Outcome, Samples, Visit, added
from fedtiny.engine.program import Moments
from fedtiny.errors import DataError
from fedtiny.layout import RANGE
from fedtiny.tensors import FLOAT_BYTES, floats
from fedtiny.values import QUERY, RANGES, Phase

if TYPE_CHECKING:
    from fedtiny.engine.program import Program


class Measuring(Visit):
    """A visit that measures and moves nothing, unless it adapts before it is judged."""

    def evaluate(self) -> Outcome:
        """Losses and correct answers on the query, before the phases and after them."""
        self.load()
        query = self.samples_of(QUERY)
        before = self.learner.judge(query)
        added(self.losses(self.instruction.phases))
        after = self.learner.judge(query) if self.instruction.phases else before
        measures = {f"{name}_before": before[name] for name in ("loss_sum", "correct")}
        measures |= {f"{name}_after": after[name] for name in ("loss_sum", "correct")}
        measures["count"] = after["count"]
        return Outcome(samples=self.used(self.instruction.phases)[1], measures=measures)

    def sums(self) -> Outcome:
        """Sums of features over the samples of the part."""
        asked, samples = self.instruction.sums, self.samples_of(self.instruction.part)
        assert asked is not None
        self.load()
        values = summed(self.learner, asked, samples)
        return Outcome(values, ((0, len(values) // FLOAT_BYTES),), samples.count)

    # -- moments --

    def calibrate(self) -> Outcome:
        """Moments of every named tensor; or of each candidate its running statistics."""
        if self.instruction.asks_ranges:
            return self._observe_ranges()
        if self.instruction.pools:
            return self._observe()
        self.load()
        samples = self.samples_of(self.instruction.part)
        moments = [Moments() for _ in self.program.forward_names]
        for x, _, valid in self.learner.batches(samples):
            for total, found in zip(moments, self.executor.calibrate(x, valid), strict=True):
                _add_moments(total, found)
        measures = {
            f"{name}.{what}": float(getattr(m, what))
            for name, m in zip(self.program.forward_names, moments, strict=True)
            for what in ("count", "sum", "sum_squares", "min", "max")
        }
        return Outcome(samples=samples.count, measures=measures)

    def _observe_ranges(self) -> Outcome:
        """Ranges by the least and the greatest value of each activation: means over batches."""
        samples = self.samples_of(self.instruction.part)
        if self.program.range_parameters and self.instruction.returns == RANGES:
            return Outcome(samples=samples.count)  # it has none to compute with
        if not samples.count:
            raise DataError("there are no samples to observe the ranges of activations on")
        self.load()
        sums, batches = [0.0] * self.instruction.floats(self.program.layout), 0
        for x, _, valid in self.learner.batches(samples):
            sums = [a + b for a, b in zip(sums, self._extremes(x, valid), strict=True)]
            batches += 1
        means = array("f", self.program.widened([total / batches for total in sums], self.base))
        return Outcome(means.tobytes(), ((0, len(means)),), samples.count)

    def _extremes(self, x: memoryview[float], valid: int) -> Iterator[float]:
        """Of each range of the layout, over one batch."""
        observed = self.executor.calibrate(x, valid)
        found = dict(zip(self.program.forward_names, observed, strict=True))
        taken = x[: len(x) // self.program.batch * valid]
        for parameter in self.program.layout.activations:
            name = parameter.name.removesuffix(RANGE)
            moments = found.get(name) or Moments(min=min(taken), max=max(taken))  # the input
            yield from (moments.min, moments.max)

    def _observe(self) -> Outcome:
        """For each candidate, means and mean squares of what its tracked normalisations meet."""
        samples = self.samples_of(self.instruction.part)
        rows = array("f")
        for candidate in self.instruction.candidates:
            self._load_candidate(candidate, None)
            rows.extend(self._statistics(samples))
        return Outcome(rows.tobytes(), ((0, len(rows)),), samples.count)

    def _statistics(self, samples: Samples) -> Iterator[float]:
        """Over one pass, in whole batches: its first samples fill the last one."""
        sums, passes = [0.0] * self.program.statistics_floats, 0
        one_pass = Phase(lr=0.0, part=self.instruction.part)
        for x, _ in self.learner.training_batches(one_pass, samples, self.key):
            sums = [a + b for a, b in zip(sums, self.executor.observe(x), strict=True)]
            passes += 1
        elements = tracked_elements(self.program)
        return (total / (passes * count) for total, count in zip(sums, elements, strict=True))

    # -- candidates --

    def score(self) -> Outcome:
        """The loss of each candidate."""
        samples = self.samples_of(self.instruction.part)
        given = self.instruction.statistics
        width = self.program.statistics_floats
        measures: dict[str, float] = {}
        for index, candidate in enumerate(self.instruction.candidates):
            row = floats(given)[index * width : (index + 1) * width] if given else None
            self._load_candidate(candidate, row)
            measures[f"loss_sum.{index}"] = self.learner.judge(samples)["loss_sum"]
        return Outcome(samples=samples.count, measures={**measures, "count": samples.count})

    def _load_candidate(self, candidate: bytes | int, row: memoryview[float] | None) -> None:
        """A vector, initial values by their seed, or the base under the mask of a seed; with the
        statistics of the row, if there is one."""
        vector = floats(candidate) if isinstance(candidate, bytes) else self._seeded(candidate)
        self.learner.load(_with_statistics(self.program, vector, row) if row else vector)

    def _seeded(self, seed: int) -> memoryview[float]:
        program = self.program
        if program.density == 1:
            return floats(program.initial(seed))
        counts = pruning.candidate_counts(program.layout, program.prunable, program.density, seed)
        self.learner.load_mask(pruning.largest(self.base, program.layout, counts))
        return self.base


def _with_statistics(
    program: Program, vector: memoryview[float], row: memoryview[float]
) -> memoryview[float]:
    """The vector with the tracked means and variances that these moments give."""
    made, at = copied(vector), 0
    for mean, var in list(pairwise(map(program.layout.__getitem__, program.tracked)))[::2]:
        means, squares = row[at : at + mean.size], row[at + mean.size : at + 2 * mean.size]
        made[mean.offset : mean.offset + mean.size] = means
        variances = [max(0.0, s - m * m) for m, s in zip(means, squares, strict=True)]
        made[var.offset : var.offset + var.size] = floats(variances)
        at += 2 * mean.size
    return made


def _add_moments(total: Moments, found: Moments) -> None:
    total.count += found.count
    total.sum += found.sum
    total.sum_squares += found.sum_squares
    total.min = min(total.min, found.min)
    total.max = max(total.max, found.max)
