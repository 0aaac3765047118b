"""What a run's folder says, in the order in which a reader asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedtiny.report.units import measured, percent
from fedtiny.runs import RunFolder
from fedtiny.tensors import FLOAT_BYTES

Series = dict[str, list[tuple[int, float]]]
"""By name: rounds and what was told in them."""


@dataclass(frozen=True)
class Point:
    """One evaluation, and what the run had cost when it was made."""

    round: int
    time_s: float
    nbytes: int
    energy_j: float
    row: Mapping[str, Any]

    def measure(self, name: str, when: str) -> tuple[float, float]:
        """Value and half-width of its 95 % interval; ``when`` is "before" or "after" adapting.

        Both are NaN where a device diverged, and where none could be judged.
        """
        value, half = self.row[f"{name}_{when}"], self.row[f"{name}_{when}_ci"]
        return math.nan if value is None else value, math.nan if half is None else half

    def told(self, name: str, when: str) -> str:
        """`measure` as people read it."""
        value, half = self.measure(name, when)
        if math.isnan(value):
            return "diverged" if self.row["devices"] else "nobody judged"
        return measured(name, value, half)


@dataclass(frozen=True)
class Stream:
    """What devices came to on one stream after the last round, and what was asked for."""

    row: Mapping[str, Any]
    asked: Mapping[str, Any]

    @property
    def measure(self) -> str:
        """What was judged: "accuracy" or "loss"."""
        return str(self.row["measure"])

    @property
    def begins(self) -> int:
        """Samples before the drift."""
        return int(self.asked["drift_begins"])

    @property
    def ends(self) -> int:
        """From this sample on all are of the new domain."""
        return int(self.asked.get("drift_ends", self.begins))

    @property
    def domain(self) -> str:
        """What it drifts to, and when: ``rotate:90 from sample 200 on``."""
        mix = f"labels mixed {', '.join(f'{w:g}' for w in self.asked.get('mix', ()))}"
        what = [self.asked.get("drift"), mix if "mix" in self.asked else None]
        until = f" until {self.ends:,}" if self.ends > self.begins else " on"
        return f"{' and '.join(filter(None, what))} from sample {self.begins:,}{until}"

    def value(self, name: str) -> tuple[float, float]:
        """A measure and the half-width of its 95 % interval, an accuracy in percent; NaN where
        there is none."""
        factor = 100.0 if self.measure == "accuracy" else 1.0
        key = name if name == "forgetting" else f"{self.measure}_{name}"
        pair = self.row.get(key), self.row.get(f"{key}_ci")
        value, half = (math.nan if one is None else factor * one for one in pair)
        return value, half

    @property
    def steps(self) -> str:
        """The share of the samples on which a step was taken, as people read it."""
        return percent(self.row["adapted"]) if self.row["adapted"] else "none"

    @property
    def curve(self) -> list[tuple[float, float, float, float]]:
        """Window by window: the sample in its middle, the measure with its half-width, and the
        share of samples with a step."""
        width, names = self.row["window_samples"], (f"{self.measure}_curve", "adapted_curve")
        means, shares = (self.row[name] for name in names)
        halves = self.row[f"{names[0]}_ci"]
        ends = (min((i + 1) * width, self.row["samples"]) for i in range(len(means)))
        places = [(i * width + end) / 2 for i, end in enumerate(ends)]
        known = ([math.nan if v is None else v for v in column] for column in (means, halves))
        return list(zip(places, *known, shares, strict=True))


@dataclass(frozen=True)
class Record:
    """A run as far as it came.

    Attributes:
        experiment: Every value of the experiment, defaults included.
        text: The experiment file.
        history: The rows of history.jsonl.
        summary: summary.json; while the run is under way, what the history adds up to.
    """

    experiment: Mapping[str, Any]
    text: str
    history: list[dict[str, Any]]
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, run: RunFolder) -> Record:
        """The record of a folder, whether its run has ended or not."""
        history, summary = run.history(), run.summary() or {}
        sums = _so_far(history)
        current = summary.get("rounds", -1) >= sums["rounds"]
        return cls(
            run.experiment, run.source[0], history, summary if current else {**sums, **summary}
        )

    @property
    def title(self) -> str:
        """The strategy and what it learns: ``tinyreptile on sine``."""
        strategy = self.experiment["strategy"]
        return f"{strategy.get('name') or strategy['build']} on {self.experiment['data']['source']}"

    @property
    def is_deployed(self) -> bool:
        """Whether real devices took part: then nobody knows what energy they have spent."""
        return bool(self.summary.get("deployed"))

    @property
    def profiles(self) -> list[Mapping[str, Any]]:
        """One mapping for each board profile of the fleet."""
        return list(self.summary["profiles"])

    @property
    def parameters(self) -> int | None:
        """Floats of the model, of one that is pruned the most that live on a device; None while
        there is no summary."""
        reports = [profile["report"] for profile in self.profiles]
        nbytes = (r["parameters_bytes"] - r.get("index_bytes", 0) for r in reports)
        return max((each // FLOAT_BYTES for each in nbytes), default=None)

    @property
    def prunes(self) -> bool:
        """Whether devices hold live weights alone."""
        return any(profile["report"].get("live_values") for profile in self.profiles)

    @property
    def refusals(self) -> list[str]:
        """How many updates were refused for one reason, with an example; the most frequent first.

        The kind of a reason is its text without the numbers, so an example tells it as well.
        """
        found = self.summary.get("reasons", {}).values()
        return [
            f"{why['count']:,} refused, such as for: {why['example']}"
            for why in sorted(found, key=lambda why: -int(why["count"]))
        ]

    @property
    def is_complete(self) -> bool:
        """Whether all rounds were run."""
        return int(self.summary["rounds"]) >= int(self.experiment["run"]["rounds"])

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """The history's rows of rounds."""
        return [row for row in self.history if row["kind"] == "round"]

    @cached_property
    def evaluations(self) -> dict[str, list[Point]]:
        """The evaluations of each name, in the order in which they were made."""
        found: dict[str, list[Point]] = {}
        nbytes, energy_j = 0, 0.0
        for row in self.history:
            if row["kind"] == "round":
                nbytes += row["bytes_down"] + row["bytes_up"]
                energy_j += row["energy_j"]
            elif row["kind"] == "evaluation":
                point = Point(row["round"], row["time_s"], nbytes, energy_j, row)
                found.setdefault(row["name"], []).append(point)
        return found

    @cached_property
    def online(self) -> dict[str, Stream]:
        """What came of each stream, by the name of its section."""
        asked = self.experiment.get("online", {})
        rows = (row for row in self.history if row["kind"] == "online" and row["devices"])
        return {row["name"]: Stream(row, asked[row["name"]]) for row in rows}

    def telemetry(self, kind: str) -> Series:
        """What the strategy told in its rounds under ``KIND.NAME``, by that name."""
        found: Series = {}
        for row in self.rounds:
            for key, value in row.get("telemetry", {}).items():
                told, _, name = key.partition(".")
                if told == kind:
                    found.setdefault(name, []).append((row["round"] + 1, value))
        return found

    @property
    def measures(self) -> tuple[str, ...]:
        """What was judged: with class labels the accuracy, and the loss."""
        points = [points[-1] for points in self.evaluations.values()]
        names = ("accuracy", "loss")
        return tuple(n for n in names if points and all(f"{n}_after" in p.row for p in points))


def _so_far(history: list[dict[str, Any]]) -> dict[str, Any]:
    rounds = [row for row in history if row["kind"] == "round"]
    totals = {
        key: sum(row[key] for row in rounds)
        for key in ("refused", "bytes_down", "bytes_up", "energy_j")
    }
    return {
        "rounds": len(rounds),
        "failed_rounds": sum(row["failed"] for row in rounds),
        "time_s": history[-1]["time_s"] if history else 0.0,
        "updates": sum(row["accepted"] for row in rounds),
        **totals,
        "reasons": _reasons(rounds),
        "profiles": [],
    }


def _reasons(rounds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The reasons of all rounds, each with its first example."""
    found: dict[str, dict[str, Any]] = {}
    for row in rounds:
        for kind, why in row.get("reasons", {}).items():
            found.setdefault(kind, {**why, "count": 0})["count"] += why["count"]
    return found
