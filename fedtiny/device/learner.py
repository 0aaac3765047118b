"""A Program with memory: load parameters, train on samples, predict, evaluate, carry out visits.

Needs no NumPy. With NumPy installed, arrays go in and come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedtiny import rng
from fedtiny.device.inputs import Input
from fedtiny.engine import native
from fedtiny.engine.program import Executor, Moments, Program
from fedtiny.errors import DataError, RunError
from fedtiny.tensors import all_finite, float_view, floats, has_numpy, vector
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    QUERY,
    SCORE,
    TRAIN,
    Instruction,
    Phase,
    Ranges,
    Sgd,
)  # fmt: skip

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer, Vector

EXECUTORS = ("native", "reference")


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
    """What a visit gives: values for ``ranges``, samples processed, measures (counts and sums),
    and the values that stay on the device."""

    values: bytes = b""
    ranges: Ranges = ()
    samples: int = 0
    measures: Mapping[str, float] = field(default_factory=dict)
    personal: bytes = b""


def make_executor(program: Program, executor: str) -> Executor:
    """The executor of that name; "" takes the native one where it is built, else the reference."""
    if executor not in (*EXECUTORS, ""):
        raise DataError(f"there is no executor {executor!r}; there are {EXECUTORS}")
    if executor == "native" or (not executor and native.available()):
        return native.NativeExecutor(program.image)
    if not has_numpy():
        raise RunError(
            f"the reference executor needs NumPy, and there is none here; {native.REBUILD}, "
            "or install numpy"
        )
    from fedtiny.engine.reference import ReferenceExecutor

    return ReferenceExecutor(program.image)


class Learner:
    """One Program with its memory on one device.

    Args:
        program: What to run.
        executor: "native" or "reference"; by default the native one where it is built.
    """

    def __init__(self, program: Program, executor: str = "") -> None:
        self.program = program
        self.executor = make_executor(program, executor)
        self._x, self._y = Input.features(program), Input.labels(program)
        self._width = self._x.width
        self._outputs = math.prod(program.output_shape)

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector (float32[layout.size]) as the parameters."""
        self.executor.load(floats(vector))

    def vector(self) -> Vector:
        """The parameters as an averaged vector; a copy."""
        return vector(self.executor.store())

    def step(self, x: Any, y: Any, lr: float, sgd: Sgd | None = None) -> float:
        """One training step on one batch; returns the mean loss before it."""
        samples = self.samples(x, y)
        if samples.count != self.program.batch:
            raise DataError(
                f"a step takes {self.program.batch} samples, got {samples.count}; "
                "use train() for more, or compile with another batch"
            )
        phase = _checked(Phase(lr, 1, sgd=sgd or self.program.sgd))
        return self.executor.step(samples.x, samples.y, self.program.hyper(phase))

    def train(
        self, xs: Any, ys: Any, lr: float, steps: int = 0, *,
        shuffle: bool = False, groups: Sequence[str] = (), sgd: Sgd | None = None,
        key: Key | None = None,
    ) -> float:  # fmt: skip
        """Train on samples, in order and around again, ``steps`` batches (0: one pass).

        Returns the mean loss of the steps. ``shuffle`` takes a new order each epoch, drawn by
        ``key``; ``groups`` limits what trains; ``sgd`` defaults to what the Program was compiled
        with.
        """
        sgd = sgd or self.program.sgd
        phase = _checked(Phase(lr, steps, groups=tuple(groups), shuffle=shuffle, sgd=sgd))
        loss_sum, taken = 0.0, 0
        for loss in self._run_phase(phase, self.samples(xs, ys), key or Key()):
            loss_sum, taken = loss_sum + loss, taken + 1
        return loss_sum / taken

    def predict(self, x: Any) -> Vector:
        """The outputs of any number of samples: float32[count, outputs]."""
        features, count = self._x.take(x)
        samples = Samples(features, floats(()), count)
        out = bytearray()
        for batch, _, valid in self._batches(samples):
            out += bytes(self.executor.predict(batch)[: valid * self._outputs])
        result = vector(out)
        return result.reshape(-1, self._outputs) if has_numpy() else result  # type: ignore[union-attr]

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """``loss_sum``, ``count``, and ``correct`` of class labels, over any number of samples."""
        return self._evaluate(self.samples(x, y))

    def samples(self, x: Any, y: Any) -> Samples:
        """Samples of the Program's shapes; DataError if they do not fit or are not finite.

        ``x`` is [count, *shape of a sample] or flat rows, and one sample alone is one row; so is
        ``y``. Class labels are integers, one for each sample.
        """
        features, count = self._x.take(x)
        labels, labelled = self._y.take(y)
        if labelled != count:
            wanted = count * self._y.width
            raise DataError(f"{count} samples need {wanted} label values; got {len(labels)}")
        return Samples(features, labels, count)

    # -- visits --

    def visit(
        self,
        instruction: Instruction,
        base: Buffer,
        samples_of: Callable[[str], Samples],
        key: Key,
        personal: bytes = b"",
    ) -> Outcome:
        """Carry out one instruction, starting from the model ``base``.

        Args:
            instruction: What to do.
            base: The averaged vector that the coordinator sent.
            samples_of: The samples of a part ("support", "query").
            key: The visit's place in the run, for its randomness.
            personal: What an earlier visit left: the values of the local parameters.
        """
        self._load_with(base, personal)
        if instruction.kind not in _KINDS:
            raise DataError(f"no instruction kind {instruction.kind!r}; there are {sorted(_KINDS)}")
        if instruction.correction is not None:
            self.executor.load_correction(floats(instruction.correction))
        return _KINDS[instruction.kind](self, instruction, samples_of, key)

    def _train(self, instruction: Instruction, samples_of: Any, key: Key) -> Outcome:
        loss_sum = self._run_phases(instruction, samples_of, key)
        steps, samples = self._used(instruction, samples_of)
        ranges = self.program.sent_ranges(instruction)
        gradient = instruction.returns == GRADIENT
        full = trained = self.executor.store()
        _check_finite(trained, "parameters")
        if gradient:
            full = self.executor.store_gradient()
            _check_finite(full, "gradients")
        return Outcome(
            _taken(full, ranges), ranges, samples,
            {"loss_sum": loss_sum, "steps": steps},
            _taken(trained, self.program.local_ranges),
        )  # fmt: skip

    def _evaluate_visit(self, instruction: Instruction, samples_of: Any, key: Key) -> Outcome:
        query = samples_of(QUERY)
        before = self._evaluate(query)
        self._run_phases(instruction, samples_of, key)
        after = self._evaluate(query) if instruction.phases else before
        measures = {f"{name}_before": before[name] for name in ("loss_sum", "correct")}
        measures |= {f"{name}_after": after[name] for name in ("loss_sum", "correct")}
        measures["count"] = after["count"]
        return Outcome(samples=self._used(instruction, samples_of)[1], measures=measures)

    def _calibrate(self, instruction: Instruction, samples_of: Any, key: Key) -> Outcome:
        samples = samples_of(instruction.part)
        moments = [Moments() for _ in self.program.forward_names]
        for x, _, valid in self._batches(samples):
            for total, found in zip(moments, self.executor.calibrate(x, valid), strict=True):
                _add_moments(total, found)
        measures = {
            f"{name}.{what}": float(getattr(m, what))
            for name, m in zip(self.program.forward_names, moments, strict=True)
            for what in ("count", "sum", "sum_squares", "min", "max")
        }
        return Outcome(samples=samples.count, measures=measures)

    def _score(self, instruction: Instruction, samples_of: Any, key: Key) -> Outcome:
        samples = samples_of(instruction.part)
        measures: dict[str, float] = {}
        for index, candidate in enumerate(instruction.candidates):
            if isinstance(candidate, int):
                candidate = bytes(floats(self.program.initial(candidate)))
            self.load(candidate)
            measures[f"loss_sum.{index}"] = self._evaluate(samples)["loss_sum"]
        return Outcome(samples=samples.count, measures={**measures, "count": samples.count})

    def _load_with(self, base: Buffer, personal: bytes) -> None:
        if not personal:
            return self.load(base)
        mixed, at = floats(bytearray(floats(base).cast("B"))), 0
        own = float_view(personal)
        for start, stop in self.program.local_ranges:
            mixed[start:stop] = own[at : at + stop - start]
            at += stop - start
        self.load(mixed)

    # -- phases --

    def _run_phases(self, instruction: Instruction, samples_of: Any, key: Key) -> float:
        """The sum of the losses of all steps."""
        loss_sum = 0.0
        last = len(instruction.phases) - 1
        for index, phase in enumerate(instruction.phases):
            if index == last and instruction.returns == GRADIENT:  # a step that moves nothing
                phase = replace(phase, lr=0.0, steps=1, sgd=replace(phase.sgd, momentum=0.0))
            self.executor.clear_momentum()
            for loss in self._run_phase(phase, samples_of(phase.part), key):
                loss_sum += loss
        return loss_sum

    def _used(self, instruction: Instruction, samples_of: Any) -> tuple[int, int]:
        counts = {part: samples_of(part).count for part in {p.part for p in instruction.phases}}
        steps, samples = instruction.used(counts, self.program.batch)
        return int(steps), int(samples)

    def _run_phase(self, phase: Phase, samples: Samples, key: Key) -> Iterator[float]:
        """Each step's loss, as the steps are taken."""
        if samples.count == 0:
            raise DataError("there are no samples to train on")
        batch, hyper = self.program.batch, self.program.hyper(phase)
        steps = phase.steps or -(-samples.count // batch)
        order = _order(steps * batch, samples.count, phase.shuffle, key)
        for _ in range(steps):
            x, y = self._gather(samples, [next(order) for _ in range(batch)])
            yield self.executor.step(x, y, hyper)

    def _evaluate(self, samples: Samples) -> dict[str, float]:
        loss_sum, count, correct = 0.0, 0, 0
        for x, y, valid in self._batches(samples):
            found = self.executor.evaluate(x, y, valid)
            loss_sum, count, correct = loss_sum + found[0], count + found[1], correct + found[2]
        return {"loss_sum": loss_sum, "count": count, "correct": correct}

    def _batches(self, samples: Samples) -> Iterator[tuple[Any, Any, int]]:
        """The samples in whole batches, the last one padded with the last sample; and how many of
        a batch count."""
        batch = self.program.batch
        for start in range(0, samples.count, batch):
            valid = min(batch, samples.count - start)
            rows = [start + min(i, valid - 1) for i in range(batch)]
            yield *self._gather(samples, rows), valid

    def _gather(self, samples: Samples, rows: list[int]) -> tuple[Any, Any]:
        first, n = rows[0], len(rows)
        width = len(samples.y) // samples.count
        if rows == list(range(first, first + n)):
            x = samples.x[first * self._width : (first + n) * self._width]
            return x, samples.y[first * width : (first + n) * width]
        return _rows(samples.x, self._width, rows), _rows(samples.y, width, rows)


_KINDS: Mapping[str, Callable[..., Outcome]] = {
    TRAIN: Learner._train,
    EVALUATE: Learner._evaluate_visit,
    CALIBRATE: Learner._calibrate,
    SCORE: Learner._score,
}


def _checked(phase: Phase) -> Phase:
    """The phase, if a person may ask for it."""
    if not (math.isfinite(phase.lr) and phase.lr >= 0):
        raise DataError(f"lr = {phase.lr} must be a finite number >= 0")
    if phase.steps < 0:
        raise DataError(f"steps = {phase.steps} must be >= 0; 0 is one pass over the samples")
    return phase


def _check_finite(full: bytearray, what: str) -> None:
    """All of them, personal ones too: what has diverged is of no use to a later visit."""
    values = float_view(full)
    if all_finite(values):
        return
    wrong = len(values) - sum(map(math.isfinite, values))
    raise DataError(
        f"{wrong:,} of {len(values):,} {what} are not finite after training; lower the learning "
        "rate or clip the gradient"
    )


def _order(length: int, count: int, shuffle: bool, key: Key) -> Iterator[int]:
    """Which sample each position takes; a new order each epoch if shuffled."""
    for epoch in range(-(-length // count)):
        if not shuffle:
            yield from range(count)
            continue
        words = rng.epoch_key(key.run, key.round, key.device, epoch)
        yield from (rng.shuffle(at, count, words) for at in range(count))


def _rows(view: Any, width: int, rows: list[int]) -> Any:
    joined = b"".join(bytes(view[r * width : (r + 1) * width]) for r in rows)
    return memoryview(joined).cast(view.format)


def _taken(full: bytearray, ranges: Ranges) -> bytes:
    floats = float_view(full)
    return b"".join(bytes(floats[start:stop]) for start, stop in ranges)


def _add_moments(total: Moments, found: Moments) -> None:
    total.count += found.count
    total.sum += found.sum
    total.sum_squares += found.sum_squares
    total.min = min(total.min, found.min)
    total.max = max(total.max, found.max)
