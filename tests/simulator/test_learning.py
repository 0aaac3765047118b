"""The fleets of simulations/ learn what their README says, figure by figure."""

from __future__ import annotations

import re

import pytest

from benchmarks.simulations import FOLDER, SEEDS, Figures, noted
from fedtiny import Experiment, simulate
from fedtiny.data.sources import SOURCES

NOTED = noted()
DATA_SETS_NEEDED = {*SOURCES} - {"label-skew-digits"}
# Minutes a seed, or a strategy that another task runs here: benchmarks/simulations.py runs them.
LONG = {name for name in NOTED if name.startswith("omniglot") and not name.endswith("none")}
ALIKE = {
    "cifar_skew_fedadam", "har_plain", "har_reptile", "omniglot_5way1shot_none", "sine_tinymetafed",
    "speech_fedavg",
}  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def readme() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def means(name: str) -> Figures:
    return Figures.mean(NOTED[name])


@pytest.mark.parametrize("name", NOTED)
def test_a_row_of_the_readme_is_the_mean_of_what_was_noted(name: str) -> None:
    assert len(NOTED[name]) == len(SEEDS)
    assert means(name).row(name) in readme()


@pytest.mark.parametrize("name", sorted({*NOTED} - LONG - ALIKE))
def test_an_experiment_ends_with_the_figures_that_were_noted(
    name: str, request: pytest.FixtureRequest
) -> None:
    """One of the seeds: a row of the README takes them all, and benchmarks/simulations.py."""
    if Experiment.load(FOLDER / f"{name}.toml").data.source in DATA_SETS_NEEDED:
        request.getfixturevalue("data_dir")
    seed = SEEDS[sorted(NOTED).index(name) % len(SEEDS)]
    run, expected = Figures.of(name, seed), NOTED[name][SEEDS.index(seed)]
    assert run.evaluations.keys() == expected.evaluations.keys()
    for protocol, row in expected.evaluations.items():
        assert run.evaluations[protocol] == pytest.approx(row, rel=1e-6)
    # What a message takes beside its values; the rows say no more.
    assert run.megabytes_up == pytest.approx(expected.megabytes_up, rel=1e-3)
    assert run.virtual_hours == pytest.approx(expected.virtual_hours, rel=1e-3)


def test_a_seed_of_fedtiny_ends_where_the_readme_says() -> None:
    text = " ".join(readme().split())
    (stated,) = re.findall(r"Seed 1 of `digits_prune_fedtiny` ends at (0\.\d{4})\.", text)
    run = simulate(Experiment.load(FOLDER / "digits_prune_fedtiny.toml").override("seed=1"))
    assert f"{run.summary['evaluations']['adapted']['accuracy_before']:.4f}" == stated


def test_tinyreptile_adapts_better_than_joint_transfer() -> None:
    tiny, joint = (means(f"sine_{name}").evaluations for name in ("tinyreptile", "joint"))
    assert tiny["few"][1] <= 0.5 * joint["few"][1]
    assert tiny["stream"][1] <= 0.3 * joint["stream"][1]


def test_reptile_gains_ten_points_over_the_same_net_from_a_random_start() -> None:
    learned, random = (means(f"digits_fewshot_{name}").evaluations for name in ("reptile", "none"))
    for protocol in ("adapted", "online"):
        assert learned[protocol][1] >= random[protocol][1] + 0.10


@pytest.mark.usefixtures("data_dir")
def test_a_short_run_on_omniglot_learns_features_for_alphabets_that_nobody_saw() -> None:
    learned = Figures.of("omniglot_5way5shot_reptile", 1, "run.rounds=800").evaluations
    random = NOTED["omniglot_5way5shot_none"][0].evaluations
    after = {protocol: f"{learned[protocol][1]:.3f}" for protocol in ("adapted", "online")}
    assert after == {"adapted": "0.903", "online": "0.884"}
    assert learned["adapted"][1] >= random["adapted"][1] + 0.10
