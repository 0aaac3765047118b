"""What a device does in one visit, by the kind of its instruction. Needs no NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedtiny.device.measuring import Measuring
from fedtiny.device.training import Training
from fedtiny.device.visit import Outcome
from fedtiny.errors import DataError
from fedtiny.values import CALIBRATE, EVALUATE, SCORE, SUMS, TRAIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedtiny.device.learner import Learner
    from fedtiny.device.visit import Key, Samples
    from fedtiny.values import Instruction, Kept

_KINDS: Mapping[str, Callable[..., Outcome]] = {
    TRAIN: lambda *visit: Training(*visit).train(),
    EVALUATE: lambda *visit: Measuring(*visit).evaluate(),
    CALIBRATE: lambda *visit: Measuring(*visit).calibrate(),
    SCORE: lambda *visit: Measuring(*visit).score(),
    SUMS: lambda *visit: Measuring(*visit).sums(),
}


def carried_out(
    learner: Learner,
    asked: Instruction,
    base: memoryview[float],
    samples_of: Callable[[str], Samples],
    key: Key,
    kept: Kept,
) -> Outcome:
    """What the instruction comes to. Raises DataError where a device cannot do it."""
    if asked.kind not in _KINDS:
        raise DataError(f"no instruction kind {asked.kind!r}; there are {sorted(_KINDS)}")
    return _KINDS[asked.kind](learner, asked, base, samples_of, key, kept)
