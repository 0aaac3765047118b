"""The layout of the averaged vector."""

from __future__ import annotations

from fedtiny.layout import STATISTICS, Layout, Parameter


def test_statistics_are_a_group_of_the_layout() -> None:
    parameters = [Parameter("w", (7,)), Parameter("bn.mean", (3,), STATISTICS),
                  Parameter("bn.var", (3,), STATISTICS)]  # fmt: skip
    assert Layout.of(parameters).statistics_floats == 6
    assert Layout.of(parameters[:1]).statistics_floats == 0
