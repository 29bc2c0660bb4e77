"""Pictures of an evaluation as PNG files: confusion matrix, ROC curve, training curves, classes by split, a gallery.

Each function takes the file's path, what to draw, and a `note` printed small at the foot ("Phantoms, not patients.",
...); the file appears whole or not at all. matplotlib is imported inside the functions and used through its objects
only: no pyplot, no figure that outlives its function, and a style of its own whatever rcParams the caller has set
(while a figure is drawn they are replaced: not for several threads). Colours are Okabe and Ito's, told apart by the
colour-blind, and never carry a meaning alone. Text is 9 pt or more at `DPI` dots an inch.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.files import whole_file
from pipeline.metrics.metrics import Interval
from pipeline.metrics.roc import RocPoints
from pipeline.wording import percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
POINTS_AN_INCH = 72
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#222222",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK)
GREY = "#666666"
DASHES = ("-", "--", "-.", ":")
STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that pictures are the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a class named "a$b" is no formula
}
TOP = ("data", "axes fraction")
"""Coordinates of labels that stand at an x value, at a share of the panel's height."""
SPLITS = ("train", "validation", "val", "test")
"""Usual order of splits; others follow by name."""


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery: `picture` (rows, columns, 3) uint8, actual and predicted class, the probability 0-1 of the class `about`
    (of the predicted one where empty), and a title that names the case (never the patient)."""

    picture: NDArray[np.uint8]
    actual: str
    predicted: str
    probability: float
    title: str = ""
    about: str = ""


@dataclass(frozen=True)
class RocLine:
    """One ROC curve: the class it is about, its points, its area with interval, and the threshold in use, if one is."""

    name: str
    points: RocPoints
    area: Interval
    threshold: float | None = None


def confusion_matrix(path: Path, confusion: Sequence[Sequence[int]], classes: Sequence[str], *, note: str = "") -> None:
    """Counts of cases, rows actual, columns predicted, shaded by the share of the actual class."""
    counts = np.asarray(confusion, dtype=float).reshape(len(classes), len(classes))
    totals = counts.sum(axis=1)
    shares = np.divide(counts, totals[:, None], out=np.zeros_like(counts), where=totals[:, None] > 0)
    cell = 1.5 if len(classes) < 4 else 1.0  # inches
    names = ["\n".join(textwrap.wrap(_short(name, 40), 13)) for name in classes]
    with _page(path, (1.9 + cell * max(2, len(names)), 1.4 + cell * max(2, len(names))), note) as figure:
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)  # above 1, so that a full cell is not yet near black
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(len(names)), names)
        rows = [f"{name}\n{_count(total, 'case')}" for name, total in zip(names, totals, strict=True)]
        axes.set_yticks(range(len(names)), rows)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("actual class")
        axes.set_title("Cases, and share of the actual class")
        for (row, column), count in np.ndenumerate(counts):
            text = f"{count:.0f}\n{shares[row, column]:.0%}" if totals[row] else "0"
            colour = "white" if shares[row, column] > 0.6 else BLACK
            weight = "bold" if row == column else "normal"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontweight=weight, fontsize=11)


def roc(path: Path, lines: Sequence[RocLine], *, note: str = "") -> None:
    """ROC curves with their areas, the 95 % band where a single curve has one, and the threshold in use."""
    with _page(path, (5.6, 5.8), note) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        axes.text(0.3, 0.28, "chance", color=GREY, fontsize=9, rotation=45, rotation_mode="anchor", va="top")
        for number, line in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            points, style = line.points, DASHES[number // len(COLOURS) % len(DASHES)]
            area = f"area {_with_interval(line.area)}" if len(points.sensitivity) else "undefined: one class only"
            said = f"{_short(line.name)}: {area}"
            (drawn,) = axes.plot(points.false_positive_rate, points.sensitivity, style, color=colour, label=said)
            drawn.set(linewidth=2, clip_on=False)
            if len(lines) == 1 and len(points.grid):
                band = axes.fill_between(points.grid, points.low, points.high, color=colour, alpha=0.15, linewidth=0)
                band.set_label("95 % of resampled patients")
            _operating_point(axes, line, colour)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("1 - specificity (false positive rate)")
        axes.set_ylabel("sensitivity (true positive rate)")
        axes.set_title("Receiver operating characteristic")
        if lines:
            axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
        else:
            axes.text(0.5, 0.7, "undefined: one class only", ha="center", color=GREY)


def history(path: Path, history: pd.DataFrame, *, best_epoch: int | None = None, note: str = "") -> None:
    """Accuracy and loss by epoch, for training and validation, from the columns of `history.csv`.

    Marks each drop of the learning rate and the best epoch: `best_epoch`, or that with the lowest validation loss.
    Values that are missing are not drawn.
    """
    if best_epoch is None and history["val_loss"].notna().any():
        best_epoch = int(history["epoch"].to_numpy()[np.nanargmin(history["val_loss"].to_numpy(dtype=float))])
    with _page(path, (7.2, 6.4), note) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _limits(upper, lower, history)
        for axes, quantity in ((upper, "accuracy"), (lower, "loss")):
            _curves(axes, history, quantity)
            axes.set_ylabel(quantity)
            if best_epoch is not None:
                axes.axvline(best_epoch, color=GREEN, linewidth=6, alpha=0.25)
        _learning_rates(upper, lower, history)
        lower.set_xlabel("epoch")
        if best_epoch is not None:
            said, style = f"best epoch {best_epoch}", {"color": GREEN, "fontweight": "bold"}
            _label(upper, said, (best_epoch, 1), (0, 3), xycoords=TOP, ha="center", va="bottom", **style)


def class_histogram(path: Path, split: pd.DataFrame, *, note: str = "") -> None:
    """Cases of each class in each split, with the patients of the split, from the columns of `split.csv`."""
    present = set(split["split"].astype(str))
    order = [name for name in SPLITS if name in present] + sorted(present - set(SPLITS))
    classes = sorted(split["label"].dropna().astype(str).unique())
    counts = (
        pd.crosstab(split["split"].astype(str), split["label"].astype(str)).reindex(order, columns=classes).fillna(0)
    )
    patients = split.groupby(split["split"].astype(str))["patient_key"].nunique()
    width = 0.8 / max(1, len(classes))
    with _page(path, (min(14.0, max(4.6, 1.6 + 0.55 * len(order) * (len(classes) + 1))), 4.4), note) as figure:
        axes = figure.add_subplot()
        for number, name in enumerate(classes):
            place = np.arange(len(order)) + (number - (len(classes) - 1) / 2) * width
            bars = axes.bar(place, counts[name], width * 0.92, color=COLOURS[number % len(COLOURS)], label=_short(name))
            for bar in bars:
                bar.set_hatch(("", "//", "..", "xx")[number // len(COLOURS) % 4])
            axes.bar_label(bars, fmt="%d", fontsize=9, padding=2)
        axes.grid(False, axis="x")
        axes.margins(y=0.12)
        axes.set_xlim(-0.75, max(1, len(order)) - 0.25)
        size = split.groupby(split["split"].astype(str))[
            "case_id"
        ].nunique()  # of several findings a case has many rows
        rows = [f"{one}\n{_count(size[one], 'case')}\n{_count(patients[one], 'patient')}" for one in order]
        axes.set_xticks(range(len(order)), rows)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("cases")
        axes.set_title("Cases of each class by split", pad=26)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, handlelength=1.2)


def gallery(path: Path, tiles: Sequence[Tile], *, columns: int | None = None, note: str = "") -> None:
    """Pictures with actual and predicted class: ✓ and a full green frame where they agree, ✗ and a dashed red one
    not."""
    across = columns or min(6, max(1, round(math.sqrt(1.5 * len(tiles)))))  # half as wide again as high
    down = max(1, math.ceil(len(tiles) / across))
    with _page(path, (max(3.2, 2.4 * across), 3.05 * down + 0.2), note) as figure:
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, tile in zip(grid, tiles, strict=False):
            _tile(axes, tile)
        if not tiles:
            grid[0].text(0.5, 0.5, "no picture to show", ha="center", color=GREY)


@contextmanager
def _page(path: Path, inches: tuple[float, float], note: str) -> Iterator[Figure]:
    """A figure of `inches` (width, height) above the note, written to `path` when the block ends without an error."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A backend in rcParams is resolved when it is set: leave it out, it plays no part here.
    plain = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(("backend", "interactive"))}
    with mpl.rc_context({**plain, **STYLE}):
        lines = textwrap.wrap(note, int(inches[0] * 14))  # about 15 letters of 9 pt to the inch
        foot = (len(lines) * 9 * 1.3 + 6) / POINTS_AN_INCH if lines else 0.0
        width, height = inches[0], inches[1] + foot
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
        canvas = FigureCanvasAgg(figure)
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, foot / height, 1, 1 - foot / height), w_pad=0.1, h_pad=0.1)
        yield figure
        figure.text(0.08 / width, 0.06 / height, "\n".join(lines), fontsize=9, color=GREY, va="bottom", in_layout=False)
        with whole_file(path) as aside:
            canvas.print_png(aside, metadata={"Software": None})


