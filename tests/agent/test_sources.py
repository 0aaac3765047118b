"""Sources: files that grow, tasks, streams in a bounded ring."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtiny.agent.sources import Source, open_source
from fedtiny.data.tasks import SineTask
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.compile import compile
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError, ExperimentError
from fedtiny.values import Instruction, Phase
from tests.agent import streaming
from tests.agent.small_fleet import PROGRAM

CLASSIFIER = Learner(compile(mlp((2, 4, 3)), loss="cross_entropy", ram="64KiB", batch=2))
KEY = Key(7, 2, 5)


def labels(source: Source, part: str = "support", labelled: bool = True) -> list[float]:
    return list(source.sampler(CLASSIFIER, KEY, labelled)(part).y)


def until(is_so: Callable[[], bool]) -> bool:
    """Whether it comes true within two seconds."""
    end = time.monotonic() + 2
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return is_so()


def test_files_that_come_later_are_taken_at_the_next_visit(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,h,label\n" + "1,2,0\n" * 4)
    source = open_source(str(tmp_path), 0)
    assert labels(source) == [0] * 3
    (tmp_path / "b.csv").write_text("t,h,label\n" + "1,2,1\n" * 4)
    assert labels(source) == [0] * 4 + [1] * 3
    assert labels(source, "query") == [1]


def test_without_labels_there_is_nothing_to_train_on_until_they_come(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,t,h\n" + "".join(f"r{n},1,2\n" for n in range(5)))
    source = open_source(str(tmp_path), 0)
    with pytest.raises(DataError, match=r"5 rows, none with a label to train on.*labels\.csv"):
        labels(source)
    assert labels(source, labelled=False) == [0] * 4
    (tmp_path / "labels.csv").write_text("id,label\nr0,2\nr4,1\n")
    assert (labels(source), labels(source, "query")) == ([2], [1])


def test_samples_keep_the_shape_in_which_they_were_stored(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((5, 3)), y=np.zeros(5, int))
    with pytest.raises(DataError, match=r"x has the shape \(4, 3\), a sample of it \(2,\)"):
        labels(open_source(str(tmp_path / "a.npz"), 0))


def test_a_task_gives_the_samples_of_the_visit() -> None:
    learner = Learner(PROGRAM)
    source = open_source("tests.agent.streaming:Task", 5)
    found = source.sampler(learner, KEY)("support")
    x, y = SineTask().samples(KEY.run, KEY.round, KEY.device, "support")
    np.testing.assert_array_equal(np.array(found.x), x.ravel())
    np.testing.assert_array_equal(np.array(found.y), y.ravel())


def test_a_list_is_taken_anew_at_each_visit() -> None:
    source = open_source("tests.agent.streaming:SAMPLES", 0)
    assert labels(source) == labels(source) == [0, 1] * 4
    assert labels(source, "query") == [0, 1]


def test_a_function_hears_the_index_of_its_device() -> None:
    assert labels(open_source("tests.agent.streaming:of_device", 2)) == [2, 2]


def test_a_stream_is_kept_in_a_ring_of_bounded_bytes() -> None:
    source = open_source("tests.agent.streaming:endless", 0, most_bytes=10 * (8 + 128))
    sampler = source.sampler(CLASSIFIER, KEY)
    first = [*sampler("support").y, *sampler("query").y]
    assert first == list(range(first[0], first[0] + 10))
    assert until(lambda: source.sampler(CLASSIFIER, KEY)("support").y[0] > first[-1])


def test_a_slow_stream_gives_what_has_come() -> None:
    streaming.released.clear()
    source = open_source("tests.agent.streaming:sensor", 0)
    begun = time.monotonic()
    assert labels(source) == [1]
    assert time.monotonic() - begun < 2
    streaming.released.set()
    assert until(lambda: labels(source, "query") == [0])


def test_a_label_may_come_after_its_features() -> None:
    source = open_source("tests.agent.streaming:late", 0)
    assert labels(source) == [1]
    streaming.late.append(("c", None, 2))
    try:
        assert (labels(source), labels(source, "query")) == ([1], [2])
    finally:
        streaming.late.pop()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("broken", r"broken failed: ValueError in .*streaming\.py, line \d+: the sensor is gone"),
        ("shapeless", r"shapeless gave float; it must give \(features, label or None\)"),
    ],
)
def test_a_source_that_fails_is_named(data: str, told: str) -> None:
    source = open_source(f"tests.agent.streaming:{data}", 0)
    with pytest.raises(DataError, match=told):
        labels(source)


SECRET = "73.25"
LEAKS = {
    "a cell": f"t,h,label\n1,{SECRET}x,0\n",
    "a long cell": f"t,h,label\n1,{SECRET * 20},0\n",
    "a label": f"t,h,label\n1,2,{SECRET}x\n",
    "a part": f"t,h,part,label\n1,2,{SECRET},0\n",
    "a header that is data": f"{SECRET},{SECRET}\n1,2\n",
    "a double name": f"{SECRET}x,{SECRET}x\n1,2\n",
    "a label that is no class": "t,h,label\n" + "1,2,7325\n" * 5,
    "a label of another kind": f"t,h,label\n1,2,{SECRET}\n",
    "no finite value": "t,h,label\n1,inf,0\n",
}


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS)
def test_what_others_hear_of_wrong_samples_has_no_value_of_theirs(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    sampler = open_source(str(tmp_path / "a.csv"), 0)
    with pytest.raises(DataError) as told:
        CLASSIFIER.visit(
            Instruction(phases=(Phase(0.1),)), bytes(CLASSIFIER.vector()),
            sampler.sampler(CLASSIFIER, KEY), KEY,
        )  # fmt: skip
    assert told.value.public
    for secret in ("73", "inf", str(tmp_path)):
        assert secret not in told.value.public, told.value.public


def test_what_others_hear_of_an_owners_object_is_the_kind_of_error() -> None:
    source = open_source("tests.agent.streaming:broken", 0)
    with pytest.raises(DataError) as told:
        labels(source)
    assert told.value.public == "tests.agent.streaming:broken failed: ValueError"


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv is not there; name a \.npz"):
        open_source("nowhere.csv", 0)
    with pytest.raises(ExperimentError, match="has no 'endles'; did you mean 'endless'"):
        open_source("tests.agent.streaming:endles", 0)
