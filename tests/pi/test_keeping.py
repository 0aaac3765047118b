"""Agents that are kept up: one that dies keeps the others waiting until its next start, no longer.

They run natively, and die where it is wanted.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.story import experiment
from tests.pi import keeping
from tests.pi.keeping import OVER, Kept, Start, until_over
from tests.pi.native import WITHIN_S, joined, last_model, model_of_agents_here, running

pytestmark = pytest.mark.timeout(120)

WAITS = "sys.stderr.write('it waits'); time.sleep(600)"


def script(text: str) -> Start:
    command = [sys.executable, "-c", f"import sys, time; {text}"]
    return lambda log: subprocess.Popen(command, stderr=log, text=True, start_new_session=True)


def nobody() -> str:
    return "no coordinator"


@pytest.mark.parametrize("visits", [0, 1])
def test_a_run_goes_on_after_the_death_of_an_agent_and_makes_the_same_model(
    tmp_path: Path, visits: int
) -> None:
    """It dies after so many visits, while the other waits, and with the code of a success."""
    file = experiment(tmp_path, 2, rounds=2)
    with CoordinatorProcess(file, tmp_path / "dying") as coordinator:
        coordinator.serve()
        first, second = (joined(coordinator, tmp_path / device) for device in ("0", "1"))
        first_life = running(tmp_path / "1", "--once", "1") if visits else script("sys.exit(0)")
        lives = iter([first_life, second.start])
        second.start = lambda log: next(lives)(log)
        until_over([first, second], WITHIN_S, coordinator.output)
    assert (first.starts, second.starts) == (1, 2)
    assert last_model(tmp_path / "dying") == model_of_agents_here(file, tmp_path / "here")


def test_an_agent_that_says_why_it_ends_ends_the_test(tmp_path: Path) -> None:
    fails = Kept(script("raise ValueError('its reason')"), tmp_path / "fails.log")
    waits = Kept(script(WAITS), tmp_path / "waits.log")
    with pytest.raises(
        AssertionError, match=r"fails.log has ended with 1(.|\n)*its reason"
    ) as told:
        until_over([waits, fails], WITHIN_S, nobody)
    assert "it waits" in str(told.value)
    assert "no coordinator" in str(told.value)
    assert (fails.starts, waits.code) == (1, -signal.SIGKILL)


def test_an_agent_that_dies_again_and_again_ends_the_test(tmp_path: Path) -> None:
    dies = Kept(script("sys.exit(7)"), tmp_path / "dies.log")
    with pytest.raises(AssertionError, match=r"dies.log has ended with 7\nstarts: 4, code: 7"):
        until_over([dies], WITHIN_S, nobody)


def test_an_agent_that_stands_still_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_MOST_SILENT_S", 1.0)
    lives = iter([script(WAITS), script(f"sys.stderr.write({OVER!r})")])
    agent = Kept(lambda log: next(lives)(log), tmp_path / "agent.log")
    until_over([agent], WITHIN_S, nobody)
    assert (agent.starts, agent.said) == (2, f"it waits{OVER}")


def test_what_takes_too_long_is_told_and_ended(tmp_path: Path) -> None:
    waits = Kept(script(WAITS), tmp_path / "waits.log")
    with pytest.raises(AssertionError, match=r"not over after 0.5 s\n(.|\n)*it waits"):
        until_over([waits], 0.5, nobody)
    assert waits.code == -signal.SIGKILL
