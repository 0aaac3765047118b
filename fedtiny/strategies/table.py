"""The table of strategies, and how one is built from an experiment's ``[strategy]`` section."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import get_type_hints

from fedtiny import references
from fedtiny.errors import ExperimentError, StrategyError, did_you_mean
from fedtiny.strategies.base import Strategy

TABLE: Mapping[str, str] = {
    "fedavg": "fedtiny.strategies.fedavg:FedAvg",
    "fedprox": "fedtiny.strategies.fedprox:FedProx",
    "fedavgm": "fedtiny.strategies.fedopt:FedAvgM",
    "fedadam": "fedtiny.strategies.fedopt:FedAdam",
    "reptile": "fedtiny.strategies.reptile:Reptile",
    "tinyreptile": "fedtiny.strategies.tinyreptile:TinyReptile",
    "median": "fedtiny.strategies.median:Median",
    "joint": "fedtiny.strategies.joint:Joint",
    "none": "fedtiny.strategies.none:NoTraining",
}


def build(spec: Mapping[str, object]) -> Strategy:
    """The strategy of ``{name: "fedavg" | build: "module:object", field: value, ...}``.

    The object of ``build`` is a Strategy, a class of them, or a function that returns one and
    takes the fields. Raises StrategyError, naming what is nearest to a name that does not exist.
    """
    fields = dict(spec)
    if ("name" in fields) == ("build" in fields):
        raise StrategyError(
            "a strategy needs either name, one of "
            f"{', '.join(TABLE)}, or build, such as 'your_module:MyStrategy'"
        )
    if "build" in fields:
        label = reference = str(fields.pop("build"))
    else:
        label = str(fields.pop("name"))
        reference = _known(label)
    try:
        _check_fields(label, references.load(reference), fields)
        made = references.call(reference, fields)
    except (ExperimentError, TypeError, ValueError) as error:
        raise StrategyError(f"{label} cannot be built: {error}") from error
    if not isinstance(made, Strategy):
        raise StrategyError(
            f"{label} gives a {type(made).__name__}; it must give a fedtiny.Strategy"
        )
    return made


def _known(name: str) -> str:
    if name not in TABLE:
        raise StrategyError(
            f"there is no strategy {name!r}; {did_you_mean(name, TABLE)}there are "
            f"{', '.join(TABLE)}; your own is named by build = 'your_module:MyStrategy'"
        )
    return TABLE[name]


def _check_fields(label: str, made: object, fields: Mapping[str, object]) -> None:
    """Fields of a class of strategies have names and types; a function checks its own."""
    if not (isinstance(made, type) and issubclass(made, Strategy)):
        return
    types = get_type_hints(made)
    known = {f.name: types[f.name] for f in dataclasses.fields(made) if f.init}
    for name, value in fields.items():
        if name not in known:
            raise StrategyError(
                f"{label} has no field {name!r}; {did_you_mean(name, known)}it has "
                f"{', '.join(sorted(known))}"
            )
        if not _is_a(value, known[name]):
            raise StrategyError(
                f"{label}: {name} = {value!r} is of type {type(value).__name__}; the field is of "
                f"type {known[name].__name__}"
            )


def _is_a(value: object, kind: object) -> bool:
    if not isinstance(kind, type):
        return True  # a user's own annotation that is more than a class: the class checks it
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
