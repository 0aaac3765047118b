"""Episodes: N classes, K shots, and never a class or a sample that is not the device's to see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.data.episodes import Episodes
from fedtiny.data.files import data_set
from fedtiny.data.labelled import Labelled
from fedtiny.data.tables import PARTS
from fedtiny.errors import DataError, ExperimentError
from tests.data import small

Array = npt.NDArray[Any]

RUN = 5
PLAIN = small.labelled(classes=9, each=20)
SPLIT = small.labelled(classes=9, each=20, test=0.5)
# Classes 6 to 8 are the test, as the evaluation alphabets of Omniglot are.
BY_CLASS = replace(PLAIN, split=(PLAIN.label >= 6).astype(np.uint8))

EPISODES = st.builds(
    Episodes,
    data=st.sampled_from([PLAIN, SPLIT, BY_CLASS]),
    devices=st.just(30),
    held_out=st.just(10),
    ways=st.integers(1, 3),
    shots=st.integers(1, 3),
    queries=st.integers(1, 2),
    pool=st.none() | st.integers(3, 9),
    within_superclass=st.booleans(),
)


def rows_of(task: Episodes, round: int, devices: range) -> Array:
    """The rows of each episode: [devices, samples of a class, ways]."""
    rows = task.table(RUN, round, devices).rows
    return rows.reshape(len(devices), task.shots + task.queries, task.ways)


def seen_by(task: Episodes, devices: range, rounds: Iterable[int] = range(20)) -> set[int]:
    return {row for r in rounds for row in rows_of(task, r, devices).ravel().tolist()}


@settings(max_examples=40)
@given(EPISODES, st.integers(0, 2**32 - 1))
def test_an_episode_is_as_declared(task: Episodes, round: int) -> None:
    label = task.data.label
    assert task.data.superclass is not None
    for episode in rows_of(task, round, range(30)):
        assert len(set(episode.ravel().tolist())) == episode.size
        classes = label[episode]
        assert (classes == classes[0]).all()
        assert len(set(classes[0].tolist())) == task.ways
        if task.within_superclass:
            assert len(set(task.data.superclass[classes[0]].tolist())) == 1


@settings(max_examples=20)
@given(EPISODES, st.integers(0, 2**32 - 1))
def test_a_cohort_is_its_devices_one_by_one(task: Episodes, round: int) -> None:
    devices = [29, 0, 17]
    table = task.table(RUN, round, devices)
    assert np.diff(table.starts).reshape(-1, 2).tolist() == task.counts(RUN, devices).tolist()
    for visit, device in enumerate(devices):
        for part, each in zip(PARTS, (task.shots, task.queries), strict=True):
            x, labels = task.samples(RUN, round, device, part)
            np.testing.assert_array_equal(table.samples(visit, part)[0], x)
            assert np.bincount(labels.astype(int)).tolist() == [each] * task.ways
            np.testing.assert_array_equal(labels[: task.ways], np.arange(task.ways))


@settings(max_examples=20)
@given(EPISODES)
def test_held_out_devices_share_no_sample_with_training_devices(task: Episodes) -> None:
    training, held = seen_by(task, range(20)), seen_by(task, range(20, 30))
    assert not training & held
    if task.data.has_test:
        assert not task.data.split[[*training]].any()
        assert task.data.split[[*held]].all()


def test_test_classes_are_met_by_held_out_devices_alone() -> None:
    task = Episodes(BY_CLASS, 30, held_out=10, ways=3, shots=1, queries=1)
    label = BY_CLASS.label
    assert set(label[[*seen_by(task, range(20))]].tolist()) == set(range(6))
    assert set(label[[*seen_by(task, range(20, 30))]].tolist()) == {6, 7, 8}


def test_held_out_classes_are_drawn_anew_in_each_run() -> None:
    task = Episodes(PLAIN, 30, held_out=10, ways=2, shots=1, queries=1, held_out_classes=3)
    held = set()
    for run in range(12):
        tables = [[task.table(run, r, devices).rows for r in range(30)]
                  for devices in (range(20), range(20, 30))]  # fmt: skip
        training, judged = ({*PLAIN.label[np.concatenate(t)].tolist()} for t in tables)
        assert (len(training), len(judged)) == (6, 3)
        assert not training & judged
        held.add(tuple(sorted(judged)))
    assert len(held) > 6


def test_without_held_out_devices_every_class_and_training_sample_is_met() -> None:
    task = Episodes(PLAIN, 30, ways=5, shots=2, queries=2)
    assert seen_by(task, range(30)) == set(range(180))
    task = Episodes(SPLIT, 30, ways=5, shots=2, queries=2)
    assert seen_by(task, range(30)) == set(np.flatnonzero(SPLIT.split == 0).tolist())


def test_a_device_keeps_to_its_pool_of_classes() -> None:
    task = Episodes(PLAIN, 30, ways=2, shots=1, queries=1, pool=3)
    pools = [{*PLAIN.label[[*seen_by(task, range(d, d + 1))]].tolist()} for d in range(30)]
    assert {len(pool) for pool in pools} == {3}
    assert len({tuple(sorted(pool)) for pool in pools}) > 15


def test_classes_and_their_order_are_drawn_evenly() -> None:
    task = Episodes(PLAIN, 9000, ways=2, shots=1, queries=1)
    classes = PLAIN.label[rows_of(task, 0, range(9000))[:, 0]]
    counts = np.zeros((9, 9))
    np.add.at(counts, (classes[:, 0], classes[:, 1]), 1)
    off_diagonal = counts[~np.eye(9, dtype=bool)]
    # 72 ordered pairs, 125 episodes each on average, deviation 11.1: chi-squared of 71 freedoms.
    assert counts.trace() == 0
    assert ((off_diagonal - 125) ** 2 / 125).sum() < 71 + 4 * np.sqrt(2 * 71)


def test_a_superclass_with_too_few_classes_is_left_out() -> None:
    superclass = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1], np.int32)
    data = replace(PLAIN, superclass=superclass)
    task = Episodes(data, 30, ways=4, shots=1, queries=1, within_superclass=True)
    assert set(PLAIN.label[[*seen_by(task, range(30))]].tolist()) == set(range(6))


@pytest.mark.parametrize(
    ("data", "values", "error", "message"),
    [
        (PLAIN, {"ways": 10}, ExperimentError, "ways at most pool"),
        (PLAIN, {"pool": 3}, ExperimentError, "pool = 3"),
        (PLAIN, {"shots": 0}, ExperimentError, "shots = 0"),
        (PLAIN, {"held_out_samples": 0.0}, ExperimentError, "held_out_samples = 0.0"),
        (PLAIN, {"held_out_classes": 9}, ExperimentError, "held_out_classes 0 to 8"),
        (PLAIN, {"held_out_classes": 5}, ExperimentError, "5 ways of 4 classes for training"),
        (BY_CLASS, {}, ExperimentError, "5 ways of 3 classes for held-out devices"),
        (PLAIN, {"within_superclass": True}, ExperimentError, "5 ways of 3 classes for one super"),
        (replace(PLAIN, superclass=None), {"within_superclass": True}, ExperimentError, "has no"),
        # Of 20 samples of a class 15 train and 5 are held out.
        (PLAIN, {"shots": 14, "queries": 2}, DataError, "need 16 samples.*training.* have 15"),
        (PLAIN, {"shots": 5, "queries": 1}, DataError, "need 6 samples.*held-out.* have 5"),
    ],
)
def test_an_impossible_episode_is_refused_with_the_numbers(
    data: Labelled, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Episodes(data, **{"devices": 10, "held_out": 2, **values})


@pytest.mark.data
def test_omniglot_holds_out_the_evaluation_alphabets(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(data_dir))
    data = data_set("omniglot").load()
    assert data.superclass is not None
    task = Episodes(data, 1200, held_out=200, ways=5, shots=5, queries=10)
    for devices, alphabets, characters in ((range(1000), 30, 964), (range(1000, 1200), 20, 659)):
        classes = {*data.label[[*seen_by(task, devices, range(8))]].tolist()}
        assert len({*data.superclass[[*classes]].tolist()}) == alphabets
        assert len(classes) == characters


def test_held_out_devices_may_have_smaller_episodes() -> None:
    task = Episodes(BY_CLASS, 6, 3, ways=3, shots=4, queries=2, held_out_ways=2, held_out_shots=1)
    table, devices = task.table(RUN, 0, range(6)), range(6)
    sizes = np.diff(table.starts).reshape(-1, 2).tolist()
    assert sizes == task.counts(RUN, devices).tolist() == [[12, 6]] * 3 + [[2, 4]] * 3
    for device in devices:
        (_, support), (_, query) = (task.samples(RUN, 0, device, part) for part in PARTS)
        ways, shots = (3, 4) if device < 3 else (2, 1)
        assert support.tolist() == [*range(ways)] * shots
        assert query.tolist() == [*range(ways)] * 2


def test_held_out_episodes_are_never_larger() -> None:
    with pytest.raises(
        ExperimentError, match=r"held_out_ways = 3, held_out_shots = 2, .*at most those"
    ):
        Episodes(PLAIN, 6, 3, ways=2, shots=2, held_out_ways=3)
