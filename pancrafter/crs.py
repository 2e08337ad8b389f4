"""What a coordinate reference system is called: by its code only where that means the same ground."""

from __future__ import annotations

from collections.abc import Sequence

from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform

_SAME_PLACE_DEG = 1e-9


def crs_code(crs: CRS, geotransform: Sequence[float], shape_yx: tuple[int, int]) -> str | None:
    """``AUTHORITY:CODE`` of a CRS, None where no code is known that puts the corners of this grid in the same place.

    PROJ also finds codes of systems that only resemble the CRS: with an ellipsoid but no named datum, or another
    shift to WGS 84, which moves the ground by metres.
    """
    exact = crs.to_authority(confidence_threshold=100)
    if exact:
        return ":".join(exact)
    similar = crs.to_authority()
    if similar is None or not _same_ground(crs, CRS.from_authority(*similar), geotransform, shape_yx):
        return None
    return ":".join(similar)


def _same_ground(one: CRS, other: CRS, geotransform: Sequence[float], shape_yx: tuple[int, int]) -> bool:
    a, b, c, d, e, f = geotransform[:6]
    rows, cols = shape_yx
    xs, ys = [c, a * cols + b * rows + c], [f, d * cols + e * rows + f]
    try:
        lonlat = [transform(crs, "EPSG:4326", xs, ys) for crs in (one, other)]
    except (RasterioError, CPLE_BaseError):
        return False
    return all(
        abs(here - there) <= _SAME_PLACE_DEG
        for axis in zip(*lonlat, strict=True)
        for here, there in zip(*axis, strict=True)
    )
