"""Objects of the user's own: found, called, or refused with the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from fedtiny.errors import ExperimentError, did_you_mean
from fedtiny.references import call, load

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
