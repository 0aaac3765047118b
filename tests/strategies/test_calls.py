from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.layout import STATISTICS, Layout, Parameter
from fedtiny.masks import Mask
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Observed, Round, State
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.median import Median
from fedtiny.values import FeatureSums, Instruction, Phase, Sgd, Transform
from tests.harness.toys import INITIAL, LAYOUT, Run
from tests.strategies.own import Failing


def test_a_strategy_that_raises_is_named_with_its_round_and_nothing_is_lost() -> None:
    run = Run(Failing(cohort=4, beta=0.1, bad_round=1))
    run.round()
    with pytest.raises(StrategyError, match=r"Failing.finish failed in round 1 of 3: ZeroDiv.*bug"):
        run.round()
    run.strategy = FedAvg(cohort=4, beta=0.1)  # repaired
    run.restart()
    assert run.coordinator.rounds.round == 2
    undisturbed = Run(FedAvg(cohort=4, beta=0.1))
    assert run.finish().tobytes() == undisturbed.finish().tobytes()


@dataclass(frozen=True, kw_only=True)
class Returning(FedAvg):
    """Returns what a test tells it to."""

    answer: Any = None

    def start(self, *_: Any) -> Any:
        return self.answer

    def ask(self, *_: Any) -> Any:
        return self.answer

    def weight(self, *_: Any) -> Any:
        return self.answer

    def finish(self, *_: Any) -> Any:
        return self.answer

    def observe(self, *_: Any) -> Any:
        return self.answer

    def fitted(self, *_: Any) -> Any:
        return self.answer

    def telemetry(self, *_: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (None, r"Returning.finish in round 2 of 5 must give a pair"),
        ((INITIAL[:3], {}), r"a model of float32 \(6,\), not float32 \(3,\)"),
        ((INITIAL.astype(float), {}), r"not float64 \(6,\)"),
        ((np.array([np.nan, np.inf, 0, 0, 0, 0], np.float32), {}), "2 of 6 values are not"),
        ((INITIAL, None), "a mapping, not NoneType"),
        ((INITIAL, {"m": np.zeros(3, np.float32)}), "'m' is float32"),
        ((INITIAL, {"rng": object()}), "'rng' is object"),
    ],
)
def test_what_makes_the_next_model_is_checked(answer: object, match: str) -> None:
    with pytest.raises(StrategyError, match=match):
        calls.finish(Returning(answer=answer), Round(2, 5), INITIAL, [], {})
    with pytest.raises(StrategyError, match=match.replace("finish", "observe")):
        calls.observe(Returning(answer=answer), Round(2, 5), INITIAL, Observed(), {})


def test_a_state_of_numbers_arrays_and_bits_is_taken() -> None:
    state = {"m": np.zeros(3), "bits": np.zeros(2, np.uint8), "t": 4}
    assert (
        calls.finish(Returning(answer=(INITIAL, state)), Round(0, 1), INITIAL, [], {})[1] is state
    )


def test_what_the_other_methods_return_is_checked() -> None:
    strategy = Returning(answer=[1.0, 2.0])
    with pytest.raises(StrategyError, match="before round 0 must give a mapping, not list"):
        calls.start(strategy, LAYOUT, INITIAL)
    with pytest.raises(StrategyError, match="ask in round 0 of 5 must give an Instruction"):
        calls.ask(strategy, Round(0, 5), {}, LAYOUT)
    with pytest.raises(StrategyError, match="must give 3 weights, not 2"):
        calls.weight(strategy, Round(0, 5), np.ones(3))
    with pytest.raises(StrategyError, match="before round 0 must give a Strategy, not list"):
        calls.fitted(strategy, FleetFacts())
    with pytest.raises(StrategyError, match=r"bucket before round 0 must give .*>= 0, not 0\.5"):
        calls.bucket(Pruning(most=0.5), LAYOUT)
    with pytest.raises(StrategyError, match="telemetry failed in round 0 of 5: TypeError"):
        calls.telemetry(strategy, Round(0, 5), INITIAL, {})
    with pytest.raises(StrategyError, match=r"finite numbers by name; 'pq' is nan"):
        calls.telemetry(Returning(answer={"pq": float("nan")}), Round(0, 5), INITIAL, {})


