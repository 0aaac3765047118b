"""What an update may say: checked against what its device was asked, before it can count."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.experiment.workload import measured
from fedtiny.values import TRAIN, Instruction, Ranges, Update

if TYPE_CHECKING:
    from fedtiny.engine.program import Program

_MOST_COUNT, _MOST_SUM = 2.0**40, 1e30
_COUNTS = ("count", "steps", "correct")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a Program sends back: these coordinates, or some of them, and these measures."""

    ranges: Ranges
    measures: tuple[str, ...]

    @classmethod
    def of(cls, asked: Instruction, programs: Iterable[Program]) -> tuple[Expected, ...]:
        """What any of the Programs may send, each once."""
        each = (
            cls(p.sent_ranges(asked) if asked.kind == TRAIN else (), measured(p, asked))
            for p in programs
        )
        return tuple(dict.fromkeys(each))


def flaw_of(update: Update, expected: Sequence[Expected]) -> str:
    """Why none of the Programs sends this; empty if one does."""
    flaws = [_flaw(update, each) for each in expected]
    return flaws[0] if all(flaws) else ""


def _flaw(update: Update, expected: Expected) -> str:
    if not _within(update.ranges, expected.ranges):
        told = _told(expected.ranges)
        return f"ranges: it has values for {_told(update.ranges)}, those asked for are {told}"
    return flaw_of_measures(update.measures, expected.measures)


def flaw_of_measures(measures: Mapping[str, float], asked: Collection[str]) -> str:
    """Why these are not the counts and sums that were asked for; empty if they are."""
    if measures.keys() != set(asked):
        unlike = sorted(measures.keys() ^ set(asked))
        return f"measures: {', '.join(unlike[:5])} are missing, or were not asked for"
    for name, value in measures.items():
        is_count = any(part.startswith(_COUNTS) for part in name.split("."))
        low, high = (0.0, _MOST_COUNT) if is_count else (-_MOST_SUM, _MOST_SUM)
        if not low <= value <= high:
            return f"measures: {name} is {value:g}; it must be in [{low:g}, {high:g}]"
    return ""


def _within(ranges: Ranges, asked: Ranges) -> bool:
    return all(any(a <= start and stop <= b for a, b in asked) for start, stop in ranges)


def _told(ranges: Ranges) -> str:
    shown = ", ".join(f"{start:,}-{stop:,}" for start, stop in ranges[:4])
    return f"{shown}, ..." if len(ranges) > 4 else shown or "none"
