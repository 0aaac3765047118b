"""Who a device is: the key that it makes, the coordinator that it trusts, and its certificate.

The PEM files begin with a line with the SHA-256 of what follows it.

    key.pem            made here, readable by its owner alone; it never leaves the device
    certificate.pem    of that key, from the coordinator's authority; renewed while it is valid
    authority.pem      whose servers the device talks to
    signer.bin         Ed25519 public key of the coordinator's manifests
    coordinator.json   where it is, and the device's index; written last: with it, all is there

Importing this loads no cryptography: an agent that only uses its certificate saves the memory, and
renewal is the work of a short child process (``python -m fedtiny.agent.identity renew FOLDER``).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtiny.agent.faults import fault
from fedtiny.agent.store import told
from fedtiny.durable import make_private, write_whole
from fedtiny.errors import FedtinyError, IdentityError, RunError
from fedtiny.values import DeviceCard
from fedtiny.wire import codec, services
from fedtiny.wire.joining import JoinString, join_address
from fedtiny.wire.pb import fleet_pb2 as pb

if TYPE_CHECKING:
    import ssl

    import grpc
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SERVER_NAME = "fedtiny"
"""The name in the coordinator's certificates, whatever its address."""
DEADLINE_S = 30.0
_CHILD_S = 180.0
"""More than a renewal takes whose every step waits for its deadline, on a slow board."""

_KEY, _CERTIFICATE, _AUTHORITY = "key.pem", "certificate.pem", "authority.pem"
_SIGNER, _COORDINATOR = "signer.bin", "coordinator.json"
_SECRET = "secret.bin"  # where there are no certificates: what a device is known again by
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT")
_JOIN_AGAIN = "join again: `fedtiny-agent join --again STRING`"


@dataclass(frozen=True, slots=True)
class Told:
    """The coordinator's time as it said it once, and the seconds since this machine's start then.

    The wall clock of a board may be anything; the time since its start only goes on.
    """

    unix_s: float
    boot_s: float
    boot: str

    @classmethod
    def now(cls, unix_s: float) -> Told:
        """The coordinator has just said ``unix_s``."""
        return cls(unix_s, _boot_s(), _boot())

    def unix_now(self) -> float | None:
        """The coordinator's time now, or None when the machine was started anew since."""
        return self.unix_s + _boot_s() - self.boot_s if self.boot == _boot() else None


@dataclass(frozen=True, slots=True)
class Identity:
    """A device that has joined. Times are Unix seconds of the coordinator's clock."""

    index: int
    host: str
    port: int
    insecure: bool
    renew_s: float
    expires_s: float
    told: Told
    name: str = ""
    """What the coordinator calls the device, if it has said so."""

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Who the device in this folder is. Raises RunError when it has not joined."""
        path = folder / _COORDINATOR
        if not path.exists():
            raise RunError(
                f"this device has not joined a fleet ({path} is missing); get a join string by "
                "`fedtiny token create` on the coordinator, then: fedtiny-agent join STRING"
            )
        try:
            fields = json.loads(_read(path))
            return cls(**{**fields, "told": Told(**fields["told"])})
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} is damaged ({error}); {_JOIN_AGAIN}") from None

    def save(self, folder: Path) -> None:
        """Write it; from here on the device has joined."""
        write_whole(folder / _COORDINATOR, json.dumps(asdict(self), indent=2).encode())

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the devices' port."""
        return join_address(self.host, self.port)

    def needs_renewal(self) -> bool:
        """Whether two thirds of the certificate's life are over, or that cannot be known.

        After a start of the machine it cannot: a board without a battery does not know how long it
        was off, so it renews once.
        """
        now = self.told.unix_now()
        return not self.insecure and (now is None or now >= self.renew_s)

    def is_expired(self) -> bool:
        """Whether the certificate has ended for certain."""
        now = self.told.unix_now()
        return not self.insecure and now is not None and now >= self.expires_s

    def channel(self, folder: Path, options: list[tuple[str, Any]]) -> grpc.Channel:
        """A channel to the coordinator, on which the certificate says who calls.

        Raises RunError when a file that it takes is damaged: gRPC would try for ever.
        """
        import grpc

        if self.insecure:
            return grpc.insecure_channel(self.address, options)
        names = _AUTHORITY, _KEY, _CERTIFICATE
        credentials = grpc.ssl_channel_credentials(*(_read_pem(folder / name) for name in names))
        return grpc.secure_channel(self.address, credentials, _named(options))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call says beside its request: without certificates, who calls."""
        return (("fedtiny-device", str(self.index)),) if self.insecure else ()


def signer(folder: Path) -> bytes:
    """The Ed25519 public key that the coordinator's manifests are signed with."""
    return _read(folder / _SIGNER)