def test_a_strategy_that_prunes_nothing_need_say_nothing() -> None:
    strategy = FedAvg(cohort=2, beta=0.1)
    assert calls.fitted(strategy, FleetFacts()) is strategy
    assert calls.bucket(strategy, LAYOUT) == 0
    assert calls.masks(strategy, Round(0, 5), {}, LAYOUT) == ()
    assert calls.telemetry(strategy, Round(0, 5), INITIAL, {}) == {}
    model, state = calls.observe(strategy, Round(0, 5), INITIAL, Observed(), STATE)
    assert model is INITIAL
    assert state is STATE


STATE: State = {"t": 1.0}
ONE, STEP = (Phase(0.1),), (Phase(0.1, 1),)
SUMS = FeatureSums("fc.weight")


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (Instruction("trian", ONE), "kind = 'trian'; it must be one of train, evaluate"),
        (Instruction(phases=ONE, returns="delta"), "returns = 'delta'"),
        (Instruction("calibrate", part="test"), "part = 'test'"),
        (Instruction(), r"phases = \(\)"),
        (Instruction("score"), r"candidates = \(\)"),
        (Instruction("sums"), "sums = None in a round of kind 'sums'"),
        (Instruction("score", candidates=(3,), sums=SUMS), "sums = .* of kind 'score'"),
        (
            Instruction("sums", sums=FeatureSums("fc.bias")),
            "sums.head = 'fc.bias'; name the weights of the last layer",
        ),
        (Instruction(phases=(*ONE, Phase(float("nan")))), r"phases\[1\].lr = nan"),
        (Instruction(phases=(Phase(-1.0),)), r"phases\[0\].lr = -1.0"),
        (Instruction(phases=(Phase(0.1, -2),)), r"phases\[0\].steps = -2"),
        (Instruction(phases=(Phase(0.1, part="all"),)), r"phases\[0\].part = 'all'"),
        (
            Instruction(phases=(Phase(0.1, groups=("head",)),)),
            r"phases\[0\].groups = .*the model has shared",
        ),
        (Instruction(phases=(Phase(0.1, corrected=True),)), "correction = None"),
        (Instruction(phases=ONE, correction=bytes(8)), "correction has 8 B; the model has 24 B"),
        (Instruction("score", candidates=(3, bytes(4))), r"candidates\[1\] has 4 B"),
        (Instruction(phases=ONE, masks=((0.5, b""),)), "masks are given; leave them out"),
        (Instruction(phases=ONE, control=True), "control without a correction"),
        (
            Instruction(phases=(Phase(0.0, 1),), control=True, correction=bytes(24)),
            "control .*with lr = 0; give the vector c, and a learning rate",
        ),
        (Instruction("evaluate", control=True), "a control variate or .* of kind 'evaluate'"),
        (Instruction(phases=ONE, own=ONE, returns="gradient"), ".*that returns 'gradient'; both"),
        (Instruction(phases=ONE, own=(Phase(-1.0),)), r"own\[0\].lr = -1.0"),
        (Instruction(phases=ONE, own=(Phase(0.1, ahead=0.1),)), "own has a phase that is"),
        (Instruction(phases=(Phase(0.1, ahead=-1.0),)), r"phases\[0\].ahead = -1.0; it must be 0"),
        (
            Instruction(phases=(Phase(0.1, ahead=0.1, sgd=Sgd(momentum=0.5)),)),
            r"phases\[0\].ahead with momentum or prox",
        ),
        (
            Instruction(phases=(Phase(0.1, 1, ahead=0.1),), returns="gradient"),
            r"phases\[-1\].ahead of a round that returns a gradient",
        ),
        (
            Instruction(phases=STEP, returns="votes"),
            r"grow = \(\) of a round of kind 'train'; it takes masks to grow from",
        ),
        (Instruction("score", candidates=(3,), grow=(("fc.weight", 1),)), "grow = .* 'score'; it"),
        (
            Instruction(phases=STEP, returns="gradient", grow=(("fc.weight", 1),)),
            "grow = .* it takes masks to grow from",
        ),
        (
            Instruction("evaluate", transforms=(Transform("int8"),)),
            "transforms of a round of kind 'evaluate' that returns 'values'; only what trains",
        ),
        (Instruction("calibrate", candidates=(3,)), "candidates are .* no normalisation"),
        (
            Instruction("score", candidates=(3,), statistics=bytes(8)),
            "statistics has 8 B in a round of kind 'score'; to score 1 candidates takes 0 B",
        ),
    ],
)
def test_an_instruction_that_no_device_could_carry_out_names_its_field(
    asked: Instruction, match: str
) -> None:
    with pytest.raises(StrategyError, match=rf"Returning.ask in round 2 of 5: {match}"):
        calls.ask(Returning(answer=asked), Round(2, 5), {}, LAYOUT)


