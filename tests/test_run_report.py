"""The page of an evaluation: whole, bounded and safe for every kind of model, whatever is missing and whatever a name holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import RESEARCH_ONLY
from pipeline.config import digest
from pipeline.pages.gallery import GalleryItem
from pipeline.pages.report_charts import MOST_LINES, roc_chart
from pipeline.pages.report_figures import WIDTH, Chart, epoch_axis, log_axis, unit_axis, value_axis
from pipeline.pages.report_history import history_charts
from pipeline.pages.report_tables import MOST_CLASSES, MOST_SQUARE, fold_rows
from pipeline.pages.run_report import RunReport, read_audit, run_page, write_run_report
from tests.run_reports import run_report
from tests.test_report import HOSTILE, _parsed

LARGEST_PAGE = 5_000_000
KINDS: dict[str, dict[str, Any]] = {
    "two": {},
    "many": {"classes": tuple(f"kind {number}" for number in range(MOST_SQUARE + 4)), "cases": 300},
    "four": {"classes": ("a", "b", "c", "d")},
    "several": {"classes": ("Edema", "Effusion", "Mass"), "several": True},
    "folds": {"folds": 3},
    "tiny": {"cases": 1, "pictures": 1},
}


def _words(content: RunReport) -> str:
    return " ".join(_parsed(run_page(content)).words.split())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_a_page(kind: str):
    content = run_report(**KINDS[kind])
    words = _words(content)
    for part in (
        RESEARCH_ONLY,
        "made up",
        "beware of Phantoms",
        "the class can be told from Phantoms",
        "207 files found",
    ):
        assert part in words
    for name in content.facts.classes[:MOST_CLASSES]:
        assert name in words
    assert ("Called and missed" in words) == content.facts.several
    assert ("Networks of the ensemble" in words) == (kind == "folds")
    assert ("The most frequent errors" in words) == (kind == "many")


def test_the_figures_are_those_of_the_record():
    content = run_report()
    words, area = _words(content), content.record["metrics"]["auroc"]
    assert f"{area['value']:.3f} AUROC {area['low']:.3f}–{area['high']:.3f}" in words
    assert f"{content.record['cases']} cases of {content.record['patients']} patients" in words
    assert "0.010 −0.040 to 0.060" in words
    assert "0.200 0.150–0.250" in words  # what the second stress costs
    assert "costs much" in words
    assert "falls behind" in words
    assert "epoch 7" in run_page(content)
    assert "logits divided by 1.3" in words
    assert "opacity from 0.4 on; chosen on the validation split" in words
    assert content.facts.weights_sha256 in words
    (first, second), (third, fourth) = content.record["confusion"]
    assert f"{first} {first / (first + second):.0%}"[:-1] in words
    assert f"{fourth} {fourth / (third + fourth):.0%}"[:-1] in words


MISSING = {
    "gallery": ({"gallery": ()}, "No picture to show"),
    "flow and split": ({"flow": None, "split": None}, "other data, test"),
    "audit": ({"audit": None}, "No audit of these data"),
    "curves": ({"curves": {}}, "No curve can be drawn"),
    "members": ({"members": ()}, "How well"),
    "environment": ({"environment": {}}, "Seeds"),
}


@pytest.mark.parametrize("part", MISSING)
def test_what_is_missing_is_left_out_or_said(part: str):
    without, said = MISSING[part]
    assert said in _words(replace(run_report(), **without))


@pytest.mark.parametrize(
    "key", ["stress", "subgroups", "by", "by_left_out", "calibration", "warnings", "confusion", "failed"]
)
def test_a_record_of_fewer_keys_is_enough(key: str):
    content = run_report()
    record = {name: value for name, value in content.record.items() if name != key}
    words = _words(replace(content, record=record))
    assert ("Not tested. radloop evaluate --stress" in words) == (key == "stress")
    assert ("is not known" in words) == (key == "subgroups")


def test_a_history_of_missing_columns_draws_the_others():
    content = run_report()
    history = content.members[0].history
    assert history is not None
    short = history[["epoch", "train_loss"]]
    broken = history.assign(val_loss=np.nan, train_loss="?", learning_rate=0.0)
    for table, titles in (
        (short, ["Loss"]),
        (broken, ["Accuracy", "AUROC"]),
        (history.iloc[:0], []),
        (history[[]], []),
    ):
        assert [figure.title for figure in history_charts({"": table}, {"": 7})] == titles


def test_of_very_many_networks_some_are_drawn_and_said_to_be():
    content = run_report(folds=MOST_LINES + 3)
    figures = history_charts({one.name: one.history for one in content.members if one.history is not None}, {})
    assert f"The first {MOST_LINES} of {MOST_LINES + 3} networks" in figures[0].caption
    assert len(figures[0].legend) == MOST_LINES


def test_folds_without_cross_validation_say_their_epochs():
    content = run_report(folds=2)
    rows = fold_rows({}, content.members)
    assert [(row["name"], row["epoch"], row["epochs"], row["cases"]) for row in rows] == [
        ("fold-0", 7, 12, None),
        ("fold-1", 7, 12, None),
    ]


@settings(max_examples=15, deadline=None)
@given(st.one_of(st.just(HOSTILE), st.text(min_size=1, max_size=30)))
def test_nothing_from_outside_becomes_markup(text: str):
    plain, hostile = (_parsed(run_page(run_report(text=one, cases=40))) for one in ("x", text))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [set(given) for _, given in hostile.tags] == [set(given) for _, given in plain.tags]


def test_class_names_are_escaped_in_charts_and_tables():
    content = run_report(classes=("a", f"b{HOSTILE}", "c"))
    parsed = _parsed(run_page(content))
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert HOSTILE in parsed.words


def test_nothing_is_loaded_and_only_one_script_may_run():
    page = run_page(run_report())
    parsed = _parsed(page)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"link", "iframe", "object", "embed", "form", "video", "base"}
    sources = [found["src"] for _, found in parsed.tags if "src" in found]
    assert sources
    assert all(re.match(r"data:image/(jpeg|png);base64,", str(one)) for one in sources)
    assert all(str(found["href"]).startswith("#") for _, found in parsed.tags if "href" in found)
    assert not [name for _, found in parsed.tags for name in found if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    allowed = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [found["content"] for _, found in parsed.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src '{allowed}'; base-uri 'none'; form-action 'none'"
    )


def test_it_is_accessible_in_its_markup():
    parsed = _parsed(run_page(run_report(folds=2)))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert all("alt" in found for tag, found in parsed.tags if tag == "img")
    assert all(found.get("scope") in ("col", "row") for tag, found in parsed.tags if tag == "th")
    assert all("aria-label" in found or "aria-hidden" in found for tag, found in parsed.tags if tag == "svg")
    marks = {found["id"] for _, found in parsed.tags if "id" in found}
    assert {str(found["href"])[1:] for tag, found in parsed.tags if tag == "a"} <= marks
    assert len(marks) == len([1 for _, found in parsed.tags if "id" in found])


def test_it_stays_small_however_much_there_is():
    classes = tuple(f"class {number}" for number in range(60))
    content = run_report(classes=classes, cases=3000)
    noise = np.random.default_rng(0).integers(0, 256, (18, 448, 448), dtype=np.uint8)
    layer = np.random.default_rng(1).integers(0, 256, (448, 448, 4), dtype=np.uint8)
    items = [GalleryItem(picture, layer, "a", "b", "b", 0.5) for picture in noise]
    warnings = [f"warning {number}" for number in range(500)]
    values = [{**content.record["subgroups"][0], "value": f"scanner {number}"} for number in range(300)]
    quiet = [one | {"warning": ""} for one in values]
    record = {**content.record, "warnings": warnings, "subgroups": quiet}
    page = run_page(replace(content, gallery=items, record=record))
    assert len(page.encode()) < LARGEST_PAGE
    assert page.count("scanner ") < 100
    assert "and 470 more in metrics.json" in page
    assert "and 20 more in metrics.json" in page  # classes
    drawn = roc_chart(content.curves, content.record)
    assert drawn is not None
    assert drawn.svg.count("<path") == MOST_LINES


def test_three_files_are_written(tmp_path: Path):
    write_run_report(tmp_path, run_report())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["MODEL_CARD.md", "claim_checklist.md", "report.html"]


def test_an_audit_is_taken_only_if_it_is_of_this_manifest(tmp_path: Path):
    content, path = run_report(), tmp_path / "audit.json"
    assert read_audit(path, content.manifest) is None
    for text, taken in (
        ("{", False),
        ("[]", False),
        (json.dumps({"manifest": {"digest": "0"}, "warnings": []}), False),
        (json.dumps({"manifest": {"digest": digest(content.manifest)}, "warnings": 1}), False),
        (json.dumps({"manifest": {"digest": digest(content.manifest)}, "warnings": ["w"]}), True),
    ):
        path.write_text(text)
        assert (read_audit(path, content.manifest) is not None) == taken


NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(-2, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_whatever_is_drawn_stays_inside_its_chart(points: list[tuple[float, float]]):
    chart = Chart(unit_axis("x"), unit_axis("y"), "says")
    chart.line(points, "#000")
    chart.band([x for x, _ in points], [y for _, y in points], [y for _, y in points], "#000")
    drawn = str(chart.svg())
    for path in re.findall(r' d="([^"]*)"', drawn):
        numbers = [float(one) for one in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]
        assert all(0 <= x <= WIDTH for x in numbers[::2])
        assert all(0 <= y <= chart.height for y in numbers[1::2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), max_size=20), st.integers(1, 5000))
def test_axes_have_a_length_and_a_handful_of_ticks(values: list[float], epochs: int):
    shares = value_axis(values, "", low=0.1, high=1.0)
    for axis in (value_axis(values, ""), shares, epoch_axis(epochs), log_axis(values, "")):
        assert axis.low < axis.high
        assert 1 <= len(axis.ticks) <= 14
        assert [value for value, _ in axis.ticks] == sorted({value for value, _ in axis.ticks})
        step = axis.ticks[-1][0] - axis.ticks[0][0]
        assert all(axis.low - step / 1e6 <= value <= axis.high + step / 1e6 for value, _ in axis.ticks)
        assert 0 <= axis.share(axis.ticks[0][0]) <= axis.share(axis.ticks[-1][0]) <= 1


def test_a_curve_of_very_many_points_is_drawn_with_few():
    rate = np.linspace(0, 1, 200_000)
    chart = Chart(unit_axis("x"), unit_axis("y"), "says")
    chart.line(zip(rate, np.sqrt(rate), strict=True), "#000")
    assert len(str(chart.svg())) < 20_000


def test_a_wild_epoch_does_not_hide_the_others():
    losses = pd.DataFrame({"epoch": range(1, 21), "val_loss": [4000.0, *np.linspace(1, 0.3, 19)]})
    (figure,) = history_charts({"": losses}, {})
    assert ">1000<" in figure.svg  # ticks of a logarithmic axis
    assert ">0.1<" in figure.svg
