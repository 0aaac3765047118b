"""What an agent tells of a visit, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.agent.figures import duration, traffic
from fedtiny.values import ACCEPTED, CALIBRATE, EVALUATE, SCORE, TRAIN

_DONE = {TRAIN: "trained", EVALUATE: "evaluated", CALIBRATE: "calibrated", SCORE: "scored"}


@dataclass(frozen=True, slots=True)
class VisitReport:
    """What became of a visit.

    ``seconds`` of work and bytes are its own. ``kind`` and ``seconds`` are None when the process
    before this one has worked, ``next_s`` when the coordinator has not said when there is more.
    """

    kind: str | None
    round: int
    samples: int
    seconds: float | None
    bytes_up: int
    bytes_down: int
    status: str
    detail: str
    next_s: float | None

    def line(self) -> str:
        """The visit in a line for people."""
        parts = [f"round {self.round:,}", self.done, f"sent {traffic(self.bytes_up)}"]
        if self.status != ACCEPTED:
            parts.append(f"{self.status} {self.detail}".strip())
        parts.append(f"next in {duration(self.next_s)}" if self.next_s else "next now")
        return " · ".join(parts)

    @property
    def done(self) -> str:
        """The work in words."""
        if self.kind is None or self.seconds is None:
            return f"handed in what {self.samples:,} samples gave before the restart"
        return f"{_DONE[self.kind]} {self.samples:,} samples in {self.seconds:.2f} s"
