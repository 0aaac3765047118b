"""When a device that got no work should ask again. Pure.

Pace steering after Bonawitz et al., "Towards federated learning at scale: system design" (MLSys
2019), section 2.3: a small population is told to come together, when the next window opens; of a
large one each device is told a round of its own, so that about as many come as can be used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SLACK = 1.3
"""Devices told to come to a round for each one that it wants: some will not come."""
LEAST_S, MOST_S = 1.0, 3600.0
_MEMORY = 0.8  # share of the old estimate in the new one


@dataclass(frozen=True, slots=True)
class Pace:
    """How long rounds have taken, in seconds, and when the present one began."""

    round_s: float = 0.0
    opened_at: float = 0.0
    rounds: int = 0

    def next(self, now: float) -> Pace:
        """One more round has begun."""
        took = now - self.opened_at
        if not self.rounds:
            return Pace(0.0, now, 1)
        estimate = took if self.rounds == 1 else _MEMORY * self.round_s + (1 - _MEMORY) * took
        return replace(self, round_s=estimate, opened_at=now, rounds=self.rounds + 1)

    def after_s(self, now: float, asking: int, wanted: int, draw: float) -> float:
        """Seconds until a device should ask again.

        ``asking`` devices share rounds that want ``wanted`` each; ``draw`` in [0, 1) is the
        device's own and spreads them evenly.
        """
        until_next = max(0.0, self.opened_at + self.round_s - now)
        turns = max(1.0, asking / (SLACK * max(1, wanted)))
        spread = self.round_s * (turns - 1) + LEAST_S
        return min(MOST_S, max(LEAST_S, until_next + draw * spread))
