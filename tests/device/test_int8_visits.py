"""What a device does with an int8 Program: refusals, the model it starts from, what it sends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner, Outcome
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.errors import DataError
from fedtiny.quantised import held
from fedtiny.transforms.table import parse
from fedtiny.values import EVALUATE, LOCAL_VALUES, QUERY, SUPPORT, Instruction, Kept, Phase, Sgd
from fedtiny.wire.int8 import read_int8, weights_of, write_int8

ROOT = Path(__file__).resolve().parents[2]
PHASE = Phase(0.02, steps=4)
TRAIN = Instruction(phases=(PHASE,))
KEY = Key(1, 2, 3)


def small_net() -> Net:
    net = Net((6, 6, 2))
    x = net.relu(net.conv(net.input, 4, 3, padding=1, name="conv"))
    net.group = "local"
    x = net.relu(net.linear(net.avg_pool(x, 2), 7, name="hidden"))
    net.group = "head"
    net.linear(x, 3, name="last")
    return net


def program_of(plan: str = "all") -> Program:
    return compile(small_net(), loss="cross_entropy", ram="64KiB", batch=4, dtype="int8", plan=plan)


PROGRAM = program_of()
BASE = np.array(PROGRAM.initial(3))
for _p in PROGRAM.range_parameters:
    BASE[_p.offset : _p.offset + 2] = (-3.0, 3.0) if _p.layer == "input" else (0.0, 3.0)
HELD = np.asarray(held(PROGRAM, BASE))


def data(count: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, 6, 6, 2)).astype(np.float32), draw.integers(0, 3, count)


@pytest.fixture(params=["native", "reference"])
def learner(request: pytest.FixtureRequest) -> Learner:
    return Learner(PROGRAM, request.param)


def visit(
    learner: Learner, asked: Instruction = TRAIN, kept: Kept | None = None, key: Key = KEY
) -> Outcome:
    parts = {SUPPORT: learner.samples(*data()), QUERY: learner.samples(*data(6, 1))}
    return learner.visit(asked, BASE, parts.__getitem__, key, kept or {})


def sent(done: Outcome) -> np.ndarray:
    """What was sent, in its places of the base."""
    vector, values, at = BASE.copy(), np.frombuffer(done.values, np.float32), 0
    for start, stop in done.ranges:
        vector[start:stop] = values[at : at + stop - start]
        at += stop - start
    return vector


def coordinates(*names: str) -> np.ndarray:
    return np.concatenate([np.arange(*r) for r in PROGRAM.layout.ranges(names)])


def test_a_model_without_ranges_is_refused_before_anything_is_computed(learner: Learner) -> None:
    for vector in (PROGRAM.initial(3), np.where(BASE == 3.0, np.inf, BASE)):
        with pytest.raises(DataError, match=r"has no range .* calibrate"):
            learner.load(vector)
    constant = BASE.copy()
    hidden = PROGRAM.layout["relu2.range"]
    constant[hidden.offset : hidden.offset + 2] = 0.0
    with pytest.raises(DataError, match=r"the output of relu2 has no range \(0 to 0\)"):
        learner.visit(TRAIN, constant, lambda part: learner.samples(*data()), Key())


def test_a_device_sends_its_base_moved_as_far_as_its_int8_weights_moved(learner: Learner) -> None:
    found = sent(visit(learner))
    learner.load(BASE)
    learner.train(*data(), lr=PHASE.lr, steps=PHASE.steps, key=KEY)
    trained = np.asarray(learner.vector())
    weight = coordinates("conv.weight")
    np.testing.assert_array_equal(found[weight], (BASE + (trained - HELD))[weight])
    plain = coordinates("conv.bias", "last.weight", "last.bias")
    np.testing.assert_array_equal(found[plain], trained[plain])
    assert (BASE != HELD)[weight].any()
    assert (trained != HELD)[weight].any()


def test_what_did_not_train_is_sent_as_it_came(learner: Learner) -> None:
    done = visit(learner, replace(TRAIN, phases=(Phase(0.0, steps=2),)))
    np.testing.assert_array_equal(sent(done), BASE)


def test_the_transforms_are_given_the_way_of_the_int8_weights(learner: Learner) -> None:
    plain, clipped = visit(learner), visit(learner, replace(TRAIN, transforms=parse(["clip:1e6"])))
    way = np.frombuffer(clipped.values, np.float32)
    moved = (sent(plain) - BASE)[np.concatenate([np.arange(*pair) for pair in plain.ranges])]
    np.testing.assert_array_equal(way, moved)


def test_local_weights_stay_on_the_device_as_floats_and_go_on_from_there(learner: Learner) -> None:
    first = visit(learner)
    local = coordinates("hidden.weight", "hidden.bias")
    values = np.frombuffer(first.kept[LOCAL_VALUES], np.float32)
    still = replace(TRAIN, phases=(Phase(0.0, steps=1),))
    second = visit(learner, still, first.kept)
    assert (values != BASE[local]).any()
    np.testing.assert_array_equal(np.frombuffer(second.kept[LOCAL_VALUES], np.float32), values)


def test_the_rounding_is_that_of_the_key_of_the_visit(learner: Learner) -> None:
    values = visit(learner).values
    assert visit(learner).values == values
    for key in (Key(2, 2, 3), Key(1, 1, 3), Key(1, 2, 4)):
        assert visit(learner, key=key).values != values


def test_both_executors_send_the_same_bytes() -> None:
    one, other = (visit(Learner(PROGRAM, kind)) for kind in ("native", "reference"))
    assert one.values == other.values
    assert one.measures == other.measures


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.program import Program
from fedtiny.values import Instruction, Phase
image, base, x, y = (open(f"{sys.argv[1]}/{name}", "rb").read() for name in ("p", "base", "x", "y"))
learner = Learner(Program(image), "native")
samples = learner.samples(x, y)
asked = Instruction(phases=(Phase(0.02, steps=4),))
sys.stdout.write(learner.visit(asked, base, lambda part: samples, Key(1, 2, 3)).values.hex())
"""


