"""Inference on a Ray cluster, part by part (`inference_parts.Part`): the results of the local engine, with only rows in the driver.

CPU tasks decode a batch of files, which stays where it was decoded; model actors, one a GPU or, where there is none, one a node, predict
it; a CPU task makes a part's cases of both and writes their objects. Batches are composed as `predict.predict_files` composes them. A part
that a node or an actor took with it is done again: objects appear whole and have the same UIDs, so that this is harmless.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster import (
    RETRIES,
    Budget,
    Lost,
    check_places,
    fetched,
    load_ray,
    nodes,
    pool_here,
    run_chunk,
    tell_lost,
)
from pipeline.errors import RadloopError
from pipeline.prediction.case_stream import cases_of
from pipeline.prediction.deliver import WRITE_MEMORY_BYTES, WRITE_TIMEOUT_S, Delivery, Through, delivered_each
from pipeline.prediction.inference_parts import PART_IMAGES, Part
from pipeline.prediction.predict import ImageResult, TrainedModel, load_model, network_batches, predicted_batch
from pipeline.prepared.dataset import (
    DECODE_MEMORY_BYTES,
    DECODE_TIMEOUT_S,
    FILES_A_TURN,
    ImageFile,
    Prepared,
    Preparer,
)
from pipeline.work import Failure

TASK_CPUS = 0.5
"""What a task claims that decodes or writes: it waits for disks, too. The model of a node without a GPU claims half of its CPUs, so that a
node of a single CPU has room for both, whatever other nodes go."""
PARTS_AHEAD = 2
"""Parts on their way beside one for each CPU: their images, about 90 MB a part, are what the nodes hold of pixels."""
LOOK_S = 2.0
"""So often it is asked which nodes there are."""
PAUSE_S = 20.0
"""A node whose model went gets no other one for so long, where there are others: Ray needs a while to see that the node is gone, too."""
NODES_WAIT_S = 120.0
"""Without any node for so long it is given up."""


@dataclass(eq=False)
class _Batch:
    """What goes through the network at once. `decoded`, `results`: references, where it was begun, to one outcome a file."""

    files: list[ImageFile]
    decoded: Any = None
    results: Any = None
    model: _Model | None = None


@dataclass(eq=False)
class _Work:
    """A part on its way: its batches, and of each the rows [first, last) that are the part's. `attempt`: which it is."""

    part: Part
    pieces: list[tuple[_Batch, int, int]] = field(default_factory=list)
    attempt: int = 0


def parts_on_cluster(
    run: Path,
    model: TrainedModel,
    parts: Sequence[Part],
    files_of: Callable[[Part], Iterable[ImageFile]],
    delivery: Delivery,
    out_of_scope: Mapping[str, str],
    places: Sequence[Path],
) -> Iterator[tuple[Part, list[Through]]]:
    """Each part with its cases, as soon as it is done. `model`: that of `run`; its networks are not used. `places`: of the shared storage.

    Raises RadloopError where a part failed so often that the cluster is at fault.
    """
    ray = load_ray()
    models = _Models(run, model)
    delivery = replace(delivery, out=delivery.out.resolve())
    seen = tuple(str(place.resolve()) for place in (*places, run, delivery.out))
    steps = _Steps(Preparer(model.facts.preprocessing, bool(delivery.kinds)), delivery, out_of_scope, seen)
    planned, again, on_their_way = _planned(parts, files_of, model), deque[_Work](), dict[Any, _Work]()
    try:
        while True:
            room = PART_IMAGES * (PARTS_AHEAD + round(models.cpus())) - sum(
                one.part.images for one in on_their_way.values()
            )
            while room > 0 and (work := again.popleft() if again else next(planned, None)):
                on_their_way[steps.begin(work, models)] = work
                room -= work.part.images
            if not on_their_way:
                return
            [reference], _ = ray.wait(list(on_their_way), num_returns=1)
            work = on_their_way.pop(reference)
            try:
                through = fetched(reference)
            except Lost as lost:
                tell_lost(f"part {work.part.number}", work.attempt, lost)
                models.forget_the_dead({batch.model for batch, _, _ in work.pieces if batch.model})
                models.relieve(work)
                again.append(work)
            else:
                models.relieve(work)
                yield work.part, through
    finally:
        for reference in on_their_way:
            ray.cancel(reference)
        models.end()


