"""What does not change during a run of rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedtiny.errors import RunError


@dataclass(frozen=True, slots=True)
class Rules:
    """What does not change during a run. ``seed`` keys the choice of devices.

    With ``over_selection`` 0 the drop-out is measured, and as many devices are asked as it takes.
    With ``concurrency`` rounds are asynchronous: so many devices work at any time, and any
    ``cohort`` updates make a round, those at most that are ``max_staleness`` versions late.
    """

    rounds: int
    cohort: int
    deadline_s: float
    minimum: int
    over_selection: float = 1.0
    max_extensions: int = 10
    seed: int = 0
    concurrency: int = 0
    max_staleness: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.cohort:
            raise RunError(
                f"minimum = {self.minimum} updates with a cohort of {self.cohort}: no round could "
                f"ever complete; choose a minimum from 1 to {self.cohort}"
            )
        for name in ("rounds", "max_extensions", "concurrency", "max_staleness"):
            if getattr(self, name) < 0:
                raise RunError(f"{name} = {getattr(self, name)}; it must be at least 0")
        if self.over_selection != 0 and not self.over_selection >= 1:
            raise RunError(
                f"over_selection = {self.over_selection}; it must be at least 1, or 0: measured"
            )
        if not 0 < self.deadline_s < math.inf:
            raise RunError(f"deadline_s = {self.deadline_s}; a lease needs a positive, finite time")

    @property
    def asynchronous(self) -> bool:
        """Whether leases outlive their round."""
        return self.concurrency > 0

    @property
    def needed(self) -> int:
        """The fewest devices with which a round can complete: each counts in it once."""
        return self.cohort if self.asynchronous else self.minimum
