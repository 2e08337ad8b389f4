"""Looking at the sharpened pixels: what the quality gate knows about a scene, measured window by window.

Windows are independent and their sums add up, so memory is bounded and any executor may map over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancrafter import classical
from pancrafter.alignment import estimate_band_shifts
from pancrafter.compute import Compute
from pancrafter.engine import (
    NetworkSharpener,
    Sharpener,
    SharpenerSpec,
    build_sharpener,
    mean_relative_mtf,
    scene_mtfs,
)
from pancrafter.errors import InvalidSceneError
from pancrafter.metrics import (
    BLOCK_PX,
    BlockSums,
    ErrorSums,
    common_phase,
    degraded_pair,
    error_sums,
    fill_invalid,
    hqnr_production_sums,
)
from pancrafter.moments import products
from pancrafter.resample import GENERIC_MTF_GAIN, Mtf, degrade
from pancrafter.sensors import SensorContract
from pancrafter.store import SceneStore, Window, cut_windows, widened_window
from pancrafter.tiles import Floats, Tile, band_phases, dn_limits, ms_index, ms_window, valid_window
from pancrafter.types import CONSISTENCY_BLOCK_MS_PX, Quality, StagedScene, Sums

Pixels = NDArray[Any]  # any integer or float dtype
Float64s = NDArray[np.float64]

WINDOW_PX = 1024
HALO_PX = 64
SAMPLE_PX = 768
"""Side of the windows that are sharpened again at reduced resolution, PAN pixels."""

MAX_SAMPLES = 4
FALLBACK = "mtf-glp-fs"
"""The classical method that takes the place of a result which misses (``engine.GlpSharpener``)."""

BORDER_REDUCED_PX = 8
"""Pixels at the border of a reduced sample that no method's score counts."""

MIN_BLOCK_SHARE = 0.25
"""A block counts where at least this share of its pixels can be compared."""

LOCAL_LIMIT = 30.0
"""Consistency ERGAS times ratio above which a block is marked in the mask (limits: docs/quality-gate.md)."""

DETAIL_SIGMA_MS_PX = 2.0
"""What a Gaussian of this width leaves is the detail in which PAN and MS are compared, MS pixels."""

_TINY = 1e-9
_SAME = 1e-10
"""Up to this share of its own square, the squared difference of a band from another is mere rounding."""
_NO_ERROR_ERGAS = 1e-6
"""Below this an error is what float32 leaves of a flat image."""


@dataclass(frozen=True, eq=False)
class LocalErrors:
    """What one window's blocks of 8 by 8 MS pixels miss and hold, (band, y, x); NaN where none could be compared."""

    start_yx: tuple[int, int]
    """Row and column of the first block in the scene's block raster."""
    errors: NDArray[np.float32]
    """Mean squared consistency errors, DN squared."""
    detail: NDArray[np.float32]
    """Mean squares of the MS bands' own detail, DN squared."""


