"""Networks and weights: torchvision's state dict fits key for key, gray folding is exact, wrong weights say what is wrong."""

from __future__ import annotations

import http.server
import pickle
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pipeline import model
from pipeline.config import Network
from pipeline.errors import WeightsError
from pipeline.model import Classifier, Download, build_classifier, fetch, fold_to_gray, load_backbone, read_weights
from transforms.chains import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD

SMALL = Network(architecture="resnet18", channels=3)


@pytest.fixture(scope="module")
def published() -> torchvision.models.ResNet:
    """torchvision's network with random weights and random batch norm: what a published file would hold."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_torchvisions_weights_give_torchvisions_output(architecture: str):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, architecture)(weights=None).eval()
    ours = Classifier(Network(architecture=architecture, channels=3), 1000).eval()
    load_backbone(ours, theirs.state_dict(), "torchvision")
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_gray_folding_equals_three_equal_channels(published: torchvision.models.ResNet):
    """Through conv1 and its batch norm, away from the edge that the kernel reaches over."""
    gray = Classifier(Network(architecture="resnet18", channels=1), 2).eval()
    load_backbone(gray, published.state_dict(), "published")
    image = torch.rand(2, 1, 64, 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = published.bn1(published.conv1((image - mean) / std))
        found = gray.backbone.bn1(gray.backbone.conv1((image - GRAY_MEAN[0]) / GRAY_STD[0]))
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-5)
    plain_sum = published.state_dict()["conv1.weight"].sum(dim=1, keepdim=True)
    assert not torch.allclose(fold_to_gray(published.state_dict())["conv1.weight"], plain_sum, rtol=0.01)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_is_the_start(published: torchvision.models.ResNet, tmp_path: Path, suffix: str):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(published.state_dict(), path)
    network, origin = build_classifier(SMALL.model_copy(update={"weights": str(path)}), 2)
    torch.testing.assert_close(network.backbone.layer1[0].conv1.weight, published.layer1[0].conv1.weight)
    assert origin.source == path.name
    assert len(origin.sha256) == 64


def test_an_earlier_run_is_the_start(tmp_path: Path):
    first, _ = build_classifier(SMALL, 2)
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    second, origin = build_classifier(SMALL.model_copy(update={"weights": str(tmp_path)}), 2)
    torch.testing.assert_close(second.state_dict(), first.state_dict())
    assert origin.source.endswith("/model.safetensors")
    three, _ = build_classifier(SMALL.model_copy(update={"weights": str(tmp_path)}), 3)
    torch.testing.assert_close(three.backbone.conv1.weight, first.backbone.conv1.weight)
    assert three.head.out_features == 3


class _Hostile:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], published: torchvision.models.ResNet
):
    (tmp_path / "noise.safetensors").write_bytes(b"\x00" * 100)
    (tmp_path / "noise.pth").write_bytes(b"not a zip")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"fc.weight": _Hostile()}))
    torch.save([1, 2, 3], tmp_path / "list.pth")
    for name in ("noise.safetensors", "noise.pth", "hostile.pth", "list.pth", "absent.pth"):
        with pytest.raises(WeightsError, match=name):
            read_weights(tmp_path / name)
    assert "ran" not in capsys.readouterr().out
    wrong = Classifier(Network(architecture="resnet34", channels=3), 2)
    with pytest.raises(WeightsError, match=r"missing .*another architecture"):
        load_backbone(wrong, published.state_dict(), "resnet18.pth")


@pytest.fixture
def server(tmp_path: Path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_imagenet_is_downloaded_once_and_verified(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published):
    import hashlib

    folder, url = server
    torch.save(published.state_dict(), folder / "resnet18.pth")
    checksum = hashlib.sha256((folder / "resnet18.pth").read_bytes()).hexdigest()
    monkeypatch.setenv("RADLOOP_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(model.IMAGENET, "resnet18", Download(f"{url}/resnet18.pth", checksum[:8]))
    network, origin = build_classifier(SMALL.model_copy(update={"weights": "imagenet"}), 2)
    torch.testing.assert_close(network.backbone.conv1.weight, published.conv1.weight)
    assert origin.sha256 == checksum
    (folder / "resnet18.pth").unlink()
    assert fetch(model.IMAGENET["resnet18"]).is_file()  # the second time from the folder

    (folder / "other.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match=r"should begin with 00000000, found .*give its path as network.weights"):
        fetch(Download(f"{url}/other.pth", "00000000"))
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        fetch(Download(f"{url}/absent.pth", "00000000"))
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["resnet18.pth"]


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RADLOOP_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(WeightsError, match=r"put it at .*nothing\.pth, or give its path as network\.weights"):
        fetch(Download("http://127.0.0.1:9/nothing.pth", "00000000"))


@pytest.mark.parametrize(
    ("trainable", "trained"), [("head", {"fc"}), ("layer4", {"layer4", "fc"}), ("layer3", {"layer3", "layer4", "fc"})]
)
def test_frozen_stages_do_not_learn_and_keep_their_statistics(trainable: str, trained: set[str]):
    network = Classifier(Network(architecture="resnet18", trainable=trainable), 2).train()
    learning = {name.split(".")[1] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.rand(4, 1, 64, 64)).sum().backward()
    changed = {
        name.split(".")[1] for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed <= trained


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
