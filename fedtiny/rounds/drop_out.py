"""How many leases come to nothing, learned from the rounds themselves.

The fate of a window's leases is known when the last of them has ended. A round that is complete
earlier leaves some out: they are waited for until their deadline, and an update that comes too
late still says that its device did not drop out. Otherwise only windows in which somebody failed
would ever be known to the end, and the estimate could only rise. One window is watched at a time,
and which one does not depend on how it ends, so the sample is fair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Int64

MEMORY = 32
"""A new window of so many leases weighs as much as all that was known before."""


@dataclass(frozen=True, slots=True, eq=False)
class DropOut:
    """``share`` of the leases brought no update that counts; the rest is the window under watch.

    Its leases begin with ``first``, and were given to ``devices``. ``lost`` of them have failed,
    and those that are ``out`` may still bring an update; the last ends at ``until``.
    """

    share: float = 0.0
    first: int = 0
    devices: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    out: Bools = field(default_factory=lambda: np.empty(0, bool))
    lost: int = 0
    until: float = math.inf

    @property
    def given(self) -> int:
        """How many leases are under watch."""
        return self.devices.size

    def closed(
        self, first: int, devices: Int64, out: Bools, came: int, until: float, now: float
    ) -> DropOut:
        """A window has closed, of whose leases ``came`` brought an update in time.

        It is watched, unless there is one already.
        """
        if self.given or not devices.size:
            return self
        lost = devices.size - came - int(np.count_nonzero(out))
        return DropOut(self.share, first, devices, out, lost, until).at(now)

    def late(self, leases: Int64) -> DropOut:
        """Updates of these leases, by the devices that hold them, have come too late to count."""
        out = self.out.copy()
        out[leases[self._watched(leases)] - self.first] = False
        return replace(self, out=out)

    def strangers(self, leases: Int64, devices: Int64) -> Bools:
        """Which of these leases, as far as they are under watch, belong to other devices."""
        strange = self._watched(leases)
        strange[strange] = self.devices[leases[strange] - self.first] != devices[strange]
        return strange

    def _watched(self, leases: Int64) -> Bools:
        return (leases >= self.first) & (leases < self.first + self.given)

    def at(self, now: float) -> DropOut:
        """What is known now: once the watched window has ended, it counts."""
        if self.until > now:
            return self
        lost = self.lost + int(np.count_nonzero(self.out))
        return DropOut((MEMORY * self.share + lost) / (MEMORY + self.given))

    def recalled(self, share: float) -> DropOut:
        """With the share that a record tells, which after a crash is all that is left."""
        return self if share == self.share else DropOut(share)
