"""The unit and the scripts, as their own tools judge them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedtiny.agent import cli
from fedtiny.agent.identity import Identity, Told
from fedtiny.agent.store import FOLDER_VARIABLE
from fedtiny.errors import IdentityError, OutdatedError, RunError

BOARD = Path(__file__).resolve().parents[2] / "device_agents/raspberry_pi"
UNIT = (BOARD / "fedtiny-agent.service").read_text()
AGENT = "/opt/fedtiny/bin/fedtiny-agent"


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"not installed: {name}")
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit of an agent that is installed here, as the verifier wants it."""
    agent, path = tmp_path / "fedtiny-agent", tmp_path / "fedtiny-agent.service"
    agent.write_text("#!/bin/sh\n")
    agent.chmod(0o755)
    path.write_text(UNIT.replace(AGENT, str(agent)))
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    command = [tool("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # It ends with 0 even for a key that does not exist.
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_may_do_little(unit: Path) -> None:
    command = [tool("systemd-analyze"), "security", "--offline=yes", "--no-pager", str(unit)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (exposure,) = re.findall(r"exposure level for \S+: ([\d.]+)", told)
    assert float(exposure) <= 2.0  # of 10; below 2 is what systemd calls OK


@pytest.mark.parametrize("script", sorted(BOARD.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing_wrong(script: Path) -> None:
    done = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.M)


def test_the_unit_waits_for_the_file_that_a_join_writes_last(tmp_path: Path) -> None:
    Identity(0, "pi", 1, True, 0.0, 0.0, Told.now(0.0)).save(tmp_path)
    (written,) = tmp_path.iterdir()
    (state,) = [v for v in settings("Environment") if v.startswith(f"{FOLDER_VARIABLE}=")]
    assert settings("ConditionPathExists") == [f"{state.partition('=')[2]}/{written.name}"]


def test_the_agent_is_not_restarted_for_what_needs_a_person() -> None:
    codes = {int(code) for code in settings("RestartPreventExitStatus")[0].split()}
    assert {IdentityError.exit_code, OutdatedError.exit_code} < codes
    assert RunError.exit_code not in codes  # a full disk may be emptied
    assert all(re.search(rf"\b{code}  ", cli._EPILOG) for code in codes)


def test_unit_and_command_have_one_state_folder_and_one_user() -> None:
    (state,) = [v for v in settings("Environment") if v.startswith(FOLDER_VARIABLE)]
    wrapper = (BOARD / "fedtiny-agent.sh").read_text()
    assert f"runuser -u {settings('User')[0]} -- env {state} " in wrapper
    assert f"{cli.DATA_VARIABLE}=/srv/fedtiny" in settings("Environment")
