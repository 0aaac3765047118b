"""Which Program fits which device, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedtiny.values import DeviceCard, Footprint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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


def fits(footprints: Sequence[Footprint], cards: Sequence[DeviceCard]) -> npt.NDArray[np.bool_]:
    """``[len(cards), len(footprints)]``: whether `misfits` is empty, for all pairs at once."""
    import numpy as np

    needed = np.array([(f.ram_bytes, f.flash_bytes) for f in footprints], np.int64).reshape(-1, 2)
    given = np.array([(c.ram_bytes, c.flash_bytes) for c in cards], np.int64).reshape(-1, 2)
    return np.asarray((needed[None, :, :] <= given[:, None, :]).all(axis=2))
