"""The search for what lowers the peak: never higher, no bit changed, nothing done in vain."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.fusion import fuse
from fedtiny.engine.ir import Graph
from fedtiny.engine.liveness import live_bytes
from fedtiny.engine.ops import FORWARD, TABLE, macs
from fedtiny.engine.saving import spare
from fedtiny.errors import CompileError
from tests.engine.nets import image_nets, nets
from tests.engine.passes import results, same_bits, training_graph


def peak_bytes(graph: Graph) -> int:
    return max(live_bytes(graph))


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph.ops]


@settings(max_examples=100)
@given(st.one_of(nets(), image_nets()), st.integers(1, 3), st.booleans(),
       st.sampled_from(["ram", "time"]))  # fmt: skip
def test_sparing_changes_no_bit_and_never_raises_the_peak(
    net: Net, batch: int, clip: bool, minimise: str
) -> None:
    plain = training_graph(net.graph(batch), clip=clip)
    spared = spare(plain, minimise)
    assert peak_bytes(spared) <= peak_bytes(plain)
    assert spared == plain or peak_bytes(spared) < peak_bytes(plain)
    assert same_bits(results(spared, clip=clip), results(plain, clip=clip))


@settings(max_examples=60)
@given(image_nets(), st.integers(1, 3))
def test_to_save_time_nothing_is_made_twice(net: Net, batch: int) -> None:
    plain = training_graph(net.graph(batch))
    spared = spare(plain, "time")
    assert forward_kinds(spared) == forward_kinds(plain)


def forward_kinds(graph: Graph) -> Counter[str]:
    return Counter(kind for kind in kinds(graph) if TABLE[kind].role == FORWARD)


def test_a_chain_of_wide_layers_is_made_again_from_its_narrow_input() -> None:
    net = Net(8)
    value = net.input
    for width in (64, 64, 64, 8):
        value = net.relu(net.linear(value, width))
    net.linear(value, 1)
    plain = training_graph(net.graph(1), "mse")
    # The gradient of the third activation is made from that of the fourth; all three are kept.
    assert peak_bytes(plain) == 4 * (3 * 64 + 64 + 8 + 1)
    # Of the first two, one is kept and one is made again: relu1 from the input, when relu2 and the
    # gradients of the third are gone.
    assert peak_bytes(spare(plain)) == 4 * (2 * 64 + 64 + 8 + 1)


def test_masks_stand_for_activations_that_only_their_slope_needs() -> None:
    """The convolutions behind the activations do not train: nobody reads their inputs again."""
    net = Net((8, 8, 4))
    value = net.conv(net.input, 4, 3, padding=1)
    net.group = "frozen"
    for _ in range(2):
        value = net.conv(net.relu(value), 4, 3, padding=1)
    net.linear(net.global_avg_pool(value), 2)
    plain = training_graph(net.graph(1))
    image, mask, loss = 4 * 256, 4 * 8, 4
    # The last convolution's data gradient: what it reads and makes, and both activations.
    assert peak_bytes(plain) == 2 * image + 2 * image + loss
    spared = spare(plain, "time")
    assert peak_bytes(spared) == 2 * image + 2 * mask + loss
    assert kinds(spared).count("mask_dx") == 2


@pytest.mark.parametrize(
    ("net", "most_bytes", "most_macs"),
    [
        (zoo.omniglot_conv(norm="none", pool=True), 75_268, 1.05),
        (zoo.omniglot_conv(norm="group", pool=True), 200_852, 1.05),
        (zoo.omniglot_conv(norm="frozen", pool=True), 200_836, 1.05),
        (zoo.ds_cnn(), 145_388, 1.6),
        (zoo.resnet(), 262_212, 1.4),
    ],
)
def test_the_nets_of_the_field_stay_as_small_as_they_are(
    net: Net, most_bytes: int, most_macs: float
) -> None:
    plain = training_graph(fuse(net.graph(1)))
    spared = spare(plain)
    assert peak_bytes(spared) <= most_bytes
    cost, before = (sum(macs(op, g.tensors) for op in g.ops) for g in (spared, plain))
    assert cost <= most_macs * before


def test_what_to_minimise_is_ram_or_time() -> None:
    graph = training_graph(zoo.sine_mlp().graph(1), "mse")
    with pytest.raises(CompileError, match=r"one of \['ram', 'time'\]; got 'flash'"):
        spare(graph, "flash")
