"""The arrays of an ``.npz`` file without NumPy, none of them trusted before its form is checked."""

from __future__ import annotations

import ast
import math
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedtiny.errors import DataError

_MAGIC = b"\x93NUMPY"
_LENGTHS = {(1, 0): struct.Struct("<H"), (2, 0): struct.Struct("<I"), (3, 0): struct.Struct("<I")}
_MOST_HEADER_BYTES = 10_000
# Of the .npy forms that are read: their letter for `memoryview.cast`.
_NUMBERS = {
    "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
_DAMAGE = (
    OSError, EOFError, ValueError, SyntaxError, RecursionError, MemoryError, NotImplementedError,
    RuntimeError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Array:
    """One array: its shape, and its values in a row. ``kind`` is f, i, b, u, U or S."""

    shape: tuple[int, ...]
    kind: str
    values: Any

    def floats(self) -> array[float]:
        """The values as float32."""
        if self.kind == "f" and getattr(self.values, "format", "") == "f":
            return array("f", self.values.tobytes())
        made = array("f")
        made.extend(self.values)
        return made

    def texts(self) -> list[str]:
        """The values as text."""
        return [str(value) for value in self.values]


def read_npz(path: Path, most_bytes: int) -> dict[str, Array]:
    """Every array of a file by its name.

    Raises DataError for objects, Fortran order, other byte orders, damage, and for arrays that
    claim more than ``most_bytes`` together, before any of them is unpacked; OSError when it cannot
    be opened.
    """
    with path.open("rb") as file:
        try:
            return dict(_members(file, most_bytes))
        except _DAMAGE as error:
            flaw = "it is no .npz file that can be read"
            raise DataError(f"{flaw}: {error}", public=flaw) from None


def _members(file: BinaryIO, most_bytes: int) -> Iterator[tuple[str, Array]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        claimed = sum(info.file_size for info in members)
        if claimed > most_bytes:
            raise DataError(
                f"it holds {claimed:,} B; at most {most_bytes:,} B are read: raise the limit "
                "(fedtiny-agent limits --ram), or give fewer samples"
            )
        for info in members:
            yield info.filename.removesuffix(".npy"), _array(archive.read(info))


def _array(body: bytes) -> Array:
    shape, form, start = _header(body)
    kind, size = form[1], int(form[2:])
    item_bytes = 4 * size if kind == "U" else size
    held = memoryview(body)[start:]
    if math.prod(shape) * item_bytes != held.nbytes:
        raise ValueError(f"an array {form} {shape} has {held.nbytes:,} B")
    if kind == "U":
        return Array(shape, kind, _texts(held, item_bytes, "utf-32-le"))
    if kind == "S":
        return Array(shape, kind, _texts(held, item_bytes, "utf-8"))
    if form[1:] == "f2":
        return Array(shape, kind, struct.unpack(f"<{math.prod(shape)}e", held))
    return Array(shape, kind, held.cast(_NUMBERS[form[1:]]))  # type: ignore[call-overload]


def _header(body: bytes) -> tuple[tuple[int, ...], str, int]:
    """The shape, the form such as "<f4", and where the values start."""
    length = _LENGTHS.get((body[6], body[7])) if body[:6] == _MAGIC and len(body) > 7 else None
    if length is None:
        raise ValueError("it has a member that is no .npy array")
    (count,) = length.unpack_from(body, 8)
    start = 8 + length.size + count
    if count > _MOST_HEADER_BYTES or start > len(body):
        raise ValueError(f"an array has a header of {count:,} B")
    told = ast.literal_eval(body[start - count : start].decode("latin1").strip())
    form, shape = _checked(told)
    return shape, form, start


def _checked(told: Any) -> tuple[str, tuple[int, ...]]:
    if not isinstance(told, dict) or told.get("fortran_order") is not False:
        raise ValueError("an array is not stored row by row: save numpy.ascontiguousarray of it")
    form, shape = told.get("descr"), told.get("shape")
    if not isinstance(form, str) or not _is_read(form):
        raise ValueError(f"an array has the type {form!r}; numbers and text are read")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {shape!r}")
    return form, shape


def _is_read(form: str) -> bool:
    order, kind, size = form[:1], form[1:2], form[2:]
    text = kind in ("U", "S") and size.isdigit() and 0 < int(size) <= 4096
    return order in "<|" and (form[1:] in (*_NUMBERS, "f2") or text)


def _texts(held: memoryview[int], size: int, code: str) -> list[str]:
    pieces = (bytes(held[at : at + size]) for at in range(0, held.nbytes, size))
    return [piece.decode(code).rstrip("\0") for piece in pieces]
