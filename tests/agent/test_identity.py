import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from fedtiny import durable
from fedtiny.agent import identity
from fedtiny.agent.identity import Identity, Told
from fedtiny.engine.runtime import build
from fedtiny.errors import IdentityError, RunError
from fedtiny.server.authority import DAY_S
from fedtiny.wire import services
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.harness.fleet_port import CARD, FleetPort, serving

FILES = {"key.pem", "certificate.pem", "authority.pem", "signer.bin", "coordinator.json"}
YEAR_S = 365 * DAY_S


@pytest.fixture
def port(tmp_path: Path) -> Iterator[FleetPort]:
    with serving(tmp_path / "fleet") as port:
        yield port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "device"


def called(me: Identity, folder: Path) -> None:
    """One call of a device, which the port writes down."""
    with me.channel(folder, []) as channel:
        calls = services.stubs(services.FLEET, channel)
        calls.check_in(pb.CheckInRequest(), timeout=5, metadata=me.metadata)


# --- joining


def test_one_string_makes_a_device(port: FleetPort, folder: Path) -> None:
    me = identity.enrol(port.join_string(), "pi", CARD, folder)
    assert (me.index, me.address) == (0, f"127.0.0.1:{port.fleet_port}")
    assert Identity.load(folder) == me
    assert identity.signer(folder) == port.authority.signer.public
    assert (port.devices[0].name, port.devices[0].card) == ("pi", CARD)
    called(me, folder)
    assert [device for _, device in port.heard] == [0]


def test_the_key_is_for_its_owner_alone_and_never_leaves(port: FleetPort, folder: Path) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    identity.renew(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    secret = key.private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr]
    for path in port.database.path.parent.iterdir():
        assert secret not in path.read_bytes()


def test_joining_twice_is_refused_with_advice(port: FleetPort, folder: Path) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    another = port.join_string()
    with pytest.raises(RunError, match=r"joined already: it is number 0 .*--again"):
        identity.enrol(another, "pi", CARD, folder)
    assert len(port.devices.tokens(time.time())) == 1


def test_joining_again_gives_the_same_index_for_the_same_key(port: FleetPort, folder: Path) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    again = identity.enrol(port.join_string(), "pi", CARD, folder, again=True)
    assert (again.index, len(port.devices)) == (0, 1)
    called(again, folder)


