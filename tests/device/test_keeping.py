"""What a device keeps from visit to visit, and what it does with it."""

from __future__ import annotations

from array import array
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.device import vectors
from fedtiny.device.learner import Learner
from fedtiny.device.vectors import combined
from fedtiny.device.visit import fitting
from fedtiny.transforms.table import parse
from fedtiny.values import (
    CONTROL,
    EVALUATE,
    GRADIENT,
    LOCAL_VALUES,
    OWN_MODEL,
    RESIDUAL,
    Instruction,
    Phase,
    Sgd,
)
from tests.harness.two_layers import HEAD, gradient, initial, layout, program, visit

SIZE = HEAD.stop
RULE = Sgd(correction=True, gradient=True)
C = np.linspace(-0.2, 0.3, SIZE).astype(np.float32)
CONTROLLED = Instruction(
    phases=(Phase(0.05, 3, corrected=True),), correction=C.tobytes(), control=True
)
OWN = Instruction(phases=(Phase(0.05, 3),), own=(Phase(0.1, 2, sgd=Sgd(prox=0.5)),))
AHEAD = Instruction(phases=(Phase(0.05, 3, shuffle=True, ahead=0.1),))
TRANSFORMED = replace(AHEAD, transforms=parse(["clip:1", "feedback", "topk:0.3", "int8"]))
EVERYTHING = replace(CONTROLLED, own=OWN.own, phases=(*AHEAD.phases, *CONTROLLED.phases))


def of(values: bytes) -> np.ndarray:
    return np.frombuffer(values, np.float32)


@pytest.mark.parametrize("asked", [CONTROLLED, OWN, AHEAD, TRANSFORMED, EVERYTHING])
@pytest.mark.parametrize("head", ["head", "local"])
def test_every_executor_gives_and_keeps_the_same_bits(asked: Instruction, head: str) -> None:
    seen = []
    for executor in ("native", "reference"):
        learner = Learner(program(RULE, head, batch=2), executor)
        first, kept = visit(asked, initial(), 0, {}, learner)
        second, kept = visit(asked, initial(), 0, kept, learner)
        seen.append((first, second, kept))
    assert seen[0] == seen[1]
    assert set(kept) >= ({LOCAL_VALUES} if head == "local" else set())


def test_the_correction_is_what_was_sent_less_the_devices_own() -> None:
    own = np.arange(SIZE, dtype=np.float32) / 10
    told, _ = visit(CONTROLLED, initial(), 1, {CONTROL: own.tobytes()})
    w = initial().astype(float)
    for _ in range(3):
        w -= 0.05 * (gradient(w, 1) + C - own)
    np.testing.assert_allclose(of(bytes(told.values)), w, rtol=1e-5, atol=1e-6)


def test_a_device_without_a_control_variate_begins_at_zero() -> None:
    nothing, kept = visit(CONTROLLED, initial(), 1, {})
    zeros, same = visit(CONTROLLED, initial(), 1, {CONTROL: bytes(4 * SIZE)})
    assert (nothing, kept) == (zeros, same)


def test_what_stays_on_the_device_has_no_control_variate() -> None:
    """The server's variate is 0 there: the device's own would only pull its head back."""
    learner = Learner(program(RULE, "local"))
    _, kept = visit(CONTROLLED, initial(), 1, {}, learner)
    assert not of(kept[CONTROL])[HEAD].any()
    assert of(kept[CONTROL])[: HEAD.start].all()


def test_the_own_model_does_not_change_what_is_sent() -> None:
    alone, _ = visit(replace(OWN, own=()), initial(), 0, {})
    beside, kept = visit(OWN, initial(), 0, {})
    assert beside == alone
    assert kept[OWN_MODEL] != bytes(beside.values)


def test_the_own_model_goes_on_where_it_was_and_stays_near_the_one_that_was_sent() -> None:
    v = np.linspace(1, -1, SIZE).astype(np.float32)
    _, kept = visit(OWN, initial(), 2, {OWN_MODEL: v.tobytes()})
    expected, w = v.astype(float), initial().astype(float)
    for _ in range(2):
        expected -= 0.1 * (gradient(expected, 2) + 0.5 * (expected - w))
    np.testing.assert_allclose(of(kept[OWN_MODEL]), expected, rtol=1e-5, atol=1e-6)


def test_an_evaluation_adapts_the_own_model() -> None:
    v = np.linspace(1, -1, SIZE).astype(np.float32)
    asked = Instruction(EVALUATE, phases=(Phase(0.05, 2),))
    judged, _ = visit(asked, initial(), 2, {OWN_MODEL: v.tobytes()})
    same, _ = visit(asked, v, 2, {})
    assert judged == same
    assert judged.measures != visit(asked, initial(), 2, {})[0].measures


def test_a_gradient_can_be_that_of_a_point_a_step_ahead() -> None:
    """Two ways to say first-order MAML with one step: a phase before, and a look ahead."""
    by_phase = Instruction(phases=(Phase(0.1, 1), Phase(0.05, 1)), returns=GRADIENT)
    g, _ = visit(by_phase, initial(), 1, {}, Learner(program(RULE)))
    w, _ = visit(replace(AHEAD, phases=(Phase(0.05, 1, ahead=0.1),)), initial(), 1, {})
    moved = initial() - np.float32(0.05) * of(bytes(g.values))
    np.testing.assert_allclose(of(bytes(w.values)), moved, rtol=1e-6, atol=1e-7)


def test_what_was_kept_of_another_model_is_left_out() -> None:
    made, whole = program(RULE, "local"), bytes(4 * SIZE)
    kept = {LOCAL_VALUES: bytes(8), CONTROL: whole, OWN_MODEL: whole, RESIDUAL: whole}
    assert fitting(kept, made) == kept
    assert fitting({**kept, CONTROL: whole[4:]}, made).keys() == kept.keys() - {CONTROL}
    assert fitting({LOCAL_VALUES: bytes(12), OWN_MODEL: b""}, made) == {}
    assert made.layout.size == layout().size


numbers = st.floats(-1e6, 1e6, width=32)
columns = st.integers(0, 12).flatmap(
    lambda n: st.lists(
        st.tuples(st.floats(-10, 10), st.lists(numbers, min_size=n, max_size=n)),
        min_size=1, max_size=4,
    )
)  # fmt: skip


@settings(max_examples=60)
@given(columns)
def test_sums_of_vectors_have_the_same_bits_without_numpy(
    terms: list[tuple[float, list[float]]],
) -> None:
    given = [(factor, array("f", values)) for factor, values in terms]
    expected = bytes(combined(*given))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vectors, "has_numpy", lambda: False)
        assert bytes(combined(*given)) == expected
