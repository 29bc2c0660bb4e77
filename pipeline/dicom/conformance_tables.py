"""What PS3.3 demands of an object of a SOP class, from the module tables that highdicom carries, put in order once a class.

A `Level` is the dataset itself or the items of one sequence. Required are Type 1 and Type 2 attributes: at the root those of the
mandatory modules, and those of every other module that is there; within a sequence those of whichever module has it. A module is there
where one of its attributes is, that no other module of the IOD has. Type 1C and 2C are not in the tables' reach: they state
their conditions in prose (`conformance_terms` knows some). The tables are read as the JSON that they are: importing highdicom for them
would cost a second and a hundred MB in every process that writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.datadict import tag_for_keyword

from pipeline.dicom.conformance_item import tag_of

UNJUDGED_MODULES = frozenset({"sr-document-content"})
"""The tables list the attributes of all value types of a content item together; which one is due, `conformance_content` knows."""

_GROUPS = frozenset({tag_of("SharedFunctionalGroupsSequence"), tag_of("PerFrameFunctionalGroupsSequence")})
"""Which macros a functional group holds is conditional (PS3.3 C.7.6.16; `conformance_frames`); what a macro holds is judged here."""

_CODE_KEYWORDS = frozenset({tag_of("CodeValue"), tag_of("CodeMeaning")})

SC_MULTI_FRAME = "sc-multi-frame-image"
"""Here FrameIncrementPointer is due where there are several frames (PS3.3 C.8.6.3), and not always, as the module Multi-frame has it."""

Required = tuple[tuple[int, str, str], ...]
"""(tag, type '1' or '2', module) of each."""


class Row(NamedTuple):
    """An attribute of a module: the sequences around it, its own tag, its type."""

    path: tuple[int, ...]
    tag: int
    type: str


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
    types: dict[int, str] = field(default_factory=dict)
    """Tag → the strictest type, '1' to '3', that any module has for it, conditional ones and optional modules included."""

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
    name = _table("sop_class_iod_map").get(sop_class_uid)
    if name is None:
        return None
    usages = {module["key"]: module["usage"] for module in _table("iod_module_map")[name]}
    rows = {key: _module_rows().get(key, ()) for key in usages if key not in UNJUDGED_MODULES}
    root = Level()
    for key, of_module in rows.items():
        for row in of_module:
            _enter(root, row, key, usages[key] == "M")
    if SC_MULTI_FRAME in usages:
        root.required.pop(tag_of("FrameIncrementPointer"), None)
    return Iod(name, root, tuple(_optional_modules(rows, usages)), usages)


def _enter(root: Level, row: Row, module: str, is_mandatory: bool) -> None:
    """Adds one attribute of a module; of two modules that have it, the stricter counts."""
    level = root
    for step in row.path:
        level = level.sequences.setdefault(step, Level())
    level.known.add(row.tag)
    level.types[row.tag] = min(row.type, level.types.get(row.tag, "3"))
    is_due = is_mandatory if not row.path else row.path[-1] not in _GROUPS
    if row.type not in ("1", "2") or not is_due:
        return
    known = level.required.get(row.tag)
    if known is None or known[0] > row.type:
        level.required[row.tag] = row.type, module


def _optional_modules(modules: dict[str, tuple[Row, ...]], usages: dict[str, str]) -> list[OptionalModule]:
    owners: dict[int, set[str]] = {}
    for key, rows in modules.items():
        for row in rows:
            if not row.path:
                owners.setdefault(row.tag, set()).add(key)
    found = []
    for key, rows in modules.items():
        own = frozenset(row.tag for row in rows if not row.path and owners[row.tag] == {key})
        required = tuple((row.tag, row.type, key) for row in rows if not row.path and row.type in ("1", "2"))
        if usages[key] != "M" and own and required:
            found.append(OptionalModule(key, own, required))
    return found


@cache
def _module_rows() -> dict[str, tuple[Row, ...]]:
    """Each module's attributes; without the groups that repeat (60xx), of which conformance_pixels judges the overlay planes."""
    tags: dict[str, int | None] = {}
    paths: dict[tuple[str, ...], tuple[int, ...]] = {}
    found = {}
    for key, entries in _read_table("module_attribute_map").items():
        rows = []
        for entry in entries:
            words = (*entry["path"], entry["keyword"])
            for word in words:
                if word not in tags:
                    tags[word] = tag_for_keyword(word)
            numbers = [number for word in words if (number := tags[word]) is not None]
            if len(numbers) == len(words):
                path = paths.setdefault(tuple(entry["path"]), tuple(numbers[:-1]))
                rows.append(Row(path, numbers[-1], entry["type"]))
        found[key] = tuple(rows)
    return found


@cache
def _table(name: str) -> dict[str, Any]:
    return _read_table(name)


def _read_table(name: str) -> dict[str, Any]:
    package = find_spec("highdicom")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("highdicom, whose tables of PS3.3 are needed, is not installed")
    table: dict[str, Any] = json.loads((Path(package.origin).parent / "_standard" / f"{name}.json").read_bytes())
    return table
