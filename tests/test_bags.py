"""Cases of many images: samples, whole bags and volumes; and what the networks learn from them, shown on the slices."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config import Network, Training
from pipeline.networks.cell_geometry import Geometry
from pipeline.networks.model import Classifier
from pipeline.networks.volume_network import VolumeClassifier
from pipeline.prediction import volume_evidence
from pipeline.prediction.volume_evidence import evidence_on_slices, resampled_slices, resampled_volume, slice_places
from pipeline.training.bags import LabelledBags, positions_by_case, sampled
from pipeline.training.feed import EPOCHS_APART, BatchSampler, InOrder, standardised
from pipeline.training.fit import fit
from transforms.augment import Augmentations
from transforms.intensity import from_levels, to_levels

CPU = torch.device("cpu")
SIDE = 16
MEAN, STD = (0.4,), (0.2,)
ONE_LEVEL = 1
"""Sums of float32 in another order round to the next level at most."""
PLAIN = Augmentations()
MOVED = Augmentations(flip_horizontal=0.5, zoom=0.3, stretch=0.1, shift=0.2, rotate=30, cutout=0.4)
VARIED = replace(MOVED, contrast=0.4, window=0.1, gamma=0.3, blur=1.0, sharpen=1.0, coarse=0.4)
Pooling = Literal["attention", "volume"]


@dataclass(frozen=True)
class InMemory:
    levels: NDArray[np.uint16]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.levels[rows]


def _bags(
    counts: list[int],
    pooling: Pooling = "attention",
    bag_size: int | None = 4,
    augmentation: Augmentations = PLAIN,
    seed: int = 0,
    alike: bool = False,
    channels: int = 1,
) -> LabelledBags:
    """Cases of so many images, interleaved on disk; `alike`: a case's are all the same."""
    random = np.random.default_rng(5)
    values = [random.random((1 if alike else count, channels, SIDE, SIDE)) for count in counts]
    values = [np.repeat(one, count, 0) if alike else one for one, count in zip(values, counts, strict=True)]
    places = random.permutation(sum(counts))
    levels = np.empty((len(places), channels, SIDE, SIDE), dtype=np.uint16)
    levels[places] = to_levels(np.concatenate(values).astype(np.float32))
    ends = np.cumsum(counts)
    cases = [places[end - count : end] for end, count in zip(ends, counts, strict=True)]
    labels = np.arange(len(counts)) % 2
    return LabelledBags(InMemory(levels), cases, labels, MEAN, STD, pooling, bag_size, augmentation, seed)


# Which images of a case


@given(count=st.integers(1, 400), size=st.integers(2, 60), seed=st.integers(0, 99), item=st.integers(0, 10**6))
def test_a_sample_is_spread_over_the_case(count: int, size: int, seed: int, item: int):
    """In order; none twice where there are enough, no gap longer than two stretches; else each as often as the others, to one."""
    places = sampled(count, size, seed, 3, item)
    assert places.shape == (size,)
    assert np.array_equal(places, np.sort(places))
    assert places.min() >= 0
    assert places.max() < count
    if count >= size:
        assert len(np.unique(places)) == size
        gaps = np.diff([*places, places[0] + count])
        assert gaps.max() <= 2 * -(-count // size)
    else:
        times = np.bincount(places, minlength=count)
        assert set(times) <= {size // count, -(-size // count)}


def test_each_image_of_a_case_is_drawn_as_often_as_any_other():
    """Over 3,000 epochs; the bound is five standard deviations of a binomial."""
    epochs, count, size = 3000, 10, 4
    times = sum(np.bincount(sampled(count, size, 0, epoch, 7), minlength=count) for epoch in range(epochs))
    share = size / count
    assert np.abs(times - epochs * share).max() < 5 * np.sqrt(epochs * share * (1 - share))


@pytest.mark.parametrize("pooling", ["attention", "volume"])
def test_seed_epoch_and_item_alone_decide(pooling: Pooling):
    bags = _bags([9, 5, 14], pooling, augmentation=VARIED)
    together = bags[[(2, 0), (2, 1), (2, 2)]]
    alone = bags[[(2, 1)]]
    assert torch.equal(together["levels"][1], alone["levels"][0])
    assert np.array_equal(together["numbers"][1], alone["numbers"][0])
    again = bags[[(2, 2), (2 + EPOCHS_APART, 2)]]  # drawn twice in an epoch, as balanced sampling does
    assert not np.array_equal(again["numbers"][0], again["numbers"][1])
    if pooling == "attention":
        assert not torch.equal(bags[[(3, 2)]]["levels"], bags[[(2, 2)]]["levels"])
        assert not torch.equal(again["levels"][0], again["levels"][1])


def test_positions_by_case():
    ids = ["b", "b", "a", "c", "c", "c"]
    usable = np.array([True, True, False, False, True, True])
    found = positions_by_case(ids, usable)
    assert {case: positions.tolist() for case, positions in found.items()} == {"b": [0, 1], "c": [4, 5]}
    assert positions_by_case([], np.array([], dtype=bool)) == {}
    with pytest.raises(ValueError, match="one after the other"):
        positions_by_case(["a", "b", "a"], np.ones(3, dtype=bool))


@pytest.mark.parametrize(
    "wrong",
    [{"counts": [3, 0]}, {"counts": [3], "bag_size": None, "pooling": "volume"}, {"counts": [3], "bag_size": None, "augmentation": VARIED}],
)  # fmt: skip
def test_what_cannot_be_a_bag_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="expected"):
        _bags(**wrong)


# Network input


@pytest.mark.parametrize(
    ("pooling", "shape"), [("attention", (2, 4, 3, SIDE, SIDE)), ("volume", (2, 3, 4, SIDE, SIDE))]
)
def test_input_has_the_networks_axes_and_statistics(pooling: Pooling, shape: tuple[int, ...]):
    """One gray channel on three of the network's, each with its own statistics."""
    bags = _bags([9, 5], pooling)
    bags = LabelledBags(bags.images, bags.cases, bags.labels, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), pooling, 4)
    batch = bags[[(1, 1), (1, 0)]]
    inputs, labels = bags.input(batch, CPU)
    assert inputs.shape == shape
    assert labels.tolist() == [1, 0]
    values = from_levels(batch["levels"])
    for channel in range(3):
        expected = (values - bags.mean[channel]) / bags.std[channel]
        found = inputs[:, :, channel] if pooling == "attention" else inputs[:, channel]
        torch.testing.assert_close(found, expected[:, :, 0] if pooling == "attention" else expected[:, 0])


