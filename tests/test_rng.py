"""The counter generator against the published vectors, its twin in columns, and its laws."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import rng
from fedtiny.rng import Purpose, Words4

VECTORS = json.loads((Path(__file__).parent / "vectors" / "rng.json").read_text())
WORD = st.integers(0, 2**32 - 1)
KEY = st.tuples(WORD, WORD, WORD, WORD)


def number(text: str) -> int:
    return int(text, 16)


# The known answers of philox4x32-10 that come with Random123.
@pytest.mark.parametrize("case", VECTORS["philox"])
def test_philox_gives_the_known_answers(case: dict[str, list[str]]) -> None:
    c0, c1, c2, c3 = map(number, case["counter"])
    k0, k1 = map(number, case["key"])
    assert list(rng.philox((c0, c1, c2, c3), (k0, k1))) == [*map(number, case["words"])]


@pytest.mark.parametrize("case", VECTORS["streams"])
def test_a_stream_gives_the_shared_words(case: dict[str, list[str]]) -> None:
    run, round, device, purpose, *words = map(number, case["numbers"])
    assert rng.words(run, round, device, Purpose(purpose), len(words)) == words


@pytest.mark.parametrize("case", VECTORS["shuffles"])
def test_a_shuffle_gives_the_shared_order(case: dict[str, list[int]]) -> None:
    run, round, device, epoch = case["stream"]
    key = rng.epoch_key(run, round, device, epoch)
    n = len(case["order"])
    assert [rng.shuffle(at, n, key) for at in range(n)] == case["order"]


def test_a_stream_is_keyed_by_the_counter_that_its_definition_says() -> None:
    run, round, device = 0x1_0000_0002, 3, 4
    second = rng.philox((1, device, round, Purpose.TASK), (2, 1))
    assert tuple(rng.words(run, round, device, Purpose.TASK, 8)[4:]) == second


@given(WORD, st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32))
def test_a_uniform_is_rounded_to_float32_at_every_step(word: int, low: float, span: float) -> None:
    f = np.float32
    high = f(low) + f(span)
    u = f(word >> 8) * f(2**-24)
    assert rng.uniform(word, low, float(high)) == f(low) + (high - f(low)) * u


@given(st.integers(1, 2**32 - 1))
def test_below_stays_below_and_reaches_both_ends(n: int) -> None:
    assert rng.below(0, n) == 0
    assert rng.below(2**32 - 1, n) == n - 1


@given(st.integers(1, 300), KEY)
def test_a_shuffle_is_a_permutation(n: int, key: Words4) -> None:
    assert sorted(rng.shuffle(at, n, key) for at in range(n)) == list(range(n))


@given(st.integers(1, 2**32 - 1), KEY, st.data())
def test_a_shuffle_of_any_size_stays_inside(n: int, key: Words4, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, n - 1))
    assert 0 <= rng.shuffle(at, n, key) < n


@pytest.mark.parametrize("n", [2, 5, 10, 32])
def test_every_sample_comes_first_about_equally_often(n: int) -> None:
    epochs = 300 * n
    firsts = Counter(rng.shuffle(0, n, rng.epoch_key(7, 0, 0, epoch)) for epoch in range(epochs))
    # 300 expected of each; five standard deviations of a binomial are at most 5 * sqrt(300) = 87.
    assert len(firsts) == n
    assert all(abs(count - 300) < 87 for count in firsts.values())
