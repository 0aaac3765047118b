"""When devices can be reached, for whole fleets at once.

Every question is asked in columns: device indices, and a time for each or one for all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fedtiny import draws
from fedtiny.errors import DataError, ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.rng import Purpose
from fedtiny.simulator.clock import DAY

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float64, Int64

Devices = npt.NDArray[np.integer[Any]]


class Availability(Protocol):
    """When each device can be reached."""

    def available(self, devices: Devices, time: npt.ArrayLike) -> Bools:
        """Whether each device can be reached at that time (seconds)."""

    def next_available(self, devices: Devices, time: npt.ArrayLike) -> Float64:
        """The first time not before ``time`` at which each can be reached; inf when never."""


def availability_of(experiment: Experiment) -> Availability:
    """What ``[fleet] availability`` asks for."""
    fleet = experiment.fleet
    if fleet.availability == "always":
        return Always()
    if fleet.availability == "diurnal":
        return Diurnal.draw(experiment.seed, fleet.devices)
    if fleet.traces is not None:
        return Traces.load(experiment.find_file(fleet.traces))
    folder = os.environ.get("FEDTINY_DATA")
    if not folder:
        raise ExperimentError(
            "fleet.availability = 'traces' needs fleet.traces = 'FILE', or FEDTINY_DATA set to a "
            "folder with device_traces.json"
        )
    return Traces.load(Path(folder) / "device_traces.json")


class Always:
    """Every device at every time."""

    def available(self, devices: Devices, time: npt.ArrayLike) -> Bools:
        """True for each."""
        return np.ones(len(devices), bool)

    def next_available(self, devices: Devices, time: npt.ArrayLike) -> Float64:
        """Now."""
        return np.array(np.broadcast_to(np.asarray(time, float), len(devices)))


@dataclass(frozen=True)
class Diurnal:
    """Each device once a day, from ``start_s`` (second of the day) for ``length_s``.

    Such is a phone that charges at night, or a sensor that reports when power is cheap. Starts
    are whole seconds, so that the beginning of a window is met exactly.
    """

    start_s: Float64
    length_s: Float64

    @classmethod
    def draw(cls, run: int, devices: int) -> Diurnal:
        """The windows of a fleet.

        Each device has one of 24 time zones, a start from 20:00 to 24:00 local time and a length
        from 6 to 10 hours, so that about a third of the fleet can be reached at any time.
        """
        index = np.arange(devices, dtype=np.uint32)
        words = draws.words(run, 0, index, Purpose.AVAILABILITY, 3)
        zone_h = draws.below(words[:, 0], 24).astype(np.float64)
        past_20h_s, past_6h_s = draws.below(words[:, 1:], 4 * 3600).astype(np.float64).T
        return cls((20 * 3600 + past_20h_s - 3600 * zone_h) % DAY, 6 * 3600 + past_6h_s)

    def available(self, devices: Devices, time: npt.ArrayLike) -> Bools:
        """Whether the window is open."""
        since_start = (np.asarray(time, float) - self.start_s[devices]) % DAY
        return np.asarray(since_start < self.length_s[devices])

    def next_available(self, devices: Devices, time: npt.ArrayLike) -> Float64:
        """``time`` when the window is open, else its next start."""
        start = self.start_s[devices]
        next_start = start + DAY * np.ceil((np.asarray(time, float) - start) / DAY)
        return np.where(self.available(devices, time), time, next_start)


Spans = tuple[list[int], list[int], int]
"""Where the spans of one trace begin and end, and its period; in whole seconds."""


@dataclass(frozen=True)
class Traces:
    """Recorded spans, ends included, repeated for ever.

    Device d follows trace d mod n. Each time that the n traces were handed out before, it runs
    one day ahead, so that devices of one trace keep its hours but not its days.
    """

    begin: Float64
    end: Float64
    first: Int64
    """Trace r has the spans ``first[r]`` to ``first[r + 1]``."""
    period: Float64

    @classmethod
    def of(cls, traces: Sequence[Spans]) -> Traces:
        """The traces in their order."""
        begins, ends, periods = zip(*traces, strict=True)
        return cls(
            begin=np.array([b for begin in begins for b in begin], float),
            end=np.array([e for end in ends for e in end], float),
            first=np.cumsum([0, *map(len, begins)]),
            period=np.array(periods, float),
        )

    @classmethod
    def load(cls, path: Path) -> Traces:
        """The traces under ``fedscale_sample_100`` of a device_traces.json."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}") from None
        rows = document.get(_KEY) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} has no list of devices under {_KEY!r}")
        traces = [_spans(row, f"{path}, device {n}") for n, row in enumerate(rows)]
        if not any(begin for begin, _, _ in traces):
            raise DataError(f"{path}: no device is ever active")
        return cls.of(traces)

    def available(self, devices: Devices, time: npt.ArrayLike) -> Bools:
        """Whether a span is open."""
        return self._open(self._at(devices, time))

    def next_available(self, devices: Devices, time: npt.ArrayLike) -> Float64:
        """``time`` when a span is open, else the beginning of the next."""
        at = self._at(devices, time)
        first, stop = self.first[at.trace], self.first[at.trace + 1]
        wraps = at.span + 1 >= stop
        span = np.minimum(np.where(wraps, first, at.span + 1), len(self.begin) - 1)
        begins = at.origin + self.begin[span] + np.where(wraps, self.period[at.trace], 0.0)
        later = np.where(first == stop, np.inf, begins)
        return np.where(self._open(at), time, later)

    @cached_property
    def _offset(self) -> Float64:
        """Where each trace stands on one axis for all, so that one search finds every span."""
        return np.concatenate([[0.0], np.cumsum(self.period)[:-1]])

    @cached_property
    def _begins(self) -> Float64:
        return self.begin + np.repeat(self._offset, np.diff(self.first))

    def _at(self, devices: Devices, time: npt.ArrayLike) -> _At:
        trace = np.asarray(devices, np.int64) % len(self.period)
        ahead = np.asarray(devices, np.int64) // len(self.period) * DAY
        period = self.period[trace]
        origin = np.floor((np.asarray(time, float) + ahead) / period) * period - ahead
        second = time - origin
        span = np.searchsorted(self._begins, self._offset[trace] + second, side="right") - 1
        return _At(trace, origin, second, span)

    def _open(self, at: _At) -> Bools:
        begun = at.span >= self.first[at.trace]
        return np.asarray(begun & (at.second <= self.end[np.maximum(at.span, 0)]))


