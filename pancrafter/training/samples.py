"""What one step sees: patches cut, turned, shifted, blurred and normalised at random.

Everything random about step ``k`` comes from ``(seed, k)``, so a resumed run sees the data an unbroken one sees.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from multiprocessing.reduction import DupFd
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, Dataset

from pancrafter.classical import InjectionConstants
from pancrafter.model.conditions import unexplained_pan
from pancrafter.pancollection import PHASE_PX, RATIO, Patches
from pancrafter.resample import GAUSSIAN, GENERIC_MTF_GAIN, SHARPEST_GAIN, Mtf, degrading_matrix
from pancrafter.training.config import Augmentation, TrainConfig
from pancrafter.training.images import TrainingData, TrainingImage
from pancrafter.types import ValueRange

Floats = NDArray[np.float32]


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
    mtf: Mtf
    """MTF of the bands that network and reprojection are told."""
    uncertainty: float = 1.0
    """How far shift and told MTF may be off, and how noisy pixels may be, as a share of what the augmentation says."""
    weight: float = 1.0
    """How much an error counts: the more, the wider the range is that values were divided by."""


def normalise(values: Floats, limits: ValueRange) -> Floats:
    """DN as -1 at the low and +1 at the high end of ``limits``."""
    return (2 * (values - limits.low) / (limits.high - limits.low) - 1).astype(np.float32)


def _jittered(limits: ValueRange, rng: np.random.Generator, augmentation: Augmentation, stretch: float) -> ValueRange:
    width = limits.high - limits.low
    low = limits.low + rng.uniform(-1, 1) * augmentation.range_offset * width
    return ValueRange(low=low, high=low + stretch * width * rng.uniform(*augmentation.range_stretch))


def _vary_detail(image: Floats, gain: float) -> Floats:
    """An image (..., y, x) with its finest detail scaled: G(I) + gain (I - G(I)), G a Gaussian of one pixel, 7 taps."""
    if gain == 1.0:
        return image
    smooth = np.asarray(gaussian_filter(image, 1.0, mode="nearest", radius=3, axes=(-2, -1)))
    return np.asarray(smooth + gain * (image - smooth), np.float32)


def draw_sample(
    image: TrainingImage, ratio: int, config: TrainConfig, rng: np.random.Generator, *, bands: int
) -> Sample:
    """Cut a patch, turn it at random, and take MS from its truth with a random MTF, shift and noise."""
    augmentation = config.augmentation
    side, margin, outer = config.side_px(ratio), config.margin_px(ratio), config.outer_px(ratio)
    step = _step_px(min(image.pan.shape), outer, augmentation, rng)
    height, width = (n - step * (outer - 1) for n in image.pan.shape)
    y, x = rng.integers(0, height), rng.integers(0, width)
    rows, cols = (slice(start, start + step * outer, step) for start in (y, x))
    chosen = rng.choice(len(image.truth), size=bands, replace=False)
    turn, flip_y, flip_x = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))

    def oriented(values: Floats) -> Floats:
        values = np.rot90(values[..., rows, cols], turn, axes=(-2, -1))
        values = values[..., ::-1, :] if flip_y else values
        return np.ascontiguousarray(values[..., ::-1] if flip_x else values)

    uncertainty = float(rng.uniform()) if config.network.told_uncertainty else 1.0
    noise = uncertainty * augmentation.noise
    inner = slice(margin, margin + side)
    least, most = augmentation.detail_gain
    crisp = math.exp(rng.uniform(math.log(least), math.log(most))) if least < most else least
    pan_dn = _vary_detail(oriented(image.pan), crisp * float(rng.choice(augmentation.pan_detail_gain)))[inner, inner]
    pan_dn = _with_noise(pan_dn, image.pan_range, noise, rng)
    widest = augmentation.widest_range
    stretch = widest ** max(0.0, rng.uniform(-1, 1)) if widest > 1 else 1.0
    pan = normalise(pan_dn, _jittered(image.pan_range, rng, augmentation, stretch))

    # All bands are acquired, because all of them explain PAN; the network sees the chosen ones.
    count = len(image.truth)
    mtf = _drawn_mtf(augmentation, rng)
    known = rng.uniform(-augmentation.known_shift_px, augmentation.known_shift_px, (count, 2))
    if rng.uniform() < uncertainty * augmentation.large_residual_share:
        residual = np.tile(rng.uniform(-augmentation.large_residual_px, augmentation.large_residual_px, 2), (count, 1))
    else:
        residual = rng.normal(0, uncertainty * augmentation.small_residual_px, (count, 2))
    told = (ratio - 1) / 2 + known
    n, truth_dn = side // ratio, _vary_detail(oriented(image.truth), crisp)
    ms_dn = np.stack(
        [acquire(band, (n, n), ratio, margin + told[b] + residual[b], mtf) for b, band in enumerate(truth_dn)]
    )
    ms_dn = np.stack([_with_noise(m, r, noise, rng) for m, r in zip(ms_dn, image.truth_ranges, strict=True)])
    limits = [_jittered(image.truth_ranges[b], rng, augmentation, stretch) for b in chosen]
    off = uncertainty * augmentation.told_mtf_error if config.reprojection else 0.0
    return Sample(
        pan,
        np.stack([normalise(ms_dn[b], limit) for b, limit in zip(chosen, limits, strict=True)]),
        np.stack([normalise(truth_dn[b][inner, inner], limit) for b, limit in zip(chosen, limits, strict=True)]),
        told[chosen],
        injected_detail(pan_dn, ms_dn, ratio, told, image.injection, dict(zip(chosen.tolist(), limits, strict=True))),
        _misjudged(mtf, off, rng),
        uncertainty,
        stretch,
    )


def _drawn_mtf(augmentation: Augmentation, rng: np.random.Generator) -> Mtf:
    gaussian = Mtf(float(rng.uniform(*augmentation.mtf_gain)))
    if augmentation.steeper_share == 0 or rng.uniform() >= augmentation.steeper_share:
        return gaussian
    steepness = math.log(augmentation.steepest / GAUSSIAN) * rng.uniform()
    return Mtf.of_half(float(rng.uniform(*augmentation.steeper_half)), GAUSSIAN * math.exp(steepness))


def _misjudged(mtf: Mtf, off: float, rng: np.random.Generator) -> Mtf:
    """What is told of an MTF: a Gaussian's gain off by a share of deviation ``off``, else half response and shape."""
    if off == 0:
        return mtf
    if mtf.shape == GAUSSIAN:
        return Mtf(min(mtf.gain * math.exp(rng.normal(0, off)), SHARPEST_GAIN))
    half, shape = mtf.half * math.exp(rng.normal(0, off / 4)), mtf.shape * math.exp(rng.normal(0, 2 * off))
    return Mtf.of_half(half, max(shape, GAUSSIAN))


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


