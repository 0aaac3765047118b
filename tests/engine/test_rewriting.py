"""Masks, buffers and values made again change no bit; what they would read must still be there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.ir import Op
from fedtiny.engine.liveness import lifetimes, verify_updates
from fedtiny.engine.rewriting import bufferable, buffered, makers, maskable, masked, run_again
from fedtiny.engine.sparsity import prune
from fedtiny.errors import GraphError
from tests.engine.nets import image_nets, nets
from tests.engine.passes import results, same_bits, training_graph

NETS = st.one_of(nets(), image_nets())


def some(data: st.DataObject, names: list[str]) -> list[str]:
    return data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []


@settings(max_examples=60)
@given(NETS, st.integers(1, 3), st.booleans(), st.data())
def test_masks_change_no_bit(net: Net, batch: int, clip: bool, data: st.DataObject) -> None:
    graph = training_graph(net.graph(batch), clip=clip)
    found = verify_updates(masked(graph, some(data, sorted(maskable(graph)))))
    assert same_bits(results(found, clip=clip), results(graph, clip=clip))


@settings(max_examples=60)
@given(NETS, st.integers(1, 3), st.data())
def test_buffers_change_no_bit(net: Net, batch: int, data: st.DataObject) -> None:
    graph = training_graph(net.graph(batch))
    found = verify_updates(buffered(graph, some(data, sorted(bufferable(graph)))))
    assert same_bits(results(found), results(graph))


@settings(max_examples=100)
@given(NETS, st.integers(1, 3), st.booleans(), st.data())
def test_values_made_again_change_no_bit(
    net: Net, batch: int, clip: bool, data: st.DataObject
) -> None:
    """Any values, from any op on, and some of them a second time."""
    plain = training_graph(net.graph(batch), clip=clip)
    graph = plain
    for _ in range(2):
        values = some(data, sorted(op.outputs[0] for op in makers(graph).values()))
        at = data.draw(st.integers(0, len(graph.ops) - 1))
        graph = verify_updates(run_again(graph, values, at))
    assert graph.ops[: graph.n_forward] == plain.ops[: graph.n_forward]
    assert same_bits(results(graph, clip=clip), results(plain, clip=clip))


def deep_net() -> Net:
    net = Net((6, 6, 2))
    value = net.relu(net.conv(net.input, 3, 3, padding=1, name="a"))
    value = net.relu6(net.conv(value, 4, 3, padding=1, name="b"))
    net.linear(value, 2, name="c")
    return net


def test_a_mask_takes_one_bit_an_element_and_a_word_a_sample_at_least() -> None:
    graph = masked(training_graph(deep_net().graph(2)), ["relu1", "relu61"])
    # 6 x 6 pixels of 3 channels are 108 bits, of 4 channels 144: 4 and 5 words of 32.
    assert graph.tensors["relu1.mask"].shape == (2, 4)
    assert graph.tensors["relu61.mask"].shape == (2, 5)
    assert [op.kind for op in graph.ops].count("mask_dx") == 2


def test_a_gradient_made_early_lets_the_input_of_its_layer_go() -> None:
    graph = buffered(masked(training_graph(deep_net().graph(2)), ["relu1"]), ["b.weight"])
    kinds = [op.kind for op in graph.ops]
    early = kinds.index("conv_gradient")
    assert lifetimes(graph)["relu1"][1] == early
    assert kinds[early - 1 : early + 3] == ["zero", "conv_gradient", "bias_update", "conv_dx"]
    assert kinds.count("gradient_update") == 1
    assert kinds.count("bias_update") == 3


def test_a_buffer_larger_than_what_it_lets_go_is_not_offered() -> None:
    """b reads 6 x 6 x 3 = 108 floats and has 3 x 3 x 3 x 4 = 108 weights; of a, nobody wants the
    gradient of the input; c reads 144 floats and has 288 weights."""
    assert list(bufferable(training_graph(deep_net().graph(1)))) == []
    assert list(bufferable(training_graph(deep_net().graph(2)))) == ["b.weight"]
    assert list(bufferable(training_graph(deep_net().graph(2), clip=True))) == []


def test_an_op_that_runs_again_behind_the_update_of_its_parameter_is_found() -> None:
    graph = training_graph(deep_net().graph(1))
    late = Op("add", ("b", "relu61"), ("late",))
    graph = verify_updates(graph.extended([replace(graph.tensors["b"], name="late")], [late]))
    verify_updates(run_again(graph, {"relu61"}, graph.n_forward))
    with pytest.raises(GraphError, match=r"\(conv\) reads 'b.weight' behind its update"):
        verify_updates(run_again(graph, {"b"}, graph.n_forward))


def test_a_tracked_normalisation_that_runs_again_moves_its_statistics_once() -> None:
    net = Net((4, 3))
    value = net.batch_norm(net.conv(net.input, 2, 2, name="a"), tracked=True, name="n")
    net.linear(net.relu(value), 2)
    graph = training_graph(net.graph(2))
    again = run_again(graph, {"n.normal"}, graph.n_forward)
    kinds = [op.kind for op in again.ops]
    assert (kinds.count("tracked_normalize"), kinds.count("batch_normalize")) == (1, 1)
    assert same_bits(results(again), results(graph))


def test_the_gradient_of_a_sparse_layer_is_never_made_in_a_buffer() -> None:
    dense = training_graph(deep_net().graph(2))
    sparse = training_graph(prune(deep_net().graph(2), 0.5))
    assert (list(bufferable(dense)), list(bufferable(sparse))) == (["b.weight"], [])


def test_a_value_made_again_is_gone_meanwhile() -> None:
    """relu61 is read by the head's update, behind which relu6_dx still needs it."""
    graph = training_graph(deep_net().graph(1))
    again = run_again(graph, {"relu61"}, graph.n_forward)
    lives, kinds = lifetimes(again), [op.kind for op in again.ops]
    assert lives["relu61"][1] < graph.n_forward
    assert [op.kind for op in again.ops[lives["relu61~"][0] :]][:2] == ["relu6", "linear_update"]
    assert lives["relu61~"][1] == kinds.index("relu6_dx")


def test_the_operands_of_what_runs_again_run_before_it_if_they_are_not_kept_either() -> None:
    graph = run_again(training_graph(deep_net().graph(1)), {"relu61", "b", "relu1"}, 5)
    made = [name for op in graph.ops for name in op.outputs if name.endswith("~")]
    assert made == ["relu1~", "b~", "relu61~"]
