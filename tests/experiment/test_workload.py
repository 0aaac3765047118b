"""An experiment's parts, built: what its visits carry, and what is refused before they begin."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.compile import compile
from fedtiny.errors import ExperimentError, FedtinyError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.pretraining import NOBODY
from fedtiny.experiment.rehearsal import rehearsed
from fedtiny.experiment.workload import Workload
from fedtiny.layout import Layout
from fedtiny.masks import Mask
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedtiny import FedTiny
from fedtiny.strategies.median import Median
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    SCORE,
    TRAIN,
    VALUES,
    VOTES,
    Instruction,
    Phase,
    Sgd,
    Transform,
    Update,
)
from fedtiny.wire import codec
from fedtiny.wire.vectors import given_mask, write_values
from fedtiny.wire.visit import share
from tests.simulator.experiments import PRUNED

if TYPE_CHECKING:
    from fedtiny.strategies.base import State

HERE = "tests.experiment.test_workload"
EXPERIMENT = Experiment.of(
    {
        "model": {"build": "sine_mlp"},
        "data": {"source": "sine"},
        "strategy": {"name": "fedavg"},
        "device": {"ram": "256KiB"},
        "fleet": {"devices": 20},
        "run": {"rounds": 1},
    }
)
GRADIENT_PHASE = Phase(0.1, 1, sgd=Sgd(gradient=True))
ASKED = {
    "train": Instruction(phases=(Phase(0.01, 2), Phase(0.02))),
    "train, the gradient": Instruction(phases=(GRADIENT_PHASE,), returns=GRADIENT),
    "evaluate": Instruction(EVALUATE, (Phase(0.01, 1),)),
    "evaluate without phases": Instruction(EVALUATE),
    "calibrate": Instruction(CALIBRATE),
    "score": Instruction(SCORE, candidates=(1, bytes(4 * 1153), 3)),
}


def sent(work: Workload, asked: Instruction, learner: Learner, x: Any, y: Any, base: Any) -> int:
    """Bytes of the requests that bring what a Learner gives."""
    samples = learner.samples(x, y)
    done = learner.visit(asked, base, lambda part: samples, Key(1, 2, 3))
    update = Update(
        1, 3, 2, 0, done.samples, done.values, done.ranges, done.measures, done.mask, done.places
    )
    own = asked.of(learner.program.density)
    size = done.ranges[-1][1] if asked.pools else work.layout.size
    payload = write_values(update, size, given=given_mask(update, own))
    return sum(map(share, codec.submit_requests(update, bytes(8), bytes(32), payload, 30.0)))


@pytest.mark.parametrize("kind", ASKED)
def test_the_bytes_of_an_update_are_those_of_what_a_learner_gives(kind: str) -> None:
    work, asked = Workload.of(EXPERIMENT), ASKED[kind]
    program = work.fit("cortex-m4", sgd=Sgd(gradient=True)).needed
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    expected = sent(work, asked, Learner(program), x, x, program.initial(1))
    assert work.visit_bytes(program, asked).update == expected


# ---- fleets that prune -----------------------------------------------------------------------


def pruned(*settings: str) -> Workload:
    return Workload.of(Experiment.of(PRUNED).override(*settings))


PRUNES = pruned()
MASKS = PRUNES.training.masks
GROW = (("linear1.weight", 20), ("linear2.weight", 5))
STILL = (Phase(0.0, 1),)
# Whether the bytes before the visit are those after it, or the most that they can be.
ASKED_OF_POOLS = {
    "train": (Instruction(phases=(Phase(0.01),), masks=MASKS), True),
    "evaluate": (Instruction(EVALUATE, (Phase(0.01),), masks=MASKS), True),
    "calibrate candidates": (Instruction(CALIBRATE, candidates=(0, 1)), True),
    "score candidates": (
        Instruction(SCORE, candidates=(0, 1), statistics=bytes(2 * 48 * 4)), True,
    ),
    "grow": (Instruction(TRAIN, STILL, GRADIENT, masks=MASKS, grow=GROW), False),
    "vote": (Instruction(TRAIN, STILL, VOTES, masks=MASKS, grow=GROW), False),
    "readjust": (Instruction(TRAIN, (Phase(0.01),), VALUES, masks=MASKS, grow=GROW), False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ASKED_OF_POOLS)
def test_the_bytes_of_a_pruned_update_are_known_or_bounded(kind: str) -> None:
    asked, exact = ASKED_OF_POOLS[kind]
    x, y = PRUNES.task.samples(5, 0, 1, "support")
    for profile in PRUNES.profiles:
        found = sent(PRUNES, asked, Learner(profile.needed), x, y, PRUNES.initial)
        most = PRUNES.visit_bytes(profile.needed, asked).update
        assert found == most if exact else 0.6 * most < found <= most


def test_programs_of_a_fleet_have_their_own_densities_and_one_layout() -> None:
    programs = {profile.name: profile.needed for profile in PRUNES.profiles}
    assert {name: p.density for name, p in programs.items()} == {"pi-zero-2w": 0.1, "pi-4": 0.3}
    assert {p.capacity for p in programs.values()} == {177, 532}
    assert len({p.layout for p in programs.values()}) == 1
    # half of the largest share of the largest layer, at most what is dead
    bucket = PRUNES.strategy.bucket(PRUNES.layout)
    assert {p.tables.bucket for p in programs.values()} == {bucket}


def test_an_evaluation_has_the_density_of_its_board_and_no_bucket() -> None:
    program = PRUNES.fit("pi-4", 4, Sgd(clip=1.0)).needed
    assert (program.density, program.batch, program.tables.bucket) == (0.3, 4, 0)
    assert "base_bytes" not in program.report()


def test_what_is_rehearsed_is_what_a_run_asks() -> None:
    kinds = [(asked.kind, bool(asked.grow)) for asked in PRUNES.rehearsal()]
    train = (TRAIN, False)
    assert kinds == [
        ("calibrate", False), ("score", False), train, (TRAIN, True), train, train, (TRAIN, True),
        train, train,
    ]  # fmt: skip
    assert PRUNES.training.kind == TRAIN
    assert PRUNES.instruction.kind == CALIBRATE


def test_programs_have_memory_for_the_rounds_that_train() -> None:
    work = pruned("strategy.momentum=0.5", "strategy.clip=1.0")
    assert (work.reserved.momentum, work.reserved.clip) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("strategy", "base_bytes"),
    [("{name='fedtiny', cohort=5, candidates=3}", 4 * 1906),
     ("{name='fedtiny', cohort=5, candidates=1}", None),
     ("{name='oneshot', cohort=5}", None)],
)  # fmt: skip
def test_programs_have_memory_for_a_dense_model_if_a_round_selects(
    strategy: str, base_bytes: int | None
) -> None:
    work = pruned(f"strategy={strategy}")
    assert work.layout.size == 1906
    for profile in work.profiles:
        assert profile.needed.report().get("base_bytes") == base_bytes


def test_a_board_without_memory_for_a_dense_model_takes_no_part() -> None:
    needed = pruned("strategy.candidates=1").fit("pi-4").needed.report()["ram_bytes"]
    settings = f"device={{ram={needed}, batch=16, density=0.3}}"
    assert not pruned(settings, "strategy.candidates=1").fit("pi-4").reasons
    (reason,) = pruned(settings).fit("pi-4").reasons
    assert "candidates = 1 needs no dense model" in reason


def test_a_selection_that_no_rehearsal_foretold_is_refused_when_its_round_opens() -> None:
    work = pruned("strategy.candidates=1")
    with pytest.raises(StrategyError, match=r"round 4 of 9 has candidates, for which the Programs"):
        work.check(Round(4, 9), Instruction(SCORE, candidates=(0, 1)))


@pytest.mark.parametrize(
    ("strategy", "vectors"),
    [("{name='fedavg'}", 0), ("{name='fedavg', transforms=['int8']}", 1),
     ("{name='fedavg', transforms=['feedback', 'topk:0.1']}", 2), ("{name='scaffold'}", 1),
     ("{name='ditto', transforms=['int8']}", 2), ("{name='perfedavg'}", 1)],
)  # fmt: skip
def test_programs_have_memory_for_what_devices_keep(strategy: str, vectors: int) -> None:
    work = Workload.of(EXPERIMENT.override(f"strategy={strategy}"))
    (profile,) = work.profiles
    assert profile.needed.report().get("kept_bytes", 0) == vectors * work.layout.nbytes
    held = profile.needed.report()["ram_bytes"] - 1
    small = EXPERIMENT.override(f"strategy={strategy}", f"device={{ram={held}}}")
    (reason,) = Workload.of(small).fit("cortex-m4").reasons
    assert (f"keep fewer vectors than {vectors}" in reason) == bool(vectors)


def test_what_devices_keep_must_be_foretold() -> None:
    work = Workload.of(EXPERIMENT)
    asked = replace(work.instruction, transforms=(Transform("feedback"), Transform("int8")))
    with pytest.raises(StrategyError, match=r"keep 9,224 B beside .* for 0 B; .* in round 0 too"):
        work.check(Round(0, 1), asked)


class Late(FedTiny):
    """Has other growths in round 6 than in round 3."""

    late: ClassVar[dict[str, int]]

    def bucket(self, layout: Layout) -> int:
        return 500

    def scheduled(self, round: Round, state: State) -> dict[str, int]:
        return self.late if round.t == 6 else super().scheduled(round, state)


class GrowsBias(Late):
    late: ClassVar[dict[str, int]] = {"linear1.bias": 1}


class GrowsMuch(Late):
    late: ClassVar[dict[str, int]] = {"linear1.weight": 90, "linear2.weight": 90}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [("GrowsBias", r"round 6 of 9 grows \['linear1.bias'\]; what can be pruned"),
     ("GrowsMuch", r"round 6 of 9 grows 180 weights; .* 0.9 have memory to find 178")],
)  # fmt: skip
def test_every_growth_of_the_run_is_looked_at_before_it(strategy: str, message: str) -> None:
    # Of 1,776 weights 1,598 live.
    built = f"strategy={{build='{HERE}:{strategy}', cohort=5, every=3, blocks='all'}}"
    with pytest.raises(StrategyError, match=message):
        prepared(pruned("device={density=0.9, batch=16}", built))


def test_a_strategy_that_needs_all_updates_is_rehearsed_too() -> None:
    asked = list(rehearsed(Median(cohort=3), PRUNES.layout, PRUNES.untrained, 4))
    assert [one.kind for one in asked] == [TRAIN] * 4


# ---- before the first round ------------------------------------------------------------------


def test_the_model_is_pretrained_on_the_public_samples_as_anybody_would() -> None:
    net = PRUNES.net
    program = compile(net, loss="cross_entropy", ram="8MiB", batch=16)
    learner = Learner(program, "reference")
    learner.load(program.initial(5))
    x, y = PRUNES.task.public_samples(5)  # type: ignore[attr-defined]
    assert len(x) == 100
    learner.train(x, y, 0.05, 20, shuffle=True, key=Key(5, 0, NOBODY))
    np.testing.assert_array_equal(PRUNES.initial, np.asarray(learner.vector()))


def test_without_pretraining_the_model_is_that_of_the_seed() -> None:
    tables = {key: value for key, value in PRUNED.items() if key != "pretrain"}
    work = Workload.of(Experiment.of(tables))
    program = compile(work.net, loss="cross_entropy", ram="8MiB", batch=16)
    np.testing.assert_array_equal(work.initial, np.asarray(program.initial(5)))
    assert len(work.task.public_samples(5)[0]) == 100  # type: ignore[attr-defined]


class Forgetful(FedTiny):
    """Has the Programs made for less than it will ask."""

    def bucket(self, layout: Layout) -> int:
        return 1


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (["data.public=0"], ExperimentError,
         r"\[pretrain\] needs samples that no device owns, .* set data.public"),
        (["pretrain.lr=1e30"], ExperimentError, r"values are not finite; lower pretrain.lr"),
        (["device={density=0.5, batch=16}", "strategy={name='fedavg'}"], StrategyError,
         r"FedAvg.ask .* has no mask for the density 0.5 .* a strategy that prunes"),
        (["device={batch=16}"], StrategyError, r"device has density 1, and a pool that holds eve"),
        (["device={batch=16, density=0.001}"], StrategyError,
         r"leaves none of the 240 weights of linear2.weight: 1 live .* raise the density"),
        ([f"strategy={{build='{HERE}:Forgetful', cohort=5, every=3}}"], StrategyError,
         r"Forgetful.ask in round 3 of 9: grow names 4 .* have memory for bucket.* = 1 in all"),
        (["model.build='digits_mlp'", "strategy.selection='bn'"], StrategyError,
         r"selection = 'bn' with 5 candidates, but the model has no normalisation"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_told_before_the_run(
    settings: list[str], kind: type[FedtinyError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        prepared(pruned(*settings))


def prepared(work: Workload) -> None:
    """All that comes before the first round."""
    assert all(profile.program for profile in work.profiles)
    assert work.initial.size == work.layout.size


def asking(**changes: Any) -> Instruction:
    return replace(ASKED_OF_POOLS["grow"][0], **changes)


def drawn(counts: dict[str, int]) -> bytes:
    return Mask.draw(PRUNES.layout, counts, 1).blob


TOO_MANY = ((0.1, MASKS[0][1]), (0.3, drawn({"linear1.weight": 500, "linear2.weight": 100})))
NO_BIAS = ((0.1, drawn({"linear1.bias": 3, "linear1.weight": 9, "linear2.weight": 9})),
           (0.3, MASKS[1][1]))  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (asking(masks=TOO_MANY), r"keeps 600 weights alive .* density 0.3 hold 532"),
        (asking(masks=MASKS[1:]), r"no mask of density 0.1; the strategy has masks of 0.3"),
        (asking(masks=()), r"has no mask for the density 0.1"),
        (asking(masks=NO_BIAS), r"prunes 21 parameters that are no weights of linear1.weight, lin"),
        (Instruction(SCORE, candidates=(0, bytes(PRUNES.layout.nbytes))),
         r"has candidates that are vectors; those of pruned Programs are the seeds of masks"),
        (asking(grow=(), returns=VALUES, transforms=(Transform("randomk", 0.5),)),
         r"uses randomk with pruned Programs \(density 0.1\), whose mask moves from round to"),
        (asking(grow=(("linear1.bias", 1),)), r"grows \['linear1.bias'\]; what can be pruned"),
        (asking(grow=(("linear1.weight", 1000),)), r"grows 1,000 weights; .* memory to find 94"),
    ],
)  # fmt: skip
def test_what_a_pruned_program_cannot_do_is_told_when_its_round_opens(
    asked: Instruction, message: str
) -> None:
    with pytest.raises(StrategyError, match=rf"FedTiny.ask in round 4 of 9 .*{message}"):
        PRUNES.check(Round(4, 9), asked)
