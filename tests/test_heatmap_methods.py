"""Heatmaps by the grad-cam package: what each method's paper says, of every kind of network, with the package's own numbers behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.config import HEATMAPS, Config, Heatmap, Network, Preprocessing, load_config
from pipeline.errors import ConfigError
from pipeline.manifest import Rules
from pipeline.networks.model import Classifier, VolumeClassifier, new_network
from pipeline.prediction.attended import attended
from pipeline.prediction.explain import class_contrast, class_evidence, evidence_unit, method_words, scale_of
from pipeline.prediction.heatmap_methods import method_evidence, own_share
from pipeline.prediction.pooling import pool_cases
from pipeline.prediction.predict import ImageResult, TrainedModel, trained_model
from pipeline.prepared.dataset import ImageFile
from pipeline.profile_settings import load_profile
from pipeline.run import ModelFacts, findings_of
from pipeline.training.choices import validated

SIZE = 64
CPU = torch.device("cpu")
ROUNDING = 1e-5
"""Of float32, as a share of the largest evidence."""
PACKAGES = [method for method in HEATMAPS if method != "weights"]
NETWORKS = {
    "resnet": Network(architecture="resnet18"),
    "conv head": Network(architecture="timm:test_resnet", head="conv", head_channels=16),
    "timm, channels last": Network(architecture="timm:test_convnext2"),
    "timm, tokens": Network(architecture="timm:test_vit", channels=3),
    "attention": Network(architecture="timm:test_resnet", pooling="attention", bag_size=2),
    "volume": Network(architecture="resnet18", pooling="volume", bag_size=64),
}


def _network(network: Network, classes: int = 2, seed: int = 0) -> Classifier | VolumeClassifier:
    torch.manual_seed(seed)
    built = new_network(network, classes, SIZE).eval()
    torch.nn.init.normal_(built.head.weight, std=0.3)
    torch.nn.init.normal_(built.head.bias)
    return built


def _images(network: Network, count: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    depth = (64,) if network.pooling == "volume" else ()
    return torch.randn(count, network.channels, *depth, SIZE, SIZE)


def _facts(classes: tuple[str, ...] = ("a", "b"), **given: object) -> ModelFacts:
    several = bool(given.get("several", False))
    told = {
        "name": "t", "radloop_version": "0", "network": Network(architecture="timm:test_resnet"), "classes": list(classes),
        "positive": classes[-1], "unit": "series", "rules": Rules(), "preprocessing": Preprocessing(size=SIZE),
        "preprocessing_digest": "", "path_to_unit_range": {}, "input_mean": (0.5,), "input_std": (0.25,), "weights_sha256": "",
        "initial_weights": "", "initial_weights_sha256": "", "best_epoch": 1, "heatmap_scale": 1.0, "scope": {},
        "thresholds": dict.fromkeys(findings_of(classes, classes[-1], several), 0.5),
    }  # fmt: skip
    return ModelFacts(**(told | given))


def _model(classes: tuple[str, ...] = ("a", "b"), members: int = 1, **given: object) -> TrainedModel:
    facts = _facts(classes, **given)
    return trained_model([_network(facts.network, len(classes), seed) for seed in range(members)], facts, CPU)


def _levels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (count, 1, SIZE, SIZE), dtype=np.uint16)


# What each method says


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("classes", "several"), [(2, False), (4, False), (3, True)])
def test_grad_cam_and_hirescam_are_the_classifiers_weights_without_its_bias(kind: str, classes: int, several: bool):
    """The head is linear after global average pooling, whatever comes before it: the gradient is its weights, at every cell."""
    network, images = _network(NETWORKS[kind], classes), _images(NETWORKS[kind])
    with torch.inference_mode():
        features = network.features(images)
        weights = class_evidence(features, network.head.weight, torch.zeros(classes), several=several)
    for method in ("gradcam", "hirescam"):
        found = method_evidence(method, network, images, features, several=several)
        assert found.dtype == torch.float32
        assert float((found - weights).abs().max()) < ROUNDING * float(weights.abs().max())


@pytest.mark.parametrize("kind", NETWORKS)
def test_layercam_is_what_positive_gradients_add(kind: str):
    network, images = _network(NETWORKS[kind]), _images(NETWORKS[kind])
    with torch.inference_mode():
        features = network.features(images)
        margin = class_contrast(network.head.weight, several=False)
        expected = torch.einsum("bc...,kc->bk...", features, margin.clamp(min=0))
    found = method_evidence("layercam", network, images, features, several=False)
    assert float((found - expected).abs().max()) < ROUNDING * float(expected.abs().max())


def test_grad_cam_plus_plus_is_the_papers_although_gradients_are_small():
    """Chattopadhay 2018, equation 19, without the constant that the package adds: for this head it would outweigh squared gradients."""
    torch.manual_seed(0)
    network = Classifier(Network(architecture="timm:test_resnet"), 2, SIZE).eval()
    torch.nn.init.normal_(network.head.weight, std=0.001)
    images = _images(NETWORKS["attention"])
    with torch.no_grad():
        features = network.features(images).relu()
    cells = features.shape[2] * features.shape[3]
    activations = features.double().numpy()
    gradient = class_contrast(network.head.weight, several=False)[1].detach().double().numpy() / cells
    assert np.median(gradient**2) < 1e-6, "or the constant would not matter"
    sums = activations.sum(axis=(2, 3))
    alpha = gradient**2 / (2 * gradient**2 + sums * gradient**3)
    weights = cells * np.maximum(gradient, 0) * alpha
    expected = (weights[:, :, None, None] * activations).sum(axis=1)
    found = method_evidence("gradcam++", network, images, features, several=False)[:, 1].numpy()
    np.testing.assert_allclose(found, expected, atol=ROUNDING * expected.max())


def test_score_cam_weighs_channels_by_what_the_masked_image_says():
    """Wang 2020: the image, masked by each channel; a softmax over the channels of what the network says of each."""
    network = _network(NETWORKS["attention"], 3)
    images = _images(NETWORKS["attention"])
    with torch.no_grad():
        features = network.features(images)
        masks = functional.interpolate(features, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
        low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
        masks = (masks - low) / (high - low + 1e-8)
        for several in (False, True):
            found = method_evidence("scorecam", network, images, features, several=several)
            for place in range(len(images)):
                logits = network(images[place] * masks[place][:, None])
                weights = class_contrast(logits.T, several=several).softmax(dim=1)
                expected = torch.einsum("kc,c...->k...", weights, features[place])
                torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=1e-3)


def test_score_cam_asks_the_network_once_for_all_classes(capsys: pytest.CaptureFixture[str]):
    network, images = _network(NETWORKS["attention"], 4), _images(NETWORKS["attention"], 1)
    with torch.no_grad():
        features = network.features(images)
    asked = []
    network.backbone.register_forward_pre_hook(lambda *_: asked.append(1))
    original = network.features
    network.features = lambda given: asked.append(len(given)) or original(given)  # type: ignore[method-assign, assignment]
    method_evidence("scorecam", network, images, features, several=False)
    assert sum(count for count in asked if count > 1) == features.shape[1]
    assert capsys.readouterr() == ("", ""), "the package draws a progress bar for each image"


def test_eigencam_is_the_first_component_the_same_for_all_classes_and_a_share_of_its_maximum():
    network, images = _network(NETWORKS["resnet"], 3), _images(NETWORKS["resnet"])
    torch.manual_seed(2)
    features = torch.rand(2, 512, 5, 6)
    features[:, :, 1, 2] += 3.0  # where the network is most active
    found = method_evidence("eigencam", network, images, features, several=False)
    torch.testing.assert_close(found[:, 0], found[:, 2])
    flat = features.flatten(2).transpose(1, 2).double()
    flat = flat - flat.mean(dim=1, keepdim=True)
    component = torch.linalg.svd(flat, full_matrices=False).Vh[:, 0]
    expected = torch.einsum("bnc,bc->bn", flat, component).view(2, 5, 6)
    expected = expected * expected[:, 1, 2].sign()[:, None, None]
    expected = expected / expected.flatten(1).amax(dim=1)[:, None, None]
    torch.testing.assert_close(found[:, 1].double(), expected, rtol=1e-3, atol=1e-3)


def test_eigencam_of_features_without_variation_is_no_evidence():
    network, images = _network(NETWORKS["resnet"]), _images(NETWORKS["resnet"])
    features = torch.rand(2, 512, 1, 1).expand(-1, -1, 4, 4) * 50
    found = method_evidence("eigencam", network, images, features.clone(), several=False)
    assert (found == 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("method", PACKAGES)
def test_every_method_makes_finite_maps_of_every_network(method: Heatmap, kind: str):
    if method == "scorecam" and kind in ("volume", "resnet"):
        pytest.skip("refused by the configuration, or 512 forward passes")
    network, images = _network(NETWORKS[kind]), _images(NETWORKS[kind], 1)
    with torch.inference_mode():
        features = network.features(images)
    found = method_evidence(method, network, images, features, several=False)
    assert found.shape == (1, 2, *features.shape[2:])
    assert torch.isfinite(found).all()
    assert all(parameter.grad is None for parameter in network.parameters()), "no gradient is left behind"


@pytest.mark.parametrize("method", PACKAGES)
def test_features_that_are_not_finite_give_no_map_and_spoil_no_others(method: Heatmap):
    network, images = _network(NETWORKS["attention"]), _images(NETWORKS["attention"], 3)
    with torch.no_grad():
        features = network.features(images)
    whole = method_evidence(method, network, images, features, several=False)
    features[1, 3, 0, 0] = torch.inf
    found = method_evidence(method, network, images, features, several=False)
    assert torch.isnan(found[1]).all()
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]], rtol=1e-4, atol=1e-4)


# In a trained model


@pytest.mark.parametrize("method", HEATMAPS)
def test_views_and_members_are_means_of_maps(method: Heatmap):
    shown = {"heatmap": method, "heatmap_scale_of": "image" if method == "eigencam" else "run"}
    levels = _levels(2)
    model = _model(members=2, views="flip_horizontal", **shown)
    found = model.predict(levels).evidence
    singles = [
        trained_model([network], _facts(views="none", network=model.facts.network, **shown), CPU)
        for network in model.networks
    ]
    alone = [single.predict(levels).evidence for single in singles]
    mirrored = model._view(model.networks[0], model.inputs(levels), (-1,)).evidence.numpy()
    other = model._view(model.networks[1], model.inputs(levels), (-1,)).evidence.numpy()
    expected = np.mean([*alone, mirrored, other], axis=0)
    if method == "eigencam":
        expected = own_share(torch.from_numpy(expected)).numpy()
        np.testing.assert_allclose(found.max(axis=(2, 3)), 1.0, atol=ROUNDING)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_volumes_map_lies_on_its_slices():
    network = Network(architecture="resnet18", pooling="volume", bag_size=64)
    levels = _levels(6)
    weights = _model(network=network).predict(levels)
    hirescam = _model(network=network, heatmap="hirescam")
    told = hirescam.predict(levels)
    bias = class_contrast(hirescam.network.head.bias.detach(), several=False).numpy()[None, :, None, None]
    assert told.evidence.shape == (6, 2, 2, 2)
    np.testing.assert_allclose(told.evidence, weights.evidence - bias, atol=ROUNDING * np.abs(weights.evidence).max())


def test_a_network_that_overflows_gives_no_number_whatever_the_method():
    for method in ("gradcam", "eigencam"):
        model = _model(heatmap=method, heatmap_scale_of="image" if method == "eigencam" else "run")
        with torch.no_grad():
            next(model.network.backbone.parameters()).mul_(float("inf"))
        told = model.predict(_levels(1))
        assert np.isnan(told.evidence).all()


# Attention


def _results(model: TrainedModel, count: int) -> list[ImageResult]:
    told = model.predict(_levels(count))
    return [
        ImageResult(
            ImageFile("case", "s", f"{place}.png", Path("x"), "png", 0, 1, 1),
            None,
            None,
            told.probabilities[place],
            told.evidence[place],
            int(told.shown[place]),
            told.logits[place],
            told.attention[place],
        )
        for place in range(count)
    ]


def test_the_mean_of_attended_evidence_is_what_the_case_says():
    model = _model(network=NETWORKS["attention"])
    results = _results(model, 5)
    assert np.ptp([result.attention for result in results]) > 0
    logits, attention = (np.stack([getattr(result, name) for result in results]) for name in ("logits", "attention"))
    case = pool_cases(logits, attention, model.temperatures, False, "attention")
    found = attended(results, model.facts)
    mean = np.mean([result.evidence for result in found], axis=(0, 2, 3))
    assert mean[1] == pytest.approx(np.log(case[1] / case[0]), abs=1e-4)


def test_without_attention_evidence_is_as_it_is():
    model = _model()
    results = _results(model, 3)
    assert attended(results, model.facts) == tuple(results)
    failed = [ImageResult(result.file) for result in results]
    assert attended(failed, _facts(network=NETWORKS["attention"])) == tuple(failed)


def test_the_scale_is_that_of_attended_evidence():
    import pandas as pd

    model = _model(network=NETWORKS["attention"])
    results = _results(model, 4)
    found = validated(model, results, pd.Series({"case": "b"}))
    expected = [result.evidence[result.shown] for result in attended(results, model.facts)]
    np.testing.assert_allclose(found.evidence, expected, rtol=1e-5)


# The key, and what it is called


def test_score_cam_of_volumes_is_refused_with_a_reason():
    with pytest.raises(
        ConfigError, match=r"evaluation\.heatmap scorecam: .* of images only; with network\.pooling volume"
    ):
        load_config("series_volume", ["evaluation.heatmap=scorecam"])
    assert load_config("series_volume", ["evaluation.heatmap=layercam"]).evaluation.heatmap == "layercam"
    with pytest.raises(ConfigError, match=r"evaluation\.heatmap"):
        load_config("demo", ["evaluation.heatmap=grad-cam"])
    assert Config(name="x", manifest="demo").evaluation.heatmap == "weights"


def _told(method: Heatmap, classes: tuple[str, ...] = ("a", "b"), several: bool = False) -> ModelFacts:
    of = "image" if method == "eigencam" else "run"
    return _facts(classes, several=several, heatmap=method, heatmap_scale_of=of)


@pytest.mark.parametrize("method", HEATMAPS)
def test_words_fit_an_objects_attributes(method: Heatmap):
    facts = _told(method)
    assert method_words(facts).isascii()
    assert len(f"Evidence for {'x' * 12}, {evidence_unit(facts)}") <= 64
    assert "attention" in method_words(_facts(network=NETWORKS["attention"], heatmap=method))


def test_units_say_what_the_map_is_of():
    assert evidence_unit(_told("weights")) == "logit margin"
    assert evidence_unit(_told("gradcam", ("a", "b", "c"))) == "centred logit"
    assert evidence_unit(_told("layercam", ("a", "b", "c"), several=True)) == "logit, its positive part"
    assert evidence_unit(_told("eigencam")) == "share of its own maximum"


def test_people_read_units_and_methods_in_the_sites_words():
    words = load_profile("german").texts
    assert evidence_unit(_told("layercam"), words.units) == "Logit-Differenz, nur positiver Anteil"
    assert method_words(_told("hirescam"), words.methods) == "HiResCAM"
    attended = _facts(network=NETWORKS["attention"], heatmap="eigencam")
    told = "EigenCAM (ohne Bezug zur Klasse, ohne Vorzeichen), nach Aufmerksamkeit gewichtet"
    assert method_words(attended, words.methods) == told


def test_a_map_that_shares_no_unit_has_no_scale_of_the_run():
    maps = [np.full((2, 2), 7, np.float32)]
    assert scale_of(_told("weights"), maps) == 7.0
    assert scale_of(_told("eigencam"), maps) == 1.0
