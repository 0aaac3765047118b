"""A board without NumPy trains, draws and decides as one that has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedtiny.engine import native
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp
from fedtiny.values import Sgd

ROOT = Path(__file__).resolve().parents[2]
NETS = {"mse": (3, 9, 2), "cross_entropy": (3, 9, 4)}

# What a device does with an image of bytes: reads it, initialises it, trains visits on plain lists,
# keeps something of each for the next one, predicts and evaluates; and what it draws and decides
# beside that.
DEVICE = """
import json, sys
if sys.argv[3] == "without":
    sys.modules["numpy"] = None
from fedtiny import rng
from fedtiny.device.learner import Key, Learner
from fedtiny.device.session import Event, Session, advance, encode
from fedtiny.engine.program import Program
from fedtiny.transforms.table import parse
from fedtiny.values import Instruction, Lease, Phase, Sgd

program = Program(open(sys.argv[1], "rb").read())
learner = Learner(program, "native")
key = Key(run=7, round=2, device=5)
words = [rng.words(7, 2, part, rng.Purpose.TASK, 60) for part in (1, 2)]
x = [rng.uniform(word, -1.0, 1.0) for word in words[0][:33]]
y = [rng.uniform(word, -1.0, 1.0) for word in words[1][:22]]
if sys.argv[2] == "cross_entropy":
    y = [rng.below(word, 4) for word in words[1][:11]]
samples = learner.samples(x, y)
instruction = Instruction(phases=(Phase(0.1, 6, shuffle=True, sgd=program.sgd), Phase(0.05)))
kept = {}
for lr in (0.1, 0.05):
    phases = (Phase(lr, 3, shuffle=True, ahead=0.05), Phase(lr, 2, corrected=True))
    stateful = Instruction(
        phases=phases, correction=bytes(4 * program.layout.size), control=True,
        own=(Phase(lr, 3, sgd=Sgd(prox=0.2)),),
        transforms=parse(["clip:0.5", "noise:0.001", "feedback", "topk:0.4", "int8"]),
    )
    done = learner.visit(stateful, program.initial(3), lambda part: samples, key, kept)
    kept = dict(done.kept)
outcome = learner.visit(instruction, program.initial(3), lambda part: samples, key)
session, command = Session(run=7, device=5), None
lease = Lease(id=3, device=5, round=0, version=0, deadline=100.0)
history = []
for now, event in enumerate(Event):
    session, command = advance(session, event, float(now), lease, until=50.0)
    history.append(f"{session} {command}")
print(json.dumps({
    "initial": bytes(memoryview(program.initial(3)).cast("B")).hex(),
    "values": outcome.values.hex(),
    "stateful": [done.values.hex(), done.places.hex(), done.quantised.q.hex()],
    "kept": {name: values.hex() for name, values in kept.items()},
    "measures": dict(outcome.measures),
    "trained": bytes(memoryview(learner.vector()).cast("B")).hex(),
    "prediction": bytes(memoryview(learner.predict(x)).cast("B")).hex(),
    "scores": learner.evaluate(x, y),
    "session": history,
    "table": encode(),
    "loaded": "numpy" in sys.modules and sys.modules["numpy"] is not None,
}, default=int))
"""


# What a device does with a pruned Program: it trains under a mask from a compact vector, grows,
# readjusts its mask, and calibrates and scores candidates.
PRUNED_DEVICE = """
import json, sys
from dataclasses import replace
if sys.argv[3] == "without":
    sys.modules["numpy"] = None
from fedtiny import pruning, rng
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.program import Program
from fedtiny.tensors import floats
from fedtiny.values import Instruction, Phase, Transform

