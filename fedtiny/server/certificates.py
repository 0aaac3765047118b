"""Certificates as the authority makes them: which fields each kind has, and its PEM file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtiny.errors import IdentityError

SERVER_NAME = "fedtiny"
"""The name in the server's certificates: clients expect it whatever the address."""
BEFORE_ANY_CLOCK = datetime(1970, 1, 1, tzinfo=UTC)
"""A board without a battery wakes up here and must not find the certificate to be of the future."""

_MOST_CSR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key with its certificate, and those between it and a trusted root."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    between: tuple[x509.Certificate, ...] = ()

    @classmethod
    def from_pem(cls, pem: bytes) -> KeyPair:
        """The pair that `pem` wrote. Raises ValueError when it is damaged."""
        key = serialization.load_pem_private_key(pem, None)
        certificate, *between = x509.load_pem_x509_certificates(pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not of an elliptic curve")
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is not that of the certificate")
        return cls(key, certificate, tuple(between))

    @property
    def key_pem(self) -> bytes:
        """The private key."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def chain_pem(self) -> bytes:
        """The certificate and those between it and a root."""
        return to_pem([self.certificate, *self.between])

    @property
    def pem(self) -> bytes:
        """Key and certificates in one file, so that neither is ever there alone."""
        return self.key_pem + self.chain_pem

    @property
    def pin(self) -> str:
        """SHA-256 (hex) of the public key."""
        return key_digest(self.key.public_key()).hex()

    def is_due(self, now_unix: float, life_s: float) -> bool:
        """Whether two thirds of a life of ``life_s`` seconds are over."""
        return now_unix >= self.certificate.not_valid_after_utc.timestamp() - life_s / 3


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key: the curve that every TLS stack takes; gRPC's takes no Ed25519."""
    return ec.generate_private_key(ec.SECP256R1())


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the public key as certificates hold it (SPKI)."""
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """The certificates as one PEM text."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def read_csr(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key whose owner signed the request; all else in it is ignored.

    Raises IdentityError when it is malformed, not signed by that key, or of another kind.
    """
    if len(csr_der) > _MOST_CSR_BYTES:
        raise _bad_csr(f"{len(csr_der):,} B of at most {_MOST_CSR_BYTES:,} B")
    try:
        csr = x509.load_der_x509_csr(csr_der)
        key, signed = csr.public_key(), csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _bad_csr(f"malformed: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_csr("its key is not of the curve P-256")
    if not signed:
        raise _bad_csr("its signature is not of its key")
    return key


def _bad_csr(fault: str) -> IdentityError:
    return IdentityError(
        "csr",
        f"the certificate request is refused: {fault}; let `fedtiny-agent join` make it",
        "INVALID_ARGUMENT",
    )


# ---- the four kinds ----------------------------------------------------------------------------


def root(now_unix: float, life_s: float) -> KeyPair:
    """A new authority. Its name is its own, so that two of them are never taken for each other."""
    key = new_key()
    name = f"fedtiny authority {key_digest(key.public_key()).hex()[:16]}"
    builder = _authority(_builder(name, key.public_key(), now_unix + life_s), key.public_key())
    return KeyPair(key, _signed(builder.issuer_name(_name(name)), key))


def crossed(old: KeyPair, new: KeyPair) -> x509.Certificate:
    """The new authority's key under the old one's signature, for devices that know only that."""
    public = new.key.public_key()
    builder = x509.CertificateBuilder(
        subject_name=new.certificate.subject,
        public_key=public,
        serial_number=x509.random_serial_number(),
        not_valid_before=BEFORE_ANY_CLOCK,
        not_valid_after=old.certificate.not_valid_after_utc,
    )
    return _signed(_issued_by(old, _authority(builder, public)), old.key)


def server(authority: KeyPair, now_unix: float, life_s: float) -> KeyPair:
    """A new key and certificate of the port of the devices; it does not outlive its authority."""
    key = new_key()
    end = min(now_unix + life_s, authority.certificate.not_valid_after_utc.timestamp())
    builder = _serving(_builder(SERVER_NAME, key.public_key(), end))
    return KeyPair(key, _signed(_issued_by(authority, builder), authority.key))


def enrolment(key: ec.EllipticCurvePrivateKey, now_unix: float, life_s: float) -> KeyPair:
    """A certificate that vouches for itself: devices compare its key with the pin."""
    builder = _serving(_builder(SERVER_NAME, key.public_key(), now_unix + life_s))
    return KeyPair(key, _signed(builder.issuer_name(_name(SERVER_NAME)), key))


def device(
    authority: KeyPair, key: ec.EllipticCurvePublicKey, index: int, now_unix: float, life_s: float
) -> x509.Certificate:
    """The certificate of a device, from a day ago on: clocks differ."""
    builder = _builder(f"device-{index}", key, now_unix + life_s, now_unix - 86_400)
    uri = x509.UniformResourceIdentifier(f"fedtiny:device:{index}")
    builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    return _signed(
        _issued_by(authority, _leaf(builder, ExtendedKeyUsageOID.CLIENT_AUTH)), authority.key
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, until_unix: float, from_unix: float = 0.0
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=_name(name),
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=BEFORE_ANY_CLOCK + timedelta(seconds=max(0.0, from_unix)),
        not_valid_after=BEFORE_ANY_CLOCK + timedelta(seconds=until_unix),
    )


def _authority(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _leaf(builder: x509.CertificateBuilder, use: x509.ObjectIdentifier) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    )


def _serving(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)])
    return _leaf(builder.add_extension(names, critical=False), ExtendedKeyUsageOID.SERVER_AUTH)


def _issued_by(issuer: KeyPair, builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    return builder.issuer_name(issuer.certificate.subject).add_extension(identifier, critical=False)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA256())
