"""The page of an evaluation, `report.html`: one file without network; beside it `MODEL_CARD.md` and `claim_checklist.md`.

In: a `RunReport` of plain values, as the evaluation has them; every part but `record`, `facts`, `config` and `manifest` may be missing,
and is then left out or said to be missing. Out: three whole files. The page is readable without its one script, which lets a slider
fade the heatmaps; the script is named by its sha256, so that nothing else can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

import pipeline
from pipeline.config import digest
from pipeline.evaluation.stress import LARGEST_CALLED_DROP, LARGEST_DROP
from pipeline.files import write_whole
from pipeline.metrics.names import METRICS
from pipeline.pages import run_words
from pipeline.pages.claim import claim_checklist
from pipeline.pages.model_card import model_card
from pipeline.pages.report import page_environment
from pipeline.pages.report_charts import (
    precision_recall_chart,
    reliability_chart,
    roc_chart,
    with_interval,
)
from pipeline.pages.report_content import Member as Member
from pipeline.pages.report_content import RunReport as RunReport
from pipeline.pages.report_content import read_audit as read_audit
from pipeline.pages.report_history import history_charts
from pipeline.pages.report_pictures import gallery_groups, heatmap_ramp
from pipeline.pages.report_tables import (
    KEYS,
    OF_A_CLASS,
    class_histogram,
    class_rows,
    confusion_rows,
    finding_rows,
    fold_rows,
    frequent_confusions,
    key_figures,
    level_rows,
    metric_rows,
    stress_forest,
    subgroup_forest,
)
from pipeline.prediction.explain import evidence_unit, method_words
from pipeline.wording import counted

REPORT_FILE, CARD_FILE, CHECKLIST_FILE = "report.html", "MODEL_CARD.md", "claim_checklist.md"
MOST_WARNINGS = 30
SECTIONS = {
    "data": "Data",
    "training": "Training",
    "performance": "Performance",
    "calibration": "Calibration",
    "subgroups": "Subgroups",
    "stress": "Stress",
    "cases": "Cases",
    "model": "Model",
}


def write_run_report(folder: Path, content: RunReport) -> None:
    """Writes `report.html`, `MODEL_CARD.md` and `claim_checklist.md` into `folder`, each whole."""
    write_whole(folder / REPORT_FILE, run_page(content))
    write_whole(folder / CARD_FILE, model_card(content))
    write_whole(folder / CHECKLIST_FILE, claim_checklist(content))


def run_page(content: RunReport) -> str:
    """The page as text."""
    script, script_hash = _script()
    parts = _data(content) | _training(content) | _performance(content) | _model(content)
    coloured = any(item.heatmap is not None for item in content.gallery)
    shown = [
        name
        for name in SECTIONS
        if not (name == "data" and not (content.flow or parts["histogram"]))
        and not (name == "training" and not content.members)
        and not (name == "calibration" and not (parts["reliability"] or parts["calibration_words"]))
    ]
    return page_environment().get_template("report.html").render(
        parts,
        gallery=gallery_groups(content.gallery),
        ramp=heatmap_ramp() if coloured else "",
        record=content.record,
        facts=content.facts,
        who=content.who,
        of_whom=content.of_whom,
        split_words=_split_words(content),
        subtitle=_subtitle(content),
        intended_use=content.facts.intended_use,
        radloop_version=pipeline.__version__,
        warnings=_bounded([one for one in content.record.get("warnings") or [] if one != content.facts.notice]),
        quick_audit=bool((content.audit or {}).get("quick")),
        audit_warnings=_bounded((content.audit or {}).get("warnings") or []),
        sections=[(name, SECTIONS[name]) for name in shown],
        shown=shown,
        script=Markup(script),
        script_hash=script_hash,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _script() -> tuple[str, str]:
    """The page's script, and its name in the Content-Security-Policy (CSP level 3, 2.3.1)."""
    text = resources.files("pipeline.pages").joinpath("templates", "report.js").read_text("utf-8")
    return text, "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _split_words(content: RunReport) -> str:
    name = content.record["split"]
    return f"the {name} split" if content.own_data else f"other data, {name}"


def _subtitle(content: RunReport) -> str:
    """The data in a sentence."""
    about = f"Data: {content.manifest.name}. {content.manifest.description}"
    return about.strip() + ("" if about.strip().endswith(".") else ".")


def _bounded(warnings: Sequence[str]) -> list[str]:
    more = len(warnings) - MOST_WARNINGS
    return list(warnings[:MOST_WARNINGS]) + ([f"and {more} more in metrics.json"] if more > 0 else [])


def _data(content: RunReport) -> dict[str, Any]:
    facts = content.facts
    histogram = None
    if content.split is not None and len(content.split):
        histogram = class_histogram(content.split, facts.classes, facts.several)
    words = [f"Labels: {run_words.labels_words(content.manifest)}"]
    if content.own_data:
        words.append(f"Splits: {run_words.split_words(content.manifest)}; {run_words.disjoint_words(content.manifest)}")
    if content.audit is None:
        words.append(
            "No audit of these data was at hand: radloop audit MANIFEST says what a model could lean on in them"
        )
    return {"flow": content.flow, "histogram": histogram, "data_words": words}


