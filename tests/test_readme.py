"""The README and its pages are true: their blocks run in order and print what they say."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedtiny
from fedtiny import simulate
from fedtiny.cli import app
from fedtiny.engine.zoo import omniglot_conv
from fedtiny.errors import DataError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from tests.data.test_datasets import MODULE

README = Path(__file__).parent.parent / "README.md"
PRINTING = {README: 7} | {
    README.parent / f"docs/{page}.md": count for page, count in {"models": 3, "plans": 1}.items()
}
"""The pages with Python, and how many blocks stand in each that say what it prints."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """What stands in the page as code: its language and its text."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


BLOCKS = blocks(README)


@pytest.mark.parametrize(("page", "printing"), PRINTING.items(), ids=lambda p: str(p))
def test_its_blocks_run_and_print_what_it_says(page: Path, printing: int) -> None:
    names: dict[str, object] = {}
    printed = ""
    compared = 0
    for kind, text in blocks(page):
        if kind == "python":
            out = io.StringIO()
            with redirect_stdout(out):
                exec(text, names)
            printed = out.getvalue()
        elif kind == "text":
            assert printed == text
            compared += 1
    assert compared == printing


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The README's model as a file of the folder where we are."""
    (source,) = [text for _, text in BLOCKS if text.startswith("# my_model.py")]
    (tmp_path / "my_model.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    sys.modules.pop("my_model", None)


def test_its_model_compiles_on_the_command_line(own_model: Path) -> None:
    (line,) = [text for _, text in BLOCKS if text.startswith("$ fedtiny compile")]
    program, *arguments = line.removeprefix("$ ").split()
    result = CliRunner().invoke(app, arguments)
    assert (program, result.exit_code) == ("fedtiny", 0), result.output
    assert re.search(r"needed +193,372 ", result.stdout)
    assert (own_model / "arena.png").read_bytes().startswith(b"\x89PNG")


def test_its_picture_is_that_of_the_present_arena() -> None:
    report = fedtiny.compile(omniglot_conv(), loss="cross_entropy", ram="256KiB").report()
    picture = (README.parent / "docs/arena.svg").read_text(encoding="utf-8")
    assert f">arena {report['arena_bytes']:,} B<" in picture
    assert f">lower bound {report['lower_bound_bytes']:,} B, in op " in picture


def test_its_data_tables_are_those_of_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDTINY_DATA", raising=False)
    (text,) = [text for kind, text in BLOCKS if kind == "toml" and "[data]" in text]
    tables: dict[str, Any] = {
        **tomllib.loads(text),
        "model": {"build": "mlp", "widths": [490, 10]},
        "strategy": {"name": "fedavg"},
        "fleet": {"devices": 20},
        "run": {"rounds": 1},
    }
    with pytest.raises(DataError, match="fedtiny data convert spoken-digits"):  # all else is right
        Workload.of(Experiment.of(tables))
    tables["data"]["concentrations"] = 0.5
    with pytest.raises(fedtiny.FedtinyError, match="concentrations"):
        Workload.of(Experiment.of(tables))


def test_a_pruning_run_is_explained_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = [text for _, text in BLOCKS if text.startswith("$ fedtiny explain")]
    command, _, *told = text.splitlines()
    monkeypatch.chdir(README.parent)
    result = CliRunner().invoke(app, command.split()[2:])
    assert result.exit_code == 0, result.output
    printed = [line.rstrip() for line in result.stdout.splitlines()]
    assert [line for line in told if line not in printed] == []


def test_its_source_of_partitions_is_the_tested_one() -> None:
    assert MODULE in README.read_text(encoding="utf-8")


def test_its_strategy_runs_from_the_folder_of_the_experiment(tmp_path: Path) -> None:
    (source,) = [text for kind, text in BLOCKS if "class FedLion" in text]
    (tmp_path / "lion.py").write_text(source)
    (tmp_path / "mine.toml").write_text(
        '[model]\nbuild = "digits_mlp"\n[data]\nsource = "label-skew-digits"\n'
        '[device]\nram = "64KiB"\n[strategy]\nbuild = "lion:FedLion"\ncohort = 10\nsteps = 10\n'
        "[fleet]\ndevices = 50\n[run]\nrounds = 40\n[evaluate.online]\nlr = 0.02\n"
    )
    rows = simulate(tmp_path / "mine.toml").evaluations()
    assert rows[-1]["accuracy_before"] > rows[0]["accuracy_before"] + 0.5


def test_its_code_is_as_short_as_it_says() -> None:
    (simulation,) = [text for _, text in BLOCKS if "fedtiny.simulate" in text]
    assert len(simulation.splitlines()) == 10
    (strategy,) = [text for _, text in BLOCKS if "class FedLion" in text]
    lines = [line for line in strategy.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 15


def test_its_model_is_as_short_as_it_says() -> None:
    (model,) = [text for _, text in BLOCKS if text.startswith("# my_model.py")]
    assert len(model.splitlines()) == 10


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (README.parent / link).exists()


@pytest.mark.parametrize("page", ["README.md", "simulations/README.md"])
def test_its_tables_are_filled(page: str) -> None:
    assert not re.search(r"@\w+@", (README.parent / page).read_text(encoding="utf-8"))
