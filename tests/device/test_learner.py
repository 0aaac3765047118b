"""The Learner: what people call to train, predict, evaluate, and what a visit does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import rng
from fedtiny.device.inputs import Input
from fedtiny.device.learner import Key, Learner, Samples
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError
from fedtiny.tensors import floats
from fedtiny.values import GRADIENT, LOCAL_VALUES, QUERY, SUPPORT, Instruction, Phase, Sgd

EXECUTORS = ("native", "reference")


@pytest.fixture(scope="module")
def program() -> Program:
    rule = Sgd(momentum=0.9, prox=0.1)
    return compile(
        mlp((3, 8, 4), head="local"), loss="cross_entropy", ram="64KiB", batch=5, sgd=rule
    )


def data(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, 3)).astype(np.float32), draw.integers(0, 4, count)


def parts(learner: Learner) -> dict[str, Samples]:
    return {SUPPORT: learner.samples(*data(13)), QUERY: learner.samples(*data(7, 1))}


@pytest.fixture(params=EXECUTORS)
def learner(program: Program, request: pytest.FixtureRequest) -> Learner:
    made = Learner(program, executor=request.param)
    made.load(program.initial(1))
    return made


def test_training_lowers_the_loss_and_predictions_follow(learner: Learner) -> None:
    x, y = data(40)
    y = (x[:, 0] > 0).astype(np.int64)
    first = learner.train(x, y, lr=0.2, sgd=Sgd())
    for _ in range(20):
        last = learner.train(x, y, lr=0.2, sgd=Sgd())
    assert last < 0.3 * first
    assert (np.asarray(learner.predict(x)).argmax(1) == y).mean() > 0.9


def test_one_pass_equals_steps_by_hand_with_the_order_wrapped_around(learner: Learner) -> None:
    x, y = data(13)
    start = learner.vector()
    rows = [i % 13 for i in range(15)]
    losses = [learner.step(x[r], y[r], 0.1) for r in (rows[0:5], rows[5:10], rows[10:15])]
    expected = learner.vector()
    learner.load(start)
    assert learner.train(x, y, 0.1) == np.mean(losses)
    np.testing.assert_array_equal(learner.vector(), expected)


def test_shuffled_epochs_take_every_sample_once_in_the_drawn_order(learner: Learner) -> None:
    x, y = data(10)
    key = Key(run=7, round=3, device=5)
    order = [rng.shuffle(i, 10, rng.epoch_key(7, 3, 5, e)) for e in range(2) for i in range(10)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) != order[:10]
    start = learner.vector()
    learner.train(x, y, 0.1, steps=4, shuffle=True, key=key)
    shuffled = learner.vector()
    learner.load(start)
    learner.train(x[order], y[order], 0.1, steps=4)
    np.testing.assert_array_equal(learner.vector(), shuffled)


@given(st.integers(1, 23))
def test_evaluation_of_any_count_is_the_sum_over_its_samples(count: int) -> None:
    program = compile(mlp((3, 8, 4)), loss="cross_entropy", ram="64KiB", batch=5)
    learner = Learner(program)
    learner.load(program.initial(1))
    x, y = data(count)
    found = learner.evaluate(x, y)
    logits = np.asarray(learner.predict(x), np.float64)
    rows = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), y]
    assert found["count"] == count
    assert found["loss_sum"] == pytest.approx(rows.sum(), rel=1e-5)
    assert found["correct"] == (logits.argmax(1) == y).sum()


def test_a_training_visit_returns_the_shared_values_and_keeps_the_local_ones(
    learner: Learner, program: Program
) -> None:
    instruction = Instruction(phases=(Phase(0.1, sgd=Sgd(momentum=0.9)),))
    base = learner.vector()
    outcome = learner.visit(instruction, base, parts(learner).__getitem__, Key())
    after = np.asarray(learner.vector())
    (shared,) = outcome.ranges
    assert shared == (0, 3 * 8 + 8)
    np.testing.assert_array_equal(np.frombuffer(outcome.values, np.float32), after[slice(*shared)])
    np.testing.assert_array_equal(
        np.frombuffer(outcome.kept[LOCAL_VALUES], np.float32), after[shared[1] :]
    )
    assert outcome.measures["steps"] == 3

    again = learner.visit(Instruction(kind="evaluate"), base, parts(learner).__getitem__, Key(),
                          kept=outcome.kept)  # fmt: skip
    mixed = np.concatenate([np.asarray(base)[: shared[1]], after[shared[1] :]])
    np.testing.assert_array_equal(learner.vector(), mixed)
    assert again.measures["loss_sum_before"] == again.measures["loss_sum_after"]


def test_a_gradient_visit_returns_the_gradient_at_the_adapted_point(
    learner: Learner, program: Program
) -> None:
    adapt, probe = Phase(0.1), Phase(0.1, 1, part=QUERY)
    instruction = Instruction(phases=(adapt, probe), returns=GRADIENT)
    outcome = learner.visit(instruction, learner.vector(), parts(learner).__getitem__, Key())
    adapted = np.asarray(learner.vector(), np.float64)
    x, y = data(7, 1)
    found = np.frombuffer(outcome.values, np.float32)
    h = 1e-3
    for i in (0, 11, 30):
        losses = []
        for sign in (1, -1):
            moved = adapted.copy()
            moved[i] += sign * h
            learner.load(moved)
            losses.append(learner.evaluate(x[:5], y[:5])["loss_sum"] / 5)
        assert found[i] == pytest.approx((losses[0] - losses[1]) / (2 * h), abs=2e-3)


def test_an_evaluation_measures_before_and_after_adaptation(learner: Learner) -> None:
    instruction = Instruction(kind="evaluate", phases=(Phase(0.3, 20),))
    same = {SUPPORT: learner.samples(*data(7, 1)), QUERY: learner.samples(*data(7, 1))}
    measures = learner.visit(instruction, learner.vector(), same.__getitem__, Key()).measures
    assert measures["count"] == 7
    assert measures["loss_sum_after"] < 0.7 * measures["loss_sum_before"]


def test_calibration_gives_the_moments_of_every_named_tensor(
    learner: Learner, program: Program
) -> None:
    outcome = learner.visit(
        Instruction(kind="calibrate"), learner.vector(), parts(learner).__getitem__, Key()
    )
    state = program.layout.unflatten(np.asarray(learner.vector()))
    hidden = data(13)[0] @ state["linear1.weight"] + state["linear1.bias"]
    found = {k: v for k, v in outcome.measures.items() if k.startswith("linear1.")}
    expected = {
        "linear1.count": hidden.size, "linear1.sum": hidden.sum(),
        "linear1.sum_squares": (hidden**2).sum(), "linear1.min": hidden.min(),
        "linear1.max": hidden.max(),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-4)
    assert {k.split(".")[0] for k in outcome.measures} == set(program.forward_names)


def test_scoring_tells_the_loss_of_each_candidate(learner: Learner, program: Program) -> None:
    vector = np.asarray(program.initial(9)).tobytes()
    instruction = Instruction(kind="score", candidates=(9, vector, 10), part=QUERY)
    measures = learner.visit(
        instruction, learner.vector(), parts(learner).__getitem__, Key()
    ).measures
    assert measures["count"] == 7
    assert measures["loss_sum.0"] == measures["loss_sum.1"] != measures["loss_sum.2"]


def test_both_executors_give_the_same_outcome_for_every_kind(program: Program) -> None:
    native, reference = (Learner(program, executor=name) for name in EXECUTORS)
    instructions = [
        Instruction(phases=(Phase(0.1, 7, shuffle=True, sgd=program.sgd),)),
        Instruction(phases=(Phase(0.1), Phase(0.0, 1)), returns=GRADIENT),
        Instruction(kind="evaluate", phases=(Phase(0.1),)),
        Instruction(kind="calibrate"),
        Instruction(kind="score", candidates=(1, 2)),
    ]
    for instruction in instructions:
        outcomes = [
            learner.visit(instruction, program.initial(1), parts(learner).__getitem__, Key(3, 2, 1))
            for learner in (native, reference)
        ]
        assert dataclasses.asdict(outcomes[0]) == dataclasses.asdict(outcomes[1])


def test_plain_lists_are_samples_too(program: Program) -> None:
    x, y = data(5)
    a, b = Learner(program), Learner(program)
    for learner in (a, b):
        learner.load(program.initial(1))
    a.step(x.ravel().tolist(), y.tolist(), 0.1)
    b.step(x.astype(np.float64), y.astype(np.uint8), 0.1)
    np.testing.assert_array_equal(a.vector(), b.vector())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(8), [0, 1], "x: a sample has 3 values; 8 values are no whole number"),
        (np.zeros((2, 4)), [0, 1], r"x has the shape \(2, 4\), a sample of it \(3,\)"),
        (np.zeros((3, 2)), [0, 1], r"x has the shape \(3, 2\), a sample of it \(3,\); give \[n, 3"),
        (np.zeros((3, 2, 3)), [0, 1], r"x has the shape \(3, 2, 3\)"),
        ([[0.0] * 3] * 2, [0, 1], "x: the list cannot be read as float32: .*flat rows of numbers"),
        (["a", "b", "c"], [0], "x: the list cannot be read as float32"),
        (np.array(["a", "b", "c"]), [0], "x: the ndarray cannot be read as float32"),
        ([0.0, np.nan, np.inf], [0], "x: 1 of 3 values are NaN and 1 are infinite; leave"),
        (np.zeros((2, 3)), [0.0, 1.0], "y: the list cannot be read as int32: .*astype"),
        (np.zeros((2, 3)), np.zeros(2), "y: the ndarray .* int32: .*one integer from 0 to 3"),
        (np.zeros((2, 3)), np.eye(4, dtype=int)[:2], r"y has the shape \(2, 4\).*argmax\(1\)"),
        (np.zeros((2, 3)), [[0], [1]], "y: the list cannot be read as int32"),
        (np.zeros((2, 3)), [0, 2**31], "y: the list cannot be read as int32"),
        (np.zeros((2, 3)), np.array([0, 2**31]), "y: the ndarray cannot be read as int32"),
        (np.zeros((2, 3)), [0], "2 samples need 2 label values; got 1"),
        (np.zeros((0, 3)), [], "there are no samples to train on"),
        (np.zeros((5, 3)), [0, 1, 2, 3, 4], "label 4"),
    ],
)
def test_bad_samples_are_refused(
    learner: Learner, x: np.ndarray, y: list[int], message: str
) -> None:
    before = bytes(learner.vector())
    with pytest.raises(DataError, match=message):
        learner.train(x, y, 0.1)
    assert bytes(learner.vector()) == before


def test_samples_come_flat_in_rows_in_their_shape_or_as_one(program: Program) -> None:
    learner = Learner(program)
    x, y = data(2)
    flat = bytes(learner.samples(x, y).x)
    for same in (x.ravel(), x, x.ravel().tolist(), x.astype(np.float64), np.asfortranarray(x)):
        assert bytes(learner.samples(same, y[:, None]).x) == flat
    assert learner.samples(x[0], y[0]).count == learner.samples(x[:1], y[:1]).count == 1

    images = Input("x", (2, 3, 1), floats, "")
    pixels = np.arange(12, dtype=np.float32)
    for shape in ((12,), (2, 6), (2, 2, 3, 1)):
        assert images.take(pixels.reshape(shape))[1] == 2
    assert images.take(pixels[:6].reshape(2, 3, 1))[1] == 1
    with pytest.raises(DataError, match=r"\(2, 1, 2, 3\)"):
        images.take(pixels.reshape(2, 1, 2, 3))


def test_values_to_learn_must_be_finite_and_have_their_shape() -> None:
    learner = Learner(compile(mlp((3, 8, 2)), loss="mse", ram="64KiB"))
    x, _ = data(4)
    with pytest.raises(DataError, match="y: 3 of 8 values are NaN and 0 are infinite"):
        learner.train(x, [0.0, np.nan] * 3 + [0.0] * 2, 0.1)
    with pytest.raises(DataError, match=r"y has the shape \(2, 4\), a sample of it \(2,\)"):
        learner.train(x, np.zeros((2, 4)), 0.1)


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf])
def test_a_learning_rate_is_finite_and_not_negative(learner: Learner, lr: float) -> None:
    for call in (learner.train, learner.step):
        with pytest.raises(DataError, match=rf"lr = {lr} must be a finite number >= 0"):
            call(*data(5), lr)
    with pytest.raises(DataError, match="steps = -1 must be >= 0; 0 is one pass"):
        learner.train(*data(5), 0.1, steps=-1)


def test_a_step_takes_exactly_one_batch(learner: Learner) -> None:
    with pytest.raises(DataError, match="a step takes 5 samples, got 4"):
        learner.step(*data(4), 0.1)
    with pytest.raises(DataError, match="no executor 'gpu'"):
        Learner(learner.program, executor="gpu")
