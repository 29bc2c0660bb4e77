"""What is drawn for a random augmentation, apart from applying it: settings → numbers → parameters of each image → affines.

Axes: (row, column) indices of pixel centres, rows downward. What is seen is mirrored, magnified and stretched about the image's centre,
turned about it, then shifted: magnification above 1 makes it larger, stretch above 1 higher and narrower, a positive angle turns it
counter-clockwise as seen, a positive shift moves it down or right. The affines lead the other way, from a pixel of the result to the
place where its value is found.

`uniforms` depends for each image on (seed, epoch, item) alone, so that neither the batch, nor the order, nor workers change what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 19
"""Numbers an image needs. The place of each is fixed, so that turning one option on leaves the others' draws as they were."""
FLIP_ROWS, FLIP_COLUMNS, ZOOM, SHIFT_ROWS, SHIFT_COLUMNS, ANGLE, CONTRAST, NOISE, CUTOUT, CUTOUT_ROW, CUTOUT_COLUMN = (
    range(11)
)
STRETCH, BLACK, WHITE, GAMMA, BLUR, SHARPEN, COARSE, PLAIN = range(11, DRAWS)

PROBABILITY, FRACTION, DEGREES = "from 0 to 1", "from 0 to below 1", "degrees from 0 to 180"
BELOW_HALF, POWER, PIXELS, FACTOR = "from 0 to below 0.5", "from 0 to 2", "pixels from 0 to 10", "from 0 to 5"


