"""The gate of online learning: a small state machine that sees outputs and labels."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.device.gating import Gate, Recent, decide, doubt, predicted

OUTPUTS = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=5)
STREAM = st.lists(st.tuples(OUTPUTS, st.integers(0, 4)), max_size=30)
KINDS = st.sampled_from(["confidence", "error"])
SIXTY_FOURTHS = st.integers(0, 64).map(lambda n: n / 64)  # times a length they are exact


def decisions(gate: Gate, stream: list[tuple[list[float], int]]) -> list[bool]:
    recent, adapted = Recent(), []
    for outputs, label in stream:
        recent, adapts = decide(gate, recent, outputs, label)
        adapted.append(adapts)
    return adapted


@given(STREAM)
def test_always_and_never_look_at_nothing(stream: list[tuple[list[float], int]]) -> None:
    assert decisions(Gate("always"), stream) == [True] * len(stream)
    assert decisions(Gate("never"), stream) == [False] * len(stream)


@given(STREAM, SIXTY_FOURTHS, st.integers(1, 8))
def test_error_adapts_while_the_share_of_wrong_ones_in_the_window_is_above_the_threshold(
    stream: list[tuple[list[float], int]], threshold: float, window: int
) -> None:
    wrong = [predicted(outputs) != label for outputs, label in stream]
    windows = [wrong[max(0, t + 1 - window) : t + 1] for t in range(len(wrong))]
    expected = [Fraction(sum(last), len(last)) > Fraction(threshold) for last in windows]
    assert decisions(Gate("error", threshold, window), stream) == expected


@given(STREAM)
def test_a_threshold_of_0_adapts_after_each_mistake(stream: list[tuple[list[float], int]]) -> None:
    wrong = [predicted(outputs) != label for outputs, label in stream]
    assert decisions(Gate("error", 0.0), stream) == wrong


@given(STREAM, st.floats(0, 1), st.floats(0, 1), st.integers(1, 8), KINDS)
def test_a_lower_threshold_leaves_no_step_out(
    stream: list[tuple[list[float], int]], one: float, other: float, window: int, kind: str
) -> None:
    low, high = (
        decisions(Gate(kind, threshold, window), stream) for threshold in sorted((one, other))
    )
    assert all(at_low or not at_high for at_low, at_high in zip(low, high, strict=True))


@given(STREAM, STREAM, SIXTY_FOURTHS, st.integers(1, 4), KINDS)
def test_what_lies_before_the_window_changes_nothing(
    past: list[tuple[list[float], int]], stream: list[tuple[list[float], int]],
    threshold: float, window: int, kind: str,
) -> None:  # fmt: skip
    gate = Gate(kind, threshold, window)
    settled = decisions(gate, past + stream)[len(past) :]
    assert settled[window - 1 :] == decisions(gate, stream)[window - 1 :]


@given(OUTPUTS)
def test_doubt_is_what_softmax_leaves_to_the_other_classes(outputs: list[float]) -> None:
    shares = [math.exp(output - max(outputs)) for output in outputs]
    exact = math.fsum(sorted(shares)[:-1]) / math.fsum(shares)
    assert doubt(outputs) == pytest.approx(exact, rel=1e-11, abs=1e-15)
    assert 0.0 <= doubt(outputs) <= 1.0 - 1.0 / len(outputs) + 1e-12


def test_doubt_of_two_equal_outputs_is_one_half() -> None:
    assert doubt([3.0, 3.0]) == 0.5
    assert doubt([0.0, -math.log(3.0)]) == pytest.approx(0.25)  # 1/3 of 4/3


@pytest.mark.parametrize("outputs", [[math.nan, 1.0], [math.inf, 0.0], [0.0, -math.inf]])
def test_outputs_that_are_not_finite_are_as_doubtful_and_as_wrong_as_can_be(
    outputs: list[float],
) -> None:
    assert doubt(outputs) == 1.0
    assert predicted(outputs) == -1


@given(OUTPUTS)
def test_the_first_of_the_largest_outputs_is_predicted(outputs: list[float]) -> None:
    assert predicted(outputs) == outputs.index(max(outputs))
