"""The Zarr v3 group that holds one scene between the steps, and the only door to zarr.

Layout of a scene group (`open_scene` gives it as an xarray dataset, in which rioxarray finds the CRS)::

    pan           (y, x)          uint16  filled DN of the cropped PAN
    pan_valid     (y, x)          uint8   1 where PAN was measured, 0 where it was filled
    ms            (band, ym, xm)  uint16  filled DN of the cropped MS, bands in the scene's order
    ms_valid      (ym, xm)        uint8   1 where every band was measured
    sharpened     (band, y, x)    uint16  the result; exists after ``begin_sharpening``
    consistency   (by, bx)        float32 ERGAS per block of MS pixels; exists after assessment
    done          (block_y, block_x) uint8  1 where that block of ``sharpened`` is finished; one object per block
    y, x, ym, xm                    pixel centres in CRS units; spatial_ref carries the CRS as WKT

A *block* is ``block_px`` PAN pixels square and is one shard of ``pan``, ``pan_valid`` and ``sharpened``; MS arrays have
shards of about ``block_px / ratio``. **One task writes one whole shard**: two writers inside a shard lose data without
an error. Shards of zeros are written like any other, so a missing shard is a loss that can be noticed. Every chunk
carries a CRC-32C, so a damaged one fails its reader. Where ``pan_valid`` or ``ms_valid`` hold ``UNWRITTEN``, their
shard and that of the pixels (written first) were not staged yet: that is how an interrupted staging is resumed.

Group attributes: ``format_version``, ``staging`` (digest of what the pixels were staged from), ``block_px``, ``recipe``
(of ``sharpened``, written after its arrays exist), and, last of all, ``staged`` (StagedScene) with ``complete``.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import zarr
import zarr.codecs
import zarr.errors
import zarr.storage
from numpy.typing import NDArray

from pancrafter import killpoints
from pancrafter.errors import InvalidSceneError, SinkError, TransientReadError
from pancrafter.grid import ms_grid, pixel_centres
from pancrafter.types import FORMAT_VERSION, PairGrid, StagedScene

if TYPE_CHECKING:
    import xarray as xr

Mode = Literal["r", "r+"]
Block = tuple[int, int]
"""Row and column of a block in the block grid."""

Window = tuple[slice, slice]
"""Rows and columns with explicit start and stop, inside the array."""

Pixels = NDArray[np.uint16]
Mask = NDArray[np.uint8]

DN_DTYPE = "uint16"
_ARRAY_CONFIG: Any = {"write_empty_chunks": True}  # Any: zarr's own type for it is private
# Level 1: 2 % larger than level 3 on real PAN, in less than half the time; the store is gone after publishing.
_CODECS = (zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), zarr.codecs.Crc32cCodec())
_LEAST_CHUNK_PX = 256
"""Shards up to this side, as those of MS are, are one chunk a band: smaller ones cost more than they save."""
UNWRITTEN = 255
"""Value of the validity masks in shards that were not written."""


class PixelReader(Protocol):
    """Reads windows of a scene's matched PAN and MS grids: a ``SceneStore``, or something that reads like one."""

    def read_pan(self, window: Window) -> Pixels:
        """Filled PAN DN (y, x) of a window on the PAN grid."""

    def read_ms(self, window: Window) -> Pixels:
        """Filled MS DN (band, y, x) of a window on the MS grid."""

    def read_pan_valid(self, window: Window) -> Mask:
        """1 where PAN was measured, 0 where it was filled; (y, x) on the PAN grid."""

    def read_ms_valid(self, window: Window) -> Mask:
        """1 where every MS band was measured; (y, x) on the MS grid."""


class BlockGrid:
    """The grids of a scene and its blocks, for what reads like a ``SceneStore`` without being one.

    Attributes:
        grid: Both grids, cropped to what they share.
        block_px: Edge of a block, PAN pixels.
    """

    def __init__(self, grid: PairGrid, block_px: int) -> None:
        self.grid = grid
        self.block_px = block_px

    @property
    def pan_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the PAN grid."""
        return self.grid.pan.shape_yx

    @property
    def ms_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the MS grid."""
        return self.grid.ms_shape_yx

    @property
    def blocks_yx(self) -> tuple[int, int]:
        """Rows and columns of the block grid."""
        return _blocks(self.pan_shape_yx, self.block_px)

    def block_window(self, block: Block) -> Window:
        """PAN pixels of a block; blocks of the last row and column may be smaller."""
        return _shard_window(block, self.pan_shape_yx, self.block_px)


