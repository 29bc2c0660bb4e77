"""The 3-D network: MedicalNet's files fit, cells stand where it looks along all three axes, the head is linear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import ResNetFeatures
from torch import nn

from pipeline.config import Network
from pipeline.errors import WeightsError
from pipeline.networks.backbones import resnet_features
from pipeline.networks.cell_geometry import measured_geometry
from pipeline.networks.model import build_classifier
from pipeline.networks.volume_network import VolumeClassifier

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
"""The same sums in another order."""


def network(**settings: object) -> Network:
    return Network(**{"architecture": "resnet18", "pooling": "volume", **settings})  # type: ignore[arg-type]


def medicalnet(architecture: str) -> nn.Module:
    """MedicalNet's network as MONAI builds it for those files; its own shortcuts of type A have no parameters."""
    torch.manual_seed(0)
    net = ResNetFeatures(architecture, pretrained=False, spatial_dims=3, in_channels=1).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
    return net


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_medicalnets_files_give_medicalnets_features(architecture: str, tmp_path: Path):
    theirs = medicalnet(architecture)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    state |= {"module.conv_seg.0.weight": torch.ones(3, 3), "module.conv_seg.0.bias": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "resnet.pth")
    ours, origin = build_classifier(network(architecture=architecture, weights=str(tmp_path / "resnet.pth")), 2)
    assert isinstance(ours, VolumeClassifier)
    assert origin.source == "resnet.pth"
    volumes = torch.rand(1, 1, 32, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval().features(volumes), theirs(volumes)[-1], **FLOAT32)
        assert ours(volumes).shape == (1, 2)


def test_weights_of_images_do_not_fit_volumes(tmp_path: Path):
    images, _ = build_classifier(Network(architecture="resnet18"), 2)
    torch.save(images.state_dict(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="does not fit this network"):
        build_classifier(network(weights=str(tmp_path / "model.pth")), 2)


def test_an_earlier_run_is_the_start(tmp_path: Path):
    first, _ = build_classifier(network(), 3)
    torch.save(first.state_dict(), tmp_path / "model.pth")
    second, _ = build_classifier(network(weights=str(tmp_path / "model.pth")), 3)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_every_stage_learns(architecture: str):
    """Through the shortcuts, too: with all else cut, the gradient reaches the input."""
    ours = VolumeClassifier(network(architecture=architecture), 2).train()
    with torch.no_grad():
        for name, parameter in ours.backbone.named_parameters():
            if name.endswith(("bn2.weight", "bn3.weight")):
                parameter.zero_()
    volumes = torch.rand(2, 1, 32, 32, 32, requires_grad=True)
    ours(volumes).sum().backward()
    assert float(ours.backbone.conv1.weight.grad.abs().max()) > 0
    assert len(ours.groups) == 6
    ours.set_trainable(1)
    assert [p.requires_grad for p in ours.parameters()] == [False] * (len(list(ours.parameters())) - 2) + [True] * 2
    assert not ours.backbone.training


def test_logits_are_the_mean_of_what_each_cell_says():
    ours = VolumeClassifier(network(), 3).eval()
    with torch.no_grad():
        features = ours.features(torch.rand(1, 1, 64, 64, 96))
        assert features.shape == (1, 512, 2, 2, 3)
        of_cells = torch.einsum("bdzhw,kd->bkzhw", features, ours.head.weight) + ours.head.bias[:, None, None, None]
        torch.testing.assert_close(of_cells.mean(dim=(2, 3, 4)), ours.classify(features), **FLOAT32)


def test_cells_stand_where_the_network_looks_along_all_three_axes():
    """An impulse on cell (1, 2, 1)'s voxel, in a network that only blurs: the answers fall off alike on both sides of that cell."""
    ours = VolumeClassifier(network(), 2).eval()
    for name, parameter in ours.named_parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0)
        if parameter.ndim == 5:
            nn.init.constant_(parameter, 0.02 / parameter[0].numel())  # too little to reach an edge
            middle = tuple(side // 2 for side in parameter.shape[2:])
            nn.init.constant_(parameter[(slice(None), slice(None), *middle)], 1.0 / parameter.shape[1])
    rows, depth = ours.geometry, ours.depth_geometry
    cell = (1, 2, 1)
    voxel = [round(g.cell_offset + g.cell_stride * c) for g, c in zip((depth, rows, rows), cell, strict=True)]
    for axis in range(3):
        answers = []
        for step in (-8, 0, 8):
            volume = torch.zeros(1, 1, 96, 160, 96)
            place = list(voxel)
            place[axis] += step
            volume[0, 0, place[0], place[1], place[2]] = 1.0
            with torch.no_grad():
                answers.append(ours.features(volume)[0, :, *cell].sum())
        assert answers[0] < answers[1]
        torch.testing.assert_close(answers[0], answers[2], rtol=1e-2, atol=0)


def test_the_geometry_is_the_one_that_is_measured():
    for architecture in ("resnet18", "resnet50"):
        ours = VolumeClassifier(network(architecture=architecture), 2)
        found = measured_geometry(ours.backbone, resnet_features, 1, (64, 96, 64))
        assert found == (ours.depth_geometry, ours.geometry, ours.geometry)
