"""A strategy of Flower's as one of ours: its rounds are durable, and go on after a crash.

``build = "flwr.serverapp.strategy:Krum"``, with its arguments beside ours. Its class runs as it is
in a process of its own; between two calls there is nothing of it but the State: a snapshot of its
attributes, with the version of flwr and a digest.

What fedtiny decides: who is asked (``cohort`` devices, drawn by the run's seed), and how they
train. A device sends no more than it has trained, dense or not, and Flower's strategies are dense:
what it has not trained counts as not moved, and what nobody has trained stays as it is. Of what a
strategy tells its devices, ``proximal-mu`` becomes their proximal term and ``clipping_norm`` the
transform clip; anything else would need code of its own there and is an error.

What a strategy draws (the noise of the DP wrappers, too) is drawn by the run's seed: who knows it,
knows the noise. A simulation of privacy, not privacy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from fedtiny import references, rng
from fedtiny.errors import StrategyError
from fedtiny.flower.child import Child
from fedtiny.flower.frames import Tree, pack, unpack
from fedtiny.fold import Total, covered, delta_of
from fedtiny.layout import Layout
from fedtiny.strategies.base import Averaging, FleetFacts, Observed, Round, require
from fedtiny.values import EVALUATE, Instruction, Transform, Update

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Bools, Float32

MOST_BYTES = 2**32
"""Flower aggregates a whole cohort in memory: the most bytes of values that it may hold."""

_STATE = "flower"
_DIGEST_BYTES = 32
_SERVER = 2**32 - 1
"""In the counter in place of a device."""
_HONOURED = ("server-round", "proximal-mu", "clipping_norm")


@dataclass(frozen=True, kw_only=True)
class FlowerStrategy(Averaging):
    """A class of flwr.serverapp.strategy, or of the user's made from one.

    Attributes:
        evaluate_every: So many rounds that train are followed by one that evaluates the model on
            the devices, for the strategy's aggregate_evaluate; 0: none does.
        reference: The class, as module:object.
        arguments: What its constructor takes, in JSON.
        layout: The parameters of the model.
        seed: What the strategy draws by.
        child: The process in which it lives.
    """

    evaluate_every: int = 0
    reference: str
    arguments: str = "{}"
    layout: Layout = field(default_factory=lambda: Layout(()))
    seed: int = 0
    child: Child = field(default_factory=Child, compare=False, repr=False)

    needs: ClassVar[Literal["sum", "all"]] = "all"

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "evaluate_every", self.evaluate_every >= 0, "0 (never) or a number of rounds")

    @property
    def spec(self) -> Tree:
        """What its class is made of."""
        return {"reference": self.reference, "arguments": json.loads(self.arguments)}

    def fitted(self, fleet: FleetFacts) -> Self:
        """The same for this model; its replies must fit into memory."""
        needed = self.cohort * fleet.layout.nbytes
        if needed > MOST_BYTES:
            raise StrategyError(
                f"cohort = {self.cohort:,} updates of {fleet.layout.nbytes:,} B are {needed:,} B; "
                f"Flower holds them all at once, and {MOST_BYTES:,} B are the most: ask fewer"
            )
        return replace(self, layout=fleet.layout, seed=fleet.seed)

    # ---- rounds ----

    def start(self, layout: Layout, model: Float32) -> State:
        """The snapshot of a strategy that was not used yet."""
        return self._state(model, self._call("begin", None, spec=self.spec), {})

    def ask(self, round: Round, state: State) -> Instruction:
        """Train, as configure_train says; or evaluate."""
        known = self._known(state)
        if self._evaluates(round):
            self._told("evaluate", round, known, known["model"])
            return Instruction(kind=EVALUATE)
        told = self._told("train", round, known, known["model"])
        asked = super().ask(round, state)
        sgd = replace(self.sgd, prox=float(told.get("proximal-mu", 0.0)))
        clips = (
            (Transform("clip", float(told["clipping_norm"])),) if "clipping_norm" in told else ()
        )
        return replace(asked, phases=(replace(asked.phases[0], sgd=sgd),), transforms=clips)

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """What aggregate_train makes of the updates."""
        assert not isinstance(contribution, Total)
        updates, known = list(contribution), self._known(state)
        done = self._call(
            "aggregate", round,
            turn=self._turn(round, known, model, [update.device for update in updates]),
            values=_dense(updates, model),
            samples=[update.samples for update in updates],
            losses=_losses(updates),
        )  # fmt: skip
        after = model
        if done["arrays"] is not None:
            moved = self._vector(done["arrays"], round)
            after = np.where(_trained(updates, model.size), moved, model)
        return after, self._state(after, done["snapshot"], done["metrics"])

    def observe(
        self, round: Round, model: Float32, seen: Observed, state: State
    ) -> tuple[Float32, State]:
        """What aggregate_evaluate makes of the sums over the devices."""
        sums, known = seen.measures, self._known(state)
        count = sums.get("count", 0.0)
        if not count:
            return model, state
        metrics = {"num-examples": int(count), "loss": sums["loss_sum_before"] / count}
        if sums["correct_before"]:  # none where labels are no classes
            metrics["accuracy"] = sums["correct_before"] / count
        turn = self._turn(round, known, model)
        done = self._call("evaluate", round, turn=turn, metrics=metrics)
        return model, self._state(model, done["snapshot"], done["metrics"])

    def telemetry(self, round: Round, model: Float32, state: State) -> Mapping[str, float]:
        """The metrics that it has aggregated last."""
        told: dict[str, float] = self._known(state)["metrics"]
        return {name: value for name, value in told.items() if np.isfinite(value)}

    # ---- what its process is asked ----

    def _call(self, call: str, round: Round | None, **arguments: Tree) -> Tree:
        """What the process gives; what goes wrong there is said with the strategy and the round."""
        try:
            return self.child.ask(call, **arguments)
        except StrategyError as error:
            when = f"in round {round.t:,} of {round.T:,}" if round else "before round 0"
            raise StrategyError(f"{self.reference} {when}: {error}") from None

    def _evaluates(self, round: Round) -> bool:
        cycle = self.evaluate_every + 1
        return cycle > 1 and round.t % cycle == self.evaluate_every

    def _number(self, round: Round) -> int:
        """As Flower counts: from 1, and an evaluation belongs to the round before it."""
        evaluations = (round.t + 1) // (self.evaluate_every + 1) if self.evaluate_every else 0
        return round.t + 1 - evaluations

    def _told(self, kind: str, round: Round, known: Tree, model: Float32) -> dict[str, Any]:
        turn = self._turn(round, known, model)
        told: dict[str, Any] = self._call("configure", round, turn=turn, kind=kind)
        unknown = sorted(set(told) - {*_HONOURED})
        if unknown:
            raise StrategyError(
                f"{self.reference} tells its devices {', '.join(unknown)}, which takes code of its "
                f"own there; what fedtiny's devices understand is {', '.join(_HONOURED)}"
            )
        return told

    def _turn(
        self, round: Round, known: Tree, model: Float32, devices: Iterable[int] = ()
    ) -> dict[str, Tree]:
        """A round; its nodes are the devices, and others in place of those that did not answer."""
        answered = [device + 1 for device in devices]
        others = (node for node in range(1, 2 * self.cohort + 1) if node not in {*answered})
        missing = max(0, self.cohort - len(answered))
        return {
            "spec": self.spec,
            "snapshot": known["snapshot"],
            "number": self._number(round),
            "seed": rng.block(self.seed, round.t, _SERVER, rng.Purpose.NOISE, 0)[0],
            "arrays": self.layout.unflatten(model),
            "nodes": answered + [next(others) for _ in range(missing)],
        }

    def _vector(self, arrays: Mapping[str, np.ndarray[Any, Any]], round: Round) -> Float32:
        shapes = {p.name: p.shape for p in self.layout.parameters}
        given = {name: array.shape for name, array in arrays.items()}
        if given != shapes:
            wrong = sorted(n for n in shapes | given if shapes.get(n) != given.get(n))
            raise StrategyError(
                f"{self.reference}.aggregate_train in round {round.t:,} gives "
                + ", ".join(f"{n} {given.get(n, 'not at all')}" for n in wrong)
                + "; the model has "
                + ", ".join(f"{n} {shapes.get(n, 'not at all')}" for n in wrong)
            )
        return self.layout.flatten(arrays)

    # ---- the state ----

    def _state(self, model: Float32, snapshot: bytes, metrics: Mapping[str, float]) -> State:
        frame = pack({
            "flwr": _flwr(), "model": np.asarray(model), "snapshot": snapshot,
            "metrics": dict(metrics),
        })  # fmt: skip
        return {_STATE: np.frombuffer(hashlib.sha256(frame).digest() + frame, np.uint8)}

    def _known(self, state: State) -> Tree:
        """What the state says. Raises StrategyError if it is damaged, or of another flwr."""
        kept = np.asarray(state[_STATE], np.uint8).tobytes()
        digest, frame = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
        if hashlib.sha256(frame).digest() != digest:
            raise StrategyError(
                f"the state of {self.reference} is damaged: its digest is another; go on from an "
                "older checkpoint"
            )
        known = unpack(frame)
        if known["flwr"] != _flwr():
            raise StrategyError(
                f"the state of {self.reference} is of flwr {known['flwr']}, and this is "
                f"{_flwr()}; go on with the former, or begin another run"
            )
        return known


OURS = tuple(
    f.name
    for f in fields(FlowerStrategy)
    if f.name not in ("reference", "arguments", "layout", "seed", "child")
)
"""What of it an experiment gives; the rest is the constructor's, or found out."""


