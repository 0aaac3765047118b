"""ft_check on int8: scales, forms, overlays, lists and what the ops take have their statuses."""

from __future__ import annotations

import struct

import pytest

from tests.engine import handmade
from tests.engine.handmade import NONE
from tests.engine.test_image_check import (
    HIGH,
    NUMBER,
    Edit,
    damaged,
    header,
    op,
    param,
    status_of,
    tensor,
)  # fmt: skip

# Tensors: 0 range of x, 1 steps of w1, 2 w1, 3 list 1 3, 4 steps of its part, 5 part, 6 b1, 7
# range of y1, 8 steps of w2, 9 w2, 10 list 0 2, 11 its part, 12 to 14 ranges, 15 steps of w3, 16
# w3, 17 b3, 18 x, 19 label, 20 merged w1, 21 merged w2, 22 y1, 23 its maxima, 24 y2, 25 sum, 26
# again, 27 mean, 28 column, 29 taken. Parameters: 0 range, 1 w1, 2 its part, 3 b1, 4 range, 5 w2,
# 6 its part, 7 to 9 ranges, 10 w3, 11 b3. Ops: 0 merge, 1 conv8, 2 mask8, 3 max_pool8, 4 merge, 5
# conv8, 6 add8, 7 crop, 8 paste, 9 avg_pool8, 10 linear, 11 loss, 12 linear_dx, 13 avg_pool_dx,
# 14 relu_dx, 15 take, 16 conv_dx, 17 max_pool_dx, 18 mask_dx, 19 take, 20 conv_update, ...
INT8 = handmade.int8_net()
W1, LIST, PART, SCALE_OF_X, SCALE_OF_Y1, STEPS, X8, Y1, TAKEN = 2, 3, 5, 0, 7, 1, 18, 22, 29
OF_Y2 = struct.unpack_from("<I", INT8, tensor(24, "offset", INT8))[0]
CONSTANTS = struct.unpack_from("<I", INT8, 128)[0]


def int8_op(index: int, field: str, k: int = 0) -> int:
    return op(index, field, k, INT8)


def int8_tensor(index: int, field: str) -> int:
    return tensor(index, field, INT8)


def int8_param(index: int, field: str) -> int:
    return param(index, field, INT8)


