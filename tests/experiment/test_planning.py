"""``plan = "auto"`` in an experiment, and the command that shows what may be chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedtiny.cli import app
from fedtiny.cli_plan import abbreviated
from fedtiny.errors import ExperimentError
from fedtiny.experiment import Experiment, planning
from fedtiny.experiment.explain import explain
from fedtiny.experiment.workload import Workload
from fedtiny.simulator.run import Progress, simulate

AUTO = Experiment.of(
    {
        "seed": 3,
        "model": {"build": "digits_mlp", "hidden": 12},
        "data": {"source": "label-skew-digits", "public": 40},
        "device": {"ram": "8KiB", "plan": "auto", "pi-4": {"ram": "5KiB"}},
        "pretrain": {"steps": 20},
        "strategy": {"name": "fedavg", "cohort": 4},
        "fleet": {
            "devices": 20, "held_out": 2, "profiles": {"cortex-m4": 0.5, "pi-4": 0.5},
            "threads": 1,
        },
        "run": {"rounds": 2, "checkpoint_every": 1},
    }
)  # fmt: skip


def plans(experiment: Experiment) -> list[str]:
    work = Workload.of(experiment)
    return [work.budget(name).plan for name in experiment.fleet.profiles]


def forget() -> None:
    """As in another process."""
    planning._search.cache_clear()
    planning._contributions.cache_clear()


def test_different_budgets_find_different_plans_that_share_a_layout() -> None:
    work = Workload.of(AUTO)
    large, small = (profile.needed for profile in work.profiles)
    assert large.digest != small.digest
    assert large.layout == small.layout
    assert large.report()["trained_parameters"] > small.report()["trained_parameters"]
    assert small.report()["ram_bytes"] <= 5 * 1024 < large.report()["ram_bytes"] <= 8 * 1024
    assert [row.plan for row in explain(work)] == plans(AUTO)


def test_another_process_finds_the_same_programs() -> None:
    digests = [profile.needed.digest for profile in Workload.of(AUTO).profiles]
    forget()
    assert [profile.needed.digest for profile in Workload.of(AUTO).profiles] == digests


def test_a_run_that_goes_on_trains_by_the_plans_that_it_began_with(tmp_path: Path) -> None:
    whole = simulate(AUTO)
    assert [row["plan"] for row in whole.summary["profiles"]] == plans(AUTO)
    with pytest.raises(InterruptedError):
        simulate(AUTO, out=tmp_path / "run", progress=stop)
    forget()
    resumed = simulate(AUTO, out=tmp_path / "run", resume=True)
    assert resumed.summary["model_digest"] == whole.summary["model_digest"]
    assert resumed.summary["profiles"] == whole.summary["profiles"]


def stop(progress: Progress) -> None:
    raise InterruptedError


def test_a_profile_may_name_a_plan_of_its_own() -> None:
    found, named = plans(AUTO.override("device.pi-4.plan='biases'"))
    assert named == "biases"
    assert found not in ("auto", "biases")


def test_without_public_samples_it_is_told_what_to_set() -> None:
    tables = {key: value for key, value in AUTO.given.items() if key != "pretrain"}
    with pytest.raises(ExperimentError, match=r"plan = 'auto' needs .* set data\.public"):
        Workload.of(Experiment.of(tables | {"data": {"source": "label-skew-digits"}}))


def test_a_density_below_one_and_auto_exclude_each_other() -> None:
    with pytest.raises(ExperimentError, match="plan = 'auto' is for density = 1"):
        AUTO.override("device.density=0.5")


# ---- the command -----------------------------------------------------------------------------


def told(folder: Path, *arguments: str) -> str:
    file = folder / "fleet.toml"
    file.write_text(AUTO.override("device.plan='last:1'").to_toml(), encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(file), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_tells_the_plan_of_the_experiment_and_draws_the_frontier(
    tmp_path: Path,
) -> None:
    picture = tmp_path / "frontier.svg"
    rows = json.loads(told(tmp_path, "--json", "--out", str(picture)))["plans"]
    assert rows[-1]["found"]["plan"] == plans(AUTO)[0]
    assert 2 <= len(rows) <= planning.SHOWN
    assert all(0 <= row["accuracy"] <= 1 and row["found"]["ram_bytes"] <= 8192 for row in rows)
    assert "accuracy after a short training" in picture.read_text(encoding="utf-8")


def test_the_command_shows_a_table_and_measures_if_it_is_asked_to(tmp_path: Path) -> None:
    shown = told(tmp_path, "--profile", "pi-4", "--measure")
    assert "the plan of pi-4: " in shown
    assert "after a short training" in shown


def test_a_profile_that_the_fleet_has_not_is_answered_with_those_that_it_has(
    tmp_path: Path,
) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(AUTO.to_toml(), encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(file), "--profile", "pi4"])
    assert result.exit_code == ExperimentError.exit_code
    assert "did you mean 'pi-4'" in result.output


def test_long_lists_of_channels_are_cut_on_a_screen() -> None:
    listed = "+".join(map(str, range(0, 60, 2)))
    plan = f"last:1+named:conv1.weight{{in={listed}}},conv2.weight{{in=3+5}}"
    short = abbreviated(plan)
    assert short == "last:1+named:conv1.weight{in=0+2+4+6+8+10+12+14+16+...},conv2.weight{in=3+5}"
