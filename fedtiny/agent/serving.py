"""The local socket of a running agent: one JSON document a line, for programs on the same device.

{"x": [0.1, 0.2]}    ->  {"outputs": [...], "class": 2}
{"status": true}     ->  what `fedtiny-agent status --json` prints
anything else        ->  {"error": "..."}
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedtiny.agent.personal import MOST_LINE_BYTES, Predictor
from fedtiny.agent.store import Store, told
from fedtiny.errors import DataError, FedtinyError, RunError

SOCKET = "agent.sock"
_PATIENCE_S = 60.0
Document = dict[str, Any]


@contextmanager
def serving(store: Store, status: Callable[[], Document]) -> Iterator[None]:
    """Answer at DIR/agent.sock while the block runs."""
    path = store.folder / SOCKET
    with told(path), _address(store.folder) as address:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server = _Server(address, _Connection)
        finally:
            os.umask(before)
    server.answering = Answering(store, status)
    thread = threading.Thread(target=server.serve_forever, name="agent.sock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        with suppress(OSError):
            path.unlink()


class Answering:
    """What the socket answers, one request at a time."""

    def __init__(self, store: Store, status: Callable[[], Document]) -> None:
        self._predictor, self._status = Predictor(store), status
        self._lock = threading.Lock()

    def answer(self, line: bytes) -> Document:
        """The answer to a line."""
        try:
            with self._lock:
                return self._answer(line)
        except FedtinyError as error:
            return {"error": str(error)}

    def _answer(self, line: bytes) -> Document:
        if len(line) > MOST_LINE_BYTES:
            raise DataError(f"a line of more than {MOST_LINE_BYTES:,} B; send fewer numbers")
        try:
            asked = json.loads(line)
        except ValueError as error:
            raise DataError(f"this is no JSON: {error}") from None
        if isinstance(asked, dict) and asked.get("status") is True:
            return self._status()
        if not isinstance(asked, dict) or not isinstance(asked.get("x"), list):
            raise DataError('send {"x": [numbers]} or {"status": true}')
        found = self._predictor.predict(asked["x"])
        if len(found) != 1:
            raise DataError(f"one line is one sample; got {len(found)}")
        return found[0]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answering: Answering


class _Connection(socketserver.StreamRequestHandler):
    timeout = _PATIENCE_S
    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            while line := self.rfile.readline(MOST_LINE_BYTES + 1):
                answer = self.server.answering.answer(line)
                self.wfile.write(json.dumps(answer).encode() + b"\n")
                if len(line) > MOST_LINE_BYTES:
                    return


def ask(folder: Path, requests: Iterator[Document]) -> Iterator[Document]:
    """The answers of the agent that runs in a folder. Raises RunError when none does."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _address(folder) as address:
                connection.connect(address)
        except OSError as error:
            raise RunError(
                f"no agent answers at {folder / SOCKET} ({error.strerror}); start one: "
                "fedtiny-agent run --data SOURCE"
            ) from None
        connection.settimeout(_PATIENCE_S)
        with connection.makefile("rwb") as stream:
            for request in requests:
                yield _asked(stream, request)


def _asked(stream: Any, request: Document) -> Document:
    try:
        stream.write(json.dumps(request).encode() + b"\n")
        stream.flush()
        answer = stream.readline()
    except OSError as error:
        raise RunError(f"the agent does not answer ({error}); start it anew") from None
    return dict(json.loads(answer or b'{"error": "the agent ended"}'))


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket by a short name: the kernel takes 107 characters, and folders may be deep."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{opened}/{SOCKET}"
    finally:
        os.close(opened)
