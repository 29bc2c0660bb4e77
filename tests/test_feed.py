"""Batches: decided by seed and epoch alone, whatever the workers, the parts of a step and the processes that share it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.feed import EPOCHS_APART, BatchSampler, InOrder, LabelledImages, Pairs, standardised, strata
from tests.tiny_fit import CPU, labelled
from transforms.augment import Augmentations, augment_batch, draw, noise_seed, uniforms
from transforms.chains import KEY, evaluate_chain
from transforms.intensity import from_levels

ALL = Augmentations(
    flip_horizontal=0.5, flip_vertical=0.5, zoom=0.2, shift=0.2, rotate=20, contrast=0.2, noise=0.1, cutout=0.3
)


def _sampler(count: int, batch_size: int, *, epoch: int = 2, **options: object) -> BatchSampler:
    return BatchSampler(count, batch_size, seed=1, epoch=lambda: epoch, **options)  # type: ignore[arg-type]


def _epoch(images: LabelledImages, epoch: int, workers: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = BatchSampler(len(images), 8, seed=images.seed, epoch=lambda: epoch)
    return [images.input(batch, CPU) for batch in images.loader(batches, on_gpu=False, workers=workers)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_seed_gives_the_same_batches_whatever_the_workers(workers: int):
    images = labelled(33, 5, ALL)
    for (inputs, labels), (expected, expected_labels) in zip(
        _epoch(images, 3, workers), _epoch(images, 3), strict=True
    ):
        torch.testing.assert_close(inputs, expected, rtol=0, atol=0)
        assert labels.tolist() == expected_labels.tolist()


def test_another_seed_or_epoch_gives_others():
    images = labelled(32, 5, ALL)
    first = torch.cat([inputs for inputs, _ in _epoch(images, 1)])
    for other in (_epoch(images, 2), _epoch(replace(images, seed=6), 1)):
        assert not torch.equal(torch.cat([inputs for inputs, _ in other]), first)


def test_from_a_plain_epoch_on_images_are_at_most_mirrored():
    """Items that come again in a balanced epoch, too."""
    still = Augmentations(zoom=0.2, shift=0.1, rotate=9.0, gamma=0.9, blur=1.0, noise=0.2)
    images, plain = (replace(labelled(32, 5, one), plain_from=3) for one in (still, Augmentations()))
    as_they_are = torch.cat([inputs for inputs, _ in _epoch(plain, 3)])
    for epoch in (1, 2, 3, 4):
        seen = torch.cat([inputs for inputs, _ in _epoch(images, epoch)])
        same = torch.equal(seen.sort(dim=0).values, as_they_are.sort(dim=0).values)
        assert same == (epoch >= 3)
    again = [(3 + EPOCHS_APART, 0), (3, 1)]
    assert images[again]["plain"]
    assert not images[[(2 + EPOCHS_APART, 0)]]["plain"]
    moved = replace(labelled(32, 5, Augmentations(flip_horizontal=1.0)), plain_from=1)
    batch = moved[[(1, 0)]]
    flipped, _ = moved.input(batch, torch.device("cpu"))
    unflipped, _ = plain.input(plain[[(1, 0)]], torch.device("cpu"))
    assert torch.equal(flipped, unflipped.flip(-1))


def test_an_epoch_is_every_image_once_but_for_a_single_one_left_over():
    for count, batches in ((33, 4), (32, 4), (34, 5)):
        sampler = _sampler(count, 8)
        seen = [pair for batch in sampler for pair in batch]
        assert (
            len({item for _, item in seen}) == len(seen) == sampler.images == (count - 1 if count % 8 == 1 else count)
        )
        assert {epoch for epoch, _ in seen} == {2}
        assert len(sampler) == sampler.steps == batches


Sizes = st.tuples(st.integers(2, 60), st.integers(1, 3), st.integers(1, 3), st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(sizes=Sizes)
def test_processes_and_parts_share_each_step(sizes: tuple[int, int, int, int]):
    """Together they see the images of each step that one process would see, in parts of two images at least; each has as many."""
    count, processes, accumulate, more = sizes
    batch_size = 2 * processes * accumulate + more
    alone = list(_sampler(count, batch_size))
    shared = [
        _sampler(count, batch_size, accumulate=accumulate, processes=processes, rank=rank) for rank in range(processes)
    ]
    assert len({len(one) for one in shared}) == 1
    steps: dict[int, Pairs] = {}
    for rank, one in enumerate(shared):
        assert len(list(one)) == len(one)
        for number, part in enumerate(one):
            place = one.place(number)
            assert len(part) >= 2
            assert (place.part // max(1, accumulate) == rank) or place.step == one.steps - 1
            assert place.images == sum(len(other) for each in shared for other in _parts_of(each, place.step))
            steps[place.step] = [*steps.get(place.step, []), *part]
        assert sum(one.place(number).last for number in range(len(one))) == one.steps
        assert sum(one.place(number).first for number in range(len(one))) == one.steps
    assert [sorted(step) for step in steps.values()] == [sorted(step) for step in alone[: len(steps)]]
    assert len(alone) - len(steps) in (0, 1)


def _parts_of(sampler: BatchSampler, step: int) -> list[Pairs]:
    return [part for number, part in enumerate(sampler) if sampler.place(number).step == step]


@given(count=st.integers(1, 40), processes=st.integers(1, 5), batch_size=st.integers(1, 9))
def test_validation_is_all_in_order_when_shares_are_interleaved(count: int, processes: int, batch_size: int):
    shares = []
    for rank in range(processes):
        sampler = InOrder(count, batch_size, processes=processes, rank=rank)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(0 < len(batch) <= batch_size for batch in batches)
        shares.append([item for batch in batches for _, item in batch])
    assert len({len(share) for share in shares}) == 1
    assert [item for row in zip(*shares, strict=True) for item in row][:count] == list(range(count))


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 2), min_size=4, max_size=40), several=st.booleans(), epoch=st.integers(1, 5))
def test_a_balanced_epoch_draws_each_class_alike(labels: list[int], several: bool, epoch: int):
    numbers = np.array(labels)
    given = np.stack([numbers == 1, numbers == 2], axis=1).astype(np.float32) if several else numbers
    members = strata(given)
    assert sorted(np.concatenate(members).tolist()) == list(range(len(labels)))  # no image has two labels here
    sampler = _sampler(len(labels), 2, epoch=epoch, strata=members)
    pairs = [pair for batch in sampler for pair in batch]
    assert pairs == [pair for batch in _sampler(len(labels), 2, epoch=epoch, strata=members) for pair in batch]
    drawn = np.bincount(numbers[[item for _, item in pairs]], minlength=3)[np.unique(numbers)]
    assert drawn.max() - drawn.min() <= 1 + len(labels) % 2
    assert len(set(pairs)) == len(pairs)  # who comes again comes as another variant
    assert {at % EPOCHS_APART for at, _ in pairs} == {epoch}


def test_an_image_drawn_again_in_an_epoch_is_varied_otherwise():
    images = labelled(8, 5, Augmentations(shift=0.3, rotate=30, zoom=0.1))
    once, again = (images.input(images[[(1 + EPOCHS_APART * time, 3)]], CPU)[0] for time in (0, 1))
    both = images.input(images[[(1 + EPOCHS_APART, 3), (1, 3)]], CPU)[0]
    torch.testing.assert_close(both, torch.cat([again, once]), rtol=0, atol=0)
    assert not torch.equal(once, again)


def test_each_image_draws_its_own_variant_whatever_its_batch():
    images = replace(
        labelled(8, 5, Augmentations(shift=0.3, rotate=30, zoom=0.1)), rows=np.zeros(8, np.int64)
    )  # all the same image
    one, another, alone, later = (
        images.input(images[pairs], CPU)[0]
        for pairs in ([(1, 0), (1, 1)], [(1, 1), (1, 2), (1, 0)], [(1, 0)], [(2, 0)])
    )
    torch.testing.assert_close(one[0], alone[0], rtol=0, atol=0)
    torch.testing.assert_close(one[0], another[2], rtol=0, atol=0)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(alone, later)


def test_a_batch_is_its_levels_varied_then_standardised():
    images = labelled(6, 3, ALL)
    items = np.array([4, 1, 5])
    inputs, labels = images.input(images[[(2, item) for item in items.tolist()]], CPU)
    drawn = draw(ALL, uniforms(3, 2, items))
    levels = torch.from_numpy(images.images.take(items))
    varied = augment_batch(from_levels(levels), drawn, noise_seed=noise_seed(3, 2, items))
    torch.testing.assert_close(inputs, (varied - 0.3) / 0.2)
    assert labels.tolist() == [0, 1, 1]
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channels", "statistics"), [(1, 1), (1, 3), (3, 3)])
def test_standardising_a_batch_is_the_evaluation_chain_image_by_image(channels: int, statistics: int):
    images = torch.rand(4, channels, 16, 16)
    before = images.clone()
    mean, std = (0.485, 0.456, 0.406)[:statistics], (0.229, 0.224, 0.225)[:statistics]
    chain = evaluate_chain(mean=mean, std=std)
    expected = torch.stack([chain({KEY: image})[KEY] for image in images])
    torch.testing.assert_close(standardised(images, mean, std), expected, rtol=0, atol=0)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


def test_batches_are_half_the_bytes_until_they_are_on_the_device():
    batch = labelled(4, 1)[[(1, 0), (1, 3)]]
    assert batch["levels"].dtype == torch.uint16
    assert batch["levels"].shape == (2, 1, 16, 16)
