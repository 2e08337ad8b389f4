"""Pairing of pixel grids: exact positions for any origin and size, and refusals that say what to do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pancrafter.errors import GridMismatchError
from pancrafter.grid import (
    aligned_ms_grid,
    crop_grid,
    grid_bounds,
    ms_grid,
    needs_resampling,
    pair_grids,
    pixel_centres,
    same_pixels,
)
from pancrafter.types import PairGrid, PixelGrid

UTM = "EPSG:32633"


def grid(
    shape_yx: tuple[int, int], gsd: float, origin_xy: tuple[float, float] = (5e5, 4e6), crs: str = UTM
) -> PixelGrid:
    return PixelGrid(crs=crs, transform=(gsd, 0.0, origin_xy[0], 0.0, -gsd, origin_xy[1]), shape_yx=shape_yx)


def assert_centres_agree(pan: PixelGrid, ms: PixelGrid, pair: PairGrid, tolerance_px: float) -> None:
    """Every MS centre, by its own georeference, lies at ratio * i + phase on the PAN grid, by PAN's georeference."""
    cropped_ms = crop_grid(ms, pair.ms_offset_yx, pair.ms_shape_yx)
    steps = (pan.transform[4], pan.transform[0])
    for centres, pan_centres, phase, step in zip(
        pixel_centres(cropped_ms), pixel_centres(pair.pan), pair.phase_yx, steps, strict=True
    ):
        found = (np.array(centres) - pan_centres[0]) / step
        assert np.abs(found - (pair.ratio * np.arange(len(centres)) + phase)).max() < tolerance_px


@given(
    ratio=st.sampled_from([2, 3, 4]),
    pan_shape=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    ms_shape=st.tuples(st.integers(8, 100), st.integers(8, 100)),
    origin=st.tuples(st.floats(1e5, 9e5), st.floats(0, 9e6)),
    offset_px=st.tuples(st.floats(-15, 15), st.floats(-15, 15)),
    gsd=st.floats(0.3, 15),
)
def test_any_pair_is_related_exactly(
    ratio: int,
    pan_shape: tuple[int, int],
    ms_shape: tuple[int, int],
    origin: tuple[float, float],
    offset_px: tuple[float, float],
    gsd: float,
) -> None:
    pan = grid(pan_shape, gsd, origin)
    ms = grid(ms_shape, gsd * ratio, (origin[0] + offset_px[1] * gsd, origin[1] - offset_px[0] * gsd))
    pair = pair_grids(pan, ms, ratio)
    assert_centres_agree(pan, ms, pair, 1e-6)
    for axis in (0, 1):
        start = offset_px[axis] - 0.5
        inside = [j for j in range(pan_shape[axis]) if start <= j < start + ratio * ms_shape[axis]]
        found = range(pair.pan_offset_yx[axis], pair.pan_offset_yx[axis] + pair.pan.shape_yx[axis])
        # Centres within rounding of the footprint's edge may fall on either side.
        assert len(set(found) ^ set(inside)) <= 2
        assert all(
            min(abs(j - start), abs(j - start - ratio * ms_shape[axis])) < 1e-4 for j in set(found) ^ set(inside)
        )
        # Every PAN pixel lies under the cropped MS, and no cropped MS row is without one.
        first, last = pair.phase_yx[axis] - ratio / 2, pair.phase_yx[axis] + ratio * (pair.ms_shape_yx[axis] - 0.5)
        assert first <= 1e-3
        assert first > -ratio - 1e-3
        assert last >= pair.pan.shape_yx[axis] - 1 - 1e-3
        assert last < pair.pan.shape_yx[axis] - 1 + ratio + 1e-3


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_edge_aligned_products_have_the_production_phase(ratio: int) -> None:
    pair = pair_grids(grid((50 * ratio, 40 * ratio), 0.5), grid((50, 40), 0.5 * ratio), ratio)
    assert pair.phase_yx == ((ratio - 1) / 2,) * 2
    assert pair.pan.shape_yx == (50 * ratio, 40 * ratio)


