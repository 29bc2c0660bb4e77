"""What a PACS has of what is asked for: instances by their UIDs, by QIDO-RS or C-FIND (Study Root: studies, series, instances)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.dicom.conformance import is_uid
from pipeline.dicom.dicom_web import WebClient, first_value
from pipeline.dicom.query_scu import find
from pipeline.errors import ConfigError
from pipeline.peers import DimsePeer, Patience

TAGS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
    "SOPClassUID": "00080016",
    "Modality": "00080060",
    "StudyDate": "00080020",
    "ModalitiesInStudy": "00080061",
}
_DATE = re.compile(r"\d{8}(-(\d{8})?)?|-\d{8}")


@dataclass(frozen=True)
class Wanted:
    """Studies by UID, or by date (YYYYMMDD, or a range of two with a hyphen); of modalities, where any are named."""

    studies: tuple[str, ...] = ()
    date: str = ""
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if not self.studies and not self.date:
            raise ConfigError("expected --study UID or --date YYYYMMDD[-YYYYMMDD]: a whole archive is never asked for")
        if self.date and not _DATE.fullmatch(self.date):
            raise ConfigError(f"--date {self.date!r}: expected YYYYMMDD, or a range such as 20260101-20260131")
        for uid in self.studies:
            if not is_uid(uid):
                raise ConfigError(f"--study {uid!r}: expected a StudyInstanceUID")
        for modality in self.modalities:
            if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", modality):
                raise ConfigError(f"--modality {modality!r}: expected a DICOM modality such as CT")


@dataclass(frozen=True)
class Instance:
    """An instance that the peer says it has."""

    study: str
    series: str
    instance: str
    sop_class: str = ""


class Search(Protocol):
    """Matches at a level (STUDY, SERIES, IMAGE), each with the values of `keys`; '' asks for a value, another one is to be matched."""

    def __call__(self, level: str, keys: Mapping[str, str]) -> Sequence[Mapping[str, str]]: ...


def instances(search: Search, wanted: Wanted) -> Iterator[Instance]:
    """Every instance of what is wanted, in the peer's order; what has no valid UID cannot be asked for, and is left out."""
    for study in _studies(search, wanted):
        for series in _series(search, study, wanted.modalities):
            keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": "", "SOPClassUID": ""}
            for match in search("IMAGE", keys):
                if is_uid(match["SOPInstanceUID"]):
                    sop_class = match["SOPClassUID"]
                    yield Instance(study, series, match["SOPInstanceUID"], sop_class if is_uid(sop_class) else "")


def by_dimse(peer: DimsePeer, aet: str, patience: Patience, tls: ssl.SSLContext | None) -> Search:
    """C-FIND."""
    return lambda level, keys: find(peer, aet, level, keys, patience, tls)


def by_web(client: WebClient) -> Search:
    """QIDO-RS."""

    def search(level: str, keys: Mapping[str, str]) -> list[dict[str, str]]:
        path = "studies"
        if level != "STUDY":
            path += f"/{keys['StudyInstanceUID']}/series"
        if level == "IMAGE":
            path += f"/{keys['SeriesInstanceUID']}/instances"
        in_path = {"StudyInstanceUID", "SeriesInstanceUID"} if level != "STUDY" else set()
        query = {keyword: value for keyword, value in keys.items() if value and keyword not in in_path}
        return [
            {keyword: str(first_value(match, TAGS[keyword]) or keys[keyword]) for keyword in keys}
            for match in client.search(path, query)
        ]

    return search


def _studies(search: Search, wanted: Wanted) -> list[str]:
    if wanted.studies:
        return list(dict.fromkeys(wanted.studies))
    keys = {"StudyInstanceUID": "", "StudyDate": wanted.date}
    found: list[str] = []
    for modality in wanted.modalities or ("",):
        asked = {**keys, "ModalitiesInStudy": modality} if modality else keys
        found += [match["StudyInstanceUID"] for match in search("STUDY", asked)]
    return [uid for uid in dict.fromkeys(found) if is_uid(uid)]


def _series(search: Search, study: str, modalities: Sequence[str]) -> list[str]:
    """Of a server that does not match by modality the others are left out here."""
    found: list[str] = []
    for modality in modalities or ("",):
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": modality}
        found += [
            match["SeriesInstanceUID"]
            for match in search("SERIES", keys)
            if not modality or match["Modality"] in (modality, "")
        ]
    return [uid for uid in dict.fromkeys(found) if is_uid(uid)]