class BandSums(Sums):
    """Second moments over the compared MS pixels; those of disjoint windows add up. Matrices are row by row.

    ``products`` is of the degraded bands with the MS bands; ``detail`` is of high-passed PAN and MS bands, PAN first;
    ``fine`` of what PAN and the sharpened bands hold beyond an MS pixel, PAN first, over the valid PAN pixels;
    ``flow`` holds, per band, gy gy, gy gx, gx gx, gy d and gx d of the MS gradient g and the difference d to MS.
    """

    pixels: int
    degraded: tuple[float, ...]
    degraded_squares: tuple[float, ...]
    ms: tuple[float, ...]
    ms_squares: tuple[float, ...]
    products: tuple[float, ...]
    detail: tuple[float, ...]
    fine: tuple[float, ...]
    flow: tuple[float, ...]

    def bias(self) -> float:
        """Largest relative difference between the mean of a degraded band and its MS mean."""
        wanted = np.array(self.ms)
        return float(np.max(np.abs(np.array(self.degraded) - wanted) / np.maximum(np.abs(wanted), _TINY)))

    def detail_squares(self) -> Float64s:
        """Mean squares of the MS bands' own detail over the scene, DN squared, (band,)."""
        side = len(self.ms) + 1
        return np.diag(np.array(self.detail).reshape(side, side))[1:] / max(1, self.pixels)

    def confusion(self) -> float | None:
        """Largest RMSE of a degraded band against its own MS band over that against the nearest other one."""
        bands = len(self.ms)
        if bands == 1:
            return None
        cross = np.array(self.products).reshape(bands, bands)
        squared = np.array(self.degraded_squares)[:, None] + np.array(self.ms_squares)[None] - 2 * cross
        own = np.maximum(np.diag(squared), 0)
        other = np.where(np.eye(bands, dtype=bool), np.inf, squared).min(axis=1)
        least = np.maximum(_SAME * np.array(self.ms_squares), _TINY)
        return float(np.sqrt(own / np.maximum(other, least)).max())

    def displacement_ms_px(self) -> float | None:
        """Largest displacement of a degraded band against its MS band, MS pixels; None where nothing has an edge.

        One step of Lucas and Kanade (1981) over the whole scene: small displacements are right, a whole MS pixel reads
        somewhat less.
        """
        found = []
        for yy, yx, xx, yd, xd in np.array(self.flow).reshape(-1, 5):
            normal = np.array([[yy, yx], [yx, xx]])
            if np.linalg.det(normal) > _TINY * max(1.0, self.pixels) ** 2:
                found.append(float(np.hypot(*np.linalg.solve(normal, [yd, xd]))))
        return max(found, default=None)

    def pan_correlation(self) -> float | None:
        """Multiple correlation of PAN's detail with the detail of all MS bands, 0 to 1; None without any detail."""
        return self._explained(self.detail)

    def detail_correlation(self) -> float | None:
        """Multiple correlation of PAN's fine detail with that of all sharpened bands, 0 to 1; None without any."""
        return self._explained(self.fine)

    def _explained(self, moments_of: tuple[float, ...]) -> float | None:
        """Multiple correlation of the first image with the others, from the products of each with each."""
        side = len(self.ms) + 1
        moments = np.array(moments_of).reshape(side, side)
        if moments[0, 0] <= _TINY * self.pixels:
            return None
        weights = np.linalg.lstsq(moments[1:, 1:], moments[1:, 0], rcond=1e-8)[0]
        return float(np.sqrt(np.clip(weights @ moments[1:, 0] / moments[0, 0], 0, 1)))


@dataclass(frozen=True, eq=False)
class WindowSums:
    """Sums of one window; they add up to those of the scene."""

    consistency: ErrorSums
    smoothed: ErrorSums
    """Of MS without its own detail against MS: the scale of ``consistency``."""
    bands: BandSums
    local: LocalErrors
    blocks: BlockSums
    samples: int
    """Valid pixels times bands in the core."""
    at_limit: int
    """Of these, how many lie at an end of the output's DN range: clipped there, or saturated before."""


@dataclass(frozen=True)
class Sample:
    """One window at reduced resolution: squared-error sums of our result and of every classical method against MS."""

    errors: dict[str, ErrorSums]
    residual_shift_px: float
    """Largest distance of a sharpened band from PAN, NaN where nothing certain could be measured."""


def local_limit(ratio: int) -> float:
    """Consistency ERGAS above which a block of 8 by 8 MS pixels is marked as inconsistent."""
    return LOCAL_LIMIT / ratio


def measure_scene(
    staged: StagedScene, method: str, spec: SharpenerSpec, contract: SensorContract, compute: Compute
) -> tuple[Quality, NDArray[np.float32]]:
    """The quality of a sharpened store, and the raster of its local consistency."""
    store, mtfs = SceneStore.open(staged.store_uri), scene_mtfs(staged, contract)
    blur = mean_relative_mtf(staged, contract)
    windows = compute.map(_window_task, assessment_windows(store), staged.store_uri, mtfs, blur)
    samples = compute.map(_sample_task, sample_windows(store), staged.store_uri, spec, mtfs, blur, on_gpu=True)
    measured = list(windows)
    return combine(staged, method, measured, samples), consistency_raster(staged, measured)


