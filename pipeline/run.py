"""The run folder: what a training leaves and everything later reads.

`ModelFacts` is `model.json`: all that is needed to use the weights and to say what they are. Nothing here holds a patient's
identity. Files are written whole.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
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
from pipeline.config import (
    Config,
    Heatmap,
    Network,
    Preprocessing,
    Settings,
    digest,
    dump_yaml,
    parse_settings,
    read_yaml,
)
from pipeline.errors import ConfigError, RunError
from pipeline.files import file_digest, write_whole
from pipeline.identity import IdentityKey
from pipeline.manifest import Manifest, Rules
from pipeline.networks.model import WEIGHTS_FILE
from pipeline.prepared.cache_key import code_version

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
DATA_FILE = "data.json"
"""Of each split the images that the network saw, as a digest."""
CHECKPOINT_FILE = "checkpoint.pt"
INDEX_FOLDER = "index"
EVALUATION_FOLDER = "evaluation"
BUNDLE_METADATA = Path("configs/metadata.json")
BUNDLE_MODELS = "models"
"""Of a bundle the folder that has what inference needs of a run."""


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
    """Of model.safetensors; of an ensemble: of its members' sha256s, joined by newlines."""
    initial_weights: str
    """Where the training began: random, or a file."""
    initial_weights_sha256: str
    """Of that file."""
    best_epoch: int
    """Whose weights these are."""
    heatmap: Heatmap = "weights"
    """How heatmaps are made."""
    heatmap_scale: float
    """Evidence that has the full colour."""
    heatmap_scale_of: Literal["run", "image"] = "run"
    """run: one scale for the whole run, set on the validation split. image: each map has its own, as what it shows has no unit that two
    images share; it is a share of the map's own maximum, and `heatmap_scale` is 1."""
    several: bool = False
    """Whether a case may have several of the classes at once, or none: each then has its own probability."""
    views: Literal["none", "flip_horizontal", "flips"] = "none"
    """Mirror images over which predictions and heatmaps are means."""
    members: list[str] = []
    """The folders of an ensemble's runs, relative to this one; none where the model is one network."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax (of several labels: the sigmoid)."""
    thresholds: dict[str, float]
    """Finding → from which probability on it is called: of two classes the positive one, of several labels at once each. Of many classes
    none: the most probable is called."""
    threshold_rule: str = ""
    """How the thresholds were chosen."""
    split_sha256: str = ""
    """Of split.csv: figures of another split are none of this model's."""
    scope: dict[str, list[str]]
    """Index column → values seen in training; a case with another value is out of scope."""

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> ModelFacts:
        if self.positive not in self.classes:
            raise ValueError("positive: none of the classes")
        if sorted(self.thresholds) != sorted(self.findings):
            raise ValueError(f"thresholds: expected one for each of {', '.join(self.findings) or 'no class'}")
        return self

    @property
    def digest(self) -> str:
        """Names this model: its weights and everything that changes what it says."""
        return hashlib.sha256(f"{self.weights_sha256}\x1f{digest(self)}".encode()).hexdigest()

    @property
    def positive_index(self) -> int | None:
        """Of two classes, the finding's; None where there are more, or several at once."""
        return self.classes.index(self.positive) if len(self.classes) == 2 and not self.several else None

    @property
    def findings(self) -> list[str]:
        """The classes that are called by a threshold."""
        return findings_of(self.classes, self.positive, self.several)

    @property
    def threshold(self) -> float:
        """The positive class's; 0.5 where there are many classes, of which the most probable is called."""
        return self.thresholds.get(self.positive, 0.5)


def findings_of(classes: Sequence[str], positive: str, several: bool) -> list[str]:
    """The classes that are called by a threshold: the positive one of two, each of several at once, none of many."""
    return list(classes) if several else [positive] if len(classes) == 2 else []


def write_settings(run: Path, config: Config, manifest: Settings) -> None:
    """The configuration and manifest, every default written out."""
    write_whole(run / CONFIG_FILE, dump_yaml(config))
    write_whole(run / MANIFEST_FILE, dump_yaml(manifest))


