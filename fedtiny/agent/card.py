"""What this machine can do, as the coordinator hears of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedtiny.agent.limits import Limits
from fedtiny.agent.store import Store
from fedtiny.registry.profiles import BOARDS
from fedtiny.values import DeviceCard

MODEL = Path("/proc/device-tree/model")
MEMORY = Path("/proc/meminfo")
LINUX = "linux"

# A Pi 3 has the cores of the Zero 2 W; its memory is measured anyway.
_MODELS = {
    "Raspberry Pi Zero 2": "pi-zero-2w",
    "Raspberry Pi 3": "pi-zero-2w",
    "Raspberry Pi 4": "pi-4",
    "Raspberry Pi Compute Module 4": "pi-4",
    "Raspberry Pi 5": "pi-5",
    "Raspberry Pi Compute Module 5": "pi-5",
}


def profile(model: Path = MODEL) -> str:
    """The board's name in the registry of boards; "linux" for any other machine."""
    try:
        name = model.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return LINUX
    return next((board for start, board in _MODELS.items() if name.startswith(start)), LINUX)


def free_bytes(memory: Path = MEMORY) -> int:
    """Memory that a program can still have."""
    for line in memory.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def device_card(
    store: Store, limits: Limits, model: Path = MODEL, memory: Path = MEMORY
) -> DeviceCard:
    """The card of this machine.

    Speed is what the first visit has measured; before it, what boards of the name are known for,
    and for unknown ones the slowest of those that run Linux.
    """
    name = profile(model)
    known = BOARDS.get(name, BOARDS["pi-zero-2w"])
    free = free_bytes(memory)
    return DeviceCard(
        profile=name,
        ram_bytes=free if limits.ram_bytes is None else min(limits.ram_bytes, free),
        flash_bytes=shutil.disk_usage(store.folder).free,
        macs_per_s=float(store.document("speed").get("macs_per_s", known.macs_per_s)),
        downlink_bps=known.downlink_bps,
        uplink_bps=known.uplink_bps,
    )


def keep_speed(store: Store, macs: float, busy_s: float) -> None:
    """Remember what a visit has measured, once: later ones would only say it again."""
    if busy_s > 0 and macs > 0 and not store.document("speed"):
        store.write_document("speed", {"macs_per_s": macs / busy_s})