class SceneStore:
    """One scene's pixels and progress; cheap to open, safe to open in every worker, picklable by reference.

    Attributes:
        uri: Where the group lies: a path, ``file://`` or any fsspec URL such as ``s3://bucket/prefix``.
    """

    def __init__(self, uri: str, group: zarr.Group | None, mode: Mode) -> None:
        self.uri = uri
        self._opened = group
        self._mode: Mode = mode
        self._arrays: dict[str, Any] = {}

    @classmethod
    def create(
        cls, uri: str, grid: PairGrid, *, bands: tuple[str, ...], staging: str, crs_wkt: str, block_px: int = 1024
    ) -> SceneStore:
        """An empty, incomplete store with all staging arrays; whatever was at ``uri`` is removed.

        Args:
            uri: Where to create it.
            grid: The cropped grids of the scene.
            bands: Names of the MS bands, in order.
            staging: Digest of everything the staged pixels depend on.
            crs_wkt: WKT of the grid's CRS, for readers of ``spatial_ref``.
            block_px: Edge of a block in PAN pixels; even.

        Raises:
            SinkError: The place cannot be written.
        """
        if block_px < 2 or block_px % 2:
            raise ValueError(f"block_px is {block_px}, expected an even number of at least 2")
        attributes = {"format_version": FORMAT_VERSION, "staging": staging, "block_px": block_px, "complete": False}
        with _writing(uri):
            group = zarr.create_group(_zarr_store(uri, "r+"), zarr_format=3, overwrite=True, attributes=attributes)
            _create_staging_arrays(group, grid, bands, block_px)
            _write_coordinates(group, grid, crs_wkt)
        return cls(uri, group, "r+")

    @classmethod
    def open(cls, uri: str, mode: Mode = "r") -> SceneStore:
        """The store at ``uri``, complete or not.

        Raises:
            InvalidSceneError: There is no scene store of this format at ``uri``.
            SinkError: The place may not be used.
            TransientReadError: The place did not answer.
        """
        return cls(uri, _open_group(uri, mode), mode)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is opened when it is used: Dask's scheduler unpickles every task and need not reach the store."""
        return (SceneStore, (self.uri, None, self._mode))

    @property
    def _group(self) -> zarr.Group:
        if self._opened is None:
            fault = ""
            try:
                self._opened = _open_group(self.uri, self._mode)
            except InvalidSceneError as err:
                fault = err.message
            if fault:  # raised out here: with zarr's error in its wake it would not survive the way from a Dask worker
                raise TransientReadError(f"{fault}, or, as others have opened it, let every worker see that folder")
        assert self._opened is not None
        return self._opened

    @classmethod
    def resume(cls, uri: str, staging: str) -> SceneStore | None:
        """An interrupted store at ``uri`` that was to hold the same pixels; None where there is none to go on with."""
        try:
            store = cls.open(uri, "r+")
        except InvalidSceneError:
            return None
        return store if store.staging == staging else None

    # --- what the store says about itself -------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether staging finished: every shard was written and counted."""
        return bool(self._group.attrs.get("complete", False))

    @property
    def staging(self) -> str:
        """Digest of what the pixels were staged from."""
        return str(self._group.attrs["staging"])

    @property
    def recipe(self) -> str | None:
        """Recipe of ``sharpened``; None before ``begin_sharpening``."""
        recipe = self._group.attrs.get("recipe")
        return None if recipe is None else str(recipe)

    @property
    def block_px(self) -> int:
        """Edge of a block, PAN pixels."""
        value = self._group.attrs["block_px"]
        assert isinstance(value, int)
        return value

    @property
    def staged(self) -> StagedScene:
        """The record that staging left.

        Raises:
            InvalidSceneError: Staging has not finished.
        """
        if not self.complete:
            raise InvalidSceneError(f"staging of {self.uri} has not finished; stage the scene again")
        return StagedScene.model_validate_json(str(self._group.attrs["staged"]))

    @property
    def pan_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the PAN grid."""
        rows, cols = self._array("pan").shape
        return rows, cols

    @property
    def ms_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of the MS grid."""
        rows, cols = self._array("ms").shape[1:]
        return rows, cols

    @property
    def band_count(self) -> int:
        """How many MS bands the scene has."""
        return int(self._array("ms").shape[0])

    # --- blocks ---------------------------------------------------------------------------------------------------

    @property
    def blocks_yx(self) -> tuple[int, int]:
        """Rows and columns of the block grid."""
        return _blocks(self.pan_shape_yx, self.block_px)

    @property
    def block_count(self) -> int:
        """How many blocks the scene has."""
        rows, cols = self.blocks_yx
        return rows * cols

    def block_window(self, block: Block) -> Window:
        """PAN pixels of a block; blocks of the last row and column may be smaller."""
        return _shard_window(block, self.pan_shape_yx, self.block_px)

    def pan_windows(self) -> Iterator[Window]:
        """Every shard of the PAN arrays, row by row."""
        return cut_windows(self.pan_shape_yx, self.block_px)

    def ms_windows(self) -> Iterator[Window]:
        """Every shard of the MS arrays, row by row."""
        return cut_windows(self.ms_shape_yx, int(self._array("ms_valid").shards[0]))

    # --- staged pixels --------------------------------------------------------------------------------------------

    def read_pan(self, window: Window) -> Pixels:
        """Filled PAN DN ``(y, x)`` of a window on the PAN grid."""
        return self._read("pan", window)

    def read_ms(self, window: Window) -> Pixels:
        """Filled MS DN ``(band, y, x)`` of a window on the MS grid."""
        return self._read("ms", (slice(None), *window))

    def read_pan_valid(self, window: Window) -> Mask:
        """1 where PAN was measured, 0 where it was filled; ``(y, x)`` on the PAN grid."""
        return self._read("pan_valid", window)

    def read_ms_valid(self, window: Window) -> Mask:
        """1 where every MS band was measured; ``(y, x)`` on the MS grid."""
        return self._read("ms_valid", window)

    def write_pan(self, window: Window, pixels: Pixels, valid: Mask) -> None:
        """Write one shard of PAN; ``window`` must be one of ``pan_windows``."""
        self._write("pan", window, pixels)
        self._write("pan_valid", window, valid)

    def write_ms(self, window: Window, pixels: Pixels, valid: Mask) -> None:
        """Write one shard of MS ``(band, y, x)``; ``window`` must be one of ``ms_windows``."""
        self._write("ms", (slice(None), *window), pixels)
        self._write("ms_valid", window, valid)

    def finish_staging(self, staged: StagedScene) -> None:
        """Check that every shard arrived, then record ``staged`` and completeness in one object.

        Raises:
            TransientReadError: Shards are missing although every write succeeded.
        """
        for name in ("pan", "pan_valid", "ms", "ms_valid"):
            array = self._array(name)
            found, expected = array.nchunks_initialized, _chunk_count(array)
            if found != expected:
                raise TransientReadError(
                    f"store {self.uri}: {name} holds {found} chunks, expected {expected}; stage the scene again"
                )
        with _writing(self.uri):
            self._group.attrs.update({"staged": staged.model_dump_json(), "complete": True})

    # --- sharpened pixels -----------------------------------------------------------------------------------------

    def begin_sharpening(self, recipe: str) -> None:
        """Prepare ``sharpened`` and ``done`` for a recipe: kept if they hold it already, else made anew and empty.

        They are made anew too where a finished block is gone. Not safe to call from several processes at once; call it
        once per scene, before handing out blocks.

        Raises:
            InvalidSceneError: Staging has not finished.
            SinkError: The place cannot be written.
        """
        if not self.complete:
            raise InvalidSceneError(f"staging of {self.uri} has not finished; stage the scene again")
        if self.recipe == recipe and not self._lost_blocks():
            return
        with _writing(self.uri):
            # The recipe goes first and comes last: a crash in between leaves arrays that no recipe claims.
            self._group.attrs.update({"recipe": None})
            for name in ("done", "sharpened"):
                if name in self._group:
                    del self._group[name]
            _create_sharpened_arrays(self._group, self.block_px)
            self._group.attrs.update({"recipe": recipe})

    def _lost_blocks(self) -> bool:
        """Whether ``sharpened`` holds less than what is done."""
        array = self._array("sharpened")
        return bool(array.nchunks_initialized * self.block_count < _chunk_count(array) * self.done_count)

    def require_result(self) -> None:
        """Check that every block of the result is there: a missing one would be read as zeros.

        Raises:
            TransientReadError: Blocks are missing.
        """
        array = self._array("sharpened")
        found, expected = array.nchunks_initialized, _chunk_count(array)
        if found != expected:
            raise TransientReadError(
                f"store {self.uri}: sharpened holds {found} chunks, expected {expected}; files were lost on its disk: "
                "look at it, then run again, which sharpens the scene anew"
            )

    def write_block(self, block: Block, pixels: Pixels) -> None:
        """Write one whole block ``(band, y, x)`` of the result; mark it with ``mark_done`` afterwards.

        Raises:
            SinkError: The place cannot be written.
        """
        self._write("sharpened", (slice(None), *self.block_window(block)), pixels)

    def read_sharpened(self, window: Window) -> Pixels:
        """Result ``(band, y, x)`` of a window on the PAN grid; zeros where no block was written yet."""
        return self._read("sharpened", (slice(None), *window))

    def write_consistency(self, values: NDArray[np.float32]) -> None:
        """Keep the local consistency of the result, one value per block of MS pixels, for the quality raster."""
        with _writing(self.uri):
            self._group.create_array("consistency", data=np.asarray(values, np.float32), overwrite=True)

    def read_consistency(self) -> NDArray[np.float32]:
        """What ``write_consistency`` kept, (y, x); NaN where a block could not be compared."""
        whole = (slice(None), slice(None))
        return np.asarray(self._read("consistency", whole), np.float32)

    def mark_done(self, block: Block) -> None:
        """Record that a block is finished; one small object, written whole."""
        killpoints.at("block-written")
        row, col = block
        self._write("done", (slice(row, row + 1), slice(col, col + 1)), np.ones((1, 1), np.uint8))
        killpoints.at("block-done")

    def is_done(self, block: Block) -> bool:
        """Whether a block is finished."""
        row, col = block
        return bool(self._read("done", (slice(row, row + 1), slice(col, col + 1))).any())

    def done_flags(self) -> Mask:
        """1 per finished block, ``(block_y, block_x)``."""
        return self._read("done", (slice(None), slice(None)))

    def pending_blocks(self) -> list[Block]:
        """Blocks that are not finished, row by row."""
        return [(int(row), int(col)) for row, col in np.argwhere(self.done_flags() == 0)]

    @property
    def done_count(self) -> int:
        """How many blocks are finished."""
        return int(np.count_nonzero(self.done_flags()))

    # --- access to zarr -------------------------------------------------------------------------------------------

    def _array(self, name: str) -> Any:  # Any: zarr's array types are not generic over what we need
        if name not in self._arrays:
            if name not in self._group:
                raise InvalidSceneError(f"store {self.uri} has no array {name!r}; call begin_sharpening first")
            # zarr does not store this setting: without it a shard of zeros would be left out.
            array: Any = self._group[name]
            self._arrays[name] = array.with_config(_ARRAY_CONFIG)
        return self._arrays[name]

    def _read(self, name: str, selection: tuple[slice, ...]) -> NDArray[Any]:
        array = self._array(name)
        _require_inside(selection, array.shape, f"{self.uri}: {name}")
        try:
            return np.asarray(array[selection])
        except OSError as err:
            raise TransientReadError(f"store {self.uri}: {name}{_text(selection)} cannot be read: {err}") from err
        except (ValueError, RuntimeError) as err:  # what the codecs raise
            where = f"store {self.uri}: {name}{_text(selection)}"
            raise InvalidSceneError(f"{where} is damaged ({err}); delete the store and stage the scene again") from err

    def _write(self, name: str, selection: tuple[slice, ...], values: NDArray[Any]) -> None:
        array = self._array(name)
        _require_inside(selection, array.shape, f"{self.uri}: {name}")
        _require_whole_shards(selection, array, f"{self.uri}: {name}")
        expected = tuple(len(range(*part.indices(size))) for part, size in zip(selection, array.shape, strict=True))
        if values.shape != expected or values.dtype != array.dtype:
            raise ValueError(
                f"{name}{_text(selection)} takes {array.dtype} {expected}, found {values.dtype} {values.shape}"
            )
        with _writing(f"{self.uri}: {name}{_text(selection)}"):
            array[selection] = values


