"""The bytes of a visit: the same in a simulation as on the wire.

Of a visit are: the answer with its work, inside the reply that it came in; the requests for the
model, the mask and the vectors of the instruction, and their replies; the requests that bring the
update; the rest of the reply that brings the receipt. Of none are: check-ins, answers without work,
the Program (fetched once), enrolment, and what gRPC, TLS and TCP put around messages.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fedtiny.layout import length
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.transforms.quantisers import FORMS
from fedtiny.transforms.sparsifiers import count_of, shared_mask
from fedtiny.transforms.table import QUANTISES, SPARSIFIES, find
from fedtiny.values import ACCEPTED, VOTES, Instruction, Lease, Receipt, Update
from fedtiny.wire.codec import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    RUN_BYTES,
    SIGNATURE_BYTES,
    Manifest,
    Work,
    detach,
    digests_of,
    write_answer,
    write_receipt,
    write_update,
)
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.vectors import (
    field_bytes,
    given_mask,
    grid_bytes,
    sparse_bytes,
    vector_bytes,
    write_values,
)

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.masks import Mask

_NO_RUN, _NO_DIGEST = bytes(RUN_BYTES), bytes(DIGEST_BYTES)


class VisitBytes(NamedTuple):
    """What one visit carries, in bytes; or columns of them.

    Attributes:
        work: Down: the answer with the work, the whole model, the vectors of the instruction.
        requests: Up: the requests for the model and those vectors.
        update: Up: the update, its values in the form that is asked for; of what grows, may have
            moved its mask or names its largest values, the most that it can be. A device that drops
            out never sends it.
        receipt: Down: the replies to the update, which is accepted.
        mask: Down: the mask. Only a device that does not hold it fetches it.
        mask_requests: Up: the requests for the mask.
    """

    work: int
    requests: int
    update: int
    receipt: int
    mask: int = 0
    mask_requests: int = 0

    @property
    def down(self) -> int:
        """To a device that does not drop out, and does not hold the mask."""
        return self.work + self.receipt + self.mask

    @property
    def up(self) -> int:
        """From a device that does not drop out, and does not hold the mask."""
        return self.requests + self.update + self.mask_requests


@lru_cache(maxsize=64)
def visit_bytes(
    instruction: Instruction,
    size: int,
    ranges: Ranges,
    measures: tuple[str, ...],
    mask: Mask | None = None,
    model_bytes: int = 0,
    int8_values: int = 0,
) -> VisitBytes:
    """What a visit carries that carries out an instruction on a model of ``size`` floats.

    ``ranges`` are the coordinates that come back, ``measures`` the names of what is measured,
    ``mask`` is that of the instruction, which is for one Program (`Instruction.of`),
    ``model_bytes`` are those of the model if it is not sent as float32, and so many of the values
    that come back are int8. The numbers in the messages make no difference.
    """
    update = Update(0, 0, 0, 0, 0, measures=dict.fromkeys(measures, 0.0))
    payload = _payload_bytes(instruction, size, ranges, mask)
    if int8_values:
        payload = grid_bytes(size, ranges, int8_values)
    model_bytes = model_bytes or FLOAT_BYTES * (mask.count if mask else size)
    requests, replies = fetch_bytes(model_bytes, compared=True)
    blobs = [fetch_bytes(len(blob)) for blob in digests_of(instruction)]
    mask_requests, mask_replies = blobs.pop(0) if mask else (0, 0)
    more = len(_chunks(payload)) - 1
    return VisitBytes(
        work=answer_bytes(write_answer(_some_work(instruction))) + replies
        + sum(down for _, down in blobs),
        requests=requests + sum(up for up, _ in blobs),
        update=_request_bytes(write_update(update, _NO_RUN, _NO_DIGEST), payload),
        receipt=receipt_bytes(Receipt(0, ACCEPTED)) + more * _MORE.ByteSize(),
        mask=mask_replies,
        mask_requests=mask_requests,
    )  # fmt: skip


def _payload_bytes(asked: Instruction, size: int, ranges: Ranges, mask: Mask | None) -> int:
    """The longest vector that such an instruction brings back."""
    if not ranges:
        return 0
    if asked.grow and asked.sends_gradient:
        most = sum(count for _, count in asked.grow)
        return sparse_bytes(size, ranges, None, most, "" if asked.returns == VOTES else "float32")
    if asked.transforms:
        return _transformed_bytes(asked, size, ranges, mask)
    if asked.pools or asked.sums:
        return vector_bytes(ranges[-1][1], ranges, None)
    return vector_bytes(size, ranges, mask, own=bool(asked.grow))


def _transformed_bytes(asked: Instruction, size: int, ranges: Ranges, mask: Mask | None) -> int:
    """The longest vector of what transforms leave: only the distances of places make it shorter."""
    sparsifier, quantiser = (find(asked.transforms, stage) for stage in (SPARSIFIES, QUANTISES))
    form = FORMS[quantiser.name] if quantiser else "float32"
    if sparsifier is None:
        return vector_bytes(size, ranges, mask, form=form)
    if sparsifier.name == "randomk":
        # Which of them are drawn makes no difference where all are trained.
        some = shared_mask(0, 0, size, sparsifier.figure)
        return vector_bytes(size, ranges, some, form=form)
    trained = length(ranges) if mask is None else mask.length(ranges)
    most = count_of(sparsifier.figure, trained)
    if most == trained:
        return vector_bytes(size, ranges, mask, form=form)
    return sparse_bytes(size, ranges, mask, most, form)


def update_bytes(update: Update, size: int, asked: Instruction) -> int:
    """Bytes of the requests that bring this update to a model of ``size``."""
    payload = write_values(update, size, given=given_mask(update, asked))
    return _request_bytes(write_update(update, _NO_RUN, _NO_DIGEST), len(payload))


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
    return field_bytes(answer.ByteSize()) if answer.HasField("work") else 0


def _answer_field(reply: pb.SubmitReply) -> int:
    return field_bytes(reply.answer.ByteSize()) if reply.HasField("answer") else 0


def receipt_bytes(receipt: Receipt) -> int:
    """Bytes of the reply with a receipt, without the answer that follows in it."""
    reply = pb.SubmitReply(receipt=write_receipt(receipt), received=0)
    return int(reply.ByteSize())


def fetch_bytes(nbytes: int, compared: bool = False) -> tuple[int, int]:
    """Bytes of the requests and of the replies that bring so many; models are ``compared``."""
    chunks, have = _chunks(nbytes), _NO_DIGEST if compared else b""
    request = pb.FetchRequest(digest=_NO_DIGEST, offset=0, have=have).ByteSize()
    reply = pb.FetchReply(total=0).ByteSize()
    return request * len(chunks), reply * len(chunks) + sum(map(field_bytes, chunks))


def _request_bytes(head: pb.Update, payload: int) -> int:
    """Bytes of the requests that bring an update with a payload of so many."""
    chunks = _chunks(payload)
    request = pb.SubmitRequest(update=head, offset=0, total=0, wait_s=0.0).ByteSize()
    return int(request) * len(chunks) + sum(map(field_bytes, chunks))


def _chunks(nbytes: int) -> list[int]:
    """The lengths of the chunks of so many bytes; one at least, be it empty."""
    return [min(CHUNK_BYTES, nbytes - at) for at in range(0, nbytes or 1, CHUNK_BYTES)]
