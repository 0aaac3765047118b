"""Objects of the user's own: found, called, or refused with the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedtiny.errors import ExperimentError, did_you_mean
from fedtiny.references import call, check_fields, load

HERE = "tests.test_references:"
READY = object()


def area(width: int, height: int = 2) -> int:
    return width * height


def anything(**figures: int) -> dict[str, int]:
    return figures


def test_a_reference_is_the_object_of_that_name() -> None:
    assert load("math:pi") == pytest.approx(3.14159, abs=1e-5)


def test_what_can_be_called_is_called_with_the_arguments() -> None:
    assert call(HERE + "area", {"width": 3}) == 6
    assert call(HERE + "anything", {"a": 1}) == {"a": 1}
    assert type(call(HERE + "READY", {})) is object


@pytest.mark.parametrize(
    ("reference", "arguments", "message"),
    [
        ("area", {}, "'area' names no object; write 'your_module:object'"),
        ("no_such:area", {}, "'no_such:area' cannot be imported: .*must stand beside"),
        (HERE + "aera", {}, "has no 'aera'; did you mean 'area'"),
        (HERE + "area", {"widht": 3}, "takes no 'widht'; did you mean 'width'.* width, height"),
        (HERE + "area", {}, "missing a required argument: 'width'"),
        (HERE + "READY", {"width": 3}, "is a finished object: it takes nothing, got 'width'"),
    ],
)
def test_what_cannot_be_made_says_why(
    reference: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        call(reference, arguments)


def test_only_a_name_that_is_near_is_proposed() -> None:
    assert did_you_mean("roudns", ("rounds", "seed")) == "did you mean 'rounds'? "
    assert did_you_mean("batch", ("rounds", "seed")) == ""


# ---- the types of fields ---------------------------------------------------------------------


@dataclass
class Shape:
    sides: int = 4
    length: float = 1.0
    filled: bool = False
    corner: tuple[float, float] = (0.0, 0.0)
    weights: tuple[float, ...] = ()
    colour: int | None = None
    area: float = field(default=1.0, init=False)


@pytest.mark.parametrize(
    "values",
    [
        {"sides": 3, "length": 2, "filled": True, "corner": (1, 2.5), "weights": (1, 2, 3.5)},
        {"colour": None, "weights": ()},
        {"colour": 7},
    ],
)
def test_values_of_the_types_of_their_fields_pass(values: dict[str, Any]) -> None:
    check_fields("the shape", Shape, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sides": 3.0}, "the shape: sides = 3.0 is of type float; the field is of type int"),
        ({"sides": True}, "sides = True is of type bool"),
        ({"length": True}, "length = True is of type bool; the field is of type float"),
        ({"length": "2"}, "length = '2' is of type str"),
        ({"filled": 1}, "filled = 1 is of type int; the field is of type bool"),
        ({"corner": (1, 2, 3)}, r"corner = \(1, 2, 3\) .* of type tuple\[float, float\]"),
        ({"corner": 3}, "corner = 3 is of type int"),
        ({"weights": (1, "2")}, r"weights = \(1, '2'\)"),
        ({"colour": "red"}, r"colour = 'red' is of type str; the field is of type int \| None"),
        ({"side": 3}, "the shape has no 'side'; did you mean 'sides'"),
        ({"area": 3.0}, "the shape has no 'area'"),
        ({"colour": 1, "filled": False, "sides": None}, "sides = None is of type NoneType"),
    ],
)
def test_a_value_of_another_type_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        check_fields("the shape", Shape, values)


def test_a_hidden_field_is_not_there() -> None:
    with pytest.raises(ExperimentError, match="has no 'sides'; it has length, filled"):
        check_fields("the shape", Shape, {"sides": 3}, hidden=("sides",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("made = (", "cannot be imported: SyntaxError"),
        ("raise RuntimeError('no luck')", "cannot be imported: RuntimeError: no luck"),
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_module_that_fails_as_it_is_imported_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ExperimentError, match=told):
        call(f"{name}:made", {})


def test_an_instance_is_taken_as_it_is_even_if_it_can_be_called() -> None:
    assert call(HERE + "INSTANCE", {}) is INSTANCE


class Countdown:
    def __call__(self) -> int:
        return 1


INSTANCE = Countdown()
