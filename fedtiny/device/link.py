"""What a device needs of its coordinator, and the link that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fedtiny.errors import RunError
from fedtiny.values import Instruction, Lease, Receipt, Update


class Link(Protocol):
    """How one device talks to its coordinator.

    Each call may raise OSError (ConnectionError, TimeoutError): there was no answer, and what was
    sent may or may not have arrived; or what was asked for is gone. Check in again.
    """

    def check_in(self) -> tuple[Lease, Instruction] | float:
        """Work, or the time (seconds) to come back at; infinity: the run is over."""
        ...

    def fetch(self, version: int) -> bytes:
        """The model of that version: little-endian float32."""
        ...

    def submit(self, update: Update) -> Receipt:
        """Hand an update in; may be repeated until there is a receipt."""
        ...


class Service(Protocol):
    """What `fedtiny.rounds.coordinator.Coordinator` offers, as far as a device can see."""

    def check_in(self, now: float, device: int) -> tuple[Lease, Instruction] | float:
        """Work, or the time to come back at."""
        ...

    def fetch(self, version: int) -> bytes:
        """The model of that version."""
        ...

    def submit(self, now: float, updates: Sequence[Update]) -> list[Receipt]:
        """Receipts for the updates."""
        ...


class MemoryLink:
    """A Link to a coordinator in the same process; ``clock`` gives the seconds of both."""

    def __init__(self, service: Service, device: int, clock: Callable[[], float]) -> None:
        self._service, self._device, self._clock = service, device, clock

    def check_in(self) -> tuple[Lease, Instruction] | float:
        """Work, or the time (seconds) to come back at; infinity: the run is over."""
        return self._service.check_in(self._clock(), self._device)

    def fetch(self, version: int) -> bytes:
        """The model of that version: little-endian float32."""
        try:
            return self._service.fetch(version)
        except RunError as gone:
            raise ConnectionError(str(gone)) from gone

    def submit(self, update: Update) -> Receipt:
        """Hand an update in; may be repeated until there is a receipt."""
        (receipt,) = self._service.submit(self._clock(), [update])
        return receipt
