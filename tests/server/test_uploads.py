from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import WireError
from fedtiny.server.uploads import Uploads
from fedtiny.wire.codec import CHUNK_BYTES
from fedtiny.wire.pb import fleet_pb2 as pb

MOST = 300_000


def chunk(payload: bytes, start: int, stop: int, lease: int = 1) -> pb.SubmitRequest:
    return pb.SubmitRequest(
        update=pb.Update(lease=lease), chunk=payload[start:stop], offset=start, total=len(payload)
    )


def payload_of(length: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(length))


def test_what_fits_in_one_message_is_whole_at_once() -> None:
    uploads, payload = Uploads(), payload_of(5_000)
    assert uploads.add(3, chunk(payload, 0, 5_000), MOST) == payload
    assert len(uploads) == 0


@given(st.integers(1, MOST), st.integers(1, CHUNK_BYTES), st.data())
def test_chunks_that_are_lost_and_repeated_make_the_payload(
    length: int, width: int, data: st.DataObject
) -> None:
    uploads, payload = Uploads(), payload_of(length)
    at: bytes | int = 0
    width = max(width, length // 50 + 1)
    while isinstance(at, int):
        offset = data.draw(st.sampled_from([at, at, max(0, at - width), min(at + width, length)]))
        if offset < length:
            at = uploads.add(3, chunk(payload, offset, min(offset + width, length)), MOST)
    assert at == payload


def test_another_lease_begins_anew() -> None:
    uploads, payload = Uploads(), payload_of(100)
    assert uploads.add(3, chunk(payload, 0, 60), MOST) == 60
    assert uploads.add(3, chunk(payload, 60, 100, lease=2), MOST) == 0
    assert len(uploads) == 1


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.SubmitRequest(), "malformed"),
        (pb.SubmitRequest(update=pb.Update(), offset=0), "malformed"),
        (pb.SubmitRequest(update=pb.Update(), offset=0, total=MOST + 1, chunk=b"1"), "size"),
        (pb.SubmitRequest(update=pb.Update(), offset=0, total=2**63, chunk=b"1"), "size"),
        (pb.SubmitRequest(update=pb.Update(), offset=9, total=10, chunk=b"12"), "chunk"),
        (pb.SubmitRequest(update=pb.Update(), offset=2**63, total=10, chunk=b"12"), "chunk"),
        (pb.SubmitRequest(update=pb.Update(), offset=0, total=10, chunk=b""), "chunk"),
        (
            pb.SubmitRequest(
                update=pb.Update(), offset=0, total=MOST, chunk=bytes(CHUNK_BYTES + 1)
            ),
            "chunk",
        ),
    ],
)
def test_what_is_out_of_bounds_is_refused_and_nothing_is_kept(
    request_: pb.SubmitRequest, reason: str
) -> None:
    uploads = Uploads()
    with pytest.raises(WireError) as refused:
        uploads.add(3, request_, MOST)
    assert refused.value.reason == reason
    assert len(uploads) == 0
