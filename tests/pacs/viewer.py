"""What a radiologist sees in OHIF: a study opened, one of its series shown, and the screen looked at in the source's own pixels.

Positions come from the viewer's own camera (`worldToCanvas`), asked for places in the patient (LPS, mm) where the image has such, so that
an overlay is found where it lies on the anatomy, whatever the zoom.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.dicom.geometry import NoPlane, frame_plane
from tests.pacs.browser import Browser

Screen = NDArray[np.uint8]  # (rows, columns, 3)
WIDTH, HEIGHT = 1280, 800
PATIENCE_S = 120
"""For a picture to be drawn: 1 to 8 s by a processor without other work."""
LOOK_S = 0.4
VIEWPORT = "services.viewportGridService.getActiveViewportId()"
CORNERSTONE = f"services.cornerstoneViewportService.getCornerstoneViewport({VIEWPORT})"
NO_TOUR = "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))"
"""OHIF's introduction for newcomers covers the picture."""
ANSWER_NO = "[...document.querySelectorAll('button')].find(one => one.textContent.trim() === 'No')?.click()"


@dataclass(frozen=True)
class View:
    """The screen, which image is on it, and where: pixel (row, column) has its centre at `origin + row * down + column * along` (x, y)."""

    screen: Screen
    sop_instance_uid: str
    frame: int
    """From 0."""
    origin: NDArray[np.float64]
    down: NDArray[np.float64]
    along: NDArray[np.float64]

    def at(self, places: NDArray[Any]) -> NDArray[np.int64]:
        """(n, 3) colours at `places` (n, 2) (row, column), which need not be whole; black where the screen ends."""
        x, y = (self.origin + places[:, :1] * self.down + places[:, 1:] * self.along).T
        x, y = np.floor(x).astype(int), np.floor(y).astype(int)
        inside = (x >= 0) & (y >= 0) & (x < self.screen.shape[1]) & (y < self.screen.shape[0])
        colours = np.zeros((len(places), 3), np.int64)
        colours[inside] = self.screen[y[inside], x[inside]]
        return colours

    def pixels(self, rows: int, columns: int) -> NDArray[np.int64]:
        """(rows, columns, 3): the colours at the centres of all source pixels."""
        places = np.moveaxis(np.indices((rows, columns)), 0, -1).reshape(-1, 2)
        return self.at(places.astype(float)).reshape(rows, columns, 3)

    def places_of(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, 2) (row, column) in source pixels of the screen's pixels in `mask`."""
        y, x = np.nonzero(mask)
        offsets = np.stack([x + 0.5, y + 0.5], axis=1) - self.origin
        return np.asarray(offsets @ np.linalg.inv(np.stack([self.down, self.along])))


class Viewer:
    """OHIF at `url` in a browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self._url = browser, url
        browser.show(f"{url}/app-config.js", WIDTH, HEIGHT)  # any page of the same origin
        browser.value(NO_TOUR)

    def open(self, study_instance_uid: str, series: int) -> None:
        """Opens a study anew, and waits until as many series are listed and the first is drawn."""
        self.browser.show(f"{self._url}/viewer?StudyInstanceUIDs={study_instance_uid}", WIDTH, HEIGHT)
        listed = "window.services?.displaySetService?.getActiveDisplaySets().length"
        self.browser.wait_for(f"{listed} >= {series}", "all series of the study are listed", PATIENCE_S)
        self.browser.wait_for(f"{CORNERSTONE}?.viewportStatus === 'rendered'", "the first series is drawn", PATIENCE_S)

    def show(self, series_number: int) -> None:
        """Puts a series into the viewport, as a double click on its thumbnail does. What OHIF asked about the one before is answered no."""
        self.browser.value(ANSWER_NO)
        uid = self._display_set(series_number)["uid"]
        chosen = json.dumps({"displaySetInstanceUIDs": [uid]})
        self.browser.value(
            f"void services.viewportGridService.setDisplaySetsForViewport({{viewportId: {VIEWPORT}, ...{chosen}}})"
        )

    def is_unsupported(self, series_number: int) -> bool:
        """Whether OHIF lists a series with a warning that it cannot show it."""
        return bool(self._display_set(series_number)["unsupported"])

    def until(self, holds: Callable[[View], bool], shown: Mapping[str, Dataset]) -> View:
        """What is seen of one of the images `shown` (by SOPInstanceUID) as soon as `holds` says so; else, after a while of patience, what
        is seen then: it is for the test to say what is wrong."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            view = self._look(shown)
            if view is not None and (holds(view) or time.monotonic() > deadline):
                return view
            assert time.monotonic() < deadline, "none of the images is shown"
            time.sleep(LOOK_S)

    def _look(self, shown: Mapping[str, Dataset]) -> View | None:
        """None while another image is drawn, or none.

        What comes late (a report's outline, a map's colours) OHIF draws with the next drawing only, e.g. when one scrolls: so it is asked
        to draw.
        """
        drawn = self.browser.value(
            f"""(() => {{
              const v = {CORNERSTONE};
              if (v?.viewportStatus !== 'rendered') {{ return null; }}
              v.render();
              return v.getCurrentImageId();
            }})()"""
        )
        names = re.search(r"/instances/([0-9.]+)/frames/(\d+)", drawn or "")
        if names is None or names[1] not in shown:
            return None
        frame = int(names[2]) - 1
        try:
            plane = frame_plane(shown[names[1]], frame)
            world = json.dumps(plane.to_lps_mm(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist())
        except NoPlane:
            world = "[[0, 0, 0], [0, 1, 0], [1, 0, 0]].map(p => v.getImageData().imageData.indexToWorld(p))"
        corners = self.browser.value(
            f"""(() => {{
              const v = {CORNERSTONE};
              if (!v) {{ return null; }}
              const at = v.element.getBoundingClientRect();
              return {world}.map(p => v.worldToCanvas(p)).map(([x, y]) => [x + at.left, y + at.top]);
            }})()"""
        )
        if corners is None:  # it went between the two questions
            return None
        origin, down, along = np.array(corners, float)
        return View(self.browser.screenshot(), names[1], frame, origin, down - origin, along - origin)

    def _display_set(self, series_number: int) -> dict[str, Any]:
        of_series = f"d => d.SeriesNumber == {series_number}"
        told = "d => ({uid: d.displaySetInstanceUID, unsupported: Boolean(d.unsupported)})"
        return self.browser.wait_for(
            f"services.displaySetService.getActiveDisplaySets().filter({of_series}).map({told})[0]",
            f"series {series_number} is listed",
        )
