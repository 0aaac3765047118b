"""Contributions are mean squared gradients of single samples."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny.device.learner import Learner
from fedtiny.engine.compile import build
from fedtiny.errors import DataError
from fedtiny.planning.contribution import fisher_information, warmed
from tests.planning.nets import LOSS, samples, separable, squares, values


def test_they_are_the_squares_of_what_one_step_on_each_sample_moves() -> None:
    """A step of learning rate 1 from w to w - g, one sample at a time, gives every gradient."""
    net = separable()
    start, (x, y) = values(net), samples(net)
    learner = Learner(build(net, loss=LOSS).program)
    total = np.zeros(len(start))
    for row, label in zip(x, y, strict=True):
        learner.load(start)
        learner.step(row[None], label[None], lr=1.0)
        total += (np.asarray(learner.vector(), np.float64) - start) ** 2
    for p in net.graph(1).layout.parameters:
        expected = total[p.offset : p.offset + p.size].reshape(p.shape) / len(y)
        np.testing.assert_allclose(squares()[p.name], expected, rtol=2e-3, atol=1e-9)


def test_without_samples_there_is_nothing_to_choose_by() -> None:
    net = separable()
    x, y = samples(net)
    with pytest.raises(DataError, match="there are none"):
        fisher_information(net, values(net), x[:0], y[:0], LOSS)


def test_a_warm_head_alone_is_other_than_before() -> None:
    net = separable()
    start = values(net)
    moved = np.flatnonzero(np.asarray(warmed(net, start, *samples(net), LOSS)) != start)
    head = net.graph(1).layout["linear1.weight"].offset
    assert moved.min() >= head
    assert moved.size > (len(start) - head) / 2
