"""Devices that lie: what a share of a simulated fleet sends in place of what it has trained.

The same devices attack in every round, and nothing else about them is special. What an attacker
sends depends on its own visit alone, so whole cohorts and single devices give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.data.tables import RowTable, Tabled, Task
from fedtiny.errors import ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.experiment.schema import Attack
    from fedtiny.tensors import Bools, Float32, Int64

NOBODY = 2**32 - 1
"""The device whose stream all who collude share: no fleet has it."""


@dataclass(frozen=True, eq=False)
class Attackers:
    """Who attacks in a run, and how; ``devices`` ascend."""

    run: int
    attack: Attack
    devices: Int64

    @classmethod
    def of(cls, experiment: Experiment, training: Int64) -> Attackers | None:
        """Those of an experiment, drawn among the devices that train; None if nobody attacks."""
        attack = experiment.attack
        if attack is None:
            return None
        count = round(attack.share * training.size)
        if not count:
            raise experiment.origin.error(
                ("attack", "share"),
                f"attack.share = {attack.share:g} of the {training.size:,} devices that train is "
                "nobody; raise it, or take [attack] out",
            )
        word = draws.words(experiment.seed, 0, training, Purpose.ATTACK, 1)[:, 0]
        drawn = training[np.argsort(word, kind="stable")[:count]]
        return cls(experiment.seed, attack, np.sort(drawn))

    @property
    def falsify(self) -> bool:
        """Whether they change what they send; if not, they are only wrong about their labels."""
        return self.attack.kind != "label-flip"

    def falsified(self, devices: Int64, values: Float32, base: Float32 | None) -> Float32:
        """What devices send that have trained these values: float32 [devices, coordinates].

        ``base`` is the model at these coordinates; None: the values are gradients.
        """
        lies = self._among(devices)
        if not self.falsify or not lies.any():
            return values
        start = np.zeros(values.shape[1], np.float32) if base is None else base
        sent = values.copy()
        sent[lies] = start + self._deltas(values[lies] - start)
        return sent

    def _deltas(self, trained: Float32) -> Float32:
        scale = np.float32(self.attack.scale or 1.0)
        if self.attack.kind == "collude":
            return np.tile(_direction(self.run, trained.shape[1]) * scale, (len(trained), 1))
        scaled: Float32 = trained * (-scale if self.attack.kind == "sign-flip" else scale)
        return scaled

    def misled(self, task: Task) -> Task:
        """The task as the devices see it: with wrong labels, if that is the attack."""
        if self.falsify:
            return task
        if task.classes is None:
            raise ExperimentError(
                "attack.kind = 'label-flip' takes data with labels, and a regression has none; "
                "choose another kind"
            )
        return WrongLabels(task, self)

    def _among(self, devices: Int64) -> Bools:
        return np.isin(devices, self.devices)


@cache
def _direction(run: int, size: int) -> Float32:
    """Where those who collude pull: a vector of norm 1."""
    words = draws.words(run, 0, np.array([NOBODY]), Purpose.ATTACK, size + size % 2)[0]
    normal = draws.normal(words)[:size].astype(np.float64)
    direction: Float32 = (normal / np.sqrt(np.sum(normal * normal))).astype(np.float32)
    return direction


@dataclass(frozen=True, eq=False)
class WrongLabels(Tabled):
    """A task whose attackers take class c for ``classes - 1 - c``."""

    task: Task
    attackers: Attackers

    @property
    def features(self) -> int:
        """Floats of one sample."""
        return self.task.features

    @property
    def outputs(self) -> int:
        """Logits of one sample."""
        return self.task.outputs

    @property
    def classes(self) -> int | None:
        """Those of the task."""
        return self.task.classes

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        return self.task.counts(run, devices)

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort, in its order."""
        true = self.task.table(run, round, devices)
        assert true.labels is not None
        assert self.classes is not None
        lies = self.attackers._among(np.asarray(devices))
        counts = np.diff(true.starts.astype(np.int64)).reshape(-1, 2).sum(axis=1)
        wrong = np.int32(self.classes - 1) - true.labels
        return replace(true, labels=np.where(np.repeat(lies, counts), wrong, true.labels))

    native = table
