"""Transforms that send values as small numbers: a byte or a bit each, and a scale for a block."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from fedtiny.rng import Purpose
from fedtiny.transforms.arithmetic import arithmetic
from fedtiny.values import Quantised

if TYPE_CHECKING:
    from fedtiny.transforms.arithmetic import Place, Vector
    from fedtiny.values import Transform

INT8, SIGN = "int8", "sign"
BLOCKS: Mapping[str, int] = {INT8: 64, SIGN: 256}
"""Values that share a scale."""
BITS: Mapping[str, int] = {INT8: 8, SIGN: 1}
"""Of a value, without its scale."""
FORMS: Mapping[str, str] = {"int8": INT8, "qsgd": INT8, "sign": SIGN}
"""The form in which each of them sends."""
_MOST = 127


def int8(values: Vector, _: float, place: Place) -> Quantised:
    """``scale = max |v| / 127`` of a block."""
    largest = arithmetic().block_maxima(values, BLOCKS[INT8])
    return _rounded(values, (most / _MOST for most in largest), _MOST, place)


def qsgd(values: Vector, levels: float, place: Place) -> Quantised:
    """``scale = |v| / levels`` of a block, |v| its Euclidean norm.

    D. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
    NIPS 2017, section 3.1, in blocks (4).
    """
    squares = arithmetic().block_squares(values, BLOCKS[INT8])
    return _rounded(values, (math.sqrt(each) / levels for each in squares), int(levels), place)


def _rounded(values: Vector, scales: Iterable[float], most: int, place: Place) -> Quantised:
    numbers, block = arithmetic(), BLOCKS[INT8]
    rounded_scales = array("f", scales)
    words = numbers.words(place, Purpose.ROUNDING, len(values))
    q = numbers.rounded(values, rounded_scales, block, most, words)
    return Quantised(INT8, block, rounded_scales.tobytes(), q)


def sign(values: Vector, _: float, place: Place) -> Quantised:
    """``scale = mean |v|`` of a block.

    S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
    ICML 2019, section 4, block by block.
    """
    numbers, block = arithmetic(), BLOCKS[SIGN]
    sizes = numbers.block_magnitudes(values, block)
    counts = (min(block, len(values) - at) for at in range(0, len(values), block))
    scales = array("f", [size / count for size, count in zip(sizes, counts, strict=True)])
    return Quantised(SIGN, block, scales.tobytes(), numbers.signs(values))


_QUANTISERS: Mapping[str, Callable[[Vector, float, Place], Quantised]] = {
    "int8": int8,
    "qsgd": qsgd,
    "sign": sign,
}


def quantised(step: Transform | None, values: Vector, place: Place) -> Quantised | None:
    """The values as a step of this family sends them; None without one, or without values."""
    if step is None or not len(values):
        return None
    return _QUANTISERS[step.name](values, step.figure, place)


def values_of(quantised: Quantised, count: int) -> bytes:
    """The float32 values that it stands for; there are ``count`` of them."""
    numbers = arithmetic()
    scales = numbers.vector(quantised.scales)
    if quantised.form == SIGN:
        return numbers.unsigned(quantised.q, scales, quantised.block, count)
    return numbers.unrounded(quantised.q, scales, quantised.block)
