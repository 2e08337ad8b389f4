"""A vendor's raster files: what their headers say, and copies of them where a catalog needs its own."""

from __future__ import annotations

import filecmp
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import Field
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pancrafter.cog import SIDECARS
from pancrafter.crs import crs_code
from pancrafter.errors import InvalidSceneError
from pancrafter.headers import has_mask
from pancrafter.scratch import replace_file
from pancrafter.sensors import SensorContract, fold
from pancrafter.types import PixelGrid, Record

METRES_PER_DEGREE = math.pi / 180 * 6_378_137
"""Along a meridian, on a sphere of the WGS 84 equatorial radius: sizes of geographic pixels are rounded figures."""

DatetimeSource = Literal["option", "description", "file header", "TIFF tag", "file time"]
"""Where the time of acquisition is known from."""


class Georeference(Record):
    """A frame declared for files that carry none: ``x, y`` is the outer corner of the first PAN pixel, in CRS units."""

    crs: str = Field(description="Projected CRS, such as EPSG:32633.")
    x: float
    y: float
    gsd: float = Field(gt=0, description="PAN pixel size, CRS units.")


class Raster(NamedTuple):
    """What the header of one file says; ``path`` may be a copy of the file that was ``given``.

    Of its bands, only those of the image count (``image_bands``).
    """

    path: Path
    given: Path
    grid: PixelGrid
    wkt: str
    metres_per_unit: float
    band_count: int
    has_alpha: bool
    dtype: str
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str, ...]
    media_type: str | None
    acquired: tuple[datetime, DatetimeSource] | None


def parse_georeference(text: str) -> Georeference:
    """Read ``"EPSG:32633 400000 5600000 0.5"``: CRS, x and y of the upper left corner, PAN pixel size.

    Raises:
        InvalidSceneError: Not four parts, not numbers, or the CRS is unknown or not projected.
    """
    parts = text.replace(",", " ").split()
    try:
        crs, x, y, gsd = parts[0], *(float(part) for part in parts[1:])
        frame = Georeference(crs=crs, x=x, y=y, gsd=gsd)
    except (ValueError, IndexError) as err:
        raise InvalidSceneError(
            f"georeference: found {text!r}, expected 'EPSG:CODE X Y PIXELSIZE' like 'EPSG:32633 400000 5600000 0.5'"
        ) from err
    _check_projected(frame)
    return frame


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # Any: rasterio has no types
    if not path.exists():
        raise InvalidSceneError(f"{path}: no such file; check the path")
    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(path) as source:
            if ColorInterp.palette in source.colorinterp:
                raise InvalidSceneError(
                    f"{path}: its pixels are places in a palette, expected DN; expand it: gdal_translate -expand rgb"
                )
            yield source
    except RasterioError as err:
        raise InvalidSceneError(
            f"{path}: not a readable raster ({err}); expected a GeoTIFF or another format that GDAL reads"
        ) from err


def _is_georeferenced(source: Any) -> bool:  # Any: rasterio has no types
    return source.crs is not None and not source.transform.is_identity


def image_bands(source: Any, named_count: int | None = None) -> tuple[int, ...]:  # Any: rasterio has no types
    """Numbers, from 1, of the bands of an open raster that hold its image: all but alpha.

    GDAL calls the last of four bands of bytes alpha unless it is told otherwise, near infrared too. What a description
    calls something else is image, and all bands are where names are given for so many (``named_count``).
    """
    if named_count == source.count:
        return tuple(source.indexes)
    bands = zip(source.indexes, source.colorinterp, source.descriptions, strict=True)
    image = [index for index, kind, text in bands if kind != ColorInterp.alpha or not _may_be_alpha(text)]
    return tuple(image or source.indexes)


def _may_be_alpha(description: str | None) -> bool:
    return not description or any(word in fold(description) for word in ("alpha", "mask"))


