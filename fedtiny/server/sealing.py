"""Accepted updates are sealed under a key of their round, which dies when the round commits.

The keys lie beside the database and never in it: a copy of the database shows no update, and once a
key is shredded neither does what the disk still holds of old pages. A run has one file; a key takes
a block of it, and a later one takes the block again: that is one write in place, where a file a
round would cost the disk ten times as much. (On flash memory and on copy-on-write file systems
overwriting reaches only the file.)
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtiny.durable import REMEDY, make_private, naming_files, sync_folder
from fedtiny.errors import RunError
from fedtiny.server import crash_points

KEY_BYTES, NONCE_BYTES = 32, 12
BLOCK_BYTES = 4096
"""The distance of two keys: no write of a disk touches both."""


class RoundKeys:
    """The keys in ``folder``, one a run and round, made when the first body is sealed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[bytes, _KeyFile] = {}
        make_private(folder)

    def seal(self, run: bytes, round: int, seq: int, body: bytes) -> bytes:
        """The body under the round's key, bound to its place."""
        file = self._file(run)
        cipher = file.ciphers.get(round) or file.make(round)
        # Not the place: after a crash the same place may take another body.
        nonce = os.urandom(NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, body, _place(run, round, seq))

    def open(self, run: bytes, round: int, seq: int, sealed: bytes) -> bytes:
        """The inverse of `seal`. Raises RunError when the key is gone or the body is damaged."""
        file = self._file(run)
        try:
            place = _place(run, round, seq)
            return file.ciphers[round].decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except KeyError:
            flaw = f"{file.path} has no key of round {round:,}"
        except (InvalidTag, ValueError):
            flaw = f"the key of round {round:,} in {file.path} does not fit"
        raise RunError(
            f"what the round has accepted cannot be opened: {flaw}; restore the whole folder from "
            "one backup, or begin anew with --new-run"
        )

    def rounds(self, run: bytes) -> list[int]:
        """The rounds of the run that have a key."""
        return sorted(self._file(run).ciphers)

    def shred(self, run: bytes, round: int) -> None:
        """Destroy the round's key: only after the round's commit is durable."""
        self._file(run).shred(round)

    def shred_all(self, run: bytes) -> None:
        """Destroy every key of the run: nobody goes on with it."""
        for round in self.rounds(run):
            self.shred(run, round)

    def _file(self, run: bytes) -> _KeyFile:
        if run not in self._files:
            self._files[run] = _KeyFile(self.folder / f"{run.hex()}.keys")
        return self._files[run]


class _KeyFile:
    """The keys of a run. A block whose checksum is wrong is free: torn, or overwritten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ciphers: dict[int, AESGCM] = {}
        self._places: dict[int, int] = {}
        with naming_files("restore it, or the right to read it"):
            body = path.read_bytes() if path.exists() else b""
        for place in range(0, len(body), BLOCK_BYTES):
            if found := _read(body[place : place + _ENTRY.size]):
                self._take(place, *found)

    def make(self, round: int) -> AESGCM:
        """A new key; what is sealed under it can be opened after any crash."""
        used = set(self._places.values())
        place = min(set(range(0, BLOCK_BYTES * (len(used) + 1), BLOCK_BYTES)) - used)
        key = os.urandom(KEY_BYTES)
        crash_points.reach("round-key.before")
        self._overwrite(place, _ENTRY.pack(round, key, _checksum(round, key)))
        crash_points.reach("round-key.after")
        return self._take(place, round, key)

    def shred(self, round: int) -> None:
        """Nobody can open what was sealed under this key any more."""
        crash_points.reach("shred.before")
        self._overwrite(self._places[round], os.urandom(_ENTRY.size))
        crash_points.reach("shred.after")
        del self._places[round], self.ciphers[round]

    def _take(self, place: int, round: int, key: bytes) -> AESGCM:
        self._places[round] = place
        return self.ciphers.setdefault(round, AESGCM(key))

    def _overwrite(self, place: int, entry: bytes) -> None:
        is_new = not self.path.exists()
        try:
            _write(self.path, entry, place)
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror}; {REMEDY}") from error


def _write(path: Path, body: bytes, place: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, body, place)
        os.fsync(file)
    finally:
        os.close(file)


_ENTRY = struct.Struct("<Q32s16s")


def _read(entry: bytes) -> tuple[int, bytes] | None:
    if len(entry) < _ENTRY.size:
        return None
    round, key, checksum = _ENTRY.unpack(entry)
    return (round, key) if checksum == _checksum(round, key) else None


def _checksum(round: int, key: bytes) -> bytes:
    return hashlib.sha256(b"fedtiny round key" + round.to_bytes(8, "little") + key).digest()[:16]


def _place(run: bytes, round: int, seq: int) -> bytes:
    return run + round.to_bytes(8, "little") + seq.to_bytes(8, "little")
