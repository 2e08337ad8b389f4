"""Pairs in memory, ready to be sharpened and scored: files, folders of them, and scenes of a STAC catalog.

A pair says where its MS pixels really lie on the PAN grid, so nothing downstream guesses. PanCollection files have a
reader of their own (``pancrafter.pancollection``), because their phase is another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, ValidationError

from pancrafter import resample
from pancrafter.alignment import estimate_band_shifts
from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.metrics import PhaseYX, Pixels
from pancrafter.pair_files import RATIOS, description_path, find_pairs, pair_name, read_pixels
from pancrafter.resample import Mtf, mean_mtf, relative_mtf
from pancrafter.scratch import scratch_folder
from pancrafter.sensors import SensorContract, contract_for_platform, generic_contract
from pancrafter.sharpness import band_mtfs, combine, measured_mtf, sharpness
from pancrafter.types import Record, Refusal, Scene, ValueRange, faults_of

Protocol = Literal["production", "benchmark"]

RANGE_PERCENTILES = (1.0, 99.0)
"""The same percentiles staging uses to normalise a scene."""

MAX_SHARE_ABOVE_CEILING = 1e-3
"""More pixels than this above the DN ceiling mean that the ceiling is not that of these pixels."""

MIN_SIDE_MS_PX = 16
"""Smaller MS images hold too little for any figure."""


class StatedShift(Record):
    """Where somebody measured the MS content to lie, beside its place by the corners: (y, x), PAN pixels."""

    model_config = ConfigDict(extra="ignore")

    shift_pan_px: tuple[FiniteFloat, FiniteFloat] | None = None


class Description(Record):
    """What ``NAME.json`` may say of a pair; what else it holds is not looked at."""

    model_config = ConfigDict(extra="ignore")

    sensor: str | None = None
    bands: tuple[str, ...] | None = None
    ratio: int | None = None
    bit_depth: int | None = Field(default=None, ge=1, le=64)
    quality: str | None = None
    shift: StatedShift = StatedShift()


@dataclass(frozen=True, eq=False)
class CheckedPair:
    """A pair as its files hold it, checked against its description and its sensor; nothing is measured yet.

    Attributes:
        description: What the files say beside the pixels.
        contract: Contract of the sensor, or a generic one.
        truth: As that of ``Pair``; the rest too.
        phase_yx: Where the files say that MS pixel 0 lies on the PAN grid, PAN pixels.
    """

    name: str
    description: Description
    contract: SensorContract
    bands: tuple[str, ...]
    pan: Pixels
    ms: Pixels
    truth: Pixels | None
    ratio: int
    phase_yx: PhaseYX
    dn_max: int

    @property
    def nominal_gains(self) -> tuple[float, ...]:
        """MTF at the MS Nyquist frequency per band, from the contract."""
        return tuple(band.mtf for band in self.contract.subset(self.bands))


@dataclass(frozen=True, eq=False)
class Pair:
    """PAN and MS of one scene and what is known about them.

    Attributes:
        name: How tables call the scene.
        sensor: Name of the sensor contract behind gains and ceiling.
        bands: MS bands in the order of ``ms``.
        pan: (y, x) DN.
        ms: (band, y / ratio, x / ratio) DN.
        ratio: MS over PAN pixel size.
        phases_yx: Per band, where MS pixel 0 really lies on the PAN grid (phase plus band shift), PAN pixels.
        nominal_gains: MTF at the MS Nyquist frequency, per band, from the sensor's contract.
        pan_gain: MTF of PAN at its own Nyquist frequency.
        dn_max: Largest DN; results are clipped to 0..dn_max before they are scored.
        truth: (band, y, x) true MS on the PAN grid, where somebody else degraded the pair; else None.
        grade: Quality grade in the pair's description, if any.
        protocol: ``benchmark`` for PanCollection: phase 2, its crop and its full-resolution indices.
        measured_mtf: Mean of the bands relative to PAN; None where it could not be measured.
    """

    name: str
    sensor: str
    bands: tuple[str, ...]
    pan: Pixels
    ms: Pixels
    ratio: int
    phases_yx: tuple[PhaseYX, ...]
    nominal_gains: tuple[float, ...]
    pan_gain: float
    dn_max: int
    truth: Pixels | None = None
    grade: str | None = None
    protocol: Protocol = "production"
    measured_mtf: Mtf | None = None

    @property
    def mtfs(self) -> tuple[Mtf, ...]:
        """MTF per band: the nominal ones, as sharp as the pair was measured to be."""
        return band_mtfs(self.nominal_gains, self.measured_mtf, self.pan_gain, self.ratio)

    @property
    def pan_blur(self) -> Mtf:
        """Mean MTF between PAN and the bands."""
        return mean_mtf([relative_mtf(mtf, self.pan_gain, self.ratio) for mtf in self.mtfs])

    @property
    def band_shift_yx(self) -> tuple[tuple[float, float], ...]:
        """Measured shift per band: how far its phase is from the nominal one of the protocol, PAN pixels."""
        nominal = (self.ratio - 1) / 2 if self.protocol == "production" else self.ratio / 2
        return tuple((y - nominal, x - nominal) for y, x in self.phases_yx)


@dataclass(frozen=True)
class Unreadable:
    """A pair that could not be read, and why."""

    name: str
    reason: str


def value_range(values: NDArray[Any]) -> ValueRange:
    """The range that normalises a channel; a constant channel gets a width of one DN."""
    low, high = np.percentile(values, RANGE_PERCENTILES)
    return ValueRange(low=float(low), high=float(max(high, low + 1)))


def is_catalog(path: Path) -> bool:
    """Whether ``path`` is a static STAC catalog document or a folder with one."""
    return (path / "catalog.json").is_file() if path.is_dir() else path.suffix == ".json"


def find_pair_files(path: Path, pattern: str = "*") -> list[Path]:
    """The pairs that ``path`` means: itself, or all in the folder whose name fits ``pattern``.

    Raises:
        InvalidSceneError: There is no such file or folder, or nothing in it.
    """
    if path.is_file():
        return [path]
    found = find_pairs(path, pattern)
    if not found:
        missing = f"no {pattern}.npz or {pattern}_pan.tif in it" if path.is_dir() else "no such file or folder"
        raise InvalidSceneError(
            f"{path}: {missing}; expected pairs as npz or GeoTIFFs, a folder of them, or a STAC catalog"
        )
    return found


def read_pair(path: Path, contracts: Mapping[str, SensorContract], *, with_truth: bool = True) -> Pair:
    """A pair that ``read_checked`` reads, with shift and sharpness of its bands measured as staging measures them.

    Of a triplet with ``gt``, PAN is moved to where the truth lies, so that truth and PAN agree and no MS or truth value
    is touched; ``with_truth`` false passes ``gt`` over.

    Raises:
        InvalidSceneError: As ``read_checked``.
    """
    found = read_checked(path, contracts, with_truth=with_truth)
    pan, ms, ratio = found.pan, found.ms, found.ratio
    if found.truth is not None:
        pan = _moved_to_truth(pan, found.truth)
    phases_yx = measured_phases(pan, ms, ratio, float(np.mean(found.nominal_gains)), found.phase_yx)
    return Pair(
        name=found.name,
        sensor=found.contract.name,
        bands=found.bands,
        pan=pan,
        ms=ms,
        ratio=ratio,
        phases_yx=phases_yx,
        nominal_gains=found.nominal_gains,
        measured_mtf=combine([sharpness(pan, ms, ratio, phases_yx)]),
        pan_gain=found.contract.pan_mtf,
        dn_max=found.dn_max,
        truth=found.truth,
        grade=found.description.quality,
    )


def read_checked(path: Path, contracts: Mapping[str, SensorContract], *, with_truth: bool = True) -> CheckedPair:
    """A pair from ``NAME.npz`` (arrays ``pan``, ``ms``, perhaps ``gt``) or ``NAME_pan.tif`` and ``NAME_ms.tif``.

    Where there is ``NAME.json``, it describes the pair. Corners of PAN and MS coincide, but for GeoTIFFs whose
    georeference says otherwise: those are cut to what both cover.

    Raises:
        InvalidSceneError: A file is damaged, or arrays, types, band count, ratio or DN contradict each other, the
            description or the sensor.
    """
    said, found = _read_description(description_path(path)), read_pixels(path, with_truth=with_truth)
    arrays = found.arrays
    _require_pixels(path, arrays)
    pan, ms, truth = arrays["pan"], arrays["ms"], arrays.get("gt")
    ratio = _checked_ratio(path, pan, ms, said.ratio)
    if said.bands and len(said.bands) != len(ms):
        raise InvalidSceneError(
            f"{path}: ms has {len(ms)} bands, its description names {len(said.bands)}: {list(said.bands)}"
        )
    contract = _contract_of(path, said, len(ms), ratio, contracts)
    if truth is not None and truth.shape != (len(ms), *pan.shape):
        raise InvalidSceneError(f"{path}: gt is {truth.shape}, expected {(len(ms), *pan.shape)} (ms bands, pan px)")
    dn_max = contract.dn_max if said.bit_depth is None else 2**said.bit_depth - 1
    dn_max = min(dn_max, int(np.iinfo(ms.dtype.name).max))
    for name, values in arrays.items():
        require_within_ceiling(f"{path}: {name}", values, dn_max)
        for band, pixels in enumerate(values.reshape(-1, *values.shape[-2:])):
            if pixels.min() == pixels.max():
                which = name if values.ndim == 2 else f"{name}[{band}]"
                raise InvalidSceneError(
                    f"{path}: {which} holds nothing but DN {pixels.max()}; there is nothing to see in it, so leave out "
                    "what is no image (as an alpha band)"
                )
    return CheckedPair(
        name=pair_name(path),
        description=said,
        contract=contract,
        bands=said.bands or tuple(band.name for band in contract.bands),
        pan=pan,
        ms=ms,
        truth=truth,
        ratio=ratio,
        phase_yx=found.phase_yx or ((ratio - 1) / 2, (ratio - 1) / 2),
        dn_max=dn_max,
    )


def require_within_ceiling(label: str, values: NDArray[Any], dn_max: int) -> None:
    """Refuse pixels whose DN ceiling is not ``dn_max``.

    Raises:
        InvalidSceneError: More than one in a thousand lies above it.
    """
    share = float(np.mean(values > dn_max))
    if share > MAX_SHARE_ABOVE_CEILING:
        raise InvalidSceneError(
            f"{label} holds DN up to {int(values.max())}, {share:.1%} of them above the ceiling {dn_max}; "
            "mend bit_depth or sensor in the description"
        )


def measured_phases(
    pan: Pixels, ms: Pixels, ratio: int, gain: float, phase_yx: PhaseYX | None = None
) -> tuple[PhaseYX, ...]:
    """Per band, the phase (by default the edge-aligned one) plus the shift that is measured where it is significant."""
    y, x = phase_yx or ((ratio - 1) / 2, (ratio - 1) / 2)
    shifts = estimate_band_shifts(pan, ms, ratio, (y, x), gain=gain)
    return tuple((y + shift.applied_yx[0], x + shift.applied_yx[1]) for shift in shifts)


def catalog_pairs(
    path: Path, contracts: Mapping[str, SensorContract], pattern: str = "*", *, block_px: int = 1024
) -> Iterator[Pair | Unreadable]:
    """Scenes of a static STAC catalog that the pipeline would sharpen, staged as it stages them, whose id fits.

    Of a large scene the middle one of the windows counts that the quality gate samples.
    """
    from pancrafter.assess import sample_windows
    from pancrafter.catalog import discover
    from pancrafter.cube import stage_scene
    from pancrafter.store import SceneStore

    is_empty = True
    for verdict in discover(str(path), contracts=contracts):
        if not fnmatchcase(verdict.item_id, pattern):
            continue
        is_empty = False
        if isinstance(verdict, Refusal):
            yield Unreadable(verdict.key, f"refused: {verdict.reason}")
            continue
        with scratch_folder("pancrafter-evaluate-") as folder:
            try:
                contract = contracts[verdict.sensor]
                staged = stage_scene(verdict, contract, str(folder / "scene.zarr"), block_px=block_px)
                store = SceneStore.open(staged.store_uri)
                windows = sample_windows(store)
                if not windows:
                    yield Unreadable(verdict.key, "no window of it is at least 95 % valid")
                    continue
                yield _staged_pair(store, verdict, windows[len(windows) // 2], contract)
            except PancrafterError as err:
                yield Unreadable(verdict.key, str(err))
    if is_empty:
        yield Unreadable(str(path), f"no item {pattern} in it")


def _staged_pair(store: Any, scene: Scene, window: Any, contract: SensorContract) -> Pair:  # Any: imported late
    from pancrafter.tiles import band_phases

    staged = store.staged
    ratio = staged.grid.ratio
    ms_window = tuple(slice(part.start // ratio, part.stop // ratio) for part in window)
    return Pair(
        name=scene.item_id,
        sensor=scene.sensor,
        bands=scene.bands,
        pan=store.read_pan(window),
        ms=store.read_ms(ms_window),
        ratio=ratio,
        phases_yx=band_phases(staged),
        nominal_gains=tuple(band.mtf for band in contract.subset(scene.bands)),
        measured_mtf=measured_mtf(staged),
        pan_gain=contract.pan_mtf,
        dn_max=staged.dn_max,
    )


def cropped(pair: Pair, max_side_px: int) -> Pair:
    """The middle of a pair, at most ``max_side_px`` PAN pixels a side, cut where MS pixels begin."""
    windows = [_middle(n, max_side_px // pair.ratio) for n in pair.ms.shape[1:]]
    if all(w.stop - w.start == n for w, n in zip(windows, pair.ms.shape[1:], strict=True)):
        return pair
    on_pan = tuple(slice(w.start * pair.ratio, w.stop * pair.ratio) for w in windows)
    truth = None if pair.truth is None else pair.truth[:, *on_pan]
    return replace(pair, pan=pair.pan[on_pan], ms=pair.ms[:, *windows], truth=truth)


def _middle(size: int, wanted: int) -> slice:
    start = max(0, (size - wanted) // 2)
    return slice(start, start + min(size, wanted))


def _read_description(path: Path) -> Description:
    """The description beside a pair; empty where there is none."""
    if not path.is_file():
        return Description()
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InvalidSceneError(f"{path}: not readable as JSON ({err}); mend or remove it") from err
    if not isinstance(said, dict):
        raise InvalidSceneError(f"{path}: found {type(said).__name__}, expected an object that describes the pair")
    try:
        return Description.model_validate(said)
    except ValidationError as err:
        raise InvalidSceneError(f"{path}: {faults_of(err)}; mend these fields or leave them out") from err


def _require_pixels(path: Path, arrays: Mapping[str, Pixels]) -> None:
    for name, axes in (("pan", 2), ("ms", 3)):
        if name not in arrays or arrays[name].ndim != axes:
            found = f"of {arrays[name].ndim} axes" if name in arrays else "missing"
            raise InvalidSceneError(f"{path}: array {name} is {found}; expected pan (y, x) and ms (band, y, x)")
    for name, values in arrays.items():
        if values.dtype.kind != "u":
            raise InvalidSceneError(f"{path}: {name} is {values.dtype}, expected unsigned DN (uint8 or uint16)")


def _checked_ratio(path: Path, pan: Pixels, ms: Pixels, stated: int | None) -> int:
    found: int = pan.shape[0] // max(1, ms.shape[1])
    whole = pan.shape == (found * ms.shape[1], found * ms.shape[2])
    if not whole or found not in RATIOS or (stated is not None and stated != found):
        said = "" if stated is None else f", the description says ratio {stated}"
        raise InvalidSceneError(
            f"{path}: pan is {pan.shape} px and ms {ms.shape[1:]}{said}; expected pan = ratio x ms, ratio 2, 3 or 4"
        )
    if min(ms.shape[1:]) < MIN_SIDE_MS_PX:
        raise InvalidSceneError(f"{path}: ms is {ms.shape[1:]} px, expected at least {MIN_SIDE_MS_PX} a side")
    return found


def _contract_of(
    path: Path, said: Description, band_count: int, ratio: int, contracts: Mapping[str, SensorContract]
) -> SensorContract:
    """The contract of the sensor named in the description, where its bands are known to it; else a generic one."""
    named, bands = said.sensor or "", said.bands or ()
    known = contracts.get(named) or contract_for_platform(named, contracts)
    if known is not None:
        if unknown := [band for band in bands if known.find_band(band) is None]:
            raise InvalidSceneError(
                f"{path}: {known.name} has no band {unknown[0]!r}; it has {[band.name for band in known.bands]}"
            )
        if bands and known.ratio == ratio:
            return known
    return generic_contract(band_count, ratio, int(np.iinfo(np.uint16).max), bands)


def _moved_to_truth(pan: Pixels, truth: Pixels) -> Pixels:
    """PAN sampled where the truth's pixels lie, if both are measurably apart."""
    shifts = [s for s in estimate_band_shifts(pan, truth, 1, (0.0, 0.0)) if s.significant]
    if not shifts:
        return pan
    y, x = np.median([s.shift_yx for s in shifts], axis=0)
    rows, cols = (resample.cubic_matrix(n, n, 1.0, float(d)) for n, d in zip(pan.shape, (y, x), strict=True))
    return resample.apply_yx(rows, cols, pan.astype(np.float64)).astype(np.float32)
