"""Small nets and samples for the tests of plans."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fedtiny.engine.builder import Net
from fedtiny.engine.program import initial_values
from fedtiny.planning.contribution import Contributions, fisher_information

LOSS = "cross_entropy"


def separable() -> Net:
    """A convolution, a depthwise one and a pointwise one, then three classes."""
    net = Net((8, 8, 3))
    value = net.relu(net.conv(net.input, 8, 3, padding=1))
    value = net.relu(net.conv(value, 8, 3, stride=2, padding=1, groups=8))
    value = net.relu(net.conv(value, 16, 1))
    net.linear(net.global_avg_pool(value), 3)
    return net


def normalised() -> Net:
    """A layer without a bias of its own, whose norm has a gain and a bias."""
    net = Net((6, 6, 2))
    value = net.relu(net.group_norm(net.conv(net.input, 8, 3, bias=False), 2))
    net.linear(net.global_avg_pool(value), 3)
    return net


def values(net: Net) -> Any:
    """Those that a net starts from."""
    graph = net.graph(1)
    return np.asarray(initial_values(graph.layout, graph.initial, graph.start, 1))


def samples(net: Net, count: int = 12) -> tuple[Any, Any]:
    """Noise, with labels."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(count, *net.sample_shape)).astype(np.float32)
    return x, (np.arange(count) % 3).astype(np.int32)


@lru_cache
def squares() -> Contributions:
    """The contributions of the separable net."""
    net = separable()
    return fisher_information(net, values(net), *samples(net), LOSS)
