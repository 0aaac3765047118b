"""What a plan says, and what it selects."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import CompileError
from fedtiny.layout import FROZEN, Layout, Parameter, merge_ranges
from fedtiny.update_plan import WHOLE, Channels, Part, Pattern, Rule, UpdatePlan

LAYOUT = Layout.of([
    Parameter("stem.weight", (3, 3, 2, 8), FROZEN),
    Parameter("conv.weight", (3, 3, 8, 10)), Parameter("conv.bias", (10,)),
    Parameter("gate.weight", (10, 6)),
    Parameter("fc.weight", (6, 4)), Parameter("fc.bias", (4,)),
])  # fmt: skip


def resolved(text: str) -> dict[str, Part]:
    return UpdatePlan.parse(text).resolve(LAYOUT)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ["conv.weight", "conv.bias", "gate.weight", "fc.weight", "fc.bias"]),
        ("last:1", ["fc.weight", "fc.bias"]),
        ("last:2", ["gate.weight", "fc.weight", "fc.bias"]),
        ("biases", ["conv.bias", "fc.bias"]),
        ("biases:1", ["fc.bias"]),
        ("biases:9", ["conv.bias", "fc.bias"]),
        ("named:*.weight", ["conv.weight", "gate.weight", "fc.weight"]),
        ("named:fc.*,gate.?eight", ["gate.weight", "fc.weight", "fc.bias"]),
        ("biases+named:gate.weight", ["conv.bias", "gate.weight", "fc.bias"]),
    ],
)
def test_whole_parameters_are_selected_in_the_order_of_the_layout(
    text: str, names: list[str]
) -> None:
    assert list(resolved(text).items()) == [(name, WHOLE) for name in names]


@pytest.mark.parametrize(
    ("channels", "part"),
    [
        ("in=1/4", Part("in", (0, 1))),  # 8 / 4
        ("out=1/4", Part("out", (0, 1))),  # 10 / 4, rounded down
        ("out=1/100", Part("out", (0,))),  # one at least
        ("in=3/4", Part("in", (0, 1, 2, 3, 4, 5))),
        ("in=2-4", Part("in", (2, 3, 4))),
        ("out=9", Part("out", (9,))),
        ("out=7+0-2+4-5", Part("out", (0, 1, 2, 4, 5, 7))),
        ("in=0-7", WHOLE),
        ("in=1/1", WHOLE),
    ],
)
def test_channels_are_shares_or_lists_of_an_axis(channels: str, part: Part) -> None:
    assert resolved(f"named:conv.weight{{{channels}}}") == {"conv.weight": part}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("named:fc.weight{in=0}+named:fc.weight{in=3-4}", Part("in", (0, 3, 4))),
        ("named:fc.weight{in=0},*.weight{in=1/2}", Part("in", (0, 1, 2))),
        ("named:fc.weight{in=0-2}+named:fc.weight{in=3-5}", WHOLE),
        ("named:fc.weight{in=0}+last:1", WHOLE),
        ("all+named:fc.weight{in=0}+named:fc.weight{out=0}", WHOLE),
    ],
)
def test_what_several_rules_select_trains_as_the_widest_of_them_say(text: str, part: Part) -> None:
    assert resolved(text)["fc.weight"] == part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown plan ''; there are 'all'"),
        ("last:0", "unknown plan 'last:0'"),
        ("biases:x", "unknown plan 'biases:x'"),
        ("all:2", "unknown plan 'all:2'"),
        ("all+", "unknown plan ''"),
        ("named:", "unknown plan 'named:'"),
        ("named:a,,b", "'' is no pattern of a plan"),
        ("named:a{in=1/4", r"is no pattern of a plan"),
        ("named:a{up=1/4}", r"is no pattern of a plan"),
        ("named:a{in=}", "is no pattern of a plan"),
        ("named:a{in=5/4}", "5/4 is no share of channels"),
        ("named:a{in=0/4}", "0/4 is no share of channels"),
        ("named:a{in=4-3}", "'4-3' is no range of channels"),
        ("named:a{in=1/4+3}", "'1/4' is no range of channels"),
        ("named:conv?", r"'named:conv\?' trains none of the parameters \['conv.weight'"),
        ("named:fc.*,conv2.*", r"'named:conv2.\*' trains none"),
        ("named:stem.*", "trains none"),  # it is frozen
        ("named:fc.*{in=1/2}", r"fc.bias has the shape \(4,\) and no inputs: write fc.bias{out="),
        ("named:fc.weight{in=4-6}", "trains channel 6 of fc.weight .* has the channels 0 to 5"),
        ("named:fc.weight{in=0}+named:*.weight{out=0}", "narrows fc.weight along 'in' and along"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        resolved(text)


def test_plans_are_added_and_written_from_python() -> None:
    plan = UpdatePlan.biases() + UpdatePlan.last_layers(1) + UpdatePlan.biases()
    assert str(plan) == "biases+last:1"
    assert str(UpdatePlan.named("a.weight{in=2/8}", "b.*{out=3+1-2+7}")) == (
        "named:a.weight{in=1/4},b.*{out=1-3+7}"
    )
    assert UpdatePlan.all() == UpdatePlan.parse("all")


SPANS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=5)
CHANNELS = st.builds(
    lambda axis, share, spans: (
        Channels(axis, Fraction(*share)) if share
        else Channels(axis, ranges=merge_ranges((at, at + n) for at, n in spans))
    ),
    st.sampled_from(["in", "out"]),
    st.none() | st.tuples(st.integers(1, 8), st.just(8)),
    SPANS,
)  # fmt: skip
GLOBS = st.text("abz019._*?[]-/=:", min_size=1, max_size=8)
RULES = st.one_of(
    st.sampled_from([Rule("all"), Rule("biases")]),
    st.builds(Rule, st.sampled_from(["last", "biases"]), st.integers(1, 999)),
    st.builds(
        lambda patterns: Rule("named", patterns=tuple(patterns)),
        st.lists(st.builds(Pattern, GLOBS, st.none() | CHANNELS), min_size=1, max_size=3),
    ),
)
PLANS = st.builds(
    lambda rules: UpdatePlan(tuple(dict.fromkeys(rules))), st.lists(RULES, min_size=1)
)


@given(PLANS)
def test_a_plan_is_what_its_text_says(plan: UpdatePlan) -> None:
    assert UpdatePlan.parse(str(plan)) == plan


@given(st.text("al:bis+named{}=/-,1420.*inout", max_size=20))
def test_any_text_is_a_plan_with_one_canonical_text_or_is_refused(text: str) -> None:
    try:
        plan = UpdatePlan.parse(text)
    except CompileError:
        return
    assert str(UpdatePlan.parse(str(plan))) == str(plan)
