"""The reference executor: NumPy over the arena offsets of the image. Slow, obvious, the judge.

Its tensors stand where the plan put them (`fedtiny.engine.reference_memory`). In float64 exp, log
and tanh are exact, and what is int8 on a device is not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny import draws, rng
from fedtiny.engine import ops
from fedtiny.engine.image import (
    ALWAYS,
    CORRECTION,
    I8,
    I32,
    INPUT,
    LABELS,
    MOMENTUM,
    NONE,
    PROX,
    OpRecord,
    ParamRecord,
    read_image,
)  # fmt: skip
from fedtiny.engine.ir import Window
from fedtiny.engine.kernels.int8 import Int8
from fedtiny.engine.kernels.norm import BATCH, MOVING, RUNNING
from fedtiny.engine.kernels.sparse import dense_gradient
from fedtiny.engine.kernels.sums import in_rows, row_sum
from fedtiny.engine.kernels.update import Rule, apply_update, apply_update8
from fedtiny.engine.program import Hyper, Moments, check_growth, check_hyper, check_labels
from fedtiny.engine.reference_memory import Memory
from fedtiny.errors import DataError, ImageError

if TYPE_CHECKING:
    from fedtiny.engine.kernels.sums import Array
    from fedtiny.tensors import Buffer


class ReferenceExecutor:
    """One Program with its memory, executed by NumPy.

    Args:
        image: A Program image.
        dtype: float32 (canonical arithmetic) or float64.
    """

    def __init__(self, image: bytes, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.tables = read_image(image)
        self.dtype = np.dtype(dtype)
        self.memory = Memory(self.tables, self.dtype)
        self._samples: dict[int, Any] = {}
        self._hyper = Hyper(0.0)
        self._statistics = RUNNING
        self._stream, self._steps = (0, 0, 0), 0

    # -- parameters --

    def load_mask(self, bits: bytes) -> None:
        """Make the coordinates of these bits live, as far as they can be pruned."""
        self.memory.load_mask(bits)

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector; remember it as the base; clear the momentum."""
        flat = self._vector(vector)
        self.memory.load(flat)
        self.memory.fill_slot(PROX, self.memory.store())
        self.clear_momentum()
        self._steps = 0

    def load_live(self, values: Buffer) -> None:
        """The same, of a compact vector."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        places = self.memory.compact_coordinates()
        flat[places] = _shaped(values, self.dtype, places.shape, "the compact vector")
        self.load(flat)

    def store_live(self) -> bytearray:
        """The compact vector in the executor's dtype."""
        return bytearray(self.memory.store()[self.memory.compact_coordinates()].tobytes())

    def load_correction(self, vector: Buffer) -> None:
        """Take the linear correction, in the order of the averaged vector."""
        self.memory.fill_slot(CORRECTION, self._vector(vector))

    def seed(self, run: int, round: int, device: int) -> None:
        """Whose visit this is; its steps are counted from 0."""
        self._stream, self._steps = (run, round, device), 0

    def clear_momentum(self) -> None:
        """Forget the momentum."""
        self.memory.clear_slot(MOMENTUM)

    def store(self) -> bytearray:
        """The averaged vector in the executor's dtype; coordinates without a parameter are 0."""
        return bytearray(self.memory.store().tobytes())

    def store_gradient(self) -> bytearray:
        """The momentum in the order of the averaged vector; 0 where nothing trains."""
        return bytearray(self.memory.stored_slot(MOMENTUM).tobytes())

    # -- samples --

    def step(self, x: Buffer, y: Buffer, hyper: Hyper) -> float:
        """Train on one batch; returns its mean loss before the update."""
        check_hyper(self.tables, hyper)
        self._take(x, y)
        self._hyper = hyper
        with self._using(BATCH if hyper.keep_statistics else MOVING):
            self.execute(0, len(self.tables.ops))
        self._steps += 1
        return float(self.tensor(self.tables.loss)[0])

    def predict(self, x: Buffer) -> memoryview[float]:
        """The output of one batch, in the executor's dtype."""
        self._take(x)
        self.execute(0, self.tables.n_forward)
        output: memoryview[float] = memoryview(self.tensor(self.tables.output).ravel().copy())
        return output

    def evaluate(self, x: Buffer, y: Buffer, valid: int) -> tuple[float, int, int]:
        """Sum of losses, count, correct answers over the first ``valid`` samples of one batch."""
        self._take(x, y)
        self.execute(0, self.tables.n_forward)
        output, label = self.tensor(self.tables.output), self.tensor(self.tables.label)
        kind = self._loss_kind
        rows = ops.TABLE[kind].rows
        assert rows is not None
        loss_sum = _sum64(rows(output, label)[:valid])
        if kind == "mse":
            return loss_sum, valid, 0
        right = label if label.dtype == np.int32 else label.argmax(axis=1)
        return loss_sum, valid, int((output.argmax(axis=1) == right)[:valid].sum())

    @property
    def _loss_kind(self) -> str:
        kinds = (ops.BY_CODE[op.code] for op in self.tables.ops[self.tables.n_forward :])
        return next(kind for kind in kinds if ops.TABLE[kind].role == ops.LOSS)

    def calibrate(self, x: Buffer, valid: int) -> list[Moments]:
        """The moments of every forward op's output over the first ``valid`` samples."""
        self._take(x)
        found = []
        for index in range(self.tables.n_forward):
            self.execute(index, index + 1)
            op = self.tables.ops[index]
            kind = ops.BY_CODE[op.code]
            output = op.tensors[ops.TABLE[kind].inputs]
            if kind == ops.MERGE or self.tables.tensors[output].dtype == I32:  # of no samples
                found.append(Moments(0, 0.0, 0.0, 0.0, 0.0))
                continue
            values = _real(self.tensor(output))[:valid].ravel()
            wide = values.astype(np.float64)
            low, high = float(values.min()), float(values.max())
            found.append(Moments(values.size, _sum64(wide), _sum64(wide * wide), low, high))
        return found

    def observe(self, x: Buffer) -> list[float]:
        """The sums of the inputs of the tracked normalisations by channel, and of their squares."""
        self._take(x)
        found: list[float] = []
        with self._using(BATCH):
            for index, op in enumerate(self.tables.forward):
                if ops.TABLE[ops.BY_CODE[op.code]].role == ops.TRACK:
                    rows = in_rows(self.tensor(op.tensors[0])).astype(np.float64)
                    found += [*row_sum(rows).tolist(), *row_sum(rows * rows).tolist()]
                self.execute(index, index + 1)
        return found

    def grow(self, x: Buffer, y: Buffer, most: Sequence[int]) -> list[tuple[int, float]]:
        """The dead coordinates with the largest gradients of one batch, ascending."""
        check_growth(self.tables, most)
        self._take(x, y)
        found: list[tuple[int, float]] = []
        with self._using(BATCH):
            for index, op in enumerate(self.tables.ops):
                role = ops.TABLE[ops.BY_CODE[op.code]].role
                if op.code == ops.TABLE[f"{ops.SPARSE}_update"].code:
                    found += self._largest_dead(op, most)
                elif role not in (ops.UPDATE, ops.NORM, ops.GRADIENT, ops.SCALE):
                    self.execute(index, index + 1)
        return sorted(found)

    def _largest_dead(self, op: OpRecord, most: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Of one parameter; of equal gradients those at the lower coordinates; NaN is largest."""
        p = self.tables.params[op.attributes[0]]
        x, dy, w = (self.tensor(index) for index in op.tensors[:3])
        g = dense_gradient(x, dy, w, Window.of(op.attributes[1:]))
        dead = np.setdiff1d(np.arange(p.count), self.memory.live(p))
        order = np.lexsort((-abs(g[dead]), ~np.isnan(g[dead])))[: most[p.pruned - 1]]
        return ((p.vector_at + int(at), float(g[at])) for at in dead[order])

    # -- execution --

    @contextmanager
    def _using(self, statistics: str) -> Iterator[None]:
        """Tracked normalisations use these statistics inside."""
        self._statistics = statistics
        try:
            yield
        finally:
            self._statistics = RUNNING

    def execute(self, first: int, last: int) -> None:
        """Run the ops [first, last) on the samples taken."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for op in self.tables.ops[first:last]:
                if op.group == ALWAYS or self._hyper.groups >> op.group & 1:
                    self._run(op)

    def tensor(self, index: int) -> Any:
        """A view of a tensor: of the samples taken, or of the memory."""
        region = self.tables.tensors[index].region
        return self._samples[region] if region in (INPUT, LABELS) else self.memory.tensor(index)

    def _run(self, op: OpRecord) -> None:
        kind = ops.BY_CODE.get(op.code)
        if kind is None:
            raise ImageError(f"unknown op code {op.code}; the image is newer than this runtime")
        row = ops.TABLE[kind]
        count = max(row.inputs + row.outputs, len(op.tensors))
        tensors = (*op.tensors, *[NONE] * count)[:count]
        operands = [None if t == NONE else _TAKES[row.takes](self.tensor(t)) for t in tensors]
        attributes = [row.attributes.of(op.attributes[1:])] if row.attributes else []
        if row.role in (ops.UPDATE, ops.NORM, ops.GRADIENT):
            self._move(op, row, operands, attributes)
        elif row.role == ops.SCALE:
            row.kernel(*operands, self._hyper.clip)
        elif row.role == ops.TRACK:
            row.kernel(*operands, *attributes, self._statistics)
        else:
            row.kernel(*operands, *attributes)

    def _move(self, op: OpRecord, row: ops.Row, operands: list[Any], attributes: list[Any]) -> None:
        """Change operand 2 by the gradient of a parameter."""
        x, dy, target, other = (*operands, None)[:4]
        codes = operands[4:]
        of = other if row.role == ops.NORM else target
        found = row.kernel(x, dy, of, *codes, *attributes)
        if row.role == ops.UPDATE:
            self._update(self.tables.params[op.attributes[0]], found.ravel(), other)
        else:
            target += found

    def _update(self, p: ParamRecord, g: Array, scale: Array | None) -> None:
        w, rule = self.memory.home(p), self._rule(p)
        if isinstance(w, Int8):
            apply_update8(g, w, scale, rule, self._uniform(p))
        else:
            apply_update(g, w.reshape(-1), scale, rule)

    def _uniform(self, p: ParamRecord) -> Array:
        """What the rounding of this parameter is drawn by, in this step."""
        run, round, device = self._stream
        purpose, end = rng.rounding_purpose(self._steps), p.state_at + p.count
        words = draws.words(run, round, np.array([device], np.uint32), purpose, end)
        return draws.uniform(words[0, p.state_at :])

    def _rule(self, p: ParamRecord) -> Rule:
        h, memory = self._hyper, self.memory
        corrected = h.correction and memory.keeps(CORRECTION)
        return Rule(
            h.lr, h.momentum, h.weight_decay, h.prox,
            base=memory.slot(PROX, p) if memory.keeps(PROX) else None,
            correction=memory.slot(CORRECTION, p) if corrected else None,
            velocity=memory.slot(MOMENTUM, p) if memory.keeps(MOMENTUM) else None,
        )  # fmt: skip

    # -- samples and vectors as they are given --

    def _take(self, x: Buffer, y: Buffer | None = None) -> None:
        tensors = self.tables.tensors
        inputs = tensors[self.tables.input]
        given = _shaped(x, self.dtype, inputs.shape, "the input")
        self._samples = {INPUT: self._quantised(given) if inputs.dtype == I8 else given}
        if y is None:
            return
        label = tensors[self.tables.label]
        wanted = np.dtype(np.int32) if label.dtype else self.dtype
        taken = _shaped(y, wanted, label.shape, "the label")
        if label.dtype:
            check_labels(self.tables, taken.tolist())
        self._samples[LABELS] = taken

    def _quantised(self, x: Array) -> Int8:
        """An input as the int8 of its range."""
        stored = np.empty(x.shape, self.dtype if self.memory.exact else np.int8)
        made = self.memory.int8(stored, self.tables.tensors[self.tables.input])
        made.settle(x / made.scale)
        return made

    def _vector(self, vector: Buffer) -> Array:
        return _shaped(vector, self.dtype, (self.tables.vector_floats,), "the vector")


def _real(tensor: Any) -> Any:
    return tensor.real if isinstance(tensor, Int8) else tensor


def _stored(tensor: Any) -> Any:
    return tensor.values if isinstance(tensor, Int8) else tensor


_TAKES: Mapping[str, Callable[[Any], Any]] = {
    ops.REAL: _real, ops.STORED: _stored, ops.SCALED: lambda tensor: tensor,
}  # fmt: skip


def _sum64(values: Array) -> float:
    """Sequential float64 sum."""
    return float(np.add.accumulate(values.astype(np.float64))[-1]) if values.size else 0.0


def _shaped(buffer: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> Array:
    given = np.asarray(buffer)
    if given.dtype == np.uint8:
        given = given.view(np.int32 if dtype == np.int32 else np.float32)
    if given.size != int(np.prod(shape)):
        raise DataError(f"{what} has {given.size} elements; the Program needs {shape}")
    return given.astype(dtype, copy=False).reshape(shape)
