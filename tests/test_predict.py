"""Predictions of untrained networks: views, pooling, evidence, and the tables, against what single pieces say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pipeline.config import Network, Preprocessing
from pipeline.errors import RejectReason, RunError
from pipeline.manifest import Rules
from pipeline.networks.model import new_network
from pipeline.prediction import predict
from pipeline.prediction.case_stream import KeyImages
from pipeline.prediction.pooling import pool_cases
from pipeline.prediction.predict import BATCH, MIRRORS, ImageResult, TrainedModel, predict_files, trained_model
from pipeline.prediction.prediction_tables import case_table, decide, image_table, probability_columns
from pipeline.prepared.dataset import ImageFile, Prepared
from pipeline.run import ModelFacts, findings_of, read_model, write_model
from pipeline.work import Failure
from transforms.intensity import from_levels

SIZE = 64
ROUNDING = 1e-5
"""Of float32 through a ResNet18, in batches of other sizes: logits of about 1."""


def _facts(classes: tuple[str, ...] = ("a", "b"), **given: object) -> ModelFacts:
    several = bool(given.get("several", False))
    network = given.pop("network", Network(architecture="resnet18"))
    told = {
        "name": "t", "radloop_version": "0", "network": network, "classes": list(classes), "positive": classes[-1], "unit": "series",
        "rules": Rules(), "preprocessing": Preprocessing(size=SIZE), "preprocessing_digest": "", "path_to_unit_range": {},
        "input_mean": (0.5,), "input_std": (0.25,), "weights_sha256": "", "initial_weights": "", "initial_weights_sha256": "",
        "best_epoch": 1, "heatmap_scale": 1.0, "scope": {},
        "thresholds": dict.fromkeys(findings_of(classes, classes[-1], several), 0.5),
    }  # fmt: skip
    return ModelFacts(**(told | given))


def _model(facts: ModelFacts, members: int = 1) -> TrainedModel:
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        network = new_network(facts.network, len(facts.classes), SIZE)
        torch.nn.init.normal_(network.head.weight, std=0.3)
        networks.append(network)
    return trained_model(networks, facts, torch.device("cpu"))


def _levels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (count, 1, SIZE, SIZE), dtype=np.uint16)


def _file(case: str, number: int = 0) -> ImageFile:
    return ImageFile(case, "s", f"{case}-{number}.png", Path("x"), "png", number, 1, 1)


# Views


@pytest.mark.parametrize("views", ["flip_horizontal", "flips"])
def test_a_prediction_over_mirror_images_is_the_mean_of_theirs(views: str):
    levels = _levels(3)
    plain, mirrored = _model(_facts(temperature=2.0)), _model(_facts(temperature=2.0, views=views))
    found = mirrored.predict(levels)
    alone = [plain.predict(np.ascontiguousarray(np.flip(levels, axes))) for axes in MIRRORS[views]]
    assert found.logits.shape == (3, len(MIRRORS[views]), 2)
    np.testing.assert_allclose(found.logits, np.concatenate([one.logits for one in alone], axis=1), atol=ROUNDING)
    expected = np.mean([softmax(one.logits[:, 0] / 2.0, axis=1) for one in alone], axis=0)
    np.testing.assert_allclose(found.probabilities, expected, atol=ROUNDING)


@pytest.mark.parametrize("views", ["flip_horizontal", "flips"])
def test_mirroring_the_image_changes_no_probability(views: str):
    """What all views say together does not know which of them was the image."""
    model, levels = _model(_facts(views=views)), _levels(2)
    found, mirrored = model.predict(levels), model.predict(np.ascontiguousarray(levels[..., ::-1]))
    np.testing.assert_allclose(found.probabilities, mirrored.probabilities, atol=ROUNDING)


def test_an_ensembles_views_are_its_members():
    facts, levels = _facts(("a", "b", "c")), _levels(2)
    together = _model(facts, members=3)
    found = together.predict(levels)
    for place, network in enumerate(together.networks):
        alone = trained_model([network], facts, torch.device("cpu")).predict(levels)
        np.testing.assert_allclose(found.logits[:, place], alone.logits[:, 0], atol=ROUNDING)
    np.testing.assert_allclose(found.probabilities, softmax(found.logits, axis=2).mean(axis=1))
    assert (found.shown == found.probabilities.argmax(axis=1)).all()


def test_evidence_is_the_mean_logit_of_each_of_several_labels():
    model = _model(_facts(("a", "b", "c"), several=True))
    found = model.predict(_levels(2))
    np.testing.assert_allclose(found.evidence.mean(axis=(2, 3)), found.logits[:, 0], atol=ROUNDING)
    np.testing.assert_allclose(found.probabilities, expit(found.logits[:, 0]))


# Pooling


def test_attention_pools_images_to_what_the_network_says_of_the_bag():
    """The head is linear, so weighing logits in tables is weighing features in the network."""
    model = _model(_facts(network=Network(architecture="resnet18", pooling="attention", dropout=0.5)))
    levels = _levels(5)
    told = model.predict(levels)
    assert np.ptp(told.attention) > 0
    pooled = pool_cases(told.logits, told.attention, model.temperatures, False, "attention")
    inputs = from_levels(torch.from_numpy(levels)).sub(0.5).div(0.25)
    with torch.no_grad():
        expected = torch.softmax(model.network(inputs[None]).double(), dim=1)[0]
    np.testing.assert_allclose(pooled, expected, atol=ROUNDING)


def test_a_volume_says_one_thing_and_shows_it_on_every_slice():
    facts = _facts(network=Network(architecture="resnet18", pooling="volume", bag_size=8), views="flip_horizontal")
    model, levels = _model(facts), _levels(8)
    told = model.predict(levels)
    assert told.logits.shape == (8, 2, 2)
    assert (told.logits == told.logits[:1]).all()
    assert told.evidence.shape == (8, 2, SIZE // 32, SIZE // 32)
    volume = from_levels(torch.from_numpy(levels)).sub(0.5).div(0.25).transpose(0, 1)[None]
    with torch.no_grad():
        expected = model.network(volume)
    np.testing.assert_allclose(told.logits[0, 0], expected[0], atol=ROUNDING)
    found = model.predict(_levels(3))
    assert len(found.logits) == len(found.evidence) == 3


# Decisions


def test_two_classes_are_called_by_the_threshold_and_more_by_the_largest():
    two, three = _facts(thresholds={"b": 0.3}), _facts(("a", "b", "c"))
    assert decide(two, np.array([[0.7, 0.3], [0.71, 0.29], [np.nan, np.nan]])) == ["b", "a", ""]
    assert decide(three, np.array([[0.2, 0.5, 0.3], [np.nan, 0.5, 0.5], [0.4, 0.3, 0.3]])) == ["b", "", "a"]


def test_of_several_labels_each_has_its_own_threshold():
    facts = _facts(("a", "b", "c"), several=True, thresholds={"a": 0.5, "b": 0.2, "c": 0.9})
    rows = np.array([[0.5, 0.2, 0.9], [0.4, 0.3, 0.8], [0.1, 0.1, 0.1], [np.nan] * 3])
    assert decide(facts, rows) == ["a|b|c", "b", "(none)", ""]
    assert decide(facts, rows[:0]) == []


def test_thresholds_are_those_of_the_findings():
    with pytest.raises(ValueError, match="thresholds"):
        _facts(("a", "b", "c"), thresholds={"a": 0.5})
    with pytest.raises(ValueError, match="thresholds"):
        _facts(thresholds={})
    assert _facts(("a", "b", "c")).threshold == 0.5


# Tables


def _results(model: TrainedModel, cases: list[str], failing: set[int]) -> list[ImageResult]:
    """Random predictions, one an image of `cases`."""
    random, facts = np.random.default_rng(3), model.facts
    results = []
    for place, case in enumerate(cases):
        logits, attention = random.normal(size=(model.views, len(facts.classes))), random.normal(size=model.views)
        if place in failing:
            results.append(ImageResult(_file(case, place), failure=Failure(RejectReason.TRUNCATED, f"at {place}")))
            continue
        one = pool_cases(logits[None], attention[None], model.temperatures, facts.several, "mean")
        results.append(ImageResult(_file(case, place), probabilities=one, logits=logits, attention=attention))
    return results


def _tables(cases: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    uids = {"study_instance_uid": "", "series_instance_uid": "", "sop_instance_uid": "", "source": "s"}
    scoped = {"format": "png", "modality": "", "body_part_examined": "", "view_position": "", "rule": ""}
    images = pd.DataFrame({"case_id": cases, "path": cases, "frame": range(len(cases))}).assign(**uids, **scoped)
    return images, images.drop_duplicates("case_id")[["case_id", *list(uids)[:3], "path"]].reset_index(drop=True)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), data=st.data())
@settings(max_examples=15, deadline=None)
def test_tables_say_of_each_case_what_its_images_say(pooling: str, counts: list[int], data: st.DataObject):
    names = [f"case {number}" for number in range(len(counts))]
    cases = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    failing = data.draw(st.sets(st.integers(0, len(cases) - 1)))
    facts = _facts(network=Network(architecture="resnet18", pooling=pooling), views="flips", scope={"format": ["png"]})
    model = TrainedModel((None,), facts, torch.device("cpu"))  # type: ignore[arg-type]
    results, (images, table) = _results(model, cases, failing), _tables(cases)
    told = image_table(images, results, model)
    found = case_table(table, told, results, model).set_index("case_id")
    assert told["in_scope"].all()
    assert ("attention" in told) == (pooling == "attention")
    for name in names:
        mine = [place for place, case in enumerate(cases) if case == name]
        done = [place for place in mine if place not in failing]
        row = found.loc[name]
        assert row["status"] == ("ok" if done else "failed")
        bad = len(mine) - len(done)
        first = next((results[place].reason for place in mine if place in failing), "")
        assert row["reason"] == (f"{bad} of {len(mine)} images failed: {first}" if bad and len(mine) > 1 else first)
        if not done:
            assert row[["p_a", "p_b"]].isna().all()
            assert row["predicted"] == ""
            continue
        expected = pool_cases(
            [results[place].logits for place in done],
            [results[place].attention for place in done],
            model.temperatures, False, pooling,
        )  # fmt: skip
        np.testing.assert_allclose(row[["p_a", "p_b"]].astype(float), expected)
        if pooling == "attention":
            assert told.loc[done, "attention"].sum() == pytest.approx(1)


def test_tables_of_nothing():
    model = TrainedModel((None,), _facts(), torch.device("cpu"))  # type: ignore[arg-type]
    images, cases = _tables([])
    told = image_table(images, [], model)
    assert list(case_table(cases, told, [], model)[probability_columns(["a", "b"])].columns) == ["p_a", "p_b"]


def test_key_images_are_those_of_the_highest_attention():
    """The probability of an image that attention passes over says nothing of the case."""
    facts = _facts(network=Network(architecture="resnet18", pooling="attention"))
    keys = KeyImages(2, facts)
    for number, (probability, attention) in enumerate([(0.9, -1.0), (0.1, 3.0), (0.5, 0.0), (0.2, 2.0)]):
        keys.offer(
            ImageResult(
                _file("c", number),
                None,
                _prepared(number),
                np.array([1 - probability, probability]),
                np.zeros((2, 2, 2), np.float32),
                1,
                np.zeros((1, 2)),
                np.array([attention]),
            )
        )
    assert [result.file.frame for result in keys.of(1)] == [1, 3]


def _prepared(number: int) -> Prepared:
    return Prepared(np.zeros((1, 2, 2), np.uint16), np.eye(2, 3), (2, 2), np.zeros((2, 2), np.uint8), None, str(number))


def test_batches_side_by_side_say_what_they_say_one_after_another(monkeypatch: pytest.MonkeyPatch):
    """To the last bit and in order, with failures among them; threads of torch are afterwards as many as before."""
    model, levels, threads = _model(_facts()), _levels(3 * BATCH + 5), torch.get_num_threads()
    files = [_file("case", number) for number in range(len(levels))]
    outcomes = [
        Failure(RejectReason.MALFORMED, "") if number % 7 == 3 else replace(_prepared(number), image=levels[number])
        for number in range(len(levels))
    ]
    monkeypatch.setattr(predict, "prepare_all", lambda *_: iter(zip(files, outcomes, strict=True)))
    alone, beside = (list(predict_files(model, files, workers=workers)) for workers in (0, 3))
    assert [result.file for result in beside] == files
    assert [result.failure for result in beside] == [result.failure for result in alone]
    for one, other in zip(alone, beside, strict=True):
        if one.failure is None:
            np.testing.assert_array_equal(one.logits, other.logits)
            np.testing.assert_array_equal(one.evidence, other.evidence)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("architecture", ["resnet18", "timm:regnetx_002", "timm:densenet121"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_said_of_an_image_does_not_depend_on_who_comes_with_it(architecture: str, threads: int):
    """To the last bit, wherever in a batch it stands: what an inference that goes on says is what one without a break would have said."""
    model, levels = _model(_facts(network=Network(architecture=architecture))), _levels(BATCH)
    pairs = [(_file("case", number), replace(_prepared(number), image=levels[number])) for number in range(BATCH)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = predict.predicted_batch(model, pairs)
        parts = [
            one
            for begin, end in pairwise((0, 3, 4, 11, BATCH))
            for one in predict.predicted_batch(model, pairs[begin:end])
        ]
    finally:
        torch.set_num_threads(before)
    for one, other in zip(together, parts, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_array_equal(one.evidence, other.evidence)


def test_a_model_of_before_is_refused_with_what_to_do(tmp_path: Path):
    """model.json with one `threshold`, as it was written before findings had their own."""
    facts = _facts()
    written = write_model(tmp_path, {}, facts.model_dump(exclude={"weights_sha256"}))
    assert read_model(tmp_path) == written
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"thresholds": {\n    "b": 0.5\n  }', '"threshold": 0.5'))
    with pytest.raises(RunError, match=r"another radloop version \(then train again\)"):
        read_model(tmp_path)
