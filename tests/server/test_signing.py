import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtiny.errors import RunError
from fedtiny.server import certificates
from fedtiny.server.signing import Signer
from fedtiny.wire.signing import verify


def test_a_signature_is_good_for_its_text_and_key_alone() -> None:
    signer, other = Signer.generate(), Signer.generate()
    signature = signer.sign(b"version 7")
    assert len(signature) == 64
    assert verify(signer.public, b"version 7", signature)
    assert not verify(signer.public, b"version 8", signature)
    assert not verify(other.public, b"version 7", signature)


def test_the_key_is_the_same_after_a_restart() -> None:
    signer = Signer.generate()
    assert Signer.from_pem(signer.pem).sign(b"text") == signer.sign(b"text")


def test_the_public_key_is_ed25519_as_others_know_it() -> None:
    signer = Signer.generate()
    Ed25519PublicKey.from_public_bytes(signer.public).verify(signer.sign(b"text"), b"text")


def test_a_key_of_another_kind_is_refused() -> None:
    other = certificates.root(now_unix=0.0, life_s=60.0)
    with pytest.raises(RunError, match=r"not Ed25519; restore signing\.pem"):
        Signer.from_pem(other.key_pem)
