"""A run as a MONAI bundle: what others load without radloop's command, and give back to it.

OUT gets `configs/` (metadata, inference), `models/` (the model as radloop has it, its state dict, and the whole model as TorchScript, if
asked for as ONNX, too) and `docs/`. Both are compared with radloop's own prediction before OUT is there. `python -m monai.bundle run` then
predicts with radloop's transforms, `radloop infer OUT SOURCE` as of the run itself: it is the same model, of the same digest.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pipeline
from pipeline import RESEARCH_ONLY
from pipeline.errors import ConfigError, RunError
from pipeline.files import write_whole
from pipeline.networks.model import WEIGHTS_FILE, Classifier
from pipeline.prediction.bundled import META_KEY, SCRIPT_FILE, WholeModel
from pipeline.prediction.exported import ONNX_INPUT, ONNX_OUTPUT, Exported, as_onnx, as_torchscript, require_onnx
from pipeline.prediction.predict import load_networks, trained_model
from pipeline.prepared.dataset import windows_of
from pipeline.run import (
    BUNDLE_METADATA,
    BUNDLE_MODELS,
    CONFIG_FILE,
    MODEL_FILE,
    ModelFacts,
    read_config,
    read_model,
)
from transforms.chains import KEY
from transforms.levels import LEVELS, from_levels

TOLERANCE = 1e-5
"""Of a probability: float32 rounds the layers of a network, folded or not, to some 1e-6 of one."""
TRIED_IMAGES = 3
ONNX_FILE = "model.onnx"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
PACKAGES = ("pytorch-ignite", "safetensors", "pydicom", "imagecodecs", "pandas", "timm", "scikit-image")
_CODE = ("$", "@", "%")
"""A text that begins so is run, looked up or replaced by MONAI's configurations."""


def bundle(run: Path, out: Path, *, onnx: bool = False) -> list[str]:
    """Writes the bundle of `run` to `out`; what there is to say of it. ConfigError for a model that no bundle can hold. `onnx`: the
    whole model as ONNX, too."""
    if onnx:
        require_onnx()
    facts = read_model(run)
    read_config(run)  # which inference needs: said now where it is damaged
    _refuse(facts)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: expected a folder that is empty or not there yet, found something in it")
    network = load_networks(run, facts)[0]
    assert isinstance(network, Classifier)
    ways = {SCRIPT_FILE: as_torchscript} | ({ONNX_FILE: as_onnx} if onnx else {})
    exported = list(_exported(network, facts, ways))
    state = io.BytesIO()
    torch.save(network.state_dict(), state)
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    models = aside / BUNDLE_MODELS
    for name, content, _ in exported:
        write_whole(models / name, content)
    write_whole(models / "model.pt", state.getvalue())
    for name in (WEIGHTS_FILE, MODEL_FILE, CONFIG_FILE):
        shutil.copyfile(run / name, models / name)
    write_whole(aside / BUNDLE_METADATA, _json(_metadata(facts)))
    write_whole(aside / "configs/inference.json", _json(_inference(facts)))
    write_whole(aside / "docs/README.md", _readme(facts, onnx=onnx))
    write_whole(aside / "LICENSE", _license(facts))
    if out.exists():
        out.rmdir()
    os.replace(aside, out)
    return [
        f"bundle: {out}, model {facts.name}, digest {facts.digest}",
        *(
            f"{name} and radloop differ by {difference:.1g} at most ({TRIED_IMAGES} images of noise)"
            for name, _, difference in exported
        ),
        _command(str(out)),
    ]


def _refuse(facts: ModelFacts) -> None:
    """One message for what a bundle of one network on one image cannot say."""
    if facts.members:
        found = "an ensemble: bundle its members one by one"
    elif facts.network.pooling != "mean":
        found = f"pooling {facts.network.pooling}, which needs all images of a case at once"
    else:
        return
    raise ConfigError(f"a bundle holds one network that predicts single images; this model is of {found}")


def _exported(
    network: Classifier, facts: ModelFacts, ways: Mapping[str, Callable[[WholeModel, torch.Tensor], Exported]]
) -> Iterator[tuple[str, bytes, float]]:
    """The whole model by each of `ways` (name of the file → what makes it), and how far it is from radloop's own prediction; RunError where
    that is too far."""
    network.eval()
    shape = (TRIED_IMAGES, facts.preprocessing.channels, *[facts.preprocessing.size] * 2)
    levels = np.random.default_rng(0).integers(0, LEVELS + 1, shape, dtype=np.uint16)
    images = torch.from_numpy(from_levels(levels))
    images = images.expand(-1, facts.network.channels, -1, -1).contiguous()
    expected = trained_model([network], facts, torch.device("cpu"), fold=False).predict(levels).probabilities
    for name, way in ways.items():
        made = way(WholeModel(network, facts), images)
        difference = float(np.abs(made.probabilities - expected).max())
        if not difference <= TOLERANCE:
            raise RunError(f"{name} of {facts.network.architecture} differs from the network by {difference:.1g}")
        yield name, made.content, difference


