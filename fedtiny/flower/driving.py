"""A strategy of Flower's through its four methods, each time made anew of its snapshot.

All that a call needs is in its arguments, and what it draws is seeded by them: a call that is made
again, here or in another process, gives the same.
"""

from __future__ import annotations

import inspect
import random  # noqa: TID251 - Flower's strategies draw by it; it is seeded before each call
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import Strategy
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM, KEY_NORM_BIT

from fedtiny import references
from fedtiny.errors import StrategyError, did_you_mean
from fedtiny.flower.frames import Tree
from fedtiny.flower.grid import CohortGrid, reply
from fedtiny.flower.snapshot import restored, taken

Arrays = dict[str, np.ndarray[Any, Any]]

NEEDS_A_CLIENT = {
    "FedXgbBagging": "it collects trees that XGBoost has grown on the devices",
    "FedXgbCyclic": "it passes trees of XGBoost from one device to the next",
}
"""Why no device of fedtiny's can work for a strategy; by class, subclasses included."""


# ---- making one ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A strategy as it was written: its class, and what its constructor takes.

    An argument that is a table with ``build`` is a strategy as well: the one inside a wrapper.
    """

    reference: str
    arguments: Mapping[str, Any]

    def built(self) -> Strategy:
        """The strategy, not used yet."""
        arguments = {name: _built(value) for name, value in self.arguments.items()}
        made = references.call(self.reference, arguments)
        if not isinstance(made, Strategy):
            raise StrategyError(
                f"{self.reference} gives a {type(made).__name__}; it must give a strategy of "
                "flwr.serverapp.strategy (those of flwr.server.strategy are of the old kind)"
            )
        for base in type(made).__mro__:
            if base.__name__ in NEEDS_A_CLIENT:
                raise StrategyError(
                    f"{type(made).__name__} needs code of its own on the devices: "
                    f"{NEEDS_A_CLIENT[base.__name__]}; fedtiny's train nets by gradient descent"
                )
        return made


def _built(value: Any) -> Any:
    if isinstance(value, Mapping) and "build" in value:
        inner = dict(value)
        return Spec(str(inner.pop("build")), inner).built()
    return value


def check(spec: Tree, said: Sequence[str], ours: Sequence[str]) -> Tree:
    """StrategyError if the strategy cannot be made of its spec.

    ``said`` are the names that were given beside, of those that are ``ours``.
    """
    wanted = Spec(**spec)
    taken_names = inspect.signature(references.load(wanted.reference)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken_names.values())
    for name in wanted.arguments:
        if name not in taken_names and not takes_any:
            raise StrategyError(
                f"{name} = {wanted.arguments[name]!r} is neither Flower's nor ours; "
                f"{did_you_mean(name, [*taken_names, *ours])}it takes {', '.join(taken_names)}; "
                f"beside them there are {', '.join(ours)}"
            )
    for name in said:
        if name in taken_names and name not in wanted.arguments:
            raise StrategyError(
                f"{name} is what the devices train with, and an argument of this strategy as well: "
                f"give it that one by arguments = {{ {name} = ... }}"
            )
    wanted.built()


# ---- its rounds ------------------------------------------------------------------------------


def begin(spec: Tree) -> Tree:
    """The snapshot before the first round."""
    wanted = Spec(**spec)
    return taken(wanted.built(), wanted.built())


@dataclass(frozen=True)
class Turn:
    """A round of a strategy: what it starts from. ``number`` counts from 1, as Flower does."""

    spec: Tree
    snapshot: bytes
    number: int
    seed: int
    arrays: Arrays
    nodes: Sequence[int]

    def strategy(self) -> Strategy:
        """The strategy as it was left; from here on it draws by the seed of the round."""
        made = restored(self.snapshot, Spec(**self.spec).built())
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: TID251 - as above
        return made

    def snapshot_of(self, strategy: Strategy) -> bytes:
        """What the strategy remembers now."""
        return taken(strategy, Spec(**self.spec).built())

    def messages(self, strategy: Strategy, kind: str) -> list[Message]:
        """What it would send to the nodes."""
        record = ArrayRecord({name: Array(array) for name, array in self.arrays.items()})
        configure = getattr(strategy, f"configure_{kind}")
        messages = list(configure(self.number, record, ConfigRecord(), CohortGrid(self.nodes)))
        asked, there = len(messages), len(self.nodes)
        if asked != there:
            raise StrategyError(
                f"it asks {asked:,} of {there:,} devices; cohort says how many there are: leave "
                f"fraction_{kind} = 1"
            )
        # One record goes to all of them, as a rule.
        for message in {id(message.content): message for message in messages}.values():
            self._check(message, kind)
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)

    def _check(self, message: Message, kind: str) -> None:
        if message.metadata.message_type.partition(".")[0] != kind:
            raise StrategyError(
                f"it sends a message of type {message.metadata.message_type!r}; devices know "
                f"{MessageType.TRAIN!r} and {MessageType.EVALUATE!r}"
            )
        sent = {k: a for r in message.content.array_records.values() for k, a in r.items()}
        known = sent.keys() == self.arrays.keys()
        if not known or any(not np.array_equal(sent[k].numpy(), a) for k, a in self.arrays.items()):
            raise StrategyError("it sends other arrays than the model, where devices start")


def configure(turn: Tree, kind: str) -> Tree:
    """What a round tells its devices beside the model: the same to each."""
    this = Turn(**turn)
    told = [_config(message) for message in this.messages(this.strategy(), kind)]
    if any(config != told[0] for config in told):
        raise StrategyError("it tells each device something else; a cohort is told the same")
    return told[0]


def _config(message: Message) -> dict[str, Any]:
    return {k: v for record in message.content.config_records.values() for k, v in record.items()}


def aggregate(
    turn: Tree, values: np.ndarray[Any, Any], samples: Sequence[int], losses: Sequence[float] | None
) -> Tree:
    """The arrays after a round of these updates (None: it stays as it is), and all else.

    ``values`` has a dense row for each of the first nodes: what this device has trained.
    """
    this = Turn(**turn)
    strategy = this.strategy()
    messages = this.messages(strategy, "train")
    of_node = {message.metadata.dst_node_id: message for message in messages}
    replies = []
    for at, row in enumerate(values):
        message = of_node[this.nodes[at]]
        metrics: dict[str, Any] = {"num-examples": samples[at]}
        if losses is not None:
            metrics["train_loss"] = losses[at]
        if (norm := _config(message).get(KEY_CLIPPING_NORM)) is not None:
            metrics[KEY_NORM_BIT] = int(_is_clipped(row, this.arrays, norm))
        content = RecordDict({"arrays": _split(row, this.arrays), "metrics": MetricRecord(metrics)})
        replies.append(reply(message, at, content))
    after, told = strategy.aggregate_train(this.number, replies)
    return {
        "arrays": None if after is None else {name: a.numpy() for name, a in after.items()},
        "metrics": _numbers(told),
        "snapshot": this.snapshot_of(strategy),
    }


def evaluate(turn: Tree, metrics: Mapping[str, float]) -> Tree:
    """What comes of a round that measured: one reply stands for all of its devices."""
    this = Turn(**turn)
    strategy = this.strategy()
    message = this.messages(strategy, "evaluate")[0]
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    told = strategy.aggregate_evaluate(this.number, [reply(message, 0, content)])
    return {"metrics": _numbers(told), "snapshot": this.snapshot_of(strategy)}


def _split(row: np.ndarray[Any, Any], like: Arrays) -> ArrayRecord:
    """The arrays of a flat row."""
    parts = np.split(row, np.cumsum([array.size for array in like.values()])[:-1])
    pairs = zip(like.items(), parts, strict=True)
    return ArrayRecord({name: Array(part.reshape(of.shape)) for (name, of), part in pairs})


_CLIPPED = 0.999


def _is_clipped(row: np.ndarray[Any, Any], arrays: Arrays, norm: Any) -> bool:
    """Whether a device had to clip: then its delta has the norm itself, up to rounding."""
    delta = row.astype(np.float64) - np.concatenate([*map(np.ravel, arrays.values())])
    return float(np.linalg.norm(delta)) >= _CLIPPED * float(norm)


def _numbers(told: MetricRecord | None) -> dict[str, float]:
    """The metrics that are single numbers."""
    pairs: Iterable[tuple[str, Any]] = told.items() if told is not None else ()
    return {name: float(value) for name, value in pairs if not isinstance(value, list)}
