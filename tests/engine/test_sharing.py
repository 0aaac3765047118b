"""What is made again is made once where that needs no more bytes, and what is pooled has its slope
taken where it is small; no bit changes."""

from __future__ import annotations

import importlib
from collections import Counter

import numpy as np
import pytest

from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import build
from fedtiny.engine.ir import Graph
from fedtiny.engine.liveness import live_bytes
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from tests.engine.int8_nets import ranged
from tests.engine.nets import samples

_COMPILE = importlib.import_module("fedtiny.engine.compile")
_SAVING = importlib.import_module("fedtiny.engine.saving")


def as_it_is(graph: Graph) -> Graph:
    return graph


def made(net: Net, plan: str, dtype: str = "int8") -> tuple[Graph, Program]:
    built = build(net, loss="cross_entropy", plan=plan, dtype=dtype)
    return built.graph, built.program


def stored(program: Program) -> tuple[bytes, bytes]:
    """The losses and the parameters of three steps."""
    executor = ReferenceExecutor(program.image)
    executor.load(ranged(program, reach=4.0))
    losses = [executor.step(*samples(program, i), Hyper(0.05)) for i in range(3)]
    return np.array(losses).tobytes(), bytes(executor.store())


def pooled(stride: int) -> Net:
    """A convolution of 7 x 7 pixels whose activation is pooled 3 x 3."""
    net = Net((7, 7, 2))
    value = net.max_pool(net.relu(net.conv(net.input, 5, 3, padding=1)), 3, stride)
    net.linear(net.relu(net.conv(value, 4, 1)), 3)
    return net


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_value_that_can_wait_is_not_made_again(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = made(zoo.ds_cnn(channels=8, norm="none"), "last:4", dtype)
    monkeypatch.setattr(_SAVING, "shared", as_it_is)
    apart = made(zoo.ds_cnn(channels=8, norm="none"), "last:4", dtype)
    assert max(live_bytes(shared[0])) <= max(live_bytes(apart[0]))
    assert len(shared[0].ops) <= len(apart[0].ops)


def test_the_mask_of_a_value_is_made_where_the_value_is() -> None:
    """DS-CNN runs 9 convolutions. Its update needs the output of the seventh again, 7 more, and
    then that of the sixth, 6 more; the seventh's slope, which comes last, finds its mask kept."""
    graph, _ = made(zoo.ds_cnn(norm="none"), "last:4")
    assert Counter(op.kind for op in graph.ops)["conv8"] == 9 + 7 + 6


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_slopes_behind_the_pooling_change_no_bit(
    stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, program = made(pooled(stride), "all")
    monkeypatch.setattr(_COMPILE, "pooled_slopes", as_it_is)
    before, plain = made(pooled(stride), "all")
    assert [op.kind for op in graph.ops] != [op.kind for op in before.ops]
    assert max(live_bytes(graph)) <= max(live_bytes(before))
    assert stored(program) == stored(plain)