def _step_px(side_px: int, outer_px: int, augmentation: Augmentation, rng: np.random.Generator) -> int:
    """Step between the pixels of a patch: 2 for ``subsampled_share`` of those for which the image is large enough."""
    wanted = augmentation.subsampled_share > 0 and rng.uniform() < augmentation.subsampled_share
    return 2 if wanted and side_px > 2 * (outer_px - 1) else 1


def _with_noise(values: NDArray[Any], limits: ValueRange, most: float, rng: np.random.Generator) -> Floats:
    deviation = rng.uniform(0, most) * (limits.high - limits.low) / 2
    return (values + rng.normal(0, deviation, values.shape)).astype(np.float32)


def acquire(
    band: Floats, shape_yx: tuple[int, int], ratio: int, phase_yx: NDArray[np.float64], mtf: Mtf | float
) -> Floats:
    """A band (y, x) as a sensor with this MTF would sample it: ``shape_yx`` pixels, pixel 0 at ``phase_yx``."""
    matrix_y = degrading_matrix(shape_yx[0], band.shape[0], ratio, float(phase_yx[0]), mtf).astype(np.float32)
    matrix_x = degrading_matrix(shape_yx[1], band.shape[1], ratio, float(phase_yx[1]), mtf).astype(np.float32)
    return np.asarray((matrix_x @ (matrix_y @ band).T).T)


def draw_patch(patches: Patches, config: TrainConfig, rng: np.random.Generator) -> Sample:
    """One patch of the benchmark, turned at random; its phase turns with it, since it is not the middle of four pixels.

    MS moves against PAN and truth by what the network is not told: the told phase is wrong by that much.
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
        pan=normalise(pan, ceiling),
        ms=normalise(oriented(patches.ms[index]), ceiling),
        truth=normalise(oriented(patches.truth[index]), ceiling),
        phases=np.tile(np.array([y, x]) + residual, (patches.ms.shape[1], 1)),
        injection=np.zeros((0, *pan.shape), np.float32),
        mtf=Mtf(GENERIC_MTF_GAIN),
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


class _Batches(Dataset[tuple[int, list[Sample]]]):
    """The batch of every step by its number; processes that it is sent to share one copy of the pixels."""

    def __init__(self, images: TrainingData, config: TrainConfig) -> None:
        self._images, self._config = images, config

    def __getitem__(self, step: int) -> tuple[int, list[Sample]]:
        return draw_batch(self._images, self._config, step)

    @cached_property
    def _written(self) -> tuple[bytes, list[int], BinaryIO]:
        """All but the arrays, pickled; their sizes, bytes; and a file without a name that holds them."""
        arrays: list[pickle.PickleBuffer] = []
        frame = pickle.dumps((self._images, self._config), protocol=5, buffer_callback=arrays.append)
        file = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as processes may be started
        sizes = [file.write(array.raw()) for array in arrays]
        file.flush()
        return frame, sizes, file

    def __getstate__(self) -> tuple[bytes, list[int], Any]:  # Any: a descriptor on its way
        frame, sizes, file = self._written
        return frame, sizes, DupFd(file.fileno())

    def __setstate__(self, state: tuple[bytes, list[int], Any]) -> None:
        frame, sizes, descriptor = state
        with os.fdopen(descriptor.detach(), "rb") as file:
            pixels = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        ends = list(accumulate(sizes))
        arrays = [pixels[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        self._images, self._config = pickle.loads(frame, buffers=arrays)  # noqa: S301  # our own


def batches(images: TrainingData, config: TrainConfig, first: int, loaders: int) -> Iterator[tuple[int, list[Sample]]]:
    """The batches of the steps from ``first`` on, prepared by so many processes (0: by this one, when it is asked).

    They are started anew, not forked: this process has threads by now, and may have a GPU.
    """
    steps, context = range(first, config.steps), "spawn" if loaders else None
    loader = DataLoader(
        _Batches(images, config),
        None,
        sampler=steps,
        num_workers=loaders,
        collate_fn=_as_it_is,
        multiprocessing_context=context,
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:  # Any: torch's stubs know only lists of samples
    return batch