def _training(content: RunReport) -> dict[str, Any]:
    histories = {one.name: one.history for one in content.members if one.history is not None}
    whole = content.record.get("cross_validation")
    together = None
    if whole:
        cells = [with_interval(whole["metrics"].get(name), 2) for name in KEYS]
        together = {"cases": whole["cases"], "cells": cells}
    return {
        "learning": history_charts(histories, {one.name: one.facts.best_epoch for one in content.members}),
        "folds": fold_rows(content.record, content.members),
        "fold_metrics": [METRICS[name] for name in KEYS],
        "folds_together": together,
        "folds_warnings": (whole or {}).get("warnings") or [],
    }


def _performance(content: RunReport) -> dict[str, Any]:
    record, curves = content.record, content.curves
    drawn = [roc_chart(curves, record), precision_recall_chart(curves, record)]
    return {
        "keys": key_figures(record),
        "curves": [figure for figure in drawn if figure is not None],
        "metrics": metric_rows(record),
        "many": record.get("positive") is None,
        "classes": class_rows(record),
        "class_metrics": [METRICS[name] for name in OF_A_CLASS],
        "thresholds": bool(record.get("several")),
        "confusion": confusion_rows(record),
        "confusions": frequent_confusions(record),
        "findings": finding_rows(record),
        "levels": level_rows(record),
        "reliability": reliability_chart(curves, record),
        "calibration_words": _calibration_words(content),
        "threshold_words": run_words.threshold_words(content.facts, content.config),
        "subgroups": _with_cells(subgroup_forest(record), ("cases", "patients", "others"), "falls behind"),
        "stress": _with_cells(stress_forest(record), (), "costs much"),
        "largest_drop": f"{LARGEST_DROP:g}",
        "largest_called_drop": f"{LARGEST_CALLED_DROP:g}",
    }


def _with_cells(forest: Any, names: Sequence[str], flag: str) -> Any:
    """The columns between a row's name and its figure, in order."""
    for row in (row for group in forest.groups for row in group["rows"]) if forest else ():
        cells = [row[name] for name in names]
        row["cells"] = [one for cell in cells for one in (cell if isinstance(cell, list) else [cell])]
        row["cells"] = [f"{one:,}" if isinstance(one, int) else "–" if one is None else one for one in row["cells"]]
        row["flag"] = flag
        row.setdefault("warning", _failed_words(row))
    return forest


def _failed_words(row: Mapping[str, Any]) -> str:
    return f"{counted(row['failed'], 'case')} could not be predicted" if row.get("failed") else ""


def _calibration_words(content: RunReport) -> list[str]:
    """What the validation split decided, and what it did to these cases."""
    given = content.record.get("calibration") or {}
    words = [f"Temperature: {run_words.temperature_words(content.facts, content.config)}"]
    before, after = given.get("ece_before"), given.get("ece_after")
    if before is not None and after is not None and content.facts.temperature != 1.0:
        words.append(f"The calibration error of these cases is {before:.3f} without it and {after:.3f} with it")
    brier = content.record["metrics"].get("brier")
    if brier is not None:
        words.append(f"Brier score: {with_interval(brier)}; 0 is best")
    return words


def _model(content: RunReport) -> dict[str, Any]:
    facts, config = content.facts, content.config
    rows: dict[str, str | list[str]] = {
        "Network": run_words.architecture_words(facts.network),
        "Images to a case": run_words.pooling_words(facts),
        "Begun from": run_words.weights_words(facts),
        "Networks": counted(len(facts.members), "network") + " that speak as one" if facts.members else "",
        "Views": run_words.views_words(facts),
        "Classes": ", ".join(facts.classes),
        "Called": run_words.threshold_words(facts, config),
        "Temperature": run_words.temperature_words(facts, config),
        "Heatmap": f"{method_words(facts)}, full colour from {facts.heatmap_scale:.3g} ({evidence_unit(facts)}) on",
        "Scope": run_words.scope_words(facts.scope),
        "Rules": run_words.rules_words(facts.rules),
    }
    seeds = f"{config.seed} (weights, order, augmentation, resamples), {content.manifest.split.seed} (split)"
    repeat: dict[str, str | list[str]] = {
        "Weights (sha256)": facts.weights_sha256,
        "Model (sha256)": facts.digest,
        "Preprocessing (sha256)": facts.preprocessing_digest,
        "Configuration (sha256)": digest(config),
        "Manifest (sha256)": digest(content.manifest),
        "split.csv (sha256)": facts.split_sha256,
        "Seeds": seeds,
        "Trained with": f"radloop {facts.radloop_version}",
        "Environment": run_words.environment_words(content.environment),
    }
    return {
        "model_rows": [(name, value) for name, value in rows.items() if value],
        "preprocessing": run_words.preprocessing_words(facts),
        "training_rows": list(run_words.training_words(config).items()),
        "repeat_rows": [(name, value) for name, value in repeat.items() if value],
    }
