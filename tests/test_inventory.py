"""Taking stock again: nothing that is known is read twice, and a killed call's next one ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dicom.header import uid_name
from pipeline.dicom.phantom_objects import ct_slice, save, structured_report
from pipeline.errors import Rejected, RejectReason, SourceError
from pipeline.identity import IdentityKey
from pipeline.indexing import inventory
from pipeline.indexing.header_jobs import Files, read_files
from pipeline.indexing.index import read_index
from pipeline.indexing.inventory import take_inventory
from pipeline.indexing.uid_names import COMMON_NAMES

KEY = IdentityKey(b"a key for tests only")
SECRET = "a key for tests only"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """An image, a copy of it with another UID, an object without pixels, a cut file, text."""
    folder = tmp_path_factory.mktemp("originals")
    files = [save(ct_slice(8, instance_number=number), folder / str(number)) for number in (1, 2)]
    files.append(save(structured_report(), folder / "sr"))
    contents = [path.read_bytes() for path in files]
    return [*contents, contents[0][:-9], b"text"]


@pytest.fixture
def export(tmp_path: Path, originals: list[bytes]) -> Path:
    folder = tmp_path / "export"
    for number in range(12):
        path = folder / "abc"[number % 3] / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(originals[number % len(originals)])
    return folder


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files that are read, in this process."""
    paths: list[str] = []

    def read(files: Files, **options: Any) -> bytes:
        paths.extend(files[0])
        return read_files(files, **options)

    monkeypatch.setattr(inventory, "read_files", read)
    return paths


