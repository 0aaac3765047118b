import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedtiny.errors import IdentityError, WireError
from fedtiny.server.authority import DAY_S, Authority
from fedtiny.server.devices import Devices
from fedtiny.server.enrolment import Attempts, enrol, renew
from fedtiny.server.storage import Database
from fedtiny.wire import codec, services
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.harness.fleet_port import CARD, FleetPort, serving
from tests.server.test_authority import csr

NOW = 1_795_000_000.0
HOUR_S = 3600.0
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path, NOW)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()


@pytest.fixture
def devices(database: Database) -> Devices:
    return Devices(database.connection)


def asking(token: str, key: Any = KEY, name: str = "pi") -> pb.EnrolRequest:
    return pb.EnrolRequest(token=token, csr_der=csr(key), name=name, card=codec.write_card(CARD))


# --- decisions


def test_a_token_and_a_key_become_a_device_and_a_certificate(
    devices: Devices, authority: Authority
) -> None:
    token = devices.create_token("lab", HOUR_S, 1, NOW)
    reply = enrol(devices, authority, asking(token), NOW)
    certificate = x509.load_pem_x509_certificate(reply.certificate_pem)
    assert certificate.public_key() == KEY.public_key()
    assert reply.device == devices.of_certificate(f"{certificate.serial_number:x}") == 0
    assert (devices[0].name, devices[0].card) == ("pi", CARD)
    assert reply.authority_pem == authority.ca.chain_pem
    assert (reply.signer, reply.unix_s) == (authority.signer.public, NOW)
    assert devices.tokens(NOW) == []


def test_asking_again_after_a_lost_answer_uses_nothing_up(
    devices: Devices, authority: Authority
) -> None:
    token = devices.create_token("lab", HOUR_S, 2, NOW)
    first, second = (enrol(devices, authority, asking(token), NOW + at) for at in (0, 60))
    assert (first.device, second.device) == (0, 0)
    assert len(devices) == 1
    assert [t.uses_left for t in devices.tokens(NOW)] == [1]


def test_a_device_that_lost_its_certificate_keeps_its_index(
    devices: Devices, authority: Authority
) -> None:
    for _ in range(2):
        token = devices.create_token("lab", HOUR_S, 1, NOW)
        assert enrol(devices, authority, asking(token), NOW).device == 0
        assert devices.tokens(NOW) == []
    other = devices.create_token("lab", HOUR_S, 1, NOW)
    another_key = ec.generate_private_key(ec.SECP256R1())
    assert enrol(devices, authority, asking(other, another_key), NOW).device == 1


def test_a_token_of_one_use_serves_one_key(devices: Devices, authority: Authority) -> None:
    token = devices.create_token("lab", HOUR_S, 1, NOW)
    enrol(devices, authority, asking(token), NOW)
    another_key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(IdentityError, match="used as often as it may be"):
        enrol(devices, authority, asking(token, another_key), NOW)
    assert len(devices) == 1


def test_a_revoked_device_does_not_come_back_with_its_key(
    devices: Devices, authority: Authority
) -> None:
    token = devices.create_token("lab", HOUR_S, 9, NOW)
    enrol(devices, authority, asking(token), NOW)
    devices.revoke("pi", NOW)
    for again in (token, devices.create_token("lab", HOUR_S, 9, NOW)):
        with pytest.raises(IdentityError, match="was revoked"):
            enrol(devices, authority, asking(again), NOW)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"token": "x" * 22}, IdentityError),
        ({"csr_der": b"no request"}, IdentityError),
        ({"name": "7"}, IdentityError),
        ({"card": pb.Card(ram_bytes=2**63)}, WireError),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    devices: Devices,
    authority: Authority,
    database: Database,
    change: dict[str, Any],
    error: type[Exception],
) -> None:
    request = asking(devices.create_token("lab", HOUR_S, 1, NOW))
    database.commit()
    for field, value in change.items():
        request.ClearField(field)
        request.MergeFrom(pb.EnrolRequest(**{field: value}))
    with pytest.raises(error):
        enrol(devices, authority, request, NOW)
    assert not database.connection.in_transaction
    assert len(devices) == 0


