"""What may keep a coordinator from serving, found before its devices find it.

Each check is a function that yields what it found, so that a slow one does not hold up the rest.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from fedtiny.engine import native
from fedtiny.registry.match import misfits
from fedtiny.server.addresses import Address, obstacle, read_address
from fedtiny.server.storage import FILE, read_only
from fedtiny.version import __version__
from fedtiny.wire.joining import join_address

if TYPE_CHECKING:
    from sqlite3 import Connection

    from fedtiny.experiment.workload import Workload

OK, WARN, FAIL = "ok", "warn", "fail"

LEAST_VERSIONS = {"grpcio": "1.76", "protobuf": "6.31.1", "cryptography": "44"}
"""The oldest releases that fedtiny was run with."""
_LEAST_DISK_BYTES, _ENOUGH_DISK_BYTES = 64 * 2**20, 2**30
_SLOW_SYNC_S = 0.05
_SYNCS, _SYNC_BYTES = 20, 4096
_OTHER_FILES = 64
"""Descriptors that a coordinator needs besides one a connected device."""
_CLOCK_SLACK_S = 60.0
_SOON_S = 30 * 86400.0
_DEVICE_SOON_S = 86400.0
_CERTIFICATES = ("ca.pem", "server.pem", "enrolment.pem")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; ``state`` is OK, WARN or FAIL, the last two with a remedy."""

    check: str
    state: str
    told: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a coordinator serves, or shall serve: its folder, addresses (HOST:PORT) and runs.

    ``metrics`` is empty where Prometheus asks nowhere.
    """

    folder: Path
    listen: str
    enrol: str
    serving: bool
    runs: tuple[Workload, ...] = ()
    metrics: str = ""


def examine(site: Site) -> Iterator[Finding]:
    """Everything that was looked at, in the order in which a coordinator needs it."""
    yield from _libraries()
    yield from _runtime()
    yield from _clock(site.folder)
    yield from _rights(site.folder)
    yield from _space(site)
    yield from _speed(site.folder)
    yield from _ports(site)
    yield from _certificates(site.folder / "authority")
    devices = read_only(site.folder) if (site.folder / FILE).exists() else None
    yield from _open_files(site, devices)
    if devices is not None:
        yield from _agents(devices)
        yield from _device_certificates(devices)
        for run in site.runs:
            yield from _memory(run, devices)


# ---- this machine ----------------------------------------------------------------------------


def _libraries() -> Iterator[Finding]:
    for name, least in LEAST_VERSIONS.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            remedy = "pip install 'fedtiny[coordinator]'"
            yield Finding(name, FAIL, "is not installed", remedy)
            continue
        old = _numbers(found) < _numbers(least)
        remedy = f"pip install '{name}>={least}'" if old else ""
        yield Finding(name, FAIL if old else OK, f"{found}, at least {least} is needed", remedy)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".") if part.isdigit())


def _runtime() -> Iterator[Finding]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        there = native.available()
    if there:
        yield Finding("runtime", OK, "the native runtime is there")
    else:
        yield Finding("runtime", WARN, str(told[0].message), native.REBUILD)


def _clock(folder: Path) -> Iterator[Finding]:
    """A clock cannot be before what it has already dated."""
    dated = [Path(__file__), *(folder.glob("*") if folder.is_dir() else ())]
    newest = max(dated, key=lambda path: path.stat().st_mtime)
    behind_s = newest.stat().st_mtime - time.time()
    today = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if behind_s <= _CLOCK_SLACK_S:
        yield Finding("clock", OK, today)
        return
    told = f"{today} is {behind_s:,.0f} s before the last change of {newest.name}"
    yield Finding("clock", FAIL, told, "set the clock: timedatectl set-ntp true")


# ---- the folder ------------------------------------------------------------------------------


def _rights(folder: Path) -> Iterator[Finding]:
    """Who can read the folder can pass for the coordinator: its keys lie there."""
    if folder.is_file():
        remedy = "name a folder with --dir; one that is not there is made"
        yield Finding("folder", FAIL, f"{folder} is a file", remedy)
    elif folder.is_dir():
        mode = stat.S_IMODE(folder.stat().st_mode)
        wide = bool(mode & (stat.S_IRWXG | stat.S_IRWXO))
        told = f"{folder} is open to {'others' if wide else 'its owner alone'} ({mode:04o})"
        yield Finding("folder", WARN if wide else OK, told, f"chmod 700 {folder}" if wide else "")


def _space(site: Site) -> Iterator[Finding]:
    free = shutil.disk_usage(_existing(site.folder)).free
    needed = sum(_journal_bytes(run) for run in site.runs)
    told = f"{free / 1e9:,.1f} GB free"
    if needed:
        told += f", {needed / 1e6:,.3g} MB will be written"
    remedy = f"free some, or choose a folder on another disk than {site.folder} with --dir"
    least, enough = (limit + needed for limit in (_LEAST_DISK_BYTES, _ENOUGH_DISK_BYTES))
    state = FAIL if free < least else WARN if free < enough else OK
    yield Finding("disk space", state, told, remedy if state != OK else "")


def _journal_bytes(run: Workload) -> int:
    # A committed round keeps the sums of its updates, eight bytes a parameter.
    return run.experiment.run.rounds * 2 * run.layout.nbytes


def _speed(folder: Path) -> Iterator[Finding]:
    """Nothing is answered before it is on the disk: its latency is the fleet's."""
    where = _existing(folder)
    try:
        middle_s = median(_sync_times(where))
    except OSError as error:
        told = f"{where} cannot be written: {error.strerror}"
        yield Finding("disk speed", FAIL, told, "choose a folder that can be written with --dir")
        return
    told = f"{1e3 * middle_s:.3g} ms to write and sync {_SYNC_BYTES:,} B"
    slow = middle_s > _SLOW_SYNC_S
    remedy = f"more than {1e3 * _SLOW_SYNC_S:g} ms: put the folder on a faster disk" if slow else ""
    yield Finding("disk speed", WARN if slow else OK, told, remedy)


