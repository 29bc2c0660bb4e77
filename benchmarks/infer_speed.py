"""How fast `radloop infer` is, from DICOM files to Secondary Captures on the disk, beside what a user would write.

python benchmarks/infer_speed.py [--images 96] [--by-hand 12] [--architecture resnet50] [--size 224]

By hand: MONAI's `LoadImage` with PydicomReader, scaled and resized, pytorch-grad-cam's `GradCAM` over the last stage, its map laid over the
slice, highdicom's `SCImage` and `save_as`, one image after the other with torch's default threads; before and after radloop, the better
of both. radloop: the public `infer`, with its default workers, from the index to the tables. Both have the same files of 512 x 512, the
same random weights and the same machine. What a process does once (importing torch and MONAI, the server that workers are forked from)
is done before, by a first inference of a few files, and told apart.

Then the share of what the cores allow: as many processes as cores, each with one thread and its part of the files, from index to tables,
begun together. Each does one thing after the other and nothing waits for anything, so the slowest is as fast as these cores do that work,
whatever two of them at work take from one another. Beside it the CPU time of an image in one such process by itself, and of that decoding
and the network alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIDE = 512
WARM_UP = 6
LUNG_LOW, LUNG_HIGH = -1350.0, 150.0
GOAL_RATIO, GOAL_SHARE = 5.0, 0.9


def main() -> int:
    """Prints the figures; 1 where a goal is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--by-hand", type=int, default=12, help="images by hand, before and after")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=None, help="of radloop; by default its own choice")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="radloop-benchmark-") as folder:
        return compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> int:
    """Both ways, and the share."""
    # Not above: workers import what the main script does.
    from threadpoolctl import threadpool_limits
    from untrained import write_run, write_slices

    from pipeline.work import default_workers

    cores = default_workers()
    print(
        f"{cores} cores, load {os.getloadavg()[0]:.1f}; {options.architecture} at {options.size}, {options.images} files"
    )
    run, source, few = folder / "run", folder / "source", folder / "few"
    write_run(run, options.architecture, options.size)
    paths = write_slices(source, options.images, SIDE)
    write_slices(few, WARM_UP, SIDE)

    first, _ = inferred(run, few, folder / "first", options.workers)
    again, _ = inferred(run, few, folder / "again", options.workers)
    print(f"start of the first inference (imports of the workers, threads): {first - again:.1f} s; not in what follows")
    by_hand = Handmade(run, folder / "by_hand")
    by_hand(paths[:2])
    before = rate(by_hand, paths[: options.by_hand])
    wall, summary = inferred(run, source, folder / "out", options.workers)
    after = rate(by_hand, paths[: options.by_hand])
    assert (summary.cases, summary.failed, summary.objects) == (options.images, 0, options.images), summary.lines()
    ratio = options.images / wall / max(before, after)
    print(f"by hand: {before:.2f} images/s before, {after:.2f} after")
    print(f"radloop infer: {options.images / wall:.2f} images/s ({wall:.1f} s)")
    print(f"ratio: {ratio:.2f} (goal {GOAL_RATIO:g})")

    with threadpool_limits(1):
        hand = cpu_time(lambda: by_hand(paths[: options.by_hand])) / options.by_hand
        spent = cpu_time(lambda: inferred(run, source, folder / "alone", 0)) / options.images
        decoding, network = stages_alone(run, paths)
    shortest = side_by_side(run, few, shared_out(paths, cores, folder), folder)
    share = shortest / wall
    print(f"CPU time an image by hand, one thread: {1000 * hand:.0f} ms, {hand / spent:.2f} times radloop's")
    print(
        f"CPU time an image of radloop, in one process with one thread: {1000 * spent:.0f} ms, of which decoding and preparing "
        f"{1000 * decoding:.0f}, network {1000 * network:.0f}, all else {1000 * (spent - decoding - network):.0f}"
    )
    print(
        f"share of what {cores} cores allow: {share:.2f} (goal {GOAL_SHARE:g}); processes side by side "
        f"{options.images / shortest:.2f} images/s, {cores} times the one by itself {cores / spent:.2f}"
    )
    return 0 if ratio >= GOAL_RATIO and share >= GOAL_SHARE else 1


def inferred(run: Path, source: Path, out: Path, workers: int | None) -> tuple[float, Any]:
    """Seconds, and the summary, of an inference that writes Secondary Captures."""
    from pipeline.infer import infer

    begun = time.perf_counter()
    summary = infer(run, str(source), out, write=["sc"], workers=workers, progress=False)
    return time.perf_counter() - begun, summary


