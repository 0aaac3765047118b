"""The report of a run: one HTML file that needs nothing else, made from the run's folder."""

from __future__ import annotations

from pathlib import Path

from fedtiny.report.page import page
from fedtiny.report.record import Record
from fedtiny.runs import RunFolder

FILE_NAME = "report.html"


def write_report(run: RunFolder) -> Path:
    """Write ``report.html`` into the folder, in place of an older one; returns its path.

    The same history gives the same bytes.
    """
    path = run.path / FILE_NAME
    path.write_text(page(Record.read(run)), encoding="utf-8")
    return path
