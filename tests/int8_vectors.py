"""The numbers of int8 in exact arithmetic: what ``vectors/int8.json`` holds, for Python and for C.

`python -m tests.int8_vectors` writes the file anew.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtiny import rng

Array = npt.NDArray[Any]
FILE = Path(__file__).parent / "vectors" / "int8.json"
VECTORS = json.loads(FILE.read_text())


def hexed(value: float) -> str:
    """A float32 by its bits."""
    return struct.pack(">f", value).hex()


def unhexed(text: str) -> float:
    return float(struct.unpack(">f", bytes.fromhex(text))[0])


def rounded(x: Fraction, bits: int = 24, up: bool = False) -> Fraction:
    """To so many significant bits: to the nearest, halves to even; or up."""
    if not x:
        return x
    magnitude, exponent = abs(x), 0
    while magnitude >= 2**bits:
        magnitude, exponent = magnitude / 2, exponent + 1
    while magnitude < 2 ** (bits - 1):
        magnitude, exponent = magnitude * 2, exponent - 1
    whole = math.ceil(magnitude) if up else round(magnitude)
    return int(math.copysign(1, x)) * whole * Fraction(2) ** exponent


def exact_scale(x: Fraction) -> Fraction:
    return rounded(x, 16, up=True)


def exact_range(lo: float, hi: float) -> tuple[float, float]:
    low, high = (Fraction(end) for end in (min(lo, 0.0), max(hi, 0.0)))
    extent = rounded(high - low)
    if extent < Fraction(2) ** -100 or extent >= 2**128:
        return 2.0**-7, 0.0
    scale = exact_scale(rounded(extent / 255))
    zero = round(rounded(-128 - rounded(low / scale)))
    return float(scale), float(max(-128, min(127, zero)))


def exact_steps(rows: Sequence[Sequence[float]]) -> list[float]:
    largest = [max(abs(Fraction(w)) for w in column) for column in zip(*rows, strict=True)]
    tiny, most = Fraction(2) ** -100, max(largest)
    usual = exact_scale(rounded(most / 96)) if most >= tiny else Fraction(1, 128)
    return [float(exact_scale(rounded(m / 96)) if m >= tiny else usual) for m in largest]


def exact_q(x: float, scale: float, zero: float) -> int:
    near = max(Fraction(-1024), min(Fraction(1024), rounded(Fraction(x) / Fraction(scale))))
    return max(-128, min(127, round(near) + int(zero)))


def exact_weight(w: float, step: float) -> int:
    return max(-127, min(127, round(rounded(Fraction(w) / Fraction(step)))))


def made_vectors() -> dict[str, Any]:
    draw = np.random.default_rng(8)
    powers = 2.0 ** draw.integers(-40, 40, 24)
    numbers = [float(x) for x in (draw.normal(size=24) * powers).astype(np.float32)]
    ranges = [
        (-1.0, 3.0), (0.0, 6.0), (0.0, 0.0), (-2.5, 0.0), (1.0, 2.0), (-3.0, -1.0), (5.0, -5.0),
        (0.0, 2.0**-100), (0.0, 2.0**-101), (-(2.0**-80), 2.0**90), (-3e38, 3e38),
        *zip(numbers[::2], numbers[1::2], strict=True),
    ]  # fmt: skip
    ranges = [(unhexed(hexed(lo)), unhexed(hexed(hi))) for lo, hi in ranges]
    weights = [
        [[1.0, 0.0, -2.0**-110], [-3.0, 0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0**-101]],
        [numbers[at : at + 4] for at in range(0, 20, 4)],
        draw.normal(size=(5, 6)).astype(np.float32).tolist(),
    ]  # fmt: skip
    return {
        "scale16": [[hexed(x), hexed(float(exact_scale(Fraction(x))))] for x in map(abs, numbers)],
        "range": [[*map(hexed, (*pair, *exact_range(*pair)))] for pair in ranges],
        "quantise": [
            {"scale": hexed(scale), "zero": hexed(zero), "x": [*map(hexed, xs)],
             "q": [exact_q(x, scale, zero) for x in xs]}
            for scale, zero in (exact_range(*pair) for pair in ranges[:4])
            for xs in [[i * scale / 2 for i in range(-9, 10, 3)] + [-1e30, 1e30, 1.0, -1.0]]
        ],
        "weights": [
            {"w": [[*map(hexed, row)] for row in rows], "step": [*map(hexed, exact_steps(rows))],
             "q": [[*map(exact_weight, row, exact_steps(rows))] for row in rows]}
            for rows in weights
        ],
        "rounding": [made_rounding(*case) for case in ((0, 0, 0, 0, 0), (7, 3, 11, 5, 6),
                                                      (2**40 + 1, 2, 2**31, 2**24 + 1, 1001))],
    }  # fmt: skip


def made_rounding(run: int, round: int, device: int, step: int, first: int) -> dict[str, Any]:
    """Words ``first`` and on of a step, and what they make of numbers that are to go t steps."""
    words = []
    for at in range(first, first + 8):
        counter = at // 4, device, round, (19 + step * 256) % 2**32
        words.append(rng.philox(counter, (run % 2**32, run >> 32))[at % 4])
    ts = [0.0, 0.25, -0.25, 3.5, -3.5, 300.0, -1e30, 2.0**-30]
    qs = [5, 5, -5, 100, 100, 127, -127, 0]
    moved = []
    for q, t, word in zip(qs, ts, words, strict=True):
        within = max(Fraction(-256), min(Fraction(256), Fraction(t)))
        below = math.floor(rounded(within + Fraction(word >> 8, 2**24)))
        moved.append(max(-127, min(127, q - below)))
    stream = {"run": run, "round": round, "device": device, "step": step, "first": first}
    return {**stream, "words": words, "q": qs, "t": [*map(hexed, ts)], "moved": moved}


def floats_of(texts: Any) -> Array:
    flat = [unhexed(text) for text in np.ravel(texts)]
    return np.array(flat, np.float32).reshape(np.shape(texts))


if __name__ == "__main__":
    rows = (f'  "{name}": [\n    ' + ",\n    ".join(map(json.dumps, cases)) + "\n  ]"
            for name, cases in made_vectors().items())  # fmt: skip
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
