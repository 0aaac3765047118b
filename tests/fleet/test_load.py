"""A short form of benchmarks/fleet.py, with floors that a busy machine meets too."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import fleet

DEVICES = 200


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return asyncio.run(fleet.whole_rounds(DEVICES, rounds=6))


@pytest.mark.slow
def test_device_rounds_are_many_and_cheap(figures: dict[str, float]) -> None:
    assert figures["device_rounds_per_s"] >= 100
    assert figures["cpu_ms_per_device_round"] <= 3.0
    assert figures["lost_calls"] == 0


@pytest.mark.slow
def test_a_device_round_costs_no_more_than_six_kilobytes_each_way(
    figures: dict[str, float],
) -> None:
    # The model has 4,612 bytes, and each figure has the share of a check-in and of the Program.
    assert 4612 < figures["bytes_up_per_device_round"] <= 6000
    assert 4612 < figures["bytes_down_per_device_round"] <= 6000


@pytest.mark.slow
def test_a_device_that_waits_costs_a_hundred_kilobytes() -> None:
    assert asyncio.run(fleet.idle_bytes(DEVICES)) <= 120_000


@pytest.mark.slow
def test_it_serves_soon_with_a_thousand_registered_devices() -> None:
    nobody_s, nobody_bytes = fleet.start_s(0)
    many_s, many_bytes = fleet.start_s(fleet.ABSENT)
    assert many_s <= nobody_s + 2.0
    assert (many_bytes - nobody_bytes) / fleet.ABSENT <= 2000
