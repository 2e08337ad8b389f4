"""Staging: the files of a scene become one Zarr group of matched PAN and MS grids, by a Dask graph of whole shards.

The file header decides what a file is (grid, type, nodata), metadata only where the header is silent. A window that
cannot be read fails the scene; it never becomes nodata. This is the only door to the sources' pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
from dask.delayed import delayed
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform, transform_bounds
from rasterio.windows import Window as RasterWindow

from pancrafter.access import OPEN_TO_ALL, Access, reader_for
from pancrafter.bands import MeasuredBands, measure_bands
from pancrafter.errors import GridMismatchError, InvalidSceneError, TransientReadError
from pancrafter.grid import MAX_RATIO_ERROR, aligned_ms_grid, grid_bounds, needs_resampling, pair_grids
from pancrafter.sensors import SensorContract
from pancrafter.store import UNWRITTEN, BlockGrid, Mask, Pixels, SceneStore, Window, open_scene
from pancrafter.types import FORMAT_VERSION, AssetRef, PairGrid, PixelGrid, Scene, StagedScene, ValueRange

DN_LIMIT = int(np.iinfo(np.uint16).max)
"""Staged DN are uint16."""

MAX_SHARE_ABOVE_CEILING = 1e-3
"""More pixels than this above the contract's DN ceiling mean another product than the contract describes."""

RANGE_PERCENTILES = (1.0, 99.0)
"""Share of the valid pixels, in percent, below the low and the high end of a channel's value range."""

_MAX_OPEN_FILES = 16
# Windows are read once, so a small block cache does (bytes here; the default is 5 % of the machine). Dask's threads
# already use every core.
_GDAL_OPTIONS: dict[str, Any] = {"GDAL_NUM_THREADS": 1, "GDAL_CACHEMAX": 64 * 2**20}  # Any: rasterio is untyped
# A file elsewhere has no side files worth asking for, and a server that hangs must not hold a worker.
_REMOTE_OPTIONS: dict[str, Any] = {  # Any: rasterio is untyped
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
}
REMOTE_DRIVERS = {".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG", ".img": "HFA", ".ntf": "NITF"}
"""Formats, by suffix (else GeoTIFF), of files from elsewhere: none can refer to further files or hosts, as VRT does."""

MAX_PIXELS = 20_000_000_000
"""The largest real images have 3e9 pixels (a Pléiades strip)."""

MAX_BLOCK_BYTES = 512 * 2**20
"""GDAL allocates whole blocks: a file with one block per image would need it all at once."""

MAX_EXPANSION = 2000
"""Deflate reaches 1032 at most; beyond this a file is empty or a decompression bomb."""

_AT_HAND_BLOCK_PX = 2048
"""Widest block of a file that is read in place: of wider strips, a window would decode far more than it covers."""

_COUNTING_PX = 1024

REACH_PX = 192
"""How far valid pixels are repeated into nodata, PAN pixels: more than any halo."""

_FAN_IN = 8
_NEAR_PX = 8
"""Holes are first filled from this near: most are specks, and reaching far costs several times as much."""
_WARP_TOLERANCE_PX = 1e-3  # of MS; GDAL does not take 0

T = TypeVar("T")


def _nothing() -> None:
    """Do nothing."""


def stage_scene(
    scene: Scene,
    contract: SensorContract,
    store_uri: str,
    *,
    block_px: int = 1024,
    reach_px: int = 128,
    access: Access = OPEN_TO_ALL,
) -> StagedScene:
    """Bring a scene's pixels onto matched grids in a scene store; a store that already holds them is returned as is.

    Runs under whatever Dask scheduler or client is active. The staged pixels do not depend on ``block_px``.

    Args:
        scene: What to read.
        contract: The sensor's contract: ratio, DN ceiling, nodata where headers declare none, MTF gains.
        store_uri: Where to write the store (``pancrafter.store``).
        block_px: Edge of a block, PAN pixels; even.
        reach_px: How far, in PAN pixels, valid pixels are repeated into invalid ones; at least the network's halo.
        access: Which hosts and folders may be read, and with what credentials.

    Raises:
        InvalidSceneError: A file is missing, forbidden, damaged or not what the contract describes, or is empty.
        GridMismatchError: PAN and MS grids cannot be related.
        TransientReadError: A remote file could not be read this time.
        SinkError: The store cannot be written.
    """
    digest = staging_digest(scene, contract, block_px=block_px, reach_px=reach_px)
    finished = _finished(store_uri, digest)
    if finished is not None:
        return finished
    sources = _on_common_grid(scene, _read_headers(scene, contract, access), contract)
    pair = _pair(scene, sources, contract.ratio)
    begun = SceneStore.resume(store_uri, digest)
    store = begun or SceneStore.create(
        store_uri, pair, bands=scene.bands, staging=digest, crs_wkt=sources.pan.crs_wkt, block_px=block_px
    )
    pan_reader, ms_reader = _readers(sources, pair, reach_px)
    # Bound first: Dask looks for its own kind inside every argument of every task, which costs as much as encoding.
    stage_pan = delayed(partial(_stage_pan, store, pan_reader, resumed=begun is not None), traverse=False)
    stage_ms = delayed(partial(_stage_ms, store, ms_reader, resumed=begun is not None), traverse=False)
    tally = _compute(
        [*(stage_pan(window) for window in store.pan_windows()), *(stage_ms(window) for window in store.ms_windows())],
        _merge_tallies,
    )
    _check_pixels(scene, sources, tally, contract, ms_reader)
    valid_share = _valid_share(store_uri, pair, scene, tally)
    measured = measure_bands(store, pair, gain=_mean_gain(scene, contract))
    staged = _described(scene, contract, sources, pair, tally, measured, valid_share=valid_share, store_uri=store_uri)
    store.finish_staging(staged)
    return staged


