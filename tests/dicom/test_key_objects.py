"""Key Object Selections and rejection notes: written, read again by highdicom, and put before dciodvfy, dcmtk and pixelmed."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.conformance_references import set_findings
from pipeline.dicom.derived import Algorithm, content_digest, model_device_uid, write_object
from pipeline.dicom.key_objects import key_objects, rejection_note, why_not
from pipeline.dicom.phantom import ct_slice, radiograph
from pipeline.dicom.secondary_capture import secondary_capture
from pipeline.dicom.structured_report import structured_report
from pipeline.errors import ObjectError
from pipeline.profile_settings import KINDS, Profile
from tests.case_results import ALGORITHM, CREATED, case_result
from tests.sources import SOURCES
from tests.validators import dciodvfy_errors, dsrdump, template_complaints

GSPS, SEG = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.66.4"
SR, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CaseResult, list[Dataset], Path, Path]]:
    """For each source the case, its objects, and the files of the selection and of a rejection of the objects before it."""
    folder = tmp_path_factory.mktemp("selections")
    found = {}
    for source, make in SOURCES.items():
        result = case_result(make(folder / "sources" / source))
        made = [secondary_capture(result, image) for image in result.key_images]
        made.append(structured_report(result, result.key_images, made))
        selection, note = key_objects(result, result.key_images, made), note_of(result, made)
        paths = write_object(selection, folder / source), write_object(note, folder / source)
        found[source] = result, [*made, selection, note], *paths
    return found


def note_of(result: CaseResult, rejected: Sequence[Dataset], **changes: Profile | Algorithm) -> Dataset:
    uids = [(one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID) for one in rejected]
    algorithm, profile = changes.get("algorithm", ALGORITHM), changes.get("profile", Profile())
    return rejection_note(result.images[0].source, uids, algorithm, profile, CREATED)


@pytest.mark.parametrize("source", SOURCES)
def test_written_and_read_again_they_are_the_same(written, source):
    _, objects, *paths = written[source]
    for made, path in zip(objects[-2:], paths, strict=True):
        assert content_digest(dcmread(path)) == content_digest(made)


@pytest.mark.parametrize("source", SOURCES)
def test_every_reference_leads_to_a_source_or_an_object(written, source):
    result, objects, *_ = written[source]
    assert set_findings(objects, [image.source for image in result.images]) == []


@pytest.mark.dciodvfy
@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_finds_no_error(written, source):
    for path in written[source][2:]:
        assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("source", SOURCES)
def test_the_selection_is_the_key_images_and_what_tells_of_them(written, source):
    result, objects, path, _ = written[source]
    selection = dcmread(path)
    chosen = [item for item in selection.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]
    found = [
        (reference.ReferencedSOPInstanceUID, frame)
        for item in chosen
        if item.ValueType == "IMAGE"
        for reference in item.ReferencedSOPSequence
        for frame in frames_of(reference)
    ]
    pictures = [(one.SOPInstanceUID, 1) for one in objects if one.SOPClassUID == SC]
    assert found == [(image.source.SOPInstanceUID, image.frame + 1) for image in result.key_images] + pictures
    (report,) = [item.ReferencedSOPSequence[0] for item in chosen if item.ValueType == "COMPOSITE"]
    assert report.ReferencedSOPClassUID == SR
    several = "NumberOfFrames" in result.images[0].source
    assert any("ReferencedFrameNumber" in item.ReferencedSOPSequence[0] for item in chosen) == several


def frames_of(reference: Dataset) -> list[int]:
    numbers = reference.get("ReferencedFrameNumber", 1)
    return [int(numbers)] if isinstance(numbers, int | str) else [int(number) for number in numbers]


def test_what_the_selection_says():
    result = case_result([ct_slice(16)], notes=("outside the scope",))
    selection = key_objects(result, result.key_images, [])
    assert (selection.Modality, selection.SeriesNumber) == ("KO", 9000 + KINDS.index("kos"))
    assert selection.ConceptNameCodeSequence[0].CodeMeaning == "Of Interest"
    assert selection.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    (text,) = [
        item.TextValue
        for item in selection.ContentSequence
        if "Description" in str(item.get("ConceptNameCodeSequence"))
    ]
    assert text == "Research use only - not for diagnosis. COVID, probability 0.932. outside the scope."
    (device,) = [item.UID for item in selection.ContentSequence if item.ValueType == "UIDREF"]
    assert device == model_device_uid(ALGORITHM)


def test_highdicom_resolves_the_references(written):
    result, _, path, _ = written["ct"]
    selection = hd.ko.KeyObjectSelectionDocument.from_dataset(dcmread(path))
    for image in result.key_images:
        uid = image.source.SOPInstanceUID
        place = selection.resolve_reference(uid)
        assert place == (image.source.StudyInstanceUID, image.source.SeriesInstanceUID, uid)


def test_an_image_is_selected_as_its_presentation_state_shows_it(tmp_path: Path):
    result = case_result([ct_slice(16), ct_slice(16, instance_number=2)])
    state, series, image = Dataset(), Dataset(), Dataset()
    state.SOPClassUID, state.SOPInstanceUID, state.SeriesInstanceUID = GSPS, "1.2.3.4", "1.2.3"
    image.ReferencedSOPInstanceUID = result.images[1].source.SOPInstanceUID
    series.ReferencedImageSequence = [image]
    state.ReferencedSeriesSequence = [series]
    selection = key_objects(result, result.key_images, [state])
    first, second = [item.ReferencedSOPSequence[0] for item in selection.ContentSequence if item.ValueType == "IMAGE"]
    assert "ReferencedSOPSequence" not in first
    assert second.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
    assert "1.2.3.4" in str(selection.CurrentRequestedProcedureEvidenceSequence)
    assert dciodvfy_errors(write_object(selection, tmp_path)) == []


def test_the_same_input_makes_the_same_selection():
    result = case_result([ct_slice(16)])
    later = case_result([ct_slice(16)], created=datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC))
    again = key_objects(later, later.key_images, [])
    assert content_digest(key_objects(result, result.key_images, [])) == content_digest(again)


def test_a_rejection_names_each_object_once_in_any_order(written):
    result, objects, _, path = written["ct"]
    note = dcmread(path)
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    rejected = [item for item in note.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]
    named = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in rejected]
    assert sorted(named) == sorted(one.SOPInstanceUID for one in objects[:-2])
    kinds = {item.ReferencedSOPSequence[0].ReferencedSOPClassUID: item.ValueType for item in rejected}
    assert kinds == {SC: "IMAGE", SR: "COMPOSITE"}
    again = note_of(result, [*objects[:-2], *objects[:-2]][::-1])
    assert content_digest(again) == content_digest(note)


def test_another_rejection_is_another_note_in_the_same_series():
    result = case_result([ct_slice(16)])
    objects = [secondary_capture(result, result.images[0]), ct_slice(16, instance_number=5)]
    one, both = note_of(result, objects[:1]), note_of(result, objects)
    assert one.SOPInstanceUID != both.SOPInstanceUID
    assert one.SeriesInstanceUID == both.SeriesInstanceUID
    newer = note_of(result, objects, algorithm=Algorithm("radloop", "0.2.0", "ct_slices", "cd" * 32))
    assert newer.SeriesInstanceUID != both.SeriesInstanceUID
    selection = key_objects(result, result.key_images, [])
    assert selection.SeriesInstanceUID != one.SeriesInstanceUID


def test_a_rejection_can_come_from_an_object_of_the_study():
    """Where the source is gone, any of radloop's own objects tells whose study it is."""
    result = case_result([ct_slice(16)])
    old = secondary_capture(result, result.images[0])
    uids = [(old.SOPClassUID, old.SOPInstanceUID, old.SeriesInstanceUID)]
    note = rejection_note(old, uids, ALGORITHM, Profile(), CREATED)
    assert (note.PatientID, note.StudyInstanceUID) == (old.PatientID, old.StudyInstanceUID)


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ([], "found none"),
        ([(SC, "../..", "1.2.3")], "expected UIDs"),
        ([("", "1.2.3", "1.2.3")], "expected UIDs"),
        ([(SC, "1.2.3", "1.2.4"), (SC, "1.2.3", "1.2.5")], "one series"),
        ([(SC, "1.2.3", "1.2.4"), (SEG, "1.2.3", "1.2.4")], "one class"),
    ],
)
def test_what_cannot_be_rejected_is_refused(rejected, message):
    with pytest.raises(ObjectError, match=message):
        rejection_note(ct_slice(16), rejected, ALGORITHM, Profile(), CREATED)


def test_an_image_that_nothing_can_refer_to_is_refused():
    source = radiograph(16, SeriesInstanceUID="")
    assert "SeriesInstanceUID" in why_not(source)
    assert why_not(radiograph(16)) == ""
    result = case_result([source])
    with pytest.raises(ObjectError, match="SeriesInstanceUID"):
        key_objects(result, result.key_images, [])


@pytest.mark.parametrize("source", ["ct", "enhanced_ct", "korean"])
def test_dcmtk_reads_them(written, source):
    for path, title in zip(written[source][2:], ("Of Interest", "Rejected for Quality Reasons"), strict=True):
        tree, complaints = dsrdump(path)
        assert title in tree
        assert "Key Object Description" in tree
        assert complaints == []


@pytest.mark.slow
def test_pixelmed_finds_the_template_kept(written):
    for path in written["ct"][2:]:
        assert template_complaints(path) == []
