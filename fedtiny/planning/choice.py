"""What may be chosen of a net, and what a choice gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.engine.ir import Window
from fedtiny.errors import CompileError
from fedtiny.layout import FROZEN, STATISTICS
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.update_plan import IN, WHOLE, Channels, Pattern, Rule, UpdatePlan

if TYPE_CHECKING:
    from fedtiny.engine.compile import Compilable
    from fedtiny.engine.ir import Graph, Op
    from fedtiny.layout import Layout, Parameter
    from fedtiny.planning.contribution import Contributions
    from fedtiny.tensors import Float64, Int64
    from fedtiny.update_plan import Part

SHARES = (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1))
"""Of the input channels of a layer."""
_WEIGHTED = ("conv", "linear")
_SPECIAL = re.compile(r"[+,{}\[\]*]")
"""What a name in a plan cannot hold."""


@dataclass(frozen=True)
class Layer:
    """One parameter before the head which is no bias: what it adds, and about what it costs.

    ``gains`` float64 [inputs], by input channel, or of one entry where it trains whole or not at
    all. ``at`` is its place in the layout, ``values`` its size, ``read`` the elements that its
    gradient reads of the forward pass.
    """

    name: str
    at: int
    gains: Float64
    values: int
    read: int

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """What of it may train."""
        return SHARES if len(self.gains) >= SHARES[0].denominator else SHARES[-1:]

    @cached_property
    def _order(self) -> Int64:
        """The input channels, from those that add most on."""
        return np.argsort(-self.gains, kind="stable")

    def _count(self, share: Fraction) -> int:
        return max(1, int(len(self.gains) * share))

    def channels(self, share: Fraction) -> Int64:
        """The input channels that add most, ascending."""
        return np.sort(self._order[: self._count(share)])

    @cached_property
    def _sums(self) -> Float64:
        return np.cumsum(self.gains[self._order])

    def gain(self, share: Fraction) -> float:
        """What they add."""
        return float(self._sums[self._count(share) - 1]) if share else 0.0

    def pattern(self, share: Fraction) -> Pattern:
        """They, as a plan names them."""
        glob = _SPECIAL.sub("?", self.name)
        if share == 1:
            return Pattern(glob)
        listed = "+".join(map(str, self.channels(share)))
        return Pattern(glob, Channels.parse(IN, listed))


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias before the head: its place in the layout, what it adds, and its size. ``outputs`` are
    the elements of what it is added to."""

    at: int
    gain: float
    values: int
    outputs: int


@dataclass(frozen=True)
class Choice:
    """The last biases, and shares of the input channels of some layers; the head trains whole.

    ``shares``: by the place of the layer in its menu; 0 is not there.
    """

    biases: int = 0
    shares: Mapping[int, Fraction] = field(default_factory=dict)

    def with_share(self, at: int, share: Fraction) -> Choice:
        """This choice with another share of one layer."""
        others = {place: own for place, own in self.shares.items() if place != at}
        return replace(self, shares={**others, at: share} if share else others)


