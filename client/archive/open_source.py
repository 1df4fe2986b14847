"""From the archive section of SITE.yaml to the source that lists it."""

from __future__ import annotations

from client.archive.folders import (
    Chexpert,
    MimicCxrJpg,
    NihChestXray14,
    PadChest,
    PlainFolder,
    RsnaPneumonia,
    VindrCxr,
)
from client.archive.identity import load_secret
from client.archive.layout import Layout
from client.archive.pacs.settings import PacsArchive
from client.archive.settings import (
    ChexpertArchive,
    DicomArchive,
    FolderArchive,
    MimicArchive,
    NihArchive,
    PadchestArchive,
    RsnaArchive,
    VindrArchive,
)
from client.archive.sources import DicomTree, Source
from client.site import Site

_LAYOUTS: dict[type, type[Layout]] = {
    NihArchive: NihChestXray14,
    ChexpertArchive: Chexpert,
    MimicArchive: MimicCxrJpg,
    VindrArchive: VindrCxr,
    PadchestArchive: PadChest,
    RsnaArchive: RsnaPneumonia,
}


def open_source(site: Site) -> Source:
    """The source of a site's archive, to be closed after use; nothing is read yet."""
    archive = site.archive
    if isinstance(archive, PacsArchive):
        from client.archive.pacs.source import PacsSource  # its network libraries are only loaded where there is a PACS

        return PacsSource(archive, site.private, load_secret(site.private), site.limits.file << 20)
    if isinstance(archive, DicomArchive):
        return DicomTree(archive.path)
    if isinstance(archive, FolderArchive):
        return PlainFolder(archive.path, site.labels, archive.table)
    return _LAYOUTS[type(archive)](archive.path, site.labels)
