"""Evaluation: a run's model on a split of its data, or on other labelled data, as numbers with intervals, pictures and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import RESEARCH_ONLY
from pipeline.audit import AUDIT_FILE, quick_audit
from pipeline.auditing.breakdowns import flow
from pipeline.cohort.labels import NOT_PROVEN, UNKNOWN_PATIENT
from pipeline.cohort.split import SPLIT_COLUMNS
from pipeline.config import Config
from pipeline.errors import RunError
from pipeline.evaluation.case_units import by_unit
from pipeline.evaluation.out_of_fold import cross_validation
from pipeline.evaluation.scoring import Predictions, predict_subject, scored
from pipeline.evaluation.stress import costs_much, stress_table, stress_test, stress_warnings
from pipeline.evaluation.subject import Subject, other_data, own_split
from pipeline.files import write_whole
from pipeline.indexing.index import read_index
from pipeline.label_arrays import findings_of
from pipeline.metrics.curves import Curves, curves
from pipeline.metrics.measures import Scored
from pipeline.metrics.metrics import Evaluation, affordable, evaluate_scored, intervals, values_of
from pipeline.metrics.subgroups import group_values, subgroups, unusable_columns
from pipeline.pages import figures
from pipeline.pages.gallery import GalleryItem, gallery_items, tiles
from pipeline.pages.report_content import Member, RunReport, read_audit
from pipeline.pages.run_report import write_run_report
from pipeline.prediction.predict import STATUS_OK, TrainedModel, load_model
from pipeline.progress import say
from pipeline.run import (
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    INDEX_FOLDER,
    SPLIT_FILE,
    ModelFacts,
    member_folders,
    read_config,
    read_model,
    read_table,
    write_table,
)  # fmt: skip
from pipeline.wording import counted

METRICS_FILE, CURVES_FILE, STRESS_FILE = "metrics.json", "curves.json", "stress.csv"
PREDICTIONS_FILE, IMAGE_PREDICTIONS_FILE = "predictions.csv", "image_predictions.csv"
MAIN_METRICS = ("accuracy", "sensitivity", "specificity", "f1", "auroc")


def evaluate(
    run: Path,
    *,
    split: str = "test",
    data: str | None = None,
    root: Path | None = None,
    stress: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes numbers, tables, curves, pictures and a report; returns what metrics.json holds, and `folder`.

    `data`: a manifest of other data, all of whose cases are evaluated, in place of a split of the run's own. `root`: where its relative
    paths begin, or where the run's own data lie now, if not where they were trained on. `stress`: the same cases again under each stress.
    """
    model, config = load_model(run), read_config(run)
    columns = config.evaluation.subgroups
    subject = (
        other_data(run, data, root, model.facts, columns, progress)
        if data
        else own_split(run, split, model.facts, columns, root)
    )
    predictions = predict_subject(model, subject, progress=progress)
    subject.folder.mkdir(parents=True, exist_ok=True)
    write_table(subject.folder / PREDICTIONS_FILE, predictions.cases)
    write_table(subject.folder / IMAGE_PREDICTIONS_FILE, predictions.images)

    cases = _cases(subject, predictions.cases, model.facts)
    resamples, seed = config.evaluation.resamples, config.seed
    evaluation = evaluate_scored(cases, threshold=model.facts.thresholds, resamples=resamples, seed=seed)
    drawn = curves(cases, resamples=resamples, seed=seed)
    record = _record(subject, predictions, cases, evaluation, model.facts, config)
    if model.facts.members and subject.own and split == "test":
        record["cross_validation"] = cross_validation(run, model.facts, config, root=root, progress=progress)
    (subject.folder / STRESS_FILE).unlink(missing_ok=True)
    if stress:
        record |= _stressed(subject, predictions, model, config, record["warnings"], progress)
    _write(run, subject, predictions, model, config, record, evaluation, drawn)
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    return record | {"folder": str(subject.folder)}


def _stressed(
    subject: Subject,
    predictions: Predictions,
    model: TrainedModel,
    config: Config,
    warnings: Sequence[str],
    progress: bool,
) -> dict[str, Any]:
    """What the stress test adds to the record; its table is written."""
    resamples, seed = config.evaluation.resamples, config.seed
    rows = stress_test(model, subject, predictions.cases, resamples=resamples, seed=seed, progress=progress)
    write_table(subject.folder / STRESS_FILE, stress_table(rows))
    return {"stress": rows, "warnings": [*warnings, *stress_warnings(rows)]}


def _cases(subject: Subject, table: pd.DataFrame, facts: ModelFacts) -> Scored:
    if not (table["status"] == STATUS_OK).any():
        raise RunError(
            f"not one of {counted(len(table), 'case')} could be predicted; reasons are in {subject.folder / PREDICTIONS_FILE}"
        )
    return scored(table, subject.cases["patient_key"], facts)


