"""Emulated Pis: an offline installation, the same bits as here, and rounds with a coordinator."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp, small_conv
from fedtiny.values import Sgd
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.story import experiment
from tests.pi import training
from tests.pi.board import COMMAND, KINDS
from tests.pi.conftest import Installed
from tests.pi.keeping import Kept, until_over
from tests.pi.native import SAMPLES, here, last_model, model_of_agents_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PYTHON, AGENT = "/opt/fedtiny/bin/python", "/opt/fedtiny/bin/fedtiny-agent"
STATE = "/var/lib/fedtiny-agent/state"


@pytest.fixture(params=KINDS)
def board(request: pytest.FixtureRequest, boards: Mapping[str, Installed]) -> Installed:
    return boards[request.param]


# --- the installation


def test_the_bundle_installs_without_a_network(board: Installed) -> None:
    assert "Next: sudo fedtiny-agent join STRING" in board.printed
    assert board.pi.told[-2:] == ["systemctl --quiet enable fedtiny-agent",
                                  "systemctl restart fedtiny-agent"]  # fmt: skip
    out, _ = board.pi.run(PYTHON, "-c", INSTALLED)
    found = json.loads(out)
    assert found["machine"] == board.pi.machine
    wheels = (Path(name).name.split("-")[:2] for name in board.bundle.contents if "whl" in name)
    expected = {name.replace("_", "-"): version for name, version in wheels if name != "pip"}
    assert found["versions"] == expected


INSTALLED = """
import json, platform
from importlib.metadata import distributions
own = [d for d in distributions(path=["/opt/fedtiny/lib/python3.11/site-packages"])]
versions = {d.name.lower().replace("_", "-"): d.version for d in own}
print(json.dumps({"machine": platform.machine(), "versions": versions}))
"""


def test_the_command_runs(board: Installed) -> None:
    out, _ = board.pi.run(COMMAND, "--help")
    assert out.startswith("usage: fedtiny-agent")
    assert board.pi.told[-1] == "runuser -u fedtiny"


# --- the same bits


def test_a_visit_gives_the_same_bits_as_here(board: Installed, tmp_path: Path) -> None:
    pi = board.pi
    images = pi.path("/root/images")
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir()
    for name, program in PROGRAMS.items():
        (images / f"{name}.image").write_bytes(program.image)
    shutil.copy(training.__file__, pi.path("/root/training.py"))
    out, _ = pi.run(PYTHON, "/root/training.py", "/root/images")
    expected = here(training.__file__, images)
    assert json.loads(out) == json.loads(expected)
    subnormal = [float.fromhex(v) for v in json.loads(out)["tanh 1e-37"]["prediction"]]
    assert 0 < min(map(abs, subnormal)) < 2.0**-126


PROGRAMS = {
    "tanh": compile(mlp((3, 9, 2), "tanh"), loss="mse", ram="64KiB", batch=2, sgd=Sgd(0.9)),
    "conv": compile(small_conv(8, 2, 5), loss="cross_entropy", ram="256KiB", batch=2),
    "int8": compile(
        small_conv(8, 2, 5), loss="cross_entropy", ram="256KiB", batch=2, dtype="int8",
        head="int8", plan="biases+last:1+named:conv1.weight,conv2.weight{in=1/4}",
    ),
}  # fmt: skip


# --- a fleet


def test_two_pis_make_the_model_that_two_agents_here_make(
    boards: Mapping[str, Installed], tmp_path: Path
) -> None:
    """One kind beside the other, each with a certificate of its own, which it renews once."""
    file = experiment(tmp_path, 2, rounds=2)
    with CoordinatorProcess(file, tmp_path / "pis") as coordinator:
        coordinator.serve()
        for number, board in enumerate(boards.values()):
            _, told = board.pi.run(COMMAND, "join", coordinator.token())
            assert f"joined as device {number} of 127.0.0.1" in told
            assert board.pi.told[-3:] == ["systemctl stop fedtiny-agent", "runuser -u fedtiny",
                                          "systemctl start fedtiny-agent"]  # fmt: skip
            start_anew(board.pi.path(STATE))
            board.pi.write("/srv/fedtiny/samples.csv", SAMPLES)
        before = [certificate(board) for board in boards.values()]
        agents = [kept(board, tmp_path) for board in boards.values()]
        until_over(agents, 150.0, coordinator.output)
    assert all("trained 14 samples" in agent.said for agent in agents)  # 3 of 17 are the query
    assert not {certificate(board) for board in boards.values()} & set(before)
    assert last_model(tmp_path / "pis") == model_of_agents_here(file, tmp_path / "here")


def kept(board: Installed, folder: Path) -> Kept:
    """The board's agent, as its service runs it."""
    environment = "env", f"FEDTINY_AGENT_DIR={STATE}", "FEDTINY_AGENT_DATA=/srv/fedtiny"

    def start(log: IO[str]) -> subprocess.Popen[str]:
        return board.pi.start(*environment, AGENT, "run", out=subprocess.DEVNULL, err=log)

    return Kept(start, folder / f"{board.pi.machine}.log")


def start_anew(state: Path) -> None:
    """As after a start of the machine: how old the certificate is cannot be known."""
    identity = json.loads((state / "coordinator.json").read_text())
    identity["told"]["boot"] = "an earlier one"
    (state / "coordinator.json").write_text(json.dumps(identity))


def certificate(board: Installed) -> bytes:
    return board.pi.path(f"{STATE}/certificate.pem").read_bytes()
