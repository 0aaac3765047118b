from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.fold import Total
from fedtiny.rounds.journal import Published, replay
from fedtiny.strategies.base import Contribution, Round, State
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.median import Median
from fedtiny.values import (
    ACCEPTED,
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    INVALID,
    LATE,
    SCORE,
    Instruction,
    Phase,
)
from tests.harness.toys import INITIAL, LAYOUT, Run, loss, samples, target, visit

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

DEVICES = range(4)


@dataclass(frozen=True, kw_only=True)
class Asking(FedAvg):
    """Asks what a test wants in round 0, and trains after it."""

    first: Instruction

    def ask(self, round: Round, state: State) -> Instruction:
        return self.first if round.t == 0 else super().ask(round, state)


def first_round(instruction: Instruction) -> tuple[Run, Published]:
    """A run that asked all four devices for this, and then trained in round 1."""
    run = Run(Asking(cohort=4, beta=0.1, first=instruction), rounds=2, devices=4)
    run.finish()
    assert run.journal is not None
    commit, _ = run.journal.commits()
    return run, commit


def unchanged(commit: Published) -> bool:
    return commit.version == 0 and not commit.changed and not commit.failed


def test_an_evaluation_adds_counts_and_sums_and_leaves_the_model() -> None:
    run, commit = first_round(Instruction(kind=EVALUATE))
    losses = [samples(d) * loss(INITIAL, d) for d in DEVICES]
    assert unchanged(commit)
    assert commit.measures.values() == {"loss_sum": math.fsum(losses), "count": 1 + 2 + 3 + 1}
    assert run.coordinator.rounds.version == 1


def test_a_calibration_merges_moments() -> None:
    _, commit = first_round(Instruction(kind=CALIBRATE))
    x = np.concatenate([target(d).astype(float) for d in DEVICES])
    got = commit.measures.values()
    assert unchanged(commit)
    assert (got["x.count"], got["x.min"], got["x.max"]) == (x.size, x.min(), x.max())
    assert got["x.sum"] == pytest.approx(x.sum())
    assert got["x.sum_squares"] == pytest.approx((x * x).sum())


def test_a_score_is_the_mean_loss_of_each_candidate() -> None:
    candidates = [INITIAL, target(0), target(1)]
    asked = Instruction(kind=SCORE, candidates=tuple(c.tobytes() for c in candidates))
    _, commit = first_round(asked)
    assert unchanged(commit)
    for i, candidate in enumerate(candidates):
        expected = np.mean([loss(candidate, d) for d in DEVICES])
        assert commit.measures.mean(f"loss_sum.{i}", "count") == pytest.approx(expected)


def test_training_rounds_keep_their_measures_too() -> None:
    run = Run(FedAvg(cohort=4, beta=0.1), rounds=1, devices=4)
    run.finish()
    assert run.journal is not None
    (commit,) = run.journal.commits()
    assert commit.measures.values()["count"] == 4


def test_a_gradient_needs_no_base() -> None:
    asked = Instruction(phases=(Phase(lr=1.0, steps=1),), returns=GRADIENT)
    run = Run(Asking(cohort=1, first=asked), rounds=1)
    (update,) = run.updates()
    gradient = np.full(6, 0.5, np.float32)
    run.coordinator.submit(1.0, [replace(update, values=gradient.tobytes())])
    assert run.coordinator.model.tolist() == (INITIAL + gradient).tolist()


@dataclass(frozen=True, kw_only=True)
class First(Median):
    """Takes the model of the first update that it is given."""

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        assert not isinstance(contribution, Total)
        first = next(iter(contribution))
        return np.frombuffer(bytes(first.values), np.float32), state


@pytest.mark.parametrize("arrival", list(permutations(range(3))))
def test_updates_are_handed_over_in_the_order_of_their_devices(arrival: tuple[int, ...]) -> None:
    run = Run(First(cohort=3, beta=0.1), rounds=1)
    answers = [run.coordinator.check_in(0.0, device) for device in arrival]
    updates = [visit(*answer, INITIAL) for answer in answers if not isinstance(answer, float)]
    for update in updates:
        run.coordinator.submit(1.0, [update])
    assert run.coordinator.model.tobytes() == updates[arrival.index(0)].values


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"values": np.full(6, np.nan, np.float32).tobytes()}, "6 of 6 values are not finite"),
        ({"values": np.full(6, 1e6, np.float32).tobytes()}, "the bound is 1024"),
        ({"values": bytes(20)}, "20 bytes of values, its coordinates need 24"),
        ({"ranges": ((0, 9),)}, "ranges"),
        ({"samples": 0}, "0 samples; an update is made of at least one"),
        ({"measures": {"loss_sum": math.nan}}, "loss_sum is nan"),
    ],
)
def test_a_bad_update_is_refused_with_the_reason_and_the_others_count(
    change: dict[str, object], why: str
) -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    bad, good = run.updates()
    receipts = run.coordinator.submit(1.0, [replace(bad, **change), good])  # type: ignore[arg-type]
    assert {r.lease: r.status for r in receipts} == {bad.lease: INVALID, good.lease: ACCEPTED}
    (refusal,) = (receipt for receipt in receipts if receipt.status == INVALID)
    assert why in refusal.detail
    assert run.coordinator.rounds.accepted == 1