def test_a_board_without_numpy_sends_the_same_bytes(tmp_path: Path) -> None:
    x, y = data()
    given = {"p": PROGRAM.image, "base": BASE, "x": x, "y": y.astype(np.int32)}
    for name, content in given.items():
        (tmp_path / name).write_bytes(bytes(content))
    command = [sys.executable, "-c", WITHOUT_NUMPY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout) == visit(Learner(PROGRAM, "native")).values


def test_samples_are_judged_and_predicted_as_float32(learner: Learner) -> None:
    x, y = data(9)
    learner.load(BASE)
    logits = np.asarray(learner.predict(x))
    assert logits.shape == (9, 3)
    assert learner.evaluate(x, y)["correct"] == (logits.argmax(1) == y).sum()
    measures = visit(learner, replace(TRAIN, kind=EVALUATE)).measures
    assert measures["loss_sum_after"] != measures["loss_sum_before"]


def test_looking_ahead_is_refused_as_it_would_round_the_model_at_every_step() -> None:
    with pytest.raises(DataError, match="looks ahead"):
        visit(Learner(PROGRAM, "reference"), Instruction(phases=(Phase(0.1, 2, ahead=0.1),)))


def test_the_channels_that_train_alone_are_sent_like_whole_weights() -> None:
    program = program_of("named:conv.weight{out=1+3}")
    learner = Learner(program, "reference")
    done = learner.visit(TRAIN, BASE, lambda part: learner.samples(*data()), Key())
    values = np.frombuffer(done.values, np.float32)
    assert len(values) == 3 * 3 * 2 * 2
    weight = sent(done)[coordinates("conv.weight")].reshape(-1, 4)
    start = BASE[coordinates("conv.weight")].reshape(-1, 4)
    np.testing.assert_array_equal(weight[:, [0, 2]], start[:, [0, 2]])
    assert (weight[:, [1, 3]] != start[:, [1, 3]]).any()


RULES = {
    "plain": TRAIN,
    "proximal": Instruction(phases=(Phase(0.05, steps=8, sgd=Sgd(prox=0.5)),)),
    "momentum": Instruction(phases=(Phase(0.05, steps=8, sgd=Sgd(momentum=0.9, clip=1.0)),)),
    "control": Instruction(
        phases=(Phase(0.02, steps=4, sgd=Sgd(correction=True), corrected=True),),
        correction=bytes(PROGRAM.layout.nbytes),
        control=True,
    ),
    "own": Instruction(phases=(PHASE,), own=(Phase(0.05, steps=3, sgd=Sgd(prox=0.1)),)),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_device_moves_as_far_from_int8_bytes_as_from_the_whole_model(rule: str) -> None:
    asked, layout = RULES[rule], PROGRAM.layout
    sgd = Sgd(prox=0.5, momentum=0.9, clip=1.0, correction=True)
    program = compile(
        small_net(), loss="cross_entropy", ram="64KiB", batch=4, dtype="int8", sgd=sgd,
        kept_vectors=3,
    )  # fmt: skip
    learner = Learner(program)
    weights = weights_of(program, asked)
    sent_as_int8 = read_int8(layout, weights, write_int8(layout, weights, BASE))
    parts = {SUPPORT: learner.samples(*data()), QUERY: learner.samples(*data(6, 1))}
    whole, small = (
        learner.visit(asked, base, parts.__getitem__, KEY, {}) for base in (BASE, sent_as_int8)
    )
    there = np.isin(np.arange(layout.size), coordinates(*weights))
    # as `fedtiny.server.models` puts the difference on the coordinator's own model
    ways = sent(small) - np.frombuffer(sent_as_int8, np.float32)
    np.testing.assert_array_equal(np.where(there, BASE + ways, sent(small)), sent(whole))
    assert whole.kept == small.kept
