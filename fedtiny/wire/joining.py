"""The one string that a device needs to join: where, whom to trust, and the right to do so.

fedtiny://192.168.1.10:8471/TOKEN?pin=HEX&until=UNIX_S
fedtiny://127.0.0.1:8471/TOKEN?insecure=1&until=UNIX_S
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, urlsplit

from fedtiny.errors import ExperimentError

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_PIN = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAKE_ANOTHER = "make another with `fedtiny token create`"


@dataclass(frozen=True, slots=True)
class JoinString:
    """Address of the enrolment port, SHA-256 of its public key (hex), token and its last second.

    Without certificates (``insecure``) there is no pin, and the host is this machine.
    """

    host: str
    port: int
    pin: str
    token: str
    expires_s: int
    insecure: bool = False

    def __str__(self) -> str:
        trust = "insecure=1" if self.insecure else f"pin={self.pin}"
        return f"fedtiny://{self.address}/{self.token}?{trust}&until={self.expires_s}"

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the enrolment port."""
        return join_address(self.host, self.port)

    @classmethod
    def parse(cls, text: str) -> JoinString:
        """The join string in the text. Raises ExperimentError that says what is wrong with it."""
        # A string copied from a terminal may be broken over lines.
        url = _split("".join(text.split()))
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        joined = cls(
            host=url.hostname or "",
            port=url.port or 0,
            pin=query.get("pin", ""),
            token=url.path.removeprefix("/"),
            expires_s=int(query["until"]) if query.get("until", "").isdecimal() else -1,
            insecure=query.get("insecure") == "1",
        )
        joined._check()
        return joined

    def _check(self) -> None:
        faults = {
            "it names no host": not self.host,
            "it names no port": not self.port,
            "its token is not 16 to 64 letters and digits": not _TOKEN.fullmatch(self.token),
            "it lacks until=SECONDS": self.expires_s < 0,
            "it lacks pin=HEX of 64 digits": not (self.insecure or _PIN.fullmatch(self.pin)),
            f"without certificates only this machine can be joined, not {self.host}": self.insecure
            and self.host not in _LOOPBACK,
        }
        for fault, found in faults.items():
            if found:
                raise ExperimentError(f"the join string is incomplete: {fault}; {_MAKE_ANOTHER}")


def join_address(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str) -> SplitResult:
    wanted = f"a join string is fedtiny://HOST:PORT/TOKEN?pin=HEX&until=SECONDS; {_MAKE_ANOTHER}"
    try:
        url = urlsplit(text)
        _ = url.port  # raises ValueError for a port that is none
    except ValueError as error:
        raise ExperimentError(f"{text!r} is no join string ({error}); {wanted}") from None
    if url.scheme != "fedtiny":
        raise ExperimentError(f"{text[:80]!r} is no join string; {wanted}")
    return url