def _described(
    scene: Scene,
    contract: SensorContract,
    sources: _Sources,
    pair: PairGrid,
    tally: _Tally,
    measured: MeasuredBands,
    *,
    valid_share: float,
    store_uri: str,
) -> StagedScene:
    dtype = _output_dtype(sources)
    return StagedScene(
        scene=scene,
        store_uri=store_uri,
        grid=pair,
        dtype=dtype,
        dn_max=_ceiling(contract, sources.ms, tally.ms, dtype),
        nodata=_output_nodata(sources, dtype),
        pan_range=value_range(tally.pan),
        ms_ranges=tuple(value_range(histogram) for histogram in tally.ms),
        **measured.described(),
        valid_share=valid_share,
        bytes_read=tally.bytes_read,
        ms_resampled=sources.ms[0].warped,
        scale=_per_band(sources.ms, "scale", default=1.0),
        offset=_per_band(sources.ms, "offset", default=0.0),
    )


STAGING_MEASURES = ("shift by cells", "mtf and its shape")
"""What staging measures of a scene; a store that lacks some of it is staged again."""


def staging_digest(scene: Scene, contract: SensorContract, *, block_px: int, reach_px: int) -> str:
    """SHA-256 (hex) of everything the staged store depends on."""
    parts = [scene.model_dump(mode="json"), contract.digest, block_px, reach_px, FORMAT_VERSION, STAGING_MEASURES]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(store_uri: str, digest: str) -> StagedScene | None:
    try:
        store = SceneStore.open(store_uri)
    except InvalidSceneError:
        return None
    return store.staged if store.complete and store.staging == digest else None


# --- headers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
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


@dataclass(frozen=True)
class _Sources:
    pan: _Source
    ms: tuple[_Source, ...]


def _read_headers(scene: Scene, contract: SensorContract, access: Access) -> _Sources:
    pan = _read_header(scene, [(0, scene.pan)], contract, access)
    files: OrderedDict[str, list[tuple[int, AssetRef]]] = OrderedDict()
    for position, asset in enumerate(scene.ms):
        files.setdefault(asset.href, []).append((position, asset))
    ms = tuple(_read_header(scene, assets, contract, access) for assets in files.values())
    for source in ms[1:]:
        if source.grid != ms[0].grid:
            raise InvalidSceneError(
                f"its grid is {_describe(source.grid)}, that of {ms[0].asset} is {_describe(ms[0].grid)}, expected one "
                "grid for all MS bands; resample the bands to a common grid",
                scene=scene.key,
                asset=source.asset,
            )
    return _Sources(pan, ms)


def _read_header(scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract, access: Access) -> _Source:
    key, href = assets[0][1].key, assets[0][1].href
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # refused below, with the asset's name
            return _signed_anew(lambda: _describe_file(scene, assets, contract, access), href, access)
    except _READ_ERRORS as err:
        failure = _read_failure(err, scene.key, key, href, what="its header")
    raise failure


def _signed_anew(
    action: Callable[[], T], href: str, access: Access, *, before_again: Callable[[], None] = _nothing
) -> T:
    """The result of ``action``; if it fails on a file that is read with a signature, once more with a new one."""
    try:
        return action()
    except _READ_ERRORS:
        if not reader_for(access).forget(href):
            raise
    before_again()
    return action()


def _describe_file(
    scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract, access: Access
) -> _Source:
    handle = _open(assets[0][1].href, access, scene.key, assets[0][1].key)
    with rasterio.Env(**_GDAL_OPTIONS, **handle.options), handle.dataset:
        return replace(_describe_source(handle.dataset, scene, assets, contract), access=access)


class _Handle(NamedTuple):
    """An open dataset and the GDAL options it must be read with."""

    dataset: Any  # Any: rasterio is untyped
    options: dict[str, Any]  # Any: GDAL options of several types


def _open(href: str, access: Access, scene: str, asset: str) -> _Handle:
    """Open a file under the access rules; what comes from elsewhere is only opened as one of a few plain formats."""
    try:
        opened = reader_for(access).open(href)
    except (InvalidSceneError, TransientReadError) as err:
        raise type(err)(err.message, scene=scene, asset=asset) from None
    remote = "://" in opened.href and not opened.href.startswith("file:")
    options = opened.options | (_REMOTE_OPTIONS if remote else {})
    path = unquote(urlsplit(opened.href).path) if opened.href.startswith("file:") else opened.href
    with rasterio.Env(**_GDAL_OPTIONS, **options):
        return _Handle(rasterio.open(path, sharing=False, driver=_remote_driver(path) if remote else None), options)


def _remote_driver(href: str) -> str:
    return REMOTE_DRIVERS.get(PurePosixPath(urlsplit(href).path).suffix.casefold(), "GTiff")


