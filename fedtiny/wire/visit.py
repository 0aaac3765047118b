"""The bytes of a visit: the same in a simulation as on the wire.

Of a visit are: the answer with its work, inside the reply that it came in; the requests for the
model and their replies; the requests that bring the update; the rest of the reply that brings the
receipt. Of none are: check-ins, answers without work, the Program (fetched once), enrolment, and
what gRPC, TLS and TCP put around messages.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fedtiny.tensors import FLOAT_BYTES
from fedtiny.values import ACCEPTED, Instruction, Lease, Receipt, Update, length
from fedtiny.wire.codec import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    RUN_BYTES,
    SIGNATURE_BYTES,
    Manifest,
    Work,
    detach,
    write_answer,
    write_receipt,
    write_update,
)
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.vectors import head_bytes

if TYPE_CHECKING:
    from fedtiny.values import Ranges

_NO_RUN, _NO_DIGEST = bytes(RUN_BYTES), bytes(DIGEST_BYTES)


class VisitBytes(NamedTuple):
    """What one visit carries, in bytes; or columns of them.

    Attributes:
        work: Down: the answer with the work, and the whole model.
        requests: Up: the requests for the model.
        update: Up: the update, its values as float32. A device that drops out never sends it.
        receipt: Down: the replies to the update, which is accepted.
    """

    work: int
    requests: int
    update: int
    receipt: int

    @property
    def down(self) -> int:
        """To a device that does not drop out."""
        return self.work + self.receipt

    @property
    def up(self) -> int:
        """From a device that does not drop out."""
        return self.requests + self.update


@lru_cache(maxsize=64)
def visit_bytes(
    instruction: Instruction, size: int, ranges: Ranges, measures: tuple[str, ...]
) -> VisitBytes:
    """What a visit carries that carries out an instruction on a model of ``size`` floats.

    ``ranges`` are the coordinates that come back, ``measures`` the names of what is measured. The
    numbers in the messages make no difference.
    """
    update = Update(0, 0, 0, 0, 0, measures=dict.fromkeys(measures, 0.0))
    values = FLOAT_BYTES * length(ranges)
    payload = head_bytes(size, ranges) + _field(values) if values else 0
    requests, replies = fetch_bytes(FLOAT_BYTES * size)
    more = len(_chunks(payload)) - 1
    return VisitBytes(
        work=answer_bytes(write_answer(_some_work(instruction))) + replies,
        requests=requests,
        update=_update_bytes(write_update(update, _NO_RUN, _NO_DIGEST), payload),
        receipt=receipt_bytes(Receipt(0, ACCEPTED)) + more * _MORE.ByteSize(),
    )


_MORE = pb.SubmitReply(received=0)
"""The reply to a chunk that is not the last one."""


def _some_work(instruction: Instruction) -> Work:
    program, model = (
        Manifest(kind, 0, 0, _NO_DIGEST, bytes(SIGNATURE_BYTES)) for kind in ("program", "model")
    )
    lease = Lease(0, 0, 0, 0, 0.0)
    return Work(_NO_RUN, 0, lease, 0.0, detach(instruction)[0], program, model)


# ---- single messages -------------------------------------------------------------------------


def share(message: Any) -> int:
    """How many bytes of a message that was really sent are a visit's.

    A request or reply of Fetch counts whole; the caller knows whether it is about a model.
    """
    if isinstance(message, pb.CheckInReply):
        return answer_bytes(message.answer)
    if isinstance(message, pb.SubmitReply):
        spare = 0 if message.answer.HasField("work") else _answer_field(message)
        return int(message.ByteSize()) - spare
    return int(message.ByteSize())


def answer_bytes(answer: pb.Answer) -> int:
    """Bytes of an answer as it stands in a reply; 0 if it has no work."""
    return _field(answer.ByteSize()) if answer.HasField("work") else 0


def _answer_field(reply: pb.SubmitReply) -> int:
    return _field(reply.answer.ByteSize()) if reply.HasField("answer") else 0


def receipt_bytes(receipt: Receipt) -> int:
    """Bytes of the reply with a receipt, without the answer that follows in it."""
    reply = pb.SubmitReply(receipt=write_receipt(receipt), received=0)
    return int(reply.ByteSize())


def fetch_bytes(nbytes: int) -> tuple[int, int]:
    """Bytes of the requests and of the replies that bring a model of so many."""
    chunks = _chunks(nbytes)
    request = pb.FetchRequest(digest=_NO_DIGEST, offset=0, have=_NO_DIGEST).ByteSize()
    reply = pb.FetchReply(total=0).ByteSize()
    return request * len(chunks), reply * len(chunks) + sum(map(_field, chunks))


def _update_bytes(head: pb.Update, payload: int) -> int:
    """Bytes of the requests that bring an update with a payload of so many."""
    chunks = _chunks(payload)
    request = pb.SubmitRequest(update=head, offset=0, total=0, wait_s=0.0).ByteSize()
    return int(request) * len(chunks) + sum(map(_field, chunks))


def _chunks(nbytes: int) -> list[int]:
    """The lengths of the chunks of so many bytes; one at least, be it empty."""
    return [min(CHUNK_BYTES, nbytes - at) for at in range(0, nbytes or 1, CHUNK_BYTES)]


def _field(nbytes: int) -> int:
    """Bytes of a field of so many: a tag, their number seven bits at a time, themselves."""
    return 1 + -(-max(1, nbytes.bit_length()) // 7) + nbytes if nbytes else 0
