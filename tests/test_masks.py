from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import masks, rng, varints
from fedtiny.errors import DataError, WireError
from fedtiny.layout import Layout, Parameter, Ranges
from fedtiny.masks import BITMAP, RUNS, SEED, Mask

LAYOUT = Layout.of([Parameter("a.weight", (5, 13)), Parameter("a.bias", (3,)),
                    Parameter("b.weight", (40,))])  # fmt: skip
SIZE = LAYOUT.size  # 108: the last byte of the bits is half empty

sparse = st.sets(st.integers(0, SIZE - 1), max_size=8).map(sorted)
dense = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(lambda b: list(np.flatnonzero(b)))
lives = st.one_of(sparse, dense, st.just(list(range(SIZE)))).map(lambda at: [int(i) for i in at])
ranges = st.lists(st.integers(0, SIZE), unique=True, max_size=6).map(
    lambda cuts: tuple(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
)
draws = st.tuples(st.integers(0, 65), st.integers(0, 40), st.integers(0, 2**64 - 1))


@contextmanager
def numpy(present: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for room in (masks, varints):
            patch.setattr(room, "has_numpy", lambda: present)
        yield


def mask_of(live: list[int], size: int = SIZE) -> Mask:
    return Mask.of(np.isin(np.arange(size), live))


def layout_of(size: int) -> Layout:
    return Layout.of([Parameter("w", (size,))])


# --- which are live


def test_a_coordinate_is_a_bit_the_first_the_lowest() -> None:
    mask = mask_of([0, 3, 9], 12)
    assert mask == Mask(12, bytes([0b1001, 0b10]))
    assert mask.count == 3
    assert np.flatnonzero(mask.bools).tolist() == [0, 3, 9]


@given(lives, ranges)
def test_the_live_coordinates_are_counted_and_listed_within_ranges(
    live: list[int], within: Ranges
) -> None:
    expected = [i for i in live if any(start <= i < stop for start, stop in within)]
    for present in (True, False):
        with numpy(present):
            mask = mask_of(live)
            for _ in range(2):  # the second time it is remembered
                assert list(mask.coordinates(within)) == expected
            assert mask.length(within) == len(expected)
            assert mask.count == len(live)
    parameters = [(0, 65), (65, 68), (68, 108)]
    assert mask.counts(LAYOUT) == tuple(
        sum(start <= i < stop for i in live) for start, stop in parameters
    )


@given(lives, sparse, sparse)
def test_coordinates_die_and_come_to_life(live: list[int], dead: list[int], new: list[int]) -> None:
    moved = mask_of(live).moved(dead, new)
    assert moved == mask_of(sorted(set(live) - set(dead) | set(new)))


@given(st.sets(st.integers(0, 64)), st.sets(st.integers(0, 39)))
def test_a_mask_keeps_places_of_the_named_parameters_and_all_of_the_others(
    a: set[int], b: set[int]
) -> None:
    expected = mask_of([*a, 65, 66, 67, *(68 + place for place in b)])
    for present in (True, False):
        with numpy(present):
            found = Mask.keeping(LAYOUT, {"b.weight": sorted(b), "a.weight": list(a)})
            assert found == expected


def test_masks_are_equal_by_their_bits_however_they_came_about() -> None:
    drawn = Mask.draw(LAYOUT, {"a.weight": 7}, 3)
    same = Mask.of(drawn.bools)
    assert drawn == same
    assert hash(drawn) == hash(same)
    assert drawn != Mask.draw(LAYOUT, {"a.weight": 7}, 4)


@pytest.mark.parametrize(("size", "bits"), [(9, b"\1"), (8, b"\1\0"), (9, b"\1\2"), (0, b"\0")])
def test_bits_that_are_not_those_of_the_size_are_refused(size: int, bits: bytes) -> None:
    with pytest.raises(DataError, match=rf"the bits of {size} coordinates; give \d B"):
        Mask(size, bits)


# --- drawn masks


@given(draws)
def test_a_drawn_mask_has_the_first_places_of_the_shuffle_of_each_parameter(
    drawn: tuple[int, int, int],
) -> None:
    a, b, seed = drawn
    live = [65, 66, 67]
    for ordinal, offset, size, count in ((0, 0, 65, a), (2, 68, 40, b)):
        key = rng.block(seed, 0, ordinal, rng.Purpose.MASK, 0)
        live += [offset + rng.shuffle(at, size, key) for at in range(count)]
    for present in (True, False):
        with numpy(present):
            mask = Mask.draw(LAYOUT, {"a.weight": a, "b.weight": b}, seed)
            assert mask == mask_of(live)
            assert mask.counts(LAYOUT) == (a, 3, b)


# --- as bytes


def forms_of(mask: Mask) -> dict[int, bytes]:
    """The blob in each form, the obvious way."""
    size = varints.write([mask.size])
    bits = bytes(
        sum(int(live) << k for k, live in enumerate(mask.bools[at : at + 8]))
        for at in range(0, mask.size, 8)
    )
    runs, live = [0], False
    for one in mask.bools.tolist():
        if one != live:
            runs.append(0)
            live = one
        runs[-1] += 1
    forms = {BITMAP: b"\0" + size + bits, RUNS: b"\1" + size + varints.write(runs)}
    if mask.drawn:
        pairs = [number for pair in mask.drawn.counts for number in pair]
        seed = mask.drawn.seed.to_bytes(8, "little")
        forms[SEED] = b"\2" + size + seed + varints.write(pairs)
    return forms


def test_the_forms_by_hand() -> None:
    some = mask_of([3, 4, 9], 10)
    assert forms_of(some) == {0: bytes([0, 10, 0b11000, 0b10]), 1: bytes([1, 10, 3, 2, 4, 1])}
    assert some.blob == bytes([0, 10, 0b11000, 0b10])
    half = mask_of(list(range(300, 600)), 600)  # 300 = 2 * 128 + 44, 600 = 4 * 128 + 88
    assert half.blob == bytes([1, 88 + 128, 4, 44 + 128, 2, 44 + 128, 2])
    drawn = Mask.draw(LAYOUT, {"b.weight": 9, "a.weight": 20}, 0x0102)
    assert drawn.blob == bytes([2, 108, 2, 1, 0, 0, 0, 0, 0, 0, 0, 20, 2, 9])


@given(st.one_of(lives.map(mask_of), draws.map(
    lambda drawn: Mask.draw(LAYOUT, {"a.weight": drawn[0], "b.weight": drawn[1]}, drawn[2])
)))  # fmt: skip
def test_every_form_comes_back_and_the_shortest_is_written(mask: Mask) -> None:
    forms = forms_of(mask)
    for present in (True, False):
        with numpy(present):
            again = Mask(mask.size, mask.bits, mask.drawn)
            assert again.blob == min(forms.values(), key=len)
            for form, blob in forms.items():
                if form != RUNS or len(blob) <= len(forms[BITMAP]):
                    assert Mask.read(blob, LAYOUT) == mask


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 2**32))
def test_masks_of_any_size_and_density_come_back(size: int, density: float, seed: int) -> None:
    live = np.random.default_rng(seed).random(size) < density
    blobs = []
    for present in (True, False):
        with numpy(present):
            mask = Mask.of(live)
            blobs.append(mask.blob)
            assert Mask.read(mask.blob, layout_of(size)) == mask
    assert blobs[0] == blobs[1] == min(forms_of(mask).values(), key=len)


