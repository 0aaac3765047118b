"""The simulated fleet in columns: who is what board, who may train, with which Program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.errors import DataError, RunError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Profile, Workload
from fedtiny.registry.cost import BoardColumns
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.tensors import Int64


@dataclass(frozen=True)
class Fleet:
    """The devices in columns. ``profile[d]`` is an index of ``profiles``.

    Attributes:
        training: Devices that a Program fits and that are not held out, ascending.
        held_out: Devices that never train.
    """

    profiles: tuple[Profile, ...]
    profile: Int64
    training: Int64
    held_out: Int64
    boards: BoardColumns

    @classmethod
    def of(cls, workload: Workload) -> Fleet:
        """The fleet of an experiment.

        Raises RunError when no device can take part, DataError when none of them has a sample.
        """
        experiment = workload.experiment
        names = tuple(experiment.fleet.profiles)
        profiles = workload.profiles
        profile = _assign(experiment)
        able = np.array([not p.reasons for p in profiles])[profile]
        count, held_out = experiment.fleet.devices, experiment.held_out
        training = np.flatnonzero(able[: count - held_out])
        if not training.size:
            reasons = "; ".join(r for p in profiles for r in p.reasons)
            raise RunError(f"none of the {count:,} devices can take part: {reasons}")
        samples = sum(column[training].sum() for column in workload.counts.values())
        if not samples:
            raise DataError(
                f"none of the {training.size:,} devices that train has a sample; give the data "
                f"{experiment.data.source} some, or lower fleet.devices"
            )
        boards = BoardColumns.of([experiment.profile(name) for name in names]).take(profile)
        return cls(profiles, profile, training, np.arange(count - held_out, count), boards)

    @property
    def unfit(self) -> int:
        """How many devices cannot take part."""
        unfit = np.array([bool(p.reasons) for p in self.profiles])
        return int(unfit[self.profile].sum())

    def counts(self) -> list[int]:
        """Devices of each profile."""
        return [int((self.profile == i).sum()) for i in range(len(self.profiles))]

    def split(self, devices: Int64) -> list[tuple[Profile, Int64]]:
        """The devices by Program: positions within ``devices``."""
        if len(self.profiles) == 1:
            return [(self.profiles[0], np.arange(devices.size))]
        owner = self._distinct[self.profile[devices]]
        return [(self.profiles[i], np.flatnonzero(owner == i)) for i in np.unique(owner)]

    @cached_property
    def _distinct(self) -> Int64:
        """For each profile, the first with the same Program."""
        digests = [p.program.digest if p.program else "" for p in self.profiles]
        return np.array([digests.index(d) for d in digests])


def _assign(experiment: Experiment) -> Int64:
    """A profile for each device: exact shares, in a drawn order."""
    count, shares = experiment.fleet.devices, experiment.fleet.profiles
    words = draws.words(experiment.seed, 0, np.arange(count), Purpose.PROFILE, 1)[:, 0]
    bounds = np.rint(np.cumsum(list(shares.values())) * count).astype(np.int64)
    profile = np.empty(count, np.int64)
    profile[np.argsort(words, kind="stable")] = np.searchsorted(bounds, np.arange(count), "right")
    return np.minimum(profile, len(shares) - 1)
