"""What a manifest's rules leave out of an index, and by which rule."""

from __future__ import annotations

import pandas as pd

from pipeline.errors import ConfigError
from pipeline.manifest import Condition, Rules

OWN_MANUFACTURER, OWN_OBJECT, NO_IMAGE = "radloop", "radloop's own object", "no image: "
NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
}
"""SOP classes with pixels that are no picture of a patient: somebody's results, not something to classify."""


def broken_rules(table: pd.DataFrame, rules: Rules, drop_collisions: bool) -> pd.Series:
    """For each image the first rule that leaves it out, or ''."""
    rule = pd.Series("", index=table.index, dtype=object)

    def leave_out(where: pd.Series, text: str) -> None:
        rule.loc[where & (rule == "")] = text

    leave_out(table["manufacturer"].fillna("").str.lower() == OWN_MANUFACTURER, OWN_OBJECT)
    for uid, what in NOT_IMAGES.items():
        leave_out(table["sop_class_uid"].fillna("") == uid, NO_IMAGE + what)
    if drop_collisions:
        for collision in ("duplicate", "conflict"):
            leave_out(table["collision"] == collision, f"collision: {collision}")
    for mode, conditions in (("include", rules.include), ("exclude", rules.exclude)):
        for column, condition in conditions.items():
            if column not in table.columns:
                raise ConfigError(
                    f"rules.{mode}: {column} is no column of the index; it has {', '.join(table.columns)}"
                )
            matches = _has_value(table[column], condition)
            leave_out(matches if mode == "exclude" else ~matches, f"{mode} {column}: {condition}")
    return rule


def _has_value(column: pd.Series, condition: Condition) -> pd.Series:
    """Whether one of the backslash-separated values of each entry is in `values`, whatever the case."""
    wanted = {value.casefold() for value in condition.values}
    unique = {
        entry: any(part.strip().casefold() in wanted for part in str(entry).split("\\"))
        for entry in column.dropna().unique()
    }
    return column.map(unique).fillna(False).astype(bool)
