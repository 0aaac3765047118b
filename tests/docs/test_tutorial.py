"""docs/strategy.md and its notebook are true: every cell runs, and prints what the page says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from fedtiny.cli import app
from tests.docs.notebook import NOTEBOOK, PAGE, Cell, cells, written

TEXT = PAGE.read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the reader is: an empty folder, with a notebook's main module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "100")
    yield tmp_path
    sys.modules.pop("lion", None)


def run(source: str) -> str:
    """What one cell prints."""
    first, _, rest = source.partition("\n")
    if first.startswith("%%writefile "):
        Path(first.split()[1]).write_text(rest + "\n")
        return ""
    if first == "%%bash":
        return in_shell(rest.replace("127.0.0.1:8470", "127.0.0.1:0"))  # whichever port is free
    if first.startswith("!fedtiny "):
        result = CliRunner().invoke(app, first.split()[1:])
        assert result.exit_code == 0, result.output
        return result.stdout
    if first.startswith("!pytest "):
        return in_shell(f"{sys.executable} -m {first[1:]} -p no:cacheprovider -p no:xdist")
    out = io.StringIO()
    with redirect_stdout(out):
        exec(source, vars(sys.modules["__main__"]))
    return out.getvalue()


def in_shell(script: str) -> str:
    result = subprocess.run(
        ["bash", "-eu", "-c", f"AGENTS=; {script}"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def code(document: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


def check(cell: Cell, printed: str) -> None:
    """Each line that the page tells is printed, in this order."""
    lines = iter(line.rstrip() for line in printed.splitlines())
    for told in cell.told:
        assert told == "..." or any(line.startswith(told) for line in lines), f"{told}\n{printed}"


@pytest.mark.timeout(240)
def test_every_cell_of_the_notebook_runs_and_prints_what_the_page_says(folder: Path) -> None:
    told = [cell for cell in cells(TEXT) if cell.kind == "code"]
    sources = code(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert sources == [cell.source for cell in told]
    for cell in told:
        check(cell, run(cell.source))


def test_the_notebook_is_that_of_the_page() -> None:
    assert NOTEBOOK.read_text(encoding="utf-8") == written(TEXT), (
        "run: python -m tests.docs.notebook"
    )


def test_its_strategy_is_as_short_as_promised() -> None:
    (strategy,) = [c.source for c in cells(TEXT) if c.source.startswith("%%writefile lion.py")]
    assert len([line for line in strategy.splitlines()[1:] if line]) <= 15


def test_its_links_lead_somewhere() -> None:
    for link in ("strategy.ipynb", "../tests/strategies", "../README.md"):
        assert f"({link}" in TEXT
        assert (PAGE.parent / link).exists()
