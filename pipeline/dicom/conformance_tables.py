"""What PS3.3 demands of an object of a SOP class, from the module tables that highdicom carries, put in order once a class.

A `Level` is the dataset itself or the items of one sequence. Required are Type 1 and Type 2 attributes: at the root those of the
mandatory modules, and those of every other module that is there; within a sequence those of whichever module has it. A module is there
where one of its attributes is, that no other module of the IOD has. Type 1C and 2C are not in the tables' reach: they state
their conditions in prose (`conformance_terms` knows some).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydicom.datadict import tag_for_keyword

from pipeline.dicom.conformance_item import tag_of

UNJUDGED_MODULES = frozenset({"sr-document-content"})
"""The tables list the attributes of all value types of a content item together; which one is due, `conformance_content` knows."""

_GROUPS = frozenset({tag_of("SharedFunctionalGroupsSequence"), tag_of("PerFrameFunctionalGroupsSequence")})
"""Which macros a functional group holds is conditional (PS3.3 C.7.6.16; `conformance_frames`); what a macro holds is judged here."""

_CODE_KEYWORDS = frozenset({tag_of("CodeValue"), tag_of("CodeMeaning")})

Required = tuple[tuple[int, str, str], ...]
"""(tag, type '1' or '2', module) of each."""


@dataclass(frozen=True, slots=True)
class OptionalModule:
    """A module of usage C or U: where one of `own` is, all of `required` must be."""

    name: str
    own: frozenset[int]
    required: Required


@dataclass(slots=True)
class Level:
    """What is demanded of a dataset or of each item of a sequence. Filled while the tables are read, never after."""

    required: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Tag → (type '1' or '2', module)."""
    known: set[int] = field(default_factory=set)
    """All tags that the modules have at this level."""
    sequences: dict[int, Level] = field(default_factory=dict)

    @property
    def is_code(self) -> bool:
        """Whether items are codes (PS3.3 8.8)."""
        return self.known >= _CODE_KEYWORDS


@dataclass(frozen=True, slots=True)
class Iod:
    """An Information Object Definition."""

    name: str
    root: Level
    optional: tuple[OptionalModule, ...]
    usages: dict[str, str]
    """Module → M, C or U."""


@lru_cache(maxsize=64)
def iod_of(sop_class_uid: str) -> Iod | None:
    """The IOD of a SOP class; None for a class of which the tables know nothing (retired, private or newer)."""
    from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map

    name = get_sop_class_iod_map().get(sop_class_uid)
    if name is None:
        return None
    usages = {module["key"]: module["usage"] for module in get_iod_module_map()[name]}
    attributes = {key: get_module_attribute_map().get(key, []) for key in usages if key not in UNJUDGED_MODULES}
    root = Level()
    for key, rows in attributes.items():
        for row in rows:
            _enter(root, row, key, usages[key] == "M")
    return Iod(name, root, tuple(_optional_modules(attributes, usages)), usages)


def _enter(root: Level, row: dict[str, Any], module: str, is_mandatory: bool) -> None:
    """Adds one attribute of a module; of two modules that have it, the stricter counts."""
    level, path = root, [tag_for_keyword(keyword) for keyword in row["path"]]
    tag = tag_for_keyword(row["keyword"])
    if tag is None or None in path:
        return  # a group that repeats (60xx): conformance_pixels judges overlay planes
    for step in path:
        level = level.sequences.setdefault(int(step or 0), Level())
    level.known.add(int(tag))
    is_due = is_mandatory if not path else path[-1] not in _GROUPS
    if row["type"] not in ("1", "2") or not is_due:
        return
    known = level.required.get(int(tag))
    if known is None or known[0] > row["type"]:
        level.required[int(tag)] = row["type"], module


def _optional_modules(attributes: dict[str, list[dict[str, Any]]], usages: dict[str, str]) -> list[OptionalModule]:
    owners: dict[str, set[str]] = {}
    for key, rows in attributes.items():
        for row in rows:
            if not row["path"]:
                owners.setdefault(row["keyword"], set()).add(key)
    found = []
    for key, rows in attributes.items():
        at_root = [row for row in rows if not row["path"] and tag_for_keyword(row["keyword"]) is not None]
        own = frozenset(tag_of(row["keyword"]) for row in at_root if owners[row["keyword"]] == {key})
        required = tuple((tag_of(row["keyword"]), row["type"], key) for row in at_root if row["type"] in ("1", "2"))
        if usages[key] != "M" and own and required:
            found.append(OptionalModule(key, own, required))
    return found