@dataclass(frozen=True)
class Augmentations:
    """How strongly images are varied; all off at 0. ValueError if a value is out of its range."""

    flip_horizontal: float = 0.0
    """Probability of a left-right mirror, 0 to 1."""
    flip_vertical: float = 0.0
    """Probability of an upside-down mirror, 0 to 1."""
    zoom: float = 0.0
    """Magnification is drawn from 1 - zoom to 1 + zoom, the same along both axes; below 1."""
    stretch: float = 0.0
    """Height is multiplied by a factor drawn from 1 - stretch to 1 + stretch, and width divided by it; below 1."""
    shift: float = 0.0
    """Shift along each axis is drawn from -shift to +shift, as a fraction of that side; below 1."""
    rotate: float = 0.0
    """Degrees, 0 to 180; the angle is drawn from -rotate to +rotate."""
    contrast: float = 0.0
    """The distance from the image's mean is multiplied by a factor drawn from 1 - contrast to 1 + contrast; below 1."""
    window: float = 0.0
    """Black and white points are each moved by a number drawn from -window to +window; below 0.5."""
    gamma: float = 0.0
    """The power's natural logarithm is drawn from -gamma to +gamma; 0 to 2."""
    blur: float = 0.0
    """Gaussian blur, its standard deviation in pixels drawn from 0 to blur; 0 to 10."""
    sharpen: float = 0.0
    """The difference to a blurred image is added, times a factor drawn from 0 to sharpen; 0 to 5."""
    coarse: float = 0.0
    """Sampled at a fraction of its side drawn from 1 - coarse to 1 and brought back; below 1."""
    noise: float = 0.0
    """Gaussian noise; its standard deviation, of values in 0-1, is drawn from 0 to noise; 0 to 1."""
    cutout: float = 0.0
    """The side of a black square is drawn from 0 to this fraction of the image's shorter side; below 1. It lies wholly inside."""
    plain: float = 0.0
    """Probability that an image only moves: sharpness and values stay as they are; 0 to 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, expected = getattr(self, field.name), _EXPECTED[field.name]
            most = _MOST[expected]
            if not (0 <= value <= most) or (expected in (FRACTION, BELOW_HALF) and value == most):
                raise ValueError(f"augmentation {field.name}: expected {expected}, found {value}")


_EXPECTED = {
    **dict.fromkeys(("flip_horizontal", "flip_vertical", "noise", "plain"), PROBABILITY),
    **dict.fromkeys(("zoom", "stretch", "shift", "contrast", "coarse", "cutout"), FRACTION),
    "rotate": DEGREES,
    "window": BELOW_HALF,
    "gamma": POWER,
    "blur": PIXELS,
    "sharpen": FACTOR,
}
_MOST = {PROBABILITY: 1.0, FRACTION: 1.0, DEGREES: 180.0, BELOW_HALF: 0.5, POWER: 2.0, PIXELS: 10.0, FACTOR: 5.0}


@dataclass(frozen=True)
class Drawn:
    """The parameters of n images, one row each."""

    flip: NDArray[np.bool_]  # (n, 2): whether the rows, the columns are in reverse order
    zoom: NDArray[np.float64]  # (n,): magnification
    stretch: NDArray[np.float64]  # (n,): height is multiplied by it, width divided
    shift: NDArray[np.float64]  # (n, 2): fraction of the rows (positive is down), of the columns (positive is right)
    angle: NDArray[np.float64]  # (n,): degrees, counter-clockwise as seen
    coarse: NDArray[np.float64]  # (n,): side it is sampled at, as a fraction
    blur: NDArray[np.float64]  # (n,): standard deviation in pixels
    sharpen: NDArray[np.float64]  # (n,): factor
    gamma: NDArray[np.float64]  # (n,): power
    window: NDArray[np.float64]  # (n, 2): how far the black, the white point is moved
    contrast: NDArray[np.float64]  # (n,): factor
    noise: NDArray[np.float64]  # (n,): standard deviation
    cutout: NDArray[np.float64]  # (n,): side as a fraction of the image's shorter side
    cutout_at: NDArray[np.float64]  # (n, 2): row and column of the square, 0 to 1 from one edge to the other

    def __len__(self) -> int:
        return len(self.zoom)

    @property
    def moved(self) -> NDArray[np.bool_]:
        """(n,): which images are resampled at all."""
        magnified = (self.zoom != 1) | (self.stretch != 1)
        return self.flip.any(axis=1) | magnified | (self.shift != 0).any(axis=1) | (self.angle != 0)


def draw(settings: Augmentations, numbers: NDArray[np.float64]) -> Drawn:
    """The parameters that `numbers` (n, DRAWS), uniform in [0, 1), mean under `settings`."""
    if numbers.ndim != 2 or numbers.shape[1] != DRAWS:
        raise ValueError(f"expected numbers of shape (n, {DRAWS}), found {numbers.shape}")
    spread = 2.0 * numbers - 1.0
    varied = (numbers[:, PLAIN] >= settings.plain).astype(np.float64)
    return Drawn(
        flip=numbers[:, [FLIP_ROWS, FLIP_COLUMNS]] < (settings.flip_vertical, settings.flip_horizontal),
        zoom=1.0 + settings.zoom * spread[:, ZOOM],
        shift=settings.shift * spread[:, [SHIFT_ROWS, SHIFT_COLUMNS]],
        angle=settings.rotate * spread[:, ANGLE],
        stretch=1.0 + settings.stretch * spread[:, STRETCH],
        coarse=1.0 - settings.coarse * varied * numbers[:, COARSE],
        blur=settings.blur * varied * numbers[:, BLUR],
        sharpen=settings.sharpen * varied * numbers[:, SHARPEN],
        gamma=np.exp(settings.gamma * varied * spread[:, GAMMA]),
        window=settings.window * varied[:, None] * spread[:, [BLACK, WHITE]],
        contrast=1.0 + settings.contrast * varied * spread[:, CONTRAST],
        noise=settings.noise * varied * numbers[:, NOISE],
        cutout=settings.cutout * varied * numbers[:, CUTOUT],
        cutout_at=numbers[:, [CUTOUT_ROW, CUTOUT_COLUMN]],
    )


def composed_affines(drawn: Drawn, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(n, 3, 3): from (row, column) of the result to (row, column) of the image, for images of `shape` (rows, columns)."""
    affines = centred_affines(drawn, shape)
    center = _center(shape)
    affines[:, :2, 2] += center - affines[:, :2, :2] @ center
    return affines


def centred_affines(drawn: Drawn, shape: tuple[int, int]) -> NDArray[np.float64]:
    """`composed_affines` with both origins in the image's centre, as MONAI's `Affine` takes them.

    Where nothing moves it is the identity to the last bit.
    """
    radians = np.deg2rad(drawn.angle)
    sine, cosine = np.sin(radians), np.cos(radians)
    # Seen from the result: shifted back, turned back, made smaller by the magnification, mirrored.
    turned_back = np.stack([np.stack([cosine, sine], axis=-1), np.stack([-sine, cosine], axis=-1)], axis=-2)
    mirror = np.where(drawn.flip, -1.0, 1.0)
    affines = np.tile(np.eye(3), (len(drawn), 1, 1))
    magnified = np.stack([drawn.zoom * drawn.stretch, drawn.zoom / drawn.stretch], axis=-1)
    affines[:, :2, :2] = (mirror / magnified)[:, :, None] * turned_back
    pixels = drawn.shift * np.asarray(shape, dtype=np.float64)
    affines[:, :2, 2] = -(affines[:, :2, :2] @ pixels[:, :, None])[:, :, 0]
    return affines


