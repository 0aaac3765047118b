"""The numbers of int8 in C against the vectors that Python has too, bit by bit."""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

import numpy as np
import pytest

from fedtiny.engine.runtime import build
from fedtiny.quantised import ends_of
from tests.engine.test_canonical import HERE, pointer
from tests.int8_vectors import VECTORS, Array, floats_of, unhexed

VARIANTS = {
    "plain": ["-O0"],
    "lanes": ["-O3", "-march=native"],
    "undefined": ["-O1", "-fsanitize=undefined,float-cast-overflow"],
}


@pytest.fixture(scope="module", params=VARIANTS)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("int8") / f"{request.param}.so"
    command = [*build.compiler(), *build.FLAGS, "-shared", *VARIANTS[request.param]]
    subprocess.run(
        [*command, f"-I{build.HERE}", str(HERE / "int8.c"), "-o", str(library)], check=True
    )
    return ctypes.CDLL(str(library))


def assert_same_bits(found: Array, wanted: Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_scales_have_the_shared_bits(forms: ctypes.CDLL) -> None:
    x, wanted = (np.ascontiguousarray(row) for row in floats_of(VECTORS["scale16"]).T)
    found = np.empty_like(x)
    forms.scales(pointer(x), pointer(found), len(x))
    assert_same_bits(found, wanted)


def test_ranges_have_the_shared_scales_and_go_back_to_their_ends(forms: ctypes.CDLL) -> None:
    for lo, hi, scale, zero in floats_of(VECTORS["range"]):
        ends, found = np.array([lo, hi], np.float32), np.empty(2, np.float32)
        forms.range(pointer(ends), pointer(found))
        assert_same_bits(found, np.array([scale, zero], np.float32))
        forms.ends(pointer(found), pointer(ends))
        assert_same_bits(ends, np.array(ends_of(scale, zero), np.float32))


def test_weights_have_the_shared_steps_and_numbers(forms: ctypes.CDLL) -> None:
    for case in VECTORS["weights"]:
        w, wanted = floats_of(case["w"]), floats_of(case["step"])
        step, q = np.empty_like(wanted), np.empty(w.shape, np.int8)
        forms.weights(pointer(w), *w.shape, pointer(step), pointer(q))
        assert_same_bits(step, wanted)
        assert q.tolist() == case["q"]


def test_activations_have_the_shared_numbers(forms: ctypes.CDLL) -> None:
    for case in VECTORS["quantise"]:
        x, grid = floats_of(case["x"]), [unhexed(case[name]) for name in ("scale", "zero")]
        q = np.empty(len(x), np.int8)
        forms.activations(pointer(x), len(x), *map(ctypes.c_float, grid), pointer(q))
        assert q.tolist() == case["q"]


def test_updates_move_weights_as_the_shared_words_say(forms: ctypes.CDLL) -> None:
    for case in VECTORS["rounding"]:
        words, t = np.array(case["words"], np.uint32), floats_of(case["t"])
        q = np.array(case["q"], np.int8)
        forms.moves(pointer(words), pointer(t), pointer(q), len(q))
        assert q.tolist() == case["moved"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_no_float_is_beyond_these_numbers(forms: ctypes.CDLL, wrong: Any) -> None:
    """The checks for undefined behaviour would end the process."""
    x, found, q = np.full(4, wrong, np.float32), np.empty(2, np.float32), np.zeros(4, np.int8)
    forms.range(pointer(x), pointer(found))
    assert np.isfinite(found).all()
    forms.activations(pointer(x), 4, *map(ctypes.c_float, found.tolist()), pointer(q))
    forms.moves(pointer(np.zeros(4, np.uint32)), pointer(x), pointer(q), 4)
    assert (abs(q.astype(int)) <= 127).all()
