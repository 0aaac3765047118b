"""Training in int8: what an update is, how it is rounded, and what the device holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtiny import draws, rng
from fedtiny.engine import reference
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.kernels.int8 import Int8
from fedtiny.engine.kernels.update import Rule, apply_update8
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.quantised import held, steps
from fedtiny.values import Sgd
from tests.engine.int8_nets import PLANS, int8_nets, ranged
from tests.engine.nets import Array, samples

FEW = settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
RULES = (
    Sgd(), Sgd(momentum=0.9), Sgd(weight_decay=0.1, clip=0.5), Sgd(prox=0.3, momentum=0.5),
)  # fmt: skip


def as_hyper(sgd: Sgd, lr: float = 0.05) -> Hyper:
    return Hyper(lr, sgd.momentum, sgd.weight_decay, sgd.clip, sgd.prox)


def pair(net: Net, plan: str = "all", sgd: Sgd = RULES[0], batch: int = 3) -> tuple[Program, ...]:
    """A net in int8, and in float32 with the same layout."""
    asked: dict[str, Any] = {"batch": batch, "plan": plan, "sgd": sgd, "ram": "8 MB"}
    return (
        compile(net, loss="cross_entropy", dtype="int8", **asked),
        compile(net, loss="cross_entropy", quantisable=True, **asked),
    )


# ---- quantisation-aware scaling --------------------------------------------------------------


@FEW
@given(int8_nets(), st.sampled_from(PLANS), st.sampled_from(RULES))
def test_without_rounding_int8_training_is_training_of_the_dequantised_net(
    net: Net, plan: str, sgd: Sgd
) -> None:
    """In float64 an int8 is a real number on its grid: all that is left of quantisation are the
    scales, and an update in steps, times the step, is the update of the float32 net."""
    int8, plain = pair(net, plan, sgd)
    assert int8.layout == plain.layout
    vector = ranged(int8)
    executors = [ReferenceExecutor(p.image, np.float64) for p in (int8, plain)]
    for executor in executors:
        executor.load(vector)
    for step in range(3):
        x, y = samples(plain, step)
        losses = [executor.step(x, y, as_hyper(sgd)) for executor in executors]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    one, other = (np.frombuffer(executor.store(), np.float64) for executor in executors)
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert (other != vector).any()


def test_an_update_is_the_gradient_of_the_int8_weights_over_the_square_of_their_steps() -> None:
    """The rule of quantisation-aware scaling, spelled out on one convolution: for W = s_w W8 the
    gradient of W8 is s_w G_W, and dW8 = lr G_W8 / s_w^2 makes s_w dW8 = lr G_W."""
    torch = pytest.importorskip("torch")
    net = Net((5, 5, 2))
    net.linear(net.conv(net.input, 4, 3, name="conv"), 3, name="head")
    program, _ = pair(net)
    executor = ReferenceExecutor(program.image, np.float64)
    executor.load(ranged(program))
    x, y = samples(program)
    weights = program.layout.unflatten(ranged(program))
    w8 = executor.memory.home(program.tables.params[0])
    before, s_w = w8.values.copy(), steps(weights["conv.weight"]).astype(np.float64)

    q = torch.tensor(before, requires_grad=True)
    kernel = (q * torch.tensor(s_w)).permute(3, 2, 0, 1)
    image = torch.tensor(x.astype(np.float64)).permute(0, 3, 1, 2)
    b, head, head_b = (
        torch.tensor(weights[name].astype(np.float64))
        for name in ("conv.bias", "head.weight", "head.bias")
    )
    seen = torch.nn.functional.conv2d(image, kernel, b).permute(0, 2, 3, 1)
    logits = seen.reshape(len(x), -1) @ head + head_b
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y.astype(np.int64)))
    loss.backward()

    assert executor.step(x, y, Hyper(0.1)) == pytest.approx(float(loss.detach()), rel=1e-9)
    np.testing.assert_allclose(before - w8.values, 0.1 * q.grad.numpy() / s_w**2, rtol=1e-9)


# ---- the rounding of an update ---------------------------------------------------------------


def updated(q: Array, t: Array, u: Array, step: float = 1.0) -> Array:
    """int8 weights that are to go t steps down."""
    w = Int8(np.array(q, np.int8).reshape(1, -1), np.full(len(q), step, np.float32), np.float32(0))
    apply_update8(np.array(t, np.float32) * np.float32(step), w, None, Rule(1.0), u)
    return np.asarray(w.values[0], int)


def uniform(count: int, step: int = 0) -> Array:
    purpose = rng.rounding_purpose(step)
    words = draws.words(5, 0, np.zeros(1, np.uint32), purpose, count)
    return np.asarray(draws.uniform(words[0]))


@pytest.mark.parametrize("step", [1.0, 2.0**-9])
def test_the_mean_of_a_rounded_update_is_the_update(step: float) -> None:
    count, ts = 20_000, np.linspace(-2, 2, 41, dtype=np.float32)
    for number, t in enumerate(ts):
        start = np.zeros(count, int)
        moved = start - updated(start, np.full(count, t), uniform(count, number), step)
        assert set(moved) <= {np.floor(t), np.ceil(t)}
        share = t - np.floor(t)
        # Of a binomial; 41 x 2 draws leave five standard deviations one time in 20,000.
        bound = 5 * np.sqrt(share * (1 - share) / count) + 2.0**-23
        assert abs(moved.mean() - t) <= bound


EVERY_U = np.array([0.0, 2.0**-24, 0.5, 1 - 2.0**-24], np.float32)


@pytest.mark.parametrize("t", [0.0, -0.0, np.nan])
@pytest.mark.parametrize("q", [-127, -1, 0, 127])
def test_no_gradient_and_one_that_is_no_number_move_nothing(q: int, t: float) -> None:
    assert updated(np.full(4, q), np.full(4, t), EVERY_U).tolist() == [q] * 4


@pytest.mark.parametrize(
    ("q", "t", "expected"),
    [
        (126, -5.0, 127), (127, -0.75, 127), (-126, 3.0, -127), (-127, 1.0, -127),
        (127, 254.0, -127), (-127, -255.0, 127), (0, 1e30, -127), (0, -1e30, 127),
        (127, np.inf, -127), (-127, -np.inf, 127), (100, -27.5, 127),
    ],
)  # fmt: skip
def test_an_update_stops_at_the_ends_of_the_grid(q: int, t: float, expected: int) -> None:
    assert updated(np.full(4, q), np.full(4, t), EVERY_U).tolist() == [expected] * 4


def small_net() -> Net:
    net = Net((6, 6, 2))
    x = net.relu(net.conv(net.input, 4, 3, padding=1))
    net.linear(net.avg_pool(x, 2), 3)
    return net


def after(
    program: Program, stream: tuple[int, int, int], count: int = 3, lr: float = 0.01
) -> Array:
    executor = ReferenceExecutor(program.image)
    executor.load(ranged(program, reach=4.0))
    executor.seed(*stream)
    for step in range(count):
        executor.step(*samples(program, step), Hyper(lr))
    return np.frombuffer(executor.store(), np.float32)


def test_a_stream_gives_the_same_steps_again_and_another_stream_others() -> None:
    program, _ = pair(small_net())
    found = after(program, (1, 2, 3))
    np.testing.assert_array_equal(after(program, (1, 2, 3)), found)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (after(program, other) != found).any()


def test_each_step_of_a_visit_is_rounded_by_words_of_its_own() -> None:
    """The same small gradient at every step: were the words the same, a weight would always move
    or never; as they differ, most move in some of the steps."""
    q, t, count = np.zeros(2000, int), np.full(2000, 0.1), 10
    found = [updated(q, t, uniform(2000, step)) for step in range(count)]
    moves = np.abs(found).sum(axis=0)
    # (1 - 0.1)^10 = 0.35 of them never move; 0.02 is two standard deviations
    assert (moves == 0).mean() == pytest.approx(0.9**count, abs=0.025)


# ---- what truncation would do ----------------------------------------------------------------


def truncated(g: Array, w: Int8, scale: Array | None, rule: Rule, u: Array) -> None:
    """An update as ``(int8_t)((float)w - t)`` is in C: towards zero."""
    t = rule.lr * g.reshape(w.values.shape) / w.scale
    w.values[:] = np.clip(np.trunc(w.values - t), -127, 127)


def test_gradients_that_cancel_out_leave_weights_where_truncation_pulls_them_to_zero() -> None:
    start = np.repeat([-60, 60], 500)
    kept, pulled = start, Int8(start.reshape(1, -1).astype(np.int8), np.ones(1000), 0.0)
    for step in range(50):
        t = np.full(1000, 0.1 * (-1) ** step, np.float32)
        kept = updated(kept, t, uniform(1000, step))
        truncated(t, pulled, None, Rule(1.0), t)
    # 50 draws of variance 0.1 * 0.9 for each of 500 weights: the mean has a deviation of 0.095
    assert [kept[:500].mean(), kept[500:].mean()] == pytest.approx([-60, 60], abs=0.4)
    assert abs(pulled.values).max() <= 60 - 25


CENTRES = np.random.default_rng(3).normal(size=(4, 12))
TURN = np.linalg.qr(np.random.default_rng(4).normal(size=(12, 12)))[0]


def clusters(seed: int, turned: bool, count: int = 16) -> tuple[Array, Array]:
    """Samples around four centres; or the same in a domain that is turned."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 4, count).astype(np.int32)
    x = CENTRES[y] + 0.7 * draw.normal(size=(count, 12))
    return (x @ TURN if turned else x).astype(np.float32), y


