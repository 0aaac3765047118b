"""How a coordinator stands: what its operator looks at, as JSON documents.

Each function is called in the conductor's thread, so that it sees whole cycles. The keys are those
that the commands print with --json; docs/operating.md lists them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtiny.errors import ExperimentError, did_you_mean
from fedtiny.version import __version__

if TYPE_CHECKING:
    from fedtiny.server.conductor import Conductor
    from fedtiny.server.devices import Device, Token
    from fedtiny.server.hosting import Hosted

Document = dict[str, Any]

_RECENT_ROWS = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where a coordinator serves; addresses are HOST:PORT, ``metrics`` is empty without them."""

    folder: Path
    listen: str
    enrol: str
    insecure: bool = False
    metrics: str = ""


# ---- the whole -------------------------------------------------------------------------------


def status(conductor: Conductor, place: Place) -> Document:
    """The coordinator and the runs that it serves."""
    rows = conductor.devices.rows()
    busy = working(conductor)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "folder": str(place.folder.resolve()),
        "listen": place.listen,
        "enrol": place.enrol,
        "insecure": place.insecure,
        "metrics": place.metrics or None,
        "served_s": conductor.now(),
        "draining": conductor.draining,
        "failure": conductor.failure or None,
        "devices": {
            "joined": len(rows),
            "revoked": sum(device.revoked_s is not None for device in rows),
            "connected": len(busy.keys() | _waiting(conductor)),
            "working": len(busy),
        },
        "runs": [_run(hosted, conductor.now()) for hosted in conductor.hosted.values()],
    }


def _run(hosted: Hosted, now: float) -> Document:
    rounds, rules, ledger = hosted.coordinator.rounds, hosted.coordinator.rules, hosted.ledger
    total, recent = ledger.total, _recent_rows(hosted)
    return {
        "name": hosted.name,
        "id": hosted.run.hex(),
        "phase": "done" if hosted.done else rounds.phase,
        "round": rounds.round,
        "rounds": rules.rounds,
        "version": rounds.version,
        "window": rounds.window,
        "accepted": rounds.accepted,
        "cohort": rules.cohort,
        "minimum": rules.minimum,
        "leases": _live(hosted),
        "demand": hosted.demand,
        "waits_for": waits_for(hosted),
        "until_s": _finite(hosted.wakes_at - now),
        "left_s": _left_s(hosted, now),
        "drop_out": round(rounds.drop_out.share, 4),
        "updates": total.accepted + rounds.accepted,
        "refused": total.refused + ledger.open.refused,
        "late": total.late + ledger.open.late,
        "failed_rounds": ledger.failed_rounds,
        "bytes_down": total.bytes_down + ledger.open.bytes_down,
        "bytes_up": total.bytes_up + ledger.open.bytes_up,
        "reasons": {kind: dict(entry) for kind, entry in ledger.reasons.items()},
        "loss": next((row["loss"] for row in recent if row["kind"] == "round"), None),
        "evaluations": {r["name"]: r for r in reversed(recent) if r["kind"] == "evaluation"},
    }


def waits_for(hosted: Hosted) -> str:
    """What must happen before the run goes on."""
    rounds = hosted.coordinator.rounds
    if hosted.done:
        return "nothing: the run is over"
    if rounds.phase == "done":
        left = max(len(hosted.sittings.held_out) - len(s.results) for s in hosted.sittings.open)
        return f"{counted(left, 'held-out device')} to judge the model"
    missing = counted(hosted.coordinator.rules.cohort - rounds.accepted, "update")
    told = f"{missing}: {_live(hosted):,} being made, {hosted.demand:,} to be asked for"
    return told + (f" of {_named(hosted.missing)}" if hosted.missing else "")


def _named(devices: list[int]) -> str:
    """The devices that a seeded run asks, and no others."""
    shown = ", ".join(map(str, devices[:8]))
    return f"the devices {shown}, ..." if len(devices) > 8 else f"the devices {shown}"


