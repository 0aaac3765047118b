"""Real data sets by name in an experiment, and what is learned from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedtiny
from fedtiny.data.digits import digits
from fedtiny.data.episodes import Episodes
from fedtiny.data.files import DATA_SETS
from fedtiny.data.partitions import Clients, LabelSkew, Shards
from fedtiny.data.sources import PARTITIONS, SOURCES
from fedtiny.data.tasks import build_task
from fedtiny.errors import ExperimentError
from tests.data import small


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    for name, make in small.FILES.items():
        small.write(tmp_path / DATA_SETS[name].file, make())
    return tmp_path


@pytest.mark.parametrize(
    ("source", "arguments", "devices", "held_out", "kind"),
    [
        ("omniglot", {"ways": 3, "shots": 1, "queries": 2}, 9, 3, Episodes),
        ("omniglot-14", {"ways": 3, "shots": 1, "queries": 2}, 9, 3, Episodes),
        ("uci-har", {}, 3, 1, Clients),
        ("speech-words", {}, 12, 1, Clients),
        ("spoken-digits", {}, 5, 2, LabelSkew),
        ("fashion-mnist", {"concentration": 0.1}, 5, 2, LabelSkew),
        ("cifar10", {"partition": "shards", "shards": 1}, 5, 2, Shards),
    ],
)
def test_an_experiment_names_a_data_set_and_its_partition(
    source: str, arguments: dict[str, Any], devices: int, held_out: int, kind: type, folder: Path
) -> None:
    task = build_task(source, arguments, devices, held_out)
    assert isinstance(task, kind)
    table = task.table(1, 0, range(devices))
    assert table.x.shape[1] == task.features
    assert np.diff(table.starts).sum() == task.counts(1, range(devices)).sum() > 0


def test_omniglot_14_has_the_means_of_four_pixels(folder: Path) -> None:
    full, halved = (SOURCES[name].read() for name in ("omniglot", "omniglot-14"))
    expected = full.x.reshape(24, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(24, 196)
    np.testing.assert_allclose(halved.x, expected, atol=1e-7)
    np.testing.assert_array_equal(halved.label, full.label)


def test_fifty_characters_are_told_apart_in_the_hands_of_other_people(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = small.labelled(classes=60, each=20, clients=20)
    monkeypatch.setattr(type(DATA_SETS["omniglot"]), "load", lambda self: drawn)
    data = SOURCES["omniglot-50"].read()
    assert data.classes == 50
    assert set(data.counts(0)) == {15}
    assert set(data.counts(1)) == {5}
    drawer = drawn.client[data.x[:, 0].astype(int)]
    for character in range(50):
        own = data.label == character
        assert drawer[own & (data.split == 0)].max() <= drawer[own & (data.split == 1)].min()


def test_quarter_turns_of_training_characters_are_classes_of_their_own(folder: Path) -> None:
    plain, turned = (SOURCES[name].read() for name in ("omniglot", "omniglot-rotated"))
    training = np.flatnonzero(plain.split == 0)
    assert len(turned.x) == len(plain.x) + 3 * len(training)
    assert turned.classes == 4 * plain.classes
    np.testing.assert_array_equal(turned.counts(1)[plain.classes :], 0)
    row, picture = len(plain.x), plain.x[training[0]].reshape(28, 28)
    np.testing.assert_array_equal(turned.x[row].reshape(28, 28), np.rot90(picture))
    assert turned.label[row] == plain.label[training[0]] + plain.classes
    assert turned.class_names[turned.label[row]].endswith(" turned 90")


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_partition_has_its_own_arguments(partition: str) -> None:
    with pytest.raises(ExperimentError, match=r"has no 'no_such_key'; it has .*[a-z_]+"):
        build_task("label-skew-digits", {"partition": partition, "no_such_key": 1}, 20, 4)


def test_an_unknown_partition_is_named_with_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"'shard'; did you mean 'shards'.*quantity-skew"):
        build_task("label-skew-digits", {"partition": "shard"}, 20)


def test_the_data_of_a_source_is_no_argument() -> None:
    with pytest.raises(ExperimentError, match="has no 'data'"):
        build_task("label-skew-digits", {"data": 1}, 20)


def test_label_skew_digits_is_label_skew_over_the_digits() -> None:
    task = build_task("label-skew-digits", {"concentration": 0.1}, 20, 4)
    assert task == LabelSkew(digits(), 20, 4, concentration=0.1)


# ---- learning --------------------------------------------------------------------------------


OMNIGLOT = {
    "model": {"build": "mlp", "widths": [196, 64, 5]},
    "data": {"source": "omniglot-14", "ways": 5, "shots": 5, "queries": 5},
    "device": {"batch": 5},
    "strategy": {"name": "reptile", "cohort": 5, "alpha": 1.0, "beta": 0.1, "steps": 10},
    "fleet": {"devices": 1200, "held_out": 200},
    "run": {"rounds": 1000},
    "evaluate": {"adapted": {"lr": 0.1, "steps": 25}},
}
HAR = {
    "model": {"build": "mlp", "widths": [768, 32, 6]},
    "data": {"source": "uci-har"},
    "device": {"batch": 6},
    "strategy": {"name": "reptile", "cohort": 5, "alpha": 1.0, "beta": 0.02, "steps": 20},
    "fleet": {"devices": 30, "held_out": 9},
    "run": {"rounds": 150},
    "evaluate": {"adapted": {"lr": 0.02, "support": 60, "steps": 30}},
}


@pytest.mark.data
@pytest.mark.parametrize("experiment", [OMNIGLOT, HAR], ids=["omniglot", "uci-har"])
def test_held_out_devices_adapt_better_than_from_a_random_start(
    experiment: dict[str, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(data_dir))
    profile = {"profiles": {"pi-zero-2w": 1.0}}
    rows = fedtiny.simulate(
        {"seed": 1, **experiment, "fleet": experiment["fleet"] | profile}
    ).evaluations("adapted")
    random, learned = (rows[k]["accuracy_after"] for k in (0, -1))
    assert learned >= random + 0.10
