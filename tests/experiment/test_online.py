"""``[online]`` of an experiment: what it says, what contradicts, and what it comes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedtiny.errors import ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.experiment.explain import explain
from fedtiny.experiment.online import Cost, Scores, summary
from fedtiny.experiment.schema import Online
from fedtiny.experiment.workload import Workload

TEXT = """\
seed = 2
[model]
build = "digits_mlp"
[data]
source = "label-skew-digits"
[strategy]
name = "fedavg"
cohort = 3
beta = 0.1
[fleet]
devices = 8
held_out = 3
[run]
rounds = 2

[online]
samples = 60
lr = 0.02
drift = "rotate:90"
drift_begins = 20

[online.always]

[online.rate]
gate = "error"
threshold = 0.25
window = 8
"""
EXPERIMENT = Experiment.parse(TEXT, "streams.toml")


# ---- reading ---------------------------------------------------------------------------------


def test_a_name_takes_the_keys_of_the_section_and_changes_some() -> None:
    always = Online(samples=60, lr=0.02, drift="rotate:90", drift_begins=20)
    assert EXPERIMENT.online["always"] == always
    rate = EXPERIMENT.online["rate"]
    assert (rate.gate, rate.threshold, rate.window, rate.samples) == ("error", 0.25, 8, 60)


def test_without_a_name_there_is_one_stream() -> None:
    alone = Experiment.parse(TEXT[: TEXT.index("[online.always]")])
    assert alone.online == {"online": EXPERIMENT.online["always"]}


def test_every_value_is_written_down_and_read_again() -> None:
    again = Experiment.of(EXPERIMENT.to_json())
    assert again.online == EXPERIMENT.online
    assert again.digest == EXPERIMENT.digest
    assert Experiment.parse(EXPERIMENT.to_toml()).digest == EXPERIMENT.digest


def test_an_experiment_without_streams_says_nothing_of_them() -> None:
    assert "online" not in Experiment.parse(TEXT[: TEXT.index("[online]")]).to_json()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("online.drift='blur'", "online.drift = 'blur' is not a change of the inputs"),
        ("online.always.drift='rotate'", "rotate needs degrees"),
        ("online.always.gate='entropy'", "'always' or 'never' or 'confidence' or 'error'"),
        ("online.always.gate='error'", "the gate 'error' needs a threshold from 0 to 1"),
        ("online.rate.threshold=1.5", "online.rate.threshold = 1.5 is not a number from 0 to 1"),
        ("online.always.threshold=0.5", "threshold and window are for the gates 'confidence'"),
        ("online.always.mix=[0, 0]", "is not a list of weights >= 0, one above"),
        ("online.always.drift_ends=19", "a drift from sample 20 to 19 does not lie"),
        ("online.always.samples=20", "within a stream of 20 samples"),
        ("online.rat.size=3", "unknown key 'online.rat.size'"),
        ("fleet.held_out=0", "nobody is held out to meet the stream of online.always"),
        ("online=3", "online = 3 must be a table [online]"),
    ],
)
def test_what_contradicts_is_told(setting: str, told: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        EXPERIMENT.override(setting)
    assert told in str(refused.value)


def test_a_line_that_is_wrong_is_named() -> None:
    with pytest.raises(ExperimentError, match=r"streams.toml, line 19: online.drift = 'blur'"):
        Experiment.parse(TEXT.replace("rotate:90", "blur"), "streams.toml")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lr = 0.02", "online.always.lr is missing; give it a number > 0"),
        ("samples = 60", "online.always.samples is missing; give it an integer >= 1"),
        ('drift = "rotate:90"', "online.always drifts to nothing; give it a drift, a mix, or both"),
    ],
)
def test_what_a_stream_needs_must_be_given(line: str, told: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        Experiment.parse(TEXT.replace(line, ""))
    assert told in str(refused.value)


def test_who_never_takes_a_step_needs_no_learning_rate() -> None:
    never = TEXT.replace("lr = 0.02\n", "").replace("[online.always]", "gate = 'never'")
    assert Experiment.parse(never[: never.index("[online.rate]")]).online["online"].lr is None


# ---- what does not suit the data -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["model.build='sine_mlp'", "data={source='sine'}", "online.drift='noise:0.1'"],
            "the gate 'error' looks at classes, and the data are a regression; take 'always'",
        ),
        (
            ["model.build='sine_mlp'", "data={source='sine'}", "online.rate.gate='never'",
             "online.rate={mix=[1]}"],
            "1 weights for data of no classes",
        ),
        (["online.always.mix=[1, 1]"], "2 weights for data of 10 classes; give one a class"),
    ],
)  # fmt: skip
def test_a_stream_that_does_not_suit_the_data_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        Workload.of(EXPERIMENT.override(*settings))
    assert told in str(refused.value)
    assert "online." in str(refused.value)


def test_only_images_can_be_turned() -> None:
    flat = EXPERIMENT.override(
        "model={build='mlp', widths=[2, 4, 2]}",
        "data={source='tests.experiment.test_online:Points'}",
    )
    with pytest.raises(ExperimentError, match=r"online.always.drift: 'rotate' turns square images"):
        Workload.of(flat)


class Points:
    """Two inputs, two classes."""

    features, outputs, classes = 2, 2, 2

    def samples(self, run: int, round: int, device: int, part: str) -> tuple[Any, Any]:
        x = np.arange(8, dtype=np.float32).reshape(4, 2) + device
        return x, np.array([0, 1, 0, 1], np.int32)


# ---- what it comes to ------------------------------------------------------------------------


def test_the_figures_are_means_over_devices() -> None:
    scores = Scores(
        met=np.array([[1, 1, 0, 1], [1, 0, 0, 0]], float),
        adapted=np.array([[0, 0, 1, 1], [0, 0, 0, 1]], bool),
        first_before=np.array([0.9, 0.7]), first_after=np.array([0.6, 0.6]),
        new_before=np.array([0.1, 0.3]), new_after=np.array([0.8, 0.8]),
        diverged=np.array([False, True]),
    )  # fmt: skip
    cost = Cost(np.array([100.0, 200.0]), np.array([0.1, 0.4]), np.array([1.0, 8.0]))
    asked = Online(samples=4, lr=0.1, drift="invert", drift_begins=2)
    row = summary(asked, scores, cost, labelled=True)
    rounded = {k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()}
    half = round(1.959964 * 0.1, 9)  # of two devices: 1.96 * |difference| / 2
    expected = {
        "gate": "always", "devices": 2, "samples": 4, "measure": "accuracy",
        "accuracy_before_drift": 0.75, "accuracy_from_drift": 0.25,  # 1 and 1/2; 1/2 and 0
        "accuracy_first_before": 0.8, "accuracy_first_before_ci": half,
        "accuracy_first_after": 0.6, "accuracy_first_after_ci": 0.0,
        "accuracy_new_before": 0.2, "accuracy_new_after": 0.8,
        "forgetting": 0.2, "forgetting_ci": half,  # 0.3 and 0.1
        "adapted": 0.375, "steps": 1.5, "steps_saved": 2.5,
        "adaptation_macs": 200.0, "saved_macs": 400.0,  # (2 * 100 + 1 * 200) / 2, ...
        "adaptation_s": 0.3, "adaptation_j": 5.0, "saved_j": 13.0,
        "window_samples": 1, "accuracy_curve": [1.0, 0.5, 0.0, 0.5],
        "adapted_curve": [0.0, 0.0, 0.5, 1.0], "diverged": 1,
    }  # fmt: skip
    assert {key: rounded[key] for key in expected} == expected


def test_of_a_regression_forgetting_is_what_the_loss_has_risen_by() -> None:
    one, flag = np.ones(1), np.zeros((1, 3), bool)
    scores = Scores(np.ones((1, 3)), flag, 2 * one, 5 * one, one, one, flag[0, :1])
    row = summary(
        Online(samples=3, lr=0.1, drift="invert"), scores, Cost(one, one, one), labelled=False
    )
    assert row["forgetting"] == 3.0
    assert row["loss_first_after"] == 5.0
    assert "loss_before_drift" not in row  # it drifts from the first sample on
    assert "diverged" not in row


def test_long_streams_are_told_in_forty_windows_at_most() -> None:
    met = np.tile((np.arange(90) < 45).astype(float), (2, 1))
    flags, some = np.zeros((2, 90), bool), np.ones(2)
    scores = Scores(met, flags, some, some, some, some, flags[:, 0])
    asked = Online(samples=90, lr=0.1, drift="invert", drift_begins=45)
    row = summary(asked, scores, Cost(some, some, some), labelled=True)
    assert row["window_samples"] == 3
    assert row["accuracy_curve"] == [1.0] * 15 + [0.0] * 15
    assert (row["accuracy_before_drift"], row["accuracy_from_drift"]) == (1.0, 0.0)


def test_explain_tells_what_a_prediction_and_a_step_take() -> None:
    work = Workload.of(EXPERIMENT)
    (row,) = explain(work)
    assert row.online is not None
    program = work.fit("cortex-m4", 1).needed
    profile, report = EXPERIMENT.profile("cortex-m4"), program.report()
    assert row.online.report == report
    assert row.online.prediction_s == report["macs_per_forward"] / profile.macs_per_s
    assert row.online.step_s == report["macs_per_step"] / profile.macs_per_s
    assert row.online.step_j == profile.active_w * row.online.step_s
    assert explain(Workload.of(Experiment.parse(TEXT[: TEXT.index("[online]")])))[0].online is None
