"""A small STAC archive of simulated acquisitions, written the way different producers write theirs.

Five items: three that can be sharpened (8 bands 4:1, 4 bands 4:1 with a rotated footprint, Landsat-like 2:1 on a
centre-aligned grid of 2N - 1 pixels), one that the vendor has already sharpened, and one whose MS file is cut off.
Truth lies in ``truth/<item id>.tif`` beside the catalog, for evaluation only; no item refers to it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import shapely.geometry
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.shutil import copy as raster_copy
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from pancrafter.errors import SinkError
from pancrafter.sensors import BandSpec, SensorContract, get_contract
from pancrafter.simulate.imaging import (
    Pair,
    SimulatedPair,
    image_scene,
    pan_only_wavelengths,
    random_model,
    random_shift_field,
    truth_wavelengths,
)
from pancrafter.simulate.truth import make_truth

ARCHIVE_FORMAT = 1
"""Raised when the same seed would no longer give the same archive."""

MARK = "pancrafter:simulation"
"""Field of ``catalog.json`` that says how the archive was made and which files belong to it."""

TRUTH_FOLDER = "truth"

_OVERSAMPLE = 2
_MS_INSET_PX = (
    3.0  # the MS footprint ends this many PAN pixels inside the PAN footprint, as its detectors lie elsewhere
)
_TRUNCATED_SHARE = 0.6  # of the file: header and directory survive, the full-resolution tiles do not
_COG = {
    "driver": "COG",
    "compress": "ZSTD",
    "level": 9,
    "predictor": 2,
    "blocksize": 256,
    "overview_resampling": "average",
}
_EXTENSIONS = {name: f"https://stac-extensions.github.io/{name}/schema.json" for name in (
    "projection/v2.0.0", "eo/v2.0.0", "raster/v2.0.0", "eo/v1.1.0", "projection/v1.2.0", "file/v2.1.0")}  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """A rotated rectangle of valid pixels around the middle of the PAN image; lengths are shares of its sides."""

    angle_deg: float
    half_width: float
    half_height: float

    def corners(self, shape_yx: tuple[int, int]) -> list[Pair]:
        """Corners (x, y) in PAN pixel-edge coordinates, before they are cut at the image border."""
        height, width = shape_yx
        angle = np.deg2rad(self.angle_deg)
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        offsets = [(sx * self.half_width * width, sy * self.half_height * height) for sx, sy in signs]
        return [
            (
                float(width / 2 + u * np.cos(angle) - v * np.sin(angle)),
                float(height / 2 + u * np.sin(angle) + v * np.cos(angle)),
            )
            for u, v in offsets
        ]

    def covers(
        self, rows: NDArray[Any], columns: NDArray[Any], shape_yx: tuple[int, int], inset_px: float
    ) -> NDArray[np.bool_]:
        """Which pixel centres (PAN indices, one per row and column) lie at least ``inset_px`` inside."""
        height, width = shape_yx
        angle = np.deg2rad(self.angle_deg)
        y, x = rows[:, None] + 0.5 - height / 2, columns[None, :] + 0.5 - width / 2
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        inside = (np.abs(u) <= self.half_width * width - inset_px) & (np.abs(v) <= self.half_height * height - inset_px)
        return np.asarray(inside)


@dataclass(frozen=True)
class SceneRecipe:
    """Everything that makes one item of the archive."""

    item_id: str
    collection: str
    sensor: str
    platform: str
    producer: Callable[[_Frame, SimulatedPair], pystac.Item]
    style: str
    pan_shape: tuple[int, int]
    pan_gsd_m: float
    acquired: datetime
    epsg: int
    origin_xy: Pair
    band_shift_yx: tuple[Pair, ...]
    field_px: float
    phase: Pair | None = None
    footprint: Footprint | None = None
    instruments: tuple[str, ...] = ()
    with_truth: bool = True
    truncated_asset: str | None = None


@dataclass(frozen=True)
class _Frame:
    """A recipe at the place where its files go, with the grids that follow from it."""

    recipe: SceneRecipe
    contract: SensorContract
    folder: Path

    @property
    def crs(self) -> CRS:
        return CRS.from_epsg(self.recipe.epsg)

    @property
    def ms_transform(self) -> Affine:
        size = self.recipe.pan_gsd_m * self.contract.ratio
        return Affine(size, 0, self.recipe.origin_xy[0], 0, -size, self.recipe.origin_xy[1])

    @property
    def pan_transform(self) -> Affine:
        """The PAN grid: MS pixel 0 has its centre at PAN index ``phase``."""
        size, ratio = self.recipe.pan_gsd_m, self.contract.ratio
        phase_y, phase_x = self.recipe.phase or ((ratio - 1) / 2,) * 2
        x, y = self.recipe.origin_xy
        return Affine(size, 0, x + size * (ratio / 2 - phase_x - 0.5), 0, -size, y - size * (ratio / 2 - phase_y - 0.5))

    def outline(self) -> dict[str, Any]:
        """Footprint as GeoJSON polygon, degrees."""
        height, width = self.recipe.pan_shape
        area = shapely.box(0, 0, width, height)
        if self.recipe.footprint:
            area = area.intersection(shapely.Polygon(self.recipe.footprint.corners(self.recipe.pan_shape)))
        ring = [self.pan_transform @ point for point in shapely.get_coordinates(area.normalize())]
        projected = {"type": "Polygon", "coordinates": [[(float(x), float(y)) for x, y in ring]]}
        lonlat = transform_geom(self.crs, CRS.from_epsg(4326), projected, precision=7)
        return {"type": "Polygon", "coordinates": [[list(point) for point in lonlat["coordinates"][0]]]}


# ----------------------------------------------------------------------------------------------------------------------
# Writing the archive.


def simulate_archive(
    directory: Path | str,
    seed: int = 0,
    *,
    scenes: Sequence[SceneRecipe] | None = None,
    on_scene: Callable[[str], None] | None = None,
) -> Path:
    """Write the sample archive, whole or not at all; an archive of the same seed that is already there stays as it is.

    Args:
        directory: Folder to create; it may exist if it is empty or holds this very archive.
        seed: The same seed gives the same pixels.
        scenes: What to make; the sample scenes when None.
        on_scene: Called with the id of each item before it is made.

    Returns:
        Path of ``catalog.json``.

    Raises:
        SinkError: The folder holds something else, or cannot be written.
    """
    target = Path(directory).absolute()
    scenes = sample_scenes() if scenes is None else scenes
    if _holds_archive(target, seed, scenes):
        return target / "catalog.json"
    attempt = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        attempt = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        _write_archive(attempt, seed, scenes, on_scene)
        attempt.chmod(0o755)
        attempt.replace(target)
    except (OSError, RasterioError, CPLE_BaseError) as err:
        raise SinkError(
            f"{target}: cannot write the sample archive ({err}); free space or choose another folder"
        ) from err
    finally:
        if attempt is not None:
            shutil.rmtree(attempt, ignore_errors=True)
    return target / "catalog.json"


def _holds_archive(target: Path, seed: int, scenes: Sequence[SceneRecipe]) -> bool:
    """Whether the archive is already there, complete; False for a free place.

    Raises:
        SinkError: Something else is there.
    """
    if target.exists() and not target.is_dir():
        raise SinkError(f"{target}: found a file, expected a folder to create; choose another place")
    if not target.exists() or not any(target.iterdir()):
        return False
    mark = _read_mark(target / "catalog.json")
    if mark is None:
        raise SinkError(f"{target}: the folder is not empty and holds no simulated archive; choose an empty folder")
    if (mark.get("seed"), mark.get("format")) != (seed, ARCHIVE_FORMAT):
        raise SinkError(
            f"{target}: found a simulated archive of seed {mark.get('seed')}, format {mark.get('format')}, expected "
            f"seed {seed}, format {ARCHIVE_FORMAT}; choose another folder or delete this one"
        )
    if mark.get("sound", False) != _are_sound(scenes):
        found, wanted = ("no file", "a file") if mark.get("sound", False) else ("a file", "no file")
        raise SinkError(
            f"{target}: found a simulated archive with {found} damaged on purpose, expected one with {wanted} damaged; "
            "choose another folder or delete this one"
        )
    for name, size in mark["files"].items():
        path = target / name
        found_size = path.stat().st_size if path.is_file() else None
        if found_size != size:
            raise SinkError(
                f"{path}: found {found_size or 'no'} bytes, expected {size}; delete the archive and simulate again"
            )
    return True


def _are_sound(scenes: Sequence[SceneRecipe]) -> bool:
    return not any(recipe.truncated_asset for recipe in scenes)


def _read_mark(catalog: Path) -> dict[str, Any] | None:
    try:
        mark = pystac.StacIO.default().read_json(str(catalog)).get(MARK)
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and isinstance(mark.get("files"), dict) else None


def _write_archive(
    root: Path, seed: int, scenes: Sequence[SceneRecipe], on_scene: Callable[[str], None] | None
) -> None:
    catalog = pystac.Catalog(
        id="pancrafter-sample",
        title="Simulated PAN and MS scenes",
        description="Simulated acquisitions for trying out pancrafter; no satellite took them.",
    )
    items: dict[str, list[pystac.Item]] = {}
    for number, recipe in enumerate(scenes):
        if on_scene:
            on_scene(recipe.item_id)
        rng = np.random.default_rng([seed, number])
        items.setdefault(recipe.collection, []).append(_write_scene(root, recipe, rng))
    for name, members in items.items():
        catalog.add_child(_collection(name, members))
    catalog.normalize_hrefs(str(root))
    rasters = [path for path in sorted(root.rglob("*")) if path.suffix.lower() == ".tif"]
    files = {path.relative_to(root).as_posix(): path.stat().st_size for path in rasters}
    catalog.extra_fields[MARK] = {"seed": seed, "format": ARCHIVE_FORMAT, "sound": _are_sound(scenes), "files": files}
    catalog.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)


def _collection(name: str, items: Sequence[pystac.Item]) -> pystac.Collection:
    collection = pystac.Collection(
        id=name,
        title=f"Simulated {name}",
        description=f"Simulated acquisitions in the style of {name}; no satellite took them.",
        extent=pystac.Extent.from_items(items),
        license="CC0-1.0",
    )
    collection.add_items(items)
    return collection


def _write_scene(root: Path, recipe: SceneRecipe, rng: np.random.Generator) -> pystac.Item:
    """Simulate one recipe, write its files, and describe them."""
    frame = _Frame(recipe, get_contract(recipe.sensor), root / recipe.collection / recipe.item_id)
    frame.folder.mkdir(parents=True)
    pair = _masked(frame, acquire(recipe, frame.contract, rng))
    if recipe.with_truth:
        (root / TRUTH_FOLDER).mkdir(exist_ok=True)
        truth = np.where(pair.pan > 0, np.clip(np.rint(pair.truth), 1, frame.contract.dn_max), 0).astype(np.uint16)
        write_cog(root / TRUTH_FOLDER / f"{recipe.item_id}.tif", truth, frame.pan_transform, frame.crs)
    item = recipe.producer(frame, pair)
    item.set_self_href(str(frame.folder / f"{recipe.item_id}.json"))
    if recipe.truncated_asset:
        path = frame.folder / item.assets[recipe.truncated_asset].href
        content = path.read_bytes()
        path.write_bytes(content[: int(_TRUNCATED_SHARE * len(content))])
    return item


def acquire(recipe: SceneRecipe, contract: SensorContract, rng: np.random.Generator) -> SimulatedPair:
    """Draw the surface of a recipe and image it, without nodata border."""
    bands, pan_only = contract.bands[: len(recipe.band_shift_yx)], pan_only_wavelengths(contract)
    height, width = (n * _OVERSAMPLE for n in recipe.pan_shape)
    wavelengths = truth_wavelengths(bands, pan_only)
    surface = make_truth(rng, (height, width), wavelengths, recipe.pan_gsd_m / _OVERSAMPLE, style=recipe.style)
    drawn = random_model(rng, contract, bands, phase=recipe.phase, oversample=_OVERSAMPLE, pan_only_um=pan_only)
    field = random_shift_field(rng, recipe.field_px)
    return image_scene(surface, replace(drawn, shift_yx=recipe.band_shift_yx, field=field), rng)


def _masked(frame: _Frame, pair: SimulatedPair) -> SimulatedPair:
    """Zero (nodata) outside the footprint. Every valid MS pixel lies wholly on valid PAN pixels."""
    footprint, ratio, shape = frame.recipe.footprint, frame.contract.ratio, frame.recipe.pan_shape
    if footprint is None:
        return pair
    phase_y, phase_x = frame.recipe.phase or ((ratio - 1) / 2,) * 2
    pan_valid = footprint.covers(np.arange(shape[0]), np.arange(shape[1]), shape, 0.0)
    rows = ratio * np.arange(pair.ms.shape[1]) + phase_y
    columns = ratio * np.arange(pair.ms.shape[2]) + phase_x
    ms_valid = footprint.covers(rows, columns, shape, _MS_INSET_PX + ratio * 0.75)
    return replace(
        pair,
        pan=np.where(pan_valid, pair.pan, 0).astype(np.uint16),
        ms=np.where(ms_valid, pair.ms, 0).astype(np.uint16),
    )


def write_cog(path: Path, values: NDArray[np.uint16], transform: Affine, crs: CRS) -> None:
    """Write (y, x) or (band, y, x) as a cloud optimized GeoTIFF, ZSTD, with overviews, nodata 0."""
    bands = values if values.ndim == 3 else values[None]
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2],
        "crs": crs, "transform": transform, "nodata": 0, "photometric": "MINISBLACK",
    }  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(bands)
        with memory.open() as raster:
            raster_copy(raster, str(path), **_COG)


# ----------------------------------------------------------------------------------------------------------------------
# How producers describe their files.


def _item(frame: _Frame, extensions: Sequence[str], properties: Mapping[str, Any]) -> pystac.Item:
    outline = frame.outline()
    recipe = frame.recipe
    described: dict[str, Any] = {
        "title": f"Simulated {frame.contract.title} scene",
        "platform": recipe.platform,
        "license": "CC0-1.0",
        "providers": [{"name": "pancrafter simulator", "roles": ["producer"]}],
        **({"instruments": list(recipe.instruments)} if recipe.instruments else {}),
        **properties,
    }
    return pystac.Item(
        id=recipe.item_id,
        geometry=outline,
        bbox=[round(float(v), 7) for v in shapely.geometry.shape(outline).bounds],
        datetime=recipe.acquired,
        properties=described,
        stac_extensions=[_EXTENSIONS[name] for name in extensions],
    )


def _asset(path: Path, title: str, fields: Mapping[str, Any]) -> pystac.Asset:
    return pystac.Asset(
        href=path.name, title=title, media_type=pystac.MediaType.COG, roles=["data"], extra_fields=dict(fields)
    )


def _grid(transform: Affine, shape_yx: Sequence[int]) -> dict[str, Any]:
    return {"proj:shape": list(shape_yx[-2:]), "proj:transform": [float(v) for v in tuple(transform)[:6]]}


def _label(band: BandSpec) -> str:
    """The band's name inside files: the first of its spellings in the contract."""
    return band.asset_keys[0] if band.asset_keys else band.name


