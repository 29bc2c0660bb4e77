"""Networks: torchvision's output to the last bit, heads and bags, stages that learn or do not, cells where they look."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from monai.networks.nets import MILModel

from pipeline.config import Network
from pipeline.errors import ConfigError
from pipeline.networks import model
from pipeline.networks.input_layer import IMAGENET_STATISTICS
from pipeline.networks.model import Classifier, blank_network, build_classifier, new_network
from pipeline.networks.volume_network import VolumeClassifier
from pipeline.networks.weight_names import fit_weights

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
"""The same sums in another order: 1e-6 each, over some layers."""


def small(**settings: object) -> Network:
    return Network(architecture="resnet18", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_torchvisions_weights_give_torchvisions_output(architecture: str):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, architecture)(weights=None).eval()
    ours = Classifier(Network(architecture=architecture, channels=3), 1000).eval()
    assert set(ours.backbone.state_dict()) | {"fc.weight", "fc.bias"} == set(theirs.state_dict())
    fit_weights(ours, theirs.state_dict(), "torchvision", IMAGENET_STATISTICS)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_a_configuration_decides_the_kind_of_network():
    assert isinstance(new_network(small(), 2), Classifier)
    assert isinstance(new_network(small(pooling="volume"), 2), VolumeClassifier)
    network, origin = build_classifier(small(), 2)
    assert (network.head.out_features, origin.source, origin.sha256) == (2, "random", "")


@pytest.mark.parametrize("settings", [{}, {"head": "conv", "pooling": "attention"}, {"pooling": "volume"}])
def test_a_blank_network_is_what_is_loaded_and_draws_nothing(settings: dict[str, object]):
    filled = new_network(small(**settings), 2)
    before = torch.get_rng_state()
    blank = blank_network(small(**settings), 2)
    assert torch.equal(torch.get_rng_state(), before)
    blank.load_state_dict(filled.state_dict())
    for ours, theirs in zip(blank.state_dict().values(), filled.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert [p.requires_grad for p in blank.parameters()] == [p.requires_grad for p in filled.parameters()]


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_logits_are_the_mean_of_what_each_cell_says(head: str):
    """What makes heatmaps exact, whatever the head."""
    network = Classifier(small(head=head, head_channels=24), 3).eval()
    with torch.no_grad():
        features = network.features(torch.rand(2, 1, 96, 96))
        of_cells = torch.einsum("bdhw,kd->bkhw", features, network.head.weight) + network.head.bias[:, None, None]
        torch.testing.assert_close(of_cells.mean(dim=(2, 3)), network.classify(features), **FLOAT32)
        assert features.shape == (2, 24 if head == "conv" else 512, 3, 3)
        assert network.trunk(torch.rand(2, 1, 96, 96)).shape == (2, 512, 3, 3)


def test_dropout_acts_in_training_only():
    network = Classifier(small(dropout=0.5), 2)
    features = torch.rand(4, 512, 2, 2)
    torch.testing.assert_close(network.eval().classify(features), network.eval().classify(features), rtol=0, atol=0)
    assert not torch.equal(network.train().classify(features), network.classify(features))


def bags_network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(small(pooling="attention"), 3)


def test_attention_is_that_of_monais_mil_model():
    network = bags_network().eval()
    theirs = MILModel(3, "att", pretrained=False, backbone=torch.nn.Identity(), backbone_num_features=512)
    theirs.attention.load_state_dict(network.attention.state_dict())  # type: ignore[union-attr]
    theirs.myfc.load_state_dict(network.head.state_dict())
    vectors = torch.rand(2, 5, 512)
    with torch.no_grad():
        torch.testing.assert_close(network.classify_bags(vectors), theirs.calc_head(vectors), **FLOAT32)


def test_a_bags_logits_are_the_mean_of_its_images_by_attention_in_any_order_and_number():
    network = bags_network().eval()
    assert model.CHUNK < 20
    bags = torch.rand(1, 20, 1, 64, 64)
    with torch.no_grad():
        features = network.features(bags[0])
        weights = torch.softmax(network.scores(features), dim=0)
        by_images = (weights[:, None] * network.classify(features)).sum(dim=0, keepdim=True)
        torch.testing.assert_close(network(bags), by_images, **FLOAT32)
        shuffled = bags[:, torch.randperm(20)]
        torch.testing.assert_close(network(shuffled), by_images, **FLOAT32)
        assert network(bags[:, :1]).shape == (1, 3)


def test_bags_teach_the_backbone_in_training_and_hold_no_gradients_outside():
    network = bags_network()
    bags = torch.rand(2, 3, 1, 32, 32)
    network.train()(bags).sum().backward()
    assert network.backbone.conv1.weight.grad is not None
    assert all(parameter.grad is not None for parameter in network.attention.parameters())  # type: ignore[union-attr]
    seen = []
    network.eval()
    network.backbone.conv1.register_forward_hook(
        lambda _, inputs, output: seen.append((len(output), output.requires_grad))
    )
    network(torch.rand(2, 20, 1, 32, 32))
    assert seen == [(16, False), (16, False), (8, False)]


def test_images_of_a_network_without_attention_have_none():
    network = Classifier(small(), 2)
    assert network.attention is None
    assert torch.equal(network.scores(torch.rand(3, 512, 2, 2)), torch.zeros(3))
    with pytest.raises(ValueError, match="pooling attention"):
        network(torch.rand(1, 3, 1, 64, 64))


STAGES = ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]


@pytest.mark.parametrize(
    ("trainable", "trained"), [("head", 1), (1, 1), ("layer4", 2), ("layer3", 3), (3, 3), ("layer2", 4), ("all", 6)]
)
def test_frozen_stages_do_not_learn_and_keep_their_statistics(trainable: str | int, trained: int):
    network = Classifier(small(trainable=trainable), 2).train()
    stage_of = {"bn1": "conv1"}
    places = [name.removeprefix("backbone.").split(".")[0] for name, _ in network.named_parameters()]
    by_stage = [stage_of.get(place, place) for place in places]
    learning = {s for s, p in zip(by_stage, network.parameters(), strict=True) if p.requires_grad}
    assert learning == set(STAGES[-trained:])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.rand(4, 1, 64, 64)).sum().backward()
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    places = [name.removeprefix("backbone.").split(".")[0] for name in changed]
    assert {stage_of.get(place, place) for place in places} == learning - {"head"}


def test_groups_hold_every_parameter_once_and_can_thaw():
    network = Classifier(small(head="conv", pooling="attention", trainable="head"), 2)
    listed = [id(parameter) for group in network.groups for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in network.parameters())
    assert len(network.groups) == 6
    assert {id(p) for p in network.block.parameters()} <= {id(p) for p in network.groups[-1]}
    network.train()
    assert not network.backbone.layer4.training
    assert network.block.training
    network.set_trainable(2)
    assert network.backbone.layer4.training
    assert not network.backbone.layer3.training
    network.set_trainable(None)
    assert all(parameter.requires_grad for parameter in network.parameters())
    copied = copy.deepcopy(network)
    copied.set_trainable(1)
    assert not copied.backbone.conv1.weight.requires_grad
    assert network.backbone.conv1.weight.requires_grad
    with pytest.raises(ConfigError, match="has 6 stages with its head; found 7"):
        Classifier(small(trainable=7), 2)


def test_batch_norm_is_kept_where_it_is_told_so_but_for_a_new_blocks():
    network = Classifier(small(batch_norm="keep", head="conv", head_channels=16), 2).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.rand(4, 1, 64, 64)).sum().backward()
    changed = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"block"}
    assert network.backbone.bn1.weight.grad is not None, "its scale learns, its statistics stay"


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_cells_stand_where_the_network_looks(architecture: str):
    """An impulse anywhere: the feature map's answer, weighted, is centred on the impulse by the network's geometry.

    With positive weights and no batch norm shift every layer is a blur, so the centre of mass of all answers shows the placement.
    """
    network = Classifier(Network(architecture=architecture), 2).eval()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    size, geometry = 512, network.geometry
    for place in (192, 200, 208, 231, 256):
        image = torch.zeros(1, 1, size, size)
        image[0, 0, place, 256] = 1.0
        with torch.no_grad():
            answer = network.features(image)[0, 0].sum(dim=1)
        cells = geometry.cell_offset + geometry.cell_stride * torch.arange(len(answer))
        center = float((answer * cells).sum() / answer.sum())
        assert abs(center - place) <= geometry.cell_stride / 2
    on_cell = torch.zeros(1, 1, size, size)
    on_cell[0, 0, 256, 256] = 1.0
    with torch.no_grad():
        answer = network.features(on_cell)[0, 0]
    torch.testing.assert_close(answer, answer.flip(0).roll(1, 0), rtol=1e-3, atol=1e-12)  # symmetric about cell 8 of 16