def open_scene(uri: str) -> xr.Dataset:
    """The scene group as a lazy xarray dataset, one Dask chunk per shard, with pixel centres and CRS as coordinates.

    PAN, its mask and the result lie on ``y, x``; MS and its mask on ``ym, xm`` (``ds.ms.rio.set_spatial_dims("xm",
    "ym")``). Close it, or use it as a context, when done.

    Raises:
        InvalidSceneError: There is no scene store of this format at ``uri``.
        TransientReadError: The place did not answer.
    """
    import rioxarray  # noqa: F401 - adds ``.rio`` to what is returned
    import xarray as xr

    store = SceneStore.open(uri)
    ms_block = int(store._array("ms_valid").shards[0])  # noqa: SLF001 - same module
    chunks = {"y": store.block_px, "x": store.block_px, "ym": ms_block, "xm": ms_block, "band": -1}
    dataset: xr.Dataset = xr.open_zarr(_zarr_store(uri, "r"), consolidated=False, chunks=None)
    return dataset.chunk({name: size for name, size in chunks.items() if name in dataset.dims})


# --- layout ---------------------------------------------------------------------------------------------------------


def _create_staging_arrays(group: zarr.Group, grid: PairGrid, bands: tuple[str, ...], block_px: int) -> None:
    ms_block = 2 * max(1, -(-block_px // (2 * grid.ratio)))
    pan, ms = _AXES["pan"], _AXES["ms"]
    _create(group, "pan", grid.pan.shape_yx, DN_DTYPE, dimensions=pan, shards=(block_px, block_px))
    mask: Any = {"dtype": "uint8", "fill_value": UNWRITTEN}  # Any: keyword arguments of mixed type
    _create(group, "pan_valid", grid.pan.shape_yx, dimensions=pan, shards=(block_px, block_px), **mask)
    shape = (len(bands), *grid.ms_shape_yx)
    _create(
        group, "ms", shape, DN_DTYPE, dimensions=("band", *ms), shards=(len(bands), ms_block, ms_block), bands=bands
    )
    _create(group, "ms_valid", grid.ms_shape_yx, dimensions=ms, shards=(ms_block, ms_block), **mask)


def _create_sharpened_arrays(group: zarr.Group, block_px: int) -> None:
    pan, ms = group["pan"], group["ms"]
    assert isinstance(pan, zarr.Array)
    assert isinstance(ms, zarr.Array)
    shape = (ms.shape[0], *pan.shape)
    names = ms.attrs["long_name"]
    assert isinstance(names, list)
    bands = tuple(str(name) for name in names)
    _create(
        group,
        "sharpened",
        shape,
        DN_DTYPE,
        dimensions=("band", "y", "x"),
        shards=(len(bands), block_px, block_px),
        bands=bands,
    )
    group.create_array(
        "done",
        shape=_blocks(pan.shape, block_px),
        dtype="uint8",
        chunks=(1, 1),
        fill_value=0,
        compressors=None,
        dimension_names=("block_y", "block_x"),
    )


_AXES = {"pan": ("y", "x"), "ms": ("ym", "xm")}


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    *,
    dimensions: tuple[str, ...],
    shards: tuple[int, ...],
    bands: tuple[str, ...] | None = None,
    fill_value: int = 0,
) -> None:
    attributes: dict[str, Any] = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    if bands is not None:
        attributes["long_name"] = list(bands)
    group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        shards=shards,
        chunks=(*(1 for _ in shards[:-2]), *(side if side <= _LEAST_CHUNK_PX else side // 2 for side in shards[-2:])),
        compressors=_CODECS,
        fill_value=fill_value,
        dimension_names=dimensions,
        attributes=attributes,
    )


def _write_coordinates(group: zarr.Group, grid: PairGrid, crs_wkt: str) -> None:
    """Pixel centres and CRS; no GeoTransform, which one ``spatial_ref`` could not give for both grids."""
    for part, names in ((grid.pan, _AXES["pan"]), (ms_grid(grid), _AXES["ms"])):
        for name, centres, axis in zip(names, pixel_centres(part), ("Y", "X"), strict=True):
            values = np.asarray(centres, np.float64)
            group.create_array(
                name,
                data=values,
                chunks=values.shape,
                dimension_names=(name,),
                attributes={"axis": axis},
                compressors=None,
            )
    group.create_array("spatial_ref", data=np.zeros((), np.int64), attributes={"crs_wkt": crs_wkt}, compressors=None)


def _blocks(shape_yx: tuple[int, ...], block_px: int) -> tuple[int, int]:
    rows, cols = shape_yx
    return -(-rows // block_px), -(-cols // block_px)


def _shard_window(block: Block, shape_yx: tuple[int, int], edge: int) -> Window:
    rows, cols = _blocks(shape_yx, edge)
    if not (0 <= block[0] < rows and 0 <= block[1] < cols):
        raise IndexError(f"block {block} lies outside {rows} x {cols} blocks")
    y, x = (slice(index * edge, min((index + 1) * edge, size)) for index, size in zip(block, shape_yx, strict=True))
    return y, x


def cut_windows(shape_yx: tuple[int, int], edge: int) -> Iterator[Window]:
    """Windows of ``edge`` pixels a side that cover a grid once, row by row; smaller ones at the bottom and right."""
    rows, cols = _blocks(shape_yx, edge)
    return (_shard_window((row, col), shape_yx, edge) for row in range(rows) for col in range(cols))


def whole_window(shape_yx: Sequence[int]) -> Window:
    """The window that is a whole grid."""
    rows, cols = shape_yx
    return slice(0, rows), slice(0, cols)


def widened_window(window: Window, margin: int, shape_yx: Sequence[int]) -> Window:
    """A window with a margin around it, as far as its grid goes."""
    y, x = (
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, size in zip(window, shape_yx, strict=True)
    )
    return y, x


def window_inside(window: Window, outer: Window) -> Window:
    """Where a window lies in an array that was read of an ``outer`` one."""
    y, x = (slice(part.start - of.start, part.stop - of.start) for part, of in zip(window, outer, strict=True))
    return y, x


def _chunk_count(array: Any) -> int:  # Any: see _array
    """Chunks of an array whose shards were all written: zarr counts every chunk of a shard, also beyond the edge."""
    per_axis = zip(array.shape, array.shards, array.chunks, strict=True)
    return math.prod(-(-size // shard) * (shard // chunk) for size, shard, chunk in per_axis)


# --- guards ---------------------------------------------------------------------------------------------------------


def _require_inside(selection: tuple[slice, ...], shape: tuple[int, ...], where: str) -> None:
    for part, size in zip(selection, shape, strict=True):
        if part != slice(None) and not 0 <= (part.start or 0) < part.stop <= size:
            raise IndexError(f"{where}{_text(selection)} reaches outside {shape}")


def _require_whole_shards(selection: tuple[slice, ...], array: Any, where: str) -> None:  # Any: see _array
    outer = array.chunks if array.shards is None else array.shards
    for part, size, edge in zip(selection, array.shape, outer, strict=True):
        start, stop, _ = part.indices(size)
        if start % edge or (stop % edge and stop != size):
            raise ValueError(f"{where}{_text(selection)} cuts a shard of {outer}; one task writes whole shards")


def _text(selection: tuple[slice, ...]) -> str:
    return "[" + ", ".join(":" if part == slice(None) else f"{part.start}:{part.stop}" for part in selection) + "]"


def _open_group(uri: str, mode: Mode) -> zarr.Group:
    try:
        group = zarr.open_group(_zarr_store(uri, mode), mode=mode, zarr_format=3, use_consolidated=False)
    except (FileNotFoundError, zarr.errors.GroupNotFoundError) as err:
        raise InvalidSceneError(f"no staged scene at {uri}; stage the scene first") from err
    except OSError as err:
        if _is_of_the_place(err, uri):
            raise SinkError(f"store {uri} cannot be opened: {err}; check the folder and its rights") from err
        raise TransientReadError(f"store {uri} cannot be read: {err}; try again") from err
    found = group.attrs.get("format_version")
    if found != FORMAT_VERSION:
        raise InvalidSceneError(
            f"store {uri} has format version {found}, expected {FORMAT_VERSION}; delete it and stage again"
        )
    return group


def _is_of_the_place(err: OSError, uri: str) -> bool:
    """Whether no store at all could be opened there, which ends a run; rights of one store alone are its scene's."""
    if err.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR):
        return not os.access(Path(uri).parent, os.W_OK | os.X_OK)
    return err.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise SinkError(f"{where} cannot be written: {err}; check permissions and free space, then run again") from err


def _zarr_store(uri: str, mode: Mode) -> Any:  # Any: LocalStore and FsspecStore share no public base we can name
    read_only = mode == "r"
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or len(scheme) == 1:  # one letter: a Windows drive
        path = unquote(urlsplit(uri).path) if scheme == "file" else uri
        return zarr.storage.LocalStore(Path(path), read_only=read_only)
    return zarr.storage.FsspecStore.from_url(uri, read_only=read_only)
