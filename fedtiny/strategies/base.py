"""What a strategy is: a small frozen value with a few methods to override.

A round goes like this. `Strategy.ask` says what the cohort is to do. Each answer counts with
`Strategy.weight`. With ``needs = "sum"`` the weighted deltas are folded exactly (`fedtiny.fold`)
and `Strategy.finish` gets their Total; with ``needs = "all"`` it gets every Update, in the order
of their devices, with values of a model whatever the devices have made of their deltas. `finish`
returns the next model and the next state. Of a round that does not train, `Strategy.observe` gets
what was measured instead.

Strategies are pure: what they must remember between rounds is in the State, which is stored with
every commit. They draw by the counter generator alone and read no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from fedtiny import elementary
from fedtiny.errors import StrategyError
from fedtiny.fold import FoldRule, Total, covered, delta_of
from fedtiny.layout import FRESH, FROZEN, LOCAL, UNSENT, Layout
from fedtiny.transforms.table import parse
from fedtiny.values import Instruction, Masks, Phase, Sgd, Update

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Float64, Int64

State = Mapping[str, npt.NDArray[np.float64] | npt.NDArray[np.uint8] | float]
"""What a strategy remembers: float64 arrays, uint8 arrays (bits) and numbers by name."""

Contribution = Total | Iterable[Update]
"""What `Strategy.finish` gets: a Total, or for ``needs = "all"`` every Update."""


@dataclass(frozen=True, slots=True)
class Round:
    """Round ``t`` of ``T``; the first is 0."""

    t: int
    T: int

    @property
    def left(self) -> float:
        """The share of the run that is still to come: 1 at first, never 0."""
        return 1.0 - self.t / self.T


@dataclass(frozen=True, eq=False)
class Observed:
    """What a round that does not train has come to: the measures, and the pooled statistics.

    ``total`` is there if candidates were calibrated: its mean is a row of statistics for each.
    """

    total: Total | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What a strategy may know of its fleet and of the Programs in it.

    ``prunable`` names the parameters that can be pruned. ``densities`` are those of the Programs,
    ascending, each once. ``tracked`` names the running statistics: mean, var, mean, var, ... in the
    order of their operations. ``seed`` is that of the run, for what is drawn. ``devices`` are all
    of the fleet, ``training`` those that may be asked to train.
    """

    prunable: tuple[str, ...] = ()
    densities: tuple[float, ...] = (1.0,)
    tracked: tuple[str, ...] = ()
    layout: Layout = field(default_factory=lambda: Layout(()))
    seed: int = 0
    devices: int = 0
    training: int = 0


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What every strategy has. Override `ask` and `finish`, and what else differs.

    The Programs have memory for what `ask` wants in round 0, and for ``reserve``: what it wants
    only later.

    Attributes:
        cohort: Updates that complete a round.
        update_clip: The largest norm of a delta; an update beyond it is refused. 0: the fold's
            bound of 1024 a coordinate is all that counts.
        transforms: What devices make of a delta before they send it, one after the other, such as
            ("clip:1", "topk:0.1", "int8"); see `fedtiny.transforms`.
    """

    cohort: int = 10
    update_clip: float = 0.0
    transforms: tuple[str, ...] = ()

    needs: ClassVar[Literal["sum", "all"]] = "sum"
    weight_cap: ClassVar[float] = 65536.0
    reserve: ClassVar[Sgd] = Sgd()

    def __post_init__(self) -> None:
        require(self, "cohort", self.cohort >= 1, "at least 1")
        require(self, "update_clip", self.update_clip >= 0, "0 (off) or a norm")
        listed = isinstance(self.transforms, tuple)
        require(self, "transforms", listed, "a list of names, such as topk:0.1")
        parse(self.transforms)

    def fitted(self, fleet: FleetFacts) -> Self:
        """The same strategy for these Programs; called once, before anything else."""
        return self

    def local(self, layout: Layout) -> tuple[str, ...]:
        """The parameters that never leave their device; the model names those of its own besides.

        Called before `fitted`, which sees them in the group "local".
        """
        return ()

    def bucket(self, layout: Layout) -> int:
        """The most coordinates that one growth may return: the Programs have memory for them."""
        return 0

    def start(self, layout: Layout, model: Float32) -> State:
        """The state before the first round."""
        return {}

    def masks(self, state: State) -> Masks:
        """The mask of each density below 1 in the fleet; none if nothing is pruned.

        Every round that trains or evaluates has them: `ask` leaves them out.
        """
        return ()

    def ask(self, round: Round, state: State) -> Instruction:
        """What the devices of this round are asked to do."""
        raise NotImplementedError

    def weight(self, samples: Float64) -> Float64:
        """What updates count for, a column; by default their samples, up to the cap."""
        return np.minimum(samples, self.weight_cap)

    @property
    def concurrency(self) -> int:
        """0: a round is a cohort that starts from one model. Else so many devices work at once,
        and a round is any ``cohort`` updates, each from the model that its device was given."""
        return 0

    @property
    def max_staleness(self) -> int:
        """How many versions may come between the model of an update and the one it changes."""
        return 0

    @property
    def asynchronous(self) -> bool:
        """Whether devices work on while rounds end."""
        return self.concurrency > 0

    def discount(self, staleness: Float64) -> Float64:
        """By what the weights of updates shrink that come so many versions late, a column."""
        return np.ones_like(staleness)

    def barred(self, state: State) -> Int64:
        """The devices that no round asks until the state says otherwise, by index."""
        return np.empty(0, np.int64)

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """The next model and the next state; the arguments stay as they are.

        Called for rounds of kind "train". ``contribution`` is a Total, or for ``needs = "all"``
        the updates.
        """
        raise NotImplementedError

    def observe(
        self, round: Round, model: Float32, seen: Observed, state: State
    ) -> tuple[Float32, State]:
        """The next model and state after a round that did not train; by default the same ones.

        A model that stays is the very array that was given.
        """
        return model, state

    def telemetry(self, round: Round, model: Float32, state: State) -> Mapping[str, float]:
        """What the history tells of the round, by name: the model and the state after it."""
        return {}

    @property
    def fold_rule(self) -> FoldRule:
        """The fixed point of its rounds."""
        return FoldRule.for_round(self.cohort, self.weight_cap, self.update_clip)


@dataclass(frozen=True, kw_only=True)
class Fitted(Strategy):
    """A strategy that knows the fleet which it was fitted to."""

    fleet: FleetFacts | None = None

    def fitted(self, fleet: FleetFacts) -> Self:
        """The same for this fleet."""
        return replace(self, fleet=fleet)

    @property
    def facts(self) -> FleetFacts:
        """What it was fitted to."""
        if self.fleet is None:
            raise StrategyError(
                f"{type(self).__name__} knows no Programs; call fitted(FleetFacts(...)) first"
            )
        return self.fleet


def require(strategy: Strategy, name: str, holds: bool, allowed: str) -> None:
    """Raises StrategyError, naming the field and what it may be, unless it ``holds``."""
    if not holds:
        raise StrategyError(
            f"{type(strategy).__name__}: {name} = {getattr(strategy, name)!r}; it must be {allowed}"
        )


# ---- averaging -------------------------------------------------------------------------------


class ServerOptimizer(Protocol):
    """One step of the server along the pseudo-gradient Delta = mean of the deltas."""

    def start(self, x: Float32) -> State:
        """The state before the first step."""
        ...

    def step(self, x: Float32, Delta: Float64, state: State) -> tuple[Float32, State]:
        """The next model and state."""
        ...


@dataclass(frozen=True, slots=True)
class ServerSgd:
    """``v = momentum * v + Delta; x = x + lr * v``."""

    lr: float = 1.0
    momentum: float = 0.0

    def start(self, x: Float32) -> State:
        """The velocity, if there is momentum."""
        return {"v": np.zeros(x.size)} if self.momentum else {}

    def step(self, x: Float32, Delta: Float64, state: State) -> tuple[Float32, State]:
        """One step; float64 inside, float32 out."""
        v = self.momentum * state["v"] + Delta if self.momentum else Delta
        return (x + self.lr * v).astype(np.float32), {"v": v} if self.momentum else {}


@dataclass(frozen=True, kw_only=True)
class Averaging(Strategy):
    """Devices train by gradient descent; the server steps along the mean of their deltas.

    Attributes:
        beta: Learning rate on the device.
        steps: Batches that a visit trains on; 0: one pass over its support, each sample once.
        shuffle: Take the samples in a new order each epoch, else as they are.
        momentum: That of the device's gradient descent.
        weight_decay: What its gradient gets of each weight.
        clip: The norm that a gradient is clipped to; 0: it is not.
    """

    beta: float = 0.01
    steps: int = 0
    shuffle: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        Strategy.__post_init__(self)
        require(self, "beta", self.beta > 0, "a positive learning rate")
        require(self, "momentum", 0 <= self.momentum < 1, "in [0, 1)")
        for name in ("steps", "weight_decay", "clip"):
            require(self, name, getattr(self, name) >= 0, "0 or positive")

    @property
    def sgd(self) -> Sgd:
        """The hyper-parameters of the device's gradient descent."""
        return Sgd(self.momentum, self.weight_decay, self.clip)

    def server(self, round: Round) -> ServerOptimizer:
        """How the server steps in this round; by default it takes the mean model."""
        return ServerSgd()

    def start(self, layout: Layout, model: Float32) -> State:
        """The state of the server's optimiser."""
        return self.server(Round(0, 1)).start(model)

    def ask(self, round: Round, state: State) -> Instruction:
        """Train in one phase and return the values."""
        phase = Phase(lr=self.beta, steps=self.steps, shuffle=self.shuffle, sgd=self.sgd)
        return Instruction(phases=(phase,))

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """One step of the server's optimiser along the mean delta."""
        assert isinstance(contribution, Total)
        return self.server(round).step(model, contribution.mean(), state)


