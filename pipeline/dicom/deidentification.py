"""One DICOM file de-identified by PS3.15 annex E: read, judged, cleaned at every depth, its pixels too, and written; or held back.

In: the path of a file of unknown origin; only to be called in a worker process (`pipeline.work`), where time and memory are bounded.
Out: `Cleaned`, with a new file at the target, or `HeldBack`. What is no DICOM image is `Rejected`. Nothing of the source reaches the new
file but what `deidentification_rules` let pass: neither preamble nor file meta information nor what follows the pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from pipeline import __version__
from pipeline.deidentify_settings import Deidentification, Mask
from pipeline.dicom.bounded import Window, inflated, open_window, parsing, quietly, read_meta
from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_tables import iod_of
from pipeline.dicom.deidentification_pixels import CleanPixels, clean_pixels, put_pixels
from pipeline.dicom.deidentification_reading import element_text, identity_of
from pipeline.dicom.deidentification_risk import PIXELS_ANSWERED, Held, why_held
from pipeline.dicom.deidentification_rules import Rules
from pipeline.dicom.deidentification_table import EDITION
from pipeline.dicom.deidentification_values import Patient
from pipeline.dicom.derived import IMPLEMENTATION_CLASS_UID, code_item
from pipeline.dicom.frames import open_image
from pipeline.dicom.header import is_dicom
from pipeline.dicom.original import original_of
from pipeline.dicom.source import frame_count
from pipeline.errors import Rejected, RejectReason
from pipeline.files import whole_file
from pipeline.identity import IdentityKey

BASIC_PROFILE = Code("113100", "DCM", "Basic Application Confidentiality Profile")
CLEAN_PIXELS = Code("113101", "DCM", "Clean Pixel Data Option")
CLEAN_DESCRIPTORS = Code("113105", "DCM", "Clean Descriptors Option")
OPTIONS = {
    "dates": Code("113106", "DCM", "Retain Longitudinal Temporal Information Full Dates Option"),
    "shifted-dates": Code("113107", "DCM", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient": Code("113108", "DCM", "Retain Patient Characteristics Option"),
    "device": Code("113109", "DCM", "Retain Device Identity Option"),
    "uids": Code("113110", "DCM", "Retain UIDs Option"),
    "safe-private": Code("113111", "DCM", "Retain Safe Private Option"),
    "institution": Code("113112", "DCM", "Retain Institution Identity Option"),
}
"""Of CID 7050 (PS3.16), by what keeps it."""
_SIGNATURE_BYTES = 132
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID")

IDENTITY = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyDescription"),
)
"""What the way back needs of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1)."""


@dataclass(frozen=True)
class Instance:
    """Where an object stands."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Cleaned:
    """What became of a file. `was`, `identity` (of `IDENTITY`), `original`: only where a crosswalk is asked for."""

    now: Instance
    patient_id: str
    sop_class_uid: str
    modality: str
    masked: bool
    bytes: int
    sha256: str
    days: int
    frames: int = 1
    frame_of_reference_uid: str = ""
    new_frame_of_reference_uid: str = ""
    was: Instance | None = None
    identity: tuple[str, ...] = ()
    original: str = ""
    """`original.original_of` the file."""


@dataclass(frozen=True)
class HeldBack:
    """Why nothing was written."""

    reason: Held
    detail: str


def deidentify_file(
    path: Path, target: Path, *, settings: Deidentification, key: IdentityKey, crosswalk: bool
) -> Cleaned | HeldBack:
    """Writes the file's de-identified image to `target`, whole or not at all.

    Raises Rejected: not_an_image (no DICOM), dicomdir, missing_uid, and for files and pixels that are broken as `open_image` does.
    """
    with open_window(path) as window:
        if not is_dicom(window.pixels(0, _SIGNATURE_BYTES)):
            raise Rejected(RejectReason.NOT_AN_IMAGE, "no DICOM: nothing says what in it would identify whom")
        dataset, is_big_endian = _read_header(window)
    with _judging():
        root = Item(dataset)
        if not all(root.text(keyword) for keyword in _UIDS):
            missing = next(keyword for keyword in _UIDS if not root.text(keyword))
            raise Rejected(RejectReason.MISSING_UID, f"no {missing}")
        mask = _mask_of(root, settings)
        held = why_held(root)
    if held is not None and (mask is None or held[0] not in PIXELS_ANSWERED):
        return HeldBack(*held)
    with open_image(path) as image:
        pixels = clean_pixels(image, None if mask is None else mask.regions)
    with _judging():
        cleaned, patient, uids = _clean(dataset, settings, key, is_big_endian)
        _state_method(cleaned, settings, masked=mask is not None)
        put_pixels(cleaned, pixels)
        _settle_character_set(cleaned)
        original = original_of(dataset, cleaned, uids) if crosswalk else ""
    size, digest = _write(cleaned, pixels, target)
    return Cleaned(
        now=_instance(cleaned),
        patient_id=patient.pseudonym,
        sop_class_uid=str(cleaned.SOPClassUID),
        modality=str(cleaned.get("Modality", "")),
        masked=bool(mask is not None and mask.regions),
        bytes=size,
        sha256=digest,
        days=patient.days if "shifted-dates" in settings.keep else 0,
        frames=frame_count(cleaned),
        frame_of_reference_uid=element_text(dataset, "FrameOfReferenceUID") if crosswalk else "",
        new_frame_of_reference_uid=element_text(cleaned, "FrameOfReferenceUID"),
        was=_instance(dataset) if crosswalk else None,
        identity=tuple(element_text(dataset, keyword) for keyword in IDENTITY) if crosswalk else (),
        original=original,
    )


