"""The device's command as its owner meets it: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedtiny
from fedtiny.agent import identity
from fedtiny.agent.cli import main
from fedtiny.agent.identity import Identity
from fedtiny.agent.limits import Limits
from fedtiny.agent.store import Store
from fedtiny.errors import FedtinyError
from fedtiny.wire import codec
from tests.agent.small_fleet import PROGRAM, SmallFleet, joined, served
from tests.harness.fleet_port import CARD, serving

ROOT = Path(__file__).resolve().parents[2]
TASK = "tests.agent.streaming:Task"


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts agents as processes; none of them outlives the test."""
    all_started: list[subprocess.Popen[str]] = []

    def started(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fedtiny.agent", *map(str, arguments)]
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        all_started.append(process)
        return process

    yield started
    for process in all_started:
        process.kill()
        process.communicate()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], input: str = "") -> tuple[int, str, str]:
    out, err = process.communicate(input, timeout=20)
    return process.returncode, out, err


def test_a_device_runs_and_tells_its_visits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(fleet := SmallFleet(rounds=3)) as port:
        joined(tmp_path, fleet, port)
        assert main(["run", "--dir", str(tmp_path), "--data", TASK]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" · ")[0] for line in lines[:3]] == ["round 0", "round 1", "round 2"]
    assert "trained 32 samples in" in lines[0]
    assert lines[3] == "the run is over"


def test_progress_as_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(fleet := SmallFleet(rounds=3)) as port:
        joined(tmp_path, fleet, port)
        arguments = ["run", "--dir", str(tmp_path), "--data", TASK, "--once", "2", "--json"]
        assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["round"], row["status"]) for row in rows] == [(0, "accepted"), (1, "accepted")]
    main(["status", "--dir", str(tmp_path), "--json"])
    status = json.loads(capsys.readouterr().out)
    assert status["last"] == rows[-1]
    assert status["trained"] == {"round": 1, "program": PROGRAM.digest}
    assert (status["version"], status["protocol"]) == (fedtiny.__version__, codec.PROTOCOL)
    nothing = {name for name, value in status.items() if value is None}
    assert nothing == {"process", "state", "held", "name", "expires_s"}
    assert set(status) - nothing == {
        "device", "address", "folder", "version", "protocol", "limits", "today", "last", "trained",
    }  # fmt: skip


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_a_waiting_agent_and_loses_nothing(
    tmp_path: Path, start: Start, sent: signal.Signals, code: int
) -> None:
    fleet = SmallFleet(rounds=1, devices=2)
    fleet.coordinator.check_in(0.0, 1)  # the only lease is another device's
    with served(fleet) as port:
        joined(tmp_path, fleet, port)
        agent = start("run", "--dir", tmp_path, "--data", TASK)
        wait_until(lambda: fleet.count(object) >= 3)
        assert Store(tmp_path).running == agent.pid
        second = ended(start("run", "--dir", tmp_path, "--data", TASK))
        agent.send_signal(sent)
        ended_with, _, told = ended(agent)
    assert ended_with == code
    assert told == "stopped; what is finished is kept\n"
    assert second[0] == 9
    assert f"an agent (process {agent.pid}) already runs" in second[2]
    assert not (tmp_path / "agent.sock").exists()


def test_predictions_come_from_the_folder_and_from_a_running_agent(
    tmp_path: Path, start: Start
) -> None:
    fleet = SmallFleet(rounds=1, devices=1)
    with served(fleet) as port:
        joined(tmp_path, fleet, port)
        assert ended(start("run", "--dir", tmp_path, "--data", TASK))[0] == 0
    np.savez(tmp_path / "x.npz", x=np.array([[0.5], [1.5]], np.float32))
    code, out, _ = ended(start("predict", "--dir", tmp_path, tmp_path / "x.npz"))
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows), len(rows[0]["outputs"])) == (0, 2, 1)
    _, out, _ = ended(start("predict", "--dir", tmp_path, "-"), "[0.5]\n[1.5]\n")
    assert [json.loads(line) for line in out.splitlines()] == rows
    busy = SmallFleet(rounds=1, devices=2)
    busy.coordinator.check_in(0.0, 1)
    with served(busy) as port:
        joined(tmp_path, busy, port)
        agent = start("run", "--dir", tmp_path, "--data", TASK)
        wait_until((tmp_path / "agent.sock").exists)
        _, out, _ = ended(start("predict", "--dir", tmp_path, "-"), "[0.5]\n[1.5]\n")
        assert [json.loads(line) for line in out.splitlines()] == rows
        code, out, err = ended(start("predict", "--dir", tmp_path, "-"), "[0.5]\n\n[1, 2, 3]\n")
        assert (code, len(out.splitlines())) == (6, 1)
        assert "line 3: one line is one sample; got 3" in err
        _, out, _ = ended(start("status", "--dir", tmp_path, "--json"))
        status = json.loads(out)
        assert status["process"] == agent.pid
        assert status["state"] == "waits at the coordinator for work" or "rests" in status["state"]
        agent.send_signal(signal.SIGTERM)
        ended(agent)


