"""A run that nobody trained, and images that nobody is in: what benchmarks of inference read.

The weights are random under a seed; all else is as a training leaves it. The images are CT slices of a phantom with other noise in each,
one case each (`unit: image`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import pipeline
from pipeline.config import Network, Preprocessing, digest, dump_yaml, load_config
from pipeline.dicom.phantom_objects import ct_slice, phantom_uid, save, simple_chest
from pipeline.files import write_whole
from pipeline.manifest import Rules
from pipeline.networks.model import new_network
from pipeline.prepared.dataset import input_statistics
from pipeline.run import CONFIG_FILE, ModelFacts, write_model

CLASSES = ["normal", "opacity"]
NOISE_HU = 20.0
IMAGES_A_SERIES = 100


def write_run(run: Path, architecture: str, size: int) -> ModelFacts:
    """A run of two classes on gray images of `size` pixels a side."""
    network = Network(architecture=architecture)
    preprocessing = Preprocessing(size=size, resize="stretch")
    mean, std = input_statistics(preprocessing, network.channels)
    write_whole(run / CONFIG_FILE, dump_yaml(load_config("ct_slices")))
    torch.manual_seed(0)
    return write_model(
        run,
        new_network(network, len(CLASSES), size).state_dict(),
        {
            "name": "untrained",
            "radloop_version": pipeline.__version__,
            "network": network,
            "classes": CLASSES,
            "positive": CLASSES[1],
            "unit": "image",
            "rules": Rules(),
            "preprocessing": preprocessing,
            "preprocessing_digest": digest(preprocessing),
            "path_to_unit_range": {},
            "input_mean": mean,
            "input_std": std,
            "initial_weights": "random",
            "initial_weights_sha256": "",
            "best_epoch": 0,
            "heatmap_scale": 1.0,
            "thresholds": {CLASSES[1]: 0.5},
            "scope": {},
        },
    )


def write_slices(folder: Path, count: int, side: int) -> list[Path]:
    """`count` CT slices of `side` pixels, a study and folder for each `IMAGES_A_SERIES`."""
    chest = simple_chest(side)
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        series, place = divmod(number, IMAGES_A_SERIES)
        noise = random.normal(0.0, NOISE_HU, chest.shape)
        dataset = ct_slice(
            hu=chest + noise,
            patient_id=f"PH-{series:04d}",
            study_instance_uid=phantom_uid("study", series),
            series_instance_uid=phantom_uid("series", series),
            sop_instance_uid=phantom_uid("slice", number),
            instance_number=place + 1,
        )
        paths.append(save(dataset, folder / f"{series:04d}" / f"{place:03d}.dcm"))
    return paths
