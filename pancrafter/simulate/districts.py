"""Districts of a simulated scene, each drawn into a rectangle: fields, housing, works, forest and the like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pancrafter.simulate.spectra import VARIANTS, Material
from pancrafter.simulate.surface import Canvas, Frame, Rect, curve, partition

_M = Material
_LEAST_CROWN_PX = 0.6
_CROPS = (_M.CROP_GREEN, _M.CROP_YOUNG, _M.CROP_RIPE, _M.RAPESEED, _M.SOIL_BROWN, _M.SOIL_DARK, _M.SOIL_RED,
          _M.DRY_GRASS, _M.GRASS, _M.SOIL_PALE, _M.PLASTIC_SHEET)  # fmt: skip
_HOUSE_ROOFS = (_M.ROOF_RED, _M.ROOF_RED, _M.ROOF_BROWN, _M.ROOF_SLATE, _M.ROOF_METAL, _M.BITUMEN)
_HALL_ROOFS = (_M.ROOF_WHITE, _M.ROOF_METAL, _M.ROOF_METAL, _M.ROOF_BLUE, _M.BITUMEN, _M.CONCRETE, _M.ROOF_GREEN,
               _M.GRAVEL)  # fmt: skip
_TOWER_ROOFS = (_M.CONCRETE, _M.GRAVEL, _M.BITUMEN, _M.ROOF_WHITE, _M.ROOF_METAL, _M.PAVING)
CAR_PAINTS = (_M.ROOF_WHITE, _M.ROOF_WHITE, _M.ROOF_METAL, _M.BITUMEN, _M.BITUMEN, _M.PAINT_RED, _M.PAINT_BLUE,
               _M.ROOF_SLATE)  # fmt: skip


def _house(canvas: Canvas, frame: Frame, rect: Rect, height_m: float, roof: Material) -> None:
    """A building with shadow and either a ridged or a flat roof."""
    points = frame.points(rect.corners())
    if not canvas.visible(points, 20):
        return
    canvas.cast(points, height_m)
    width, depth = rect.size
    variant = int(canvas.rng.random() * VARIANTS)
    flat = height_m > 9 or roof in _HALL_ROOFS[3:] or min(width, depth) < 3
    if flat:
        _flat_roof(canvas, frame, rect, roof, variant)
        return
    middle_u, middle_v = rect.centre
    halves = (
        (Rect(rect.u0, rect.v0, rect.u1, middle_v), -np.pi / 2),
        (Rect(rect.u0, middle_v, rect.u1, rect.v1), np.pi / 2),
    ) if width >= depth else (
        (Rect(rect.u0, rect.v0, middle_u, rect.v1), np.pi),
        (Rect(middle_u, rect.v0, rect.u1, rect.v1), 0.0),
    )  # fmt: skip
    for half, facing in halves:
        direction = frame.angle + facing
        lit = np.cos(direction) * np.sin(canvas.sun_azimuth) - np.sin(direction) * np.cos(canvas.sun_azimuth)
        canvas.paint(frame.points(half.corners()), roof, variant=variant, tone=1.0 + 0.33 * float(lit))


def _flat_roof(canvas: Canvas, frame: Frame, rect: Rect, roof: Material, variant: int) -> None:
    """A flat roof with a parapet and, when large, machines, skylights, or solar panels."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), roof, variant=variant, tone=0.85)
    inner = rect.inset(canvas.px(0.5, 0.6))
    if min(inner.size) < 2:
        return
    stripes = 0
    if rng.random() < 0.35:
        stripes = canvas.row_pattern(frame.angle + (np.pi / 2 if rng.random() < 0.5 else 0), canvas.px(2.2), 0.12)
    canvas.paint(frame.points(inner.corners()), roof, variant=variant, tone=0.95 + 0.2 * rng.random(), rows=stripes)
    width, depth = inner.size
    for _ in range(min(30, int(width * depth * canvas.gsd_m**2 / 120 * rng.random()))):
        side = canvas.px(1.5 + 2.5 * rng.random())
        if side < 0.8:
            break
        u, v = inner.u0 + rng.random() * (width - side), inner.v0 + rng.random() * (depth - side)
        box = frame.points(Rect(u, v, u + side, v + side * (0.5 + rng.random())).corners())
        canvas.cast(box, 1.5)
        canvas.paint(box, canvas.pick((_M.ROOF_METAL, _M.CONCRETE, _M.SOLAR_PANEL, _M.BITUMEN)))