def test_a_certificate_is_renewed_for_the_key_that_joined(
    devices: Devices, authority: Authority
) -> None:
    token = devices.create_token("lab", HOUR_S, 1, NOW)
    device = enrol(devices, authority, asking(token), NOW).device
    reply = renew(devices, authority, device, pb.RenewRequest(csr_der=csr(KEY)), NOW + DAY_S)
    certificate = x509.load_pem_x509_certificate(reply.certificate_pem)
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + 8 * DAY_S, UTC)
    assert devices.of_certificate(f"{certificate.serial_number:x}") == device
    assert (reply.authority_pem, reply.unix_s) == (authority.ca.chain_pem, NOW + DAY_S)


def test_nobody_renews_for_another_key_or_device(devices: Devices, authority: Authority) -> None:
    token = devices.create_token("lab", HOUR_S, 2, NOW)
    another_key = ec.generate_private_key(ec.SECP256R1())
    for key in (KEY, another_key):
        enrol(devices, authority, asking(token, key), NOW)
    for device, key in ((0, another_key), (1, KEY), (0, ec.generate_private_key(ec.SECP256R1()))):
        with pytest.raises(IdentityError, match=f"device {device} joined with another key"):
            renew(devices, authority, device, pb.RenewRequest(csr_der=csr(key)), NOW)


def test_a_revoked_device_renews_nothing(devices: Devices, authority: Authority) -> None:
    token = devices.create_token("lab", HOUR_S, 1, NOW)
    enrol(devices, authority, asking(token), NOW)
    devices.revoke(0, NOW)
    with pytest.raises(IdentityError, match="was revoked"):
        renew(devices, authority, 0, pb.RenewRequest(csr_der=csr(KEY)), NOW)


def test_without_certificates_a_secret_names_the_device(
    devices: Devices, authority: Authority
) -> None:
    token = devices.create_token("lab", HOUR_S, 2, NOW)
    requests = [asking(token), asking(token), asking(token)]
    for request, secret in zip(requests, (b"a" * 16, b"a" * 16, b"b" * 16), strict=True):
        request.csr_der = secret
    replies = [enrol(devices, authority, r, NOW, insecure=True) for r in requests]
    assert [reply.device for reply in replies] == [0, 0, 1]
    assert {reply.certificate_pem for reply in replies} == {b""}
    requests[0].csr_der = b"short"
    with pytest.raises(IdentityError, match="a secret of 5 B names no device"):
        enrol(devices, authority, requests[0], NOW, insecure=True)


# --- how often


def test_an_address_may_fail_twenty_times_and_then_five_times_a_second() -> None:
    attempts = Attempts()
    reasons = [_fail(attempts, 0.01 * step) for step in range(1000)]  # ten seconds
    assert set(reasons) == {"unknown-token", "rate"}
    failures = reasons.count("unknown-token")
    # 20 at once, and 5 a second for the ten seconds.
    assert failures == pytest.approx(20 + 50, abs=1)


def test_attempts_under_way_at_the_same_time_all_count() -> None:
    attempts = Attempts()
    with ExitStack() as under_way:
        for _ in range(30):
            under_way.enter_context(pytest.raises(IdentityError))
            under_way.enter_context(attempts.of("ipv4:10.0.0.1:4711", 0.0))
            under_way.callback(_refuse)
    # 30 failures: 11 more than leave room for another, at 5 a second.
    with pytest.raises(IdentityError, match=r"wait 2\.2 s"), attempts.of("ipv4:10.0.0.1:1", 0.0):
        pytest.fail("it was let in")


def _refuse() -> None:
    raise IdentityError("unknown-token", "no")


def _fail(attempts: Attempts, now: float) -> str:
    with pytest.raises(IdentityError) as refused, attempts.of("ipv4:10.0.0.1:4711", now):
        raise IdentityError("unknown-token", "no")
    return refused.value.reason


def test_the_ports_of_one_address_are_one_and_other_addresses_are_not() -> None:
    attempts = Attempts(burst=1)
    with pytest.raises(IdentityError), attempts.of("ipv6:[::1]:1", 0.0):
        raise IdentityError("unknown-token", "no")
    with (
        pytest.raises(IdentityError, match="too many") as refused,
        attempts.of("ipv6:[::1]:2", 0.0),
    ):
        pytest.fail("it was let in")
    assert refused.value.status == "RESOURCE_EXHAUSTED"
    with attempts.of("ipv6:[::2]:1", 0.0):
        pass


def test_who_is_not_refused_may_come_as_often_as_it_likes() -> None:
    attempts = Attempts(burst=1)
    for _ in range(100):
        with attempts.of("ipv4:10.0.0.1:1", 0.0):
            pass


