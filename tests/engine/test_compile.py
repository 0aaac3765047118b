"""What compile promises: budgets, plans, figures that add up, and errors that teach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Hyper, Program, ram_parts
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import mlp, omniglot_conv, sine_mlp
from fedtiny.errors import BudgetError, CompileError, GraphError, ImageError
from fedtiny.update_plan import UpdatePlan
from fedtiny.values import Phase, Sgd
from tests.engine.nets import nets, trained


def above_parameters(program: Program) -> int:
    report = program.report()
    return report["arena_bytes"] + report["state_bytes"] + report["sample_bytes"]


@settings(max_examples=50)
@given(nets())
def test_the_report_adds_up_and_is_that_of_the_image(net: Net) -> None:
    program = compile(net, loss="mse", ram="1MiB", batch=2, reserve="2KiB", sgd=Sgd(0.9))
    report = program.report()
    assert report["ram_bytes"] == sum(ram_parts(report).values())
    flash = (report["image_bytes"], report["runtime_bytes"], report["frozen_bytes"])
    assert report["flash_bytes"] == sum(flash)
    assert report["image_bytes"] == len(program.image)
    assert report["parameters_bytes"] == 4 * program.layout.size
    assert report["state_bytes"] == 4 * report["trained_parameters"]
    assert report["reserve_bytes"] == 2048


def test_training_takes_few_bytes_above_the_parameters() -> None:
    sine = compile(sine_mlp("tanh"), loss="mse", ram="256KiB")
    image_net = compile(mlp((784, 64, 10)), loss="cross_entropy", ram="256KiB")
    assert above_parameters(sine) == 400  # AIfES: 14,036
    assert above_parameters(image_net) == 3696  # AIfES: 609,328


def test_a_budget_of_exactly_ram_bytes_is_accepted_and_one_less_is_refused() -> None:
    needed = compile(sine_mlp(), loss="mse", ram="1MiB").report()["ram_bytes"]
    compile(sine_mlp(), loss="mse", ram=needed)
    with pytest.raises(BudgetError, match=f"needs {needed:,} B of {needed - 1:,} B RAM") as error:
        compile(sine_mlp(), loss="mse", ram=needed - 1)
    assert (error.value.needed_bytes, error.value.budget_bytes) == (needed, needed - 1)
    assert "linear2.weight 4,096 B" in str(error.value)
    assert "train fewer layers" in str(error.value)


@pytest.mark.parametrize(("density", "floats"), [(1.0, 1153), (0.25, 1153 - 1088 + 272)])
def test_vectors_that_a_device_keeps_are_a_part_of_the_ram(density: float, floats: int) -> None:
    without, kept = (
        compile(sine_mlp(), loss="mse", ram="1MiB", density=density, kept_vectors=count).report()
        for count in (0, 2)
    )
    # 32 + 32 * 32 + 32 weights of 1,153 parameters are pruned
    assert "kept_bytes" not in without
    assert kept["kept_bytes"] == 2 * 4 * floats
    needed = without["ram_bytes"]
    assert kept["ram_bytes"] == needed + 2 * 4 * floats == sum(ram_parts(kept).values())
    with pytest.raises(BudgetError, match=f"kept {8 * floats:,}.* than 2: leave transforms out"):
        compile(sine_mlp(), loss="mse", ram=needed, density=density, kept_vectors=2)


def test_flash_is_a_budget_too() -> None:
    with pytest.raises(BudgetError, match=r"of 12,288 B flash .*; .*or take a smaller net"):
        compile(sine_mlp(), loss="mse", ram="256KiB", flash="12KiB")


def test_what_does_not_train_stands_in_flash() -> None:
    """64 x 64 and 64 x 10 weights, and 64 and 10 biases."""
    everything, head = (
        compile(mlp((64, 64, 10)), loss="cross_entropy", ram="64KiB", plan=plan).report()
        for plan in ("all", "last:1")
    )
    body, last = 4 * (64 * 64 + 64), 4 * (64 * 10 + 10)
    assert (everything["parameters_bytes"], everything["frozen_bytes"]) == (body + last, 0)
    assert (head["parameters_bytes"], head["frozen_bytes"]) == (last, body)
    assert head["ram_bytes"] < everything["ram_bytes"] - body
    assert head["flash_bytes"] == head["image_bytes"] + head["runtime_bytes"] + body


def test_a_frozen_net_too_large_for_the_flash_is_refused_with_what_is_largest() -> None:
    net = mlp((64, 256, 10))
    largest = "largest: linear1.weight 65,536 B, linear1.bias 1,024 B"
    told = rf"frozen 66,560\); {largest}; compile with dtype='int8', or take a smaller net"
    with pytest.raises(BudgetError, match=told):
        compile(net, loss="cross_entropy", ram="64KiB", flash="96KiB", plan="last:1")
    compile(net, loss="cross_entropy", ram="64KiB", flash="96KiB", plan="last:1", dtype="int8")


def test_a_smaller_plan_needs_less_memory_and_fewer_operations() -> None:
    everything, head = (
        compile(mlp((64, 64, 64, 10)), loss="cross_entropy", ram="256KiB", plan=plan).report()
        for plan in ("all", "last:1")
    )
    assert head["arena_bytes"] < everything["arena_bytes"]
    assert head["macs_per_step"] < 0.5 * everything["macs_per_step"]


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        (UpdatePlan.all(), ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"]),
        (UpdatePlan.last_layers(1), ["linear2.weight", "linear2.bias"]),
        (UpdatePlan.biases(), ["linear1.bias", "linear2.bias"]),
        (UpdatePlan.named("*1.weight"), ["linear1.weight"]),
    ],
)
def test_only_what_the_plan_selects_moves(plan: UpdatePlan, names: list[str]) -> None:
    program = compile(mlp((3, 4, 2)), loss="mse", ram="64KiB", plan=plan)
    _, after = trained(ReferenceExecutor(program.image), program, [Hyper(0.1)] * 3)
    before = program.layout.unflatten(np.asarray(program.initial(1)))
    moved = [n for n, a in program.layout.unflatten(after).items() if (a != before[n]).any()]
    assert moved == names == list(program.trained_names)


def test_the_selected_values_are_those_of_the_full_update() -> None:
    full, head = (
        compile(mlp((3, 4, 2)), loss="mse", ram="64KiB", plan=plan) for plan in ("all", "last:1")
    )
    _, all_moved = trained(ReferenceExecutor(full.image), full, [Hyper(0.1)])
    _, head_moved = trained(ReferenceExecutor(head.image), head, [Hyper(0.1)])
    for name in ("linear2.weight", "linear2.bias"):
        a, b = (full.layout.unflatten(v)[name] for v in (all_moved, head_moved))
        np.testing.assert_array_equal(a, b)


def test_a_group_that_a_phase_does_not_train_stays() -> None:
    program = compile(mlp((3, 4, 2), head="head"), loss="mse", ram="64KiB", sgd=Sgd(clip=0.1))
    hyper = program.hyper(Phase(0.1, groups=("head",), sgd=program.sgd))
    _, after = trained(ReferenceExecutor(program.image), program, [hyper])
    before = program.layout.unflatten(np.asarray(program.initial(1)))
    moved = [n for n, a in program.layout.unflatten(after).items() if (a != before[n]).any()]
    assert moved == ["linear2.weight", "linear2.bias"]


def test_plans_of_one_model_share_a_layout() -> None:
    programs = [
        compile(mlp((3, 4, 2)), loss="mse", ram="64KiB", plan=plan, batch=batch)
        for plan, batch in (("all", 1), ("biases", 1), ("all", 7))
    ]
    assert len({p.layout.digest for p in programs}) == 1
    assert len({p.digest for p in programs}) == 3


def test_compiling_twice_gives_the_same_image() -> None:
    first, second = (compile(sine_mlp(), loss="mse", ram="64KiB").image for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "there is no loss 'hinge'"),
        ({"minimise": "size"}, "minimise must be one of"),
        (
            {"max_model": 103},
            r"104 B of parameters and max_model is 103 B",
        ),  # 3 x 4 + 4 + 4 x 2 + 2
        ({"fold": True}, "fold=True is for torch modules"),
        ({"class_weights": [1.0, 2.0]}, "class_weights are for cross_entropy"),
        ({"batch": 0}, "the batch must be 1 to 65535; got 0"),
        ({"plan": "last:0"}, "unknown plan 'last:0'"),
        ({"plan": "named:conv*"}, "trains none of the parameters"),
        ({"plan": "named:linear1.weight{in=0+3}"}, "trains channel 3 of linear1.weight"),
        (
            {"plan": "named:linear1.weight{in=0}", "density": 0.5},
            "linear1.weight is pruned, .* or compile with density=1",
        ),
        ({"example_input": np.zeros((1, 5))}, r"the net takes \(batch, 3\)"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments: dict[str, object], message: str) -> None:
    defaults: dict[str, object] = {"loss": "mse", "ram": "64KiB"}
    with pytest.raises(CompileError, match=message):
        compile(mlp((3, 4, 2)), **{**defaults, **arguments})  # type: ignore[arg-type]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(CompileError, match="a dict is no model; give a fedtiny builder net or"):
        compile({}, loss="mse", ram="64KiB")


def test_weights_of_classes_are_a_parameter_that_never_trains() -> None:
    weights = [0.5, 3.0]
    program = compile(mlp((3, 2)), loss="cross_entropy", ram="64KiB", class_weights=weights)
    assert program.trained_names == ("linear1.weight", "linear1.bias")
    assert program.loss == "cross_entropy"
    assert (
        program.layout.unflatten(np.asarray(program.initial(1)))["loss.weight"].tolist() == weights
    )
    even = compile(mlp((3, 2)), loss="cross_entropy", ram="64KiB", class_weights=[1.0, 1.0])
    plain = compile(mlp((3, 2)), loss="cross_entropy", ram="64KiB")
    found = [trained(ReferenceExecutor(p.image), p, [Hyper(0.1)])[1][:8] for p in (even, plain)]
    np.testing.assert_array_equal(found[0], found[1])


def test_saving_time_costs_memory_and_no_operation() -> None:
    net = omniglot_conv(pool=True, norm="none")
    ram, time = (
        compile(net, loss="cross_entropy", ram="1MiB", minimise=minimise).report()
        for minimise in ("ram", "time")
    )
    assert ram["arena_bytes"] <= time["arena_bytes"]
    assert ram["macs_per_step"] >= time["macs_per_step"]


def test_a_frozen_parameter_is_never_trained() -> None:
    net = Net(3, group="frozen")
    hidden = net.relu(net.linear(net.input, 4))
    net.group = "shared"
    net.linear(hidden, 2)
    program = compile(net, loss="mse", ram="64KiB")
    assert program.trained_names == ("linear2.weight", "linear2.bias")


def test_mismatched_nets_are_refused_by_name() -> None:
    net = Net(3)
    with pytest.raises(GraphError, match="add joins 4 and 3 features"):
        net.add(net.linear(net.input, 4), net.input)
    with pytest.raises(GraphError, match="two layers named 'fc'"):
        net.linear(net.linear(net.input, 4, name="fc"), 4, name="fc")
    with pytest.raises(GraphError, match="no layers"):
        Net(3).graph(1)


def test_a_phase_may_not_use_what_has_no_memory() -> None:
    program = compile(sine_mlp(), loss="mse", ram="64KiB")
    with pytest.raises(ImageError, match=r"momentum = 0.9.*sgd=Sgd\(momentum"):
        trained(ReferenceExecutor(program.image), program, [Hyper(0.1, momentum=0.9)])
