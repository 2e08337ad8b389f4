"""Tiles of a raster and of its overviews, compressed while blocks of it come in.

A block is cut along the tiles of the file. A tile that is complete goes to a thread, which compresses it into the spool
and halves it into the next resolution, where it may complete another tile. So everything is handled while it is in
memory, whatever the order of the blocks, and the result does not depend on that order.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from pancrafter.errors import GridMismatchError

Array = NDArray[Any]
Resampling = Literal["average", "mode"]
Index = tuple[int, int]
"""Row and column of a tile in its level."""

TILE_PX = 512

_GIVEN_BACK_BYTES = 2**24
"""Of a spool that is not needed any more, so much is given back to the disk at once."""


class Tile(NamedTuple):
    """Pixels (band, y, x) of one tile, smaller at the right and lower border, and which are valid (y, x); None: all."""

    values: Array
    valid: NDArray[np.bool_] | None


class Place(NamedTuple):
    """Where a compressed tile lies in the spool, in bytes, and the CRC-32C of its bytes."""

    offset: int
    size: int
    checksum: int


class Spool:
    """A scratch file that compressed tiles are added to, by any thread, in the order in which they are ready.

    It has no name, so that it is gone with the process however that ends, and what the disk has not taken by then is
    never written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by ``close``
        self._lock = threading.Lock()
        self._end = 0

    def add(self, content: bytes) -> Place:
        """Write one tile.

        Raises:
            OSError: The disk is full or fails.
        """
        checksum = int(google_crc32c.value(content))
        with self._lock:
            place = Place(self._end, len(content), checksum)
            self._file.write(content)
            self._end += len(content)
            return place

    def copy(self, place: Place, sink: BufferedWriter) -> None:
        """Append one tile to a file.

        The system copies where it can, which takes a third of the time of copying through the memory of this process
        (1.7 GB: 0.8 in place of 2.3 s).

        Raises:
            OSError: The disk is full or fails.
        """
        with self._lock:
            self._file.seek(place.offset)
            if sys.platform != "linux":
                sink.write(self._file.read(place.size))
                return
            sink.flush()
            at, end = place.offset, place.offset + place.size
            while at < end:
                copied = os.sendfile(sink.fileno(), self._file.fileno(), at, end - at)
                if not copied:
                    raise OSError(f"the scratch file of tiles ends at byte {at}, expected {end}")
                at += copied

    def shrink(self, size: int) -> None:
        """Give back what lies behind ``size``, some of it at a time."""
        with self._lock:
            if self._end - size >= _GIVEN_BACK_BYTES:
                self._file.truncate(size)
                self._end = size

    def last_bytes(self, place: Place) -> bytes:
        """The last four of a tile."""
        with self._lock:
            self._file.seek(place.offset + place.size - 4)
            return self._file.read(4)

    def close(self) -> None:
        """The file is gone; what a full disk did not take is not missed any more."""
        with suppress(OSError):
            self._file.close()


@dataclass(frozen=True)
class Coding:
    """How pixels become the bytes of a tile: pixel by pixel, differences along rows, ZSTD."""

    dtype: np.dtype[Any]
    level: int
    """Of ZSTD: 1 is fast, 9 small."""
    differences: bool
    """Pay on images and not on bit fields."""
    masks: bool
    """Whether a mask tells where tiles have holes; otherwise a value does."""

    @property
    def predictor(self) -> int:
        """The value of TIFF's Predictor tag: 1 none, 2 differences of numbers, 3 differences of the bytes of floats."""
        if not self.differences:
            return 1
        return 3 if self.dtype.kind == "f" else 2

    def encoded(self, values: Array) -> bytes:
        """The bytes of one tile (band, y, x), filled up to a whole tile with its last row and column."""
        _, rows, cols = values.shape
        if (rows, cols) != (TILE_PX, TILE_PX):
            values = np.pad(values, ((0, 0), (0, TILE_PX - rows), (0, TILE_PX - cols)), mode="edge")
        pixels = {1: _interleaved, 2: _differences, 3: _byte_differences}[self.predictor](values)
        return bytes(zstd.compress(pixels, self.level))

    def encoded_mask(self, valid: NDArray[np.bool_]) -> bytes:
        """The bytes of the mask of one tile (y, x), a bit a pixel."""
        rows, cols = valid.shape
        whole = np.pad(valid, ((0, TILE_PX - rows), (0, TILE_PX - cols)), mode="edge")
        return bytes(zstd.compress(np.packbits(whole, axis=1), self.level))


