"""The fleet call does what one visit after the other on the reference executor does, bit by bit."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny import rng
from fedtiny.data.tables import RowTable
from fedtiny.data.tasks import SineTask
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.fleet_call import FleetCall, Visits
from fedtiny.engine.native import Status, library
from fedtiny.engine.program import Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.runtime import build
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError, ImageError, RunError
from fedtiny.fold import FoldRule
from fedtiny.masks import Mask
from fedtiny.values import EVALUATE, GRADIENT, QUERY, SUPPORT, Instruction, Phase, Sgd
from tests.engine.nets import drawn_live

Array = npt.NDArray[Any]

RUN, ROUND = 2**40 + 7, 3
POOL = ThreadPoolExecutor(1)
SINE = SineTask(support=13, query=5)


def sine_program(batch: int = 1, sgd: Sgd | None = None) -> Program:
    return compile(mlp([1, 6, 1], "tanh"), loss="mse", ram="64KiB", batch=batch, sgd=sgd)


def base_of(program: Program) -> Array:
    return np.array(program.initial(5))


# ---- the same visit by hand ------------------------------------------------------------------


def order(phase: Phase, positions: range, n: int, device: int) -> list[int]:
    """The samples at these positions of a phase."""
    if not phase.shuffle:
        return [j % n for j in positions]
    keys = [rng.epoch_key(RUN, ROUND, device, j // n) for j in positions]
    return [rng.shuffle(j % n, n, key) for j, key in zip(positions, keys, strict=True)]


def run_phase(
    executor: ReferenceExecutor, program: Program, phase: Phase, x: Array, y: Array, device: int
) -> list[float]:
    executor.clear_momentum()
    batch, hyper = program.batch, program.hyper(phase)
    steps = phase.steps or -(-len(x) // batch)
    losses = []
    for step in range(steps):
        taken = order(phase, range(step * batch, (step + 1) * batch), len(x), device)
        losses.append(executor.step(x[taken], y[taken], hyper))
    return losses


def evaluate(executor: ReferenceExecutor, batch: int, x: Array, y: Array) -> tuple[float, int, int]:
    loss_sum, count, correct = 0.0, 0, 0
    for at in range(0, len(x), batch):
        taken = np.minimum(np.arange(at, at + batch), len(x) - 1)
        found = executor.evaluate(x[taken], y[taken], min(batch, len(x) - at))
        loss_sum, count, correct = loss_sum + found[0], count + found[1], correct + found[2]
    return loss_sum, count, correct


def visit_by_hand(
    program: Program, table: RowTable, visit: int, phases: Sequence[Phase], device: int,
    mask: Mask | None = None,
) -> tuple[Array, list[float], tuple[float, int, int], tuple[float, int, int]]:  # fmt: skip
    """The trained vector, the losses of the steps, and the scores before and after."""
    executor = ReferenceExecutor(program.image)
    if mask:
        executor.load_mask(mask.bits)
    executor.load(base_of(program))
    query = table.samples(visit, QUERY)
    before = evaluate(executor, program.batch, *query)
    losses = []
    for phase in phases:
        losses += run_phase(executor, program, phase, *table.samples(visit, phase.part), device)
    after = evaluate(executor, program.batch, *query)
    return np.frombuffer(executor.store(), np.float32), losses, before, after


PHASES = st.builds(
    Phase,
    lr=st.sampled_from([0.01, 0.05]),
    steps=st.integers(0, 9),
    part=st.sampled_from([SUPPORT, QUERY]),
    shuffle=st.booleans(),
    sgd=st.sampled_from([Sgd(), Sgd(momentum=0.9)]),
)


@settings(max_examples=40)
@given(st.integers(1, 11), st.lists(PHASES, min_size=1, max_size=3))
def test_a_visit_is_the_same_by_hand(batch: int, phases: list[Phase]) -> None:
    program, devices = sine_program(batch, Sgd(momentum=0.9)), [0, 7, 2**32 - 1]
    instruction = Instruction(kind=EVALUATE, phases=tuple(phases))
    call = FleetCall(program, POOL)
    args = (instruction, SINE, base_of(program), RUN, ROUND, devices)
    found = call.run(*args, keep_vectors=True)
    table = SINE.table(RUN, ROUND, devices)
    assert found.vectors is not None
    for visit, device in enumerate(devices):
        vector, losses, before, after = visit_by_hand(program, table, visit, phases, device)
        row = found.outcomes[visit]
        np.testing.assert_array_equal(found.vectors[visit], vector)
        assert row["loss_sum"] == sum(losses)
        assert row["steps"] == len(losses)
        assert tuple(row["before"]) == before
        assert tuple(row["after"]) == after


@given(st.integers(0, 2**32 - 1), st.integers(0, 70), st.integers(0, 40))
@settings(max_examples=30)
def test_the_sine_samples_of_c_are_those_of_python(device: int, support: int, query: int) -> None:
    """One step of lr 0 has the loss of its batch, so the sums compare every sample."""
    task = SineTask(support=support, query=query)
    program, base = sine_program(), base_of(sine_program())
    instruction = Instruction(kind=EVALUATE, phases=(Phase(lr=0.0),))
    devices = [device]
    call = FleetCall(program, POOL)
    made_in_c = call.run(instruction, task, base, RUN, ROUND, devices)
    table = task.table(RUN, ROUND, devices)
    given_as_rows = call.run(instruction, table, base, RUN, ROUND, devices)
    np.testing.assert_array_equal(made_in_c.outcomes, given_as_rows.outcomes)
    assert made_in_c.outcomes["before"]["count"] == query


# ---- rows ------------------------------------------------------------------------------------


def classes_table(x: Array, labels: list[int], rows: list[int], starts: list[int]) -> RowTable:
    numbers = np.array(rows, np.uint32), np.array(starts, np.uint32)
    return RowTable(x.astype(np.float32), None, np.array(labels, np.int32), *numbers)


def classifier(batch: int = 2) -> Program:
    return compile(mlp([3, 4, 3]), loss="cross_entropy", ram="64KiB", batch=batch)


@pytest.mark.parametrize("rows", [[4, 5, 6, 7, 8], [8, 2, 2, 5, 0]], ids=["in place", "gathered"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_and_labels_are_taken_together(rows: list[int], shuffle: bool) -> None:
    x = np.random.default_rng(0).normal(size=(9, 3))
    table = classes_table(x, [0, 2, 1, 1, 0], rows, [0, 3, 5])
    program, phases = classifier(), (Phase(0.1, steps=4, shuffle=shuffle),)
    call = FleetCall(program, POOL)
    instruction = Instruction(kind=EVALUATE, phases=phases)
    found = call.run(instruction, table, base_of(program), RUN, ROUND, [9], keep_vectors=True)
    vector, _, before, after = visit_by_hand(program, table, 0, phases, 9)
    assert found.vectors is not None
    np.testing.assert_array_equal(found.vectors[0], vector)
    assert tuple(found.outcomes[0]["before"]) == before
    assert tuple(found.outcomes[0]["after"]) == after


@pytest.mark.parametrize(
    ("rows", "labels", "starts", "status"),
    [
        ([0, 1, 9], [0, 0, 0], [0, 3, 3], Status.FLEET),
        ([0, 1, 2], [0, 3, 0], [0, 3, 3], Status.LABEL),
        ([0, 1, 2], [0, -1, 0], [0, 3, 3], Status.LABEL),
        ([0, 1, 2], [0, 0, 0], [0, 0, 3], Status.EMPTY),
    ],
    ids=["a row outside", "a label too large", "a negative label", "no support"],
)
def test_a_bad_visit_says_why_and_the_others_go_on(
    rows: list[int], labels: list[int], starts: list[int], status: Status
) -> None:
    program, rule = classifier(), FoldRule.for_round(2, 1.0)
    good = [1, 2, 0]
    x = np.random.default_rng(0).normal(size=(9, 3))
    both = classes_table(x, labels + good, rows + good, [*starts, 6, 6])
    alone = classes_table(x, good, good, [0, 3, 3])
    instruction = Instruction(phases=(Phase(0.1),))
    call = FleetCall(program, POOL)
    args = base_of(program), RUN, ROUND
    found = call.run(instruction, both, *args, [0, 1], rule=rule, weight=np.ones(2))
    expected = call.run(instruction, alone, *args, [1], rule=rule, weight=np.ones(1))
    assert found.outcomes["status"].tolist() == [status, Status.OK]
    assert expected.sums is not None
    assert expected.sums.any()
    np.testing.assert_array_equal(found.sums, expected.sums)


def test_an_empty_query_scores_nothing() -> None:
    program = sine_program()
    instruction = Instruction(kind=EVALUATE, phases=(Phase(0.01),))
    call = FleetCall(program, POOL)
    task = SineTask(support=3, query=0)
    found = call.run(instruction, task, base_of(program), RUN, ROUND, [1])
    assert found.outcomes["status"].tolist() == [Status.OK]
    assert found.outcomes["after"]["count"].tolist() == [0]


# ---- the fold --------------------------------------------------------------------------------


def folded(threads: int, count: int, program: Program | None = None, **options: Any) -> Visits:
    program = program or sine_program()
    rule = options.pop("rule", FoldRule.for_round(count, 3.0))
    weight = rule.weights(1.0 + np.arange(count) % 2)
    task = options.pop("task", SINE)
    call = FleetCall(program, POOL, threads)
    instruction = Instruction(phases=(Phase(0.05, steps=6),))
    return call.run(
        instruction, task, base_of(program), RUN, ROUND, np.arange(count),
        rule=rule, weight=weight, keep_vectors=True,
    )  # fmt: skip


def test_the_fold_is_the_exact_sum_of_the_rounded_terms() -> None:
    found, rule = folded(1, 20), FoldRule.for_round(20, 3.0)
    assert found.vectors is not None
    assert found.sums is not None
    delta = found.vectors.astype(np.float64) - base_of(sine_program())
    weight = 1.0 + np.arange(20)[:, None] % 2
    terms = np.rint(weight * delta * rule.scale)
    assert found.sums.tolist() == [sum(map(int, column)) for column in terms.T]
    np.testing.assert_array_equal(found.outcomes["moved"], np.abs(delta).max(axis=1))
    lanes = np.zeros((20, 24))  # 19 coordinates: three groups of eight
    lanes[:, :19] = delta * delta
    s = np.add.accumulate(lanes.reshape(20, 3, 8), axis=1)[:, -1]
    norm = (s[:, 0] + s[:, 1] + (s[:, 2] + s[:, 3])) + (s[:, 4] + s[:, 5] + (s[:, 6] + s[:, 7]))
    np.testing.assert_array_equal(found.outcomes["squared_norm"], norm)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=19),
    st.floats(0.5, 2.0),
    st.integers(-20, 49),
    st.data(),
)
def test_every_term_is_rounded_to_the_nearest_even(
    values: list[float], weight: float, shift: int, data: st.DataObject
) -> None:
    vector = np.array(values, np.float32)
    base = np.full_like(vector, data.draw(st.sampled_from([0.0, 0.5, -0.25])))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(vector), max_size=len(vector))))
    found, scale = np.arange(len(vector)), 2.0**shift
    addresses = [ctypes.c_void_p(a.ctypes.data) for a in (vector, base, mask.view(np.uint8), found)]
    numbers = ctypes.c_uint32(len(vector)), ctypes.c_double(weight), ctypes.c_double(scale)
    library().ft_fold(*addresses[:3], *numbers, addresses[3])
    terms = [round(weight * d * scale) for d in (vector.astype(np.float64) - base).tolist()]
    expected = [at + term * bool(m) for at, (term, m) in enumerate(zip(terms, mask, strict=True))]
    assert found.tolist() == expected


def test_two_threads_change_no_bit() -> None:
    one, two = folded(1, 41), folded(2, 41)
    np.testing.assert_array_equal(one.sums, two.sums)
    np.testing.assert_array_equal(one.vectors, two.vectors)
    np.testing.assert_array_equal(one.outcomes, two.outcomes)


@pytest.mark.parametrize("variant", build.variants_here())
def test_every_library_gives_the_same_bits(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = folded(1, 5)
    monkeypatch.setenv("FEDTINY_RUNTIME", variant)
    library.cache_clear()
    found = folded(1, 5)
    assert library()._name.endswith(f"_{variant}.so")
    library.cache_clear()
    np.testing.assert_array_equal(found.sums, expected.sums)
    np.testing.assert_array_equal(found.outcomes, expected.outcomes)


def test_a_visit_that_diverges_is_reported_and_not_folded() -> None:
    table = SINE.table(RUN, ROUND, [0, 1])
    assert table.y is not None
    wild = replace(table, y=np.where(np.arange(36)[:, None] < 13, np.float32(3e38), table.y))
    found, expected = folded(1, 2, task=wild), folded(1, 2)
    assert found.outcomes["status"].tolist() == [Status.NOT_FINITE, Status.OK]
    assert found.sums is not None
    assert expected.vectors is not None
    delta = expected.vectors[1].astype(np.float64) - base_of(sine_program())
    rule = FoldRule.for_round(2, 3.0)
    np.testing.assert_array_equal(found.sums, rule.terms(delta, 2.0))


def test_a_visit_that_moves_too_far_is_reported_and_not_folded() -> None:
    norms = np.sqrt(folded(1, 8).outcomes["squared_norm"])
    limit = float(np.median(norms))
    found = folded(1, 8, rule=FoldRule.for_round(8, 3.0, norm_bound=limit))
    expected = np.where(norms > limit, Status.BOUND, Status.OK)
    assert found.outcomes["status"].tolist() == expected.tolist()
    assert {*expected} == {Status.BOUND, Status.OK}


def test_what_does_not_train_is_not_folded() -> None:
    program = compile(mlp([1, 6, 1], "tanh"), loss="mse", ram="64KiB", plan="last:1")
    found = folded(1, 3, program)
    assert found.sums is not None
    trained = [program.layout[name] for name in program.trained_names]
    moved = np.concatenate([np.arange(p.offset, p.offset + p.size) for p in trained])
    assert np.flatnonzero(found.sums).tolist() == sorted(moved.tolist())


def test_what_the_phases_do_not_send_is_not_folded() -> None:
    """A step moves the running statistics whatever it trains; they are sent with all groups."""
    net = Net((3, 3, 1))
    value = net.relu(net.batch_norm(net.conv(net.input, 2, 2), tracked=True))
    net.group = "head"
    net.linear(value, 3)
    program = compile(net, loss="cross_entropy", ram="64KiB", batch=2)
    table = classes_table(np.random.default_rng(0).normal(size=(4, 9)), [0, 1, 2, 0], [0, 1, 2, 3],
                          [0, 4, 4])  # fmt: skip
    call, rule = FleetCall(program, POOL), FoldRule.for_round(1, 5.0)
    moved = {}
    for groups in ((), ("head",)):
        instruction = Instruction(phases=(Phase(0.1, groups=groups),))
        found = call.run(instruction, table, base_of(program), RUN, ROUND, [0], rule=rule,
                         weight=np.ones(1))  # fmt: skip
        assert found.sums is not None
        moved[groups] = {
            p.name for p in program.layout.parameters
            if found.sums[p.offset : p.offset + p.size].any()
        }  # fmt: skip
    statistics = {"batch_norm1.running_mean", "batch_norm1.running_var"}
    assert moved["head",] == {"linear1.weight", "linear1.bias"}
    assert moved[()] >= statistics | moved["head",]


# ---- gradients, corrections, personal coordinates --------------------------------------------


def test_a_gradient_can_be_asked_for_after_the_training() -> None:
    program = sine_program(4, Sgd(momentum=0.9))
    phases = (Phase(0.05, steps=3), Phase(0.05, steps=1, part=QUERY))
    rule = FoldRule.for_round(1, 1.0)
    call = FleetCall(program, POOL)
    found = call.run(
        Instruction(phases=phases, returns=GRADIENT), SINE, base_of(program), RUN, ROUND, [4],
        rule=rule, weight=np.ones(1), keep_vectors=True,
    )  # fmt: skip
    executor = ReferenceExecutor(program.image)
    executor.load(base_of(program))
    table = SINE.table(RUN, ROUND, [4])
    run_phase(executor, program, phases[0], *table.samples(0, SUPPORT), 4)
    still = replace(phases[1], lr=0.0)
    run_phase(executor, program, still, *table.samples(0, QUERY), 4)
    gradient = np.frombuffer(executor.store_gradient(), np.float32)
    assert found.vectors is not None
    np.testing.assert_array_equal(found.vectors[0], gradient)
    np.testing.assert_array_equal(found.sums, rule.terms(gradient.astype(np.float64), 1.0))


def test_a_correction_is_added_to_every_gradient() -> None:
    program = sine_program(1, Sgd(correction=True))
    correction = np.linspace(-1, 1, program.layout.size).astype(np.float32)
    phases = (Phase(0.05, steps=3, sgd=Sgd(correction=True), corrected=True),)
    call = FleetCall(program, POOL)
    instruction = Instruction(phases=phases, correction=correction.tobytes())
    found = call.run(
        instruction, SINE, base_of(program), RUN, ROUND, [4], keep_vectors=True
    )  # fmt: skip
    executor = ReferenceExecutor(program.image)
    executor.load(base_of(program))
    executor.load_correction(correction)
    table = SINE.table(RUN, ROUND, [4])
    run_phase(executor, program, phases[0], *table.samples(0, SUPPORT), 4)
    assert found.vectors is not None
    np.testing.assert_array_equal(found.vectors[0], np.frombuffer(executor.store(), np.float32))


@pytest.fixture
def personal_program() -> Program:
    net = Net(1)
    hidden = net.tanh(net.linear(net.input, 6))
    net.group = "local"
    net.linear(hidden, 1)
    return compile(net, loss="mse", ram="64KiB")


def test_local_coordinates_come_from_their_device_and_go_back(personal_program: Program) -> None:
    program, size = personal_program, personal_program.layout.size
    base, instruction = base_of(program), Instruction(phases=(Phase(0.05, steps=4),))
    own = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    rows, local = own.copy(), slice(12, 19)  # behind linear1: 6 weights and 6 biases
    rule = FoldRule.for_round(2, 1.0)
    call = FleetCall(program, POOL)
    found = call.run(
        instruction, SINE, base, RUN, ROUND, [0, 1],
        rule=rule, weight=np.ones(2), personal=rows, keep_vectors=True,
    )  # fmt: skip
    assert found.vectors is not None
    assert found.sums is not None
    table = SINE.table(RUN, ROUND, [0, 1])
    for visit in range(2):
        start = base.copy()
        start[local] = own[visit, local]
        executor = ReferenceExecutor(program.image)
        executor.load(start)
        run_phase(executor, program, instruction.phases[0], *table.samples(visit, SUPPORT), visit)
        trained = np.frombuffer(executor.store(), np.float32)
        np.testing.assert_array_equal(found.vectors[visit], trained)
        np.testing.assert_array_equal(rows[visit, local], trained[local])
        np.testing.assert_array_equal(rows[visit, :12], own[visit, :12])
    assert found.sums[:12].any()
    assert not found.sums[local].any()


def test_a_failed_visit_leaves_the_personal_row_alone(personal_program: Program) -> None:
    own = np.full((1, 19), np.float32(3e38))
    call = FleetCall(personal_program, POOL)
    instruction = Instruction(phases=(Phase(0.05, steps=4),))
    args = (instruction, SINE, base_of(personal_program), RUN, ROUND, [0])
    found = call.run(*args, personal=own)
    assert found.outcomes["status"].tolist() == [Status.NOT_FINITE]
    assert (own == np.float32(3e38)).all()


# ---- refusals --------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_refused_with_both_shapes() -> None:
    program = sine_program()
    table = SINE.table(RUN, ROUND, [0])
    instruction = Instruction(phases=(Phase(0.05),))
    call = FleetCall(program, POOL)
    with pytest.raises(DataError, match=r"model must be float32 \(19,\).*float32 \(18,\)"):
        call.run(instruction, SINE, base_of(program)[1:], RUN, ROUND, [0])
    with pytest.raises(DataError, match=r"x must be float32 \(18, 1\).*\(18, 2\)"):
        call.run(
            instruction, replace(table, x=np.zeros((18, 2), np.float32)),
            base_of(program), RUN, ROUND, [0],
        )  # fmt: skip
    with pytest.raises(DataError, match=r"starts must be uint32 \(5,\).*\(3,\)"):
        call.run(instruction, table, base_of(program), RUN, ROUND, [0, 1])


def test_tables_that_contradict_each_other_are_refused_before_anything_runs() -> None:
    program = sine_program()
    table = SINE.table(RUN, ROUND, [0])
    past_the_end = replace(table, starts=np.array([0, 13, 19], np.uint32))
    falling = replace(table, starts=np.array([5, 3, 18], np.uint32))
    no_targets = replace(table, y=None)
    instruction = Instruction(phases=(Phase(0.05),))
    call = FleetCall(program, POOL)
    for wrong in (past_the_end, falling, no_targets):
        with pytest.raises(RunError, match="samples do not fit the Program"):
            call.run(instruction, wrong, base_of(program), RUN, ROUND, [0])
    call.run(instruction, table, base_of(program), RUN, ROUND, [0])


def test_what_the_program_reserved_nothing_for_is_refused() -> None:
    program = sine_program()
    call = FleetCall(program, POOL)
    args = SINE, base_of(program), RUN, ROUND, [0]
    momentum = Instruction(phases=(Phase(0.05, sgd=Sgd(momentum=0.9)),))
    with pytest.raises(ImageError, match=r"momentum = 0\.9.*sgd=Sgd\(momentum"):
        call.run(momentum, *args)
    gradient = Instruction(phases=(Phase(0.05, steps=1),), returns=GRADIENT)
    with pytest.raises(RunError, match="did not reserve"):
        call.run(gradient, *args)


def test_programs_may_share_the_threads_of_a_pool() -> None:
    programs = sine_program(), sine_program(3)
    calls = [FleetCall(program, POOL, 2) for program in programs]
    instruction = Instruction(phases=(Phase(0.05, steps=6),))
    for call, program in zip(calls * 2, programs * 2, strict=True):
        args = instruction, SINE, base_of(program), RUN, ROUND, np.arange(9)
        alone = FleetCall(program, POOL).run(*args, keep_vectors=True)
        np.testing.assert_array_equal(call.run(*args, keep_vectors=True).vectors, alone.vectors)


# ---- pruned models ---------------------------------------------------------------------------


def pruned_program() -> Program:
    return compile(mlp([3, 20, 3]), loss="cross_entropy", ram="64KiB", batch=2, density=0.4,
                   sgd=Sgd(momentum=0.9))  # fmt: skip


def masks_of(program: Program) -> list[Mask]:
    """Two masks, with all of the capacity and with half of it."""
    return [Mask.of(drawn_live(program, seed, share)) for seed, share in ((1, 1.0), (2, 0.5))]


def pruned_table() -> RowTable:
    x = np.random.default_rng(0).normal(size=(9, 3))
    rows = np.arange(9).repeat(2).tolist()
    return classes_table(x, [row % 3 for row in rows], rows, [0, 5, 9, 15, 18])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pruned_visit_is_the_same_by_hand_under_every_mask(threads: int) -> None:
    program, table, base = pruned_program(), pruned_table(), base_of(pruned_program())
    call, rule = FleetCall(program, POOL, threads), FoldRule.for_round(2, 5.0)
    call._least_visits = 1
    phases = (Phase(0.1, steps=3, sgd=Sgd(momentum=0.9)), Phase(0.1, part=QUERY, shuffle=True))
    for mask in masks_of(program) * 2:
        found = call.run(
            Instruction(phases=phases), table, np.where(mask.bools, base, np.float32(0)),
            RUN, ROUND, [4, 5], mask=mask, rule=rule, weight=np.ones(2), keep_vectors=True,
        )  # fmt: skip
        assert found.vectors is not None
        deltas = []
        for visit, device in enumerate((4, 5)):
            vector, losses, *_ = visit_by_hand(program, table, visit, phases, device, mask)
            np.testing.assert_array_equal(found.vectors[visit], vector)
            assert found.outcomes[visit]["loss_sum"] == sum(losses)
            deltas.append(np.where(mask.bools, vector.astype(np.float64) - base, 0.0))
        expected = sum(rule.terms(delta, 1.0) for delta in deltas)
        np.testing.assert_array_equal(found.sums, expected)
        np.testing.assert_array_equal(found.outcomes["moved"], np.abs(deltas).max(axis=1))


def test_dead_and_untrained_coordinates_are_not_folded() -> None:
    program = compile(mlp([3, 20, 3]), loss="cross_entropy", ram="64KiB", batch=2, density=0.4,
                      plan="last:1")  # fmt: skip
    mask = masks_of(program)[0]
    found = FleetCall(program, POOL).run(
        Instruction(phases=(Phase(0.1, steps=9),)), pruned_table(), base_of(program), RUN, ROUND,
        [4, 5], mask=mask, rule=FoldRule.for_round(2, 5.0), weight=np.ones(2),
    )  # fmt: skip
    assert found.sums is not None
    trained = np.zeros(program.layout.size, bool)
    trained[program.layout["linear2.weight"].offset :] = True
    moved = found.sums != 0
    assert not moved[~(trained & mask.bools)].any()
    assert moved[trained & mask.bools].mean() > 0.8  # a few hidden units are never active


def test_a_mask_is_given_to_pruned_programs_alone() -> None:
    args = pruned_table(), base_of(pruned_program()), RUN, ROUND, [4, 5]
    phases = Instruction(phases=(Phase(0.1),))
    pruned, dense = pruned_program(), compile(mlp([3, 20, 3]), loss="cross_entropy", ram="64KiB")
    mask = masks_of(pruned)[0]
    with pytest.raises(DataError, match=r"Program of density 0\.4 runs with the mask of that"):
        FleetCall(pruned, POOL).run(phases, *args)
    with pytest.raises(DataError, match="Program of density 1 runs without a mask"):
        FleetCall(dense, POOL).run(phases, *args, mask=mask)
    full = Mask.of(np.ones(pruned.layout.size, bool))
    with pytest.raises(DataError, match="120 live weights and the Program memory for 48"):
        FleetCall(pruned, POOL).run(phases, *args, mask=full)
    with pytest.raises(DataError, match="mask has 9 coordinates and the model 143"):
        FleetCall(pruned, POOL).run(phases, *args, mask=Mask.of(np.ones(9, bool)))
