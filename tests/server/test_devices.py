import gc
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import ExperimentError, IdentityError
from fedtiny.server.authority import DAY_S, Authority, Certificate
from fedtiny.server.devices import Devices
from fedtiny.server.storage import Database
from fedtiny.values import DeviceCard
from tests.harness.fleet_port import CARD
from tests.server.test_authority import csr

NOW = 1_795_000_000.0
HOUR_S = 3600.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()


@pytest.fixture
def devices(database: Database) -> Devices:
    return Devices(database.connection)


def certified(devices: Devices, folder: Path, index: int, now: float = NOW) -> Certificate:
    certificate = Authority.open(folder, now).issue(csr(), index, now)
    devices.certify(index, certificate)
    return certificate


def call_of(certificate: Certificate) -> dict[str, list[bytes]]:
    return {"x509_common_name": [b"device-0"], "x509_pem_cert": [certificate.pem]}


# --- tokens


def test_a_token_lets_as_many_join_as_it_says(devices: Devices) -> None:
    secret = devices.create_token("lab", HOUR_S, 2, NOW)
    assert devices.use_token(secret, NOW).uses_left == 1
    assert devices.use_token(secret, NOW).uses_left == 0
    with pytest.raises(IdentityError, match="used as often as it may be; make another") as refused:
        devices.use_token(secret, NOW)
    assert refused.value.reason == "used-token"


def test_a_token_ends_with_its_time(devices: Devices) -> None:
    secret = devices.create_token("lab", HOUR_S, 2, NOW)
    devices.use_token(secret, NOW + HOUR_S - 1)
    with pytest.raises(IdentityError, match="expired 1 s ago") as refused:
        devices.use_token(secret, NOW + HOUR_S + 1)
    assert refused.value.reason == "expired-token"


def test_a_token_that_nobody_made_or_that_was_revoked_is_unknown(devices: Devices) -> None:
    secret = devices.create_token("lab", HOUR_S, 2, NOW)
    with pytest.raises(IdentityError, match="not known here"):
        devices.use_token(secret + "x", NOW)
    devices.revoke_token(devices.find_token(secret, NOW).hash)
    with pytest.raises(IdentityError, match="not known here") as refused:
        devices.use_token(secret, NOW)
    assert refused.value.reason == "unknown-token"


def test_the_secret_of_a_token_is_in_no_file(devices: Devices, database: Database) -> None:
    secret = devices.create_token("lab", HOUR_S, 1, NOW)
    database.commit()
    stored = b"".join(path.read_bytes() for path in database.path.parent.iterdir())
    assert b"lab" in stored
    assert secret.encode() not in stored


def test_secrets_have_128_bits(devices: Devices) -> None:
    secrets = {devices.create_token("lab", HOUR_S, 1, NOW) for _ in range(100)}
    # 22 characters of 6 bits.
    assert {len(secret) for secret in secrets} == {22}
    assert len(secrets) == 100


def test_tokens_that_can_be_used_are_listed(devices: Devices) -> None:
    used = devices.create_token("used", HOUR_S, 1, NOW)
    devices.use_token(used, NOW)
    devices.create_token("late", -1, 1, NOW)
    devices.create_token("good", HOUR_S, 3, NOW)
    assert [(t.label, t.uses_left, t.expires_s) for t in devices.tokens(NOW)] == [
        ("good", 3, NOW + HOUR_S)
    ]


# --- joining


def test_indices_follow_each_other_and_names_differ(devices: Devices) -> None:
    names = ["pi", "pi", "pi", "attic", "pi-2", "pi"]
    assert [devices.join(name, CARD, "", NOW) for name in names] == [0, 1, 2, 3, 4, 5]
    assert [row.name for row in devices.rows()] == ["pi", "pi-2", "pi-3", "attic", "pi-2-2", "pi-4"]


