"""What OHIF shows of the objects, over the source at the right place: pixels of the screen are held to what was written.

Nothing of the viewer is replaced: the study lies in Orthanc, OHIF runs in Chromium, and the screen is looked at. Kinds that OHIF does not
show are listed by it with a warning; that they are shown right elsewhere is for `test_pacs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.spatial import KDTree

from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import write_object
from pipeline.dicom.outline import closed_polylines, rim
from pipeline.dicom.pixels import read_pixels
from pipeline.prediction.object_set import Made, objects_of
from pipeline.profile_settings import KINDS, Kind
from tests.case_results import case_result
from tests.pacs.browser import WEBGL_WITHOUT_GPU, Browser
from tests.pacs.ohif import DIST, served_ohif
from tests.pacs.orthanc import Orthanc
from tests.pacs.viewer import View, Viewer
from tests.sources import SOURCES
from transforms.intensity import WINDOWS, to_unit_range

pytestmark = [pytest.mark.ohif, pytest.mark.orthanc, pytest.mark.chromium]

Gray = NDArray[np.float64]  # (rows, columns), 0 to 255
LUNG = WINDOWS["lung"]
SHOWN = ("ct", "ct_of_no_axis", "cr_monochrome1", "enhanced_ct")
"""Sources of which the objects are looked at: a plane of the body, one of no axis, no frame of reference, frames of one file."""
MAPPED = ("ct", "ct_of_no_axis", "enhanced_ct")
"""Those of them that can have Parametric Maps."""
SEGMENTED = ("ct", "ct_of_no_axis")
"""Those of them whose Segmentations OHIF shows over the image; over frames of one file it draws the region on black."""
SINGLE = ("ct", "ct_of_no_axis", "cr_monochrome1")
"""Those of them that can have overlay planes."""
GRAY_LEVELS = 6
"""By how much a gray on the screen may be off, of 255: rounding here and there, and a window's end taken as 149 or 150 HU."""
UNCOVERED = 0.9
"""The share of the image that the viewer's own words and buttons leave to be seen, at least."""
COLOURED = 30
"""From which difference between red, or green, and the others a pixel of a gray image is painted; its gray has none."""
SAME_PLACE = 0.9
"""The share of agreement (intersection over union) of what is painted with what was written: at its edge a pixel is half covered."""
LINE_PIXELS = 0.35
"""How far, in source pixels, a dashed line may be from its place: half a gap between dashes and its width. Half a pixel is too far."""


@dataclass(frozen=True)
class Study:
    """A study in the PACS with all objects that its source can have."""

    result: CaseResult
    files: list[Path]
    objects: dict[Kind, list[Dataset]]

    @property
    def sources(self) -> dict[str, Dataset]:
        return {str(image.source.SOPInstanceUID): image.source for image in self.result.images}

    def number(self, kind: Kind) -> int:
        return self.result.profile.series_number_of(kind)

    def image(self, view: View) -> ResultImage:
        """The image on the screen, also where it is a derived copy of it."""
        copies = {str(copy.SOPInstanceUID): copy.SourceImageSequence[0] for copy in self.objects.get("overlay", [])}
        copied = copies.get(view.sop_instance_uid)
        uid = str(copied.ReferencedSOPInstanceUID) if copied is not None else view.sop_instance_uid
        return next(one for one in self.result.images if one.source.SOPInstanceUID == uid and one.frame == view.frame)


