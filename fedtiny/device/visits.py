"""What a device does in one visit: train, grow, evaluate, calibrate, score. Needs no NumPy."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from fedtiny import pruning
from fedtiny.device.growing import (
    carried,
    compact_ranges,
    exchanged,
    live_values,
    tracked_elements,
)
from fedtiny.engine.program import Moments
from fedtiny.errors import DataError
from fedtiny.masks import Mask
from fedtiny.tensors import all_finite, float_view, floats, raw
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    QUERY,
    SCORE,
    TRAIN,
    VOTES,
    Instruction,
    Phase,
    Ranges,
)

if TYPE_CHECKING:
    from fedtiny.device.learner import Learner
    from fedtiny.engine.program import Executor, Program


@dataclass(frozen=True, slots=True)
class Samples:
    """``count`` samples in a row. ``x`` float32; ``y`` float32, or int32 class labels."""

    x: memoryview[float]
    y: memoryview[float] | memoryview[int]
    count: int


@dataclass(frozen=True, slots=True)
class Key:
    """Where a visit's randomness comes from: (run, round, device index)."""

    run: int = 0
    round: int = 0
    device: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a visit gives: values, samples processed, measures (counts and sums), and the values
    that stay on the device.

    The values are for the coordinates in ``ranges`` that are live in ``mask``, or with ``places``
    (uint32, ascending) for those alone, as in an Update.
    """

    values: bytes = b""
    ranges: Ranges = ()
    samples: int = 0
    measures: Mapping[str, float] = field(default_factory=dict)
    personal: bytes = b""
    mask: Mask | None = None
    places: bytes | None = None


@dataclass(frozen=True, eq=False)
class Visit:
    """One instruction being carried out by a Learner. ``base`` is the whole vector, or the live
    values under the instruction's mask."""

    learner: Learner
    instruction: Instruction
    base: memoryview[float]
    samples_of: Callable[[str], Samples]
    key: Key
    personal: bytes

    def run(self) -> Outcome:
        """Carry it out."""
        kinds = {
            TRAIN: self._train,
            EVALUATE: self._evaluate,
            CALIBRATE: self._calibrate,
            SCORE: self._score,
        }
        if self.instruction.kind not in kinds:
            raise DataError(
                f"no instruction kind {self.instruction.kind!r}; there are {sorted(kinds)}"
            )
        if not self.instruction.candidates:
            self._load()
        return kinds[self.instruction.kind]()

    @property
    def _executor(self) -> Executor:
        return self.learner.executor

    @property
    def _program(self) -> Program:
        return self.learner.program

    # -- the model to start from --

    def _load(self) -> None:
        if self._program.density < 1:
            self.learner.take_mask(self.instruction.mask)
        self.learner.load(self._with_personal() if self.personal else self.base)
        if self.instruction.correction is not None:
            self._executor.load_correction(floats(self.instruction.correction))

    def _with_personal(self) -> memoryview[float]:
        mixed, at = _copied(self.base), 0
        own, local = float_view(self.personal), self._program.local_ranges
        whole = len(mixed) == self._program.layout.size
        for start, stop in local if whole else self._stored(local):
            mixed[start:stop] = own[at : at + stop - start]
            at += stop - start
        return mixed

    def _stored(self, ranges: Ranges) -> Ranges:
        """Where the coordinates stand in what `_store` gives."""
        mask = self.learner.mask
        return compact_ranges(mask, self._program.layout, ranges) if mask else ranges

    def _store(self) -> memoryview[float]:
        """The parameters: all of them, or the live values under the mask."""
        stored = self._executor.store_live() if self.learner.mask else self._executor.store()
        values = float_view(stored)
        _check_finite(values, "parameters")
        return values

    # -- training --

    def _train(self) -> Outcome:
        asked = self.instruction
        if asked.grow and asked.sends_gradient:
            return self._grow()
        *before, last = asked.phases
        loss_sum = _added(chain(self._losses(before), self._last_losses(last)))
        steps, samples = self._used(asked.phases)
        ranges = self._program.sent_ranges(asked)
        trained = self._store()
        values = _taken(trained, self._stored(ranges))
        if asked.returns == GRADIENT:
            values = self._gradient(ranges)
        return Outcome(
            values, ranges, samples, {"loss_sum": loss_sum, "steps": steps},
            self._local(trained), self.learner.mask,
        )  # fmt: skip

    def _local(self, stored: memoryview[float]) -> bytes:
        """What stays on the device."""
        return _taken(stored, self._stored(self._program.local_ranges))

    def _losses(self, phases: Iterable[Phase], moves: bool = True) -> Iterator[float]:
        """Each step's loss, as the steps are taken."""
        for phase in phases:
            self._executor.clear_momentum()
            samples = self.samples_of(phase.part)
            yield from self.learner.run_phase(phase, samples, self.key, moves)

    def _last_losses(self, phase: Phase) -> Iterator[float]:
        if self.instruction.returns == GRADIENT:  # a step that moves nothing
            still = replace(phase, lr=0.0, steps=1, sgd=replace(phase.sgd, momentum=0.0))
            yield from self._losses([still], moves=False)
            return
        if self.instruction.grow:
            self._readjust(phase)
        yield from self._losses([phase])

    def _gradient(self, ranges: Ranges) -> bytes:
        full = float_view(self._executor.store_gradient())
        _check_finite(full, "gradients")
        mask = self.learner.mask
        return live_values(full, mask, ranges) if mask else _taken(full, ranges)

    def _used(self, phases: Sequence[Phase]) -> tuple[int, int]:
        """Steps and samples of these phases."""
        counts = {part: self.samples_of(part).count for part in {p.part for p in phases}}
        asked = replace(self.instruction, phases=tuple(phases))
        steps, samples = asked.used(counts, self._program.batch)
        return int(steps), int(samples)

    # -- growing --

    def _grow(self) -> Outcome:
        """The dead coordinates that a batch would move most, after the phases before the last."""
        *before, last = self.instruction.phases
        loss_sum = _added(self._losses(before))
        trained = self._store()
        found = self._found(last)
        votes = self.instruction.returns == VOTES
        values = array("f", [1.0 if votes else g for _, g in found])
        return Outcome(
            values.tobytes(), ((0, self._program.layout.size),),
            self._used(self.instruction.phases)[1],
            {"loss_sum": loss_sum, "steps": self._used(before)[0]},
            self._local(trained), places=array("I", [at for at, _ in found]).tobytes(),
        )  # fmt: skip

    def _found(self, phase: Phase) -> list[tuple[int, float]]:
        """Coordinates and gradients; one that a batch does not move is of no use to anybody."""
        samples = self.samples_of(phase.part)
        x, y = next(self.learner.training_batches(replace(phase, steps=1), samples, self.key))
        found = self._executor.grow(x, y, self._most())
        _check_finite(floats([g for _, g in found]), "gradients")
        return [(at, g) for at, g in found if g]

    def _most(self) -> list[int]:
        most, prunable = dict(self.instruction.grow), self._program.prunable
        unknown = most.keys() - set(prunable)
        if unknown:
            raise DataError(
                f"the instruction grows {sorted(unknown)}; this Program prunes {list(prunable)}"
            )
        return [most.get(name, 0) for name in prunable]

    def _readjust(self, phase: Phase) -> None:
        """As many of the smallest live weights die as dead ones grow, layer by layer."""
        mask = self.learner.mask
        assert mask is not None
        values, grown = self._store(), [at for at, _ in self._found(phase)]
        program = self._program
        moved = exchanged(mask, program.layout, program.prunable, values, grown)
        self.learner.load_mask(moved)
        self._executor.load_live(carried(values, mask, moved))

    # -- measuring --

    def _evaluate(self) -> Outcome:
        query = self.samples_of(QUERY)
        before = self.learner.judge(query)
        _added(self._losses(self.instruction.phases))
        after = self.learner.judge(query) if self.instruction.phases else before
        measures = {f"{name}_before": before[name] for name in ("loss_sum", "correct")}
        measures |= {f"{name}_after": after[name] for name in ("loss_sum", "correct")}
        measures["count"] = after["count"]
        return Outcome(samples=self._used(self.instruction.phases)[1], measures=measures)

    def _calibrate(self) -> Outcome:
        if self.instruction.pools:
            return self._observe()
        samples = self.samples_of(self.instruction.part)
        moments = [Moments() for _ in self._program.forward_names]
        for x, _, valid in self.learner.batches(samples):
            for total, found in zip(moments, self._executor.calibrate(x, valid), strict=True):
                _add_moments(total, found)
        measures = {
            f"{name}.{what}": float(getattr(m, what))
            for name, m in zip(self._program.forward_names, moments, strict=True)
            for what in ("count", "sum", "sum_squares", "min", "max")
        }
        return Outcome(samples=samples.count, measures=measures)

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
        sums, passes = [0.0] * self._program.statistics_floats, 0
        one_pass = Phase(lr=0.0, part=self.instruction.part)
        for x, _ in self.learner.training_batches(one_pass, samples, self.key):
            sums = [a + b for a, b in zip(sums, self._executor.observe(x), strict=True)]
            passes += 1
        elements = tracked_elements(self._program)
        return (total / (passes * count) for total, count in zip(sums, elements, strict=True))

    def _score(self) -> Outcome:
        samples = self.samples_of(self.instruction.part)
        given = self.instruction.statistics
        width = self._program.statistics_floats
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
        self.learner.load(_with_statistics(self._program, vector, row) if row else vector)

    def _seeded(self, seed: int) -> memoryview[float]:
        program = self._program
        if program.density == 1:
            return floats(program.initial(seed))
        counts = pruning.candidate_counts(program.layout, program.prunable, program.density, seed)
        self.learner.load_mask(pruning.largest(self.base, program.layout, counts))
        return self.base


