import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.wire.signing import verify

ORDER = 2**252 + 27742317777372353535851937790883648493

# RFC 8032, 7.1: TEST 1, 2 and 3 (public key, message, signature).
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def _library_says(public: bytes, text: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


@pytest.mark.parametrize(("public", "text", "signature"), RFC_8032)
def test_the_signatures_of_the_standard_are_good(public: str, text: str, signature: str) -> None:
    assert verify(bytes.fromhex(public), bytes.fromhex(text), bytes.fromhex(signature))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
@settings(max_examples=30)
def test_what_the_library_signs_is_good(seed: bytes, text: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert verify(key.public_key().public_bytes_raw(), text, key.sign(text))


@given(st.integers(0, 8 * (32 + 3 + 64) - 1))
@settings(max_examples=100)
def test_one_wrong_bit_anywhere_is_noticed(bit: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = key.public_key().public_bytes_raw()
    wrong = bytearray(public + b"abc" + key.sign(b"abc"))
    wrong[bit // 8] ^= 1 << bit % 8
    said = verify(bytes(wrong[:32]), bytes(wrong[32:35]), bytes(wrong[35:]))
    assert not said
    assert not _library_says(bytes(wrong[:32]), bytes(wrong[32:35]), bytes(wrong[35:]))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
@settings(max_examples=50)
def test_any_bytes_are_judged_as_by_the_library(public: bytes, signature: bytes) -> None:
    assert verify(public, b"text", signature) == _library_says(public, b"text", signature)


def test_a_signature_has_one_form() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = key.public_key().public_bytes_raw(), key.sign(b"abc")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    other = signature[:32] + scalar.to_bytes(32, "little")
    assert verify(public, b"abc", signature)
    assert not verify(public, b"abc", other)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    assert not verify(bytes(length), b"abc", bytes(64))
    assert not verify(bytes(32), b"abc", bytes(length))
