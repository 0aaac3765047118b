"""What robust strategies share: every update is looked at by itself, and suspects are shut out.

All updates count the same, whatever number of samples they claim: nobody can check it. A rule works
on rows of deltas with NaN where a device did not train; coordinates that nobody trained stay.

Where devices have unlike data, honest deltas lie apart, and a rule that believes the crowd loses
what few know. Mixing mends that: Y. Allouah et al., "Fixing by Mixing: A Recipe for Optimal
Byzantine ML under Heterogeneity", AISTATS 2023, algorithm 2 (nearest neighbour mixing). Of n
deltas, f of which may lie, each gives way to the mean of the n - f that are closest to it, itself
among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedtiny.fold import Total
from fedtiny.strategies.base import Averaging, Round, deltas, require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedtiny.layout import Layout
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Bools, Float32, Float64, Int64
    from fedtiny.values import Update

FAR = 5.0
"""A suspect lies further from the aggregate than so many times the median distance."""


@dataclass(frozen=True, kw_only=True)
class Robust(Averaging):
    """Averaging by a rule that a few devices cannot lead astray.

    Attributes:
        quarantine: Rounds for which a device is not asked that was suspected too often, before it
            begins anew; 0: nobody is barred.
        strikes: Suspicions in a row, in rounds that it took part in, after which it is barred.
        mix: Devices of a cohort that may lie (f) when deltas are mixed before the rule; 0: they are
            not mixed.
    """

    quarantine: int = 0
    strikes: int = 3
    mix: int = 0

    needs: ClassVar[Literal["sum", "all"]] = "all"

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "quarantine", self.quarantine >= 0, "0 (off) or a number of rounds")
        require(self, "strikes", 1 <= self.strikes <= 255, "from 1 to 255")
        most = (self.cohort - 1) // 2
        require(self, "mix", 0 <= self.mix <= most, f"0 (off) or up to (cohort - 1) / 2 = {most}")

    def aggregate(self, rows: Float64) -> Float64:
        """The rule: what the rows of deltas come to, coordinate by coordinate."""
        raise NotImplementedError

    def suspects(self, rows: Float64, aggregate: Float64) -> Bools:
        """Which of the rows are under suspicion: those that lie far away."""
        away = distances(rows, aggregate)
        return np.asarray(away > FAR * np.median(away))

    def start(self, layout: Layout, model: Float32) -> State:
        """The state of the server's optimiser; and by device, as far as one was heard of, its
        strikes and the rounds that are left of its quarantine."""
        record: State = {"strikes": np.zeros(0, np.uint8), "barred": np.zeros(0)}
        return {**super().start(layout, model), **(record if self.quarantine else {})}

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """One step of the server's optimiser along the aggregate."""
        assert not isinstance(contribution, Total)
        updates = list(contribution)
        rows = deltas(updates, model)
        aggregate = self.aggregate(mixed(rows, self.mix) if self.mix else rows)
        stepped, optimiser = self.server(round).step(model, aggregate, state)
        return stepped, {**optimiser, **self._record(updates, rows, aggregate, state)}

    def barred(self, state: State) -> Int64:
        """The devices in quarantine."""
        return np.flatnonzero(state["barred"]) if self.quarantine else np.empty(0, np.int64)

    def telemetry(self, round: Round, model: Float32, state: State) -> Mapping[str, float]:
        """How many devices are in quarantine."""
        return {"barred": float(self.barred(state).size)} if self.quarantine else {}

    def _record(
        self, updates: Iterable[Update], rows: Float64, aggregate: Float64, state: State
    ) -> State:
        """The record of each device after a round."""
        if not self.quarantine:
            return {}
        devices = np.array([update.device for update in updates])
        unheard = max(0, int(devices.max()) + 1 - np.size(state["strikes"]))
        strikes = np.pad(np.asarray(state["strikes"], np.uint8), (0, unheard))
        barred = np.pad(np.maximum(np.asarray(state["barred"]) - 1.0, 0.0), (0, unheard))
        strikes[devices] = np.where(self.suspects(rows, aggregate), strikes[devices] + 1, 0)
        guilty = strikes >= self.strikes
        strikes[guilty], barred[guilty] = 0, self.quarantine
        return {"strikes": strikes, "barred": barred}


def distances(rows: Float64, point: Float64) -> Float64:
    """How far each row is from the point, by the coordinates that both have.

    The others that anybody trained count as if they lay as far apart; infinity if all do.
    """
    gaps = rows - point
    common = ~np.isnan(gaps)
    if common.all():
        return np.asarray(np.sqrt(np.sum(gaps * gaps, axis=1)))
    squares = np.sum(np.where(common, gaps, 0.0) ** 2, axis=1)
    known, trained = np.count_nonzero(common, axis=1), ~np.isnan(rows).all(axis=0)
    scaled = np.full(len(rows), np.inf)
    np.divide(squares * np.count_nonzero(trained), known, out=scaled, where=known > 0)
    return np.asarray(np.sqrt(scaled))


def mixed(rows: Float64, liars: int) -> Float64:
    """Each row as the mean of those closest to it: all but as many as may lie."""
    count = max(1, len(rows) - liars)
    near = [rows[np.argsort(distances(rows, row), kind="stable")[:count]] for row in rows]
    unknown = [np.isnan(group).all(axis=0) for group in near]
    means = [mean(group, np.ones(count)) for group in near]
    return np.where(unknown, np.nan, means)


def mean(rows: Float64, weights: Float64) -> Float64:
    """The weighted mean of each coordinate over those who trained it; 0 if nobody did."""
    trained, column = ~np.isnan(rows), weights[:, None]
    total = np.sum(column * np.where(trained, rows, 0.0), axis=0)
    weight = np.sum(column * trained, axis=0)
    result: Float64 = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return result
