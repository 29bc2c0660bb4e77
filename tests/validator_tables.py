"""The tables of PS3.3 as dicom-validator wants them, made offline from the PyPI package dicom-standard (its JSON of 2020).

dicom-validator otherwise downloads the standard's DocBook, which a test may not. Only the IODs asked for are put together, because
parsing the prose of all conditions takes minutes. Enumerated values are left out: dciodvfy and radloop's own check judge those.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.datadict import DicomDictionary

if TYPE_CHECKING:
    from dicom_validator.spec_reader.condition import Condition
    from dicom_validator.validator.dicom_info import DicomInfo

    Parse = Callable[[str], Condition]

STANDARD = Path(sys.prefix) / "standard"
"""Where the wheel of dicom-standard puts its JSON."""
FUNCTIONAL_GROUPS = ("(5200,9229)", "(5200,9230)")
PARSED_TAG = re.compile(r"([0-9a-fx]{4})([0-9a-fx]{4})")

Rows = list[dict[str, Any]]


def dicom_info(sop_class_uids: Iterable[str]) -> DicomInfo:
    """Dictionary, IODs and modules for these SOP classes. Raises KeyError for one that the standard of 2020 does not have."""
    from dicom_validator.spec_reader.condition_parser import ConditionParser
    from dicom_validator.spec_reader.serializer import DefinitionEncoder
    from dicom_validator.validator.dicom_info import DicomInfo

    dictionary = {
        f"({tag >> 16:04X},{tag & 0xFFFF:04X})": {"name": name, "vr": vr, "vm": vm, "prop": "RET" if retired else ""}
        for tag, (vr, vm, name, retired, _) in DicomDictionary.items()
    }
    parse = cache(
        ConditionParser({tag: dict(entry) for tag, entry in dictionary.items()}).parse
    )  # the same in many modules
    names = {row["id"]: row["name"] for row in _rows("ciods")}
    ids = {name: identifier for identifier, name in names.items()}
    titles = {row["id"]: row["ciod"] for row in _rows("sops")}
    wanted = {uid: ids[titles[uid]] for uid in sop_class_uids}
    of_modules = _grouped(_rows("ciod_to_modules"), "ciodId", set(wanted.values()))
    of_macros = _grouped(_rows("ciod_to_fg_macros"), "ciodId", set(wanted.values()))
    iods = {
        uid: {
            "title": titles[uid],
            "modules": {row["moduleId"]: _use(row, f"module:{row['moduleId']}", parse) for row in of_modules[ciod]},
            "group_macros": {
                row["macroId"]: _use(row, f"macro:{row['macroId']}", parse) for row in of_macros.get(ciod, [])
            },
        }
        for uid, ciod in wanted.items()
    }
    modules = {
        **_definitions("module", {row["moduleId"] for rows in of_modules.values() for row in rows}, dictionary, parse),
        **_definitions("macro", {row["macroId"] for rows in of_macros.values() for row in rows}, dictionary, parse),
    }
    plain = json.loads(json.dumps([iods, modules], cls=DefinitionEncoder))  # conditions as the validator reads them
    return DicomInfo(dictionary, *plain)


def _rows(name: str) -> Rows:
    found: Rows = json.loads((STANDARD / f"{name}.json").read_text())
    return found


def _grouped(rows: Rows, key: str, wanted: set[str]) -> dict[str, Rows]:
    groups: dict[str, Rows] = {}
    for row in rows:
        if row[key] in wanted:
            groups.setdefault(row[key], []).append(row)
    return groups


def _use(row: dict[str, Any], reference: str, parse: Parse) -> dict[str, Any]:
    """A module's or macro's place in an IOD."""
    statement = row["conditionalStatement"] or ""
    use: dict[str, Any] = {"ref": reference, "use": row["usage"]}
    if row["usage"] == "C":
        use["cond"] = parse(statement)
    return use


def _definitions(kind: str, wanted: set[str], dictionary: dict[str, Any], parse: Parse) -> dict[str, dict[str, Any]]:
    """Attributes of modules or macros, sequences with their items inside."""
    found: dict[str, dict[str, Any]] = {f"{kind}:{identifier}": {} for identifier in wanted}
    for identifier, rows in _grouped(_rows(f"{kind}_to_attributes"), f"{kind}Id", wanted).items():
        level = found[f"{kind}:{identifier}"]
        for row in rows:
            _enter(level, row, dictionary, parse)
        for tag in FUNCTIONAL_GROUPS:
            if tag in level:
                level[tag]["items"] = {"include": [{"ref": "FuncGroup"}]}
    return found


def _enter(level: dict[str, Any], row: dict[str, Any], dictionary: dict[str, Any], parse: Parse) -> None:
    *above, tag = _path(row["path"])
    for step in above:
        level = level.setdefault(step, {}).setdefault("items", {})
    attribute = level.setdefault(tag, {})
    attribute["name"] = dictionary.get(tag, {}).get("name", tag)
    attribute["type"] = row["type"] if row["type"] not in (None, "None") else "3"
    if attribute["type"] in ("1C", "2C"):
        condition = parse(_text(row["description"]))
        if not condition.type.user_defined:
            attribute["cond"] = condition


def _path(path: str) -> Iterator[str]:
    """`image-pixel:00280010` → (0028,0010); the first step is the module's own name."""
    for step in path.split(":")[1:]:
        match = PARSED_TAG.fullmatch(step)
        if match is None:
            raise ValueError(f"{path}: expected tags of eight digits")
        yield f"({match[1].upper().replace('X', 'x')},{match[2].upper().replace('X', 'x')})"


def _text(description: str) -> str:
    """HTML as one line of prose, as the condition parser reads it."""
    plain = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", description))).strip()
    return re.sub(r" ([,.])", r"\1", plain)