def test_a_refused_attempt_to_join_again_leaves_the_device_as_it_was(
    port: FleetPort, folder: Path
) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    expired = port.join_string(expires_in_s=-1)
    with pytest.raises(IdentityError, match="the token expired"):
        identity.enrol(expired, "pi", CARD, folder, again=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_token_is_used_once_and_in_its_time(port: FleetPort, tmp_path: Path) -> None:
    string = port.join_string()
    identity.enrol(string, "pi", CARD, tmp_path / "one")
    with pytest.raises(IdentityError, match="used as often as it may be; make another"):
        identity.enrol(string, "pi", CARD, tmp_path / "two")
    with pytest.raises(IdentityError, match="the token expired"):
        identity.enrol(port.join_string(expires_in_s=-1), "pi", CARD, tmp_path / "two")
    with pytest.raises(RunError, match="this device has not joined a fleet"):
        Identity.load(tmp_path / "two")
    assert len(port.devices) == 1


def test_a_coordinator_with_another_key_is_sent_nothing(
    port: FleetPort, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    string = replace(port.join_string(), pin="0" * 64)
    monkeypatch.setattr(services, "stubs", lambda *_: pytest.fail("it was asked"))
    with pytest.raises(IdentityError, match="somebody may be between") as refused:
        identity.enrol(string, "pi", CARD, folder)
    assert refused.value.reason == "pin"
    assert not (folder / "coordinator.json").exists()


def test_nobody_there_is_told(port: FleetPort, folder: Path) -> None:
    # A port of UDP alone: nothing listens there for connections.
    nowhere = replace(port.join_string(), port=1)
    with pytest.raises(
        RunError, match=r"no answer from 127\.0\.0\.1:1 .*is the coordinator running"
    ):
        identity.enrol(nowhere, "pi", CARD, folder)


@pytest.mark.parametrize("count", range(1, 6))
def test_a_crash_leaves_a_device_that_has_joined_or_that_can(
    port: FleetPort, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed instead of writing its n-th file, it joins by the same string of one use."""
    string = port.join_string()
    with monkeypatch.context() as patched:
        patched.setattr(identity, "write_whole", _dies_at(count))
        with pytest.raises(SystemExit):
            identity.enrol(string, "pi", CARD, folder)
    with pytest.raises(RunError, match="has not joined"):
        Identity.load(folder)
    me = identity.enrol(string, "pi", CARD, folder)
    assert (me.index, len(port.devices)) == (0, 1)
    called(me, folder)


@pytest.mark.parametrize("count", range(1, 5))
def test_a_crash_while_joining_again_leaves_no_mixture(
    port: FleetPort, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    with monkeypatch.context() as patched:
        patched.setattr(identity, "write_whole", _dies_at(count))
        with pytest.raises(SystemExit):
            identity.enrol(port.join_string(), "pi", CARD, folder, again=True)
    with pytest.raises(RunError, match="has not joined"):
        Identity.load(folder)


@pytest.mark.parametrize("count", range(1, 4))
def test_a_crash_while_renewing_leaves_a_device_that_works(
    port: FleetPort, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    with monkeypatch.context() as patched:
        patched.setattr(identity, "write_whole", _dies_at(count))
        with pytest.raises(SystemExit):
            identity.renew(folder)
    called(Identity.load(folder), folder)
    called(identity.renew(folder), folder)


def _dies_at(count: int) -> Callable[..., None]:
    left = [count]

    def write_whole(path: Path, body: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise SystemExit
        durable.write_whole(path, body)

    return write_whole


@pytest.mark.parametrize(
    "name", ["coordinator.json", "key.pem", "certificate.pem", "authority.pem"]
)
def test_a_damaged_file_is_told_with_the_remedy(port: FleetPort, folder: Path, name: str) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    (folder / name).write_bytes(b"{")
    with pytest.raises(RunError, match=rf"{name}.* is damaged.*join --again"):
        identity.renew(folder)


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "authority.pem"])
def test_no_flipped_bit_of_a_file_goes_unnoticed_at_the_start(
    port: FleetPort, folder: Path, name: str
) -> None:
    me = identity.enrol(port.join_string(), "pi", CARD, folder)
    whole = (folder / name).read_bytes()
    for at in range(0, len(whole), 7):
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(RunError, match=rf"{name} is damaged; .*join --again"):
            me.channel(folder, [])


def test_a_device_keeps_the_name_that_it_was_given(port: FleetPort, tmp_path: Path) -> None:
    names = [
        identity.enrol(port.join_string(), "pi", CARD, tmp_path / folder).name for folder in "ab"
    ]
    assert names == [device.name for device in (port.devices[0], port.devices[1])]
    assert names[0] == "pi" != names[1]


def test_without_certificates_a_device_has_a_token_and_an_index(
    tmp_path: Path, folder: Path
) -> None:
    with serving(tmp_path / "fleet", insecure=True) as port:
        string = port.join_string()
        for _ in range(2):  # the first answer may have been lost
            me = identity.enrol(string, "pi", CARD, folder, again=True)
            assert (me.index, me.insecure) == (0, True)
        assert me.metadata == (("fedtiny-device", "0"),)
        assert not me.needs_renewal()
        assert not me.is_expired()
        with me.channel(folder, []) as channel:
            grpc.channel_ready_future(channel).result(timeout=5)


# --- renewal


def test_a_certificate_is_renewed_in_a_process_of_its_own(port: FleetPort, folder: Path) -> None:
    me = identity.enrol(port.join_string(), "pi", CARD, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    renewed = identity.renew_in_child(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in FILES if before[name] != after[name]} == {
        "certificate.pem",
        "coordinator.json",
    }
    assert (renewed.index, renewed.address) == (me.index, me.address)
    called(renewed, folder)
    called(me, folder)  # the channel of the earlier certificate may still be open


def test_a_revoked_device_is_told_so_by_the_process_that_renews(
    port: FleetPort, folder: Path
) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    with port.lock:
        port.devices.revoke(0, time.time())
    with pytest.raises(IdentityError, match=r"device 0 .pi. was revoked"):
        identity.renew_in_child(folder)


def test_a_renewal_that_nobody_answers_is_told(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path / "fleet") as port:
        identity.enrol(port.join_string(), "pi", CARD, folder)
    with pytest.raises(RunError, match=r"no answer from .*is the coordinator running"):
        identity.renew_in_child(folder)
    assert Identity.load(folder).index == 0


def test_a_renewal_for_which_no_process_can_be_had_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(folder / "python"))  # as where memory is short
    with pytest.raises(RunError, match="no process can be started to renew the certificate: "):
        identity.renew_in_child(folder)


def test_a_renewal_that_does_not_end_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = folder / "python"
    folder.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    monkeypatch.setattr(identity, "_CHILD_S", 0.2)
    with pytest.raises(RunError, match=r"was ended after 0\.2 s"):
        identity.renew_in_child(folder)


def test_a_device_that_was_away_for_too_long_is_told_to_join_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "fleet", now=lambda: time.time() - 8 * DAY_S) as port:
        identity.enrol(port.join_string(), "pi", CARD, folder)
        monkeypatch.setattr(identity, "_boot", lambda: "another start")
        with pytest.raises(IdentityError, match=r"probably expired .*join again: "):
            identity.renew(folder)
    with pytest.raises(RunError, match="no answer from"):
        identity.renew(folder)


def test_a_device_of_another_coordinator_is_told_so(
    port: FleetPort, tmp_path: Path, folder: Path
) -> None:
    me = identity.enrol(port.join_string(), "pi", CARD, folder)
    with serving(tmp_path / "other") as other:
        replace(me, port=other.fleet_port).save(folder)
        with pytest.raises(IdentityError, match=r"is not good here: .*join again: "):
            identity.renew(folder)
        assert other.heard == []


def test_the_process_that_renews_says_how_it_is_called() -> None:
    command = [sys.executable, "-m", "fedtiny.agent.identity", "renew"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr.split(":")[0]) == (2, "usage")


def test_renewal_is_due_after_two_thirds_of_the_life_in_the_coordinators_time(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    since_boot = [1000.0]
    monkeypatch.setattr(identity, "_boot_s", lambda: since_boot[0])
    # The coordinator's own clock is a year off: the device goes by it all the same.
    with serving(tmp_path / "fleet", now=lambda: time.time() + YEAR_S) as port:
        me = identity.enrol(port.join_string(), "pi", CARD, folder)
    due = []
    for days in (0, 4, 5, 6, 8):
        since_boot[0] = 1000.0 + days * DAY_S
        due.append((days, me.needs_renewal(), me.is_expired()))
    # 7 days of life, of which 2/3 are 4.67 days.
    assert due == [
        (0, False, False),
        (4, False, False),
        (5, True, False),
        (6, True, False),
        (8, True, True),
    ]


def test_after_a_start_of_the_machine_the_time_is_unknown_and_renewal_due(
    port: FleetPort, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    assert not Identity.load(folder).needs_renewal()
    monkeypatch.setattr(identity, "_boot", lambda: "another start")
    assert Identity.load(folder).needs_renewal()
    assert not Identity.load(folder).is_expired()
    assert Told(5.0, 5.0, "an earlier start").unix_now() is None
    assert not identity.renew(folder).needs_renewal()


# --- clocks that are wrong


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the wall clock of the process that preloads it."""
    source = Path(__file__).resolve().parents[1] / "harness" / "clock.c"
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    command = [*build.compiler(), "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


_JOIN_AND_CALL = """
import json, sys, time
from pathlib import Path
from fedtiny.agent import identity
from fedtiny.wire import codec, services
from fedtiny.wire.joining import JoinString
from fedtiny.wire.pb import fleet_pb2 as pb

string, folder, card = JoinString.parse(sys.argv[1]), Path(sys.argv[2]), sys.stdin.buffer.read()
identity.enrol(string, "pi", codec.read_card(pb.Card.FromString(card)), folder)
me = identity.renew(folder)
with me.channel(folder, []) as channel:
    services.stubs(services.FLEET, channel).check_in(pb.CheckInRequest(), timeout=5)
print(json.dumps([time.time(), me.needs_renewal(), me.is_expired()]))
"""


def _joined_with_a_clock_at(
    unix_s: float, clock: Path, port: FleetPort, folder: Path
) -> subprocess.CompletedProcess[bytes]:
    shift = {"FEDTINY_CLOCK_SHIFT_S": str(int(unix_s - time.time())), "LD_PRELOAD": str(clock)}
    return subprocess.run(
        [sys.executable, "-c", _JOIN_AND_CALL, str(port.join_string()), folder],
        input=_card(),
        env=os.environ | shift,
        capture_output=True,
        check=False,
    )


def _card() -> bytes:
    from fedtiny.wire import codec

    data: bytes = codec.write_card(CARD).SerializeToString()
    return data


@pytest.mark.parametrize("years", [None, -3.0, 0.0, 1.99])
def test_a_device_with_a_wrong_clock_joins_renews_and_calls(
    port: FleetPort, folder: Path, clock: Path, years: float | None
) -> None:
    at = 60.0 if years is None else time.time() + years * YEAR_S
    said = _joined_with_a_clock_at(at, clock, port, folder)
    assert said.returncode == 0, said.stderr.decode()
    device_s, needs_renewal, is_expired = json.loads(said.stdout)
    assert device_s == pytest.approx(at, abs=60)
    assert (needs_renewal, is_expired) == (False, False)
    assert [device for _, device in port.heard] == [0]


def test_a_clock_after_the_end_of_the_certificates_keeps_a_device_out(
    port: FleetPort, folder: Path, clock: Path
) -> None:
    """The six years of the server's certificate are what a fast clock may be off by at most."""
    said = _joined_with_a_clock_at(time.time() + 6.1 * YEAR_S, clock, port, folder)
    assert said.returncode == 1
    assert b"certificate has expired; check this machine's clock" in said.stderr
    assert port.heard == []


# --- what it takes


_CALLS = """
import sys
from pathlib import Path
sys.modules["numpy"] = None
from fedtiny.agent.identity import Identity, signer
from fedtiny.wire import services, signing
from fedtiny.wire.pb import fleet_pb2 as pb

folder = Path(sys.argv[1])
me = Identity.load(folder)
with me.channel(folder, []) as channel:
    calls = services.stubs(services.FLEET, channel)
    for _ in range(20):
        calls.check_in(pb.CheckInRequest(), timeout=5)
        calls.submit(pb.SubmitRequest(chunk=bytes(5000)), timeout=5)
me.needs_renewal()
assert signing.verify(signer(folder), b"text", bytes.fromhex(sys.argv[2]))
assert "cryptography" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def test_an_agent_calls_and_checks_signatures_in_45_mb_without_cryptography(
    port: FleetPort, folder: Path
) -> None:
    identity.enrol(port.join_string(), "pi", CARD, folder)
    signature = port.authority.signer.sign(b"text").hex()
    command: list[Any] = [sys.executable, "-c", _CALLS, folder, signature]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) * 1024 <= 45e6


def test_leaving_is_removing_the_folder(port: FleetPort, folder: Path) -> None:
    first = identity.enrol(port.join_string(), "pi", CARD, folder)
    shutil.rmtree(folder)
    second = identity.enrol(port.join_string(), "pi", CARD, folder)
    assert (first.index, second.index) == (0, 1)
