"""The folder of a run: what was asked for, what happened, the models, and where to go on.

    experiment.toml            the experiment as it was written
    experiment.json            the same with every default, its digest, and where it came from
    history.jsonl              one JSON object a line, written when a round commits
    models/round-000100.npz    the named arrays of the model after a round
    checkpoint.npz             all that a later process needs to go on
    summary.json               what the run came to, or had come to when it was interrupted
    report.html                the report, made from the files above
    export/                    models for use elsewhere

Nothing is pickled. A file that is replaced is the old one or the new one, whole, at every instant.
The history only grows; a checkpoint remembers how long it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Protocol
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from fedtiny.durable import naming_files, rename
from fedtiny.errors import RunError

Arrays = Mapping[str, npt.NDArray[Any]]
Json = Mapping[str, Any]

_VALUES = "values.json"  # the member of a checkpoint that is not an array


class Described(Protocol):
    """What a run folder asks of an experiment."""

    @property
    def text(self) -> str:
        """The experiment as a TOML text."""

    @property
    def folder(self) -> str:
        """Where the modules and files that it names are looked for."""

    @property
    def digest(self) -> str:
        """Of all that can change a result."""

    def to_json(self) -> dict[str, Any]:
        """Every value, defaults included."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a later process needs to go on after a round: arrays and plain values by name."""

    round: int
    arrays: Arrays
    values: Json


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a resume cut off the history, since no checkpoint vouches for it."""

    rows: int
    nbytes: int
    torn: bool

    def __str__(self) -> str:
        torn = ", the last of them cut short" if self.torn else ""
        return f"dropped {self.rows} rows of history ({self.nbytes:,} B) past the checkpoint{torn}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, written by one process at a time."""

    path: Path

    # ---- opening ----

    @classmethod
    def create(cls, path: str | Path, experiment: Described) -> RunFolder:
        """A new folder, or one that is empty. Raises RunError for any other."""
        run = cls(Path(path))
        with naming_files("choose a folder that can be written"):
            if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
                remedy = "resume it, or choose another" if run.exists else "choose another"
                raise RunError(f"{path} is there already and is not an empty folder; {remedy}")
            run._models.mkdir(parents=True, exist_ok=True)
            run._toml.write_text(experiment.text, encoding="utf-8")
            run._history.touch()
        facts = {"digest": experiment.digest, "folder": experiment.folder}
        _write_json(run._facts, {**facts, "experiment": experiment.to_json()})
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier run, to be read. Raises RunError when it is none."""
        run = cls(Path(path))
        if not run.exists:
            raise RunError(f"{path} is not the folder of a run: it has no {run._facts.name}")
        return run

    @classmethod
    def resume(cls, path: str | Path, experiment: Described) -> tuple[RunFolder, Dropped]:
        """The folder of an interrupted run, its history cut back to the checkpoint, to go on.

        Raises RunError when it is the run of another experiment, naming the keys that differ.
        """
        run = cls.open(path)
        run._check_same(experiment)
        dropped = run._cut_history()
        run._summary.unlink(missing_ok=True)
        return run, dropped

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        with naming_files("choose a folder that can be read"):
            return self._facts.exists()

    @property
    def source(self) -> tuple[str, str, str]:
        """Text, name and folder of the experiment: the arguments of `Experiment.parse`."""
        try:
            text = _read(self._toml).decode()
        except UnicodeDecodeError as error:
            raise RunError(f"{self._toml} is damaged: {error}; {_RESTORE}") from None
        return text, str(self._toml), self._said("folder")

    @property
    def experiment(self) -> dict[str, Any]:
        """Every value of the experiment, defaults included."""
        return dict(self._said("experiment"))

    # ---- the history ----

    def append(self, row: Json) -> None:
        """Add one row to the history; it is with the operating system when this returns."""
        with naming_files(_MAKE_ROOM), self._history.open("ab") as file:
            file.write(_dump(row).encode() + b"\n")

    def history(self) -> list[dict[str, Any]]:
        """Every whole row; a last row that a crash cut short is left out."""
        lines = _read(self._history).split(b"\n")
        try:
            return [json.loads(line) for line in lines[:-1]]
        except ValueError as error:
            raise RunError(f"{self._history} is damaged: {error}; {_RESTORE}") from None

    # ---- models ----

    def save_model(self, round: int, arrays: Arrays) -> None:
        """Keep the model's named arrays after a round."""
        write_npz(self._models / f"round-{round:06d}.npz", arrays)

    def model_rounds(self) -> list[int]:
        """The rounds whose models are kept, ascending."""
        return sorted(int(path.stem.partition("-")[2]) for path in self._models.glob("round-*.npz"))

    def model(self, round: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """The named arrays after that round, or after the last that is kept."""
        kept = self.model_rounds()
        if not kept or (round is not None and round not in kept):
            wanted = "no model" if round is None else f"no model of round {round}"
            raise RunError(f"{self.path} has {wanted}; it has those of rounds {kept}")
        return _read_npz(self._models / f"round-{kept[-1] if round is None else round:06d}.npz")

    # ---- checkpoint and summary ----

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint. It vouches for the history as it is now."""
        with self._history.open("rb+") as file:
            os.fsync(file)
        said = {"round": checkpoint.round, "values": checkpoint.values}
        said["history_bytes"] = self._history.stat().st_size
        packed = np.frombuffer(_dump(said).encode(), np.uint8)
        write_npz(self._checkpoint, {**checkpoint.arrays, _VALUES: packed})

    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None when the run was interrupted before the first."""
        arrays, said = self._read_checkpoint()
        return Checkpoint(said["round"], arrays, said["values"]) if said else None

    def save_summary(self, summary: Json) -> None:
        """Write what the run came to."""
        _write_json(self._summary, summary)

    def summary(self) -> dict[str, Any] | None:
        """What the run came to so far, or None while it is under way."""
        return _read_json(self._summary) if self._summary.exists() else None

    # ---- inside ----

    @property
    def _toml(self) -> Path:
        return self.path / "experiment.toml"

    @property
    def _facts(self) -> Path:
        return self.path / "experiment.json"

    @property
    def _history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def _models(self) -> Path:
        return self.path / "models"

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.npz"

    @property
    def _summary(self) -> Path:
        return self.path / "summary.json"

    def _said(self, key: str) -> Any:
        facts = _read_json(self._facts)
        if key not in facts:
            raise RunError(f"{self._facts} is damaged: it has no {key!r}")
        return facts[key]

    def _check_same(self, experiment: Described) -> None:
        if self._said("digest") == experiment.digest:
            return
        differ = differences(self.experiment, experiment.to_json())
        raise RunError(
            f"{self.path} is the run of another experiment, which differs in {', '.join(differ)}; "
            "resume it with its own experiment.toml, or begin a new run elsewhere"
        )

    def _read_checkpoint(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        if not self._checkpoint.exists():
            return {}, {}
        arrays = _read_npz(self._checkpoint)
        try:
            return arrays, json.loads(arrays.pop(_VALUES).tobytes())
        except (KeyError, ValueError):
            raise RunError(f"{self._checkpoint} is damaged: it has no {_VALUES}") from None

    def _cut_history(self) -> Dropped:
        vouched = self._read_checkpoint()[1].get("history_bytes", 0)
        tail = _read(self._history)
        present = len(tail)
        if present < vouched:
            raise RunError(
                f"{self._history} has {present:,} B, but the checkpoint was made when it had "
                f"{vouched:,} B; it was changed since"
            )
        tail = tail[vouched:]
        torn = bool(tail) and not tail.endswith(b"\n")
        with naming_files(_MAKE_ROOM):
            os.truncate(self._history, vouched)
        return Dropped(tail.count(b"\n") + torn, len(tail), torn)


# ---- files -----------------------------------------------------------------------------------


_RESTORE = "restore it, or run the experiment anew"
_MAKE_ROOM = "make room there, or the right to write"


def _read(path: Path) -> bytes:
    with naming_files(_RESTORE):
        return path.read_bytes()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when all of it is on the disk.

    Raises RunError where it cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    with naming_files(_MAKE_ROOM):
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file)
        rename(temporary, path)


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write the named arrays; the same arrays are the same bytes."""
    with replacing(path) as file, ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # A member without a date: the bytes say nothing of when they were written.
            with archive.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(BytesIO(_read(path)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, NotImplementedError, BadZipFile):
        raise RunError(f"{path} is damaged: it is no whole .npz of arrays; {_RESTORE}") from None


def _write_json(path: Path, document: Json) -> None:
    with replacing(path) as file:
        file.write(_dump(document, indent=2).encode() + b"\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_read(path)))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}; {_RESTORE}") from None


def _dump(document: Json, indent: int | None = None) -> str:
    """JSON; a NumPy scalar is its number."""
    return json.dumps(document, indent=indent, default=lambda scalar: scalar.item())


def _flat(table: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(before: Json, after: Json) -> list[str]:
    """The keys in which two experiments differ: ``run.rounds (was 10, is 20)``."""
    then, now = dict(_flat(before)), dict(_flat(after))
    return [
        f"{key} (was {_shown(then, key)}, is {_shown(now, key)})"
        for key in sorted(then.keys() | now.keys())
        if _shown(then, key) != _shown(now, key)
    ]


def _shown(flat: Json, key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not given"
