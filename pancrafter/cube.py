"""Staging: the files of a scene become one Zarr group of matched PAN and MS grids, by a Dask graph of whole shards."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from dask.delayed import delayed

from pancrafter.access import OPEN_TO_ALL, Access
from pancrafter.bands import MeasuredBands, measure_bands
from pancrafter.counting import (
    Tally,
    ceiling,
    check_pixels,
    histogram_of,
    merge_tallies,
    ms_tally,
    require_common_area,
    value_range,
)
from pancrafter.errors import InvalidSceneError
from pancrafter.headers import (
    Sources,
    matched_grids,
    on_common_grid,
    output_dtype,
    output_nodata,
    per_band,
    read_headers,
)
from pancrafter.reading import WindowReader, window_readers
from pancrafter.sensors import SensorContract
from pancrafter.store import UNWRITTEN, SceneStore, Window
from pancrafter.tiles import common_area
from pancrafter.types import FORMAT_VERSION, PairGrid, Scene, StagedScene

REACH_PX = 192
"""How far valid pixels are repeated into nodata, PAN pixels: more than any halo."""

PAIR_BLOCK_PX = 512
"""Edge of a block of two files or arrays, PAN pixels: constants are fitted on some, whatever the windows are."""

T = TypeVar("T")
_FAN_IN = 8
STAGING_MEASURES = ("shift by cells", "mtf and its shape")
"""What staging measures of a scene; a store that lacks some of it is staged again."""


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
    sources = on_common_grid(scene, read_headers(scene, contract, access), contract)
    pair = matched_grids(scene, sources, contract.ratio)
    begun = SceneStore.resume(store_uri, digest)
    store = begun or SceneStore.create(
        store_uri, pair, bands=scene.bands, staging=digest, crs_wkt=sources.pan.crs_wkt, block_px=block_px
    )
    pan_reader, ms_reader = window_readers(sources, pair, reach_px)
    # Bound first: Dask looks for its own kind inside every argument of every task, which costs as much as encoding.
    stage_pan = delayed(partial(_stage_pan, store, pan_reader, resumed=begun is not None), traverse=False)
    stage_ms = delayed(partial(_stage_ms, store, ms_reader, resumed=begun is not None), traverse=False)
    tally = compute_merged(
        [*(stage_pan(window) for window in store.pan_windows()), *(stage_ms(window) for window in store.ms_windows())],
        merge_tallies,
    )
    check_pixels(scene, sources, tally, contract, ms_reader)
    valid_share = _valid_share(store, pair, scene, tally)
    measured = measure_bands(store, pair, gain=mean_gain(scene, contract))
    staged = described_scene(
        scene, contract, sources, pair, tally, measured, valid_share=valid_share, store_uri=store_uri
    )
    store.finish_staging(staged)
    return staged


def described_scene(
    scene: Scene,
    contract: SensorContract,
    sources: Sources,
    pair: PairGrid,
    tally: Tally,
    measured: MeasuredBands,
    *,
    valid_share: float,
    store_uri: str,
) -> StagedScene:
    """What is known of a scene once its files are read, with its DN counted and its bands measured."""
    dtype = output_dtype(sources)
    return StagedScene(
        scene=scene,
        store_uri=store_uri,
        grid=pair,
        dtype=dtype,
        dn_max=ceiling(contract, sources.ms, tally.ms, dtype),
        nodata=output_nodata(sources, dtype),
        pan_range=value_range(tally.pan),
        ms_ranges=tuple(value_range(histogram) for histogram in tally.ms),
        **measured.described(),
        valid_share=valid_share,
        bytes_read=tally.bytes_read,
        ms_resampled=sources.ms[0].warped,
        assumed_order=any(source.assumed for source in sources.ms),
        scale=per_band(sources.ms, "scale", default=1.0),
        offset=per_band(sources.ms, "offset", default=0.0),
    )


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


def _stage_pan(store: SceneStore, reader: WindowReader, window: Window, *, resumed: bool) -> Tally:
    valid = store.read_pan_valid(window) if resumed else None
    if valid is not None and not (valid == UNWRITTEN).any():
        return Tally(pan=histogram_of(store.read_pan(window), valid))
    pixels, valid, bytes_read = reader.read(window)
    store.write_pan(window, pixels[0], valid)
    return Tally(pan=histogram_of(pixels[0], valid), bytes_read=bytes_read)


def _stage_ms(store: SceneStore, reader: WindowReader, window: Window, *, resumed: bool) -> Tally:
    valid = store.read_ms_valid(window) if resumed else None
    if valid is not None and not (valid == UNWRITTEN).any():
        return ms_tally(store.read_ms(window), valid, 0)
    pixels, valid, bytes_read = reader.read(window)
    store.write_ms(window, pixels, valid)
    return ms_tally(pixels, valid, bytes_read)


def compute_merged(tasks: Iterable[Any], merge: Callable[[Sequence[T]], T]) -> T:  # Any: dask is untyped
    """Run delayed tasks and merge their results as they arrive, a few at a time, so that few are held at once."""
    level = list(tasks)
    while len(level) > 1:
        level = [delayed(merge)(level[start : start + _FAN_IN]) for start in range(0, len(level), _FAN_IN)]
    result: T = level[0].compute()
    return result


def _valid_share(store: SceneStore, pair: PairGrid, scene: Scene, tally: Tally) -> float:
    """Share of PAN pixels that are valid and lie nearest to a valid MS pixel."""
    total = math.prod(pair.pan.shape_yx)
    if int(tally.pan.sum()) == total and int(tally.ms[0].sum()) == math.prod(pair.ms_shape_yx):
        return 1.0
    count = delayed(partial(_valid_pixels, store, pair), traverse=False)
    add: Callable[[Sequence[int]], int] = sum
    valid = compute_merged((count(window) for window in store.pan_windows()), add)
    require_common_area(scene, valid / total)
    return valid / total


def _valid_pixels(store: SceneStore, pair: PairGrid, window: Window) -> int:
    return int(np.count_nonzero(common_area(store, pair, window)))


def mean_gain(scene: Scene, contract: SensorContract) -> float:
    """MTF at the MS Nyquist frequency by the contract, mean of the scene's bands."""
    return float(np.mean([band.mtf for band in contract.subset(scene.bands)]))
