"""A run in sentences, for the report, the model card and the checklist: what each setting did, without its key.

In: the settings that are stored with a run. Out: plain text, sentences without a full stop where a list holds them. What is off is not
spoken of. Names come as they are: who writes them into a page or a Markdown file escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Augmentation, Config, CustomNormalization, CustomWindow, Network, Preprocessing, Wanted
from pipeline.manifest import Condition, Manifest, Rules
from pipeline.run import ModelFacts
from pipeline.wording import counted

PATIENTS = {
    "dicom": "PatientID in the headers",
    "column": "a column of the label sheet",
    "path": "the files' paths",
    "blocks": "blocks of consecutive numbers, which stand in for patients",
}
"""How patients are told apart, by `patients.source`."""
LABELS = {"folder": "the folder of the file", "sheet": "a label sheet", "attribute": "an attribute of the header"}
RESIZED = {
    "fit": "in the anatomy's proportions, padded with black",
    "stretch": "stretched along both sides",
    "crop": "by the shorter side, the centre kept",
}
SELECTED = {
    "val_loss": "the lowest validation loss",
    "val_accuracy": "the highest validation accuracy",
    "val_auroc": "the highest validation AUROC",
    "last": "the last epoch",
}
POOLED = {
    "mean": "mean of the images' probabilities",
    "attention": "attention-weighted mean of the images' logits (Ilse 2018)",
    "volume": "one 3D network over the volume",
}
POOLINGS_OF_ONE = ("mean",)
"""Of which nothing is to be said where a case is one image."""


def architecture_words(network: Network) -> str:
    """resnet50, 1 input channel, dropout 0.2 before the last layer."""
    name = network.architecture.removeprefix("timm:")
    by = "timm" if network.architecture.startswith("timm:") else "MONAI"
    parts = [f"{name} ({by})", counted(network.channels, "input channel")]
    if network.head == "conv":
        parts.append(f"a convolution to {network.head_channels} channels with batch norm and ReLU before the head")
    parts.append("linear layer after global average pooling")
    if network.dropout:
        parts.append(f"dropout {network.dropout:g} before it")
    return ", ".join(parts)


def pooling_words(facts: ModelFacts) -> str:
    """How the images of a case become one prediction; '' where a case is one image."""
    pooling = facts.network.pooling
    return "" if facts.unit == "image" and pooling in POOLINGS_OF_ONE else POOLED[pooling]


def views_words(facts: ModelFacts) -> str:
    """Test-time augmentation; '' where there is none."""
    return "" if facts.views == "none" else f"mean over mirror images ({facts.views.replace('_', ' ')})"


def weights_words(facts: ModelFacts) -> str:
    """Where the training began."""
    if not facts.initial_weights_sha256:
        return "random" if facts.initial_weights == "random" else facts.initial_weights
    return f"{facts.initial_weights} (sha256 {facts.initial_weights_sha256})"


def preprocessing_words(facts: ModelFacts) -> list[str]:
    """The deterministic chain, step by step."""
    settings = facts.preprocessing
    kinds = {"HU": "CT", "modality": "Other DICOM", "fraction": "PNG, JPEG, TIFF"}
    steps = [f"{kinds.get(kind, kind)}: {words}" for kind, words in facts.path_to_unit_range.items()]
    if not steps:
        steps.append(f"window {_window_words(settings)}")
    if settings.crop != "none":
        steps.append(f"cropped to the {settings.crop}")
    steps.append(f"resized to {settings.size} × {settings.size} pixels, {RESIZED[settings.resize]}")
    return [*steps, *_scaling_words(settings), *_enhancement_words(settings), *_normalization_words(settings)]


def _window_words(settings: Preprocessing) -> str:
    windows = settings.window if isinstance(settings.window, tuple) else (settings.window,)
    told = [f"{one.center:g}/{one.width:g} HU" if isinstance(one, CustomWindow) else one for one in windows]
    return ", ".join(told)


def _scaling_words(settings: Preprocessing) -> list[str]:
    low, high = settings.percentiles
    words = {
        "min_max": "each image's minimum to 0 and maximum to 1",
        "percentile": f"each image's percentiles {low:g} and {high:g} to 0 and 1",
        "z_score": "each image to mean 0 and standard deviation 1",
    }
    return [words[settings.scaling]] if settings.scaling in words else []


def _enhancement_words(settings: Preprocessing) -> list[str]:
    given = settings.enhancement
    words = {
        "median": f"median filter of {given.median} pixels",
        "gaussian": f"Gaussian filter, standard deviation {given.gaussian} pixels",
        "remove_low": f"frequencies below {given.remove_low} cycles a pixel removed",
        "remove_high": f"frequencies above {given.remove_high} cycles a pixel removed",
        "clahe": f"contrast-limited adaptive histogram equalization, clip limit {given.clahe}",
    }
    return [text for name, text in words.items() if getattr(given, name) is not None]


def _normalization_words(settings: Preprocessing) -> list[str]:
    given = settings.normalization
    if isinstance(given, CustomNormalization):
        return [f"normalised by means {_listed(given.mean)} and standard deviations {_listed(given.std)}"]
    return ["normalised by ImageNet's mean and standard deviation"] if given == "imagenet" else []


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def augmentation_words(given: Augmentation) -> list[str]:
    """What varies at random in training."""
    words = {
        "flip_horizontal": f"left-right mirror (probability {given.flip_horizontal:g})",
        "flip_vertical": f"upside-down mirror (probability {given.flip_vertical:g})",
        "zoom": f"zoom ±{given.zoom:.0%}",
        "stretch": f"proportions ±{given.stretch:.0%}",
        "shift": f"shift ±{given.shift:.0%} of the side",
        "rotate": f"rotation ±{given.rotate:g}°",
        "contrast": f"contrast ±{given.contrast:.0%}",
        "window": f"black and white points ±{given.window:g}",
        "gamma": f"gamma, log within ±{given.gamma:g}",
        "blur": f"blur up to {given.blur:g} pixels",
        "sharpen": f"sharpening up to {given.sharpen:g}",
        "coarse": f"resolution down to {1 - given.coarse:.0%}",
        "noise": f"noise up to {given.noise:g}",
        "cutout": f"cutout of up to {given.cutout:.0%} of the side",
        "plain": f"{given.plain:.0%} only moved",
    }
    return [text for name, text in words.items() if getattr(given, name)]


def training_words(config: Config) -> dict[str, str]:
    """Settings of the training, by what they are about."""
    given, network = config.training, config.network
    minutes = f", at most {given.max_minutes:g} minutes" if given.max_minutes else ""
    stopping = f"; stopped after {given.early_stopping} epochs without a better one" if given.early_stopping else ""
    parts = f" in {given.accumulate} parts" if given.accumulate > 1 else ""
    words = {
        "Epochs": f"at most {given.epochs}{minutes}{stopping}",
        "Epoch kept": f"{SELECTED[given.select]} on the validation split"
        if given.select != "last"
        else SELECTED["last"],
        "Optimizer": _optimizer_words(config),
        "Schedule": _schedule_words(config),
        "Batch": f"{given.batch_size}{parts}",
        "Loss": _loss_words(config),
        "Augmentation": _variation_words(config),
    }
    if network.trainable != "all" or given.unfreeze_every:
        words["Trained part"] = _trainable_words(config)
    if network.batch_norm == "keep":
        words["Batch norm"] = "with the statistics that the weights came with"
    extras = {"Weights' moving average": f"decay {given.ema:g}" if given.ema else "", "Mixup": f"{given.mixup:g}"}
    return words | {name: text for name, text in extras.items() if text not in ("", "0")}


def _variation_words(config: Config) -> str:
    """What varied in fact: of features that are computed once, the copies, or nothing."""
    copies, told = config.training.feature_copies, ", ".join(augmentation_words(config.augmentation))
    if not config.features_are_kept or not told:
        plain = config.training.plain_epochs
        return f"{told}; in the last {counted(plain, 'epoch')} only mirrored" if told and plain else told or "none"
    return f"{copies} varied {'copy' if copies == 1 else 'copies'} of each image: {told}" if copies else "none"


def _optimizer_words(config: Config) -> str:
    given = config.training
    names = {"adam": "Adam", "adamw": "AdamW", "sgd": f"SGD with Nesterov momentum {given.momentum:g}"}
    parts = [names[given.optimizer], f"learning rate {given.learning_rate:g}"]
    if given.layer_decay < 1:
        parts.append(f"each stage before the head at {given.layer_decay:g} of the next one's")
    if given.weight_decay:
        parts.append(f"weight decay {given.weight_decay:g}")
    if given.clip_gradient:
        parts.append(f"gradient clipped at norm {given.clip_gradient:g}")
    return ", ".join(parts)


def _schedule_words(config: Config) -> str:
    plateau, cosine = config.training.plateau, config.training.cosine
    if plateau:
        return (
            f"learning rate × {plateau.factor:g} after more than {counted(plateau.patience, 'epoch')} without a lower "
            f"validation loss, down to {plateau.minimum:g}"
        )
    if cosine:
        return f"cosine to {cosine.minimum:g} of it, after a rise over {cosine.warmup_epochs:g} epochs"
    return "constant"


def _loss_words(config: Config) -> str:
    given = config.training
    parts = [f"focal, gamma {given.focal_gamma:g}" if given.focal_gamma else "cross-entropy"]
    if given.class_weights == "balanced":
        parts.append("each class counts alike")
    if given.sampling == "balanced":
        parts.append("as many images of each class drawn")
    if given.label_smoothing:
        parts.append(f"label smoothing {given.label_smoothing:g}")
    return ", ".join(parts)


def _trainable_words(config: Config) -> str:
    part = config.network.trainable
    words = (
        "the head alone"
        if part in ("head", 1)
        else "all of it"
        if part == "all"
        else f"from {part} on"
        if isinstance(part, str)
        else f"the last {part} stages"
    )
    every = config.training.unfreeze_every
    return f"the head first, one stage more every {counted(every, 'epoch')}, in the end {words}" if every else words


def threshold_words(facts: ModelFacts, config: Config) -> str:
    """What is called, and how the threshold came about."""
    if not facts.thresholds:
        return "the most probable class is predicted"
    told = [f"{name} from {value:.3g} on" for name, value in facts.thresholds.items()]
    return f"{', '.join(told)}; {facts.threshold_rule or _rule_words(config.evaluation.threshold)}"


def _rule_words(rule: float | str | Wanted) -> str:
    if isinstance(rule, Wanted):
        name, value = ("sensitivity", rule.sensitivity) if rule.sensitivity else ("specificity", rule.specificity)
        return f"chosen on the validation split for a {name} of {value:g} at least"
    return "chosen on the validation split by Youden's index" if rule == "youden" else "set beforehand"


def temperature_words(facts: ModelFacts, config: Config) -> str:
    if config.evaluation.calibration == "none":
        return "not calibrated"
    if facts.temperature == 1.0:
        return "1: the logits as they are"
    return f"logits divided by {facts.temperature:.3g}, chosen on the validation split (Guo 2017)"


def scope_words(scope: Mapping[str, Sequence[str]]) -> list[str]:
    """Modality CT; body part CHEST."""
    names = {"format": "file format", "body_part_examined": "body part", "view_position": "view"}
    return [
        f"{names.get(name, name)} {' or '.join(value or 'not known' for value in values)}"
        for name, values in scope.items()
    ]


def split_words(manifest: Manifest) -> str:
    """How patients were divided."""
    rule, seed = manifest.split, f"seed {manifest.split.seed}"
    if rule.file:
        others = "left out" if rule.others == "leave_out" else "divided at random"
        return f"given by a file; patients that it does not name were {others}"
    shares = f"{rule.train:.0%} training, {rule.validation:.0%} validation, {rule.test:.0%} test"
    folds = f"; training and validation together in {rule.folds} folds" if rule.folds else ""
    return f"at random within each class: {shares}{folds} ({seed})"


def disjoint_words(manifest: Manifest) -> str:
    """At which level no two splits share anything."""
    source = manifest.patients.source
    if source == "blocks":
        return "by blocks of consecutive numbers, which stand in for patients: that patients are disjoint is not proven"
    joined = "; patients with near-duplicate images count as one" if manifest.patients.near_duplicates else ""
    return f"by patient (known from {PATIENTS[source]}): no patient stands in two splits{joined}"


def rules_words(rules: Rules) -> list[str]:
    """What had to hold for an image to be in, and what left it out."""
    inside = [f"in: {name.replace('_', ' ')} {_condition_words(one)}" for name, one in rules.include.items()]
    outside = [f"out: {name.replace('_', ' ')} {_condition_words(one)}" for name, one in rules.exclude.items()]
    series = [] if rules.series == "all" else [f"one series a study: {rules.series.replace('_', ' ')}"]
    return [*inside, *outside, *series]


def _condition_words(one: Condition) -> str:
    if one.values:
        return " or ".join(value or "not known" for value in one.values)
    if one.pattern:
        return f"like {one.pattern}"
    bounds = [f"{word} {bound}" for word, bound in (("from", one.min), ("to", one.max)) if bound is not None]
    return " ".join(bounds)


def labels_words(manifest: Manifest) -> str:
    several = "; several findings at once are possible" if manifest.labels.several else ""
    return f"read from {LABELS[manifest.labels.source]}{several}"


def environment_words(environment: Mapping[str, Any]) -> str:
    """Python 3.12.3, torch 2.6.0, … on cpu."""
    packages = environment.get("packages") or {}
    told = [f"{name} {version}" for name, version in packages.items()]
    python = [f"Python {environment['python']}"] if environment.get("python") else []
    device = f"; {environment['device']}" if environment.get("device") else ""
    return ", ".join([*python, *told]) + device if told or python else ""