@pytest.fixture(scope="module")
def viewer(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    assert DIST is not None
    with served_ohif(orthanc, DIST) as url:
        browser = Browser(tmp_path_factory.mktemp("profile"), WEBGL_WITHOUT_GPU)
        yield Viewer(browser, url)
        browser.close()


@pytest.fixture(scope="module", params=SHOWN)
def study(
    request: pytest.FixtureRequest, orthanc: Orthanc, viewer: Viewer, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """Stored, and open in the viewer."""
    folder = tmp_path_factory.mktemp("study")
    files = SOURCES[request.param](folder / "source")
    result = case_result(files)
    made = [outcome for outcome in objects_of(result, KINDS) if isinstance(outcome, Made)]
    orthanc.delete_all()
    orthanc.stow([*files, *(write_object(one.dataset, folder / "out") for one in made)])
    objects: dict[Kind, list[Dataset]] = {}
    for one in made:
        objects.setdefault(one.kind, []).append(one.dataset)
    viewer.open(str(result.images[0].source.StudyInstanceUID), 1 + len(objects))
    return Study(result, files, objects)


def test_the_source_is_where_the_tests_look_for_it(viewer: Viewer, study: Study):
    viewer.show(int(study.result.images[0].source.SeriesNumber))
    file_of = {str(image.source.SOPInstanceUID): Path(image.source.filename) for image in study.result.images}

    def expected(view: View) -> Gray:
        pixels = read_pixels(file_of[view.sop_instance_uid], view.frame)
        return 255.0 * to_unit_range(pixels, LUNG)

    view = viewer.until(lambda view: _share_equal(_gray(view, study), expected(view)) > UNCOVERED, study.sources)
    seen = _gray(view, study)
    assert _share_equal(seen, expected(view)) > UNCOVERED
    assert _best_shift(seen, expected(view), _share_equal) == (0, 0)


def test_a_secondary_capture_is_the_picture_that_was_written(viewer: Viewer, study: Study):
    pictures = {str(picture.SOPInstanceUID): picture for picture in study.objects["sc"]}
    viewer.show(study.number("sc"))

    def seen(view: View) -> NDArray[np.int64]:
        return view.pixels(*pictures[view.sop_instance_uid].pixel_array.shape[:2])

    def written(view: View) -> NDArray[np.int64]:
        return pictures[view.sop_instance_uid].pixel_array.astype(np.int64)

    view = viewer.until(lambda view: _share_equal(seen(view), written(view)) > UNCOVERED, pictures)
    assert _share_equal(seen(view), written(view)) > UNCOVERED
    assert _best_shift(seen(view), written(view), _share_equal) == (0, 0)


@pytest.mark.parametrize("study", SINGLE, indirect=True)
def test_an_overlay_plane_is_the_rim_of_the_region(viewer: Viewer, study: Study):
    copies = {str(copy.SOPInstanceUID): copy for copy in study.objects["overlay"]}
    viewer.show(study.number("overlay"))

    def expected(view: View) -> NDArray[np.bool_]:
        return rim(study.result.region(study.image(view)))

    view = viewer.until(lambda view: _overlap(_reddish(view, study), expected(view)) > SAME_PLACE, copies)
    assert _overlap(_reddish(view, study), expected(view)) > SAME_PLACE
    assert _best_shift(_reddish(view, study), expected(view), _overlap) == (0, 0)


@pytest.mark.parametrize("study", SEGMENTED, indirect=True)
def test_a_segmentation_covers_the_region(viewer: Viewer, study: Study):
    viewer.show(study.number("seg"))

    def expected(view: View) -> NDArray[np.bool_]:
        return study.result.region(study.image(view))

    view = viewer.until(lambda view: _overlap(_reddish(view, study), expected(view)) > SAME_PLACE, study.sources)
    assert _overlap(_reddish(view, study), expected(view)) > SAME_PLACE
    assert _best_shift(_reddish(view, study), expected(view), _overlap) == (0, 0)


def test_a_structured_report_draws_the_outline_of_the_region(viewer: Viewer, study: Study):
    viewer.show(study.number("sr"))

    def outline(view: View) -> NDArray[np.float64]:
        (line,) = closed_polylines(study.result.region(study.image(view)))
        return _every(line[:, ::-1].astype(float), LINE_PIXELS / 2) - 0.5  # of pixels' centres

    def near(view: View) -> float:
        return float((_distances(outline(view), view.places_of(_green(view.screen))) < LINE_PIXELS).mean())

    view = viewer.until(lambda view: near(view) > SAME_PLACE, study.sources)
    assert near(view) > SAME_PLACE
    assert study.image(view).key == 1
    painted = view.places_of(_green(view.screen))
    left = painted[painted[:, 1] < np.median(outline(view)[:, 1])]  # at the right the viewer writes what was measured
    assert len(left) > 0
    assert _distances(left, outline(view)).max() < LINE_PIXELS


@pytest.mark.parametrize("study", MAPPED, indirect=True)
def test_a_parametric_map_colours_what_has_evidence(viewer: Viewer, study: Study):
    """The last: OHIF keeps its colours for what is shown after it. They are its own, whatever the object says: from 0 to 1 a rainbow,
    above 1 all red, below 0 nothing."""
    viewer.show(study.number("pmap"))

    def agreement(view: View) -> float:
        return min(_rainbow(_pixels(view, study), study.image(view).evidence_of()).values())

    assert agreement(viewer.until(lambda view: agreement(view) > SAME_PLACE, study.sources)) > SAME_PLACE


def test_what_it_does_not_show_it_lists_with_a_warning(viewer: Viewer, study: Study):
    """Presentation states and key objects: a later OHIF that shows them would be held to their places here, too."""
    assert {kind: viewer.is_unsupported(study.number(kind)) for kind in study.objects} == {
        kind: kind in ("gsps", "kos") for kind in study.objects
    }


def _shape(study: Study) -> tuple[int, int]:
    source = study.result.images[0].source
    return int(source.Rows), int(source.Columns)


def _pixels(view: View, study: Study) -> NDArray[np.int64]:
    return view.pixels(*_shape(study))


def _gray(view: View, study: Study) -> Gray:
    return _pixels(view, study).mean(axis=2)


def _reddish(view: View, study: Study) -> NDArray[np.bool_]:
    """What is painted in the orange of regions or the pink of overlay planes; OHIF's own buttons are blue."""
    red, _, blue = np.moveaxis(_pixels(view, study), -1, 0)
    return np.asarray(red - blue > COLOURED)


def _green(screen: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pure green in which OHIF draws what a report says."""
    red, green, blue = np.moveaxis(screen.astype(np.int64), -1, 0)
    return np.asarray(green - np.maximum(red, blue) > 2 * COLOURED)


def _rainbow(seen: NDArray[np.int64], evidence: NDArray[np.float32]) -> dict[str, float]:
    """For some ranges of evidence the share of pixels that have the colour due to it."""
    red, green, blue = np.moveaxis(seen, -1, 0)
    gray = (abs(red - green) <= GRAY_LEVELS) & (abs(red - blue) <= GRAY_LEVELS)
    due = {
        "red": ((evidence > 1.1), red - np.maximum(green, blue) > COLOURED),
        "green": (abs(evidence - 0.6) < 0.05, green - np.maximum(red, blue) > COLOURED),
        "blue": (abs(evidence - 0.25) < 0.05, blue - np.maximum(red, green) > COLOURED),
        "none": (evidence < 0, gray),
    }
    return {colour: float(painted[where].mean()) for colour, (where, painted) in due.items()}


def _share_equal(seen: NDArray[Any], expected: NDArray[Any]) -> float:
    return float((abs(seen - expected).reshape(*seen.shape[:2], -1).max(axis=2) <= GRAY_LEVELS).mean())


def _best_shift(
    seen: NDArray[Any], expected: NDArray[Any], likeness: Callable[[NDArray[Any], NDArray[Any]], float]
) -> tuple[int, int]:
    """By how many rows and columns `seen` is to be moved to be most like `expected`."""
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    return max(shifts, key=lambda shift: likeness(np.roll(seen, shift, (0, 1)), expected))


def _overlap(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((found & expected).sum() / max((found | expected).sum(), 1))


def _every(line: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Points along a line, at most `step` apart."""
    pieces = []
    for start, end in pairwise(line):
        count = int(np.ceil(np.linalg.norm(end - start) / step))
        pieces.append(start + (end - start) * np.arange(count)[:, None] / count)
    return np.concatenate(pieces)


def _distances(points: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) of each of `points` from the nearest of `to`; far where there is none."""
    return np.asarray(KDTree(to).query(points)[0] if len(to) else np.full(len(points), np.inf))