def _window_task(window: Window, uri: str, mtfs: tuple[Mtf, ...], pan_blur: Mtf) -> WindowSums:
    return window_sums(SceneStore.open(uri), window, mtfs, pan_blur)


def _sample_task(window: Window, uri: str, spec: SharpenerSpec, mtfs: tuple[Mtf, ...], pan_blur: Mtf) -> Sample | None:
    return reduced_sample(SceneStore.open(uri), window, build_sharpener(spec), mtfs, pan_blur)


def assessment_windows(store: SceneStore) -> list[Window]:
    """Cores that cover the scene; they start where 32 px blocks and MS pixels start."""
    step = math.lcm(BLOCK_PX, store.staged.grid.ratio)
    return list(cut_windows(store.pan_shape_yx, math.ceil(WINDOW_PX / step) * step))


def window_sums(store: SceneStore, core: Window, mtfs: tuple[Mtf | float, ...], pan_blur: Mtf | float) -> WindowSums:
    """Consistency and block sums of one core, read with a halo; ``mtfs`` and ``pan_blur`` as in ``reduce_tile``."""
    staged = store.staged
    ratio = staged.grid.ratio
    halo = math.ceil(HALO_PX / math.lcm(BLOCK_PX, ratio)) * math.lcm(BLOCK_PX, ratio)
    window = widened_window(core, halo, store.pan_shape_yx)
    on_ms = ms_window(window, staged.grid)
    valid = valid_window(store, window)
    sharpened, pan, ms = store.read_sharpened(window), store.read_pan(window), store.read_ms(on_ms)
    phases = band_phases(staged)
    pan_core = _core_mask(window, core, 1, pan.shape)
    ms_core = _core_mask(window, core, ratio, ms.shape[1:])
    ms_valid = store.read_ms_valid(on_ms).astype(np.bool_) & _on_ms(valid, ms.shape[1:], staged)
    wanted, degraded, kept = degraded_pair(sharpened, ms, ratio, phases, mtfs, ms_valid)
    counted = kept & ms_core
    low, high = dn_limits(staged)
    inside = valid & pan_core
    ends = ((sharpened <= low) | (sharpened >= high)) & inside
    filled = fill_invalid(pan[None], valid)[0] if valid.any() else pan
    detail = _detail(filled, wanted, staged, pan_blur)
    fine = _fine_products(pan, sharpened, valid, pan_core, ratio)
    return WindowSums(
        samples=int(inside.sum()) * len(sharpened),
        at_limit=int(np.count_nonzero(ends)),
        consistency=error_sums(wanted, degraded, counted),
        smoothed=error_sums(wanted, wanted - detail[1:], counted),
        bands=_band_sums(detail, fine, wanted, degraded, counted),
        local=_local_errors((wanted - degraded) ** 2, detail[1:] ** 2, counted, ms_core, core, ratio),
        blocks=hqnr_production_sums(
            sharpened, pan, ms, ratio, phases, mtfs, pan_blur, valid, counted=pan_core, by_structure=True
        ),
    )


def _detail(pan: Pixels, ms: Float64s, staged: StagedScene, pan_blur: Mtf | float) -> Float64s:
    """What PAN at MS scale and each MS band show beyond their smoothed selves, (1 + band, y, x), PAN first."""
    common = common_phase(band_phases(staged))
    low_pan = degrade(pan.astype(np.float32), ms.shape[1:], staged.grid.ratio, common, pan_blur)
    images = np.concatenate([low_pan[None], ms])
    smooth = ndimage.gaussian_filter(images, (0, DETAIL_SIGMA_MS_PX, DETAIL_SIGMA_MS_PX), mode="nearest")
    return np.asarray(images - smooth)


