"""Secondary Captures of sources of every kind: written, read again, compared, and put before dciodvfy and dcmtk."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from pipeline.dicom.compression import SYNTAXES
from pipeline.dicom.derived import Algorithm, content_digest, write_object
from pipeline.dicom.phantom import ct_slice, radiograph, save
from pipeline.dicom.secondary_capture import read_picture, secondary_capture, why_not
from pipeline.dicom.source import TYPE_2, read_source
from pipeline.errors import ObjectError, Rejected
from pipeline.files import file_digest
from pipeline.profile_settings import Profile, Texts
from tests.case_results import case_result

ALGORITHM = Algorithm("radloop", "0.1.0", "ct_slices", "ab" * 32)
MORNING = datetime.datetime(2026, 3, 1, 8, 30)
DATA = os.environ.get("RADLOOP_DATA", "")
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""No images of anatomy, so no sources; besides, Debian's dciodvfy does not know the second as a multi-frame class."""

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, about the invalid values that are the point here


def picture(rows: int = 37, columns: int = 41) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def capture(source: Dataset, frame: int = 0, pixels: np.ndarray | None = None, **changes: Any) -> Dataset:
    """The Secondary Capture of one frame, with a picture of noise; `changes` of the case's result."""
    fields = {"algorithm": ALGORITHM, "content": "d", "said": "COVID 0.93", "created": MORNING, **changes}
    result = case_result([source], **fields)
    image = result.images[min(max(frame, 0), len(result.images) - 1)]
    made = replace(image, frame=frame, picture_of=lambda: picture() if pixels is None else pixels)
    return secondary_capture(result, made)


def without_type_2() -> Dataset:
    dataset = ct_slice(16)
    for keyword in (*TYPE_2, "Manufacturer", "BodyPartExamined"):
        if keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def enhanced() -> Dataset:
    """A multi-frame source with its geometry in functional groups."""
    dataset = ct_slice(16, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=2)
    dataset.PixelData = dataset.PixelData * 2
    for keyword in ("ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient"):
        delattr(dataset, keyword)
    shared, first, second = Dataset(), Dataset(), Dataset()
    measures, flat, upright = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.6]
    flat.ImageOrientationPatient, upright.ImageOrientationPatient = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
    shared.PixelMeasuresSequence = [measures]
    first.PlaneOrientationSequence, second.PlaneOrientationSequence = [flat], [upright]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], [first, second]
    return dataset


def deidentified() -> Dataset:
    method = Dataset()
    method.CodeValue, method.CodingSchemeDesignator = "113100", "DCM"
    method.CodeMeaning = "Basic Application Confidentiality Profile"
    return ct_slice(16, PatientIdentityRemoved="YES", DeidentificationMethodCodeSequence=[method])


def issued() -> Dataset:
    issuer = Dataset()
    issuer.LocalNamespaceEntityID, issuer.UniversalEntityID, issuer.UniversalEntityIDType = "H", "1.2.3", "ISO"
    return ct_slice(16, IssuerOfPatientIDQualifiersSequence=[issuer], IssuerOfPatientID="H")


def invalid_values() -> Dataset:
    return ct_slice(
        16,
        PatientSex="X",
        PatientAge="62",
        PatientWeight="70.12345678901234567",
        StudyDate="1997.04.24",
        StudyTime="14:04:38",
        PatientBirthDate="19700231",
        AccessionNumber="A" * 20,
        StudyDescription="D" * 70,
        BodyPartExamined="whole body!",
        Manufacturer="M" * 80,
        PixelSpacing=["0", "0"],
    )


def named(name: str, character_set: str | list[str]) -> Callable[[], Dataset]:
    return lambda: ct_slice(16, SpecificCharacterSet=character_set, PatientName=name, ReferringPhysicianName=name)


