"""The imaging chain: surface reflectance in, what one satellite would have recorded of it out.

    reflectance -> radiance in DN -> PAN mix -> per-band MTF -> sampling at phase and shift -> noise -> quantisation

All positions are PAN pixel indices; MS pixel ``i`` of band ``b`` is read at ``ratio * i + phase + shift_b + field``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancrafter.resample import apply_yx, gaussian_matrix, mtf_sigma
from pancrafter.sensors import BandSpec, SensorContract

Floats = NDArray[np.floating]
Pair = tuple[float, float]


@dataclass(frozen=True)
class ShiftField:
    """A smooth displacement that varies inside the scene, in PAN pixels, added to the shift of every band.

    ``knots`` (2, ky, kx) are the dy and dx at an even lattice from border to border of the PAN image, joined by cubic
    splines. ``jitter`` are along-track waves (amplitude px, period in rows, phase rad) of the platform's attitude,
    which displace all columns of a row alike, across the track (dx).
    """

    knots: tuple[tuple[tuple[float, ...], ...], ...]
    jitter: tuple[tuple[float, float, float], ...] = ()

    def at(self, rows: Floats, columns: Floats, shape_yx: tuple[int, int]) -> tuple[Floats, Floats]:
        """Displacement (dy, dx), each (len(rows), len(columns)), at PAN coordinates of an image of ``shape_yx``."""
        knots = np.array(self.knots, dtype=np.float64)
        where = np.meshgrid(
            rows / max(shape_yx[0] - 1, 1) * (knots.shape[1] - 1),
            columns / max(shape_yx[1] - 1, 1) * (knots.shape[2] - 1),
            indexing="ij",
        )
        dy, dx = (ndimage.map_coordinates(knot, where, order=3, mode="nearest") for knot in knots)
        for amplitude, period, phase in self.jitter:
            dx = dx + amplitude * np.sin(2 * np.pi * rows / period + phase)[:, None]
        return dy, dx


NO_FIELD = ShiftField(knots=(((0.0,),), ((0.0,),)))


def random_shift_field(rng: np.random.Generator, amplitude_px: float) -> ShiftField:
    """A field whose knots deviate by about ``amplitude_px``, with a tenth of that as attitude jitter."""
    knots = rng.normal(0, amplitude_px, (2, 4, 4))
    knots -= knots.mean(axis=(1, 2), keepdims=True)
    wave = (0.1 * amplitude_px, float(rng.uniform(60, 300)), float(rng.uniform(0, 2 * np.pi)))
    return ShiftField(tuple(tuple(tuple(map(float, row)) for row in axis) for axis in knots), (wave,))


@dataclass(frozen=True)
class ImagingModel:
    """One acquisition by one sensor. The first ``len(ms_mtf)`` bands of the truth are the MS bands, in order.

    Truth may carry further bands after them: wavelengths that only PAN sees, so that PAN is not an exact mix of the
    MS bands, as it never is in reality.
    """

    ratio: int
    """MS pixel size over PAN pixel size."""
    ms_mtf: tuple[float, ...]
    """Gain of the whole MS chain at the MS Nyquist frequency, per band, 0 to 1."""
    pan_mtf: float
    """Gain of the PAN chain at the PAN Nyquist frequency."""
    pan_weights: tuple[float, ...]
    """Share of each truth band in the PAN radiance (in DN of that band), before ``pan_gain``; one per truth band."""
    gain_dn: tuple[float, ...]
    """DN of reflectance 1, per truth band: solar irradiance, transmission and detector together."""
    offset_dn: tuple[float, ...]
    """DN of a black surface, per truth band: path radiance and dark level."""
    dn_max: int
    """Largest DN; brighter pixels saturate."""
    phase: Pair
    """PAN coordinate (y, x) of the centre of MS pixel 0: (ratio - 1) / 2 edge-aligned, 0 centre-aligned."""
    shift_yx: tuple[Pair, ...]
    """Per MS band: where its content really lies minus nominal, PAN pixels."""
    field: ShiftField = NO_FIELD
    pan_gain: float = 1.0
    photon_noise: float = 0.02
    """Variance of the shot noise per DN of signal."""
    read_noise_dn: float = 0.8
    """Deviation of the noise that does not depend on the signal."""
    dn_min: int = 1
    """Smallest DN of a valid pixel; 1 where 0 means nodata."""
    oversample: int = 1
    """Truth pixels per PAN pixel and axis."""

    def __post_init__(self) -> None:
        bands = len(self.pan_weights)
        if not len(self.gain_dn) == len(self.offset_dn) == bands:
            raise ValueError(
                f"{bands} pan weights, {len(self.gain_dn)} gains, {len(self.offset_dn)} offsets: must agree"
            )
        if len(self.shift_yx) != len(self.ms_mtf) or len(self.ms_mtf) > bands:
            raise ValueError(
                f"{len(self.ms_mtf)} MS gains, {len(self.shift_yx)} shifts, {bands} truth bands do not fit"
            )
        if not all(0 < gain < 1 for gain in (*self.ms_mtf, self.pan_mtf)):
            raise ValueError(f"MTF gains {self.ms_mtf} and {self.pan_mtf} must lie between 0 and 1")
        if self.ratio < 2 or self.oversample < 1 or not 0 <= self.dn_min < self.dn_max <= 65535:
            raise ValueError(f"ratio {self.ratio}, oversample {self.oversample} or DN range is outside its limits")

    @property
    def n_bands(self) -> int:
        """Number of MS bands."""
        return len(self.ms_mtf)

    def pan_shape(self, truth_shape_yx: tuple[int, int]) -> tuple[int, int]:
        """PAN pixels that a truth of the given pixels holds."""
        return truth_shape_yx[0] // self.oversample, truth_shape_yx[1] // self.oversample

    def ms_shape(self, pan_shape_yx: tuple[int, int]) -> tuple[int, int]:
        """MS pixels whose nominal centres lie on the PAN image."""
        height, width = (
            int((n - 1 - phase) // self.ratio) + 1 for n, phase in zip(pan_shape_yx, self.phase, strict=True)
        )
        return height, width


@dataclass(frozen=True)
class SimulatedPair:
    """What the sensor recorded, and what it would have recorded at its best.

    ``truth`` (band, y, x) float32 DN on the PAN grid: each MS band as an ideal MS detector with the PAN's pixel size
    and the PAN's MTF would see it, free of noise, quantisation, saturation and misregistration (PAN frame).
    """

    pan: NDArray[np.uint16]
    ms: NDArray[np.uint16]
    truth: NDArray[np.float32]


def image_scene(truth_hr: Floats, model: ImagingModel, rng: np.random.Generator) -> SimulatedPair:
    """Image a scene.

    Args:
        truth_hr: Reflectance (band, y, x), 0 to 1; ``model.oversample`` pixels per PAN pixel and axis. Bands beyond the
            MS bands are seen by PAN only.
        model: The sensor and the acquisition.
        rng: Source of the noise.

    Returns:
        PAN (y, x), MS (band, y, x) and truth (band, y, x), DN.

    Raises:
        ValueError: ``truth_hr`` has another number of bands than ``model``.
    """
    if len(truth_hr) != len(model.pan_weights):
        raise ValueError(f"truth has {len(truth_hr)} bands, the imaging model weighs {len(model.pan_weights)} for PAN")
    shape_yx = model.pan_shape((truth_hr.shape[1], truth_hr.shape[2]))
    pan_scene = np.zeros(truth_hr.shape[1:], dtype=np.float32)
    truth = np.empty((model.n_bands, *shape_yx), dtype=np.float32)
    ms = np.empty((model.n_bands, *model.ms_shape(shape_yx)), dtype=np.uint16)
    for band, reflectance in enumerate(truth_hr):
        radiance = np.float32(model.gain_dn[band]) * reflectance + np.float32(model.offset_dn[band])
        if model.pan_weights[band]:
            pan_scene += np.float32(model.pan_weights[band] * model.pan_gain) * radiance
        if band < model.n_bands:
            truth[band] = see_as_pan(radiance, model)
            ms[band] = digitise(see_as_ms(radiance, model, band), model, rng)
    return SimulatedPair(pan=digitise(see_as_pan(pan_scene, model), model, rng), ms=ms, truth=truth)


def see_as_pan(radiance: Floats, model: ImagingModel) -> Floats:
    """One band of the scene through the PAN's MTF, sampled at the PAN pixels."""
    step = model.oversample
    sigma = mtf_sigma(model.pan_mtf, 1) * step
    height, width = model.pan_shape((radiance.shape[0], radiance.shape[1]))
    radius = int(np.ceil(5 * sigma)) + 1
    offset = (step - 1) / 2
    matrix_y = gaussian_matrix(height, radiance.shape[0], float(step), offset, sigma, radius)
    matrix_x = gaussian_matrix(width, radiance.shape[1], float(step), offset, sigma, radius)
    return apply_yx(matrix_y, matrix_x, radiance)


