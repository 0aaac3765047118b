"""What a device computes with the images of a folder, one line of JSON. It runs on a board."""

from __future__ import annotations

import json
import math
import sys
from array import array
from pathlib import Path
from typing import Any

from fedtiny import rng
from fedtiny.device.learner import Key, Learner
from fedtiny.engine import native
from fedtiny.engine.program import Program
from fedtiny.tensors import floats
from fedtiny.values import Instruction, Phase

SAMPLES = 5
LABELS = [0, 1, 0, 1, 1]
# Beside values of everyday size, those whose products are below the least normal float32.
SCALES = (1.0, 1e-37)
RANGE = (-2.0, 2.0)  # of an int8 Program's activations
KEY = Key(run=7, round=2, device=5)


def visit(program: Program, scale: float) -> dict[str, Any]:
    """One visit: what it trains, sends, and predicts afterwards."""
    learner = Learner(program, "native")
    x = _drawn(1, SAMPLES * math.prod(program.sample_shape), scale)
    targets = _drawn(2, SAMPLES * math.prod(program.output_shape), scale)
    y = LABELS if program.loss == "cross_entropy" else targets
    samples = learner.samples(x, y)
    initial = array("f", [scale * value for value in floats(program.initial(3))])
    for p in program.range_parameters:
        initial[p.offset : p.offset + p.size] = array("f", RANGE)
    steps = 100 if program.range_parameters else 4
    phases = Phase(0.1, steps, shuffle=True, sgd=program.sgd), Phase(0.05)
    outcome = learner.visit(Instruction(phases=phases), initial, lambda part: samples, KEY)
    return {
        "values": outcome.values.hex(),
        "measures": dict(outcome.measures),
        "prediction": [value.hex() for value in floats(learner.predict(x))],
        "scores": learner.evaluate(x, y),
    }


def _drawn(part: int, count: int, scale: float) -> list[float]:
    words = rng.words(KEY.run, KEY.round, part, rng.Purpose.TASK, count)
    return [scale * rng.uniform(word, -1.0, 1.0) for word in words]


if __name__ == "__main__":
    assert native.available()
    images = sorted(Path(sys.argv[1]).glob("*.image"))
    results = {
        f"{path.stem} {scale:g}": visit(Program(path.read_bytes()), scale)
        for path in images
        for scale in SCALES
    }
    sys.stdout.write(json.dumps(results, default=int))
