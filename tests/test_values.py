"""The words of fedtiny: what an instruction costs."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny.values import CALIBRATE, EVALUATE, SCORE, Footprint, Instruction, Phase

# 1,000 a step of four samples, 300 a forward pass of four.
FOOTPRINT = Footprint("p", "l", 1, 1, macs_per_step=1000, macs_per_forward=300, batch=4)
COUNTS = {"support": np.array([8, 9]), "query": np.array([4, 0])}
ONE_PASS, THREE_STEPS = Phase(0.1), Phase(0.1, 3)


@pytest.mark.parametrize(
    ("instruction", "macs"),
    [
        (Instruction(phases=(ONE_PASS,)), [2 * 1000, 3 * 1000]),
        (Instruction(phases=(ONE_PASS, THREE_STEPS)), [5 * 1000, 6 * 1000]),
        (Instruction(EVALUATE), [300, 0]),
        (Instruction(EVALUATE, (THREE_STEPS,)), [3 * 1000 + 2 * 300, 3 * 1000]),
        (Instruction(CALIBRATE), [2 * 300, 3 * 300]),
        (Instruction(SCORE, candidates=(1, 2)), [2 * 2 * 300, 2 * 3 * 300]),
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
