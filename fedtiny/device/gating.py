"""Whether a device that meets a stream learns from a sample: a gate, asked once it has predicted.

A small state machine, (state, outputs, label) -> (state, adapts): no clock, no I/O, no NumPy. Its
arithmetic is that of float64 additions, products and quotients, the same on every host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ALWAYS, NEVER, CONFIDENCE, ERROR = "always", "never", "confidence", "error"
OF_CLASSES = (CONFIDENCE, ERROR)
"""The gates that look at class probabilities or labels, and have a threshold."""

_NOTHING_LEFT = -40.0  # exp of it is below what changes a sum that is 1 or more
_HALVINGS, _TERMS = 6, 14


@dataclass(frozen=True, slots=True)
class Gate:
    """When to adapt.

    Attributes:
        kind: "always"; "never"; "confidence": when 1 - the largest class probability is above the
            threshold; "error": when the share of wrong predictions is.
        threshold: From 0 to 1.
        window: The last samples over which the mean is taken, this one included.
    """

    kind: str
    threshold: float = 0.0
    window: int = 1


@dataclass(frozen=True, slots=True)
class Recent:
    """What the gate remembers: how doubtful, or how wrong, each of the last samples was."""

    signals: tuple[float, ...] = ()


def decide(
    gate: Gate, recent: Recent, outputs: Sequence[float], label: float
) -> tuple[Recent, bool]:
    """What the gate remembers from now on, and whether to take a step on this sample."""
    if gate.kind not in OF_CLASSES:
        return recent, gate.kind == ALWAYS
    signal = doubt(outputs) if gate.kind == CONFIDENCE else float(predicted(outputs) != label)
    signals = (*recent.signals, signal)[-gate.window :]
    return Recent(signals), math.fsum(signals) > gate.threshold * len(signals)


def predicted(outputs: Sequence[float]) -> int:
    """The class with the largest output, the first of equal ones; -1 if one is not finite."""
    if not all(map(math.isfinite, outputs)):
        return -1
    return max(range(len(outputs)), key=outputs.__getitem__)


def doubt(outputs: Sequence[float]) -> float:
    """1 - the largest probability that softmax gives; 1 if an output is not finite."""
    if not all(map(math.isfinite, outputs)):
        return 1.0
    largest = max(outputs)
    others = math.fsum(_exp(output - largest) for output in outputs) - 1.0
    return others / (1.0 + others)


def _exp(x: float) -> float:
    """exp of x <= 0: a polynomial of a 64th of it, squared six times."""
    if x < _NOTHING_LEFT:
        return 0.0
    part, power = x / 2**_HALVINGS, 1.0
    for n in range(_TERMS, 0, -1):
        power = 1.0 + power * part / n
    for _ in range(_HALVINGS):
        power *= power
    return power
