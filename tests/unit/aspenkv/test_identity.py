"""The server's key and certificate, and their record."""

from __future__ import annotations

import hashlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from aspenkv.errors import DataCorruptError
from aspenkv.identity import ServerIdentity, decode_identity, encode_identity, new_identity

IDENTITY = ServerIdentity(b"N" * 16, b"certificate", b"key")
RECORD = b"N" * 16 + bytes.fromhex("0000000b") + b"certificatekey"


def test_the_record_is_as_documented() -> None:
    assert encode_identity(IDENTITY) == RECORD
    assert decode_identity(RECORD) == IDENTITY


@pytest.mark.parametrize("length", range(len(RECORD) - len(b"key") + 1))
def test_a_cut_record_is_damage(length: int) -> None:
    with pytest.raises(DataCorruptError, match="key is damaged"):
        decode_identity(RECORD[:length])


def test_the_certificate_is_of_the_key_and_signed_by_it() -> None:
    identity = new_identity()
    key = load_der_private_key(identity.private_key_der, None)
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(certificate)
    assert identity.fingerprint == hashlib.sha256(identity.certificate_der).digest()
    assert ssl.DER_cert_to_PEM_cert(identity.certificate_der).count("BEGIN") == 1


def test_no_two_servers_are_alike() -> None:
    first, second = new_identity(), new_identity()
    assert first.server_id != second.server_id
    assert first.fingerprint != second.fingerprint
    assert first.private_key_der != second.private_key_der


def test_no_repr_shows_the_key() -> None:
    assert repr(IDENTITY) == f"ServerIdentity({b'N'.hex() * 16}, private_key_der=<hidden>)"
