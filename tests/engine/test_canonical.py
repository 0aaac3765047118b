"""The canonical functions and the generator in C against their Python twins, bit by bit."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedtiny import draws, elementary, rng
from fedtiny.engine.runtime import build
from fedtiny.rng import Purpose

Array = npt.NDArray[Any]

HERE = Path(__file__).parent
RNG = json.loads((HERE.parent / "vectors" / "rng.json").read_text())
ELEMENTARY = json.loads((HERE.parent / "vectors" / "elementary.json").read_text())
FUNCTIONS = ["exp", "log", "tanh", "sigmoid", "sin", "cos"]

# Lanes and scalars, every optimiser, and the checks for undefined behaviour.
VARIANTS = {
    "O0": ["-O0"],
    "O3": ["-O3"],
    "native": ["-O3", "-march=native"],
    "small": ["-O2", "-DFT_SMALL"],
    "undefined": ["-O1", "-fsanitize=undefined,float-cast-overflow"],
}


@pytest.fixture(scope="module", params=VARIANTS)
def forms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("forms") / f"{request.param}.so"
    command = [*build.compiler(), *build.FLAGS, "-shared", *VARIANTS[request.param]]
    source = [f"-I{build.HERE}", str(HERE / "canonical.c"), "-o", str(library)]
    subprocess.run([*command, *source], check=True)
    return ctypes.CDLL(str(library))


def pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def in_c(forms: ctypes.CDLL, name: str, x: Array) -> Array:
    y = np.empty_like(x)
    getattr(forms, f"loop_{name}")(pointer(x), pointer(y), len(x))
    return y


def words_of(texts: list[str]) -> Array:
    return np.array([int(text, 16) for text in texts], np.uint32)


@pytest.fixture(scope="module")
def sweep() -> Array:
    """A million bit patterns: NaNs, infinities, denormals, and many of everyday size."""
    generator = np.random.default_rng(1)
    any_bits = generator.integers(0, 2**32, 500_000, np.uint32).view(np.float32)
    usual = generator.uniform(-100, 100, 500_003).astype(np.float32)
    return np.concatenate([any_bits, usual])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_million_bit_patterns_agree(
    forms: ctypes.CDLL, sweep: Array, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, expected = in_c(forms, name, sweep), getattr(elementary, name)(sweep)
    same = found.view(np.uint32) == expected.view(np.uint32)
    both_nan = np.isnan(found) & np.isnan(expected)
    assert sweep[~(same | both_nan)].tolist() == []
    assert "runtime error" not in capfd.readouterr().err


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_shared_vectors_of_the_functions_hold(forms: ctypes.CDLL, name: str) -> None:
    x, y = (words_of(list(column)) for column in zip(*ELEMENTARY[name], strict=True))
    np.testing.assert_array_equal(in_c(forms, name, x.view(np.float32)).view(np.uint32), y)


def test_philox_gives_the_known_answers(forms: ctypes.CDLL) -> None:
    for case in RNG["philox"]:
        counter, key = words_of(case["counter"]), words_of(case["key"])
        forms.philox(pointer(counter), ctypes.c_uint32(key[0]), ctypes.c_uint32(key[1]))
        np.testing.assert_array_equal(counter, words_of(case["words"]))


@pytest.mark.parametrize("case", RNG["streams"])
def test_a_stream_gives_the_same_words(forms: ctypes.CDLL, case: dict[str, list[str]]) -> None:
    run, round, device, purpose, *shared = (int(text, 16) for text in case["numbers"])
    found = np.empty(64, np.uint32)
    numbers = map(ctypes.c_uint32, (round, device, purpose, 16))
    forms.stream_words(ctypes.c_uint64(run), *numbers, pointer(found))
    assert found[: len(shared)].tolist() == shared
    assert found.tolist() == rng.words(run, round, device, Purpose(purpose), 64)


def test_uniforms_and_integers_agree(forms: ctypes.CDLL) -> None:
    words = np.random.default_rng(2).integers(0, 2**32, 10_000, np.uint32)
    uniform, below = np.empty(len(words), np.float32), np.empty_like(words)
    low, high = ctypes.c_float(-0.3), ctypes.c_float(1.7)
    forms.uniforms(pointer(words), len(words), low, high, pointer(uniform))
    forms.belows(pointer(words), len(words), 1000, pointer(below))
    np.testing.assert_array_equal(uniform, draws.uniform(words, -0.3, 1.7))
    np.testing.assert_array_equal(below, draws.below(words, 1000))


@pytest.mark.parametrize("case", RNG["shuffles"])
def test_a_shuffle_gives_the_shared_order(forms: ctypes.CDLL, case: dict[str, list[int]]) -> None:
    run, *stream = case["stream"]
    order = np.empty(len(case["order"]), np.uint32)
    forms.permutation(ctypes.c_uint64(run), *stream, len(order), pointer(order))
    assert order.tolist() == case["order"]


def test_eight_sums_at_once_are_eight_sums(forms: ctypes.CDLL) -> None:
    if not hasattr(forms, "sums_of_8"):
        assert "small" in forms._name
        return
    x = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)
    one_by_one, together = np.empty((2, 8), np.float32)
    forms.sums_of_8(pointer(x), pointer(one_by_one), pointer(together))
    pairs = x[:, 0::2] + x[:, 1::2]
    fours = pairs[:, 0::2] + pairs[:, 1::2]
    np.testing.assert_array_equal(one_by_one, fours[:, 0] + fours[:, 1])
    np.testing.assert_array_equal(together, one_by_one)
