"""The model card and CLAIM's checklist: every section, what the run knows, and nothing that becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import RESEARCH_ONLY
from pipeline.pages.claim import ITEMS, claim_checklist
from pipeline.pages.model_card import TO_BE_STATED, escaped, model_card, table
from tests.run_reports import run_report
from tests.test_report import HOSTILE

SECTIONS = (
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)
"""Of Mitchell 2019, in its order."""
KINDS = ({}, {"classes": ("a", "b", "c")}, {"classes": ("a", "b"), "several": True}, {"folds": 3}, {"cases": 1})
CELL = re.compile(r"(?<!\\)\|")


def test_the_card_has_every_section_and_the_figures():
    content = run_report()
    card = model_card(content)
    places = [card.index(f"## {name}\n") for name in SECTIONS]
    assert places == sorted(places)
    area = content.record["metrics"]["auroc"]
    assert f"| AUROC | {area['value']:.3f} ({area['low']:.3f}–{area['high']:.3f}) |" in card
    for part in (
        RESEARCH_ONLY,
        "beware of Phantoms",
        "the class can be told",
        content.facts.weights_sha256,
        "falls behind",
    ):
        assert part in card
    assert "0.200 (0.150–0.250)" in card  # a stress's drop
    assert f"{content.record['cases']} cases of {content.record['patients']} patients" in card


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_whole(kind: dict):
    content = run_report(**kind, text="a|b\n`c`")
    for text in (model_card(content), claim_checklist(content)):
        blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
        assert blocks
        for block in blocks:
            assert len({len(CELL.findall(line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize("write", [model_card, claim_checklist])
def test_what_is_missing_leaves_a_card(write):
    content = run_report()
    bare = {
        name: value for name, value in content.record.items() if name not in ("stress", "subgroups", "warnings", "by")
    }
    empty = replace(content, record=bare, flow=None, audit=None, environment={}, split=None, members=(), curves={})
    assert len(write(empty)) > 1000


@given(st.text(max_size=60))
def test_nothing_escaped_is_markup(text: str):
    shown = escaped(text)
    assert "\n" not in shown
    assert not re.search(r"[<>]|(?<!\\)(?:\\\\)*[`*|\[\]]", shown)


def test_a_header_becomes_no_markup():
    for text in (model_card(run_report(text=HOSTILE)), claim_checklist(run_report(text=HOSTILE))):
        assert "<" not in text
        assert "alert(1)" in text


def test_a_table_has_a_line_a_row():
    assert table(["a", "b"], [(1, "x|y")]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_the_checklist_has_claims_items_in_order():
    assert [item.number for item in ITEMS] == list(range(1, 45))
    text = claim_checklist(run_report())
    assert re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE) == [str(number) for number in range(1, 45)]
    assert "e240300" not in text  # the reference belongs to the module; the file says what it answers
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_only_the_authors_questions_are_left_to_them():
    answers = dict(re.findall(r"^\| (\d+) \| [^|]* \| (.*) \|$", claim_checklist(run_report()), flags=re.MULTILINE))
    left = {int(number) for number, answer in answers.items() if answer == TO_BE_STATED}
    assert left == {2, 3, 4, 5, 6, 11, 15, 16, 17, 18, 34, 44}
    assert "by patient" in answers["20"]
    assert "2 stress tests" in answers["30"]
    assert "epoch 7" in answers["26"]


def test_other_data_are_external():
    content = replace(run_report(), split=None)
    text = claim_checklist(content)
    assert re.search(r"\| 33 \| [^|]* \| made up: this report \|", text)
