"""The folder of prepared images: where it is, whose it may be, what is in it, and how it is cleared.

It holds images of patients, so it and all in it are for their owner only. One sub-folder for each chain and version of the code
(`cache_key.chain_name`), with a `chain.json` that says what it is; whoever fills or reads one holds a shared lock on it, and clearing takes
only what nobody holds.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.config import Preprocessing
from pipeline.errors import CacheError
from pipeline.files import write_whole
from pipeline.prepared.cache_block import images_in
from pipeline.prepared.cache_key import chain_name, chain_settings, code_version
from pipeline.prepared.cache_store import SUFFIX, lock
from pipeline.progress import say
from pipeline.wording import counted

CACHE_VARIABLE = "RADLOOP_CACHE"
CHAIN_FILE = "chain.json"
TAG_FILE = "CACHEDIR.TAG"
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Images prepared by radloop; `radloop cache` shows and clears them.\n"
"""Backup programs leave out folders with this file (bford.info/cachedir)."""
DAY_S = 86_400.0

_CHAIN_NAME = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(r"\.gone-[0-9a-f]{12}")


class ChainFolder:
    """A chain's folder with a shared lock on it, so that nobody clears it, until `close` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def close(self) -> None:
        """Gives it free; a second time without effect."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    __del__ = close


@dataclass(frozen=True)
class Entry:
    """One chain's prepared images on disk. `current`: whether this radloop, with these packages, would use them."""

    path: Path
    settings: dict[str, Any]
    version: str
    current: bool
    bytes: int
    images: int
    used: float
    """Seconds since 1970."""

    def line(self, now: float) -> str:
        """For the terminal."""
        days = int(max(now - self.used, 0.0) / DAY_S)
        when = {0: "used today", 1: "used yesterday"}.get(days, f"used {days} days ago")
        old = "" if self.current else "; of another version of code or packages, no longer used"
        return (
            f"  {self.path.name[:8]}  {described(self.settings)}: {counted(self.images, 'image')}, {size_text(self.bytes)}, "
            f"{when}, radloop {self.version}{old}"
        )


def cache_root() -> Path:
    """`RADLOOP_CACHE`, else `radloop/prepared` in the user's folder of caches. CacheError where the user has none."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(shared) if shared else Path.home() / ".cache"
    except RuntimeError as error:
        raise CacheError(f"no home folder for prepared images; set {CACHE_VARIABLE} to a folder of your own") from error
    return base / "radloop" / "prepared"


def open_chain(preprocessing: Preprocessing, fallback: Path | None = None) -> ChainFolder:
    """The chain's folder in the cache, made where it is missing; in `fallback` where the cache cannot be written, which is then said.

    CacheError where there is no `fallback`, or where the cache is somebody else's.
    """
    root = cache_root()
    try:
        _own_folder(root)
        return _locked_chain(root, preprocessing)
    except OSError as error:
        why = f"{root}: prepared images cannot be kept here ({error.strerror})"
        if fallback is None:
            raise CacheError(f"{why}; set {CACHE_VARIABLE} to a folder of your own") from error
        say(f"{why}; they go to {fallback}, and other runs cannot use them; {CACHE_VARIABLE} names another folder")
    try:
        _own_folder(fallback)
        return _locked_chain(fallback, preprocessing)
    except OSError as error:
        raise CacheError(f"{fallback}: prepared images cannot be kept here ({error.strerror})") from error


def entries(root: Path) -> list[Entry]:
    """What is in the cache, the one used last first; nothing where it is not there. CacheError where it is somebody else's."""
    if not root.is_dir():
        return []
    _refuse_foreign(root)
    found = [_entry(path) for path in root.iterdir() if _CHAIN_NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.used, reverse=True)


def clear(root: Path, *, older_than_days: float = 0.0) -> tuple[list[Entry], list[Entry]]:
    """Removes what was not used for so many days (all at 0) and is not in use: (removed, left because a process uses it)."""
    removed: list[Entry] = []
    busy: list[Entry] = []
    limit = time.time() - older_than_days * DAY_S
    for entry in entries(root):
        if entry.used <= limit or older_than_days == 0:
            (removed if _remove(entry.path) else busy).append(entry)
    for left in root.iterdir() if root.is_dir() else ():  # of a clearing that was killed
        if _LEFT.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)
    return removed, busy


def listing(root: Path) -> list[str]:
    """What `radloop cache` prints."""
    found = entries(root)
    if not found:
        return [f"no prepared images in {root}"]
    free = shutil.disk_usage(root).free
    images, size = sum(entry.images for entry in found), sum(entry.bytes for entry in found)
    first = f"prepared images in {root}: {counted(images, 'image')}, {size_text(size)}; {size_text(free)} free"
    return [first, *(entry.line(time.time()) for entry in found)]


