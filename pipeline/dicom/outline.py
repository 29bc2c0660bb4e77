"""The outline of a region of pixels: closed polylines along the pixels' edges, and the pixels at its rim.

In: a region (rows, columns) bool. Polylines are (points, 2) float32 (column, row), in the PIXEL units of annotations (PS3.3 C.10.5.1.2)
and of spatial coordinates in reports (C.18.6.1): 0\\0 is the top left corner of the top left pixel, 1\\1 that pixel's bottom right
corner, columns\\rows that of the last. A place in the indices of pixels' centres is half a pixel less on both axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Region = NDArray[np.bool_]  # (rows, columns)
Polyline = NDArray[np.float32]  # (points, 2) column, row

_Corner = tuple[int, int]  # row, column of a corner of pixels
_Heading = tuple[int, int]  # the step in rows and columns
_EAST, _WEST, _SOUTH, _NORTH = (0, 1), (0, -1), (1, 0), (-1, 0)


def closed_polylines(region: Region) -> list[Polyline]:
    """The boundaries of `region`, each with its first point again at its end: clockwise around pixels, counterclockwise around holes.

    Exact: what is inside an odd number of them is the region. Pixels that touch at a corner only are outlined apart (4-connected);
    a point stands only where the boundary turns. Ordered by their topmost, then leftmost corner. None for an empty region.
    """
    top, left, cropped = _cropped(region)
    runs = _runs(cropped)
    found = []
    for corner, heading in sorted(runs):
        if (corner, heading) not in runs:
            continue  # walked already
        points = [corner]
        while True:
            corner = runs.pop((corner, heading))
            points.append(corner)
            if not any((corner, turned) in runs for turned in _turns(heading)):
                break  # back at the start: every boundary is closed
            heading = next(turned for turned in _turns(heading) if (corner, turned) in runs)
        found.append(np.array(points, np.float32)[:, ::-1] + np.array([left, top], np.float32))
    return found


def rim(region: Region, thickness: int = 1) -> Region:
    """The pixels of `region` that are no farther than `thickness` from what is outside it, along rows and columns; the image's border
    is outside, too."""
    return np.asarray(region & ~ndimage.binary_erosion(region, iterations=thickness))


def _cropped(region: Region) -> tuple[int, int, Region]:
    """Top, left and content of the part that holds all of the region: the rest of a large radiograph costs nothing."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return 0, 0, region[:0, :0]
    return int(rows[0]), int(columns[0]), region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _turns(heading: _Heading) -> tuple[_Heading, _Heading]:
    """Right first: where two pixels touch at a corner only, the boundary stays with the one it is at."""
    rows, columns = heading
    return (columns, -rows), (-columns, rows)


def _runs(region: Region) -> dict[tuple[_Corner, _Heading], _Corner]:
    """The straight pieces of all boundaries, by start and heading, with their ends; the region is at the right hand of who walks them."""
    padded = np.pad(region, 1).astype(np.int8)
    down, along = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    runs: dict[tuple[_Corner, _Heading], _Corner] = {}
    # going east the region is below, going south it is at the left
    for edges, heading, backwards in ((down > 0, _EAST, False), (down < 0, _WEST, True)):
        runs |= {(start, heading): end for start, end in _pieces(edges, backwards)}
    for edges, heading, backwards in ((along < 0, _SOUTH, False), (along > 0, _NORTH, True)):
        pieces = _pieces(edges.T, backwards)
        runs |= {(start[::-1], heading): end[::-1] for start, end in pieces}
    return runs


def _pieces(edges: NDArray[np.bool_], backwards: bool) -> list[tuple[_Corner, _Corner]]:
    """(start, end) of each run of edges along the lines of `edges`, (lines, places); ends first where walked backwards."""
    changes = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lines, firsts = (axis.tolist() for axis in np.nonzero(changes > 0))
    lasts = np.nonzero(changes < 0)[1].tolist()
    pieces = [((line, first), (line, last)) for line, first, last in zip(lines, firsts, lasts, strict=True)]
    return [(end, start) for start, end in pieces] if backwards else pieces
