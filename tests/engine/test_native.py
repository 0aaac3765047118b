"""The native runtime: one arithmetic in every build, the stated memory, errors that teach."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import native
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Hyper
from fedtiny.engine.runtime import build
from fedtiny.errors import DataError, ImageError, RunError
from tests.engine import handmade
from tests.engine.handmade import CLIP, CORRECTION, MOMENTUM, PROX, mlp
from tests.engine.perceptron import Perceptron

EVERYTHING = MOMENTUM | CLIP | PROX | CORRECTION
FEATURES = (0, CLIP, EVERYTHING)
CONV_NET_FLOATS = 3 * 3 * 2 * 4 + 4 + 4 + 4 + 2 * 2 * 4 + 4 * 3 + 3
MOVING = Hyper(0.05, momentum=0.9, weight_decay=0.01, clip=0.5, prox=0.1, correction=True)


def samples(widths: list[int], loss: str, batch: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, widths[0])).astype(np.float32)
    if loss == "mse":
        return x, rng.normal(size=(batch, widths[-1])).astype(np.float32)
    return x, rng.integers(0, widths[-1], batch).astype(np.int32)


def initial(widths: list[int]) -> Any:
    size = sum((a + 1) * b for a, b in pairwise(widths))
    return (0.5 * np.random.default_rng(size).normal(size=size)).astype(np.float32)


@pytest.fixture(autouse=True)
def fresh_library() -> Iterator[None]:
    """What one test loads, no other sees."""
    yield
    native.library.cache_clear()
    native.available.cache_clear()


# ---- one arithmetic --------------------------------------------------------------------------

NETS: list[tuple[list[int], str, str, int, int]] = [
    ([1, 32, 32, 1], "tanh", "mse", 1, 0),
    ([1, 32, 32, 1], "tanh", "mse", 10, 0),
    ([1, 40, 40, 1], "relu", "mse", 3, EVERYTHING),
    ([20, 16, 5], "relu", "cross_entropy", 1, EVERYTHING),
    ([13, 24, 17], "sigmoid", "cross_entropy", 10, MOMENTUM),
    ([7, 9, 11, 2], "relu", "mse", 3, PROX),
    ([3, 39, 1, 8], "tanh", "mse", 10, CLIP),
    ([1, 1, 1], "tanh", "mse", 1, CLIP | CORRECTION),
    ([40, 33, 31, 29, 3], "relu", "cross_entropy", 3, CLIP),
    ([5, 6, 7, 1], "sigmoid", "mse", 1, MOMENTUM | CLIP),
]


def trained_digest(image: bytes, features: int, vector: Any, batches: list[Any]) -> str:
    """SHA-256 of the losses, a step a batch, and of all that can be asked for then."""
    executor = NativeExecutor(image)
    state = hashlib.sha256()
    executor.load(vector)
    if features & CORRECTION:
        executor.load_correction(np.float32(0.01) * vector)
    hyper = Hyper(
        0.02,
        momentum=0.9 * bool(features & MOMENTUM),
        weight_decay=0.01 * bool(features & PROX),
        clip=0.3 * bool(features & CLIP),
        prox=0.1 * bool(features & PROX),
        correction=bool(features & CORRECTION),
    )
    for x, y in batches:
        state.update(np.float64(executor.step(x, y, hyper)).tobytes())
    state.update(executor.store())
    state.update(np.float64(executor.evaluate(x, y, len(x))[0]).tobytes())
    state.update(executor.predict(x))
    return state.hexdigest()


def perceptron_digest(net: tuple[list[int], str, str, int, int], steps: int) -> str:
    widths, activation, loss, batch, features = net
    batches = [samples(widths, loss, batch, step % 20) for step in range(steps)]
    image = mlp(widths, activation, loss, batch, features)
    return trained_digest(image, features, initial(widths), batches)


def conv_digest(features: int, steps: int) -> str:
    rng = np.random.default_rng(features)
    vector = (0.5 * rng.normal(size=CONV_NET_FLOATS)).astype(np.float32)
    batches = [
        (rng.normal(size=(2, 6, 5, 2)).astype(np.float32), np.array([k % 3, 2], np.int32))
        for k in range(steps)
    ]
    return trained_digest(handmade.conv_net(features), features, vector, batches)


def test_every_build_gives_the_same_bits(
    runtimes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {}
    for name, path in runtimes.items():
        monkeypatch.setenv("FEDTINY_RUNTIME", str(path))
        native.library.cache_clear()
        digests[name] = [perceptron_digest(net, steps=200) for net in NETS]
        digests[name] += [conv_digest(features, steps=50) for features in FEATURES]
    assert all(found == digests["plain"] for found in digests.values()), digests
    assert len(set(digests["plain"])) == len(NETS) + len(FEATURES)


@settings(max_examples=120)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.sampled_from(["relu", "tanh", "sigmoid"]),
    st.sampled_from(["mse", "cross_entropy"]),
    st.integers(1, 12),
    st.sampled_from([(0.0, 0.0, 0.0, 0.0), (0.9, 0.01, 0.2, 0.3), (0.0, 0.0, 1e-3, 0.0)]),
    st.booleans(),
)
def test_the_orders_are_those_of_the_header(
    widths: list[int],
    activation: str,
    loss: str,
    batch: int,
    rule: tuple[float, float, float, float],
    in_place: bool,
) -> None:
    momentum, decay, clip, prox = rule
    features = (momentum > 0) * MOMENTUM | (clip > 0) * CLIP | (prox > 0) * PROX
    executor = NativeExecutor(mlp(widths, activation, loss, batch, features, in_place))
    judge = Perceptron(widths, activation, loss, initial(widths))
    executor.load(initial(widths))
    for step in range(3):
        x, y = samples(widths, loss, batch, step)
        found = executor.step(x, y, Hyper(0.1, momentum, decay, clip, prox))
        assert found == judge.step(x, y, (0.1, momentum, decay, clip, prox))
    assert bytes(executor.store()) == judge.vector.tobytes()
    assert bytes(executor.predict(x)) == judge.forward(x)[-1].tobytes()


def test_a_gradient_summed_in_a_buffer_gives_the_same_step() -> None:
    """+0 + g is g, as no sum that starts at +0 is -0."""
    x = np.linspace(-1, 1, 120, dtype=np.float32)
    vectors = []
    for buffered in (False, True):
        executor = NativeExecutor(handmade.conv_net(buffered=buffered))
        executor.load(np.linspace(-0.5, 0.5, CONV_NET_FLOATS, dtype=np.float32))
        executor.step(x, np.array([0, 2], np.int32), Hyper(0.1))
        vectors.append(bytes(executor.store()))
    assert vectors[0] == vectors[1]


def test_codes_that_name_no_tap_add_nothing() -> None:
    """The op that makes the codes is cut off, so they are what the memory holds: all ones. Three
    taps of a row need two bits, so 3 names none of them."""
    net = handmade.Image(batch=1)
    x, label = net.tensor(handmade.INPUT, 1, 3, 1), net.tensor(handmade.LABELS, 1, 3, 1)
    y, d, dx = (net.tensor(handmade.ARENA, 1, n, 1) for n in (3, 3, 3))
    codes, total = net.tensor(handmade.ARENA, 1, 1, dtype=1), net.tensor(handmade.ARENA, 1)
    dy = net.tensor(handmade.ARENA, 1, 1, 1)
    net.op(handmade.RELU, x, y)
    net.op(handmade.MSE, y, label, d, total)
    net.op(handmade.MAX_POOL_DX, dy, codes, dx, words=(1, 1, 0, 0, 0, 0, 0, 1, 3))
    executor = NativeExecutor(net.bytes(1, (x, label, y, total)))
    words = np.frombuffer(memoryview(executor._arena).cast("B"), np.uint32)
    for code, expected in ((3, [0.0, 0.0, 0.0]), (2, [0.0, 0.0, 5.0])):
        words[net.offsets[codes] // 4] = code
        words.view(np.float32)[net.offsets[dy] // 4] = 5.0
        executor.step(np.zeros(3, np.float32), np.zeros(3, np.float32), Hyper(0.1))
        found = words.view(np.float32)[net.offsets[dx] // 4 :][:3]
        assert found.tolist() == expected


def test_a_product_of_minus_zero_leaves_minus_zero_as_it_is() -> None:
    """g starts at +0: +0 + (0 * -1) = +0, and -0 - lr * +0 = -0; -0 - lr * -0 would be +0."""
    executor = NativeExecutor(mlp([8, 16], loss="cross_entropy"))
    vector = np.full(8 * 16 + 16, -0.0, np.float32)
    executor.load(vector)
    executor.step(np.zeros(8, np.float32), np.zeros(1, np.int32), Hyper(0.5))
    assert bytes(executor.store())[: 8 * 16 * 4] == vector[: 8 * 16].tobytes()


def test_relu_lets_nan_pass() -> None:
    executor = NativeExecutor(mlp([1, 3, 2], "relu"))
    executor.load(initial([1, 3, 2]))
    assert np.isnan(executor.predict(np.array([np.nan], np.float32))).all()


# ---- what is written, and what is not --------------------------------------------------------


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_group_that_is_not_selected_keeps_its_bits(group: int) -> None:
    widths = [6, 10, 9, 4]
    executor = NativeExecutor(mlp(widths, "tanh", "mse", 3, EVERYTHING))
    before = initial(widths)
    executor.load(before)
    executor.load_correction(before)
    for step in range(5):
        hyper = Hyper(0.1, 0.9, 0.1, 0.5, 0.1, groups=1 << group, correction=True)
        executor.step(*samples(widths, "mse", 3, step), hyper)
    changed = np.frombuffer(executor.store(), np.uint32) != before.view(np.uint32)
    starts = np.cumsum([0] + [(a + 1) * b for a, b in pairwise(widths)])
    selected = np.zeros_like(changed)
    selected[starts[group] : starts[group + 1]] = True
    assert not changed[~selected].any()
    assert changed[selected].any()


def test_nothing_around_the_memory_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, blocks = bytes(range(64)), []

    def guarded(nbytes: int) -> ctypes.Array[ctypes.c_char]:
        whole = (ctypes.c_char * (nbytes + 128)).from_buffer_copy(guard + bytes(nbytes) + guard)
        blocks.append(whole)
        return (ctypes.c_char * nbytes).from_buffer(whole, 64)

    monkeypatch.setattr(native, "aligned", guarded)
    for widths, activation, loss, batch, features in NETS:
        executor = NativeExecutor(mlp(widths, activation, loss, batch, features))
        executor.load(initial(widths))
        x, y = samples(widths, loss, batch, 0)
        executor.step(x, y, Hyper(0.1))
        executor.evaluate(x, y, batch)
        executor.calibrate(x, batch)
        executor.store()
    assert len(blocks) == 8 * len(NETS)
    assert all(bytes(b)[:64] == guard == bytes(b)[-64:] for b in blocks)


def test_loading_again_forgets_everything() -> None:
    widths = [6, 10, 4]
    executor = NativeExecutor(mlp(widths, "relu", "mse", 3, EVERYTHING))
    executor.load_correction(initial(widths))
    vectors = []
    for _ in range(2):
        executor.load(initial(widths))
        for step in range(4):
            executor.step(*samples(widths, "mse", 3, step), MOVING)
        vectors.append(bytes(executor.store()))
    assert vectors[0] == vectors[1]


def test_the_stored_gradient_is_the_momentum() -> None:
    """After a step with lr = 0 and momentum = 0; then w - lr g is what a plain step gives."""
    widths = [6, 10, 4]
    executor = NativeExecutor(mlp(widths, "relu", "mse", 3, MOMENTUM))
    executor.load(initial(widths))
    x, y = samples(widths, "mse", 3, 0)
    executor.step(x, y, Hyper(0.0))
    gradient = np.frombuffer(executor.store_gradient(), np.float32)
    executor.step(x, y, Hyper(0.1))
    expected = initial(widths) - np.float32(0.1) * gradient
    assert bytes(executor.store()) == expected.tobytes()


def test_only_the_valid_samples_of_a_batch_are_evaluated() -> None:
    executor = NativeExecutor(mlp([2, 3], loss="cross_entropy", batch=4))
    executor.load(np.array([1, 0, 0, 0, 1, 0, 0, 0, 0], np.float32))
    x = np.array([[9, 0], [0, 9], [9, 0], [9, 9]], np.float32)
    y = np.array([0, 1, 1, -7], np.int32)  # the padding's label is never read
    assert executor.evaluate(x, y, 3)[1:] == (3, 2)
    first, second, third = (executor.evaluate(x, y, n)[0] for n in (1, 2, 3))
    assert first < 0.01 < second + 9 < third + 0.02
    assert executor.evaluate(x, y, 0) == (0.0, 0, 0)


def test_moments_are_those_of_the_valid_samples() -> None:
    executor = NativeExecutor(mlp([1, 2, 1], "relu", batch=3))
    executor.load(np.array([1, -1, 0, 0, 1, 1, 0], np.float32))
    linear, relu, output = executor.calibrate(np.array([2, -3, 50], np.float32), 2)
    assert (linear.count, linear.sum, linear.sum_squares) == (4, 0.0, 2 * 4 + 2 * 9)
    assert (linear.min, linear.max) == (-3.0, 3.0)
    assert (relu.count, relu.sum, relu.min, relu.max) == (4, 5.0, 0.0, 3.0)
    assert (output.count, output.sum, output.sum_squares) == (2, 5.0, 4 + 9)


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(3, np.float32), np.zeros(1, np.int32), r"x must be 2 .*float32.*got 12 bytes"),
        (np.zeros(2), np.zeros(1, np.int32), r"x must be 2 .*float32.*'d'"),
        (np.zeros((4, 2), np.float32)[::2, 0], np.zeros(1, np.int32), r"contiguous"),
        (np.zeros(2, np.float32), np.zeros(1, np.int64), r"y must be 1 .*int32.*'l'"),
        (np.zeros(2, np.float32), np.zeros(1, np.float32), r"y must be 1 .*int32.*'f'"),
        (np.zeros(2, np.float32), np.array([5], np.int32), r"label 5 .* 5 classes 0 to 4"),
    ],
)
def test_samples_of_another_kind_are_named(x: Any, y: Any, message: str) -> None:
    executor = NativeExecutor(mlp([2, 5], loss="cross_entropy"))
    vector = initial([2, 5])
    executor.load(vector)
    with pytest.raises(DataError, match=message):
        executor.step(x, y, Hyper(0.1))
    assert bytes(executor.store()) == vector.tobytes()


def test_plain_bytes_are_samples_too() -> None:
    executor = NativeExecutor(mlp([2, 5], loss="cross_entropy"))
    executor.load(initial([2, 5]).tobytes())
    x, y = samples([2, 5], "cross_entropy", 1, 0)
    assert bytes(executor.predict(x.tobytes())) == bytes(executor.predict(x))
    assert executor.evaluate(x.tobytes(), y.tobytes(), 1) == executor.evaluate(x, y, 1)


@pytest.mark.parametrize("name", ["momentum", "clip", "prox", "correction"])
def test_a_hyper_parameter_without_memory_is_refused(name: str) -> None:
    executor = NativeExecutor(mlp([2, 5]))
    executor.load(initial([2, 5]))
    settings: dict[str, Any] = {name: True if name == "correction" else 0.5}
    with pytest.raises(ImageError, match=rf"{name}.*sgd=Sgd"):
        executor.step(*samples([2, 5], "mse", 1, 0), Hyper(0.1, **settings))


def test_a_refused_image_is_named_with_its_status_and_a_remedy() -> None:
    with pytest.raises(ImageError, match=r"checksum \(FT_E_CHECKSUM\); fetch the image again"):
        NativeExecutor(mlp([2, 5])[:-1] + b"!")


def test_without_a_library_it_warns_once_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDTINY_RUNTIME", raising=False)
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    native.library.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"reference executor") as caught:
        assert not native.available()
    assert native.REBUILD in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available()
    with pytest.raises(RunError, match="no native runtime"):
        native.check_image(handmade.mlp([1, 1]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("unsigned ft_abi(void) { return 99; }", "has ABI 99, this fedtiny needs"),
        ("int something_else;", "cannot be loaded: .*ft_abi"),
    ],
)
def test_a_library_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    library = tmp_path / "other.so"
    (tmp_path / "other.c").write_text(source)
    flags = ["-shared", "-fPIC", "-o", str(library), str(tmp_path / "other.c")]
    subprocess.run([*build.compiler(), *flags], check=True)
    monkeypatch.setenv("FEDTINY_RUNTIME", str(library))
    native.library.cache_clear()
    with pytest.raises(RunError, match=message):
        native.library()


def test_a_variant_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = build.variants_here()[0]
    monkeypatch.setenv("FEDTINY_RUNTIME", name)
    native.library.cache_clear()
    assert native.library()._name.endswith(f"libfedtiny_{name}.so")


def test_the_python_constants_are_those_of_the_header() -> None:
    header = (build.HERE / "ft_runtime.h").read_text()
    assert f"#define FT_ABI {native.ABI} " in header
    codes = re.findall(r"\bFT_(?:E_)?(\w+) = (\d+)", header[: header.index("} ft_status;")])
    assert {name: int(code) for name, code in codes} == {s.name: s for s in native.Status}
    assert all(status.meaning and status.remedy for status in list(native.Status)[1:])
