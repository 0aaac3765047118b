"""The table of strategies, and how one is built from an experiment's ``[strategy]`` section."""

from __future__ import annotations

from collections.abc import Mapping

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
    "oneshot": "fedtiny.strategies.oneshot:OneShot",
    "fedtiny": "fedtiny.strategies.fedtiny:FedTiny",
    "fedrts": "fedtiny.strategies.fedrts:FedRTS",
    "feddst": "fedtiny.strategies.feddst:FedDST",
    "sap": "fedtiny.strategies.sap:SAP",
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
        kind = references.load(reference)
        if isinstance(kind, type) and issubclass(kind, Strategy):
            references.check_fields(label, kind, fields)
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
