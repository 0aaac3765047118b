"""Samples in rows, as the owner of a device keeps them in files: ``.npz``, ``.csv``, folders.

An ``.npz`` has ``x`` [n, ...] and, where there are labels, ``y``; also ``x_query`` and ``y_query``,
``id`` and ``part``. A ``.csv`` has a header; ``label``, ``id`` and ``part`` are what they say, and
every other column is a feature. In a folder, ``labels.csv`` gives labels by ``id``, late ones too.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtiny.agent.arrays import Array, read_npz
from fedtiny.errors import DataError
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.values import QUERY, SUPPORT

Label = int | float | tuple[float, ...]
LABELS_FILE = "labels.csv"
_SUFFIXES = (".csv", ".npz")
_OWN = ("label", "id", "part")
_PARTS = ("", SUPPORT, QUERY)
_NO_PART = f"a part is neither {SUPPORT!r} nor {QUERY!r}"
_MOST_NAME = 40
_OTHER_SEPARATORS = ";\t|"


@dataclass
class Rows:
    """Samples in a row: ``shape`` is that of one, ``x`` holds them all. A label may be missing;
    an ``id`` or a ``part`` that is not given is empty."""

    shape: tuple[int, ...] = ()
    x: array[float] = field(default_factory=lambda: array("f"))
    labels: list[Label | None] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, x: Iterable[float], label: Label | None, id: str = "", part: str = "") -> None:
        """One more sample."""
        self.x.extend(x)
        self.labels.append(label)
        self.ids.append(id)
        self.parts.append(part)

    def extend(self, other: Rows) -> None:
        """The samples of another table behind these."""
        if len(self) and len(other) and other.shape != self.shape:
            raise DataError(f"a sample has the shape {other.shape}, those before have {self.shape}")
        self.shape = other.shape if len(other) else self.shape
        for name in ("x", "labels", "ids", "parts"):
            getattr(self, name).extend(getattr(other, name))

    def join(self, labels: Mapping[str, Label]) -> None:
        """Give those without a label the one of their id."""
        for at, label in enumerate(self.labels):
            if label is None:
                self.labels[at] = labels.get(self.ids[at])

    def chosen(self, part: str, labelled: bool) -> list[int]:
        """The rows of a part; without any ``part`` given, the last fifth is the query."""
        at = [i for i, label in enumerate(self.labels) if label is not None or not labelled]
        if any(self.parts):
            return [i for i in at if (self.parts[i] or SUPPORT) == part]
        cut = len(at) - (max(1, len(at) // 5) if len(at) > 1 else 0)
        return at[cut:] if part == QUERY else at[:cut]

    def taken(self, at: list[int]) -> tuple[Any, array[Any]]:
        """x [n, *shape] and labels of these rows; a missing label is 0."""
        width = math.prod(self.shape)
        x = array("f")
        for i in at:
            x.extend(self.x[i * width : (i + 1) * width])
        return self._shaped(x, len(at)), _flat([self.labels[i] for i in at])

    def _shaped(self, x: array[float], count: int) -> Any:
        if not x:
            return x
        return memoryview(x).cast("B").cast("f", shape=(count, *self.shape))


def _flat(labels: list[Label | None]) -> array[Any]:
    """The labels one behind the other: int32 if they are whole numbers, else float32."""
    first = next((label for label in labels if label is not None), 0)
    if isinstance(first, tuple):
        return array("f", [v for label in labels for v in _values(label, len(first))])
    whole = all(isinstance(label, int) or label is None for label in labels)
    return array("i" if whole else "f", [label or 0 for label in labels])


def _values(label: Label | None, width: int) -> tuple[float, ...]:
    return label if isinstance(label, tuple) else (0.0,) * width


# ---- files -----------------------------------------------------------------------------------


def data_files(path: Path) -> list[Path]:
    """The files of samples that a path names, in the order of their names."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.name != LABELS_FILE)


def read_rows(path: Path, most_bytes: int) -> Rows:
    """The samples of a file or of a folder; DataError names the file, row and column."""
    rows = Rows()
    for file in data_files(path):
        left = most_bytes - len(rows.x) * FLOAT_BYTES
        try:
            rows.extend(_read(file, left))
        except OSError as error:
            flaw = f"cannot be read: {error.strerror}"
            raise DataError(f"{file} {flaw}", public=f"a file of samples {flaw}") from error
        except DataError as error:
            raise _in(file, error) from None
    labels = path / LABELS_FILE
    if labels.exists():
        rows.join(_read_labels(labels))
    return rows


def _in(file: Path, error: DataError) -> DataError:
    """The error with the file's name, which is nobody else's business either."""
    return DataError(f"{file}: {error}", public=error.public)


def _read(file: Path, most_bytes: int) -> Rows:
    if file.suffix == ".npz":
        return _read_npz(file, most_bytes)
    if file.suffix == ".csv":
        return _read_csv(file, most_bytes)
    raise DataError("it is neither .npz nor .csv")


