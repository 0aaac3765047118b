"""Figures as people read them."""

from __future__ import annotations

import math

_PREFIXES = ("m", "", "k", "M", "G", "T", "P")


def si(value: float, unit: str) -> str:
    """Three digits and a prefix: ``4.61 MB``, ``12.3 mJ``; bytes are never split."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 2:
        value, power = value / 1000, power + 1
    if power == 0 and 0 < abs(value) < 0.9995 and unit != "B":
        value, power = value * 1000, -1
    return f"{value:.3g} {_PREFIXES[power + 1]}{unit}"


def binary(nbytes: int) -> str:
    """``262,144 B``; from a mebibyte on ``4 GiB``, ``1.5 MiB``."""
    if nbytes < 2**20:
        return f"{nbytes:,} B"
    power = min((nbytes.bit_length() - 1) // 10, 4)
    return f"{nbytes / 2 ** (10 * power):.4g} {'KMGT'[power - 1]}iB"


def percent(share: float) -> str:
    """``250 %``, ``15 %``, ``1.5 %``, ``under 0.1 %``."""
    if share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:,.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


def scale(largest: float, unit: str) -> tuple[float, str]:
    """What an axis that ends at ``largest`` is divided by, and the unit that it then has."""
    power = min(max(0, math.floor(math.log10(largest) / 3)) if largest > 0 else 0, 5)
    return 1000.0**power, f"{_PREFIXES[power + 1]}{unit}"


def time_scale(largest_s: float) -> tuple[float, str]:
    """As `scale`, for seconds."""
    steps = ((2 * 86400, 86400.0, "days"), (2 * 3600, 3600.0, "h"), (120, 60.0, "min"))
    return next(((by, unit) for least, by, unit in steps if largest_s >= least), (1.0, "s"))


def with_interval(value: float, half_width: float) -> str:
    """``3.83 ± 0.21``: two digits of the half-width, and as many places of the value."""
    if not (half_width > 0 and math.isfinite(half_width) and math.isfinite(value)):
        return f"{value:.3g}"
    places = max(0, 1 - math.floor(math.log10(half_width)))
    if places > 6:
        return f"{value:.3g} ± {half_width:.1g}"
    return f"{value:.{places}f} ± {half_width:.{places}f}"


def measured(name: str, value: float, half_width: float) -> str:
    """A loss, or an accuracy in percent, with its 95 % interval."""
    if name == "accuracy":
        return with_interval(100 * value, 100 * half_width) + " %"
    return with_interval(value, half_width)
