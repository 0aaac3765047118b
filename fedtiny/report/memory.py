"""The report's bars of memory: what each profile's Program needs, and what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fedtiny.engine.program import RAM_PARTS, ram_parts
from fedtiny.report.markup import legend, swatch, wide_table
from fedtiny.report.record import Record
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
    yield legend(swatch(_colour(name), name) for name in _names(record.profiles))
    scale_bytes = _scale(record.profiles)
    yield from (_row(profile, scale_bytes) for profile in record.profiles)
    yield _table(record.profiles)


def _names(profiles: list[Mapping[str, Any]]) -> list[str]:
    """The parts that some profile has."""
    known = [ram_parts(profile["report"]) for profile in profiles]
    return [name for name in RAM_PARTS if any(name in parts for parts in known)]


def _colour(name: str) -> str:
    return f"var(--part-{RAM_PARTS.index(name)})"


def _scale(profiles: list[Mapping[str, Any]]) -> float:
    """The bytes that the full width stands for."""
    largest = max(p["report"]["ram_bytes"] for p in profiles)
    given = (p["ram_given_bytes"] for p in profiles)
    return float(max([1.1 * largest, *(nbytes for nbytes in given if nbytes <= _MOST * largest)]))


def _row(profile: Mapping[str, Any], scale_bytes: float) -> str:
    given, report = profile["ram_given_bytes"], profile["report"]
    wide = 100 * min(given / scale_bytes, 1)
    ends = "budget open" if given > scale_bytes else "budget"
    parts = "".join(_part(*part, scale_bytes) for part in ram_parts(report).items())
    reasons = "".join(f'<p class="reason">{escape(why)}</p>' for why in profile["reasons"])
    return (
        f'<div class="memory{" unfit" * bool(reasons)}"><p><b>{escape(profile["name"])}</b>'
        f"<span>{_said(profile)}</span></p>"
        f'<div class="bar"><div class="{ends}" style="width:{wide:.2f}%"></div>'
        f'<div class="parts">{parts}</div></div>{reasons}</div>'
    )


def _part(name: str, nbytes: int, scale_bytes: float) -> str:
    if not nbytes:
        return ""
    return (
        f'<i style="width:{100 * nbytes / scale_bytes:.2f}%;background:{_colour(name)}" '
        f'title="{name} {nbytes:,} B"></i>'
    )


def _said(profile: Mapping[str, Any]) -> str:
    given, needed = profile["ram_given_bytes"], profile["report"]["ram_bytes"]
    devices = f"{profile['devices']:,} devices · "
    if "dtype" in profile:
        devices += f"{profile['dtype']}, {escape(profile['plan'])} · "
    misfit = '<b class="bad">✕ does not fit</b> · ' if profile["reasons"] else ""
    return f"{devices}{misfit}{needed:,} of {given:,} B ({percent(needed / given)})"


def _table(profiles: list[Mapping[str, Any]]) -> str:
    names = _names(profiles)
    columns = ("devices", *names, "RAM needed", "RAM given", "flash needed")
    head = "".join(f"<th>{column}</th>" for column in ("", *columns))
    table = wide_table(head, (_table_row(profile, names) for profile in profiles))
    return f"<details><summary>The bytes in a table</summary>{table}</details>"


def _table_row(profile: Mapping[str, Any], names: list[str]) -> str:
    report = profile["report"]
    needed = (report.get(f"{name}_bytes", 0) for name in (*names, "ram"))
    figures = profile["devices"], *needed, profile["ram_given_bytes"], report["flash_bytes"]
    cells = "".join(f"<td>{figure:,}</td>" for figure in figures)
    return f'<tr><th scope="row">{escape(profile["name"])}</th>{cells}</tr>'
