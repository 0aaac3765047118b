from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedtiny.server.inbox import Call, Inbox, deliver


def test_who_takes_gets_all_that_has_come_in_its_order() -> None:
    async def asked() -> list[asyncio.Future[object]]:
        return [asyncio.get_running_loop().create_future() for _ in range(3)]

    inbox, replies = Inbox(), asyncio.run(asked())
    for reply in replies:
        inbox.put(Call(lambda _: None, reply))
    assert [request.reply for request in inbox.take(0)] == replies
    assert inbox.take(0) == []


def test_who_waits_is_woken_by_a_request_and_by_the_end_of_its_patience() -> None:
    inbox = Inbox()
    started = time.monotonic()
    assert inbox.take(0.05) == []
    assert time.monotonic() - started >= 0.05
    threading.Timer(0.05, inbox.wake).start()
    inbox.take(10.0)
    assert time.monotonic() - started < 5.0


def test_futures_are_answered_in_the_thread_of_their_loop() -> None:
    async def asks() -> tuple[object, object, int]:
        loop = asyncio.get_running_loop()
        good, bad, given_up = (loop.create_future() for _ in range(3))
        given_up.cancel()
        seen: list[int] = []
        good.add_done_callback(lambda _: seen.append(threading.get_ident()))
        answers = [(good, 1), (bad, OSError("no")), (given_up, 2)]
        with ThreadPoolExecutor(1) as other:
            other.submit(deliver, answers).result()
        with pytest.raises(OSError, match="no"):
            await bad
        return await good, given_up.cancelled(), seen[0]

    assert asyncio.run(asks()) == (1, True, threading.get_ident())


def test_a_loop_that_is_closed_wants_no_answer() -> None:
    async def asks() -> asyncio.Future[object]:
        return asyncio.get_running_loop().create_future()

    deliver([(asyncio.run(asks()), 1)])
