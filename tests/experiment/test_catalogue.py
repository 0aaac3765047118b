"""What is said of strategies: papers, parameters, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fedtiny.errors import StrategyError
from fedtiny.experiment.catalogue import Entry, Paper, entries
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.table import TABLE

HERE = "tests.experiment.test_catalogue"
BASELINES = {"joint", "none"}


@pytest.mark.parametrize("entry", entries(), ids=TABLE)
def test_every_strategy_that_ships_says_what_it_is_and_where_it_is_from(entry: Entry) -> None:
    assert 10 < len(entry.summary) < 100
    assert "``" not in entry.page
    assert (entry.paper is None) == (entry.name in BASELINES)


@pytest.mark.parametrize("entry", entries(), ids=TABLE)
def test_every_parameter_that_ships_has_a_meaning_of_its_own(entry: Entry) -> None:
    meanings = {parameter.meaning for parameter in entry.parameters}
    assert "" not in meanings
    assert len(meanings) == len(entry.parameters)


def test_a_paper_is_read_from_the_page() -> None:
    assert Entry.of("fedavg").paper == Paper(
        "H. B. McMahan et al.",
        "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        "AISTATS 2017",
    )


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("fedadam", "Reddi et al. 2021"),  # one file, two papers
        ("fedavgm", "Hsu et al. 2019"),
        ("reptile", "Nichol et al. 2018"),
        ("geometric-median", "Pillutla et al. 2022"),
    ],
)
def test_a_paper_in_short_is_that_of_the_class(name: str, short: str) -> None:
    paper = Entry.of(name).paper
    assert paper
    assert paper.short == short


def test_a_single_author_stands_alone() -> None:
    assert Paper("A. B. Someone", "T", "Venue 2020").short == "Someone 2020"


def test_own_parameters_come_first_and_then_those_of_the_bases() -> None:
    names = [parameter.name for parameter in Entry.of("tinyreptile").parameters]
    assert names[:3] == ["alpha", "anneal", "beta"]
    assert names[-3:] == ["cohort", "update_clip", "transforms"]


def test_a_default_is_that_of_the_strategy_and_not_of_its_base() -> None:
    defaults = {p.name: p.default for p in Entry.of("tinyreptile").parameters}
    assert (defaults["cohort"], defaults["beta"]) == (1, 0.02)


def test_what_a_strategy_finds_out_itself_is_no_parameter() -> None:
    assert "fleet" not in {parameter.name for parameter in Entry.of("fedtiny").parameters}


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    """Averages twice; the second time with ``haste``. It is not published."""

    haste: float
    care: int = 3


@dataclass(frozen=True, kw_only=True)
class Silent(FedAvg):
    pass


def gentle(patience: int, beta: float = 0.1) -> FedAvg:
    """FedAvg with small steps.

    Attributes:
        patience: What it takes.
    """
    return FedAvg(beta=beta / patience)


READY = FedAvg(beta=0.5)


def test_a_strategy_of_ones_own_is_described_by_its_docstring() -> None:
    entry = Entry.of(f"{HERE}:Mine")
    assert (entry.summary, entry.paper) == ("averages twice", None)
    haste, care, *_ = entry.parameters
    assert (haste.name, haste.required) == ("haste", True)
    assert haste.meaning == "Averages twice; the second time with haste."
    assert (care.default, care.required, care.meaning) == (3, False, "")


def test_a_docstring_that_python_made_up_says_nothing() -> None:
    assert "Silent(" not in Entry.of(f"{HERE}:Silent").summary


def test_of_two_in_a_file_each_says_which_it_is() -> None:
    told = Entry.of("multikrum").page
    assert told.startswith(
        "The mean of the deltas with the smallest scores.\n\nKrum and Multi-Krum"
    )
    assert Entry.of("scaffold").page.startswith("SCAFFOLD: ")


def test_a_strategy_of_flowers_takes_its_own_arguments_and_ours() -> None:
    entry = Entry.of("flwr.serverapp.strategy:FedTrimmedAvg")
    defaults = {parameter.name: parameter.default for parameter in entry.parameters}
    assert defaults["arguments.beta"] == 0.2  # Flower's; [strategy] has it in a table
    assert defaults["beta"] == 0.01
    assert defaults["evaluate_every"] == 0
    assert {"reference", "layout", "seed", "child"}.isdisjoint(defaults)


def test_a_class_made_from_one_of_flowers_is_described_like_it() -> None:
    entry = Entry.of("tests.flower.theirs:Remembering")
    names = [parameter.name for parameter in entry.parameters]
    assert names[:2] == ["share", "evaluate_every"]
    assert entry.page.startswith("Keeps one thing of each kind")


def test_a_function_is_described_by_its_arguments() -> None:
    entry = Entry.of(f"{HERE}:gentle")
    told = [(p.name, p.default, p.required, p.meaning) for p in entry.parameters]
    assert told == [("patience", None, True, "What it takes."), ("beta", 0.1, False, "")]


def test_a_finished_object_takes_nothing() -> None:
    assert Entry.of(f"{HERE}:READY").parameters == ()


@pytest.mark.parametrize(
    ("name", "match"),
    [("fedavgg", "did you mean 'fedavg'"), ("nowhere:Mine", "'nowhere:Mine' cannot be imported")],
)
def test_what_does_not_exist_is_an_error(name: str, match: str) -> None:
    with pytest.raises(StrategyError, match=match):
        Entry.of(name)
