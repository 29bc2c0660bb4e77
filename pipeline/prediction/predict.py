"""A trained model and cases to probabilities and evidence.

`load_model` opens a run, of one network or an ensemble's; `TrainedModel.predict` takes prepared images (batch, k, size, size) as levels.
Each member sees each mirror image that the model asks for: a view. What a case's images say together is in `pipeline.prediction.pooling`.
Results come as streams: memory does not grow with the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline.errors import RejectReason, RunError
from pipeline.networks.folding import fold_batch_norms
from pipeline.networks.fusing import fuse_activations
from pipeline.networks.model import WEIGHTS_FILE, Classifier, Geometry, VolumeClassifier, blank_network
from pipeline.overlap import in_lanes, made_ahead
from pipeline.prediction.explain import class_evidence, mirrored_back
from pipeline.prediction.heatmap_methods import method_evidence, own_share
from pipeline.prediction.pooling import image_probabilities
from pipeline.prediction.prediction_tables import STATUS_FAILED as STATUS_FAILED
from pipeline.prediction.prediction_tables import STATUS_OK as STATUS_OK
from pipeline.prediction.prediction_tables import case_table as case_table
from pipeline.prediction.prediction_tables import decide
from pipeline.prediction.prediction_tables import image_table as image_table
from pipeline.prediction.prediction_tables import probability_columns as probability_columns
from pipeline.prediction.scope import RASTER_FORMATS as RASTER_FORMATS
from pipeline.prediction.scope import scope_of as scope_of
from pipeline.prediction.scope import scope_reason as scope_reason
from pipeline.prediction.volume_evidence import evidence_on_slices, resampled_volume
from pipeline.prepared.cache import PreparedImages
from pipeline.prepared.dataset import ImageFile, Prepared, Preparer, prepare_all
from pipeline.run import MODEL_FILE, ModelFacts, member_folders, read_model
from pipeline.training.feed import standardised
from pipeline.work import Failure, default_workers
from transforms.intensity import from_levels

BATCH = 16
"""Images a forward pass, always: libraries sum in another order for another number, and what is said of an image would depend on who came
with it. On the CPU larger batches gain nothing, on a GPU decoding is the slower part."""
MIRRORS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "flip_horizontal": ((), (-1,)),
    "flips": ((), (-1,), (-2,), (-2, -1)),
}
"""For each name of `evaluation.views` the axes along which the image is mirrored, one tuple a mirror image."""

Item = TypeVar("Item")
Network = Classifier | VolumeClassifier

NOTHING: NDArray[np.uint16] = np.empty(0, dtype=np.uint16)


@dataclass(frozen=True)
class Predicted:
    """What v views say of a batch, the network's own logits: `logits` (batch, v, classes) and `attention` (batch, v), 0 without attention
    pooling, float64; `evidence` (batch, classes, cell rows, cell columns) float32, the views' mean, mirrored back; `probabilities`
    (batch, classes) float64, calibrated; `shown` (batch,): the class whose evidence speaks for the image, the finding of two
    classes, the most probable of others.
    """

    logits: NDArray[np.float64]
    attention: NDArray[np.float64]
    evidence: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    shown: NDArray[np.int64]


@dataclass(frozen=True)
class TrainedModel:
    """One network, or an ensemble's, with what is known about them, on their device."""

    networks: tuple[Network, ...]
    facts: ModelFacts
    device: torch.device

    @property
    def network(self) -> Network:
        """The first; the others are of the same shape."""
        return self.networks[0]

    @property
    def geometry(self) -> Geometry:
        return self.network.geometry

    @property
    def views(self) -> int:
        networks = len(self.networks) or len(self.facts.members) or 1  # without networks: what is known of them
        return networks * len(MIRRORS[self.facts.views])

    @property
    def temperatures(self) -> NDArray[np.float64]:
        """(v,)"""
        return np.full(self.views, self.facts.temperature)

    def predict(self, levels: NDArray[np.uint16]) -> Predicted:
        """One forward pass a view: logits, and the evidence map that the same pass gives.

        With volume pooling the batch is one case, its slices in order, and each says what the case says.
        """
        volume, depth = self.facts.network.pooling == "volume", self.facts.network.bag_size
        inputs = self.inputs(levels)
        views = [self._view(network, inputs, axes) for axes in MIRRORS[self.facts.views] for network in self.networks]
        logits = torch.stack([view.logits for view in views], dim=1).double().cpu().numpy()
        attention = torch.stack([view.attention for view in views], dim=1).double().cpu().numpy()
        together = torch.stack([view.evidence for view in views]).mean(dim=0)
        evidence = (own_share(together) if self.facts.heatmap_scale_of == "image" else together).cpu().numpy()
        if volume:
            logits, attention = (np.repeat(one, len(levels), axis=0) for one in (logits, attention))
            assert isinstance(self.network, VolumeClassifier)
            evidence = evidence_on_slices(evidence[0], len(levels), depth, self.network.depth_geometry)
        probabilities = image_probabilities(logits, self.temperatures, self.facts.several)
        positive = self.facts.positive_index
        shown = probabilities.argmax(axis=1) if positive is None else np.full(len(logits), positive)
        return Predicted(logits, attention, evidence, probabilities, shown)

    def inputs(self, levels: NDArray[np.uint16]) -> torch.Tensor:
        """What the networks see of levels (n, k, rows, columns): (n, c, rows, columns); of a volume (1, c, depth, rows, columns)."""
        if self.facts.network.pooling != "volume":
            return self._input(levels)
        slices = self._input(np.moveaxis(resampled_volume(levels, self.facts.network.bag_size), 1, 0))
        return slices.transpose(0, 1)[None].contiguous()

    def _input(self, levels: NDArray[np.uint16]) -> torch.Tensor:
        """(n, c, rows, columns) from levels (n, k, rows, columns)."""
        images = from_levels(torch.from_numpy(levels).to(self.device))
        return standardised(images, self.facts.input_mean, self.facts.input_std)

    def _view(self, network: Network, inputs: torch.Tensor, axes: tuple[int, ...]) -> _View:
        """What one network says of images (b, c, rows, columns), or volumes (b, c, depth, rows, columns), mirrored along `axes`."""
        seen = inputs.flip(axes) if axes else inputs
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            features = network.features(seen)
        with torch.inference_mode():
            features = features.float()
            logits = network.classify(features)
            attention = _attention(network, features)
        evidence = self._evidence(network, seen, features)
        with torch.inference_mode():
            evidence = mirrored_back(evidence, axes, network.geometry, inputs.shape[-1])
        return _View(logits, attention, evidence)

    def _evidence(self, network: Network, seen: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(b, classes, *cells) by the method of `evaluation.heatmap`."""
        several = self.facts.several
        if self.facts.heatmap == "weights":
            with torch.inference_mode():
                return class_evidence(features, network.head.weight, network.head.bias, several=several)
        return method_evidence(self.facts.heatmap, network, seen, features, several=several)

    def decide(self, probabilities: NDArray[np.float64]) -> list[str]:
        """Each row's class, or classes (n, classes): see `prediction_tables.decide`."""
        return decide(self.facts, probabilities)


@dataclass(frozen=True)
class _View:
    """One view of b images or volumes: (b, classes), (b,) and (b, classes, *cells)."""

    logits: torch.Tensor
    attention: torch.Tensor
    evidence: torch.Tensor


def _attention(network: Network, features: torch.Tensor) -> torch.Tensor:
    """(b,) what the attention network says of each image, before the softmax over its case; 0 without one."""
    if isinstance(network, VolumeClassifier):
        return features.new_zeros(len(features))
    return network.scores(features).float()


@dataclass(frozen=True)
class ImageResult:
    """What is known of one image: its prediction, or its failure."""

    file: ImageFile
    failure: Failure | None = None
    prepared: Prepared | None = None
    probabilities: NDArray[np.float64] | None = None  # (classes,), calibrated
    evidence: NDArray[np.float32] | None = None  # (classes, cell rows, cell columns)
    shown: int = 0
    logits: NDArray[np.float64] | None = None  # (views, classes)
    attention: NDArray[np.float64] | None = None  # (views,)

    @property
    def reason(self) -> str:
        """Why there is no prediction; '' where there is one."""
        return f"{self.failure.reason}: {self.failure.detail}" if self.failure else ""


def predict_files(
    model: TrainedModel,
    files: Iterable[ImageFile],
    *,
    keep_shown: bool = False,
    stress: str = "",
    workers: int | None = None,
) -> Iterator[ImageResult]:
    """Each file decoded, prepared and predicted, in order; a stream, so memory does not grow with the number of files. The next batch is
    decoded while one is predicted.

    `stress`: a name in `transforms.stress.STRESSES`, applied to each image before it is prepared.
    """
    preparer = Preparer(model.facts.preprocessing, keep_shown, stress)
    prepared_ahead = made_ahead(prepare_all(files, preparer, workers), 0 if workers == 0 else BATCH)
    batches = network_batches(model, prepared_ahead, lambda item: item[0].case_id)
    for results in _side_by_side(model, batches, default_workers() if workers is None else workers):
        yield from results


def predicted_batch(model: TrainedModel, batch: Sequence[tuple[ImageFile, Prepared | Failure]]) -> list[ImageResult]:
    """One result for each image that was decoded or failed."""
    decoded = [(file, prepared) for file, prepared in batch if isinstance(prepared, Prepared)]
    levels = np.stack([prepared.image for _, prepared in decoded]) if decoded else NOTHING
    predicted = _results(model, levels, decoded)
    return [ImageResult(file, outcome) if isinstance(outcome, Failure) else next(predicted) for file, outcome in batch]


def _side_by_side(
    model: TrainedModel, batches: Iterator[list[tuple[ImageFile, Prepared | Failure]]], lanes: int
) -> Iterator[list[ImageResult]]:
    """Results batch by batch, in order. On the CPU as many batches at once as there are `lanes`, each by one thread: threads that share a
    batch wait for each other wherever a worker process has the core of one of them. A GPU does one after the other, and so do methods of
    heatmaps that hook into the network; a batch that is the only one has all threads.
    """
    first = list(islice(batches, 2))
    if lanes < 2 or len(first) < 2 or model.device.type != "cpu" or model.facts.heatmap != "weights":
        yield from (predicted_batch(model, batch) for batch in chain(first, batches))
        return
    threads = torch.get_num_threads()
    try:
        yield from in_lanes(
            partial(predicted_batch, model), chain(first, batches), lanes, begin=lambda: torch.set_num_threads(1)
        )
    finally:
        torch.set_num_threads(threads)  # of threads to come; this one's were never others


def predict_prepared(model: TrainedModel, files: Sequence[ImageFile], images: PreparedImages) -> Iterator[ImageResult]:
    """`predict_files` of images that are in the cache: the same results without what only decoding tells (`ImageResult.prepared`)."""
    failed = {
        int(position): Failure(RejectReason(reason), detail)
        for position, reason, detail in images.failures.itertuples(index=False, name=None)
    }
    for batch in network_batches(model, range(len(files)), lambda position: files[position].case_id):
        usable = [position for position in batch if position not in failed]
        levels = images.take(np.array(usable, dtype=np.int64))
        predicted = _results(model, levels, [(files[position], None) for position in usable])
        for position in batch:
            failure = failed.get(position)
            yield ImageResult(files[position], failure=failure) if failure else next(predicted)


def network_batches(model: TrainedModel, items: Iterable[Item], case_of: Callable[[Item], str]) -> Iterator[list[Item]]:
    """What goes through the network at once: some images, or all of a case where it is a volume."""
    if model.facts.network.pooling != "volume":
        return batched(items)
    return (list(of_case) for _, of_case in groupby(items, key=case_of))


def _results(
    model: TrainedModel, levels: NDArray[np.uint16], images: Sequence[tuple[ImageFile, Prepared | None]]
) -> Iterator[ImageResult]:
    """One result for each of `images`, whose levels (n, k, size, size) are given."""
    if not images:
        return
    told = _predicted(model, levels)
    whole = [np.isfinite(array.reshape(len(images), -1)) for array in (told.logits, told.attention, told.evidence)]
    finite: NDArray[np.bool_] = np.asarray(np.concatenate(whole, axis=1).all(axis=1))
    for place, (file, prepared) in enumerate(images):
        if finite[place]:
            yield ImageResult(
                file, None, prepared, told.probabilities[place], told.evidence[place], int(told.shown[place]),
                told.logits[place], told.attention[place],
            )  # fmt: skip
        else:
            failure = Failure(RejectReason.NOT_FINITE, "the network's output is not a finite number")
            yield ImageResult(file, failure=failure)


def _predicted(model: TrainedModel, levels: NDArray[np.uint16]) -> Predicted:
    """`TrainedModel.predict` of up to `BATCH` images in a batch that is always whole: what is missing is the last one again."""
    count = len(levels)
    if model.facts.network.pooling == "volume" or count == BATCH:
        return model.predict(levels)
    told = model.predict(np.concatenate([levels, np.repeat(levels[-1:], BATCH - count, axis=0)]))
    return Predicted(*(getattr(told, field.name)[:count] for field in fields(told)))


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(run: Path, device: torch.device | None = None, *, fold: bool = True) -> TrainedModel:
    """The trained model of a run, or of an ensemble's; RunError where it is incomplete or damaged. `fold`: see `trained_model`."""
    facts = read_model(run)
    return trained_model(load_networks(run, facts), facts, device or pick_device(), fold=fold)


def load_networks(run: Path, facts: ModelFacts) -> list[Network]:
    """A run's networks as they were trained; RunError where one is damaged."""
    return [_load_network(folder, facts) for folder in member_folders(run, facts)]


def _load_network(folder: Path, facts: ModelFacts) -> Network:
    network = blank_network(facts.network, len(facts.classes), facts.preprocessing.size)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise RunError(f"{folder / WEIGHTS_FILE}: does not fit the network that {MODEL_FILE} describes") from error
    return network


def trained_model(
    networks: Sequence[Network], facts: ModelFacts, device: torch.device, *, fold: bool = True
) -> TrainedModel:
    """Networks in evaluation mode on their device.

    On the CPU copies with batch norms, sums and ReLUs taken into convolutions say the same faster; not where `fold` is False, nor where the
    method of heatmaps takes gradients or layers of the network as it was trained. A GPU rounds weights to bfloat16, folded ones otherwise.
    """
    flat = facts.network.pooling != "volume"
    if fold and device.type == "cpu" and facts.heatmap == "weights":
        channels, size = facts.network.channels, facts.preprocessing.size
        networks = [_faster(network, channels, size) for network in networks]
    ready = [network.eval().to(device) for network in networks]
    if flat:
        ready = [network.to(memory_format=torch.channels_last) for network in ready]
    return TrainedModel(tuple(ready), facts, device)


def _faster(network: Network, channels: int, size: int) -> Network:
    folded = fold_batch_norms(network, channels, size).network
    return fuse_activations(folded, channels, size).network if isinstance(folded, Classifier) else folded


def batched(items: Iterable[Item], size: int = BATCH) -> Iterator[list[Item]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