def see_as_ms(radiance: Floats, model: ImagingModel, band: int) -> Floats:
    """One band of the scene through its MS MTF, sampled where the MS pixels really look."""
    step, ratio = model.oversample, model.ratio
    shape_yx = model.pan_shape((radiance.shape[0], radiance.shape[1]))
    n_rows, n_columns = model.ms_shape(shape_yx)
    sigma = mtf_sigma(model.ms_mtf[band], ratio) * step
    (dy, dx), centre = model.shift_yx[band], (step - 1) / 2
    if model.field == NO_FIELD:
        scale, radius = float(ratio * step), int(5 * sigma) + 1
        start_y, start_x = (model.phase[0] + dy) * step + centre, (model.phase[1] + dx) * step + centre
        matrix_y = gaussian_matrix(n_rows, radiance.shape[0], scale, start_y, sigma, radius)
        matrix_x = gaussian_matrix(n_columns, radiance.shape[1], scale, start_x, sigma, radius)
        return apply_yx(matrix_y, matrix_x, radiance)
    blurred = ndimage.gaussian_filter(np.asarray(radiance, dtype=np.float32), sigma, mode="nearest", truncate=4.5)
    rows = ratio * np.arange(n_rows) + model.phase[0]
    columns = ratio * np.arange(n_columns) + model.phase[1]
    field_y, field_x = model.field.at(rows, columns, shape_yx)
    where = np.stack([rows[:, None] + dy + field_y, columns[None, :] + dx + field_x]) * step + centre
    return np.asarray(ndimage.map_coordinates(blurred, where, order=3, mode="nearest"))


