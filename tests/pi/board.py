"""Raspberry Pis without a Raspberry Pi: Debian's files under qemu, each in a root of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedtiny.bundle import Bundle

CACHE = Path(__file__).resolve().parents[2] / "build"
TOOLS = ("debootstrap", "dpkg-deb", "proot", "qemu-arm-static", "qemu-aarch64-static")
INSTALLER, COMMAND = "/root/fedtiny-agent/install.sh", "/usr/local/bin/fedtiny-agent"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MOST_S = 150.0  # that a command of a board takes, on a busy machine

# What an installation writes to.
_WRITTEN = ("etc", "opt", "root", "srv", "tmp", "usr/local", "var/lib")
# What acts on a booted system says what it was told; the agent's user is whoever there is.
_RECORDERS = {
    "systemctl": 'echo "systemctl $*" >>/root/told',
    "useradd": 'echo "useradd $*" >>/root/told\n'
    "echo fedtiny:x:990:990::/:/bin/sh >>/etc/passwd; echo fedtiny:x:990: >>/etc/group",
    "runuser": 'echo "runuser $1 $2" >>/root/told\nshift 3; exec "$@"',
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of Pi: Debian's name of it, the emulator with a processor, and what to install."""

    debian: str
    emulator: str
    packages: str


KINDS = {
    "aarch64": Kind("arm64", "qemu-aarch64-static -cpu cortex-a53", "python3"),
    "armv7l": Kind("armhf", "qemu-arm-static -cpu cortex-a7", "python3,python3-cffi-backend"),
}


def missing_tools() -> list[str]:
    """What an emulated Pi needs and is not installed here."""
    found = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [tool for tool in TOOLS if not shutil.which(tool, path=found)]


def sysroot(kind: Kind) -> Path:
    """Debian's files for this kind. They are fetched once, which takes half a minute."""
    name = hashlib.sha256(kind.packages.encode()).hexdigest()[:8]
    root = CACHE / f"sysroot-{kind.debian}-{name}"
    if not root.exists():
        CACHE.mkdir(exist_ok=True)
        fetched = root.with_suffix(".fetched")
        shutil.rmtree(fetched, ignore_errors=True)
        _checked(
            "debootstrap", f"--arch={kind.debian}", "--variant=minbase", "--download-only",
            f"--include={kind.packages}", "bookworm", fetched,
        )  # fmt: skip
        for package in sorted(fetched.glob("var/cache/apt/archives/*.deb")):
            _checked("dpkg-deb", "--extract", package, fetched / "root")
        for folder in _WRITTEN:
            (fetched / "root" / folder).mkdir(parents=True, exist_ok=True)
        (fetched / "root").rename(root)
        shutil.rmtree(fetched)
    return root


def _checked(*command: str | Path) -> None:
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@dataclass(frozen=True, slots=True)
class Pi:
    """A board: what it has from Debian lies in ``root``, and what is written in ``home``."""

    machine: str
    root: Path
    home: Path

    @classmethod
    def boot(cls, machine: str, home: Path) -> Pi:
        """A board on which nothing was installed yet."""
        pi = cls(machine, sysroot(KINDS[machine]), home)
        for folder in _WRITTEN:
            shutil.copytree(pi.root / folder, home / folder, symlinks=True)
        pi.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        pi.write("/etc/group", "root:x:0:\n")
        for name, script in _RECORDERS.items():
            pi.write(f"/usr/local/sbin/{name}", f"#!/bin/sh\n{script}\n")
        return pi

    def path(self, name: str) -> Path:
        """Where a file of the board lies here."""
        return self.home / name.lstrip("/")

    def write(self, name: str, text: str) -> None:
        """A file of the board, which may be a program."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    @property
    def told(self) -> list[str]:
        """What the tools that act on a booted system were told."""
        log = self.path("/root/told")
        return log.read_text().splitlines() if log.exists() else []

    def unpack(self, bundle: Bundle) -> None:
        """``tar xf`` in root's home."""
        with tarfile.open(bundle.file) as archive:
            archive.extractall(self.path("/root"), filter="data")

    def start(
        self,
        *command: str,
        out: int | IO[str] = subprocess.PIPE,
        err: int | IO[str] = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """The command, running on the board as root, in a group of processes of its own."""
        home = (f"{self.home / folder}:/{folder}" for folder in _WRITTEN)
        binds = [word for place in (*home, "/dev", "/proc") for word in ("-b", place)]
        proot = ["proot", "-0", "-r", str(self.root), *binds, "-w", "/root"]
        return subprocess.Popen(
            [
                sys.executable, Path(__file__).with_name("without_statx.py"),
                *proot, "-q", KINDS[self.machine].emulator, *command,
            ],
            stdout=out, stderr=err, text=True, start_new_session=True,
            # Two filters of one call do not go together: proot does without its own.
            env={"PATH": f"{PATH}:{os.environ['PATH']}", "PROOT_NO_SECCOMP": "1"},
        )  # fmt: skip

    def run(self, *command: str, code: int = 0) -> tuple[str, str]:
        """What the command prints, on its two outputs, before it ends with this code."""
        process, hung = self.start(*command), ""
        try:
            out, err = process.communicate(timeout=_MOST_S)
        except subprocess.TimeoutExpired:
            hung = f"killed after {_MOST_S:g} s, "
            kill(process)
            out, err = process.communicate()
        finally:
            kill(process)
        assert process.returncode == code, f"{command}: {hung}{process.returncode}\n{out}\n{err}"
        return out, err


def kill(process: subprocess.Popen[str]) -> None:
    """End the whole group of what `Pi.start` has started: proot leaves what it runs behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
