"""The whole loop on a small export of phantoms: what each stage leaves on disk, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.dicom.phantom import ct_slice, radiograph, save
from pipeline.dicom.secondary_capture import read_picture
from pipeline.errors import RadloopError, RunError
from pipeline.evaluate import evaluate
from pipeline.explaining.pointing import Pointing, lesion_mask
from pipeline.infer import infer
from pipeline.run import RESEARCH_ONLY, read_model
from pipeline.train import train
from tests.conftest import PHANTOM_SIZE, SMALL

pytestmark = pytest.mark.slow


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_the_demo_says_what_it_found_and_where(looped: Path):
    text = (looped / "lines.txt").read_text()
    for expected in (
        "Phantoms, not patients",
        RESEARCH_ONLY,
        "auroc",
        "opacity",
        "report.html",
        "DICOM objects:",
        "an overlay:",
    ):
        assert expected in text
    summary = json.loads((looped / "summary.json").read_text())
    place = summary["localisation"]
    assert place["true_positive_images"] == 0 or 0 < place["share_by_chance"] < 1
    assert Image.open(looped / "overlay.png").size[0] >= PHANTOM_SIZE


def test_the_run_folder_is_complete(looped: Path):
    run = looped / "run"
    files = {path.name for path in run.iterdir()}
    assert files >= {
        "config.yaml", "manifest.yaml", "split.csv", "exclusions.csv", "model.safetensors", "model.json", "history.csv", "checkpoint.pt",
        "environment.json", "index", "tensorboard", "evaluation",
    }  # fmt: skip
    assert "cache" not in files
    facts = read_model(run)
    assert facts.scope["modality"] == ["CT"]
    assert facts.heatmap_scale > 0
    assert set(facts.path_to_unit_range) == {"HU", "modality", "fraction"}
    assert len(json.loads((run / "environment.json").read_text())["pixel_code"]) == 16
    assert facts.notice == "Phantoms, not patients"
    split = _table(run / "split.csv")
    assert list(split.columns) == ["case_id", "patient_key", "label", "split"]
    assert split.groupby("patient_key")["split"].nunique().eq(1).all()


def test_figures_have_intervals_and_pictures(looped: Path):
    evaluation = looped / "run" / "evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert set(metrics) >= {"split", "classes", "cases", "patients", "metrics", "confusion", "threshold", "warnings"}
    for name in ("accuracy", "sensitivity", "specificity", "f1", "auroc", "average_precision", "brier", "ece"):
        assert set(metrics["metrics"][name]) == {"value", "low", "high"}
    predictions = _table(evaluation / "predictions.csv")
    assert list(predictions.columns) == [
        "case_id", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "path", "label", "predicted",
        "p_normal", "p_opacity", "in_scope", "status", "reason",
    ]  # fmt: skip
    images = _table(evaluation / "image_predictions.csv")
    mean = images.astype({"p_opacity": float}).groupby("case_id")["p_opacity"].mean()
    assert mean.reindex(predictions["case_id"]).to_numpy() == pytest.approx(
        predictions["p_opacity"].astype(float).to_numpy()
    )
    for name in ("confusion_matrix", "roc", "history", "class_histogram", "gallery"):
        assert Image.open(evaluation / f"{name}.png").size[0] > 300


def test_warnings_stand_once_and_in_words(looped: Path):
    evaluation = looped / "run" / "evaluation"
    for name in ("report.html", "MODEL_CARD.md"):
        assert (evaluation / name).read_text().count("rough and too narrow") == 1
    told = json.loads((evaluation / "metrics.json").read_text())["warnings"]
    assert not [warning for warning in told if "_" in warning]


def test_every_file_is_in_a_table(looped: Path):
    tables = [
        _table(looped / "out" / name)["path"] for name in ("image_predictions.csv", "rejects.csv", "exclusions.csv")
    ]
    counted = Counter(path for table in tables for path in set(table))
    files = {
        path.relative_to(looped / "export").as_posix() for path in (looped / "export").rglob("*") if path.is_file()
    }
    assert set(counted) == files
    assert set(counted.values()) == {1}


def test_no_identity_leaves_the_export(looped: Path):
    """Names, IDs and accession numbers of the phantoms are in no table, log or run; only in objects, where they belong."""
    texts = [
        path
        for folder in ("index", "run", "out")
        for path in (looped / folder).rglob("*")
        if path.suffix in (".csv", ".json", ".yaml")
    ]
    assert texts
    accessions = set(_table(looped / "labels.csv")["AccessionNumber"])
    for path in texts:
        content = path.read_text()
        assert "PHANTOM^" not in content, path
        assert "PH-00" not in content, path
        assert not [number for number in accessions if number in content], path
    index = pd.read_parquet(looped / "index" / "index.parquet").astype(str)
    assert not index.apply(lambda column: column.str.contains("PH-00|PHANTOM\\^|PHA0", regex=True)).any().any()


def test_objects_stand_in_the_sources_study(looped: Path):
    objects, references = _table(looped / "out/objects.csv"), _table(looped / "out/references.csv")
    cases = _table(looped / "out/predictions.csv").set_index("case_id")
    index = pd.read_parquet(looped / "index/index.parquet").set_index("sop_instance_uid")
    assert len(objects)
    for row in objects.itertuples():
        (path,) = (looped / "out").glob(f"*/*/{row.sop_instance_uid}.dcm")
        assert path.parent.parent.name == cases.loc[row.case_id, "study_instance_uid"]
        source = references.set_index("object").loc[row.sop_instance_uid, "source"]
        found = index.loc[[source]].iloc[0]
        picture = read_picture(path)
        assert picture.shape[0] > found["rows"]
        assert picture.shape[1] >= found["columns"]


@pytest.mark.dciodvfy
def test_objects_pass_dciodvfy(looped: Path):
    paths = sorted((looped / "out").rglob("*.dcm"))
    assert paths
    for path in paths:
        checked = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        assert not [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")], path
        assert checked.returncode == 0


def test_inferring_again_makes_the_same_objects(looped: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(looped / "out", out)
    first = {path.name: path.read_bytes() for path in out.rglob("*.dcm")}
    infer(looped / "run", str(looped / "export"), out, progress=False)
    assert {path.name: path.read_bytes() for path in out.rglob("*.dcm")} == first
    infer(looped / "run", str(looped / "export"), tmp_path / "elsewhere", progress=False)
    digests = [_table(folder / "objects.csv")["content_digest"].tolist() for folder in (out, tmp_path / "elsewhere")]
    assert digests[0] == digests[1]


def test_images_without_labels_or_headers_get_overlays(looped: Path, tmp_path: Path):
    """A bare folder: a PNG, a radiograph out of scope, a broken file; all predicted or rejected, nothing lost."""
    folder = tmp_path / "bare"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120), dtype=np.uint8)).save(folder / "slice.png")
    save(radiograph(64), folder / "film")
    broken = ct_slice(64)
    save(broken, folder / "whole")
    (folder / "cut").write_bytes((folder / "whole").read_bytes()[:-500])
    out = tmp_path / "out"
    code = main(["infer", str(looped / "run"), str(folder), "--out", str(out)])
    cases = _table(out / "predictions.csv").set_index("path")
    assert code == 0
    assert cases.loc["slice.png", "in_scope"] == "False"
    assert (out / "overlays/bare/slice.png.png").is_file()
    assert "film" in set(_table(out / "exclusions.csv")["path"])  # the study's rules choose CT
    assert _table(out / "rejects.csv")["path"].tolist() == ["cut"]
    assert len(list(out.rglob("*.dcm"))) == 1


def test_resuming_and_refusing(looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    config = load_config("demo", [*SMALL, "training.epochs=1"]).model_copy(
        update={"manifest": str(looped / "manifest.yaml")}
    )
    train(config, run, progress=False)
    with pytest.raises(RunError, match="holds a trained run"):
        train(config, run, progress=False)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 2})})
    train(longer, run, resume=True, progress=False)
    assert len(pd.read_csv(run / "history.csv")) == 2
    other = config.model_copy(update={"seed": 9})
    with pytest.raises(RunError, match="another configuration"):
        train(other, run, resume=True, progress=False)


def test_resuming_with_other_data_or_another_key_is_refused(
    looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    config = load_config("demo", SMALL).model_copy(update={"manifest": str(looped / "manifest.yaml")})
    swapped = tmp_path / "manifest.yaml"
    text = (looped / "manifest.yaml").read_text().replace("path: ", f"path: {looped}/")
    swapped.write_text(text.replace("classes: [normal, opacity]", "classes: [opacity, normal]"))
    with pytest.raises(RunError, match="another configuration"):
        train(config.model_copy(update={"manifest": str(swapped)}), run, resume=True, progress=False)
    settings = (run / "config.yaml").read_text().replace(str(looped / "manifest.yaml"), str(swapped))
    (run / "config.yaml").write_text(settings)
    with pytest.raises(RunError, match="another manifest"):
        train(config.model_copy(update={"manifest": str(swapped)}), run, resume=True, progress=False)
    monkeypatch.setenv("RADLOOP_KEY", "quite another key of this project")
    with pytest.raises(RunError, match="another key"):
        train(config, looped / "run", resume=True, progress=False)


def _three_classes(folder: Path) -> Path:
    """PNGs of three classes in two sources that share file names; class names with space and slash."""
    random = np.random.default_rng(0)
    for source in ("first", "second"):
        for number in range(36):
            image = random.integers(0, 90, (40, 56), dtype=np.uint8)
            image[:, 18 * (number % 3) : 18 * (number % 3) + 18] += 120
            path = folder / source / f"c{number % 3}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (folder / "manifest.yaml").write_text(
        "name: three\nclasses: [left lung, mid/dle, right]\nsources: [{path: first}, {path: second}]\n"
        "labels: {source: folder, values: {c0: left lung, c1: mid/dle, c2: right}}\n"
        "patients: {source: blocks, blocks: {pattern: '(\\d+)\\.png', size: 3}}\n"
    )
    (folder / "config.yaml").write_text("name: three\nmanifest: manifest.yaml\nnetwork: {architecture: resnet18}\n")
    return folder / "config.yaml"


def test_three_classes_of_two_sources(tmp_path: Path):
    config = load_config(str(_three_classes(tmp_path / "data")), SMALL)
    train(config, tmp_path / "run", progress=False)
    record = evaluate(tmp_path / "run", progress=False)
    assert {"auroc", "auroc_mid/dle", "accuracy"} <= set(record["metrics"])
    assert any("independence is not proven" in warning for warning in record["warnings"])
    out = tmp_path / "out"
    summary = infer(tmp_path / "run", config.manifest, out, progress=False)
    assert (summary.cases, summary.failed, summary.overlays, summary.objects) == (72, 0, 72, 0)
    images = _table(out / "image_predictions.csv")
    assert not images.duplicated(["source", "path"]).any()
    assert len(list((out / "overlays").rglob("*.png"))) == 72
    probabilities = images[["p_left lung", "p_mid/dle", "p_right"]].astype(float)
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1.0)
    with pytest.raises(RunError, match="images were trained or validated on"):
        evaluate(tmp_path / "run", data=config.manifest, progress=False)


def test_a_file_that_was_sent_again_counts_once(looped: Path):
    """The demo's export has a copy of a slice: its study is the mean of as many images as it has slices."""
    left_out = _table(looped / "out/exclusions.csv")
    again = left_out[left_out["rule"] == "collision: duplicate"]
    assert len(again) == 1
    assert not _table(looped / "out/image_predictions.csv")["sop_instance_uid"].duplicated().any()