def _describe_source(
    dataset: Any, scene: Scene, assets: list[tuple[int, AssetRef]], contract: SensorContract
) -> _Source:
    key = assets[0][1].key
    for _, asset in assets:
        if asset.band > dataset.count:
            raise InvalidSceneError(
                f"band {asset.band} was expected, the file has {dataset.count}; check the item's band list",
                scene=scene.key,
                asset=asset.key,
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
    indexes = tuple(asset.band for _, asset in assets)
    dtypes = {dataset.dtypes[index - 1] for index in indexes}
    if len(dtypes) > 1 or np.dtype(next(iter(dtypes))).kind not in "uif":
        raise InvalidSceneError(
            f"pixel types are {sorted(dtypes)}, expected one real number type; convert the file to uint16",
            scene=scene.key,
            asset=key,
        )
    if any(dataset.colorinterp[index - 1] == ColorInterp.palette for index in indexes):
        raise InvalidSceneError(
            "its pixels are places in a palette, expected DN; expand it: gdal_translate -expand rgb",
            scene=scene.key,
            asset=key,
        )
    authority = dataset.crs.to_authority()
    return _Source(
        scene=scene.key,
        asset=key,
        href=assets[0][1].href,
        indexes=indexes,
        positions=tuple(position for position, _ in assets),
        grid=PixelGrid(
            crs=":".join(authority) if authority else dataset.crs.to_wkt(),
            transform=tuple(dataset.transform)[:6],
            shape_yx=dataset.shape,
        ),
        crs_wkt=dataset.crs.to_wkt(),
        dtype=dtypes.pop(),
        nodata=tuple(_or_contract(dataset.nodatavals[index - 1], contract.nodata) for index in indexes),
        masked=any(_has_mask(dataset.mask_flag_enums[index - 1]) for index in indexes),
        alpha=next((index for index in _alpha_bands(dataset) if index not in indexes), None),
        scale=tuple(dataset.scales[index - 1] for index in indexes),
        offset=tuple(dataset.offsets[index - 1] for index in indexes),
        at_hand=dataset.driver == "GTiff"
        and Path(dataset.name).is_file()
        and dataset.block_shapes[0][1] <= _AT_HAND_BLOCK_PX,
    )


def _has_mask(flags: Sequence[MaskFlags]) -> bool:
    """Whether a band has a mask beside its pixels; alpha is read as the band it is, for GDAL sees it only at times."""
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _alpha_bands(dataset: Any) -> list[int]:  # Any: rasterio is untyped
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
    real = _size_on_disk(dataset.name)
    if real is not None and claimed > MAX_EXPANSION * real and claimed > MAX_BLOCK_BYTES:
        return f"the header claims {claimed / 2**20:.0f} MiB of pixels, the file holds {real} bytes"
    return None


def _size_on_disk(name: str) -> int | None:
    try:
        return Path(name).stat().st_size
    except OSError:
        return None


def _placed_by(dataset: Any) -> str:  # Any: rasterio is untyped
    """How a file without a grid says where it lies: its product is in sensor geometry."""
    if dataset.gcps[0]:
        return "ground control points only"
    return "RPCs only" if dataset.rpcs else "no CRS or geotransform"


def _or_contract(header: float | None, contract: float | None) -> float | None:
    return contract if header is None else float(header)


def _on_common_grid(scene: Scene, sources: _Sources, contract: SensorContract) -> _Sources:
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
        if len(set(source.nodata)) > 1:
            raise InvalidSceneError(
                f"MS must be resampled, but its bands have different nodata values {source.nodata}; declare one",
                scene=scene.key,
                asset=source.asset,
            )
    return _Sources(sources.pan, tuple(replace(source, grid=target, warped=True) for source in sources.ms))


def _bounds_in_pan_crs(scene: Scene, sources: _Sources, contract: SensorContract) -> tuple[float, float, float, float]:
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
    except _READ_ERRORS as err:
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


def _pair(scene: Scene, sources: _Sources, ratio: int) -> PairGrid:
    try:
        return pair_grids(sources.pan.grid, sources.ms[0].grid, ratio)
    except GridMismatchError as err:
        raise GridMismatchError(
            err.message, scene=scene.key, asset=f"{sources.pan.asset} and {sources.ms[0].asset}"
        ) from err


def _output_dtype(sources: _Sources) -> str:
    """Type of the published DN: the sources' where that is uint8 or uint16, uint16 for every other.

    PAN's counts too: the scene's ceiling is at most the type's, and fits leave out what of PAN has reached it.
    """
    dtype = np.result_type(*(source.dtype for source in (sources.pan, *sources.ms))).name
    return dtype if dtype in ("uint8", "uint16") else "uint16"


def _output_nodata(sources: _Sources, dtype: str) -> float | None:
    """The source's nodata value, MS before PAN, where the output type can hold it; -9999 or NaN cannot be kept."""
    declared = (source.nodata[0] for source in (*sources.ms, sources.pan))
    limit = int(np.iinfo(dtype).max)
    return next((value for value in declared if value is not None and value in range(limit + 1)), None)


def _per_band(sources: Sequence[_Source], field: str, *, default: float) -> tuple[float, ...] | None:
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


# --- reading --------------------------------------------------------------------------------------------------------


class _OpenFiles(threading.local):
    """Open datasets of one thread; GDAL handles must not be shared. They are closed when another staging begins."""

    def __init__(self) -> None:
        self._token = ""
        self._handles: OrderedDict[str, _Handle] = OrderedDict()

    def get(self, source: _Source, token: str) -> _Handle:
        if token != self._token:
            self._close_down_to(0)
            self._token = token
        if source.href not in self._handles:
            self._close_down_to(_MAX_OPEN_FILES - 1)
            dataset, options = _open(source.href, source.access, source.scene, source.asset)
            self._handles[source.href] = _Handle(_warped(dataset, source) if source.warped else dataset, options)
        self._handles.move_to_end(source.href)
        return self._handles[source.href]

    def drop(self, href: str) -> None:
        """Close a file that must be opened anew."""
        if href in self._handles:
            self._handles.pop(href).dataset.close()

    def _close_down_to(self, count: int) -> None:
        while len(self._handles) > count:
            self._handles.popitem(last=False)[1].dataset.close()


def _warped(dataset: Any, source: _Source) -> Any:  # Any: rasterio is untyped
    """The file seen on the source's grid: Keys' cubic, exact positions; an alpha band says what was interpolated."""
    alpha = _alpha_bands(dataset)
    if not set(alpha).isdisjoint(source.indexes):
        raise InvalidSceneError(
            f"MS must be resampled, but the header calls its band {alpha[0]} alpha, by which the others would be "
            f"weighted; correct that: gdal_edit.py -colorinterp_{alpha[0]} undefined",
            scene=source.scene,
            asset=source.asset,
        )
    rows, cols = source.grid.shape_yx
    return WarpedVRT(
        dataset,
        crs=source.grid.crs,
        transform=rasterio.Affine(*source.grid.transform),
        height=rows,
        width=cols,
        resampling=Resampling.cubic,
        tolerance=_WARP_TOLERANCE_PX,
        src_nodata=source.nodata[0],
        nodata=source.nodata[0],
        add_alpha=not alpha,
    )


_OPEN_FILES = _OpenFiles()


@dataclass(frozen=True, eq=False)
class _Held:
    """All pixels of one grid in memory, as ``_WindowReader.read_raw`` gives them."""

    pixels: Pixels
    """(band, y, x) DN."""
    invalid: NDArray[np.bool_]
    """(y, x); takes memory only where there are holes."""

    @classmethod
    def room_for(cls, reader: _WindowReader) -> _Held:
        """Arrays of the right size, to be filled."""
        return cls(np.empty((reader.band_count, *reader.shape_yx), np.uint16), np.zeros(reader.shape_yx, np.bool_))


@dataclass(frozen=True)
class _WindowReader:
    """Reads windows of the cropped grid from one or more files of the same grid, with holes filled.

    A pixel is invalid if any of its bands is; all bands of an invalid pixel are filled from the same place, so its
    spectrum is one that was measured.
    """

    sources: tuple[_Source, ...]
    offset_yx: tuple[int, int]
    shape_yx: tuple[int, int]
    reach: int
    token: str
    """Distinguishes this staging's open files from those of an earlier one that read the same names."""
    held: _Held | None = None
    """What the files hold, if it is in memory already."""

    @property
    def band_count(self) -> int:
        """How many bands the files hold together."""
        return sum(len(source.indexes) for source in self.sources)

    def read(self, window: Window) -> tuple[Pixels, Mask, int]:
        """DN ``(band, y, x)`` with holes filled, validity ``(y, x)`` 0/1, and the number of bytes read."""
        pixels, valid, bytes_read = self.read_raw(window)
        if valid.all():
            return pixels, valid.astype(np.uint8), bytes_read
        for reach in sorted({min(_NEAR_PX, self.reach), self.reach}):
            wide = _widened(window, reach, self.shape_yx)
            wide_pixels, wide_valid, more = self.read_raw(wide)
            bytes_read += more
            y, x = (
                slice(part.start - outer.start, part.stop - outer.start)
                for part, outer in zip(window, wide, strict=True)
            )
            filled, reached = fill_invalid(wide_pixels, wide_valid, reach)
            if reached[y, x].all():  # a wider search would find the same neighbours
                break
        return filled[:, y, x], valid.astype(np.uint8), bytes_read

    def read_raw(self, window: Window) -> tuple[Pixels, NDArray[np.bool_], int]:
        """As ``read``, but holes hold whatever the file does; validity is boolean. Not to be written to."""
        if self.held is not None:
            return self.held.pixels[:, *window], ~self.held.invalid[window], 0
        rows, cols = (part.stop - part.start for part in window)
        pixels = np.zeros((self.band_count, rows, cols), np.uint16)
        valid = np.ones((rows, cols), bool)
        bytes_read = 0
        for source in self.sources:
            values, measured = _read_source(source, self._in_file(window), self.token)
            pixels[list(source.positions)] = _to_dn(values, measured, source, window)
            valid &= measured.all(axis=0)
            bytes_read += values.nbytes
        return pixels, valid, bytes_read

    def empty_band(self) -> int | None:
        """Position of the first band without any valid pixel of its own, None where each has some; reads the files."""
        empty = set(range(self.band_count))
        for window in _pieces(_all_of(self.shape_yx), _COUNTING_PX):
            for source in self.sources:
                _, measured = _read_source(source, self._in_file(window), self.token)
                empty -= {place for place, valid in zip(source.positions, measured, strict=True) if valid.any()}
        return min(empty, default=None)

    def _in_file(self, window: Window) -> RasterWindow:
        (row, col), (y, x) = self.offset_yx, window
        return RasterWindow(x.start + col, y.start + row, x.stop - x.start, y.stop - y.start)


def _readers(sources: _Sources, pair: PairGrid, reach_px: int) -> tuple[_WindowReader, _WindowReader]:
    """Of PAN and of MS, for one staging: they share a token, or each would close the other's files."""
    token = uuid.uuid4().hex
    return (
        _WindowReader((sources.pan,), pair.pan_offset_yx, pair.pan.shape_yx, reach_px, token),
        _WindowReader(sources.ms, pair.ms_offset_yx, pair.ms_shape_yx, -(-reach_px // pair.ratio), token),
    )


def _read_source(source: _Source, window: RasterWindow, token: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values and whether each was measured, both ``(band, y, x)``."""
    try:
        values, measured = _signed_anew(
            lambda: _read_window(source, window, token),
            source.href,
            source.access,
            before_again=lambda: _OPEN_FILES.drop(source.href),
        )
    except _READ_ERRORS as err:
        failure = _read_failure(err, source.scene, source.asset, source.href, what=_describe_window(window))
    else:
        for band, nodata in enumerate(source.nodata):
            if nodata is not None and math.isfinite(nodata):
                measured[band] &= values[band] != _as_stored(nodata, values.dtype)
        return values, measured
    raise failure


def _read_window(source: _Source, window: RasterWindow, token: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    dataset, options = _OPEN_FILES.get(source, token)
    with rasterio.Env(**_GDAL_OPTIONS, **options):
        values = dataset.read(source.indexes, window=window)
        measured = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        if source.warped:  # that alpha knows of the file's mask, alpha and nodata
            return values, measured & (dataset.read(_alpha_bands(dataset)[0], window=window) != 0)
        if source.masked:
            measured &= dataset.read_masks(source.indexes, window=window) != 0
        if source.alpha is not None:
            measured &= dataset.read(source.alpha, window=window) != 0
    return values, measured


def _as_stored(nodata: float, dtype: np.dtype[Any]) -> float:
    """The nodata value with the precision of the file: -3.4028235e38 written as text must still match float32."""
    return float(dtype.type(nodata)) if dtype.kind == "f" else nodata


def _to_dn(values: NDArray[Any], measured: NDArray[np.bool_], source: _Source, window: Window) -> Pixels:
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        whole = values if measured.all() else np.where(measured, values, 0)
        return whole.astype(np.uint16, copy=False)
    found = np.where(measured, values, 0)
    low, high = float(found.min()), float(found.max())
    if low < 0 or high > DN_LIMIT:
        problem = f"DN from {low:g} to {high:g}, expected 0 to {DN_LIMIT}"
        advice = "declare the nodata value in the file, or deliver unscaled DN"
    elif found.dtype.kind == "f" and not np.array_equal(found, np.rint(found)):
        problem = f"fractional {values.dtype} values, expected whole DN"
        advice = "deliver DN instead of radiance or reflectance, or scale them to uint16 and record the scale"
    else:
        return found.astype(np.uint16)
    y, x = window
    raise InvalidSceneError(
        f"rows {y.start}..{y.stop - 1}, columns {x.start}..{x.stop - 1} of the overlap hold {problem}; {advice}",
        scene=source.scene,
        asset=source.asset,
    )


_PERMANENT = (
    "not recognized as being in a supported file format",
    "HTTP response code: 404",
    "HTTP response code: 410",
)
_MISSING = ("No such file or directory", "does not exist")


_READ_ERRORS = (RasterioError, CPLE_BaseError, OSError, UnicodeDecodeError)
"""What rasterio raises on files it cannot read; the last where a CRS is named in no known encoding."""


def _read_failure(
    err: Exception, scene: str, asset: str, href: str, *, what: str
) -> InvalidSceneError | TransientReadError:
    """A remote file that answered badly may do better next time; a local or unreadable one will not.

    The text holds what GDAL said. ``err`` itself must not be chained: GDAL's exceptions cannot be pickled, and Dask
    would hand the scheduler a plain Exception in place of an error that has one in its chain.
    """
    said = " / ".join(dict.fromkeys(str(part) for part in (err, err.__cause__) if part is not None))
    remote = "://" in href and not href.startswith("file://")
    if remote and not any(mark in said for mark in _PERMANENT):
        advice = "check network and credentials, then try again"
        return TransientReadError(f"{what} cannot be read: {said}; {advice}", scene=scene, asset=asset)
    if any(mark in said for mark in _MISSING):
        advice = "check the asset's href and permissions"
    elif _PERMANENT[0] in said:
        advice = "expected a GeoTIFF or another raster that GDAL reads; fetch the file again"
    else:
        advice = "the file is truncated or damaged; fetch it again"
    return InvalidSceneError(f"{what} cannot be read: {said}; {advice}", scene=scene, asset=asset)


def _describe_window(window: RasterWindow) -> str:
    row, col, rows, cols = window.row_off, window.col_off, window.height, window.width
    return f"window rows {row}..{row + rows - 1}, columns {col}..{col + cols - 1}"


def _widened(window: Window, margin: int, shape_yx: tuple[int, int]) -> Window:
    y, x = (
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, size in zip(window, shape_yx, strict=True)
    )
    return y, x


# --- filling holes --------------------------------------------------------------------------------------------------


def fill_invalid(pixels: Pixels, valid: NDArray[np.bool_], reach: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """Repeat the nearest valid pixel (city-block distance) into invalid ones, up to ``reach`` pixels away; 0 beyond.

    Pixels at equal distance above and below, or left and right, are averaged. The result at a pixel depends only on
    pixels within ``reach``, so any window that is that much wider gives the same values.

    Args:
        pixels: ``(band, y, x)`` DN; values at invalid pixels do not matter.
        valid: ``(y, x)``.
        reach: Pixels.

    Returns:
        The filled pixels, and ``(y, x)`` true where a pixel is valid or was filled.
    """
    rows, cols = valid.shape
    far = 2 * (rows + cols + reach)
    row = np.arange(rows, dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(valid, row, -far), axis=0)
    below = np.minimum.accumulate(np.where(valid, row, rows + far)[::-1], axis=0)[::-1]
    vertical = np.minimum(np.minimum(row - above, below - row), far)
    first = np.where(row - above <= below - row, above, below).clip(0, rows - 1)
    second = np.where(below - row <= row - above, below, above).clip(0, rows - 1)

    left, left_distance = _nearest_before(vertical)
    right, right_distance = (side[:, ::-1] for side in _nearest_before(vertical[:, ::-1]))
    right = cols - 1 - right
    one = np.where(left_distance <= right_distance, left, right)
    other = np.where(right_distance <= left_distance, right, left)

    holes = ~valid
    within = holes & (np.minimum(left_distance, right_distance) <= reach)
    y, _ = np.nonzero(within)
    total = np.zeros((len(pixels), len(y)), np.uint32)
    for column in (one[within], other[within]):
        total += pixels[:, first[y, column], column].astype(np.uint32) + pixels[:, second[y, column], column]
    filled = pixels.copy()
    filled[:, holes] = 0
    filled[:, within] = (total + 2) // 4
    return filled, valid | within


def _nearest_before(vertical: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Column at or before each pixel by which a valid pixel is reached soonest, and that distance."""
    col = np.arange(vertical.shape[1], dtype=np.int32)[None, :]
    slack = vertical - col
    best = np.minimum.accumulate(slack, axis=1)
    column = np.maximum.accumulate(np.where(slack == best, col, np.int32(-1)), axis=1)
    return column, best + col


# --- writing and counting -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tally:
    """What a set of shards holds: histograms of valid DN per channel (index = DN), and bytes read."""

    pan: NDArray[np.int64]
    ms: tuple[NDArray[np.int64], ...] = ()
    bytes_read: int = 0


_NOTHING = np.zeros(1, np.int64)


def _stage_pan(store: SceneStore, reader: _WindowReader, window: Window, *, resumed: bool) -> _Tally:
    valid = store.read_pan_valid(window) if resumed else None
    if valid is not None and not (valid == UNWRITTEN).any():
        return _Tally(pan=_histogram(store.read_pan(window), valid))
    pixels, valid, bytes_read = reader.read(window)
    store.write_pan(window, pixels[0], valid)
    return _Tally(pan=_histogram(pixels[0], valid), bytes_read=bytes_read)


def _stage_ms(store: SceneStore, reader: _WindowReader, window: Window, *, resumed: bool) -> _Tally:
    valid = store.read_ms_valid(window) if resumed else None
    if valid is not None and not (valid == UNWRITTEN).any():
        return _ms_tally(store.read_ms(window), valid, 0)
    pixels, valid, bytes_read = reader.read(window)
    store.write_ms(window, pixels, valid)
    return _ms_tally(pixels, valid, bytes_read)


def _ms_tally(pixels: Pixels, valid: Mask, bytes_read: int) -> _Tally:
    return _Tally(pan=_NOTHING, ms=tuple(_histogram(band, valid) for band in pixels), bytes_read=bytes_read)


def _histogram(pixels: Pixels, valid: Mask) -> NDArray[np.int64]:
    measured = pixels.ravel() if valid.all() else pixels[valid != 0]
    return np.bincount(measured, minlength=1).astype(np.int64)


def _merge_tallies(tallies: Sequence[_Tally]) -> _Tally:
    channels = max(len(tally.ms) for tally in tallies)
    ms = tuple(_sum_histograms([tally.ms[band] for tally in tallies if tally.ms]) for band in range(channels))
    return _Tally(_sum_histograms([tally.pan for tally in tallies]), ms, sum(tally.bytes_read for tally in tallies))


def _sum_histograms(histograms: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(max(len(histogram) for histogram in histograms), np.int64)
    for histogram in histograms:
        total[: len(histogram)] += histogram
    return total


def _compute(tasks: Iterable[Any], merge: Callable[[Sequence[T]], T]) -> T:  # Any: dask is untyped
    """Run delayed tasks and merge their results as they arrive, a few at a time, so that few are held at once."""
    level = list(tasks)
    while len(level) > 1:
        level = [delayed(merge)(level[start : start + _FAN_IN]) for start in range(0, len(level), _FAN_IN)]
    result: T = level[0].compute()
    return result


def _ceiling(
    contract: SensorContract, ms: Sequence[_Source], histograms: Sequence[NDArray[np.int64]], dtype: str
) -> int:
    """The contract's ceiling; that of the asset's own scaling once a pixel shows that this scaling was used."""
    largest = max(len(histogram) for histogram in histograms) - 1
    top = contract.dn_max if largest <= contract.dn_max else max(contract.ceiling(source.asset) for source in ms)
    return min(top, int(np.iinfo(dtype).max))


def _check_pixels(
    scene: Scene, sources: _Sources, tally: _Tally, contract: SensorContract, ms_reader: _WindowReader
) -> None:
    ms_assets = {position: source.asset for source in sources.ms for position in source.positions}
    if tally.pan.any() and not tally.ms[0].any():  # bands are counted where all of them are valid
        empty = ms_reader.empty_band()
        if empty is not None:
            raise InvalidSceneError(_nothing_valid(scene.bands[empty]), scene=scene.key, asset=ms_assets[empty])
        raise InvalidSceneError(
            "no pixel is valid in all bands at once, expected a common area; check nodata values and masks",
            scene=scene.key,
            asset=" and ".join(source.asset for source in sources.ms),
        )
    channels = [(sources.pan.asset, "PAN", tally.pan)]
    channels += [(ms_assets[band], scene.bands[band], histogram) for band, histogram in enumerate(tally.ms)]
    for asset, name, histogram in channels:
        try:
            check_dn(histogram, contract.ceiling(asset), channel=name, sensor=scene.sensor)
        except InvalidSceneError as err:
            raise InvalidSceneError(err.message, scene=scene.key, asset=asset) from None


def check_dn(histogram: NDArray[np.int64], dn_max: int, *, channel: str, sensor: str) -> None:
    """Refuse a channel without pixels, or of another product than its contract describes.

    Args:
        histogram: How often each DN (the index) occurs among the channel's valid pixels.
        dn_max: The contract's ceiling; up to ``MAX_SHARE_ABOVE_CEILING`` of the pixels may be brighter.
        channel: Name of the channel, for the message.
        sensor: Name of the contract.

    Raises:
        InvalidSceneError: No pixel is valid, or too many are above the ceiling.
    """
    count = int(histogram.sum())
    if count == 0:
        raise InvalidSceneError(_nothing_valid(channel))
    above = int(histogram[dn_max + 1 :].sum())
    if above > MAX_SHARE_ABOVE_CEILING * count:
        largest = int(np.flatnonzero(histogram)[-1])
        raise InvalidSceneError(
            f"{channel} holds DN up to {largest} ({above / count:.2%} above {dn_max}), expected at most {dn_max}; this "
            f"is not the product of contract {sensor}: use a contract with the right ceiling"
        )


def _nothing_valid(channel: str) -> str:
    return f"{channel} has no valid pixel inside the overlap, expected data; check nodata value and mask"


def value_range(histogram: NDArray[np.int64]) -> ValueRange:
    """Percentiles of the valid DN; for (almost) constant channels the extremes, a little widened if they are equal."""
    cumulated = np.cumsum(histogram)
    low, high = (int(np.searchsorted(cumulated, cumulated[-1] * share / 100)) for share in RANGE_PERCENTILES)
    if low == high:
        present = np.nonzero(histogram)[0]
        low, high = int(present[0]), int(present[-1])
    return ValueRange(low=low, high=high) if high > low else ValueRange(low=low - 1, high=high + 1)


def _valid_share(store_uri: str, pair: PairGrid, scene: Scene, tally: _Tally) -> float:
    """Share of PAN pixels that are valid and lie nearest to a valid MS pixel."""
    if int(tally.pan.sum()) == math.prod(pair.pan.shape_yx) and int(tally.ms[0].sum()) == math.prod(pair.ms_shape_yx):
        return 1.0
    rows, cols = (
        _ms_index(slice(0, size), pair.ratio, phase, ms_size)
        for size, phase, ms_size in zip(pair.pan.shape_yx, pair.phase_yx, pair.ms_shape_yx, strict=True)
    )
    with open_scene(store_uri) as cube:
        nearest = cube.ms_valid.isel(ym=("y", rows), xm=("x", cols)).drop_vars(("ym", "xm"))
        share = float(((cube.pan_valid == 1) & (nearest == 1)).mean())
    _require_common_area(scene, share)
    return share


def _require_common_area(scene: Scene, share: float) -> None:
    if share == 0:
        raise InvalidSceneError(
            "no pixel is valid in PAN and MS at once, expected a common area; check nodata values and masks",
            scene=scene.key,
            asset=f"{scene.pan.key} and {scene.ms[0].key}",
        )


def _ms_index(part: slice, ratio: int, phase: float, size: int) -> NDArray[np.int64]:
    """MS pixel nearest to each PAN pixel of a range, along one axis."""
    nearest = np.floor((np.arange(part.start, part.stop) - phase) / ratio + 0.5).astype(np.int64)
    return nearest.clip(0, size - 1)


def _mean_gain(scene: Scene, contract: SensorContract) -> float:
    return float(np.mean([band.mtf for band in contract.subset(scene.bands)]))


# --- without a store ------------------------------------------------------------------------------------------------


class SceneFiles(BlockGrid):
    """A scene whose pixels are read from its files whenever they are asked for; reads like a ``SceneStore``.

    Holes are filled per block, as staging fills them, so the pixels are those of a staged scene.
    """

    def __init__(self, pan: _WindowReader, ms: _WindowReader, grid: PairGrid, block_px: int) -> None:
        super().__init__(grid, block_px)
        self._readers = {"pan": pan, "ms": ms}
        self._edges = {"pan": block_px, "ms": max(1, block_px // grid.ratio)}
        self._whole: set[str] = set()
        self._staged: StagedScene | None = None

    def described(self, staged: StagedScene, whole: set[str]) -> None:
        """What reading everything once has shown; ``whole`` names the grids without a hole."""
        self._staged, self._whole = staged, whole

    @property
    def staged(self) -> StagedScene:
        """The scene's constants."""
        assert self._staged is not None
        return self._staged

    @property
    def band_count(self) -> int:
        """How many MS bands there are."""
        return self._readers["ms"].band_count

    @property
    def held_bytes(self) -> int:
        """Memory that its pixels take, once they have been read."""
        return sum(_bytes(reader) for reader in self._readers.values() if reader.held is not None)

    def let_go(self) -> None:
        """Hold no pixels any more: they are read again when they are needed."""
        self._readers = {name: replace(reader, held=None) for name, reader in self._readers.items()}

    def read_pan(self, window: Window) -> Pixels:
        """Filled PAN DN (y, x)."""
        pan: Pixels = self._filled("pan", window)[0]
        return pan

    def read_ms(self, window: Window) -> Pixels:
        """Filled MS DN (band, y, x)."""
        return self._filled("ms", window)

    def read_pan_valid(self, window: Window) -> Mask:
        """1 where PAN was measured."""
        return self._valid("pan", window)

    def read_ms_valid(self, window: Window) -> Mask:
        """1 where every MS band was measured."""
        return self._valid("ms", window)

    def _filled(self, name: str, window: Window) -> Pixels:
        reader = self._readers[name]
        if name in self._whole:
            return reader.read_raw(window)[0]
        rows, cols = (part.stop - part.start for part in window)
        pixels = np.empty((1 if name == "pan" else self.band_count, rows, cols), np.uint16)
        for y, x in _pieces(window, self._edges[name]):
            inside = (slice(y.start - window[0].start, y.stop - window[0].start),
                      slice(x.start - window[1].start, x.stop - window[1].start))  # fmt: skip
            pixels[:, *inside] = reader.read((y, x))[0]
        return pixels

    def _valid(self, name: str, window: Window) -> Mask:
        if name in self._whole:
            return np.ones([part.stop - part.start for part in window], np.uint8)
        return self._readers[name].read_raw(window)[1].astype(np.uint8)


def read_in_place(
    scene: Scene,
    contract: SensorContract,
    *,
    block_px: int,
    reach_px: int,
    hold_bytes: int = 0,
    access: Access = OPEN_TO_ALL,
) -> SceneFiles | None:
    """The scene read from its files, without a store; None where reading a file twice would cost much more than once.

    Reads every pixel once, to know value ranges and holes, and holds them if they take at most ``hold_bytes``. Other
    arguments, constants, pixels and errors as in ``stage_scene``; runs under whatever Dask scheduler is active, in this
    process.
    """
    sources = _on_common_grid(scene, _read_headers(scene, contract, access), contract)
    if not all(source.at_hand and not source.warped for source in (sources.pan, *sources.ms)):
        return None
    pair = _pair(scene, sources, contract.ratio)
    readers = _readers(sources, pair, reach_px)
    hold = sum(_bytes(reader) for reader in readers) <= hold_bytes
    held = [_Held.room_for(reader) if hold else None for reader in readers]
    count_pan, count_ms = (delayed(partial(count, reader, into), traverse=False) for count, reader, into in
                           zip((_count_pan, _count_ms), readers, held, strict=True))  # fmt: skip
    tally = _compute(
        [
            *(count_pan(window) for window in _pieces(_all_of(pair.pan.shape_yx), _COUNTING_PX)),
            *(count_ms(window) for window in _pieces(_all_of(pair.ms_shape_yx), _COUNTING_PX)),
        ],
        _merge_tallies,
    )
    pan, ms = (replace(reader, held=into) for reader, into in zip(readers, held, strict=True))
    files = SceneFiles(pan, ms, pair, block_px)
    _check_pixels(scene, sources, tally, contract, ms)
    counted = {"pan": int(tally.pan.sum()), "ms": int(tally.ms[0].sum())}
    sizes = {"pan": math.prod(pair.pan.shape_yx), "ms": math.prod(pair.ms_shape_yx)}
    whole = {name for name in sizes if counted[name] == sizes[name]}
    share = 1.0 if len(whole) == len(sizes) else _measured_share(files)
    _require_common_area(scene, share)
    measured = measure_bands(files, pair, gain=_mean_gain(scene, contract))
    staged = _described(scene, contract, sources, pair, tally, measured, valid_share=share, store_uri="")
    files.described(staged, whole)
    return files


def _count_pan(reader: _WindowReader, into: _Held | None, window: Window) -> _Tally:
    pixels, valid, bytes_read = _read_into(reader, into, window)
    return _Tally(pan=_histogram(pixels[0], valid.astype(np.uint8)), bytes_read=bytes_read)


def _count_ms(reader: _WindowReader, into: _Held | None, window: Window) -> _Tally:
    pixels, valid, bytes_read = _read_into(reader, into, window)
    return _ms_tally(pixels, valid.astype(np.uint8), bytes_read)


def _read_into(reader: _WindowReader, into: _Held | None, window: Window) -> tuple[Pixels, NDArray[np.bool_], int]:
    pixels, valid, bytes_read = reader.read_raw(window)
    if into is not None:
        into.pixels[:, *window] = pixels
        if not valid.all():
            into.invalid[window] = ~valid
    return pixels, valid, bytes_read


def _bytes(reader: _WindowReader) -> int:
    """Memory that all pixels of a reader take, and which of them are valid."""
    return math.prod(reader.shape_yx) * (2 * reader.band_count + 1)


def _measured_share(files: SceneFiles) -> float:
    """Share of PAN pixels that are valid and lie nearest to a valid MS pixel."""
    valid, grid = 0, files.grid
    for window in _pieces(_all_of(files.pan_shape_yx), _COUNTING_PX):
        rows, cols = (
            _ms_index(part, grid.ratio, phase, size)
            for part, phase, size in zip(window, grid.phase_yx, files.ms_shape_yx, strict=True)
        )
        beneath = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1))
        nearest = files.read_ms_valid(beneath)[np.ix_(rows - rows[0], cols - cols[0])]
        valid += int(np.count_nonzero(files.read_pan_valid(window) & nearest))
    return valid / math.prod(files.pan_shape_yx)


def _all_of(shape_yx: tuple[int, int]) -> Window:
    return slice(0, shape_yx[0]), slice(0, shape_yx[1])


def _pieces(window: Window, edge: int) -> Iterator[Window]:
    """A window cut at multiples of ``edge``, row by row."""
    rows, cols = (
        [slice(max(start, part.start), min(start + edge, part.stop))
         for start in range(part.start // edge * edge, part.stop, edge)]
        for part in window
    )  # fmt: skip
    for row in rows:
        for col in cols:
            yield row, col


def read_raster(path: str) -> NDArray[Any]:
    """All bands of a small raster, ``(band, y, x)`` in the file's type."""
    with rasterio.open(path) as source:
        pixels: NDArray[Any] = source.read()
        return pixels
