"""What sharpens a tile: the network, the textbook methods, and what each is fitted to of a scene."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial, reduce
from typing import Protocol, TypeVar

import numpy as np
import torch
from pydantic import Field

from pancrafter import resample
from pancrafter.classical import (
    MODULATION_LIMIT,
    BroveyMatch,
    FusionConstants,
    FusionMethod,
    GlpConstants,
    GlpSums,
    InjectionConstants,
    InjectionSums,
    at_ceiling,
    fit_brovey_match,
    fit_glp_constants,
    fit_injection,
    glp_halo_px,
    glp_sums,
    glp_window,
    injection_sums,
)
from pancrafter.errors import BandCountError, InvalidSceneError, WeightsError
from pancrafter.heap import keep_freed_memory
from pancrafter.metrics import PhaseYX, shift_reach_px
from pancrafter.model import pan_detail, reprojection
from pancrafter.model.conditions import Conditions, build_conditions, ms_at, unexplained_pan
from pancrafter.model.config import CUBIC_REACH_MS_PX
from pancrafter.model.devices import DeviceError, free_bytes, is_out_of_memory, resolve_device, use_full_float32
from pancrafter.model.inference import MsNetwork, working_bytes
from pancrafter.model.names import (
    DEFAULT_WEIGHTS,
    SharpeningMethod,
    for_benchmark,
    require_weights,
    weights_sha256,
    weights_stamp,
)
from pancrafter.model.weights import Checkpoint, load_checkpoint
from pancrafter.resample import GENERIC_MTF_GAIN, Mtf, mean_mtf
from pancrafter.sensors import SensorContract
from pancrafter.sharpness import band_mtfs, measured_mtf
from pancrafter.store import Block, Pixels, SceneStore, Window, whole_window, window_inside
from pancrafter.tiles import (
    STRIP_ROWS,
    Floats,
    ScenePixels,
    Tile,
    Valid,
    band_phases,
    plan_tile,
    quantise,
    read_tile,
    valid_window,
)
from pancrafter.types import Record, StagedScene, ValueRange

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the network's features and weights are held in; its inputs, outputs and residual base are float32."""


class Sharpener(Protocol):
    """Turns tiles into sharpened DN, (band, y, x) float32, neither rounded nor clipped."""

    @property
    def method(self) -> str:
        """Name for items and reports."""

    @property
    def rows_at_once(self) -> int:
        """Rows of a tile that one call is best asked for where a tile is large; 0: all of them."""

    def halo_px(self, staged: StagedScene) -> int:
        """PAN pixels of context that make a tile's core independent of the tile."""

    def __call__(self, tile: Tile, core: Window | None = None) -> Floats:
        """Sharpen the core of a tile, by default all of it."""

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        """Memory that one call takes beside its tile and its result, for so many pixels: an upper estimate."""


