import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pytest
from rich.console import Console

from fedtiny.console import show_explained
from fedtiny.engine.builder import Net
from fedtiny.engine.built import Build
from fedtiny.engine.compile import build
from fedtiny.errors import CompileError, ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.experiment.explain import Pruning, Row, explain
from fedtiny.experiment.workload import Workload
from fedtiny.registry.profiles import board
from fedtiny.simulator.run import simulate
from fedtiny.values import CALIBRATE, SCORE, Instruction
from fedtiny.wire.visit import visit_bytes
from tests.simulator.experiments import PRUNED

EXPERIMENT = Experiment.of(
    {
        "model": {"build": "sine_mlp"},
        "data": {"source": "sine", "sample_period": "1s"},
        "strategy": {"name": "tinyreptile", "cohort": 10},
        "device": {
            "ram": "512KiB",
            "small": {"like": "cortex-m4", "ram": "3KiB"},
            "esp32-s3": {"ram": "64KiB"},
        },
        "fleet": {"profiles": {"small": 0.25, "esp32-s3": 0.25, "pi-4": 0.25, "cortex-m4": 0.25}},
        "run": {"rounds": 100},
    }
)
# 1,153 floats each way
VISIT = visit_bytes(Workload.of(EXPERIMENT).instruction, 1153, ((0, 1153),), ("loss_sum", "steps"))
ROWS = {row.profile: row for row in explain(Workload.of(EXPERIMENT))}


def test_there_is_a_row_for_each_profile_of_the_fleet() -> None:
    assert list(ROWS) == ["small", "esp32-s3", "pi-4", "cortex-m4"]
    assert sum(row.share for row in ROWS.values()) == 1


def test_a_profile_that_fits_is_told_its_bytes_seconds_and_joules() -> None:
    row, esp32 = ROWS["esp32-s3"], board("esp32-s3")
    assert row.fits
    assert (row.ram_given_bytes, row.flash_given_bytes) == (64 * 1024, 8 * 1024**2)
    compute_s = 32 * row.report["macs_per_step"] / esp32.macs_per_s
    down_s, up_s = 8 * VISIT.down / esp32.downlink_bps, 8 * VISIT.up / esp32.uplink_bps
    link_s = 2 * esp32.latency_s + down_s + up_s
    assert row.seconds == pytest.approx(32 + compute_s + link_s)
    assert row.joules == pytest.approx(
        32 * esp32.idle_w + compute_s * esp32.active_w + link_s * esp32.radio_w
    )
    assert row.visit_bytes == VISIT.down + VISIT.up


def test_those_that_fit_share_the_visits_of_the_run() -> None:
    # 100 rounds of 10 visits, a third of them by each of the three profiles that fit
    assert [row.fits for row in ROWS.values()] == [False, True, True, True]
    assert ROWS["pi-4"].run_bytes == pytest.approx(1000 / 3 * ROWS["pi-4"].visit_bytes)
    assert sum(row.run_bytes for row in ROWS.values()) == pytest.approx(
        1000 * ROWS["pi-4"].visit_bytes
    )


def test_a_budget_that_is_too_small_is_told_with_the_numbers() -> None:
    row = ROWS["small"]
    needed = row.report["ram_bytes"]
    assert row.reasons[0].startswith(f"small: needs {needed:,} B of 3,072 B RAM")
    assert row.run_bytes == row.seconds == 0


def test_a_program_that_is_too_large_for_the_board_is_told_with_the_numbers() -> None:
    large = EXPERIMENT.override("device.reserve='300KiB'", "device.small.ram='200KiB'")
    row = explain(Workload.of(large))[3]
    (reason,) = row.reasons
    assert f"{row.report['ram_bytes']:,} B of RAM, cortex-m4 has 262,144 B" in reason


def test_a_fleet_that_nothing_fits_is_explained_too() -> None:
    nothing = EXPERIMENT.override("device.reserve='1GiB'")
    assert [row.fits for row in explain(Workload.of(nothing))] == [False] * 4


# ---- patches ---------------------------------------------------------------------------------


def image_net() -> Net:
    """Digits as images, through a first convolution that is larger than all behind it."""
    net = Net((8, 8, 1))
    value = net.relu(net.conv(net.input, 8, 3, padding=1))
    net.linear(net.max_pool(net.relu(net.conv(value, 8, 3, padding=1)), 2), 10)
    return net


IN_PATCHES: dict[str, Any] = {
    "model": {"build": "tests.experiment.test_explain:image_net"},
    "data": {"source": "label-skew-digits"},
    "strategy": {"name": "fedavg", "cohort": 4},
    "device": {
        "plan": "last:1",
        "patches": 2,
        "pi-4": {"patches": 1},
        "mine": {"like": "pi-5", "patches": "auto"},
    },
    "fleet": {"devices": 20, "profiles": {"pi-4": 0.5, "cortex-m4": 0.3, "mine": 0.2}},
    "run": {"rounds": 1},
}


def told(rows: Iterable[Row]) -> str:
    console = Console(width=80, record=True)
    show_explained(console, list(rows))
    return console.export_text()


def test_patches_take_less_ram_and_give_the_same_model() -> None:
    experiment = Experiment.of(IN_PATCHES)
    rows = explain(Workload.of(experiment))
    assert [row.patches for row in rows] == [1, 2, "auto"]
    whole, halves, auto = (row.report["ram_bytes"] for row in rows)
    assert auto <= halves < whole
    assert re.search(r"patches +none +2 x 2 +auto", told(rows))
    assert "patches" not in told(ROWS.values())
    digests = {
        simulate(experiment.override(*over)).summary["model_digest"]
        for over in ((), ("device.patches=1", "device.mine.patches=1"))
    }
    assert len(digests) == 1


