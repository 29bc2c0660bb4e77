"""The whole circle: a PACS forwards a study to radloop, the results come back into the same study, and a viewer shows them; no loop.

The PACS is an Orthanc that forwards everything that it is given to radloop, radloop's own results included.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from tests.pacs.browser import WEBGL_WITHOUT_GPU, Browser
from tests.pacs.node import Node, running_node, start_node
from tests.pacs.ohif import DIST, served_ohif
from tests.pacs.orthanc import AET, Orthanc, free_port, running_orthanc
from tests.pacs.peers import Archive, running_archive, send_all
from tests.pacs.viewer import View, Viewer

FORWARD = "function OnStoredInstance(instance, tags, metadata) SendToModality(instance, 'RADLOOP') end\n"
QUIET_S = 2.0
PATIENT_S = 600
"""For an inference: seconds, on a busy machine minutes."""
KINDS = "sc,sr"
UNCOVERED, GRAY_LEVELS = 0.8, 6
"""As `test_ohif.py` has them: the share of a picture that the viewer's words leave to be seen, and how far a gray may be off."""


@dataclass(frozen=True)
class Circle:
    """What ran, and what lies in the PACS at its end."""

    pacs: Orthanc
    node: Node
    spool: Path
    sources: list[Path]

    @property
    def study(self) -> str:
        return str(dcmread(self.sources[0]).StudyInstanceUID)

    def results(self) -> list[Path]:
        """Objects in the spool, as they were written."""
        return sorted(self.spool.glob("studies/*/out/*/*/*/*.dcm"))


def study_of(looped: Path) -> list[Path]:
    """The files of one CT study of the demo."""
    by_study: dict[str, list[Path]] = {}
    for path in sorted((looped / "export").rglob("IM*")):
        header = dcmread(path, stop_before_pixels=True)
        if header.get("Modality") == "CT":
            by_study.setdefault(str(header.StudyInstanceUID), []).append(path)
    return min(by_study.values(), key=len)


@pytest.fixture(scope="module")
def circle(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Circle]:
    folder, port = tmp_path_factory.mktemp("circle"), free_port()
    (folder / "forward.lua").write_text(FORWARD)
    (folder / "pacs").mkdir()
    sources, spool = study_of(looped), folder / "spool"
    with running_orthanc(folder / "pacs", {"LuaScripts": [str(folder / "forward.lua")]}) as pacs:
        pacs.know("RADLOOP", port)
        options = ["--run", str(looped / "run"), "--to", f"{AET}@127.0.0.1:{pacs.dicom_port}", "--write", KINDS]
        allowed = ["--allow", f"{AET}@127.0.0.1", "--quiet", str(QUIET_S)]
        with running_node(spool, *options, *allowed, port=port) as node:
            pacs.stow(sources)
            node.until(lambda status: status["studies"]["done"] == 1, PATIENT_S)
            yield Circle(pacs, node, spool, sources)


@pytest.mark.slow
@pytest.mark.orthanc
def test_results_come_back_into_the_study_and_make_no_loop(circle: Circle):
    results = circle.results()
    assert results
    status = circle.node.until(lambda status: status["instances"]["of radloop's own"] == len(results), 60)
    time.sleep(3 * QUIET_S)
    again = circle.node.status()
    assert again["instances"] == status["instances"]
    assert again["studies"] == status["studies"]
    assert again["objects_sent"] == len(results)
    assert circle.pacs.count() == len(circle.sources) + len(results)
    assert [match["0020000D"]["Value"] for match in circle.pacs.qido("studies")] == [[circle.study]]
    for path in results:
        sent = dcmread(path)
        assert str(sent.StudyInstanceUID) == circle.study
        back = circle.pacs.wado(circle.study, str(sent.SeriesInstanceUID), str(sent.SOPInstanceUID))
        assert dcmread(DicomBytesIO(back)) == sent
    apart = sorted(path.name for path in circle.spool.glob("studies/*/own/*.dcm"))
    assert apart == sorted(path.name for path in results)


@pytest.mark.slow
@pytest.mark.orthanc
@pytest.mark.ohif
@pytest.mark.chromium
def test_ohif_shows_what_came_back(circle: Circle, tmp_path: Path):
    captures = {}
    for path in circle.results():
        dataset = dcmread(path)
        if dataset.Modality == "OT":
            captures[str(dataset.SOPInstanceUID)] = dataset
    series = circle.pacs.qido(f"studies/{circle.study}/series")
    number = int(next(iter(captures.values())).SeriesNumber)
    assert DIST is not None
    with served_ohif(circle.pacs, DIST) as url:
        browser = Browser(tmp_path, WEBGL_WITHOUT_GPU)
        viewer = Viewer(browser, url)
        viewer.open(circle.study, len(series))
        viewer.show(number)

        def agreement(view: View) -> float:
            written = captures[view.sop_instance_uid].pixel_array.astype(np.int64)
            seen = view.pixels(*written.shape[:2])
            return float((abs(seen - written).max(axis=2) <= GRAY_LEVELS).mean())

        view = viewer.until(lambda view: agreement(view) > UNCOVERED, captures)
        browser.close()
    assert agreement(view) > UNCOVERED


@pytest.mark.slow
def test_killed_while_it_infers_and_sends_it_comes_to_the_same_results(looped: Path, tmp_path: Path):
    from pipeline.infer import infer  # which takes seconds to import

    random.seed(3)
    sources = study_of(looped)
    spool = tmp_path / "spool"
    with running_archive() as archive:
        options = ["--run", str(looped / "run"), "--to", archive.name, "--write", KINDS, "--quiet", "0.5"]
        node = start_node(spool, *options)
        try:
            assert send_all(node.port, sources) == [0] * len(sources)
            for _ in range(2):
                node.until(lambda status: status["studies"]["inferring"] + status["studies"]["done"] == 1, PATIENT_S)
                time.sleep(random.uniform(0.0, 3.0))
                node.kill()
                node = start_node(spool, *options)
            node.until(lambda status: status["studies"]["done"] == 1, PATIENT_S)
            assert node.stop() == 0
        finally:
            node.process.kill()
        (images,) = spool.glob(
            "studies/*/images"
        )  # as they arrived: a file's digest is in the UIDs of what is made of it
        infer(looped / "run", str(images), tmp_path / "expected", write=KINDS.split(","), workers=0, progress=False)
        assert archive.uids == {path.stem for path in (tmp_path / "expected").glob("*/*/*.dcm")}
        sent = len(archive.stored)
        with running_node(spool, *options) as node:  # done is done
            time.sleep(2.0)
            assert node.status()["studies"]["done"] == 1
        assert len(archive.stored) == sent
    (record,) = spool.glob("studies/*/study.json")
    assert json.loads(record.read_text())["state"] == "done"


@pytest.mark.slow
def test_a_pacs_that_is_down_gets_the_results_when_it_is_up_again(looped: Path, tmp_path: Path):
    sources, port = study_of(looped), free_port()
    options = ["--run", str(looped / "run"), "--to", f"ARCHIVE@127.0.0.1:{port}", "--quiet", "0.5"]
    with running_node(tmp_path / "spool", *options, "--keep", "0") as node:
        assert send_all(node.port, sources) == [0] * len(sources)
        status = node.until(lambda status: "could not be sent" in status["last_error"], PATIENT_S)
        assert status["studies"]["waiting"] == 1
        with running_archive(Archive(port=port)) as archive:
            node.until(lambda status: not any(status["studies"].values()), PATIENT_S)  # done, and gone from the spool
            assert archive.uids
        assert list((tmp_path / "spool" / "studies").iterdir()) == []
