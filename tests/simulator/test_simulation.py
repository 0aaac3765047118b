"""A simulated fleet: what its history says, whatever computes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import ExperimentError, RunError
from fedtiny.experiment import Experiment
from fedtiny.registry.profiles import board
from fedtiny.simulator.run import simulate
from fedtiny.simulator.simulation import Simulation
from fedtiny.strategies.base import Averaging, Round
from fedtiny.values import Instruction, Phase
from tests.simulator.experiments import HARD, SINE, history_of, run

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

HERE = "tests.simulator.test_simulation"


TRAINING = ["evaluate={few={lr=0.05, devices='training'}}"]
FEW = ["fleet.devices=10", "fleet.held_out=2"]  # so that most come twice


# ---- one history, whatever computes it -------------------------------------------------------


def test_columns_and_objects_give_the_same_history_at_a_thousand_devices() -> None:
    columns, objects = (run(HARD, devices=kind) for kind in ("columns", "objects"))
    assert columns.history == objects.history
    assert columns.summary == objects.summary
    np.testing.assert_array_equal(columns.model, objects.model)
    rounds = [row for row in columns.history if row["kind"] == "round"]
    assert any(row["accepted"] < row["leases"] for row in rounds)


@pytest.mark.parametrize(
    "settings",
    [
        ["model.build='tests.simulator.experiments:personal_mlp'", *TRAINING,
         "data={source='label-skew-digits'}", "strategy.momentum=0.9"],
        ["model={build='digits_mlp', classes=3}",
         "data={source='few-shot-digits', ways=3, shots=2, queries=4}"],
        ["strategy={name='median', cohort=7}"],
        ["strategy={name='fedprox', cohort=7, mu=0.1}", "device.batch=3"],
        [f"strategy={{build='{HERE}:LastGradient', cohort=6}}"],
        [f"strategy={{build='{HERE}:HeadThenBody', cohort=6}}"],
        ["strategy={name='perfedavg', cohort=6, steps=2}"],
        ["strategy={name='scaffold', cohort=6, steps=2}", *FEW],
        ["strategy={name='ditto', cohort=6, beta=0.02}", *TRAINING, *FEW],
        ["strategy={name='fedavg', cohort=6, transforms=['clip:1', 'feedback', 'topk:0.1', "
         "'int8']}", *FEW],
        ["strategy={name='median', cohort=7, transforms=['int8']}",
         "attack={kind='sign-flip', share=0.3}"],
        ["attack={kind='scale', share=0.3, scale=2.0}"],
    ],
    ids=["personal", "few-shot", "median", "prox", "gradient", "phases", "ahead", "control", "own",
         "transforms", "attack", "attacked sums"],
)  # fmt: skip
def test_every_kind_of_visit_is_the_same_in_columns_and_objects(settings: list[str]) -> None:
    settings = ["run.rounds=3", "evaluate={few={lr=0.05}}", *settings]
    columns, objects = (run(SINE, *settings, devices=kind) for kind in ("columns", "objects"))
    assert columns.history == objects.history
    assert columns.summary == objects.summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastGradient(Averaging):
    """First-order MAML: the gradient at the adapted point."""

    def ask(self, round: Round, state: object) -> Instruction:
        phases = Phase(self.beta, 4), Phase(self.beta, 1, part="query")
        return Instruction(phases=phases, returns="gradient")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadThenBody(Averaging):
    """Two phases with momentum and a correction."""

    def ask(self, round: Round, state: object) -> Instruction:
        correction = np.full(1153, 0.01, np.float32).tobytes()
        phases = (
            Phase(self.beta, 3, shuffle=True),
            Phase(self.beta, 2, part="query", corrected=True, groups=("shared",)),
        )
        return Instruction(phases=phases, correction=correction)


def test_the_number_of_threads_changes_no_bit() -> None:
    one, two = (run(SINE, f"fleet.threads={n}", "strategy.cohort=100") for n in (1, 2))
    assert one.history == two.history
    assert one.summary == two.summary


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, again, other = (run(SINE, f"seed={seed}").summary["model_digest"] for seed in (3, 3, 4))
    assert first == again != other


# ---- resume ----------------------------------------------------------------------------------


MEASURED = HARD | {"run": HARD["run"] | {"over_selection": "measured"}}


@pytest.mark.parametrize("tables", [SINE, HARD, MEASURED], ids=["sine", "hard", "measured"])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(
    tables: dict[str, object], tmp_path: Path
) -> None:
    experiment = Experiment.of(tables).override("run.checkpoint_every=1", "run.evaluate_every=2")
    whole = simulate(experiment, out=tmp_path / "whole")

    class PowerCut(Exception):
        pass

    def cut(progress: object) -> None:
        raise PowerCut

    with pytest.raises(PowerCut):
        simulate(experiment, out=tmp_path / "cut", progress=cut)
    resumed = simulate(experiment, out=tmp_path / "cut", resume=True)
    assert resumed.history == whole.history
    assert resumed.summary == whole.summary
    files = [f.relative_to(tmp_path / "whole") for f in (tmp_path / "whole").rglob("*.*")]
    for file in files:
        digests = [
            hashlib.sha256((tmp_path / folder / file).read_bytes()).hexdigest()
            for folder in ("whole", "cut")
        ]
        assert digests[0] == digests[1], file


def test_a_folder_holds_what_the_result_says(tmp_path: Path) -> None:
    result = simulate(SINE, out=tmp_path / "run")
    rows = history_of(tmp_path / "run")
    assert rows == json.loads(json.dumps(result.history))
    with np.load(tmp_path / "run/models/round-000005.npz") as stored:
        np.testing.assert_array_equal(result.layout.flatten(stored), result.model)
    with pytest.raises(RunError, match="is there already"):
        simulate(SINE, out=tmp_path / "run")


def test_an_adaptation_that_diverges_is_told_as_such() -> None:
    result = run(SINE, "evaluate.wild.lr=1e6")
    last = result.evaluations("wild")[-1]
    assert last["loss_after"] is None
    assert last["diverged"] == last["devices"] == 20
    assert "wild: diverged on 20 (20 devices)" in str(result)


def test_devices_are_columns_or_objects() -> None:
    with pytest.raises(ExperimentError, match="'rows' is not 'columns' or 'objects'"):
        simulate(SINE, devices="rows")  # type: ignore[arg-type]


def test_a_run_without_a_folder_cannot_be_resumed() -> None:
    with pytest.raises(RunError, match="nothing to resume without a folder"):
        simulate(SINE, resume=True)


# ---- devices ---------------------------------------------------------------------------------


def test_a_device_that_the_program_does_not_fit_is_never_chosen() -> None:
    simulation = Simulation(Experiment.of(HARD), "columns", lambda row: None)
    fleet = simulation.fleet
    small = [p.name for p in fleet.profiles].index("pi-4")  # its budget is 4 KiB here
    chosen: list[int] = []
    instruct = simulation.sessions.instruct

    def record(devices: Int64, *rest: Any) -> None:
        chosen.extend(devices.tolist())
        instruct(devices, *rest)

    simulation.sessions.instruct = record  # type: ignore[method-assign,assignment]
    while simulation.step():
        pass
    assert chosen
    assert not (fleet.profile[chosen] == small).any()
    assert max(chosen) < 900  # nor is one that is held out
    assert fleet.unfit == 300


def test_the_report_says_how_many_do_not_fit_and_why() -> None:
    summary = run(HARD).summary
    assert summary["unfit_devices"] == 300
    (unfit,) = [p for p in summary["profiles"] if p["reasons"]]
    assert unfit["name"] == "pi-4"
    assert "of 4,096 B RAM" in unfit["reasons"][0]


def test_a_fleet_that_nothing_fits_is_refused_with_the_numbers() -> None:
    with pytest.raises(RunError, match=r"none of the 200 devices can take part.*of 4,096 B RAM"):
        run(SINE, "device.ram='4KiB'")


def test_slow_devices_take_longer_and_spend_more() -> None:
    small, large = (
        run(SINE, f"fleet.profiles={{{name}=1.0}}").summary for name in ("cortex-m4", "pi-5")
    )
    assert small["time_s"] > 5 * large["time_s"]
    assert small["model_digest"] == large["model_digest"]


def test_a_stream_waits_for_its_samples() -> None:
    at_once, streamed = (
        run(SINE, "strategy.steps=0", f"data.sample_period='{period}'").summary
        for period in ("0s", "2s")
    )
    assert streamed["time_s"] == pytest.approx(at_once["time_s"] + 5 * 16 * 2)


def test_a_visit_that_only_measures_takes_the_time_of_its_forward_passes() -> None:
    simulation = Simulation(
        Experiment.of(SINE).override("strategy={name='none'}"), "columns", lambda row: None
    )
    row = simulation.step()
    assert row is not None
    m4 = board("cortex-m4")
    (profile,) = simulation.fleet.profiles
    forward_s = 16 * profile.needed.footprint.macs_per_forward / m4.macs_per_s  # 16 of the query
    # the requests for the model and five measures go up, the model comes down
    visit = simulation.work.visit_bytes(profile.needed, simulation.work.instruction)
    assert visit.update < 300 < 4 * 1153 < visit.down
    link_s = 8 * visit.down / m4.downlink_bps + 8 * visit.up / m4.uplink_bps
    assert row["time_s"] == pytest.approx(2 * m4.latency_s + link_s + forward_s)


def test_bytes_are_those_of_the_messages() -> None:
    simulation = Simulation(Experiment.of(SINE), "columns", lambda row: None)
    visit = simulation.work.visit_bytes(
        simulation.fleet.profiles[0].needed, simulation.work.instruction
    )
    summary = run(SINE).summary
    assert summary["bytes_down"] == 5 * 20 * visit.down
    assert summary["bytes_up"] == 5 * 20 * visit.up
    # a model of 4,612 B, and a few hundred bytes around it
    assert 4612 < visit.up < visit.down < 5200


def test_a_lost_device_has_asked_for_the_model_and_sends_nothing_back() -> None:
    settings = ["fleet.drop_out=0.5", "run.minimum=1", "run.deadline='100s'", "run.rounds=20"]
    simulation = Simulation(Experiment.of(SINE).override(*settings), "columns", lambda row: None)
    visit = simulation.work.visit_bytes(
        simulation.fleet.profiles[0].needed, simulation.work.instruction
    )
    result = run(SINE, *settings)
    summary = result.summary
    leases = sum(row["leases"] for row in result.history if row["kind"] == "round")
    sent = summary["updates"]
    assert leases - sent > 50
    assert summary["bytes_down"] == leases * visit.work + sent * visit.receipt
    assert summary["bytes_up"] == leases * visit.requests + sent * visit.update


# ---- rounds ----------------------------------------------------------------------------------


def test_a_serial_round_whose_device_is_lost_passes_to_the_next() -> None:
    settings = ["strategy={name='tinyreptile'}", "fleet.drop_out=0.5", "run.rounds=20",
                "run.deadline='50s'"]  # fmt: skip
    rows = [row for row in run(SINE, *settings).history if row["kind"] == "round"]
    assert [row["accepted"] for row in rows] == [1] * 20
    assert 30 <= sum(row["leases"] for row in rows) <= 60
    lost = sum(row["leases"] - 1 for row in rows)
    assert rows[-1]["time_s"] > 50 * lost


def test_over_selection_hides_devices_that_are_lost() -> None:
    patient, greedy = (
        run(SINE, "fleet.drop_out=0.2", f"run.over_selection={factor}").summary
        for factor in (1.0, 1.6)
    )
    assert greedy["time_s"] < 0.2 * patient["time_s"]
    assert greedy["late"] > 0


def test_measured_over_selection_learns_how_many_are_lost() -> None:
    result = run(SINE, "fleet.drop_out=0.2", "run.over_selection=measured", "run.rounds=15")
    rounds = [row for row in result.history if row["kind"] == "round"]
    # 3 of 20 and 7 of 25 are lost: (32 * 3 / 52 + 7) / (32 + 25) = 0.155. With that, 29 leases
    # bring 20 updates with probability 0.9906, 28 leases with 0.978.
    assert (rounds[0]["leases"], rounds[0]["accepted"]) == (20, 17)
    assert {(row["leases"], row["accepted"]) for row in rounds[2:]} == {(29, 20)}
    assert result.summary["time_s"] < 2.1 * 600  # of 15 deadlines, two were waited for


def test_a_round_closes_at_its_deadline_with_the_minimum() -> None:
    rows = run(SINE, "fleet.drop_out=0.5", "run.minimum=3", "run.deadline='9s'").history
    rounds = [row for row in rows if row["kind"] == "round"]
    assert [row["time_s"] for row in rounds] == [9.0, 18.0, 27.0, 36.0, 45.0]
    assert all(3 <= row["accepted"] < 20 for row in rounds)


def test_a_round_that_gets_too_few_fails_and_leaves_the_model() -> None:
    result = run(SINE, "fleet.drop_out=0.99", "run.minimum=20", "run.rounds=2")
    assert result.summary["failed_rounds"] == 2
    assert [r["version"] for r in result.history if r["kind"] == "round"] == [0, 0]
    np.testing.assert_array_equal(result.model, Simulation(
        Experiment.of(SINE), "columns", lambda row: None).work.initial)  # fmt: skip


@settings(max_examples=60)
@given(
    st.integers(0, 1000), st.floats(0.1, 0.5), st.floats(1, 1.6), st.integers(10, 25),
    st.sampled_from(["always", "diurnal"]),
)  # fmt: skip
def test_time_always_goes_on(
    seed: int, drop_out: float, over_selection: float, cohort: int, availability: str
) -> None:
    """However few devices are left, no round waits for ever."""
    experiment = Experiment.of(SINE).override(
        f"seed={seed}", "fleet.devices=30", "fleet.held_out=5", f"strategy.cohort={cohort}",
        f"fleet.drop_out={drop_out}", f"run.over_selection={over_selection}", "evaluate={}",
        f"fleet.availability='{availability}'", "run.rounds=4",
    )  # fmt: skip
    simulation = Simulation(experiment, "columns", lambda row: None)
    passes = 0
    pass_time = simulation._pass_time

    def counted() -> None:
        nonlocal passes
        passes += 1
        assert passes < 2000
        pass_time()

    simulation._pass_time = counted  # type: ignore[method-assign]
    while simulation.step():
        pass
