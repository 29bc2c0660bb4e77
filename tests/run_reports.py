"""Reports of runs that never were: every kind of model, any number of cases, with real metrics and curves of made-up probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline import RESEARCH_ONLY
from pipeline.config import Config, parse_settings
from pipeline.label_arrays import label_texts
from pipeline.manifest import Manifest
from pipeline.metrics.curves import curves
from pipeline.metrics.measures import Scored, score
from pipeline.metrics.metrics import evaluate_scored
from pipeline.metrics.subgroups import subgroups
from pipeline.pages.gallery import ERRORS, OUTCOMES, GalleryItem, heatmap_layer
from pipeline.pages.run_report import Member, RunReport
from pipeline.run import ModelFacts

TWO = ("normal", "opacity")
SHA = "0123456789abcdef" * 4
RESAMPLES = 40


def run_report(
    classes: Sequence[str] = TWO,
    *,
    several: bool = False,
    cases: int = 120,
    folds: int = 0,
    pictures: int = 8,
    text: str = "Phantoms",
    seed: int = 0,
) -> RunReport:
    """A complete one; `text` stands wherever words of a user or a header can."""
    facts = model_facts(classes, several=several, text=text, folds=folds)
    scored = made_up_cases(facts, cases, seed)
    names = [f"fold-{number}" for number in range(folds)] or [""]
    return RunReport(
        record=_record(scored, facts, text, folds),
        facts=facts,
        config=parse_settings(Config, {"name": "made up", "manifest": "m", "notice": text}, "test"),
        manifest=_manifest(classes, several, text),
        curves=curves(scored, resamples=RESAMPLES, seed=0).to_json(),
        members=[Member(name, facts, _history(12, number)) for number, name in enumerate(names)],
        split=_split(facts, max(cases, 10)),
        flow=_flow(text),
        audit={"warnings": [f"the class can be told from {text}"]},
        environment={"python": "3.12", "device": "cpu", "packages": {"torch": "2.6"}},
        gallery=[_item(facts, number, text) for number in range(pictures)],
    )


def model_facts(
    classes: Sequence[str] = TWO, *, several: bool = False, text: str = "", folds: int = 0, **others: Any
) -> ModelFacts:
    positive = classes[-1]
    called = list(classes) if several else [positive] if len(classes) == 2 else []
    content = {
        "name": "made up",
        "radloop_version": "0",
        "intended_use": RESEARCH_ONLY,
        "notice": text,
        "network": {"architecture": "resnet18"},
        "classes": list(classes),
        "positive": positive,
        "unit": "study",
        "rules": {"include": {"modality": {"values": ["CT"]}}},
        "preprocessing": {"size": 64},
        "preprocessing_digest": SHA,
        "path_to_unit_range": {"HU": "linear from -1350 to 150 HU"},
        "input_mean": [0.0],
        "input_std": [1.0],
        "weights_sha256": SHA,
        "initial_weights": "random",
        "initial_weights_sha256": "",
        "best_epoch": 7,
        "heatmap_scale": 2.0,
        "several": several,
        "members": [f"fold-{number}" for number in range(folds)],
        "temperature": 1.3,
        "thresholds": dict.fromkeys(called, 0.4),
        "threshold_rule": "chosen on the validation split",
        "scope": {"modality": ["CT"], "body_part_examined": [text]},
    }
    return parse_settings(ModelFacts, content | others, "test")


def made_up_cases(facts: ModelFacts, count: int, seed: int = 0) -> Scored:
    """Cases whose probabilities follow their labels, with errors; two a patient."""
    generator, k = np.random.default_rng(seed), len(facts.classes)
    if facts.several:
        label = (generator.random((count, k)) < 0.4).astype(np.int64)
        probabilities = 1 / (1 + np.exp(-(2.5 * label - 1.2 + generator.normal(size=(count, k)))))
    else:
        label = generator.integers(0, k, count)
        logits = generator.normal(size=(count, k)) + 1.6 * np.eye(k)[label]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return score(
        label,
        probabilities,
        np.arange(count) // 2,
        classes=facts.classes,
        positive=facts.positive_index,
        threshold=facts.thresholds,
        several=facts.several,
    )


def predictions(facts: ModelFacts, cases: Scored) -> pd.DataFrame:
    """Their predictions.csv."""
    k = len(facts.classes)
    label, predicted = (
        one > 0 if facts.several else np.eye(k, dtype=bool)[one] for one in (cases.label, cases.predicted)
    )
    table = pd.DataFrame({"case_id": [f"case {number}" for number in range(len(cases))]})
    table["label"], table["predicted"] = label_texts(label, facts.classes), label_texts(predicted, facts.classes)
    table[[f"p_{name}" for name in facts.classes]] = cases.probabilities
    return table.assign(status="ok", reason="")


def _record(cases: Scored, facts: ModelFacts, text: str, folds: int) -> dict[str, Any]:
    evaluation = evaluate_scored(cases, threshold=facts.thresholds, resamples=RESAMPLES, seed=0)
    values = {"manufacturer": np.where(np.arange(len(cases)) % 3, text, "other").astype(str)}
    groups, warnings = subgroups(cases, values, resamples=RESAMPLES, seed=0)
    if groups:
        groups[0]["warning"] = "falls behind: AUROC 0.700, 0.900 in all"
    record: dict[str, Any] = {
        "split": "test",
        "unit": facts.unit,
        **evaluation.to_json(),
        "failed": 0,
        "calibration": {"temperature": 1.3, "ece_before": 0.12, "ece_after": 0.05},
        "by_left_out": {"series": "not all images have a series"},
        "subgroups": groups,
        "stress": [_stress(evaluation.to_json()["metrics"], text, drop) for drop in (0.01, 0.2)],
        "model": facts.name,
        "intended_use": RESEARCH_ONLY,
    }
    record["by"] = {"image": record["metrics"]}
    record["warnings"] = [*record["warnings"], *warnings, f"beware of {text}"]
    if folds:
        told = [{"fold": f"fold-{one}", "cases": 9, "metrics": {"auroc": 0.9}} for one in range(folds)]
        whole = {"cases": 9 * folds, "patients": 9 * folds, "metrics": record["metrics"], "folds": told}
        record["cross_validation"] = whole | {"warnings": ["Cross-validation: too good."]}
    return record


def _stress(metrics: Mapping[str, Any], text: str, drop: float) -> dict[str, Any]:
    drops = {name: {"value": drop, "low": drop - 0.05, "high": drop + 0.05} for name in metrics}
    return {"name": "noise", "words": f"noise on {text}", "cases": 9, "failed": 1, "metrics": metrics, "drop": drops}


def _history(epochs: int, seed: int) -> pd.DataFrame:
    epoch, wiggle = np.arange(1, epochs + 1), np.random.default_rng(seed).normal(size=epochs) / 50
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": np.exp(-epoch / 5),
            "val_loss": np.exp(-epoch / 6) + 0.1 + np.abs(wiggle),
            "train_accuracy": 1 - 0.5 * np.exp(-epoch / 4),
            "val_accuracy": 0.9 - 0.4 * np.exp(-epoch / 4) + wiggle,
            "val_auroc": 0.95 - 0.4 * np.exp(-epoch / 4) + wiggle,
            "learning_rate": np.where(epoch < 6, 1e-3, 1e-4),
        }
    )


def _manifest(classes: Sequence[str], several: bool, text: str) -> Manifest:
    labels: dict[str, Any] = {"source": "sheet", "column": "finding", "several": several}
    content = {
        "name": "made up",
        "description": text,
        "classes": list(classes),
        "sources": [{"path": "export"}],
        "sheet": {"path": "labels.csv", "join": "AccessionNumber", "column": "AccessionNumber"},
        "labels": labels,
        "unit": "study",
    }
    return parse_settings(Manifest, content, "test")


def _split(facts: ModelFacts, count: int) -> pd.DataFrame:
    number, names = np.arange(count), np.array(facts.classes)
    split = np.select([number % 5 == 0, number % 5 == 1], ["test", "validation"], "train")
    key = (number // 2).astype(str)
    return pd.DataFrame({"case_id": key, "patient_key": key, "label": names[number % len(names)], "split": split})


def _flow(text: str) -> dict[str, Any]:
    rejected, excluded = {"not_an_image": 2, "truncated": 1}, {f"exclude modality: {text}": 4}
    counts = {"found": 207, "rejected": 3, "indexed": 204, "excluded": 4, "unlabelled": 0, "files": 200, "images": 200}
    reasons = {"rejected_by_reason": rejected, "excluded_by_rule": excluded, "unlabelled_by_rule": {}}
    return {**counts, **reasons, "cases": 120}


def _item(facts: ModelFacts, number: int, text: str) -> GalleryItem:
    rows, columns = np.mgrid[0:90, 0 : 60 + 10 * (number % 6)]
    picture = (np.hypot(rows - 45, columns - 40) * 3 % 256).astype(np.uint8)
    evidence = (2.5 * np.exp(-((rows - 30) ** 2 + (columns - 30) ** 2) / 400)).astype(np.float32)
    wrong = number % 3 == 0
    return GalleryItem(
        picture=picture,
        heatmap=None if number == 1 else heatmap_layer(evidence, facts.heatmap_scale),
        actual=facts.classes[0],
        predicted=facts.classes[-1] if wrong else facts.classes[0],
        shown=facts.classes[-1],
        probability=0.9 if wrong else 0.1,
        group=ERRORS if wrong else OUTCOMES,
        where=f"line {number + 2} of predictions.csv {text}",
    )
