"""Looking at the sharpened pixels: what the quality gate knows about a scene, measured window by window.

Windows are independent and their sums add up, so memory is bounded and any executor may map over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pancrafter import classical
from pancrafter.alignment import estimate_band_shifts
from pancrafter.engine import Floats, Sharpener, Tile, band_phases, dn_limits, valid_window
from pancrafter.errors import InvalidSceneError
from pancrafter.metrics import BLOCK_PX, BlockSums, ErrorSums, consistency_sums, error_sums, hqnr_production_sums
from pancrafter.resample import GENERIC_MTF_GAIN, degrade
from pancrafter.store import SceneStore, Window
from pancrafter.types import Quality, Record, StagedScene

_Sums = TypeVar("_Sums", ErrorSums, BlockSums)

WINDOW_PX = 512
HALO_PX = 64
SAMPLE_PX = 768
"""Side of the windows that are sharpened again at reduced resolution, PAN pixels."""

MAX_SAMPLES = 4
BORDER_REDUCED_PX = 8
"""Pixels at the border of a reduced sample that no method's score counts."""

_NO_ERROR_ERGAS = 1e-6
"""Below this an error is what float32 leaves of a flat image."""


class WindowSums(Record):
    """Sums of one window; they add up to those of the scene. ``blocks`` is None where no 32 px block is valid."""

    consistency: ErrorSums
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


class QualityRule(Record):
    """What a scene must reach to be published as the network's result; else the classical one takes its place."""

    min_gain: float = Field(default=-0.02, description="Least gain over the best classical method, reduced scale.")
    max_consistency_ergas: float = Field(default=6.0, description="ERGAS of the degraded result against its MS input.")
    max_residual_shift_px: float = Field(default=1.0, description="Largest shift left between PAN and a band.")
    min_hqnr: float = 0.6

    def verdict(self, quality: Quality) -> tuple[Literal["pass", "fallback"], str]:
        """Whether the result may be published, and why not."""
        problems = []
        if quality.gain_over_classical is not None and quality.gain_over_classical < self.min_gain:
            problems.append(
                f"gain over {quality.best_classical} {quality.gain_over_classical:+.1%} < {self.min_gain:+.1%}"
            )
        if quality.consistency_ergas > self.max_consistency_ergas:
            problems.append(f"consistency ERGAS {quality.consistency_ergas:.2f} > {self.max_consistency_ergas:g}")
        if quality.residual_shift_px > self.max_residual_shift_px:
            problems.append(f"residual shift {quality.residual_shift_px:.2f} px > {self.max_residual_shift_px:g}")
        if quality.hqnr < self.min_hqnr:
            problems.append(f"HQNR {quality.hqnr:.3f} < {self.min_hqnr:g}")
        return ("fallback", "; ".join(problems)) if problems else ("pass", "")


def assessment_windows(store: SceneStore) -> list[Window]:
    """Cores that cover the scene; they start where 32 px blocks and MS pixels start."""
    step = math.lcm(BLOCK_PX, store.staged.grid.ratio)
    return list(_grid(store.pan_shape_yx, math.ceil(WINDOW_PX / step) * step))


def window_sums(store: SceneStore, core: Window, gains: tuple[float, ...]) -> WindowSums:
    """Consistency and block sums of one core, read with a halo; ``gains`` are the bands' MTF at the MS Nyquist."""
    staged = store.staged
    ratio = staged.grid.ratio
    halo = math.ceil(HALO_PX / math.lcm(BLOCK_PX, ratio)) * math.lcm(BLOCK_PX, ratio)
    pan_window, ms_window = _with_halo(store, core, halo)
    valid = valid_window(store, pan_window)
    sharpened, pan, ms = store.read_sharpened(pan_window), store.read_pan(pan_window), store.read_ms(ms_window)
    phases = band_phases(staged)
    pan_core = _core_mask(pan_window, core, 1, pan.shape)
    ms_core = _core_mask(pan_window, core, ratio, ms.shape[1:])
    ms_valid = store.read_ms_valid(ms_window).astype(np.bool_) & _on_ms(valid, ms.shape[1:], staged)
    low, high = dn_limits(staged)
    inside = valid & pan_core
    ends = ((sharpened <= low) | (sharpened >= high)) & inside
    return WindowSums(
        samples=int(inside.sum()) * len(sharpened),
        at_limit=int(np.count_nonzero(ends)),
        consistency=consistency_sums(sharpened, ms, ratio, phases, gains, ms_valid, counted=ms_core),
        blocks=hqnr_production_sums(
            sharpened, pan, ms, ratio, phases, gains, GENERIC_MTF_GAIN, valid, counted=pan_core
        ),
    )


