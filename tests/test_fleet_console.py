"""What the operator of a fleet reads: when a line of progress comes, and what it says."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from fedtiny.fleet_console import (
    MOST_ROWS,
    Progress,
    progress_line,
    revoked_line,
    show_devices,
    show_finding,
    show_status,
    show_tokens,
)
from fedtiny.server.doctor import WARN, Finding


def _run(round: int, **others: Any) -> dict[str, Any]:
    run = {
        "name": "sine", "phase": "open", "round": round, "rounds": 12, "version": round,
        "updates": 2 * round, "refused": 0, "late": 0, "failed_rounds": 0, "drop_out": 0.0,
        "waits_for": "1 update: 1 being made, 0 to be asked for", "until_s": 8.0, "left_s": 90.0,
        "bytes_down": 5000, "bytes_up": 4600, "reasons": {}, "loss": None, "evaluations": {},
    }  # fmt: skip
    return run | others


def _status(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1.2.3", "pid": 7, "folder": "/srv/fleet", "listen": "127.0.0.1:8470",
        "enrol": "127.0.0.1:8471", "insecure": True, "metrics": None, "served_s": 3600.0,
        "draining": False, "failure": "the disk is full", "runs": list(runs),
        "devices": {"joined": 5, "revoked": 1, "connected": 3, "working": 1},
    }  # fmt: skip


def _shown(show: Any, what: Any) -> str:
    out = io.StringIO()
    show(Console(file=out, width=120), what)
    return out.getvalue()


def test_a_line_says_what_the_round_waits_for_and_until_when() -> None:
    assert progress_line(_run(3), 1) == (
        "sine · round 3/12 · 6 updates · 1 device connected · waits for 1 update: 1 being made, "
        "0 to be asked for, at most 8.0 s · 00:01:30 left"
    )


def _times(*looks: tuple[float, dict[str, Any]]) -> list[float]:
    """The seconds at which a line came, of those at which somebody looked."""
    lines: list[str] = []
    came: list[float] = []
    clock = [0.0]
    progress = Progress(lines.append, lambda: clock[0])
    for clock[0], run in looks:
        before = len(lines)
        progress.take(_status(run))
        came += [clock[0]] if len(lines) > before else []
    return came


def test_rounds_in_quick_succession_share_a_line() -> None:
    looks = [(second, _run(second)) for second in range(6)]
    assert _times(*looks) == [0, 2, 4]


def test_a_round_that_lasts_is_told_twice_a_minute() -> None:
    looks = [(second, _run(3)) for second in range(0, 100, 5)]
    assert _times(*looks) == [0, 30, 60, 90]


def test_the_end_is_told_at_once_and_once() -> None:
    over = _run(12, phase="done")
    assert _times((0, _run(11)), (1, over), (2, over), (100, over)) == [0, 1]


def test_the_status_shows_refusals_and_evaluations() -> None:
    reasons = {"norm N": {"count": 2, "example": "norm 12.5 is more than 10"}}
    row = {
        "round": 6, "devices": 20, "accuracy_after": 0.8125, "accuracy_after_ci": 0.013,
        "loss_after": 1.0, "loss_after_ci": 0.1,
    }  # fmt: skip
    told = _shown(
        show_status,
        _status(_run(6, reasons=reasons, evaluations={"few": row}, loss=0.5, drop_out=0.06)),
    )
    assert "devices at    127.0.0.1:8470, without certificates" in told
    assert re.search(r"last failure +the disk is full", told)
    assert "5 joined, 3 connected, 1 at work, 1 revoked" in told
    assert "2 refused, such as for: norm 12.5 is more than 10" in told
    assert "few: accuracy 81.2 ± 1.3 % (round 6, 20 devices)" in told
    assert re.search(r"drop-out +6 % *\n", told)
    assert "00:01:30" in told


def test_an_evaluation_that_diverged_is_told_as_such() -> None:
    row = {"round": 6, "devices": 20, "loss_after": None, "loss_after_ci": None}
    told = _shown(show_status, _status(_run(6, evaluations={"few": row})))
    assert "few: diverged (round 6, 20 devices)" in told


def test_a_finding_is_one_line_and_its_remedy_another() -> None:
    finding = Finding("open files", WARN, "1,024 may be open [hard]", "ulimit -n 2000")
    told = _shown(show_finding, finding)
    assert told == "warn  open files: 1,024 may be open [hard]\n      ulimit -n 2000\n"


def _device(index: int, **others: Any) -> dict[str, Any]:
    device = {
        "index": index, "name": "pi", "state": "away", "run": None, "profile": "pi-4",
        "ram_bytes": 2**28, "agent": "fedtiny 1.2.3", "seen_s": float(index), "misfits": {},
    }  # fmt: skip
    return device | others


def test_a_long_list_shows_the_devices_seen_last() -> None:
    told = _shown(show_devices, {"devices": [_device(at) for at in range(MOST_ROWS + 50)]})
    assert re.search(r"^249 +pi ", told, re.MULTILINE)
    assert re.search(r"^50 +pi ", told, re.MULTILINE)
    assert not re.search(r"^49 +pi ", told, re.MULTILINE)
    assert told.endswith("these are the 200 seen last of 250; --json lists all\n")


def test_a_device_that_is_shut_out_is_not_told_to_work() -> None:
    revoked = _shown(show_devices, {"devices": [_device(1, state="revoked", run="one")]})
    assert "revoked" in revoked
    assert "works on" not in revoked
    assert "works on one" in _shown(
        show_devices, {"devices": [_device(1, state="working", run="one")]}
    )


@pytest.mark.parametrize(
    ("show", "document", "told"),
    [
        (show_devices, {"devices": []}, "no device has joined; let one join: "),
        (show_tokens, {"tokens": []}, "no device can join now; make a token: "),
    ],
)
def test_an_empty_list_says_what_to_do(show: Any, document: Any, told: str) -> None:
    assert _shown(show, document) == f"{told}fedtiny token create\n"


def test_all_who_may_have_been_meant_are_named() -> None:
    done = {"index": 2, "name": "pi", "revoked_s": 0.0, "already": True}
    assert revoked_line({**done, "namesakes": ["pi-2", "pi-3"]}).endswith(
        " ago; pi-2, pi-3 are other devices"
    )
    assert revoked_line({**done, "already": False}) == "device 2 (pi) is shut out"


def test_a_device_that_cannot_take_part_is_told_why() -> None:
    device = _device(3, misfits={"sine": ["needs 70,000 B of RAM"]})
    told = _shown(show_devices, {"devices": [device]})
    assert told.endswith("pi cannot take part in sine: needs 70,000 B of RAM\n")