program = Program(open(sys.argv[1], "rb").read())
learner = Learner(program, "native")
key = Key(run=7, round=2, device=5)
x = [rng.uniform(w, -1.0, 1.0) for w in rng.words(7, 2, 1, rng.Purpose.TASK, 33)]
y = [rng.below(w, 4) for w in rng.words(7, 2, 2, rng.Purpose.TASK, 11)]
samples = learner.samples(x, y)
base = program.initial(3)
counts = pruning.candidate_counts(program.layout, program.prunable, program.density, 4)
mask = pruning.largest(base, program.layout, counts)
train = Instruction(phases=(Phase(0.1, 6, shuffle=True),), masks=((program.density, mask.blob),))
weights = floats(base)
compact = [weights[i] for i in mask.coordinates(((0, mask.size),))]
grow = replace(train, phases=(Phase(0.1), Phase(0.0, 1)), grow=((program.prunable[0], 4),))
asked = {
    "train": train,
    "grow": replace(grow, returns="gradient"),
    "vote": replace(grow, returns="votes"),
    "readjust": grow,
    "gradient": replace(train, phases=(Phase(0.1, 1),), returns="gradient"),
    "largest": replace(train, transforms=(Transform("topk", 0.2), Transform("sign"))),
    "evaluate": replace(train, kind="evaluate"),
    "calibrate": Instruction("calibrate", candidates=(0, 1, 9)),
}
told, statistics = {}, b""
for name, one in asked.items():
    start = base if one.candidates else floats(compact)
    done = learner.visit(one, start, lambda part: samples, key)
    told[name] = (done.values.hex(), done.ranges, done.samples, dict(done.measures),
                  done.mask and done.mask.blob.hex(), done.places and done.places.hex())
    statistics = done.values
score = Instruction("score", candidates=(0, 1, 9), statistics=statistics)
told["score"] = dict(learner.visit(score, base, lambda part: samples, key).measures)
told["loaded"] = "numpy" in sys.modules and sys.modules["numpy"] is not None
print(json.dumps(told))
"""


def device(image: Path, loss: str, numpy: str, script: str = DEVICE) -> dict[str, Any]:
    """What the device prints, with NumPy or without."""
    command = [sys.executable, "-c", script, str(image), loss, numpy]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


REFUSED = """
import sys
sys.modules["numpy"] = None
from fedtiny.device.learner import Learner
from fedtiny.engine.program import Program
from fedtiny.errors import FedtinyError
from array import array

program = Program(open(sys.argv[1], "rb").read())
for call in (
    lambda: Learner(program, "reference"),
    lambda: Learner(program, "native").samples([0.0, float("nan"), 1.0], [0.0, 0.0]),
    lambda: Learner(program, "native").samples(array("d", [0.0, 1.0]), [0.0, 0.0]),
):
    try:
        call()
    except FedtinyError as error:
        print(error)
"""


def test_what_is_refused_without_numpy_is_told_plainly(tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("the reference executor needs NumPy")
    image = tmp_path / "program.image"
    image.write_bytes(compile(mlp(NETS["mse"]), loss="mse", ram="64KiB").image)
    command = [sys.executable, "-c", REFUSED, str(image)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = printed.stdout.splitlines()
    assert told[0].startswith("the reference executor needs NumPy, and there is none here; install")
    assert told[1].startswith("x: 1 of 3 values are NaN")
    assert told[2].startswith("x: a sample has 3 values")


@pytest.mark.parametrize("loss", NETS)
def test_a_visit_without_numpy_gives_the_same_bits(loss: str, tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("the reference executor needs NumPy")
    program = compile(
        mlp(NETS[loss], "tanh"), loss=loss, ram="64KiB", batch=2, sgd=Sgd(0.9, correction=True)
    )
    image = tmp_path / "program.image"
    image.write_bytes(program.image)
    found, expected = device(image, loss, "without"), device(image, loss, "with")
    assert (found.pop("loaded"), expected.pop("loaded")) == (False, True)
    assert found == expected
    assert found["trained"] != found["initial"]
    assert set(found["kept"]) == {"control", "own", "residual"}
    assert len(found["values"]) == 2 * 4 * program.layout.size


def test_a_pruned_visit_without_numpy_gives_the_same_bits(tmp_path: Path) -> None:
    if not native.available():
        pytest.skip("the reference executor needs NumPy")
    net = Net(3)
    net.linear(net.relu(net.batch_norm(net.linear(net.input, 9), tracked=True)), 4)
    program = compile(
        net, loss="cross_entropy", ram="64KiB", batch=2, sgd=Sgd(0.9), density=0.4, bucket=4
    )
    image = tmp_path / "program.image"
    image.write_bytes(program.image)
    found = device(image, "cross_entropy", "without", PRUNED_DEVICE)
    expected = device(image, "cross_entropy", "with", PRUNED_DEVICE)
    assert (found.pop("loaded"), expected.pop("loaded")) == (False, True)
    assert found == expected
    assert found["readjust"][4] is not None
    assert len(found["grow"][5]) == 4 * 4 * 2  # four places of four bytes, in hexadecimal
