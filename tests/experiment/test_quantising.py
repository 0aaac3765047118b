"""int8 in an experiment: one Layout for all, where ranges come from, a model to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.builder import Net
from fedtiny.engine.calibration import calibrated
from fedtiny.engine.compile import compile
from fedtiny.errors import CompileError, DataError, ExperimentError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.explain import explain
from fedtiny.experiment.workload import Workload
from fedtiny.rounds import calibration
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import CALIBRATE, RANGES, TRAIN, WIDER
from tests.simulator.experiments import MIXED

HERE = "tests.experiment.test_quantising"
MIX = Experiment.of(MIXED)
ALL_INT8 = MIX.override("device.pi-4={}")


def smooth_net() -> Net:
    """Digits through a layer that int8 does not have."""
    net = Net(64)
    net.linear(net.tanh(net.linear(net.input, 8)), 10)
    return net


def saved(folder: Path, **changed: Any) -> str:
    """The initial model of the fleet in a file; None takes an array out."""
    work = Workload.of(MIX)
    arrays = {**work.layout.unflatten(work.untrained), **changed}
    np.savez(folder / "model.npz", **{k: v for k, v in arrays.items() if v is not None})
    return f"model.start='{folder / 'model.npz'}'"


# ---- Programs --------------------------------------------------------------------------------


def test_int8_and_float32_of_different_plans_share_a_layout() -> None:
    plans = "device.plan='named:linear1.weight{in=1/4}+biases:1'", "device.pi-4.plan='last:1'"
    work = Workload.of(MIX.override(*plans))
    int8, float32 = (profile.needed for profile in work.profiles)
    assert [p.name for p in int8.int8_parameters] == ["linear1.weight"]
    assert not float32.int8_parameters
    assert int8.layout == float32.layout == work.layout
    assert [p.name for p in work.layout.activations] == ["input.range", "relu1.range"]
    assert int8.sent_ranges(work.training) != float32.sent_ranges(work.training)


def test_the_rounds_are_rehearsed_as_those_of_a_calibrated_model() -> None:
    work = Workload.of(MIX)
    assert calibration.is_due(work.layout, work.initial)
    assert [asked.kind for asked in work.rehearsal()] == [TRAIN, TRAIN, CALIBRATE]
    assert CALIBRATE not in (work.training.kind, work.instruction.kind)


def test_a_head_of_int8_is_for_the_profiles_that_are_int8() -> None:
    budgets = [MIX.override("device.head='int8'").budget(name) for name in MIX.fleet.profiles]
    assert [(b.dtype, b.head) for b in budgets] == [("int8", "int8"), ("float32", "float32")]
    with pytest.raises(ExperimentError, match="no profile has that"):
        MIX.override("device.dtype='float32'", "device.head='int8'")


def test_explain_tells_the_dtype_and_the_plan_of_each_profile() -> None:
    rows = explain(Workload.of(MIX.override("device.pi-4.plan='last:1'")))
    assert [(row.dtype, row.plan) for row in rows] == [("int8", "all"), ("float32", "last:1")]


def test_a_layer_that_int8_does_not_have_is_named() -> None:
    text = MIX.override(f"model={{build='{HERE}:smooth_net'}}").to_toml()
    line = text.splitlines().index("[device]") + 1
    with pytest.raises(CompileError, match=rf"a\.toml, line {line}: int8 has no tanh \(tanh1\)"):
        Workload.of(Experiment.parse(text, "a.toml"))


def test_int8_does_not_go_with_a_density() -> None:
    with pytest.raises(ExperimentError, match=r"int8 stores every weight, and density is 0\.5"):
        MIX.override("device.density=0.5")


# ---- ranges ----------------------------------------------------------------------------------


def test_nobody_to_observe_the_ranges_is_an_error_with_the_remedies() -> None:
    with pytest.raises(ExperimentError, match=r"all profiles are int8.*data\.public.*model\.start"):
        Workload.of(ALL_INT8)


def test_public_samples_calibrate_what_was_pretrained_on_them() -> None:
    work = Workload.of(ALL_INT8.override("data.public=64", "pretrain={steps=5}"))
    samples = work.task.public_samples(7)[0]  # type: ignore[attr-defined]
    again = calibrated(work.net, work.initial, samples, loss=work.loss)
    assert not calibration.is_due(work.layout, work.initial)
    np.testing.assert_array_equal(work.initial, again)
    assert (work.initial != work.untrained).mean() > 0.5


# ---- a model to start from -------------------------------------------------------------------


def test_a_run_starts_from_the_model_of_a_file(tmp_path: Path) -> None:
    bias = np.arange(10, dtype=np.float32)
    ranges = {
        "input.range": np.array([0, 1], np.float32),
        "relu1.range": np.array([0, 3], np.float32),
    }
    start = saved(tmp_path, **{"linear2.bias": bias}, **ranges)
    work = Workload.of(ALL_INT8.override(start))
    arrays = work.layout.unflatten(work.initial)
    np.testing.assert_array_equal(arrays["linear2.bias"], bias)
    np.testing.assert_array_equal(arrays["relu1.range"], [0, 3])


def test_ranges_that_the_file_lacks_are_observed_on_public_samples(tmp_path: Path) -> None:
    start = saved(tmp_path, **{"input.range": None, "relu1.range": None})
    with pytest.raises(ExperimentError, match="nobody can observe"):
        Workload.of(ALL_INT8.override(start))
    work = Workload.of(ALL_INT8.override(start, "data.public=64"))
    assert calibration.is_due(work.layout, work.untrained)
    assert not calibration.is_due(work.layout, work.initial)


def test_a_float32_fleet_leaves_the_ranges_of_a_file_alone(tmp_path: Path) -> None:
    start = saved(tmp_path)
    work = Workload.of(MIX.override("device.dtype='float32'", start))
    assert not work.layout.activations
    np.testing.assert_array_equal(work.initial, Workload.of(MIX).untrained[: work.layout.size])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"linear2.bias": None}, "it has no array 'linear2.bias'"),
        ({"linear2.bias": np.zeros(9, np.float32)}, r"'f4 9'; it must be 'f4 10'"),
        ({"linear2.bias": np.zeros(10)}, r"'f8 10'; it must be 'f4 10'"),
        ({"linear3.bias": np.zeros(10)}, r"the arrays linear3\.bias; the model has linear1"),
        ({"linear2.bias": np.full(10, np.nan, np.float32)}, "10 of 614 values are not finite"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    start = saved(tmp_path, **changed)
    with pytest.raises(ExperimentError, match=rf"model\.start = .*{told}"):
        Workload.of(MIX.override(start))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"model\.start = .* there is no file .*none\.npz"):
        Workload.of(MIX.override(f"model.start='{tmp_path / 'none.npz'}'"))


def test_a_device_observes_what_calibration_does() -> None:
    work = Workload.of(ALL_INT8.override("data.public=70"))
    x, y = work.task.public_samples(7)  # type: ignore[attr-defined]
    program = compile(work.net, loss=work.loss, ram="1MiB", batch=32, quantisable=True)
    learner = Learner(program)
    samples = learner.samples(x, y)
    asked = calibration.instruction(FedAvg(), RANGES, ())
    done = learner.visit(asked, work.untrained, lambda _: samples, Key())
    first = work.layout.activations[0].offset
    observed = np.frombuffer(done.values, np.float32)
    np.testing.assert_array_equal(observed, work.initial[first:])
    assert (done.ranges, done.samples) == (((0, 4),), 70)
    int8 = Learner(work.profiles[0].needed).visit(asked, work.untrained, lambda _: samples, Key())
    assert (int8.values, int8.ranges, int8.samples) == (b"", (), 70)


def test_an_int8_device_widens_the_ranges_that_activations_fill() -> None:
    work = Workload.of(ALL_INT8.override("data.public=70"))
    x, y = work.task.public_samples(7)  # type: ignore[attr-defined]
    learner = Learner(work.profiles[0].needed)
    samples, relu = learner.samples(x, y), work.layout.activations[1].offset
    found = []
    for greatest in (0.25, 40.0, 6.0):
        model = work.initial.copy()
        model[relu : relu + 2] = 0, greatest
        asked = calibration.instruction(FedAvg(), WIDER, ())
        done = learner.visit(asked, model, lambda _: samples, Key())
        found.append(np.frombuffer(done.values, np.float32)[3])
    assert found[0] == pytest.approx(0.5, rel=0.01)  # all of it is used: twice as far
    assert found[1] < 40.0  # most of it is not
    assert found[2] <= 6.0  # a relu6 ends there
    empty = learner.samples(x[:0], y[:0])
    with pytest.raises(DataError, match="no samples to observe"):
        learner.visit(asked, model, lambda _: empty, Key())


# ---- what int8 cannot carry out --------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("name='perfedavg', cohort=6, beta=0.05", "looks a step ahead"),
        ("name='fedridge', cohort=6", r"sums what linear2\.weight takes, which is int8"),
    ],
)
def test_rounds_that_int8_cannot_carry_out_are_refused(strategy: str, told: str) -> None:
    work = Workload.of(MIX.override(f"strategy={{{strategy}}}", "device.head='int8'"))
    with pytest.raises(StrategyError, match=told):
        assert work.profiles