def _fine_products(
    pan: Pixels, sharpened: Pixels, valid: NDArray[np.bool_], core: NDArray[np.bool_], ratio: int
) -> Float64s:
    """Products, each with each, of what PAN and the sharpened bands hold beyond the mean of 2 MS pixels around."""
    side = 2 * ratio + 1
    inner = tuple(
        slice(max(0, int(where[0]) - ratio), int(where[-1]) + 1 + ratio)
        for where in (np.flatnonzero(core.any(axis=axis)) for axis in (1, 0))
    )
    core, valid = core[inner], valid[inner]
    counted = core if valid.all() else core & ndimage.minimum_filter(valid, side, mode="nearest")
    images = np.empty((1 + len(sharpened), int(counted.sum())), np.float32)
    for row, image in zip(images, (pan, *sharpened), strict=True):
        values = image[inner].astype(np.float32)
        row[:] = (values - ndimage.uniform_filter(values, side, mode="nearest"))[counted]
    return products(images, images)


def _band_sums(
    detail: Float64s, fine: Float64s, ms: Float64s, degraded: Float64s, counted: NDArray[np.bool_]
) -> BandSums:
    detail = detail[:, counted]
    result, wanted = degraded[:, counted], ms[:, counted]
    return BandSums(
        pixels=int(counted.sum()),
        degraded=tuple(result.sum(axis=1).tolist()),
        degraded_squares=tuple((result**2).sum(axis=1).tolist()),
        ms=tuple(wanted.sum(axis=1).tolist()),
        ms_squares=tuple((wanted**2).sum(axis=1).tolist()),
        products=tuple(products(result, wanted).ravel().tolist()),
        detail=tuple(products(detail, detail).ravel().tolist()),
        fine=tuple(fine.ravel().tolist()),
        flow=tuple(_flow(ms, degraded, counted).ravel().tolist()),
    )


def _flow(ms: Float64s, degraded: Float64s, counted: NDArray[np.bool_]) -> Float64s:
    sums = np.zeros((len(ms), 5))
    if min(ms.shape[1:]) < 2:
        return sums
    for band, (wanted, result) in enumerate(zip(ms, degraded, strict=True)):
        rows = np.stack([image[counted] for image in (*np.gradient(wanted), result - wanted)])
        (yy, yx, yd), (_, xx, xd), _ = products(rows, rows)
        sums[band] = yy, yx, xx, yd, xd
    return sums


