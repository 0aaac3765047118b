"""Predictions by the model that the last training visit left on this device."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedtiny.agent.blobs import Blobs
from fedtiny.agent.store import Store, Trained
from fedtiny.agent.tables import read_rows
from fedtiny.device.learner import Learner
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, RunError
from fedtiny.tensors import floats

MOST_LINE_BYTES = 1 << 20
MOST_FILE_BYTES = 1 << 28


class Predictor:
    """The Program and the vector of the last training visit; taken anew after the next one."""

    def __init__(self, store: Store) -> None:
        self._store, self._blobs = store, Blobs(store)
        self._trained: Trained | None = None
        self._learner: Learner | None = None

    def predict(self, x: Any) -> list[dict[str, Any]]:
        """For each sample its outputs, and the class of a classifier.

        Raises RunError before the first training visit, DataError for what are no samples.
        """
        learner = self._current()
        outputs = [float(value) for value in floats(learner.predict(x))]
        width = math.prod(learner.program.output_shape)
        rows = (outputs[at : at + width] for at in range(0, len(outputs), width))
        return [self._row(learner, row) for row in rows]

    def _row(self, learner: Learner, outputs: list[float]) -> dict[str, Any]:
        if not learner.program.loss.endswith("cross_entropy"):
            return {"outputs": outputs}
        return {"outputs": outputs, "class": outputs.index(max(outputs))}

    def _current(self) -> Learner:
        trained = self._store.trained()
        image = self._blobs.get(trained.program) if trained else None
        if trained is None or image is None:
            raise RunError(
                "this device has no trained model yet; fedtiny-agent run --data SOURCE trains one"
            )
        if self._learner is None or trained != self._trained:
            self._learner = Learner(Program(image))
            if trained.mask:
                self._learner.take_mask(trained.mask)
            self._learner.load(trained.vector)
            self._trained = trained
        return self._learner


def samples_of(path: str, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The samples of a file, all at once; of "-" those of the lines, one JSON list each.

    Before them stands where they are. Raises DataError when there are none.
    """
    found = _of_lines(lines) if path == "-" else _of_file(Path(path))
    first = next(found, None)
    if first is None:
        raise DataError(
            "no samples on stdin; write one a line, as a JSON list: [0.1, 0.2]"
            if path == "-"
            else f"{path} has no samples"
        )
    yield first
    yield from found


def _of_file(path: Path) -> Iterator[tuple[str, Any]]:
    rows = read_rows(path, MOST_FILE_BYTES)
    if len(rows):
        yield str(path), rows.taken(list(range(len(rows))))[0]


def _of_lines(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"line {number}", parse_sample(line, f"line {number}")


def parse_sample(line: str, where: str) -> list[float]:
    """The features in a line of JSON. Raises DataError."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}; write a list: [0.1, 0.2]") from None
    if not isinstance(found, list):
        raise DataError(f"{where} is {type(found).__name__}; write a list of numbers: [0.1, 0.2]")
    return found
