import os
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import IdentityError, RunError
from fedtiny.server.authority import DAY_S, Authority
from fedtiny.server.certificates import KeyPair

FILES = {"ca.pem", "server.pem", "enrolment.pem", "signing.pem"}
YEAR_S = 365 * DAY_S
NOW = 1_795_000_000.0


def request(key: Any, name: str = "anything") -> x509.CertificateSigningRequest:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder(subject).sign(key, algorithm)


def csr(key: Any | None = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    return request(key).public_bytes(serialization.Encoding.DER)


def dates(pair: KeyPair) -> tuple[datetime, datetime]:
    return pair.certificate.not_valid_before_utc, pair.certificate.not_valid_after_utc


# --- what is made


def test_the_first_start_makes_keys_that_only_their_owner_can_read(tmp_path: Path) -> None:
    Authority.open(tmp_path / "fleet")
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "fleet").iterdir()
    }
    assert modes == dict.fromkeys(FILES, 0o600)


def test_a_later_start_finds_the_same(tmp_path: Path) -> None:
    first, second = Authority.open(tmp_path), Authority.open(tmp_path)
    assert (second.pin, second.bundle) == (first.pin, first.bundle)
    assert second.server.pem == first.server.pem
    assert second.signer.public == first.signer.public


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_start_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, place: str, count: int
) -> None:
    start = "import sys, pathlib; from fedtiny.server.authority import Authority; "
    start += "Authority.open(pathlib.Path(sys.argv[1]))"
    killed = subprocess.run(
        [sys.executable, "-c", start, tmp_path],
        env=os.environ | {"FEDTINY_CRASH": f"authority.{place}:{count}"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(kept) == (count - 1 if place == "before" else count)
    Authority.open(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept


def test_a_file_of_half_its_bytes_is_told(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(ca.read_bytes()[: ca.stat().st_size // 2])
    with pytest.raises(RunError, match=r"ca\.pem is damaged .*restore it from a backup"):
        Authority.open(tmp_path)


def test_a_key_beside_the_certificate_of_another_is_told(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    mixed = authority.server.key_pem + authority.ca.chain_pem
    (tmp_path / "ca.pem").write_bytes(mixed)
    with pytest.raises(RunError, match="the key is not that of the certificate"):
        Authority.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file.*or choose another --dir"):
        Authority.open(tmp_path / "file" / "fleet")


# --- how long it lives


def test_a_board_without_a_clock_finds_every_certificate_begun(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    pairs = (authority.ca, authority.server, authority.enrolment)
    assert {dates(pair)[0] for pair in pairs} == {datetime(1970, 1, 1, tzinfo=UTC)}


@given(st.lists(st.floats(0, 30 * YEAR_S), min_size=1, max_size=12).map(sorted))
@settings(max_examples=20)
def test_after_any_start_a_clock_two_years_fast_finds_certificates_that_live(
    tmp_path_factory: pytest.TempPathFactory, starts: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("fleet")
    pins = set()
    for start in starts:
        authority = Authority.open(folder, NOW + start)
        two_years_on = datetime.fromtimestamp(NOW + start + 2 * YEAR_S - 1, UTC)
        for pair in (authority.ca, authority.server, authority.enrolment):
            assert dates(pair)[1] > two_years_on
        authority.server.certificate.verify_directly_issued_by(authority.ca.certificate)
        pins.add(authority.pin)
    assert len(pins) == 1


def test_the_server_certificate_is_renewed_after_two_thirds_of_its_life(tmp_path: Path) -> None:
    first = Authority.open(tmp_path, NOW)
    assert Authority.open(tmp_path, NOW + 4 * YEAR_S - DAY_S).server.pem == first.server.pem
    renewed = Authority.open(tmp_path, NOW + 4 * YEAR_S + DAY_S)
    assert renewed.server.pem != first.server.pem
    assert renewed.ca.pem == first.ca.pem


def test_an_authority_retires_after_two_thirds_of_its_life(tmp_path: Path) -> None:
    first = Authority.open(tmp_path, NOW)
    second = Authority.open(tmp_path, NOW + 3650 * DAY_S * 2 / 3 + DAY_S)
    assert second.bundle == [second.ca.chain_pem, first.ca.chain_pem]
    (between,) = second.server.between
    second.server.certificate.verify_directly_issued_by(between)
    between.verify_directly_issued_by(first.ca.certificate)
    assert second.signer.public == first.signer.public
    after_its_end = Authority.open(tmp_path, NOW + 3651 * DAY_S)
    assert after_its_end.bundle == [second.ca.chain_pem]
    assert after_its_end.server.between == ()


def test_an_operator_retires_an_authority_by_renaming_its_file(tmp_path: Path) -> None:
    first = Authority.open(tmp_path)
    (tmp_path / "ca.pem").rename(tmp_path / "ca-old.pem")
    second = Authority.open(tmp_path)
    assert second.bundle == [second.ca.chain_pem, first.ca.chain_pem]
    (tmp_path / "ca-old.pem").unlink()
    third = Authority.open(tmp_path)
    assert third.bundle == [second.ca.chain_pem]
    assert third.server.between == ()


# --- what is issued


def test_a_device_certificate_names_the_device_and_lives_a_week(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    issued = authority.issue(csr(), 7, NOW)
    certificate = x509.load_pem_x509_certificate(issued.pem)
    assert certificate.subject.rfc4514_string() == "CN=device-7"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("fedtiny:device:7")]
    use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(use) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    now = datetime.fromtimestamp(NOW, UTC)
    assert certificate.not_valid_before_utc == now - timedelta(days=1)
    assert certificate.not_valid_after_utc == now + timedelta(days=7)
    assert issued.not_after_s == NOW + 7 * DAY_S
    assert issued.serial == f"{certificate.serial_number:x}"
    certificate.verify_directly_issued_by(authority.ca.certificate)


def test_what_a_request_asks_for_beside_its_key_is_ignored(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device-0")])
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName("fedtiny")]), critical=True
    )
    asked = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    issued = Authority.open(tmp_path).issue(asked, 7, time.time())
    certificate = x509.load_pem_x509_certificate(issued.pem)
    assert certificate.subject.rfc4514_string() == "CN=device-7"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()


def _with_a_wrong_signature() -> bytes:
    good = bytearray(csr())
    good[-1] ^= 1
    return bytes(good)


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        (lambda: b"", "malformed"),
        (lambda: os.urandom(300), "malformed"),
        (lambda: bytes(5000), "5,000 B of at most 4,096 B"),
        (lambda: csr(ec.generate_private_key(ec.SECP384R1())), "not of the curve P-256"),
        (lambda: csr(rsa.generate_private_key(65537, 2048)), "not of the curve P-256"),
        (lambda: csr(ed25519.Ed25519PrivateKey.generate()), "not of the curve P-256"),
        (_with_a_wrong_signature, "signature is not of its key|malformed"),
    ],
)
def test_a_bad_request_is_refused(tmp_path: Path, asked: Any, fault: str) -> None:
    with pytest.raises(IdentityError, match=fault) as refused:
        Authority.open(tmp_path).issue(asked(), 0, NOW)
    assert (refused.value.reason, refused.value.status) == ("csr", "INVALID_ARGUMENT")


def test_a_request_cut_or_changed_anywhere_is_refused(tmp_path: Path) -> None:
    authority, asked = Authority.open(tmp_path), csr()
    for place in range(len(asked)):
        changed = bytearray(asked)
        changed[place] ^= 0x55
        for wrong in (asked[:place], bytes(changed)):
            with pytest.raises(IdentityError, match="the certificate request is refused"):
                authority.issue(wrong, 0, NOW)


def test_no_two_certificates_have_one_serial_number(tmp_path: Path) -> None:
    authority, asked = Authority.open(tmp_path), csr()
    serials = sorted(authority.issue(asked, 0, NOW).serial for _ in range(50))
    assert all(one != other for one, other in pairwise(serials))
