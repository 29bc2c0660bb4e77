"""The metrics' names in words, for tables and sentences."""

from __future__ import annotations

METRICS = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "exact_match": "All findings right",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "f1": "F1 score",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
}
"""In the order shown, with their names; others that a record has are those of classes."""
_NAMES = ("AUROC", "F1", "Brier")
"""Capital letters that stay within a sentence."""


def metric_words(name: str) -> str:
    """Within a sentence: `average_precision` is average precision, `auroc_cat` (of a class) AUROC of cat."""
    metric = max((one for one in METRICS if name == one or name.startswith(f"{one}_")), key=len, default="")
    if not metric:
        return name.replace("_", " ")
    title, of_class = METRICS[metric], name[len(metric) + 1 :]
    words = title if title.startswith(_NAMES) else title[0].lower() + title[1:]
    return f"{words} of {of_class}" if of_class else words
