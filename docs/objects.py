"""Draws `docs/objects.png`: what a viewer shows of each kind of object, over a phantom.

`python -m docs.objects` from the repository's root makes the picture anew: a generated study and its objects go to Orthanc, OHIF shows
them in Chromium (see tests/pacs), and the viewport is cut out of the screen. The presentation state, which OHIF does not show, is drawn
here from its own attributes. The evidence is no model's: it is drawn where the phantom has its opacities.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import write_object
from pipeline.dicom.phantom import make_export
from pipeline.dicom.pixels import read_pixels
from pipeline.prediction.object_set import Made, objects_of
from pipeline.prediction.pictures import picture
from pipeline.profile_settings import KINDS, Kind
from pipeline.render import Legend
from tests.case_results import SCALE, case_result
from tests.pacs.browser import WEBGL_WITHOUT_GPU, Browser
from tests.pacs.ohif import DIST, served_ohif
from tests.pacs.orthanc import running_orthanc
from tests.pacs.viewer import View, Viewer
from transforms.intensity import WINDOWS, to_unit_range

PANEL = (440, 342)  # width, height of one picture
TITLE_PIXELS = 24
COLUMNS = 3
VIEWPORT = (288, 52, 1241, 793)  # left, top, right, bottom on the screen
CHEST = (430, 190, 1110, 719)  # the part of it that tells something, but of a picture, which is shown whole
GRAYS, COLOURS = 96, 160  # of the PNG's palette
COLOURED = 12  # from which difference between its channels a pixel is no gray
SHOWN: tuple[tuple[Kind, str], ...] = (
    ("sc", "sc: Secondary Capture"),
    ("overlay", "overlay: rim of the region, 60xx"),
    ("gsps", "gsps: presentation state (not OHIF)"),
    ("sr", "sr: outline and measurements"),
    ("seg", "seg: region"),
    ("pmap", "pmap: evidence, in OHIF's colours"),
)
SETTLED_LOOKS = 3
"""A picture is taken when so many looks in a row see the same."""

Picture = NDArray[np.uint8]  # (rows, columns, 3)


def main() -> None:
    """Writes the picture beside this script."""
    if DIST is None:
        raise SystemExit("OHIF is not at hand: .ci/ohif gets it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, ellipses = _series(folder)
        result = _result(files, ellipses)
        made = [outcome for outcome in objects_of(result, KINDS) if isinstance(outcome, Made)]
        paths = [write_object(one.dataset, folder / "out") for one in made]
        (folder / "orthanc").mkdir()
        with running_orthanc(folder / "orthanc") as orthanc, served_ohif(orthanc, DIST) as url:
            orthanc.stow([*files, *paths])
            browser = Browser(folder / "profile", WEBGL_WITHOUT_GPU)
            try:
                panels = _panels(Viewer(browser, url), result, made)
            finally:
                browser.close()
    _with_palette(_grid(panels)).save(Path(__file__).with_name("objects.png"), optimize=True)


def _series(folder: Path) -> tuple[list[Path], dict[str, list[dict[str, float]]]]:
    """Slices of one series that have opacities, and these by SOPInstanceUID."""
    export = make_export(folder, patients=2, slices=9, size=256)
    ellipses: dict[str, list[dict[str, float]]] = {}
    with export.lesions.open(newline="") as file:
        for row in csv.DictReader(file):
            uid = row.pop("sop_instance_uid")
            ellipses.setdefault(uid, []).append({name: float(value) for name, value in row.items()})
    lung = sorted(path for path in export.folder.glob("DICOM/*/ST000000/SE000001/*"))
    files = [path for path in lung if dcmread(path, stop_before_pixels=True).SOPInstanceUID in ellipses]
    return files, ellipses


def _result(files: list[Path], ellipses: dict[str, list[dict[str, float]]]) -> CaseResult:
    result = case_result(files)
    images = tuple(
        dataclasses.replace(
            image,
            evidence_of=partial(_evidence, image.source, ellipses[str(image.source.SOPInstanceUID)]),
            picture_of=partial(_picture, result, image, file, ellipses[str(image.source.SOPInstanceUID)]),
        )
        for image, file in zip(result.images, files, strict=True)
    )
    return dataclasses.replace(result, images=images)


def _evidence(source: Dataset, ellipses: list[dict[str, float]]) -> NDArray[np.float32]:
    """A smooth hill over each opacity, and a little below 0 elsewhere."""
    rows, columns = np.indices((int(source.Rows), int(source.Columns)))
    hills = [
        np.exp(
            -0.7
            * (
                ((rows - one["row"]) / one["radius_rows"]) ** 2
                + ((columns - one["column"]) / one["radius_columns"]) ** 2
            )
        )
        for one in ellipses
    ]
    return ((1.3 * np.max(hills, axis=0) - 0.1) * SCALE).astype(np.float32)


def _picture(result: CaseResult, image: ResultImage, file: Path, ellipses: list[dict[str, float]]) -> Picture:
    texts = result.profile.texts
    legend = Legend(texts.evidence.format(name=result.shown), SCALE, result.unit, texts.cell.format(size=result.cell))
    count = len(result.key_images)
    lines = [result.said, texts.key_image.format(place=image.key, count=count)] if image.key else [result.said]
    return picture(_gray(file), _evidence(image.source, ellipses), legend, lines, [], result.profile)


def _gray(file: Path) -> NDArray[np.uint8]:
    return np.rint(255 * to_unit_range(read_pixels(file), WINDOWS["lung"])).astype(np.uint8)


def _panels(viewer: Viewer, result: CaseResult, made: list[Made]) -> list[tuple[str, Picture]]:
    """What is seen of each kind, with its title."""
    viewer.open(str(result.images[0].source.StudyInstanceUID), 1 + len({one.kind for one in made}))
    panels = []
    for kind, title in SHOWN:
        datasets = [one.dataset for one in made if one.kind == kind]
        if kind == "gsps":
            panels.append((title, _presented(result, datasets[0])))
            continue
        own_pixels = kind in ("sc", "overlay")
        on_screen = datasets if own_pixels else [image.source for image in result.images]
        viewer.show(result.profile.series_number_of(kind))
        left, top, right, bottom = VIEWPORT if kind == "sc" else CHEST
        panels.append((title, _settled(viewer, on_screen).screen[top:bottom, left:right]))
        viewer.show(int(result.images[0].source.SeriesNumber))
    return panels


def _settled(viewer: Viewer, on_screen: list[Dataset]) -> View:
    seen: list[NDArray[np.uint8]] = []

    def is_settled(view: View) -> bool:
        seen.append(view.screen)
        last = seen[-SETTLED_LOOKS:]
        return len(seen) > SETTLED_LOOKS and all(np.array_equal(one, last[0]) for one in last)

    return viewer.until(is_settled, {str(dataset.SOPInstanceUID): dataset for dataset in on_screen})


def _presented(result: CaseResult, state: Dataset) -> Picture:
    """The first referenced image as the state has it shown, six times as large: window, graphics, text."""
    (series,) = state.ReferencedSeriesSequence
    uid = series.ReferencedImageSequence[0].ReferencedSOPInstanceUID
    image = next(one for one in result.key_images if one.source.SOPInstanceUID == uid)
    times = 6
    canvas = Image.fromarray(_gray(Path(image.source.filename))).convert("RGB")
    canvas = canvas.resize((canvas.width * times, canvas.height * times), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    for item in state.GraphicAnnotationSequence:
        if item.ReferencedImageSequence[0].ReferencedSOPInstanceUID != uid:
            continue
        for graphic in item.get("GraphicObjectSequence", ()):
            points = np.array(graphic.GraphicData).reshape(-1, 2) * times  # 0\0: the first pixel's corner
            draw.line([(x, y) for x, y in points], fill=result.profile.colors.outline, width=times)
        for text in item.get("TextObjectSequence", ()):
            left, top = text.BoundingBoxTopLeftHandCorner
            font = ImageFont.load_default(size=44)
            place = (left * canvas.width, top * canvas.height)
            draw.multiline_text(place, text.UnformattedTextValue.replace("\r\n", "\n"), font=font, fill="white")
    return np.asarray(canvas)


def _grid(panels: list[tuple[str, Picture]]) -> Picture:
    width, height = PANEL
    rows = -(-len(panels) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * (height + TITLE_PIXELS)), "black")
    draw = ImageDraw.Draw(sheet)
    for number, (title, panel) in enumerate(panels):
        left, top = number % COLUMNS * width, number // COLUMNS * (height + TITLE_PIXELS)
        draw.text((left + 8, top + 4), title, font=ImageFont.load_default(size=15), fill="white")
        shown = Image.fromarray(panel)
        shown.thumbnail((width - 8, height - 6), Image.Resampling.LANCZOS)
        sheet.paste(shown, (left + (width - shown.width) // 2, top + TITLE_PIXELS))
    return np.asarray(sheet)


def _with_palette(picture: Picture) -> Image.Image:
    """A third of the bytes: grays, and the colours that are most in need."""
    coloured = picture[np.ptp(picture, axis=2) > COLOURED]
    colours = Image.fromarray(coloured[None]).quantize(COLOURS).getpalette() or []
    grays = np.repeat(np.linspace(0, 255, GRAYS).astype(np.uint8), 3).tolist()
    palette = Image.new("P", (1, 1))
    palette.putpalette(grays + colours[: 3 * COLOURS])
    return Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