@dataclass(frozen=True, eq=False)
class Menu:
    """The layers of a net before its head, in their order, and their biases.

    ``biased_head`` says whether the head has a bias, which counts as one of the last biases.
    """

    layers: tuple[Layer, ...]
    biases: tuple[Bias, ...]
    biased_head: bool

    @classmethod
    def of(cls, net: Compilable, contributions: Contributions) -> Menu:
        """What can be chosen of the net. Raises CompileError where there is but a head."""
        graph = net.graph(1)
        before, head = split(graph.layout)
        readers = {n: op for op in graph.ops[: graph.n_forward] for n in op.inputs}
        layers, biases = [], []
        for at, p in before:
            if _is_bias(p):
                outputs = graph.tensors[readers[p.name].outputs[0]].size
                biases.append(Bias(at, float(contributions[p.name].sum()), p.size, outputs))
            else:
                layers.append(_layer(graph, readers[p.name], at, p, contributions[p.name]))
        if not before:
            raise CompileError(
                "the net has no layer before its head: there is nothing to choose; plan = 'all'"
            )
        return cls(tuple(layers), tuple(biases), any(map(_is_bias, head)))

    @cached_property
    def _bias_gains(self) -> Float64:
        """Of the last 0, 1, 2 ... biases."""
        return np.concatenate([[0.0], np.cumsum([b.gain for b in reversed(self.biases)])])

    def gain(self, choice: Choice) -> float:
        """What it adds beside the head: the sum of what its channels add."""
        weights = sum(self.layers[at].gain(share) for at, share in choice.shares.items())
        return float(self._bias_gains[choice.biases]) + weights

    def plan(self, choice: Choice) -> UpdatePlan:
        """The plan that trains it."""
        rules = [Rule("last", 1)]
        if choice.biases:
            rules.append(Rule("biases", choice.biases + self.biased_head))
        patterns = [self.layers[at].pattern(share) for at, share in sorted(choice.shares.items())]
        if patterns:
            rules.append(Rule("named", patterns=tuple(patterns)))
        return UpdatePlan(tuple(rules))

    def trained_bytes(self, choice: Choice, width: int) -> float:
        """Of what trains beside the head, where a value of a weight takes ``width``."""
        weights = sum(float(s) * self.layers[at].values for at, s in choice.shares.items())
        return width * weights + FLOAT_BYTES * sum(b.values for b in self.through(choice))

    def through(self, choice: Choice) -> tuple[Bias, ...]:
        """Its biases."""
        return self.biases[len(self.biases) - choice.biases :]

    def settled(self, choice: Choice) -> Choice:
        """With all biases behind the first weight, whose gradient goes through them: they cost next
        to nothing there."""
        first = min((self.layers[at].at for at in choice.shares), default=None)
        through = sum(b.at > first for b in self.biases) if first is not None else 0
        return replace(choice, biases=max(choice.biases, through))


def split(layout: Layout) -> tuple[list[tuple[int, Parameter]], list[Parameter]]:
    """What may train before the head, with its place in the layout, and the head."""
    trained = [
        (at, p) for at, p in enumerate(layout.parameters) if p.group not in (FROZEN, STATISTICS)
    ]
    last = trained[-1][1].layer
    return [pair for pair in trained if pair[1].layer != last], [
        p for _, p in trained if p.layer == last
    ]


def _is_bias(p: Parameter) -> bool:
    return p.name.rpartition(".")[2] == "bias"


def _layer(graph: Graph, op: Op, at: int, p: Parameter, squares: Float64) -> Layer:
    grouped = isinstance(op.attributes, Window) and op.attributes.groups > 1
    sliced = op.kind in _WEIGHTED and op.inputs[1] == p.name and not grouped
    axes = tuple(i for i in range(squares.ndim) if i != squares.ndim - 2)
    gains = squares.sum(axis=axes) if sliced else np.array([squares.sum()])
    return Layer(p.name, at, gains, p.size, graph.tensors[op.inputs[0]].size)


# ---- what a plan gives -----------------------------------------------------------------------


def plan_gain(layout: Layout, contributions: Contributions, plan: UpdatePlan) -> float:
    """The sum of what all that it trains adds, in units of what the head adds."""
    _, head = split(layout)
    whole = sum(float(contributions[p.name].sum()) for p in head) or 1.0
    parts = plan.resolve(layout)
    return sum(_taken(contributions[name], part) for name, part in parts.items()) / whole


def _taken(squares: Float64, part: Part) -> float:
    if part == WHOLE:
        return float(squares.sum())
    return float(squares.take(part.indices, axis=-2 if part.axis == IN else -1).sum())


def written(layout: Layout) -> Iterator[list[UpdatePlan]]:
    """The plans that one would write, in rows from the least to the most."""
    trained = [p for p in layout.parameters if p.group != FROZEN]
    layers, biases = len({p.layer for p in trained}), sum(map(_is_bias, trained))
    for kind, most in (("last", layers), ("biases", biases)):
        yield [UpdatePlan((Rule(kind, count),)) for count in range(1, most + 1)]
