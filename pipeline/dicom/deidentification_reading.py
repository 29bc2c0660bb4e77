"""Elements of a dataset of unknown origin, read as far as they can be, and the words in it that identify somebody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag

from pipeline.deidentify_settings import Deidentification
from pipeline.dicom.bounded import VALUE_BYTES
from pipeline.dicom.conformance_item import MAXIMUM_DEPTH, tag_of
from pipeline.dicom.deidentification_attributes import DEVICES, IDENTIFYING, PLACES
from pipeline.dicom.deidentification_values import Words


def identity_of(dataset: Dataset, settings: Deidentification) -> Words:
    """The words of everybody whom the header names, at any depth, and of places and devices that no option keeps."""
    places = [] if "institution" in settings.keep else [*PLACES]
    places += [] if "device" in settings.keep else DEVICES
    people: set[str] = set()
    things: set[str] = set()
    for item in _every_item(dataset):
        people.update(_texts(item, IDENTIFYING))
        things.update(_texts(item, places))
    return Words(people, things)


def _every_item(dataset: Dataset, depth: int = 0) -> Iterator[Dataset]:
    """The dataset and the items of its sequences, as deep as any that means something; private ones are not kept anyway."""
    yield dataset
    if depth == MAXIMUM_DEPTH:
        return
    for tag in sorted(dataset.keys()):
        if tag.is_private or not dictionary_has_tag(tag) or dictionary_vr(int(tag)) != "SQ":
            continue
        element = read_element(dataset, tag)
        if element is not None and element.VR == "SQ":
            for item in element.value or []:
                yield from _every_item(item, depth + 1)


def _texts(dataset: Dataset, keywords: Sequence[str]) -> list[str]:
    elements = [read_element(dataset, BaseTag(tag_of(keyword))) for keyword in keywords]
    return [str(value) for element in elements if element is not None for value in values_of(element) or []]


def element_text(dataset: Dataset, keyword: str) -> str:
    """An attribute as text, '' where it is absent or cannot be read."""
    element = read_element(dataset, BaseTag(tag_of(keyword)))
    values = None if element is None else values_of(element)
    return "\\".join(map(str, values)).strip(" \0") if values else ""


def read_element(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    """The element if it is there, can be parsed and is not written in a VR that is not its own."""
    if tag not in dataset:
        return None
    raw = dataset.get_item(tag)
    written = str(raw.VR) if raw is not None and raw.VR else ""
    allowed = dictionary_VR(tag).split(" or ")
    if written not in ("", "UN", *allowed):
        return None
    if isinstance(raw, RawDataElement) and raw.value is not None and len(raw.value) > VALUE_BYTES:
        whole = {"SQ", "OB", "OW", "OV", "UN", "UT", "ST", "LT", "UC"}
        if not whole & set(allowed):
            return None
    try:
        element = dataset[tag]
        values_of(element)
    except RecursionError:
        raise
    except Exception:  # whatever pydicom raises is the file's fault: what cannot be read cannot be cleaned
        return None
    return element


def values_of(element: DataElement) -> list[Any] | None:
    """The values of an element that is no sequence and no bytes, none of them where it is empty; None for bytes and sequences."""
    value = element.value
    if isinstance(value, bytes | Items):
        return None
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


@cache
def dictionary_vr(number: int) -> str:
    return dictionary_VR(number)
