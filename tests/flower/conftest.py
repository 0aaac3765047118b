"""One process for all strategies of a test session: a call needs nothing but its arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from fedtiny.flower.child import Child
from fedtiny.flower.strategy import FlowerStrategy

Make = Callable[..., FlowerStrategy]


@pytest.fixture(scope="session")
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()


@pytest.fixture
def make(child: Child) -> Make:
    """Makes a strategy of its name (in flwr.serverapp.strategy), its arguments, and our fields."""

    def make(name: str, arguments: Mapping[str, Any] | None = None, **ours: Any) -> FlowerStrategy:
        reference = name if ":" in name else f"flwr.serverapp.strategy:{name}"
        said = {"cohort": 4, "beta": 0.1, "child": child, **ours}
        return FlowerStrategy(reference=reference, arguments=json.dumps(arguments or {}), **said)

    return make