NAMES = {
    "latin 1": named("Buc^Jérôme", "ISO_IR 100"),
    "greek": named("Διονυσιος", "ISO_IR 126"),
    "cyrillic": named("Люксембург", "ISO_IR 144"),
    "japanese": named("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
    "japanese kana": named("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", ["ISO 2022 IR 13", "ISO 2022 IR 87"]),
    "korean": named("Hong^Gildong=洪^吉洞=홍^길동", ["", "ISO 2022 IR 149"]),
    "chinese": named("Wang^XiaoDong=王^小东", "GB18030"),
    "utf-8": named("Wang^XiaoDong=王^小東", "ISO_IR 192"),
}
KINDS: dict[str, Callable[[], Dataset]] = {
    "ct": lambda: ct_slice(16),
    "cr monochrome1": lambda: radiograph(16),
    "dx": lambda: radiograph(16, modality="DX", photometric="MONOCHROME2"),
    "knee": lambda: radiograph(16, BodyPartExamined="KNEE", Laterality="L"),
    "knee of a side unknown": lambda: radiograph(16, BodyPartExamined="KNEE"),
    "hand by image laterality": lambda: radiograph(16, BodyPartExamined="HAND", ImageLaterality="R"),
    "no type 2": without_type_2,
    "multi-frame": enhanced,
    "lossy": lambda: ct_slice(
        16, LossyImageCompression="01", LossyImageCompressionRatio=12, LossyImageCompressionMethod="ISO_10918_1"
    ),
    "burned in": lambda: ct_slice(16, BurnedInAnnotation="YES", RecognizableVisualFeatures="NO"),
    "time zone": lambda: ct_slice(16, TimezoneOffsetFromUTC="+0100"),
    "not square": lambda: radiograph(16, PixelAspectRatio=[2, 1]),
    "calibrated": lambda: radiograph(
        16,
        PixelSpacing=[0.1, 0.1],
        PixelSpacingCalibrationType="GEOMETRY",
        PixelSpacingCalibrationDescription="by distance",
    ),
    "animal": lambda: radiograph(16, AnatomicalOrientationType="QUADRUPED", PatientOrientation=["CR", "D"]),
    "invalid values": invalid_values,
    "deidentified": deidentified,
    "issued": issued,
    **NAMES,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each kind the source's file and the object's."""
    folder = tmp_path_factory.mktemp("captures")
    result = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        with disable_value_validation():
            path = save(make(), folder / "sources" / str(number))
        dataset = capture(read_source(path), content=file_digest(path))
        result[kind] = path, write_object(dataset, folder / str(number))
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again_it_is_the_same(files: dict[str, tuple[Path, Path]], kind: str) -> None:
    source, written = read_source(files[kind][0]), dcmread(files[kind][1])
    made = capture(source, content=file_digest(files[kind][0]))
    assert np.array_equal(written.pixel_array, picture())
    for element in made:
        assert written[element.tag].value == element.value, element.keyword
    assert len(written) == len(made)
    assert written.PatientName == source.PatientName
    assert written.StudyInstanceUID == source.StudyInstanceUID
    assert written.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


@pytest.mark.dciodvfy
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(files: dict[str, tuple[Path, Path]], kind: str) -> None:
    assert dciodvfy_errors(files[kind][1]) == []


def dciodvfy_errors(path: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    result = subprocess.run(
        ["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    errors = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]
    return errors or ([f"exit status {result.returncode}"] if result.returncode else [])


@pytest.mark.parametrize("kind", NAMES)
def test_names_keep_their_bytes(files: dict[str, tuple[Path, Path]], kind: str) -> None:
    def name(path: Path) -> bytes:
        element = dcmread(path).get_item(0x00100010)
        assert isinstance(element, RawDataElement)
        assert element.value is not None
        return element.value.strip()

    source, written = files[kind]
    assert name(written) == name(source)
    assert dcmread(written).SpecificCharacterSet == dcmread(source).SpecificCharacterSet


def test_dcmtk_renders_the_pixels(files: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcm2pnm (dcmtk) is not installed")
    subprocess.run(["dcm2pnm", "+on", str(files["ct"][1]), str(tmp_path / "a.png")], check=True, capture_output=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), picture())


def test_what_the_object_says(files: dict[str, tuple[Path, Path]]) -> None:
    written = dcmread(files["ct"][1])
    assert written.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (written.Modality, written.ConversionType, written.BurnedInAnnotation) == ("OT", "WSD", "NO")
    assert list(written.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert (written.SeriesNumber, written.InstanceNumber) == (9000, 1)
    assert written.SeriesDescription == "radloop ct_slices heatmap (research use only)"
    assert written.ImageComments == "Research use only - not for diagnosis. COVID 0.93."
    for part in ("ct_slices", "ab" * 32, "cd" * 32, "0.1.0", "Heatmap of the classifier's evidence"):
        assert part in written.DerivationDescription
    assert list(written.PatientOrientation) == ["L", "P"]
    assert list(written.PixelSpacing) == [22.5, 22.5]
    assert "LossyImageCompression" not in written


def test_marks_of_the_source_stay(files: dict[str, tuple[Path, Path]]) -> None:
    assert dcmread(files["burned in"][1]).BurnedInAnnotation == "YES"
    lossy = dcmread(files["lossy"][1])
    assert (lossy.LossyImageCompression, lossy.LossyImageCompressionRatio) == ("01", 12)
    assert list(dcmread(files["not square"][1]).PixelAspectRatio) == [2, 1]


def test_sides_of_the_body(files: dict[str, tuple[Path, Path]]) -> None:
    assert dcmread(files["knee"][1]).Laterality == "L"
    assert dcmread(files["knee of a side unknown"][1]).Laterality == ""
    assert "Laterality" not in dcmread(files["ct"][1])
    assert "Laterality" not in dcmread(files["hand by image laterality"][1])


def test_invalid_values_are_left_out_and_ids_stay(files: dict[str, tuple[Path, Path]]) -> None:
    written = dcmread(files["invalid values"][1])
    assert (written.PatientSex, written.AccessionNumber, written.StudyDate) == ("", "", "19970424")
    assert "PixelSpacing" not in written
    assert written.PatientID == ct_slice(16).PatientID


def test_a_frame_has_its_own_geometry_and_its_own_object() -> None:
    first, second = capture(enhanced(), 0), capture(enhanced(), 1)
    assert list(first.PatientOrientation) == ["L", "P"]
    assert list(second.PatientOrientation) == ["P", "F"]
    assert list(second.PixelSpacing) == [0.5, 0.6]
    assert second.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert "Frame 2 of 2." in second.DerivationDescription
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID


def test_a_tilted_gantry_shows_in_the_orientation() -> None:
    tilted = ct_slice(16, orientation=(1.0, 0.0, 0.0, 0.0, 0.94, -0.34))
    assert list(capture(tilted).PatientOrientation) == ["L", "PF"]
    nearly_flat = ct_slice(16, orientation=(0.9999, 0.012, 0.0, -0.012, 0.9999, 0.0))
    assert list(capture(nearly_flat).PatientOrientation) == ["L", "P"]


def test_the_same_input_makes_the_same_instance_and_other_content_another() -> None:
    again = capture(ct_slice(16), created=datetime.datetime(2027, 1, 1))
    assert capture(ct_slice(16)).SOPInstanceUID == again.SOPInstanceUID
    assert capture(ct_slice(16), content="e").SOPInstanceUID != again.SOPInstanceUID
    assert capture(ct_slice(16), configuration_digest="e").SeriesInstanceUID != again.SeriesInstanceUID


def test_the_source_is_not_changed() -> None:
    source = ct_slice(16, PatientSex="X")
    before = source.to_json()
    capture(source)
    assert source.to_json() == before


def test_texts_fit_their_attributes() -> None:
    algorithm = replace(ALGORITHM, model_name="m" * 80)
    dataset = capture(ct_slice(16), algorithm=algorithm, method="d" * 2000, said="c\\d " * 5000)
    assert len(dataset.SeriesDescription) == 64
    assert dataset.SeriesDescription.endswith("... heatmap (research use only)")
    assert len(dataset.DerivationDescription) == 1024
    assert len(dataset.ImageComments) == 10240


def test_the_profile_chooses_number_description_words_and_zone() -> None:
    profile = Profile(
        series_number=700,
        series_descriptions={"sc": "KI {model} – nur Forschung"},
        timezone="+0100",
        texts=Texts(research_only="Nur für die Forschung"),
    )
    aware = datetime.datetime(2026, 3, 1, 8, 30, tzinfo=datetime.UTC)
    dataset = capture(ct_slice(16), profile=profile, created=aware)
    assert dataset.SeriesNumber == 700
    assert dataset.SeriesDescription == "KI ct_slices ? nur Forschung"
    assert dataset.ImageComments == "Research use only - not for diagnosis. Nur fur die Forschung. COVID 0.93."
    assert (dataset.TimezoneOffsetFromUTC, dataset.ContentTime) == ("+0100", "093000.000000")
    numbered = capture(ct_slice(16), profile=Profile(series_numbers={"sc": 12}))
    assert numbered.SeriesNumber == 12


@pytest.mark.parametrize(("number", "expected"), [("7", 7), (None, 1), ("", 1), ("2147483647", 2147483647), ("0", 1)])
def test_pictures_are_numbered_like_their_sources(number: str | None, expected: int) -> None:
    assert capture(ct_slice(16, InstanceNumber=number)).InstanceNumber == expected


def test_other_parts_of_the_body_are_other_series() -> None:
    study = {"study_instance_uid": "1.2.3"}
    chest, again = capture(radiograph(16, **study)), capture(radiograph(16, series_number=2, **study))
    left = capture(radiograph(16, BodyPartExamined="KNEE", Laterality="L", **study))
    right = capture(radiograph(16, BodyPartExamined="KNEE", Laterality="R", **study))
    assert chest.SeriesInstanceUID == again.SeriesInstanceUID
    assert len({one.SeriesInstanceUID for one in (chest, left, right)}) == 3


@pytest.mark.parametrize("how", SYNTAXES)
def test_compressed_pixels_are_the_same_pixels(how: Any, tmp_path: Path) -> None:
    dataset = capture(ct_slice(16), profile=Profile(compression=how))
    path = write_object(dataset, tmp_path)
    written = dcmread(path)
    assert written.file_meta.TransferSyntaxUID == SYNTAXES[how]
    assert written.PhotometricInterpretation == ("YBR_RCT" if how == "jpeg2000" else "RGB")
    assert np.array_equal(read_picture(path), picture())
    assert "LossyImageCompression" not in written
    assert content_digest(written) == content_digest(dataset)
    assert dciodvfy_errors(path) == []


def test_what_has_no_valid_uid_cannot_be_referred_to() -> None:
    assert why_not(ct_slice(16)) == ""
    nameless = ct_slice(16)
    nameless.SOPInstanceUID = "1.02"
    assert "SOPInstanceUID" in why_not(nameless)
    with pytest.raises(ObjectError, match="SOPInstanceUID"):
        capture(nameless)


@pytest.mark.parametrize("identity", ["P" * 80, ["P", "PPP"], "P\x07PP"])
def test_a_patient_id_that_no_pacs_can_file_is_refused(identity: object) -> None:
    with pytest.raises(ObjectError, match="PatientID") as caught:
        capture(ct_slice(16, PatientID=identity))
    assert "PPP" not in str(caught.value)


@pytest.mark.parametrize("uid", ["../..", "1.02.3", "", "1.2.3." * 12 + "1"])
def test_a_study_that_is_none_is_refused(uid: str) -> None:
    with pytest.raises(ObjectError, match="StudyInstanceUID"):
        capture(ct_slice(16, study_instance_uid="1.2.3", StudyInstanceUID=uid))


@pytest.mark.parametrize(
    "arguments",
    [
        {"pixels": np.zeros((4, 4), np.uint8)},
        {"pixels": np.zeros((4, 4, 3), np.float32)},
        {"pixels": np.zeros((0, 4, 3), np.uint8)},
        {"pixels": np.zeros((1, 70000, 3), np.uint8)},
        {"frame": 1},
        {"frame": -1},
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ObjectError, match="expected"):
        capture(ct_slice(16), **arguments)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA, reason="RADLOOP_DATA names no real data")
@pytest.mark.dciodvfy
def test_objects_of_every_real_image_are_valid(tmp_path: Path) -> None:
    made = 0
    for path in sorted((Path(DATA) / "dicom").rglob("*")):
        source = real_source(path)
        if source is None:
            continue
        written = write_object(capture(source, content=file_digest(path)), tmp_path)
        assert dciodvfy_errors(written) == [], path
        again = dcmread(written)
        assert np.array_equal(again.pixel_array, picture())
        assert again.PatientName == source.PatientName
        made += 1
    assert made > 150


def real_source(path: Path) -> Dataset | None:
    """An image that could be indexed, else None."""
    if not path.is_file():
        return None
    try:
        source = read_source(path)
    except Rejected:
        return None
    needed = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows")
    return source if all(source.get(name) for name in needed) and source.SOPClassUID not in SEGMENTATIONS else None
