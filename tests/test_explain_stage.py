"""`radloop explain`: each test of a heatmap on networks whose maps are known to be right or wrong, and the stage on trained runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from pipeline.cli import main
from pipeline.config import Network, load_config
from pipeline.errors import ConfigError, RunError
from pipeline.explain import EXPLANATION_FILE, PAGE_FILE, Outcomes, _randomization, _warnings, explain, summary_lines
from pipeline.explaining.deletion import deleted, relevance
from pipeline.explaining.likeness import Sampling, in_pixels, rank_correlation, structural_similarity
from pipeline.explaining.pointing import Pointing, known_findings
from pipeline.explaining.probes import Chosen, Probe, chosen_images, maps_of
from pipeline.explaining.randomization import randomized, renew_statistics, shuffled_from, stage_counts, stage_name
from pipeline.explaining.repeatability import changes, peak_distance, repeated
from pipeline.networks.model import Classifier, Geometry, new_network
from pipeline.prediction.predict import TrainedModel, trained_model
from pipeline.prepared.dataset import ImageFile, Prepared
from pipeline.train import train
from tests.small_runs import make_dataset
from tests.test_heatmap_methods import CPU, SIZE, _facts

TINY = Network(architecture="timm:test_resnet")


def _model(network: Network = TINY, **given: object) -> TrainedModel:
    torch.manual_seed(0)
    built = new_network(network, 2, SIZE)
    nn.init.normal_(built.head.weight, std=0.3)
    return trained_model([built], _facts(network=network, **given), CPU, fold=False)


def _probe(levels: np.ndarray, number: int = 0, place: int = 0, zoom: float = 2.0) -> Probe:
    """Levels (n, 1, SIZE, SIZE) of a source `zoom` times as large."""
    affine = np.array([[zoom, 0, 0.5], [0, zoom, 0.5]])
    side = int(SIZE * zoom)
    prepared = Prepared(levels[place], affine, (side, side), None, None, "")
    file = ImageFile(f"case {number}", "s", f"{number}.png", Path("x"), "png", 0, 1, 1)
    return Probe(file, f"patient {number // 2}", 1, levels, place, prepared)


def _probes(count: int = 6) -> list[Probe]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 65536, (count, 1, 8, 8), dtype=np.uint16)
    return [_probe(one[None].repeat(8, axis=2).repeat(8, axis=3), number) for number, one in enumerate(coarse)]


# Which images


def test_one_image_of_each_patient_before_a_second_of_any():
    facts = _facts()
    cases = pd.DataFrame(
        {"case_id": list("abcdef"), "status": ["ok"] * 5 + ["failed"], "predicted": ["b", "b", "b", "b", "a", ""]}
    ).assign(p_a=0.2, p_b=0.8)
    images = pd.DataFrame(
        {"case_id": list("aabcdef"), "status": "ok", "p_a": 0.5, "p_b": [0.1, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5]}
    )
    patients = pd.Series(["x", "x", "x", "y", "z", "w"])
    for seed in range(5):
        found = chosen_images(cases, images, patients, facts, 3, seed)
        assert {one.case_id for one in found[:2]} & {"a", "b", "c"}
        assert "d" in {one.case_id for one in found[:2]}
        assert not {"e", "f"} & {one.case_id for one in found}, "not called, not predicted"
    everything = {one.case_id: one for one in chosen_images(cases, images, patients, facts, 9, 0)}
    assert everything["a"] == Chosen("a", 1, (1,)), "the image with the highest probability"
    none = cases.assign(predicted=["a", "a", "a", "a", "a", ""])
    assert len(chosen_images(none, images, patients, facts, 9, 0)) == 5, "where nothing is called, all are looked at"
    attention = images.assign(attention=[0.9, 0.1, 1, 1, 1, 1, 1])
    assert chosen_images(cases, attention, patients, facts, 9, 0)[0].shown == 1
    assert {one.case_id: one.rows for one in chosen_images(cases, attention, patients, facts, 9, 0)}["a"] == (0,)
    volume = _facts(network=Network(architecture="resnet18", pooling="volume"))
    assert {one.case_id: one.rows for one in chosen_images(cases, images, patients, volume, 9, 0)}["a"] == (0, 1)


# Likeness


@given(st.lists(st.integers(-5, 5), min_size=3, max_size=20), st.randoms())
def test_rank_correlation_is_spearmans(values: list[int], random: object):
    other = list(values)
    random.shuffle(other)  # type: ignore[attr-defined]
    found = rank_correlation(values, other)
    if len(set(values)) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(spearmanr(values, other).statistic)
        assert rank_correlation(values, np.exp(values)) == pytest.approx(1)


def test_a_constant_map_is_like_nothing():
    constant = np.full((3, 3), 1e3) + np.random.default_rng(0).normal(size=(3, 3)) * 1e-5
    assert rank_correlation(constant, constant) == 0


def test_similarity_is_of_what_is_seen():
    one = np.zeros((32, 32), np.float32)
    one[4:12, 4:12] = 1
    assert structural_similarity(one, 7 * one - 0.0) == pytest.approx(1, abs=1e-5)
    assert structural_similarity(one, np.where(one > 0, one, -5).astype(np.float32)) == pytest.approx(1, abs=1e-5)
    assert structural_similarity(one, one[::-1, ::-1].copy()) < 0.9


def test_intervals_are_over_patients():
    values = np.repeat(np.random.default_rng(0).normal(size=12), 6)
    alone = Sampling([str(number) for number in range(72)], 500, 0).mean(values)
    together = Sampling([str(number // 6) for number in range(72)], 500, 0).mean(values)
    assert alone.value == together.value == pytest.approx(values.mean())
    assert together.high - together.low > 1.7 * (alone.high - alone.low)
    part = Sampling(["a", "a", "b"], 100, 0).mean([1.0, np.nan, 3.0])
    assert part.value == 2.0
    assert Sampling(["a", "b"], 100, 0).mean([np.nan, np.nan]).value is None
    assert Sampling(["a", "a"], 100, 0).mean([1.0, 2.0]).low is None, "of one patient there is no interval"


# Randomization


def test_shuffling_keeps_each_tensors_values_and_leaves_the_network_as_it_was():
    network = new_network(TINY, 2, SIZE)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    two, all_of_it = shuffled_from(network, 2, seed=1), shuffled_from(network, len(network.groups), seed=1)
    assert all((value == before[name]).all() for name, value in network.state_dict().items())
    groups = [{id(parameter) for parameter in group} for group in network.groups]
    names = [[name for name, parameter in network.named_parameters() if id(parameter) in group] for group in groups]
    changed = 0
    for number, group in enumerate(names):
        for name in group:
            ours = two.state_dict()[name]
            torch.testing.assert_close(ours.flatten().sort().values, before[name].flatten().sort().values)
            if number < len(names) - 2:
                assert (ours == before[name]).all()
            else:
                assert (ours == all_of_it.state_dict()[name]).all(), "what is shuffled stays so further down"
                changed += int((ours != before[name]).any())
    assert changed >= 3
    assert (shuffled_from(network, 2, seed=2).head.weight != two.head.weight).any()


def test_stages_go_from_the_head_to_all_and_have_names():
    assert stage_counts(6) == [1, 2, 3, 4, 5, 6]
    assert stage_counts(40)[0] == 1
    assert stage_counts(40)[-1] == 40
    assert len(stage_counts(40)) == 8
    network = new_network(Network(architecture="resnet18"), 2)
    names = [stage_name(network, number) for number in range(len(network.groups))]
    assert names == ["conv1, bn1", "layer1", "layer2", "layer3", "layer4", "head"]


def test_batch_norms_of_shuffled_stages_know_the_images():
    model, probes = _model(), _probes()
    shuffled = shuffled_from(model.networks[0], len(model.networks[0].groups), seed=0)
    norms = [module for module in shuffled.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_var.fill_(1e-12)  # of channels that are now others: features explode
    with torch.no_grad():
        assert float(shuffled.features(model.inputs(probes[0].levels)).abs().max()) > 1e6
        renew_statistics(shuffled, len(shuffled.groups), model, probes)
        assert float(shuffled.features(model.inputs(probes[0].levels)).abs().max()) < 1e4
    assert not any(norm.training for norm in norms)


def _stages(model: TrainedModel) -> tuple[list[Probe], list[np.ndarray], dict[str, object]]:
    probes = _probes()
    maps, _ = maps_of(model, probes)
    stages = list(randomized(model, model.networks, probes, maps, seed=0))
    tested = Outcomes(probes, maps, stages, [], None)
    return probes, maps, _randomization(tested, Sampling([probe.patient for probe in probes], 100, 0))


def test_maps_of_the_weights_follow_the_network_and_eigencam_does_not_follow_its_head():
    _, _, weights = _stages(_model())
    assert weights["passed"]
    assert weights["depends_on_head"]
    _, _, blind = _stages(_model(heatmap="eigencam", heatmap_scale_of="image"))
    assert blind["stages"][0]["name"] == "head"
    assert blind["stages"][0]["rank_correlation"]["value"] == pytest.approx(1)
    assert blind["stages"][0]["similarity"]["value"] == pytest.approx(1, abs=1e-4)
    assert not blind["depends_on_head"]


class _Bright(nn.Module):
    """A network that says how bright the image is, cell by cell, whatever it has learnt: its maps are the image."""

    geometry = Geometry(cell_stride=8.0, cell_offset=3.5)
    attention = None

    def __init__(self) -> None:
        super().__init__()
        self.learnt = nn.Linear(4, 4)
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.zero_()
        self.groups = [list(self.learnt.parameters()), []]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 8)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features.mean(dim=(2, 3)))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return features.new_zeros(len(features))


def _bright() -> TrainedModel:
    return TrainedModel((_Bright().eval(),), _facts(), CPU)  # type: ignore[arg-type]


def test_maps_that_are_the_image_whatever_was_learnt_fail():
    _, _, record = _stages(_bright())
    assert not record["passed"]
    assert not record["depends_on_head"]


# Repeatability


@given(st.integers(0, 5), st.floats(20, 44), st.floats(20, 44))
def test_a_moved_image_and_its_affine_say_the_same(number: int, row: float, column: float):
    """A blob in the image moves to where the affine says that it came from."""
    change = changes(SIZE, 8)[number]
    rows, columns = np.indices((SIZE, SIZE))
    blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 18)
    moved = change(np.rint(blob * 60000).astype(np.uint16)[None, None])[0, 0].astype(float)
    middle = np.array([(grid * moved).sum() / moved.sum() for grid in (rows, columns)])
    np.testing.assert_allclose(change.affine[:, :2] @ middle + change.affine[:, 2], (row, column), atol=0.1)


def test_changes_are_named_for_what_is_seen():
    image = np.zeros((1, 1, SIZE, SIZE), np.uint16)
    image[..., 32, 32] = 60000
    where = {change.name: np.unravel_index(change(image)[0, 0].argmax(), (SIZE, SIZE)) for change in changes(SIZE, 8)}
    assert where["4 pixels up"] == (28, 32)
    assert where["4 pixels right"] == (32, 36)
    corner = np.zeros((1, 1, SIZE, SIZE), np.uint16)
    corner[..., 8:11, 31:34] = 60000  # above the middle
    turned = {change.name: change(corner)[0, 0] for change in changes(SIZE, 8)[4:]}
    assert np.argwhere(turned["turned 5° to the left"] > 30000)[:, 1].mean() < 31


def test_a_map_that_moves_with_the_image_repeats_and_one_that_stays_does_not():
    model, probes = _bright(), _probes()
    smooth = [
        replace(probe, levels=np.rint(_blob(20 + 4 * number, 36)).astype(np.uint16)[None, None])
        for number, probe in enumerate(probes)
    ]
    maps, probabilities = maps_of(model, smooth)
    for change in changes(SIZE, 8):
        found = repeated(model, smooth, maps, probabilities, change)
        assert found.rank_correlation.min() > 0.9
        if "turned" not in change.name:  # which a blob near the middle hardly shows
            assert (found.rank_correlation > found.had_it_stayed).all()
        assert np.nanmax(found.peak_cells) <= 1
        np.testing.assert_allclose(
            found.peak_source_pixels, found.peak_cells * 8 * 2, err_msg="cells of 8, a zoom of 2"
        )
    rigid = replace(model, networks=(_Rigid().eval(),))  # type: ignore[arg-type]
    maps, probabilities = maps_of(rigid, smooth)
    found = repeated(rigid, smooth, maps, probabilities, changes(SIZE, 8)[0])
    np.testing.assert_array_equal(found.rank_correlation, found.had_it_stayed)
    assert (found.probability_change < 1e-6).all()


def _blob(row: float, column: float) -> np.ndarray:
    rows, columns = np.indices((SIZE, SIZE))
    return 60000 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 200)


class _Rigid(_Bright):
    """Says the same of every image, in a fine pattern."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        pattern = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return pattern.expand(len(images), -1, -1, -1)


