"""Training PAN-Crafter: pairs by Wald's protocol from real scenes and from the simulator, one L1 loss per mode.

Everything random about step ``k`` comes from ``(seed, k)``, so a resumed run sees the data an unbroken one sees.
"""

from __future__ import annotations

import csv
import json
import math
import pickle
import shutil
import subprocess
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from pancrafter.classical import InjectionConstants, fit_injection, injection_sums
from pancrafter.errors import InvalidSceneError, PancrafterError, WeightsError
from pancrafter.metrics import ergas
from pancrafter.model.conditions import build_conditions, unexplained_pan
from pancrafter.model.config import NetworkConfig
from pancrafter.model.devices import keep_freed_memory
from pancrafter.model.names import file_sha256, weights_sha256
from pancrafter.model.network import MS_MODE, PAN_MODE, PanCrafter
from pancrafter.model.weights import load_checkpoint, save_checkpoint
from pancrafter.pairs import value_range
from pancrafter.pancollection import PHASE_PX, RATIO, Patches, joined, read_patches
from pancrafter.resample import GENERIC_MTF_GAIN, degrade, degrading_matrix, upsample
from pancrafter.sensors import get_contract
from pancrafter.simulate import image_scene, make_truth, random_model
from pancrafter.simulate.archive import pan_only_wavelengths
from pancrafter.types import Record, ValueRange

Floats = NDArray[np.float32]

VALIDATION_MIN_PX = 64
"""Least side of a validation image; 16 pixels at each border are not scored."""


class Augmentation(Record):
    """How far the simulated acquisition strays. Pixels are PAN pixels, gains are at the MS Nyquist frequency."""

    mtf_gain: tuple[float, float] = (0.15, 0.40)
    known_shift_px: float = Field(default=2.0, description="Shift that the network is told, uniform within +-.")
    small_residual_px: float = Field(default=0.3, description="Unknown shift of most samples (standard deviation).")
    large_residual_px: float = Field(default=3.0, description="Unknown shift of the other samples, uniform within +-.")
    large_residual_share: float = 0.3
    noise: float = Field(default=0.01, description="Largest noise deviation, as a share of the value range.")
    range_stretch: tuple[float, float] = (0.7, 1.5)
    range_offset: float = 0.15
    pan_detail_gain: tuple[float, ...] = (0.75, 1.0, 1.0, 1.25)


class PanCollectionData(Record):
    """HDF5 files of the PanCollection benchmark; paths are relative to the configuration file.

    Their patches are already degraded, so of the augmentation only the unknown shift and the PAN detail gain apply.
    """

    train: tuple[str, ...] = Field(min_length=1)
    validation: tuple[str, ...] = Field(min_length=1)
    sensor: str | None = Field(default=None, description="wv3, qb or gf2; by default from the file names.")


