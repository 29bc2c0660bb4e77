"""Inside the drawn lungs: vessel trees, fine texture, ground-glass opacities; and the pictures of the whole chest.

`Chest` is all that is drawn of one phantom. Pictures of it: axial slices in HU, a frontal projection in cm of water.
Axes and units as in `pipeline.dicom.anatomy`; pictures are (rows, columns) float32, the patient's right at the left edge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from pipeline.dicom.anatomy import (
    AIR_HU,
    HIGHEST_Z,
    LOWEST_Z,
    Body,
    Canvas,
    Floats,
    draw_airways,
    draw_body,
    draw_table,
    draw_trunk,
    lung_distance,
    ripple,
)

VESSEL_TIPS = 800  # a lung: what a thin slice of a real lung shows at first glance
TIP_RADIUS_MM = 0.5
MURRAY_EXPONENT = 2.7  # r^e of a vessel is the sum of its branches' r^e (Murray's law: 3; measured in lungs: 2.3 to 3)
BENDS = 3
BONE_EXCESS = 0.9
"""Attenuation of bone beyond what its HU say, at a radiograph's softer beam, relative to water."""
TEXTURE_MM = 0.8  # size of a texture's pixel
TEXTURE_SIZE = 640
EDGE = 0.35
"""An opacity fades over this part of its radius."""
FAINT_SECTION = 0.5
"""Relative radius of a section below which an opacity is so faint that the slice does not count as crossing it."""
FULL_SECTION = 0.75
"""Relative radius of a section from which an opacity shows its full density."""
SMALLEST_RADIUS, LARGEST_RADIUS = 0.065, 0.1
"""Of an opacity, as a share of the image's width."""
ADDED_HU = (320.0, 430.0)
"""Of an opacity over the lung: ground glass that a small network learns from 26 patients (at 250 to 400 it took much longer)."""


