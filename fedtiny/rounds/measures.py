"""Measures of a round: counts and sums that add up, exactly, in any order.

A measure's name says how it merges: names whose last part is ``min`` or ``max`` keep the extreme
(``conv1.min``), all others add (``count``, ``loss_sum``, ``conv1.sum_squares``). A score names its
candidates by number: ``loss_sum.0``, ``loss_sum.1``, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from fedtiny.errors import UpdateError

_EXTREMES: Mapping[str, Callable[[float, float], float]] = {"min": min, "max": max}


@dataclass(frozen=True)
class Measures:
    """What devices have measured, merged. Sums are exact fractions: no order changes a bit."""

    sums: Mapping[str, Fraction] = field(default_factory=dict)
    extremes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, measures: Mapping[str, float]) -> Measures:
        """What one device has measured. Raises UpdateError if a value is not finite."""
        sums, extremes = {}, {}
        for name, value in measures.items():
            if not math.isfinite(value):
                raise UpdateError(f"the measure {name} is {value}; the device's model diverged")
            if _extreme(name):
                extremes[name] = value
            else:
                sums[name] = Fraction(value)
        return cls(sums, extremes)

    def merge(self, other: Measures) -> Measures:
        """Both together."""
        sums, extremes = dict(self.sums), dict(self.extremes)
        for name, term in other.sums.items():
            sums[name] = sums.get(name, Fraction(0)) + term
        for name, value in other.extremes.items():
            extreme = _EXTREMES[name.rpartition(".")[2]]
            extremes[name] = extreme(extremes.get(name, value), value)
        return Measures(sums, extremes)

    def values(self) -> dict[str, float]:
        """Each measure by name, rounded once."""
        return {name: float(total) for name, total in self.sums.items()} | dict(self.extremes)

    def mean(self, total: str, count: str) -> float:
        """``total / count``: the mean loss of candidate 3 is ``mean("loss_sum.3", "count")``."""
        return float(self.sums[total] / self.sums[count])


def _extreme(name: str) -> bool:
    return name.rpartition(".")[2] in _EXTREMES
