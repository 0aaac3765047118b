"""What a device does with a pruned Program: masks, growth, candidates, statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtiny import pruning
from fedtiny.device.learner import Key, Learner, Outcome, Samples
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, StrategyError
from fedtiny.masks import Mask
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    LOCAL_VALUES,
    OWN_MODEL,
    QUERY,
    SCORE,
    SUPPORT,
    VOTES,
    Instruction,
    Kept,
    Phase,
    Sgd,
)

BATCH, SEED = 4, 3
SGD = Sgd(momentum=0.9)
STILL = Phase(0.0, steps=1)


def small_net(group: str = "shared") -> Net:
    """6 -> 8 (tracked normalisation) -> 3."""
    net = Net((6,))
    hidden = net.relu(net.batch_norm(net.linear(net.input, 8), tracked=True))
    net.group = group
    net.linear(hidden, 3)
    return net


def program_of(density: float, group: str = "shared", sgd: Sgd = SGD) -> Program:
    return compile(
        small_net(group), loss="cross_entropy", ram="64KiB", batch=BATCH, sgd=sgd, density=density,
        bucket=20,
    )  # fmt: skip


SPARSE, DENSE = program_of(0.5), program_of(1.0)
BASE = np.asarray(SPARSE.initial(SEED))
WEIGHTS = SPARSE.prunable
MASK = pruning.largest(BASE, SPARSE.layout, pruning.erk_counts(SPARSE.layout, WEIGHTS, 0.5))
TRAIN = Instruction(phases=(Phase(0.1, sgd=SGD),), masks=((0.5, MASK.blob),))


def data(count: int = 11, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, 6)).astype(np.float32), draw.integers(0, 3, count)


@pytest.fixture(params=["native", "reference"])
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def learner(executor: str) -> Learner:
    return Learner(SPARSE, executor)


def visit(
    learner: Learner, asked: Instruction, base: np.ndarray = BASE, kept: Kept | None = None
) -> Outcome:
    samples = {SUPPORT: learner.samples(*data()), QUERY: learner.samples(*data(6, 1))}
    return learner.visit(asked, base, samples.__getitem__, Key(), kept or {})


def values_of(done: Outcome) -> np.ndarray:
    return np.frombuffer(done.values, np.float32)


def places_of(done: Outcome) -> np.ndarray:
    assert done.places is not None
    return np.frombuffer(done.places, np.uint32).astype(int)


# ---- masks -----------------------------------------------------------------------------------


def test_a_visit_returns_the_values_of_the_live_coordinates(learner: Learner) -> None:
    done = visit(learner, TRAIN)
    after = np.asarray(learner.vector())
    np.testing.assert_array_equal(values_of(done), after[MASK.bools])
    assert done.mask == MASK
    assert done.ranges == ((0, SPARSE.layout.size),)
    assert not after[~MASK.bools].any()


def test_a_compact_base_is_the_same_as_a_dense_one(learner: Learner) -> None:
    whole = visit(learner, TRAIN)
    assert visit(learner, TRAIN, BASE[MASK.bools]) == whole


def test_a_mask_that_moves_needs_no_other_learner(learner: Learner) -> None:
    other = Mask.draw(SPARSE.layout, {WEIGHTS[0]: 30, WEIGHTS[1]: 6}, seed=5)
    asked = replace(TRAIN, masks=((0.5, other.blob),))
    expected = visit(Learner(SPARSE, "reference"), asked)
    visit(learner, TRAIN)
    assert visit(learner, asked) == expected


def test_values_that_stay_on_the_device_stand_behind_the_live_ones(executor: str) -> None:
    program = program_of(0.5, group="local")
    (weight,) = program.prunable
    mask = Mask.draw(program.layout, {weight: 20}, seed=1)
    learner = Learner(program, executor)
    asked = replace(TRAIN, masks=((0.5, mask.blob),))
    base = np.asarray(program.initial(SEED))
    first = visit(learner, asked, base)
    local = np.concatenate([np.arange(*pair) for pair in program.local_ranges])
    assert np.frombuffer(first.kept[LOCAL_VALUES], np.float32).size == local.size
    own = base.copy()
    own[local] = np.frombuffer(first.kept[LOCAL_VALUES], np.float32)
    expected = visit(learner, asked, own)
    assert visit(learner, asked, base[mask.bools], first.kept) == expected


def test_a_model_of_its_own_lives_under_the_mask_of_the_day(executor: str) -> None:
    program = program_of(0.5, sgd=replace(SGD, correction=True))
    first, second = program.prunable
    asked, base = replace(TRAIN, own=TRAIN.phases), np.asarray(program.initial(SEED))
    kept: Kept = {}
    for seed in (1, 2):
        mask = Mask.draw(program.layout, {first: 20, second: 9}, seed)
        done = visit(
            Learner(program, executor), replace(asked, masks=((0.5, mask.blob),)), base, kept
        )
        own, live = np.frombuffer(done.kept[OWN_MODEL], np.float32), mask.bools
        assert not own[~live].any()
        assert (own != base)[live].sum() > 20
        kept = done.kept


def test_a_returned_gradient_is_that_of_the_live_coordinates(learner: Learner) -> None:
    asked = replace(TRAIN, phases=(STILL,), returns=GRADIENT)
    done = visit(learner, asked)
    np.testing.assert_array_equal(np.asarray(learner.vector())[MASK.bools], BASE[MASK.bools])
    dense = Learner(DENSE, "reference")
    masked = np.where(MASK.bools, BASE, np.float32(0))
    expected = values_of(visit(dense, replace(asked, masks=()), masked))
    np.testing.assert_allclose(values_of(done), expected[MASK.bools], rtol=1e-5, atol=1e-7)


def test_a_device_without_a_mask_of_its_density_is_told_so(learner: Learner) -> None:
    with pytest.raises(DataError, match=r"50.00% of its weights and was sent no mask"):
        visit(learner, replace(TRAIN, masks=()))
    with pytest.raises(
        StrategyError, match=r"no mask of density 0.5; the strategy has masks of 0.1"
    ):
        visit(learner, replace(TRAIN, masks=((0.1, MASK.blob),)))


def test_an_evaluation_adapts_the_live_values(learner: Learner) -> None:
    asked = replace(TRAIN, kind=EVALUATE)
    done = visit(learner, asked)
    after = learner.evaluate(*data(6, 1))
    assert done.measures["loss_sum_after"] == after["loss_sum"]
    assert not np.asarray(learner.vector())[~MASK.bools].any()


# ---- growth ----------------------------------------------------------------------------------


GROW = replace(TRAIN, phases=(STILL,), returns=GRADIENT, grow=((WEIGHTS[0], 5), (WEIGHTS[1], 2)))


def dense_gradient(batch: int = BATCH) -> np.ndarray:
    """Of the first batch, at the masked model."""
    x, y = data()
    asked = Instruction(phases=(STILL,), returns=GRADIENT)
    learner = Learner(DENSE, "reference")
    samples = learner.samples(x[:batch], y[:batch])
    masked = np.where(MASK.bools, BASE, np.float32(0))
    return values_of(learner.visit(asked, masked, lambda part: samples, Key()))


def largest_dead(gradient: np.ndarray) -> np.ndarray:
    """The places that `GROW` asks for, ascending."""
    found: list[int] = []
    for name, count in GROW.grow:
        p = SPARSE.layout[name]
        dead = [i for i in range(p.offset, p.offset + p.size) if not MASK.bools[i]]
        found += sorted(dead, key=lambda i: (-abs(gradient[i]), i))[:count]
    return np.array(sorted(found))


def test_a_growth_returns_the_largest_gradients_of_dead_coordinates(learner: Learner) -> None:
    done, gradient = visit(learner, GROW), dense_gradient()
    np.testing.assert_array_equal(places_of(done), largest_dead(gradient))
    np.testing.assert_allclose(values_of(done), gradient[places_of(done)], rtol=1e-5)
    assert (done.ranges, done.mask) == (((0, SPARSE.layout.size),), None)
    assert done.measures == {"loss_sum": 0.0, "steps": 0}
    np.testing.assert_array_equal(np.asarray(learner.vector())[MASK.bools], BASE[MASK.bools])


def test_votes_are_the_places_of_the_same_growth(learner: Learner) -> None:
    gradients = visit(learner, GROW)
    done = visit(learner, replace(GROW, returns=VOTES))
    assert done.places == gradients.places
    np.testing.assert_array_equal(values_of(done), np.ones(7))


def test_what_trains_before_a_growth_is_dropped(learner: Learner) -> None:
    done = visit(learner, replace(GROW, phases=(Phase(0.1, steps=3), STILL)))
    visit(learner, replace(TRAIN, phases=(Phase(0.1, steps=3),)))
    asked = replace(GROW, phases=(STILL,))
    expected = visit(learner, asked, np.asarray(learner.vector()).copy())
    assert (done.places, done.values) == (expected.places, expected.values)
    assert done.measures["steps"] == 3


def test_a_coordinate_that_no_sample_moves_does_not_grow(learner: Learner) -> None:
    silent = BASE.copy()
    layer = SPARSE.layout[WEIGHTS[1]]
    silent[layer.offset :] = 0  # nothing flows back into the first layer
    samples = learner.samples(*data())
    done = learner.visit(GROW, silent, lambda part: samples, Key())
    first = SPARSE.layout[WEIGHTS[0]]
    assert not (
        (places_of(done) >= first.offset) & (places_of(done) < first.offset + first.size)
    ).any()


def test_a_layer_that_is_not_pruned_does_not_grow(learner: Learner) -> None:
    with pytest.raises(DataError, match=r"grows \['linear1.bias'\]"):
        visit(learner, replace(GROW, grow=(("linear1.bias", 1),)))


def test_a_readjusted_mask_exchanges_the_smallest_weights_for_the_largest_gradients(
    learner: Learner,
) -> None:
    asked = replace(GROW, returns="values", phases=(Phase(0.1),))
    done = visit(learner, asked)
    grown = largest_dead(dense_gradient())
    expected = MASK.bools.copy()
    for name, count in GROW.grow:
        p = SPARSE.layout[name]
        live = [i for i in range(p.offset, p.offset + p.size) if MASK.bools[i]]
        expected[sorted(live, key=lambda i: (abs(BASE[i]), -i))[:count]] = False
    expected[grown] = True
    assert done.mask == Mask.of(expected)
    assert done.mask.counts(SPARSE.layout) == MASK.counts(SPARSE.layout)
    # what grows starts at 0, and the last phase trains on the new mask
    start = np.where(expected, BASE, np.float32(0))
    start[grown] = 0
    again = replace(TRAIN, phases=asked.phases, masks=((0.5, done.mask.blob),))
    assert visit(learner, again, start).values == done.values


def test_a_readjustment_takes_no_dense_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(GROW, returns="values", phases=(Phase(0.1),))
    learner = Learner(SPARSE, "native")
    expected = visit(learner, asked)
    for name in ("store", "load"):
        monkeypatch.delattr(type(learner.executor), name)
    assert visit(learner, asked, BASE[MASK.bools]) == expected


# ---- candidates ------------------------------------------------------------------------------


CANDIDATES = Instruction(CALIBRATE, candidates=(0, 1, 7))


def masked_by(seed: int) -> tuple[Mask, np.ndarray]:
    counts = pruning.candidate_counts(SPARSE.layout, WEIGHTS, 0.5, seed)
    mask = pruning.largest(BASE, SPARSE.layout, counts)
    return mask, np.where(mask.bools, BASE, np.float32(0))


def first_layer(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the normalisation meets."""
    weight, bias = (SPARSE.layout[name] for name in ("linear1.weight", "linear1.bias"))
    w = vector[weight.offset : weight.offset + 48].reshape(6, 8).astype(np.float64)
    return np.asarray(x @ w + vector[bias.offset : bias.offset + 8])


