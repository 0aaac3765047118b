from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import rng
from fedtiny.device.session import (
    TABLE,
    Command,
    Event,
    Session,
    State,
    advance,
    back_off_s,
    encode,
    transition,
)
from fedtiny.values import Lease

LEASE = Lease(id=3, device=5, round=0, version=0, deadline=100.0)
START = Session(run=7, device=5)


def after(*events: Event) -> tuple[Session, Command]:
    """The session and its last command; every event at its own second."""
    session, command = START, Command.NONE
    for now, event in enumerate(events):
        lease = LEASE if event == Event.INSTRUCTED else None
        session, command = advance(session, event, float(now), lease, until=50.0)
    return session, command


WORKING = (Event.WAKE, Event.INSTRUCTED, Event.FETCHED)
SENDING = (*WORKING, Event.FINISHED)


def test_a_visit_in_which_nothing_goes_wrong() -> None:
    commands = [after(*SENDING[: i + 1])[1] for i in range(4)]
    assert commands == [Command.CHECK_IN, Command.FETCH, Command.WORK, Command.SUBMIT]
    session, command = after(*SENDING, Event.ACCEPTED)
    assert (session.state, command, session.lease) == (State.IDLE, Command.FORGET, None)


def test_the_encoded_table_is_the_table() -> None:
    states = encode()
    for state, event in itertools.product(State, Event):
        expected = transition(state, event)
        assert states[state][event] == expected[0]
        assert expected == TABLE.get((state, event), (state, Command.NONE))


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.IDLE}
    for _ in State:
        reached |= {to for (state, _), (to, _) in TABLE.items() if state in reached}
    assert reached == set(State)
    left = {state for (state, _), (to, _) in TABLE.items() if to != state}
    assert left == set(State) - {State.STOPPED}


def test_whatever_device_is_revoked_stops_for_good() -> None:
    for state in State:
        assert transition(state, Event.REVOKED)[0] == State.STOPPED
    stopped, _ = after(Event.WAKE, Event.REVOKED)
    assert stopped.due(1e12) is None
    assert {transition(State.STOPPED, event) for event in Event} == {(State.STOPPED, Command.NONE)}


def test_a_lost_receipt_is_asked_for_again_with_the_same_lease() -> None:
    holding, command = after(*SENDING, Event.LOST)
    assert (holding.state, command, holding.lease) == (State.HOLDING, Command.BACK_OFF, LEASE)
    assert holding.due(holding.wakes_at) == Event.WAKE
    again, command = advance(holding, Event.WAKE, holding.wakes_at)
    assert (again.state, command, again.lease) == (State.SENDING, Command.SUBMIT, LEASE)


def test_a_finished_update_survives_a_loss_of_power_and_unfinished_work_does_not() -> None:
    finished, _ = after(*SENDING, Event.POWER_LOST)
    assert (finished.state, finished.lease) == (State.HOLDING, LEASE)
    assert finished.due(10.0) == Event.WAKE
    unfinished, _ = after(*WORKING, Event.POWER_LOST)
    assert (unfinished.state, unfinished.lease) == (State.IDLE, None)


@pytest.mark.parametrize("events", [WORKING[:2], WORKING, (*SENDING, Event.LOST)])
def test_an_expired_lease_is_dropped(events: tuple[Event, ...]) -> None:
    session, _ = after(*events)
    assert session.due(99.9) != Event.EXPIRED
    assert session.due(100.0) == Event.EXPIRED
    session, command = advance(session, Event.EXPIRED, 100.0)
    assert (session.state, session.lease, command) == (State.IDLE, None, Command.FORGET)


def test_while_an_update_is_on_its_way_its_receipt_is_awaited() -> None:
    sending, _ = after(*SENDING)
    assert sending.due(1e6) is None
    assert transition(State.SENDING, Event.EXPIRED) == (State.SENDING, Command.NONE)


def test_a_device_sleeps_until_the_time_it_was_told() -> None:
    session, command = after(Event.WAKE, Event.TOLD_TO_WAIT)
    assert (command, session.wakes_at) == (Command.SLEEP, 50.0)
    assert (session.due(49.9), session.due(50.0)) == (None, Event.WAKE)


def test_backing_off_doubles_up_to_five_minutes() -> None:
    session = START
    for attempt in range(12):
        session, _ = advance(session, Event.WAKE, 0.0)
        session, command = advance(session, Event.LOST, 0.0)
        full = min(300.0, 2.0**attempt)
        assert command == Command.BACK_OFF
        assert full / 2 <= session.wakes_at == back_off_s(7, 5, attempt) < full
    session, _ = advance(session, Event.WAKE, 0.0)
    assert advance(session, Event.INSTRUCTED, 0.0, LEASE)[0].attempt == 0


def test_the_jitter_is_a_specified_draw() -> None:
    word = rng.words(7, 2, 5, rng.Purpose.BACKOFF, 1)[0]
    assert back_off_s(7, 5, 2) == 4.0 * rng.uniform(word, 0.5, 1.0)
    assert len({back_off_s(7, device, 2) for device in range(100)}) > 90


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_a_lease_is_held_exactly_while_there_is_work_for_it(events: list[Event]) -> None:
    session, _ = after(*events)
    holds = session.state in (State.FETCHING, State.WORKING, State.SENDING, State.HOLDING)
    assert (session.lease == LEASE) == holds
    assert (session.wakes_at == math.inf) == (session.state == State.STOPPED)
