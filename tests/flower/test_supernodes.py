"""The app of docs/flower.md as `flwr run` carries it out on SuperNodes, processes of Flower's."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fedtiny import Experiment, simulate
from fedtiny.runs import RunFolder
from tests.flower.page import ROOT, app

BIN = Path(sys.executable).parent
NODES = 2
EXPERIMENT = Experiment.of({
    "seed": 7, "model": {"build": "sine_mlp"}, "data": {"source": "sine"},
    "strategy": {"name": "fedavg", "cohort": NODES, "beta": 0.02},
    "fleet": {"devices": NODES, "held_out": 0}, "run": {"rounds": 1},
})  # fmt: skip
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "sine"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "somebody"
"""


def written(folder: Path, out: Path) -> Path:
    """The app of the page, in a folder of its own; its run goes to ``out``."""
    folder.mkdir()
    module, components = app()
    (folder / "sine_app.py").write_text(re.sub(r'out="[^"]*"', f"out={str(out)!r}", module))
    (folder / "pyproject.toml").write_text(PROJECT + components)
    (folder / "sine.toml").write_text(EXPERIMENT.to_toml())
    return folder


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


@contextmanager
def running(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """A process that is there until it is asked to end."""
    with log.open("w") as lines:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], stdout=lines, stderr=lines, env=environment
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def wait_for(port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_app_of_the_page_runs_on_supernodes_to_the_model_of_a_simulated_run(
    tmp_path: Path,
) -> None:
    home, out, log = tmp_path / "home", tmp_path / "out", tmp_path / "superlink.txt"
    link, *own = free_ports(1 + NODES)
    address = f"127.0.0.1:{link}"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "mine"\n[superlink.mine]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }  # fmt: skip
    superlink = [
        "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(running(superlink, log, environment))
        wait_for(link, log)
        for k, port in enumerate(own):
            node = [
                "flower-supernode", "--insecure", "--superlink", address, "--port", str(port),
                "--node-config", f"partition-id={k}",
            ]  # fmt: skip
            stack.enter_context(running(node, tmp_path / f"node-{k}.txt", environment))
        done = subprocess.run(
            [BIN / "flwr", "run", written(tmp_path / "app", out), "mine", "--stream"],
            capture_output=True, text=True, check=False, env=environment, timeout=150,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "history.jsonl").exists(), done.stdout
    folder, simulated = RunFolder.open(out), simulate(EXPERIMENT)
    assert [row["accepted"] for row in folder.history()] == [NODES]
    model = simulated.layout.flatten(folder.model())
    assert model.tobytes() == simulated.model.tobytes()