def test_landsat_collection_2_pan_has_phase_zero() -> None:
    """Shapes and transforms of a real Collection 2 Level 1 item: 7681 x 7591 at 30 m, PAN 15361 x 15181 at 15 m."""
    pan = grid((15361, 15181), 15.0, (352_492.5, 4_264_507.5))
    ms = grid((7681, 7591), 30.0, (352_485.0, 4_264_515.0))
    pair = pair_grids(pan, ms, 2)
    assert pair.phase_yx == (0.0, 0.0)
    assert pair.pan == pan
    assert pair.ms_shape_yx == (7681, 7591)


def test_geographic_grids_keep_their_precision() -> None:
    step = 1.0956e-05
    pan = grid((4000, 4000), step, (151.2, -33.8), "EPSG:4326")
    pair = pair_grids(pan, grid((1000, 1000), 4 * step, (151.2, -33.8), "EPSG:4326"), 4)
    assert pair.phase_yx == (1.5, 1.5)


def test_small_ratio_error_is_split_between_both_ends() -> None:
    pan, ms = grid((4000, 4000), 0.5), grid((1000, 1000), 2.00002)
    pair = pair_grids(pan, ms, 4)
    assert_centres_agree(pan, ms, pair, 0.025)


@pytest.mark.parametrize("off_px", [-2e-8, 2e-8])
def test_last_digits_of_a_border_decide_on_no_pixel(off_px: float) -> None:
    """Here the borders of MS lie on centres of PAN, then of the pixels that MS is resampled to."""
    pan, off_m = grid((40, 40), 0.5), 0.5 * off_px
    exact, rounded = (grid((8, 8), 2.0, (5e5 - 3.75 + off, 4e6 - 2.25 - off)) for off in (0.0, off_m))
    assert pair_grids(pan, rounded, 4) == pair_grids(pan, exact, 4)
    borders = 5e5 + 3, 4e6 - 15, 5e5 + 15, 4e6 - 3
    moved = (borders[0] + off_m, borders[1] + off_m, borders[2] + off_m, borders[3] + off_m)
    assert aligned_ms_grid(pan, moved, 4) == aligned_ms_grid(pan, borders, 4)


def test_ms_grid_is_the_cropped_ms() -> None:
    pan, ms = grid((210, 300), 0.5, (5e5 + 3, 4e6 - 7)), grid((60, 70), 2.0)
    pair = pair_grids(pan, ms, 4)
    expected = crop_grid(ms, pair.ms_offset_yx, pair.ms_shape_yx)
    assert ms_grid(pair).transform == pytest.approx(expected.transform, abs=1e-6)
    assert ms_grid(pair).shape_yx == expected.shape_yx


@pytest.mark.parametrize(
    ("pan", "ms", "match"),
    [
        (grid((400, 400), 0.5), grid((100, 100), 2.0, crs="EPSG:32634"), r"EPSG:32633 and MS in EPSG:32634.*warp MS"),
        (grid((400, 400), 0.5), grid((100, 100), 2.0, (6e5, 4e6)), r"PAN covers x 500000\.\.500200 and MS 600000"),
        (grid((400, 400), 0.5), grid((100, 100), 2.0, (5e5 + 200, 4e6)), r"expected an overlap"),
        (grid((400, 400), 0.5), grid((100, 100), 1.9985), r"ratio of 3\.997 along y, expected 4: .* drifts by 0\.3"),
        (grid((400, 400), 0.5), grid((400, 400), 0.5), r"ratio of 1 along y, expected 4"),
    ],
)
def test_unrelated_grids_are_refused(pan: PixelGrid, ms: PixelGrid, match: str) -> None:
    with pytest.raises(GridMismatchError, match=match):
        pair_grids(pan, ms, 4)