def _record(
    subject: Subject,
    predictions: Predictions,
    cases: Scored,
    evaluation: Evaluation,
    facts: ModelFacts,
    config: Config,
) -> dict[str, Any]:
    """What metrics.json holds, but for cross-validation and stress."""
    resamples, seed = config.evaluation.resamples, config.seed
    done = predictions.cases["status"] == STATUS_OK
    case_ids = predictions.cases["case_id"][done].reset_index(drop=True)
    units, units_left_out = by_unit(cases, case_ids, predictions.images, facts, patients_known=_patients_known(subject))
    values = group_values(subject.images, case_ids, config.evaluation.subgroups)
    groups, falling_behind = subgroups(cases, values, resamples=resamples, seed=seed)
    failed = int((~done).sum())
    warnings = [*subject.warnings, *evaluation.warnings, *falling_behind]
    return {
        "split": subject.name,
        "unit": facts.unit,
        **evaluation.to_json(),
        "failed": failed,
        "calibration": _calibration(subject, predictions, evaluation, facts),
        "by": {unit: _with_intervals(each, affordable(resamples, len(each)), seed) for unit, each in units.items()},
        "by_left_out": units_left_out,
        "subgroups": groups,
        "warnings": _brief([*warnings, *_further_warnings(failed, len(done), facts, config)]),
        "model": facts.name,
        "model_digest": facts.digest,
        "intended_use": RESEARCH_ONLY,
    }


def _further_warnings(failed: int, cases: int, facts: ModelFacts, config: Config) -> list[str]:
    warnings = []
    if unknown := unusable_columns(config.evaluation.subgroups):
        warnings.append(f"evaluation.subgroups: {', '.join(unknown)}: no column of the index that makes groups.")
    if failed:
        warnings.append(
            f"{failed} of {counted(cases, 'case')} could not be predicted, so not in the figures (predictions.csv says why)"
        )
    return [*warnings, facts.notice] if facts.notice else warnings


def _patients_known(subject: Subject) -> bool:
    blocks = subject.manifest.patients.source == "blocks"
    return not blocks and not subject.cases["patient_key"].str.startswith(UNKNOWN_PATIENT).all()


def _with_intervals(cases: Scored, resamples: int, seed: int) -> dict[str, Any]:
    return {name: one.to_json() for name, one in intervals(cases, resamples, seed)[0].items()}


def _calibration(
    subject: Subject, predictions: Predictions, evaluation: Evaluation, facts: ModelFacts
) -> dict[str, Any]:
    """What the validation split decided, and the calibration error of these cases without and with its temperature."""
    before = values_of(scored(predictions.uncalibrated, subject.cases["patient_key"], facts))
    return {
        "temperature": facts.temperature,
        "threshold": evaluation.threshold,
        "thresholds": dict(facts.thresholds),
        "threshold_rule": facts.threshold_rule,
        "ece_before": before["ece"],
        "ece_after": evaluation.metrics["ece"].value,
    }


def _brief(warnings: Sequence[str]) -> list[str]:
    """Each warning once; those that say the same of different things (what stands before ': ') in one sentence."""
    told: dict[str, list[str]] = {}
    for warning in dict.fromkeys(warnings):
        what, _, of_what = warning.partition(": ")
        told.setdefault(what if what == NOT_PROVEN else warning, []).append(of_what)
    return [
        f"{what}: {'; '.join(filter(None, of_what))}" if what == NOT_PROVEN else what for what, of_what in told.items()
    ]


