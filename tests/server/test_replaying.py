"""Every published model again, from what the folder of a coordinator has."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.server.replaying import Recorded
from fedtiny.server.storage import FILE
from tests.harness import story
from tests.harness.coordinator_process import CoordinatorProcess

ROUNDS = 3


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a coordinator that has run its rounds with two devices and was killed."""
    folder = tmp_path_factory.mktemp("replayed")
    experiment = story.experiment(folder, 2, rounds=ROUNDS)
    with CoordinatorProcess(experiment, folder / "fleet") as process:
        story.Story(process, 2).told()
    return folder / "fleet"


@pytest.fixture
def fleet(original: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged: SQLite brings the log of the killed coordinator into it."""
    with sqlite3.connect(original / FILE) as source, sqlite3.connect(tmp_path / FILE) as copy:
        source.backup(copy)
    return tmp_path


def _change(fleet: Path, sql: str) -> None:
    with sqlite3.connect(fleet / FILE) as connection:
        connection.execute(sql)


def test_every_model_is_the_one_that_was_published(fleet: Path) -> None:
    models = list(Recorded.open(fleet, "sine").models())
    assert [(model.version, model.round) for model in models] == [
        (0, None), (1, 0), (2, 1), (3, 2),
    ]  # fmt: skip
    with sqlite3.connect(fleet / FILE) as connection:
        rows = connection.execute("SELECT hex(digest) FROM versions ORDER BY version").fetchall()
    assert [model.digest for model in models] == [digest.lower() for (digest,) in rows]
    assert len({model.digest for model in models}) == ROUNDS + 1
    assert all(np.isfinite(model.model).all() for model in models)


def test_a_replay_needs_nothing_but_the_database_and_leaves_it_alone(fleet: Path) -> None:
    before = (fleet / FILE).read_bytes()
    list(Recorded.open(fleet, "sine").models())
    assert (fleet / FILE).read_bytes() == before


def test_another_digest_in_the_journal_is_found_with_its_round(fleet: Path) -> None:
    _change(fleet, "UPDATE commits SET digest = replace(digest, substr(digest, 1, 1), 'x')"
                   " WHERE round = 1")  # fmt: skip
    models = Recorded.open(fleet, "sine").models()
    assert [next(models).version, next(models).version] == [0, 1]
    with pytest.raises(RunError, match="round 1 gives the model"):
        next(models)


def test_a_model_that_devices_got_and_no_round_made_is_found(fleet: Path) -> None:
    _change(fleet, "UPDATE versions SET digest = zeroblob(32) WHERE version = 2")
    with pytest.raises(RunError, match=r"version 2 of sine is .* devices were given 000000000000"):
        list(Recorded.open(fleet, "sine").models())


def test_an_unknown_run_is_told_with_the_nearest_name(fleet: Path) -> None:
    with pytest.raises(RunError, match="no run 'sinus'; did you mean 'sine'"):
        Recorded.open(fleet, "sinus")


def test_a_folder_without_a_database_is_none_of_a_coordinator(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="name the --dir of a coordinator"):
        Recorded.open(tmp_path, "sine")
