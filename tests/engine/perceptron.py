"""A multilayer perceptron in NumPy float32 that follows the C header's orders of summation.

Written from the header alone, without the engine: it judges the native runtime together with the
images of `handmade`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtiny import elementary

Array = npt.NDArray[np.float32]
Rule = tuple[float, float, float, float, float]
"""lr, momentum, weight decay, clip, prox."""


def lanes8(terms: Array) -> Array:
    """Eight lanes over the last axis, and the tree."""
    lanes = np.zeros((*terms.shape[:-1], 8), np.float32)
    for i in range(terms.shape[-1]):
        lanes[..., i % 8] += terms[..., i]
    pairs = lanes[..., 0::2] + lanes[..., 1::2]
    quads = pairs[..., 0::2] + pairs[..., 1::2]
    return np.asarray(quads[..., 0] + quads[..., 1])


def in_order(rows: Array) -> Array:
    """Sum over the first axis, one after the other, from +0."""
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total = total + row
    return np.asarray(total)


@dataclass
class Perceptron:
    """Weights and biases in turn, as views of one vector; their velocities likewise."""

    widths: Sequence[int]
    activation: str
    loss: str
    vector: Array

    def __post_init__(self) -> None:
        self.vector, self.base = self.vector.copy(), self.vector.copy()
        self.velocity = np.zeros_like(self.vector)
        self.params, self.bases = self._views(self.vector), self._views(self.base)
        self.velocities = self._views(self.velocity)

    def _views(self, flat: Array) -> list[Array]:
        views, at = [], 0
        for fan_in, fan_out in pairwise(self.widths):
            for shape in ((fan_in, fan_out), (fan_out,)):
                size = int(np.prod(shape))
                views.append(flat[at : at + size].reshape(shape))
                at += size
        return views

    @np.errstate(over="ignore", invalid="ignore")
    def forward(self, x: Array) -> list[Array]:
        """The input and the output of every layer."""
        outputs = [x]
        for k in range(0, len(self.params), 2):
            w, b = self.params[k : k + 2]
            if w.shape[1] == 1:
                y = (lanes8(outputs[-1] * w[:, 0]) + b[0])[:, None]
            else:
                y = np.broadcast_to(b, (len(x), len(b))).copy()
                for i in range(len(w)):
                    y += outputs[-1][:, i : i + 1] * w[i]
            outputs.append(y if k + 2 == len(self.params) else self._activate(y))
        return outputs

    def _activate(self, x: Array) -> Array:
        if self.activation == "relu":
            return np.where(x > 0, x, np.where(np.isnan(x), x, np.float32(0)))
        function: Any = getattr(elementary, self.activation)
        return np.asarray(function(x))

    def _slope(self, dy: Array, y: Array) -> Array:
        one = np.float32(1)
        if self.activation == "relu":
            return np.where(y > 0, dy, np.float32(0))
        return dy * (one - y * y) if self.activation == "tanh" else dy * (y * (one - y))

    def _loss(self, p: Array, y: Any) -> tuple[Any, Array]:
        rows, one = len(p), np.float32(1)
        if self.loss == "mse":
            e = p - y
            losses = lanes8(e * e) / np.float32(p.shape[1])
            return in_order(losses) / np.float32(rows), (np.float32(2) / np.float32(e.size)) * e
        m = p.max(axis=1)
        q = np.asarray(elementary.exp(p - m[:, None]))
        s, own, share = lanes8(q), p[np.arange(rows), y] - m, one / np.float32(rows)
        gradient = q * (share / s)[:, None]
        gradient[np.arange(rows), y] -= share
        return in_order(np.asarray(elementary.log(s)) - own) / np.float32(rows), gradient

    def _gradients(self, outputs: list[Array], dy: Array) -> list[tuple[int, Array]]:
        """(parameter, gradient), last layer first, weights before biases."""
        found: list[tuple[int, Array]] = []
        for k in reversed(range(len(self.params) // 2)):
            x, w = outputs[k], self.params[2 * k]
            found.append((2 * k, in_order(x[:, :, None] * dy[:, None, :])))
            found.append((2 * k + 1, in_order(dy)))
            if k:
                dx = dy * w[:, 0] if w.shape[1] == 1 else lanes8(w[None] * dy[:, None, :])
                dy = self._slope(dx, x)
        return found

    @np.errstate(over="ignore", invalid="ignore")
    def step(self, x: Array, y: Any, rule: Rule, groups: int = ~0) -> float:
        """One step; layer k trains if bit k of `groups` is set."""
        lr, momentum, decay, clip, prox = (np.float32(v) for v in rule)
        outputs = self.forward(x)
        loss, dy = self._loss(outputs[-1], y)
        gradients = [g for g in self._gradients(outputs, dy) if groups >> g[0] // 2 & 1]
        norm = np.sqrt(in_order(np.array([self._square(g) for _, g in gradients], np.float32)))
        scale = clip / norm if clip > 0 and norm > clip else np.float32(1)
        for k, gradient in gradients:
            w, g = self.params[k], scale * gradient
            if decay:
                g = g + decay * w
            if prox:
                g = g + prox * (w - self.bases[k])
            if momentum:
                self.velocities[k][:] = momentum * self.velocities[k] + g
                g = self.velocities[k]
            w[:] = w - lr * g
        return float(loss)

    @staticmethod
    def _square(gradient: Array) -> Array:
        """Lane (column mod 8), over rows, then columns; then the tree."""
        lanes = np.zeros(8, np.float32)
        for row in np.atleast_2d(gradient):
            for o, g in enumerate(row):
                lanes[o % 8] += g * g
        pairs = lanes[0::2] + lanes[1::2]
        return np.asarray((pairs[0] + pairs[1]) + (pairs[2] + pairs[3]))
