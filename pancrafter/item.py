"""Describes a sharpened scene as a STAC 1.1 item: what it is, how it was made, how good it is and what it cost.

Pure: finished files are described by :class:`AssetFile` records; putting them anywhere is the job of ``publish``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pystac
from pydantic import Field
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform
from shapely import Polygon, box, orient_polygons, union_all
from shapely.affinity import translate
from shapely.geometry import mapping

from pancrafter.cog import CogInfo, Reason
from pancrafter.crs import crs_code
from pancrafter.errors import GridMismatchError
from pancrafter.hrefs import public, scheme_of
from pancrafter.sensors import BandSpec
from pancrafter.times import rfc3339
from pancrafter.types import FORMAT_VERSION, PixelGrid, Quality, Record, StagedScene

SHARPENED, MASK, THUMBNAIL, QUALITY = "sharpened", "mask", "thumbnail", "quality"
NETWORK_METHOD = "pan-crafter"
SCHEMA_FILE = "pancrafter-v1.0.0.json"

_EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/{version}/schema.json"
    for name, version in {
        "projection": "v2.0.0",
        "raster": "v2.0.0",
        "eo": "v2.0.0",
        "file": "v2.1.0",
        "processing": "v1.2.0",
        "version": "v1.2.0",
        "classification": "v2.0.0",
        "view": "v1.0.0",
    }.items()
}
_CARRIED_TEXT = ("platform", "constellation", "mission")
_CARRIED_RANGE = {
    "eo:cloud_cover": (0, 100),
    "eo:snow_cover": (0, 100),
    "view:off_nadir": (0, 90),
    "view:incidence_angle": (0, 90),
    "view:azimuth": (0, 360),
    "view:sun_azimuth": (0, 360),
    "view:sun_elevation": (-90, 90),
}
_EO_COMMON_NAMES = frozenset((
    "pan", "coastal", "blue", "green", "green05", "yellow", "red", "rededge", "rededge071", "rededge075",
    "rededge078", "nir", "nir08", "nir09", "cirrus", "swir16", "swir22", "lwir", "lwir11", "lwir12"
))  # fmt: skip
_PROVIDER_ROLES = ("licensor", "producer", "processor", "host")
_WEB_SCHEMES = ("http", "https", "mailto")
_EDGE_STEPS = 8
_LONLAT_DIGITS = 7
_METRES_PER_DEGREE = 111_320.0  # of latitude, spherical mean (WGS 84: 110.57 to 111.69 km)
_QUALITY_TITLE = "Consistency with the multispectral input, ERGAS per block of 8 by 8 MS pixels; 0 is best"
_ASSUMED_ORDER = (
    " Neither the source item nor its file says which band is which: the usual order of the sensor was taken."
)
_REASON_TEXT = {
    Reason.NO_MS: "no multispectral data",
    Reason.NO_PAN: "no panchromatic data",
    Reason.EDGE: "so close to missing data that filled values may have reached it",
    Reason.SATURATED: "a band is at the upper end of the sensor's range",
    Reason.LOW_CONSISTENCY: "degraded to multispectral resolution it disagrees with the input",
}


class Recipe(Record):
    """Everything besides the source that decides the pixels. Same recipe and fingerprint, same item."""

    method: str = Field(description="'pan-crafter' or the name of a classical method.")
    weights: str | None = Field(description="Name of the weights, without folders; None for classical methods.")
    weights_sha256: str | None
    contract_digest: str = Field(description="sha256 of the sensor contract.")
    software_version: str
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings that change pixels.")
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """sha256 over all fields but the software version, in canonical JSON: a new release alone re-makes nothing."""
        fields = self.model_dump(mode="json", exclude={"software_version"})
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class Gate(Record):
    """What the quality gate said, and what a person made of it where it held the scene."""

    verdict: Literal["pass", "fallback", "hold", "released"] = "pass"
    reason: str = Field(default="", description="What missed the rule; empty for pass.")
    released_because: str | None = Field(default=None, description="Reason of the person who released it.")


class Cost(Record):
    """What making the item took, as measured."""

    seconds: float = Field(ge=0, description="Wall time of staging, sharpening and assessing.")
    sharpen_seconds: float | None = None
    mpx_per_s: float | None = Field(default=None, description="Million PAN pixels per second of sharpening.")
    gpu_seconds: float | None = Field(default=None, description="The part of them in which a GPU was taken.")
    bytes_read: int | None = None
    staging_bytes: int | None = Field(default=None, description="What the staged scene took on disk.")
    money: float | None = Field(default=None, description="Seconds at the price per hour; None: no price is known.")
    device: str | None = None


class AssetFile(Record):
    """A finished local file that will become an asset."""

    key: str
    path: str
    media_type: str
    roles: tuple[str, ...]
    title: str
    size_bytes: int
    checksum: str = Field(description="sha2-256 multihash in hexadecimal: '1220' and the digest.")
    shape_yx: tuple[int, int]
    raster: CogInfo | None = Field(default=None, description="None for pictures.")


def multihash_of(path: str | Path) -> str:
    """sha2-256 multihash of a file in hexadecimal, as ``file:checksum`` wants it (function code 12, length 20)."""
    with Path(path).open("rb") as handle:
        return "1220" + hashlib.file_digest(handle, "sha256").hexdigest()


def cog_asset(key: str, info: CogInfo) -> AssetFile:
    """Describe a COG that ``pancrafter.cog`` has written as the asset ``key``."""
    title, roles = {
        SHARPENED: ("Sharpened image, all bands", ("data",)),
        MASK: ("Why a pixel should not be trusted, as bits; 0: trust it", ("data-mask", "metadata")),
        QUALITY: (_QUALITY_TITLE, ("metadata", "quality")),
    }[key]
    return AssetFile(
        key=key,
        path=info.path,
        media_type=str(pystac.MediaType.COG),
        roles=roles,
        title=title,
        size_bytes=Path(info.path).stat().st_size,
        checksum=multihash_of(info.path),
        shape_yx=info.grid.shape_yx,
        raster=info,
    )


def picture_asset(key: str, path: str | Path, shape_yx: tuple[int, int], *, title: str = "Preview") -> AssetFile:
    """Describe a PNG as the asset ``key``."""
    return AssetFile(
        key=key,
        path=str(path),
        media_type=str(pystac.MediaType.PNG),
        roles=("thumbnail",) if key == THUMBNAIL else ("overview",),
        title=title,
        size_bytes=Path(path).stat().st_size,
        checksum=multihash_of(path),
        shape_yx=shape_yx,
    )


def build_item(
    staged: StagedScene,
    quality: Quality,
    *,
    item_id: str,
    collection_id: str,
    recipe: Recipe,
    bands: Sequence[BandSpec],
    assets: Sequence[AssetFile],
    cost: Cost,
    fallback: bool = False,
    gate: Gate | None = None,
    model_link: dict[str, Any] | None = None,
    now: datetime | None = None,
) -> pystac.Item:
    """Assemble the STAC item of a sharpened scene.

    Asset hrefs are the local paths of ``assets``; ``publish`` turns them into relative ones. Links assume the layout
    of the output catalog: ``<collection>/<item>/<item>.json``.

    Args:
        staged: The staged source, for grid, alignment and what the source was.
        quality: What ``assess`` measured.
        item_id: Deterministic id, decided by the caller from source, fingerprint and recipe.
        collection_id: Output collection.
        recipe: How the pixels were made.
        bands: One per band of the sharpened asset, in file order.
        assets: The finished files; ``sharpened`` must be among them.
        cost: Measured effort.
        fallback: A classical result stands in for the network's.
        gate: What the quality gate said; by default that it passed.
        model_link: Link to the model item (``pancrafter.models.ensure_model``), for the network's results.
        now: Time of creation, by default the present.
    """
    scene, grid = staged.scene, staged.grid.pan
    stamp, gate = rfc3339((now or datetime.now(UTC)).replace(microsecond=0)), gate or Gate()
    geometry, bbox = footprint(grid)
    item = pystac.Item(
        id=item_id,
        geometry=geometry,
        bbox=bbox,
        datetime=datetime.fromisoformat(scene.acquired),
        properties=_carried_properties(scene.properties),
        collection=collection_id,
    )
    item.properties |= {
        "title": _title(scene.item_id, recipe, gate, fallback=fallback),
        "created": stamp,
        "updated": stamp,
        "gsd": ground_sample_distance_m(grid),
        **_projection(grid),
        **_processing(staged, recipe, stamp),
        "version": hashlib.sha256(f"{scene.fingerprint}\n{recipe.digest}".encode()).hexdigest()[:12],
        "pancrafter:sensor": scene.sensor,
        "pancrafter:method": recipe.method,
        "pancrafter:fallback": fallback,
        "pancrafter:gate": gate.model_dump(exclude_none=True),
        "pancrafter:recipe": {"digest": recipe.digest, **recipe.model_dump(mode="json")},
        "pancrafter:source": {
            "collection": scene.collection,
            "item_id": scene.item_id,
            "fingerprint": scene.fingerprint,
        },
        "pancrafter:alignment": _alignment(staged),
        "pancrafter:valid_share": staged.valid_share,
        "pancrafter:cost": cost.model_dump(exclude_none=True),
        **_quality(quality),
    }
    for asset in assets:
        item.add_asset(asset.key, _stac_asset(asset, grid, bands))
    item.links = list(_links(staged, collection_id))
    if model_link is not None:
        item.links.append(pystac.Link.from_dict(model_link))
    item.stac_extensions = extensions_used(item)
    return item


def footprint(grid: PixelGrid) -> tuple[dict[str, Any], list[float]]:
    """Outline of a grid in longitude and latitude (GeoJSON), and its bounding box west, south, east, north.

    Edges are followed in steps, so that straight map lines stay inside the bounding box. Rings are counter-clockwise; a
    grid across the antimeridian becomes two polygons, and west is then larger than east (RFC 7946). One around a pole
    has all longitudes.

    Raises:
        GridMismatchError: The CRS has no way to longitude and latitude, or the grid lies outside where it is defined.
    """
    a, b, c, d, e, f = grid.transform
    rows, cols = grid.shape_yx
    steps = [i / _EDGE_STEPS for i in range(_EDGE_STEPS)]
    ring = [
        *((0.0, rows * t) for t in steps),
        *((cols * t, float(rows)) for t in steps),
        *((float(cols), rows * (1 - t)) for t in steps),
        *((cols * (1 - t), 0.0) for t in steps),
        (0.0, 0.0),
    ]
    xs, ys = [a * x + b * y + c for x, y in ring], [d * x + e * y + f for x, y in ring]
    try:
        lons, lats = transform(grid.crs, "EPSG:4326", xs, ys)
    except (RasterioError, CPLE_BaseError, SystemError) as err:
        raise _nowhere_on_earth(grid, str(err)) from err
    if not np.isfinite([lons, lats]).all():
        raise _nowhere_on_earth(grid, "some of its edges have none")
    outline = _unbroken_outline(lons, lats)
    west, south, east, north = outline.bounds
    if east <= 180:
        area = outline
    else:
        parts = (
            translate(outline.intersection(box(-180 + turn, -90, 180 + turn, 90)), xoff=-turn) for turn in (0, 360)
        )
        area = union_all([*parts], grid_size=10.0**-_LONLAT_DIGITS)
        west, east = (west, east - 360) if area.geom_type == "MultiPolygon" else (area.bounds[0], area.bounds[2])
    shape = mapping(orient_polygons(area))
    bbox = [round(value, _LONLAT_DIGITS) for value in (west, south, east, north)]
    return {"type": shape["type"], "coordinates": _rounded(shape["coordinates"])}, bbox


def _nowhere_on_earth(grid: PixelGrid, found: str) -> GridMismatchError:
    _, _, x, _, _, y = grid.transform
    return GridMismatchError(
        f"the upper left corner lies at ({x:g}, {y:g}) in {grid.crs}, which cannot be put into longitude and "
        f"latitude ({found}); expected a CRS of the Earth and coordinates it is defined for; check the georeference"
    )


def _unbroken_outline(lons: Sequence[float], lats: Sequence[float]) -> Polygon:
    """The polygon of a closed ring, from a west of -180 to 180 degrees; what lies beyond the antimeridian is above 180.

    A ring around a pole is closed along it.
    """
    x = np.unwrap(lons, period=360).round(_LONLAT_DIGITS)
    x -= 360 * np.floor((x.min() + 180) / 360)
    points = list(zip(x.tolist(), np.round(lats, _LONLAT_DIGITS).tolist(), strict=True))
    if abs(x[-1] - x[0]) > 180:
        pole = math.copysign(90.0, lats[0])
        points += [(float(x[-1]), pole), (float(x[0]), pole)]
    return Polygon(points)


def _rounded(coordinates: Any) -> Any:  # Any: numbers in sequences as deep as GeoJSON has them
    if isinstance(coordinates, float):
        return round(coordinates, _LONLAT_DIGITS)
    return [_rounded(inner) for inner in coordinates]


def ground_sample_distance_m(grid: PixelGrid) -> float:
    """Pixel size in metres (geometric mean of both directions, at the centre of a geographic grid)."""
    a, b, _, d, e, f = grid.transform
    across, down = math.hypot(a, d), math.hypot(b, e)
    crs = CRS.from_user_input(grid.crs)
    if crs.is_geographic:
        latitude = d * grid.shape_yx[1] / 2 + e * grid.shape_yx[0] / 2 + f
        across *= _METRES_PER_DEGREE * math.cos(math.radians(latitude))
        down *= _METRES_PER_DEGREE
    elif crs.is_projected:
        factor = crs.linear_units_factor[1]
        across, down = across * factor, down * factor
    return round(math.sqrt(across * down), 4)


def _clean(value: Any) -> Any:  # Any: JSON from the source item
    """The same JSON with every address made public."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, list | tuple):
        return [_clean(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _clean(entry) for key, entry in value.items()}
    return value


def _carried_properties(source: dict[str, Any]) -> dict[str, Any]:
    """What the item keeps of its source; a value that STAC does not allow there is left behind."""
    kept = {name: source[name] for name in _CARRIED_TEXT if isinstance(source.get(name), str) and source[name]}
    for name, (low, high) in _CARRIED_RANGE.items():
        value = source.get(name)
        if isinstance(value, int | float) and low <= value <= high:
            kept[name] = value
    if isinstance(source.get("license"), str):
        kept["license"] = stac_license(source["license"])
    instruments = source.get("instruments")
    if isinstance(instruments, list | tuple) and instruments and all(isinstance(entry, str) for entry in instruments):
        kept["instruments"] = _clean(instruments)
    if providers := stac_providers(source.get("providers")):
        kept["providers"] = list(providers)
    return kept


def stac_providers(found: object) -> tuple[dict[str, Any], ...]:
    """The providers among ``found`` that are objects with a name, public.

    Without roles that STAC does not know, and without a ``url`` that a browser would not just open, such as a script.
    """
    entries = _clean(found) if isinstance(found, list | tuple) else ()
    named = (entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str))
    return tuple(map(_provider, named))


