"""Windows of source files as DN: the only door to the sources' pixels.

A window that cannot be read fails the scene; it never becomes nodata.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from pancrafter.errors import InvalidSceneError
from pancrafter.headers import Source, Sources, alpha_bands
from pancrafter.opening import GDAL_OPTIONS, READ_ERRORS, Handle, open_source, read_failure, signed_anew
from pancrafter.store import Mask, Pixels, Window, cut_windows, widened_window, window_inside
from pancrafter.types import PairGrid

DN_LIMIT = int(np.iinfo(np.uint16).max)
"""Staged DN are uint16."""

_MAX_OPEN_FILES = 16
COUNTING_PX = 1024
_NEAR_PX = 8
"""Holes are first filled from this near: most are specks, and reaching far costs several times as much."""

_WARP_TOLERANCE_PX = 1e-3  # of MS; GDAL does not take 0


class _OpenFiles(threading.local):
    """Open datasets of one thread; GDAL handles must not be shared. They are closed when another staging begins."""

    def __init__(self) -> None:
        self._token = ""
        self._handles: OrderedDict[str, Handle] = OrderedDict()

    def get(self, source: Source, token: str) -> Handle:
        if token != self._token:
            self._close_down_to(0)
            self._token = token
        if source.href not in self._handles:
            self._close_down_to(_MAX_OPEN_FILES - 1)
            handle = open_source(source.href, source.access, source.scene, source.asset)
            self._handles[source.href] = (
                handle._replace(dataset=_warped(handle.dataset, source)) if source.warped else handle
            )
        self._handles.move_to_end(source.href)
        return self._handles[source.href]

    def drop(self, href: str) -> None:
        """Close a file that must be opened anew."""
        if href in self._handles:
            self._handles.pop(href).close()

    def _close_down_to(self, count: int) -> None:
        while len(self._handles) > count:
            self._handles.popitem(last=False)[1].close()


_OPEN_FILES = _OpenFiles()


def _warped(dataset: Any, source: Source, resampling: Resampling = Resampling.cubic) -> Any:  # Any: rasterio is untyped
    """The file seen on the source's grid: Keys' cubic, exact positions; an alpha band says what was interpolated."""
    alpha = alpha_bands(dataset)
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
        resampling=resampling,
        tolerance=_WARP_TOLERANCE_PX,
        src_nodata=source.nodata[0],
        nodata=source.nodata[0],
        add_alpha=not alpha,
        UNIFIED_SRC_NODATA="PARTIAL",  # each band by itself, or a hole of one is interpolated into its surroundings
        # or beside alpha a hole of one band only is 0, whatever nodata is; GDAL reads "nan" as 0 too
        init_dest_nodata=False,
        INIT_DEST="0" if source.nodata[0] is None else str(source.nodata[0]).replace("nan", "inf"),
    )


@dataclass(frozen=True, eq=False)
class Held:
    """All pixels of one grid in memory, as ``WindowReader.read_raw`` gives them."""

    pixels: Pixels
    """(band, y, x) DN."""
    invalid: NDArray[np.bool_]
    """(y, x); takes memory only where there are holes."""

    @classmethod
    def room_for(cls, reader: WindowReader) -> Held:
        """Arrays of the right size, to be filled."""
        return cls(np.empty((reader.band_count, *reader.shape_yx), np.uint16), np.zeros(reader.shape_yx, np.bool_))


@dataclass(frozen=True)
class WindowReader:
    """Reads windows of the cropped grid from one or more files of the same grid, with holes filled.

    A pixel is invalid if any of its bands is; all bands of an invalid pixel are filled from the same place, so its
    spectrum is one that was measured.
    """

    sources: tuple[Source, ...]
    offset_yx: tuple[int, int]
    shape_yx: tuple[int, int]
    reach: int
    token: str
    """Distinguishes this staging's open files from those of an earlier one that read the same names."""
    held: Held | None = None
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
            wide = widened_window(window, reach, self.shape_yx)
            wide_pixels, wide_valid, more = self.read_raw(wide)
            bytes_read += more
            y, x = window_inside(window, wide)
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
        for window in cut_windows(self.shape_yx, COUNTING_PX):
            for source in self.sources:
                _, measured = _read_source(source, self._in_file(window), self.token)
                empty -= {place for place, valid in zip(source.positions, measured, strict=True) if valid.any()}
        return min(empty, default=None)

    def _in_file(self, window: Window) -> RasterWindow:
        (row, col), (y, x) = self.offset_yx, window
        return RasterWindow(x.start + col, y.start + row, x.stop - x.start, y.stop - y.start)


