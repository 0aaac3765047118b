"""``fedtiny zoo``: what it lists, and what each net really needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest
from typer.testing import CliRunner

from fedtiny import BudgetError, cli_zoo, compile
from fedtiny.cli import app
from fedtiny.cli_zoo import PLANS
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import build
from fedtiny.engine.zoo import ZOO, mcunet, mobilenet_v2
from fedtiny.update_plan import UpdatePlan


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["zoo", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_ram_that_it_tells_is_the_least_in_which_the_net_trains() -> None:
    row = json.loads(told("digits_mlp", "--json"))["digits_mlp"]
    plans = {plan: row["sparse"] if plan == "sparse" else plan for plan in PLANS}
    for dtype in ("float32", "int8"):
        assert row[dtype]["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
        for plan, nbytes in row[dtype]["ram_bytes"].items():
            compiled = partial(
                compile, ZOO["digits_mlp"].make(), loss="cross_entropy", plan=plans[plan],
                dtype=dtype,
            )  # fmt: skip
            assert compiled(ram=nbytes)
            with pytest.raises(BudgetError):
                compiled(ram=nbytes - 1)


def test_patches_spare_ram_where_there_is_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_zoo, "PLANS", ("last:1",))
    asked = ("cifar_conv", "digits_mlp", "--json")
    whole, cut = (json.loads(told(*asked, *flag)) for flag in ((), ("--patches",)))
    for dtype in ("float32", "int8"):
        before, after = (rows["cifar_conv"][dtype]["ram_bytes"] for rows in (whole, cut))
        assert after["last:1"] < 0.9 * before["last:1"]
    assert cut["digits_mlp"] == whole["digits_mlp"]


def test_the_table_has_a_line_for_each_dtype_of_each_net_that_is_named() -> None:
    lines = told("sine_mlp", "har_conv").splitlines()
    assert [line.split()[0] for line in lines if "_" in line] == ["sine_mlp", "har_conv"]
    first = next(i for i, line in enumerate(lines) if line.startswith("sine_mlp"))
    assert lines[first].split()[1:3] == ["float32", "1,153"]
    assert lines[first + 1].split()[:5] == ["a", "number", "int8", "1,153", "1.12"]
    assert max(map(len, lines)) <= 80


def test_a_net_that_does_not_ship_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["zoo", "sine_mpl"])
    assert result.exit_code == 3
    assert "did you mean 'sine_mlp'" in result.output


def test_every_net_of_the_zoo_trains_its_sparse_plan_in_both_dtypes() -> None:
    for entry in ZOO.values():
        for make, dtype in ((entry.make, "float32"), (entry.plain, "int8")):
            if make:
                built = build(make(), loss=entry.loss, plan=entry.sparse, dtype=dtype)
                assert 0 < built.trained_floats < built.graph.layout.size


@pytest.mark.parametrize("make", [mobilenet_v2, mcunet])
def test_lite_branches_start_as_nothing_and_train_in_place_of_the_blocks(
    make: Callable[..., Net],
) -> None:
    plain, lite = (make(32, norm="none", lite=branches) for branches in (False, True))
    whole = {p.name for p in plain.graph(1).layout.parameters}
    added = [p.name for p in lite.graph(1).layout.parameters if p.name not in whole]
    assert added
    assert all(".lite." in name for name in added)
    assert all(not lite.start[name].any() for name in added if ".mix." in name)
    trained = set(UpdatePlan.parse("named:*.lite.*+biases").resolve(lite.graph(1).layout))
    assert set(added) < trained
    assert {name.rpartition(".")[2] for name in trained - set(added)} == {"bias"}


def test_lite_branches_train_in_int8() -> None:
    net = mobilenet_v2(32, norm="none", lite=True)
    plan = "named:*.lite.*+biases+last:1"
    assert build(net, loss="cross_entropy", plan=plan, dtype="int8", minimise="time").trained