def test_what_a_strategy_sends_is_transformed_where_it_trains_and_returns_a_delta() -> None:
    chain = (Transform("feedback"), Transform("topk", 0.1), Transform("int8"))
    asked = Instruction(phases=ONE, transforms=chain[1:2])
    strategy = Returning(answer=asked, transforms=("feedback", "int8"))
    assert calls.ask(strategy, Round(0, 5), {}, LAYOUT).transforms == chain
    gradient = replace(strategy, answer=Instruction(phases=STEP, returns="gradient"))
    assert calls.ask(gradient, Round(0, 5), {}, LAYOUT).transforms == chain[::2]
    measuring = replace(strategy, answer=Instruction("evaluate"))
    assert calls.ask(measuring, Round(0, 5), {}, LAYOUT).transforms == ()
    twice = replace(strategy, answer=replace(asked, transforms=chain[2:]))
    with pytest.raises(StrategyError, match=r"Returning.ask in round 0 of 5: .*int8 before int8"):
        calls.ask(twice, Round(0, 5), {}, LAYOUT)


POOL = Mask.draw(LAYOUT, {"fc.weight": 2}, 1).blob
NORMED = Layout.of([Parameter("w", (4,)), Parameter("bn.mean", (3,), STATISTICS)])


@dataclass(frozen=True, kw_only=True)
class Pruning(FedAvg):
    """Asks what a test says, under masks that a test says."""

    asked: Instruction = field(default_factory=lambda: Instruction(phases=ONE))
    held: Any = ((0.5, POOL),)
    most: Any = 3

    def ask(self, round: Round, state: State) -> Instruction:
        return self.asked

    def masks(self, state: State) -> Any:
        return self.held

    def bucket(self, layout: Layout) -> Any:
        return self.most


def grow(*pairs: tuple[str, int], **changes: Any) -> Instruction:
    return replace(Instruction(phases=STEP, returns="gradient", grow=pairs), **changes)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (grow(("head", 1)), r"grow names \['head'\]; name parameters of the model"),
        (grow(("fc.weight", 1), ("fc.weight", 1)), "each once"),
        (grow(("fc.weight", 0)), "can grow by 1 up to its size"),
        (grow(("fc.weight", 5)), "can grow by 1 up to its size"),
        (grow(("fc.weight", 4)), r"the Programs have memory for bucket\(layout\) = 3 in all"),
        (grow(("fc.weight", 2), phases=ONE), r"phases\[-1\].steps = 0; what grows is found in 1"),
        (grow(("fc.weight", 2), returns="votes", phases=(*STEP, Phase(0.1, 2))), "steps = 2"),
    ],
)
def test_a_growth_that_no_device_could_carry_out_names_its_field(
    asked: Instruction, match: str
) -> None:
    with pytest.raises(StrategyError, match=rf"Pruning.ask in round 2 of 5: .*{match}"):
        calls.ask(Pruning(asked=asked), Round(2, 5), {}, LAYOUT)


