"""Frozen features: kept ones say what the network says, a head learns on them as it does through the network, and lands in it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import Network, Training
from pipeline.errors import RunError
from pipeline.networks.model import Classifier
from pipeline.training import frozen
from pipeline.training.feed import EPOCHS_APART, InOrder, LabelledImages
from pipeline.training.fit import fit
from pipeline.training.frozen import LabelledFeatures, frozen_features
from transforms.augment import Augmentations
from transforms.intensity import to_levels

CPU = torch.device("cpu")
TIMING = ["images_per_second", "seconds"]
PLAIN = Augmentations()
VARIED = Augmentations(flip_horizontal=0.5, zoom=0.2, shift=0.2, rotate=20, contrast=0.2)
EXACT = 1e-5
"""Between the same operations in batches of other sizes, in float32."""
HALF = 2e-3
"""Between features in float32 and in float16: 1/2048 of each, of which the head adds up hundreds."""
TRAINED = {"linear": 1e-4, "conv": 2e-2}
"""How far losses of two trainings may part in three epochs: by the order of float32 sums, by the rounding of features to float16."""

Kept = tuple[LabelledFeatures, LabelledFeatures, frozen.FrozenHead]


@dataclass(frozen=True)
class InMemory:
    levels: NDArray[np.uint16]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.levels[rows]


def _images(count: int, seed: int, augmentation: Augmentations = PLAIN) -> LabelledImages:
    """Class 1 is brighter."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    values = random.uniform(0, 0.6, (count, 1, 32, 32)) + 0.25 * labels[:, None, None, None]
    levels = to_levels(values.astype(np.float32))
    return LabelledImages(InMemory(levels), np.arange(count), labels, (0.4,), (0.2,), augmentation, seed)


def _classifier(head: str = "linear", dropout: float = 0.0) -> Classifier:
    """A trunk whose batch norms have statistics and weights of their own, as pre-trained ones have."""
    torch.manual_seed(3)
    network = Network(architecture="resnet18", head=head, head_channels=16, dropout=dropout, trainable="head")  # type: ignore[arg-type]
    classifier = Classifier(network, 2)
    for module in classifier.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return classifier


def _kept(classifier: Classifier, training: LabelledImages, folder: Path, copies: int = 0, batch: int = 8) -> Kept:
    return frozen_features(
        classifier, training, _images(6, 9), copies=copies, batch_size=batch, device=CPU, progress=False, folder=folder
    )


@pytest.mark.parametrize(("head", "tolerance"), [("linear", EXACT), ("conv", HALF)])
def test_kept_features_give_the_networks_own_logits(head: str, tolerance: float, tmp_path: Path):
    """In each epoch those of its copy of the images, and of the validation images as they are."""
    classifier, images = _classifier(head), _images(12, 1, VARIED)
    training, validation, network = _kept(classifier, images, tmp_path, copies=2)
    classifier.eval()
    network.eval()
    seen = []
    for epoch in (1, 2, 3):
        pairs = [(epoch, item) for item in (7, 0, 11)]
        varied = [((epoch - 1) % 2 + 1, item) for _, item in pairs]
        with torch.no_grad():
            expected = classifier(images.input(images[varied], CPU)[0])
            found = network(training.input(training[pairs], CPU)[0])
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        seen.append(found)
    assert not torch.allclose(seen[0], seen[1], atol=10 * tolerance)  # the copies differ
    assert torch.equal(seen[0], seen[2])
    plain, every = _images(6, 9), [(0, item) for item in range(6)]
    with torch.no_grad():
        found = network(validation.input(validation[every], CPU)[0])
        torch.testing.assert_close(found, classifier(plain.input(plain[every], CPU)[0]), rtol=tolerance, atol=tolerance)


def test_without_copies_images_are_as_they_are(tmp_path: Path):
    """Also where they would be varied; and images that are not varied are kept once, however many copies are asked for."""
    classifier = _classifier()
    plain, _, _ = _kept(classifier, _images(5, 1), tmp_path)
    not_varied, _, _ = _kept(classifier, _images(5, 1, VARIED), tmp_path, copies=0)
    once, _, _ = _kept(classifier, _images(5, 1), tmp_path, copies=3)
    assert plain.features.shape == (1, 5, 512)
    assert np.array_equal(plain.features, not_varied.features)
    assert np.array_equal(plain.features, once.features)


def test_an_image_drawn_again_in_an_epoch_is_another_copy(tmp_path: Path):
    training, _, _ = _kept(_classifier(), _images(4, 1, VARIED), tmp_path, copies=3)
    pairs = [(2, 0), (2 + EPOCHS_APART, 0), (2 + 2 * EPOCHS_APART, 0), (2 + 3 * EPOCHS_APART, 0)]
    assert np.array_equal(training[pairs]["features"].numpy(), training.features[[1, 2, 0, 1], 0])


