"""What a run folder must be for a training to begin in it, or to go on: begun with the same data, settings and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.cohort.cases import Cases
from pipeline.cohort.split import SPLIT_COLUMNS, Split, check_split
from pipeline.columns import matches, text
from pipeline.config import Config, Preprocessing, digest
from pipeline.errors import RunError
from pipeline.identity import IdentityKey
from pipeline.manifest import Manifest
from pipeline.networks.model import WEIGHTS_FILE
from pipeline.progress import say
from pipeline.run import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SPLIT_FILE,
    identity_fingerprint,
    read_config,
    read_manifest,
    read_model,
    read_table,
)  # fmt: skip
from pipeline.wording import counted


def check_folder(out: Path, config: Config, manifest: Manifest, key: IdentityKey, resume: bool) -> None:
    """A folder of another training is left alone; one that is resumed must have been begun with the same data and settings."""
    if not (out / CONFIG_FILE).exists():
        if resume:
            say(f"{out}: nothing to resume, starting")
        return
    if not resume:
        what = (
            "a trained run; give"
            if (out / MODEL_FILE).exists()
            else "a training that was begun; go on with --resume, or give"
        )
        raise RunError(f"{out}: holds {what} another --out, or remove it")
    if digest(_comparable(read_config(out), config)) != digest(config):
        raise RunError(
            f"{out}: was begun with another configuration ({CONFIG_FILE}); only epochs and max_minutes may differ"
        )
    if digest(read_manifest(out)) != digest(manifest):
        raise RunError(f"{out}: was begun with another manifest ({MANIFEST_FILE}); train into another --out")
    if identity_fingerprint(out) != key.fingerprint:
        raise RunError(
            f"{out}: its patients were hashed under another key; restore the project's key, or train into another --out"
        )


def _comparable(begun: Config, now: Config) -> Config:
    """As begun, but with what may differ as it is now."""
    same = {"epochs": now.training.epochs, "max_minutes": now.training.max_minutes}
    return begun.model_copy(update={"training": begun.training.model_copy(update=same)})


def resumed_split(cases: Cases, out: Path) -> Split:
    """The split that the run was begun with; its labels and patients must still be the data's."""
    split = read_table(out / SPLIT_FILE, SPLIT_COLUMNS)
    check_split(split)
    places = pd.Index(text(cases.cases["case_id"])).get_indexer(pd.Index(split["case_id"]))
    for column, noun in (("label", "label"), ("patient_key", "patient")):
        now = text(cases.cases[column]).to_numpy()[places]
        changed = int(((places < 0) | (now != split[column].to_numpy())).sum())
        if changed:
            raise RunError(
                f"{out / SPLIT_FILE}: expected the data that the training was begun with; the {noun} of {counted(changed, 'case')} "
                "is another now, or the case is gone; train into another --out"
            )
    return Split(split)


def earlier_run(config: Config) -> Path | None:
    """The run that `network.weights` names, by its folder or by its weights; None where they are from elsewhere."""
    given = Path(config.network.weights).expanduser()
    folder = given if given.is_dir() else given.parent if given.name == WEIGHTS_FILE else None
    return folder if folder is not None and (folder / MODEL_FILE).is_file() else None


def tells_other_classes(run: Path, manifest: Manifest) -> bool:
    """Whether an earlier run's head is about something else, so that none of its outputs means what ours shall."""
    facts = read_model(run)
    return (facts.classes, facts.several) != (manifest.classes, manifest.labels.several)


def start_warnings(config: Config) -> tuple[str, ...]:
    """Where the weights come from a run that saw other numbers: its features, frozen above all, may then say nothing."""
    start = earlier_run(config)
    if start is None:
        return ()
    before, now = (_what_numbers_mean(settings) for settings in (read_model(start).preprocessing, config.preprocessing))
    other = [name for name, value in now.items() if before.get(name) != value]
    return (f"the weights of {start} were trained with another preprocessing.{' and .'.join(other)}",) if other else ()


def _what_numbers_mean(preprocessing: Preprocessing) -> dict[str, Any]:
    """The settings that decide what a value of the network's input stands for, whatever its size."""
    settings = preprocessing.model_dump(exclude={"size", "resize"})
    return settings if preprocessing.scaling == "percentile" else settings | {"percentiles": None}


def window_warnings(config: Config, cases: Cases) -> tuple[str, ...]:
    """Three windows where nothing is in HU: three channels that are all the same."""
    if not isinstance(config.preprocessing.window, tuple) or matches(cases.images["modality"], "CT".__eq__).any():
        return ()
    return (
        "preprocessing.window: three windows are for CT, of which there is none here; all three channels are the same",
    )
