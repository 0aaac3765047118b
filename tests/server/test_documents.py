"""What an operator is shown of a run: figures that can be read."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fedtiny.rounds.drop_out import DropOut
from fedtiny.server.documents import Place, counted, status
from tests.server.desk import Desk, experiment


def test_a_share_of_lost_leases_that_has_faded_is_none(tmp_path: Path) -> None:
    with closing(Desk(tmp_path, experiment())) as desk:
        coordinator = desk.hosted.coordinator
        for share, shown in ((2.73e-43, 0.0), (0.123456, 0.1235)):
            coordinator.rounds = replace(coordinator.rounds, drop_out=DropOut(share))
            (run,) = status(desk.conductor, Place(tmp_path, "here:1", "here:2"))["runs"]
            assert run["drop_out"] == shown


def test_one_is_counted_as_one() -> None:
    assert [counted(n, "device") for n in (0, 1, 2000)] == [
        "0 devices",
        "1 device",
        "2,000 devices",
    ]
