"""What the strategies share that compute the last layer from sums of features, and train nothing.

A round of them has the whole fleet, or a part of it, add up what its nets make of its samples. The
last layer then follows from all that was summed since the start: whatever the number of devices
and however the samples are dealt out, it is the one that a server with all samples would compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedtiny.errors import StrategyError
from fedtiny.strategies.base import Fitted, Observed, Round, last_layers
from fedtiny.values import CLASS_SUMS, SUMS, FeatureSums, Instruction

if TYPE_CHECKING:
    from typing import Self

    from fedtiny.layout import Layout, Parameter
    from fedtiny.strategies.base import FleetFacts, State
    from fedtiny.tensors import Float32, Float64


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Fitted):
    """One round with a cohort of all devices that train is exact.

    In further rounds the sums of other devices are added; a device that is asked again counts
    again.
    """

    form: ClassVar[str] = CLASS_SUMS

    def solved(self, sums: Float64, features: int, classes: int) -> tuple[Float64, Float64]:
        """The weights [features, classes] and the bias of the last layer."""
        raise NotImplementedError

    def fitted(self, fleet: FleetFacts) -> Self:
        """The same for this fleet; its model must end with a linear layer."""
        last = [*map(fleet.layout.__getitem__, last_layers(fleet.layout, 1))]
        if [len(p.shape) for p in last] != [2, 1]:
            raise StrategyError(
                f"{type(self).__name__}: the last layer of the model must be linear, with a bias; "
                f"it ends with {', '.join(p.name for p in last) or 'nothing'}"
            )
        return super().fitted(fleet)

    @property
    def head(self) -> tuple[Parameter, Parameter]:
        """The weight and the bias of the last layer."""
        weight, bias = map(self.facts.layout.__getitem__, last_layers(self.facts.layout, 1))
        return weight, bias

    @property
    def sums(self) -> FeatureSums:
        """What devices add up."""
        return FeatureSums(self.head[0].name, self.form)

    def start(self, layout: Layout, model: Float32) -> State:
        """Nothing summed."""
        return {"sums": np.zeros(self.sums.floats(layout))}

    def ask(self, round: Round, state: State) -> Instruction:
        """Sums over the support."""
        return Instruction(SUMS, sums=self.sums)

    def observe(
        self, round: Round, model: Float32, seen: Observed, state: State
    ) -> tuple[Float32, State]:
        """The model with the last layer that follows from all sums."""
        if seen.total is None or not seen.total.count:
            return model, state
        sums = np.asarray(state["sums"]) + seen.total.weighted_sums()
        return self.completed(model, sums), {"sums": sums}

    def completed(self, model: Float32, sums: Float64) -> Float32:
        """The model with the last layer that follows from these sums."""
        new = model.copy()
        for p, values in zip(self.head, self.solved(sums, *self.head[0].shape), strict=True):
            new[p.offset : p.offset + p.size] = values.ravel()
        return new
