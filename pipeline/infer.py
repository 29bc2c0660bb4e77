"""Inference: any source to predictions and, for each case, pictures where a radiologist finds them.

Every file of the source is afterwards in `image_predictions.csv`, `rejects.csv` or `exclusions.csv`; every case is a row of
`predictions.csv`. A stream: of each case only its key images are held until the case is complete (with volume pooling: the case).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pandas as pd

from pipeline.cohort.cases import Cases, group_images
from pipeline.errors import ConfigError
from pipeline.indexing.index import Index
from pipeline.indexing.sources import open_source
from pipeline.label_arrays import findings_of
from pipeline.prediction.deliver import Case, Delivery, case_content
from pipeline.prediction.pooling import pool_cases, ranked_attention
from pipeline.prediction.predict import ImageResult, TrainedModel, load_model, predict_files
from pipeline.prediction.prediction_tables import STATUS_OK, case_table, image_table
from pipeline.prediction.scope import RASTER_FORMATS, scope_reason
from pipeline.prepared.dataset import image_files
from pipeline.progress import track
from pipeline.run import ModelFacts, read_config, write_table

WRITABLE = ("sc",)
STATUS_NO_OBJECT = "object_failed"
OBJECT_COLUMNS = ["kind", "case_id", "path", "sop_instance_uid", "content_digest"]
REFERENCE_COLUMNS = ["object", "source"]


@dataclass(frozen=True)
class InferenceSummary:
    """What was done."""

    cases: int
    failed: int
    objects: int
    overlays: int
    rejected: int
    excluded: int
    out_of_scope: int

    def lines(self) -> list[str]:
        """For the terminal."""
        if not self.cases:
            why = f"{self.rejected} files rejected, {self.excluded} images excluded (rejects.csv and exclusions.csv say why)"
            return [f"nothing to predict: {why}"]
        failed = f", {self.failed} failed (predictions.csv says why)" if self.failed else ""
        lines = [f"cases: {self.cases - self.failed} done{failed}"]
        lines += [f"written: {self.objects} DICOM objects, {self.overlays} overlay pictures"]
        if self.out_of_scope:
            lines.append(f"outside the model's scope: {self.out_of_scope} cases (marked)")
        if self.rejected or self.excluded:
            lines.append(f"left out: {self.rejected} files (rejects.csv), {self.excluded} images (exclusions.csv)")
        return lines


def infer(
    run: Path,
    source: str,
    out: Path,
    *,
    write: tuple[str, ...] = WRITABLE,
    root: Path | None = None,
    progress: bool = True,
) -> InferenceSummary:
    """Predicts every case of `source` and writes tables and objects to `out`."""
    unknown = sorted(set(write) - set(WRITABLE))
    if unknown:
        raise ConfigError(f"--write {','.join(unknown)}: expected {', '.join(WRITABLE)}, or none")
    model, config = load_model(run), read_config(run)
    opened = open_source(source, root)
    opened.refuse_output(out)
    index = opened.index(progress=progress)
    facts = opened.manifest.facts if opened.manifest else {}
    unit = model.facts.unit
    # Single images, and files without a header to ask, are all predicted, and marked where a rule of the training would have left
    # them out; of a series or study those rules choose the images.
    mark = (*RASTER_FORMATS, "dicom") if unit == "image" else RASTER_FORMATS
    grouped = group_images(index, unit, model.facts.rules, drop_collisions=False, facts=facts, mark=mark)
    out.mkdir(parents=True, exist_ok=True)
    delivery = Delivery(out, model, config.output)
    results, problems = _predict_and_deliver(
        model, index, grouped, delivery if write else None, config.output.key_images, progress
    )
    return _write_tables(out, index, grouped, results, problems, model, delivery)


def _predict_and_deliver(
    model: TrainedModel, index: Index, grouped: Cases, delivery: Delivery | None, key_images: int, progress: bool
) -> tuple[list[ImageResult], dict[str, str]]:
    """All images' results without their pixels, in the order of `grouped.images`, and why objects of a case are missing."""
    files = image_files(grouped.images, index.roots)
    reasons: dict[str, str] = {}
    for case_id, reason in zip(grouped.images["case_id"], scope_reason(grouped.images, model.facts.scope), strict=True):
        reasons[case_id] = reasons.get(case_id) or reason
    stream = track(predict_files(model, files, keep_shown=delivery is not None), "inferring", len(files), show=progress)
    results: list[ImageResult] = []
    problems: dict[str, str] = {}
    for case_id, of_case in groupby(stream, key=lambda result: result.file.case_id):
        keys = KeyImages(key_images, model.facts)
        of_this = [keys.offer(result) for result in of_case]
        results += of_this
        if delivery is not None and any(result.probabilities is not None for result in of_this):
            case = _case(case_id, of_this, model, reasons[case_id])
            problem = delivery.deliver(case, keys.of(case.shown))
            if problem:
                problems[case_id] = problem
    return results, problems


