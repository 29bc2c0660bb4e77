"""Where in a picture the body or the lungs are: a box, whatever the window, the borders, the size and the modality.

Pictures are (rows, columns) float32, bright where tissue is. Margins of one colour are left out first; then everything is done on a
copy of at most `SIDE` pixels a side, of 0-1 by the picture's own percentiles, with a threshold of its own (Otsu 1979), so that other
windows and sizes move the box little. Boxes are (first row, end row, first column, end column), ends excluded.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

Region = Literal["body", "lungs"]
Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]
Parts = NDArray[np.int32]

SIDE = 144
"""Of the copy: 3 mm of a body 40 cm wide, a third of a chest wall."""
PERCENTILES = (0.5, 99.5)
"""Black and white: a burnt-in letter is not."""
SAMPLES = 64
"""Pixels of a line that tell whether it is of one colour."""
SAME_COLOUR = 0.04
"""Of the range from black to white, 10 of 255 gray values: what JPEG does to a margin."""
MARGIN_SHARE = 0.97
"""Of a line that has one colour, if it is a margin: a lung's tip in a white chest wall takes more than the rest."""
BLENDED = 0.005
"""Of a side, at least a pixel: where a resampled margin and the picture are mixed."""
NEARLY_SAME, MOST_OF_LINE = 0.14, 0.9
"""Of the range, and of a line that is so near to the margin's colour, if it is what JPEG made of a margin's last lines: rings, of blocks
that hold margin and picture."""
RINGS = 8
"""Lines at most that are so, a block of JPEG, or of a picture that was enlarged since `RINGS_SHARE` of its side."""
RINGS_SHARE = 0.02
LEAST_RUN = 0.1
"""Of the longest run of lines that are not of one colour; shorter ones are text. All-white tissue lies between long ones."""
LONGEST_TEXT, PAGE_OF_TEXT = 0.3, 0.6
"""Of the longest run, and of most of its lines what has the page's colour, if it is lines of text, which JPEG's rings join."""
WHITE_PAGE, FEWEST_WORDS = 0.7, 5
"""Of the range from black; and pieces that text cuts a line of it into. In a white wall a lung's tip is a piece or two."""
LEAST_PICTURE = 0.1
"""Of a side. If less would be left, nothing was a margin."""
BINS = 128
"""Of the histogram that a threshold is sought in."""
NARROWEST = 1e-6
"""Range of values, of which a tenth of a level of the cache is more."""
LEAST_BODY = 0.08
"""Of the picture."""
LEAST_TISSUE = 0.005
"""Of the picture, for what can be around lungs: more than text."""
ENCLOSED_SIDES = 2.7
"""Mean number of a dark part's sides with tissue, of four: air beside the body has 2, a lung 4, one that the edge cuts 3."""
LEAST_CUT_LUNG, LEAST_HEIGHT = 0.05, 0.35
"""Of the picture, and of its height: corners beside the body are smaller, and what lies below it is lower."""
TILE, OF_TILE = 12, 0.4
"""Pixels of a tile's side, and the part of a tile that counts."""
VESSEL_SPAN = 0.35
"""From lung to tissue."""
LEAST_VESSELS = 0.15
"""Of tiles. Of 396 lungs cut on all sides 380 had more in both halves, air with a table below it 0."""
AIR_BINS, COMMON_AIR = 16, 0.15
"""Of the values around a body, and the share of them in a bin that air has: in a radiograph no gray has so much."""
AIR_PERCENTILE, AIR_SPAN = 10, 0.35
"""Of the values around a body where no bin has; and how far from air to tissue the body begins."""
LEAST_LUNG = 0.012
"""Of the body, for a part: trachea and bronchi have less."""
LEAST_LUNGS = 0.06
"""Of the body, for all parts together: bowel gas has less."""
LEAST_OTHER_LUNG = 0.25
"""Of the larger one. With less a lung is missing or airless, and its place is the mirror image of the other's."""
WALL = 0.2
"""Of the body's sides: so much at most, at each side, is chest wall. Beyond it a lung is airless and not seen."""


