"""Laws of the search."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from fedtiny.engine.compile import build, compile
from fedtiny.errors import BudgetError
from fedtiny.planning.choice import plan_gain, written
from fedtiny.planning.search import Found, Limits, Result, search
from tests.planning.nets import LOSS, separable, squares

FLASH = 1 << 20
BUDGETS = (5700, 6000, 6500, 7200, 8000)
"""From little more than the head (5,584 B) to all (7,732 B)."""


@lru_cache
def found(ram: int, seed: int = 0) -> Result:
    return search(separable(), squares(), Limits(ram, FLASH), loss=LOSS, seed=seed)


@pytest.mark.parametrize("ram", BUDGETS)
def test_the_plan_fits_and_gives_no_less_than_any_written_one_that_does(ram: int) -> None:
    net, best = separable(), found(ram).best
    assert compile(net, loss=LOSS, ram=ram, plan=best.plan).report()["ram_bytes"] == best.ram_bytes
    layout = net.graph(1).layout
    for plan in (plan for row in written(layout) for plan in row):
        if build(net, loss=LOSS, plan=plan).program.report()["ram_bytes"] <= ram:
            assert best.gain >= plan_gain(layout, squares(), plan) * (1 - 1e-9)


def test_more_ram_never_gives_less_and_with_enough_of_it_everything_trains() -> None:
    gains = [found(ram).best.gain for ram in BUDGETS]
    assert gains == sorted(gains)
    net = separable()
    everything = build(net, loss=LOSS).program.report()
    best = found(1 << 20).best
    assert best.sent_bytes == 4 * everything["trained_parameters"] == 4 * net.graph(1).layout.size


def test_it_finds_the_same_plan_again() -> None:
    assert found(6500) == search(separable(), squares(), Limits(6500, FLASH), loss=LOSS)


def test_its_figures_are_those_of_the_program() -> None:
    best = found(6500).best
    program = build(separable(), loss=LOSS, plan=best.plan).program
    report = program.report()
    assert (best.flash_bytes, best.macs_per_step) == (
        report["flash_bytes"],
        report["macs_per_step"],
    )
    assert best.sent_bytes == 4 * report["trained_parameters"]
    assert best.biases + best.weights == len(program.trained_names)


def test_nothing_on_the_frontier_gives_less_for_more() -> None:
    frontier = found(7200).frontier
    assert len(frontier) > 2
    assert not any(a.dominates(b) for a in frontier for b in frontier)
    assert all(f.ram_bytes <= 7200 for f in frontier)


def test_a_limit_of_multiply_adds_holds() -> None:
    net, free = separable(), found(7200).best
    most = free.macs_per_step - 1
    held = search(net, squares(), Limits(7200, FLASH, most), loss=LOSS).best
    assert held.macs_per_step <= most
    assert held.gain < free.gain


def test_int8_finds_a_richer_plan_in_the_same_bytes() -> None:
    ranged = build(separable(), loss=LOSS, quantisable=True).program.layout
    contributions = {p.name: np.zeros(p.shape) for p in ranged.parameters} | dict(squares())
    limits = Limits(5700, FLASH)
    int8 = search(separable(), contributions, limits, loss=LOSS, dtype="int8").best
    assert int8.ram_bytes <= 5700
    assert int8.gain > found(5700).best.gain


def test_a_device_on_which_not_even_the_head_fits_is_told_the_bytes() -> None:
    with pytest.raises(BudgetError, match=r"needs .* B of 2,000 B RAM"):
        found(2000)
    with pytest.raises(BudgetError, match=r"head alone takes .* multiply-adds of 100"):
        search(separable(), squares(), Limits(FLASH, FLASH, 100), loss=LOSS)


def test_one_plan_dominates_another_that_takes_more_and_gives_no_more() -> None:
    def plan(gain: float, ram: int, macs: int) -> Found:
        return Found("last:1", gain, ram, 1, macs, 1, 1, 1, 0)

    assert plan(2, 10, 10).dominates(plan(1, 10, 10))
    assert plan(2, 9, 10).dominates(plan(2, 10, 10))
    assert not plan(2, 11, 9).dominates(plan(2, 10, 10))
    assert not plan(2, 10, 10).dominates(plan(2, 10, 10))