def _ms_bands(frame: _Frame, count: int, prefix: str = "") -> list[dict[str, Any]]:
    return [{"name": _label(band), **_wavelengths(band, prefix)} for band in frame.contract.bands[:count]]


def _wavelengths(band: BandSpec, prefix: str = "") -> dict[str, Any]:
    fields = {"common_name": band.common_name, "center_wavelength": band.center_um, "full_width_half_max": band.fwhm_um}
    return {f"{prefix}{key}": value for key, value in fields.items() if value is not None}


def bundle_item(frame: _Frame, pair: SimulatedPair) -> pystac.Item:
    """STAC 1.1 with ``bands``: PAN and MS in one file each, grid, gsd and value type on every asset."""
    item = _item(
        frame,
        ("projection/v2.0.0", "eo/v2.0.0", "raster/v2.0.0", "file/v2.1.0"),
        {"gsd": frame.recipe.pan_gsd_m, "proj:code": f"EPSG:{frame.recipe.epsg}", "constellation": "worldview"},
    )
    pan_band = {"name": "BAND_P", "description": "Pan"}
    for key, title, values, transform, bands in (
        ("pan_analytic", "Panchromatic Image", pair.pan, frame.pan_transform, [pan_band]),
        ("ms_analytic", "Multispectral Image", pair.ms, frame.ms_transform, _ms_bands(frame, len(pair.ms), "eo:")),
    ):
        path = frame.folder / f"{frame.recipe.item_id}-{key.removesuffix('_analytic')}.tif"
        write_cog(path, values, transform, frame.crs)
        fields = {
            **_grid(transform, values.shape),
            "data_type": "uint16",
            "nodata": 0,
            "gsd": transform.a,
            "raster:spatial_resolution": transform.a,
            "bands": bands,
            "file:size": path.stat().st_size,
        }
        item.add_asset(key, _asset(path, title, fields))
    return item