class Box(NamedTuple):
    """Of pixels; the ends are not of it."""

    row: int
    row_end: int
    column: int
    column_end: int

    def grown(self, margin: float, within: Box) -> Box:
        """By this fraction of its own sides to each side, within another box."""
        more = round(margin * (self.row_end - self.row)), round(margin * (self.column_end - self.column))
        return Box(
            max(within.row, self.row - more[0]),
            min(within.row_end, self.row_end + more[0]),
            max(within.column, self.column - more[1]),
            min(within.column_end, self.column_end + more[1]),
        )


def find_region(picture: Picture, region: Region, aspect: float = 1.0, margin: float = 0.0) -> tuple[str, Box]:
    """(what was found: lungs, body or image; its box). `aspect`: height of a pixel / its width. `margin`: the box grows by this fraction
    of its sides to each side, but never into a frame around the picture, which is no anatomy and differs between hospitals."""
    dark, bright = _ends(picture)
    if not bright > dark:
        return "image", Box(0, picture.shape[0], 0, picture.shape[1])
    whole = _without_margins(picture, dark, bright - dark)
    inside = picture[whole.row : whole.row_end, whole.column : whole.column_end]
    small = np.clip((_reduced(inside, aspect) - dark) / (bright - dark), 0.0, 1.0)
    found, box = _search(small, region)
    rows, columns = (side / cells for side, cells in zip(inside.shape, small.shape, strict=True))
    exact = Box(
        whole.row + math.floor(box.row * rows),
        whole.row + math.ceil(box.row_end * rows),
        whole.column + math.floor(box.column * columns),
        whole.column + math.ceil(box.column_end * columns),
    )
    return found, exact.grown(margin, whole)