def test_they_are_the_same_each_time(tmp_path: Path):
    """So that a resumed training goes on with them."""
    noisy = _images(9, 1, replace(VARIED, noise=0.1))
    first, _, _ = _kept(_classifier(), noisy, tmp_path, copies=2)
    again, _, _ = _kept(_classifier(), noisy, tmp_path, copies=2)
    assert np.array_equal(first.features, again.features)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_a_head_learns_as_through_the_network(head: str, tmp_path: Path):
    """The same history with neither augmentation nor dropout; and what was learnt, put into the classifier, is its own."""
    options = Training(epochs=3, batch_size=8, learning_rate=0.003, early_stopping=None, select="val_loss")
    through, images, validation = _classifier(head), _images(24, 1), _images(8, 2)
    fitted = {}
    for name in ("through", "kept"):
        (tmp_path / name).mkdir()
    fitted["through"] = fit(
        through, images, validation, options, run=tmp_path / "through", seed=0, device=CPU, progress=False
    )
    classifier = _classifier(head)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    *features, network = frozen_features(
        classifier, images, validation, copies=0, batch_size=8, device=CPU, progress=False, folder=tmp_path
    )
    fitted["kept"] = fit(network, *features, options, run=tmp_path / "kept", seed=0, device=CPU, progress=False)

    histories = [pd.read_csv(tmp_path / name / "history.csv").drop(columns=TIMING) for name in fitted]
    pd.testing.assert_frame_equal(*histories, check_exact=False, rtol=TRAINED[head], atol=TRAINED[head])
    assert histories[0]["train_loss"].iloc[-1] < histories[0]["train_loss"].iloc[0]

    fresh = _classifier(head)
    fresh.load_state_dict({**fresh.state_dict(), **fitted["kept"].best_weights})
    changed = {name for name, value in fresh.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(not name.startswith("backbone") for name in changed)
    expected = _logits(fresh, validation)
    through.load_state_dict({**through.state_dict(), **fitted["through"].best_weights})
    torch.testing.assert_close(expected, _logits(through, validation), rtol=TRAINED[head], atol=TRAINED[head])


def _logits(classifier: Classifier, images: LabelledImages) -> torch.Tensor:
    with torch.no_grad():
        return classifier.eval()(images.input(images[[(0, item) for item in range(len(images))]], CPU)[0])


def test_the_head_is_the_classifiers_own(tmp_path: Path):
    """Its parameters and names; its dropout is on in training alone; nothing of the trunk is part of it."""
    classifier = _classifier("conv", dropout=0.5)
    training, _, network = _kept(classifier, _images(4, 1), tmp_path)
    own = dict(classifier.named_parameters())
    assert {name: id(value) for name, value in network.named_parameters()} == {
        name: id(own[name]) for name in own if not name.startswith("backbone.")
    }
    state = classifier.state_dict()
    assert set(network.state_dict()) == {name for name in state if not name.startswith("backbone.")}
    assert network.head is classifier.head
    assert [[id(one) for one in group] for group in network.groups] == [[id(one) for one in classifier.groups[-1]]]
    features, _ = training.input(training[[(1, item) for item in range(4)]], CPU)
    with torch.no_grad():
        network.train()
        assert not torch.equal(network(features), network(features))
        statistics = classifier.state_dict()["block.1.running_mean"].clone()
        network.eval()
        assert torch.equal(network(features), network(features))
        assert torch.equal(classifier.state_dict()["block.1.running_mean"], statistics)


@pytest.mark.parametrize(
    ("head", "dtype", "shape"), [("linear", np.float32, (512,)), ("conv", np.float16, (512, 2, 2))]
)
def test_what_exceeds_the_budget_is_kept_in_a_file_without_a_name(
    head: str, dtype: type, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = replace(_images(5, 1, VARIED), images=InMemory(np.repeat(_images(5, 1).images.levels, 2, 2).repeat(2, 3)))  # type: ignore[attr-defined]
    in_memory, _, _ = _kept(_classifier(head), images, tmp_path, copies=3, batch=2)
    monkeypatch.setattr(frozen, "IN_MEMORY_BYTES", 0)
    in_file, _, _ = _kept(_classifier(head), images, tmp_path, copies=3, batch=2)
    assert in_memory.features.shape == (3, 5, *shape)
    assert in_memory.features.dtype == in_file.features.dtype == dtype
    assert isinstance(in_file.features, np.memmap)
    assert np.array_equal(in_memory.features, in_file.features)
    assert list(tmp_path.iterdir()) == []


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("fill", ["before", "while"])
def test_a_full_disk_is_one_message(fill: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frozen, "IN_MEMORY_BYTES", 0)
    if fill == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    else:
        monkeypatch.setattr(frozen.tempfile, "TemporaryFile", _full_disk)
    with pytest.raises(RunError, match=r"5 training images need 10 kB.*are free there; make room"):
        _kept(_classifier(), _images(5, 1), tmp_path)


def _full_disk(**_: Any) -> Any:
    return open("/dev/full", "wb")


@pytest.mark.parametrize(("head", "weight"), [("linear", float("nan")), ("conv", 1e7)])
def test_features_that_are_no_numbers_are_an_error(head: str, weight: float, tmp_path: Path):
    classifier = _classifier(head)
    with torch.no_grad():
        classifier.backbone.get_parameter("layer4.1.bn2.bias").fill_(weight)
    with pytest.raises(RunError, match=r"expected to be numbers up to .*network\.weights"):
        _kept(classifier, _images(5, 1), tmp_path)


def test_batches_come_in_the_samplers_order(tmp_path: Path):
    training, _, _ = _kept(_classifier(), _images(7, 1), tmp_path)
    batches = list(training.loader(InOrder(7, 3), on_gpu=False))
    assert [len(batch["label"]) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == training.labels.tolist()
    assert np.array_equal(torch.cat([batch["features"] for batch in batches]).numpy(), training.features[0])


def test_labels_may_be_several(tmp_path: Path):
    several: Callable[[int], NDArray[np.float32]] = lambda count: np.eye(3, dtype=np.float32)[np.arange(count) % 3]  # noqa: E731
    images = replace(_images(4, 1), labels=several(4))
    training, _, _ = _kept(_classifier(), images, tmp_path)
    assert training.input(training[[(1, 2)]], CPU)[1].tolist() == [[0, 0, 1]]
