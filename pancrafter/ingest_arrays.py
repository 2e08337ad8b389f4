"""Turns pairs of arrays, ``NAME.npz`` with ``NAME.json``, into GeoTIFFs and items of a static STAC catalog."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, field_validator
from rasterio.dtypes import check_dtype

from pancrafter.errors import ContractError, InvalidSceneError
from pancrafter.ingest import SYNTHETIC_FRAME, AddedScene, add_pair, contract_of
from pancrafter.pair_files import NPZ_ERRORS
from pancrafter.scratch import replace_file, undone_on_error
from pancrafter.sensors import SensorContract, load_contracts
from pancrafter.types import Json, Record, faults_of
from pancrafter.vendor_files import tiff_profile

_Pixels = NDArray[Any]  # whatever type the file has
_SYNTHETIC_CRS = "EPSG:32631"
_MS_CROP = re.compile(r"MS rows (\d+)\.\.(\d+), columns (\d+)\.\.(\d+)")


class AddedPairs(Record):
    """What became of a folder of pairs; ``skipped`` holds name and reason."""

    added: tuple[AddedScene, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


class _Geo(Record):
    """Where the whole PAN file lies."""

    model_config = ConfigDict(extra="ignore")

    crs: str
    transform: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    bounds: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]

    @field_validator("crs")
    @classmethod
    def _known(cls, crs: str) -> str:
        rasterio.CRS.from_user_input(crs)
        return crs

    @field_validator("transform")
    @classmethod
    def _invertible(cls, transform: tuple[float, ...]) -> tuple[float, ...]:
        if not (transform[0] and transform[4]):
            raise ValueError("its pixels have no size")
        return transform


class _Gsd(Record):
    """Pixel sizes, metres; that of MS follows from the ratio."""

    model_config = ConfigDict(extra="ignore")

    pan: FiniteFloat | None = Field(default=None, gt=0)


class _Description(Record):
    """What ``NAME.json`` has to say of a pair that becomes an item; what else it holds is not looked at."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    sensor: str
    bands: tuple[str, ...]
    ratio: int = Field(ge=2)
    gsd_m: _Gsd | None = None
    georef: bool | str | None = None
    geo: _Geo | None = None
    geo_offset_pan_px: tuple[FiniteFloat, FiniteFloat] | None = None
    """How far (y, x) the MS grid begins after the PAN grid, PAN pixels."""
    crop: str | None = None
    """Which MS pixels were cut out of the whole file."""
    repo: str | None = None
    commit: str | None = None
    licence: str | None = None
    note: str | None = None
    paths: tuple[str, ...] | None = None


class _Frame(NamedTuple):
    crs: str
    pan: rasterio.Affine
    ms: rasterio.Affine
    origin: str


def add_pairs_directory(
    catalog_dir: Path,
    pairs_dir: Path,
    names: Iterable[str] | None = None,
    *,
    contracts: Mapping[str, SensorContract] | None = None,
) -> AddedPairs:
    """Add a folder of ``NAME.npz`` (arrays ``pan`` and ``ms``) with ``NAME.json`` (sensor, bands, ratio, gsd, ...).

    The arrays become GeoTIFFs inside the catalog folder. Where the JSON holds a georeference it is used; otherwise
    the scene gets a declared frame of the right pixel size, and the item says so. A pair that cannot be added is
    skipped with its reason; the others go on.

    Args:
        catalog_dir: Folder of the catalog; made when missing.
        pairs_dir: Folder of the pairs.
        names: Only these pairs; all by default.
        contracts: Sensor contracts; by default the bundled ones.

    Raises:
        InvalidSceneError: The folder is missing or holds no pairs.
        SinkError: The catalog folder cannot be written.
    """
    chosen = sorted(path.stem for path in pairs_dir.glob("*.npz")) if names is None else list(names)
    if not chosen:
        raise InvalidSceneError(f"{pairs_dir}: found no NAME.npz with NAME.json; expected a folder of pairs")
    known = contracts if contracts is not None else load_contracts()
    added: list[AddedScene] = []
    skipped: list[tuple[str, str]] = []
    for name in chosen:
        try:
            added.append(_add_npz(catalog_dir, pairs_dir / f"{name}.npz", known))
        except (InvalidSceneError, ContractError) as err:
            skipped.append((name, str(err)))
    return AddedPairs(added=tuple(added), skipped=tuple(skipped))


def _add_npz(catalog_dir: Path, path: Path, contracts: Mapping[str, SensorContract]) -> AddedScene:
    meta = _described(path.with_suffix(".json"))
    contract = contract_of(meta.sensor, contracts)
    pan, ms, reduced = _pair_arrays(path, meta)
    frame = _real_frame(meta, pan.shape) or _synthetic_frame(path.stem, meta, reduced=reduced)
    specs = contract.subset(meta.bands)
    folder = catalog_dir.absolute() / contract.name / path.stem
    pan_tif, ms_tif = folder / f"{path.stem}_pan.tif", folder / f"{path.stem}_ms.tif"
    with undone_on_error(folder):
        _write_tiff(pan_tif, pan[np.newaxis], frame.crs, frame.pan, ["pan"], time_of=path)
        _write_tiff(ms_tif, ms, frame.crs, frame.ms, [spec.name for spec in specs], time_of=path)
        return add_pair(
            catalog_dir,
            meta.sensor,
            pan_tif,
            [ms_tif],
            item_id=path.stem,
            acquired=_pair_time(meta),
            bands=meta.bands,
            properties=_pair_properties(meta, frame, reduced=reduced),
            contracts=contracts,
        )


