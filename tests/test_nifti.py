"""pipeline.nifti: headers as nibabel reads them, and slices as the DICOM images would appear that they were made from."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from pipeline import nifti
from pipeline.dicom.phantom import ct_slice, save
from pipeline.dicom.pixels import read_pixels
from pipeline.errors import Rejected, RejectReason
from pipeline.nifti import read_nifti, read_nifti_header
from pipeline.prediction.predict import scope_of, scope_reason
from pipeline.prepared.dataset import image_files, read_image
from pipeline.profile_settings import load_profile
from transforms.intensity import PixelUnit

AXCODES = [
    "".join(code)
    for order in ("RAS", "RSA", "ARS", "ASR", "SRA", "SAR")
    for code in [
        [{"R": "RL", "A": "AP", "S": "SI"}[letter][flip >> place & 1] for place, letter in enumerate(order)]
        for flip in range(8)
    ]
]
"""The 48 ways to store a volume along the anatomical axes."""
TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"]
SMALL = np.arange(4 * 5 * 3).reshape(4, 5, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volume.nii"


def saved(
    path: Path, values: NDArray[Any], affine: Any = None, *, version: int = 1, order: str = "<", **fields: Any
) -> Path:
    """A NIfTI of `values`, by nibabel. `fields` are set in the header."""
    kind, header = [
        (nibabel.Nifti1Image, nibabel.Nifti1Header),
        (nibabel.Nifti2Image, nibabel.Nifti2Header),
    ][version - 1]
    image = kind(
        values.astype(values.dtype.newbyteorder(order)),
        np.eye(4) if affine is None else affine,
        header(endianness=order),
    )
    image.header.set_data_dtype(values.dtype)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def presented(image: Any, volume: int = 0) -> NDArray[Any]:
    """(slices, rows, columns) LPS+, by nibabel alone: what read_nifti is held to."""
    canonical = nibabel.as_closest_canonical(image)
    data = canonical.get_fdata().reshape(*canonical.shape[:3], -1, order="F")[..., volume]
    return data[::-1, ::-1].transpose(2, 1, 0)


def reason(call: Callable[[], object]) -> RejectReason:
    with pytest.raises(Rejected) as caught:
        call()
    return caught.value.reason


def header_of(path: Path) -> dict[str, Any]:
    header = read_nifti_header(path)
    assert header is not None
    return header


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four axial CT slices from feet to head, no two pixels alike; 6 rows by 8 columns."""
    folder = tmp_path_factory.mktemp("series")
    random = np.random.default_rng(0)
    return [
        save(
            ct_slice(
                hu=random.permutation(48).reshape(6, 8) * 20.0 - 500,
                spacing_mm=1.5,
                position_mm=(-6.0, -4.0, 2.5 * number),
                thickness_mm=2.5,
                instance_number=9 - number,
                window=(40.0, 400.0),
            ),
            folder / f"{number}",
        )
        for number in range(4)
    ]


@pytest.mark.parametrize("code", AXCODES)
def test_slices_are_those_of_the_dicom_series(series: list[Path], path: Path, code: str) -> None:
    """However a converter stores the volume: the same slices, from feet to head, in HU."""
    frames = [read_pixels(file) for file in series]
    volume = np.stack([frame.values for frame in frames], -1).swapaxes(0, 1)  # column, row, slice: L, P, S
    affine = np.diag([-1.5, -1.5, 2.5, 1.0])
    affine[:3, 3] = (6.0, 4.0, 0.0)
    image = nibabel.Nifti1Image(volume.astype(np.int16), affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(code)))
    nibabel.save(turned, path)
    header = header_of(path)
    assert (header["frames"], header["rows"], header["columns"]) == (4, 6, 8)
    assert (header["pixel_spacing"], header["slice_thickness"]) == ("1.5\\1.5", 2.5)
    assert header["image_orientation_patient"] == "1\\0\\0\\0\\1\\0"
    for number, expected in enumerate(frames):
        found = read_nifti(path, number, hounsfield=True)
        np.testing.assert_array_equal(found.values, expected.values)
        assert (found.unit, found.spacing_mm) == (expected.unit, expected.spacing_mm)
        assert (found.voi, found.inverted, found.padding) == ((), False, None)
    assert read_nifti(path, 0).unit is PixelUnit.MODALITY
    with pytest.raises(ValueError, match="frames 0 to 3"):
        read_nifti(path, 4)


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    made = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (place for place in range(3) if place != axis)
        turn = np.eye(3)
        turn[[one, other], [one, other]] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        made = made @ turn
    return made


