"""Near-duplicates: images that look alike are found whatever their order, and their patients become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline.cohort.cases import Cases
from pipeline.cohort.duplicates import (
    ImageHashes,
    connected,
    hash_images,
    join_near_duplicates,
    near_duplicate_groups,
    near_pairs,
)
from pipeline.manifest import NearDuplicates
from tests.images import image_table

RECOMMENDED = 2
"""On `ct_slices_png` neighbouring slices of a patient; from 4 on strangers, and chains that join nearly all (see the last test)."""


def _hashes(bits: list[int], there: list[bool] | None = None) -> ImageHashes:
    return ImageHashes(np.array(bits, dtype=np.uint64), np.array(there or [True] * len(bits), dtype=bool), 0)


def _partition(groups: Any) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)}


def _brute_force(bits: list[int], distance: int) -> set[frozenset[int]]:
    groups = [{place} for place in range(len(bits))]
    for one in range(len(bits)):
        for other in range(one):
            if (bits[one] ^ bits[other]).bit_count() <= distance:
                joined = groups[one] | groups[other]
                for place in joined:
                    groups[place] = joined
    return {frozenset(group) for group in groups}


@st.composite
def some_hashes(draw: st.DrawFn) -> list[int]:
    """Some hashes, and others a few bits from them."""
    seeds = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
    flips = st.tuples(st.sampled_from(seeds), st.lists(st.integers(0, 63), max_size=10))
    bits = []
    for seed, places in draw(st.lists(flips, max_size=25)):
        for place in places:
            seed ^= 1 << place
        bits.append(seed)
    return bits


@settings(max_examples=200, deadline=None)
@given(some_hashes(), st.integers(0, 16), st.randoms(use_true_random=False))
def test_groups_are_those_of_all_pairs_whatever_the_order(bits: list[int], distance: int, random: Any):
    groups = near_duplicate_groups(_hashes(bits), distance)
    assert _partition(groups) == _brute_force(bits, distance)
    order = random.sample(range(len(bits)), len(bits))
    shuffled = near_duplicate_groups(_hashes([bits[place] for place in order]), distance)
    assert {frozenset(order[place] for place in group) for group in _partition(shuffled)} == _partition(groups)


@pytest.mark.parametrize("distance", [0, 2, 5, 16])
def test_near_pairs_are_all_pairs_within_the_distance(distance: int):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**63, 60, dtype=np.uint64)
    bits = np.concatenate([bits, bits ^ (np.uint64(1) << random.integers(0, 63, 60).astype(np.uint64)), bits[:5]])
    found = {frozenset((int(a), int(b))) for pair in near_pairs(bits, distance) for a, b in zip(*pair, strict=True)}
    apart = np.bitwise_count(bits[:, None] ^ bits[None, :])
    assert found == {frozenset((a, b)) for a in range(len(bits)) for b in range(a) if apart[a, b] <= distance}


def test_images_without_hash_are_alone():
    groups = near_duplicate_groups(_hashes([7, 7, 7, 8], [True, False, True, False]), 2)
    assert _partition(groups) == {frozenset({0, 2}), frozenset({1}), frozenset({3})}


def test_many_that_are_alike_need_no_memory_for_their_pairs(monkeypatch: pytest.MonkeyPatch):
    """3,000 hashes that are all near each other: millions of links, of which 10,000 are held at a time."""
    monkeypatch.setattr("pipeline.cohort.duplicates.LINKS_HELD", 10_000)
    bits = np.arange(3000, dtype=np.uint64)  # they differ in the twelve lowest bits alone
    groups = connected(len(bits), near_pairs(bits, 12))
    assert len(np.unique(groups)) == 1


# Pictures


def _picture(seed: int, size: int = 96) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def _cases(folder: Path, pictures: dict[str, Image.Image], patients: dict[str, str]) -> Cases:
    for name, picture in pictures.items():
        picture.save(folder / name)
    rows = []
    for name in pictures:
        stat = (folder / name).stat()
        form = "jpeg" if name.endswith("jpg") else "png"
        rows.append({"path": name, "format": form, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    images = image_table(rows)
    images["case_id"], images["frame"] = images["path"], 0
    images["patient_key"] = pd.Series([patients[name] for name in pictures], dtype="category")
    cases = pd.DataFrame({"case_id": images["path"], "patient_key": images["patient_key"].astype("str")})
    return Cases(cases, images, pd.DataFrame(), ("before",))


def _joined(folder: Path, cases: Cases, distance: int = RECOMMENDED) -> Cases:
    return join_near_duplicates(cases, {"export": folder}, NearDuplicates(distance=distance), workers=0)


def _patients(cases: Cases) -> dict[str, str]:
    assert cases.images["patient_key"].astype("str").tolist() == cases.cases["patient_key"].tolist()
    return dict(zip(cases.cases["case_id"], cases.cases["patient_key"], strict=True))


def test_copies_in_another_size_compression_and_brightness_are_found(tmp_path: Path):
    picture = _picture(1)
    pictures = {
        "a.png": picture, "b.jpg": picture, "c.png": picture.resize((130, 130), Image.Resampling.BICUBIC),
        "d.png": picture.point(lambda value: value // 2 + 20), "e.png": picture.filter(ImageFilter.GaussianBlur(1)),
        "other.png": _picture(2), "another.png": _picture(3),
    }  # fmt: skip
    joined = _joined(tmp_path, _cases(tmp_path, pictures, {name: f"p-{name}" for name in pictures}))
    assert _patients(joined) == {
        **dict.fromkeys(("a.png", "b.jpg", "c.png", "d.png", "e.png"), "p-a.png"),
        "other.png": "p-other.png", "another.png": "p-another.png",
    }  # fmt: skip
    assert joined.warnings == (
        "before",
        "5 patients joined into 1 group: they have images whose perceptual hashes differ in at most 2 of 64 bits",
    )


def test_patients_are_joined_through_each_other_and_known_ones_name_the_group(tmp_path: Path):
    one, two = _picture(1), _picture(2)
    pictures = {"1.png": one, "2.png": one, "3.png": two, "4.png": two, "5.png": _picture(3)}
    patients = {"1.png": "unknown-0", "2.png": "f0", "3.png": "f0", "4.png": "zz", "5.png": "other"}
    joined = _joined(tmp_path, _cases(tmp_path, pictures, patients))
    assert _patients(joined) == {**dict.fromkeys(("1.png", "2.png", "3.png", "4.png"), "f0"), "5.png": "other"}
    assert joined.warnings[1].startswith("3 patients joined into 1 group")


def test_blank_images_and_what_does_not_decode_join_nobody(tmp_path: Path):
    blank = Image.new("L", (64, 64), 0)
    pictures = {"1.png": blank, "2.png": blank, "3.png": Image.new("L", (64, 64), 255), "4.png": _picture(1)}
    pictures |= {"5.png": _picture(1), "6.png": _picture(1)}
    cases = _cases(tmp_path, pictures, {name: name for name in pictures})
    (tmp_path / "5.png").write_bytes(b"gone bad")
    joined = _joined(tmp_path, cases)
    assert _patients(joined) == {name: "4.png" if name == "6.png" else name for name in pictures}
    assert joined.warnings[1:] == (
        "2 patients joined into 1 group: they have images whose perceptual hashes differ in at most 2 of 64 bits",
        "1 image does not decode and was compared with no other",
    )


def test_hashing_in_worker_processes_is_hashing_here(tmp_path: Path):
    pictures = {f"{number}.png": _picture(number) for number in range(6)}
    images = _cases(tmp_path, pictures, {name: name for name in pictures}).images
    here, there = (hash_images(images, {"export": tmp_path}, workers=workers) for workers in (0, 2))
    assert here.bits.tolist() == there.bits.tolist()
    assert here.there.all()
    assert there.there.all()


@pytest.mark.real_data
@pytest.mark.slow
def test_groups_of_the_ct_slices(real_data: Path):
    """959 slices of unknown patients, two folders of which no patient is in both."""
    root = real_data / "ct_slices_png"
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    stats = [(root / path).stat() for path in paths]
    images = image_table(
        [
            {"path": path, "format": "png", "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            for path, stat in zip(paths, stats, strict=True)
        ]
    )
    images["case_id"], images["frame"] = images["path"], 0
    hashes = hash_images(images, {"export": root})
    assert hashes.there.all()
    folder = images["path"].str.split("/").str[0]
    counts = {distance: near_duplicate_groups(hashes, distance) for distance in (0, RECOMMENDED, 8)}
    assert 940 <= len(np.unique(counts[0])) <= 957
    assert 895 <= len(np.unique(counts[RECOMMENDED])) <= 925
    across = [int((folder.groupby(groups).nunique() > 1).sum()) for groups in counts.values()]
    assert across[:2] == [0, 0]
    assert across[2] > 0  # so far, strangers are joined: no distance to choose
