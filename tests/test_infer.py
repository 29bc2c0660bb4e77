"""Inference as a stream: killed and called again, all kinds of objects, strict scope, and what a newer model replaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydicom import dcmread

import pipeline.infer as stage
from pipeline.cli import main
from pipeline.infer import infer
from pipeline.prediction import deliver, inference_parts
from pipeline.prediction.object_set import Made, Unmade
from pipeline.prediction.predict import ImageResult
from pipeline.profile_settings import KINDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TABLES = ("predictions.csv", "image_predictions.csv", "objects.csv", "references.csv", "not_written.csv")


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _content(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(inference_parts, "PART_IMAGES", 4)
    return 4


def test_what_was_interrupted_goes_on(
    looped: Path,
    tmp_path: Path,
    small_parts: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Only what was not done is predicted again, and the tables are those of a call that nothing stopped."""
    infer(looped / "run", str(looped / "export"), tmp_path / "whole", progress=False)
    real, seen = stage.predict_files, []

    def counted(*arguments: object, **options: object) -> Iterator[ImageResult]:
        for result in real(*arguments, **options):  # type: ignore[arg-type]
            seen.append(result.file.path)
            if limit and len(seen) > limit:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(stage, "predict_files", counted)
    images = len(_table(tmp_path / "whole/image_predictions.csv"))
    limit = images - 3
    with pytest.raises(KeyboardInterrupt):  # without workers nothing is read ahead
        infer(looped / "run", str(looped / "export"), tmp_path / "out", workers=0, progress=False)
    done = list((tmp_path / "out/.inference").iterdir())
    assert done
    seen.clear()
    limit = 0
    infer(looped / "run", str(looped / "export"), tmp_path / "out", progress=False)
    assert f"going on: {len(done)} of" in capsys.readouterr().err
    assert 0 < len(seen) <= images - small_parts * len(done)
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_killed_and_called_again(looped: Path, tmp_path: Path):
    """SIGKILL once the first part is done: nothing half stands in OUT, and the next call ends with the same tables."""
    infer(looped / "run", str(looped / "export"), tmp_path / "whole", progress=False)
    command = (
        "import sys; from pipeline.prediction import inference_parts; inference_parts.PART_IMAGES = 4\n"
        "if __name__ == '__main__':\n    from pipeline.cli import main\n    sys.exit(main(sys.argv[1:]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(command)
    arguments = ["infer", str(looped / "run"), str(looped / "export"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), *arguments], env=environment, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 600:
        if any(not path.name.startswith(".") for path in (tmp_path / "out/.inference").glob("*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    for path in (tmp_path / "out").rglob("*.dcm"):
        assert dcmread(path).SOPInstanceUID
    infer(looped / "run", str(looped / "export"), tmp_path / "out", progress=False)
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def everything(looped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of objects of the phantoms."""
    out = tmp_path_factory.mktemp("everything") / "out"
    assert main(["infer", str(looped / "run"), str(looped / "export"), "--out", str(out), "--profile", "complete"]) == 0
    return out


def test_every_kind_is_written_or_said_not_to_be(everything: Path):
    objects, unmade = _table(everything / "objects.csv"), _table(everything / "not_written.csv")
    cases = set(_table(everything / "predictions.csv")["case_id"])
    for kind in KINDS:
        told = set(objects.loc[objects["kind"] == kind, "case_id"]) | set(unmade.loc[unmade["kind"] == kind, "case_id"])
        assert told == cases, kind
    assert set(objects["kind"]) == set(KINDS)
    assert {path.relative_to(everything).as_posix() for path in everything.rglob("*.dcm")} == set(objects["path"])


def test_of_a_set_with_an_invalid_object_none_is_written(looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They refer to each other; and what stands in OUT stands in its table."""
    real = deliver.objects_of

    def spoiled(*arguments: Any) -> Iterator[Made | Unmade]:
        outcomes = list(real(*arguments))
        *_, last = [outcome for outcome in outcomes if isinstance(outcome, Made)]
        del last.dataset.SOPClassUID
        yield from outcomes

    monkeypatch.setattr(deliver, "objects_of", spoiled)
    summary = infer(
        looped / "run", str(looped / "export"), tmp_path, write=["sc", "sr", "kos"], workers=0, progress=False
    )
    assert summary.failed == summary.cases > 0
    assert not list(tmp_path.rglob("*.dcm"))
    assert _table(tmp_path / "objects.csv").empty
    assert _table(tmp_path / "predictions.csv")["reason"].str.contains("no object").all()


def test_every_reference_leads_to_a_source_or_to_one_of_the_set(everything: Path, looped: Path):
    index = pd.read_parquet(looped / "index/index.parquet")
    objects = _table(everything / "objects.csv")
    sources = set(index["sop_instance_uid"])
    assert set(_table(everything / "references.csv")["source"]) <= sources
    known = sources | set(objects["sop_instance_uid"])
    for path in everything.rglob("*.dcm"):
        for element in dcmread(path, stop_before_pixels=True).iterall():
            if element.keyword == "ReferencedSOPInstanceUID":
                assert element.value in known, path


@pytest.mark.dciodvfy
def test_every_object_passes_dciodvfy(everything: Path):
    for path in sorted(everything.rglob("*.dcm")):
        checked = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        assert not [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")], path


def test_strict_scope_writes_nothing_for_what_is_outside(looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    facts = json.loads((run / "model.json").read_text())
    facts["scope"] = {**facts["scope"], "body_part_examined": ["HEAD"]}
    (run / "model.json").write_text(json.dumps(facts))
    marked = infer(run, str(looped / "export"), tmp_path / "marked", progress=False)
    assert marked.objects > 0
    assert marked.out_of_scope == marked.cases
    path = next((tmp_path / "marked").rglob("*.dcm"))
    assert "out of scope: body_part_examined is CHEST" in dcmread(path).ImageComments
    strict = infer(run, str(looped / "export"), tmp_path / "strict", strict_scope=True, progress=False)
    assert strict.objects == 0
    reasons = _table(tmp_path / "strict/not_written.csv")
    assert set(reasons["case_id"]) == set(_table(tmp_path / "strict/predictions.csv")["case_id"])
    assert reasons["reason"].str.contains("strict-scope").all()


def test_a_newer_model_retracts_what_an_older_one_said(looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    facts = json.loads((run / "model.json").read_text())
    facts["temperature"] *= 2.0
    (run / "model.json").write_text(json.dumps(facts))
    old = _table(looped / "out/objects.csv")
    summary = infer(run, str(looped / "export"), tmp_path / "out", replaces=looped / "out", progress=False)
    assert summary.retracted == len(old)
    new = _table(tmp_path / "out/objects.csv")
    notes = new[new["kind"] == "retraction"]
    assert len(notes) == old["path"].str.split("/").str[0].nunique()
    rejected = set()
    for path in notes["path"]:
        note = dcmread(tmp_path / "out" / path)
        assert note.Modality == "KO"
        rejected |= {item.ReferencedSOPInstanceUID for study in note.CurrentRequestedProcedureEvidenceSequence
                     for series in study.ReferencedSeriesSequence for item in series.ReferencedSOPSequence}  # fmt: skip
    assert rejected == set(old["sop_instance_uid"])
    same = infer(looped / "run", str(looped / "export"), tmp_path / "same", replaces=looped / "out", progress=False)
    assert same.retracted == 0


def test_nothing_to_replace_is_wrong_use(looped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["infer", str(looped / "run"), str(looped / "export"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--replaces", str(tmp_path / "nowhere")]) == 2
    assert "expected the OUT of an earlier radloop infer" in capsys.readouterr().err
    assert main([*arguments, "--profile", "germann"]) == 2
    assert "Did you mean german" in capsys.readouterr().err


def test_texts_of_a_site_stand_on_the_picture_and_in_attributes_in_ascii(looped: Path, tmp_path: Path):
    infer(looped / "run", str(looped / "export"), tmp_path, profile="german", write=["sc"], progress=False)
    comments = [dcmread(path).ImageComments for path in tmp_path.rglob("*.dcm")]
    assert comments
    assert all("Wahrscheinlichkeit" in text and text.isascii() for text in comments)
    assert all("esearch use only" in text for text in comments)
