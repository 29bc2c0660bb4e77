"""How a training went, as charts of `history.csv`: accuracy, loss, AUROC and learning rate by epoch, of one network or of an ensemble's.

A column that is missing, or says nothing, is left out; of several networks the validation curves are told apart, training is thin and grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pipeline.pages.report_charts import MOST_LINES, Figure
from pipeline.pages.report_figures import (
    COLOURS,
    DASHES,
    GREEN,
    HEIGHT,
    INK,
    SOFT,
    Axis,
    Chart,
    epoch_axis,
    line_sample,
    log_axis,
    value_axis,
)

MANY_TIMES = 20.0
"""A loss that was once so many times its median is shown by its logarithm: else one wild epoch hides all others."""


def history_charts(histories: Mapping[str, pd.DataFrame], best: Mapping[str, int]) -> list[Figure]:
    """Accuracy, loss, AUROC and learning rate by epoch, as far as the histories have them; `best`: the epoch kept of each."""
    known = {name: table for name, table in histories.items() if "epoch" in table and len(table)}
    if not known:
        return []
    shown = dict(list(known.items())[:MOST_LINES])
    drawn = [
        *(_learning_chart(shown, best, quantity) for quantity in ("accuracy", "loss", "auroc")),
        _rate_chart(shown, best),
    ]
    figures = [figure for figure in drawn if figure is not None]
    if figures and len(shown) < len(known):
        said = f"{figures[0].caption} The first {len(shown)} of {len(known)} networks are drawn.".strip()
        figures[0] = replace(figures[0], caption=said)
    return figures


def _learning_chart(histories: Mapping[str, pd.DataFrame], best: Mapping[str, int], quantity: str) -> Figure | None:
    columns = [
        name for name in (f"train_{quantity}", f"val_{quantity}") if any(name in one for one in histories.values())
    ]
    if not columns:
        return None
    values = np.concatenate([_numbers(one, name) for one in histories.values() for name in columns])
    if not np.isfinite(values).any():
        return None
    share = quantity != "loss"
    name = "AUROC" if quantity == "auroc" else quantity
    y = value_axis(values, "", low=_tenth_below(values), high=1.0) if share else _loss_axis(values)
    last = int(max(_numbers(one, "epoch").max() for one in histories.values()))
    chart = Chart(epoch_axis(last), y, _learning_words(histories, columns, name), height=HEIGHT)
    single = len(histories) == 1
    _mark_epochs(chart, histories, best)
    legend = []
    for number, (member, table) in enumerate(histories.items()):
        for column in columns:
            if single or column.startswith("val"):
                style = (0 if column.startswith("train") else 1) if single else number
                points = zip(_numbers(table, "epoch"), _numbers(table, column), strict=True)
                chart.line(points, COLOURS[style], dash=DASHES[style])
                legend.append((line_sample(style), _phase(column) if single else member))
            elif column.startswith("train"):
                points = zip(_numbers(table, "epoch"), _numbers(table, column), strict=True)
                chart.line(points, SOFT, width=1, opacity=0.45)
    caption = "" if single or len(columns) == 1 else "Thin and grey: training; the others: validation."
    return Figure(name[:1].upper() + name[1:], chart.svg(), caption, legend)


def _tenth_below(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Where an axis of shares begins: fixed to tenths, so that small differences are not blown up."""
    return min(0.9, float(np.floor(np.nanmin(values) * 10) / 10))


def _loss_axis(values: np.ndarray[Any, np.dtype[np.float64]]) -> Axis:
    known = values[np.isfinite(values)]
    if known.min() > 0 and known.max() > MANY_TIMES * np.median(known):
        return log_axis(known, "")
    return value_axis(known, "", low=min(0.0, float(known.min())))


def _learning_words(histories: Mapping[str, pd.DataFrame], columns: Sequence[str], name: str) -> str:
    """The last values, for those who do not see the lines."""
    told = []
    for member, table in histories.items():
        for column in columns:
            values = _numbers(table, column)
            if np.isfinite(values).any():
                told.append(f"{member} {_phase(column)} ends at {values[np.isfinite(values)][-1]:.3f}".strip())
    return f"{name[:1].upper()}{name[1:]} by epoch: {', '.join(told)}."


def _phase(column: str) -> str:
    return "training" if column.startswith("train") else "validation"


def _mark_epochs(chart: Chart, histories: Mapping[str, pd.DataFrame], best: Mapping[str, int]) -> None:
    """The best epoch, and of a single history each drop of the learning rate."""
    if len(histories) > 1:
        return
    ((member, table),) = histories.items()
    for epoch in _lowered(table):
        chart.upright(epoch - 0.5, SOFT, dash="2 3")
    if member in best:
        near_end = chart.x.share(best[member]) > 0.7
        chart.upright(best[member], GREEN, width=5, opacity=0.22)
        anchor, shift = ("end", -6) if near_end else ("start", 6)
        said = f"best epoch {best[member]}"
        chart.words(best[member], chart.y.high, said, shift=(shift, -7), text_anchor=anchor, fill=GREEN)


def _lowered(table: pd.DataFrame) -> list[int]:
    """Epochs that run at a lower learning rate than the one before, where they are few: a schedule by steps."""
    rates, epochs = _numbers(table, "learning_rate"), _numbers(table, "epoch")
    lower = np.flatnonzero(rates[1:] < rates[:-1] * (1 - 1e-9)) + 1
    return [int(epochs[place]) for place in lower] if len(lower) < len(rates) / 2 else []


def _rate_chart(histories: Mapping[str, pd.DataFrame], best: Mapping[str, int]) -> Figure | None:
    rates = np.concatenate([_numbers(one, "learning_rate") for one in histories.values()])
    if not (np.isfinite(rates) & (rates > 0)).any():
        return None
    last = int(max(_numbers(one, "epoch").max() for one in histories.values()))
    known = rates[np.isfinite(rates)]
    says = f"Learning rate by epoch: from {known[0]:.2g} to {known[-1]:.2g}."
    chart = Chart(epoch_axis(last), log_axis(rates, ""), says, height=HEIGHT)
    _mark_epochs(chart, histories, best)
    for number, table in enumerate(histories.values()):
        epochs, values = _numbers(table, "epoch"), _numbers(table, "learning_rate")
        steps = [(epoch + side, rate) for epoch, rate in zip(epochs, values, strict=True) for side in (-0.5, 0.5)]
        single = len(histories) == 1
        chart.line(steps, INK if single else COLOURS[number], dash="" if single else DASHES[number])
    return Figure("Learning rate", chart.svg())


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A column as floats, NaN where it is missing or says nothing."""
    if column not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
