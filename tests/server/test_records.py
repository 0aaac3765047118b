from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import RunError
from fedtiny.fold import FoldRule, Total
from fedtiny.masks import Mask
from fedtiny.rounds.content import Part
from fedtiny.rounds.events import Carry, Grant, Open
from fedtiny.rounds.journal import Accepted, Pending
from fedtiny.rounds.measures import Measures
from fedtiny.server import records
from fedtiny.values import Update
from tests.harness.toys import INITIAL, WHOLE

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=8)
measured = st.dictionaries(names, finite, max_size=4)
float64s = st.lists(finite, max_size=6).map(np.array)
bits = st.binary(max_size=9).map(lambda data: np.frombuffer(data, np.uint8))


def updates(count: int) -> list[Update]:
    """Of which the second trained a part only."""
    rng = np.random.default_rng(5)
    vectors = [INITIAL + rng.normal(size=6).astype(np.float32) for _ in range(count)]
    made = [
        Update(lease, lease % 3, 7, 2, 1 + lease, vector.tobytes(), WHOLE, {"loss_sum": lease / 3})
        for lease, vector in enumerate(vectors)
    ]
    if count > 1:
        made[1] = Update(1, 1, 7, 2, 4, vectors[1][2:4].tobytes(), ((2, 4),), {})
    return made


FIRST, LAST = Mask(6, bytes([0b000111])), Mask(6, bytes([0b110000]))


def pruned_updates() -> list[Update]:
    """Under one mask, under another, and of places: two, and none."""
    two, none = np.array([1, 5], np.uint32).tobytes(), b""
    return [
        Update(0, 0, 7, 2, 3, INITIAL[:3].tobytes(), WHOLE, mask=FIRST),
        Update(1, 1, 7, 2, 3, INITIAL[:3].tobytes(), WHOLE, mask=Mask(6, FIRST.bits)),
        Update(2, 2, 7, 2, 1, INITIAL[4:].tobytes(), ((3, 6),), mask=LAST),
        Update(3, 3, 7, 2, 2, INITIAL[:2].tobytes(), WHOLE, places=two),
        Update(4, 4, 7, 2, 2, b"", WHOLE, places=none),
    ]


def total(*folded: Update) -> Total:
    result = Total.zero(6, FoldRule.for_round(9, 65536.0, 3.5))
    for update in folded:
        result = result.add(update, INITIAL, update.samples)
    return result


def through(record: Pending) -> Any:
    return records.read(records.kind_of(record), records.write(record))


# --- everything comes back exactly


def test_a_window_comes_back() -> None:
    assert through(Open(3, 1, 20, 1 / 3)) == Open(3, 1, 20, 1 / 3)


def test_a_grant_comes_back() -> None:
    columns = np.array([7 << 32]), np.array([5]), np.array([12.1])
    back = through(Grant(7, 2, *columns))
    assert (back.round, back.version, back.repeated) == (7, 2, False)
    for column, name in zip(columns, ("leases", "devices", "deadlines"), strict=True):
        assert getattr(back, name).dtype == column.dtype
        assert getattr(back, name).tolist() == column.tolist()


def test_leases_that_go_on_come_back() -> None:
    columns = np.array([5, 7 << 32]), np.array([3, 5]), np.array([2, 6]), np.array([12.1, 1 / 3])
    back = through(Carry(8, *columns))
    assert back.round == 8
    for column, name in zip(columns, ("leases", "devices", "versions", "deadlines"), strict=True):
        assert getattr(back, name).dtype == column.dtype
        assert getattr(back, name).tolist() == column.tolist()


def test_a_total_comes_back() -> None:
    whole, part = updates(2)
    folded = total(whole, part)
    record = Accepted(7, np.array([0, 1]), folded, Measures.of({"loss_sum": 0.1, "x.min": -3.0}))
    back = through(record)
    assert back.part == folded
    assert (back.round, back.leases.tolist(), back.measures) == (7, [0, 1], record.measures)
    assert back.part.merge(total(whole)) == total(whole, part, whole)
    assert records.read_total(records.write_total(folded)) == folded


def test_a_total_comes_back_with_the_masks_of_those_who_trained_it() -> None:
    folded = total(*updates(2), *pruned_updates())
    assert [mask for _, mask in folded.weights] == [None, None, FIRST, LAST]
    assert through(Accepted(7, np.arange(7), folded, Measures())).part == folded
    assert records.read_total(records.write_total(folded)) == folded


