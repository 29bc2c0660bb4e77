"""The run folder: what a training leaves and everything later reads.

`ModelFacts` is `model.json`: all that is needed to use the weights and to say what they are. Nothing here holds a patient's
identity. Files are written whole.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import model_validator
from safetensors.torch import save as serialize_tensors

import pipeline
from pipeline import RESEARCH_ONLY
from pipeline.cache_key import code_version
from pipeline.config import Config, Network, Preprocessing, Settings, digest, dump_yaml, parse_settings, read_yaml
from pipeline.errors import ConfigError, RunError
from pipeline.files import file_digest, write_whole
from pipeline.identity import IdentityKey
from pipeline.manifest import Manifest, Rules
from pipeline.model import WEIGHTS_FILE

CONFIG_FILE = "config.yaml"
MANIFEST_FILE = "manifest.yaml"
SPLIT_FILE = "split.csv"
EXCLUSIONS_FILE = "exclusions.csv"
SHEET_PROBLEMS_FILE = "sheet_problems.csv"
SHEET_FACTS_FILE = "sheet_facts.csv"
"""What `sheet.facts` told of the run's files: the sheet itself may be gone when the run is evaluated."""
HISTORY_FILE = "history.csv"
MODEL_FILE = "model.json"
ENVIRONMENT_FILE = "environment.json"
CHECKPOINT_FILE = "checkpoint.pt"
INDEX_FOLDER = "index"
EVALUATION_FOLDER = "evaluation"


class ModelFacts(Settings):
    """`model.json`: a trained model, complete but for its weights."""

    name: str
    """The configuration's name."""
    radloop_version: str
    """That trained it."""
    intended_use: str = RESEARCH_ONLY
    """Said on every output."""
    notice: str = ""
    """Said beside it."""
    network: Network
    """Architecture, channels and head."""
    classes: list[str]
    """In the order of the probabilities."""
    positive: str
    """The finding, where there are two classes."""
    unit: Literal["image", "series", "study"]
    """What one prediction is about."""
    rules: Rules
    """Which images the model was trained on; inference applies the rules to the images of a series or study."""
    preprocessing: Preprocessing
    """The deterministic chain."""
    preprocessing_digest: str
    """sha256 of it."""
    path_to_unit_range: dict[str, str]
    """For each kind of input, how its values become 0-1."""
    input_mean: tuple[float, ...]
    """Subtracted from the 0-1 values, one a channel."""
    input_std: tuple[float, ...]
    """Then divided by."""
    weights_sha256: str
    """Of model.safetensors."""
    initial_weights: str
    """Where the training began: random, or a file."""
    initial_weights_sha256: str
    """Of that file."""
    best_epoch: int
    """Whose weights these are."""
    heatmap_scale: float
    """Evidence that has the full colour: one scale for the whole run, set on the validation split."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax."""
    threshold: float
    """Two classes: positive from this probability on."""
    split_sha256: str = ""
    """Of split.csv: figures of another split are none of this model's."""
    scope: dict[str, list[str]]
    """Index column → values seen in training; a case with another value is out of scope."""

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> ModelFacts:
        if self.positive not in self.classes:
            raise ValueError("positive: none of the classes")
        return self

    @property
    def digest(self) -> str:
        """Names this model: its weights and everything that changes what it says."""
        return hashlib.sha256(f"{self.weights_sha256}\x1f{digest(self)}".encode()).hexdigest()

    @property
    def positive_index(self) -> int | None:
        """Of two classes, the finding's; None where there are more."""
        return self.classes.index(self.positive) if len(self.classes) == 2 else None


def write_settings(run: Path, config: Config, manifest: Settings) -> None:
    """The configuration and manifest, every default written out."""
    write_whole(run / CONFIG_FILE, dump_yaml(config))
    write_whole(run / MANIFEST_FILE, dump_yaml(manifest))


def write_model(run: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> ModelFacts:
    """`model.safetensors`, then `model.json` with its checksum: a model.json is never there without its weights."""
    content = serialize_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    complete = ModelFacts(**facts, weights_sha256=hashlib.sha256(content).hexdigest())
    write_whole(run / WEIGHTS_FILE, content)
    write_whole(run / MODEL_FILE, complete.model_dump_json(indent=2) + "\n")
    return complete


def read_model(run: Path) -> ModelFacts:
    """The facts of a trained run, its weights verified; RunError says what is missing."""
    path = run / MODEL_FILE
    if not path.is_file():
        started = (run / CONFIG_FILE).is_file()
        raise RunError(
            f"{run}: no {MODEL_FILE}; "
            + ("its training has not ended: radloop train --resume" if started else "not a run of radloop train")
        )
    try:
        facts = parse_settings(ModelFacts, json.loads(path.read_text()), str(path))
    except (ValueError, ConfigError) as error:
        raise RunError(f"{path}: damaged, or of another radloop version: {error}") from error
    weights = run / WEIGHTS_FILE
    if not weights.is_file():
        raise RunError(f"{weights}: missing")
    if file_digest(weights) != facts.weights_sha256:
        raise RunError(
            f"{weights}: its sha256 is not the one in {MODEL_FILE}; these are other weights, or the file is damaged"
        )
    return facts


def read_config(run: Path) -> Config:
    """The run's resolved configuration."""
    return parse_settings(Config, read_yaml(run / CONFIG_FILE), str(run / CONFIG_FILE))


def read_manifest(run: Path) -> Manifest:
    """The manifest that the run was begun with."""
    return parse_settings(Manifest, read_yaml(run / MANIFEST_FILE), str(run / MANIFEST_FILE))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A CSV, whole."""
    write_whole(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV of a run as text, empty cells as ''; RunError if it is not there, or has not these columns."""
    if not path.is_file():
        raise RunError(f"{path}: missing; is the run complete?")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: damaged: {type(error).__name__}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise RunError(f"{path}: damaged: no column {', '.join(missing)}")
    return table


def write_environment(run: Path, device: torch.device, key: IdentityKey) -> None:
    """Versions that the figures depend on (`pixel_code`: of all that decides a prepared image), and which key patients were hashed
    with; no host or user names.
    """
    names = (
        "torch",
        "monai",
        "pytorch-ignite",
        "numpy",
        "pandas",
        "pydicom",
        "imagecodecs",
        "pillow",
        "nibabel",
        "highdicom",
        "scikit-learn",
    )
    environment = {
        "radloop": pipeline.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "identity_key": key.fingerprint,
        "pixel_code": code_version(),
        "packages": {name: metadata.version(name) for name in names},
    }
    write_whole(run / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")


def identity_fingerprint(run: Path) -> str:
    """Of the key that the run's patients were hashed with."""
    try:
        return str(json.loads((run / ENVIRONMENT_FILE).read_text())["identity_key"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run / ENVIRONMENT_FILE}: missing or damaged; is the run complete?") from error
