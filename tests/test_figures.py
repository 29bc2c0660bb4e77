"""Pictures: whole PNG files of the expected size whatever the data, and nothing taken from or left in global state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.metrics.metrics import Interval
from pipeline.metrics.roc import roc_points
from pipeline.pages import figures
from pipeline.pages.figures import DPI, RocLine, Tile

NOTE = "Phantoms, not patients. Research use only - not for diagnosis."


def _history(epochs: int) -> pd.DataFrame:
    number = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": number,
            "train_loss": np.exp(-number / 8),
            "val_loss": np.exp(-number / 9) + 0.1,
            "train_accuracy": 1 - 0.5 * np.exp(-number / 6),
            "val_accuracy": 0.95 - 0.4 * np.exp(-number / 6),
            "learning_rate": np.where(number < 5, 1e-3, 1e-4),
            "images_per_second": 10.0,
            "seconds": 2.0,
        }
    )


def _split(classes: int) -> pd.DataFrame:
    number = np.arange(60)
    return pd.DataFrame(
        {
            "case_id": number.astype(str),
            "patient_key": (number // 2).astype(str),
            "label": [f"class {one % classes}" for one in number],
            "split": np.where(number < 40, "train", np.where(number < 50, "val", "test")),
        }
    )


def _tiles(count: int) -> list[Tile]:
    shades = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    return [Tile(shades, "yes", ("yes", "no")[one % 2], 0.5 + one / 100, f"case {one}") for one in range(count)]


def _line(name: str = "yes") -> RocLine:
    label, score = np.array([0, 1, 0, 1, 1, 0]), np.array([0.1, 0.9, 0.6, 0.5, 0.8, 0.2])
    return RocLine(name, roc_points(label, score, np.arange(6), resamples=50), Interval(0.9, 0.6, 1.0), threshold=0.5)


def _missing(history: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return history.assign(**dict.fromkeys(columns, np.nan))


UNDEFINED = RocLine("yes", roc_points(np.ones(3), np.arange(3.0)), Interval(None, None, None), threshold=0.5)
DRAW: dict[str, Callable[[Path], None]] = {
    "confusion_two": lambda path: figures.confusion_matrix(path, [[5, 1], [0, 7]], ["no", "yes"], note=NOTE),
    "confusion_one": lambda path: figures.confusion_matrix(path, [[5]], ["a very long name " * 5], note=NOTE),
    "confusion_empty_row": lambda path: figures.confusion_matrix(path, [[5, 1, 0], [0, 7, 1], [0, 0, 0]], list("abc")),
    "roc_two": lambda path: figures.roc(path, [_line()], note=NOTE),
    "roc_many": lambda path: figures.roc(path, [_line(name) for name in "abcdefghi"], note=NOTE),
    "roc_undefined": lambda path: figures.roc(path, [UNDEFINED], note=NOTE),
    "roc_none": lambda path: figures.roc(path, [], note=NOTE),
    "history": lambda path: figures.history(path, _history(12), note=NOTE),
    "history_one_epoch": lambda path: figures.history(path, _history(1), best_epoch=1, note=NOTE),
    "history_no_validation": lambda path: figures.history(path, _missing(_history(4), "val_accuracy", "val_loss")),
    "history_nothing": lambda path: figures.history(path, _missing(_history(2), *_history(2).columns[1:5])),
    "classes": lambda path: figures.class_histogram(path, _split(2), note=NOTE),
    "classes_one": lambda path: figures.class_histogram(path, _split(1), note=NOTE),
    "classes_nine": lambda path: figures.class_histogram(path, _split(9), note=NOTE),
    "gallery_none": lambda path: figures.gallery(path, [], note=NOTE),
    "gallery_one": lambda path: figures.gallery(path, _tiles(1), note=NOTE),
    "gallery_many": lambda path: figures.gallery(path, _tiles(24), note=NOTE),
}


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.filterwarnings("error")
def test_each_is_a_whole_png(tmp_path: Path, name: str) -> None:
    path = tmp_path / "deep" / f"{name}.png"
    DRAW[name](path)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 2.5 * DPI < picture.width < 16 * DPI
        assert 2.5 * DPI < picture.height < 16 * DPI
        shades = np.asarray(picture.convert("L"))
    assert shades.min() < 130  # something is drawn
    assert shades[0, 0] == shades[-1, -1] == 255  # on white
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_size_follows_what_is_drawn(tmp_path: Path) -> None:
    sizes = {}
    for name in ("gallery_one", "gallery_many", "history"):
        DRAW[name](tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            sizes[name] = picture.size
    assert sizes["gallery_many"][0] == round(6 * 2.4 * DPI)
    assert sizes["gallery_many"][0] > 3 * sizes["gallery_one"][0]
    assert sizes["history"][0] == round(7.2 * DPI)


def test_the_note_stands_at_the_foot_and_covers_nothing(tmp_path: Path) -> None:
    shades = {}
    for note in ("Research use only.", "Phantoms.", ""):
        figures.class_histogram(tmp_path / "one.png", _split(2), note=note)
        with Image.open(tmp_path / "one.png") as picture:
            shades[note] = np.asarray(picture.convert("L"))
    one, other, none = shades.values()
    foot = len(one) - len(none)
    assert 0.1 * DPI < foot < 0.4 * DPI
    assert (one[:-foot] == other[:-foot]).all()
    assert (one[-foot:] < 200).any()
    assert (one[-foot - 3 : -foot] == 255).all()  # nothing of the figure reaches down to the note


def test_right_and_wrong_differ_in_more_than_colour(tmp_path: Path) -> None:
    blank = np.full((40, 40, 3), 255, np.uint8)
    for name, predicted in (("right", "yes"), ("wrong", "ono")):
        figures.gallery(tmp_path / name, [Tile(blank, "yes", predicted, 0.9)])
    longest = {}
    for name in ("right", "wrong"):
        with Image.open(tmp_path / name) as picture:
            dark = np.asarray(picture.convert("L")) < 200
        # Longest unbroken line: the distance between light pixels in a row.
        longest[name] = max(int(np.diff(np.flatnonzero(~row), prepend=-1, append=len(row)).max()) for row in dark)
    assert longest["right"] > 1.5 * DPI  # a full frame
    assert longest["wrong"] < 0.5 * DPI  # dashes


def test_a_tile_says_which_class_its_probability_is_of(tmp_path: Path) -> None:
    blank, pictures = np.full((40, 40, 3), 255, np.uint8), {}
    for about in ("", "no", "yes"):
        figures.gallery(tmp_path / "one.png", [Tile(blank, "yes", "no", 0.2, about=about)])
        pictures[about] = (tmp_path / "one.png").read_bytes()
    assert pictures[""] == pictures["no"] != pictures["yes"]


def test_global_state_is_neither_used_nor_changed(tmp_path: Path) -> None:
    import matplotlib as mpl

    figures.history(tmp_path / "plain.png", _history(8), note=NOTE)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 30, "lines.linewidth": 9}):
        figures.history(tmp_path / "styled.png", _history(8), note=NOTE)
        assert mpl.rcParams["font.size"] == 30
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from pipeline.pages import figures; assert 'matplotlib' not in sys.modules;"
        "figures.confusion_matrix(pathlib.Path(sys.argv[1]), [[1, 0], [0, 1]], ['no', 'yes']);"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'torch' not in sys.modules"
    )
    root = Path(figures.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "one.png")], check=True, cwd=root)


def test_a_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roc.png"
    figures.roc(path, [_line()])
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.roc(path, [_line("other")])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["roc.png"]


def test_names_are_no_formulas_and_stay_short(tmp_path: Path) -> None:
    figures.confusion_matrix(tmp_path / "odd.png", [[1, 0], [0, 1]], ["a$b_{$", "x" * 300])
    assert figures._short("x" * 300) == "x" * 11 + "…" + "x" * 12
    assert figures._short("short") == "short"


def test_learning_rate_and_best_epoch_show(tmp_path: Path) -> None:
    table = _history(12)
    figures.history(tmp_path / "one.png", table)
    figures.history(tmp_path / "two.png", table.assign(learning_rate=1e-3))
    figures.history(tmp_path / "three.png", table, best_epoch=3)
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "three")}) == 3
