"""Tasks: which samples each device has, drawn from the counter generator alone.

A task is a value. For a run (its seed), a round and devices it gives a RowTable: the samples of a
whole cohort in columns, as the C runtime takes them, and as one device's share is cut from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny import draws, elementary, references
from fedtiny.data.digits import FewShotDigits
from fedtiny.data.sources import SOURCES, Source, without_recordings
from fedtiny.data.tables import PARTS, RowTable, Sampler, Tabled, Task, even_starts
from fedtiny.errors import DataError, ExperimentError, did_you_mean
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.data.recordings import Preparation
    from fedtiny.data.tables import Samples
    from fedtiny.tensors import Int64


@dataclass(frozen=True, slots=True)
class SineTask(Tabled):
    """y = A sin(x + phi); A and phi belong to the device, x is drawn anew in each round.

    Finn et al. 2017. All three intervals are uniform; ``support`` and ``query`` count samples.
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, float(np.float32(np.pi)))
    domain: tuple[float, float] = (-5.0, 5.0)
    support: int = 32
    query: int = 32

    features = 1
    outputs = 1
    classes = None

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "domain"):
            low, high = getattr(self, name)
            if not -4096.0 <= low <= high <= 4096.0:
                raise ExperimentError(
                    f"{name} = [{low}, {high}] must ascend within [-4096, 4096], where the "
                    "canonical sine is exact"
                )
        if min(self.support, self.query) < 0:
            raise ExperimentError(f"support = {self.support}, query = {self.query}: not below 0")

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        return np.tile(np.array([self.support, self.query]), (len(devices), 1))

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort, in its order."""
        device = np.asarray(devices)
        of_device = draws.words(run, 0, device, Purpose.TASK, 2)
        amplitude = draws.uniform(of_device[:, :1], *self.amplitude)
        phase = draws.uniform(of_device[:, 1:], *self.phase)
        words = (
            draws.words(run, round, device, Purpose.SUPPORT, self.support),
            draws.words(run, round, device, Purpose.QUERY, self.query),
        )
        x = draws.uniform(np.concatenate(words, axis=1), *self.domain)
        y = amplitude * elementary.sin(x + phase)
        starts = even_starts(len(device), self.support, self.query)
        rows = np.arange(x.size, dtype=np.uint32)
        return RowTable(x.reshape(-1, 1), y.reshape(-1, 1), None, rows, starts)

    def native(self, run: int, round: int, devices: Sequence[int] | Int64) -> SineTask:
        """The recipe itself."""
        return self


@dataclass(frozen=True, slots=True)
class SampledTask:
    """A Task whose samples come one device at a time from an object of the user's own."""

    sampler: Sampler

    @property
    def features(self) -> int:
        """Floats of one sample."""
        return self.sampler.features

    @property
    def outputs(self) -> int:
        """Targets, or logits, of one sample."""
        return self.sampler.outputs

    @property
    def classes(self) -> int | None:
        """None for a regression."""
        return self.sampler.classes

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        """The user's samples, checked: DataError says what is wrong with them."""
        kind: Any = np.float32 if self.classes is None else np.int32
        try:
            given_x, given_y = self.sampler.samples(run, round, device, part)
            x, y = np.ascontiguousarray(given_x, np.float32), np.ascontiguousarray(given_y, kind)
        except Exception as error:
            raise DataError(
                f"samples() of device {device}'s {part} failed: {type(error).__name__}: {error}"
            ) from error
        shape = (len(x), self.outputs) if self.classes is None else (len(x),)
        if x.shape != (len(x), self.features) or y.shape != shape:
            raise DataError(
                f"device {device} gave x {x.shape} and targets {y.shape} as its {part}; the task "
                f"says x (n, {self.features}) and targets {('n', *shape[1:])}"
            )
        for what, values in (("values", x), ("targets", y)):
            wrong = values.size - np.count_nonzero(np.isfinite(values))
            if wrong:
                raise DataError(
                    f"{wrong} of {values.size} {what} of device {device}'s {part} are not finite; "
                    "clean them in samples()"
                )
        return x, y

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device in round 0: [devices, 2].

        A device whose samples are bad counts as one without; DataError when all are.
        """
        counts = np.zeros((len(devices), len(PARTS)), np.int64)
        bad: list[DataError] = []
        for row, device in zip(counts, devices, strict=True):
            try:
                row[:] = [len(self.samples(run, 0, int(device), part)[0]) for part in PARTS]
            except DataError as error:
                bad.append(error)
        if bad and len(bad) == len(devices):
            raise bad[0]
        return counts

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort, in its order."""
        parts = (self.samples(run, round, int(d), part) for d in devices for part in PARTS)
        return RowTable.from_samples(parts, self.classes)

    native = table


TASKS: Mapping[str, type[SineTask] | type[FewShotDigits] | Source] = {
    "sine": SineTask,
    "few-shot-digits": FewShotDigits,
    **SOURCES,
}


def build_task(
    source: str,
    arguments: Mapping[str, Any],
    devices: int,
    held_out: int = 0,
    preparation: Preparation | None = None,
) -> Task:
    """The task that an experiment names: one of TASKS, or "module:object" with `samples`.

    A row with a data set of its own takes ``partition`` beside the arguments of that partition,
    and makes its samples by the ``preparation`` if it has raw recordings.
    A class or function is called with the arguments. Raises ExperimentError for what it does not
    know, DataError when there are too few samples.
    """
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()
    }
    if ":" not in source and source not in TASKS:
        raise ExperimentError(
            f"there is no task {source!r}; {did_you_mean(source, TASKS)}there are "
            f"{', '.join(TASKS)}; your own is named as 'your_module:object'"
        )
    row = TASKS.get(source)
    if preparation is not None and not isinstance(row, Source):
        raise ExperimentError(without_recordings())
    if row is None:
        return task_of(references.call(source, values))
    made: type[Any] = (
        row.partitioned(values.pop("partition", None)) if isinstance(row, Source) else row
    )
    given: dict[str, Any] = {"devices": devices, "held_out": held_out, "data": None}
    names = [f.name for f in fields(made)]
    references.check_fields(f"the task {source!r}", made, values, hidden=given)
    if isinstance(row, Source):
        given["data"] = row.labelled(preparation)  # once everything else is known to be right
    task: Task = made(**values, **{name: given[name] for name in given if name in names})
    return task


def task_of(sampler: Any) -> Task:
    """The object itself if it is a Task, else a Task that asks it for each device's samples."""
    missing = [name for name in ("features", "outputs", "classes", "samples")
               if not hasattr(sampler, name)]  # fmt: skip
    if missing:
        raise ExperimentError(f"{type(sampler).__name__} is no task: it lacks {missing}")
    task: Task = sampler if hasattr(sampler, "table") else SampledTask(sampler)
    return task
