"""`simulate`: an experiment from beginning to end, with its folder, its progress and its result."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fedtiny.errors import ExperimentError, RunError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.runs import Checkpoint, Dropped, RunFolder
from fedtiny.simulator.clock import format_time
from fedtiny.simulator.simulation import DeviceForm, Simulation

if TYPE_CHECKING:
    from fedtiny.layout import Layout
    from fedtiny.tensors import Float32


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a round."""

    round: int
    rounds: int
    updates: int
    time_s: float
    loss: float | None
    wall_s: float


@dataclass(frozen=True, eq=False)
class Result:
    """What a run came to. ``history`` and ``summary`` are those of the run folder.

    ``dropped`` is what a resume had to cut off the history before it went on.
    """

    experiment: Experiment
    layout: Layout
    model: Float32
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    interrupted: bool = False
    folder: Path | None = None
    dropped: Dropped | None = None

    def evaluations(self, name: str = "") -> list[dict[str, Any]]:
        """The rows of the evaluations, of one name or of all."""
        rows = (row for row in self.history if row["kind"] == "evaluation")
        return [row for row in rows if row["name"] == name or not name]

    def __str__(self) -> str:
        s = self.summary
        lines = [
            f"{s['rounds']:,} rounds, {s['updates']:,} updates in {format_time(s['time_s'])} of "
            f"virtual time; {s['bytes_up'] / 1e6:,.1f} MB up, {s['energy_j']:,.1f} J"
        ]
        if s["rounds"] and s["failed_rounds"] == s["rounds"]:
            lines.append(f"every round failed: {_most_frequent(s['reasons'])}")
        for name, row in s["evaluations"].items():
            lines.append(f"{name}: {_told(row)} ({row['devices']} devices)")
        for name, row in s["online"].items():
            lines.append(f"{name}: {_told_online(row)} ({row['devices']} devices)")
        return "\n".join(lines)


def _most_frequent(reasons: Mapping[str, Mapping[str, Any]]) -> str:
    if not reasons:
        return "too few updates arrived before the deadline; raise run.deadline or lower minimum"
    most = max(reasons.values(), key=lambda entry: int(entry["count"]))
    return f"{most['count']:,} updates were refused, such as for: {most['example']}"


def _told(row: Mapping[str, Any]) -> str:
    if "diverged" in row:
        return f"diverged on {row['diverged']:,}"
    if not row["devices"]:
        return "nobody could be judged"
    what = "accuracy" if "accuracy_after" in row else "loss"
    before, after, ci = (row[f"{what}_{k}"] for k in ("before", "after", "after_ci"))
    return f"{what} {before:.3f} before and {after:.3f} +- {ci:.3f} after adaptation"


def _told_online(row: Mapping[str, Any]) -> str:
    if row["adapted"] is None:
        return "nobody met a stream"
    what = row["measure"]
    values = (row[f"{what}_{k}"] for k in ("new_before", "new_after", "first_before"))
    new_before, new_after, first = (math.nan if v is None else v for v in values)
    return (
        f"{what} {new_before:.3f} in the new domain before the stream and {new_after:.3f} after "
        f"it, with steps on {100 * row['adapted']:.3g} % of the samples; {first:.3f} in the first "
        f"domain, forgetting {math.nan if row['forgetting'] is None else row['forgetting']:.3f}"
    )


def simulate(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    devices: DeviceForm = "columns",
) -> Result:
    """Run an experiment under the virtual clock.

    Args:
        experiment: An Experiment, its tables, or its file.
        out: A folder for the history, the models and the checkpoints; none is written without it.
        resume: Go on in ``out`` after its last checkpoint; the result is that of a run that was
            never interrupted, bit for bit.
        progress: Called after every round.
        devices: "columns" (whole cohorts in C; objects where there is no native runtime) or
            "objects" (one session and one learner at a time). Both give the same result.

    On Ctrl-C the round is finished, a checkpoint is saved, and the result says ``interrupted``.
    When the strategy raises, the checkpoint is that of the last round that it finished.
    """
    if devices not in get_args(DeviceForm):
        raise ExperimentError(f"devices = {devices!r} is not 'columns' or 'objects'")
    if resume and out is None:
        raise RunError("there is nothing to resume without a folder; name that of the run in out=")
    made = Experiment.of(experiment)
    log = _Log.open(made, out, resume)
    started = time.perf_counter()
    making = Simulation(made, devices, log.append, log.checkpoint(resume))
    with closing(making) as simulation, _interruption() as interrupted:
        while not interrupted.is_set() and (row := log.step(simulation)) is not None:
            log.keep(simulation, row["round"] + 1, last=interrupted.is_set())
            if progress:
                progress(_progress(simulation, row, time.perf_counter() - started))
        return log.close(simulation, interrupted.is_set() and not simulation.finished)