def cleared_lines(root: Path, removed: list[Entry], busy: list[Entry]) -> list[str]:
    """What `radloop cache --clear` prints."""
    if not removed and not busy:
        return [f"nothing to remove in {root}"]
    images, size = sum(entry.images for entry in removed), sum(entry.bytes for entry in removed)
    lines = [f"removed {counted(images, 'image')}, {size_text(size)} in {root}"] if removed else []
    return lines + [f"left, because a process uses it:{entry.line(time.time())}" for entry in busy]


def described(settings: dict[str, Any]) -> str:
    """A chain in a few words: size, window, resize, and what else differs from the defaults."""
    default = chain_settings(Preprocessing())
    told = [f"{settings.get('size')} px", _window_text(settings.get("window")), str(settings.get("resize"))]
    for name, value in settings.items():
        if name in ("size", "window", "resize") or value == default.get(name):
            continue
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        told += [f"{part} {one}" for part, one in parts if one is not None]
    return ", ".join(told)


def size_text(count: int) -> str:
    """Bytes in words: 903 MB, 10.0 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _window_text(window: Any) -> str:
    if isinstance(window, dict):
        return f"window {window.get('center'):g}/{window.get('width'):g}"
    return " + ".join(map(_window_text, window)) if isinstance(window, list) else str(window)


def _own_folder(folder: Path) -> None:
    """Makes it for its owner only, where it is missing. CacheError where it is somebody else's; OSError where it cannot be written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _refuse_foreign(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write")
    tag = folder / TAG_FILE
    if not tag.exists():
        write_whole(tag, TAG)


def _refuse_foreign(folder: Path) -> None:
    if not hasattr(os, "getuid"):
        return
    for found in (os.lstat(folder), os.stat(folder)):
        if found.st_uid != os.getuid():
            raise CacheError(
                f"{folder}: belongs to another user; prepared images of patients are not shared this way: "
                f"set {CACHE_VARIABLE} to a folder of your own"
            )
    if not stat.S_ISDIR(os.stat(folder).st_mode):
        raise CacheError(f"{folder}: expected a folder for prepared images")


def _locked_chain(root: Path, preprocessing: Preprocessing) -> ChainFolder:
    path = root / chain_name(preprocessing)
    descriptor = _locked_folder(path)
    facts = {
        "preprocessing": chain_settings(preprocessing),
        "radloop": pipeline.__version__,
        "code": code_version(),
    }
    if not (path / CHAIN_FILE).is_file():
        write_whole(path / CHAIN_FILE, json.dumps(facts, indent=2) + "\n")
    os.utime(path / CHAIN_FILE)  # when it was last used
    return ChainFolder(path, descriptor)


def _locked_folder(path: Path) -> int:
    """The folder made, open and locked; again where it was cleared in between. No link is followed."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        if not hasattr(os, "O_DIRECTORY"):
            return -1
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        lock(descriptor, exclusive=False, wait=True)
        try:
            here, there = os.fstat(descriptor), os.lstat(path)
        except FileNotFoundError:
            os.close(descriptor)
            continue
        if here.st_uid != os.getuid():
            os.close(descriptor)
            raise CacheError(f"{path}: belongs to another user; set {CACHE_VARIABLE} to a folder of your own")
        if os.path.samestat(here, there):
            return descriptor
        os.close(descriptor)


def _entry(path: Path) -> Entry | None:
    """None for a folder that is not a chain's."""
    try:
        facts = json.loads((path / CHAIN_FILE).read_text())
        used = (path / CHAIN_FILE).stat().st_mtime
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("preprocessing"), dict):
        return None
    blocks = list(path.glob(f"*/*{SUFFIX}"))
    size = sum(block.stat().st_size for block in blocks if block.exists())
    current = facts.get("code") == code_version()
    images = sum(map(images_in, blocks))
    return Entry(path, facts["preprocessing"], str(facts.get("radloop", "?")), current, size, images, used)


def _remove(path: Path) -> bool:
    """False where a process holds the folder."""
    if not hasattr(os, "O_DIRECTORY"):
        shutil.rmtree(path, ignore_errors=True)
        return True
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not lock(descriptor, exclusive=True, wait=False):
            return False
        aside = path.with_name(f".gone-{secrets.token_hex(6)}")
        path.rename(aside)  # at once, so that no half of it is ever found
    finally:
        os.close(descriptor)
    shutil.rmtree(aside)
    return True
