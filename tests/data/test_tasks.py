"""Tasks: what a device is given, and what it can never be given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny import rng
from fedtiny.data.digits import FewShotDigits, digits
from fedtiny.data.partitions import LabelSkew
from fedtiny.data.tables import PARTS, Task
from fedtiny.data.tasks import SampledTask, SineTask, build_task, task_of
from fedtiny.errors import DataError, ExperimentError
from fedtiny.rng import Purpose
from fedtiny.values import QUERY, SUPPORT

Array = npt.NDArray[Any]

RUN = 11
TASKS: list[Task] = [
    SineTask(support=5, query=3),
    FewShotDigits(devices=40, held_out=8, ways=3, shots=2, queries=4),
    LabelSkew(digits(), devices=40, held_out=8),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_cohort_is_its_devices_one_by_one(task: Task) -> None:
    devices = [39, 0, 17, 17]
    table = task.table(RUN, 2, devices)
    assert np.diff(table.starts).reshape(-1, 2).tolist() == task.counts(RUN, devices).tolist()
    for visit, device in enumerate(devices):
        for part in PARTS:
            for found, expected in zip(
                table.samples(visit, part), task.samples(RUN, 2, device, part), strict=True
            ):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_samples_are_as_wide_as_the_task_says(task: Task) -> None:
    x, y = task.samples(RUN, 0, 3, SUPPORT)
    assert x.dtype == np.float32
    assert x.shape == (len(x), task.features)
    if task.classes is None:
        assert y.dtype == np.float32
        assert y.shape == (len(x), task.outputs)
    else:
        assert y.dtype == np.int32
        assert y.shape == (len(x),)
        assert set(y.tolist()) <= set(range(task.classes))


# ---- sines -----------------------------------------------------------------------------------


def test_a_sine_belongs_to_its_device_and_its_samples_to_the_round() -> None:
    task = SineTask(amplitude=(0.1, 5.0), support=50, query=50)
    a, phi = (
        rng.uniform(word, low, high)
        for word, (low, high) in zip(
            rng.words(RUN, 0, 9, Purpose.TASK, 2), (task.amplitude, task.phase), strict=True
        )
    )
    seen = []
    for round in (0, 1):
        for part in PARTS:
            x, y = (column[:, 0] for column in task.samples(RUN, round, 9, part))
            np.testing.assert_allclose(y, a * np.sin(x.astype(float) + phi), atol=2e-6)
            seen.append(tuple(x.tolist()))
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"amplitude": (2.0, 1.0)}, r"amplitude = \[2.0, 1.0\] must ascend"),
        ({"domain": (-1e5, 1e5)}, r"within \[-4096, 4096\]"),
        ({"domain": (math.nan, 1.0)}, "domain"),
        ({"support": -1}, "support = -1"),
    ],
)
def test_an_impossible_sine_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        SineTask(**values)


# ---- few-shot digits -------------------------------------------------------------------------

FEW_SHOT = st.builds(
    FewShotDigits,
    devices=st.just(30),
    held_out=st.just(10),
    ways=st.integers(1, 4),
    shots=st.integers(1, 6),
    queries=st.integers(1, 6),
    pool=st.integers(4, 10),
    held_out_classes=st.integers(4, 6),
)


def rows_of(task: FewShotDigits, round: int, devices: range) -> Array:
    """The rows of each episode: [devices, samples of a class, ways]."""
    rows = task.table(RUN, round, devices).rows
    return rows.reshape(len(devices), task.shots + task.queries, task.ways)


@settings(max_examples=30)
@given(FEW_SHOT, st.integers(0, 1000))
def test_an_episode_has_every_class_alike_and_no_sample_twice(
    task: FewShotDigits, round: int
) -> None:
    for device in (0, 29):
        parts = [task.samples(RUN, round, device, part) for part in PARTS]
        for (_, labels), each in zip(parts, (task.shots, task.queries), strict=True):
            assert np.bincount(labels).tolist() == [each] * task.ways
    for episode in rows_of(task, round, range(30)):
        assert len(set(episode.ravel().tolist())) == episode.size


def digit_labels() -> Array:
    """The class of each row: a task that deals out everything says so."""
    everything = LabelSkew(digits(), devices=1, query_share=0.0).table(RUN, 0, [0])
    labels = np.empty(len(everything.x), int)
    labels[everything.rows] = everything.labels
    return labels


def test_a_way_is_one_digit_throughout_the_episode() -> None:
    task = FewShotDigits(devices=30, ways=5, shots=3, queries=4)
    for episode in digit_labels()[rows_of(task, 4, range(30))]:
        assert (episode == episode[0]).all()
        assert len(set(episode[0].tolist())) == 5


def test_episodes_differ_between_rounds_devices_and_label_orders() -> None:
    task = FewShotDigits(devices=30, ways=5, shots=1, queries=1)
    orders = {tuple(digits[0]) for digits in digit_labels()[rows_of(task, 0, range(30))].tolist()}
    assert len(orders) == 30
    assert (rows_of(task, 0, range(30)) != rows_of(task, 1, range(30))).any(axis=(1, 2)).all()


def test_a_device_keeps_to_its_pool_of_classes() -> None:
    task = FewShotDigits(devices=30, ways=2, shots=1, queries=1, pool=3)
    labels = digit_labels()
    pools: list[set[int]] = [set() for _ in range(30)]
    for round in range(20):
        for pool, episode in zip(pools, labels[rows_of(task, round, range(30))], strict=True):
            pool |= set(episode.ravel().tolist())
    assert {len(pool) for pool in pools} == {3}
    assert len({tuple(sorted(pool)) for pool in pools}) > 10


@settings(max_examples=10)
@given(FEW_SHOT)
def test_held_out_devices_see_what_training_devices_never_see(task: FewShotDigits) -> None:
    labels = digit_labels()
    seen = [
        np.concatenate([rows_of(task, round, devices).ravel() for round in range(20)])
        for devices in (range(20), range(20, 30))
    ]
    training, held = seen
    assert not set(training.tolist()) & set(held.tolist())
    assert not set(labels[training].tolist()) & set(labels[held].tolist())


def test_without_held_out_classes_the_classes_are_shared_and_the_samples_are_not() -> None:
    task = FewShotDigits(devices=30, held_out=10, ways=5, shots=5, queries=10)
    training = {row for r in range(30) for row in rows_of(task, r, range(20)).ravel().tolist()}
    held = {row for r in range(30) for row in rows_of(task, r, range(20, 30)).ravel().tolist()}
    labels = digit_labels()
    assert not training & held
    assert set(labels[[*training]].tolist()) == set(labels[[*held]].tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"ways": 11}, ExperimentError, "ways at most pool"),
        ({"shots": 0}, ExperimentError, "shots = 0"),
        ({"held_out_classes": 6}, ExperimentError, "5 ways of 4 classes for training devices"),
        ({"held_out_classes": 4}, ExperimentError, "5 ways of 4 classes for held-out devices"),
        ({"held_out_samples": 1.0}, ExperimentError, "held_out_samples = 1.0"),
        # The smallest class has 174 samples, of which 130 train and 44 are held out.
        ({"shots": 120, "queries": 11}, DataError, "need 131 samples.*training devices have 130"),
        ({"shots": 40, "queries": 5}, DataError, "need 45 samples.*held-out devices have 44"),
    ],
)
def test_an_impossible_episode_is_refused_with_the_numbers(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FewShotDigits(devices=10, held_out=2, **values)


# ---- label skew ------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.integers(1, 300), st.floats(0.01, 100), st.floats(0, 0.9), st.integers(0, 2**64 - 1)
)  # fmt: skip
def test_every_digit_is_dealt_out_once(
    devices: int, concentration: float, query_share: float, run: int
) -> None:
    task = LabelSkew(digits(), devices, concentration=concentration, query_share=query_share)
    table = task.table(run, 0, np.arange(devices))
    assert sorted(table.rows.tolist()) == list(range(1797))
    counts = task.counts(run, np.arange(devices))
    total = counts.sum(axis=1)
    np.testing.assert_array_equal(counts[:, 1], np.floor(total * query_share))


def test_a_small_concentration_gives_each_device_few_classes() -> None:
    def classes_of_a_device(concentration: float) -> float:
        task = LabelSkew(digits(), devices=20, concentration=concentration)
        parts = (task.samples(RUN, 0, device, SUPPORT)[1] for device in range(20))
        counts = [np.bincount(labels, minlength=10) for labels in parts]
        return float(np.mean([(count >= 0.05 * count.sum()).sum() for count in counts]))

    assert classes_of_a_device(0.05) < 4 < 9 < classes_of_a_device(100.0)


@pytest.mark.parametrize("concentration", [0.3, 2.0])
def test_the_shares_have_the_moments_of_a_dirichlet(concentration: float) -> None:
    task = LabelSkew(digits(), devices=10, concentration=concentration, query_share=0.0)
    labels = digit_labels()
    share = np.stack(
        [
            np.bincount(
                labels[table.rows[: table.starts[1]]], minlength=10
            ) / np.bincount(labels)
            for run in range(60)
            for device in range(10)
            for table in [task.table(run, 0, [device])]
        ]
    )  # fmt: skip
    # Each share is Beta(a, 9 a): mean 1/10, variance (1/10)(9/10) / (10 a + 1).
    assert abs(share.mean() - 0.1) < 1e-3
    assert share.var() == pytest.approx(0.09 / (10 * concentration + 1), rel=0.1)


def test_a_device_may_have_nothing_at_all() -> None:
    task = LabelSkew(digits(), devices=300, concentration=0.02)
    empty = np.flatnonzero(task.counts(RUN, np.arange(300)).sum(axis=1) == 0)
    assert empty.size
    x, labels = task.samples(RUN, 0, int(empty[0]), SUPPORT)
    assert x.shape == (0, 64)
    assert labels.shape == (0,)


@pytest.mark.parametrize("values", [{"concentration": 0.0}, {"query_share": 1.0}, {"devices": 0}])
def test_an_impossible_partition_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match=next(iter(values))):
        LabelSkew(digits(), **{"devices": 5, **values})


# ---- tasks of one's own, and by name ---------------------------------------------------------


@dataclass(frozen=True)
class Lines:
    """y = device * x; the third device has no query."""

    features: int = 1
    outputs: int = 1
    classes: int | None = None
    count: int = 2

    def samples(self, run: int, round: int, device: int, part: str) -> tuple[Any, Any]:
        x = np.arange(self.count * (part == SUPPORT or device != 2), dtype=np.float64)[:, None]
        return x, device * x


def test_a_task_of_ones_own_needs_only_samples() -> None:
    task = task_of(Lines())
    assert isinstance(task, SampledTask)
    assert task.counts(RUN, [1, 2]).tolist() == [[2, 2], [2, 0]]
    table = task.table(RUN, 0, [3, 2])
    np.testing.assert_array_equal(table.samples(0, QUERY)[1], [[0.0], [3.0]])
    assert table.samples(1, QUERY)[0].shape == (0, 1)


@dataclass(frozen=True)
class Broken(Lines):
    value: float = 0.0

    def samples(self, run: int, round: int, device: int, part: str) -> tuple[Any, Any]:
        x, y = super().samples(run, round, device, part)
        return x + self.value, y


@dataclass(frozen=True)
class Failing(Lines):
    """Device 7 fails: its targets are ``value``, or it gives nothing at all."""

    value: float | None = None

    def samples(self, run: int, round: int, device: int, part: str) -> Any:
        x, y = super().samples(run, round, device, part)
        if device == 7:
            return None if self.value is None else (x, y * self.value + self.value)
        return x, y


def test_a_device_whose_samples_are_bad_counts_as_one_without() -> None:
    task = task_of(Failing())
    assert task.counts(RUN, [6, 7]).tolist() == [[2, 2], [0, 0]]
    with pytest.raises(DataError, match="device 7"):
        task.counts(RUN, [7])


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Lines(features=2), r"device 7 gave x \(2, 1\).*x \(n, 2\)"),
        (Lines(outputs=3), r"targets \(2, 1\) as its support.*targets \('n', 3\)"),
        (Lines(classes=3), r"targets \(2, 1\)"),
        (Broken(value=math.inf), "2 of 2 values of device 7's support are not finite"),
        (Failing(value=math.nan), "2 of 2 targets of device 7's support are not finite"),
        (Failing(), r"samples\(\) of device 7's support failed: TypeError"),
    ],
)
def test_wrong_samples_are_refused_with_their_device(sampler: Lines, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(sampler).samples(RUN, 0, 7, SUPPORT)


def test_tasks_are_built_by_name() -> None:
    assert build_task("sine", {"support": 8, "phase": [0, 3]}, 100) == SineTask(
        phase=(0, 3), support=8
    )
    few = build_task("few-shot-digits", {"ways": 2}, 10, 3)
    assert few == FewShotDigits(devices=10, held_out=3, ways=2)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("sin", {}, "no task 'sin'.*did you mean 'sine'"),
        ("sine", {"suport": 8}, r"'sine' has no 'suport'; did you mean 'support'"),
        ("few-shot-digits", {"devices": 8}, "has no 'devices'"),
        ("no.such.module:Task", {}, "'no.such.module:Task' cannot be imported"),
        ("fractions:Fraction", {"x": 1}, "'fractions:Fraction' takes no 'x'"),
        ("fractions:Fraction", {}, r"Fraction is no task: it lacks \['features'"),
    ],
)
def test_an_unknown_task_is_refused_with_what_there_is(
    source: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        build_task(source, arguments, 10)