def _operating_point(axes: Axes, line: RocLine, colour: str) -> None:
    """Where the threshold in use lies on the curve: all cases with a score from it on are called positive."""
    if line.threshold is None or not len(line.points.threshold):
        return
    called = np.flatnonzero(line.points.threshold >= line.threshold)[-1]
    where = (line.points.false_positive_rate[called], line.points.sensitivity[called])
    axes.plot(
        *where, "o", markersize=8, color="white", markeredgecolor=colour, markeredgewidth=2, clip_on=False, zorder=5
    )
    _label(axes, f"threshold {line.threshold:.2g}", where, (10, -12), color=colour)


def _curves(axes: Axes, history: pd.DataFrame, quantity: str) -> None:
    """Training and validation by epoch, each named at its last point; the two names are kept apart."""
    ends = []
    for column, name, colour, style in (("train", "train", BLUE, "-"), ("val", "validation", RED, "--")):
        known = history[["epoch", f"{column}_{quantity}"]].dropna()
        if known.empty:
            continue
        values = known[f"{column}_{quantity}"]
        marker = "o" if len(known) < 20 else ""
        axes.plot(known["epoch"], values, style, color=colour, linewidth=1.8, marker=marker, markersize=4)
        ends.append((float(values.iloc[-1]), float(known["epoch"].iloc[-1]), name, colour))
    ends.sort()
    near = len(ends) == 2 and ends[1][0] - ends[0][0] < 0.08 * np.ptp(axes.get_ylim())
    for place, (value, epoch, name, colour) in enumerate(ends):
        said = f"{name} {value:.1%}" if quantity == "accuracy" else f"{name} {value:.3g}"
        shift = (8, (-6, 6)[place] if near else 0)
        _label(axes, said, (epoch, value), shift, color=colour, va="center", annotation_clip=False)
    if not ends:
        axes.text(0.5, 0.5, f"no {quantity} recorded", transform=axes.transAxes, ha="center", color=GREY)


