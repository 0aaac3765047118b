"""`simulate`: an experiment from beginning to end, with its folder, its progress and its result."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtiny.experiment import Experiment
from fedtiny.runs import Checkpoint, RunFolder
from fedtiny.simulator.clock import format_time
from fedtiny.simulator.simulation import COLUMNS, Simulation

if TYPE_CHECKING:
    from fedtiny.tensors import Float32
    from fedtiny.values import Layout


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
    """What a run came to. ``history`` and ``summary`` are those of the run folder."""

    experiment: Experiment
    layout: Layout
    model: Float32
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    interrupted: bool = False
    folder: Path | None = None

    def evaluations(self, name: str = "") -> list[dict[str, Any]]:
        """The rows of the evaluations, of one protocol or of all."""
        rows = (row for row in self.history if row["kind"] == "evaluation")
        return [row for row in rows if row["name"] == name or not name]

    def __str__(self) -> str:
        s = self.summary
        lines = [
            f"{s['rounds']:,} rounds, {s['updates']:,} updates in {format_time(s['time_s'])} of "
            f"virtual time; {s['bytes_up'] / 1e6:,.1f} MB up, {s['energy_j']:,.1f} J"
        ]
        for name, row in s["evaluations"].items():
            what = "accuracy" if "accuracy_after" in row else "loss"
            before, after, ci = (row[f"{what}_{k}"] for k in ("before", "after", "after_ci"))
            lines.append(
                f"{name}: {what} {before:.3f} before and {after:.3f} +- {ci:.3f} after adaptation "
                f"({row['devices']} devices)"
            )
        return "\n".join(lines)


def simulate(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    devices: str = COLUMNS,
) -> Result:
    """Run an experiment under the virtual clock.

    Args:
        experiment: An Experiment, its tables, or its file.
        out: A folder for the history, the models and the checkpoints; none is written without it.
        resume: Go on in ``out`` after its last checkpoint; the result is that of a run that was
            never interrupted, bit for bit.
        progress: Called after every round.
        devices: "columns" or "objects"; see `Simulation`.

    On Ctrl-C the round is finished, a checkpoint is saved, and the result says ``interrupted``.
    """
    made = Experiment.of(experiment)
    log = _Log.open(made, out, resume)
    simulation = Simulation(made, devices, log.append, log.checkpoint(resume))
    started = time.perf_counter()
    with _interruption() as interrupted:
        while not interrupted.is_set() and (row := simulation.step()) is not None:
            log.keep(simulation, row["round"] + 1, last=interrupted.is_set())
            if progress:
                progress(_progress(simulation, row, time.perf_counter() - started))
    return log.close(simulation, interrupted.is_set() and not simulation.finished)


def _progress(simulation: Simulation, row: dict[str, Any], wall_s: float) -> Progress:
    rounds, updates = simulation.rules.rounds, simulation.ledger.total.accepted
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
    folder: RunFolder | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, experiment: Experiment, out: Path | str | None, resume: bool) -> _Log:
        if out is None:
            return cls(experiment, None)
        if not resume:
            return cls(experiment, RunFolder.create(out, experiment))
        folder, _ = RunFolder.resume(out, experiment)
        return cls(experiment, folder, folder.history())

    def checkpoint(self, resume: bool) -> Checkpoint | None:
        return self.folder.checkpoint() if self.folder and resume else None

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.folder:
            self.folder.append(row)

    def keep(self, simulation: Simulation, done: int, last: bool) -> None:
        """Save the model and the checkpoint when they are due."""
        run = self.experiment.run
        if not self.folder:
            return
        if run.save_every and done % run.save_every == 0:
            self.folder.save_model(done, simulation.layout.unflatten(simulation.model))
        if last or done % run.checkpoint_every == 0:
            self.folder.save_checkpoint(simulation.checkpoint())

    def close(self, simulation: Simulation, interrupted: bool) -> Result:
        summary = _summary(simulation, self.rows)
        if self.folder:
            self.folder.save_checkpoint(simulation.checkpoint())
            if not interrupted:
                state = simulation.layout.unflatten(simulation.model)
                self.folder.save_model(summary["rounds"], state)
                self.folder.save_summary(summary)
        path = self.folder.path if self.folder else None
        return Result(
            self.experiment, simulation.layout, simulation.model, self.rows, summary, interrupted,
            path,
        )  # fmt: skip


def _summary(simulation: Simulation, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run; the same on any number of threads."""
    total, fleet = simulation.ledger.total, simulation.fleet
    return {
        "rounds": simulation.rounds.round,
        "failed_rounds": simulation.ledger.failed_rounds,
        "time_s": simulation.now,
        "updates": total.accepted,
        "refused": total.refused,
        "late": total.late,
        "bytes_down": total.bytes_down,
        "bytes_up": total.bytes_up,
        "energy_j": total.energy_j,
        "devices": simulation.experiment.fleet.devices,
        "unfit_devices": fleet.unfit,
        "profiles": [
            {
                "name": profile.name,
                "devices": count,
                "reasons": list(profile.reasons),
                "report": profile.needed.report(),
                "ram_given_bytes": simulation.experiment.budget(profile.name).ram_bytes,
            }
            for profile, count in zip(fleet.profiles, fleet.counts(), strict=True)
        ],
        "evaluations": {row["name"]: row for row in rows if row["kind"] == "evaluation"},
        "model_digest": hashlib.sha256(simulation.model.tobytes()).hexdigest(),
    }
