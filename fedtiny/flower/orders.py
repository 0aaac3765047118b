"""What travels between our rounds and a node of Flower's: the messages of the wire, in its records.

A visit goes out as the Work of `fedtiny.wire.codec`, its blobs and the model; an update comes back
as its message and its values, as over gRPC: the same bytes, and the same checks when they are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from google.protobuf.message import DecodeError

from fedtiny.errors import WireError
from fedtiny.values import Kept, Update
from fedtiny.wire import codec
from fedtiny.wire.codec import Due, Work
from fedtiny.wire.pb import fleet_pb2 as pb

ORDER, UPDATE, KEPT = "order", "update", "kept"


@dataclass(frozen=True, eq=False)
class Order:
    """A visit that is asked for. ``counted`` is the device's last lease whose update has counted;
    -1 if there is none."""

    work: Work
    model: bytes
    counted: int

    def record(self, blobs: Mapping[bytes, bytes]) -> RecordDict:
        """The content of a message; the instruction is detached from its blobs."""
        answer = codec.write_answer(self.work).SerializeToString()
        said = {"work": answer, "blobs": [*blobs.values()], "counted": self.counted}
        model = Array(np.frombuffer(self.model, np.uint8))
        return RecordDict({ORDER: ConfigRecord(said), "model": ArrayRecord({"model": model})})

    @classmethod
    def read(cls, content: RecordDict) -> Order:
        """The order of a message, whole. Raises WireError."""
        blobs, counted = _said(content, ORDER, "blobs", list), _said(content, ORDER, "counted", int)
        by_digest = {hashlib.sha256(blob).digest(): blob for blob in blobs}
        model = _body(content, "model")
        work = codec.read_answer(_message(pb.Answer, _said(content, ORDER, "work", bytes)))
        if not isinstance(work, Work) or hashlib.sha256(model).digest() != work.model.digest:
            raise WireError("digest", "the model is not the one that the order names")
        work = replace(work, instruction=codec.resolve(work.instruction, by_digest))
        return cls(work, model, counted)


def write_update(update: Update, order: Order, size: int) -> RecordDict:
    """The answer to an order, of a device whose values are of a vector of ``size``."""
    work = order.work
    head = codec.write_update(update, work.run, work.model.digest).SerializeToString()
    values = codec.write_values(update, size, codec.given_mask(update, work.instruction))
    payload = Array(np.frombuffer(values, np.uint8))
    return RecordDict(
        {UPDATE: ConfigRecord({"head": head}), "values": ArrayRecord({"values": payload})}
    )


def read_update(content: RecordDict, due: Due) -> Update:
    """The update of an answer. Raises WireError."""
    payload = _body(content, "values")
    head = _message(pb.Update, _said(content, UPDATE, "head", bytes))
    return codec.read_update(head, payload, due)[2]


Kind = TypeVar("Kind")
Read = TypeVar("Read", pb.Answer, pb.Update)


def _said(content: RecordDict, record: str, name: str, kind: type[Kind]) -> Kind:
    value = content[record].get(name) if record in content else None
    if not isinstance(value, kind):
        raise WireError("malformed", f"{record} has no {name} of type {kind.__name__}")
    return value


def _body(content: RecordDict, name: str) -> bytes:
    try:
        return bytes(_said(content, name, name, Array).numpy().tobytes())
    except (TypeError, ValueError) as error:
        raise WireError("malformed", f"{name} is no array: {error}") from None


def _message(kind: type[Read], body: bytes) -> Read:
    try:
        message: Read = kind.FromString(body)
    except DecodeError as error:
        raise WireError("malformed", f"no {kind.__name__} can be read: {error}") from None
    return message


# ---- what a node keeps -----------------------------------------------------------------------


def write_kept(kept: Kept, lease: int) -> ConfigRecord:
    """What a visit has left; it counts when its lease does."""
    return ConfigRecord({"lease": lease, **kept})


def read_kept(records: Sequence[ConfigRecord], counted: int) -> tuple[Kept, int]:
    """What the last visit that counted has left, and its lease."""
    for record in records:
        if record.get("lease") == counted:
            return {n: v for n, v in record.items() if isinstance(v, bytes)}, counted
    return {}, -1
