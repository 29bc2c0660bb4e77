"""Pages for people: one self-contained HTML file each, without anything from elsewhere.

What all pages share: their templates' environment, in which all text is escaped, as headers and sheets may hold anything, and the words of
numbers. The page forbids the browser to load or run anything besides. Every page says that it is for research use only. The
audit's page is made here, from the plain values of `audit.json`; an evaluation's in `run_report`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_VALUES = 12
"""Of a breakdown, on the page; audit.json has all."""
MOST_FEATURES = 10
AXIS = (0.4, 1.0)
"""Of the AUROC's plot; values below stand at its left end."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a400", "#666666")
"""Of the classes, told apart by colour-blind readers (Okabe and Ito 2008), the yellow darker; beyond eight they begin anew."""


def audit_page(record: Mapping[str, Any]) -> str:
    """The page of `radloop audit` for what `audit.json` holds."""
    classes = record["manifest"]["classes"]
    varied = [table for table in record["breakdowns"] if len(table["values"]) > 1]
    single = [table for table in record["breakdowns"] if len(table["values"]) == 1]
    missing = [row for row in record["missing"] if 0 < row["missing"] < record["flow"]["cases"]]
    return page_environment().get_template("audit.html").render(
        record,
        colours={name: COLOURS[number % len(COLOURS)] for number, name in enumerate(classes)},
        who="blocks" if record["manifest"]["patients"] == "blocks" else "patients",
        tables=[_shortened(table) for table in varied],
        single=single,
        partly_missing=missing,
        wholly_missing=[row["column"] for row in record["missing"] if row["missing"] == record["flow"]["cases"]],
        cases_of={row["name"]: row["cases"] for row in record["classes"]},
        tested=[group for group in record["shortcuts"]["groups"] if group["auroc"]],
        untested=[group for group in record["shortcuts"]["groups"] if not group["auroc"]],
        strongest=record["shortcuts"]["features"][:MOST_FEATURES],
        axis=AXIS,
    )  # fmt: skip


def _shortened(table: Mapping[str, Any]) -> dict[str, Any]:
    """The most frequent values in their order, and how many more there are."""
    rows: Sequence[Mapping[str, Any]] = table["values"]
    frequent = {row["value"] for row in sorted(rows, key=lambda row: -row["cases"])[:MOST_VALUES]}
    return {**table, "values": [row for row in rows if row["value"] in frequent], "more": len(rows) - len(frequent)}


@lru_cache(maxsize=1)
def page_environment() -> Environment:
    """Of the templates in pipeline/templates; what a template names and is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "figure": _figure,
        "place": _place,
        "along": _along,
        "interval": _interval,
        "share": _share,
        "shade": _shade,
    }
    return environment


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _place(value: float | None) -> str:
    """Where a value stands on the AUROC's axis, in percent of its width."""
    return _along(AXIS[0] if value is None else value, *AXIS)


def _along(value: float, low: float, high: float) -> str:
    """Where a value stands between two others, in percent of the way; beyond them at the nearer end."""
    inside = min(max(value, low), high)
    return f"{100 * (inside - low) / (high - low):.1f}"


def _interval(one: Mapping[str, float | None]) -> str:
    """0.91 (0.87 to 0.94)."""
    between = "" if one["low"] is None else f" ({_figure(one['low'])} to {_figure(one['high'])})"
    return "undefined" if one["value"] is None else f"{one['value']:.2f}{between}"


def _share(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}".replace("%", " %")


def _shade(share: float | None, right: bool) -> str:
    """Of a cell of the confusion matrix: the more of its row, the stronger, blue where it is right, orange where not; light enough that
    the text on it keeps a contrast of 7:1."""
    red, green, blue = (0, 114, 178) if right else (213, 94, 0)
    return f"rgba({red}, {green}, {blue}, {0.06 + 0.4 * (share or 0.0):.2f})"