def test_colour_channels_stay_apart():
    bags = _bags([6], "volume", channels=3)
    bags = LabelledBags(bags.images, bags.cases, bags.labels, (0.0,) * 3, (1.0,) * 3, "volume", 6)
    inputs, _ = bags.input(bags[[(1, 0)]], CPU)
    expected = from_levels(torch.from_numpy(bags.images.take(bags.cases[0])))
    torch.testing.assert_close(inputs[0].transpose(0, 1), expected)


@pytest.mark.parametrize("pooling", ["attention", "volume"])
def test_all_images_of_a_case_are_varied_alike(pooling: Pooling):
    """Equal images stay equal; each case and each epoch has its own variant; the noise is each image's own."""
    counts = [8, 8]
    for noise in (0.0, 0.1):
        bags = _bags(counts, pooling, augmentation=replace(VARIED, noise=noise), alike=True)
        images = [bags.input(bags[[(epoch, 0), (epoch, 1)]], CPU)[0] for epoch in (1, 2)]
        slices = [one.transpose(1, 2) if pooling == "volume" else one for one in images]
        spread = (slices[0] - slices[0][:, :1]).abs().amax(dim=(0, 2, 3, 4))
        assert spread[0] == 0
        assert (spread[1:] == 0).all() if noise == 0 else (spread[1:] > 0.1).all()
        plain, _ = _bags(counts, pooling, alike=True).input(_bags(counts, pooling, alike=True)[[(1, 0), (1, 1)]], CPU)
        assert not torch.allclose(images[0], plain, atol=0.1)
        assert not torch.allclose(images[0], images[1], atol=0.1)


# Whole bags


def test_whole_bags_are_complete_and_come_one_by_one():
    bags = _bags([3, 70, 1], bag_size=None)
    loader = bags.loader(InOrder(3, 2), on_gpu=False)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    for case, batch in enumerate(batches):
        inputs, labels = bags.input(batch, CPU)
        expected = standardised(from_levels(torch.from_numpy(bags.images.take(bags.cases[case]))), MEAN, STD)
        torch.testing.assert_close(inputs, expected[None], rtol=0, atol=0)
        assert labels.tolist() == [case % 2]


@pytest.mark.parametrize("bag_size", [None, 4])
def test_reading_ahead_changes_nothing(bag_size: int | None):
    """As for a GPU, but for the pinned memory; each epoch anew, also where the one before was given up."""
    from pipeline.training.bags import BagLoader

    bags = _bags([3, 9, 5, 12, 2], bag_size=bag_size)
    epoch = [1]
    sampler = BatchSampler(5, 2, seed=0, epoch=lambda: epoch[0])
    here, ahead = (BagLoader(bags, sampler, ahead=count, pinned=False) for count in (0, 2))
    next(iter(ahead))
    for epoch[0] in (1, 2):
        batches = list(zip(here, ahead, strict=True))
        assert len(batches) == len(here) == len(ahead)
        for one, other in batches:
            assert torch.equal(one["levels"], other["levels"])
            assert torch.equal(one["label"], other["label"])