def adapted(reference: str, given: Mapping[str, object]) -> FlowerStrategy:
    """The strategy of an experiment: what is ours is taken, the rest is the constructor's.

    A name that both have is ours; ``arguments`` is the constructor's alone.
    """
    # A strategy is a value: what the file lists of ours is a tuple.
    ours = {name: value for name, value in given.items() if name in OURS}
    said = {name: tuple(v) if isinstance(v, list) else v for name, v in ours.items()}
    rest = {n: v for n, v in given.items() if n not in OURS and n != "arguments"}
    more = given.get("arguments", {})
    if not isinstance(more, Mapping):
        raise StrategyError(f"arguments = {more!r} is no table of arguments of {reference}")
    references.check_fields(reference, FlowerStrategy, said)
    made = FlowerStrategy(reference=reference, arguments=json.dumps(rest | {**more}), **said)  # type: ignore[arg-type]
    try:
        made.child.ask("check", spec=made.spec, said=list(said), ours=list(OURS))
    except StrategyError as error:
        raise StrategyError(f"{reference}: {error}") from None
    return made


@cache
def _flwr() -> str:
    """Its version here."""
    return version("flwr")


# ---- updates ---------------------------------------------------------------------------------


def _dense(updates: Iterable[Update], model: Float32) -> Float32:
    """A row of values for each update; where it did not train, those of the model."""
    rows = [model + delta_of(update, model, model.size) for update in updates]
    return np.array(rows, np.float32)


def _trained(updates: Iterable[Update], size: int) -> Bools:
    trained = np.zeros(size, bool)
    for update in updates:
        trained[covered(update.coverage)] = True
    return trained


def _losses(updates: Iterable[Update]) -> list[float] | None:
    """The mean loss of the steps of each; None unless all of them tell it."""
    sums = [(update.measures.get("loss_sum"), update.measures.get("steps")) for update in updates]
    told = [loss / steps for loss, steps in sums if loss is not None and steps]
    return told if len(told) == len(sums) else None
