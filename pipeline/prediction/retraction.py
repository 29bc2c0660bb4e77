"""Objects of an earlier inference that a newer one replaces: rejection notes tell a PACS to put them away (IHE RAD, IOCM).

In: OUT of the earlier inference, read before the newer one writes; it may be the same folder. Out: in the newer OUT one note for each
study that both speak of, naming the old objects that were not made again.
"""

from __future__ import annotations

import csv
import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.dicom.derived import Algorithm, content_digest, write_object
from pipeline.dicom.key_objects import rejection_note
from pipeline.dicom.source import read_source
from pipeline.errors import ConfigError
from pipeline.files import write_whole
from pipeline.profile_settings import Profile

OBJECTS_FILE = "objects.csv"
RETRACTION = "retraction"


@dataclass(frozen=True)
class Replaced:
    """Objects of an earlier inference that are still there: SOPInstanceUID → file."""

    files: dict[str, Path]


def read_replaced(out: Path) -> Replaced:
    """The objects of `out`; ConfigError where it is no folder of results."""
    try:
        with (out / OBJECTS_FILE).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] != RETRACTION]
        files = {row["sop_instance_uid"]: out / row["path"] for row in rows}
    except (OSError, KeyError, csv.Error) as error:
        raise ConfigError(
            f"--replaces {out}: expected the OUT of an earlier radloop infer, with {OBJECTS_FILE}"
        ) from error
    return Replaced({uid: path for uid, path in files.items() if path.is_file()})


def retract(replaced: Replaced, out: Path, algorithm: Algorithm, profile: Profile) -> int:
    """Writes the notes into `out` and adds them to its `objects.csv` and `references.csv`; how many objects they reject."""
    with (out / OBJECTS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    now, studies = {row["sop_instance_uid"] for row in rows}, {Path(row["path"]).parts[0] for row in rows}
    old = defaultdict(list)
    for uid, path in replaced.files.items():
        if uid not in now:
            source = read_source(path)
            if str(source.StudyInstanceUID) in studies:
                old[str(source.StudyInstanceUID)].append(source)
    created = datetime.datetime.now().astimezone()
    objects: list[Sequence[str]] = []
    references: list[Sequence[str]] = []
    for sources in old.values():
        rejected = [(str(one.SOPClassUID), str(one.SOPInstanceUID), str(one.SeriesInstanceUID)) for one in sources]
        note = rejection_note(sources[0], rejected, algorithm, profile, created)
        written = write_object(note, out).relative_to(out).as_posix()
        objects.append((RETRACTION, "", written, str(note.SOPInstanceUID), content_digest(note)))
        references += [(str(note.SOPInstanceUID), uid) for _, uid, _ in rejected]
    _append(out / OBJECTS_FILE, objects)
    _append(out / "references.csv", references)
    return len(references)


def _append(path: Path, rows: Sequence[Sequence[str]]) -> None:
    if rows:
        lines = "".join(",".join(row) + "\n" for row in rows)  # UIDs, digests and paths of UIDs: nothing to quote
        write_whole(path, path.read_text() + lines)