@dataclass(frozen=True, eq=False)
class NetworkSharpener:
    """PAN-Crafter in MS mode, as many bands at a time as its weights take.

    ``injection`` belongs to the scene (``fit_scene_injection``); networks with ``injected_detail`` need it.
    ``relative_mtf``, the bands' MTF relative to PAN's, makes results agree with PAN, where the scene's injection is
    known, and with MS (``model.pan_detail``, ``model.reprojection``); None leaves them as they come from the network.
    """

    checkpoint: Checkpoint
    device: str = "cpu"
    precision: str = "float32"
    injection: InjectionConstants | None = None
    relative_mtf: tuple[Mtf, ...] | None = None
    _most_at_once: int = field(default=sys.maxsize, init=False, repr=False)
    """Band groups, once more of them did not fit on the device."""

    def __post_init__(self) -> None:
        """Make ``float32`` mean it, on whatever worker this is."""
        if self.precision == "float32":
            use_full_float32()

    @property
    def method(self) -> str:
        """``pan-crafter``."""
        return "pan-crafter"

    @property
    def rows_at_once(self) -> int:
        """All: every call has a halo of its own to work out."""
        return 0

    def halo_px(self, staged: StagedScene) -> int:
        """Reach of network and reprojection, widened by what band shifts move the MS pixels."""
        return self.reach_px(staged.grid.ratio, band_phases(staged))

    def reach_px(self, ratio: int, phases_yx: Sequence[PhaseYX]) -> int:
        """``halo_px`` of a pair in memory."""
        network = self.checkpoint.network.config.reach_px(ratio) + shift_reach_px(phases_yx, ratio)
        return network + self._margin_px(ratio, phases_yx)

    def _margin_px(self, ratio: int, phases_yx: Sequence[PhaseYX]) -> int:
        """What of the network's result is needed around the wanted core."""
        if self.relative_mtf is None:
            return 0
        pan = pan_detail.reach_px(ratio) if self.checkpoint.network.config.injected_detail else 0
        return reprojection.reach_px(ratio, phases_yx) + pan

    @torch.inference_mode()
    def __call__(self, tile: Tile, core: Window | None = None) -> Floats:
        """Sharpen one tile.

        On the CPU band groups run one after the other, so memory does not grow with the band count; CUDA takes all at
        once, or half as many, again and again, where its memory does not hold them: what it held the next call takes.
        """
        core = core or whole_window(tile.pan.shape)
        made = _grown(core, self._margin_px(tile.ratio, tile.phases_yx), tile.ratio, tile.pan.shape)
        result = np.empty((len(tile.ms), *(part.stop - part.start for part in made)), np.float32)
        wanted = window_inside(core, made)
        while True:
            at_once = min(self._groups_at_once(len(tile.ms)), self._most_at_once)
            try:
                return self._run(tile, made, at_once, result)[:, *wanted]
            except RuntimeError as err:
                if not is_out_of_memory(err):
                    raise
                if at_once == 1:
                    raise DeviceError(
                        f"{self.device} has no memory for a tile of {tile.pan.shape} px, one band group at a time; "
                        "choose a smaller --block-px, or a device with more"
                    ) from err
            torch.cuda.empty_cache()
            warnings.warn(
                f"{self.device} has no memory for {at_once} band groups of {tile.pan.shape} px at once: "
                f"{at_once // 2} from here on",
                stacklevel=2,
            )
            object.__setattr__(self, "_most_at_once", at_once // 2)

    def _groups_at_once(self, bands: int) -> int:
        """How many band groups one pass takes, as long as its device holds them."""
        return bands // self.checkpoint.network.config.bands if self.device.startswith("cuda") else 1

    def _run(self, tile: Tile, made: Window, at_once: int, result: Floats) -> Floats:
        """Fill ``result`` with the part ``made`` of the tile, so many band groups at a time."""
        config, conditions = self.checkpoint.network.config, self._conditions(tile)
        region = (made[0].start, made[0].stop), (made[1].start, made[1].stop)
        given = conditions.ms[0].new_empty((len(conditions.ms[0]), config.head_channels, *result.shape[1:]))
        for first in range(0, len(given), at_once):
            given[first : first + at_once] = self._network(conditions.samples(first, first + at_once), region)
        for part, sharpened in self.finished(given, tile, made, at_once):
            result[part] = to_dn(sharpened, tile.ms_ranges[part]).cpu().numpy()
        return result

    def finished(
        self, given: torch.Tensor, tile: Tile, made: Window, at_once: int = 1
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """What is made of what the network gives: PAN is put back, then MS; which bands, and they (band, y, x).

        ``given`` is (band groups, head channels, y, x), all of the scene, normalised, and is changed; ``made`` is which
        part of the tile it covers.
        """
        bands = self.checkpoint.network.config.bands
        self._put_pan_back(given, tile, made)
        for first in range(0, len(given), at_once):
            part = slice(first * bands, (first + at_once) * bands)
            yield part, self._reprojected(given[first : first + at_once], tile, made, part).flatten(0, 1)

    def _put_pan_back(self, given: torch.Tensor, tile: Tile, made: Window) -> None:
        """Correct all bands, in place, by what their mix misses of PAN's fine detail.

        Without MTFs, and for networks that know no mix of the scene's bands, they stay as they are.
        """
        config = self.checkpoint.network.config
        if self.relative_mtf is None or not config.injected_detail:
            return
        pan = to_unit(torch.from_numpy(tile.pan[made]).to(self.device)[None], [tile.pan_range])[0]
        bands = given[:, : config.bands]
        mixed = pan_detail.pan_put_back(bands.flatten(0, 1), pan, tile.ratio, self._mix(tile))
        bands.copy_(mixed.unflatten(0, (-1, config.bands)))

    def _mix(self, tile: Tile) -> pan_detail.Mix:
        """The scene's injection in the tile's normalised units; of a mix that says little of PAN bands take little."""
        injection = self._scene_injection(tile)
        per_pan = [(r.high - r.low) / (tile.pan_range.high - tile.pan_range.low) for r in tile.ms_ranges]
        return pan_detail.Mix(
            weights=tuple(w * r for w, r in zip(injection.weights, per_pan, strict=True)),
            gains=tuple(injection.explained * g / r for g, r in zip(injection.gains, per_pan, strict=True)),
        )

    def _reprojected(self, given: torch.Tensor, tile: Tile, made: Window, part: slice) -> torch.Tensor:
        """Some bands of a part of the tile, normalised (n, bands at once, y, x), in agreement with their MS."""
        bands = self.checkpoint.network.config.bands
        if self.relative_mtf is None:
            return given[:, :bands]
        if len(self.relative_mtf) != len(tile.ms):
            raise WeightsError(
                f"{len(self.relative_mtf)} MTFs for {len(tile.ms)} bands; give those of this scene's contract"
            )
        on_ms = tuple(slice(side.start // tile.ratio, side.stop // tile.ratio) for side in made)
        ms = to_unit(torch.from_numpy(tile.ms[part, *on_ms]).to(self.device), tile.ms_ranges[part])
        phases = torch.tensor(tile.phases_yx[part], dtype=torch.float64)
        mtfs = torch.tensor(self.relative_mtf[part], dtype=torch.float64)
        groups = (-1, bands)
        return reprojection.reprojected(
            given, ms.unflatten(0, groups), tile.ratio, phases.unflatten(0, groups), mtfs.unflatten(0, groups)
        )

    def conditions(self, tile: Tile) -> Iterator[Conditions]:
        """The network's inputs for a tile, one band group after the other."""
        conditions = self._conditions(tile)
        for number in range(len(conditions.ms[0])):
            yield conditions.samples(number, number + 1)

    def fitted_to(self, tile: Tile, mtfs: Sequence[Mtf | float], pan_gain: float) -> NetworkSharpener:
        """The same network with what it needs to know of a scene that is ``tile`` as a whole.

        ``mtfs`` are the bands', ``pan_gain`` is the MTF of PAN at its own Nyquist frequency. Pixels at the sensor's
        ceiling are left out of the fit as in ``scene_injection_sums``.
        """
        told = replace(self, relative_mtf=tuple(resample.relative_mtf(mtf, pan_gain, tile.ratio) for mtf in mtfs))
        if not self.checkpoint.network.config.injected_detail:
            return told

        def sums(ceiling: float) -> InjectionSums:
            counted = ~at_ceiling(tile.pan, tile.ms, tile.ratio, ceiling)
            return injection_sums(tile.pan, tile.ms, tile.ratio, tile.phases_yx, mean_mtf(mtfs), counted)

        return replace(told, injection=fit_injection(_below_ceiling(tile.dn_max, sums)))

    def one_scale_down(self, mtfs: Sequence[Mtf | float]) -> NetworkSharpener:
        """The same network for the scene degraded by the bands' ``mtfs``: MS as it is is the truth."""
        return self if self.relative_mtf is None else replace(self, relative_mtf=tuple(map(Mtf.of, mtfs)))

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        """What is made around the core, and of this machine's memory what ``device_bytes`` says or CUDA gives back."""
        made = 4 * bands * self._made_px(tile_px, core_px)
        working = made if self.device.startswith("cuda") else self.device_bytes(tile_px, core_px, bands)
        return working + made - 4 * bands * core_px

    def device_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        """The network's maps and inputs, and what it gives of all bands, with as many at once as the device takes."""
        made_px, config = self._made_px(tile_px, core_px), self.checkpoint.network.config
        given = 4 * made_px * bands * config.head_channels // config.bands
        groups, dtype = self._groups_at_once(bands), PRECISIONS[self.precision]
        return working_bytes(config, dtype, tile_px, made_px, bands, groups) + given

    def fits_device(self, tile_px: int, core_px: int, bands: int) -> bool:
        """Whether the device has room for ``device_bytes``; the CPU's is this machine's, which has a budget."""
        if not self.device.startswith("cuda"):
            return True
        values = self._groups_at_once(bands) * self.checkpoint.network.config.width * tile_px
        return values <= _MOST_VALUES and self.device_bytes(tile_px, core_px, bands) <= free_bytes(self.device)

    def _made_px(self, tile_px: int, core_px: int) -> int:
        """The core with the margin that what is put back needs."""
        margin = self._margin_px(_WIDEST_RATIO, [((_WIDEST_RATIO - 1) / 2,) * 2])
        return min(tile_px, (math.isqrt(core_px) + 2 * margin) ** 2)

    @cached_property
    def _network(self) -> MsNetwork:
        """The weights in the precision and on the device of this sharpener."""
        return MsNetwork(self.checkpoint.network.to(self.device), PRECISIONS[self.precision])

    def require_bands(self, bands: int) -> None:
        """Refuse a scene of so many bands that the network cannot take them group after group.

        Raises:
            BandCountError: It cannot.
        """
        _require_bands(self.checkpoint.name, self.checkpoint.network.config.bands, bands)

    def _conditions(self, tile: Tile) -> Conditions:
        """Inputs of all band groups, one sample each; those of PAN are computed once."""
        self.require_bands(len(tile.ms))
        group = self.checkpoint.network.config.bands
        pan = to_unit(torch.from_numpy(tile.pan).to(self.device), [tile.pan_range])[None]
        ms = to_unit(torch.from_numpy(tile.ms).to(self.device), tile.ms_ranges).unflatten(0, (-1, group))
        phases = torch.tensor(tile.phases_yx, dtype=torch.float64).unflatten(0, (-1, group))
        detail = self._injected_detail(tile)
        injection = None if detail is None else detail[0].unflatten(0, (-1, group))
        return build_conditions(pan, ms, tile.ratio, phases, injection, [self._lowpass_mtf()], [tile.uncertainty])

    def _lowpass_mtf(self) -> Mtf | float:
        """MTF of the low-pass PAN: what this network is told of the scene's."""
        if not self.checkpoint.network.config.matched_lowpass:
            return GENERIC_MTF_GAIN
        if self.relative_mtf is None:
            raise WeightsError(
                f"weights {self.checkpoint.name} need the MTF of the scene's bands relative to PAN's (relative_mtf)"
            )
        return mean_mtf(self.relative_mtf)

    def _injected_detail(self, tile: Tile) -> torch.Tensor | None:
        """What each band would take from PAN by Gram-Schmidt adaptive, (1, band, y, x) in normalised units."""
        if not self.checkpoint.network.config.injected_detail:
            return None
        injection = self._scene_injection(tile)
        pan = torch.from_numpy(tile.pan).to(self.device)[None, None]
        ms = torch.from_numpy(tile.ms).to(self.device)[None]
        phases = torch.tensor([tile.phases_yx], dtype=torch.float64)
        detail = unexplained_pan(pan, ms, tile.ratio, phases, injection)
        to_units = [2 * g / (r.high - r.low) for g, r in zip(injection.gains, tile.ms_ranges, strict=True)]
        return detail * torch.tensor(to_units, device=self.device)[:, None, None]

    def _scene_injection(self, tile: Tile) -> InjectionConstants:
        if self.injection is None or len(self.injection.gains) != len(tile.ms):
            raise WeightsError(
                f"weights {self.checkpoint.name} need the scene's injection constants for {len(tile.ms)} bands; "
                "fit them with fit_scene_injection"
            )
        return self.injection


_WIDEST_RATIO = 4

_MOST_VALUES = 2**31
"""Of a map on CUDA: cuDNN counts in 32 bits, and what torch does with larger ones has not been tried here."""


def _grown(core: Window, margin: int, ratio: int, shape_yx: tuple[int, ...]) -> Window:
    """A core with a margin, from and to multiples of ``ratio``, within a tile of ``shape_yx``."""
    rows, cols = (
        slice(max(0, part.start - margin) // ratio * ratio, min(-(-(part.stop + margin) // ratio) * ratio, size))
        for part, size in zip(core, shape_yx, strict=True)
    )
    return rows, cols


@dataclass(frozen=True)
class GlpSharpener:
    """MTF-GLP with gains fitted once per scene: the fallback where the network must not be used."""

    constants: GlpConstants
    mtfs: tuple[Mtf | float, ...]

    @property
    def method(self) -> str:
        """``mtf-glp-fs``."""
        return "mtf-glp-fs"

    @property
    def rows_at_once(self) -> int:
        """All: every call works out the whole tile."""
        return 0

    def halo_px(self, staged: StagedScene) -> int:
        """Reach of the low-pass and of the cubic kernel."""
        return glp_halo_px(staged.grid.ratio, band_phases(staged))

    def __call__(self, tile: Tile, core: Window | None = None) -> Floats:
        """Sharpen one tile."""
        whole = glp_window(tile.pan, tile.ms, tile.ratio, tile.phases_yx, self.mtfs, self.constants)
        return whole if core is None else whole[(slice(None), *core)]

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        """Float64 images of one band, the result of the whole tile, and its core."""
        return tile_px * (8 * 6 + 4 * bands) + 4 * core_px * bands

    @classmethod
    def fit(cls, store: ScenePixels, mtfs: tuple[Mtf | float, ...]) -> GlpSharpener:
        """Fit the injection gains on the valid pixels of a whole staged scene, one block at a time.

        Pixels at the sensor's ceiling are left out as in ``scene_injection_sums``.

        Args:
            store: The staged scene.
            mtfs: MTF per band.
        """
        halo_px = glp_halo_px(store.staged.grid.ratio, band_phases(store.staged))

        def sums_of(block: Block, ceiling: float) -> GlpSums:
            plan = plan_tile(store, block, halo_px)
            tile, counted = read_tile(store, plan), np.zeros(plan.shape_yx, np.bool_)
            counted[plan.core] = valid_window(store, plan.window)
            counted &= ~at_ceiling(tile.pan, tile.ms, tile.ratio, ceiling)
            return glp_sums(tile.pan, tile.ms, tile.ratio, tile.phases_yx, mtfs, counted)

        def sums(ceiling: float) -> GlpSums:
            return reduce(operator.add, (sums_of(block, ceiling) for block in np.ndindex(store.blocks_yx)))

        return cls(fit_glp_constants(_below_ceiling(store.staged.dn_max, sums)), mtfs)


@dataclass(frozen=True)
class FusionSharpener:
    """The textbook methods whose scene-wide part is a few numbers: ``exp``, ``brovey`` and ``gsa``, in float32."""

    constants: FusionConstants

    @property
    def method(self) -> str:
        """The method's name."""
        return self.constants.method

    @property
    def rows_at_once(self) -> int:
        """Few enough that their bands stay in the processor's cache."""
        return STRIP_ROWS

    def halo_px(self, staged: StagedScene) -> int:
        """Reach of the cubic kernel, widened by what band shifts move the MS pixels."""
        ratio = staged.grid.ratio
        return CUBIC_REACH_MS_PX * ratio + shift_reach_px(band_phases(staged), ratio)

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        """The sharpened core, and a few strips of it."""
        return 4 * core_px * bands + 16 * STRIP_ROWS * math.isqrt(tile_px) * (bands + 2)

    @torch.inference_mode()
    def __call__(self, tile: Tile, core: Window | None = None) -> Floats:
        """Sharpen one tile."""
        rows, cols = core or whole_window(tile.pan.shape)
        result = np.empty((len(tile.ms), rows.stop - rows.start, cols.stop - cols.start), np.float32)
        pan, expanded = torch.from_numpy(tile.pan)[rows, cols], _expanded(tile, rows)[..., cols]
        fuse(pan, expanded, self.constants, torch.from_numpy(result))
        return result


def _expanded(tile: Tile, rows: slice) -> torch.Tensor:
    """Every band on some rows of a tile's PAN grid, (band, y, x)."""
    ratio, nominal = tile.ratio, (tile.ratio - 1) / 2
    reach = CUBIC_REACH_MS_PX + math.ceil(max(abs(y - nominal) for y, _ in tile.phases_yx) / ratio)
    first, last = max(rows.start // ratio - reach, 0), -(-rows.stop // ratio) + reach
    phases = torch.tensor([[(y + ratio * first - rows.start, x) for y, x in tile.phases_yx]], dtype=torch.float64)
    shape_yx = (rows.stop - rows.start, tile.pan.shape[1])
    return ms_at(torch.from_numpy(tile.ms)[None, :, first:last], shape_yx, ratio, phases, 0)[0]


def fuse(pan: torch.Tensor, expanded: torch.Tensor, constants: FusionConstants, out: torch.Tensor) -> None:
    """PAN (y, x) and bands on its grid (band, y, x) made one, DN in and out; formulas as in ``classical``."""
    if constants.method == "exp":
        out.copy_(expanded)
    elif constants.method == "brovey":
        intensity = expanded.mean(0)
        matched = (pan * constants.match.scale).add_(constants.match.offset)
        factor = torch.where(intensity > 0, matched.div_(intensity), 1).clamp_(0, MODULATION_LIMIT)
        torch.mul(expanded, factor, out=out)
    else:
        weights, gains = (torch.tensor(values) for values in (constants.injection.weights, constants.injection.gains))
        detail = pan - torch.tensordot(weights, expanded, 1) - constants.injection.offset
        torch.addcmul(expanded, gains[:, None, None], detail, out=out)


INJECTION_BLOCKS = 16
"""Blocks of a scene, spread evenly, that its injection constants are fitted on."""

LEAST_INJECTION_PX = 1000
"""MS pixels below which, where data are missing, more blocks are looked at: so few say little of the scene."""


_BLOCKS_AT_ONCE = 4
"""Of these, so many are looked at side by side at most: one takes up to 60 MiB while it is."""


def fit_scene_injection(store: ScenePixels, mtfs: tuple[Mtf | float, ...], threads: int = 1) -> InjectionConstants:
    """How the bands of a staged scene explain its PAN; arguments and errors as in ``scene_injection_sums``."""
    return fit_injection(scene_injection_sums(store, mtfs, threads))


def fit_scene_fusion(
    store: ScenePixels, mtfs: tuple[Mtf | float, ...], method: FusionMethod, threads: int = 1
) -> FusionConstants:
    """The scene-wide numbers of a textbook method; arguments and errors as in ``scene_injection_sums``."""
    if method == "exp":
        nothing = InjectionConstants(weights=(0.0,) * len(mtfs), offset=0.0, gains=(0.0,) * len(mtfs), explained=0.0)
        return FusionConstants(method=method, match=BroveyMatch(scale=0.0, offset=0.0), injection=nothing)
    sums = scene_injection_sums(store, mtfs, threads)
    return FusionConstants(method=method, match=fit_brovey_match(sums), injection=fit_injection(sums))


def scene_injection_sums(store: ScenePixels, mtfs: tuple[Mtf | float, ...], threads: int = 1) -> InjectionSums:
    """Moments of bands and PAN at MS scale, from blocks spread over the scene.

    Where these hold little data, as in a frame that was clipped to a small area, blocks between them are looked at too
    until there is enough. Where DN end at the sensor's ceiling, as over clouds, bands no longer explain PAN: such
    pixels are left out, unless there are no others.

    Args:
        store: The staged scene.
        mtfs: MTF per band.
        threads: That look at blocks side by side; the result does not depend on them.

    Raises:
        InvalidSceneError: No block holds a valid pixel.
    """
    staged = store.staged
    ratio, phases = staged.grid.ratio, band_phases(staged)
    blocks = list(np.ndindex(store.blocks_yx))
    channels = len(phases) + 1
    nothing = InjectionSums(0, np.zeros(channels), np.zeros((channels, channels)))

    def sums_of(index: int, ceiling: float) -> InjectionSums:
        plan = plan_tile(store, blocks[index], glp_halo_px(ratio, phases))
        valid = valid_window(store, plan.window)
        if not valid.any():
            return nothing
        # A scene smaller than an MS pixel may lie beside the centre of its only one; around it there is nothing else.
        tile, counted = read_tile(store, plan), np.full(plan.shape_yx, min(store.pan_shape_yx) < ratio)
        counted[plan.core] = valid
        counted &= ~at_ceiling(tile.pan, tile.ms, tile.ratio, ceiling)
        return injection_sums(tile.pan, tile.ms, ratio, phases, mean_mtf(mtfs), counted)

    with ThreadPoolExecutor(min(threads, _BLOCKS_AT_ONCE)) as pool:

        def sums(ceiling: float) -> InjectionSums:
            total = nothing
            for chosen in _spread_ever_closer(len(blocks)):
                total = reduce(operator.add, pool.map(partial(sums_of, ceiling=ceiling), chosen), total)
                if total.pixels >= LEAST_INJECTION_PX or not staged.has_holes:
                    break
            return total

        total = _below_ceiling(staged.dn_max, sums)
    if total.pixels == 0:
        raise InvalidSceneError(f"none of the {len(blocks)} blocks holds a valid pixel; check nodata and masks")
    return total


def _spread_ever_closer(count: int) -> Iterator[list[int]]:
    """Numbers below ``count``, each once: ``INJECTION_BLOCKS`` spread evenly, then between them as many, and so on."""
    known: set[int] = set()
    wanted = INJECTION_BLOCKS
    while len(known) < count:
        spread = np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()
        yield sorted(set(spread) - known)
        known.update(spread)
        wanted *= 2


_Sums = TypeVar("_Sums", GlpSums, InjectionSums)


def _below_ceiling(dn_max: float, sums: Callable[[float], _Sums]) -> _Sums:
    """Sums (a function of the ceiling) without pixels at the sensor's ceiling, or of all where there are no others."""
    below = sums(dn_max)
    return below if below.pixels else sums(math.inf)


def scene_mtfs(staged: StagedScene, contract: SensorContract) -> tuple[Mtf, ...]:
    """MTF of the scene's bands: the contract's, as sharp as the scene is measured."""
    nominal = [band.mtf for band in contract.subset(staged.scene.bands)]
    return band_mtfs(nominal, measured_mtf(staged), contract.pan_mtf, staged.grid.ratio)


def relative_mtfs(staged: StagedScene, contract: SensorContract) -> tuple[Mtf, ...]:
    """MTF of the scene's bands relative to PAN's, which results are to be as sharp as."""
    ratio = staged.grid.ratio
    return tuple(resample.relative_mtf(mtf, contract.pan_mtf, ratio) for mtf in scene_mtfs(staged, contract))


def mean_relative_mtf(staged: StagedScene, contract: SensorContract) -> Mtf:
    """What PAN is blurred by to be as sharp as the bands are: the mean of ``relative_mtfs``."""
    return mean_mtf(relative_mtfs(staged, contract))


def sharpen_block(store: SceneStore, block: Block, sharpener: Sharpener) -> None:
    """Sharpen one block of a staged scene, write its shard, and mark it done last."""
    plan = plan_tile(store, block, sharpener.halo_px(store.staged))
    valid = valid_window(store, plan.window)
    tile = read_tile(store, plan) if valid.any() else None
    store.write_block(block, sharpened_dn(sharpener, tile, plan.core, valid, store.staged))
    store.mark_done(block)


def sharpened_dn(sharpener: Sharpener, tile: Tile | None, core: Window, valid: Valid, staged: StagedScene) -> Pixels:
    """The core of a tile sharpened and rounded, (band, y, x); without a tile, which no valid pixel needs, nodata.

    ``valid`` (y, x) is of the core.
    """
    (top, bottom), cols = (core[0].start, core[0].stop), core[1]
    values = np.empty((len(staged.scene.bands), *valid.shape), np.uint16)
    step = sharpener.rows_at_once or bottom - top
    for first in range(top, bottom, step):
        rows = slice(first, min(first + step, bottom))
        inside = slice(rows.start - top, rows.stop - top)
        floats = (
            np.zeros((len(values), *valid[inside].shape), np.float32) if tile is None else sharpener(tile, (rows, cols))
        )
        values[:, inside] = quantise(floats, valid[inside], staged)
    return values


class SharpenerSpec(Record):
    """How to build a sharpener, small enough to travel to a worker."""

    weights: str
    weights_sha256: str | None = Field(description="Of the network's weights; None for a classical method.")
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    relative_mtf: tuple[Mtf, ...] | None = Field(default=None, description="MTF of the bands relative to PAN's.")
    glp: tuple[GlpConstants, tuple[Mtf, ...]] | None = Field(
        default=None, description="Gains and MTF of the classical fallback, in place of the network."
    )
    injection: InjectionConstants | None = Field(
        default=None, description="Of the scene, for networks with injected detail."
    )
    fusion: FusionConstants | None = Field(
        default=None, description="Of the scene, for a textbook method in place of the network."
    )


def fit_sharpener(
    store: ScenePixels,
    contract: SensorContract,
    method: SharpeningMethod,
    *,
    weights: str,
    sha256: str | None = None,
    device: str,
    precision: str,
    threads: int = 1,
) -> SharpenerSpec:
    """How to build the sharpener of a staged scene, with the constants that the method needs of it.

    Args:
        store: The staged scene.
        contract: Of its sensor.
        method: The network, or a classical method in its place.
        weights: Of the network; as ``device`` and ``precision`` not used by the others.
        sha256: Of the weights' file where the scene was planned with it; by default of the file that is there.
        device: Where it runs.
        precision: In what.
        threads: Of the sharpener, and of the fit where it looks at some blocks only.

    Raises:
        InvalidSceneError: No block holds a valid pixel.
        WeightsError: The network's weights are not there, or shipped ones are damaged.
    """
    mtfs = scene_mtfs(store.staged, contract)
    spec = SharpenerSpec(
        weights=weights,
        weights_sha256=(sha256 or weights_sha256(weights)) if method == "pan-crafter" else None,
        device=device,
        precision=precision,
        threads=threads,
        relative_mtf=relative_mtfs(store.staged, contract),
    )
    if method == "pan-crafter":
        return spec.model_copy(update={"injection": fit_scene_injection(store, mtfs, threads)})
    if method == "mtf-glp-fs":
        return spec.model_copy(update={"glp": (GlpSharpener.fit(store, mtfs).constants, mtfs)})
    return spec.model_copy(update={"fusion": fit_scene_fusion(store, mtfs, method, threads)})


def build_sharpener(spec: SharpenerSpec) -> Sharpener:
    """The sharpener a worker uses, built once per process; torch gets the threads of the one asked for last.

    A textbook method gets one: windows are read, sharpened and written side by side, each about as long, and threads
    that wait for one another in strips of a window cost more than they give.

    Raises:
        WeightsError: The weights cannot be loaded, are not those of the specification, or are for the benchmark.
        DeviceError: This process cannot use the device.
    """
    torch.set_num_threads(1 if spec.fusion is not None else spec.threads)
    keep_freed_memory()
    return _built(spec)


@lru_cache(maxsize=4)
def _built(spec: SharpenerSpec) -> Sharpener:
    if spec.glp is not None:
        return GlpSharpener(*spec.glp)
    if spec.fusion is not None:
        return FusionSharpener(spec.fusion)
    checkpoint = load_for_scenes(spec.weights, spec.weights_sha256)
    device = resolve_device(spec.device)  # of this worker
    return NetworkSharpener(checkpoint, device, spec.precision, spec.injection, spec.relative_mtf)


def load_for_scenes(weights: str, sha256: str | None) -> Checkpoint:
    """Weights that scenes, made with those of this SHA-256, can be sharpened with.

    Raises:
        WeightsError: They cannot be loaded, are others by now, or are for the benchmark.
    """
    checkpoint = load_checkpoint(weights)
    require_weights(weights, checkpoint.sha256, sha256)
    if for_benchmark(checkpoint.training):
        raise WeightsError(
            f"{weights} was trained on PanCollection, whose published tables it is for (pancrafter evaluate, "
            "pancrafter reproduce): scenes have other DN ranges and another place of MS on PAN; choose "
            f"{DEFAULT_WEIGHTS}, or weights trained on pairs or simulated scenes"
        )
    return checkpoint


def check_for_scenes(weights: str, sha256: str | None, bands: int) -> None:
    """See that a scene of so many bands can be sharpened with these weights.

    This process loads a file for it once, and again when it was replaced.

    Raises:
        WeightsError: ``load_for_scenes`` would raise it.
        BandCountError: The network takes another number of bands.
    """
    _require_bands(weights, _bands_at_once(weights, sha256, weights_stamp(weights)), bands)


@lru_cache(maxsize=4)
def _bands_at_once(weights: str, sha256: str | None, _stamp: tuple[int, ...]) -> int:
    return load_for_scenes(weights, sha256).network.config.bands


def _require_bands(weights: str, group: int, bands: int) -> None:
    if bands % group:
        raise BandCountError(
            f"weights {weights} take {group} bands at once, the scene has {bands}; "
            "choose weights for this sensor or band-wise ones"
        )


def to_unit(values: torch.Tensor, ranges: Sequence[ValueRange]) -> torch.Tensor:
    """DN (band, y, x) or (y, x) scaled so that each range becomes [-1, 1]; (band, y, x)."""
    low = torch.tensor([r.low for r in ranges], device=values.device)[:, None, None]
    high = torch.tensor([r.high for r in ranges], device=values.device)[:, None, None]
    return 2 * (values - low) / (high - low) - 1


def to_dn(values: torch.Tensor, ranges: Sequence[ValueRange]) -> torch.Tensor:
    """Values (band, y, x) of which [-1, 1] is each band's range, in DN."""
    low = torch.tensor([r.low for r in ranges], device=values.device)[:, None, None]
    high = torch.tensor([r.high for r in ranges], device=values.device)[:, None, None]
    return (values + 1) / 2 * (high - low) + low
