"""A joined device put together from its folder, and what there is to say about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fedtiny.agent.agent import Agent
from fedtiny.agent.blobs import Blobs
from fedtiny.agent.grpc_link import GrpcLink, Peer
from fedtiny.agent.identity import Identity, renew_in_child
from fedtiny.agent.limits import Limits, Traffic
from fedtiny.agent.reports import VisitReport
from fedtiny.agent.sources import MOST_BYTES, open_source
from fedtiny.agent.store import Store
from fedtiny.errors import IdentityError, RunError
from fedtiny.version import __version__
from fedtiny.wire import codec


def open_agent(store: Store, data: str, report: Callable[[VisitReport | str], None]) -> Agent:
    """The agent of a folder that has joined, with the source that ``data`` names."""
    membership, limits = Membership(store), Limits.load(store)
    source = open_source(data, membership.identity.index, limits.ram_bytes or MOST_BYTES)
    traffic = Traffic(store, membership.unix_s)
    link = GrpcLink(Peer.of(store.folder), Blobs(store), traffic)
    link.agent = f"fedtiny {__version__}"

    def upkeep() -> None:
        if membership.renewed():
            link.reconnect()

    return Agent(link, store, source, limits, report=report, upkeep=upkeep)


class Membership:
    """The identity of a device over time: its certificate is renewed at two thirds of its life."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.identity = Identity.load(store.folder)

    def unix_s(self) -> float:
        """The coordinator's time; while that is not known, this machine's."""
        return self.identity.told.unix_now() or time.time()

    def renewed(self) -> bool:
        """Renew the certificate if it is time; whether it was.

        Raises RunError when nobody answers, IdentityError when the certificate has ended.
        """
        if not self.identity.needs_renewal():
            return False
        try:
            self.identity = renew_in_child(self._store.folder)
        except RunError as error:
            if self.identity.is_expired():
                raise IdentityError(
                    "expired",
                    f"the certificate of this device has ended ({error}); get a new join string, "
                    "then: fedtiny-agent join --again STRING",
                ) from error
            raise
        return True


def status_of(store: Store, state: str | None = None) -> dict[str, Any]:
    """What `fedtiny-agent status` shows; None is what there is nothing to say about.

    ``state`` is what the agent is at, where one runs. Raises RunError when the device has not
    joined.
    """
    membership = Membership(store)
    identity = membership.identity
    held, trained = store.held(), store.trained()
    return {
        "device": identity.index,
        "name": identity.name or None,
        "address": identity.address,
        "folder": str(store.folder),
        "process": store.running or None,
        "state": state,
        "version": __version__,
        "protocol": codec.PROTOCOL,
        "expires_s": None if identity.insecure else identity.expires_s,
        "limits": asdict(Limits.load(store)),
        "today": Traffic(store, membership.unix_s).today,
        "last": store.document("last") or None,
        "held": {"round": held.update.round} if held else None,
        "trained": {"round": trained.round, "program": trained.program.hex()} if trained else None,
    }
