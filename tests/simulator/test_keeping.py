"""What simulated devices keep: beside a plain dictionary, in checkpoints, and what needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import ExperimentError, RunError
from fedtiny.experiment import Experiment
from fedtiny.simulator.keeping import MOST_BYTES, Keeping
from fedtiny.simulator.run import simulate
from fedtiny.values import CONTROL, LOCAL_VALUES, OWN_MODEL
from tests.simulator.experiments import SINE, run

FLEET = 9
WIDTHS = {LOCAL_VALUES: 2, CONTROL: 3}
visits = st.lists(
    st.tuples(
        st.sampled_from(sorted(WIDTHS)),
        st.lists(st.integers(0, FLEET - 1), unique=True, min_size=1).map(np.array),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=50)
@given(visits)
def test_each_device_has_what_its_last_committed_visit_left(
    history: list[tuple[str, np.ndarray, bool]],
) -> None:
    keeping = Keeping(FLEET, FLEET)
    kept: dict[int, dict[str, bytes]] = {device: {} for device in range(FLEET)}
    for at, (name, devices, again) in enumerate(history):
        values = (np.arange(devices.size * WIDTHS[name], dtype=np.float32) + 100 * at).reshape(
            devices.size, -1
        )
        keeping.keep(name, devices, values)
        assert all(keeping.of(device) == own for device, own in kept.items())
        keeping.commit()
        for device, row in zip(devices.tolist(), values, strict=True):
            kept[device][name] = row.tobytes()
        if again:
            keeping = Keeping.restored(FLEET, FLEET, {"model": values, **keeping.arrays()})
    everybody = np.arange(FLEET)
    for device, own in kept.items():
        assert keeping.of(device) == own
    for name in WIDTHS:
        known = keeping.known(name, everybody)
        assert known.tolist() == [name in kept[device] for device in range(FLEET)]
        if known.any():
            rows = keeping.values(name, everybody[known])
            assert [row.tobytes() for row in rows] == [
                kept[device][name] for device in everybody[known]
            ]


def test_nothing_is_allocated_for_devices_that_keep_nothing() -> None:
    keeping = Keeping(1_000_000, 1000)
    keeping.keep(CONTROL, np.array([999_999]), np.ones((1, 1000), np.float32))
    keeping.commit()
    assert sum(array.nbytes for array in keeping.arrays().values()) == 4 * 1000 + 8


def test_more_than_the_simulator_holds_is_refused_with_numbers() -> None:
    floats = 1 << 14
    keeping = Keeping(1 << 20, 1 << 16)
    row = np.zeros((1, floats), np.float32)
    keeping.keep(CONTROL, np.array([5]), row)  # exactly as much as there is room for
    assert 4 * floats * (1 << 16) == MOST_BYTES
    with pytest.raises(RunError, match=r"65,536 devices that each keep 32,768 floats \(control, own"
                       r"\) need 8,589,934,592 B; the simulator has 4,294,967,296 B"):  # fmt: skip
        keeping.keep(OWN_MODEL, np.array([5]), row)


# ---- whole runs ------------------------------------------------------------------------------


KEEPING: dict[str, Any] = SINE | {
    "model": {"build": "mlp", "widths": [1, 8, 1], "head": "local"},
    "strategy": {"name": "scaffold", "cohort": 6, "steps": 2, "beta": 0.02},
    "fleet": {"devices": 10, "held_out": 2, "threads": 1},
    "run": {"rounds": 5, "checkpoint_every": 2},
    "evaluate": {"own": {"lr": 0.02, "devices": "training"}},
}


@pytest.mark.parametrize(
    "settings",
    [[], ["strategy={name='ditto', cohort=6, beta=0.02}"],
     ["strategy={name='fedavg', cohort=6, beta=0.02, transforms=['feedback', 'topk:0.2']}"]],
    ids=["control and local values", "own models", "residuals"],
)  # fmt: skip
def test_a_run_that_is_resumed_goes_on_with_what_its_devices_have_kept(
    settings: list[str], tmp_path: Path
) -> None:
    experiment = Experiment.of(KEEPING).override(*settings)
    whole = simulate(experiment)

    class PowerCut(Exception):
        pass

    def cut(progress: Any) -> None:
        if progress.round == 3:
            raise PowerCut

    with pytest.raises(PowerCut):
        simulate(experiment, out=tmp_path, progress=cut)
    resumed = simulate(experiment, out=tmp_path, resume=True)
    assert resumed.history == whole.history
    assert resumed.summary == whole.summary


def test_devices_that_train_are_judged_with_what_they_have_kept() -> None:
    """The heads stay on their devices: a shared model without them could only guess."""
    settings = ["model={build='tests.simulator.experiments:personal_mlp'}",
                "data={source='label-skew-digits'}",
                "strategy={name='fedavg', cohort=8, beta=0.02}"]  # fmt: skip
    before, after = run(KEEPING, *settings).evaluations("own")
    assert (before["devices"], after["devices"]) == (8, 8)
    assert before["accuracy_before"] < 0.2 < 0.7 < after["accuracy_before"]


def test_there_must_be_devices_to_judge() -> None:
    held_out = ["evaluate.new.lr=0.1", "fleet.held_out=0"]
    Experiment.of(KEEPING).override("fleet.held_out=0")
    with pytest.raises(ExperimentError, match="nobody is held out to be evaluated"):
        Experiment.of(KEEPING).override(*held_out)
