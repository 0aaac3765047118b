"""Agents and the coordinator as they are deployed: processes, certificates, kill -9."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedtiny
from fedtiny.agent.identity import Identity
from fedtiny.agent.store import Store
from fedtiny.wire.pb import admin_pb2 as pb
from tests.harness.coordinator_process import CoordinatorProcess

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """\
seed = 7
seeded = true
[model]
build = "sine_mlp"
[data]
source = "sine"
support = 8
query = 4
[device]
ram = "64KiB"
[strategy]
name = "fedavg"
cohort = 2
[fleet]
devices = 2
[run]
rounds = 3
"""


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[CoordinatorProcess]:
    experiment = tmp_path / "small.toml"
    experiment.write_text(EXPERIMENT)
    with CoordinatorProcess(experiment, tmp_path / "fleet") as process:
        assert process.start()
        yield process


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedtiny.agent", *map(str, arguments)]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def joined(coordinator: CoordinatorProcess, tmp_path: Path) -> list[Path]:
    """The folders of two devices that have joined by one string, one after the other."""
    string, folders = coordinator.token(uses=2), [tmp_path / "a", tmp_path / "b"]
    for index, folder in enumerate(folders):
        _, told = started("join", string, "--dir", folder, "--name", "pi").communicate(timeout=20)
        assert f"joined as device {index} of 127.0.0.1:{coordinator.port}" in told
    return folders


def running(folder: Path, task: str = "SMALL", **environment: str) -> subprocess.Popen[str]:
    data = f"tests.agent.streaming:{task}"
    return started("run", "--dir", folder, "--data", data, **environment)


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def told_by(agent: subprocess.Popen[str]) -> str:
    """What an agent says until the run is over."""
    _, told = agent.communicate(timeout=30)
    assert agent.returncode == 0, told
    assert told.endswith("every run is over\n")
    return told


def check_model(coordinator: CoordinatorProcess, tmp_path: Path) -> None:
    """The model that was published last is, bit for bit, the one that is simulated."""
    simulated = fedtiny.simulate(tmp_path / "small.toml")
    (path,) = coordinator.folder.glob("runs/*/models/round-000003.npz")
    with np.load(path) as arrays:
        names = [p.name for p in simulated.layout.parameters]
        found = simulated.layout.flatten({name: arrays[name] for name in names})
    assert found.tobytes() == simulated.model.tobytes()


def test_agents_that_joined_in_one_line_make_the_simulated_model(
    coordinator: CoordinatorProcess, tmp_path: Path
) -> None:
    agents = [running(folder) for folder in joined(coordinator, tmp_path)]
    for told in map(told_by, agents):
        assert re.findall(r"round (\d) · trained 8 samples", told) == ["0", "1", "2"]
    check_model(coordinator, tmp_path)


def test_an_update_of_an_agent_that_was_killed_before_its_receipt_counts_once(
    coordinator: CoordinatorProcess, tmp_path: Path
) -> None:
    first, second = joined(coordinator, tmp_path)
    other = running(second)
    agent = running(first, "FreezingTask", FREEZE=str(coordinator.pid))
    store = Store(first)
    wait_until(lambda: (held := store.held()) is not None and held.update.round == 1)
    time.sleep(0.2)  # the request is on its way
    agent.kill()
    _, told = agent.communicate()
    os.kill(coordinator.pid, signal.SIGCONT)
    assert "round 1" not in told
    again = told_by(running(first))
    told_by(other)
    assert re.findall(r"round (\d) · ", again)[:1] == ["1"]
    assert store.held() is None
    check_model(coordinator, tmp_path)


def test_a_revoked_agent_ends_with_the_code_for_it(
    coordinator: CoordinatorProcess, tmp_path: Path
) -> None:
    folder, _ = joined(coordinator, tmp_path)
    coordinator.call("revoke", pb.RevokeRequest(device="0"))
    agent = running(folder)
    _, told = agent.communicate(timeout=20)
    assert agent.returncode == 11, told
    assert "refuses this device" in told


def test_a_certificate_whose_time_has_come_is_renewed_before_the_next_visit(
    coordinator: CoordinatorProcess, tmp_path: Path
) -> None:
    folder, _ = joined(coordinator, tmp_path)
    before = (folder / "certificate.pem").read_bytes()
    replace(Identity.load(folder), renew_s=0.0).save(folder)
    data = "tests.agent.streaming:SMALL"
    _, told = started("run", "--dir", folder, "--data", data, "--once", 1).communicate(timeout=20)
    assert told.startswith("round 0 · trained 8 samples")
    assert (folder / "certificate.pem").read_bytes() != before
    assert Identity.load(folder).renew_s > 0
