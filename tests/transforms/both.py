"""The two forms of the arithmetic, and what is tried on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import strategies as st

from fedtiny.transforms import arithmetic
from fedtiny.transforms.sparsifiers import shared_mask

Result = TypeVar("Result")

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int) -> bytes:
    """float32 of very different sizes, some of them 0 and some of them equal."""
    draws = np.random.default_rng(seed)
    values = draws.normal(size=count) * draws.choice([0.0, 1e-42, 1e-3, 1.0, 1e4], size=count)
    values[draws.random(count) < 0.2] = 0.25
    return bytes(values.astype(np.float32))


@contextmanager
def without_numpy() -> Iterator[None]:
    """Transforms compute as they do where NumPy is absent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "has_numpy", lambda: False)
        shared_mask.cache_clear()
        yield


def alike(call: Callable[[], Result]) -> Result:
    """What a call gives: with NumPy and without, the same."""
    found = call()
    with without_numpy():
        assert call() == found
    return found
