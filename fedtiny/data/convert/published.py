"""Access to published folders: nothing is read before its size is known."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from fedtiny.errors import DataError

T = TypeVar("T")


class Watch(Protocol):
    """Passes on what it is given, and may show how far the work is."""

    def __call__(self, parts: Sequence[T]) -> Iterable[T]: ...  # noqa: D102


def inside(folder: Path, *places: str) -> Path:
    """The first of the places that is there: the folder itself, where it has what is named."""
    for place in places:
        if (folder / place).exists():
            return folder / place
    raise DataError(f"{folder} has none of {', '.join(places)}; name the folder that was unpacked")


def files(folder: Path, pattern: str) -> list[Path]:
    """The files of that pattern in the order of their names; DataError if there are none."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(f"{folder} has no files {pattern}")
    return found


def read(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file that has at most so many."""
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise DataError(f"{path} has {size:,} B; at most {most_bytes:,} B are expected")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a folder, or of a zip file in its place, by their names in order."""

    place: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def tree(folder: Path, part: str, suffix: str, most_bytes: int) -> Iterator[Tree]:
    """The files with that suffix in ``part`` or ``part.zip``, in the folder or its ``python``."""
    places = (f"{above}{part}{zipped}" for above in ("", "python/") for zipped in ("", ".zip"))
    place = inside(folder, *places)
    if place.is_dir():
        paths = sorted(place.rglob(f"*{suffix}"))
        names = tuple(path.relative_to(place).as_posix() for path in paths)
        yield Tree(place, names, lambda name: read(place / name, most_bytes))
        return
    try:
        with zipfile.ZipFile(place) as archive:
            names = tuple(sorted(n for n in archive.namelist() if n.endswith(suffix)))
            yield Tree(place, names, lambda name: _unpacked(archive, name, most_bytes))
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{place} is damaged: {error}") from None


def _unpacked(archive: zipfile.ZipFile, name: str, most_bytes: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > most_bytes:
        raise DataError(
            f"{archive.filename}: {name} claims {size:,} B; at most {most_bytes:,} B are expected"
        )
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.filename}: {name} is damaged: {error}") from None
