"""The table of transforms: what each does, and what it needs; how they are named and ordered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedtiny.errors import StrategyError, did_you_mean
from fedtiny.values import Transform

CLIPS, NOISES, FEEDS_BACK, SPARSIFIES, QUANTISES = range(5)
"""The stages of a chain, in order; each has one transform at most."""
STAGES = ("clip", "noise", "feedback", "topk or randomk", "int8, qsgd or sign")


@dataclass(frozen=True, slots=True)
class Figure:
    """What stands behind the name: in ``(above, up_to]``, and whole if ``whole``."""

    name: str
    example: float
    above: float = 0.0
    up_to: float = math.inf
    whole: bool = False

    def holds(self, figure: float) -> bool:
        """Whether it may be this."""
        within = self.above < figure <= self.up_to and math.isfinite(figure)
        return within and (not self.whole or figure == int(figure))

    @property
    def told(self) -> str:
        """What it may be, in words."""
        kind = "a whole number" if self.whole else "a number"
        most = f" and at most {self.up_to:g}" if self.up_to < math.inf else ""
        return f"{kind} above {self.above:g}{most}"


@dataclass(frozen=True, slots=True)
class Row:
    """One transform. ``stateful``: the device keeps something for the next visit."""

    stage: int
    does: str
    figure: Figure | None = None
    stateful: bool = False


TABLE: Mapping[str, Row] = {
    "clip": Row(CLIPS, "scale the delta down to this Euclidean norm", Figure("norm", 1.0)),
    "noise": Row(NOISES, "add Gaussian noise of this deviation", Figure("sigma", 0.01)),
    "feedback": Row(
        FEEDS_BACK, "add to the next delta what the following transforms leave out", stateful=True
    ),
    "topk": Row(
        SPARSIFIES, "send this share of the delta, its largest values", Figure("share", 0.1, 0, 1)
    ),
    "randomk": Row(
        SPARSIFIES,
        "send this share of the delta, the same coordinates on every device, drawn each round",
        Figure("share", 0.1, 0, 1),
    ),
    "int8": Row(QUANTISES, "a byte a value, a scale a block, rounded at random"),
    "qsgd": Row(
        QUANTISES,
        "whole multiples of the norm of a block over this many levels, rounded at random",
        Figure("levels", 16, 0, 127, whole=True),
    ),
    "sign": Row(QUANTISES, "a bit a value: plus or minus the mean magnitude of a block"),
}


def parse(texts: Iterable[str]) -> tuple[Transform, ...]:
    """The transforms of ``name`` or ``name:figure`` texts, in an order that works.

    Raises StrategyError with what is wrong and what to write instead.
    """
    transforms = tuple(map(_parsed, texts))
    check(transforms)
    return transforms


def _parsed(text: str) -> Transform:
    name, colon, figure = str(text).partition(":")
    try:
        return Transform(name, float(figure) if colon else 0.0)
    except ValueError:
        raise StrategyError(f"transforms: {text!r}: {figure!r} is no number") from None


def check(transforms: Sequence[Transform]) -> None:
    """Raises StrategyError unless a device can carry them out, one after the other."""
    for transform in transforms:
        _check_one(transform)
    for first, second in pairwise(transforms):
        _check_pair(first, second)


def _check_one(transform: Transform) -> None:
    name, row = transform.name, TABLE.get(transform.name)
    if row is None:
        raise StrategyError(
            f"transforms: there is no {name!r}; {did_you_mean(name, TABLE)}there are "
            f"{', '.join(map(usage, TABLE))}"
        )
    if row.figure is None and transform.figure:
        raise StrategyError(f"transforms: {name} takes no figure; write {name!r}")
    if row.figure and not row.figure.holds(transform.figure):
        raise StrategyError(
            f"transforms: {written(transform)}: the {row.figure.name} must be {row.figure.told}, "
            f"such as '{name}:{row.figure.example:g}'"
        )


def _check_pair(first: Transform, second: Transform) -> None:
    before, after = TABLE[first.name].stage, TABLE[second.name].stage
    pair = f"transforms: {written(first)} before {written(second)}"
    if before == after:
        raise StrategyError(f"{pair}: of {STAGES[before]} there can be one; leave one out")
    if before > after:
        raise StrategyError(f"{pair}: the order is {'; '.join(STAGES)}; exchange the two")


def joined(first: Iterable[Transform], second: Iterable[Transform]) -> tuple[Transform, ...]:
    """Both in one chain, by their stages. Raises StrategyError if two are of one stage."""
    both = [*first, *second]
    for transform in both:
        _check_one(transform)
    chain = tuple(sorted(both, key=lambda transform: TABLE[transform.name].stage))
    check(chain)
    return chain


def find(transforms: Iterable[Transform], stage: int) -> Transform | None:
    """The one of that stage, if there is one."""
    return next((t for t in transforms if TABLE[t.name].stage == stage), None)


def kept_vectors(transforms: Sequence[Transform], of_gradient: bool) -> int:
    """How many vectors as long as the model a device must hold for them: the base that is
    subtracted, unless what it sends is a gradient, and what feedback has left out."""
    if not transforms:
        return 0
    return (not of_gradient) + sum(TABLE[t.name].stateful for t in transforms)


def written(transform: Transform) -> str:
    """As it stands in an experiment."""
    row = TABLE.get(transform.name)
    return f"{transform.name}:{transform.figure:g}" if row and row.figure else transform.name


def usage(name: str) -> str:
    """How one is written, with the name of its figure."""
    figure = TABLE[name].figure
    return f"{name}:{figure.name.upper()}" if figure else name
