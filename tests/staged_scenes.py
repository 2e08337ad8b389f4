"""Small staged scenes made from arrays, without files to read: what tests of the engine and assessment need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancrafter.engine import Sharpener, sharpen_block
from pancrafter.grid import pair_grids
from pancrafter.resample import degrade
from pancrafter.store import SceneStore
from pancrafter.tiles import quantise, valid_window
from pancrafter.types import AssetRef, PairGrid, PixelGrid, Scene, StagedScene, ValueRange

Array = NDArray[Any]
PhaseYX = tuple[float, float]


def overlap(pan_yx: tuple[int, int], ratio: int, offset_px: tuple[float, float] = (0, 0)) -> PairGrid:
    """The pairing of a PAN of ``pan_yx`` pixels that begins ``offset_px`` PAN pixels inside a larger MS.

    Offset 0 gives the edge-aligned phase, (ratio - 1) / 2 gives phase 0, for example 2N - 1 PAN of Landsat.
    """
    y, x = offset_px
    pan = PixelGrid(crs="EPSG:32633", transform=(1, 0, 5e5 + x, 0, -1, 4e6 - y), shape_yx=pan_yx)
    shape = tuple(int(np.ceil((n + o) / ratio)) for n, o in zip(pan_yx, offset_px, strict=True))
    ms = PixelGrid(crs="EPSG:32633", transform=(ratio, 0, 5e5, 0, -ratio, 4e6), shape_yx=(shape[0], shape[1]))
    return pair_grids(pan, ms, ratio)


def landscape(shape_yx: tuple[int, int], seed: int) -> Array:
    """DN between about 200 and 1800 with detail at every size and sharp edges; every pixel has its own value."""
    rng = np.random.default_rng(seed)
    smooth = sum(ndimage.gaussian_filter(rng.normal(size=shape_yx), s) * s**1.2 for s in (0.8, 2, 5, 12))
    fields = ndimage.gaussian_filter(rng.normal(size=shape_yx), 4) > 0
    image: Array = 900 + 150 * smooth / np.std(smooth) + 250 * fields + rng.normal(0, 4, shape_yx)
    return image.clip(60, 2040)


def observed(
    grid: PairGrid, bands: int, seed: int, shifts: tuple[PhaseYX, ...] | None = None, gain: float = 0.3
) -> tuple[Array, Array]:
    """PAN and MS of one surface: each band is a mix of PAN and its own pattern, seen at phase plus shift."""
    pan = landscape(grid.pan.shape_yx, seed)
    y, x = grid.phase_yx
    ms = []
    for band in range(bands):
        own = landscape(grid.pan.shape_yx, seed + 100 + band)
        surface = (0.75 - 0.1 * band) * pan + (0.15 + 0.08 * band) * own
        dy, dx = shifts[band] if shifts else (0.0, 0.0)
        ms.append(degrade(surface, grid.ms_shape_yx, grid.ratio, (y + dy, x + dx), gain))
    return np.rint(pan).astype(np.uint16), np.rint(np.stack(ms)).astype(np.uint16)


def make_staged(store: SceneStore, grid: PairGrid, pan: Array, ms: Array, **changes: Any) -> StagedScene:
    """The record of a scene whose bands are called b1, b2, ..."""
    bands = tuple(f"b{band + 1}" for band in range(len(ms)))
    values: dict[str, Any] = {
        "scene": Scene(
            collection="tests",
            item_id="pair",
            sensor="test",
            acquired="2026-01-01T00:00:00Z",
            pan=AssetRef(key="pan", href="pan.tif"),
            ms=tuple(AssetRef(key="ms", href="ms.tif", band=band + 1) for band in range(len(ms))),
            bands=bands,
            fingerprint="f",
            source_href="item.json",
            geometry={},
        ),
        "store_uri": store.uri,
        "grid": grid,
        "dtype": "uint16",
        "dn_max": 2047,
        "nodata": None,
        "pan_range": value_range(pan),
        "ms_ranges": tuple(value_range(band) for band in ms),
        "band_shift_yx": ((0.0, 0.0),) * len(ms),
        "shift_confidence": (0.9,) * len(ms),
        "valid_share": 1.0,
    }
    return StagedScene(**(values | changes))


def value_range(values: Array) -> ValueRange:
    low, high = np.percentile(values, (1, 99))
    return ValueRange(low=float(low), high=float(max(high, low + 1)))


def stage_arrays(
    uri: Path,
    grid: PairGrid,
    pan: Array,
    ms: Array,
    *,
    block_px: int = 64,
    pan_valid: Array | None = None,
    ms_valid: Array | None = None,
    **changes: Any,
) -> SceneStore:
    """A complete store that holds these pixels, ready to be sharpened with recipe ``r``."""
    bands = tuple(f"b{band + 1}" for band in range(len(ms)))
    store = SceneStore.create(str(uri), grid, bands=bands, staging="d", crs_wkt="", block_px=block_px)
    pan_mask = np.ones(pan.shape, np.uint8) if pan_valid is None else pan_valid.astype(np.uint8)
    ms_mask = np.ones(ms.shape[1:], np.uint8) if ms_valid is None else ms_valid.astype(np.uint8)
    for y, x in store.pan_windows():
        store.write_pan((y, x), pan[y, x], pan_mask[y, x])
    for y, x in store.ms_windows():
        store.write_ms((y, x), ms[:, y, x], ms_mask[y, x])
    if not (pan_mask.all() and ms_mask.all()):  # as staging does, which counts exactly
        changes = {"valid_share": float(pan_mask.mean() * ms_mask.mean())} | changes
    store.finish_staging(make_staged(store, grid, pan, ms, **changes))
    store.begin_sharpening("r")
    return store


def everything(store: SceneStore) -> tuple[slice, slice]:
    return slice(0, store.pan_shape_yx[0]), slice(0, store.pan_shape_yx[1])


def sharpen_all(store: SceneStore, sharpener: Sharpener) -> None:
    for block in store.pending_blocks():
        sharpen_block(store, block, sharpener)


def write_result(store: SceneStore, image: Array) -> None:
    """Store a float image as the scene's result, rounded and clipped as the engine does."""
    dn = quantise(image.astype(np.float32), valid_window(store, everything(store)), store.staged)
    for block in np.ndindex(store.blocks_yx):
        store.write_block(block, dn[:, *store.block_window(block)])
