"""A delta and its transforms: what is sent of it, with NumPy and without, and what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.device.learner import Key
from fedtiny.errors import DataError, StrategyError
from fedtiny.layout import Ranges, coordinates, length
from fedtiny.masks import Mask
from fedtiny.transforms.chain import Sent, transformed
from fedtiny.transforms.quantisers import values_of
from fedtiny.transforms.table import parse
from fedtiny.values import Instruction, Transform
from tests.transforms.both import SEEDS, alike, drawn

SIZE = 200
WHOLE: Ranges = ((0, SIZE),)
PARTS: Ranges = ((10, 70), (90, 181))
PLACE = Key(5, 2, 1)
CHAINS = (
    ("clip:0.5",), ("noise:0.1",), ("feedback", "topk:0.1"), ("topk:0.3", "qsgd:15"),
    ("clip:3", "noise:0.01", "feedback", "randomk:0.25", "int8"), ("feedback", "sign"), ("int8",),
)  # fmt: skip


def send(
    texts: tuple[str, ...], values: bytes, base: bytes | None = None, ranges: Ranges = WHOLE,
    place: Key = PLACE, residual: bytes = b"", mask: Mask | None = None,
) -> Sent:  # fmt: skip
    asked = Instruction(transforms=parse(texts))
    return transformed(asked, values, base, ranges, mask, SIZE, place, residual)


def float32(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.float32)


def whole(sent: Sent, ranges: Ranges = WHOLE) -> np.ndarray:
    """What was sent, over the whole vector."""
    moved = np.zeros(SIZE)
    at = coordinates(ranges) if sent.mask is None else sent.mask.coordinates(ranges)
    if sent.places is not None:
        at = np.frombuffer(sent.places, np.uint32)
    moved[at] = float32(sent.values)
    return moved


# ---- laws of whole chains ----------------------------------------------------------------------


@pytest.mark.parametrize("texts", CHAINS)
@pytest.mark.parametrize("ranges", [WHOLE, PARTS])
def test_a_board_without_numpy_sends_the_same_bits(texts: tuple[str, ...], ranges: Ranges) -> None:
    count = length(ranges)
    residual = drawn(3, SIZE) if "feedback" in texts else b""
    sent = alike(lambda: send(texts, drawn(1, count), drawn(2, count), ranges, residual=residual))
    assert len(sent.residual) == len(residual)
    assert (sent.quantised is None) == (texts[-1][:4] not in ("int8", "qsgd", "sign"))
    if sent.quantised:
        assert values_of(sent.quantised, len(sent.values) // 4) == sent.values


def test_without_transforms_that_choose_the_delta_is_the_difference() -> None:
    sent = send(("clip:1e9",), drawn(1, SIZE), drawn(2, SIZE))
    np.testing.assert_array_equal(
        float32(sent.values), float32(drawn(1, SIZE)) - float32(drawn(2, SIZE))
    )
    gradient = send(("clip:1e9",), drawn(1, SIZE))
    assert gradient.values == drawn(1, SIZE)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_a_clipped_delta_is_within_its_norm(seed: int, norm: float) -> None:
    values = float32(drawn(seed, SIZE)).astype(np.float64)
    sent = float32(send((f"clip:{norm}",), drawn(seed, SIZE)).values).astype(np.float64)
    assert np.linalg.norm(sent) <= norm or np.array_equal(sent, values)
    if np.linalg.norm(values) > norm:
        np.testing.assert_allclose(sent, values * norm / np.linalg.norm(values), 3e-7, 1e-38)


def test_noise_has_its_deviation_and_is_another_on_each_device_and_in_each_round() -> None:
    deltas = [
        float32(send(("noise:0.5",), bytes(4 * SIZE), place=Key(5, round, device)).values)
        for round in range(10)
        for device in range(10)
    ]
    assert len({delta.tobytes() for delta in deltas}) == 100
    # 20,000 numbers: the deviation of their deviation is 0.5 / sqrt(40,000)
    assert np.std(deltas) == pytest.approx(0.5, abs=4 * 0.5 / 200)
    assert abs(np.mean(deltas)) < 4 * 0.5 / np.sqrt(20_000)


@settings(max_examples=20)
@given(
    st.sampled_from(
        [("feedback", "topk:0.1"), ("feedback", "int8"), ("feedback", "topk:0.2", "sign"),
         ("feedback", "randomk:0.3", "qsgd:3")]
    ),
    SEEDS,
    st.sampled_from([WHOLE, PARTS]),
)  # fmt: skip
def test_what_was_sent_and_what_is_left_are_the_sum_of_the_deltas(
    texts: tuple[str, ...], seed: int, ranges: Ranges
) -> None:
    draws, residual = np.random.default_rng(seed), b""
    deltas, sums = np.zeros(SIZE), np.zeros(SIZE)
    for round in range(8):
        delta = draws.normal(size=length(ranges)).astype(np.float32)
        sent = send(texts, delta.tobytes(), None, ranges, Key(5, round, 1), residual)
        deltas[coordinates(ranges)] += delta
        sums += whole(sent, ranges)
        residual = sent.residual
    np.testing.assert_allclose(sums + float32(residual), deltas, rtol=0, atol=1e-4)


def test_what_is_left_stays_when_other_coordinates_train() -> None:
    first = send(("feedback", "topk:0.1"), drawn(1, 60), None, ((0, 60),))
    second = send(
        ("feedback", "topk:0.1"), drawn(2, 40), None, ((100, 140),), residual=first.residual
    )
    kept, before = float32(second.residual), float32(first.residual)
    np.testing.assert_array_equal(kept[:100], before[:100])
    assert np.count_nonzero(kept[100:140]) > 0
    assert not kept[140:].any()


def test_what_another_model_has_left_is_told_apart() -> None:
    with pytest.raises(DataError, match=r"12 B are kept .* needs 800 B; let the device forget"):
        send(("feedback", "topk:0.1"), drawn(1, SIZE), residual=bytes(12))


# ---- what is chosen ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [Transform("zip"), Transform("qsgd"), Transform("qsgd", 1e18), Transform("noise", math.inf)],
)
def test_a_device_gives_up_a_chain_that_nobody_can_carry_out(asked: Transform) -> None:
    told, instruction = f"transforms: .*{asked.name}", Instruction(transforms=(asked,))
    with pytest.raises(StrategyError, match=told):
        transformed(instruction, drawn(1, SIZE), None, WHOLE, None, SIZE, PLACE)


def test_topk_sends_the_largest_of_what_trained_and_says_where() -> None:
    sent = send(("topk:0.1",), drawn(1, length(PARTS)), None, PARTS)
    delta = float32(drawn(1, length(PARTS)))
    ranked = sorted(range(delta.size), key=lambda at: (-abs(delta[at]), at))[:15]
    at = np.sort(ranked)  # a tenth of 151
    assert np.frombuffer(sent.places or b"", np.uint32).tolist() == coordinates(PARTS)[at].tolist()
    np.testing.assert_array_equal(float32(sent.values), delta[at])
    assert sent.mask is None


def test_topk_of_everything_is_no_transform() -> None:
    for ranges in (WHOLE, PARTS):
        delta = drawn(1, length(ranges))
        assert send(("topk:1",), delta, None, ranges) == Sent(delta)


def test_topk_of_a_pruned_model_names_live_coordinates() -> None:
    live = np.random.default_rng(1).random(SIZE) < 0.3
    mask = Mask.of(live)
    sent = send(("topk:0.5",), drawn(1, mask.count), mask=mask)
    places = np.frombuffer(sent.places or b"", np.uint32)
    assert live[places].all()
    assert places.size == int(0.5 * mask.count + 0.5)
    assert sent.mask is mask


def test_randomk_sends_the_same_coordinates_on_every_device_and_others_in_each_round() -> None:
    sent = [send(("randomk:0.25",), drawn(d, SIZE), place=Key(5, 0, d)) for d in range(3)]
    masks = {each.mask for each in sent}
    assert len(masks) == 1
    (mask,) = masks
    assert mask is not None
    assert mask.count == 50
    assert all(each.places is None for each in sent)
    part = send(("randomk:0.25",), drawn(9, length(PARTS)), None, PARTS)
    whole_delta = np.zeros(SIZE, np.float32)
    whole_delta[coordinates(PARTS)] = float32(drawn(9, length(PARTS)))
    later = [send(("randomk:0.25",), drawn(0, SIZE), place=Key(5, t, 0)).mask for t in range(40)]
    assert len(set(later)) == 40
    assert part.mask == send(("randomk:0.25",), drawn(0, SIZE)).mask
    assert part.mask is not None
    np.testing.assert_array_equal(float32(part.values), whole_delta[part.mask.coordinates(PARTS)])
    # each coordinate is drawn in a quarter of the rounds: 4 deviations of 40 coins
    shares = np.mean([mask.bools for mask in later if mask], axis=0)
    assert abs(shares - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 40)


# ---- fewer bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["int8", "qsgd:3", "qsgd:127"])
def test_what_is_rounded_at_random_is_right_on_average(form: str) -> None:
    delta = float32(drawn(4, SIZE))
    sent = [float32(send((form,), drawn(4, SIZE), place=Key(5, t, 1)).values) for t in range(400)]
    # A value misses by less than a scale, and half of one on average at most.
    blocks = [delta[at : at + 64].astype(np.float64) for at in range(0, SIZE, 64)]
    levels = 127 if form == "int8" else int(form[5:])
    scales = [np.abs(b).max() if form == "int8" else np.linalg.norm(b) for b in blocks]
    scale = np.repeat(np.array(scales) / levels, 64)[:SIZE]
    missed = np.array(sent, np.float64) - delta
    assert (np.abs(missed) <= scale * (1 + 1e-6)).all()
    assert (np.abs(missed.mean(axis=0)) <= 5 * scale / 2 / np.sqrt(400) + 1e-44).all()


def test_signs_share_the_mean_size_of_their_block() -> None:
    delta = np.linspace(-1, 2, 300, dtype=np.float32)
    sent = transformed(
        Instruction(transforms=parse(["sign"])), delta, None, ((0, 300),), None, 300, PLACE
    )
    means = [np.abs(delta[:256].astype(float)).mean(), np.abs(delta[256:].astype(float)).mean()]
    expected = np.repeat(means, 256)[:300] * np.where(delta < 0, -1, 1)
    np.testing.assert_allclose(float32(sent.values), expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["int8", "qsgd:3", "sign"])
def test_a_delta_of_zeros_is_sent_as_zeros(form: str) -> None:
    assert not float32(send((form,), bytes(4 * SIZE)).values).any()
