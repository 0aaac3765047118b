"""ft_check: every kind of damage has its status, and what passes runs in the stated memory."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.image import read_image, write_image
from fedtiny.engine.native import check_image
from fedtiny.engine.program import Program
from fedtiny.engine.runtime import build
from fedtiny.errors import ImageError
from fedtiny.values import Sgd
from tests.engine import handmade
from tests.engine.handmade import ALWAYS, HEADER_BYTES, NONE, OP_BYTES, PARAM_BYTES, TENSOR_BYTES

# 3-4-5 relu, batch 2. Tensors: 0 x; 1 W, 2 b, 3 y, 4 relu(y); 5 W, 6 b, 7 logits; 8 label,
# 9 gradient, 10 loss, 11 dx, 12 relu_dx. Ops: 0 linear, 1 relu, 2 linear, 3 cross-entropy,
# 4 linear_dx, 5 relu_dx, 6 to 9 updates of W2, b2, W1, b1.
IMAGE = handmade.mlp([3, 4, 5], "relu", "cross_entropy", batch=2)
MSE_IMAGE = handmade.mlp([3, 4, 5], "relu", "mse", batch=2)
CLIPPED = handmade.mlp([3, 4, 5], "relu", "cross_entropy", 2, handmade.CLIP)
N_TENSORS, N_PARAMS, N_OPS = 13, 4, 10
PARAMS = HEADER_BYTES + N_TENSORS * TENSOR_BYTES  # where their table stands
X, W, B, Y, LOGITS, LABEL, GRADIENT, LOSS, DX = 0, 1, 2, 3, 7, 8, 9, 10, 11

# Pooled convolution, group norm, affine, ReLU with a mask, depthwise convolution, mean, 3 classes.
# Tensors: 0 x, 1 label, 2 to 8 parameters, 9 pooled, 10 normal, 11 y, 12 kept, 13 codes, 14 mask,
# 15 rstd, 16 deep, 17 mean, 18 logits, 21 d_mean, 22 d_deep, 23 d_kept, 24 d_y, 25 d_normal,
# 26 d_pooled. Ops: 0 conv_pool, 1 group_normalize, 2 affine, 3 relu, 4 conv, 5 avg_pool, 6 linear,
# 7 loss, 8 linear_dx, 9 avg_pool_dx, 10 conv_dx, 11 mask_dx, 12 affine_dx, 13 group_normalize_dx,
# 14 conv_pool_update, ... 18 conv_update.
CONV_NET = handmade.conv_net()
CLIPPED_CONV_NET = handmade.conv_net(handmade.CLIP)
KERNEL, POOLED, KEPT, CODES, MASK, RSTD, DEEP = 2, 9, 12, 13, 14, 15, 16
STRIDE, PAD, GROUPS, POOL_H, POOL_W, NUMBER, LOW, HIGH = 1, 3, 7, 8, 9, 1, 2, 3

Edit = tuple[int, str, int]
"""Byte, struct format, value."""


def header(field: str) -> int:
    """Byte offset of a field of the header."""
    words = ["arena", "params", "state", "trained", "vector"]
    halves = ["n_tensors", "n_params", "n_ops", "n_forward", "batch", "features"]
    halves += ["input", "label", "output", "loss"]
    tables = ["tensors_at", "params_at", "ops_at", "card_at", "card_bytes"]
    pool = {"live_capacity": 108, "live_at": 112, "live_form": 116, "n_pruned": 118, "bucket": 120,
            "frozen": 124, "consts_at": 128, "const_words": 132}  # fmt: skip
    if field in pool:
        return pool[field]
    if field in words:
        return 48 + 4 * words.index(field)
    return 68 + 2 * halves.index(field) if field in halves else 88 + 4 * tables.index(field)


def table(image: bytes, name: str) -> int:
    """Byte offset of a table."""
    return int(struct.unpack_from("<I", image, header(name))[0])


def tensor(index: int, field: str, image: bytes = IMAGE) -> int:
    """Byte offset of a field of a tensor."""
    fields = {"dtype": 0, "region": 1, "ndim": 2, "reserved": 3, "offset": 4}
    fields |= {f"dim{i}": 8 + 4 * i for i in range(4)} | {"scale": 24, "reserved2": 26}
    return table(image, "tensors_at") + TENSOR_BYTES * index + fields[field]


def param(index: int, field: str, image: bytes = IMAGE) -> int:
    """Byte offset of a field of a parameter record."""
    fields = {"tensor": 0, "group": 2, "trained": 3, "vector_at": 4, "count": 8, "state_at": 12,
              "pruned": 16, "index": 20, "axis": 22, "form": 23}  # fmt: skip
    return table(image, "params_at") + PARAM_BYTES * index + fields[field]


def op(index: int, field: str, k: int = 0, image: bytes = IMAGE) -> int:
    """Byte offset of a field of an op."""
    fields = {"code": 0, "group": 1, "flags": 2, "reserved": 3, "t": 4, "attr": 20}
    return table(image, "ops_at") + OP_BYTES * index + fields[field] + 2 * k


def damaged(image: bytes, *edits: Edit) -> bytes:
    """The image after the edits, with the checksum that its bytes need."""
    changed = bytearray(image)
    for at, form, value in edits:
        struct.pack_into("<" + form, changed, at, value)
    struct.pack_into("<I", changed, 12, zlib.crc32(changed[16:]))
    return bytes(changed)


def status_of(image: bytes) -> str:
    """FT_OK, or the status in the error's message."""
    try:
        check_image(image)
    except ImageError as error:
        message = str(error)
        return message[message.index("FT_E_") :].split(")")[0]
    return "FT_OK"


