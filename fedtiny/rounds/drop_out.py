"""How many leases come to nothing, learned from the rounds themselves.

The fate of a window's leases is known when the last of them has ended. A round that is complete
earlier leaves some out: they are waited for until their deadline, and an update that comes too
late still says that its device did not drop out. Otherwise only windows in which somebody failed
would ever be known to the end, and the estimate could only rise. One window is watched at a time,
and which one does not depend on how it ends, so the sample is fair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

MEMORY = 32
"""A new window of so many leases weighs as much as all that was known before."""


@dataclass(frozen=True, slots=True)
class DropOut:
    """``share`` of the leases brought no update that counts; the rest is the window under watch.

    It gave ``given`` leases from ``first`` on, of which ``came`` brought one; the last ends at
    ``until``.
    """

    share: float = 0.0
    first: int = 0
    given: int = 0
    came: int = 0
    until: float = math.inf

    def closed(self, first: int, given: int, came: int, until: float, now: float) -> DropOut:
        """A window has closed: watch it, unless there is one already."""
        if self.given or not given:
            return self
        return DropOut(self.share, first, given, came, until).at(now)

    def late(self, leases: Int64) -> DropOut:
        """Updates of these leases have come too late to count."""
        more = np.count_nonzero((leases >= self.first) & (leases < self.first + self.given))
        came = min(self.came + int(more), self.given)
        return DropOut(self.share, self.first, self.given, came, self.until)

    def at(self, now: float) -> DropOut:
        """What is known now: once the watched window has ended, it counts."""
        if self.until > now:
            return self
        lost = self.given - self.came
        return DropOut((MEMORY * self.share + lost) / (MEMORY + self.given))

    def recalled(self, share: float) -> DropOut:
        """With the share that a record tells, which after a crash is all that is left."""
        return self if share == self.share else DropOut(share)
