"""docs/samples.md is true: its examples are sources, and its keys are those that are printed."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from fedtiny.agent.cli import main
from fedtiny.agent.reports import VisitReport
from fedtiny.agent.sources import open_source
from fedtiny.agent.tables import read_rows
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp
from tests.agent.small_fleet import SmallFleet, joined, served

PAGE = (Path(__file__).resolve().parents[2] / "docs/samples.md").read_text(encoding="utf-8")
MODULES = re.findall(r"```python\n(# (\w+)\.py    --data (\S+)\n.*?)```", PAGE, re.S)
TABLES = re.findall(r"```csv\n(.*?)```", PAGE, re.S)
CLASSIFIER = Learner(compile(mlp((2, 4, 3)), loss="cross_entropy", ram="64KiB", batch=2))
EXPECTED = {  # labels to train on; those held back
    "my_table:rows": ([0, 1], [1]),
    "my_door:events": ([0, 1], [1]),
    "my_task:Task": ([0, 1] * 4, [0, 1] * 2),
}


@pytest.mark.parametrize(("text", "module", "data"), MODULES, ids=[m[2] for m in MODULES])
def test_each_example_gives_the_samples_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, module: str, data: str
) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    sampler = open_source(data, 2).sampler(CLASSIFIER, Key(7, 2, 5))
    support, query = list(sampler("support").y), list(sampler("query").y)
    if data in EXPECTED:
        assert (support, query) == EXPECTED[data]
    else:  # a sensor: what has come within a fifth of a second
        assert support
        assert set(support + query) <= {0, 1}


def test_all_forms_of_objects_have_an_example() -> None:
    assert {data for _, _, data in MODULES} == {*EXPECTED, "my_sensor:stream"}


def test_its_tables_are_read_as_it_says(tmp_path: Path) -> None:
    samples, labels = TABLES
    (tmp_path / "a.csv").write_text(samples)
    rows = read_rows(tmp_path, 1000)
    assert rows.shape == (2,)
    assert (rows.chosen("support", True), rows.chosen("query", True)) == ([0, 1], [2])
    (tmp_path / "labels.csv").write_text(labels)
    assert read_rows(tmp_path, 1000).chosen("support", True) == [0, 1, 3]


def keys(start: str, end: str) -> set[str]:
    """What stands in the first column of the table between two words of the page."""
    table = PAGE.partition(start)[2].partition(end)[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    return set(re.findall(r"`(\w+)`", " ".join(cells)))


def test_its_keys_are_those_that_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("a visit has", "`status --json` prints") == {f.name for f in fields(VisitReport)}
    with served(fleet := SmallFleet()) as port:
        joined(tmp_path, fleet, port)
    main(["status", "--dir", str(tmp_path), "--json"])
    assert keys("`status --json` prints", "While an agent") == set(
        json.loads(capsys.readouterr().out)
    )