def test_limits_are_set_shown_and_lifted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def limits(*given: str) -> Any:
        assert main(["limits", "--dir", str(tmp_path), "--json", *given]) == 0
        return json.loads(capsys.readouterr().out)

    lifted = {"ram_bytes": None, "cpu_percent": 100.0, "battery_percent": 0.0, "bytes_a_day": None}
    assert limits() == lifted
    given = limits("--ram", "64MiB", "--cpu", "50%", "--battery", "30%", "--bytes", "20MB")
    assert given == {
        "ram_bytes": 64 << 20, "cpu_percent": 50.0, "battery_percent": 30.0,
        "bytes_a_day": 20_000_000,
    }  # fmt: skip
    assert limits("--cpu", "25%") == given | {"cpu_percent": 25.0}
    assert limits("--ram=none", "--cpu=none", "--battery=none", "--bytes=none") == lifted


def test_limits_are_told_to_people_in_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["limits", "--dir", str(tmp_path), "--ram", "64MiB", "--cpu", "50%", "--bytes", "20MB"])
    assert capsys.readouterr().out.splitlines() == [
        "memory       at most 64 MiB",
        "processor    at most 50 %",
        "battery      no limit",
        "bytes a day  at most 20.0 MB",
    ]


def test_an_odd_limit_is_kept_only_after_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["limits", "--dir", str(tmp_path), "--ram", "64KiB", "--cpu", "1%"]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\ny\n"))
    assert main(arguments) == 3
    told = capsys.readouterr().err
    assert told.startswith("65536 B of memory and 1 % of a processor: really? [y/N] ")
    assert Limits.load(Store(tmp_path)) == Limits()
    assert main(arguments) == 0
    assert Limits.load(Store(tmp_path)) == Limits(ram_bytes=65_536, cpu_percent=1.0)
    assert main([*arguments, "--battery", "99%", "--yes"]) == 0


def test_the_status_is_told_to_people_in_aligned_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(fleet := SmallFleet(rounds=1)) as port:
        joined(tmp_path, fleet, port)
        me = Identity.load(tmp_path)
        replace(me, name="pi-2", insecure=False, expires_s=1_800_000_000.0).save(tmp_path)
        main(["status", "--dir", str(tmp_path)])
        before = capsys.readouterr().out.splitlines()
        me.save(tmp_path)
        main(["run", "--dir", str(tmp_path), "--data", TASK])
    capsys.readouterr()
    main(["status", "--dir", str(tmp_path)])
    after = capsys.readouterr().out.splitlines()
    assert before == [
        f"device       0 (pi-2) of 127.0.0.1:{port}",
        "state        not running; start it: fedtiny-agent run --data SOURCE",
        f"version      fedtiny {fedtiny.__version__}, protocol {codec.PROTOCOL}",
        "certificate  ends at 2027-01-15 08:00 UTC; renewed before",
        f"folder       {tmp_path}",
        "limits       none",
    ]
    assert [line.split("  ")[0] for line in after] == [
        "device", "state", "version", "folder", "model", "last visit", "today", "limits",
    ]  # fmt: skip
    assert re.fullmatch(
        r"last visit  round 0 · trained 32 samples in \d\.\d\d s · sent 0\.\d KB", after[5]
    )


def test_the_version_is_told_with_the_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    told = f"fedtiny-agent {fedtiny.__version__}, protocol {codec.PROTOCOL}\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("command", [["status"], ["limits"], ["leave", "--yes"]])
def test_asking_about_a_device_that_is_none_makes_no_folder(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "agent"
    assert main([*command, "--dir", str(folder)]) == (0 if command == ["limits"] else 9)
    assert not folder.exists()


def test_a_damaged_key_is_told_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "fleet") as port:
        identity.enrol(port.join_string(), "pi", CARD, tmp_path / "agent")
    (tmp_path / "agent" / "key.pem").write_bytes(b"damaged")
    assert main(["run", "--dir", str(tmp_path / "agent"), "--data", TASK]) == 9
    told = "key.pem is damaged; remove it, then join again: `fedtiny-agent join --again STRING`"
    assert told in capsys.readouterr().err


def test_joining_tells_the_name_that_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "fleet") as port:
        for folder in "ab":
            string = str(port.join_string())
            assert main(["join", string, "--name", "pi", "--dir", str(tmp_path / folder)]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert ", called pi; next: fedtiny-agent run" in first
    name = Identity.load(tmp_path / "b").name
    assert f", called {name}, for another device has the name pi; next:" in second


def test_leaving_deletes_everything_after_a_yes(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "agent"
    Store(folder).write_document("limits", {})
    code, _, err = ended(start("leave", "--dir", folder), "no\n")
    assert (code, folder.exists()) == (3, True)
    assert "nothing was deleted" in err
    assert main(["leave", "--dir", str(folder), "--yes"]) == 0
    assert not folder.exists()
    assert "is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run", "--data", "x"], 9, "has not joined a fleet"),
        (["run"], 3, "no samples are named: add --data SOURCE, or set FEDTINY_AGENT_DATA"),
        (["join", "http://nowhere"], 3, "is no join string"),
        (["status"], 9, "fedtiny-agent join STRING"),
        (["limits", "--cpu", "0%"], 3, "must be above 0 %"),
        (["predict", "-"], 9, "no trained model yet"),
    ],
)
def test_an_error_names_its_remedy_and_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("FEDTINY_AGENT_DATA", raising=False)
    monkeypatch.setattr("sys.stdin", iter(["[1]"]))
    assert main([*arguments, "--dir", str(tmp_path)]) == code
    assert told in capsys.readouterr().err


def test_the_help_lists_every_exit_code_of_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    for kind in FedtinyError.__subclasses__():
        if kind.__name__ not in ("CompileError", "UpdateError", "StrategyError"):
            assert f" {kind.exit_code} " in told, kind
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
