"""Explanation: whether a run's heatmaps can be trusted, tested on images of its own data, as numbers with intervals and a page.

Four questions: does the map depend on what the network learnt (model randomization), does it stay where it is when the image moves a
little (repeatability), does the network lose what the map says it went by (deletion), and, where findings are known, does the peak lie
on one. A test that fails is a warning. Nothing here says that a prediction is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pipeline
from pipeline import RESEARCH_ONLY
from pipeline.config import Config
from pipeline.errors import ConfigError, RunError
from pipeline.evaluation.scoring import Predictions, predict_subject
from pipeline.evaluation.subject import Subject, own_split
from pipeline.explaining.deletion import PERCENTILES, Deleted, deleted
from pipeline.explaining.likeness import Sampling, rank_correlation
from pipeline.explaining.page import Shown, explanation_page
from pipeline.explaining.pointing import known_findings, pointing
from pipeline.explaining.probes import Cells, Probe, chosen_images, maps_of, read_probes
from pipeline.explaining.randomization import DRAWS, Stage, randomized, stage_counts
from pipeline.explaining.repeatability import Repeated, changes, repeated
from pipeline.files import write_whole
from pipeline.prediction.explain import cell_sides, evidence_unit, method_words
from pipeline.prediction.predict import TrainedModel, load_model, load_networks
from pipeline.progress import say, track
from pipeline.run import ModelFacts, read_config
from pipeline.wording import counted

EXPLANATION_FOLDER = "explanation"
EXPLANATION_FILE, PAGE_FILE = "explanation.json", "explanation.html"
IMAGES = 24
"""Of as many patients: an interval of a mean correlation is then some ±0.1."""
SHOWN = 6
"""Of the page's pictures."""
SAME = 0.5
"""Rank correlation with the trained network's map from which on a map of a network that knows nothing is called the same: half of the order
of the cells would then be there without any learning."""
REPEATS = 0.7
"""Rank correlation from which on a moved image's map is called the same."""
REPEATS_BEYOND = 0.05
"""By less than this above what a map would have that had not moved, a rank correlation proves nothing."""
FEWEST_CELLS, FEWEST_PATIENTS = 16, 10
"""Fewer cells of a map, or patients, and figures say little."""


@dataclass(frozen=True)
class Outcomes:
    """What all tests found, image by image."""

    probes: Sequence[Probe]
    maps: Sequence[Cells]
    stages: Sequence[Stage]
    repeats: Sequence[Repeated]
    deletion: Deleted | None


