"""Gains that are measured by training."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny.errors import DataError
from fedtiny.planning.measuring import Rehearsal, measured_gains
from tests.planning.nets import LOSS, samples, separable, squares, values


def rehearsal() -> Rehearsal:
    net = separable()
    return Rehearsal.of(net, values(net), samples(net, 16), {"loss": LOSS})


def test_every_fourth_sample_is_kept_to_judge_by() -> None:
    net = separable()
    x, y = samples(net, 16)
    held = rehearsal()
    np.testing.assert_array_equal(held.query[0], x[[3, 7, 11, 15]])
    np.testing.assert_array_equal(held.query[1], y[[3, 7, 11, 15]])
    assert len(held.support[1]) == 12
    with pytest.raises(DataError, match="8 samples or more, and there are 7"):
        Rehearsal.of(net, values(net), (x[:7], y[:7]), {"loss": LOSS})


def test_the_gain_of_a_parameter_is_by_how_much_the_loss_is_lower_and_keeps_its_channels() -> None:
    held, told = rehearsal(), list[tuple[int, int]]()
    gains = measured_gains(held, squares(), lambda at, of: told.append((at, of)))
    alone = held.scores("last:1")["loss"]
    lower = alone - held.scores("last:1+named:conv1.weight")["loss"]
    assert gains["conv1.weight"].sum() == pytest.approx(max(0.0, lower))
    head = sum(gains[name].sum() for name in ("linear1.weight", "linear1.bias"))
    assert head == pytest.approx(max(0.0, held.untrained() - alone))
    assert told[-1] == (6, 6)  # three weights, three biases
    for name, gain in gains.items():
        if gain.any():
            assert np.argmax(gain) == np.argmax(squares()[name])
