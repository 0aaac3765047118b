"""The coordinator's own certificate authority, made on its first start.

    ca.pem          P-256 key and certificate: signs the server and the devices
    ca-old.pem      the authority before it, trusted until it ends or the file is removed
    server.pem      key and certificates of the port of the devices
    enrolment.pem   key and certificate of the port of enrolment; its public key is the pin
    signing.pem     Ed25519 key of the manifests

Move ``ca.pem`` to ``ca-old.pem`` and restart to have a new authority: the server then shows a
certificate of the new one that devices of the old one can follow, and each device gets the new one
when it renews. That happens by itself when two thirds of an authority's life are over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedtiny.durable import REMEDY, make_private, naming_files, rename, write_whole
from fedtiny.errors import RunError
from fedtiny.server import certificates, crash_points
from fedtiny.server.certificates import KeyPair
from fedtiny.server.signing import Signer

if TYPE_CHECKING:
    import grpc

DAY_S = 86_400.0
_CA_S = 3_650 * DAY_S
# Renewed at a start after four of six years: what a device sees has two years left or more, so its
# clock may be two years fast.
_SERVER_S = 6 * 365 * DAY_S
DEVICE_S = 7 * DAY_S
"""How long a device's certificate lives."""

Made = TypeVar("Made", KeyPair, Signer)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A device's certificate; ``serial`` in hex."""

    pem: bytes
    serial: str
    not_after_s: float


@dataclass(frozen=True, slots=True)
class Authority:
    """Keys and certificates of one coordinator."""

    ca: KeyPair
    old: KeyPair | None
    server: KeyPair
    enrolment: KeyPair
    signer: Signer
    device_s: float

    @classmethod
    def open(
        cls, folder: Path, now_unix: float | None = None, device_s: float = DEVICE_S
    ) -> Authority:
        """The authority in the folder; what is missing is made, what is due is renewed.

        ``device_s`` is the life of a device's certificate in seconds. Raises RunError when a file
        is damaged or cannot be written.
        """
        now = time.time() if now_unix is None else now_unix
        make_private(folder)
        _retire(folder, now)
        ca = _kept(folder / "ca.pem", KeyPair, lambda: certificates.root(now, _CA_S))
        old = _old(folder / "ca-old.pem", now)
        return cls(
            ca,
            old,
            _server(folder / "server.pem", ca, old, now),
            _enrolment(folder / "enrolment.pem", now),
            _kept(folder / "signing.pem", Signer, Signer.generate),
            device_s,
        )

    @property
    def pin(self) -> str:
        """SHA-256 (hex) of the public key of the enrolment port, for join strings."""
        return self.enrolment.pin

    @property
    def bundle(self) -> list[bytes]:
        """The certificates (PEM) that devices and server trust: the present, then the old one."""
        return [certificates.to_pem([pair.certificate]) for pair in (self.ca, self.old) if pair]

    def issue(self, csr_der: bytes, device: int, now_unix: float) -> Certificate:
        """A certificate for the key of the request. Raises IdentityError for a bad request."""
        key = certificates.read_csr(csr_der)
        made = certificates.device(self.ca, key, device, now_unix, self.device_s)
        return Certificate(
            certificates.to_pem([made]),
            f"{made.serial_number:x}",
            made.not_valid_after_utc.timestamp(),
        )

    def server_credentials(self) -> grpc.ServerCredentials:
        """For the port of the devices: who has no certificate of this authority is not heard."""
        import grpc

        return grpc.ssl_server_credentials(
            [(self.server.key_pem, self.server.chain_pem)],
            root_certificates=b"".join(self.bundle),
            require_client_auth=True,
        )

    def enrolment_credentials(self) -> grpc.ServerCredentials:
        """For the port of enrolment: devices compare its key with the pin."""
        import grpc

        return grpc.ssl_server_credentials([(self.enrolment.key_pem, self.enrolment.chain_pem)])


def _retire(folder: Path, now: float) -> None:
    ca = folder / "ca.pem"
    if ca.exists() and _read(ca, KeyPair).is_due(now, _CA_S):
        with naming_files(REMEDY):
            rename(ca, folder / "ca-old.pem")


def _old(path: Path, now: float) -> KeyPair | None:
    old = _read(path, KeyPair) if path.exists() else None
    ended = old is not None and old.certificate.not_valid_after_utc.timestamp() < now
    return None if ended else old


def _server(path: Path, ca: KeyPair, old: KeyPair | None, now: float) -> KeyPair:
    def make() -> KeyPair:
        made = certificates.server(ca, now, _SERVER_S)
        between = (certificates.crossed(old, ca),) if old else ()
        return KeyPair(made.key, made.certificate, between)

    kept = _kept(path, KeyPair, make)
    ours = kept.certificate.issuer == ca.certificate.subject and bool(kept.between) == bool(old)
    return kept if ours and not kept.is_due(now, _SERVER_S) else _write(path, make())


def _enrolment(path: Path, now: float) -> KeyPair:
    kept = _kept(path, KeyPair, lambda: certificates.enrolment(certificates.new_key(), now, _CA_S))
    if not kept.is_due(now, _CA_S):
        return kept
    # The key stays: join strings hold its pin.
    return _write(path, certificates.enrolment(kept.key, now, _CA_S))


def _kept(path: Path, kind: type[Made], make: Callable[[], Made]) -> Made:
    return _read(path, kind) if path.exists() else _write(path, make())


def _write(path: Path, made: Made) -> Made:
    crash_points.reach("authority.before")
    write_whole(path, made.pem)
    crash_points.reach("authority.after")
    return made


def _read(path: Path, kind: type[Made]) -> Made:
    with naming_files("check who owns it"):
        pem = path.read_bytes()
    try:
        return kind.from_pem(pem)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it from a backup") from None
