"""``fedtiny strategies``: what it prints, for people and for programs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedtiny.cli import app
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.table import TABLE
from fedtiny.transforms.table import TABLE as TRANSFORMS


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", sys.path[:])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["strategies", *arguments])


def told(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_list_has_every_strategy_with_its_paper_and_every_transform() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    printed = result.stdout
    assert re.search(r"^fedavg +the weighted mean .* McMahan et al. 2017", printed, re.M)
    for name in (*TABLE, *TRANSFORMS):
        assert re.search(rf"^{name}\b", printed, re.M), name
    assert max(map(len, printed.splitlines())) <= 100


def test_one_strategy_is_told_with_its_needs_parameters_and_conflicts() -> None:
    printed = run("median").stdout
    assert 'D. Yin et al., "Byzantine-Robust Distributed Learning' in printed
    assert re.search(r"^needs +every update of a round", printed, re.M)
    assert re.search(r"^quarantine +0 +Rounds for which", printed, re.M)
    conflicts = printed.partition("together with")[2]
    order = [conflicts.index(severity) for severity in ("error", "warning", "fine")]
    assert order == sorted(order)
    assert "take randomk:SHARE" in " ".join(conflicts.split())
    assert max(map(len, printed.splitlines())) <= 100


def test_a_strategy_without_conflicts_says_so() -> None:
    assert run("fedavg").stdout.rstrip().endswith("It goes with everything.")


@pytest.mark.parametrize("name", TABLE)
def test_every_strategy_that_ships_can_be_told(name: str) -> None:
    document = told(name)
    assert document["build"] == TABLE[name]
    assert document["needs"] in ("sum", "all")
    assert document["asks"]["a device"]
    assert document["asks"]["sends"]


@pytest.mark.parametrize(
    ("name", "fact", "words"),
    [
        ("fedavg", "needs RAM for", "its model and its training, and nothing else"),
        ("fedprox", "needs RAM for", "its model and its training, and about 3.9 B a parameter"),
        ("reptile", "a device", "takes 8 steps"),
        ("fomaml", "sends", "the gradient at the end"),
        ("none", "sends", "counts and sums"),
        ("scaffold", "keeps", "a control variate"),
        ("ditto", "keeps", "a model of its own"),
        ("fedper", "keeps", "its own values of the parameters that are not averaged"),
        ("fedncm", "sends", "sums over its features"),
        ("tinymetafed", "sends", "what it has trained, transformed: topk"),
    ],
)
def test_what_it_asks_of_a_device_is_that_of_its_first_round(
    name: str, fact: str, words: str
) -> None:
    assert told(name)["asks"][fact] == words


def test_json_has_all_strategies_and_transforms() -> None:
    document = told()
    assert [row["name"] for row in document["strategies"]] == list(TABLE)
    assert "topk:SHARE" in document["transforms"]
    assert document["strategies"][0]["paper"]["venue"] == "AISTATS 2017"


def test_json_of_one_has_its_parameters_and_conflicts() -> None:
    document = told("krum")
    byzantine = document["parameters"][0]
    assert (byzantine["name"], byzantine["default"]) == ("byzantine", 1)
    topk = document["conflicts"][0]
    assert (topk["with"], topk["severity"]) == ("topk", "error")
    assert topk["reason"]
    assert topk["remedy"]


def test_a_strategy_of_ones_own_is_named_by_module_and_object() -> None:
    printed = run("tests.strategies.own:SignAveraging").stdout
    assert re.search(r"^step +0.01 ", printed, re.M)


def test_a_name_that_is_a_module_and_object_is_told_once() -> None:
    first, *_ = run("tests.strategies.own:SignAveraging").stdout.splitlines()
    assert first == "tests.strategies.own:SignAveraging"


def test_what_has_to_be_given_is_told_where_nothing_can_be_built_without_it() -> None:
    name = "flwr.serverapp.strategy:QFedAvg"
    printed = run(name).stdout
    assert re.search(r"^client_learning_rate +to be given +Local learning rate", printed, re.M)
    unknown = "What it asks of a device, and what it goes with, depends on client_learning_rate."
    assert unknown in " ".join(printed.split())
    document = told(name)
    assert (document["needs"], document["asks"], document["conflicts"]) == (None, None, None)


def test_what_no_device_can_work_for_is_refused_with_the_reason() -> None:
    result = run("flwr.serverapp.strategy:FedXgbBagging")
    assert (result.exit_code, result.stdout) == (8, "")
    assert "it collects trees that XGBoost has grown" in result.stderr


def of_a_file(schedule: Path = Path("steps.csv"), step: float = 0.1) -> FedAvg:
    """A strategy made of something that JSON has no word for."""
    return FedAvg(beta=step)


def test_a_default_that_json_has_no_word_for_is_told_in_pythons() -> None:
    name = "tests.test_cli_strategies:of_a_file"
    assert "Path('steps.csv')" in told(name)["parameters"][0]["default"]
    assert "Path('steps.csv')" in run(name).stdout


def test_a_page_is_filled_to_the_width_of_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = run("krum").stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert "    s(i) = sum over i -> j of  |Delta_i - Delta_j|^2" in lines  # as it is written


def test_the_parameters_of_a_phase_are_listed_as_in_a_sentence() -> None:
    words = "trains on each of its samples once, the shared, statistics and head parameters alone"
    assert told("tinymetafed")["asks"]["a device"] == words


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    result = run("fedavgg")
    assert (result.exit_code, result.stdout) == (8, "")
    assert "did you mean 'fedavg'" in result.stderr
