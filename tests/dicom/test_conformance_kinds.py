"""Every kind of object that radloop writes, with one thing wrong each: the check says so, and names it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from pipeline.dicom.conformance import check, check_references
from pipeline.dicom.derived import write_object
from pipeline.errors import ObjectError
from pipeline.prediction.object_set import Made, objects_of
from pipeline.profile_settings import KINDS, Profile
from tests.case_results import case_result
from tests.sources import ct, enhanced_ct, enhanced_mr

Spoil = Callable[[Dataset], None]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """One of each kind, as it is read from its file; and the sources."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = ct(folder / "source")
    found: dict[str, Dataset] = {"source": dcmread(paths[0])}
    for outcome in objects_of(case_result(paths), KINDS):
        assert isinstance(outcome, Made)
        found.setdefault(outcome.kind, dcmread(write_object(outcome.dataset, folder)))
    fractional = Profile(segmentation="fractional", compression="rle")
    for outcome in objects_of(case_result(paths, profile=fractional), ["sc", "seg"]):
        assert isinstance(outcome, Made)
        found.setdefault(f"{outcome.kind} compressed", dcmread(write_object(outcome.dataset, folder)))
    return found


def _set(keyword: str, value: Any) -> Spoil:
    return lambda dataset: setattr(dataset, keyword, value)


def _delete(*keywords: str) -> Spoil:
    def spoil(dataset: Dataset) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return spoil


def _in(path: str, spoil: Spoil) -> Spoil:
    """`spoil` for the first item of the last of the sequences named."""

    def within(dataset: Dataset) -> None:
        for keyword in path.split("."):
            dataset = dataset[keyword].value[0]
        spoil(dataset)

    return within


def _item(value_type: str, *, within: Callable[[Dataset], Dataset], spoil: Spoil) -> Spoil:
    """`spoil` for the first content item of a value type."""

    def search(item: Dataset) -> Dataset | None:
        for child in item.get("ContentSequence", ()):
            if child.get("ValueType") == value_type:
                return child
            found = search(child)
            if found is not None:
                return found
        return None

    def spoiled(dataset: Dataset) -> None:
        found = search(within(dataset))
        assert found is not None
        spoil(found)

    return spoiled


def _content(value_type: str, spoil: Spoil) -> Spoil:
    return _item(value_type, within=lambda dataset: dataset, spoil=spoil)


def _without(*codes: str) -> Spoil:
    def spoil(dataset: Dataset) -> None:
        dataset.ContentSequence = [
            item for item in dataset.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue not in codes
        ]

    return spoil


def _other_overlay(number: int, value: Any) -> Spoil:
    def spoil(dataset: Dataset) -> None:
        dataset[0x6000, number].value = value

    return spoil


def _lose_overlay(number: int) -> Spoil:
    def spoil(dataset: Dataset) -> None:
        del dataset[0x6000, number]

    return spoil