def explain(
    run: Path, *, split: str = "test", images: int = IMAGES, root: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Writes RUN/explanation/ and returns what explanation.json holds, and `folder`.

    `split`: whose images are looked at; `images`: how many at most; `root`: where the data lie now, if not where they were trained. Raises
    ConfigError or RunError with one message.
    """
    if images < 2:
        raise ConfigError(f"--images {images}: expected 2 at least, as maps of several images are compared")
    model, config = load_model(run), read_config(run)
    subject = own_split(run, split, model.facts, root=root)
    predictions = predict_subject(model, subject, progress=progress)
    probes = _probes(model, subject, predictions, images, config.seed)
    tested = _tested(run, model, probes, config, progress)
    record = _record(tested, model, subject, predictions, split, config)
    folder = run / EXPLANATION_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / EXPLANATION_FILE, json.dumps(record, indent=2) + "\n")
    shown = Shown(tested.probes[:SHOWN], tested.maps, tested.stages, tested.repeats, tested.deletion)
    write_whole(folder / PAGE_FILE, explanation_page(record, shown, model))
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    return record | {"folder": str(folder)}


def _probes(model: TrainedModel, subject: Subject, predictions: Predictions, count: int, seed: int) -> list[Probe]:
    patients = subject.cases["patient_key"]
    chosen = chosen_images(predictions.cases, predictions.images, patients, model.facts, count, seed)
    by_case = subject.cases.set_index("case_id")["patient_key"]
    probes = read_probes(model, chosen, subject.images, subject.index.roots, by_case)
    if len(probes) < 2:
        reasons = predictions.images.loc[predictions.images["reason"] != "", "reason"].value_counts()
        first = f"; the most frequent reason: {reasons.index[0]}" if len(reasons) else ""
        hint = "; --root DIR says where the data lie now" if len(reasons) else "; take another --split"
        raise RunError(
            f"split {subject.name}: {counted(len(probes), 'image')} of it could be predicted, two at least are needed{first}{hint}"
        )
    return probes


def _tested(run: Path, model: TrainedModel, probes: list[Probe], config: Config, progress: bool) -> Outcomes:
    maps, probabilities = maps_of(model, probes)
    networks = load_networks(run, model.facts)
    stages = track(
        randomized(model, networks, probes, maps, config.seed),
        "randomizing the network",
        len(stage_counts(len(networks[0].groups))),
        show=progress,
    )
    moves = changes(model.facts.preprocessing.size, model.geometry.cell_stride)
    repeats = track(
        (repeated(model, probes, maps, probabilities, change) for change in moves),
        "moving the images",
        len(moves),
        show=progress,
    )
    found, again = list(stages), list(repeats)
    flat = model.facts.network.pooling != "volume"
    if flat and progress:
        say(f"removing pixels of {counted(len(probes), 'image')}")
    return Outcomes(probes, maps, found, again, deleted(model, probes, maps, config.seed) if flat else None)


# The record


def _record(
    tested: Outcomes, model: TrainedModel, subject: Subject, predictions: Predictions, split: str, config: Config
) -> dict[str, Any]:
    """What explanation.json holds; undefined values are null."""
    facts = model.facts
    sampling = Sampling([probe.patient for probe in tested.probes], config.evaluation.resamples, config.seed)
    record: dict[str, Any] = {
        "radloop_version": pipeline.__version__,
        "intended_use": RESEARCH_ONLY,
        "notice": facts.notice,
        "model": facts.name,
        "model_digest": facts.digest,
        "split": split,
        "images": len(tested.probes),
        "patients": len(set(sampling.patients)),
        "classes": facts.classes,
        "shown": sorted({facts.classes[probe.shown] for probe in tested.probes}),
        "called": _called(predictions, facts),
        "heatmap": _heatmap(tested, model),
        "randomization": _randomization(tested, sampling),
        "repeatability": _repeatability(tested, sampling),
        "deletion": _deletion(tested, sampling, facts),
        "pointing": _pointing(model, subject, predictions),
    }
    record["warnings"] = [*subject.warnings, *_warnings(record)]
    return record


def _called(predictions: Predictions, facts: ModelFacts) -> bool:
    """Whether the class shown is called in any case, so that the images are such cases."""
    of_interest = [facts.positive] if facts.positive_index is not None else facts.classes
    return bool(
        predictions.cases["predicted"]
        .astype(str)
        .str.split("|")
        .map(lambda names: bool(set(names) & set(of_interest)))
        .any()
    )


def _heatmap(tested: Outcomes, model: TrainedModel) -> dict[str, Any]:
    facts, shape = model.facts, tested.maps[0].shape
    sides = np.median([cell_sides(model.geometry, probe.prepared.affine) for probe in tested.probes], axis=0)
    return {
        "method": facts.heatmap,
        "words": method_words(facts),
        "unit": evidence_unit(facts),
        "scale": facts.heatmap_scale,
        "scale_of": facts.heatmap_scale_of,
        "cells": list(shape),
        "cell_source_pixels": [float(side) for side in sides],
        "without_evidence": int(sum(not (cells > 0).any() for cells in tested.maps)),
    }


def _randomization(tested: Outcomes, sampling: Sampling) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "rank_correlation": sampling.mean(stage.rank_correlation.mean(axis=1)).to_json(),
            "absolute": sampling.mean(np.abs(stage.rank_correlation).mean(axis=1)).to_json(),
            "similarity": sampling.mean(stage.similarity.mean(axis=1)).to_json(),
        }
        for stage in tested.stages
    ]
    count = len(tested.maps)
    others = [  # each with the next image's map: how much of a map is the same wherever one looks
        rank_correlation(tested.maps[place], tested.maps[(place + 1) % count]) for place in range(count)
    ]
    head, everything = (stages[place]["rank_correlation"]["value"] for place in (0, -1))  # type: ignore[index]
    return {
        "draws": DRAWS,
        "stages": stages,
        "other_images": sampling.mean(others).to_json(),
        "depends_on_head": head < SAME,
        "passed": everything < SAME,
    }


def _repeatability(tested: Outcomes, sampling: Sampling) -> dict[str, Any]:
    names = ("rank_correlation", "had_it_stayed", "peak_cells", "peak_source_pixels", "probability_change")
    rows = [
        {"name": one.name} | {name: sampling.mean(getattr(one, name)).to_json() for name in names}
        for one in tested.repeats
    ]
    table = {name: np.stack([getattr(one, name) for one in tested.repeats]) for name in names}
    known = ~np.isnan(table["peak_cells"]).all(axis=0)
    together = {name: sampling.mean(_mean_over_changes(values)).to_json() for name, values in table.items()}
    within = np.where(np.isnan(table["peak_cells"]), np.nan, table["peak_cells"] <= 1.0)
    return {
        "changes": rows,
        "together": together,
        "peak_within_a_cell": sampling.mean(_mean_over_changes(within)).to_json(),
        "images_with_a_peak": int(known.sum()),
        "passed": (together["rank_correlation"]["value"] or 0.0) >= REPEATS,
    }


def _mean_over_changes(values: np.ndarray) -> np.ndarray:
    """(images,) from (changes, images), NaN left out."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _deletion(tested: Outcomes, sampling: Sampling, facts: ModelFacts) -> dict[str, Any]:
    found = tested.deletion
    if found is None:
        reason = "the grad-cam package fills removed pixels in from their neighbours in an image, not in a volume"
        return {"done": False, "reason": reason}
    scores = {}
    for name, ours, random in (("road", found.road, found.road_random), ("kept", found.kept, found.kept_random)):
        scores[name] = {
            "map": sampling.mean(ours).to_json(),
            "random": sampling.mean(random).to_json(),
            "difference": sampling.mean(ours - random).to_json(),
        }
    low = scores["road"]["difference"]["low"]
    return {
        "done": True,
        "percentiles": list(PERCENTILES),
        "unit": "logit" if facts.several else "logit margin" if len(facts.classes) == 2 else "centred logit",
        **scores,
        "passed": low is not None and low > 0,
    }


def _pointing(model: TrainedModel, subject: Subject, predictions: Predictions) -> dict[str, Any] | None:
    """Where findings are known, of two classes, and their images are in the split."""
    findings = known_findings(subject.index.roots)
    if findings is None or model.facts.positive_index is None or model.facts.network.pooling == "volume":
        return None
    found = pointing(model, predictions.cases, predictions.images, subject.images, subject.index.roots, findings)
    if not found.images:
        return None
    return {
        "images": found.images,
        "inside": found.inside,
        "inside_by_chance": found.inside_by_chance,
        "within_one_cell": found.share,
        "within_one_cell_by_chance": found.by_chance,
    }


def _warnings(record: Mapping[str, Any]) -> list[str]:
    """One sentence for each test that fails, and for what makes the tests weak."""
    heatmap, random, again, removed = (
        record[name] for name in ("heatmap", "randomization", "repeatability", "deletion")
    )
    warnings = []
    if not random["passed"]:
        value = random["stages"][-1]["rank_correlation"]["value"]
        warnings.append(
            f"model randomization: with everything shuffled the maps stay alike (rank correlation {value:.2f}); they show the image "
            "more than what the network learnt"
        )
    if not random["depends_on_head"]:
        value = random["stages"][0]["rank_correlation"]["value"]
        warnings.append(
            f"model randomization: with a shuffled head the maps stay alike (rank correlation {value:.2f}); they do not say which class "
            "they speak for"
        )
    alike = random["other_images"]["value"] or 0.0
    if alike >= SAME:
        warnings.append(
            f"maps of different images are alike (rank correlation {alike:.2f}): they say little of the single image"
        )
    stayed = again["together"]["had_it_stayed"]["value"] or 0.0
    if again["passed"] and stayed >= (again["together"]["rank_correlation"]["value"] or 0.0) - REPEATS_BEYOND:
        warnings.append(
            f"repeatability: maps that had not moved with the image would have passed, too (rank correlation {stayed:.2f}): it proves "
            "nothing on maps so coarse"
        )
    if not again["passed"]:
        value = again["together"]["rank_correlation"]["value"]
        told = "undefined" if value is None else f"{value:.2f}"
        warnings.append(f"repeatability: a little shift or turn changes the maps (rank correlation {told})")
    if removed["done"] and not removed["passed"]:
        value = removed["road"]["difference"]["value"]
        warnings.append(
            f"deletion: removing what the maps call relevant changes the {removed['unit']} no more than removing as much at random "
            f"(ROAD {value:+.3f} against a random map)"
        )
    if heatmap["cells"][0] * heatmap["cells"][1] < FEWEST_CELLS:
        cells = " x ".join(str(side) for side in heatmap["cells"])
        warnings.append(f"maps have {cells} cells: they say little about place, and rank correlations are coarse")
    if record["patients"] < FEWEST_PATIENTS:
        warnings.append(
            f"{counted(record['patients'], 'patient')}: figures are uncertain, whatever their intervals say"
        )
    if heatmap["without_evidence"]:
        of = counted(record["images"], "image")
        warnings.append(f"no evidence above 0 on {heatmap['without_evidence']} of {of}: nothing is drawn on them")
    if not record["called"]:
        warnings.append("no case of this split is called, so maps are those of cases in which the model finds nothing")
    return warnings


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    heatmap, random, again, removed = (
        record[name] for name in ("heatmap", "randomization", "repeatability", "deletion")
    )
    lines = [
        f"{RESEARCH_ONLY}. {heatmap['words']} ({heatmap['unit']}), {counted(record['images'], 'image')} of "
        f"{counted(record['patients'], 'patient')}, {record['split']} split",
        f"  model randomization: {_verdict(random['passed'])}; rank correlation with the trained network's maps "
        + ", ".join(f"{stage['name']} {stage['rank_correlation']['value']:.2f}" for stage in random["stages"])
        + f"; of different images {_text(random['other_images'])}",
        f"  repeatability: {_verdict(again['passed'])}; rank correlation {_text(again['together']['rank_correlation'])}, {_peaks(again)}",
    ]
    if removed["done"]:
        lines.append(
            f"  deletion: {_verdict(removed['passed'])}; ROAD {_text(removed['road']['map'])}, random {_text(removed['road']['random'])}, "
            f"difference {_text(removed['road']['difference'])} {removed['unit']}"
        )
    else:
        lines.append(f"  deletion: not done; {removed['reason']}")
    if record["pointing"]:
        told = record["pointing"]
        lines.append(
            f"  known findings: the peak is on one in {told['inside']:.0%} of {counted(told['images'], 'image')} "
            f"({told['inside_by_chance']:.0%} by chance), within one cell of one in {told['within_one_cell']:.0%} "
            f"({told['within_one_cell_by_chance']:.0%})"
        )
    return lines


def _peaks(again: Mapping[str, Any]) -> str:
    if not again["images_with_a_peak"]:
        return "no peaks to compare"
    cells, pixels = (_text(again["together"][name]) for name in ("peak_cells", "peak_source_pixels"))
    return f"peaks {cells} cells apart, {pixels} source pixels"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _text(one: Mapping[str, float | None]) -> str:
    """0.91 (0.87 to 0.94)."""
    if one["value"] is None:
        return "undefined"
    return f"{one['value']:.2f}" + ("" if one["low"] is None else f" ({one['low']:.2f} to {one['high']:.2f})")
