"""How fast images become network input: first pass, from the cache, and while a network is trained.

python benchmarks/feed_speed.py decode [--data RADLOOP_DATA] [--copies 1000] [--only TEXT]
python benchmarks/feed_speed.py train [--images 64] [--architecture resnet50] [--batch 8]

decode: for each transfer syntax of one CT slice, copies of the file under other names, all in the page cache. MONAI's way (`LoadImaged`
with PydicomReader, `EnsureChannelFirstd`, `ScaleIntensityRanged` of the lung window, `Resized` to 224) in one process with torch's
default threads, before and after radloop, the better of both; radloop's first pass into an empty cache with two workers (whose start, some
seconds of importing torch once a command, is not in it); and all images from the cache as float32 tensors of 32 images in one process,
opening and verifying the cache included and not. pydicom needs plugins for compressed files (python-gdcm, pylibjpeg with its codecs): where
they are not installed, or none reads a syntax, its row is compared with MONAI's figure for uncompressed files, and says so.

train: `fit` on cached images: the share of its time that waits for the next batch, and that of making network input of it
(augmentation and standardisation). On a GPU also the same training on batches that are on the device already.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityRanged

from pipeline.config import Network, Preprocessing, Training
from pipeline.prepared.cache import PreparedImages, prepared_images
from pipeline.prepared.cache_folder import CACHE_VARIABLE
from pipeline.prepared.dataset import ImageFile, Preparer
from pipeline.training.feed import BatchSampler, LabelledImages
from transforms.augment import Augmentations
from transforms.intensity import from_levels

FOLDER = "dicom/cornerstone_ct_syntaxes"
PLAIN = "LittleEndianExplicit"
SIZE, BATCH, WORKERS = 224, 32, 2
LUNG_LOW, LUNG_HIGH = -1350.0, 150.0
MONAI_S = 4.0
"""MONAI's way is timed for so long, before and after."""
GATHERED = 20
"""Passes through the cache, of which the best counts: each takes a hundredth of a second."""
AUGMENTATION = Augmentations(flip_horizontal=0.5, zoom=0.1, shift=0.08, rotate=10, contrast=0.1)


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["decode", "train"])
    parser.add_argument("--data", type=Path, default=os.environ.get("RADLOOP_DATA"))
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--only", default="", help="only syntaxes whose file names hold this")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as folder:
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")
        if options.what == "train":
            training(Path(folder), options.images, options.architecture, options.batch)
        else:
            decoding(Path(folder), options.data / FOLDER, options.copies, options.only)
    return 0


def decoding(folder: Path, originals: Path, copies: int, only: str) -> None:
    """A row a transfer syntax."""
    paths = sorted(path for path in originals.iterdir() if path.name.startswith("CTImage.dcm_") and only in path.name)
    plain_path = next(path for path in originals.iterdir() if PLAIN in path.name)
    start_workers(folder, plain_path)
    plain = monai_rate(stream(folder / "plain", plain_path, copies))
    print(f"MONAI's way on the uncompressed file: {plain:.0f} images/s; {os.cpu_count()} CPUs")
    print("| transfer syntax | MONAI | first pass | ratio | from cache | ratio | with opening it |")
    print("|---|---|---|---|---|---|---|")
    for path in paths:
        files = stream(folder / "files", path, copies)
        before = monai_rate(files)
        first = rate(copies, lambda files=files: load(files))
        opened = time.perf_counter()
        images = load(files)
        opened = time.perf_counter() - opened
        gathered = max(rate(copies, lambda images=images: gather(images)) for _ in range(GATHERED))
        monai = max(before, monai_rate(files))
        name = path.name.removeprefix("CTImage.dcm_").replace("TransferSyntax_", " ").removesuffix(".dcm")
        said = f"{monai:.0f}" if monai else f"not read; uncompressed {plain:.0f}"
        base = monai or plain
        with_opening = copies / (opened + copies / gathered)
        print(
            f"| {name} | {said} | {first:.0f} | {first / base:.1f} | {gathered:.0f} | {gathered / base:.0f} | {with_opening:.0f} |",
            flush=True,
        )


