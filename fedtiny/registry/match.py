"""Which Program fits which device, with reasons."""

from __future__ import annotations

from fedtiny.values import DeviceCard, Footprint


def misfits(footprint: Footprint, card: DeviceCard) -> tuple[str, ...]:
    """Why the Program cannot run on the device, in words and numbers; empty when it can."""
    wanted = (
        ("RAM", footprint.ram_bytes, card.ram_bytes, "train fewer layers or lower the batch"),
        ("flash", footprint.flash_bytes, card.flash_bytes, "use a smaller model"),
    )
    return tuple(
        f"needs {needed:,} B of {name}, {card.profile} has {given:,} B; {remedy}"
        for name, needed, given, remedy in wanted
        if needed > given
    )
