"""Domain values to messages and back; what is read has been checked, or WireError says why not.

A lease's deadline travels as a duration, for a device may have no clock: that of a lease which was
read counts from the moment of the answer, until `Work.since` puts it on a clock. Vectors and masks
in instructions travel as digests: `detach` takes them out, `resolve` puts them back.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fedtiny.errors import WireError
from fedtiny.values import (
    ACCEPTED,
    CALIBRATE,
    CLASS_SUMS,
    DUPLICATE,
    EVALUATE,
    GRADIENT,
    INVALID,
    LATE,
    PRODUCTS,
    QUERY,
    RANGES,
    SCORE,
    STALE,
    SUMS,
    SUPPORT,
    TRAIN,
    UNKNOWN,
    VALUES,
    VOTES,
    WIDER,
    DeviceCard,
    FeatureSums,
    Instruction,
    Lease,
    Phase,
    Receipt,
    Sgd,
    Transform,
    Update,
    round_of,
)
from fedtiny.wire.checks import at_most, one_of, present, sized, text, within
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.vectors import (
    Due,
    Values,
    given_mask,
    lay_over,
    mask_name,
    read_vector,
    write_delta,
    write_values,
)

__all__ = [
    "CHUNK_BYTES", "OLDEST", "PROTOCOL",
    "Answer", "ComeBack", "Dismissed", "Due", "Manifest", "Work",
    "detach", "digests_of", "given_mask", "lay_over", "mask_name", "read_answer", "read_card",
    "read_receipt", "read_update", "read_vector", "resolve", "submit_requests", "write_answer",
    "write_card", "write_delta", "write_receipt", "write_update", "write_values",
]  # fmt: skip

PROTOCOL, OLDEST = 1, 1
"""The protocol that is spoken here, and the oldest that is understood."""
CHUNK_BYTES = 65536
"""The most bytes of a blob or of a vector in one message."""

RUN_BYTES, DIGEST_BYTES, SIGNATURE_BYTES = 8, 32, 64
MOST_NAMES = 4096
"""Measures of an update, or candidates of an instruction."""
_MOST_TEXT, _MOST_PARTS = 1000, 256
_MOST_ID, _MOST_COUNT, _MOST_BYTES, _MOST_RATE = 2**63 - 1, 2**40, 2**48, 1e18

_KINDS = (TRAIN, EVALUATE, CALIBRATE, SCORE, SUMS)
_STATUSES = (ACCEPTED, DUPLICATE, LATE, STALE, INVALID, UNKNOWN)
_PARTS = (SUPPORT, QUERY)
_RETURNS = (VALUES, GRADIENT, VOTES, RANGES, WIDER)
_SUMS = (CLASS_SUMS, PRODUCTS)


# ---- answers ---------------------------------------------------------------------------------

_MANIFEST = struct.Struct("<20s16s8sIQ32s")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What may be fetched: ``kind`` is "program" or "model", ``digest`` its SHA-256."""

    kind: str
    version: int
    size: int
    digest: bytes
    signature: bytes = b""

    def text(self, run: bytes) -> bytes:
        """What is signed, for a run: 88 bytes in fixed places."""
        name, kind = b"fedtiny-manifest-v1\0", self.kind.encode()
        return _MANIFEST.pack(name, kind, run, self.version, self.size, self.digest)


@dataclass(frozen=True, slots=True)
class Work:
    """An instruction under a lease that lives ``expires_in_s`` longer, and what it needs."""

    run: bytes
    seed: int
    lease: Lease
    expires_in_s: float
    instruction: Instruction
    program: Manifest
    model: Manifest

    def since(self, now: float) -> Lease:
        """The lease, with its deadline on the clock that showed ``now`` at the answer."""
        return replace(self.lease, deadline=now + self.expires_in_s)


