"""Ranges of activations from samples, and what has none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fedtiny.engine.builder import Net
from fedtiny.engine.calibration import BATCH, calibrated
from fedtiny.engine.compile import compile
from fedtiny.engine.ir import Graph
from fedtiny.engine.program import MARGIN
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import omniglot_conv
from fedtiny.errors import CompileError, DataError
from tests.engine.nets import Array


def small() -> Net:
    net = Net((6, 6, 2))
    value = net.relu(net.conv(net.input, 8, 3, name="conv"))
    net.linear(net.relu(net.linear(value, 16)), 3)
    return net


def made(net: Net, seed: int = 1) -> tuple[Array, Array]:
    """A model in the Layout with ranges, and 80 samples."""
    program = compile(net, loss="mse", ram="8MB", quantisable=True)
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(80, *program.sample_shape)).astype(np.float32)
    return np.array(program.initial(seed)), samples


def ranges(net: Net, vector: Array) -> dict[str, list[float]]:
    layout = compile(net, loss="mse", ram="8MB", quantisable=True).layout
    return {p.layer: vector[p.offset : p.offset + 2].tolist() for p in layout.activations}


def test_a_range_is_the_mean_of_the_least_and_of_the_greatest_values_of_batches() -> None:
    vector, samples = made(small())
    found = calibrated(small(), vector, samples, loss="mse")
    parts = np.split(samples, [BATCH, 2 * BATCH])
    assert [len(part) for part in parts] == [32, 32, 16]
    expected = [np.mean([part.min() for part in parts]), np.mean([part.max() for part in parts])]
    assert ranges(small(), found)["input"] == pytest.approx(expected, rel=1e-6)

    program = compile(small(), loss="mse", ram="8MB", quantisable=True, batch=16)
    executor = ReferenceExecutor(program.image)
    executor.load(vector)
    at = program.forward_names.index("relu1")
    tops = [executor.calibrate(x, 16)[at].max for x in np.split(samples, 5)]
    greatest = np.mean([max(tops[:2]), max(tops[2:4]), tops[4]])
    assert ranges(small(), found)["relu1"] == pytest.approx([0.0, MARGIN * greatest], rel=1e-6)


def test_nothing_else_of_the_model_changes() -> None:
    vector, samples = made(small())
    before = vector.copy()
    found = calibrated(small(), vector, samples, loss="mse")
    np.testing.assert_array_equal(vector, before)
    first = compile(small(), loss="mse", ram="8MB", quantisable=True).layout.activations[0].offset
    np.testing.assert_array_equal(found[:first], vector[:first])
    assert found[first:].all(where=[True] * 2 + [False, True] * 2)  # a ReLU starts at 0


def test_what_a_calibrated_int8_net_says_is_near_to_what_the_float32_one_says() -> None:
    vector, samples = made(small())
    found = calibrated(small(), vector, samples, loss="mse")
    said = []
    for dtype in ("float32", "int8"):
        program = compile(
            small(), loss="mse", ram="8MB", quantisable=True, dtype=dtype, batch=len(samples)
        )
        executor = ReferenceExecutor(program.image)
        executor.load(found)
        said.append(np.array(executor.predict(samples)))
    error = abs(said[0] - said[1]).mean()
    assert 0 < error < 0.01 * np.ptp(said[0])


def test_fewer_samples_than_a_batch_are_one() -> None:
    vector, samples = made(small())
    found = ranges(small(), calibrated(small(), vector, samples[:3], loss="mse"))
    assert found["input"] == [samples[:3].min(), samples[:3].max()]


def test_calibration_without_samples_is_refused() -> None:
    vector, samples = made(small())
    with pytest.raises(DataError, match="calibration needs samples, and there are none; give 32"):
        calibrated(small(), vector, samples[:0], loss="mse")
    samples[7, 2, 2, 0] = np.nan
    with pytest.raises(DataError, match="holds NaN or infinity"):
        calibrated(small(), vector, samples, loss="mse")


def test_an_activation_that_is_always_0_is_refused_by_name() -> None:
    vector, samples = made(small())
    layout = compile(small(), loss="mse", ram="8MB", quantisable=True).layout
    bias = layout["conv.bias"]
    vector[bias.offset : bias.offset + bias.size] = -100.0
    with pytest.raises(DataError, match="the output of relu1 is 0 on all 80 calibration samples"):
        calibrated(small(), vector, samples, loss="mse")
    vector[bias.offset : bias.offset + bias.size] = np.inf
    with pytest.raises(DataError, match=r"relu1 runs from inf to inf .* finite activations"):
        calibrated(small(), vector, samples, loss="mse")


def test_a_net_that_int8_does_not_have_is_refused() -> None:
    net = omniglot_conv(norm="group")
    with pytest.raises(CompileError, match="int8 has no group_normalize"):
        calibrated(net, np.zeros(1, np.float32), np.zeros((1, 28, 28, 1)), loss="mse")


def test_a_range_reaches_as_far_as_the_margin_but_not_beyond_what_the_layer_can_give() -> None:
    net = Net(4)
    net.linear(net.relu6(net.linear(net.relu(net.linear(net.input, 3)), 3)), 2)
    program = compile(net, loss="mse", ram="1MiB", quantisable=True)
    assert [p.name for p in program.layout.activations] == [
        "input.range", "relu1.range", "relu61.range",
    ]  # fmt: skip
    assert [*program.widened([-1.0, 2.0, 0.0, 5.0, 0.0, 5.0])] == [
        -1.0, 2.0, 0.0, MARGIN * 5.0, 0.0, 6.0,
    ]  # fmt: skip


@dataclass(frozen=True)
class ChannelsFirst:
    """A net of images that are given with their channels first, as torch has them."""

    net: Net
    axes: tuple[int, ...] = (1, 2, 0)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.net.sample_shape[i] for i in (2, 0, 1))

    def graph(self, batch: int) -> Graph:
        return self.net.graph(batch)


def test_samples_are_taken_in_the_order_of_the_model_or_as_a_device_stores_them() -> None:
    vector, samples = made(small())
    expected = calibrated(small(), vector, samples, loss="mse")
    given = (samples.transpose(0, 3, 1, 2), samples.reshape(80, -1))
    for x in given:
        found = calibrated(ChannelsFirst(small()), vector, x, loss="mse")
        np.testing.assert_array_equal(found, expected)
