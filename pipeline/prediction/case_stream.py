"""From a stream of images' results to cases: what is called, which class is shown, and which images are key images.

Of a case only its key images keep their pixels; all of them keep their evidence, which is a few cells each. So memory is that of the
largest case, however many there are.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from pipeline.dicom.case_result import Finding
from pipeline.label_arrays import findings_of
from pipeline.prediction.attended import attended
from pipeline.prediction.pooling import pool_cases, ranked_attention
from pipeline.prediction.predict import ImageResult, TrainedModel
from pipeline.run import ModelFacts


@dataclass(frozen=True)
class CaseOfResults:
    """A case whose images are through. `results`: of all its images, in order, without pixels; `keys`: its key images with them, the
    first first; `shown`: the class whose evidence is drawn; `content`: digest of all its files; `out_of_scope`: why, or ''.

    Where no image could be predicted, `findings`, `keys` and `content` are empty.
    """

    case_id: str
    results: tuple[ImageResult, ...]
    keys: tuple[ImageResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    shown: int = 0
    content: str = ""
    out_of_scope: str = ""


def cases_of(
    model: TrainedModel, results: Iterable[ImageResult], key_images: int, out_of_scope: Mapping[str, str]
) -> Iterator[CaseOfResults]:
    """Each case as soon as its last image is there; `results` come case by case. `out_of_scope`: case → why, where it is."""
    for case_id, of_case in groupby(results, key=lambda result: result.file.case_id):
        keys = KeyImages(key_images, model.facts)
        done = tuple(keys.offer(result) for result in of_case)
        yield _case(case_id, done, keys, model, out_of_scope.get(case_id, ""))


def _case(
    case_id: str, results: tuple[ImageResult, ...], keys: KeyImages, model: TrainedModel, out_of_scope: str
) -> CaseOfResults:
    facts = model.facts
    results = attended(results, facts)
    done = [result for result in results if result.probabilities is not None]
    if not done:
        return CaseOfResults(case_id, results)
    evidence = {result.file: result.evidence for result in done}
    logits, attention = ([getattr(result, name) for result in done] for name in ("logits", "attention"))
    probabilities = pool_cases(logits, attention, model.temperatures, facts.several, facts.network.pooling)
    called = findings_of(model.decide(probabilities[None])[0], facts.classes)
    positive = facts.positive_index
    shown = int(probabilities.argmax()) if positive is None else positive
    return CaseOfResults(
        case_id=case_id,
        results=results,
        keys=tuple(replace(key, evidence=evidence[key.file]) for key in keys.of(shown)),
        findings=tuple(
            Finding(name, float(probability), name in called)
            for name, probability in zip(facts.classes, probabilities, strict=True)
        ),
        shown=shown,
        content=case_content(results),
        out_of_scope=out_of_scope,
    )


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
        return replace(result, prepared=replace(result.prepared, image=result.prepared.image[:0].copy(), shown=None))

    def of(self, shown: int) -> list[ImageResult]:
        """The key images for class `shown`, that of the highest rank first."""
        return [result for _, _, result in sorted(self.best[shown], key=lambda entry: entry[:2], reverse=True)]

    def _rank(self, result: ImageResult, place: int) -> float:
        if self.pooling == "attention" and result.attention is not None:
            return float(ranked_attention(result.attention))
        if self.pooling == "volume" and result.evidence is not None:
            return float(result.evidence[place].max())
        return float(result.probabilities[place]) if result.probabilities is not None else -math.inf


def case_content(results: Sequence[ImageResult]) -> str:
    """Digest of a case: of its image's file, or of all its images' files and frames, whatever their names and order are."""
    parts = sorted({(result.prepared.digest, result.file.frame) for result in results if result.prepared})
    if len(parts) == 1:
        return parts[0][0]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