def _inference(facts: ModelFacts) -> dict[str, Any]:
    """`configs/inference.json`: radloop's own transforms from plain arguments, MONAI's evaluator and saver."""
    settings = facts.preprocessing
    _without_code([str(settings.voi)])
    windows = [
        {"_target_": "transforms.voi.Voi", "center": window.center, "width": window.width}
        for window in windows_of(settings)
    ]
    here = "pipeline.prediction.bundled"
    return {
        "bundle_root": ".",
        "dataset_dir": "./images",
        "output_dir": "./predictions",
        "device": "cpu",
        "batch_size": 8,
        "network_def": {"_target_": f"{here}.network_of", "bundle_root": "@bundle_root", "device": "@device"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{here}.ReadImaged", "keys": KEY, "color": settings.color == "rgb"},
                {
                    "_target_": "transforms.chains.prepare_chain",
                    "windows": windows,
                    "voi": settings.voi,
                    "crop": settings.crop,
                    "size": settings.size,
                    "resize": settings.resize,
                    "scaling": settings.scaling,
                    "percentiles": list(settings.percentiles),
                    "enhancement": settings.enhancement.model_dump(mode="json"),
                },
                {"_target_": f"{here}.Leveled", "keys": KEY, "channels": facts.network.channels},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": {"_target_": f"{here}.images_of", "bundle_root": "@bundle_root", "dataset_dir": "@dataset_dir"},
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": "@batch_size", "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "SaveClassificationd",
            "keys": "pred",
            "meta_keys": META_KEY,
            "output_dir": "@output_dir",
            "filename": "predictions.csv",
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _metadata(facts: ModelFacts) -> dict[str, Any]:
    """`configs/metadata.json` by MONAI's schema."""
    _without_code([facts.name, facts.notice, facts.positive, *facts.classes])
    side = facts.preprocessing.size
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "schema": SCHEMA,
        "version": pipeline.__version__,
        "changelog": {pipeline.__version__: "as radloop trained it"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch"),
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"radloop": pipeline.__version__, **versions},
        "name": facts.name,
        "task": f"Classification of medical images: {', '.join(facts.classes)}",
        "description": f"{facts.network.architecture} on images of {side} x {side} pixels, trained by radloop {facts.radloop_version}.",
        "authors": "whoever trained the model; radloop does not know",
        "copyright": "theirs; radloop does not know",
        "intended_use": " ".join(part for part in (RESEARCH_ONLY, facts.notice) if part),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "any",
                    "num_channels": facts.network.channels,
                    "spatial_shape": [side, side],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(number): "image" for number in range(facts.network.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(facts.classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(facts.classes)},
                }
            },
        },
        "radloop": {"model_digest": facts.digest, "thresholds": facts.thresholds, "scope": facts.scope},
    }


def _without_code(texts: Iterable[str]) -> None:
    for text in texts:
        if text.startswith(_CODE) or "@##" in text or "%##" in text:
            raise ConfigError(
                f"{text!r}: MONAI takes a text that begins with {', '.join(_CODE)} for code; give it another name"
            )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _readme(facts: ModelFacts, *, onnx: bool) -> str:
    side, channels = facts.preprocessing.size, facts.network.channels
    lines = [
        f"# {facts.name}",
        " ".join(part for part in (facts.intended_use, facts.notice) if part),
        f"{facts.network.architecture}, trained by radloop {facts.radloop_version}. Classes, in the order of the probabilities: "
        f"{', '.join(facts.classes)}. Model digest `{facts.digest}`: DICOM objects that radloop writes name the model by it.",
        f"- `models/{SCRIPT_FILE}`: the whole model as TorchScript, prepared images (b, {channels}, {side}, {side}) in 0-1 to calibrated "
        "probabilities (b, classes)\n"
        + (f"- `models/{ONNX_FILE}`: the same as ONNX, `{ONNX_INPUT}` to `{ONNX_OUTPUT}`\n" if onnx else "")
        + f"- `models/model.pt`: the network's state dict\n"
        f"- `models/{WEIGHTS_FILE}`, `{MODEL_FILE}`, `{CONFIG_FILE}`: the same as radloop reads it",
        "With radloop installed:",
        f"```sh\n{_command('.')}\n```",
        "writes `OUT/predictions.csv`, a row an image: its path, then the probabilities. `radloop infer` takes this folder in place of "
        "a run, and writes DICOM objects, too.",
        "How values become 0-1:",
        "\n".join(f"- {kind}: {words}" for kind, words in facts.path_to_unit_range.items()),
        "What is called:",
        "\n".join(f"- {name}: from {value:.3f} on" for name, value in facts.thresholds.items())
        or "- the most probable class",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _command(root: str) -> str:
    return (
        f"python -m monai.bundle run --config_file {root}/configs/inference.json --bundle_root {root} "
        "--dataset_dir IMAGES --output_dir OUT"
    )


def _license(facts: ModelFacts) -> str:
    return (
        "Nobody told radloop under which licence these weights may be passed on. That is for those who trained them, and for those who "
        "hold\nrights in the images and in the weights that the training began with "
        f"({facts.initial_weights}). Write it here before you share the bundle.\n"
    )
