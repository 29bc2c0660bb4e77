"""The objects of one case, one consistent set: the kinds that its sources can have, in an order in which later ones refer to earlier.

Nothing is written here. Why a kind is not made is said, never raised: `Unmade` names the kind and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.dicom import (
    encapsulated_pdf,
    key_objects,
    multiframe_capture,
    overlay_plane,
    parametric_map,
    presentation_state,
    secondary_capture,
    segmentation,
    structured_report,
    voxel_objects,
)
from pipeline.dicom.case_result import CaseResult, Dataset, ResultImage
from pipeline.errors import ObjectError
from pipeline.prediction.case_page import case_page
from pipeline.profile_settings import KINDS, Kind

ALL_IMAGES: frozenset[Kind] = frozenset({"sc-multiframe", "seg", "pmap"})
"""Kinds about every image of a case; the others are about its key images."""

Images = tuple[ResultImage, ...]
Make = Callable[[CaseResult, Images, Sequence[Dataset]], Dataset | None]


@dataclass(frozen=True)
class Made:
    """An object, and the SOPInstanceUIDs of the images that it is about."""

    kind: Kind
    dataset: Dataset
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Unmade:
    """Why there is no object of a kind. `failed`: not because of what the source is, but because it would not have been valid."""

    kind: Kind
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class _Maker:
    """How a kind is made: `why_not` of a source; `divide` the images into those of one object; `make` takes these and what was made
    before, and gives None where there is nothing to show."""

    why_not: Callable[[Dataset], str]
    divide: Callable[[Sequence[ResultImage]], Sequence[Images]]
    make: Make


def objects_of(result: CaseResult, kinds: Sequence[Kind]) -> Iterator[Made | Unmade]:
    """The objects of `kinds`, in the order of `KINDS`, and once for each kind and reason why one is not made."""
    made: list[Dataset] = []
    told: set[Unmade] = set()
    for kind in (one for one in KINDS if one in kinds):
        for outcome in _of_kind(result, kind, made):
            if isinstance(outcome, Made):
                made.append(outcome.dataset)
                yield outcome
            elif outcome not in told:
                told.add(outcome)
                yield outcome


def _of_kind(result: CaseResult, kind: Kind, made: Sequence[Dataset]) -> Iterator[Made | Unmade]:
    maker = _MAKERS[kind]
    reasons: dict[int, str] = {}  # by source, which all frames of a file share
    fit: list[ResultImage] = []
    for image in result.images if kind in ALL_IMAGES else result.key_images:
        if id(image.source) not in reasons:
            reasons[id(image.source)] = maker.why_not(image.source)
        reason = reasons[id(image.source)]
        if reason:
            yield Unmade(kind, reason)
        else:
            fit.append(image)
    for images in maker.divide(fit):
        try:
            dataset = maker.make(result, images, made)
        except ObjectError as error:
            yield Unmade(kind, str(error), failed=True)
            continue
        if dataset is None:
            yield Unmade(kind, NO_REGION)
        else:
            sources = dict.fromkeys(str(image.source.SOPInstanceUID) for image in images)
            yield Made(kind, dataset, tuple(sources))


NO_REGION = "no evidence reaches the region's threshold"


def _by(key: Callable[[ResultImage], Hashable]) -> Callable[[Sequence[ResultImage]], Sequence[Images]]:
    """Divides images by a key, in the order in which the keys first come."""

    def divide(images: Sequence[ResultImage]) -> Sequence[Images]:
        groups: dict[Hashable, list[ResultImage]] = {}
        for image in images:
            groups.setdefault(key(image), []).append(image)
        return [tuple(group) for group in groups.values()]

    return divide


def _alone(image: ResultImage) -> Hashable:
    return str(image.source.SOPInstanceUID), image.frame


def _series(image: ResultImage) -> Hashable:
    return str(image.source.get("SeriesInstanceUID"))


def _stack(image: ResultImage) -> Hashable:
    return _series(image), image.source.get("Rows"), image.source.get("Columns")


def _together(_: ResultImage) -> Hashable:
    return None


def _segmentation(result: CaseResult, images: Images, _: Sequence[Dataset]) -> Dataset | None:
    return segmentation.segmentation(result, images) if segmentation.has_region(result, images) else None


_MAKERS: dict[Kind, _Maker] = {
    "sc": _Maker(
        secondary_capture.why_not,
        _by(_alone),
        lambda result, images, _: secondary_capture.secondary_capture(result, images[0]),
    ),
    "sc-multiframe": _Maker(
        multiframe_capture.why_not,
        _by(_stack),
        lambda result, images, _: multiframe_capture.multiframe_capture(result, images),
    ),
    "overlay": _Maker(
        overlay_plane.why_not, _by(_alone), lambda result, images, _: overlay_plane.overlay_plane(result, images[0])
    ),
    "gsps": _Maker(
        presentation_state.why_not,
        lambda images: [tuple(group) for group in presentation_state.presentation_groups(images)],
        lambda result, images, _: presentation_state.presentation_state(result, images),
    ),
    "seg": _Maker(segmentation.why_not, voxel_objects.groups, _segmentation),
    "pmap": _Maker(
        parametric_map.why_not,
        voxel_objects.groups,
        lambda result, images, _: parametric_map.parametric_map(result, images),
    ),
    "sr": _Maker(structured_report.why_not, _by(_together), structured_report.structured_report),
    "kos": _Maker(key_objects.why_not, _by(_together), key_objects.key_objects),
    "pdf": _Maker(
        encapsulated_pdf.why_not,
        _by(_together),
        lambda result, images, _: encapsulated_pdf.encapsulated_pdf(result, images, case_page(result, images)),
    ),
}
