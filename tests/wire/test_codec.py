"""Values come back as they were sent; what no honest peer sends is refused, with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import WireError
from fedtiny.values import (
    ACCEPTED,
    SCORE,
    DeviceCard,
    Instruction,
    Lease,
    Phase,
    Receipt,
    Update,
    lease_id,
)
from fedtiny.wire import codec
from fedtiny.wire.codec import ComeBack, Dismissed, Due, Manifest, Work
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.wire import forms

RUN, DIGEST = bytes(range(8)), bytes(range(32))
CARD = DeviceCard("pi-4", 2**30, 2**33, 1e9, 1e7, 1e6)
WORK = Work(
    RUN, 7, Lease(lease_id(3, 5), 9, 3, 2, 60.0), 60.0, Instruction(phases=(Phase(0.1),)),
    Manifest("program", 1, 1692, DIGEST), Manifest("model", 2, 12, DIGEST),
)  # fmt: skip
TRAINED = Update(lease_id(3, 5), 9, 3, 2, 32, bytes(12), ((0, 3),), {"loss_sum": 1.5})


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(WireError) as error:
        read()
    return error.value.reason


# ---- round trips -----------------------------------------------------------------------------


@given(forms.answers)
def test_an_answer_is_read_as_it_was_written(answer: codec.Answer) -> None:
    data = codec.write_answer(answer).SerializeToString()
    assert codec.read_answer(pb.Answer.FromString(data)) == answer


@given(forms.cards)
def test_a_card_is_read_as_it_was_written(card: DeviceCard) -> None:
    data = codec.write_card(card).SerializeToString()
    assert codec.read_card(pb.Card.FromString(data)) == card


@given(forms.receipts)
def test_a_receipt_is_read_as_it_was_written(receipt: Receipt) -> None:
    data = codec.write_receipt(receipt).SerializeToString()
    assert codec.read_receipt(pb.Receipt.FromString(data)) == receipt


@given(
    st.integers(0, 2**31 - 1), forms.uint32, forms.uint32, st.integers(1, 2**40),
    forms.measures, st.integers(1, 3 * codec.CHUNK_BYTES // 4),
)  # fmt: skip
def test_an_update_is_put_together_as_it_was_sent(
    round: int, device: int, version: int, samples: int, measures: dict[str, float], size: int
) -> None:
    values = np.arange(size, dtype=np.float32).tobytes()
    update = Update(
        lease_id(round, 1), device, round, version, samples, values, ((0, size),), measures
    )
    payload = codec.write_values(update, size)
    requests = list(codec.submit_requests(update, RUN, DIGEST, payload, 30.0))
    assert all(len(r.chunk) <= codec.CHUNK_BYTES for r in requests)
    assert b"".join(request.chunk for request in requests) == payload
    ends = np.cumsum([len(request.chunk) for request in requests]).tolist()
    assert [request.offset for request in requests] == [0, *ends[:-1]]
    assert {request.total for request in requests} == {len(payload)}
    for request in requests:
        found = codec.read_update(request.update, payload, Due(size, len(payload)))
        assert found == (RUN, DIGEST, update)


def test_what_only_measures_is_one_request_without_values() -> None:
    update = Update((1 << 62) + 1, 9, 1 << 30, 2, 0, measures={"count": 16.0})
    (request,) = codec.submit_requests(update, RUN, DIGEST, codec.write_values(update, 3), 0.0)
    assert (request.chunk, request.total) == (b"", 0)
    assert codec.read_update(request.update, b"", Due(3, 100)) == (RUN, DIGEST, update)


@given(forms.instructions(st.binary(min_size=4, max_size=64)))
def test_vectors_are_taken_out_of_an_instruction_and_put_back(asked: Instruction) -> None:
    detached, vectors = codec.detach(asked)
    assert set(codec.digests_of(detached)) == set(vectors)
    assert codec.resolve(detached, vectors) == asked
    work = replace(WORK, instruction=detached)
    assert codec.read_answer(codec.write_answer(work)) == work


def test_an_instruction_without_its_vectors_cannot_be_carried_out() -> None:
    detached, _ = codec.detach(Instruction(correction=bytes(12)))
    assert refused(lambda: codec.resolve(detached, {})) == "digest"


def test_a_deadline_is_put_on_the_clock_of_the_device() -> None:
    assert WORK.since(1000.0) == replace(WORK.lease, deadline=1060.0)


def test_manifests_that_differ_have_texts_that_differ() -> None:
    first = WORK.model
    others = [
        Manifest("program", 2, 12, DIGEST), replace(first, version=3), replace(first, size=13),
        replace(first, digest=bytes(32)),
    ]  # fmt: skip
    texts = {manifest.text(RUN) for manifest in (first, *others)} | {first.text(bytes(8))}
    assert len(texts) == 6
    assert replace(first, signature=bytes(64)).text(RUN) == first.text(RUN)


def test_long_words_are_cut_before_they_are_sent() -> None:
    long = "x" * 5000
    for answer in (ComeBack(1.0, long), Dismissed(long)):
        found = codec.read_answer(codec.write_answer(answer))
        assert not isinstance(found, Work)
        assert found.reason == "x" * 1000
    assert len(codec.read_receipt(codec.write_receipt(Receipt(1, ACCEPTED, long))).detail) == 1000


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ram_bytes", 2**63), ("ram_bytes", 2**48 + 1), ("flash_bytes", 2**63),
        ("macs_per_s", math.nan), ("macs_per_s", 0.0), ("macs_per_s", -1.0),
        ("macs_per_s", math.inf), ("downlink_bps", math.nan), ("uplink_bps", 0.0),
        ("runtime_version", 0), ("runtime_version", 2**31),
    ],
)  # fmt: skip
def test_a_card_with_figures_of_no_device_is_refused(field: str, value: float) -> None:
    message = codec.write_card(CARD)
    setattr(message, field, value)
    assert refused(lambda: codec.read_card(message)) == "number"


def test_a_card_with_endless_words_is_refused() -> None:
    card = codec.write_card(replace(CARD, profile="x" * 129))
    assert refused(lambda: codec.read_card(card)) == "text"
    card = codec.write_card(replace(CARD, sensors=("s",) * 257))
    assert refused(lambda: codec.read_card(card)) == "count"


@pytest.mark.parametrize("field", ["lease", "device", "version", "samples"])
def test_an_update_says_what_it_is_of(field: str) -> None:
    message = codec.write_update(TRAINED, RUN, DIGEST)
    message.ClearField(field)
    payload = codec.write_values(TRAINED, 3)
    assert refused(lambda: codec.read_update(message, payload, Due(3, 100))) == "malformed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": b""}, "length"),
        ({"run": bytes(9)}, "length"),
        ({"base": bytes(31)}, "length"),
        ({"lease": 2**63}, "number"),
        ({"samples": 0}, "count"),
        ({"samples": 2**40 + 1}, "count"),
        ({"measures": {"loss_sum": math.nan}}, "not-finite"),
        ({"measures": {"loss_sum": -math.inf}}, "not-finite"),
        ({"measures": {"x" * 129: 1.0}}, "text"),
        ({"measures": {str(i): 1.0 for i in range(4097)}}, "count"),
    ],
)
def test_an_update_at_odds_with_itself_is_refused(change: dict[str, Any], reason: str) -> None:
    fields: dict[str, Any] = {
        "run": RUN, "base": DIGEST, "lease": TRAINED.lease, "device": 9, "version": 2, "samples": 32
    } | change  # fmt: skip
    payload = codec.write_values(TRAINED, 3)
    assert refused(lambda: codec.read_update(pb.Update(**fields), payload, Due(3, 100))) == reason


def test_4096_measures_are_read() -> None:
    measures = {f"{i:0128}": float(i) for i in range(4096)}
    message = codec.write_update(replace(TRAINED, measures=measures), RUN, DIGEST)
    assert codec.read_update(message, b"", Due(3, 100))[2].measures == measures


def test_an_update_longer_than_the_plan_is_refused() -> None:
    message = codec.write_update(TRAINED, RUN, DIGEST)
    payload = codec.write_values(TRAINED, 3)
    assert codec.read_update(message, payload, Due(3, len(payload)))[2] == TRAINED
    assert refused(lambda: codec.read_update(message, payload, Due(3, len(payload) - 1))) == "size"


def test_an_answer_of_a_kind_that_is_not_known_is_refused() -> None:
    assert refused(lambda: codec.read_answer(pb.Answer())) == "malformed"


WORKS_THAT_ARE_WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "no lease": (lambda w: w.ClearField("lease"), "malformed"),
    "no deadline": (lambda w: w.lease.ClearField("expires_in_s"), "malformed"),
    "a deadline that is no number": (lambda w: _set(w.lease, "expires_in_s", math.nan), "number"),
    "a lease that has ended": (lambda w: _set(w.lease, "expires_in_s", -1.0), "number"),
    "another kind": (lambda w: _set(w.instruction, "kind", "format"), "unknown"),
    "another result": (lambda w: _set(w.instruction, "returns", "samples"), "unknown"),
    "another part": (lambda w: _set(w.instruction.phases[0], "part", "all"), "unknown"),
    "a learning rate that is no number": (
        lambda w: _set(w.instruction.phases[0], "lr", math.nan), "number"
    ),
    "an infinite clip": (lambda w: _set(w.instruction.phases[0].sgd, "clip", math.inf), "number"),
    "a short digest": (lambda w: _set(w.model, "digest", bytes(31)), "length"),
    "a short signature": (lambda w: _set(w.program, "signature", bytes(63)), "length"),
    "a short correction": (lambda w: _set(w.instruction, "correction", b"x"), "length"),
    "an empty candidate": (lambda w: w.instruction.candidates.add(), "length"),
    "many phases": (
        lambda w: w.instruction.phases.extend([w.instruction.phases[0]] * 256), "count"
    ),
    "a mask of no density": (
        lambda w: w.instruction.mask.CopyFrom(pb.Mask(density=math.nan, digest=DIGEST)), "number"
    ),
    "a mask without a digest": (lambda w: w.instruction.mask.SetInParent(), "length"),
    "short statistics": (lambda w: _set(w.instruction, "statistics", b"x"), "length"),
    "many growths": (
        lambda w: w.instruction.grow.extend([pb.Growth(parameter="w", most=1)] * 4097), "count"
    ),
    "a long parameter": (lambda w: w.instruction.grow.add(parameter="x" * 129), "text"),
    "a long group": (lambda w: w.instruction.phases[0].groups.append("x" * 129), "text"),
}  # fmt: skip


def _set(message: Any, field: str, value: object) -> None:
    setattr(message, field, value)


@pytest.mark.parametrize("flaw", WORKS_THAT_ARE_WRONG)
def test_work_that_is_wrong_is_refused(flaw: str) -> None:
    damage, reason = WORKS_THAT_ARE_WRONG[flaw]
    message = codec.write_answer(WORK)
    damage(message.work)
    assert refused(lambda: codec.read_answer(message)) == reason


def test_thousands_of_candidates_are_refused() -> None:
    many = replace(WORK, instruction=Instruction(kind=SCORE, candidates=tuple(range(4097))))
    assert refused(lambda: codec.read_answer(codec.write_answer(many))) == "count"


def test_a_receipt_of_a_status_that_is_not_known_is_refused() -> None:
    receipt = codec.write_receipt(Receipt(1, "perhaps"))
    assert refused(lambda: codec.read_receipt(receipt)) == "unknown"