@pytest.mark.parametrize("name", ["", "7", "a b", "-pi", "pi\n", "ä", "x" * 64, "../x"])
def test_what_is_no_name_is_refused(devices: Devices, name: str) -> None:
    with pytest.raises(IdentityError, match=r"no name for a device.*--name"):
        devices.join(name, CARD, "", NOW)
    assert devices.rows() == []


def test_an_index_is_never_used_again(devices: Devices, database: Database) -> None:
    devices.join("a", CARD, "", NOW)
    devices.revoke(devices.join("b", CARD, "", NOW), NOW)
    assert Devices(database.connection).join("b", CARD, "", NOW) == 2


def test_a_new_card_is_kept(devices: Devices, database: Database) -> None:
    devices.join("pi", CARD, "", NOW)
    smaller = DeviceCard("pi-4", 1 << 20, 1 << 33, 2e9, 1e7, 1e6, 2, ("camera", "imu"))
    devices.change_card(0, smaller, "0.2.0")
    again = Devices(database.connection)
    assert (again[0].card, again[0].agent) == (smaller, "0.2.0")


def written_card(database: Database) -> tuple[DeviceCard, str]:
    device = Devices(database.connection)[0]
    return device.card, device.agent


def test_a_card_that_changes_all_the_time_is_written_once_a_minute(
    devices: Devices, database: Database
) -> None:
    devices.join("pi", CARD, "", NOW)
    database.commit()
    cards = [replace(CARD, ram_bytes=size) for size in range(1, 62)]
    for second, card in enumerate(cards[:60]):
        devices.change_card(0, card, "0.2", now=float(second))
        assert devices[0].card == card
        assert database.connection.in_transaction == (second == 0)
        database.commit()
    assert written_card(database) == (cards[0], "0.2")
    devices.change_card(0, cards[60], "0.2", now=60.0)
    assert written_card(database) == (cards[60], "0.2")


def test_the_latest_of_many_changes_of_a_card_is_written_in_the_end(
    devices: Devices, database: Database
) -> None:
    devices.join("pi", CARD, "", NOW)
    for size in (1, 2, 3):
        devices.change_card(0, replace(CARD, ram_bytes=size), "0.2", now=5.0)
    devices.save_seen()
    assert written_card(database) == (replace(CARD, ram_bytes=3), "0.2")


def test_when_a_device_was_seen_is_written_now_and_then(
    devices: Devices, database: Database
) -> None:
    devices.join("pi", CARD, "", NOW)
    database.commit()
    devices.seen(0, NOW + 5)
    assert devices[0].seen_s == NOW + 5
    assert not database.connection.in_transaction
    devices.save_seen()
    assert Devices(database.connection)[0].seen_s == NOW + 5


def test_what_a_device_counts_adds_up_and_is_kept(devices: Devices, database: Database) -> None:
    devices.join("pi", CARD, "", NOW)
    devices.count(0, {"visits": 2.0, "failures": 1.0})
    devices.count(0, {"visits": 1.0})
    devices.save_seen()
    assert Devices(database.connection).figures(0) == {"visits": 3.0, "failures": 1.0}


def test_what_no_device_counts_is_passed_over(devices: Devices) -> None:
    devices.join("pi", CARD, "", NOW)
    devices.count(0, {"more": 1.0, "visits": float("nan"), "lost": -1.0, "refusals": 1e300})
    assert devices.figures(0) == {}


CHANGES = st.one_of(
    st.tuples(st.just("join"), st.sampled_from(["pi", "pi-2", "a"])),
    st.tuples(st.sampled_from(["seen", "revoke", "card", "certify"]), st.integers(0, 4)),
)


