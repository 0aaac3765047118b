"""The first layers run patch by patch: every bit of what they make stays, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import memory
from fedtiny.engine.builder import Net, Value
from fedtiny.engine.compile import build
from fedtiny.engine.ir import Graph, Region, Window
from fedtiny.engine.kernels.patch import crop, paste
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.ops import TABLE
from fedtiny.engine.patching import patched, stage_ends
from fedtiny.engine.program import Executor, Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import cifar_conv, digits_mlp, mobilenet_v2
from fedtiny.errors import CompileError, GraphError
from fedtiny.layout import RANGE
from tests.engine.nets import Array
from tests.engine.test_equality import loaded

Draw = st.DrawFn


@pytest.fixture(autouse=True)
def first_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the last bytes of an arena is not what is tested here."""
    monkeypatch.setattr(memory, "MOVES", 4)


@st.composite
def local_nets(draw: Draw, norms: bool = True) -> Net:
    """Convolutions, poolings, activations and shortcuts over images, then a head."""
    net = Net((draw(st.integers(5, 12)), draw(st.integers(5, 12)), draw(st.integers(1, 3))))
    value = net.input
    for _ in range(draw(st.integers(1, 4))):
        value = draw(st.sampled_from([_conv, _depthwise, _inverted, _pool]))(draw, net, value)
        if norms and draw(st.booleans()):
            value = net.batch_norm(value)
    net.linear(net.relu(net.conv(value, 4, 1)), 3)
    return net


def _conv(draw: Draw, net: Net, x: Value) -> Value:
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return net.relu6(net.conv(x, draw(st.integers(1, 5)), kernel, stride, "same"))


def _depthwise(draw: Draw, net: Net, x: Value) -> Value:
    channels = x.shape[-1]
    return net.relu(net.conv(x, channels, 5, draw(st.integers(1, 2)), "same", groups=channels))


def _inverted(draw: Draw, net: Net, x: Value) -> Value:
    inner = net.relu6(net.conv(x, 2 * x.shape[-1], 1))
    inner = net.relu6(net.conv(inner, inner.shape[-1], 3, padding=1, groups=inner.shape[-1]))
    return net.add(net.conv(inner, x.shape[-1], 1), x)


def _pool(draw: Draw, net: Net, x: Value) -> Value:
    if min(x.shape[:2]) < 3:
        return net.relu(net.conv(x, 4, 1))
    pool = draw(st.sampled_from([net.max_pool, net.avg_pool]))
    return pool(x, 2) if draw(st.booleans()) else pool(x, 3, 2, draw(st.integers(0, 1)))


def compiled(net: Net, end: str, tiles: int, **arguments: Any) -> tuple[Program, Program]:
    """A net's Program, and that of its patches up to a tensor."""

    class Patched:
        sample_shape = net.sample_shape

        def graph(self, batch: int) -> Graph:
            return patched(net.graph(batch), end, tiles)

    made = [build(of, loss="cross_entropy", batch=2, **arguments) for of in (net, Patched())]
    return made[0].program, made[1].program


def samples(program: Program, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *program.sample_shape)).astype(np.float32)
    return x, rng.integers(0, 3, 2).astype(np.int32)


def vector_of(program: Program) -> Array:
    """What it starts from; int8 stores values from -3 to 4."""
    vector = np.array(program.initial(3))
    for p in program.layout.parameters:
        if p.name.endswith(RANGE):
            vector[p.offset : p.offset + 2] = -3, 4
    return vector


def stepped(executor: Executor, program: Program, dtype: type = np.float32) -> tuple[float, Array]:
    executor.load(vector_of(program).astype(dtype))
    x, y = samples(program, 3)
    return executor.step(x.astype(dtype), y, Hyper(0.1)), np.frombuffer(executor.store(), dtype)


def any_stage(draw: Any, net: Net) -> tuple[str, int]:
    ends = stage_ends(net.graph(1))
    end = draw(st.sampled_from(ends))
    return end, draw(st.integers(2, min(4, *net.graph(1).tensors[end].shape[1:3])))


@settings(max_examples=5, deadline=None)
@given(st.data(), local_nets())
def test_patches_change_no_bit_of_a_prediction_and_train_exactly(
    data: st.DataObject, net: Net
) -> None:
    whole, cut = compiled(net, *any_stage(data.draw, net))
    x, _ = samples(whole, 1)
    executors = [NativeExecutor(program.image) for program in (whole, cut)]
    for executor in executors:
        executor.load(whole.initial(2))
    expected, found = (bytes(executor.predict(x)) for executor in executors)
    assert found == expected
    pair = [stepped(ReferenceExecutor(p.image, np.float64), p, np.float64) for p in (whole, cut)]
    assert pair[0][0] == pair[1][0]
    assert np.abs(pair[0][1] - pair[1][1]).max() <= 1e-9
    native, reference = (stepped(e(cut.image), cut) for e in (NativeExecutor, ReferenceExecutor))
    assert native[1].tobytes() == reference[1].tobytes()
    assert np.abs(native[1] - pair[0][1]).max() <= 1e-4


@settings(max_examples=5, deadline=None)
@given(local_nets(norms=False))
def test_int8_patches_change_no_bit_of_a_prediction(net: Net) -> None:
    whole, cut = (
        build(net, loss="cross_entropy", batch=2, dtype="int8", patches=k).program for k in (1, 2)
    )
    assert whole.layout == cut.layout
    x, y = samples(whole, 1)
    predicted, trained = [], []
    for program in (whole, cut):
        for make in (ReferenceExecutor, NativeExecutor):
            executor: Executor = make(program.image)
            executor.load(vector_of(program))
            predicted.append(bytes(executor.predict(x)))
            executor.step(x, y, Hyper(0.1))
            trained.append(bytes(executor.store()))
    assert len(set(predicted)) == 1
    assert trained[0] == trained[1]
    assert trained[2] == trained[3]


