"""How the inputs of a stream change: turned, inverted, noisy or with another contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import elementary
from fedtiny.errors import ExperimentError, did_you_mean

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Float32

_f = np.float32
_CHANNELS = 1, 3
_PARTS = _f(4096.0)  # of a pixel: places are rounded to them, so that quarter turns are exact


@dataclass(frozen=True, slots=True)
class Room:
    """What a change may look at: the least and the greatest input of the device, and one standard
    normal number for each input, made when it is asked for."""

    low: np.float32
    high: np.float32
    normal: Callable[[], Float32]

    @property
    def middle(self) -> np.float32:
        """Half way between the two."""
        return _f(0.5) * (self.low + self.high)


Apply = Callable[["Float32", np.float32, Room], "Float32"]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of change: what it makes of inputs [n, features], and its figure, if it has one."""

    does: str
    apply: Apply
    figure: str = ""
    example: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the inputs: one of TABLE, with its figure."""

    name: str
    figure: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Change:
        """Of ``name`` or ``name:figure``. Raises ExperimentError with what to write instead."""
        name, colon, figure = text.partition(":")
        row = TABLE.get(name)
        if row is None:
            raise ExperimentError(
                f"there is no change {name!r}; {did_you_mean(name, TABLE)}there are {usages()}"
            )
        if bool(row.figure) != bool(colon):
            needs = f"needs {row.figure.lower()}" if row.figure else "takes no figure"
            raise ExperimentError(f"{name} {needs}; write '{row.example or name}'")
        return cls(name, _number(figure, row)) if colon else cls(name)

    def apply(self, x: Float32, room: Room) -> Float32:
        """The inputs [n, features] after the change."""
        return TABLE[self.name].apply(x, _f(self.figure), room)

    def check(self, features: int) -> None:
        """Raises ExperimentError unless it can be done to samples of so many inputs."""
        if self.name == "rotate" and not _channels(features):
            raise ExperimentError(
                f"'rotate' turns square images of 1 or 3 channels; a sample has {features} "
                f"inputs: take one of {usages('rotate')}"
            )


def usages(without: str = "") -> str:
    """How each change is written."""
    return ", ".join(
        f"{name}:{row.figure}" if row.figure else name
        for name, row in TABLE.items()
        if name != without
    )


def _number(text: str, row: Row) -> float:
    try:
        figure = float(text)
    except ValueError:
        figure = math.nan
    if not math.isfinite(figure):
        raise ExperimentError(f"{text!r} is no number; write such as '{row.example}'")
    return figure


# ---- the changes -----------------------------------------------------------------------------


def _channels(features: int) -> int:
    """Of a square image with so many values; 0 if there is no such image."""
    squares = (c for c in _CHANNELS if features == c * math.isqrt(features // c) ** 2)
    return next(squares, 0)


def _rotated(x: Float32, degrees: np.float32, room: Room) -> Float32:
    """Counter-clockwise about the middle, bilinear; what comes in at the corners is the least."""
    channels = _channels(x.shape[1])
    side = math.isqrt(x.shape[1] // channels)
    images = x.reshape(-1, side, side, channels) - room.low
    row, column = _sources(side, degrees)
    turned = np.zeros_like(images)
    for i in (np.floor(row), np.floor(row) + _f(1)):
        for j in (np.floor(column), np.floor(column) + _f(1)):
            weight = (_f(1) - np.abs(row - i)) * (_f(1) - np.abs(column - j))
            inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
            at_row, at_column = (np.clip(k, 0, side - 1).astype(np.int64) for k in (i, j))
            share: Float32 = np.where(inside, weight, _f(0))[..., None]
            turned = turned + images[:, at_row, at_column] * share
    return turned.reshape(x.shape) + room.low


def _sources(side: int, degrees: np.float32) -> tuple[Float32, Float32]:
    """The row and the column that each pixel comes from."""
    angle = degrees * _f(math.pi / 180.0)
    cos, sin = elementary.cos(angle), elementary.sin(angle)
    middle = _f((side - 1) / 2)
    row, column = np.mgrid[:side, :side].astype(np.float32) - middle
    return _rounded(cos * row + sin * column + middle), _rounded(cos * column - sin * row + middle)


def _rounded(places: npt.NDArray[np.float32]) -> Float32:
    rounded: Float32 = np.rint(places * _PARTS) / _PARTS
    return rounded


def _inverted(x: Float32, _: np.float32, room: Room) -> Float32:
    return (room.low + room.high) - x


def _noisy(x: Float32, deviation: np.float32, room: Room) -> Float32:
    return x + deviation * room.normal()


def _contrasted(x: Float32, factor: np.float32, room: Room) -> Float32:
    return room.middle + factor * (x - room.middle)


TABLE: Mapping[str, Row] = {
    "rotate": Row("turn square images counter-clockwise", _rotated, "DEGREES", "rotate:90"),
    "invert": Row("exchange dark and light", _inverted),
    "noise": Row("add Gaussian noise", _noisy, "DEVIATION", "noise:0.3"),
    "contrast": Row("stretch about the middle of the range", _contrasted, "FACTOR", "contrast:0.3"),
}
