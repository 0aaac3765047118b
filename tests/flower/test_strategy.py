"""Strategies of Flower's in our rounds. What peers call their pitfalls stands in test_pitfalls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.flower.child import Child
from fedtiny.flower.snapshot import restored
from fedtiny.flower.strategy import FlowerStrategy
from fedtiny.layout import Layout, Parameter
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Observed, Round, ServerOptimizer
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedopt import FedAdam, ServerAdam
from fedtiny.strategies.table import build
from fedtiny.testing import conformance
from fedtiny.values import EVALUATE, Transform, Update
from tests.flower.conftest import Make
from tests.flower.theirs import Counting, Remembering
from tests.harness.toys import FLEET, INITIAL, LAYOUT, WHOLE, Run

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

FEDAVG = {"build": "flwr.serverapp.strategy:FedAvg"}
_DP = {"strategy": FEDAVG, "noise_multiplier": 0.01, "num_sampled_clients": 4}

RUN: Mapping[str, Mapping[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5},
    "FedAdam": {"eta": 0.05},
    "FedAdagrad": {"eta": 0.05},
    "FedYogi": {"eta": 0.05},
    "FedProx": {"proximal_mu": 0.5},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.25},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "Bulyan": {},
    "QFedAvg": {"client_learning_rate": 0.1},
    "DifferentialPrivacyServerSideFixedClipping": {**_DP, "clipping_norm": 10.0},
    "DifferentialPrivacyServerSideAdaptiveClipping": {**_DP, "initial_clipping_norm": 1.0},
    "DifferentialPrivacyClientSideFixedClipping": {**_DP, "clipping_norm": 10.0},
    "DifferentialPrivacyClientSideAdaptiveClipping": {**_DP, "initial_clipping_norm": 1.0},
}
MEASURED = {"loss_sum_before": 6.0, "correct_before": 3.0, "count": 4.0}
REFUSED = {"FedXgbBagging", "FedXgbCyclic"}
CLIPS_ON_DEVICES = {name for name in RUN if "ClientSide" in name}


def told(updates: list[Update]) -> list[Update]:
    """The toys' updates with the measures of real visits."""
    return [
        replace(u, measures={"loss_sum": u.measures["loss_sum"], "steps": 1.0}) for u in updates
    ]


def finished(run: Run) -> Float32:
    while run.coordinator.rounds.phase != "done":
        run.round(told)
    return run.coordinator.model


def ran(strategy: FlowerStrategy, rounds: int = 3) -> Float32:
    return finished(Run(strategy, rounds))


def one_round(strategy: FlowerStrategy, updates: list[Update]) -> Float32:
    """The model after round 0 of these updates."""
    fitted = strategy.fitted(FLEET)
    state = calls.start(fitted, LAYOUT, INITIAL)
    model, _ = calls.finish(fitted, Round(0, 1), INITIAL, updates, state)
    return model


def updates_of(rows: np.ndarray, samples: list[int]) -> list[Update]:
    return [
        Update(d, d, 0, 0, samples[d], row.astype(np.float32).tobytes(), WHOLE)
        for d, row in enumerate(rows)
    ]


# ---- which of them run


def test_every_strategy_of_flowers_is_either_run_or_refused() -> None:
    from flwr.serverapp import strategy as theirs

    assert {*RUN} | REFUSED == {*theirs.__all__} - {"Strategy", "Result"}


@pytest.mark.parametrize("name", sorted({*RUN} - CLIPS_ON_DEVICES))
def test_it_runs_as_it_is_and_a_crash_after_every_update_changes_no_bit(
    make: Make, name: str
) -> None:
    strategy = make(name, RUN[name])
    crashing = Run(strategy)
    while crashing.coordinator.rounds.phase != "done":
        for update in told(crashing.updates()):
            crashing.coordinator.submit(crashing.now, [update])
            crashing.restart()
    whole = ran(strategy)
    assert np.isfinite(whole).all()
    assert whole.tobytes() != INITIAL.tobytes()
    assert crashing.coordinator.model.tobytes() == whole.tobytes()


test_it_keeps_the_laws_of_every_strategy = conformance(
    {"build": "flwr.serverapp.strategy:FedAdam", "cohort": 4, "beta": 0.1, "eta": 0.05}
)


def test_a_users_own_class_made_from_one_of_flowers_needs_no_word_of_that() -> None:
    made = build({"build": "tests.flower.theirs:Remembering", "cohort": 4, "beta": 0.1})
    assert isinstance(made, FlowerStrategy)
    made.child.close()


