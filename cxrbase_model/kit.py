"""What a consortium gives a hospital to join with: a text file without any secret."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cxrbase_model.settings import SettingsError, knob

KIT_SCHEMA = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45}")


@dataclass(frozen=True)
class Kit:
    """A hospital's kit; its authority's fingerprint is compared by telephone, since the file may come by mail."""

    schema: int = knob(why=f"version of the file's format; {KIT_SCHEMA} here", choices=(KIT_SCHEMA,))
    consortium: str = knob(why="the consortium's name")
    hospital: str = knob(why="the name under which the hospital takes part, `site` in its SITE.yaml")
    address: str = knob(why="name or IP address of the consortium's server")
    port: int = knob(why="port of the consortium's server", low=1, high=65535)
    authority: str = knob(why="certificate of the consortium's authority, PEM")

    def __post_init__(self) -> None:
        check_name("consortium", self.consortium)
        check_name("hospital", self.hospital)
        check_address("address", self.address)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the authority's certificate as people compare it; SettingsError where it is none of an authority."""
        try:
            certificate = x509.load_pem_x509_certificate(self.authority.encode("ascii"))
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, x509.ExtensionNotFound):
            raise SettingsError("authority: expected a certificate, PEM; is the file complete?") from None
        if not constraints.ca:
            raise SettingsError("authority: expected the certificate of an authority, found another one")
        text = certificate.fingerprint(hashes.SHA256()).hex().upper()
        return " ".join(text[start : start + 8] for start in range(0, 64, 8))


def check_name(key: str, name: str) -> None:
    """SettingsError unless a name is one that can be a file's and a hospital's."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{key}: expected 1 to 64 letters, digits, - and _, found {name!r}")


def check_address(key: str, address: str) -> None:
    """SettingsError unless an address is a host name or an IP address without port or scheme."""
    if not _ADDRESS.fullmatch(address):
        raise SettingsError(f"{key}: expected a host name or an IP address alone, found {address!r}")
