"""Partitions: every law deals out what it says, once, and the same in every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.data.files import data_set
from fedtiny.data.labelled import NO_CLIENT, Labelled
from fedtiny.data.partitions import Clients, LabelSkew, Partition, QuantitySkew, Shards, _spread
from fedtiny.data.tables import PARTS
from fedtiny.errors import DataError, ExperimentError
from tests.data import small

Array = npt.NDArray[Any]

RUN = 3
PLAIN = small.labelled(classes=6, each=40)
SPLIT = small.labelled(classes=6, each=40, test=0.25)
PEOPLE = small.labelled(classes=3, each=80, clients=12)
SPLIT_PEOPLE = small.labelled(classes=3, each=80, clients=12, test=0.25)
# One person after the other, each with two windows of every class in turn, ten times.
DIARY = replace(
    PEOPLE,
    label=np.tile(np.repeat(np.arange(3, dtype=np.int32), 2), 40),
    client=np.repeat(np.arange(4, dtype=np.int32), 60),
    overlapping=True,
)

LAWS: list[Callable[..., Partition]] = [LabelSkew, Shards, QuantitySkew]
law_of_any = st.one_of(
    st.tuples(st.just(LabelSkew), st.fixed_dictionaries({"concentration": st.floats(0.01, 100)})),
    st.tuples(st.just(Shards), st.fixed_dictionaries({"shards": st.integers(1, 9)})),
    st.tuples(st.just(QuantitySkew), st.fixed_dictionaries({"sigma": st.floats(0, 5)})),
)


def rows_of(task: Partition, devices: Any, run: int = RUN) -> Array:
    return task.table(run, 0, devices).rows


def support_of(task: Partition, device: int) -> Array:
    table = task.table(RUN, 0, [device])
    return table.rows[: table.starts[1]]


@settings(max_examples=60)
@given(law_of_any, st.integers(1, 90), st.floats(0, 0.9), st.integers(0, 2**64 - 1))
def test_every_sample_is_dealt_out_once(
    law: tuple[Callable[..., Partition], dict[str, Any]], devices: int, query_share: float, run: int
) -> None:
    kind, values = law
    task = kind(PLAIN, devices, query_share=query_share, **values)
    assert sorted(rows_of(task, range(devices), run).tolist()) == list(range(240))
    counts = task.counts(run, range(devices))
    np.testing.assert_array_equal(counts[:, 1], np.floor(counts.sum(axis=1) * query_share))


@pytest.mark.parametrize("law", LAWS)
def test_held_out_devices_own_the_test_samples(law: Callable[..., Partition]) -> None:
    task = law(SPLIT, 20, held_out=5)
    test = np.flatnonzero(SPLIT.split == 1)
    assert sorted(rows_of(task, range(15, 20)).tolist()) == test.tolist()
    assert sorted(rows_of(task, range(20)).tolist()) == list(range(240))
    nobody_held_out = law(SPLIT, 20)
    assert not set(rows_of(nobody_held_out, range(20)).tolist()) & set(test.tolist())


@pytest.mark.parametrize("task", [*(law(PLAIN, 20) for law in LAWS), Clients(PEOPLE, 12)])
def test_a_cohort_is_its_devices_one_by_one_in_every_round(task: Partition) -> None:
    devices = [11, 0, 7, 7]
    table = task.table(RUN, 2, devices)
    for visit, device in enumerate(devices):
        for part in PARTS:
            x, labels = task.samples(RUN, 9, device, part)
            np.testing.assert_array_equal(table.samples(visit, part)[0], x)
            np.testing.assert_array_equal(task.data.label[x[:, 0].astype(int)], labels)


@pytest.mark.parametrize("task", [*(law(PLAIN, 12) for law in LAWS), Clients(PEOPLE, 12)])
def test_runs_deal_differently(task: Partition) -> None:
    dealt = {
        tuple(tuple(sorted(rows_of(task, [device], run).tolist())) for device in range(12))
        for run in range(10)
    }
    assert len(dealt) == 10


# ---- each law --------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [0.3, 2.0])
def test_the_shares_of_a_class_have_the_moments_of_a_dirichlet(concentration: float) -> None:
    data = small.labelled(classes=4, each=500)
    task = LabelSkew(data, 10, concentration=concentration)
    share = np.array(
        [
            np.bincount(data.label[rows_of(task, [device], run)], minlength=4) / 500
            for run in range(100)
            for device in range(10)
        ]
    )
    # Each share is Beta(a, 9 a): mean 1/10, variance (1/10)(9/10) / (10 a + 1).
    assert share.mean() == pytest.approx(0.1, abs=1e-3)
    assert share.var() == pytest.approx(0.09 / (10 * concentration + 1), rel=0.1)


def test_a_device_has_as_many_shards_as_it_draws() -> None:
    task = Shards(PLAIN, 12, shards=2)
    # 24 shards of 10 samples, four of each class: a device owns at most two classes.
    for device in range(12):
        counts = np.bincount(PLAIN.label[rows_of(task, [device])], minlength=6)
        assert counts.sum() == 20
        assert set(counts.tolist()) <= {0, 10, 20}


def test_quantities_are_log_normal_and_mixes_are_alike() -> None:
    data = small.labelled(classes=2, each=20_000)
    task = QuantitySkew(data, 200, sigma=1.0)
    log = np.concatenate([np.log(task.counts(run, range(200)).sum(axis=1)) for run in range(5)])
    assert log.std() == pytest.approx(1.0, rel=0.1)
    largest = int(np.argmax(task.counts(RUN, range(200)).sum(axis=1)))
    assert np.mean(data.label[rows_of(task, [largest])]) == pytest.approx(0.5, abs=0.05)
    even = QuantitySkew(data, 200, sigma=0.0).counts(RUN, range(200)).sum(axis=1)
    assert set(even.tolist()) <= {199, 200, 201}


def test_a_device_is_one_client() -> None:
    task = Clients(PEOPLE, 12)
    owned = [set(PEOPLE.client[rows_of(task, [device])].tolist()) for device in range(12)]
    assert sorted(map(tuple, owned)) == [(client,) for client in range(12)]
    assert sorted(rows_of(task, range(12)).tolist()) == list(range(240))


def test_held_out_devices_are_test_clients() -> None:
    task = Clients(SPLIT_PEOPLE, 12, held_out=3)
    assert set(SPLIT_PEOPLE.client[rows_of(task, range(9, 12))].tolist()) == {9, 10, 11}


def test_clients_with_too_few_samples_are_left_out() -> None:
    client = PEOPLE.client.copy()
    client[(client == 4) & (np.arange(240) > 30)] = NO_CLIENT
    few = replace(PEOPLE, client=client)
    assert 4 in few.client[rows_of(Clients(few, 12), range(12))]
    task = Clients(few, 11, least=20)
    assert set(client[rows_of(task, range(11))].tolist()) == set(range(12)) - {4}
    with pytest.raises(DataError, match=r"12 devices need .* 20 samples or more; the data has 11"):
        Clients(few, 12, least=20)


def test_the_support_of_a_client_takes_turns_by_class() -> None:
    for device in range(12):
        labels = PEOPLE.label[support_of(Clients(PEOPLE, 12), device)]
        least = np.bincount(labels, minlength=3).min()
        np.testing.assert_array_equal(labels[: 3 * least], np.tile(np.arange(3), least))


def test_a_support_can_be_small_and_the_query_stays() -> None:
    whole, few = Clients(PEOPLE, 12), Clients(PEOPLE, 12, support=6)
    for device in range(12):
        assert support_of(few, device).tolist() == support_of(whole, device)[:6].tolist()
        for part, same in zip(PARTS, (False, True), strict=True):
            found = [task.samples(RUN, 0, device, part)[0].tolist() for task in (whole, few)]
            assert (found[0] == found[1]) is same


def test_a_client_is_judged_on_every_class_and_on_what_came_later() -> None:
    task = Clients(DIARY, 4, query_share=0.25)
    table = task.table(RUN, 0, range(4))
    for visit in range(4):
        support = table.rows[table.starts[2 * visit] : table.starts[2 * visit + 1]]
        query = table.rows[table.starts[2 * visit + 1] : table.starts[2 * visit + 2]]
        # 20 of each class: the last 5 are the query, and the one before them is left out.
        for c in range(3):
            earlier, later = (np.sort(part[DIARY.label[part] == c]) for part in (support, query))
            assert (len(earlier), len(later)) == (14, 5)
            between = np.flatnonzero((DIARY.label == c) & (DIARY.client == DIARY.client[later[0]]))
            assert np.concatenate([earlier, later]).tolist() == [*between[:14], *between[15:]]
        touching = set((support + 1).tolist()) & set(query.tolist())
        assert all(DIARY.label[row] != DIARY.label[row - 1] for row in touching)


@given(law_of_any, st.integers(0, 200), st.integers(0, 2**64 - 1))
def test_public_samples_are_training_samples_that_no_device_owns(
    law: tuple[Callable[..., Partition], dict[str, Any]], public: int, run: int
) -> None:
    kind, values = law
    public = min(public, 179)
    task = kind(SPLIT, 12, held_out=3, public=public, **values)
    x, label = task.public_samples(run)
    rows = task._public_rows(run)
    assert (len(x), len(set(rows.tolist()))) == (public, public)
    np.testing.assert_array_equal(label, SPLIT.label[rows])
    assert not SPLIT.split[rows].any()
    owned = rows_of(task, range(12), run)
    assert sorted([*owned.tolist(), *rows.tolist()]) == list(range(len(SPLIT.label)))


def test_other_runs_have_other_public_samples() -> None:
    task = LabelSkew(PLAIN, 5, public=30)
    assert set(task._public_rows(1).tolist()) != set(task._public_rows(2).tolist())


@pytest.mark.parametrize(
    ("law", "data", "values", "message"),
    [
        (LabelSkew, PLAIN, {"concentration": 0.0}, "concentration = 0.0"),
        (LabelSkew, PLAIN, {"query_share": 1.0}, "query_share = 1.0"),
        (LabelSkew, PLAIN, {"devices": 0}, "devices = 0"),
        (LabelSkew, PLAIN, {"held_out": 6}, "held_out = 6 at most"),
        (Shards, PLAIN, {"shards": 0}, "shards = 0"),
        (QuantitySkew, PLAIN, {"sigma": -1.0}, "sigma = -1.0"),
        (QuantitySkew, PLAIN, {"sigma": float("nan")}, "sigma = nan"),
        (LabelSkew, PLAIN, {"public": -1}, "public = -1 must be 0 or more"),
        (Shards, SPLIT, {"public": 180}, "public = 180 .* fewer than the 180 training samples"),
        (Clients, PEOPLE, {"public": 3}, "public = 3, but clients own all of their samples"),
        (Clients, PEOPLE, {"support": -1}, "support = -1"),
        (Clients, PLAIN, {}, "5 devices need .*; the data has 0"),
        (Clients, SPLIT_PEOPLE, {"held_out": 4}, "4 held-out devices .* has 3"),
        (Clients, SPLIT_PEOPLE, {"devices": 12, "held_out": 2}, "10 training devices .* has 9"),
    ],
)
def test_an_impossible_partition_is_refused(
    law: Callable[..., Partition], data: Labelled, values: dict[str, Any], message: str
) -> None:
    with pytest.raises((ExperimentError, DataError), match=message):
        law(data, **{"devices": 5, **values})


@pytest.mark.data
def test_the_people_of_har_are_devices(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTINY_DATA", str(data_dir))
    data = data_set("uci-har").load()
    task = Clients(data, 30, held_out=9)
    held = set(data.client[rows_of(task, range(21, 30))].tolist())
    assert held == {2, 4, 9, 10, 12, 13, 18, 20, 24}
    labels = data.label[support_of(task, 29)]
    assert np.bincount(labels[:60]).tolist() == [10] * 6


@given(st.integers(2, 60), st.integers(2, 60))
def test_the_first_few_of_a_spread_order_lie_evenly_in_time(total: int, few: int) -> None:
    order = np.argsort(_spread(np.arange(max(total, few))), kind="stable")
    places = np.sort(_spread(np.arange(max(total, few)))[: min(total, few)].astype(np.int64))
    gaps = np.diff([*places, places[0] + 2**32])
    assert gaps.max() <= 3 * gaps.min()
    assert sorted(order.tolist()) == list(range(max(total, few)))
