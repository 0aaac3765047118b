"""What int8 makes of a training graph: which tensors, which ops, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.autodiff import differentiate, with_loss
from fedtiny.engine.builder import Net, Value
from fedtiny.engine.built import Build
from fedtiny.engine.compile import build, compile
from fedtiny.engine.ir import ARENA, F32, FROZEN_HOME, I8, Graph, Op, Scalars
from fedtiny.engine.memory import check_memory, plan_memory
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.quantize import check_integers, quantise, with_ranges
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.rewriting import makers, maskable, masked
from fedtiny.engine.saving import spare
from fedtiny.engine.slicing import trained_tensors, with_overlays
from fedtiny.engine.zoo import mlp, omniglot_conv
from fedtiny.errors import CompileError, GraphError
from fedtiny.update_plan import UpdatePlan
from fedtiny.values import Sgd
from tests.engine.int8_nets import PLANS, int8_nets, ranged
from tests.engine.nets import samples

FEW = settings(max_examples=30, deadline=None)


def block() -> Net:
    """Every layer that int8 has, over 8 x 8 pixels."""
    net = Net((8, 8, 3))
    stem = net.relu6(net.conv(net.input, 8, 3, 2, 1, name="stem"))
    inner = net.relu6(net.conv(stem, 8, 3, 1, 1, groups=8, name="depth"))
    sum_ = net.add(net.conv(inner, 8, 1, name="point"), stem)
    hidden = net.relu(net.linear(net.max_pool(sum_, 2), 6, name="hidden"))
    net.linear(hidden, 5, name="head")
    return net


def training(net: Net, plan: str = "all", clip: bool = False) -> Graph:
    """The float32 training graph of a net with ranges."""
    forward = with_ranges(net.graph(1))
    parts = UpdatePlan.parse(plan).resolve(forward.layout)
    forward = with_loss(with_overlays(forward, parts), "cross_entropy")
    return differentiate(forward, trained_tensors(forward, parts), clip)


# ---- ranges ----------------------------------------------------------------------------------


def test_the_input_and_what_each_layer_stores_has_a_range() -> None:
    """A pooling of maxima keeps that of its input; the head makes floats."""
    layout = with_ranges(block().graph(1)).layout
    names = ["input", "relu61", "relu62", "point", "add1", "relu1"]
    assert [p.name for p in layout.activations] == [f"{name}.range" for name in names]
    assert layout.parameters[-6:] == layout.activations
    assert {(p.shape, p.group) for p in layout.activations} == {((2,), "frozen")}


def test_all_programs_of_a_net_that_may_be_int8_share_a_layout() -> None:
    asked: list[dict[str, Any]] = [
        {"quantisable": True}, {"quantisable": True, "plan": "last:1"}, {"dtype": "int8"},
        {"dtype": "int8", "head": "int8", "batch": 3}, {"dtype": "int8", "plan": "biases"},
        {"quantisable": True, "density": 0.5},
    ]  # fmt: skip
    programs = [compile(block(), loss="cross_entropy", ram="1MiB", **one) for one in asked]
    assert len({p.layout.digest for p in programs}) == 1
    assert len({p.digest for p in programs}) == len(asked)


def test_a_net_that_has_ranges_keeps_them() -> None:
    graph = with_ranges(block().graph(2))
    assert with_ranges(graph) is graph


# ---- the pass --------------------------------------------------------------------------------


def test_an_activation_runs_in_one_op_with_what_it_clips() -> None:
    graph = quantise(training(block()))
    forward = graph.ops[: graph.n_forward]
    assert [op.kind for op in forward] == [
        "conv8", "conv8", "conv8", "add8", "max_pool8", "conv8", "linear"
    ]  # fmt: skip
    assert "stem" not in graph.tensors


@FEW
@given(int8_nets(), st.sampled_from(PLANS), st.booleans())
def test_the_way_back_is_that_of_the_float32_net(net: Net, plan: str, clip: bool) -> None:
    graph = training(net, plan, clip)
    quantised = quantise(graph)
    assert quantised.ops[quantised.n_forward :] == graph.ops[graph.n_forward :]
    moves = ("merge", "take")  # of weights, and of what is there on the way forth
    floats = [n for op in graph.ops[graph.n_forward :] if op.kind not in moves for n in op.outputs]
    assert all(quantised.tensors[name] == graph.tensors[name] for name in floats)


@FEW
@given(int8_nets(), st.sampled_from(PLANS), st.sampled_from(["float32", "int8"]))
def test_every_activation_and_every_weight_before_the_head_is_int8(
    net: Net, plan: str, head: str
) -> None:
    graph = quantise(training(net, plan), head)
    forward = graph.ops[: graph.n_forward]
    made = {name for op in forward[:-1] for name in op.outputs if not name.endswith("codes")}
    kinds = {"merge": None, "conv8": I8, "linear": I8 if head == "int8" else F32}
    for op in forward:
        if wanted := kinds.get(op.kind):
            assert graph.tensors[op.inputs[1]].dtype == wanted
    merged = {op.outputs[0] for op in forward if op.kind == "merge"}
    assert {graph.tensors[name].dtype for name in made - merged} <= {I8}
    assert graph.tensors[graph.output].dtype == F32


def test_an_overlay_of_inputs_has_the_steps_of_its_whole_and_one_of_outputs_its_own() -> None:
    plan = "named:stem.weight{out=0-2},hidden.weight{in=3/4}"
    tensors = quantise(training(block(), plan)).tensors
    found = {n: t.scale for n, t in tensors.items() if t.dtype == I8 and "weight" in n}
    assert found == {
        "stem.weight": "stem.weight.steps",
        "stem.weight[out]": "stem.weight[out].steps",
        "stem.weight.merged": "stem.weight.steps",
        "depth.weight": "depth.weight.steps",
        "point.weight": "point.weight.steps",
        "hidden.weight": "hidden.weight.steps",
        "hidden.weight[in]": "hidden.weight.steps",
        "hidden.weight.merged": "hidden.weight.steps",
        "hidden.weight.merged~": "hidden.weight.steps",  # for the way back
    }
    assert tensors["stem.weight[out].steps"].shape == (3,)
    assert tensors["hidden.weight.steps"].home == FROZEN_HOME


def test_an_int8_net_needs_a_byte_where_float32_needs_four() -> None:
    """Of the net above: 3 x 3 x 3 x 8 + 3 x 3 x 8 + 8 x 8 + 32 x 6 weights before a head of 6 x 5
    weights, biases of 8 + 8 + 8 + 6 + 5, and 8 x 8 x 3 values of a sample."""
    asked: list[dict[str, Any]] = [{}, {"dtype": "int8"}, {"dtype": "int8", "head": "int8"}]
    float32, int8, all_int8 = (
        compile(block(), loss="cross_entropy", ram="1MiB", **one).report() for one in asked
    )
    weights, head, biases, steps = 216 + 72 + 64 + 192, 30, 35, 8 + 8 + 8 + 6
    assert float32["parameters_bytes"] == 4 * (weights + head + biases)
    assert int8["parameters_bytes"] == weights + 4 * (head + biases)
    assert all_int8["parameters_bytes"] == weights + 32 + 4 * biases  # in whole words
    assert int8["frozen_bytes"] == 4 * (steps + 6 * 2)
    assert all_int8["frozen_bytes"] == 4 * (steps + 5 + 6 * 2)
    assert (float32["sample_bytes"], int8["sample_bytes"]) == (768 + 4, 192 + 4)


# ---- masks -----------------------------------------------------------------------------------


def program_of(graph: Graph) -> Program:
    memory = plan_memory(graph)
    trained = [p.name for p in graph.layout.parameters if p.group != "frozen"]
    return Build(
        graph, memory, check_memory(graph, memory), trained, Sgd(), "cross_entropy", "all", (), 0,
        dtype="int8",
    ).program  # fmt: skip


def stepped(program: Program) -> tuple[list[float], bytes]:
    executor = ReferenceExecutor(program.image)
    executor.load(ranged(program))
    losses = [executor.step(*samples(program, step), Hyper(0.05)) for step in range(2)]
    return losses, bytes(executor.store())


@settings(max_examples=20, deadline=None)
@given(int8_nets())
def test_masks_and_saving_change_no_bit(net: Net) -> None:
    graph = quantise(training(net))
    expected = stepped(program_of(graph))
    with_masks = masked(graph, maskable(graph))
    check_integers(with_masks)
    assert stepped(program_of(with_masks)) == expected
    assert stepped(program_of(check_integers(spare(graph)))) == expected


def test_a_mask_of_relu6_ends_at_6() -> None:
    graph = quantise(training(block()))
    with_masks = masked(graph, maskable(graph))
    tops = {op.inputs[0]: op.attributes for op in with_masks.ops if op.kind == "mask8"}
    six, none = Scalars(value=6.0), Scalars()
    assert tops == {"relu61": six, "relu62": six, "relu1": none}
    assert with_masks.n_forward == graph.n_forward + 3
    assert not {"relu1", "relu62"} & {n for op in with_masks.ops if "_dx" in op.kind
                                      for n in op.inputs}  # fmt: skip


# ---- errors ----------------------------------------------------------------------------------


def ends_with(add: Any) -> Net:
    net = Net((6, 6, 2))
    add(net, net.conv(net.input, 4, 3))
    return net


def twice_read(net: Net, x: Value) -> None:
    net.linear(net.add(net.relu(x), x), 2)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (ends_with(lambda net, x: net.linear(net.tanh(x), 2)),
         r"int8 has no tanh \(tanh1\): it has conv, .* and reshape; or .* dtype='float32'"),
        (omniglot_conv(norm="group"), r"no group_normalize \(.*normal\): build the net without"),
        (omniglot_conv(norm="frozen"), r"no frozen_normalize \(.*\): fold it into the layer"),
        (ends_with(lambda net, x: net.bias(x)), "ends in a linear layer.* bias1 is made by bias"),
        (ends_with(lambda net, x: net.relu(net.linear(x, 2))), "relu1 is made by relu"),
        (ends_with(twice_read), r"no relu \(relu1\): put it right behind a convolution"),
        (ends_with(lambda net, x: net.linear(net.relu(net.max_pool(x, 2)), 2)), "right behind"),
    ],
)  # fmt: skip
def test_what_int8_does_not_have_is_refused_by_name(net: Net, message: str) -> None:
    for asked in ({"dtype": "int8"}, {"quantisable": True}):
        with pytest.raises(CompileError, match=message):
            build(net, loss="mse", **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dtype": "int4"}, "dtype must be one of .*'int8'.*; got 'int4'"),
        ({"dtype": "int8", "head": "half"}, "head must be one of"),
        ({"head": "int8"}, "head='int8' is for dtype='int8'"),
        ({"dtype": "int8", "density": 0.5}, "int8 stores every weight; got a density of 0.5"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        build(mlp((4, 8, 2)), loss="mse", **asked)


def test_more_products_than_an_accumulator_holds_are_refused() -> None:
    build(mlp((32_768, 1, 2)), loss="mse", dtype="int8", plan="last:1")
    with pytest.raises(CompileError, match="at most 32,768 products; got 32,769"):
        build(mlp((32_769, 1, 2)), loss="mse", dtype="int8", plan="last:1")


def test_a_head_that_is_another_layer_too_is_of_its_type() -> None:
    net = Net(4)
    net.linear(net.relu(net.linear(net.input, 4, name="both")), 4, name="both")
    with pytest.raises(CompileError, match=r"both.weight is the weight of the head, .*head='int8'"):
        build(net, loss="mse", dtype="int8")
    built = build(net, loss="mse", dtype="int8", head="int8")
    assert built.graph.tensors["both.weight"].dtype == I8


def test_the_checker_refuses_what_no_op_takes() -> None:
    graph = quantise(training(block()))
    damage: dict[str, Graph] = {
        "relu61 is int8, and '' is no scale": with_tensor(graph, "relu61", scale=""),
        "'head.bias' is no scale": with_tensor(graph, "relu61", scale="head.bias"),
        "conv8 does not take relu61": with_tensor(graph, "relu61", dtype=F32),
        "linear does not take head.bias": with_tensor(
            graph, "head.bias", dtype=I8, scale="point.weight.steps", shape=(8,)
        ),
    }
    for message, damaged in damage.items():
        with pytest.raises(GraphError, match=message):
            check_integers(damaged)


def test_the_checker_refuses_a_value_that_moves_to_another_scale() -> None:
    graph = quantise(training(block()))
    moved = replace(graph.tensors["relu1"], name="moved", scale="add1.range", home=ARENA)
    maker = makers(graph)["relu1"]
    ops = (*graph.ops[: graph.n_forward], Op("reshape", maker.outputs, ("moved",)))
    with pytest.raises(GraphError, match="reshape makes moved of relu1, which differs in scale"):
        check_integers(replace(graph, tensors={**graph.tensors, "moved": moved}, ops=ops))


def with_tensor(graph: Graph, name: str, **changes: Any) -> Graph:
    return replace(graph, tensors={**graph.tensors, name: replace(graph.tensors[name], **changes)})


def test_a_range_record_says_so_in_int8_alone() -> None:
    """A float32 Program keeps them as any parameter that does not train."""
    for dtype, forms in (("float32", {0}), ("int8", {0, 1})):
        program = compile(block(), loss="cross_entropy", ram="1MiB", dtype=dtype, quantisable=True)
        records = dict(zip(program.layout.parameters, program.tables.params, strict=True))
        assert {record.form for record in records.values()} == forms
        assert all(
            records[p].form == (dtype == "int8") and not records[p].trained
            for p in program.layout.activations
        )
        vector = np.asarray(program.initial(1))
        assert not vector[program.layout.activations[0].offset :].any()
