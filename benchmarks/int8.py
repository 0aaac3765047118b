"""Training in int8 beside float32, the same plan, on four real tasks; and int8 that truncates.

python benchmarks/int8.py [TASK] [SEEDS]

Needs FEDTINY_DATA. A net is trained in float32 on some people or classes, its norms are folded,
and then it goes on with others: once in float32, once in int8, and once in int8 whose updates are
cut off towards zero, as the published kernels do. A seed draws who is who, the net and the order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtiny.data.files import DATA_SETS
from fedtiny.device.learner import Key, Learner
from fedtiny.engine import zoo
from fedtiny.engine.calibration import calibrated
from fedtiny.engine.compile import build
from fedtiny.engine.folding import folded
from fedtiny.quantised import held, steps
from fedtiny.values import Phase, Sgd

Rows = tuple[Any, Any]
"""Samples and their labels."""
LOSS = "cross_entropy"


@dataclass(frozen=True)
class Task:
    """Who learns what.

    ``split`` gives, by the seed: the rows to begin with, those to go on with, and those to be
    judged on. ``first`` and ``then``: learning rate and passes; a new ``head`` starts at zero.
    """

    net: Callable[[], Any]
    split: Callable[[int], tuple[Rows, Rows, Rows]]
    first: tuple[float, int]
    then: tuple[float, int]
    new_head: bool


# ---- the tasks -------------------------------------------------------------------------------


def by_people(name: str, share: float, most: int) -> Callable[[int], tuple[Rows, Rows, Rows]]:
    """A share of the people begins; the others go on with ``most`` of their rows at most."""

    def split(seed: int) -> tuple[Rows, Rows, Rows]:
        data, rng = DATA_SETS[name].load(), np.random.default_rng(seed)
        people = rng.permutation(np.unique(data.client))
        begins = np.isin(data.client, people[: int(share * len(people))])
        others = rng.permutation(np.flatnonzero(~begins))
        train = others[: min(most, 3 * len(others) // 4)]
        judged = others[len(train) :][:2000]
        return tuple((data.x[r], data.label[r]) for r in (np.flatnonzero(begins), train, judged))

    return split


def by_classes(name: str, ways: int, each: int, test: int) -> Callable[[int], Any]:
    """Some classes begin, as many others go on, with so many rows of each."""

    def split(seed: int) -> tuple[Rows, Rows, Rows]:
        data, rng = DATA_SETS[name].load(), np.random.default_rng(seed)
        classes = rng.permutation(data.classes)[: 2 * ways]
        parts: list[list[Any]] = [[], [], []]
        for at, label in enumerate(classes):
            rows = rng.permutation(np.flatnonzero(data.label == label))
            cuts = [rows] if at < ways else [rows[:each], rows[each : each + test]]
            for part, own in zip((0,) if at < ways else (1, 2), cuts, strict=True):
                parts[part].append((own, np.full(len(own), at % ways, np.int32)))
        joined = (tuple(map(np.concatenate, zip(*part, strict=True))) for part in parts)
        return tuple((data.x[rows], labels) for rows, labels in joined)

    return split


TASKS: Mapping[str, Task] = {
    "omniglot": Task(
        lambda: zoo.omniglot_conv(20, 32, "tracked"), by_classes("omniglot", 20, 12, 8),
        (0.1, 30), (0.05, 20), True,
    ),
    "speech": Task(
        lambda: zoo.ds_cnn(3, 24, 3, "tracked"), by_people("speech-words", 0.7, 600),
        (0.05, 6), (0.01, 4), False,
    ),
    "har": Task(
        lambda: zoo.har_conv(norm="tracked"), by_people("uci-har", 0.6, 1000),
        (0.05, 4), (0.01, 4), False,
    ),
    "cifar": Task(
        lambda: zoo.cifar_conv(5), by_classes("cifar10", 5, 300, 300), (0.02, 8), (0.01, 5), True,
    ),
}  # fmt: skip
BATCH, FIRST_BATCH = 8, 16


# ---- one seed --------------------------------------------------------------------------------


def begun(task: Task, rows: Rows, seed: int) -> tuple[Any, Any]:
    """The folded net, and its values with ranges."""
    net, (lr, passes) = task.net(), task.first
    learner = Learner(build(net, loss=LOSS, batch=FIRST_BATCH, sgd=Sgd(momentum=0.9)).program)
    learner.load(learner.program.initial(seed))
    count = passes * len(rows[1]) // FIRST_BATCH
    for share, part in ((1.0, 0.6), (0.2, 0.4)):
        learner.train(*rows, share * lr, int(part * count), shuffle=True, key=Key(seed))
    net, vector = folded(net, learner.vector())
    ranged = build(net, loss=LOSS, plan="last:1", quantisable=True).program
    whole = np.asarray(ranged.initial(seed))
    whole[: len(vector)] = vector
    return net, calibrated(net, whole, rows[0][:256], loss=LOSS)


def headless(net: Any, vector: Any) -> Any:
    """The vector with a head of zeros."""
    layout = build(net, loss=LOSS, plan="last:1", quantisable=True).program.layout
    head = [p for p in layout.parameters if p.group != "frozen"][-1].layer
    made = np.array(vector)
    for p in layout.layers()[head]:
        made[p.offset : p.offset + p.size] = 0
    return made


def gone_on(task: Task, net: Any, vector: Any, rows: Rows, new: Rows, dtype: str, seed: int) -> Any:
    """Accuracy after the second part, in float32 or int8."""
    (lr, passes), options = task.then, {"loss": LOSS, "batch": BATCH, "quantisable": True}
    learner = Learner(build(net, dtype=dtype, **options).program)
    learner.load(vector)
    learner.train(*rows, lr, passes * len(rows[1]) // BATCH, shuffle=True, key=Key(seed))
    return accuracy(learner, new)


def accuracy(learner: Learner, rows: Rows) -> float:
    """The share of right answers."""
    found = learner.evaluate(*rows)
    return float(found["correct"] / found["count"])


def truncated(task: Task, net: Any, vector: Any, rows: Rows, new: Rows, seed: int) -> float:
    """The same, but each int8 weight is cut off towards zero after its step."""
    (lr, passes), options = task.then, {"loss": LOSS, "batch": BATCH}
    judge = Learner(build(net, dtype="int8", **options).program)
    sgd = Sgd(gradient=True)
    learner = Learner(build(net, quantisable=True, sgd=sgd, **options).program)
    layout, names = learner.program.layout, {p.name for p in judge.program.int8_parameters}
    grid = {
        n: steps(vector[layout[n].offset :][: layout[n].size].reshape(layout[n].shape))
        for n in names
    }
    now = np.array(held(judge.program, vector))
    phase = Phase(0.0, passes * len(rows[1]) // BATCH, shuffle=True, sgd=sgd)
    samples = learner.samples(*rows)
    for x, y in learner.training_batches(phase, samples, Key(seed)):
        learner.load(now)
        learner.executor.step(x, y, learner.program.hyper(phase))
        g = np.frombuffer(learner.executor.store_gradient(), np.float32)
        now = now - np.float32(lr) * g
        for n in names:
            own = slice(layout[n].offset, layout[n].offset + layout[n].size)
            q = np.clip(np.trunc(now[own].reshape(layout[n].shape) / grid[n]), -127, 127)
            now[own] = (q * grid[n]).reshape(-1)
    judge.load(now)
    return accuracy(judge, new)


def row(name: str, seed: int) -> tuple[float, float, float, float]:
    """Accuracy before, in float32, in int8, and truncated."""
    task = TASKS[name]
    rows, more, new = task.split(seed)
    net, vector = begun(task, rows, seed)
    vector = headless(net, vector) if task.new_head else vector
    before = Learner(build(net, loss=LOSS, batch=BATCH, dtype="int8").program)
    before.load(vector)
    both = (gone_on(task, net, vector, more, new, dtype, seed) for dtype in ("float32", "int8"))
    return accuracy(before, new), *both, truncated(task, net, vector, more, new, seed)


def main(names: list[str], seeds: int) -> None:
    """Prints a row a seed, and the paired differences."""
    for name in names:
        found = []
        for seed in range(1, seeds + 1):
            found.append(row(name, seed))
            told = zip(("before", "float32", "int8", "truncated"), found[-1], strict=True)
            print(f"{name} {seed}: {', '.join(f'{n} {v:.4f}' for n, v in told)}", flush=True)
        table = np.array(found)
        less = table[:, 2] - table[:, 1]
        error = 1.96 * less.std(ddof=1) / len(less) ** 0.5
        means = " ".join(f"{value:.4f}" for value in table.mean(axis=0))
        print(f"{name}: {means}; int8 - float32 = {100 * less.mean():.2f} +- {100 * error:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:2] or list(TASKS), int(sys.argv[2]) if sys.argv[2:] else 5)
