"""Why a call has failed, as its user reads it: gRPC's texts are for those who debug gRPC."""

from __future__ import annotations

from typing import Any

_PLAIN = {
    "connection refused": "connection refused",
    "certificate_verify_failed": "its certificate is not good here",
    "dns resolution failed": "its name is not known to this network",
    "network is unreachable": "the network is unreachable",
    "no route to host": "no route to it",
    "timed out": "no answer in time",
    "timeout occurred": "no answer in time",
    "fd shutdown": "no answer in time",
    "socket closed": "the connection broke off",
    "connection reset": "the connection broke off",
    "broken pipe": "the connection broke off",
    "goaway": "the connection was closed",
}
"""By what the details hold, in small letters; the first that fits."""


def plain(error: Any) -> str:
    """The reason of a failed call: what the coordinator says, or what became of the connection."""
    code, details = error.code().name, error.details() or ""
    if code == "DEADLINE_EXCEEDED":
        return "no answer in time"
    if code not in ("UNAVAILABLE", "UNKNOWN", "INTERNAL"):
        return f"{code}: {details}"
    small = details.lower()
    return next((told for sign, told in _PLAIN.items() if sign in small), details or code)
