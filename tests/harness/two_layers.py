"""A fleet of real Learners on a net of two linear layers, and its gradients in plain NumPy.

Each device has one batch of support and one of query, so that a step is one of the whole gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.device.learner import Key, Learner, Samples
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.fold import Total
from fedtiny.layout import Layout
from fedtiny.strategies.base import FleetFacts, Round, Strategy
from fedtiny.values import QUERY, SUPPORT, Instruction, Kept, Sgd, Update

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float32, Float64

BATCH, INPUTS, HIDDEN = 4, 3, 2
BODY = slice(0, INPUTS * HIDDEN)
HEAD = slice(BODY.stop, BODY.stop + HIDDEN)
DEVICES = 3


def net(head: str = "head") -> Net:
    """``(x W) v``: W is "shared", v in the group ``head``."""
    made = Net(INPUTS)
    hidden = made.linear(made.input, HIDDEN, bias=False, name="body")
    made.group = head
    made.linear(hidden, 1, bias=False, name="head")
    return made


@cache
def program(sgd: Sgd, head: str = "head", batch: int = BATCH) -> Program:
    return compile(net(head), loss="mse", ram="64KiB", batch=batch, sgd=sgd)


def layout() -> Layout:
    return program(Sgd()).layout


def initial() -> Float32:
    return np.asarray(program(Sgd()).initial(1), np.float32)


def samples(device: int, part: str, count: int = BATCH) -> tuple[Float32, Float32]:
    draw = np.random.default_rng(2 * device + (part == QUERY))
    x = draw.normal(size=(count, INPUTS)).astype(np.float32)
    return x, (x @ np.arange(1, INPUTS + 1) * (device - 1)).astype(np.float32)[:, None]


def gradient(w: Float64, device: int, part: str = SUPPORT) -> Float64:
    """Of the mean squared error of a part."""
    x, y = (of.astype(float) for of in samples(device, part))
    W, v = w[BODY].reshape(INPUTS, HIDDEN), w[HEAD]
    error = 2.0 / len(x) * ((x @ W) @ v - y[:, 0])
    return np.concatenate([np.outer(x.T @ error, v).ravel(), (x @ W).T @ error])


def visit(
    asked: Instruction, model: Float32, device: int, kept: Kept, learner: Learner | None = None
) -> tuple[Update, Kept]:
    """What a device sends back and keeps."""
    made = learner or Learner(program(asked.sgd))

    def samples_of(part: str) -> Samples:
        return made.samples(*samples(device, part))

    done = made.visit(asked, model, samples_of, Key(7, 0, device), kept)
    ids = device, device, 0, 0, done.samples
    return Update(*ids, done.values, done.ranges, done.measures), {**kept, **done.kept}


Cohort = Callable[[int], Sequence[int]]


def run(
    strategy: Strategy, rounds: int, cohort: Cohort = lambda t: range(DEVICES)
) -> tuple[list[Float32], State, dict[int, Kept]]:
    """The models of so many rounds of these cohorts; the last state; what devices have kept."""
    strategy = strategy.fitted(FleetFacts(layout=layout(), devices=DEVICES, training=DEVICES))
    model, kept = initial(), dict[int, Kept]()
    state, models = strategy.start(layout(), model), []
    for t in range(rounds):
        asked = strategy.ask(Round(t, rounds), state)
        total = Total.zero(model.size, strategy.fold_rule)
        for device in cohort(t):
            update, kept[device] = visit(asked, model, device, kept.get(device, {}))
            base = None if asked.sends_gradient else model
            weight = strategy.weight(np.array([float(update.samples)]))
            total = total.add(update, base, float(weight[0]))
        model, state = strategy.finish(Round(t, rounds), model, total, state)
        models.append(model)
    return models, state, kept
