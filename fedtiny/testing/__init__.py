"""What any strategy must keep, as tests: for one of your own, a line in a file of tests.

    from fedtiny.testing import conformance

    test_trimmed_mean = conformance({"build": "trimmed:TrimmedMean", "cohort": 4})

pytest then runs each of the `LAWS` on it: with the coordinator's own code, with the Programs and
visits of real devices, of which some train only a part of the model, and with crashes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedtiny.testing.laws import LAWS as LAWS

Law = Callable[[Mapping[str, Any]], None]


def conformance(strategy: Mapping[str, Any]) -> Callable[[Law], None]:
    """Tests for pytest, one a law, of the strategy that a ``[strategy]`` section names."""
    import pytest

    def test_it_keeps_the_law(law: Law) -> None:
        law(strategy)

    marked = pytest.mark.parametrize("law", LAWS, ids=[law.__name__ for law in LAWS])
    return marked(test_it_keeps_the_law)
