"""Turns pairs of arrays, ``NAME.npz`` with ``NAME.json``, into GeoTIFFs and items of a static STAC catalog."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray

from pancrafter.errors import ContractError, InvalidSceneError
from pancrafter.ingest import SYNTHETIC_FRAME, AddedScene, add_pair, contract_of
from pancrafter.scratch import replace_file, undone_on_error
from pancrafter.sensors import SensorContract, load_contracts
from pancrafter.types import Json, Record
from pancrafter.vendor_files import tiff_profile

_Pixels = NDArray[Any]  # whatever type the file has
_SYNTHETIC_CRS = "EPSG:32631"
_MS_CROP = re.compile(r"MS rows (\d+)\.\.(\d+), columns (\d+)\.\.(\d+)")


class AddedPairs(Record):
    """What became of a folder of pairs; ``skipped`` holds name and reason."""

    added: tuple[AddedScene, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


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
    meta = _pair_meta(path.with_suffix(".json"))
    contract = contract_of(meta["sensor"], contracts)
    pan, ms, reduced = _pair_arrays(path, meta)
    frame = _real_frame(meta, pan.shape) or _synthetic_frame(path.stem, meta, reduced=reduced)
    specs = contract.subset(meta["bands"])
    folder = catalog_dir.absolute() / contract.name / path.stem
    pan_tif, ms_tif = folder / f"{path.stem}_pan.tif", folder / f"{path.stem}_ms.tif"
    with undone_on_error(folder):
        _write_tiff(pan_tif, pan[np.newaxis], frame.crs, frame.pan, ["pan"], time_of=path)
        _write_tiff(ms_tif, ms, frame.crs, frame.ms, [spec.name for spec in specs], time_of=path)
        return add_pair(
            catalog_dir,
            meta["sensor"],
            pan_tif,
            [ms_tif],
            item_id=path.stem,
            acquired=_pair_time(meta),
            bands=meta["bands"],
            properties=_pair_properties(meta, frame, reduced=reduced),
            contracts=contracts,
        )


def _pair_meta(path: Path) -> Json:
    try:
        meta: Json = json.loads(path.read_text(encoding="utf-8"))
        missing = {"sensor", "bands", "ratio"} - meta.keys()
    except (OSError, ValueError, AttributeError) as err:
        raise InvalidSceneError(f"{path}: not readable as JSON ({err}); expected the description of a pair") from err
    if missing:
        raise InvalidSceneError(f"{path}: {', '.join(sorted(missing))} missing; expected the description of a pair")
    return meta


def _pair_arrays(path: Path, meta: Json) -> tuple[_Pixels, _Pixels, bool]:
    """PAN ``(y, x)`` and MS ``(band, y, x)``, and whether both were degraded from a reference kept beside them."""
    try:
        with np.load(path) as archive:
            pan, ms, reduced = archive["pan"], archive["ms"], "gt" in archive.files
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as err:
        raise InvalidSceneError(f"{path}: not readable ({err}); expected npz with arrays pan and ms") from err
    ratio = int(meta["ratio"])
    expected = (len(meta["bands"]), *(size // ratio for size in pan.shape))
    if pan.ndim != 2 or ms.shape != expected or pan.shape != tuple(ratio * size for size in ms.shape[1:]):
        raise InvalidSceneError(
            f"{path}: pan is {pan.shape} and ms {ms.shape}, expected (y, x) and ({len(meta['bands'])}, y/{ratio}, "
            f"x/{ratio}); check arrays, bands and ratio"
        )
    return pan, ms, reduced


def _real_frame(meta: Json, pan_shape: tuple[int, ...]) -> _Frame | None:
    """The pair's own georeference, moved to its crop; None where it has none that fits its size.

    ``geo.transform`` is that of the whole PAN file and ``crop`` says which MS pixels were cut out of it;
    ``geo_offset_pan_px`` is how far (y, x) the MS grid begins after the PAN grid, in PAN pixels.
    """
    geo = meta.get("geo")
    if meta.get("georef") is not True or not geo:
        return None
    ratio = int(meta["ratio"])
    whole = rasterio.Affine(*geo["transform"])
    crop = _MS_CROP.search(str(meta.get("crop") or ""))
    row, col = (ratio * int(crop[1]), ratio * int(crop[3])) if crop else (0, 0)
    left, bottom, right, top = geo["bounds"]
    size_yx = (round((bottom - top) / whole.e), round((right - left) / whole.a))
    fits = all(start + part <= size for start, part, size in zip((row, col), pan_shape, size_yx, strict=True))
    if not fits or (crop is None and any(size - part >= ratio for size, part in zip(size_yx, pan_shape, strict=True))):
        return None
    pan = whole @ rasterio.Affine.translation(col, row)
    offset_y, offset_x = meta.get("geo_offset_pan_px") or (0.0, 0.0)
    ms = pan @ rasterio.Affine.translation(offset_x, offset_y) @ rasterio.Affine.scale(ratio)
    return _Frame(geo["crs"], pan, ms, "description")


def _synthetic_frame(name: str, meta: Json, *, reduced: bool) -> _Frame:
    """A place on the map that depends on the name alone, with true pixel sizes and coinciding outer corners."""
    gsd = (meta.get("gsd_m") or {}).get("pan")
    if not gsd:
        raise InvalidSceneError(f"pair {name}: gsd_m.pan is missing, expected metres; the pixel size cannot be guessed")
    ratio = int(meta["ratio"])
    step = float(gsd) * (ratio if reduced else 1)
    northing = 1_000_000 + 20_000 * (zlib.crc32(name.encode()) % 400)
    pan = rasterio.Affine(step, 0, 500_000, 0, -step, northing)
    ms = pan @ rasterio.Affine.scale(ratio)
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


def _pair_time(meta: Json) -> datetime | None:
    """The day that ``georef`` (``..., 20000913, ...``) or ``note`` (``2011-04-03``) names, at noon UTC."""
    for text, form in (
        (str(meta.get("georef")), r"\b(\d{4})(\d{2})(\d{2})\b"),
        (str(meta.get("note")), r"(\d{4})-(\d{2})-(\d{2})"),
    ):
        if match := re.search(form, text):
            try:
                return datetime(*(int(part) for part in match.groups()), 12, tzinfo=UTC)  # type: ignore[misc, arg-type]
            except ValueError:
                continue
    return None


def _pair_properties(meta: Json, frame: _Frame, *, reduced: bool) -> Json:
    source = " ".join(filter(None, [str(meta.get("repo") or ""), str(meta.get("commit") or "")]))
    text = str(meta.get("licence") or "not stated")
    facts = {
        "license": "CC-BY-SA-4.0" if "CC BY-SA 4.0" in text else "other",
        "ingest:license_text": text,
        "ingest:source": source or None,
        "ingest:source_paths": meta.get("paths"),
        "ingest:note": meta.get("note"),
        "ingest:georeference": frame.origin,
        "ingest:bands_from": "description",
        "ingest:datetime_from": "description" if _pair_time(meta) else None,
        "ingest:reduced_resolution": True if reduced else None,
    }
    return {name: value for name, value in facts.items() if value is not None}
