"""What a STAC item's metadata says about its grids, and where it contradicts itself or the specification.

Plain JSON in, findings out; nothing here decides whether a scene can be sharpened. Every finding says what was
assumed instead, because the header of the file decides later anyway.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from pydantic import Field

from pancrafter.grid import MAX_RATIO_ERROR
from pancrafter.types import Record

Json = Mapping[str, Any]  # parsed JSON

NOT_IMAGERY = frozenset({"thumbnail", "overview", "visual", "metadata", "world-file", "data-mask", "cloud", "preview"})
"""Roles of assets that hold no data to sharpen."""

RATIO_TOLERANCE = MAX_RATIO_ERROR
"""Relative deviation of declared pixel sizes that is left to the file headers; real products reach 0.1 %."""

METRES_PER_DEGREE = 111_320.0

SMALLEST_GSD_M = 0.01
"""No satellite sees centimetres: a smaller ``gsd`` is an angle, usually degrees."""

SWAP_FITS = 5e-4
"""Relative deviation from the declared pixel size that a footprint drawn around the raster still has."""

SWAP_CONTRAST = 5.0
"""How many times worse the declared order of rows and columns must fit than the swapped one."""

_Finding = tuple[str, str]
"""Asset key, empty for the item itself, and what is wrong."""

_CODE = re.compile(r"[A-Za-z]+:\w+")
_RFC3339 = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")
_SENSOR_GEOMETRY = re.compile(r"(?i)\b(l?1a|l?1b|lv1b|basic|sensor|raw)\b")
_ORTHO = re.compile(r"(?i)ortho|l1[cdgt]|l2|l3|l4")


class DeclaredGrid(Record):
    """The grid that metadata claims for one asset; None where it is silent."""

    crs: str | None = None
    shape: tuple[int, int] | None = Field(default=None, description="Rows and columns.")
    transform: tuple[float, ...] | None = None
    pixel_size: float | None = Field(default=None, description="From transform, spatial resolution or gsd.")
    inherited_shape: bool = Field(default=False, description="The shape is that of the item, not of the asset.")


class Findings(Record):
    """``defects`` contradict the specification or each other, ``notes`` are doubts; each says what was assumed."""

    defects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def declared_grid(item: Json, key: str) -> DeclaredGrid:
    """The grid that ``item`` declares for the asset ``key``; projection fields of the item hold for its assets."""
    fields, properties = _asset(item, key), _properties(item)
    own = shape_of(fields.get("proj:shape"))
    shape = own or shape_of(properties.get("proj:shape"))
    transform = transform_of(fields.get("proj:transform")) or (
        transform_of(properties.get("proj:transform")) if own is None else None
    )
    return DeclaredGrid(
        crs=_crs(fields) or _crs(properties),
        shape=shape,
        transform=transform,
        pixel_size=next((size for _, size in pixel_sizes(fields)), None) or (abs(transform[0]) if transform else None),
        inherited_shape=own is None and shape is not None,
    )


def examine(item: Json, keys: Sequence[str] = ()) -> Findings:
    """Defects and doubts in the metadata of ``item``, as far as the assets ``keys`` show them.

    Args:
        item: Any JSON object that claims to be an item.
        keys: Assets in use, PAN first; none: all images of the item.
    """
    assets = _mapping(item.get("assets"))
    used = [key for key in keys or assets if is_imagery(assets[key])]
    found = [*_time_defects(item), *_crs_defects(item, used), *_gsd_defects(item, used), *_type_defects(item, used)]
    found += [*_size_defects(item, used), *_swapped(item, used), *_ratio_defects(item, keys)]
    notes = [*_geometry_notes(item, used), *_asset_notes(item, used)]
    return Findings(defects=_merged(found), notes=_merged(notes))


def _merged(found: Sequence[_Finding]) -> tuple[str, ...]:
    """One line per statement, with all the assets it is true of."""
    keys_of: dict[str, list[str]] = {}
    for key, text in found:
        keys = keys_of.setdefault(text, [])
        if key and key not in keys:
            keys.append(key)
    return tuple(f"{', '.join(keys)}: {text}" if keys else text for text, keys in keys_of.items())


def is_imagery(asset: object) -> bool:
    """Whether an asset claims to be data, not a picture for people, a mask or a side file."""
    roles = _list(_mapping(asset).get("roles"))
    return not NOT_IMAGERY & {str(role).casefold() for role in roles}


def declared_ratios(pan: Json, ms: Json) -> list[tuple[str, float]]:
    """MS over PAN pixel size by every field that both assets declare, and by their sizes in pixels (either order)."""
    pan_sizes = dict(pixel_sizes(pan))
    found = [(name, size / pan_sizes[name]) for name, size in pixel_sizes(ms) if name in pan_sizes]
    shapes = shape_of(pan.get("proj:shape")), shape_of(ms.get("proj:shape"))
    if shapes[0] and shapes[1]:
        longest, shortest = (end(shapes[0]) / end(shapes[1]) for end in (max, min))
        if abs(longest / shortest - 1) <= RATIO_TOLERANCE:
            found.append(("size in pixels", longest))
    return found


def pixel_sizes(fields: Json) -> list[tuple[str, float]]:
    """Every pixel size an asset declares for itself, most trustworthy first, with the field it came from."""
    transform = fields.get("proj:transform")
    bands = fields.get("raster:bands") or fields.get("bands")
    first = _mapping(bands[0]) if isinstance(bands, list) and bands else {}
    proposals = (
        ("proj:transform", transform[0] if isinstance(transform, list) and transform else None),
        ("raster:spatial_resolution", fields.get("raster:spatial_resolution")),
        ("spatial_resolution", first.get("spatial_resolution", first.get("raster:spatial_resolution"))),
        ("gsd", fields.get("gsd", first.get("gsd"))),
    )
    return [(name, abs(float(value))) for name, value in proposals if _is_number(value) and value != 0]


def shape_of(value: object) -> tuple[int, int] | None:
    """``proj:shape`` as two positive integers; None for anything else."""
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
        return value[0], value[1]
    return None


def transform_of(value: object) -> tuple[float, ...] | None:
    """``proj:transform`` as six or nine finite numbers with a pixel size; None for anything else."""
    if not isinstance(value, list) or len(value) not in (6, 9) or not all(_is_number(number) for number in value):
        return None
    return tuple(float(number) for number in value) if value[0] and value[4] else None


# --- defects --------------------------------------------------------------------------------------------------------


def _time_defects(item: Json) -> Iterator[_Finding]:
    for name in ("datetime", "start_datetime", "end_datetime"):
        value = _properties(item).get(name)
        if value is not None and not (isinstance(value, str) and _RFC3339.match(value)):
            yield "", f"{name} is {value!r}, expected RFC 3339 like 2025-03-01T10:00:00Z; read as UTC"


def _crs_defects(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    for key, fields in _places(item, keys):
        code, named = fields.get("proj:epsg"), fields.get("proj:code")
        if code is not None and type(code) is not int:
            kind = type(code).__name__
            yield key, f"proj:epsg is {code!r} ({kind}), expected a number or null; read as {_crs(fields)}"
        if named is not None and not (isinstance(named, str) and _CODE.fullmatch(named)):
            yield key, f"proj:code is {named!r}, expected AUTHORITY:CODE or null; left to the file header"
        elif type(code) is int and isinstance(named, str) and named.upper() != f"EPSG:{code}":
            yield key, f"proj:epsg is {code} but proj:code is {named}; left to the file header"


def _gsd_defects(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    for key, fields in _places(item, keys):
        gsd = fields.get("gsd")
        if gsd is None:
            continue
        if not _is_number(gsd) or gsd <= 0:
            yield key, f"gsd is {gsd!r}, expected metres; left to the file header"
        elif gsd < SMALLEST_GSD_M:
            yield key, f"gsd is {gsd:g}, which cannot be metres; taken as degrees ({gsd * METRES_PER_DEGREE:.2f} m)"


def _type_defects(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    for key in keys:
        fields = _asset(item, key)
        bands = [_mapping(band) for name in ("raster:bands", "bands") for band in _list(fields.get(name))]
        for band in (fields, *bands):
            kind, nodata = band.get("data_type"), band.get("nodata")
            if kind == "int8":
                yield key, "data_type is int8, in which DN above 127 have no place; the type is left to the file header"
            if isinstance(kind, str) and "int" in kind and str(nodata).casefold() in {"nan", "inf", "-inf"}:
                yield key, f"nodata is {nodata} for {kind} pixels; ignored, the file header decides"


def _size_defects(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    """Pixel sizes of one asset that differ by more than a tenth; gsd may differ, it need not be the pixel size."""
    for key in keys:
        named = pixel_sizes(_asset(item, key))
        exact = {name: size for name, size in named if name != "gsd"}
        if exact and max(exact.values()) > 1.1 * min(exact.values()):
            listed = ", ".join(f"{name} {size:g}" for name, size in exact.items())
            yield key, f"pixel sizes contradict each other ({listed}); left to the file header"


def _ratio_defects(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    if len(keys) < 2:
        return
    ratios = declared_ratios(_asset(item, keys[0]), _asset(item, keys[1]))
    values = [ratio for _, ratio in ratios]
    if values and max(values) > (1 + RATIO_TOLERANCE) * min(values):
        listed = ", ".join(f"{ratio:.3f} by {name}" for name, ratio in ratios)
        yield "", f"the ratio of {keys[1]} to {keys[0]} pixels is {listed}; left to the file headers"


def _swapped(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    """Shapes whose rows and columns are exchanged, as the footprint and the declared pixel size show."""
    for key in keys:
        fields = _asset(item, key)
        shape, sizes = shape_of(fields.get("proj:shape")), pixel_sizes(fields)
        extent = _extent(item, _crs(fields) or _crs(_properties(item)))
        if shape is None or extent is None or not sizes:
            continue
        (height, width), (rows, cols), size = extent, shape, sizes[0][1]
        declared = max(abs(height / rows / size - 1), abs(width / cols / size - 1))
        exchanged = max(abs(height / cols / size - 1), abs(width / rows / size - 1))
        if exchanged < SWAP_FITS and declared > SWAP_CONTRAST * exchanged:
            found = f"{height:.0f} m high and {width:.0f} m wide at {size:g} m"
            taken = f"width and height are swapped; taken as {[cols, rows]}"
            yield key, f"proj:shape is {list(shape)}, but the footprint is {found}: {taken}"


def _extent(item: Json, crs: str | None) -> tuple[float, float] | None:
    """Height and width of the footprint in the declared CRS, if that is a projected EPSG one."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    points = list(_points(_mapping(item.get("geometry")).get("coordinates"), 0))
    if crs is None or not 3 <= len(points) <= 10_000:
        return None
    try:
        target = CRS.from_user_input(crs)
        if not target.is_projected:
            return None
        lon, lat = zip(*points, strict=True)
        x, y = Transformer.from_crs(4326, target, always_xy=True).transform(lon, lat)
    except ProjError:
        return None
    return max(y) - min(y), max(x) - min(x)


