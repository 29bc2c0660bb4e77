"""A dataset as the checks read it: once, by tag, at every depth; what cannot be parsed is set apart and never read again.

In: any dataset, built or read. Out: an `Item` of plain dictionaries, a few times as fast to ask as pydicom's Dataset, which matters
because a check runs on everything that is written. Nothing is copied but for the dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

MAXIMUM_DEPTH = 64
"""Sequences within sequences. A report of real findings has about ten; deeper ones come from files that want to exhaust the stack."""


class Item:
    """A dataset, or an item of a sequence. Keywords are DICOM's; what is absent has no value and no items."""

    __slots__ = ("broken", "elements", "sequences")

    def __init__(self, dataset: Dataset, depth: int = 0) -> None:
        self.elements: dict[int, DataElement] = {}
        self.sequences: dict[int, list[Item]] = {}
        self.broken: list[str] = []
        """Names of elements whose bytes make no sense."""
        for found in list(dataset.values()):
            element = self._parsed(dataset, found.tag) if isinstance(found, RawDataElement) else found
            if element is None:
                continue
            number = int(element.tag)
            self.elements[number] = element
            if element.VR == "SQ":
                self.sequences[number] = self._items(element, depth)

    def _parsed(self, dataset: Dataset, tag: Any) -> DataElement | None:
        """The element of a file's bytes; None, and its name among the broken ones, where pydicom cannot make sense of them."""
        try:
            element = dataset[tag]
            is_empty(element)
        except RecursionError:
            raise
        except Exception:  # whatever pydicom raises is the file's fault, and its text quotes the value
            self.broken.append(name_of(int(tag)))
            return None
        return element

    def _items(self, element: DataElement, depth: int) -> list[Item]:
        if depth >= MAXIMUM_DEPTH:
            self.broken.append(f"{name_of(int(element.tag))}, deeper than {MAXIMUM_DEPTH} sequences,")
            return []
        return [Item(item, depth + 1) for item in element.value or ()]

    def __contains__(self, keyword: str) -> bool:
        return tag_of(keyword) in self.elements

    def value(self, keyword: str) -> Any:
        """The value; None where it is absent or empty."""
        element = self.elements.get(tag_of(keyword))
        return None if element is None or is_empty(element) else element.value

    def values(self, keyword: str) -> list[Any]:
        """All values of an attribute that may have several."""
        value = self.value(keyword)
        if value is None:
            return []
        return list(value) if isinstance(value, MultiValue | list | tuple) else [value]

    def text(self, keyword: str) -> str:
        """The value as text, '' where there is none."""
        value = self.value(keyword)
        return "" if value is None else str(value)

    def number(self, keyword: str) -> int | None:
        """The value as a whole number; None where it is absent or none."""
        try:
            return int(self.value(keyword))
        except (TypeError, ValueError, OverflowError):
            return None

    def items(self, keyword: str) -> list[Item]:
        """The items of a sequence."""
        return self.sequences.get(tag_of(keyword), [])

    def has_value(self, keyword: str) -> bool:
        """Whether the attribute is there and not empty; a sequence: has an item."""
        element = self.elements.get(tag_of(keyword))
        return element is not None and not is_empty(element)

    def walk(self, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Item]]:
        """This item and all within it, each with the tags of the sequences that lead to it."""
        yield path, self
        for tag, items in self.sequences.items():
            for item in items:
                yield from item.walk((*path, tag))


def is_empty(element: DataElement) -> bool:
    """Whether an element has no value; pydicom's own property says the same, more slowly."""
    value = element.value
    if value is None:
        return True
    try:
        return len(value) == 0
    except TypeError:  # a number
        return False


@cache
def tag_of(keyword: str) -> int:
    """The tag of PS3.6's keyword. Raises KeyError for what is none."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(f"{keyword} is no keyword of PS3.6")
    return int(tag)


@lru_cache(maxsize=4096)
def name_of(tag: int) -> str:
    """The keyword, or (gggg,eeee) where PS3.6 has none."""
    return keyword_for_tag(tag) or f"({tag >> 16:04x},{tag & 0xFFFF:04x})"


def path_name(path: tuple[int, ...], tag: int | None = None) -> str:
    """Keywords with dots between: SegmentSequence.SegmentNumber."""
    return ".".join(map(name_of, path if tag is None else (*path, tag)))