def is_clear(affine: NDArray[np.float64]) -> bool:
    """Whether rounding cannot change to which anatomical axis a voxel axis is the closest."""
    noise = np.random.default_rng(0).normal(size=(8, 3, 3)) * 1e-3 * nibabel.affines.voxel_sizes(affine)
    nearby = [nibabel.affines.from_matvec(affine[:3, :3] + one) for one in noise]
    return all((io_orientation(one) == io_orientation(affine)).all() for one in nearby)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(2, 5)] * 3),
    angles=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
    zooms=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    mirrored=st.booleans(),
    shear=st.floats(-0.1, 0.1),
    code=st.sampled_from(["sform", "qform", "none"]),
    version=st.sampled_from([1, 2]),
    order=st.sampled_from("<>"),
    stored=st.sampled_from(TYPES),
    volumes=st.sampled_from([(), (1,), (2,), (2, 3)]),
    compressed=st.booleans(),
    frame=st.integers(0, 10**6),
)
def test_any_affine_is_presented_as_nibabel_has_it(
    tmp_path: Path, shape: Any, angles: Any, zooms: Any, mirrored: bool, shear: float, code: str, version: int, order: str,
    stored: str, volumes: Any, compressed: bool, frame: int,
) -> None:  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * zooms * [1, 1, -1 if mirrored else 1]
    if code == "sform":
        affine[0] += shear * affine[1]
    values = np.arange(np.prod(shape + volumes)).reshape(shape + volumes).astype(stored)
    file = saved(tmp_path / ("v.nii.gz" if compressed else "v.nii"), values, None, version=version, order=order)
    image = nibabel.load(file, mmap=False)  # it is written again
    image = type(image)(np.asarray(image.dataobj), None, image.header)
    if code == "sform":
        image.set_sform(affine, 1)
        image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 0)
    elif code == "qform":
        image.set_sform(None, 0)
        image.set_qform(affine, 1)
    else:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        image.header.set_zooms((*zooms, *[1.0] * len(volumes)))
    nibabel.save(image, file)
    found = nibabel.load(file, mmap=False)
    assume(is_clear(found.affine))
    header = header_of(file)
    expected = [presented(found, volume) for volume in range(int(np.prod(volumes)))]
    slices, rows, columns = expected[0].shape
    assert (header["frames"], header["rows"], header["columns"]) == (slices * len(expected), rows, columns)
    assert header["bits_allocated"] == 8 * np.dtype(stored).itemsize
    frame %= header["frames"]
    seen = read_nifti(file, frame)
    np.testing.assert_array_equal(seen.values, expected[frame // slices][frame % slices])
    lengths = nibabel.affines.voxel_sizes(nibabel.as_closest_canonical(found).affine)
    assert seen.spacing_mm == pytest.approx((lengths[1], lengths[0]), rel=1e-5)
    assert header["slice_thickness"] == pytest.approx(lengths[2], rel=1e-5)


def test_orientation_in_dicoms_words(path: Path) -> None:
    """An oblique axial slice: the cosines are those of its rows and columns in LPS (PS3.3 C.7.6.2.1.1)."""
    tilt = np.radians(20)
    columns, rows = np.array([1.0, 0, 0]), np.array([0, np.cos(tilt), -np.sin(tilt)])
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ np.stack([columns, rows, np.cross(columns, rows)], axis=1)
    found = header_of(saved(path, SMALL.astype(np.int16), affine))["image_orientation_patient"]
    np.testing.assert_allclose([float(part) for part in found.split("\\")], [*columns, *rows], atol=1e-6)
    affine[0, 1] = 0.2  # sheared
    assert header_of(saved(path, SMALL.astype(np.int16), affine))["image_orientation_patient"] is None


@pytest.mark.parametrize(
    ("code", "orientation"), [("PSR", "0\\1\\0\\0\\0\\-1"), ("LSA", "1\\0\\0\\0\\0\\-1"), ("LPS", "1\\0\\0\\0\\1\\0")]
)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_single_slice_is_shown_in_its_own_plane(path: Path, code: str, orientation: str, dimensions: int) -> None:
    """Sagittal: head up, the face to the left. Coronal: head up, the patient's right to the left."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(code):
        place = ["RL", "AP", "SI"].index(next(pair for pair in ("RL", "AP", "SI") if letter in pair))
        affine[place, axis] = 1.0 if letter in "RAS" else -1.0
    picture = np.arange(20.0).reshape(5, 4)  # 5 rows of 4, as it should appear
    stored = picture.T if code[1] == "P" else picture[::-1].T  # along S the rows begin at the feet
    saved(path, stored if dimensions == 2 else stored[..., None], affine)
    header = header_of(path)
    assert (header["frames"], header["rows"], header["columns"]) == (1, 5, 4)
    assert header["image_orientation_patient"] == orientation
    np.testing.assert_array_equal(read_nifti(path).values, picture)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("slope", "intercept", "scale"),
    [(2.0, -1024.0, (2, -1024)), (0.0, 7.0, (1, 0)), (np.nan, 0.0, (1, 0)), (0.25, 0.5, (0.25, 0.5))],
)
def test_slope_and_intercept(
    path: Path, version: int, slope: float, intercept: float, scale: tuple[float, float]
) -> None:
    saved(path, SMALL.astype(np.int16), version=version)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f" if version == 1 else "<2d", content, 112 if version == 1 else 176, slope, intercept)
    path.write_bytes(bytes(content))
    expected = SMALL[::-1, ::-1, 1].T * scale[0] + scale[1]
    np.testing.assert_array_equal(read_nifti(path, 1).values, expected)


def test_units_of_space(path: Path) -> None:
    saved(path, SMALL.astype(np.int16), np.diag([500.0, 700.0, 900.0, 1.0]), xyzt_units=3 | 8)  # micrometres, seconds
    assert header_of(path)["pixel_spacing"] == "0.7\\0.5"
    assert header_of(path)["slice_thickness"] == 0.9


def test_what_is_no_number_is_padding(path: Path) -> None:
    values = SMALL.astype(np.float64)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, 1e300
    pixels = read_nifti(saved(path, values), 0)
    assert pixels.padding is not None
    assert pixels.padding.sum() == 3
    assert np.isfinite(pixels.values).all()


def test_only_the_slice_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(path, np.zeros((64, 64, 50), np.int16))
    reads = []
    plain = nifti.open_regular

    class Counting:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, count: int = -1) -> bytes:
            data: bytes = self.file.read(count)
            reads.append(len(data))
            return data

        def readinto(self, buffer: Any) -> int:
            reads.append(len(buffer))
            return int(self.file.readinto(buffer))

    class Opened:
        def __init__(self, path: Path) -> None:
            self.opened = plain(path)

        def __enter__(self) -> Any:
            return Counting(self.opened.__enter__())

        def __exit__(self, *arguments: Any) -> None:
            self.opened.__exit__(*arguments)

    monkeypatch.setattr(nifti, "open_regular", Opened)
    read_nifti(path, 20)
    assert 64 * 64 * 2 <= sum(reads) < 2 * 64 * 64 * 2


def test_a_compressed_volume_is_inflated_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "v.nii.gz", SMALL.astype(np.int16))
    nifti._volume.cache_clear()
    for frame in (0, 1, 2, 0):
        np.testing.assert_array_equal(read_nifti(path, frame).values, SMALL[::-1, ::-1, frame].T)
    assert nifti._volume.cache_info().misses == 1


def test_a_volume_in_an_archive(tmp_path: Path) -> None:
    plain = saved(tmp_path / "v.nii", SMALL.astype(np.int16))
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as made:
        made.write(plain, "a/v.nii")
        made.writestr("a/v.nii.gz", gzip.compress(plain.read_bytes()))
    for name in ("a/v.nii", "a/v.nii.gz"):
        assert header_of(tmp_path / "export.zip" / name) == header_of(plain)
        found = read_nifti(tmp_path / "export.zip" / name, 2).values
        np.testing.assert_array_equal(found, read_nifti(plain, 2).values)


def test_streams_of_several_members_and_with_something_behind(tmp_path: Path, path: Path) -> None:
    content = saved(path, SMALL.astype(np.int16)).read_bytes()
    for stream in (gzip.compress(content[:400]) + gzip.compress(content[400:]), gzip.compress(content + b"more")):
        (tmp_path / "v.nii.gz").write_bytes(stream)
        assert header_of(tmp_path / "v.nii.gz") == header_of(path)
        np.testing.assert_array_equal(read_nifti(tmp_path / "v.nii.gz", 1).values, read_nifti(path, 1).values)


@pytest.mark.parametrize(
    "content",
    [
        b"x" * 600,
        b"x",
        gzip.compress(b"a text", mtime=0),
        b"\x1f\x8b and no more",
        b"\x1f\x8b\x08\0" + bytes(600),
        bytes(600),
    ],
)
def test_what_is_no_nifti(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_nifti_header(path) is None
    assert reason(lambda: read_nifti(path)) is RejectReason.NOT_AN_IMAGE


def test_a_header_of_a_pair(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(SMALL.astype(np.int16), np.eye(4)), tmp_path / "v.img")
    nibabel.save(nibabel.Nifti2Pair(SMALL.astype(np.int16), np.eye(4)), tmp_path / "w.img")
    for name in ("v.hdr", "w.hdr"):
        assert reason(lambda name=name: read_nifti_header(tmp_path / name)) is RejectReason.NOT_AN_IMAGE


def break_header(form: str, offset: int, *values: Any) -> Callable[[bytes], bytes]:
    def broken(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(form, changed, offset, *values)
        return bytes(changed)

    return broken


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (break_header("<h", 40, 0), RejectReason.MALFORMED),
        (break_header("<h", 40, 8), RejectReason.MALFORMED),
        (break_header("<h", 42, -4), RejectReason.MALFORMED),
        (break_header("<h", 42, 0), RejectReason.MALFORMED),
        (break_header("<h", 70, 3), RejectReason.MALFORMED),
        (break_header("<i", 0, 349), RejectReason.MALFORMED),
        (break_header("<f", 108, 100.0), RejectReason.MALFORMED),
        (break_header("<f", 108, np.nan), RejectReason.MALFORMED),
        (break_header("<2f", 112, 1.0, np.inf), RejectReason.MALFORMED),
        (break_header("<12f", 280, *[0.0] * 12), RejectReason.MALFORMED),
        (break_header("<f", 280, np.nan), RejectReason.MALFORMED),
        (break_header("<h", 70, 128), RejectReason.UNSUPPORTED_PIXELS),
        (break_header("<h", 70, 32), RejectReason.UNSUPPORTED_PIXELS),
        (break_header("<h", 70, 2304), RejectReason.UNSUPPORTED_PIXELS),
        (break_header("<h", 70, 1536), RejectReason.UNSUPPORTED_PIXELS),
        (break_header("<h", 70, 1), RejectReason.UNSUPPORTED_PIXELS),
        (break_header("<h", 42, 5), RejectReason.TRUNCATED),
        (break_header("<2h", 42, 32000, 32000), RejectReason.TOO_LARGE),
        (break_header("<6h", 40, 5, 1, 1, 512, 512, 2), RejectReason.TOO_LARGE),
        (lambda content: content[:-1], RejectReason.TRUNCATED),
        (lambda content: content[:351], RejectReason.TRUNCATED),
    ],
)
def test_broken_files(path: Path, break_it: Callable[[bytes], bytes], expected: RejectReason) -> None:
    saved(path, SMALL.astype(np.int16))
    content = break_it(path.read_bytes())
    path.write_bytes(content)
    assert reason(lambda: read_nifti_header(path)) is expected
    assert reason(lambda: read_nifti(path)) is expected


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda stream: stream[:-9], RejectReason.TRUNCATED),
        (lambda stream: stream[:-4], RejectReason.TRUNCATED),
        (lambda stream: stream[: len(stream) // 2] + b"\xff" * 9 + stream[len(stream) // 2 + 9 :], RejectReason.DECODE_FAILED),
        (lambda stream: stream[:-5] + bytes([stream[-5] ^ 1]) + stream[-4:], RejectReason.DECODE_FAILED),  # its checksum
        (lambda stream: gzip.compress(break_header("<h", 46, 31)(gzip.decompress(stream))), RejectReason.TRUNCATED),
        (lambda stream: gzip.compress(break_header("<h", 46, 30000)(gzip.decompress(stream))), RejectReason.TRUNCATED),
        (lambda stream: gzip.compress(break_header("<2h", 46, 30000, 900)(gzip.decompress(stream))), RejectReason.TRUNCATED),
    ],
)  # fmt: skip
def test_broken_streams(tmp_path: Path, break_it: Callable[[bytes], bytes], expected: RejectReason) -> None:
    path = saved(tmp_path / "v.nii.gz", np.random.default_rng(0).integers(0, 999, (4, 5, 30)).astype(np.int16))
    path.write_bytes(break_it(path.read_bytes()))
    assert reason(lambda: (read_nifti_header(path), read_nifti(path))) is expected


def test_a_bomb_is_inflated_no_further_than_its_header_says(tmp_path: Path, path: Path) -> None:
    content = saved(path, SMALL.astype(np.int16)).read_bytes()
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(content + bytes(50 * 2**20)))
    assert header_of(bomb) == header_of(path)
    assert len(nifti._volume(bomb, 0, 0)) == len(content)
    bomb.write_bytes(gzip.compress(break_header("<5h", 40, 4, 4, 4, 30000, 30000)(content)))
    assert reason(lambda: read_nifti_header(bomb)) is RejectReason.TOO_LARGE


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), version=st.sampled_from([1, 2]), compressed=st.booleans())
def test_mutants_are_rejected_or_read(path: Path, data: st.DataObject, version: int, compressed: bool) -> None:
    """Whatever bytes of the header change: Rejected, or a header whose first and last slices are as it says."""
    content = bytearray(saved(path, SMALL.astype(np.int16), version=version).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(gzip.compress(content, mtime=0) if compressed else bytes(content))
    try:
        header = read_nifti_header(path)
    except Rejected:
        return
    if header is None:
        return
    for frame in (0, header["frames"] - 1):
        assert read_nifti(path, frame).values.shape == (header["rows"], header["columns"])


def test_the_index_needs_neither_nibabel_nor_torch(path: Path) -> None:
    saved(path, SMALL.astype(np.int16))
    code = (
        "import sys; from pathlib import Path; from pipeline.nifti import read_nifti_header;"
        f"assert read_nifti_header(Path({str(path)!r}))['frames'] == 3;"
        "print([name for name in ('torch', 'monai', 'nibabel', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", ["object", "category"])
def test_the_modality_decides_what_values_count(path: Path, dtype: str) -> None:
    saved(path, SMALL.astype(np.int16))
    row = {"case_id": "a", "source": "s", "path": path.name, "format": "nifti", "frame": 1}
    row |= {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
    table = pd.DataFrame([row | {"modality": value} for value in ("CT", "MR", None)])
    table["modality"] = table["modality"].astype(dtype)
    units = [read_image(file).unit for file in image_files(table, {"s": path.parent})]
    assert units == [PixelUnit.HU, PixelUnit.MODALITY, PixelUnit.MODALITY]
    (unsaid,) = image_files(table.drop(columns="modality").head(1), {"s": path.parent})
    assert unsaid.modality == ""


def _images(**columns: Any) -> pd.DataFrame:
    count = len(columns["format"])
    blank = {name: [None] * count for name in ("modality", "body_part_examined", "view_position", "rule")}
    return pd.DataFrame(blank | columns).astype("category")


def test_scope_of_volumes() -> None:
    scope = scope_of(_images(format=["nifti", "nifti"], modality=["CT", "CT"]))
    assert scope == {"format": ["nifti"], "modality": ["CT"]}
    asked = _images(format=["nifti", "nifti", "png", "dicom"], modality=["CT", None, None, "CT"])
    assert scope_reason(asked, scope).tolist() == [
        "",
        "out of scope: modality is not known, trained on CT",
        "out of scope: a PNG, JPEG or TIFF, trained on nifti only",
        "out of scope: a DICOM image, trained on nifti only",
    ]
    assert (
        scope_reason(asked, {"format": ["dicom", "png"]}).tolist()[0]
        == "out of scope: a NIfTI, trained on dicom, png only"
    )


def test_why_an_image_is_out_of_scope_in_a_sites_words() -> None:
    asked = _images(format=["nifti", "png", "nifti"], modality=[None, None, "MR"])
    assert scope_reason(
        asked, {"format": ["nifti"], "modality": ["CT"]}, load_profile("german").texts.scope
    ).tolist() == [
        "außerhalb des Einsatzbereichs: Modalität ist nicht bekannt, trainiert mit CT",
        "außerhalb des Einsatzbereichs: ein PNG-, JPEG- oder TIFF-Bild, trainiert nur mit nifti",
        "außerhalb des Einsatzbereichs: Modalität ist MR, trainiert mit CT",
    ]


@pytest.mark.slow
def test_inference_on_a_volume(looped: Path, tmp_path: Path) -> None:
    """Every slice is predicted as that of the series is, and each key image has an overlay of its own."""
    from pipeline.infer import infer

    index = pd.read_parquet(looped / "index/index.parquet")
    lung = index[(index["modality"] == "CT") & (index["convolution_kernel"] == "LUNG")]
    lung = lung[lung["collision"] != "duplicate"]
    one = lung[lung["study_instance_uid"] == lung["study_instance_uid"].iloc[0]]
    heights = one["image_position_patient"].str.split("\\").str[2].astype(float)
    paths = one.assign(height=heights).sort_values("height")["path"].tolist()
    frames = [read_pixels(looped / "export" / path) for path in paths]
    volume = np.stack([frame.values for frame in frames], -1).swapaxes(0, 1)
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in" / "chest.nii.gz", volume.astype(np.int16), np.diag([-3.0, -3.0, 5.0, 1.0]))
    (tmp_path / "manifest.yaml").write_text(
        "name: volumes\nclasses: [normal, opacity]\nsources: [{path: in}]\nfacts: {modality: CT}\nlabels: {source: folder}\n"
    )
    infer(looped / "run", str(tmp_path / "manifest.yaml"), tmp_path / "out", progress=False)
    found = pd.read_csv(tmp_path / "out/image_predictions.csv", keep_default_na=False)
    assert found["status"].tolist() == ["ok"] * len(frames)
    assert found["in_scope"].tolist() == [False] * len(frames)  # trained on DICOM
    dicom = pd.read_csv(looped / "out/image_predictions.csv", keep_default_na=False).set_index("path")
    expected = dicom.loc[paths, "p_opacity"].to_numpy()
    padded = any(frame.padding is not None for frame in frames)
    assert found["p_opacity"].to_numpy() == pytest.approx(expected, abs=0.05 if padded else 1e-6)
    assert len(list((tmp_path / "out/overlays").rglob("*.png"))) == min(len(frames), 2)
    assert len(pd.read_csv(tmp_path / "out/predictions.csv")) == 1
