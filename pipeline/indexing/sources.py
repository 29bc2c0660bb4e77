"""Opening a SOURCE: a folder, a .zip, a file, a DICOMDIR, a manifest's path or a shipped manifest's name.

`open_source` is how every command takes it. A manifest's relative paths are under its root: `--root`, else its own folder, else the
folder that RADLOOP_DATA names. Manifests, with all that checks them, are imported only where there is one: `radloop index` is to
start fast.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.archive import is_archive
from pipeline.cluster import LOCAL
from pipeline.errors import ConfigError, SourceError
from pipeline.identity import IdentityKey, ephemeral_key, project_key

if TYPE_CHECKING:
    from pipeline.indexing.index import Index
    from pipeline.manifest import Manifest, Sheet

ROOT_VARIABLE = "RADLOOP_DATA"
MANIFEST_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class OpenedSource:
    """A SOURCE, resolved: its manifest (None for a bare folder or file), the root of relative paths, and the project's folder."""

    manifest: Manifest | None
    places: tuple[tuple[str | None, Path], ...]
    root: Path
    folder: Path
    """Of the manifest: a sheet may lie here; the project's key does."""

    def refuse_output(self, out: Path) -> None:
        """ConfigError if `out` lies inside the source, where results would become input."""
        for _, place in self.places:
            if place.is_file() and is_archive(place):
                continue  # nothing beside an archive becomes input
            folder = place.parent if place.is_file() else place
            if out.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(
                    f"--out {out} lies inside the source {folder}; give a folder outside, so that results never become input"
                )

    def key(self) -> IdentityKey:
        """The project's key, made where there is none yet."""
        return project_key(self.folder)

    def index(
        self,
        key: IdentityKey | None = None,
        *,
        out: Path | None = None,
        columns: Collection[str] | None = None,
        workers: int | None = None,
        engine: str = LOCAL,
        progress: bool = False,
    ) -> Index:
        """Every file of the source accounted for. Without a key the hashes hold for this call only; the rest as `index_sources` has it."""
        from pipeline.indexing.index import index_sources  # pandas, which `radloop index` does without

        key = key or ephemeral_key()
        return index_sources(
            self.places, key=key, out=out, columns=columns, workers=workers, engine=engine, progress=progress
        )


def open_source(name_or_path: str, root: Path | None = None) -> OpenedSource:
    """A folder or file as it is; a manifest (path or shipped name) with its places under the root."""
    given = Path(name_or_path)
    if given.exists() and given.suffix not in MANIFEST_SUFFIXES:
        return OpenedSource(None, ((None, given),), given, Path.cwd())
    looks_like_path = os.sep in name_or_path or given.suffix not in ("", *MANIFEST_SUFFIXES)
    if looks_like_path and given.suffix not in MANIFEST_SUFFIXES:
        raise SourceError(
            f"{given}: no such file or folder; expected an export folder or .zip, a DICOMDIR, an image or a manifest"
        )
    from pipeline.config import shipped_names

    shipped = shipped_names("data_manifests")
    if given.suffix not in MANIFEST_SUFFIXES and name_or_path not in shipped:
        nearest = difflib.get_close_matches(name_or_path, shipped, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise SourceError(
            f"{given}: no such file or folder, nor one of the shipped manifests ({', '.join(shipped)}){hint}"
        )
    return open_dataset(name_or_path, root)


def open_dataset(name_or_path: str, root: Path | None = None) -> OpenedSource:
    """A manifest's path or shipped name, whatever folders of that name there are."""
    from pipeline.config import find_shipped

    return open_manifest(find_shipped("data_manifests", name_or_path), root)


def open_manifest(path: Path, root: Path | None = None) -> OpenedSource:
    """A manifest's file with its places resolved; SourceError names a place that is not there and says how to set the root."""
    from pipeline.config import is_shipped, parse_settings, read_yaml
    from pipeline.manifest import Manifest

    manifest = parse_settings(Manifest, read_yaml(path), str(path))
    folder = Path(path).resolve().parent
    from_variable = os.environ.get(ROOT_VARIABLE)
    bases = [root] if root else [folder, *([Path(from_variable)] if from_variable else [])]
    missing = [
        [base / source.path for source in manifest.sources if not (base / source.path).exists()] for base in bases
    ]
    if all(missing):
        raise SourceError(
            f"{path}: its source is not there; looked for {' and '.join(str(places[0]) for places in missing)}; "
            f"give the folder that holds it with --root DIR or {ROOT_VARIABLE}"
        )
    base = bases[missing.index([])]
    places = tuple((source.label, base / source.path) for source in manifest.sources)
    _refuse_overlap(path, [place.resolve() for _, place in places])
    return OpenedSource(manifest, places, base, Path.cwd() if is_shipped(path) else folder)


def _refuse_overlap(manifest: Path, places: Sequence[Path]) -> None:
    """A file of two sources would be two images of perhaps two patients."""
    for number, place in enumerate(places):
        for other in places[number + 1 :]:
            if place.is_relative_to(other) or other.is_relative_to(place):
                raise ConfigError(
                    f"{manifest}: its sources {place} and {other} overlap; each file may be in one source only"
                )


def find_sheet(sheet: Sheet, opened: OpenedSource) -> Path:
    """The sheet's file: under the root, or beside the manifest."""
    candidates: Sequence[Path] = list(dict.fromkeys((opened.root / sheet.path, opened.folder / sheet.path)))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"label sheet {sheet.path}: looked for {' and '.join(str(path) for path in candidates)}; not there"
    )
