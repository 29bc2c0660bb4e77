"""What the tests share: where the real images are, a small export of phantoms, and a run trained on it in seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

TEST_KEY = "a key for tests, of no patient"

SMALL = ["preprocessing.size=64", "training.epochs=2", "evaluation.resamples=200", "output.key_images=2"]
"""Overrides of the demo's configuration that make it a matter of seconds."""
PHANTOM_PATIENTS, PHANTOM_SLICES, PHANTOM_SIZE = 14, 2, 96


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need real data or a validator are skipped where it is absent; CI has both."""
    absent = {
        "real_data": None if os.environ.get("RADLOOP_DATA") else "RADLOOP_DATA does not name the real images",
        "dciodvfy": None if shutil.which("dciodvfy") else "dciodvfy is not installed",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure() -> None:
    """No test makes a key file where it happens to run, or writes to the user's own cache."""
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
def looped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo, as `radloop demo` makes it, only smaller. Tests read it and write elsewhere."""
    from pipeline.config import load_config
    from pipeline.demo import demo

    out = tmp_path_factory.mktemp("demo") / "demo"
    config = load_config("demo", SMALL)
    lines = demo(
        out, patients=PHANTOM_PATIENTS, slices=PHANTOM_SLICES, size=PHANTOM_SIZE, config=config, progress=False
    )
    (out / "lines.txt").write_text("\n".join(lines))
    return out
