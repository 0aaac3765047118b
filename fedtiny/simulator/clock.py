"""Virtual time as people read it."""

from __future__ import annotations

DAY = 86400.0


def format_time(seconds: float) -> str:
    """``02:05:09``, after a day ``3 d 02:05:09``; below a minute ``9.3 s``."""
    if seconds < 59.95:  # what is not rounded up to a minute
        return f"{seconds:.1f} s"
    minutes, second = divmod(int(seconds + 0.05), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"
