"""Turns a vendor's PAN and MS files into items of a static STAC catalog that ``recognise`` accepts.

Headers are read, pixels are not judged: that is left to staging. What the files do not say (acquisition time, missing
georeference) is taken from options or assumed, and the item says which: its ``ingest:*`` properties.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pystac
import rasterio
from pydantic import Field
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pancrafter.cog import SIDECARS
from pancrafter.errors import ContractError, GridMismatchError, InvalidSceneError, PancrafterError, SinkError
from pancrafter.grid import needs_resampling, pair_grids
from pancrafter.item import footprint, multihash_of
from pancrafter.recognise import recognise
from pancrafter.sensors import GENERIC, BandSpec, SensorContract, fold, get_contract, load_contracts
from pancrafter.types import PixelGrid, Record, Refusal

PAN_KEY, MS_KEY = "pan", "ms"
"""Asset keys of PAN and of a multi-band MS file; MS files of one band are called like their band."""

SYNTHETIC_FRAME = "assumed, not real: only the pixel size is true"
"""Value of ``ingest:georeference`` where the place on the map was made up."""

METRES_PER_DEGREE = math.pi / 180 * 6_378_137
"""Along a meridian, on a sphere of the WGS 84 equatorial radius: sizes of geographic pixels are rounded figures."""

_EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v2.0.0", "eo/v2.0.0", "file/v2.1.0")
]
_DATA_TYPES = frozenset(
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
)
_GENERIC_STEMS = frozenset(("pan", "panchromatic", "p", "b8", "image", "img", "data"))
_Json = dict[str, Any]  # parsed JSON
_Pixels = npt.NDArray[Any]  # whatever type the file has

DatetimeSource = Literal["option", "description", "file header", "TIFF tag", "file time"]
Change = Literal["added", "updated", "unchanged"]


class Georeference(Record):
    """A frame declared for files that carry none: ``x, y`` is the outer corner of the first PAN pixel, in CRS units."""

    crs: str = Field(description="Projected CRS, such as EPSG:32633.")
    x: float
    y: float
    gsd: float = Field(gt=0, description="PAN pixel size, CRS units.")


class AddedScene(Record):
    """What happened to one pair. ``datetime_from`` and ``bands_from`` say where item facts come from."""

    collection: str
    item_id: str
    item_path: str
    sensor: str
    bands: tuple[str, ...]
    bands_from: str
    acquired: str
    datetime_from: DatetimeSource
    synthetic_georeference: bool
    change: Change


class AddedPairs(Record):
    """What became of a folder of pairs; ``skipped`` holds name and reason."""

    added: tuple[AddedScene, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


class _Raster(NamedTuple):
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


class _Member(NamedTuple):
    """One file of a pair: its asset key and what its bands are."""

    key: str
    raster: _Raster
    bands: tuple[_Json, ...]
    role: str


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
    _projected(frame)
    return frame


def add_pair(
    catalog_dir: Path,
    sensor: str,
    pan: Path,
    ms: Sequence[Path],
    *,
    item_id: str | None = None,
    acquired: datetime | None = None,
    bands: Sequence[str] | None = None,
    copy: bool = False,
    georeference: Georeference | None = None,
    properties: Mapping[str, Any] | None = None,
    contracts: Mapping[str, SensorContract] | None = None,
    checksums: bool = True,
) -> AddedScene:
    """Describe one PAN file and its MS file(s) as an item of a static catalog; adding it again changes nothing.

    Files stay where they are (relative href inside the catalog folder, absolute elsewhere) unless ``copy``. Files
    without georeference are always copied, because a declared frame has to be written into the header.

    Args:
        catalog_dir: Folder of the catalog; made when missing.
        sensor: Name of a sensor contract, or of a platform that one lists.
        pan: One-band file, any format GDAL reads.
        ms: One multi-band file, or one file per band.
        item_id: By default the stem of ``pan``, after the name of its folder where the stem says nothing.
        acquired: Acquisition time; by default from the header, a TIFF tag, or the file time.
        bands: MS bands in file order; by default band descriptions, file names, or the sensor's usual order.
        copy: Copy the files into the catalog folder.
        georeference: Frame for files that have none.
        properties: Further properties of the item.
        contracts: Sensor contracts; by default the bundled ones.
        checksums: Read the files for their checksums. Without them it is not noticed when they change.

    Raises:
        InvalidSceneError: A file is missing, no raster, has no CRS, other bands than the sensor's, does not pair with
            the other, or the item would be refused by discovery.
        ContractError: The sensor is unknown.
        SinkError: The catalog folder is not a catalog or cannot be written.
    """
    known = contracts if contracts is not None else load_contracts()
    contract = _contract(sensor, known)
    name = item_id or _default_id(pan)
    catalog = _Catalog(catalog_dir, contract)
    with _catalog_lock(catalog_dir), _undone_on_error(catalog.item_path(name).parent):
        files = _place_files(catalog.item_path(name).parent, pan, ms, contract, copy=copy, georeference=georeference)
        pan_raster = _read_header(files[0], pan)
        named_count = len(bands) if bands is not None and len(ms) == 1 else None
        ms_rasters = [_read_header(path, given, named_count) for path, given in zip(files[1:], ms, strict=True)]
        specs, bands_from = _assign_bands(contract, ms_rasters, bands)
        _check_pair(contract, pan_raster, ms_rasters)
        moment, datetime_from = _acquisition(acquired, pan_raster)
        members = (_pan_member(contract, pan_raster), *_ms_members(ms_rasters, specs))
        facts = {
            "platform": _platform(sensor, contract),
            "gsd": _gsd(pan_raster),
            "ingest:datetime_from": datetime_from,
            "ingest:bands_from": bands_from,
            "ingest:georeference": "file header" if georeference is None else SYNTHETIC_FRAME,
            **(properties or {}),
        }
        item = _item(name, members, moment, facts, catalog)
        if checksums:
            for member in members:
                item.assets[member.key].extra_fields["file:checksum"] = multihash_of(member.raster.path)
        change = catalog.put(item, known)
    return AddedScene(
        collection=contract.name,
        item_id=name,
        item_path=str(catalog.item_path(name)),
        sensor=contract.name,
        bands=tuple(spec.name for spec in specs),
        bands_from=item.properties["ingest:bands_from"],
        acquired=item.properties["datetime"],
        datetime_from=item.properties["ingest:datetime_from"],
        synthetic_georeference=item.properties["ingest:georeference"] == SYNTHETIC_FRAME,
        change=change,
    )


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


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # Any: rasterio has no types
    if not path.exists():
        raise InvalidSceneError(f"{path}: no such file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                if ColorInterp.palette in source.colorinterp:
                    raise InvalidSceneError(
                        f"{path}: its pixels are places in a palette, expected DN; expand it: "
                        "gdal_translate -expand rgb"
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


def _read_header(path: Path, given: Path, named_count: int | None = None) -> _Raster:
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
        authority = source.crs.to_authority()
        crs = ":".join(authority) if authority else source.crs.to_wkt(version="WKT2_2019")
        factor = source.crs.linear_units_factor[1] if source.crs.is_projected else METRES_PER_DEGREE
        return _Raster(
            path=path,
            given=given,
            grid=PixelGrid(crs=crs, transform=tuple(source.transform)[:6], shape_yx=source.shape),
            wkt=source.crs.to_wkt(version="WKT2_2019"),
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


def _acquisition(given: datetime | None, pan: _Raster) -> tuple[datetime, DatetimeSource]:
    if given is not None:
        return (given if given.tzinfo else given.replace(tzinfo=UTC)).astimezone(UTC), "option"
    return pan.acquired or (datetime.fromtimestamp(int(pan.path.stat().st_mtime), UTC), "file time")


def _place_files(
    folder: Path,
    pan: Path,
    ms: Sequence[Path],
    contract: SensorContract,
    *,
    copy: bool,
    georeference: Georeference | None,
) -> list[Path]:
    """The files the item will refer to: the given ones, or their copies in the item's folder."""
    if not ms:
        raise InvalidSceneError(f"{pan}: no MS file given; expected one multi-band file or one file per band")
    sources = [path.absolute() for path in (pan, *ms)]
    if len(set(sources)) != len(sources):
        raise InvalidSceneError(f"{pan}: the same file is given twice; expected PAN and MS in files of their own")
    if georeference is not None:
        targets = _targets(folder, [f"{path.stem}.tif" for path in sources])
        steps = [georeference.gsd, *[georeference.gsd * contract.ratio] * len(ms)]
        for path, target, step in zip(sources, targets, steps, strict=True):
            _copy_with_frame(path, target, georeference, step)
        return targets
    if copy:
        targets = _targets(folder, [path.name for path in sources])
        for path, target in zip(sources, targets, strict=True):
            _copy(path, target)
        return targets
    return sources


