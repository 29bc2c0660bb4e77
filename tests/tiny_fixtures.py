"""Fixtures of tests/tiny_runs.py, each trained once a session: `pytest_plugins = ["tests.tiny_fixtures"]` brings them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_runs import make_pictures, train_tiny


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two classes; the data are in `data` beside it. Tests read it and write to copies."""
    folder = tmp_path_factory.mktemp("two")
    return train_tiny(make_pictures(folder / "data"), folder / "run")


@pytest.fixture(scope="session")
def several_findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three findings at once."""
    folder = tmp_path_factory.mktemp("several")
    return train_tiny(make_pictures(folder / "data", several=True), folder / "run")


@pytest.fixture(scope="session")
def two_folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two folds, whose threshold was chosen, evaluated."""
    from pipeline.evaluate import evaluate

    folder = tmp_path_factory.mktemp("folds")
    data = make_pictures(folder / "data", split="{folds: 2, fold: all}")
    run = train_tiny(data, folder / "run", ["evaluation.threshold=youden"])
    evaluate(run, progress=False)
    return run
