"""Source files as their headers describe them: grid, type, nodata, scaling; metadata only where a header is silent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import calculate_default_transform, transform_bounds

from pancrafter.access import OPEN_TO_ALL, Access
from pancrafter.crs import crs_code
from pancrafter.errors import GridMismatchError, InvalidSceneError
from pancrafter.grid import MAX_RATIO_ERROR, aligned_ms_grid, grid_bounds, needs_resampling, pair_grids, same_pixels
from pancrafter.opening import GDAL_OPTIONS, PLAIN_FORMATS, READ_ERRORS, open_source, read_failure, signed_anew
from pancrafter.sensors import SensorContract
from pancrafter.types import AssetRef, PairGrid, PixelGrid, Scene

MAX_PIXELS = 20_000_000_000
"""The largest real images have 3e9 pixels (a Pléiades strip)."""

MAX_BLOCK_BYTES = 512 * 2**20
"""GDAL allocates whole blocks: a file with one block per image would need it all at once."""

MAX_EXPANSION = 2000
"""Deflate reaches 1032 at most; beyond this a file is empty or a decompression bomb."""

_AT_HAND_BLOCK_PX = 2048
"""Widest block of a file that is read in place: of wider strips, a window would decode far more than it covers."""

_REAL_TYPES = ("uint", "int", "float")  # GDAL has complex integers too, which NumPy does not know


@dataclass(frozen=True)
class Source:
    """What the header of one file says about the bands we read from it."""

    scene: str
    asset: str
    href: str
    indexes: tuple[int, ...]
    positions: tuple[int, ...]
    """Where each band goes in the scene's band order."""
    grid: PixelGrid
    crs_wkt: str
    dtype: str
    nodata: tuple[float | None, ...]
    masked: bool
    alpha: int | None
    """Number of the band that is 0 where the others were not measured."""
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    access: Access = OPEN_TO_ALL
    at_hand: bool = False
    """Whether any window can be read again for the cost of its pixels: a local GeoTIFF of small blocks."""
    warped: bool = False
    """Whether ``grid`` is not the file's own: pixels are then interpolated to it while reading."""
    assumed: bool = False
    """Whether neither item nor header says which of the bands is which."""


@dataclass(frozen=True)
class Sources:
    """The files of a scene; those of MS are in the order of their first bands and share one grid."""

    pan: Source
    ms: tuple[Source, ...]


def read_headers(scene: Scene, contract: SensorContract, access: Access) -> Sources:
    """Open every file of a scene and describe it; no pixel is read.

    Raises:
        InvalidSceneError: A file is not what the item or the contract says, or cannot be used; it is named.
        TransientReadError: A file could not be read now.
    """
    pan = _read_header(scene, [(0, scene.pan)], contract, access)
    files: dict[str, list[tuple[int, AssetRef]]] = {}
    for position, asset in enumerate(scene.ms):
        files.setdefault(asset.href, []).append((position, asset))
    ms = tuple(_read_header(scene, assets, contract, access) for assets in files.values())
    for source in ms[1:]:
        if not same_pixels(source.grid, ms[0].grid):
            raise InvalidSceneError(
                f"its grid is {_describe(source.grid)}, that of {ms[0].asset} is {_describe(ms[0].grid)}, expected one "
                "grid for all MS bands; resample the bands to a common grid",
                scene=scene.key,
                asset=source.asset,
            )
    return Sources(pan, ms)


def _read_header(scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract, access: Access) -> Source:
    key, href = assets[0][1].key, assets[0][1].href
    try:
        # refused below, with the asset's name
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            return signed_anew(lambda: _describe_file(scene, assets, contract, access), href, access)
    except READ_ERRORS as err:
        failure = read_failure(err, scene.key, key, href, what="its header")
    raise failure


def _describe_file(
    scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract, access: Access
) -> Source:
    handle = open_source(assets[0][1].href, access, scene.key, assets[0][1].key)
    with rasterio.Env(**GDAL_OPTIONS, **handle.options), closing(handle):
        return replace(_describe_source(handle.dataset, scene, assets, contract), access=access)


