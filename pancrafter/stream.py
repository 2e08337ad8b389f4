"""A staged scene sharpened window by window while the next is read and the last is written.

Reading, sharpening and the caller's writing run side by side, one window ahead of each other, so memory holds a few
windows whatever the scene's size. Windows are chosen here from a memory budget and need not be blocks of the store.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pancrafter.cog import CACHE_BYTES
from pancrafter.engine import NetworkSharpener, Sharpener, sharpened_dn
from pancrafter.errors import PancrafterError
from pancrafter.pyramid import neighbours_together
from pancrafter.store import Pixels, Window, cut_windows
from pancrafter.tiles import ScenePixels, Tile, TilePlan, Valid, plan_window, read_tile, valid_window
from pancrafter.types import StagedScene

T = TypeVar("T")
S = TypeVar("S")

WINDOW_PX = (2048, 1536, 1024, 512, 256, 128)
"""Edges that are tried, largest first: a larger window wastes less on its halo. They are made of tiles of the result or
fit into one."""

PROGRAM_BYTES = 620 * 2**20
"""What the program takes apart from windows: Python with torch, GDAL and Dask, code and caches of oneDNN, heaps of its
threads. Measured as the peak of ``pancrafter sharpen PAN MS OUT --threads 2`` on 2048 px, 4 bands, less
``window_bytes``: 458 to 553 MiB with windows of 1024 to 512 px on an AMD EPYC, 586 on an Intel Xeon."""

ADAPTING_BYTES = 160 * 2**20
"""What adapting to a scene takes more, and keeps: 986 in place of 827 MiB with windows of 512 px."""

_LOOK_AHEAD = 1
_POLL_S = 0.2


class MemoryBudgetError(PancrafterError):
    """The memory that was allowed does not hold the smallest window."""

    kind = "system"


@dataclass(frozen=True, eq=False)
class SharpenedWindow:
    """A finished part of a scene: DN (band, y, x), and where they were measured (y, x)."""

    window: Window
    values: Pixels
    valid: Valid


@dataclass(frozen=True)
class Layout:
    """What the memory of windows depends on, apart from the sharpener."""

    bands: int
    ratio: int
    longest_px: int
    """Longer side of the scene, PAN pixels."""
    halo_px: int
    adapting: bool = False
    """Whether the network is adapted to the scene."""

    @classmethod
    def of(cls, staged: StagedScene, sharpener: Sharpener, *, adapting: bool = False) -> Layout:
        """The layout of a staged scene."""
        bands, longest = len(staged.scene.bands), max(staged.grid.pan.shape_yx)
        return cls(bands, staged.grid.ratio, longest, sharpener.halo_px(staged), adapting)


def _pixels(layout: Layout, window_px: int) -> tuple[int, int]:
    """Of a window of an edge with its halo, and without."""
    edge = min(window_px, layout.longest_px)
    return (edge + 2 * layout.halo_px + 8) ** 2, edge**2


def window_bytes(sharpener: Sharpener, layout: Layout, window_px: int) -> int:
    """Memory that windows of an edge take at most while one is read, one sharpened and one written."""
    tile, core = _pixels(layout, window_px)
    read = (_LOOK_AHEAD + 2) * (tile * 4 * (1 + layout.bands / layout.ratio**2) + core)
    written = (_LOOK_AHEAD + 3) * core * (2 * layout.bands + 1) + 2 * core * 4 * layout.bands
    return int(read + written) + sharpener.working_bytes(tile, core, layout.bands)


def needed_bytes(sharpener: Sharpener, layout: Layout, window_px: int) -> int:
    """Memory that the program takes with windows of an edge."""
    program = PROGRAM_BYTES + CACHE_BYTES + layout.adapting * ADAPTING_BYTES
    return program + window_bytes(sharpener, layout, window_px)


def choose_window_px(sharpener: Sharpener, layout: Layout, memory_bytes: int) -> int:
    """The largest edge whose windows fit into a memory budget beside the program, and onto the network's device.

    Where not even the smallest fits onto the device it is tried all the same, fewer bands at a time.

    Raises:
        MemoryBudgetError: Not even the smallest fits into the budget.
    """
    fitting = [window_px for window_px in WINDOW_PX if needed_bytes(sharpener, layout, window_px) <= memory_bytes]
    for window_px in fitting:
        if not isinstance(sharpener, NetworkSharpener) or sharpener.fits_device(
            *_pixels(layout, window_px), layout.bands
        ):
            return window_px
    if fitting:
        return fitting[-1]
    least = needed_bytes(sharpener, layout, WINDOW_PX[-1])
    raise MemoryBudgetError(
        f"memory of {memory_bytes / 2**20:.0f} MiB is too small: a window of {WINDOW_PX[-1]} px with its halo, "
        f"{layout.bands} bands, needs {math.ceil(least / 2**20)} MiB with the program; allow at least that"
    )


def fitting_window_px(sharpener: Sharpener, layout: Layout, memory_bytes: int, window_px: int | None) -> int:
    """The edge that was asked for if its windows fit into a memory budget, without one the largest that fits.

    Raises:
        MemoryBudgetError: It does not fit, or not even the smallest does.
    """
    if window_px is None:
        return choose_window_px(sharpener, layout, memory_bytes)
    needed = needed_bytes(sharpener, layout, window_px)
    if needed > memory_bytes:
        raise MemoryBudgetError(
            f"memory of {memory_bytes / 2**20:.0f} MiB is too small for windows of {window_px} px: with their halo, "
            f"{layout.bands} bands, they need {math.ceil(needed / 2**20)} MiB with the program; choose smaller windows "
            "or allow more memory"
        )
    return window_px


def scene_windows(store: ScenePixels, window_px: int) -> list[Window]:
    """Windows that cover the PAN grid once, in the order that suits the writer."""
    return neighbours_together(cut_windows(store.pan_shape_yx, window_px))


def sharpened_windows(store: ScenePixels, sharpener: Sharpener, window_px: int) -> Generator[SharpenedWindow]:
    """The scene sharpened window by window; equal to what blocks of any size would give.

    Args:
        store: The staged scene.
        sharpener: Called in a thread of its own.
        window_px: Edge of a window, from ``choose_window_px``.
    """
    staged = store.staged
    halo_px = sharpener.halo_px(staged)

    def read(window: Window) -> _Read:
        plan = plan_window(store, window, halo_px, window_px)
        valid = valid_window(store, window)
        return _Read(plan, read_tile(store, plan) if valid.any() else None, valid)

    def sharpen(part: _Read) -> SharpenedWindow:
        values = sharpened_dn(sharpener, part.tile, part.plan.core, part.valid, staged)
        return SharpenedWindow(part.plan.window, values, part.valid)

    return ahead(sharpen, ahead(read, iter(scene_windows(store, window_px))))


@dataclass(frozen=True, eq=False)
class _Read:
    plan: TilePlan
    tile: Tile | None
    valid: Valid


_END = object()


def ahead(function: Callable[[S], T], items: Iterator[S]) -> Generator[T]:
    """``function`` of each item, in order, worked out in a thread of its own while the caller uses earlier ones.

    At most one result waits. An error comes out where its result would have; closing the iterator stops the thread and
    the iterator before it.
    """
    results: queue.Queue[object] = queue.Queue(_LOOK_AHEAD)
    stopped = threading.Event()
    arguments = (function, items, results, stopped)
    thread = threading.Thread(target=_work, args=arguments, name=getattr(function, "__name__", "ahead"), daemon=True)
    thread.start()
    try:
        while (result := results.get()) is not _END:
            if isinstance(result, _Failure):
                raise result.error
            yield result  # type: ignore[misc]  # what function returned
            del result
    finally:
        stopped.set()
        thread.join()  # to the end of the window in work: torch aborts a process that exits beneath its thread


def _work(
    function: Callable[[S], T], items: Iterator[S], results: queue.Queue[object], stopped: threading.Event
) -> None:
    """What the thread of ``ahead`` does."""
    try:
        for item in items:
            if stopped.is_set() or not _offer(function(item), results, stopped):
                return
        _offer(_END, results, stopped)
    except BaseException as error:  # noqa: BLE001  # raised again by the caller's thread
        _offer(_Failure(error), results, stopped)
    finally:
        if isinstance(items, Generator):
            items.close()


def _offer(result: object, results: queue.Queue[object], stopped: threading.Event) -> bool:
    """Wait until there is room for a result; False when nobody wants it any more."""
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            results.put(result, timeout=_POLL_S)
            return True
    return False


@dataclass(frozen=True, eq=False)
class _Failure:
    error: BaseException