@dataclass(frozen=True, slots=True)
class _At:
    """Where devices are in their traces: the period began at ``origin``, ``second`` s ago; the
    last span that had begun, or one before the trace's first."""

    trace: Int64
    origin: Float64
    second: Float64
    span: Int64


_KEY = "fedscale_sample_100"


def _spans(row: Any, where: str) -> Spans:
    """One trace, checked: whole seconds, as many ends as beginnings, in order, in its period."""
    try:
        begin, end, period = row["active"], row["inactive"], row["finish_time"]
        numbers = [*begin, *end, period]
    except (KeyError, TypeError) as error:
        raise DataError(f"{where} lacks active, inactive or finish_time: {error}") from None
    if any(type(number) is not int for number in numbers):
        raise DataError(f"{where} has times that are not whole seconds")
    if len(begin) != len(end):
        raise DataError(f"{where} has {len(begin)} beginnings of spans but {len(end)} ends")
    edges = [edge for span in zip(begin, end, strict=True) for edge in span]
    if any(a > b for a, b in pairwise([0, *edges])):
        raise DataError(f"{where} has spans that overlap or are out of order")
    if period < 1 or (edges and (end[-1] > period or begin[-1] >= period)):
        raise DataError(f"{where} has spans past its finish_time of {period} s")
    return begin, end, period