# ---- joining -----------------------------------------------------------------------------------


def enrol(
    join: JoinString, name: str, card: DeviceCard, folder: Path, again: bool = False
) -> Identity:
    """Join a fleet: the device's key is made here, and the coordinator gives it a certificate.

    After a crash or a lost answer the device has joined or it has not; asking again then uses up
    nothing. Raises RunError when it has joined before (and not ``again``) or nobody answers,
    IdentityError when it is refused.
    """
    if (folder / _COORDINATOR).exists() and not again:
        known = Identity.load(folder)
        raise RunError(
            f"this device has joined already: it is number {known.index} at {known.address}; "
            "to join anew add --again, to leave run `fedtiny-agent leave`"
        )
    make_private(folder)
    request = pb.EnrolRequest(
        token=join.token,
        csr_der=_insecure_secret(folder) if join.insecure else _csr(folder),
        name=name,
        card=codec.write_card(card),
    )
    reply = _ask_to_join(join, request)
    return _keep(folder, join, reply)


def fetch_pinned(host: str, port: int, pin: str) -> bytes:
    """The certificate (PEM) of the enrolment port, once its public key is the one that was pinned.

    Raises IdentityError when it is another: somebody is between, or the coordinator is new.
    """
    import ssl

    try:
        pem = ssl.get_server_certificate((host, port), timeout=DEADLINE_S)
    except (OSError, ValueError) as error:
        raise _unreachable(join_address(host, port), str(error)) from None
    found = _public_key_digest(pem.encode())
    if found != pin:
        raise IdentityError(
            "pin",
            f"{join_address(host, port)} shows the key {found[:16]}..., the join string asks for "
            f"{pin[:16]}...: somebody may be between, or the coordinator was set up anew; make "
            "another string with `fedtiny token create` there",
        )
    return pem.encode()


def _ask_to_join(join: JoinString, request: pb.EnrolRequest) -> pb.EnrolReply:
    import grpc

    if join.insecure:
        channel = grpc.insecure_channel(join.address)
    else:
        root = fetch_pinned(join.host, join.port, join.pin)
        credentials = grpc.ssl_channel_credentials(root)
        channel = grpc.secure_channel(join.address, credentials, _named([]))
    with channel, _refusals(join.address):
        reply: pb.EnrolReply = services.stubs(services.ENROLMENT, channel).enrol(
            request, timeout=DEADLINE_S
        )
    return reply


def _keep(folder: Path, join: JoinString, reply: pb.EnrolReply) -> Identity:
    renew_s, expires_s = _life(reply.certificate_pem, reply.unix_s)
    identity = Identity(
        index=reply.device,
        host=reply.fleet_address or join.host,
        port=reply.fleet_port,
        insecure=join.insecure,
        renew_s=renew_s,
        expires_s=expires_s,
        told=Told.now(reply.unix_s),
        name=reply.name,
    )
    with told(folder):
        (folder / _COORDINATOR).unlink(missing_ok=True)
    _write_pem(folder / _AUTHORITY, reply.authority_pem)
    write_whole(folder / _SIGNER, reply.signer)
    _write_pem(folder / _CERTIFICATE, reply.certificate_pem)
    identity.save(folder)
    return identity


# ---- renewal -----------------------------------------------------------------------------------


def renew(folder: Path) -> Identity:
    """Get another certificate for the same key, over the present one.

    Raises IdentityError when the device is refused, RunError when nobody answers.
    """
    identity = Identity.load(folder)
    request = pb.RenewRequest(csr_der=_csr(folder))
    try:
        reply = _ask_to_renew(identity, folder, request)
    except RunError as unreachable:
        raise _tls_refusal(identity, folder) or unreachable from None
    renew_s, expires_s = _life(reply.certificate_pem, reply.unix_s)
    # Each of these fits the others as they were before: a crash between them harms nothing.
    _write_pem(folder / _CERTIFICATE, reply.certificate_pem)
    _write_pem(folder / _AUTHORITY, reply.authority_pem)
    renewed = replace(identity, renew_s=renew_s, expires_s=expires_s, told=Told.now(reply.unix_s))
    renewed.save(folder)
    return renewed


def _ask_to_renew(identity: Identity, folder: Path, request: pb.RenewRequest) -> pb.RenewReply:
    with identity.channel(folder, []) as channel, _refusals(identity.address):
        reply: pb.RenewReply = services.stubs(services.FLEET, channel).renew(
            request, timeout=DEADLINE_S, metadata=identity.metadata
        )
    return reply


