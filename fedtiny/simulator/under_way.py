"""Rounds whose leases are under way: what an update that comes in a later one started from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.rounds.content import OpenRound
from fedtiny.strategies.base import Round

if TYPE_CHECKING:
    from fedtiny.experiment.workload import Workload
    from fedtiny.runs import Arrays, Json

_ROUND, _STATE = "under_way", "state"


@dataclass(frozen=True, eq=False)
class UnderWay:
    """Such rounds of an asynchronous run, by number; each as it was opened."""

    rounds: Mapping[int, OpenRound] = field(default_factory=dict)

    def and_only(self, opened: OpenRound, others: Collection[int]) -> UnderWay:
        """Those of these numbers, and the one that has just been opened."""
        kept = {t: self.rounds[t] for t in others if t in self.rounds}
        return UnderWay({**kept, opened.round.t: opened})

    def arrays(self, others: Collection[int]) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of those of these numbers, for a checkpoint."""
        told: dict[str, np.ndarray[Any, Any]] = {}
        for t in others:
            opened, name = self.rounds[t], f"{_ROUND}.{t}"
            told[name] = opened.model
            states = ((k, v) for k, v in opened.state.items() if isinstance(v, np.ndarray))
            told |= {f"{name}.{_STATE}.{key}": value for key, value in states}
        return told

    def values(self, others: Collection[int]) -> Json:
        """What else they are made of: of each its version, and the numbers of its state."""
        return {
            str(t): {
                "version": opened.version,
                _STATE: {k: v for k, v in opened.state.items() if not isinstance(v, np.ndarray)},
            }
            for t, opened in ((t, self.rounds[t]) for t in others)
        }

    @classmethod
    def restored(cls, work: Workload, arrays: Arrays, values: Json) -> UnderWay:
        """The inverse of `arrays` and `values`."""
        return cls({int(t): _reopened(work, int(t), arrays, said) for t, said in values.items()})


def _reopened(work: Workload, t: int, arrays: Arrays, said: Json) -> OpenRound:
    name = f"{_ROUND}.{t}"
    prefix = f"{name}.{_STATE}."
    kept = {k.removeprefix(prefix): array for k, array in arrays.items() if k.startswith(prefix)}
    turn, state = Round(t, work.experiment.run.rounds), {**said[_STATE], **kept}
    return OpenRound.of(work.strategy, turn, work.layout, arrays[name], state, int(said["version"]))
