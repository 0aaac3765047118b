"""Devices that lie: what they send, and what becomes of the model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.errors import ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.experiment.schema import Attack
from fedtiny.simulator.attacks import Attackers
from fedtiny.simulator.run import Result, simulate
from fedtiny.simulator.simulation import DeviceForm, Simulation
from fedtiny.values import QUERY, SUPPORT

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64

KINDS = ("sign-flip", "scale", "label-flip", "collude")
TABLES: dict[str, Any] = {
    "seed": 2,
    "model": {"build": "mlp", "widths": [64, 16, 10]},
    "data": {"source": "label-skew-digits", "concentration": 100.0, "query_share": 0.5},
    "device": {"ram": "256KiB", "batch": 10},
    "strategy": {"name": "fedavg", "cohort": 14, "beta": 0.1, "steps": 8},
    "fleet": {"devices": 30, "held_out": 10, "profiles": {"pi-4": 0.5, "cortex-m4": 0.5}},
    "run": {"rounds": 25},
    "evaluate": {"shift": {"lr": 0.01}},
}
FLIP: dict[str, Any] = {"kind": "sign-flip", "share": 0.2, "scale": 6.0}
MEDIAN = {"name": "median", "cohort": 14, "beta": 0.1, "steps": 8}
DEVICES = np.array([3, 1, 8])
BASE = np.array([1.0, 2.0, -1.0], np.float32)
TRAINED = np.array([[1.5, 2.0, -1.0], [0.0, 2.0, 1.0], [1.0, 4.0, -3.0]], np.float32)


def attackers(kind: str, scale: float, run: int = 0) -> Attackers:
    return Attackers(run, Attack(kind, 0.5, scale), np.array([1, 8]))  # type: ignore[arg-type]


def experiment(**changes: Any) -> Experiment:
    return Experiment.of(TABLES | {"fleet": TABLES["fleet"] | {"threads": 1}} | changes)


def accuracy(result: Result) -> float:
    return float(result.evaluations("shift")[-1]["accuracy_before"])


# ---- what attackers send ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "scale", "sent"),
    [  # deltas of the attackers: (-1, 0, 2) and (0, 2, -2)
        ("sign-flip", 1.0, [[2.0, 2.0, -3.0], [1.0, 0.0, 1.0]]),
        ("sign-flip", 2.0, [[3.0, 2.0, -5.0], [1.0, -2.0, 3.0]]),
        ("scale", 10.0, [[-9.0, 2.0, 19.0], [1.0, 22.0, -21.0]]),
        ("label-flip", 1.0, TRAINED[1:].tolist()),
    ],
)
def test_attackers_change_their_deltas_and_the_honest_send_what_they_have_trained(
    kind: str, scale: float, sent: list[list[float]]
) -> None:
    found = attackers(kind, scale).falsified(DEVICES, TRAINED, BASE)
    assert found.tolist() == [TRAINED[0].tolist(), *sent]


def test_a_gradient_is_a_delta_already() -> None:
    found = attackers("sign-flip", 2.0).falsified(DEVICES, TRAINED, None)
    assert found.tolist() == [TRAINED[0].tolist(), *(-2 * TRAINED[1:]).tolist()]


def test_who_colludes_sends_the_same_delta_of_the_norm_that_is_asked_for() -> None:
    def deltas(run: int, devices: Int64, values: Float32) -> Float32:
        return attackers("collude", 3.0, run).falsified(devices, values, BASE) - BASE

    one, two, three = deltas(5, DEVICES, TRAINED)
    np.testing.assert_array_equal(one, TRAINED[0] - BASE)
    np.testing.assert_array_equal(two, three)
    np.testing.assert_allclose(np.linalg.norm(two), 3.0, rtol=1e-5)
    np.testing.assert_array_equal(deltas(5, DEVICES[2:], TRAINED[2:])[0], three)  # also alone
    assert (deltas(6, DEVICES, TRAINED)[1] != two).any()


@cache
def flipped() -> tuple[Simulation, list[int]]:
    """A simulation with wrong labels, and who attacks."""
    attack = {"kind": "label-flip", "share": 0.2}
    simulation = Simulation(experiment(attack=attack), "columns", lambda row: None)
    assert simulation.attackers is not None
    return simulation, simulation.attackers.devices.tolist()


@pytest.mark.parametrize("part", [SUPPORT, QUERY])
def test_attackers_take_a_class_for_its_opposite_and_nobody_else_does(part: str) -> None:
    simulation, liars = flipped()
    assert simulation.attackers is not None
    true, task = simulation.work.task, simulation.attackers.misled(simulation.work.task)
    devices = np.arange(30)
    table = task.native(2, 0, devices)
    for device in devices.tolist():
        (x, label), (seen_x, seen) = (t.samples(2, 0, device, part) for t in (true, task))
        np.testing.assert_array_equal(x, seen_x)
        np.testing.assert_array_equal(seen, 9 - label if device in liars else label)
        np.testing.assert_array_equal(table.samples(device, part)[1], seen)  # type: ignore[call-arg,arg-type]


# ---- who attacks -----------------------------------------------------------------------------


def test_a_share_of_those_that_train_is_drawn_by_the_seed() -> None:
    training = np.arange(4, 54)

    def drawn(seed: int) -> list[int]:
        found = Attackers.of(experiment(seed=seed, attack=FLIP), training)
        assert found is not None
        return list(found.devices.tolist())

    assert len(drawn(1)) == 10  # a fifth of fifty
    assert drawn(1) == sorted(set(drawn(1)) & set(training.tolist()))
    assert drawn(1) == drawn(1) != drawn(2)


def test_without_a_section_nobody_attacks() -> None:
    assert Attackers.of(experiment(), np.arange(9)) is None


def test_a_share_of_nobody_is_refused() -> None:
    tables = experiment(attack=FLIP | {"share": 0.02})
    with pytest.raises(ExperimentError, match=r"attack.share = 0.02 of the 20 .* is nobody"):
        Attackers.of(tables, np.arange(20))


def test_labels_have_no_size() -> None:
    with pytest.raises(ExperimentError, match=r"attack.scale is for the deltas"):
        experiment(attack={"kind": "label-flip", "share": 0.2, "scale": 2.0})


def test_wrong_labels_take_labels() -> None:
    sine = {"model": {"build": "sine_mlp"}, "data": {"source": "sine"}}
    tables = experiment(**sine, attack={"kind": "label-flip", "share": 0.2})
    with pytest.raises(ExperimentError, match=r"attack.kind = 'label-flip' takes data with labels"):
        Simulation(tables, "columns", lambda row: None)


@pytest.mark.parametrize("attack", [FLIP, {"kind": "label-flip", "share": 0.2}])
def test_an_attack_changes_the_digest_and_survives_being_written_down(
    attack: dict[str, Any],
) -> None:
    attacked = experiment(attack=attack)
    assert attacked.digest != experiment().digest
    assert Experiment.parse(attacked.to_toml()).attack == attacked.attack == Attack(**attack)


# ---- what becomes of the model ---------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_cohorts_and_single_devices_lie_alike(kind: str, strategy: str) -> None:
    attack = {"kind": kind, "share": 0.3} | ({} if kind == "label-flip" else {"scale": 2.0})
    tables = experiment(
        strategy=TABLES["strategy"] | {"name": strategy}, attack=attack, run={"rounds": 2}
    )
    forms: tuple[DeviceForm, DeviceForm] = ("columns", "objects")
    columns, objects = (simulate(tables, devices=form) for form in forms)
    assert columns.history == objects.history
    assert columns.model.tobytes() == objects.model.tobytes()
    honest = simulate(experiment(strategy=tables.strategy, run={"rounds": 2}))
    assert honest.model.tobytes() != columns.model.tobytes()


def test_sign_flippers_ruin_the_mean_and_hardly_move_multikrum() -> None:
    clean, ruined = simulate(experiment()), simulate(experiment(attack=FLIP))
    assert accuracy(clean) > 0.85
    assert accuracy(ruined) < 0.5
    strategy = MEDIAN | {"name": "multikrum", "byzantine": 4}
    kept = simulate(experiment(attack=FLIP, strategy=strategy))
    assert accuracy(kept) > accuracy(clean) - 0.03


def test_quarantine_shuts_out_the_liars_alone() -> None:
    simulation = Simulation(
        experiment(attack=FLIP, strategy=MEDIAN | {"quarantine": 99}, run={"rounds": 12}),
        "columns",
        lambda row: None,
    )
    granted: list[set[int]] = []
    instruct = simulation.sessions.instruct

    def noted(devices: Int64, *rest: Any) -> None:
        granted[-1].update(devices.tolist())
        instruct(devices, *rest)

    simulation.sessions.instruct = noted  # type: ignore[method-assign,assignment]
    rows = []
    while True:
        granted.append(set())
        if not (row := simulation.step()):
            break
        rows.append(row)
    assert simulation.attackers is not None
    liars = set(simulation.attackers.devices.tolist())
    assert rows[-1]["telemetry"] == {"barred": len(liars)}
    assert all(devices & liars for devices in granted[:3])
    assert not granted[11] & liars


def test_an_attacked_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    strategy = MEDIAN | {"quarantine": 99}
    whole = simulate(experiment(attack=FLIP, strategy=strategy, run={"rounds": 8}))
    tables = experiment(attack=FLIP, strategy=strategy, run={"rounds": 8, "checkpoint_every": 5})
    folder = tmp_path / "run"
    stop_after(tables, folder, 6)
    resumed = simulate(tables, out=folder, resume=True)
    assert resumed.model.tobytes() == whole.model.tobytes()
    assert resumed.history == whole.history


def stop_after(tables: Experiment, folder: Path, rounds: int) -> None:
    """Run into an error after so many rounds."""

    def stop(progress: Any) -> None:
        if progress.round == rounds:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        simulate(tables, out=folder, progress=stop)
