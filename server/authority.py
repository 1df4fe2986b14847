"""The consortium's certificate authority (X.509, RFC 5280) and the certificate of its server.

The authority's key signs server certificates and nothing else: hospitals are told apart by keys that they make themselves.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cxrbase_model.files import write_private
from cxrbase_model.settings import SettingsError

_CLOCKS = datetime.timedelta(hours=1)  # that clocks may differ


class Authority:
    """The authority in a folder: authority.pem and authority.key."""

    def __init__(self, folder: Path) -> None:
        self.certificate_file, self._key_file = folder / "authority.pem", folder / "authority.key"
        self.server_file, self.server_key_file = folder / "server.pem", folder / "server.key"

    def exists(self) -> bool:
        """Whether it was made."""
        return self._key_file.exists() and self.certificate_file.exists()

    def make(self, name: str, days: int) -> None:
        """Make a new authority, whose certificates are trusted by nobody yet."""
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(subject, subject, key.public_key(), key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA384())
        write_private(self._key_file, _private_pem(key))
        write_private(self.certificate_file, certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, addresses: Sequence[str], days: int) -> None:
        """Make a new key and certificate for the server at these names and IP addresses; the old one stays valid until its end."""
        authority, authority_key = self.certificate(), self._key()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, addresses[0][:64])])
        builder = _builder(authority.subject, subject, key.public_key(), authority_key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_name(each) for each in addresses]), critical=False
        )
        certificate = builder.sign(authority_key, hashes.SHA384())
        write_private(self.server_key_file, _private_pem(key))
        write_private(self.server_file, certificate.public_bytes(serialization.Encoding.PEM))

    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return _certificate(self.certificate_file)

    def server_certificate(self) -> x509.Certificate:
        """The server's certificate."""
        return _certificate(self.server_file)

    def _key(self) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(self._key_file.read_bytes(), None)
        except (OSError, ValueError, TypeError):
            raise SettingsError(f"{self._key_file}: is not the authority's key, or cannot be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"{self._key_file}: is not the authority's key")
        return key


def days_left(certificate: x509.Certificate) -> int:
    """Whole days until a certificate ends, negative where it has."""
    return (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days


def addresses_of(certificate: x509.Certificate) -> set[str]:
    """The names and IP addresses a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), now - _CLOCKS, now + datetime.timedelta(days=days)
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise SettingsError(f"{path}: is not a certificate, or cannot be read") from None