def _with_statistics(
    program: Program, vector: memoryview[float], row: memoryview[float]
) -> memoryview[float]:
    """The vector with the tracked means and variances that these moments give."""
    made, at = _copied(vector), 0
    for mean, var in list(pairwise(map(program.layout.__getitem__, program.tracked)))[::2]:
        means, squares = row[at : at + mean.size], row[at + mean.size : at + 2 * mean.size]
        made[mean.offset : mean.offset + mean.size] = means
        variances = [max(0.0, s - m * m) for m, s in zip(means, squares, strict=True)]
        made[var.offset : var.offset + var.size] = floats(variances)
        at += 2 * mean.size
    return made


def _added(losses: Iterable[float]) -> float:
    """One after the other, as the C runtime adds them."""
    loss_sum = 0.0
    for loss in losses:
        loss_sum += loss
    return loss_sum


def _check_finite(values: memoryview[float], what: str) -> None:
    """All of them, personal ones too: what has diverged is of no use to a later visit."""
    if all_finite(values):
        return
    wrong = len(values) - sum(map(math.isfinite, values))
    raise DataError(
        f"{wrong:,} of {len(values):,} {what} are not finite after training; lower the learning "
        "rate or clip the gradient"
    )


def _copied(values: memoryview[float]) -> memoryview[float]:
    return floats(bytearray(raw(values)))


def _taken(values: memoryview[float], ranges: Ranges) -> bytes:
    return b"".join(bytes(values[start:stop]) for start, stop in ranges)


def _add_moments(total: Moments, found: Moments) -> None:
    total.count += found.count
    total.sum += found.sum
    total.sum_squares += found.sum_squares
    total.min = min(total.min, found.min)
    total.max = max(total.max, found.max)