def test_a_peak_needs_evidence():
    peak = np.zeros((5, 5), np.float32)
    peak[1, 2] = 1
    assert peak_distance(peak, np.roll(peak, 2, axis=1)).tolist() == [0, 2]
    assert np.isnan(peak_distance(peak, -peak)).all()


# Deletion


def test_relevance_is_a_rank_that_no_percentile_takes_for_everything():
    random = np.random.default_rng(0)
    mostly_nothing = np.zeros((20, 20), np.float32)
    mostly_nothing[3, 4], mostly_nothing[5, 6] = 2, 1
    found = relevance(mostly_nothing, random)
    assert found[3, 4] == 1
    assert found[5, 6] == np.sort(found.ravel())[-2]
    for percentile in (50, 70, 90):
        removed = (found >= np.percentile(found, percentile)).mean()
        assert removed == pytest.approx(1 - percentile / 100, abs=0.01)


def test_a_map_of_what_the_network_goes_by_beats_a_random_one_and_a_wrong_one_does_not():
    """The network sums up brightness: the bright quarter is what it goes by."""
    model = _bright()
    random = np.random.default_rng(1)
    probes = []
    for number in range(4):
        image = random.integers(9000, 12000, (SIZE, SIZE)).astype(np.uint16)
        image[16:32, 8 * number : 8 * number + 24] = 60000
        probes.append(_probe(image[None, None], number))
    right, _ = maps_of(model, probes)
    found = deleted(model, probes, right, seed=0)
    assert (found.road > found.road_random + 0.1).all()
    assert (found.kept > found.kept_random).all()
    without = found.example[0]
    assert without[20:28, 4:20].max() < 0.6, "the brightest is filled in from around it"
    wrong = deleted(model, probes, [-cells for cells in right], seed=0)
    assert (wrong.road < 0).all()
    again = deleted(model, probes, right, seed=0)
    np.testing.assert_array_equal(again.road, found.road)