def counted(number: int, what: str) -> str:
    """``1 device``, ``2 devices``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _live(hosted: Hosted) -> int:
    """Leases on which an update may still come."""
    return int(hosted.coordinator.rounds.leases.is_open.sum())


def _left_s(hosted: Hosted, now: float) -> float | None:
    """Seconds until the last round, if the others take as long as those so far."""
    rounds, pace = hosted.coordinator.rounds, hosted.pace
    if rounds.phase == "done" or not pace.round_s:
        return 0.0 if rounds.phase == "done" else None
    left = (hosted.coordinator.rules.rounds - rounds.round) * pace.round_s
    return max(0.0, left - (now - pace.opened_at))


def _finite(value: float) -> float | None:
    return max(0.0, value) if math.isfinite(value) else None


def _recent_rows(hosted: Hosted) -> list[Document]:
    """The last rows of the history, the newest first."""
    rows = hosted.database.connection.execute(
        "SELECT row FROM history WHERE run = ? ORDER BY seq DESC LIMIT ?",
        (hosted.run, _RECENT_ROWS),
    )
    return [json.loads(row) for (row,) in rows]


def _waiting(conductor: Conductor) -> set[int]:
    """Devices that hold a call open for work."""
    parked = conductor.parked.items()
    return {device for device, wait in parked if not wait.check_in.reply.cancelled()}


def working(conductor: Conductor) -> dict[int, str]:
    """Devices with a live lease, and the run in which they have it."""
    return {
        device: hosted.name for hosted in conductor.hosted.values() for device in hosted.holds()
    }


# ---- its devices -----------------------------------------------------------------------------


def devices(conductor: Conductor) -> Document:
    """Every device that ever joined."""
    busy, waiting = working(conductor), _waiting(conductor)
    return {
        "devices": [
            _device(conductor, device, _state(device, busy, waiting), busy.get(device.index))
            for device in conductor.devices.rows()
        ]
    }


def _device(conductor: Conductor, device: Device, state: str, run: str | None) -> Document:
    card = device.card
    return {
        "index": device.index,
        "name": device.name,
        "state": state,
        "run": run,
        "profile": card.profile,
        "ram_bytes": card.ram_bytes,
        "flash_bytes": card.flash_bytes,
        "macs_per_s": card.macs_per_s,
        "agent": device.agent,
        "joined_s": device.joined_s,
        "seen_s": device.seen_s,
        "revoked_s": device.revoked_s,
        "figures": conductor.devices.figures(device.index),
        "misfits": {
            name: list(reasons)
            for name, hosted in conductor.hosted.items()
            if (reasons := hosted.misfits(card))
        },
    }


def _state(device: Device, busy: Container[int], waiting: Container[int]) -> str:
    if device.revoked_s is not None:
        return "revoked"
    if device.index in busy:
        return "working"
    return "waiting" if device.index in waiting else "away"


def tokens(conductor: Conductor) -> Document:
    """The tokens with which a device can still join; their secrets are not kept."""
    return {"tokens": [token_document(token) for token in conductor.devices.tokens(time.time())]}


def token_id(token: Token) -> str:
    """What an operator calls the token; it lets nobody join."""
    return token.hash.hex()[:12]


def token_document(token: Token) -> Document:
    """One token, without its secret."""
    return {
        "id": token_id(token),
        "label": token.label,
        "uses_left": token.uses_left,
        "expires_s": token.expires_s,
    }


# ---- its runs and their models ---------------------------------------------------------------


def runs(conductor: Conductor) -> Document:
    """Every run in the database, served now or not."""
    rows = conductor.database.connection.execute(
        "SELECT name, id, digest, started_s, folder, "
        "(SELECT count(*) FROM commits WHERE run = id), "
        "(SELECT max(version) FROM versions WHERE run = id) FROM runs ORDER BY started_s, name"
    )
    return {
        "runs": [
            {
                "name": name,
                "id": run.hex(),
                "experiment": digest,
                "started_s": started_s,
                "modules": folder,
                "served": name in conductor.hosted,
                "rounds_committed": rounds,
                "version": version,
                "folder": str(conductor.folder / "runs" / name),
            }
            for name, run, digest, started_s, folder, rounds, version in rows
        ]
    }


def models(conductor: Conductor, run: str) -> Document:
    """The published models of a run, oldest first."""
    hosted = hosted_run(conductor, run)
    rows = hosted.database.connection.execute(
        "SELECT version, digest, made_s, signature, round FROM versions LEFT JOIN "
        "(SELECT version, min(round) AS round FROM commits WHERE run = ? AND version > 0 "
        "GROUP BY version) USING (version) WHERE run = ? ORDER BY version",
        (hosted.run, hosted.run),
    )
    current = hosted.coordinator.rounds.version
    return {
        "run": hosted.name,
        "parameters": hosted.work.layout.size,
        "models": [
            {
                "version": version,
                "round": round,
                "digest": digest.hex(),
                "made_s": made_s,
                "signature": signature.hex(),
                "current": version == current,
            }
            for version, digest, made_s, signature, round in rows
        ],
    }


def hosted_run(conductor: Conductor, name: str) -> Hosted:
    """The run of that name, or the only one."""
    if name in conductor.hosted:
        return conductor.hosted[name]
    if not name and len(conductor.hosted) == 1:
        return next(iter(conductor.hosted.values()))
    said = f"no run {name!r} is served; " if name else "name the run; "
    hint = did_you_mean(name, conductor.hosted) if name else ""
    raise ExperimentError(f"{said}{hint}there are {', '.join(conductor.hosted)}")
