"""`RandAugmentd` in a MONAI `Compose`: the batch's meaning, MONAI's random state, the affine tracked, and a way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, Resized

from tests.varied import EVERYTHING
from transforms.augment import Augmentations, RandAugmentd, augment_batch, composed_affines
from transforms.spatial import index_affine

TOLERANCE = 1e-4
"""As for the batch."""
AFFINE_TOLERANCE = 1e-9
"""Affines are float64 throughout."""
MOVING = Augmentations(flip_horizontal=0.5, flip_vertical=0.5, zoom=0.3, stretch=0.1, shift=0.2, rotate=180)


def _image(shape: tuple[int, ...], seed: int = 0) -> MetaTensor:
    return MetaTensor(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), affine=np.eye(4))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(4, 60), columns=st.integers(4, 60), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**31)
)
def test_it_is_what_the_batch_gets(rows, columns, channels, seed):
    image = _image((channels, rows, columns), seed)
    augment = RandAugmentd("image", EVERYTHING).set_random_state(seed=seed)
    found = augment({"image": image})["image"]
    expected = augment_batch(image.as_tensor()[None], augment.drawn, noise_seed=augment.noise_seed)[0]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(20, 90), columns=st.integers(20, 90), seed=st.integers(0, 2**31))
def test_the_affine_leads_to_the_source(rows, columns, seed):
    """Through a resize too: the product of the two affines."""
    resized = Resized("image", (48, 64), mode="bilinear")({"image": _image((1, rows, columns))})
    augment = RandAugmentd("image", MOVING).set_random_state(seed=seed)
    found = np.vstack([index_affine(augment(resized)["image"]), [0, 0, 1]])
    before = np.vstack([index_affine(resized["image"]), [0, 0, 1]])
    np.testing.assert_allclose(found, before @ composed_affines(augment.drawn, (48, 64))[0], atol=AFFINE_TOLERANCE)


@pytest.mark.parametrize("seed", range(6))
def test_the_way_back(seed):
    """A smooth image comes back wherever it was not moved out, and so does its affine, through MONAI's Compose."""
    rows, columns = np.indices((60, 80)) / 80
    smooth = MetaTensor(torch.from_numpy(0.5 + 0.2 * np.sin(3 * rows) * np.cos(4 * columns))[None].float())
    chain = Compose([RandAugmentd("image", MOVING)]).set_random_state(seed=seed)
    result = chain({"image": smooth})
    back = chain.inverse(result)["image"]
    assert back.shape == smooth.shape
    np.testing.assert_allclose(index_affine(back), np.eye(3)[:2], atol=AFFINE_TOLERANCE)
    assert not back.applied_operations
    (augment,) = chain.transforms
    places = np.stack([*np.indices((60, 80)).reshape(2, -1), np.ones(60 * 80)])
    moved_to = (np.linalg.inv(composed_affines(augment.drawn, (60, 80))[0]) @ places)[:2]
    seen = torch.from_numpy(((moved_to >= 0) & (moved_to <= [[59], [79]])).all(axis=0).reshape(1, 60, 80))
    assert seen.float().mean() > 0.4
    inner = seen & (torch.nn.functional.avg_pool2d(seen.float(), 7, 1, 3) > 0.999)
    np.testing.assert_allclose(back[inner], smooth[inner], atol=0.01)


def test_it_moves_back_what_was_adjusted_too():
    chain = Compose([RandAugmentd("image", EVERYTHING)]).set_random_state(seed=1)
    back = chain.inverse(chain({"image": _image((3, 30, 40))}))["image"]
    np.testing.assert_allclose(index_affine(back), np.eye(3)[:2], atol=AFFINE_TOLERANCE)


def test_nothing_asked_for_is_exactly_nothing():
    image = _image((1, 30, 40))
    found = RandAugmentd("image", Augmentations())({"image": image})["image"]
    assert torch.equal(found.as_tensor(), image.as_tensor())
    np.testing.assert_array_equal(index_affine(found), np.eye(3)[:2])


def test_the_image_given_is_not_changed():
    image = _image((1, 30, 40))
    before, affine = image.clone(), image.affine.clone()
    RandAugmentd("image", EVERYTHING)({"image": image})
    RandAugmentd("image", Augmentations(contrast=0.5, cutout=0.5))({"image": image})
    assert torch.equal(image.as_tensor(), before.as_tensor())
    assert torch.equal(image.affine, affine)
    assert not image.applied_operations


def test_meta_stays():
    image = _image((1, 30, 40))
    image.meta["aspect"] = 1.5
    assert RandAugmentd("image", EVERYTHING)({"image": image})["image"].meta["aspect"] == 1.5


def test_plain_tensors_are_taken_as_monai_takes_them():
    found = RandAugmentd("image", MOVING).set_random_state(seed=0)({"image": torch.rand(1, 20, 20)})["image"]
    assert isinstance(found, MetaTensor)


def test_seeded_as_monai_seeds():
    chain = Compose([RandAugmentd("image", EVERYTHING)])
    image = _image((1, 32, 32))

    def variants(seed: int) -> list[MetaTensor]:
        chain.set_random_state(seed=seed)
        return [chain({"image": image})["image"] for _ in range(3)]

    first, again, other = variants(5), variants(5), variants(6)
    assert all(torch.equal(a.as_tensor(), b.as_tensor()) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].as_tensor(), other[0].as_tensor())
    assert not torch.equal(first[0].as_tensor(), first[1].as_tensor())


def test_workers_draw_differently():
    """MONAI seeds each worker's transforms: eight equal images give eight variants, whichever worker makes them."""
    images = Dataset([{"image": _image((1, 24, 24))} for _ in range(8)], Compose([RandAugmentd("image", EVERYTHING)]))
    batch = next(iter(DataLoader(images, batch_size=8, num_workers=0)))["image"]
    assert len({float(image.sum()) for image in batch}) == 8
    halves = list(DataLoader(images, batch_size=4, num_workers=2))
    assert len({float(image.sum()) for half in halves for image in half["image"]}) == 8


def test_keys_share_the_geometry_and_not_the_noise():
    image = _image((1, 40, 40))
    data = {"a": image, "b": image.clone(), "c": _image((1, 20, 50))}
    moved = RandAugmentd(["a", "b", "c"], MOVING).set_random_state(seed=0)(data)
    assert torch.equal(moved["a"].as_tensor(), moved["b"].as_tensor())
    assert moved["c"].shape == (1, 20, 50)
    noisy = RandAugmentd(["a", "b"], Augmentations(noise=0.2)).set_random_state(seed=0)(data)
    assert not torch.equal(noisy["a"].as_tensor(), noisy["b"].as_tensor())


def test_missing_keys_are_monais_matter():
    with pytest.raises(KeyError):
        RandAugmentd(["image", "other"], MOVING)({"image": _image((1, 8, 8))})
    assert set(RandAugmentd(["image", "other"], MOVING, allow_missing_keys=True)({"image": _image((1, 8, 8))})) == {
        "image"
    }