def _targets(folder: Path, names: Sequence[str]) -> list[Path]:
    """Where the copies go: files of the same name (``B1/raw.tif``, ``B2/raw.tif``) into folders by their number."""
    return [
        folder / (name if names.count(name) == 1 else f"{number}/{name}") for number, name in enumerate(names, start=1)
    ]


def _copy(path: Path, target: Path) -> None:
    with _opened(path):
        pass
    if target == path:
        return
    for suffix in SIDECARS:  # they first: without its mask nodata would be data
        beside = path.with_name(path.name + suffix)
        if beside.is_file():
            _replace(target.with_name(target.name + suffix), partial(shutil.copyfile, beside), time_of=beside)
    _replace(target, partial(shutil.copyfile, path), time_of=path)


def _copy_with_frame(path: Path, target: Path, frame: Georeference, step: float) -> None:
    with _opened(path) as source:
        if _is_georeferenced(source):
            raise InvalidSceneError(
                f"{path}: has a georeference already ({source.crs}); leave out the assumed one (--assume-origin)"
            )
        transform = rasterio.Affine(step, 0, frame.x, 0, -step, frame.y)
        profile = _tiff_profile(source.count, source.shape, str(np.result_type(*source.dtypes)), frame.crs, transform)
        flags = source.mask_flag_enums[0]
        has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags

        def write(temporary: Path) -> None:
            inside = rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True)
            with inside, rasterio.open(temporary, "w", **profile | {"nodata": source.nodata}) as out:
                out.colorinterp = source.colorinterp  # first: what GDAL cannot say in a tag goes into the header
                for _, window in out.block_windows(1):
                    out.write(_read_window(path, source.read, window), window=window)
                    if has_mask:
                        out.write_mask(_read_window(path, source.dataset_mask, window), window=window)
                for band, text in enumerate(source.descriptions, start=1):
                    out.set_band_description(band, text or "")
                out.scales, out.offsets = source.scales, source.offsets
                out.update_tags(**{k: v for k, v in source.tags().items() if k == "TIFFTAG_DATETIME"})

        _projected(frame)
        _replace(target, write, time_of=path)


