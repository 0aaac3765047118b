"""A device meets a stream: it predicts each sample, then maybe learns from it. Needs no NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedtiny.device.gating import Gate, Recent, decide, predicted
from fedtiny.device.visit import Visit
from fedtiny.tensors import all_finite, float_view

if TYPE_CHECKING:
    from fedtiny.engine.program import Hyper

STREAM, FIRST, NEW = "stream", "first", "new"
"""The parts of the device's samples: what it meets, and what it is judged on in either domain."""


@dataclass(frozen=True, slots=True)
class Met:
    """What a stream came to: scores, 1.0 for a right prediction, else 0.0; of a regression losses.

    Attributes:
        scores: Of each sample when it was met.
        adapted: On which of them a step was taken.
        first_before: Of the judged samples of the first domain, before the stream.
        new_before: Of those of the new domain.
        first_after: The same after the stream.
        new_after: The same after the stream.
        diverged: Whether parameters ended as NaN or infinity.
    """

    scores: list[float]
    adapted: list[bool]
    first_before: list[float]
    new_before: list[float]
    first_after: list[float]
    new_after: list[float]
    diverged: bool


class Streaming(Visit):
    """A visit of a device that is on its own: nothing is sent, and nothing is kept.

    Its Program has a batch of one sample; the one phase of the instruction says how a step is made.
    """

    def meet(self, gate: Gate) -> Met:
        """Predict each sample of the stream, and take a step on it where the gate says so."""
        self.load()
        before = self._judged()
        scores, adapted = self._stream(gate, self.program.hyper(self.instruction.phases[0]))
        diverged = not all_finite(float_view(self.executor.store()))
        return Met(scores, adapted, *before, *self._judged(), diverged)

    def _judged(self) -> tuple[list[float], list[float]]:
        first, new = (
            [self._score(x, y, self.executor.predict(x)) for x, y in self._one_by_one(part)]
            for part in (FIRST, NEW)
        )
        return first, new

    def _stream(self, gate: Gate, hyper: Hyper) -> tuple[list[float], list[bool]]:
        recent = Recent()
        scores: list[float] = []
        adapted: list[bool] = []
        for x, y in self._one_by_one(STREAM):
            outputs = self.executor.predict(x)
            scores.append(self._score(x, y, outputs))
            recent, adapts = decide(gate, recent, outputs, y[0])
            adapted.append(adapts)
            if adapts:
                self.executor.step(x, y, hyper)
        return scores, adapted

    def _score(self, x: Any, y: Any, outputs: memoryview[float]) -> float:
        if self.program.loss == "mse":
            return self.executor.evaluate(x, y, 1)[0]
        return float(predicted(outputs) == y[0])

    def _one_by_one(self, part: str) -> Iterator[tuple[Any, Any]]:
        return ((x, y) for x, y, _ in self.learner.batches(self.samples_of(part)))
