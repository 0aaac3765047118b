"""The folder of a run that is served: what `fedtiny report` and `fedtiny export` read.

The database is what counts; the folder follows it, and is made anew from it at a start.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtiny.runs import RunFolder, replacing

if TYPE_CHECKING:
    from fedtiny.server.hosting import Hosted
    from fedtiny.values import DeviceCard


@dataclass(eq=False)
class Folder:
    """The folder of one run."""

    run: RunFolder
    summed_up: int = -1
    """Rounds that the summary counts."""

    @classmethod
    def open(cls, path: Path, hosted: Hosted) -> Folder:
        """The folder, brought up to the database."""
        run = RunFolder(path)
        if not run.exists:
            run = RunFolder.create(path, hosted.work.experiment)
        with replacing(path / "history.jsonl") as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in hosted.history())
        if run.summary() is None:
            run.save_summary({"deployed": True})  # the rest is in its history until it is over
        return cls(run)

    def follow(self, hosted: Hosted) -> None:
        """Write down what has been committed since; at the end, the model and the summary."""
        for row in hosted.durable:
            self.run.append(row)
            self._keep_model(row, hosted)
        hosted.durable.clear()
        done = hosted.coordinator.rounds.round
        if hosted.done and self.summed_up != done:
            self.summed_up = done
            self.close(hosted)

    def _keep_model(self, row: dict[str, Any], hosted: Hosted) -> None:
        every = hosted.work.experiment.run.save_every
        done = row["round"] + 1
        is_last = done == hosted.coordinator.rounds.round
        if row["kind"] == "round" and every and done % every == 0 and is_last:
            self._save(done, hosted)

    def _save(self, done: int, hosted: Hosted) -> None:
        self.run.save_model(done, hosted.work.layout.unflatten(hosted.coordinator.model))

    def close(self, hosted: Hosted) -> None:
        """The model as it is now, and what the run has come to."""
        self._save(hosted.coordinator.rounds.round, hosted)
        self.run.save_summary(summary(hosted))


def summary(hosted: Hosted) -> dict[str, Any]:
    """The figures of a run, under the names that a simulated one has for them.

    ``devices`` are those that have joined; what energy they spend nobody has measured.
    """
    total, rows = hosted.ledger.total, hosted.history()
    cards = list(hosted.cards())
    return {
        "deployed": True,
        "rounds": hosted.coordinator.rounds.round,
        "failed_rounds": hosted.ledger.failed_rounds,
        "time_s": rows[-1]["time_s"] if rows else 0.0,
        "updates": total.accepted,
        "refused": total.refused,
        "late": total.late,
        "reasons": hosted.ledger.to_json()["reasons"],
        "bytes_down": total.bytes_down,
        "bytes_up": total.bytes_up,
        "energy_j": None,
        "devices": len(cards),
        "unfit_devices": sum(1 for card in cards if hosted.misfits(card)),
        "profiles": _profiles(hosted),
        "evaluations": {row["name"]: row for row in rows if row["kind"] == "evaluation"},
        "model_digest": hashlib.sha256(hosted.coordinator.model.tobytes()).hexdigest(),
    }


def _profiles(hosted: Hosted) -> list[dict[str, Any]]:
    """The boards, with the devices that take the Program of each."""
    counts = Counter(_board_of(hosted, card) for card in hosted.cards())
    return [
        {
            "name": profile.name,
            "dtype": hosted.work.experiment.budget(profile.name).dtype,
            "plan": hosted.work.budget(profile.name).plan,
            "devices": counts[profile.name],
            "reasons": list(profile.reasons),
            "report": profile.needed.report(),
            "ram_given_bytes": hosted.work.experiment.budget(profile.name).ram_bytes,
        }
        for profile in hosted.work.profiles
    ]


def _board_of(hosted: Hosted, card: DeviceCard) -> str:
    """The board whose Program the device takes: that of its own profile, if it does."""
    program = hosted.models.program(card)
    boards = [p.name for p in hosted.work.profiles if program and p.program is program]
    return card.profile if card.profile in boards or not boards else boards[0]
