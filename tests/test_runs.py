import errno
import json
import os
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import RunError
from fedtiny.experiment import Experiment
from fedtiny.runs import Checkpoint, Dropped, RunFolder

TEXT = """\
seed = 7
[model]
build = "sine_mlp"  # the net
[data]
source = "sine"
[strategy]
name = "tinyreptile"
"""
EXPERIMENT = Experiment.parse(TEXT)
MODEL = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.zeros(3, "<f4")}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", EXPERIMENT)


def checkpoint(round: int, **values: Any) -> Checkpoint:
    return Checkpoint(round, {"model": np.full(3, round, np.float32)}, values)


# ---- opening ---------------------------------------------------------------------------------


def test_a_new_run_keeps_its_experiment_as_written_and_as_resolved(run: RunFolder) -> None:
    assert (run.path / "experiment.toml").read_text() == TEXT
    assert run.experiment == EXPERIMENT.to_json()
    again = Experiment.parse(*RunFolder.open(run.path).source)
    assert again.digest == EXPERIMENT.digest


def test_the_folder_of_the_experiment_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT)
    run = RunFolder.create(tmp_path / "run", Experiment.load(tmp_path / "a.toml"))
    again = Experiment.parse(*run.source)
    assert again.folder == str(tmp_path.resolve())
    assert again.origin.name == str(run.path / "experiment.toml")


def test_a_run_may_begin_in_an_empty_folder(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, EXPERIMENT).history() == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"run is there already .* resume it, or choose another"):
        RunFolder.create(run.path, EXPERIMENT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"not an empty folder; choose another"):
        RunFolder.create(tmp_path / "other", EXPERIMENT)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file is there already"):
        RunFolder.create(tmp_path / "file", EXPERIMENT)


def test_a_folder_that_is_no_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not the folder of a run: it has no experiment\.json"):
        RunFolder.open(tmp_path)


def test_a_text_that_is_damaged_is_named(run: RunFolder) -> None:
    (run.path / "experiment.toml").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"experiment\.toml is damaged: .*; restore it"):
        assert run.source


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_is_told_with_its_path(
    run: RunFolder, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "summary.json")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(RunError, match=r"summary\.json: No space left on device; make room"):
        run.save_summary({})


def test_a_damaged_experiment_is_named(run: RunFolder) -> None:
    (run.path / "experiment.json").write_text("{}")
    with pytest.raises(RunError, match=r"experiment\.json is damaged: it has no 'experiment'"):
        assert run.experiment
    (run.path / "experiment.json").write_text("{")
    with pytest.raises(RunError, match=r"experiment\.json is damaged"):
        assert run.experiment


def test_another_experiment_is_refused_with_the_keys_that_differ(run: RunFolder) -> None:
    other = EXPERIMENT.override("run.rounds=5", "strategy.alpha=0.5")
    with pytest.raises(
        RunError,
        match=r"differs in run\.rounds \(was 100, is 5\), "
        r"strategy\.alpha \(was not given, is 0\.5\); resume it with",
    ):
        RunFolder.resume(run.path, other)


def test_the_number_of_threads_may_change_on_a_resume(run: RunFolder) -> None:
    RunFolder.resume(run.path, EXPERIMENT.override("fleet.threads=1"))


# ---- history ---------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
ROW = st.dictionaries(st.text(max_size=4), JSON, max_size=3)


@given(st.lists(ROW, max_size=5))
def test_the_history_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    run = RunFolder.create(tmp_path_factory.mktemp("run"), EXPERIMENT)
    for row in rows:
        run.append(row)
    assert run.history() == rows
    assert len((run.path / "history.jsonl").read_text().split("\n")) == len(rows) + 1


def test_a_row_may_hold_numpy_numbers(run: RunFolder) -> None:
    run.append({"loss": np.float32(0.5), "accepted": np.int64(3), "done": np.bool_(True)})
    assert run.history() == [{"loss": 0.5, "accepted": 3, "done": True}]


def test_a_last_row_that_was_cut_short_is_left_out(run: RunFolder) -> None:
    run.append({"round": 0})
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(b'{"round": 1, "lo')
    assert run.history() == [{"round": 0}]


def test_a_history_that_is_damaged_in_the_middle_is_refused(run: RunFolder) -> None:
    (run.path / "history.jsonl").write_text('{"round"\n{"round": 1}\n')
    with pytest.raises(RunError, match=r"history\.jsonl is damaged"):
        run.history()


# ---- resuming --------------------------------------------------------------------------------


def test_a_resume_goes_on_where_the_checkpoint_stands(run: RunFolder) -> None:
    for round in range(3):
        run.append({"round": round})
    run.save_checkpoint(checkpoint(2, clock_s=17.25))
    run.append({"round": 3})
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(b'{"round"')
    again, dropped = RunFolder.resume(run.path, EXPERIMENT)
    assert dropped == Dropped(rows=2, nbytes=len(b'{"round": 3}\n{"round"'), torn=True)
    assert "dropped 2 rows of history (21 B) past the checkpoint, the last" in str(dropped)
    assert [row["round"] for row in again.history()] == [0, 1, 2]
    found = again.checkpoint()
    assert found is not None
    assert (found.round, found.values) == (2, {"clock_s": 17.25})
    again.append({"round": 3})
    assert [row["round"] for row in again.history()] == [0, 1, 2, 3]