def _read_window(path: Path, read: Callable[..., Any], window: Any) -> _Pixels:  # Any: rasterio has no types
    try:
        pixels: _Pixels = read(window=window)
    except RasterioError as err:
        raise InvalidSceneError(f"{path}: its pixels cannot be read ({err}); is the file complete?") from err
    return pixels


def _tiff_profile(
    count: int, shape_yx: tuple[int, int], dtype: str, crs: str, transform: rasterio.Affine
) -> dict[str, Any]:
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


def _replace(target: Path, write: Callable[[Path], object], *, time_of: Path | None = None) -> None:
    """Write a file beside its target, then switch: a reader sees the old one or the new one.

    Args:
        target: The file to be.
        write: Fills the path it is given.
        time_of: Give the new file the time of this one, as its best hint at when the pixels are from.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
            temporary = Path(scratch) / target.name
            write(temporary)
            if time_of is not None:
                os.utime(temporary, ns=(time_of.stat().st_atime_ns, time_of.stat().st_mtime_ns))
            temporary.replace(target)
    except OSError as err:  # RasterioIOError is one too
        raise SinkError(f"{target}: cannot be written ({err}); check rights and free space") from err


@contextmanager
def _undone_on_error(folder: Path) -> Iterator[None]:
    """Leave no copies behind for an item that was not added."""
    existed = folder.exists()
    try:
        yield
    except PancrafterError:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _projected(frame: Georeference) -> None:
    try:
        crs = rasterio.CRS.from_user_input(frame.crs)
    except (RasterioError, ValueError) as err:
        raise InvalidSceneError(f"georeference: CRS {frame.crs!r} is unknown; expected one like EPSG:32633") from err
    if not crs.is_projected:
        raise InvalidSceneError(f"georeference: CRS {frame.crs} is not projected; expected one in metres, like UTM")


# --- what the files are -----------------------------------------------------------------------------------------------


def _contract(sensor: str, contracts: Mapping[str, SensorContract]) -> SensorContract:
    listed = (c for c in contracts.values() if fold(sensor) in {fold(name) for name in (c.name, *c.platforms)})
    contract = contracts.get(sensor) or next(listed, None) or get_contract(sensor)
    if contract.name == GENERIC:
        raise ContractError(
            "a catalog needs the real sensor, found 'generic'; see `pancrafter sensors list`, or sharpen the two files "
            "directly with `pancrafter sharpen`"
        )
    return contract


def _platform(sensor: str, contract: SensorContract) -> str:
    """The contract's spelling of the satellite the user named (``Landsat 8 OLI`` is ``landsat-8``), else its first."""
    named = (platform for platform in contract.platforms if fold(sensor).startswith(fold(platform)))
    return next(named, contract.platforms[0])


