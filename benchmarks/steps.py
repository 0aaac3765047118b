"""A training step of the zoo's convolutional nets beside torch, batch 1, one core.

python benchmarks/steps.py [seconds a row]
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from kernels import timed_library, us_per_step

from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile

NETS: dict[str, Callable[[], Net]] = {
    "Omniglot conv4, 32 channels, max-pooling": lambda: zoo.omniglot_conv(norm="none", pool=True),
    "Omniglot conv4, 32 channels, stride 2, group norm": zoo.omniglot_conv,
    "DS-CNN, 49 x 10": zoo.ds_cnn,
}


def ours(build: Callable[[], Net]) -> float:
    """Microseconds of a step in the C runtime."""
    program = compile(build(), loss="cross_entropy", ram="16MiB")
    return us_per_step(timed_library(), program)


def theirs(name: str, seconds: float) -> float:
    """Microseconds of the same step in torch: forward, backward, plain SGD."""
    import torch
    from torch_nets import NETS as MODULES

    torch.set_num_threads(1)
    module, shape = MODULES[name]()
    x, y = torch.randn(1, *shape), torch.tensor([1])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.001)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()

    return timed(step, seconds)


def timed(step: Callable[[], Any], seconds: float) -> float:
    """The median over steps, in microseconds."""
    for _ in range(10):
        step()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        step()
        found.append((time.perf_counter() - started) * 1e6)
    return float(median(found))


def rows(seconds: float) -> Iterator[str]:
    """The table, row by row; ours before and after torch's, to show what the machine does."""
    yield "| net | fedtiny | torch | fedtiny, once more | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, build in NETS.items():
        first = ours(build)
        if importlib.util.find_spec("torch") is None:
            yield f"| {name} | {first:,.0f} | not installed | | |"
            continue
        torch, again = theirs(name, seconds), ours(build)
        ratio = torch / np.median([first, again])
        yield f"| {name} | {first:,.0f} | {torch:,.0f} | {again:,.0f} | {ratio:.1f} |"


if __name__ == "__main__":
    for line in rows(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0):
        print(line, flush=True)
