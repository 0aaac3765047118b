"""The section of the report on online learning, and its table in the terminal."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedtiny.console import show_record
from fedtiny.experiment import Experiment
from fedtiny.report.page import page
from fedtiny.report.record import Record
from fedtiny.runs import RunFolder
from tests.synthetic_run import DIGITS

STREAMS = """
[online]
samples = 90
lr = 0.01
drift = "rotate:90"
drift_begins = 30

[online.<always>]
[online.never]
gate = "never"
[online.slow]
drift = "contrast:0.3"
drift_ends = 60
""".replace("<always>", '"<always>"')


def row(name: str, steps: float) -> dict[str, Any]:
    """Figures that a test can tell apart."""
    measured = {
        "before_drift": 0.9, "from_drift": 0.4, "first_before": 0.95, "first_after": 0.75,
        "new_before": 0.125, "new_after": 0.625,
    }  # fmt: skip
    told = {f"accuracy_{key}": value for key, value in measured.items()}
    return {
        "kind": "online", "round": 4, "time_s": 120.0, "name": name, "gate": "always",
        "devices": 20, "samples": 90, "measure": "accuracy", **told,
        **{f"{key}_ci": 0.01 for key in told}, "forgetting": 0.2, "forgetting_ci": 0.02,
        "adapted": steps, "adapted_ci": 0.0, "steps": 90 * steps, "steps_saved": 90 - 90 * steps,
        "adaptation_macs": 1e6, "saved_macs": 0.0, "adaptation_s": 0.1,
        "adaptation_j": 0.00125 * steps, "saved_j": 0.0, "window_samples": 20,
        "accuracy_curve": [0.9, 0.7, None, 0.4, 0.6],
        "accuracy_curve_ci": [0.1, 0.1, None, 0.1, 0.1], "adapted_curve": [steps] * 5,
    }  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Record:
    text = DIGITS.replace("{rounds}", "4") + STREAMS
    folder = RunFolder.create(tmp_path / "run", Experiment.parse(text))
    for name, steps in (("<always>", 1.0), ("never", 0.0), ("slow", 0.5)):
        folder.append(row(name, steps))
    return Record.read(folder)


def section(record: Record) -> str:
    return page(record).split("<h2>Online learning</h2>")[1].split("<h2>")[0]


def test_streams_that_drift_alike_share_their_plots(record: Record) -> None:
    told = section(record)
    assert re.findall(r'<svg role="img" aria-label="([^"]*)"', told) == [
        "accuracy against samples met, rotate:90 from sample 30 on",
        "steps against samples met, rotate:90 from sample 30 on",
        "accuracy against samples met, contrast:0.3 from sample 30 until 60",
        "steps against samples met, contrast:0.3 from sample 30 until 60",
    ]
    assert re.findall(r"</i>([^<]*)</li>", told) == ["&lt;always&gt;", "never", "slow"]


def test_each_gate_is_a_row_with_its_figures(record: Record) -> None:
    told = section(record)
    rows = [
        re.sub("<.*?>", "|", r).strip("|") for r in re.findall(r'<tr class="last">.*?</tr>', told)
    ]
    cells = [[c for c in r.split("|") if c] for r in rows]
    assert cells[0] == [
        "&lt;always&gt;", "90.0 ± 1.0", "40.0 ± 1.0", "62.5 ± 1.0", "75.0 ± 1.0", "20.0 ± 2.0",
        "100 %", "0", "1.25 mJ",
    ]  # fmt: skip
    assert cells[1][-3:] == ["none", "90", "0 J"]
    assert "12.5 ± 1.0 in the new domain and 95.0 ± 1.0 in the first one" in told


def test_a_curve_stands_over_the_middles_of_its_windows(record: Record) -> None:
    curve = record.online["slow"].curve
    assert [place for place, *_ in curve] == [10, 30, 50, 70, 85]  # the last one has ten samples
    assert [share for *_, share in curve] == [0.5] * 5
    assert [value == value for _, value, *_ in curve] == [True, True, False, True, True]


def test_a_run_without_streams_has_no_section_on_them(record: Record) -> None:
    record.history.clear()
    assert "Online learning" not in page(record)


def test_the_terminal_shows_a_row_for_each_stream_in_eighty_columns(record: Record) -> None:
    console = Console(width=80, record=True, file=StringIO())
    show_record(console, record)
    lines = console.export_text().splitlines()
    cells = {line.split()[0]: line.split() for line in lines if "->" in line}
    assert " ".join(cells["<always>"]) == (
        "<always> 40.0 ± 1.0 95 -> 75 12.5 -> 62.5 100 % 1.25 mJ"
    )
    assert cells["never"][-3:] == ["none", "0", "J"]