def stream(folder: Path, original: Path, copies: int) -> list[ImageFile]:
    """Copies of one file, as an index would have them, read once."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = []
    for number in range(copies):
        path = folder / f"{number:05d}.dcm"
        shutil.copyfile(original, path)
        path.read_bytes()
        status = path.stat()
        files.append(ImageFile("", "", path.name, path, "dicom", 0, status.st_size, status.st_mtime_ns, "CT"))
    return files


def start_workers(folder: Path, path: Path) -> None:
    """The server that workers are forked from imports torch once a command."""
    load(stream(folder / "start", path, 4))


def load(files: list[ImageFile]) -> PreparedImages:
    images = prepared_images(
        files, Preparer(Preprocessing(size=SIZE, resize="stretch")), what="", progress=False, workers=WORKERS
    )
    assert images.usable.all(), images.failures
    return images


def gather(images: PreparedImages) -> None:
    for begin in range(0, len(images), BATCH):
        rows = np.arange(begin, min(begin + BATCH, len(images)))
        tensor = from_levels(torch.from_numpy(images.take(rows)))
        assert tensor.shape[1:] == (1, SIZE, SIZE)


def monai_rate(files: list[ImageFile]) -> float:
    """Images a second of MONAI's way; 0 where it cannot read the file."""
    keys = ["image"]
    chain = Compose(
        [
            LoadImaged(keys, reader="PydicomReader"),
            EnsureChannelFirstd(keys),
            ScaleIntensityRanged(keys, LUNG_LOW, LUNG_HIGH, 0.0, 1.0, clip=True),
            Resized(keys, (SIZE, SIZE)),
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for file in files[:3]:
                image = chain({"image": file.location})["image"]
        except Exception:  # whatever pydicom and its plugins raise
            return 0.0
        assert image.shape == (1, SIZE, SIZE)
        done, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < MONAI_S:
            chain({"image": files[done % len(files)].location})
            done += 1
    return done / spent


def rate(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Timed(LabelledImages):
    """Counts the seconds that making network input of a batch takes."""

    spent: list[float] = field(default_factory=list)

    def input(self, *arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        start = time.perf_counter()
        result = super().input(*arguments, **options)  # type: ignore[arg-type]
        self.spent.append(time.perf_counter() - start)
        return result


class OnDevice(LabelledImages):
    """The same batches each epoch, ready on the device before it begins."""

    def loader(self, batches: BatchSampler, *, on_gpu: bool, workers: int | None = None) -> object:  # type: ignore[override]
        return [super(OnDevice, self).input(self[pairs], torch.device("cuda")) for pairs in batches]

    def input(self, batch: object, *_: object, **__: object) -> object:  # type: ignore[override]
        return batch


def training(folder: Path, count: int, architecture: str, batch: int) -> None:
    """One epoch to warm up, two that count."""
    # Not above: workers import what the main script does.
    from pipeline.dicom.phantom_objects import ct_slice, save
    from pipeline.networks.model import Classifier
    from pipeline.training.fit import Fit, fit

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = stream(folder / "files", save(ct_slice(512), folder / "slice.dcm"), count)
    images = load(files)
    labels = np.arange(count) % 2
    options = Training(epochs=3, batch_size=batch, early_stopping=None, plateau=None)

    def trained(kind: type[LabelledImages]) -> tuple[Fit, LabelledImages]:
        feed = kind(images, np.arange(count), labels, (0.45,), (0.22,), augmentation=AUGMENTATION)
        validation = LabelledImages(images, np.arange(2), labels[:2], (0.45,), (0.22,))
        run = Path(tempfile.mkdtemp(dir=folder))
        network = Classifier(Network(architecture=architecture), 2)  # type: ignore[arg-type]
        return fit(network, feed, validation, options, run=run, seed=0, device=device, progress=False), feed

    fitted, feed = trained(Timed)
    assert isinstance(feed, Timed)
    steps = len(feed.spent) // 3
    seconds = sum(count / row["images_per_second"] for row in fitted.history[1:])
    speed = count * 2 / seconds
    print(f"{architecture} at {SIZE}, batches of {batch}, {count} images, on {device.type}: {speed:.1f} images/s")
    print(f"waiting for the next batch: {100 * max(fitted.waiting[1:]):.2f} % of the time")
    if device.type == "cpu":
        print(
            f"augmentation and standardisation: {100 * sum(feed.spent[steps:]) / seconds:.2f} % of the time, "
            f"{1000 * sum(feed.spent[steps:]) / count / 2:.2f} ms an image"
        )
        return
    resident, _ = trained(OnDevice)
    there = count * 2 / sum(count / row["images_per_second"] for row in resident.history[1:])
    print(
        f"the same on batches that are on the device: {there:.1f} images/s; from the cache {100 * speed / there:.1f} %"
    )


if __name__ == "__main__":
    sys.exit(main())
