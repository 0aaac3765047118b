"""Plans that are found beside those that are written: adaptation in the same RAM, on three tasks.

python benchmarks/plans.py [TASK] [SEEDS]

Needs FEDTINY_DATA. A net is trained on some classes; then a device learns others from a few samples
that it meets one by one. In each budget ``auto`` stands beside the best of all ``last:K``,
``biases`` and ``biases:K`` that fit, which is chosen after the test; every plan has the learning
rate that suits it best of three, so chosen too. What was trained first is kept in build/plans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedtiny.cli_plan import abbreviated
from fedtiny.data.files import DATA_SETS
from fedtiny.device.learner import Key, Learner
from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.calibration import calibrated
from fedtiny.engine.compile import build
from fedtiny.engine.program import Program
from fedtiny.planning.choice import written
from fedtiny.planning.contribution import fisher_information, warmed
from fedtiny.planning.search import Limits, search
from fedtiny.values import Sgd

FOLDER = Path("build/plans")
LOSS, CLIP, PUBLIC, JUDGED = "cross_entropy", 5.0, 60, 600
RATES = (0.003, 0.01, 0.03, 0.1)
Part = tuple[Any, Any]


@dataclass(frozen=True)
class Task:
    """A net, what it learns first, and what a device learns then.

    A device has ``each`` samples of ``ways`` classes: new ones, with a head that nobody has
    trained; or, with ``shifted``, of the known ones, from another domain.
    """

    data: str
    make: Callable[[int], Net]
    known: int
    ways: int
    each: int
    passes: int
    epochs: int
    budgets: tuple[int, ...]
    shifted: Callable[[Any], Any] | None = None
    dtype: str = "float32"

    @cached_property
    def net(self) -> Net:
        """For the new classes."""
        return self.make(self.ways)

    @cached_property
    def _labelled(self) -> Any:
        return DATA_SETS[self.data].load()

    def _pool(self, test: bool, new: bool) -> Any:
        """Rows of the known classes or of the new ones, in a drawn order."""
        data = self._labelled
        rows = np.flatnonzero((data.label >= self.known) == new)
        rows = np.random.default_rng(0).permutation(rows)
        return rows[_is_test(data)[rows] == test]

    def _part(self, rows: Any, classes: Any) -> Part:
        label = np.full(self._labelled.classes, -1, np.int32)
        label[classes] = np.arange(len(classes))
        return self._labelled.x[rows], label[self._labelled.label[rows]]

    def pretrained(self) -> Any:
        """The values of the net for the known classes."""
        path = FOLDER / f"{self.data}.npy"
        if not path.is_file():
            FOLDER.mkdir(parents=True, exist_ok=True)
            np.save(path, self._trained())
        return np.load(path)

    def _trained(self) -> Any:
        net, classes = self.make(self.known), np.arange(self.known)
        learner = Learner(build(net, loss=LOSS, batch=16, sgd=Sgd(clip=CLIP)).program)
        learner.load(learner.program.initial(0))
        samples, test = (self._part(self._pool(test, new=False), classes) for test in (False, True))
        for epoch, lr in enumerate(np.geomspace(0.1, 0.01, self.epochs)):
            learner.train(*samples, lr, 0, shuffle=True, key=Key(epoch))
            said = learner.evaluate(*(part[:1000] for part in test))
            print(
                f"{self.data}: epoch {epoch + 1}, {said['correct'] / said['count']:.3f}", flush=True
            )
        return learner.vector()

    def start(self, seed: int, public: Part) -> Any:
        """What was learned first; for new classes with a head of the seed, for int8 with ranges."""
        values, known = np.array(self.program("last:1").initial(seed)), self.pretrained()
        layout = self.net.graph(1).layout
        head = layout.parameters[-1].layer
        body = min(p.offset for p in layout.parameters if p.layer == head)
        kept = layout.size if self.shifted else body
        values[:kept] = known[:kept]
        return calibrated(self.net, values, public[0], loss=LOSS) if self.is_int8 else values

    @property
    def is_int8(self) -> bool:
        """Whether it adapts in int8."""
        return self.dtype == "int8"

    @property
    def options(self) -> dict[str, Any]:
        """What its Programs are compiled with."""
        return {"loss": LOSS, "sgd": Sgd(clip=CLIP), "dtype": self.dtype}

    def program(self, plan: str) -> Program:
        """That of a plan."""
        return build(self.net, plan=plan, **self.options).program

    def found(self, ram: int) -> str:
        """By the gradients of public samples of the first seed."""
        _, _, public = self.device(1)
        start, ranged = self.start(1, public), self.is_int8
        start = warmed(self.net, start, *public, LOSS, quantisable=ranged)
        squares = fisher_information(self.net, start, *public, LOSS, quantisable=ranged)
        return search(self.net, squares, Limits(ram, 1 << 20), **self.options).best.plan

    @cached_property
    def rivals(self) -> dict[str, int]:
        """The plans that one would write, and the RAM of each."""
        rows = [str(plan) for row in written(self.net.graph(1).layout) for plan in row]
        return {plan: self.program(plan).report()["ram_bytes"] for plan in rows}

    def scores(self, plan: str, seeds: int) -> Any:
        """The accuracy of each seed, at the learning rate that is best in the mean."""
        program = self.program(plan)
        rates = [[self._score(program, lr, seed) for seed in range(1, seeds + 1)] for lr in RATES]
        return np.array(max(rates, key=sum))

    def _score(self, program: Program, lr: float, seed: int) -> float:
        mine, judged, public = self.device(seed)
        learner = Learner(program)
        learner.load(self.start(seed, public))
        learner.train(*mine, lr, self.passes * len(mine[1]), shuffle=True, key=Key(seed))
        found = learner.evaluate(*judged)
        return float(found["correct"] / found["count"])

    def device(self, seed: int) -> tuple[Part, Part, Part]:
        """What a device of the seed learns from, what it is judged on, and public samples."""
        rng, new = np.random.default_rng(seed), self.shifted is None
        first, count = (self.known, self._labelled.classes - self.known) if new else (0, self.known)
        classes = first + rng.permutation(count)[: self.ways]
        classes = classes if new else np.arange(self.known)
        train = self._of(classes, self._pool(test=False, new=new))
        mine = np.concatenate([rng.permutation(rows)[: self.each] for rows in train])
        public = rng.permutation(np.setdiff1d(np.concatenate(train), mine))[:PUBLIC]
        judged = np.concatenate(self._of(classes, self._pool(test=True, new=new)))
        judged = rng.permutation(judged)[:JUDGED]
        return tuple(self._moved(self._part(rows, classes)) for rows in (mine, judged, public))

    def _moved(self, part: Part) -> Part:
        return (self.shifted(part[0]), part[1]) if self.shifted else part

    def _of(self, classes: Any, rows: Any) -> list[Any]:
        return [rows[self._labelled.label[rows] == one] for one in classes]


def _is_test(data: Any) -> Any:
    """Of Omniglot the last drawers of a character, else the rows that its makers kept."""
    if data.superclass is None:
        return data.split == 1
    order = np.lexsort((data.client, data.label))
    place = np.empty(len(order), np.int64)
    first = np.searchsorted(data.label[order], data.label[order])
    place[order] = np.arange(len(order)) - first
    return place >= 14


def inverted(x: Any) -> Any:
    """A picture's negative."""
    return 1 - x


