"""Partitions of Hugging Face data sets, with a stand-in that has the methods which are used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fedtiny
from fedtiny.data.datasets import DatasetSource
from fedtiny.errors import DataError

COLUMNS = ("support", "query")


@dataclass(frozen=True)
class StandIn:
    """As a ``datasets.Dataset``: columns come as arrays from the NumPy format alone."""

    columns: Mapping[str, Any]
    format: str = "python"

    def with_format(self, type: str) -> StandIn:
        return replace(self, format=type)

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        if self.format != "numpy":
            return {
                name: np.asarray(column)[rows].tolist() for name, column in self.columns.items()
            }
        return {name: np.asarray(column)[rows] for name, column in self.columns.items()}


def partition(device: int) -> StandIn:
    """``12 + device`` images of 2 x 2 pixels of one value, which is 80 times the label + device."""
    label = np.arange(12 + device) % 3
    images = np.broadcast_to((80 * label + device)[:, None, None], (len(label), 2, 2))
    return StandIn({"image": images.astype(np.uint8), "label": label})


SOURCE = DatasetSource(load=partition, features=4, classes=3)


def test_a_device_has_its_partition_in_two_parts() -> None:
    parts = [SOURCE.samples(1, 0, 4, part) for part in COLUMNS]
    # A quarter of 16 rows is the query.
    assert [len(label) for _, label in parts] == [12, 4]
    label = np.concatenate([label for _, label in parts])
    assert sorted(label.tolist()) == sorted((np.arange(16) % 3).tolist())
    x = np.concatenate([x for x, _ in parts])
    expected = (80 * label + 4).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(x, np.repeat(expected[:, None], 4, axis=1))


def test_the_split_is_the_same_in_every_round_and_another_in_another_run() -> None:
    queries = {
        (run, round): SOURCE.samples(run, round, 4, "query")[1].tolist()
        for run in range(8)
        for round in (0, 7)
    }
    assert all(queries[run, 0] == queries[run, 7] for run in range(8))
    assert len({tuple(queries[run, 0]) for run in range(8)}) > 1


def test_a_partition_is_loaded_once() -> None:
    loaded: list[int] = []

    def load(device: int) -> StandIn:
        loaded.append(device)
        return partition(device)

    source = DatasetSource(load=load, features=4, classes=3)
    for part in COLUMNS:
        source.samples(1, 0, 2, part)
    assert loaded == [2]


def test_columns_of_floats_stay_as_they_are() -> None:
    columns = StandIn({"signal": np.array([[300.0, -1.5]]), "activity": [2]})
    source = DatasetSource(
        load=lambda device: columns, features=2, classes=3, x="signal", label="activity"
    )
    x, label = source.samples(1, 0, 0, "support")
    assert (x.tolist(), label.tolist()) == ([[300.0, -1.5]], [2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": "img"}, "device 1 has no column 'img'; it has image, label"),
        ({"features": 5}, r"'image' of device 1 is uint8 \(13, 2, 2\) for 13 labels; features = 5"),
        ({"classes": 2}, r"'label' of device 1 has int64 from 0 to 2; classes = 2"),
    ],
)
def test_columns_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(SOURCE, **changes).samples(1, 0, 1, "support")


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(DataError, match=r"query_share = 1\.0 must be in \[0, 1\)"):
        replace(SOURCE, query_share=1.0)


# What the README says that a user writes.
MODULE = """\
from flwr_datasets import FederatedDataset
from fedtiny.data.datasets import DatasetSource

mnist = FederatedDataset(dataset="ylecun/mnist", partitioners={"train": 100})
source = DatasetSource(load=mnist.load_partition, features=784, classes=10)
"""


@dataclass(frozen=True)
class FederatedDataset:
    """Stands in for that of flwr-datasets: ten classes, each a band of bright pixels."""

    dataset: str
    partitioners: Mapping[str, int]

    def load_partition(self, partition_id: int) -> StandIn:
        assert partition_id < self.partitioners["train"]
        label = (np.arange(20) + partition_id) % 10
        images = np.zeros((20, 784), np.uint8)
        for image, k in zip(images, label, strict=True):
            image[78 * k : 78 * (k + 1)] = 255
        return StandIn({"image": images.reshape(-1, 28, 28), "label": label})


def test_an_experiment_trains_on_partitions_of_flwr_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = ModuleType("flwr_datasets")
    stand_in.FederatedDataset = FederatedDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", stand_in)
    (tmp_path / "mnist_source.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(
        '[model]\nbuild = "mlp"\nwidths = [784, 8, 10]\n'
        '[data]\nsource = "mnist_source:source"\n'
        '[strategy]\nname = "fedavg"\ncohort = 10\nbeta = 0.1\n'
        "[fleet]\ndevices = 100\n[run]\nrounds = 30\n[evaluate.online]\nlr = 0.01\n"
    )
    rows = fedtiny.simulate(tmp_path / "mine.toml").evaluations()
    # The bands tell the classes apart; ten of them without training are a guess.
    assert rows[0]["accuracy_before"] < 0.4
    assert rows[-1]["accuracy_before"] > 0.9
