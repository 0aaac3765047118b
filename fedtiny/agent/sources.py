"""Where an agent's samples come from: files, a task, or a stream of the owner's own."""

from __future__ import annotations

import inspect
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from fedtiny import references
from fedtiny.agent.tables import LABELS_FILE, Label, Rows, data_files, read_rows
from fedtiny.device.inputs import Input
from fedtiny.device.learner import Key, Learner, Samples
from fedtiny.errors import DataError
from fedtiny.tensors import floats
from fedtiny.values import QUERY, SUPPORT

MOST_BYTES = 16 * 2**20
"""Of samples in memory, where the owner has set no limit."""
_SETTLE_S = 0.2
_SAMPLE_BYTES = 128  # what Python spends on a sample beside its features


Sampler = Callable[[str], Samples]
"""The samples of a part in one visit."""


class Source(Protocol):
    """Gives a device's samples, as the Program of the learner takes them."""

    def sampler(self, learner: Learner, key: Key, labelled: bool = True) -> Sampler:
        """The samples of one visit, as they are now; without a label too, if asked so."""


def open_source(data: str, device: int, most_bytes: int = MOST_BYTES) -> Source:
    """The source that ``--data`` names: a file, a folder, or ``module:object``.

    Raises DataError or ExperimentError when there is none.
    """
    path = Path(data)
    if path.exists():
        return RowSource(data, Files(path, most_bytes).rows)
    if ":" not in data:
        raise DataError(f"{data} is not there; name a .npz, a .csv, a folder, or module:object")
    found = references.load(data)
    if hasattr(found, "samples"):
        return TaskSource(found() if inspect.isclass(found) else found)
    return RowSource(data, Stream(data, _opener(found, device), most_bytes).rows)


@dataclass(frozen=True, slots=True)
class TaskSource:
    """The samples of a task: an object with ``samples(run, round, device, part)``."""

    task: Any

    def sampler(self, learner: Learner, key: Key, labelled: bool = True) -> Sampler:
        """The task's own samples for the visit."""

        def sampled(part: str) -> Samples:
            try:
                given = self.task.samples(key.run, key.round, key.device, part)
            except Exception as error:
                raise _failed("samples()", error) from error
            return learner.samples(*given)

        return cache(sampled)


class RowSource:
    """Samples out of rows, which may grow between visits."""

    def __init__(self, name: str, rows: Callable[[], Rows]) -> None:
        self.name, self._rows = name, rows

    def sampler(self, learner: Learner, key: Key, labelled: bool = True) -> Sampler:
        """The rows of each part, those without a label only if asked for."""
        rows = self._rows()
        return cache(lambda part: self._samples(rows, learner, part, labelled))

    def _samples(self, rows: Rows, learner: Learner, part: str, labelled: bool) -> Samples:
        at = rows.chosen(part, labelled)
        if not at and part == SUPPORT:
            raise self._nothing(rows)
        x, y = rows.taken(at)
        if not labelled:
            y = array("i", bytes(y.itemsize * len(at) * Input.labels(learner.program).width))
        return learner.samples(x, y)

    def _nothing(self, rows: Rows) -> DataError:
        if not len(rows):
            return DataError(f"{self.name} has no samples: it is empty", "there are no samples")
        if set(rows.parts) == {QUERY}:
            flaw = f"{len(rows):,} rows, all of them in the part {QUERY!r}"
            return DataError(f"{self.name}: {flaw}; give some to train on", flaw)
        flaw = f"{len(rows):,} rows, none with a label to train on"
        remedy = f"(column 'label', array 'y', or {LABELS_FILE} beside them)"
        return DataError(f"{self.name}: {flaw}; give some a label {remedy}", flaw)


