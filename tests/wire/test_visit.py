"""The bytes of a visit are those of the messages that are really built for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.device.learner import Key
from fedtiny.layout import Layout, Parameter, Ranges, length
from fedtiny.masks import Mask
from fedtiny.transforms.chain import transformed
from fedtiny.transforms.table import parse
from fedtiny.values import (
    ACCEPTED,
    CALIBRATE,
    GRADIENT,
    LATE,
    VOTES,
    Instruction,
    Lease,
    Phase,
    Receipt,
    Update,
)
from fedtiny.wire import codec
from fedtiny.wire.codec import CHUNK_BYTES, ComeBack, Manifest, Work
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.visit import VisitBytes, share, update_bytes, visit_bytes
from tests.wire import forms

RUN, DIGEST, SIGNATURE = bytes(range(8)), bytes(range(32)), bytes(range(64))


def exchanged(
    asked: Instruction, size: int, update: Update, seed: int = 2**64 - 1
) -> tuple[VisitBytes, list[int]]:
    """The messages of one visit, built as coordinator and device do, and added up."""
    detached, blobs = codec.detach(asked)
    program, model = (Manifest(k, 2**32 - 1, 1, DIGEST, SIGNATURE) for k in ("program", "model"))
    lease = Lease(update.lease, update.device, update.round, update.version, math.inf)
    work = codec.write_answer(Work(RUN, seed, lease, 60.0, detached, program, model))
    check_in = pb.CheckInReply(answer=work, protocol=1)
    live = Mask.read(asked.mask, layout(size)).count if asked.mask else size
    ups, downs = fetched(np.arange(live, dtype=np.float32).tobytes(), have=bytes(32))
    mask = blobs.pop(detached.mask) if detached.mask else b""
    mask_ups, mask_downs = fetched(mask) if mask else ([], [])
    for blob in blobs.values():
        ups, downs = (a + b for a, b in zip((ups, downs), fetched(blob), strict=True))
    payload = codec.write_values(
        update, asked_size(asked, update, size), given=codec.given_mask(update, asked)
    )
    submits = list(codec.submit_requests(update, RUN, DIGEST, payload, 30.0))
    received = np.cumsum([len(request.chunk) for request in submits]).tolist()
    replies = [pb.SubmitReply(received=count) for count in received]
    replies[-1].receipt.CopyFrom(codec.write_receipt(Receipt(update.lease, ACCEPTED)))
    replies[-1].answer.CopyFrom(codec.write_answer(ComeBack(12.0, "not a visit's")))
    parts: list[list[Any]] = [[check_in, *downs], ups, submits, replies, mask_downs, mask_ups]
    return VisitBytes(*(sum(map(share, part)) for part in parts)), [len(part) for part in parts]


def fetched(blob: bytes, **have: bytes) -> tuple[list[Any], list[Any]]:
    """The requests and the replies that bring a blob."""
    offsets = range(0, len(blob), CHUNK_BYTES)
    chunks = [blob[offset : offset + CHUNK_BYTES] for offset in offsets]
    ups = [pb.FetchRequest(digest=DIGEST, offset=offset, **have) for offset in offsets]
    return ups, [pb.FetchReply(chunk=chunk, total=len(blob)) for chunk in chunks]


def layout(size: int) -> Layout:
    return Layout.of([Parameter("weight", (size,))])


def asked_size(asked: Instruction, update: Update, size: int) -> int:
    return update.ranges[-1][1] if (asked.pools or asked.sums) and update.ranges else size


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
    asked = draw(forms.instructions(st.binary(min_size=4, max_size=64)))
    return replace(asked, masks=(), grow=(), transforms=()), size, update


@settings(max_examples=60)
@given(visits())
def test_a_visit_carries_what_its_messages_have(visit: tuple[Instruction, int, Update]) -> None:
    asked, size, update = visit
    expected = visit_bytes(asked, size, update.ranges, tuple(update.measures))
    assert exchanged(asked, size, update)[0] == expected


@pytest.mark.parametrize("size", [9, 1000, 70_000, 300_000])
@pytest.mark.parametrize("seeded", [True, False])
def test_a_visit_under_a_mask_carries_what_is_live_and_the_mask_once(
    size: int, seeded: bool
) -> None:
    mask = Mask.draw(layout(size), {"weight": size // 3}, 5)
    mask = mask if seeded else Mask(size, mask.bits)
    asked = Instruction(phases=(Phase(0.1, 3),), masks=((0.33, mask.blob),))
    update = Update(1, 2, 0, 1, 5, bytes(4 * mask.count), ((0, size),), {"steps": 3.0}, mask)
    expected = visit_bytes(asked, size, ((0, size),), ("steps",), mask)
    assert exchanged(asked, size, update)[0] == expected
    assert update_bytes(update, size, asked) == expected.update
    dense = visit_bytes(Instruction(phases=(Phase(0.1, 3),)), size, ((0, size),), ("steps",))
    assert expected.mask < (100 if seeded else 100 + size // 8 + 120 * (1 + size // 8 // 65536))
    assert (expected.down - expected.mask < dense.down) == (size > 100)
    assert expected.up < dense.up or size < 100


@given(st.integers(1000, 2**20), st.integers(0, 300), st.sampled_from([GRADIENT, VOTES]), st.data())
def test_a_growth_carries_at_most_its_bound(
    size: int, most: int, returns: str, data: st.DataObject
) -> None:
    asked = Instruction(phases=(Phase(0.1, 1),), returns=returns, grow=(("weight", most),))
    seed = data.draw(st.integers(0, 99))
    places = np.random.default_rng(seed).choice(
        size, data.draw(st.integers(0, most)), replace=False
    )
    packed = np.sort(places).astype("<u4").tobytes()
    value = np.float32(1.0 if returns == VOTES else 0.5)
    values = np.full(len(places), value).tobytes()
    update = Update(1, 2, 0, 1, 5, values, ((0, size),), {"steps": 3.0}, places=packed)
    bound = visit_bytes(asked, size, ((0, size),), ("steps",))
    found = exchanged(asked, size, update)[0]
    assert found == bound._replace(update=update_bytes(update, size, asked))
    assert found.update <= bound.update


CHAINS = (
    ["clip:1"], ["noise:0.1"], ["sign"], ["int8"], ["randomk:0.2", "int8"], ["topk:1", "qsgd:3"],
    ["topk:0.1"], ["feedback", "topk:0.01", "int8"], ["topk:0.3", "sign"],
)  # fmt: skip


@settings(max_examples=40)
@given(st.sampled_from(CHAINS), st.integers(1, 30_000), st.data())
def test_a_delta_that_was_transformed_carries_at_most_its_bound(
    names: list[str], size: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, size - 1))
    ranges = ((start, data.draw(st.integers(start + 1, size))),)
    random = "randomk" in names[0]
    if random:
        ranges = ((0, size),)
    asked = Instruction(phases=(Phase(0.1, 1),), transforms=parse(names))
    delta = np.random.default_rng(size).normal(size=length(ranges)).astype(np.float32)
    sent = transformed(asked, delta, None, ranges, None, size, Key(1, 2, 3))
    update = Update(
        1, 2, 2, 1, 5, sent.values, ranges, {"steps": 3.0}, sent.mask, sent.places, sent.quantised
    )
    bound = visit_bytes(asked, size, ranges, ("steps",))
    found = exchanged(asked, size, update)[0]
    assert found == bound._replace(update=update_bytes(update, size, asked))
    assert found.update <= bound.update
    if sent.places is None:
        assert found == bound


def test_an_update_that_has_moved_its_mask_carries_it() -> None:
    given = Mask.draw(layout(1000), {"weight": 100}, 5)
    own = given.moved([int(given.coordinates(((0, 1000),))[0])], [999])
    asked = Instruction(phases=(Phase(0.1, 3),), masks=((0.1, given.blob),), grow=(("weight", 1),))
    update = Update(1, 2, 0, 1, 5, bytes(4 * own.count), ((0, 1000),), {"steps": 3.0}, own)
    bound = visit_bytes(asked, 1000, ((0, 1000),), ("steps",), given)
    found = exchanged(asked, 1000, update)[0]
    assert found == bound._replace(update=update_bytes(update, 1000, asked))
    assert bound.update - 125 < found.update <= bound.update


def test_statistics_of_candidates_are_a_vector_of_their_own() -> None:
    asked = Instruction(CALIBRATE, candidates=(1, 2, 3))
    update = Update(1, 2, 0, 1, 5, bytes(4 * 3 * 40), ((0, 120),))
    assert exchanged(asked, 5000, update)[0] == visit_bytes(asked, 5000, ((0, 120),), ())


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
    assert messages == [1 + fetches, fetches, submits, submits, 0, 0]


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
