"""The page of a case: drawn, taken apart by poppler where that is installed, and the same bytes for the same result."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import find_objects, label

from pipeline.dicom.case_result import CaseResult, Finding, ResultImage
from pipeline.dicom.phantom import ct_slice, radiograph
from pipeline.prediction.case_page import PICTURE_DPI, case_page
from pipeline.profile_settings import Profile, Texts
from tests.case_results import case_result

ROOT = Path(__file__).parent.parent
A4_POINTS = (595.44, 841.68)


def page_of(result: CaseResult) -> bytes:
    return case_page(result, result.key_images)


def of_size(image: ResultImage, rows: int, columns: int) -> ResultImage:
    return replace(image, picture_of=lambda: np.full((rows, columns, 3), (200, 30, 30), np.uint8))


def pictures(result: CaseResult, *sizes: tuple[int, int]) -> CaseResult:
    """The case with key images whose pictures are red and of these sizes."""
    first = result.images[0]
    images = tuple(replace(of_size(first, *size), key=place) for place, size in enumerate(sizes, start=1))
    return replace(result, images=images)


def text_of(page: bytes, tmp_path: Path) -> str:
    """Its words in reading order, one space between them."""
    return " ".join(_poppler("pdftotext", page, tmp_path, "-layout", "-").split())


def _poppler(program: str, page: bytes, tmp_path: Path, *arguments: str) -> str:
    """`arguments`: the output last, options before it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} (poppler-utils) is not installed")
    (tmp_path / "page.pdf").write_bytes(page)
    *options, output = arguments
    command = [program, *options, str(tmp_path / "page.pdf"), output]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rendered(page: bytes, tmp_path: Path) -> list[np.ndarray]:
    """The pages at 50 dots an inch."""
    _poppler("pdftoppm", page, tmp_path, "-r", "50", "-png", str(tmp_path / "page"))
    return [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in sorted(tmp_path.glob("page*.png"))]


def red(page: np.ndarray) -> np.ndarray:
    return (page[..., 0] > 150) & (page[..., 1] < 80)


