"""What a training run is told: one YAML file as one frozen value."""

from __future__ import annotations

import math
from pathlib import Path

import yaml
from pydantic import Field, PositiveFloat, ValidationError, field_validator, model_validator

from pancrafter.errors import PancrafterError
from pancrafter.model.config import NetworkConfig
from pancrafter.model.names import shipped_weights
from pancrafter.plain_yaml import parse_yaml
from pancrafter.types import Record, faults_of


class Augmentation(Record):
    """How far the simulated acquisition strays. Pixels are PAN pixels, gains are at the MS Nyquist frequency."""

    mtf_gain: tuple[float, float] = (0.15, 0.40)
    steeper_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of samples whose MTF falls more steeply than a Gaussian, as that of processed products.",
    )
    steepest: float = Field(
        default=8.0, ge=2, description="Largest shape of theirs (resample.Mtf), log-uniform from a Gaussian's 2."
    )
    steeper_half: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 1.05), description="Where theirs have fallen to a half, as a share of the MS Nyquist frequency."
    )
    known_shift_px: float = Field(default=2.0, description="Shift that the network is told, uniform within +-.")
    small_residual_px: float = Field(
        default=0.3,
        description="Unknown shift of most samples (standard deviation); networks with told_uncertainty learn with "
        "shares of it, of large_residual_share, told_mtf_error and noise, and are told the share.",
    )
    large_residual_px: float = Field(default=3.0, description="Unknown shift of the other samples, uniform within +-.")
    large_residual_share: float = 0.3
    noise: float = Field(default=0.01, description="Largest noise deviation, as a share of the value range.")
    range_stretch: tuple[float, float] = (0.7, 1.5)
    range_offset: float = 0.15
    widest_range: float = Field(
        default=1.0,
        ge=1,
        description="Ranges of half of the samples reach further up, all channels alike, log-uniform up to this "
        "factor: as where clouds lie in a scene, which leave little of its range to the ground.",
    )
    pan_detail_gain: tuple[float, ...] = (0.75, 1.0, 1.0, 1.25)
    detail_gain: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(1.0, 1.0),
        description="Factor on the finest detail of PAN and truth alike, log-uniform: as smooth, and as crisp, as "
        "products get.",
    )
    subsampled_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of patches cut from every other row and column: as sharp, and as aliased, as imagery gets.",
    )
    told_mtf_error: float = Field(
        default=0.08, ge=0, description="Standard deviation by which the MTF told to reprojection is off, as a share."
    )

    @field_validator("detail_gain")
    @classmethod
    def _least_first(cls, gains: tuple[float, float]) -> tuple[float, float]:
        if gains[0] > gains[1]:
            raise ValueError(f"detail_gain is {list(gains)}, expected the least first")
        return gains


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
    start: str | None = Field(
        default=None,
        description="Weights to fine-tune, by name or by path relative to the config file; None starts afresh.",
    )
    mean_with: str | None = Field(
        default=None,
        description="Weights of the same network, named like those of ``start``, that the trained ones come from: what "
        "is validated and kept is the mean of both (Wortsman et al. 2022, Robust fine-tuning of zero-shot models).",
    )
    pairs_dir: str | None = Field(
        default=None, description="Folder of pairs, as docs/quality.md lays them out; relative to the config file."
    )
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
    clip_norm: float | None = Field(
        default=1.0,
        gt=0,
        description="Norm that a step's gradients are scaled down to where theirs is larger; None leaves them alone.",
    )
    pan_weight: float = Field(default=1.0, description="Lambda of the PAN reconstruction loss.")
    pan_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of a batch whose PAN is reconstructed too, one sample at least; the published method: all.",
    )
    reprojection: bool = Field(
        default=False, description="Judge results after the step that puts MS back (PAN is not put back in training)."
    )
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
        if self.pancollection is not None and self.network.matched_lowpass:
            raise ValueError("pancollection: the published low-pass PAN has a fixed MTF; switch matched_lowpass off")
        if self.pancollection is not None and self.reprojection:
            raise ValueError("pancollection: the published protocol knows no reprojection; switch that off")
        return self

    @model_validator(mode="after")
    def _reprojection_leaves_something(self) -> TrainConfig:
        if self.reprojection and self.patch_px < 32:
            raise ValueError(f"patch_px is {self.patch_px}, expected 32 or more: reprojection needs what lies around")
        return self

    @field_validator("ratios")
    @classmethod
    def _ratios_have_shares(cls, ratios: dict[int, float]) -> dict[int, float]:
        if not ratios or min(ratios) < 2 or max(ratios) > 4 or min(ratios.values()) <= 0:
            raise ValueError(f"ratios are {ratios}, expected one or more of 2, 3, 4 with positive shares")
        return ratios

    def margin_px(self, ratio: int) -> int:
        """PAN pixels around a patch that its MS may draw on: shifts, and four MS pixels of blur."""
        shift = self.augmentation.known_shift_px + self.augmentation.large_residual_px
        return ratio * math.ceil(shift / ratio + 4)

    def side_px(self, ratio: int) -> int:
        """Side of a patch at a ratio."""
        step = math.lcm(4, ratio)
        return self.patch_px // step * step

    def outer_px(self, ratio: int) -> int:
        """Side of an image that holds one patch and its margin."""
        return self.side_px(ratio) + 2 * self.margin_px(ratio)


def read_config(path: Path) -> TrainConfig:
    """Read a YAML training configuration; weights that have no shipped name are looked for beside it.

    Raises:
        PancrafterError: Not readable or not valid; the message names the field.
    """
    try:
        config = TrainConfig.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except ValidationError as err:
        raise PancrafterError(f"training configuration {path}: {faults_of(err)}; mend these fields") from err
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise PancrafterError(f"training configuration {path}: {err}") from err
    given = {"start": config.start, "mean_with": config.mean_with}
    beside = {field: str(path.parent / name) for field, name in given.items() if name and name not in shipped_weights()}
    return config.model_copy(update=beside)
