"""Writes rasters as Cloud Optimized GeoTIFFs in bounded memory; whatever is published comes from here.

Blocks are compressed, tile by tile and with their overviews, into a nameless scratch file on the disk of the target as
they come (:mod:`pancrafter.pyramid`); at the end the tiles are copied in the order of a COG into a draft of the result
(:mod:`pancrafter.tiff`). There every tile must lie, as it was compressed, where GDAL finds it, and some of them GDAL
must decode to what was handed in. Only then does the final name appear.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntFlag
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import google_crc32c
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pydantic import Field
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from pancrafter.durable import flush
from pancrafter.errors import GridMismatchError, InvalidSceneError, SinkError
from pancrafter.grid import ms_grid
from pancrafter.pyramid import TILE_PX, Coding, Index, Level, Place, Pyramid, Resampling, Spool, Tile
from pancrafter.tiff import TILE_MARGIN_BYTES, Tag, tags_of, write_tiles
from pancrafter.types import CONSISTENCY_BLOCK_MS_PX, PairGrid, PixelGrid, Record

Profile = Literal["fast", "archive"]
Array = NDArray[Any]
YXSlices = tuple[slice, slice]

_ZSTD_LEVEL: dict[Profile, int] = {"fast": 1, "archive": 9}  # level 9: 16 % smaller for 3x the CPU time (measured)
_DISK_FACTOR = 1.4  # tiles, 1.33x raw where nothing can be compressed; the scratch file shrinks as the result grows

_CACHEFUL = 2**16
"""Values that are counted at a time."""

SIDECARS = (".aux.xml", ".msk", ".msk.ovr", ".ovr")
"""Endings of what GDAL keeps beside a file."""

_DECODED_EVERY = 16
"""Of the tiles at full resolution one in so many is decoded once the file is written, the first among them."""

CACHE_BYTES = 64 * 2**20
"""GDAL's block cache while a file is written: whole tiles pass through at once, others wait there to be completed.
``GDAL_CACHEMAX`` through ``rasterio.Env`` counts bytes, unlike the environment variable."""


class Reason(IntFlag):
    """Bits of the mask asset: why a sharpened pixel should not be trusted. 0 means: trust it."""

    NO_MS = 1
    NO_PAN = 2
    EDGE = 4
    SATURATED = 8
    LOW_CONSISTENCY = 16


class Block(NamedTuple):
    """One piece of a raster on its way into a file.

    ``where`` are its rows and columns on the target grid, ``values`` is ``(band, y, x)`` and ``valid`` is ``(y, x)``
    with True for pixels that hold data; None means all of them do.
    """

    where: YXSlices
    values: Array
    valid: NDArray[np.bool_] | None = None


class BandStatistics(Record):
    """Statistics of one band over its valid pixels, in DN, named as in STAC. ``valid_percent`` is 0 to 100."""

    minimum: float
    maximum: float
    mean: float
    stddev: float
    valid_percent: float


class CogInfo(Record):
    """What was written, as measured on the finished file."""

    path: str
    size_bytes: int
    grid: PixelGrid
    dtype: str
    nodata: float | None
    band_names: tuple[str, ...]
    statistics: tuple[BandStatistics | None, ...] = Field(description="Per band; None where no pixel is valid.")
    valid_share: float = Field(ge=0, le=1)
    nudged_values: int = Field(
        description="Valid values that equalled nodata and were moved by one DN to stay visible as data."
    )
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None


def write_cog(
    path: str | Path,
    blocks: Iterable[Block],
    *,
    grid: PixelGrid,
    count: int,
    dtype: str,
    nodata: float | None,
    band_names: Sequence[str],
    scale: Sequence[float] | None = None,
    offset: Sequence[float] | None = None,
    profile: Profile = "fast",
    overview_resampling: Resampling = "average",
    tags: dict[str, str] | None = None,
    threads: int = 1,
) -> CogInfo:
    """Stream blocks into one validated COG whose name appears only when it is complete.

    Invalid pixels hold ``nodata`` in every band where there is one; a valid value that happens to equal it is moved
    by one DN, so that data never turns into holes. Without nodata, an internal mask says which pixels are valid.
    Overviews average valid pixels only. The file is the same whatever the blocks and the threads.

    Args:
        path: Final file; it is replaced if it exists. Its draft lies in the same folder.
        blocks: They cover the grid exactly once, in any order; their arrays must not be changed after they were handed
            over.
        grid: Target grid.
        count: Number of bands.
        dtype: NumPy dtype name of the file; blocks must have it already.
        nodata: Value for invalid pixels, or None for an internal mask.
        band_names: One description per band.
        scale: Per band factor from DN to physical value, written to the header unapplied.
        offset: Per band offset, added after scaling.
        profile: ``fast`` (ZSTD 1) or ``archive`` (ZSTD 9).
        overview_resampling: How overviews summarise; ``mode`` suits bit fields.
        tags: Metadata of the whole file.
        threads: That compress while blocks come, and read back.

    Raises:
        SinkError: The folder is not writable, the disk is full or what was read back is not what was written.
        GridMismatchError: Blocks do not cover the grid exactly or have another shape or dtype.
        InvalidSceneError: ``nodata`` does not fit the dtype.
    """
    target = Path(path)
    header = _Header(grid, count, np.dtype(dtype), nodata, band_names, scale, offset, tags or {})
    _check_header(target, header)
    _check_room(target, header)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.cog.tif")
    coding = Coding(header.dtype, _ZSTD_LEVEL[profile], differences=overview_resampling != "mode", masks=nodata is None)
    written = _Written(header)
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_NUM_THREADS=str(threads), GDAL_PAM_ENABLED=False):
            with contextlib.closing(_spool(target)) as spool:
                pyramid = Pyramid(
                    grid.shape_yx, count, coding, spool, overview_resampling, written.prepared, threads, str(target)
                )
                _stream(pyramid, target, blocks, header)
                with _as_sink_error(target):
                    whole = spool.add(coding.encoded_mask(np.ones((TILE_PX, TILE_PX), bool)))
                    described = _describe(header, coding, overview_resampling, written.statistics())
                    write_tiles(draft, pyramid.levels, spool, described, whole)
            with _flushed(draft, target):
                _verify(draft, target, written, pyramid.levels, whole)
        with _as_sink_error(target):
            _settle(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return CogInfo(
        path=str(target),
        size_bytes=target.stat().st_size,
        grid=grid,
        dtype=dtype,
        nodata=nodata,
        band_names=tuple(band_names),
        statistics=written.statistics(),
        valid_share=written.valid_pixels / math.prod(grid.shape_yx),
        nudged_values=written.nudged,
        scale=tuple(scale) if scale else None,
        offset=tuple(offset) if offset else None,
    )


def write_reason_mask(
    path: str | Path,
    blocks: Iterable[Block],
    *,
    grid: PixelGrid,
    profile: Profile = "fast",
    threads: int = 1,
) -> CogInfo:
    """Write the mask asset: one uint8 band of :class:`Reason` bits, every pixel valid, overviews by most frequent.

    Nodata is 255, which no bits add up to: a reader that brings the mask onto a larger grid would fill that up with 0,
    which means trust it.
    """
    return write_cog(
        path,
        blocks,
        grid=grid,
        count=1,
        dtype="uint8",
        nodata=255,
        band_names=("reasons",),
        profile=profile,
        overview_resampling="mode",
        tags={f"REASON_{reason.value}": str(reason.name) for reason in Reason},
        threads=threads,
    )


def write_quality_raster(
    path: str | Path, consistency: NDArray[np.float32], *, scene: PairGrid, profile: Profile = "fast"
) -> CogInfo:
    """Write the quality asset: one float32 band of consistency ERGAS, one pixel per block of 8 by 8 MS pixels.

    Its grid starts where the scene's MS grid does; the last row and column may reach beyond it. Nodata is -1: every
    reader knows a number, and ERGAS is never negative.
    """
    a, b, c, d, e, f = ms_grid(scene).transform
    side = CONSISTENCY_BLOCK_MS_PX
    grid = PixelGrid(
        crs=scene.pan.crs,
        transform=(a * side, b * side, c, d * side, e * side, f),
        shape_yx=(consistency.shape[0], consistency.shape[1]),
    )
    whole = (slice(0, grid.shape_yx[0]), slice(0, grid.shape_yx[1]))
    return write_cog(
        path,
        [Block(whole, consistency[None])],
        grid=grid,
        count=1,
        dtype="float32",
        nodata=-1,
        band_names=("consistency_ergas",),
        profile=profile,
    )


def reason_bits(
    *,
    pan_valid: NDArray[np.bool_],
    ms_valid: NDArray[np.bool_],
    reach_px: int,
    saturated: NDArray[np.bool_],
    low_consistency: NDArray[np.bool_],
    core: YXSlices,
) -> NDArray[np.uint8]:
    """Combine per-pixel findings about a block to :class:`Reason` bits; all are ``(y, x)`` on the PAN grid.

    ``EDGE`` marks valid pixels within ``reach_px`` (Chebyshev distance) of an invalid one: filled values may have
    reached them. Both masks come with a halo of ``reach_px``, as far as the grid goes, and ``core`` is where the block
    lies in them; the other findings and the answer are of the block.
    """
    from scipy.ndimage import minimum_filter

    valid = pan_valid & ms_valid
    inner = valid
    if not valid.all():
        inner = minimum_filter(valid, size=2 * reach_px + 1, mode="constant", cval=1)
    bits = np.zeros(saturated.shape, np.uint8)
    bits[~ms_valid[core]] |= np.uint8(Reason.NO_MS)
    bits[~pan_valid[core]] |= np.uint8(Reason.NO_PAN)
    bits[valid[core] & ~inner[core]] |= np.uint8(Reason.EDGE)
    bits[saturated] |= np.uint8(Reason.SATURATED)
    bits[low_consistency] |= np.uint8(Reason.LOW_CONSISTENCY)
    return bits


def validate_cog(path: str | Path) -> None:
    """Check the COG structure of a local file or GDAL path strictly.

    Raises:
        InvalidSceneError: The file is not a COG, or only one with warnings.
    """
    try:
        # an Env around it would look up AWS credentials once more, which is slower than the check of a small file
        config = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
        _, errors, warnings = cog_validate(str(path), strict=True, config=config, quiet=True)
        found = "; ".join(error for error in [*errors, *warnings] if not _is_of_one_column(path, error))
    except (RasterioError, CPLE_BaseError) as err:
        raise InvalidSceneError(f"{path}: cannot be opened as GeoTIFF ({err}); write it again") from err
    if found:
        raise InvalidSceneError(f"{path}: expected a valid COG, found: {found}; write it with pancrafter.cog.write_cog")


def _is_of_one_column(path: str | Path, error: str) -> bool:
    """Whether the check errs: it knows overviews by their widths, which are all 1 where the raster's is."""
    if not error.startswith("Invalid Decimation"):
        return False
    with rasterio.open(path) as source:
        return bool(source.width == 1)


