"""The drawn chest: where each organ of a phantom lies, and what it measures in Hounsfield units. Arrays only, no DICOM.

Coordinates are millimetres in the patient's LPS axes: x to the left, y to the back, z to the head; (0, 0, 0) is the
middle of the chest at the level of the pulmonary arteries. Distances are negative inside a shape, approximate away from
its border.
`x` is (1, columns) and `y` (rows, 1) for pictures; any shapes that broadcast do for distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""float32 wherever it counts: pictures, and the axes they are drawn on."""

AIR_HU = -1000.0
FAT_HU = -105.0
MUSCLE_HU = 52.0
SOFT_HU = 38.0
BONE_RIM_HU = 780.0
MARROW_HU = 210.0
CARTILAGE_HU = 115.0
CARINA_Z = 32.0  # mm: the trachea divides here
VERTEBRA_STEP_MM = 25.0
LOWEST_Z, HIGHEST_Z = -76.0, 62.0  # mm: from the lower heart, still above the liver, to the aortic arch


@dataclass(frozen=True)
class Body:
    """What varies from one phantom to the next. Lengths in mm; half sizes at the level of the heart."""

    half_width: float
    half_depth: float
    fat: float
    breast: float
    cavity_width: float
    cavity_depth: float
    heart_size: float
    heart_turn: float
    """Angle of the heart's long axis, in radians, from the patient's left towards the front."""
    aorta_x: float
    rib_phase: float
    rib_step: float
    diaphragm_z: float
    lung_hu: float
    blood_hu: float
    waves: tuple[tuple[float, float, float], ...]
    """(mm per radian, phase in x, phase in y) of the waves that make contours irregular."""

    @property
    def spine_y(self) -> float:
        """Centre of the vertebral bodies."""
        return self.cavity_depth - 22.0


def draw_body(rng: np.random.Generator, *, female: bool, contrast: bool) -> Body:
    """A plausible adult. `contrast`: the blood is enhanced."""
    size = rng.uniform(0.9, 1.08)
    fat = rng.uniform(7.0, 24.0)
    cavity_width = 131.0 * size * rng.uniform(0.96, 1.05)
    cavity_depth = 80.0 * size * rng.uniform(0.93, 1.1)
    return Body(
        half_width=cavity_width + 24.0 + fat,
        half_depth=cavity_depth + 25.0 + 0.6 * fat,
        fat=fat,
        breast=rng.uniform(8.0, 20.0) if female else rng.uniform(0.0, 5.0),
        cavity_width=cavity_width,
        cavity_depth=cavity_depth,
        heart_size=rng.uniform(0.86, 1.08) * size,
        heart_turn=rng.uniform(0.45, 0.8),
        aorta_x=rng.uniform(19.0, 27.0),
        rib_phase=rng.uniform(0.0, 1.0),
        rib_step=rng.uniform(27.0, 32.0),
        diaphragm_z=rng.uniform(-112.0, -98.0),
        lung_hu=rng.uniform(-880.0, -835.0),
        blood_hu=rng.uniform(150.0, 230.0) if contrast else rng.uniform(36.0, 48.0),
        waves=tuple((rng.uniform(9.0, 30.0), rng.uniform(0, 6.3), rng.uniform(0, 6.3)) for _ in range(4)),
    )


def superellipse(u: Floats, v: Floats, radius_mm: float) -> Floats:
    """Distance to |u|^2.5 + |v|^2.5 = 1, about exact at the border; `radius_mm` scales it."""
    power = u * u * np.sqrt(np.abs(u)) + v * v * np.sqrt(np.abs(v))
    return (power - 1.0) * np.float32(radius_mm / 2.5)


def ellipse(x: Floats, y: Floats, centre: tuple[float, float], radii: tuple[float, float]) -> Floats:
    """Distance to an upright ellipse."""
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    return (np.sqrt(u * u + v * v) - 1.0) * np.float32(min(radii))


