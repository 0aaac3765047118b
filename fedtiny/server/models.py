"""What the devices of a run fetch: Program images and models, by digest, signed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import RunError
from fedtiny.masks import Mask, remembered
from fedtiny.registry.match import misfits
from fedtiny.server.facts import read_fact, write_fact
from fedtiny.wire.codec import Manifest, mask_name

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.experiment.workload import Profile, Workload
    from fedtiny.server.signing import Signer
    from fedtiny.server.storage import Database
    from fedtiny.tensors import Float32
    from fedtiny.values import DeviceCard, Masks

PROGRAM, MODEL = "program", "model"
_OLDER, _OLDER_BYTES = 3, 1 << 23
"""How many older versions can be fetched, and their bytes at most."""
_MOST_CARDS = 1000
_MOST_ROUNDS = 4


@dataclass(frozen=True)
class Shelf:
    """Programs for one purpose, one a board profile, and which of them a device takes."""

    profiles: Sequence[Profile]
    _picked: dict[tuple[str, int, int], Program | None] = field(default_factory=dict)

    def pick(self, card: DeviceCard) -> Program | None:
        """That of its own profile if it fits, else the one that fits and uses its RAM best."""
        key = card.profile, card.ram_bytes, card.flash_bytes
        if key not in self._picked:
            if len(self._picked) >= _MOST_CARDS:
                self._picked.clear()
            self._picked[key] = self._pick(card)
        return self._picked[key]

    def _pick(self, card: DeviceCard) -> Program | None:
        fitting = [
            profile
            for profile in self.profiles
            if profile.program and not misfits(profile.program.footprint, card)
        ]
        fitting.sort(key=lambda p: (p.name == card.profile, p.needed.footprint.ram_bytes))
        return fitting[-1].program if fitting else None

    def reasons(self, card: DeviceCard) -> tuple[str, ...]:
        """Why none of them fits the device."""
        return tuple(
            reason
            for profile in self.profiles
            for reason in (*profile.reasons, *misfits(profile.needed.footprint, card))
        )


class Models:
    """The blobs of one run. Its ``blobs`` are read by the thread of the service as well.

    A model can be fetched whole, or under a mask: then it is the values of the live coordinates,
    made when first asked for.
    """

    def __init__(self, database: Database, signer: Signer, run: bytes, work: Workload) -> None:
        self._database, self._signer, self._run, self._work = database, signer, run, work
        self.training = Shelf(work.profiles)
        self.blobs: dict[bytes, bytes] = {}
        self._manifests: dict[tuple[int, bytes], Manifest] = {}
        """By version, and mask if there is one."""
        self._programs: dict[str, Manifest] = {}
        self._lent: set[bytes] = set()
        self.masks = lru_cache(_MOST_ROUNDS)(self._masks)

    # ---- Programs

    def program(self, card: DeviceCard) -> Program | None:
        """The Program with which a device trains, if one fits."""
        return self.training.pick(card)

    def manifest_of(self, program: Program) -> Manifest:
        """The signed manifest of a Program's image, which can be fetched from now on."""
        if program.digest not in self._programs:
            digest = bytes.fromhex(program.digest)
            self.blobs[digest] = program.image
            version = self._program_version(program.digest)
            self._programs[program.digest] = self._signed(
                Manifest(PROGRAM, version, len(program.image), digest)
            )
        return self._programs[program.digest]

    def is_program(self, digest: bytes) -> bool:
        """Whether the blob is the image of a Program."""
        return digest.hex() in self._programs

    def _program_version(self, digest: str) -> int:
        """Versions rise in the order in which the run first used its Programs."""
        key = f"programs {self._run.hex()}"
        known = str(read_fact(self._database, key) or "").split()
        if digest not in known:
            known.append(digest)
            write_fact(self._database, key, " ".join(known))
        return known.index(digest)

    # ---- models

    def initial(self) -> Float32:
        """The model before the first round: an artefact, made once."""
        row = self._database.connection.execute(
            "SELECT body FROM versions JOIN blobs USING (digest) WHERE run = ? AND version = 0",
            (self._run,),
        ).fetchone()
        if row:
            return np.frombuffer(row[0], np.float32)
        initial = self._work.initial
        self.publish(0, initial)
        self.keep(0)
        return initial

    def publish(self, version: int, model: Float32) -> None:
        """A new version of the model."""
        self.hold(version, model)
        manifest = self.manifest(version)
        self._database.connection.execute(
            "INSERT INTO versions (run, version, digest, signature, made_s) VALUES (?, ?, ?, ?, ?)",
            (self._run, version, manifest.digest, manifest.signature, time.time()),
        )

    def hold(self, version: int, model: Float32) -> None:
        """This version can be fetched from now on."""
        self._hold(version, b"", model.tobytes())

    def _hold(self, version: int, mask: bytes, body: bytes) -> None:
        digest = hashlib.sha256(body).digest()
        self.blobs[digest] = body
        manifest = self._signed(Manifest(MODEL, version, len(body), digest))
        self._manifests[version, mask] = manifest

    def keep(self, version: int) -> None:
        """Store this version, so that it can be fetched after a restart."""
        digest = self.manifest(version).digest
        self._database.connection.execute(
            "INSERT OR IGNORE INTO blobs (digest, body) VALUES (?, ?)", (digest, self.blobs[digest])
        )

    def recall(self, version: int) -> None:
        """Hold a version that was kept."""
        row = self._database.connection.execute(
            "SELECT body FROM versions JOIN blobs USING (digest) WHERE run = ? AND version = ?",
            (self._run, version),
        ).fetchone()
        if row is None:
            raise RunError(f"version {version:,} of the model was not kept")
        self.hold(version, np.frombuffer(row[0], np.float32))

    def drop(self, version: int) -> None:
        """Store it no longer; the initial model stays."""
        if version:
            self._database.connection.execute(
                "DELETE FROM blobs WHERE digest = (SELECT digest FROM versions WHERE run = ? AND "
                "version = ?) AND digest != (SELECT digest FROM versions WHERE run = ? AND "
                "version = 0)", (self._run, version, self._run),
            )  # fmt: skip

    def manifest(self, version: int, mask: bytes = b"") -> Manifest:
        """The signed manifest of a version that is held, whole or under a mask."""
        if mask and (version, mask) not in self._manifests:
            whole = np.frombuffer(self.blobs[self.manifest(version).digest], np.float32)
            self._hold(version, mask, whole[self.mask(mask).bools].tobytes())
        return self._manifests[version, mask]

    def is_version(self, version: int, digest: bytes, masks: Masks) -> bool:
        """Whether the version is held and has this digest, whole or under one of the masks."""
        if (version, b"") not in self._manifests:
            return False
        forms = (b"", *(blob for _, blob in masks))
        return any(self.manifest(version, form).digest == digest for form in forms)

    def mask(self, blob: bytes) -> Mask:
        """The mask of a blob."""
        return remembered(blob, self._work.layout)

    def _masks(self, masks: Masks) -> Mapping[bytes, Mask]:
        """The masks of a round, by their names in vectors."""
        return {mask_name(blob): self.mask(blob) for _, blob in masks}

    def lend(self, blobs: Mapping[bytes, bytes]) -> None:
        """Vectors and masks of an instruction, to be fetched."""
        self.blobs.update(blobs)
        self._lent.update(blobs)

    def forget(self, newest: int, used: Collection[int]) -> None:
        """Let go of the versions that nobody needs, and of what the round that ended has lent.

        Those that are ``used`` stay, and a few older ones: who has one of them may fetch the
        difference alone.
        """
        size = self._work.layout.nbytes
        older = range(newest - min(_OLDER, _OLDER_BYTES // size), newest + 1)
        kept = {k: m for k, m in self._manifests.items() if k[0] in older or k[0] in used}
        dropped = {m.digest for m in self._manifests.values()} | self._lent
        for digest in dropped - {m.digest for m in kept.values()}:
            self.blobs.pop(digest, None)
        self._manifests, self._lent = kept, set()

    def _signed(self, manifest: Manifest) -> Manifest:
        signature = self._signer.sign(manifest.text(self._run))
        return Manifest(manifest.kind, manifest.version, manifest.size, manifest.digest, signature)