def _default_id(pan: Path) -> str:
    stem = pan.stem if fold(pan.stem) not in _GENERIC_STEMS else pan.absolute().parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "scene"


def _assign_bands(
    contract: SensorContract, rasters: Sequence[_Raster], named: Sequence[str] | None
) -> tuple[tuple[BandSpec, ...], str]:
    """The contract's bands in the order of the files, and who says so."""
    count = sum(raster.band_count for raster in rasters)
    if len(rasters) > 1 and (wide := next((r for r in rasters if r.band_count != 1), None)):
        raise InvalidSceneError(
            f"{wide.given}: has {wide.band_count} bands among {len(rasters)} MS files, expected one band per file, or "
            "one file with all bands"
        )
    if named is not None and len(named) != count:
        raise InvalidSceneError(
            f"{rasters[0].given}: has {count} bands, but {len(named)} were named: {', '.join(named)}"
        )
    labels = [text for raster in rasters for text in raster.descriptions]
    proposals: list[tuple[Sequence[BandSpec | None], str]] = []
    if named is not None:
        proposals.append((contract.subset(named), "option"))
    proposals.append(([contract.find_band(label) if label else None for label in labels], "band descriptions"))
    if len(rasters) > 1:
        proposals.append((_bands_in_names(contract, [raster.given.stem for raster in rasters]), "file names"))
    for proposal, origin in proposals:
        specs = tuple(spec for spec in proposal if spec is not None)
        if len({spec.name for spec in specs}) == count:
            _check_delivery(contract, specs, rasters)
            return specs, origin
        if origin == "option":
            raise InvalidSceneError(f"{rasters[0].given}: a band is named twice: {', '.join(named or ())}")
    delivery = contract.delivery_of(count)
    alpha_may_be_image = len(rasters) == 1 and rasters[0].has_alpha and contract.delivery_of(count + 1) is not None
    if delivery is None or alpha_may_be_image:
        raise InvalidSceneError(_wrong_bands(contract, rasters, f"{count} bands"))
    return contract.subset(delivery.bands), "usual order of the sensor"


