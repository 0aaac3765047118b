"""What the doctor finds in a folder that is well, and in folders that are not."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedtiny import __version__
from fedtiny.cli import app
from fedtiny.engine import native
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.server import doctor
from fedtiny.server.authority import Authority
from fedtiny.server.devices import Devices
from fedtiny.server.doctor import FAIL, OK, WARN, Finding, Site, examine
from fedtiny.server.storage import Database
from tests.harness import story
from tests.harness.members import CARD

DAY_S = 86400.0


@contextmanager
def listening() -> Iterator[str]:
    """The address of a port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _free() -> str:
    with listening() as address:
        return address


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where a coordinator has never served."""
    return Site(tmp_path, _free(), _free(), serving=False)


def _found(site: Site, check: str) -> Finding:
    """What that check found; the worst, where it looked at several things."""
    found = [finding for finding in examine(site) if finding.check == check]
    return max(found, key=lambda finding: (OK, WARN, FAIL).index(finding.state))


def _workload(folder: Path, devices: int = 3) -> Workload:
    return Workload.of(Experiment.load(story.experiment(folder, devices)))


def _join(folder: Path, *agents: str, ram_bytes: int = CARD.ram_bytes) -> None:
    """Devices with these agents have joined, and have certificates for a week."""
    with closing(Database(folder)) as database:
        devices, authority = Devices(database.connection), Authority.open(folder / "authority")
        for agent in agents:
            index = devices.join("pi", replace(CARD, ram_bytes=ram_bytes), agent, time.time())
            database.connection.execute(
                "INSERT INTO certificates VALUES (?, ?, ?)",
                (f"{index:x}", index, time.time() + authority.device_s),
            )
        database.commit()


# ---- what is well ----------------------------------------------------------------------------


def test_nothing_is_wrong_with_a_new_folder(site: Site) -> None:
    found = list(examine(replace(site, folder=site.folder / "fleet")))
    assert [finding for finding in found if finding.state != OK or finding.remedy] == []
    assert {"clock", "disk space", "disk speed", "port", "enrolment port", "open files"} <= {
        finding.check for finding in found
    }
    assert list(site.folder.iterdir()) == []


def test_nothing_is_wrong_where_devices_have_joined(site: Site) -> None:
    _join(site.folder, *[f"fedtiny-agent {__version__}"] * 3)
    found = list(examine(replace(site, runs=(_workload(site.folder / "experiment"),))))
    assert [finding for finding in found if finding.state != OK] == []
    plans = next(finding for finding in found if finding.check == "plans")
    assert plans.told == "sine: 3 of 3 devices can run a plan, each round needs 3"


# ---- this machine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least", "remedy"),
    [
        ("grpcio", "999.1", "pip install 'grpcio>=999.1'"),
        ("no-such-library", "1", "pip install 'fedtiny[coordinator]'"),
    ],
)
def test_a_library_that_is_old_or_missing_fails(
    site: Site, name: str, least: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LEAST_VERSIONS", {name: least})
    found = _found(site, name)
    assert (found.state, found.remedy) == (FAIL, remedy)


def test_without_the_native_runtime_there_is_a_warning(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> bool:
        warnings.warn("no native runtime", RuntimeWarning, stacklevel=1)
        return False

    monkeypatch.setattr(native, "available", missing)
    assert _found(site, "runtime") == Finding("runtime", WARN, "no native runtime", native.REBUILD)


def test_a_clock_behind_its_own_files_fails(site: Site) -> None:
    file = site.folder / "fleet.lock"
    file.touch()
    os.utime(file, (time.time(), time.time() + 3 * DAY_S))
    found = _found(site, "clock")
    assert found.state == FAIL
    assert "before the last change of fleet.lock" in found.told


# ---- the folder ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "state"), [(0o700, OK), (0o750, WARN), (0o777, WARN)])
def test_a_folder_is_for_its_owner_alone(site: Site, mode: int, state: str) -> None:
    site.folder.chmod(mode)
    found = _found(site, "folder")
    assert (found.state, f"({mode:04o})" in found.told) == (state, True)
    assert found.remedy == ("" if state == OK else f"chmod 700 {site.folder}")


def test_a_file_in_the_place_of_the_folder_fails(site: Site) -> None:
    file = site.folder / "one.toml"
    file.touch()
    found = _found(replace(site, folder=file), "folder")
    assert (found.state, found.told) == (FAIL, f"{file} is a file")


@pytest.mark.parametrize(("free", "state"), [(2**25, FAIL), (2**28, WARN), (2**31, OK)])
def test_a_disk_must_have_room(
    site: Site, free: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(site.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))
    assert _found(site, "disk space").state == state


def test_a_slow_disk_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SYNCS", 3)
    monkeypatch.setattr(os, "fsync", lambda file: time.sleep(0.06))
    found = _found(site, "disk speed")
    assert found.state == WARN
    assert "more than 50 ms" in found.remedy


def test_a_folder_that_cannot_be_written_fails(site: Site) -> None:
    assert _found(replace(site, folder=Path("/proc/fleet")), "disk speed").state == FAIL


# ---- the network -----------------------------------------------------------------------------


def test_a_port_that_somebody_has_fails(site: Site) -> None:
    with listening() as address:
        found = _found(replace(site, enrol=address), "enrolment port")
    assert found.state == FAIL
    assert found.told == f"{address} cannot be had: Address already in use"


def test_the_port_of_the_metrics_is_looked_at_where_there_is_one(site: Site) -> None:
    with listening() as address:
        taken = replace(site, metrics=address)
        assert _found(taken, "metrics port").state == FAIL
        assert _found(replace(taken, serving=True), "metrics port").state == OK
    assert "metrics port" not in {finding.check for finding in examine(site)}


def test_the_ports_of_a_coordinator_that_serves_must_answer(site: Site) -> None:
    with listening() as address:
        serving = replace(site, listen=address, serving=True)
        assert _found(serving, "port").state == OK
        assert _found(serving, "enrolment port").state == FAIL


def test_each_device_needs_a_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 4096))
    run = _workload(site.folder / "experiment", devices=1000)
    found = _found(replace(site, runs=(run,)), "open files")
    # 1,000 devices and 64 files of the coordinator's own.
    assert (found.state, found.told) == (WARN, "1,024 may be open, 1,000 devices need 1,064")
    assert "ulimit -n 1064" in found.remedy


# ---- who is whom -----------------------------------------------------------------------------


@pytest.mark.parametrize(("years_ago", "state"), [(1, OK), (5.95, WARN), (7, FAIL)])
def test_the_certificate_of_the_server_lives_six_years(
    site: Site, years_ago: float, state: str
) -> None:
    Authority.open(site.folder / "authority", now_unix=time.time() - years_ago * 365 * DAY_S)
    assert _found(site, "certificate").state == state


def test_devices_whose_certificates_have_ended_are_named(site: Site) -> None:
    _join(site.folder, *[__version__] * 5)
    with closing(sqlite3.connect(site.folder / "fleet.db")) as connection:
        connection.execute("UPDATE certificates SET not_after_s = 1 WHERE device < 4")
        connection.commit()
    found = _found(site, "certificates of devices")
    assert found.state == WARN
    assert "those of 1 devices are valid; ended: pi, pi-2, pi-3 and 1 more." in found.told


def test_agents_of_another_release_are_counted(site: Site) -> None:
    _join(site.folder, __version__, "0.0.9", "0.0.9")
    found = _found(site, "agents")
    assert (found.state, found.told) == (WARN, f"2 x 0.0.9, 1 x {__version__}")
    assert f"update them to {__version__}" in found.remedy


def test_too_few_devices_for_the_plan_fail_with_the_bytes(site: Site) -> None:
    _join(site.folder, __version__, __version__, ram_bytes=1000)
    found = _found(replace(site, runs=(_workload(site.folder / "experiment"),)), "plans")
    assert found.state == FAIL
    assert "sine: 0 of 2 devices can run a plan, each round needs 3" in found.told
    assert "B of RAM, pi-4 has 1,000 B" in found.told


def test_a_fleet_that_nobody_has_joined_needs_devices_and_no_other_plan(site: Site) -> None:
    _join(site.folder)
    found = _found(replace(site, runs=(_workload(site.folder / "experiment"),)), "plans")
    assert (found.state, found.told) == (WARN, "sine: no device has joined")
    assert found.remedy == "let some join: fedtiny token create"


# ---- the command -----------------------------------------------------------------------------


def test_the_exit_code_tells_a_failure(tmp_path: Path) -> None:
    with listening() as address:
        arguments = ["doctor", "--dir", str(tmp_path), "--listen", address]
        result = CliRunner(env={"NO_COLOR": "1"}).invoke(app, arguments)
    assert result.exit_code == 9
    assert (
        f"\nfail  port: {address} cannot be had: Address already in use\n"
        "      stop what listens there, or choose another port\n" in result.stdout
    )
    assert "\x1b" not in result.stdout
