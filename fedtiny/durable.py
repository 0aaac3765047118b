"""Files that a power cut leaves as they were or as they are to be, and errors that name them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedtiny.errors import RunError

REMEDY = "make room there, or the right to write; or choose another --dir"


@contextmanager
def naming_files(remedy: str) -> Iterator[None]:
    """Turns the errors of the operating system into a RunError with the path and the remedy."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or 'a file'}: {error.strerror}; {remedy}") from error


def write_whole(path: Path, body: bytes, durable: bool = True) -> None:
    """Replace the file, for its owner alone, when all of ``body`` is on the disk.

    What may be lost in a power cut need not be ``durable``. Raises RunError if it cannot be done.
    """
    new = path.with_name(path.name + ".new")
    with naming_files(REMEDY):
        new.unlink(missing_ok=True)  # of an earlier attempt, perhaps readable by others
        with open(new, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(body)
            file.flush()
            if durable:
                os.fsync(file)
        os.replace(new, path)
        if durable:
            sync_folder(path.parent)


def rename(old: Path, new: Path) -> None:
    """Rename within one folder; it holds after a power cut."""
    os.replace(old, new)
    sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """What was renamed or removed in it stays so after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(folder: Path) -> None:
    """Make the folder if need be, and shut it to all but its owner."""
    with naming_files(REMEDY):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