def cutout_bounds(drawn: Drawn, shape: tuple[int, int]) -> NDArray[np.int64]:
    """(n, 4): first row, end row, first column, end column of the black square, in whole pixels; the ends are not of it."""
    sides = np.rint(drawn.cutout * min(shape)).astype(np.int64)[:, None]
    starts = np.floor(drawn.cutout_at * (np.asarray(shape) - sides + 1)).astype(np.int64)
    return np.stack([starts, starts + sides], axis=-1).reshape(-1, 4)


def coarse_sides(drawn: Drawn, shape: tuple[int, int]) -> NDArray[np.int64]:
    """(n, 2): rows and columns that each image of `shape` is sampled at, one at least."""
    return np.maximum(1, np.rint(drawn.coarse[:, None] * shape)).astype(np.int64)


def _center(shape: tuple[int, int]) -> NDArray[np.float64]:
    return (np.asarray(shape, dtype=np.float64) - 1.0) / 2.0


def uniforms(seed: int, epoch: int, items: ArrayLike) -> NDArray[np.float64]:
    """(n, DRAWS) numbers, uniform in [0, 1): row i depends on (seed, epoch, items[i]) alone.

    Row i is numpy's `Generator(Philox(key=(seed, epoch), counter=(0, items[i], 0, 0))).random(DRAWS)`, bit for bit, but of all
    rows at once: one such generator a row takes 2 to 7 µs, and a table of a whole epoch 9 GB for 10**8 images.
    ValueError for a negative number.
    """
    rows = np.asarray(items)
    if rows.ndim != 1 or (rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0)):
        raise ValueError(f"expected a list of item numbers from 0, found {rows.dtype} of shape {rows.shape}")
    if min(seed, epoch) < 0:
        raise ValueError(f"expected a seed and an epoch from 0, found {seed} and {epoch}")
    blocks = -(-DRAWS // 4)
    even = np.zeros((2, blocks, len(rows)), dtype=np.uint64)  # words 0 and 2 of each counter
    odd = np.zeros_like(even)  # words 1 and 3
    even[0] = np.arange(1, blocks + 1, dtype=np.uint64)[:, None]  # numpy counts on before its first block
    odd[0] = rows.astype(np.uint64)
    words = np.stack(_philox(even, odd, (seed, epoch)), axis=1)  # (2, even or odd, blocks, n): words 0 and 1, 2 and 3
    ordered = words.transpose(3, 2, 0, 1).reshape(len(rows), 4 * blocks)
    return (ordered[:, :DRAWS] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def noise_seed(seed: int, epoch: int, items: ArrayLike) -> int:
    """The seed of a batch's noise, below 2**63: the same for the same items in the same order, and for them alone."""
    entropy = [seed, epoch, *np.asarray(items).tolist()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], dtype=np.uint64)[:, None, None]
PHILOX_KEY_STEPS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64)[:, None, None]
HALF, LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)

Words = NDArray[np.uint64]


def _philox(even: Words, odd: Words, key: tuple[int, int]) -> tuple[Words, Words]:
    """Philox4x64-10 (Salmon et al., SC11) of counters whose words 0 and 2 are `even` (2, ...), 1 and 3 `odd`; so the result's."""
    keys = np.array(key, dtype=np.uint64)[:, None, None]
    for _ in range(PHILOX_ROUNDS):
        high, low = _product(PHILOX_MULTIPLIERS, even)
        even, odd = high[::-1] ^ odd ^ keys, low[::-1]
        keys = keys + PHILOX_KEY_STEPS
    return even, odd


def _product(a: Words, b: Words) -> tuple[Words, Words]:
    """The upper and lower 64 bits of a product of two 64-bit numbers, by halves: no sum below exceeds 64 bits."""
    a_high, a_low, b_high, b_low = a >> HALF, a & LOW_HALF, b >> HALF, b & LOW_HALF
    first = a_high * b_low + ((a_low * b_low) >> HALF)
    second = a_low * b_high + (first & LOW_HALF)
    return a_high * b_high + (first >> HALF) + (second >> HALF), a * b
