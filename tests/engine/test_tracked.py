"""Normalisations that track statistics: by the batch in a step, by what they track elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Executor, Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from tests.engine.nets import Array, samples
from tests.engine.test_equality import loaded

EXECUTORS = [NativeExecutor, ReferenceExecutor]
Make = Callable[[bytes], Executor]


def normalised(
    shape: Sequence[int], batch: int = 4, frozen: bool = True, tracked: bool = True
) -> Program:
    """One normalisation of the input itself, which is compared with targets. Its affine map
    starts as 1 and 0."""
    net = Net(tuple(shape))
    net.batch_norm(net.input, frozen=frozen, tracked=tracked)
    return compile(net, loss="mse", ram="1MiB", batch=batch)


def statistics(program: Program, executor: Executor) -> tuple[Array, Array]:
    """The running mean and variance."""
    vector = np.frombuffer(executor.store(), np.float32)
    mean, var = (vector[p.offset : p.offset + p.size] for p in program.layout.parameters
                 if "running" in p.name)  # fmt: skip
    return mean, var


def rows(x: Array) -> Array:
    """One a position, in float64."""
    return x.reshape(-1, x.shape[-1]).astype(np.float64)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_moves_the_statistics_a_tenth_of_the_way(executor: Make) -> None:
    """From mean 0 and variance 1, twice; the variance of a batch is that of its rows - 1."""
    program, mean, var = normalised((3, 3, 5)), np.zeros(5), np.ones(5)
    made = executor(program.image)
    made.load(program.initial(1))
    for i in range(2):
        x, y = samples(program, i)
        made.step(2 * x + 1, y, Hyper(0.1))
        mean += 0.1 * (rows(2 * x + 1).mean(0) - mean)
        var += 0.1 * (rows(2 * x + 1).var(0, ddof=1) - var)
    np.testing.assert_allclose(statistics(program, made), (mean, var), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_may_leave_them(executor: Make) -> None:
    program = normalised((3, 3, 5))
    losses = []
    for keep in (False, True):
        made = executor(program.image)
        made.load(program.initial(1))
        losses.append(made.step(*samples(program), Hyper(0.1, keep_statistics=keep)))
    assert losses[0] == losses[1]
    assert [part.tolist() for part in statistics(program, made)] == [[0.0] * 5, [1.0] * 5]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_is_that_of_a_normalisation_by_the_batch(executor: Make) -> None:
    """The same losses and the same affine map, which the two Layouts have first."""
    outcomes = []
    for tracked in (True, False):
        program = normalised((3, 3, 5), frozen=False, tracked=tracked)
        made = executor(program.image)
        made.load(program.initial(1))
        losses = [made.step(*samples(program, i), Hyper(0.1)) for i in range(3)]
        vector = np.frombuffer(made.store(), np.float32)
        trained = [vector[p.offset : p.offset + p.size].tolist() for p in program.layout.parameters
                   if "running" not in p.name]  # fmt: skip
        outcomes.append((losses, trained))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_predictions_go_by_what_is_tracked_and_leave_it(executor: Make) -> None:
    """The bits of a frozen normalisation with the same numbers; the moments too."""
    outcomes = []
    for tracked in (True, False):
        program = normalised((3, 3, 5), tracked=tracked)
        (x, y), made = samples(program), executor(program.image)
        vector = np.random.default_rng(2).uniform(0.5, 2, program.layout.size).astype(np.float32)
        for p in program.layout.parameters:
            value = np.random.default_rng(len(p.name)).uniform(0.5, 2, p.size)
            vector[p.offset : p.offset + p.size] = value
        made.load(vector)
        moments = made.calibrate(x, 3)[0]
        outcomes.append((bytes(np.asarray(made.predict(x))), made.evaluate(x, y, 3), moments.sum))
        assert bytes(made.store()) == vector.tobytes()
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_observed_pools_to_the_statistics_of_all_samples(executor: Make) -> None:
    program = normalised((3, 3, 5))
    made = executor(program.image)
    made.load(program.initial(1))
    batches = [samples(program, i)[0] for i in range(3)]
    sums, squares = np.sum([made.observe(x) for x in batches], 0).reshape(2, 5)
    pooled, count = rows(np.concatenate(batches)), 3 * 4 * 9
    np.testing.assert_allclose(sums / count, pooled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(squares / count - (sums / count) ** 2, pooled.var(0), rtol=1e-12)
    assert [part.tolist() for part in statistics(program, made)] == [[0.0] * 5, [1.0] * 5]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_observed_behind_a_normalisation_went_by_the_batch(executor: Make) -> None:
    """The second one sees mean 0 and variance 1, whatever the first one tracks."""
    net = Net((3, 3, 5))
    first = net.batch_norm(net.input, tracked=True)
    net.batch_norm(first, tracked=True)
    program = compile(net, loss="mse", ram="1MiB", batch=4)
    made = executor(program.image)
    made.load(program.initial(1))
    x = samples(program)[0]
    seen = np.reshape(made.observe(5 * x + 7), (2, 2, 5)) / 36
    np.testing.assert_allclose(seen[0, 0], rows(5 * x + 7).mean(0), rtol=1e-6)
    np.testing.assert_allclose(seen[1], [[0] * 5, [1] * 5], atol=1e-5)


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 5), min_size=0, max_size=2), st.integers(1, 70), st.integers(2, 9),
    st.booleans(), st.sampled_from([1.0, 1e-3, 1e20, float("nan")]),
)  # fmt: skip
def test_every_build_gives_the_same_bits(
    runtimes: dict[str, Path], extents: list[int], channels: int, batch: int, keep: bool,
    scale: float,
) -> None:  # fmt: skip
    program = normalised((*extents, channels), batch)
    expected = outcome(ReferenceExecutor(program.image), program, keep, scale)
    for name, runtime in runtimes.items():
        with loaded(runtime):
            assert outcome(NativeExecutor(program.image), program, keep, scale) == expected, name


def outcome(executor: Executor, program: Program, keep: bool, scale: float) -> list[bytes]:
    """What two steps leave, and what is then observed and predicted."""
    executor.load(program.initial(1))
    for i in range(2):
        x, y = samples(program, i)
        executor.step(scale * x, y, Hyper(0.05, keep_statistics=keep))
    return [bytes(executor.store()), np.array(executor.observe(x)).tobytes(),
            bytes(np.asarray(executor.predict(x), np.float32))]  # fmt: skip
