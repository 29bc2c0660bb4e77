"""What the way back needs of a file that is de-identified: whose it was, in which study, by which scanner, what each UID stands for.

In: the file's header and what became of it. Out: an `Original`, which the crosswalk holds as text (JSON), and which `reidentification` puts
into the objects that were made of the de-identified file. It identifies everybody in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from pipeline.dicom.deidentification_values import DUMMIES
from pipeline.dicom.derived import patient_and_study
from pipeline.dicom.source import EQUIPMENT, as_source, carry_all, declared_character_set
from pipeline.errors import ObjectError

_WORDS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
"""VRs whose values are text."""
_PUT_IN_PLACE = {vr: value for vr, value in DUMMIES.items() if isinstance(value, str) and value != "0"}
"""By VR. Numbers and bytes are not looked at: a 0 is most often what it says."""
_SAYS_SO = "LongitudinalTemporalInformationModified"
"""Of which REMOVED is a term of its own."""


@dataclass(frozen=True)
class Original:
    """Datasets as an object that is made of the original file would have them."""

    study: Dataset
    """Patient and study modules (`derived.patient_and_study`)."""
    equipment: Dataset
    """The scanner's (`source.EQUIPMENT`)."""
    replaced: Dataset
    """What stood where the de-identified file has a dummy."""
    uids: Mapping[str, str] = field(default_factory=dict)
    """The UID that each one in the de-identified file stands for, but those of study, series and instance."""


def original_of(dataset: Dataset, cleaned: Dataset, uids: Mapping[str, str]) -> str:
    """Of a file's header and its de-identified one, as text; '' where no object could be filed in its study.

    `uids`: what each new one stands for.
    """
    source = as_source(dataset)
    try:
        study = patient_and_study(source)
    except ObjectError:
        return ""
    terms = declared_character_set(source)
    if terms:
        study.SpecificCharacterSet = terms
    replaced = carry_all(source, (element.keyword for element in cleaned if _is_dummy(element)), Dataset())
    parts = {
        "study": _told(study),
        "equipment": _told(carry_all(source, EQUIPMENT, Dataset())),
        "replaced": _told(replaced),
        "uids": dict(sorted(uids.items())),
    }
    return json.dumps(parts, separators=(",", ":"))


def read_original(text: str) -> Original:
    """What `original_of` said. Raises ValueError where it is nothing of the kind."""
    try:
        parts = json.loads(text)
        uids = {str(new): str(old) for new, old in parts["uids"].items()}
        return Original(_untold(parts["study"]), _untold(parts["equipment"]), _untold(parts["replaced"]), uids)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no original ({type(error).__name__})") from None


def dummies(dataset: Dataset) -> list[str]:
    """Keywords of the attributes, at any depth, whose value is one that de-identification put there in place of another."""
    return [element.keyword for element in dataset.iterall() if _is_dummy(element)]


def _is_dummy(element: DataElement) -> bool:
    return element.keyword != _SAYS_SO and str(element.value) == _PUT_IN_PLACE.get(element.VR)


def _told(dataset: Dataset) -> dict[str, Any]:
    """Keyword → values as text; of a sequence its items."""
    told: dict[str, Any] = {}
    for element in dataset:
        if element.VR == "SQ":
            told[element.keyword] = [_told(item) for item in element.value]
        elif element.VR in _WORDS:
            value = element.value
            several = isinstance(value, MultiValue | list | tuple)
            told[element.keyword] = [] if element.is_empty else [str(one) for one in (value if several else [value])]
    return told


def _untold(told: Mapping[str, Any]) -> Dataset:
    dataset = Dataset()
    for keyword, values in told.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise ValueError("no keyword of PS3.6")
        vr = dictionary_VR(tag)
        if vr == "SQ":
            dataset.add(DataElement(BaseTag(tag), vr, [_untold(item) for item in values]))
        else:
            dataset.add(DataElement(BaseTag(tag), vr, list(map(str, values)) if len(values) > 1 else "".join(values)))
    return dataset
