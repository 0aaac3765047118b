"""A Program with memory: load parameters, train on samples, predict, evaluate, carry out visits.

Needs no NumPy. With NumPy installed, arrays go in and come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedtiny import rng
from fedtiny.device.inputs import Input
from fedtiny.device.vectors import combined
from fedtiny.device.visit import Key as Key
from fedtiny.device.visit import Outcome as Outcome
from fedtiny.device.visit import Samples as Samples
from fedtiny.device.visits import carried_out
from fedtiny.engine import native
from fedtiny.engine.program import Executor, Program, check_ranges
from fedtiny.errors import DataError, RunError
from fedtiny.masks import Mask, remembered
from fedtiny.tensors import floats, has_numpy, vector
from fedtiny.values import Instruction, Phase, Sgd

if TYPE_CHECKING:
    from fedtiny.engine.program import Hyper
    from fedtiny.tensors import Buffer, Vector
    from fedtiny.values import Kept

EXECUTORS = ("native", "reference")
_NOTHING: Kept = MappingProxyType({})


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
        self.mask: Mask | None = None
        self._blob: bytes | None = None
        self._outputs = math.prod(program.output_shape)

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector (float32[layout.size]) as the parameters; or, under a mask, the
        values of its live coordinates alone."""
        values = floats(vector)
        check_ranges(self.program, values)
        compact = self.mask is not None and len(values) == self.mask.count < self.mask.size
        (self.executor.load_live if compact else self.executor.load)(values)

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
        ``key``, as is the rounding of int8 weights from then on; ``groups`` limits what trains;
        ``sgd`` defaults to what the Program was compiled with.
        """
        if key:
            self.seed(key)
        sgd = sgd or self.program.sgd
        phase = _checked(Phase(lr, steps, groups=tuple(groups), shuffle=shuffle, sgd=sgd))
        loss_sum, taken = 0.0, 0
        for loss in self.run_phase(phase, self.samples(xs, ys), key or Key()):
            loss_sum, taken = loss_sum + loss, taken + 1
        return loss_sum / taken

    def predict(self, x: Any) -> Vector:
        """The outputs of any number of samples: float32[count, outputs]."""
        features, count = self._x.take(x)
        samples = Samples(features, floats(()), count)
        out = bytearray()
        for batch, _, valid in self.batches(samples):
            out += bytes(self.executor.predict(batch)[: valid * self._outputs])
        result = vector(out)
        return result.reshape(-1, self._outputs) if has_numpy() else result  # type: ignore[union-attr]

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """``loss_sum``, ``count``, and ``correct`` of class labels, over any number of samples."""
        return self.judge(self.samples(x, y))

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

    def seed(self, key: Key) -> None:
        """Whose steps follow, for the rounding of int8 weights."""
        self.executor.seed(key.run, key.round, key.device)

    def visit(
        self,
        instruction: Instruction,
        base: Buffer,
        samples_of: Callable[[str], Samples],
        key: Key,
        kept: Kept = _NOTHING,
    ) -> Outcome:
        """Carry out one instruction, starting from the model ``base``.

        Args:
            instruction: What to do.
            base: The averaged vector that the coordinator sent, or what of it is live.
            samples_of: The samples of a part ("support", "query").
            key: The visit's place in the run, for its randomness.
            kept: What earlier visits left here, by name.
        """
        asked = instruction.of(self.program.density)
        return carried_out(self, asked, floats(base), samples_of, key, kept)

    def load_mask(self, mask: Mask) -> None:
        """Which coordinates live from now on, of a Program with a density; their values are 0."""
        self.executor.load_mask(mask.bits)
        self.mask, self._blob = mask, None

    def take_mask(self, blob: bytes | None) -> None:
        """`load_mask` of what was sent, unless it is the last that was taken."""
        if blob is None:
            raise DataError(
                f"this Program trains {self.program.density:.2%} of its weights and was sent no "
                "mask; let the strategy's masks() name one for this density"
            )
        if blob != self._blob:
            self.load_mask(remembered(blob, self.program.layout))
            self._blob = blob

    # -- what visits are made of --

    def run_phase(
        self, phase: Phase, samples: Samples, key: Key, moves: bool = True
    ) -> Iterator[float]:
        """Each step's loss, as the steps are taken; statistics stay unless the phase ``moves``."""
        hyper = replace(self.program.hyper(phase), keep_statistics=not moves)
        batches = self.training_batches(phase, samples, key)
        if phase.ahead:
            self._check_ahead()
            yield from self._ahead(replace(hyper, lr=phase.ahead), hyper, batches)
            return
        for x, y in batches:
            yield self.executor.step(x, y, hyper)

    def _check_ahead(self) -> None:
        if self.program.int8_parameters:
            raise DataError(
                "a phase that looks ahead loads its model at every step, which would round int8 "
                "weights each time; take another strategy, or compile with dtype='float32'"
            )

    def _ahead(
        self, look: Hyper, hyper: Hyper, batches: Iterator[tuple[Any, Any]]
    ) -> Iterator[float]:
        """From w to ``v + (w - u)``: u is one step away, and v another step from there."""
        look = replace(look, keep_statistics=True)
        for first, second in zip(batches, batches, strict=True):
            w = self.executor.store()
            self.executor.step(*first, look)
            way = combined((1.0, w), (-1.0, self.executor.store()))
            loss = self.executor.step(*second, hyper)
            self.executor.load(combined((1.0, self.executor.store()), (1.0, way)))
            yield loss

    def training_batches(
        self, phase: Phase, samples: Samples, key: Key
    ) -> Iterator[tuple[Any, Any]]:
        """The batches of a phase: its samples in order, or in a drawn one, and around again."""
        if samples.count == 0:
            raise DataError("there are no samples to train on")
        batch = self.program.batch
        batches = phase.batches * phase.steps_on(samples.count, batch)
        order = _order(batches * batch, samples.count, phase.shuffle, key)
        for _ in range(batches):
            yield self._gather(samples, [next(order) for _ in range(batch)])

    def judge(self, samples: Samples) -> dict[str, float]:
        """`evaluate` of samples that are read already."""
        loss_sum, count, correct = 0.0, 0, 0
        for x, y, valid in self.batches(samples):
            found = self.executor.evaluate(x, y, valid)
            loss_sum, count, correct = loss_sum + found[0], count + found[1], correct + found[2]
        return {"loss_sum": loss_sum, "count": count, "correct": correct}

    def batches(self, samples: Samples) -> Iterator[tuple[Any, Any, int]]:
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


def _checked(phase: Phase) -> Phase:
    """The phase, if a person may ask for it."""
    if not (math.isfinite(phase.lr) and phase.lr >= 0):
        raise DataError(f"lr = {phase.lr} must be a finite number >= 0")
    if phase.steps < 0:
        raise DataError(f"steps = {phase.steps} must be >= 0; 0 is one pass over the samples")
    return phase


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
