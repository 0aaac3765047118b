"""What the service asks of the conductor, and how it is answered in the service's own thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedtiny.server.hosting import Offered
    from fedtiny.values import DeviceCard, Receipt


@dataclass(eq=False, slots=True)
class CheckIn:
    """A device asks for work and waits up to ``wait_s`` for it.

    Answered with a pair: the receipt, or None, and the message of an Answer.
    """

    device: int
    reply: asyncio.Future[Any]
    wait_s: float = 0.0
    card: DeviceCard | None = None
    agent: str = ""
    counters: Mapping[str, float] = field(default_factory=dict)
    gave_up: tuple[int, str] | None = None
    """A lease on which nothing will come, and why."""
    receipt: Receipt | None = None
    """Of the update that the device has handed in at the same time."""


@dataclass(eq=False, slots=True)
class Offer:
    """A device hands an update in, and asks for more work as with a `CheckIn`."""

    device: int
    run: bytes
    offered: Offered
    reply: asyncio.Future[Any]
    wait_s: float = 0.0


@dataclass(eq=False, slots=True)
class Call:
    """A function of the conductor, such as an operator's; answered with what it returns."""

    function: Callable[[Any], Any]
    reply: asyncio.Future[Any]


Request = CheckIn | Offer | Call


class Inbox:
    """A queue between the threads: many put, one takes all that there is."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._some = threading.Event()

    def put(self, request: Request) -> None:
        """Hand a request to the conductor."""
        self._requests.append(request)
        self._some.set()

    def wake(self) -> None:
        """Let the conductor look at the time."""
        self._some.set()

    def take(self, timeout_s: float | None) -> list[Request]:
        """All requests that have come, after at most that many seconds."""
        self._some.wait(timeout_s)
        self._some.clear()
        taken = []
        while self._requests:
            taken.append(self._requests.popleft())
        return taken


Answered = tuple[asyncio.Future[Any], Any]


def deliver(answers: Iterable[Answered]) -> None:
    """Answer futures of several requests, in the thread of their loop, at once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answered]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0].get_loop(), []).append(answer)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, mine)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            continue


def _settle(answers: list[Answered]) -> None:
    for reply, value in answers:
        if reply.done():
            continue
        if isinstance(value, BaseException):
            reply.set_exception(value)
        else:
            reply.set_result(value)