INT8_DAMAGE: list[tuple[str, str, list[Edit]]] = [
    ("int8 without a scale", "FT_E_TENSOR", [(int8_tensor(Y1, "scale"), "H", NONE)]),
    ("a scale that there is not", "FT_E_TENSOR", [(int8_tensor(Y1, "scale"), "H", 99)]),
    ("a scale of integers", "FT_E_TENSOR", [(int8_tensor(Y1, "scale"), "H", LIST)]),
    ("a scale that moves", "FT_E_TENSOR", [(int8_tensor(Y1, "scale"), "H", 17)]),
    ("a scale of int8", "FT_E_TENSOR", [(int8_tensor(Y1, "scale"), "H", W1)]),
    ("a scale of three floats", "FT_E_TENSOR", [(int8_tensor(Y1, "scale"), "H", 15)]),
    ("a scale with two axes", "FT_E_TENSOR", [(int8_tensor(SCALE_OF_Y1, "ndim"), "B", 2)]),
    ("an input of floats", "FT_E_TENSOR", [(int8_tensor(X8, "dtype"), "B", 0),
        (int8_tensor(X8, "scale"), "H", NONE)]),
    ("constants as floats", "FT_E_TENSOR", [(int8_tensor(LIST, "dtype"), "B", 0)]),
    ("constants behind the last", "FT_E_TENSOR", [(int8_tensor(LIST, "dim0"), "I", 5)]),
    ("words that are not there", "FT_E_HEADER", [(header("const_words"), "I", 1 << 20)]),
    ("constants at an odd byte", "FT_E_HEADER", [(header("consts_at"), "I", CONSTANTS + 2)]),
    ("a frozen region too small", "FT_E_TENSOR", [(header("frozen"), "I", 8)]),
    ("a range of one float", "FT_E_TENSOR", [(int8_tensor(12, "dim0"), "I", 1)]),
    ("a range that trains", "FT_E_PARAM", [(int8_param(0, "trained"), "B", 1)]),
    ("a range of weights", "FT_E_PARAM", [(int8_param(1, "form"), "B", 1)]),
    ("weights with the scale of an activation", "FT_E_PARAM",
        [(int8_tensor(W1, "scale"), "H", SCALE_OF_X)]),
    ("frozen weights that train", "FT_E_PARAM", [(int8_param(1, "trained"), "B", 1)]),
    ("two in one place of the frozen region", "FT_E_PARAM", [(int8_tensor(6, "offset"), "I", 24)]),
    ("an overlay elsewhere in the vector", "FT_E_PARAM", [(int8_param(2, "vector_at"), "I", 3)]),
    ("an overlay in another group", "FT_E_PARAM", [(int8_param(2, "group"), "B", 1)]),
    ("an overlay that does not train", "FT_E_PARAM", [(int8_param(2, "trained"), "B", 0)]),
    ("an overlay of another axis", "FT_E_PARAM", [(int8_param(2, "axis"), "B", handmade.IN)]),
    ("an overlay of no axis", "FT_E_PARAM", [(int8_param(2, "axis"), "B", 0)]),
    ("an overlay without a list", "FT_E_PARAM", [(int8_param(2, "index"), "H", NONE)]),
    ("a list in the arena", "FT_E_PARAM", [(int8_param(2, "index"), "H", Y1)]),
    ("an overlay with the steps of all outputs", "FT_E_TENSOR",
        [(int8_tensor(PART, "scale"), "H", STEPS)]),
    ("an overlay of inputs with steps of its own", "FT_E_PARAM",
        [(int8_tensor(11, "scale"), "H", STEPS)]),
    ("a list that descends", "FT_E_PARAM", [(CONSTANTS, "I", 3), (CONSTANTS + 4, "I", 1)]),
    ("a channel twice", "FT_E_PARAM", [(CONSTANTS, "I", 3)]),
    ("a channel behind the last", "FT_E_PARAM", [(CONSTANTS + 4, "I", 4)]),
    ("a channel below 0", "FT_E_PARAM", [(CONSTANTS, "i", -1)]),
    ("a merge along no axis", "FT_E_OP", [(int8_op(0, "attr", NUMBER), "H", 0)]),
    ("a merge along the other axis", "FT_E_SHAPE", [(int8_op(0, "attr", NUMBER), "H", 1)]),
    ("a merge by another list", "FT_E_OP", [(int8_op(0, "t", 2), "H", NONE)]),
    ("a merge of other steps", "FT_E_REGION", [(int8_tensor(20, "scale"), "H", 8)]),
    ("a merge into the weights", "FT_E_REGION", [(int8_op(0, "t", 3), "H", W1)]),
    ("taken numbers of another scale", "FT_E_REGION",
        [(int8_tensor(TAKEN, "scale"), "H", SCALE_OF_X)]),
    ("taken by no list", "FT_E_REGION", [(int8_op(15, "t", 1), "H", Y1)]),
    ("channels that x has not", "FT_E_SHAPE", [(int8_tensor(40, "dim2"), "I", 10),
        (int8_tensor(40, "dim3"), "I", 2)]),
    ("floats as numbers", "FT_E_REGION", [(int8_op(1, "t", 0), "H", 32)]),
    ("numbers as floats", "FT_E_REGION", [(int8_op(13, "t", 0), "H", 27)]),
    ("an int8 bias", "FT_E_REGION", [(int8_op(1, "t", 2), "H", W1)]),
    ("an activation with the steps of weights", "FT_E_SHAPE",
        [(int8_tensor(Y1, "scale"), "H", STEPS), (int8_tensor(23, "scale"), "H", STEPS)]),
    ("maxima of another scale", "FT_E_REGION", [(int8_tensor(23, "scale"), "H", SCALE_OF_X)]),
    ("a mask of floats", "FT_E_REGION", [(int8_op(2, "t", 0), "H", 39)]),
    ("a top below 0", "FT_E_OP", [(int8_op(2, "attr", HIGH), "H", 0xBF80)]),
    ("a sum half over its operand", "FT_E_REGION", [(int8_tensor(25, "offset"), "I", OF_Y2 + 4)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "edits"), [row[1:] for row in INT8_DAMAGE], ids=[r[0] for r in INT8_DAMAGE]
)
def test_each_damage_of_an_int8_net_has_its_status(status: str, edits: list[Edit]) -> None:
    assert status_of(INT8) == "FT_OK"
    assert status_of(damaged(INT8, *edits)) == status


def test_no_tensor_reads_the_bytes_that_pad_a_sample_to_words() -> None:
    """A sample of 5 x 5 x 2 numbers has 50 bytes, and the caller's buffer has no more."""
    image = handmade.int8_net(batch=1)
    alias = [(tensor(TAKEN, "region", image), "B", handmade.INPUT),
             (tensor(TAKEN, "offset", image), "I", 0)]  # fmt: skip
    shape = [(tensor(TAKEN, f"dim{i}", image), "I", 1) for i in (1, 2)]
    for count, status in ((50, "FT_E_REGION"), (51, "FT_E_TENSOR"), (52, "FT_E_TENSOR")):
        edits = [*alias, *shape, (tensor(TAKEN, "dim3", image), "I", count)]
        assert status_of(damaged(image, *edits)) == status
