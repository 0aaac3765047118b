"""Rounds of a model that is pruned: calibrated, scored, grown, and averaged under masks.

A toy strategy and toy devices: device d wants the model to be its own target, and its statistics
are rows of sines. What they send is compact, as a real device sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedtiny.errors import UpdateError
from fedtiny.fold import FoldRule, Total
from fedtiny.layout import STATISTICS, Layout, Parameter, Ranges
from fedtiny.masks import Mask
from fedtiny.rounds.content import STATISTICS_BOUND, OpenRound
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import Journal, MemoryJournal, Published, replay
from fedtiny.rounds.measures import Measures
from fedtiny.rounds.rules import Rules
from fedtiny.server.sealing import RoundKeys
from fedtiny.server.sqlite_journal import SqliteJournal
from fedtiny.server.storage import Database
from fedtiny.strategies.base import Contribution, Observed, Round, State, Strategy
from fedtiny.values import (
    ACCEPTED,
    CALIBRATE,
    GRADIENT,
    INVALID,
    SCORE,
    Instruction,
    Lease,
    Masks,
    Phase,
    Update,
)

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Float64

LAYOUT = Layout.of([
    Parameter("w", (4, 4)), Parameter("b", (2,)),
    Parameter("bn.mean", (2,), STATISTICS), Parameter("bn.var", (2,), STATISTICS),
])  # fmt: skip
SIZE, WHOLE = 22, ((0, 22),)
INITIAL: Float32 = np.cos(np.arange(22)).astype(np.float32)
DENSITIES = (0.25, 0.5)
DEVICES, ROUNDS, GROWN = 4, 7, 2
STEP = Phase(0.1, 1)


@dataclass(frozen=True, kw_only=True)
class Growing(Strategy):
    """Calibrates, scores, and then trains, with a growth in each third round."""

    cohort: int = 3

    def bucket(self, layout: Layout) -> int:
        return GROWN

    def start(self, layout: Layout, model: Float32) -> State:
        return _held(Mask.draw(layout, {"w": 8}, 3))

    def masks(self, state: State) -> Masks:
        """The sparser devices hold the first half of the live weights."""
        pool = Mask(SIZE, _bits(state))
        fewer = pool.moved(pool.coordinates(((0, 16),))[4:], ())
        return tuple(zip(DENSITIES, (fewer.blob, pool.blob), strict=True))

    def ask(self, round: Round, state: State) -> Instruction:
        if round.t == 0:
            return Instruction(CALIBRATE, candidates=(4, 9))
        if round.t == 1:
            rows = np.asarray(state["rows"], np.float32).tobytes()
            return Instruction(SCORE, candidates=(4, 9), statistics=rows)
        if round.t % 3 == 2:
            return Instruction(phases=(STEP,), returns=GRADIENT, grow=(("w", GROWN),))
        return Instruction(phases=(STEP,))

    def observe(
        self, round: Round, model: Float32, seen: Observed, state: State
    ) -> tuple[Float32, State]:
        if round.t == 0:
            assert seen.total is not None
            return model, {**state, "rows": seen.total.mean()}
        best = min((0, 1), key=lambda i: seen.measures[f"loss_sum.{i}"])
        chosen = np.asarray(state["rows"])[4 * best : 4 * best + 4]
        return _pruned(np.append(model[:18], chosen), state), state

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        assert isinstance(contribution, Total)
        mean = contribution.mean()
        if round.t % 3 == 2:
            pool = Mask(SIZE, _bits(state))
            grown = _largest(np.where(pool.bools, 0.0, mean))
            live = pool.coordinates(((0, 16),))
            dead = live[np.argsort(np.abs(model[live]), kind="stable")[:GROWN]]
            state = {**state, **_held(pool.moved(dead, grown))}
            mean = np.zeros(SIZE)
        return _pruned(model + mean, state), state


def _largest(values: Float32 | Float64) -> list[int]:
    """The coordinates that grow."""
    return sorted(np.argsort(-np.abs(values), kind="stable")[:GROWN].tolist())


def _held(mask: Mask) -> State:
    return {"pool": np.frombuffer(mask.bits, np.uint8)}


def _bits(state: State) -> bytes:
    return np.asarray(state["pool"]).tobytes()


def _pruned(model: Float64 | Float32, state: State) -> Float32:
    return np.where(Mask(SIZE, _bits(state)).bools, model, 0.0).astype(np.float32)


# --- devices


def target(device: int) -> Float32:
    return np.sin(np.arange(1, SIZE + 1) * (device + 1)).astype(np.float32)


def samples(device: int) -> int:
    return 1 + device % 3


def rows(device: int) -> Float32:
    return np.sin(np.arange(8) - device).astype(np.float32)


def mask_of(device: int, instruction: Instruction) -> Mask:
    blob = instruction.of(DENSITIES[device % 2]).mask
    assert blob is not None
    return Mask.read(blob, LAYOUT)


def visit(lease: Lease, instruction: Instruction, model: Float32) -> Update:
    d = lease.device
    update = Update(lease.id, d, lease.round, lease.version, samples(d))
    if instruction.kind == CALIBRATE:
        return replace(update, values=rows(d).tobytes(), ranges=((0, 8),))
    if instruction.kind == SCORE:
        given = np.frombuffer(instruction.statistics or b"", np.float32).reshape(2, 4)
        losses = np.abs(given - target(d)[:4]).sum(axis=1).tolist()
        return replace(update, measures={f"loss_sum.{i}": loss for i, loss in enumerate(losses)})
    mask, gradient = mask_of(d, instruction), model - target(d)
    if instruction.grow:
        top = _largest(np.where(mask.bools, 0.0, gradient))
        places = np.array(top, np.uint32).tobytes()
        return replace(update, values=gradient[top].tobytes(), ranges=WHOLE, places=places)
    moved = (model - np.float32(0.1) * gradient)[mask.bools]
    return replace(update, values=moved.tobytes(), ranges=WHOLE, mask=mask)


class Run:
    """All rounds over the devices; ``disturb`` is called before and after every update."""

    def __init__(
        self, journal: Callable[[], Journal], disturb: Callable[[Run], None] = lambda run: None
    ) -> None:
        self._journal, self.disturb, self.now = journal, disturb, 0.0
        self.rules = Rules(ROUNDS, Growing().cohort, 10.0, 3, seed=7)
        self.restart()

    def restart(self) -> None:
        """A new coordinator on what the journal has kept."""
        self.journal = self._journal()
        self.coordinator = Coordinator(
            self.rules, Growing(), LAYOUT, INITIAL, self.journal, DEVICES, self.now
        )
        self.journal.commit()

    def updates(self) -> list[Update]:
        answers = (self.coordinator.check_in(self.now, device) for device in range(DEVICES))
        work = [answer for answer in answers if not isinstance(answer, float)]
        self.journal.commit()
        return [visit(*each, self.coordinator.model) for each in work]

    def finish(self) -> list[Published]:
        """The commits of all rounds."""
        while self.coordinator.rounds.phase != "done":
            for update in self.updates():
                self.now += 1.0
                self.disturb(self)
                (receipt,) = self.coordinator.submit(self.now, [update])
                assert receipt.status == ACCEPTED, receipt.detail
                self.journal.commit()
                self.disturb(self)
        return list(self.journal.commits())


@pytest.fixture(params=["in memory", "in a database"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Journal]]:
    """Makes the journal that a coordinator begins with: each time what the last one has kept."""
    memory, databases = MemoryJournal(), list[Database]()

    def opened() -> Journal:
        if request.param == "in memory":
            return memory
        close()
        databases.append(Database(tmp_path))
        return SqliteJournal(databases[-1], b"01234567", RoundKeys(tmp_path / "keys"))

    def close() -> None:
        for database in databases:
            database.close()
        databases.clear()

    yield opened
    close()


def bits_of(commits: list[Published]) -> list[tuple[str, bytes, int]]:
    return [(c.digest, _bits(c.state), c.version) for c in commits]


# --- the rounds


def test_a_crash_around_every_update_changes_no_bit(journal: Callable[[], Journal]) -> None:
    undisturbed = Run(MemoryJournal).finish()
    assert bits_of(Run(journal, Run.restart).finish()) == bits_of(undisturbed)


def test_replay_rebuilds_every_model_and_mask(journal: Callable[[], Journal]) -> None:
    run = Run(journal)
    commits = run.finish()
    rebuilt = list(replay(run.journal, ROUNDS, Growing(), LAYOUT, INITIAL))
    assert len(rebuilt) == ROUNDS + 1
    assert rebuilt[-1][0].tobytes() == run.coordinator.model.tobytes()
    assert [_bits(state) for _, state in rebuilt[1:]] == [_bits(c.state) for c in commits]
    # Calibrated, scored (a model of its own), and five that a total makes.
    assert [c.version for c in commits] == [0, 1, 2, 3, 4, 5, 6]
    assert [c.total is not None for c in commits] == [False, False] + [True] * 5
    assert len({_bits(c.state) for c in commits}) == 3  # the first pool, and two growths


def test_statistics_are_pooled_by_samples() -> None:
    calibrated, scored, *_ = Run(MemoryJournal).finish()
    devices = accepted(calibrated)
    pooled = np.average([rows(d) for d in devices], axis=0, weights=[samples(d) for d in devices])
    found = np.asarray(calibrated.state["rows"])
    # Each of 3 terms is off by 2^-15 at most (shift 14), of a weight of at least 3.
    np.testing.assert_allclose(found, pooled, rtol=0, atol=2.0**-15)
    losses = [scored.measures.values()[f"loss_sum.{i}"] for i in range(2)]
    best = int(np.argmin(losses))
    assert scored.model is not None
    expected = found[4 * best : 4 * best + 4].astype(np.float32)
    assert scored.model[18:].tolist() == expected.tolist()


def test_a_coordinate_is_averaged_over_the_devices_whose_mask_has_it() -> None:
    _, _, before, after, *_ = Run(MemoryJournal).finish()
    assert before.model is not None
    assert after.model is not None
    by_density = {d: Mask.read(blob, LAYOUT) for d, blob in Growing().masks(before.state)}
    asked = {device: by_density[DENSITIES[device % 2]] for device in accepted(after)}
    expected = before.model.astype(float)
    for i in np.flatnonzero(by_density[0.5].bools):
        trained = [device for device, mask in asked.items() if mask.bools[i]]
        if trained:
            moves = [0.1 * (target(device)[i] - before.model[i]) for device in trained]
            expected[i] += np.average(moves, weights=[samples(d) for d in trained])
    np.testing.assert_allclose(after.model, expected, rtol=0, atol=1e-6)
    assert not after.model[~by_density[0.5].bools].any()


def accepted(commit: Published) -> list[int]:
    """The devices of a round: with four devices and three leases, those of the lowest draws."""
    run = Run(MemoryJournal)
    while run.coordinator.rounds.round < commit.round:
        for update in run.updates():
            run.coordinator.submit(run.now, [update])
    return [update.device for update in run.updates()]


def test_what_grows_is_the_largest_weighted_mean_and_starts_at_zero() -> None:
    _, scored, grown, *_ = Run(MemoryJournal).finish()
    assert scored.model is not None
    assert grown.model is not None
    before, after = (Mask(SIZE, _bits(commit.state)) for commit in (scored, grown))
    born = np.flatnonzero(after.bools & ~before.bools)
    assert born.size == GROWN
    assert after.count == before.count
    sums, total = np.zeros(SIZE), 0
    for device in accepted(grown):
        held = Mask.read(dict(Growing().masks(scored.state))[DENSITIES[device % 2]], LAYOUT)
        gradient = np.where(held.bools, 0.0, scored.model - target(device))
        top = _largest(gradient)
        sums[top] += samples(device) * gradient[top]
        total += samples(device)
    assert born.tolist() == _largest(np.where(before.bools, 0.0, sums / total))
    assert not grown.model[born].any()


# --- parts of rounds


def opened(t: int, strategy: Strategy | None = None) -> OpenRound:
    state = {**Growing().start(LAYOUT, INITIAL), "rows": np.zeros(8)}
    return OpenRound.of(strategy or Growing(), Round(t, ROUNDS), LAYOUT, INITIAL, state)


def sent(t: int, device: int) -> Update:
    return visit(Lease(device, device, t, 0, 9.0), opened(t).instruction, INITIAL)


@pytest.mark.parametrize("t", [0, 2, 3])
def test_adding_together_and_one_by_one_and_merging_give_the_same_bits(t: int) -> None:
    round = opened(t)
    updates = [sent(t, device) for device in range(3)]
    together, reasons = round.add_all(round.nothing, updates)
    assert reasons == [""] * 3
    alone, first, rest = round.nothing, round.nothing, round.nothing
    for update in updates:
        alone = round.add(alone, update)
    for update in updates[:1]:
        first = round.add(first, update)
    for update in updates[:0:-1]:
        rest = round.add(rest, update)
    assert isinstance(first, Total)
    assert isinstance(rest, Total)
    assert together == alone == rest.merge(first)


def test_statistics_have_a_fold_of_their_own() -> None:
    round = opened(0)
    assert round.rule == FoldRule.for_round(3, 65536.0, default_bound=STATISTICS_BOUND)
    assert round.rule.shift == 14
    assert (round.size, round.base, round.trains) == (8, None, False)
    large = replace(sent(0, 1), values=np.full(8, 1e6, np.float32).tobytes())
    assert isinstance(round.add(round.nothing, large), Total)
    larger = replace(large, values=np.full(8, 2e6, np.float32).tobytes())
    with pytest.raises(UpdateError, match=r"the bound is 1.04858e\+06"):
        round.add(round.nothing, larger)


def test_a_growth_is_folded_without_a_base_and_training_with_it() -> None:
    assert opened(2).base is None
    assert opened(3).base is INITIAL


@pytest.mark.parametrize(
    ("t", "ranges", "change"),
    [
        (0, ((0, 22),), {}),  # a row for each candidate, not a vector of the model
        (0, ((0, 8),), {"mask": Mask(8, b"\1")}),
        (3, WHOLE, {"mask": None}),
        (3, ((0, 18),), {}),
        (2, WHOLE, {"places": None}),
    ],
)
def test_what_does_not_fit_the_round_is_refused_and_the_others_count(
    t: int, ranges: Ranges, change: dict[str, object]
) -> None:
    run = Run(MemoryJournal)
    while run.coordinator.rounds.round < t:
        for update in run.updates():
            run.coordinator.submit(run.now, [update])
    wrong, *others = run.updates()
    wrong = replace(wrong, ranges=ranges, **change)  # type: ignore[arg-type]
    receipts = run.coordinator.submit(1.0, [wrong, *others])
    statuses = {receipt.lease: receipt.status for receipt in receipts}
    assert statuses == {wrong.lease: INVALID} | {u.lease: ACCEPTED for u in others}


def test_each_density_has_its_mask_and_the_round_reads_it_once() -> None:
    round = opened(3)
    small, large = (round.mask(density) for density in DENSITIES)
    assert small is not None
    assert large is not None
    assert (small.count, large.count) == (6 + 4, 6 + 8)
    assert set(small.coordinates(WHOLE)) < set(large.coordinates(WHOLE))
    assert opened(6).mask(0.5) is large
    assert round.mask(1.0) is None
    assert opened(0).mask(0.5) is None


@dataclass(frozen=True, kw_only=True)
class Deaf(Growing):
    """Has nothing to say to what was measured."""

    def observe(
        self, round: Round, model: Float32, seen: Observed, state: State
    ) -> tuple[Float32, State]:
        return Strategy.observe(self, round, model, seen, state)


def test_a_round_that_is_observed_by_nobody_or_failed_changes_nothing() -> None:
    part = opened(0).add(opened(0).nothing, sent(0, 1))
    for round, failed in ((opened(0, Deaf()), False), (opened(0), True)):
        done = round.conclude([part], Measures(), failed)
        assert (done.model, done.state, done.changed) == (round.model, round.state, False)


def test_an_observation_may_change_the_state_alone() -> None:
    round = opened(0)
    part = round.add(round.nothing, sent(0, 1))
    done = round.conclude([part], Measures(), False)
    assert (done.model, done.changed) == (INITIAL, False)
    np.testing.assert_allclose(np.asarray(done.state["rows"]), rows(1), rtol=0, atol=2.0**-15)
