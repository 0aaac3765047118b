"""A device meets a stream: what it predicts, where it takes a step, and what it is left with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedtiny import Learner, compile
from fedtiny.device.gating import Gate
from fedtiny.device.learner import Key
from fedtiny.device.streaming import FIRST, NEW, STREAM, Met, Streaming
from fedtiny.engine.zoo import mlp
from fedtiny.tensors import floats
from fedtiny.values import EVALUATE, Instruction, Phase, Sgd

rng = np.random.default_rng(8)
CLASSES = 3
PROGRAM = compile(mlp((6, 8, CLASSES)), loss="cross_entropy", ram="64KiB", sgd=Sgd(clip=1.0))
START = np.asarray(PROGRAM.initial(4))
CENTRES = rng.normal(size=(CLASSES, 6)).astype(np.float32)
ASKED = Instruction(EVALUATE, phases=(Phase(0.1, 1, sgd=Sgd(clip=1.0)),))


def samples(count: int, sign: float = 1.0) -> tuple[Any, Any]:
    y = rng.integers(0, CLASSES, count).astype(np.int32)
    return (sign * CENTRES[y] + 0.3 * rng.normal(size=(count, 6))).astype(np.float32), y


SETS = {STREAM: samples(120, -1.0), FIRST: samples(30), NEW: samples(40, -1.0)}


def met(gate: Gate, executor: str = "") -> tuple[Met, Any]:
    learner = Learner(PROGRAM, executor)
    sets = {name: learner.samples(*pair) for name, pair in SETS.items()}
    visit = Streaming(learner, ASKED, floats(START), sets.__getitem__, Key(1, 0, 2), {})
    return visit.meet(gate), learner.vector()


def right(learner: Learner, name: str) -> list[float]:
    x, y = SETS[name]
    return [float(label) for label in np.argmax(learner.predict(x), axis=1) == y]


def test_a_device_that_never_adapts_stays_what_it_was() -> None:
    found, vector = met(Gate("never"))
    np.testing.assert_array_equal(vector, START)
    assert found.adapted == [False] * 120
    assert (found.first_before, found.new_before) == (found.first_after, found.new_after)
    learner = Learner(PROGRAM)
    learner.load(START)
    assert [found.scores, found.first_before] == [right(learner, STREAM), right(learner, FIRST)]


def test_each_sample_is_predicted_before_the_step_that_is_taken_on_it() -> None:
    learner, scores = Learner(PROGRAM), []
    learner.load(START)
    for x, y in zip(*SETS[STREAM], strict=True):
        scores.append(float(np.argmax(learner.predict(x)) == y))
        learner.step(x, [y], 0.1, Sgd(clip=1.0))
    found, vector = met(Gate("always"))
    assert found.scores == scores
    assert found.adapted == [True] * 120
    np.testing.assert_array_equal(vector, learner.vector())
    assert found.new_after == right(learner, NEW)
    assert np.mean(found.new_after) > np.mean(found.new_before) + 0.3


def test_a_gate_on_mistakes_takes_its_steps_on_those() -> None:
    found, _ = met(Gate("error", 0.0))
    assert found.adapted == [score == 0 for score in found.scores]
    assert 0 < sum(found.adapted) < 120


@pytest.mark.parametrize("gate", [Gate("always"), Gate("confidence", 0.4, 5)])
def test_both_executors_come_to_the_same(gate: Gate) -> None:
    (native, vector), (reference, twin) = (met(gate, name) for name in ("native", "reference"))
    assert native == reference
    np.testing.assert_array_equal(vector, twin)


def test_parameters_that_are_not_finite_are_told_and_end_nothing() -> None:
    learner = Learner(PROGRAM)
    sets = {name: learner.samples(*pair) for name, pair in SETS.items()}
    wild = Instruction(EVALUATE, phases=(Phase(1e30, 1),))
    visit = Streaming(learner, wild, floats(START), sets.__getitem__, Key(), {})
    found = visit.meet(Gate("always"))
    assert found.diverged
    assert sum(found.new_after) == 0


def test_of_a_regression_the_scores_are_losses() -> None:
    program = compile(mlp((2, 4, 1)), loss="mse", ram="64KiB")
    learner = Learner(program)
    x = rng.normal(size=(50, 2)).astype(np.float32)
    y = x[:, :1] - x[:, 1:]
    sets = dict.fromkeys((STREAM, FIRST, NEW), learner.samples(x, y))
    start = np.asarray(program.initial(1))
    asked = Instruction(EVALUATE, phases=(Phase(0.05, 1),))
    visit = Streaming(learner, asked, floats(start), sets.__getitem__, Key(), {})
    found = visit.meet(Gate("always"))
    learner.load(start)
    losses = ((np.asarray(learner.predict(x)) - y) ** 2).ravel()
    np.testing.assert_allclose(found.first_before, losses, rtol=1e-5, atol=1e-7)
    assert np.mean(found.first_after) < np.mean(found.first_before)
