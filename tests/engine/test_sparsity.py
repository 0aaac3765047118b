"""What a density makes of a net: the pass, the pool, the figures of the Program, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedtiny import pruning
from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import build, compile
from fedtiny.engine.image import BITMAP, GAPS
from fedtiny.engine.ir import LIVE
from fedtiny.engine.program import Program, ram_parts
from fedtiny.engine.sparsity import Pool, prunable, prune
from fedtiny.errors import BudgetError, CompileError, ExperimentError
from fedtiny.values import Sgd
from tests.engine.nets import image_nets, nets

NETS = st.one_of(nets(), image_nets())


def pruned(net: Net, density: float, bucket: int = 0, batch: int = 1, sgd: Sgd | None = None,
           plan: str = "all") -> Program:  # fmt: skip
    return compile(net, loss="mse", ram="64MiB", flash="64MiB", batch=batch, density=density,
                   bucket=bucket, sgd=sgd, plan=plan, minimise="time")  # fmt: skip


def two_layers() -> Net:
    """A convolution of 36 weights and a linear layer of 8 x 3."""
    net = Net((7, 7, 1))
    net.linear(net.max_pool(net.relu(net.conv(net.input, 4, 3, name="conv")), (2, 5)), 3, name="fc")
    return net


def fits(net: Net, density: float) -> bool:
    """Whether it has a weight for every layer."""
    graph = net.graph(1)
    names = prunable(graph)
    return int(density * sum(graph.layout[name].size for name in names)) >= max(1, len(names))


# ---- what is pruned --------------------------------------------------------------------------


def test_weights_of_one_linear_layer_or_convolution_can_be_pruned_and_nothing_else() -> None:
    net = Net((8, 8, 2))
    x = net.batch_norm(net.conv(net.input, 4, 3, name="plain"), tracked=True, name="norm")
    x = net.conv(x, 4, 3, groups=4, name="depthwise")
    x = net.conv(net.conv(x, 4, 1, name="twice"), 4, 1, name="twice")
    for net.group in ("local", "frozen", "fresh", "head"):
        x = net.linear(x, 5, name=net.group)
    assert prunable(net.graph(1)) == ("plain.weight", "head.weight")


@settings(max_examples=100)
@given(NETS, st.sampled_from([0.5, 0.9, 1.0]))
def test_every_program_of_a_net_names_the_same_prunable_parameters(
    net: Net, density: float
) -> None:
    names = prunable(net.graph(1))
    assume(density == 1 or fits(net, density))
    assert pruned(net, density, batch=2).prunable == names


def test_an_untrained_layer_is_pruned_too() -> None:
    program = pruned(two_layers(), 0.5, plan="last:1")
    assert program.prunable == ("conv.weight", "fc.weight")
    assert [p.pruned for p in program.tables.params] == [1, 0, 2, 0]
    assert program.trained_names == ("fc.weight", "fc.bias")


def test_without_a_density_the_graph_stays_as_it_is() -> None:
    graph = two_layers().graph(2)
    assert prune(graph, 1.0) is graph
    program = pruned(two_layers(), 1.0, bucket=9)
    assert (program.density, program.capacity, program.tables.bucket) == (1.0, 0, 0)
    assert "live_values" not in program.report()


def test_pruned_weights_are_live_tensors_of_sparse_ops() -> None:
    graph = prune(two_layers().graph(2), 0.5)
    assert [op.kind for op in graph.ops] == ["sparse_conv", "relu", "max_pool", "sparse_conv"]
    homes = {name: tensor.home for name, tensor in graph.tensors.items() if "." in name}
    assert homes["conv.weight"] == homes["fc.weight"] == LIVE
    assert homes["conv.bias"] == homes["fc.bias"] == "parameter"


# ---- the pool --------------------------------------------------------------------------------


def test_the_index_is_the_smaller_of_gaps_and_bitmap() -> None:
    # 1000 weights: a bitmap has 32 words. Two gaps a word; beside them two starts of gaps.
    assert Pool((1000,), 59).form == GAPS  # 2 + 30 words
    assert Pool((1000,), 61).form == BITMAP  # 2 + 31 words
    assert Pool((1000,), 59).words == 59 + 2 + 2 + 30
    assert Pool((1000,), 500).words == 500 + 2 + 32


def test_a_long_way_between_live_weights_takes_escapes() -> None:
    # Three parameters; the second may skip 65,535 dead weights twice, the third once.
    assert Pool((65_534, 131_070, 70_000), 10).index_words == (3 + 1) * 2 + (10 + 3 + 1) // 2


@settings(max_examples=200)
@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=5), st.floats(0.001, 0.5))
def test_the_index_is_never_larger_than_either_form(counts: list[int], density: float) -> None:
    capacity = int(density * sum(counts))
    starts = 4 * (len(counts) + 1)
    gaps = starts + 2 * (capacity + sum(n // 65_535 for n in counts))
    bitmap = 4 * sum(math.ceil(n / 32) for n in counts)
    assert 4 * Pool(tuple(counts), capacity).index_words <= starts + min(gaps + 2, bitmap)


ZOO: dict[str, Callable[[], Net]] = {
    "digits_bn": zoo.digits_bn, "omniglot_bn": zoo.omniglot_bn,
    "vgg11": lambda: zoo.vgg11(16), "resnet18": lambda: zoo.resnet18(8),
}  # fmt: skip


@cache
def dense_ram(name: str) -> int:
    return pruned(ZOO[name](), 1.0, batch=2).report()["ram_bytes"]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("density", [0.1, 0.03, 0.01])
def test_the_pool_of_a_net_takes_six_bytes_a_live_weight(name: str, density: float) -> None:
    net, bucket = ZOO[name](), 300
    program = pruned(net, density, bucket, batch=2)
    dense_bytes = 4 * sum(program.layout[name].size for name in program.prunable)
    others_bytes = 4 * program.layout.size - dense_bytes
    report = program.report()
    live = report["live_values"]
    spent = report["parameters_bytes"] - others_bytes + report["state_bytes"]
    assert live == program.capacity == int(density * dense_bytes / 4)
    assert report["bucket_bytes"] == report["state_bytes"] == 8 * bucket
    assert spent <= 6 * live + 8 * bucket + 0.01 * dense_bytes
    assert report["ram_bytes"] < dense_ram(name)


def test_the_report_counts_the_pool_once() -> None:
    report = pruned(two_layers(), 0.25, bucket=10, sgd=Sgd(momentum=0.9)).report()
    # 15 of 60 weights live; a bitmap of 2 + 1 words beside three starts; seven biases.
    assert (report["live_values"], report["index_bytes"]) == (15, 4 * (3 + 3))
    assert report["parameters_bytes"] == 4 * (7 + 15) + report["index_bytes"]
    assert report["state_bytes"] == 4 * (7 + 15) + 8 * 10
    assert report["trained_parameters"] == 7 + 15


def test_the_multiply_adds_of_sparse_layers_follow_the_density() -> None:
    net = Net(40)
    net.linear(net.input, 10, bias=False)
    full, tenth = (pruned(net, density, batch=3).report() for density in (1.0, 0.1))
    assert full["macs_per_forward"] == 3 * 40 * 10
    assert tenth["macs_per_forward"] == 3 * 40
    # Beside the weights' gradient a step has the loss, over 3 x 10 outputs.
    assert tenth["macs_per_step"] == 2 * 3 * 40 + 3 * 10


def test_each_sparse_layer_is_counted_at_the_density_that_erk_gives_it() -> None:
    # 18 of 180 weights live, dealt out as 34 (4 + 30) to 32 (30 + 2).
    net = Net(4)
    net.linear(net.linear(net.input, 30, bias=False, name="wide"), 2, bias=False, name="narrow")
    program = pruned(net, 0.1, batch=5)
    live = pruning.erk_counts(program.layout, program.prunable, 0.1)
    assert live == {"wide.weight": 9, "narrow.weight": 9}
    # A live weight is one multiply-add a sample: forward, and for its own gradient; the second
    # layer's once more on the way back. Beside them the loss, over 5 x 2 outputs.
    assert program.report()["macs_per_forward"] == 5 * (9 + 9)
    assert program.report()["macs_per_step"] == 5 * (2 * 9 + 3 * 9) + 5 * 2


def test_a_density_at_which_erk_would_empty_a_layer_is_counted_evenly() -> None:
    net = Net(100)
    x = net.linear(net.input, 100, bias=False)
    net.linear(net.linear(x, 1, bias=False), 1, bias=False)
    # 3 of 10,101 weights live. Each layer does the same share of its work, rounded up.
    program = pruned(net, 0.0003)
    with pytest.raises(ExperimentError, match=r"leaves none of the 1 weights"):
        pruning.erk_counts(program.layout, program.prunable, 0.0003)
    assert program.report()["macs_per_forward"] == sum(
        math.ceil(dense * 3 / 10_101) for dense in (100 * 100, 100, 1)
    )


def test_room_for_a_dense_model_is_a_part_of_the_ram() -> None:
    without = pruned(two_layers(), 0.25)
    room = compile(two_layers(), loss="mse", ram="1MiB", density=0.25, dense_base=True)
    assert "base_bytes" not in without.report()
    assert room.report()["base_bytes"] == 4 * room.layout.size
    assert room.report()["ram_bytes"] == sum(ram_parts(room.report()).values())
    assert room.report()["ram_bytes"] == without.report()["ram_bytes"] + 4 * room.layout.size


def test_a_dense_program_has_its_model_already() -> None:
    program = compile(two_layers(), loss="mse", ram="1MiB", dense_base=True)
    assert program == compile(two_layers(), loss="mse", ram="1MiB")


def test_a_budget_without_room_for_a_dense_model_says_who_needs_it() -> None:
    needed = pruned(two_layers(), 0.25).report()["ram_bytes"]
    with pytest.raises(BudgetError, match=r"base 268\); .* candidates = 1 needs no dense model"):
        compile(two_layers(), loss="mse", ram=needed, density=0.25, dense_base=True)


def test_a_bucket_holds_at_most_what_is_dead() -> None:
    assert pruned(two_layers(), 0.25, bucket=1000).tables.bucket == 60 - 15
    assert pruned(two_layers(), 0.25, bucket=40).tables.bucket == 40


@settings(max_examples=60)
@given(NETS, st.floats(0.2, 0.95), st.integers(1, 3), st.sampled_from(["ram", "time"]))
def test_a_plan_of_a_pruned_net_is_close_to_its_lower_bound(
    net: Net, density: float, batch: int, minimise: str
) -> None:
    assume(fits(net, density))
    built = build(net, loss="mse", batch=batch + 1, minimise=minimise, density=density)
    assert built.lower_bound <= built.memory.arena_bytes <= 1.01 * built.lower_bound + 64


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_a_density_is_above_zero_and_at_most_one(density: float) -> None:
    with pytest.raises(CompileError, match=rf"above 0 and at most 1; got {density}"):
        pruned(two_layers(), density)


def test_a_density_that_leaves_a_layer_no_weight_is_refused() -> None:
    # 60 weights in two layers: a fiftieth of them is one.
    with pytest.raises(CompileError, match=r"keeps 1 of 60 weights.* each of 2 layers; .* 0\.0333"):
        pruned(two_layers(), 0.02)


def test_a_net_without_layers_to_prune_is_refused() -> None:
    net = Net((4, 4, 2))
    net.global_avg_pool(net.conv(net.input, 2, 3, groups=2))
    with pytest.raises(CompileError, match=r"density of 0\.5 prunes nothing"):
        pruned(net, 0.5)


def test_a_sparse_layer_too_wide_for_the_room_of_a_host_is_refused() -> None:
    net = Net(2)
    net.linear(net.input, 40_000)
    with pytest.raises(CompileError, match=r"40,000 outputs and 1 taps; .* at most 32,768"):
        pruned(net, 0.5)
