"""A growth finds the dead weights with the largest gradients, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import native
from fedtiny.engine.builder import Net, Value
from fedtiny.engine.compile import compile
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Executor, Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.errors import DataError, RunError
from fedtiny.values import Sgd
from tests.engine.nets import Array, samples
from tests.engine.test_equality import loaded

ALL = 1 << 20
"""A bucket for all dead weights: the compiler cuts it."""
MOMENTUM = Sgd(momentum=0.9)


def pruned(net: Net, density: float, batch: int = 4, loss: str = "mse") -> Program:
    return compile(net, loss=loss, ram="256MiB", flash="256MiB", batch=batch, sgd=MOMENTUM,
                   density=density, bucket=ALL)  # fmt: skip


def some_live(program: Program, seed: int = 0) -> Array:
    """bool[coordinates]: as many weights as the pool holds, and all that is never pruned."""
    live = np.ones(program.layout.size, bool)
    weights = np.concatenate([np.arange(p.vector_at, p.vector_at + p.count)
                              for p in program.tables.params if p.pruned])  # fmt: skip
    dead = np.random.default_rng(seed).permutation(weights)[program.tables.live_capacity :]
    live[dead] = False
    return live


def bits(live: Array) -> bytes:
    return np.packbits(live, bitorder="little").tobytes()


def grown(
    executor: Executor, program: Program, live: Array, most: Sequence[int], x: Array | None = None
) -> list[tuple[int, float]]:
    """One growth of the initial model."""
    batch, y = samples(program)
    executor.load_mask(bits(live))
    executor.load(program.initial(1))
    return executor.grow(batch if x is None else x, y, most)


def dense_gradient(net: Net, program: Program, live: Array) -> Array:
    """Of the same batch at the same model, from a dense Program: a step that moves nothing."""
    dense = compile(net, loss=program.loss, ram="256MiB", flash="256MiB", batch=program.batch,
                    sgd=MOMENTUM)  # fmt: skip
    executor = NativeExecutor(dense.image)
    executor.load(np.asarray(program.initial(1)) * live)
    executor.step(*samples(program), Hyper(0.0))
    return np.frombuffer(executor.store_gradient(), np.float32)


def largest(g: Array, dead: Array, most: int) -> list[tuple[int, float]]:
    """The `most` largest |g| of some coordinates; of equal ones the lower."""
    chosen = dead[np.lexsort((dead, -abs(g[dead])))[:most]]
    return [(int(at), float(g[at])) for at in np.sort(chosen)]


def two_layers() -> Net:
    """A convolution of 72 weights, a tracked normalisation, a matrix of 300."""
    net = Net((5, 5, 2))
    net.linear(net.batch_norm(net.conv(net.input, 4, 3, padding="same"), tracked=True), 3)
    return net


def convolution(side: int, inputs: int, outputs: int, kernel: int, stride: int) -> Net:
    net = Net((side, side, inputs))
    net.conv(net.input, outputs, kernel, stride, padding=kernel // 2)
    return net


def matrix(inputs: int, outputs: int) -> Net:
    net = Net(inputs)
    net.linear(net.input, outputs)
    return net


@pytest.mark.parametrize(
    ("net", "density"),
    [
        (convolution(7, 3, 20, 3, 1), 0.1),
        (convolution(8, 17, 33, 3, 2), 0.04),
        (convolution(5, 2, 3, 5, 1), 0.5),
        (convolution(6, 9, 16, 1, 1), 0.03),
        (matrix(100, 40), 0.03),
        (matrix(37, 3), 0.2),
        (matrix(400, 401), 0.0001),
    ],
    ids=["3x3", "strided", "few outputs", "1x1", "matrix", "narrow", "far apart"],
)
@pytest.mark.parametrize("batch", [1, 10])
def test_it_is_what_sorting_the_dense_gradient_gives(net: Net, density: float, batch: int) -> None:
    """The last one keeps 16 of 160,400 weights: they are more than 65,535 apart."""
    program = pruned(net, density, batch)
    live = some_live(program)
    if program.tables.live_capacity == 16:
        live[:] = np.arange(live.size) >= live.size - 16 - 401
    g, dead = dense_gradient(net, program, live), np.flatnonzero(~live)
    for most in (1, 7, len(dead) // 3, len(dead)):
        found = grown(NativeExecutor(program.image), program, live, [most])
        assert found == largest(g, dead, most)


@st.composite
def pruned_nets(draw: st.DrawFn) -> Net:
    """Two sparse convolutions with a tracked normalisation between them, and a sparse matrix."""
    net = Net((draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.integers(2, 5))))
    value: Value = net.conv(net.input, draw(st.integers(8, 24)), draw(st.integers(1, 3)),
                            draw(st.integers(1, 2)), "same")  # fmt: skip
    value = net.relu(net.batch_norm(value, tracked=True))
    value = net.conv(value, draw(st.integers(8, 24)), 1)
    net.linear(value, draw(st.integers(2, 5)))
    return net


@settings(max_examples=40)
@given(
    pruned_nets(), st.sampled_from([0.05, 0.3, 0.7]), st.integers(2, 10), st.data(), st.booleans()
)
def test_every_build_finds_the_same_bits(
    runtimes: dict[str, Path], net: Net, density: float, batch: int, data: st.DataObject, zero: bool
) -> None:
    program = pruned(net, density, batch, "cross_entropy")
    live, x = some_live(program), samples(program)[0]
    if zero:
        x[:, x.shape[1] // 2 :] = 0.0
    shares = data.draw(st.lists(st.integers(0, 40), min_size=3, max_size=3))
    most = [min(share, program.tables.bucket // 3) for share in shares]
    expected = grown(ReferenceExecutor(program.image), program, live, most, x)
    for name, runtime in runtimes.items():
        with loaded(runtime):
            assert grown(NativeExecutor(program.image), program, live, most, x) == expected, name


def test_of_equal_gradients_the_lower_coordinates_are_kept() -> None:
    """With x = 1 all rows of a matrix have the same gradient; with x = 0 it is 0 everywhere. Column
    2 lives, and the biases at 24 to 27."""
    program = pruned(matrix(6, 4), 0.25)
    live = (np.arange(28) % 4 == 2) | (np.arange(28) >= 24)
    executor, ones = NativeExecutor(program.image), np.ones((4, 6), np.float32)
    found = grown(executor, program, live, [18], ones)
    column = max(found, key=lambda place: abs(place[1]))[0] % 4
    few = grown(executor, program, live, [2], ones)
    assert [at for at, _ in few] == [column, column + 4]
    assert grown(executor, program, live, [3], 0 * ones) == [(0, 0.0), (1, 0.0), (3, 0.0)]


def test_a_gradient_that_is_no_number_is_the_largest(runtimes: dict[str, Path]) -> None:
    """Input 3 is a NaN of a sign of its own: row 3, coordinates 12 to 15, comes first."""
    program = pruned(matrix(6, 4), 0.25)
    live = np.ones(28, bool)
    live[:18] = False
    x = samples(program)[0]
    x[1, 3] = -np.nan
    for runtime in runtimes.values():
        with loaded(runtime):
            found = grown(NativeExecutor(program.image), program, live, [3], x)
        assert [at for at, _ in found] == [12, 13, 14]
        assert all(g != g for _, g in found)


def test_nothing_moves() -> None:
    """Neither parameters nor running statistics; nor is anything clipped."""
    program = compile(two_layers(), loss="cross_entropy", ram="1MiB", batch=4, density=0.3,
                      bucket=50, sgd=Sgd(momentum=0.9, clip=0.01))  # fmt: skip
    executor = NativeExecutor(program.image)
    executor.load_mask(bits(some_live(program)))
    executor.load(program.initial(1))
    executor.step(*samples(program), Hyper(0.1, 0.9, clip=0.01))
    before = executor.store(), executor.store_gradient()
    assert executor.grow(*samples(program), [20, 30])
    assert (executor.store(), executor.store_gradient()) == before


def test_a_parameter_of_which_none_are_wanted_is_not_looked_at() -> None:
    program = pruned(two_layers(), 0.3)
    found = grown(NativeExecutor(program.image), program, some_live(program), [0, 5])
    assert len(found) == 5
    assert all(at >= 72 for at, _ in found)


def test_a_wrong_label_or_a_bucket_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pruned(matrix(6, 4), 0.25, loss="cross_entropy")
    executor, (x, y) = NativeExecutor(program.image), samples(program)
    executor.load_mask(bits(some_live(program)))
    with pytest.raises(DataError, match="18"):
        executor.grow(x, y, [19])
    monkeypatch.setattr(native, "check_growth", lambda *_: None)
    with pytest.raises(RunError, match="the memory is smaller"):
        executor.grow(x, y, [19])
    with pytest.raises(DataError, match="label 4"):
        executor.grow(x, np.full(4, 4, np.int32), [1])