def plain_item(frame: _Frame, pair: SimulatedPair) -> pystac.Item:
    """Short keys ``pan`` and ``ms``, older ``eo:bands``, gsd per asset, no value types."""
    item = _item(
        frame,
        ("projection/v2.0.0", "eo/v1.1.0"),
        {"gsd": frame.recipe.pan_gsd_m, "proj:code": f"EPSG:{frame.recipe.epsg}", "eo:cloud_cover": 0},
    )
    for key, values, transform, bands in (
        ("pan", pair.pan, frame.pan_transform, [{"name": "P", "common_name": "pan"}]),
        ("ms", pair.ms, frame.ms_transform, _ms_bands(frame, len(pair.ms))),
    ):
        path = frame.folder / f"{frame.recipe.item_id}_{key.upper()}.tif"
        write_cog(path, values, transform, frame.crs)
        fields = {**_grid(transform, values.shape), "gsd": transform.a, "eo:bands": bands}
        item.add_asset(key, _asset(path, f"{key.upper()} image", fields))
    return item


def landsat_item(frame: _Frame, pair: SimulatedPair) -> pystac.Item:
    """One file per band, the MS grid on the item, nothing on the assets but names, as the Landsat archive does."""
    item = _item(
        frame,
        ("projection/v1.2.0", "eo/v1.1.0"),
        {
            "gsd": frame.ms_transform.a,
            "proj:epsg": frame.recipe.epsg,
            **_grid(frame.ms_transform, pair.ms.shape),
            "eo:cloud_cover": 0,
        },
    )
    layers = [("pan", "B8", pair.pan, frame.pan_transform, {"common_name": "pan"})]
    for band, values in zip(frame.contract.bands, pair.ms, strict=False):
        layers.append((band.common_name or band.name, _label(band), values, frame.ms_transform, _wavelengths(band)))
    for key, name, values, transform, description in layers:
        path = frame.folder / f"{frame.recipe.item_id}_{name}.TIF"
        write_cog(path, values, transform, frame.crs)
        bands = [{"name": name, "gsd": transform.a, **description}]
        own_grid = _grid(transform, values.shape) if key == "pan" else {}
        item.add_asset(key, _asset(path, f"{key} band ({name})", {"eo:bands": bands, **own_grid}))
    return item


