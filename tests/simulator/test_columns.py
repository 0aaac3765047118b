"""The columns of the simulator, each beside a slow and obvious judge."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedtiny.device.session import Event, State
from fedtiny.rounds.ledger import KINDS, OTHERS, Figures, Ledger
from fedtiny.simulator.contact import Contact
from fedtiny.simulator.flights import Flights
from fedtiny.simulator.sessions import ColumnSessions, ObjectSessions
from fedtiny.simulator.traces import Always, Diurnal
from fedtiny.simulator.visits import ROWS_BYTES, in_pieces
from fedtiny.values import lease_id, round_of

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

DEVICES = 12
happenings = st.lists(
    st.tuples(
        st.lists(st.integers(0, DEVICES - 1), unique=True).map(np.array), st.sampled_from(Event)
    ),
    max_size=40,
)


@given(happenings)
def test_one_table_gives_columns_and_objects_the_same_history(
    happened: list[tuple[Int64, Event]],
) -> None:
    states = np.zeros(DEVICES, np.int8)
    columns, objects = ColumnSessions(states), ObjectSessions(7, states)
    for now, (devices, event) in enumerate(happened):
        for sessions in (columns, objects):
            if event == Event.INSTRUCTED:
                leases = lease_id(3, devices)
                sessions.instruct(
                    devices.astype(int), leases, np.full(devices.size, now + 9.0), 2, now
                )
            else:
                sessions.apply(devices.astype(int), event, now)
        np.testing.assert_array_equal(columns.states(), objects.states())


@st.composite
def flights(draw: st.DrawFn) -> Flights:
    """Leases of rounds 3 and 4; one that does not arrive ends at its deadline."""
    rows = draw(st.lists(st.tuples(st.sampled_from([3, 4]), st.integers(0, 20), st.integers(1, 9),
                                   st.booleans()), max_size=15))  # fmt: skip
    made = Flights.none()
    for ordinal, (round, begun, lasts, arrives) in enumerate(rows):
        deadline = begun + 10.0
        lease, device = np.array([lease_id(round, ordinal)]), np.array([ordinal])
        ends = np.array([begun + lasts if arrives else deadline], float)
        made = made.merge(
            Flights(lease, device, np.zeros(1, int), ends, np.array([deadline]),
                    np.array([arrives]))
        )  # fmt: skip
    return made


@given(flights())
def test_flights_stay_in_the_order_in_which_they_end(under_way: Flights) -> None:
    keys = list(zip(under_way.ends_at, under_way.leases, strict=True))
    assert keys == sorted(keys)


@example(  # the first arrival fills the room: who is lost later waits for the next batch
    under_way=Flights(
        np.array([lease_id(4, 1), lease_id(3, 0)]), np.array([1, 0]), np.zeros(2, int),
        np.array([2.0, 10.0]), np.array([11.0, 10.0]), np.array([True, False]),
    ),
    until=10.0, room=1,
)  # fmt: skip
@given(flights(), st.floats(0, 40), st.integers(1, 5))
def test_a_batch_is_as_long_as_nothing_else_happens_in_it(
    under_way: Flights, until: float, room: int
) -> None:
    count = 0
    left = room
    deadlines = [np.inf]
    for i in range(under_way.leases.size):
        ends_at, arrives = under_way.ends_at[i], under_way.arrives[i]
        deadlines += [under_way.deadlines[i]] if arrives else []
        if left == 0 or ends_at > until or ends_at >= min(deadlines):
            break
        left -= bool(arrives and round_of(under_way.leases[i]) == 4)
        count += 1
    assert under_way.batch(until, 4, room) == count


@given(st.integers(1, 300), st.lists(st.integers(1, 40), max_size=12))
def test_a_window_meets_every_device_once(training: int, demands: list[int]) -> None:
    sessions = ColumnSessions(np.zeros(training, np.int8))
    contact = Contact(1, np.arange(training), training, sessions, Always())
    contact.open(5, 0)
    met: list[int] = []
    for demand in demands:
        found = contact.take(demand, now=0.0)
        contact.served(found)
        met += found.tolist()
    assert len(met) == len(set(met)) == min(training, sum(demands))


def test_contact_skips_who_is_busy_served_or_out_of_reach() -> None:
    states = np.zeros(100, np.int8)
    states[:20] = State.WORKING
    reach = Diurnal(np.zeros(100), np.where(np.arange(100) < 60, 3600.0, 60.0))
    contact = Contact(1, np.arange(90), 100, ColumnSessions(states), reach)
    contact.open(0, 0)
    contact.served(np.arange(30, 40))
    found = contact.take(100, now=1800.0)
    assert sorted(found) == [*range(20, 30), *range(40, 60)]
    assert contact.next_reachable(now=1800.0) == 1800.0
    contact.served(found)
    assert contact.next_reachable(now=1800.0) == pytest.approx(86400.0)
    assert contact.serve_again(np.arange(30, 40))
    assert sorted(contact.take(100, now=1800.0)) == [*range(30, 40)]


def test_rounds_and_windows_have_orders_of_their_own() -> None:
    contact = Contact(1, np.arange(50), 50, ColumnSessions(np.zeros(50, np.int8)), Always())
    orders = []
    for round, window in ((0, 0), (0, 1), (1, 0)):
        contact.open(round, window)
        orders.append(contact.take(50, now=0.0).tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_a_ledger_adds_up_its_rounds_and_survives_json() -> None:
    ledger = Ledger()
    for accepted in (2, 3):
        ledger.open.accepted += accepted
        ledger.open.energy_j += 0.5
        ledger.refuse(("device 3 moved by 1.5e+06", "device 12 moved by 2,000"))
        row = ledger.close(failed=False)
        assert row["accepted"] == accepted
        assert row["reasons"] == {
            "device N moved by N": {"count": 2, "example": "device 3 moved by 1.5e+06"}
        }
    assert ledger.reasons["device N moved by N"]["count"] == 4
    assert astuple(ledger.total) == astuple(Figures(accepted=5, refused=4, energy_j=1.0))
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_a_ledger_tells_a_bounded_number_of_reasons_apart() -> None:
    ledger = Ledger()
    ledger.refuse("x" * length for length in range(1, KINDS + 11))
    reasons = ledger.close(failed=False)["reasons"]
    assert len(reasons) == KINDS + 1
    assert reasons[OTHERS]["count"] == 10
    assert ledger.total.refused == KINDS + 10


def test_a_lease_has_the_version_of_its_model() -> None:
    sessions = ObjectSessions(7, np.zeros(3, np.int8))
    sessions.apply(np.array([1]), Event.WAKE, 0.0)
    sessions.instruct(np.array([1]), np.array([lease_id(5, 0)]), np.array([9.0]), 4, 0.0)
    lease = sessions._sessions[1].lease
    assert lease is not None
    assert (lease.round, lease.version) == (5, 4)


@given(st.integers(1, 50), st.integers(1, 2**26))
def test_pieces_are_all_devices_in_order_and_within_the_bound(count: int, row_bytes: int) -> None:
    devices = np.arange(count)
    pieces = in_pieces(devices, row_bytes)
    assert np.concatenate(pieces).tolist() == devices.tolist()
    assert all(piece.size * row_bytes <= ROWS_BYTES for piece in pieces)
