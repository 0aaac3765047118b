"""A second writer of the image format, by hand and from the C header alone.

It makes images without the compiler. Of multilayer perceptrons: every tensor has its own place in
the arena, unless `in_place` lets activations and gradients take the place of their operand. And of
three small nets with convolutions, one of which is pruned, and one of int8.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from types import SimpleNamespace

ARENA, PARAMS, INPUT, LABELS, LIVE, FROZEN, CONST = range(7)
F32, I32, I8 = range(3)
IN, OUT, RANGE = 1, 2, 1
GAPS, BITMAP = 1, 2
NONE, ALWAYS = 0xFFFF, 0xFF
MOMENTUM, CLIP, PROX, CORRECTION = 1, 2, 4, 8
LINEAR, BIAS, RELU, TANH, SIGMOID, ADD, MSE, CROSS_ENTROPY = 1, 2, 3, 4, 5, 6, 64, 65
LINEAR_DX, RELU_DX, TANH_DX, SIGMOID_DX, LINEAR_UPDATE, BIAS_UPDATE = 80, 81, 82, 83, 128, 129
ZERO, LINEAR_NORM, BIAS_NORM, NORM_SCALE = 120, 160, 161, 121
CONV, CONV_POOL, MAX_POOL, AVG_POOL, AFFINE, GROUP_NORMALIZE = 16, 17, 18, 19, 24, 26
MASK_DX, CONV_DX, MAX_POOL_DX, AVG_POOL_DX, AFFINE_DX, GROUP_NORMALIZE_DX = 88, 96, 97, 98, 104, 106
CONV_UPDATE, CONV_POOL_UPDATE, AFFINE_UPDATE, GRADIENT_UPDATE = 130, 131, 132, 133
SPARSE_CONV, SPARSE_CONV_DX, SPARSE_CONV_UPDATE, TRACKED_NORMALIZE = 20, 99, 134, 29
BATCH_NORMALIZE_DX = 105
CONV8, ADD8, AVG_POOL8, MAX_POOL8, MASK8, TAKE, MERGE = 34, 36, 37, 38, 39, 40, 41
CROP, PASTE = 43, 44
NORM_ABOVE, GRADIENT_ABOVE = 32, 64  # how far above its update's the code of each stands
ACTIVATIONS = {"relu": (RELU, RELU_DX), "tanh": (TANH, TANH_DX), "sigmoid": (SIGMOID, SIGMOID_DX)}
HEADER_BYTES, TENSOR_BYTES, PARAM_BYTES, OP_BYTES = 136, 28, 24, 40


@dataclass(frozen=True)
class Pool:
    """Room for live values, and the form of their index."""

    capacity: int
    form: int
    bucket: int = 0

    def words(self, counts: Sequence[int]) -> int:
        """The words of the pool of parameters with so many weights."""
        words = self.capacity + len(counts) + 1
        if self.form == BITMAP:
            return words + sum((count + 31) // 32 for count in counts)
        gaps = self.capacity + sum(count // 65535 for count in counts)
        return words + len(counts) + 1 + (gaps + 1) // 2


@dataclass
class Image:
    """The tables of an image while they grow."""

    batch: int
    features: int = 0
    arena: int = 0
    floats: int = 0
    frozen: int = 0
    trained: int = 0
    consts: list[int] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    params: list[bytes] = field(default_factory=list)
    ops: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    coordinates: int = 0
    pruned: list[int] = field(default_factory=list)

    def tensor(
        self, region: int, *dims: int, dtype: int = F32, over: int | None = None, scale: int = NONE
    ) -> int:
        """A tensor in a new place of its region, or in the place of tensor `over`."""
        size = (prod(dims) + 3) // 4 * 4 if dtype == I8 else 4 * prod(dims)
        offset = 0
        if over is not None:
            offset = self.offsets[over]
        elif region == ARENA:
            offset, self.arena = self.arena, self.arena + size
        elif region == PARAMS:
            offset, self.floats = 4 * self.floats, self.floats + size // 4
        elif region == FROZEN:
            offset, self.frozen = 4 * self.frozen, self.frozen + size // 4
        elif region == CONST:
            offset = 4 * len(self.consts) - size
        elif region == LIVE:
            offset = len(self.pruned)
        padded = (*dims, 1, 1, 1)[:4]
        self.tensors.append(
            struct.pack("<4B5I2H", dtype, region, len(dims), 0, offset, *padded, scale, 0)
        )
        self.offsets.append(offset)
        return len(self.tensors) - 1

    def param(self, *dims: int, group: int = 0) -> int:
        """A trained parameter, in the state where it is in the memory."""
        tensor = self.tensor(PARAMS, *dims)
        self._record(tensor, group, prod(dims), self.trained, 0)
        return tensor

    def steps(self, channels: int) -> int:
        """The steps of int8 weights."""
        return self.tensor(FROZEN, channels)

    def range(self) -> int:
        """A range, which is the scale of activations."""
        tensor = self.tensor(FROZEN, 2)
        self._record(tensor, 0, 2, 0, 0, trained=0, form=RANGE)
        return tensor

    def frozen_param(self, *dims: int, scale: int = NONE) -> int:
        """A parameter that does not train; of int8 if it has a scale."""
        tensor = self.tensor(FROZEN, *dims, dtype=F32 if scale == NONE else I8, scale=scale)
        self._record(tensor, 0, prod(dims), 0, 0, trained=0)
        return tensor

    def int8_param(self, *dims: int, scale: int) -> int:
        """A trained parameter of int8."""
        tensor = self.tensor(PARAMS, *dims, dtype=I8, scale=scale)
        self._record(tensor, 0, prod(dims), self.trained, 0)
        return tensor

    def channels(self, *listed: int) -> int:
        """A list among the constants."""
        self.consts += listed
        return self.tensor(CONST, len(listed), dtype=I32)

    def overlay(self, *dims: int, scale: int, index: int, axis: int) -> int:
        """The part of the last parameter, of int8, that trains."""
        tensor = self.tensor(PARAMS, *dims, dtype=I8, scale=scale)
        whole = struct.unpack("<H2B5I", self.params[-1][:24])[4]
        self.coordinates -= whole
        self._record(tensor, 0, prod(dims), self.trained, 0, index=index, axis=axis)
        self.coordinates += whole - prod(dims)
        return tensor

    def weights(self, *dims: int, group: int = 0) -> int:
        """A trained parameter that stands in the pool."""
        tensor = self.tensor(LIVE, *dims)
        self.pruned.append(prod(dims))
        self._record(tensor, group, prod(dims), 0, len(self.pruned))
        return tensor

    def _record(
        self, tensor: int, group: int, count: int, state_at: int, pruned: int, trained: int = 1,
        index: int = NONE, axis: int = 0, form: int = 0,
    ) -> None:  # fmt: skip
        at, self.coordinates = self.coordinates, self.coordinates + count
        self.trained += 0 if pruned else trained * count
        fields = (tensor, group, trained, at, count, state_at, pruned, index, axis, form)
        self.params.append(struct.pack("<H2B4IH2B", *fields))

    def op(
        self,
        code: int,
        *tensors: int,
        group: int = ALWAYS,
        param: int = 0,
        words: Sequence[int] = (),
    ) -> None:
        """An op over tensors; `param` is the record that an update writes; `words` are the other
        attributes."""
        operands, attributes = (*tensors, *[NONE] * 8)[:8], (param, *words, *[0] * 9)[:10]
        self.ops.append(struct.pack("<4B18H", code, group, 0, 0, *operands, *attributes))

    def bytes(self, forward: int, ends: Sequence[int], pool: Pool | None = None) -> bytes:
        """The image; `ends` are the input, the label, the output and the loss."""
        consts = struct.pack(f"<{len(self.consts)}i", *self.consts)
        tables = [*(b"".join(t) for t in (self.tensors, self.params, self.ops)), consts]
        starts = [HEADER_BYTES]
        for table in [*tables, b"{}"]:
            starts.append(starts[-1] + len(table))
        slots = sum(bool(self.features & bit) for bit in (MOMENTUM, PROX, CORRECTION))
        words, trained = pool.words(self.pruned) if pool else 0, self.trained
        live = (0, 0, 0, 0, 0)
        if pool:
            live = (pool.capacity, self.floats, pool.form, len(self.pruned), pool.bucket)
            trained += pool.capacity
        figures = (self.arena, self.floats + words, slots * trained, trained, self.coordinates)
        counts = (len(self.tensors), len(self.params), len(self.ops), forward, self.batch)
        others = (self.frozen, starts[3] if consts else 0, len(self.consts))
        tail = struct.pack("<32s5I10H5I2I2HI3I", bytes(32), *figures, *counts, self.features,
                           *ends, *starts[:3], starts[4], 2, *live, *others)  # fmt: skip
        body = tail + b"".join(tables) + b"{}"
        head = struct.pack("<4s2H2I", b"FTI1", 4, 136, 16 + len(body), zlib.crc32(body))
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
    image.op(ZERO, norm)
    for k, _, source, gradient, _ in updates:
        code = BIAS_NORM if source == NONE else LINEAR_NORM
        image.op(code, source, gradient, norm, group=k)
    scale = image.tensor(ARENA, 1, over=norm)
    image.op(NORM_SCALE, norm, scale)
    return scale


# ---- a net with convolutions -------------------------------------------------------------------

POOLED = (1, 1, 1, 1, 1, 1, 1, 2, 2)  # stride 1 x 1, padding 1 all around, one group, pool 2 x 2
DEPTHWISE = (1, 1, 0, 0, 0, 0, 4, 0, 0)  # four groups, no padding
MEAN = (1, 1, 0, 0, 0, 0, 0, 2, 1)  # a window of 2 x 1
TWO_GROUPS = (2, *struct.unpack("<2H", struct.pack("<f", 1e-5)))


Update = tuple[int, tuple[int, ...], int, tuple[int, ...]]
"""Code, x and dy, the parameter, its window."""


def conv_net(features: int = 0, batch: int = 2, buffered: bool = False) -> bytes:
    """6 x 5 pictures of two colours: a pooled convolution, a group norm, an affine map, ReLU with a
    mask, a depthwise convolution, a mean, three classes. With CLIP in the features it is clipped;
    `buffered` gradients are summed in a buffer first."""
    net = Image(batch, features)
    x, label = net.tensor(INPUT, batch, 6, 5, 2), net.tensor(LABELS, batch, dtype=1)
    w1, b1, g, b = net.param(3, 3, 2, 4), net.param(4), net.param(4), net.param(4)
    w2, w3, b3 = net.param(2, 2, 1, 4), net.param(4, 3), net.param(3)
    pooled, normal, y, kept = (net.tensor(ARENA, batch, 3, 2, 4) for _ in range(4))
    codes, mask = net.tensor(ARENA, batch, 2, dtype=1), net.tensor(ARENA, batch, 1, dtype=1)
    rstd, deep = net.tensor(ARENA, batch, 2), net.tensor(ARENA, batch, 2, 1, 4)
    mean, logits = net.tensor(ARENA, batch, 1, 1, 4), net.tensor(ARENA, batch, 3)
    net.op(CONV_POOL, x, w1, b1, pooled, codes, words=POOLED)
    net.op(GROUP_NORMALIZE, pooled, normal, rstd, words=TWO_GROUPS)
    net.op(AFFINE, normal, g, b, y)
    net.op(RELU, y, kept, mask)
    net.op(CONV, kept, w2, NONE, deep, words=DEPTHWISE)
    net.op(AVG_POOL, deep, mean, words=MEAN)
    net.op(LINEAR, mean, w3, b3, logits)
    forward = len(net.ops)
    d_logits, total = net.tensor(ARENA, batch, 3), net.tensor(ARENA, 1)
    d_mean, d_deep = net.tensor(ARENA, batch, 1, 1, 4), net.tensor(ARENA, batch, 2, 1, 4)
    d_kept, d_y, d_normal, d_pooled = (net.tensor(ARENA, batch, 3, 2, 4) for _ in range(4))
    net.op(CROSS_ENTROPY, logits, label, d_logits, total)
    net.op(LINEAR_DX, d_logits, w3, d_mean)
    net.op(AVG_POOL_DX, d_mean, d_deep, words=MEAN)
    net.op(CONV_DX, d_deep, w2, d_kept, words=DEPTHWISE)
    net.op(MASK_DX, d_kept, mask, d_y)
    net.op(AFFINE_DX, d_y, g, d_normal)
    net.op(GROUP_NORMALIZE_DX, d_normal, normal, rstd, d_pooled, words=TWO_GROUPS)
    updates: list[Update] = [
        (CONV_POOL_UPDATE, (x, d_pooled), w1, POOLED),
        (BIAS_UPDATE, (NONE, d_pooled), b1, ()),
        (AFFINE_UPDATE, (normal, d_y), g, ()),
        (BIAS_UPDATE, (NONE, d_y), b, ()),
        (CONV_UPDATE, (kept, d_deep), w2, DEPTHWISE),
        (LINEAR_UPDATE, (mean, d_logits), w3, ()),
        (BIAS_UPDATE, (NONE, d_logits), b3, ()),
    ]
    if buffered:
        _update_by_buffers(net, updates, codes)
    else:
        _update(net, updates, codes)
    return net.bytes(forward, (x, label, logits, total))


def _codes(code: int, codes: int) -> int:
    return codes if code == CONV_POOL_UPDATE else NONE


def _scale(net: Image, updates: Sequence[Update], codes: int = NONE) -> int:
    """The tensor of the scale that clips them, if they are clipped."""
    if not net.features & CLIP:
        return NONE
    norm, scale = net.tensor(ARENA, 1), net.tensor(ARENA, 1)
    net.op(ZERO, norm)
    for code, operands, w, words in updates:
        shape = w if words else NONE  # of a convolution
        net.op(code + NORM_ABOVE, *operands, norm, shape, _codes(code, codes),
               group=0, words=words)  # fmt: skip
    net.op(NORM_SCALE, norm, scale)
    return scale


def _update(net: Image, updates: Sequence[Update], codes: int) -> None:
    scale = _scale(net, updates, codes)
    for record, (code, operands, w, words) in enumerate(updates):
        net.op(code, *operands, w, scale, _codes(code, codes), group=0, param=record, words=words)


def _update_by_buffers(net: Image, updates: Sequence[Update], codes: int) -> None:
    for record, (code, operands, w, words) in enumerate(updates):
        ndim, *dims = struct.unpack("<2xB5x4I4x", net.tensors[w])
        buffer = net.tensor(ARENA, *dims[:ndim])
        net.op(ZERO, buffer)
        net.op(code + GRADIENT_ABOVE, *operands, buffer, NONE, _codes(code, codes),
               group=0, words=words)  # fmt: skip
        net.op(GRADIENT_UPDATE, NONE, buffer, w, group=0, param=record)


# ---- a pruned net ------------------------------------------------------------------------------

ROWS_STRIDED = (2, 1, 1, 1, 1, 1, 1, 0, 0)  # stride 2 x 1, padding 1 all around, one group
ONE_TAP = (1, 1, 0, 0, 0, 0, 1, 0, 0)
SLOW_EPS = (100, *struct.unpack("<2H", struct.pack("<f", 1e-5)))  # a tenth of the way
ONLY_EPS = (0, *SLOW_EPS[1:])


def pruned_net(pool: Pool, features: int = 0, batch: int = 3) -> bytes:
    """6 x 5 pictures of two colours: a sparse convolution, a tracked normalisation, ReLU, a sparse
    matrix, three classes. With CLIP in the features it is clipped."""
    net = Image(batch, features)
    x, label = net.tensor(INPUT, batch, 6, 5, 2), net.tensor(LABELS, batch, dtype=1)
    w1, mean, var = net.weights(3, 3, 2, 4), net.param(4), net.param(4)
    w2, b2 = net.weights(60, 3), net.param(3)
    y, normal, kept = (net.tensor(ARENA, batch, 3, 5, 4) for _ in range(3))
    rstd, logits = net.tensor(ARENA, 4), net.tensor(ARENA, batch, 3)
    net.op(SPARSE_CONV, x, w1, NONE, y, words=ROWS_STRIDED)
    net.op(TRACKED_NORMALIZE, y, mean, var, normal, rstd, words=SLOW_EPS)
    net.op(RELU, normal, kept)
    net.op(SPARSE_CONV, kept, w2, b2, logits, words=ONE_TAP)
    forward = len(net.ops)
    d_logits, total = net.tensor(ARENA, batch, 3), net.tensor(ARENA, 1)
    d_kept, d_normal, d_y = (net.tensor(ARENA, batch, 3, 5, 4) for _ in range(3))
    net.op(CROSS_ENTROPY, logits, label, d_logits, total)
    net.op(SPARSE_CONV_DX, d_logits, w2, d_kept, words=ONE_TAP)
    net.op(RELU_DX, d_kept, kept, d_normal)
    net.op(BATCH_NORMALIZE_DX, d_normal, normal, rstd, d_y, words=ONLY_EPS)
    updates: list[tuple[int, Update]] = [
        (0, (SPARSE_CONV_UPDATE, (x, d_y), w1, ROWS_STRIDED)),
        (3, (SPARSE_CONV_UPDATE, (kept, d_logits), w2, ONE_TAP)),
        (4, (BIAS_UPDATE, (NONE, d_logits), b2, ())),
    ]
    scale = _scale(net, [update for _, update in updates])
    for record, (code, operands, w, words) in updates:
        net.op(code, *operands, w, scale, group=0, param=record, words=words)
    return net.bytes(forward, (x, label, logits, total), pool)


# ---- an int8 net with overlays -----------------------------------------------------------------

SAME_PADDED = (1, 1, 1, 1, 1, 1, 1, 0, 0)
HALVES = (2, 2, 0, 0, 0, 0, 0, 2, 2)  # windows of 2 x 2, side by side
COLUMN = (0, 1, 2, 1)  # of 2 rows, from column 1 on
BELOW_SIX = (0, *struct.unpack("<2H", struct.pack("<f", 6.0)))


def _int8_parameters(net: Image) -> SimpleNamespace:
    """The parameters, with their ranges, steps and lists, by name."""
    of_x, of_w1 = net.range(), net.steps(4)
    w1 = net.frozen_param(3, 3, 2, 4, scale=of_w1)
    outputs = net.channels(1, 3)
    part1 = net.overlay(3, 3, 2, 2, scale=net.steps(2), index=outputs, axis=OUT)
    b1, of_y1, of_w2 = net.frozen_param(4), net.range(), net.steps(4)
    w2 = net.frozen_param(1, 1, 4, 4, scale=of_w2)
    inputs = net.channels(0, 2)
    part2 = net.overlay(1, 1, 2, 4, scale=of_w2, index=inputs, axis=IN)
    of_y2, of_sum, of_mean = net.range(), net.range(), net.range()
    w3, b3 = net.int8_param(4, 3, scale=net.steps(3)), net.param(3)
    return SimpleNamespace(
        b3=b3,
        w2=w2,
        b1=b1,
        w1=w1,
        w3=w3,
        of_x=of_x,
        part1=part1,
        part2=part2,
        of_w2=of_w2,
        of_y2=of_y2,
        of_y1=of_y1,
        of_w1=of_w1,
        inputs=inputs,
        of_sum=of_sum,
        of_mean=of_mean,
        outputs=outputs,
    )


def _int8_tensors(net: Image, t: SimpleNamespace) -> None:
    """Those of a batch, added to the names."""
    batch = net.batch

    def int8(region: int, *dims: int, scale: int) -> int:
        return net.tensor(region, *dims, dtype=I8, scale=scale)

    x, label = int8(INPUT, batch, 5, 5, 2, scale=t.of_x), net.tensor(LABELS, batch, dtype=I32)
    m1, m2 = int8(ARENA, 3, 3, 2, 4, scale=t.of_w1), int8(ARENA, 1, 1, 4, 4, scale=t.of_w2)
    y1, most = (
        int8(ARENA, batch, 5, 5, 4, scale=t.of_y1),
        int8(ARENA, batch, 2, 2, 4, scale=t.of_y1),
    )
    y2, total, again = (
        int8(ARENA, batch, 2, 2, 4, scale=of) for of in (t.of_y2, t.of_sum, t.of_sum)
    )
    mean, column = (
        int8(ARENA, batch, n, 1, 4, scale=s) for n, s in ((1, t.of_mean), (2, t.of_sum))
    )
    taken = int8(ARENA, batch, 2, 2, 2, scale=t.of_y1)
    mask, codes = (net.tensor(ARENA, batch, words, dtype=I32) for words in (4, 1))
    logits, d_logits = net.tensor(ARENA, batch, 3), net.tensor(ARENA, batch, 3)
    d_mean, loss = net.tensor(ARENA, batch, 1, 1, 4), net.tensor(ARENA, 1)
    d_total, d_y2, d_most = (net.tensor(ARENA, batch, 2, 2, 4) for _ in range(3))
    d_y1, d_kept = (net.tensor(ARENA, batch, 5, 5, 4) for _ in range(2))
    d_part = net.tensor(ARENA, batch, 5, 5, 2)
    t.__dict__.update(
        x=x,
        label=label,
        m1=m1,
        m2=m2,
        y1=y1,
        most=most,
        y2=y2,
        total=total,
        again=again,
        mean=mean,
        column=column,
        taken=taken,
        mask=mask,
        codes=codes,
        logits=logits,
        d_logits=d_logits,
        d_mean=d_mean,
        loss=loss,
        d_total=d_total,
        d_y2=d_y2,
        d_most=d_most,
        d_y1=d_y1,
        d_kept=d_kept,
        d_part=d_part,
    )


def _int8_forward(net: Image, t: SimpleNamespace) -> None:
    net.op(MERGE, t.w1, t.part1, t.outputs, t.m1, words=(OUT,))
    net.op(CONV8, t.x, t.m1, t.b1, t.y1, words=SAME_PADDED)
    net.op(MASK8, t.y1, t.mask, words=BELOW_SIX)
    net.op(MAX_POOL8, t.y1, t.most, t.codes, words=HALVES)
    net.op(MERGE, t.w2, t.part2, t.inputs, t.m2, words=(IN,))
    net.op(CONV8, t.most, t.m2, NONE, t.y2, words=ONE_TAP)
    net.op(ADD8, t.most, t.y2, t.total)
    net.op(CROP, t.total, t.column, words=COLUMN)
    net.op(PASTE, t.total, t.column, t.again, words=COLUMN)
    net.op(AVG_POOL8, t.again, t.mean, words=HALVES)
    net.op(LINEAR, t.mean, t.w3, t.b3, t.logits)


def _int8_back(net: Image, t: SimpleNamespace) -> None:
    net.op(CROSS_ENTROPY, t.logits, t.label, t.d_logits, t.loss)
    net.op(LINEAR_DX, t.d_logits, t.w3, t.d_mean)
    net.op(AVG_POOL_DX, t.d_mean, t.d_total, words=HALVES)
    net.op(RELU_DX, t.d_total, t.y2, t.d_y2)
    net.op(TAKE, t.most, t.inputs, t.taken)
    net.op(CONV_DX, t.d_y2, t.m2, t.d_most, words=ONE_TAP)
    net.op(MAX_POOL_DX, t.d_most, t.codes, t.d_y1, words=HALVES)
    net.op(MASK_DX, t.d_y1, t.mask, t.d_kept)
    net.op(TAKE, t.d_kept, t.outputs, t.d_part)
    updates: list[tuple[int, Update]] = [
        (2, (CONV_UPDATE, (t.x, t.d_part), t.part1, SAME_PADDED)),
        (6, (CONV_UPDATE, (t.taken, t.d_y2), t.part2, ONE_TAP)),
        (10, (LINEAR_UPDATE, (t.mean, t.d_logits), t.w3, ())),
        (11, (BIAS_UPDATE, (NONE, t.d_logits), t.b3, ())),
    ]
    scale = _scale(net, [update for _, update in updates])
    for record, (code, operands, w, words) in updates:
        net.op(code, *operands, w, scale, group=0, param=record, words=words)


def int8_net(features: int = 0, batch: int = 2) -> bytes:
    """5 x 5 pictures of two colours: a convolution of which outputs 1 and 3 train, a maximum, a
    tap of which inputs 0 and 2 train, a sum with a column cut out and put back, a mean, three
    classes. With CLIP in the features it
    is clipped."""
    net = Image(batch, features)
    t = _int8_parameters(net)
    _int8_tensors(net, t)
    _int8_forward(net, t)
    forward = len(net.ops)
    _int8_back(net, t)
    return net.bytes(forward, (t.x, t.label, t.logits, t.loss))