def write_model(run: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> ModelFacts:
    """`model.safetensors`, then `model.json` with its checksum: a model.json is never there without its weights."""
    content = serialize_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    complete = ModelFacts(**facts, weights_sha256=hashlib.sha256(content).hexdigest())
    _forget_figures_of_others(run, complete)
    write_whole(run / WEIGHTS_FILE, content)
    write_whole(run / MODEL_FILE, complete.model_dump_json(indent=2) + "\n")
    return complete


def write_ensemble(run: Path, facts: Mapping[str, Any], members: Sequence[ModelFacts]) -> ModelFacts:
    """`model.json` of networks that speak as one; `facts["members"]` are their folders, in the order of `members`."""
    complete = ModelFacts(**facts, weights_sha256=joint_sha256(members))
    _forget_figures_of_others(run, complete)
    write_whole(run / MODEL_FILE, complete.model_dump_json(indent=2) + "\n")
    return complete


def _forget_figures_of_others(run: Path, facts: ModelFacts) -> None:
    """Figures of weights that are no more go; those of this very model stay, as where a training that had ended is resumed."""
    try:
        same = read_model(run).digest == facts.digest
    except RunError:
        same = False
    if not same:
        shutil.rmtree(run / EVALUATION_FOLDER, ignore_errors=True)


def joint_sha256(members: Sequence[ModelFacts]) -> str:
    """Of an ensemble's weights."""
    return hashlib.sha256("\n".join(member.weights_sha256 for member in members).encode()).hexdigest()


def run_folder(given: Path) -> Path:
    """Where the model is: the folder itself, or where it is a MONAI bundle that radloop made, that of its models."""
    return given / BUNDLE_MODELS if (given / BUNDLE_METADATA).is_file() else given


def read_model(run: Path) -> ModelFacts:
    """The facts of a trained run, its weights (an ensemble's: its members') verified; RunError says what is missing."""
    path = run / MODEL_FILE
    if not path.is_file():
        started = (run / CONFIG_FILE).is_file()
        raise RunError(
            f"{run}: no {MODEL_FILE}; "
            + ("its training has not ended: radloop train --resume" if started else _not_a_run(run))
        )
    try:
        facts = parse_settings(ModelFacts, json.loads(path.read_text()), str(path))
    except (ValueError, ConfigError) as error:
        raise RunError(f"{path}: damaged, or of another radloop version (then train again): {error}") from error
    if facts.members:
        _check_members(run, facts)
    else:
        _check_weights(run / WEIGHTS_FILE, facts)
    return facts


def member_folders(run: Path, facts: ModelFacts) -> list[Path]:
    """The folders of a model's networks: its own, or those of an ensemble's members."""
    return [run / name for name in facts.members] or [run]


def _check_weights(weights: Path, facts: ModelFacts) -> None:
    if not weights.is_file():
        raise RunError(f"{weights}: missing")
    if file_digest(weights) != facts.weights_sha256:
        raise RunError(
            f"{weights}: its sha256 is not the one in {MODEL_FILE}; these are other weights, or the file is damaged"
        )


def _check_members(run: Path, facts: ModelFacts) -> None:
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in facts.members):
        raise RunError(f"{run / MODEL_FILE}: damaged: members are expected to be folders below {run}")
    members = [read_model(folder) for folder in member_folders(run, facts)]
    if joint_sha256(members) != facts.weights_sha256:
        raise RunError(f"{run}: its members' weights are not those that {MODEL_FILE} was made of; train it again")


def _not_a_run(folder: Path) -> str:
    """That it is none, and which folder in it is."""
    inside = sorted(path.parent for path in folder.glob(f"*/{MODEL_FILE}")) if folder.is_dir() else []
    return "not a run of radloop train" + (f"; did you mean {inside[0]}?" if inside else "")


def read_config(run: Path) -> Config:
    """The run's resolved configuration; RunError where the folder is none."""
    if not (run / CONFIG_FILE).is_file():
        raise RunError(f"{run}: no {CONFIG_FILE}; {_not_a_run(run)}")
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
        "scipy",
        "timm",
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
