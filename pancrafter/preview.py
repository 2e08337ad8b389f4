"""Pictures for people: the thumbnail of a published scene, and PAN, MS and sharpened side by side."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.errors import RasterioError
from rio_tiler.errors import RioTilerError
from rio_tiler.io import Reader

from pancrafter.durable import flush
from pancrafter.errors import GridMismatchError, InvalidSceneError, SinkError

Array = NDArray[Any]
_TRUE_COLOUR = ("red", "green", "blue")
_THUMBNAIL_PX = 512
_STRETCH_PERCENT = (2.0, 98.0)
_COMPRESS_LEVEL = 4
"""Of PNG: pictures are up to 6 % larger than at the highest level, 9, and written in an eighth of its time."""
CROP_PX = 420
"""Longest side of the ground that a comparison picture shows."""
_LABEL_PX = 26
_GAP_PX = 4
_INK, _PAPER = (240, 240, 240), (24, 24, 24)


def true_colour_bands(common_names: Sequence[str | None]) -> tuple[int, int, int]:
    """Indices (from 0) of the bands to show as red, green and blue; the first three where there is no such triple."""
    names = list(common_names)
    if all(colour in names for colour in _TRUE_COLOUR):
        red, green, blue = (names.index(colour) for colour in _TRUE_COLOUR)
        return red, green, blue
    last = len(names) - 1
    return 0, min(1, last), min(2, last)


def write_thumbnail(
    path: str | Path,
    cog_path: str | Path,
    *,
    common_names: Sequence[str | None],
) -> tuple[int, int]:
    """Write an RGBA PNG of a COG, at most 512 px wide and high, transparent where the image has no data.

    Args:
        path: The PNG; its name appears only when it is complete.
        cog_path: Any raster that GDAL opens; overviews are used.
        common_names: STAC common name per band, to find true colour.

    Returns:
        Size of the picture as ``(height, width)``.

    Raises:
        InvalidSceneError: The raster cannot be read.
        SinkError: The picture cannot be written.
    """
    shown = [index + 1 for index in true_colour_bands(common_names)]
    try:
        with Reader(str(cog_path)) as source:
            read = source.preview(indexes=shown, max_size=_THUMBNAIL_PX).array
    except (RasterioError, RioTilerError) as err:
        raise InvalidSceneError(
            f"{cog_path}: no preview can be read ({err}); check that it is a whole GeoTIFF"
        ) from err
    values = np.asarray(read.data, np.float64)
    valid = np.asarray(~np.ma.getmaskarray(read).any(axis=0) & np.isfinite(values).all(axis=0))
    colour = stretch(values, stretch_limits(values, valid))
    alpha = np.where(valid, np.uint8(255), np.uint8(0))
    _save_png(Image.fromarray(np.dstack([*np.where(valid, colour, 0), alpha])), Path(path))
    return valid.shape[0], valid.shape[1]


def comparison_picture(
    path: str | Path,
    *,
    pan: Array,
    images: Mapping[str, Array],
    common_names: Sequence[str | None],
    valid: NDArray[np.bool_] | None = None,
    crop_px: int = CROP_PX,
) -> tuple[int, int]:
    """Write one PNG with PAN and other images of the same ground side by side, one picture pixel per PAN pixel.

    All images get the stretch of the first one; PAN has its own. The crop lies where PAN has most detail.

    Args:
        path: The PNG.
        pan: ``(y, x)`` DN.
        images: Title -> ``(band, y, x)`` DN on the PAN grid, from left to right; MS comes first, up-sampled.
        common_names: STAC common name per band.
        valid: ``(y, x)``, True where there is data; invalid ground is avoided and shown black.
        crop_px: Longest side of the crop.

    Returns:
        Size of the picture as ``(height, width)``.

    Raises:
        GridMismatchError: The images are not on one grid.
        SinkError: The picture cannot be written.
    """
    if any(image.shape != (len(common_names), *pan.shape) for image in images.values()):
        raise GridMismatchError(
            f"comparison picture: pan {pan.shape}, {', '.join(f'{t} {i.shape}' for t, i in images.items())}, "
            f"{len(common_names)} names; expected (y, x), else (band, y, x), and one name per band"
        )
    usable = np.ones(pan.shape, bool) if valid is None else valid
    crop = busiest_crop(pan, usable, crop_px)
    inside = usable[crop]
    shown = list(true_colour_bands(common_names))
    grey = pan[crop].astype(np.float64)[None]
    colour = [image[(shown, *crop)].astype(np.float64) for image in images.values()]
    limits = stretch_limits(colour[0], inside)
    panels = [
        np.repeat(stretch(grey, stretch_limits(grey, inside)), 3, axis=0),
        *(stretch(image, limits) for image in colour),
    ]
    picture = _side_by_side([np.where(inside, panel, 0) for panel in panels], ["PAN", *images])
    _save_png(picture, Path(path))
    return picture.height, picture.width


def stretch_limits(values: Array, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``(band, 2)``: values that become black and white, percentiles of valid pixels; (0, 1) where none is valid."""
    if not valid.any():
        return np.tile([0.0, 1.0], (len(values), 1))
    limits = np.percentile(values[:, valid], _STRETCH_PERCENT, axis=1).T
    flat = limits[:, 1] <= limits[:, 0]
    limits[flat, 1] = limits[flat, 0] + 1
    return np.asarray(limits, np.float64)


