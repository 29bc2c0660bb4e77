"""Draws `docs/axes.png`: one point of a patient, from the file's pixels to the network's input, its cells, and back.

`python docs/axes.py` makes the picture anew from a generated slice, by the functions that training and inference use.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.dicom.phantom import make_export
from pipeline.dicom.pixels import read_pixels
from pipeline.networks.model import RESNET_GEOMETRY
from pipeline.prediction.explain import evidence_in_source
from transforms.chains import prepare_chain
from transforms.intensity import WINDOWS, Pixels, to_metatensor, to_unit_range
from transforms.spatial import index_affine, to_input

SIZE = 224
SLICE = "DICOM/PA000000/ST000000/SE000001/IM000001"
ROWS, COLUMNS = slice(60, 260), slice(30, 350)
"""Of the phantom's slice of 384 pixels: an image that is not square."""
POINT = (112.0, 232.0)
"""(row, column) of the landmark in the cut image."""
ORANGE, BLUE, GREEN = "#E69F00", "#56B4E9", "#009E73"


def main() -> None:
    """Writes the picture beside this script."""
    pixels = _slice()
    prepared = prepare_chain(windows=(WINDOWS["lung"],), size=SIZE, resize="fit")({"image": to_metatensor(pixels)})[
        "image"
    ]
    affine = index_affine(prepared)
    place = to_input(np.array([POINT]), affine)[0]
    stride = RESNET_GEOMETRY.cell_stride
    cells = np.zeros((SIZE // 32, SIZE // 32), np.float32)
    cells[tuple(np.rint(place / stride).astype(int))] = 1.0
    heat = evidence_in_source(cells, RESNET_GEOMETRY, affine, pixels.values.shape, SIZE)

    mpl.rcParams["font.family"], mpl.rcParams["font.size"] = "DejaVu Sans", 9
    figure = Figure(figsize=(9.6, 7.6), dpi=110, layout="constrained")
    (first, second), (fourth, third) = figure.subplots(2, 2, width_ratios=[1.4, 1])
    shown = to_unit_range(pixels, WINDOWS["lung"])
    _image(first, shown, "1  the file: its own rows and columns", POINT)
    _arrows(first, "columns, to the patient's left (L)", "rows, to the back (P)")
    _image(second, prepared[0].numpy(), f"2  the network's input: {SIZE} × {SIZE}, padded", tuple(place))
    row, column = affine[:, 2]
    second.set_xlabel(
        f"its affine, 2 → 1:\nrow → {affine[0, 0]:.3f} · row {row:+.1f},  column → {affine[1, 1]:.3f} · column {column:+.1f}"
    )
    _cells(third, prepared[0].numpy(), cells, tuple(place))
    _image(fourth, shown, "4  the heatmap on the file's own pixels", POINT)
    fourth.imshow(np.ma.masked_less(heat, 0.02), cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    fourth.set_xlabel("between the cells' centres: linear")
    figure.savefig(Path(__file__).with_name("axes.png"))


def _slice() -> Pixels:
    """A phantom's lung slice, cut so that it is not square."""
    with tempfile.TemporaryDirectory() as folder:
        export = make_export(Path(folder), patients=2, slices=3, size=384)
        pixels = read_pixels(export.folder / SLICE)
    return Pixels(pixels.values[ROWS, COLUMNS], pixels.unit)


def _image(axes: Axes, image: np.ndarray, title: str, point: tuple[float, ...]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, loc="left", fontsize=10)
    axes.plot(point[1], point[0], "+", color=ORANGE, markersize=14, markeredgewidth=2)
    axes.annotate(
        f"({point[0]:.1f}, {point[1]:.1f})",
        (point[1], point[0]),
        (-8, 9),
        textcoords="offset points",
        color=ORANGE,
        ha="right",
    )


def _arrows(axes: Axes, along: str, down: str) -> None:
    style = {"arrowstyle": "->", "color": BLUE, "linewidth": 1.5}
    axes.annotate("", (90, 6), (0, 6), arrowprops=style)
    axes.annotate("", (6, 90), (6, 0), arrowprops=style)
    axes.text(94, 9, along, color=BLUE, fontsize=9)
    axes.text(2, 94, down, color=BLUE, fontsize=9, rotation=90, va="top")
    axes.plot(0, 0, "s", color=BLUE, markersize=5)
    axes.set_xlabel("(0, 0) is the centre of the first pixel")


def _cells(axes: Axes, image: np.ndarray, cells: np.ndarray, point: tuple[float, ...]) -> None:
    """Centres of the last feature map's cells over the input; the one that answers for the point."""
    stride, offset = RESNET_GEOMETRY.cell_stride, RESNET_GEOMETRY.cell_offset
    _image(axes, image, "3  its cells: cell i looks at 32 · i", point)
    row, column = np.indices(cells.shape) * stride + offset
    axes.plot(column.ravel(), row.ravel(), ".", color=GREEN, markersize=5)
    hot = np.argwhere(cells)[0] * stride + offset
    axes.add_patch(
        mpl.patches.Rectangle(
            (hot[1] - stride / 2, hot[0] - stride / 2), stride, stride, fill=False, color=GREEN, linewidth=2
        )
    )
    axes.set_xlabel("the cell that answers for the point: centred on (128, 160)")


if __name__ == "__main__":
    main()
