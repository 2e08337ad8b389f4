"""What the files of a pair hold: ``NAME.npz``, or ``NAME_pan.tif`` with ``NAME_ms.tif``, perhaps with ``NAME.json``.

A pair is named by the path of its npz or of its PAN. Whether its pixels can be those of a pair, ``pairs`` judges.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pancrafter.errors import GridMismatchError, InvalidSceneError
from pancrafter.grid import pair_grids
from pancrafter.metrics import PhaseYX, Pixels
from pancrafter.types import PixelGrid

PAN_ENDING, MS_ENDING = "_pan.tif", "_ms.tif"

NPZ_ERRORS = (OSError, TypeError, ValueError, EOFError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What ``numpy.load`` raises on files that are damaged, encrypted or claim more pixels than there is memory for."""

RATIOS = (2, 3, 4)
"""MS over PAN pixel sizes that a pair may have."""


@dataclass(frozen=True, eq=False)
class PairPixels:
    """Arrays by name (``pan``, ``ms``, perhaps ``gt``), and where the files say that MS pixel 0 lies on the PAN grid.

    ``phase_yx`` is None where they say nothing: then the corners of PAN and MS coincide.
    """

    arrays: dict[str, Pixels]
    phase_yx: PhaseYX | None = None


def find_pairs(folder: Path, pattern: str) -> list[Path]:
    """The pairs in ``folder`` whose name fits ``pattern``, sorted."""
    return sorted([*folder.glob(f"{pattern}.npz"), *folder.glob(f"{pattern}{PAN_ENDING}")])


def pair_name(path: Path) -> str:
    """``NAME`` of a pair."""
    return path.name.removesuffix(PAN_ENDING) if path.name.endswith(PAN_ENDING) else path.stem


def description_path(path: Path) -> Path:
    """Where a pair's description lies, if it has one."""
    return path.with_name(f"{pair_name(path)}.json")


def files_of(path: Path) -> list[Path]:
    """All files of a pair."""
    said = description_path(path)
    return [path, *([_ms_path(path)] if path.name.endswith(PAN_ENDING) else []), *([said] if said.is_file() else [])]


def read_pixels(path: Path, *, with_truth: bool) -> PairPixels:
    """The pixels of a pair; ``with_truth`` false passes ``gt`` over.

    Raises:
        InvalidSceneError: A file is missing or damaged, pixels are missing, or the georeferences do not fit together.
    """
    if path.suffix == ".tif":
        return _read_tiffs(path)
    wanted = ("pan", "ms", "gt") if with_truth else ("pan", "ms")
    try:
        with np.load(path) as archive:
            return PairPixels({name: archive[name] for name in wanted if name in archive.files})
    except NPZ_ERRORS as err:
        raise InvalidSceneError(
            f"{path}: not readable ({err}); expected npz with arrays pan and ms, or the GeoTIFFs NAME{PAN_ENDING} and "
            f"NAME{MS_ENDING}"
        ) from err


def _ms_path(path: Path) -> Path:
    return path.with_name(pair_name(path) + MS_ENDING)


def _read_tiffs(path: Path) -> PairPixels:
    if not path.name.endswith(PAN_ENDING):
        raise InvalidSceneError(f"{path}: expected a pair NAME{PAN_ENDING} and NAME{MS_ENDING}; give the first of them")
    (pan, pan_grid), (ms, ms_grid) = _read_tiff(path), _read_tiff(_ms_path(path))
    pan = pan[0] if len(pan) == 1 else pan
    if pan_grid is None or ms_grid is None:
        return PairPixels({"pan": pan, "ms": ms})
    pan_step, ms_step = pan_grid.transform[0], ms_grid.transform[0]
    ratio = round(ms_step / pan_step) if pan_step else 0
    if ratio not in RATIOS:
        raise InvalidSceneError(f"{path}: pixels are {pan_step} wide, those of MS {ms_step}; expected ratio 2, 3 or 4")
    try:
        found = pair_grids(pan_grid, ms_grid, ratio)
    except GridMismatchError as err:
        raise InvalidSceneError(f"{path}: {err}") from err
    y, x = (
        _whole_pixels(found.pan.shape_yx[axis], found.ms_shape_yx[axis], ratio, found.phase_yx[axis]) for axis in (0, 1)
    )
    pan_offset, ms_offset = found.pan_offset_yx, found.ms_offset_yx
    return PairPixels(
        {
            "pan": pan[..., y.on_pan(ratio, pan_offset[0]), x.on_pan(ratio, pan_offset[1])],
            "ms": ms[:, y.on_ms(ms_offset[0]), x.on_ms(ms_offset[1])],
        },
        (y.phase, x.phase),
    )


@dataclass(frozen=True)
class _WholePixels:
    """Along one axis, the MS pixels whose PAN pixels are all there, and the phase of the first of them."""

    ms_first: int
    ms_size: int
    pan_first: int
    phase: float

    def on_pan(self, ratio: int, offset: int) -> slice:
        return slice(offset + self.pan_first, offset + self.pan_first + ratio * self.ms_size)

    def on_ms(self, offset: int) -> slice:
        return slice(offset + self.ms_first, offset + self.ms_first + self.ms_size)


def _whole_pixels(pan_size: int, ms_size: int, ratio: int, phase: float) -> _WholePixels:
    """Blocks of ``ratio`` PAN pixels begin where they lie closest to the MS pixels they belong to."""
    start = round(phase - (ratio - 1) / 2)
    ms_first = max(0, -(start // ratio))
    pan_first = start + ratio * ms_first
    size = min(ms_size - ms_first, (pan_size - pan_first) // ratio)
    return _WholePixels(ms_first, max(0, size), pan_first, phase - start)


def _read_tiff(path: Path) -> tuple[Pixels, PixelGrid | None]:
    """Pixels (band, y, x), and their grid where the file has a georeference."""
    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(path) as source:
            pixels, missing = source.read(), int(np.sum(source.dataset_mask() == 0))
            crs, transform = source.crs, source.transform
    except RasterioError as err:
        raise InvalidSceneError(f"{path}: not readable ({err}); expected a GeoTIFF") from err
    if missing:
        raise InvalidSceneError(f"{path}: {missing} pixels are nodata; cut PAN and MS to where both are whole")
    if crs is None or transform.is_identity:
        return pixels, None
    return pixels, PixelGrid(crs=crs.to_wkt(), transform=tuple(transform)[:6], shape_yx=pixels.shape[1:])
