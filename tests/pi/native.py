"""The same without a board: programs and agents of this machine, and the model that they make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.ledger import read_ledger
from tests.pi.keeping import Kept, Start, until_over

SAMPLES = "x,label\n" + "".join(f"{n / 8},{n * n / 64}\n" for n in range(-8, 9))
WITHIN_S = 40.0
_ROOT = Path(__file__).resolve().parents[2]
_AGENT = "-m", "fedtiny.agent"


def here(*arguments: Any) -> str:
    """What a Python of this machine prints."""
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def joined(coordinator: CoordinatorProcess, folder: Path) -> Kept:
    """An agent of this machine that has joined, and is to train on the samples."""
    here(*_AGENT, "join", "--dir", folder, coordinator.token())
    (folder / "samples.csv").write_text(SAMPLES)
    return Kept(running(folder), folder.with_suffix(".log"))


def running(folder: Path, *options: str) -> Start:
    """What starts the agent of that folder."""
    data = folder / "samples.csv"
    command: list[str | Path] = [sys.executable, *_AGENT, "run", "--data", data, "--dir", folder]
    return lambda log: subprocess.Popen(
        [*command, *options], cwd=_ROOT, stderr=log, text=True, start_new_session=True
    )


def model_of_agents_here(file: Path, folder: Path) -> str:
    """What two agents here make of the experiment."""
    with CoordinatorProcess(file, folder) as coordinator:
        coordinator.serve()
        agents = [joined(coordinator, folder / device) for device in ("0", "1")]
        until_over(agents, WITHIN_S, coordinator.output)
    return last_model(folder)


def last_model(folder: Path) -> str:
    """The digest of the model after the second round, the last one."""
    commits = read_ledger(folder).commits
    assert len(commits) == 2
    return commits[-1].digest
