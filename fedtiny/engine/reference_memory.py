"""The memory of the reference executor: tensors where the plan put them, and what a model is in it.

Tensors are views into one row of bytes for each region, at the planned offsets, so that a wrong
plan corrupts values here as it would on a device. In float64 all that shares a region is stretched
alike, until the narrowest element has room for a double; an int8 is then a real number on the same
grid, and nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny import quantised
from fedtiny.engine.image import (
    ARENA,
    CONST,
    CORRECTION,
    F32,
    FROZEN,
    I8,
    I32,
    IN,
    LIVE,
    MOMENTUM,
    NONE,
    OUT,
    PARAMS,
    PROX,
    RANGE,
    ParamRecord,
    Tables,
    TensorRecord,
)  # fmt: skip
from fedtiny.engine.kernels.int8 import Int8
from fedtiny.engine.kernels.sparse import Live
from fedtiny.engine.program import check_capacity, check_mask_bytes
from fedtiny.errors import ImageError

if TYPE_CHECKING:
    from fedtiny.engine.kernels.sums import Array

_SLOTS = (MOMENTUM, PROX, CORRECTION)
_HOMES = (PARAMS, FROZEN, LIVE)


class Memory:
    """What one Program needs, but for its samples.

    Args:
        tables: The Program's.
        dtype: float32 (canonical arithmetic) or float64.
    """

    def __init__(self, tables: Tables, dtype: np.dtype[Any]) -> None:
        self.tables, self.dtype = tables, dtype
        self.exact = dtype == np.float64
        narrowest = 1 if any(t.dtype == I8 for t in tables.tensors) else 4
        self._stretch = dtype.itemsize // narrowest if self.exact else 1
        nbytes = {
            ARENA: tables.arena_bytes, PARAMS: 4 * tables.param_floats,
            FROZEN: 4 * tables.frozen_words,
        }  # fmt: skip
        self.regions = {at: np.zeros(n * self._stretch, np.uint8) for at, n in nbytes.items()}
        self._consts = np.array(tables.consts, np.uint32).view(np.int32)
        self._slots = {
            bit: np.zeros(tables.trained_floats, dtype) for bit in _SLOTS if tables.features & bit
        }
        self._live = [np.zeros(0, np.int64) for p in tables.params if p.pruned]
        self._affine = {p.tensor for p in tables.params if p.form == RANGE}
        self._wholes = {
            p.tensor: tables.params[at - (p.index != NONE)] for at, p in enumerate(tables.params)
        }
        self._places = {p.tensor: self._place(p) for p in tables.params}

    # -- tensors --

    def tensor(self, index: int) -> Any:
        """A view of a tensor: an array, an `Int8`, or what is live of a pruned parameter."""
        record = self.tables.tensors[index]
        if record.region == LIVE:
            live = self._live[record.offset]
            return Live(self._pool[self._live_span(record.offset)], live, record.shape)
        if record.region == CONST:
            start = record.offset // 4
            return self._consts[start : start + prod(record.shape)].reshape(record.shape)
        view = self._view(record)
        return self.int8(view, record) if record.dtype == I8 else view

    def int8(self, values: Array, record: TensorRecord) -> Int8:
        """The values with the scale of a tensor."""
        scale = self.tensor(record.scale)
        if record.scale in self._affine:
            return Int8(values, scale[0], scale[1])
        return Int8(values, scale, self.dtype.type(0))

    def _view(self, record: TensorRecord) -> Array:
        kinds = {F32: self.dtype, I32: np.dtype(np.int32), I8: np.dtype(np.int8)}
        kind = self.dtype if self.exact and record.dtype == I8 else kinds[record.dtype]
        place = self.regions[record.region][record.offset * self._stretch :]
        return place[: prod(record.shape) * kind.itemsize].view(kind).reshape(record.shape)

    # -- the mask --

    def load_mask(self, bits: bytes) -> None:
        """Make the coordinates of these bits live, as far as they can be pruned."""
        check_mask_bytes(self.tables, bits)
        alive = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        pruned = [p for p in self.tables.params if p.pruned]
        live = [np.flatnonzero(alive[p.vector_at : p.vector_at + p.count]) for p in pruned]
        check_capacity(self.tables, sum(map(len, live)))
        self._live = live
        self._pool[:] = 0
        for slot in self._slots.values():
            slot[self.tables.trained_floats - self.tables.live_capacity :] = 0

    def live(self, p: ParamRecord) -> Array:
        """The live coordinates of a pruned parameter, ascending."""
        return self._live[p.pruned - 1]

    @property
    def _pool(self) -> Array:
        count = self.tables.live_capacity
        return self._view(TensorRecord(F32, PARAMS, (count,), 4 * self.tables.live_at))

    def _live_span(self, number: int) -> slice:
        """Of a pruned parameter in the pool."""
        start = sum(map(len, self._live[:number]))
        return slice(start, start + len(self._live[number]))

    # -- the averaged vector --

    def load(self, flat: Array) -> None:
        """Take the parameters."""
        for p in self.tables.params:
            self._take(p, flat)

    def store(self) -> Array:
        """The parameters; coordinates without one are 0."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        for p in self.tables.params:
            flat[self.coordinates(p)] = self._given(p)
        return flat

    def coordinates(self, p: ParamRecord) -> Array:
        """Where the stored values of a parameter stand in the averaged vector, ascending."""
        return p.vector_at + (self.live(p) if p.pruned else self._places[p.tensor])

    def _place(self, p: ParamRecord) -> Array:
        """The positions of its elements in the whole parameter."""
        whole = self._wholes[p.tensor]
        positions = np.arange(whole.count).reshape(self.tables.tensors[whole.tensor].shape)
        if p.index != NONE:
            channels = self.tensor(p.index)
            positions = positions[..., channels, :] if p.axis == IN else positions[..., channels]
        return positions.reshape(-1)

    def compact_coordinates(self) -> Array:
        """Those of all parameters, each once."""
        whole = [p for p in self.tables.params if p.index == NONE]
        return np.concatenate([self.coordinates(p) for p in whole])

    def _take(self, p: ParamRecord, flat: Array) -> None:
        home, values = self.home(p), flat[self.coordinates(p)]
        if p.form == RANGE:
            home[:] = self._scale_and_zero(*values)
        elif isinstance(home, Int8):
            home.scale[:] = self._steps(p, flat)
            weight = values.reshape(home.values.shape)
            quantise = np.divide if self.exact else quantised.quantise_weight
            home.values[:] = quantise(weight, home.scale)
        else:
            home.reshape(-1)[:] = values

    def _given(self, p: ParamRecord) -> Array:
        home = self.home(p)
        if p.form == RANGE:
            return np.array(quantised.ends_of(*home))
        return np.asarray(home.real if isinstance(home, Int8) else home).reshape(-1)

    def _steps(self, p: ParamRecord, flat: Array) -> Array:
        """Of all channels of the whole parameter, or of those that an overlay has."""
        whole = self._wholes[p.tensor]
        weight = flat[whole.vector_at : whole.vector_at + whole.count]
        steps = quantised.steps(weight.reshape(self.tables.tensors[whole.tensor].shape))
        return steps[self.tensor(p.index)] if p.axis == OUT else steps

    def home(self, p: ParamRecord) -> Any:
        """Where the values of a parameter stand; of a pruned one, those that are live."""
        record = self.tables.tensors[p.tensor]
        if record.region not in _HOMES:
            raise ImageError(f"tensor {p.tensor} is not a parameter")
        home = self.tensor(p.tensor)
        return home.values if p.pruned else home

    def _scale_and_zero(self, lo: Any, hi: Any) -> tuple[Any, Any]:
        lo, hi = float(lo), float(hi)
        if not self.exact or quantised.extent(lo, hi) < quantised.LEAST:
            return quantised.range_of(lo, hi)
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        scale = (hi - lo) / 255
        return scale, -128 - lo / scale

    # -- what training keeps by parameter --

    def keeps(self, bit: int) -> bool:
        """Whether there is a slot for this: momentum, base, or correction."""
        return bit in self._slots

    def slot(self, bit: int, p: ParamRecord) -> Array:
        """What the slot keeps of a trained parameter, in a row."""
        if not p.pruned:
            return self._slots[bit][p.state_at : p.state_at + p.count]
        pool = self.tables.trained_floats - self.tables.live_capacity
        return self._slots[bit][pool:][self._live_span(p.pruned - 1)]

    def fill_slot(self, bit: int, flat: Array) -> None:
        """Take it from an averaged vector, if there is a slot for it."""
        for p in self._trained if bit in self._slots else ():
            self.slot(bit, p)[:] = flat[self.coordinates(p)]

    def clear_slot(self, bit: int) -> None:
        """All zeros, if there is one."""
        if bit in self._slots:
            self._slots[bit][:] = 0

    def stored_slot(self, bit: int) -> Array:
        """In the order of the averaged vector; 0 where nothing trains."""
        flat = np.zeros(self.tables.vector_floats, self.dtype)
        for p in self._trained:
            flat[self.coordinates(p)] = self.slot(bit, p)
        return flat

    @property
    def _trained(self) -> Iterator[ParamRecord]:
        return (p for p in self.tables.params if p.trained)
