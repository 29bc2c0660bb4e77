"""How fast one Secondary Capture is made, checked and written, beside highdicom's `SCImage` with what it leaves out.

python benchmarks/capture_speed.py [--rounds 40]

Both have the header of the same CT slice of 512 x 512 and the same picture, ready made; both end as a file. radloop: `secondary_capture`
and `write_object`, which checks the object against its IOD. highdicom: `SCImage.from_ref_dataset`, the attributes that radloop's object
has and it has not, added with pydicom, and `dcmwrite`; once without a check and once with radloop's, so that both are equally sure. That
both objects carry the same attributes is asserted, and where dciodvfy is installed that it finds no error in either. The ways take turns;
each has the CPU time of its best round.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pipeline.dicom import conformance
from pipeline.dicom.case_result import CaseResult, Finding, ResultImage
from pipeline.dicom.derived import Algorithm, write_object
from pipeline.dicom.phantom_objects import ct_slice, save
from pipeline.dicom.secondary_capture import secondary_capture
from pipeline.dicom.source import read_source
from pipeline.profile_settings import Profile

SIDE, STRIP = 512, 120
ALGORITHM = Algorithm("radloop", "0.1.0", "ct_slices", "ab" * 32)
CREATED = datetime.datetime(2026, 3, 1, 8, 30, 15, tzinfo=datetime.UTC)
SAID = "opacity, probability 0.932"
NOTICE = "Research use only. Not for diagnosis."


def main() -> int:
    """Prints the figures; 1 where radloop is not the fastest of the checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    picture = np.random.default_rng(0).integers(0, 256, (SIDE + STRIP, SIDE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as name:
        folder = Path(name)
        source = read_source(save(ct_slice(SIDE), folder / "source.dcm"))
        result = case_result(source, picture)
        out, by_hand = folder / "out", folder / "by_hand.dcm"
        ways: dict[str, Callable[[], Path]] = {
            "radloop, checked": lambda: write_object(secondary_capture(result, result.images[0]), out),
            "highdicom with the rest, checked": lambda: by_highdicom(source, picture, by_hand, check=True),
            "highdicom with the rest, not checked": lambda: by_highdicom(source, picture, by_hand, check=False),
        }
        first, second, _ = (work() for work in ways.values())
        assert_alike(first, second)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(options.rounds):
            for way, work in ways.items():
                shutil.rmtree(out)  # an object that stands there already is not written again
                out.mkdir()
                begun = time.process_time()
                work()
                best[way] = min(best[way], time.process_time() - begun)
    print(
        f"best of {options.rounds} rounds, load {os.getloadavg()[0]:.1f}; pictures of {picture.shape[0]} x {picture.shape[1]}"
    )
    ours, checked, _ = best.values()
    for way, seconds in best.items():
        print(
            f"{way}: {1000 * seconds:.2f} ms of CPU, {1 / seconds:.0f} objects/s, {seconds / ours:.2f} times radloop's"
        )
    return 0 if ours <= checked else 1


def case_result(source: Dataset, picture: NDArray[np.uint8]) -> CaseResult:
    """A case of one image, whose picture is ready."""
    evidence = np.zeros((SIDE, SIDE), np.float32)
    return CaseResult(
        findings=(Finding("opacity", 0.932, True), Finding("normal", 0.068, False)),
        shown="opacity",
        said=SAID,
        content="ef" * 32,
        method="the classifier's evidence (Grad-CAM of a linear head)",
        unit="logit margin",
        scale=4.0,
        notes=(),
        cell="73 pixels wide (51 mm)",
        made_how=(),
        algorithm=ALGORITHM,
        configuration_digest="cd" * 32,
        profile=Profile(),
        created=CREATED,
        images=(ResultImage(source, 0, lambda: evidence, lambda: picture, 0.932, key=1),),
    )


def by_highdicom(source: Dataset, picture: NDArray[np.uint8], path: Path, *, check: bool) -> Path:
    """What a user writes who wants the same object of highdicom and pydicom."""
    capture = SCImage.from_ref_dataset(
        source,
        picture,
        "RGB",
        8,
        "PATIENT",
        generate_uid(),
        9000,
        generate_uid(),
        int(source.InstanceNumber),
        "radloop",
        pixel_spacing=[float(step) for step in source.PixelSpacing],
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        manufacturer_model_name=ALGORITHM.name,
        software_versions=ALGORITHM.version,
        series_description=f"radloop {ALGORITHM.model_name} heatmap (research use only)",
    )
    for keyword in ("StudyDescription", "PatientAge", "PatientComments", "BodyPartExamined"):
        if keyword in source:
            capture[keyword] = source[keyword]
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER", "HEATMAP"]
    capture.ConversionType = "WSD"
    capture.BurnedInAnnotation = source.get("BurnedInAnnotation", "NO")
    capture.ImageComments = f"{NOTICE} {SAID}."
    capture.DerivationDescription = (
        f"Model {ALGORITHM.model_name}, digest {ALGORITHM.model_digest}. Heatmap over the source image"
    )
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [code("121322", "Source image for image processing operation")]
    capture.SourceImageSequence = [reference]
    scanner, model = Dataset(), Dataset()
    for keyword in (
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "StationName",
        "InstitutionName",
    ):
        if keyword in source:
            scanner[keyword] = source[keyword]
    scanner.ContributionDescription = "Acquired the source image"
    scanner.PurposeOfReferenceCodeSequence = [code("109101", "Acquisition Equipment")]
    model.Manufacturer, model.ManufacturerModelName = "radloop", ALGORITHM.model_name
    model.SoftwareVersions, model.DeviceUID = ALGORITHM.version, generate_uid(entropy_srcs=[ALGORITHM.model_digest])
    model.ContributionDateTime = CREATED.strftime("%Y%m%d%H%M%S.%f")
    model.ContributionDescription = "Model that predicted the result"
    model.PurposeOfReferenceCodeSequence = [code("109102", "Processing Equipment")]
    capture.ContributingEquipmentSequence = [scanner, model]
    capture.SecondaryCaptureDeviceManufacturer = "radloop"
    capture.SecondaryCaptureDeviceManufacturerModelName = ALGORITHM.model_name
    capture.SecondaryCaptureDeviceSoftwareVersions = ALGORITHM.version
    for name in ("Content", "Series"):
        setattr(capture, f"{name}Date", CREATED.strftime("%Y%m%d"))
        setattr(capture, f"{name}Time", CREATED.strftime("%H%M%S.%f"))
    capture.TimeOfSecondaryCapture = capture.ContentTime
    if check:
        conformance.check(capture)
    dcmwrite(path, capture, enforce_file_format=True)
    return path


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def assert_alike(ours: Path, theirs: Path) -> None:
    """Both carry the same attributes, to the depth of sequences, and no error."""
    missing = keywords(dcmread(ours)) - keywords(dcmread(theirs))
    assert not missing, f"the object by hand lacks {', '.join(sorted(missing))}"
    if shutil.which("dciodvfy"):
        for path in (ours, theirs):
            told = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
            errors = [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]
            assert not errors, errors


def keywords(dataset: Dataset, above: str = "") -> set[str]:
    """Of all attributes that have a value, at any depth, with the sequences above them."""
    found = set()
    for element in dataset:
        if not element.is_empty:
            found.add(f"{above}{element.keyword}")
        if element.VR == "SQ":
            found |= {keyword for item in element.value for keyword in keywords(item, f"{above}{element.keyword}.")}
    return found


if __name__ == "__main__":
    sys.exit(main())
