"""Who takes part: the devices, their certificates, and the tokens by which others may join.

All of it is in three tables, and what every call needs is in memory. Nothing here commits: the
conductor does, before anybody is answered. When a commit fails, `reload` forgets what was not kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from sqlite3 import Connection
from typing import Any

from fedtiny.errors import ExperimentError, IdentityError
from fedtiny.server import crash_points
from fedtiny.server.authority import Certificate
from fedtiny.values import DeviceCard
from fedtiny.wire import codec
from fedtiny.wire.pb import fleet_pb2 as pb

_NAME = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
FIGURES = ("visits", "failures", "refusals", "lost")
"""What a device counts: updates delivered, visits that could not be made, updates that were
refused, calls without an answer."""
_MOST_FIGURE = 1e9
_YEAR_S = 365 * 86_400.0
CARD_S = 60.0
"""How often a device may have its card written at once."""
_MAKE_ANOTHER = "make another with `fedtiny token create`"


@dataclass(frozen=True, slots=True)
class Device:
    """One device; times are Unix seconds, and ``revoked_s`` is None while it may take part."""

    index: int
    name: str
    card: DeviceCard
    agent: str
    joined_s: float
    seen_s: float
    revoked_s: float | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A right to join, as far as it is stored: only the SHA-256 of the secret is."""

    hash: bytes
    label: str
    uses_left: int
    expires_s: float


@dataclass(frozen=True, slots=True)
class Joined:
    """How a device joined: its index, and the SHA-256 of the token that it last used."""

    index: int
    token: bytes