def turned(x: Any) -> Any:
    """As a device measures that is worn another way round: its axes have changed places."""
    axes = x.reshape(len(x), -1, 6)[..., (1, 2, 0, 4, 5, 3)]
    return np.ascontiguousarray(axes.reshape(len(x), -1))


def muffled(x: Any) -> Any:
    """As another microphone hears: what it does to the spectrum shifts each coefficient."""
    coefficients = x.reshape(len(x), -1, 10)
    away = coefficients.std(axis=(0, 1)) * np.resize((3.0, -3.0), 10)
    return np.ascontiguousarray((coefficients + away).reshape(len(x), -1).astype(np.float32))


TASKS = {
    "omniglot": Task(
        "omniglot", lambda ways: zoo.omniglot_conv(ways, 32),
        known=300, ways=20, each=10, passes=8, epochs=12, budgets=(52_000, 64_000, 96_000),
    ),
    "speech-words": Task(
        "speech-words", lambda ways: zoo.ds_cnn(ways, 32, 3, "group"),
        known=3, ways=3, each=40, passes=4, epochs=3, budgets=(40_000, 48_000, 64_000),
        shifted=muffled,
    ),
    "cifar10": Task(
        "cifar10", lambda ways: zoo.cifar_conv(ways, (16, 32, 32)),
        known=10, ways=10, each=20, passes=4, epochs=12, budgets=(40_000, 50_000, 60_000),
        shifted=inverted, dtype="int8",
    ),
    "uci-har": Task(
        "uci-har", lambda ways: zoo.har_conv(ways, norm="none"),
        known=6, ways=6, each=30, passes=4, epochs=4, budgets=(16_000, 24_000, 40_000),
        shifted=turned,
    ),
}  # fmt: skip


def rows(task: Task, seeds: int) -> Iterator[str]:
    """A row a budget: auto, the best rival, and the mean difference with its 95 % interval."""
    affordable = (plan for plan, ram in task.rivals.items() if ram <= max(task.budgets))
    rivals = {plan: task.scores(plan, seeds) for plan in affordable}
    for ram in task.budgets:
        fitting = [plan for plan, nbytes in task.rivals.items() if nbytes <= ram]
        best = max(fitting, key=lambda plan: rivals[plan].mean())
        plan = task.found(ram)
        auto = task.scores(plan, seeds)
        apart = 100 * (auto - rivals[best])
        half = 196 * np.std(auto - rivals[best], ddof=1) / seeds**0.5
        yield (
            f"| {task.data} {task.dtype} | {ram:,} B | {abbreviated(plan)} | "
            f"{100 * auto.mean():.1f} | {best} | {100 * rivals[best].mean():.1f} | "
            f"{apart.mean():+.1f} +- {half:.1f} |"
        )


def main(names: list[str], seeds: int) -> None:
    """Prints the table."""
    print("| task | RAM | auto | accuracy | best written | accuracy | difference |")
    print("| --- | ---: | --- | ---: | --- | ---: | ---: |")
    for name in names:
        for row in rows(TASKS[name], seeds):
            print(row, flush=True)


if __name__ == "__main__":
    named = [name for name in sys.argv[1:] if name in TASKS]
    counts = [int(text) for text in sys.argv[1:] if text.isdigit()]
    main(named or list(TASKS), (counts or [6])[0])