def _check_delivery(contract: SensorContract, specs: Sequence[BandSpec], rasters: Sequence[_Raster]) -> None:
    """Some set of bands the sensor is sold with must be complete; more bands than that do no harm."""
    names = {spec.name for spec in specs}
    if not any(names >= set(delivery.bands) for delivery in contract.band_sets):
        raise InvalidSceneError(_wrong_bands(contract, rasters, "bands " + ", ".join(spec.name for spec in specs)))


def _wrong_bands(contract: SensorContract, rasters: Sequence[_Raster], found: str) -> str:
    expected = " or ".join(f"{len(d.bands)} ({', '.join(d.bands)})" for d in contract.band_sets)
    files = ", ".join(str(raster.given) for raster in rasters)
    if any(raster.has_alpha for raster in rasters):
        found += (
            " beside alpha (which may be image: GDAL calls the last of four bytes so; name what is image with --bands)"
        )
    return f"{files}: found {found}, expected for {contract.name} {expected}; check the files and --sensor"


def _bands_in_names(contract: SensorContract, stems: Sequence[str]) -> list[BandSpec | None]:
    """The band each file name ends in, or contains last: ``LC08_..._B4``, ``scene_red``."""
    found: list[BandSpec | None] = []
    for stem in stems:
        words = [stem, *reversed(re.split(r"[^A-Za-z0-9]+", stem))]
        found.append(next((band for word in words if word and (band := contract.find_band(word))), None))
    return found


def _check_pair(contract: SensorContract, pan: _Raster, rasters: Sequence[_Raster]) -> None:
    if pan.band_count != 1:
        raise InvalidSceneError(
            f"{pan.given}: has {pan.band_count} bands, expected PAN with one; are PAN and MS swapped?"
        )
    for raster in (pan, *rasters):
        if raster.dtype not in _DATA_TYPES:
            raise InvalidSceneError(f"{raster.given}: pixels are {raster.dtype}, expected integers or real numbers")
    for raster in rasters:
        if raster.grid != rasters[0].grid:
            raise GridMismatchError(
                f"{raster.given} and {rasters[0].given}: MS bands on different grids, expected one; resample them first"
            )
        if needs_resampling(pan.grid, raster.grid, contract.ratio):
            continue
        try:
            pair_grids(pan.grid, raster.grid, contract.ratio)
        except GridMismatchError as err:
            raise GridMismatchError(f"{pan.given} (PAN) and {raster.given} (MS): {err.message}") from err


def _gsd(raster: _Raster) -> float:
    """Pixel size in metres (rows, which a map projection or a meridian keeps true to scale)."""
    return float(f"{abs(raster.grid.transform[4]) * raster.metres_per_unit:.6g}")


# --- the item ---------------------------------------------------------------------------------------------------------


def _pan_member(contract: SensorContract, raster: _Raster) -> _Member:
    band = _band_object("pan", "pan", contract.pan_center_um, contract.pan_fwhm_um)
    return _Member(PAN_KEY, raster, (band,), "data")


def _ms_members(rasters: Sequence[_Raster], specs: Sequence[BandSpec]) -> list[_Member]:
    bands = tuple(_band_object(spec.name, spec.common_name, spec.center_um, spec.fwhm_um) for spec in specs)
    if len(rasters) == 1:
        return [_Member(MS_KEY, rasters[0], bands, "data")]
    return [_Member(spec.name, r, (band,), "data") for spec, r, band in zip(specs, rasters, bands, strict=True)]