def _learning_rates(upper: Axes, lower: Axes, history: pd.DataFrame) -> None:
    """A line before each epoch that runs at a lower learning rate than the one before, with the new rate."""
    rates = history["learning_rate"]
    lowered = history.loc[rates < rates.shift(), ["epoch", "learning_rate"]]
    for epoch, rate in lowered.itertuples(index=False):
        for axes in (upper, lower):
            axes.axvline(epoch - 0.5, color=GREY, linewidth=1, linestyle=":")
        said, top = f"learning rate {rate:.2g}", (epoch - 0.5, 0.97)
        _label(lower, said, top, (-2, 0), xycoords=TOP, ha="right", va="top", rotation=90, color=GREY)


def _label(axes: Axes, text: str, where: tuple[float, float], shift: tuple[float, float], **style: Any) -> None:
    """Text beside a point, shifted by points of type."""
    axes.annotate(text, where, xytext=shift, textcoords="offset points", fontsize=9, **style)


def _limits(upper: Axes, lower: Axes, history: pd.DataFrame) -> None:
    """Whole epochs, accuracy up to 100 %, loss from 0: fixed ends, so that small differences are not blown up."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlim(history["epoch"].min() - 0.5, history["epoch"].max() + 0.5)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    lowest = np.nanmin(history[["train_accuracy", "val_accuracy"]].to_numpy(dtype=float), initial=0.9)
    upper.set_ylim(math.floor(lowest * 10 - 0.1) / 10, 1.005)
    losses = history[["train_loss", "val_loss"]].to_numpy(dtype=float)
    lower.set_ylim(min(0.0, np.nanmin(losses, initial=0)), 1.05 * np.nanmax(losses, initial=0.1))


def _tile(axes: Axes, tile: Tile) -> None:
    """One picture in its frame, the case above and the verdict below."""
    right = tile.actual == tile.predicted
    colour = GREEN if right else RED
    axes.set_axis_on()
    axes.grid(False)
    axes.imshow(tile.picture)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=colour, linewidth=3, linestyle="-" if right else (0, (3, 1.5)))
    axes.set_title("✓" if right else "✗", fontsize=13, fontweight="bold", color=colour, loc="left", pad=5)
    axes.set_title(_short(tile.title, 22), fontsize=9, loc="right", pad=5)
    said = f"predicted {_short(tile.predicted, 20)}"
    if tile.about in ("", tile.predicted):
        said += f" {percent_text(tile.probability)}"
    else:
        said += f" ({_short(tile.about, 10)} {percent_text(tile.probability)})"
    axes.set_xlabel(f"{said}\nactual {_short(tile.actual, 20)}", color=BLACK, fontsize=9, labelpad=5)


def _with_interval(one: Interval) -> str:
    if one.value is None:
        return "undefined"
    if one.low is None or one.high is None:
        return f"{one.value:.3f}"
    return f"{one.value:.3f} ({one.low:.3f}–{one.high:.3f})"


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}" if number == 1 else f"{number:.0f} {noun}s"


def _short(name: str, letters: int = 24) -> str:
    """The name, its middle left out where it is longer than `letters`: both ends tell names apart."""
    if len(name) <= letters:
        return name
    head = (letters - 1) // 2
    return f"{name[:head]}…{name[head + 1 - letters :]}"
