"""What the tests share: where the real images are, a small export of phantoms, and a run trained on it in seconds."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pacs import browser, ohif
from tests.pacs import orthanc as pacs
from tests.validators import PROGRAMS, why_absent

TEST_KEY = "a key for tests, of no patient"

SMALL = ["preprocessing.size=64", "training.epochs=2", "evaluation.resamples=200", "output.key_images=2"]
"""Overrides of the demo's configuration that make it a matter of seconds."""
TESTS = Path(__file__).parent
PHANTOM_PATIENTS, PHANTOM_SLICES, PHANTOM_SIZE = 14, 2, 96


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where to run, and what to skip."""
    for item in items:
        _together(item)
    _skip_what_cannot_be(items)


def _together(item: pytest.Item) -> None:
    """With several workers (`--dist loadgroup`) a file's tests stay on one, as they share what its fixtures make; so do all that need the
    PACS (one Orthanc and one Chromium at a time), and all that evaluate the runs of `tiny_fixtures`."""
    group = item.path.relative_to(TESTS).as_posix()
    if any(item.get_closest_marker(marker) for marker in ("orthanc", "chromium", "ohif")):
        group = "pacs"
    elif "tests.tiny_fixtures" in getattr(getattr(item, "module", None), "pytest_plugins", ()):
        group = "tiny runs"
    item.add_marker(pytest.mark.xdist_group(group))


def _skip_what_cannot_be(items: list[pytest.Item]) -> None:
    """Tests that need real data or a validator are skipped where it is absent; CI has both."""
    absent = {
        "real_data": None if os.environ.get("RADLOOP_DATA") else "RADLOOP_DATA does not name the real images",
        **{marker: why_absent(marker) for marker in (*PROGRAMS, "dicom_validator")},
        "chromium": None if browser.PROGRAM else "Chromium is not installed",
        "orthanc": None if pacs.IS_INSTALLED else "Orthanc with its DICOMweb plugin is not installed",
        "ohif": None if ohif.DIST else "OHIF is not at hand (.ci/ohif gets it)",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config: pytest.Config) -> None:
    """No test makes a key file where it happens to run, or writes to the user's own cache. Each of several workers computes on one core."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the workers start, which inherit it
    os.environ["RADLOOP_KEY"] = TEST_KEY
    os.environ["RADLOOP_CACHE"] = tempfile.mkdtemp(prefix="radloop-test-cache-")


def pytest_unconfigure() -> None:
    """Images of the tests are worth nothing to anybody."""
    shutil.rmtree(os.environ["RADLOOP_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images (see the marker `real_data`)."""
    return Path(os.environ["RADLOOP_DATA"])


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pacs.Orthanc]:
    """A PACS. Its storage holds what the tests before left there: empty it first."""
    with pacs.running_orthanc(tmp_path_factory.mktemp("orthanc")) as started:
        yield started


@pytest.fixture(scope="session")
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo, as `radloop demo` makes it, only smaller. Tests read it and write elsewhere."""
    return _made_once(tmp_path_factory, "demo", _loop) / "demo"


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled, once for all workers: the first that needs it makes it, the others wait."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
    with (root / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def _loop(folder: Path) -> None:
    from pipeline.config import load_config
    from pipeline.demo import demo

    out = folder / "demo"
    config = load_config("demo", SMALL)
    lines = demo(
        out, patients=PHANTOM_PATIENTS, slices=PHANTOM_SLICES, size=PHANTOM_SIZE, config=config, progress=False
    )
    (out / "lines.txt").write_text("\n".join(lines))