def test_a_device_that_enrols_again_and_again_is_limited(
    devices: Devices, authority: Authority, database: Database
) -> None:
    token, attempts, served = devices.create_token("lab", HOUR_S, 1, NOW), Attempts(), 0
    for _ in range(100):
        with suppress(IdentityError), attempts.of("ipv4:10.0.0.1:1", 0.0) as attempt:
            assert enrol(devices, authority, asking(token), NOW, attempt=attempt).device == 0
            served += 1
    assert served == 1 + 20  # the first one is free, and twenty may be repeated
    with (
        pytest.raises(IdentityError, match="refused or repeated attempts") as refused,
        attempts.of("ipv4:10.0.0.1:1", 0.0),
    ):
        pytest.fail("it was let in")
    assert refused.value.status == "RESOURCE_EXHAUSTED"
    assert database.connection.execute("SELECT count(*) FROM certificates").fetchone() == (2,)


def test_a_class_of_devices_behind_one_address_joins_at_once(
    devices: Devices, authority: Authority
) -> None:
    token, attempts = devices.create_token("class", HOUR_S, 100, NOW), Attempts()
    for number in range(100):
        request = asking(token)
        request.csr_der = number.to_bytes(16, "big")
        with attempts.of("ipv4:10.0.0.1:1", 0.0) as attempt:
            enrol(devices, authority, request, NOW, insecure=True, attempt=attempt)
    assert len(devices) == 100


def test_many_addresses_do_not_fill_the_memory() -> None:
    attempts = Attempts()
    for number in range(10_100):
        with pytest.raises(IdentityError), attempts.of(f"ipv6:[{number:x}::1]:1", 0.0):
            raise IdentityError("unknown-token", "no")
    assert len(attempts._spent) == 10_000


# --- crashes

_ENROL = """
import sys, pathlib
from fedtiny.server.authority import Authority
from fedtiny.server.devices import Devices
from fedtiny.server.enrolment import enrol
from fedtiny.server.storage import Database
from fedtiny.wire.pb import fleet_pb2 as pb

folder = pathlib.Path(sys.argv[1])
database = Database(folder)
devices, authority = Devices(database.connection), Authority.open(folder)
request = pb.EnrolRequest.FromString(sys.stdin.buffer.read())
request.token = request.token or devices.create_token("made here", 3600, 1, 1_795_000_000.0)
reply = enrol(devices, authority, request, 1_795_000_000.0)
database.commit()
"""


@pytest.mark.parametrize(
    ("point", "is_durable"),
    [
        ("enrol.before", False),
        ("enrol.after", False),
        ("journal.before", False),
        ("journal.after", True),
    ],
)
def test_a_killed_coordinator_has_enrolled_a_device_or_not_used_its_token(
    tmp_path: Path, point: str, is_durable: bool
) -> None:
    Authority.open(tmp_path)
    database = Database(tmp_path)
    token = Devices(database.connection).create_token("lab", HOUR_S, 1, NOW)
    database.commit()
    database.close()
    _killed_at(point, tmp_path, asking(token))
    database = Database(tmp_path)
    devices = Devices(database.connection)
    assert len(devices) == (1 if is_durable else 0)
    assert len(devices.tokens(NOW)) == (0 if is_durable else 1)
    assert enrol(devices, Authority.open(tmp_path), asking(token), NOW).device == 0
    assert (len(devices), devices.tokens(NOW)) == (1, [])
    database.close()


@pytest.mark.parametrize("point", ["token.before", "token.after"])
def test_a_token_whose_making_was_killed_is_none(tmp_path: Path, point: str) -> None:
    _killed_at(point, tmp_path, asking(""))
    database = Database(tmp_path)
    assert Devices(database.connection).tokens(NOW) == []
    database.close()


def _killed_at(point: str, folder: Path, request: pb.EnrolRequest) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _ENROL, folder],
        input=request.SerializeToString(),
        env=os.environ | {"FEDTINY_CRASH": point},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL


# --- over real connections


@pytest.fixture
def port(tmp_path: Path) -> Iterator[FleetPort]:
    with serving(tmp_path / "fleet") as port:
        yield port


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def joined(port: FleetPort, now: float | None = None) -> bytes:
    """The certificate of a new device with KEY."""
    at = time.time() if now is None else now
    token = port.devices.create_token("test", HOUR_S, 1, at)
    reply = enrol(port.devices, port.authority, asking(token), at)
    port.database.commit()
    return reply.certificate_pem


