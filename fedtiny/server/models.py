"""What the devices of a run fetch: Program images and models, by digest, signed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny.errors import RunError
from fedtiny.fold import covered
from fedtiny.layout import coordinates
from fedtiny.masks import Mask, remembered
from fedtiny.registry.match import misfits
from fedtiny.server.facts import read_fact, write_fact
from fedtiny.tensors import raw
from fedtiny.wire.codec import Manifest, mask_name
from fedtiny.wire.int8 import Weights, read_int8, steps_of, weights_of, write_int8

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.experiment.workload import Profile, Workload
    from fedtiny.server.signing import Signer
    from fedtiny.server.storage import Database
    from fedtiny.tensors import Float32
    from fedtiny.values import DeviceCard, Instruction, Masks, Update

PROGRAM, MODEL = "program", "model"


class Form(NamedTuple):
    """How a model travels: the live values under a ``mask``, or with these ``weights`` as int8."""

    mask: bytes = b""
    weights: Weights = ()


WHOLE = Form()
"""All values, float32."""

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

    A model can be fetched whole; under a mask, as the values of the live coordinates; or with some
    weights as int8. Forms that are not whole are made when first asked for.
    """

    def __init__(self, database: Database, signer: Signer, run: bytes, work: Workload) -> None:
        self._database, self._signer, self._run, self._work = database, signer, run, work
        self.training = Shelf(work.profiles)
        self.blobs: dict[bytes, bytes] = {}
        self._manifests: dict[tuple[int, Form], Manifest] = {}
        self._programs: dict[str, Manifest] = {}
        self._lent: set[bytes] = set()
        self._int8: dict[bytes, Weights] = {}
        """By the digest of a model that is held, which of its weights are int8."""
        self._steps = lru_cache(_MOST_ROUNDS)(partial(steps_of, work.layout))
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
        self._hold(version, WHOLE, model.tobytes())

    def _hold(self, version: int, form: Form, body: bytes) -> None:
        digest = hashlib.sha256(body).digest()
        self.blobs[digest] = body
        manifest = self._signed(Manifest(MODEL, version, len(body), digest))
        self._manifests[version, form] = manifest
        if form.weights:
            self._int8[digest] = form.weights

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

    def form_of(self, program: Program, asked: Instruction) -> Form:
        """In which form a Program gets the model that is asked this."""
        return Form(asked.of(program.density).mask or b"", weights_of(program, asked))

    def manifest(self, version: int, form: Form = WHOLE) -> Manifest:
        """The signed manifest of a version that is held, in a form."""
        if (version, form) not in self._manifests:
            whole = np.frombuffer(self.blobs[self._manifests[version, WHOLE].digest], np.float32)
            self._hold(version, form, self._formed(whole, form))
        return self._manifests[version, form]

    def _formed(self, whole: Float32, form: Form) -> bytes:
        if form.mask:
            return whole[self.mask(form.mask).bools].tobytes()
        return write_int8(self._work.layout, form.weights, whole)

    def form(self, version: int, digest: bytes, asked: Instruction) -> Form | None:
        """The form with this digest in which a Program that is asked this may have got the version;
        None if that is not held, or has no such form."""
        if (version, WHOLE) not in self._manifests:
            return None
        programs = (profile.program for profile in self.training.profiles)
        given = (self.form_of(program, asked) for program in programs if program)
        masked = (Form(blob) for _, blob in asked.masks)
        forms = dict.fromkeys((WHOLE, *masked, *given))
        return next((f for f in forms if self.manifest(version, f).digest == digest), None)

    def steps(self, digest: bytes) -> bytes:
        """The step of each coordinate of the model with this digest; empty if it has no int8."""
        weights = self._int8.get(digest)
        body = self.blobs.get(digest)
        return self._steps(weights, body) if weights and body else b""

    def with_whole_base(self, update: Update, form: Form) -> Update:
        """An update of values to a model that was sent in a form, as if it had been sent whole: its
        int8 have moved as far from there. The same bits as those of a device that got it whole."""
        if not (form.weights and update.nbytes):
            return update
        layout, version = self._work.layout, update.version
        whole, sent = (self.blobs[self.manifest(version, f).digest] for f in (WHOLE, form))
        base, at = np.frombuffer(whole, np.float32), covered(update.coverage)
        held = np.frombuffer(read_int8(layout, form.weights, sent), np.float32)
        values = np.frombuffer(raw(update.values), np.float32).copy()
        ours = np.isin(at, coordinates(layout.ranges(form.weights)))
        there = at[ours]
        values[ours] = base[there] + (values[ours] - held[there])
        return replace(update, values=values.tobytes())

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
            self._int8.pop(digest, None)
        self._manifests, self._lent = kept, set()

    def _signed(self, manifest: Manifest) -> Manifest:
        signature = self._signer.sign(manifest.text(self._run))
        return Manifest(manifest.kind, manifest.version, manifest.size, manifest.digest, signature)