def _sync_times(folder: Path) -> Iterator[float]:
    with TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(bytes(_SYNC_BYTES))
            os.fsync(file)
            yield time.perf_counter() - began


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


# ---- the network -----------------------------------------------------------------------------


def _ports(site: Site) -> Iterator[Finding]:
    ports = {"port": site.listen, "enrolment port": site.enrol, "metrics port": site.metrics}
    look = _answering if site.serving else _free
    for name, text in ports.items():
        if text:
            address = read_address(text)
            yield look(name, address, join_address(*address))


def _answering(name: str, address: Address, at: str) -> Finding:
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError as error:
        remedy = "see whether a firewall is in between, then restart the coordinator"
        return Finding(name, FAIL, f"{at} does not answer: {error}", remedy)
    return Finding(name, OK, f"{at} answers")


def _free(name: str, address: Address, at: str) -> Finding:
    if found := obstacle(address):
        return Finding(name, FAIL, f"{at} cannot be had: {found.told}", found.remedy)
    return Finding(name, OK, f"{at} is free")


def _open_files(site: Site, devices: Connection | None) -> Iterator[Finding]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    joined = len(_taking_part(devices)) if devices is not None else 0
    expected = max([joined, *(run.experiment.fleet.devices for run in site.runs)])
    needed = expected + _OTHER_FILES
    told = f"{limit:,} may be open, {expected:,} devices need {needed:,}"
    short = limit < needed
    remedy = f"ulimit -n {needed}, or LimitNOFILE={needed} in its systemd unit" if short else ""
    yield Finding("open files", WARN if short else OK, told, remedy)


# ---- who is whom -----------------------------------------------------------------------------


def _certificates(folder: Path) -> Iterator[Finding]:
    """Those of the coordinator, by file."""
    from cryptography import x509

    now = time.time()
    for path in (folder / name for name in _CERTIFICATES):
        if not path.exists():
            continue
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        left_s = certificate.not_valid_after_utc.timestamp() - now
        state = FAIL if left_s <= 0 else WARN if left_s < _SOON_S else OK
        told = f"{path.name} ends in {left_s / 86400:,.0f} days"
        remedy = "" if state == OK else "restart the coordinator, which renews it"
        yield Finding("certificate", state, told, remedy)


def _device_certificates(devices: Connection) -> Iterator[Finding]:
    rows = devices.execute(
        "SELECT name, max(not_after_s) FROM devices JOIN certificates ON device = idx "
        "WHERE revoked_s IS NULL GROUP BY idx"
    ).fetchall()
    if not rows:
        return
    now = time.time()
    ended = [name for name, end_s in rows if end_s <= now]
    soon = [name for name, end_s in rows if now < end_s < now + _DEVICE_SOON_S]
    told = f"those of {len(rows) - len(ended):,} devices are valid"
    if ended or soon:
        told += f"; {_some('ended', ended)}{_some('end within a day', soon)}"
    remedy = "join those again with a new token; switch on the others, which renew theirs"
    late = bool(ended or soon)
    yield Finding("certificates of devices", WARN if late else OK, told, remedy if late else "")


def _some(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}. " if names else ""


def _taking_part(devices: Connection) -> list[tuple[str, bytes, str]]:
    """Name, card and agent of each device that was not revoked."""
    return devices.execute(
        "SELECT name, card, agent FROM devices WHERE revoked_s IS NULL"
    ).fetchall()


def _agents(devices: Connection) -> Iterator[Finding]:
    """Agents of another release: the protocol bends, but each release repairs something."""
    counts = Counter(agent or "unknown" for _, _, agent in _taking_part(devices))
    others = {agent: n for agent, n in counts.items() if __version__ not in agent}
    told = ", ".join(f"{n:,} x {agent}" for agent, n in counts.most_common(4)) or "none has joined"
    remedy = f"update them to {__version__}: pip install -U fedtiny, then restart the agent"
    yield Finding("agents", WARN if others else OK, told, remedy if others else "")


def _memory(run: Workload, devices: Connection) -> Iterator[Finding]:
    """Whether the devices that have joined can run what the experiment is compiled to."""
    from fedtiny.wire import codec
    from fedtiny.wire.pb import fleet_pb2

    name = Path(run.experiment.origin.name).stem
    cards = [
        codec.read_card(fleet_pb2.Card.FromString(card)) for _, card, _ in _taking_part(devices)
    ]
    programs = [profile.program for profile in run.profiles if profile.program]
    reasons = [
        [r for program in programs for r in misfits(program.footprint, card)]
        for card in cards
        if not any(not misfits(program.footprint, card) for program in programs)
    ]
    if not cards:
        told, remedy = f"{name}: no device has joined", "let some join: fedtiny token create"
        yield Finding("plans", WARN, told, remedy)
        return
    fit, minimum = len(cards) - len(reasons), max(1, run.experiment.run.minimum or 1)
    told = f"{name}: {fit:,} of {len(cards):,} devices can run a plan, each round needs {minimum:,}"
    if reasons:
        told += f"; {reasons[0][0] if reasons[0] else 'no board of the experiment has a plan'}"
    state = FAIL if fit < minimum else WARN if reasons else OK
    remedy = "lower [device] ram, batch or plan, or add devices: fedtiny token create"
    yield Finding("plans", state, told, remedy if state != OK else "")
