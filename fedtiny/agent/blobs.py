"""What has been fetched, by SHA-256: Programs, models, vectors. Bounded; the oldest use goes first.

A blob that breaks off is kept as far as it came, and fetched on from there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from fedtiny.agent.store import Store, told
from fedtiny.durable import write_whole

MOST_BYTES = 64 * 2**20


class Blobs:
    """The folder ``blobs`` of a store."""

    def __init__(self, store: Store, most_bytes: int = MOST_BYTES) -> None:
        self.store, self.most_bytes = store, most_bytes
        self.pinned = b""
        """The Program that `predict` needs."""
        self.folder = store.folder / "blobs"

    def get(self, digest: bytes) -> bytes | None:
        """The blob, if it is here and what its name says."""
        path = self.folder / digest.hex()
        if not path.exists():
            return None
        with told(path):
            body = path.read_bytes()
            if hashlib.sha256(body).digest() != digest:
                self.store.set_aside(path, "its checksum is wrong")
                return None
            os.utime(path)
        return body

    def keep(self, digest: bytes, body: bytes) -> None:
        """Keep a blob, and drop those used longest ago that are too many; never the ``pinned``."""
        self._make()
        write_whole(self.folder / digest.hex(), body, durable=False)
        with told(self.folder):
            self._partial(digest).unlink(missing_ok=True)
            self._trim({digest.hex(), self.pinned.hex()})

    def begun(self, digest: bytes) -> bytes:
        """What there is of a blob whose fetch broke off."""
        path = self._partial(digest)
        with told(path):
            return path.read_bytes() if path.exists() else b""

    def go_on(self, digest: bytes, chunk: bytes) -> None:
        """One more chunk of a blob that is not whole yet."""
        self._make()
        path = self._partial(digest)
        with told(path), path.open("ab") as file:
            file.write(chunk)

    def give_up(self, digest: bytes) -> None:
        """What has come of the blob is of no use."""
        with told(self.folder):
            self._partial(digest).unlink(missing_ok=True)

    def _make(self) -> None:
        self.store.make()
        with told(self.folder):
            self.folder.mkdir(mode=0o700, exist_ok=True)

    def _partial(self, digest: bytes) -> Path:
        return self.folder / f"{digest.hex()}.part"

    def _trim(self, pinned: Collection[str]) -> None:
        found = [(path.stat(), path) for path in self.folder.iterdir()]
        total_bytes = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            if total_bytes <= self.most_bytes:
                break
            if path.name not in pinned:
                path.unlink()
                total_bytes -= stat.st_size
