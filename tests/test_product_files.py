"""What the files of a product are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from scipy.ndimage import distance_transform_cdt
from staged_scenes import observed, overlap, stage_arrays, write_result

from pancrafter.cog import Reason
from pancrafter.product_files import EDGE_REACH_PX, _image_blocks, _mask_blocks, write_assets
from pancrafter.sensors import BandSpec
from pancrafter.settings import Settings
from pancrafter.store import Pixels, SceneStore, Window
from pancrafter.types import CONSISTENCY_BLOCK_MS_PX


class CountingStore(SceneStore):
    """Knows how often it was asked for the result."""

    asked = 0

    def read_sharpened(self, window: Window) -> Pixels:
        self.asked += 1
        return super().read_sharpened(window)


def test_saturated_pixels_are_marked_and_only_their_blocks_read_twice(tmp_path: Path) -> None:
    grid = overlap((160, 288), 4)
    pan, ms = observed(grid, 3, seed=1)
    staged = stage_arrays(tmp_path / "s.zarr", grid, pan, ms, block_px=64)
    sharpened = np.full((3, 160, 288), 500.0)
    sharpened[2, 70:75, 120:140] = staged.staged.dn_max  # in two of fifteen blocks
    write_result(staged, sharpened)
    blocks_yx = [-(-n // CONSISTENCY_BLOCK_MS_PX) for n in grid.ms_shape_yx]
    SceneStore.open(staged.uri, "r+").write_consistency(np.zeros(blocks_yx, np.float32))
    store, bright = CountingStore.open(staged.uri), []
    image, mask = np.zeros((3, 160, 288)), np.zeros((160, 288), np.uint8)
    for block in _image_blocks(store, bright):
        image[(slice(None), *block.where)] = block.values
    for block in _mask_blocks(store, bright):
        mask[block.where] = block.values[0]
    np.testing.assert_array_equal(image, sharpened)
    np.testing.assert_array_equal(mask, np.where(sharpened[2] > 500, np.uint8(Reason.SATURATED), 0))
    assert store.asked == 15 + 2


def test_files_hold_the_result_and_the_mask_says_of_every_pixel_why_not_to_trust_it(tmp_path: Path) -> None:
    grid = overlap((320, 640), 4)
    pan, ms = observed(grid, 3, seed=1)
    holes = np.ones((320, 640), bool), np.ones((80, 160), bool)
    holes[0][40:50, :20] = False
    holes[1][10:15, 2:10] = False  # PAN rows 40 to 60, columns 8 to 40
    no_pan, no_ms = ~holes[0], ~np.kron(holes[1], np.ones((4, 4), bool))
    valid = ~(no_pan | no_ms)
    staged = stage_arrays(
        *(tmp_path / "s.zarr", grid, pan, ms),
        block_px=160,
        pan_valid=holes[0],
        ms_valid=holes[1],
        valid_share=float(valid.mean()),
        nodata=65535.0,
        scale=(0.5, 0.25, 0.125),
        offset=(1.0, 2.0, 3.0),
    )
    sharpened = np.random.default_rng(2).integers(0, 2000, (3, 320, 640)).astype(np.float64)
    sharpened[1, 30:70, 100] = staged.staged.dn_max
    write_result(staged, sharpened)
    consistency = np.zeros((10, 20), np.float32)
    consistency[1, :4] = 9  # PAN rows 32 to 64, columns 0 to 128
    SceneStore.open(staged.uri, "r+").write_consistency(consistency)
    bands = tuple(BandSpec(name=name, common_name=name, mtf=0.3, in_pan=True) for name in ("red", "green", "blue"))

    made = {asset.key: asset for asset in write_assets(staged.staged, bands, tmp_path, Settings())}

    with rasterio.open(made["sharpened"].path) as file:
        np.testing.assert_array_equal(file.read(), np.where(valid, sharpened, 65535))
        np.testing.assert_array_equal(file.dataset_mask() != 0, valid)
        assert (file.nodata, file.scales, file.offsets) == (65535, (0.5, 0.25, 0.125), (1, 2, 3))
        assert file.descriptions == ("red", "green", "blue")
    with rasterio.open(made["quality"].path) as file:
        np.testing.assert_array_equal(file.read(1), consistency)
    expected = no_ms * Reason.NO_MS | no_pan * Reason.NO_PAN
    near = distance_transform_cdt(valid, "chessboard") <= EDGE_REACH_PX
    expected |= (valid & near) * Reason.EDGE | (valid & (sharpened[1] == staged.staged.dn_max)) * Reason.SATURATED
    expected[32:64, :128] |= valid[32:64, :128] * Reason.LOW_CONSISTENCY
    with rasterio.open(made["mask"].path) as file:
        np.testing.assert_array_equal(file.read(1), expected)
