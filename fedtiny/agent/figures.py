"""Figures as the owner of a device reads them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``9.3 s``, ``60 s``; from two minutes on ``5 min``, from an hour on ``15:08 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes} min"


def traffic(nbytes: float) -> str:
    """``217.5 KB``; from a megabyte on ``4.6 MB``."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} KB"


def memory(nbytes: int) -> str:
    """``64 MiB``; below a mebibyte ``65,536 B``."""
    return f"{nbytes / 2**20:.4g} MiB" if nbytes >= 2**20 else f"{nbytes:,} B"
