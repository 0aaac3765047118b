"""The state folder of an agent: what survives a loss of power.

A file is there whole or not at all: it is written beside its place, synced, and renamed. A record
(JSON and bytes) carries a SHA-256 of itself; one that a failing card has damaged is told, set
aside, and done without.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from fedtiny.durable import make_private, write_whole
from fedtiny.errors import RunError
from fedtiny.masks import Mask
from fedtiny.tensors import raw
from fedtiny.values import LOCAL_VALUES, Kept, Quantised, Update

FOLDER_VARIABLE = "FEDTINY_AGENT_DIR"
MOST_RECORD_BYTES = 1 << 28
_DIGEST_BYTES = 32
_HEAD = struct.Struct("<I")

_SIGNS = ("lock", "limits.json", "coordinator.json")

Tell = Callable[[str], None]


def locate(folder: str = "") -> Path:
    """The state folder: the one named, else that of the environment, else the user's."""
    named = folder or os.environ.get(FOLDER_VARIABLE) or os.environ.get("STATE_DIRECTORY")
    return Path(named) if named else Path.home() / ".local" / "share" / "fedtiny-agent"


@dataclass(frozen=True, slots=True)
class Origin:
    """What an update is bound to beside its lease.

    Attributes:
        run: The run.
        base: The digest of the model that it started from.
        size: How many coordinates the vector has that comes back.
        mask: The name of the mask in it, if that is the one that was given.
    """

    run: bytes
    base: bytes
    size: int
    mask: bytes = b""


@dataclass(frozen=True, slots=True)
class Held:
    """A finished update that has no receipt yet; ``kept`` stays here once there is one."""

    update: Update
    origin: Origin
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """The model that the last training visit left on the device, and the Program to run it.

    With a ``mask``, ``vector`` has the values of its live coordinates.
    """

    program: bytes
    run: bytes
    round: int
    vector: bytes
    mask: bytes = b""


