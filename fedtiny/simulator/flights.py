"""The leases under way, in columns, in the order in which they end."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.rounds.leases import Leases
from fedtiny.values import round_of

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float64, Int64


@dataclass(frozen=True, eq=False)
class Flights:
    """``ends_at``: when the update arrives, or when the deadline passes without one."""

    leases: Int64
    devices: Int64
    versions: Int64
    ends_at: Float64
    deadlines: Float64
    arrives: Bools

    @classmethod
    def none(cls) -> Flights:
        """Nobody is under way."""
        return cls(*(np.empty(0, kind) for kind in ("i8", "i8", "i8", "f8", "f8", "?")))

    @property
    def next_at(self) -> float:
        """When the next one ends; infinity if there is none."""
        return float(self.ends_at[0]) if self.ends_at.size else np.inf

    @property
    def rounds(self) -> list[int]:
        """The rounds that gave the leases."""
        return [int(t) for t in np.unique(round_of(self.leases))]

    def live(self) -> Leases:
        """The leases, as the rounds have them."""
        ours = self.take(np.argsort(self.leases))
        return Leases.live(ours.leases, ours.devices, ours.versions, ours.deadlines)

    def merge(self, other: Flights) -> Flights:
        """Both, in order; of two that end together the older lease comes first."""
        both = Flights(*map(np.concatenate, zip(_columns(self), _columns(other), strict=True)))
        return both.take(np.lexsort((both.leases, both.ends_at)))

    def take(self, at: Int64 | Bools | slice) -> Flights:
        """The flights at these positions."""
        return Flights(*(column[at] for column in _columns(self)))

    def batch(self, until: float, round: int, room: int) -> int:
        """How many of the first flights may be handled together, at the time of the last of them.

        They end by ``until``, with the ``room``-th arrival of the round at the latest, and before
        any lease among them expires.
        """
        count = int(np.searchsorted(self.ends_at, until, "right"))
        ours = self.arrives[:count] & (round_of(self.leases[:count]) == round)
        arrived = np.cumsum(ours)
        if count and arrived[-1] >= room:
            count = int(np.searchsorted(arrived, room)) + 1
        earliest = np.minimum.accumulate(
            np.where(self.arrives[:count], self.deadlines[:count], np.inf)
        )
        return int(np.argmin(np.append(self.ends_at[:count] < earliest, False)))


_columns = attrgetter("leases", "devices", "versions", "ends_at", "deadlines", "arrives")
