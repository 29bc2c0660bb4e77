"""Near-duplicates: patients whose images look alike are taken for one.

Each frame is decoded in a worker process and hashed (pHash of the imagehash package: 64 bits, the signs of the low frequencies of the
gray image about their median), so that neighbouring slices and copies in another size or compression differ in few bits. Images
within a distance are linked, and what is linked by a chain of them is one group; its patients become one, under the smallest of
their keys. Blank images and those that do not decode are like no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pipeline.cohort.cases import Cases
from pipeline.cohort.patients import UNKNOWN_PATIENT
from pipeline.manifest import NearDuplicates
from pipeline.prepared.dataset import DECODE_MEMORY_BYTES, DECODE_TIMEOUT_S, ImageFile, image_files, read_image
from pipeline.progress import track
from pipeline.work import Failure, default_workers, run_each
from transforms.intensity import WINDOWS, to_unit_range

BITS = 64
THUMBNAIL = 32
"""Side in pixels to which pHash shrinks an image; one without any contrast there has no hash."""
WINDOW = WINDOWS["wide"]
"""Of images in Hounsfield units: shows air, soft tissue and bone, whatever the model looks at."""
FILES_A_BATCH = 8192
LINKS_HELD = 2**20
"""Links that are kept before groups are formed of them: some tens of MiB, however many images are alike."""

Hashes = NDArray[np.uint64]
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class ImageHashes:
    """`bits` (n,); `there` (n,): whether the image has a hash; `failed`: how many images do not decode."""

    bits: Hashes
    there: NDArray[np.bool_]
    failed: int


def join_near_duplicates(
    cases: Cases,
    roots: Mapping[str, Path],
    near: NearDuplicates,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Cases:
    """The same cases, with one `patient_key` for patients whose images are near-duplicates, and a warning of how many were joined."""
    hashes = hash_images(cases.images, roots, workers=workers, progress=progress)
    patients, names = cases.images["patient_key"].factorize()
    joined = _joined_names(_join(patients, near_duplicate_groups(hashes, near.distance)), [str(name) for name in names])
    renamed = dict(zip(names, joined, strict=True))
    return replace(
        cases,
        cases=cases.cases.assign(patient_key=_renamed(cases.cases["patient_key"], renamed)),
        images=cases.images.assign(patient_key=_renamed(cases.images["patient_key"], renamed)),
        joined={str(name): new for name, new in renamed.items() if str(name) != new},
        warnings=(*cases.warnings, *_told(joined, near.distance, hashes.failed)),
    )


def hash_images(
    images: pd.DataFrame, roots: Mapping[str, Path], *, workers: int | None = None, progress: bool = False
) -> ImageHashes:
    """One hash a row (a file and frame), decoded in worker processes under `pipeline.prepared.dataset`'s budget."""
    bits, there = np.zeros(len(images), dtype=np.uint64), np.zeros(len(images), dtype=bool)
    failed = 0
    outcomes = run_each(
        hash_image,
        _files(images, dict(roots)),
        workers=default_workers() if workers is None else workers,
        timeout_s=DECODE_TIMEOUT_S,
        memory_bytes=DECODE_MEMORY_BYTES,
        chunk=4,
    )
    for row, (_, outcome) in enumerate(track(outcomes, "compare images", len(images), show=progress)):
        if isinstance(outcome, Failure):
            failed += 1
        elif outcome is not None:
            bits[row], there[row] = outcome, True
    return ImageHashes(bits, there, failed)


def _files(images: pd.DataFrame, roots: dict[str, Path]) -> Iterator[ImageFile]:
    for start in range(0, len(images), FILES_A_BATCH):
        yield from image_files(images.iloc[start : start + FILES_A_BATCH], roots)


def hash_image(image: ImageFile) -> int | None:
    """The frame's 64 bits, None where it is blank. Raises Rejected where it cannot be decoded."""
    import imagehash

    shown = np.rint(to_unit_range(read_image(image), WINDOW) * 255.0).astype(np.uint8)
    small = Image.fromarray(shown).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    darkest, brightest = small.getextrema()
    if darkest == brightest:
        return None
    return int(str(imagehash.phash(small)), 16)


def near_duplicate_groups(hashes: ImageHashes, distance: int) -> Groups:
    """(n,) the group of each image, from 0: alike within `distance` bits, directly or through others. Without hash: alone."""
    rows = np.flatnonzero(hashes.there)
    distinct, place = np.unique(hashes.bits[rows], return_inverse=True)
    linked = connected(len(distinct), near_pairs(distinct, distance))
    groups = np.arange(len(hashes.bits), dtype=np.int64) + len(distinct)
    groups[rows] = linked[place]
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def near_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[Groups, Groups]]:
    """Pairs of places of hashes (n,) that differ in at most `distance` bits; some come twice. Memory is linear in n.

    Cut into `distance` + 1 bands, two such hashes are equal in one of them (pigeonhole): only those that share a band are compared,
    each with its first, second, ... follower in the order of the band.
    """
    edges = np.linspace(0, BITS, distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        inside, ordered = band[order], hashes[order]
        end = np.searchsorted(inside, inside, side="right")
        one = np.arange(len(hashes))
        step = 1
        while len(one := one[one + step < end[one]]):
            near = one[np.bitwise_count(ordered[one] ^ ordered[one + step]) <= distance]
            yield order[near], order[near + step]
            step += 1


def connected(count: int, links: Iterable[tuple[Groups, Groups]]) -> Groups:
    """(count,) the component of each node, from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    component = np.arange(count, dtype=np.int64)

    def merge(some: list[tuple[Groups, Groups]]) -> Groups:
        one, other = (component[np.concatenate(ends)] for ends in zip(*some, strict=True))
        graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(count, count))
        return connected_components(graph, directed=False)[1].astype(np.int64)[component]

    held: list[tuple[Groups, Groups]] = []
    for link in links:
        held.append(link)
        if sum(len(one) for one, _ in held) >= LINKS_HELD:
            component, held = merge(held), []
    return merge(held) if held else component


def _join(patients: Groups, groups: Groups) -> Groups:
    """For each patient the component of patients that share groups of images."""
    count = int(patients.max()) + 1 if len(patients) else 0
    _, first = np.unique(groups, return_index=True)
    return connected(count, [(patients, patients[first][groups])])


def _joined_names(components: Groups, names: list[str]) -> list[str]:
    """Each patient's name after joining: the smallest of its component, one who is known before a stand-in."""
    order = sorted(range(len(names)), key=lambda place: (names[place].startswith(UNKNOWN_PATIENT), names[place]))
    smallest: dict[int, str] = {}
    for place in order:
        smallest.setdefault(int(components[place]), names[place])
    return [smallest[int(component)] for component in components]


def _renamed(column: pd.Series, names: Mapping[str, str]) -> pd.Series:
    renamed = column.map(names)
    return renamed.astype("category") if column.dtype == "category" else renamed.astype("str")


def _told(joined: list[str], distance: int, failed: int) -> list[str]:
    told = []
    _, sizes = np.unique(np.array(joined, dtype=object), return_counts=True)
    groups = int((sizes > 1).sum())
    if groups:
        into = "1 group" if groups == 1 else f"{groups} groups"
        told.append(
            f"{int(sizes[sizes > 1].sum())} patients joined into {into}: they have images whose perceptual hashes differ in at most "
            f"{distance} of {BITS} bits"
        )
    if failed:
        images = "1 image does not decode and was" if failed == 1 else f"{failed} images do not decode and were"
        told.append(f"{images} compared with no other")
    return told