def _cars(canvas: Canvas, frame: Frame, rect: Rect, share: float, *, along_u: bool) -> None:
    """Rows of parked or driving cars in a rectangle; left out where they would be far below a pixel."""
    if canvas.gsd_m > 1.5:
        return
    rng = canvas.rng
    length, width = canvas.px(4.4), canvas.px(1.8, 1.0)
    step_u, step_v = (length * 1.35, width * 1.6) if along_u else (width * 1.5, length * 2.3)
    for v in np.arange(rect.v0, rect.v1 - (width if along_u else length), step_v):
        for u in np.arange(rect.u0, rect.u1 - (length if along_u else width), step_u):
            if rng.random() > share:
                continue
            size = (length, width) if along_u else (width, length)
            jitter = 0.15 * width * rng.standard_normal()
            box = frame.points(Rect(u, v + jitter, u + size[0], v + jitter + size[1]).corners())
            if canvas.visible(box):
                canvas.cast(box, 1.3)
                canvas.paint(box, canvas.pick(CAR_PAINTS))


def _scatter_trees(canvas: Canvas, frame: Frame, rect: Rect, per_hectare: float, radius_m: float) -> None:
    """Trees at random places of a rectangle, radii spread around ``radius_m``."""
    rng = canvas.rng
    width, height = rect.size
    if width <= 0 or height <= 0:
        return
    thinned = min(1.0, radius_m / canvas.gsd_m / _LEAST_CROWN_PX) ** 2  # one crown pixel stands for many small trees
    count = rng.poisson(min(4000.0, thinned * per_hectare * width * height * canvas.gsd_m**2 / 1e4))
    radius = np.maximum(radius_m / canvas.gsd_m * rng.lognormal(0, 0.35, count), _LEAST_CROWN_PX)
    u, v = rect.u0 + rng.random(count) * width, rect.v0 + rng.random(count) * height
    canvas.plant(np.column_stack([np.array(frame.points(list(zip(u, v, strict=True)))).reshape(-1, 2), radius]))


