"""The plan of the arena, the checker that does not trust it, and what poison shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import image, zoo
from fedtiny.engine.autodiff import differentiate, with_loss
from fedtiny.engine.builder import Net
from fedtiny.engine.built import STACK_BYTES
from fedtiny.engine.compile import build, compile
from fedtiny.engine.ir import ARENA, I8, Graph
from fedtiny.engine.kernels.norm import MOVING
from fedtiny.engine.liveness import lifetimes, live_bytes
from fedtiny.engine.memory import MemoryPlan, check_memory, plan_memory
from fedtiny.engine.ops import TABLE
from fedtiny.engine.program import Hyper
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import mlp
from fedtiny.errors import GraphError
from fedtiny.values import Sgd
from tests.engine.nets import image_nets, nets, samples, trained

LOSSES = st.sampled_from(["mse", "cross_entropy"])


NETS = st.one_of(nets(), image_nets())
MINIMISE = st.sampled_from(["ram", "time"])


def training_graph(net: Net, loss: str, batch: int, clip: bool) -> Graph:
    forward = with_loss(net.graph(batch), loss)
    return differentiate(forward, [p.name for p in forward.layout.parameters], clip)


def is_tight(arena_bytes: int, lower_bound: int) -> bool:
    return lower_bound <= arena_bytes <= 1.01 * lower_bound + 64


@settings(max_examples=150)
@given(NETS, LOSSES, st.integers(1, 5), st.booleans())
def test_a_plan_is_never_wrong_and_close_to_the_lower_bound(
    net: Net, loss: str, batch: int, clip: bool
) -> None:
    graph = training_graph(net, loss, batch, clip)
    plan = plan_memory(graph)
    lower_bound = check_memory(graph, plan)
    assert is_tight(plan.arena_bytes, lower_bound)
    assert lower_bound == max(live_bytes(graph))


@settings(max_examples=150)
@given(NETS, LOSSES, st.integers(1, 3), MINIMISE)
def test_so_is_a_plan_behind_all_passes(net: Net, loss: str, batch: int, minimise: str) -> None:
    built = build(net, loss=loss, batch=batch, minimise=minimise)
    assert is_tight(built.memory.arena_bytes, built.lower_bound)


@pytest.mark.parametrize(
    "net",
    [
        zoo.sine_mlp(), zoo.digits_mlp(), zoo.small_conv(), zoo.har_conv(), zoo.cifar_conv(),
        zoo.ds_cnn(), zoo.resnet(), zoo.mobilenet_v2(), zoo.digits_bn(), zoo.omniglot_bn(),
        zoo.vgg11(16), zoo.resnet18(16),
        *(zoo.omniglot_conv(norm=norm, pool=pool)
          for norm in ("none", "group", "frozen") for pool in (False, True)),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("batch", "minimise"), [(1, "ram"), (4, "time")])
def test_the_nets_of_the_field_lie_close_to_their_lower_bound(
    net: Net, batch: int, minimise: str
) -> None:
    built = build(net, loss="mse", batch=batch, minimise=minimise)
    assert is_tight(built.memory.arena_bytes, built.lower_bound)


SLICES = "biases:22+last:1+named:conv3?.weight{in=1/4}"


@pytest.mark.parametrize(
    ("net", "plan", "patches"),
    [
        (zoo.mobilenet_v2(96, norm="none"), "all", 1),
        (zoo.mobilenet_v2(96, norm="none"), SLICES, 1),
        (zoo.mobilenet_v2(96, norm="none"), SLICES, 2),
        (zoo.mcunet(128, norm="none"), "biases", 1),
        (zoo.mcunet(128, norm="none"), SLICES, 1),
        (zoo.mcunet(128, norm="none"), "last:1", 1),
    ],
)
def test_so_do_plans_of_int8(net: Net, plan: str, patches: int) -> None:
    built = build(net, loss="cross_entropy", plan=plan, dtype="int8", patches=patches)
    assert is_tight(built.memory.arena_bytes, built.lower_bound)


def test_tensors_of_int8_lie_byte_by_byte_in_whole_words() -> None:
    built = build(zoo.small_conv(side=9), loss="cross_entropy", dtype="int8")
    image = built.program.tables
    for tensor, record in zip(built.graph.tensors.values(), image.tensors, strict=True):
        bytes_each = 1 if tensor.dtype == I8 else 4
        assert tensor.nbytes == -(-tensor.size * bytes_each // 4) * 4
        assert record.offset % 4 == 0
    assert built.graph.tensors["relu1"].nbytes == 4 * 4 * 8  # 9 x 9, by threes in steps of two


@pytest.mark.parametrize(
    ("net", "ram"),
    [
        # 28,229 parameters; of images, the most is alive where the second convolution sends its
        # gradient on: what it read, 14 x 14 x 32, and as much of the gradient of both its sides.
        (
            zoo.omniglot_conv(norm="none", pool=True),
            4 * (28_229 + 3 * 14 * 14 * 32 + 28 * 28) + STACK_BYTES + 1024,
        ),
        (zoo.omniglot_conv(norm="none", pool=True), 256 * 1024),
        (zoo.ds_cnn(), 256 * 1024),
    ],
)
def test_all_of_a_net_trains_in_the_ram_of_a_small_board(net: Net, ram: int) -> None:
    compile(net, loss="cross_entropy", ram=ram)


@settings(max_examples=100)
@given(NETS, LOSSES, st.integers(1, 3), st.data())
def test_the_checker_refuses_exactly_the_overlaps_of_two_live_tensors(
    net: Net, loss: str, batch: int, data: st.DataObject
) -> None:
    """An obvious quadratic judge over bytes, beside the checker, on damaged plans."""
    graph = training_graph(net, loss, batch, clip=False)
    plan = plan_memory(graph)
    name = data.draw(st.sampled_from(sorted(plan.offsets)))
    moved = data.draw(st.integers(0, plan.arena_bytes // 4)) * 4
    offsets = {**plan.offsets, name: moved}
    damaged = MemoryPlan(offsets, plan.arena_bytes + graph.tensors[name].nbytes)
    if any(clash(graph, offsets, name, other) for other in offsets if other != name):
        with pytest.raises(GraphError, match="overlap"):
            check_memory(graph, damaged)
    else:
        check_memory(graph, damaged)


def clash(graph: Graph, offsets: Mapping[str, int], one: str, other: str) -> bool:
    """Do two tensors share a byte in an op in which both are alive, against the rules?"""
    (a, b), (c, d) = (lifetimes(graph)[name] for name in (one, other))
    ops_shared = range(max(a, c), min(b, d) + 1)
    first, second = (
        set(range(offsets[name], offsets[name] + graph.tensors[name].nbytes))
        for name in (one, other)
    )
    if not ops_shared or not first & second:
        return False
    return not (first == second and len(ops_shared) == 1 and is_handed_over(graph, one, other))


def is_handed_over(graph: Graph, one: str, other: str) -> bool:
    """Does an op that allows it make one of the two, as the first output, where the other dies?"""
    lives = lifetimes(graph)
    for old, new in ((one, other), (other, one)):
        op = graph.ops[lives[old][1]] if lives[old][1] < len(graph.ops) else None
        if op and op.outputs[:1] == (new,):
            return old in [op.inputs[position] for position in TABLE[op.kind].in_place]
    return False


def test_a_place_is_handed_over_whole_or_not_at_all() -> None:
    net = Net(4)
    net.linear(net.relu(net.linear(net.input, 4)), 2)
    graph = training_graph(net, "mse", 1, clip=False)
    apart, arena_bytes = {}, 0
    for name, tensor in graph.tensors.items():
        if tensor.home == ARENA:
            apart[name], arena_bytes = arena_bytes, arena_bytes + 2 * tensor.nbytes
    for shift in (-4, 0, 4):
        offsets = {**apart, "linear1": 400, "relu1": 400 + shift}
        plan = MemoryPlan(offsets, 800)
        if shift:
            with pytest.raises(GraphError, match="overlap at byte"):
                check_memory(graph, plan)
        else:
            check_memory(graph, plan)


def test_a_tensor_outside_the_arena_is_found() -> None:
    graph = training_graph(mlp((3, 4, 2)), "mse", 1, clip=False)
    plan = plan_memory(graph)
    with pytest.raises(GraphError, match="of an arena of"):
        check_memory(graph, replace(plan, arena_bytes=plan.arena_bytes - 4))
    with pytest.raises(GraphError, match=r"linear1 lies in bytes -4 to 12 of an arena of"):
        check_memory(graph, replace(plan, offsets={**plan.offsets, "linear1": -4}))


def test_a_tensor_between_floats_is_found() -> None:
    graph = training_graph(mlp((3, 4, 2)), "mse", 1, clip=False)
    plan = plan_memory(graph)
    damaged = MemoryPlan({**plan.offsets, "linear1": 402}, 800)
    with pytest.raises(GraphError, match="linear1 starts at byte 402, which is no multiple of 4"):
        check_memory(graph, damaged)


@settings(max_examples=100)
@given(NETS, LOSSES, st.integers(1, 3), st.booleans(), MINIMISE)
def test_poison_in_dead_bytes_changes_nothing(
    net: Net, loss: str, batch: int, clip: bool, minimise: str
) -> None:
    sgd = Sgd(clip=0.1 if clip else 0.0)
    built = build(net, loss=loss, batch=batch, sgd=sgd, minimise=minimise)
    program, graph = built.program, built.graph
    hyper = Hyper(0.1, clip=sgd.clip)
    _, expected = trained(ReferenceExecutor(program.image), program, [hyper])

    executor = ReferenceExecutor(program.image)
    executor.load(program.initial(1))
    idle = replace(hyper, lr=0.0, keep_statistics=True)
    executor.step(*samples(program, 0), idle)  # takes the samples
    executor._hyper, executor._statistics = hyper, MOVING
    lives, names = lifetimes(graph), list(graph.tensors)
    for index in range(len(graph.ops)):
        alive = np.zeros(len(executor.memory.regions[image.ARENA]), bool)
        for name, (first, last) in lives.items():
            if first < index <= last:
                at = program.tables.tensors[names.index(name)].offset
                alive[at : at + graph.tensors[name].nbytes] = True
        executor.memory.regions[image.ARENA][~alive] = 0xFF
        executor.execute(index, index + 1)
    np.testing.assert_array_equal(np.frombuffer(executor.store(), np.float32), expected)


def test_every_arena_tensor_has_a_place() -> None:
    graph = training_graph(mlp((3, 4, 2)), "mse", 1, clip=True)
    arena = {n for n, t in graph.tensors.items() if t.home == ARENA}
    assert set(plan_memory(graph).offsets) == arena
