"""Sums of features, against the features that NumPy computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedtiny.device.feature_sums import summed
from fedtiny.device.learner import Key, Learner
from fedtiny.engine import native
from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp
from fedtiny.values import CLASS_SUMS, PRODUCTS, SUMS, FeatureSums, Instruction

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.tensors import Float32, Float64

WIDTH, CLASSES, COUNT = 11, 4, 9
FORMS = (CLASS_SUMS, PRODUCTS)


def program(batch: int = 4) -> Program:
    return compile(mlp((3, WIDTH, CLASSES)), loss="cross_entropy", ram="64KiB", batch=batch)


def head(form: str) -> FeatureSums:
    return FeatureSums("linear2.weight", form)


def sums_of(executor: str, form: str, batch: int = 4) -> Float32:
    learner = Learner(program(batch), executor)
    learner.load(learner.program.initial(5))
    return np.frombuffer(summed(learner, head(form), learner.samples(*given())), np.float32)


def given() -> tuple[Float32, list[int]]:
    x = np.random.default_rng(2).normal(size=(COUNT, 3)).astype(np.float32)
    return x, [3, 0, 0, 1, 3, 3, 0, 1, 0]


def features() -> tuple[Float64, Float64]:
    """What the last layer takes, and the classes as rows of 0 and 1."""
    made = program().layout.unflatten(np.asarray(program().initial(5)))
    x, y = given()
    hidden = x.astype(float) @ made["linear1.weight"] + made["linear1.bias"]
    return np.maximum(hidden, 0), np.eye(CLASSES)[y]


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_features_are_summed_by_class(executor: str, batch: int) -> None:
    f, y = features()
    sums, counts = np.split(sums_of(executor, CLASS_SUMS, batch), [CLASSES * WIDTH])
    np.testing.assert_allclose(sums.reshape(CLASSES, WIDTH), y.T @ f, rtol=1e-5)
    assert counts.tolist() == [4, 2, 0, 3]


@pytest.mark.parametrize("executor", ["native", "reference"])
def test_products_are_an_upper_triangle_and_sums_by_class(executor: str) -> None:
    f, y = features()
    g = np.hstack([f, np.ones((COUNT, 1))])
    upper = np.triu_indices(WIDTH + 1)
    found = sums_of(executor, PRODUCTS)
    assert found.size == head(PRODUCTS).floats(program().layout)
    triangle, by_class = np.split(found, [len(upper[0])])
    np.testing.assert_allclose(triangle, (g.T @ g)[upper], rtol=1e-5)
    np.testing.assert_allclose(by_class.reshape(CLASSES, WIDTH + 1), y.T @ g, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_executors_and_batches_give_the_same_bits(form: str) -> None:
    assert (
        len({sums_of(e, form, b).tobytes() for e in ("native", "reference") for b in (1, 4)}) == 1
    )


def test_a_visit_sends_sums_and_leaves_the_learner_fit_for_the_next() -> None:
    learner = Learner(program())
    base, samples = learner.program.initial(5), learner.samples(*given())
    asked = Instruction(SUMS, sums=head(CLASS_SUMS))
    once, twice = (learner.visit(asked, base, lambda _: samples, Key()) for _ in range(2))
    assert once == twice
    assert (once.ranges, once.samples) == (((0, CLASSES * (WIDTH + 1)),), COUNT)


def test_a_visit_costs_as_many_passes_as_show_all_features() -> None:
    # 11 features, 4 at a time: three passes over three batches of four.
    footprint = program().footprint
    assert head(CLASS_SUMS).passes(program().layout) == 3
    asked = Instruction(SUMS, sums=head(CLASS_SUMS))
    assert asked.macs({"support": COUNT}, footprint) == 3 * 3 * footprint.macs_per_forward


DEVICE = """
import json, sys
if sys.argv[2] == "without":
    sys.modules["numpy"] = None
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.program import Program
from fedtiny.values import FeatureSums, Instruction

learner = Learner(Program(open(sys.argv[1], "rb").read()), "native")
x = [[0.5, -1.0, 2.0][i % 3] * i for i in range(27)]
samples = learner.samples(x, [i % 4 for i in range(9)])
for form in ("classes", "products"):
    asked = Instruction("sums", sums=FeatureSums("linear2.weight", form))
    print(learner.visit(asked, learner.program.initial(3), lambda _: samples, Key()).values.hex())
"""


def test_a_board_without_numpy_gives_the_same_bits(tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("the reference executor needs NumPy")
    image = tmp_path / "program.image"
    image.write_bytes(program().image)
    found = [
        subprocess.run(
            [sys.executable, "-c", DEVICE, str(image), how], check=True, capture_output=True
        ).stdout
        for how in ("with", "without")
    ]
    assert found[0] == found[1]
    assert len(found[0].split()) == 2