def read_header(path: Path, given: Path, named_count: int | None = None) -> Raster:
    """What a file says about itself; ``given`` is what it is called in errors, ``named_count`` as for ``image_bands``.

    Raises:
        InvalidSceneError: It is missing, no raster, has no georeference, holds complex numbers or places in a palette,
            or image bands lie behind alpha.
    """
    with _opened(path) as source:
        if not _is_georeferenced(source):
            raise InvalidSceneError(_no_frame(given, source))
        image = image_bands(source, named_count)
        if image != tuple(range(1, len(image) + 1)):
            raise InvalidSceneError(
                f"{given}: of its {source.count} bands only {image} are image, the others are alpha; expected alpha "
                "behind them: reorder the bands (gdal_translate -b) or correct what the header calls them "
                "(gdal_edit.py -colorinterp_N undefined)"
            )
        of_image = slice(len(image))
        if any(name.startswith("complex") for name in source.dtypes[of_image]):
            raise InvalidSceneError(f"{given}: pixels are {source.dtypes[0]}, expected integers or real numbers")
        wkt = source.crs.to_wkt(version="WKT2_2019")
        crs = crs_code(source.crs, source.transform, source.shape) or wkt
        factor = source.crs.linear_units_factor[1] if source.crs.is_projected else METRES_PER_DEGREE
        return Raster(
            path=path,
            given=given,
            grid=PixelGrid(crs=crs, transform=tuple(source.transform)[:6], shape_yx=source.shape),
            wkt=wkt,
            metres_per_unit=float(factor),
            band_count=len(image),
            has_alpha=len(image) < source.count,
            dtype=str(np.result_type(*source.dtypes[of_image])),
            nodata=tuple(source.nodatavals[of_image]),
            scales=tuple(source.scales[of_image]),
            offsets=tuple(source.offsets[of_image]),
            descriptions=tuple(text or "" for text in source.descriptions[of_image]),
            media_type="image/tiff; application=geotiff" if source.driver == "GTiff" else None,
            acquired=_header_time(source),
        )


def _no_frame(path: Path, source: Any) -> str:  # Any: rasterio has no types
    if source.gcps[0] or source.rpcs:
        found = "ground control points or RPCs only"
        remedy = "orthorectify PAN and MS first (for example gdalwarp -rpc)"
    else:
        found = "no CRS" if source.crs is None else "a CRS but no geotransform"
        remedy = "restore the georeference (for example gdal_edit.py -a_srs ... -a_ullr ...)"
    return (
        f"{path}: found {found}, expected a map projection and a geotransform; {remedy}, or declare a frame with "
        "--assume-origin 'EPSG:CODE X Y PIXELSIZE'"
    )


def _header_time(source: Any) -> tuple[datetime, DatetimeSource] | None:  # Any: rasterio has no types
    imagery = source.tags(ns="IMAGERY").get("ACQUISITIONDATETIME")
    for text, form, origin in (
        (imagery, "%Y-%m-%d %H:%M:%S", "file header"),
        (source.tags().get("TIFFTAG_DATETIME"), "%Y:%m:%d %H:%M:%S", "TIFF tag"),
    ):
        try:
            return datetime.strptime(text or "", form).replace(tzinfo=UTC), origin  # type: ignore[return-value]
        except ValueError:
            continue
    return None


def gsd_of(raster: Raster) -> float:
    """Pixel size in metres (rows, which a map projection or a meridian keeps true to scale)."""
    return float(f"{abs(raster.grid.transform[4]) * raster.metres_per_unit:.6g}")


def place_files(
    folder: Path,
    pan: Path,
    ms: Sequence[Path],
    contract: SensorContract,
    *,
    copy: bool,
    georeference: Georeference | None,
    replace: bool,
) -> list[Path]:
    """The files the item will refer to: the given ones, or their copies in the item's folder.

    Raises:
        InvalidSceneError: A file is missing or cannot be copied; without ``replace``, what is in the folder was copied
            from other files.
    """
    if not ms:
        raise InvalidSceneError(f"{pan}: no MS file given; expected one multi-band file or one file per band")
    sources = [path.absolute() for path in (pan, *ms)]
    if len(set(sources)) != len(sources):
        raise InvalidSceneError(f"{pan}: the same file is given twice; expected PAN and MS in files of their own")
    if georeference is not None:
        targets = _targets(folder, [f"{path.stem}.tif" for path in sources])
        if not replace and not any(map(_may_be_of, sources, targets)):
            raise InvalidSceneError(_of_other_files(folder, pan))
        steps = [georeference.gsd, *[georeference.gsd * contract.ratio] * len(ms)]
        for path, target, step in zip(sources, targets, steps, strict=True):
            _copy_with_frame(path, target, georeference, step)
        return targets
    if copy:
        targets = _targets(folder, [path.name for path in sources])
        if not replace and not any(map(_is_copy, sources, targets)):
            raise InvalidSceneError(_of_other_files(folder, pan))
        for path, target in zip(sources, targets, strict=True):
            _copy(path, target)
        return targets
    return sources