def _points(value: object, depth: int) -> Iterator[tuple[float, float]]:
    if not isinstance(value, list) or depth > 4:
        return
    if len(value) >= 2 and all(_is_number(number) for number in value[:2]):
        yield float(value[0]), float(value[1])
        return
    for part in value:
        yield from _points(part, depth + 1)


# --- doubts ---------------------------------------------------------------------------------------------------------


def _geometry_notes(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    properties = _properties(item)
    level = str(properties.get("processing:level") or "")
    without = not any(_crs(fields) or fields.get("proj:wkt2") for _, fields in _places(item, keys))
    if _SENSOR_GEOMETRY.search(level) and not _ORTHO.search(level):
        yield "", f"level {level}: probably sensor geometry; staging refuses files that only have RPCs or GCPs"
    if without:
        yield "", "no CRS in the metadata; left to the file header"
    if properties.get("landsat:collection_category") == "RT" or str(item.get("id")).upper().endswith("_RT"):
        yield "", "real-time tier: the producer will supersede it"


def _asset_notes(item: Json, keys: Sequence[str]) -> Iterator[_Finding]:
    for key in keys:
        fields = _asset(item, key)
        path = str(fields.get("href", "")).split("?", 1)[0].casefold()
        media = fields.get("type")
        if path.endswith((".tif", ".tiff")) and media is not None and "tif" not in str(media).casefold():
            yield key, f"media type is {media!r} for a .tif; the file name was believed"
        named = next((_list(fields.get(name)) for name in ("bands", "eo:bands") if fields.get(name)), [])
        counted = _list(fields.get("raster:bands"))
        if named and counted and len(named) != len(counted):
            yield key, f"{len(named)} bands are named and {len(counted)} described; the names were believed"


# --- JSON -----------------------------------------------------------------------------------------------------------


def _places(item: Json, keys: Sequence[str]) -> Iterator[tuple[str, Json]]:
    yield "", _properties(item)
    for key in keys:
        yield key, _asset(item, key)


def _crs(fields: Json) -> str | None:
    """The declared CRS as AUTHORITY:CODE, also where a number was written as text."""
    code = fields.get("proj:code")
    if isinstance(code, str) and _CODE.fullmatch(code):
        return code.upper()
    number = fields.get("proj:epsg")
    if isinstance(number, bool) or not re.fullmatch(r"\d{4,6}", str(number)):
        return None
    return f"EPSG:{number}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _properties(item: Json) -> Json:
    return _mapping(item.get("properties"))


def _asset(item: Json, key: str) -> Json:
    return _mapping(_mapping(item.get("assets")).get(key))


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
