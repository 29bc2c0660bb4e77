"""What a model says of its validation split, and what that decides: temperature, thresholds, and the heatmaps' scale.

Axes: n images of m cases, v views, k classes. Where folds make an ensemble, the parts of all folds are joined, each case as the one member
says it that was not trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import Evaluation
from pipeline.label_arrays import label_array, presence
from pipeline.metrics.calibration import choose_threshold, fit_temperature
from pipeline.prediction.explain import scale_of
from pipeline.prediction.pooling import attention_weights, pool_each
from pipeline.prediction.predict import ImageResult, TrainedModel
from pipeline.run import ModelFacts
from pipeline.wording import counted


@dataclass(frozen=True)
class Validated:
    """`logits` (n, v, k), `attention` (n, v), `case` (n,) the number of each image's case, `labels` the cases' texts, in the order of
    their numbers; `evidence`: of each image the cells of the class that it shows, as they are drawn.
    """

    logits: NDArray[np.float64]
    attention: NDArray[np.float64]
    case: NDArray[np.int64]
    labels: list[str]
    evidence: list[NDArray[np.float32]]

    def probabilities(self, facts: ModelFacts, temperature: float) -> NDArray[np.float64]:
        """(m, k) of the cases, at a temperature."""
        temperatures = np.full(self.logits.shape[1], temperature)
        several, pooling = facts.several, facts.network.pooling
        return pool_each(self.logits, self.attention, self.case, len(self.labels), temperatures, several, pooling)


@dataclass(frozen=True)
class Chosen:
    """What the validation split decided; `warnings` where it could not decide."""

    temperature: float
    thresholds: dict[str, float]
    threshold_rule: str
    heatmap_scale: float
    warnings: tuple[str, ...]


def validated(model: TrainedModel, results: Iterable[ImageResult], labels: pd.Series) -> Validated:
    """`results` of the validation split's images; `labels`: the texts by case_id. Images that could not be predicted count for nothing."""
    logits, attention, cases, evidence = [], [], [], []
    for result in results:
        if result.logits is None or result.attention is None or result.evidence is None:
            continue
        logits.append(result.logits)
        attention.append(result.attention)
        cases.append(result.file.case_id)
        evidence.append(result.evidence[result.shown].copy())  # of a batch, which would stay as a whole
    case, names = pd.factorize(np.array(cases, dtype=object))
    shape = (len(cases), model.views, len(model.facts.classes))
    scores, numbers = np.array(attention, dtype=np.float64).reshape(shape[:2]), case.astype(np.int64)
    if model.facts.network.pooling == "attention":
        weights = attention_weights(scores, numbers, len(names)).astype(np.float32)
        evidence = [cells * weight for cells, weight in zip(evidence, weights, strict=True)]
    return Validated(
        np.array(logits, dtype=np.float64).reshape(shape),
        scores,
        numbers,
        labels.loc[list(names)].astype(str).tolist(),
        evidence,
    )


def together(parts: Sequence[Validated]) -> Validated:
    """Several folds' as one; each case is in one of them."""
    before = np.cumsum([0, *(len(part.labels) for part in parts)])
    return Validated(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.attention for part in parts]),
        np.concatenate([part.case + start for part, start in zip(parts, before, strict=False)]),
        [label for part in parts for label in part.labels],
        [cells for part in parts for cells in part.evidence],
    )


def chosen(validation: Validated, facts: ModelFacts, settings: Evaluation) -> Chosen:
    """The temperature first, as thresholds are of calibrated probabilities."""
    temperature, warnings = 1.0, []
    if settings.calibration == "temperature":
        labels = label_array(validation.labels, facts.classes, facts.several)
        fitted = fit_temperature(lambda value: validation.probabilities(facts, value), labels)
        temperature = fitted.value
        warnings += [fitted.warning]
    probabilities = validation.probabilities(facts, temperature)
    present, thresholds, rule = presence(validation.labels, facts.classes), {}, [_rule_in_words(settings, validation)]
    for name in facts.findings:
        place = facts.classes.index(name)
        found = choose_threshold(probabilities[:, place], present[:, place], settings.threshold)
        thresholds[name] = found.value
        rule += [f"{name}: {found.warning}"] if found.warning else []
    warnings += rule[1:]
    if not thresholds and settings.threshold != Evaluation().threshold:
        warnings.append(
            "evaluation.threshold says nothing here: of more than two classes the most probable one is called"
        )
    told = "; ".join(rule) if thresholds else "the most probable class"
    scale = scale_of(facts, validation.evidence)
    return Chosen(temperature, thresholds, told, scale, tuple(filter(None, warnings)))


def _rule_in_words(settings: Evaluation, validation: Validated) -> str:
    rule = settings.threshold
    if isinstance(rule, float | int):
        return f"{rule:g}, as configured"
    on = f"on the {counted(len(validation.labels), 'case')} of the validation split"
    if rule == "youden":
        return f"the largest sensitivity + specificity {on}"
    wanted = f"sensitivity {rule.sensitivity:g}" if rule.sensitivity else f"specificity {rule.specificity:g}"
    return f"{wanted} at least, {on}"
