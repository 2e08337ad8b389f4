"""How good a network is after some steps: ERGAS on images that it is not trained on."""

from __future__ import annotations

from itertools import cycle, product

import numpy as np
import torch
from numpy.typing import NDArray

from pancrafter.errors import InvalidSceneError
from pancrafter.metrics import ergas
from pancrafter.model.conditions import build_conditions
from pancrafter.model.network import PanCrafter
from pancrafter.model.reprojection import reprojected
from pancrafter.pancollection import PHASE_PX, RATIO, Patches
from pancrafter.resample import GENERIC_MTF_GAIN, Mtf, upsample
from pancrafter.training.images import TrainingData, TrainingImage
from pancrafter.training.samples import acquire, injected_detail, normalise

Floats = NDArray[np.float32]


VALIDATION_MTFS = (Mtf(0.28), Mtf(0.1), Mtf(0.45), Mtf(0.15, 4.0))
"""MTF of the bands, of one validation image after the other."""

VALIDATION_PATCHES = 256
"""Patches of a validation file that are scored, spread over it."""


@torch.inference_mode()
def patch_ergas(network: PanCrafter, patches: Patches, device: str, batch: int = 16) -> dict[str, float]:
    """Mean ERGAS, sharpened and cubic, over validation patches of the benchmark; those with an empty band have none."""
    ceiling = float(patches.sensor.dn_max)
    chosen = np.unique(np.linspace(0, len(patches.pan) - 1, VALIDATION_PATCHES).round().astype(int))
    scores: dict[str, list[float]] = {"ergas": [], "ergas_cubic": []}
    for first in range(0, len(chosen), batch):
        part = chosen[first : first + batch]
        pan, ms = (torch.from_numpy(2 * a[part] / ceiling - 1).float() for a in (patches.pan[:, None], patches.ms))
        phases = torch.full((1, 1, 2), PHASE_PX, dtype=torch.float64).expand(*ms.shape[:2], 2)
        conditions = build_conditions(pan.to(device), ms.to(device), RATIO, phases)
        sharp = network(conditions, torch.zeros(len(part), dtype=torch.long, device=device))[:, : ms.shape[1]].cpu()
        for name, images in (("ergas", sharp), ("ergas_cubic", conditions.ms[0].cpu())):
            dn = ((images + 1) / 2 * ceiling).clamp(0, ceiling).numpy()
            pairs = zip(patches.truth[part], dn, strict=True)
            scores[name] += [ergas(t, d, RATIO) for t, d in pairs if t.any(axis=(1, 2)).all()]
    return {name: float(np.mean(values)) for name, values in scores.items()}


@torch.inference_mode()
def validation_ergas(
    network: PanCrafter, images: list[TrainingImage], device: str, *, reprojection: bool = False
) -> dict[str, float]:
    """Mean ERGAS, sharpened and cubic, over validation images at ratio 4 and 2, with a known and an unknown shift.

    MS is as sharp as one of ``VALIDATION_MTFS``, image after image, and the network told so if it takes that. With
    ``reprojection`` the results count with MS put back, by the true MTF; PAN is not put back as the engine does.
    """
    known, residual = np.array([0.7, -0.4]), np.array([0.2, 0.15])
    scores: dict[str, list[float]] = {"ergas": [], "ergas_cubic": []}
    for (image, mtf), ratio in product(zip(images, cycle(VALIDATION_MTFS), strict=False), (4, 2)):
        pan, truth = _judged(image)
        side = pan.shape
        phase = (ratio - 1) / 2 + known
        ms = np.stack([acquire(b, (side[0] // ratio, side[1] // ratio), ratio, phase + residual, mtf) for b in truth])
        cubic = np.stack([upsample(b, pan.shape, ratio, (phase[0], phase[1])) for b in ms])
        sharp = sharpen_arrays(network, pan, ms, ratio, phase, image, device, mtf, reprojection=reprojection)
        scores["ergas"].append(ergas(truth[_CORE], sharp[_CORE], ratio))
        scores["ergas_cubic"].append(ergas(truth[_CORE], cubic[_CORE], ratio))
    return {name: float(np.mean(values)) for name, values in scores.items()}


_CORE = (slice(None), slice(16, -16), slice(16, -16))


def _judged(image: TrainingImage) -> tuple[Floats, Floats]:
    """PAN and truth of the part of a validation image that is sharpened; its border is not scored."""
    rows, cols = (slice(min(n, 256) // 4 * 4) for n in image.pan.shape)
    return image.pan[rows, cols], image.truth[:, rows, cols]


def require_scores(validation: TrainingData) -> None:
    """Find out before the first step that ERGAS of a validation image would divide by nothing.

    Raises:
        InvalidSceneError: A band is 0 in all of the part that is scored.
    """
    for image in [] if isinstance(validation, Patches) else validation:
        if empty := np.flatnonzero(~_judged(image)[1][_CORE].any(axis=(1, 2))).tolist():
            raise InvalidSceneError(
                f"validation image {image.name}: nothing but DN 0 in the part that is scored (the first 256 px a side) "
                f"in bands {empty}, counted from 0; cut it to where there is image, or validate on another"
            )


def sharpen_arrays(
    network: PanCrafter,
    pan: Floats,
    ms: Floats,
    ratio: int,
    phase: NDArray[np.float64],
    image: TrainingImage,
    device: str,
    mtf: Mtf | float = GENERIC_MTF_GAIN,
    *,
    reprojection: bool = False,
) -> Floats:
    """Sharpen one small pair whole, band groups in turn, in DN; ``image`` gives value ranges and injection.

    ``mtf`` is the bands'; with ``reprojection`` results are brought into agreement with MS.
    """
    told = mtf if network.config.matched_lowpass else GENERIC_MTF_GAIN
    bands, result = network.config.bands, []
    pan_input = torch.from_numpy(normalise(pan, image.pan_range))[None, None].to(device)
    phases = np.tile(phase, (len(ms), 1))
    injection = None
    if network.config.injected_detail:
        limits = dict(enumerate(image.truth_ranges))
        detail = injected_detail(pan, ms.astype(np.float32), ratio, phases, image.injection, limits)
        injection = torch.from_numpy(detail)[None].to(device)
    for first in range(0, len(ms), bands):
        group = slice(first, first + bands)
        ranges = image.truth_ranges[group]
        normalised = np.stack([normalise(b, r) for b, r in zip(ms[group], ranges, strict=True)])
        ms_input, group_phases = torch.from_numpy(normalised)[None].to(device), torch.from_numpy(phases[None, group])
        conditions = build_conditions(
            pan_input, ms_input, ratio, group_phases, None if injection is None else injection[:, group], [told]
        )
        output = network(conditions, torch.zeros(1, dtype=torch.long, device=device))
        if reprojection:
            mtfs = torch.tensor([[Mtf.of(mtf)] * group_phases.shape[1]], dtype=torch.float64)
            output = reprojected(output, ms_input, ratio, group_phases, mtfs)
        dn = output[0].cpu().numpy()[: len(ranges)]
        result += [(o + 1) / 2 * (r.high - r.low) + r.low for o, r in zip(dn, ranges, strict=True)]
    return np.stack(result)


def validate(
    network: PanCrafter, validation: TrainingData, device: str, *, reprojection: bool = False
) -> dict[str, float]:
    """Mean ERGAS, sharpened and cubic, over what a run validates on."""
    network.eval()
    if isinstance(validation, Patches):
        scores = patch_ergas(network, validation, device)
    else:
        scores = validation_ergas(network, validation, device, reprojection=reprojection)
    network.train()
    return scores
