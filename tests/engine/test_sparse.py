"""Sparse layers: what dense ones do with zeros, in the same bits in every build."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedtiny.engine import native, zoo
from fedtiny.engine.builder import Net, Value
from fedtiny.engine.compile import build, compile
from fedtiny.engine.image import BITMAP, GAPS
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Executor, Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.sparsity import Pool, prunable
from fedtiny.errors import CompileError, DataError
from fedtiny.values import Sgd
from tests.engine.nets import Array, bits_of, drawn_live, image_nets, nets, samples
from tests.engine.oracle import Oracle
from tests.engine.test_equality import RULES, loaded

NETS = st.one_of(nets(), image_nets())
LOSSES = st.sampled_from(["mse", "cross_entropy"])
DENSITIES = st.sampled_from([0.04, 0.3, 0.8])
KINDS: list[Callable[[bytes], Executor]] = [NativeExecutor, ReferenceExecutor]


def compiled(net: Net, density: float, loss: str = "mse", batch: int = 2, sgd: Sgd | None = None,
             bucket: int = 20) -> Program:  # fmt: skip
    """The Program; hypothesis draws another net where the density leaves a layer no weight."""
    try:
        return compile(net, loss=loss, ram="16MiB", flash="16MiB", batch=batch, sgd=sgd,
                       density=density, bucket=bucket)  # fmt: skip
    except CompileError as error:
        assume("a density of" not in str(error))
        raise


def as_hyper(rule: Sgd) -> Hyper:
    return Hyper(0.05, rule.momentum, rule.weight_decay, rule.clip, rule.prox)


def stored(executor: Executor, dtype: type[np.floating] = np.float32) -> Array:
    return np.frombuffer(executor.store(), dtype)


# ---- against dense layers --------------------------------------------------------------------


@settings(max_examples=60)
@given(NETS, LOSSES, st.integers(2, 9), DENSITIES)
def test_a_sparse_net_predicts_what_the_dense_one_does_with_zeros(
    net: Net, loss: str, batch: int, density: float
) -> None:
    """Exactly, since a dead weight adds a zero; but where a layer has one output, whose sum a dense
    layer takes in eight lanes."""
    sparse, dense = (compiled(net, share, loss, batch) for share in (density, 1.0))
    live = drawn_live(sparse)
    vector = np.where(live, sparse.initial(1), np.float32(0))
    one, other = (ReferenceExecutor(program.image) for program in (sparse, dense))
    one.load_mask(bits_of(live))
    x, _ = samples(sparse)
    one.load(vector)
    other.load(vector)
    found, expected = list(one.predict(x)), list(other.predict(x))
    has_column = any(p.shape[-1] == 1 for p in net.graph(1).layout.parameters)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5) if has_column else found == expected


@settings(max_examples=60)
@given(NETS, LOSSES, st.integers(2, 9), DENSITIES, RULES)
def test_a_sparse_net_learns_what_the_dense_one_does_with_zeros(
    net: Net, loss: str, batch: int, density: float, rule: Sgd
) -> None:
    """Three steps in float64; the dense net's dead weights are set to zero again after each. Its
    clip would see the gradients of dead weights as well."""
    rule = replace(rule, clip=0.0)
    sparse, dense = (compiled(net, share, loss, batch, rule) for share in (density, 1.0))
    live = drawn_live(sparse)
    one, other = (ReferenceExecutor(p.image, np.float64) for p in (sparse, dense))
    one.load_mask(bits_of(live))
    vector = np.where(live, sparse.initial(1), 0.0)
    one.load(vector)
    other.load(vector)
    for step in range(3):
        x, y = samples(sparse, step)
        losses = [executor.step(x, y, as_hyper(rule)) for executor in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        for p in dense.tables.params:
            other.memory.home(p).reshape(-1)[~live[other.memory.coordinates(p)]] = 0
    expected = np.where(live, stored(other, np.float64), 0)
    np.testing.assert_allclose(stored(one, np.float64), expected, rtol=1e-9, atol=1e-9)


def small_net() -> Net:
    net = Net((6, 5, 2))
    x = net.relu(net.batch_norm(net.conv(net.input, 6, 3, 1, 1, bias=False), tracked=True))
    x = net.relu(net.batch_norm(net.conv(x, 4, 3, 2, 1, bias=False), tracked=True))
    net.linear(net.relu(net.linear(x, 9)), 3)
    return net


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_twenty_steps_are_those_of_torch_on_masked_weights(clip: float) -> None:
    rule = Sgd(momentum=0.9, weight_decay=0.01, clip=clip)
    program = compiled(small_net(), 0.3, "cross_entropy", 4, rule)
    live = drawn_live(program)
    oracle = Oracle.of(small_net().graph(4), program, 1, rule)
    for p in program.layout.parameters:
        mask = np.reshape(live[p.offset : p.offset + p.size], p.shape)
        value = oracle.values[p.name]
        if value.requires_grad:
            value.data *= value.new_tensor(mask)
            value.register_hook(  # type: ignore[no-untyped-call]
                lambda g, mask=mask: g * g.new_tensor(mask)
            )
    executor = ReferenceExecutor(program.image, np.float64)
    executor.load_mask(bits_of(live))
    executor.load(np.asarray(program.initial(1), np.float64))
    for step in range(20):
        x, y = samples(program, step)
        expected = oracle.step(x, y, 0.05)
        assert executor.step(x, y, as_hyper(rule)) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(stored(executor, np.float64), oracle.vector, rtol=1e-9, atol=1e-9)


def test_a_pool_that_holds_all_weights_is_a_dense_net() -> None:
    made = build(small_net(), loss="cross_entropy", batch=4, density=0.5)
    counts = tuple(made.graph.layout[name].size for name in prunable(small_net().graph(1)))
    full = replace(made, pool=Pool(counts, sum(counts))).program
    dense = build(small_net(), loss="cross_entropy", batch=4).program
    vectors = []
    for program in (full, dense):
        executor = NativeExecutor(program.image)
        if program.capacity:
            executor.load_mask(bits_of(np.ones(program.layout.size, bool)))
        executor.load(program.initial(1))
        for step in range(5):
            executor.step(*samples(program, step), Hyper(0.05))
        vectors.append(stored(executor))
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-5, atol=1e-6)


# ---- every build -----------------------------------------------------------------------------


def everything(executor: Executor, program: Program, rule: Sgd) -> list[bytes]:
    """What a visit leaves behind under one mask and then, without compiling, under another."""
    found: list[object] = []
    for visit in range(2):
        executor.load_mask(bits_of(drawn_live(program, visit, 1.0 - 0.5 * visit)))
        executor.load(program.initial(visit))
        found += [executor.step(*samples(program, i), as_hyper(rule)) for i in range(3)]
        x, y = samples(program, 5)
        found += [*executor.evaluate(x, y, 1), *executor.predict(x), *executor.observe(x)]
        most = [program.tables.bucket // program.tables.n_pruned] * program.tables.n_pruned
        found += [number for place in executor.grow(x, y, most) for number in place]
        idle = replace(as_hyper(rule), lr=0.0, momentum=0.0, keep_statistics=True)
        found.append(executor.step(x, y, idle))
    vectors = [executor.store(), executor.store_live()]
    if rule.momentum:
        vectors.append(executor.store_gradient())
    return [np.array(found).tobytes(), *map(bytes, vectors)]


@settings(max_examples=80)
@given(NETS, LOSSES, st.integers(2, 10), DENSITIES, RULES)
def test_pruned_nets_give_the_same_bits_in_every_build(
    runtimes: dict[str, Path], net: Net, loss: str, batch: int, density: float, rule: Sgd
) -> None:
    program = compiled(net, density, loss, batch, rule)
    expected = everything(ReferenceExecutor(program.image), program, rule)
    for name, runtime in runtimes.items():
        with loaded(runtime):
            found = everything(NativeExecutor(program.image), program, rule)
        assert found == expected, name


def long(net: Net) -> Value:
    """99,000 weights: gaps of more than 65,535, and rows that no host takes at once."""
    return net.linear(net.input, 3)


def large(net: Net) -> Value:
    """Eight samples of a layer have 277,504 floats, of which a host takes a band at once."""
    x = net.relu(net.conv(net.input, 32, 3, 1, 1))
    return net.linear(net.global_avg_pool(net.conv(x, 48, 3, 1, 1)), 3)


def strided(net: Net) -> Value:
    return net.linear(net.conv(net.input, 9, (3, 4), (2, 3), (1, 2, 0, 3)), 2)


def padded(net: Net) -> Value:
    return net.linear(net.conv(net.conv(net.input, 9, 5, 1, "same"), 3, 2, 2, 1), 1)


@pytest.mark.parametrize(
    ("layers", "shape", "batch", "density", "form"),
    [
        (long, (33_000,), 3, 0.0004, GAPS), (large, (20, 20, 1), 8, 0.1, BITMAP),
        (strided, (13, 13, 3), 8, 0.05, GAPS), (strided, (13, 9, 3), 33, 0.9, BITMAP),
        (padded, (7, 7, 3), 10, 0.4, BITMAP), (padded, (1, 15, 4), 1, 0.3, BITMAP),
    ],
)  # fmt: skip
def test_layers_of_odd_shapes_give_the_same_bits_in_every_build(
    runtimes: dict[str, Path], layers: Callable[[Net], Value], shape: tuple[int, ...], batch: int,
    density: float, form: int,
) -> None:  # fmt: skip
    net = Net(shape)
    layers(net)
    rule = Sgd(momentum=0.9, clip=0.1)
    program = compiled(net, density, "mse", batch, rule)
    assert program.tables.live_form == form
    expected = everything(ReferenceExecutor(program.image), program, rule)
    for name, runtime in runtimes.items():
        with loaded(runtime):
            assert everything(NativeExecutor(program.image), program, rule) == expected, name


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan, 3e38, 1e-45, -0.0])
def test_an_extreme_input_gives_the_same_bits_in_every_build(
    runtimes: dict[str, Path], extreme: float
) -> None:
    program = compiled(small_net(), 0.3, "cross_entropy", 3)
    x, y = samples(program)
    x[0, 1, 2, 1] = extreme
    vectors = []
    executors: list[Executor] = [ReferenceExecutor(program.image)]
    for runtime in runtimes.values():
        with loaded(runtime):
            executors.append(NativeExecutor(program.image))
    for executor in executors:
        executor.load_mask(bits_of(drawn_live(program)))
        executor.load(program.initial(2))
        executor.step(x, y, Hyper(0.1))
        vectors.append(stored(executor))
    for vector in vectors[1:]:
        np.testing.assert_array_equal(vector, vectors[0])  # NaN equals NaN here


@pytest.mark.parametrize("density", [0.04, 0.3], ids=["gaps", "bitmap"])
def test_nothing_around_the_memory_is_touched(
    monkeypatch: pytest.MonkeyPatch, density: float
) -> None:
    guard, blocks = bytes(range(64)), []

    def guarded(nbytes: int) -> ctypes.Array[ctypes.c_char]:
        room = (ctypes.c_char * (nbytes + 192))()
        whole = (ctypes.c_char * (nbytes + 128)).from_buffer(room, -ctypes.addressof(room) % 64)
        memoryview(whole).cast("B")[:] = guard + bytes(nbytes) + guard
        blocks.append(whole)
        return (ctypes.c_char * nbytes).from_buffer(whole, 64)

    monkeypatch.setattr(native, "aligned", guarded)
    rule = Sgd(momentum=0.9, prox=0.1)
    program = compiled(small_net(), density, "cross_entropy", 11, rule)
    everything(NativeExecutor(program.image), program, rule)
    # Image, parameters, arena, state, scratch, frozen, x and y.
    assert len(blocks) == 8
    assert all(bytes(b)[:64] == guard == bytes(b)[-64:] for b in blocks)


# ---- what is loaded and stored ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(NETS, DENSITIES, st.integers(0, 99))
def test_what_is_loaded_is_stored_again(
    kind: Callable[[bytes], Executor], net: Net, density: float, seed: int
) -> None:
    program = compiled(net, density)
    live = drawn_live(program, seed)
    executor = kind(program.image)
    executor.load_mask(bits_of(live))
    assert not stored(executor)[live].any()
    vector = np.random.default_rng(seed).normal(size=program.layout.size).astype(np.float32)
    executor.load(vector)
    np.testing.assert_array_equal(stored(executor), np.where(live, vector, 0))
    assert executor.store_live() == vector[live].tobytes()
    executor.load_live(-vector[live])
    np.testing.assert_array_equal(stored(executor), np.where(live, -vector, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_compact_model_is_a_base_and_starts_without_momentum(
    kind: Callable[[bytes], Executor],
) -> None:
    rule = Sgd(momentum=0.9, prox=0.5, correction=True)
    program = compiled(zoo.mlp((6, 7, 3)), 0.4, sgd=rule)
    live, vector = drawn_live(program), np.asarray(program.initial(3))
    hyper = Hyper(0.1, momentum=0.9, prox=0.5, correction=True)
    reached = []
    for load in ("load", "load_live"):
        executor = kind(program.image)
        executor.load_mask(bits_of(live))
        executor.load_correction(np.linspace(-1, 1, len(vector), dtype=np.float32))
        executor.load(vector * 2)
        executor.step(*samples(program), hyper)
        getattr(executor, load)(vector if load == "load" else vector[live])
        for step in range(2):
            executor.step(*samples(program, step), hyper)
        reached.append(bytes(executor.store_live()))
    assert reached[0] == reached[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_does_not_fit_is_refused_with_the_numbers(
    kind: Callable[[bytes], Executor],
) -> None:
    program = compiled(zoo.mlp((6, 7, 3)), 0.4)  # 63 weights, of which 25 live, and 10 biases
    executor = kind(program.image)
    live = drawn_live(program)
    executor.load_mask(bits_of(live))
    executor.load(program.initial(3))
    before = executor.store()
    with pytest.raises(DataError, match=r"26 live weights and the Program memory for 25"):
        executor.load_mask(bits_of(live | (np.arange(73) == np.flatnonzero(~live)[0])))
    with pytest.raises(DataError, match=r"the mask has 3 B; one of 73 coordinates has 10 B"):
        executor.load_mask(b"\x00" * 3)
    with pytest.raises(DataError, match=r"compact vector"):
        executor.load_live(np.zeros(34, np.float32))
    with pytest.raises(DataError, match=r"growth of 21 places in 2 parameters.* bucket=21"):
        executor.grow(*samples(program), [20, 1])
    with pytest.raises(DataError, match=r"growth of 1 places in 1 parameters; the Program has 2"):
        executor.grow(*samples(program), [1])
    assert executor.store() == before
