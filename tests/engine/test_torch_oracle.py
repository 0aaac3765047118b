"""The float64 reference learns what torch's autograd learns, op by op and over twenty steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import Compilable, compile
from fedtiny.engine.ir import Graph, Op, Window, verify
from fedtiny.engine.ops import FORWARD, REAL, TABLE, TRACK, produce
from fedtiny.engine.program import Hyper
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import ds_cnn, har_conv, omniglot_conv, resnet, sine_mlp
from fedtiny.values import Sgd
from tests.engine.nets import image_nets, samples
from tests.engine.oracle import FUNCTIONS, Oracle

STEPS = 20
RULE = Sgd(momentum=0.9, weight_decay=0.01, clip=0.5)
LOSSES = st.sampled_from(["mse", "cross_entropy", "soft_cross_entropy"])


def check_against_torch(
    net: Compilable,
    loss: str,
    batch: int,
    rule: Sgd = RULE,
    plain: Compilable | None = None,
    class_weights: list[float] | None = None,
) -> None:
    """Twenty steps of ``net``; torch computes ``plain``, which is the net if not given."""
    program = compile(net, loss=loss, ram="64MiB", flash="64MiB", batch=batch, sgd=rule,
                      class_weights=class_weights)  # fmt: skip
    executor = ReferenceExecutor(program.image, np.float64)
    executor.load(np.asarray(program.initial(1), np.float64))
    oracle = Oracle.of((plain or net).graph(batch), program, 1, rule)
    hyper = Hyper(0.01, rule.momentum, rule.weight_decay, rule.clip)
    for step in range(STEPS):
        x, y = samples(program, step)
        expected = oracle.step(x, y, hyper.lr)
        assert executor.step(x, y, hyper) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    found = np.frombuffer(executor.store(), np.float64)
    np.testing.assert_allclose(found, oracle.vector, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(image_nets(), LOSSES, st.integers(1, 3), st.sampled_from([RULE, Sgd()]))
def test_random_nets_learn_what_torch_learns(net: Net, loss: str, batch: int, rule: Sgd) -> None:
    check_against_torch(net, loss, batch, rule)


def inverted_residuals() -> Net:
    """Two blocks of MobileNetV2: one with a shortcut, one of stride 2."""
    net = Net((12, 12, 3))
    x = net.relu6(net.batch_norm(net.conv(net.input, 6, 3, 2, 1, bias=False)))
    for channels, stride in ((6, 1), (8, 2)):
        inner = x.shape[-1] * 3
        y = net.relu6(net.batch_norm(net.conv(x, inner, 1, bias=False)))
        y = net.relu6(net.batch_norm(net.conv(y, inner, 3, stride, 1, groups=inner, bias=False)))
        y = net.batch_norm(net.conv(y, channels, 1, bias=False))
        x = net.add(x, y) if y.shape == x.shape else y
    net.linear(net.global_avg_pool(x), 4)
    return net


NETS: dict[str, tuple[Callable[[], Net], str, int]] = {
    "sine mlp": (lambda: sine_mlp("tanh"), "mse", 8),
    "omniglot conv4": (lambda: omniglot_conv(channels=8), "cross_entropy", 1),
    "omniglot conv4, pooled": (
        lambda: omniglot_conv(channels=8, norm="batch", pool=True), "cross_entropy", 2),
    "ds-cnn 49 x 10": (lambda: ds_cnn(channels=8, blocks=2), "cross_entropy", 2),
    "har": (lambda: har_conv(6, (4, 8)), "cross_entropy", 2),
    "inverted residuals": (inverted_residuals, "cross_entropy", 2),
    "residual blocks": (lambda: resnet(8, 4, (4, 8), "batch"), "cross_entropy", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_nets_of_the_field_learn_what_torch_learns(name: str) -> None:
    build, loss, batch = NETS[name]
    check_against_torch(build(), loss, batch)


def test_class_weights_weigh_as_in_torch() -> None:
    net = Net(5)
    net.linear(net.tanh(net.linear(net.input, 7)), 3)
    check_against_torch(net, "cross_entropy", 6, class_weights=[0.25, 3.0, 1.0])


# ---- a convolution that is pooled at once ----------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """A net whose convolutions are one op with the max-pooling behind them."""

    net: Net

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.net.sample_shape

    def graph(self, batch: int) -> Graph:
        graph = self.net.graph(batch)
        ops: list[Op] = []
        tensors = dict(graph.tensors)
        for op in graph.ops:
            before = ops[-1] if ops else op
            if op.kind == "max_pool" and before.kind == "conv":
                assert isinstance(before.attributes, Window)
                assert isinstance(op.attributes, Window)
                window = replace(before.attributes, kernel=op.attributes.kernel)
                op, _ = produce("conv_pool", before.inputs, op.outputs, tensors, window)
                del ops[-1], tensors[before.outputs[0]]
            ops.append(op)
        return verify(replace(graph, ops=tuple(ops), tensors=tensors, n_forward=len(ops)))


@settings(max_examples=30)
@given(st.data(), st.integers(1, 3), st.sampled_from([RULE, Sgd()]))
def test_pooled_convolutions_learn_what_torch_learns(
    data: st.DataObject, batch: int, rule: Sgd
) -> None:
    """The first needs no gradient of its input, the second does."""

    def drawn(low: int, high: int, count: int = 2) -> Any:
        return tuple(data.draw(st.integers(low, high)) for _ in range(count))

    net = Net((*drawn(14, 16), 2))
    value = net.input
    for groups, pads in ((1, 1), (2, 0)):
        kernel = drawn(2, 3) if pads else drawn(1, 2)
        value = net.conv(value, 4, kernel, drawn(1, 2 if pads else 1), drawn(0, pads, 4), groups)
        value = net.max_pool(value, drawn(1, 2))
    net.linear(net.tanh(value), 3)
    assert [op.kind for op in Fused(net).graph(1).ops[:2]] == ["conv_pool", "conv_pool"]
    check_against_torch(Fused(net), "cross_entropy", batch, rule, plain=net)


def test_torch_has_an_opinion_on_every_forward_op_that_calculates_with_floats() -> None:
    forward = {kind: row for kind, row in TABLE.items() if row.role in (FORWARD, TRACK)}
    assert {kind for kind, row in forward.items() if row.takes == REAL} == {*FUNCTIONS}
