"""Drift over time: the mix of labels moves with the round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.data.labelled import Labelled
from fedtiny.data.pools import KINDS, Pools, check_share, class_pools
from fedtiny.data.tables import RowTable, Tabled, even_starts
from fedtiny.errors import DataError, ExperimentError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.tensors import Float64, Int64


@dataclass(frozen=True, slots=True)
class Drift(Tabled):
    """Every device draws anew in each round, by a mix of labels that goes to and fro.

    It goes in a straight line from ``first_mix`` to ``second_mix`` and back in ``period`` rounds;
    a mix is one weight a class. A visit has ``support`` and ``query`` samples, all different, as
    near to the mix as whole numbers are. Held-out devices draw from the test samples; where there
    are none, from the share ``held_out_samples`` of each class.
    """

    data: Labelled
    devices: int
    held_out: int = 0
    first_mix: tuple[float, ...] = ()
    second_mix: tuple[float, ...] = ()
    period: int = 100
    support: int = 32
    query: int = 32
    held_out_samples: float = 0.25

    @property
    def features(self) -> int:
        """Floats of one sample."""
        return self.data.features

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return self.data.classes

    @property
    def classes(self) -> int:
        """Those of the data set."""
        return self.data.classes

    def __post_init__(self) -> None:
        for name in ("first_mix", "second_mix"):
            self._check_mix(name, getattr(self, name))
        if min(self.period - 1, self.support, self.query) < 1:
            raise ExperimentError(
                f"period = {self.period} must be 2 or more, support = {self.support} and "
                f"query = {self.query} 1 or more"
            )
        check_share("held_out_samples", self.held_out_samples)
        self._check_supply()

    def _check_supply(self) -> None:
        # Every mix between the two has at most the larger share of a class.
        most = np.maximum(_shares(self.first_mix), _shares(self.second_mix))
        needed = np.ceil(most * self.support) + np.ceil(most * self.query)
        for kind, size in zip(KINDS, self._pools().size[: 1 + bool(self.held_out)], strict=False):
            for c in np.flatnonzero(size < needed)[:1]:
                raise DataError(
                    f"up to {needed[c]:.0f} samples of class {self.data.class_names[c]!r} are "
                    f"drawn for a visit; {kind} devices have {size[c]}: lower support or query, "
                    "or change held_out_samples"
                )

    def _check_mix(self, name: str, mix: tuple[float, ...]) -> None:
        weights = np.asarray(mix, np.float64)
        right = weights.shape == (self.classes,) and np.isfinite(weights).all()
        if not right or weights.min() < 0 or not weights.any():
            raise ExperimentError(
                f"{name} = {list(mix)} must be {self.classes} weights, none below 0, one above"
            )

    def _pools(self) -> Pools:
        return class_pools(self.data, self.held_out_samples if self.held_out else 0.0)

    def mix(self, round: int) -> Float64:
        """The share of each class in this round: [classes]."""
        place = 2.0 * (round % self.period) / self.period
        second = min(place, 2.0 - place)
        return (1.0 - second) * _shares(self.first_mix) + second * _shares(self.second_mix)

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        return np.tile(np.array([self.support, self.query]), (len(devices), 1))

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort, in a drawn order within each part."""
        device, mix = np.asarray(devices), self.mix(round)
        support, query = (_whole(mix, n) for n in (self.support, self.query))
        label = np.concatenate([np.repeat(np.arange(self.classes), n) for n in (support, query)])
        draw = np.concatenate([_up(np.zeros_like(support), support), _up(support, query)])
        kind = (device >= self.devices - self.held_out).astype(np.int64)[:, None]
        words = draws.words(run, round, device, Purpose.EPISODE, 8 + 4 * self.classes)
        keys = words.reshape(len(device), -1, 4)
        pools = self._pools()
        drawn = draws.shuffle(draw, pools.size[kind, label], keys[:, 2 + label])
        rows = self.data.rows_by_class(run)[pools.start[kind, label] + drawn]
        turns = (
            draws.shuffle(np.arange(self.support), self.support, keys[:, :1]),
            draws.shuffle(np.arange(self.query), self.query, keys[:, 1:2]) + self.support,
        )
        rows = np.take_along_axis(rows, np.concatenate(turns, axis=1), axis=1).ravel()
        starts = even_starts(len(device), self.support, self.query)
        return RowTable(self.data.x, None, self.data.label[rows], rows, starts)

    native = table


def _shares(mix: tuple[float, ...]) -> Float64:
    weights = np.asarray(mix, np.float64)
    shares: Float64 = weights / weights.sum()
    return shares


def _whole(mix: Float64, total: int) -> Int64:
    """How many of ``total`` samples each class gets."""
    cuts = np.floor(np.cumsum(mix) * total + 0.5).astype(np.int64)
    cuts[-1] = total
    counts: Int64 = np.diff(cuts, prepend=0)
    return counts


def _up(first: Int64, count: Int64) -> Int64:
    """``count[c]`` numbers upwards from ``first[c]``, for each c in turn."""
    ends = np.cumsum(count)
    numbers: Int64 = np.arange(ends[-1]) + np.repeat(first - (ends - count), count)
    return numbers
