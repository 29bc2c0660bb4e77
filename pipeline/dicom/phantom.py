"""The generated PACS export: some patients with chest CT, scouts, radiographs and a report, in files as a PACS exports them.

Patients come in pairs, one with and one without ground-glass opacities; a pair shares scanner, kernels, transfer syntax,
contrast, sex and number of studies, and what else varies is drawn without looking at the label: only the opacities tell the class.
The same arguments give the same bytes. The factories of single objects are in `phantom_objects`, and offered here too.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from scipy import ndimage

from pipeline.dicom.anatomy import Floats
from pipeline.dicom.anatomy_lungs import (
    Chest,
    Ellipse,
    Grid,
    add_lung_markings,
    add_opacities,
    axial_slice,
    draw_chest,
    ellipses,
    frontal_projection,
    grown,
    slice_levels,
)
from pipeline.dicom.dicomdir import Directory
from pipeline.dicom.phantom_objects import (
    NOT_A_PATIENT,
    ct_slice,
    phantom_uid,
    radiograph,
    save,
    simple_chest,
    structured_report,
)

__all__ = [
    "NOT_A_PATIENT",
    "Export",
    "ct_slice",
    "make_export",
    "phantom_uid",
    "radiograph",
    "save",
    "simple_chest",
    "structured_report",
]

POSITIVE, NEGATIVE = "opacity", "normal"
LABEL_COLUMNS = ("AccessionNumber", "StudyInstanceUID", "finding")
LESION_COLUMNS = ("sop_instance_uid", "row", "column", "radius_rows", "radius_columns")
WOMEN = [
    "Ada",
    "Bela",
    "Cleo",
    "Dora",
    "Edda",
    "Fina",
    "Gesa",
    "Hilda",
    "Ida",
    "Jette",
    "Klara",
    "Lina",
    "Mara",
    "Nora",
    "Olga",
    "Paula",
    "Rosa",
    "Thea",
    "Vera",
    "Zora",
]
MEN = [
    "Arno",
    "Bruno",
    "Carlo",
    "Dirk",
    "Egon",
    "Falk",
    "Gero",
    "Hugo",
    "Ivo",
    "Jan",
    "Kaspar",
    "Luis",
    "Milo",
    "Nils",
    "Otto",
    "Piet",
    "Rolf",
    "Sven",
    "Theo",
    "Veit",
]


@dataclass(frozen=True)
class Export:
    """What `make_export` wrote: the export itself, its label sheet, the opacities' places, and the number of files in `folder`."""

    folder: Path
    labels: Path
    lesions: Path
    files: int


@dataclass(frozen=True)
class Scanner:
    """What a make of scanner does to its images. Noise in HU for a body of average size."""

    maker: str
    model: str
    signed: bool
    curved_table: bool
    lung_kernel: str
    soft_kernel: str
    noise_hu: float
    sharpening: float
    thickness_mm: float


SCANNERS = (
    Scanner("Phantom Scanners A", "A-16", True, True, "LUNG", "STANDARD", 34.0, 0.5, 1.25),
    Scanner("Phantom Scanners B", "B-64", False, False, "B70f", "B30f", 26.0, 0.8, 2.0),
)