# ---- what it gives


def test_flowers_fedavg_is_ours(make: Make) -> None:
    ours = Run(FedAvg(cohort=4, beta=0.1)).finish()
    np.testing.assert_allclose(ran(make("FedAvg")), ours, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class BiasCorrected(FedAdam):
    """Ours with the step size that Flower's makes larger at first, as Adam does."""

    def server(self, round: Round) -> ServerOptimizer:
        n = round.t + 2  # Flower's first round is 1, and counts as the second step
        size = np.sqrt(1 - self.beta_2**n) / (1 - self.beta_1**n)
        return ServerAdam(self.server_lr * size, self.beta_1, self.tau, self.beta_2)


def test_flowers_fedadam_is_ours_to_a_millionth_of_a_unit(make: Make) -> None:
    # v begins at 0 there and at tau^2 here: no difference where tau is small.
    theirs = ran(make("FedAdam", {"eta": 0.05, "tau": 1e-7}), rounds=5)
    ours = BiasCorrected(cohort=4, beta=0.1, server_lr=0.05, tau=1e-7)
    np.testing.assert_allclose(theirs, Run(ours, 5).finish(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "beta_1"), [("FedAdagrad", "fedadagrad", 0.0), ("FedYogi", "fedyogi", 0.9)]
)
def test_flowers_other_optimisers_are_ours_as_well(
    make: Make, theirs: str, ours: str, beta_1: float
) -> None:
    alike = {"cohort": 4, "beta": 0.1, "server_lr": 0.05, "beta_1": beta_1, "tau": 1e-7}
    model = ran(make(theirs, {"eta": 0.05, "tau": 1e-7}), rounds=5)
    expected = Run(build({"name": ours, **alike}), 5).finish()
    np.testing.assert_allclose(model, expected, rtol=0, atol=1e-6)


def test_flowers_krum_takes_the_update_that_is_nearest_to_the_others(make: Make) -> None:
    rows = INITIAL + np.array([[0.1], [0.11], [0.12], [0.115], [50.0]]) * np.ones(6)
    model = one_round(make("Krum", {"num_malicious_nodes": 1}, cohort=5), updates_of(rows, [1] * 5))
    np.testing.assert_array_equal(model, rows[3].astype(np.float32))


def test_flowers_wrapper_adds_the_noise_of_the_run_and_of_no_other(make: Make) -> None:
    noisy = make("DifferentialPrivacyServerSideFixedClipping", {**_DP, "clipping_norm": 10.0})
    rows = INITIAL + np.full((4, 1), 1e-6)  # of a delta of 0 Flower cannot tell the norm
    first, again = (one_round(noisy, updates_of(rows, [1] * 4)) for _ in range(2))
    std = 0.01 * 10.0 / 4
    assert 0 < np.abs(first - INITIAL).max() < 4 * std
    np.testing.assert_array_equal(first, again)
    other = replace(FLEET, seed=1)
    fitted = noisy.fitted(other)
    state = calls.start(fitted, LAYOUT, INITIAL)
    changed, _ = calls.finish(fitted, Round(0, 1), INITIAL, updates_of(rows, [1] * 4), state)
    assert changed.tobytes() != first.tobytes()


def test_what_nobody_trains_stays_as_it_is(make: Make) -> None:
    trained = dict.fromkeys(range(6), ((0, 2), (3, 5))) | {1: ((0, 2),)}
    run = Run(make("FedAdam", {"eta": 0.1}), trained=trained)
    model = run.finish()
    assert (model[2], model[5]) == (INITIAL[2], INITIAL[5])
    assert model[0] != INITIAL[0]


def test_what_one_device_does_not_train_counts_as_not_moved(make: Make) -> None:
    part = Update(0, 0, 0, 0, 1, (INITIAL[:2] + 1).astype(np.float32).tobytes(), ((0, 2),))
    whole = Update(1, 1, 0, 0, 1, (INITIAL + 1).astype(np.float32).tobytes(), WHOLE)
    moved = one_round(make("FedAvg", cohort=2), [part, whole]) - INITIAL
    np.testing.assert_allclose(moved, [1, 1, 0.5, 0.5, 0.5, 0.5], atol=1e-6)


# ---- what it asks


def test_the_proximal_term_of_fedprox_is_that_of_the_devices(make: Make) -> None:
    fitted = make("FedProx", {"proximal_mu": 0.25}, steps=3).fitted(FLEET)
    asked = calls.ask(fitted, Round(0, 2), calls.start(fitted, LAYOUT, INITIAL), LAYOUT)
    assert asked.phases[0].sgd.prox == 0.25
    assert (asked.phases[0].lr, asked.phases[0].steps) == (0.1, 3)


def test_clipping_on_the_devices_becomes_a_transform_that_follows_the_strategy(make: Make) -> None:
    name = "DifferentialPrivacyClientSideAdaptiveClipping"
    fitted = make(name, RUN[name]).fitted(FLEET)
    state = calls.start(fitted, LAYOUT, INITIAL)
    (clip,) = fitted.ask(Round(0, 2), state).transforms
    assert clip == Transform("clip", 1.0)
    # All four have clipped: their deltas have the norm 1.
    moved = INITIAL + np.full(6, 1 / np.sqrt(6), np.float32)
    updates = updates_of(np.tile(moved, (4, 1)), [1] * 4)
    model, state = calls.finish(fitted, Round(0, 2), INITIAL, updates, state)
    np.testing.assert_allclose(model, moved, atol=0.02)
    (clip,) = fitted.ask(Round(1, 2), state).transforms
    # Andrew et al.: norm * exp(-0.2 * (share that clipped - 0.5)), with noise of 0.2 / 4 in it.
    assert np.log(clip.figure) == pytest.approx(-0.2 * (1 - 0.5), abs=0.2 * 4 * 0.05)


def test_every_k_rounds_it_evaluates_and_aggregates_what_was_measured(make: Make) -> None:
    strategy = make("FedAvg", evaluate_every=2).fitted(FLEET)
    state = calls.start(strategy, LAYOUT, INITIAL)
    kinds = [strategy.ask(Round(t, 6), state).kind for t in range(6)]
    assert [t for t, kind in enumerate(kinds) if kind == EVALUATE] == [2, 5]
    seen = Observed(None, dict(MEASURED))
    model, state = calls.observe(strategy, Round(2, 6), INITIAL, seen, state)
    assert model is INITIAL
    assert strategy.telemetry(Round(2, 6), model, state) == {"loss": 1.5, "accuracy": 0.75}


def test_an_evaluation_belongs_to_the_round_before_it_as_flower_counts(make: Make) -> None:
    strategy = make("tests.flower.theirs:Counting", evaluate_every=2).fitted(FLEET)
    updates = updates_of(np.tile(INITIAL + 1, (4, 1)), [1] * 4)
    state, seen = calls.start(strategy, LAYOUT, INITIAL), Observed(None, dict(MEASURED))
    for t in range(6):
        if strategy.ask(Round(t, 6), state).kind == EVALUATE:
            _, state = calls.observe(strategy, Round(t, 6), INITIAL, seen, state)
        else:
            _, state = calls.finish(strategy, Round(t, 6), INITIAL, updates, state)
    left = restored(strategy._known(state)["snapshot"], Counting())
    train, evaluate = "train", "evaluate"
    assert vars(left)["seen"] == [
        [train, 1], [train, 2], [evaluate, 2], [train, 3], [train, 4], [evaluate, 4],
    ]  # fmt: skip


# ---- what it remembers


def test_attributes_of_every_kind_are_remembered(make: Make) -> None:
    strategy = make("tests.flower.theirs:Remembering", {"share": 0.25})
    run = Run(strategy)
    finished(run)
    known = run.strategy._known(run.coordinator.strategy_state)  # type: ignore[attr-defined]
    left = restored(known["snapshot"], Remembering(0.25))
    assert isinstance(left, Remembering)
    assert {n: word for n, (word, _) in left.rounds.items()} == dict.fromkeys((1, 2, 3), "done")
    assert left.digest == b"\1\2\3"
    np.testing.assert_array_equal(left.path[-1].astype(np.float32), run.coordinator.model)
    assert left.last is not None
    assert left.last["fc.weight"].numpy().shape == (2, 2)


def test_an_attribute_that_no_snapshot_can_hold_is_named(make: Make) -> None:
    strategy = make("tests.flower.theirs:Guarding").fitted(FLEET)
    with pytest.raises(StrategyError, match=r"before round 0: Guarding\.guard\.lock is a .*lock.*"):
        calls.start(strategy, LAYOUT, INITIAL)


def test_a_state_of_another_flwr_or_that_is_damaged_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = make("FedAvg").fitted(FLEET)
    ((name, kept),) = calls.start(strategy, LAYOUT, INITIAL).items()
    damaged = np.array(kept)
    damaged[-1] ^= 1
    with pytest.raises(StrategyError, match="digest"):
        strategy.ask(Round(0, 1), {name: damaged})
    monkeypatch.setattr("fedtiny.flower.strategy._flwr", lambda: "9.9.0")
    with pytest.raises(StrategyError, match=r"is of flwr 1\.41.*and this is 9\.9\.0"):
        strategy.ask(Round(0, 1), {name: kept})


def test_a_strategy_is_a_value(make: Make) -> None:
    assert make("Krum", {"num_malicious_nodes": 1}) == make("Krum", {"num_malicious_nodes": 1})
    assert len({make("Krum"), make("Krum")}) == 1
    assert make("Krum") != make("Krum", {"num_malicious_nodes": 1})


# ---- how it is written


def written(name: str, **said: Any) -> FlowerStrategy:
    """As an experiment has it in its section [strategy]."""
    made = build({"build": f"flwr.serverapp.strategy:{name}", **said})
    assert isinstance(made, FlowerStrategy)
    made.child.close()
    return made


def test_what_is_not_ours_is_the_constructors() -> None:
    ours = {"cohort": 7, "beta": 0.2, "steps": 3, "transforms": ["randomk:0.5", "int8"]}
    made = written("Krum", **ours, num_malicious_nodes=2)
    assert (made.cohort, made.beta, made.steps) == (7, 0.2, 3)
    assert made.transforms == ("randomk:0.5", "int8")
    assert made.spec["arguments"] == {"num_malicious_nodes": 2}


def test_a_misspelt_argument_is_told_with_what_it_may_have_meant() -> None:
    with pytest.raises(StrategyError, match=r"Krum: num_malicious = 1 .*'num_malicious_nodes'"):
        written("Krum", num_malicious=1)
    with pytest.raises(StrategyError, match=r"cohrt = 3 .*did you mean 'cohort'"):
        written("Krum", cohrt=3)


def test_an_argument_of_another_type_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"cohort = 'ten' is of type str"):
        written("Krum", cohort="ten")


