"""The sessions of a fleet: one table for all devices at once, or one `Session` for each.

Both read the table of `fedtiny.device.session`; a test proves that a run is the same with either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedtiny.device import session
from fedtiny.device.session import Event, Session, State
from fedtiny.values import Lease, round_of

if TYPE_CHECKING:
    from fedtiny.tensors import Float64, Int8, Int64

_NEXT = np.array(session.encode(), np.int8)


class Sessions(Protocol):
    """Where each device stands."""

    def states(self) -> Int8:
        """The state of every device."""

    def apply(self, devices: Int64, event: Event, now: float) -> None:
        """The event happens to these devices."""

    def instruct(
        self, devices: Int64, leases: Int64, deadlines: Float64, version: int, now: float
    ) -> None:
        """Their check-ins are answered with these leases, on the model of that version."""


class ColumnSessions:
    """States as a column, looked up in the table."""

    def __init__(self, states: Int8) -> None:
        self._states = states.copy()

    def states(self) -> Int8:
        """The state of every device."""
        return self._states

    def apply(self, devices: Int64, event: Event, now: float) -> None:
        """The event happens to these devices."""
        self._states[devices] = _NEXT[self._states[devices], event]

    def instruct(
        self, devices: Int64, leases: Int64, deadlines: Float64, version: int, now: float
    ) -> None:
        """Their check-ins are answered with these leases, on the model of that version."""
        self.apply(devices, Event.INSTRUCTED, now)


class ObjectSessions:
    """A `Session` for each device."""

    def __init__(self, run: int, states: Int8) -> None:
        self._sessions = [
            replace(Session(run, device), state=State(state))
            for device, state in enumerate(states.tolist())
        ]

    def states(self) -> Int8:
        """The state of every device."""
        return np.array([one.state for one in self._sessions], np.int8)

    def apply(self, devices: Int64, event: Event, now: float) -> None:
        """The event happens to these devices."""
        for device in devices.tolist():
            self._sessions[device], _ = session.advance(self._sessions[device], event, now)

    def instruct(
        self, devices: Int64, leases: Int64, deadlines: Float64, version: int, now: float
    ) -> None:
        """Their check-ins are answered with these leases, on the model of that version."""
        columns = zip(devices.tolist(), leases.tolist(), deadlines.tolist(), strict=True)
        for device, lease, deadline in columns:
            given = Lease(lease, device, round_of(lease), version, deadline)
            self._sessions[device], _ = session.advance(
                self._sessions[device], Event.INSTRUCTED, now, given
            )
