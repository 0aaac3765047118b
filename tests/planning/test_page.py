"""docs/plans.md is true: what it compiles prints what it says, and its plans are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedtiny.update_plan import UpdatePlan

PAGE = (Path(__file__).resolve().parents[2] / "docs/plans.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "docs/plans.md", "exec"), {})
    assert capsys.readouterr().out == block("text")


def test_every_plan_of_the_table_is_one() -> None:
    plans = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)
    assert len(plans) == 9
    assert [str(UpdatePlan.parse(plan)) for plan in plans] == plans
