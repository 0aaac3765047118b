"""How transforms are named, in which order they stand, and what is wrong with a chain."""

from __future__ import annotations

import itertools
import math

import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.table import build
from fedtiny.transforms.table import STAGES, TABLE, joined, kept_vectors, parse, usage, written
from fedtiny.values import Transform

WHOLE = ("clip:1", "noise:0.5", "feedback", "topk:0.1", "int8")


def flaw(*texts: str) -> str:
    with pytest.raises(StrategyError) as refused:
        parse(texts)
    return str(refused.value)


def test_a_chain_is_read_in_its_order() -> None:
    assert parse(WHOLE) == (
        Transform("clip", 1.0), Transform("noise", 0.5), Transform("feedback"),
        Transform("topk", 0.1), Transform("int8"),
    )  # fmt: skip
    assert tuple(map(written, parse(WHOLE))) == WHOLE
    assert parse([]) == ()


@pytest.mark.parametrize("pair", list(itertools.permutations(WHOLE, 2)))
def test_two_that_stand_the_wrong_way_round_are_named(pair: tuple[str, str]) -> None:
    if WHOLE.index(pair[0]) < WHOLE.index(pair[1]):
        assert len(parse(pair)) == 2
    else:
        told = f"transforms: {pair[0]} before {pair[1]}: the order is {'; '.join(STAGES)}"
        assert told in flaw(*pair)


@pytest.mark.parametrize(
    ("pair", "what"),
    [
        (("topk:0.1", "randomk:0.1"), "topk or randomk"),
        (("int8", "sign"), "int8, qsgd or sign"),
        (("qsgd:7", "int8"), "int8, qsgd or sign"),
        (("clip:1", "clip:2"), "clip"),
    ],
)
def test_of_each_kind_there_is_one(pair: tuple[str, str], what: str) -> None:
    assert f"of {what} there can be one; leave one out" in flaw(*pair)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("topk", "topk:0: the share must be a number above 0 and at most 1, such as 'topk:0.1'"),
        ("topk:1.5", "topk:1.5: the share must be"),
        ("clip:-1", "clip:-1: the norm must be a number above 0"),
        ("noise:inf", "noise:inf: the sigma must be"),
        ("qsgd:2.5", "the levels must be a whole number above 0 and at most 127"),
        ("qsgd:128", "the levels must be"),
        ("randomk:x", "'randomk:x': 'x' is no number"),
        ("int8:4", "int8 takes no figure; write 'int8'"),
        ("topkk:0.1", "there is no 'topkk'; did you mean 'topk'? there are clip:NORM, "),
    ],
)
def test_a_figure_that_cannot_be_is_told_with_what_can(text: str, told: str) -> None:
    assert told in flaw(text)


def test_what_a_strategy_asks_for_and_what_a_file_adds_make_one_chain() -> None:
    own, added = parse(["topk:0.1"]), parse(["feedback", "int8"])
    assert joined(own, added) == parse(["feedback", "topk:0.1", "int8"])
    with pytest.raises(StrategyError, match=r"topk:0\.1 before randomk:0\.2: of topk or randomk"):
        joined(own, parse(["randomk:0.2"]))


def test_a_strategy_takes_them_from_a_file_and_checks_them_at_once() -> None:
    made = build({"name": "fedavg", "transforms": ["topk:0.1", "int8"]})
    assert made == FedAvg(transforms=("topk:0.1", "int8"))
    with pytest.raises(StrategyError, match=r"int8 before topk:0\.1"):
        build({"name": "fedavg", "transforms": ["int8", "topk:0.1"]})
    with pytest.raises(StrategyError, match="transforms"):
        build({"name": "fedavg", "transforms": "int8"})


def test_the_base_takes_a_vector_and_feedback_another() -> None:
    assert kept_vectors((), of_gradient=False) == 0
    assert kept_vectors(parse(["int8"]), of_gradient=False) == 1
    assert kept_vectors(parse(["int8"]), of_gradient=True) == 0
    assert kept_vectors(parse(["feedback", "int8"]), of_gradient=False) == 2


def test_every_row_tells_what_it_does_and_an_example_that_holds() -> None:
    for name, row in TABLE.items():
        assert row.does[0].islower()
        assert not row.does.endswith(".")
        if row.figure:
            assert row.figure.holds(row.figure.example)
            assert not row.figure.holds(math.nan)
            assert usage(name) == f"{name}:{row.figure.name.upper()}"
