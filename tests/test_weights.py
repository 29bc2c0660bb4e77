"""First weights: published, from a file or an earlier run; folded to gray exactly; what is wrong with them is said in one message."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.config import Network
from pipeline.errors import WeightsError
from pipeline.networks import weights
from pipeline.networks.input_layer import GRAY_STATISTICS, IMAGENET_STATISTICS, InputStatistics
from pipeline.networks.model import Classifier, build_classifier
from pipeline.networks.weight_names import fit_weights
from pipeline.networks.weights import Download, fetch, load_first_weights, read_weights
from transforms.chains import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
"""The same sums in another order."""


def with_statistics(network: nn.Module) -> nn.Module:
    """Random batch-norm statistics, as a published file would hold."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """torchvision's ResNet-18 with random weights."""
    torch.manual_seed(0)
    return with_statistics(torchvision.models.resnet18(weights=None))


def small(path: Path | str = "none", **settings: object) -> Network:
    return Network(**{"architecture": "resnet18", "channels": 3, "weights": str(path), **settings})  # type: ignore[arg-type]


def saved(path: Path, state: Mapping[str, torch.Tensor]) -> Path:
    tensors = {name: value.contiguous() for name, value in state.items()}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_backbone(network: Classifier, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    for name, value in network.backbone.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_is_the_start(published: nn.Module, tmp_path: Path, suffix: str):
    path = saved(tmp_path / f"weights{suffix}", published.state_dict())
    network, origin = build_classifier(small(path), 2)
    same_backbone(network, published)
    assert (origin.source, origin.sha256) == (path.name, digest(path))


def numbered(network: nn.Module) -> dict[str, torch.Tensor]:
    """As RadImageNet's files: the children in an nn.Sequential that is called backbone."""
    sequence = nn.Sequential(*list(network.children())[:9])
    return {f"backbone.{name}": value for name, value in sequence.state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "encoder.", "model.", "module.model.", "_orig_mod.", "net."]
)
@pytest.mark.parametrize("nested", [True, False])
def test_what_training_scripts_put_around_the_names_is_taken_off(
    published: nn.Module, tmp_path: Path, prefix: str, nested: bool
):
    state = {prefix + name: value for name, value in published.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if nested else state, tmp_path / "w.pth")
    network, _ = build_classifier(small(tmp_path / "w.pth"), 2)
    same_backbone(network, published)
    network, _ = build_classifier(small(tmp_path / "w.pth", architecture="timm:resnet18"), 2, 64)
    same_backbone(network, published)


def test_radimagenets_naming_of_resnets_and_densenets(tmp_path: Path):
    torch.manual_seed(0)
    for theirs, architecture in (
        (torchvision.models.resnet50(weights=None), "resnet50"),
        (torchvision.models.densenet121(weights=None), "timm:densenet121"),
    ):
        state = numbered(theirs)
        assert "backbone.0.weight" in state or "backbone.0.conv0.weight" in state
        path = saved(tmp_path / "radimagenet.pt", state)
        half = InputStatistics((0.5,) * 3, (0.5,) * 3)
        network, _ = build_classifier(Network(architecture=architecture, channels=3, weights=str(path)), 2, 64, half)
        same_backbone(network, theirs)


def test_radimagenets_range_goes_into_the_first_convolution(tmp_path: Path):
    """It was trained on images from -1 to 1; radloop's gray images are normalised by ImageNet's statistics."""
    torch.manual_seed(0)
    theirs = with_statistics(torchvision.models.resnet50(weights=None))
    path = saved(tmp_path / "radimagenet.pt", numbered(theirs))
    images = torch.rand(2, 1, 64, 64)
    for channels, statistics in ((1, GRAY_STATISTICS), (3, IMAGENET_STATISTICS)):
        network, _ = build_classifier(Network(architecture="resnet50", channels=channels, weights=str(path)), 2)
        ours = after_first_norm(network.eval(), normalised(images, statistics), "conv1", "bn1")
        with torch.no_grad():
            expected = theirs.bn1(theirs.conv1(((images - 0.5) / 0.5).expand(-1, 3, -1, -1)))
        torch.testing.assert_close(inside(ours), inside(expected), **FLOAT32)


def normalised(images: torch.Tensor, statistics: InputStatistics) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (statistics.mean, statistics.std))
    return (images.expand(-1, len(statistics.mean), -1, -1) - mean) / std