def calls(
    port: FleetPort, certificate: bytes | None, roots: bytes | None = None
) -> tuple[grpc.Channel, Any]:
    key = pem_of(KEY) if certificate else None
    roots = roots or b"".join(port.authority.bundle)
    channel = grpc.secure_channel(
        f"127.0.0.1:{port.fleet_port}",
        grpc.ssl_channel_credentials(roots, key, certificate),
        [("grpc.ssl_target_name_override", "fedtiny")],
    )
    return channel, services.stubs(services.FLEET, channel)


def status_of(port: FleetPort, certificate: bytes | None, roots: bytes | None = None) -> str:
    channel, stubs = calls(port, certificate, roots)
    with channel:
        try:
            stubs.check_in(pb.CheckInRequest(), timeout=5)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_a_device_with_a_certificate_is_heard_by_its_index(port: FleetPort) -> None:
    assert status_of(port, joined(port)) == "OK"
    assert [device for _, device in port.heard] == [0]


def test_a_caller_without_a_certificate_is_not_heard(port: FleetPort) -> None:
    assert status_of(port, None) == "UNAVAILABLE"
    assert port.heard == []


def test_a_certificate_of_another_authority_with_the_same_names_is_not_heard(
    port: FleetPort, tmp_path: Path
) -> None:
    good, other = joined(port), Authority.open(tmp_path / "other")
    forged = other.issue(csr(KEY), 0, time.time()).pem
    names = [x509.load_pem_x509_certificate(pem).subject for pem in (good, forged)]
    assert names[0] == names[1]
    assert status_of(port, forged) == "UNAVAILABLE"
    assert status_of(port, good) == "OK"


def test_an_expired_certificate_is_not_heard(port: FleetPort) -> None:
    assert status_of(port, joined(port, time.time() - 8 * DAY_S)) == "UNAVAILABLE"
    assert port.heard == []


def test_a_device_does_not_talk_to_the_server_of_another_authority(
    port: FleetPort, tmp_path: Path
) -> None:
    other = Authority.open(tmp_path / "other")
    assert status_of(port, joined(port), other.ca.chain_pem) == "UNAVAILABLE"
    assert port.heard == []


def test_a_device_certificate_does_not_make_a_server(port: FleetPort, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        rogue = grpc.server(threads)
        rogue.add_generic_rpc_handlers((services.handler(services.FLEET, port),))
        credentials = grpc.ssl_server_credentials([(pem_of(KEY), joined(port))])
        port.fleet_port = rogue.add_secure_port("127.0.0.1:0", credentials)
        rogue.start()
        assert status_of(port, None) == "UNAVAILABLE"
        rogue.stop(None).wait()
    assert port.heard == []


def test_a_revocation_holds_in_the_middle_of_a_chunked_update(port: FleetPort) -> None:
    channel, stubs = calls(port, joined(port))
    chunk = bytes(1000)
    with channel:
        for place in range(3):
            stubs.submit(pb.SubmitRequest(chunk=chunk, offset=1000 * place, total=9000), timeout=5)
        with port.lock:
            port.devices.revoke(0, time.time())
        revoked_at = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            stubs.submit(pb.SubmitRequest(chunk=chunk, offset=3000, total=9000), timeout=5)
    assert time.monotonic() - revoked_at < 1
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "device 0 (pi) was revoked" in refused.value.details()
    assert len(port.heard) == 3


def test_devices_of_the_old_authority_and_of_the_new_one_are_heard(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with serving(folder) as port:
        old_certificate = joined(port)
        old_roots = b"".join(port.authority.bundle)
    (folder / "ca.pem").rename(folder / "ca-old.pem")
    with serving(folder) as port:
        assert status_of(port, old_certificate, old_roots) == "OK"
        request = pb.RenewRequest(csr_der=csr(KEY))
        renewed = renew(port.devices, port.authority, 0, request, time.time())
        assert status_of(port, renewed.certificate_pem, renewed.authority_pem) == "OK"
        # A device that joined after the change knows the new authority alone.
        assert status_of(port, renewed.certificate_pem, port.authority.ca.chain_pem) == "OK"
    (folder / "ca-old.pem").unlink()
    with serving(folder) as port:
        assert status_of(port, old_certificate, old_roots) == "UNAVAILABLE"
        assert status_of(port, renewed.certificate_pem, renewed.authority_pem) == "OK"
