"""Pieces of HTML that the sections of a report share."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def wide_table(head: str, rows: Iterable[str]) -> str:
    """A table of these cells and rows, which scrolls where the screen is too narrow."""
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def swatch(paint: str, name: str) -> str:
    """An item of a legend: a colour of the style sheet, such as ``var(--ink)``."""
    return f'<li><i class="swatch" style="background:{paint}"></i>{escape(name)}</li>'


def line(classes: str, name: str) -> str:
    """An item of a legend: a kind of line."""
    return f'<li><i class="{classes}"></i>{name}</li>'


def legend(items: Iterable[str]) -> str:
    """The items, one beside the other."""
    return f'<ul class="legend">{"".join(items)}</ul>'
