"""A coordinator in a process of its own, which tests may kill and start again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from fedtiny.wire import services
from fedtiny.wire.pb import admin_pb2 as pb
from tests.harness.zygote import Forked, fork

_START_S = 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


Launch = Callable[[Sequence[str], Path, str], "subprocess.Popen[bytes] | Forked"]
"""Runs `fedtiny` with arguments, a log, and a crash point that is armed."""


def fresh(arguments: Sequence[str], log: Path, crash: str) -> subprocess.Popen[bytes]:
    """As a user does, for what a start costs."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [Path(sys.executable).with_name("fedtiny"), *arguments],
            stdout=output, stderr=output, env=os.environ | {"FEDTINY_CRASH": crash},
        )  # fmt: skip


class CoordinatorProcess:
    """`fedtiny coordinator` on a folder. Used as a context: it is killed at the end.

    The first start takes a free port; later ones listen there again, as devices expect.
    """

    def __init__(
        self, experiment: Path, folder: Path, *options: str, launch: Launch = fork
    ) -> None:
        self.experiment, self.folder, self.options = experiment, folder, options
        self.port = self.enrol_port = 0
        self.deaths: list[int] = []
        self._launch = launch
        self._process: subprocess.Popen[bytes] | Forked | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> CoordinatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ---- its life

    def start(self, crash: str = "") -> bool:
        """Start it and wait until it serves; False if it died before.

        ``crash`` names a crash point, as FEDTINY_CRASH does.
        """
        arguments = [
            "coordinator", str(self.experiment), "--dir", str(self.folder),
            "--listen", f"127.0.0.1:{self.port}", "--enrol", f"127.0.0.1:{self.enrol_port}",
            *self.options,
        ]  # fmt: skip
        self._process = self._launch(arguments, self.folder / "output.log", crash)
        return self._wait()

    def serve(self) -> None:
        """`start` where nothing is to go wrong. Raises RuntimeError with what it has printed."""
        if not self.start():
            raise RuntimeError(f"the coordinator ended with {self.deaths[-1]}: {self.output()}")

    def _wait(self) -> bool:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if self.is_dead:
                return False
            try:
                self._learn_ports(self.status())
            except grpc.RpcError:
                time.sleep(0.02)
            else:
                return True
        raise TimeoutError(f"it does not serve after {_START_S:g} s: {self.output()}")

    def _learn_ports(self, status: dict[str, Any]) -> None:
        self.port = int(status["listen"].rpartition(":")[2])
        self.enrol_port = int(status["enrol"].rpartition(":")[2])

    @property
    def is_dead(self) -> bool:
        """Whether it has ended by itself; its exit code is then in `deaths`."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self.deaths.append(code)
            self._process = None
        return self._process is None

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def strike(self) -> None:
        """`kill`, while `keep_up` is there to notice."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> int:
        """As an operator would; its exit code."""
        assert self._process is not None
        process = self._process
        process.send_signal(signal.SIGTERM)
        return process.wait(_START_S)

    async def keep_up(self) -> None:
        """Start it again whenever it was killed or stopped, until cancelled. Raises RuntimeError
        when it has ended for a reason of its own."""
        while True:
            if self.is_dead:
                if self.deaths[-1] not in (-signal.SIGKILL, 0):
                    raise RuntimeError(f"it ended with {self.deaths[-1]}: {self.output()}")
                await asyncio.to_thread(self.start)
            await asyncio.sleep(0.01)

    def output(self) -> str:
        """What it has printed."""
        return (self.folder / "output.log").read_text()

    # ---- what an operator asks

    def call(self, method: str, request: Any) -> dict[str, Any]:
        """The document that an operator gets; grpc.RpcError if there is no answer."""
        with grpc.insecure_channel(
            f"unix:{self.folder / 'operator.sock'}", [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            reply = getattr(services.stubs(services.OPERATOR, channel), method)(request, timeout=5)
        return dict(json.loads(reply.json))

    def status(self) -> dict[str, Any]:
        return self.call("status", pb.StatusRequest())

    def token(self, uses: int = 1) -> str:
        """A join string."""
        request = pb.TokenRequest(label="test", expires_in_s=3600, uses=uses)
        return str(self.call("create_token", request)["join"])

    def revoke(self, device: int) -> None:
        """Shut a device out."""
        self.call("revoke", pb.RevokeRequest(device=str(device)))

    # ---- what it costs

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def rss_bytes(self) -> int:
        return int(self._proc("statm").split()[1]) * _PAGE_BYTES

    @property
    def cpu_s(self) -> float:
        """Seconds of user and system time."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    @property
    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()
