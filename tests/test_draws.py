"""Columns of random numbers are the numbers of `fedtiny.rng`, device by device."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedtiny import draws, rng
from fedtiny.rng import Purpose

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rng.json").read_text())
DEVICES = st.lists(st.integers(0, 2**32 - 1), max_size=6)
RUN = st.integers(0, 2**64 - 1)


def columns(devices: list[int]) -> npt.NDArray[np.int64]:
    return np.array(devices, np.int64)


@given(RUN, st.integers(0, 2**32 - 1), DEVICES, st.sampled_from(Purpose), st.integers(0, 9))
def test_words_are_those_of_each_device(
    run: int, round: int, devices: list[int], purpose: Purpose, count: int
) -> None:
    found = draws.words(run, round, columns(devices), purpose, count)
    assert found.dtype == np.uint32
    assert found.shape == (len(devices), count)
    assert found.tolist() == [rng.words(run, round, d, purpose, count) for d in devices]


def test_more_devices_than_fit_in_a_chunk_are_drawn_alike() -> None:
    found = draws.words(5, 1, np.arange(40_000), Purpose.SELECT, 1)[:, 0]
    for device in (0, 16_383, 16_384, 39_999):
        assert found[device] == rng.words(5, 1, device, Purpose.SELECT, 1)[0]


def test_the_shared_uniforms_and_integers_hold() -> None:
    uniform, below = VECTORS["uniforms"], VECTORS["belows"]
    words = np.array([int(word, 16) for word in uniform["words"]], np.uint32)
    bits = draws.uniform(words, uniform["low"], uniform["high"]).view(np.uint32)
    assert [f"{word:08x}" for word in bits] == uniform["bits"]
    assert draws.below(words, below["n"]).tolist() == below["values"]


@given(RUN, st.floats(-1e3, 1e3, width=32), st.floats(0, 1e3, width=32), st.integers(1, 2**32 - 1))
def test_uniforms_and_integers_are_those_of_the_scalar_form(
    run: int, low: float, span: float, n: int
) -> None:
    words = draws.words(run, 0, np.arange(3), Purpose.TASK, 4)
    plain = words.ravel().tolist()
    uniform = draws.uniform(words, low, low + span).ravel()
    assert uniform.dtype == np.float32
    assert uniform.tolist() == [rng.uniform(word, low, low + span) for word in plain]
    assert draws.below(words, n).ravel().tolist() == [rng.below(word, n) for word in plain]


@given(RUN, st.lists(st.integers(1, 200), min_size=1, max_size=5), st.integers(0, 5))
def test_shuffles_are_those_of_the_scalar_form(run: int, sizes: list[int], epoch: int) -> None:
    keys = draws.epoch_keys(run, 2, np.arange(len(sizes)), epoch)
    found = draws.shuffle(np.zeros(len(sizes), int), np.array(sizes), keys)
    expected = [
        rng.shuffle(0, n, rng.epoch_key(run, 2, device, epoch)) for device, n in enumerate(sizes)
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("n", [1, 4, 5, 16, 17, 1000])
def test_a_whole_shuffle_is_a_permutation(n: int) -> None:
    key = draws.epoch_keys(3, 0, np.array([9]), 0)
    assert sorted(draws.shuffle(np.arange(n), n, key).tolist()) == list(range(n))


def test_normals_have_the_moments_of_a_normal() -> None:
    x = draws.normal(draws.words(1, 0, np.arange(100_000), Purpose.TASK, 2)).astype(np.float64)
    # Standard errors of 200,000 draws: 0.0022 of the mean, 0.0032 of the variance, 0.011 of the
    # fourth moment (variance 96).
    assert abs(x.mean()) < 0.01
    assert abs(x.var() - 1.0) < 0.015
    assert abs((x**4).mean() - 3.0) < 0.1
    assert abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) < 0.015


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40).map(lambda w: w[len(w) % 2 :]))
@example([0, 0, 0, 2**32 - 1, 2**32 - 1, 0, 2**32 - 1, 2**32 - 1])
def test_normals_are_those_of_the_scalar_form(words: list[int]) -> None:
    found = draws.normal(np.array(words, np.uint32))
    assert rng.normal(words) == found.tolist()


@given(DEVICES.map(lambda d: sorted(set(d))), st.integers(0, 8))
def test_the_lowest_devices_are_those_with_the_smallest_words(
    devices: list[int], count: int
) -> None:
    expected = sorted(devices, key=lambda d: (rng.words(4, 2, d, Purpose.SELECT, 1)[0], d))
    assert draws.lowest(4, 2, columns(devices), count).tolist() == expected[:count]


def test_every_device_is_chosen_about_equally_often() -> None:
    chosen = np.concatenate([draws.lowest(8, round, np.arange(50), 10) for round in range(500)])
    # 100 expected of each; five standard deviations are 5 * sqrt(500 * 0.2 * 0.8) = 45.
    assert np.abs(np.bincount(chosen, minlength=50) - 100).max() < 45
