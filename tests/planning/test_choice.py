"""What may be chosen of a net."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fedtiny.engine.compile import build
from fedtiny.engine.zoo import mlp
from fedtiny.errors import CompileError
from fedtiny.planning.choice import SHARES, Choice, Menu, plan_gain, written
from fedtiny.planning.contribution import fisher_information
from fedtiny.update_plan import UpdatePlan
from tests.planning.nets import LOSS, normalised, samples, separable, squares, values

WHOLE = SHARES[-1:]


def test_a_depthwise_convolution_trains_whole_or_not_at_all() -> None:
    menu = Menu.of(separable(), squares())
    shares = {layer.name: layer.shares for layer in menu.layers}
    # The first has 3 inputs, of which an eighth is none.
    assert shares == {"conv1.weight": WHOLE, "conv2.weight": WHOLE, "conv3.weight": SHARES}


def test_a_gain_trains_whole_and_the_bias_of_a_norm_is_a_bias() -> None:
    net = normalised()
    menu = Menu.of(net, fisher_information(net, values(net), *samples(net), LOSS))
    assert [(layer.name, layer.shares) for layer in menu.layers] == [
        ("conv1.weight", WHOLE), ("group_norm1.weight", WHOLE),
    ]  # fmt: skip
    assert (len(menu.biases), menu.biased_head) == (1, True)


def test_a_share_takes_the_channels_that_add_most() -> None:
    pointwise = Menu.of(separable(), squares()).layers[2]
    by_input = squares()["conv3.weight"].sum(axis=(0, 1, 3))
    best = np.sort(np.argsort(-by_input)[:2])
    assert pointwise.channels(Fraction(1, 4)).tolist() == best.tolist()
    assert pointwise.gain(Fraction(1, 4)) == pytest.approx(by_input[best].sum())
    listed = "+".join(map(str, best))
    assert str(pointwise.pattern(Fraction(1, 4))).startswith(f"conv3.weight{{in={listed[0]}")


def test_the_gain_of_a_choice_is_that_of_its_plan_without_the_head() -> None:
    net = separable()
    menu, layout = Menu.of(net, squares()), net.graph(1).layout
    head = sum(float(squares()[name].sum()) for name in ("linear1.weight", "linear1.bias"))
    for choice in (
        Choice(),
        Choice(2),
        Choice(1, {2: Fraction(1, 2)}),
        Choice(3, {0: Fraction(1)}),
    ):
        gain = plan_gain(layout, squares(), menu.plan(choice))
        assert gain == pytest.approx(1 + menu.gain(choice) / head)


def test_every_choice_is_a_plan_that_compiles() -> None:
    net = separable()
    menu = Menu.of(net, squares())
    for at, layer in enumerate(menu.layers):
        for share in layer.shares:
            plan = menu.plan(menu.settled(Choice(0, {at: share})))
            assert UpdatePlan.parse(str(plan)) == plan
            assert layer.name in build(net, loss=LOSS, plan=plan).program.trained_names


def test_a_weight_takes_the_biases_behind_it_along() -> None:
    menu = Menu.of(separable(), squares())
    assert menu.settled(Choice(0, {1: Fraction(1)})).biases == 2
    assert menu.settled(Choice(3, {1: Fraction(1)})).biases == 3


def test_the_written_plans_are_the_last_layers_and_the_last_biases() -> None:
    last, biases = written(separable().graph(1).layout)
    assert list(map(str, last)) == ["last:1", "last:2", "last:3", "last:4"]
    assert list(map(str, biases)) == ["biases:1", "biases:2", "biases:3", "biases:4"]


def test_a_net_that_is_but_a_head_has_nothing_to_choose() -> None:
    net = mlp((4, 3))
    contributions = {p.name: np.ones(p.shape) for p in net.graph(1).layout.parameters}
    with pytest.raises(CompileError, match="no layer before its head"):
        Menu.of(net, contributions)
