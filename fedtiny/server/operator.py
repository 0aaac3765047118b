"""What an operator does to a coordinator, and the service over which it is asked.

Each call is one function in the conductor's thread: what it changes is durable before it is
answered.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedtiny.errors import ExperimentError, FedtinyError
from fedtiny.server import documents
from fedtiny.server.addresses import read_address
from fedtiny.server.conductor import Unavailable
from fedtiny.server.documents import Document, Place, hosted_run
from fedtiny.wire.joining import JoinString
from fedtiny.wire.pb import admin_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.server.conductor import Conductor

_MOST_EXPIRES_S = 366 * 86400.0


def create_token(
    conductor: Conductor, place: Place, label: str, expires_in_s: float, uses: int, host: str
) -> Document:
    """A new token, in the one string that a device needs to join."""
    if not 0 < expires_in_s <= _MOST_EXPIRES_S:
        days = _MOST_EXPIRES_S / 86400
        raise ExperimentError(f"a token lives up to {days:g} days; {expires_in_s:g} s are not that")
    if uses < 1:
        raise ExperimentError(f"a token with {uses} uses is of no use; give --uses 1 or more")
    if place.insecure and host not in ("", "localhost", "127.0.0.1", "::1"):
        raise ExperimentError(f"without certificates only this machine can join, not {host}")
    if host and not _is_host(host):
        raise ExperimentError(
            f"{host!r} names no machine; give --host a name or an address without a port, such as "
            "fleet.local or 192.168.1.10"
        )
    now = time.time()
    bound, port = read_address(place.enrol)
    pin = "" if place.insecure else conductor.authority.pin
    secret = conductor.devices.create_token(label, expires_in_s, uses, now)
    join = JoinString(
        host or _reachable(bound), port, pin, secret, round(now + expires_in_s), place.insecure
    )
    return {"join": str(join), "label": label, "uses": uses, "expires_s": join.expires_s}


def _is_host(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", text) is not None


def _reachable(host: str) -> str:
    """The address at which others find this machine, where it listens on all it has."""
    if host not in ("0.0.0.0", "::"):
        return host
    # Connecting a datagram socket sends nothing: it only asks which way a packet would go.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def revoke_token(conductor: Conductor, name: str) -> Document:
    """Nobody joins with the token from now on; who has joined stays."""
    tokens = conductor.devices.tokens(time.time())
    found = [token for token in tokens if name in (token.label, documents.token_id(token))]
    if len(found) != 1:
        several = f"{len(found)} tokens are called" if found else "no token is called"
        raise ExperimentError(f"{several} {name!r}; name an id that `fedtiny token list` shows")
    conductor.devices.revoke_token(found[0].hash)
    return documents.token_document(found[0])


def revoke(conductor: Conductor, name: str) -> Document:
    """Shut a device out, from its next call on.

    ``namesakes`` are the devices that take part and whose names were made of its own.
    """
    before = _revoked(conductor)
    index = conductor.revoke(name)
    device, gone = conductor.devices[index], _revoked(conductor)
    others = [other.name for other in conductor.devices.rows() if other.index not in gone]
    return {
        "index": index,
        "name": device.name,
        "revoked_s": device.revoked_s,
        "already": index in before,
        "namesakes": [o for o in others if re.fullmatch(re.escape(device.name) + r"-\d+", o)],
    }


def _revoked(conductor: Conductor) -> set[int]:
    return {device.index for device in conductor.devices.rows() if device.revoked_s is not None}


def rollback(conductor: Conductor, run: str, version: int) -> Document:
    """Publish an older model as the newest; what the open round has is given up."""
    hosted = hosted_run(conductor, run)
    newest = hosted.coordinator.rounds.version
    if version >= newest:
        raise ExperimentError(
            f"version {version:,} is no older model of {hosted.name}: the newest is {newest:,}; "
            f"`fedtiny models {hosted.name}` lists them"
        )
    conductor.rollback(hosted, version)
    return {"run": hosted.name, "from": version, "version": hosted.coordinator.rounds.version}


def drain(conductor: Conductor) -> Document:
    """Give no more work, and let updates come in."""
    conductor.draining = True
    return {"draining": True, "working": len(documents.working(conductor))}


# ---- over the socket -------------------------------------------------------------------------


class OperatorService:
    """The servicer: each call is one function above, in a cycle of the conductor.

    ``stop`` is told within how many seconds the coordinator shall have ended.
    """

    def __init__(self, conductor: Conductor, place: Place, stop: Callable[[float], None]) -> None:
        self._conductor, self._place, self._stop = conductor, place, stop

    async def status(self, request: pb.StatusRequest, context: Any) -> pb.Document:
        """How the coordinator and its runs stand."""
        return await self._told(context, lambda c: documents.status(c, self._place))

    async def devices(self, request: pb.DevicesRequest, context: Any) -> pb.Document:
        """The devices."""
        return await self._told(context, documents.devices)

    async def runs(self, request: pb.RunsRequest, context: Any) -> pb.Document:
        """The runs."""
        return await self._told(context, documents.runs)

    async def models(self, request: pb.ModelsRequest, context: Any) -> pb.Document:
        """The models of a run."""
        return await self._told(context, lambda c: documents.models(c, request.run))

    async def create_token(self, request: pb.TokenRequest, context: Any) -> pb.Document:
        """A join string."""
        asked = request.label, request.expires_in_s, request.uses, request.host
        return await self._told(context, lambda c: create_token(c, self._place, *asked))

    async def tokens(self, request: pb.TokensRequest, context: Any) -> pb.Document:
        """The tokens that can be used."""
        return await self._told(context, documents.tokens)

    async def revoke_token(self, request: pb.RevokeTokenRequest, context: Any) -> pb.Document:
        """One token less."""
        return await self._told(context, lambda c: revoke_token(c, request.token))

    async def revoke(self, request: pb.RevokeRequest, context: Any) -> pb.Document:
        """One device less."""
        return await self._told(context, lambda c: revoke(c, request.device))

    async def rollback(self, request: pb.RollbackRequest, context: Any) -> pb.Document:
        """An older model becomes the newest."""
        return await self._told(context, lambda c: rollback(c, request.run, request.version))

    async def drain(self, request: pb.DrainRequest, context: Any) -> pb.Document:
        """End after what is under way."""
        told = await self._told(context, drain)
        self._stop(request.within_s)
        return told

    async def _told(self, context: Any, ask: Callable[[Conductor], Document]) -> pb.Document:
        try:
            document = await self._conductor.call(ask)
        except (FedtinyError, Unavailable) as error:
            await context.abort(_status_of(error), str(error))
        return pb.Document(json=json.dumps(document).encode())


def _status_of(error: Exception) -> Any:
    """What `asking` makes an error of again."""
    from grpc import StatusCode

    wrong = isinstance(error, ExperimentError)
    return StatusCode.INVALID_ARGUMENT if wrong else StatusCode.FAILED_PRECONDITION
