"""A small finished scene (files and records) for the tests of the output side."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac

from pancrafter.cog import Block, Reason, write_cog, write_reason_mask
from pancrafter.item import AssetFile, Cost, Recipe, build_item, cog_asset, picture_asset
from pancrafter.preview import write_thumbnail
from pancrafter.sensors import BandSpec
from pancrafter.types import AssetRef, PairGrid, PixelGrid, Quality, Scene, StagedScene, ValueRange

SHAPE = (600, 640)
GRID = PixelGrid(crs="EPSG:32633", transform=(0.5, 0.0, 500000.0, 0.0, -0.5, 4600000.0), shape_yx=SHAPE)
BANDS = (
    BandSpec(name="Blue", common_name="blue", center_um=0.478, fwhm_um=0.07, mtf=0.3, in_pan=True),
    BandSpec(name="Green", common_name="green", center_um=0.546, fwhm_um=0.08, mtf=0.3, in_pan=True),
    BandSpec(name="Red", common_name="red", center_um=0.659, fwhm_um=0.06, mtf=0.3, in_pan=True),
    BandSpec(name="NIR1", common_name="nir", center_um=0.831, fwhm_um=0.12, mtf=0.3, in_pan=False),
)
QUALITY = Quality(
    consistency_ergas=0.61,
    consistency_sam_deg=0.4,
    d_lambda=0.02,
    d_s=0.03,
    hqnr=0.951,
    residual_shift_px=0.12,
    reduced_ergas=2.1,
    best_classical="mtf-glp-hpm",
    best_classical_reduced_ergas=2.6,
    gain_over_classical=0.192,
    clipped_share=0.0001,
    invalid_share=0.1,
)


def staged(**changed: Any) -> StagedScene:
    scene = Scene(
        collection="wv3-raw",
        item_id="S1",
        sensor="worldview-3",
        acquired="2024-05-01T10:20:30Z",
        pan=AssetRef(key="pan", href="/data/S1/pan.tif"),
        ms=tuple(AssetRef(key="ms", href="/data/S1/ms.tif", band=k) for k in (1, 2, 3, 4)),
        bands=tuple(band.name for band in BANDS),
        fingerprint="f" * 64,
        source_href="https://user:pw@example.com/stac/S1.json?sig=SECRET&se=2024",
        geometry={"type": "Point", "coordinates": [15, 41]},
        properties={
            "platform": "worldview-3",
            "license": "proprietary",
            "view:off_nadir": 12.0,
            "eo:cloud_cover": 3,
            "secret:thing": 5,
            "instruments": "wv110",
            "view:azimuth": 400,
            "providers": [
                {"name": "V", "url": "https://v.example/about?X-Amz-Signature=SECRET", "roles": ["producer", "owner"]},
                "nobody",
            ],
            **changed,
        },
    )
    return StagedScene(
        scene=scene,
        store_uri="/tmp/none.zarr",
        grid=PairGrid(pan=GRID, ms_shape_yx=(150, 160), ratio=4, phase_yx=(1.5, 1.5)),
        dtype="uint16",
        dn_max=2047,
        nodata=0.0,
        pan_range=ValueRange(low=0, high=2047),
        ms_ranges=tuple(ValueRange(low=0, high=2047) for _ in BANDS),
        band_shift_yx=((0.0, 0.0),) * 4,
        shift_confidence=(0.9, 0.8, 0.9, 0.5),
        measured_mtf=0.2,
        mtf_shape=3.5,
        valid_share=0.9,
    )


def recipe(**changed: Any) -> Recipe:
    fields = {
        "method": "pan-crafter",
        "weights": "default",
        "weights_sha256": "a" * 64,
        "contract_digest": "b" * 64,
        "software_version": "0.1.0",
        "settings": {"precision": "float32"},
    }
    return Recipe(**(fields | changed))


def files(folder: Path, seed: int = 0) -> tuple[AssetFile, ...]:
    """Sharpened image, mask and thumbnail; other seeds give other pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(1, 2000, (4, *SHAPE)).astype(np.uint16)
    valid = np.ones(SHAPE, bool)
    valid[:60] = False
    window = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    sharpened = write_cog(
        folder / "sharpened.tif",
        [Block(window, values, valid)],
        grid=GRID,
        count=4,
        dtype="uint16",
        nodata=0,
        band_names=[band.name for band in BANDS],
        scale=(0.01,) * 4,
        offset=(0.0,) * 4,
    )
    reasons = np.where(valid, 0, np.uint8(Reason.NO_MS))[None].astype(np.uint8)
    mask = write_reason_mask(folder / "mask.tif", [Block(window, reasons)], grid=GRID)
    names = [band.common_name for band in BANDS]
    size = write_thumbnail(folder / "thumbnail.png", folder / "sharpened.tif", common_names=names)
    picture = picture_asset("thumbnail", folder / "thumbnail.png", size)
    return cog_asset("sharpened", sharpened), cog_asset("mask", mask), picture


def item(assets: tuple[AssetFile, ...], item_id: str = "S1-sharp", **changed: Any) -> pystac.Item:
    options = {
        "staged": staged(),
        "quality": QUALITY,
        "item_id": item_id,
        "collection_id": "wv3-sharpened",
        "recipe": recipe(),
        "bands": BANDS,
        "assets": assets,
        "cost": Cost(seconds=12.5, mpx_per_s=0.4, device="cpu"),
        "now": datetime(2024, 6, 1, 12, tzinfo=UTC),
    }
    return build_item(**(options | changed))