def sample_windows(store: SceneStore) -> list[Window]:
    """Up to four windows, spread over the scene, whose pixels are mostly valid; fewer in small or empty scenes."""
    ratio = store.staged.grid.ratio
    side = min(SAMPLE_PX, *(n // ratio * ratio for n in store.pan_shape_yx)) // ratio * ratio
    candidates = [w for w in _grid(store.pan_shape_yx, side, whole=True) if valid_window(store, w).mean() > 0.95]
    picks = np.linspace(0, len(candidates) - 1, min(MAX_SAMPLES, len(candidates))).round().astype(int)
    return [candidates[i] for i in dict.fromkeys(picks.tolist())]


def reduced_sample(store: SceneStore, window: Window, sharpener: Sharpener, gains: tuple[float, ...]) -> Sample | None:
    """Sharpen one window a scale down, where its own MS is the truth (Wald), with us and with every classical method.

    See ``reduce_tile``. None where the reduced window is too small to mean anything.
    """
    staged = store.staged
    pan_window, ms_window = _with_halo(store, window, 0)
    full = Tile(
        pan=store.read_pan(pan_window).astype(np.float32),
        ms=store.read_ms(ms_window).astype(np.float32),
        ratio=staged.grid.ratio,
        phases_yx=band_phases(staged),
        pan_range=staged.pan_range,
        ms_ranges=staged.ms_ranges,
    )
    reduced = reduce_tile(full, gains)
    if reduced is None:
        return None
    tile, truth = reduced.tile, reduced.truth
    pair = classical.PairInput(tile.pan, tile.ms, tile.ratio, tile.phases_yx, gains)
    results = {sharpener.method: sharpener(tile)} | {m: classical.sharpen(m, pair) for m in classical.METHODS}
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


def reduce_tile(full: Tile, gains: Sequence[float], *, ratio: int | None = None) -> Reduced | None:
    """Wald's protocol: MS becomes the truth, PAN is degraded to the MS grid, MS by ``ratio`` once more.

    PAN is reduced at the bands' common true position, so PAN and truth agree without resampling MS; what single bands
    deviate from it, all methods have to live with. The reduced MS lies edge-aligned on the reduced PAN.

    Args:
        full: The pair.
        gains: MTF at the MS Nyquist frequency, per band.
        ratio: How far MS is degraded; by default as far as its own ratio.

    Returns:
        None where the reduced pair is too small to mean anything.
    """
    ratio = full.ratio if ratio is None else ratio
    side = [n // (4 * ratio) * (4 * ratio) for n in full.ms.shape[1:]]
    if min(side) < 4 * BORDER_REDUCED_PX:
        return None
    truth = full.ms[:, : side[0], : side[1]]
    common = np.median(np.array(full.phases_yx), axis=0)
    pan = degrade(full.pan, (side[0], side[1]), full.ratio, (common[0], common[1]), GENERIC_MTF_GAIN)
    nominal = ((ratio - 1) / 2, (ratio - 1) / 2)
    small = (side[0] // ratio, side[1] // ratio)
    ms = np.stack([degrade(b, small, ratio, nominal, g) for b, g in zip(truth, gains, strict=True)])
    tile = Tile(
        pan=pan.astype(np.float32),
        ms=ms.astype(np.float32),
        ratio=ratio,
        phases_yx=(nominal,) * len(ms),
        pan_range=full.pan_range,
        ms_ranges=full.ms_ranges,
    )
    return Reduced(tile, truth)


def combine(
    staged: StagedScene,
    method: str,
    windows: Iterable[WindowSums],
    samples: Iterable[Sample | None],
) -> Quality:
    """The scene's quality from everything its windows reported.

    Raises:
        InvalidSceneError: The scene is too small or too empty for any figure.
    """
    windows, kept = list(windows), [s for s in samples if s is not None]
    consistency = _sum([w.consistency for w in windows])
    ratio = staged.grid.ratio
    scores = _sum([w.blocks for w in windows]).scores()
    errors: dict[str, float] = {}
    if kept:
        errors = {m: _sum([s.errors[m] for s in kept]).ergas(ratio) for m in kept[0].errors}
    ours = errors.pop(method, None)
    errors.pop("exp", None)
    best = min(errors, key=lambda m: errors[m]) if errors else None
    residuals = [s.residual_shift_px for s in kept if math.isfinite(s.residual_shift_px)]
    return Quality(
        consistency_ergas=consistency.ergas(ratio),
        consistency_sam_deg=consistency.sam_deg(),
        d_lambda=scores.d_lambda,
        d_s=scores.d_s,
        hqnr=scores.hqnr,
        residual_shift_px=float(np.median(residuals)) if residuals else 0.0,
        reduced_ergas=ours,
        best_classical=best,
        best_classical_reduced_ergas=errors[best] if best else None,
        gain_over_classical=_gain(ours, errors[best]) if best and ours is not None else None,
        clipped_share=sum(w.at_limit for w in windows) / max(1, sum(w.samples for w in windows)),
        invalid_share=1 - staged.valid_share,
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
    small = (pan.shape[0] // ratio, pan.shape[1] // ratio)
    coarse = np.stack([degrade(band.astype(np.float32), small, ratio, nominal, GENERIC_MTF_GAIN) for band in sharpened])
    found = [s for s in estimate_band_shifts(pan, coarse, ratio, nominal) if s.certain]
    return max((math.hypot(*s.shift_yx) for s in found), default=math.nan)


def _grid(shape_yx: tuple[int, int], side: int, *, whole: bool = False) -> Iterator[Window]:
    """Windows of ``side`` over a scene, row by row; ``whole`` leaves out the smaller ones at the border."""
    for y in range(0, shape_yx[0], side):
        for x in range(0, shape_yx[1], side):
            window = (slice(y, min(y + side, shape_yx[0])), slice(x, min(x + side, shape_yx[1])))
            if not whole or all(part.stop - part.start == side for part in window):
                yield window


def _with_halo(store: SceneStore, core: Window, halo: int) -> tuple[Window, Window]:
    """PAN window around a core, clipped to the scene, and the MS window that starts at the same place."""
    ratio, pans, mss = store.staged.grid.ratio, [], []
    for part, size, ms_size in zip(core, store.pan_shape_yx, store.ms_shape_yx, strict=True):
        start, stop = max(0, part.start - halo), min(size, part.stop + halo)
        pans.append(slice(start, stop))
        first = start // ratio
        mss.append(slice(first, max(first + 1, min(ms_size, -(-stop // ratio)))))
    return (pans[0], pans[1]), (mss[0], mss[1])


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


def _sum(parts: list[_Sums]) -> _Sums:
    if not parts:
        raise InvalidSceneError("nothing was measured: the scene has no assessment window; it is too small or empty")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
