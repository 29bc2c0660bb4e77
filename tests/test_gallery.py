"""Which cases are shown, and that a picture and its heatmap, apart, are what the overlay is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import RejectReason
from pipeline.networks.model import Geometry
from pipeline.pages import gallery
from pipeline.pages.gallery import (
    ERRORS,
    ERRORS_SHOWN,
    LONGEST_SIDE,
    OUTCOMES,
    OUTCOMES_SHOWN,
    blended,
    chosen_cases,
    gallery_items,
    heatmap_layer,
    shown_sides,
    tiles,
)
from pipeline.prediction.predict import ImageResult, TrainedModel
from pipeline.prepared.dataset import ImageFile, Prepared
from pipeline.render import overlay
from pipeline.work import Failure
from tests.run_reports import made_up_cases, model_facts, predictions

ROUNDING = 3
"""Of 255: the overlay is rounded once, the layers colour, opacity and sum each."""
SHADES = arrays(np.float32, (6, 5), elements=st.floats(0, 1, width=32))
EVIDENCE = arrays(np.float32, (6, 5), elements=st.floats(-3, 6, width=32))
KINDS: dict[str, dict[str, Any]] = {
    "two": {},
    "three": {"classes": ("a", "b", "c")},
    "several": {"classes": ("a", "b", "c"), "several": True},
}


@settings(max_examples=60, deadline=None)
@given(SHADES, EVIDENCE)
def test_picture_and_heatmap_together_are_the_overlay(shades: np.ndarray, evidence: np.ndarray):
    layer = heatmap_layer(evidence, 2.0)
    assert layer.shape == (6, 5, 4)
    assert not layer[evidence <= 0][:, 3].any()
    together = blended(np.rint(shades * 255).astype(np.uint8), layer)
    assert np.abs(together.astype(int) - overlay(shades, evidence, 2.0)).max() <= ROUNDING


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.floats(0.2, 5))
def test_a_picture_keeps_the_patients_proportions(shape: tuple[int, int], ratio: float):
    rows, columns = shown_sides(shape, (ratio, 1.0))
    assert 1 <= min(rows, columns) <= max(rows, columns) <= LONGEST_SIDE
    height, width = shape[0] * ratio, shape[1]
    shorter = min(height, width) / max(height, width)
    assert min(rows, columns) == pytest.approx(max(1.0, shorter * max(rows, columns)), abs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 150])
def test_the_surest_errors_come_first_and_no_case_twice(kind: str, count: int):
    facts = model_facts(**KINDS[kind])
    table = predictions(facts, made_up_cases(facts, count))
    chosen = chosen_cases(table, facts)
    errors, others = ([one for one in chosen if one.group == group] for group in (ERRORS, OUTCOMES))
    wrong = table[table["label"] != table["predicted"]]
    assert len({one.case_id for one in chosen}) == len(chosen)
    assert len(errors) == min(ERRORS_SHOWN, len(wrong))
    assert len(others) == min(OUTCOMES_SHOWN, count - len(errors))
    assert all(one.label != one.predicted for one in errors)
    if kind == "two" and errors:
        surest = (wrong["p_opacity"] - (wrong["label"] == "opacity")).abs().nlargest(len(errors))
        assert [one.case_id for one in errors] == table.loc[surest.index, "case_id"].tolist()
    left = table[~table["case_id"].isin([one.case_id for one in errors])]
    outcomes = len(left.drop_duplicates(["label", "predicted"]))
    assert len({(one.label, one.predicted) for one in others}) == min(outcomes, OUTCOMES_SHOWN)


def test_a_reader_finds_the_case_again_and_failed_ones_are_not_shown():
    facts = model_facts()
    table = predictions(facts, made_up_cases(facts, 40))
    table.loc[3, ["status", "p_normal", "p_opacity", "predicted"]] = ["failed", np.nan, np.nan, ""]
    lines = table.to_csv(index=False).splitlines()
    for one in chosen_cases(table, facts):
        number = int(one.where.split()[1])
        assert lines[number - 1].startswith(f"{one.case_id},")
        assert one.case_id != "case 3"


def test_of_several_findings_an_errors_worst_one_is_shown():
    facts = model_facts(("a", "b", "c"), several=True)
    table = pd.DataFrame(
        {"case_id": ["x", "y"], "label": ["a", "c"], "predicted": ["a|b", "c"], "p_a": [0.8, 0.1], "p_b": [0.9, 0.2]}
    ).assign(p_c=[0.1, 0.7], status="ok")
    assert [(one.case_id, one.shown, one.probability) for one in chosen_cases(table, facts)] == [
        ("x", "b", 0.9),
        ("y", "c", 0.7),
    ]


class _Network:
    geometry = Geometry(cell_stride=8.0, cell_offset=0.0)


def _predicted(asked: list[str]) -> Any:
    """In place of `predict_files`: the more evidence the later the image; images called broken fail."""

    def predict(_: TrainedModel, files: list[ImageFile], *, keep_shown: bool) -> Iterator[ImageResult]:
        assert keep_shown
        for number, file in enumerate(files):
            asked.append(file.path)
            if "broken" in file.path:
                yield ImageResult(file, failure=Failure(RejectReason.CHANGED, "gone"))
                continue
            shown = np.full((32, 16), number, np.uint8)
            place = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
            prepared = Prepared(np.zeros((1, 32, 32), np.uint16), place, (32, 16), shown, (2.0, 1.0), "")
            evidence = np.full((2, 4, 4), number - 0.5, np.float32)
            yield ImageResult(file, prepared=prepared, probabilities=np.array([0.5, 0.5]), evidence=evidence)

    return predict


@pytest.mark.parametrize(("pooling", "by"), [("mean", "p_opacity"), ("attention", "attention"), ("volume", "")])
def test_the_image_that_counts_most_stands_for_its_case(monkeypatch: pytest.MonkeyPatch, pooling: str, by: str):
    facts = model_facts(network={"architecture": "resnet18", "pooling": pooling})
    cases = predictions(facts, made_up_cases(facts, 2))
    names = ["0/a", "0/b", "0/broken", "1/broken"]
    images = pd.DataFrame({"case_id": ["case 0"] * 3 + ["case 1"], "status": "ok"})
    images["p_opacity"], images["p_normal"] = [0.1, 0.9, 0.2, 0.5], 0.5
    if pooling == "attention":
        images["attention"] = [0.7, 0.2, 0.1, 1.0]
    facts_of_files = {
        "source": "s",
        "path": names,
        "format": "png",
        "frame": 0,
        "bytes": 1,
        "mtime_ns": 1,
        "modality": "",
    }
    source_images = pd.DataFrame({"case_id": images["case_id"], **facts_of_files})
    asked: list[str] = []
    monkeypatch.setattr(gallery, "predict_files", _predicted(asked))
    model: Any = type("Model", (), {"facts": facts, "geometry": _Network.geometry})()
    items = gallery_items(model, cases, images, source_images, {"s": Path("/")})
    wanted = {"p_opacity": {"0/b", "1/broken"}, "attention": {"0/a", "1/broken"}, "": set(names)}
    assert set(asked) == wanted[by]
    (item,) = items  # the other case's only image cannot be read any more
    assert item.shown == "opacity"
    assert item.picture.shape == (64, 16)  # pixels twice as high as wide
    assert item.where.startswith("line ")


def test_tiles_are_the_items_by_outcome():
    facts = model_facts()
    layer = heatmap_layer(np.full((4, 4), 3.0, np.float32), facts.heatmap_scale)
    items = [
        gallery.GalleryItem(np.zeros((4, 4), np.uint8), heatmap, actual, "a", "b", 0.25)
        for actual, heatmap in (("b", layer), ("a", None))
    ]
    first, second = tiles(items)
    assert (first.actual, second.actual, second.about, second.probability) == ("a", "b", "b", 0.25)
    assert first.picture.shape == (4, 4, 3)
    assert not first.picture.any()
    assert second.picture.any()