def test_an_error_while_reading_ahead_is_raised():
    bags = _bags([3, 4])
    broken = LabelledBags(InMemory(bags.images.take(np.arange(2))), bags.cases, bags.labels, MEAN, STD, "attention", 4)
    from pipeline.training.bags import BagLoader

    with pytest.raises(IndexError):
        list(BagLoader(broken, InOrder(2, 2), ahead=2, pinned=False))


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_whole_bag_is_what_the_network_pools(where: str, monkeypatch: pytest.MonkeyPatch):
    """Its logits are the attention-weighted mean of its images' logits, wherever it lies, and in whatever chunks."""
    monkeypatch.setattr("pipeline.training.bags.DEVICE_BYTES", 0 if where == "host" else 2**30)
    monkeypatch.setattr("pipeline.training.bags.CHUNK", 3)
    torch.manual_seed(0)
    network = Classifier(Network(architecture="resnet18", pooling="attention"), 2).eval()
    bags = _bags([7], bag_size=None)
    inputs, _ = bags.input(bags[[(0, 0)]], CPU)
    with torch.no_grad():
        case = network(inputs)[0]
        features = network.features(inputs[0])
        assert network.attention is not None
        weights = torch.softmax(network.attention(features.mean(dim=(2, 3))), dim=0)
        torch.testing.assert_close(case, (weights * network.classify(features)).sum(dim=0), rtol=1e-4, atol=1e-5)


# Volumes


@pytest.mark.parametrize(("count", "depth"), [(1, 4), (3, 8), (6, 6), (7, 5), (50, 24), (300, 24)])
def test_resampling_is_linear_interpolation_that_counts_every_slice(count: int, depth: int):
    """As torch's antialiased linear interpolation along one axis, to the rounding to levels."""
    levels = np.random.default_rng(count).integers(0, 65536, (count, 2, 4, 5)).astype(np.uint16)
    values = torch.from_numpy(levels.astype(np.float64)).reshape(1, 1, count, -1)
    shape = (depth, values.shape[-1])
    expected = torch.nn.functional.interpolate(values, size=shape, mode="bilinear", antialias=True, align_corners=False)
    found = resampled_volume(levels, depth)
    assert found.shape == (2, depth, 4, 5)
    flat = np.moveaxis(found, 1, 0).reshape(depth, -1)
    assert np.abs(flat - expected[0, 0].numpy()).max() <= 0.5 + 0.01  # rounded, of sums in float32
    if count == depth:
        assert np.array_equal(np.moveaxis(found, 1, 0), levels)


@settings(deadline=None)
@given(count=st.integers(1, 40), depth=st.integers(1, 12), chunk=st.integers(1, 7))
def test_slices_are_read_a_few_at_a_time(count: int, depth: int, chunk: int):
    """Each but the first once, in order; the volume is the same, and a constant stays what it is."""
    levels = np.random.default_rng(count).integers(0, 65536, (count, 1, 2, 2)).astype(np.uint16)
    read: list[int] = []

    def take(places: NDArray[np.int64]) -> NDArray[np.uint16]:
        assert len(places) <= chunk
        read.extend(places.tolist())
        return levels[places]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume_evidence, "CHUNK_BYTES", chunk * 4 * 4)
        found = resampled_slices(take, count, depth)
    assert read[1:] == list(range(count))
    whole = resampled_volume(levels, depth).astype(np.int64)
    assert np.abs(found.astype(np.int64) - whole).max() <= ONE_LEVEL
    constant = resampled_volume(np.full((count, 1, 2, 2), 40000, dtype=np.uint16), depth).astype(np.int64)
    assert np.abs(constant - 40000).max() <= ONE_LEVEL


def test_memory_does_not_grow_with_the_series():
    peaks = []
    for count in (500, 4000):
        tracemalloc.start()
        resampled_slices(lambda places: np.ones((len(places), 1, 256, 256), dtype=np.uint16), count, 24)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 3 * volume_evidence.CHUNK_BYTES


def test_no_slices_are_an_error():
    with pytest.raises(ValueError, match="expected a slice"):
        resampled_volume(np.empty((0, 1, 4, 4), dtype=np.uint16), 8)


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    depth=st.integers(2, 48),
    stride=st.sampled_from([2.0, 8.0, 32.0]),
    offset=st.sampled_from([0.0, 1.5]),
)
def test_evidence_falls_back_on_the_slices_that_it_is_of(count: int, depth: int, stride: float, offset: float):
    """What is linear along the volume is exact between the outermost cells; beyond them the outermost holds."""
    cells = max(1, int(np.ceil(depth / stride)))
    centres = (offset + stride * np.arange(cells)).astype(np.float32)
    rising = np.tile(centres[None, :, None, None], (2, 1, 3, 4))
    rising[1] *= -2
    found = evidence_on_slices(rising, count, depth, Geometry(stride, offset))
    assert found.shape == (count, 2, 3, 4)
    expected = np.clip(slice_places(count, depth), centres[0], centres[-1])
    assert np.abs(found[:, 0] - expected[:, None, None]).max() <= 1e-4
    assert np.allclose(found[:, 1], -2 * found[:, 0])


