"""What the device's owner allows: memory, share of the processor, battery, bytes a day.

The owner sets them with ``fedtiny-agent limits``; they are kept in the state folder, and no
coordinator can change them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtiny.agent.figures import memory, traffic
from fedtiny.agent.store import Store
from fedtiny.errors import DataError, ExperimentError
from fedtiny.registry.match import misfits
from fedtiny.values import DeviceCard, Footprint, parse_bytes

if TYPE_CHECKING:
    from fedtiny.engine.program import Executor

POWER_SUPPLIES = Path("/sys/class/power_supply")
BATTERY_EVERY_S = 60.0
DAY_S = 86_400
_LEAST_SLEEP_S = 0.01
_LEAST_BYTES = 2**20
NO_LIMIT = "no limit"


@dataclass(frozen=True, slots=True)
class Limits:
    """The owner's limits; None and 100 % are no limit, 0 % of battery asks for none."""

    ram_bytes: int | None = None
    cpu_percent: float = 100.0
    battery_percent: float = 0.0
    bytes_a_day: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.cpu_percent <= 100:
            raise ExperimentError(
                f"a share of {self.cpu_percent:g} % of the processor: it must be above 0 %, and at "
                "most 100 %; to stop the agent, end its process"
            )

    @classmethod
    def load(cls, store: Store) -> Limits:
        """Those of the folder."""
        kept = store.document("limits")
        try:
            return cls(**{f.name: kept[f.name] for f in fields(cls) if f.name in kept})
        except TypeError as error:
            raise ExperimentError(
                f"{store.folder / 'limits.json'}: {error}; set limits by fedtiny-agent limits"
            ) from None

    def save(self, store: Store) -> None:
        """Keep them in the folder."""
        store.write_document("limits", asdict(self))

    def check_ram(self, footprint: Footprint, card: DeviceCard) -> None:
        """DataError unless the Program fits what the owner gives and the machine has free."""
        program, needed = f"the Program {footprint.program[:12]}", footprint.ram_bytes
        if self.ram_bytes is not None and needed > self.ram_bytes:
            raise DataError(f"{program} needs {needed:,} B of RAM; {self.remedy}")
        reasons = misfits(footprint, card)
        if reasons:
            raise DataError(f"{program} {'; '.join(reasons)}")

    @property
    def remedy(self) -> str:
        """What the owner can do about too little memory; empty where they have set no limit."""
        if self.ram_bytes is None:
            return ""
        return (
            f"this device's owner allows {memory(self.ram_bytes)}, which "
            "`fedtiny-agent limits --ram` raises"
        )

    def lines(self) -> dict[str, str]:
        """Each limit by its name, for people."""
        ram, nbytes = self.ram_bytes, self.bytes_a_day
        return {
            "memory": NO_LIMIT if ram is None else f"at most {memory(ram)}",
            "processor": _percent("at most", self.cpu_percent, lifted=100.0),
            "battery": _percent("at least", self.battery_percent, lifted=0.0),
            "bytes a day": NO_LIMIT if nbytes is None else f"at most {traffic(nbytes)}",
        }

    def doubts(self) -> list[str]:
        """What is hardly meant so, and to be asked about before it is kept."""
        ram, nbytes = self.ram_bytes, self.bytes_a_day
        doubtful = {
            f"{ram} B of memory": ram is not None and ram < _LEAST_BYTES,
            f"{nbytes} B a day": nbytes is not None and nbytes < _LEAST_BYTES,
            f"{self.cpu_percent:g} % of a processor": self.cpu_percent < 5,
            f"no work below {self.battery_percent:g} % of battery": self.battery_percent > 90,
        }
        return [limit for limit, found in doubtful.items() if found]


def _percent(bound: str, value: float, lifted: float) -> str:
    return NO_LIMIT if value == lifted else f"{bound} {value:g} %"


def parse_size(text: str) -> int:
    """Bytes of "64MiB", which must have a unit."""
    if text.strip().isdecimal():
        raise ExperimentError(f"{text!r} has no unit; write '{text.strip()}MiB', '20MB' or 'none'")
    return parse_bytes(text)


