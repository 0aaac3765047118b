from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import ExperimentError
from fedtiny.experiment import reading
from fedtiny.experiment.reading import Origin, changed, line_of, parse_setting, parse_toml, read

# ---- lines -----------------------------------------------------------------------------------

TEXT = '''# line 1
seed = 7
title = """
[run]
rounds = 1
"""

[run]
rounds = 10  # line 9
list = [
  1,
]
inner.key = 3
"quoted key" = 4

[fleet]
profiles = { a = 1, b = 2 }
rounds = 17
'''


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("seed",), 2),
        (("run",), 8),
        (("run", "rounds"), 9),  # not the one inside a text, nor that of another section
        (("run", "list"), 10),
        (("run", "inner", "key"), 13),
        (("run", "quoted key"), 14),
        (("fleet", "profiles", "b"), 17),
        (("fleet", "rounds"), 18),
        (("fleet", "not there"), 16),  # then its table
        (("not", "there"), None),
    ],
)
def test_a_value_is_found_on_the_line_where_its_statement_begins(
    keys: tuple[str, ...], line: int | None
) -> None:
    assert line_of(TEXT, keys) == line
    assert line_of(TEXT.replace("\n", "\r\n"), keys) == line


def test_a_text_that_is_not_toml_is_named_with_its_line() -> None:
    with pytest.raises(ExperimentError, match=r"a\.toml: not a TOML file: .*line 2"):
        parse_toml("a = 1\nb = \n", "a.toml")
    with pytest.raises(ExperimentError, match=r"a\.toml: not a TOML file: .*overwrite.*line 2"):
        parse_toml("a = 1\na = 2\n", "a.toml")


# ---- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "keys", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("run.rounds = 10", ("run", "rounds"), 10),
        ("strategy.name=fedavg", ("strategy", "name"), "fedavg"),
        ("strategy.name='fedavg'", ("strategy", "name"), "fedavg"),
        ("device.ram=256KiB", ("device", "ram"), "256KiB"),
        ("model.build=mine:f", ("model", "build"), "mine:f"),
        ("a=x=y", ("a",), "x=y"),
        ("fleet.profiles={pi-4=1}", ("fleet", "profiles"), {"pi-4": 1}),
        ("device.pi-4.batch=8", ("device", "pi-4", "batch"), 8),
    ],
)
def test_a_setting_is_a_key_and_a_toml_value_or_a_bare_text(
    setting: str, keys: tuple[str, ...], value: Any
) -> None:
    assert parse_setting(setting) == (keys, value)


@pytest.mark.parametrize("setting", ["rounds", "=3", "a b=3", "[run]=3"])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(ExperimentError, match=r"--set .*(KEY=VALUE|is not a key)"):
        parse_setting(setting)


def test_a_setting_replaces_its_value_and_leaves_the_rest() -> None:
    table = {"run": {"rounds": 1, "minimum": 2}, "fleet": {"profiles": {"a": 1}}, "seed": 3}
    after = changed(changed(table, "run.rounds=5"), "fleet.profiles={b=1}")
    assert after == {
        "run": {"rounds": 5, "minimum": 2},
        "fleet": {"profiles": {"b": 1}},
        "seed": 3,
    }
    assert table["run"] == {"rounds": 1, "minimum": 2}


