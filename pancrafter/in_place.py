"""A scene's files read where they lie, without a Zarr store: what `pancrafter sharpen` does with local tiled files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from pancrafter.access import OPEN_TO_ALL
from pancrafter.bands import measure_bands
from pancrafter.counting import (
    Tally,
    check_pixels,
    histogram_of,
    merge_tallies,
    ms_tally,
    require_common_area,
)
from pancrafter.cube import compute_merged, described_scene, mean_gain
from pancrafter.headers import matched_grids, on_common_grid, read_headers
from pancrafter.reading import COUNTING_PX, Held, WindowReader, window_readers
from pancrafter.sensors import SensorContract
from pancrafter.store import BlockGrid, Mask, Pixels, Window, cut_windows, window_inside
from pancrafter.tiles import common_area
from pancrafter.types import PairGrid, Scene, StagedScene


class SceneFiles(BlockGrid):
    """A scene whose pixels are read from its files whenever they are asked for; reads like a ``SceneStore``.

    Holes are filled per block, as staging fills them, so the pixels are those of a staged scene.
    """

    def __init__(self, pan: WindowReader, ms: WindowReader, grid: PairGrid, block_px: int) -> None:
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
        for piece in _pieces(window, self._edges[name]):
            pixels[:, *window_inside(piece, window)] = reader.read(piece)[0]
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
    hold_bytes: int,
) -> SceneFiles | None:
    """The scene read from its files, without a store; None where reading a file twice would cost much more than once.

    Reads every pixel once, to know value ranges and holes, and holds them if they take at most ``hold_bytes``. Other
    arguments, constants, pixels and errors as in ``stage_scene``; runs under whatever Dask scheduler is active, in this
    process.
    """
    sources = on_common_grid(scene, read_headers(scene, contract, OPEN_TO_ALL), contract)
    if not all(source.at_hand and not source.warped for source in (sources.pan, *sources.ms)):
        return None
    pair = matched_grids(scene, sources, contract.ratio)
    readers = window_readers(sources, pair, reach_px)
    hold = sum(_bytes(reader) for reader in readers) <= hold_bytes
    held = [Held.room_for(reader) if hold else None for reader in readers]
    count_pan, count_ms = (delayed(partial(count, reader, into), traverse=False) for count, reader, into in
                           zip((_count_pan, _count_ms), readers, held, strict=True))  # fmt: skip
    tally = compute_merged(
        [
            *(count_pan(window) for window in cut_windows(pair.pan.shape_yx, COUNTING_PX)),
            *(count_ms(window) for window in cut_windows(pair.ms_shape_yx, COUNTING_PX)),
        ],
        merge_tallies,
    )
    pan, ms = (replace(reader, held=into) for reader, into in zip(readers, held, strict=True))
    files = SceneFiles(pan, ms, pair, block_px)
    check_pixels(scene, sources, tally, contract, ms)
    counted = {"pan": int(tally.pan.sum()), "ms": int(tally.ms[0].sum())}
    sizes = {"pan": math.prod(pair.pan.shape_yx), "ms": math.prod(pair.ms_shape_yx)}
    whole = {name for name in sizes if counted[name] == sizes[name]}
    share = 1.0 if len(whole) == len(sizes) else _measured_share(files)
    require_common_area(scene, share)
    measured = measure_bands(files, pair, gain=mean_gain(scene, contract))
    staged = described_scene(scene, contract, sources, pair, tally, measured, valid_share=share, store_uri="")
    files.described(staged, whole)
    return files


def _count_pan(reader: WindowReader, into: Held | None, window: Window) -> Tally:
    pixels, valid, bytes_read = _read_into(reader, into, window)
    return Tally(pan=histogram_of(pixels[0], valid.astype(np.uint8)), bytes_read=bytes_read)


def _count_ms(reader: WindowReader, into: Held | None, window: Window) -> Tally:
    pixels, valid, bytes_read = _read_into(reader, into, window)
    return ms_tally(pixels, valid.astype(np.uint8), bytes_read)


def _read_into(reader: WindowReader, into: Held | None, window: Window) -> tuple[Pixels, NDArray[np.bool_], int]:
    pixels, valid, bytes_read = reader.read_raw(window)
    if into is not None:
        into.pixels[:, *window] = pixels
        if not valid.all():
            into.invalid[window] = ~valid
    return pixels, valid, bytes_read


def _bytes(reader: WindowReader) -> int:
    """Memory that all pixels of a reader take, and which of them are valid."""
    return math.prod(reader.shape_yx) * (2 * reader.band_count + 1)


def _measured_share(files: SceneFiles) -> float:
    """Share of PAN pixels that are valid and lie nearest to a valid MS pixel."""
    valid = sum(
        np.count_nonzero(common_area(files, files.grid, window))
        for window in cut_windows(files.pan_shape_yx, COUNTING_PX)
    )
    return valid / math.prod(files.pan_shape_yx)


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
