"""A simulated fleet that prunes: one history whatever computes it, and bytes as on the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.masks import Mask
from fedtiny.simulator.run import simulate
from fedtiny.simulator.simulation import Simulation
from fedtiny.simulator.visits import Cohort, ObjectWorkers, Visited
from fedtiny.strategies.base import Round
from fedtiny.strategies.oneshot import OneShot
from fedtiny.values import Instruction
from fedtiny.wire import codec
from fedtiny.wire.vectors import given_mask, write_values
from fedtiny.wire.visit import fetch_bytes, share
from tests.simulator.experiments import PRUNED, run

if TYPE_CHECKING:
    from fedtiny.strategies.base import State

HERE = "tests.simulator.test_pruning"
FEDRTS = {"name": "fedrts", "cohort": 5, "beta": 0.05, "every": 3, "stop": 7}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedtiny": PRUNED["strategy"],
    "by loss": PRUNED["strategy"] | {"selection": "loss", "candidates": 3},
    "fedrts": FEDRTS,
    "feddst": FEDRTS | {"name": "feddst"},
    "oneshot": {"name": "oneshot", "cohort": 5, "beta": 0.05, "momentum": 0.5, "clip": 5.0},
    "sap": {"name": "sap", "cohort": 5, "beta": 0.05, "every": 3},
    "a gradient": {"build": f"{HERE}:LastGradient", "cohort": 5, "beta": 0.05},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastGradient(OneShot):
    """The gradient of one batch after an epoch, of what is live."""

    def ask(self, round: Round, state: State) -> Instruction:
        (phase,) = super().ask(round, state).phases
        return Instruction(phases=(phase, replace(phase, steps=1)), returns="gradient")


def rounds(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in history if row["kind"] == "round"]


# ---- one history -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_columns_and_objects_give_the_same_history(name: str) -> None:
    tables = PRUNED | {"strategy": STRATEGIES[name]}
    columns, objects = (run(tables, devices=kind) for kind in ("columns", "objects"))
    assert columns.history == objects.history
    assert columns.summary == objects.summary
    np.testing.assert_array_equal(columns.model, objects.model)
    assert not any(row["refused"] for row in rounds(columns.history))


def test_columns_and_objects_agree_where_devices_drop_out() -> None:
    settings = ["fleet.devices=40", "fleet.drop_out=0.3", "run.over_selection=1.5"]
    columns, objects = (run(PRUNED, *settings, devices=kind) for kind in ("columns", "objects"))
    assert columns.history == objects.history
    assert any(row["late"] or row["leases"] > row["accepted"] for row in rounds(columns.history))


@pytest.mark.parametrize("name", ["fedtiny", "fedrts"])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    tables = PRUNED | {"strategy": STRATEGIES[name]}
    experiment = Experiment.of(tables).override("run.checkpoint_every=1")
    whole = simulate(experiment)

    class PowerCut(Exception):
        pass

    def cut(progress: object) -> None:
        raise PowerCut

    with pytest.raises(PowerCut):
        simulate(experiment, out=tmp_path, progress=cut)
    for _ in range(3):  # in the selection, before an adjustment, after it
        with pytest.raises(PowerCut):
            simulate(experiment, out=tmp_path, resume=True, progress=cut)
    resumed = simulate(experiment, out=tmp_path, resume=True)
    assert resumed.history == whole.history
    assert resumed.summary == whole.summary


def test_threads_change_no_bit() -> None:
    one, two = (run(PRUNED, f"fleet.threads={n}") for n in (1, 2))
    assert one.history == two.history


# ---- what is live ----------------------------------------------------------------------------


def test_no_model_has_more_live_weights_than_the_densest_devices_hold() -> None:
    result = run(PRUNED)
    weights = Workload.of(result.experiment).profiles[0].needed.prunable
    arrays = result.layout.unflatten(result.model)
    live = sum(np.count_nonzero(arrays[name]) for name in weights)
    assert 0 < live <= int(0.3 * 1776)


def test_telemetry_is_in_the_rows_in_which_the_pool_has_moved_and_in_every_tenth() -> None:
    rows = rounds(run(PRUNED, "run.rounds=20").history)
    moved = {0, 1, 3, 6}  # selected in round 1, adjusted in rounds 3 and 6
    told = [row["round"] for row in rows if "telemetry" in row]
    assert told == sorted(moved | {*range(1, 20, 2)})
    assert rows[3]["telemetry"].keys() >= {"density.linear1", "pq.linear2"}


def test_an_evaluation_is_of_the_masked_model() -> None:
    result = run(PRUNED | {"run": {"rounds": 0}, "strategy": STRATEGIES["oneshot"]})
    (row,) = result.evaluations()
    work = Workload.of(result.experiment)
    # Both held-out devices have one board or the other: judge them by hand.
    with_masks = _judged(work, masked=True)
    assert row["loss_before"] == pytest.approx(with_masks, rel=1e-6)
    assert with_masks != pytest.approx(_judged(work, masked=False), rel=1e-3)


def _judged(work: Workload, masked: bool) -> float:
    """The mean loss of the held-out devices before they adapt, on the dense Program."""
    from fedtiny.device.learner import Learner
    from fedtiny.engine.compile import build
    from fedtiny.simulator.fleet import Fleet

    fleet, losses = Fleet.of(work), []
    state = work.strategy.start(work.layout, work.initial)
    masks = dict(work.strategy.masks(state))
    for device in fleet.held_out.tolist():
        density = fleet.profiles[fleet.profile[device]].needed.density
        live = Mask.read(masks[density], work.layout).bools | (not masked)
        program = build(work.net, loss="cross_entropy", batch=16).program
        learner = Learner(program, "reference")
        learner.load(np.where(live, work.initial, np.float32(0)))
        found = learner.evaluate(*work.task.samples(work.experiment.seed, 0, device, "query"))
        losses.append(found["loss_sum"] / found["count"])
    return float(np.mean(losses))


# ---- bytes -----------------------------------------------------------------------------------


class Weighing(ObjectWorkers):
    """Counts what each device sends as its update on the wire."""

    sent: dict[int, int]

    def visit(self, cohort: Cohort) -> Visited:
        for at, device in enumerate(cohort.devices.tolist()):
            update = cohort.update(at, self._visit(cohort, at))
            payload = write_values(
                update, cohort.open.size, given=given_mask(update, cohort.instruction)
            )
            requests = codec.submit_requests(update, bytes(8), bytes(32), payload, 30.0)
            self.sent[device] = sum(map(share, requests))
        return super().visit(cohort)


@pytest.mark.parametrize("name", ["fedtiny", "by loss", "fedrts", "feddst", "sap"])
def test_the_bytes_of_a_round_are_those_of_what_is_sent(name: str) -> None:
    experiment = Experiment.of(PRUNED | {"strategy": STRATEGIES[name]})
    simulation = Simulation(experiment, "objects", lambda row: None)
    workers = simulation.workers = Weighing(
        simulation.work.task, experiment.seed, simulation.standing.keeping
    )
    masks: dict[int, bytes | None] = {}
    models: dict[int, tuple[int, bytes | None]] = {}
    version = 0
    workers.sent = {}
    while (row := simulation.step()) is not None:
        asked, fleet = simulation.open.instruction, simulation.fleet
        up, down = sum(workers.sent.values()), 0
        for device in workers.sent:
            program = fleet.profiles[fleet.profile[device]].needed
            visit = simulation.work.visit_bytes(program, asked)
            blob = asked.of(program.density).mask
            fetched = blob is not None and masks.get(device) != blob
            up += visit.requests + visit.mask_requests * fetched
            down += visit.work + visit.receipt + visit.mask * fetched
            if models.get(device) == (version, blob):  # it has calibrated this model, and scores it
                again = fetch_bytes(4 * simulation.layout.size, compared=True)
                up, down = up - again[0], down - again[1]
            masks[device] = blob or masks.get(device)
            models[device] = version, blob
        assert len(workers.sent) == row["accepted"] == row["leases"] == 5
        assert (row["bytes_up"], row["bytes_down"]) == (up, down)
        workers.sent, version = {}, row["version"]
    simulation.close()


def test_a_growth_sends_far_less_than_a_dense_gradient() -> None:
    result = run(PRUNED)
    adjusted = rounds(result.history)[3]
    assert adjusted["bytes_up"] < 5 * 4 * result.layout.size / 10