@pytest.mark.parametrize(
    ("transform", "match"),
    [
        ((2.0, 0.1, 5e5, 0.1, -2.0, 4e6), r"MS has a rotated geotransform .* resample"),
        ((2.0, 0.0, 5e5, 0.0, 2.0, 4e6), r"MS has a flipped geotransform .* gdalwarp"),
        ((0.0, 0.0, 5e5, 0.0, 0.0, 4e6), r"MS has 100 x 100 pixels of size \(0.*, 0.*\), expected a raster with"),
        ((1e-300, 0.0, 5e5, 0.0, -2.0, 4e6), r"pixels of size \(2\.0, 1e-300\) at .*, expected a raster"),
        ((2.0, 0.0, 1e300, 0.0, -2.0, 4e6), r"pixels of size .* at \(1e\+300, .*\), expected a raster"),
    ],
)
def test_grids_that_are_not_north_up_are_refused(transform: tuple[float, ...], match: str) -> None:
    ms = PixelGrid.model_validate({"crs": UTM, "transform": transform, "shape_yx": (100, 100)})
    with pytest.raises(GridMismatchError, match=match):
        pair_grids(grid((400, 400), 0.5), ms, 4)


@pytest.mark.parametrize(
    ("ms", "needed"),
    [
        (grid((100, 100), 2.0), False),
        (grid((100, 100), 1.9985), True),
        (grid((10, 10), 1.9985), False),  # too small to drift
        (grid((100, 100), 1.92), True),
        (grid((100, 100), 1.88), False),  # another product
        (grid((100, 100), 1.9985, crs="EPSG:32634"), False),
        (grid((100, 100), -1.9985), False),
    ],
)
def test_only_nearly_fitting_pixels_need_resampling(ms: PixelGrid, *, needed: bool) -> None:
    assert needs_resampling(grid((400, 400), 0.5), ms, 4) is needed


@given(
    pan_shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ms_shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    offset_64ths=st.tuples(st.integers(-3200, 3200), st.integers(-3200, 3200)),  # no edge is a rounding off a centre
)
def test_resampled_ms_has_the_pixels_whose_centres_lie_in_ms(
    pan_shape: tuple[int, int], ms_shape: tuple[int, int], offset_64ths: tuple[int, int]
) -> None:
    pan, coarse = grid(pan_shape, 1.0), grid((-(-pan_shape[0] // 4), -(-pan_shape[1] // 4)), 4.0)
    corner = 5e5 + offset_64ths[1] / 64, 4e6 - offset_64ths[0] / 64
    left, bottom, right, top = grid_bounds(grid(ms_shape, 3.997, corner))
    ys, xs = pixel_centres(coarse)
    wanted = [y for y in ys if bottom <= y <= top], [x for x in xs if left <= x <= right]
    if all(wanted):
        assert pixel_centres(aligned_ms_grid(pan, (left, bottom, right, top), 4)) == wanted
    else:
        with pytest.raises(GridMismatchError, match=r"MS covers .* which lies elsewhere; check that"):
            aligned_ms_grid(pan, (left, bottom, right, top), 4)


@pytest.mark.parametrize(("off_px", "same"), [(0.0, True), (1e-9, True), (1e-3, False)])
@pytest.mark.parametrize("term", range(6))
def test_grids_are_one_but_for_rounding(term: int, off_px: float, *, same: bool) -> None:
    """Wherever the difference is: in the origin or, as far as it moves the far corners, in a step."""
    one = PixelGrid(crs="EPSG:32633", transform=(2.0, 0.0, 4e5, 0.0, -2.0, 5e6), shape_yx=(300, 500))
    transform = list(one.transform)
    transform[term] += 2.0 * off_px / (1 if term in (2, 5) else 500)
    assert same_pixels(one, one.model_copy(update={"transform": tuple(transform)})) is same
    assert not same_pixels(one, one.model_copy(update={"shape_yx": (300, 501)}))
    assert not same_pixels(one, one.model_copy(update={"crs": "EPSG:32634"}))