def test_candidates_are_calibrated_by_what_their_normalisations_meet(learner: Learner) -> None:
    x, _ = data()
    met = x[[i % 11 for i in range(12)]]  # three whole batches: the first sample fills the last
    rows = values_of(visit(learner, CANDIDATES)).reshape(3, 16)
    for seed, row in zip(CANDIDATES.candidates, rows, strict=True):
        assert isinstance(seed, int)
        outputs = first_layer(masked_by(seed)[1], met)
        expected = [*outputs.mean(0), *(outputs**2).mean(0)]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_candidates_are_scored_with_the_statistics_that_are_sent(learner: Learner) -> None:
    draw = np.random.default_rng(2)
    means = draw.normal(size=(3, 8)).astype(np.float32)
    squares = (means**2 + draw.uniform(-0.2, 1, (3, 8))).astype(np.float32)
    sent = np.concatenate([means, squares], axis=1).tobytes()
    done = visit(learner, Instruction(SCORE, candidates=(0, 1, 7), statistics=sent))
    judge = Learner(SPARSE, "reference")
    mean, var = (SPARSE.layout[name] for name in SPARSE.tracked)
    for index, seed in enumerate((0, 1, 7)):
        mask, vector = masked_by(seed)
        vector[mean.offset : mean.offset + 8] = means[index]
        variances = np.maximum(squares[index] - means[index].astype(float) ** 2, 0)
        vector[var.offset : var.offset + 8] = variances
        judge.load_mask(mask)
        judge.load(vector)
        expected = judge.evaluate(*data())["loss_sum"]
        assert done.measures[f"loss_sum.{index}"] == pytest.approx(expected, rel=1e-6)
    assert done.measures["count"] == 11


def test_without_statistics_candidates_are_scored_as_they_are(learner: Learner) -> None:
    done = visit(learner, Instruction(SCORE, candidates=(1,)))
    mask, vector = masked_by(1)
    learner.load_mask(mask)
    learner.load(vector)
    assert done.measures["loss_sum.0"] == learner.evaluate(*data())["loss_sum"]


def test_a_mask_is_taken_again_after_candidates_have_been_tried(learner: Learner) -> None:
    expected = visit(learner, TRAIN)
    visit(learner, CANDIDATES)
    assert visit(learner, TRAIN) == expected


def test_a_growth_on_a_device_without_samples_is_refused(learner: Learner) -> None:
    nothing = Samples(memoryview(b"").cast("B").cast("f"), memoryview(b"").cast("B").cast("i"), 0)
    with pytest.raises(DataError, match="no samples"):
        learner.visit(GROW, BASE, lambda part: nothing, Key())
