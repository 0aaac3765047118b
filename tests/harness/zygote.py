"""A process that has imported fedtiny and forks: `fedtiny` commands that start without waiting.

Most of a start is imports. Where a test starts a coordinator many times, each start is a fork of
this process instead: with a memory, a pid and a death of its own.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


# ---- in the process that asks ----------------------------------------------------------------


@dataclass(eq=False)
class Forked:
    """A command that runs; as much of subprocess.Popen as a coordinator needs."""

    pid: int = 0
    returncode: int | None = None
    _born: threading.Event = field(default_factory=threading.Event)
    _dead: threading.Event = field(default_factory=threading.Event)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended."""
        if not self._dead.wait(timeout):
            raise subprocess.TimeoutExpired("fedtiny", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To a process that still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)


class _Zygote:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.zygote"], cwd=_ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._asked: list[Forked] = []
        self._alive: dict[int, Forked] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(self, order: Mapping[str, object]) -> Forked:
        child = Forked()
        with self._lock:
            self._asked.append(child)
            assert self._process.stdin
            self._process.stdin.write(json.dumps(order) + "\n")
        child._born.wait()
        if not child.pid:
            raise RuntimeError("the process that forks has ended; see its error above")
        return child

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            pid, code = json.loads(line)
            if code is None:
                child = self._alive[pid] = self._asked.pop(0)
                child.pid = pid
                child._born.set()
            else:
                child = self._alive.pop(pid)
                child.returncode = code
                child._dead.set()
        for child in self._asked:
            child._born.set()


_one_at_a_time = threading.Lock()


@cache
def _zygote() -> _Zygote:
    """One for the whole process; it ends with it."""
    return _Zygote()


def fork(arguments: Sequence[str], log: Path, crash: str = "") -> Forked:
    """Run `fedtiny` with these arguments; what it prints is added to the log."""
    with _one_at_a_time:
        zygote = _zygote()
    return zygote.fork({"arguments": list(arguments), "log": str(log), "crash": crash})


# ---- in the process that forks ---------------------------------------------------------------


def _serve() -> None:
    import fedtiny.cli
    import fedtiny.server.server  # noqa: F401

    read, write = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    selector = selectors.DefaultSelector()
    selector.register(read, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    orders = b""
    while True:
        for key, _ in selector.select():
            if key.fd == read:
                os.read(read, 4096)
                _bury()
                continue
            data = os.read(key.fd, 65536)
            if not data:
                return
            *lines, orders = (orders + data).split(b"\n")
            for line in lines:
                _fork(json.loads(line))


def _tell(pid: int, code: int | None) -> None:
    sys.stdout.write(json.dumps([pid, code]) + "\n")
    sys.stdout.flush()


def _bury() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(pid, os.waitstatus_to_exitcode(status))


def _fork(order: Mapping[str, object]) -> None:
    pid = os.fork()
    if pid:
        _tell(pid, None)
        return
    code = 1
    try:
        code = _run(order)
    finally:
        os._exit(code)


def _run(order: Mapping[str, object]) -> int:
    from fedtiny import cli
    from fedtiny.server import crash_points

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["FEDTINY_CRASH"] = str(order["crash"])
    crash_points._LEFT.update(crash_points._armed())
    assert isinstance(order["arguments"], list)
    sys.argv = ["fedtiny", *order["arguments"]]
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve()