def sharpened_item(frame: _Frame, pair: SimulatedPair) -> pystac.Item:
    """A vendor's pan-sharpened product: one multi-band file at PAN resolution and neither PAN nor MS."""
    item = _item(
        frame,
        ("projection/v2.0.0", "eo/v1.1.0"),
        {"gsd": frame.recipe.pan_gsd_m, "proj:code": f"EPSG:{frame.recipe.epsg}", "constellation": "pleiades"},
    )
    path = frame.folder / f"{frame.recipe.item_id}.tif"
    write_cog(
        path, np.rint(pair.truth).clip(1, frame.contract.dn_max).astype(np.uint16), frame.pan_transform, frame.crs
    )
    bands = _ms_bands(frame, len(pair.truth))
    fields = {**_grid(frame.pan_transform, pair.truth.shape), "gsd": frame.recipe.pan_gsd_m, "eo:bands": bands}
    item.add_asset("PMS", _asset(path, "Pan-sharpened multispectral", fields))
    return item


# ----------------------------------------------------------------------------------------------------------------------
# The items of the sample archive.

_EARLY_BANDS, _LATE_BANDS = (0.35, 0.80), (0.20, -0.40)


def sample_scenes() -> tuple[SceneRecipe, ...]:
    """The items, in the order in which they are made.

    Shifts are of the size that real pairs of these sensors show: WorldView-3 bands lie on two focal plane arrays, about
    1.2 PAN pixels apart; GeoEye-1 is off by 0.6 to 0.8; Landsat is co-registered to a tenth.
    """
    return (
        SceneRecipe(
            item_id="WV03_20250412T101512_10400100A5C21E00",
            collection="worldview-3-sim",
            sensor="worldview-3",
            platform="WV03",
            producer=bundle_item,
            style="suburb",
            pan_shape=(896, 896),
            pan_gsd_m=0.4,
            acquired=datetime(2025, 4, 12, 10, 15, 12, tzinfo=UTC),
            epsg=32633,
            origin_xy=(418400.0, 5062400.0),
            band_shift_yx=(_EARLY_BANDS, _LATE_BANDS, _LATE_BANDS, _EARLY_BANDS) * 2,
            field_px=0.2,
        ),
        SceneRecipe(
            item_id="GE01_20250503T095803_1050410012D4A700",
            collection="geoeye-1-sim",
            sensor="geoeye-1",
            platform="geoeye-1",
            producer=plain_item,
            style="city",
            pan_shape=(1024, 1024),
            pan_gsd_m=0.5,
            acquired=datetime(2025, 5, 3, 9, 58, 3, tzinfo=UTC),
            epsg=32632,
            origin_xy=(655000.0, 4931000.0),
            band_shift_yx=((0.60, -0.50), (0.60, -0.50), (0.55, -0.45), (0.90, -0.10)),
            field_px=0.25,
            footprint=Footprint(angle_deg=9.0, half_width=0.49, half_height=0.52),
        ),
        SceneRecipe(
            item_id="LC09_L1TP_191029_20250621_20250621_02_T1",
            collection="landsat-c2l1-sim",
            sensor="landsat-8",
            platform="LANDSAT_9",
            producer=landsat_item,
            style="farmland",
            pan_shape=(799, 799),
            pan_gsd_m=15.0,
            acquired=datetime(2025, 6, 21, 9, 52, 40, tzinfo=UTC),
            epsg=32633,
            origin_xy=(391185.0, 5103315.0),
            band_shift_yx=((0.05, -0.08), (0.04, -0.06), (0.05, -0.05), (0.08, -0.02), (0.12, 0.04), (0.10, 0.06)),
            field_px=0.05,
            phase=(0.0, 0.0),
            footprint=Footprint(angle_deg=12.0, half_width=0.55, half_height=0.57),
            instruments=("OLI", "TIRS"),
        ),
        SceneRecipe(
            item_id="DS_PHR1B_202505171015321_FR1_PX_E012N45_0412_01766_PMS",
            collection="pleiades-sim",
            sensor="pleiades",
            platform="pleiades-1b",
            producer=sharpened_item,
            style="city",
            pan_shape=(320, 320),
            pan_gsd_m=0.5,
            acquired=datetime(2025, 5, 17, 10, 15, 32, tzinfo=UTC),
            epsg=32633,
            origin_xy=(291000.0, 5035000.0),
            band_shift_yx=((0.0, 0.0),) * 4,
            field_px=0.1,
            with_truth=False,
        ),
        SceneRecipe(
            item_id="GE01_20250608T100127_10504100130C1900",
            collection="geoeye-1-sim",
            sensor="geoeye-1",
            platform="geoeye-1",
            producer=plain_item,
            style="farmland",
            pan_shape=(512, 512),
            pan_gsd_m=0.5,
            acquired=datetime(2025, 6, 8, 10, 1, 27, tzinfo=UTC),
            epsg=32632,
            origin_xy=(661000.0, 4928000.0),
            band_shift_yx=((0.3, 0.2),) * 4,
            field_px=0.1,
            with_truth=False,
            truncated_asset="ms",
        ),
    )


def sound_scenes() -> tuple[SceneRecipe, ...]:
    """The same items with all their files whole, for a run that must end well."""
    return tuple(replace(scene, truncated_asset=None) for scene in sample_scenes())


def damaged_scenes() -> frozenset[str]:
    """Keys (collection/item) of the items whose files are damaged on purpose: a run over the archive must fail them."""
    return frozenset(f"{scene.collection}/{scene.item_id}" for scene in sample_scenes() if scene.truncated_asset)
