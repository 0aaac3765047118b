"""What an experiment's visits carry is what a Learner gives to be sent."""

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    GRADIENT,
    SCORE,
    Instruction,
    Phase,
    Sgd,
    Update,
)
from fedtiny.wire import codec
from fedtiny.wire.visit import share

EXPERIMENT = Experiment.of(
    {
        "model": {"build": "sine_mlp"},
        "data": {"source": "sine"},
        "strategy": {"name": "fedavg"},
        "device": {"ram": "256KiB"},
        "fleet": {"devices": 20},
        "run": {"rounds": 1},
    }
)
GRADIENT_PHASE = Phase(0.1, 1, sgd=Sgd(gradient=True))
ASKED = {
    "train": Instruction(phases=(Phase(0.01, 2), Phase(0.02))),
    "train, the gradient": Instruction(phases=(GRADIENT_PHASE,), returns=GRADIENT),
    "evaluate": Instruction(EVALUATE, (Phase(0.01, 1),)),
    "evaluate without phases": Instruction(EVALUATE),
    "calibrate": Instruction(CALIBRATE),
    "score": Instruction(SCORE, candidates=(1, bytes(4 * 1153), 3)),
}


@pytest.mark.parametrize("kind", ASKED)
def test_the_bytes_of_an_update_are_those_of_what_a_learner_gives(kind: str) -> None:
    work, asked = Workload.of(EXPERIMENT), ASKED[kind]
    program = work.fit("cortex-m4", sgd=Sgd(gradient=True)).needed
    learner = Learner(program)
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    samples = learner.samples(x, x)
    done = learner.visit(asked, program.initial(1), lambda part: samples, Key(1, 2, 3))
    update = Update(1, 3, 2, 0, done.samples, done.values, done.ranges, done.measures)
    requests = codec.submit_requests(update, bytes(8), bytes(32), work.layout.size, 30.0)
    assert work.visit_bytes(program, asked).update == sum(map(share, requests))
