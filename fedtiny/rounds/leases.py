"""The leases of the open round, in columns, and those that have counted in rounds before it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.values import round_of

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float64, Int8, Int64

LIVE, FOLDING, ACCEPTED, REFUSED, ENDED = range(5)
"""What has become of a lease; ENDED is expired, or released because its round is over."""


@dataclass(frozen=True, slots=True, eq=False)
class Leases:
    """One entry a lease, by ascending id. ``versions`` are those of the models they start from."""

    ids: Int64
    devices: Int64
    versions: Int64
    deadlines: Float64
    status: Int8

    @classmethod
    def live(cls, ids: Int64, devices: Int64, versions: Int64, deadlines: Float64) -> Leases:
        """Leases on which updates may come."""
        return cls(ids, devices, versions, deadlines, np.full(ids.size, LIVE, np.int8))

    def joined(self, later: Leases) -> Leases:
        """These, and leases that were given after all of them."""
        return Leases(
            *(np.concatenate([getattr(self, f.name), getattr(later, f.name)]) for f in fields(self))
        )

    def take(self, which: Bools | Int64) -> Leases:
        """Some of them."""
        return Leases(*(getattr(self, f.name)[which] for f in fields(self)))

    def places(self, ids: Int64) -> Int64:
        """Where these leases stand; -1 for those that are not here."""
        if not self.ids.size:
            return np.full(ids.size, -1)
        at = np.minimum(np.searchsorted(self.ids, ids), self.ids.size - 1)
        return np.asarray(np.where(self.ids[at] == ids, at, -1))

    def marked(self, ids: Int64, status: int) -> Leases:
        """With another status of these, which are here."""
        if not ids.size:
            return self
        column = self.status.copy()
        column[self.places(ids)] = status
        return replace(self, status=column)

    def ended(self, which: Bools) -> Leases:
        """Nothing that comes on those counts any more."""
        if not which.any():
            return self
        return replace(self, status=np.where(which, np.int8(ENDED), self.status))

    @property
    def is_live(self) -> Bools:
        """Of which no update has come, and one may."""
        return np.asarray(self.status == LIVE)

    @property
    def is_open(self) -> Bools:
        """Of which it is not known yet what becomes of them."""
        return np.asarray(self.status <= FOLDING)

    @property
    def accepted(self) -> Int64:
        """The ids of those that count."""
        return np.asarray(self.ids[self.status == ACCEPTED])


NO_LEASES = Leases.live(*(np.empty(0, kind) for kind in ("i8", "i8", "i8", "f8")))


class Past:
    """The accepted leases of every committed round: an append-only value that shares its memory."""

    __slots__ = ("_length", "_rounds")

    def __init__(self, rounds: list[Int64] | None = None) -> None:
        self._rounds = [] if rounds is None else rounds
        self._length = len(self._rounds)

    def then(self, leases: Int64) -> Past:
        """This history and one more round. Only a second continuation costs a copy."""
        shared = self._rounds
        if self._length < len(shared):
            shared = shared[: self._length]
        shared.append(leases)
        return Past(shared)

    def __len__(self) -> int:
        return self._length

    def accepted(self, leases: Int64, outlive: bool = False) -> Bools:
        """Which of these leases, all of committed rounds, were accepted: in their own round or, if
        leases ``outlive`` it, in a later one."""
        rounds = round_of(leases)
        were = np.zeros(leases.size, bool)
        for round in np.unique(rounds):
            ours, stop = rounds == round, self._length if outlive else round + 1
            were[ours] = np.isin(leases[ours], np.concatenate(self._rounds[round:stop]))
        return were
