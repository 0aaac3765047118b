"""Models and updates of int8 devices: the bytes, what is read of them, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import quantised
from fedtiny.errors import WireError
from fedtiny.layout import LOCAL, Layout, Parameter
from fedtiny.tensors import raw
from fedtiny.values import EVALUATE, GRADIENT, Instruction, Transform, Update
from fedtiny.wire import int8
from fedtiny.wire.int8 import (
    grid_count,
    grid_of,
    int8_bytes,
    on_grid,
    read_int8,
    sent_model,
    steps_of,
    weights_of,
    write_int8,
)
from fedtiny.wire.pb import tensors_pb2 as pb
from fedtiny.wire.vectors import (
    Due,
    Values,
    grid_bytes,
    lay_over,
    read_vector,
    write_delta,
    write_values,
)

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

LAYOUT = Layout.of(
    [
        Parameter("conv.weight", (3, 3, 1, 2)),
        Parameter("conv.bias", (2,)),
        Parameter("own.weight", (2, 3), LOCAL),
        Parameter("fc.weight", (2, 3)),
        Parameter("fc.bias", (3,)),
    ]
)
NAMES = ("conv.weight", "fc.weight")


@dataclass(frozen=True)
class Board:
    """Of a Program, what the form looks at."""

    int8_parameters: tuple[Parameter, ...]
    range_parameters: tuple[Parameter, ...] = ()


BOARD = Board(tuple(LAYOUT[name] for name in (*NAMES, "own.weight")))
models = st.builds(
    lambda seed, size: np.random.default_rng(seed).normal(0, 10.0**size, LAYOUT.size),
    st.integers(0, 2**32),
    st.integers(-6, 6),
).map(lambda values: values.astype(np.float32))


def test_the_bytes_are_steps_then_other_values_then_weights() -> None:
    layout = Layout.of([Parameter("w", (3, 2)), Parameter("b", (2,))])
    # Column 0 has the largest weight 96/128 and a step of 1/128, column 1 48 and 1/2.
    rows = [[96 / 128, -48], [-1 / 128, 0.5], [0, 0.75]]
    model = np.array([*np.ravel(rows), 1.0, -2.0], np.float32)
    words = "0000003c0000003f0000803f000000c0"
    weights = "60a0ff010002"  # 0.75 is one step and a half: to the even one
    data = write_int8(layout, ("w",), model)
    assert data.hex() == words + weights + "0000"
    assert int8_bytes(layout, ("w",)) == len(data) == 4 * 4 + 6 + 2
    held = np.frombuffer(read_int8(layout, ("w",), data), np.float32)
    np.testing.assert_array_equal(held, [*model[:5], 1.0, 1.0, -2.0])


@given(models)
def test_a_device_reads_what_it_would_hold_of_the_whole_model(model: Float32) -> None:
    data = write_int8(LAYOUT, NAMES, model)
    read = np.frombuffer(read_int8(LAYOUT, NAMES, data), np.float32)
    board = Board(tuple(map(LAYOUT.__getitem__, NAMES)))
    np.testing.assert_array_equal(read, quantised.held(board, model))
    np.testing.assert_array_equal(quantised.held(board, read), read)
    assert write_int8(LAYOUT, NAMES, read) == data
    assert len(data) == int8_bytes(LAYOUT, NAMES)


@given(models, models)
def test_two_models_differ_in_whole_words(model: Float32, other: Float32) -> None:
    other[:-1] = model[:-1]
    have, want = (write_int8(LAYOUT, NAMES, one) for one in (model, other))
    delta = write_delta(have, want)
    assert delta is not None
    assert len(delta) < len(want)
    assert lay_over(have, delta) == want


@given(models)
def test_values_are_the_same_without_numpy(model: Float32) -> None:
    data = write_int8(LAYOUT, NAMES, model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "has_numpy", lambda: False)
        plain = read_int8(LAYOUT, NAMES, data)
    assert plain == read_int8(LAYOUT, NAMES, data)


@given(st.integers(0, 200).filter(lambda n: n != int8_bytes(LAYOUT, NAMES)))
def test_another_length_is_no_model(nbytes: int) -> None:
    with pytest.raises(WireError, match=f"{nbytes:,} B as int8; {int8_bytes(LAYOUT, NAMES)} B"):
        read_int8(LAYOUT, NAMES, bytes(nbytes))


@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_step_or_a_value_that_is_not_finite_is_refused(place: int) -> None:
    data = bytearray(write_int8(LAYOUT, NAMES, np.ones(LAYOUT.size, np.float32)))
    data[4 * place : 4 * place + 4] = np.float32(np.nan).tobytes()
    with pytest.raises(WireError, match="NaN or infinite"):
        read_int8(LAYOUT, NAMES, data)


# ---- updates ---------------------------------------------------------------------------------

RANGES = ((5, 14), (18, 20), (26, 35))
"""Nine weights of the convolution, its biases, and the last layer."""


def trained(model: Float32, seed: int) -> tuple[Update, bytes]:
    """What a device sends that was sent the model, and the steps of its coordinates."""
    data = write_int8(LAYOUT, NAMES, model)
    steps = steps_of(LAYOUT, NAMES, data)
    rng = np.random.default_rng(seed)
    step = np.frombuffer(steps, np.float32)
    moved = rng.integers(-127, 128, LAYOUT.size).astype(np.float32) * step
    values = np.where(step > 0, moved, rng.normal(size=LAYOUT.size)).astype(np.float32)
    own = np.concatenate([values[start:stop] for start, stop in RANGES])
    return Update(1, 2, 0, 3, 5, own.tobytes(), RANGES), steps


def test_an_update_is_a_byte_for_each_weight_and_the_floats_of_the_others() -> None:
    layout = Layout.of([Parameter("w", (2, 2)), Parameter("b", (2,))])
    model = np.array([96, 48, 0, 0, 1, 2], np.float32)  # steps of 1 and 1/2
    steps = steps_of(layout, ("w",), write_int8(layout, ("w",), model))
    # The second row of w, and the first bias.
    update = Update(0, 0, 0, 0, 1, np.array([-3, 2.5, 8], np.float32).tobytes(), ((2, 5),))
    data = write_values(on_grid(update, steps), 6)
    size, edges = "0d06000000", "12080200000005000000"
    grid = "0a02fd05120400000041"  # -3 and 5 steps; 8
    assert data.hex() == f"{size}{edges}4a0a{grid}"
    assert len(data) == grid_bytes(6, ((2, 5),), grid_count(layout, ("w",), ((2, 5),)))


@given(models, st.integers(0, 2**32))
def test_an_update_comes_back_bit_for_bit(model: Float32, seed: int) -> None:
    update, steps = trained(model, seed)
    sent = on_grid(update, steps)
    data = write_values(sent, LAYOUT.size)
    assert read_vector(data, Due(LAYOUT.size, len(data), steps=steps)) == Values(
        RANGES, bytes(raw(update.values))
    )
    count = grid_count(LAYOUT, NAMES, RANGES)
    assert count == 9 + 0 + 6
    assert len(data) == grid_bytes(LAYOUT.size, RANGES, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "has_numpy", lambda: False)
        assert on_grid(update, steps) == sent
        assert read_vector(data, Due(LAYOUT.size, len(data), steps=steps)).values == update.values


def test_values_that_are_no_whole_steps_travel_as_floats() -> None:
    update, steps = trained(np.ones(LAYOUT.size, np.float32), 1)
    values = np.frombuffer(raw(update.values), np.float32).copy()
    for wrong in (values[0] + 2.0**-10, np.float32(3.0)):  # between two steps; beyond 127 of them
        values[0] = wrong
        off = replace(update, values=values.tobytes())
        assert on_grid(off, steps) is off
    biases = replace(update, ranges=((18, 20),), values=bytes(8))
    assert on_grid(biases, steps) is biases


@pytest.mark.parametrize(
    ("q", "rest", "told"),
    [(14, 20, "14 B of int8 weights; 15 B"), (16, 20, "16 B of int8"), (0, 0, "0 B of int8"),
     (15, 16, "16 B of other values; 20 B"), (15, 21, "21 B of other")],
)  # fmt: skip
def test_an_update_with_too_few_or_too_many_values_is_refused(q: int, rest: int, told: str) -> None:
    _, steps = trained(np.ones(LAYOUT.size, np.float32), 1)
    edges = [edge for pair in RANGES for edge in pair]
    grid = pb.Grid(q=bytes(q), float32=bytes(rest))
    data = pb.Vector(size=LAYOUT.size, edges=edges, grid=grid).SerializeToString()
    with pytest.raises(WireError, match=told):
        read_vector(data, Due(LAYOUT.size, len(data), steps=steps))


def test_int8_of_a_model_that_has_none_is_refused() -> None:
    update, steps = trained(np.ones(LAYOUT.size, np.float32), 1)
    data = write_values(on_grid(update, steps), LAYOUT.size)
    with pytest.raises(WireError, match="of a model that has none or is not here"):
        read_vector(data, Due(LAYOUT.size, len(data)))


def test_only_values_travel_as_int8() -> None:
    data = write_int8(LAYOUT, NAMES, np.ones(LAYOUT.size, np.float32))
    steps = steps_of(LAYOUT, NAMES, data)
    assert grid_of(BOARD, LAYOUT, Instruction(), data) == steps
    for asked in (Instruction(returns=GRADIENT), Instruction(EVALUATE)):
        assert grid_of(BOARD, LAYOUT, asked, data) == b""


def test_a_whole_model_goes_to_transforms_and_whole_values_to_what_stays() -> None:
    assert weights_of(BOARD, Instruction()) == NAMES
    assert weights_of(BOARD, Instruction(transforms=(Transform("topk", 0.1),))) == ()
    assert weights_of(Board(()), Instruction()) == ()
    assert sent_model(Board(()), LAYOUT, Instruction(), b"whole") == b"whole"
