"""A device as the agent will be: the table of the session, interpreted over a link with faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np

from fedtiny.device.link import Link
from fedtiny.device.session import Command, Event, Session, State, advance
from fedtiny.values import ACCEPTED, DUPLICATE, Instruction, Lease, Receipt, Update
from tests.harness.toys import visit

T = TypeVar("T")
Fate = Literal["delivered", "request lost", "answer lost"]


class FaultyLink:
    """A link whose calls meet drawn fates: one for asking, one for handing in."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.asking: Fate = "delivered"
        self.handing_in: Fate = "delivered"

    def check_in(self) -> tuple[Lease, Instruction] | float:
        return _meet(self.asking, self.link.check_in)

    def fetch(self, version: int) -> bytes:
        return _meet(self.asking, lambda: self.link.fetch(version))

    def submit(self, update: Update) -> Receipt:
        return _meet(self.handing_in, lambda: self.link.submit(update))


def _meet(fate: Fate, call: Callable[[], T]) -> T:
    if fate == "request lost":
        raise ConnectionError("the request was lost")
    answer = call()
    if fate == "answer lost":
        raise TimeoutError("the answer was lost")
    return answer


class Node:
    """One device. The update survives a loss of power, as it would in flash."""

    def __init__(self, run: int, device: int, link: Link) -> None:
        self.session = Session(run, device)
        self.link = link
        self.instruction = Instruction()
        self.model = np.empty(0, np.float32)
        self.update: Update | None = None
        self.sent: list[Update] = []
        self.receipts: list[Receipt] = []

    def act(self, now: float) -> bool:
        """What is due now, and all that follows from it; whether anything was."""
        event = self.session.due(now)
        acted = event is not None
        while event is not None:
            event = self.meet(event, now)
        return acted

    def meet(
        self, event: Event, now: float, lease: Lease | None = None, until: float = 0.0
    ) -> Event | None:
        """One event, and the command that it leads to."""
        self.session, command = advance(self.session, event, now, lease, until)
        if command == Command.FORGET:
            self.update = None
        try:
            return self._carry_out(command, now)
        except OSError:
            return Event.LOST

    def _carry_out(self, command: Command, now: float) -> Event | None:
        match command:
            case Command.CHECK_IN:
                return self._check_in(now)
            case Command.FETCH:
                assert self.session.lease
                model = self.link.fetch(self.session.lease.version)
                self.model = np.frombuffer(model, np.float32)
                return Event.FETCHED
            case Command.WORK:
                assert self.session.lease
                self.update = visit(self.session.lease, self.instruction, self.model)
                return Event.FINISHED
            case Command.SUBMIT:
                assert self.update
                self.sent.append(self.update)
                receipt = self.link.submit(self.update)
                self.receipts.append(receipt)
                delivered = receipt.status in (ACCEPTED, DUPLICATE)
                return Event.ACCEPTED if delivered else Event.REFUSED
        return None

    def _check_in(self, now: float) -> Event | None:
        answer = self.link.check_in()
        if answer == float("inf"):
            return Event.DISMISSED
        if isinstance(answer, float):
            return self.meet(Event.TOLD_TO_WAIT, now, until=answer)
        lease, self.instruction = answer
        return self.meet(Event.INSTRUCTED, now, lease=lease)

    @property
    def stopped(self) -> bool:
        return self.session.state == State.STOPPED
