"""The README is true: its blocks run, one after another, and print what it says."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from fedtiny import simulate

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(python|text|sh)\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def test_its_blocks_run_and_print_what_it_says() -> None:
    names: dict[str, object] = {}
    printed = ""
    compared = 0
    for kind, text in BLOCKS:
        if kind == "python":
            out = io.StringIO()
            with redirect_stdout(out):
                exec(text, names)
            printed = out.getvalue()
        elif kind == "text":
            assert printed == text
            compared += 1
    assert compared == 4


def test_its_strategy_runs_from_the_folder_of_the_experiment(tmp_path: Path) -> None:
    (source,) = [text for kind, text in BLOCKS if "class TrimmedMean" in text]
    (tmp_path / "trimmed.py").write_text(source)
    (tmp_path / "mine.toml").write_text(
        '[model]\nbuild = "sine_mlp"\n[data]\nsource = "sine"\n[device]\nram = "64KiB"\n'
        '[strategy]\nbuild = "trimmed:TrimmedMean"\ncohort = 10\n[fleet]\ndevices = 300\n'
        "[run]\nrounds = 100\n[evaluate.online]\nlr = 0.02\n"
    )
    rows = simulate(tmp_path / "mine.toml").evaluations()
    assert rows[-1]["loss_after"] < 0.8 * rows[0]["loss_after"]


def test_its_code_is_as_short_as_it_says() -> None:
    (simulation,) = [text for _, text in BLOCKS if "fedtiny.simulate" in text]
    assert len(simulation.splitlines()) == 10
    (strategy,) = [text for _, text in BLOCKS if "class TrimmedMean" in text]
    lines = [line for line in strategy.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 15


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (README.parent / link).exists()


@pytest.mark.parametrize("page", ["README.md", "simulations/README.md"])
def test_its_tables_are_filled(page: str) -> None:
    assert not re.search(r"@\w+@", (README.parent / page).read_text(encoding="utf-8"))
