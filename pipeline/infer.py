"""Inference: any source to predictions and, for each case, objects where a radiologist finds them.

Every file of the source is afterwards in `image_predictions.csv`, `rejects.csv` or `exclusions.csv`; every case is a row of
`predictions.csv`. A stream: files are decoded in worker processes, predicted here, and written by other worker processes, all at once;
of each case only its key images are held until it is complete (with volume pooling: the case). Killed and called again it goes on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

import pipeline
from pipeline.cluster import LOCAL, RAY, check_engine, connected
from pipeline.cohort.cases import Cases, group_images
from pipeline.cohort.rules import collisions_inferred_without
from pipeline.errors import ConfigError
from pipeline.files import alone
from pipeline.indexing.index import Index
from pipeline.indexing.sources import open_source
from pipeline.overlap import made_ahead
from pipeline.prediction.case_stream import cases_of
from pipeline.prediction.deliver import WRITE_MEMORY_BYTES, WRITE_TIMEOUT_S, Delivery, Through, delivered_each
from pipeline.prediction.inference_parts import Counts, Ledger, Part, parts_of
from pipeline.prediction.predict import BATCH, TrainedModel, load_model, predict_files
from pipeline.prediction.prediction_tables import case_table, image_table
from pipeline.prediction.retraction import read_replaced, retract
from pipeline.prediction.scope import marked_formats, scope_reason
from pipeline.prepared.dataset import ImageFile, image_files
from pipeline.profile_settings import KINDS, Kind, ScopeWords, load_profile
from pipeline.progress import say, track
from pipeline.run import read_config, run_folder, write_table
from pipeline.work import WorkerPool, default_workers


@dataclass(frozen=True)
class InferenceSummary:
    """What was done. `unmade`: (kind, reason) → how many cases are without an object of that kind."""

    counts: Counts
    rejected: int
    excluded: int
    retracted: int
    unmade: Counter[tuple[str, str]]

    @property
    def cases(self) -> int:
        return self.counts.cases

    @property
    def failed(self) -> int:
        return self.counts.failed

    @property
    def objects(self) -> int:
        return self.counts.objects

    @property
    def overlays(self) -> int:
        return self.counts.overlays

    @property
    def out_of_scope(self) -> int:
        return self.counts.out_of_scope

    def lines(self) -> list[str]:
        """For the terminal."""
        if not self.cases:
            why = f"{self.rejected} files rejected, {self.excluded} images excluded (rejects.csv and exclusions.csv say why)"
            return [f"nothing to predict: {why}"]
        failed = f", {self.failed} failed (predictions.csv says why)" if self.failed else ""
        lines = [f"cases: {self.cases - self.failed} done{failed}"]
        lines += [f"written: {self.objects} DICOM objects, {self.overlays} overlay pictures"]
        lines += [f"no {kind}: {reason} ({count} cases)" for (kind, reason), count in sorted(self.unmade.items())]
        if self.retracted:
            lines.append(f"retracted: {self.retracted} objects of before, in rejection notes")
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
    write: Sequence[str] | None = None,
    profile: str = "",
    strict_scope: bool = False,
    replaces: Path | None = None,
    root: Path | None = None,
    engine: str = LOCAL,
    workers: int | None = None,
    progress: bool = True,
) -> InferenceSummary:
    """Predicts every case of `source` and writes tables and objects to `out`. `run` may be a bundle that radloop made of one.

    `write`: kinds of objects, by default those of the profile; none for tables alone. `profile`: a site's, in place of the run's own.
    `strict_scope`: no object for a case outside the model's scope. `replaces`: OUT of an earlier inference, whose objects of the same
    studies are retracted where they are not made again. `engine`: local, or ray (`cluster`), with the same tables and objects.
    `workers`: processes each for decoding and writing; 0: all in this one; of a Ray that is started here: its CPUs.
    """
    check_engine(engine)
    run, how = run_folder(run), _How(engine, workers, progress)
    output = read_config(run).output.model_copy(update={"profile": profile} if profile else {})
    site = load_profile(output.profile)
    kinds = _kinds(site.write if write is None else write)
    replaced = read_replaced(replaces) if replaces is not None else None
    on_ray = engine == RAY
    model = load_model(run, torch.device("cpu") if on_ray else None)
    opened = open_source(source, root)
    opened.refuse_output(out)
    with connected(workers) if on_ray else nullcontext():
        index = opened.index(engine=engine, progress=progress)
        grouped = _grouped(index, model, opened.manifest.facts if opened.manifest else {})
        delivery = Delivery(out, model.facts, model.geometry, site, kinds, output, strict_scope)
        with alone(out, "infers into"):
            counts, unmade = _predict_and_deliver(run, model, index, grouped, delivery, how)
            retracted = retract(replaced, out, delivery.algorithm, site) if replaced is not None else 0
            write_table(out / "rejects.csv", index.rejects)
            write_table(out / "exclusions.csv", grouped.exclusions)
    return InferenceSummary(counts, len(index.rejects), len(grouped.exclusions), retracted, unmade)


@dataclass(frozen=True)
class _How:
    """By what the work is done; it changes no result."""

    engine: str
    workers: int | None
    progress: bool


def _kinds(wanted: Sequence[str]) -> tuple[Kind, ...]:
    unknown = sorted(set(wanted) - set(KINDS))
    if unknown:
        raise ConfigError(f"--write {','.join(unknown)}: expected some of {', '.join(KINDS)}, or none")
    return tuple(kind for kind in KINDS if kind in wanted)


def _grouped(index: Index, model: TrainedModel, facts: dict[str, str]) -> Cases:
    """Single images, and files without a header to ask, are all predicted, and marked where a rule of the training would have left
    them out; of a series or study those rules choose the images."""
    unit = model.facts.unit
    out = collisions_inferred_without(unit)
    return group_images(index, unit, model.facts.rules, collisions=out, facts=facts, mark=marked_formats(unit))


def _predict_and_deliver(
    run: Path, model: TrainedModel, index: Index, grouped: Cases, delivery: Delivery, how: _How
) -> tuple[Counts, Counter[tuple[str, str]]]:
    """Every part that is not done yet: decoded, predicted and written at once, its rows kept; then the tables."""
    parts = list(parts_of(grouped.images, _identity(delivery)))
    ledger = Ledger(delivery.out, parts)
    due = [part for part in parts if not ledger.has(part)]
    if len(due) < len(parts):
        say(f"going on: {len(parts) - len(due)} of {len(parts)} parts were done before")
    outside, files_of = (
        _out_of_scope(grouped, model, delivery.profile.texts.scope),
        partial(_files, grouped=grouped, index=index),
    )
    if how.engine == RAY:
        from pipeline.prediction.on_cluster import parts_on_cluster

        done = parts_on_cluster(run, model, due, files_of, delivery, outside, list(index.roots.values()))
        count = sum(part.images for part in due)
        done = track(done, "inferring", count, show=how.progress, size=lambda one: one[0].images)
    else:
        done = _parts_here(model, due, files_of, delivery, outside, how)
    for part, cases in done:
        of_images = grouped.images.iloc[part.first_image : part.last_image].reset_index(drop=True)
        of_cases = grouped.cases.iloc[part.first_case : part.last_case].reset_index(drop=True)
        told = [result for one in cases for result in one.results]
        images = image_table(of_images, told, model)
        ledger.keep(
            part, images, case_table(of_cases, images, told, model), [(one.case_id, one.delivered) for one in cases]
        )
    return ledger.finish() if parts else (_no_tables(grouped, model, ledger), Counter())


def _parts_here(
    model: TrainedModel,
    parts: Sequence[Part],
    files_of: Callable[[Part], Iterable[ImageFile]],
    delivery: Delivery,
    out_of_scope: Mapping[str, str],
    how: _How,
) -> Iterator[tuple[Part, list[Through]]]:
    """Each part with its cases, by worker processes of this machine."""
    files = (file for part in parts for file in files_of(part))
    results = predict_files(model, files, keep_shown=bool(delivery.kinds), workers=how.workers)
    results = track(results, "inferring", sum(part.images for part in parts), show=how.progress)
    cases = cases_of(model, results, delivery.output.key_images, out_of_scope)
    writers = default_workers() if how.workers is None else how.workers
    with WorkerPool(writers, timeout_s=WRITE_TIMEOUT_S, memory_bytes=WRITE_MEMORY_BYTES) as pool:
        through = delivered_each(made_ahead(cases, BATCH if writers else 0), delivery, pool)
        for part in parts:
            yield part, list(islice(through, part.cases))


def _files(part: Part, grouped: Cases, index: Index) -> list[ImageFile]:
    return image_files(grouped.images.iloc[part.first_image : part.last_image], index.roots)


def _identity(delivery: Delivery) -> str:
    """Of all that results depend on beside the files."""
    parts = (
        *(pipeline.__version__, delivery.facts.digest, delivery.configuration_digest),
        *("strict" if delivery.strict_scope else "", *delivery.kinds),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _out_of_scope(grouped: Cases, model: TrainedModel, words: ScopeWords) -> dict[str, str]:
    """Case → why it is outside the model's scope, by its first image that is."""
    reason = scope_reason(grouped.images, model.facts.scope, words)
    outside = (reason != "").to_numpy()
    pairs = zip(grouped.images["case_id"].to_numpy()[outside], reason[outside], strict=True)
    told: dict[str, str] = {}
    for case_id, why in pairs:
        told.setdefault(str(case_id), str(why))
    return told


def _no_tables(grouped: Cases, model: TrainedModel, ledger: Ledger) -> Counts:
    """Tables with headings alone, where there is no image to predict."""
    images = image_table(grouped.images, [], model)
    part = Part(0, 0, 0, 0, 0, "0")
    ledger.parts = [part]
    ledger.keep(part, images, case_table(grouped.cases, images, [], model), [])
    counts, _ = ledger.finish()
    return counts
