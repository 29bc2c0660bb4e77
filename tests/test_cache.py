"""Prepared images on disk: decoded once, whatever is added, killed, broken, changed or done at the same time."""

from __future__ import annotations

import ast
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli import main
from pipeline.config import CustomNormalization, Preprocessing
from pipeline.errors import CacheError, Rejected, RejectReason
from pipeline.prepared import cache, cache_folder, cache_key, cache_store, dataset
from pipeline.prepared.cache import PreparedImages, prepared_images
from pipeline.prepared.cache_block import FAILED, KEY_BYTES, MISSING, Places
from pipeline.prepared.cache_key import EXEMPT, chain_name, code, file_keys
from pipeline.prepared.cache_store import BUCKET_SHIFT, BUCKETS, RowReader, Store
from pipeline.prepared.dataset import ImageFile, Prepared, Preparer, prepare_all
from pipeline.work import Failure
from transforms.intensity import Pixels, PixelUnit

ROOT = Path(__file__).parent.parent
SETTINGS = Preprocessing(size=32)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("RADLOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted(Preparer):
    """Remembers which files it decoded, in a file that processes share; `slow` to be killed at work."""

    def __call__(self, image: ImageFile) -> Prepared:
        with open(os.environ["DECODED"], "a") as log:
            log.write(f"{image.path}\n")
        time.sleep(float(os.environ.get("SLOW", 0)))
        if image.path.startswith("late"):
            raise Rejected(RejectReason.TIMED_OUT, "took longer than 1 s")
        return super().__call__(image)


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `Counted` decoded, a line a file."""
    monkeypatch.setenv("DECODED", str(tmp_path / "decoded"))
    (tmp_path / "decoded").touch()
    return tmp_path / "decoded"


def picture(path: Path, seed: int, shape: tuple[int, int] = (20, 24)) -> ImageFile:
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return found(path)


def found(path: Path) -> ImageFile:
    """A file as an index would have it."""
    status = path.stat()
    return ImageFile("case", "s", path.name, path, "png", 0, status.st_size, status.st_mtime_ns)


def pictures(folder: Path, count: int) -> list[ImageFile]:
    return [picture(folder / f"{number:03d}.png", number) for number in range(count)]


def prepare(files: list[ImageFile], preparer: Preparer | None = None, **options: object) -> PreparedImages:
    return prepared_images(files, preparer or Preparer(SETTINGS), what="preparing", workers=0, **options)  # type: ignore[arg-type]


def assert_whole(prepared: PreparedImages, files: list[ImageFile]) -> None:
    """Every image is there and is what decoding it gives."""
    assert prepared.usable.all()
    expected = np.stack([Preparer(SETTINGS)(file).image for file in files])
    np.testing.assert_array_equal(prepared.take(np.arange(len(files))), expected)


def blocks(root: Path) -> list[Path]:
    return sorted(root.glob("*/*/*.block"))


def test_images_are_those_of_the_preparer_in_any_order(tmp_path: Path):
    files = pictures(tmp_path / "images", 30)
    prepared = prepare(files)
    assert_whole(prepared, files)
    some = np.array([7, 3, 3, 29])
    np.testing.assert_array_equal(prepared.take(some), prepared.take(np.arange(30))[some])
    assert prepared.take(np.array([], dtype=np.int64)).shape == (0, 1, 32, 32)


def test_workers_fill_it_as_this_process_does(tmp_path: Path):
    files = pictures(tmp_path / "images", 12)
    assert_whole(prepared_images(files, Preparer(SETTINGS), what="preparing", workers=2), files)


def test_one_more_file_is_one_more_decoded(tmp_path: Path, decoded: Path):
    files = pictures(tmp_path / "images", 20)
    prepare(files[:7] + files[8:], Counted(SETTINGS))
    assert sorted(decoded.read_text().split()) == [file.path for file in files[:7] + files[8:]]
    decoded.write_text("")
    assert_whole(prepare(files, Counted(SETTINGS)), files)
    assert decoded.read_text().split() == [files[7].path]


def test_the_same_file_twice_is_decoded_once(tmp_path: Path, decoded: Path):
    files = pictures(tmp_path / "images", 3)
    assert_whole(prepare([*files, *files], Counted(SETTINGS)), [*files, *files])
    assert len(decoded.read_text().split()) == 3


def test_no_files_are_no_images():
    assert len(prepare([])) == 0


def test_pictures_are_not_in_the_cache():
    with pytest.raises(ValueError, match="keep_shown"):
        prepare([], Preparer(SETTINGS, keep_shown=True))


def test_a_changed_file_is_told_apart_and_made_anew(tmp_path: Path):
    files = pictures(tmp_path / "images", 4)
    before = prepare(files).take(np.arange(4))
    changed = picture(tmp_path / "images/002.png", 77, (30, 30))
    prepared = prepare(files)  # the index still has the old one
    assert prepared.failures[["position", "reason"]].to_numpy().tolist() == [[2, "changed"]]
    with pytest.raises(ValueError, match="usable"):
        prepared.take(np.arange(4))
    files[2] = changed
    assert_whole(prepare(files), files)
    assert not np.array_equal(prepare(files).take(np.array([2])), before[2:3])
    files[3].location.unlink()
    assert prepare(files).failures["reason"].tolist() == ["changed"]


@pytest.mark.parametrize(
    "change",
    [
        {"window": "bone"},
        {"size": 48},
        {"resize": "stretch"},
        {"crop": "body"},
        {"crop": "lungs"},
        {"scaling": "min_max"},
        {"voi": 1},
        {"color": "rgb"},
        {"percentiles": (2, 98)},
        {"enhancement": {"median": 3}},
        {"window": ("lung", "bone", "brain")},
    ],
)
def test_each_parameter_changes_the_key(change: dict[str, object]):
    assert chain_name(Preprocessing(**(SETTINGS.model_dump() | change))) != chain_name(SETTINGS)


def test_what_is_under_a_stress_is_never_kept(tmp_path: Path):
    with pytest.raises(ValueError, match="without keep_shown and stress"):
        prepare(pictures(tmp_path / "images", 1), Preparer(SETTINGS, stress="frame_white"))


def test_normalization_does_not_for_it_comes_later():
    own = SETTINGS.model_copy(update={"normalization": CustomNormalization(mean=(0.1,), std=(0.2,))})
    assert chain_name(own) == chain_name(SETTINGS)


def test_another_version_of_the_code_decodes_anew(tmp_path: Path, decoded: Path, monkeypatch: pytest.MonkeyPatch):
    files = pictures(tmp_path / "images", 2)
    prepare(files, Counted(SETTINGS))
    before = cache_key.code_version()
    cache_key.code_version.cache_clear()
    monkeypatch.setattr(cache_key.metadata, "version", lambda package: "another")
    assert cache_key.code_version() != before
    prepare(files, Counted(SETTINGS))
    assert len(decoded.read_text().split()) == 4
    cache_key.code_version.cache_clear()


def _imported(module: str) -> set[str]:
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    if not path.is_file():
        return set()
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).is_file() or name == "transforms"}


def test_the_code_version_is_of_all_modules_that_decide_what_an_image_is():
    """Whatever `pipeline.prepared.dataset` imports, in turn, but for what changes no pixel; here by Python's own parser."""
    reached, todo = set(), ["pipeline.prepared.dataset"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += [] if module in EXEMPT else _imported(module)
    assert reached - EXEMPT == set(code())
    assert {
        "pipeline.prepared.dataset",
        "pipeline.raster",
        "pipeline.dicom.pixels",
        "transforms.spatial",
    } <= reached - EXEMPT
    assert {"transforms.region", "transforms.anatomy_search", "transforms.scaling"} <= set(code())
    assert "transforms.sharpness" not in code()  # random variation comes after the cache


def test_frames_of_a_file_are_decoded_together_and_keyed_apart(tmp_path: Path):
    file = picture(tmp_path / "images/a.png", 0)
    frames = [replace(file, frame=number) for number in range(50)]
    keys = file_keys(frames)
    assert len(set(keys.tolist())) == 50
    assert len({key[:1] for key in keys.tolist()}) == 1


def test_what_is_meant_by_a_nifti_is_part_of_its_key(tmp_path: Path):
    file = replace(picture(tmp_path / "images/a.png", 0), format="nifti")
    assert file_keys([file]) != file_keys([replace(file, modality="CT")])
    assert file_keys([replace(file, format="png")]) == file_keys([replace(file, format="png", modality="CT")])


def test_no_path_stands_in_the_cache(tmp_path: Path, root: Path):
    prepare(pictures(tmp_path / "Doe^Jane", 5))
    content = b"".join(path.read_bytes() + path.name.encode() for path in root.rglob("*") if path.is_file())
    assert b"Doe" not in content
    assert b"001.png" not in content


def test_failures_are_remembered_if_they_are_the_files_own(tmp_path: Path, decoded: Path):
    files = pictures(tmp_path / "images", 6)
    broken, late = tmp_path / "images/broken.png", tmp_path / "images/late.png"
    broken.write_bytes(files[0].location.read_bytes()[:-30])
    shutil.copy(files[1].location, late)
    files += [found(broken), found(late)]
    for expected in (8, 1):  # the second time only the one that came too late
        decoded.write_text("")
        prepared = prepare(files, Counted(SETTINGS))
        assert len(decoded.read_text().split()) == expected
        assert prepared.failures[["position", "reason"]].to_numpy().tolist() == [[6, "truncated"], [7, "timed_out"]]
        assert prepared.failures["detail"].str.len().min() > 0
        assert prepared.usable.tolist() == [True] * 6 + [False] * 2
    assert decoded.read_text() == "late.png\n"


def test_what_only_failed_for_a_while_leaves_nothing(tmp_path: Path, root: Path, decoded: Path):
    picture(tmp_path / "images/late.png", 0)
    prepare([found(tmp_path / "images/late.png")], Counted(SETTINGS))
    assert not blocks(root)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_flipped_or_missing_byte_is_found(data: st.DataObject):
    """A block, one of its bytes changed or its end cut off: what it held is missing, or (elsewhere in no block) nothing is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), 1, 4)
        keys = np.sort(np.array([bytes([number]) + bytes(14) + b"x" for number in range(4)], dtype=f"S{KEY_BYTES}"))
        claim = store.claim(0)
        assert claim is not None
        claim.release()
        with store.new_block(0) as block:
            for number in range(3):
                block.add(keys[number].ljust(KEY_BYTES, b"\0"), np.full((1, 4, 4), number, dtype=np.uint16))
            block.add_failure(keys[3].ljust(KEY_BYTES, b"\0"), "truncated", "ends early")
        assert store.find(whole := Places(keys)) == 0
        assert whole.block.tolist() == [0, 0, 0, FAILED]
        content = bytearray(block.path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            content = content[:place]
        block.path.write_bytes(content)
        broken = Places(keys)
        assert store.find(broken) == 1
        assert (broken.block[:3] == MISSING).all()
        assert not block.path.exists()


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap"])
def test_a_damaged_block_is_said_and_made_anew(
    harm: str, tmp_path: Path, root: Path, decoded: Path, capsys: pytest.CaptureFixture[str]
):
    files = pictures(tmp_path / "images", 20)
    prepare(files, Counted(SETTINGS))
    victim, other = blocks(root)[:2]
    content = victim.read_bytes()
    if harm == "flip":
        victim.write_bytes(content[:100] + bytes([content[100] ^ 4]) + content[101:])
    elif harm == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif harm == "empty":
        victim.write_bytes(b"")
    else:
        victim.write_bytes(content[:-16] + other.read_bytes()[-16:])
    decoded.write_text("")
    prepared = prepare(files, Counted(SETTINGS))
    assert_whole(prepared, files)
    assert 0 < len(decoded.read_text().split()) < 20
    assert "1 block of prepared images damaged" in capsys.readouterr().err
    decoded.write_text("")
    prepare(files, Counted(SETTINGS))
    assert not decoded.read_text()


def test_a_block_that_vanishes_while_it_is_read_is_an_error(tmp_path: Path, root: Path):
    files = pictures(tmp_path / "images", 3)
    prepared = prepare(files)
    for block in blocks(root):
        block.unlink()
    with pytest.raises(CacheError, match="run the command again"):
        prepared.take(np.arange(3))


FILL = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_cache import *
from pipeline.prepared.cache_store import *
files = [found(path) for path in sorted(Path({images!r}).iterdir())]
print("ready", flush=True)
sys.stdin.readline()
prepared = prepared_images(files, Counted(SETTINGS), what="preparing", progress=False, workers=0)
assert_whole(prepared, files)
"""


def filling(images: Path, slow: float) -> subprocess.Popen[str]:
    """A process that fills the cache with `images` once it reads a line."""
    code = FILL.format(root=str(ROOT), images=str(images))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SLOW": str(slow)},
    )


def go(*processes: subprocess.Popen[str]) -> None:
    """Lets them begin when all have imported what they need."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_processes_divide_the_work(tmp_path: Path, decoded: Path):
    files = pictures(tmp_path / "images", 60)
    processes = [filling(tmp_path / "images", 0.01) for _ in range(2)]
    go(*processes)
    for process in processes:
        assert process.communicate(timeout=60) is not None
        assert process.returncode == 0
    assert sorted(decoded.read_text().split()) == [file.path for file in files]  # each once
    assert_whole(prepare(files), files)


def test_killed_at_work_only_the_block_in_work_is_lost(tmp_path: Path, root: Path, decoded: Path):
    files = pictures(tmp_path / "images", 60)
    process = filling(tmp_path / "images", 0.01)
    go(process)
    while len(decoded.read_text().split()) < 30:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = decoded.read_text().split()
    decoded.write_text("")
    assert_whole(prepare(files, Counted(SETTINGS)), files)
    again = set(begun) & set(decoded.read_text().split())
    in_work = max(np.bincount(_buckets(files)))
    assert len(again) <= in_work
    assert set(begun) | set(decoded.read_text().split()) == {file.path for file in files}
    assert not list(root.rglob("*.part"))


def _buckets(files: list[ImageFile]) -> np.ndarray:
    return np.array([key[0] >> BUCKET_SHIFT for key in file_keys(files).tolist()])


def test_what_another_process_holds_is_waited_for(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    """All buckets taken by another process, which is killed: this one says that it waits, then does the work."""
    files = pictures(tmp_path / "images", 5)
    prepare(files[:1])
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from pipeline.prepared.cache_store import Store\n"
        f"store = Store(Path({str(next(root.glob('*[0-9a-f]')))!r}), 1, 32); claims = [store.claim(n) for n in range({BUCKETS})]\n"
        "print('held', flush=True); time.sleep(1)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    prepared = prepare(files)
    assert holder.wait() == 0
    assert_whole(prepared, files)
    assert "another process prepares 4 images of these; waiting for it" in capsys.readouterr().err


def test_large_buckets_are_several_blocks(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "BLOCK_BYTES", 3 * 32 * 32 * 2)
    file = picture(tmp_path / "images/a.png", 0)
    frames = [replace(file, frame=number) for number in range(10)]
    assert_whole(prepared := prepare(frames, _FrameZero(SETTINGS)), [file] * 10)
    assert sorted(np.bincount(prepared.block).tolist()) == [1, 3, 3, 3]
    assert len(blocks(root)) == 4


class _FrameZero(Preparer):
    def __call__(self, image: ImageFile) -> Prepared:
        return super().__call__(replace(image, frame=0))


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks Linux for the process's memory")
def test_more_images_than_memory_would_hold(tmp_path: Path):
    """400 MB of images verified and read in batches: the process grows by less than a tenth of that."""
    store, count = Store(tmp_path, 1, 256), 3200
    store.claim(0)
    keys = np.array([number.to_bytes(4, "big") + bytes(11) + b"x" for number in range(count)], dtype=f"S{KEY_BYTES}")
    with store.new_block(0) as block:
        for number in range(count):
            block.add(keys[number].ljust(KEY_BYTES, b"\0"), np.full((1, 256, 256), number, dtype=np.uint16))
    before = anonymous_bytes()
    places = Places(keys)
    assert store.find(places) == 0
    reader = RowReader(places.paths, (1, 256, 256))
    most = 0
    for batch in np.array_split(np.random.default_rng(0).permutation(count), count // 32):
        levels = reader.read(places.block[batch], places.row[batch])
        assert (levels[:, 0, 0, 0] == batch).all()
        most = max(most, anonymous_bytes() - before)
    assert most < 40e6


def test_images_go_to_another_process(tmp_path: Path):
    files = pictures(tmp_path / "images", 4)
    sent = pickle.dumps(prepare(files))
    assert len(sent) < 20_000  # where they are, not what they are
    assert_whole(pickle.loads(sent), files)


def test_a_full_disk_is_one_error_before_anything_is_decoded(
    tmp_path: Path, decoded: Path, monkeypatch: pytest.MonkeyPatch
):
    files = pictures(tmp_path / "images", 5)
    usage = shutil.disk_usage(tmp_path)._replace(free=9_000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        CacheError, match=r"cache: 5 prepared images need 10 kB, and 9 kB are free there; .*RADLOOP_CACHE"
    ):
        prepare(files, Counted(SETTINGS))
    assert not decoded.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_on_the_way_leaves_no_half(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RADLOOP_CACHE", str(small_disk / "cache"))
    monkeypatch.setattr(cache._Filler, "_check_room", lambda *_: None)  # somebody else fills it afterwards
    files = pictures(tmp_path / "images", 150)
    large = Preparer(Preprocessing(size=128))
    with pytest.raises(CacheError, match="RADLOOP_CACHE"):
        prepare(files, large)
    assert not list(small_disk.rglob("*.part"))
    kept = len(blocks(small_disk / "cache"))
    assert kept > 0
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    prepared = prepare(files, large)
    assert prepared.usable.all()
    assert len(blocks(small_disk / "cache")) > kept
    del prepared


def test_a_cache_that_cannot_be_written_is_replaced_by_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RADLOOP_CACHE", str(tmp_path / "file/cache"))
    files = pictures(tmp_path / "images", 3)
    assert_whole(prepare(files, fallback=tmp_path / "run/cache"), files)
    assert len(blocks(tmp_path / "run/cache")) > 0
    said = capsys.readouterr().err
    assert "cannot be kept here" in said
    assert str(tmp_path / "run/cache") in said
    with pytest.raises(CacheError, match="set RADLOOP_CACHE"):
        prepare(files)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_folder.os, "getuid", lambda: 54321)
    root.mkdir()
    for fallback in (
        None,
        tmp_path / "run/cache",
    ):  # not even with another place: somebody may have put it there on purpose
        with pytest.raises(CacheError, match="belongs to another user"):
            prepare([], fallback=fallback)


def test_a_link_in_place_of_a_chain_is_not_followed(tmp_path: Path, root: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root.mkdir()
    (root / chain_name(SETTINGS)).symlink_to(elsewhere)
    with pytest.raises(CacheError, match="cannot be kept here"):
        prepare(pictures(tmp_path / "images", 2))
    assert not list(elsewhere.iterdir())


def test_only_the_owner_may_look_inside(tmp_path: Path, root: Path):
    prepare(pictures(tmp_path / "images", 3))
    assert root.stat().st_mode & 0o777 == 0o700
    for path in root.iterdir():
        assert not path.is_dir() or path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in blocks(root)} == {0o600}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RADLOOP_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/radloop/prepared"),
        ({"HOME": "/c"}, "/c/.cache/radloop/prepared"),
    ],
)
def test_where_it_is(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("RADLOOP_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder.cache_root() == Path(expected)


def used_before(root: Path, days: float, settings: Preprocessing = SETTINGS) -> None:
    when = time.time() - days * 86_400
    os.utime(root / chain_name(settings) / "chain.json", (when, when))


def test_the_command_shows_what_is_there(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"no prepared images in {root}\n"
    files = pictures(tmp_path / "images", 20)
    other = Preprocessing(
        size=48, window=("lung", {"center": 10, "width": 20}, "bone"), enhancement={"clahe": 2}, voi="LUNG"
    )
    prepare(files)
    prepare(files[:1], Preparer(other))
    used_before(root, 12.2)
    capsys.readouterr()
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"prepared images in {root}: 21 images, ")
    assert lines[1].startswith(
        f"  {chain_name(other)[:8]}  48 px, lung + window 10/20 + bone, fit, voi LUNG, clahe 2.0: 1 image, "
    )
    assert "used today" in lines[1]
    assert lines[2].startswith(f"  {chain_name(SETTINGS)[:8]}  32 px, lung, fit: 20 images, ")
    assert "used 12 days ago" in lines[2]
    assert "no longer used" not in lines[2]
    facts = root / chain_name(SETTINGS) / "chain.json"
    facts.write_text(facts.read_text().replace(cache_key.code_version(), "0123456789abcdef"))
    main(["cache"])
    assert "of another version of code or packages, no longer used" in capsys.readouterr().out


def test_clearing_takes_what_is_old_and_nobodys(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    files = pictures(tmp_path / "images", 4)
    other = Preprocessing(size=48)
    prepare(files)
    held = prepare(files, Preparer(other))
    (root / "notes").mkdir()
    (root / "notes/mine.txt").write_text("precious")
    used_before(root, 40)
    assert main(["cache", "--clear", "--older-than", "30"]) == 0
    assert "removed 4 images" in capsys.readouterr().out
    assert not (root / chain_name(SETTINGS)).exists()
    assert main(["cache", "--clear"]) == 0
    assert f"left, because a process uses it:  {chain_name(other)[:8]}" in capsys.readouterr().out
    assert held.take(np.arange(4)).shape == (4, 1, 48, 48)
    del held
    assert main(["cache", "--clear"]) == 0
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.endswith(f"nothing to remove in {root}\n")
    assert (root / "notes/mine.txt").read_text() == "precious"
    assert_whole(prepare(files), files)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--older-than", "3"], "says what --clear removes"),
        (["--clear", "--older-than", "-1"], "expected days, from 0 on"),
    ],
)
def test_wrong_use_of_the_command(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(["cache", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_the_command_needs_no_torch():
    code = (
        "import pipeline.prepared.cache_folder, pipeline.prepared.cache_key, sys; pipeline.prepared.cache_key.code_version(); "
        "print([name for name in ('torch', 'monai', 'pandas') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_values_that_are_no_numbers_are_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Levels know no NaN: a float image with one is refused, not turned into some gray."""
    values = np.zeros((8, 8), dtype=np.float32)
    values[2, 3] = np.nan
    monkeypatch.setattr(dataset, "read_image", lambda *_, **__: Pixels(values, PixelUnit.FRACTION))
    ((_, outcome),) = prepare_all(pictures(tmp_path / "images", 1), Preparer(SETTINGS), 0)
    assert isinstance(outcome, Failure)
    assert outcome.reason is RejectReason.UNSUPPORTED_PIXELS


def test_blocks_are_read_by_any_number_of_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_store, "_OPEN_FILES", 2)
    files = pictures(tmp_path / "images", 30)
    prepared = prepare(files)
    assert_whole(prepared, files)
    assert len(prepared.reader._open) == 2