def _ends(picture: Picture) -> tuple[float, float]:
    """What is black and white: 12 bits in a file of 16 are a sixteenth of its range."""
    steps = [max(1, side // SIDE) for side in picture.shape]
    low, high = np.percentile(picture[steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]], PERCENTILES)
    return float(low), float(high)


def _without_margins(picture: Picture, dark: float, span: float) -> Box:
    """`dark`: what is black; `span`: from there to white. A margin of which JPEG left no line of one colour has that of another side's, or
    is black.
    """
    row, row_end = _extent(picture, dark, span)
    column, column_end = _extent(picture[row:row_end].T, dark, span)
    outermost = [picture[:row], picture[row_end:], picture[row:row_end, :column], picture[row:row_end, column_end:]]
    colours = [float(np.median(margin)) for margin in outermost if margin.size] or [dark]
    row, row_end = _without_rings(picture[:, column:column_end], row, row_end, colours, span)
    column, column_end = _without_rings(picture[row:row_end].T, column, column_end, colours, span)
    return Box(row, row_end, column, column_end)


def _sampled(lines: Picture) -> Picture:
    step = max(1, lines.shape[1] // SAMPLES)
    return lines[:, step // 2 :: step]


def _extent(lines: Picture, dark: float, span: float) -> tuple[int, int]:
    """From the first to the last run of lines that are neither of one colour nor text; the whole where that is too little."""
    sampled, length = _sampled(lines), len(lines)
    middle = np.partition(sampled, sampled.shape[1] // 2, axis=1)[:, sampled.shape[1] // 2, None]
    varied = (np.abs(sampled - middle) <= SAME_COLOUR * span).mean(axis=1) < MARGIN_SHARE
    runs = np.flatnonzero(np.diff(np.concatenate([[0], varied.astype(np.int8), [0]]))).reshape(-1, 2).tolist()
    longest = max((end - first for first, end in runs), default=0)

    def is_picture(first: int, end: int) -> bool:
        if end - first < LEAST_RUN * longest:
            return False
        if end - first > LONGEST_TEXT * longest:
            return True
        page = float(middle[first - 1 if first else end, 0])
        ink = np.abs(sampled[first:end] - page) > NEARLY_SAME * span
        words = np.diff(ink, axis=1, prepend=False).sum(axis=1) / 2
        may_be_lung = page > dark + WHITE_PAGE * span and words.max() < FEWEST_WORDS
        return bool(may_be_lung or np.median(1 - ink.mean(axis=1)) < PAGE_OF_TEXT)

    kept = [run for run in runs if is_picture(*run)]
    first, end = (kept[0][0], kept[-1][1]) if kept else (0, length)
    return (first, end) if end - first > LEAST_PICTURE * length else (0, length)


def _without_rings(lines: Picture, first: int, end: int, colours: list[float], span: float) -> tuple[int, int]:
    """Without what JPEG made of a margin's last lines, and without lines where a resampled margin and the picture are mixed."""
    inside = _sampled(lines)[first:end]
    length = len(lines)
    most, blended = max(RINGS, round(RINGS_SHARE * length)), max(1, round(BLENDED * length))
    near = np.abs(inside[:, :, None] - np.array(colours, dtype=np.float32)) <= NEARLY_SAME * span
    alike = (near.mean(axis=1) >= MOST_OF_LINE).any(axis=1)
    before, after = (int(np.argmin(np.append(some[:most], False))) for some in (alike, alike[::-1]))
    new_first = first + before + (blended if first + before else 0)
    new_end = end - after - (blended if end - after < length else 0)
    return (new_first, new_end) if new_end - new_first > LEAST_PICTURE * length else (first, end)


def _reduced(picture: Picture, aspect: float) -> Picture:
    lengths = (picture.shape[0] * aspect, float(picture.shape[1]))
    factor = min(1.0, SIDE / max(lengths))
    rows, columns = (
        min(side, max(1, round(length * factor))) for side, length in zip(picture.shape, lengths, strict=True)
    )
    tensor = torch.from_numpy(np.ascontiguousarray(picture))[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(tensor, (rows, columns))[0, 0].numpy()


def otsu(picture: Picture) -> float:
    """The threshold between two groups of values for which their variances are least (Otsu 1979); the value of a constant picture."""
    low, high = float(picture.min()), float(picture.max())
    if not high - low > NARROWEST:
        return high
    counts, edges = np.histogram(picture, BINS, (low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1] / counts.sum()
    moment = np.cumsum(counts * centers)
    between = (moment[-1] / counts.sum() * below - moment[:-1] / counts.sum()) ** 2 / (below * (1 - below))
    return float(edges[1:-1][between >= between.max() * (1 - 1e-9)].mean())


def _search(small: Picture, region: Region) -> tuple[str, Box]:
    threshold = otsu(small)
    parts, inner = _dark_parts(small, threshold)
    within = inner[parts]
    body = _body(small, threshold, within, (parts > 0) & ~within)
    if body is None:
        return "image", Box(0, small.shape[0], 0, small.shape[1])
    if region == "lungs":
        large = np.bincount(parts.ravel(), minlength=len(inner)) >= LEAST_LUNG * body.sum()
        lungs = (inner & large)[parts]
        if lungs.sum() >= LEAST_LUNGS * body.sum():
            return "lungs", _completed(lungs, _box(body))
    return "body", _box(body)


def _dark_parts(small: Picture, threshold: float) -> tuple[Parts, Mask]:
    """The connected parts of what is dark (0 where it is not), and of each number whether it is in the body: there is tissue around
    it; or where no lungs are so, it goes beyond the picture and has vessels from top to bottom.
    """
    tissue = _without_specks(small > threshold)
    parts, count = ndimage.label(_opened(small <= threshold))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sides = np.bincount(parts.ravel(), weights=_sides_with(tissue).ravel(), minlength=count + 1)
    inner = sides >= ENCLOSED_SIDES * sizes
    inner[0] = False
    if not _two_lungs(inner[parts]):
        bright = float(np.median(small[small > threshold])) if tissue.any() else 1.0
        beside = ndimage.binary_dilation(tissue, iterations=2)
        for number in range(1, count + 1):
            if not inner[number] and sizes[number] >= LEAST_CUT_LUNG * small.size:
                inner[number] = _has_vessels(small, (parts == number) & ~beside, beside, bright)
    return parts, inner


def _two_lungs(dark: Mask) -> bool:
    middle = dark.shape[1] // 2
    halves = np.count_nonzero(dark[:, :middle]), np.count_nonzero(dark[:, middle:])
    return bool(min(halves) >= LEAST_LUNG * dark.size)


def _has_vessels(small: Picture, part: Mask, beside: Mask, bright: float) -> bool:
    """Whether a dark part is high and has bright spots all over, in its upper and its lower half: below air there is a table."""
    rows = np.flatnonzero(part.any(axis=1))
    if len(rows) < LEAST_HEIGHT * len(part):
        return False
    dark = float(np.median(small[part]))
    spots = (small > dark + VESSEL_SPAN * (bright - dark)) & ~beside
    middle = (rows[0] + rows[-1] + 1) // 2
    for half in (slice(rows[0], middle), slice(middle, rows[-1] + 1)):
        tiles = _tiles(part[half]) >= OF_TILE * TILE**2
        if not tiles.any() or (_tiles(spots[half])[tiles] > 0).mean() < LEAST_VESSELS:
            return False
    return True


def _tiles(mask: Mask) -> NDArray[np.int64]:
    """How many pixels of each tile."""
    spare = [(0, -side % TILE) for side in mask.shape]
    rows, columns = (-(-side // TILE) for side in mask.shape)
    return np.pad(mask, spare).reshape(rows, TILE, columns, TILE).sum(axis=(1, 3))


def _without_specks(bright: Mask) -> Mask:
    parts, _ = ndimage.label(bright)
    sizes = np.bincount(parts.ravel())
    large = sizes >= LEAST_TISSUE * bright.size
    large[0] = False
    return large[parts]


def _body(small: Picture, threshold: float, lungs: Mask, outside: Mask) -> Mask | None:
    """The largest connected part of tissue and lungs. What is around it tells how dark air is: gray tissue at the side of a
    radiograph is nearer to the threshold.
    """
    if outside.any():
        air = _air(small[outside])
        threshold = air + AIR_SPAN * (threshold - air)
    parts, count = ndimage.label(_opened((small > threshold) | lungs))
    if not count:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = parts == sizes.argmax()
    return body if body.mean() >= LEAST_BODY else None


def _air(outside: Picture) -> float:
    """The brightest value that much of what is outside has: air in a scanner's circle with black around it. Else of the darkest."""
    low, high = float(outside.min()), float(outside.max())
    counts, edges = np.histogram(outside, AIR_BINS, (low, max(high, low + SAME_COLOUR)))
    common = np.flatnonzero(counts >= COMMON_AIR * outside.size)
    if len(common):
        return float(edges[common[-1] : common[-1] + 2].mean())
    return float(np.percentile(outside, AIR_PERCENTILE))


def _box(mask: Mask) -> Box:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def _completed(lungs: Mask, body: Box) -> Box:
    """The box of the lungs, with the place of a lung that is not seen and of consolidated parts at its edges."""
    box = _box(lungs)
    middle = (body.column + body.column_end) // 2
    left, right = np.count_nonzero(lungs[:, :middle]), np.count_nonzero(lungs[:, middle:])
    mirrored = body.column + body.column_end - box.column_end, body.column + body.column_end - box.column
    if min(left, right) < LEAST_OTHER_LUNG * max(left, right):
        box = box._replace(column=min(box.column, mirrored[0]), column_end=max(box.column_end, mirrored[1]))
    walls = (round(WALL * (body.row_end - body.row)), round(WALL * (body.column_end - body.column)))
    return Box(
        min(box.row, body.row + walls[0]),
        max(box.row_end, body.row_end - walls[0]),
        max(body.column, min(box.column, body.column + walls[1])),
        min(body.column_end, max(box.column_end, body.column_end - walls[1])),
    )


def _opened(mask: Mask) -> Mask:
    """Without what is less than three pixels wide; at the picture's edge it goes on as it is."""
    return ndimage.binary_opening(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]


def _sides_with(tissue: Mask) -> NDArray[np.int64]:
    """On how many of its four sides each pixel has tissue, however far."""
    before = np.logical_or.accumulate
    down, up = before(tissue, axis=0), before(tissue[::-1], axis=0)[::-1]
    right, left = before(tissue, axis=1), before(tissue[:, ::-1], axis=1)[:, ::-1]
    return down.astype(np.int64) + up + right + left
