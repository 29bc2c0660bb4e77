"""A run in words: no setting that is on goes unsaid, none that is off is spoken of."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import Augmentation, Config, Enhancement, parse_settings
from pipeline.manifest import Manifest, Rules
from pipeline.pages.run_words import (
    architecture_words,
    augmentation_words,
    disjoint_words,
    environment_words,
    pooling_words,
    preprocessing_words,
    rules_words,
    split_words,
    temperature_words,
    threshold_words,
    training_words,
    weights_words,
)
from tests.run_reports import model_facts

SMALL = {"median": 3, "remove_low": 0.1, "remove_high": 0.3, "gaussian": 1.0, "clahe": 2.0}


def _config(**groups: Any) -> Config:
    return parse_settings(Config, {"name": "x", "manifest": "m", **groups}, "test")


def _manifest(**others: Any) -> Manifest:
    content = {"name": "x", "classes": ["a", "b"], "sources": [{"path": "p"}], "labels": {"source": "folder"}}
    return parse_settings(Manifest, content | others, "test")


@pytest.mark.parametrize("name", Augmentation.model_fields)
def test_each_augmentation_is_said(name: str):
    assert augmentation_words(Augmentation()) == []
    assert len(augmentation_words(Augmentation(**{name: 0.25}))) == 1
    assert "25" in augmentation_words(Augmentation(**{name: 0.25}))[0] or name == "coarse"


@pytest.mark.parametrize("name", Enhancement.model_fields)
def test_each_enhancement_is_said(name: str):
    plain = preprocessing_words(model_facts())
    said = preprocessing_words(model_facts(preprocessing={"size": 64, "enhancement": {name: SMALL[name]}}))
    (more,) = [one for one in said if one not in plain]
    assert str(SMALL[name]) in more


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crop": "lungs"}, "cropped to the lungs"),
        ({"resize": "stretch"}, "64 × 64 pixels, stretched"),
        ({"scaling": "percentile", "percentiles": [2, 98]}, "percentiles 2 and 98"),
        ({"scaling": "z_score", "normalization": "none"}, "standard deviation 1"),
        ({"normalization": {"mean": [0.4], "std": [0.2]}}, "means 0.4"),
    ],
)
def test_the_chain_is_said(settings: dict[str, Any], said: str):
    words = "; ".join(preprocessing_words(model_facts(preprocessing={"size": 64, **settings})))
    assert said in words


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"ema": 0.99}, "decay 0.99"),
        ({"mixup": 0.2}, "0.2"),
        ({"clip_gradient": 1.5}, "norm 1.5"),
        ({"accumulate": 2}, "32 in 2 parts"),
        ({"focal_gamma": 2.0}, "focal, gamma 2"),
        ({"label_smoothing": 0.1}, "label smoothing 0.1"),
        ({"class_weights": "none", "sampling": "balanced"}, "as many images of each class"),
        ({"optimizer": "sgd", "momentum": 0.8}, "Nesterov momentum 0.8"),
        ({"layer_decay": 0.7}, "at 0.7 of the next"),
        ({"plateau": None, "cosine": {"warmup_epochs": 2.0}}, "rise over 2 epochs"),
        ({"plateau": None}, "constant"),
        ({"max_minutes": 6.0}, "at most 6 minutes"),
        ({"select": "last", "early_stopping": None}, "the last epoch"),
    ],
)
def test_the_training_is_said(training: dict[str, Any], said: str):
    plain = "; ".join(training_words(_config()).values())
    words = "; ".join(training_words(_config(training=training)).values())
    assert said in words
    assert words != plain


HEAD = {"weights": "start.pth", "trainable": "head"}


@pytest.mark.parametrize(
    ("network", "training", "name", "said"),
    [
        (HEAD, {}, "Augmentation", "none"),
        (HEAD, {"feature_copies": 3}, "Augmentation", "3 varied copies of each image: noise up to 0.1"),
        ({}, {}, "Augmentation", "noise up to 0.1"),
        ({}, {"epochs": 10, "plain_share": 0.3}, "Augmentation", "noise up to 0.1; in the last 3 epochs only mirrored"),
        (
            {"weights": "start.pth"},
            {"unfreeze_every": 2},
            "Trained part",
            "the head first, one stage more every 2 epochs",
        ),
        ({"batch_norm": "keep"}, {}, "Batch norm", "that the weights came with"),
    ],
)
def test_what_was_varied_and_trained_is_said(network: dict[str, Any], training: dict[str, Any], name: str, said: str):
    words = training_words(_config(network=network, training=training, augmentation={"noise": 0.1}))
    assert said in words[name]


def test_the_network_and_its_start_are_said():
    facts = model_facts(
        network={"architecture": "timm:vgg16", "channels": 3, "head": "conv", "dropout": 0.5, "pooling": "attention"},
        initial_weights="vgg16.pth",
        initial_weights_sha256="ab" * 32,
    )
    words = architecture_words(facts.network)
    for part in ("vgg16 (timm)", "3 input channels", "convolution to 512 channels", "dropout 0.5"):
        assert part in words
    assert weights_words(facts) == f"vgg16.pth (sha256 {'ab' * 32})"
    assert "attention-weighted" in pooling_words(facts)
    assert pooling_words(model_facts(unit="image")) == ""


def test_decisions_are_said():
    assert threshold_words(model_facts(), _config()) == "opacity from 0.4 on; chosen on the validation split"
    assert threshold_words(model_facts(("a", "b", "c")), _config()) == "the most probable class is predicted"
    unsaid = model_facts(threshold_rule="")
    rules = {0.4: "set beforehand", "youden": "Youden's index"}
    for rule, said in rules.items():
        assert said in threshold_words(unsaid, _config(evaluation={"threshold": rule}))
    wanted = _config(evaluation={"threshold": {"sensitivity": 0.95}})
    assert "a sensitivity of 0.95 at least" in threshold_words(unsaid, wanted)
    assert temperature_words(model_facts(), _config(evaluation={"calibration": "none"})) == "not calibrated"
    assert temperature_words(model_facts(temperature=1.0), _config()).startswith("1")


def test_the_split_is_said():
    assert "60% training, 20% validation, 20% test" in split_words(_manifest())
    assert "in 5 folds" in split_words(_manifest(split={"folds": 5, "fold": "all"}))
    assert "given by a file" in split_words(_manifest(split={"file": "split.csv"}))
    assert "no patient stands in two splits" in disjoint_words(_manifest())
    blocks = {"source": "blocks", "blocks": {"pattern": r"(\d+)", "size": 10}}
    assert "not proven" in disjoint_words(_manifest(patients=blocks))


def test_rules_are_said():
    rules = Rules.model_validate(
        {
            "include": {"modality": "CT", "slice_thickness": {"min": 1, "max": 3}},
            "exclude": {"series_description": {"pattern": "scout"}},
            "series": "thinnest",
        }
    )
    assert rules_words(rules) == [
        "in: modality CT",
        "in: slice thickness from 1 to 3",
        "out: series description like scout",
        "one series a study: thinnest",
    ]


def test_an_environment_that_is_not_known_says_nothing():
    assert environment_words({}) == ""
    assert (
        environment_words({"python": "3.12", "packages": {"torch": "2.6"}, "device": "cpu"})
        == "Python 3.12, torch 2.6; cpu"
    )
