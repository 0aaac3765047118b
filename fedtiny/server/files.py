"""Files that hold secrets: whole at every instant of a power cut, and for their owner alone."""

from __future__ import annotations

import os
from pathlib import Path

from fedtiny.runs import naming_files

REMEDY = "make room there, or the right to write; or choose another --dir"


def write_whole(path: Path, body: bytes) -> None:
    """Replace the file when all of ``body`` is on the disk. Raises RunError if that fails."""
    new = path.with_name(path.name + ".new")
    with naming_files(REMEDY):
        new.unlink(missing_ok=True)  # of an earlier attempt, perhaps readable by others
        with open(new, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(body)
            file.flush()
            os.fsync(file)
        rename(new, path)


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
