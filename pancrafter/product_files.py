"""The files of a product, written from a finished scene store: COGs, pictures, and what is said of them as assets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pancrafter.assess import inconsistent_pixels
from pancrafter.cog import Block, CogInfo, reason_bits, write_cog, write_quality_raster, write_reason_mask
from pancrafter.errors import InvalidSceneError
from pancrafter.item import MASK, QUALITY, SHARPENED, THUMBNAIL, AssetFile, cog_asset, picture_asset
from pancrafter.preview import CROP_PX, busiest_crop, comparison_picture, write_thumbnail
from pancrafter.pyramid import neighbours_together
from pancrafter.resample import upsample
from pancrafter.sensors import BandSpec
from pancrafter.settings import Settings
from pancrafter.store import SceneStore, widened_window, window_inside
from pancrafter.tiles import band_phases, dn_limits, measured_window, ms_window, valid_window
from pancrafter.types import StagedScene

EDGE_REACH_PX = 144
"""Pixels closer than this to missing data are marked in the mask: filled values may have reached them. The halo of the
largest build is 143 without shifts."""


def write_assets(staged: StagedScene, bands: tuple[BandSpec, ...], folder: Path, settings: Settings) -> list[AssetFile]:
    """The sharpened COG, its mask and quality raster, the thumbnail and the before/after picture, as local files.

    Raises:
        TransientReadError: Blocks of the result are gone; the next run sharpens the scene anew.
        InvalidSceneError: The store lost pixels otherwise.
    """
    store, names = SceneStore.open(staged.store_uri), [band.common_name for band in bands]
    store.require_result()
    bright: list[bool] = []
    image = write_cog(
        folder / "sharpened.tif",
        _image_blocks(store, bright),
        grid=staged.grid.pan,
        count=len(bands),
        dtype=staged.dtype,
        nodata=staged.nodata,
        band_names=[band.name for band in bands],
        scale=staged.scale,
        offset=staged.offset,
        profile=settings.cog_profile,
        threads=settings.threads,
    )
    _require_all_pixels(image, staged)
    mask = write_reason_mask(
        folder / "mask.tif",
        _mask_blocks(store, bright),
        grid=staged.grid.pan,
        profile=settings.cog_profile,
        threads=settings.threads,
    )
    quality = write_quality_raster(
        folder / "quality.tif", store.read_consistency(), scene=staged.grid, profile=settings.cog_profile
    )
    thumbnail_shape = write_thumbnail(folder / "thumbnail.png", image.path, common_names=names)
    picture_shape = _before_after(store, folder / "overview.png", names)
    return [
        cog_asset(SHARPENED, image),
        cog_asset(MASK, mask),
        cog_asset(QUALITY, quality),
        picture_asset(THUMBNAIL, folder / "thumbnail.png", thumbnail_shape),
        picture_asset("overview", folder / "overview.png", picture_shape, title="PAN, MS and sharpened, same stretch"),
    ]


def _require_all_pixels(image: CogInfo, staged: StagedScene) -> None:
    """Refuse a file that does not hold what was staged and sharpened, which is never nodata where it is valid."""
    if image.nudged_values or not math.isclose(image.valid_share, staged.valid_share):
        raise InvalidSceneError(
            f"{image.valid_share:.6%} of the written pixels are valid, expected {staged.valid_share:.6%}, and "
            f"{image.nudged_values} of their values were nodata, expected 0; store {staged.store_uri} has lost pixels: "
            "delete it and stage the scene again",
            scene=staged.scene.key,
        )


def _image_blocks(store: SceneStore, bright: list[bool]) -> Iterator[Block]:
    """The result block by block; ``bright`` is given whether each may hold saturated pixels."""
    dtype, limit = store.staged.dtype, dn_limits(store.staged)[1]
    for window in neighbours_together(store.pan_windows()):
        pixels = store.read_sharpened(window)
        bright.append(bool(pixels.max() >= limit))
        yield Block(window, pixels.astype(dtype), valid_window(store, window))


def _mask_blocks(store: SceneStore, bright: list[bool]) -> Iterator[Block]:
    """The mask in the blocks of ``_image_blocks``; of the result only bright ones are read again."""
    consistency = store.read_consistency()
    limit, reach = dn_limits(store.staged)[1], EDGE_REACH_PX
    for window, saturates in zip(neighbours_together(store.pan_windows()), bright, strict=True):
        wide = widened_window(window, reach, store.pan_shape_yx)
        core = window_inside(window, wide)
        measured = measured_window(store, wide)
        valid = (measured.pan & measured.ms)[core]
        bits = reason_bits(
            pan_valid=measured.pan,
            ms_valid=measured.ms,
            reach_px=reach,
            saturated=(store.read_sharpened(window) >= limit).any(axis=0) & valid
            if saturates
            else np.zeros_like(valid),
            low_consistency=inconsistent_pixels(store, consistency, window) & valid,
            core=core,
        )
        yield Block(window, bits[None], None)


def _before_after(store: SceneStore, path: Path, names: list[str | None]) -> tuple[int, int]:
    """The picture of PAN, MS and sharpened around the most detailed ground of the middle of the scene."""
    staged = store.staged
    ratio = staged.grid.ratio
    ys, xs = (slice(max(0, n // 2 - 768) // ratio * ratio, min(n, n // 2 + 768)) for n in store.pan_shape_yx)
    pan, valid = store.read_pan((ys, xs)), valid_window(store, (ys, xs))
    crop = busiest_crop(pan, valid, CROP_PX)
    ms = store.read_ms(ms_window((ys, xs), staged.grid)).astype(np.float32)
    raised = [upsample(band, pan.shape, ratio, p, crop) for band, p in zip(ms, band_phases(staged), strict=True)]
    y, x = (slice(of.start + part.start, of.start + part.stop) for part, of in zip(crop, (ys, xs), strict=True))
    return comparison_picture(
        path,
        pan=pan[crop],
        images={"MS": np.stack(raised), "sharpened": store.read_sharpened((y, x))},
        common_names=names,
        valid=valid[crop],
    )