def test_an_argument_that_a_constructor_refuses_is_told() -> None:
    with pytest.raises(StrategyError, match=r"FedTrimmedAvg: ValueError: `beta` must be in"):
        written("FedTrimmedAvg", arguments={"beta": 0.7})


def test_a_name_that_both_sides_have_must_say_whose_it_is() -> None:
    with pytest.raises(StrategyError, match=r"beta is what the devices train with.*arguments = "):
        written("FedTrimmedAvg", beta=0.2)
    assert written("FedTrimmedAvg", beta=0.1, arguments={"beta": 0.2}).beta == 0.1


def test_a_class_that_does_not_exist_is_told_with_its_neighbours() -> None:
    with pytest.raises(StrategyError, match="has no 'Krumm'; did you mean 'Krum'"):
        written("Krumm")


def test_a_strategy_of_the_old_kind_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"must give a strategy of flwr.serverapp.strategy"):
        build({"build": "flwr.server.strategy:FedAvg"})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_needs_code_on_the_devices_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(StrategyError, match=rf"{name} needs code of its own.*trees"):
        written(name)


def test_without_flwr_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedtiny.flower.child.find_spec", lambda name: None)
    with pytest.raises(StrategyError, match=r"pip install 'fedtiny\[flower\]'"):
        build(FEDAVG)


