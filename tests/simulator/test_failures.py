"""A simulated fleet in which something goes wrong: what is refused, told and left behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.engine.native import Status
from fedtiny.errors import DataError, ExperimentError, RunError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.fold import Total
from fedtiny.simulator.run import simulate
from fedtiny.simulator.simulation import DeviceForm, Simulation
from fedtiny.simulator.visits import ObjectWorkers
from fedtiny.strategies import calls
from fedtiny.strategies.base import Averaging, Round, Strategy, deltas
from fedtiny.values import Instruction, Phase, Sgd
from tests.simulator.experiments import HARD, SINE, history_of, run

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32

HERE = "tests.simulator.test_failures"


# ---- what goes wrong -------------------------------------------------------------------------


class Broken:
    """Device 5 diverges, device 6 has no samples; the others learn y = x."""

    features, outputs, classes = 1, 1, None

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        x = np.full((0 if device == 6 else 4, 1), 1.0, np.float32)
        return x, x * np.float32(1e38 if device == 5 else 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring(Averaging):
    """A calibration, a score of three candidates, an evaluation, then training."""

    def ask(self, round: Round, state: object) -> Instruction:
        kinds = ("calibrate", "score", "evaluate")
        candidates = (1, np.zeros(1153, np.float32).tobytes(), 2)
        if round.t < len(kinds):
            return Instruction(kind=kinds[round.t], candidates=candidates * (round.t == 1))
        return Averaging.ask(self, round, {})


@pytest.mark.parametrize("devices", ["columns", "objects"])
def test_every_kind_of_instruction_runs_from_end_to_end(devices: DeviceForm) -> None:
    result = run(SINE, f"strategy={{build='{HERE}:Measuring', cohort=5}}", devices=devices)
    rows = [row for row in result.history if row["kind"] == "round"]
    calibrated, scored, evaluated = (row["measures"] for row in rows[:3])
    assert calibrated["linear1.count"] == 5 * 16 * 32
    assert calibrated["relu1.min"] == 0.0 < calibrated["relu1.max"]
    assert scored["count"] == evaluated["count"] == 5 * 16
    assert len({scored[f"loss_sum.{i}"] for i in range(3)}) == 3
    assert evaluated["loss_sum_before"] == evaluated["loss_sum_after"] > 0
    assert [row["version"] for row in rows] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("devices", ["columns", "objects"])
def test_bad_updates_are_refused_with_reasons_and_the_round_goes_on(devices: DeviceForm) -> None:
    settings = [f"data={{source='{HERE}:Broken'}}", "fleet.devices=12", "fleet.held_out=0",
                "evaluate={}", "strategy.cohort=12", "run.minimum=10", "run.rounds=1"]  # fmt: skip
    (row,) = run(SINE, *settings, devices=devices).history
    assert row["accepted"] == 10
    assert [entry["count"] for entry in row["reasons"].values()] == [1, 1]
    assert any("no samples" in reason for reason in row["reasons"])
    assert any("N of N parameters are not finite" in reason for reason in row["reasons"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failing(Averaging):
    """Fails in round 2."""

    def finish(self, round: Round, *rest: object) -> object:  # type: ignore[override]
        return super().finish(round, *rest) if round.t < 2 else 1 / 0  # type: ignore[arg-type]


def test_a_strategy_that_raises_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    experiment = Experiment.of(SINE).override(
        f"strategy={{build='{HERE}:Failing', cohort=5}}", "run.checkpoint_every=1"
    )
    with pytest.raises(StrategyError, match=r"Failing.finish failed in round 2.*division by zero"):
        simulate(experiment, out=tmp_path / "run")
    rows = history_of(tmp_path / "run")
    assert [row["round"] for row in rows if row["kind"] == "round"] == [0, 1]


def test_a_run_whose_strategy_raises_goes_on_from_the_last_round_that_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.of(HARD).override(
        f"strategy={{build='{HERE}:Failing', cohort=40}}", "run.checkpoint_every=100"
    )
    with pytest.raises(StrategyError, match=f"simulate --resume {tmp_path / 'cut'}"):
        simulate(experiment, out=tmp_path / "cut")
    monkeypatch.setattr(Failing, "finish", Averaging.finish)  # repaired
    resumed = simulate(experiment, out=tmp_path / "cut", resume=True)
    assert resumed.dropped is not None
    assert resumed.dropped.rows == 0  # neither of the two rounds is done again
    assert resumed.history == simulate(experiment).history


class Careless:
    """Devices 1 to 4 give nothing, raise, or are not finite; the others learn y = x."""

    features, outputs, classes = 1, 1, None

    def samples(self, run: int, round: int, device: int, part: str) -> Any:
        x = np.full((4, 1), 1.0, np.float32)
        bad = {1: None, 2: (x, x / 0), 3: (x, x * np.nan)}
        return bad[device] if device in bad else (x, x * (1 // (device - 4)))


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("devices", ["columns", "objects"])
def test_a_device_whose_samples_are_bad_is_refused_alone(devices: DeviceForm) -> None:
    settings = [f"data={{source='{HERE}:Careless'}}", "fleet.devices=12", "fleet.held_out=0",
                "evaluate={}", "strategy.cohort=12", "run.minimum=8", "run.rounds=1"]  # fmt: skip
    (row,) = run(SINE, *settings, devices=devices).history
    assert row["accepted"] == 8
    assert sum(entry["count"] for entry in row["reasons"].values()) == row["refused"] >= 4


class Distant:
    """Targets whose squared distance is no float32."""

    features, outputs, classes = 1, 1, None

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        x = np.ones((4, 1), np.float32)
        return x, x * np.float32(1e25)


@pytest.mark.parametrize("devices", ["columns", "objects"])
def test_a_loss_that_is_not_finite_is_told_as_none(devices: DeviceForm) -> None:
    settings = [f"data={{source='{HERE}:Distant'}}", "strategy.beta=1e-26", "evaluate={}"]
    for row in run(SINE, *settings, "run.rounds=1", devices=devices).history:
        assert row["accepted"] == 20
        assert row["loss"] is None


def test_what_only_the_runtime_refuses_is_told_by_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ObjectWorkers, "refusal", lambda *_: "")
    row = run(SINE, "strategy.beta=1e30", "evaluate={}", "run.rounds=1").history[0]
    assert list(row["reasons"]) == [Status.NOT_FINITE.meaning]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadLost(Averaging):
    """Trains everything gently, then drives the local head to infinity."""

    def ask(self, round: Round, state: object) -> Instruction:
        wild = Phase(1e38, 3, groups=("local",), sgd=Sgd(weight_decay=1.0))
        return Instruction(phases=(Phase(self.beta, 1), wild))


def test_a_visit_that_loses_any_parameter_is_refused_in_columns_and_objects() -> None:
    """What the head lost is not sent, but the device would keep it."""
    settings = ["model.build='tests.simulator.experiments:personal_mlp'",
                "data={source='label-skew-digits'}", "evaluate={}", "run.rounds=1",
                f"strategy={{build='{HERE}:HeadLost', cohort=20}}"]  # fmt: skip
    columns, objects = (run(SINE, *settings, devices=kind) for kind in ("columns", "objects"))
    assert columns.history == objects.history
    assert "every round failed" in str(columns)
    assert any(
        reason.startswith("N of N parameters are not finite after training; lower")
        for reason in columns.summary["reasons"]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterMomentum(Averaging):
    """Wants momentum from round 2 on."""

    def ask(self, round: Round, state: object) -> Instruction:
        sgd = Sgd(momentum=0.9 if round.t >= 2 else 0.0)
        return Instruction(phases=(Phase(self.beta, sgd=sgd),))


class Reserving(LaterMomentum):
    """Says so."""

    reserve = Sgd(momentum=0.9)


def test_what_a_strategy_wants_only_later_must_be_reserved() -> None:
    name = "LaterMomentum.ask in round 2 of 5 uses momentum.*reserve: ClassVar"
    with pytest.raises(StrategyError, match=name):
        run(SINE, f"strategy={{build='{HERE}:LaterMomentum', cohort=5}}")
    reserved = run(SINE, f"strategy={{build='{HERE}:Reserving', cohort=5}}")
    assert reserved.summary["updates"] == 25


def test_a_profile_that_would_send_nothing_is_unfit() -> None:
    settings = ["model.build='tests.simulator.experiments:personal_mlp'",
                "data={source='label-skew-digits'}", "evaluate={}", "run.rounds=1",
                "fleet.profiles={cortex-m4=0.5, pi-4=0.5}"]  # fmt: skip
    columns, objects = (
        run(SINE, *settings, "device.pi-4.plan='last:1'", devices=kind)
        for kind in ("columns", "objects")
    )
    assert columns.history == objects.history
    assert columns.summary["unfit_devices"] == 100
    (unfit,) = [p for p in columns.summary["profiles"] if p["reasons"]]
    assert "stay on the device: nothing to send" in unfit["reasons"][0]


def test_a_profile_that_is_too_slow_for_the_deadline_is_unfit() -> None:
    # HARD's visit takes a cortex-m4 0.524 s
    summary = run(HARD, "run.deadline=0.5").summary
    (slow,) = [p for p in summary["profiles"] if p["name"] == "cortex-m4"]
    assert "shortest visit takes 0.524 s, the deadline is 0.5 s" in slow["reasons"][0]
    assert summary["unfit_devices"] == 300 + 400


@pytest.mark.parametrize("setting", ["run.deadline='1ms'", "data.sample_period='1h'"])
def test_a_deadline_that_no_board_can_meet_is_refused_before_anything_runs(setting: str) -> None:
    with pytest.raises(RunError, match=r"none of the 200 devices.*shortest visit takes.*raise run"):
        run(SINE, setting)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["strategy={name='fedagv'}"], StrategyError, "did you mean 'fedavg'"),
        (["strategy.cohort=500"], ExperimentError, "cohort"),
        (["run.minimum=21"], ExperimentError, "minimum"),
        (["fleet.drop_out=1.0"], ExperimentError, r"drop_out.* \[0, 1\)"),
        (["evaluate={few={lr=0.1, support=5}}", "data={source='few-shot-digits'}",
          "model={build='digits_mlp', classes=5}"], ExperimentError, "evaluate.few"),
        (["model={build='digits_mlp'}"], ExperimentError,
         "digits_mlp takes 64 .* have 1 features and need 1"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_it_starts(
    settings: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(SINE, *settings)


# ---- strategies of the user's own ------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrimmedMean(Strategy):
    """The mean without the largest and the smallest fifth of each coordinate."""

    needs = "all"
    beta: float = 0.02

    def ask(self, round: Round, state: object) -> Instruction:
        return Instruction(phases=(Phase(self.beta),))

    def finish(
        self, round: Round, model: Float32, updates: Contribution, state: State
    ) -> tuple[Float32, State]:
        assert not isinstance(updates, Total)
        rows = np.sort(deltas(updates, model), axis=0)
        cut = len(rows) // 5
        return (model + rows[cut : len(rows) - cut].mean(axis=0)).astype(np.float32), state


def test_a_users_strategy_runs_by_its_name() -> None:
    result = run(SINE, f"strategy={{build='{HERE}:TrimmedMean', cohort=10}}")
    first, last = (result.evaluations()[i]["loss_after"] for i in (0, -1))
    assert last < first


# ---- what a failure leaves behind ------------------------------------------------------------


def test_a_failed_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError):
        simulate(Experiment.of(SINE).override("model.build='nosuch'"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    simulate(SINE, out=tmp_path / "run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming(Averaging):
    """Raises an error of our own in round 2."""

    def finish(self, round: Round, *rest: Any) -> Any:
        if round.t == 2:
            raise DataError("boo")
        return super().finish(round, *rest)


def test_whatever_a_strategy_raises_is_named_and_its_rounds_are_kept(tmp_path: Path) -> None:
    experiment = Experiment.of(SINE).override(f"strategy={{build='{HERE}:Naming', cohort=5}}")
    with pytest.raises(StrategyError, match=r"Naming.finish in round 2 of 5: boo.*--resume"):
        simulate(experiment, out=tmp_path / "run")
    rows = history_of(tmp_path / "run")
    assert [row["round"] for row in rows if row["kind"] == "round"] == [0, 1]
    assert (tmp_path / "run/checkpoint.npz").exists()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (Phase(0.1), "phases is a Phase"),
        ((0.1,), r"phases = \(0.1,\)"),
        ((Phase("0.1"),), r"phases\[0\].lr = '0.1'"),  # type: ignore[arg-type]
        ((Phase(0.1, 2.5),), r"phases\[0\].steps = 2.5"),  # type: ignore[arg-type]
        ((Phase(0.1, groups=None),), r"phases\[0\].groups = None"),  # type: ignore[arg-type]
    ],
)
def test_an_instruction_of_the_wrong_type_names_its_field(phases: Any, message: str) -> None:
    strategy = Asking(cohort=5)
    object.__setattr__(strategy, "asked", Instruction(phases=phases))
    layout = Simulation(Experiment.of(SINE), "columns", lambda row: None).layout
    with pytest.raises(StrategyError, match=message):
        calls.ask(strategy, Round(0, 1), {}, layout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking(Averaging):
    """Asks what it was given."""

    asked: Instruction = dataclasses.field(default_factory=Instruction)

    def ask(self, round: Round, state: Any) -> Instruction:
        return self.asked


class Empty(Broken):
    """Nobody has anything."""

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        return np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)


def test_a_fleet_without_a_single_sample_is_refused_before_it_starts() -> None:
    with pytest.raises(DataError, match="none of the 180 devices that train has a sample"):
        run(SINE, f"data={{source='{HERE}:Empty'}}", "evaluate={}")
