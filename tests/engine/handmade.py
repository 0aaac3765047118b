"""A second writer of the image format, by hand and from the C header alone.

It makes images of multilayer perceptrons without the compiler: every tensor has its own place in
the arena, unless `in_place` lets activations and gradients take the place of their operand.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

ARENA, PARAMS, INPUT, LABELS = 0, 1, 2, 3
NONE, ALWAYS = 0xFFFF, 0xFF
MOMENTUM, CLIP, PROX, CORRECTION = 1, 2, 4, 8
LINEAR, BIAS, RELU, TANH, SIGMOID, ADD, MSE, CROSS_ENTROPY = 1, 2, 3, 4, 5, 6, 16, 17
LINEAR_DX, RELU_DX, TANH_DX, SIGMOID_DX, LINEAR_UPDATE, BIAS_UPDATE = 32, 33, 34, 35, 64, 65
NORM_ZERO, LINEAR_NORM, BIAS_NORM, NORM_SCALE = 80, 81, 82, 83
ACTIVATIONS = {"relu": (RELU, RELU_DX), "tanh": (TANH, TANH_DX), "sigmoid": (SIGMOID, SIGMOID_DX)}
HEADER_BYTES, TENSOR_BYTES, PARAM_BYTES, OP_BYTES = 128, 24, 24, 40


@dataclass
class Image:
    """The tables of an image while they grow."""

    batch: int
    features: int = 0
    arena: int = 0
    floats: int = 0
    tensors: list[bytes] = field(default_factory=list)
    params: list[bytes] = field(default_factory=list)
    ops: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def tensor(self, region: int, *dims: int, dtype: int = 0, over: int | None = None) -> int:
        """A tensor in a new place of its region, or in the place of tensor `over`."""
        size = 4
        for extent in dims:
            size *= extent
        offset = 0
        if over is not None:
            offset = self.offsets[over]
        elif region == ARENA:
            offset, self.arena = self.arena, self.arena + size
        elif region == PARAMS:
            offset, self.floats = 4 * self.floats, self.floats + size // 4
        padded = (*dims, 1, 1, 1)[:4]
        self.tensors.append(struct.pack("<4B5I", dtype, region, len(dims), 0, offset, *padded))
        self.offsets.append(offset)
        return len(self.tensors) - 1

    def param(self, *dims: int, group: int = 0) -> int:
        """A trained parameter, in the vector and the state where it is in the memory."""
        at = self.floats
        tensor = self.tensor(PARAMS, *dims)
        record = struct.pack("<H2B5I", tensor, group, 1, at, self.floats - at, at, 0, 0)
        self.params.append(record)
        return tensor

    def op(self, code: int, *tensors: int, group: int = ALWAYS, param: int = 0) -> None:
        """An op over tensors; `param` is the record that an update writes."""
        operands = (*tensors, *[NONE] * 8)[:8]
        self.ops.append(struct.pack("<4B18H", code, group, 0, 0, *operands, param, *[0] * 9))

    def bytes(self, forward: int, ends: Sequence[int]) -> bytes:
        """The image; `ends` are the input, the label, the output and the loss."""
        tables = [b"".join(t) for t in (self.tensors, self.params, self.ops)]
        starts = [HEADER_BYTES]
        for table in [*tables, b"{}"]:
            starts.append(starts[-1] + len(table))
        slots = sum(bool(self.features & bit) for bit in (MOMENTUM, PROX, CORRECTION))
        figures = (self.arena, self.floats, slots * self.floats, self.floats, self.floats)
        counts = (len(self.tensors), len(self.params), len(self.ops), forward, self.batch)
        tail = struct.pack(
            "<32s5I10H5I20x", bytes(32), *figures, *counts, self.features, *ends, *starts[:4], 2
        )
        body = tail + b"".join(tables) + b"{}"
        head = struct.pack("<4s2H2I", b"FTI1", 1, 128, 16 + len(body), zlib.crc32(body))
        return head + body


def mlp(
    widths: Sequence[int],
    activation: str = "tanh",
    loss: str = "mse",
    batch: int = 1,
    features: int = 0,
    in_place: bool = False,
) -> bytes:
    """A perceptron whose layer k trains in group k. With CLIP in the features it is clipped."""
    image = Image(batch, features)
    forward, back = ACTIVATIONS[activation]
    x = image.tensor(INPUT, batch, widths[0])
    acts, weights, biases = [x], [], []
    for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
        weights.append(image.param(fan_in, fan_out, group=k))
        biases.append(image.param(fan_out, group=k))
        y = image.tensor(ARENA, batch, fan_out)
        image.op(LINEAR, acts[-1], weights[-1], biases[-1], y)
        if k < len(widths) - 2:
            a = image.tensor(ARENA, batch, fan_out, over=y if in_place else None)
            image.op(forward, y, a)
            y = a
        acts.append(y)
    n_forward = len(image.ops)
    mse = loss == "mse"
    label = image.tensor(LABELS, batch, *([widths[-1]] if mse else []), dtype=0 if mse else 1)
    over = acts[-1] if in_place else None
    dy, total = image.tensor(ARENA, batch, widths[-1], over=over), image.tensor(ARENA, 1)
    image.op(MSE if mse else CROSS_ENTROPY, acts[-1], label, dy, total)
    updates: list[tuple[int, int, int, int, int]] = []
    for k in reversed(range(len(weights))):
        updates += [(k, 2 * k, acts[k], dy, weights[k]), (k, 2 * k + 1, NONE, dy, biases[k])]
        if k:
            before = image.tensor(ARENA, batch, widths[k])
            image.op(LINEAR_DX, dy, weights[k], before)
            dy = image.tensor(ARENA, batch, widths[k], over=before if in_place else None)
            image.op(back, before, acts[k], dy)
    scale = _clip(image, updates) if features & CLIP else NONE
    for k, record, source, gradient, parameter in updates:
        code = BIAS_UPDATE if source == NONE else LINEAR_UPDATE
        image.op(code, source, gradient, parameter, scale, group=k, param=record)
    return image.bytes(n_forward, (x, label, acts[-1], total))


def _clip(image: Image, updates: Sequence[tuple[int, int, int, int, int]]) -> int:
    norm = image.tensor(ARENA, 1)
    image.op(NORM_ZERO, norm)
    for k, _, source, gradient, _ in updates:
        code = BIAS_NORM if source == NONE else LINEAR_NORM
        image.op(code, source, gradient, norm, group=k)
    scale = image.tensor(ARENA, 1, over=norm)
    image.op(NORM_SCALE, norm, scale)
    return scale
