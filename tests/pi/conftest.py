"""Raspberry Pis without a Raspberry Pi: Debian's Python under qemu, in a root of its own."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedtiny.bundle import Bundle, make_bundle

CACHE = Path(__file__).resolve().parents[2] / "build"
TOOLS = ("debootstrap", "dpkg-deb", "proot", "qemu-arm-static", "qemu-aarch64-static")
# What an installation writes to, and what lies in each of them from the start.
WRITTEN = ("etc", "opt", "root", "srv", "tmp", "usr/local", "var/lib")
# The tools that act on a booted system, which only say what they were told. What runs as the
# agent's user runs at once.
RECORDERS = {
    "systemctl": 'echo "systemctl $*" >>/root/told',
    "useradd": 'echo "useradd $*" >>/root/told; echo "fedtiny:x:990:990::/:/bin/sh" >>/etc/passwd; '
    'echo "fedtiny:x:990:" >>/etc/group',
    "runuser": 'echo "runuser $1 $2" >>/root/told; shift 3; exec "$@"',
}


@dataclass(frozen=True)
class Kind:
    """A kind of Pi: how Debian calls it, the processor, and the packages that it needs."""

    debian: str
    emulator: str
    packages: str


KINDS = {
    "aarch64": Kind("arm64", "qemu-aarch64-static -cpu cortex-a53", "python3"),
    "armv7l": Kind("armhf", "qemu-arm-static -cpu cortex-a7", "python3,python3-cffi-backend"),
}


# ---- the system that a Pi has ------------------------------------------------------------------


def sysroot(kind: Kind) -> Path:
    """Debian's files for this kind; fetched once, which takes half a minute."""
    name = hashlib.sha256(kind.packages.encode()).hexdigest()[:8]
    root = CACHE / f"sysroot-{kind.debian}-{name}"
    if not root.exists():
        packages = root.with_suffix(".packages")
        shutil.rmtree(packages, ignore_errors=True)
        _checked(
            "debootstrap", f"--arch={kind.debian}", "--variant=minbase", "--download-only",
            f"--include={kind.packages}", "bookworm", packages,
        )  # fmt: skip
        for package in sorted(packages.glob("var/cache/apt/archives/*.deb")):
            _checked("dpkg-deb", "--extract", package, packages / "root")
        for folder in ("proc", "sys"):
            (packages / "root" / folder).mkdir(exist_ok=True)
        (packages / "root").rename(root)
        shutil.rmtree(packages)
    return root


def _checked(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def without_statx() -> None:
    """Let statx fail with ENOSYS from here on: proot does not translate its path, and the C library
    of 32-bit Arm then takes the older call."""
    statx, enosys, allow, fail = 332, 38, 0x7FFF0000, 0x00050000
    load, if_equal, end = 0x20, 0x15, 0x06
    rules = (load, 0, 0, 0), (if_equal, 0, 1, statx), (end, 0, 0, fail | enosys), (end, 0, 0, allow)
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(code))
    )
    no_new_privileges, set_filter, filter_mode = 38, 22, 2
    control = ctypes.CDLL(None).prctl
    assert control(no_new_privileges, 1, 0, 0, 0) == 0
    assert control(set_filter, filter_mode, program, 0, 0) == 0


# ---- a Pi --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pi:
    """A board of its own: what is written to its system stays in ``home``."""

    machine: str
    root: Path
    home: Path

    @classmethod
    def boot(cls, machine: str, root: Path, home: Path) -> Pi:
        """A board on which nothing was installed yet."""
        pi = cls(machine, root, home)
        for folder in WRITTEN:
            source = root / folder
            target = home / folder
            shutil.copytree(source, target, symlinks=True) if source.exists() else target.mkdir(
                parents=True
            )
        pi.path("/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        pi.path("/etc/group").write_text("root:x:0:\n")
        pi.path("/etc/hosts").write_text("127.0.0.1 localhost\n")
        for name, script in RECORDERS.items():
            program = pi.path(f"/usr/local/sbin/{name}")
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        return pi

    def path(self, name: str) -> Path:
        """Where a file of the board lies here."""
        return self.home / name.lstrip("/")

    @property
    def told(self) -> list[str]:
        """What the tools that act on a booted system were told."""
        log = self.path("/root/told")
        return log.read_text().splitlines() if log.exists() else []

    def start(self, *command: str) -> subprocess.Popen[str]:
        """The command, running on the board as root."""
        binds = [word for folder in WRITTEN for word in ("-b", f"{self.home / folder}:/{folder}")]
        proot = ["proot", "-0", "-r", str(self.root), *binds, "-b", "/dev", "-b", "/proc"]
        return subprocess.Popen(
            [*proot, "-w", "/root", "-q", KINDS[self.machine].emulator, *command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=without_statx,
            env={
                "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:"
                f"{os.environ['PATH']}",
                "PROOT_NO_SECCOMP": "1",  # its filter and ours do not go together
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )  # fmt: skip

    def run(self, *command: str, code: int = 0) -> tuple[str, str]:
        """What the command prints on its two outputs."""
        process = self.start(*command)
        out, err = process.communicate()
        assert process.returncode == code, f"{command}: {process.returncode}\n{out}\n{err}"
        return out, err

    def unpack(self, bundle: Bundle) -> None:
        """``tar xf`` in root's home."""
        with tarfile.open(bundle.file) as archive:
            archive.extractall(self.path("/root"), filter="data")


# ---- fixtures ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sysroots() -> dict[str, Path]:
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/sbin:/usr/sbin")]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    CACHE.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        return dict(zip(KINDS, pool.map(sysroot, KINDS.values()), strict=True))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The bundle for a machine, made once."""
    folder, made = tmp_path_factory.mktemp("bundles"), dict[str, Bundle]()

    def bundle(machine: str) -> Bundle:
        if machine not in made:
            made[machine] = make_bundle(machine, out=folder / f"{machine}.tar.gz")
        return made[machine]

    return bundle