class TrainConfig(Record):
    """One training run."""

    network: NetworkConfig
    start: str | None = Field(default=None, description="Weights to fine-tune, by name or path; None starts afresh.")
    pairs_dir: str | None = Field(default=None, description="Folder of npz pairs; relative to the config file.")
    train_pairs: tuple[str, ...] = Field(default=(), description="Glob patterns of pair names to train on.")
    validation_pairs: tuple[str, ...] = ()
    pancollection: PanCollectionData | None = Field(default=None, description="Train on these in place of images.")
    simulated_scenes: int = Field(default=64, ge=0)
    simulated_px: int = Field(default=512, ge=64)
    ratios: dict[int, float] = Field(default={4: 0.6, 3: 0.1, 2: 0.3}, description="Ratio -> share of samples.")
    patch_px: int = Field(default=64, ge=12, description="PAN patch side; rounded down to fit each ratio.")
    batch: int = Field(default=32, ge=1)
    steps: int = Field(default=50_000, ge=1)
    warmup: int = Field(default=100, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    pan_weight: float = Field(default=1.0, description="Lambda of the PAN reconstruction loss.")
    seed: int = 2025
    validate_every: int = Field(default=500, ge=1)
    precision: str = Field(default="bfloat16", pattern="float32|bfloat16")
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _benchmark_stands_alone(self) -> TrainConfig:
        if self.pancollection is not None and (self.pairs_dir is not None or self.simulated_scenes):
            raise ValueError(
                "pancollection: not together with pairs_dir or simulated_scenes; set simulated_scenes to 0"
            )
        if self.pancollection is not None and self.network.injected_detail:
            raise ValueError("pancollection: its patches are too small to fit injected_detail on; switch that off")
        return self

    @field_validator("ratios")
    @classmethod
    def _ratios_have_shares(cls, ratios: dict[int, float]) -> dict[int, float]:
        if not ratios or min(ratios) < 2 or max(ratios) > 4 or min(ratios.values()) <= 0:
            raise ValueError(f"ratios are {ratios}, expected one or more of 2, 3, 4 with positive shares")
        return ratios


@dataclass(frozen=True)
class TrainingImage:
    """PAN and true MS on one grid, in DN: ``pan`` (y, x), ``truth`` (band, y, x), and what staging knows of a scene."""

    name: str
    pan: Floats
    truth: Floats
    pan_range: ValueRange
    truth_ranges: tuple[ValueRange, ...]
    injection: InjectionConstants


def training_image(name: str, pan: Floats, truth: Floats) -> TrainingImage:
    """Attach value ranges and injection constants to PAN and truth."""
    ratio, (height, width) = 4, pan.shape
    phase, gain = ((ratio - 1) / 2,) * 2, GENERIC_MTF_GAIN
    ms = np.stack([degrade(band, (height // ratio, width // ratio), ratio, phase, gain) for band in truth])
    injection = fit_injection(injection_sums(pan, ms, ratio, (phase,) * len(ms), gain))
    return TrainingImage(name, pan, truth, value_range(pan), tuple(value_range(band) for band in truth), injection)


def load_pair(path: Path) -> TrainingImage:
    """A real pair, brought one scale down (Wald): its MS becomes the truth, its PAN is sampled at the MS pixels.

    PAN is sampled where the MS content really lies (the measured shift in the pair's JSON), so truth and PAN agree
    without touching a single MS value.

    Raises:
        InvalidSceneError: The npz is damaged or lacks ``pan`` or ``ms``, or the JSON beside it lacks ratio or shift.
    """
    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        ratio = int(meta["ratio"])
        shift_y, shift_x = meta["shift"]["shift_pan_px"]
        with np.load(path) as arrays:
            pan, ms = arrays["pan"].astype(np.float32), arrays["ms"].astype(np.float32)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error, zipfile.BadZipFile) as err:
        raise InvalidSceneError(
            f"training pair {path.name} is unreadable ({type(err).__name__}: {err}); expected npz with pan, ms, and a "
            "JSON beside it with ratio and shift.shift_pan_px"
        ) from err
    phase = (ratio - 1) / 2
    reduced = degrade(pan, ms.shape[1:], ratio, (phase + shift_y, phase + shift_x), gain=0.25)
    margin = 4  # MS pixels at the border may lie outside PAN after the shift
    return training_image(
        path.stem, reduced[margin:-margin, margin:-margin].astype(np.float32), ms[:, margin:-margin, margin:-margin]
    )


SIMULATED_SENSORS = {
    "worldview-3": 0.31,
    "geoeye-1": 0.5,
    "pleiades": 0.7,
    "spot-6": 1.5,
    "gaofen-2": 0.8,
    "landsat-8": 15.0,
}
"""Sensors whose acquisitions are simulated for training, with the PAN pixel size in metres."""

COARSE_SHARE = 0.35
"""Share of Landsat among the simulated scenes: it stands for all coarse sensors and for bands far outside PAN."""


def simulate_image(name: str, seed: tuple[int, int], side_px: int) -> TrainingImage:
    """PAN and truth of a simulated scene, seen by a sensor and at a scale drawn at random."""
    rng = np.random.default_rng(seed)
    fine = [name for name in SIMULATED_SENSORS if name != "landsat-8"]
    sensor = "landsat-8" if rng.uniform() < COARSE_SHARE else str(rng.choice(fine))
    contract = get_contract(sensor)
    centers = [band.center_um for band in contract.bands if band.center_um is not None]
    pan_only = pan_only_wavelengths(contract)
    model = random_model(
        rng,
        ratio=contract.ratio,
        centers_um=centers,
        ms_mtf=[band.mtf for band in contract.bands],
        pan_mtf=contract.pan_mtf,
        in_pan=[band.in_pan for band in contract.bands],
        dn_max=contract.dn_max,
        shift_px=0,
        band_shift_px=0,
        field_px=0,
        pan_only_um=pan_only,
    )
    gsd_m = SIMULATED_SENSORS[sensor] * float(rng.uniform(0.8, 1.6))
    pair = image_scene(make_truth(rng, (side_px, side_px), (*centers, *pan_only), gsd_m), model, rng)
    return training_image(name, pair.pan.astype(np.float32), pair.truth.clip(0, contract.dn_max))


def _pair_files(config: TrainConfig, base: Path) -> tuple[list[Path], list[Path]]:
    """Pair files to train and to validate on; none is in both."""
    if config.pairs_dir is None:
        return [], []
    folder = (base / config.pairs_dir).resolve()
    held_out = {p for pattern in config.validation_pairs for p in folder.glob(f"{pattern}.npz")}
    chosen = {p for pattern in config.train_pairs for p in folder.glob(f"{pattern}.npz")} - held_out
    if not chosen:
        raise InvalidSceneError(f"no training pair in {folder} matches {config.train_pairs}; check pairs_dir")
    return sorted(chosen), sorted(held_out)


def load_data(config: TrainConfig, base: Path) -> tuple[TrainingData, TrainingData]:
    """What to train and to validate on; see ``load_images`` and ``pancollection.read_patches`` for errors."""
    if config.pancollection is None:
        return load_images(config, base)
    wanted, data = config.network.bands, config.pancollection
    sets = []
    for files in (data.train, data.validation):
        parts = [read_patches((base / file).resolve(), data.sensor) for file in files]
        if any(part.ms.shape[1] != wanted for part in parts):
            found = ", ".join(f"{part.name} {part.ms.shape[1]}" for part in parts)
            raise InvalidSceneError(f"network.bands is {wanted}, the files have: {found}; give the same number")
        sets.append(joined(parts))
    return sets[0], sets[1]


def data_hashes(config: TrainConfig, base: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file that is trained or validated on; simulated scenes follow from the seed."""
    files = [path for paths in _pair_files(config, base) for path in paths]
    files += [path.with_suffix(".json") for path in files]
    if config.pancollection is not None:
        files += [(base / f).resolve() for f in (*config.pancollection.train, *config.pancollection.validation)]
    return {path.name: file_sha256(path) for path in files}


def load_images(config: TrainConfig, base: Path) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Training and validation images: no scene is in both; simulated validation scenes have their own seeds.

    Raises:
        PancrafterError: There is nothing to train or validate on, or an image does not suit the configuration.
    """
    chosen, held_out = _pair_files(config, base)
    train = [load_pair(path) for path in chosen]
    validation = [load_pair(path) for path in held_out]
    side, held_out_count = config.simulated_px, max(2, config.simulated_scenes // 12) if config.simulated_scenes else 0
    train += [simulate_image(f"simulated-{k}", (config.seed, k), side) for k in range(config.simulated_scenes)]
    validation += [
        simulate_image(f"simulated-validation-{k}", (config.seed + 1, k), side) for k in range(held_out_count)
    ]
    _require_suitable(config, train, validation)
    return train, validation


def _require_suitable(config: TrainConfig, train: list[TrainingImage], validation: list[TrainingImage]) -> None:
    """Find out now what would otherwise stop the run at some later step."""
    for images, field in ((train, "train_pairs"), (validation, "validation_pairs")):
        if not images:
            raise PancrafterError(f"no image for {field}; set pairs_dir and {field}, or simulated_scenes above 0")
    needed = max(_outer_px(config, ratio) for ratio in config.ratios)
    bands = config.network.bands
    for image in train:
        if min(image.pan.shape) < needed or len(image.truth) < bands:
            raise InvalidSceneError(
                f"training image {image.name} has {len(image.truth)} bands of {image.pan.shape[0]} x "
                f"{image.pan.shape[1]} px, needs {bands} bands and {needed} px a side; leave it out or lower patch_px"
            )
    for image in validation:
        if min(image.pan.shape) < VALIDATION_MIN_PX or len(image.truth) % bands:
            raise InvalidSceneError(
                f"validation image {image.name} has {len(image.truth)} bands of {image.pan.shape[0]} x "
                f"{image.pan.shape[1]} px, needs a multiple of {bands} bands and {VALIDATION_MIN_PX} px a side"
            )


TrainingData = list[TrainingImage] | Patches
"""Images to cut patches from and degrade, or patches of the benchmark that are degraded already."""


@dataclass(frozen=True)
class Sample:
    """One network input and its target, normalised: ``pan`` (p, p), ``ms`` (B, p/r, p/r), ``truth`` (B, p, p)."""

    pan: Floats
    ms: Floats
    truth: Floats
    phases: NDArray[np.float64]
    """(B, 2) phases the network is told, PAN pixels."""
    injection: Floats
    """(B, p, p) injected detail."""


def _normalise(values: Floats, limits: ValueRange) -> Floats:
    return (2 * (values - limits.low) / (limits.high - limits.low) - 1).astype(np.float32)


def _jittered(limits: ValueRange, rng: np.random.Generator, augmentation: Augmentation) -> ValueRange:
    width = limits.high - limits.low
    low = limits.low + rng.uniform(-1, 1) * augmentation.range_offset * width
    return ValueRange(low=low, high=low + width * rng.uniform(*augmentation.range_stretch))


def _vary_detail(pan: Floats, gain: float) -> Floats:
    """PAN with its finest detail scaled: G(P) + gain (P - G(P)), G a Gaussian of one pixel, seven taps."""
    if gain == 1.0:
        return pan
    taps = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    taps /= taps.sum()
    smooth = pan
    for axis in (0, 1):
        smooth = np.apply_along_axis(lambda row: np.convolve(np.pad(row, 3, mode="edge"), taps, "valid"), axis, smooth)
    return (smooth + gain * (pan - smooth)).astype(np.float32)


def _margin_px(config: TrainConfig, ratio: int) -> int:
    """PAN pixels around a patch that its MS may draw on: shifts, and four MS pixels of blur."""
    shift = config.augmentation.known_shift_px + config.augmentation.large_residual_px
    return ratio * math.ceil(shift / ratio + 4)


def _side_px(config: TrainConfig, ratio: int) -> int:
    step = math.lcm(4, ratio)
    return config.patch_px // step * step


def _outer_px(config: TrainConfig, ratio: int) -> int:
    """Side of an image that holds one patch and its margin."""
    return _side_px(config, ratio) + 2 * _margin_px(config, ratio)


def draw_sample(
    image: TrainingImage, ratio: int, config: TrainConfig, rng: np.random.Generator, *, bands: int
) -> Sample:
    """Cut a patch, turn it at random, and take MS from its truth with a random MTF, shift and noise."""
    augmentation = config.augmentation
    side, margin, outer = _side_px(config, ratio), _margin_px(config, ratio), _outer_px(config, ratio)
    height, width = image.pan.shape
    y, x = rng.integers(0, height - outer + 1), rng.integers(0, width - outer + 1)
    chosen = rng.choice(len(image.truth), size=bands, replace=False)
    turn, flip_y, flip_x = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))

    def oriented(values: Floats) -> Floats:
        values = np.rot90(values[..., y : y + outer, x : x + outer], turn, axes=(-2, -1))
        values = values[..., ::-1, :] if flip_y else values
        return np.ascontiguousarray(values[..., ::-1] if flip_x else values)

    inner = slice(margin, margin + side)
    pan_dn = _vary_detail(oriented(image.pan), float(rng.choice(augmentation.pan_detail_gain)))[inner, inner]
    pan_dn = _with_noise(pan_dn, image.pan_range, augmentation, rng)
    pan = _normalise(pan_dn, _jittered(image.pan_range, rng, augmentation))

    # All bands are acquired, because all of them explain PAN; the network sees the chosen ones.
    count = len(image.truth)
    gain = float(rng.uniform(*augmentation.mtf_gain))
    known = rng.uniform(-augmentation.known_shift_px, augmentation.known_shift_px, (count, 2))
    if rng.uniform() < augmentation.large_residual_share:
        residual = np.tile(rng.uniform(-augmentation.large_residual_px, augmentation.large_residual_px, 2), (count, 1))
    else:
        residual = rng.normal(0, augmentation.small_residual_px, (count, 2))
    told = (ratio - 1) / 2 + known
    n, truth_dn = side // ratio, oriented(image.truth)
    ms_dn = np.stack(
        [_acquire(band, (n, n), ratio, margin + told[b] + residual[b], gain) for b, band in enumerate(truth_dn)]
    )
    ms_dn = np.stack([_with_noise(m, r, augmentation, rng) for m, r in zip(ms_dn, image.truth_ranges, strict=True)])
    limits = [_jittered(image.truth_ranges[b], rng, augmentation) for b in chosen]
    return Sample(
        pan,
        np.stack([_normalise(ms_dn[b], limit) for b, limit in zip(chosen, limits, strict=True)]),
        np.stack([_normalise(truth_dn[b][inner, inner], limit) for b, limit in zip(chosen, limits, strict=True)]),
        told[chosen],
        injected_detail(pan_dn, ms_dn, ratio, told, image.injection, dict(zip(chosen.tolist(), limits, strict=True))),
    )


def injected_detail(
    pan: Floats,
    ms: Floats,
    ratio: int,
    phases: NDArray[np.float64],
    constants: InjectionConstants,
    limits: Mapping[int, ValueRange],
) -> Floats:
    """The detail that the bands in ``limits`` would take from PAN, in their normalised units: (len(limits), y, x).

    ``pan`` (y, x) and ``ms`` (band, y / ratio, x / ratio) are DN, all bands of the scene; ``phases`` (band, 2).
    """
    detail = unexplained_pan(
        torch.from_numpy(pan)[None, None], torch.from_numpy(ms)[None], ratio, torch.from_numpy(phases)[None], constants
    )[0, 0].numpy()
    return np.stack([2 * constants.gains[b] / (limit.high - limit.low) * detail for b, limit in limits.items()])


def _with_noise(
    values: NDArray[Any], limits: ValueRange, augmentation: Augmentation, rng: np.random.Generator
) -> Floats:
    deviation = rng.uniform(0, augmentation.noise) * (limits.high - limits.low) / 2
    return (values + rng.normal(0, deviation, values.shape)).astype(np.float32)


def _acquire(band: Floats, shape_yx: tuple[int, int], ratio: int, phase_yx: NDArray[np.float64], gain: float) -> Floats:
    matrix_y = degrading_matrix(shape_yx[0], band.shape[0], ratio, float(phase_yx[0]), gain).astype(np.float32)
    matrix_x = degrading_matrix(shape_yx[1], band.shape[1], ratio, float(phase_yx[1]), gain).astype(np.float32)
    return np.asarray((matrix_x @ (matrix_y @ band).T).T)


def draw_patch(patches: Patches, config: TrainConfig, rng: np.random.Generator) -> Sample:
    """One patch of the benchmark, turned at random; its phase turns with it, since it is not the middle of four pixels.

    MS moves against PAN and truth by what the network is not told (METHOD 3.2): the told phase is wrong by that much.
    """
    index, augmentation = int(rng.integers(len(patches.pan))), config.augmentation
    turn, flip_y, flip_x = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))
    y = x = PHASE_PX
    for _ in range(turn):
        y, x = RATIO - 1 - x, y
    y, x = RATIO - 1 - y if flip_y else y, RATIO - 1 - x if flip_x else x

    def oriented(values: Floats) -> Floats:
        values = np.rot90(values, turn, axes=(-2, -1))
        values = values[..., ::-1, :] if flip_y else values
        return np.ascontiguousarray(values[..., ::-1] if flip_x else values)

    ceiling = ValueRange(low=0, high=patches.sensor.dn_max)
    pan = _vary_detail(oriented(patches.pan[index]), float(rng.choice(augmentation.pan_detail_gain)))
    if rng.uniform() < augmentation.large_residual_share:
        residual = rng.uniform(-augmentation.large_residual_px, augmentation.large_residual_px, 2)
    else:
        residual = rng.normal(0, augmentation.small_residual_px, 2)
    return Sample(
        pan=_normalise(pan, ceiling),
        ms=_normalise(oriented(patches.ms[index]), ceiling),
        truth=_normalise(oriented(patches.truth[index]), ceiling),
        phases=np.tile(np.array([y, x]) + residual, (patches.ms.shape[1], 1)),
        injection=np.zeros((0, *pan.shape), np.float32),
    )


def draw_batch(images: TrainingData, config: TrainConfig, step: int) -> tuple[int, list[Sample]]:
    """The batch of one step: one ratio, images drawn with a weight that grows with the root of their area."""
    rng = np.random.default_rng((config.seed, step, 7))
    if isinstance(images, Patches):
        return RATIO, [draw_patch(images, config, rng) for _ in range(config.batch)]
    ratio = int(rng.choice(list(config.ratios), p=np.array(list(config.ratios.values())) / sum(config.ratios.values())))
    weights = np.sqrt([image.pan.size for image in images])
    picks = rng.choice(len(images), size=config.batch, p=weights / weights.sum())
    return ratio, [draw_sample(images[i], ratio, config, rng, bands=config.network.bands) for i in picks]


def batch_loss(network: PanCrafter, ratio: int, samples: list[Sample], config: TrainConfig, device: str) -> Tensor:
    """METHOD Eq. 4: mean |F - GT| over the MS half plus lambda mean |P' - P| over the PAN half of the same pairs."""

    def stacked(values: list[Floats]) -> Tensor:
        return torch.from_numpy(np.stack(values)).to(device)

    pan, ms = stacked([s.pan for s in samples])[:, None], stacked([s.ms for s in samples])
    truth = stacked([s.truth for s in samples])
    phases = torch.from_numpy(np.stack([s.phases for s in samples]))
    injection = stacked([s.injection for s in samples]) if config.network.injected_detail else None
    n = len(samples)
    mode = torch.full((n,), MS_MODE, device=device)
    if config.network.mars:
        pan, ms, phases = pan.repeat(2, 1, 1, 1), ms.repeat(2, 1, 1, 1), phases.repeat(2, 1, 1)
        injection = None if injection is None else injection.repeat(2, 1, 1, 1)
        mode = torch.cat([mode, torch.full((n,), PAN_MODE, device=device)])
    conditions = build_conditions(pan, ms, ratio, phases, injection)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        output: Tensor = network(conditions, mode)
    loss: Tensor = (output[:n] - truth).abs().mean()
    if config.network.mars:
        loss = loss + config.pan_weight * (output[n:] - pan[n:]).abs().mean()
    return loss


VALIDATION_PATCHES = 256
"""Patches of a validation file that are scored, spread over it."""


@torch.inference_mode()
def patch_ergas(network: PanCrafter, patches: Patches, device: str, batch: int = 16) -> dict[str, float]:
    """Mean ERGAS, sharpened and cubic, over validation patches of the benchmark."""
    ceiling = float(patches.sensor.dn_max)
    chosen = np.unique(np.linspace(0, len(patches.pan) - 1, VALIDATION_PATCHES).round().astype(int))
    scores: dict[str, list[float]] = {"ergas": [], "ergas_cubic": []}
    for first in range(0, len(chosen), batch):
        part = chosen[first : first + batch]
        pan, ms = (torch.from_numpy(2 * a[part] / ceiling - 1).float() for a in (patches.pan[:, None], patches.ms))
        phases = torch.full((1, 1, 2), PHASE_PX, dtype=torch.float64).expand(*ms.shape[:2], 2)
        conditions = build_conditions(pan.to(device), ms.to(device), RATIO, phases)
        sharp = network(conditions, torch.zeros(len(part), dtype=torch.long, device=device)).cpu()
        for name, images in (("ergas", sharp), ("ergas_cubic", conditions.ms[0].cpu())):
            dn = ((images + 1) / 2 * ceiling).clamp(0, ceiling).numpy()
            scores[name] += [ergas(t, d, RATIO) for t, d in zip(patches.truth[part], dn, strict=True) if t.any()]
    return {name: float(np.mean(values)) for name, values in scores.items()}


@torch.inference_mode()
def validation_ergas(network: PanCrafter, images: list[TrainingImage], device: str) -> dict[str, float]:
    """Mean ERGAS, sharpened and cubic, over validation images at ratio 4 and 2, with a known and an unknown shift."""
    known, residual, gain = np.array([0.7, -0.4]), np.array([0.2, 0.15]), 0.28
    scores: dict[str, list[float]] = {"ergas": [], "ergas_cubic": []}
    for image, ratio in product(images, (4, 2)):
        side = [min(n, 256) // 4 * 4 for n in image.pan.shape]
        pan, truth = image.pan[: side[0], : side[1]], image.truth[:, : side[0], : side[1]]
        phase = (ratio - 1) / 2 + known
        ms = np.stack([_acquire(b, (side[0] // ratio, side[1] // ratio), ratio, phase + residual, gain) for b in truth])
        cubic = np.stack([upsample(b, pan.shape, ratio, (phase[0], phase[1])) for b in ms])
        sharp = sharpen_arrays(network, pan, ms, ratio, phase, image, device)
        core = (slice(None), slice(16, -16), slice(16, -16))
        scores["ergas"].append(ergas(truth[core], sharp[core], ratio))
        scores["ergas_cubic"].append(ergas(truth[core], cubic[core], ratio))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def sharpen_arrays(
    network: PanCrafter,
    pan: Floats,
    ms: Floats,
    ratio: int,
    phase: NDArray[np.float64],
    image: TrainingImage,
    device: str,
) -> Floats:
    """Sharpen one small pair whole, band groups in turn, in DN; ``image`` gives value ranges and injection."""
    bands, result = network.config.bands, []
    pan_input = torch.from_numpy(_normalise(pan, image.pan_range))[None, None].to(device)
    phases = np.tile(phase, (len(ms), 1))
    injection = None
    if network.config.injected_detail:
        limits = dict(enumerate(image.truth_ranges))
        detail = injected_detail(pan, ms.astype(np.float32), ratio, phases, image.injection, limits)
        injection = torch.from_numpy(detail)[None].to(device)
    for first in range(0, len(ms), bands):
        group = slice(first, first + bands)
        ranges = image.truth_ranges[group]
        normalised = np.stack([_normalise(b, r) for b, r in zip(ms[group], ranges, strict=True)])
        conditions = build_conditions(
            pan_input,
            torch.from_numpy(normalised)[None].to(device),
            ratio,
            torch.from_numpy(phases[None, group]),
            None if injection is None else injection[:, group],
        )
        output = network(conditions, torch.zeros(1, dtype=torch.long, device=device))[0].cpu().numpy()
        result += [(o + 1) / 2 * (r.high - r.low) + r.low for o, r in zip(output, ranges, strict=True)]
    return np.stack(result)


def _starting_network(config: TrainConfig) -> PanCrafter:
    """A fresh network, or the one that fine-tuning starts from.

    Raises:
        WeightsError: ``start`` has another architecture than ``network``; injected detail may be added to it.
    """
    if config.start is None:
        return PanCrafter(config.network)
    checkpoint = load_checkpoint(config.start)
    trained = checkpoint.network.config
    if trained not in (config.network, config.network.model_copy(update={"injected_detail": False})):
        raise WeightsError(
            f"weights {config.start} are of {trained}, expected {config.network}; "
            "give the same network in the configuration, or start afresh"
        )
    network, weights = PanCrafter(config.network), checkpoint.network.state_dict()
    stem = torch.zeros_like(network.stem.weight)  # inputs that are new count for nothing until they are trained
    stem[:, : trained.stem_channels] = weights["stem.weight"]
    network.load_state_dict({**weights, "stem.weight": stem})
    return network


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class Run:
    """The state of a training run in its folder: ``state.pt`` to resume, ``best.safetensors``, ``metrics.csv``."""

    folder: Path
    network: PanCrafter
    optimiser: torch.optim.Optimizer
    step: int = 0
    best: float = math.inf
    saved_step: int | None = None

    def save(self) -> None:
        """Write the resumable state; the file appears only when whole."""
        partial = self.folder / "state.partial"
        torch.save(
            {
                "network": self.network.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "best": self.best,
            },
            partial,
        )
        partial.replace(self.folder / "state.pt")
        self.saved_step = self.step

    def restore(self) -> None:
        """Continue from ``state.pt`` where there is one.

        Raises:
            PancrafterError: It is damaged, or the state of another network.
        """
        path = self.folder / "state.pt"
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.best = state["step"], state["best"]
            self.saved_step = self.step
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as err:
            raise PancrafterError(
                f"{path} cannot be continued with this configuration: {err}; use another folder, or delete the file"
            ) from err


def read_config(path: Path) -> TrainConfig:
    """Read a YAML training configuration.

    Raises:
        PancrafterError: Not readable or not valid; the message names the field.
    """
    try:
        return TrainConfig.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise PancrafterError(f"training configuration {path}: {err}") from err


def train(config_path: Path, folder: Path, *, device: str = "cpu") -> Path:
    """Train as ``config_path`` says; a second call on the same ``folder`` continues where the first one stopped.

    Returns:
        The checkpoint with the best validation ERGAS.

    Raises:
        PancrafterError: The configuration or an image is not usable, the folder holds another network's run, or the
            loss is no longer finite; the last good state stays in the folder.
    """
    keep_freed_memory()
    config = read_config(config_path)
    images, validation = load_data(config, config_path.parent)
    torch.manual_seed(config.seed)
    network = _starting_network(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, network, optimiser)
    run.restore()
    (folder / "config.yaml").write_text(config_path.read_text())
    record = provenance(config, config_path.parent, images, validation)
    (folder / "run.json").write_text(json.dumps({**record, "device": device}, indent=2) + "\n")
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as progress, MetricsLog(folder, run.step) as log:
        bar = progress.add_task("", total=config.steps, completed=run.step, note="")
        for loss in _steps(run, images, config, device):
            progress.update(bar, completed=run.step)
            if run.step % config.validate_every == 0 or run.step == config.steps:
                scores = _validate(network, validation, device)
                _require_finite(scores["ergas"], "validation ERGAS", run)
                log.write(run.step, {"loss": loss, **scores, "learning_rate": learning_rate(run.step - 1, config)})
                progress.update(bar, note=f"ERGAS {scores['ergas']:.3f} (cubic {scores['ergas_cubic']:.3f})")
                if scores["ergas"] < run.best:
                    run.best = scores["ergas"]
                    save_checkpoint(folder / "best.safetensors", network, {**record, "step": run.step, **scores})
                run.save()
    return folder / "best.safetensors"


def _validate(network: PanCrafter, validation: TrainingData, device: str) -> dict[str, float]:
    network.eval()
    if isinstance(validation, Patches):
        scores = patch_ergas(network, validation, device)
    else:
        scores = validation_ergas(network, validation, device)
    network.train()
    return scores


def provenance(
    config: TrainConfig, base: Path, images: TrainingData, validation: TrainingData
) -> dict[str, Any]:  # Any: plain JSON
    """What a run's weights come from: configuration, seed, data with their hashes, code."""
    names = [[d.name] if isinstance(d, Patches) else [image.name for image in d] for d in (images, validation)]
    return {
        "images": names[0],
        "validation": names[1],
        "config": config.model_dump(mode="json"),
        "data_sha256": data_hashes(config, base),
        "start_sha256": weights_sha256(config.start) if config.start is not None else None,
        "commit": code_commit(),
        "version": package_version("pancrafter"),
        "torch": str(torch.__version__),
    }


def code_commit() -> str | None:
    """The git commit this code was checked out from, with ``+changes`` where files differ; None outside git."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        asked = [git, "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  # git, fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return commit if commit is None else commit + ("+changes" if ask("status", "--porcelain", ".") else "")


class MetricsLog:
    """``metrics.csv``, and event files for TensorBoard where tensorboardX is installed (``pancrafter[train]``).

    A resumed run continues both. Columns: step, Unix time, loss, validation ERGAS, ERGAS of cubic up-sampling.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._csv = (folder / "metrics.csv").open("a", newline="")
        self._events = _event_writer(folder, first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add what was measured after ``step``; readers see it at once."""
        row = [step, f"{time.time():.0f}", f"{values['loss']:.5f}"]
        csv.writer(self._csv).writerow([*row, f"{values['ergas']:.4f}", f"{values['ergas_cubic']:.4f}"])
        self._csv.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._csv.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, first_step: int) -> Any:  # Any: tensorboardX has no types
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # file names hold only the second of their start: a run that goes on at once must not overwrite its beginning
    purge = first_step + 1 if first_step else None
    return SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".step-{first_step}")


def _require_finite(value: float, name: str, run: Run) -> None:
    if not math.isfinite(value):
        kept = "nothing was saved yet" if run.saved_step is None else f"of step {run.saved_step}"
        raise PancrafterError(
            f"{name} is {value} at step {run.step}; the last good state is in {run.folder} ({kept}); lower "
            "learning_rate"
        )


def _steps(run: Run, images: TrainingData, config: TrainConfig, device: str) -> Iterator[float]:
    """Optimise until the last step, yielding the mean loss of the last hundred steps."""
    recent: list[float] = []
    run.network.train()
    while run.step < config.steps:
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(run.step, config)
        ratio, samples = draw_batch(images, config, run.step)
        loss = batch_loss(run.network, ratio, samples, config, device)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        value = float(loss.detach())
        _require_finite(value, "loss", run)
        _require_finite(float(norm), "gradient norm", run)
        run.optimiser.step()
        run.step += 1
        recent = [*recent[-99:], value]
        yield float(np.mean(recent))