def digitise(signal: Floats, model: ImagingModel, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Add shot and read noise to a signal in DN, round, and clip to the sensor's range."""
    deviation = np.sqrt(model.photon_noise * np.maximum(signal, 0) + model.read_noise_dn**2)
    noisy = signal + deviation * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), model.dn_min, model.dn_max).astype(np.uint16)


# ----------------------------------------------------------------------------------------------------------------------
# Acquisitions drawn at random, for archives and for training.

PAN_ONLY_UM = (0.515, 0.58, 0.70)
"""Wavelengths rendered in addition to the MS bands so that PAN sees light that no MS band reports."""


def pan_only_wavelengths(contract: SensorContract) -> tuple[float, ...]:
    """Wavelengths inside the PAN band, spread so that PAN is not an exact mix of the MS bands."""
    center, width = contract.pan_center_um or 0.62, contract.pan_fwhm_um or 0.3
    return center - 0.33 * width, center, center + 0.33 * width


def truth_wavelengths(bands: Sequence[BandSpec], pan_only_um: Sequence[float] = PAN_ONLY_UM) -> tuple[float, ...]:
    """Wavelengths to render for a sensor with these MS bands: the bands, then what only PAN sees."""
    return (*(band.center_um or 0.5 for band in bands), *pan_only_um)


def solar_weight(wavelength_um: float) -> float:
    """Sunlight at the ground relative to 0.5 um: that of a 5800 K black body."""

    def planck(um: float) -> float:
        return float(um**-5 / np.expm1(14388.0 / (um * 5800.0)))

    return planck(wavelength_um) / planck(0.5)


def random_model(
    rng: np.random.Generator,
    contract: SensorContract,
    bands: Sequence[BandSpec],
    *,
    phase: Pair | None = None,
    shift_px: float = 1.0,
    band_shift_px: float = 0.4,
    field_px: float = 0.2,
    oversample: int = 1,
    pan_only_um: Sequence[float] = PAN_ONLY_UM,
) -> ImagingModel:
    """Draw an acquisition: exposure, haze, spectral weights, noise, shifts.

    Args:
        rng: Source of all randomness.
        contract: The sensor: its ratio, PAN and DN ceiling.
        bands: Its MS bands; their MTF is varied by 8 percent.
        phase: PAN coordinate of MS pixel 0; edge-aligned when None.
        shift_px: Deviation of the shift that all bands share, PAN pixels.
        band_shift_px: Deviation of each band's own shift, PAN pixels.
        field_px: Deviation of the shift inside the scene, PAN pixels.
        oversample: Truth pixels per PAN pixel.
        pan_only_um: Wavelengths that only PAN sees; the truth holds those of ``truth_wavelengths``.
    """
    wavelengths, dn_max = truth_wavelengths(bands, pan_only_um), contract.dn_max
    sunlight = np.array([solar_weight(w) for w in wavelengths])
    detector = rng.lognormal(0, 0.15, len(wavelengths))
    exposure = dn_max * rng.uniform(0.9, 1.5)
    gain = exposure * (sunlight**0.5) * detector
    path = exposure * rng.uniform(0.02, 0.07) * (np.array(wavelengths) / 0.45) ** -rng.uniform(1.5, 3.5)
    seen = np.array([*(band.in_pan for band in bands), *(True for _ in pan_only_um)], dtype=np.float64)
    weights = seen * rng.uniform(0.5, 1.5, len(seen))
    common = rng.normal(0, shift_px, 2)
    own = rng.normal(0, band_shift_px, (len(bands), 2))
    mtf = np.clip(np.array([band.mtf for band in bands]) * rng.normal(1, 0.08, len(bands)), 0.05, 0.6)
    edge = (contract.ratio - 1) / 2
    return ImagingModel(
        ratio=contract.ratio,
        ms_mtf=tuple(map(float, mtf)),
        pan_mtf=contract.pan_mtf,
        pan_weights=tuple(map(float, weights / weights.sum())),
        gain_dn=tuple(map(float, gain)),
        offset_dn=tuple(map(float, path)),
        dn_max=dn_max,
        phase=(edge, edge) if phase is None else phase,
        shift_yx=tuple((float(dy), float(dx)) for dy, dx in common + own),
        field=random_shift_field(rng, field_px) if field_px > 0 else NO_FIELD,
        pan_gain=float(rng.uniform(0.8, 1.2)),
        photon_noise=float(dn_max / 2047 * rng.uniform(0.005, 0.05)),
        read_noise_dn=float(dn_max / 2047 * rng.uniform(0.3, 1.5)),
        oversample=oversample,
    )
