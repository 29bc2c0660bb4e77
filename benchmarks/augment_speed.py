"""How long the random augmentation of a batch takes, against MONAI's own transforms image by image.

python benchmarks/augment_speed.py [--images 64] [--size 224] [--threads 2]

The images are random, the parameters drawn anew each time, drawing included; told is the best of the repeats. `MONAI` is what a user
writes: RandFlipd, RandZoomd and RandAffined in a Compose, lazy (one resampling) or not, each image for itself, then stacked; with all
options also RandRotated, RandSimulateLowResolutiond, RandGaussianSmoothd, RandGaussianSharpend, RandAdjustContrastd, RandGaussianNoised
and RandCoarseDropoutd. A second table has each option alone. Where there is a GPU the batch is measured there too.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from monai.transforms import (
    Compose,
    EnsureTyped,
    RandAdjustContrastd,
    RandAffined,
    RandCoarseDropoutd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandRotated,
    RandSimulateLowResolutiond,
    RandZoomd,
    Transform,
)

from transforms.augment import Augmentations, RandAugmentd, augment_batch, draw, noise_seed, uniforms

MOVES = Augmentations(flip_horizontal=0.5, flip_vertical=0.5, zoom=0.1, shift=0.1)
ALL = replace(
    MOVES,
    stretch=0.1,
    rotate=15,
    contrast=0.2,
    window=0.1,
    gamma=0.3,
    blur=1.5,
    sharpen=1.0,
    coarse=0.6,
    noise=0.05,
    cutout=0.3,
)
SECONDS_A_ROW, LEAST_REPEATS = 1.0, 5
KEY = "image"


def main() -> None:
    """Prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", action="store_true", help="the second table only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.each:
        print_against_monai(options.images, options.size, options.threads)
    print_each(torch.rand(options.images, 1, options.size, options.size))


def print_against_monai(count: int, size: int, threads: int) -> None:
    """Each way of doing the same."""
    print(f"{count} images of {size}², float32, {threads} threads, torch {torch.__version__}\n")
    print("| options | channels | way | ms a batch | µs an image | MONAI's lazy one takes so many times as long |")
    print("|---|---|---|---|---|---|")
    for (name, settings), channels in itertools.product((("flips, zoom, shift", MOVES), ("all", ALL)), (1, 3)):
        images = torch.rand(count, channels, size, size)
        ways = ways_of(images, settings)
        took = {way: best_ms(run) for way, run in ways.items()}
        for way, ms in took.items():
            ratio = took["MONAI, lazy"] / ms
            print(f"| {name} | {channels} | {way} | {ms:.1f} | {1000 * ms / len(images):.0f} | {ratio:.1f} |")


def print_each(images: torch.Tensor) -> None:
    """What each option costs by itself, one channel."""
    print("\n| option alone | ms a batch |\n|---|---|")
    for field in fields(ALL):
        alone = Augmentations(**{field.name: getattr(ALL, field.name)})
        print(f"| {field.name} | {best_ms(batches(images, alone)):.1f} |")


def ways_of(images: torch.Tensor, settings: Augmentations) -> dict[str, Callable[[], object]]:
    lazy, eager = (
        Compose([EnsureTyped(KEY, track_meta=True), Compose(monai_steps(settings, images.shape[-1]), lazy=lazy)])
        for lazy in (True, False)
    )
    one = Compose([RandAugmentd(KEY, settings)])
    ways: dict[str, Callable[[], object]] = {
        "MONAI": lambda: image_by_image(eager, images),
        "MONAI, lazy": lambda: image_by_image(lazy, images),
        "RandAugmentd": lambda: image_by_image(one, images),
        "augment_batch": batches(images, settings),
    }
    if torch.cuda.is_available():
        on_device = batches(images.cuda(), settings)
        ways[f"augment_batch, {torch.cuda.get_device_name()}"] = lambda: (on_device(), torch.cuda.synchronize())
        ways["augment_batch, the host's share"] = on_device  # it does not wait for the device
    return ways


def batches(images: torch.Tensor, settings: Augmentations) -> Callable[[], torch.Tensor]:
    epochs = itertools.count()
    items = list(range(len(images)))

    def run() -> torch.Tensor:
        epoch = next(epochs)
        drawn = draw(settings, uniforms(0, epoch, items))
        return augment_batch(images, drawn, noise_seed=noise_seed(0, epoch, items))

    return run


def image_by_image(chain: Compose, images: torch.Tensor) -> torch.Tensor:
    return torch.stack([chain({KEY: image})[KEY].as_tensor() for image in images])


def monai_steps(settings: Augmentations, size: int) -> list[Transform]:
    reach, magnified = settings.shift * size, (1 - settings.zoom, 1 + settings.zoom)
    steps: list[Transform] = [
        RandFlipd(KEY, prob=settings.flip_horizontal, spatial_axis=1),
        RandFlipd(KEY, prob=settings.flip_vertical, spatial_axis=0),
        RandZoomd(KEY, prob=1.0, min_zoom=magnified[0], max_zoom=magnified[1], mode="bilinear", padding_mode="edge"),
        RandAffined(KEY, prob=1.0, translate_range=(reach, reach), mode="bilinear", padding_mode="border"),
    ]
    if settings.rotate:
        radians = torch.pi * settings.rotate / 180
        steps.insert(3, RandRotated(KEY, prob=1.0, range_x=radians, mode="bilinear", padding_mode="border"))
    if settings.coarse:
        steps.append(RandSimulateLowResolutiond(KEY, prob=1.0, zoom_range=(1 - settings.coarse, 1.0)))
    if settings.blur:
        steps.append(RandGaussianSmoothd(KEY, prob=1.0, sigma_x=(0.0, settings.blur), sigma_y=(0.0, settings.blur)))
    if settings.sharpen:
        steps.append(RandGaussianSharpend(KEY, prob=1.0, alpha=(0.0, settings.sharpen)))
    if settings.contrast:
        steps.append(RandAdjustContrastd(KEY, prob=1.0, gamma=(1 - settings.contrast, 1 + settings.contrast)))
    if settings.noise:
        steps.append(RandGaussianNoised(KEY, prob=1.0, std=settings.noise))
    if settings.cutout:
        side = round(settings.cutout * size / 2)
        steps.append(RandCoarseDropoutd(KEY, prob=1.0, holes=1, spatial_size=(side, side), fill_value=0.0))
    return steps


def best_ms(run: Callable[[], object]) -> float:
    run()
    took: list[float] = []
    while len(took) < LEAST_REPEATS or sum(took) < SECONDS_A_ROW * 1000:
        start = time.perf_counter()
        run()
        took.append(1000 * (time.perf_counter() - start))
    return min(took)


if __name__ == "__main__":
    main()
