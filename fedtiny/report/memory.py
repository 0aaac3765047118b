"""The report's bars of memory: what each profile's Program needs, and what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fedtiny.report.markup import legend, swatch, wide_table
from fedtiny.report.record import RAM_PARTS, Record
from fedtiny.report.units import percent

_MOST = 4
"""A budget of more than this many times the largest need runs off the bar."""


def memory_section(record: Record) -> Iterator[str]:
    """Legend, one bar a profile, and the bytes as a table."""
    if not record.profiles:
        return
    yield "<h2>Memory</h2>"
    yield (
        '<p class="note">What one device needs to train, part by part. The frame is the RAM that '
        "the experiment gives it; a frame without an end goes on beyond the page.</p>"
    )
    yield legend(swatch(f"var(--part-{i})", name) for i, name in enumerate(RAM_PARTS))
    scale_bytes = _scale(record.profiles)
    yield from (_row(profile, scale_bytes) for profile in record.profiles)
    yield _table(record.profiles)


def _scale(profiles: list[Mapping[str, Any]]) -> float:
    """The bytes that the full width stands for."""
    largest = max(p["report"]["ram_bytes"] for p in profiles)
    given = (p["ram_given_bytes"] for p in profiles)
    return float(max([1.1 * largest, *(nbytes for nbytes in given if nbytes <= _MOST * largest)]))


def _row(profile: Mapping[str, Any], scale_bytes: float) -> str:
    given, report = profile["ram_given_bytes"], profile["report"]
    wide = 100 * min(given / scale_bytes, 1)
    ends = "budget open" if given > scale_bytes else "budget"
    parts = "".join(_part(report, i, name, scale_bytes) for i, name in enumerate(RAM_PARTS))
    reasons = "".join(f'<p class="reason">{escape(why)}</p>' for why in profile["reasons"])
    return (
        f'<div class="memory{" unfit" * bool(reasons)}"><p><b>{escape(profile["name"])}</b>'
        f"<span>{_said(profile)}</span></p>"
        f'<div class="bar"><div class="{ends}" style="width:{wide:.2f}%"></div>'
        f'<div class="parts">{parts}</div></div>{reasons}</div>'
    )


def _part(report: Mapping[str, int], index: int, name: str, scale_bytes: float) -> str:
    nbytes = report[f"{name}_bytes"]
    if not nbytes:
        return ""
    return (
        f'<i style="width:{100 * nbytes / scale_bytes:.2f}%;background:var(--part-{index})" '
        f'title="{name} {nbytes:,} B"></i>'
    )


def _said(profile: Mapping[str, Any]) -> str:
    given, needed = profile["ram_given_bytes"], profile["report"]["ram_bytes"]
    devices = f"{profile['devices']:,} devices · "
    misfit = '<b class="bad">✕ does not fit</b> · ' if profile["reasons"] else ""
    return f"{devices}{misfit}{needed:,} of {given:,} B ({percent(needed / given)})"


def _table(profiles: list[Mapping[str, Any]]) -> str:
    columns = ("devices", *RAM_PARTS, "RAM needed", "RAM given", "flash needed")
    head = "".join(f"<th>{column}</th>" for column in ("", *columns))
    table = wide_table(head, map(_table_row, profiles))
    return f"<details><summary>The bytes in a table</summary>{table}</details>"


def _table_row(profile: Mapping[str, Any]) -> str:
    report = profile["report"]
    keys = [*(f"{name}_bytes" for name in RAM_PARTS), "ram_bytes"]
    needed = (report[key] for key in keys)
    figures = profile["devices"], *needed, profile["ram_given_bytes"], report["flash_bytes"]
    cells = "".join(f"<td>{figure:,}</td>" for figure in figures)
    return f'<tr><th scope="row">{escape(profile["name"])}</th>{cells}</tr>'
