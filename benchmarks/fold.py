"""Updates that one core folds in a second of its time, by the size of a batch.

python benchmarks/fold.py [FLOATS] [SECONDS]

Each update is a whole model of FLOATS float32 (1,250: 5 KB), weighted by its samples. "total" is
the sum alone; "round" is all that a round does with updates that have arrived and are in the
journal: it also sorts them by what they cover and start from, and names those that it refuses.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
import time
from collections.abc import Callable

import numpy as np

from fedtiny.fold import FoldRule, Total
from fedtiny.layout import Layout, Parameter
from fedtiny.rounds.content import OpenRound
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import Update

BATCHES = (1, 16, 64, 256, 1024)
_COHORT = 2**16


def updates(floats: int, count: int) -> list[Update]:
    """Updates of a model of zeros, with 1 to 100 samples each."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.01, (count, floats)).astype(np.float32)
    whole = ((0, floats),)
    return [Update(i, i, 0, 0, 1 + i % 100, row.tobytes(), whole) for i, row in enumerate(values)]


def rate(fold: Callable[[], object], count: int, seconds: float) -> float:
    """Updates in a second of the core's time, over so many seconds of it."""
    folded, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        fold()
        folded += count
    return folded / (time.process_time() - started)


def rates(floats: int, count: int, seconds: float) -> tuple[float, float]:
    """Of the sum alone, and of a round."""
    batch, model = updates(floats, count), np.zeros(floats, np.float32)
    layout = Layout.of([Parameter("weight", (floats,))])
    opened = OpenRound.of(FedAvg(cohort=_COHORT), Round(0, 1), layout, model, {})
    weights = np.array([update.samples for update in batch], np.float64)
    empty = Total.zero(floats, FoldRule.for_round(_COHORT, 65536.0))
    part, refused = opened.add_all(opened.nothing, batch)
    assert part == empty.add_all(batch, model, weights)[0]
    assert not any(refused)
    return (
        rate(lambda: empty.add_all(batch, model, weights), count, seconds),
        rate(lambda: opened.add_all(opened.nothing, batch), count, seconds),
    )


def main() -> None:
    floats = int(sys.argv[1]) if sys.argv[1:] else 1250
    seconds = float(sys.argv[2]) if sys.argv[2:] else 1.0
    print("| batch | total, updates/s | round, updates/s |\n|---:|---:|---:|")
    for count in BATCHES:
        total, round = rates(floats, count, seconds)
        print(f"| {count:,} | {total:,.0f} | {round:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