def test_a_run_without_a_checkpoint_begins_again(run: RunFolder) -> None:
    run.append({"round": 0})
    again, dropped = RunFolder.resume(run.path, EXPERIMENT)
    assert (dropped.rows, dropped.torn) == (1, False)
    assert again.checkpoint() is None
    assert again.history() == []


def test_nothing_is_dropped_after_a_clean_end(run: RunFolder) -> None:
    run.append({"round": 0})
    run.save_checkpoint(checkpoint(0))
    assert RunFolder.resume(run.path, EXPERIMENT)[1] == Dropped(0, 0, False)


def test_a_history_shorter_than_its_checkpoint_is_refused(run: RunFolder) -> None:
    run.append({"round": 0})
    run.save_checkpoint(checkpoint(0))
    os.truncate(run.path / "history.jsonl", 4)
    with pytest.raises(RunError, match=r"has 4 B, but the checkpoint was made when it had 13 B"):
        RunFolder.resume(run.path, EXPERIMENT)


@given(st.integers(0, 60), st.integers(0, 4))
def test_a_run_cut_off_at_any_byte_resumes_at_its_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, lost: int, at: int
) -> None:
    run = RunFolder.create(tmp_path_factory.mktemp("run"), EXPERIMENT)
    for round in range(5):
        run.append({"round": round})
        if round == at:
            run.save_checkpoint(checkpoint(round))
            safe = (run.path / "history.jsonl").stat().st_size
    size = (run.path / "history.jsonl").stat().st_size
    os.truncate(run.path / "history.jsonl", max(size - lost, safe))
    again, _ = RunFolder.resume(run.path, EXPERIMENT)
    assert [row["round"] for row in again.history()] == list(range(at + 1))


# ---- checkpoints and models ------------------------------------------------------------------


def test_a_checkpoint_keeps_every_bit_and_type(run: RunFolder) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "model": np.array([1.5, np.nan, -0.0], np.float32),
        "state/v": np.array([[1e-300]], np.float64),
        "personal": np.zeros((0, 3), np.float32),
        "file": np.array([2**63 - 1], np.int64),
        "key": np.arange(4, dtype=np.uint32),
    }
    run.save_checkpoint(Checkpoint(7, arrays, {"clock_s": 0.1, "seen": [1, 2]}))
    found = run.checkpoint()
    assert found is not None
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()
    assert (found.round, found.values) == (7, {"clock_s": 0.1, "seen": [1, 2]})


def test_a_crash_while_a_checkpoint_is_written_leaves_the_old_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save_checkpoint(checkpoint(1))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, crash)
            with pytest.raises(KeyboardInterrupt):
                run.save_checkpoint(checkpoint(2))
        found = run.checkpoint()
        assert found is not None
        assert found.round == 1


@pytest.mark.parametrize("damage", [b"", b"not a zip file", b"PK\x03\x04", b"a .npy file"])
def test_a_damaged_checkpoint_is_named(run: RunFolder, damage: bytes) -> None:
    if damage == b"a .npy file":
        written = BytesIO()
        np.save(written, np.zeros(3))
        damage = written.getvalue()
    (run.path / "checkpoint.npz").write_bytes(damage)
    with pytest.raises(RunError, match=r"checkpoint\.npz is damaged: it is no whole \.npz") as told:
        RunFolder.resume(run.path, EXPERIMENT)
    assert "pickle" not in str(told.value)


def test_a_pickle_is_neither_written_nor_read(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        run.save_model(0, {"w": np.array([{}], object)})
    assert run.model_rounds() == []
    (run.path / "models" / "round-000000.npz").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(RunError, match=r"round-000000\.npz is damaged"):
        run.model(0)


def test_models_are_kept_by_round(run: RunFolder) -> None:
    run.save_model(10, MODEL)
    run.save_model(200, {"fc.bias": np.ones(3, np.float32)})
    assert run.model_rounds() == [10, 200]
    assert run.model()["fc.bias"].tolist() == [1, 1, 1]
    for name, array in run.model(10).items():
        np.testing.assert_array_equal(array, MODEL[name], strict=True)
    with np.load(run.path / "models" / "round-000010.npz") as plain:
        assert set(plain.files) == set(MODEL)


def test_the_same_model_is_the_same_file(run: RunFolder) -> None:
    run.save_model(1, MODEL)
    run.save_model(2, MODEL)
    first, second = ((run.path / "models" / f"round-00000{n}.npz").read_bytes() for n in (1, 2))
    assert first == second


def test_a_model_that_was_not_kept_is_named(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"has no model; it has those of rounds \[\]"):
        run.model()
    run.save_model(5, MODEL)
    with pytest.raises(RunError, match=r"has no model of round 4; it has those of rounds \[5\]"):
        run.model(4)


def test_a_summary_is_there_when_the_run_has_ended(run: RunFolder) -> None:
    assert run.summary() is None
    run.save_summary({"loss": np.float64(0.25), "rounds": 100})
    assert run.summary() == {"loss": 0.25, "rounds": 100}
    assert json.loads((run.path / "summary.json").read_text())["rounds"] == 100


def test_no_temporary_file_is_left(run: RunFolder) -> None:
    run.save_model(1, MODEL)
    run.save_checkpoint(checkpoint(1))
    run.save_summary({})
    assert sorted(path.name for path in run.path.rglob("*") if path.is_file()) == [
        "checkpoint.npz", "experiment.json", "experiment.toml", "history.jsonl",
        "round-000001.npz", "summary.json",
    ]  # fmt: skip
