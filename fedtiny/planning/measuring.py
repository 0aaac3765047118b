"""What plans are worth, by training them: slower than gradients, and nearer to the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.compile import Compilable, build
from fedtiny.errors import DataError
from fedtiny.planning.choice import split

if TYPE_CHECKING:
    from fedtiny.planning.contribution import Contributions
    from fedtiny.tensors import Buffer

Part = tuple[Any, Any]
"""Samples and their labels, as a Learner takes them."""
RATES = (0.003, 0.01, 0.03, 0.1)
"""A plan is tried at each of these learning rates, and judged at the best one."""
PASSES = 4


@dataclass(frozen=True)
class Rehearsal:
    """How a plan is tried: trained on the support from a model, and judged on the query.

    ``options`` are those of `fedtiny.engine.compile.build`.
    """

    net: Compilable
    vector: Buffer
    support: Part
    query: Part
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, net: Compilable, vector: Buffer, samples: Part, options: Mapping[str, Any]
    ) -> Rehearsal:
        """On samples of which every fourth one is kept to judge by. DataError for fewer than 8."""
        x, y = map(np.asarray, samples)
        if len(y) < 8:
            raise DataError(f"to try a plan takes 8 samples or more, and there are {len(y)}")
        judged = np.arange(len(y)) % 4 == 3
        return cls(net, vector, (x[~judged], y[~judged]), (x[judged], y[judged]), options)

    def scores(self, plan: str) -> dict[str, float]:
        """The mean loss, and of classes the share of right answers, on the query after training."""
        learner = Learner(build(self.net, plan=plan, **self.options).program)
        return min((self._score(learner, lr) for lr in RATES), key=lambda found: found["loss"])

    def untrained(self) -> float:
        """The mean loss on the query before any training."""
        learner = Learner(build(self.net, plan="last:1", **self.options).program)
        learner.load(self.vector)
        found = learner.evaluate(*self.query)
        return found["loss_sum"] / found["count"]

    def _score(self, learner: Learner, lr: float) -> dict[str, float]:
        learner.load(self.vector)
        steps = -(-PASSES * len(self.support[1]) // learner.program.batch)
        learner.train(*self.support, lr, steps, shuffle=True, key=Key())
        found = learner.evaluate(*self.query)
        loss = found["loss_sum"] / found["count"]
        return {
            "loss": loss if np.isfinite(loss) else np.inf,
            "accuracy": found["correct"] / found["count"],
        }


def measured_gains(
    rehearsal: Rehearsal,
    contributions: Contributions,
    progress: Callable[[int, int], None] = lambda tried, of: None,
) -> Contributions:
    """Contributions whose sum over a parameter is how much lower the loss is when that parameter
    trains beside the head, shared out among its channels as they were. Those of the head are how
    much lower it is when the head alone does.

    Args:
        rehearsal: How plans are tried.
        contributions: Those of gradients.
        progress: Told how many trainings are done, and of how many.
    """
    before, head = split(rehearsal.net.graph(1).layout)
    names = [p.name for _, p in before]
    alone = rehearsal.scores("last:1")["loss"]
    shares = {p.name: float(contributions[p.name].sum()) for p in head}
    own = (rehearsal.untrained() - alone) / (sum(shares.values()) or 1.0)
    measured = {name: _scaled(contributions[name], own * share) for name, share in shares.items()}
    for tried, name in enumerate(names, 1):
        lower = alone - rehearsal.scores(f"last:1+named:{name}")["loss"]
        measured[name] = _scaled(contributions[name], lower)
        progress(tried, len(names))
    return {**contributions, **measured}


def _scaled(squares: Any, total: float) -> Any:
    """With this sum, or with 0."""
    whole = float(squares.sum())
    return squares * (max(0.0, total) / whole if whole else 0.0)