ANNEALING = ("linear", "cosine", "none")


@dataclass(frozen=True, kw_only=True)
class MetaAveraging(Averaging):
    """Averaging for initialisations: ``phi = phi + alpha_t * mean(theta_i - phi)``.

    Every task counts the same.

    Attributes:
        alpha: The first outer step size.
        anneal: How it falls towards 0 at the end of the run: "linear", "cosine", or "none".
    """

    alpha: float = 1.0
    anneal: str = "linear"

    weight_cap: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "alpha", self.alpha > 0, "a positive step size")
        require(self, "anneal", self.anneal in ANNEALING, f"one of {', '.join(ANNEALING)}")

    def weight(self, samples: Float64) -> Float64:
        """Tasks are equal, whatever their number of samples."""
        return np.ones_like(samples)

    def alpha_at(self, round: Round) -> float:
        """``alpha_t``."""
        return self.alpha * self.annealed(round)

    def annealed(self, round: Round) -> float:
        """The share of its first size that a step still has in this round."""
        if self.anneal == "none":
            return 1.0
        if self.anneal == "linear":
            return round.left
        # Our own cosine: the same bits on every host.
        return (1.0 + float(elementary.cos(np.float32(np.pi * (1.0 - round.left))))) / 2.0

    def server(self, round: Round) -> ServerOptimizer:
        """One step of size alpha_t towards the mean of the theta_i."""
        return ServerSgd(self.alpha_at(round))