def test_places_of_slices_are_those_of_the_resampling():
    """A bright slice lies in the volume where `slice_places` has it: the centre of its mass."""
    for count, depth in ((30, 12), (9, 24)):
        for bright in range(3, count - 3):
            levels = np.zeros((count, 1, 1, 1), dtype=np.uint16)
            levels[bright] = 60000
            volume = resampled_volume(levels, depth)[0, :, 0, 0].astype(float)
            mass = (volume * np.arange(depth)).sum() / volume.sum()
            assert abs(mass - slice_places(count, depth)[bright]) < 0.51


# Learning


def _series(count: int, seed: int, slices: int = 14) -> Iterator[tuple[NDArray[np.uint16], int, list[int]]]:
    """Levels (n, 1, 32, 32) of series of unequal length: noise, and in every second series a bright square on three slices in a row."""
    random = np.random.default_rng(seed)
    for number in range(count):
        length = slices + int(random.integers(-4, 5))
        values = random.uniform(0, 0.5, (length, 1, 32, 32)).astype(np.float32)
        first, row, column = int(random.integers(0, length - 3)), *random.integers(4, 18, 2).tolist()
        found = list(range(first, first + 3)) if number % 2 else []
        values[found, :, row : row + 10, column : column + 10] += 0.5
        yield to_levels(values), number % 2, found


def _labelled_series(
    count: int, seed: int, pooling: Pooling, bag_size: int | None, augmentation: Augmentations = PLAIN
) -> tuple[LabelledBags, list[list[int]]]:
    levels, labels, found = zip(*_series(count, seed), strict=True)
    ends = np.cumsum([len(one) for one in levels])
    cases = [np.arange(end - len(one), end) for one, end in zip(levels, ends, strict=True)]
    images = InMemory(np.concatenate(levels))
    bags = LabelledBags(images, cases, np.array(labels), MEAN, STD, pooling, bag_size, augmentation, seed)
    return bags, list(found)


@pytest.mark.slow
def test_attention_finds_the_slices_with_a_lesion(tmp_path: Path):
    """One label a series: the network learns it, and its attention names the slices that show it (3 of some 14)."""
    torch.manual_seed(0)
    network = Classifier(Network(architecture="timm:test_resnet", pooling="attention", bag_size=6), 2)
    training, _ = _labelled_series(24, 1, "attention", 6, Augmentations(flip_horizontal=0.5, shift=0.1))
    validation, lesions = _labelled_series(8, 2, "attention", None)
    options = Training(epochs=7, batch_size=8, learning_rate=0.002, optimizer="adamw", plateau=None)
    fitted = fit(network, training, validation, options, run=tmp_path, seed=0, device=CPU, progress=False)
    assert max(row["val_auroc"] for row in fitted.history) > 0.9
    network.load_state_dict(fitted.best_weights)
    network.eval()
    named, weight = [], []
    for case, slices in enumerate(lesions):
        if slices:
            inputs, _ = validation.input(validation[[(0, case)]], CPU)
            with torch.no_grad():
                scores = network.scores(network.features(inputs[0]))
            named.append(int(scores.argmax()) in slices)
            weight.append(float(torch.softmax(scores, dim=0)[slices].sum()))
    assert np.mean(named) >= 0.75
    assert np.mean(weight) > 0.7


@pytest.mark.slow
def test_a_3d_network_learns_from_volumes_and_its_evidence_lies_on_slices(tmp_path: Path):
    torch.manual_seed(0)
    depth = 8
    network = VolumeClassifier(Network(architecture="resnet18", pooling="volume", bag_size=depth), 2)
    training, _ = _labelled_series(12, 1, "volume", depth, Augmentations(flip_horizontal=0.5))
    validation, _ = _labelled_series(4, 2, "volume", depth)
    options = Training(epochs=4, batch_size=6, learning_rate=0.001, optimizer="adamw", plateau=None)
    fitted = fit(network, training, validation, options, run=tmp_path, seed=0, device=CPU, progress=False)
    losses = [row["train_loss"] for row in fitted.history]
    assert losses[-1] < 0.5 * losses[0]
    network.eval()
    inputs, _ = validation.input(validation[[(0, 1)]], CPU)
    with torch.no_grad():
        cells = network.features(inputs)[0].numpy()
    count = len(validation.cases[1])
    on_slices = evidence_on_slices(cells, count, depth, network.depth_geometry)
    assert on_slices.shape == (count, cells.shape[0], *cells.shape[2:])
