"""Why a file is left out: one code each, the only table of them. The codes may leave the hospital in bucketed counts."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """One reason code; `description` says it in a line."""

    description: str

    def __new__(cls, code: str, description: str = "") -> Reason:
        """A member whose value is the code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.description = description
        return member

    NOT_DICOM = "NOT_DICOM", "neither a DICOM file nor a picture"
    UNREADABLE = "UNREADABLE", "damaged, cut off or not conformant beyond repair"
    TOO_LARGE = "TOO_LARGE", "larger than the limit for one file or one picture"
    TIMEOUT = "TIMEOUT", "took longer than the limit for one file"
    OUT_OF_MEMORY = "OUT_OF_MEMORY", "needed more memory than the limit for one file"
    CRASHED = "CRASHED", "brought its reader down"
    GONE = "GONE", "was there when the archive was listed, and is not any more"
    FORGOTTEN = "FORGOTTEN", "belongs to a patient who was deleted"
    NO_PATIENT = "NO_PATIENT", "does not say whose it is, so it cannot be split by patient or deleted"
    NO_PIXELS = "NO_PIXELS", "has no pixels: a report, a presentation state, a directory"
    MODALITY = "MODALITY", "is not a radiograph: (0008,0060) Modality is none of CR, DX, DR, RG"
    NOT_CHEST = "NOT_CHEST", "shows another part of the body"
    BODY_PART_UNKNOWN = "BODY_PART_UNKNOWN", "does not say which part of the body it shows"
    LATERAL = "LATERAL", "is a lateral or oblique view"
    VIEW_UNKNOWN = "VIEW_UNKNOWN", "does not say which view it is, and the site's rules want to know"
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE", "is a secondary capture or derived picture, not an acquisition"
    BURNED_IN = "BURNED_IN", "has annotation burned into its pixels, by its own word"
    FOR_PROCESSING = "FOR_PROCESSING", "is a raw picture for processing, not for presentation"
    MULTI_FRAME = "MULTI_FRAME", "has several frames"
    COLOUR = "COLOUR", "is in colour"
    PIXEL_FORMAT = "PIXEL_FORMAT", "stores its pixels in a way that no radiograph does"
    TRANSFER_SYNTAX = "TRANSFER_SYNTAX", "is compressed in a way that is not supported"
    TOO_SMALL = "TOO_SMALL", "is too small"
    BLANK = "BLANK", "shows next to nothing"
    SATURATED = "SATURATED", "is black or white nearly everywhere"
    DUPLICATE_UID = "DUPLICATE_UID", "has the SOP Instance UID of a picture that is used"
    DUPLICATE_PIXELS = "DUPLICATE_PIXELS", "has the pixels of a picture that is used"


class Excluded(Exception):
    """A file is left out. Carries the reason and nothing of the file."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason
