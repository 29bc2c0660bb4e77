"""Every example of docs/manifest.md is a manifest that works, on an export made to fit its words."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import pytest
from PIL import Image

from pipeline.cohort.cases import Cases
from pipeline.cohort.labels import labelled_cases
from pipeline.dicom.phantom_objects import ct_slice, phantom_uid, save
from pipeline.identity import IdentityKey
from pipeline.indexing.sources import open_manifest
from pipeline.label_arrays import NO_FINDING

PAGE = Path(__file__).parents[1] / "docs" / "manifest.md"
TEXTS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = {text.split("\n", 1)[0].removeprefix("name: "): text for text in TEXTS}
KEY = IdentityKey(b"a key for tests only")
PATIENTS, SLICES = 24, 4
FINDINGS = ["neg", "pos"]

EXPECTED = {
    "pneumonia": (24, 24 * SLICES),
    "pneumonia_xlsx": (24, 24 * SLICES),
    "two_disks": (24, 24 * SLICES),
    "slices": (24, 24),
    "slices_by_blocks": (24, 24),
    "x_rays": (24, 24),
    "volumes": (8, 8 * 3),
    "body_parts": (9, 9 * 2),
    "findings_in_a_cell": (24, 24),
    "findings_in_columns": (24, 24),
    "findings_in_rows": (18, 18),
    "findings_in_headers": (9, 9 * 2),
    "thin_axial": (24, 24 * SLICES),
    "with_reformats": (24 * (SLICES + 2), 24 * (SLICES + 2)),
    "fractions": (24, 24 * SLICES),
    "folds": (24, 24 * SLICES),
    "official_split": (24, 24 * SLICES),
}
"""Of each example the cases and their images."""
EFFUSION = [("effusion", 12), ("effusion|atelectasis", 6)]
FINDINGS_FOUND = {
    "findings_in_a_cell": dict([*EFFUSION, (NO_FINDING, 6)]),
    "findings_in_columns": dict([*EFFUSION, (NO_FINDING, 6)]),
    "findings_in_rows": dict(EFFUSION),
    "findings_in_headers": {"chest": 3, "chest|head": 3, NO_FINDING: 3},
}
"""Of each example of several findings at once the cases with each label."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder with all that the page speaks of."""
    folder = tmp_path_factory.mktemp("project")
    _export(folder)
    _sheets(folder)
    _pictures(folder)
    _volumes(folder)
    for part, name in enumerate(("CHEST", "HEAD", "FOOT")):
        for patient in range(3):
            for number in (1, 2):
                options = {"patient_id": f"B{part}{patient}", "instance_number": number, "BodyPartExamined": name}
                save(ct_slice(16, **options), folder / "parts" / f"{name}{patient}" / str(number))
                regions = options | {"BodyPartExamined": {"HEAD": "CHEST\\HEAD"}.get(name, name)}
                save(ct_slice(16, **regions), folder / "regions" / f"{name}{patient}" / str(number))
    return folder


def _export(folder: Path) -> None:
    """Studies of an axial series, a localizer and a reformat; the last six are on the second disk."""
    with zipfile.ZipFile(folder / "disk2.zip", "w", zipfile.ZIP_DEFLATED) as disk:
        for patient in range(PATIENTS):
            identity = {
                "patient_id": f"P{patient:03d}",
                "AccessionNumber": f"A{patient:03d}",
                "StudyDate": "20200101",
                "study_instance_uid": phantom_uid("study", patient),
            }
            images = [ct_slice(16, instance_number=number, **identity) for number in range(1, SLICES + 1)]
            images.append(ct_slice(16, series_number=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **identity))
            images.append(ct_slice(16, series_number=3, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"], **identity))
            for number, image in enumerate(images):
                path = save(image, folder / "export" / f"S{patient:03d}" / f"IM{number}")
                if patient >= PATIENTS - 6:
                    disk.write(path, f"DICOM/S{patient:03d}/IM{number}")


def _sheets(folder: Path) -> None:
    rows = [(f"A{patient:03d}", FINDINGS[patient % 2]) for patient in range(PATIENTS)]
    (folder / "labels.csv").write_text("accession;finding\n" + "".join(f"{key};{value}\n" for key, value in rows))
    book = openpyxl.Workbook()
    reading = book.create_sheet("reading")
    reading.append(["Study UID", "Finding", "hospital"])
    for patient in range(PATIENTS):
        reading.append([str(phantom_uid("study", patient)), ["negative", "positive"][patient % 2], "north"])
    book.save(folder / "labels.xlsx")
    lines = [f"P{patient:03d},{'test' if patient < 6 else 'train'}\n" for patient in range(12)]
    lines += [f"P{patient:03d},val\n" for patient in range(12, 16)]
    (folder / "official.csv").write_text("PatientID,split\n" + "".join(lines))


def _pictures(folder: Path) -> None:
    noise = np.random.default_rng(0)
    sheet = ["file,label,patient,sex,age,view\n"]
    findings = ["file,Finding Labels,Pleural Effusion,Atelectasis,patient\n"]
    readings = ["file,finding\n"]
    kinds = ("Effusion,1.0,", "Effusion|Hernia,1,0", "Effusion|Atelectasis,1,1", "No Finding,-1,0")
    for number in range(24):
        name = f"p{number // 2 % 12:02d}_{number + 1}.png"
        path = folder / "pictures" / ("covid" if number % 4 < 2 else "healthy") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (16, 16), dtype=np.uint8)).resize((64, 64)).save(path)
        sheet.append(f"{name},{'COVID' if number % 4 < 2 else 'other'},x{number // 2},F,50,PA\n")
        findings.append(f"{name},{kinds[number % 4]},x{number // 2}\n")
        found = ([], ["effusion"], ["effusion", "atelectasis"], ["effusion"])[number % 4]
        readings += [f"{name},{finding}\n" for finding in found]
    (folder / "pictures.csv").write_text("".join(sheet))
    (folder / "findings.csv").write_text("".join(findings))
    (folder / "readings.csv").write_text("".join(readings))


def _volumes(folder: Path) -> None:
    for number in range(8):
        path = folder / "volumes" / ("healthy" if number % 2 else "ill") / f"sub-{number:02d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(-1000, 500, (16, 12, 3)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 5.0, 1.0])), path)


def test_the_page_has_every_example_once() -> None:
    assert set(EXAMPLES) == set(EXPECTED)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_example(name: str, place: Path) -> None:
    cases = _cases(name, place)
    assert (len(cases.cases), len(cases.images)) == EXPECTED[name]
    if name in FINDINGS_FOUND:
        assert cases.cases["label"].value_counts().to_dict() == FINDINGS_FOUND[name]


def _cases(name: str, place: Path) -> Cases:
    path = place / f"{name}.yaml"
    path.write_text(EXAMPLES[name])
    opened = open_manifest(path)
    assert opened.manifest is not None
    index = opened.index(KEY, workers=0)
    return labelled_cases(index, opened, opened.manifest, KEY)
