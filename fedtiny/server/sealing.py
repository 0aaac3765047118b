"""Accepted updates are sealed under a key of their round, which dies when the round commits.

The keys lie beside the database, one file each, and never in it: a copy of the database shows no
update, and once a key is shredded neither does what the disk still holds of old pages. (On flash
memory and on copy-on-write file systems overwriting a file reaches only the file.)
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtiny.errors import RunError
from fedtiny.runs import naming_files
from fedtiny.server import crash_points
from fedtiny.server.files import REMEDY, make_private, sync_folder, write_whole

KEY_BYTES, NONCE_BYTES = 32, 12
_NAME = re.compile(r"([0-9a-f]+)-(\d+)\.key")

Body = bytes | bytearray | memoryview


class RoundKeys:
    """The keys in ``folder``, one a run and round, made when the first body is sealed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[tuple[bytes, int], AESGCM] = {}
        make_private(folder)
        for unfinished in folder.glob("*.new"):
            _destroy(unfinished)

    def seal(self, run: bytes, round: int, seq: int, body: Body) -> bytes:
        """The body under the round's key, bound to its place."""
        cipher = self._cipher(run, round) or self._made(run, round)
        # Not the place: after a crash the same place may take another body.
        nonce = os.urandom(NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, body, _place(run, round, seq))

    def open(self, run: bytes, round: int, seq: int, sealed: bytes) -> bytes:
        """The inverse of `seal`. Raises RunError when the key is gone or the body is damaged."""
        cipher = self._cipher(run, round)
        if cipher is None:
            raise RunError(
                f"{self._path(run, round)} is gone, and with it the updates of round {round:,}; "
                "restore it, or begin anew with --new-run"
            )
        try:
            place = _place(run, round, seq)
            return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise RunError(
                f"update {seq:,} of round {round:,} cannot be opened with "
                f"{self._path(run, round)}; restore both from one backup, or begin anew with "
                "--new-run"
            ) from None

    def rounds(self, run: bytes) -> list[int]:
        """The rounds of the run that have a key."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[2]) for name in found if name and name[1] == run.hex())

    def shred(self, run: bytes, round: int) -> None:
        """Destroy the round's key, if it has one: only after the round's commit is durable."""
        self._open.pop((run, round), None)
        path = self._path(run, round)
        if path.exists():
            crash_points.reach("shred.before")
            _destroy(path)
            crash_points.reach("shred.after")

    def _path(self, run: bytes, round: int) -> Path:
        return self.folder / f"{run.hex()}-{round}.key"

    def _cipher(self, run: bytes, round: int) -> AESGCM | None:
        if (run, round) not in self._open:
            path = self._path(run, round)
            if not path.exists():
                return None
            with naming_files("restore it, or the right to read it"):
                self._open[run, round] = _aes(path.read_bytes(), path)
        return self._open[run, round]

    def _made(self, run: bytes, round: int) -> AESGCM:
        """A new key; what is sealed under it can be opened after any crash."""
        path, key = self._path(run, round), os.urandom(KEY_BYTES)
        crash_points.reach("round-key.before")
        write_whole(path, key)
        crash_points.reach("round-key.after")
        return self._open.setdefault((run, round), _aes(key, path))


def _aes(key: bytes, path: Path) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise RunError(
            f"{path} is damaged: it has {len(key)} B, a key has {KEY_BYTES}; restore it, or begin "
            "anew with --new-run"
        )
    return AESGCM(key)


def _place(run: bytes, round: int, seq: int) -> bytes:
    return run + round.to_bytes(8, "little") + seq.to_bytes(8, "little")


def _destroy(path: Path) -> None:
    with naming_files(REMEDY):
        with path.open("r+b") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file)
        path.unlink()
        sync_folder(path.parent)
