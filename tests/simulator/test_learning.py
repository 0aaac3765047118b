"""The fleets of simulations/ learn what their README says, figure by figure."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.simulations import FOLDER, Figures, names

figures = cache(Figures.of)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("name", names())
def test_an_experiment_reproduces_its_row_of_the_readme(name: str) -> None:
    assert figures(name).row() in (FOLDER / "README.md").read_text(encoding="utf-8")


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
