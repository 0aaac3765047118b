"""The table of strategies, and how one is built from an experiment's ``[strategy]`` section."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import get_type_hints

from fedtiny.errors import StrategyError
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
    if "name" in fields:
        label = str(fields.pop("name"))
        made = _load(_known(label))
    else:
        label = str(fields.pop("build"))
        made = _load(label)
    return _construct(label, made, fields)


def _known(name: str) -> str:
    if name not in TABLE:
        raise StrategyError(
            f"there is no strategy {name!r}{nearest(name, TABLE)}; there are {', '.join(TABLE)}; "
            "your own is named by build = 'your_module:MyStrategy'"
        )
    return TABLE[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` if something is near, else nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _load(path: str) -> object:
    module, _, name = path.partition(":")
    if not module or not name:
        raise StrategyError(f"{path!r} does not name a strategy; write 'your_module:MyStrategy'")
    try:
        loaded = import_module(module)
    except ImportError as error:
        raise StrategyError(
            f"build = {path!r}: {error}; the module must stand beside the experiment or be "
            "installed"
        ) from error
    if not hasattr(loaded, name):
        raise StrategyError(f"{module} has no {name!r}{nearest(name, vars(loaded))}")
    found: object = getattr(loaded, name)
    return found


def _construct(label: str, made: object, fields: Mapping[str, object]) -> Strategy:
    if isinstance(made, type) and issubclass(made, Strategy):
        _check_fields(label, made, fields)
    if not isinstance(made, Strategy) and callable(made):
        made = _call(label, made, fields)
    elif fields:
        raise StrategyError(
            f"{label} is a finished object: it takes no fields, got {', '.join(fields)}"
        )
    if not isinstance(made, Strategy):
        raise StrategyError(
            f"{label} gives a {type(made).__name__}; it must give a fedtiny.Strategy"
        )
    return made


def _call(label: str, make: Callable[..., object], fields: Mapping[str, object]) -> object:
    try:
        return make(**fields)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{name} = {value!r}" for name, value in fields.items()) or "no fields"
        raise StrategyError(f"{label} cannot be built with {given}: {error}") from error


def _check_fields(label: str, cls: type[Strategy], fields: Mapping[str, object]) -> None:
    types = get_type_hints(cls)
    known = {f.name: types[f.name] for f in dataclasses.fields(cls) if f.init}
    for name, value in fields.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r} ({known[near[0]].__name__})?" if near else ""
            raise StrategyError(
                f"{label} has no field {name!r}{hint}; it has {', '.join(sorted(known))}"
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