@dataclass(frozen=True)
class _Header:
    """What a file says about itself, apart from its pixels."""

    grid: PixelGrid
    count: int
    dtype: np.dtype[Any]
    nodata: float | None
    band_names: Sequence[str]
    scale: Sequence[float] | None
    offset: Sequence[float] | None
    tags: dict[str, str]


class _BandCounts(NamedTuple):
    """Valid values of one band of one tile: extremes, sum and sum of squares."""

    minimum: float
    maximum: float
    total: float
    squares: float


class _TileCounts(NamedTuple):
    """What is known about one tile of the full resolution when it is written."""

    valid_pixels: int
    checksum: int | None
    """None where the tile is not to be decoded."""
    nudged: int
    bands: tuple[_BandCounts, ...]
    """Empty where no pixel is valid."""


class _Written:
    """Prepares tiles for the file and counts what goes into it.

    Sums are taken tile by tile in the order of the file, so that neither the blocks nor the threads matter.
    """

    def __init__(self, header: _Header) -> None:
        self._header = header
        self.tiles: dict[Index, _TileCounts] = {}

    def prepared(self, level: int, index: Index, tile: Tile) -> Tile:
        """The tile as it is written: nodata where nothing is valid, and nowhere else."""
        values, valid = tile
        if values.dtype.kind == "f":
            finite = np.asarray(np.isfinite(values).all(axis=0))
            valid = finite if valid is None else np.logical_and(valid, finite)
        if valid is not None and valid.all():
            valid = None
        nudged = 0
        if self._header.nodata is not None:
            values, nudged = _with_nodata(values, valid, self._header.nodata)
        if level == 0:
            inside = values[0].size if valid is None else int(np.count_nonzero(valid))
            bands = tuple(_counts(plane if valid is None else plane[valid]) for plane in values) if inside else ()
            decoded = (5 * index[0] + index[1]) % _DECODED_EVERY == 0
            self.tiles[index] = _TileCounts(inside, _checksum(values) if decoded else None, nudged, bands)
        return Tile(values, valid)

    @property
    def valid_pixels(self) -> int:
        return sum(tile.valid_pixels for tile in self.tiles.values())

    @property
    def nudged(self) -> int:
        return sum(tile.nudged for tile in self.tiles.values())

    def statistics(self) -> tuple[BandStatistics | None, ...]:
        """Per band; None where no pixel is valid."""
        inside, pixels = self.valid_pixels, math.prod(self._header.grid.shape_yx)
        if not inside:
            return (None,) * self._header.count
        ordered = [self.tiles[index].bands for index in sorted(self.tiles) if self.tiles[index].bands]
        return tuple(_statistics(counts, inside, pixels) for counts in zip(*ordered, strict=True))


