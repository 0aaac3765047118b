"""The fleets of simulations/ learn what their README says, figure by figure."""

from __future__ import annotations

import re
from functools import cache

import pytest

from benchmarks.simulations import FOLDER, Figures, names
from fedtiny import Experiment, simulate
from fedtiny.data.sources import SOURCES

figures = cache(Figures.of)
DATA_SETS_NEEDED = {*SOURCES} - {"label-skew-digits"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


# Minutes a seed: benchmarks/simulations.py makes their rows.
LONG = [name for name in names() if name.startswith("omniglot") and not name.endswith("none")]


def readme() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted({*names()} - {*LONG}))
def test_an_experiment_reproduces_its_row_of_the_readme(
    name: str, request: pytest.FixtureRequest
) -> None:
    if Experiment.load(FOLDER / f"{name}.toml").data.source in DATA_SETS_NEEDED:
        request.getfixturevalue("data_dir")
    assert figures(name).row() in readme()


def test_a_seed_of_fedtiny_ends_where_the_readme_says() -> None:
    text = " ".join(readme().split())
    (stated,) = re.findall(r"Seed 1 of `digits_prune_fedtiny` ends at (0\.\d{4})\.", text)
    run = simulate(Experiment.load(FOLDER / "digits_prune_fedtiny.toml").override("seed=1"))
    assert f"{run.summary['evaluations']['adapted']['accuracy_before']:.4f}" == stated


def test_tinyreptile_adapts_better_than_joint_transfer() -> None:
    tiny, joint = (figures(f"sine_{name}").evaluations for name in ("tinyreptile", "joint"))
    assert tiny["few"][1] <= 0.5 * joint["few"][1]
    assert tiny["stream"][1] <= 0.3 * joint["stream"][1]


def test_reptile_gains_ten_points_over_the_same_net_from_a_random_start() -> None:
    learned, random = (
        figures(f"digits_fewshot_{name}").evaluations for name in ("reptile", "none")
    )
    for protocol in ("adapted", "online"):
        assert learned[protocol][1] >= random[protocol][1] + 0.10


@pytest.mark.usefixtures("data_dir")
def test_a_short_run_on_omniglot_learns_features_for_alphabets_that_nobody_saw() -> None:
    learned = Figures.of("omniglot_5way5shot_reptile", "run.rounds=800").evaluations
    random = figures("omniglot_5way5shot_none").evaluations
    after = {protocol: f"{learned[protocol][1]:.3f}" for protocol in ("adapted", "online")}
    assert after == {"adapted": "0.900", "online": "0.882"}
    assert learned["adapted"][1] >= random["adapted"][1] + 0.10
