"""Each row of the table of combinations fires where it should, and not without its second trait."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedtiny.engine.builder import Net
from fedtiny.errors import ExperimentError
from fedtiny.experiment import Experiment, rules
from fedtiny.experiment.rules import ERROR, FINE, RULES, WARNING, Case, Rule, RuleWarning
from fedtiny.experiment.workload import Workload
from fedtiny.layout import LOCAL, Layout
from fedtiny.strategies.base import Round, State
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.values import SUMS, FeatureSums, Instruction, Phase

HERE = "tests.experiment.test_rules"
TOML = """\
[model]
build = "sine_mlp"
[data]
source = "sine"
[device]
ram = "256KiB"
[strategy]
name = "fedavg"
cohort = 10
steps = 2
[fleet]
devices = 100
[run]
rounds = 50
"""


class AsksForControl:
    """What asks for control variates, c = 0."""

    def start(self, layout: Layout, model: object) -> State:
        return {"c": np.zeros(layout.size)}

    def ask(self, round: Round, state: State) -> Instruction:
        asked: Instruction = super().ask(round, state)  # type: ignore[misc]
        c = np.asarray(state["c"], np.float32)
        return replace(asked, control=True, correction=c.tobytes())


@dataclass(frozen=True, kw_only=True)
class Controlled(AsksForControl, FedAvg):
    """FedAvg with control variates."""


@dataclass(frozen=True, kw_only=True)
class Owned(FedAvg):
    """Devices train a model of their own, too."""

    def ask(self, round: Round, state: State) -> Instruction:
        return replace(super().ask(round, state), own=(Phase(0.1, 1),))


@dataclass(frozen=True, kw_only=True)
class Summing(FedAvg):
    """Asks for sums of features."""

    def ask(self, round: Round, state: State) -> Instruction:
        return Instruction(SUMS, sums=FeatureSums("linear3.weight"))


@dataclass(frozen=True, kw_only=True)
class BufferedAll(FedBuff):
    """Asynchronous, with every update."""

    needs = "all"


@dataclass(frozen=True, kw_only=True)
class BufferedControl(AsksForControl, FedBuff):
    """Asynchronous, with control variates."""


def tracked() -> Net:
    net = Net(1)
    net.linear(net.relu(net.batch_norm(net.linear(net.input, 4), tracked=True)), 1)
    return net


def own_head() -> Net:
    net = Net(1)
    hidden = net.relu(net.linear(net.input, 4))
    net.group = LOCAL
    net.linear(hidden, 1)
    return net


def built(name: str) -> str:
    return f"strategy.build={HERE}:{name}"


def sends(*transforms: str) -> str:
    return f"strategy.transforms={list(transforms)}"


PRUNING = "strategy.name=oneshot"
MEDIAN, KRUM, FEDBUFF = "strategy.name=median", "strategy.name=krum", "strategy.name=fedbuff"
CONTROL, OWN, SUMMING = built("Controlled"), built("Owned"), built("Summing")
DIGITS = ("data={source='label-skew-digits', public=50}", "model={build='digits_mlp'}")
TRACKED, HALF = f"model.build={HERE}:tracked", "device.density=0.5"
HELD_OUT = "evaluate.online.lr=0.1"
RARE = "run.rounds=5"
DEPLOYED = "deployed"
"""No setting of an experiment: who it is for."""

# What makes a row fire: the settings of its first trait, and the one that brings in the second.
ROWS = {
    ("a robust rule", "topk"): ([MEDIAN], sends("topk:0.1")),
    ("a robust rule", "randomk"): ([MEDIAN], sends("randomk:0.1")),
    ("a robust rule", "int8 or qsgd"): ([MEDIAN], sends("int8")),
    ("a robust rule", "noise"): ([MEDIAN], sends("clip:1", "noise:0.1")),
    ("a robust rule", "feedback"): ([MEDIAN], sends("feedback", "int8")),
    ("Krum", "rounds of fewer than 2 byzantine + 3 updates"): ([KRUM], "fleet.drop_out=0.1"),
    ("quarantine", "a cohort of nearly all devices"): (
        [MEDIAN, "strategy.quarantine=5"], "strategy.cohort=90",
    ),
    ("asynchronous rounds", 'needs = "all"'): ([FEDBUFF], built("BufferedAll")),
    ("asynchronous rounds", "pruned Programs"): ([FEDBUFF], HALF),
    ("asynchronous rounds", "control variates"): ([FEDBUFF], built("BufferedControl")),
    ("asynchronous rounds", "over-selection"): ([FEDBUFF], "run.over_selection=1.3"),
    ("asynchronous rounds", "seeded = true"): ([FEDBUFF], "seeded=true"),
    ("control variates", "steps = 0"): ([CONTROL], "strategy.steps=0"),
    ("control variates", "momentum"): ([CONTROL], "strategy.momentum=0.9"),
    ("control variates", "clip, topk, randomk or sign"): ([CONTROL], sends("randomk:0.1")),
    ("control variates", "int8 or qsgd"): ([CONTROL], sends("qsgd:16")),
    ("control variates", "a gate"): ([CONTROL, *DIGITS], "run.gate=1.1"),
    ("control variates", "devices that come less than twice"): ([CONTROL], RARE),
    ("models of the devices' own", "devices that come less than twice"): ([OWN], RARE),
    ("feedback", "devices that come less than twice"): ([sends("feedback", "int8")], RARE),
    ("models of the devices' own", "evaluation on held-out devices"): ([OWN], HELD_OUT),
    ("parameters that stay on the device", "evaluation on held-out devices"): (
        [f"model.build={HERE}:own_head"], HELD_OUT,
    ),
    ("a strategy that prunes", "randomk or feedback"): ([PRUNING, HALF], sends("randomk:0.1")),
    ("a strategy that prunes", "topk"): ([PRUNING, HALF], sends("topk:0.1")),
    ("sums of features", "pruned Programs"): ([SUMMING], HALF),
    ("sums of features", "transforms"): ([SUMMING], sends("int8")),
    ("sign", "no feedback"): ([sends("feedback", "sign")], sends("sign")),
    ("topk", "feedback"): ([sends("topk:0.1")], sends("feedback", "topk:0.1")),
    ("an update_clip that is no larger than the clip", "noise, feedback, int8 or qsgd"): (
        ["strategy.update_clip=1", sends("clip:1")], sends("clip:1", "int8"),
    ),
    ("noise", "no clip"): ([sends("clip:1", "noise:0.1")], sends("noise:0.1")),
    ("noise", "batch normalisation that tracks its statistics"): (
        [sends("clip:1", "noise:0.1")], TRACKED,
    ),
    ("sign", "batch normalisation that tracks its statistics"): (
        [sends("feedback", "sign")], TRACKED,
    ),
    ("TinyReptile of one device", "noise"): (
        ["strategy.name=tinyreptile", "strategy.cohort=1"], sends("clip:1", "noise:0.1"),
    ),
    ("one device a round", "batch normalisation that tracks its statistics"): (
        ["strategy.cohort=1"], TRACKED,
    ),
    ("real devices", "an [attack]"): ([DEPLOYED], "attack={kind='sign-flip', share=0.2}"),
    ("real devices", "evaluation on devices that train"): (
        [DEPLOYED], "evaluate.own={lr=0.1, devices='training'}",
    ),
    ("real devices", "streams after the last round"): (
        [DEPLOYED], "online={samples=9, lr=0.1, drift='invert'}",
    ),
}  # fmt: skip


def case(*settings: str) -> Case:
    experiment = Experiment.parse(TOML).override(*(s for s in settings if s != DEPLOYED))
    return Case.of(Workload.of(experiment), DEPLOYED in settings)


def test_every_row_is_tried_here() -> None:
    assert [(rule.one.words, rule.other.words) for rule in RULES] == list(ROWS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.one.words} x {rule.other.words}")
def test_a_row_fires_with_its_second_trait_and_not_without(rule: Rule) -> None:
    first, second = ROWS[rule.one.words, rule.other.words]
    alone = case(*first)
    assert rule.one.holds(alone)
    assert rule not in rules.found(alone)
    assert rule in rules.found(case(*first, second))
    assert rule in rules.conflicts(alone)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.one.words} x {rule.other.words}")
def test_a_row_says_why_and_what_to_do_instead(rule: Rule) -> None:
    assert rule.severity in (ERROR, WARNING, FINE)
    assert bool(rule.remedy) == (rule.severity != FINE)


def work(*settings: str) -> Workload:
    return Workload.of(Experiment.parse(TOML, "mine.toml").override(*settings))


def test_what_does_not_go_together_is_an_error_with_its_line() -> None:
    text = TOML.replace('"fedavg"', '"median"\ntransforms = ["topk:0.1"]')
    with pytest.raises(
        ExperimentError,
        match=r"mine.toml, line 9: a robust rule with topk: .*; take randomk:SHARE",
    ):
        rules.check(Workload.of(Experiment.parse(text, "mine.toml")))


def test_what_is_doubtful_is_a_warning() -> None:
    with pytest.warns(RuleWarning, match=r"--set .*noise:1.*: noise with no clip: .*clip:NORM"):
        rules.check(work(sends("noise:1")))


def test_what_is_fine_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    rules.check(work(sends("feedback", "topk:0.1")))
    assert not recwarn


def test_an_error_comes_before_all_warnings(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ExperimentError, match="a robust rule with topk"):
        rules.check(work(MEDIAN, sends("noise:1", "topk:0.1")))
    assert not recwarn


def test_a_coordinator_is_told_what_a_simulation_is_not() -> None:
    attacked = work("attack.kind=scale", "attack.share=0.2")
    rules.check(attacked)
    with pytest.raises(
        ExperimentError, match=r"attack.*: real devices with an .attack.: attacks are"
    ):
        rules.check(attacked, deployed=True)


def test_an_update_clip_with_room_for_what_rounding_adds_is_fine() -> None:
    roomy = case("strategy.update_clip=1.1", sends("clip:1", "int8"))
    assert not [rule for rule in rules.found(roomy) if rule.one is rules.TIGHT_BOUND]


def test_krum_with_enough_updates_in_every_round_is_fine() -> None:
    enough = case(KRUM, "fleet.drop_out=0.1", "run.minimum=5")
    assert not [rule for rule in rules.found(enough) if rule.one is rules.KRUM]


@pytest.mark.parametrize("name", ["Krum", "FedMedian"])
def test_robust_rules_of_flower_are_known_by_name(name: str) -> None:
    class Adapted(FedAvg):
        reference = f"flwr.serverapp.strategy:{name}"

    assert rules.ROBUST.holds(replace(case(), strategy=Adapted()))


def test_other_strategies_of_flower_are_not_robust() -> None:
    class Adapted(FedAvg):
        reference = "flwr.serverapp.strategy:FedAdam"

    assert not rules.ROBUST.holds(replace(case(), strategy=Adapted()))