def _fields(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Agricultural plots with sharp borders, rows, tracks and hedges."""
    rng = canvas.rng
    turned = Frame(frame.centre_yx, frame.angle + rng.normal(0, 0.02))
    palette = [canvas.pick(_CROPS) for _ in range(4)]
    plots = canvas.px(30 + 90 * rng.random(), 12)
    for plot in partition(rng, rect, plots, spread=1.5):
        border = canvas.px(0.5 + 2.5 * rng.random(), 0.3)
        points = turned.points(plot.inset(border).corners())
        if not canvas.visible(points):
            continue
        angle = turned.angle + (np.pi / 2 if rng.random() < 0.4 else 0)
        rows = canvas.row_pattern(angle, canvas.px(1.0 + 3.5 * rng.random() ** 2), 0.04 + 0.14 * rng.random())
        canvas.paint(points, canvas.pick(palette), tone=0.85 + 0.3 * rng.random(), rows=rows)
        _tramlines(canvas, turned, plot, across=angle != turned.angle)
        if rng.random() < 0.35:
            edge = Rect(plot.u0 - border, plot.v0, plot.u0 + border, plot.v1)
            _scatter_trees(canvas, turned, edge.inset(-0.5), 250, 2.2)


def _tramlines(canvas: Canvas, frame: Frame, plot: Rect, *, across: bool) -> None:
    """Wheel tracks of a tractor: thin darker lines at regular distance."""
    rng = canvas.rng
    if rng.random() < 0.5 or canvas.gsd_m > 1.5:
        return
    step = canvas.px(12 + 12 * rng.random())
    low, high = (plot.u0, plot.u1) if across else (plot.v0, plot.v1)
    for place in np.arange(low + step / 2, high, step):
        ends = [(place, plot.v0), (place, plot.v1)] if across else [(plot.u0, place), (plot.u1, place)]
        canvas.line(frame.points(ends), canvas.px(0.5), _M.SOIL_BROWN, tone=0.8)


def _orchard(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Trees on a regular grid over grass or soil."""
    rng = canvas.rng
    for plot in partition(rng, rect, canvas.px(90, 24)):
        canvas.paint(
            frame.points(plot.inset(canvas.px(2)).corners()), canvas.pick((_M.GRASS, _M.SOIL_BROWN, _M.SOIL_PALE))
        )
        step_u, step_v = canvas.px(4 + 4 * rng.random(), 2.2), canvas.px(4 + 3 * rng.random(), 2.2)
        inner = plot.inset(canvas.px(4))
        u, v = np.meshgrid(np.arange(inner.u0, inner.u1, step_u), np.arange(inner.v0, inner.v1, step_v))
        if not u.size:
            continue
        keep = rng.random(u.size) < 0.95
        uv = np.column_stack([u.ravel(), v.ravel()])[keep] + rng.normal(0, 0.06 * step_u, (int(keep.sum()), 2))
        xy = np.array(frame.points([(a, b) for a, b in uv])).reshape(-1, 2)
        canvas.plant(np.column_stack([xy, rng.normal(0.36, 0.04, len(xy)).clip(0.2) * min(step_u, step_v)]))


def _housing(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Streets with houses, gardens, pools, parked cars and street trees."""
    rng = canvas.rng
    roofs = [canvas.pick(_HOUSE_ROOFS) for _ in range(3)]
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.ASPHALT_OLD, _M.ASPHALT_NEW, _M.ASPHALT_OLD)))
    street, walk = canvas.px(6 + 3 * rng.random(), 1.0), canvas.px(1.6)
    lot = canvas.px(15 + 12 * rng.random(), 4.0)
    for block in partition(rng, rect, canvas.px(55 + 40 * rng.random(), 10)):
        if not canvas.visible(frame.points(block.corners()), 10):
            continue
        outer = block.inset(street / 2)
        if min(outer.size) < 3:
            continue
        canvas.paint(frame.points(outer.corners()), _M.CONCRETE, tone=0.9)
        _cars(canvas, frame, Rect(block.u0, outer.v0 - canvas.px(2), block.u1, outer.v0), 0.4, along_u=True)
        garden = outer.inset(walk)
        canvas.paint(frame.points(garden.corners()), canvas.pick((_M.GRASS, _M.GRASS, _M.DRY_GRASS, _M.SOIL_PALE)))
        for plot in partition(rng, garden, lot, spread=0.2):
            _lot(canvas, frame, plot, roofs)
        _scatter_trees(canvas, frame, garden, 45 * rng.random(), 2.4)


def _lot(canvas: Canvas, frame: Frame, plot: Rect, roofs: Sequence[Material]) -> None:
    """One garden with its house."""
    rng = canvas.rng
    width, depth = plot.size
    canvas.paint(
        frame.points(plot.inset(canvas.px(0.4, 0.2)).corners()),
        canvas.pick((_M.GRASS, _M.GRASS, _M.GRASS, _M.DRY_GRASS, _M.PAVING, _M.GRAVEL, _M.SOIL_BROWN)),
        tone=0.8 + 0.4 * rng.random(),
    )
    house_w, house_d = width * (0.45 + 0.3 * rng.random()), depth * (0.4 + 0.25 * rng.random())
    u, v = plot.u0 + rng.random() * (width - house_w), plot.v0 + rng.random() * (depth - house_d)
    drive = canvas.px(2.8)
    if drive > 0.8 and rng.random() < 0.6:
        canvas.paint(frame.points(Rect(u, plot.v0, u + drive, v + 1).corners()), canvas.pick((_M.PAVING, _M.CONCRETE)))
    if canvas.px(7) > 3 and rng.random() < 0.06:
        pool = Rect(
            plot.u0 + 0.1 * width, plot.v1 - canvas.px(5), plot.u0 + 0.1 * width + canvas.px(8), plot.v1 - canvas.px(1)
        )
        canvas.paint(frame.points(pool.inset(-canvas.px(1)).corners()), _M.PAVING)
        canvas.paint(frame.points(pool.corners()), _M.POOL)
    house = Rect(u, v, u + house_w, v + house_d)
    if rng.random() < 0.3:
        wing = Rect(u, v, u + house_w * 0.45, min(v + house_d * 1.4, plot.v1))
        _house(canvas, frame, wing, 4, roofs[0])
    _house(canvas, frame, house, 4 + 4 * rng.random(), canvas.pick(roofs))


def _centre(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Dense blocks with tall buildings, squares and wide streets."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), _M.ASPHALT_NEW)
    street = canvas.px(12 + 6 * rng.random(), 1.2)
    for block in partition(rng, rect, canvas.px(70 + 40 * rng.random(), 12)):
        outer = block.inset(street / 2)
        if min(outer.size) < 3 or not canvas.visible(frame.points(block.corners()), 60):
            continue
        _lane_marks(canvas, frame, block)
        _cars(canvas, frame, Rect(block.u0, block.v0 + canvas.px(2), block.u1, outer.v0), 0.3, along_u=True)
        canvas.paint(frame.points(outer.corners()), canvas.pick((_M.PAVING, _M.CONCRETE, _M.CONCRETE, _M.GRASS)))
        if rng.random() < 0.12:
            _parking(canvas, frame, outer.inset(canvas.px(2)))
            continue
        for part in partition(rng, outer.inset(canvas.px(2)), canvas.px(22 + 20 * rng.random(), 5)):
            if rng.random() < 0.88:
                gap = canvas.px(4 * rng.random(), 0.2)
                body = part.inset(gap)
                if min(body.size) > 1.5:
                    _house(canvas, frame, body, float(10 + 40 * rng.random() ** 2.5), canvas.pick(_TOWER_ROOFS))
        _scatter_trees(canvas, frame, outer, 20 * rng.random(), 2.0)


def _lane_marks(canvas: Canvas, frame: Frame, block: Rect) -> None:
    """Dashed white line along the street at the block's lower side and a zebra crossing."""
    dash = canvas.px(3)
    if dash < 2:
        return
    for u in np.arange(block.u0, block.u1, 3 * dash):
        canvas.line(frame.points([(u, block.v0), (u + dash, block.v0)]), canvas.px(0.25), _M.ROOF_WHITE, tone=0.8)
    stripe = canvas.px(0.6)
    if stripe >= 1:
        for v in np.arange(block.v0 - 4 * stripe, block.v0 + 4 * stripe, 2 * stripe):
            u = block.u0 + canvas.px(8)
            canvas.line(frame.points([(u, v), (u + canvas.px(3), v)]), stripe, _M.ROOF_WHITE, tone=0.8)


def _parking(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """A car park with marked bays."""
    if min(rect.size) < 3:
        return
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.ASPHALT_NEW, _M.ASPHALT_OLD, _M.CONCRETE)))
    bay = canvas.px(2.7)
    if bay > 2.5:
        for v in np.arange(rect.v0, rect.v1 - canvas.px(5), canvas.px(4.4) * 2.3):
            for u in np.arange(rect.u0, rect.u1, bay):
                canvas.line(frame.points([(u, v), (u, v + canvas.px(4.6))]), 1, _M.PAVING)
    _cars(canvas, frame, rect.inset(canvas.px(0.3)), 0.2 + 0.6 * canvas.rng.random(), along_u=False)


