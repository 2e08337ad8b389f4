"""What there is to train on: real pairs by Wald's protocol, simulated scenes, patches of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pancrafter.classical import InjectionConstants, fit_injection, injection_sums
from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.model.names import file_sha256
from pancrafter.pair_files import files_of, find_pairs
from pancrafter.pairs import CheckedPair, measured_phases, read_checked, value_range
from pancrafter.pancollection import Patches, joined, read_patches
from pancrafter.resample import GENERIC_MTF_GAIN, degrade
from pancrafter.sensors import get_contract, load_contracts
from pancrafter.sharpness import combine, sharpness
from pancrafter.simulate.imaging import image_scene, pan_only_wavelengths, random_model, truth_wavelengths
from pancrafter.simulate.truth import make_truth
from pancrafter.training.config import TrainConfig
from pancrafter.types import ValueRange

Floats = NDArray[np.float32]


VALIDATION_MIN_PX = 64
"""Least side of a validation image; 16 pixels at each border are not scored."""

MARGIN_MS_PX = 4
"""Cut off at the border of a real pair: MS pixels there may lie outside PAN, so no shift may be larger."""


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
    ranges = value_range(pan), tuple(value_range(band) for band in truth)
    # in one piece, as loaders share it (samples.batches)
    return TrainingImage(name, np.ascontiguousarray(pan), np.ascontiguousarray(truth), *ranges, injection)


def load_pair(path: Path) -> TrainingImage:
    """A real pair, brought one scale down (Wald): its MS becomes the truth, its PAN is sampled at the MS pixels.

    PAN is sampled where the MS content really lies (the shift in the pair's JSON; measured where it has none) and made
    as blurred as MS is measured to be, so truth and PAN agree without touching a single MS value.

    Raises:
        InvalidSceneError: As ``pairs.read_checked``, or the shift is larger than the margin that is cut off.
    """
    found = read_checked(path, load_contracts(), with_truth=False)
    centre, ratio = _common_phase(found, path), found.ratio
    pan, ms = found.pan.astype(np.float32), found.ms.astype(np.float32)
    blur = combine([sharpness(pan, ms, ratio, (centre,))]) or GENERIC_MTF_GAIN
    reduced = degrade(pan, ms.shape[1:], ratio, centre, blur).astype(np.float32)
    inner = slice(MARGIN_MS_PX, -MARGIN_MS_PX)
    return training_image(found.name, reduced[inner, inner], ms[:, inner, inner])


def _common_phase(pair: CheckedPair, path: Path) -> tuple[float, float]:
    """Where MS pixel 0 lies on the PAN grid, all bands together, PAN pixels."""
    stated = pair.description.shift.shift_pan_px
    if stated is None:
        gain = float(np.mean(pair.nominal_gains))
        y, x = np.median(measured_phases(pair.pan, pair.ms, pair.ratio, gain, pair.phase_yx), axis=0)
        return float(y), float(x)
    most = MARGIN_MS_PX * pair.ratio
    if max(map(abs, stated)) > most:
        raise InvalidSceneError(
            f"{path}: its description says shift.shift_pan_px {list(stated)}, expected {most} PAN px at most; mend it, "
            "or leave it out to have it measured"
        )
    return pair.phase_yx[0] + stated[0], pair.phase_yx[1] + stated[1]


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


def simulate_image(name: str, seed: tuple[int, ...], side_px: int) -> TrainingImage:
    """PAN and truth of a simulated scene, seen by a sensor and at a scale drawn at random."""
    rng = np.random.default_rng(seed)
    fine = [name for name in SIMULATED_SENSORS if name != "landsat-8"]
    sensor = "landsat-8" if rng.uniform() < COARSE_SHARE else str(rng.choice(fine))
    contract = get_contract(sensor)
    bands, pan_only = contract.bands, pan_only_wavelengths(contract)
    model = random_model(rng, contract, bands, shift_px=0, band_shift_px=0, field_px=0, pan_only_um=pan_only)
    gsd_m = SIMULATED_SENSORS[sensor] * float(rng.uniform(0.8, 1.6))
    pair = image_scene(make_truth(rng, (side_px, side_px), truth_wavelengths(bands, pan_only), gsd_m), model, rng)
    return training_image(name, pair.pan.astype(np.float32), pair.truth.clip(0, contract.dn_max))


def _pair_files(config: TrainConfig, base: Path) -> tuple[list[Path], list[Path]]:
    """Pair files to train and to validate on; none is in both."""
    if config.pairs_dir is None:
        return [], []
    folder = (base / config.pairs_dir).resolve()

    def found(field: str, patterns: tuple[str, ...]) -> set[Path]:
        pairs = {pattern: find_pairs(folder, pattern) for pattern in patterns}
        if nothing := [pattern for pattern, files in pairs.items() if not files]:
            raise InvalidSceneError(
                f"{field}: no pair in {folder} matches {', '.join(nothing)}; correct it or pairs_dir"
            )
        return set(chain.from_iterable(pairs.values()))

    held_out = found("validation_pairs", config.validation_pairs)
    chosen = found("train_pairs", config.train_pairs) - held_out
    if not chosen:
        raise InvalidSceneError(f"train_pairs {list(config.train_pairs)} leaves none in {folder} to train on; add some")
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
    """SHA-256 (hex) of every file that is trained or validated on; simulated scenes follow from the seed.

    Raises:
        InvalidSceneError: No pair is meant by the patterns, a file cannot be read, or one is for both.
    """
    train, validation = _pair_files(config, base)
    beside = [file for path in (*train, *validation) for file in files_of(path)[1:]]
    if config.pancollection is not None:
        train += [(base / file).resolve() for file in config.pancollection.train]
        validation += [(base / file).resolve() for file in config.pancollection.validation]
    try:
        hashes = {path: file_sha256(path) for path in (*train, *validation, *beside)}
    except OSError as err:
        raise InvalidSceneError(f"{err.filename}: not a readable file ({err.strerror}); mend its path") from err
    taught = {hashes[path] for path in train}
    if both := [path.name for path in validation if hashes[path] in taught]:
        raise InvalidSceneError(
            f"{', '.join(both)}: to validate on, and the same file is to train on, so the best step would be chosen by "
            "what was learned; name other files"
        )
    return {path.name: sha256 for path, sha256 in hashes.items()}


def load_images(config: TrainConfig, base: Path) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Training and validation images: no scene is in both, nor is a simulated validation scene in any seed's training.

    Raises:
        PancrafterError: There is nothing to train or validate on, or an image does not suit the configuration.
    """
    chosen, held_out = _pair_files(config, base)
    train = [load_pair(path) for path in chosen]
    validation = [load_pair(path) for path in held_out]
    side, held_out_count = config.simulated_px, max(2, config.simulated_scenes // 12) if config.simulated_scenes else 0
    train += [simulate_image(f"simulated-{k}", (config.seed, k), side) for k in range(config.simulated_scenes)]
    validation += [
        simulate_image(f"simulated-validation-{config.seed}-{k}", (config.seed, k, 1), side)
        for k in range(held_out_count)
    ]
    _require_suitable(config, train, validation)
    return train, validation


def _require_suitable(config: TrainConfig, train: list[TrainingImage], validation: list[TrainingImage]) -> None:
    """Find out now what would otherwise stop the run at some later step."""
    for images, field in ((train, "train_pairs"), (validation, "validation_pairs")):
        if not images:
            raise PancrafterError(f"no image for {field}; set pairs_dir and {field}, or simulated_scenes above 0")
    needed = max(config.outer_px(ratio) for ratio in config.ratios)
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