def test_values_in_a_round_that_measures_are_refused() -> None:
    run = Run(Asking(cohort=1, first=Instruction(kind=EVALUATE)))
    (update,) = run.updates()
    (receipt,) = run.coordinator.submit(1.0, [replace(update, values=bytes(8))])
    assert receipt.status == INVALID
    assert receipt.detail == "8 bytes of values in a round that measures"


def test_a_failed_round_leaves_the_model_and_says_so() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1), rounds=1)
    run.rules = replace(run.rules, max_extensions=0)
    run.restart()
    update, _ = run.updates()
    run.coordinator.submit(1.0, [update])
    run.coordinator.tick(10.0)
    assert run.journal is not None
    (commit,) = run.journal.commits()
    assert (commit.failed, commit.changed, commit.leases.size) == (True, False, 0)
    assert run.coordinator.model.tobytes() == INITIAL.tobytes()
    assert run.coordinator.rounds.phase == "done"


def test_devices_that_ask_together_are_answered_by_name() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    assert run.coordinator.demand == 2
    work, later = run.coordinator.check_ins(1.0, np.array([3, 1, 5]))
    assert len(work) == 2
    assert run.coordinator.demand == 0
    for device, (lease, instruction) in work.items():
        assert (lease.device, lease.round, lease.version, lease.deadline) == (device, 0, 0, 11.0)
        assert instruction.kind == "train"
    assert later == 11.0  # when the leases end
    (device,) = {1, 3, 5} - work.keys()
    assert run.coordinator.check_in(1.0, device) == 11.0


def test_a_window_that_has_closed_wants_nobody() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    run.coordinator.check_in(1.0, 0)
    assert run.coordinator.demand == 1
    run.coordinator.tick(10.9)
    assert run.coordinator.demand == 1
    assert run.coordinator.check_in(11.0, 0) == 21.0  # the next window has opened: too late for 0
    assert run.coordinator.demand == 2


def test_an_update_with_a_flaw_is_refused_with_it() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    bad, good = run.updates()
    receipts = run.coordinator.submit(1.0, [bad, good], {bad.lease: "its base is another model"})
    assert {r.lease: (r.status, r.detail) for r in receipts} == {
        bad.lease: (INVALID, "its base is another model"),
        good.lease: (ACCEPTED, ""),
    }


def test_each_round_that_is_committed_is_told() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    told: list[tuple[Published, int]] = []
    run.coordinator.on_commit = lambda published, leases: told.append((published, leases))
    run.round()
    assert run.journal is not None
    assert list(run.journal.commits()) == [published for published, _ in told]
    assert [leases for _, leases in told] == [2]


def test_abandoning_a_round_uses_nothing_of_it() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1), rounds=2)
    update, _ = run.updates()
    run.coordinator.submit(1.0, [update])
    run.coordinator.abandon(2.0)
    assert run.journal is not None
    (commit,) = run.journal.commits()
    assert (commit.round, commit.failed, commit.changed, commit.leases.size) == (0, True, False, 0)
    assert run.coordinator.model.tobytes() == INITIAL.tobytes()
    (receipt,) = run.coordinator.submit(3.0, [update])
    assert receipt.status == LATE
    run.finish()
    with pytest.raises(RunError, match="the run is over after 2 rounds; none is open"):
        run.coordinator.abandon(9.0)


def test_a_model_that_is_published_is_the_next_version_and_replay_knows_it() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1), rounds=4)
    run.round()
    older = run.coordinator.model
    run.round()
    run.coordinator.publish(9.0, older)
    assert run.coordinator.rounds.version == 3
    assert run.coordinator.fetch(3) == older.tobytes()
    run.restart()
    assert run.coordinator.fetch(3) == older.tobytes()
    run.finish()
    run.coordinator.publish(99.0, INITIAL)  # after the last round, too
    assert run.journal is not None
    models = [model for model, _ in replay(run.journal, 4, run.strategy, LAYOUT, INITIAL)]
    commits = list(run.journal.commits())
    assert [(c.round, c.version, c.failed) for c in commits] == [
        (0, 1, False), (1, 2, False), (2, 3, True), (3, 4, False), (4, 5, True),
    ]  # fmt: skip
    assert models[3].tobytes() == models[1].tobytes() == older.tobytes()
    assert models[5].tobytes() == INITIAL.tobytes()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (INITIAL[:5], r"float32 \(5,\) is no model of this run, which has float32 \(6,\)"),
        (INITIAL.astype(np.float64), "float64"),
        (np.full(6, np.inf, np.float32), "not finite; publish another version"),
    ],
)
def test_what_is_no_model_is_not_published(model: Float32, why: str) -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    with pytest.raises(RunError, match=why):
        run.coordinator.publish(1.0, model)
    assert run.coordinator.rounds.round == 0


def test_only_the_current_model_can_be_fetched() -> None:
    run = Run(FedAvg(cohort=2, beta=0.1))
    assert run.coordinator.fetch(0) == INITIAL.tobytes()
    run.round()
    with pytest.raises(RunError, match="version 0 of the model is gone, the current one is 1"):
        run.coordinator.fetch(0)
    assert len(run.coordinator.fetch(1)) == 4 * LAYOUT.size
