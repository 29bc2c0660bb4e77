"""Encapsulated PDFs of sources of every kind: written, read again, taken out, and put before dciodvfy and dcmtk."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult
from pipeline.dicom.conformance_references import set_findings
from pipeline.dicom.derived import Algorithm, content_digest, write_object
from pipeline.dicom.encapsulated_pdf import encapsulated_pdf, why_not
from pipeline.dicom.phantom import ct_slice, radiograph
from pipeline.errors import ObjectError
from pipeline.prediction.case_page import case_page
from pipeline.profile_settings import KINDS
from tests.case_results import case_result
from tests.sources import SOURCES
from tests.validators import dciodvfy_errors

PAGE = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CaseResult, Dataset, Path]]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for source, make in SOURCES.items():
        result = case_result(make(folder / "sources" / source))
        document = encapsulated_pdf(result, result.key_images, PAGE)
        found[source] = result, document, write_object(document, folder / source)
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_written_and_read_again_it_is_the_same(written, source):
    result, document, path = written[source]
    again = dcmread(path)
    assert content_digest(again) == content_digest(document)
    assert again.EncapsulatedDocument[: again.EncapsulatedDocumentLength] == PAGE
    assert again.PatientName == result.images[0].source.PatientName
    assert set_findings([again], [image.source for image in result.images]) == []


@pytest.mark.dciodvfy
@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_finds_no_error(written, source):
    assert dciodvfy_errors(written[source][2]) == []


def test_what_the_object_says(written):
    result, document, _ = written["ct"]
    assert (document.Modality, document.SeriesNumber) == ("DOC", 9000 + KINDS.index("pdf"))
    assert (document.MIMETypeOfEncapsulatedDocument, document.ConversionType) == ("application/pdf", "WSD")
    assert document.DocumentTitle == "Research use only - not for diagnosis. COVID, probability 0.932"
    assert document.VerificationFlag == "UNVERIFIED"
    sources = [item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence]
    assert sources == [image.source.SOPInstanceUID for image in result.key_images]


def test_frames_of_one_instance_are_one_source(written):
    result, document, _ = written["enhanced_ct"]
    assert len(result.key_images) == 2
    assert len(document.SourceInstanceSequence) == 1


@pytest.mark.parametrize(
    ("first", "second", "burned", "recognizable"),
    [
        ({}, {}, "NO", None),
        ({"BurnedInAnnotation": "NO"}, {"BurnedInAnnotation": "YES"}, "YES", None),
        ({"RecognizableVisualFeatures": "NO"}, {"RecognizableVisualFeatures": "NO"}, "NO", "NO"),
        ({"RecognizableVisualFeatures": "NO"}, {}, "NO", None),
        ({"RecognizableVisualFeatures": "NO"}, {"RecognizableVisualFeatures": "YES"}, "NO", "YES"),
    ],
)
def test_it_confesses_what_any_of_its_pictures_does(first, second, burned, recognizable):
    result = case_result([ct_slice(16, **first), ct_slice(16, instance_number=2, **second)])
    document = encapsulated_pdf(result, result.key_images, PAGE)
    assert document.BurnedInAnnotation == burned
    assert document.get("RecognizableVisualFeatures") == recognizable


@pytest.mark.parametrize("length", [0, 1])
def test_pages_of_odd_and_even_length_come_out_as_they_went_in(tmp_path: Path, length: int):
    page = PAGE + b"\n" * length
    result = case_result([radiograph(16)])
    path = write_object(encapsulated_pdf(result, result.key_images, page), tmp_path)
    again = dcmread(path)
    assert len(again.EncapsulatedDocument) % 2 == 0
    assert again.EncapsulatedDocument[: again.EncapsulatedDocumentLength] == page
    if shutil.which("dcm2pdf") is None:
        pytest.skip("dcm2pdf (dcmtk) is not installed")
    subprocess.run(["dcm2pdf", str(path), str(tmp_path / "out.pdf")], check=True, capture_output=True)
    assert (tmp_path / "out.pdf").read_bytes().rstrip(b"\0") == page


def test_the_same_input_makes_the_same_object_and_another_model_another():
    result = case_result([ct_slice(16)])
    later = case_result([ct_slice(16)], created=datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC))
    other = case_result([ct_slice(16)], algorithm=Algorithm("radloop", "0.1.0", "ct_slices", "cd" * 32))
    first, again, another = (encapsulated_pdf(one, one.key_images, PAGE) for one in (result, later, other))
    assert content_digest(first) == content_digest(again)
    assert first.SOPInstanceUID != another.SOPInstanceUID


def test_a_real_page_is_carried_whole(tmp_path: Path):
    result = case_result([ct_slice(32)])
    page = case_page(result, result.key_images)
    path = write_object(encapsulated_pdf(result, result.key_images, page), tmp_path)
    again = dcmread(path)
    assert again.EncapsulatedDocument[: again.EncapsulatedDocumentLength] == page


@pytest.mark.parametrize("page", [b"", b"PNG", PAGE[:20], PAGE[1:]])
def test_what_is_no_pdf_is_refused(page: bytes):
    result = case_result([ct_slice(16)])
    with pytest.raises(ObjectError, match="whole PDF"):
        encapsulated_pdf(result, result.key_images, page)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_image_that_nothing_can_refer_to_is_refused():
    source = ct_slice(16, SOPInstanceUID="1.02")
    assert "SOPInstanceUID" in why_not(source)
    assert why_not(ct_slice(16, SeriesInstanceUID="")) == ""
    result = case_result([source])
    with pytest.raises(ObjectError, match="SOPInstanceUID"):
        encapsulated_pdf(result, result.key_images, PAGE)
