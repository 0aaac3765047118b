"""Time that passes only when it is told to."""

from __future__ import annotations

DAY = 86400.0


class VirtualClock:
    """Seconds since the run began; they never go back."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self._now

    def advance_to(self, time: float) -> None:
        """Let the clock show ``time``; an earlier one is a mistake in the simulator."""
        if not time >= self._now:
            raise ValueError(f"the clock shows {self._now} s and cannot go back to {time} s")
        self._now = time


def format_time(seconds: float) -> str:
    """``02:05:09``, after a day ``3 d 02:05:09``; below a minute ``9.3 s``."""
    if seconds < 59.95:  # what is not rounded up to a minute
        return f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds + 0.05), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"
