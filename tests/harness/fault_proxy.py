"""A network that misbehaves: a TCP proxy between agents and their coordinator.

It knows nothing of what it carries, so it works under TLS. `Weather` goes on until it changes;
a `Strike` hits one connection, once; a `Partition` holds everything back for a while, as a network
that is cut and mended does. What is random is drawn from one seed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

_PIECE_BYTES = 65536
_RESET = struct.pack("ii", 1, 0)  # linger, for 0 seconds: close() sends RST
_ANSWERED_S = 0.3
"""By then a request that went through has been answered, so that its answer can be lost."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What every piece of data meets, in both directions."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    """Of each connection and direction; 0: as fast as it goes."""
    corrupt_every_bytes: int = 0
    """One bit is flipped, on average, in so many bytes; 0: none."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Hits the first connection that carries ``after_bytes`` of requests from now on.

    "reset": both ends get RST. "half-open": it stays open, and nothing passes any more. "lost
    answer": the requests go through, the answers do not, and soon the client gets RST.
    """

    kind: Literal["reset", "half-open", "lost answer"]
    after_bytes: int = 1


@dataclass(frozen=True, slots=True)
class Partition:
    """For so long nothing passes; what was sent meanwhile arrives afterwards."""

    seconds: float


Fault = Weather | Strike | Partition
Script = Sequence[tuple[float, Fault]]
"""What happens when: seconds since the one before, and the fault."""


@dataclass(eq=False)
class _Connection:
    """One client, its way to the target, and what has struck it."""

    client: asyncio.StreamWriter
    target: asyncio.StreamWriter
    struck: str = ""

    def reset(self) -> None:
        """Both ends get RST."""
        for end in (self.client, self.target):
            if not end.is_closing():
                own = end.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()


@dataclass
class _Armed:
    """A strike that waits for its connection: the bytes that are still to pass on each."""

    strike: Strike
    passed: dict[_Connection, int] = field(default_factory=dict)

    def hits(self, connection: _Connection, count: int) -> bool:
        self.passed[connection] = self.passed.get(connection, 0) + count
        return self.passed[connection] >= self.strike.after_bytes


class FaultProxy:
    """Listens on a port of its own on the loopback and passes everything on to ``port``.

    Used as a context; it lives in a thread of its own. ``port`` may be changed later: a coordinator
    that was started again listens elsewhere.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self.target_port = port
        self.listens_on = 0
        self.carried_bytes = 0
        self._weather = Weather()
        self._armed: list[_Armed] = []
        self._mended = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._draws = np.random.default_rng(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def meet(self, fault: Fault) -> None:
        """From now on."""
        self._do(self._meet(fault))

    def play(self, script: Script) -> None:
        """One fault after the other, in the background."""
        asyncio.run_coroutine_threadsafe(self._play(script), self._loop)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """Strikes that have not found their connection yet."""
        return len(self._armed)

    # ---- in the thread of the proxy

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._mended.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.listens_on = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        for connection in tuple(self._connections):
            connection.reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _play(self, script: Script) -> None:
        for pause_s, fault in script:
            await asyncio.sleep(pause_s)
            await self._meet(fault)

    async def _meet(self, fault: Fault) -> None:
        match fault:
            case Weather():
                self._weather = fault
            case Strike():
                self._armed.append(_Armed(fault))
            case Partition():
                self._mended.clear()
                self._loop.call_later(fault.seconds, self._mended.set)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        await self._mended.wait()
        try:
            answers, target = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            client.transport.abort()
            return
        connection = _Connection(client, target)
        self._connections.add(connection)
        try:
            # Cancelled is what ends it; asyncio's server would report that as an error.
            with suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(
                    self._pump(reader, target, connection, self._on_request),
                    self._pump(answers, client, connection, self._on_answer),
                )
        finally:
            self._connections.discard(connection)
            client.transport.abort()
            target.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: _Connection,
        passes: Callable[[_Connection, int], bool],
    ) -> None:
        """From one end to the other. A delay is the length of a pipe: delays do not add up."""
        pipe: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        filling = asyncio.create_task(self._fill(reader, pipe))
        try:
            while piece := await self._next(pipe):
                await self._mended.wait()
                if passes(connection, len(piece)):
                    await self._write(writer, piece)
            if not connection.struck and not writer.is_closing():
                writer.write_eof()
        finally:
            filling.cancel()

    async def _fill(
        self, reader: asyncio.StreamReader, pipe: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        with suppress(OSError):  # one end is gone: nothing more will come from it
            while piece := await reader.read(_PIECE_BYTES):
                late_s = self._weather.delay_s + self._draws.uniform(0, self._weather.jitter_s)
                await pipe.put((self._loop.time() + late_s, piece))
        await pipe.put((0.0, b""))

    async def _next(self, pipe: asyncio.Queue[tuple[float, bytes]]) -> bytes:
        due, piece = await pipe.get()
        await asyncio.sleep(max(0.0, due - self._loop.time()))
        return piece

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        if self._weather.bytes_per_s:
            await asyncio.sleep(len(piece) / self._weather.bytes_per_s)
        self.carried_bytes += len(piece)
        writer.write(self._corrupted(piece))
        await writer.drain()

    def _corrupted(self, piece: bytes) -> bytes:
        every = self._weather.corrupt_every_bytes
        if not every:
            return piece
        damaged = bytearray(piece)
        for at in np.flatnonzero(self._draws.random(len(piece)) < 1 / every):
            damaged[at] ^= 1 << int(self._draws.integers(8))
        return bytes(damaged)

    # ---- strikes: whether a piece may pass

    def _on_request(self, connection: _Connection, count: int) -> bool:
        for armed in tuple(self._armed):
            if not connection.struck and armed.hits(connection, count):
                self._armed.remove(armed)
                connection.struck = armed.strike.kind
                delay_s = 0.0 if armed.strike.kind == "reset" else _ANSWERED_S
                if armed.strike.kind != "half-open":
                    self._loop.call_later(delay_s, connection.reset)
        return connection.struck in ("", "lost answer")

    def _on_answer(self, connection: _Connection, count: int) -> bool:
        return not connection.struck
