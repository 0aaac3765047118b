"""The gate before a model is published: the coordinator judges it on samples that no device owns.

A round whose model has a loss above ``run.gate`` times that of the model before changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedtiny.device.learner import Learner
from fedtiny.engine.compile import build
from fedtiny.layout import FRESH, LOCAL

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples
    from fedtiny.engine.compile import Compilable
    from fedtiny.experiment import Experiment
    from fedtiny.layout import Layout
    from fedtiny.tensors import Float32

BATCH = 16
"""Samples that are judged at a time; part of the result, as sums are rounded."""


def check_gate(experiment: Experiment, layout: Layout) -> None:
    """ExperimentError where the model of the coordinator is not what devices predict with."""
    if not experiment.run.gate:
        return
    own = [p.name for p in layout.parameters if p.group in (LOCAL, FRESH)]
    asked = f"run.gate = {experiment.run.gate:g} judges the model of the coordinator"
    if own:
        raise experiment.origin.error(
            ("run", "gate"),
            f"{asked}, which never sees {', '.join(own)} of the devices; take the gate out, or "
            "share them",
        )
    if experiment.densities[0] < 1:
        raise experiment.origin.error(
            ("run", "gate"),
            f"{asked} with all of its weights, and devices have {experiment.densities[0]:.0%} of "
            "them; take the gate out, or set device.density = 1",
        )


@dataclass(eq=False)
class Gate:
    """Judges one model after the other; what it remembers saves time and changes no answer."""

    learner: Learner
    samples: Samples
    factor: float
    _judged: tuple[Float32 | None, float] = field(default=(None, math.nan), init=False)

    @classmethod
    def of(cls, net: Compilable, loss: str, samples: Samples, factor: float) -> Gate:
        """The gate of a net, dense, on these samples."""
        return cls(Learner(build(net, loss=loss, batch=BATCH).program), samples, factor)

    def __call__(self, before: Float32, after: Float32) -> Mapping[str, float | None] | None:
        """The mean loss of both if ``after`` is held back, None where it is not finite; None if it
        may be published."""
        old, new = self._loss(before), self._loss(after)
        if math.isfinite(new) and not new > self.factor * old:
            return None
        self._judged = before, old
        return {"before": _number(old), "after": _number(new)}

    def _loss(self, model: Float32) -> float:
        if model is not self._judged[0]:
            self.learner.load(model)
            found = self.learner.evaluate(*self.samples)
            self._judged = model, found["loss_sum"] / found["count"]
        return self._judged[1]


def _number(loss: float) -> float | None:
    """None for what JSON has no number for."""
    return loss if math.isfinite(loss) else None
