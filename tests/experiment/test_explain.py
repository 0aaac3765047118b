import pytest

from fedtiny.errors import BudgetError
from fedtiny.experiment import Experiment
from fedtiny.experiment.explain import Visit, explain
from fedtiny.registry.profiles import board
from fedtiny.values import Footprint

EXPERIMENT = Experiment.of(
    {
        "model": {"build": "sine_mlp"},
        "data": {"source": "sine", "sample_period": "1s"},
        "strategy": {"name": "tinyreptile"},
        "device": {"small": {"like": "cortex-m4", "ram": "8KiB"}, "cortex-m4": {"ram": "64KiB"}},
        "fleet": {"profiles": {"small": 0.25, "cortex-m4": 0.25, "pi-4": 0.25, "cortex-m7": 0.25}},
        "run": {"rounds": 100},
    }
)


def compile_for(profile: str) -> Footprint:
    if profile == "small":
        raise BudgetError("needs 10,000 B of 8,192 B RAM; lower the batch", 10_000, 8192)
    ram = 2**30 if profile == "cortex-m7" else 10_000
    return Footprint("p", "l", ram, 20_000, macs_per_step=3000, macs_per_forward=1000, batch=1)


def visit_of(footprint: Footprint) -> Visit:
    return Visit(32 * footprint.macs_per_step, samples=32, download_bytes=1000, upload_bytes=500)


ROWS = {row.profile: row for row in explain(EXPERIMENT, compile_for, visit_of, cohort=10)}


def test_there_is_a_row_for_each_profile_of_the_fleet() -> None:
    assert list(ROWS) == ["small", "cortex-m4", "pi-4", "cortex-m7"]
    assert sum(row.share for row in ROWS.values()) == 1


def test_a_profile_that_fits_is_told_its_bytes_seconds_and_joules() -> None:
    row, m4 = ROWS["cortex-m4"], board("cortex-m4")
    assert row.fits
    assert (row.ram_bytes, row.ram_given_bytes) == (10_000, 64 * 1024)
    assert (row.flash_bytes, row.flash_given_bytes) == (20_000, 1024 * 1024)
    compute_s = 32 * 3000 / m4.macs_per_s
    link_s = 2 * m4.latency_s + 8 * 1000 / m4.downlink_bps + 8 * 500 / m4.uplink_bps
    assert row.seconds == pytest.approx(32 + compute_s + link_s)
    assert row.joules == pytest.approx(
        32 * m4.idle_w + compute_s * m4.active_w + link_s * m4.radio_w
    )
    assert row.visit_bytes == 1500


def test_those_that_fit_share_the_visits_of_the_run() -> None:
    # 100 rounds of 10 visits of 1,500 B, half of them by each of the two profiles that fit
    assert ROWS["pi-4"].run_bytes == 750_000
    assert sum(row.run_bytes for row in ROWS.values()) == 100 * 10 * 1500


def test_a_program_that_cannot_be_compiled_is_told_with_the_numbers() -> None:
    row = ROWS["small"]
    assert not row.fits
    assert (row.ram_bytes, row.ram_given_bytes) == (None, 8192)
    assert row.reasons == ("needs 10,000 B of 8,192 B RAM; lower the batch",)
    assert row.run_bytes == 0


def test_a_program_that_is_too_large_for_the_board_is_told_with_the_numbers() -> None:
    (reason,) = ROWS["cortex-m7"].reasons
    assert "1,073,741,824 B of RAM, cortex-m7 has 1,048,576 B" in reason
    assert ROWS["cortex-m7"].ram_bytes == 2**30


def test_a_fleet_that_nothing_fits_is_explained_too() -> None:
    def nothing(profile: str) -> Footprint:
        return compile_for("small")

    rows = explain(EXPERIMENT, nothing, visit_of, cohort=10)
    assert [row.fits for row in rows] == [False] * 4
