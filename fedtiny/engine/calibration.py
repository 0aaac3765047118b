"""The ranges of activations for int8, from samples: what quantising a trained model takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.engine.compile import Compilable, build
from fedtiny.engine.native import NativeExecutor
from fedtiny.errors import DataError
from fedtiny.layout import RANGE
from fedtiny.quantised import LEAST, extent

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.engine.program import Program
    from fedtiny.layout import Layout
    from fedtiny.tensors import Float32

BATCH = 32
"""Samples of which each gives one least and one greatest value; a range is their means."""


def calibrated(net: Compilable, vector: Float32, x: npt.ArrayLike, *, loss: str) -> Float32:
    """The model with the ranges that its activations have on samples, in float32.

    Between the mean of the least values of the batches and that of the greatest ones, so that no
    single sample decides it; and as far again beyond (`fedtiny.engine.program.MARGIN`).

    Args:
        net: The net.
        vector: The model, in the Layout of ``compile(..., quantisable=True)``.
        x: Some hundreds of samples, in the shape that the model takes, or flat rows as a device
            stores them.
        loss: The loss that the net is trained with.

    Raises:
        CompileError: int8 does not have all layers of the net.
        DataError: There are no samples, or an activation is 0 on all of them.
    """
    samples = np.asarray(x, np.float32)
    if not samples.size:
        raise DataError(f"calibration needs samples, and there are none; give {BATCH} or more")
    if not np.isfinite(samples).all():
        raise DataError("a calibration sample holds NaN or infinity; leave it out")
    batch = min(BATCH, len(samples))
    built = build(
        net, loss=loss, batch=batch, plan="last:1", quantisable=True, minimise="time"
    )  # nothing trains here
    program = built.program
    samples = _stored(program, samples)
    extremes = np.array([*_extremes(program, vector, samples)], np.float64)
    made = np.array(vector, np.float32)
    ranges = np.array([*program.widened(extremes.mean(axis=0).ravel().tolist())]).reshape(-1, 2)
    for parameter, pair in zip(program.layout.activations, ranges, strict=True):
        made[parameter.offset : parameter.offset + 2] = pair
    _check(program.layout, made, len(samples))
    return made


def _stored(program: Program, samples: Float32) -> Float32:
    """The samples with their axes in the order in which a device stores them."""
    if not program.axes or samples.shape[1:] != program.sample_shape:
        return samples
    return np.ascontiguousarray(samples.transpose(0, *(1 + axis for axis in program.axes)))


def _extremes(program: Program, vector: Float32, samples: Float32) -> Iterator[Float32]:
    """The least and the greatest value of every activation, batch by batch."""
    executor = NativeExecutor(program.image)
    executor.load(np.ascontiguousarray(vector, np.float32))
    for start in range(0, len(samples), program.batch):
        taken = samples[start : start + program.batch]
        batch = np.resize(taken, (program.batch, *samples.shape[1:]))
        observed = executor.calibrate(batch, len(taken))
        found = {n: (m.min, m.max) for n, m in zip(program.forward_names, observed, strict=True)}
        of_input = (taken.min(), taken.max())
        names = (p.name.removesuffix(RANGE) for p in program.layout.activations)
        yield np.array([found.get(name, of_input) for name in names], np.float32)


def _check(layout: Layout, vector: Float32, count: int) -> None:
    """DataError for an activation that has no range."""
    for parameter in layout.activations:
        name = parameter.name.removesuffix(RANGE)
        lo, hi = vector[parameter.offset : parameter.offset + 2].tolist()
        if not math.isfinite(extent(lo, hi)):
            raise DataError(
                f"the output of {name} runs from {lo:g} to {hi:g} on {count:,} calibration "
                "samples; int8 needs a model with finite activations"
            )
        if extent(lo, hi) < LEAST:
            raise DataError(
                f"the output of {name} is 0 on all {count:,} calibration samples, which leaves "
                "int8 no range for it: give samples of the task, or a model that has been trained"
            )
