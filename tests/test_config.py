"""Configurations: the shipped ones are complete, unknown keys are refused with the nearest known one, overrides are checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, digest, dump_yaml, find_shipped, load_config, parse_settings, shipped_names
from pipeline.errors import ConfigError

SHIPPED = [
    "chest_xray",
    "ct_slices",
    "ct_slices_report",
    "demo",
    "fconet",
    "histology",
    "series_attention",
    "series_volume",
]


def test_what_ships():
    assert shipped_names("configs") == SHIPPED
    assert shipped_names("data_manifests") == ["chest_xray", "ct_slices", "demo", "fconet", "histology", "series"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_complete(name: str):
    """Every field is written out, none left to a default that a reader cannot see."""
    written = yaml.safe_load(find_shipped("configs", name).read_text())
    resolved = yaml.safe_load(dump_yaml(load_config(name)))
    assert _keys(written) == _keys(resolved)


def _keys(tree: object, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return {prefix}
    return {key for name, value in tree.items() for key in _keys(value, f"{prefix}.{name}")}


def test_the_report_recipe_number_for_number():
    config = load_config("ct_slices_report")
    assert (config.network.architecture, config.preprocessing.size, config.preprocessing.scaling) == (
        "resnet50",
        64,
        "min_max",
    )
    assert (config.training.batch_size, config.training.epochs) == (64, 50)
    assert (config.training.optimizer, config.training.learning_rate) == ("adam", 0.003)
    assert config.training.plateau is not None
    augmentation = config.augmentation
    assert min(augmentation.flip_horizontal, augmentation.flip_vertical, augmentation.zoom, augmentation.shift) > 0


def test_every_field_is_documented():
    def undocumented(model: type) -> list[str]:
        return [f"{model.__name__}.{name}" for name, field in model.model_fields.items() if not field.description]  # type: ignore[attr-defined]

    from pipeline import config, manifest, run

    models = [
        value
        for module in (config, manifest, run)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, config.Settings) and value is not config.Settings
    ]
    assert len(models) > 10
    assert [name for model in models for name in undocumented(model)] == []


@pytest.mark.parametrize("name", shipped_names("configs"))
@pytest.mark.parametrize("epochs", [1, 2, 5, 100])
def test_any_configuration_trains_for_as_many_epochs_as_are_asked_for(name: str, epochs: int):
    training = load_config(name, [f"training.epochs={epochs}"]).training
    assert training.epochs == epochs
    assert 0 <= training.plain_epochs <= epochs * 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=5", "did you mean epochs"),
        ("trainin.epochs=5", "did you mean training"),
        ("training.plateau.patiense=5", "did you mean patience"),
        ("training.epochs=0", "training.epochs"),
        ("training.plain_share=3", "training.plain_share"),
        ("preprocessing.window=lungs", "preprocessing.window"),
        ("training.epochs", "expected key=value"),
        ("name.first=x", "name is a value"),
        ("network.channels=2", "network.channels"),
        ("training.epochs=[", "not valid YAML"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [override])


def test_overrides_are_applied():
    config = load_config(
        "demo", ["training.epochs=3", "preprocessing.window={center: 0, width: 100}", "training.plateau=null"]
    )
    assert config.training.epochs == 3
    assert config.training.plateau is None
    assert config.preprocessing.window.center == 0  # type: ignore[union-attr]


def test_unknown_names_list_what_there_is(tmp_path: Path):
    with pytest.raises(ConfigError, match="Did you mean ct_slices"):
        load_config("ct_slice")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "mine.yaml"))


def test_broken_files_are_one_message(tmp_path: Path):
    for content in ("a: [", "- a\n- b\n", "\xff\xfe"):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ConfigError, match=r"mine\.yaml"):
            load_config(str(path))


def test_dump_and_parse_are_inverse():
    config = load_config("chest_xray")
    again = parse_settings(Config, yaml.safe_load(dump_yaml(config)), "dumped")
    assert again == config
    assert digest(again) == digest(config)
    assert digest(config) != digest(load_config("chest_xray", ["seed=1"]))


def test_a_manifest_beside_the_configuration_is_found(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("name: mine\nclasses: [a, b]\nsources: [{path: .}]\nlabels: {source: folder}\n")
    (tmp_path / "config.yaml").write_text("name: mine\nmanifest: mine.yaml\n")
    assert load_config(str(tmp_path / "config.yaml")).manifest == str((tmp_path / "mine.yaml").resolve())


def test_normalization_has_one_value_a_channel():
    with pytest.raises(ConfigError, match="1 value"):
        load_config("demo", ["preprocessing.normalization={mean: [0.5, 0.5], std: [1, 1]}"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("preprocessing.window=lungs", "did you mean lung?"),
        ("preprocessing.window=[lung, bone]", "or three of them, found ['lung', 'bone']"),
        ("preprocessing.window=[lung, bone, brian]", "did you mean brain?"),
        ("preprocessing.window=7", "expected one of lung, "),
        ("preprocessing.voi=-1", "expected a number from 0, or a word"),
    ],
)
def test_a_wrong_window_is_one_message(override: str, told: str):
    with pytest.raises(ConfigError) as raised:
        load_config("ct_slices", [override])
    message = str(raised.value)
    assert told in message
    assert message.count("preprocessing.") == 2, "the override and the key, once each"
