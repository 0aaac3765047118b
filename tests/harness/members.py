"""Devices that have joined: over the port of enrolment, or straight into a coordinator's folder."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedtiny.server.authority import Authority
from fedtiny.server.devices import Devices
from fedtiny.server.enrolment import enrol
from fedtiny.server.storage import Database
from fedtiny.values import DeviceCard
from fedtiny.wire import codec, services
from fedtiny.wire.joining import JoinString
from fedtiny.wire.pb import fleet_pb2 as pb

CARD = DeviceCard("pi-4", 1 << 28, 1 << 28, 1e9, 1e7, 1e7)
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 250),
)
_NAMED = ("grpc.ssl_target_name_override", "fedtiny")
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Member:
    """A device's index and, where there are certificates, its key and theirs (PEM)."""

    device: int
    key_pem: bytes = b""
    certificate_pem: bytes = b""
    authority_pem: bytes = b""

    def connect(self, port: int) -> grpc.aio.Channel:
        """A connection that no other device shares."""
        address = f"127.0.0.1:{port}"
        if not self.certificate_pem:
            return grpc.aio.insecure_channel(address, _OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            self.authority_pem, self.key_pem, self.certificate_pem
        )
        return grpc.aio.secure_channel(address, credentials, (*_OPTIONS, _NAMED))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """How a device names itself where there are no certificates."""
        return () if self.certificate_pem else (("fedtiny-device", str(self.device)),)


@dataclass(frozen=True, slots=True)
class Applicant:
    """A device that has not joined yet. When it asks again, it shows the same key."""

    name: str
    key_pem: bytes
    csr_der: bytes

    @classmethod
    def of(cls, name: str) -> Applicant:
        """With a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return cls(
            name,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER),
        )

    def request(self, token: str) -> pb.EnrolRequest:
        return pb.EnrolRequest(
            token=token, csr_der=self.csr_der, name=self.name, card=codec.write_card(CARD)
        )

    def member(self, reply: pb.EnrolReply) -> Member:
        if not reply.certificate_pem:
            return Member(reply.device)
        return Member(reply.device, self.key_pem, reply.certificate_pem, reply.authority_pem)

    async def join(self, text: str, within_s: float = 30.0) -> Member:
        """Through the port of enrolment, again and again until there is an answer."""
        join = JoinString.parse(text)
        async with asyncio.timeout(within_s):
            while True:
                try:
                    return self.member(await self._ask(join))
                except (OSError, grpc.aio.AioRpcError) as error:
                    if getattr(error, "code", lambda: None)() not in _NO_ANSWER:
                        raise
                await asyncio.sleep(0.05)

    async def _ask(self, join: JoinString) -> pb.EnrolReply:
        async with await _enrolment_channel(join) as channel:
            calls = services.stubs(services.ENROLMENT, channel)
            reply: pb.EnrolReply = await calls.enrol(self.request(join.token), timeout=5)
            return reply


_NO_ANSWER = (None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def _enrolment_channel(join: JoinString) -> grpc.aio.Channel:
    if join.insecure:
        return grpc.aio.insecure_channel(join.address, _OPTIONS)
    address = join.host, join.port
    pem = await asyncio.to_thread(ssl.get_server_certificate, address, timeout=5)
    key = x509.load_pem_x509_certificate(pem.encode()).public_key()
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert hashlib.sha256(spki).hexdigest() == join.pin
    credentials = grpc.ssl_channel_credentials(pem.encode())
    return grpc.aio.secure_channel(join.address, credentials, (*_OPTIONS, _NAMED))


def enlist(folder: Path, count: int, names: str = "device") -> list[Member]:
    """So many devices with certificates, written into the folder of a coordinator that is not
    running."""
    return list(_enlist(folder, count, names))


def _enlist(folder: Path, count: int, names: str) -> Iterator[Member]:
    database, authority = Database(folder), Authority.open(folder / "authority")
    devices, now = Devices(database.connection), time.time()
    token = devices.create_token("swarm", _DAY_S, count, now)
    for number in range(count):
        applicant = Applicant.of(f"{names}-{number}")
        yield applicant.member(enrol(devices, authority, applicant.request(token), now))
    database.commit()
    database.close()


def register_absent(folder: Path, count: int) -> None:
    """So many devices that have joined and are not there: no keys, no certificates."""
    database = Database(folder)
    devices, now = Devices(database.connection), time.time()
    for number in range(count):
        devices.join(f"absent-{number}", CARD, "", now)
    database.commit()
    database.close()
