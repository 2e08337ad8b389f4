"""Turns a vendor's PAN and MS files into items of a static STAC catalog that ``recognise`` accepts.

Headers are read, pixels are not judged: that is left to staging. What the files do not say (acquisition time, missing
georeference) is taken from options or assumed, and the item says which: its ``ingest:*`` properties.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pystac

from pancrafter.errors import ContractError, GridMismatchError, InvalidSceneError
from pancrafter.grid import needs_resampling, pair_grids, same_pixels
from pancrafter.item import band_object, extensions_used, footprint, json_number, multihash_of
from pancrafter.scratch import undone_on_error
from pancrafter.sensors import GENERIC, BandSpec, SensorContract, fold, get_contract, load_contracts
from pancrafter.static_catalog import Change, StaticCatalog, catalog_lock
from pancrafter.times import in_utc, rfc3339
from pancrafter.types import Json, Record
from pancrafter.vendor_files import DatetimeSource, Georeference, Raster, gsd_of, place_files, read_header

PAN_KEY, MS_KEY = "pan", "ms"
"""Asset keys of PAN and of a multi-band MS file; MS files of one band are called like their band."""

USUAL_ORDER = "usual order of the sensor"
"""Value of ``ingest:bands_from`` where nothing says which band is which."""

SYNTHETIC_FRAME = "assumed, not real: only the pixel size is true"
"""Value of ``ingest:georeference`` where the place on the map was made up."""

_DATA_TYPES = frozenset(
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
)
_GENERIC_STEMS = frozenset(("pan", "panchromatic", "p", "b8", "image", "img", "data"))


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


class _Member(NamedTuple):
    """One file of a pair: its asset key and what its bands are."""

    key: str
    raster: Raster
    bands: tuple[Json, ...]


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
        item_id: By default the stem of ``pan``, or the name of its folder where the stem says nothing. Only an id that
            is given lets copies of other files be replaced.
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
    contract = contract_of(sensor, known)
    name = item_id or _default_id(pan)
    catalog = StaticCatalog(catalog_dir, contract)
    with catalog_lock(catalog_dir), undone_on_error(catalog.item_path(name).parent):
        path = catalog.item_path(name)
        replace = item_id is not None or not path.exists()
        files = place_files(path.parent, pan, ms, contract, copy=copy, georeference=georeference, replace=replace)
        pan_raster = read_header(files[0], pan)
        named_count = len(bands) if bands is not None and len(ms) == 1 else None
        ms_rasters = [read_header(path, given, named_count) for path, given in zip(files[1:], ms, strict=True)]
        specs, bands_from = _assign_bands(contract, ms_rasters, bands)
        _check_pair(contract, pan_raster, ms_rasters)
        moment, datetime_from = _acquisition(acquired, pan_raster)
        members = (_pan_member(contract, pan_raster), *_ms_members(ms_rasters, specs))
        facts = {
            "platform": _platform(sensor, contract),
            "gsd": gsd_of(pan_raster),
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


def _acquisition(given: datetime | None, pan: Raster) -> tuple[datetime, DatetimeSource]:
    if given is not None:
        return in_utc(given), "option"
    return pan.acquired or (datetime.fromtimestamp(int(pan.path.stat().st_mtime), UTC), "file time")


def contract_of(sensor: str, contracts: Mapping[str, SensorContract]) -> SensorContract:
    """The contract of a sensor, named by its name or by a platform; the generic one will not do.

    Raises:
        ContractError: There is none.
    """
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
    contract: SensorContract, rasters: Sequence[Raster], named: Sequence[str] | None
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
    return contract.subset(delivery.bands), USUAL_ORDER


def _check_delivery(contract: SensorContract, specs: Sequence[BandSpec], rasters: Sequence[Raster]) -> None:
    """Some set of bands the sensor is sold with must be complete; more bands than that do no harm."""
    names = {spec.name for spec in specs}
    if not any(names >= set(delivery.bands) for delivery in contract.band_sets):
        raise InvalidSceneError(_wrong_bands(contract, rasters, "bands " + ", ".join(spec.name for spec in specs)))


def _wrong_bands(contract: SensorContract, rasters: Sequence[Raster], found: str) -> str:
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


def _check_pair(contract: SensorContract, pan: Raster, rasters: Sequence[Raster]) -> None:
    if pan.band_count != 1:
        raise InvalidSceneError(
            f"{pan.given}: has {pan.band_count} bands, expected PAN with one; are PAN and MS swapped?"
        )
    for raster in (pan, *rasters):
        if raster.dtype not in _DATA_TYPES:
            raise InvalidSceneError(f"{raster.given}: pixels are {raster.dtype}, expected integers or real numbers")
    for raster in rasters:
        if not same_pixels(raster.grid, rasters[0].grid):
            raise GridMismatchError(
                f"{raster.given} and {rasters[0].given}: MS bands on different grids, expected one; resample them first"
            )
        if needs_resampling(pan.grid, raster.grid, contract.ratio):
            continue
        try:
            pair_grids(pan.grid, raster.grid, contract.ratio)
        except GridMismatchError as err:
            raise GridMismatchError(f"{pan.given} (PAN) and {raster.given} (MS): {err.message}") from err


def _pan_member(contract: SensorContract, raster: Raster) -> _Member:
    band = band_object("pan", "pan", contract.pan_center_um, contract.pan_fwhm_um)
    return _Member(PAN_KEY, raster, (band,))


def _ms_members(rasters: Sequence[Raster], specs: Sequence[BandSpec]) -> list[_Member]:
    bands = tuple(band_object(spec.name, spec.common_name, spec.center_um, spec.fwhm_um) for spec in specs)
    if len(rasters) == 1:
        return [_Member(MS_KEY, rasters[0], bands)]
    return [_Member(spec.name, r, (band,)) for spec, r, band in zip(specs, rasters, bands, strict=True)]


def _asset(member: _Member, item_folder: Path, root: Path) -> pystac.Asset:
    raster = member.raster
    grid = raster.grid
    bands = [dict(band) for band in member.bands]
    fields: Json = {
        "gsd": gsd_of(raster),
        "proj:code": grid.crs if re.fullmatch(r"[A-Z]+:\S+", grid.crs) else None,
        "proj:shape": list(grid.shape_yx),
        "proj:transform": list(grid.transform),
        "data_type": raster.dtype,
        "file:size": raster.path.stat().st_size,
    }
    if fields["proj:code"] is None:
        fields["proj:wkt2"] = raster.wkt
    for field, values, neutral in (
        ("nodata", [None if value is None else json_number(value) for value in raster.nodata], None),
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
    return pystac.Asset(href=href, media_type=raster.media_type, roles=["data"], extra_fields=fields)


def _item(
    item_id: str, members: Sequence[_Member], acquired: datetime, properties: Mapping[str, Any], catalog: StaticCatalog
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
        properties={**properties, "datetime": rfc3339(acquired)},
        collection=catalog.contract.name,
    )
    path = catalog.item_path(item_id)
    item.set_self_href(path.as_posix())
    for member in members:
        item.add_asset(member.key, _asset(member, path.parent, catalog.root))
    item.stac_extensions = extensions_used(item)
    return item