def shared_out(paths: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """Folders with the files by turns."""
    folders = [folder / f"part-{number}" for number in range(count)]
    for number, part in enumerate(folders):
        part.mkdir()
        for place, path in enumerate(paths[number::count]):
            os.link(path, part / f"{place:06d}.dcm")
    return folders


def side_by_side(run: Path, few: Path, sources: Sequence[Path], folder: Path) -> float:
    """Seconds until a process for each source, all begun together when each has once inferred a few files, are through."""
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Barrier(len(sources)), context.Queue()
    arguments = [(run, few, source, folder / f"side-{number}", ready, ended) for number, source in enumerate(sources)]
    processes = [context.Process(target=_one_of_several, args=one) for one in arguments]
    for process in processes:
        process.start()
    longest = max(ended.get() for _ in processes)
    for process in processes:
        process.join()
    return float(longest)


def _one_of_several(run: Path, few: Path, source: Path, out: Path, ready: Any, ended: Any) -> None:
    from threadpoolctl import threadpool_limits

    inferred(run, few, out.with_suffix(".few"), 0)  # imports what brings threads, which then can be limited
    with threadpool_limits(1):
        ready.wait()
        ended.put(inferred(run, source, out, 0)[0])


def stages_alone(run: Path, paths: Sequence[Path]) -> tuple[float, float]:
    """Seconds of CPU an image: decoded and prepared; through the network with its evidence."""
    import numpy as np

    from pipeline.prediction.predict import batched, load_model
    from pipeline.prepared.dataset import ImageFile, Preparer

    model = load_model(run)
    prepare = Preparer(model.facts.preprocessing, keep_shown=True)
    prepared: list[Any] = []
    files = []
    for path in paths:
        status = path.stat()
        files.append(ImageFile("", "", path.name, path, "dicom", 0, status.st_size, status.st_mtime_ns, "CT"))
    decoding = cpu_time(lambda: prepared.extend(map(prepare, files)))
    batches = [np.stack([one.image for one in batch]) for batch in batched(prepared)]
    network = cpu_time(lambda: [model.predict(levels) for levels in batches])
    return decoding / len(paths), network / len(paths)


def cpu_time(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def rate(work: Callable[[Sequence[Path]], object], paths: Sequence[Path]) -> float:
    begun = time.perf_counter()
    work(paths)
    return len(paths) / (time.perf_counter() - begun)


class Handmade:
    """A user's loop over files: load, Grad-CAM, Secondary Capture."""

    def __init__(self, run: Path, out: Path) -> None:
        from monai.transforms import (
            Compose,
            EnsureChannelFirst,
            LoadImage,
            NormalizeIntensity,
            Resize,
            ScaleIntensityRange,
        )
        from pytorch_grad_cam import GradCAM
        from safetensors.torch import load_file

        from pipeline.networks.model import WEIGHTS_FILE, Classifier
        from pipeline.run import read_model

        facts = read_model(run)
        network = Classifier(facts.network, len(facts.classes), facts.preprocessing.size).eval()
        network.load_state_dict(load_file(run / WEIGHTS_FILE))
        self.cam = GradCAM(network, [network.backbone.layer4])
        self.load = Compose(
            [
                LoadImage(reader="PydicomReader", image_only=True),
                EnsureChannelFirst(),
                ScaleIntensityRange(LUNG_LOW, LUNG_HIGH, 0.0, 1.0, clip=True),
            ]
        )
        self.prepare = Compose(
            [
                Resize((facts.preprocessing.size,) * 2),
                NormalizeIntensity(subtrahend=facts.input_mean, divisor=facts.input_std, channel_wise=True),
            ]
        )
        self.out = out
        out.mkdir()

    def __call__(self, paths: Sequence[Path]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, path in enumerate(paths, start=1):
                self.one(path, number)

    def one(self, path: Path, number: int) -> None:
        import cv2
        import numpy as np
        from highdicom.sc import SCImage
        from pydicom import dcmread
        from pydicom.uid import generate_uid
        from pytorch_grad_cam.utils.image import show_cam_on_image
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        image = self.load(path)
        cells = self.cam(self.prepare(image).as_tensor()[None], [ClassifierOutputTarget(1)])[0]
        probability = float(self.cam.outputs.softmax(dim=1)[0, 1])
        gray = image[0].numpy().T  # MONAI's first axis is the columns
        heatmap = cv2.resize(cells.T, gray.shape[::-1])
        overlay = show_cam_on_image(np.repeat(gray[..., None], 3, axis=2), heatmap, use_rgb=True)
        text = f"opacity, probability {probability:.3f}"
        cv2.putText(overlay, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
        SCImage.from_ref_dataset(
            dcmread(path),
            overlay,
            "RGB",
            8,
            "PATIENT",
            generate_uid(),
            9000,
            generate_uid(),
            number,
            "user",
            patient_orientation=("L", "P"),
        ).save_as(self.out / f"{number:05d}.dcm")


if __name__ == "__main__":
    sys.exit(main())