def last_layers(layout: Layout, count: int) -> tuple[str, ...]:
    """The parameters of so many layers at the end of the model."""
    trainable = Layout.of(p for p in layout.parameters if p.group != FROZEN)
    return tuple(p.name for layer in [*trainable.layers().values()][-count:] for p in layer)


def split_groups(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The groups that train and stay on their device, and those that it sends."""
    stay = tuple(group for group in layout.groups if group in (LOCAL, FRESH))
    return stay, tuple(group for group in layout.groups if group not in UNSENT)


def deltas(updates: Iterable[Update], model: Float32) -> Float64:
    """One row an update: ``v - model`` where the device trained, NaN where it did not.

    So what reduces them must leave NaN out, as `trimmed_mean` does.
    """
    rows = []
    for update in updates:
        row = np.full(model.size, np.nan)
        trained = covered(update.coverage)
        row[trained] = delta_of(update, model, model.size)[trained]
        rows.append(row)
    return np.array(rows)


def trimmed_mean(rows: Float64, share: float) -> Float64:
    """The mean of each coordinate of `deltas` over those who trained it; 0 if nobody did.

    That ``share`` of them with the largest values, and with the smallest, is left out; with 0.5
    the median is left.
    """
    ordered = np.sort(rows, axis=0)  # NaN comes last
    trained = np.count_nonzero(~np.isnan(ordered), axis=0)
    most = np.maximum(trained - 1, 0) // 2
    cut = np.minimum((share * trained).astype(np.int64), most)
    place = np.arange(len(rows))[:, None]
    kept = (place >= cut) & (place < trained - cut)
    mean: Float64 = np.where(kept, ordered, 0.0).sum(axis=0) / np.maximum(trained - 2 * cut, 1)
    return mean