def test_patches_are_for_images_that_are_not_pruned() -> None:
    experiment = Experiment.of(IN_PATCHES)
    with pytest.raises(ExperimentError, match=r"patches = 0 is not an integer >= 1, or 'auto'"):
        experiment.override("device.patches=0")
    with pytest.raises(ExperimentError, match=r"patches are for density = 1, got 0\.5"):
        experiment.override("device.density=0.5")
    with pytest.raises(CompileError, match="no first stage that can be cut into 2 x 2 patches"):
        explain(Workload.of(experiment.override("model={build='digits_mlp'}")))


# ---- fleets that prune -----------------------------------------------------------------------


PRUNES = Experiment.of(PRUNED)
POOLS = {row.profile: row for row in explain(Workload.of(PRUNES))}


def pruning(name: str) -> Pruning:
    found = POOLS[name].pruning
    assert found is not None
    return found


def test_a_dense_profile_says_nothing_of_pruning() -> None:
    assert all(row.pruning is None for row in ROWS.values())


def test_what_a_density_saves_is_told_for_each_class() -> None:
    work = Workload.of(PRUNES)
    for profile in work.profiles:
        told, program = pruning(profile.name), profile.needed
        assert (told.density, told.live_values) == (program.density, program.capacity)
        # live values (4 B), a gap each (2 B) and where two layers start; dense: 1,776 weights
        pool = 4 * told.live_values + program.report()["index_bytes"]
        assert pool <= 6 * told.live_values + 28
        bucket, base = (program.report()[f"{part}_bytes"] for part in ("bucket", "base"))
        dense = build(work.net, loss="cross_entropy", batch=16).program
        arena = dense.report()["arena_bytes"] - program.report()["arena_bytes"]
        saved = 4 * 1776 - pool - bucket - base + arena
        assert told.dense_ram_bytes - program.report()["ram_bytes"] == saved
        visit = work.visit_bytes(program, work.training)
        assert (told.down_bytes, told.up_bytes) == (
            visit.work + visit.receipt,
            visit.up - visit.mask_requests,
        )
        assert told.mask_bytes == visit.mask + visit.mask_requests > 0
        assert POOLS[profile.name].visit_bytes == told.down_bytes + told.up_bytes


def test_rounds_of_selection_are_told_with_the_model_that_they_carry() -> None:
    told, work = pruning("pi-4"), Workload.of(PRUNES)
    calibrate, score = islice(work.rehearsal(), 2)
    assert (calibrate.kind, score.kind, told.selections) == (CALIBRATE, SCORE, 2)
    program = work.profiles[1].needed
    visits = [work.visit_bytes(program, asked) for asked in (calibrate, score)]
    assert told.selection_bytes == max(visit.down + visit.up for visit in visits)
    assert told.selection_bytes > 4 * work.layout.size


def test_without_a_selection_no_room_is_kept_for_a_dense_model() -> None:
    for row in explain(Workload.of(PRUNES.override("strategy.candidates=1"))):
        assert row.pruning is not None
        assert (row.pruning.selections, row.pruning.selection_bytes) == (0, 0)
        selecting = POOLS[row.profile].report
        assert selecting["base_bytes"] == 4 * Workload.of(PRUNES).layout.size
        # More candidates may also need a larger bucket.
        saved = selecting["base_bytes"] + selecting["bucket_bytes"] - row.report["bucket_bytes"]
        assert selecting["ram_bytes"] - row.report["ram_bytes"] == saved


def test_profiles_of_other_densities_are_held_against_one_dense_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[float] = []

    def counted(*args: object, **options: object) -> Build:
        built.append(1.0)
        return build(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fedtiny.experiment.explain.build", counted)
    assert len(explain(Workload.of(PRUNES))) == 2
    assert len(built) == 1


def test_rounds_of_growth_are_told_beside_dense_gradients() -> None:
    told = pruning("pi-4")
    assert told.growths == 2
    assert told.gradient_bytes == 4 * Workload.of(PRUNES).layout.size
    # a place takes three bytes at most in a vector of this length, a gradient four
    assert told.growth_places * 4 < told.growth_up_bytes < told.growth_places * 7 + 200


def test_the_bytes_of_a_pruned_run_are_foretold() -> None:
    result = simulate(PRUNES)
    carried = result.summary["bytes_down"] + result.summary["bytes_up"]
    told = sum(row.run_bytes for row in POOLS.values())
    # Of 9 rounds one scores the model that about half of its devices have calibrated, and hold.
    score = Workload.of(PRUNES).visit_bytes(Workload.of(PRUNES).profiles[0].needed, Instruction())
    assert told - 2.5 * score.work == pytest.approx(carried, rel=0.05)
    dense = sum(pruning(name).dense_run_bytes for name in POOLS)
    assert dense == pytest.approx(9 * 5 * pruning("pi-4").dense_visit_bytes)
    assert carried < 0.5 * dense


def test_the_terminal_shows_both() -> None:
    shown = told(POOLS.values())
    assert "live weights" in shown
    assert "dense: RAM needed" in shown
    assert f"{pruning('pi-4').dense_visit_bytes:,} B" in shown
