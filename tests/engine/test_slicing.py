"""Channels of parameters that train while the rest of them does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import memory
from fedtiny.engine.builder import Net
from fedtiny.engine.built import Build
from fedtiny.engine.compile import build
from fedtiny.engine.ir import Graph, Window
from fedtiny.engine.liveness import lifetimes, live_bytes
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.ops import TABLE
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.errors import CompileError
from fedtiny.layout import FROZEN, STATISTICS, coordinates
from fedtiny.update_plan import Part, UpdatePlan
from fedtiny.values import Instruction, Phase, Sgd
from tests.engine.int8_nets import ranged
from tests.engine.nets import Array, image_nets, samples, trained

LR = 0.125
TRAIN_ALL = Instruction(phases=(Phase(LR, 1),))


def start_of(program: Program) -> Array:
    return np.asarray(program.initial(1))


def stepped(program: Program, dtype: Any = np.float32, clip: float = 0.0) -> Array:
    """The vector after one step from the start."""
    executor = ReferenceExecutor(program.image, dtype)
    executor.load(program.initial(1))
    executor.step(*samples(program), Hyper(LR, clip=clip))
    return np.frombuffer(executor.store(), dtype)


def selected(program: Program, parts: Mapping[str, Part]) -> Array:
    """One bool a coordinate: whether it trains, by NumPy's own indices."""
    chosen = np.zeros(program.layout.size, bool)
    for name, part in parts.items():
        p = program.layout[name]
        view = chosen[p.offset : p.offset + p.size].reshape(p.shape)
        if part.axis == "all":
            view[:] = True
        elif part.axis == "in":
            view[..., list(part.indices), :] = True
        else:
            view[..., list(part.indices)] = True
    return chosen


def small_conv() -> Net:
    """A separable block with a residual connection and a norm."""
    net = Net((6, 6, 3))
    x = net.relu(net.conv(net.input, 8, 3, padding="same"))
    y = net.relu6(net.conv(x, 8, 3, padding="same", groups=8))
    x = net.add(x, net.group_norm(net.conv(y, 8, 1), 2))
    net.linear(net.relu(net.conv(x, 12, 1)), 5)
    return net


# ---- values ----------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn, graph: Graph) -> str:
    """Some parameters whole, some of them narrowed along an axis that they have."""
    axes: dict[str, list[tuple[str, list[tuple[int, ...]]]]] = {}
    statistics = {p.name for p in graph.layout.parameters if p.group in (STATISTICS, FROZEN)}
    for op in graph.ops:
        rule = TABLE[op.kind].gradient
        for position in rule.parameters if rule else ():
            name = op.inputs[position]
            if name and name not in statistics:
                *_, inputs, outputs = (0, *graph.tensors[name].shape)
                window = op.attributes if len(graph.tensors[name].shape) > 1 else None
                groups = window.groups if isinstance(window, Window) else 1
                size = outputs // groups
                kept = [tuple(range(g * size, (g + 1) * size)) for g in range(groups)]
                axes[name] = [("out", kept if groups > 1 else [(i,) for i in range(outputs)])]
                if groups == 1 and len(graph.tensors[name].shape) > 1:
                    axes[name].append(("in", [(i,) for i in range(inputs)]))
    patterns = []
    for name, known in axes.items():
        if not (how := draw(st.sampled_from(["", "whole", "part", "part"]))):
            continue
        axis, units = draw(st.sampled_from(known))
        chosen = draw(st.lists(st.sampled_from(units), min_size=1, max_size=6, unique=True))
        listed = "+".join(str(i) for unit in chosen for i in unit)
        patterns.append(f"{name}{{{axis}={listed}}}" if how == "part" else name)
    return "named:" + ",".join(patterns) if patterns else "all"