# ---- what goes wrong in a round


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Demanding", r"tells its devices local-epochs, which takes code.*proximal-mu"),
        ("Talking", r"sends messages of its own"),
        ("LookingAhead", r"sends other arrays than the model"),
    ],
)
def test_what_devices_cannot_do_is_told_before_the_first_round(
    make: Make, name: str, why: str
) -> None:
    strategy = make(f"tests.flower.theirs:{name}").fitted(FLEET)
    state = calls.start(strategy, LAYOUT, INITIAL)
    with pytest.raises(StrategyError, match=rf"{name} in round 0 of 2: it {why}|{name} {why}"):
        calls.ask(strategy, Round(0, 2), state, LAYOUT)


def test_a_model_of_another_shape_is_told_with_both_shapes(make: Make) -> None:
    with pytest.raises(StrategyError, match=r"fc\.weight \(2, 3\).*fc\.weight \(2, 2\)"):
        ran(make("tests.flower.theirs:Misshaping"))


def test_what_is_no_array_of_numbers_is_told_with_its_place(make: Make) -> None:
    with pytest.raises(StrategyError, match=r"Spelling in round 0 .*fc\.weight is a numpy.ndarray"):
        ran(make("tests.flower.theirs:Spelling"))


def test_an_answer_that_nobody_waited_for_is_not_that_to_the_next_question(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = replace(make("FedAvg"), child=Child())
    with monkeypatch.context() as patch:
        patch.setattr("fedtiny.flower.child.read_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ran(impatient)
    assert ran(impatient).tobytes() == ran(make("FedAvg")).tobytes()


def interrupted(stream: object) -> bytes:
    raise KeyboardInterrupt


def test_a_process_that_dies_is_started_again_and_asked_the_same(
    make: Make, tmp_path: Path
) -> None:
    note = str(tmp_path / "died")
    died = ran(replace(make("tests.flower.theirs:Dying", {"note": note}), child=Child()))
    assert Path(note).exists()
    assert died.tobytes() == ran(make("FedAvg")).tobytes()


def test_a_process_that_always_dies_is_told_and_the_run_can_go_on(make: Make) -> None:
    dying = replace(make("tests.flower.theirs:Dying"), child=Child())
    run = Run(dying)
    run.round(told)
    with pytest.raises(StrategyError, match=r"Dying in round 1 of 3: .*ended twice"):
        run.round(told)
    run.strategy = make("FedAvg").fitted(FLEET)  # repaired
    run.restart()
    assert finished(run).tobytes() == ran(make("FedAvg")).tobytes()


# ---- its process


def test_a_run_itself_never_loads_flwr() -> None:
    code = "import sys, fedtiny.flower.strategy; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "fedtiny.flower.strategy" in loaded
    assert {"flwr", "ray"}.isdisjoint(loaded)


def test_a_class_of_the_users_own_loads_a_flwr_that_tells_nobody() -> None:
    code = """
from fedtiny.strategies.table import build
build({"build": "tests.flower.theirs:Remembering"}).child.close()
from flwr.supercore import telemetry
print(telemetry.FLWR_TELEMETRY_ENABLED)
"""
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "1"}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert told.stdout.split() == ["0"]


def test_what_a_strategy_prints_is_no_answer_and_fills_no_pipe(make: Make) -> None:
    chatting = make("tests.flower.theirs:Chatting")
    assert ran(chatting, rounds=1).tobytes() == ran(make("FedAvg"), rounds=1).tobytes()


def test_a_model_far_larger_than_a_pipe_is_aggregated(make: Make) -> None:
    layout = Layout.of([Parameter("w", (2**20,))])
    strategy = make("FedAvg", cohort=2).fitted(FleetFacts(layout=layout))
    model = np.zeros(2**20, np.float32)
    trained = [np.full(2**20, value, np.float32).tobytes() for value in (1.0, 2.0)]
    updates = [Update(d, d, 0, 0, 1, sent, ((0, 2**20),)) for d, sent in enumerate(trained)]
    state = calls.start(strategy, layout, model)
    after, _ = calls.finish(strategy, Round(0, 1), model, updates, state)
    assert np.all(after == 1.5)


def test_a_file_of_this_folder_hides_no_module_from_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uuid.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    child = Child()
    child.ask("check", spec={"reference": FEDAVG["build"], "arguments": {}}, said=[], ours=[])
    child.close()


def test_the_process_ends_with_the_strategy_and_nothing_is_left() -> None:
    child = Child()
    assert child.pid is None
    child.ask("check", spec={"reference": FEDAVG["build"], "arguments": {}}, said=[], ours=[])
    pid = child.pid
    assert pid is not None
    assert Path(f"/proc/{pid}").exists()
    del child
    assert not Path(f"/proc/{pid}").exists()


def test_the_process_asks_and_tells_nobody(child: Child) -> None:
    child.ask("check", spec={"reference": FEDAVG["build"], "arguments": {}}, said=[], ours=[])
    environment = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
    assert {b"FLWR_TELEMETRY_ENABLED=0", b"FLWR_DISABLE_UPDATE_CHECK=1"} <= {*environment}
    assert child.pid != os.getpid()


def test_a_layout_of_many_shapes_comes_back_as_it_went(make: Make) -> None:
    layout = Layout.of([Parameter("a", (3,)), Parameter("b.c", (2, 1, 4)), Parameter("d", (1,))])
    strategy = make("FedAvg", cohort=2).fitted(FleetFacts(layout=layout))
    model = np.arange(12, dtype=np.float32)
    updates = [
        Update(d, d, 0, 0, 1, (model * (d + 1)).astype(np.float32).tobytes(), ((0, 12),))
        for d in range(2)
    ]
    state = calls.start(strategy, layout, model)
    after, _ = calls.finish(strategy, Round(0, 1), model, updates, state)
    np.testing.assert_array_equal(after, model * 1.5)
