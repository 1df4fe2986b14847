"""A server that a hospital may meet, over TLS on loopback, with certificates of its own making."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.membership import Membership
from cxrbase_model.hello import HELLO_PATH, HELLO_SCHEMA, signer
from cxrbase_model.kit import Kit
from cxrbase_model.messages import PROTOCOL

_DAY = datetime.timedelta(days=1)


class Authority:
    """An authority below a folder that issues server certificates."""

    def __init__(self, folder: Path, name: str = "northlight") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder().subject_name(self._name).issuer_name(self._name)
            .public_key(self._key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - 900 * _DAY).not_valid_after(now + 900 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: str = "localhost", start: float = -1, end: float = 90) -> Path:
        """A certificate chain with its key, PEM, valid from and to so many days from now."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        if name == "localhost":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate = (
            x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(self._name)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now + start * _DAY).not_valid_after(now + end * _DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        path = self._folder / f"{certificate.serial_number}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
        return path


def hello(**changes: Any) -> dict[str, Any]:
    """What a server answers that fits this release."""
    answer = {
        "schema": HELLO_SCHEMA, "consortium": "northlight", "release": version("cxrbase"), "protocol": PROTOCOL,
        "bundle": "", "plan": "", "time": None, "hospital": "riverside",
    }  # fmt: skip
    return answer | changes


@contextmanager
def serving(certificate: Path | None, answer: object, *, status: int = 200) -> Iterator[int]:
    """Serve an answer at a port while the block runs; plain text without a certificate. The clock's time goes where `time` is None."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = answer
            if isinstance(content, dict):
                content = content | {"time": content["time"] if content["time"] is not None else time.time()}
            signed = self.path == HELLO_PATH and signer({k.lower(): v for k, v in self.headers.items()}, "northlight")
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status if signed else 400)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            line, address = super().get_request()
            return (line if context is None else context.wrap_socket(line, server_side=True)), address

        def handle_error(self, *_: object) -> None:
            """A client that turns away is what some tests are about."""

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def joined(private: Path, authority: str, port: int, address: str = "localhost") -> Membership:
    """A hospital that has joined the consortium of this authority."""
    folder = private / "consortium"
    folder.mkdir(parents=True, exist_ok=True)
    kit = Kit(schema=1, consortium="northlight", hospital="riverside", address=address, port=port, authority=authority)
    key = ec.generate_private_key(ec.SECP384R1())
    member = Membership(kit, folder, kit.fingerprint)
    member.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    member.authority.write_text(authority)
    (folder / "kit.yaml").write_text(json.dumps(vars(kit)))
    return member
