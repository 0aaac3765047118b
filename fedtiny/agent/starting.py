"""A joined device put together from its folder, and what there is to say about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fedtiny.agent.agent import Agent, VisitReport
from fedtiny.agent.blobs import Blobs
from fedtiny.agent.grpc_link import GrpcLink, Peer
from fedtiny.agent.identity import Identity, renew_in_child
from fedtiny.agent.limits import Limits, Traffic
from fedtiny.agent.sources import MOST_BYTES, open_source
from fedtiny.agent.store import Store
from fedtiny.errors import IdentityError, RunError
from fedtiny.version import __version__


def open_agent(store: Store, data: str, report: Callable[[VisitReport | str], None]) -> Agent:
    """The agent of a folder that has joined, with the source that ``data`` names."""
    identity, limits = Identity.load(store.folder), Limits.load(store)
    most_bytes = min(MOST_BYTES, limits.ram_bytes or MOST_BYTES)
    source = open_source(data, identity.index, most_bytes)
    link = GrpcLink(Peer.of(store.folder), Blobs(store), _traffic(store, identity))
    link.agent = f"fedtiny {__version__}"
    upkeep = Renewal(store, identity, link)
    return Agent(link, store, source, limits, report=report, upkeep=upkeep)


class Renewal:
    """Renews the certificate when two thirds of its life are over; the channel follows."""

    EVERY_S = 60.0

    def __init__(self, store: Store, identity: Identity, link: GrpcLink) -> None:
        self._store, self._identity, self._link = store, identity, link

    def __call__(self) -> None:
        """Raises RunError when it is time and nobody answers, IdentityError when it is over."""
        if not self._identity.needs_renewal():
            return
        try:
            self._identity = renew_in_child(self._store.folder)
        except RunError as error:
            if self._identity.is_expired():
                raise IdentityError(
                    "expired",
                    f"the certificate of this device has ended ({error}); get a new join string, "
                    "then: fedtiny-agent join --again STRING",
                ) from error
            raise
        self._link.reconnect()


def _traffic(store: Store, identity: Identity) -> Traffic:
    """Days are the coordinator's; without its time, those of this machine's clock."""
    return Traffic(store, lambda: identity.told.unix_now() or time.time())


def status_of(store: Store) -> dict[str, Any]:
    """What `fedtiny-agent status` shows. Raises RunError when the device has not joined."""
    identity = Identity.load(store.folder)
    held, trained = store.held(), store.trained()
    return {
        "device": identity.index,
        "address": identity.address,
        "folder": str(store.folder),
        "process": store.running,
        "limits": asdict(Limits.load(store)),
        "today": _traffic(store, identity).today,
        "last": store.document("last"),
        "held": {"round": held.update.round} if held else {},
        "trained": {"round": trained.round, "program": trained.program.hex()} if trained else {},
    }