def _describe_source(
    dataset: Any, scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract
) -> Source:
    key, href = assets[0][1].key, assets[0][1].href
    for _, asset in assets:
        if asset.band > dataset.count:
            raise InvalidSceneError(
                f"band {asset.band} was expected, the file has {dataset.count}; "
                + ("name its bands in the item" if asset.assumed else "check the item's band list"),
                scene=scene.key,
                asset=asset.key,
            )
    unnamed = len(assets) > 1 and all(asset.assumed for _, asset in assets)
    named = _named_in_header(dataset, scene, assets, contract) if unnamed else None
    indexes = named or _band_numbers(dataset, scene, assets)
    dtypes = {dataset.dtypes[index - 1] for index in indexes}
    if len(dtypes) > 1 or not next(iter(dtypes)).startswith(_REAL_TYPES):
        raise InvalidSceneError(
            f"pixel types are {sorted(dtypes)}, expected one real number type; convert the file to uint16",
            scene=scene.key,
            asset=key,
        )
    if fault := _absurd(dataset):
        raise InvalidSceneError(f"{fault}; the file is damaged or malicious", scene=scene.key, asset=key)
    if dataset.crs is None or dataset.transform.is_identity:
        raise GridMismatchError(
            f"the header has {_placed_by(dataset)}, expected a projected or geographic grid; orthorectify PAN and MS "
            "first (for example gdalwarp, with -rpc for RPCs)",
            scene=scene.key,
            asset=key,
        )
    if any(dataset.colorinterp[index - 1] == ColorInterp.palette for index in indexes):
        raise InvalidSceneError(
            "its pixels are places in a palette, expected DN; expand it: gdal_translate -expand rgb",
            scene=scene.key,
            asset=key,
        )
    masked = any(has_mask(dataset.mask_flag_enums[index - 1]) for index in indexes)
    alpha = next((index for index in alpha_bands(dataset) if index not in indexes), None)
    dtype = dtypes.pop()
    said = {asset.band: asset for _, asset in assets}
    told = [said.get(index, AssetRef(key=key, href=href)) for index in indexes]
    elsewhere = [None if masked or alpha is not None else _nodata_beside(ref, contract, dtype) for ref in told]
    scaling = [_scaling(dataset, index, ref) for index, ref in zip(indexes, told, strict=True)]
    return Source(
        scene=scene.key,
        asset=key,
        href=href,
        indexes=indexes,
        positions=tuple(position for position, _ in assets),
        grid=PixelGrid(
            crs=crs_code(dataset.crs, dataset.transform, dataset.shape) or dataset.crs.to_wkt(),
            transform=tuple(dataset.transform)[:6],
            shape_yx=dataset.shape,
        ),
        crs_wkt=dataset.crs.to_wkt(),
        dtype=dtype,
        nodata=tuple(
            value if header is None else float(header)
            for header, value in zip((dataset.nodatavals[index - 1] for index in indexes), elsewhere, strict=True)
        ),
        masked=masked,
        alpha=alpha,
        scale=tuple(scale for scale, _ in scaling),
        offset=tuple(offset for _, offset in scaling),
        at_hand=dataset.driver == "GTiff"
        and Path(dataset.name).is_file()
        and dataset.block_shapes[0][1] <= _AT_HAND_BLOCK_PX,
        assumed=unnamed and named is None,
    )


def _named_in_header(
    dataset: Any, scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract
) -> tuple[int, ...] | None:
    """Where the file has its bands by its header; None where that does not name each of them once."""
    named = [(text and contract.find_band(text)) or None for text in dataset.descriptions]
    wanted = contract.subset(scene.bands[position] for position, _ in assets)
    return tuple(named.index(band) + 1 for band in wanted) if all(named.count(band) == 1 for band in wanted) else None


