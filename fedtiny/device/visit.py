"""A visit of a device: what it is about, where it starts, and what it gives. Needs no NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedtiny.device.growing import compact_ranges
from fedtiny.device.vectors import combined, copied
from fedtiny.errors import DataError
from fedtiny.layout import length
from fedtiny.tensors import FLOAT_BYTES, all_finite, float_view, floats
from fedtiny.values import CONTROL, EVALUATE, LOCAL_VALUES, OWN_MODEL, RESIDUAL, Phase

if TYPE_CHECKING:
    from fedtiny.device.learner import Learner
    from fedtiny.engine.program import Executor, Program
    from fedtiny.layout import Ranges
    from fedtiny.masks import Mask
    from fedtiny.values import Instruction, Kept, Quantised


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
    """What a visit gives: values, samples processed, measures (counts and sums), and what stays on
    the device if the update is accepted.

    The values are for the coordinates in ``ranges`` that are live in ``mask``, or with ``places``
    (uint32, ascending) for those alone, as in an Update; ``quantised`` is how they travel. Of what
    is kept, local values are those of the local ranges, and the others whole averaged vectors; a
    control variate is 0 where the visit sends nothing.
    """

    values: bytes = b""
    ranges: Ranges = ()
    samples: int = 0
    measures: Mapping[str, float] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    mask: Mask | None = None
    places: bytes | None = None
    quantised: Quantised | None = None


def fitting(kept: Kept, program: Program) -> Kept:
    """What of it belongs to this model: a device may have kept things of another."""
    sizes = dict.fromkeys((CONTROL, OWN_MODEL, RESIDUAL), program.layout.size)
    sizes[LOCAL_VALUES] = length(program.local_ranges)
    wrong = {name for name, size in sizes.items() if len(kept.get(name, b"")) != FLOAT_BYTES * size}
    return {name: values for name, values in kept.items() if name not in wrong}


@dataclass(frozen=True, eq=False)
class Visit:
    """One instruction being carried out by a Learner. ``base`` is the whole vector, or the live
    values under the instruction's mask."""

    learner: Learner
    instruction: Instruction
    base: memoryview[float]
    samples_of: Callable[[str], Samples]
    key: Key
    kept: Kept

    @property
    def executor(self) -> Executor:
        """What computes."""
        return self.learner.executor

    @property
    def program(self) -> Program:
        """What it computes."""
        return self.learner.program

    # -- the model to start from --

    def load(self) -> None:
        """The model that was sent, with what the device has kept."""
        self.learner.seed(self.key)
        asked, own = self.instruction, self.kept.get(OWN_MODEL)
        if self.program.density < 1:
            self.learner.take_mask(asked.mask)
        judges_own = own is not None and asked.kind == EVALUATE
        self.learner.load(float_view(own) if judges_own and own else self.with_local())
        if asked.correction is not None:
            self.executor.load_correction(self.correction())

    def correction(self) -> memoryview[float]:
        """That of the instruction, less the device's own control variate."""
        sent, own = floats(self.instruction.correction), self.kept.get(CONTROL)
        if own is None or not self.instruction.control:
            return sent
        return combined((1.0, sent), (-1.0, own))

    def with_local(self) -> memoryview[float]:
        """The model that was sent, with the local values that the device has kept."""
        if LOCAL_VALUES not in self.kept:
            return self.base
        mixed, at = copied(self.base), 0
        own, local = float_view(self.kept[LOCAL_VALUES]), self.program.local_ranges
        whole = len(mixed) == self.program.layout.size
        for start, stop in local if whole else self.stored_ranges(local):
            mixed[start:stop] = own[at : at + stop - start]
            at += stop - start
        return mixed

    def stored_ranges(self, ranges: Ranges) -> Ranges:
        """Where the coordinates stand in what `store` gives."""
        mask = self.learner.mask
        return compact_ranges(mask, self.program.layout, ranges) if mask else ranges

    def store(self) -> memoryview[float]:
        """The parameters: all of them, or the live values under the mask."""
        stored = self.executor.store_live() if self.learner.mask else self.executor.store()
        values = float_view(stored)
        check_finite(values, "parameters")
        return values

    # -- phases --

    def losses(self, phases: Iterable[Phase], moves: bool = True) -> Iterator[float]:
        """Each step's loss, as the steps are taken."""
        for phase in phases:
            self.executor.clear_momentum()
            samples = self.samples_of(phase.part)
            yield from self.learner.run_phase(phase, samples, self.key, moves)

    def used(self, phases: Sequence[Phase]) -> tuple[int, int]:
        """Steps and samples of these phases."""
        counts = {part: self.samples_of(part).count for part in {p.part for p in phases}}
        asked = replace(self.instruction, phases=tuple(phases))
        steps, samples = asked.used(counts, self.program.batch)
        return int(steps), int(samples)


def added(losses: Iterable[float]) -> float:
    """One after the other, as the C runtime adds them."""
    loss_sum = 0.0
    for loss in losses:
        loss_sum += loss
    return loss_sum


def check_finite(values: memoryview[float], what: str) -> None:
    """All of them, those that stay too: what has diverged is of no use to a later visit."""
    if all_finite(values):
        return
    wrong = len(values) - sum(map(math.isfinite, values))
    raise DataError(
        f"{wrong:,} of {len(values):,} {what} are not finite after training; lower the learning "
        "rate or clip the gradient"
    )
