"""Every strategy learns: the problems of the README's table, in fewer rounds and with one seed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.strategies import ROWS, learned
from fedtiny.strategies.table import TABLE

ROUNDS = {"skew": 30, "few-shot": 200, "personal": 30, "norms": 15, "pruned": 10}
GAIN = {"skew": 0.4, "krum": 0.2, "few-shot": 0.08, "personal": 0.5, "norms": 0.5, "pruned": 0.5}
"""Krum takes the model of one device, which knows a few of the ten digits."""


README = Path(__file__).parents[2] / "README.md"


def test_every_strategy_that_learns_has_a_problem_and_a_row_of_the_readme() -> None:
    assert ROWS.keys() == TABLE.keys() - {"none"}
    told = re.findall(r"^\| `([a-z-]+)` \| ([a-z-]+) \|", README.read_text("utf-8"), re.M)
    assert dict(told) == {name: problem for name, (problem, _) in ROWS.items()}


@pytest.mark.parametrize("name", ROWS)
def test_it_learns(name: str) -> None:
    problem = ROWS[name][0]
    found = learned(name, 1, f"run.rounds={ROUNDS[problem]}")
    assert found.end >= found.start + GAIN.get(name, GAIN[problem])
