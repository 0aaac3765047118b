"""How devices adapt before they are judged, and what their counts and sums come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.experiment.schema import Evaluation
from fedtiny.values import EVALUATE, Instruction, Phase, Sgd

if TYPE_CHECKING:
    from fedtiny.tensors import Float64

NORMAL_95 = 1.959964


def instruction_of(asked: Evaluation) -> Instruction:
    """What a device that is judged is asked to do."""
    phase = Phase(asked.lr, asked.steps, shuffle=asked.shuffle, sgd=Sgd(clip=asked.clip))
    return Instruction(EVALUATE, phases=(phase,))


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over the query of each device, before and after adaptation; columns."""

    count: Float64
    loss_before: Float64
    loss_after: Float64
    correct_before: Float64
    correct_after: Float64


def summary(scores: Scores, labelled: bool) -> dict[str, Any]:
    """Devices without a query sample are left out; where one diverged, there is no mean."""
    judged = scores.count > 0
    row: dict[str, Any] = {"devices": int(judged.sum())}
    kinds = ("loss", "correct") if labelled else ("loss",)
    for kind in kinds:
        for when in ("before", "after"):
            each = getattr(scores, f"{kind}_{when}")[judged] / scores.count[judged]
            label = f"{'accuracy' if kind == 'correct' else 'loss'}_{when}"
            row[label], row[f"{label}_ci"] = interval(each)
    diverged = ~np.isfinite(scores.loss_before[judged] + scores.loss_after[judged])
    return row | ({"diverged": int(diverged.sum())} if diverged.any() else {})


def interval(each: Float64) -> tuple[float | None, float | None]:
    """Mean, and half the width of its 95 % interval; None where a value is not finite."""
    if not each.size or not np.isfinite(each).all():
        return None, None
    spread = float(each.std(ddof=1)) if each.size > 1 else 0.0
    return float(each.mean()), NORMAL_95 * spread / each.size**0.5
