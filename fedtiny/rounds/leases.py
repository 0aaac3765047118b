"""The leases of the open round, in columns, and those that have counted in rounds before it."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

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
        pairs = zip(_columns(self), _columns(later), strict=True)
        return Leases(*map(np.concatenate, pairs))

    def take(self, which: Bools | Int64) -> Leases:
        """Some of them."""
        return Leases(*(column[which] for column in _columns(self)))

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
        return self._with(column)

    def ended(self, which: Bools) -> Leases:
        """Nothing that comes on those counts any more."""
        if not which.any():
            return self
        return self._with(np.where(which, np.int8(ENDED), self.status))

    def _with(self, status: Int8) -> Leases:
        return Leases(self.ids, self.devices, self.versions, self.deadlines, status)

    @property
    def is_live(self) -> Bools:
        """Of which no update has come, and one may."""
        return np.asarray(self.status == LIVE)

    @property
    def is_open(self) -> Bools:
        """Of which it is not known yet what becomes of them."""
        return np.asarray(self.status <= FOLDING)

    @property
    def is_ended(self) -> Bools:
        """Which were refused, or are over without an update that counts."""
        return np.asarray((self.status == REFUSED) | (self.status == ENDED))

    @property
    def accepted(self) -> Int64:
        """The ids of those that count."""
        return np.asarray(self.ids[self.status == ACCEPTED])


_columns = attrgetter("ids", "devices", "versions", "deadlines", "status")
NO_LEASES = Leases.live(*(np.empty(0, kind) for kind in ("i8", "i8", "i8", "f8")))
_NOBODY: Int64 = np.empty(0, np.int64)


class Past:
    """The accepted leases of every committed round: an append-only value that shares its memory."""

    __slots__ = ("_length", "_rounds", "_sorted")

    def __init__(self, rounds: list[Int64] | None = None, known: list[Any] | None = None) -> None:
        self._rounds = [] if rounds is None else rounds
        self._sorted = [] if known is None else known  # how many rounds, and their leases
        self._length = len(self._rounds)

    def then(self, leases: Int64) -> Past:
        """This history and one more round. Only a second continuation costs a copy."""
        shared, known = self._rounds, self._sorted
        if self._length < len(shared):
            shared, known = shared[: self._length], []
        shared.append(leases)
        return Past(shared, known)

    def __len__(self) -> int:
        return self._length

    def accepted(self, leases: Int64, outlive: bool = False) -> Bools:
        """Which of these leases, all of committed rounds, were accepted: in their own round or, if
        leases ``outlive`` it, in a later one."""
        if outlive:
            return self._ever(leases)
        rounds = round_of(leases)
        were = np.zeros(leases.size, bool)
        for round in np.unique(rounds):
            ours = rounds == round
            were[ours] = np.isin(leases[ours], self._rounds[round])
        return were

    def _ever(self, leases: Int64) -> Bools:
        """Which of them counted in any round."""
        known = self._all()
        if not known.size:
            return np.zeros(leases.size, bool)
        at = np.minimum(np.searchsorted(known, leases), known.size - 1)
        return np.asarray(known[at] == leases)

    def _all(self) -> Int64:
        """Those of all rounds, sorted; the work of earlier calls is shared with what follows."""
        upto, known = self._sorted or (0, _NOBODY)
        if upto > self._length:  # an older value: what it has in common is not known
            upto, known = 0, _NOBODY
        if upto < self._length:
            more = np.concatenate([known, *self._rounds[upto : self._length]])
            known = np.sort(more, kind="stable")  # which is quick where most is sorted already
            self._sorted[:] = self._length, known
        return known