def _described(path: Path) -> _Description:
    try:
        return _Description.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as err:
        expected = "expected the description of a pair, mend these fields"
        raise InvalidSceneError(f"{path}: {faults_of(err)}; {expected}") from err
    except (OSError, ValueError) as err:
        raise InvalidSceneError(f"{path}: not readable as JSON ({err}); expected the description of a pair") from err


def _pair_arrays(path: Path, meta: _Description) -> tuple[_Pixels, _Pixels, bool]:
    """PAN ``(y, x)`` and MS ``(band, y, x)``, and whether both were degraded from a reference kept beside them."""
    try:
        with np.load(path) as archive:
            pan, ms, reduced = archive["pan"], archive["ms"], "gt" in archive.files
    except (*NPZ_ERRORS, KeyError) as err:
        raise InvalidSceneError(f"{path}: not readable ({err}); expected npz with arrays pan and ms") from err
    ratio = meta.ratio
    expected = (len(meta.bands), *(size // ratio for size in pan.shape))
    if (
        pan.ndim != 2
        or 0 in ms.shape
        or ms.shape != expected
        or pan.shape != tuple(ratio * size for size in ms.shape[1:])
    ):
        raise InvalidSceneError(
            f"{path}: pan is {pan.shape} and ms {ms.shape}, expected (y, x) and ({len(meta.bands)}, y/{ratio}, "
            f"x/{ratio}); check arrays, bands and ratio"
        )
    for name, pixels in (("pan", pan), ("ms", ms)):
        if pixels.dtype.kind not in "uif" or not check_dtype(str(pixels.dtype)):
            raise InvalidSceneError(f"{path}: {name} is {pixels.dtype}, expected DN; store uint8 or uint16")
    return pan, ms, reduced


def _real_frame(meta: _Description, pan_shape: tuple[int, ...]) -> _Frame | None:
    """The pair's own georeference, moved to its crop; None where it has none that fits its size.

    ``geo.transform`` is that of the whole PAN file and ``crop`` says which MS pixels were cut out of it;
    ``geo_offset_pan_px`` is how far (y, x) the MS grid begins after the PAN grid, in PAN pixels.
    """
    geo, ratio = meta.geo, meta.ratio
    if meta.georef is not True or geo is None:
        return None
    whole = rasterio.Affine(*geo.transform)
    crop = _MS_CROP.search(meta.crop or "")
    row, col = (ratio * int(crop[1]), ratio * int(crop[3])) if crop else (0, 0)
    left, bottom, right, top = geo.bounds
    size_yx = (round((bottom - top) / whole.e), round((right - left) / whole.a))
    fits = all(start + part <= size for start, part, size in zip((row, col), pan_shape, size_yx, strict=True))
    if not fits or (crop is None and any(size - part >= ratio for size, part in zip(size_yx, pan_shape, strict=True))):
        return None
    pan = whole @ rasterio.Affine.translation(col, row)
    offset_y, offset_x = meta.geo_offset_pan_px or (0.0, 0.0)
    ms = pan @ rasterio.Affine.translation(offset_x, offset_y) @ rasterio.Affine.scale(ratio)
    return _Frame(geo.crs, pan, ms, "description")


def _synthetic_frame(name: str, meta: _Description, *, reduced: bool) -> _Frame:
    """A place on the map that depends on the name alone, with true pixel sizes and coinciding outer corners."""
    gsd = meta.gsd_m.pan if meta.gsd_m else None
    if gsd is None:
        raise InvalidSceneError(f"pair {name}: gsd_m.pan is missing, expected metres; the pixel size cannot be guessed")
    step = gsd * (meta.ratio if reduced else 1)
    northing = 1_000_000 + 20_000 * (zlib.crc32(name.encode()) % 400)
    pan = rasterio.Affine(step, 0, 500_000, 0, -step, northing)
    ms = pan @ rasterio.Affine.scale(meta.ratio)
    return _Frame(_SYNTHETIC_CRS, pan, ms, SYNTHETIC_FRAME)


def _write_tiff(
    path: Path,
    pixels: _Pixels,
    crs: str,
    transform: rasterio.Affine,
    descriptions: Sequence[str],
    *,
    time_of: Path,
) -> None:
    profile = tiff_profile(pixels.shape[0], pixels.shape[1:], str(pixels.dtype), crs, transform)

    def write(temporary: Path) -> None:
        with rasterio.open(temporary, "w", **profile) as out:
            out.write(pixels)
            out.descriptions = tuple(descriptions)

    replace_file(path, write, time_of=time_of)


def _pair_time(meta: _Description) -> datetime | None:
    """The day that ``georef`` (``..., 20000913, ...``) or ``note`` (``2011-04-03``) names, at noon UTC."""
    for text, form in (
        (str(meta.georef), r"\b(\d{4})(\d{2})(\d{2})\b"),
        (meta.note or "", r"(\d{4})-(\d{2})-(\d{2})"),
    ):
        if match := re.search(form, text):
            try:
                return datetime(*(int(part) for part in match.groups()), 12, tzinfo=UTC)  # type: ignore[misc, arg-type]
            except ValueError:
                continue
    return None


def _pair_properties(meta: _Description, frame: _Frame, *, reduced: bool) -> Json:
    source = " ".join(filter(None, [meta.repo, meta.commit]))
    text = meta.licence or "not stated"
    facts = {
        "license": "CC-BY-SA-4.0" if "CC BY-SA 4.0" in text else "other",
        "ingest:license_text": text,
        "ingest:source": source or None,
        "ingest:source_paths": None if meta.paths is None else list(meta.paths),
        "ingest:note": meta.note,
        "ingest:georeference": frame.origin,
        "ingest:bands_from": "description",
        "ingest:datetime_from": "description" if _pair_time(meta) else None,
        "ingest:reduced_resolution": True if reduced else None,
    }
    return {name: value for name, value in facts.items() if value is not None}
