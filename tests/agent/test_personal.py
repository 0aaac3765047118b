"""Predictions on the device: from its folder, and over its socket while the agent runs."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtiny.agent.blobs import Blobs
from fedtiny.agent.personal import MOST_LINE_BYTES, Predictor, samples_of
from fedtiny.agent.serving import SOCKET, ask, serving
from fedtiny.agent.store import Store, Trained
from fedtiny.device.learner import Learner
from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError, RunError

PROGRAM = compile(mlp((2, 4, 3)), loss="cross_entropy", ram="64KiB", batch=2)
X = np.array([[0.5, -1.0], [2.0, 0.25], [-3.0, 1.5]], np.float32)


def keep(store: Store, seed: int) -> Any:
    """A trained model in the folder, and what it predicts."""
    digest, vector = bytes.fromhex(PROGRAM.digest), PROGRAM.initial(seed)
    Blobs(store).keep(digest, PROGRAM.image)
    store.keep_trained(Trained(digest, b"run-of-8", seed, bytes(vector)))
    learner = Learner(PROGRAM)
    learner.load(vector)
    return np.asarray(learner.predict(X))


def test_a_device_predicts_by_what_it_has_trained_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    predictor = Predictor(store)
    for seed in (3, 4):
        expected = keep(store, seed)
        found = predictor.predict(X)
        assert [row["outputs"] for row in found] == expected.tolist()
        assert [row["class"] for row in found] == expected.argmax(1).tolist()


def test_before_the_first_visit_there_is_nothing_to_predict_with(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trained model yet; fedtiny-agent run"):
        Predictor(Store(tmp_path)).predict(X)


def test_samples_come_from_files_or_lines(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    ((where, found),) = samples_of(str(tmp_path / "a.npz"), ())
    assert where == str(tmp_path / "a.npz")
    np.testing.assert_array_equal(np.array(found), X)
    lines = ["[1, 2]\n", "\n", "[3.5, 4]"]
    assert [*samples_of("-", lines)] == [("line 1", [1, 2]), ("line 3", [3.5, 4])]
    with pytest.raises(DataError, match=r"line 2 is no JSON"):
        [*samples_of("-", ["[1]", "1, 2"])]
    with pytest.raises(DataError, match=r"line 1 is dict; write a list"):
        [*samples_of("-", ['{"x": 1}'])]


@pytest.mark.parametrize("name", ["nothing.npz", "nothing.csv"])
def test_a_file_that_is_missing_is_told_alike_whatever_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as told:
        [*samples_of(str(tmp_path / name), ())]
    assert str(told.value) == f"{tmp_path / name} cannot be read: No such file or directory"


def test_no_samples_are_an_error_wherever_they_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,label\n")
    np.savez(tmp_path / "a.npz", x=X[:0])
    (tmp_path / "empty").mkdir()
    for name in ("a.csv", "a.npz", "empty"):
        with pytest.raises(DataError, match=rf"{name} has no samples"):
            [*samples_of(str(tmp_path / name), ())]
    with pytest.raises(DataError, match=r"no samples on stdin; write one a line"):
        [*samples_of("-", ["\n"])]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A folder whose agent answers."""
    store = Store(tmp_path)
    with serving(store, lambda: {"device": 5}):
        yield store


def test_only_the_owner_may_ask(store: Store) -> None:
    mode = (store.folder / SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600


def test_the_socket_predicts_and_tells_the_status(store: Store) -> None:
    expected = keep(store, 3)
    requests: list[dict[str, Any]] = [{"x": X[0].tolist()}, {"status": True}, {"x": X[2].tolist()}]
    answers = [*ask(store.folder, iter(requests))]
    assert answers[0]["outputs"] == expected[0].tolist()
    assert answers[1] == {"device": 5}
    assert answers[2]["class"] == int(expected[2].argmax())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"nonsense\n", "this is no JSON"),
        (b"[1, 2]\n", 'send {"x": [numbers]} or {"status": true}'),
        (b'{"x": [1]}\n', "a sample has 2 values"),
        (b'{"x": [1, 2, 3, 4]}\n', "one line is one sample; got 2"),
        (b'{"x": [1, "two"]}\n', "x: "),
        (b'{"x": [NaN, 1]}\n', "values are NaN"),
        (b"x" * (MOST_LINE_BYTES + 10) + b"\n", "a line of more than 1,048,576 B"),
    ],
)
def test_a_wrong_line_is_answered_with_what_is_wrong(store: Store, line: bytes, told: str) -> None:
    keep(store, 3)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(store.folder / SOCKET))
        connection.sendall(line)
        with connection.makefile("rb") as stream:
            assert told in json.loads(stream.readline())["error"]


def test_a_deep_folder_has_a_socket_too(tmp_path: Path) -> None:
    store = Store(tmp_path / ("deep" * 30))
    store.make()
    with serving(store, lambda: {"device": 6}):
        assert [*ask(store.folder, iter([{"status": True}]))] == [{"device": 6}]
    assert not (store.folder / SOCKET).exists()


def test_many_may_ask_at_a_time(store: Store) -> None:
    expected = keep(store, 3)
    found: list[Any] = []

    def one() -> None:
        found.extend(ask(store.folder, iter([{"x": X[1].tolist()}] * 20)))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["outputs"] for row in found] == [expected[1].tolist()] * 80


def test_where_no_agent_runs_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no agent answers at .*agent\.sock.*fedtiny-agent run"):
        [*ask(tmp_path, iter([{"status": True}]))]
