"""Several runs in one coordinator, runs that go on, and the folder of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtiny.errors import RunError
from fedtiny.server.documents import waits_for
from fedtiny.wire import codec
from fedtiny.wire.codec import Work
from tests.server.desk import Desk, Opened, experiment, given


def test_two_runs_share_the_devices(tmp_path: Path) -> None:
    desk = Desk(tmp_path, experiment(name="first"), experiment("seed=8", name="second"))
    desk.work_off(range(3))
    assert {name: h.coordinator.rounds.round for name, h in desk.conductor.hosted.items()} == {
        "first": 3, "second": 3,
    }  # fmt: skip
    desk.close()


def test_a_device_keeps_the_work_that_it_has_in_one_of_two_runs(tmp_path: Path) -> None:
    settings = "strategy.cohort=3"
    desk = Desk(
        tmp_path, experiment(settings, name="first"), experiment(settings, "seed=8", name="second")
    )
    work = given(desk, 0)
    assert given(desk, 0).lease.id == work.lease.id
    assert given(desk, 0).run == work.run
    desk.close()


def test_a_device_whose_lease_has_ended_in_one_run_is_of_use_to_another(tmp_path: Path) -> None:
    settings = "seeded=false", "strategy.cohort=1", "run.deadline=100.0", "fleet.held_out=0"
    desk = Desk(tmp_path, experiment(*settings, name="first"), experiment(*settings, name="second"))
    work = given(desk, 0)
    desk.clock.seconds += 101.0
    again = given(desk, 0)
    assert again.lease.id != work.lease.id or again.run != work.run
    desk.close()


def test_runs_whose_names_share_a_stem_are_told_apart(tmp_path: Path) -> None:
    desk = Desk(tmp_path, experiment(name="sine"), experiment("seed=8", name="sine-2"))
    runs = {name: hosted.run for name, hosted in desk.conductor.hosted.items()}
    desk.crash()
    assert {name: hosted.run for name, hosted in desk.conductor.hosted.items()} == runs
    desk.close()


def test_a_seeded_run_says_whom_it_waits_for_and_passes_over_the_revoked(opened: Opened) -> None:
    desk = opened("strategy.cohort=1", "fleet.devices=3", "fleet.held_out=0")
    (first,) = desk.hosted.missing
    assert waits_for(desk.hosted).endswith(f"1 to be asked for of the devices {first}")
    desk.call(lambda conductor: conductor.revoke(str(first)))
    (second,) = desk.hosted.missing
    assert second != first
    assert isinstance(desk.answer(second), Work)


def test_a_model_is_fetched_as_a_difference_after_a_real_round(opened: Opened) -> None:
    desk = opened("seeded=false", "device.plan='last:1'")
    before = desk.hosted.models.manifest(0).digest
    for work in [given(desk, device) for device in (0, 1)]:
        desk.hand_in(desk.visit(work), work)
    blobs = desk.hosted.models.blobs
    after = desk.hosted.models.manifest(1).digest
    delta = codec.write_delta(blobs[before], blobs[after])
    assert delta is not None
    assert len(delta) < 200
    for _ in range(3):
        desk.work_off(range(3))
    assert len([b for b in desk.hosted.models.blobs.values() if len(b) == 4612]) <= 4


def test_a_changed_experiment_is_refused_unless_a_new_run_is_asked_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path, experiment(name="same"))
    desk.conductor.database.close()
    desk.experiments = (experiment("strategy.beta=0.5", name="same"),)
    differ = r"begun with another experiment: strategy.beta \(was 0.02, is 0.5\); .*--new-run"
    with pytest.raises(RunError, match=differ):
        desk.open()
    desk.conductor.database.close()
    desk.open(new_run=True)
    assert list(desk.conductor.hosted) == ["same-2"]
    desk.conductor.database.close()
    desk.experiments = (experiment(name="same"),)
    desk.open()  # the older one can still be gone on with
    assert list(desk.conductor.hosted) == ["same"]
    desk.close()


def test_the_folder_of_a_run_follows_the_database(opened: Opened) -> None:
    desk = opened("run.save_every=1")
    desk.work_off(range(3))
    folder = desk.conductor._folders[desk.hosted.name].run
    assert folder.history() == desk.hosted.history()
    assert folder.model_rounds() == [1, 2, 3]
    (folder.path / "history.jsonl").write_bytes(b'{"torn')
    desk.crash()
    assert folder.history() == desk.hosted.history()
    summary = folder.summary()
    assert summary is not None
    assert (summary["rounds"], summary["updates"]) == (3, 6)
