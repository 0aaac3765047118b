"""int8 Programs: the native runtime, in every build, and the reference give the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.data.tables import RowTable
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.fleet_call import FleetCall
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Executor, Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.errors import DataError
from fedtiny.quantised import held
from fedtiny.values import SUPPORT, Instruction, Phase, Sgd
from tests.engine.int8_nets import PLANS, int8_nets, ranged
from tests.engine.nets import Array, samples
from tests.engine.test_equality import RULES, loaded

HEADS = st.sampled_from(["float32", "int8"])
LOSSES = st.sampled_from(["mse", "cross_entropy"])
STREAM = (2**40 + 7, 3, 9)


def everything(executor: Executor, program: Program, hyper: Hyper, steps: int) -> list[bytes]:
    """The losses, what a model is after the steps, and what it says of the last samples."""
    executor.load(ranged(program, reach=3.0))
    executor.seed(*STREAM)
    losses = [executor.step(*samples(program, i), hyper) for i in range(steps)]
    x, y = samples(program, steps)
    moments = [(m.count, m.sum, m.sum_squares, m.min, m.max) for m in executor.calibrate(x, 1)]
    asked = [*executor.evaluate(x, y, 1), *(value for row in moments for value in row)]
    prediction = np.asarray(executor.predict(x), np.float32)
    return [np.array(losses).tobytes(), bytes(executor.store()), np.array(asked).tobytes(),
            prediction.tobytes()]  # fmt: skip


def assert_equal_in(
    runtimes: dict[str, Path], program: Program, hyper: Hyper, steps: int = 3
) -> None:
    """Each build against the reference."""
    expected = everything(ReferenceExecutor(program.image), program, hyper, steps)
    for name, runtime in runtimes.items():
        with loaded(runtime):
            found = everything(NativeExecutor(program.image), program, hyper, steps)
        assert found == expected, name


def hyper_of(rule: Sgd, lr: float = 0.05) -> Hyper:
    """Of a phase that uses all of the rule."""
    return Hyper(lr, rule.momentum, rule.weight_decay, rule.clip, rule.prox)


def compiled(net: Net, loss: str, batch: int, rule: Sgd, plan: str, head: str) -> Program:
    """With "biases" of a net without any, all of it."""
    names = [p.name for p in net.graph(1).layout.parameters]
    if "biases" in plan and not any(name.endswith("bias") for name in names):
        plan = "all"
    return compile(net, loss=loss, ram="16MiB", flash="16MiB", batch=batch, sgd=rule, plan=plan,
                   dtype="int8", head=head)  # fmt: skip


@settings(max_examples=40)
@given(int8_nets(), LOSSES, st.integers(1, 3), RULES, st.sampled_from(PLANS), HEADS)
def test_small_nets_and_all_plans(
    runtimes: dict[str, Path],
    net: Net,
    loss: str,
    batch: int,
    rule: Sgd,
    plan: str,
    head: str,
) -> None:
    program = compiled(net, loss, batch, rule, plan, head)
    assert_equal_in(runtimes, program, hyper_of(rule))


@st.composite
def wide_nets(draw: st.DrawFn) -> Net:
    """Channels of several groups of vectors, and what is left of them; windows of all kinds."""
    widths, kernels = st.integers(1, 40), st.integers(1, 4)
    net = Net((draw(st.integers(3, 9)), draw(st.integers(3, 9)), draw(st.integers(1, 20))))
    value = net.conv(net.input, draw(widths), (draw(kernels) % 3 + 1, draw(kernels) % 3 + 1), 1,
                     "same", name="stem")  # fmt: skip
    value = net.relu6(value)
    if draw(st.booleans()):
        value = net.relu(net.conv(value, value.shape[-1], draw(kernels), draw(st.integers(1, 2)),
                                  "same", groups=value.shape[-1]))  # fmt: skip
    value = net.relu(net.conv(value, 2 * draw(st.integers(1, 12)), 1))
    if draw(st.booleans()):
        value = net.add(value, net.conv(value, value.shape[-1], 3, padding="same", groups=2))
    pool = draw(st.sampled_from([net.max_pool, net.avg_pool]))
    value = pool(value, min(2, *value.shape[:2]))
    net.linear(net.relu(net.linear(value, draw(widths))), draw(st.integers(2, 20)))
    return net


@settings(max_examples=40)
@given(wide_nets(), st.integers(1, 3), RULES, st.sampled_from(PLANS))
def test_wide_nets(runtimes: dict[str, Path], net: Net, batch: int, rule: Sgd, plan: str) -> None:
    program = compiled(net, "cross_entropy", batch, rule, plan, "int8")
    assert_equal_in(runtimes, program, hyper_of(rule))


def small_cnn() -> Net:
    """A bit of everything."""
    net = Net((8, 8, 2))
    value = net.relu6(net.conv(net.input, 12, 3, padding=1, name="stem"))
    value = net.max_pool(value, 2)
    value = net.relu(net.conv(value, 12, 3, padding=1, groups=12))
    value = net.add(value, net.conv(value, 12, 1))
    net.linear(net.global_avg_pool(value), 4)
    return net


@pytest.mark.parametrize("plan", ["all", "last:1+named:stem.weight{out=1/3}"])
def test_a_hundred_steps(runtimes: dict[str, Path], plan: str) -> None:
    rule = Sgd(momentum=0.9)
    program = compiled(small_cnn(), "cross_entropy", 2, rule, plan, "int8")
    assert_equal_in(runtimes, program, hyper_of(rule, 0.02), steps=100)


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -0.0])
def test_an_extreme_pixel_or_weight_gives_the_same_bits(
    runtimes: dict[str, Path], extreme: float
) -> None:
    program = compiled(small_cnn(), "cross_entropy", 1, Sgd(), "all", "int8")
    x, y = samples(program)
    x[0, 1, 2, 1] = extreme
    vector = ranged(program)
    vector[program.layout["stem.weight"].offset] = extreme
    executors: list[Executor] = [ReferenceExecutor(program.image)]
    for runtime in runtimes.values():
        with loaded(runtime):
            executors.append(NativeExecutor(program.image))
    vectors = []
    for executor in executors:
        with np.errstate(over="ignore"):
            executor.load(vector)
            executor.step(x, y, Hyper(0.1))
        vectors.append(np.frombuffer(executor.store(), np.float32))
    for found in vectors[1:]:
        np.testing.assert_array_equal(found, vectors[0])  # NaN equals NaN here


@pytest.mark.parametrize("groups", [1, 5])
def test_a_step_that_overflows_ends_in_every_form(runtimes: dict[str, Path], groups: int) -> None:
    """The last of five channels, four of which a microcontroller sums at a time."""
    net = Net((3, 3, 5))
    net.linear(net.conv(net.input, 5, 3, padding="same", groups=groups, name="stem"), 2)
    program = compiled(net, "mse", 1, Sgd(), "all", "float32")
    vector = ranged(program, reach=1e6)
    vector[program.layout["stem.weight"].offset + 4] = 3e38
    found = set()
    for runtime in runtimes.values():
        with loaded(runtime):
            executor = NativeExecutor(program.image)
            executor.load(vector)
            found.add(bytes(executor.predict(samples(program)[0])))
    assert len(found) == 1


# ---- fleet calls -------------------------------------------------------------------------------


def sent_by_hand(
    program: Program, base: Array, table: RowTable, phases: Sequence[Phase], device: int
) -> Array:
    """What a device sends after these phases, whose batches take its samples in order."""
    executor = ReferenceExecutor(program.image)
    executor.load(base)
    executor.seed(STREAM[0], STREAM[1], device)
    x, y = table.samples(0, SUPPORT)
    for phase in phases:
        executor.clear_momentum()
        for step in range(phase.steps):
            taken = np.arange(step * program.batch, (step + 1) * program.batch) % len(x)
            executor.step(x[taken], y[taken], program.hyper(phase))
    trained = np.frombuffer(executor.store(), np.float32)
    sent, start = trained.copy(), np.array(held(program, base), np.float32)
    for p in (*program.int8_parameters, *program.range_parameters):
        place = slice(p.offset, p.offset + p.size)
        sent[place] = base[place] + (trained[place] - start[place])
    return sent


@pytest.mark.parametrize("plan", ["all", "biases+named:stem.weight{in=1/2}"])
def test_a_fleet_sends_what_its_devices_would(plan: str) -> None:
    rule = Sgd(momentum=0.9)
    program = compiled(small_cnn(), "cross_entropy", 2, rule, plan, "int8")
    generator, base = np.random.default_rng(0), ranged(program, reach=3.0)
    rows, starts = np.arange(5, dtype=np.uint32), np.array([0, 5, 5], np.uint32)
    x = generator.normal(size=(5, 128)).astype(np.float32)
    table = RowTable(x, None, generator.integers(0, 4, 5).astype(np.int32), rows, starts)
    phases = (Phase(0.05, steps=4, sgd=rule), Phase(0.01, steps=3))
    with ThreadPoolExecutor(1) as pool:
        found = FleetCall(program, pool).run(
            Instruction(phases=phases), table, base, *STREAM[:2], [6], keep_vectors=True
        )
    assert found.vectors is not None
    expected = sent_by_hand(program, base, table, phases, 6)
    np.testing.assert_array_equal(found.vectors[0].view(np.uint32), expected.view(np.uint32))
    assert (expected != base).any()


def test_a_fleet_without_ranges_is_refused_as_a_device_is() -> None:
    program = compiled(small_cnn(), "cross_entropy", 2, Sgd(), "all", "int8")
    rows, starts = np.arange(2, dtype=np.uint32), np.array([0, 2, 2], np.uint32)
    table = RowTable(np.ones((2, 128), np.float32), None, np.zeros(2, np.int32), rows, starts)
    base = np.array(program.initial(1), np.float32)
    asked = Instruction(phases=(Phase(0.05, steps=1),))
    with ThreadPoolExecutor(1) as pool, pytest.raises(DataError, match="has no range"):
        FleetCall(program, pool).run(asked, table, base, *STREAM[:2], [6])


@pytest.mark.parametrize("axis", ["in", "out"])
def test_slices_of_a_layer_with_one_output(runtimes: dict[str, Path], axis: str) -> None:
    """Along either axis its channels stand one by one; along the inputs they share one step."""
    net = Net((3, 3, 4))
    value = net.relu(net.conv(net.input, 1 if axis == "in" else 3, 2, name="stem"))
    net.linear(net.conv(value, 2, 1), 2)
    plan = f"last:1+named:stem.weight{{{axis}=1/2}}"
    assert_equal_in(runtimes, compiled(net, "mse", 2, Sgd(), plan, "int8"), Hyper(0.05))
