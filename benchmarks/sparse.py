"""A training step of one layer by its live weights alone, beside the dense kernels; one core.

    python benchmarks/sparse.py [repeats]

Times are of the layer's own ops, forward, back to its input and update, on a batch of 32: the best
of several runs, dense and sparse in turn. The ratio is that of dense to sparse time; break-even is
the density at which they are alike.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from kernels import timed_library

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.native import HyperStruct, NativeExecutor
from fedtiny.engine.program import Hyper, Program

BATCH = 32
SHOWN = (0.1, 0.03, 0.01)
DENSITIES = (*SHOWN, 0.25, 0.5, 0.75)
OP_CODES = {1, 16, 20, 80, 96, 99, 128, 130, 134, 133, 192, 194}
"""Of linear layers and convolutions, dense and sparse: forward, back and update, which dense ones
may do in two ops."""
MARKED = bytes(code in OP_CODES for code in range(256))

LAYERS: Mapping[str, tuple[tuple[int, int, int], int, int, int]] = {
    "ResNet18, 64 channels, 32 x 32": ((32, 32, 64), 64, 3, 1),
    "ResNet18, 64 to 128, stride 2": ((32, 32, 64), 128, 3, 2),
    "ResNet18, 128 channels, 16 x 16": ((16, 16, 128), 128, 3, 1),
    "ResNet18, 128 to 256, stride 2": ((16, 16, 128), 256, 3, 2),
    "ResNet18, 256 channels, 8 x 8": ((8, 8, 256), 256, 3, 1),
    "ResNet18, 256 to 512, stride 2": ((8, 8, 256), 512, 3, 2),
    "ResNet18, 512 channels, 4 x 4": ((4, 4, 512), 512, 3, 1),
    "ResNet18, 64 to 128, 1 x 1, stride 2": ((32, 32, 64), 128, 1, 2),
    "ResNet18, 128 to 256, 1 x 1, stride 2": ((16, 16, 128), 256, 1, 2),
    "ResNet18, 256 to 512, 1 x 1, stride 2": ((8, 8, 256), 512, 1, 2),
    "VGG11, 64 to 128, 16 x 16": ((16, 16, 64), 128, 3, 1),
    "VGG11, 256 channels, 8 x 8": ((8, 8, 256), 256, 3, 1),
    "VGG11, 512 channels, 4 x 4": ((4, 4, 512), 512, 3, 1),
    "VGG11, 512 channels, 2 x 2": ((2, 2, 512), 512, 3, 1),
    "linear, 512 to 512": ((1, 1, 512), 512, 0, 1),
}
"""By name: what the layer reads, its channels, its kernel (0: a linear layer) and its stride."""


def layer(name: str, density: float) -> Program:
    """It alone, behind a bias, so that it has a way back to its input."""
    shape, channels, kernel, stride = LAYERS[name]
    net = Net(shape)
    x = net.bias(net.input)
    if kernel:
        net.conv(x, channels, kernel, stride, "same")
    else:
        net.linear(x, channels)
    return compile(net, loss="mse", ram="1GiB", flash="1GiB", batch=BATCH, density=density)


class Timed:
    """A program, and the best time of its layer so far."""

    def __init__(self, program: Program) -> None:
        rng = np.random.default_rng(0)
        self._executor = NativeExecutor(program.image)
        if program.capacity:
            self._executor.load_mask(_mask(program, rng))
        self._executor.load(program.initial(0))
        self._x = rng.uniform(-1, 1, (BATCH, *program.sample_shape)).astype(np.float32)
        self._y = rng.uniform(-1, 1, (BATCH, *program.output_shape)).astype(np.float32)
        self.seconds = float("inf")

    def run(self) -> None:
        """One step, without moving."""
        library = timed_library()
        library.bench_ops.restype = ctypes.c_double
        x, y = (ctypes.c_void_p(a.ctypes.data) for a in (self._x, self._y))
        hyper = ctypes.byref(HyperStruct.of(Hyper(0.0)))
        seconds = library.bench_ops(*self._executor._call, x, y, hyper, MARKED)
        self.seconds = min(self.seconds, float(seconds))


def _mask(program: Program, rng: np.random.Generator) -> bytes:
    """As many live weights as the pool holds, anywhere."""
    live = np.ones(program.layout.size, bool)
    (weights,) = (p for p in program.layout.parameters if p.name in program.prunable)
    live[weights.offset : weights.offset + weights.size] = False
    drawn = rng.choice(weights.size, program.capacity, replace=False)
    live[weights.offset + drawn] = True
    return np.packbits(live, bitorder="little").tobytes()


def break_even(dense: float, sparse: Mapping[float, float]) -> str:
    """Where the line through the measured densities meets the dense time."""
    points = sorted(sparse.items())
    for (below, faster), (above, slower) in pairwise(points):
        if faster <= dense < slower:
            return f"{below + (above - below) * (dense - faster) / (slower - faster):.0%}"
    return f"above {points[-1][0]:.0%}"


def row(name: str, repeats: int) -> str:
    """One layer: milliseconds, and ratios."""
    timed = {density: Timed(layer(name, density)) for density in (1.0, *DENSITIES)}
    for _ in range(repeats):
        for one in timed.values():
            one.run()
    ms = {density: one.seconds * 1e3 for density, one in timed.items()}
    dense = ms.pop(1.0)
    cells = [f"{ms[d]:.2f} ({dense / ms[d]:.1f})" for d in SHOWN]
    return f"| {name} | {dense:.2f} | " + " | ".join([*cells, break_even(dense, ms)]) + " |"


def rows(repeats: int = 5) -> Iterator[str]:
    """The table, row by row."""
    shown = " | ".join(f"{density:.0%}" for density in SHOWN)
    yield f"| layer, ms (ratio) | dense | {shown} | break-even |"
    yield "| --- | ---: |" + " ---: |" * (len(SHOWN) + 1)
    for name in LAYERS:
        yield row(name, repeats)


if __name__ == "__main__":
    for line in rows(*map(int, sys.argv[1:2])):
        print(line, flush=True)
