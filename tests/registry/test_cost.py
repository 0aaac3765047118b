import numpy as np
import pytest

from fedtiny.registry.cost import BoardColumns, visit_cost
from fedtiny.registry.profiles import BOARDS, board

ROUND_FIGURES = board("cortex-m4").changed(
    "this test",
    macs_per_s=1e6,
    downlink_bps=8e3,
    uplink_bps=4e3,
    latency_s=0.5,
    active_w=2.0,
    idle_w=0.25,
    radio_w=1.0,
)


def test_a_visit_downloads_waits_computes_and_uploads() -> None:
    cost = visit_cost(
        BoardColumns.of([ROUND_FIGURES]),
        macs=3_000_000,
        download_bytes=1000,
        upload_bytes=1000,
        samples=32,
        sample_period_s=0.5,
    )
    # 0.5 s of latency and 8,000 bits each way, at 8,000 and at 4,000 bit/s
    assert cost.download_s == 0.5 + 1.0
    assert cost.upload_s == 0.5 + 2.0
    assert cost.wait_s == 32 * 0.5
    assert cost.compute_s == 3.0
    assert cost.seconds == 1.5 + 16 + 3 + 2.5
    assert cost.joules == 2.0 * 3 + 1.0 * (1.5 + 2.5) + 0.25 * 16


def test_nothing_to_carry_costs_no_latency() -> None:
    cost = visit_cost(BoardColumns.of([ROUND_FIGURES]), macs=1e6, download_bytes=0, upload_bytes=0)
    assert [*cost.download_s, *cost.upload_s, *cost.seconds] == [0, 0, 1]


def test_every_argument_may_be_a_column() -> None:
    devices = BoardColumns.of([ROUND_FIGURES]).take(np.array([0, 0, 0]))
    cost = visit_cost(
        devices,
        macs=np.array([1e6, 2e6, 3e6]),
        download_bytes=np.array([0, 1000, 0]),
        upload_bytes=0,
        samples=np.array([0, 1, 2]),
        sample_period_s=10,
    )
    assert cost.seconds.tolist() == [1, 1.5 + 10 + 2, 20 + 3]


def test_a_fleet_in_columns_costs_what_each_device_costs() -> None:
    boards = list(BOARDS.values())
    rows = np.arange(1000) % len(boards)
    asked = {"macs": 1e6, "download_bytes": 4612, "upload_bytes": 4612}
    fleet = visit_cost(BoardColumns.of(boards).take(rows), **asked)
    for row in range(len(boards)):
        (joules,) = visit_cost(BoardColumns.of([boards[row]]), **asked).joules
        assert set(fleet.joules[rows == row]) == {joules}


@pytest.mark.parametrize("name", BOARDS)
def test_a_sine_visit_takes_a_plausible_time(name: str) -> None:
    macs = 32 * 3 * 1088  # 32 samples forward and backward through 1-32-32-1
    asked = {"macs": macs, "download_bytes": 4612, "upload_bytes": 4612}
    (seconds,) = visit_cost(BoardColumns.of([board(name)]), **asked).seconds
    assert 0.01 < seconds < 2
