"""The boards that a bundle is made for, and the wheels that each of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedtiny.errors import ExperimentError, did_you_mean

_SHARED = {
    "grpcio": "1.85.1",
    "protobuf": "6.33.6",
    "typing-extensions": "4.16.0",
    # Debian's Python comes without it, and it runs from its wheel.
    "pip": "26.3",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of processor, as ``uname -m`` calls it.

    ``multiarch`` is Debian's name of its Python, ``compiler`` what zig is told, ``platforms`` the
    tags of wheels that run there, ``wheels`` the version of each.
    """

    machine: str
    multiarch: str
    compiler: tuple[str, ...]
    platforms: tuple[str, ...]
    wheels: Mapping[str, str]


def _platforms(machine: str, *glibc_minors: int) -> tuple[str, ...]:
    known = (f"manylinux_2_{minor}_{machine}" for minor in glibc_minors)
    return (*known, f"manylinux2014_{machine}", f"linux_{machine}")


TARGETS = {
    target.machine: target
    for target in (
        Target(
            "aarch64",
            "aarch64-linux-gnu",
            ("-target", "aarch64-linux-gnu.2.28", "-mcpu=generic"),
            _platforms("aarch64", 28, 17),
            _SHARED | {"cryptography": "50.0.2", "cffi": "2.1.1"},
        ),
        Target(
            "armv7l",
            "arm-linux-gnueabihf",
            # NEON of ARMv7 takes denormal floats for zero and so gives other bits. Without it the
            # lanes become scalar code of the floating-point unit, which keeps to IEEE 754.
            ("-target", "arm-linux-gnueabihf.2.28", "-mcpu=cortex_a7-neon"),
            _platforms("armv7l", 31, 28, 17),
            # cffi has no wheel here, and from 46 on cryptography needs a newer one than Debian's.
            _SHARED | {"cryptography": "45.0.7"},
        ),
    )
}


def target(machine: str) -> Target:
    """The row of a machine. Raises ExperimentError if no bundle can be made for it."""
    if machine in TARGETS:
        return TARGETS[machine]
    raise ExperimentError(
        f"no bundle can be made for {machine!r}: {did_you_mean(machine, TARGETS)}there are aarch64 "
        "(64-bit systems) and armv7l (32-bit systems on a Pi 2 or later); `uname -m` on the board "
        "says which. ARMv6 (Pi 1, Pi Zero) has no wheel of grpcio"
    )
