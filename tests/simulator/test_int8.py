"""Fleets with int8 devices: who calibrates, what is fetched, cohorts beside single devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.simulator.simulation import Simulation
from tests.simulator.experiments import MIXED, run


def ranges_of(work: Workload, model: Any) -> list[list[float]]:
    places = [slice(p.offset, p.offset + 2) for p in work.layout.activations]
    return [model[place].tolist() for place in places]


def test_float32_devices_observe_the_ranges_in_the_first_round() -> None:
    simulation = Simulation(Experiment.of(MIXED), "columns", lambda row: None)
    work, start = simulation.work, simulation.standing.model
    assert ranges_of(work, start) == [[0, 0], [0, 0]]
    row = simulation.step()
    assert row is not None
    model = simulation.standing.model
    shared = work.layout.activations[0].offset
    np.testing.assert_array_equal(model[:shared], start[:shared])
    (_, most), (least, greatest) = ranges_of(work, model)
    assert 0.8 < most <= 1  # of pixels from 0 to 1
    assert least == 0 < greatest  # of a relu
    assert (row["version"], row["accepted"], row["loss"]) == (1, 6, None)
    after = simulation.step()
    assert after is not None
    assert after["loss"] > 0
    assert ranges_of(work, simulation.standing.model) == ranges_of(work, model)


def test_a_round_that_only_int8_devices_answer_leaves_the_model_and_another_follows() -> None:
    # 2 of 40 devices are float32, and one is asked at a time.
    settings = "fleet.devices=40", "fleet.profiles={cortex-m4=0.95, pi-4=0.05}", "run.rounds=60"
    experiment = Experiment.of(MIXED).override(*settings, "strategy.cohort=1", "seed=8")
    simulation = Simulation(experiment, "columns", lambda row: None)
    versions, row = [], simulation.step()
    while row and row["loss"] is None:
        versions.append(row["version"])
        row = simulation.step()
    assert row is not None
    assert versions == [*[0] * (len(versions) - 1), 1]
    assert len(versions) > 1


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "krum"])
def test_whole_cohorts_and_single_devices_give_one_run(strategy: str) -> None:
    settings = (
        f"strategy.name={strategy}",
        "device.head='int8'",
        "run.rounds=6",
        "run.evaluate_every=2",
    )
    whole, single = (run(MIXED, *settings, devices=form) for form in ("columns", "objects"))
    assert whole.history == single.history
    np.testing.assert_array_equal(whole.model, single.model)


def test_public_samples_calibrate_the_first_model_so_that_the_first_round_trains() -> None:
    settings = "data.public=100", "device.pi-4={}", "pretrain={steps=600}"
    result = run(MIXED, *settings)
    losses = [row["loss"] for row in result.history if row["kind"] == "round"]
    assert [t for t, loss in enumerate(losses) if loss is None] == [2]
    (first, *_, last) = result.evaluations("shift")
    assert first["devices"] == last["devices"] == 4
    assert first["accuracy_before"] > 0.6  # of an int8 net, before any round


def test_an_int8_device_fetches_a_byte_for_each_weight() -> None:
    work = Workload.of(Experiment.of(MIXED))
    int8, float32 = (p.needed for p in work.profiles)
    # linear1: 64 x 8 weights and a step for each of 8; the head is float32.
    assert work.model_bytes(float32, work.training) - work.model_bytes(int8, work.training) == (
        4 * 512 - (512 + 4 * 8)
    )
    whole = Experiment.of(MIXED).override("strategy.transforms=['topk:0.1']")
    sent = Workload.of(whole)
    assert sent.model_bytes(int8, sent.training) == work.layout.nbytes
