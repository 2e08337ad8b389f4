"""Windows of any size come out as blocks do, in order, one ahead of each other, in the memory that was promised."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import random_checkpoint
from staged_scenes import observed, overlap, stage_arrays

from pancrafter import engine
from pancrafter.classical import PairInput
from pancrafter.classical import sharpen as sharpen_classically
from pancrafter.cog import CACHE_BYTES
from pancrafter.engine import FusionSharpener, NetworkSharpener, fit_scene_fusion, sharpen_block
from pancrafter.model.weights import load_checkpoint
from pancrafter.store import SceneStore
from pancrafter.stream import (
    ADAPTING_BYTES,
    PROGRAM_BYTES,
    WINDOW_PX,
    Layout,
    MemoryBudgetError,
    ahead,
    choose_window_px,
    fitting_window_px,
    needed_bytes,
    scene_windows,
    sharpened_windows,
    window_bytes,
)
from pancrafter.tiles import band_phases

GIB = 2**30
SHIPPED = NetworkSharpener(load_checkpoint())
LARGE = Layout(bands=4, ratio=4, longest_px=35_000, halo_px=115)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ratio=st.sampled_from([2, 3, 4]),
    pan_yx=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    window_px=st.sampled_from([32, 50, 96, 512]),
    block_px=st.sampled_from([32, 64, 98]),
    holes=st.sampled_from(["none", "stripes", "checks", "most"]),
    seed=st.integers(0, 99),
)
def test_windows_equal_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    ratio: int,
    pan_yx: tuple[int, int],
    window_px: int,
    block_px: int,
    holes: str,
    seed: int,
) -> None:
    """Any size from one pixel up, any nodata pattern, blocks in any order: at most 1 DN apart, nodata the same."""
    grid = overlap(pan_yx, ratio)
    rng = np.random.default_rng(seed)
    pan, ms = (rng.integers(1, 2000, shape).astype(np.uint16) for shape in (grid.pan.shape_yx, (2, *grid.ms_shape_yx)))
    y, x = np.mgrid[: pan.shape[0], : pan.shape[1]]
    patterns = {"none": y >= 0, "stripes": y % 7 > 1, "checks": (y // 9 + x // 9) % 2 == 0, "most": (y < 1) & (x < 1)}
    store = stage_arrays(
        tmp_path_factory.mktemp("scene") / "s.zarr", grid, pan, ms, block_px=block_px,
        pan_valid=patterns[holes], nodata=0.0,
    )  # fmt: skip
    sharpener = NetworkSharpener(random_checkpoint(seed))
    for index in rng.permutation(store.block_count):
        sharpen_block(store, divmod(int(index), store.blocks_yx[1]), sharpener)
    covered = np.zeros(pan.shape, int)
    for part in sharpened_windows(store, sharpener, window_px):
        covered[part.window] += 1
        expected = store.read_sharpened(part.window).astype(int)
        assert np.array_equal(part.valid, patterns[holes][part.window])
        assert np.array_equal((part.values == 0).all(0), ~part.valid)
        assert np.abs(part.values.astype(int) - expected).max() <= 1
    assert (covered == 1).all()


@pytest.mark.parametrize(("method", "tolerance"), [("exp", 3e-4), ("brovey", 4e-3), ("gsa", 5e-3)])
def test_fused_windows_are_the_textbook_method(tmp_path: Path, method: str, tolerance: float) -> None:
    """Constants fitted at MS scale, arithmetic in float32: within a share of the range of the whole-scene method."""
    grid = overlap((260, 288), 4)
    shifts = ((0.0, 0.0), (2.6, -3.3), (-5.2, 4.1))
    pan, ms = observed(grid, 3, seed=4, shifts=shifts)
    store = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, block_px=64, band_shift_yx=shifts)
    gains = (0.3, 0.3, 0.3)
    sharpener = FusionSharpener(fit_scene_fusion(store, gains, method))  # type: ignore[arg-type]
    pair = PairInput(pan, ms, 4, band_phases(store.staged), gains)
    expected = sharpen_classically(method, pair)
    found = np.zeros(expected.shape)
    for part in sharpened_windows(store, sharpener, 96):
        found[(slice(None), *part.window)] = part.values
    away = (slice(None), slice(16, -16), slice(16, -16))
    difference = np.abs(found - expected)[away] / 2047
    assert difference.max() < tolerance
    detail = np.abs(expected - sharpen_classically("exp", pair))[away].mean() / 2047
    assert detail > 4 * tolerance or method == "exp"


# --- memory ---------------------------------------------------------------------------------------------------------


def test_window_grows_with_the_budget_and_stays_inside_it() -> None:
    chosen = [choose_window_px(SHIPPED, LARGE, memory) for memory in (GIB, 2 * GIB, 4 * GIB, 64 * GIB)]
    assert chosen == sorted(chosen)
    assert chosen[0] >= 512
    assert chosen[1] >= 1024
    assert chosen[-1] == WINDOW_PX[0]
    for memory, window_px in zip((GIB, 2 * GIB, 4 * GIB), chosen, strict=False):
        assert PROGRAM_BYTES + CACHE_BYTES + window_bytes(SHIPPED, LARGE, window_px) <= memory


def test_adapting_leaves_less_room() -> None:
    adapting = replace(LARGE, adapting=True)
    assert needed_bytes(SHIPPED, adapting, 512) == needed_bytes(SHIPPED, LARGE, 512) + ADAPTING_BYTES
    assert choose_window_px(SHIPPED, adapting, GIB) < choose_window_px(SHIPPED, LARGE, GIB)


def test_windows_of_a_gpu_are_those_its_own_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bands at once; the budget counts what this machine holds of them."""
    on_gpu = NetworkSharpener(SHIPPED.checkpoint, "cuda:pretended")
    free = [0]
    monkeypatch.setattr(engine, "free_bytes", lambda device: free[0])
    chosen = []
    for free[0] in (1, GIB, 4 * GIB, 64 * GIB):
        chosen.append(choose_window_px(on_gpu, LARGE, 2 * GIB))
    assert chosen[0] == WINDOW_PX[-1]
    assert chosen == sorted(set(chosen))
    assert chosen[-1] > choose_window_px(SHIPPED, LARGE, 2 * GIB)
    one, all_four = (s.device_bytes(1200**2, 1000**2, 4) for s in (SHIPPED, on_gpu))
    assert 3 * one < all_four < 4 * one
    assert on_gpu.working_bytes(1200**2, 1000**2, 4) < SHIPPED.working_bytes(1200**2, 1000**2, 4) / 4
    with pytest.raises(MemoryBudgetError):
        choose_window_px(on_gpu, LARGE, GIB // 2)


def test_a_window_that_is_asked_for_must_fit() -> None:
    fitting = choose_window_px(SHIPPED, LARGE, 2 * GIB)
    assert fitting_window_px(SHIPPED, LARGE, 2 * GIB, None) == fitting
    needed = needed_bytes(SHIPPED, LARGE, 200)
    assert fitting_window_px(SHIPPED, LARGE, needed, 200) == 200
    with pytest.raises(MemoryBudgetError, match=r"\d+ MiB is too small for windows of 200 px: .* need \d+ MiB"):
        fitting_window_px(SHIPPED, LARGE, needed - 1, 200)


def test_budget_without_room_for_one_window_says_how_much_is_needed() -> None:
    with pytest.raises(MemoryBudgetError, match=r"memory of 512 MiB is too small: .* needs \d+ MiB") as caught:
        choose_window_px(SHIPPED, LARGE, GIB // 2)
    needed = int(str(caught.value).split("needs ")[1].split(" MiB")[0])
    assert choose_window_px(SHIPPED, LARGE, needed * 2**20) == WINDOW_PX[-1]
    with pytest.raises(MemoryBudgetError):
        choose_window_px(SHIPPED, LARGE, needed * 2**20 - 2**20)


def test_scene_size_does_not_count_beyond_a_window() -> None:
    assert window_bytes(SHIPPED, LARGE, 512) == window_bytes(SHIPPED, replace(LARGE, longest_px=4000), 512)
    assert window_bytes(SHIPPED, replace(LARGE, longest_px=100), 512) < window_bytes(SHIPPED, LARGE, 128)


def test_the_halo_counts_as_pixels_of_the_window() -> None:
    bare = replace(LARGE, halo_px=0)
    assert window_bytes(SHIPPED, LARGE, 256) > 1.5 * window_bytes(SHIPPED, bare, 256)


# --- queues ---------------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_at_most_three_ahead() -> None:
    """One in work, one waiting, one that nobody has taken yet: memory stays bounded however slow the caller is."""
    started: list[int] = []

    def square(n: int) -> int:
        started.append(n)
        return n * n

    taken = []
    for result in ahead(square, iter(range(30))):
        taken.append(result)
        time.sleep(0.002)
        assert len(started) <= len(taken) + 2
    assert taken == [n * n for n in range(30)]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_error_comes_out_in_its_place_and_the_threads_end(kind: type[BaseException]) -> None:
    def fail_at_three(n: int) -> int:
        if n == 3:
            raise kind("block 3 is damaged")
        return n

    def read(n: int) -> int:
        return n

    results = ahead(fail_at_three, ahead(read, iter(range(9))))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match="block 3 is damaged") as caught:
        next(results)
    assert caught.tb is not None  # it keeps what the thread had in hand
    assert_no_thread("fail_at_three")
    assert_no_thread("read")


def test_closing_stops_all_threads_before_it() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(True)

    def first(n: int) -> int:
        return n

    def second(n: int) -> int:
        return n

    results = ahead(second, ahead(first, source()))
    assert next(results) == 0
    results.close()
    assert_no_thread("second")
    assert_no_thread("first")
    assert closed == [True]


def assert_no_thread(name: str) -> None:
    assert name not in [thread.name for thread in threading.enumerate()]


def test_windows_cover_the_scene_once(tmp_path: Path) -> None:
    grid = overlap((130, 70), 4)
    pan, ms = observed(grid, 1, seed=1)
    store: SceneStore = stage_arrays(tmp_path / "s.zarr", grid, pan, ms)
    covered = np.zeros(pan.shape, int)
    for window in scene_windows(store, 48):
        covered[window] += 1
    assert (covered == 1).all()
