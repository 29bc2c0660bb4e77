"""Pages for people: one self-contained HTML file each, without scripts and without anything from elsewhere.

In: the plain values of a record (`audit.json`). All text is escaped, as headers and sheets may hold anything; the page forbids
the browser to load or run anything besides. Every page says that it is for research use only.
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
    return _environment().get_template("audit.html").render(
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
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "figure": _figure, "place": _place}
    return environment


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _place(value: float | None) -> str:
    """Where a value stands on the AUROC's axis, in percent of its width."""
    low, high = AXIS
    inside = min(max(low if value is None else value, low), high)
    return f"{100 * (inside - low) / (high - low):.1f}"