def _read_npz(file: Path, most_bytes: int) -> Rows:
    arrays = read_npz(file, most_bytes)
    if "x" not in arrays:
        raise DataError(
            f"it has the arrays {_listed(sorted(arrays))}; the samples are called 'x'",
            public="the samples have no array x",
        )
    split = "x_query" in arrays
    rows = _columns(arrays, "", SUPPORT if split else "")
    if split:
        rows.extend(_columns(arrays, "_query", QUERY))
    return rows


def _columns(arrays: Mapping[str, Array], suffix: str, part: str) -> Rows:
    x = arrays[f"x{suffix}"]
    n = x.shape[0] if x.shape else 0
    texts = {}
    for name, otherwise in (("id", ""), ("part", part)):
        given = arrays.get(f"{name}{suffix}")
        texts[name] = given.texts() if given else [otherwise] * n
    labels = _labels(arrays[f"y{suffix}"]) if f"y{suffix}" in arrays else [None] * n
    for name, column in (("y", labels), *texts.items()):
        if len(column) != n:
            raise DataError(f"{name}{suffix} has {len(column)} rows, x{suffix} has {n}")
    _check_parts(texts["part"])
    rows = Rows(x.shape[1:] or (1,), x.floats(), list(labels), texts["id"], texts["part"])
    _check_finite(rows, f"x{suffix}")
    return rows


def _labels(y: Array) -> list[Label]:
    if len(y.shape) < 2:
        return [value if y.kind == "f" else int(value) for value in y.values]
    width = math.prod(y.shape[1:])
    return [tuple(y.values[at : at + width]) for at in range(0, len(y.values), width)]


def _check_finite(rows: Rows, name: str) -> None:
    wrong = next((i for i, value in enumerate(rows.x) if not math.isfinite(value)), None)
    if wrong is not None:
        row, column = divmod(wrong, math.prod(rows.shape))
        raise DataError(
            f"{name}, row {row}, value {column} is {rows.x[wrong]}; leave it out",
            public=f"a value of {name} is not finite",
        )


def _check_parts(parts: list[str]) -> None:
    for row, part in enumerate(parts):
        if part not in _PARTS:
            raise DataError(
                f"row {row}: part is {part!r}; it is {SUPPORT!r} or {QUERY!r}", public=_NO_PART
            )


def _read_csv(file: Path, most_bytes: int) -> Rows:
    rows = Rows()
    for line, cells in _lines(file):
        features = [name for name in cells if name not in _OWN]
        rows.shape = (len(features),)
        x = [_number(cells[name], line, name) for name in features]
        part = cells.get("part", "")
        if part not in _PARTS:
            raise DataError(
                f"row {line}, column part: {part!r}; write {SUPPORT!r} or {QUERY!r}",
                public=_NO_PART,
            )
        rows.add(x, _label(cells.get("label", ""), line), cells.get("id", ""), part)
        if len(rows.x) * FLOAT_BYTES > most_bytes:
            raise DataError(
                f"more than {most_bytes:,} B of samples up to row {line}; raise the limit "
                "(fedtiny-agent limits --ram), or give fewer samples"
            )
    return rows


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line's number and its cells by column."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            lines = csv.reader(opened)
            header = [name.strip() for name in next(lines, [])]
            _check_header(header)
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"row {lines.line_num} has {len(cells)} cells, the header {len(header)}"
                    )
                yield lines.line_num, dict(zip(header, map(str.strip, cells), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        flaw = "it is no CSV in UTF-8"
        raise DataError(f"{flaw}: {error}", public=flaw) from None


def _check_header(header: list[str]) -> None:
    """DataError unless these are the names of columns."""
    if not header:
        raise DataError("it is empty; its first line names the columns, such as: x,label")
    separator = next((sign for sign in _OTHER_SEPARATORS if sign in header[0]), "")
    if len(header) == 1 and separator:
        raise DataError(f"its cells are separated by {separator!r}; write commas")
    if all(map(_is_number, header)):
        raise DataError("it needs a header line: its first line has numbers, no names of columns")
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise DataError(
            f"two columns are called {_cut(double)}; give each a name of its own",
            public="two columns have one name",
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cut(name: str) -> str:
    return repr(name if len(name) <= _MOST_NAME else name[: _MOST_NAME - 3] + "...")


def _listed(names: list[str]) -> str:
    """The first of them."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(_cut, names[:5])) + more


def _number(text: str, line: int, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "label" if column == "label" else "value of a column"
        raise DataError(
            f"row {line}, column {_cut(column)}: {_cut(text)} is no finite number",
            public=f"a {what} is no finite number",
        )
    return value


def _label(text: str, line: int) -> Label | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        return _number(text, line, "label")


def _read_labels(file: Path) -> dict[str, Label]:
    found: dict[str, Label] = {}
    try:
        for line, cells in _lines(file):
            if not {"id", "label"} <= cells.keys():
                raise DataError(
                    f"its columns are {_listed(list(cells))}; it needs id and label",
                    public=f"{LABELS_FILE} lacks a column id or label",
                )
            label = _label(cells["label"], line)
            if label is not None:
                found[cells["id"]] = label
    except DataError as error:
        raise _in(file, error) from None
    return found