def _provider(found: dict[str, Any]) -> dict[str, Any]:
    kept = found | {"roles": _known_roles(found["roles"])} if "roles" in found else dict(found)
    if scheme_of(str(kept.get("url"))) not in _WEB_SCHEMES:
        kept.pop("url", None)
    return kept


def _known_roles(found: object) -> list[str]:
    return [role for role in found if role in _PROVIDER_ROLES] if isinstance(found, list | tuple) else []


def stac_license(found: str) -> str:
    """A licence as STAC 1.1 writes it: an SPDX id or ``other``; the older ``proprietary`` and ``various`` are gone."""
    gone = found.casefold() in {"proprietary", "various", ""}
    return "other" if gone or not re.fullmatch(r"[\w\-.+]+", found) else found


def _title(source_id: str, recipe: Recipe, gate: Gate, *, fallback: bool) -> str:
    notes = []
    if recipe.method != NETWORK_METHOD:
        notes.append(f"{'classical fallback' if fallback else 'classical'}: {recipe.method}")
    if gate.verdict == "released":
        notes.append("missed the quality rule, released by a person")
    return f"{source_id}, pansharpened" + (f" ({'; '.join(notes)})" if notes else "")


def _projection(grid: PixelGrid) -> dict[str, Any]:
    crs = CRS.from_user_input(grid.crs)
    code = crs_code(crs, grid.transform, grid.shape_yx)
    named: dict[str, Any] = {"proj:code": code}
    if code is None:
        named["proj:wkt2"] = crs.to_wkt(version="WKT2_2019")
    height, width = grid.shape_yx
    a, b, c, d, e, f = grid.transform
    corners = [(a * col + b * row + c, d * col + e * row + f) for col in (0, width) for row in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return named | {
        "proj:shape": [height, width],
        "proj:transform": list(grid.transform),
        "proj:bbox": [min(xs), min(ys), max(xs), max(ys)],
    }


def _processing(staged: StagedScene, recipe: Recipe, stamp: str) -> dict[str, Any]:
    weights = f" with weights {recipe.weights}" if recipe.weights else ""
    scene = staged.scene
    return {
        "processing:software": {"pancrafter": recipe.software_version},
        "processing:version": recipe.software_version,
        "processing:datetime": stamp,
        "processing:lineage": (
            f"The {len(scene.bands)} multispectral bands of {scene.item_id} were sharpened {staged.grid.ratio}:1 to "
            f"the grid of its panchromatic band by {recipe.method}{weights}. "
            "Values are digital numbers as in the source." + (_ASSUMED_ORDER if staged.assumed_order else "")
        ),
    }


def _quality(quality: Quality) -> dict[str, Any]:
    """Measured values only: what could not be measured (None, NaN) is absent."""
    measured = quality.model_dump(exclude_none=True).items()
    return {f"pancrafter:{name}": value for name, value in measured if isinstance(value, str) or math.isfinite(value)}


def _alignment(staged: StagedScene) -> dict[str, Any]:
    return {
        "ratio": staged.grid.ratio,
        "phase_yx": list(staged.grid.phase_yx),
        "band_shift_yx": [list(shift) for shift in staged.band_shift_yx],
        "shift_confidence": list(staged.shift_confidence),
        **({} if staged.measured_mtf is None else {"measured_mtf": staged.measured_mtf, "mtf_shape": staged.mtf_shape}),
    }


def links_up(collection_id: str) -> list[pystac.Link]:
    """From an item, at its place in the output catalog, to its collection and the root."""
    collection = ("../collection.json", pystac.MediaType.JSON, collection_id)
    root = pystac.Link("root", "../../catalog.json", pystac.MediaType.JSON)
    return [root, pystac.Link("parent", *collection), pystac.Link("collection", *collection)]


def _links(staged: StagedScene, collection_id: str) -> Iterator[pystac.Link]:
    yield from links_up(collection_id)
    source = staged.scene
    yield pystac.Link("derived_from", public(source.source_href), "application/geo+json", title=source.item_id)
    for href in source.further_source_hrefs:
        yield pystac.Link("derived_from", public(href), "application/geo+json")
    yield pystac.Link(
        "describedby",
        f"../../schemas/{SCHEMA_FILE}",
        "application/schema+json",
        title="Meaning of the pancrafter: properties",
    )


def _stac_asset(asset: AssetFile, grid: PixelGrid, bands: Sequence[BandSpec]) -> pystac.Asset:
    fields: dict[str, Any] = {"file:size": asset.size_bytes, "file:checksum": asset.checksum}
    if asset.raster is None:
        fields |= {"proj:code": None, "proj:shape": list(asset.shape_yx)}
    else:
        fields |= _raster_fields(asset.raster, grid)
        if asset.key == SHARPENED:
            fields["bands"] = [_band(band, asset.raster, index) for index, band in enumerate(bands)]
            fields |= _common_scale(asset.raster)
        if asset.key == QUALITY:
            fields["bands"] = [_quality_band(asset.raster)]
        if asset.key == MASK:
            fields["classification:bitfields"] = [_bitfield(reason) for reason in Reason]
    return pystac.Asset(
        href=asset.path, title=asset.title, media_type=asset.media_type, roles=list(asset.roles), extra_fields=fields
    )


def _raster_fields(info: CogInfo, grid: PixelGrid) -> dict[str, Any]:
    gsd = ground_sample_distance_m(info.grid)
    fields: dict[str, Any] = {
        "gsd": gsd,
        "data_type": info.dtype,
        "raster:sampling": "area",
        "raster:spatial_resolution": gsd,
    }
    if info.nodata is not None:
        fields["nodata"] = json_number(info.nodata)
    if info.grid != grid:
        fields |= _projection(info.grid)
    return fields


def _common_scale(info: CogInfo) -> dict[str, Any]:
    """Scale and offset of the asset where all bands share them; they are also given per band."""
    found: dict[str, Any] = {}
    for name, values in (("raster:scale", info.scale), ("raster:offset", info.offset)):
        if values is not None and len(set(values)) == 1:
            found[name] = values[0]
    return found


def _band(band: BandSpec, info: CogInfo, index: int) -> dict[str, Any]:
    common = band.common_name if band.common_name in _EO_COMMON_NAMES else None
    entry = band_object(band.name, common, band.center_um, band.fwhm_um)
    entry |= {"raster:scale": info.scale[index]} if info.scale else {}
    entry |= {"raster:offset": info.offset[index]} if info.offset else {}
    entry |= _statistics(info, index)
    if not band.in_pan:
        entry["description"] = "The panchromatic band does not cover this band: fine detail in it is inferred."
    return entry


def band_object(name: str, common_name: str | None, center_um: float | None, fwhm_um: float | None) -> dict[str, Any]:
    """What STAC says of a band, as far as it is known."""
    facts = {
        "eo:common_name": common_name,
        "eo:center_wavelength": center_um,
        "eo:full_width_half_max": fwhm_um,
    }
    return {"name": name} | {field: value for field, value in facts.items() if value is not None}


def _quality_band(info: CogInfo) -> dict[str, Any]:
    return {"name": info.band_names[0], "description": _QUALITY_TITLE, **_statistics(info, 0)}


def _statistics(info: CogInfo, index: int) -> dict[str, Any]:
    """Of one band, by STAC's names; nothing where no pixel is valid."""
    found = info.statistics[index]
    return {} if found is None else {"statistics": found.model_dump()}


def _bitfield(reason: Reason) -> dict[str, Any]:
    name = str(reason.name).lower()
    return {
        "name": name,
        "description": _REASON_TEXT[reason],
        "offset": reason.value.bit_length() - 1,
        "length": 1,
        "classes": [{"value": 0, "name": "no"}, {"value": 1, "name": name, "description": _REASON_TEXT[reason]}],
    }


def json_number(value: float) -> float | int | str:
    """JSON has no NaN or infinity; STAC spells them as strings. Readers take integers of 64 bits at most."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return int(value) if float(value).is_integer() and abs(value) < 2**63 else value


def extensions_used(item: pystac.Item) -> list[str]:
    """Addresses of the extensions whose fields the item really has: declared without a field they make it invalid."""
    prefixes = {name: name for name in _EXTENSIONS} | {"projection": "proj"}
    text = json.dumps(item.properties) + json.dumps([asset.to_dict() for asset in item.assets.values()])
    used = {name for name, prefix in prefixes.items() if f'"{prefix}:' in text}
    used |= {"version"} & item.properties.keys()  # its fields have no prefix
    return [address for name, address in _EXTENSIONS.items() if name in used]