def test_random_maps_have_the_images_own_cells():
    model = _bright()
    constant = [np.ones((8, 8), np.float32)]
    found = deleted(model, _probes(1), constant, seed=0)
    assert found.kept[0] == found.kept_random[0], "a constant map in another order is the same"


# What is said


def _record(**given: object) -> dict[str, object]:
    one = {"value": 0.1, "low": 0.0, "high": 0.2}
    told = {
        "heatmap": {"cells": [6, 6], "without_evidence": 0},
        "randomization": {"passed": True, "depends_on_head": True, "stages": [{"rank_correlation": one}], "other_images": one},
        "repeatability": {"passed": True, "together": {"rank_correlation": {"value": 0.9}, "had_it_stayed": {"value": 0.3}}},
        "deletion": {"done": True, "passed": True, "unit": "logit margin", "road": {"difference": one}},
        "patients": 12, "images": 20, "called": True,
    }  # fmt: skip
    return told | given


def test_what_passes_says_nothing_and_each_failure_one_sentence():
    assert _warnings(_record()) == []
    plain = _record()
    for name, key in (
        ("randomization", "passed"),
        ("randomization", "depends_on_head"),
        ("repeatability", "passed"),
        ("deletion", "passed"),
    ):
        warnings = _warnings(_record(**{name: plain[name] | {key: False}}))
        assert len(warnings) == 1
        assert warnings[0].startswith({"randomization": "model randomization"}.get(name, name))
    assert "3 x 3 cells" in _warnings(_record(heatmap={"cells": [3, 3], "without_evidence": 0}))[0]
    assert "on 4 of 20 images" in _warnings(_record(heatmap={"cells": [6, 6], "without_evidence": 4}))[0]
    assert "no case of this split is called" in _warnings(_record(called=False))[0]
    assert "3 patients" in _warnings(_record(patients=3))[0]
    assert _warnings(_record(deletion={"done": False, "reason": "x"})) == []
    alike = _record(randomization=plain["randomization"] | {"other_images": {"value": 0.88}})
    assert "different images are alike (rank correlation 0.88)" in _warnings(alike)[0]
    stayed = {"rank_correlation": {"value": 0.98}, "had_it_stayed": {"value": 0.97}}
    assert "would have passed, too" in _warnings(_record(repeatability={"passed": True, "together": stayed}))[0]


