"""Structured reports of sources of every kind: written, read again by highdicom, and put before dciodvfy, dcmtk and pixelmed."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline import RESEARCH_ONLY
from pipeline.dicom.case_result import CaseResult, Finding, ResultImage
from pipeline.dicom.conformance_references import set_findings
from pipeline.dicom.derived import Algorithm, content_digest, model_device_uid, write_object
from pipeline.dicom.outline import closed_polylines
from pipeline.dicom.phantom import ct_slice, radiograph
from pipeline.dicom.secondary_capture import secondary_capture
from pipeline.dicom.source import read_source
from pipeline.dicom.structured_report import MAXIMUM_POINTS, class_code, fitting, structured_report, why_not
from pipeline.errors import ObjectError
from pipeline.profile_settings import KINDS, Profile, Texts, load_profile
from tests.case_results import ALGORITHM, SCALE, case_result
from tests.sources import SOURCES
from tests.validators import dciodvfy_errors, dsrdump, template_complaints

PEAKS = {"regions": 1.25, "no region": 0.4}
"""Of the evidence, in scales: from 0.5 on a region is outlined."""
GSPS, SEG = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[CaseResult, list[Dataset], Path]]:
    """For each source and each of PEAKS: the case, all its objects, and the report's file."""
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for source, make in SOURCES.items():
        files = make(folder / "sources" / source)
        for peak, scales in PEAKS.items():
            result = case_result(files, peak=scales)
            pictures = [secondary_capture(result, image) for image in result.key_images]
            report = structured_report(result, result.key_images, pictures)
            found[source, peak] = result, [*pictures, report], write_object(report, folder / source / peak)
    return found


CASES = [(source, peak) for source in SOURCES for peak in PEAKS]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_written_and_read_again_it_is_the_same(written, case):
    _, objects, path = written[case]
    assert content_digest(dcmread(path)) == content_digest(objects[-1])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_reference_leads_to_a_source_or_an_object(written, case):
    result, objects, _ = written[case]
    assert set_findings(objects, [image.source for image in result.images]) == []


@pytest.mark.dciodvfy
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_dciodvfy_finds_no_error(written, case):
    assert dciodvfy_errors(written[case][2]) == []


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_highdicom_reads_regions_that_are_the_evidences_own(written, case):
    result, _, path = written[case]
    report = hd.sr.Comprehensive3DSR.from_dataset(dcmread(path))
    regions = report.content.get_planar_roi_measurement_groups()
    wholes = report.content.get_image_measurement_groups()
    if case[1] == "no region":
        assert (len(regions), len(wholes)) == (0, 2)
        assert [group.finding_type.meaning for group in wholes] == ["COVID", "non-COVID"]
        assert [group.get_measurements()[0].value for group in wholes] == [0.932, 0.068]
        return
    assert (len(regions), len(wholes)) == (len(result.key_images), 0)
    for group, image in zip(regions, result.key_images, strict=True):
        reference = group.roi.ContentSequence[0]
        assert reference.referenced_sop_instance_uid == image.source.SOPInstanceUID
        assert reference.referenced_frame_numbers == ([image.frame + 1] if "NumberOfFrames" in image.source else None)
        region = result.region(image)
        assert region.any()
        assert np.array_equal(filled(group.roi.value, region.shape), region)
        assert group.get_measurements()[0].value == 0.932
        assert group.finding_type.meaning == "COVID"