def page_count(page: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", page))


def test_it_is_a_pdf_of_one_a4_page():
    page = page_of(case_result([ct_slice(16), ct_slice(16, instance_number=2)]))
    assert page.startswith(b"%PDF-")
    assert page.rstrip().endswith(b"%%EOF")
    assert page_count(page) == 1
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", page)
    assert [float(side) for side in box] == pytest.approx(A4_POINTS)


def test_what_people_read(tmp_path: Path):
    findings = (Finding("COVID", 0.932, True), Finding("Pleuraerguß", 0.25, False))
    result = case_result([ct_slice(16)], findings=findings, notes=("outside the model's scope: modality MR",))
    text = text_of(page_of(result), tmp_path)
    for words in (
        "COVID, probability 0.932",
        "Research use only - not for diagnosis",
        "Warning: outside the model's scope: modality MR",
        "Pleuraerguß",
        "0.250",
        "model ct_slices, radloop 0.1.0, abababababab",
        "evidence for COVID: the classifier's evidence (Grad-CAM of a linear head); logit margin",
        "one feature cell is 32 pixels wide (22 mm)",
    ):
        assert words in text, words


def test_no_probability_is_certain(tmp_path: Path):
    findings = (Finding("COVID", 0.99997, True), Finding("non-COVID", 0.00003, False))
    text = text_of(page_of(case_result([ct_slice(16)], findings=findings, said="COVID")), tmp_path)
    assert "COVID >0.999" in text
    assert "non-COVID <0.001" in text


def test_the_sites_words_are_used(tmp_path: Path):
    german = Profile(texts=Texts(research_only="Nur für Forschung", warning="Warnung: "))
    text = text_of(page_of(case_result([ct_slice(16)], profile=german, notes=("fremdes Gerät",))), tmp_path)
    assert "Nur für Forschung" in text
    assert "Warnung: fremdes Gerät" in text
    assert "Research use only" not in text


def test_nobodys_name_or_number_stands_in_it(tmp_path: Path):
    source = ct_slice(16, PatientName="Doe^Jane", PatientID="ID-4711", AccessionNumber="ACC-0815")
    page = page_of(case_result([source]))
    for words in (page.decode("latin-1"), text_of(page, tmp_path)):
        for secret in ("Doe", "Jane", "4711", "0815", str(source.PatientBirthDate), str(source.SOPInstanceUID)):
            assert secret not in words


def test_no_date_and_no_other_program_stands_in_it():
    page = page_of(case_result([ct_slice(16)]))
    assert b"Date" not in page
    assert b"atplotlib" not in page


PRINT_DIGEST = """
import hashlib
from pipeline.dicom.phantom import ct_slice
from pipeline.prediction.case_page import case_page
from tests.case_results import case_result
result = case_result([ct_slice(16)], notes=("a note",))
print(hashlib.sha256(case_page(result, result.key_images)).hexdigest())
"""


def test_the_same_result_gives_the_same_bytes_in_another_process():
    result = case_result([ct_slice(16)], notes=("a note",))
    here = hashlib.sha256(page_of(result)).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_the_callers_settings_change_nothing_and_stay_as_they_are():
    result = case_result([ct_slice(16)])
    usual = page_of(result)
    with mpl.rc_context({"font.size": 30, "text.color": "green", "pdf.fonttype": 42, "figure.facecolor": "black"}):
        assert page_of(result) == usual
        assert mpl.rcParams["font.size"] == 30


def test_the_picture_is_on_the_page_in_its_own_shape(tmp_path: Path):
    (page,) = rendered(page_of(pictures(case_result([radiograph(16)]), (300, 200))), tmp_path)
    rows, columns = np.nonzero(red(page))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert width * height == pytest.approx(red(page).sum(), rel=0.01)  # one rectangle
    assert height / width == pytest.approx(1.5, rel=0.02)
    assert width > page.shape[1] / 2


def test_three_pictures_of_a_slice_share_the_first_page(tmp_path: Path):
    (page,) = rendered(page_of(pictures(case_result([ct_slice(16)]), *[(660, 512)] * 3)), tmp_path)
    assert red(page).mean() > 0.2


@pytest.mark.parametrize(("count", "size"), [(3, (660, 512)), (5, (720, 512)), (2, (3600, 2500))])
def test_pictures_of_one_size_are_as_large_as_each_other(tmp_path: Path, count: int, size: tuple[int, int]):
    drawn = rendered(page_of(pictures(case_result([ct_slice(16)]), *[size] * count)), tmp_path)
    found = [shape for page in drawn for shape in _red_pictures(page)]
    assert len(found) == count
    for side in zip(*found, strict=True):
        assert max(side) - min(side) <= 1  # dots of 1/50 inch


def _red_pictures(page: np.ndarray) -> list[tuple[int, int]]:
    """(rows, columns) of each."""
    labels, _ = label(red(page))
    return [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in find_objects(labels)]


@pytest.mark.parametrize(("count", "pages"), [(7, 3), (12, 4)])
def test_more_pictures_need_more_pages(tmp_path: Path, count: int, pages: int):
    drawn = rendered(page_of(pictures(case_result([ct_slice(16)]), *[(660, 512)] * count)), tmp_path)
    assert len(drawn) <= pages
    assert all(red(page).any() for page in drawn)


@pytest.mark.parametrize("size", [(4000, 100), (40, 2000)])
def test_a_picture_of_any_shape_stays_on_the_page(tmp_path: Path, size: tuple[int, int]):
    drawn = rendered(page_of(pictures(case_result([ct_slice(16)]), size)), tmp_path)
    marked = [red(page) for page in drawn]
    assert sum(page.any() for page in marked) == 1
    for page in marked:
        assert page.sum() == page[20:-20, 20:-20].sum()


def test_large_pictures_are_as_fine_as_print_not_finer():
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
    result = case_result([radiograph(16)])
    images = tuple(replace(image, picture_of=lambda: noise) for image in result.images)
    page = page_of(replace(result, images=images))
    widths = [int(width) for width in re.findall(rb"/Width (\d+)", page)]
    assert widths == [round((8.27 - 2 * 0.7) * PICTURE_DPI)]


def test_many_findings_and_long_words_need_more_pages_and_lose_nothing(tmp_path: Path):
    findings = tuple(Finding(f"finding {number}", number / 120, number % 2 == 0) for number in range(120))
    said = "; ".join(f"finding {number}, probability 0.9" for number in range(0, 120, 2))
    page = page_of(case_result([ct_slice(16)], findings=findings, said=said, shown="finding 0", notes=("word " * 400,)))
    text = text_of(page, tmp_path)
    assert page_count(page) > 2
    for number in range(120):
        assert f"finding {number} " in text
    assert text.count("word") == 400
    assert text.count("Research use only - not for diagnosis · model") == page_count(page)


def test_letters_that_the_font_lacks_are_said_by_others(tmp_path: Path):
    findings = (Finding("肺炎", 0.9, True), Finding("Ḯ Διον", 0.1, False), Finding("a$b_{c}$", 0.2, False))
    text = text_of(page_of(case_result([ct_slice(16)], findings=findings, shown="肺炎", said="肺炎 0.9")), tmp_path)
    assert "?? 0.9" in text
    assert "Διον" in text
    assert "a$b_{c}$" in text