def _lose_frame(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def _both(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PlanePositionSequence = dataset.PerFrameFunctionalGroupsSequence[
        0
    ].PlanePositionSequence


def _lose_fragments(dataset: Dataset) -> None:
    dataset.NumberOfFrames = 3


def _no_items(dataset: Dataset) -> None:
    dataset.PixelData = b"\0" * 64


def _other_codec(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless


def _bad_offsets(dataset: Dataset) -> None:
    dataset.PixelData = encapsulate([b"\1\2", b"\3\4"], has_bot=True).replace(b"\x0a\0\0\0", b"\x0b\0\0\0", 1)
    dataset.NumberOfFrames = 2


def _wrong_kind(dataset: Dataset) -> None:
    dataset.SegmentSequence[0].SegmentAlgorithmType = "BY HAND"


def _second_evidence(dataset: Dataset) -> None:
    study = dataset.CurrentRequestedProcedureEvidenceSequence[0]
    again = deepcopy(study.ReferencedSeriesSequence[0])
    again.SeriesInstanceUID = "1.2.3"
    study.ReferencedSeriesSequence.append(again)


WRONG: dict[str, tuple[str, Spoil, str]] = {
    # modules that are optional, but there
    "lonely protocol": ("sc", _set("ClinicalTrialSiteName", "X"), r"ClinicalTrialProtocolID is missing \(Type 1\)"),
    "lonely position": ("sc", _set("PositionReferenceIndicator", ""), "FrameOfReferenceUID is missing"),
    "no maker": ("sc", _delete("Manufacturer"), r"Manufacturer is missing \(Type 2\).*general-equipment"),
    # terms and conditions
    "conversion": ("sc", _set("ConversionType", "XXX"), "ConversionType has a value that is not enumerated"),
    "image type": ("sc", _set("ImageType", ["MADE", "SECONDARY"]), "ImageType value 1 is not enumerated"),
    "photometric": ("sc-multiframe", _set("PhotometricInterpretation", "MONOCHROME2"), "does not have"),
    "no planes": ("sc", _delete("PlanarConfiguration"), "PlanarConfiguration is missing .Type 1C"),
    "window alone": ("overlay", _delete("WindowWidth"), "WindowWidth is missing .Type 1C with WindowCenter"),
    "modality": ("gsps", _set("Modality", "OT"), "Modality has a value that this class does not have, expected PR"),
    "no increment": ("sc-multiframe", _delete("FrameIncrementPointer"), "FrameIncrementPointer is missing"),
    "increment": ("sc-multiframe", _delete("PageNumberVector"), "FrameIncrementPointer points to an attribute"),
    "two codes": (
        "sc",
        _in("SourceImageSequence.PurposeOfReferenceCodeSequence", _set("URNCodeValue", "urn:x")),
        "has 2 code values, expected one",
    ),
    "no scheme": (
        "sc",
        _in("SourceImageSequence.PurposeOfReferenceCodeSequence", _delete("CodingSchemeDesignator")),
        "CodingSchemeDesignator is missing",
    ),
    # pixels
    "samples": ("sc", _set("SamplesPerPixel", 1), "SamplesPerPixel does not fit"),
    "high bit": ("sc", _set("HighBit", 5), "HighBit is not BitsStored - 1"),
    "float bits": ("pmap", _set("BitsAllocated", 16), "BitsAllocated does not fit FloatPixelData, expected 32"),
    "frames": ("sc-multiframe", _set("NumberOfFrames", 2), r"PixelData has \d+ bytes, expected"),
    "no frames": ("sc-multiframe", _set("NumberOfFrames", 0), "NumberOfFrames is below 1"),
    "fragments": ("sc compressed", _lose_fragments, "PixelData has 1 items, expected 3"),
    "no items": ("sc compressed", _no_items, "PixelData is no sequence of items"),
    "codec": ("sc compressed", _other_codec, "PixelData does not begin as its transfer syntax has it"),
    "offsets": ("sc compressed", _bad_offsets, "the Basic Offset Table does not lead to the frames"),
    # overlay planes
    "overlay rows": ("overlay", _lose_overlay(0x0010), r"overlay \(6000,xxxx\): OverlayRows is missing"),
    "overlay bits": ("overlay", _other_overlay(0x3000, b"\1\2"), "OverlayData has 2 bytes, expected"),
    "overlay type": ("overlay", _other_overlay(0x0040, "X"), "OverlayType is not enumerated"),
    "overlay data": ("overlay", _lose_overlay(0x3000), "OverlayData is missing"),
    # frames, dimensions, segments
    "frame lost": ("seg", _lose_frame, "PerFrameFunctionalGroupsSequence has 2 items"),
    "shared and own": ("seg", _both, "PlanePositionSequence is both in"),
    "no place": (
        "seg",
        _in("PerFrameFunctionalGroupsSequence", _delete("PlanePositionSequence")),
        "PlanePositionSequence is neither shared by all frames nor in each",
    ),
    "no corner": (
        "pmap",
        _in("PerFrameFunctionalGroupsSequence.PlanePositionSequence", _delete("ImagePositionPatient")),
        "ImagePositionPatient is missing .Type 1C with FrameOfReferenceUID",
    ),
    "no meaning": (
        "pmap",
        _in("SharedFunctionalGroupsSequence", _delete("RealWorldValueMappingSequence")),
        "RealWorldValueMappingSequence is neither shared",
    ),
    "index": (
        "seg",
        _in("PerFrameFunctionalGroupsSequence.FrameContentSequence", _set("DimensionIndexValues", [1])),
        "DimensionIndexValues: expected",
    ),
    "index 0": (
        "pmap",
        _in("PerFrameFunctionalGroupsSequence.FrameContentSequence", _set("DimensionIndexValues", [0])),
        "DimensionIndexValues has a value below 1",
    ),
    "organization": (
        "seg",
        _in("DimensionIndexSequence", _set("DimensionOrganizationUID", "1.2.3")),
        "refers to a dimension organization",
    ),
    "pointer": (
        "pmap",
        _in("DimensionIndexSequence", _set("DimensionIndexPointer", 0x00189074)),
        "DimensionIndexSequence points to FrameAcquisitionDateTime",
    ),
    "number 2": ("seg", _in("SegmentSequence", _set("SegmentNumber", 2)), "expected SegmentNumber from 1 on"),
    "algorithm": ("seg", _wrong_kind, "SegmentAlgorithmType has a value that is not enumerated"),
    "algorithm name": (
        "seg",
        _in("SegmentSequence", _delete("SegmentAlgorithmName")),
        "SegmentAlgorithmName is missing",
    ),
    "bits of a segment": ("seg compressed", _set("BitsStored", 7), "BitsStored does not fit SegmentationType"),
    "fraction of what": ("seg compressed", _delete("MaximumFractionalValue"), "MaximumFractionalValue is missing"),
    "not listed": ("seg", _delete("ReferencedSeriesSequence"), "is not listed in ReferencedSeriesSequence"),
    # presentation states
    "layer": ("gsps", _in("GraphicAnnotationSequence", _set("GraphicLayer", "NONE")), "on a layer that is not in"),
    "points": (
        "gsps",
        _in("GraphicAnnotationSequence.GraphicObjectSequence", _set("NumberOfGraphicPoints", 3)),
        "does not hold NumberOfGraphicPoints points",
    ),
    "filled": (
        "gsps",
        _in("GraphicAnnotationSequence.GraphicObjectSequence", _delete("GraphicFilled")),
        "GraphicFilled is missing",
    ),
    "other image": (
        "gsps",
        _in("GraphicAnnotationSequence.ReferencedImageSequence", _set("ReferencedSOPInstanceUID", "1.2.3")),
        "GraphicAnnotationSequence names an image that is not in ReferencedSeriesSequence",
    ),
    "no area": ("gsps", _delete("DisplayedAreaSelectionSequence"), "DisplayedAreaSelectionSequence is missing"),
    # documents
    "no pdf": ("pdf", _set("EncapsulatedDocument", b"<html>"), "EncapsulatedDocument is no PDF"),
    "mime": ("pdf", _set("MIMETypeOfEncapsulatedDocument", "text/html"), "expected application/pdf"),
    # content trees
    "no title": ("sr", _delete("ConceptNameCodeSequence"), "the root content item has no ConceptNameCodeSequence"),
    "no text": ("sr", _content("TEXT", _delete("TextValue")), r"TEXT: TextValue is missing \(Type 1\)"),
    "no unit": (
        "sr",
        _content("NUM", _in("MeasuredValueSequence", _delete("MeasurementUnitsCodeSequence"))),
        "NUM: MeasuredValueSequence needs",
    ),
    "no number": ("sr", _content("NUM", _set("MeasuredValueSequence", [])), "NUM: neither a value nor"),
    "odd points": ("sr", _content("SCOORD", _set("GraphicData", [1.0, 2.0, 3.0])), "with 3 numbers in GraphicData"),
    "shape": ("sr", _content("SCOORD", _set("GraphicType", "BLOB")), "SCOORD: GraphicType is not enumerated"),
    "nowhere": ("sr", _content("SCOORD", _set("ContentSequence", [])), "SCOORD is not SELECTED FROM an image"),
    "relationship": ("sr", _content("NUM", _set("RelationshipType", "SELECTED FROM")), "is no relationship of PS3.3"),
    "value type": ("sr", _content("NUM", _set("ValueType", "NUMBER")), "ValueType is not enumerated"),
    "no code": ("sr", _content("CODE", _in("ConceptCodeSequence", _delete("CodeMeaning"))), "holds no code"),
    "no evidence": ("sr", _delete("CurrentRequestedProcedureEvidenceSequence"), "is not listed as evidence"),
    "other class": (
        "kos",
        _in(
            "CurrentRequestedProcedureEvidenceSequence.ReferencedSeriesSequence.ReferencedSOPSequence",
            _set("ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.4"),
        ),
        "by another class than its evidence does",
    ),
    "two places": ("kos", _second_evidence, "lists an instance in two series"),
    "no procedure": ("sr", _without("121058"), "TID 1500: Procedure reported is missing"),
    "no language": ("sr", _without("121049"), "TID 1500: Language of Content Item"),
    "no measurements": ("sr", _without("126010", "C0034375"), "neither measurements nor"),
    "template": ("kos", _delete("ContentTemplateSequence"), "expected TID 2010"),
}


def test_all_kinds_pass(objects: dict[str, Dataset]) -> None:
    assert set(KINDS) <= objects.keys()
    for dataset in objects.values():
        check(dataset)


@pytest.mark.parametrize("case", WRONG)
def test_each_flaw_is_found(objects: dict[str, Dataset], case: str) -> None:
    kind, spoil, message = WRONG[case]
    dataset = deepcopy(objects[kind])
    with disable_value_validation():
        spoil(dataset)
    with pytest.raises(ObjectError, match=message):
        check(dataset)


@pytest.mark.parametrize("source", [enhanced_ct, enhanced_mr], ids=lambda source: source.__name__)
def test_macros_of_enhanced_images(tmp_path: Path, source: Callable[[Path], list[Path]]) -> None:
    dataset = dcmread(source(tmp_path)[0])
    check(dataset)
    del dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence
    with pytest.raises(ObjectError, match="FrameAnatomySequence is neither shared by all frames nor in each of them"):
        check(dataset)


def test_a_frame_that_is_one_item_may_not_be_two(objects: dict[str, Dataset]) -> None:
    dataset = deepcopy(objects["sc compressed"])
    assert dataset.file_meta.TransferSyntaxUID == RLELossless
    dataset.PixelData = encapsulate([b"\1\2", b"\3\4"], has_bot=False)
    with pytest.raises(ObjectError, match="PixelData has 2 items, expected 1"):
        check(dataset)


# --- references


@pytest.fixture
def sources(tmp_path: Path) -> list[Dataset]:
    return [dcmread(path) for path in ct(tmp_path / "again")]


def test_a_whole_set_leads_somewhere(tmp_path: Path) -> None:
    paths = ct(tmp_path)
    made = [outcome.dataset for outcome in objects_of(case_result(paths), KINDS) if isinstance(outcome, Made)]
    check_references(made, [dcmread(path) for path in paths])
    with pytest.raises(ObjectError, match="neither a source nor made with it"):
        check_references(made, [dcmread(path) for path in paths[1:]])
    without = [dataset for dataset in made if dataset.Modality != "SEG"]
    with pytest.raises(ObjectError, match="neither a source nor made with it"):
        check_references(without, [dcmread(path) for path in paths])


def _to_itself(dataset: Dataset) -> None:
    dataset.SourceImageSequence[0].ReferencedSOPInstanceUID = dataset.SOPInstanceUID


ASTRAY: dict[str, tuple[Spoil, str]] = {
    "class": (_in("SourceImageSequence", _set("ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.4")), "SOP class"),
    "itself": (_to_itself, "refers to the object itself"),
    "frame": (_in("SourceImageSequence", _set("ReferencedFrameNumber", 2)), "a frame that the instance does not have"),
    "nobody": (_in("SourceImageSequence", _set("ReferencedSOPInstanceUID", "1.2.3")), "neither a source nor made"),
}


@pytest.mark.parametrize("case", ASTRAY)
def test_a_reference_that_leads_astray(objects: dict[str, Dataset], sources: list[Dataset], case: str) -> None:
    spoil, message = ASTRAY[case]
    dataset = deepcopy(objects["sc"])
    check_references([dataset], sources)
    spoil(dataset)
    with pytest.raises(ObjectError, match=message):
        check_references([dataset], sources)


def test_series_and_study_of_evidence(objects: dict[str, Dataset], sources: list[Dataset]) -> None:
    dataset = deepcopy(objects["gsps"])
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    with pytest.raises(ObjectError, match="in another series than its own"):
        check_references([dataset], sources)
    dataset = deepcopy(objects["kos"])
    dataset.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = "1.2.3"
    with pytest.raises(ObjectError, match="in another study than its own"):
        check_references([dataset], sources)


def test_what_a_source_refers_to_may_be_carried_on(objects: dict[str, Dataset], sources: list[Dataset]) -> None:
    localizer = Dataset()
    localizer.ReferencedSOPClassUID, localizer.ReferencedSOPInstanceUID = sources[0].SOPClassUID, "1.2.3.4"
    copy = deepcopy(objects["overlay"])
    copy.ReferencedImageSequence = [localizer]
    with pytest.raises(ObjectError, match="ReferencedImageSequence refers to an instance that is neither"):
        check_references([copy], sources)
    sources[0].ReferencedImageSequence = [localizer]
    check_references([copy], sources)