def _counts(values: Array) -> _BandCounts:
    """Of a cacheful at a time."""
    flat = values.ravel()
    low, high, total, squares = math.inf, -math.inf, 0.0, 0.0
    for start in range(0, flat.size, _CACHEFUL):
        part = flat[start : start + _CACHEFUL]
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        wide = part.astype(np.float64)
        total += float(np.einsum("i->", wide))
        squares += float(np.einsum("i,i", wide, wide))  # BLAS would wake its threads for each cacheful
    return _BandCounts(low, high, total, squares)


def _statistics(counts: Sequence[_BandCounts], inside: int, pixels: int) -> BandStatistics:
    mean = sum(part.total for part in counts) / inside
    variance = max(sum(part.squares for part in counts) / inside - mean**2, 0.0)
    return BandStatistics(
        minimum=min(part.minimum for part in counts),
        maximum=max(part.maximum for part in counts),
        mean=mean,
        stddev=math.sqrt(variance),
        valid_percent=100 * inside / pixels,
    )


def _checksum(values: Array) -> int:
    """CRC-32C of the pixels of a tile (band, y, x)."""
    return int(google_crc32c.value(values.tobytes()))


def _check_header(target: Path, header: _Header) -> None:
    for name, given in (("band_names", header.band_names), ("scale", header.scale), ("offset", header.offset)):
        if given is not None and len(given) != header.count:
            raise GridMismatchError(f"{target}: {len(given)} {name} for {header.count} bands; give one per band")
    if header.nodata is not None and header.dtype.kind != "f":
        limits = np.iinfo(header.dtype)
        if not (float(header.nodata).is_integer() and limits.min <= header.nodata <= limits.max):
            raise InvalidSceneError(
                f"{target}: nodata {header.nodata} does not fit {header.dtype} ({limits.min} to {limits.max}); "
                "mend the source header"
            )