class KeyImages:
    """Of a case's images, as they stream by, the first `count` by rank, for each class that it may show. The rank is the image's
    probability of the class; with attention pooling its attention; with volume pooling, where all say the same, its highest evidence.

    A file that is there twice is a key image once.
    """

    def __init__(self, count: int, facts: ModelFacts) -> None:
        positive = facts.positive_index
        self.count, self.pooling = count, facts.network.pooling
        self.best: dict[int, list[tuple[float, int, ImageResult]]] = {
            place: [] for place in (range(len(facts.classes)) if positive is None else (positive,))
        }
        self.seen: set[tuple[str, int]] = set()

    def offer(self, result: ImageResult) -> ImageResult:
        """Keeps the image if it is among the best; returns its result without the pixels."""
        if result.probabilities is None or result.prepared is None:
            return result
        identity = (result.prepared.digest, result.file.frame)
        for place, best in self.best.items() if identity not in self.seen else ():
            entry = (self._rank(result, place), -len(self.seen), result)
            (heapq.heappush if len(best) < self.count else heapq.heappushpop)(best, entry)
        self.seen.add(identity)
        return replace(
            result, evidence=None, prepared=replace(result.prepared, image=result.prepared.image[:0], shown=None)
        )

    def of(self, shown: int) -> list[ImageResult]:
        """The key images for class `shown`, that of the highest rank first."""
        return [result for _, _, result in sorted(self.best[shown], key=lambda entry: entry[:2], reverse=True)]

    def _rank(self, result: ImageResult, place: int) -> float:
        if self.pooling == "attention" and result.attention is not None:
            return float(ranked_attention(result.attention))
        if self.pooling == "volume" and result.evidence is not None:
            return float(result.evidence[place].max())
        return float(result.probabilities[place]) if result.probabilities is not None else -math.inf


def _case(case_id: str, results: list[ImageResult], model: TrainedModel, out_of_scope: str) -> Case:
    facts = model.facts
    done = [result for result in results if result.probabilities is not None]
    logits, attention = ([getattr(result, name) for result in done] for name in ("logits", "attention"))
    probabilities = pool_cases(logits, attention, model.temperatures, facts.several, facts.network.pooling)
    called = findings_of(model.decide(probabilities[None])[0], facts.classes)
    positive = facts.positive_index
    return Case(
        case_id=case_id,
        findings=tuple((name, float(probabilities[facts.classes.index(name)])) for name in called),
        shown=int(probabilities.argmax()) if positive is None else positive,
        images=len(results),
        content=case_content(results),
        out_of_scope=out_of_scope,
    )


def _write_tables(
    out: Path,
    index: Index,
    grouped: Cases,
    results: list[ImageResult],
    problems: dict[str, str],
    model: TrainedModel,
    delivery: Delivery,
) -> InferenceSummary:
    images = image_table(grouped.images, results, model)
    cases = case_table(grouped.cases, images, results, model)
    problem = pd.Series([problems.get(case_id, "") for case_id in cases["case_id"]], dtype=str)
    cases.loc[problem != "", "status"] = STATUS_NO_OBJECT
    cases["reason"] = cases["reason"].where(problem == "", problem)
    write_table(out / "rejects.csv", index.rejects)
    write_table(out / "exclusions.csv", grouped.exclusions)
    write_table(out / "image_predictions.csv", images)
    write_table(out / "predictions.csv", cases)
    write_table(out / "objects.csv", pd.DataFrame(delivery.objects, columns=OBJECT_COLUMNS))
    write_table(out / "references.csv", pd.DataFrame(delivery.references, columns=REFERENCE_COLUMNS))
    return InferenceSummary(
        cases=len(cases),
        failed=int((cases["status"] != STATUS_OK).sum()),
        objects=len(delivery.objects),
        overlays=delivery.overlays,
        rejected=len(index.rejects),
        excluded=len(grouped.exclusions),
        out_of_scope=int((~cases["in_scope"]).sum()),
    )