def _tls_refusal(identity: Identity, folder: Path) -> IdentityError | None:
    """Why the two ends do not trust each other, if that is it: gRPC says only "Socket closed"."""
    import ssl

    context = _tls_context(folder)
    try:
        with (
            socket.create_connection((identity.host, identity.port), DEADLINE_S) as connection,
            context.wrap_socket(connection, server_hostname=SERVER_NAME) as secured,
        ):
            is_let_in = bool(secured.recv(1))  # a server that listens speaks first
    except ssl.SSLCertVerificationError as error:
        return IdentityError(
            "server",
            f"the certificate of {identity.address} is not good here: {error.verify_message}; "
            f"check this machine's clock, or {_JOIN_AGAIN}",
        )
    except OSError:
        return None
    now = identity.told.unix_now()
    if is_let_in or (now is not None and now < identity.expires_s):
        return None
    return IdentityError(
        "certificate",
        f"{identity.address} does not take this device's certificate: it has probably expired "
        f"while the device was away; {_JOIN_AGAIN}",
    )


def _tls_context(folder: Path) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=str(folder / _AUTHORITY))
        context.load_cert_chain(folder / _CERTIFICATE, folder / _KEY)
    except ssl.SSLError:
        raise RunError(
            f"{folder / _CERTIFICATE} or {_AUTHORITY} is damaged; {_JOIN_AGAIN}"
        ) from None
    context.set_alpn_protocols(["h2"])
    return context


def renew_in_child(folder: Path) -> Identity:
    """`renew` in a process of its own, which gives back the memory that making requests takes.

    Raises RunError also where that process cannot be had: a board may be short of memory.
    """
    child = _child("renew", str(folder))
    if child.returncode:
        said = child.stderr.strip() or f"it ended with {child.returncode} and said nothing"
        if child.returncode == IdentityError.exit_code:
            raise IdentityError("renewal", said)
        raise RunError(said)
    return Identity.load(folder)


def _child(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedtiny.agent.identity", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_CHILD_S
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"the process that renews the certificate was ended after {_CHILD_S:g} s"
        ) from None
    except OSError as error:
        raise RunError(
            f"no process can be started to renew the certificate: {error.strerror or error}"
        ) from None


# ---- keys --------------------------------------------------------------------------------------


def _csr(folder: Path) -> bytes:
    """A request for a certificate of the device's key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(_key(folder / _KEY), hashes.SHA256()).public_bytes(
        serialization.Encoding.DER
    )


def _key(path: Path) -> EllipticCurvePrivateKey:
    """The device's key, which is made where there is none."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not path.exists():
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write_pem(path, pem)
    key = serialization.load_pem_private_key(_read_pem(path), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _insecure_secret(folder: Path) -> bytes:
    path = folder / _SECRET
    if not path.exists():
        write_whole(path, os.urandom(32))
    return _read(path)


def _public_key_digest(pem: bytes) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = x509.load_pem_x509_certificate(pem).public_key()
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).hexdigest()


def _life(pem: bytes, now_s: float) -> tuple[float, float]:
    """When to renew the certificate that was issued now, and when it ends."""
    if not pem:
        return 0.0, 0.0
    from cryptography import x509

    expires_s = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    return now_s + (expires_s - now_s) * 2 / 3, expires_s


# ---- the rest ----------------------------------------------------------------------------------


def _named(options: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [*options, ("grpc.ssl_target_name_override", SERVER_NAME)]


@contextmanager
def _refusals(address: str) -> Iterator[None]:
    import grpc

    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
        if code in _REFUSED:
            raise IdentityError("refused", f"{address} refuses this device: {details}") from None
        raise _unreachable(address, str(fault(error))) from None


def _unreachable(address: str, why: str) -> RunError:
    return RunError(
        f"no answer from {address} ({why}); is the coordinator running, and may this machine "
        "reach that port?"
    )


def _read(path: Path) -> bytes:
    with told(path):
        return path.read_bytes()


def _write_pem(path: Path, pem: bytes) -> None:
    write_whole(path, _checksum(pem) + pem)


def _read_pem(path: Path) -> bytes:
    checksum, newline, pem = _read(path).partition(b"\n")
    if checksum + newline != _checksum(pem):
        first = "remove it, then " if path.name == _KEY else ""  # an index goes by its key
        raise RunError(f"{path} is damaged; {first}{_JOIN_AGAIN}")
    return pem


def _checksum(pem: bytes) -> bytes:
    return f"SHA-256 {hashlib.sha256(pem).hexdigest()}\n".encode()


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "renew":
        sys.stderr.write("usage: python -m fedtiny.agent.identity renew FOLDER\n")
        return 2
    try:
        renew(Path(arguments[1]))
    except FedtinyError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
