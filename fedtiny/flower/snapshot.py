"""What a strategy of Flower's remembers: its attributes, as a tree of `frames`, and back.

Functions are not kept: they are those that its constructor makes again. Anything else that is no
plain value, array or record of Flower's is an error that names the attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedtiny.errors import StrategyError
from fedtiny.flower.frames import NoTreeError, Tree, pack, unpack

KEPT = "numbers, text, bytes, arrays, lists, tuples, dicts and Flower's records"


@dataclass(frozen=True, eq=False)
class _Wrapped:
    """The attributes of a strategy inside another."""

    attributes: dict[str, Tree]


_MAKERS: Mapping[str, Callable[[Tree], object]] = {
    "strategy": _Wrapped,
    "Array": Array,
    "ArrayRecord": lambda arrays: ArrayRecord({name: Array(a) for name, a in arrays.items()}),
    "MetricRecord": MetricRecord,
    "ConfigRecord": ConfigRecord,
}


def taken(strategy: Strategy, fresh: Strategy) -> bytes:
    """The snapshot of a strategy; ``fresh`` is one that was made just like it, and not used yet."""
    try:
        return pack(_attributes(strategy, fresh), type(strategy).__name__, _foreign)
    except NoTreeError as error:
        raise StrategyError(f"{error}, which no snapshot can hold; keep {KEPT}") from None


def restored(snapshot: bytes, fresh: Strategy) -> Strategy:
    """The strategy of a snapshot, made of one that was not used yet."""
    _restore(fresh, unpack(snapshot, _MAKERS))
    return fresh


def _restore(strategy: Strategy, attributes: Mapping[str, Tree]) -> None:
    for name, value in attributes.items():
        if isinstance(value, _Wrapped):
            _restore(getattr(strategy, name), value.attributes)
        else:
            setattr(strategy, name, value)


def _attributes(strategy: Strategy, fresh: Strategy) -> dict[str, Any]:
    """Those that are to be kept; of a wrapped strategy, its own."""
    kept: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        made = vars(fresh).get(name)
        if isinstance(value, Strategy) and isinstance(made, Strategy):
            kept[name] = _Wrapped(_attributes(value, made))
        elif not _same_function(value, made):
            kept[name] = value
    return kept


def _same_function(value: object, made: object) -> bool:
    name = getattr(value, "__qualname__", None)
    return callable(value) and name is not None and name == getattr(made, "__qualname__", None)


def _foreign(value: object) -> tuple[str, Tree] | None:
    match value:
        case _Wrapped():
            return "strategy", value.attributes
        case Array():
            return "Array", value.numpy()
        case ArrayRecord():
            return "ArrayRecord", {name: array.numpy() for name, array in value.items()}
        case MetricRecord() | ConfigRecord():
            return type(value).__name__, dict(value)
    return None