# ---- kinds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Everything(reading.Section):
    text: reading.Text = "x"
    flag: reading.Flag = False
    natural: reading.Natural = 0
    positive: reading.Positive = 1
    seed: reading.Seed = 0
    rate: reading.Rate = 1.0
    probability: reading.Probability = 0.0
    non_negative: reading.NonNegative = 0.0
    seconds: reading.Seconds = 0.0
    duration: reading.Duration = 1.0
    bits: reading.BitsPerSecond = 1.0
    size: reading.Bytes | None = None
    shares: reading.Shares = field(default_factory=dict)
    arguments: reading.Arguments = field(default_factory=dict)
    plan: reading.Plan = "all"
    choice: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("key", "given_value", "value"),
    [
        ("text", "a\nb", "a\nb"),
        ("flag", True, True),
        ("natural", 0, 0),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("rate", 1, 1.0),
        ("probability", 1, 1.0),
        ("seconds", "100ms", 0.1),
        ("seconds", "5 min", 300.0),
        ("seconds", "1e-3s", 0.001),
        ("seconds", 0, 0.0),
        ("duration", "2h", 7200.0),
        ("duration", "1.5d", 129600.0),
        ("duration", 2.5, 2.5),
        ("duration", 1e-7, 1e-7),
        ("bits", "250kbit/s", 250_000.0),
        ("bits", "1Gbit/s", 1e9),
        ("size", "256KiB", 262_144),
        ("size", 4096, 4096),
        ("shares", {"a": 0.25, "b": 0.75}, {"a": 0.25, "b": 0.75}),
        ("arguments", {"a": [1, 2]}, {"a": [1, 2]}),
        ("plan", "last:2", "last:2"),
        ("plan", "named:fc.*,head.bias", "named:fc.*,head.bias"),
        ("plan", "biases:4+last:1", "biases:4+last:1"),
        ("plan", "named:a.weight{in=1/4},b.*{out=0-3+9}", "named:a.weight{in=1/4},b.*{out=0-3+9}"),
        ("choice", "b", "b"),
    ],
)
def test_a_value_of_its_kind_is_read(key: str, given_value: Any, value: Any) -> None:
    result = getattr(read(Everything, {key: given_value}, Origin(), ("section",)), key)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "given_value", "expected"),
    [
        ("text", "", "a text"),
        ("text", 3, "a text"),
        ("flag", 1, "true or false"),
        ("natural", -1, "an integer >= 0"),
        ("natural", True, "an integer >= 0"),
        ("natural", 1.0, "an integer >= 0"),
        ("natural", "10", "an integer >= 0"),
        ("positive", 0, "an integer >= 1"),
        ("seed", 2**64, r"from 0 to 2\^64 - 1"),
        ("rate", 0, "a number > 0"),
        ("rate", float("nan"), "a number > 0"),
        ("rate", float("inf"), "a number > 0"),
        ("non_negative", -0.1, "a number >= 0"),
        ("probability", 1.01, "a number from 0 to 1"),
        ("seconds", "10 sec", "a duration such as"),
        ("seconds", "10KiB", "a duration such as"),
        ("seconds", "-1s", "a duration such as"),
        ("seconds", "1.2.3s", "a duration such as"),
        ("seconds", True, "a duration such as"),
        ("duration", "0s", "a duration > 0"),
        ("bits", "10MB", "a rate > 0 such as"),
        ("bits", 0, "a rate > 0 such as"),
        ("size", "10s", "a size such as"),
        ("size", 1.5, "a size such as"),
        ("size", -1, "a size such as"),
        ("shares", {"a": 0.5}, "they add up to 0.5"),
        ("shares", {"a": 1.5, "b": -0.5}, "a table of profile = share"),
        ("shares", {}, "they add up to 0"),
        ("shares", 1, "a table of profile = share"),
        ("arguments", [1], "a table"),
        ("plan", "last:0", "'all', 'biases', 'last:2'"),
        ("plan", "some", "'all', 'biases', 'last:2'"),
        ("plan", "named:a.weight{in=4/1}", "4/1 is no share of channels"),
        ("choice", "c", "'a' or 'b'"),
        ("choice", ["a"], "'a' or 'b'"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_is_expected(
    key: str, given_value: Any, expected: str
) -> None:
    with pytest.raises(ExperimentError, match=rf"section\.{key} = .* is not .*{expected}"):
        read(Everything, {key: given_value}, Origin(), ("section",))


@given(st.floats(1e-9, 1e9), st.sampled_from(["ms", "s", "min", "h", "d"]))
def test_a_duration_is_its_number_times_its_unit(value: float, unit: str) -> None:
    factor = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    section = read(Everything, {"duration": f"{value!r}{unit}"}, Origin(), ())
    assert section.duration == value * factor


@given(st.text("0123456789.e+-smihd ", max_size=6))
def test_any_text_is_a_duration_or_an_experiment_error(text: str) -> None:
    with suppress(ExperimentError):
        assert read(Everything, {"seconds": text}, Origin(), ()).seconds >= 0


# ---- sections --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Required(reading.Section):
    rounds: reading.Positive
    minimum: reading.Positive = 2


def test_what_is_not_given_has_its_default() -> None:
    assert read(Required, {"rounds": 1}, Origin(), ("run",)) == Required(1, 2)


def test_a_missing_key_is_named_with_the_line_of_its_section() -> None:
    origin = Origin("a.toml", text="seed = 1\n\n[run]\nminimum = 1\n")
    with pytest.raises(
        ExperimentError, match=r"a\.toml, line 3: run\.rounds is missing; give it an integer >= 1"
    ):
        read(Required, {"minimum": 1}, origin, ("run",))


def test_an_unknown_key_is_named_with_its_line_and_the_nearest() -> None:
    origin = Origin("a.toml", text="[run]\nrounds = 1\nminimun = 1\n")
    with pytest.raises(
        ExperimentError,
        match=r"a\.toml, line 3: unknown key 'run\.minimun'; did you mean 'minimum'\? "
        r"\[run\] has rounds, minimum$",
    ):
        read(Required, {"rounds": 1, "minimun": 1}, origin, ("run",))


def test_an_unknown_key_without_a_near_one_names_those_there_are() -> None:
    with pytest.raises(ExperimentError, match=r"'run\.zzz'; \[run\] has rounds, minimum$"):
        read(Required, {"zzz": 1}, Origin(), ("run",))


def test_a_value_where_a_section_belongs_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"run = 3 must be a table \[run\]"):
        read(Required, 3, Origin(), ("run",))


def test_a_setting_is_blamed_before_the_file() -> None:
    origin = Origin("a.toml", text="[run]\nrounds = 1\nminimum = 1\n", settings=("run.rounds=0",))
    assert origin.place(("run", "rounds")) == "--set run.rounds=0"
    assert origin.place(("run", "minimum")) == "a.toml, line 3"
    assert Origin().place(("run",)) == "the experiment"
