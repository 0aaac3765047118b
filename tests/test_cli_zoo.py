"""``fedtiny zoo``: what it lists, and what each net really needs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedtiny import BudgetError, compile
from fedtiny.cli import app
from fedtiny.engine.zoo import ZOO


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["zoo", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_ram_that_it_tells_is_the_least_in_which_the_net_trains() -> None:
    row = json.loads(told("digits_mlp", "--json"))["digits_mlp"]
    assert (row["parameters"], row["macs_per_forward"]) == (2410, 2400)
    for plan, nbytes in row["ram_bytes"].items():
        net = ZOO["digits_mlp"].make()
        assert compile(net, loss="cross_entropy", ram=nbytes, plan=plan)
        with pytest.raises(BudgetError):
            compile(net, loss="cross_entropy", ram=nbytes - 1, plan=plan)


def test_the_table_has_a_line_for_each_net_that_is_named() -> None:
    lines = told("sine_mlp", "har_conv").splitlines()
    assert [line.split()[0] for line in lines if "_" in line] == ["sine_mlp", "har_conv"]
    (sine,) = (line for line in lines if line.startswith("sine_mlp"))
    assert "1,153" in sine


def test_a_net_that_does_not_ship_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["zoo", "sine_mpl"])
    assert result.exit_code == 3
    assert "did you mean 'sine_mlp'" in result.output


def test_every_net_of_the_zoo_is_built() -> None:
    for entry in ZOO.values():
        graph = entry.make().graph(1)
        assert graph.layout.size > 0
