"""What a run has spent and reached: the figures of the open round, and of the whole run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Figures:
    """Counts, bytes and joules."""

    leases: int = 0
    accepted: int = 0
    refused: int = 0
    late: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    energy_j: float = 0.0

    def merge(self, other: Figures) -> Figures:
        """The sums."""
        return Figures(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(slots=True)
class Ledger:
    """``open`` collects until the round is closed into ``total``."""

    total: Figures = field(default_factory=Figures)
    open: Figures = field(default_factory=Figures)
    failed_rounds: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def refuse(self, reasons: tuple[str, ...]) -> None:
        """Updates were refused, each for a reason."""
        self.open.refused += len(reasons)
        for reason in reasons:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def close(self, failed: bool) -> dict[str, Any]:
        """The figures of the round that ends; a new one begins."""
        row: dict[str, Any] = asdict(self.open) | {"failed": failed}
        if self.reasons:
            row["reasons"] = self.reasons
        self.total = self.total.merge(self.open)
        self.failed_rounds += failed
        self.open, self.reasons = Figures(), {}
        return row

    def to_json(self) -> dict[str, Any]:
        """The totals; the open round is empty when a run is stored."""
        return asdict(self.total) | {"failed_rounds": self.failed_rounds}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Ledger:
        """The inverse of `to_json`."""
        totals = {f.name: values[f.name] for f in fields(Figures)}
        return cls(Figures(**totals), failed_rounds=values["failed_rounds"])