@pytest.mark.parametrize(
    ("sent", "sizes"), [(updates(5), [24, 8, 24, 24, 24]), (pruned_updates(), [12, 12, 8, 8, 0])]
)
def test_updates_come_back_one_by_one(sent: list[Update], sizes: list[int]) -> None:
    back = through(Accepted(7, np.arange(5), tuple(sent), Measures()))
    assert [u.nbytes for u in back.part] == sizes
    for update, copy in zip(sent, back.part, strict=True):
        assert bytes(copy.values) == update.values
        assert replace(copy, values=update.values) == update


def test_a_mask_is_written_once_for_all_updates_of_a_record() -> None:
    mask = Mask(80_000, bytes(10_000))
    alike = tuple(Update(i, i, 7, 2, 3, b"", ((0, 80_000),), mask=mask) for i in range(50))
    assert len(records.write(Accepted(7, np.arange(50), alike, Measures()))) < 20_000


def test_a_round_that_measures_has_no_part() -> None:
    back = through(Accepted(7, np.arange(2), None, Measures.of({"count": 3})))
    assert back.part is None
    assert back.measures.values() == {"count": 3.0}


@given(st.lists(measured, max_size=5))
def test_measures_come_back_exactly(reports: list[dict[str, float]]) -> None:
    merged = Measures()
    for report in reports:
        merged = merged.merge(Measures.of(report))
    text = json.dumps(records.measures_to_json(merged))
    assert records.measures_from_json(json.loads(text)) == merged


def test_a_sum_that_no_float_holds_comes_back() -> None:
    merged = Measures.of({"n": 1e300}).merge(Measures.of({"n": 5e-324}))
    assert merged.sums["n"] == Fraction(1e300) + Fraction(5e-324)
    assert records.measures_from_json(records.measures_to_json(merged)) == merged


@given(st.dictionaries(names, st.one_of(float64s, bits, finite, st.integers())))
def test_a_state_comes_back_in_its_order(state: dict[str, Any]) -> None:
    back = records.read_state(records.write_state(state))
    assert list(back) == list(state)
    for name, value in state.items():
        assert type(back[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert np.asarray(back[name]).dtype == value.dtype
            assert np.asarray(back[name]).tobytes() == value.tobytes()
        else:
            assert back[name] == value


def test_a_state_keeps_shapes_and_odd_numbers() -> None:
    state: dict[str, Any] = {
        "m": np.arange(6.0).reshape(2, 3),
        "t": -0.0,
        "best": math.inf,
        "s": np.array(2.5),
    }
    back = records.read_state(records.write_state(state))
    assert np.shape(back["m"]) == (2, 3)
    assert np.shape(back["s"]) == ()
    assert math.copysign(1, float(back["t"])) == -1
    assert back["best"] == math.inf


# --- what is damaged is said to be


@given(st.data())
def test_a_body_that_is_cut_or_longer_is_damaged(data: st.DataObject) -> None:
    parts: list[Part] = [total(*updates(2), *pruned_updates()), tuple(pruned_updates())]
    part = data.draw(st.sampled_from(parts))
    body = records.write(Accepted(7, np.arange(2), part, Measures()))
    cut = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:cut], body + b"\0"):
        with pytest.raises(RunError, match="a record of the open round is damaged"):
            records.read("accepted", wrong)


@given(st.binary(max_size=60), st.sampled_from(("open", "grant", "accepted")))
def test_bytes_that_are_no_record_are_damaged(body: bytes, kind: str) -> None:
    with pytest.raises(RunError, match="a record of the open round is damaged"):
        records.read(kind, body)
    with pytest.raises(RunError, match="the state is damaged"), records.checking("the state"):
        records.read_state(body)


@pytest.mark.parametrize(
    "head",
    [
        {"arrays": [["<f8", [-1]]]},
        {"arrays": [["<f8", [2**62]]]},
        {"arrays": [["|O", [1]]]},
        {"arrays": [["<f8", [1.0]]]},
        {"arrays": 3},
        {},
        [],
    ],
)
def test_a_head_that_lies_is_damaged(head: object) -> None:
    text = json.dumps(head).encode()
    with pytest.raises(RunError, match="a record of the open round is damaged"):
        records.read("open", len(text).to_bytes(4, "little") + text + bytes(8))