def adapted(program: Program, vector: Array, turned: bool, lr: float) -> tuple[Array, float]:
    """The vector after 300 steps, and its accuracy on 320 new samples of the turned domain."""
    executor = ReferenceExecutor(program.image)
    executor.load(vector)
    for step in range(300):
        executor.step(*clusters(step, turned), Hyper(lr))
    right = sum(executor.evaluate(*clusters(10_000 + i, True), 16)[2] for i in range(20))
    return np.frombuffer(executor.store(), np.float32), right / 320


def test_int8_learns_what_float32_does_where_truncation_destroys_the_net(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(12)
    net.linear(net.relu(net.linear(net.input, 16)), 4)
    asked: dict[str, Any] = {"loss": "cross_entropy", "batch": 16, "ram": "1 MB"}
    int8 = compile(net, dtype="int8", head="int8", **asked)
    plain = compile(net, quantisable=True, **asked)
    vector, before = adapted(plain, ranged(plain, reach=8.0), False, 0.1)
    _, wanted = adapted(plain, vector, True, 0.01)
    _, found = adapted(int8, vector, True, 0.01)
    monkeypatch.setattr(reference, "apply_update8", truncated)
    _, destroyed = adapted(int8, vector, True, 0.01)
    assert before < 0.3
    assert wanted > 0.95
    assert abs(found - wanted) < 0.02
    assert destroyed < 0.75


# ---- what is held ----------------------------------------------------------------------------


@FEW
@given(int8_nets(), st.integers(1, 99), st.sampled_from(PLANS))
def test_what_was_loaded_is_stored_on_the_grid_and_loads_again_unchanged(
    net: Net, seed: int, plan: str
) -> None:
    program, _ = pair(net, plan)
    executor = ReferenceExecutor(program.image)
    vector = ranged(program, seed, reach=5.0)
    executor.load(vector)
    stored = np.frombuffer(executor.store(), np.float32)
    np.testing.assert_array_equal(stored, held(program, vector))
    executor.load(stored)
    np.testing.assert_array_equal(np.frombuffer(executor.store(), np.float32), stored)


def test_the_channels_of_an_overlay_have_the_steps_of_the_whole_weight() -> None:
    net = small_net()
    for channels in ("in=0", "out=1+3"):
        program, _ = pair(net, f"named:conv1.weight{{{channels}}}")
        vector = ranged(program)
        executor = ReferenceExecutor(program.image)
        executor.load(vector)
        np.testing.assert_array_equal(
            np.frombuffer(executor.store(), np.float32), held(program, vector)
        )