class Devices:
    """The registry over a connection with the tables of the fleet's database.

    `identify`, `is_revoked` and `of_certificate` may be called from any thread; the rest belongs to
    the thread of the connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.reload()

    def reload(self) -> None:
        """Know what the tables say, and nothing else."""
        rows = self._connection.execute(
            "SELECT idx, name, card, agent, joined_s, seen_s, revoked_s, figures FROM devices"
            " ORDER BY idx"
        ).fetchall()
        self._devices = {row[0]: _read_device(row[:-1]) for row in rows}
        self._figures = {row[0]: Counter(json.loads(row[-1])) for row in rows if row[-1]}
        self._by_name = {device.name: device.index for device in self._devices.values()}
        self._next_suffix: dict[str, int] = {}
        self._by_serial: dict[str, tuple[int, float]] = {  # the device, and when it ends
            serial: (device, not_after_s)
            for serial, device, not_after_s in self._connection.execute(
                "SELECT serial, device, not_after_s FROM certificates"
            )
        }
        self._serials: dict[bytes, str] = {}  # by SHA-256 of the certificate
        self._used: dict[int, str] = {}  # the serial with which a device called last
        self._unsaved: set[int] = set()  # devices whose seen_s is newer than the table's
        self._card_saved_at: dict[int, float] = {}
        self._unsaved_cards: set[int] = set()

    # ---- tokens ----

    def create_token(self, label: str, expires_in_s: float, uses: int, now_unix: float) -> str:
        """A new secret of 128 bits that lets ``uses`` devices join. It is not kept."""
        secret = secrets.token_urlsafe(16)
        crash_points.reach("token.before")
        self._connection.execute(
            "INSERT INTO tokens (hash, label, uses_left, expires_s, made_s) VALUES (?, ?, ?, ?, ?)",
            (_hash(secret), label, uses, now_unix + expires_in_s, now_unix),
        )
        crash_points.reach("token.after")
        return secret

    def find_token(self, secret: str, now_unix: float) -> Token:
        """The token, perhaps used up. Raises IdentityError when it is unknown or has expired."""
        # Looked up by its hash: the time that takes says nothing of secrets.
        row = self._connection.execute(
            "SELECT hash, label, uses_left, expires_s FROM tokens WHERE hash = ?", (_hash(secret),)
        ).fetchone()
        if row is None:
            raise IdentityError("unknown-token", f"the token is not known here; {_MAKE_ANOTHER}")
        token = Token(*row)
        if token.expires_s <= now_unix:
            ago = f"{now_unix - token.expires_s:,.0f} s ago"
            raise IdentityError("expired-token", f"the token expired {ago}; {_MAKE_ANOTHER}")
        return token

    def use_token(self, secret: str, now_unix: float) -> Token:
        """One use less of the token. Raises IdentityError: unknown, expired or used up."""
        token = self.find_token(secret, now_unix)
        if token.uses_left < 1:
            raise IdentityError(
                "used-token", f"the token has been used as often as it may be; {_MAKE_ANOTHER}"
            )
        self._connection.execute(
            "UPDATE tokens SET uses_left = uses_left - 1 WHERE hash = ?", (token.hash,)
        )
        return replace(token, uses_left=token.uses_left - 1)

    def tokens(self, now_unix: float) -> list[Token]:
        """Those that still let a device join."""
        rows = self._connection.execute(
            "SELECT hash, label, uses_left, expires_s FROM tokens"
            " WHERE uses_left > 0 AND expires_s > ? ORDER BY expires_s",
            (now_unix,),
        )
        return [Token(*row) for row in rows]

    def revoke_token(self, hash: bytes) -> None:
        """Nobody joins by that token again."""
        self._connection.execute("DELETE FROM tokens WHERE hash = ?", (hash,))

    # ---- joining ----

    def join(
        self,
        name: str,
        card: DeviceCard,
        agent: str,
        now_unix: float,
        key: bytes | None = None,
        token: bytes | None = None,
    ) -> int:
        """The index of a new device: the next one, never used before.

        A name that is taken gets a number. ``key`` and ``token`` are the SHA-256 of the public key
        and of the secret that it joined with: who shows both again is the same device.
        """
        index = len(self._devices)
        device = Device(index, self._free_name(name), card, agent, now_unix, now_unix)
        self._connection.execute(
            "INSERT INTO devices (idx, name, card, agent, joined_s, seen_s, key, token)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (index, device.name, _write_card(card), agent, now_unix, now_unix, key, token),
        )
        self._devices[index] = device
        self._by_name[device.name] = index
        return index

    def of_key(self, key: bytes) -> Joined | None:
        """The device that joined with this key."""
        row = self._connection.execute(
            "SELECT idx, token FROM devices WHERE key = ?", (key,)
        ).fetchone()
        return Joined(*row) if row else None

    def rejoin(self, index: int, card: DeviceCard, token: bytes) -> None:
        """The device shows its key again, with a token that may be another."""
        self.change_card(index, card, self[index].agent)
        self._connection.execute("UPDATE devices SET token = ? WHERE idx = ?", (token, index))

    def certify(self, index: int, certificate: Certificate) -> None:
        """The certificate names this device from now on.

        So does the one before it, and the one with which the device called last: the answer that
        brings a certificate may be lost, again and again. Older ones name nobody any more.
        """
        self._connection.execute(
            "INSERT INTO certificates (serial, device, not_after_s) VALUES (?, ?, ?)",
            (certificate.serial, index, certificate.not_after_s),
        )
        self._by_serial[certificate.serial] = (index, certificate.not_after_s)
        self._delete_certificates(
            "device = ?1 AND serial != ?2 AND serial NOT IN"
            " (SELECT serial FROM certificates WHERE device = ?1 ORDER BY rowid DESC LIMIT 2)",
            (index, self._used.get(index, "")),
        )

    def forget_expired(self, now_unix: float) -> None:
        """Delete the certificates whose end is a year ago.

        They name nobody from their end on. But the clock may be what is wrong, and is set right.
        """
        self._delete_certificates("not_after_s <= ?", (now_unix - _YEAR_S,))
        known = self._serials.copy().items()  # others may add to it meanwhile
        self._serials = {digest: serial for digest, serial in known if serial in self._by_serial}

    def _delete_certificates(self, which: str, values: tuple[Any, ...]) -> None:
        deleted = self._connection.execute(
            f"DELETE FROM certificates WHERE {which} RETURNING serial", values
        ).fetchall()
        for (serial,) in deleted:
            del self._by_serial[serial]

    # ---- who calls ----

    def identify(
        self, auth_context: Mapping[str, Sequence[bytes]], now_unix: float | None = None
    ) -> int:
        """The device of a call, by gRPC's ``context.auth_context()``.

        Raises IdentityError when there is no certificate, an unknown one, one past its end (also on
        a connection that is still open), or its device is revoked: that holds from the next call
        on.
        """
        pem = next(iter(auth_context.get("x509_pem_cert", ())), None)
        if pem is None:
            raise _unauthenticated("the call carries no certificate")
        digest = hashlib.sha256(pem).digest()
        serial = self._serials.get(digest)
        if serial is None:
            serial = self._serials[digest] = _serial(pem)
        found = self._by_serial.get(serial)
        if found is None:
            self._serials.pop(digest, None)
            raise _unauthenticated(f"the certificate {serial} is unknown or was replaced")
        index, ends_s = found
        now = time.time() if now_unix is None else now_unix
        if ends_s <= now:
            raise _unauthenticated(
                f"the certificate {serial} has ended {(now - ends_s) / 3600:,.1f} h ago (check the "
                "coordinator's clock)"
            )
        self.check_may_take_part(index)
        self._used[index] = serial
        return index

    def check_may_take_part(self, index: int) -> None:
        """Raises IdentityError for a device that is unknown or revoked."""
        device = self._devices.get(index)
        if device is None:
            raise _unauthenticated(f"device {index} never joined")
        if device.revoked_s is not None:
            raise IdentityError(
                "revoked",
                f"device {index} ({device.name}) was revoked; to take part again, run "
                "`fedtiny-agent leave` there and join with a new token",
            )

    def of_certificate(self, serial: str) -> int | None:
        """The device that the certificate with this serial number (hex) was issued to."""
        return self._by_serial.get(serial, (None,))[0]

    def is_revoked(self, index: int) -> bool:
        """Whether the device was shut out."""
        return self[index].revoked_s is not None

    # ---- what becomes of them ----

    def __len__(self) -> int:
        return len(self._devices)

    def __getitem__(self, index: int) -> Device:
        return self._devices[index]

    def rows(self) -> list[Device]:
        """All devices, revoked ones too, by index."""
        return list(self._devices.values())

    def seen(self, index: int, now_unix: float) -> None:
        """The device has called. In memory only, until `save_seen`."""
        self._devices[index] = replace(self[index], seen_s=now_unix)
        self._unsaved.add(index)

    def count(self, index: int, counters: Mapping[str, float]) -> None:
        """What the device says that it has done since its last call. In memory, as `seen`."""
        told = {name: value for name, value in counters.items() if _is_figure(name, value)}
        if told:
            self._figures[index] = Counter(told) + self._figures.get(index, Counter())
            self._unsaved.add(index)

    def figures(self, index: int) -> dict[str, float]:
        """What the device says that it has done in all."""
        return dict(self._figures.get(index, {}))

    def save_seen(self) -> None:
        """Write what is in memory only of when devices called last, what they count, and cards.

        A crash may lose some of it.
        """
        for index in sorted(self._unsaved_cards):
            self._save_card(index)
        self._connection.executemany(
            "UPDATE devices SET seen_s = ?, figures = ? WHERE idx = ?",
            [
                (self[index].seen_s, json.dumps(self.figures(index)), index)
                for index in sorted(self._unsaved)
            ],
        )
        self._unsaved.clear()

    def change_card(
        self, index: int, card: DeviceCard, agent: str, now: float | None = None
    ) -> None:
        """What the device can do now, and the version of its agent; ``now`` on any steady clock.

        It holds at once. Less than a minute after a change before it, it is written with
        `save_seen`: no device can have the disk written at its pleasure.
        """
        if (card, agent) == (self[index].card, self[index].agent):
            return
        self._devices[index] = replace(self[index], card=card, agent=agent)
        now = time.monotonic() if now is None else now
        if now - self._card_saved_at.get(index, -math.inf) < CARD_S:
            self._unsaved_cards.add(index)
        else:
            self._card_saved_at[index] = now
            self._save_card(index)

    def _save_card(self, index: int) -> None:
        device = self[index]
        self._connection.execute(
            "UPDATE devices SET card = ?, agent = ? WHERE idx = ?",
            (_write_card(device.card), device.agent, index),
        )
        self._unsaved_cards.discard(index)

    def revoke(self, name_or_index: str | int, now_unix: float) -> int:
        """Shut a device out for good; its index. Raises ExperimentError when there is none."""
        index = self._by_name.get(str(name_or_index), _index(name_or_index))
        if index not in self._devices:
            raise ExperimentError(
                f"no device is called {name_or_index!r}, and none has that index; "
                "`fedtiny devices` lists them"
            )
        if not self.is_revoked(index):
            self._connection.execute(
                "UPDATE devices SET revoked_s = ? WHERE idx = ?", (now_unix, index)
            )
            self._devices[index] = replace(self[index], revoked_s=now_unix)
        return index

    def _free_name(self, name: str) -> str:
        check_name(name)
        for number in chain((1,), count(self._next_suffix.get(name, 2))):
            wanted = name if number == 1 else f"{name}-{number}"
            if wanted not in self._by_name:
                self._next_suffix[name] = number + 1
                return wanted
        raise AssertionError("there is no last number")


def check_name(name: str) -> None:
    """Raises IdentityError for what cannot be the name of a device."""
    if not _NAME.fullmatch(name):
        raise IdentityError(
            "name",
            f"{name[:80]!r} is no name for a device: up to 63 letters, digits, dots, dashes and "
            "underscores, not digits alone; choose one with --name",
            "INVALID_ARGUMENT",
        )


def _is_figure(name: str, value: float) -> bool:
    return name in FIGURES and 0 <= value <= _MOST_FIGURE


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _index(name_or_index: str | int) -> int:
    return int(name_or_index) if str(name_or_index).isdecimal() else -1


def _write_card(card: DeviceCard) -> bytes:
    data: bytes = codec.write_card(card).SerializeToString(deterministic=True)
    return data


def _read_device(row: Sequence[Any]) -> Device:
    index, name, card, agent, joined_s, seen_s, revoked_s = row
    read = codec.read_card(pb.Card.FromString(card))
    return Device(index, name, read, agent, joined_s, seen_s, revoked_s)


def _serial(pem: bytes) -> str:
    from cryptography import x509

    return f"{x509.load_pem_x509_certificate(pem).serial_number:x}"


def _unauthenticated(fault: str) -> IdentityError:
    return IdentityError(
        "certificate", f"{fault}; join again with `fedtiny-agent join --again`", "UNAUTHENTICATED"
    )
