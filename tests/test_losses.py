"""Losses agree with torch's and MONAI's where those say the same; weights count each class alike; mixing is drawn from its seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import FocalLoss
from torch.nn import functional

from pipeline.config import Training
from pipeline.training.losses import ImageLosses, class_weights, image_losses, mixed, right, targets_of

ROUNDING = 1e-5
"""float32 sums of a few terms near 1, in another order."""


def _case(seed: int, n: int = 7, k: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=random) * 3
    return logits, torch.randint(k, (n,), generator=random), torch.rand(k, generator=random) + 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_unweighted_smoothed_loss_is_torchs(seed: int):
    logits, labels, _ = _case(seed)
    losses = ImageLosses(torch.ones(3), several=False, smoothing=0.2)(logits, targets_of(labels, 3))
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=ROUNDING, atol=ROUNDING)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_weighted_loss_is_torchs(seed: int):
    logits, labels, weights = _case(seed)
    losses = ImageLosses(weights, several=False)(logits, targets_of(labels, 3))
    expected = functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=ROUNDING, atol=ROUNDING)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.5, 2.0]))
def test_focal_loss_is_monais(seed: int, gamma: float):
    logits, labels, _ = _case(seed)
    targets = targets_of(labels, 3)
    monai = FocalLoss(gamma=gamma, use_softmax=True, reduction="none")(logits, targets).sum(dim=1)
    losses = ImageLosses(torch.ones(3), several=False, gamma=gamma)(logits, targets)
    torch.testing.assert_close(losses, monai, rtol=1e-4, atol=ROUNDING)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.0, 2.0]))
def test_loss_of_several_labels_is_binary_cross_entropy_and_monais_focal(seed: int, gamma: float):
    logits = _case(seed)[0]
    targets = (_case(seed + 1)[0] > 0).float()
    losses = ImageLosses(torch.ones(3, 2), several=True, gamma=gamma)(logits, targets)
    plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    expected = FocalLoss(gamma=gamma, reduction="none")(logits, targets) if gamma else plain
    torch.testing.assert_close(losses, expected.mean(dim=1), rtol=1e-4, atol=ROUNDING)


def test_balanced_labels_are_weighted_as_positives_against_negatives():
    """Their ratio is torch's `pos_weight`."""
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], dtype=np.float32)
    weights = class_weights(labels, 2, balanced=True)
    torch.testing.assert_close(weights[:, 1] / weights[:, 0], torch.tensor([3.0, 1.0]))


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    several=st.booleans(),
)
def test_weights_have_mean_1_over_the_images_and_each_class_counts_alike(labels: list[int], several: bool):
    present = np.array(labels)
    if several:
        bits = np.stack([present & 1, present >> 1], axis=1).astype(np.float32)
        per_image = class_weights(bits, 2, balanced=True).numpy()
        full = (bits.sum(axis=0) > 0) & (bits.sum(axis=0) < len(bits))
        means = np.stack([np.where(column > 0, w[1], w[0]).mean() for column, w in zip(bits.T, per_image, strict=True)])
        np.testing.assert_allclose(means[full], 1.0, rtol=1e-5)
        return
    classes = len(set(labels))
    numbers = np.unique(present, return_inverse=True)[1].astype(np.int64)
    weights = class_weights(numbers, classes, balanced=True).numpy()[numbers]
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)
    sums = [weights[numbers == one].sum() for one in range(classes)]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("several", [False, True])
def test_gradients_are_finite_however_sure_the_network_is(gamma: float, several: bool):
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    weights = torch.ones(2, 2) if several else torch.ones(2)
    losses = ImageLosses(weights, several=several, smoothing=0.1, gamma=gamma)(logits, targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_settings_reach_the_loss():
    options = Training(label_smoothing=0.1, focal_gamma=2.0, class_weights="balanced")
    losses = image_losses(np.array([0, 0, 0, 1]), 2, options)
    assert (losses.smoothing, losses.gamma, losses.several, losses.classes) == (0.1, 2.0, False, 2)
    torch.testing.assert_close(losses.weights, torch.tensor([2 / 3, 2.0]))
    assert image_losses(np.zeros((3, 4), np.float32), 4, options).several


def test_what_is_right():
    logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert right(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), several=False).tolist() == [1.0, 0.0]
    assert right(logits, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), several=True).tolist() == [0.5, 1.0]


def test_mixing_is_of_pairs_by_one_share_for_image_and_label():
    """Images whose values are their own targets: what is mixed stays so."""
    targets = torch.eye(6)
    images = targets[:, :, None, None].expand(-1, -1, 4, 4).contiguous(memory_format=torch.channels_last)
    inputs, shares = mixed(images, targets, 0.4, (1, 2, 3))
    torch.testing.assert_close(inputs, shares[:, :, None, None].expand(-1, -1, 4, 4))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert (shares.diagonal() < 1).any()
    again, other = (mixed(images, targets, 0.4, seed)[1] for seed in ((1, 2, 3), (1, 2, 4)))
    assert torch.equal(shares, again)
    assert not torch.equal(shares, other)
    assert mixed(torch.rand(6, 5), targets, 0.4, (1,))[0].shape == (6, 5)
