"""The reference executor: NumPy over the arena offsets of the image. Slow, obvious, the judge.

Its tensors are views into one arena at the planned offsets, so that a wrong plan corrupts values
here as it would on a device. In float64 every offset counts double and exp, log and tanh are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.engine import ops
from fedtiny.engine.kernels.update import Rule, apply_update
from fedtiny.engine.program import (
    ALWAYS,
    CORRECTION,
    INPUT,
    LABELS,
    MOMENTUM,
    NONE,
    PARAMS,
    PROX,
    Hyper,
    Moments,
    OpRecord,
    ParamRecord,
    check_hyper,
    check_labels,
    read_image,
)  # fmt: skip
from fedtiny.errors import DataError, ImageError

if TYPE_CHECKING:
    from fedtiny.engine.kernels.sums import Array
    from fedtiny.tensors import Buffer

_SLOTS = (MOMENTUM, PROX, CORRECTION)


class ReferenceExecutor:
    """One Program with its memory, executed by NumPy.

    Args:
        image: A Program image.
        dtype: float32 (canonical arithmetic) or float64.
    """

    def __init__(self, image: bytes, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.tables = read_image(image)
        self.dtype = np.dtype(dtype)
        self._stretch = self.dtype.itemsize // 4
        self.arena = np.zeros(self.tables.arena_bytes * self._stretch, np.uint8)
        self.params = np.zeros(self.tables.param_floats, self.dtype)
        self._slots = {
            bit: np.zeros(self.tables.trained_floats, self.dtype)
            for bit in _SLOTS
            if self.tables.features & bit
        }
        self._samples: dict[int, Array] = {}
        self._hyper = Hyper(0.0)

    # -- parameters --

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector; remember it as the base; clear the momentum."""
        flat = self._vector(vector)
        for p in self.tables.params:
            self._parameter(p)[:] = self._part(p, flat)
        self._fill_slot(PROX, flat)
        self.clear_momentum()

    def load_correction(self, vector: Buffer) -> None:
        """Take the linear correction, in the order of the averaged vector."""
        self._fill_slot(CORRECTION, self._vector(vector))

    def clear_momentum(self) -> None:
        """Forget the momentum."""
        if MOMENTUM in self._slots:
            self._slots[MOMENTUM][:] = 0

    def store(self) -> bytearray:
        """The averaged vector in the executor's dtype; coordinates without a parameter are 0."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        for p in self.tables.params:
            self._part(p, flat)[:] = self._parameter(p)
        return bytearray(flat.tobytes())

    def store_gradient(self) -> bytearray:
        """The momentum in the order of the averaged vector; 0 where nothing trains."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        for p in filter(lambda p: p.trained, self.tables.params):
            self._part(p, flat)[:] = self._slot(MOMENTUM, p)
        return bytearray(flat.tobytes())

    # -- samples --

    def step(self, x: Buffer, y: Buffer, hyper: Hyper) -> float:
        """Train on one batch; returns its mean loss before the update."""
        check_hyper(self.tables, hyper)
        self._take(x, y)
        self._hyper = hyper
        self.execute(0, len(self.tables.ops))
        return float(self.tensor(self.tables.loss)[0])

    def predict(self, x: Buffer) -> memoryview[float]:
        """The output of one batch, in the executor's dtype."""
        self._take(x)
        self.execute(0, self.tables.n_forward)
        output: memoryview[float] = memoryview(self.tensor(self.tables.output).ravel().copy())  # type: ignore[arg-type]
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
            output = op.tensors[ops.TABLE[ops.BY_CODE[op.code]].inputs]
            values = self.tensor(output)[:valid].ravel()
            wide = values.astype(np.float64)
            low, high = float(values.min()), float(values.max())
            found.append(Moments(values.size, _sum64(wide), _sum64(wide * wide), low, high))
        return found

    # -- execution --

    def execute(self, first: int, last: int) -> None:
        """Run the ops [first, last) on the samples taken."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for op in self.tables.ops[first:last]:
                if op.group == ALWAYS or self._hyper.groups >> op.group & 1:
                    self._run(op)

    def tensor(self, index: int) -> Array:
        """A view of a tensor where the plan put it."""
        record = self.tables.tensors[index]
        if record.region in (INPUT, LABELS):
            return self._samples[record.region]
        start, count = record.offset // 4, int(np.prod(record.shape))
        if record.region == PARAMS:
            return self.params[start : start + count].reshape(record.shape)
        dtype = np.dtype(np.int32) if record.dtype else self.dtype
        place = self.arena[record.offset * self._stretch :][: count * dtype.itemsize]
        return place.view(dtype).reshape(record.shape)

    def _run(self, op: OpRecord) -> None:
        kind = ops.BY_CODE.get(op.code)
        if kind is None:
            raise ImageError(f"unknown op code {op.code}; the image is newer than this runtime")
        row = ops.TABLE[kind]
        count = max(row.inputs + row.outputs, len(op.tensors))
        tensors = (*op.tensors, *[NONE] * count)[:count]
        operands: list[Any] = [None if t == NONE else self.tensor(t) for t in tensors]
        attributes = [row.attributes.of(op.attributes[1:])] if row.attributes else []
        if row.role in (ops.UPDATE, ops.NORM, ops.GRADIENT):
            self._move(op, row, operands, attributes)
        elif row.role == ops.SCALE:
            row.kernel(*operands, self._hyper.clip)
        else:
            row.kernel(*operands, *attributes)

    def _move(self, op: OpRecord, row: ops.Row, operands: list[Any], attributes: list[Any]) -> None:
        """Change operand 2 by the gradient of a parameter."""
        x, dy, target, other = (*operands, None)[:4]
        codes = operands[4:]
        of = other if row.role == ops.NORM else target
        found = row.kernel(x, dy, of, *codes, *attributes)
        if row.role == ops.UPDATE:
            apply_update(found, target, other, self._rule(self.tables.params[op.attributes[0]]))
        else:
            target += found

    def _rule(self, p: ParamRecord) -> Rule:
        h = self._hyper
        corrected = h.correction and CORRECTION in self._slots
        return Rule(
            h.lr, h.momentum, h.weight_decay, h.prox,
            base=self._slot(PROX, p) if PROX in self._slots else None,
            correction=self._slot(CORRECTION, p) if corrected else None,
            velocity=self._slot(MOMENTUM, p) if MOMENTUM in self._slots else None,
        )  # fmt: skip

    # -- memory --

    def _take(self, x: Buffer, y: Buffer | None = None) -> None:
        tensors = self.tables.tensors
        inputs = tensors[self.tables.input]
        self._samples = {INPUT: _shaped(x, self.dtype, inputs.shape, "the input")}
        if y is None:
            return
        label = tensors[self.tables.label]
        wanted = np.dtype(np.int32) if label.dtype else self.dtype
        taken = _shaped(y, wanted, label.shape, "the label")
        if label.dtype:
            check_labels(self.tables, taken.tolist())
        self._samples[LABELS] = taken

    def _vector(self, vector: Buffer) -> Array:
        return _shaped(vector, self.dtype, (self.tables.vector_floats,), "the vector")

    def _part(self, p: ParamRecord, flat: Array) -> Array:
        shape = self.tables.tensors[p.tensor].shape
        return flat[p.vector_at : p.vector_at + p.count].reshape(shape)

    def _parameter(self, p: ParamRecord) -> Array:
        record = self.tables.tensors[p.tensor]
        if record.region != PARAMS:
            raise ImageError(f"tensor {p.tensor} is not a parameter")
        return self.tensor(p.tensor)

    def _slot(self, bit: int, p: ParamRecord) -> Array:
        flat = self._slots[bit][p.state_at : p.state_at + p.count]
        return flat.reshape(self.tables.tensors[p.tensor].shape)

    def _fill_slot(self, bit: int, flat: Array) -> None:
        if bit in self._slots:
            for p in filter(lambda p: p.trained, self.tables.params):
                self._slot(bit, p)[:] = self._part(p, flat)


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
