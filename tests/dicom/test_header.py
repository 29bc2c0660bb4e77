"""Headers of good files, and the reason for each kind of bad one. Bad files are made here, byte by byte where needed."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from pipeline.columns import ATTRIBUTES, HEADER_COLUMNS, snake_case
from pipeline.dicom import bounded
from pipeline.dicom.codecs import decoders
from pipeline.dicom.directory import listed_files
from pipeline.dicom.header import is_dicom, read_header, read_header_by_pydicom, uid_name
from pipeline.dicom.header_values import ENCAPSULATED_SYNTAXES, NATIVE_SYNTAXES
from pipeline.dicom.phantom_objects import ct_slice, radiograph, save, structured_report
from pipeline.errors import Rejected, RejectReason
from pipeline.identity import IdentityKey

KEY = IdentityKey(b"a key for tests only")
SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]


def reason_for(path: Path) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read_header(path, KEY)
    return caught.value


def written(path: Path, dataset: Dataset, syntax: str = uid.ExplicitVRLittleEndian, **meta: Any) -> Path:
    """The dataset as it is, whatever it promises; `save` would encode its pixels."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    for keyword, value in meta.items():
        setattr(dataset.file_meta, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def encapsulated(path: Path, frames: list[bytes], syntax: str = uid.JPEG2000Lossless, **attributes: Any) -> Path:
    dataset = ct_slice(**attributes)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(path, dataset, syntax)


def raw_file(path: Path, data_set: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> Path:
    """A file with a minimal meta group and these bytes as its data set."""
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + data_set)
    return path


def data_set(dataset: Dataset, implicit: bool = False, little: bool = True) -> bytes:
    """Without preamble and meta information."""
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return buffer.getvalue()


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_a_good_header_in_each_syntax(tmp_path: Path, syntax: uid.UID) -> None:
    dataset = ct_slice(32, study_instance_uid="1.2.3", StudyDate="20200229", Manufacturer="Maker ")
    row = read_header(save(dataset, tmp_path / "x", syntax), KEY)
    assert set(row) == {*HEADER_COLUMNS, "frames", "rows", "columns"}
    assert (row["frames"], row["rows"], row["columns"]) == (1, 32, 32)
    assert row["transfer_syntax_uid"] == syntax
    assert row["study_instance_uid"] == "1.2.3"
    assert row["study_date"] == "20200229"
    assert row["manufacturer"] == "Maker"
    assert row["image_type"] == "ORIGINAL\\PRIMARY\\AXIAL"
    assert (row["rescale_slope"], row["rescale_intercept"]) == (1.0, -1024.0)
    assert (row["bits_allocated"], row["bits_stored"], row["samples_per_pixel"]) == (16, 12, 1)
    assert [float(part) for part in row["image_orientation_patient"].split("\\")] == [1, 0, 0, 0, 1, 0]
    assert row["presentation_intent_type"] is None


def test_columns_are_the_keywords_in_snake_case() -> None:
    assert snake_case("SOPInstanceUID") == "sop_instance_uid"
    assert snake_case("KVP") == "kvp"
    assert {"sop_class_uid", "gantry_detector_tilt", "image_orientation_patient"} <= set(HEADER_COLUMNS)
    clear = {"PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "IssuerOfPatientID", "OtherPatientIDs"}
    assert not clear & set(ATTRIBUTES)


def test_syntaxes_are_those_that_the_codecs_decode() -> None:
    decoded = {row[0] for row in decoders() if row[3]}
    assert decoded == ENCAPSULATED_SYNTAXES | NATIVE_SYNTAXES


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("group_length", [False, True])
def test_without_preamble(tmp_path: Path, syntax: uid.UID, group_length: bool) -> None:
    dataset = ct_slice(16)
    if group_length:
        dataset.add_new(0x00080000, "UL", 100)
    path = tmp_path / "x"
    path.write_bytes(data_set(dataset, syntax.is_implicit_VR, syntax.is_little_endian))
    assert is_dicom(path.read_bytes()[:132])
    assert read_header(path, KEY)["transfer_syntax_uid"] == syntax


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(500), b"DICM" * 9, b"\x08\0"]
)
def test_other_files_are_no_dicom(content: bytes) -> None:
    assert not is_dicom(content)


