"""From the archive section of SITE.yaml to the source that lists it."""

from __future__ import annotations

from client.archive.folders import (
    Chexpert,
    Layout,
    MimicCxrJpg,
    NihChestXray14,
    PadChest,
    PlainFolder,
    RsnaPneumonia,
    VindrCxr,
)
from client.archive.sources import DicomTree, Source
from client.site import (
    ChexpertArchive,
    DicomArchive,
    FolderArchive,
    MimicArchive,
    NihArchive,
    PadchestArchive,
    RsnaArchive,
    Site,
    VindrArchive,
)

_LAYOUTS: dict[type, type[Layout]] = {
    NihArchive: NihChestXray14,
    ChexpertArchive: Chexpert,
    MimicArchive: MimicCxrJpg,
    VindrArchive: VindrCxr,
    PadchestArchive: PadChest,
    RsnaArchive: RsnaPneumonia,
}


def open_source(site: Site) -> Source:
    """The source of a site's archive; nothing is read yet."""
    archive = site.archive
    if isinstance(archive, DicomArchive):
        return DicomTree(archive.path)
    if isinstance(archive, FolderArchive):
        return PlainFolder(archive.path, site.labels, archive.table)
    return _LAYOUTS[type(archive)](archive.path, site.labels)