@dataclass(frozen=True)
class Opacity:
    """Ground glass: an ellipsoid with an irregular, soft edge that adds `added_hu` to the air-filled lung."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    added_hu: float

    def section(self, z: float) -> float:
        """Radius of its ellipse at level z, relative to its largest; 0 where the level does not cross it."""
        return float(np.sqrt(max(0.0, 1.0 - ((z - self.centre[2]) / self.radii[2]) ** 2)))


@dataclass(frozen=True)
class Ellipse:
    """Where an opacity lies in one picture, in pixels (0 is the centre of the first)."""

    row: float
    column: float
    radius_rows: float
    radius_columns: float


@dataclass(frozen=True)
class Grid:
    """Pixels of an axial slice: (0, 0) at `left_mm`, `front_mm`, square."""

    size: int
    spacing_mm: float
    left_mm: float
    front_mm: float

    @property
    def x(self) -> Floats:
        return (self.left_mm + self.spacing_mm * np.arange(self.size, dtype=np.float32))[None, :]

    @property
    def y(self) -> Floats:
        return (self.front_mm + self.spacing_mm * np.arange(self.size, dtype=np.float32))[:, None]

    @property
    def radius_from_centre(self) -> Floats:
        """(rows, columns): distance to the middle, 1 at the nearest edge."""
        line = (np.arange(self.size, dtype=np.float32) + 0.5) / (self.size / 2) - 1.0
        return np.hypot(line[None, :], line[:, None])


@dataclass(frozen=True)
class Chest:
    """One phantom. Textures are (640, 640), of deviation 1.

    `vessels` (segments, 7): start x, y, z, end x, y, z and radius in mm; a bent branch is several segments.
    """

    body: Body
    vessels: Floats
    fine: Floats
    coarse: Floats
    curved_table: bool
    opacities: tuple[Opacity, ...] = ()


def draw_chest(rng: np.random.Generator, *, female: bool, contrast: bool, curved_table: bool) -> Chest:
    """A healthy chest."""
    body = draw_body(rng, female=female, contrast=contrast)
    vessels = np.concatenate([_vessel_tree(rng, body, side) for side in (-1.0, 1.0)])
    white = rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE), dtype=np.float32)
    fine = _unit(ndimage.gaussian_filter(white, 1.1, mode="wrap"))
    coarse = _unit(
        ndimage.gaussian_filter(white, 7.0, mode="wrap") * 6.0 + ndimage.gaussian_filter(white, 3.0, mode="wrap")
    )
    return Chest(body, vessels, fine, coarse, curved_table)


def slice_levels(slices: int) -> list[float]:
    """z of each slice, from the lowest up, over the part of the chest that is all lung."""
    return [float(z) for z in np.linspace(LOWEST_Z, HIGHEST_Z, slices + 2)[1:-1]]


def add_opacities(rng: np.random.Generator, chest: Chest, levels: list[float], width_mm: float) -> Chest:
    """Ground glass such that each level crosses at least one opacity in full; `width_mm` is that of the image."""
    placed: list[Opacity] = []
    for z in (levels[i] for i in rng.permutation(len(levels))):
        missing = not any(opacity.section(z) >= FULL_SECTION for opacity in placed)
        if missing or rng.uniform() < 0.3:
            placed.append(_place_opacity(rng, chest.body, z, width_mm))
    return replace(chest, opacities=tuple(placed))


def grown(chest: Chest, factor: float) -> Chest:
    """The same chest, its opacities larger in the plane of the slices."""
    opacities = tuple(replace(o, radii=(o.radii[0] * factor, o.radii[1] * factor, o.radii[2])) for o in chest.opacities)
    return replace(chest, opacities=opacities)


def ellipses(chest: Chest, grid: Grid, z: float) -> list[Ellipse]:
    """The opacities that a slice crosses."""
    found = []
    for opacity in chest.opacities:
        section = opacity.section(z)
        if section >= FAINT_SECTION:
            row = (opacity.centre[1] - grid.front_mm) / grid.spacing_mm
            column = (opacity.centre[0] - grid.left_mm) / grid.spacing_mm
            radius_columns, radius_rows = (section * radius / grid.spacing_mm for radius in opacity.radii[:2])
            found.append(Ellipse(row, column, radius_rows, radius_columns))
    return found


def axial_slice(chest: Chest, grid: Grid, z: float) -> Floats:
    """HU without noise."""
    canvas = Canvas(grid.x, grid.y, max(0.6, 0.55 * grid.spacing_mm))
    draw_trunk(canvas, chest.body, z)
    draw_table(canvas, chest.body.half_depth + 12.0, curved=chest.curved_table)
    lung = lung_distance(chest.body, canvas.x, canvas.y, z)
    canvas.blend(lung, _parenchyma(chest, canvas.x, canvas.y, z))
    _draw_vessels(canvas, chest, z, lung)
    draw_airways(canvas, z)
    return canvas.hu


def _parenchyma(chest: Chest, x: Floats, y: Floats, z: float) -> Floats:
    """Air-filled lung: denser to the back where the patient lies, fissures, texture, and the ground glass in it."""
    fine, coarse = _sampled(chest.fine, x, y, z), _sampled(chest.coarse, x, y, z)
    hu = chest.body.lung_hu + 0.35 * (y + 40.0) + 16.0 * fine + 13.0 * coarse
    slope = np.where(x < 0, 0.62, 0.55)
    fissure = np.abs((y - 6.0) * 0.8 + slope * (z + 18.0) - 0.0016 * (np.abs(x) - 60.0) ** 2)
    hu += 45.0 * np.clip(fine - 1.7, 0.0, 3.0)  # vessels too small to be drawn one by one
    hu += 110.0 * np.clip(1.3 - fissure, 0.0, 1.0)
    for opacity in chest.opacities:
        if opacity.section(z) >= FAINT_SECTION:
            (cx, cy, cz), (rx, ry, rz) = opacity.centre, opacity.radii
            u, v, w = (x - cx) / rx, (y - cy) / ry, (z - cz) / rz
            rho = np.sqrt(u * u + v * v + w * w) + 0.14 * coarse + 0.06 * ripple(chest.body, 2.3 * x, 2.3 * y, 3.0 * z)
            cover = np.clip((1.0 - rho) / EDGE, 0.0, 1.0)
            cover *= cover * (3.0 - 2.0 * cover)
            hu += cover * (opacity.added_hu + 26.0 * fine + 34.0 * coarse)
    return np.minimum(hu, -120.0)


def _sampled(texture: Floats, x: Floats, y: Floats, z: float) -> Floats:
    """A texture at the places of a picture; another part of it for each level."""
    shift = round(abs(z) * 37.0) + (211 if z < 0 else 0)
    columns = (np.rint(x[0] / TEXTURE_MM).astype(np.int64) + shift) % TEXTURE_SIZE
    rows = (np.rint(y[:, 0] / TEXTURE_MM).astype(np.int64) + 3 * shift) % TEXTURE_SIZE
    return texture[np.ix_(rows, columns)]


def _unit(field: Floats) -> Floats:
    return (field / field.std()).astype(np.float32)


def _draw_vessels(canvas: Canvas, chest: Chest, z: float, lung: Floats) -> None:
    """The vessels that a slice of about 2 mm crosses, within the lungs."""
    blood = chest.body.blood_hu
    before = canvas.hu.copy()
    slab = 0.8
    start, end, radius = chest.vessels[:, :3], chest.vessels[:, 3:6], chest.vessels[:, 6]
    low, high = np.minimum(start[:, 2], end[:, 2]), np.maximum(start[:, 2], end[:, 2])
    for i in np.flatnonzero((low - radius - slab < z) & (high + radius + slab > z)):
        rise = end[i, 2] - start[i, 2]
        reach = radius[i] + slab
        # The part of the segment within the slab, as a line in the plane.
        a, b = (
            start[i] + share * (end[i] - start[i])
            for share in _within(z - reach - start[i, 2], z + reach - start[i, 2], rise)
        )
        canvas.line((float(a[0]), float(a[1])), (float(b[0]), float(b[1])), float(radius[i]), blood)
    canvas.hu += canvas.weight(-lung) * (before - canvas.hu)  # none outside the lungs


def _within(low: float, high: float, rise: float) -> tuple[float, float]:
    """At which shares of its length a line that rises from 0 to `rise` enters and leaves the levels `low` to `high`."""
    if abs(rise) < 1e-3:
        return 0.0, 1.0
    first, second = low / rise, high / rise
    return min(max(min(first, second), 0.0), 1.0), min(max(max(first, second), 0.0), 1.0)


def _vessel_tree(rng: np.random.Generator, body: Body, side: float) -> Floats:
    """(segments, 7) of one lung: from the hilum to tips scattered through it, each joined where it costs least."""
    points = rng.uniform((8.0, -95.0, -135.0), (150.0, 105.0, 125.0), (VESSEL_TIPS * 14, 3)).astype(np.float32)
    points[:, 0] *= side
    depth = lung_distance(body, points[:, 0], points[:, 1], points[:, 2])
    tips = points[depth < -2.5][:VESSEL_TIPS]
    hilum = np.array([side * 30.0, 4.0, 8.0], np.float32)
    tips = tips[np.argsort(np.linalg.norm(tips - hilum, axis=1))]
    nodes = np.concatenate([hilum[None], tips])
    parent = np.full(len(nodes), -1)
    path = np.zeros(len(nodes), np.float32)
    for i in range(1, len(nodes)):
        step = np.linalg.norm(nodes[:i] - nodes[i], axis=1)
        parent[i] = int(np.argmin(step**1.35 + 0.45 * path[:i]))
        path[i] = path[parent[i]] + step[parent[i]]
    flow = np.full(len(nodes), TIP_RADIUS_MM**MURRAY_EXPONENT, np.float32)
    for i in range(len(nodes) - 1, 0, -1):  # children come after their parent: they are farther from the hilum
        flow[parent[i]] += flow[i]
    radius = np.minimum(flow ** (1.0 / MURRAY_EXPONENT), 6.0)
    return _bent(rng, nodes[parent[1:]], nodes[1:], np.minimum(radius[parent[1:]], 1.25 * radius[1:]), radius[1:])


def _bent(rng: np.random.Generator, start: Floats, end: Floats, start_radius: Floats, end_radius: Floats) -> Floats:
    """(segments, 7): each branch as BENDS segments along a bow, tapering from its parent's radius to its own."""
    length = np.linalg.norm(end - start, axis=1, keepdims=True)
    bow = 0.22 * length * rng.uniform(-1.0, 1.0, start.shape)
    share = np.linspace(0.0, 1.0, BENDS + 1)[:, None, None]
    points = start + share * (end - start) + 4.0 * share * (1.0 - share) * bow
    middle = (share[:-1] + share[1:])[:, :, 0] / 2
    radius = start_radius + middle * (end_radius - start_radius)
    pieces = np.concatenate([points[:-1], points[1:], radius[:, :, None]], axis=2)
    return pieces.reshape(-1, 7).astype(np.float32)