@dataclass(frozen=True)
class Patient:
    """What is settled before anything is drawn."""

    number: int
    pair: int
    positive: bool

    @property
    def scanner(self) -> Scanner:
        return SCANNERS[self.pair % 2]

    @property
    def transfer_syntax(self) -> str:
        return JPEGLSLossless if self.pair % 4 in (1, 2) else ExplicitVRLittleEndian

    @property
    def contrast(self) -> bool:
        return self.pair % 3 == 2

    @property
    def soft_series(self) -> bool:
        return self.pair % 2 == 0

    @property
    def studies(self) -> int:
        return 2 if self.pair % 4 == 1 else 1

    @property
    def radiograph(self) -> tuple[str, str] | None:
        """Modality and photometric interpretation of a radiograph, for those who have one."""
        return {0: ("CR", "MONOCHROME1"), 1: ("DX", "MONOCHROME2")}.get(self.pair % 8)

    @property
    def report(self) -> bool:
        return self.pair % 8 == 0

    @property
    def female(self) -> bool:
        return self.pair // 2 % 2 == 0

    @property
    def name(self) -> str:
        """Family name PHANTOM; who shares a given name with another has a number as middle name."""
        names = WOMEN if self.female else MEN
        before = (
            2 * sum((pair // 2 % 2 == 0) == self.female for pair in range(self.pair)) + self.number % 2
        )  # of the same sex
        return f"PHANTOM^{names[before % len(names)]}" + (
            f"^{before // len(names) + 1}" if before >= len(names) else ""
        )


@dataclass
class _Writer:
    """Puts objects into the export's folders, lists them, and keeps the two sheets."""

    root: Path
    directory: Directory = field(default_factory=Directory)
    labels: list[tuple[str, str, str]] = field(default_factory=list)
    lesions: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)

    def write(self, dataset: Dataset, places: tuple[int, int, int, int], syntax: str) -> None:
        """Save an object as the place's patient, study, series and image."""
        names = [f"{prefix}{place:06d}" for prefix, place in zip(("PA", "ST", "SE", "IM"), places, strict=True)]
        components = ("DICOM", *names)
        self.paths.append(save(dataset, self.root.joinpath(*components), syntax))
        self.directory.add(dataset, syntax, components)

    def locate(self, uid: str, found: list[Ellipse]) -> None:
        self.lesions += [
            (uid, f"{e.row:.2f}", f"{e.column:.2f}", f"{e.radius_rows:.2f}", f"{e.radius_columns:.2f}") for e in found
        ]


def make_export(
    folder: Path,
    *,
    patients: int = 40,
    slices: int = 8,
    size: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Export:
    """Write `folder/export/**`, `folder/labels.csv` (LABEL_COLUMNS, a row a study) and `folder/lesions.csv` (LESION_COLUMNS:
    ellipses in source pixels). An export that is there already is replaced. `progress(done, patients)` after each patient.
    """
    if patients < 2 or slices < 1 or size < 32:
        raise ValueError(f"expected at least 2 patients, 1 slice and 32 pixels, found {patients}, {slices} and {size}")
    folder = Path(folder)
    root = folder / "export"
    if root.exists():
        shutil.rmtree(root)
    writer = _Writer(root)
    recipe = (seed, patients, slices, size)
    for done, patient in enumerate(_plan(patients, seed), start=1):
        _write_patient(writer, patient, slices, size, recipe)
        if progress is not None:
            progress(done, patients)
    writer.directory.write(root / "DICOMDIR", file_set_id="PHANTOMS", instance_uid=phantom_uid("directory", *recipe))
    _write_oddities(writer)
    labels = _write_sheet(folder / "labels.csv", LABEL_COLUMNS, writer.labels)
    lesions = _write_sheet(folder / "lesions.csv", LESION_COLUMNS, writer.lesions)
    return Export(root, labels, lesions, sum(path.is_file() for path in root.rglob("*")))


def _plan(patients: int, seed: int) -> Iterator[Patient]:
    """Each pair in the order that chance gives."""
    rng = np.random.default_rng([seed, 1])
    first_is_positive = rng.integers(0, 2, size=(patients + 1) // 2)
    for number in range(patients):
        yield Patient(number, number // 2, bool((number + first_is_positive[number // 2]) % 2))


def _write_patient(writer: _Writer, patient: Patient, slices: int, size: int, recipe: tuple[int, ...]) -> None:
    seed = recipe[0]
    rng = np.random.default_rng([seed, 2, patient.number])
    chest = draw_chest(rng, female=patient.female, contrast=patient.contrast, curved_table=patient.scanner.curved_table)
    width_mm = 2.0 * chest.body.half_width * rng.uniform(1.08, 1.24)
    place = rng.uniform(-7.0, 7.0, 2)
    spacing = width_mm / size
    grid = Grid(
        size, spacing, float(place[0] - (size - 1) * spacing / 2), float(place[1] + 10.0 - (size - 1) * spacing / 2)
    )
    born = date(2024, 1, 1) - timedelta(days=int(rng.integers(25 * 366, 88 * 365)))
    first_day = date(2024, 1, 2) + timedelta(days=int(rng.integers(0, 300)))
    gap = timedelta(days=int(rng.integers(3, 40)))
    levels = slice_levels(slices)
    if patient.positive:  # a generator of their own: without them, the same patient would be drawn
        chest = add_opacities(np.random.default_rng([seed, 3, patient.number]), chest, levels, width_mm)
    for study in range(patient.studies):
        common = _study_attributes(patient, study, first_day + study * gap, born, recipe, rng)
        now = grown(chest, 1.0 + 0.06 * study)
        _write_ct_study(writer, patient, study, common, now, grid, levels, rng)
    if patient.radiograph is not None:
        study = patient.studies
        common = _study_attributes(patient, study, first_day, born, recipe, rng)
        _write_radiograph(writer, patient, study, common, chest, size, rng)


def _study_attributes(
    patient: Patient, study: int, day: date, born: date, recipe: tuple[int, ...], rng: np.random.Generator
) -> dict[str, Any]:
    """Attributes that all objects of a study share."""
    day_text = day.strftime("%Y%m%d")
    time_text = f"{rng.integers(7, 19):02d}{rng.integers(0, 60):02d}{rng.integers(0, 60):02d}"
    years = day.year - born.year - ((day.month, day.day) < (born.month, born.day))
    attributes: dict[str, Any] = {
        "PatientName": patient.name,
        "PatientID": f"PH-{patient.number + 1:04d}",
        "PatientBirthDate": born.strftime("%Y%m%d"),
        "PatientSex": "F" if patient.female else "M",
        "PatientAge": f"{years:03d}Y",
        "StudyInstanceUID": phantom_uid("study", *recipe, patient.number, study),
        "StudyID": str(study + 1),
        "AccessionNumber": f"PHA{patient.number + 1:04d}{study + 1:02d}",
        "Manufacturer": patient.scanner.maker,
        "ManufacturerModelName": patient.scanner.model,
    }
    for kind in ("Study", "Series", "Acquisition", "Content"):
        attributes[f"{kind}Date"], attributes[f"{kind}Time"] = day_text, time_text
    return attributes


def _instance(common: dict[str, Any], series: int, instance: int) -> dict[str, Any]:
    """`common` with the UIDs and numbers of one object of the study."""
    study = common["StudyInstanceUID"]
    return common | {
        "SeriesInstanceUID": phantom_uid("series", study, series),
        "SOPInstanceUID": phantom_uid("instance", study, series, instance),
        "FrameOfReferenceUID": phantom_uid("frame", study),
        "SeriesNumber": series,
        "InstanceNumber": instance,
    }


def _write_ct_study(
    writer: _Writer,
    patient: Patient,
    study: int,
    common: dict[str, Any],
    chest: Chest,
    grid: Grid,
    levels: list[float],
    rng: np.random.Generator,
) -> None:
    """Scout, lung series, for some a soft-tissue reconstruction of the same slices and a report."""
    scanner, syntax, number = patient.scanner, patient.transfer_syntax, patient.number
    writer.labels.append(
        (common["AccessionNumber"], str(common["StudyInstanceUID"]), POSITIVE if patient.positive else NEGATIVE)
    )
    writer.write(_scout(patient, common, chest, grid, rng), (number, study, 0, 0), ExplicitVRLittleEndian)
    kernels = [(1, scanner.lung_kernel, (-600.0, 1500.0))]
    kernels += [(2, scanner.soft_kernel, (40.0, 400.0))] if patient.soft_series else []
    padded = grid.radius_from_centre > 1.0 if scanner.signed else None
    for index, z in enumerate(reversed(levels)):  # from the head down
        clean = axial_slice(chest, grid, z)
        for series, kernel, window in kernels:
            attributes = _instance(common, series + 1, index + 1)
            dataset = ct_slice(
                hu=_reconstructed(clean, chest, scanner, rng, soft=series == 2),
                signed=scanner.signed,
                padded=padded,
                position_mm=(grid.left_mm, grid.front_mm, z),
                spacing_mm=grid.spacing_mm,
                thickness_mm=scanner.thickness_mm,
                window=window,
                kernel=kernel,
                **attributes,
            )
            writer.write(dataset, (number, study, series, index), syntax)
            writer.locate(str(dataset.SOPInstanceUID), ellipses(chest, grid, z))
    if patient.report and study == 0:
        report = _instance(common, 90, 1)
        del (
            report["FrameOfReferenceUID"],
            report["SeriesDate"],
            report["SeriesTime"],
            report["AcquisitionDate"],
            report["AcquisitionTime"],
        )
        writer.write(structured_report(**report), (number, study, 1 + len(kernels), 0), ExplicitVRLittleEndian)


def _reconstructed(clean: Floats, chest: Chest, scanner: Scanner, rng: np.random.Generator, *, soft: bool) -> Floats:
    """A slice as a kernel shows it: the lung kernel sharpens edges and noise, the soft one smooths both. Noise grows with the body."""
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    level = scanner.noise_hu * (chest.body.half_width / 165.0) ** 2
    if soft:
        return ndimage.gaussian_filter(clean, 0.8, truncate=3.0) + 0.8 * level * ndimage.gaussian_filter(
            noise, 1.1, truncate=3.0
        )
    blurred = ndimage.gaussian_filter(clean, 1.1, truncate=3.0)
    grain = 0.75 * noise + 0.66 * np.roll(noise, (1, 1), (0, 1))
    return clean + scanner.sharpening * (clean - blurred) + level * grain


def _scout(patient: Patient, common: dict[str, Any], chest: Chest, grid: Grid, rng: np.random.Generator) -> Dataset:
    """The localizer: a frontal projection, in the study's frame of reference, as CT image of type LOCALIZER."""
    pixels = max(grid.size // 2, 32)
    width_mm, top_z, bottom_z = 420.0, 165.0, -195.0
    rows = round(pixels * (top_z - bottom_z) / width_mm)
    coarse = frontal_projection(
        chest, columns=min(128, pixels), rows=min(96, rows), depth=32, width_mm=width_mm, top_z=top_z, bottom_z=bottom_z
    )
    picture = ndimage.zoom(coarse, (rows / coarse.shape[0], pixels / coarse.shape[1]), order=1)
    hu = -1000.0 + 48.0 * picture + 12.0 * rng.standard_normal(picture.shape)
    spacing = width_mm / pixels
    return ct_slice(
        hu=hu.astype(np.float32),
        signed=patient.scanner.signed,
        position_mm=(-(pixels - 1) * spacing / 2, 0.0, top_z),
        spacing_mm=spacing,
        orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
        thickness_mm=400.0,
        window=(-350.0, 1300.0),
        kernel="SCOUT",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        RescaleType=None,  # a projection has no Hounsfield units
        **_instance(common, 1, 1),
    )


def _write_radiograph(
    writer: _Writer,
    patient: Patient,
    study: int,
    common: dict[str, Any],
    chest: Chest,
    size: int,
    rng: np.random.Generator,
) -> None:
    """A frontal radiograph of the same chest, as a study of its own."""
    assert patient.radiograph is not None
    modality, photometric = patient.radiograph
    attributes = _instance(common, 1, 1)
    del attributes["FrameOfReferenceUID"]
    width_mm = 2.0 * chest.body.half_width * 1.06
    dataset = radiograph(
        white=_film(chest, size, width_mm, rng),
        photometric=photometric,
        modality=modality,
        spacing_mm=width_mm / size,
        **attributes,
    )
    writer.labels.append(
        (common["AccessionNumber"], str(common["StudyInstanceUID"]), POSITIVE if patient.positive else NEGATIVE)
    )
    writer.write(dataset, (patient.number, study, 0, 0), patient.transfer_syntax)


def _film(chest: Chest, size: int, width_mm: float, rng: np.random.Generator) -> Floats:
    """(size, size) 0-1, dense tissue white."""
    top_z, bottom_z = 150.0, 150.0 - width_mm
    few = min(size, 256)
    coarse = frontal_projection(
        chest, columns=few, rows=few, depth=64, width_mm=width_mm, top_z=top_z, bottom_z=bottom_z
    )
    picture = ndimage.zoom(coarse, size / few, order=1)
    picture = add_lung_markings(picture, chest, width_mm=width_mm, top_z=top_z, bottom_z=bottom_z)
    # As a reader's workstation shows it: dense parts compressed, local contrast raised.
    wide = ndimage.gaussian_filter(picture, size / 16)
    local = picture - wide
    dense = 1.0 / (1.0 + np.exp(-(wide - 17.0) / 5.0))
    shown = np.where(picture < 0.3, 0.0, 0.06 + 0.86 * dense + 0.055 * local)
    return np.clip(shown + 0.006 * rng.standard_normal(shown.shape), 0.0, 1.0).astype(np.float32)


def _write_oddities(writer: _Writer) -> None:
    """What no export lacks: a file sent twice, one cut off, one that is no DICOM. None is in the DICOMDIR."""
    scans = [path for path in writer.paths if path.parent.name == "SE000001"]
    (writer.root / "RESENT").mkdir()
    shutil.copyfile(scans[0], writer.root / "RESENT" / "IM000000")
    content = scans[-1].read_bytes()
    (writer.root / "RESENT" / "IM000001").write_bytes(content[: len(content) * 6 // 10])
    (writer.root / "README.TXT").write_text(
        f"{NOT_A_PATIENT}. This export was generated by radloop; nobody was scanned.\n"
    )


def _write_sheet(path: Path, columns: tuple[str, ...], rows: list[Any]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    return path