def filled(line: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres are inside the closed line, whose points are (column, row) from the first pixel's corner."""
    mask = np.zeros(shape, bool)
    (x0, y0), (x1, y1) = line[:-1].T, line[1:].T
    for row in range(shape[0]):
        middle = row + 0.5
        cut = (y0 <= middle) != (y1 <= middle)
        at = np.sort(x0[cut] + (middle - y0[cut]) / (y1[cut] - y0[cut]) * (x1[cut] - x0[cut]))
        mask[row] = np.searchsorted(at, np.arange(shape[1]) + 0.5) % 2 == 1
    return mask


def items_of(parent: Dataset) -> list[Dataset]:
    """All content items below `parent`."""
    children = list(parent.get("ContentSequence", ()))
    return children + [inner for child in children for inner in items_of(child)]


def meaning(item: Dataset) -> str:
    return item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""


def texts(report: Dataset) -> list[str]:
    return [item.TextValue for item in items_of(report) if item.ValueType == "TEXT"]


def named(report: Dataset, name: str) -> list[Dataset]:
    return [item for item in items_of(report) if meaning(item) == name]


def report_of(result: CaseResult, made: Sequence[Dataset] = ()) -> Dataset:
    return structured_report(result, result.key_images, made)


@pytest.mark.parametrize("peak", PEAKS.values(), ids=PEAKS)
def test_every_number_of_a_group_has_coordinates(peak: float):
    """OHIF fails on a number without, unless its group has a region."""
    report = report_of(case_result([radiograph(32)], peak=peak))
    groups = named(report, "Measurement Group")
    assert groups
    for group in groups:
        in_group = any(item.ValueType == "SCOORD" for item in group.ContentSequence)
        numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
        assert numbers
        assert in_group or all(item.ContentSequence[0].ValueType == "SCOORD" for item in numbers)


def test_what_the_report_says():
    report = report_of(case_result([ct_slice(32), ct_slice(32, instance_number=2)], notes=("outside the scope: CT",)))
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (report.Modality, report.SeriesNumber) == ("SR", 9000 + KINDS.index("sr"))
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    said = texts(report)
    for text in (
        "Research use only - not for diagnosis",
        "COVID, probability 0.932",
        "COVID: probability 0.932, called",
        "non-COVID: probability 0.068, not called",
        "outside the scope: CT",
        "COVID, key image 2, region 1",
        f"model digest {ALGORITHM.model_digest}",
    ):
        assert text in said
    assert [item.UID for item in named(report, "Device Observer UID")] == [model_device_uid(ALGORITHM)]
    assert report.ContributingEquipmentSequence[-1].DeviceUID == model_device_uid(ALGORITHM)
    assert {item.MeasuredValueSequence[0].NumericValue for item in named(report, "Probability")} == {0.932}
    alone = named(report, "Probability from this image alone")
    assert [item.MeasuredValueSequence[0].NumericValue for item in alone] == [0.9, 0.9]
    sites = [item.ConceptCodeSequence[0].CodeMeaning for item in named(report, "Finding Site")]
    assert sites == ["Chest", "Chest"]


def test_a_single_image_has_one_probability():
    assert named(report_of(case_result([ct_slice(32)])), "Probability from this image alone") == []


def test_an_uncalled_finding_is_no_finding():
    findings = (Finding("COVID", 0.3, False), Finding("non-COVID", 0.7, True))
    report = report_of(case_result([ct_slice(32)], findings=findings))
    called = named(report, "Finding is called by the model")
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in called] == ["No"]
    evaluations = named(report, "Qualitative Evaluations")[0].ContentSequence
    coded = [item.ConceptCodeSequence[0].CodeMeaning for item in evaluations if item.ValueType == "CODE"]
    assert coded == ["non-COVID"]


def test_the_evidence_is_all_images_and_all_objects():
    result = case_result([ct_slice(32, instance_number=number) for number in range(1, 6)], key_images=2)
    picture = secondary_capture(result, result.key_images[0])
    report = report_of(result, [picture])
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = [
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]
    assert len(listed) == len(set(listed)) == 6
    assert set(listed) == {image.source.SOPInstanceUID for image in result.images} | {picture.SOPInstanceUID}
    illustrations = named(report, "Illustration of ROI")
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in illustrations] == [
        picture.SOPInstanceUID
    ]


def test_images_made_of_the_images_stand_apart_in_the_library():
    result = case_result([ct_slice(32)])
    segmentation = other_object(result, SEG)
    source, derived = named(report_of(result, [segmentation]), "Image Library Group")
    assert [item.ReferencedSOPSequence[0].ReferencedSOPClassUID for item in derived.ContentSequence] == [SEG]
    (entry,) = source.ContentSequence
    assert [meaning(item) for item in entry.ContentSequence] == [
        "Modality",
        "Frame of Reference UID",
        "Pixel Data Rows",
        "Pixel Data Columns",
    ]


