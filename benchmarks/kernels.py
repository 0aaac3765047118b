"""Microseconds of one training step, on one core, inside the C runtime.

    python benchmarks/kernels.py [variant]

The work of a step is 6 FLOP a weight and sample, less 2 for the first layer, which needs no
gradient by its input. The peak is what separate multiplications and additions in registers reach.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedtiny.engine import native
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.runtime import build
from fedtiny.engine.zoo import mlp

HERE = Path(__file__).parent
BATCHES, REPEATS, SECONDS = 32, 7, 0.05


@cache
def timed_library(variant: str = build.variants_here()[-1]) -> ctypes.CDLL:
    """The runtime with the timing loops beside it."""
    folder = tempfile.mkdtemp()
    flags = [str(HERE / "kernels.c"), f"-I{build.HERE}", "-Wno-unused-function"]
    (path,) = build.build(folder, [variant], extra_flags=flags)
    library = ctypes.CDLL(str(path))
    library.bench_steps.restype = library.bench_peak.restype = ctypes.c_double
    return library


def peak_flops(library: ctypes.CDLL | None = None) -> float:
    """FLOP/s of one core with separate multiplications and additions in registers."""
    timed = library or timed_library()
    return max(float(timed.bench_peak(1 << 22)) for _ in range(REPEATS))


def flop_per_step(widths: list[int], batch: int) -> int:
    """Multiplications and additions of the dense layers in one step."""
    layers = enumerate(pairwise(widths))
    return batch * sum((4 if i == 0 else 6) * a * b for i, (a, b) in layers)


def us_per_step(library: ctypes.CDLL, program: Program) -> float:
    """The best of several runs."""
    executor = native.NativeExecutor(program.image)
    executor.load(program.initial(0))
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (BATCHES, program.batch, *program.sample_shape)).astype(np.float32)
    if program.loss == "mse":
        y: Any = rng.uniform(-1, 1, (BATCHES, program.batch, *program.output_shape))
        y = y.astype(np.float32)
    else:
        y = rng.integers(0, program.output_shape[0], (BATCHES, program.batch)).astype(np.int32)
    hyper = native.HyperStruct.of(Hyper(0.001))

    def seconds(steps: int) -> float:
        return float(
            library.bench_steps(
                *executor._call, ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data),
                x[0].size, y[0].size, BATCHES, steps, ctypes.byref(hyper),
            )
        )  # fmt: skip

    steps = max(64, int(SECONDS / seconds(64) * 64))
    return min(seconds(steps) for _ in range(REPEATS)) / steps * 1e6


def main() -> None:
    """Print one row a net."""
    library = timed_library(*sys.argv[1:2])
    peak = peak_flops(library) / 1e9
    print(f"peak of multiply and add in registers: {peak:.0f} GFLOP/s")
    print(f"{'net':22}{'batch':>6}{'us/step':>10}{'GFLOP/s':>10}{'of peak':>10}")
    rows = [
        ([1, 32, 32, 1], "tanh", "mse"), ([1, 40, 40, 1], "relu", "mse"),
        ([64, 32, 10], "relu", "cross_entropy"), ([784, 64, 10], "relu", "cross_entropy"),
    ]  # fmt: skip
    for widths, activation, loss in rows:
        for batch in (1, 10):
            program = compile(mlp(widths, activation), loss=loss, ram="64MiB", batch=batch)
            us = us_per_step(library, program)
            rate = flop_per_step(widths, batch) / us / 1e3
            name = "-".join(map(str, widths)) + " " + activation
            print(f"{name:22}{batch:6}{us:10.3f}{rate:10.1f}{rate / peak:10.0%}")


if __name__ == "__main__":
    main()
