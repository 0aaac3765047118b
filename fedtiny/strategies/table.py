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
    "fedadagrad": "fedtiny.strategies.fedopt:FedAdagrad",
    "fedadam": "fedtiny.strategies.fedopt:FedAdam",
    "fedyogi": "fedtiny.strategies.fedopt:FedYogi",
    "fednova": "fedtiny.strategies.fednova:FedNova",
    "scaffold": "fedtiny.strategies.scaffold:Scaffold",
    "fedbuff": "fedtiny.strategies.fedbuff:FedBuff",
    "fedbn": "fedtiny.strategies.fedbn:FedBN",
    "fedper": "fedtiny.strategies.fedper:FedPer",
    "fedrep": "fedtiny.strategies.fedrep:FedRep",
    "ditto": "fedtiny.strategies.ditto:Ditto",
    "perfedavg": "fedtiny.strategies.perfedavg:PerFedAvg",
    "fomaml": "fedtiny.strategies.fomaml:FOMAML",
    "anil": "fedtiny.strategies.anil:ANIL",
    "reptile": "fedtiny.strategies.reptile:Reptile",
    "tinyreptile": "fedtiny.strategies.tinyreptile:TinyReptile",
    "tinymetafed": "fedtiny.strategies.tinymetafed:TinyMetaFed",
    "fedncm": "fedtiny.strategies.fedncm:FedNCM",
    "fedridge": "fedtiny.strategies.fedridge:FedRidge",
    "norm-bound": "fedtiny.strategies.norm_bound:NormBound",
    "median": "fedtiny.strategies.median:Median",
    "trimmed-mean": "fedtiny.strategies.trimmed_mean:TrimmedMean",
    "krum": "fedtiny.strategies.krum:Krum",
    "multikrum": "fedtiny.strategies.krum:MultiKrum",
    "geometric-median": "fedtiny.strategies.geometric_median:GeometricMedian",
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
        reference = reference_of(label)
    try:
        if reference.startswith("flwr.") or is_flowers(references.load(reference)):
            made = references.load(_ADAPTED)(reference, fields)
        else:
            made = _made(label, reference, fields)
    except (ExperimentError, TypeError, ValueError) as error:
        raise StrategyError(f"{label} cannot be built: {error}") from error
    if not isinstance(made, Strategy):
        raise StrategyError(
            f"{label} gives a {type(made).__name__}; it must give a fedtiny.Strategy"
        )
    return made


def _made(label: str, reference: str, given: Mapping[str, object]) -> object:
    # A strategy is a value: what the file lists is a tuple.
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    kind = references.load(reference)
    if isinstance(kind, type) and issubclass(kind, Strategy):
        references.check_fields(label, kind, fields)
    return references.call(reference, fields)


# By name: this room knows nothing of Flower, and it is loaded for its strategies alone.
_ADAPTED = "fedtiny.flower.strategy:adapted"


def is_flowers(found: object) -> bool:
    """Whether it is a class of Flower's, or one that was made from such a class."""
    bases = found.__mro__ if isinstance(found, type) else ()
    return any(base.__module__.startswith("flwr.") for base in bases)


def reference_of(name: str) -> str:
    """The ``module:object`` of a name of the table; StrategyError if there is none."""
    if name not in TABLE:
        raise StrategyError(
            f"there is no strategy {name!r}; {did_you_mean(name, TABLE)}there are "
            f"{', '.join(TABLE)}; your own is named by build = 'your_module:MyStrategy'"
        )
    return TABLE[name]