def other_object(result: CaseResult, sop_class_uid: str) -> Dataset:
    """As much of an object of the case as a document looks at."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = sop_class_uid, "1.2.3.4", "1.2.3"
    dataset.StudyInstanceUID = result.images[0].source.StudyInstanceUID
    series, image = Dataset(), Dataset()
    image.ReferencedSOPClassUID = result.images[0].source.SOPClassUID
    image.ReferencedSOPInstanceUID = result.images[0].source.SOPInstanceUID
    series.ReferencedImageSequence = [image]
    dataset.ReferencedSeriesSequence = [series]
    return dataset


def test_an_image_is_shown_by_its_presentation_state(tmp_path: Path):
    result = case_result([ct_slice(32), ct_slice(32, instance_number=2)])
    report = report_of(result, [other_object(result, GSPS)])
    first, second = named(report, "Image Library Group")[0].ContentSequence
    (state,) = first.ReferencedSOPSequence[0].ReferencedSOPSequence
    assert state.ReferencedSOPInstanceUID == "1.2.3.4"
    assert "ReferencedSOPSequence" not in second.ReferencedSOPSequence[0]
    assert dciodvfy_errors(write_object(report, tmp_path)) == []


def with_region(image: ResultImage, region: NDArray[np.bool_]) -> ResultImage:
    return replace(image, evidence_of=lambda: (region * SCALE).astype(np.float32))


def of_region(region: NDArray[np.bool_]) -> CaseResult:
    """A case of one radiograph with exactly this region."""
    result = case_result([radiograph(16, Rows=region.shape[0], Columns=region.shape[1])])
    return replace(result, images=tuple(with_region(image, region) for image in result.images))


def lines_of(report: Dataset) -> list[NDArray[np.float64]]:
    return [np.reshape(item.GraphicData, (-1, 2)) for item in items_of(report) if item.ValueType == "SCOORD"]


def test_each_part_of_a_region_is_a_group_of_its_own_without_its_holes():
    region = np.zeros((20, 30), bool)
    region[2:9, 3:12] = True
    region[4:6, 5:8] = False
    region[12:15, 20:] = True
    report = report_of(of_region(region))
    solid = region.copy()
    solid[4:6, 5:8] = True
    masks = [filled(line, region.shape) for line in lines_of(report)]
    assert len(masks) == 2
    assert np.array_equal(np.any(masks, axis=0), solid)
    uids = [item.UID for item in named(report, "Tracking Unique Identifier")]
    assert len(set(uids)) == 2


def test_a_region_that_is_the_whole_image_ends_at_its_border():
    (line,) = lines_of(report_of(of_region(np.ones((20, 30), bool))))
    assert line.tolist() == [[0, 0], [30, 0], [30, 20], [0, 20], [0, 0]]


def comb(teeth: int) -> NDArray[np.bool_]:
    """A region whose outline has 4 points for each tooth."""
    region = np.zeros((12, 2 * teeth + 1), bool)
    region[6:] = True
    region[:6, 1::2] = True
    return region


def test_an_outline_of_more_points_than_can_be_written_gets_fewer(tmp_path: Path):
    columns = np.arange(12000)
    region = np.arange(60)[:, None] > 20 + 8 * np.sin(columns / 5)[None, :]
    (line,) = closed_polylines(region)
    assert len(line) > MAXIMUM_POINTS
    report = report_of(of_region(region))
    written = dcmread(write_object(report, tmp_path))
    (again,) = lines_of(written)
    assert len(again) <= MAXIMUM_POINTS
    assert again[0].tolist() == again[-1].tolist()
    wrong = filled(again, region.shape) != region
    near_an_edge = np.zeros_like(region)
    near_an_edge[:-1] |= region[:-1] != region[1:]
    near_an_edge[1:] |= region[:-1] != region[1:]
    near_an_edge[:, :-1] |= region[:, :-1] != region[:, 1:]
    near_an_edge[:, 1:] |= region[:, :-1] != region[:, 1:]
    assert not (wrong & ~near_an_edge).any()


def test_an_outline_that_can_be_written_stays_as_it_is():
    (line,) = closed_polylines(comb(MAXIMUM_POINTS // 4 - 4))
    assert len(line) <= MAXIMUM_POINTS
    assert np.array_equal(fitting(line), line)


def test_the_tolerance_grows_until_the_points_fit(monkeypatch: pytest.MonkeyPatch):
    """The teeth are 6 pixels high: within 0.5, 1, 2 and 4 pixels all their points are needed."""
    (line,) = closed_polylines(comb(40))
    monkeypatch.setattr("pipeline.dicom.structured_report.MAXIMUM_POINTS", 50)
    simple = fitting(line)
    assert 4 <= len(simple) <= 50
    assert simple[0].tolist() == simple[-1].tolist()


def test_the_same_input_makes_the_same_report_and_another_model_another():
    sources = [ct_slice(32), ct_slice(32, instance_number=2)]
    first = report_of(case_result(sources))
    later = report_of(case_result(sources, created=datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)))
    assert content_digest(first) == content_digest(later)
    other = report_of(case_result(sources, algorithm=Algorithm("radloop", "0.1.0", "ct_slices", "cd" * 32)))
    uids = [item.UID for report in (first, other) for item in items_of(report) if item.ValueType == "UIDREF"]
    own = [uid for uid in uids if uid != sources[0].FrameOfReferenceUID]
    assert len(set(own)) == len(own)
    assert first.SOPInstanceUID != other.SOPInstanceUID


def test_classes_in_other_letters_have_codes_of_their_own():
    findings = (Finding("肺炎", 0.8, True), Finding("結核", 0.2, False))
    report = report_of(case_result([ct_slice(32)], findings=findings, shown="肺炎", said="肺炎 0.8"))
    assert all(text.isascii() for text in texts(report))
    assert class_code("肺炎").meaning == class_code("結核").meaning == "??"
    assert class_code("肺炎").value != class_code("結核").value
    assert class_code("肺炎") == class_code("肺炎")
    assert len(class_code("a" * 100).value) <= 16
    assert len(class_code("a" * 100).meaning) == 64


def test_a_sites_words_tell_their_language():
    german = Profile(texts=Texts(language="de", research_only="Nur zur Forschung"))
    report = report_of(case_result([ct_slice(32)], profile=german, said="COVID, Wahrscheinlichkeit 0.932"))
    languages = {
        item.ConceptCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeMeaning
        for item in named(report, "Language of Content Item and Descendants")
    }
    assert languages == {"en": "English", "de": "German"}
    for item in named(report, "Finding") + named(report, "Comment"):
        told = [one.ConceptCodeSequence[0].CodeValue for one in item.get("ContentSequence", [])]
        if item.ValueType == "TEXT":
            assert told == ([] if item.TextValue == RESEARCH_ONLY else ["de"])


def test_a_sites_words_say_each_finding_and_what_must_be_said():
    german = load_profile("german")
    findings = (Finding("COVID", 0.99997, True), Finding("non-COVID", 0.00003, False))
    report = report_of(case_result([ct_slice(32)], profile=german, findings=findings, notes=("Gerät fremd",)))
    said = texts(report)
    for text in (
        "COVID: Wahrscheinlichkeit >0.999, gemeldet",
        "non-COVID: Wahrscheinlichkeit <0.001, nicht gemeldet",
        RESEARCH_ONLY,
        "Nur fur Forschung - nicht zur Diagnose (research use only)",
        "Gerat fremd",
    ):
        assert text in said
    assert {item.MeasuredValueSequence[0].NumericValue for item in named(report, "Probability")} == {0.99997}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_image_that_nothing_can_refer_to_is_refused():
    source = ct_slice(16, SeriesInstanceUID="../..")
    assert "SeriesInstanceUID" in why_not(source)
    assert why_not(ct_slice(16)) == ""
    with pytest.raises(ObjectError, match="SeriesInstanceUID"):
        report_of(case_result([source]))


def test_evidence_of_another_size_is_refused():
    result = case_result([ct_slice(16)])
    wrong = replace(result, images=tuple(with_region(image, np.ones((8, 8), bool)) for image in result.images))
    with pytest.raises(ObjectError, match="evidence: expected"):
        report_of(wrong)


def test_a_class_that_is_no_finding_is_refused():
    with pytest.raises(ObjectError, match="shown"):
        report_of(case_result([ct_slice(16)], shown="flu"))


def test_sources_stay_as_they_are():
    result = case_result([ct_slice(16)])
    before = result.images[0].source.to_json()
    report_of(result)
    assert result.images[0].source.to_json() == before


@pytest.mark.parametrize(
    "case", [("ct", "regions"), ("enhanced_mr", "regions"), ("japanese", "no region")], ids="-".join
)
def test_dcmtk_reads_the_whole_tree(written, case):
    tree, complaints = dsrdump(written[case][2])
    for said in (
        "Measurement Group",
        "COVID, probability 0.932",
        "Qualitative Evaluations",
        "Tracking Unique Identifier",
    ):
        assert said in tree
    assert complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [("ct", "regions"), ("cr_monochrome1", "no region")], ids="-".join)
def test_pixelmed_finds_the_template_kept(written, case):
    assert template_complaints(written[case][2]) == []


@pytest.mark.real_data
@pytest.mark.dciodvfy
def test_reports_of_real_series_are_valid(real_data: Path, tmp_path: Path):
    """One file of each folder of real images."""
    made = 0
    for folder in sorted(path for path in (real_data / "dicom").rglob("*") if path.is_dir()):
        source = first_image(folder)
        if source is None:
            continue
        path = write_object(report_of(case_result([source], key_images=1)), tmp_path)
        assert dciodvfy_errors(path) == [], folder
        made += 1
    assert made > 3


def first_image(folder: Path) -> Dataset | None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.read_bytes()[128:132] == b"DICM":
            source = read_source(path)
            if not why_not(source) and source.get("Rows") and source.get("StudyInstanceUID"):
                return source
    return None