def _progress(simulation: Simulation, row: dict[str, Any], wall_s: float) -> Progress:
    rounds, updates = simulation.rules.rounds, simulation.standing.ledger.total.accepted
    return Progress(row["round"] + 1, rounds, updates, row["time_s"], row["loss"], wall_s)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(eq=False)
class _Log:
    """The history, in memory and in the run folder if there is one."""

    experiment: Experiment
    out: Path | str | None
    folder: RunFolder | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: Dropped | None = None

    @classmethod
    def open(cls, experiment: Experiment, out: Path | str | None, resume: bool) -> _Log:
        if out is None or not resume:
            return cls(experiment, out)
        folder, dropped = RunFolder.resume(out, experiment)
        return cls(experiment, out, folder, folder.history(), dropped)

    def checkpoint(self, resume: bool) -> Checkpoint | None:
        return self.folder.checkpoint() if self.folder and resume else None

    def begin(self) -> RunFolder | None:
        """The folder; a new one is made with the first row, so that a failed start leaves none."""
        if self.folder is None and self.out is not None:
            self.folder = RunFolder.create(self.out, self.experiment)
        return self.folder

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if folder := self.begin():
            folder.append(row)

    def step(self, simulation: Simulation) -> dict[str, Any] | None:
        """The next round; if it fails, the round before it is where to go on."""
        if not self.folder:
            return simulation.step()
        before, rows = simulation.checkpoint(), len(self.rows)
        try:
            return simulation.step()
        except BaseException as error:  # a second Ctrl-C, too
            if before.round and len(self.rows) == rows:
                self.folder.save_checkpoint(before)
            if not isinstance(error, StrategyError):
                raise
            raise StrategyError(
                f"{error}; nothing before this round is lost: repair the strategy and go on with "
                f"fedtiny simulate --resume {self.folder.path}"
            ) from error

    def keep(self, simulation: Simulation, done: int, last: bool) -> None:
        """Save the model and the checkpoint when they are due."""
        run = self.experiment.run
        if not self.folder:
            return
        if run.save_every and done % run.save_every == 0:
            self.folder.save_model(done, simulation.layout.unflatten(simulation.standing.model))
        if last or done % run.checkpoint_every == 0:
            self.folder.save_checkpoint(simulation.checkpoint())

    def close(self, simulation: Simulation, interrupted: bool) -> Result:
        summary = _summary(simulation, self.rows)
        if folder := self.begin():
            folder.save_checkpoint(simulation.checkpoint())
            if not interrupted:
                state = simulation.layout.unflatten(simulation.standing.model)
                folder.save_model(summary["rounds"], state)
            folder.save_summary(summary)
        path = folder.path if folder else None
        return Result(
            self.experiment, simulation.layout, simulation.standing.model, self.rows, summary,
            interrupted, path, self.dropped,
        )  # fmt: skip


def _summary(simulation: Simulation, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run; the same on any number of threads."""
    total, fleet = simulation.standing.ledger.total, simulation.fleet
    return {
        "rounds": simulation.standing.round,
        "failed_rounds": simulation.standing.ledger.failed_rounds,
        "time_s": simulation.standing.now,
        "updates": total.accepted,
        "refused": total.refused,
        "late": total.late,
        "reasons": simulation.standing.ledger.to_json()["reasons"],
        "bytes_down": total.bytes_down,
        "bytes_up": total.bytes_up,
        "energy_j": total.energy_j,
        "devices": simulation.experiment.fleet.devices,
        "unfit_devices": fleet.unfit,
        "profiles": [
            {
                "name": profile.name,
                "dtype": simulation.experiment.budget(profile.name).dtype,
                "plan": simulation.work.budget(profile.name).plan,
                "devices": count,
                "reasons": list(profile.reasons),
                "report": profile.needed.report(),
                "ram_given_bytes": simulation.experiment.budget(profile.name).ram_bytes,
            }
            for profile, count in zip(fleet.profiles, fleet.counts(), strict=True)
        ],
        "evaluations": {row["name"]: row for row in rows if row["kind"] == "evaluation"},
        "online": {row["name"]: row for row in rows if row["kind"] == "online"},
        "model_digest": hashlib.sha256(simulation.standing.model.tobytes()).hexdigest(),
    }
