"""A training step and a forward in int8 beside float32: the same nets and plans, batch 1, one core.

    python benchmarks/int8_steps.py [samples a row [net]]

Both are compiled for time: they make nothing twice to save memory. Medians of the time of this
thread; the two take turns, so that whatever the machine does meets both. A step of int8 includes
the quantisation of its sample.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.native import HyperStruct, NativeExecutor
from fedtiny.engine.program import Hyper, Program

NETS: dict[str, tuple[Callable[[], Net], str]] = {
    "DS-CNN, 49 x 10": (lambda: zoo.ds_cnn(norm="none"), "ds_cnn"),
    "conv4, 32 channels": (lambda: zoo.omniglot_conv(norm="none", pool=True), "omniglot_conv"),
    "MobileNetV2-0.35, 96 px": (lambda: zoo.mobilenet_v2(norm="none"), "mobilenet_v2"),
}
"""What makes each, and whose sparse plan in the zoo it has."""
PLANS = ("all", "last:1", "last:4", "biases", "sparse")
SAMPLES = 200


class Timed:
    """A Program in the C runtime, and how long its calls took."""

    def __init__(self, program: Program, values: Any) -> None:
        self.executor = NativeExecutor(program.image)
        self.executor.load(values)
        rng = np.random.default_rng(0)
        self._x = rng.uniform(-1, 1, (program.batch, *program.sample_shape)).astype(np.float32)
        self._y = rng.integers(0, program.output_shape[0], program.batch).astype(np.int32)
        self._hyper, self._loss = HyperStruct.of(Hyper(1e-4)), ctypes.c_float()
        self.steps: list[float] = []
        self.forwards: list[float] = []

    def turn(self) -> None:
        """One step, one forward."""
        runtime, call = self.executor._library, self.executor._call
        y = ctypes.c_void_p(self._y.ctypes.data)
        started = time.thread_time()
        x = self.executor._x.take(self._x)
        runtime.ft_step(*call, x, y, ctypes.byref(self._hyper), ctypes.byref(self._loss))
        stepped = time.thread_time()
        runtime.ft_predict(*call, self.executor._x.take(self._x))
        self.steps.append(stepped - started)
        self.forwards.append(time.thread_time() - stepped)


def pair(build: Callable[[], Net], plan: str, samples: int) -> tuple[Timed, Timed]:
    """float32 and int8, timed in turns."""
    programs = [
        compile(
            build(), loss="cross_entropy", ram="64MiB", flash="64MiB", plan=plan, dtype=dtype,
            minimise="time",
        )
        for dtype in ("float32", "int8")
    ]  # fmt: skip
    values = np.array(programs[1].initial(0), np.float32)
    for p in programs[1].range_parameters:
        values[p.offset : p.offset + 2] = -2.0, 2.0
    plain, int8 = map(Timed, programs, (programs[0].initial(0), values))
    for _ in range(samples):
        plain.turn()
        int8.turn()
    return plain, int8


def rows(samples: int, name: str = "") -> Iterator[str]:
    """The table, row by row: microseconds."""
    columns = ("step", "int8 step", "ratio", "forward", "int8 forward", "ratio")
    yield f"| net | plan | {' | '.join(columns)} |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for net, (build, entry) in NETS.items():
        for plan in PLANS if name in net else ():
            told = zoo.ZOO[entry].sparse if plan == "sparse" else plan
            timed = pair(build, told, samples)
            step, step8 = (median(t.steps) * 1e6 for t in timed)
            forward, forward8 = (median(t.forwards) * 1e6 for t in timed)
            yield (
                f"| {net} | {plan} | {step:,.0f} | {step8:,.0f} | {step8 / step:.2f} | "
                f"{forward:,.0f} | {forward8:,.0f} | {forward8 / forward:.2f} |"
            )


if __name__ == "__main__":
    for line in rows(int(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES, *sys.argv[2:3]):
        print(line, flush=True)
