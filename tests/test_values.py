"""The words of fedtiny: what an instruction costs, and which mask of it a device gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.masks import Mask
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    SCORE,
    VALUES,
    VOTES,
    Footprint,
    Instruction,
    Phase,
    Update,
)

# 1,000 a step of four samples, 300 a forward pass of four; 2,000 a step that grows.
FOOTPRINT = Footprint("p", "l", 1, 1, 1000, 300, batch=4, macs_per_growth=2000)
COUNTS = {"support": np.array([8, 9]), "query": np.array([4, 0])}
ONE_PASS, ONE_STEP, THREE_STEPS = Phase(0.1), Phase(0.1, 1), Phase(0.1, 3)


def growing(returns: str, *phases: Phase) -> Instruction:
    return Instruction(phases=phases, returns=returns, grow=(("w", 5),))


@pytest.mark.parametrize(
    ("instruction", "macs"),
    [
        (Instruction(phases=(ONE_PASS,)), [2 * 1000, 3 * 1000]),
        (Instruction(phases=(ONE_PASS, THREE_STEPS)), [5 * 1000, 6 * 1000]),
        (Instruction(phases=(ONE_STEP,), own=(ONE_PASS,)), [3 * 1000, 4 * 1000]),
        (Instruction(phases=(Phase(0.1, ahead=0.1),)), [2 * 1000, 2 * 2 * 1000]),
        (Instruction(EVALUATE), [300, 0]),
        (Instruction(EVALUATE, (THREE_STEPS,)), [3 * 1000 + 2 * 300, 3 * 1000]),
        (Instruction(CALIBRATE), [2 * 300, 3 * 300]),
        (Instruction(CALIBRATE, candidates=(1, 2, 3)), [3 * 2 * 300, 3 * 3 * 300]),
        (Instruction(SCORE, candidates=(1, 2)), [2 * 2 * 300, 2 * 3 * 300]),
        (growing(GRADIENT, ONE_STEP), [2000, 2000]),
        (growing(VOTES, ONE_PASS, ONE_STEP), [2 * 1000 + 2000, 3 * 1000 + 2000]),
        (growing(VALUES, THREE_STEPS, ONE_STEP), [4 * 1000 + 2000, 4 * 1000 + 2000]),
        (Instruction(SCORE, part="query", candidates=(1, 2)), [2 * 300, 0]),
    ],
)
def test_a_visit_costs_its_steps_and_the_batches_that_it_judges(
    instruction: Instruction, macs: list[int]
) -> None:
    np.testing.assert_array_equal(instruction.macs(COUNTS, FOOTPRINT), macs)
    for device, expected in enumerate(macs):
        counts = {part: int(column[device]) for part, column in COUNTS.items()}
        assert instruction.macs(counts, FOOTPRINT) == expected


# --- masks


DENSE = Instruction(phases=(ONE_PASS,))
PRUNED = replace(DENSE, masks=((0.03, b"few"), (0.1, b"many")))


def test_a_device_gets_the_mask_of_its_density_alone() -> None:
    assert PRUNED.of(0.1) == replace(DENSE, masks=((0.1, b"many"),))
    assert (PRUNED.of(0.03).mask, PRUNED.of(0.1).mask) == (b"few", b"many")
    assert PRUNED.of(1.0) == DENSE
    assert PRUNED.mask is None  # which one is for its Program to say
    assert DENSE.of(0.03) == DENSE.of(1.0) == DENSE


def test_a_density_without_a_mask_is_an_error_that_names_the_others() -> None:
    with pytest.raises(
        StrategyError, match=r"no mask of density 0.05; .* masks of 0.03, 0.1: give"
    ):
        PRUNED.of(0.05)


@pytest.mark.parametrize(
    ("asked", "gradient", "sends", "pools"),
    [
        (DENSE, False, False, False),
        (replace(DENSE, returns=GRADIENT), True, True, False),
        (growing(GRADIENT, ONE_STEP), False, True, False),  # its bucket holds it
        (growing(VOTES, ONE_STEP), False, True, False),
        (growing(VALUES, ONE_STEP), False, False, False),
        (Instruction(CALIBRATE), False, False, False),
        (Instruction(CALIBRATE, candidates=(1,)), False, False, True),
        (Instruction(SCORE, candidates=(1,)), False, False, False),
    ],
)
def test_an_instruction_says_what_comes_back(
    asked: Instruction, gradient: bool, sends: bool, pools: bool
) -> None:
    assert (asked.sgd.gradient, asked.sends_gradient, asked.pools) == (gradient, sends, pools)


def test_an_update_covers_what_its_ranges_and_its_mask_have_in_common() -> None:
    mask, same = (Mask(6, b"\5") for _ in range(2))
    update: dict[str, Any] = {"lease": 0, "device": 0, "round": 0, "version": 0, "samples": 1}
    assert Update(**update, ranges=((0, 6),)).coverage == (((0, 6),), None)
    one, two = (Update(**update, ranges=((1, 4),), mask=m) for m in (mask, same))
    assert {one.coverage: 1}[two.coverage] == 1
