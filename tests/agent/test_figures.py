"""Figures as the owner of a device reads them."""

from __future__ import annotations

import pytest

from fedtiny.agent.figures import duration, memory, traffic


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.25, "0.2 s"), (9.94, "9.9 s"), (9.96, "10 s"), (60, "60 s"), (119.4, "119 s"),
        (300, "5 min"), (3569, "59 min"), (3571, "1:00 h"), (54_495, "15:08 h"),
    ],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_people_use(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_bytes_of_messages_and_of_memory_have_their_own_units() -> None:
    assert [traffic(n) for n in (950, 217_460, 4_600_000)] == ["0.9 KB", "217.5 KB", "4.6 MB"]
    assert [memory(n) for n in (65_536, 2**20, 3 << 19)] == ["65,536 B", "1 MiB", "1.5 MiB"]
