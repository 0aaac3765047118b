"""Who makes contact: as many devices as there are leases to give, in a drawn order.

A real coordinator paces its fleet by telling devices when to come back. Here the pacing is ideal:
nobody asks in vain, so a fleet of a million costs no more than its cohort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedtiny.device.session import State
from fedtiny.rounds import invitation

if TYPE_CHECKING:
    from fedtiny.simulator.sessions import Sessions
    from fedtiny.simulator.traces import Availability
    from fedtiny.tensors import Bools, Int64

_NOBODY: Int64 = np.empty(0, np.int64)


class Contact:
    """The queue of one window of a round: a permutation of the devices that may train.

    Devices that have had a lease in the round stand aside as long as there are others.
    """

    def __init__(
        self, run: int, training: Int64, devices: int, sessions: Sessions, reach: Availability
    ) -> None:
        self._run, self._training = run, training
        self._sessions, self._reach = sessions, reach
        self._served = np.zeros(devices, bool)
        self._barred = np.zeros(devices, bool)
        self._key = np.zeros(4, np.uint32)
        self._queue = _NOBODY  # as much of it as was looked at
        self._next = 0
        self._share = 1.0  # of those last asked who were ready: how far to look at once

    def open(self, round: int, window: int, barred: Int64 = _NOBODY) -> None:
        """A window opens: a new order, without those who are barred from its round."""
        if window == 0:
            self._served[:] = False
            self._barred[:] = False
            self._barred[barred[barred < self._barred.size]] = True
        self._key, self._next = invitation.key(self._run, round, window), 0
        self._queue = _NOBODY

    def rewind(self) -> None:
        """Something has changed: those who were skipped may be ready now."""
        self._next = 0

    def served(self, devices: Int64) -> None:
        """These have a lease now."""
        self._served[devices] = True

    def serve_again(self, devices: Int64) -> bool:
        """These may have another lease; False if they may already."""
        changed = bool(self._served[devices].any())
        self._served[devices] = False
        self._next = 0
        return changed

    def take(self, count: int, now: float) -> Int64:
        """Up to ``count`` devices that are idle and in reach, in the order of the queue."""
        found: list[Int64] = []
        missing = count
        while missing and self._next < self._training.size:
            wanted = int(1.1 * missing / self._share) + 1
            stop = min(self._next + wanted, self._training.size)
            devices = self._queued(self._next, stop)
            ready = self._ready(devices)
            ready[ready] = self._reach.available(devices[ready], now)
            taken = np.flatnonzero(ready)[:missing]
            found.append(devices[taken])
            missing -= taken.size
            self._next = stop if missing else self._next + int(taken[-1]) + 1
            self._share = max(float(ready.mean()), 0.01)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _queued(self, start: int, stop: int) -> Int64:
        """Who stands at these places."""
        if stop > self._queue.size:
            known = np.arange(self._queue.size, stop)
            more = invitation.invited(self._training, known, self._key)
            self._queue = np.concatenate([self._queue, more])
        return self._queue[start:stop]

    def next_reachable(self, now: float) -> float:
        """When the first device that is idle comes into reach; infinity if none ever does."""
        ready = self._training[self._ready(self._training)]
        return float(self._reach.next_available(ready, now).min(initial=np.inf))

    def _ready(self, devices: Int64) -> Bools:
        states = self._sessions.states()[devices]
        left_out = self._served[devices] | self._barred[devices]
        return np.asarray((states == State.IDLE) & ~left_out)
