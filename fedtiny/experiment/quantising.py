"""Fleets with int8 devices: the ranges of activations, in the Layout and in the first model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.engine.calibration import calibrated
from fedtiny.engine.quantize import FLOAT32, with_ranges
from fedtiny.rounds import calibration

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples
    from fedtiny.engine.compile import Compilable
    from fedtiny.engine.ir import Graph
    from fedtiny.experiment import Experiment
    from fedtiny.layout import Layout
    from fedtiny.tensors import Float32


@dataclass(frozen=True, eq=False)
class Ranged:
    """The net with the ranges of its activations in the Layout, as int8 Programs have it."""

    net: Compilable

    @classmethod
    def of(cls, net: Compilable) -> Ranged:
        """CompileError, naming the op, for a net that int8 does not have."""
        made = cls(net)
        made.graph(1)
        return made

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.net.sample_shape

    @property
    def axes(self) -> tuple[int, ...]:
        """The order in which a device stores a sample's axes."""
        return tuple(getattr(self.net, "axes", ()))

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""
        return with_ranges(self.net.graph(batch))


def check_observers(experiment: Experiment, public: bool, model: Float32, layout: Layout) -> None:
    """ExperimentError where nobody can tell the ranges of the activations."""
    if public or FLOAT32 in experiment.dtypes or not calibration.is_due(layout, model):
        return
    raise experiment.origin.error(
        ("device", "dtype"),
        "all profiles are int8, and nobody can observe the ranges of the activations: set "
        "data.public to how many samples the coordinator has, such as 100, give one profile "
        "dtype = 'float32', or name a calibrated model in model.start",
    )


def with_public_ranges(net: Compilable, loss: str, model: Float32, samples: Samples) -> Float32:
    """The model, with ranges that its activations have on these samples where one lacks."""
    layout = net.graph(1).layout
    if not calibration.is_due(layout, model):
        return model
    return np.asarray(calibrated(net, model, samples[0], loss=loss), np.float32)


def with_some_ranges(layout: Layout, model: Float32) -> Float32:
    """A model of which no round is asked to observe the ranges."""
    made = model.copy()
    for parameter in layout.activations:
        made[parameter.offset + 1] = 1.0
    return made