def _check_room(target: Path, header: _Header) -> None:
    folder = target.parent
    if not folder.is_dir():
        raise SinkError(f"{folder}: no such folder to write {target.name} into; create it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"{folder}: not writable, so {target.name} cannot be made; change its permissions or the sink")
    need = int(_DISK_FACTOR * math.prod(header.grid.shape_yx) * header.count * header.dtype.itemsize)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise SinkError(
            f"{folder}: {free / 2**20:.0f} MiB free, writing {target.name} takes up to {need / 2**20:.0f} MiB; "
            "free some space or use another folder"
        )


@contextlib.contextmanager
def _as_sink_error(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RasterioError, CPLE_BaseError) as err:
        raise SinkError(
            f"{target}: writing failed ({err}); check free space and permissions of {target.parent}"
        ) from err


def _spool(target: Path) -> Spool:
    with _as_sink_error(target):
        return Spool(target.parent)


def _stream(pyramid: Pyramid, target: Path, blocks: Iterable[Block], header: _Header) -> None:
    """Take every block; errors of the block source pass through unchanged."""
    with pyramid.working():
        for block in blocks:
            _check_block(block, header, target)
            with _as_sink_error(target):
                pyramid.add(block.where[0].start, block.where[1].start, Tile(block.values, block.valid))
        with _as_sink_error(target):
            pyramid.finish()


def _check_block(block: Block, header: _Header, target: Path) -> None:
    rows, cols = block.where
    size = (rows.stop - rows.start, cols.stop - cols.start)
    height, width = header.grid.shape_yx
    inside = rows.start >= 0 and cols.start >= 0 and rows.stop <= height and cols.stop <= width
    if not inside or block.values.shape != (header.count, *size) or block.values.dtype != header.dtype:
        raise GridMismatchError(
            f"{target}: block at row {rows.start}, column {cols.start} is {block.values.shape} {block.values.dtype}; "
            f"expected ({header.count}, {size[0]}, {size[1]}) {header.dtype} inside {header.grid.shape_yx}"
        )
    if block.valid is not None and block.valid.shape != size:
        raise GridMismatchError(f"{target}: valid is {block.valid.shape}, expected {size}")


def _with_nodata(values: Array, valid: NDArray[np.bool_] | None, nodata: float) -> tuple[Array, int]:
    """Put ``nodata`` into invalid pixels and move valid values off it; returns the number of moved values."""
    marker = values.dtype.type(nodata)
    clash = values == marker
    if valid is not None:
        clash &= valid
    moved = int(np.count_nonzero(clash))
    if not moved and valid is None:
        return values, 0
    out = values.copy() if valid is None else np.where(valid, values, marker)
    if moved:
        out[clash] = _neighbour(marker)
    return out, moved


def _neighbour(marker: Any) -> Any:
    """The value next to nodata, inward of the dtype's range (``Any``: a NumPy scalar of any dtype)."""
    if np.issubdtype(marker.dtype, np.integer):
        top = np.iinfo(marker.dtype).max
        return marker.dtype.type(int(marker) - 1 if int(marker) == top else int(marker) + 1)
    return np.nextafter(marker, marker.dtype.type(np.inf))


def _describe(
    header: _Header, coding: Coding, resampling: Resampling, statistics: Sequence[BandStatistics | None]
) -> list[Tag]:
    """The header's tags, as GDAL writes them into a file without pixels."""
    height, width = header.grid.shape_yx
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=header.count,
            dtype=header.dtype,
            nodata=header.nodata,
            crs=CRS.from_user_input(header.grid.crs),
            transform=Affine(*header.grid.transform),
            interleave="pixel",
            tiled=True,
            blockxsize=TILE_PX,
            blockysize=TILE_PX,
            photometric="MINISBLACK",
            compress="ZSTD",
            predictor=coding.predictor,
            sparse_ok=True,
            BIGTIFF="YES",
        ) as sink:
            # GDAL takes the fourth band of a byte image for transparency unless told otherwise.
            sink.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (header.count - 1)
            sink.descriptions = tuple(header.band_names)
            if header.scale is not None:
                sink.scales = tuple(header.scale)
            if header.offset is not None:
                sink.offsets = tuple(header.offset)
            sink.update_tags(**header.tags)
            if max(height, width) > TILE_PX:
                sink.update_tags(OVERVIEW_RESAMPLING=resampling.upper())
            for band, found in enumerate(statistics, start=1):
                if found is not None:
                    sink.update_tags(band, **{f"STATISTICS_{name.upper()}": repr(value) for name, value in found})
        return tags_of(memory.read())