def taken(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return take_inventory(
        [(None, source)], out, key=options.pop("key", KEY), workers=options.pop("workers", 0), **options
    )


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_an_unchanged_source_is_not_read_again(export: Path, tmp_path: Path, read_paths: list[str]) -> None:
    first = taken(export, tmp_path / "out")
    assert len(read_paths) == first["found"] == 12
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert taken(export, tmp_path / "out") == first
    assert len(read_paths) == 12
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_only_what_changed_is_read(export: Path, tmp_path: Path, originals: list[bytes], read_paths: list[str]) -> None:
    taken(export, tmp_path / "out")
    read_paths.clear()
    (export / "a" / "f0").unlink()
    (export / "b" / "f1").write_bytes(originals[2])
    (export / "b" / "new").write_bytes(originals[0])
    (export / "c" / "link").symlink_to(export / "b" / "new")
    taken(export, tmp_path / "out")
    assert read_paths == ["b/f1", "b/new"]
    taken(export, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_file_of_the_same_size_with_another_time_is_read_again(
    export: Path, tmp_path: Path, read_paths: list[str]
) -> None:
    taken(export, tmp_path / "out")
    read_paths.clear()
    os.utime(export / "a" / "f0", ns=(1, 1))
    taken(export, tmp_path / "out")
    assert read_paths == ["a/f0"]


def test_another_key_or_a_lost_table_means_reading_all(export: Path, tmp_path: Path, read_paths: list[str]) -> None:
    out = tmp_path / "out"
    taken(export, out)
    for disturb in (
        lambda: None,
        lambda: (out / "index.parquet").write_bytes(b"no table"),
        lambda: (out / "rejects.csv").unlink(),
    ):
        disturb()
        read_paths.clear()
        taken(export, out, key=IdentityKey(b"another key for tests"))
        assert len(read_paths) == 12
    (out / "summary.json").write_text("{")
    read_paths.clear()
    taken(export, out, key=IdentityKey(b"another key for tests"))
    assert read_paths == []


def test_what_may_have_passed_is_tried_again(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(inventory, "read_files", dies_at_f4)
        summary = taken(export, tmp_path / "out", workers=1)
    assert summary["rejected_by_reason"]["crashed"] == 1
    assert "crashed" not in taken(export, tmp_path / "out")["rejected_by_reason"]


def dies_at_f4(files: Files, **options: Any) -> bytes:
    if any(path.endswith("f4") for path in files[0]):
        os.abort()
    return read_files(files, **options)


def test_sources_know_their_own_files(export: Path, tmp_path: Path, read_paths: list[str]) -> None:
    shutil.copytree(export, tmp_path / "other")
    places = [("one", export), ("two", tmp_path / "other")]
    summary = take_inventory(places, tmp_path / "out", key=KEY, workers=0)
    assert summary["found"] == 24
    read_paths.clear()
    (tmp_path / "other" / "a" / "f0").write_bytes(b"other text")
    take_inventory(places, tmp_path / "out", key=KEY, workers=0)
    assert read_paths == ["a/f0"]
    take_inventory(places, tmp_path / "fresh", key=KEY, workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_folder_without_files_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(SourceError, match="without any file"):
        taken(tmp_path / "empty", tmp_path / "out")


EDITS = st.lists(st.tuples(st.sampled_from(["add", "remove", "change", "touch"]), st.integers(0, 99)), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(EDITS, min_size=1, max_size=3), group=st.integers(1, 5))
def test_however_a_source_changed_the_tables_are_those_of_a_fresh_call(
    rounds: list[list[tuple[str, int]]], group: int, originals: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("changing")
    export, out = place / "export", place / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inventory, "PART_EVERY_S", 0.0)
        patch.setattr(inventory, "FILES_A_BATCH", group)
        for number, edits in enumerate([[("add", seed) for seed in range(4)], *rounds]):
            for kind, seed in edits:
                edit(export, kind, seed, originals)
            if any(path.is_file() for path in export.rglob("*")):
                taken(export, out)
                taken(export, place / f"fresh{number}")
                assert contents(out) == contents(place / f"fresh{number}")


def edit(export: Path, kind: str, seed: int, originals: list[bytes]) -> None:
    files = sorted(path for path in export.rglob("*") if path.is_file())
    path = export / "abcd"[seed % 4] / f"g{seed}"
    if kind != "add":
        if not files:
            return
        path = files[seed % len(files)]
    match kind:
        case "remove":
            path.unlink()
        case "touch":
            os.utime(path, ns=(seed, seed))
        case _:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(originals[seed % len(originals)])


INDEX = """
import sys
from pathlib import Path
from pipeline.indexing import inventory
from pipeline.identity import IdentityKey

if __name__ == "__main__":
    inventory.PART_EVERY_S, inventory.FILES_A_BATCH = 0.0, 8
    source, out, key, workers = sys.argv[1:]
    print("started", flush=True)
    inventory.take_inventory([(None, Path(source))], Path(out), key=IdentityKey(key.encode()), workers=int(workers))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Path, Path], subprocess.Popen[str]]:
    """Starts an index in a process of its own, small parts, one worker."""
    script = tmp_path / "index.py"
    script.write_text(INDEX)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def run(source: Path, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(source), str(out), SECRET, "1"]
        process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    return run


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_the_next_call_ends_with_the_same_bytes(
    seed: int, tmp_path: Path, originals: list[bytes], start: Callable[[Path, Path], subprocess.Popen[str]]
) -> None:
    source, out = tmp_path / "export", tmp_path / "out"
    for number in range(1200):
        path = source / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(originals[number % len(originals)])
    started = time.monotonic()
    assert start(source, tmp_path / "whole").wait() == 0
    lasts = time.monotonic() - started
    moments = random.Random(seed)
    progress = []
    for round_ in range(6):
        process = start(source, out)
        while round_ == 0 and process.poll() is None and not list((out / ".indexing").rglob("*.arrow")):
            time.sleep(0.001)  # the first kill comes as soon as there is something to lose
        time.sleep(0.0 if round_ == 0 else moments.uniform(0.2, 1.0) * lasts)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        progress.append(len(list((out / ".indexing").rglob("*.arrow"))) if out.exists() else 0)
    assert start(source, out).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert max(progress) > 0  # the kills left something to go on from


def test_killed_before_or_after_any_rename(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moments that killing at random hardly meets: around each file's appearance."""
    taken(export, tmp_path / "fresh")
    rename = os.replace
    for moment in range(20):
        left = moment

        def dies(source: str, target: str) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            rename(source, target)
            if left == 0:
                raise KeyboardInterrupt
            left -= 1

        out = tmp_path / f"out{moment}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            patch.setattr(inventory, "PART_EVERY_S", 0.0)
            patch.setattr(inventory, "FILES_A_BATCH", 4)
            try:
                taken(export, out)
            except KeyboardInterrupt:
                pass
            else:
                break
        taken(export, out)
        assert contents(out) == contents(tmp_path / "fresh")
    assert moment > 8


def test_a_call_that_goes_on_says_so(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(files: Files, **options: Any) -> bytes:
        if files[0][0].startswith("c"):
            raise KeyboardInterrupt
        return read_files(files, **options)

    monkeypatch.setattr(inventory, "PART_EVERY_S", 0.0)
    monkeypatch.setattr(inventory, "FILES_A_BATCH", 4)
    with monkeypatch.context() as patch:
        patch.setattr(inventory, "read_files", stopped)
        with pytest.raises(KeyboardInterrupt):
            taken(export, tmp_path / "out", progress=True)
    assert "going on" not in capsys.readouterr().err
    taken(export, tmp_path / "out", progress=True)
    assert "index export: going on: 8 of 12 files were read before" in capsys.readouterr().err
    (export / "a" / "new").write_bytes(b"text")
    taken(export, tmp_path / "out", progress=True)
    assert "going on" not in capsys.readouterr().err


def test_two_calls_into_one_folder_take_turns(
    tmp_path: Path, originals: list[bytes], start: Callable[[Path, Path], subprocess.Popen[str]]
) -> None:
    for number in range(300):
        path = tmp_path / "export" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(originals[number % len(originals)])
    both = [start(tmp_path / "export", tmp_path / "out") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    taken(tmp_path / "export", tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_carriage_return_in_a_name(export: Path, tmp_path: Path, read_paths: list[str]) -> None:
    (export / "Icon\r").write_text("text")
    taken(export, tmp_path / "out")
    read_paths.clear()
    (export / "new").write_text("text")
    taken(export, tmp_path / "out")
    assert read_paths == ["new"]
    assert "Icon\r" in set(read_index(tmp_path / "out").rejects["path"])


def test_another_disk_with_the_same_names_is_read_anew(export: Path, tmp_path: Path, read_paths: list[str]) -> None:
    other = tmp_path / "other" / "export"
    shutil.copytree(export, other)  # with sizes and times
    taken(export, tmp_path / "out")
    read_paths.clear()
    taken(other, tmp_path / "out")
    assert len(read_paths) == 12


def test_a_file_that_cannot_be_read_for_its_digest_proves_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.indexing.tables.file_digest", cannot_read)
        summary = taken(export, tmp_path / "out")
    assert summary["collisions"].keys() == {"conflict"}
    assert summary["unhashed"] > 0
    assert b"not read" not in (tmp_path / "out" / "index.parquet").read_bytes()
    taken(export, tmp_path / "out")
    taken(export, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def cannot_read(path: Path) -> str:
    raise Rejected(RejectReason.UNREADABLE, "input/output error")


def test_lost_stacks_are_written_again(export: Path, tmp_path: Path) -> None:
    taken(export, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "stacks.csv").unlink()
    taken(export, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_common_names_are_the_standards() -> None:
    assert {uid: uid_name(uid) if uid else "" for uid in COMMON_NAMES} == COMMON_NAMES
