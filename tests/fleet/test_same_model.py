"""One experiment, simulated and with real agents: the same models, the same bytes, the same scores.

The runs share a coordinator and its agents, most of them in threads, two in processes of their own.
One prunes: it calibrates and scores candidates, lets weights grow, and trains under a mask. In two
devices send what transforms leave of their deltas; in one of these they keep the rest. In one they
are int8: they fetch the weights as int8, and train some channels.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedtiny.agent.card import device_card
from fedtiny.agent.identity import enrol
from fedtiny.agent.limits import Limits
from fedtiny.agent.starting import open_agent
from fedtiny.agent.store import Store
from fedtiny.simulator.run import Result, simulate
from fedtiny.wire.joining import JoinString
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.ledger import read_ledger, read_rows

THREADS, PROCESSES = 18, 2
DEVICES = THREADS + PROCESSES
STRATEGIES = {"fedadam": 5, "median": 6, "fedtiny": 7, "fedavg": 8, "reptile": 9}
"""And their seeds: agents would fetch one initial model of several runs once."""
DENSE = {"model": "digits_mlp", "density": 1.0, "more": "", "device": ""}
PRUNES = DENSE | {"model": "digits_bn", "density": 0.1, "more": "every = 2"}
INT8 = {"device": 'dtype = "int8"\nplan = "named:linear1.weight{out=0-7}+biases+last:1"'}
OWN = {
    "fedtiny": PRUNES,
    "fedavg": DENSE | {"more": 'transforms = ["clip:1", "feedback", "topk:0.1", "sign"]'},
    "reptile": DENSE | INT8,
    "median": DENSE | {"more": 'transforms = ["randomk:0.3", "qsgd:15"]'},
}
SOURCE = "digits_task:task"

EXPERIMENT = """
seed = {seed}
seeded = true

[model]
build = "{model}"

[data]
source = "label-skew-digits"
concentration = 0.5
public = 100

[device]
batch = 10
density = {density}
{device}

[strategy]
name = "{strategy}"
cohort = 8
beta = 0.1
steps = 4
{more}

[fleet]
devices = 20
held_out = 4
profiles = {{ pi-4 = 1.0 }}

[run]
rounds = 5

[evaluate.adapted]
lr = 0.05
"""
TASK = """
from fedtiny.experiment import Experiment

task = Experiment.load({path!r}).build_task()
"""


@dataclass(frozen=True)
class Deployed:
    """What came of the runs, by strategy."""

    simulated: dict[str, Result]
    folder: Path
    codes: list[int]

    def rows(self, strategy: str, kind: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows of the simulated history, and of the real one."""
        real = read_rows(self.folder, strategy)
        simulated = self.simulated[strategy].history
        return [r for r in simulated if r["kind"] == kind], [r for r in real if r["kind"] == kind]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("same")
    paths = [folder / f"{strategy}.toml" for strategy in STRATEGIES]
    for path, (strategy, seed) in zip(paths, STRATEGIES.items(), strict=True):
        own = OWN.get(strategy, DENSE)
        path.write_text(EXPERIMENT.format(strategy=strategy, seed=seed, **own))
    (folder / "digits_task.py").write_text(TASK.format(path=str(paths[0])))
    simulated = {strategy: simulate(path) for path, strategy in zip(paths, STRATEGIES, strict=True)}
    with (
        pytest.MonkeyPatch.context() as patch,
        CoordinatorProcess(paths[0], folder / "fleet", *map(str, paths[1:])) as process,
    ):
        patch.syspath_prepend(folder)
        process.serve()
        codes = _work(folder, process)
        process.kill()
        yield Deployed(simulated, folder / "fleet", codes)


def _work(folder: Path, process: CoordinatorProcess) -> list[int]:
    """Let all agents work until the runs are over; the exit codes of the processes."""
    join = JoinString.parse(process.token(DEVICES))
    stores = [Store(folder / f"device-{number}") for number in range(DEVICES)]
    for store in stores:
        with store.locked():
            enrol(join, store.folder.name, device_card(store, Limits()), store.folder)
    agents = [open_agent(store, SOURCE, lambda _: None) for store in stores[PROCESSES:]]
    threads = [threading.Thread(target=agent.run, daemon=True) for agent in agents]
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(folder, store)) for store in stores[:PROCESSES]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive(), process.output()
        return [agent.wait(20) for agent in processes]


@contextmanager
def _process(folder: Path, store: Store) -> Iterator[subprocess.Popen[bytes]]:
    command = ["-m", "fedtiny.agent", "run", "--data", SOURCE, "--dir", str(store.folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (
        (store.folder / "output.log").open("wb") as output,
        subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=output, cwd=folder, env=environment
        ) as agent,
    ):
        try:
            yield agent
        finally:
            agent.kill()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_real_agents_publish_the_simulated_model(deployed: Deployed, strategy: str) -> None:
    ledger = read_ledger(deployed.folder, strategy)
    assert ledger.commits[-1].digest == deployed.simulated[strategy].summary["model_digest"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_simulated_bytes_are_those_that_crossed_the_wire(
    deployed: Deployed, strategy: str
) -> None:
    simulated, real = deployed.rows(strategy, "round")
    figures = ("round", "version", "leases", "accepted", "bytes_down", "bytes_up", "loss")
    assert [[row[f] for f in figures] for row in real] == [
        [row[f] for f in figures] for row in simulated
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_held_out_devices_measure_what_simulated_ones_measure(
    deployed: Deployed, strategy: str
) -> None:
    def scores(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "time_s"} for row in rows]

    simulated, real = deployed.rows(strategy, "evaluation")
    assert [row["round"] for row in real] == [0, 5]
    assert scores(real) == scores(simulated)


def test_the_agents_in_processes_end_well(deployed: Deployed) -> None:
    assert deployed.codes == [0] * PROCESSES
