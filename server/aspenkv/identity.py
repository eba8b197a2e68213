"""Who a server is: its random number, its key, and the certificate that a ticket pins.

Stored as one server record, so that all gateways to the same data are the same server:

    ``I``       server id (16 bytes), length of the certificate (u32 big-endian), the certificate
                (DER), the private key (PKCS #8, DER)
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
import struct
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from aspenkv.errors import DataCorruptError

IDENTITY_NAME: Final = b"I"

SERVER_ID_BYTES: Final = 16
_HEAD: Final = struct.Struct(f">{SERVER_ID_BYTES}sI")

# A ticket pins the very certificate, so dates can only make trouble. The end is the value that
# RFC 5280 §4.1.2.5 gives to "never".
_VALID_FROM: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_VALID_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class ServerIdentity(NamedTuple):
    """A server's number, certificate (DER) and private key (PKCS #8, DER)."""

    server_id: bytes
    certificate_der: bytes
    private_key_der: bytes

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate, by which tickets know the server."""
        return hashlib.sha256(self.certificate_der).digest()

    def __repr__(self) -> str:
        """Return the identity without its key: what is printed may end up in a log."""
        return f"ServerIdentity({self.server_id.hex()}, private_key_der=<hidden>)"


def new_identity() -> ServerIdentity:
    """Make a P-256 key and a certificate that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aspenkv")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .sign(key, hashes.SHA256())
    )
    return ServerIdentity(
        secrets.token_bytes(SERVER_ID_BYTES),
        certificate.public_bytes(Encoding.DER),
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    )


def encode_identity(identity: ServerIdentity) -> bytes:
    """Return the content of the server record."""
    certificate = identity.certificate_der
    head = _HEAD.pack(identity.server_id, len(certificate))
    return head + certificate + identity.private_key_der


def decode_identity(content: bytes) -> ServerIdentity:
    """Read the content of the server record.

    Raises:
        DataCorruptError: it cannot be read.
    """
    try:
        server_id, size = _HEAD.unpack_from(content)
    except struct.error:
        server_id, size = b"", len(content)
    key_at = _HEAD.size + size
    if key_at >= len(content):
        raise DataCorruptError(
            "the record of the server's key is damaged: restore the data directory from a backup"
        )
    return ServerIdentity(server_id, content[_HEAD.size : key_at], content[key_at:])
