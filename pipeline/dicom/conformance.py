"""Nothing invalid leaves: `check` judges an object against its IOD's modules, its value representations, pixels, content and
references; `check_references` a set of objects against what exists.

Offline, by the tables of PS3.3 that highdicom carries and a few small ones of radloop's own. Conditions that the standard states in prose
are judged where a viewer or an archive acts upon them; the rest the tests run dciodvfy for. Findings name attributes, never their
values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.dataset import Dataset

from pipeline.dicom.conformance_content import content_findings
from pipeline.dicom.conformance_frames import frame_findings
from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_modules import module_findings
from pipeline.dicom.conformance_pixels import pixel_findings
from pipeline.dicom.conformance_presentation import document_findings, presentation_findings
from pipeline.dicom.conformance_references import reference_findings, set_findings
from pipeline.dicom.conformance_tables import iod_of
from pipeline.dicom.conformance_terms import term_findings
from pipeline.dicom.conformance_values import TEXT_VRS, element_finding, is_encodable, is_uid, value_findings
from pipeline.errors import ObjectError

__all__ = ["TEXT_VRS", "check", "check_references", "element_finding", "is_encodable", "is_uid", "object_findings"]

UNKNOWN_CLASS = "SOPClassUID is none whose IOD is known"


def check(dataset: Dataset) -> None:
    """Raises ObjectError that lists everything wrong with `dataset`; returns where nothing is.

    Judged: Type 1 and Type 2 attributes of each module that is due or there, and within each sequence that is there; enumerated
    values and conditions that matter; every UID; each value against its VR, its multiplicity and the character set; pixels and
    overlay planes; functional groups, dimensions and segments; annotations; the content tree and its evidence; each reference; the
    file meta information where there is one.
    """
    findings = list(object_findings(Item(dataset), getattr(dataset, "file_meta", None)))
    if findings:
        uid = str(dataset.get("SOPInstanceUID", ""))
        where = uid if is_uid(uid) else "an object without a valid SOPInstanceUID"
        raise ObjectError(f"{where}: expected a valid DICOM object, not written because of: " + "; ".join(findings))


def check_references(made: Sequence[Dataset], sources: Iterable[Dataset]) -> None:
    """Raises ObjectError unless every reference of `made`, objects written together, leads to one of `sources` or of `made`.

    `sources`: headers of the instances that they were made from. Class, series, study, frames and segments must be those of the instance
    referred to. An object may carry on what a source itself refers to, whether or not that is at hand.
    """
    findings = set_findings(made, sources)
    if findings:
        raise ObjectError("expected references that lead somewhere, not written because of: " + "; ".join(findings))


def object_findings(root: Item, meta: Dataset | None) -> Iterator[str]:
    """Everything wrong with one object; of a class that the tables do not know, everything but its modules, which is said."""
    sop_class = root.text("SOPClassUID")
    iod = iod_of(sop_class)
    if iod is None:
        yield UNKNOWN_CLASS
    else:
        yield from module_findings(root, iod)
    yield from value_findings(root)
    yield from term_findings(root, sop_class)
    syntax = None if meta is None else str(meta.get("TransferSyntaxUID") or "") or None
    yield from pixel_findings(root, syntax)
    yield from frame_findings(root, sop_class)
    yield from presentation_findings(root)
    yield from document_findings(root, sop_class)
    yield from content_findings(root, sop_class)
    yield from reference_findings(root, sop_class)
    if meta is not None:
        yield from _meta_findings(root, meta)


def _meta_findings(root: Item, meta: Dataset) -> Iterator[str]:
    """The file meta information must name the same class and instance as the dataset (PS3.10 7.1)."""
    for in_meta, in_dataset in (
        ("MediaStorageSOPClassUID", "SOPClassUID"),
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
    ):
        if str(meta.get(in_meta) or "") != root.text(in_dataset):
            yield f"{in_meta} differs from {in_dataset}"
    if not meta.get("TransferSyntaxUID"):
        yield "TransferSyntaxUID is missing"
