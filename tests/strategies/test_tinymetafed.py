"""TinyMetaFed: what a visit is asked for, against its paper."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny.engine.zoo import mlp
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Round
from fedtiny.strategies.tinymetafed import TinyMetaFed
from fedtiny.strategies.tinyreptile import TinyReptile
from fedtiny.values import Transform


def fitted(head: str = "shared", **fields: float | str | int) -> TinyMetaFed:
    layout = mlp((3, 4, 2), head=head).graph(1).layout
    return TinyMetaFed(**fields).fitted(FleetFacts(layout=layout))  # type: ignore[arg-type]


def test_a_visit_sends_its_largest_changes() -> None:
    assert fitted(upload=0.25).ask(Round(0, 4), {}).transforms == (Transform("topk", 0.25),)
    assert fitted(upload=1.0).ask(Round(0, 4), {}).transforms == ()


def test_what_the_experiment_transforms_comes_on_top() -> None:
    strategy = TinyMetaFed(upload=0.25, transforms=("feedback", "int8"))
    layout = mlp((3, 4, 2)).graph(1).layout
    strategy = strategy.fitted(FleetFacts(layout=layout))
    asked = calls.ask(strategy, Round(0, 4), {}, layout)
    assert [transform.name for transform in asked.transforms] == ["feedback", "topk", "int8"]


@pytest.mark.parametrize("head", ["local", "fresh"])
def test_local_parameters_are_reconstructed_before_the_shared_ones_train(head: str) -> None:
    asked = fitted(head, rebuild=5).ask(Round(0, 4), {})
    rebuilt, shared = asked.phases
    assert (rebuilt.groups, rebuilt.steps) == ((head,), 5)
    assert (shared.groups, shared.steps) == (("shared",), 0)


def test_without_local_parameters_there_is_one_streamed_pass() -> None:
    (phase,) = fitted().ask(Round(0, 4), {}).phases
    assert (phase.groups, phase.steps, phase.shuffle) == (("shared",), 0, False)


@pytest.mark.parametrize(
    ("anneal", "shares"),
    [("linear", [1, 0.75, 0.5, 0.25]), ("none", [1, 1, 1, 1])],
)
def test_both_step_sizes_fall(anneal: str, shares: list[float]) -> None:
    strategy = fitted(alpha=0.8, beta=0.1, least=0.2, anneal=anneal)
    asked = [strategy.ask(Round(t, 4), {}) for t in range(4)]
    found = np.array([[strategy.alpha_at(Round(t, 4)), asked[t].phases[0].lr] for t in range(4)])
    np.testing.assert_allclose(found[:, 0], 0.8 * np.array(shares))
    np.testing.assert_allclose(found[:, 1], 0.1 * (0.2 + 0.8 * np.array(shares)))


def test_with_everything_sent_at_one_step_size_it_is_tinyreptile() -> None:
    ours = fitted(upload=1.0, least=1.0).ask(Round(1, 4), {})
    theirs = TinyReptile().ask(Round(1, 4), {})
    assert ours.phases[0].lr == theirs.phases[0].lr
    assert (ours.returns, ours.transforms) == (theirs.returns, theirs.transforms)
    assert fitted().alpha_at(Round(1, 4)) == TinyReptile().alpha_at(Round(1, 4))
