"""What docs/flower.md shows works."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedtiny import Experiment
from fedtiny.flower.app import make_apps
from fedtiny.flower.strategy import FlowerStrategy
from fedtiny.strategies.table import build
from tests.flower.page import PAGE, ROOT, app, blocks

FLEET = '[model]\nbuild = "sine_mlp"\n[data]\nsource = "sine"\n[fleet]\ndevices = 20\n'


@pytest.mark.parametrize("text", [b for b in blocks("toml") if "[strategy]" in b])
def test_a_strategy_of_the_page_can_be_built(text: str) -> None:
    made = Experiment.parse(FLEET + text).build_strategy()
    assert isinstance(made, FlowerStrategy)
    assert made.cohort == 10
    made.child.close()


def test_the_whole_experiment_of_the_page_is_there() -> None:
    (file,) = re.findall(r"\]\(\.\./(simulations/\w+\.toml)\)", PAGE)
    strategy = tomllib.loads((ROOT / file).read_text())["strategy"]
    made = build(strategy)
    assert isinstance(made, FlowerStrategy)
    made.child.close()


def test_the_app_of_the_page_has_the_components_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, components = app()
    named = tomllib.loads(components)["tool"]["flwr"]["app"]["components"]
    (tmp_path / "sine.toml").write_text(FLEET + '[strategy]\nname = "fedavg"\n')
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {"__file__": "sine_app.py"}
    exec(compile(module, named["serverapp"].partition(":")[0], "exec"), made)
    assert type(made["server"]) is type(make_apps("sine.toml").server)
    # `flwr run` does not import the module: it looks for such assignments.
    assigned = {
        target.id
        for node in ast.parse(module).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert {name.partition(":")[2] for name in named.values()} <= assigned