def _works(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Industry: halls, yards with containers, tanks, solar arrays, car parks."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.ASPHALT_OLD, _M.CONCRETE, _M.GRAVEL)))
    for site in partition(rng, rect, canvas.px(80 + 80 * rng.random(), 14)):
        yard = site.inset(canvas.px(5, 0.6))
        if min(yard.size) < 3 or not canvas.visible(frame.points(yard.corners()), 20):
            continue
        canvas.paint(
            frame.points(yard.corners()), canvas.pick((_M.CONCRETE, _M.ASPHALT_OLD, _M.GRAVEL, _M.GRASS, _M.SOIL_PALE))
        )
        kind = rng.random()
        if kind < 0.55:
            width, depth = yard.size
            hall = Rect(yard.u0 + 0.1 * width, yard.v0 + 0.1 * depth, yard.u0 + (0.5 + 0.4 * rng.random()) * width,
                         yard.v0 + (0.5 + 0.4 * rng.random()) * depth)  # fmt: skip
            _house(canvas, frame, hall, 8 + 6 * rng.random(), canvas.pick(_HALL_ROOFS))
            if hall.v1 + canvas.px(12) < yard.v1:
                _parking(canvas, frame, Rect(yard.u0, hall.v1 + canvas.px(3), yard.u1, yard.v1))
        elif kind < 0.7:
            _tanks(canvas, frame, yard)
        elif kind < 0.82:
            _containers(canvas, frame, yard)
        elif kind < 0.92:
            _solar_rows(canvas, frame, yard)
        else:
            _parking(canvas, frame, yard)


def _tanks(canvas: Canvas, frame: Frame, yard: Rect) -> None:
    radius = canvas.px(5 + 10 * canvas.rng.random(), 1.5)
    for u in np.arange(yard.u0 + 1.3 * radius, yard.u1 - radius, 2.8 * radius):
        for v in np.arange(yard.v0 + 1.3 * radius, yard.v1 - radius, 2.8 * radius):
            x, y = frame.points([(u, v)])[0]
            angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            canvas.cast(list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)), 9)
            canvas.disc(x, y, radius, canvas.pick((_M.ROOF_WHITE, _M.ROOF_METAL)))
            canvas.disc(x, y, 0.15 * radius, _M.CONCRETE)