def _band_object(name: str, common_name: str | None, center_um: float | None, fwhm_um: float | None) -> _Json:
    facts = {
        "eo:common_name": common_name,
        "eo:center_wavelength": center_um,
        "eo:full_width_half_max": fwhm_um,
    }
    return {"name": name} | {field: value for field, value in facts.items() if value is not None}


def _asset(member: _Member, item_folder: Path, root: Path) -> pystac.Asset:
    raster = member.raster
    grid = raster.grid
    bands = [dict(band) for band in member.bands]
    fields: _Json = {
        "gsd": _gsd(raster),
        "proj:code": grid.crs if re.fullmatch(r"[A-Z]+:\S+", grid.crs) else None,
        "proj:shape": list(grid.shape_yx),
        "proj:transform": list(grid.transform),
        "data_type": raster.dtype,
        "file:size": raster.path.stat().st_size,
    }
    if fields["proj:code"] is None:
        fields["proj:wkt2"] = raster.wkt
    for field, values, neutral in (
        ("nodata", [_json_number(value) for value in raster.nodata], None),
        ("raster:scale", list(raster.scales), 1.0),
        ("raster:offset", list(raster.offsets), 0.0),
    ):
        if len(set(values)) == 1:
            fields |= {field: values[0]} if values[0] != neutral else {}
            continue
        for band, value in zip(bands, values, strict=True):
            band.update({field: value} if value is not None else {})
    fields["bands"] = bands
    href = raster.path.as_posix()
    if raster.path.is_relative_to(root):
        href = Path(os.path.relpath(raster.path, item_folder)).as_posix()
    return pystac.Asset(href=href, media_type=raster.media_type, roles=[member.role], extra_fields=fields)


