import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedtiny.experiment.writing import write_toml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBERS = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    TEXTS | st.booleans() | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_written_is_read_back(document: dict[str, Any]) -> None:
    assert tomllib.loads(write_toml(document)) == document


def test_the_one_character_that_json_and_toml_disagree_on_is_escaped() -> None:
    assert tomllib.loads(write_toml({"a": "\x7f"})) == {"a": "\x7f"}


def test_a_table_is_a_section_and_a_table_inside_it_stands_inline() -> None:
    document = {"run": {"rounds": 3, "of": {"a b": [1, 2.5], "c": True}}, "seed": 7}
    assert write_toml(document) == (
        'seed = 7\n\n[run]\nrounds = 3\nof = {"a b" = [1, 2.5], c = true}\n'
    )