def _targets(folder: Path, names: Sequence[str]) -> list[Path]:
    """Where the copies go: files of the same name (``B1/raw.tif``, ``B2/raw.tif``) into folders by their number."""
    return [
        folder / (name if names.count(name) == 1 else f"{number}/{name}") for number, name in enumerate(names, start=1)
    ]


def _may_be_of(path: Path, target: Path) -> bool:
    """Whether a copy with a frame is one of this file, by time or pixels; a file that is missing is another error."""
    if not (path.exists() and target.exists()):
        return not path.exists()
    return path.stat().st_mtime_ns == target.stat().st_mtime_ns or _same_pixels(path, target)


def _same_pixels(path: Path, target: Path) -> bool:
    with _opened(path) as one, _opened(target) as other:
        return (one.count, one.shape) == (other.count, other.shape) and all(
            np.array_equal(
                _read_window(path, one.read, window), _read_window(target, other.read, window), equal_nan=True
            )
            for _, window in other.block_windows(1)
        )


def _is_copy(path: Path, target: Path) -> bool:
    return not path.exists() or (target.exists() and filecmp.cmp(path, target))


def _of_other_files(folder: Path, pan: Path) -> str:
    return (
        f"{folder}: item {folder.name} exists already with copies of other content than {pan} has; give another scene "
        f"another id with --id, a new delivery of this one --id {folder.name}"
    )


def _copy(path: Path, target: Path) -> None:
    with _opened(path):
        pass
    if target == path:
        return
    for suffix in SIDECARS:  # they first: without its mask nodata would be data
        beside = path.with_name(path.name + suffix)
        if beside.is_file():
            replace_file(target.with_name(target.name + suffix), partial(shutil.copyfile, beside), time_of=beside)
    replace_file(target, partial(shutil.copyfile, path), time_of=path)


def _copy_with_frame(path: Path, target: Path, frame: Georeference, step: float) -> None:
    with _opened(path) as source:
        if _is_georeferenced(source):
            raise InvalidSceneError(
                f"{path}: has a georeference already ({source.crs}); leave out the assumed one (--assume-origin)"
            )
        transform = rasterio.Affine(step, 0, frame.x, 0, -step, frame.y)
        profile = tiff_profile(source.count, source.shape, str(np.result_type(*source.dtypes)), frame.crs, transform)
        is_masked = has_mask(source.mask_flag_enums[0])

        def write(temporary: Path) -> None:
            inside = rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True)
            with inside, rasterio.open(temporary, "w", **profile | {"nodata": source.nodata}) as out:
                out.colorinterp = source.colorinterp  # first: what GDAL cannot say in a tag goes into the header
                for _, window in out.block_windows(1):
                    out.write(_read_window(path, source.read, window), window=window)
                    if is_masked:
                        out.write_mask(_read_window(path, source.dataset_mask, window), window=window)
                for band, text in enumerate(source.descriptions, start=1):
                    out.set_band_description(band, text or "")
                out.scales, out.offsets = source.scales, source.offsets
                out.update_tags(**{k: v for k, v in source.tags().items() if k == "TIFFTAG_DATETIME"})

        _check_projected(frame)
        replace_file(target, write, time_of=path)


def _read_window(path: Path, read: Callable[..., Any], window: Any) -> NDArray[Any]:  # Any: rasterio has no types
    try:
        pixels: NDArray[Any] = read(window=window)
    except RasterioError as err:
        raise InvalidSceneError(f"{path}: its pixels cannot be read ({err}); is the file complete?") from err
    return pixels


def tiff_profile(
    count: int, shape_yx: tuple[int, int], dtype: str, crs: str, transform: rasterio.Affine
) -> dict[str, Any]:
    """How copies are written: tiled, compressed without loss."""
    return {
        "driver": "GTiff",
        "count": count,
        "height": shape_yx[0],
        "width": shape_yx[1],
        "dtype": dtype,
        "crs": crs,
        "transform": transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 3 if np.dtype(dtype).kind == "f" else 2,
        "bigtiff": "if_safer",
    }


def _check_projected(frame: Georeference) -> None:
    try:
        crs = rasterio.CRS.from_user_input(frame.crs)
    except (RasterioError, ValueError) as err:
        raise InvalidSceneError(f"georeference: CRS {frame.crs!r} is unknown; expected one like EPSG:32633") from err
    if not crs.is_projected:
        raise InvalidSceneError(f"georeference: CRS {frame.crs} is not projected; expected one in metres, like UTM")