def _verify(draft: Path, target: Path, written: _Written, levels: Sequence[Level], whole: Place) -> None:
    """Validate the structure and compare the file with what was handed in.

    All tiles are compared as they are stored; one in ``_DECODED_EVERY`` of the full resolution is decoded as well.
    """
    try:
        validate_cog(draft)
        with rasterio.open(draft) as source:
            with draft.open("rb", buffering=0) as stored:
                _compare_stored(source, stored, target, levels, whole)
            _compare_decoded(source, target, written)
    except (InvalidSceneError, OSError, RasterioError, CPLE_BaseError) as err:
        raise SinkError(f"{target}: the file just written cannot be read back ({err}); check the disk") from err


def _compare_stored(source: DatasetReader, stored: FileIO, target: Path, levels: Sequence[Level], whole: Place) -> None:
    """Whether every tile lies, as it was compressed, where GDAL finds it, and its mask behind it."""
    masked = bool(levels[0].mask)
    for number, level in enumerate(levels):
        overview = number - 1 if number else None
        for (row, col), image in level.image.items():
            at = int(source.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1, ovr=overview) or 0)
            tiles = [(at, image)]
            if masked:
                tiles.append((at + image.size + TILE_MARGIN_BYTES, level.mask.get((row, col), whole)))
            for offset, tile in tiles:
                stored.seek(offset)
                if google_crc32c.value(stored.read(tile.size)) != tile.checksum:
                    raise SinkError(
                        f"{target}: the file does not hold the tile at row {row * TILE_PX}, column {col * TILE_PX} of "
                        f"the resolution 1:{2**number} as it was written; the disk may be full or failing"
                    )


