"""The bytes of a visit are those of the messages that are really built for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.values import (
    ACCEPTED,
    LATE,
    Instruction,
    Lease,
    Phase,
    Ranges,
    Receipt,
    Update,
    length,
)
from fedtiny.wire import codec
from fedtiny.wire.codec import CHUNK_BYTES, ComeBack, Manifest, Work
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.visit import VisitBytes, share, visit_bytes
from tests.wire import forms

RUN, DIGEST, SIGNATURE = bytes(range(8)), bytes(range(32)), bytes(range(64))


def exchanged(
    asked: Instruction, size: int, update: Update, seed: int = 2**64 - 1
) -> tuple[VisitBytes, list[int]]:
    """The messages of one visit, built as coordinator and device do, and added up."""
    detached, _ = codec.detach(asked)
    program, model = (Manifest(k, 2**32 - 1, 1, DIGEST, SIGNATURE) for k in ("program", "model"))
    lease = Lease(update.lease, update.device, update.round, update.version, math.inf)
    work = codec.write_answer(Work(RUN, seed, lease, 60.0, detached, program, model))
    check_in = pb.CheckInReply(answer=work, protocol=1)
    blob = np.arange(size, dtype=np.float32).tobytes()
    ups, downs = [], []
    for offset in range(0, len(blob), CHUNK_BYTES):
        ups.append(pb.FetchRequest(digest=DIGEST, offset=offset, have=bytes(32)))
        chunk = blob[offset : offset + CHUNK_BYTES]
        downs.append(pb.FetchReply(chunk=chunk, total=len(blob)))
    submits = list(codec.submit_requests(update, RUN, DIGEST, size, 30.0))
    received = np.cumsum([len(request.chunk) for request in submits]).tolist()
    replies = [pb.SubmitReply(received=count) for count in received]
    replies[-1].receipt.CopyFrom(codec.write_receipt(Receipt(update.lease, ACCEPTED)))
    replies[-1].answer.CopyFrom(codec.write_answer(ComeBack(12.0, "not a visit's")))
    parts: list[list[Any]] = [[check_in, *downs], ups, submits, replies]
    return VisitBytes(*(sum(map(share, part)) for part in parts)), [len(part) for part in parts]


@st.composite
def visits(draw: st.DrawFn) -> tuple[Instruction, int, Update]:
    size = draw(st.integers(1, 3 * CHUNK_BYTES // 4))
    edges = sorted(draw(st.sets(st.integers(0, size), max_size=6)))
    ranges: Ranges = tuple(zip(edges[: len(edges) // 2 * 2 : 2], edges[1::2], strict=True))
    ranges = draw(st.sampled_from([ranges, ((0, size),)]))
    update = Update(
        draw(st.integers(0, 2**63 - 1)), draw(forms.uint32), 0, draw(forms.uint32),
        draw(st.integers(1, 2**40)), np.ones(length(ranges), np.float32).tobytes(), ranges,
        draw(forms.measures),
    )  # fmt: skip
    return draw(forms.instructions(st.binary(min_size=4, max_size=64))), size, update


@settings(max_examples=60)
@given(visits())
def test_a_visit_carries_what_its_messages_have(visit: tuple[Instruction, int, Update]) -> None:
    asked, size, update = visit
    expected = visit_bytes(asked, size, update.ranges, tuple(update.measures))
    assert exchanged(asked, size, update)[0] == expected


@pytest.mark.parametrize("size", [1, 31, 1153, 16381, 16382, 16384, 16385, 28805, 32768, 40000])
def test_chunks_of_any_number_are_counted(size: int) -> None:
    asked = Instruction(phases=(Phase(0.1, 3),))
    update = Update(1, 2, 0, 1, 5, bytes(4 * size), ((0, size),), {"loss_sum": 0.0, "steps": 3.0})
    found, messages = exchanged(asked, size, update)
    assert found == visit_bytes(asked, size, update.ranges, ("loss_sum", "steps"))
    fetches = math.ceil(4 * size / 65536)
    # a vector has 5 bytes of size, and 2 to 4 of tag and length, besides its values
    head = 5 + 1 + math.ceil((4 * size).bit_length() / 7)
    submits = math.ceil((4 * size + head) / 65536)
    assert messages == [1 + fetches, fetches, submits, submits]


def test_the_numbers_of_a_visit_make_no_difference() -> None:
    asked = Instruction(phases=(Phase(0.1, 3),))
    few = Update(0, 0, 0, 0, 1, bytes(12), ((0, 3),), {"steps": 0.0})
    many = Update(2**63 - 1, 2**32 - 1, 0, 2**32 - 1, 2**40, bytes(12), ((0, 3),), {"steps": 1e300})
    assert exchanged(asked, 3, few, seed=0)[0] == exchanged(asked, 3, many)[0]


def test_a_model_of_4600_bytes_costs_less_than_6_kb_each_way() -> None:
    visit = visit_bytes(
        Instruction(phases=(Phase(0.02, 32),)), 1153, ((0, 1153),), ("loss_sum", "steps")
    )
    assert 4 * 1153 == 4612
    assert visit.up == visit.requests + visit.update < 6000
    assert visit.down == visit.work + visit.receipt < 6000


def test_replies_without_work_are_not_of_a_visit() -> None:
    idle = codec.write_answer(ComeBack(60.0, "later"))
    assert share(pb.CheckInReply(answer=idle, protocol=1)) == 0
    receipt = codec.write_receipt(Receipt(1, LATE))
    alone = pb.SubmitReply(receipt=receipt, received=9)
    assert share(pb.SubmitReply(receipt=receipt, received=9, answer=idle)) == alone.ByteSize()
