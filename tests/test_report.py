"""The audit's page: self-contained, well-formed, and safe whatever a header says."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import RESEARCH_ONLY
from pipeline.pages.report import MOST_VALUES, audit_page

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
EMPTY_TAGS = {"meta", "br", "img", "link", "hr", "input"}
AREA = {"value": 0.9, "low": 0.8, "high": None}


def _record(name: str = "a", value: str = "GE") -> dict[str, Any]:
    """What audit.json holds, of a dataset of two cases."""
    counts = {name: 1, "b": 1}
    of_split = {label: {"cases": 1, "patients": 1} for label in counts}
    group = {
        "name": "site",
        "title": "Site",
        "features": ["source"],
        "constant": [],
        "cases": 2,
        "auroc_of_class": {},
        "auroc": {"value": 0.9, "low": 0.1, "high": 1.0},
        "auroc_by_case": None,
        "auroc_by_chance": 0.7,
        "reason": "",
        "warned": True,
        "meaning": "confounded",
        "advice": "beware",
        "trap": f"source {value}: 1 of 1 a",
    }
    return {
        "intended_use": RESEARCH_ONLY,
        "radloop_version": "0",
        "manifest": {
            "name": "set",
            "description": value,
            "digest": "0" * 64,
            "unit": "image",
            "classes": list(counts),
            "positive": "b",
            "patients": "dicom",
        },
        "flow": {
            "found": 5,
            "rejected": 1,
            "rejected_by_reason": {"not_an_image": 1},
            "indexed": 4,
            "excluded": 1,
            "excluded_by_rule": {f"exclude modality: {value}": 1},
            "unlabelled": 1,
            "unlabelled_by_rule": {"no label": 1},
            "files": 2,
            "images": 2,
            "cases": 2,
        },
        "patients": {"count": 2, "cases_each_median": 1.0, "cases_each_max": 1, "with_several_classes": 0},
        "classes": [{"name": one, "patients": 1, "cases": 1, "files": 1, "images": 1} for one in counts],
        "splits": [{"name": "train", "cases": 2, "patients": 2, "classes": of_split}],
        "breakdowns": [
            {
                "name": "manufacturer",
                "title": "Manufacturer",
                "values": [
                    {"value": one, "cases": 1, "patients": 1, "classes": {name: 1, "b": 0}} for one in (value, "")
                ],
            }
        ],
        "missing": [
            {"column": "kvp", "missing": 1, "classes": counts},
            {"column": "rows", "missing": 2, "classes": counts},
        ],
        "shortcuts": {
            "warn_over": 0.65,
            "cases": 2,
            "cases_of": 2,
            "cases_decoded": 2,
            "cases_to_decode": 2,
            "not_decoded": {},
            "patients": 2,
            "classes": list(counts),
            "classes_left_out": {},
            "features_left_out": [],
            "folds": 2,
            "groups": [group, group | {"auroc": None, "warned": False, "reason": "the same for every case"}],
            "features": [{"name": "source", "group": "site", "auroc": AREA, "trap": f"source {value}"}],
        },
        "warnings": [f"all of {value}"],
    }


class _Balanced(HTMLParser):
    """Fails on an end tag that closes nothing; `open` are those not closed, `tags` all that began."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def _parsed(page: str) -> _Balanced:
    parser = _Balanced()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def test_the_page_says_what_the_record_says():
    parsed = _parsed(audit_page(_record()))
    text = " ".join(parsed.words.split())
    for part in (
        RESEARCH_ONLY,
        "Audit of set",
        "exclude modality: GE",
        "not an image",
        "beware",
        "unknown",
        "kvp",
        "all of GE",
    ):
        assert part in text
    assert "0.10 to 1.00" in text
    assert "Unknown for every case: rows" in text


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.just(HOSTILE), st.text(max_size=40)))
def test_nothing_from_a_header_becomes_markup(value: str):
    plain, hostile = _parsed(audit_page(_record())), _parsed(audit_page(_record(f"a{value}", f"v{value}")))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in hostile.tags] == [set(attributes) for _, attributes in plain.tags]
    assert "49" not in hostile.words.replace(value, "")


def test_nothing_is_loaded_or_run():
    page = audit_page(_record("a", HOSTILE))
    parsed = _parsed(page)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "a"}
    attributes = {name for _, found in parsed.tags for name in found}
    assert not attributes & {"src", "href", "srcset", "action"}
    assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", page)
    policies = [found["content"] for tag, found in parsed.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_most_frequent_values_are_shown_and_the_rest_counted():
    record = _record()
    record["breakdowns"][0]["values"] = [
        {"value": f"V{number:02d}", "cases": 1 + number % 3, "patients": 1, "classes": {"a": 1, "b": number % 3}}
        for number in range(MOST_VALUES + 5)
    ]
    words = _parsed(audit_page(record)).words
    assert "and 5 more" in words
    shown = set(re.findall(r"V\d\d", words))
    assert len(shown) == MOST_VALUES
    assert {"V02", "V05", "V08", "V11", "V14"} <= shown


@pytest.mark.parametrize("part", ["splits", "auroc", "warnings", "breakdowns", "missing", "several classes"])
def test_what_is_absent_leaves_a_page(part: str):
    record = copy.deepcopy(_record())
    if part == "splits":
        record["splits"] = None
    elif part == "auroc":
        for group in record["shortcuts"]["groups"]:
            group |= {"auroc": None, "warned": False, "reason": "too few patients"}
        record["shortcuts"] |= {"features": [], "folds": None}
    elif part == "several classes":
        record["shortcuts"]["groups"][0]["auroc_of_class"] = {"a": AREA}
        record["manifest"]["positive"] = None
    else:
        record[part] = []
    words = _parsed(audit_page(record)).words
    assert ("too few patients" in words) == (part == "auroc")