def test_known_findings_lie_beside_or_in_a_source(tmp_path: Path):
    (tmp_path / "export").mkdir()
    assert known_findings({"export": tmp_path / "export"}) is None
    (tmp_path / "lesions.csv").write_text("x\n")
    assert known_findings({"export": tmp_path / "export"}) == tmp_path / "lesions.csv"


# The stage


def _trained(
    folder: Path, pages: int = 1, split: dict[str, object] | None = None, **settings: dict[str, object]
) -> Path:
    wanted = {
        "preprocessing": {"size": SIZE, "normalization": "none"},
        "network": {"architecture": "timm:test_resnet", **settings.pop("network", {})},
        "training": {"epochs": 1, "batch_size": 16},
        **settings,
    }
    config = make_dataset(folder / "data", pages=pages, split=split, settings=wanted)  # type: ignore[arg-type]
    train(load_config(str(config)), folder / "run", progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _trained(tmp_path_factory.mktemp("explain"))


@pytest.mark.slow
def test_a_run_is_explained(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", str(trained), "--images", "6", "--split", "validation"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((trained / "explanation" / EXPLANATION_FILE).read_text())
    page = (trained / "explanation" / PAGE_FILE).read_text()
    for told in (printed, page):
        assert "Research use only" in told
    assert "model randomization" in printed
    assert record["images"] == 6
    assert record["heatmap"]["words"] == "the classifier's evidence (Grad-CAM of a linear head)"
    assert record["heatmap"]["cell_source_pixels"][0] == pytest.approx(40 / SIZE * 32, rel=0.1)
    assert record["randomization"]["stages"][0]["name"] == "head"
    assert len(record["repeatability"]["changes"]) == 6
    assert record["deletion"]["done"]
    assert page.count("<img") == 6 * (2 + len(record["randomization"]["stages"])) + 6 * 7 + 6 * 3
    assert 'src="http' not in page
    text = json.dumps(record)
    assert "NaN" not in text
    again = explain(trained, split="validation", images=6, progress=False)
    assert {name: again[name] for name in record} == record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "pages"),
    [
        ("folds", {"evaluation": {"views": "flip_horizontal", "heatmap": "layercam", "resamples": 100}}, 1),
        ("attention", {"network": {"pooling": "attention", "bag_size": 2}}, 3),
        ("eigencam", {"evaluation": {"heatmap": "eigencam", "resamples": 100}}, 1),
        ("scorecam", {"evaluation": {"heatmap": "scorecam", "resamples": 100}}, 1),
        ("volume", {"network": {"architecture": "resnet18", "pooling": "volume", "bag_size": 4}}, 3),
    ],
)
def test_every_kind_of_run_is_explained(tmp_path: Path, kind: str, settings: dict[str, dict[str, object]], pages: int):
    folds: dict[str, object] | None = {"folds": 2, "fold": "all"} if kind == "folds" else None
    run = _trained(tmp_path, pages, folds, **settings)
    record = explain(run, images=3, progress=False)
    assert record["images"] == 3
    assert record["deletion"]["done"] == (kind != "volume")
    assert summary_lines(record)
    facts = json.loads((run / "model.json").read_text())
    assert facts["heatmap"] == settings.get("evaluation", {}).get("heatmap", "weights")
    assert facts["heatmap_scale"] > 0
    assert facts["heatmap_scale_of"] == ("image" if kind == "eigencam" else "run")
    if kind == "eigencam":
        assert facts["heatmap_scale"] == 1.0
        assert any("shuffled head" in warning for warning in record["warnings"])


