"""What `fedtiny-agent status` and `limits` print for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fedtiny.agent.figures import traffic
from fedtiny.agent.limits import NO_LIMIT, Limits
from fedtiny.agent.reports import VisitReport

Document = dict[str, Any]


def status_lines(document: Document) -> Iterator[str]:
    """The document of a device, a line for each that there is something to say about."""
    return _aligned(dict(_facts(document)))


def limit_lines(limits: Limits) -> Iterator[str]:
    """The owner's limits, one a line."""
    return _aligned(limits.lines())


def _aligned(facts: dict[str, str]) -> Iterator[str]:
    width = max(map(len, facts))
    return (f"{name:{width}}  {value}" for name, value in facts.items())


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    called = f" ({document['name']})" if document["name"] else ""
    yield "device", f"{document['device']}{called} of {document['address']}"
    yield "state", _state(document)
    yield "version", f"fedtiny {document['version']}, protocol {document['protocol']}"
    if document["expires_s"] is not None:
        yield "certificate", f"ends at {_when(document['expires_s'])}; renewed before"
    yield "folder", document["folder"]
    if document["trained"]:
        yield "model", f"trained in round {document['trained']['round']:,}"
    if document["held"]:
        yield "to send", f"the update of round {document['held']['round']:,}"
    if document["last"]:
        yield "last visit", _visit(document["last"])
    up, down = (_bytes(document["today"], way) for way in ("_up", "_down"))
    if up or down:
        yield "today", f"{traffic(up)} sent, {traffic(down)} received"
    limits = Limits(**document["limits"]).lines().items()
    yield (
        "limits",
        ", ".join(f"{name} {told}" for name, told in limits if told != NO_LIMIT) or "none",
    )


def _state(document: Document) -> str:
    if document["process"] is None:
        return "not running; start it: fedtiny-agent run --data SOURCE"
    return f"{document['state'] or 'runs'} (process {document['process']})"


def _visit(last: Document) -> str:
    """Without when there is more: it is over by now, or `state` says so."""
    return VisitReport(**last).line().rpartition(" · ")[0]


def _bytes(today: Document, way: str) -> float:
    return float(sum(nbytes for name, nbytes in today.items() if name.endswith(way)))


def _when(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))
