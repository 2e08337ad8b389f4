"""Simulated satellite scenes with known truth: surface, imaging chain, and a small STAC archive made of them."""

from pancrafter.simulate.archive import ARCHIVE_FORMAT, TRUTH_FOLDER, simulate_archive
from pancrafter.simulate.imaging import (
    ImagingModel,
    ShiftField,
    SimulatedPair,
    image_scene,
    random_model,
    random_shift_field,
    truth_wavelengths,
    without_shift,
)
from pancrafter.simulate.truth import STYLES, make_truth

__all__ = [
    "ARCHIVE_FORMAT",
    "STYLES",
    "TRUTH_FOLDER",
    "ImagingModel",
    "ShiftField",
    "SimulatedPair",
    "image_scene",
    "make_truth",
    "random_model",
    "random_shift_field",
    "simulate_archive",
    "truth_wavelengths",
    "without_shift",
]
