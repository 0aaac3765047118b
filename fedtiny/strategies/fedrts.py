"""FedRTS: the mask is drawn by Thompson sampling, from what the fleet has learned of each weight.

H. Huang et al., "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", NeurIPS
2025. Each weight has a Beta(a, b) belief that it belongs to the mask. To adjust, devices send only
the places of their largest gradients among the dead coordinates: votes. With n live weights in a
layer of which K are exchanged, the n - K largest have the outcome X = 1; a dead coordinate has
``X = (1 - gamma) * (share of the weight of those who voted for it)``; anything else has 0. Then
``a += lam X``, ``b += lam (1 - X)``, a number is drawn from each belief, and the n largest live.

What differs: the outcomes of single devices for live weights are those of the averaged model, as
devices send no weights in such a round. The first belief counts as one observation and has the
density of its layer as its mean. Numbers are compared by their logarithms, which keep apart what
would round to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedtiny import draws, elementary, pruning
from fedtiny.fold import Total
from fedtiny.layout import Layout
from fedtiny.rng import Purpose
from fedtiny.strategies.base import Round, require
from fedtiny.strategies.pruned import Adjusting, largest_of, part
from fedtiny.values import VOTES

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Bools, Float32, Float64, Int64


@dataclass(frozen=True, kw_only=True)
class FedRTS(Adjusting):
    """Averaging over masks drawn from Beta beliefs.

    Attributes:
        lam: How much one adjustment counts.
        gamma: The weight of the averaged model's word against that of the single devices'.
    """

    alpha: float = 0.4
    blocks: str = "all"
    lam: float = 10.0
    gamma: float = 0.5

    returns: ClassVar[str] = VOTES

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "lam", self.lam > 0, "positive")
        require(self, "gamma", 0 <= self.gamma < 1, "in [0, 1)")

    def start(self, layout: Layout, model: Float32) -> State:
        """The first masks, and the first beliefs: the density of each layer."""
        state = super().start(layout, model)
        live = self.pool(state).bools
        prior = [np.full(p.size, np.count_nonzero(live[part(p)]) / p.size) for p in self.layers]
        return {**state, "a": np.concatenate(prior), "times": np.zeros(len(prior))}

    def adjusted(
        self,
        round: Round,
        model: Float32,
        total: Total,
        state: State,
        scheduled: Mapping[str, int],
    ) -> tuple[Float32, Bools, State]:
        """Learn from the votes, then draw the next mask."""
        a, times, at = np.array(state["a"]), np.array(state["times"]), 0
        live, votes = self.pool(state).bools.copy(), total.mean()
        for index, layer in enumerate(self.layers):
            own, belief = part(layer), slice(at, at + layer.size)
            at += layer.size
            if layer.name in scheduled:
                count = int(np.count_nonzero(live[own]))
                kept = largest_of(live[own], np.abs(model[own]), count - scheduled[layer.name])
                a[belief] += self.lam * np.where(live[own], kept, (1 - self.gamma) * votes[own])
                times[index] += 1
                b = 1.0 + self.lam * times[index] - a[belief]  # both began with a sum of 1
                live[own] = pruning.top(self._draw(round, layer.offset, a[belief], b), count)
        return model, live, {**state, "a": a, "times": times}

    def _draw(self, round: Round, offset: int, a: Float64, b: Float64) -> Float64:
        """A number in the order of a Beta(a, b) draw for each coordinate: its log-odds."""
        streams = 2 * (offset + np.arange(a.size))
        run = self.facts.seed
        return log_gamma(run, round.t, streams, a) - log_gamma(run, round.t, streams + 1, b)


def log_gamma(run: int, round: int, streams: Int64, shape: Float64) -> Float64:
    """The logarithm of a Gamma(shape) draw from each stream.

    G. Marsaglia, W. W. Tsang, "A Simple Method for Generating Gamma Variables", ACM TOMS 2000:
    Gamma(shape + 1) by rejection, times ``U^(1 / shape)``.
    """
    drawn, left, attempt = np.empty(shape.size), np.arange(shape.size), 0
    while left.size:
        attempt += 1
        words = draws.words(run, round, streams[left], Purpose.MASK, 4 * attempt)[:, -4:]
        log_v, accepted = _attempt(words, shape[left])
        at, power = left[accepted], _log(draws.above_zero(words[accepted, 3]))
        drawn[at] = log_v[accepted] + power / shape[at]
        left = left[~accepted]
    return drawn


def _attempt(words: draws.UInt32, shape: Float64) -> tuple[Float64, Bools]:
    """The logarithm of a Gamma(shape + 1) draw, and whether it counts."""
    d = shape + 2.0 / 3.0
    x = draws.normal(words[:, :2])[:, 0].astype(np.float64)
    v = (1.0 + x / np.sqrt(9.0 * d)) ** 3
    log_v = _log(np.maximum(v, 1e-30))
    log_u = _log(draws.above_zero(words[:, 2]))
    accepted = (v > 0) & (log_u < 0.5 * x * x + d - d * v + d * log_v)
    return _log(d) + log_v, accepted


def _log(x: Float32 | Float64) -> Float64:
    """Our own logarithm, in float32: the same bits on every host."""
    return np.asarray(elementary.log(np.asarray(x, np.float32)), np.float64)
