"""The Ed25519 key that signs what devices fetch: programs and models."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtiny.errors import RunError


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs the texts of manifests; devices learn ``public`` when they join."""

    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Signer:
        """A signer with a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Signer:
        """The signer whose key was written by `pem`."""
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, Ed25519PrivateKey):
            raise RunError("the signing key is not Ed25519; restore signing.pem from a backup")
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The private key, for a file that only its owner can read."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def public(self) -> bytes:
        """The public key: 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        """64 bytes that only the owner of the key can make."""
        return self.key.sign(text)