@pytest.mark.parametrize(
    "asked",
    [
        Instruction(phases=ONE),
        Instruction("evaluate"),
        grow(("fc.weight", 3)),
        grow(("fc.weight", 2), returns="votes", phases=(*ONE, *STEP)),
        grow(("fc.weight", 2), returns="values", phases=(*ONE, *ONE)),
    ],
)
def test_rounds_that_train_or_evaluate_have_the_masks_of_the_state(asked: Instruction) -> None:
    found = calls.ask(Pruning(asked=asked), Round(2, 5), {}, LAYOUT)
    assert found == replace(asked, masks=((0.5, POOL),))


@pytest.mark.parametrize("kind", ["calibrate", "score"])
def test_candidates_bring_masks_of_their_own(kind: str) -> None:
    rows = bytes(24) if kind == "score" else None
    asked = Instruction(kind, candidates=(3, 4), statistics=rows)
    mask = Mask.draw(NORMED, {"w": 2}, 1).blob
    strategy = Pruning(asked=asked, held=((0.5, mask),))
    assert calls.ask(strategy, Round(2, 5), {}, NORMED) == asked


def test_what_can_only_be_summed_is_not_asked_for_one_by_one() -> None:
    asked = Instruction("calibrate", candidates=(3,))
    strategy = Median(cohort=2, beta=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Median, "ask", lambda *_: asked)
        with pytest.raises(StrategyError, match='they give can only be summed: needs = "sum"'):
            calls.ask(strategy, Round(2, 5), {}, NORMED)


@pytest.mark.parametrize(
    ("held", "match"),
    [
        (((0.5, POOL), (0.1, POOL)), r"must give densities that ascend .*; they are \[0.5, 0.1\]"),
        (((0.5, POOL), (0.5, POOL)), "each once"),
        (((1.0, POOL),), r"they are \[1.0\]"),
        (((0.5, POOL[:-1]),), "blobs of masks; that of density 0.5 is none: the mask"),
        (((0.5, Mask.of(np.ones(7, bool)).blob),), "is none: the blob is no mask of 6 coordinates"),
        (((0.5, None),), "masks failed in round 2 of 5: TypeError"),
        (POOL, "masks failed in round 2 of 5: TypeError"),
    ],
)
def test_masks_that_no_device_could_read_are_refused(held: object, match: str) -> None:
    with pytest.raises(StrategyError, match=rf"Pruning\.masks.*{match}|Pruning\.{match}"):
        calls.ask(Pruning(held=held), Round(2, 5), {}, LAYOUT)


@pytest.mark.parametrize(
    ("weight", "remedy"),
    [(0.0, "return a positive number"), (float("nan"), "return a positive number"),
     (1e9, "return less, or raise weight_cap")],
)  # fmt: skip
def test_a_weight_that_cannot_be_folded_names_the_strategy_and_the_round(
    weight: float, remedy: str
) -> None:
    with pytest.raises(StrategyError, match=rf"Returning.weight in round 2 of 5: .*{remedy}"):
        calls.weight(Returning(answer=[weight]), Round(2, 5), np.ones(1))


@dataclass(frozen=True, kw_only=True)
class Ruled(FedAvg):
    """Its fold rule is what a test says; an exception is raised."""

    rule: Any = None

    @property
    def fold_rule(self) -> Any:
        if isinstance(self.rule, Exception):
            raise self.rule
        return self.rule


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (KeyError("cap"), r"fold_rule failed in round 0 of 3: KeyError: 'cap'"),
        (None, r"fold_rule in round 0 of 3 must give a FoldRule, not NoneType"),
    ],
)
def test_a_fold_rule_that_fails_names_the_strategy_and_the_round(rule: object, match: str) -> None:
    strategy = Ruled(cohort=3, beta=0.1, rule=rule)
    with pytest.raises(StrategyError, match=rf"Ruled\.{match}"):
        calls.weight(strategy, Round(0, 3), np.ones(1))
    run = Run(strategy)
    with pytest.raises(StrategyError, match=rf"Ruled\.{match}"):
        run.round()
