"""What radloop's training costs beside the step itself, and beside a plain MONAI loop: ratios in one run.

python benchmarks/step_speed.py [--images 64] [--architecture resnet50] [--size 224] [--batch 8] [--rounds 3] [--compile]

bare: forward, cross-entropy, backward and optimizer on batches of network input that are on the device already (channels last; on a GPU in
bfloat16, as radloop has it). radloop: `fit` on prepared images, varied on the device. tutorial: MONAI's way: a DataLoader over files with
LoadImage, EnsureChannelFirst, ScaleIntensity, RandFlip, RandZoom and Resize, and `SupervisedTrainer` (with amp on a GPU). The three take
turns, `--rounds` times; each has its best round, as images a second of training, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd, RandZoomd, Resized, ScaleIntensityd
from PIL import Image
from torch import nn

from pipeline.config import Network, Training
from pipeline.training.feed import LabelledImages
from transforms.augment import Augmentations
from transforms.intensity import to_levels

AUGMENTATION = Augmentations(flip_horizontal=0.5, zoom=0.1)
MEAN, STD = (0.45,), (0.22,)
FILE_SIDE = 512
"""Pixels: that of a CT slice."""


class InMemory:
    """Prepared images as the cache's memory map gives them."""

    def __init__(self, levels: np.ndarray) -> None:
        self._levels = levels

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self._levels[rows]


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="of the tutorial's DataLoader")
    parser.add_argument("--compile", action="store_true", help="torch.compile for radloop, on a GPU")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = np.random.default_rng(0).random((options.images, 1, options.size, options.size), dtype=np.float32)
    data = LabelledImages(
        InMemory(to_levels(images)), np.arange(options.images), np.arange(options.images) % 2, MEAN, STD,
        augmentation=AUGMENTATION,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as folder:
        files = write_files(Path(folder), options.images)
        ways: dict[str, Callable[[], float]] = {
            "bare": lambda: bare(new_network(options.architecture, device), data, options.batch, device),
            "radloop": lambda: radloop(
                new_network(options.architecture, device), data, options.batch, device, Path(folder), options.compile
            ),
            "tutorial": lambda: tutorial(
                new_network(options.architecture, device), files, options.size, options.batch, device, options.workers
            ),
        }
        best = dict.fromkeys(ways, 0.0)
        for _ in range(options.rounds):
            for name, way in ways.items():
                best[name] = max(best[name], way())
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.architecture} at {options.size}, batches of {options.batch}, {options.images} images, {name}")
    for way, rate in best.items():
        print(f"{way}: {rate:.1f} images/s")
    print(f"radloop / bare step: {best['radloop'] / best['bare']:.3f}")
    print(f"radloop / tutorial: {best['radloop'] / best['tutorial']:.2f}")
    if device.type == "cuda":
        print(f"memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return 0


def new_network(architecture: str, device: torch.device) -> nn.Module:
    # Not above: the tutorial's workers import what the main script does.
    from pipeline.networks.model import Classifier

    return Classifier(Network(architecture=architecture), 2).to(device).to(memory_format=torch.channels_last)


def bare(network: nn.Module, data: LabelledImages, batch: int, device: torch.device) -> float:
    """Images a second of an epoch of steps, after one step to warm up."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    starts = range(0, len(data) - batch + 1, batch)
    batches = [data.input(data[[(1, item) for item in range(start, start + batch)]], device) for start in starts]
    network.train()

    def step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(inputs)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    step(*batches[0])
    began = finished(device)
    for inputs, labels in batches:
        step(inputs, labels)
    return len(batches) * batch / (finished(device) - began)


def radloop(
    network: nn.Module, data: LabelledImages, batch: int, device: torch.device, folder: Path, compiled: bool
) -> float:
    """Images a second of the second epoch, as the history has it."""
    from pipeline.training.fit import fit

    options = Training(
        epochs=2, batch_size=batch, early_stopping=None, plateau=None, class_weights="none", compile=compiled
    )
    validation = LabelledImages(data.images, data.rows[:2], data.labels[:2], MEAN, STD)
    run = Path(tempfile.mkdtemp(dir=folder))
    fitted = fit(network, data, validation, options, run=run, seed=0, device=device, progress=False)
    return fitted.history[-1]["images_per_second"]


def tutorial(
    network: nn.Module, files: list[dict[str, object]], size: int, batch: int, device: torch.device, workers: int
) -> float:
    """Images a second of an epoch, after one step to warm up."""
    keys = ["image"]
    chain = Compose(
        [
            LoadImaged(keys), EnsureChannelFirstd(keys), ScaleIntensityd(keys), RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandZoomd(keys, prob=0.5, min_zoom=0.9, max_zoom=1.1), Resized(keys, (size, size)),
        ]
    )  # fmt: skip

    def train(part: list[dict[str, object]]) -> None:
        trainer = SupervisedTrainer(
            device=device,
            max_epochs=1,
            train_data_loader=DataLoader(Dataset(part, chain), batch_size=batch, shuffle=True, num_workers=workers),
            network=network,
            optimizer=torch.optim.Adam(network.parameters()),
            loss_function=nn.CrossEntropyLoss(),
            amp=device.type == "cuda",
            decollate=False,
        )
        trainer.run()

    train(files[:batch])
    began = finished(device)
    train(files)
    return len(files) / (finished(device) - began)


def write_files(folder: Path, count: int) -> list[dict[str, object]]:
    """PNG files of noise on a slope."""
    random = np.random.default_rng(0)
    slope = np.linspace(0, 200, FILE_SIDE)[None]
    files: list[dict[str, object]] = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray((slope + random.integers(0, 50, (FILE_SIDE, FILE_SIDE))).astype(np.uint8)).save(path)
        files.append({"image": str(path), "label": number % 2})
    return files


def finished(device: torch.device) -> float:
    """The time when the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