def _local_errors(
    errors: Float64s,
    detail: Float64s,
    counted: NDArray[np.bool_],
    ms_core: NDArray[np.bool_],
    core: Window,
    ratio: int,
) -> LocalErrors:
    rows, cols = (np.flatnonzero(ms_core.any(axis=axis)) for axis in (1, 0))
    inner = (slice(None), slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    pixels = _block_sums(counted[None][inner].astype(np.float64))
    enough = pixels >= MIN_BLOCK_SHARE * CONSISTENCY_BLOCK_MS_PX**2

    def means(squares: Float64s) -> NDArray[np.float32]:
        sums = _block_sums(np.where(counted, squares, 0)[inner])
        return np.where(enough, sums / np.maximum(pixels, 1), np.nan).astype(np.float32)

    first = tuple(part.start // (ratio * CONSISTENCY_BLOCK_MS_PX) for part in core)
    return LocalErrors((first[0], first[1]), means(errors), means(detail))


def _block_sums(images: Float64s) -> Float64s:
    """Sums over blocks of 8 by 8 pixels of (band, y, x); the last blocks may be smaller."""
    side = CONSISTENCY_BLOCK_MS_PX
    by_row = np.add.reduceat(images, np.arange(0, images.shape[1], side), axis=1)
    sums: Float64s = np.add.reduceat(by_row, np.arange(0, images.shape[2], side), axis=2)
    return sums


def consistency_raster(staged: StagedScene, windows: Sequence[WindowSums]) -> NDArray[np.float32]:
    """Consistency ERGAS of every block of 8 by 8 MS pixels, (y, x); NaN where a block could not be compared.

    Reference of a band, squared: its mean over the scene, so that dark blocks do not look worse, plus the block's own
    detail, so that bright roofs on dark ground do not either: where that detail is several times the mean, so is what
    any sharpener misses of it.
    """
    total = _sum([w.bands for w in windows])
    means = np.array(total.ms) / max(1, total.pixels)
    side = CONSISTENCY_BLOCK_MS_PX
    raster = np.full([-(-n // side) for n in staged.grid.ms_shape_yx], np.nan, np.float32)
    for window in windows:
        local = window.local
        relative = (local.errors / np.maximum(means[:, None, None] ** 2 + local.detail, _TINY)).mean(axis=0)
        y, x = local.start_yx
        raster[y : y + relative.shape[0], x : x + relative.shape[1]] = 100 / staged.grid.ratio * np.sqrt(relative)
    return raster


def worst_block_error(windows: Sequence[WindowSums]) -> float | None:
    """Largest consistency error of a block over its contrast; None where no block could be compared.

    Contrast of a band, squared: its detail over the scene plus the block's own. Unlike a share of the mean it is the
    same for flat fields and for bright roofs; around 1 a block shows other ground or nothing.
    """
    scene = _sum([w.bands for w in windows]).detail_squares()[:, None, None]
    worst = []
    for local in (w.local for w in windows):
        errors = (local.errors / np.maximum(scene + local.detail, _TINY)).mean(axis=0)
        worst += [float(errors[np.isfinite(errors)].max())] if np.isfinite(errors).any() else []
    return math.sqrt(max(worst)) if worst else None


def inconsistent_pixels(store: SceneStore, raster: NDArray[np.float32], window: Window) -> NDArray[np.bool_]:
    """Pixels (y, x) of a PAN window that lie in a block of ``consistency_raster`` above the local limit.

    The last row and column of blocks may be too narrow to be compared even where all is valid: such a block goes with
    the one before.
    """
    judged = raster.copy()
    borders = (judged[-1:], judged[-2:-1]), (judged[:, -1:], judged[:, -2:-1])
    for size, (last, before) in zip(store.ms_shape_yx, borders, strict=True):
        if before.size and 0 < size % CONSISTENCY_BLOCK_MS_PX < CONSISTENCY_BLOCK_MS_PX / 2:
            np.copyto(last, before, where=np.isnan(last))
    grid, limit = store.staged.grid, local_limit(store.staged.grid.ratio)
    rows, cols = (
        ms_index(part, grid.ratio, phase, size) // CONSISTENCY_BLOCK_MS_PX
        for part, phase, size in zip(window, grid.phase_yx, grid.ms_shape_yx, strict=True)
    )
    marked: NDArray[np.bool_] = (judged > limit)[np.ix_(rows, cols)]
    return marked


def sample_windows(store: SceneStore) -> list[Window]:
    """Up to four windows, spread over the scene, whose pixels are mostly valid; fewer in small or empty scenes."""
    ratio = store.staged.grid.ratio
    side = min(SAMPLE_PX, *store.pan_shape_yx) // ratio * ratio
    if side == 0:
        return []
    whole = [w for w in cut_windows(store.pan_shape_yx, side) if all(part.stop - part.start == side for part in w)]
    candidates = [w for w in whole if valid_window(store, w).mean() > 0.95]
    picks = np.linspace(0, len(candidates) - 1, min(MAX_SAMPLES, len(candidates))).round().astype(int)
    return [candidates[i] for i in picks]


def reduced_sample(
    store: SceneStore, window: Window, sharpener: Sharpener, mtfs: tuple[Mtf | float, ...], pan_blur: Mtf | float
) -> Sample | None:
    """Sharpen one window a scale down, where its own MS is the truth (Wald), with us and with every classical method.

    See ``reduce_tile``. None where the reduced window is too small to mean anything.
    """
    staged = store.staged
    full = Tile(
        pan=store.read_pan(window).astype(np.float32),
        ms=store.read_ms(ms_window(window, staged.grid)).astype(np.float32),
        ratio=staged.grid.ratio,
        phases_yx=band_phases(staged),
        pan_range=staged.pan_range,
        ms_ranges=staged.ms_ranges,
        dn_max=staged.dn_max,
    )
    reduced = reduce_tile(full, mtfs, pan_blur)
    if reduced is None:
        return None
    tile, truth = reduced.tile, reduced.truth
    pair = classical.PairInput(tile.pan, tile.ms, tile.ratio, tile.phases_yx, mtfs, dn_max=tile.dn_max)
    ours = sharpener.one_scale_down(mtfs) if isinstance(sharpener, NetworkSharpener) else sharpener
    results = {ours.method: ours(tile)} | {m: classical.sharpen(m, pair) for m in classical.METHODS}
    inner = (slice(None), *(slice(BORDER_REDUCED_PX, n - BORDER_REDUCED_PX) for n in tile.pan.shape))
    return Sample(
        errors={method: error_sums(truth[inner], result[inner]) for method, result in results.items()},
        residual_shift_px=_residual_shift(store, window),
    )


@dataclass(frozen=True, eq=False)
class Reduced:
    """A pair one scale down: what a sharpener sees, and the MS (band, y, x) it should arrive at."""

    tile: Tile
    truth: Floats


def reduce_tile(
    full: Tile,
    mtfs: Sequence[Mtf | float],
    pan_blur: Mtf | float,
    *,
    ratio: int | None = None,
    least_px: int = 4 * BORDER_REDUCED_PX,
) -> Reduced | None:
    """Wald's protocol: MS becomes the truth, PAN is degraded to the MS grid, MS by ``ratio`` once more.

    PAN is reduced at the bands' common true position and made as blurred as they are, so PAN and truth agree without
    resampling MS; what single bands deviate from that, all methods have to live with. The reduced MS lies edge-aligned
    on the reduced PAN.

    Args:
        full: The pair.
        mtfs: MTF per band.
        pan_blur: The same between PAN and the bands (``engine.mean_relative_mtf``).
        ratio: How far MS is degraded; by default as far as its own ratio.
        least_px: Least side of the reduced pair, PAN pixels.

    Returns:
        None where the reduced pair is smaller.
    """
    ratio = full.ratio if ratio is None else ratio
    side = [n // (4 * ratio) * (4 * ratio) for n in full.ms.shape[1:]]
    if min(side) < least_px:
        return None
    truth = full.ms[:, : side[0], : side[1]]
    pan = degrade(full.pan, side, full.ratio, common_phase(full.phases_yx), pan_blur)
    nominal = ((ratio - 1) / 2, (ratio - 1) / 2)
    small = [n // ratio for n in side]
    ms = np.stack([degrade(b, small, ratio, nominal, mtf) for b, mtf in zip(truth, mtfs, strict=True)])
    tile = Tile(
        pan=pan.astype(np.float32),
        ms=ms.astype(np.float32),
        ratio=ratio,
        phases_yx=(nominal,) * len(ms),
        pan_range=full.pan_range,
        ms_ranges=full.ms_ranges,
        uncertainty=full.uncertainty / ratio,
        dn_max=full.dn_max,
    )
    return Reduced(tile, truth)


def combine(
    staged: StagedScene,
    method: str,
    windows: Iterable[WindowSums],
    samples: Iterable[Sample | None],
) -> Quality:
    """The scene's quality from everything its windows reported; ERGAS is of the bands that are not 0 everywhere.

    Raises:
        InvalidSceneError: The scene is too small or too empty for any figure.
    """
    windows, kept = list(windows), [s for s in samples if s is not None]
    consistency = _sum([w.consistency for w in windows]).without_empty_bands()
    smoothed = _sum([w.smoothed for w in windows]).without_empty_bands()
    ratio = staged.grid.ratio
    scores = _sum([w.blocks for w in windows]).scores()
    errors: dict[str, float] = {}
    if kept:
        errors = {m: _sum([s.errors[m] for s in kept]).without_empty_bands().ergas(ratio) for m in kept[0].errors}
    ours = errors.pop(method, None)
    errors.pop("exp", None)
    best = min(errors, key=lambda m: errors[m]) if errors else None
    residuals = [s.residual_shift_px for s in kept if math.isfinite(s.residual_shift_px)]
    bands = _sum([w.bands for w in windows])
    blocks = consistency_raster(staged, windows)
    blocks = blocks[np.isfinite(blocks)]
    return Quality(
        consistency_ergas=consistency.ergas(ratio),
        consistency_sam_deg=consistency.sam_deg(),
        detail_ergas=smoothed.ergas(ratio),
        detail_sam_deg=smoothed.sam_deg(),
        d_lambda=scores.d_lambda,
        d_s=scores.d_s,
        hqnr=scores.hqnr,
        residual_shift_px=float(np.median(residuals)) if residuals else None,
        reduced_ergas=ours,
        best_classical=best,
        best_classical_reduced_ergas=errors[best] if best else None,
        gain_over_classical=_gain(ours, errors[best]) if best and ours is not None else None,
        gain_over_fallback=_gain(ours, errors[FALLBACK]) if ours is not None and FALLBACK in errors else None,
        clipped_share=sum(w.at_limit for w in windows) / max(1, sum(w.samples for w in windows)),
        invalid_share=1 - staged.valid_share,
        radiometric_bias=bands.bias(),
        band_confusion=bands.confusion(),
        worst_block_ergas=float(blocks.max()) if blocks.size else None,
        worst_block_error=worst_block_error(windows),
        inconsistent_share=float((blocks > local_limit(ratio)).mean()) if blocks.size else None,
        detail_correlation=bands.detail_correlation(),
        pan_correlation=bands.pan_correlation(),
        displacement_px=None if (moved := bands.displacement_ms_px()) is None else ratio * moved,
    )


def _gain(ours: float, classical_ergas: float) -> float | None:
    """Share of the classical error that we avoid; None where that error is mere rounding, over flat ground."""
    return 1 - ours / classical_ergas if classical_ergas > _NO_ERROR_ERGAS else None


def _residual_shift(store: SceneStore, window: Window) -> float:
    """Where the sharpened bands lie against PAN: the estimator of staging, on the result degraded to MS scale."""
    staged = store.staged
    ratio = staged.grid.ratio
    sharpened, pan = store.read_sharpened(window), store.read_pan(window)
    nominal = ((ratio - 1) / 2, (ratio - 1) / 2)
    small = [n // ratio for n in pan.shape]
    coarse = np.stack([degrade(band.astype(np.float32), small, ratio, nominal, GENERIC_MTF_GAIN) for band in sharpened])
    found = [s for s in estimate_band_shifts(pan, coarse, ratio, nominal) if s.certain]
    return max((math.hypot(*s.shift_yx) for s in found), default=math.nan)


def _core_mask(window: Window, core: Window, ratio: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    rows, cols = (
        slice((c.start - w.start) // ratio, -(-(c.stop - w.start) // ratio)) for w, c in zip(window, core, strict=True)
    )
    mask[rows, cols] = True
    return mask


def _on_ms(valid: NDArray[np.bool_], ms_shape: tuple[int, ...], staged: StagedScene) -> NDArray[np.bool_]:
    """Validity of the PAN pixel at each MS pixel's nominal centre."""
    rows, cols = (
        np.clip(np.rint(staged.grid.ratio * np.arange(n) + phase).astype(int), 0, size - 1)
        for n, phase, size in zip(ms_shape, staged.grid.phase_yx, valid.shape, strict=True)
    )
    on_ms: NDArray[np.bool_] = valid[np.ix_(rows, cols)]
    return on_ms


_Sums = TypeVar("_Sums", ErrorSums, BlockSums, BandSums)


def _sum(parts: list[_Sums]) -> _Sums:
    if not parts:
        raise InvalidSceneError("nothing was measured: the scene has no assessment window; it is too small or empty")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
