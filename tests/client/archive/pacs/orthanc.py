"""A real PACS (Orthanc) and what it is filled with: made-up radiographs."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.dataset import Dataset, FileMetaDataset

from client.archive.pacs.settings import Tls
from client.archive.sources import Item

ROOT = "1.2.826.0.1.3680043.10.998"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "reader", "not-a-secret"
CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1", "CT": "1.2.840.10008.5.1.4.1.1.2"}


@dataclass(frozen=True)
class Pictures:
    """One series that the PACS is filled with."""

    study: int
    date: str
    modality: str = "CR"
    body_part: str | None = "CHEST"
    count: int = 1
    series: int = 1
    packed: bool = False  # stored as RLE

    def uids(self) -> set[str]:
        """SOP Instance UIDs."""
        return {f"{ROOT}.{self.study}.{self.series}.{number}" for number in range(1, self.count + 1)}


CONTENT = (
    Pictures(1, "20190105"),
    Pictures(2, "20190105"),
    Pictures(3, "20190105", "DX", count=3),
    Pictures(4, "20190107", "DX"),
    Pictures(5, "20190301", body_part="LUNG THORAX"),
    Pictures(6, "20190302", body_part=None),
    Pictures(7, "20190815", packed=True),
    Pictures(8, "20200101", count=2),
    Pictures(9, "20200102"),
    Pictures(20, "20190105", "DX", body_part="HAND"),
    Pictures(21, "20190301", "CT", count=2),
    Pictures(22, "20200102", "CT"),
    Pictures(3, "20190105", "CT", count=2, series=2),
    Pictures(8, "20200101", body_part="HAND", series=2),
)


class Content:
    """What the PACS was filled with, for tests to compare with."""

    root = ROOT
    texts = (ROOT, "ACCNUM0", "Planted", "PATID-")  # identifiers, none of which may be told

    def wanted(self, *studies: int) -> set[str]:
        """SOP Instance UIDs of the chest radiographs of some studies, or of all."""
        kept = (each for each in CONTENT if each.modality != "CT" and each.body_part != "HAND")
        return {uid for each in kept if each.study in studies or not studies for uid in each.uids()}

    def accession(self, study: int) -> str:
        """Accession number of a study."""
        return f"ACCNUM{study:04}"

    def uid_of(self, item: Item) -> str:
        """The SOP Instance UID in a fetched file."""
        return str(pydicom.dcmread(BytesIO(item.read(1 << 24)), stop_before_pixels=True).SOPInstanceUID)


@dataclass(frozen=True)
class Pacs:
    """A running Orthanc; `deliver` is the port it delivers to."""

    web: str
    port: int
    deliver: int


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class TlsPacs:
    """A running Orthanc that wants TLS with certificates on both sides, and ours."""

    pacs: Pacs
    folder: Path  # of the certificates
    tls: Tls


def fill(pacs: Pacs) -> None:
    with requests.Session() as session:
        session.trust_env, session.auth = False, (USER, PASSWORD)
        for data in _files():
            session.post(f"{pacs.web.removesuffix('/dicom-web')}/instances", data=data, timeout=10).raise_for_status()


def run_orthanc(folder: Path, more: dict[str, Any]) -> Iterator[Pacs]:
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed (Debian packages orthanc and orthanc-dicomweb)")
    http, dicom, deliver = free_port(), free_port(), free_port()
    tls = bool(more)
    here = {"Host": "127.0.0.1", "Port": deliver, "UseDicomTls": tls}
    settings: dict[str, Any] = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomPort": dicom,
        "DicomAet": "ANSWERS",
        "DicomCheckCalledAet": True,
        "DicomModalitiesInDatabase": False,
        "DicomModalities": {
            "ours": here | {"AET": "CXRBASE"},
            "ours-too": here | {"AET": "CXRMOVE", "LocalAet": "DELIVERS"},
        },
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings | more))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait_for(dicom, process, folder)
        _wait_for(http, process, folder)
        yield Pacs(f"http://localhost:{http}/dicom-web", dicom, deliver)
    finally:
        process.kill()  # its storage is temporary, and ending in peace takes it seconds
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"Orthanc did not start: {(folder / 'log.txt').read_text()[-2000:]}")


def _files() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for pictures in CONTENT:
        for number in range(1, pictures.count + 1):
            yield _file(pictures, number, rng.integers(0, 4096, (64, 48)).astype(np.uint16))


def _file(pictures: Pictures, number: int, pixels: np.ndarray[Any, Any]) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SOPClassUID": CLASSES[pictures.modality],
        "SOPInstanceUID": f"{ROOT}.{pictures.study}.{pictures.series}.{number}",
        "SeriesInstanceUID": f"{ROOT}.{pictures.study}.{pictures.series}",
        "StudyInstanceUID": f"{ROOT}.{pictures.study}",
        "PatientID": f"PATID-{pictures.study // 2}",
        "PatientName": f"Planted^Name{pictures.study // 2}",
        "PatientSex": "F",
        "StudyDate": pictures.date,
        "StudyTime": f"08{pictures.study:02}00",
        "AccessionNumber": Content().accession(pictures.study),
        "StudyID": "",
        "SeriesNumber": pictures.series,
        "InstanceNumber": number,
        "Modality": pictures.modality,
        "ViewPosition": "PA",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 64,
        "Columns": 48,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes(),
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if pictures.body_part is not None:
        dataset.BodyPartExamined = pictures.body_part
    if pictures.packed:
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_certificates(folder: Path) -> Path:
    """An authority, and a certificate for the PACS and one for us; gives the authority's."""
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Authority")])
    _certificate(folder / "ca.pem", issuer, authority, issuer, authority)
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        _certificate(
            folder / f"{name}.pem", x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, issuer, authority
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(private)
    return folder / "ca.pem"


def _certificate(
    path: Path,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    today = datetime.datetime.now(datetime.UTC)
    is_authority = subject == issuer
    names = [x509.DNSName("localhost")]
    builder = x509.CertificateBuilder(
        issuer,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        today - datetime.timedelta(days=1),
        today + datetime.timedelta(days=30),
    )
    builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    path.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
