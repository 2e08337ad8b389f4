"""One table over pairs: networks, cubic up-sampling and every classical method, at reduced and at full resolution.

Sharpeners are those of the pipeline (``engine.NetworkSharpener``, ``classical.METHODS``); indices are those of
``metrics``. All methods of a pair see the same input, band shifts included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pancrafter import classical, metrics
from pancrafter.assess import BORDER_REDUCED_PX, reduce_tile
from pancrafter.engine import NetworkSharpener
from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.metrics import Pixels
from pancrafter.model.names import for_benchmark
from pancrafter.pairs import Pair, Unreadable, cropped, value_range
from pancrafter.preview import comparison_picture
from pancrafter.resample import Mtf
from pancrafter.tiles import NETWORK_STEP_PX, Floats, Tile, mirrored
from pancrafter.types import Record, ValueRange

NETWORK = "pan-crafter"
UPSAMPLING = "exp"

BLOCK_PX = 512
"""Core of the blocks in which a network sharpens a pair; bounds memory, changes no pixel."""

BENCHMARK_CROP = slice(20, -21)
"""Rows and columns of a PanCollection test image that count at reduced resolution (``dim_cut`` 21)."""

PICTURE_PX = 360
"""Side of what a picture shows of a pair."""

Sharpen = Callable[[Tile, tuple[Mtf | float, ...], float], Floats]
"""Takes a tile, the bands' MTFs and PAN's gain at its own Nyquist frequency; gives (band, y, x) DN on its PAN grid."""

AS_SHARP_AS_MS = 1.0
"""PAN's gain one scale down: the truth there is MS as it is, and no blur of PAN's lies between."""


class ReferenceScores(Record):
    """How close a result comes to the truth; definitions and their sources in ``pancrafter.metrics``."""

    ergas: float
    sam_deg: float
    q2n: float
    scc: float
    psnr_db: float | None = Field(description="None where result and truth are identical: no number says that.")
    ssim: float


class FullScores(Record):
    """Quality without a truth.

    ``d_lambda``, ``d_s`` and ``hqnr`` follow the published protocol to the letter, which knows no shift and places MS
    half a PAN pixel off; None for ratio 3, for which it has no interpolator. The ``aligned_`` ones and the consistency
    take the phase and shift of every band into account.
    """

    d_lambda: float | None
    d_s: float | None
    hqnr: float | None
    aligned_d_lambda: float
    aligned_d_s: float
    aligned_hqnr: float
    consistency_ergas: float
    consistency_sam_deg: float


class PairReport(Record):
    """Everything measured on one pair; scores by method."""

    name: str
    sensor: str
    grade: str | None
    bands: tuple[str, ...]
    ratio: int
    reduced_ratio: int
    pan_shape_yx: tuple[int, int]
    dn_max: int
    phase_px: float = Field(description="Nominal PAN index of MS pixel 0.")
    band_shift_yx: tuple[tuple[float, float], ...] = Field(description="Measured and used, PAN pixels.")
    mtf: Mtf | None = Field(default=None, description="Measured, mean of the bands relative to PAN: gain and shape.")
    truth: str = Field(description="wald: its own MS, one scale down; given: truth that came with the pair; none.")
    reduced: dict[str, ReferenceScores] | None
    full: dict[str, FullScores] | None

    def best_classical(self, error: Literal["ergas", "sam_deg"] = "ergas") -> str | None:
        """The classical method with the lowest reduced error; cubic up-sampling does not count."""
        scores = self.reduced or {}
        rivals = [name for name in scores if name in classical.METHODS and name != UPSAMPLING]
        return min(rivals, key=lambda name: float(getattr(scores[name], error)), default=None)

    def gain(self, method: str, error: Literal["ergas", "sam_deg"] = "ergas") -> float | None:
        """1 - error / error of the best classical method of this pair; positive is better."""
        best = self.best_classical(error)
        if self.reduced is None or best is None or method not in self.reduced:
            return None
        theirs = float(getattr(self.reduced[best], error))
        return 1 - float(getattr(self.reduced[method], error)) / theirs if theirs > 0 else None


class Summary(Record):
    """One network against the best classical method of each pair, reduced resolution."""

    pairs: int
    mean_ergas_gain: float = Field(description="Mean over pairs of 1 - ours / best classical.")
    gain_of_mean_ergas: float = Field(description="1 - mean of ours / mean of the best classical ones.")
    mean_sam_gain: float
    won_ergas: float = Field(description="Share of pairs.")
    won_sam: float
    won_both: float


class Evaluation(Record):
    """What ``pancrafter evaluate`` writes."""

    protocol: dict[str, str]
    weights: dict[str, str] = Field(description="Method -> SHA-256 of its weights.")
    pairs: tuple[PairReport, ...]
    failed: dict[str, str] = Field(description="Pair -> why it could not be scored.")
    means: dict[str, dict[str, float | None]] = Field(description="Method -> mean over pairs of every score.")
    summary: dict[str, Summary] = Field(description="Network -> its standing over all pairs.")
    summary_by_grade: dict[str, dict[str, Summary]]


@dataclass(frozen=True)
class Method:
    """A contestant. ``fixed_ranges``: its network was trained on DN scaled by the ceiling, not by percentiles.

    ``require_bands`` raises BandCountError where its network does not take so many bands.
    """

    name: str
    sharpen: Sharpen
    fixed_ranges: bool = False
    require_bands: Callable[[int], None] = lambda _bands: None


def classical_method(name: str) -> Method:
    """One of ``classical.METHODS``.

    Raises:
        PancrafterError: There is no such method.
    """
    if name not in classical.METHODS:
        raise PancrafterError(f"no method {name!r}; choose {NETWORK}, all, or one of {', '.join(classical.METHODS)}")

    def run(tile: Tile, mtfs: tuple[Mtf | float, ...], _: float) -> Floats:
        pair = classical.PairInput(tile.pan, tile.ms, tile.ratio, tile.phases_yx, mtfs, dn_max=tile.dn_max)
        return classical.sharpen(name, pair)

    return Method(name, run)


def _as_published(method: Method) -> Method:
    """The method as the benchmark's tables have it: their EXP is the 23-tap interpolator's ``lms``, not a cubic one."""

    def lms(tile: Tile, _mtfs: tuple[Mtf | float, ...], _pan_gain: float) -> Floats:
        return metrics.poly_upsample(tile.ms, tile.ratio).astype(np.float32)

    return replace(method, sharpen=lms) if method.name == UPSAMPLING else method


def network_method(name: str, sharpener: NetworkSharpener) -> Method:
    """A network under the name that tables give it; one of the published protocol runs as published, bare."""
    published = for_benchmark(sharpener.checkpoint.training)

    def run(tile: Tile, mtfs: tuple[Mtf | float, ...], pan_gain: float) -> Floats:
        fitted = sharpener.fitted_to(tile, mtfs, pan_gain)
        return sharpen_tile(replace(fitted, relative_mtf=None) if published else fitted, tile)

    return Method(name, run, published, sharpener.require_bands)


def sharpen_tile(sharpener: NetworkSharpener, tile: Tile, block_px: int = BLOCK_PX) -> Floats:
    """A whole pair through a network, in blocks with the halo that makes them independent of each other.

    Beyond its border the pair is mirrored, as in the pipeline.
    """
    step = math.lcm(NETWORK_STEP_PX, tile.ratio)
    halo = -(-sharpener.reach_px(tile.ratio, tile.phases_yx) // step) * step
    block = -(-block_px // step) * step
    height, width = tile.pan.shape
    pads = [(halo, halo + -n % step) for n in (height, width)]
    pan = mirrored(tile.pan, pads)
    ms = mirrored(tile.ms, [(a // tile.ratio, b // tile.ratio) for a, b in pads])
    result = np.empty((len(ms), pan.shape[0] - 2 * halo, pan.shape[1] - 2 * halo), np.float32)
    for y in range(0, result.shape[1], block):
        for x in range(0, result.shape[2], block):
            size = (min(block, result.shape[1] - y) + 2 * halo, min(block, result.shape[2] - x) + 2 * halo)
            on_pan = (slice(y, y + size[0]), slice(x, x + size[1]))
            on_ms = tuple(slice(part.start // tile.ratio, part.stop // tile.ratio) for part in on_pan)
            sharpened = sharpener(replace(tile, pan=pan[on_pan], ms=ms[:, *on_ms]))
            core = sharpened[:, halo:-halo, halo:-halo]
            result[:, y : y + core.shape[1], x : x + core.shape[2]] = core
    return result[:, :height, :width]


def tile_of(pair: Pair, *, fixed_ranges: bool = False) -> Tile:
    """The pair as a sharpener sees it, normalised by percentiles or by its DN ceiling."""
    ceiling = ValueRange(low=0, high=pair.dn_max)
    return Tile(
        pan=pair.pan.astype(np.float32),
        ms=pair.ms.astype(np.float32),
        ratio=pair.ratio,
        phases_yx=pair.phases_yx,
        pan_range=ceiling if fixed_ranges else value_range(pair.pan),
        ms_ranges=tuple(ceiling if fixed_ranges else value_range(band) for band in pair.ms),
        dn_max=pair.dn_max,
    )


def evaluate_pair(
    pair: Pair,
    methods: Sequence[Method],
    *,
    max_side_px: int = 1024,
    reduced_ratio: int | None = None,
    full: bool = True,
    pictures: Path | None = None,
) -> PairReport:
    """Score every method on one pair.

    Args:
        pair: The pair.
        methods: Contestants.
        max_side_px: Only the middle of a larger pair counts.
        reduced_ratio: Degrade MS by another ratio than its own (2, 3 or 4); for pairs without a given truth.
        full: Also score at full resolution.
        pictures: Also draw what the networks make of the pair at full resolution, as NAME.png in this folder.

    Raises:
        BandCountError: A network takes another number of bands.
        InvalidSceneError: The pair is too small for any figure.
    """
    for method in methods:
        method.require_bands(len(pair.ms))
    pair = cropped(pair, max_side_px)
    if pair.protocol == "benchmark":
        methods = [_as_published(method) for method in methods]
    reduced, truth_kind = _reduced_scores(pair, methods, reduced_ratio)
    scored = _full_scores(pair, methods) if full else None
    if reduced is None and scored is None:
        raise InvalidSceneError(f"{pair.name}: ms of {pair.ms.shape[1:]} px is too small for reduced resolution")
    report = PairReport(
        name=pair.name,
        sensor=pair.sensor,
        grade=pair.grade,
        bands=pair.bands,
        ratio=pair.ratio,
        reduced_ratio=pair.ratio if reduced_ratio is None or truth_kind == "given" else reduced_ratio,
        pan_shape_yx=(pair.pan.shape[0], pair.pan.shape[1]),
        dn_max=pair.dn_max,
        phase_px=(pair.ratio - 1) / 2 if pair.protocol == "production" else pair.ratio / 2,
        band_shift_yx=pair.band_shift_yx,
        mtf=pair.measured_mtf,
        truth=truth_kind,
        reduced=reduced,
        full=scored,
    )
    if pictures is not None:
        draw_pair(pictures / f"{pair.name.replace('/', '_')}.png", pair, methods, report.best_classical())
    return report


def draw_pair(path: Path, pair: Pair, methods: Sequence[Method], rival: str | None) -> None:
    """PAN, MS as it is, MS up-sampled, one classical method (``rival``) and every network, 1:1 at full resolution."""
    chosen = [classical_method(UPSAMPLING), *([classical_method(rival)] if rival else [])]
    chosen += [method for method in methods if method.name not in classical.METHODS]
    images = {"MS": pair.ms.repeat(pair.ratio, axis=1).repeat(pair.ratio, axis=2)}
    for method in chosen:
        result = method.sharpen(tile_of(pair, fixed_ranges=method.fixed_ranges), pair.mtfs, pair.pan_gain)
        images[method.name] = result.clip(0, pair.dn_max)
    comparison_picture(path, pan=pair.pan, images=images, common_names=pair.bands, crop_px=PICTURE_PX)


def _reduced_scores(
    pair: Pair, methods: Sequence[Method], ratio: int | None
) -> tuple[dict[str, ReferenceScores] | None, str]:
    inner = slice(BORDER_REDUCED_PX, -BORDER_REDUCED_PX)
    scores: dict[str, ReferenceScores] = {}
    for method in methods:
        tile = tile_of(pair, fixed_ranges=method.fixed_ranges)
        if pair.truth is not None:
            truth: Pixels = pair.truth
            inner = BENCHMARK_CROP if pair.protocol == "benchmark" else inner
        elif pair.protocol == "benchmark":
            return None, "none"
        else:
            reduced = reduce_tile(tile, pair.mtfs, pair.pan_blur, ratio=ratio)
            if reduced is None:
                return None, "none"
            tile, truth = reduced.tile, reduced.truth
        result = np.clip(method.sharpen(tile, pair.mtfs, AS_SHARP_AS_MS), 0, pair.dn_max)
        scores[method.name] = reference_scores(
            truth[:, inner, inner], result[:, inner, inner], tile.ratio, float(pair.dn_max)
        )
    return scores, "wald" if pair.truth is None else "given"


def reference_scores(truth: Pixels, result: Pixels, ratio: int, dn_max: float) -> ReferenceScores:
    """All indices against a truth of the same shape, (band, y, x)."""
    psnr_db = metrics.psnr(truth, result, dn_max)
    return ReferenceScores(
        ergas=metrics.ergas(truth, result, ratio),
        sam_deg=metrics.sam_deg(truth, result),
        q2n=metrics.q2n(truth, result),
        scc=metrics.scc(truth, result),
        psnr_db=psnr_db if math.isfinite(psnr_db) else None,
        ssim=metrics.ssim(truth, result, dn_max),
    )


def _full_scores(pair: Pair, methods: Sequence[Method]) -> dict[str, FullScores] | None:
    if pair.protocol == "benchmark" and pair.truth is not None:
        return None  # published full-resolution rows come from other images
    scores = {}
    for method in methods:
        result = method.sharpen(tile_of(pair, fixed_ranges=method.fixed_ranges), pair.mtfs, pair.pan_gain)
        scores[method.name] = full_scores(pair, np.clip(result, 0, pair.dn_max))
    return scores


def full_scores(pair: Pair, result: Pixels) -> FullScores:
    """All indices without a truth of a result (band, y, x) on the PAN grid of ``pair``."""
    published = None if pair.ratio == 3 else metrics.hqnr(result, pair.pan, pair.ms, pair.ratio, pair.nominal_gains)
    placed = pair.ratio, pair.phases_yx, pair.mtfs
    aligned = metrics.hqnr_production_sums(result, pair.pan, pair.ms, *placed, pair.pan_blur).scores()
    ergas, sam = metrics.consistency(result, pair.ms, *placed)
    return FullScores(
        d_lambda=published.d_lambda if published else None,
        d_s=published.d_s if published else None,
        hqnr=published.hqnr if published else None,
        aligned_d_lambda=aligned.d_lambda,
        aligned_d_s=aligned.d_s,
        aligned_hqnr=aligned.hqnr,
        consistency_ergas=ergas,
        consistency_sam_deg=sam,
    )


def evaluate_all(
    pairs: Iterable[Pair | Unreadable], methods: Sequence[Method], **options: Any
) -> Iterator[PairReport | Unreadable]:
    """Score pair after pair; one that cannot be scored is reported and stops nothing. Options of ``evaluate_pair``.

    Where several have one name, as from two folders, the others are called ``NAME (2)`` and so on.
    """
    taken: set[str] = set()
    for given in pairs:
        names = (given.name if number == 1 else f"{given.name} ({number})" for number in count(1))
        pair = replace(given, name=next(name for name in names if name not in taken))
        taken.add(pair.name)
        if isinstance(pair, Unreadable):
            yield pair
            continue
        try:
            report = evaluate_pair(pair, methods, **options)
        except PancrafterError as err:
            if err.kind == "system":
                raise
            yield Unreadable(pair.name, str(err))
        else:
            yield report


def summarise(
    reports: Sequence[PairReport],
    failed: Sequence[Unreadable],
    networks: Sequence[str],
    weights: dict[str, str],
) -> Evaluation:
    """Means over pairs and the standing of each network, over all pairs and over those of each grade.

    Raises:
        InvalidSceneError: No pair could be scored.
    """
    if not reports:
        reasons = "; ".join(f"{pair.name}: {pair.reason}" for pair in failed[:3])
        raise InvalidSceneError(f"none of {len(failed)} pairs could be scored: {reasons}")
    grades = sorted({report.grade for report in reports if report.grade is not None})
    groups = {grade: [report for report in reports if report.grade == grade] for grade in grades}
    if {"A", "A-"} <= groups.keys():
        groups["A and A-"] = groups["A"] + groups["A-"]
    return Evaluation(
        protocol=PROTOCOL,
        weights=weights,
        pairs=tuple(reports),
        failed={pair.name: pair.reason for pair in failed},
        means=means(reports),
        summary=_standings(reports, networks),
        summary_by_grade={grade: _standings(group, networks) for grade, group in groups.items()},
    )


PROTOCOL = {
    "reduced": "Wald: PAN is degraded to the MS grid at the bands' common measured position, MS once more at the "
    "edge-aligned phase (ratio - 1) / 2; or the truth that came with the pair, PAN moved onto it. Border of "
    f"{BORDER_REDUCED_PX} px left out, DN clipped to 0..dn_max.",
    "full": "d_lambda, d_s, hqnr: published protocol (23-tap up-sampling, circular, no shift); aligned_*: phase and "
    "shift of each band respected; consistency: result degraded to MS against MS, phase and shift respected.",
    "benchmark": "PanCollection files: phase ratio / 2, rows and columns 20 to N - 22 count, published indices; exp is "
    "the protocol's 23-tap up-sampling.",
}


def means(reports: Sequence[PairReport]) -> dict[str, dict[str, float | None]]:
    """Mean over pairs of every score of every method; a score that no pair has is None."""
    names = dict.fromkeys(name for report in reports for name in {**(report.reduced or {}), **(report.full or {})})
    return {name: _means_of(name, reports) for name in names}


def _means_of(method: str, reports: Sequence[PairReport]) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for section, fields in (("reduced", ReferenceScores.model_fields), ("full", FullScores.model_fields)):
        scores = [(getattr(report, section) or {}).get(method) for report in reports]
        for field in fields:
            values = [v for v in (getattr(s, field) for s in scores if s is not None) if v is not None]
            result[field] = float(np.mean(values)) if values else None
    return result


def _standings(reports: Sequence[PairReport], networks: Sequence[str]) -> dict[str, Summary]:
    found = {network: _standing(reports, network) for network in networks}
    return {network: standing for network, standing in found.items() if standing is not None}


def _standing(reports: Sequence[PairReport], network: str) -> Summary | None:
    ergas, sam, ours, theirs = [], [], [], []
    for report in reports:
        by_ergas, by_sam, best = report.gain(network), report.gain(network, "sam_deg"), report.best_classical()
        if by_ergas is None or by_sam is None or best is None or report.reduced is None:
            continue
        ergas.append(by_ergas)
        sam.append(by_sam)
        ours.append(report.reduced[network].ergas)
        theirs.append(report.reduced[best].ergas)
    if not ergas:
        return None
    won_ergas, won_sam = np.array(ergas) > 0, np.array(sam) > 0
    return Summary(
        pairs=len(ergas),
        mean_ergas_gain=float(np.mean(ergas)),
        gain_of_mean_ergas=1 - float(np.mean(ours) / np.mean(theirs)),
        mean_sam_gain=float(np.mean(sam)),
        won_ergas=float(won_ergas.mean()),
        won_sam=float(won_sam.mean()),
        won_both=float((won_ergas & won_sam).mean()),
    )