def _json_number(value: float | None) -> float | str | None:
    """Nodata as STAC writes it: NaN and infinities are words."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _item(
    item_id: str, members: Sequence[_Member], acquired: datetime, properties: Mapping[str, Any], catalog: _Catalog
) -> pystac.Item:
    pan = members[0].raster
    try:
        geometry, bbox = footprint(pan.grid)
    except GridMismatchError as err:
        raise GridMismatchError(f"{pan.path}: {err}") from err
    item = pystac.Item(
        id=item_id,
        geometry=geometry,
        bbox=bbox,
        datetime=acquired,
        properties={**properties, "datetime": _rfc3339(acquired)},
        stac_extensions=list(_EXTENSIONS),
        collection=catalog.contract.name,
    )
    path = catalog.item_path(item_id)
    item.set_self_href(path.as_posix())
    for member in members:
        item.add_asset(member.key, _asset(member, path.parent, catalog.root))
    return item


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


# --- the catalog ------------------------------------------------------------------------------------------------------


@contextmanager
def _catalog_lock(folder: Path) -> Iterator[None]:
    """One writer at a time: two additions must not drop each other's links."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("w")
    except OSError as err:
        raise SinkError(f"{folder}: catalog folder cannot be written ({err}); check path, rights and space") from err
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class _Catalog:
    """A static catalog: ``catalog.json``, ``SENSOR/collection.json``, ``SENSOR/ITEM/ITEM.json``, relative links."""

    def __init__(self, folder: Path, contract: SensorContract) -> None:
        self.root = folder.absolute()
        self.contract = contract
        self._catalog_path = self.root / "catalog.json"
        self._collection_path = self.root / contract.name / "collection.json"

    def item_path(self, item_id: str) -> Path:
        return self.root / self.contract.name / item_id / f"{item_id}.json"

    def put(self, item: pystac.Item, contracts: Mapping[str, SensorContract]) -> Change:
        """Write an item and link it; item first, so that no link ever leads nowhere."""
        path = self.item_path(item.id)
        old = _read_json(path) if path.exists() else None
        now = _rfc3339(datetime.now(UTC).replace(microsecond=0))
        if old is not None:
            _check_same_pair(item, old, path)
            _keep_file_time(item, old)
        item.properties |= {"created": old["properties"].get("created", now) if old else now, "updated": now}
        document = self._document(item)
        unchanged = old is not None and _essence(old) == _essence(document)
        if not unchanged:
            _require_recognised(item, contracts)
            _write_json(path, document)
        self._link(item)
        return "unchanged" if unchanged else ("updated" if old else "added")

    def _document(self, item: pystac.Item) -> _Json:
        document: _Json = item.to_dict(include_self_link=False, transform_hrefs=False)
        document["links"] = [
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../collection.json", "type": "application/json"},
            {"rel": "collection", "href": "../collection.json", "type": "application/json"},
        ]
        return document

    def _link(self, item: pystac.Item) -> None:
        collection = _read_json(self._collection_path) if self._collection_path.exists() else self._new_collection(item)
        before = json.dumps(collection)
        _add_link(collection, "item", f"./{item.id}/{item.id}.json", "application/geo+json")
        _widen(collection["extent"], item)
        if json.dumps(collection) != before or not self._collection_path.exists():
            _write_json(self._collection_path, collection)
        catalog = _read_json(self._catalog_path) if self._catalog_path.exists() else self._new_catalog()
        before = json.dumps(catalog)
        if catalog.get("type") not in {"Catalog", "Collection"} or not isinstance(catalog.get("links"), list):
            raise SinkError(f"{self._catalog_path}: not a STAC catalog; choose another folder or mend the file")
        _add_link(catalog, "child", f"./{self.contract.name}/collection.json", "application/json")
        if json.dumps(catalog) != before or not self._catalog_path.exists():
            _write_json(self._catalog_path, catalog)

    def _new_catalog(self) -> _Json:
        catalog = pystac.Catalog(id=self.root.name or "catalog", description="PAN and MS imagery added from files.")
        document: _Json = catalog.to_dict(include_self_link=False)
        document["links"] = [{"rel": "root", "href": "./catalog.json", "type": "application/json"}]
        return document

    def _new_collection(self, item: pystac.Item) -> _Json:
        extent = pystac.Extent.from_items([item])
        collection = pystac.Collection(
            id=self.contract.name,
            title=self.contract.title,
            description=f"PAN and MS pairs of {self.contract.title}, added from files.",
            extent=extent,
            license="other",
        )
        document: _Json = collection.to_dict(include_self_link=False)
        document["links"] = [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
        ]
        return document


def _require_recognised(item: pystac.Item, contracts: Mapping[str, SensorContract]) -> None:
    verdict = recognise(item, contracts)
    if isinstance(verdict, Refusal):
        files = ", ".join(asset.href for asset in item.assets.values())
        raise InvalidSceneError(f"{files}: discovery would refuse this item ({verdict.code}): {verdict.reason}")


def _check_same_pair(item: pystac.Item, old: _Json, path: Path) -> None:
    """An id may be reused for the same files, changed or moved; not for a different pair."""
    pairs = [(asset, old["assets"].get(key, {})) for key, asset in item.assets.items()]
    moved = [new.href != before.get("href") for new, before in pairs]
    altered = [new.extra_fields.get("file:checksum") != before.get("file:checksum") for new, before in pairs]
    if all(moved) and all(altered):
        raise InvalidSceneError(
            f"{path}: item {item.id} exists already for other files ({pairs[0][1].get('href')}); "
            "give another id with --id"
        )


def _keep_file_time(item: pystac.Item, old: _Json) -> None:
    """A file time is only a guess: touching a file must not turn the same pixels into a new acquisition."""
    same = all(
        asset.extra_fields.get("file:checksum") == old["assets"].get(key, {}).get("file:checksum")
        for key, asset in item.assets.items()
    )
    guessed = "file time"
    if same and item.properties["ingest:datetime_from"] == guessed == old["properties"].get("ingest:datetime_from"):
        item.datetime = pystac.utils.str_to_datetime(old["properties"]["datetime"])
        item.properties["datetime"] = old["properties"]["datetime"]


