"""Networks of several folds that speak as one: `model.json` and `history.csv` of the run folder above theirs.

Probabilities and heatmaps of an ensemble are means over its members. Temperature and thresholds are chosen on the members' out-of-fold
predictions together, each case by the one member that was not trained on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config import Evaluation
from pipeline.files import file_digest
from pipeline.run import (
    HISTORY_FILE,
    SPLIT_FILE,
    ModelFacts,
    read_model,
    write_ensemble,
    write_table,
)  # fmt: skip
from pipeline.training.choices import Chosen, Validated, chosen


def make_ensemble(
    out: Path, folders: Sequence[str], validation: Validated, scope: dict[str, list[str]], settings: Evaluation
) -> tuple[ModelFacts, Chosen]:
    """Makes the trained runs `folders` in `out` one model. `validation`: their out-of-fold predictions; `scope`: what all have seen."""
    members = [read_model(out / name) for name in folders]
    first = members[0]
    decided = chosen(validation, first, settings)
    facts = {name: getattr(first, name) for name in ModelFacts.model_fields if name != "weights_sha256"}
    facts |= {
        "members": list(folders),
        "temperature": decided.temperature,
        "thresholds": decided.thresholds,
        "threshold_rule": decided.threshold_rule,
        "heatmap_scale": decided.heatmap_scale,
        "best_epoch": round(float(np.median([member.best_epoch for member in members]))),
        "scope": scope,
        "split_sha256": file_digest(out / SPLIT_FILE),
    }
    write_table(out / HISTORY_FILE, mean_history([pd.read_csv(out / name / HISTORY_FILE) for name in folders]))
    return write_ensemble(out, facts, members), decided


def mean_history(histories: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Each epoch's mean over the folds that had it."""
    return pd.concat(histories, ignore_index=True).groupby("epoch", as_index=False).mean()
