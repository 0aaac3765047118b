"""The texts of gRPC as its users read them."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import pytest

from fedtiny.agent.faults import NoAnswerError, fault


@dataclass
class Failed:
    """A call that has failed, as gRPC gives it."""

    said: str
    status: str = "UNAVAILABLE"

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode[self.status]

    def details(self) -> str:
        return self.said


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.2:8470: "
            "Failed to connect to remote host: connect: Connection refused (111)",
            "connection refused",
        ),
        (
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.2:8470: "
            "Ssl handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL "
            "routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired",
            "its certificate is not good here",
        ),
        ("DNS resolution failed for pi.local:8470: C-ares status is not ARES_SUCCESS",
         "its name is not known to this network"),
        ("recvmsg:Connection reset by peer", "the connection broke off"),
        ("Socket closed", "the connection broke off"),
        ("", "UNAVAILABLE"),
        ("the coordinator is going down", "the coordinator is going down"),
    ],
)  # fmt: skip
def test_what_became_of_a_connection_is_told_plainly(said: str, told: str) -> None:
    found = fault(Failed(said))
    assert isinstance(found, NoAnswerError)
    assert str(found) == told


def test_what_a_coordinator_says_is_told_as_it_is() -> None:
    found = fault(Failed("the blob 00 is gone", "NOT_FOUND"))
    assert not isinstance(found, NoAnswerError)
    assert str(found) == "the blob 00 is gone"