def after_first_norm(network: Classifier, images: torch.Tensor, convolution: str, norm: str = "") -> torch.Tensor:
    with torch.no_grad():
        found = network.backbone.get_submodule(convolution)(images)
        return network.backbone.get_submodule(norm)(found) if norm else found


def inside(x: torch.Tensor) -> torch.Tensor:
    """Away from the edge that a kernel reaches over."""
    return x[..., 2:-2, 2:-2]


def test_gray_folding_equals_three_equal_channels(published: nn.Module):
    gray = Classifier(small(channels=1), 2).eval()
    fit_weights(gray, published.state_dict(), "published", GRAY_STATISTICS)
    image = torch.rand(2, 1, 64, 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = published.bn1(published.conv1((image - mean) / std))
        found = gray.backbone.bn1(gray.backbone.conv1((image - GRAY_MEAN[0]) / GRAY_STD[0]))
    torch.testing.assert_close(inside(found), inside(expected), **FLOAT32)
    plain_sum = published.state_dict()["conv1.weight"].sum(dim=1, keepdim=True)
    assert not torch.allclose(gray.backbone.conv1.weight, plain_sum, rtol=0.01)


@pytest.mark.parametrize(
    ("name", "convolution", "norm"),
    [
        ("densenet121", "features.conv0", "features.norm0"),
        ("mobilenetv3_small_050", "conv_stem", "bn1"),
        ("convnext_atto", "stem.0", ""),  # a bias of its own
        ("vit_tiny_patch16_224", "patch_embed.proj", ""),
        ("vit_base_patch32_clip_224", "patch_embed.proj", ""),  # none: it is given one
    ],
)
def test_gray_folding_of_timms_networks(name: str, convolution: str, norm: str):
    torch.manual_seed(0)
    theirs = with_statistics(timm.create_model(name, in_chans=3))
    network = Classifier(Network(architecture=f"timm:{name}"), 2).eval()
    facts = timm.get_pretrained_cfg(name)
    statistics = InputStatistics(facts.mean, facts.std)
    fit_weights(network, theirs.state_dict(), name, GRAY_STATISTICS, statistics)
    images = torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        expected = theirs.get_submodule(convolution)(normalised(images, statistics))
        expected = theirs.get_submodule(norm)(expected) if norm else expected
    found = after_first_norm(network, normalised(images, GRAY_STATISTICS), convolution, norm)
    torch.testing.assert_close(inside(found), inside(expected), **FLOAT32)


def test_a_first_convolution_that_standardises_its_weights_cannot_be_folded():
    theirs = timm.create_model("resnetv2_50x1_bit", in_chans=3)
    network = Classifier(Network(architecture="timm:resnetv2_50x1_bit"), 2, 64)
    with pytest.raises(WeightsError, match=r"resnetv2.*standardises its weights.*another network"):
        fit_weights(network, theirs.state_dict(), "resnetv2.pth", GRAY_STATISTICS)
    colour = Classifier(Network(architecture="timm:resnetv2_50x1_bit", channels=3), 2, 64)
    fit_weights(colour, theirs.state_dict(), "resnetv2.pth", IMAGENET_STATISTICS)


def test_timms_files_of_another_size_are_brought_to_this_one(tmp_path: Path):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64)
    path = saved(tmp_path / "vit.safetensors", theirs.state_dict())
    network, _ = build_classifier(
        Network(architecture="timm:vit_tiny_patch16_224", channels=3, weights=str(path)), 2, 96
    )
    assert network.backbone.pos_embed.shape == (1, 37, 192)
    torch.testing.assert_close(network.backbone.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_an_earlier_run_is_the_start(tmp_path: Path, head: str, pooling: str):
    kind = {"head": head, "pooling": pooling, "head_channels": 16}
    first, _ = build_classifier(small(**kind), 2)
    saved(tmp_path / "model.safetensors", first.state_dict())
    second, origin = build_classifier(small(tmp_path, **kind), 2)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert origin.source == f"{tmp_path.name}/model.safetensors"
    three, _ = build_classifier(small(tmp_path, **kind), 3)
    same_backbone(three, first.backbone)
    assert three.head.out_features == 3
    torch.testing.assert_close(three.block.state_dict(), first.block.state_dict())


def test_a_run_of_another_head_gives_its_backbone(tmp_path: Path):
    first, _ = build_classifier(small(head="conv", head_channels=512), 2)
    saved(tmp_path / "model.safetensors", first.state_dict())
    second, _ = build_classifier(small(tmp_path), 2)
    same_backbone(second, first.backbone)
    assert not torch.equal(second.head.weight, first.head.weight), (
        "a head of the same size behind another block is none"
    )
    volumes = {f"backbone.{name}": value for name, value in first.backbone.state_dict().items()}
    older = {**volumes, "backbone.fc.weight": torch.ones(2, 512), "backbone.fc.bias": torch.ones(2)}
    saved(tmp_path / "model.safetensors", older)
    second, _ = build_classifier(small(tmp_path), 2)
    assert torch.equal(second.head.weight, torch.ones(2, 512)), "as radloop's first runs had it"


def test_a_run_of_a_timm_network_is_the_start(tmp_path: Path):
    network = Network(architecture="timm:mobilenetv3_small_050")
    first, _ = build_classifier(network, 2, 32)
    saved(tmp_path / "model.safetensors", first.state_dict())
    second, _ = build_classifier(network.model_copy(update={"weights": str(tmp_path)}), 2, 32)
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


class _Hostile:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_files_that_are_no_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "noise.safetensors").write_bytes(b"\x00" * 100)
    (tmp_path / "noise.pth").write_bytes(b"not a zip")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"fc.weight": _Hostile()}))
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"conv1.weight": 3}, tmp_path / "numbers.pth")
    for name in ("noise.safetensors", "noise.pth", "empty.pth", "hostile.pth", "list.pth", "numbers.pth"):
        with pytest.raises(WeightsError, match=name):
            read_weights(tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_what_is_not_there_is_told(tmp_path: Path):
    for given in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(WeightsError, match=r"no such weights file; give none, imagenet, .* or a run's folder"):
            build_classifier(small(given), 2)
    (tmp_path / "fold-0").mkdir()
    with pytest.raises(WeightsError, match=r"a run of folds; give one of them, such as .*fold-0"):
        build_classifier(small(tmp_path), 2)


def test_weights_of_another_network_say_where_they_differ(published: nn.Module):
    state = dict(published.state_dict())
    wrong = Classifier(Network(architecture="resnet34", channels=3), 2)
    with pytest.raises(
        WeightsError, match=r"r18\.pth: .*missing \(first: layer1\.2\.bn1\.bias\).*another architecture"
    ):
        fit_weights(wrong, state, "r18.pth", IMAGENET_STATISTICS)
    network = Classifier(small(), 2)
    before = network.backbone.conv1.weight.clone()
    with pytest.raises(WeightsError, match=r"1 unknown \(first: extra\)"):
        fit_weights(network, {**state, "extra": torch.ones(1)}, "r18.pth", IMAGENET_STATISTICS)
    state["conv1.weight"] = torch.ones(64, 4, 7, 7)
    told = re.escape("conv1.weight, expected (64, 3, 7, 7), found (64, 4, 7, 7)")
    with pytest.raises(WeightsError, match=told):
        fit_weights(network, state, "r18.pth", IMAGENET_STATISTICS)
    assert torch.equal(network.backbone.conv1.weight, before), "nothing is loaded of what does not fit"


def test_a_files_checksum_is_held_to_what_the_configuration_says(published: nn.Module, tmp_path: Path):
    path = saved(tmp_path / "w.pth", published.state_dict())
    right = digest(path)
    for length in (8, 20, 64):
        assert build_classifier(small(path, weights_sha256=right[:length]), 2)[1].sha256 == right
    with pytest.raises(
        WeightsError, match=rf"w\.pth: its sha256 should begin with 00000000 .*, found {right[:8]}: .*get it again"
    ):
        build_classifier(small(path, weights_sha256="00000000"), 2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address where its files are served: as they are, as the Hugging Face hub serves them, and cut short."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = folder / self.path.split("?")[0].removeprefix("/").replace("/resolve/main/", "/")
            cut = "cut" in path.name
            if not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if cut else content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADLOOP_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_imagenet_is_downloaded_once_and_verified(server, weights_folder: Path, monkeypatch, published: nn.Module):
    folder, url = server
    path = saved(folder / "resnet18.pth", published.state_dict())
    checksum = digest(path)
    monkeypatch.setitem(weights.IMAGENET, "resnet18", Download(f"{url}/resnet18.pth", checksum[:8]))
    network, origin = build_classifier(small("imagenet"), 2)
    same_backbone(network, published)
    assert (origin.source, origin.sha256) == ("resnet18.pth", checksum)
    path.unlink()
    assert fetch(weights.IMAGENET["resnet18"]).is_file(), "the second time from the folder"
    assert [path.name for path in weights_folder.iterdir()] == ["resnet18.pth"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other.pth", r"should begin with 00000000, found [0-9a-f]{8}; .*give its path as network\.weights"),
        ("absent.pth", r"cannot be downloaded \(.*404.*\); download it elsewhere and put it at .*absent\.pth"),
        ("cut.pth", r"broke off after 500 of 1,000 bytes; try again, or download it elsewhere"),
    ],
)
def test_what_a_server_may_do_wrong(server, weights_folder: Path, name: str, told: str):
    folder, url = server
    (folder / "other.pth").write_bytes(b"something else")
    (folder / "cut.pth").write_bytes(b"x" * 1000)
    with pytest.raises(WeightsError, match=told):
        fetch(Download(f"{url}/{name}", "00000000"))
    assert not any(weights_folder.iterdir()), "nothing of it is left"


def test_without_a_network_the_message_says_what_to_do(weights_folder: Path):
    told = r"cannot be downloaded \(.*refused.*\); .*put it at .*nothing\.pth, or give its path as network\.weights"
    with pytest.raises(WeightsError, match=told):
        fetch(Download("http://127.0.0.1:9/nothing.pth", "00000000"))


TINY = "timm:mobilenetv3_small_050"


@pytest.fixture
def hub(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face hub of our own: the folder of its one repository."""
    folder, url = server
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    repository = folder / "timm" / "mobilenetv3_small_050.lamb_in1k"
    repository.mkdir(parents=True)
    return repository


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_timms_weights_come_from_the_hub_once(hub: Path, name: str):
    theirs = with_statistics(timm.create_model("mobilenetv3_small_050"))
    path = saved(hub / name, theirs.state_dict())
    checksum = digest(path)
    for _ in range(2):
        network, origin = build_classifier(Network(architecture=TINY, channels=3, weights="imagenet"), 2, 32)
        same_backbone(network, theirs)
        assert origin.source == f"timm/mobilenetv3_small_050.lamb_in1k/{name}"
        assert origin.sha256 == checksum
        path.unlink(missing_ok=True)
    wanted = Network(architecture=TINY, channels=3, weights="imagenet", weights_sha256="00000000")
    with pytest.raises(WeightsError, match="should begin with 00000000"):
        build_classifier(wanted, 2, 32)


def test_a_hub_that_does_not_answer_or_has_nothing_is_told(hub: Path, monkeypatch: pytest.MonkeyPatch):
    network = Network(architecture=TINY, weights="imagenet")
    with pytest.raises(
        WeightsError, match=r"has none of model\.safetensors, pytorch_model\.bin on the Hugging Face hub"
    ):
        build_classifier(network, 2, 32)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub's client waits between its five attempts
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(
        WeightsError, match=r"cannot be downloaded from the Hugging Face hub \(.*give its path as network"
    ):
        build_classifier(network, 2, 32)


def test_timms_weights_of_an_address_are_verified_by_their_name(server, weights_folder: Path):
    """Xception's file is on no hub; its address ends with its checksum, as torch.hub has it."""
    folder, url = server
    theirs = with_statistics(timm.create_model("legacy_xception"))
    path = saved(folder / "xception.pth", theirs.state_dict())
    path = path.rename(folder / f"xception-{digest(path)[:9]}.pth")
    network = Classifier(Network(architecture="timm:xception", channels=3), 2, 96)
    network.backbone.pretrained_cfg["url"] = f"{url}/{path.name}"
    origin = load_first_weights(network, Network(architecture="timm:xception", channels=3, weights="imagenet"))
    assert (origin.source, origin.sha256) == (path.name, digest(path))
    statistics = InputStatistics((0.5,) * 3, (0.5,) * 3)
    images = torch.rand(1, 3, 96, 96)
    found = after_first_norm(network.eval(), normalised(images, IMAGENET_STATISTICS), "conv1", "bn1")
    with torch.no_grad():
        expected = theirs.bn1(theirs.conv1(normalised(images, statistics)))
    torch.testing.assert_close(found, expected, **FLOAT32)


def test_a_network_without_published_weights_is_told():
    with pytest.raises(WeightsError, match="timm has no weights for mixer_s32_224; give none, a file, or a network of"):
        build_classifier(Network(architecture="timm:mixer_s32_224", weights="imagenet"), 2)
