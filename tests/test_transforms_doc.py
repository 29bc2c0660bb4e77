"""Every example of docs/transforms.md and docs/pixels.md runs as it stands, by itself, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transforms
from pipeline.dicom.phantom_objects import ct_slice, save

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "transforms.md").read_text(encoding="utf-8")
PIXELS_PAGE = (DOCS / "pixels.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CLAIM = re.compile(r"^(?P<expression>\S.*?)  # → (?P<result>.+)$", re.MULTILINE)
SHAPE = (96, 128)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page speaks of; examples run there."""
    noise = np.random.default_rng(0)
    save(ct_slice(hu=noise.normal(-500, 300, SHAPE).astype(np.float32)), tmp_path / "slice.dcm")
    Image.fromarray(noise.integers(0, 2**16, SHAPE, dtype=np.uint16)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_examples_that_claim_something() -> None:
    assert len(BLOCKS) >= 14
    assert all(CLAIM.search(block) for block in BLOCKS)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_example(block: str) -> None:
    names: dict[str, object] = {}
    exec(CLAIM.sub("", block), names)
    for claim in CLAIM.finditer(block):
        assert repr(eval(claim["expression"], names)) == claim["result"], claim["expression"]


def test_example_of_the_volume(place: Path) -> None:
    (place / "series").mkdir()
    for number in range(5):
        slice_ = ct_slice(instance_number=number + 1, position_mm=(0.0, 0.0, 3.0 * number))
        save(slice_, place / "series" / f"{number}.dcm")
    names: dict[str, object] = {}
    (block,) = re.findall(r"```python\n(.*?)```", PIXELS_PAGE, re.DOTALL)
    exec(block, names)
    assert names["volume"].voxels.shape == (5, 64, 64)  # type: ignore[attr-defined]
    assert names["image"].GetSpacing()[2] == pytest.approx(3.0)  # type: ignore[attr-defined]
    assert (place / "series.nii.gz").is_file()


def test_every_part_of_the_table_is_public() -> None:
    table = PAGE[PAGE.index("| part |") : PAGE.index("## DICOM")]
    parts = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])]
    assert len(parts) >= 8
    public = {*transforms.__all__, "DicomReader", "LoadImaged"}
    assert set(parts) <= public


def test_public_names_are_there_once_and_in_the_modules_words() -> None:
    assert len(set(transforms.__all__)) == len(transforms.__all__)
    assert all(hasattr(transforms, name) for name in transforms.__all__)
