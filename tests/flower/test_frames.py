from __future__ import annotations

import io
import threading
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedtiny.errors import StrategyError
from fedtiny.flower.frames import NoTreeError, pack, read_frame, unpack, write_frame

_ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | _ARRAYS
)  # fmt: skip
_TREES = st.recursive(
    _LEAVES,
    lambda trees: (
        st.lists(trees, max_size=3)
        | st.tuples(trees, trees)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), trees, max_size=3)
    ),
    max_leaves=8,
)


class Point(NamedTuple):
    """A tuple that is more than one."""

    x: int
    y: int


def same(a: Any, b: Any) -> bool:
    """With the types and every bit."""
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


@given(_TREES)
def test_a_frame_is_its_tree_again(tree: Any) -> None:
    assert same(unpack(pack(tree)), tree)


def test_numbers_of_numpy_stay_numbers_of_numpy() -> None:
    (back,) = unpack(pack([np.float32(0.1)]))
    assert type(back) is np.float32
    assert back == np.float32(0.1)


def test_an_array_of_a_frame_can_be_changed() -> None:
    array = unpack(pack({"a": np.zeros(2)}))["a"]
    array[0] = 1.0


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"a": [1, {"lock": threading.Lock()}]}, r"Krum\.a\[1\]\.lock is a _thread\.lock"),
        (np.array([None]), r"Krum is a numpy\.ndarray"),
        ({frozenset(): 1}, r"a key of Krum is a builtins\.frozenset"),
        ({"seen": defaultdict(int)}, r"Krum\.seen is a collections\.defaultdict"),
        ([Point(1, 2)], r"Krum\[0\] is a tests\.flower\.test_frames\.Point"),
        (np.ma.array([1.0], mask=[True]), r"Krum is a numpy\.ma\.\S*MaskedArray"),
    ],
)
def test_what_is_no_tree_is_named_with_its_place(tree: Any, told: str) -> None:
    with pytest.raises(NoTreeError, match=told):
        pack(tree, "Krum")


def test_frames_follow_each_other_in_a_pipe_until_it_is_closed() -> None:
    pipe = io.BytesIO()
    write_frame(pipe, b"one")
    write_frame(pipe, b"")
    write_frame(pipe, b"cut off")
    pipe = io.BytesIO(pipe.getvalue()[:-1])
    assert [read_frame(pipe) for _ in range(3)] == [b"one", b"", None]


def test_a_length_that_no_frame_has_is_refused_before_anything_is_read() -> None:
    with pytest.raises(StrategyError, match=r"came b'Segmenta', which is no length of a frame"):
        read_frame(io.BytesIO(b"Segmentation fault"))
