"""What the scripts on a board do and refuse. The shell is emulated, Python is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtiny.bundle import write_bundle
from fedtiny.bundle.targets import TARGETS
from tests.pi.board import COMMAND, INSTALLER, Pi

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WHEELS = {f"wheels/{name}-1.0-py3-none-any.whl": name.encode() for name in ("pip", "one", "two")}
UNIT, SETTINGS = "/etc/systemd/system/fedtiny-agent.service", "/etc/fedtiny-agent.env"
STATE, SAMPLES, VENV = "/var/lib/fedtiny-agent", "/srv/fedtiny", "/opt/fedtiny"

# Says its version, makes a venv with an agent in it, and tells what else it was asked to do.
PYTHON = """#!/bin/sh
echo "python $*" >>/root/told
case "$1 $2" in
*_cffi_backend*) exit ${NO_CFFI:-0} ;;
"-c "*) cat /root/python ;;
"-m venv")
    mkdir -p /opt/fedtiny/bin
    cp "$0" /opt/fedtiny/bin/python
    cp /root/agent /opt/fedtiny/bin/fedtiny-agent
    ;;
esac
"""
AGENT = '#!/bin/sh\necho "agent $FEDTINY_AGENT_DIR $*" >>/root/told\n[ "$2" != bad ] || exit 11\n'

Board = Callable[[str], Pi]


@pytest.fixture
def board(emulator: None, tmp_path: Path) -> Board:
    """A board of that kind with an unpacked bundle."""

    def unpacked(machine: str) -> Pi:
        pi = Pi.boot(machine, tmp_path / "board")
        pi.write("/usr/local/sbin/python3", PYTHON)
        pi.write("/root/agent", AGENT)
        pi.write("/root/python", f"3.11 {TARGETS[machine].multiarch}\n")
        pi.unpack(write_bundle(tmp_path / "bundle.tar.gz", TARGETS[machine], "3.11", WHEELS))
        return pi

    return unpacked


@pytest.fixture
def pi(board: Board) -> Pi:
    return board("aarch64")


def refusal(pi: Pi, *command: str) -> str:
    """Why the installer refuses; and then nothing is installed."""
    _, told = pi.run(*(command or (INSTALLER,)), code=1)
    assert not pi.path(VENV).exists()
    assert not pi.path(UNIT).exists()
    return told


def test_a_damaged_bundle_is_refused(pi: Pi) -> None:
    pi.path("/root/fedtiny-agent/wheels/one-1.0-py3-none-any.whl").write_bytes(b"0ne")
    told = refusal(pi)
    assert "wheels/one-1.0-py3-none-any.whl: FAILED" in told
    assert "the bundle is damaged or not whole; copy it again" in told


def test_an_incomplete_bundle_is_refused(pi: Pi) -> None:
    pi.path("/root/fedtiny-agent/fedtiny-agent.service").unlink()
    assert "the bundle is damaged or not whole; copy it again" in refusal(pi)


def test_another_python_is_refused_with_both_versions(pi: Pi) -> None:
    pi.write("/root/python", "3.13 aarch64-linux-gnu\n")
    told = refusal(pi)
    assert "is for Python 3.11 aarch64-linux-gnu, and here is Python 3.13 aarch64" in told


def test_a_missing_cffi_is_told_where_there_is_no_wheel_of_it(board: Board) -> None:
    told = refusal(board("armv7l"), "env", "NO_CFFI=1", INSTALLER)
    assert "sudo apt install python3-cffi-backend" in told


def test_who_is_not_root_is_told_to_use_sudo(pi: Pi) -> None:
    pi.write("/usr/local/sbin/id", "#!/bin/sh\necho 1000\n")
    assert f"it must be root: sudo {INSTALLER}" in refusal(pi)


def test_an_unknown_argument_is_refused(pi: Pi) -> None:
    assert "unknown argument --purge; there is --remove" in refusal(pi, INSTALLER, "--purge")


def test_only_32_bit_boards_use_packages_of_debian(board: Board) -> None:
    pi = board("armv7l")
    pi.run(INSTALLER)
    assert f"python -m venv --clear --without-pip --system-site-packages {VENV}" in pi.told


def test_a_second_installation_keeps_what_the_owner_has(pi: Pi) -> None:
    pi.run(INSTALLER)
    first = pi.told
    assert f"python -m venv --clear --without-pip {VENV}" in first
    pi.write(SETTINGS, "FEDTINY_AGENT_DATA=/home/pi/samples\n")
    pi.write(f"{STATE}/state/coordinator.json", "{}")
    pi.write("/root/fedtiny-agent/wheels/one-0.9-py3-none-any.whl", "of an older bundle")
    pi.run(INSTALLER)
    # All over again, but for the user, who is there.
    assert pi.told[len(first) :] == [line for line in first if not line.startswith("useradd")]
    (pip,) = {line for line in pi.told if "pip" in line and "venv" not in line}
    assert pip.startswith("python wheels/pip-1.0-py3-none-any.whl/pip ")
    assert pip.endswith(" wheels/one-1.0-py3-none-any.whl wheels/two-1.0-py3-none-any.whl")
    assert pi.path(SETTINGS).read_text() == "FEDTINY_AGENT_DATA=/home/pi/samples\n"
    assert pi.path(f"{STATE}/state/coordinator.json").exists()


def test_what_is_removed_leaves_identity_settings_and_samples(pi: Pi) -> None:
    pi.run(INSTALLER)
    pi.write(f"{STATE}/state/coordinator.json", "{}")
    out, _ = pi.run(INSTALLER, "--remove")
    assert pi.told[-2:] == [
        "systemctl --quiet disable --now fedtiny-agent", "systemctl daemon-reload",
    ]  # fmt: skip
    assert not any(pi.path(name).exists() for name in (UNIT, COMMAND, VENV))
    assert all(pi.path(name).exists() for name in (f"{STATE}/state", SETTINGS, SAMPLES))
    assert out.startswith(f"The agent is gone. Kept: {STATE}")
    pi.run(INSTALLER, "--remove")


# --- the command


def test_the_service_stands_still_while_the_device_joins(pi: Pi) -> None:
    pi.run(INSTALLER)
    _, told = pi.run(COMMAND, "join", "a string")
    assert pi.told[-4:] == [
        "systemctl stop fedtiny-agent", "runuser -u fedtiny",
        f"agent {STATE}/state join a string", "systemctl start fedtiny-agent",
    ]  # fmt: skip
    assert "journalctl -fu fedtiny-agent" in told


def test_the_service_goes_on_after_a_join_that_failed(pi: Pi) -> None:
    pi.run(INSTALLER)
    _, told = pi.run(COMMAND, "join", "bad", code=11)
    assert pi.told[-1] == "systemctl start fedtiny-agent"
    assert told == ""


def test_other_commands_leave_the_service_alone(pi: Pi) -> None:
    pi.run(INSTALLER)
    installed = len(pi.told)
    pi.run(COMMAND, "status", "--json")
    assert pi.told[installed:] == ["runuser -u fedtiny", f"agent {STATE}/state status --json"]


def test_the_command_is_for_root(pi: Pi) -> None:
    pi.run(INSTALLER)
    pi.write("/usr/local/sbin/id", "#!/bin/sh\necho 1000\n")
    _, told = pi.run(COMMAND, "status", code=1)
    assert "use sudo" in told
