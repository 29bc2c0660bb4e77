"""An object against the modules of its IOD: Type 1 missing or empty, Type 2 missing, codes that are none.

The tables are those of `conformance_tables`. Each finding names the attribute with the sequences around it, and the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.dicom.conformance_item import Item, is_empty, path_name, tag_of
from pipeline.dicom.conformance_tables import Iod, Level, OptionalModule

CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
"""Exactly one of them is the code (PS3.3 8.8)."""


def module_findings(root: Item, iod: Iod) -> Iterator[str]:
    """What the modules of `iod` miss in `root`; each finding once, however many items have it."""
    seen: set[str] = set()
    for finding in _all_findings(root, iod):
        if finding not in seen:
            seen.add(finding)
            yield finding


def _all_findings(root: Item, iod: Iod) -> Iterator[str]:
    yield from _level_findings(root, iod.root, ())
    for module in iod.optional:
        if not module.own.isdisjoint(root.elements):
            yield from _optional_findings(root, module)


def _level_findings(item: Item, level: Level, path: tuple[int, ...]) -> Iterator[str]:
    yield from _presence_findings(item, level.required, path)
    if level.is_code:
        yield from _code_findings(item, path)
    for tag, items in item.sequences.items():
        within = level.sequences.get(tag)
        if within is not None:
            for inner in items:
                yield from _level_findings(inner, within, (*path, tag))


def _optional_findings(root: Item, module: OptionalModule) -> Iterator[str]:
    yield from _presence_findings(root, {tag: (kind, name) for tag, kind, name in module.required}, ())


def _presence_findings(item: Item, required: Mapping[int, tuple[str, str]], path: tuple[int, ...]) -> Iterator[str]:
    for tag, (kind, module) in required.items():
        element = item.elements.get(tag)
        if element is None:
            yield f"{path_name(path, tag)} is missing (Type {kind}) (PS3.3 module {module})"
        elif kind == "1" and is_empty(element):
            yield f"{path_name(path, tag)} is empty (Type 1) (PS3.3 module {module})"


def _code_findings(item: Item, path: tuple[int, ...]) -> Iterator[str]:
    """PS3.3 8.8: one value, its scheme (but for a URN), and a meaning, which the tables demand themselves."""
    values = [keyword for keyword in CODE_VALUES if item.has_value(keyword)]
    if len(values) != 1:
        yield f"{path_name(path)} has {len(values)} code values, expected one"
    elif values != ["URNCodeValue"] and not item.has_value("CodingSchemeDesignator"):
        yield f"{path_name(path, tag_of('CodingSchemeDesignator'))} is missing (PS3.3 8.8)"
