"""The order of the ops: as good as the best one where all can be tried, never worse, same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.ir import Graph, Op, verify
from fedtiny.engine.liveness import live_bytes, verify_updates
from fedtiny.engine.schedule import schedule
from fedtiny.errors import GraphError
from tests.engine.nets import image_nets, nets
from tests.engine.passes import results, same_bits, training_graph


def peak_bytes(graph: Graph) -> int:
    return max(live_bytes(graph))


@settings(max_examples=150)
@given(st.one_of(nets(), image_nets()), st.integers(1, 3), st.booleans())
def test_a_schedule_changes_no_bit_and_is_never_worse(net: Net, batch: int, clip: bool) -> None:
    plain = training_graph(net.graph(batch), clip=clip)
    found = schedule(plain)
    assert peak_bytes(found) <= peak_bytes(plain)
    assert set(found.ops) == set(plain.ops)
    assert set(found.ops[: plain.n_forward]) == set(plain.ops[: plain.n_forward])
    assert found.ops[plain.n_forward] == plain.ops[plain.n_forward]
    assert same_bits(results(found, clip=clip), results(plain, clip=clip))


@st.composite
def branching(draw: st.DrawFn) -> Net:
    """Up to seven layers, each over any value there is; then all that nobody read, added up."""
    net = Net(draw(st.integers(1, 6)))
    values, unread = [net.input], {net.input.name: net.input}
    for _ in range(draw(st.integers(2, 5))):
        x = draw(st.sampled_from(values))
        unread.pop(x.name, None)
        y = net.linear(x, draw(st.integers(1, 40)), bias=False)
        values.append(y)
        unread[y.name] = y
    while len(unread) > 1:
        one, other = list(unread.values())[:2]
        total = net.concat(one, other)
        unread = {total.name: total} | {
            name: value for name, value in unread.items() if value not in (one, other)
        }
    return net


def orders(graph: Graph) -> Iterator[Graph]:
    """Every order in which each op comes behind what it reads."""
    for ops in permutations(graph.ops):
        candidate = replace(graph, ops=ops)
        try:
            yield verify(candidate)
        except GraphError:
            continue


@settings(max_examples=60)
@given(branching())
def test_of_a_few_branches_the_best_order_is_found(net: Net) -> None:
    graph = net.graph(1)
    if len(graph.ops) <= 7:
        assert peak_bytes(schedule(graph)) == min(map(peak_bytes, orders(graph)))


def test_one_branch_ends_before_the_other_starts() -> None:
    net = Net(4)
    stem = net.linear(net.input, 64, bias=False)
    wide = net.linear(stem, 100, bias=False)
    slim = net.linear(stem, 50, bias=False)
    net.concat(net.linear(wide, 3, bias=False), net.linear(slim, 3, bias=False))
    graph = net.graph(1)
    assert peak_bytes(graph) == 4 * (64 + 100 + 50)
    # The stem, the wide branch and its end; or the stem, an end and the wide branch.
    assert peak_bytes(schedule(graph)) == 4 * (64 + 100 + 3)


@pytest.mark.parametrize("clip", [False, True])
def test_updates_stay_behind_the_ops_that_read_the_old_value(clip: bool) -> None:
    """A layer that is used twice, in two branches, and a head."""
    net = Net(5)
    left = net.linear(net.tanh(net.linear(net.input, 5, name="twice")), 5, name="twice")
    net.linear(net.add(net.linear(left, 40), net.linear(net.input, 40)), 2)
    graph = schedule(training_graph(net.graph(1), clip=clip))
    assert verify_updates(graph) == graph


def test_sums_of_gradients_keep_their_order() -> None:
    net = Net(3)
    value = net.input
    for _ in range(3):
        value = net.linear(value, 3, name="same")
    graph = training_graph(net.graph(2))

    def order(graph: Graph) -> list[Op]:
        return [op for op in graph.ops if "g.same.weight" in (*op.inputs, *op.outputs)]

    assert order(schedule(graph)) == order(graph)
    assert [op.kind for op in order(graph)] == [
        "zero", "linear_gradient", "linear_gradient", "linear_gradient", "gradient_update",
    ]  # fmt: skip
