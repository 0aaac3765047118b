"""The image: written, read back, and refused when damaged."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.image import (
    FROZEN,
    HEADER_BYTES,
    I8,
    IN,
    NONE,
    OUT,
    read_image,
    with_checksum,
    write_image,
)  # fmt: skip
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import sine_mlp
from fedtiny.errors import DataError, FedtinyError, ImageError
from fedtiny.values import Sgd
from tests.engine.nets import nets


@pytest.fixture(scope="module")
def program() -> Program:
    return compile(sine_mlp(), loss="mse", ram="64KiB", sgd=Sgd(momentum=0.9, clip=1.0))


@settings(max_examples=50)
@given(nets(), st.integers(1, 9), st.booleans())
def test_reading_an_image_gives_what_was_written(net: Net, batch: int, clip: bool) -> None:
    sgd = Sgd(momentum=0.5, clip=float(clip), prox=0.1)
    image = compile(net, loss="mse", ram="1MiB", batch=batch, sgd=sgd).image
    assert write_image(read_image(image)) == image
    assert Program(image).sgd == sgd
    assert Program(image).layout == net.graph(1).layout


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_noticed(program: Program, data: st.DataObject) -> None:
    image = bytearray(program.image)
    at = data.draw(st.integers(0, len(image) - 1))
    image[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ImageError):
        read_image(bytes(image))


@settings(max_examples=300)
@given(st.data())
def test_a_forged_image_raises_nothing_but_our_errors(
    program: Program, data: st.DataObject
) -> None:
    image = bytearray(program.image)
    at = data.draw(st.integers(16, len(image) - 1))
    image[at] ^= data.draw(st.integers(1, 255))
    with suppress(FedtinyError):
        read_image(with_checksum(bytes(image)))


def test_each_kind_of_damage_has_its_message(program: Program) -> None:
    image = program.image
    cases = {
        image[:50]: "at least 136 bytes; this one has 50",
        b"ELF!" + image[4:]: "not a Program image",
        image[:4] + struct.pack("<H", 9) + image[6:]: "version 9, this runtime reads 4",
        image + b"\0": f"says {len(image)} bytes and has {len(image) + 1}",
        image[:-1] + b"!": "checksum",
    }
    for damaged, message in cases.items():
        with pytest.raises(ImageError, match=message):
            read_image(damaged)


@pytest.mark.parametrize("back", [48, 44, 40, 36, 8])
def test_a_table_outside_the_image_is_refused(program: Program, back: int) -> None:
    at = HEADER_BYTES - back  # tensors_at, params_at, ops_at, card_at, consts_at
    damaged = program.image[:at] + struct.pack("<I", 1 << 20) + program.image[at + 4 :]
    with pytest.raises(ImageError, match="leaves"):
        read_image(with_checksum(damaged))


def test_what_is_written_is_read_back() -> None:
    """Of int8, with channels of a weight: scales, forms, overlays and lists of channels."""
    plan = "named:linear2.weight{in=1+5-7},linear1.weight{out=1/4}"
    program = compile(sine_mlp(), loss="mse", ram="64KiB", dtype="int8", plan=plan)
    tables = program.tables
    assert write_image(tables) == program.image
    assert tables.consts == (*range(8), 1, 5, 6, 7)
    found = {(p.axis, tables.tensors[p.index].shape) for p in tables.params if p.index != NONE}
    assert found == {(OUT, (8,)), (IN, (4,))}
    whole = [tables.params[i - 1] for i, p in enumerate(tables.params) if p.index != NONE]
    assert [(p.trained, p.vector_at) for p in whole] == [(0, 0), (0, 64)]
    scales = {tables.tensors[t.scale].region for t in tables.tensors if t.dtype == I8}
    assert scales == {FROZEN}


def test_flatten_and_unflatten_are_inverse(program: Program) -> None:
    vector = np.asarray(program.initial(5))
    np.testing.assert_array_equal(program.layout.flatten(program.layout.unflatten(vector)), vector)


def test_a_state_that_does_not_fit_is_refused(program: Program) -> None:
    state = program.layout.unflatten(np.asarray(program.initial(5)))
    with pytest.raises(DataError, match=r"linear1.weight has shape \(32, 1\)"):
        program.layout.flatten({**state, "linear1.weight": np.zeros((32, 1))})
    with pytest.raises(DataError, match="the state has the arrays"):
        program.layout.flatten({})
    with pytest.raises(DataError, match="3 floats, the model has 1153"):
        program.layout.unflatten(np.zeros(3, np.float32))


def test_initial_values_are_uniform_within_the_fan_in_bound(program: Program) -> None:
    state = program.layout.unflatten(np.asarray(program.initial(5)))
    weight = state["linear2.weight"]
    bound = 32**-0.5
    assert abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert (np.asarray(program.initial(5)) != np.asarray(program.initial(6))).mean() > 0.99
