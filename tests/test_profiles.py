"""A site's profile: the shipped ones are complete, wrong ones are told what is known, and what changes no object changes no digest."""

from __future__ import annotations

from pathlib import Path
from string import Formatter

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.profile_settings import KINDS, Profile, Texts, Words, load_profile
from pipeline.settings import find_shipped, shipped_names

SHIPPED = ["complete", "german", "standard"]


def test_the_shipped_profiles():
    assert shipped_names("configs/profiles") == SHIPPED
    assert "standard" not in shipped_names("configs")
    assert load_profile("standard") == Profile()
    assert load_profile("complete").write == list(KINDS)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_is_written_out(name: str):
    written = yaml.safe_load(find_shipped("configs/profiles", name).read_text())
    assert written == load_profile(name).model_dump(mode="json")
    assert list(written) == list(Profile.model_fields)


def test_german_is_german_throughout():
    english, german = flat(Texts()), flat(load_profile("german").texts)
    assert [key for key, text in english.items() if german[key] == text] == []
    for key, text in english.items():
        if not key.endswith("language"):
            assert {*filled_in(text)} == {*filled_in(german[key])}, key


def flat(words: Words, before: str = "") -> dict[str, str]:
    """Every text of `words` by its key."""
    found: dict[str, str] = {}
    for name in type(words).model_fields:
        value = getattr(words, name)
        if isinstance(value, str):
            found[f"{before}{name}"] = value
        elif isinstance(value, Words):
            found |= flat(value, f"{before}{name}.")
    return found


def filled_in(text: str) -> list[str]:
    return [word for _, word, _, _ in Formatter().parse(text) if word is not None]


def test_each_kind_has_a_series_number_of_its_own():
    numbers = [load_profile("standard").series_number_of(kind) for kind in KINDS]
    assert numbers == list(range(9000, 9000 + len(KINDS)))
    assert Profile(series_numbers={"seg": 7}).series_number_of("seg") == 7


def test_kinds_are_written_once_and_in_their_order():
    assert Profile(write=["sr", "sc", "sr"]).write == ["sc", "sr"]


def test_neither_name_nor_kinds_change_an_object():
    standard = Profile()
    assert standard.model_copy(update={"name": "ours", "write": ["pdf"]}).content_digest == standard.content_digest
    for change in ({"region": 0.4}, {"compression": "rle"}, {"series_number": 100}):
        assert Profile(**change).content_digest != standard.content_digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("write: [sx]", "write.0"),
        ("colors: {colormap: plazma}", "a colormap of matplotlib"),
        ("texts: {cell: 'one cell is {sise}'}", "texts.cell: what can be filled in here: {size}"),
        ("texts: {research_only: 'only {name}'}", "filled in here: none"),
        ("texts: {scope: {rule: 'left out by {how}'}}", "texts.scope.rule: what can be filled in here: {rule}"),
        ("texts: {model: '{name.__class__}'}", "filled in here"),
        ("timezone: '+9900'", "timezone"),
        ("regoin: 0.5", "did you mean region"),
        ("series_numbers: {seg: 0}", "series_numbers.seg"),
    ],
)
def test_a_wrong_profile_is_one_message(content: str, message: str, tmp_path: Path):
    path = tmp_path / "site.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"site\.yaml") as caught:
        load_profile(str(path))
    assert message in str(caught.value)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean german"):
        load_profile("germann")
