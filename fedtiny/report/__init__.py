"""The report of a run: one HTML file that needs nothing else, made from the run's folder."""

from __future__ import annotations

from pathlib import Path

from fedtiny.report.record import Record
from fedtiny.runs import RunFolder, replacing

FILE_NAME = "report.html"


def write_report(run: RunFolder) -> Path:
    """Write ``report.html`` into the folder, in place of an older one; returns its path.

    The same history gives the same bytes.
    """
    from fedtiny.report.page import page  # which draws: nobody else pays for matplotlib

    path = run.path / FILE_NAME
    document = page(Record.read(run)).encode()
    with replacing(path) as file:
        file.write(document)
    return path
