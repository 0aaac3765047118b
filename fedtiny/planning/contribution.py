"""What the training of each coordinate would add to learning.

A step of gradient descent on a set S of coordinates lowers the loss by about ``lr`` times the sum
of the squared gradients over S. Their means over samples estimate the diagonal of the Fisher
information (Theis et al. 2018); as contributions of channels they are those of TinyTrain (Kwon et
al. 2024), without its division by what a channel costs: the search weighs that itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.compile import Compilable, build
from fedtiny.errors import DataError
from fedtiny.values import Phase, Sgd

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer, Float64

WARM_PASSES, WARM_LR, WARM_CLIP = 2, 0.03, 5.0
"""How a head is warmed: one sample at a time."""
Contributions = Mapping[str, "Float64"]
"""Of each parameter, float64 in its shape."""


def fisher_information(
    net: Compilable, vector: Buffer, x: Any, y: Any, loss: str, *, quantisable: bool = False
) -> Contributions:
    """The mean squared gradient of every coordinate, over single samples.

    Args:
        net: The model.
        vector: Its values: float32, the averaged vector.
        x: Samples, as a Learner takes them.
        y: Their labels.
        loss: That of `compile`.
        quantisable: Whether the vector has ranges.

    Raises DataError without samples.
    """
    # Nothing is saved by making it twice: this runs where the plan is made, not on the device.
    program = build(
        net, loss=loss, sgd=Sgd(gradient=True), minimise="time", quantisable=quantisable
    ).program
    learner = Learner(program)
    samples = learner.samples(x, y)
    if not samples.count:
        raise DataError("a plan is chosen by the gradients of samples, and there are none")
    learner.load(vector)
    still = replace(program.hyper(Phase(0.0, 1)), keep_statistics=True)
    squares = np.zeros(program.layout.size)
    for features, labels, _ in learner.batches(samples):
        learner.executor.step(features, labels, still)
        gradient = np.frombuffer(learner.executor.store_gradient(), np.float32)
        squares += gradient.astype(np.float64) ** 2
    squares /= samples.count
    return {
        p.name: squares[p.offset : p.offset + p.size].reshape(p.shape)
        for p in program.layout.parameters
    }


def warmed(
    net: Compilable, vector: Buffer, x: Any, y: Any, loss: str, *, quantisable: bool = False
) -> Buffer:
    """The model with a head that has learned a little of the samples: what comes back through one
    that knows nothing of them says nothing about the layers before it.

    The arguments are those of `fisher_information`.
    """
    clipped = Sgd(clip=WARM_CLIP)
    program = build(net, loss=loss, plan="last:1", sgd=clipped, quantisable=quantisable).program
    learner = Learner(program)
    learner.load(vector)
    steps = WARM_PASSES * learner.samples(x, y).count
    if steps:
        learner.train(x, y, WARM_LR, steps, shuffle=True, key=Key())
    return learner.vector()