def capsule(x: Floats, y: Floats, start: tuple[float, float], end: tuple[float, float], radius: float) -> Floats:
    """Distance to a thick line with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-6), 0.0, 1.0)
    return np.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - np.float32(radius)


def smooth_max(a: Floats, b: Floats, rounding_mm: float) -> Floats:
    """max(a, b) whose corner is rounded."""
    h = np.maximum(rounding_mm - np.abs(a - b), 0.0)
    return np.maximum(a, b) + h * h / np.float32(4.0 * rounding_mm)


def smooth_min(a: Floats, b: Floats, rounding_mm: float) -> Floats:
    """min(a, b) whose corner is rounded."""
    return -smooth_max(-a, -b, rounding_mm)


def ripple(body: Body, x: Floats, y: Floats, z: Floats | float) -> Floats:
    """An irregular field of standard deviation about 1."""
    total: Floats = np.float32(0.0) * (x + y)
    for length, phase_x, phase_y in body.waves:
        total = total + np.sin(x / length + phase_x + z / 37.0) * np.sin(y / length + phase_y - z / 43.0)
    return total


def cavity_distance(body: Body, x: Floats, y: Floats, z: Floats | float) -> Floats:
    """To the inside of the rib cage: widest at its base, closed at the apex."""
    rise = np.clip((np.asarray(z, np.float32) - 10.0) / 128.0, 0.0, 0.995)
    shrink = np.sqrt(1.0 - rise * rise * rise)
    flare = 1.0 - 0.0006 * (np.asarray(z, np.float32) + 40.0)
    u = x / (body.cavity_width * shrink * flare)
    v = (y - 3.0) / (body.cavity_depth * (0.35 + 0.65 * shrink) * flare)
    return superellipse(u, v, 0.8 * (body.cavity_width + body.cavity_depth) / 2) + 0.7 * ripple(body, x, y, z)


def heart_distance(body: Body, x: Floats, y: Floats, z: Floats | float) -> Floats:
    """To the heart: an ellipsoid whose long axis points to the left and the front."""
    c, s = np.cos(body.heart_turn), np.sin(body.heart_turn)
    dx, dy = x - 17.0, y + 20.0
    long_axis, short_axis = dx * c - dy * s, dx * s + dy * c
    level = (np.asarray(z, np.float32) + 52.0) / 66.0
    u, v = long_axis / (66.0 * body.heart_size), short_axis / (47.0 * body.heart_size)
    return (np.sqrt(u * u + v * v + level * level) - 1.0) * np.float32(47.0)


def mediastinum_distance(body: Body, x: Floats, y: Floats, z: Floats | float) -> Floats:
    """To everything between the lungs: heart, great vessels, descending aorta, spine and the fat around them."""
    z = np.asarray(z, np.float32)
    forward = np.clip((z - 40.0) / 60.0, 0.0, 1.0)
    width = 5.0 + (23.0 + 6.0 * forward) * np.exp(-(((y - 8.0) / 36.0) ** 2))
    band = np.abs(x - 1.0) - width
    fade = np.clip((np.abs(z - 28.0) - 34.0) / 20.0, 0.0, 1.0)  # great vessels, from the aortic root to above the arch
    vessels = ellipse(x, y, (3.0, -16.0), (37.0, 29.0)) + 26.0 * fade
    arch = ellipse(x, y, (16.0, 8.0), (25.0, 34.0)) + 1.2 * np.maximum(np.abs(z - 56.0) - 7.0, 0.0)
    aorta = ellipse(x, y, (body.aorta_x, body.spine_y - 22.0), (14.5, 14.5)) + np.maximum(z - 58.0, 0.0)
    spine = capsule(x, y, (0.0, body.spine_y), (0.0, body.spine_y + 60.0), 22.0)
    soft = smooth_min(smooth_min(vessels, arch, 6.0), heart_distance(body, x, y, z) - 3.0, 8.0)
    return smooth_min(smooth_min(band, soft, 14.0), smooth_min(aorta, spine, 4.0), 5.0)


def diaphragm_distance(body: Body, x: Floats, y: Floats, z: Floats | float) -> Floats:
    """To what lies under the two domes of the diaphragm; the right one is higher."""
    right = body.diaphragm_z - ((x + 58.0) ** 2) / 110.0 - ((y + 8.0) ** 2) / 95.0
    left = body.diaphragm_z - 12.0 - ((x - 62.0) ** 2) / 110.0 - ((y + 8.0) ** 2) / 95.0
    return np.asarray(z, np.float32) - np.maximum(right, left)


def lung_distance(body: Body, x: Floats, y: Floats, z: Floats | float) -> Floats:
    """To both lungs: the cavity without mediastinum and what the diaphragm covers."""
    inside = smooth_max(cavity_distance(body, x, y, z) + 1.5, -mediastinum_distance(body, x, y, z), 9.0)
    return smooth_max(inside, -diaphragm_distance(body, x, y, z), 4.0)


class Canvas:
    """A picture in HU that tissues are blended into. `soft_mm`: half the width of an edge."""

    def __init__(self, x: Floats, y: Floats, soft_mm: float) -> None:
        self.x, self.y, self.soft_mm = x, y, np.float32(soft_mm)
        self.hu: Floats = np.full((y.shape[0], x.shape[1]), AIR_HU, np.float32)

    def weight(self, distance: Floats) -> Floats:
        """0 outside to 1 inside, linear across the edge."""
        return np.clip(0.5 - distance / (2 * self.soft_mm), 0.0, 1.0)

    def blend(self, distance: Floats, hu: float | Floats) -> None:
        """Paint the inside of a shape."""
        self.hu += self.weight(distance) * (hu - self.hu)

    def window(self, left: float, right: float, front: float, back: float) -> tuple[Canvas, bool]:
        """The part of the canvas within a box, as a view; False where it holds no pixel."""
        columns = slice(*np.searchsorted(self.x[0], (left, right)))
        rows = slice(*np.searchsorted(self.y[:, 0], (front, back)))
        part = object.__new__(Canvas)
        part.x, part.y, part.soft_mm = self.x[:, columns], self.y[rows], self.soft_mm
        part.hu = self.hu[rows, columns]
        return part, part.hu.size > 0

    def line(self, start: tuple[float, float], end: tuple[float, float], radius: float, hu: float) -> None:
        """Paint a thick line (a disc where start equals end)."""
        reach = radius + 2 * float(self.soft_mm)
        (left, right), (front, back) = sorted((start[0], end[0])), sorted((start[1], end[1]))
        part, any_pixel = self.window(left - reach, right + reach, front - reach, back + reach)
        if any_pixel:
            # A line thinner than a pixel fills only part of it.
            share = np.float32(min(1.0, radius / float(self.soft_mm)))
            part.hu += share * part.weight(capsule(part.x, part.y, start, end, radius)) * (hu - part.hu)

    def bone(self, start: tuple[float, float], end: tuple[float, float], radius: float) -> None:
        """Paint a thick line of bone: a dense rim around marrow."""
        self.line(start, end, radius, BONE_RIM_HU)
        if radius > 2.5:
            self.line(start, end, radius - 1.9, MARROW_HU)


def draw_trunk(canvas: Canvas, body: Body, z: float) -> None:
    """Skin, fat, muscle, rib cage, shoulder blades, what lies between the lungs, spine. The lungs stay to be drawn."""
    waves = ripple(body, canvas.x, canvas.y, z)
    _draw_outline(canvas, body, waves, z)
    cavity = cavity_distance(body, canvas.x, canvas.y, z)
    canvas.blend(np.abs(cavity - 14.5 - 2.0 * waves) - 1.6, FAT_HU + 15.0)  # between the layers of the chest wall
    _draw_shoulder_blades(canvas, body, z)
    _draw_ribs(canvas, body, cavity, z)
    canvas.blend(cavity + 0.5, FAT_HU + 15.0)
    canvas.blend(np.maximum(cavity + 2.0, diaphragm_distance(body, canvas.x, canvas.y, z)), SOFT_HU + 18.0)
    _draw_between_lungs(canvas, body, z)
    _draw_spine(canvas, body, z)


def _draw_outline(canvas: Canvas, body: Body, waves: Floats, z: float) -> None:
    """Skin, fat under it, and the muscle of the chest wall as one mass; shoulders and neck at the top."""
    x, y = canvas.x, canvas.y
    neck = float(np.clip((z - 128.0) / 35.0, 0.0, 1.0))
    rise = float(np.clip((z - 50.0) / 75.0, 0.0, 1.0))
    width = body.half_width * (1.0 + 0.22 * rise * rise * (3.0 - 2.0 * rise) - 0.6 * neck**2)
    flatter, radius = 1.0 - 0.25 * neck, 0.4 * (body.half_width + body.half_depth)
    sides = np.exp(-(((np.abs(x) - 72.0) / 34.0) ** 2))
    breast = body.breast * float(np.exp(-(((z + 30.0) / 45.0) ** 2)))
    front = body.half_depth + (2.0 + breast) * sides - 3.0 * np.exp(-((x / 16.0) ** 2))
    back = body.half_depth + 3.0 * sides - 5.0 * np.exp(-((x / 14.0) ** 2))
    skin = superellipse(x / width, y / (np.where(y < 0, front, back) * flatter), radius)
    canvas.blend(skin, MUSCLE_HU - 35.0)
    canvas.blend(skin + 2.2, FAT_HU)
    depth = np.where(y < 0, body.half_depth - 0.5 * body.fat - 2.0, body.half_depth - 0.45 * body.fat) * flatter
    muscle = superellipse(x / (width - body.fat), y / depth, radius) + 1.6 * waves
    canvas.blend(muscle, MUSCLE_HU + 5.0 * waves)


def _draw_ribs(canvas: Canvas, body: Body, cavity: Floats, z: float) -> None:
    """Ribs run obliquely down to the front, so a slice cuts several of them; cartilage and sternum close the front."""
    fall = np.clip((body.cavity_depth - canvas.y) / (2 * body.cavity_depth), 0.0, 1.0)  # 0 at the back, 1 at the front
    place = (z + 82.0 * fall) / body.rib_step + body.rib_phase
    height = (place - np.rint(place)) * np.float32(body.rib_step)
    distance = np.hypot(0.75 * height, 1.55 * (cavity - 5.5)) - 5.6
    cartilage = np.clip((fall - 0.86) / 0.04, 0.0, 1.0)
    canvas.blend(distance, BONE_RIM_HU + cartilage * (CARTILAGE_HU - BONE_RIM_HU))
    canvas.blend(distance + 2.4, MARROW_HU + cartilage * (CARTILAGE_HU - MARROW_HU))
    if z < 75.0:
        sternum_y = -body.cavity_depth - 6.0 + 0.06 * max(z, 0.0)
        canvas.bone((-15.0, sternum_y), (15.0, sternum_y), 6.0)


def _draw_shoulder_blades(canvas: Canvas, body: Body, z: float) -> None:
    if z < -35.0:
        return
    out, back = body.cavity_width + 4.0, body.cavity_depth
    for side in (-1.0, 1.0):
        start, end = (side * (out - 52.0), back + 11.0), (side * (out + 3.0), back - 38.0)
        canvas.line(start, end, 12.0, MUSCLE_HU)
        canvas.bone(start, end, 2.4)
        if z > 10.0:
            canvas.bone(end, (end[0] - side * 4.0, end[1] - 6.0), 5.0)


def _draw_between_lungs(canvas: Canvas, body: Body, z: float) -> None:
    """Heart, great vessels and gullet, in the mediastinal fat."""
    blood, spine_y = body.blood_hu, body.spine_y
    heart = heart_distance(body, canvas.x, canvas.y, z)
    canvas.blend(heart, SOFT_HU + 0.3 * (blood - SOFT_HU))
    canvas.blend(heart + 9.0 + 2.0 * ripple(body, canvas.x, canvas.y, z), blood)
    if z < 58.0:
        canvas.line((body.aorta_x, spine_y - 22.0), (body.aorta_x, spine_y - 22.0), 12.5, blood)
    if 42.0 <= z <= 68.0:  # the arch crosses to the left and back
        canvas.line((-9.0, -24.0), (body.aorta_x - 3.0, 20.0), 12.0, blood)
    elif -8.0 < z < 42.0:
        canvas.line((-14.0, -22.0), (-14.0, -22.0), 15.0, blood)
    if 0.0 < z < 28.0:  # pulmonary trunk and its branches
        canvas.line((19.0, -26.0), (13.0, -14.0), 13.0, blood)
        canvas.line((13.0, -12.0), (-32.0, 2.0), 8.5, blood)
        canvas.line((13.0, -12.0), (36.0, 8.0), 8.5, blood)
    if z > -10.0:
        canvas.line((-27.0, -9.0), (-27.0, -9.0), 8.5, blood)  # superior vena cava
    if z > 68.0:
        for place in ((-14.0, -14.0), (2.0, -12.0), (15.0, -2.0)):
            canvas.line(place, place, 5.0, blood)
    canvas.line((4.0, spine_y - 24.0), (9.0, spine_y - 24.0), 5.0, SOFT_HU)


def draw_airways(canvas: Canvas, z: float) -> None:
    """The trachea, and the main bronchi as far as the hila; drawn over the lungs that they enter."""
    below = CARINA_Z - z
    if below < 0:
        airways, radius = [(-1.0, 12.0)], 8.5
    elif below < 40.0:
        airways, radius = [(-5.0 - 0.75 * below, 14.0), (5.0 + 0.85 * below, 16.0)], 6.3 - 0.04 * below
    else:
        return
    for place in airways:
        canvas.line(place, place, radius + 1.6, SOFT_HU)
        canvas.line(place, place, radius, AIR_HU)


def _draw_spine(canvas: Canvas, body: Body, z: float) -> None:
    """Vertebral body or disc, canal with cord, arch, transverse and spinous processes."""
    centre, x, y = body.spine_y, canvas.x, canvas.y
    level = z / VERTEBRA_STEP_MM + body.rib_phase
    disc = abs(level - round(level)) < 0.11
    part, any_pixel = canvas.window(-60.0, 60.0, centre - 30.0, centre + 80.0)
    if not any_pixel:
        return
    x, y = part.x, part.y
    phase = level - np.floor(level)
    if phase < 0.45:
        for side in (-1.0, 1.0):
            part.bone((side * 10.0, centre + 15.0), (side * 33.0, centre + 29.0), 4.4)
    if phase > 0.3:  # the spinous process slants: lower slices meet its tip
        part.bone((0.0, centre + 34.0 + 10.0 * phase), (0.0, centre + 40.0 + 14.0 * phase), 3.4)
    part.blend(ellipse(x, y, (0.0, centre + 22.0), (15.5, 14.5)), BONE_RIM_HU - 200.0)
    shape = ellipse(x, y, (0.0, centre), (18.5, 15.5))
    part.blend(shape, BONE_RIM_HU - 120.0 if not disc else 95.0)
    part.blend(shape + 1.8, MARROW_HU + 25.0 * ripple(body, 2.5 * x, 2.5 * y, z) if not disc else 80.0)
    part.blend(ellipse(x, y, (0.0, centre + 22.0), (10.0, 8.6)), 5.0)
    part.blend(ellipse(x, y, (0.0, centre + 22.0), (5.0, 4.0)), 38.0)


def draw_table(canvas: Canvas, top_y: float, *, curved: bool) -> None:
    """The scanner's couch below the back: a thin shell around foam; `curved` is the cradle of one manufacturer."""
    x, y = canvas.x, canvas.y
    rise = (x / 215.0) ** 2 * 42.0 if curved else np.maximum(np.abs(x) - 150.0, 0.0) * 0.9
    surface = y - (top_y - rise)
    inside = np.maximum(np.abs(surface - 15.0) - 14.0, np.abs(x) - 212.0)
    canvas.blend(np.maximum(np.abs(surface + 5.0) - 4.0, np.abs(x) - 175.0), -955.0)  # mattress
    canvas.blend(inside, 85.0)
    canvas.blend(inside + 2.0, -930.0)