class Files:
    """A file, or a folder of files; read again when one of them has changed."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self.most_bytes = path, most_bytes
        self._seen: list[tuple[str, int, int]] = []
        self._rows = Rows()

    def rows(self) -> Rows:
        """All samples that are there now."""
        signature = [
            (file.name, file.stat().st_mtime_ns, file.stat().st_size)
            for file in (*data_files(self.path), self.path / LABELS_FILE)
            if file.exists()
        ]
        if signature != self._seen or not signature:
            self._rows = read_rows(self.path, self.most_bytes)
            self._seen = signature
        return self._rows


# ---- streams ---------------------------------------------------------------------------------


def _opener(found: Any, device: int) -> Callable[[], Iterable[Any]]:
    """What gives the samples: the object itself, or what a function makes for this device."""
    if not callable(found):
        return lambda: found
    takes = [
        p for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    return (lambda: found(device)) if takes else found


@dataclass(slots=True)
class _Sample:
    id: str
    x: bytes
    shape: tuple[int, ...]
    label: Label | None

    @property
    def nbytes(self) -> int:
        return len(self.x) + _SAMPLE_BYTES


class Stream:
    """The latest samples of an iterable, as many as a bounded ring holds.

    What has a length is taken anew at each visit. Anything else is read on in the background, as a
    sensor gives it; the reader rests when a whole ring has come since the last visit, so that an
    endless generator does not run for nothing. A sample whose id was there before takes its place,
    and keeps what it does not bring: so a label may come later.
    """

    def __init__(self, name: str, give: Callable[[], Iterable[Any]], most_bytes: int) -> None:
        self.name, self.most_bytes = name, most_bytes
        self._give = give
        self._ring: deque[_Sample] = deque()
        self._by_id: dict[str, _Sample] = {}
        self._nbytes = self._unseen = 0
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()
        self._flaw: Exception | None = None

    def rows(self) -> Rows:
        """The samples of the ring."""
        self._read_on()
        with self._changed:
            if self._flaw:
                flaw, self._flaw = self._flaw, None
                raise _failed(self.name, flaw) from flaw
            self._unseen = 0
            self._changed.notify_all()
            return self._table()

    def _read_on(self) -> None:
        if self._reader is None:
            given = self._given()
            if hasattr(given, "__len__"):
                self._ring.clear()
                self._by_id.clear()
                self._nbytes = 0
                return self._take_all(iter(given))
            self._reader = threading.Thread(target=self._follow, args=(iter(given),), daemon=True)
            self._reader.start()
        with self._changed:
            self._changed.wait_for(self._is_settled, _SETTLE_S)

    def _given(self) -> Iterable[Any]:
        try:
            return self._give()
        except Exception as error:
            raise _failed(self.name, error) from error

    def _is_settled(self) -> bool:
        ended = self._reader is not None and not self._reader.is_alive()
        return ended or self._unseen >= self.most_bytes

    def _take_all(self, given: Iterator[Any]) -> None:
        for one in given:
            self._keep(_sample(self.name, one))

    def _follow(self, given: Iterator[Any]) -> None:
        try:
            for one in given:
                sample = _sample(self.name, one)
                with self._changed:
                    self._keep(sample)
                    self._unseen += sample.nbytes
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._unseen < self.most_bytes)
        except Exception as error:
            self._flaw = error

    def _keep(self, sample: _Sample) -> None:
        earlier = self._by_id.get(sample.id) if sample.id else None
        if earlier is not None:
            earlier.label = earlier.label if sample.label is None else sample.label
            self._nbytes += len(sample.x or earlier.x) - len(earlier.x)
            earlier.x, earlier.shape = sample.x or earlier.x, sample.shape or earlier.shape
            return
        self._ring.append(sample)
        self._nbytes += sample.nbytes
        if sample.id:
            self._by_id[sample.id] = sample
        while self._nbytes > self.most_bytes:
            oldest = self._ring.popleft()
            self._nbytes -= oldest.nbytes
            self._by_id.pop(oldest.id, None)

    def _table(self) -> Rows:
        rows = Rows()
        for sample in self._ring:
            if sample.x:
                rows.shape = rows.shape or sample.shape
                self._check_shape(rows, sample)
                rows.add(memoryview(sample.x).cast("f"), sample.label, sample.id)
        return rows

    def _check_shape(self, rows: Rows, sample: _Sample) -> None:
        if sample.shape != rows.shape:
            raise DataError(
                f"{self.name} gave a sample of shape {sample.shape}, and others of {rows.shape}"
            )


def _failed(name: str, error: Exception) -> DataError:
    """What an owner's own object has raised; its text may say anything."""
    kind = error.public if isinstance(error, DataError) else type(error).__name__
    return DataError(f"{name} failed: {references.cause(error)}", f"{name} failed: {kind}")


def _sample(name: str, given: Any) -> _Sample:
    """(features, label) or (id, features, label); features may be None for a label that is late."""
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise DataError(
            f"{name} gave {type(given).__name__}; it must give (features, label or None), or "
            "(id, features, label)"
        )
    id, features, label = given if len(given) == 3 else ("", *given)
    if features is None:
        return _Sample(str(id), b"", (), label)
    x = floats(features)
    shape = tuple(getattr(features, "shape", ())) or (len(x),)
    return _Sample(str(id), bytes(x), shape, label if label is None else _plain(label))


def _plain(label: Any) -> Label:
    """A label as a plain number, or as a tuple of them."""
    value = label.tolist() if hasattr(label, "tolist") else label
    return tuple(value) if isinstance(value, list | tuple) else value
