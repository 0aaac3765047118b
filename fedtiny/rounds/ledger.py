"""What a run has spent and reached: the figures of the open round, and of the whole run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

Reasons = dict[str, dict[str, Any]]
"""Refusals by kind: ``{"count": how many, "example": the text of the first}``."""

KINDS = 20
"""Kinds that are told apart; the refusals of any further one are ``OTHERS``."""
OTHERS = "other reasons"
_NUMBER = re.compile(r"-?\b(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|inf|nan)\b|\d+")


def kind_of(reason: str) -> str:
    """The reason without its numbers: what devices that fail alike have in common."""
    return _NUMBER.sub("N", reason)


def _count(reasons: Reasons, kind: str, count: int, example: str) -> None:
    if kind not in reasons and len(reasons) >= KINDS:
        kind = OTHERS
    entry = reasons.setdefault(kind, {"count": 0, "example": example})
    entry["count"] += count


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
    """``open`` and ``open_reasons`` collect until the round is closed into the totals."""

    total: Figures = field(default_factory=Figures)
    open: Figures = field(default_factory=Figures)
    failed_rounds: int = 0
    reasons: Reasons = field(default_factory=dict)
    open_reasons: Reasons = field(default_factory=dict)

    def refuse(self, reasons: Iterable[str]) -> None:
        """Updates were refused, each for a reason."""
        for reason in reasons:
            self.open.refused += 1
            _count(self.open_reasons, kind_of(reason), 1, reason)

    def close(self, failed: bool) -> dict[str, Any]:
        """The figures of the round that ends; a new one begins."""
        row: dict[str, Any] = asdict(self.open) | {"failed": failed}
        if self.open_reasons:
            row["reasons"] = self.open_reasons
        for kind, entry in self.open_reasons.items():
            _count(self.reasons, kind, **entry)
        self.total = self.total.merge(self.open)
        self.failed_rounds += failed
        self.open, self.open_reasons = Figures(), {}
        return row

    def to_json(self) -> dict[str, Any]:
        """The totals; the open round is empty when a run is stored."""
        return asdict(self.total) | {
            "failed_rounds": self.failed_rounds,
            "reasons": {kind: dict(entry) for kind, entry in self.reasons.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Ledger:
        """The inverse of `to_json`."""
        totals = {f.name: values[f.name] for f in fields(Figures)}
        reasons = {kind: dict(entry) for kind, entry in values["reasons"].items()}
        return cls(Figures(**totals), failed_rounds=values["failed_rounds"], reasons=reasons)