@pytest.mark.parametrize("seed", range(5))
def test_noise_after_the_prefix_is_malformed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(seed).bytes(5000))
    assert reason_for(path).reason == RejectReason.MALFORMED


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_cut_anywhere_is_never_a_row(tmp_path: Path, syntax: uid.UID) -> None:
    whole = save(ct_slice(32), tmp_path / "whole", syntax).read_bytes()
    path = tmp_path / "cut"
    tag = b"\x7f\xe0\0\x10" if syntax == uid.ExplicitVRBigEndian else b"\xe0\x7f\x10\0"
    deflated = syntax == uid.DeflatedExplicitVRLittleEndian
    header = len(whole) - 2 if deflated else whole.rindex(tag) + 12
    for end in [*range(140, header), *range(header, len(whole) - 1, 97), len(whole) - 2]:
        path.write_bytes(whole[:end])
        reason = reason_for(path).reason
        # A cut between two elements leaves a whole data set without pixels; before the first ones, hardly DICOM.
        allowed = {RejectReason.TRUNCATED, RejectReason.NO_PIXELS} if end < header else {RejectReason.TRUNCATED}
        assert reason in (allowed | {RejectReason.MALFORMED} if end < 400 else allowed), end


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_a_missing_uid_is_named(tmp_path: Path, keyword: str) -> None:
    dataset = ct_slice(16)
    path = save(dataset, tmp_path / "x")
    spoiled = dcmread(path)
    delattr(spoiled, keyword)
    spoiled.save_as(path)
    rejected = reason_for(path)
    assert (rejected.reason, rejected.detail) == (RejectReason.MISSING_UID, keyword)


def test_no_pixels_says_what_it_is(tmp_path: Path) -> None:
    rejected = reason_for(save(structured_report(), tmp_path / "x"))
    assert rejected.reason == RejectReason.NO_PIXELS
    assert "SR" in rejected.detail


def test_text_in_the_place_of_a_uid_is_not_passed_on() -> None:
    assert uid_name("Doe^Jane") == "no valid UID"
    assert uid_name("") == "no UID"
    assert uid_name(uid.CTImageStorage) == "CT Image Storage"


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 17}, RejectReason.SIZE_MISMATCH),
        ({"Rows": 15}, RejectReason.SIZE_MISMATCH),
        ({"Columns": 65535, "Rows": 65535}, RejectReason.SIZE_MISMATCH),
        ({"NumberOfFrames": 2}, RejectReason.SIZE_MISMATCH),
        ({"SamplesPerPixel": 3}, RejectReason.SIZE_MISMATCH),
        ({"Rows": 0}, RejectReason.MALFORMED),
        ({"Columns": None}, RejectReason.MALFORMED),
        ({"BitsAllocated": None}, RejectReason.MALFORMED),
        ({"NumberOfFrames": -1}, RejectReason.MALFORMED),
        ({"BitsAllocated": 12}, RejectReason.SIZE_MISMATCH),
        ({"BitsAllocated": 40}, RejectReason.UNSUPPORTED_PIXELS),
        ({"PixelData": b""}, RejectReason.SIZE_MISMATCH),
        ({"PixelData": bytes(16 * 16 * 2 + 4098)}, RejectReason.SIZE_MISMATCH),
        ({"PixelData": bytes(16 * 16 * 2) + b"\0\1\0\0"}, RejectReason.SIZE_MISMATCH),
        ({"PixelData": bytes(16 * 16 * 2) * 2}, RejectReason.SIZE_MISMATCH),
    ],
    ids=str,
)
def test_native_sizes_that_lie(tmp_path: Path, attributes: dict[str, Any], reason: RejectReason) -> None:
    assert reason_for(written(tmp_path / "x", ct_slice(16, **attributes))).reason == reason


@pytest.mark.parametrize(
    "attributes",
    [
        {"NumberOfFrames": 0},
        {"NumberOfFrames": ""},
        {"PixelData": bytes(16 * 16 * 2 + 400)},
        {"Rows": 5, "Columns": 3, "BitsAllocated": 8, "PixelData": bytes(16)},
        {"BitsAllocated": 1, "Rows": 5, "Columns": 5, "NumberOfFrames": 3, "PixelData": bytes(10)},
        {
            "PhotometricInterpretation": "YBR_FULL_422",
            "SamplesPerPixel": 3,
            "BitsAllocated": 8,
            "PixelData": bytes(16 * 16 * 2),
        },
        {"NumberOfFrames": 2, "PixelData": bytes(16 * 16 * 2 * 2)},
    ],
    ids=lambda attributes: ",".join(attributes),
)
def test_native_sizes_that_hold(tmp_path: Path, attributes: dict[str, Any]) -> None:
    assert read_header(written(tmp_path / "x", ct_slice(16, **attributes)), KEY)["sop_instance_uid"]


