"""Scenes as the simulator draws them, with what a measurement of them should find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pancrafter.sensors import SensorContract, get_contract
from pancrafter.simulate.imaging import ImagingModel, image_scene, random_model, truth_wavelengths
from pancrafter.simulate.truth import STYLES, make_truth

SENSORS = ("geoeye-1", "worldview-3", "landsat-8")
"""Sensors whose bands, MTF and band shifts the scenes have, in turn."""


@dataclass(frozen=True)
class Pair:
    """Pixels of one scene before staging."""

    name: str
    pan: NDArray[Any]
    ms: NDArray[Any]
    ratio: int
    contract: SensorContract
    bands: tuple[str, ...]


class SimulatedScene(NamedTuple):
    """A pair, its truth on the PAN grid (band, y, x), and how it was taken."""

    pair: Pair
    truth: NDArray[Any]
    model: ImagingModel


def simulated_scene(seed: int, *, all_bands: bool = False, side_px: int = 256, field_px: float = 0.2) -> SimulatedScene:
    """One scene with few or all bands of its sensor, whose shift deviates by ``field_px`` PAN pixels within it."""
    rng, contract = np.random.default_rng(1000 + seed), get_contract(SENSORS[seed % len(SENSORS)])
    few = contract.deliveries[0] if contract.name == "geoeye-1" else contract.band_sets[-1]
    bands = (contract.band_sets[0] if all_bands else few).bands
    specs = contract.subset(bands)
    dimmed = contract.model_copy(update={"dn_max": min(contract.dn_max, 10_000)})
    model = random_model(rng, dimmed, specs, field_px=field_px)
    gsd = 15.0 if contract.name == "landsat-8" else 0.5
    truth = make_truth(rng, (side_px, side_px), truth_wavelengths(specs), gsd, style=STYLES[seed % len(STYLES)])
    made = image_scene(truth, model, rng)
    pair = Pair(f"sim-{contract.name}-{seed}", made.pan, made.ms, contract.ratio, contract, tuple(bands))
    return SimulatedScene(pair, made.truth, model)