def small_net() -> Net:
    net = Net((8, 8, 2))
    x = net.relu(net.conv(net.input, 8, 3, padding=1, name="first"))
    x = net.relu(net.conv(x, 2, 3, stride=2, padding=1, name="second"))
    net.linear(x, 3)
    return net


def test_a_patch_is_padded_at_the_border_of_the_image_alone() -> None:
    graph = patched(small_net().graph(1), "second", 2)
    shapes = {name: tensor.shape[1:3] for name, tensor in graph.tensors.items()}
    # 2 x 2 outputs see rows 0 to 3 of the first layer (-1 is padding), which see rows 0 to 4.
    assert shapes["first@0.0"] == (4, 4)
    assert shapes["input@0.0"] == (5, 5)
    # The other corner: rows 3 to 7, which see rows 2 to 7.
    assert shapes["first@1.1"] == (5, 5)
    assert shapes["input@1.1"] == (6, 6)
    windows = {op.outputs[0]: op.attributes for op in graph.ops}
    padding = {name: w.padding for name, w in windows.items() if isinstance(w, Window)}
    assert padding["second@0.0"] == (1, 1, 0, 0)
    assert padding["second@1.1"] == (0, 0, 0, 0)
    assert padding["first@1.1"] == (0, 0, 1, 1)


@pytest.mark.parametrize("plan", ["last:1", "all"])
def test_patches_lower_the_arena_of_a_frozen_stage_and_of_one_that_trains(plan: str) -> None:
    arena = [
        build(cifar_conv(), loss="cross_entropy", plan=plan, patches=k).memory.arena_bytes
        for k in (1, 4)
    ]
    assert arena[1] < 0.6 * arena[0]


def test_auto_cuts_where_it_spares_memory_and_nowhere_else() -> None:
    net = mobilenet_v2(48)
    whole, cut = (
        build(net, loss="cross_entropy", plan="last:1", patches=k).memory.arena_bytes
        for k in (1, "auto")
    )
    assert cut < 0.5 * whole
    flat = build(digits_mlp(), loss="cross_entropy", patches="auto")
    assert all(op.kind != "paste" for op in flat.graph.ops)


def test_a_stage_ends_where_no_shortcut_leads_past_and_before_statistics_of_the_image() -> None:
    net = Net((6, 6, 2))
    x = net.conv(net.input, 4, 1, name="a")
    x = net.add(net.relu(net.conv(x, 4, 3, padding=1, name="b")), x)
    x = net.group_norm(net.conv(x, 4, 1, name="c"), 2)
    net.linear(net.conv(x, 4, 1, name="d"), 2)
    assert stage_ends(net.graph(1)) == ("a", "add1", "c")
    with pytest.raises(CompileError, match="no stage of patches ends at 'b'; one may end at"):
        patched(net.graph(1), "b", 2)
    with pytest.raises(CompileError, match="6 x 6 places; it cannot be cut into 7 x 7 tiles"):
        patched(net.graph(1), "a", 7)


def test_a_net_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(CompileError, match="no first stage that can be cut into 2 x 2 patches"):
        build(digits_mlp(), loss="cross_entropy", patches=2)
    with pytest.raises(CompileError, match="patches must be 1 or more along each side"):
        build(digits_mlp(), loss="cross_entropy", patches="many")


# ---- crop and paste --------------------------------------------------------------------------


def test_a_region_that_leaves_the_image_is_refused() -> None:
    for region in (Region(3, 0, 2, 1), Region(0, 0, 0, 1), Region(0, 2, 1, 3)):
        with pytest.raises(GraphError, match="there is no Region"):
            TABLE["crop"].shape([(1, 4, 4, 2)], region, ())


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(1, 4))
def test_crop_and_paste_are_each_others_gradients(top: int, left: int, h: int, w: int) -> None:
    """<dy, J dx> = <J' dy, dx> for all dx, dy, as they are linear."""
    region, rng = Region(top, left, min(h, 4 - top), min(w, 4 - left)), np.random.default_rng(0)
    base, dy = rng.normal(size=(2, 2, 4, 4, 3))
    part = rng.normal(size=(2, region.height, region.width, 3))
    y, back, of_base, of_part = np.empty_like(part), *np.empty((2, 2, 4, 4, 3)), np.empty_like(part)
    crop(base, y, region)
    paste(None, part, back, region)
    assert np.isclose((part * y).sum(), (back * base).sum())
    whole = np.empty_like(base)
    paste(base, part, whole, region)
    paste(dy, None, of_base, region)
    crop(dy, of_part, region)
    assert np.isclose((dy * whole).sum(), (of_base * base).sum() + (of_part * part).sum())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_patches_that_train_give_the_same_bits_in_every_build(
    runtimes: dict[str, Path], dtype: str
) -> None:
    net = small_net()
    program = build(net, loss="cross_entropy", batch=2, dtype=dtype, patches=2).program
    executors: list[Executor] = [ReferenceExecutor(program.image)]
    for runtime in runtimes.values():
        with loaded(runtime):
            executors.append(NativeExecutor(program.image))
    assert len({stepped(executor, program)[1].tobytes() for executor in executors}) == 1
