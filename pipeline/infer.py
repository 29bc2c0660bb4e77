"""Inference: any source to predictions and, for each case, pictures where a radiologist finds them.

Every file of the source is afterwards in `image_predictions.csv`, `rejects.csv` or `exclusions.csv`; every case is a row of
`predictions.csv`. A stream: of each case only its key images are held until the case is complete.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pandas as pd

from pipeline.cases import Cases, group_images
from pipeline.dataset import image_files
from pipeline.deliver import Case, Delivery, case_content
from pipeline.errors import ConfigError
from pipeline.index import Index
from pipeline.manifest import open_source
from pipeline.predict import (
    RASTER_FORMATS,
    STATUS_OK,
    ImageResult,
    TrainedModel,
    case_table,
    image_table,
    load_model,
    predict_files,
    probability_columns,
    scope_reason,
)  # fmt: skip
from pipeline.progress import track
from pipeline.run import read_config, write_table

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
        return [
            f"{self.cases} cases: {self.cases - self.failed} done, {self.failed} failed (predictions.csv says why)",
            f"{self.objects} DICOM objects and {self.overlays} overlay pictures written",
            f"{self.out_of_scope} cases outside the model's scope (marked)",
            f"{self.rejected} files rejected, {self.excluded} images excluded (rejects.csv and exclusions.csv say why)",
        ]


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
    for _, place in opened.places:
        if out.resolve().is_relative_to(place.resolve()):
            raise ConfigError(
                f"--out {out} lies inside the source {place}; give a folder outside, so that results never become input"
            )
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
        light, keys = _with_key_images(of_case, key_images)
        results += light
        if delivery is not None and keys:
            problem = delivery.deliver(_case(case_id, light, model, reasons[case_id]), keys)
            if problem:
                problems[case_id] = problem
    return results, problems


def _with_key_images(results: Iterable[ImageResult], count: int) -> tuple[list[ImageResult], list[ImageResult]]:
    """All results without their pixels, and whole those `count` that have the highest probability of the class shown.

    A file that is there twice is a key image once.
    """
    light: list[ImageResult] = []
    best: list[tuple[float, int, ImageResult]] = []
    seen: set[tuple[str, int]] = set()
    for position, result in enumerate(results):
        if result.probabilities is None or result.prepared is None:
            light.append(result)
            continue
        light.append(replace(result, prepared=replace(result.prepared, image=result.prepared.image[:0], shown=None)))
        if (result.prepared.digest, result.file.frame) in seen:
            continue
        seen.add((result.prepared.digest, result.file.frame))
        entry = (float(result.probabilities[result.shown]), -position, result)
        if len(best) < count:
            heapq.heappush(best, entry)
        else:
            heapq.heappushpop(best, entry)
    return light, [result for _, _, result in sorted(best, key=lambda entry: entry[:2], reverse=True)]


def _case(case_id: str, results: list[ImageResult], model: TrainedModel, out_of_scope: str) -> Case:
    probabilities = pd.DataFrame(
        [result.probabilities for result in results if result.probabilities is not None],
        columns=probability_columns(model.facts.classes),
    ).mean()
    predicted = model.decide(probabilities.to_numpy()[None])[0]
    return Case(
        case_id, predicted, float(probabilities[f"p_{predicted}"]), len(results), case_content(results), out_of_scope
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
    cases = case_table(grouped.cases, images, model)
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
