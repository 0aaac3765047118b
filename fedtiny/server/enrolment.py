"""How a device comes to a certificate: by a token at first, later by the certificate it has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedtiny.errors import IdentityError
from fedtiny.server import certificates, crash_points
from fedtiny.server.authority import Authority
from fedtiny.server.devices import Devices, check_name
from fedtiny.wire import codec
from fedtiny.wire.pb import fleet_pb2 as pb

_MOST_PEERS = 10_000


@dataclass(slots=True)
class Attempt:
    """One attempt to enrol, as it turns out: whether a device came ``again``, by a known key."""

    again: bool = False


def enrol(
    devices: Devices,
    authority: Authority,
    request: pb.EnrolRequest,
    now_unix: float,
    insecure: bool = False,
    attempt: Attempt | None = None,
) -> pb.EnrolReply:
    """A device's index and certificate, for one use of its token.

    Asked again with the same key and token, because the answer was lost, it gives the same index
    and uses nothing up. A device that was away for longer than its certificate lives keeps its
    index too: it shows the same key with another token. Without certificates (``insecure``)
    ``csr_der`` is any secret that the device keeps. The ``attempt`` learns whether the key was
    known. Raises IdentityError.

    The caller commits before it answers, and adds the address of the fleet's port.
    """
    # All that may be refused comes before the first write: what is written is committed.
    token = devices.find_token(request.token, now_unix)
    key = _secret_digest(request.csr_der) if insecure else _key_digest(request.csr_der)
    card = codec.read_card(request.card)
    known = devices.of_key(key)
    if known is None:
        check_name(request.name)
    else:
        devices.check_may_take_part(known.index)
    if attempt is not None:
        attempt.again = known is not None
    crash_points.reach("enrol.before")
    if known is None or known.token != token.hash:
        devices.use_token(request.token, now_unix)
    if known is None:
        index = devices.join(request.name, card, "", now_unix, key, token.hash)
    else:
        index = known.index
        devices.rejoin(index, card, token.hash)
    pem = b"" if insecure else _certify(devices, authority, index, request.csr_der, now_unix)
    crash_points.reach("enrol.after")
    return pb.EnrolReply(
        device=index,
        certificate_pem=pem,
        authority_pem=b"".join(authority.bundle),
        signer=authority.signer.public,
        unix_s=now_unix,
        name=devices[index].name,
    )


def renew(
    devices: Devices, authority: Authority, device: int, request: pb.RenewRequest, now_unix: float
) -> pb.RenewReply:
    """Another certificate for the key that the device joined with. Raises IdentityError."""
    devices.check_may_take_part(device)
    known = devices.of_key(_key_digest(request.csr_der))
    if known is None or known.index != device:
        raise IdentityError(
            "key",
            f"device {device} joined with another key; join again with "
            "`fedtiny-agent join --again`",
        )
    return pb.RenewReply(
        certificate_pem=_certify(devices, authority, device, request.csr_der, now_unix),
        authority_pem=b"".join(authority.bundle),
        unix_s=now_unix,
    )


def _certify(
    devices: Devices, authority: Authority, index: int, csr_der: bytes, now_unix: float
) -> bytes:
    certificate = authority.issue(csr_der, index, now_unix)
    devices.certify(index, certificate)
    return certificate.pem


def _key_digest(csr_der: bytes) -> bytes:
    return certificates.key_digest(certificates.read_csr(csr_der))


def _secret_digest(secret: bytes) -> bytes:
    if len(secret) < 16:
        raise IdentityError(
            "csr", f"a secret of {len(secret)} B names no device; send 16 B", "INVALID_ARGUMENT"
        )
    return hashlib.sha256(secret).digest()


class Attempts:
    """How often one address may fail to enrol: ``burst`` times, then ``per_s`` times a second.

    To enrol again with a known key counts as well, for each time writes a certificate. First
    successes cost nothing: a whole class of devices may sit behind one address.
    """

    def __init__(self, per_s: float = 5.0, burst: float = 20.0) -> None:
        self.per_s, self.burst = per_s, burst
        self._spent: dict[str, tuple[float, float]] = {}  # by host: failures not yet made good, at

    @contextmanager
    def of(self, peer: str, now: float) -> Iterator[Attempt]:
        """Count what fails or is repeated inside against gRPC's ``peer``.

        Raises IdentityError when it had too many.
        """
        host = peer.rpartition(":")[0] or peer
        spent = self._spent_by(host, now)
        if spent > self.burst - 1:
            wait_s = (spent - self.burst + 1) / self.per_s
            raise IdentityError(
                "rate",
                f"too many refused or repeated attempts from this address; wait {wait_s:.1f} s",
                "RESOURCE_EXHAUSTED",
            )
        attempt = Attempt()
        try:
            yield attempt
        except IdentityError:
            self._charge(host, now)
            raise
        if attempt.again:
            self._charge(host, now)

    def _spent_by(self, host: str, now: float) -> float:
        spent, at = self._spent.get(host, (0.0, now))
        return max(0.0, spent - max(0.0, now - at) * self.per_s)

    def _charge(self, host: str, now: float) -> None:
        # Read anew: while this attempt waited for its answer, others may have failed.
        spent = self._spent_by(host, now) + 1
        _, at = self._spent.pop(host, (0.0, now))
        if len(self._spent) >= _MOST_PEERS:
            del self._spent[next(iter(self._spent))]  # the one whose last failure is oldest
        self._spent[host] = (spent, max(at, now))