@given(st.lists(CHANGES, max_size=30))
@settings(max_examples=30)
def test_memory_says_what_the_tables_say(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int | str]]
) -> None:
    database = Database(tmp_path_factory.mktemp("fleet"))
    devices = Devices(database.connection)
    for step, (change, value) in enumerate(changes):
        if isinstance(value, str):
            devices.join(value, CARD, "", NOW + step)
        elif value < len(devices):
            _change(devices, change, value, step)
    devices.save_seen()
    again = Devices(database.connection)
    assert again.rows() == devices.rows()
    assert [again.of_certificate(f"{step:x}") for step in range(len(changes))] == [
        devices.of_certificate(f"{step:x}") for step in range(len(changes))
    ]
    database.close()


def _change(devices: Devices, change: str, index: int, step: int) -> None:
    if change == "seen":
        devices.seen(index, NOW + step)
    elif change == "revoke":
        devices.revoke(index, NOW + step)
    elif change == "card":
        devices.change_card(index, DeviceCard("pi-4", step, 1, 1e9, 1e7, 1e6), "0.2")
    else:
        devices.certify(index, Certificate(b"", f"{step:x}", NOW + step))


def test_what_was_rolled_back_is_forgotten(devices: Devices, database: Database) -> None:
    devices.join("kept", CARD, "", NOW)
    database.commit()
    devices.join("lost", CARD, "", NOW)
    devices.revoke("kept", NOW)
    database.connection.rollback()
    devices.reload()
    assert [(row.name, row.revoked_s) for row in devices.rows()] == [("kept", None)]


# --- who calls


def test_a_certificate_names_its_device(devices: Devices, tmp_path: Path) -> None:
    for index in range(2):
        devices.join("pi", CARD, "", NOW)
        certificate = certified(devices, tmp_path, index)
        assert devices.identify(call_of(certificate), NOW) == index
        assert devices.of_certificate(certificate.serial) == index


def test_a_call_without_a_certificate_names_nobody(devices: Devices) -> None:
    with pytest.raises(IdentityError, match="carries no certificate") as refused:
        devices.identify({})
    assert refused.value.status == "UNAUTHENTICATED"


def test_a_certificate_that_was_never_written_down_names_nobody(
    devices: Devices, tmp_path: Path
) -> None:
    devices.join("pi", CARD, "", NOW)
    issued = Authority.open(tmp_path).issue(csr(), 0, NOW)
    with pytest.raises(IdentityError, match=f"{issued.serial} is unknown") as refused:
        devices.identify(call_of(issued), NOW)
    assert refused.value.status == "UNAUTHENTICATED"


def test_an_expired_certificate_names_nobody_on_an_open_connection(
    devices: Devices, tmp_path: Path
) -> None:
    devices.join("pi", CARD, "", NOW)
    old = certified(devices, tmp_path, 0)
    young = certified(devices, tmp_path, 0, NOW + HOUR_S)
    assert devices.identify(call_of(old), NOW) == devices.identify(call_of(young), NOW) == 0
    with pytest.raises(
        IdentityError, match=r"has ended 0\.5 h ago .*coordinator's clock"
    ) as refused:
        devices.identify(call_of(old), old.not_after_s + HOUR_S / 2)
    assert refused.value.status == "UNAUTHENTICATED"
    assert devices.identify(call_of(young), old.not_after_s + HOUR_S / 2) == 0


def test_a_clock_that_was_ahead_for_a_while_costs_nobody_a_certificate(
    devices: Devices, database: Database, tmp_path: Path
) -> None:
    devices.join("pi", CARD, "", NOW)
    certificate = certified(devices, tmp_path, 0)
    ahead = NOW + 10 * DAY_S
    devices.forget_expired(ahead)
    # It lives for 7 of the 10 days.
    with pytest.raises(IdentityError, match=r"has ended 72\.0 h ago"):
        devices.identify(call_of(certificate), ahead)
    assert devices.identify(call_of(certificate), NOW) == 0
    assert Devices(database.connection).identify(call_of(certificate), NOW) == 0


