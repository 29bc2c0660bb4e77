"""The charts of an evaluation's page: what each shows, from `curves.json` and `metrics.json`.

Each function returns a `Figure`, or None where its numbers are missing; none raises for few, equal or missing values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.pages.report_figures import (
    COLOURS,
    DASHES,
    LINE,
    SOFT,
    SQUARE,
    Chart,
    line_sample,
    unit_axis,
)

MOST_LINES = 8
"""Classes or folds in one chart: more lines than dashes are told apart by nobody."""
HISTOGRAM_SHARE = 0.16
"""Of the reliability chart's height, its bars of cases at the foot."""
INTERVALS = "95\u00a0% intervals"


@dataclass(frozen=True)
class Figure:
    """A chart with its title, its legend (sample, words) and a caption."""

    title: str
    svg: Markup
    caption: str = ""
    legend: Sequence[tuple[Markup, str]] = ()


def with_interval(one: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """0.912 (0.871–0.944)."""
    if one is None or one["value"] is None:
        return "undefined"
    value = number_text(one["value"], digits)
    if one["low"] is None or one["high"] is None:
        return value
    return f"{value} ({between_text(one['low'], one['high'], digits)})"


def number_text(value: float, digits: int = 3) -> str:
    """0.912; below 0 with a minus sign, not a hyphen."""
    return f"{value:.{digits}f}".replace("-", "−")


def between_text(low: float, high: float, digits: int = 3) -> str:
    """0.871–0.944; with a number below 0 −0.010 to 0.030, as a dash and a minus look alike."""
    dash = " to " if min(low, high) < 0 else "–"
    return f"{number_text(low, digits)}{dash}{number_text(high, digits)}"


def class_metric(record: Mapping[str, Any], metric: str, name: str) -> Mapping[str, float | None] | None:
    """A metric of one class: of two classes the finding's own, else that of the class against the rest."""
    metrics = record["metrics"]
    return metrics.get(metric) if record.get("positive") is not None else metrics.get(f"{metric}_{name}")


def roc_chart(curves: Mapping[str, Any], record: Mapping[str, Any]) -> Figure | None:
    """Sensitivity over 1 - specificity, with each area, and the threshold in use where there is one curve."""
    lines = _drawable(curves.get("roc"), "fpr", "tpr", record)
    if not lines:
        return None
    says = f"ROC: {_areas(lines, record, 'auroc')}."
    chart = Chart(unit_axis("1 − specificity"), unit_axis("sensitivity"), says, height=SQUARE)
    chart.stroke((0, 1), (0, 1), SOFT, dash="2 4")
    chart.words(0.62, 0.56, "chance")
    _curves(chart, lines, "fpr", "tpr")
    _mark_threshold(chart, record, ("specificity", "sensitivity"), mirrored=True)
    return Figure("Receiver operating characteristic", chart.svg(), _band_words(lines), _legend(lines, record, "auroc"))


def precision_recall_chart(curves: Mapping[str, Any], record: Mapping[str, Any]) -> Figure | None:
    """Precision over recall, with each average precision; of one curve also the share of cases with the finding."""
    lines = _drawable(curves.get("precision_recall"), "recall", "precision", record)
    if not lines:
        return None
    says = f"Precision and recall: {_areas(lines, record, 'average_precision')}."
    chart = Chart(unit_axis("recall (sensitivity)"), unit_axis("precision"), says, height=SQUARE)
    base = prevalence(record)
    if len(lines) == 1 and base is not None:
        chart.stroke((0, 1), (base, base), SOFT, dash="2 4")
        above = base < 0.85
        chart.words(0, base, f"prevalence {base:.2f}", shift=(6, -5 if above else 15))
    _curves(chart, lines, "recall", "precision")
    if len(lines) == 1 and base is not None and lines[0]["recall"][-1] == 1:
        chart.line([(1, lines[0]["precision"][-1]), (1, base)], COLOURS[0])  # down to where every case is called
    _mark_threshold(chart, record, ("sensitivity", "ppv"), mirrored=False)
    legend = _legend(lines, record, "average_precision")
    return Figure("Precision and recall", chart.svg(), _band_words(lines), legend)


def reliability_chart(curves: Mapping[str, Any], record: Mapping[str, Any]) -> Figure | None:
    """Observed share over predicted probability, bin by bin, with intervals and the number of cases in each bin."""
    bins = [one for one in curves.get("reliability") or [] if any(one.get("cases") or [])]
    if not bins:
        return None
    lines = _most_frequent(bins, record)
    single = len(lines) == 1
    says = "Reliability: " + "; ".join(_bin_words(one) for one in lines) + "."
    y = unit_axis("" if single else "observed share")
    chart = Chart(unit_axis("predicted probability"), y, says, height=SQUARE)
    if single:
        _cases_in_bins(chart, lines[0])
    chart.stroke((0, 1), (0, 1), SOFT, dash="2 4")
    for number, one in enumerate(lines):
        colour = COLOURS[number]
        points = [place for place, cases in enumerate(one["cases"]) if cases]
        for place in points if single else ():
            ends = (one["low"][place], one["high"][place])
            if None not in ends:
                chart.stroke((one["confidence"][place],) * 2, ends, colour, width=2, opacity=0.5)
        chart.line([(one["confidence"][p], one["observed"][p]) for p in points], colour, dash=DASHES[number])
        for place in points:
            chart.dot(one["confidence"][place], one["observed"][place], colour, radius=3.5, hollow=False)
    caption = "On the dotted line, of the cases with a probability of 0.7, 70 % have the finding."
    if single:
        caption = f"Observed share over predicted probability. {caption} Above and grey: cases of each bin; upright: {INTERVALS}."
    return Figure("Reliability", chart.svg(), caption, _legend(lines, record, "ece"))


def _cases_in_bins(chart: Chart, one: Mapping[str, Any]) -> None:
    most = max(one["cases"])
    for low, high, cases in zip(one["edges"][:-1], one["edges"][1:], one["cases"], strict=True):
        if cases:
            chart.bar(low, high, HISTOGRAM_SHARE * cases / most, LINE)
            chart.words((low + high) / 2, 1, f"{cases:,}", shift=(0, -7), text_anchor="middle", font_size="10.5")


def _bin_words(one: Mapping[str, Any]) -> str:
    told = [
        f"{confidence:.2f} predicted, {observed:.2f} observed in {cases}"
        for confidence, observed, cases in zip(one["confidence"], one["observed"], one["cases"], strict=True)
        if cases and confidence is not None and observed is not None
    ]
    return f"{one['class']}: {', '.join(told)}"


def _drawable(given: Any, x: str, y: str, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Curves that have points; of many classes those with the most cases."""
    return _most_frequent([one for one in given or [] if one.get(x) and one.get(y)], record)


def _most_frequent(lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    counts = cases_of_classes(record)
    chosen = sorted(lines, key=lambda one: -counts.get(one["class"], 0))[:MOST_LINES]
    return [one for one in lines if one in chosen]


def cases_of_classes(record: Mapping[str, Any]) -> dict[str, int]:
    """Cases of each class, or with each finding, from the confusion."""
    rows = record.get("confusion") or []
    if record.get("several"):
        return {name: int(sum(table[1])) for name, table in zip(record["classes"], rows, strict=False)}
    return {name: int(sum(row)) for name, row in zip(record["classes"], rows, strict=False)}


def prevalence(record: Mapping[str, Any]) -> float | None:
    """The share of cases with the finding, of two classes."""
    positive, cases = record.get("positive"), record.get("cases")
    return cases_of_classes(record).get(positive, 0) / cases if positive is not None and cases else None


def _curves(chart: Chart, lines: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
    for number, one in enumerate(lines):
        if len(lines) == 1 and one.get("low"):
            chart.band(one.get("grid") or one[x], one["low"], one["high"], COLOURS[number])
        chart.line(zip(one[x], one[y], strict=True), COLOURS[number], dash=DASHES[number])


def _mark_threshold(chart: Chart, record: Mapping[str, Any], names: tuple[str, str], *, mirrored: bool) -> None:
    """The operating point, where the metrics at the threshold in use lie on the curve."""
    threshold, place = record.get("threshold"), [record["metrics"].get(name, {}).get("value") for name in names]
    if threshold is None or place[0] is None or place[1] is None:
        return
    x = 1 - place[0] if mirrored else place[0]
    chart.dot(x, place[1], COLOURS[0])
    right = x > 0.6
    shift, anchor = ((-10, 18), "end") if right else ((10, 18), "start")
    chart.words(x, place[1], f"threshold {threshold:.3g}", shift=shift, text_anchor=anchor, fill=COLOURS[0])


def _legend(lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any], metric: str) -> list[tuple[Markup, str]]:
    words = {"auroc": "area", "average_precision": "average precision", "ece": "calibration error"}[metric]
    entries = []
    for number, one in enumerate(lines):
        found = class_metric(record, metric, one["class"])
        said = f"{one['class']}: {words} {with_interval(found)}" if found else str(one["class"])
        entries.append((line_sample(number), said))
    left_out = len(record["classes"]) - len(lines) if record.get("positive") is None else 0
    if left_out > 0:
        entries.append((Markup(""), f"and {left_out} more in the table of classes"))
    return entries


def _areas(lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any], metric: str) -> str:
    return ", ".join(f"{one['class']} {with_interval(class_metric(record, metric, one['class']))}" for one in lines)


def _band_words(lines: Sequence[Mapping[str, Any]]) -> str:
    return (
        "The band holds 95\u00a0% of the curves of resampled patients."
        if len(lines) == 1 and lines[0].get("low")
        else ""
    )