def _planned(
    parts: Sequence[Part], files_of: Callable[[Part], Iterable[ImageFile]], model: TrainedModel
) -> Iterator[_Work]:
    """The parts, divided into batches across their borders, as one stream of files is: so the end of a part may share a batch with the
    beginning of the next one."""
    files = ((part, file) for part in parts for file in files_of(part))
    work: _Work | None = None
    for some in network_batches(model, files, lambda one: one[1].case_id):
        batch, first = _Batch([file for _, file in some]), 0
        for part, of_part in groupby(some, key=itemgetter(0)):
            if work is not None and work.part is not part:
                yield work
                work = None
            work = work or _Work(part)
            last = first + sum(1 for _ in of_part)
            work.pieces.append((batch, first, last))
            first = last
    if work is not None:
        yield work


# --- what runs where


@dataclass
class _Steps:
    """How a part is begun: a task for each step, with what all of them are told."""

    preparer: Preparer
    delivery: Delivery
    out_of_scope: Mapping[str, str]
    places: tuple[str, ...]

    def __post_init__(self) -> None:
        remote, claim = load_ray().remote, {"num_cpus": TASK_CPUS, "max_retries": RETRIES}
        self._decode = remote(run_chunk).options(scheduling_strategy="SPREAD", **claim)
        self._deliver = remote(deliver_part).options(scheduling_strategy="SPREAD", **claim)
        self._budget = Budget(DECODE_TIMEOUT_S, DECODE_MEMORY_BYTES, places=self.places)

    def begin(self, work: _Work, models: _Models) -> Any:
        """The reference of the part's cases. What was predicted before it was lost is predicted again."""
        work.attempt += 1
        for batch, _, _ in work.pieces:
            if batch.results is None or work.attempt > 1:
                batch.decoded = self._decode.remote(self.preparer, batch.files, self._budget, FILES_A_TURN)
                batch.model = models.least_busy()
                batch.results = batch.model.predict(batch)
        pieces = [(batch.files, [batch.decoded], first, last) for batch, first, last in work.pieces]
        cases = {file.case_id for batch, first, last in work.pieces for file in batch.files[first:last]}
        outside = {case: self.out_of_scope[case] for case in cases & self.out_of_scope.keys()}
        results = [batch.results for batch, _, _ in work.pieces]
        return self._deliver.remote(self.delivery, pieces, outside, self.places, *results)


class Predictor:
    """What a model actor is: the run's networks on its device, loaded with the first batch, so that an error of theirs is told as one."""

    def __init__(self, run: str, device: str) -> None:
        self._run, self._device, self._lock = Path(run), torch.device(device), threading.Lock()
        self._model: TrainedModel | None = None

    def predict(self, files: Sequence[ImageFile], decoded: Sequence[Prepared | Failure]) -> list[ImageResult]:
        """One result for each file, without its pixels, which whoever writes takes from where they were decoded."""
        with self._lock:
            if self._model is None:
                check_places((str(self._run),))
                self._model = load_model(self._run, self._device)
        if self._device.type == "cpu":
            torch.set_num_threads(1)  # of this thread: there is one a batch
        results = predicted_batch(self._model, list(zip(files, decoded, strict=True)))
        return [replace(result, prepared=None) for result in results]

    def answers(self) -> bool:
        """True."""
        return True


def deliver_part(
    delivery: Delivery,
    pieces: Sequence[tuple[Sequence[ImageFile], list[Any], int, int]],
    out_of_scope: Mapping[str, str],
    places: tuple[str, ...],
    *results: Sequence[ImageResult],
) -> list[Through]:
    """A part's cases, written; of their images only what rows need. `pieces`: of each batch its files, its images as a reference, which
    are held one batch after the other, and the rows that are the part's."""
    check_places(places)
    model = TrainedModel((), delivery.facts, torch.device("cpu"))
    pool = pool_here(WRITE_TIMEOUT_S, WRITE_MEMORY_BYTES)
    cases = cases_of(model, _with_pixels(pieces, results), delivery.output.key_images, out_of_scope)
    return [
        replace(one, results=tuple(replace(result, prepared=None, evidence=None) for result in one.results))
        for one in delivered_each(cases, delivery, pool)
    ]