def _band_numbers(dataset: Any, scene: Scene, assets: list[tuple[int, AssetRef]]) -> tuple[int, ...]:
    """Where the file has its bands by the item, or by the sensor's usual order."""
    numbers = tuple(asset.band for _, asset in assets)
    image = set(dataset.indexes) - (set(alpha_bands(dataset)) - set(numbers))
    if all(asset.assumed for _, asset in assets) and len(image) > len(numbers):
        raise InvalidSceneError(
            f"it has {len(image)} bands, of which neither the asset nor the header says which is which; expected "
            f"{len(numbers)}; name them in the item's asset",
            scene=scene.key,
            asset=assets[0][1].key,
        )
    return numbers


def has_mask(flags: Sequence[MaskFlags]) -> bool:
    """Whether a band has a mask beside its pixels; alpha is read as the band it is, for GDAL sees it only at times."""
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def alpha_bands(dataset: Any) -> list[int]:  # Any: rasterio is untyped
    """Numbers of the bands that the header calls alpha; those that a scene uses are image all the same."""
    return [
        index for index, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind == ColorInterp.alpha
    ]


def _absurd(dataset: Any) -> str | None:  # Any: rasterio is untyped
    """Why a header cannot be true, found before anything is allocated for its pixels."""
    rows, cols = dataset.shape
    if rows * cols > MAX_PIXELS:
        return f"the header claims {rows} x {cols} pixels, expected at most {MAX_PIXELS:.0e}"
    itemsize = max(np.dtype(name).itemsize for name in dataset.dtypes)
    interleaved = dataset.count if str(dataset.profile.get("interleave")) == "pixel" else 1
    block = max(math.prod(shape) for shape in dataset.block_shapes) * itemsize * interleaved
    if block > MAX_BLOCK_BYTES:
        return (
            f"one block of the file holds {block / 2**20:.0f} MiB, expected at most {MAX_BLOCK_BYTES / 2**20:.0f} MiB"
        )
    claimed = rows * cols * itemsize * dataset.count
    real = _size_on_disk(dataset)
    if real is not None and claimed > MAX_EXPANSION * real and claimed > MAX_BLOCK_BYTES:
        return f"the header claims {claimed / 2**20:.0f} MiB of pixels, the file holds {real} bytes"
    return None


def _size_on_disk(dataset: Any) -> int | None:  # Any: rasterio is untyped
    """Bytes of a local file, and of the .ige in which an .img may keep its pixels.

    None for formats that only a user himself can name: a VRT and others have their pixels elsewhere. GDAL's list of a
    dataset's files must not be asked for: it follows what stands in side files to other files and hosts.
    """
    path = Path(dataset.name)
    if dataset.driver not in PLAIN_FORMATS or not path.is_file():
        return None
    beside = path.with_suffix(".ige")
    return path.stat().st_size + (beside.stat().st_size if dataset.driver == "HFA" and beside.is_file() else 0)


def _placed_by(dataset: Any) -> str:  # Any: rasterio is untyped
    """How a file without a grid says where it lies: its product is in sensor geometry."""
    if dataset.gcps[0]:
        return "ground control points only"
    return "RPCs only" if dataset.rpcs else "no CRS or geotransform"


def _nodata_beside(ref: AssetRef, contract: SensorContract, dtype: str) -> float | None:
    """Nodata of a band whose header has none: the item's, if pixels can have that value, else the contract's."""
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return ref.nodata if ref.nodata is not None and limits.min <= ref.nodata <= limits.max else contract.nodata


def _scaling(dataset: Any, index: int, ref: AssetRef) -> tuple[float, float]:  # Any: rasterio is untyped
    """Scale and offset of a band by the header or, where that has none, by the item."""
    of_header = (dataset.scales[index - 1], dataset.offsets[index - 1])
    return of_header if of_header != (1, 0) else (ref.scale or 1.0, ref.offset or 0.0)