def _containers(canvas: Canvas, frame: Frame, yard: Rect) -> None:
    width, length = canvas.px(2.6, 1.0), canvas.px(12.2, 2.5)
    for u in np.arange(yard.u0, yard.u1 - length, 1.1 * length):
        for v in np.arange(yard.v0, yard.v1 - width, width * 1.05):
            if canvas.rng.random() < 0.7:
                box = frame.points(Rect(u, v, u + length, v + width).corners())
                paint = canvas.pick(
                    (_M.PAINT_RED, _M.PAINT_BLUE, _M.ROOF_WHITE, _M.ROOF_GREEN, _M.ROOF_METAL, _M.ROOF_BROWN)
                )
                canvas.cast(box, 2.6)
                canvas.paint(box, paint)


def _solar_rows(canvas: Canvas, frame: Frame, yard: Rect) -> None:
    canvas.paint(frame.points(yard.corners()), _M.GRASS)
    step = canvas.px(6, 2.0)
    for v in np.arange(yard.v0, yard.v1 - step, step):
        row = frame.points(Rect(yard.u0, v, yard.u1, v + 0.55 * step).corners())
        canvas.cast(row, 1.5)
        canvas.paint(row, _M.SOLAR_PANEL)


def _park(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Lawns with paths, groups of trees, and sports grounds."""
    rng = canvas.rng
    canvas.paint(frame.points(rect.corners()), canvas.pick((_M.GRASS, _M.GRASS, _M.DRY_GRASS)))
    width, height = rect.size
    for _ in range(3):
        ends = [(rect.u0 + rng.random() * width, rect.v0 + rng.random() * height) for _ in range(3)]
        canvas.line(frame.points(ends), canvas.px(2.5), canvas.pick((_M.GRAVEL, _M.PAVING, _M.ASPHALT_OLD)))
    if rng.random() < 0.5:
        _sports(canvas, frame, rect)
    for _ in range(4):
        u, v = rect.u0 + rng.random() * width, rect.v0 + rng.random() * height
        grove = Rect(u, v, min(rect.u1, u + 0.35 * width), min(rect.v1, v + 0.35 * height))
        _scatter_trees(canvas, frame, grove, 60 + 250 * rng.random(), 3.0)


def _sports(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """A pitch with white lines inside a running track."""
    u, v = rect.centre
    long, wide = canvas.px(52), canvas.px(34)
    if long < 8 or 2.4 * long > rect.size[0] or 2.8 * wide > rect.size[1]:
        return
    angles = np.linspace(0, 2 * np.pi, 48)
    for margin, material in ((1.3, _M.TRACK_RED), (1.12, _M.GRASS)):
        ring = [(u + margin * 1.25 * long * np.cos(a), v + margin * 1.15 * wide * np.sin(a)) for a in angles]
        canvas.paint(frame.points(ring), material)
    pitch = Rect(u - long, v - 0.8 * wide, u + long, v + 0.8 * wide)
    canvas.paint(
        frame.points(pitch.corners()), _M.TURF, rows=canvas.row_pattern(frame.angle + np.pi / 2, canvas.px(11), 0.1)
    )
    corners = pitch.corners()
    canvas.line(frame.points([*corners, corners[0]]), 1, _M.ROOF_WHITE)
    canvas.line(frame.points([(u, pitch.v0), (u, pitch.v1)]), 1, _M.ROOF_WHITE)


def _forest(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Closed canopy with clearings and forest tracks."""
    rng = canvas.rng
    ground = canvas.pick((_M.CONIFER, _M.DECIDUOUS, _M.SHRUB))
    canvas.paint(frame.points(rect.corners()), ground, tone=0.6 if canvas.gsd_m < 3 else 1.1)
    for stand in partition(rng, rect, canvas.px(120, 40), spread=1.0):
        if rng.random() < 0.15:
            canvas.paint(frame.points(stand.corners()), canvas.pick((_M.GRASS, _M.SHRUB, _M.SOIL_BROWN)))
            _scatter_trees(canvas, frame, stand, 60, 1.6)
        else:
            _scatter_trees(canvas, frame, stand, 150 + 600 * rng.random(), 2.2 + 2.0 * rng.random())
    width, height = rect.size
    ends = [(rect.u0 + rng.random() * width, rect.v0 + rng.random() * height) for _ in range(4)]
    canvas.line(curve(frame.points(ends)), canvas.px(4), _M.GRAVEL)


def _bare(canvas: Canvas, frame: Frame, rect: Rect) -> None:
    """Open ground: sand, soil or rock with shrubs and vehicle tracks."""
    rng = canvas.rng
    ground = canvas.pick((_M.SAND_DRY, _M.SOIL_PALE, _M.SOIL_RED, _M.ROCK, _M.SOIL_BROWN, _M.DRY_GRASS, _M.BURNT))
    canvas.paint(frame.points(rect.corners()), ground)
    width, height = rect.size
    for _ in range(3):
        ends = [(rect.u0 + rng.random() * width, rect.v0 + rng.random() * height) for _ in range(4)]
        track = curve(frame.points(ends))
        canvas.line(track, canvas.px(2.5), canvas.pick((_M.SOIL_PALE, _M.SOIL_BROWN, _M.GRAVEL)), tone=1.1)
    _scatter_trees(canvas, frame, rect, 80 * rng.random(), 1.1)


DISTRICTS: dict[str, Callable[[Canvas, Frame, Rect], None]] = {
    "fields": _fields,
    "orchard": _orchard,
    "housing": _housing,
    "centre": _centre,
    "works": _works,
    "park": _park,
    "forest": _forest,
    "bare": _bare,
}
"""How each kind of district is drawn into a rectangle of a frame."""
