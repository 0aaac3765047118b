"""FedBN, FedPer and FedRep: what stays on the devices, and what a visit trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.builder import Net
from fedtiny.errors import StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.layout import FROZEN, LOCAL, Layout
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Round
from fedtiny.strategies.fedbn import FedBN
from fedtiny.strategies.fedper import FedPer
from fedtiny.strategies.fedrep import FedRep
from fedtiny.values import LOCAL_VALUES


def small() -> Net:
    """Two normalisations, of which one tracks its statistics, between three linear layers."""
    net = Net(64)
    value = net.relu(net.batch_norm(net.linear(net.input, 8, name="a"), tracked=True, name="bn"))
    value = net.relu(net.group_norm(net.linear(value, 8, name="b"), 2, name="gn"))
    net.linear(value, 10, name="head")
    return net


LAYOUT = small().graph(2).layout


def workload(**strategy: Any) -> Workload:
    tables = {
        "seed": 3,
        "model": {"build": f"{__name__}:small"},
        "data": {"source": "label-skew-digits"},
        "device": {"batch": 4},
        "strategy": {"cohort": 2, "beta": 0.1, **strategy},
        "fleet": {"devices": 4, "held_out": 0, "profiles": {"pi-4": 1.0}},
    }
    return Workload.of(Experiment.of(tables))


def local_names(layout: Layout) -> list[str]:
    return [p.name for p in layout.parameters if p.group == LOCAL]


def test_fedbn_keeps_the_normalisations_and_their_statistics() -> None:
    found = local_names(workload(name="fedbn").layout)
    bn = [f"bn.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
    assert sorted(found) == sorted([*bn, "gn.weight", "gn.bias"])


def test_fedbn_leaves_statistics_that_never_change_with_the_model() -> None:
    net = Net(3)
    net.linear(net.batch_norm(net.linear(net.input, 4), name="bn"), 2)
    layout = net.graph(1).layout
    assert layout["bn.running_mean"].group == FROZEN
    assert FedBN().local(layout) == ("bn.weight", "bn.bias")


def test_fedbn_refuses_a_model_without_a_normalisation() -> None:
    net = Net(3)
    net.bias(net.linear(net.input, 4, bias=False))
    with pytest.raises(StrategyError, match="no normalisation"):
        calls.local(FedBN(), net.graph(1).layout)


def test_the_line_that_names_such_a_strategy_is_told() -> None:
    text = "[model]\nbuild = 'digits_mlp'\n\n[strategy]\nname = 'fedbn'\n"
    with pytest.raises(StrategyError, match=r"a\.toml, line 4: .*no normalisation"):
        Workload.of(Experiment.parse(text + "[data]\nsource = 'label-skew-digits'\n", "a.toml"))


@pytest.mark.parametrize(("layers", "kept"), [(1, {"head"}), (2, {"head", "gn"})])
def test_fedper_keeps_the_last_layers(layers: int, kept: set[str]) -> None:
    names = FedPer(layers=layers).local(LAYOUT)
    assert {LAYOUT[name].layer for name in names} == kept
    assert set(names) == {p.name for p in LAYOUT.parameters if p.layer in kept}


@pytest.mark.parametrize("strategy", [FedPer(layers=5), FedPer(layers=9)])
def test_somebody_has_to_share_something(strategy: FedPer) -> None:
    with pytest.raises(StrategyError, match="nothing is shared"):
        calls.local(strategy, LAYOUT)


def test_a_strategy_can_only_keep_parameters_of_the_model() -> None:
    class Wrong(FedPer):
        def local(self, layout: Layout) -> tuple[str, ...]:
            return ("tail.weight",)

    with pytest.raises(StrategyError, match=r"Wrong\.local .* it has no 'tail\.weight'"):
        calls.local(Wrong(), LAYOUT)


def test_fedrep_trains_the_head_and_then_what_is_shared() -> None:
    strategy = FedRep(beta=0.1, steps=3, head_steps=7)
    layout = workload(name="fedrep").layout
    asked = strategy.fitted(FleetFacts(layout=layout)).ask(Round(0, 4), {})
    head, body = asked.phases
    assert (head.groups, head.steps, head.lr) == ((LOCAL,), 7, 0.1)
    assert (body.groups, body.steps, body.lr) == (("shared", "statistics"), 3, 0.1)


@pytest.mark.parametrize("name", ["fedbn", "fedper", "fedrep"])
def test_a_visit_sends_what_is_shared_and_goes_on_from_what_it_kept(name: str) -> None:
    work = workload(name=name)
    program, layout = work.profiles[0].needed, work.layout
    learner = Learner(program)
    samples = learner.samples(*work.task.samples(3, 0, 1, "support"))
    base = np.asarray(work.initial)
    asked = work.strategy.ask(Round(0, 4), {})

    def visited(kept: dict[str, bytes]) -> tuple[bytes, bytes]:
        done = learner.visit(asked, base, lambda part: samples, Key(3, 0, 1), kept)
        assert done.ranges == program.sent_ranges(asked)
        return bytes(done.values), bytes(done.kept[LOCAL_VALUES])

    own = np.concatenate([base[a:b] for a, b in layout.local_ranges])
    values, kept = visited({})
    assert len(values) + len(kept) == layout.nbytes
    assert kept != own.tobytes()
    assert visited({LOCAL_VALUES: kept})[0] != values
    assert visited({LOCAL_VALUES: own.tobytes()}) == (values, kept)