DAMAGE: list[tuple[str, str, list[Edit]]] = [
    ("another magic", "FT_E_MAGIC", [(0, "B", 0x58)]),
    ("a later version", "FT_E_VERSION", [(4, "H", 5)]),
    ("a longer header", "FT_E_VERSION", [(6, "H", 140)]),
    ("more bytes than there are", "FT_E_SIZE", [(8, "I", len(IMAGE) + 1)]),
    ("fewer bytes than a header", "FT_E_SIZE", [(8, "I", 135)]),
    ("constants without words", "FT_E_HEADER", [(header("consts_at"), "I", 136)]),
    ("constants behind the end", "FT_E_HEADER", [(header("const_words"), "I", 1)]),
    ("a frozen region above the limit", "FT_E_HEADER", [(header("frozen"), "I", (1 << 28) + 1)]),
    ("a table inside the header", "FT_E_HEADER", [(header("tensors_at"), "I", 132)]),
    ("a table at an odd byte", "FT_E_HEADER", [(header("params_at"), "I", PARAMS + 2)]),
    ("a table behind the end", "FT_E_HEADER", [(header("ops_at"), "I", len(IMAGE) & ~3)]),
    ("a table at 2^32 - 4", "FT_E_HEADER", [(header("ops_at"), "I", 0xFFFFFFFC)]),
    ("too many tensors", "FT_E_HEADER", [(header("n_tensors"), "H", 0xFFFF)]),
    ("a card behind the end", "FT_E_HEADER", [(header("card_bytes"), "I", 3)]),
    ("an arena above the limit", "FT_E_HEADER", [(header("arena"), "I", (1 << 30) + 4)]),
    ("parameters above the limit", "FT_E_HEADER", [(header("params"), "I", (1 << 28) + 1)]),
    ("a vector above the limit", "FT_E_HEADER", [(header("vector"), "I", (1 << 28) + 1)]),
    ("a state without a feature", "FT_E_HEADER", [(header("state"), "I", 41)]),
    ("a feature without its state", "FT_E_HEADER", [(header("features"), "H", handmade.PROX)]),
    ("an unknown feature", "FT_E_HEADER", [(header("features"), "H", 16)]),
    ("more trained than 41 words hold", "FT_E_HEADER", [(header("trained"), "I", 165)]),
    ("an empty batch", "FT_E_HEADER", [(header("batch"), "H", 0)]),
    ("more forward ops than ops", "FT_E_HEADER", [(header("n_forward"), "H", N_OPS + 1)]),
    ("an unknown region", "FT_E_TENSOR", [(tensor(Y, "region"), "B", 7)]),
    ("a tensor behind the frozen region", "FT_E_TENSOR", [(tensor(Y, "region"), "B", 5)]),
    ("floats among the constants", "FT_E_TENSOR", [(tensor(Y, "region"), "B", 6)]),
    ("a scale of floats", "FT_E_TENSOR", [(tensor(Y, "scale"), "H", LOSS)]),
    ("a reserved half of a tensor", "FT_E_TENSOR", [(tensor(Y, "reserved2"), "H", 1)]),
    ("live weights without a pool", "FT_E_TENSOR", [(tensor(W, "region"), "B", handmade.LIVE)]),
    ("a pool without a form", "FT_E_HEADER", [(header("live_capacity"), "I", 1)]),
    ("a bucket without a pool", "FT_E_HEADER", [(header("bucket"), "I", 1)]),
    ("a pool of nothing", "FT_E_HEADER", [(header("live_form"), "H", handmade.GAPS)]),
    ("a type that there is not", "FT_E_TENSOR", [(tensor(Y, "dtype"), "B", 3)]),
    ("int8 in a net of floats", "FT_E_TENSOR",
        [(tensor(Y, "dtype"), "B", 2), (tensor(Y, "scale"), "H", LOSS)]),
    ("integers among the parameters", "FT_E_TENSOR", [(tensor(W, "dtype"), "B", 1)]),
    ("integers as the loss", "FT_E_TENSOR", [(tensor(LOSS, "dtype"), "B", 1)]),
    ("a reserved byte of a tensor", "FT_E_TENSOR", [(tensor(Y, "reserved"), "B", 1)]),
    ("five axes", "FT_E_TENSOR", [(tensor(Y, "ndim"), "B", 5)]),
    ("an extent of 0", "FT_E_TENSOR", [(tensor(Y, "dim1"), "I", 0)]),
    ("an unused axis", "FT_E_TENSOR", [(tensor(Y, "dim2"), "I", 2)]),
    ("2^64 floats", "FT_E_TENSOR", [(tensor(W, f"dim{i}"), "I", 1 << 16) for i in range(4)]
        + [(tensor(W, "ndim"), "B", 4)]),
    ("an offset between floats", "FT_E_TENSOR", [(tensor(Y, "offset"), "I", 2)]),
    ("a tensor behind the arena", "FT_E_TENSOR", [(tensor(DX, "offset"), "I", 1 << 20)]),
    ("an end above 2^32", "FT_E_TENSOR", [(tensor(DX, "offset"), "I", 0xFFFFFFFC)]),
    ("another batch", "FT_E_SHAPE", [(tensor(Y, "dim0"), "I", 1)]),
    ("integers in sums", "FT_E_REGION", [(tensor(Y, "dtype"), "B", 1)]),
    ("an input in the arena", "FT_E_TENSOR", [(header("input"), "H", Y)]),
    ("no input", "FT_E_TENSOR", [(header("input"), "H", N_TENSORS)]),
    ("an input inside its buffer", "FT_E_TENSOR", [(tensor(X, "offset"), "I", 4)]),
    ("labels of another batch", "FT_E_TENSOR", [(tensor(LABEL, "dim0"), "I", 3)]),
    ("labels of an unknown type", "FT_E_TENSOR", [(tensor(LABEL, "dtype"), "B", 2)]),
    ("an output among the parameters", "FT_E_TENSOR", [(header("output"), "H", W)]),
    ("no output", "FT_E_TENSOR", [(header("output"), "H", NONE)]),
    ("a loss of many floats", "FT_E_TENSOR", [(header("loss"), "H", DX)]),
    ("a parameter without a tensor", "FT_E_PARAM", [(param(0, "tensor"), "H", N_TENSORS)]),
    ("a parameter in the arena", "FT_E_PARAM", [(param(0, "tensor"), "H", Y)]),
    ("group 32", "FT_E_PARAM", [(param(0, "group"), "B", 32)]),
    ("half trained", "FT_E_PARAM", [(param(0, "trained"), "B", 2)]),
    ("an unknown form", "FT_E_PARAM", [(param(0, "form"), "B", 2)]),
    ("a range of many floats", "FT_E_PARAM", [(param(0, "form"), "B", 1)]),
    ("a list of no overlay", "FT_E_PARAM", [(param(0, "index"), "H", X)]),
    ("an overlay of no parameter", "FT_E_PARAM", [(param(0, "axis"), "B", 1)]),
    ("an axis that there is not", "FT_E_PARAM", [(param(1, "axis"), "B", 3)]),
    ("a dense parameter in the pool", "FT_E_PARAM", [(param(0, "pruned"), "I", 1)]),
    ("a count that is not the size", "FT_E_PARAM", [(param(0, "count"), "I", 11)]),
    ("two in one place of the vector", "FT_E_PARAM", [(param(1, "vector_at"), "I", 11)]),
    ("two in one place of the memory", "FT_E_PARAM", [(tensor(B, "offset"), "I", 44)]),
    ("two in one place of the state", "FT_E_PARAM", [(param(1, "state_at"), "I", 11)]),
    ("a parameter behind the vector", "FT_E_PARAM", [(param(3, "vector_at"), "I", 37)]),
    ("an end of the vector above 2^32", "FT_E_PARAM", [(param(3, "vector_at"), "I", 0xFFFFFFFF)]),
    ("a parameter behind the state", "FT_E_PARAM", [(param(3, "state_at"), "I", 37)]),
    ("an unknown code", "FT_E_OP", [(op(1, "code"), "B", 99)]),
    ("a flag", "FT_E_OP", [(op(1, "flags"), "B", 1)]),
    ("a reserved byte of an op", "FT_E_OP", [(op(1, "reserved"), "B", 1)]),
    ("an attribute that the op has not", "FT_E_OP", [(op(1, "attr"), "H", 1)]),
    ("a second attribute of an update", "FT_E_OP", [(op(6, "attr", 1), "H", 1)]),
    ("a condition on a forward op", "FT_E_OP", [(op(1, "group"), "B", 0)]),
    ("an operand without a tensor", "FT_E_OP", [(op(1, "t"), "H", N_TENSORS)]),
    ("a missing operand", "FT_E_OP", [(op(1, "t", 1), "H", NONE)]),
    ("an operand too many", "FT_E_OP", [(op(1, "t", 3), "H", X)]),
    ("an eighth operand", "FT_E_OP", [(op(1, "t", 7), "H", X)]),
    ("a scale without clipping", "FT_E_OP", [(op(6, "t", 3), "H", LOSS)]),
    ("an update of another record", "FT_E_OP", [(op(6, "attr"), "H", 0)]),
    ("an update without a record", "FT_E_OP", [(op(6, "attr"), "H", N_PARAMS)]),
    ("an update in another group", "FT_E_OP", [(op(6, "group"), "B", 2)]),
    ("an update that always runs", "FT_E_OP", [(op(6, "group"), "B", ALWAYS)]),
    ("a loss among the forward ops", "FT_E_OP", [(header("n_forward"), "H", 4)]),
    ("no loss", "FT_E_OP", [(header("n_ops"), "H", 3)]),
    ("an update of a frozen parameter", "FT_E_REGION", [(param(2, "trained"), "B", 0)]),
    ("weights in the input", "FT_E_REGION", [(op(0, "t", 1), "H", X)]),
    ("an output in the input", "FT_E_REGION", [(op(1, "t", 1), "H", X)]),
    ("an output among the weights", "FT_E_REGION", [(op(1, "t", 1), "H", W)]),
    ("a loss of another output", "FT_E_REGION", [(op(3, "t"), "H", DX)]),
    ("a loss that is stored elsewhere", "FT_E_REGION", [(op(3, "t", 3), "H", GRADIENT)]),
    ("a label that is not the label", "FT_E_REGION", [(op(3, "t", 1), "H", X)]),
    ("classes compared as numbers", "FT_E_REGION", [(op(3, "code"), "B", handmade.MSE)]),
    ("a product over its input", "FT_E_REGION", [(tensor(DX, "offset"), "I", 112)]),
    ("half over its input", "FT_E_REGION", [(tensor(4, "offset"), "I", 4)]),
    ("the loss over the gradient", "FT_E_REGION", [(tensor(LOSS, "offset"), "I", 104)]),
    ("weights of another layer", "FT_E_SHAPE", [(op(0, "t", 1), "H", 5)]),
    ("a bias of another layer", "FT_E_SHAPE", [(op(0, "t", 2), "H", 6)]),
    ("an output of another width", "FT_E_SHAPE", [(op(1, "t", 1), "H", GRADIENT)]),
    ("weights with three axes", "FT_E_SHAPE", [(tensor(W, "ndim"), "B", 3)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "edits"), [row[1:] for row in DAMAGE], ids=[r[0] for r in DAMAGE]
)
def test_each_damage_has_its_status(status: str, edits: list[Edit]) -> None:
    assert status_of(IMAGE) == "FT_OK"
    assert status_of(damaged(IMAGE, *edits)) == status


def conv_op(index: int, field: str, k: int = 0) -> int:
    return op(index, field, k, CONV_NET)


def conv_tensor(index: int, field: str) -> int:
    return tensor(index, field, CONV_NET)


CONV_DAMAGE: list[tuple[str, str, list[Edit]]] = [
    ("a stride of 0", "FT_E_OP", [(conv_op(4, "attr", STRIDE), "H", 0)]),
    ("a pad as large as the kernel", "FT_E_OP", [(conv_op(4, "attr", PAD), "H", 2)]),
    ("no groups", "FT_E_OP", [(conv_op(4, "attr", GROUPS), "H", 0)]),
    ("groups that do not divide", "FT_E_OP", [(conv_op(4, "attr", GROUPS), "H", 3)]),
    ("groups of too many inputs", "FT_E_SHAPE", [(conv_op(4, "attr", GROUPS), "H", 2)]),
    ("a pooling of a plain convolution", "FT_E_OP", [(conv_op(4, "attr", POOL_H), "H", 1)]),
    ("groups of a mean", "FT_E_OP", [(conv_op(5, "attr", GROUPS), "H", 1)]),
    ("a mean of nothing", "FT_E_OP", [(conv_op(5, "attr", POOL_W), "H", 0)]),
    ("a window larger than the image", "FT_E_SHAPE", [(conv_op(5, "attr", POOL_H), "H", 3)]),
    ("no pooling of a pooled convolution", "FT_E_OP", [(conv_op(0, "attr", POOL_H), "H", 0)]),
    ("a pooling of 257 taps", "FT_E_OP", [(conv_op(0, "attr", POOL_H), "H", 257)]),
    ("256 x 256 taps", "FT_E_OP", [(conv_op(0, "attr", k), "H", 256) for k in (POOL_H, POOL_W)]),
    ("another stride", "FT_E_SHAPE", [(conv_op(0, "attr", STRIDE), "H", 2)]),
    ("a bias of another width", "FT_E_SHAPE", [(conv_op(0, "t", 2), "H", 8)]),
    ("a kernel of two axes", "FT_E_SHAPE", [(conv_op(0, "t", 1), "H", 7)]),
    ("a kernel in the input", "FT_E_REGION", [(conv_op(0, "t", 1), "H", 0)]),
    ("a kernel in the output", "FT_E_REGION", [(conv_op(0, "t", 1), "H", POOLED)]),
    ("an image of one axis", "FT_E_SHAPE",
        [(conv_tensor(DEEP, f"dim{i}"), "I", 1) for i in (1, 2, 3)]
        + [(conv_tensor(DEEP, "ndim"), "B", 1)]),
    ("too few words of codes", "FT_E_SHAPE", [(conv_tensor(CODES, "dim1"), "I", 1)]),
    ("too many words of codes", "FT_E_SHAPE", [(conv_tensor(CODES, "dim1"), "I", 3)]),
    ("codes for one sample", "FT_E_SHAPE", [(conv_tensor(CODES, "dim0"), "I", 1)]),
    ("codes as numbers", "FT_E_REGION", [(conv_tensor(CODES, "dtype"), "B", 0)]),
    ("codes over the output", "FT_E_REGION", [(conv_tensor(CODES, "offset"), "I", 0)]),
    ("a mask of two words", "FT_E_SHAPE", [(conv_tensor(MASK, "dim1"), "I", 2)]),
    ("a mask as numbers", "FT_E_REGION", [(conv_tensor(MASK, "dtype"), "B", 0)]),
    ("a number as a mask", "FT_E_REGION", [(conv_op(11, "t", 1), "H", KEPT)]),
    ("a slope that is not a number", "FT_E_OP", [(conv_op(11, "attr", HIGH), "H", 0x7FC0)]),
    ("a slope below 0", "FT_E_OP", [(conv_op(11, "attr", HIGH), "H", 0xBF80)]),
    ("three groups of four channels", "FT_E_SHAPE", [(conv_op(1, "attr", NUMBER), "H", 3),
        (conv_tensor(RSTD, "dim1"), "I", 3)]),
    ("groups without a rstd", "FT_E_SHAPE", [(conv_op(1, "attr", NUMBER), "H", 4)]),
    ("no groups of a norm", "FT_E_OP", [(conv_op(1, "attr", NUMBER), "H", 0)]),
    ("an eps of 0", "FT_E_OP", [(conv_op(1, "attr", k), "H", 0) for k in (LOW, HIGH)]),
    ("an infinite eps", "FT_E_OP", [(conv_op(1, "attr", LOW), "H", 0),
        (conv_op(1, "attr", HIGH), "H", 0x7F80)]),
    ("an attribute behind the eps", "FT_E_OP", [(conv_op(1, "attr", 4), "H", 1)]),
    ("a norm over a vector", "FT_E_SHAPE",
        [(conv_tensor(i, f"dim{k}"), "I", 1) for i in (9, 10) for k in (1, 2, 3)]
        + [(conv_tensor(i, "ndim"), "B", 1) for i in (9, 10)]
        + [(conv_op(0, "t", 3), "H", 11)]),
    ("an attribute of a window among the first", "FT_E_OP", [(conv_op(4, "attr", 0), "H", 1)]),
    ("a factor of another width", "FT_E_SHAPE", [(conv_op(2, "t", 1), "H", 8)]),
    ("a gradient of another image", "FT_E_SHAPE", [(conv_op(10, "t", 2), "H", 17)]),
    ("the update of a bias by a convolution", "FT_E_SHAPE", [(conv_op(18, "t", 2), "H", 3)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "edits"), [row[1:] for row in CONV_DAMAGE], ids=[r[0] for r in CONV_DAMAGE]
)
def test_each_damage_of_a_convolutional_net_has_its_status(status: str, edits: list[Edit]) -> None:
    assert status_of(CONV_NET) == "FT_OK"
    assert status_of(damaged(CONV_NET, *edits)) == status


# 72 and 180 weights, of which 40 live. Dense floats: mean, var, bias, 11 in all; the pool: 40
# values, twice 3 starts, 20 words of gaps. Tensors: 0 x, 1 label, 2 kernel, 3 mean, 4 var,
# 5 matrix, 6 bias, 7 y, 8 normal, 9 kept, 10 rstd, 11 logits, 12 d_logits, 13 loss, 14 d_kept,
# 15 d_normal, 16 d_y. Parameters: 0 kernel, 1 mean, 2 var, 3 matrix, 4 bias. Ops: 0 sparse_conv,
# 1 tracked_normalize, 2 relu, 3 sparse_conv, 4 loss, 5 sparse_conv_dx, 6 relu_dx,
# 7 batch_normalize_dx, 8, 9 sparse_conv_update, 10 bias_update.
PRUNED = handmade.pruned_net(handmade.Pool(40, handmade.GAPS, bucket=212))
BITMAP = handmade.pruned_net(handmade.Pool(40, handmade.BITMAP, bucket=212), features=15)
WEIGHTS, MEAN, VAR, MATRIX, NORMAL, LOGITS_OF_PRUNED = 2, 3, 4, 5, 8, 11


def live_op(index: int, field: str, k: int = 0) -> int:
    return op(index, field, k, PRUNED)


def live_tensor(index: int, field: str) -> int:
    return tensor(index, field, PRUNED)


def live_param(index: int, field: str) -> int:
    return param(index, field, PRUNED)


LIVE_DAMAGE: list[tuple[str, str, list[Edit]]] = [
    ("an unknown index", "FT_E_HEADER", [(header("live_form"), "H", 3)]),
    ("an index of another size", "FT_E_HEADER", [(header("live_form"), "H", handmade.BITMAP)]),
    ("no form", "FT_E_HEADER", [(header("live_form"), "H", 0)]),
    ("no room", "FT_E_HEADER", [(header("live_capacity"), "I", 0)]),
    ("more room than memory", "FT_E_HEADER", [(header("live_capacity"), "I", 41),
        (header("trained"), "I", 52)]),
    ("more room than weights", "FT_E_HEADER", [(header("live_capacity"), "I", 253),
        (header("params"), "I", 77 + 213 + 107), (header("trained"), "I", 11 + 253)]),
    ("a pool that ends before the memory", "FT_E_HEADER", [(header("params"), "I", 78)]),
    ("a pool behind the memory", "FT_E_HEADER", [(header("live_at"), "I", 78)]),
    ("a pool over the dense parameters", "FT_E_TENSOR", [(header("live_at"), "I", 10),
        (header("params"), "I", 76)]),
    ("a bucket above all weights", "FT_E_HEADER", [(header("bucket"), "I", 253)]),
    ("state for no live value", "FT_E_PARAM", [(header("trained"), "I", 50)]),
    ("state for less than the pool", "FT_E_HEADER", [(header("trained"), "I", 39)]),
    ("one pruned parameter less", "FT_E_TENSOR", [(header("n_pruned"), "H", 1)]),
    ("one pruned parameter more", "FT_E_PARAM", [(header("n_pruned"), "H", 3)]),
    ("an ordinal that is not the next", "FT_E_PARAM", [(live_param(3, "pruned"), "I", 1)]),
    ("weights of another ordinal", "FT_E_PARAM", [(live_tensor(MATRIX, "offset"), "I", 0)]),
    ("an ordinal behind the last", "FT_E_TENSOR", [(live_tensor(MATRIX, "offset"), "I", 2)]),
    ("live weights with a place in the state", "FT_E_PARAM", [(live_param(3, "state_at"), "I", 1)]),
    ("a pruned record of dense weights", "FT_E_PARAM", [(live_param(1, "pruned"), "I", 2)]),
    ("a dense record of live weights", "FT_E_PARAM", [(live_param(3, "pruned"), "I", 0)]),
    ("live integers", "FT_E_TENSOR", [(live_tensor(MATRIX, "dtype"), "B", 1)]),
    ("live weights of one axis", "FT_E_TENSOR", [(live_tensor(MATRIX, "ndim"), "B", 1),
        (live_tensor(MATRIX, "dim0"), "I", 180), (live_tensor(MATRIX, "dim1"), "I", 1)]),
    ("a second tensor of an ordinal", "FT_E_TENSOR",
        [(live_tensor(10, "region"), "B", handmade.LIVE),
        (live_tensor(10, "ndim"), "B", 2), (live_tensor(10, "offset"), "I", 0)]),
    ("live weights in a dense op", "FT_E_REGION", [(live_op(3, "code"), "B", handmade.LINEAR),
        *((live_op(3, "attr", k), "H", 0) for k in range(1, 8))]),
    ("dense weights in a sparse op", "FT_E_REGION", [(live_op(3, "t", 1), "H", 6)]),
    ("live weights as an output", "FT_E_REGION", [(live_op(2, "t", 1), "H", MATRIX)]),
    ("live weights as an input", "FT_E_REGION", [(live_op(2, "t", 0), "H", MATRIX)]),
    ("live weights as the mean", "FT_E_REGION", [(live_op(1, "t", 1), "H", MATRIX)]),
    ("groups of too many inputs", "FT_E_SHAPE", [(live_op(0, "attr", GROUPS), "H", 2)]),
    ("a window of a matrix", "FT_E_SHAPE", [(live_op(3, "attr", STRIDE + 5), "H", 0),
        (live_tensor(9, "dim3"), "I", 3)]),
    ("a stride of a matrix", "FT_E_OP", [(live_op(3, "attr", STRIDE), "H", 0)]),
    ("a pooling of a sparse convolution", "FT_E_OP", [(live_op(0, "attr", POOL_H), "H", 1)]),
    ("a bias of another width", "FT_E_SHAPE", [(live_op(3, "t", 2), "H", MEAN)]),
    ("outputs of another width", "FT_E_SHAPE", [(live_op(3, "t", 3), "H", 10)]),
    ("an update of another record", "FT_E_OP", [(live_op(9, "attr"), "H", 0)]),
    ("an update of another layer", "FT_E_SHAPE", [(live_op(9, "t", 2), "H", WEIGHTS)]),
    ("an update of weights that do not train", "FT_E_REGION", [(live_param(3, "trained"), "B", 0)]),
    ("a dense update of live weights", "FT_E_OP",
        [(live_op(9, "code"), "B", handmade.LINEAR_UPDATE)]),
    ("a mean that is no parameter", "FT_E_REGION", [(live_op(1, "t", 1), "H", 10)]),
    ("a mean that does not train", "FT_E_REGION", [(live_param(1, "trained"), "B", 0)]),
    ("a variance that does not train", "FT_E_REGION", [(live_param(2, "trained"), "B", 0)]),
    ("one parameter for both", "FT_E_REGION", [(live_op(1, "t", 2), "H", MEAN)]),
    ("a variance of another width", "FT_E_SHAPE", [(live_op(1, "t", 2), "H", 6)]),
    ("an rstd in the output", "FT_E_REGION", [(live_tensor(10, "offset"), "I", 720)]),
    ("more than all of the way", "FT_E_OP", [(live_op(1, "attr", NUMBER), "H", 1001)]),
    ("none of the way", "FT_E_OP", [(live_op(1, "attr", NUMBER), "H", 0)]),
    ("an eps below 0", "FT_E_OP", [(live_op(1, "attr", HIGH), "H", 0xBF80)]),
    ("a norm that forgets rstd", "FT_E_OP", [(live_op(1, "t", 4), "H", NONE)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "edits"), [row[1:] for row in LIVE_DAMAGE], ids=[r[0] for r in LIVE_DAMAGE]
)
def test_each_damage_of_a_pruned_net_has_its_status(status: str, edits: list[Edit]) -> None:
    assert status_of(PRUNED) == status_of(BITMAP) == "FT_OK"
    assert status_of(damaged(PRUNED, *edits)) == status


def test_statistics_of_one_row_are_not_tracked() -> None:
    """A single pixel of a single sample has no variance; two have one."""
    assert status_of(tracked_pixels(1)) == "FT_E_SHAPE"
    assert status_of(tracked_pixels(2)) == "FT_OK"


def tracked_pixels(count: int) -> bytes:
    """One sample of so many pixels, normalised, against targets."""
    net = handmade.Image(batch=1)
    x, label = (net.tensor(region, 1, count, 1) for region in (handmade.INPUT, handmade.LABELS))
    mean, var = net.param(1), net.param(1)
    y, dy = net.tensor(handmade.ARENA, 1, count, 1), net.tensor(handmade.ARENA, 1, count, 1)
    rstd, total = net.tensor(handmade.ARENA, 1), net.tensor(handmade.ARENA, 1)
    net.op(handmade.TRACKED_NORMALIZE, x, mean, var, y, rstd, words=handmade.SLOW_EPS)
    net.op(handmade.MSE, y, label, dy, total)
    return net.bytes(1, (x, label, y, total))


def sparse_layer(inputs: int, outputs: int, groups: int = 1) -> bytes:
    """One tap over a single pixel of two inputs; `inputs` are those of each weight."""
    net = handmade.Image(batch=1)
    x, label = net.tensor(handmade.INPUT, 1, 1, 1, 2), net.tensor(handmade.LABELS, 1, outputs)
    y, dy = (net.tensor(handmade.ARENA, 1, 1, 1, outputs) for _ in range(2))
    w, total = net.weights(1, 1, inputs, outputs), net.tensor(handmade.ARENA, 1)
    net.op(handmade.SPARSE_CONV, x, w, NONE, y, words=(1, 1, 0, 0, 0, 0, groups, 0, 0))
    net.op(handmade.MSE, y, label, dy, total)
    return net.bytes(1, (x, label, y, total), handmade.Pool(1, handmade.GAPS))


def test_a_sparse_layer_fits_into_the_tiles_of_a_host() -> None:
    """8 * (outputs + 1 tap) <= 2^18: 2^15 - 1 outputs are the most."""
    assert status_of(sparse_layer(2, 32_767)) == "FT_OK"
    assert status_of(sparse_layer(2, 32_768)) == "FT_E_SHAPE"


def test_a_sparse_layer_has_one_group() -> None:
    assert status_of(sparse_layer(2, 2)) == "FT_OK"
    assert status_of(sparse_layer(1, 2, groups=2)) == "FT_E_OP"


def test_the_norm_of_a_convolution_needs_its_kernel() -> None:
    """Op 15 is the first norm: of the pooled convolution; its kernel is operand 3."""
    assert status_of(CLIPPED_CONV_NET) == "FT_OK"
    kernel = op(15, "t", 3, CLIPPED_CONV_NET)
    assert status_of(damaged(CLIPPED_CONV_NET, (kernel, "H", NONE))) == "FT_E_OP"
    assert status_of(damaged(CLIPPED_CONV_NET, (kernel, "H", 6))) == "FT_E_SHAPE"


def test_a_changed_byte_that_the_checksum_covers_is_noticed() -> None:
    for at in range(16, len(IMAGE)):
        changed = IMAGE[:at] + bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 :]
        assert status_of(changed) == "FT_E_CHECKSUM"


def test_an_image_cut_short_is_noticed() -> None:
    for size in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, len(IMAGE) - 1):
        assert status_of(IMAGE[:size]) == "FT_E_SIZE"


def test_bytes_behind_the_image_do_not_matter() -> None:
    assert status_of(IMAGE + b"the next thing in flash") == "FT_OK"


def test_numbers_are_not_classes() -> None:
    cross_entropy = (op(3, "code"), "B", handmade.CROSS_ENTROPY)
    assert status_of(damaged(MSE_IMAGE, cross_entropy)) == "FT_E_REGION"


def test_clip_ops_need_the_clip_feature() -> None:
    assert status_of(CLIPPED) == "FT_OK"
    assert status_of(damaged(CLIPPED, (header("features"), "H", 0))) == "FT_E_OP"


def test_a_scalar_is_no_forward_output() -> None:
    image = handmade.Image(batch=2)
    x, label = image.tensor(handmade.INPUT, 2, 1), image.tensor(handmade.LABELS, 2, 1)
    hidden, y, total = (image.tensor(handmade.ARENA, rows, 1) for rows in (1, 2, 1))
    image.op(handmade.RELU, hidden, image.tensor(handmade.ARENA, 1))
    image.op(handmade.RELU, x, y)
    image.op(handmade.MSE, y, label, image.tensor(handmade.ARENA, 2, 1), total)
    assert status_of(image.bytes(2, (x, label, y, total))) == "FT_E_SHAPE"


def test_the_work_of_a_step_is_bounded() -> None:
    """30,000 samples through 8,900 x 4,000 weights, twice: 2.1e12 > 2^40 multiply-adds."""
    assert status_of(handmade.mlp([8_900, 4_000], batch=30_000)) == "FT_E_OP"
    assert status_of(handmade.mlp([8_900, 4_000], batch=15_000)) == "FT_OK"


def pooled_to_nothing(side: int) -> bytes:
    """side x side pixels, a 1 x 1 convolution to 1,024 channels, pooled 16 x 16; their mean."""
    net = handmade.Image(batch=1)
    x, label = net.tensor(handmade.INPUT, 1, side, side, 1), net.tensor(handmade.LABELS, 1, 1_024)
    w, y = net.param(1, 1, 1, 1_024), net.tensor(handmade.ARENA, 1, side // 16, side // 16, 1_024)
    codes = net.tensor(handmade.ARENA, 1, (side // 16) ** 2 * 256, dtype=1)
    z, dz, total = (net.tensor(handmade.ARENA, 1, n) for n in (1_024, 1_024, 1))
    net.op(handmade.CONV_POOL, x, w, NONE, y, codes, words=(1, 1, 0, 0, 0, 0, 1, 16, 16))
    net.op(handmade.AVG_POOL, y, z, words=(1, 1, 0, 0, 0, 0, 0, side // 16, side // 16))
    net.op(handmade.MSE, z, label, dz, total)
    return net.bytes(2, (x, label, z, total))


def test_the_output_of_a_pooled_convolution_is_bounded_although_it_is_not_stored() -> None:
    """256^2 x 1,024 floats are 2^26; 528^2 x 1,024 are more than 2^28."""
    assert status_of(pooled_to_nothing(256)) == "FT_OK"
    assert status_of(pooled_to_nothing(528)) == "FT_E_SHAPE"


# ---- fuzzing ---------------------------------------------------------------------------------

SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FORMS = {
    # Sanitizers take long over code that is inlined a hundred times.
    "lanes": ("-O0", "-Dalways_inline=unused"),
    "small": ("-O1", "-DFT_SMALL"),
}


def perceptron() -> Net:
    net = Net(6)
    hidden = net.relu(net.linear(net.input, 8))
    net.linear(net.add(hidden, net.sigmoid(net.bias(net.linear(hidden, 8)))), 3)
    return net


def mixture() -> Net:
    """Pictures through every kind of op that is not in `handmade`."""
    net = Net((6, 5, 2))
    first = net.hardswish(net.batch_norm(net.conv(net.input, 4, 3, 1, "same")))
    both = net.concat(net.max_pool(first, 3, 2, 1), net.avg_pool(net.tanh(first), 3, 2, 1))
    normal = net.relu6(net.batch_norm(net.conv(both, 6, 2, groups=2), frozen=False))
    turned = net.leaky_relu(net.reshape(normal, (4, 6)))
    once = net.relu(net.conv(turned, 6, 3, padding="same", name="twice"))
    again = net.softmax(net.conv(once, 6, 3, padding="same", name="twice"))
    net.linear(net.add(net.global_avg_pool(again), net.global_avg_pool(turned)), 3)
    return net


def without_card(program: Program) -> bytes:
    """Its image with an empty card, so that no mutation is wasted on it."""
    return write_image(replace(program.tables, card={}))


def base_images() -> list[bytes]:
    """Each op code is in one of them."""
    sgd = Sgd(momentum=0.9, clip=1.0, prox=0.1, correction=True)
    nets = [
        (perceptron(), "cross_entropy", 4, sgd),
        (perceptron(), "mse", 9, None),
        (mixture(), "soft_cross_entropy", 2, None),
        (mixture(), "cross_entropy", 3, sgd),
    ]
    weighted = compile(
        mixture(), loss="cross_entropy", ram="1MiB", class_weights=[1, 2, 3], batch=2
    )
    programs = [compile(net, loss=loss, ram="1MiB", batch=batch, sgd=rule)
                for net, loss, batch, rule in nets]  # fmt: skip
    return [
        handmade.mlp([1, 32, 32, 1]),
        handmade.mlp([20, 16, 5], "relu", "cross_entropy", 3, 15, in_place=True),
        handmade.mlp([5, 9, 8, 4], "sigmoid", "mse", 10, handmade.CLIP, in_place=True),
        handmade.mlp([7, 12, 3], "tanh", "cross_entropy", 1, handmade.MOMENTUM | handmade.PROX),
        handmade.conv_net(),
        handmade.conv_net(15, batch=1),
        handmade.conv_net(buffered=True),
        handmade.pruned_net(handmade.Pool(40, handmade.GAPS, bucket=20)),
        handmade.pruned_net(handmade.Pool(100, handmade.BITMAP, bucket=50), features=15),
        handmade.int8_net(),
        handmade.int8_net(features=15, batch=1),
        *map(without_card, [*programs, weighted]),
    ]


def fuzzer(folder: Path, form: tuple[str, ...]) -> Path:
    """The runtime and the harness under the sanitizers; file by file, as that uses all cores."""
    sources = [path for path in build.sources() if path.parent == build.HERE]
    sources.append(Path(__file__).with_name("fuzz_image.c"))
    command = [*build.compiler(), *build.FLAGS, *SANITIZED, *form, f"-I{build.HERE}"]

    def compiled(source: Path) -> str:
        made = folder / f"{source.stem}.o"
        subprocess.run([*command, "-c", str(source), "-o", str(made)], check=True)
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    linked = folder / "fuzz"
    subprocess.run([*command, *objects, "-lm", "-o", str(linked)], check=True)
    return linked


def test_the_images_to_be_damaged_have_every_op() -> None:
    codes = {op.code for image in base_images() for op in read_image(image).ops}
    header = (build.HERE / "ft_runtime.h").read_text()
    missing = {name for name, code in re.findall(r"FT_OP_(\w+) = (\d+)", header)
               if int(code) not in codes}  # fmt: skip
    assert missing == set()


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("form", FORMS)
def test_damaged_images_that_pass_run_without_harm(tmp_path: Path, form: str) -> None:
    """1e5 mutated images; each that passes runs under the sanitizers in the memory it states."""
    paths = [tmp_path / f"{i}.image" for i in range(len(base_images()))]
    for path, image in zip(paths, base_images(), strict=True):
        path.write_bytes(image)
    count = 100_000
    command = [str(fuzzer(tmp_path, FORMS[form])), "7", str(count), *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    tried, passed, ran = map(int, run.stdout.split())
    assert tried == count
    assert passed >= count // 10
    assert ran >= count // 10
