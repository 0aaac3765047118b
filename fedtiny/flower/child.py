"""The process in which a strategy of Flower's lives, seen from the run: started, asked, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from importlib.util import find_spec

from fedtiny.errors import StrategyError
from fedtiny.flower.frames import Tree, pack, read_frame, unpack, write_frame

_GRACE_S = 5.0


class Child:
    """A process that is started when it is first asked, and ended with this object.

    What is asked carries all that the answer needs: if the process has died it is started again.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Its process id, while there is one."""
        return self._process.pid if self._process else None

    def ask(self, call: str, **arguments: Tree) -> Tree:
        """What a call of `worker` gives. Raises StrategyError with what went wrong there."""
        frame = pack({"call": call, "arguments": arguments})
        with self._lock:
            answer = self._exchange(frame) or self._exchange(frame)
        if answer is None:
            raise StrategyError(
                "the process of the strategy ended twice before it answered; look for what it "
                "printed, and whether there was memory for it"
            )
        told = unpack(answer)
        if "error" in told:
            raise StrategyError(told["error"])
        return told["result"]

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _exchange(self, frame: bytes) -> bytes | None:
        """The answer; None if the process is gone."""
        process = self._started()
        assert process.stdin
        assert process.stdout
        try:
            write_frame(process.stdin, frame)
            answer = read_frame(process.stdout)
        except BrokenPipeError:
            answer = None
        except BaseException:
            process.kill()  # its answer would be taken for that to another call
            self._stop()
            raise
        if answer is None:
            self._stop()
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if find_spec("flwr") is None:
                raise StrategyError("there is no flwr here; pip install 'fedtiny[flower]'")
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            self._process = subprocess.Popen(
                # -P: as here, a file of this folder must not hide an installed module.
                [sys.executable, "-P", "-m", "fedtiny.flower.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
            )
            self._end = weakref.finalize(self, _ended, self._process, os.getpid())
        return self._process

    def _stop(self) -> None:
        self._end()
        self._process = None


def _ended(process: subprocess.Popen[bytes], owner: int) -> None:
    """The process is over; of a copy of this process it is none."""
    if os.getpid() != owner:
        return
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe:
                pipe.close()
        except BrokenPipeError:
            pass
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