@pytest.mark.slow
def test_what_cannot_be_explained_is_one_message(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match="expected 2 at least"):
        explain(trained, images=1)
    with pytest.raises(ConfigError, match="--split nothing"):
        explain(trained, split="nothing")
    assert main(["explain", str(tmp_path)]) == 2
    assert "not a run of radloop train" in capsys.readouterr().err
    shutil.copytree(trained.parent, tmp_path / "moved")
    run = tmp_path / "moved" / "run"
    summary = run / "index" / "summary.json"
    summary.write_text(summary.read_text().replace(str(trained.parent), str(tmp_path / "gone")))
    with pytest.raises(RunError, match=r"gone.*not there any more; --root DIR"):
        explain(run, images=3, progress=False)
    assert explain(run, images=3, root=tmp_path / "moved" / "data", progress=False)["images"] == 3


@pytest.mark.slow
def test_known_findings_are_pointed_at(looped: Path, tmp_path: Path):
    from pipeline.demo import point_at_lesions

    shutil.copytree(looped / "run", tmp_path / "run")
    found = explain(tmp_path / "run", images=4, progress=False)["pointing"]
    direct = point_at_lesions(looped / "run", looped / "lesions.csv")
    assert direct.images == (found["images"] if found else 0)
    assert isinstance(direct, Pointing)
    if found:
        assert found["within_one_cell"] == pytest.approx(direct.share)
        assert found["inside"] <= found["within_one_cell"]
        assert found["inside_by_chance"] < found["within_one_cell_by_chance"]


def test_a_classifier_of_two_is_what_the_fixture_says():
    """The networks above stand in for real ones: they are asked the same things."""
    for name in ("features", "classify", "scores"):
        assert hasattr(_Bright, name)
        assert hasattr(Classifier, name)
    maps, _ = maps_of(_bright(), _probes(1))
    seen = in_pixels(maps[0], _Bright.geometry, SIZE)
    assert seen.shape == (SIZE, SIZE)
