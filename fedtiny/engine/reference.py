"""The reference executor: NumPy over the arena offsets of the image. Slow, obvious, the judge.

Its tensors are views into one arena at the planned offsets, so that a wrong plan corrupts values
here as it would on a device. In float64 every offset counts double and exp, log and tanh are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.engine import ops
from fedtiny.engine.image import (
    ALWAYS,
    CORRECTION,
    INPUT,
    LABELS,
    LIVE,
    MOMENTUM,
    NONE,
    PARAMS,
    PROX,
    OpRecord,
    ParamRecord,
    read_image,
)  # fmt: skip
from fedtiny.engine.ir import Window
from fedtiny.engine.kernels.norm import BATCH, MOVING, RUNNING
from fedtiny.engine.kernels.sparse import Live, dense_gradient
from fedtiny.engine.kernels.sums import in_rows, row_sum
from fedtiny.engine.kernels.update import Rule, apply_update
from fedtiny.engine.program import (
    Hyper,
    Moments,
    check_capacity,
    check_growth,
    check_hyper,
    check_labels,
    check_mask_bytes,
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
        self._statistics = RUNNING
        pruned = [p.count for p in self.tables.params if p.pruned]
        self._live = [np.zeros(0, np.int64) for _ in pruned]

    # -- the mask --

    def load_mask(self, bits: bytes) -> None:
        """Make the coordinates of these bits live, as far as they can be pruned."""
        check_mask_bytes(self.tables, bits)
        alive = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        pruned = [p for p in self.tables.params if p.pruned]
        live = [np.flatnonzero(alive[p.vector_at : p.vector_at + p.count]) for p in pruned]
        check_capacity(self.tables, sum(map(len, live)))
        self._live = live
        pool = self.tables.live_at
        self.params[pool : pool + self.tables.live_capacity] = 0
        for slot in self._slots.values():
            slot[self.tables.trained_floats - self.tables.live_capacity :] = 0

    # -- parameters --

    def load(self, vector: Buffer) -> None:
        """Take the averaged vector; remember it as the base; clear the momentum."""
        flat = self._vector(vector)
        for p in self.tables.params:
            self._values(p)[:] = flat[self._coordinates(p)]
        self._fill_slot(PROX, flat)
        self.clear_momentum()

    def load_live(self, values: Buffer) -> None:
        """The same, of a compact vector."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        places = np.concatenate([self._coordinates(p) for p in self.tables.params])
        flat[places] = _shaped(values, self.dtype, places.shape, "the compact vector")
        self.load(flat)

    def store_live(self) -> bytearray:
        """The compact vector in the executor's dtype."""
        return bytearray(b"".join(self._values(p).tobytes() for p in self.tables.params))

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
            flat[self._coordinates(p)] = self._values(p)
        return bytearray(flat.tobytes())

    def store_gradient(self) -> bytearray:
        """The momentum in the order of the averaged vector; 0 where nothing trains."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        for p in filter(lambda p: p.trained, self.tables.params):
            flat[self._coordinates(p)] = self._slot(MOMENTUM, p)
        return bytearray(flat.tobytes())

    # -- samples --

    def step(self, x: Buffer, y: Buffer, hyper: Hyper) -> float:
        """Train on one batch; returns its mean loss before the update."""
        check_hyper(self.tables, hyper)
        self._take(x, y)
        self._hyper = hyper
        with self._using(BATCH if hyper.keep_statistics else MOVING):
            self.execute(0, len(self.tables.ops))
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
            output = op.tensors[ops.TABLE[ops.BY_CODE[op.code]].inputs]
            values = self.tensor(output)[:valid].ravel()
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
        dead = np.setdiff1d(np.arange(p.count), self._live[p.pruned - 1])
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
        """A view of a tensor where the plan put it; of a pruned parameter, what is live of it."""
        record = self.tables.tensors[index]
        if record.region in (INPUT, LABELS):
            return self._samples[record.region]
        if record.region == LIVE:
            live = self._live[record.offset]
            at = self.tables.live_at + self._live_start(record.offset)
            return Live(self.params[at : at + len(live)], live, record.shape)
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
            p = self.tables.params[op.attributes[0]]
            apply_update(found.ravel(), self._values(p), other, self._rule(p))
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

    def _coordinates(self, p: ParamRecord) -> Array:
        """Where the stored values of a parameter stand in the averaged vector, ascending."""
        return p.vector_at + (self._live[p.pruned - 1] if p.pruned else np.arange(p.count))

    def _values(self, p: ParamRecord) -> Array:
        """The stored values of a parameter in a row."""
        record = self.tables.tensors[p.tensor]
        if record.region not in (PARAMS, LIVE):
            raise ImageError(f"tensor {p.tensor} is not a parameter")
        found = self.tensor(p.tensor)
        flat: Array = found.values if p.pruned else found.reshape(-1)
        return flat

    def _live_start(self, number: int) -> int:
        return sum(map(len, self._live[:number]))

    def _slot(self, bit: int, p: ParamRecord) -> Array:
        if not p.pruned:
            return self._slots[bit][p.state_at : p.state_at + p.count]
        pool = self.tables.trained_floats - self.tables.live_capacity
        start = pool + self._live_start(p.pruned - 1)
        return self._slots[bit][start : start + len(self._live[p.pruned - 1])]

    def _fill_slot(self, bit: int, flat: Array) -> None:
        if bit in self._slots:
            for p in filter(lambda p: p.trained, self.tables.params):
                self._slot(bit, p)[:] = flat[self._coordinates(p)]


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
