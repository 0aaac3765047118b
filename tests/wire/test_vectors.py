"""Vectors on the wire: laws of writing and reading, and what is refused before it is unpacked."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedtiny import varints
from fedtiny.errors import DataError, WireError
from fedtiny.layout import Layout, Parameter, Ranges, length
from fedtiny.masks import Mask
from fedtiny.values import Update
from fedtiny.wire.pb import tensors_pb2 as pb
from fedtiny.wire.vectors import (
    Due,
    Values,
    lay_over,
    mask_bytes,
    mask_name,
    read_vector,
    sparse_bytes,
    vector_bytes,
    write_delta,
    write_values,
)
from tests.wire.forms import rounded, whole

MOST = 10**6
FORMS = ("float32", "int8", "sign")
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_bits = st.integers(0, 2**32 - 1)


@st.composite
def parts(draw: st.DrawFn) -> tuple[int, Ranges, list[float]]:
    """A size, ranges within it, and a value for each coordinate."""
    edges = sorted(draw(st.sets(st.integers(0, 300), max_size=8)))
    ranges = tuple(zip(edges[0 : len(edges) // 2 * 2 : 2], edges[1::2], strict=True))
    size = draw(st.integers(max(1, *edges, 1), 320))
    count = length(ranges) if ranges else size
    return size, ranges, draw(st.lists(finite, min_size=count, max_size=count))


def float32(values: list[float]) -> bytes:
    return np.array(values, np.float32).tobytes()


def reason(data: bytes, size: int, most: int = MOST) -> str:
    with pytest.raises(WireError) as refused:
        read_vector(data, Due(size, most))
    return refused.value.reason


def layout(size: int) -> Layout:
    return Layout.of([Parameter("weight", (size,))])


def masks(size: int) -> st.SearchStrategy[Mask]:
    bools = st.lists(st.booleans(), min_size=size, max_size=size)
    return bools.map(lambda live: Mask.of(np.array(live, bool)))


def message(**fields: Any) -> bytes:
    return bytes(pb.Vector(**fields).SerializeToString())


# ---- round trips -----------------------------------------------------------------------------


@given(parts())
def test_what_is_written_whole_is_read_back_bit_for_bit(
    part: tuple[int, Ranges, list[float]],
) -> None:
    size, ranges, values = part
    found = read_vector(write_values(whole(float32(values), size, ranges), size), Due(size, MOST))
    assert found == Values(ranges or ((0, size),), float32(values))


@st.composite
def masked_updates(draw: st.DrawFn) -> tuple[int, Update]:
    """Values of the live coordinates within some ranges, or all."""
    size, ranges, values = draw(parts())
    ranges = ranges or ((0, size),)
    mask = draw(masks(size)).moved((), [ranges[0][0]])
    live = float32([*values, *[0.0] * size])[: 4 * mask.length(ranges)]
    return size, Update(0, 0, 0, 0, 1, live, ranges, mask=mask)


@settings(max_examples=40)
@given(masked_updates(), st.sampled_from(FORMS))
def test_what_is_live_is_read_back_under_a_mask_that_was_given(
    drawn: tuple[int, Update], form: str
) -> None:
    size, update = drawn
    assume(np.abs(np.frombuffer(bytes(update.values), np.float32)).max() < 1e38)
    assert update.mask
    name = mask_name(update.mask.blob)
    given = {name: update.mask}
    update = rounded(update, form)
    data = write_values(update, size, name)
    found = read_vector(data, Due(size, MOST, given))
    assert found == Values(update.ranges, bytes(update.values), update.mask, None, update.quantised)
    assert len(data) == vector_bytes(size, update.ranges, update.mask, form=form)


@settings(max_examples=40)
@given(masked_updates())
def test_what_is_live_is_read_back_under_a_mask_of_its_own(drawn: tuple[int, Update]) -> None:
    size, update = drawn
    data = write_values(update, size, given=b"")
    found = read_vector(data, Due(size, MOST, layout=layout(size)))
    assert found == Values(update.ranges, bytes(update.values), update.mask)
    assert len(data) <= vector_bytes(size, update.ranges, update.mask, own=True)


@given(st.integers(1, 2**32 - 1), st.data())
def test_places_are_read_back_with_their_values(size: int, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=50)))
    votes = data.draw(st.booleans())
    values = [1.0] * len(places)
    if not votes:
        values = data.draw(st.lists(finite, min_size=len(places), max_size=len(places)))
    packed = struct.pack(f"<{len(places)}I", *places)
    update = Update(0, 0, 0, 0, 1, float32(values), ((0, size),), places=packed)
    written = write_values(update, size)
    assert read_vector(written, Due(size, MOST)) == Values(
        ((0, size),), float32(values), None, packed
    )
    form = "" if votes else "float32"
    assert len(written) <= sparse_bytes(size, ((0, size),), None, len(places), form)


@settings(max_examples=40)
@given(masked_updates(), st.sampled_from(FORMS), st.data())
def test_some_of_what_a_mask_covers_is_read_back(
    drawn: tuple[int, Update], form: str, data: st.DataObject
) -> None:
    size, update = drawn
    assert update.mask
    live = update.mask.coordinates(update.ranges)
    at = sorted(data.draw(st.sets(st.integers(0, live.size - 1), min_size=1)))
    values = np.frombuffer(bytes(update.values), np.float32)[at]
    assume(np.abs(values).max() < 1e38)
    places = live[at].astype(np.uint32).tobytes()
    sent = rounded(replace(update, values=values.tobytes(), places=places), form)
    name = mask_name(update.mask.blob)
    written = write_values(sent, size, name)
    found = read_vector(written, Due(size, MOST, {name: update.mask}))
    assert found == Values(sent.ranges, bytes(sent.values), sent.mask, places, sent.quantised)
    assert len(written) <= sparse_bytes(size, sent.ranges, sent.mask, len(at), form)


@given(st.integers(1, 300).flatmap(masks))
def test_no_mask_is_longer_than_its_bound(mask: Mask) -> None:
    assert len(mask.blob) <= mask_bytes(mask.size)


def test_a_place_costs_a_byte_for_seven_bits_of_its_distance() -> None:
    places = [5, 133, 262, 2**14 + 263, 2**21 + 2**14 + 264]  # 127, 128, 2^14, 2^21 between
    packed = struct.pack("<5I", *places)
    update = Update(0, 0, 0, 0, 1, float32([2.0] * 5), ((0, 2**22),), places=packed)
    assert len(write_values(update, 2**22)) == 5 + 2 + (2 + 1 + 1 + 2 + 3 + 4) + (2 + 20)
    votes = Update(0, 0, 0, 0, 1, float32([1.0] * 5), ((0, 2**22),), places=packed)
    assert len(write_values(votes, 2**22)) == 5 + 2 + (2 + 1 + 1 + 2 + 3 + 4)


def test_a_tenth_of_a_model_is_a_tenth_of_its_bytes() -> None:
    mask = Mask.draw(layout(10_000), {"weight": 1000}, 7)
    update = Update(0, 0, 0, 0, 1, bytes(4000), ((0, 10_000),), mask=mask)
    written = write_values(update, 10_000, given=mask_name(mask.blob))
    # the size, the name of the mask, the values
    assert len(written) == 5 + (2 + 8) + (3 + 4000)


def test_what_only_measures_has_no_vector() -> None:
    assert write_values(Update(0, 0, 0, 0, 1), 3) == b""


def test_int8_is_a_quarter_and_a_scale_a_block() -> None:
    data = write_values(rounded(whole(float32([1.0] * 640), 640), "int8"), 640)
    assert len(data) == 5 + 3 + 5 + (2 + 4 * 10) + (3 + 640)


def test_signs_are_a_bit_and_a_scale_a_block() -> None:
    data = write_values(rounded(whole(float32([1.0] * 2560), 2560), "sign"), 2560)
    assert len(data) == 5 + 3 + 5 + (2 + 4 * 10) + (3 + 320)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_written(bad: float) -> None:
    with pytest.raises(DataError, match="of 3 values some are NaN or infinite"):
        write_values(whole(float32([0.0, bad, 1.0]), 3), 3)


def test_values_that_do_not_fill_the_ranges_are_never_written() -> None:
    with pytest.raises(DataError, match="8 B are not the float32 values of 3 coordinates"):
        write_values(whole(bytes(8), 9, ((2, 5),)), 9)
    mask = Mask.draw(layout(9), {"weight": 3}, 0)
    with pytest.raises(DataError, match="8 B are not the float32 values of 3 coordinates"):
        write_values(whole(bytes(8), 9, mask=mask), 9)
    with pytest.raises(DataError, match="8 B are not the float32 values of 1 coordinates"):
        write_values(Update(0, 0, 0, 0, 1, bytes(8), ((0, 9),), places=bytes(4)), 9)


# ---- refusals --------------------------------------------------------------------------------


def test_a_vector_longer_than_the_plan_is_not_even_parsed() -> None:
    assert reason(b"\xff" * 101, 3, 100) == "size"


@pytest.mark.parametrize("data", [b"\xff", b"\x1a\x7f", b"\x0d\x01"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    assert reason(data, 3) == "malformed"


def test_another_size_is_refused() -> None:
    assert reason(write_values(whole(bytes(12), 3), 3), 4) == "size"
    assert reason(message(float32=bytes(12)), 3) == "size"  # absent is no size either


@pytest.mark.parametrize(
    "edges",
    [[0], [0, 1, 2], [1, 1], [2, 1], [0, 1, 1, 2], [0, 2, 1, 3], [0, 4], [3, 4], [0, 2**32 - 1]],
)
def test_edges_ascend_apart_and_within_the_size(edges: list[int]) -> None:
    count = sum(edges[1::2]) - sum(edges[::2])
    data = message(size=3, edges=edges, float32=bytes(4 * max(0, min(count, 100))))
    assert reason(data, 3) == "ranges"


@pytest.mark.parametrize("nbytes", [0, 4, 11, 13, 16])
def test_values_of_another_length_are_refused(nbytes: int) -> None:
    assert reason(message(size=3, float32=bytes(nbytes)), 3) == "length"


def test_a_vector_without_values_is_refused() -> None:
    assert reason(message(size=3), 3) == "malformed"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    values = float32([0.0, bad, 1.0])
    assert reason(message(size=3, float32=values), 3) == "not-finite"
    sparse = pb.Sparse(places=bytes(3), float32=values)
    assert reason(message(size=3, sparse=sparse), 3) == "not-finite"


@pytest.mark.parametrize(
    ("gaps", "flaw"),
    [([3], "places"), ([2, 0], "places"), ([2**32], "places"), ([0] * 4, "places")],
)
def test_places_are_within_the_vector(gaps: list[int], flaw: str) -> None:
    sparse = pb.Sparse(places=varints.write(gaps), float32=bytes(4 * len(gaps)))
    assert reason(message(size=3, sparse=sparse), 3) == flaw


@pytest.mark.parametrize("places", [b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x01"])
def test_places_are_written_as_shortly_as_they_can_be(places: bytes) -> None:
    sparse = pb.Sparse(places=places, float32=bytes(4))
    assert reason(message(size=3, sparse=sparse), 3) == "varint"


@pytest.mark.parametrize(("places", "values"), [(1, 8), (2, 4), (3, 3), (0, 4)])
def test_places_have_a_value_each(places: int, values: int) -> None:
    sparse = pb.Sparse(places=bytes(places), float32=bytes(values))
    assert reason(message(size=9, sparse=sparse), 9) == "length"


def test_a_mask_that_was_not_given_is_refused() -> None:
    mask = Mask.draw(layout(9), {"weight": 3}, 0)
    data = message(size=9, float32=bytes(12), given_mask=mask_name(mask.blob))
    assert reason(data, 9) == "mask"
    # nor one of its own, where none may have moved
    assert reason(message(size=9, float32=bytes(12), own_mask=mask.blob), 9) == "mask"


@pytest.mark.parametrize("blob", [b"", b"\x00", b"\x00\x09\xff", b"\x00\x0a\x07\x00", b"\x07\x09"])
def test_a_mask_of_its_own_that_is_none_is_refused(blob: bytes) -> None:
    data = message(size=9, float32=bytes(12), own_mask=blob)
    with pytest.raises(WireError) as refused:
        read_vector(data, Due(9, MOST, layout=layout(9)))
    assert refused.value.reason == "mask"


def test_values_are_as_many_as_a_mask_has_live() -> None:
    mask = Mask.draw(layout(9), {"weight": 3}, 0)
    name = mask_name(mask.blob)
    for nbytes, fits in ((8, False), (12, True), (36, False)):
        data = message(size=9, float32=bytes(nbytes), given_mask=name)
        if fits:
            assert read_vector(data, Due(9, MOST, {name: mask})).mask == mask
            continue
        with pytest.raises(WireError, match="12 B are due"):
            read_vector(data, Due(9, MOST, {name: mask}))


@pytest.mark.parametrize(
    ("block", "scales", "q", "flaw"),
    [
        (0, [1.0], 3, "scales"),
        (2, [1.0], 3, "length"),
        (2, [1.0] * 3, 3, "length"),
        (2, [1.0] * 2, 4, "length"),
        (2, [1.0, np.nan], 3, "scales"),
        (2, [np.inf, 1.0], 3, "scales"),
        (2, [3e38, 1.0], 3, "not-finite"),  # 3e38 x 3
    ],
)
def test_int8_scales_match_and_are_finite(
    block: int, scales: list[float], q: int, flaw: str
) -> None:
    int8 = pb.Int8(block=block, scales=float32(scales), q=b"\x03" * q)
    assert reason(message(size=3, int8=int8), 3) == flaw


@pytest.mark.parametrize(
    ("block", "scales", "q", "flaw"),
    [
        (0, [1.0], b"\x03", "scales"),
        (2, [1.0], b"\x03", "length"),
        (4, [1.0], b"\x03\x00", "length"),
        (4, [np.nan], b"\x03", "scales"),
        (4, [1.0], b"\x0b", "malformed"),  # a fourth bit of three values
    ],
)
def test_signs_match_their_values(block: int, scales: list[float], q: bytes, flaw: str) -> None:
    sign = pb.Sign(block=block, scales=float32(scales), q=q)
    assert reason(message(size=3, sign=sign), 3) == flaw
    sparse = pb.Sparse(places=bytes(3), sign=sign)
    assert reason(message(size=9, sparse=sparse), 9) == flaw


def test_a_block_that_claims_billions_allocates_nothing_of_the_kind() -> None:
    int8 = pb.Int8(block=2**32 - 1, scales=float32([0.5]), q=b"\x02\x04\xfe")
    data = message(size=3, int8=int8)
    tracemalloc.start()
    try:
        values = read_vector(data, Due(3, MOST)).values
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert np.frombuffer(values, np.float32).tolist() == [1.0, 2.0, -1.0]


# ---- differences of models -------------------------------------------------------------------


@given(st.lists(st.tuples(any_bits, any_bits, st.integers(0, 3)), min_size=1, max_size=200))
def test_a_delta_makes_the_model_exactly_and_is_shorter(rows: list[tuple[int, int, int]]) -> None:
    have = np.array([old for old, _, _ in rows], np.uint32)
    model = np.array([old if kept else new for old, new, kept in rows], np.uint32)
    delta = write_delta(have, model)
    if delta is not None:
        assert lay_over(have, delta) == model.tobytes()
        assert len(delta) < model.nbytes


def test_a_delta_of_few_changes_is_short() -> None:
    have = np.zeros(1000, np.float32)
    model = have.copy()
    model[[10, 13, 500]] = 1.0  # the gap of two costs as much as another range
    delta = write_delta(have, model)
    assert delta is not None
    assert pb.Vector.FromString(delta).edges == [10, 14, 500, 501]
    # the size, four edges, five values
    assert len(delta) == 5 + (2 + 4 * 4) + (2 + 4 * 5)


def test_there_is_no_delta_when_all_has_changed() -> None:
    assert write_delta(np.zeros(100, np.float32), np.ones(100, np.float32)) is None


def test_the_same_model_costs_one_coordinate() -> None:
    model = np.arange(1000, dtype=np.float32)
    delta = write_delta(model, model)
    assert delta is not None
    assert lay_over(model, delta) == model.tobytes()
    assert len(delta) == 5 + (2 + 8) + (2 + 4)


def test_there_is_no_delta_between_models_of_two_sizes() -> None:
    assert write_delta(bytes(400), bytes(404)) is None
    assert write_delta(b"", b"") is None


def test_a_delta_to_another_model_is_refused() -> None:
    model = np.arange(1000, dtype=np.float32)
    delta = write_delta(model, model)
    assert delta is not None
    with pytest.raises(WireError, match="1,000 coordinates; the model has 999"):
        lay_over(model[:999], delta)


def test_a_delta_of_places_is_refused() -> None:
    update = Update(0, 0, 0, 0, 1, bytes(4), ((0, 9),), places=bytes(4))
    with pytest.raises(WireError, match="at some places; ranges are due"):
        lay_over(bytes(36), write_values(update, 9))