@pytest.mark.parametrize(
    ("given", "said"), [(["evalute", "x"], "did you mean evaluate?"), (["xyzzy"], "there are index"), ([], "usage:")]
)
def test_what_is_no_command_is_told_what_there_is(given: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(given) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["infer"], ["evaluate"]])
def test_a_folder_that_is_no_run_names_the_run_in_it(
    command: list[str], looped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rest = [str(looped / "export"), "--out", str(tmp_path / "out")] if command == ["infer"] else []
    assert main([*command, str(looped), *rest]) == 2
    assert f"not a run of radloop train; did you mean {looped / 'run'}?" in capsys.readouterr().err


def test_without_objects_only_tables(looped: Path, tmp_path: Path):
    assert main(["infer", str(looped / "run"), str(looped / "export"), "--out", str(tmp_path), "--write", "none"]) == 0
    assert not list(tmp_path.rglob("*.dcm"))
    columns = ["case_id", "p_opacity"]
    pd.testing.assert_frame_equal(
        _table(tmp_path / "predictions.csv")[columns], _table(looped / "out/predictions.csv")[columns]
    )


def test_objects_do_not_depend_on_file_names(looped: Path, tmp_path: Path):
    """A second export of the same study makes the same instances, whatever its files are called."""
    index = pd.read_parquet(looped / "index/index.parquet")
    study = index[(index["modality"] == "CT") & (index["convolution_kernel"] == "LUNG")]["study_instance_uid"].iloc[0]
    paths = index[index["study_instance_uid"] == study]["path"].tolist()
    uids = []
    for name, ordered in (("one", paths), ("two", paths[::-1])):
        for number, path in enumerate(ordered):
            target = tmp_path / name / f"IM{number:04d}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(looped / "export" / path, target)
        infer(looped / "run", str(tmp_path / name), tmp_path / f"out-{name}", progress=False)
        uids.append({path.name for path in (tmp_path / f"out-{name}").rglob("*.dcm")})
    assert uids[0] == uids[1] != set()


def test_an_earlier_run_is_the_start_of_the_next(looped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A new head on frozen features of a run; other numbers than those it was trained on are warned about."""
    overrides = [f"network.weights={looped / 'run'}", "network.trainable=head", "preprocessing.scaling=min_max"]
    config = load_config("demo", [*SMALL, *overrides]).model_copy(update={"manifest": str(looped / "manifest.yaml")})
    facts = train(config, tmp_path / "run", progress=False)
    assert facts.initial_weights == "run/model.safetensors"
    assert facts.initial_weights_sha256 == read_model(looped / "run").weights_sha256
    assert "trained with another preprocessing.scaling" in capsys.readouterr().err


def test_a_patient_in_two_splits_is_refused(looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    split = _table(run / "split.csv")
    split.loc[split["split"] == "test", "patient_key"] = split.loc[split["split"] == "train", "patient_key"].iloc[0]
    split.to_csv(run / "split.csv", index=False)
    with pytest.raises(RunError, match="more than one split"):
        evaluate(run, progress=False)


def test_other_data_with_the_same_patients_is_refused(looped: Path):
    with pytest.raises(RunError, match=r"of its patients and \d+ of its images were trained"):
        evaluate(looped / "run", data=str(looped / "manifest.yaml"), progress=False)


def test_damaged_weights_are_refused(looped: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(RunError, match="sha256"):
        infer(run, str(looped / "export"), tmp_path / "out", progress=False)


def test_a_changed_file_is_a_failed_image_not_a_wrong_one(looped: Path, tmp_path: Path):
    """The index of a run is of files as they were; one that changed since is told apart."""
    demo_copy = tmp_path / "demo"
    shutil.copytree(looped, demo_copy)
    config = load_config("demo", [*SMALL, "training.epochs=1"]).model_copy(
        update={"manifest": str(demo_copy / "manifest.yaml")}
    )
    train(config, tmp_path / "run", progress=False)
    test_paths = _table(tmp_path / "run/split.csv").query("split == 'test'")["case_id"]
    index = pd.read_parquet(tmp_path / "run/index/index.parquet")
    victim = index[(index["study_instance_uid"] == test_paths.iloc[0]) & (index["modality"] == "CT")]["path"].iloc[-1]
    path = demo_copy / "export" / victim
    path.write_bytes(path.read_bytes() + b"\0\0")
    record = evaluate(tmp_path / "run", progress=False)
    images = _table(tmp_path / "run/evaluation/image_predictions.csv").set_index("path")
    assert record["failed"] == 0
    assert images.loc[victim, "reason"].startswith("changed")


def test_the_cache_changes_no_prediction(
    looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Evaluated without a cache, with an empty one and with a full one: the same to the last digit."""
    run = tmp_path / "run"
    shutil.copytree(looped / "run", run)
    (tmp_path / "file").touch()
    told = []
    for place in ("file/cache", "cache", "cache"):
        monkeypatch.setenv("RADLOOP_CACHE", str(tmp_path / place))
        evaluate(run, progress=False)
        told.append((run / "evaluation/image_predictions.csv").read_bytes())
    assert told[0] == told[1] == told[2]
    assert "this evaluation goes on without it" in capsys.readouterr().err
    assert list((tmp_path / "cache").glob("*/*/*.block"))


def test_where_the_cache_cannot_be_written_the_run_has_one(
    looped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RADLOOP_CACHE", str(tmp_path / "file/cache"))
    config = load_config("demo", [*SMALL, "training.epochs=1"]).model_copy(
        update={"manifest": str(looped / "manifest.yaml")}
    )
    train(config, tmp_path / "run", progress=False)
    assert list((tmp_path / "run/cache").glob("*/*/*.block"))
    assert f"they go to {tmp_path / 'run/cache'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ct_slic", "--out", "{tmp}/r"], "Did you mean ct_slices"),
        (["train", "ct_slices", "--root", "{tmp}", "--out", "{tmp}/r"], "--root DIR"),
        (["index", "{tmp}/nowhere", "--out", "{tmp}/i"], "no such file or folder"),
        (["index", "{tmp}/empty", "--out", "{tmp}/i"], "without any file"),
        (["index", "{tmp}", "--out", "{tmp}/i"], "lies inside the source"),
        (["evaluate", "{tmp}"], "not a run of radloop train"),
        (["infer", "{run}", "{export}", "--out", "{export}/out"], "lies inside the source"),
        (["infer", "{run}", "{export}", "--out", "{tmp}/o", "--write", "sx"], "expected some of sc, sc-multiframe"),
        (["evaluate", "{run}", "--split", "holdout"], "expected one of train, validation, test"),
        (["demo", "--out", "{export}"], "not empty and not from an earlier demo"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, looped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    filled = [part.format(tmp=tmp_path, run=looped / "run", export=looped / "export") for part in arguments]
    assert main(filled) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_a_demo_never_takes_a_folder_of_the_users(tmp_path: Path):
    """Somebody's project with a key of its own is not "an earlier demo"."""
    (tmp_path / ".radloop-key").write_text("somebody's own key of a project\n")
    (tmp_path / "export").mkdir()
    (tmp_path / "export/file").write_text("precious")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "export/file").read_text() == "precious"


def test_pointing_is_said_with_chance_beside_it():
    assert "90% of 40 true-positive test images (25% by chance)" in Pointing(40, 0.9, 0.25).line()
    assert "no heatmap can be judged" in Pointing(0, 0.0, 0.0).line()


def test_lesion_masks_are_ellipses():
    mask = lesion_mask(
        pd.DataFrame([{"row": 10.0, "column": 20.0, "radius_rows": 3.0, "radius_columns": 6.0}]), (32, 40)
    )
    assert mask[10, 14:27].all()
    assert not mask[10, 13]
    assert mask.sum() == pytest.approx(np.pi * 18, rel=0.1)


def test_errors_have_one_base():
    assert issubclass(RunError, RadloopError)
