"""Sums over a device's samples of the features that its net makes of them. Needs no NumPy.

The features are what the last layer takes. No engine has to show them: where that layer is a part
of the identity, they are the outputs of the net, as many at a time as it has outputs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedtiny.device.vectors import copied
from fedtiny.tensors import float_view, has_numpy, zeros
from fedtiny.values import CLASS_SUMS

if TYPE_CHECKING:
    from fedtiny.device.learner import Learner
    from fedtiny.device.visit import Samples
    from fedtiny.layout import Parameter
    from fedtiny.values import FeatureSums

Rows = list[list[float]]
Labelled = Iterator[tuple[list[float], int]]
"""Features and class, sample by sample."""


def summed(learner: Learner, sums: FeatureSums, samples: Samples) -> bytes:
    """The sums as float32, with the parameters that the Learner holds.

    They are added up in float64, sample by sample, and rounded once. Afterwards the Learner's last
    layer is of no use.
    """
    width, classes = learner.program.layout[sums.head].shape
    labelled = _labelled(learner, sums.head, samples)
    if sums.form == CLASS_SUMS:
        rows = _class_sums(labelled, width, classes)
    else:
        rows = (_array_products if has_numpy() else _products)(labelled, width + 1, classes)
    return array("f", [value for row in rows for value in row]).tobytes()


def _class_sums(labelled: Labelled, width: int, classes: int) -> Rows:
    """For each class the sum of f; then the number of samples of each class."""
    by_class, counts = _nothing(classes, width), [0.0] * classes
    for f, label in labelled:
        by_class[label] = _plus(by_class[label], f)
        counts[label] += 1
    return [*by_class, counts]


def _products(labelled: Labelled, width: int, classes: int) -> Rows:
    """The upper triangle of the sum of g g^T; then for each class the sum of g = (f, 1)."""
    triangle = [[0.0] * (width - i) for i in range(width)]
    by_class = _nothing(classes, width)
    for f, label in labelled:
        g = [*f, 1.0]
        for i, scale in enumerate(g):
            triangle[i] = _plus(triangle[i], [scale * value for value in g[i:]])
        by_class[label] = _plus(by_class[label], g)
    return [*triangle, *by_class]


def _array_products(labelled: Labelled, width: int, classes: int) -> Rows:
    """The same bits by NumPy, where a sample's products are one step."""
    import numpy as np

    products, by_class = np.zeros((width, width)), np.zeros((classes, width))
    for f, label in labelled:
        g = np.array([*f, 1.0])
        products += g[:, None] * g
        by_class[label] += g
    return [products[np.triu_indices(width)].tolist(), *by_class.tolist()]


def _labelled(learner: Learner, head: str, samples: Samples) -> Labelled:
    """Those of the samples."""
    weight = learner.program.layout[head]
    width, outputs = weight.shape
    headless = _without_layer(learner, weight.layer)
    for x, y, valid in learner.batches(samples):
        passes = []
        for first in range(0, width, outputs):
            learner.load(_showing(headless, weight, first))
            found = learner.executor.predict(x).tolist()
            passes.append([found[at : at + outputs] for at in range(0, len(found), outputs)])
        for index in range(valid):
            row = [float(value) for shown in passes for value in shown[index]]
            yield row[:width], int(y[index])


def _without_layer(learner: Learner, layer: str) -> memoryview[float]:
    """The Learner's parameters with zeros in this layer."""
    vector = float_view(learner.executor.store())
    for p in learner.program.layout.parameters:
        if p.layer == layer:
            vector[p.offset : p.offset + p.size] = zeros(p.size)
    return vector


def _showing(headless: memoryview[float], weight: Parameter, first: int) -> memoryview[float]:
    """The parameters whose outputs are the features from the ``first`` on, and then zeros."""
    vector, (width, outputs) = copied(headless), weight.shape
    for output, feature in enumerate(range(first, min(first + outputs, width))):
        vector[weight.offset + feature * outputs + output] = 1.0
    return vector


def _nothing(rows: int, width: int) -> Rows:
    return [[0.0] * width for _ in range(rows)]


def _plus(a: list[float], b: list[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]
