"""The clock of a coordinator: seconds of service, which go on after a restart."""

from __future__ import annotations

import time


class RunClock:
    """Seconds since a run began, without those in which nobody served it.

    Leases and windows are measured on it: they lose nothing while the coordinator is down, and a
    wall clock that is set changes nothing.
    """

    def __init__(self, served_s: float = 0.0) -> None:
        self._before = served_s - time.monotonic()

    def now(self) -> float:
        """Seconds of service so far."""
        return self._before + time.monotonic()
