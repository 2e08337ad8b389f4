"""What the files of a product are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from staged_scenes import observed, overlap, stage_arrays, write_result

from pancrafter.cog import Reason
from pancrafter.product_files import _image_blocks, _mask_blocks
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