def on_common_grid(scene: Scene, sources: Sources, contract: SensorContract) -> Sources:
    """The sources as they are, or MS on a grid of exactly the contract's ratio, to which it is resampled once.

    The latter for ratios like 3.997 and, if the contract allows it, for another CRS.
    """
    pan, ms = sources.pan.grid, sources.ms[0].grid
    if pan.crs != ms.crs and contract.warp_ms:
        bounds = _bounds_in_pan_crs(scene, sources, contract)
    elif needs_resampling(pan, ms, contract.ratio):
        bounds = grid_bounds(ms)
    else:
        return sources
    target = aligned_ms_grid(pan, bounds, contract.ratio)
    for source in sources.ms:
        if len(set(map(str, source.nodata))) > 1:  # as words, for NaN is equal to no other NaN
            raise InvalidSceneError(
                f"MS must be resampled, but its bands have different nodata values {source.nodata}; declare one",
                scene=scene.key,
                asset=source.asset,
            )
    return Sources(sources.pan, tuple(replace(source, grid=target, warped=True) for source in sources.ms))


def _bounds_in_pan_crs(scene: Scene, sources: Sources, contract: SensorContract) -> tuple[float, float, float, float]:
    pan, ms = sources.pan, sources.ms[0]
    rows, cols = ms.grid.shape_yx
    affine = rasterio.Affine(*ms.grid.transform)
    corners = [affine @ corner for corner in ((0, 0), (cols, 0), (0, rows), (cols, rows))]
    (left, *_, right), (bottom, *_, top) = (sorted(values) for values in zip(*corners, strict=True))
    try:
        suited, _, _ = calculate_default_transform(ms.crs_wkt, pan.crs_wkt, cols, rows, left, bottom, right, top)
        found = abs(suited.a / pan.grid.transform[0])
        bounds: tuple[float, float, float, float] = transform_bounds(
            ms.crs_wkt, pan.crs_wkt, left, bottom, right, top, densify_pts=101
        )
    except READ_ERRORS as err:
        raise GridMismatchError(
            f"MS cannot be brought to the CRS of PAN ({err}); check the CRS of both files",
            scene=scene.key,
            asset=ms.asset,
        ) from err
    if abs(found / contract.ratio - 1) > MAX_RATIO_ERROR:
        raise GridMismatchError(
            f"in the CRS of PAN, MS pixels are {found:.4g} times the PAN pixels, expected {contract.ratio}; check the "
            "sensor contract",
            scene=scene.key,
            asset=ms.asset,
        )
    return bounds


def matched_grids(scene: Scene, sources: Sources, ratio: int) -> PairGrid:
    """The part that PAN and MS share, and where MS pixels lie on it (``grid.pair_grids``), errors with the assets."""
    try:
        return pair_grids(sources.pan.grid, sources.ms[0].grid, ratio)
    except GridMismatchError as err:
        raise GridMismatchError(
            err.message, scene=scene.key, asset=f"{sources.pan.asset} and {sources.ms[0].asset}"
        ) from err


def output_dtype(sources: Sources) -> str:
    """Type of the published DN: the sources' where that is uint8 or uint16, uint16 for every other.

    PAN's counts too: the scene's ceiling is at most the type's, and fits leave out what of PAN has reached it.
    """
    dtype = np.result_type(*(source.dtype for source in (sources.pan, *sources.ms))).name
    return dtype if dtype in ("uint8", "uint16") else "uint16"


def output_nodata(sources: Sources, dtype: str) -> float | None:
    """The source's nodata value, MS before PAN, where the output type can hold it; -9999 or NaN cannot be kept."""
    declared = (source.nodata[0] for source in (*sources.ms, sources.pan))
    limit = int(np.iinfo(dtype).max)
    return next((value for value in declared if value is not None and value in range(limit + 1)), None)


def per_band(sources: Sequence[Source], field: str, *, default: float) -> tuple[float, ...] | None:
    """A field of the headers in the order of the scene's bands; None where every band has the default."""
    by_position = {
        position: value
        for source in sources
        for position, value in zip(source.positions, getattr(source, field), strict=True)
    }
    values = tuple(by_position[position] for position in sorted(by_position))
    return None if all(value == default for value in values) else values


def _describe(grid: PixelGrid) -> str:
    a, _, c, _, e, f = grid.transform
    return (
        f"{grid.shape_yx[0]} x {grid.shape_yx[1]} px of ({a:.6g}, {e:.6g}) at ({c:.10g}, {f:.10g}) in {grid.crs[:40]}"
    )