def stretch(values: Array, limits: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Map ``(band, y, x)`` linearly so that each band's limits become 0 and 255; values beyond are clipped."""
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    scaled = np.nan_to_num((values - low) / (high - low))
    return np.asarray(np.clip(scaled * 255 + 0.5, 0, 255), np.uint8)


def busiest_crop(pan: Array, valid: NDArray[np.bool_], crop_px: int) -> tuple[slice, slice]:
    """The window of at most ``crop_px`` squared where PAN has the most fine detail and data.

    Detail is the summed absolute difference of neighbours, limited at its 99th percentile so that a few extreme
    pixels do not decide; candidates lie an eighth of a window apart.
    """
    height, width = min(crop_px, pan.shape[0]), min(crop_px, pan.shape[1])
    image = np.where(valid, pan, 0).astype(np.float64)
    detail = np.zeros(pan.shape)
    detail[1:] += np.abs(np.diff(image, axis=0)) * (valid[1:] & valid[:-1])
    detail[:, 1:] += np.abs(np.diff(image, axis=1)) * (valid[:, 1:] & valid[:, :-1])
    detail = np.minimum(detail, np.percentile(detail, 99) or np.inf)
    tops = _starts(pan.shape[0], height)
    lefts = _starts(pan.shape[1], width)
    sums = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, cols = np.array(tops)[:, None], np.array(lefts)[None]
    box = sums[rows + height, cols + width] - sums[rows, cols + width] - sums[rows + height, cols] + sums[rows, cols]
    best_row, best_col = np.unravel_index(int(box.argmax()), box.shape)
    top, left = tops[int(best_row)], lefts[int(best_col)]
    return slice(top, top + height), slice(left, left + width)


def _starts(length: int, window: int) -> list[int]:
    last = length - window
    return sorted({*range(0, last + 1, max(window // 8, 1)), last})


def _side_by_side(panels: Sequence[NDArray[np.uint8]], titles: Sequence[str]) -> Image.Image:
    height, width = panels[0].shape[1:]
    canvas = Image.new("RGB", (len(panels) * (width + _GAP_PX) - _GAP_PX, height + _LABEL_PX), _PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = index * (width + _GAP_PX)
        canvas.paste(Image.fromarray(np.ascontiguousarray(panel.transpose(1, 2, 0))), (left, _LABEL_PX))
        pen.text((left + 6, _LABEL_PX // 2), title, fill=_INK, font=font, anchor="lm")
    return canvas


def _save_png(picture: Image.Image, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        picture.save(draft, format="PNG", compress_level=_COMPRESS_LEVEL)
        flush(draft)
        draft.replace(path)
    except OSError as err:
        raise SinkError(f"{path}: the picture cannot be written ({err}); check space and permissions") from err
    finally:
        if draft.parent.is_dir():
            draft.unlink(missing_ok=True)