def window_readers(sources: Sources, pair: PairGrid, reach_px: int) -> tuple[WindowReader, WindowReader]:
    """Of PAN and of MS, for one staging: they share a token, or each would close the other's files."""
    token = uuid.uuid4().hex
    return (
        WindowReader((sources.pan,), pair.pan_offset_yx, pair.pan.shape_yx, reach_px, token),
        WindowReader(sources.ms, pair.ms_offset_yx, pair.ms_shape_yx, -(-reach_px // pair.ratio), token),
    )


def _read_source(source: Source, window: RasterWindow, token: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values and whether each was measured, both ``(band, y, x)``."""
    try:
        values, measured = signed_anew(
            lambda: _read_window(source, window, token),
            source.href,
            source.access,
            before_again=lambda: _OPEN_FILES.drop(source.href),
        )
    except READ_ERRORS as err:
        failure = read_failure(err, source.scene, source.asset, source.href, what=_describe_window(window))
    else:
        for band, nodata in enumerate(source.nodata):
            if nodata is not None and math.isfinite(nodata):
                measured[band] &= values[band] != _as_stored(nodata, values.dtype)
        return values, measured
    raise failure


def _read_window(source: Source, window: RasterWindow, token: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    dataset, options, _ = _OPEN_FILES.get(source, token)
    with rasterio.Env(**GDAL_OPTIONS, **options):
        values = dataset.read(source.indexes, window=window)
        measured = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        if source.warped:  # that alpha knows of the file's mask, alpha and nodata
            measured &= dataset.read(alpha_bands(dataset)[0], window=window) != 0
            return _without_overshoot(values, dataset, source, window), measured
        if source.masked:
            measured &= dataset.read_masks(source.indexes, window=window) != 0
        if source.alpha is not None:
            measured &= dataset.read(source.alpha, window=window) != 0
    return values, measured


def _without_overshoot(values: NDArray[Any], dataset: Any, source: Source, window: RasterWindow) -> NDArray[Any]:
    """Interpolated values as whole DN that are no nodata unless the file's own are. Where its own are no DN: those."""
    nodata = _as_stored(math.nan if source.nodata[0] is None else source.nodata[0], values.dtype)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2 and not (values == nodata).any():
        return values
    with _warped(dataset.src_dataset, source, Resampling.nearest) as nearest:
        own = nearest.read(source.indexes, window=window)
        empty = (own == nodata) | ~np.isfinite(own) | (nearest.read(alpha_bands(nearest)[0], window=window) == 0)
    whole = np.rint(values, dtype=np.result_type(values, np.float32)).clip(0, DN_LIMIT)  # NumPy makes halves of bytes
    whole[whole == nodata] += 1 if nodata == 0 else -1
    sound = empty | ((own >= 0) & (own <= DN_LIMIT) & (own == np.rint(own)))
    return np.where(sound, np.where(empty & (values == nodata), values, whole), own)


def _as_stored(nodata: float, dtype: np.dtype[Any]) -> float:
    """The nodata value with the precision of the file: -3.4028235e38 written as text must still match float32."""
    return float(dtype.type(nodata)) if dtype.kind == "f" else nodata


def _to_dn(values: NDArray[Any], measured: NDArray[np.bool_], source: Source, window: Window) -> Pixels:
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


def _describe_window(window: RasterWindow) -> str:
    row, col, rows, cols = window.row_off, window.col_off, window.height, window.width
    return f"window rows {row}..{row + rows - 1}, columns {col}..{col + cols - 1}"


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


def read_raster(path: str) -> NDArray[Any]:
    """All bands of a small raster, ``(band, y, x)`` in the file's type."""
    with rasterio.open(path) as source:
        pixels: NDArray[Any] = source.read()
        return pixels
