"""Devices that train different channels of one model, averaged coordinate by coordinate."""

from __future__ import annotations

import numpy as np

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.fold import FoldRule, Total
from fedtiny.layout import coordinates
from fedtiny.values import Instruction, Phase, Update
from tests.engine.nets import Array, samples

PLANS = {
    "named:conv.weight{in=0-2},fc.*": 3,
    "named:conv.weight{out=1/2},conv.bias{out=1/2}": 5,
    "biases+named:conv.weight{in=2-3}": 2,
}
"""What each device trains, and its number of samples."""
ASKED = Instruction(phases=(Phase(0.1, 1),))


def net() -> Net:
    net = Net((4, 4, 4))
    x = net.tanh(net.conv(net.input, 6, 3, name="conv"))
    net.linear(net.global_avg_pool(x), 3, name="fc")
    return net


def step(program: Program, device: int) -> Array:
    executor = ReferenceExecutor(program.image)
    executor.load(program.initial(1))
    executor.step(*samples(program, device), Hyper(0.1))
    return np.frombuffer(executor.store(), np.float32)


def test_a_channel_is_averaged_over_the_devices_whose_plan_trains_it() -> None:
    programs = [compile(net(), loss="mse", ram="64KiB", plan=plan) for plan in PLANS]
    whole = compile(net(), loss="mse", ram="64KiB")
    base = np.asarray(whole.initial(1))
    total = Total.zero(base.size, FoldRule.for_round(len(PLANS), 50.0))
    deltas, weights = np.zeros(base.size), np.zeros(base.size)
    for device, (program, count) in enumerate(zip(programs, PLANS.values(), strict=True)):
        assert program.layout == whole.layout
        ranges = program.sent_ranges(ASKED)
        sent = coordinates(ranges)
        values = step(program, device)[sent].tobytes()
        total = total.add(Update(device, device, 0, 0, count, values, ranges), base, count)
        deltas[sent] += count * (step(whole, device).astype(float) - base)[sent]
        weights[sent] += count
    assert set(weights.tolist()) == {2, 3, 5, 7, 8, 10}  # every pair, too
    expected = np.divide(deltas, weights, out=np.zeros(base.size), where=weights > 0)
    np.testing.assert_allclose(total.mean(), expected, rtol=0, atol=1e-8)
