"""What the devices of a simulated fleet keep from visit to visit: rows of float32, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.errors import RunError
from fedtiny.tensors import FLOAT_BYTES

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float32, Int64
    from fedtiny.values import Kept

MOST_BYTES = 4 * 2**30
"""The most that a simulated fleet may keep."""

_PREFIX, _DEVICES = "kept.", ".devices"


@dataclass(eq=False)
class Rows:
    """A row for each device that has kept something of one name.

    ``place[d]`` is the row of device d, -1 if it has none; ``values`` has room for more rows.
    """

    devices: Int64
    values: Float32
    place: Int64

    @classmethod
    def of(cls, devices: Int64, values: Float32, fleet: int) -> Rows:
        """These rows of these devices of a fleet."""
        place = np.full(fleet, -1)
        place[devices] = np.arange(devices.size)
        return cls(devices, values, place)

    def put(self, devices: Int64, values: Float32) -> None:
        """Replace the rows of these devices, or begin them."""
        new = devices[self.place[devices] < 0]
        begun = self.devices.size
        self.place[new] = np.arange(begun, begun + new.size)
        self.devices = np.concatenate([self.devices, new])
        if self.devices.size > len(self.values):
            self._grow()
        self.values[self.place[devices]] = values

    def _grow(self) -> None:
        room = max(2 * len(self.values), self.devices.size)
        grown = np.empty((min(room, self.place.size), self.values.shape[1]), np.float32)
        grown[: len(self.values)] = self.values
        self.values = grown


@dataclass(eq=False)
class Keeping:
    """What each device has kept, of ``fleet`` devices of which ``most`` will ever train.

    What a visit leaves counts when its round commits, so that between two rounds nothing of an open
    one is seen; a device whose update is accepted has no second visit in a round.
    """

    fleet: int
    most: int
    rows: dict[str, Rows] = field(default_factory=dict)
    open: list[tuple[str, Int64, Float32]] = field(default_factory=list)

    def keep(self, name: str, devices: Int64, values: Float32) -> None:
        """Remember a row for each of these devices, from the next commit on."""
        if name not in self.rows:
            self._begin(name, values.shape[1])
        self.open.append((name, devices, values))

    def _begin(self, name: str, floats: int) -> None:
        empty = np.empty((0, floats), np.float32)
        self.rows[name] = Rows.of(np.empty(0, np.int64), empty, self.fleet)
        width = sum(rows.values.shape[1] for rows in self.rows.values())
        needed = self.most * width * FLOAT_BYTES
        if needed > MOST_BYTES:
            raise RunError(
                f"{self.most:,} devices that each keep {width:,} floats ({', '.join(self.rows)}) "
                f"need {needed:,} B; the simulator has {MOST_BYTES:,} B for what devices keep: "
                "simulate fewer devices or rounds, or take a smaller model"
            )

    def commit(self) -> None:
        """The round is over."""
        for name, devices, values in self.open:
            self.rows[name].put(devices, values)
        self.open.clear()

    def known(self, name: str, devices: Int64) -> Bools:
        """Which of these devices have kept something of that name."""
        if name not in self.rows:
            return np.zeros(devices.size, bool)
        return np.asarray(self.rows[name].place[devices] >= 0)

    def values(self, name: str, devices: Int64) -> Float32:
        """The rows of devices that are `known`."""
        rows = self.rows[name]
        return np.asarray(rows.values[rows.place[devices]])

    def of(self, device: int) -> Kept:
        """All that one device has kept."""
        places = ((name, rows, rows.place[device]) for name, rows in self.rows.items())
        return {name: rows.values[at].tobytes() for name, rows, at in places if at >= 0}

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All of it for a checkpoint, by name."""
        made: dict[str, np.ndarray[Any, Any]] = {}
        for name, rows in self.rows.items():
            made[_PREFIX + name] = rows.values[: rows.devices.size]
            made[_PREFIX + name + _DEVICES] = rows.devices
        return made

    @classmethod
    def restored(cls, fleet: int, most: int, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Keeping:
        """The inverse of `arrays`, which may be among others."""
        made = cls(fleet, most)
        for key, devices in arrays.items():
            if key.startswith(_PREFIX) and key.endswith(_DEVICES):
                name = key.removeprefix(_PREFIX).removesuffix(_DEVICES)
                made.rows[name] = Rows.of(devices, arrays[_PREFIX + name], fleet)
        return made