@pytest.fixture(scope="module", autouse=True)
def _no_search() -> Iterator[None]:
    """Where tensors stand is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "MOVES", 0)
        yield


@settings(max_examples=40)
@given(st.data(), image_nets(side=6), st.sampled_from([1, 3]), st.sampled_from(["ram", "time"]))
def test_selected_channels_get_the_full_update_and_the_others_none(
    data: st.DataObject, net: Net, batch: int, minimise: str
) -> None:
    if not any(p.group != FROZEN for p in net.graph(1).layout.parameters):
        return
    gets_the_full_update(net, data.draw(plans(net.graph(batch))), batch, minimise)


def gets_the_full_update(net: Net, plan: str, batch: int = 2, minimise: str = "ram") -> Build:
    """What the plan selects, and it alone, moves as it does where everything trains."""
    whole = build(net, loss="mse", batch=batch, minimise=minimise)
    some = build(net, loss="mse", batch=batch, minimise=minimise, plan=plan)
    parts = UpdatePlan.parse(plan).resolve(whole.graph.layout)
    chosen = selected(whole.program, parts)
    statistics = [p.name for p in whole.graph.layout.parameters if p.group == STATISTICS]
    chosen[coordinates(whole.graph.layout.ranges(statistics))] = True
    moved, start = stepped(some.program), start_of(some.program)
    np.testing.assert_array_equal(moved[~chosen], start[~chosen])
    expected = stepped(whole.program)
    if any(op.kind == "conv_pool" for op in (*whole.graph.ops, *some.graph.ops)):
        # what is pooled before it is added up is added up in another order
        np.testing.assert_allclose(moved[chosen], expected[chosen], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(moved[chosen], expected[chosen])
    sent = coordinates(some.program.sent_ranges(TRAIN_ALL))
    assert sent.tolist() == np.flatnonzero(chosen & _sent(whole.program)).tolist()
    return some


def groups_of(groups: int, channels: int) -> Net:
    net = Net((5, 5, 4))
    x = net.tanh(net.conv(net.input, channels, 3, groups=groups))
    net.linear(net.global_avg_pool(net.conv(x, 4, 1)), 3)
    return net


def pooled(first: bool) -> Net:
    """Convolutions that are pooled at once; the linear layer counts 3 x 3 x 8 inputs."""
    net = Net((6, 6, 4))
    x = net.input if first else net.tanh(net.conv(net.input, 4, 1, name="before"))
    net.linear(net.max_pool(net.relu(net.conv(x, 8, 3, padding="same", name="conv")), (2, 2)), 3)
    return net


def wide() -> Net:
    """Weights that are larger than the gradients of what they are multiplied by; one is used twice,
    behind an activation and beside it."""
    net = Net((4, 4, 6))
    x = net.relu(net.conv(net.input, 24, 3, 3, padding="same"))
    x = net.add(x, net.relu(net.conv(x, 24, 3, padding="same", name="wide")))
    x = net.add(x, net.relu(net.conv(x, 24, 3, padding="same", name="wide")))
    net.linear(net.relu(net.linear(x, 80)), 3)
    return net


@pytest.mark.parametrize(
    ("net", "plan", "kinds"),
    [
        (groups_of(4, 4), "named:conv1.weight{out=0+2}", {"conv_update"}),
        (groups_of(4, 8), "named:conv1.weight{out=0+5}", {"conv_update"}),
        (groups_of(4, 8), "named:conv1.weight{out=0-1+6-7},conv1.bias{out=3}",
         {"conv_update", "bias_update"}),
        (groups_of(2, 8), "named:conv1.weight{out=0+3-4+7}", {"conv_update"}),
        (groups_of(2, 8), "named:conv1.weight{out=4+6}", {"conv_update"}),
        (pooled(True), "named:conv.weight{in=1+3}", {"conv_pool_update"}),
        (pooled(True), "named:conv.weight{out=1+3}", {"conv_update"}),
        (pooled(True), "named:conv.bias{out=1+3}", {"bias_update"}),
        (pooled(False), "named:conv.weight{in=1+3},before.weight", {"conv_update"}),
        (pooled(False), "named:conv.weight{out=1+3},before.weight{out=0}", {"conv_update"}),
        (pooled(True), "named:linear1.weight{in=5+70-71}", {"linear_update"}),
        (small_conv(), "named:group_norm1.*{out=1+6}", {"affine_update", "bias_update"}),
        (wide(), "named:wide.weight{in=1+5-7},linear1.weight{in=1/4},conv1.*",
         {"conv_update", "linear_update", "bias_update", "gradient_update"}),
    ],
)  # fmt: skip
def test_every_kind_of_layer_has_channels(net: Net, plan: str, kinds: set[str]) -> None:
    graph = gets_the_full_update(net, plan).graph
    assert {op.kind for op in graph.ops if op.kind.endswith("_update")} == kinds
    program = build(net, loss="mse", batch=2, plan=plan, sgd=Sgd(clip=0.2)).program
    moved = [trained(e(program.image), program, [Hyper(LR, clip=0.2)] * 2)[1]
             for e in (NativeExecutor, ReferenceExecutor)]  # fmt: skip
    np.testing.assert_array_equal(moved[0], moved[1])


def _sent(program: Program) -> Array:
    sent = np.zeros(program.layout.size, bool)
    sent[coordinates(program.sent_ranges(TRAIN_ALL))] = True
    return sent


def test_the_norm_that_clips_is_that_of_what_trains() -> None:
    plan = "named:conv1.weight{out=1/2},conv3.weight{in=2+5},linear1.*"
    whole = build(small_conv(), loss="mse").program
    chosen = selected(whole, UpdatePlan.parse(plan).resolve(whole.layout))
    g = ((start_of(whole) - stepped(whole, np.float64)) / LR)[chosen]
    clip = float(np.linalg.norm(g)) / 3
    clipped = build(small_conv(), loss="mse", plan=plan, sgd=Sgd(clip=clip)).program
    moved = stepped(clipped, np.float64, clip)[chosen]
    np.testing.assert_allclose(moved, start_of(whole)[chosen] - LR * g / 3, rtol=1e-9, atol=1e-12)


def test_a_parameter_that_several_layers_use_is_narrowed_for_all_of_them() -> None:
    net = Net((4, 4, 6))
    x = net.tanh(net.conv(net.input, 6, 3, padding="same", name="twice"))
    x = net.tanh(net.conv(x, 6, 3, padding="same", name="twice"))
    net.linear(net.global_avg_pool(x), 3)
    for channels in ("in=1+4", "out=0+3-4"):
        plan = f"named:twice.weight{{{channels}}}"
        whole, some = (build(net, loss="mse", plan=p).program for p in ("all", plan))
        chosen = selected(whole, UpdatePlan.parse(plan).resolve(whole.layout))
        np.testing.assert_array_equal(stepped(some)[chosen], stepped(whole)[chosen])
        np.testing.assert_array_equal(stepped(some)[~chosen], start_of(whole)[~chosen])


def test_momentum_decay_and_the_pull_to_the_base_act_on_the_channels_alone() -> None:
    sgd = Sgd(momentum=0.5, weight_decay=0.1, prox=0.2)
    hyper = Hyper(LR, momentum=0.5, weight_decay=0.1, prox=0.2)
    net = Net(5)
    net.linear(net.input, 4)
    whole, some = (
        build(net, loss="mse", plan=plan, sgd=sgd).program
        for plan in ("named:linear1.weight", "named:linear1.weight{in=0+3}")
    )
    assert some.report()["state_bytes"] == 2 * 4 * 2 * 4  # two slots of 2 x 4 floats
    moved = [trained(ReferenceExecutor(p.image), p, [hyper])[1] for p in (whole, some)]
    chosen = selected(whole, {"linear1.weight": Part("in", (0, 3))})
    np.testing.assert_array_equal(moved[1][chosen], moved[0][chosen])


def test_a_second_load_starts_from_the_new_vector() -> None:
    program = build(small_conv(), loss="mse", plan="named:*.weight{out=1/4}").program
    executor = ReferenceExecutor(program.image)
    trained(executor, program, [Hyper(LR)] * 2)
    vector = np.linspace(-1, 1, program.layout.size, dtype=np.float32)
    executor.load(vector)
    np.testing.assert_array_equal(np.frombuffer(executor.store(), np.float32), vector)


# ---- other runtimes, other numbers -----------------------------------------------------------


@settings(max_examples=25)
@given(
    st.data(), image_nets(side=6), st.sampled_from([1, 3]),
    st.sampled_from([Sgd(), Sgd(momentum=0.5, clip=0.3), Sgd(weight_decay=0.1, prox=0.2)]),
)  # fmt: skip
def test_the_native_runtime_gives_the_same_bits(
    data: st.DataObject, net: Net, batch: int, sgd: Sgd
) -> None:
    if all(p.group == FROZEN for p in net.graph(1).layout.parameters):
        return
    plan = data.draw(plans(net.graph(batch)))
    program = build(net, loss="mse", batch=batch, plan=plan, sgd=sgd).program
    hyper = Hyper(0.05, sgd.momentum, sgd.weight_decay, sgd.clip, sgd.prox)
    found, expected = (
        trained(executor, program, [hyper] * 3)
        for executor in (NativeExecutor(program.image), ReferenceExecutor(program.image))
    )
    np.testing.assert_array_equal(found[1].view(np.uint32), expected[1].view(np.uint32))
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("head", ["float32", "int8"])
def test_channels_of_int8_weights_get_the_full_update(head: str) -> None:
    net = Net((8, 8, 4))
    x = net.relu(net.conv(net.input, 8, 3, padding="same"))
    y = net.relu6(net.conv(x, 8, 3, padding="same", groups=8))
    x = net.relu(net.conv(net.add(x, net.conv(y, 8, 1)), 12, 1))
    net.linear(net.max_pool(x, (2, 2)), 5)
    plan = (
        "named:conv1.weight{in=0+2},conv2.weight{out=1+3},conv3.weight{in=1/4},conv4.*{out=5-7},"
        "linear1.weight{in=1/4}+biases:1"
    )
    whole, some = (
        build(net, loss="cross_entropy", plan=p, dtype="int8", head=head).program
        for p in ("all", plan)
    )
    chosen = selected(whole, UpdatePlan.parse(plan).resolve(whole.layout))
    vector = ranged(whole, reach=3.0)

    def moved(program: Program, dtype: Any) -> tuple[Array, Array]:
        executor = ReferenceExecutor(program.image, dtype)
        executor.load(vector.astype(dtype))
        held = np.frombuffer(executor.store(), dtype)
        executor.step(*samples(program), Hyper(LR))
        return held, np.frombuffer(executor.store(), dtype)

    # float64 has neither a grid nor rounding; in int8 each weight draws a rounding of its own
    (_, full), (start, exact) = moved(whole, np.float64), moved(some, np.float64)
    np.testing.assert_array_equal(exact[chosen], full[chosen])
    np.testing.assert_array_equal(exact[~chosen], start[~chosen])
    (_, full), (start, rounded) = moved(whole, np.float32), moved(some, np.float32)
    np.testing.assert_array_equal(rounded[~chosen], start[~chosen])
    largest = {p.name: np.abs(vector[p.offset : p.offset + p.size]).max()
               for p in whole.layout.parameters}  # fmt: skip
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "conv4.weight"):
        ((at, stop),) = whole.layout.ranges([name])
        step = largest[name] / 96 * 1.001
        assert np.abs(rounded - full)[at:stop][chosen[at:stop]].max() <= step
        assert (rounded != start)[at:stop][chosen[at:stop]].any()


# ---- what is coordinated ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "ranges"),
    [
        ("named:conv.weight{in=1+2}", ((2, 6), (8, 12))),  # [1, 2 taps, 3 in, 2 out]
        ("named:conv.weight{in=0+2}", ((0, 2), (4, 8), (10, 12))),
        ("named:conv.weight{out=1}", tuple((i, i + 1) for i in range(1, 12, 2))),
        ("named:conv.bias{out=1},conv.weight{in=2}", ((4, 6), (10, 12), (13, 14))),
        ("named:conv.*+named:fc.weight{out=0+2}", ((0, 15), (16, 18), (19, 20))),
    ],
)
def test_what_is_sent_are_the_channels(plan: str, ranges: tuple[tuple[int, int], ...]) -> None:
    net = Net((4, 3))
    net.linear(net.global_avg_pool(net.conv(net.input, 2, 2, name="conv")), 3, name="fc")
    program = build(net, loss="mse", plan=plan).program
    assert program.sent_ranges(TRAIN_ALL) == ranges
    assert Program(program.image).sent_ranges(TRAIN_ALL) == ranges


# ---- memory ----------------------------------------------------------------------------------


DEPTH, ACTIVATION = 6, 12 * 12 * 32 * 4
WEIGHT = 32 * 32


def tower() -> Net:
    """Pointwise convolutions, of which the inputs are most of what a step keeps."""
    net = Net((12, 12, 32))
    x = net.input
    for _ in range(DEPTH):
        x = net.relu(net.conv(x, 32, 1))
    net.linear(net.global_avg_pool(x), 4)
    return net


def report(plan: str, minimise: str = "time") -> dict[str, int]:
    return build(tower(), loss="cross_entropy", plan=plan, minimise=minimise).program.report()


def test_channels_of_inputs_shrink_what_is_kept() -> None:
    whole, some = report("named:conv?.weight"), report("named:conv?.weight{in=1/4}")
    # the first input is the sample; the sign of each activation is kept in a bit
    kept = (DEPTH - 1) * ACTIVATION
    assert whole["lower_bound_bytes"] > kept
    assert some["lower_bound_bytes"] < kept / 4 + DEPTH * ACTIVATION / 32 + 2.5 * ACTIVATION
    assert whole["trained_parameters"] == DEPTH * WEIGHT == 4 * some["trained_parameters"]
    assert whole["parameters_bytes"] == 4 * some["parameters_bytes"]
    assert some["frozen_bytes"] == whole["frozen_bytes"] + DEPTH * WEIGHT * 4


def test_channels_of_outputs_shrink_the_work() -> None:
    whole, some = report("named:conv?.weight"), report("named:conv?.weight{out=1/4}")
    updates = 144 * DEPTH * WEIGHT
    extra = 2 * DEPTH * WEIGHT + DEPTH * ACTIVATION / 4 / 4  # merged twice; taken of the gradients
    assert whole["macs_per_step"] - some["macs_per_step"] > 0.75 * updates - extra
    assert whole["trained_parameters"] == 4 * some["trained_parameters"]


def test_a_merged_weight_is_not_kept_for_the_way_back() -> None:
    graph = build(tower(), loss="cross_entropy", plan="named:*.weight{in=1/4}").graph
    lives = lifetimes(graph)
    merges = [op.outputs[0] for op in graph.ops if op.kind == "merge"]
    # the first convolution sends no gradient on; what runs again merges for itself
    assert len(merges) >= 5 + 4
    for name in merges:
        readers = [i for i, op in enumerate(graph.ops) if name in op.inputs]
        assert len(readers) == 1
        assert all(graph.ops[i].kind != "loss" for i in range(*lives[name]))
        assert (lives[name][0] < graph.n_forward) == (lives[name][1] < graph.n_forward)
    for overlay in graph.overlays:
        *merged, updated = [i for i, op in enumerate(graph.ops) if overlay in op.inputs]
        assert graph.ops[updated].parameter == overlay
        assert {graph.ops[i].kind for i in merged} == {"merge"}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_data_gradient_of_a_large_weight_needs_no_merged_one(dtype: str) -> None:
    plan = "named:wide.weight{in=1/4},linear1.weight{in=1/4},conv1.bias"
    built = build(wide(), loss="mse", plan=plan, dtype=dtype)
    backward = built.graph.ops[built.graph.n_forward :]
    merged = [op for op in backward if op.kind == "merge"]
    # the channels of two gradients, for both uses of "wide" and for the linear layer
    assert len(merged) == 3
    assert all(op.inputs[0].startswith("d.") for op in merged)
    weight = 9 * 24 * 24 * (4 if dtype == "float32" else 1)
    alive = live_bytes(built.graph)[built.graph.n_forward :]
    data = [nbytes for op, nbytes in zip(backward, alive, strict=True) if op.kind == "conv_dx"]
    assert len(data) == 4
    assert max(data) < weight


def test_what_runs_again_merges_the_weights_before_they_move() -> None:
    plan = "named:conv?.weight{in=1/4}"
    ram, time = (
        build(tower(), loss="cross_entropy", plan=plan, minimise=minimise)
        for minimise in ("ram", "time")
    )
    merges = [sum(op.kind == "merge" for op in built.graph.ops) for built in (ram, time)]
    assert merges[0] > merges[1]
    assert ram.program.report()["arena_bytes"] < time.program.report()["arena_bytes"]
    moved = [trained(ReferenceExecutor(b.program.image), b.program, [Hyper(LR)] * 3)
             for b in (ram, time)]  # fmt: skip
    np.testing.assert_array_equal(moved[0][1], moved[1][1])


# ---- what has no channels --------------------------------------------------------------------


def grouped(groups: int) -> Net:
    net = Net((4, 4, 4))
    x = net.batch_norm(net.conv(net.input, 8, 3, groups=groups), tracked=True)
    net.linear(net.global_avg_pool(x), 3)
    return net


@pytest.mark.parametrize(
    ("groups", "plan", "message"),
    [
        (4, "named:conv1.weight{in=0+0-0}", None),  # the only input of a group: the whole
        (2, "named:conv1.weight{in=0}", "conv1.weight has 2 groups, each with inputs of its own"),
        (
            2,
            "named:conv1.weight{out=0-2+4}",
            "2 groups of 4 outputs, and the plan trains 3 of group 0, 1 of",
        ),
        (2, "named:conv1.weight{out=0+3-4+7}", None),
        (2, "named:*_mean{out=0}", "running_mean is no weight, gain or bias of a layer"),
    ],
)
def test_channels_that_cannot_train_alone_are_refused(
    groups: int, plan: str, message: str | None
) -> None:
    if message is None:
        assert build(grouped(groups), loss="mse", plan=plan).program
        return
    with pytest.raises(CompileError, match=message):
        build(grouped(groups), loss="mse", plan=plan)