def test_a_mask_that_was_read_as_a_seed_is_written_as_one() -> None:
    blob = Mask.draw(LAYOUT, {"a.weight": 20, "b.weight": 9}, 12).blob
    assert blob[0] == SEED
    assert Mask.read(blob, LAYOUT).blob == blob


# --- what is no mask


@given(st.one_of(
    st.binary(max_size=40),
    st.tuples(st.integers(0, 3), st.binary(max_size=24)).map(
        lambda b: bytes([b[0], SIZE]) + b[1]
    ),
    st.lists(st.integers(0, 60), max_size=12).map(lambda runs: bytes([1, SIZE, *runs])),
    st.lists(st.integers(0, 9), max_size=6).map(lambda tail: bytes([2, SIZE, *bytes(8), *tail])),
))  # fmt: skip
def test_any_bytes_are_a_mask_of_the_layout_or_a_wire_error(blob: bytes) -> None:
    told = []
    for present in (True, False):
        with numpy(present):
            try:
                mask = Mask.read(blob, LAYOUT)
                told.append(mask.bits.hex())
                assert mask.size == SIZE
                assert blob in forms_of(mask).values()
            except WireError:
                told.append("refused")
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("blob", "flaw"),
    [
        (b"", "no mask of 108 coordinates"),
        (bytes([0, 107, *bytes(14)]), "no mask of 108 coordinates"),
        (bytes([3, 108, *bytes(14)]), "no mask of 108 coordinates"),
        (bytes([0, 108, *bytes(13)]), "has 13 B for 108 coordinates"),
        (bytes([0, 108, *bytes(13), 16]), "bits behind its last coordinate"),
        (bytes([1, 108, 100]), "do not add up"),
        (bytes([1, 108, 100, 9]), "do not add up"),
        (bytes([1, 108, 100, 0, 8]), "runs that are empty"),
        (bytes([1, 108, *[1] * 15]), "longer than one bit a coordinate"),
        (bytes([2, 108, *bytes(7)]), "a seed of no such layout"),
        (bytes([2, 108, *bytes(8), 0]), "a parameter without a count"),
        (bytes([2, 108, *bytes(8), 2, 1, 0, 1]), "parameters out of order"),
        (bytes([2, 108, *bytes(8), 3, 1]), "a parameter too many"),
        (bytes([2, 108, *bytes(8), 1, 4]), "too many live"),
    ],
)
def test_a_blob_that_is_no_mask_says_why(blob: bytes, flaw: str) -> None:
    for present in (True, False):
        with numpy(present), pytest.raises(WireError, match=flaw):
            Mask.read(blob, LAYOUT)


def test_a_reader_allocates_by_the_layout_whatever_the_blob_says() -> None:
    giants = varints.write([2**34, 2**34, 1])
    for blob in (bytes([1, SIZE]) + giants, b"\1" + varints.write([2**34]) + giants):
        for present in (True, False):
            with numpy(present):
                tracemalloc.start()
                try:
                    with pytest.raises(WireError):
                        Mask.read(blob, LAYOUT)
                    assert tracemalloc.get_traced_memory()[1] < 2**16
                finally:
                    tracemalloc.stop()


def test_a_mask_is_read_once_however_often_it_is_used() -> None:
    blob = Mask.draw(LAYOUT, {"a.weight": 11}, 5).blob
    assert masks.remembered(blob, LAYOUT) is masks.remembered(bytes(bytearray(blob)), LAYOUT)