def _place_opacity(rng: np.random.Generator, body: Body, z: float, width_mm: float) -> Opacity:
    """An opacity at level z, most of it within the lung, rather near the pleura, as ground glass often lies."""
    radius = rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS) * width_mm
    stretch = rng.uniform(0.85, 1.18)
    radii = (radius / stretch, radius * stretch, rng.uniform(15.0, 26.0))
    radii = (max(radii[0], SMALLEST_RADIUS * width_mm), max(radii[1], SMALLEST_RADIUS * width_mm), radii[2])
    x, y = (rng.uniform(-bound, bound, 400).astype(np.float32) for bound in (body.cavity_width, body.cavity_depth))
    depth = -lung_distance(body, x, y, z) / radius
    fitting = np.flatnonzero((depth > 0.55) & (depth < 1.15))
    best = int(fitting[0]) if fitting.size else int(np.argmax(depth))
    return Opacity((float(x[best]), float(y[best]), z + rng.uniform(-3.0, 3.0)), radii, rng.uniform(*ADDED_HU))


def frontal_projection(
    chest: Chest, *, columns: int, rows: int, depth: int, width_mm: float, top_z: float, bottom_z: float
) -> Floats:
    """(rows, columns) cm of water along parallel rays from back to front, head at the top: a radiograph or a scout."""
    x = np.linspace(-width_mm / 2, width_mm / 2, columns, dtype=np.float32)[None, :]
    reach = chest.body.half_depth + 30.0
    y, step = np.linspace(-reach, reach, depth, dtype=np.float32, retstep=True)
    levels = np.linspace(top_z, bottom_z, rows)
    picture = np.empty((rows, columns), np.float32)
    soft = max(1.0, 0.55 * width_mm / columns, 0.55 * float(step))
    for row, z in enumerate(levels):
        canvas = Canvas(x, y[:, None], soft)
        draw_trunk(canvas, chest.body, float(z))
        lung = lung_distance(chest.body, x, y[:, None], float(z))
        canvas.blend(lung, _parenchyma(chest, x, y[:, None], float(z)))
        relative = (canvas.hu - AIR_HU) + BONE_EXCESS * np.maximum(canvas.hu - 150.0, 0.0)
        picture[row] = relative.sum(axis=0) * np.float32(float(step) / 10.0 / 1000.0)
    return np.maximum(picture, 0.0)


def add_lung_markings(picture: Floats, chest: Chest, *, width_mm: float, top_z: float, bottom_z: float) -> Floats:
    """A projection with what its coarse steps cannot hold: the vessels of the lungs, and the collar bones."""
    rows, columns = picture.shape
    x = np.linspace(-width_mm / 2, width_mm / 2, columns, dtype=np.float32)[None, :]
    v = np.linspace(-top_z, -bottom_z, rows, dtype=np.float32)[:, None]  # down the picture
    added = Canvas(x, v, 0.7 * width_mm / columns)
    added.hu[:] = 0.0
    for segment in chest.vessels:
        thickness_cm = 0.3 * float(
            segment[6]
        )  # twice the mean chord of a cylinder of blood: a lung has veins beside its arteries
        start, end = (float(segment[0]), float(-segment[2])), (float(segment[3]), float(-segment[5]))
        added.line(start, end, float(segment[6]), thickness_cm)
    reach = chest.body.cavity_width
    for side in (-1.0, 1.0):
        added.line((side * 20.0, -92.0), (side * 0.55 * reach, -104.0), 5.0, 1.1)
        added.line((side * 0.55 * reach, -104.0), (side * 1.15 * reach, -122.0), 5.0, 1.1)
    return picture + added.hu
