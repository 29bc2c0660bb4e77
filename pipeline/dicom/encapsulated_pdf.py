"""The page of a case as an Encapsulated PDF in the study of its images (PS3.3 A.45.1, C.24).

In: a `CaseResult`, the images on the page, and the page: a PDF file's bytes. Out: a dataset ready for `derived.write_object`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import EncapsulatedPDFStorage

from pipeline import RESEARCH_ONLY
from pipeline.dicom.begin import LO_CHARACTERS, ST_CHARACTERS, begin_object, finish_object
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import MANUFACTURER, ascii_text, code_item
from pipeline.dicom.source import carried, inherited_marks
from pipeline.errors import ObjectError

NEEDED_UIDS = ("SOPClassUID", "SOPInstanceUID")
TITLE = Code("126000", "DCM", "Imaging Measurement Report")
"""Of CID 7020 and 7021: what the page is, without the claim that anybody reported on the study."""
FIRST_BYTES, LAST_BYTES = b"%PDF-", b"%%EOF"  # ISO 32000-1 7.5.2, 7.5.5
MAXIMUM_BYTES = 2**32 - 2  # of an OB of defined length, even


def why_not(source: Dataset) -> str:
    """Why there can be no Encapsulated PDF of the source; '' where there can."""
    for keyword in NEEDED_UIDS:
        if carried(source, keyword) is None:
            return f"the source has no valid {keyword}, so no object can refer to it"
    return ""


def encapsulated_pdf(result: CaseResult, images: Sequence[ResultImage], page: bytes) -> Dataset:
    """Encapsulated PDF Storage of `page`, which shows `images`. Raises ObjectError where the page is no whole PDF file."""
    _check(page)
    document = begin_object(result, "pdf", "DOC", images)
    document.SOPClassUID = EncapsulatedPDFStorage
    document.ConversionType = "WSD"
    document.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    document.SecondaryCaptureDeviceManufacturerModelName = ascii_text(result.algorithm.model_name, LO_CHARACTERS)
    document.SecondaryCaptureDeviceSoftwareVersions = ascii_text(result.algorithm.version, LO_CHARACTERS)
    document.AcquisitionDateTime = ""  # Type 2: the page is made of images of several times, and of none itself
    document.DocumentTitle = ascii_text(f"{RESEARCH_ONLY}. {result.said}", ST_CHARACTERS)
    document.ConceptNameCodeSequence = [code_item(TITLE)]
    document.VerificationFlag = "UNVERIFIED"
    document.update(_marks(images))
    document.SourceInstanceSequence = _source_instances(images)
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocument = page + b"\0" * (len(page) % 2)
    document.EncapsulatedDocumentLength = len(page)
    return finish_object(document, images[0].source)


def _check(page: bytes) -> None:
    if not page.startswith(FIRST_BYTES) or not page.rstrip().endswith(LAST_BYTES):
        raise ObjectError(f"page: expected a whole PDF file, found {len(page)} bytes that are none")
    if len(page) > MAXIMUM_BYTES:
        raise ObjectError(f"page: expected at most {MAXIMUM_BYTES} bytes, found {len(page)}")


def _marks(images: Sequence[ResultImage]) -> Dataset:
    """What the page must confess of the pictures on it: YES where one of their sources says so (PS3.3 C.24.2). What is known of
    all alone is said: that no features are recognizable."""
    marks = [inherited_marks(image.source) for image in images]
    found = Dataset()
    found.BurnedInAnnotation = "YES" if any(one.BurnedInAnnotation == "YES" for one in marks) else "NO"
    recognizable = {one.get("RecognizableVisualFeatures") for one in marks}
    if "YES" in recognizable:
        found.RecognizableVisualFeatures = "YES"
    elif recognizable == {"NO"}:
        found.RecognizableVisualFeatures = "NO"
    return found


def _source_instances(images: Sequence[ResultImage]) -> list[Dataset]:
    """SourceInstanceSequence: instances only, frames and purpose have no place in it (PS3.3 Table 10-11)."""
    found = []
    for source in {str(image.source.SOPInstanceUID): image.source for image in images}.values():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
        found.append(item)
    return found
