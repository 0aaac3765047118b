"""Changes of the inputs of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.data.domains import TABLE, Change, Room
from fedtiny.errors import ExperimentError

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

SIDE = 6


def images(seed: int, channels: int = 1, count: int = 3) -> Float32:
    x = np.random.default_rng(seed).random((count, SIDE * SIDE * channels), np.float32)
    x[0, :2] = 0.0, 1.0  # the whole range
    return x


def changed(text: str, x: Float32) -> Float32:
    normal = np.random.default_rng(9).standard_normal(x.shape, np.float32)
    return Change.parse(text).apply(x, Room(x.min(), x.max(), lambda: normal))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_quarter_turns_are_exact(turns: int, channels: int) -> None:
    x = images(1, channels)
    turned = np.rot90(x.reshape(-1, SIDE, SIDE, channels), turns, (1, 2)).reshape(x.shape)
    np.testing.assert_array_equal(changed(f"rotate:{90 * turns}", x), turned)


@given(st.floats(-180, 180))
def test_a_turned_image_stays_in_the_range_and_keeps_its_middle(degrees: float) -> None:
    x = images(2)
    x[:, [14, 15, 20, 21]] = 0.75  # the four pixels about the middle of 6 x 6
    turned = changed(f"rotate:{degrees}", x)
    assert turned.min() >= x.min() - 1e-6
    assert turned.max() <= x.max() + 1e-6
    uniform = np.full_like(x, 0.5)
    middle = changed(f"rotate:{degrees}", uniform).reshape(-1, SIDE, SIDE)[:, 2:4, 2:4]
    np.testing.assert_allclose(middle, 0.5, atol=1e-6)


@given(st.integers(0, 50))
def test_inverting_twice_is_nothing_and_exchanges_the_ends(seed: int) -> None:
    x = images(seed)
    once = changed("invert", x)
    assert once[0, :2].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(changed("invert", once), x, atol=1e-6)


def test_contrast_stretches_about_the_middle_of_the_range() -> None:
    x = images(3)
    np.testing.assert_allclose(changed("contrast:0.4", x), 0.5 + 0.4 * (x - 0.5), atol=1e-6)
    np.testing.assert_allclose(changed("contrast:-1", x), changed("invert", x), atol=1e-6)


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    x = np.zeros((100, 100), np.float32)
    assert changed("noise:0.3", x).std() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blur:2", "there is no change 'blur'; there are rotate:DEGREES, invert"),
        ("rotat:9", "did you mean 'rotate'"),
        ("rotate", "rotate needs degrees; write 'rotate:90'"),
        ("noise:much", "'much' is no number; write such as 'noise:0.3'"),
        ("noise:nan", "'nan' is no number"),
        ("invert:2", "invert takes no figure; write 'invert'"),
    ],
)
def test_what_is_no_change_is_refused(text: str, told: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        Change.parse(text)
    assert told in str(refused.value)


@pytest.mark.parametrize("features", [64, 3 * 64, 784])
def test_square_images_can_be_turned(features: int) -> None:
    for name, row in TABLE.items():
        Change.parse(row.example or name).check(features)


def test_what_is_no_square_image_cannot_be_turned_and_can_be_changed_else() -> None:
    Change.parse("noise:0.1").check(63)
    with pytest.raises(ExperimentError, match="a sample has 63 inputs: take one of invert, noise"):
        Change.parse("rotate:90").check(63)
