"""What the device's owner allows holds: each limit alone, and what happens without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedtiny.agent.card import device_card, free_bytes, keep_speed, profile
from fedtiny.agent.limits import (
    Limits,
    Paced,
    Traffic,
    battery_hindrance,
    parse_percent,
    parse_size,
)
from fedtiny.agent.store import Store
from fedtiny.errors import DataError, ExperimentError
from fedtiny.values import Footprint

DAY_S = 86_400


def test_limits_are_kept_in_the_folder(tmp_path: Path) -> None:
    limits = Limits(64 << 20, 50.0, 30.0, 20_000_000)
    limits.save(Store(tmp_path))
    assert Limits.load(Store(tmp_path)) == limits
    assert Limits.load(Store(tmp_path / "other")) == Limits(None, 100.0, 0.0, None)


def test_limits_are_read_as_people_write_them() -> None:
    assert parse_size("64MiB") == 64 * 2**20
    assert [parse_percent(text) for text in ("50%", "12.5%", " 100 %")] == [50.0, 12.5, 100.0]
    with pytest.raises(ExperimentError, match="must be above 0 %"):
        Limits(cpu_percent=0.0)


@pytest.mark.parametrize("text", ["half", "0.5", "50", "101%", "-1%"])
def test_a_share_must_say_that_it_is_in_percent(text: str) -> None:
    with pytest.raises(ExperimentError, match=rf"'{text}' is no percentage; .*such as '50%'"):
        parse_percent(text)


def test_a_size_must_have_a_unit() -> None:
    with pytest.raises(ExperimentError, match=r"'64' has no unit; write '64MiB'"):
        parse_size("64")


def test_what_is_hardly_meant_so_is_doubted() -> None:
    assert Limits(64 << 20, 50.0, 30.0, 20_000_000).doubts() == Limits().doubts() == []
    assert Limits(0, 0.5, 95.0, 1000).doubts() == [
        "0 B of memory", "1000 B a day", "0.5 % of a processor", "no work below 95 % of battery",
    ]  # fmt: skip


# --- the processor


@dataclass
class Clock:
    """Time passes while an executor works, and while it rests."""

    now: float = 0.0
    rested: float = 0.0

    def step(self, *_: Any) -> str:
        self.now += 0.003
        return "done"

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.rested += seconds


@pytest.mark.parametrize("percent", [5.0, 25.0, 50.0, 80.0])
def test_the_processor_is_busy_for_its_share_of_the_time(percent: float) -> None:
    clock = Clock()
    paced: Any = Paced(clock, percent, lambda: clock.now, clock.sleep)  # type: ignore[arg-type]
    assert {paced.step("x") for _ in range(400)} == {"done"}
    assert paced.busy_s == pytest.approx(1.2)
    # It may owe ten milliseconds of rest at the end.
    assert paced.busy_s / (clock.now + 0.01) <= percent / 100 <= paced.busy_s / clock.now + 0.01


def test_without_a_limit_it_never_rests() -> None:
    clock = Clock()
    paced: Any = Paced(clock, 100.0, lambda: clock.now, clock.sleep)  # type: ignore[arg-type]
    for _ in range(50):
        paced.step()
    assert clock.rested == 0.0
    assert paced.now == clock.now  # everything else is the executor's own


# --- the battery


def battery(folder: Path, capacity: str, status: str, kind: str = "Battery") -> Path:
    supply = folder / "BAT0"
    supply.mkdir(exist_ok=True)
    for name, text in (("type", kind), ("status", status), ("capacity", capacity)):
        (supply / name).write_text(text + "\n")
    return folder


def test_a_low_battery_lets_the_device_rest(tmp_path: Path) -> None:
    found = battery_hindrance(Limits(battery_percent=30.0), battery(tmp_path, "29", "Discharging"))
    assert found
    assert found.reason == "battery at 29 %, the limit is 30 %"
    assert battery_hindrance(Limits(), tmp_path) is None


@pytest.mark.parametrize(
    ("capacity", "status", "kind"),
    [("30", "Discharging", "Battery"), ("10", "Charging", "Battery"), ("10", "", "Mains")],
)
def test_enough_charge_or_a_charger_or_no_battery_is_no_hindrance(
    tmp_path: Path, capacity: str, status: str, kind: str
) -> None:
    folder = battery(tmp_path, capacity, status, kind)
    assert battery_hindrance(Limits(battery_percent=30.0), folder) is None


# --- bytes a day


def test_the_bytes_of_a_day_are_bounded(tmp_path: Path) -> None:
    now = [10 * DAY_S + 80_000.0]
    traffic = Traffic(Store(tmp_path), lambda: now[0])
    limits = Limits(bytes_a_day=1000)
    traffic.add("submit", up=600, down=100)
    assert traffic.hindrance(limits) is None
    traffic.add("fetch", up=100, down=200)
    found = traffic.hindrance(limits)
    assert found
    assert (found.reason, found.seconds) == ("1.0 KB moved today, the limit is 1.0 KB", 6400.0)
    assert traffic.hindrance(Limits()) is None
    now[0] += found.seconds
    assert traffic.hindrance(limits) is None


def test_the_bytes_of_today_outlive_the_process(tmp_path: Path) -> None:
    before = Traffic(Store(tmp_path), lambda: 50.0 * DAY_S)
    before.add("submit", 600, 100)
    before.save()
    after = Traffic(Store(tmp_path), lambda: 50.0 * DAY_S + 1)
    assert after.today == {"submit_up": 600, "submit_down": 100}
    for day in range(51, 100):
        later = Traffic(Store(tmp_path), lambda day=day: day * float(DAY_S))  # type: ignore[misc]
        later.add("submit", 1, 1)
        later.save()
    assert len(Store(tmp_path).document("traffic")) == Traffic.KEPT_DAYS


# --- memory, and the card

MEMORY = "MemTotal:  948304 kB\nMemFree:  100 kB\nMemAvailable:  512000 kB\n"


def machine(folder: Path, model: str = "") -> tuple[Path, Path]:
    memory, board = folder / "meminfo", folder / "model"
    memory.write_text(MEMORY)
    if model:
        board.write_text(model + "\0")
    return board, memory


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi Zero 2 W Rev 1.0", "pi-zero-2w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "pi-zero-2w"),
        ("Raspberry Pi 4 Model B Rev 1.4", "pi-4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "pi-5"),
        ("Raspberry Pi Model B Rev 2", "linux"),
        ("", "linux"),
    ],
)
def test_the_card_names_the_board(tmp_path: Path, model: str, name: str) -> None:
    board, _ = machine(tmp_path, model)
    assert profile(board) == name


def test_the_card_offers_the_memory_that_is_free_and_allowed(tmp_path: Path) -> None:
    board, memory = machine(tmp_path)
    assert free_bytes(memory) == 512_000 * 1024
    store = Store(tmp_path)
    cards = [
        device_card(store, Limits(ram_bytes=ram), board, memory) for ram in (None, 2**20, 2**40)
    ]
    assert [card.ram_bytes for card in cards] == [512_000 * 1024, 2**20, 512_000 * 1024]


def test_a_program_that_needs_more_than_the_owner_gives_is_refused(tmp_path: Path) -> None:
    board, memory = machine(tmp_path)
    footprint = Footprint("ab" * 32, "", 70_000, 1, 1, 1, 1)
    for ram, refused in ((65_536, True), (70_000, False)):
        limits = Limits(ram_bytes=ram)
        card = device_card(Store(tmp_path), limits, board, memory)
        if refused:
            with pytest.raises(
                DataError, match=r"needs 70,000 B of RAM; .* `fedtiny-agent limits --ram`"
            ):
                limits.check_ram(footprint, card)
        else:
            limits.check_ram(footprint, card)


def test_a_program_that_needs_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    card = device_card(Store(tmp_path), Limits(), *machine(tmp_path))
    footprint = Footprint("ab" * 32, "", 10**9, 1, 1, 1, 1)
    with pytest.raises(DataError, match=r"needs 1,000,000,000 B of RAM, linux has 524,288,000 B"):
        Limits(ram_bytes=2**40).check_ram(footprint, card)


def test_the_speed_of_the_first_visit_stays_on_the_card(tmp_path: Path) -> None:
    board, memory = machine(tmp_path, "Raspberry Pi 4 Model B Rev 1.4")
    store = Store(tmp_path)
    speeds = [device_card(store, Limits(), board, memory).macs_per_s]
    for macs, busy_s in ((0, 1.0), (3e6, 0.01), (9e9, 1.0)):
        keep_speed(store, macs, busy_s)
        speeds.append(device_card(store, Limits(), board, memory).macs_per_s)
    assert speeds == [750e6, 750e6, 3e8, 3e8]
