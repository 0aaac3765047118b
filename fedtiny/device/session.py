"""The session of a device as a table: (state, event) -> (next state, command).

An agent interprets the table for one device (`advance`); the simulator looks whole columns of
devices up in it (`encode`). Both therefore live through the same history. A pair that the table
does not list leaves the state as it is and commands nothing. No clock, no I/O, no NumPy: time is
an argument, jitter comes from the counter generator.

What survives a loss of power is the finished update with its lease: it is submitted again, and the
coordinator tells whether it had arrived before. A lease without an update is given again at the
next check-in, for as long as it lives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from fedtiny import rng
from fedtiny.values import Lease


class State(IntEnum):
    """Where a device stands."""

    IDLE = 0
    """No lease; wakes at a time."""
    ASKING = 1
    FETCHING = 2
    WORKING = 3
    SENDING = 4
    HOLDING = 5
    """An update is finished but not acknowledged; wakes at a time to send it again."""
    STOPPED = 6
    """The run is over, or the device was revoked."""


class Event(IntEnum):
    """What can happen to a device."""

    WAKE = 0
    """Its time has come, and conditions (power, network) allow work."""
    INSTRUCTED = 1
    """The check-in was answered with a lease."""
    TOLD_TO_WAIT = 2
    """The check-in was answered with a time to come back at."""
    DISMISSED = 3
    """The check-in was answered: the run is over."""
    FETCHED = 4
    """The model is here."""
    FINISHED = 5
    """The work is done; there is an update."""
    FAILED = 6
    """The work cannot be done: no samples, a model that diverged, a damaged image."""
    ACCEPTED = 7
    """The receipt says accepted or duplicate: the update is delivered."""
    REFUSED = 8
    """The receipt says late, stale, invalid or unknown: the update is of no use."""
    LOST = 9
    """The link failed or timed out; what was sent may or may not have arrived."""
    EXPIRED = 10
    """The deadline of the lease has passed."""
    POWER_LOST = 11
    REVOKED = 12
    """The operator has taken the device out."""


class Command(IntEnum):
    """What a device does next."""

    NONE = 0
    CHECK_IN = 1
    FETCH = 2
    WORK = 3
    SUBMIT = 4
    SLEEP = 5
    """Wake at the time that the coordinator named."""
    BACK_OFF = 6
    """Wake after a jittered delay that doubles with each failure."""
    FORGET = 7
    """Drop the lease, and the update if there is one; wake at once."""


TABLE: Mapping[tuple[State, Event], tuple[State, Command]] = {
    (State.IDLE, Event.WAKE): (State.ASKING, Command.CHECK_IN),
    (State.IDLE, Event.REVOKED): (State.STOPPED, Command.FORGET),
    (State.ASKING, Event.INSTRUCTED): (State.FETCHING, Command.FETCH),
    (State.ASKING, Event.TOLD_TO_WAIT): (State.IDLE, Command.SLEEP),
    (State.ASKING, Event.DISMISSED): (State.STOPPED, Command.FORGET),
    (State.ASKING, Event.LOST): (State.IDLE, Command.BACK_OFF),
    (State.ASKING, Event.POWER_LOST): (State.IDLE, Command.FORGET),
    (State.ASKING, Event.REVOKED): (State.STOPPED, Command.FORGET),
    (State.FETCHING, Event.FETCHED): (State.WORKING, Command.WORK),
    (State.FETCHING, Event.LOST): (State.IDLE, Command.BACK_OFF),
    (State.FETCHING, Event.EXPIRED): (State.IDLE, Command.FORGET),
    (State.FETCHING, Event.POWER_LOST): (State.IDLE, Command.FORGET),
    (State.FETCHING, Event.REVOKED): (State.STOPPED, Command.FORGET),
    (State.WORKING, Event.FINISHED): (State.SENDING, Command.SUBMIT),
    (State.WORKING, Event.FAILED): (State.IDLE, Command.BACK_OFF),
    (State.WORKING, Event.EXPIRED): (State.IDLE, Command.FORGET),
    (State.WORKING, Event.POWER_LOST): (State.IDLE, Command.FORGET),
    (State.WORKING, Event.REVOKED): (State.STOPPED, Command.FORGET),
    (State.SENDING, Event.ACCEPTED): (State.IDLE, Command.FORGET),
    (State.SENDING, Event.REFUSED): (State.IDLE, Command.FORGET),
    (State.SENDING, Event.LOST): (State.HOLDING, Command.BACK_OFF),
    (State.SENDING, Event.POWER_LOST): (State.HOLDING, Command.NONE),
    (State.SENDING, Event.REVOKED): (State.STOPPED, Command.FORGET),
    (State.HOLDING, Event.WAKE): (State.SENDING, Command.SUBMIT),
    # Whether or not it had arrived: now it can only be a duplicate or late.
    (State.HOLDING, Event.EXPIRED): (State.IDLE, Command.FORGET),
    (State.HOLDING, Event.REVOKED): (State.STOPPED, Command.FORGET),
}


def transition(state: State, event: Event) -> tuple[State, Command]:
    """What the table says; every pair has an answer."""
    return TABLE.get((state, event), (state, Command.NONE))


def encode() -> list[list[int]]:
    """The table as integers: the next state of ``[state][event]``."""
    return [[int(transition(state, event)[0]) for event in Event] for state in State]


BACK_OFF_FIRST_S = 1.0
BACK_OFF_MOST_S = 300.0
_DOUBLINGS = 16


def back_off_s(run: int, device: int, attempt: int) -> float:
    """Seconds before try number ``attempt + 1``: doubling up to 300, times [0.5, 1).

    The jitter is drawn by device and attempt, so that devices that failed together do not come
    back together.
    """
    word = rng.words(run, attempt, device, rng.Purpose.BACKOFF, 1)[0]
    delay_s = min(BACK_OFF_MOST_S, BACK_OFF_FIRST_S * 2.0 ** min(attempt, _DOUBLINGS))
    return delay_s * rng.uniform(word, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Session:
    """One device: where it stands, what it holds, when it wakes."""

    run: int
    device: int
    state: State = State.IDLE
    lease: Lease | None = None
    attempt: int = 0
    wakes_at: float = 0.0

    def due(self, now: float) -> Event | None:
        """The event that time alone has brought by ``now``, if any."""
        waiting = self.state in (State.IDLE, State.HOLDING)
        if self.state in _CAN_EXPIRE and self.lease and self.lease.deadline <= now:
            return Event.EXPIRED
        return Event.WAKE if waiting and self.wakes_at <= now else None


_CAN_EXPIRE = (State.FETCHING, State.WORKING, State.HOLDING)
_IN_CONTACT = (Event.INSTRUCTED, Event.TOLD_TO_WAIT, Event.ACCEPTED, Event.REFUSED)


def advance(
    session: Session, event: Event, now: float, lease: Lease | None = None, until: float = 0.0
) -> tuple[Session, Command]:
    """The session after the event, and what the device is to do.

    ``lease`` comes with INSTRUCTED, ``until`` (seconds) with TOLD_TO_WAIT. Sleeping and backing
    off end at ``wakes_at`` of the new session.
    """
    state, command = transition(session.state, event)
    if (state, command) == (session.state, Command.NONE):
        return session, command
    attempt = 0 if event in _IN_CONTACT else session.attempt
    held = lease or session.lease
    wakes_at = now
    if command == Command.SLEEP:
        wakes_at = until
    elif command == Command.BACK_OFF:
        wakes_at = now + back_off_s(session.run, session.device, attempt)
        attempt += 1
    if state == State.STOPPED:
        wakes_at = math.inf
    if state in (State.IDLE, State.STOPPED):
        held = None
    return replace(session, state=state, lease=held, attempt=attempt, wakes_at=wakes_at), command
