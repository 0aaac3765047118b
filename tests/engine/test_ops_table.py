"""The table of operations, against the C header and against itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.engine import ops
from fedtiny.engine.ir import Op, Tensor, Window
from fedtiny.engine.kernels.sums import pack, unpack
from fedtiny.engine.ops import TABLE, arranged, macs, produce
from fedtiny.engine.runtime import build
from fedtiny.errors import GraphError

HEADER = (build.HERE / "ft_runtime.h").read_text()
CODES = {name.lower(): int(code) for name, code in re.findall(r"FT_OP_(\w+) = (\d+)[,\s}]", HEADER)}


def test_the_codes_are_those_of_the_runtime() -> None:
    assert {kind: row.code for kind, row in TABLE.items()} == CODES


def test_a_role_has_its_range_of_codes() -> None:
    ranges = {
        ops.FORWARD: range(1, 64), ops.TRACK: range(1, 64), ops.LOSS: range(64, 80),
        ops.BACKWARD: range(80, 121), ops.SCALE: range(121, 122), ops.UPDATE: range(128, 160),
        ops.NORM: range(160, 192), ops.GRADIENT: range(192, 224),
    }  # fmt: skip
    assert all(row.code in ranges[row.role] for row in TABLE.values())


def test_a_norm_is_32_above_its_update_and_a_sum_64() -> None:
    for kind, row in TABLE.items():
        family, _, what = kind.rpartition("_")
        if row.role in (ops.UPDATE, ops.NORM, ops.GRADIENT):
            above = {"update": 0, "norm": 32, "gradient": 64}[what]
            assert row.code == TABLE[f"{family}_update"].code + above


def test_every_op_of_a_forward_graph_has_its_way_back_in_the_table() -> None:
    """Those of int8 are written behind the way back: of the float32 ops that they stand for."""
    forward = {kind: row for kind, row in TABLE.items() if row.role == ops.FORWARD}
    without = {kind for kind, row in forward.items() if row.gradient is None}
    assert without == {kind for kind, row in forward.items() if row.takes == ops.SCALED}


@pytest.mark.parametrize("kind", [kind for kind, row in TABLE.items() if row.gradient])
def test_the_way_back_of_an_op_fits_its_row(kind: str) -> None:
    row = TABLE[kind]
    assert row.gradient is not None
    positions = {*row.gradient.data, *row.gradient.parameters}
    assert max(positions, default=0) < row.inputs
    for way in filter(lambda way: way.kind, row.gradient.data.values()):
        made = TABLE[way.kind]
        assert made.inputs == len(way.operands)
        if way.attributes is ops.inherited and made.attributes:
            assert made.attributes is row.attributes
    for family, _ in row.gradient.parameters.values():
        assert TABLE[f"{family}_update"].attributes in (None, row.attributes)


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: Tensor(name, shape) for name, shape in shapes.items()}


def test_weights_of_classes_stand_behind_the_outputs() -> None:
    op = Op("weighted_cross_entropy", ("z", "label", "weight"), ("dz", "loss"))
    assert arranged(op) == ("z", "label", "dz", "loss", "weight")
    assert arranged(Op("bias_norm", ("", "dy", "sum"))) == ("", "dy", "sum")


def test_multiply_accumulates_are_counted_once_a_weight_and_place() -> None:
    window = Window(groups=2)
    known = tensors(x=(3, 6, 5, 4), w=(3, 3, 2, 8), y=(3, 4, 3, 8), p=(3, 2, 1, 8), total=(1,))
    places, weights = 3 * 4 * 3, 3 * 3 * 2 * 8
    for op in (
        Op("conv", ("x", "w", ""), ("y",), attributes=window),
        Op("conv_dx", ("y", "w"), ("x",), attributes=window),
        Op("conv_update", ("x", "y", "w"), attributes=window),
        Op("conv_norm", ("x", "y", "total", "w"), attributes=window),
        Op("conv_gradient", ("x", "y", "w"), attributes=window),
    ):
        assert macs(op, known) == places * weights
    linear = Window(groups=1)
    known |= tensors(v=(3, 4, 5), m=(20, 7), z=(3, 7))
    for op in (
        Op("sparse_conv", ("v", "m", ""), ("z",), attributes=linear),
        Op("sparse_conv_dx", ("z", "m"), ("v",), attributes=linear),
        Op("sparse_conv_update", ("v", "z", "m"), attributes=linear),
        Op("sparse_conv_norm", ("v", "z", "total", "m"), attributes=linear),
    ):
        assert macs(op, known) == 3 * 20 * 7
    pooled = Window(groups=2, kernel=(2, 3))
    forward = Op("conv_pool", ("x", "w", ""), ("p", "codes"), attributes=pooled)
    known |= tensors(codes=(3, 2))
    assert macs(forward, known) == places * weights
    update = Op("conv_pool_update", ("x", "p", "w", "", "codes"), attributes=pooled)
    assert macs(update, known) == places * weights // 6


def test_an_unknown_op_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match="there is no op 'fft'"):
        produce("fft", (), (), {})


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3), st.integers(1, 70), st.integers(0, 99))
def test_element_j_stands_in_its_bits_of_its_word(
    bits: int, batch: int, count: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (batch, count))
    words = pack(values, bits)
    assert words.shape == (batch, -(-count * bits // 32))
    for b in range(batch):
        whole = sum(int(word) << 32 * i for i, word in enumerate(words[b].view(np.uint32)))
        assert whole == sum(int(value) << bits * j for j, value in enumerate(values[b]))
    np.testing.assert_array_equal(unpack(words, bits, values.shape), values)
