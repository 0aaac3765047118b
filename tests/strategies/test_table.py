from __future__ import annotations

from collections.abc import Mapping

import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.table import build
from fedtiny.strategies.tinyreptile import TinyReptile
from tests.strategies import own


def test_a_name_and_fields_make_a_strategy() -> None:
    built = build({"name": "tinyreptile", "alpha": 1, "beta": 0.05})
    assert built == TinyReptile(alpha=1.0, beta=0.05)


def test_a_users_class_function_or_object_makes_a_strategy() -> None:
    at = "tests.strategies.own:"
    assert build({"build": at + "SignAveraging", "step": 0.5}).cohort == 10
    assert build({"build": at + "gentle", "cohort": 3}) == FedAvg(cohort=3, beta=0.001)
    assert build({"build": at + "ready_made"}) is own.ready_made


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({}, "either name.* or build"),
        ({"name": "fedavg", "build": "a:b"}, "either name.* or build"),
        ({"name": "tinyreptil"}, "no strategy 'tinyreptil'; did you mean 'tinyreptile'"),
        ({"name": "fedavg", "bta": 0.1}, r"no 'bta'; did you mean 'beta'"),
        ({"name": "fedavg", "needs": "all"}, "has no 'needs'"),
        ({"name": "joint", "steps": 2}, "has no 'steps'"),
        ({"name": "fedavg", "cohort": "ten"}, "cohort = 'ten' is of type str; .* of type int"),
        ({"name": "fedavg", "cohort": 2.5}, "cohort = 2.5 is of type float; .* of type int"),
        ({"name": "fedavg", "beta": True}, "beta = True is of type bool; .* of type float"),
        ({"name": "fedavg", "shuffle": 1}, "shuffle = 1 is of type int; .* of type bool"),
        ({"name": "fedavg", "cohort": 0}, "FedAvg: cohort = 0; it must be at least 1"),
        ({"name": "fedavg", "beta": -1.0}, "beta = -1.0; it must be a positive"),
        ({"name": "reptile", "anneal": "slowly"}, "must be one of linear, cosine, none"),
        ({"name": "fedprox", "mu": 0}, "mu = 0; it must be positive"),
        ({"build": "own"}, "'own' names no object; write 'your_module:object'"),
        ({"build": "no_such_module:X"}, "No module named 'no_such_module'"),
        ({"build": "tests.strategies.own:SignAverage"}, "did you mean 'SignAveraging'"),
        ({"build": "tests.strategies.own:not_a_strategy"}, "gives a str; it must give"),
        ({"build": "tests.strategies.own:gives_nothing"}, "gives a NoneType; it must give"),
        ({"build": "tests.strategies.own:gentle", "cohrt": 3}, "cannot be built.*'cohrt'"),
        ({"build": "tests.strategies.own:ready_made", "cohort": 3}, "finished object.*cohort"),
    ],
)
def test_a_section_that_is_wrong_is_answered_with_the_remedy(
    spec: Mapping[str, object], match: str
) -> None:
    with pytest.raises(StrategyError, match=match):
        build(spec)