@contextmanager
def _judging() -> Iterator[None]:
    """Whatever a hostile header makes of pydicom within the block is the file's fault, and is told without a value."""
    try:
        with quietly():
            yield
    except (Rejected, MemoryError):
        raise
    except RecursionError:
        raise Rejected(RejectReason.MALFORMED, "its sequences are nested too deep") from None
    except Exception as error:
        raise Rejected(RejectReason.MALFORMED, f"its header cannot be cleaned ({type(error).__name__})") from None


def _read_header(window: Window) -> tuple[Dataset, bool]:
    """All attributes before the pixels, and whether they are big endian. Raises Rejected as `parsing` does."""

    def at_pixels(tag: BaseTag, _: str | None, __: int) -> bool:
        return tag.group >= 0x7FE0

    source = window
    with parsing(window):
        meta = read_meta(window)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            source = inflated(window)
            dataset = read_dataset(source, False, True, stop_when=at_pixels)  # type: ignore[arg-type]
            big_endian = False
        else:
            window.seek(0)
            dataset = read_partial(window, at_pixels, force=True)  # type: ignore[arg-type]
            big_endian = dataset.original_encoding[1] is False
        directory = MediaStorageDirectoryStorage in (meta.get("MediaStorageSOPClassUID"), dataset.get("SOPClassUID"))
    if source.ended_early:
        raise Rejected(RejectReason.TRUNCATED, "the file ends within its header")
    if directory:
        raise Rejected(RejectReason.DICOMDIR, "the directory of a DICOM medium, which names what is de-identified")
    return dataset, big_endian


def _mask_of(root: Item, settings: Deidentification) -> Mask | None:
    """The first of the user's masks that fits the image."""
    rows, columns = root.number("Rows") or 0, root.number("Columns") or 0
    words = [root.text(keyword).strip() for keyword in ("Modality", "Manufacturer", "ManufacturerModelName")]
    return next((mask for mask in settings.masks if mask.fits(rows, columns, *words)), None)


def _clean(
    dataset: Dataset, settings: Deidentification, key: IdentityKey, big_endian: bool
) -> tuple[Dataset, Patient, dict[str, str]]:
    """The new dataset, whose it is, and what each of its UIDs stands for, but those of study, series and instance."""
    patient = Patient(
        key,
        element_text(dataset, "PatientID"),
        element_text(dataset, "IssuerOfPatientID"),
        element_text(dataset, "StudyInstanceUID"),
    )
    rules = Rules(settings, patient, identity_of(dataset, settings), big_endian)
    iod = iod_of(element_text(dataset, "SOPClassUID"))
    cleaned = rules.clean(dataset, None if iod is None else iod.root)
    cleaned.PatientID = cleaned.PatientName = patient.pseudonym
    for keyword in _UIDS[:3]:
        setattr(cleaned, keyword, rules.uid(element_text(dataset, keyword), retained="uids" in settings.keep))
    own = {str(cleaned[keyword].value) for keyword in _UIDS[:3]}
    return cleaned, patient, {new: uid for new, uid in rules.told.items() if new not in own}


def _state_method(cleaned: Dataset, settings: Deidentification, *, masked: bool) -> None:
    """That, and how, it was de-identified (PS3.3 C.7.1.1, C.12.1)."""
    codes = [BASIC_PROFILE, *([CLEAN_PIXELS] if masked else []), *([CLEAN_DESCRIPTORS] if settings.descriptors else [])]
    codes += [code for option, code in OPTIONS.items() if option in settings.keep]
    cleaned.PatientIdentityRemoved = "YES"
    cleaned.DeidentificationMethod = [f"radloop {__version__}", f"PS3.15 Table E.1-1 {EDITION}"]
    cleaned.DeidentificationMethodCodeSequence = [code_item(code) for code in codes]
    dates = {"dates": "UNMODIFIED", "shifted-dates": "MODIFIED"}
    stated = [dates[option] for option in settings.keep if option in dates]
    cleaned.LongitudinalTemporalInformationModified = stated[0] if stated else "REMOVED"
    if masked:
        cleaned.BurnedInAnnotation = "NO"


def _settle_character_set(cleaned: Dataset) -> None:
    """ASCII needs none; any other text is written as UTF-8."""
    texts = (
        str(element.value) for element in cleaned.iterall() if element.VR in ("LO", "SH", "ST", "LT", "UT", "UC", "PN")
    )
    if not all(text.isascii() for text in texts):
        cleaned.SpecificCharacterSet = "ISO_IR 192"


def _write(cleaned: Dataset, pixels: CleanPixels, target: Path) -> tuple[int, str]:
    """Number of bytes, and their sha256."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = cleaned.SOPClassUID, cleaned.SOPInstanceUID
    meta.TransferSyntaxUID = UID(pixels.transfer_syntax_uid or ExplicitVRLittleEndian)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = f"radloop {__version__}"[:16]
    cleaned.file_meta = meta
    with whole_file(target) as file, quietly():
        dcmwrite(file, cleaned, enforce_file_format=True)
        file.flush()
    with target.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return target.stat().st_size, digest


def _instance(dataset: Dataset) -> Instance:
    return Instance(
        *(element_text(dataset, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    )
