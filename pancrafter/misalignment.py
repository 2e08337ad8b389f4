"""What a shift between PAN and MS costs: ERGAS of every method against an injected shift, with the truth unshifted.

A pair is brought one scale down (Wald), where truth and PAN agree; then MS alone is sampled elsewhere. In the series
``untold`` every method takes MS for edge-aligned; in ``measured`` every method is told what staging would measure.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.ImageFont import load_default

from pancrafter.assess import BORDER_REDUCED_PX, reduce_tile
from pancrafter.engine import NetworkSharpener
from pancrafter.errors import InvalidSceneError, PancrafterError, SinkError
from pancrafter.evaluate import AS_SHARP_AS_MS, Method, tile_of
from pancrafter.metrics import ergas
from pancrafter.pairs import Pair, Unreadable, measured_phases
from pancrafter.resample import Mtf, degrade, mean_mtf
from pancrafter.tiles import Floats, Tile
from pancrafter.types import Record

SHIFTS_MS_PX = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
DIRECTION_DEG = 30.0
"""From +x towards +y, so that both axes move and neither by whole pixels."""

BAND_OFFSET_PX = 1.5
"""How far apart neighbouring bands lie in the last row, PAN pixels: two focal plane arrays."""

Series = Literal["untold", "measured"]
SERIES: tuple[Series, ...] = ("untold", "measured")


class Curve(Record):
    """Mean ERGAS over pairs of one method in one series."""

    method: str
    series: Series
    ergas: tuple[float, ...]
    """At each of ``SHIFTS_MS_PX``."""
    bands_apart: float
    """With every other band ``BAND_OFFSET_PX`` off, and no common shift."""

    @property
    def rise_at_one(self) -> float:
        """How much ERGAS grows from no shift to one MS pixel."""
        return self.ergas[SHIFTS_MS_PX.index(1.0)] - self.ergas[0]

    @property
    def rise_bands_apart(self) -> float:
        """How much ERGAS grows when the bands come apart."""
        return self.bands_apart - self.ergas[0]


def without_attention(sharpener: NetworkSharpener) -> NetworkSharpener:
    """The network with its attention gates at zero. It was not trained like that: a knock-out, not an ablation."""
    network = copy.deepcopy(sharpener.checkpoint.network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "select_" in name:
                parameter.zero_()
    return replace(sharpener, checkpoint=replace(sharpener.checkpoint, network=network))


def measure(
    pairs: Iterable[Pair | Unreadable],
    methods: Sequence[Method],
    *,
    ratio: int | None = None,
    report: Callable[[Pair | Unreadable], None] = lambda _pair: None,
) -> list[Curve]:
    """Curves of every method in both series.

    Args:
        pairs: Scenes; one that cannot be measured is reported and stops nothing.
        methods: Contestants as in ``evaluate``.
        ratio: Degrade MS by this instead of by its own ratio.
        report: Takes each pair that is done, or why it could not be.

    Raises:
        InvalidSceneError: No pair could be measured.
    """
    scores: dict[tuple[str, Series], list[list[float]]] = {}
    reason = "there is none"
    for pair in pairs:
        done: Scores | Unreadable
        try:
            done = pair if isinstance(pair, Unreadable) else _scores_of(pair, methods, ratio)
        except PancrafterError as err:
            if err.kind == "system":
                raise
            done = Unreadable(pair.name, str(err))
        if isinstance(done, Unreadable):
            reason = f"{done.name}: {done.reason}"
            report(done)
            continue
        for key, values in done.items():
            scores.setdefault(key, []).append(values)
        report(pair)
    if not scores:
        raise InvalidSceneError(f"no pair could be measured; the last: {reason}")
    means = {key: np.mean(values, axis=0).tolist() for key, values in scores.items()}
    return [
        Curve(method=name, series=series, ergas=tuple(values[:-1]), bands_apart=values[-1])
        for (name, series), values in means.items()
    ]


Scores = dict[tuple[str, Series], list[float]]
"""Per method and series: ERGAS at every shift, then with the bands apart."""


def _scores_of(pair: Pair, methods: Sequence[Method], ratio: int | None) -> Scores:
    found: Scores = {}
    reduced = reduce_tile(tile_of(pair), pair.mtfs, pair.pan_blur, ratio=ratio)
    border = 2 * BORDER_REDUCED_PX  # a shift of 2 MS pixels reaches this far in
    if reduced is None or min(reduced.tile.pan.shape) < 4 * border:
        size = pair.ms.shape[1:]
        raise InvalidSceneError(f"ms of {size} px is too small for a shift of 2 MS px at reduced resolution")
    inner = (slice(None), slice(border, -border), slice(border, -border))
    for offsets in _offsets(len(pair.ms), reduced.tile.ratio):
        moved = _moved(reduced.tile, reduced.truth, pair.mtfs, offsets)
        for series in SERIES:
            tile = replace(moved, uncertainty=1.0) if series == "untold" else _told(moved, pair.mtfs)
            for method in methods:
                result = method.sharpen(tile, pair.mtfs, AS_SHARP_AS_MS)[inner].clip(0, pair.dn_max)
                found.setdefault((method.name, series), []).append(ergas(reduced.truth[inner], result, tile.ratio))
    return found


def _offsets(bands: int, ratio: int) -> list[tuple[tuple[float, float], ...]]:
    """Per trial and band: where MS really lies minus nominal, PAN pixels, y and x."""
    angle = math.radians(DIRECTION_DEG)
    unit = (math.sin(angle), math.cos(angle))
    trials = [((s * ratio * unit[0], s * ratio * unit[1]),) * bands for s in SHIFTS_MS_PX]
    apart = tuple(
        (unit[0] * BAND_OFFSET_PX, unit[1] * BAND_OFFSET_PX) if band % 2 else (0.0, 0.0) for band in range(bands)
    )
    return [*trials, apart]


def _moved(tile: Tile, truth: Floats, mtfs: Sequence[Mtf | float], offsets: Sequence[tuple[float, float]]) -> Tile:
    """The tile with MS sampled elsewhere, still told to be edge-aligned."""
    nominal = (tile.ratio - 1) / 2
    ms = [
        degrade(band, tile.ms.shape[1:], tile.ratio, (nominal + y, nominal + x), mtf)
        for band, (y, x), mtf in zip(truth, offsets, mtfs, strict=True)
    ]
    return replace(tile, ms=np.stack(ms).astype(np.float32))


def _told(tile: Tile, mtfs: Sequence[Mtf | float]) -> Tile:
    """The tile with the phases that staging would measure."""
    as_sharp = Mtf.of_half(mean_mtf(mtfs).half)
    return replace(tile, phases_yx=measured_phases(tile.pan, tile.ms, tile.ratio, as_sharp.gain))


def markdown_table(curves: Sequence[Curve], series: Series) -> str:
    """One series as a table: ERGAS at every shift, its rise to one MS pixel, and with the bands apart."""
    head = " | ".join(f"{s:g}" for s in SHIFTS_MS_PX)
    lines = [f"| method | {head} | rise to 1 | bands apart | rise |", "|---" * (len(SHIFTS_MS_PX) + 4) + "|"]
    for curve in (c for c in curves if c.series == series):
        cells = " | ".join(f"{value:.2f}" for value in curve.ergas)
        rises = f"{curve.rise_at_one:+.2f} | {curve.bands_apart:.2f} | {curve.rise_bands_apart:+.2f}"
        lines.append(f"| {curve.method} | {cells} | {rises} |")
    return "\n".join(lines)


# --- the plot -------------------------------------------------------------------------------------------------------

_SIZE = (1050, 460)
_LEGEND_PX = 190
_COLOURS = ("#c0392b", "#e59866", "#7f8c8d", "#2e86c1", "#1e8449", "#7d3c98", "#b7950b", "#148f77", "#34495e")


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Both series side by side on one scale, drawn with Pillow: ERGAS over shift, one line per method.

    The name tells the format; PNG where it tells none.
    """
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    top = max(max(curve.ergas) for curve in curves)
    names = list(dict.fromkeys(curve.method for curve in curves))
    width = (_SIZE[0] - _LEGEND_PX - 50) // 2
    for panel, series in enumerate(SERIES):
        box = (50 + panel * width, 40, 10 + (panel + 1) * width, _SIZE[1] - 50)
        _axes(draw, box, top, f"{series}: ERGAS over shift in MS pixels")
        for curve in (c for c in curves if c.series == series):
            points = [_place(box, top, s, e) for s, e in zip(SHIFTS_MS_PX, curve.ergas, strict=True)]
            thick = 4 if curve.method.startswith("pan-crafter") else 2
            draw.line(points, fill=_COLOURS[names.index(curve.method) % len(_COLOURS)], width=thick, joint="curve")
    left = _SIZE[0] - _LEGEND_PX
    for row, name in enumerate(names):
        y = 60 + 24 * row
        draw.line((left, y, left + 25, y), fill=_COLOURS[row % len(_COLOURS)], width=4)
        draw.text((left + 32, y - 7), name, fill="black", font=load_default(12))
    kind = Image.registered_extensions().get(path.suffix.lower())
    try:
        image.save(path, kind if kind in Image.SAVE else "PNG", optimize=True)
    except OSError as err:
        raise SinkError(f"{path}: the picture cannot be written ({err}); check space and permissions") from err


def _axes(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], top: float, title: str) -> None:
    draw.rectangle(box, outline="#999999")
    draw.text((box[0], box[1] - 22), title, fill="black", font=load_default(14))
    for shift in SHIFTS_MS_PX:
        x, _ = _place(box, top, shift, 0)
        draw.text((x - 8, box[3] + 6), f"{shift:g}", fill="black", font=load_default(11))
    for value in range(0, math.ceil(top), max(1, round(top / 6))):
        _, y = _place(box, top, 0, value)
        draw.line((box[0], y, box[2], y), fill="#e5e5e5")
        draw.text((box[0] - 22, y - 7), str(value), fill="black", font=load_default(11))


def _place(box: tuple[int, int, int, int], top: float, shift: float, value: float) -> tuple[float, float]:
    x = box[0] + shift / SHIFTS_MS_PX[-1] * (box[2] - box[0])
    return x, box[3] - value / (1.05 * top) * (box[3] - box[1])