def parse_percent(text: str) -> float:
    """A percentage of "50%", which must have its sign: 0.5 may be meant as a half."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if not match or not 0 <= float(match[1]) <= 100:
        raise ExperimentError(
            f"{text!r} is no percentage; write a number from 0 to 100 and %, such as '50%', or "
            "'none'"
        )
    return float(match[1])


# ---- when there is work to do, and when there is not -----------------------------------------


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why the device does not work now, and when it looks again."""

    reason: str
    seconds: float


def battery_hindrance(limits: Limits, folder: Path = POWER_SUPPLIES) -> Hindrance | None:
    """The battery is lower than the owner wants, and nothing charges it."""
    if not limits.battery_percent:
        return None
    low = [level for level in _discharging(folder) if level < limits.battery_percent]
    if not low:
        return None
    told = f"battery at {min(low):g} %, the limit is {limits.battery_percent:g} %"
    return Hindrance(told, BATTERY_EVERY_S)


def _discharging(folder: Path) -> list[float]:
    """The charge (percent) of each battery that is not being charged."""
    levels = []
    for supply in sorted(folder.glob("*")):
        read = {name: _word(supply / name) for name in ("type", "status", "capacity")}
        idle = read["status"] not in ("Charging", "Full", "Not charging")
        if read["type"] == "Battery" and idle and read["capacity"].isdigit():
            levels.append(float(read["capacity"]))
    return levels


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class Traffic:
    """Bytes that went over the link, by day and kind, against the owner's limit.

    A day is one of the coordinator's: ``unix_s`` gives its time.
    """

    KEPT_DAYS = 30

    def __init__(self, store: Store, unix_s: Callable[[], float] = time.time) -> None:
        self._store, self._unix_s = store, unix_s
        self._days: dict[str, dict[str, float]] = store.document("traffic")
        self.up = self.down = 0
        """Of this process, whatever day it is."""

    @property
    def today(self) -> dict[str, float]:
        """The bytes of today, such as ``{"submit_up": 4712}``."""
        return self._days.setdefault(str(int(self._unix_s() // DAY_S)), {})

    def add(self, kind: str, up: int, down: int) -> None:
        """A call has sent and received so many bytes."""
        self.up, self.down = self.up + up, self.down + down
        today = self.today
        for name, nbytes in ((f"{kind}_up", up), (f"{kind}_down", down)):
            today[name] = today.get(name, 0) + nbytes

    def save(self) -> None:
        """Keep the counts; a loss of power may cost those of the last visit."""
        days = sorted(self._days, key=int)[-self.KEPT_DAYS :]
        self._days = {day: self._days[day] for day in days}
        self._store.write_document("traffic", self._days, durable=False)

    def hindrance(self, limits: Limits) -> Hindrance | None:
        """Today's bytes are used up: come back tomorrow."""
        used = sum(self.today.values())
        if limits.bytes_a_day is None or used < limits.bytes_a_day:
            return None
        left_s = DAY_S - self._unix_s() % DAY_S
        told = f"{traffic(used)} moved today, the limit is {traffic(limits.bytes_a_day)}"
        return Hindrance(told, left_s)


# ---- the processor ---------------------------------------------------------------------------


class Paced:
    """An executor that rests, so that it is busy for at most a share of the time.

    It rests in pieces of at least ten milliseconds: a step of microseconds only adds to what is
    owed. ``busy_s`` counts what the executor itself took.
    """

    def __init__(
        self,
        executor: Executor,
        percent: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.executor, self._clock, self._sleep = executor, clock, sleep
        self._rest = 100.0 / percent - 1.0
        self.busy_s = self._owed_s = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.executor, name)
        return self._timed(found) if name in _WORKING else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = self._clock()
            try:
                return call(*arguments)
            finally:
                self._account(self._clock() - begun)

        return timed

    def _account(self, busy_s: float) -> None:
        self.busy_s += busy_s
        self._owed_s += busy_s * self._rest
        if self._owed_s >= _LEAST_SLEEP_S:
            begun = self._clock()
            self._sleep(self._owed_s)
            self._owed_s -= self._clock() - begun


_WORKING = ("step", "evaluate", "predict", "calibrate", "observe", "grow")