def test_certificates_are_deleted_a_year_after_their_end(
    devices: Devices, database: Database, tmp_path: Path
) -> None:
    devices.join("pi", CARD, "", NOW)
    certificate = certified(devices, tmp_path, 0)
    assert devices.identify(call_of(certificate), NOW) == 0
    devices.forget_expired(certificate.not_after_s + 365 * DAY_S - 1)
    assert rows_of(database) == [certificate.serial]
    devices.forget_expired(certificate.not_after_s + 365 * DAY_S)
    assert rows_of(database) == []
    with pytest.raises(IdentityError, match="is unknown"):
        devices.identify(call_of(certificate), NOW)


def rows_of(database: Database) -> list[str]:
    """The serials that are written, oldest first."""
    rows = database.connection.execute("SELECT serial FROM certificates ORDER BY rowid")
    return [serial for (serial,) in rows]


def test_the_newest_two_certificates_of_a_device_name_it(
    devices: Devices, database: Database
) -> None:
    for _ in range(2):
        devices.join("pi", CARD, "", NOW)
    devices.certify(1, Certificate(b"", "other", NOW))
    for number in range(100):
        devices.certify(0, Certificate(b"", f"{number}", NOW))
    assert rows_of(database) == ["other", "98", "99"]
    assert [devices.of_certificate(serial) for serial in ("other", "97", "98")] == [1, None, 0]
    assert len(devices._by_serial) == 3


def test_a_device_to_which_no_new_certificate_came_keeps_the_one_it_calls_with(
    devices: Devices, database: Database, tmp_path: Path
) -> None:
    devices.join("pi", CARD, "", NOW)
    used = certified(devices, tmp_path, 0)
    for number in range(5):  # each answer is lost
        assert devices.identify(call_of(used), NOW) == 0
        devices.certify(0, Certificate(b"", f"{number}", NOW))
    assert rows_of(database) == [used.serial, "3", "4"]


def test_who_calls_is_known_within_microseconds(devices: Devices, tmp_path: Path) -> None:
    """About 1 us; the limit allows a busy machine."""
    devices.join("pi", CARD, "", time.time())
    call = call_of(certified(devices, tmp_path, 0, time.time()))
    devices.identify(call)
    started = time.process_time()
    for _ in range(10_000):
        devices.identify(call)
    assert (time.process_time() - started) / 10_000 < 20e-6


@pytest.mark.parametrize("named_by", ["pi", 0, "0"])
def test_a_revoked_device_is_told_so_from_its_next_call_on(
    devices: Devices, tmp_path: Path, named_by: str | int
) -> None:
    devices.join("pi", CARD, "", NOW)
    certificate = certified(devices, tmp_path, 0)
    assert devices.identify(call_of(certificate), NOW) == 0
    assert devices.revoke(named_by, NOW) == 0
    assert devices.is_revoked(0)
    with pytest.raises(IdentityError, match=r"device 0 \(pi\) was revoked") as refused:
        devices.identify(call_of(certificate), NOW)
    assert (refused.value.reason, refused.value.status) == ("revoked", "PERMISSION_DENIED")


def test_revoking_nobody_is_told(devices: Devices) -> None:
    devices.join("pi", CARD, "", NOW)
    for nobody in ("attic", 1, "1"):
        with pytest.raises(ExperimentError, match="`fedtiny devices` lists them"):
            devices.revoke(nobody, NOW)
    assert not devices.is_revoked(0)


# --- how much it takes


def test_ten_thousand_absent_devices_take_two_kilobytes_each(
    devices: Devices, database: Database
) -> None:
    count = 10_000
    for number in range(count):
        card = DeviceCard("pi-4", (1 << 30) + number, 1 << 33, 1e9 + number, 1e7, 1e6)
        devices.join("raspberrypi", card, "0.1.0", NOW + number)
        devices.certify(number, Certificate(b"", f"{number:040x}", NOW))
    database.commit()
    gc.collect()
    tracemalloc.start()
    registry = Devices(database.connection)
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(registry) == count
    assert taken_bytes / count <= 2000
