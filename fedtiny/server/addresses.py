"""Addresses to listen at: read from HOST:PORT, and tried before anything is served there."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from fedtiny.errors import ExperimentError, RunError

Address = tuple[str, int]

_REMEDIES = {
    errno.EADDRINUSE: "stop what listens there, or choose another port",
    errno.EADDRNOTAVAIL: "that is no address of this machine: choose one that is, or 0.0.0.0 "
    "for all of them",
    errno.EACCES: "choose a port from 1024 on",
}
_REMEDY = "choose another address"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an address cannot be had, and what to do about it."""

    told: str
    remedy: str


def read_address(text: str) -> Address:
    """Host and port of HOST:PORT. Raises ExperimentError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ExperimentError(f"{text!r} is no address; write HOST:PORT, such as 127.0.0.1:8470")
    return host.removeprefix("[").removesuffix("]"), int(port)


def beside(listen: str) -> str:
    """The address of enrolment where none is given: one port further."""
    host, port = listen.rpartition(":")[::2]
    return f"{host}:{int(port) + 1 if int(port) else 0}"


def obstacle(address: Address) -> Obstacle | None:
    """What keeps a coordinator from listening at the address; None if nothing does."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return Obstacle(error.strerror or str(error), _REMEDIES.get(error.errno or 0, _REMEDY))
    return None


def check_free(text: str) -> Address:
    """Host and port, when one can listen there. Raises RunError when not.

    gRPC would say so as well, but in words of its own that name no remedy.
    """
    address = read_address(text)
    if found := obstacle(address):
        raise RunError(f"{text} cannot be had: {found.told}; {found.remedy}")
    return address