def _compare_decoded(source: DatasetReader, target: Path, written: _Written) -> None:
    """Whether GDAL decodes some tiles to the pixels that were handed in."""
    whole = all(flags == [MaskFlags.all_valid] for flags in source.mask_flag_enums)
    for index, tile in written.tiles.items():
        if tile.checksum is None:
            continue
        row, col = (TILE_PX * at for at in index)
        window = Window(col, row, min(TILE_PX, source.width - col), min(TILE_PX, source.height - row))
        values = source.read(window=window)
        inside = values[0].size if whole else int(np.count_nonzero(source.dataset_mask(window=window)))
        found, kept = (inside, _checksum(values)), (tile.valid_pixels, tile.checksum)
        if found != kept:
            raise SinkError(
                f"{target}: read back {found} as number of valid pixels and checksum of the tile at row {row}, "
                f"column {col}, wrote {kept}; the disk may be full or failing"
            )


@contextlib.contextmanager
def _flushed(draft: Path, target: Path) -> Iterator[None]:
    """The file is on disk at the end; the disk works while the caller does."""
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(flush, draft)
        yield
        with _as_sink_error(target):
            done.result()


def _settle(draft: Path, target: Path) -> None:
    """Rename what was flushed: a reader sees the old file, or the whole new one.

    What GDAL kept beside the old file (mask, statistics, overviews) goes with it: it would be taken for the new one's.
    """
    for suffix in SIDECARS:
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    draft.replace(target)
    flush(target.parent)
