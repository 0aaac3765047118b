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


class NoAnswerError(ConnectionError):
    """The coordinator cannot be reached, or does not answer."""


def fault(error: Any) -> ConnectionError:
    """A failed call: what became of the connection, or what the coordinator says."""
    code, details = error.code().name, error.details() or error.code().name
    if code == "DEADLINE_EXCEEDED":
        return NoAnswerError("no answer in time")
    if code not in ("UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED"):
        return ConnectionError(details)
    small = details.lower()
    return NoAnswerError(next((told for sign, told in _PLAIN.items() if sign in small), details))