def _with_pixels(
    pieces: Sequence[tuple[Sequence[ImageFile], list[Any], int, int]], results: Sequence[Sequence[ImageResult]]
) -> Iterator[ImageResult]:
    ray = load_ray()
    for (_, [reference], first, last), predicted in zip(pieces, results, strict=True):
        decoded = ray.get(reference)
        for prepared, result in zip(decoded[first:last], predicted[first:last], strict=True):
            yield result if result.failure else replace(result, prepared=prepared)


# --- model actors


@dataclass(eq=False)
class _Model:
    """A model actor and where it is. `busy`: batches that were given to it and are not through."""

    actor: Any
    node: str
    busy: int = 0

    def predict(self, batch: _Batch) -> Any:
        self.busy += 1
        return self.actor.predict.remote(batch.files, batch.decoded)


class _Models:
    """One actor a GPU; in a cluster without GPUs one a node, which predicts as many batches at once as the node has CPUs, a thread each, as
    the local engine does."""

    def __init__(self, run: Path, model: TrainedModel) -> None:
        self._run = str(run.resolve())
        self._models: list[_Model] = []
        self._paused: dict[str, float] = {}
        self._nodes, self._looked = nodes(), time.monotonic()
        self._gpu = any(node.gpus for node in self._nodes)
        self._at_once = model.facts.heatmap == "weights"  # other methods hook into the network
        self._actor = load_ray().remote(Predictor)

    def cpus(self) -> float:
        """Of the cluster."""
        self._look()
        return sum(node.cpus for node in self._nodes)

    def least_busy(self) -> _Model:
        """An actor, started where a node has none; waits where there is no node."""
        until = time.monotonic() + NODES_WAIT_S
        while time.monotonic() < until:
            self._look()
            self._start_missing()
            if self._models:
                return min(self._models, key=lambda model: model.busy)
            time.sleep(LOOK_S)
        kind = "GPUs" if self._gpu else "CPUs"
        raise RadloopError(f"expected nodes with {kind} in the cluster, found none for {NODES_WAIT_S:.0f} s")

    def relieve(self, work: _Work) -> None:
        """Its batches are through, or lost."""
        for batch, _, _ in work.pieces:
            if batch.model is not None:
                batch.model.busy -= 1
                batch.model = None

    def forget_the_dead(self, used: set[_Model]) -> None:
        """Of these actors, on which work was lost, those that do not answer; one that has much to do is given the benefit of the doubt."""
        ray = load_ray()
        for model in used & set(self._models):
            answer = model.actor.answers.remote()
            ready, _ = ray.wait([answer], timeout=LOOK_S)
            try:
                if ready:
                    fetched(answer)
            except Lost:
                self._models.remove(model)
                self._paused[model.node] = time.monotonic() + PAUSE_S
                ray.kill(model.actor)

    def end(self) -> None:
        for model in self._models:
            load_ray().kill(model.actor)
        self._models.clear()

    def _look(self) -> None:
        if time.monotonic() - self._looked > LOOK_S:
            self._nodes, self._looked = nodes(), time.monotonic()

    def _start_missing(self) -> None:
        """On each node that has fewer than it should, but for those that lost one just now, where there are others."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in self._nodes:
            wanted = node.gpus if self._gpu else 1
            here = sum(model.node == node.id for model in self._models)
            if self._models and self._paused.get(node.id, 0.0) > time.monotonic():
                continue
            for _ in range(wanted - here):
                claim = {"num_gpus": 1, "num_cpus": TASK_CPUS} if self._gpu else {"num_cpus": node.cpus / 2}
                lanes = 1 if self._gpu or not self._at_once else max(1, round(node.cpus))
                actor = self._actor.options(
                    **claim,
                    max_concurrency=lanes,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                ).remote(self._run, "cuda" if self._gpu else "cpu")
                self._models.append(_Model(actor, node.id))