def _write(
    run: Path,
    subject: Subject,
    predictions: Predictions,
    model: TrainedModel,
    config: Config,
    record: dict[str, Any],
    evaluation: Evaluation,
    drawn: Curves,
) -> None:
    """Pictures, then the files that hold all numbers, then the report of them."""
    folder, lines = subject.folder, drawn.to_json()
    items = gallery_items(model, predictions.cases, predictions.images, subject.images, subject.index.roots)
    _pictures(run, subject, evaluation, drawn, items, model.facts)
    write_whole(folder / CURVES_FILE, json.dumps(lines, allow_nan=False) + "\n")
    write_whole(folder / METRICS_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")
    environment = run / ENVIRONMENT_FILE
    content = RunReport(
        record=record,
        facts=model.facts,
        config=config,
        manifest=subject.manifest,
        curves=lines,
        members=_members(run, model.facts),
        split=read_table(run / SPLIT_FILE) if subject.own else None,
        flow=flow(subject.index, subject.dataset),
        audit=_audit(run, subject),
        environment=json.loads(environment.read_text()) if environment.is_file() else {},
        gallery=items,
    )
    write_run_report(folder, content)


def _audit(run: Path, subject: Subject) -> Mapping[str, Any] | None:
    """What an audit of the run's data says: made in seconds when first asked for, and kept; None of other data."""
    if not subject.own:
        return None
    path, manifest = run / AUDIT_FILE, subject.manifest
    known = read_audit(path, manifest)
    if known is None:
        index, split = read_index(run / INDEX_FOLDER), read_table(run / SPLIT_FILE, SPLIT_COLUMNS)
        known = quick_audit(subject.dataset, index, manifest, split)
        write_whole(path, json.dumps(known, indent=2, allow_nan=False) + "\n")
    return known


def _members(run: Path, facts: ModelFacts) -> list[Member]:
    """The networks with their histories; the only one has no name."""
    return [
        Member(folder.name if facts.members else "", read_model(folder), _history(folder))
        for folder in member_folders(run, facts)
    ]


def _history(folder: Path) -> pd.DataFrame | None:
    return pd.read_csv(folder / HISTORY_FILE) if (folder / HISTORY_FILE).is_file() else None


def _pictures(
    run: Path,
    subject: Subject,
    evaluation: Evaluation,
    drawn: Curves,
    items: Sequence[GalleryItem],
    facts: ModelFacts,
) -> None:
    folder = subject.folder
    note = f"{facts.name}, {subject.name}. {facts.notice + '. ' if facts.notice else ''}{RESEARCH_ONLY}."
    if not facts.several:  # of several findings there is one table each: they are in metrics.json and on the page
        figures.confusion_matrix(folder / "confusion_matrix.png", evaluation.confusion, facts.classes, note=note)
    figures.roc(folder / "roc.png", _roc_lines(drawn, evaluation), note=note)
    of_the_run = note.replace(f"{facts.name}, {subject.name}.", f"{facts.name}.", 1)
    history = pd.read_csv(run / HISTORY_FILE)
    figures.history(folder / "history.png", history, best_epoch=facts.best_epoch, note=of_the_run)
    figures.class_histogram(folder / "class_histogram.png", _split_by_class(run, facts), note=of_the_run)
    figures.gallery(folder / "gallery.png", tiles(items), note=note)


def _split_by_class(run: Path, facts: ModelFacts) -> pd.DataFrame:
    """split.csv; of several findings one row each."""
    table = read_table(run / SPLIT_FILE)
    if not facts.several:
        return table
    findings = pd.Series([findings_of(label, facts.classes) for label in table["label"]], dtype=object)
    return table.assign(label=findings).explode("label")


def _roc_lines(drawn: Curves, evaluation: Evaluation) -> list[figures.RocLine]:
    """One line for two classes; one each for more. Where none is defined, the figure says so."""
    named = evaluation.positive is None
    return [
        figures.RocLine(
            name, points, evaluation.metrics[f"auroc_{name}" if named else "auroc"], evaluation.thresholds.get(name)
        )
        for name, points in drawn.roc.items()
    ]


def summary_lines(record: dict[str, Any], names: Sequence[str] = MAIN_METRICS) -> list[str]:
    """The main figures as text, each with its interval."""
    proven = "" if not any(NOT_PROVEN in warning for warning in record["warnings"]) else f" ({NOT_PROVEN})"
    of_whom = f"{counted(record['cases'], 'case')} of {counted(record['patients'], 'patient')}"
    lines = [f"{record['split']}: {of_whom}{proven}"]
    lines += [figure_line(name, record["metrics"].get(name)) for name in names]
    if folds := record.get("cross_validation"):
        of_whom = f"{counted(folds['cases'], 'case')} of {counted(folds['patients'], 'patient')}"
        lines.append(f"cross-validation: {of_whom}, each by the network that was not trained on it")
        lines += [figure_line(name, folds["metrics"].get(name)) for name in names if name != "auroc"]
        lines.append(figure_line("auroc", folds["within_folds"]["auroc"]) + ", the mean of the folds'")
    for row in record.get("stress", []):
        value, drop = (row[what].get("auroc", {}).get("value") for what in ("metrics", "drop"))
        if value is not None:
            much = f" ({', '.join(costs_much(row))}: much)" if costs_much(row) else ""
            lines.append(f"  under {row['name']}: auroc {value:.3f}, a drop of {drop:.3f}{much}")
    return lines


def figure_line(name: str, metric: dict[str, float | None] | None) -> str:
    """A metric with its interval, as text."""
    if metric is None or metric["value"] is None:
        return f"  {name:<12} not defined here"
    if metric["low"] is None:
        return f"  {name:<12} {metric['value']:.3f}"
    return f"  {name:<12} {metric['value']:.3f}  (95 % interval {metric['low']:.3f} to {metric['high']:.3f})"