@pytest.mark.parametrize(("keyword", "bits"), [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_float_pixels_count_as_pixels(tmp_path: Path, keyword: str, bits: int) -> None:
    dataset = ct_slice(16, PixelData=None, BitsAllocated=None, BitsStored=None)
    setattr(dataset, keyword, bytes(16 * 16 * bits // 8))
    assert read_header(written(tmp_path / "x", dataset), KEY)["bits_allocated"] == bits


def test_a_pixel_length_of_4_gb_costs_no_memory(tmp_path: Path) -> None:
    path = save(ct_slice(16), tmp_path / "x")
    content = bytearray(path.read_bytes())
    place = content.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8
    content[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(content)
    assert reason_for(path).reason == RejectReason.SIZE_MISMATCH
    content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert reason_for(path).reason == RejectReason.MALFORMED


def test_encapsulated_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert read_header(encapsulated(path, [b"ab"] * 3, NumberOfFrames=3), KEY)["frames"] == 3
    rejected = reason_for(encapsulated(path, [b"ab"] * 3, NumberOfFrames=4))
    assert rejected.reason == RejectReason.SIZE_MISMATCH
    huge = encapsulated(path, [b"ab"], uid.RLELossless, Rows=65535, Columns=65535)
    assert reason_for(huge).reason == RejectReason.TOO_LARGE


def test_encapsulated_items_that_are_none(tmp_path: Path) -> None:
    path = encapsulated(tmp_path / "x", [b"ab" * 10])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\xfe\xff\x00\xe0\x14\0\0\0", b"\xfe\xff\x00\xe0\x12\0\0\0"))
    assert reason_for(path).reason == RejectReason.MALFORMED
    native = raw_file(tmp_path / "y", data_set(ct_slice(16)), uid.JPEG2000Lossless.encode())
    assert reason_for(native).reason == RejectReason.MALFORMED


@pytest.mark.parametrize("syntax", [uid.MPEG2MPML, uid.HEVCMP51, "1.2.3.4.5", "1.2.840.113619.5.2"])
def test_syntaxes_that_no_image_has(tmp_path: Path, syntax: str) -> None:
    path = raw_file(tmp_path / "x", data_set(ct_slice(16)), syntax.encode())
    assert reason_for(path).reason == RejectReason.UNSUPPORTED_SYNTAX


def test_a_deflated_bomb_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "INFLATED_BYTES", 2**21)
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflate.compress(bytes(2**24)) + deflate.flush()
    path = raw_file(tmp_path / "x", bomb, uid.DeflatedExplicitVRLittleEndian.encode())
    assert reason_for(path).reason == RejectReason.TOO_LARGE


def test_deflated_noise(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", b"\xff" * 500, uid.DeflatedExplicitVRLittleEndian.encode())
    assert reason_for(path).reason == RejectReason.MALFORMED


def test_sequences_3000_deep(tmp_path: Path) -> None:
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    path = raw_file(tmp_path / "x", element(8, 0x16, b"UI", b"1.2\0") + opening * 3000)
    assert reason_for(path).reason == RejectReason.MALFORMED


def test_a_header_beyond_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "HEADER_BYTES", 1000)
    with pytest.raises(Rejected) as caught:
        read_header_by_pydicom(save(ct_slice(16), tmp_path / "x"), KEY)
    assert caught.value.reason == RejectReason.TOO_LARGE


def test_bad_values_are_none(tmp_path: Path) -> None:
    path = save(ct_slice(16), tmp_path / "x")
    content = path.read_bytes()
    spoiled = {
        (0x0028, 0x1053, b"DS"): b"one ",
        (0x0018, 0x0050, b"DS"): b"1\\2 ",
        (0x0020, 0x0013, b"IS"): b"1.5 ",
        (0x0020, 0x0032, b"DS"): b"1\\b\\",
        (0x0008, 0x0020, b"DA"): b"20230230",
        (0x0028, 0x0103, b"US"): b"\0\0\0\0",
        (0x0018, 0x0060, b"DS"): b"1e999 ",
    }
    for (group, number, vr), value in spoiled.items():
        start = content.index(struct.pack("<HH2s", group, number, vr))
        length = struct.unpack("<H", content[start + 6 : start + 8])[0]
        content = content[:start] + element(group, number, vr, value) + content[start + 8 + length :]
    path.write_bytes(content)
    row = read_header(path, KEY)
    columns = ["rescale_slope", "slice_thickness", "instance_number", "image_position_patient", "study_date"]
    assert [row[column] for column in [*columns, "pixel_representation", "kvp"]] == [None] * 7


def test_an_unknown_vr_costs_its_value_at_most(tmp_path: Path) -> None:
    path = save(ct_slice(16, Manufacturer="MAKER "), tmp_path / "x")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x08\0\x70\0LO", b"\x08\0\x70\0QQ"))
    assert read_header(path, KEY)["manufacturer"] in (None, "MAKER")


def test_character_sets(tmp_path: Path) -> None:
    for character_set, text in [
        ("ISO_IR 192", "Größe"),
        ("ISO_IR 100", "Größe"),
        (["", "ISO 2022 IR 87"], "肺"),
        ("GB18030", "肺部"),
    ]:
        dataset = ct_slice(16, SpecificCharacterSet=character_set, SeriesDescription=text)
        row = read_header(written(tmp_path / "x", dataset), KEY)
        assert row["series_description"] == text
    dataset = ct_slice(16, SpecificCharacterSet="ISO_IR 100", SeriesDescription="Größe")
    path = written(tmp_path / "x", dataset)
    content = path.read_bytes()
    for other in (b"ISO_IR 999", b"ISO_IR 192", b"idna      ", b"rot13     ", b"\xff" * 10):
        path.write_bytes(content.replace(b"ISO_IR 100", other))
        assert read_header(path, KEY)["series_description"].startswith("Gr")


def test_identity_leaves_as_hashes_only(tmp_path: Path) -> None:
    dataset = ct_slice(
        16, patient_id="MRN778899", PatientName="Quixote^Alonso", AccessionNumber="ACC4711", PatientBirthDate="19470929"
    )
    path = save(dataset, tmp_path / "x")
    row = read_header(path, KEY)
    assert row["patient_key"] == KEY.patient("MRN778899")
    assert row["accession_key"] == KEY.accession("ACC4711")
    shown = repr(row)
    assert not any(word in shown for word in ("MRN778899", "Quixote", "Alonso", "ACC4711", "19470929"))
    with_issuer = read_header(save(ct_slice(16, patient_id="MRN778899", IssuerOfPatientID="A"), path), KEY)
    assert with_issuer["patient_key"] == KEY.patient("MRN778899", "A") != row["patient_key"]
    nobody = read_header(save(ct_slice(16, PatientID="", AccessionNumber=""), path), KEY)
    assert nobody["patient_key"] is None
    assert nobody["accession_key"] is None


@pytest.mark.parametrize(
    ("shown", "holds"),
    [
        ("export/mrn778899/im1", True),
        ("export/QUIXOTE_A/im1", True),
        ("export/Ümlaut/im1", True),
        ("export/umlaut/im1", True),
        ("export/acc4711.dcm", True),
        ("li/im1", False),
        ("export/im1", False),
    ],
)
def test_paths_that_hold_identity(tmp_path: Path, shown: str, holds: bool) -> None:
    dataset = ct_slice(
        16,
        patient_id="MRN778899",
        SpecificCharacterSet="ISO_IR 192",
        PatientName="Quixote^Li^Ümlaut",
        AccessionNumber="ACC4711",
    )
    path = save(dataset, tmp_path / "x")
    assert read_header(path, KEY, shown_path=shown)["path_holds_identity"] is holds


@pytest.mark.parametrize(("shown", "holds"), [("a/17/im1", True), ("a/17.dcm", True), ("a/170/im1", False)])
def test_short_ids_count_as_whole_names(tmp_path: Path, shown: str, holds: bool) -> None:
    path = save(ct_slice(16, patient_id="17"), tmp_path / "x")
    assert read_header(path, KEY, shown_path=shown)["path_holds_identity"] is holds


def test_reading_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = ct_slice(16, SpecificCharacterSet="ISO_IR 100", PatientName="Größe^Secret")
    path = written(tmp_path / "x", dataset)
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_header(path, KEY)
        assert uid_name("1.2.840.10008.1.2.4.") == "1.2.840.10008.1.2.4."
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def directory(folder: Path, files: list[list[str]], syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    records = []
    for file in files:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedFileID = file
        records.append(record)
    dataset = Dataset()
    dataset.FileSetID = ""
    dataset.DirectoryRecordSequence = Sequence(records)
    meta = {"MediaStorageSOPClassUID": uid.MediaStorageDirectoryStorage, "MediaStorageSOPInstanceUID": "1.2"}
    return written(folder / "DICOMDIR", dataset, syntax, **meta)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_dicomdir_lists_its_files(tmp_path: Path, syntax: str) -> None:
    path = directory(tmp_path, [["A", "IM1"], ["A", "IM2"], ["IM3"], ["A", "IM1"]], syntax)
    assert listed_files(path) == ["A/IM1", "A/IM2", "IM3"]
    assert reason_for(path).reason == RejectReason.DICOMDIR


def test_other_files_are_no_dicomdir(tmp_path: Path) -> None:
    text = tmp_path / "t"
    text.write_text("no")
    for path in (save(ct_slice(16), tmp_path / "x"), save(radiograph(16), tmp_path / "y"), text):
        with pytest.raises(Rejected):
            listed_files(path)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    assert reason_for(tmp_path / "nothing").reason == RejectReason.CHANGED
    assert reason_for(tmp_path).reason in (RejectReason.NOT_REGULAR, RejectReason.UNREADABLE)