@dataclass(frozen=True, slots=True)
class ComeBack:
    """No work; ``reason`` says why when waiting will not help."""

    after_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The run is over, or the device was taken out of it."""

    reason: str = ""


Answer = Work | ComeBack | Dismissed


def write_answer(answer: Answer) -> pb.Answer:
    """The message of an answer; vectors of its instruction are `detach`-ed."""
    if isinstance(answer, Work):
        return pb.Answer(work=_write_work(answer))
    if isinstance(answer, ComeBack):
        reason = answer.reason[:_MOST_TEXT]
        return pb.Answer(come_back=pb.ComeBack(after_s=answer.after_s, reason=reason))
    return pb.Answer(dismissed=pb.Dismissed(reason=answer.reason[:_MOST_TEXT]))


def read_answer(message: pb.Answer) -> Answer:
    """The answer of a message. Raises WireError."""
    form = message.WhichOneof("answer")
    if form == "work":
        return _read_work(message.work)
    if form == "come_back":
        present(message.come_back, "after_s")
        after_s = within(message.come_back.after_s, 0, math.inf, "the time to come back after")
        return ComeBack(after_s, text(message.come_back.reason, "the reason", _MOST_TEXT))
    if form == "dismissed":
        return Dismissed(text(message.dismissed.reason, "the reason", _MOST_TEXT))
    raise WireError("malformed", "an answer of no kind that is known here")


def _write_work(work: Work) -> pb.Work:
    lease = work.lease
    return pb.Work(
        run=work.run,
        seed=work.seed,
        lease=pb.Lease(
            id=lease.id, round=lease.round, version=lease.version,
            expires_in_s=work.expires_in_s, device=lease.device,
        ),
        instruction=_write_instruction(work.instruction),
        program=_write_manifest(work.program),
        model=_write_manifest(work.model),
    )  # fmt: skip


def _read_work(message: pb.Work) -> Work:
    present(message, "seed", "lease", "instruction", "program", "model")
    lease = message.lease
    present(lease, "id", "round", "version", "expires_in_s", "device")
    expires_in_s = within(lease.expires_in_s, 0, math.inf, "the life of a lease")
    id = within(lease.id, 0, _MOST_ID, "the lease")
    return Work(
        run=sized(message.run, RUN_BYTES, "the run"),
        seed=message.seed,
        lease=Lease(id, lease.device, lease.round, lease.version, expires_in_s),
        expires_in_s=expires_in_s,
        instruction=_read_instruction(message.instruction),
        program=_read_manifest("program", message.program),
        model=_read_manifest("model", message.model),
    )


def _write_manifest(manifest: Manifest) -> pb.Manifest:
    return pb.Manifest(
        version=manifest.version, size=manifest.size, digest=manifest.digest,
        signature=manifest.signature,
    )  # fmt: skip


def _read_manifest(kind: str, message: pb.Manifest) -> Manifest:
    present(message, "version", "size")
    if message.signature:
        sized(message.signature, SIGNATURE_BYTES, f"the signature of the {kind}")
    digest = sized(message.digest, DIGEST_BYTES, f"the digest of the {kind}")
    return Manifest(kind, message.version, message.size, digest, message.signature)


# ---- instructions ----------------------------------------------------------------------------


def digests_of(instruction: Instruction) -> list[bytes]:
    """The blobs that a detached instruction needs, each once: masks first, for they may be here."""
    masks = [blob for _, blob in instruction.masks]
    vectors = [c for c in instruction.candidates if isinstance(c, bytes)]
    vectors += filter(None, (instruction.correction, instruction.statistics))
    return list(dict.fromkeys([*masks, *vectors]))


def detach(instruction: Instruction) -> tuple[Instruction, dict[bytes, bytes]]:
    """The instruction with digests in place of its blobs, and the blobs by digest."""
    blobs = {hashlib.sha256(blob).digest(): blob for blob in digests_of(instruction)}
    digests = {blob: digest for digest, blob in blobs.items()}
    return resolve(instruction, digests), blobs


def resolve(instruction: Instruction, blobs: Mapping[bytes, bytes]) -> Instruction:
    """The instruction with the blobs in place of their digests. Raises WireError if one lacks."""
    missing = [digest.hex()[:16] for digest in digests_of(instruction) if digest not in blobs]
    if missing:
        raise WireError("digest", f"the instruction needs the vectors {missing}, not fetched yet")
    correction, statistics = instruction.correction, instruction.statistics
    return replace(
        instruction,
        correction=None if correction is None else blobs[correction],
        statistics=None if statistics is None else blobs[statistics],
        candidates=tuple(blobs[c] if isinstance(c, bytes) else c for c in instruction.candidates),
        masks=tuple((density, blobs[mask]) for density, mask in instruction.masks),
    )


@lru_cache(maxsize=16)
def _write_instruction(instruction: Instruction) -> pb.Instruction:
    return pb.Instruction(
        kind=instruction.kind,
        phases=[_write_phase(phase) for phase in instruction.phases],
        returns=instruction.returns,
        part=instruction.part,
        correction=instruction.correction or b"",
        candidates=[
            pb.Candidate(seed=c) if isinstance(c, int) else pb.Candidate(digest=c)
            for c in instruction.candidates
        ],
        mask=_write_mask(instruction),
        grow=[pb.Growth(parameter=name, most=most) for name, most in instruction.grow],
        statistics=instruction.statistics or b"",
        sums=_write_sums(instruction.sums),
        control=instruction.control,
        own=[_write_phase(phase) for phase in instruction.own],
        transforms=[pb.Transform(name=t.name, figure=t.figure) for t in instruction.transforms],
    )


def _write_mask(instruction: Instruction) -> pb.Mask | None:
    """That of the one Program that the instruction goes to; see `Instruction.of`."""
    if not instruction.masks:
        return None
    ((density, digest),) = instruction.masks
    return pb.Mask(density=density, digest=digest)


def _write_sums(sums: FeatureSums | None) -> pb.FeatureSums | None:
    return pb.FeatureSums(head=sums.head, form=sums.form) if sums else None


def _write_phase(phase: Phase) -> pb.Phase:
    sgd = phase.sgd
    return pb.Phase(
        lr=phase.lr, steps=phase.steps, part=phase.part, groups=phase.groups,
        shuffle=phase.shuffle, corrected=phase.corrected, ahead=phase.ahead,
        sgd=pb.Sgd(
            momentum=sgd.momentum, weight_decay=sgd.weight_decay, clip=sgd.clip, prox=sgd.prox,
            correction=sgd.correction, gradient=sgd.gradient,
        ),
    )  # fmt: skip


def _read_instruction(message: pb.Instruction) -> Instruction:
    return Instruction(
        kind=one_of(message.kind, _KINDS, "kind of an instruction"),
        phases=_read_phases(message.phases),
        returns=one_of(message.returns, _RETURNS, "result of an instruction"),
        part=one_of(message.part, _PARTS, "part of the data"),
        correction=_read_digest(message.correction, "the correction"),
        candidates=tuple(
            map(_read_candidate, at_most(message.candidates, MOST_NAMES, "candidates"))
        ),
        masks=(_read_mask(message.mask),) if message.HasField("mask") else (),
        grow=tuple(map(_read_growth, at_most(message.grow, MOST_NAMES, "growths"))),
        statistics=_read_digest(message.statistics, "the statistics"),
        sums=_read_sums(message.sums) if message.HasField("sums") else None,
        control=message.control,
        own=_read_phases(message.own),
        transforms=tuple(
            map(_read_transform, at_most(message.transforms, _MOST_PARTS, "transforms"))
        ),
    )


def _read_digest(digest: bytes, what: str) -> bytes | None:
    return sized(digest, DIGEST_BYTES, f"the digest of {what}") if digest else None


def _read_mask(message: pb.Mask) -> tuple[float, bytes]:
    density = within(message.density, 0, 1, "the density of a mask")
    return density, sized(message.digest, DIGEST_BYTES, "the digest of a mask")


def _read_growth(message: pb.Growth) -> tuple[str, int]:
    return text(message.parameter, "the name of a parameter"), int(message.most)


def _read_sums(message: pb.FeatureSums) -> FeatureSums:
    head = text(message.head, "the name of a parameter")
    return FeatureSums(head, one_of(message.form, _SUMS, "form of the sums"))


def _read_transform(message: pb.Transform) -> Transform:
    name = text(message.name, "the name of a transform")
    return Transform(name, within(message.figure, 0, _MOST_RATE, f"the figure of {name}"))


def _read_candidate(message: pb.Candidate) -> bytes | int:
    form = message.WhichOneof("candidate")
    if form == "seed":
        return int(message.seed)
    return sized(message.digest, DIGEST_BYTES, "the digest of a candidate")


def _read_phases(messages: Sequence[pb.Phase]) -> tuple[Phase, ...]:
    return tuple(map(_read_phase, at_most(messages, _MOST_PARTS, "phases")))


def _read_phase(message: pb.Phase) -> Phase:
    groups = at_most(message.groups, _MOST_PARTS, "groups")
    sgd = message.sgd
    rates = {name: within(getattr(sgd, name), 0, _MOST_RATE, f"the {name}") for name in _RATES}
    return Phase(
        lr=within(message.lr, 0, _MOST_RATE, "the learning rate"),
        steps=message.steps,
        part=one_of(message.part, _PARTS, "part of the data"),
        groups=tuple(text(group, "the name of a group") for group in groups),
        shuffle=message.shuffle,
        sgd=Sgd(**rates, correction=sgd.correction, gradient=sgd.gradient),
        corrected=message.corrected,
        ahead=within(message.ahead, 0, _MOST_RATE, "the learning rate ahead"),
    )


_RATES = ("momentum", "weight_decay", "clip", "prox")


# ---- cards -----------------------------------------------------------------------------------


def write_card(card: DeviceCard) -> pb.Card:
    """The message of a card."""
    return pb.Card(
        profile=card.profile, ram_bytes=card.ram_bytes, flash_bytes=card.flash_bytes,
        macs_per_s=card.macs_per_s, downlink_bps=card.downlink_bps, uplink_bps=card.uplink_bps,
        runtime_version=card.runtime_version, sensors=card.sensors,
    )  # fmt: skip


def read_card(message: pb.Card) -> DeviceCard:
    """The card of a message. Raises WireError if a figure is none that a device can have."""
    sensors = at_most(message.sensors, _MOST_PARTS, "sensors")
    return DeviceCard(
        profile=text(message.profile, "the profile"),
        ram_bytes=within(message.ram_bytes, 0, _MOST_BYTES, "the RAM in bytes"),
        flash_bytes=within(message.flash_bytes, 0, _MOST_BYTES, "the flash in bytes"),
        macs_per_s=within(message.macs_per_s, 1, _MOST_RATE, "the speed in MAC/s"),
        downlink_bps=within(message.downlink_bps, 1, _MOST_RATE, "the downlink in bit/s"),
        uplink_bps=within(message.uplink_bps, 1, _MOST_RATE, "the uplink in bit/s"),
        runtime_version=within(message.runtime_version, 1, 2**16, "the version of the runtime"),
        sensors=tuple(text(sensor, "the name of a sensor") for sensor in sensors),
    )


# ---- updates ---------------------------------------------------------------------------------


def write_update(update: Update, run: bytes, base: bytes) -> pb.Update:
    """The message of an update to the model of digest ``base``, without its values."""
    return pb.Update(
        run=run, lease=update.lease, device=update.device, version=update.version,
        samples=update.samples, base=base, measures=update.measures,
    )  # fmt: skip


def submit_requests(
    update: Update, run: bytes, base: bytes, payload: bytes, wait_s: float
) -> Iterator[pb.SubmitRequest]:
    """An update with the payload of `write_values` in chunks; each names the update it is of.

    What only measures has one empty chunk.
    """
    head = write_update(update, run, base)
    for offset in range(0, len(payload) or 1, CHUNK_BYTES):
        yield pb.SubmitRequest(
            update=head, chunk=payload[offset : offset + CHUNK_BYTES], offset=offset,
            total=len(payload), wait_s=wait_s,
        )  # fmt: skip


def read_update(message: pb.Update, payload: bytes, due: Due) -> tuple[bytes, bytes, Update]:
    """The run, the digest of the base, and the update.

    Raises WireError: besides what is malformed, if the payload is not what is `Due`, or values are
    made of no samples.
    """
    present(message, "lease", "device", "version", "samples")
    run = sized(message.run, RUN_BYTES, "the run")
    base = sized(message.base, DIGEST_BYTES, "the digest of the base")
    lease = within(message.lease, 0, _MOST_ID, "the lease")
    if message.samples > _MOST_COUNT or (payload and not message.samples):
        raise WireError("count", f"an update of {message.samples:,} samples")
    measures = _read_measures(message.measures)
    found = read_vector(payload, due) if payload else Values()
    return run, base, Update(
        lease, message.device, round_of(lease), message.version, message.samples, found.values,
        found.ranges, measures, found.mask, found.places, found.quantised,
    )  # fmt: skip


def _read_measures(message: Mapping[str, float]) -> dict[str, float]:
    at_most(message, MOST_NAMES, "measures")
    measures = {text(name, "the name of a measure"): value for name, value in message.items()}
    for name, value in measures.items():
        if not math.isfinite(value):
            raise WireError("not-finite", f"the measure {name} is {value}")
    return measures


def write_receipt(receipt: Receipt) -> pb.Receipt:
    """The message of a receipt; a long detail is cut."""
    detail = receipt.detail[:_MOST_TEXT]
    return pb.Receipt(lease=receipt.lease, status=receipt.status, detail=detail)


def read_receipt(message: pb.Receipt) -> Receipt:
    """The receipt of a message. Raises WireError."""
    present(message, "lease")
    return Receipt(
        lease=within(message.lease, 0, _MOST_ID, "the lease"),
        status=one_of(message.status, _STATUSES, "status"),
        detail=text(message.detail, "the detail", _MOST_TEXT),
    )