class Store:
    """One agent's folder.

    Args:
        folder: Made when something is kept in it, for its owner alone.
        tell: Hears of files that had to be set aside.
    """

    def __init__(self, folder: Path, tell: Tell = lambda _: None) -> None:
        self.folder, self.tell = folder, tell

    def make(self) -> None:
        """The folder, shut to all but its owner. Raises RunError when it serves others too."""
        with told(self.folder):
            rights = self.folder.stat().st_mode & 0o7777 if self.folder.exists() else 0
            if rights & 0o077 and not self.is_agents and any(self.folder.iterdir()):
                raise RunError(
                    f"{self.folder} is open to others (mode {rights:04o}) and has files of another "
                    "kind; name a folder of the agent's own with --dir"
                )
        if rights & 0o077 or not rights:
            make_private(self.folder)
        if rights & 0o077:
            self.tell(f"{self.folder} was open to others (mode {rights:04o}); now it is not")

    @property
    def is_agents(self) -> bool:
        """Whether an agent has kept something in the folder."""
        return any((self.folder / name).exists() for name in _SIGNS)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder for this process alone. Raises RunError, with the process that has it."""
        self.make()
        with told(self.folder):
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(lock, self.folder)
            yield
        finally:
            os.close(lock)

    @property
    def running(self) -> int:
        """The process that holds the lock; 0 when none does."""
        try:
            with (self.folder / "lock").open() as lock:
                return 0 if _is_free(lock.fileno()) else int(lock.read() or 0)
        except (OSError, ValueError):
            return 0

    # -- what an agent remembers --

    def held(self) -> Held | None:
        """The update that waits for its receipt."""
        found = self.read("held")
        return _read_held(*found) if found else None

    def hold(self, held: Held) -> None:
        """Keep the update until `drop_held`, whatever happens to the power."""
        update, origin = held.update, held.origin
        values, form = bytes(raw(update.values)), update.quantised
        bare = replace(update, values=b"", mask=None, places=None, quantised=None)
        head = asdict(bare) | {
            "values": len(values), "measures": dict(update.measures),
            "mask": update.mask and update.mask.size,
            "places": None if update.places is None else len(update.places),
            "quantised": form and [form.form, form.block, len(form.scales), len(form.q)],
            "kept": _lengths(held.kept),
            "run": origin.run.hex(), "base": origin.base.hex(), "size": origin.size,
            "given": origin.mask.hex(),
        }  # fmt: skip
        bits = update.mask.bits if update.mask else b""
        small = [form.scales, form.q] if form else []
        body = [values, bits, update.places or b"", *small, *held.kept.values()]
        self.write("held", head, b"".join(body))

    def drop_held(self) -> None:
        """There is a receipt."""
        self.remove("held")

    def kept(self, run: bytes) -> Kept:
        """What earlier visits of the run have left, by name."""
        found = self.read(f"personal-{run.hex()}")
        return _named(*found) if found else {}

    def keep(self, run: bytes, kept: Kept) -> None:
        """What a visit has left whose update was accepted; names that it has not stay as they
        are."""
        if kept:
            whole = {**self.kept(run), **kept}
            self.write(f"personal-{run.hex()}", _lengths(whole), b"".join(whole.values()))

    def trained(self) -> Trained | None:
        """What `predict` runs."""
        found = self.read("trained")
        if found is None:
            return None
        head, body = found
        program, run = (bytes.fromhex(head[name]) for name in ("program", "run"))
        at = len(body) - head.get("mask", 0)
        return Trained(program, run, int(head["round"]), body[:at], body[at:])

    def keep_trained(self, trained: Trained) -> None:
        """The model that a training visit has left."""
        head = {"program": trained.program.hex(), "run": trained.run.hex(), "round": trained.round}
        self.write("trained", head | {"mask": len(trained.mask)}, trained.vector + trained.mask)

    # -- records and documents --

    def read(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """The record of that name; None when there is none, or it had to be set aside."""
        found: tuple[dict[str, Any], bytes] | None = self._sound(name, _unpack)
        return found

    def write(self, name: str, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Replace the record of that name; it is on the disk when this returns."""
        text = json.dumps(head).encode()
        record = _HEAD.pack(len(text)) + text + body
        self.make()
        write_whole(self.folder / name, hashlib.sha256(record).digest() + record)

    def document(self, name: str) -> dict[str, Any]:
        """The JSON object in ``name.json``, for people to read too; empty when there is none."""
        return self._sound(f"{name}.json", _unpack_document) or {}

    def write_document(self, name: str, value: Mapping[str, Any], durable: bool = True) -> None:
        """Replace the document of that name; ``durable`` waits for the disk."""
        text = json.dumps(value, indent=1, sort_keys=True) + "\n"
        self.make()
        write_whole(self.folder / f"{name}.json", text.encode(), durable)

    def remove(self, name: str) -> None:
        """Forget a record."""
        with told(self.folder):
            (self.folder / name).unlink(missing_ok=True)

    def _sound(self, name: str, unpack: Callable[[bytes], Any]) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            if path.stat().st_size > MOST_RECORD_BYTES:
                raise ValueError(f"{path.stat().st_size:,} B are too many")
            return unpack(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            self.set_aside(path, error)
            return None

    def set_aside(self, path: Path, why: object) -> None:
        """Go on without a damaged file, and keep it for whoever wants to look."""
        with suppress(OSError):
            os.replace(path, path.with_name(f"{path.name}.damaged"))
        self.tell(f"{path} is damaged ({why}): set aside as {path.name}.damaged, going on without")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """OSError as RunError with what to do: in an agent, an OSError is the network's."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written or read: {error.strerror or error}; free some space, or "
            f"name a folder of your own with --dir or {FOLDER_VARIABLE}"
        ) from error


def _lock(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(lock, 32).decode(errors="replace").strip()
        raise RunError(
            f"an agent (process {other}) already runs in {folder}; stop it, or name another "
            "folder with --dir"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unpack(body: bytes) -> tuple[dict[str, Any], bytes]:
    digest, record = body[:_DIGEST_BYTES], body[_DIGEST_BYTES:]
    if hashlib.sha256(record).digest() != digest:
        raise ValueError("its checksum is wrong")
    (length,) = _HEAD.unpack_from(record)
    at = _HEAD.size + length
    return json.loads(record[_HEAD.size : at]), record[at:]


def _unpack_document(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise TypeError("it is no JSON object")
    return value


def _lengths(kept: Kept) -> dict[str, int]:
    return {name: len(values) for name, values in kept.items()}


def _named(lengths: Mapping[str, int], body: bytes) -> Kept:
    """The values of each name, one behind the other; an earlier release kept one alone."""
    if body and not lengths:
        return {LOCAL_VALUES: body}
    return dict(zip(lengths, _cut(body, list(lengths.values())), strict=True))


def _cut(body: bytes, lengths: Sequence[int]) -> list[bytes]:
    return [body[a:b] for a, b in pairwise(accumulate(lengths, initial=0))]


def _read_held(head: dict[str, Any], body: bytes) -> Held:
    run, base = (bytes.fromhex(head.pop(name)) for name in ("run", "base"))
    # An agent of an earlier release knew no masks, and nothing that is quantised.
    origin = Origin(run, base, head.pop("size"), bytes.fromhex(head.pop("given", "")))
    size, placed, kept = head.pop("mask", None), head.pop("places", None), head.pop("kept", {})
    *form, scales, small = head.pop("quantised", None) or [0, 0]
    lengths = [head.pop("values"), (size or 0) + 7 >> 3, placed or 0, scales, small]
    values, bits, places, *quantised = _cut(body, lengths)
    ranges = tuple((start, stop) for start, stop in head.pop("ranges"))
    update = Update(
        **head, values=values, ranges=ranges, mask=None if size is None else Mask(size, bits),
        places=None if placed is None else places,
        quantised=Quantised(*form, *quantised) if form else None,
    )  # fmt: skip
    return Held(update, origin, _named(kept, body[sum(lengths) :]))