def _essence(document: _Json) -> _Json:
    kept = {name: value for name, value in document["properties"].items() if name not in {"created", "updated"}}
    essence: _Json = json.loads(json.dumps({**document, "properties": kept}))
    return essence


def _add_link(document: _Json, rel: str, href: str, media_type: str) -> None:
    present = {urlsplit(str(link.get("href"))).path.removeprefix("./") for link in document["links"]}
    if href.removeprefix("./") not in present:
        document["links"].append({"rel": rel, "href": href, "type": media_type})


def _widen(extent: _Json, item: pystac.Item) -> None:
    """Make the collection's extent hold the item; a box across the antimeridian widens it to all longitudes."""
    west, south, east, north = item.bbox or [-180.0, -90.0, 180.0, 90.0]
    if west > east:
        west, east = -180.0, 180.0
    box = extent["spatial"]["bbox"][0]
    extent["spatial"]["bbox"][0] = [min(box[0], west), min(box[1], south), max(box[2], east), max(box[3], north)]
    times = [item.properties["datetime"], *filter(None, extent["temporal"]["interval"][0])]
    times.sort(key=pystac.utils.str_to_datetime)
    extent["temporal"]["interval"][0] = [times[0], times[-1]]


def _read_json(path: Path) -> _Json:
    try:
        document: _Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise SinkError(f"{path}: not readable as JSON ({err}); mend or remove the file") from err
    return document


def _write_json(path: Path, document: _Json) -> None:
    text = json.dumps(document, indent=2)
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


# --- pairs of arrays --------------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    crs: str
    pan: rasterio.Affine
    ms: rasterio.Affine
    origin: str


_SYNTHETIC_CRS = "EPSG:32631"
_MS_CROP = re.compile(r"MS rows (\d+)\.\.(\d+), columns (\d+)\.\.(\d+)")


def _add_npz(catalog_dir: Path, path: Path, contracts: Mapping[str, SensorContract]) -> AddedScene:
    meta = _pair_meta(path.with_suffix(".json"))
    contract = _contract(meta["sensor"], contracts)
    pan, ms, reduced = _pair_arrays(path, meta)
    frame = _real_frame(meta, pan.shape) or _synthetic_frame(path.stem, meta, reduced=reduced)
    specs = contract.subset(meta["bands"])
    folder = catalog_dir.absolute() / contract.name / path.stem
    pan_tif, ms_tif = folder / f"{path.stem}_pan.tif", folder / f"{path.stem}_ms.tif"
    with _undone_on_error(folder):
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


def _pair_meta(path: Path) -> _Json:
    try:
        meta: _Json = json.loads(path.read_text(encoding="utf-8"))
        missing = {"sensor", "bands", "ratio"} - meta.keys()
    except (OSError, ValueError, AttributeError) as err:
        raise InvalidSceneError(f"{path}: not readable as JSON ({err}); expected the description of a pair") from err
    if missing:
        raise InvalidSceneError(f"{path}: {', '.join(sorted(missing))} missing; expected the description of a pair")
    return meta


def _pair_arrays(path: Path, meta: _Json) -> tuple[_Pixels, _Pixels, bool]:
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


def _real_frame(meta: _Json, pan_shape: tuple[int, ...]) -> _Frame | None:
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


def _synthetic_frame(name: str, meta: _Json, *, reduced: bool) -> _Frame:
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
    profile = _tiff_profile(pixels.shape[0], pixels.shape[1:], str(pixels.dtype), crs, transform)

    def write(temporary: Path) -> None:
        with rasterio.open(temporary, "w", **profile) as out:
            out.write(pixels)
            out.descriptions = tuple(descriptions)

    _replace(path, write, time_of=time_of)


def _pair_time(meta: _Json) -> datetime | None:
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


def _pair_properties(meta: _Json, frame: _Frame, *, reduced: bool) -> _Json:
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
