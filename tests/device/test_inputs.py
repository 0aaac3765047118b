"""The arrays that people give: in the model's order, stored in the device's."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.device import inputs
from fedtiny.device.inputs import Input
from fedtiny.errors import DataError
from fedtiny.tensors import floats, ints

PICTURE = Input("x", (2, 3, 4), floats, "give [n, 2, 3, 4]", axes=(1, 2, 0))
AS_IT_IS = replace(PICTURE, axes=())


def taken(input: Input, values: Any) -> tuple[list[float], int]:
    view, count = input.take(values)
    return list(view), count


@given(st.permutations(range(3)), st.integers(1, 3))
def test_samples_are_stored_in_the_order_of_the_axes(axes: list[int], count: int) -> None:
    x = np.arange(count * 24, dtype=np.float32).reshape(count, 2, 3, 4)
    stored = x.transpose(0, *(a + 1 for a in axes)).ravel().tolist()
    assert taken(replace(PICTURE, axes=tuple(axes)), x) == (stored, count)


def test_flat_rows_are_in_the_order_of_the_device_already() -> None:
    x = np.arange(48, dtype=np.float32)
    assert taken(PICTURE, x) == (x.tolist(), 2)
    assert taken(PICTURE, x.reshape(2, 24)) == (x.tolist(), 2)
    assert taken(PICTURE, x.tolist()) == (x.tolist(), 2)


def test_one_sample_alone_is_one() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert taken(PICTURE, x) == (x.transpose(1, 2, 0).ravel().tolist(), 1)
    assert taken(AS_IT_IS, x) == (x.ravel().tolist(), 1)


def test_without_numpy_the_order_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    expected = taken(PICTURE, x)
    monkeypatch.setattr(inputs, "has_numpy", lambda: False)
    assert taken(PICTURE, x) == expected


def test_tensors_of_torch_are_arrays_too() -> None:
    x = torch.arange(48, dtype=torch.float32).view(2, 2, 3, 4)
    assert taken(PICTURE, x) == taken(PICTURE, x.numpy())
    labels = Input("y", (), ints, "give integers")
    assert taken(labels, torch.tensor([2, 0, 1])) == ([2, 0, 1], 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3, 4, 2), np.float32), r"x has the shape \(2, 3, 4, 2\), a sample of it"),
        (array("f", [0.0] * 25), r"25 values are no whole number of samples; give \[n, 2, 3, 4\]"),
        (np.full((1, 2, 3, 4), np.nan), r"24 of 24 values are NaN"),
        ("text", r"x: the str cannot be read as float32"),
    ],
)
def test_what_is_no_sample_is_refused(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PICTURE.take(values)