def _interleaved(values: Array) -> Array:
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _differences(values: Array) -> Array:
    """TIFF's predictor 2: each pixel less the one before it, modulo the range of its type."""
    numbers = values.view(f"u{values.dtype.itemsize}")
    out = np.empty((*values.shape[1:], values.shape[0]), numbers.dtype)
    for band, plane in enumerate(numbers):
        out[:, 0, band] = plane[:, 0]
        np.subtract(plane[:, 1:], plane[:, :-1], out=out[:, 1:, band])
    return out


def _byte_differences(values: Array) -> Array:
    """TIFF's predictor 3: the bytes of a row's floats by significance, each less the one of the pixel before it.

    Source: Adobe Photoshop TIFF Technical Note 3.
    """
    rows, width, bands = (pixels := _interleaved(values)).shape
    size = values.dtype.itemsize
    planes = pixels.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(rows, width * bands, size)
    ordered = planes.transpose(0, 2, 1).reshape(rows, -1)
    out = ordered.copy()
    out[:, bands:] -= ordered[:, :-bands]
    return out


@dataclass
class Level:
    """One resolution: its size, and where its tiles and the masks of those with holes lie in the spool."""

    shape_yx: tuple[int, int]
    image: dict[Index, Place] = field(default_factory=dict)
    mask: dict[Index, Place] = field(default_factory=dict)

    @property
    def tiles_yx(self) -> tuple[int, int]:
        """Number of tiles below and beside each other."""
        rows, cols = self.shape_yx
        return -(-rows // TILE_PX), -(-cols // TILE_PX)

    def indices(self) -> Iterator[Index]:
        """All tiles, row by row."""
        rows, cols = self.tiles_yx
        return ((row, col) for row in range(rows) for col in range(cols))


def levels_of(shape_yx: tuple[int, int]) -> list[Level]:
    """The full resolution and its halvings until the longer side fits a tile."""
    levels = [Level(shape_yx)]
    while max(levels[-1].shape_yx) > TILE_PX:
        rows, cols = levels[-1].shape_yx
        levels.append(Level((-(-rows // 2), -(-cols // 2))))
    return levels


def neighbours_together(windows: Iterable[tuple[slice, slice]]) -> list[tuple[slice, slice]]:
    """Windows (rows, columns) in Morton's order: after each other in squares of squares.

    So tiles of the overviews are soon complete, and few wait in memory, however wide the raster is.
    """
    return sorted(windows, key=lambda window: _morton(window[0].start, window[1].start))


def _morton(row: int, col: int) -> int:
    """The bits of row and column taken in turn."""
    return sum((row >> bit & 1) << 2 * bit + 1 | (col >> bit & 1) << 2 * bit for bit in range(32))


class OverlapError(ValueError):
    """A pixel came twice."""


class _Canvas:
    """Tiles of one level of which only a part has come yet."""

    def __init__(self, level: Level, count: int, dtype: np.dtype[Any]) -> None:
        self._level, self._count, self._dtype = level, count, dtype
        self._lock = threading.Lock()
        self._begun: dict[Index, tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]] = {}
        self._complete: set[Index] = set()

    def add(self, index: Index, corner_yx: tuple[int, int], part: Tile) -> Tile | None:
        """Take a part of a tile; the tile if it is complete with it.

        Args:
            index: The tile.
            corner_yx: Where in the tile the part begins.
            part: Its pixels; those of a whole tile are given back as they are.

        Raises:
            OverlapError: Some of these pixels came before.
        """
        shape = tuple(min(TILE_PX, size - at * TILE_PX) for at, size in zip(index, self._level.shape_yx, strict=True))
        (top, left), (rows, cols) = corner_yx, part.values.shape[1:]
        where = slice(top, top + rows), slice(left, left + cols)
        with self._lock:
            begun = self._begun.get(index)
            if index in self._complete or (begun is not None and begun[2][where].any()):
                raise OverlapError
            if (rows, cols) == shape:
                self._complete.add(index)
                return part
            if begun is None:
                begun = np.empty((self._count, *shape), self._dtype), np.ones(shape, bool), np.zeros(shape, bool)
                self._begun[index] = begun
            values, valid, filled = begun
            values[:, *where] = part.values
            if part.valid is not None:
                valid[where] = part.valid
            filled[where] = True
            if not filled.all():
                return None
            del self._begun[index]
            self._complete.add(index)
        return Tile(values, None if valid.all() else valid)


class Pyramid:
    """Takes blocks of a raster and leaves the compressed tiles of all its resolutions in a spool.

    Args:
        shape_yx: Size of the raster, pixels.
        count: Bands.
        coding: How tiles are compressed.
        spool: Where they go.
        resampling: ``average`` of the valid pixels of each two by two, or their ``mode`` (the most frequent value, of
            equally frequent ones the first; it takes no holes).
        prepared: Called with every tile of every level before it is compressed, in any thread, with the number of the
            level; gives back what is written.
        threads: That compress beside the caller's.
        name: Of the raster, in errors.
    """

    def __init__(
        self, shape_yx: tuple[int, int], count: int, coding: Coding, spool: Spool, resampling: Resampling,
        prepared: Callable[[int, Index, Tile], Tile], threads: int, name: str,
    ) -> None:  # fmt: skip
        self.levels = levels_of(shape_yx)
        self._coding, self._spool, self._prepared = coding, spool, prepared
        self._halved = _averages if resampling == "average" else _modes
        self._canvases = [_Canvas(level, count, coding.dtype) for level in self.levels]
        self._threads, self._name = threads, name
        self._pool: ThreadPoolExecutor
        self._pending: deque[Future[None]] = deque()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Threads are at hand inside; an error drops what they have not begun."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="tiles") as self._pool:
            try:
                yield
            except BaseException:
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise

    def add(self, top: int, left: int, block: Tile) -> None:
        """Take the block whose first pixel is (top, left); its arrays must not be changed any more.

        Raises:
            GridMismatchError: Some of its pixels came before.
            OSError: The spool cannot be written.
        """
        _, height, width = block.values.shape
        for row in range(top // TILE_PX, -(-(top + height) // TILE_PX)):
            for col in range(left // TILE_PX, -(-(left + width) // TILE_PX)):
                y, x = max(top, row * TILE_PX), max(left, col * TILE_PX)
                rows = slice(y - top, min(top + height, (row + 1) * TILE_PX) - top)
                cols = slice(x - left, min(left + width, (col + 1) * TILE_PX) - left)
                part = Tile(block.values[:, rows, cols], None if block.valid is None else block.valid[rows, cols])
                try:
                    whole = self._canvases[0].add((row, col), (y - row * TILE_PX, x - col * TILE_PX), part)
                except OverlapError as error:
                    raise self._mismatch(f"blocks overlap in the tile at row {y}, column {x}") from error
                if whole is not None:
                    self._wait(2 * self._threads - 1)
                    self._pending.append(self._pool.submit(self._finish, (row, col), whole))

    def finish(self) -> None:
        """Until every tile is in the spool.

        Raises:
            GridMismatchError: Some pixels did not come.
            OSError: The spool cannot be written.
        """
        self._wait(0)
        for row, col in self.levels[0].indices():
            if (row, col) not in self.levels[0].image:
                y, x = row * TILE_PX, col * TILE_PX
                raise self._mismatch(f"blocks leave out pixels of the tile at row {y}, column {x}")

    def _mismatch(self, found: str) -> GridMismatchError:
        rows, cols = self.levels[0].shape_yx
        return GridMismatchError(f"{self._name}: {found}; cover the grid of {rows} x {cols} exactly once")

    def _wait(self, at_most: int) -> None:
        """Until no more tiles than this are in work."""
        while len(self._pending) > at_most:
            self._pending.popleft().result()

    def _finish(self, index: Index, tile: Tile) -> None:
        """Compress a complete tile and what its halving completes in the resolutions after it."""
        for number, level in enumerate(self.levels):
            written = self._prepared(number, index, tile)
            level.image[index] = self._spool.add(self._coding.encoded(written.values))
            if written.valid is not None and self._coding.masks:
                level.mask[index] = self._spool.add(self._coding.encoded_mask(written.valid))
            if number + 1 == len(self.levels):
                return
            corner = tuple(at % 2 * TILE_PX // 2 for at in index)
            index = index[0] // 2, index[1] // 2
            next_tile = self._canvases[number + 1].add(index, (corner[0], corner[1]), self._halved(written))
            if next_tile is None:
                return
            tile = next_tile


def _even(plane: Array) -> Array:
    """The last row and column twice where their number is odd; axes (..., y, x)."""
    rows, cols = plane.shape[-2:]
    if rows % 2 == cols % 2 == 0:
        return plane
    return np.pad(plane, [(0, 0)] * (plane.ndim - 2) + [(0, rows % 2), (0, cols % 2)], mode="edge")


def _quads(plane: Array) -> tuple[Array, Array, Array, Array]:
    """The four pixels of each two by two, axes (..., y, x)."""
    return plane[..., ::2, ::2], plane[..., ::2, 1::2], plane[..., 1::2, ::2], plane[..., 1::2, 1::2]


def _sums(plane: Array, dtype: Any) -> Array:
    """Of each two by two, axes (..., y, x)."""
    rows = np.add(plane[..., ::2, :], plane[..., 1::2, :], dtype=dtype)
    return np.add(rows[..., ::2], rows[..., 1::2], dtype=dtype)


def _averages(tile: Tile) -> Tile:
    """Means of the valid pixels of each two by two, whole numbers rounded half up; valid where any of them is."""
    values, kind = _even(tile.values), tile.values.dtype.kind
    wide = _adds_up_in(values)
    if tile.valid is None:
        sums = _sums(values, wide)
        means = sums / 4 if kind == "f" else (sums + 2) >> 2
        return Tile(means.astype(values.dtype, copy=False), None)
    inside = _even(tile.valid)
    sums, number = _sums(np.where(inside, values, 0), wide), _sums(inside, np.int32)
    divisor = np.maximum(number, 1)
    means = sums / divisor if kind == "f" else (sums + divisor // 2) // divisor
    return Tile(means.astype(values.dtype), number > 0)


def _adds_up_in(values: Array) -> np.dtype[Any]:
    """A type that holds the sum of any four of these values, and two more; their own, where it does, is the fastest."""
    own = values.dtype
    if own.kind == "f" or (own.kind == "u" and 4 * int(values.max()) + 2 <= np.iinfo(own).max):
        return own
    return np.dtype(np.int32 if own.itemsize <= 2 else np.int64)


def _modes(tile: Tile) -> Tile:
    """The most frequent of each two by two."""
    if tile.valid is not None:
        raise ValueError("the mode of values beside holes has no meaning here; write such a raster with averages")
    a, b, c, d = _quads(_even(tile.values))
    two_of_the_rest = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    return Tile(np.where((a == b) | (a == c) | (a == d), a, two_of_the_rest), None)
