"""Our rounds inside Flower: over a grid in this process, and in flwr.simulation."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedtiny import simulate
from fedtiny.errors import RunError, StrategyError
from fedtiny.flower.app import make_apps
from fedtiny.runs import RunFolder

TABLES: dict[str, Any] = {
    "seed": 7,
    "model": {"build": "sine_mlp"},
    "data": {"source": "sine", "support": 8, "query": 8},
    "strategy": {"name": "fedavg", "cohort": 3, "beta": 0.02},
    "fleet": {"devices": 6, "held_out": 0},
    "run": {"rounds": 3},
}

Answer = Callable[[int, Message, Context], Message]


class LoopGrid(Grid):
    """Nodes in this process; node 100 + K is device K. ``answer`` may stand in for the app."""

    def __init__(self, client: ClientApp, nodes: int, answer: Answer | None = None) -> None:
        self.contexts = {
            100 + k: Context(1, 100 + k, {"partition-id": k, "num-partitions": nodes},
                             RecordDict(), {})
            for k in range(nodes)
        }  # fmt: skip
        self.asked: list[int] = []
        self._answer = answer or (lambda device, message, context: client(message, context))
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        answers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            node = message.metadata.dst_node_id
            if message.metadata.message_type.startswith("train"):
                self.asked.append(node - 100)
            try:
                answers.append(self._answer(node - 100, message, self.contexts[node]))
            except Exception as error:
                answers.append(Message(Error(code=1, reason=repr(error)), reply_to=message))
        return answers[::-1]  # in whatever order


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def served(
    tables: dict[str, Any], answer: Answer | None = None
) -> tuple[dict[str, np.ndarray], LoopGrid]:
    """The model of an experiment inside Flower, and its grid."""
    server, client = make_apps(tables)
    grid = LoopGrid(client, tables["fleet"]["devices"], answer)
    context = Context(1, 0, {}, RecordDict(), {})
    server(grid, context)
    model = context.state.array_records["model"]
    return {name: array.numpy() for name, array in model.items()}, grid


def same(model: dict[str, np.ndarray], tables: dict[str, Any]) -> bool:
    """Whether it is the model of `fedtiny simulate`, bit for bit."""
    result = simulate(tables)
    return result.layout.flatten(model).tobytes() == result.model.tobytes()


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedavg", "cohort": 3, "beta": 0.02},
        {"name": "fedadam", "cohort": 3, "beta": 0.02, "steps": 4, "shuffle": True},
        {"name": "reptile", "cohort": 2, "beta": 0.02},
        {"name": "median", "cohort": 3, "beta": 0.02},
        {"name": "fedavg", "cohort": 4, "transforms": ["feedback", "topk:0.2", "int8"]},
    ],
    ids=lambda strategy: "-".join([strategy["name"], *strategy.get("transforms", [])]),
)  # fmt: skip
def test_the_model_is_that_of_a_simulated_run(strategy: dict[str, Any]) -> None:
    tables = TABLES | {"strategy": strategy}
    model, grid = served(tables)
    assert len(grid.asked) == 3 * strategy["cohort"]
    assert same(model, tables)


def test_a_device_keeps_what_an_update_that_counted_has_left() -> None:
    tables = TABLES | {
        "strategy": {"name": "scaffold", "cohort": 3, "beta": 0.02, "steps": 2},
        "run": {"rounds": 6},
    }
    model, grid = served(tables)
    assert len({*grid.asked}) < len(grid.asked)  # some device came again, with what it had kept
    assert same(model, tables)


def test_in_place_of_a_node_that_fails_another_is_asked() -> None:
    _, client = make_apps(TABLES)

    def answer(device: int, message: Message, context: Context) -> Message:
        if device == 0 and message.metadata.message_type.startswith("train"):
            raise OSError("out of battery")
        return client(message, context)

    model, grid = served(TABLES | {"run": {"rounds": 3, "minimum": 3}}, answer)
    assert 0 in grid.asked
    assert len(grid.asked) == 9 + grid.asked.count(0)
    assert np.isfinite(np.concatenate([array.ravel() for array in model.values()])).all()


@pytest.mark.parametrize(
    "nonsense",
    [Array(np.full(9, 255, np.uint8)), Array("uint8", (9,), "numpy.ndarray", b"no NPY")],
    ids=["no vector", "no array"],
)
def test_an_update_that_was_tampered_with_counts_nothing(nonsense: Array) -> None:
    _, client = make_apps(TABLES)

    def answer(device: int, message: Message, context: Context) -> Message:
        reply = client(message, context)
        if device == 1 and "values" in reply.content:
            reply.content["values"] = ArrayRecord({"values": nonsense})
        return reply

    _, grid = served(TABLES | {"run": {"rounds": 3, "minimum": 3}}, answer)
    assert 1 in grid.asked
    assert len(grid.asked) == 9 + grid.asked.count(1)


def test_a_node_that_does_not_say_which_device_it_is_is_told() -> None:
    server, client = make_apps(TABLES)
    grid = LoopGrid(client, 6)
    grid.contexts[103].node_config.clear()
    with pytest.raises(RunError, match=r"node 103 failed.*--node-config"):
        server(grid, Context(1, 0, {}, RecordDict(), {}))


def test_devices_without_a_node_are_waited_for_and_then_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedtiny.flower.app._LOOK_AGAIN_S", 0.05)
    server, client = make_apps(TABLES | {"run": {"rounds": 3, "deadline": 1.0}})
    with pytest.raises(RunError, match=r"2 of the 6 devices that train have no node after 1 s"):
        server(LoopGrid(client, 4), Context(1, 0, {}, RecordDict(), {}))


def test_asynchronous_rounds_are_refused() -> None:
    tables = TABLES | {"strategy": {"name": "fedbuff", "cohort": 2, "concurrency": 4}}
    with pytest.raises(StrategyError, match="asynchronous"):
        served(tables)


SIMULATED = """
import sys
from flwr.simulation import run_simulation
from fedtiny.flower.app import make_apps
server, client = make_apps(sys.argv[1], sys.argv[2])
resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1}}
run_simulation(server, client, num_supernodes=6, backend_config=resources)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_it_runs_in_the_simulation_of_flowers(tmp_path: Path) -> None:
    from fedtiny import Experiment

    file = tmp_path / "sine.toml"
    file.write_text(Experiment.of(TABLES).to_toml())
    (tmp_path / "app.py").write_text(SIMULATED)
    command = [sys.executable, "app.py", str(file), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open(tmp_path / "out")
    assert [row["accepted"] for row in folder.history()] == [3, 3, 3]
    assert same(folder.model(), TABLES)
