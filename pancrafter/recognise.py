"""From a STAC item to a `Scene` or a `Refusal`, by the rules of the sensor contracts and metadata alone.

Metadata only proposes: staging reads the file headers and may still refuse. Nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from pancrafter.access import spelled_out, without_controls
from pancrafter.crawl import local_path
from pancrafter.examine import NOT_IMAGERY, RATIO_TOLERANCE, declared_ratios
from pancrafter.hrefs import unsigned
from pancrafter.sensors import GENERIC, BandSpec, Delivery, JoinRule, SensorContract, contract_for_platform, fold
from pancrafter.times import rfc3339
from pancrafter.types import PART_OF_SCENE, AssetRef, Refusal, Scene

if TYPE_CHECKING:
    import pystac

UNCOLLECTED = "uncollected"
"""Collection name of items that name none, also where a catalog of files is served."""

MAX_ID_BYTES = 200
"""File names end at 255 bytes, and output ids are longer than source ids."""

_ENDS_OF_NAMES = frozenset("/#?;")

PAN = "pan"
"""What PAN is called among the pieces of a `Part`."""

SAME_PIXELS = 1.5
"""Below this ratio of MS to PAN pixels there is nothing to sharpen, whatever the sensor."""

CARRIED = (
    "platform",
    "constellation",
    "mission",
    "instruments",
    "providers",
    "license",
    "eo:cloud_cover",
    "eo:snow_cover",
    "view:off_nadir",
    "view:incidence_angle",
    "view:azimuth",
    "view:sun_azimuth",
    "view:sun_elevation",
)
"""Properties of the source item that the published item keeps."""

REQUESTER_PAYS = "storage:requester_pays"
"""Set in a scene's properties where the item, or an asset that is used, says that the reader is charged."""

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".j2k", ".img", ".ntf"})
"""Files that are taken for rasters by their names."""

_COMMON_NAMES = (
    "coastal", "blue", "green", "yellow", "red", "rededge", "nir", "nir08", "nir09", "swir16", "swir22", "rgb", "rgbn"
)  # fmt: skip
_RASTER_TYPES = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
_MARKED_PROPERTIES = ("processing:level", "processing:lineage", "product_type")


@dataclass(frozen=True)
class _Raster:
    """What the item says about one raster asset. ``labels`` holds the folded names of each declared band."""

    key: str
    href: str
    labels: tuple[tuple[str, ...], ...]
    wavelengths: tuple[float | None, ...]
    band_count: int | None
    fields: Mapping[str, Any]
    words: frozenset[str]

    def ref(self, band: int = 1) -> AssetRef:
        return AssetRef(
            key=self.key,
            href=self.href,
            band=band,
            assumed=self.band_count != 1 and not any(self.labels),
            nodata=self._said(band, "nodata"),
            scale=self._said(band, "scale", "raster:scale"),
            offset=self._said(band, "offset", "raster:offset"),
        )

    def _said(self, band: int, *names: str) -> float | None:
        """A number that the item gives for a band, in the words of STAC 1.0 (``raster:bands``) or 1.1, else for all."""
        lists = (_dicts(self.fields.get(name)) for name in ("raster:bands", "bands"))
        of_band = [entries[band - 1] for entries in lists if len(entries) >= band]
        said = (fields.get(name) for fields in (*of_band, self.fields) for name in names)
        numbers = (value for value in said if isinstance(value, int | float) and not isinstance(value, bool))
        return next((value for value in numbers if math.isfinite(value)), None)


@dataclass(frozen=True)
class _Choice:
    """MS bands found, by contract band name, and whether several assets claim the same ones."""

    refs: Mapping[str, tuple[_Raster, int]]
    tiled: bool = False


class Piece(NamedTuple):
    """One band of a part, and what the item says about the file it lies in."""

    ref: AssetRef
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A recognised item that holds only PAN (``pieces`` has ``PAN``), or only MS bands, of a scene."""

    collection: str
    item_id: str
    sensor: str
    acquired: str
    alike: tuple[str, ...]
    """What all parts of a scene must have in common."""
    changed: str
    pieces: Mapping[str, Piece]
    fingerprint: str
    source_href: str
    geometry: Mapping[str, Any]
    properties: Mapping[str, Any]

    @property
    def key(self) -> str:
        """``collection/item_id``."""
        return f"{self.collection}/{self.item_id}"


class _Assets(NamedTuple):
    """The rasters of an item by what they are."""

    pans: list[_Raster]
    ms: _Choice
    sharpened: list[_Raster]


def recognise(item: pystac.Item, contracts: Mapping[str, SensorContract]) -> Scene | Refusal:
    """What ``item`` is: a scene with PAN and MS assets in the order of its sensor contract, or why it is refused.

    What the product itself rules out (sharpened already, no PAN, no MS, one pixel size) is said before an unknown
    sensor is: a contract would not help there.

    Codes of refusals: ``malformed``, ``no_imagery``, ``unknown_sensor``, ``part_of_scene``, ``already_sharpened``,
    ``no_pan``, ``no_ms``, ``bands_mismatch``, ``tiled_product``, ``ratio_mismatch``.
    """
    if fault := _malformed(item):
        return _refusal(item, "malformed", fault)
    contract = identify(item, contracts)
    if contract is None:
        return _of_unknown_sensor(item, contracts)
    return _pair(item, contract, _markers(contract, contracts))


def part_of(item: pystac.Item, contracts: Mapping[str, SensorContract]) -> Part:
    """What an item that was refused as ``part_of_scene`` adds to its scene."""
    contract = identify(item, contracts)
    assert contract is not None
    assert contract.join is not None
    assets = _sort_assets(_rasters(item), contract, _markers(contract, contracts))
    pieces = {name: _piece(raster, index) for name, (raster, index) in assets.ms.refs.items()}
    if assets.pans:
        pieces[PAN] = _piece(assets.pans[0])
    platform = fold(str(item.properties.get("platform")))
    acquired = _acquired(item)
    assert acquired is not None
    return Part(
        collection=item.collection_id or UNCOLLECTED,
        item_id=item.id,
        sensor=contract.name,
        acquired=acquired,
        alike=(platform, *(str(item.properties.get(name)) for name in contract.join.same)),
        changed=_changed(item),
        pieces=pieces,
        fingerprint=_fingerprint(item, {piece.ref.key for piece in pieces.values()}),
        source_href=unsigned(item.get_self_href() or ""),
        geometry=dict(item.geometry or {}),
        properties=_carried(item, (piece.fields for piece in pieces.values())),
    )


def _piece(raster: _Raster, band: int = 1) -> Piece:
    return Piece(raster.ref(band), raster.fields)


def identify(item: pystac.Item, contracts: Mapping[str, SensorContract]) -> SensorContract | None:
    """The contract of the item's platform; where it names none, of its constellation, instruments or id."""
    platform = item.properties.get("platform")
    if platform:
        contract = contract_for_platform(str(platform), contracts)
        return contract if contract and _is_camera(item, contract) else None
    hints = {fold(str(hint)) for hint in (item.properties.get("constellation"), *_instruments(item)) if hint}
    known = (c for c in contracts.values() if c.name != GENERIC)
    return next((c for c in known if hints & _fallback_names(c) or c.claims(item.id)), None)


def _is_camera(item: pystac.Item, contract: SensorContract) -> bool:
    named, known = {fold(name) for name in _instruments(item)}, {fold(name) for name in contract.cameras}
    return not named or not known or bool(named & known)


def digest_of(facts: object) -> str:
    """SHA-256 (hex) of JSON-serialisable ``facts``, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- one item -------------------------------------------------------------------------------------------------------


def _malformed(item: pystac.Item) -> str | None:
    for what, name in (("id", item.id), ("collection", item.collection_id or UNCOLLECTED)):
        if not _is_plain_name(name):
            return (
                f"the {what} {name[:80]!r} cannot name a file; expected printable characters, no \\ and no .. in it, "
                f"and at most {MAX_ID_BYTES} bytes"
            )
    if ends := sorted(_ENDS_OF_NAMES & set(item.collection_id or "")):
        return (
            f"the collection {item.collection_id!r} holds {ends[0]!r}, where the name of a scene or the address of a "
            f"product would end; expected none of {' '.join(sorted(_ENDS_OF_NAMES))}; call the collection otherwise"
        )
    if not isinstance(item.geometry, dict):
        return "the item has no geometry; expected a GeoJSON footprint"
    if _acquired(item) is None:
        return "the item has neither datetime nor start_datetime; expected an acquisition time"
    if not item.assets:
        return "the item has no assets; expected PAN and MS files"
    texts = (text for key, asset in item.assets.items() for text in (key, asset.href))
    strange = next((text for text in texts if text != without_controls(text)), None)
    return strange and f"{strange[:80]!r}, key or href of an asset, holds control characters; expected none"


def _is_plain_name(name: str) -> bool:
    """Whether a name may stand in messages and names of files; real ids of items do hold slashes."""
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
    return plain and len(name.encode()) <= MAX_ID_BYTES


def _of_unknown_sensor(item: pystac.Item, contracts: Mapping[str, SensorContract]) -> Refusal:
    """Refused in any case; the reason is the product's where that says enough, else the missing contract."""
    verdict = _pair(item, _any_sensor(), _markers(_any_sensor(), contracts))
    found = item.properties.get("platform") or item.properties.get("constellation") or "no platform"
    if isinstance(verdict, Refusal) and verdict.code not in {"bands_mismatch", "tiled_product"}:
        return verdict.model_copy(update={"sensor": None, "reason": f"{verdict.reason} (platform {found!r})"})
    reason = f"found platform {found!r}, expected one of `pancrafter sensors list`; add a sensor contract for it"
    return _refusal(item, "unknown_sensor", reason)


@lru_cache(maxsize=1)
def _any_sensor() -> SensorContract:
    """Tells PAN and MS apart by common names alone: enough to see what a product of an unknown sensor lacks."""
    bands = tuple(BandSpec(name=name, common_name=name, mtf=0.3, in_pan=True) for name in _COMMON_NAMES)
    return SensorContract(
        name="any",
        title="Any sensor",
        platforms=(),
        ratio=2,
        dn_max=65535,
        nodata=None,
        pan_asset_keys=("pan", "panchromatic", "*_pan", "*-pan", "pan_*", "pan-*", "*panchromatic*"),
        pan_mtf=0.15,
        bands=bands,
        deliveries=tuple(Delivery(name=name, bands=(name,)) for name in _COMMON_NAMES),
        sharpened_markers=("psh",),
        weights="none",
        source="STAC common band names",
    )


def _pair(item: pystac.Item, contract: SensorContract, markers: Sequence[str]) -> Scene | Refusal:
    rasters = _rasters(item)
    if not rasters:
        return _refusal(item, "no_imagery", "found no raster asset; expected PAN and MS images", contract)
    assets = _sort_assets(rasters, contract, markers)
    complete = bool(assets.pans and assets.ms.refs)
    if fault := _sharpened_fault(item, markers, assets.sharpened, complete=complete):
        return _refusal(item, "already_sharpened", fault, contract)
    half = bool(assets.pans) != bool(assets.ms.refs)
    if contract.join and half and len(assets.pans) < 2 and not assets.ms.tiled:
        return _refusal(item, PART_OF_SCENE, _part_reason(contract.join, assets.ms), contract)
    return _scene(item, contract, rasters, assets)


def _sort_assets(rasters: Sequence[_Raster], contract: SensorContract, markers: Sequence[str]) -> _Assets:
    pans = _find_pans(rasters, contract)
    rest = [raster for raster in rasters if raster not in pans]
    sharpened = [raster for raster in rest if _matches_any(raster.words, markers)]
    return _Assets(pans, _find_ms([raster for raster in rest if raster not in sharpened], contract), sharpened)


def _sharpened_fault(
    item: pystac.Item, markers: Sequence[str], sharpened: Sequence[_Raster], *, complete: bool
) -> str | None:
    said = [name for name in _MARKED_PROPERTIES if _matches_any(_words(item.properties.get(name)), markers)]
    if said:
        return f"{said[0]} is {item.properties[said[0]]!r}: the product is sharpened; take the PAN and MS bundle"
    if complete:
        return None
    if sharpened:
        keys = ", ".join(raster.key for raster in sharpened)
        return f"the only multispectral assets ({keys}) are sharpened by the vendor; take the PAN and MS bundle"
    named = {"id": item.id, "title": item.properties.get("title"), "description": item.properties.get("description")}
    for field, text in named.items():
        if _matches_any(_words(text), markers):
            return f"the {field} {text!r} names a product sharpened by the vendor; take the PAN and MS bundle"
    return None


def _scene(item: pystac.Item, contract: SensorContract, rasters: Sequence[_Raster], assets: _Assets) -> Scene | Refusal:
    pans, ms = assets.pans, assets.ms
    found = ", ".join(raster.key for raster in rasters)
    if vrts := [key for key, asset in item.assets.items() if _suffix(asset) == ".vrt"]:
        found += f", and VRTs ({', '.join(vrts)}), which are not followed to other files (give these as assets)"
    if not pans:
        reason = f"no PAN: found {found}; expected a PAN asset named like {', '.join(contract.pan_asset_keys)}"
        return _refusal(item, "no_pan", reason, contract)
    if not ms.refs:
        reason = f"no MS: found {found}; expected MS bands named like {', '.join(band.name for band in contract.bands)}"
        return _refusal(item, "no_ms", reason, contract)
    names = contract.delivered(ms.refs)
    if not names:
        expected = " or ".join("+".join(delivery.bands) for delivery in contract.band_sets)
        reason = f"found MS bands {', '.join(sorted(ms.refs))}; expected {expected}"
        return _refusal(item, "bands_mismatch", reason, contract)
    if len(pans) > 1 or ms.tiled:
        reason = f"several image tiles per band ({found}); expected one file; build a mosaic (COG) per band"
        return _refusal(item, "tiled_product", reason, contract)
    refs = [ms.refs[name] for name in names]
    if fault := ratio_fault(pans[0].fields, refs[0][0].fields, contract):
        return _refusal(item, "ratio_mismatch", fault, contract)
    used = {raster.key for raster in (pans[0], *(raster for raster, _ in refs))}
    return Scene(
        collection=item.collection_id or UNCOLLECTED,
        item_id=item.id,
        sensor=contract.name,
        acquired=_acquired(item) or "",
        pan=pans[0].ref(),
        ms=tuple(raster.ref(index) for raster, index in refs),
        bands=names,
        fingerprint=_fingerprint(item, used),
        source_href=unsigned(item.get_self_href() or ""),
        geometry=dict(item.geometry or {}),
        properties=_carried(item, (raster.fields for raster in (pans[0], *(raster for raster, _ in refs)))),
    )


def _part_reason(rule: JoinRule, ms: _Choice) -> str:
    held = f"MS ({', '.join(sorted(ms.refs))})" if ms.refs else "PAN"
    return (
        f"the item holds only {held} of a scene; it waits for items with the rest of the same acquisition, at most "
        f"{rule.max_seconds:g} s from PAN and sharing {rule.min_overlap:.0%} of the footprint"
    )


def _carried(item: pystac.Item, used: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What of the item's properties goes into a scene, given the fields of its assets that are used."""
    kept = {name: item.properties[name] for name in CARRIED if item.properties.get(name) is not None}
    if any(fields.get(REQUESTER_PAYS, item.properties.get(REQUESTER_PAYS)) for fields in used):
        kept[REQUESTER_PAYS] = True
    return kept


def _refusal(item: pystac.Item, code: str, reason: str, contract: SensorContract | None = None) -> Refusal:
    return Refusal(
        collection=spelled_out(item.collection_id or UNCOLLECTED),
        item_id=spelled_out(item.id),
        code=code,
        reason=without_controls(reason),
        sensor=contract.name if contract else None,
    )


def _acquired(item: pystac.Item) -> str | None:
    moment = item.datetime or item.common_metadata.start_datetime
    return rfc3339(moment) if isinstance(moment, datetime) else None


def _instruments(item: pystac.Item) -> list[str]:
    instruments = item.properties.get("instruments") or []
    return [str(name) for name in instruments] if isinstance(instruments, list) else [str(instruments)]


def _fallback_names(contract: SensorContract) -> set[str]:
    return {fold(name) for name in (*contract.constellations, *contract.instruments)}


def _fingerprint(item: pystac.Item, used: Iterable[str]) -> str:
    assets = []
    for key in sorted(used):
        extra = item.assets[key].extra_fields
        assets.append([key, _href(item.assets[key]), extra.get("file:checksum"), extra.get("file:size")])
    return digest_of({"changed": _changed(item), "assets": assets})


def _changed(item: pystac.Item) -> str:
    return str(item.properties.get("updated") or item.properties.get("created"))


# --- markers --------------------------------------------------------------------------------------------------------


def _markers(contract: SensorContract, contracts: Mapping[str, SensorContract]) -> tuple[str, ...]:
    everywhere = contracts[GENERIC].sharpened_markers if GENERIC in contracts else ()
    return tuple(dict.fromkeys((*contract.sharpened_markers, *everywhere)))


def _words(*texts: object) -> frozenset[str]:
    """The alphanumeric words of all texts, in lower case."""
    joined = " ".join(str(text) for text in texts if text)
    return frozenset(re.findall(r"[a-z0-9]+", joined.casefold()))


def _matches_any(words: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(word, pattern.casefold()) for word in words for pattern in patterns)


# --- assets ---------------------------------------------------------------------------------------------------------


def _rasters(item: pystac.Item) -> list[_Raster]:
    """The item's image files, without pictures for people, masks and side files."""
    return [_raster(key, asset) for key, asset in item.assets.items() if _is_imagery(asset)]


def _is_imagery(asset: pystac.Asset) -> bool:
    if NOT_IMAGERY & {str(role).casefold() for role in asset.roles or ()}:
        return False
    suffix = _suffix(asset)
    return suffix in RASTER_SUFFIXES or (not suffix and str(asset.media_type).startswith(_RASTER_TYPES))


def _suffix(asset: pystac.Asset) -> str:
    return PurePosixPath(urlsplit(asset.href).path).suffix.casefold()


def _raster(key: str, asset: pystac.Asset) -> _Raster:
    fields = asset.extra_fields
    bands = _declared_bands(fields)
    labels = tuple(map(_band_labels, bands))
    raster_bands = _dicts(fields.get("raster:bands"))
    count = len(labels) or len(raster_bands) or None
    href = _href(asset)
    return _Raster(
        key=key,
        href=href,
        labels=labels,
        wavelengths=tuple(map(_wavelength, bands)),
        band_count=count,
        fields=fields,
        words=_words(key, PurePosixPath(urlsplit(href).path).name, asset.title, asset.description),
    )


def _href(asset: pystac.Asset) -> str:
    """Unsigned absolute URL, or the path of a local file."""
    href = unsigned(asset.get_absolute_href() or asset.href)
    return str(local_path(href)) if href.startswith("file:") else href


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _declared_bands(fields: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], ...]]:
    """All that an asset says of each band; some have the lists of STAC 1.0 and 1.1, and names in one only."""
    return list(zip_longest(*(_dicts(fields.get(name)) for name in ("bands", "eo:bands")), fillvalue={}))


def _band_labels(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Folded common names (either spelling of the extension), then names; empty when the band is anonymous."""
    names = (entry.get(field) for field in ("common_name", "eo:common_name", "name") for entry in entries)
    return tuple(fold(name) for name in names if isinstance(name, str) and fold(name))


def _wavelength(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Centre wavelength in micrometres, in either spelling of the extension; some producers write nanometres."""
    said = (entry.get(field) for field in ("center_wavelength", "eo:center_wavelength") for entry in entries)
    value = next((value for value in said if isinstance(value, int | float) and 0 < value < 1e5), None)
    return value / 1000 if value is not None and value > 100 else value


def _key_rank(key: str, patterns: Sequence[str]) -> int | None:
    return next((i for i, p in enumerate(patterns) if fnmatchcase(key.casefold(), p.casefold())), None)


def _find_pans(rasters: Sequence[_Raster], contract: SensorContract) -> list[_Raster]:
    """The PAN asset; several only if nothing ranks one above the others (image tiles)."""
    ranked = [(rank, raster) for raster in rasters if (rank := _pan_rank(raster, contract)) is not None]
    best = min((rank for rank, _ in ranked), default=None)
    return [raster for rank, raster in ranked if rank == best]


def _pan_rank(raster: _Raster, contract: SensorContract) -> int | None:
    """Order of preference as PAN, None for no PAN. A label alone counts least: some writers call any gray band pan."""
    if raster.band_count is not None and raster.band_count > 1:
        return None
    labels = set(raster.labels[0]) if raster.labels else set()
    labelled = bool(labels & {fold(label) for label in contract.pan_labels})
    named_ms = contract.find_band(raster.key) is not None or any(contract.find_band(label) for label in labels)
    rank = _key_rank(raster.key, contract.pan_asset_keys)
    if rank is not None:
        return rank if labelled or not named_ms else None
    return len(contract.pan_asset_keys) if labelled and contract.find_band(raster.key) is None else None


def _find_ms(rasters: Sequence[_Raster], contract: SensorContract) -> _Choice:
    """The largest band set of the contract in one multi-band file or, if that is larger, in files of one band each."""
    files = [_Choice(_bands_inside(raster, contract)) for raster in rasters if raster.band_count != 1]
    single = _single_bands([raster for raster in rasters if raster.band_count in (1, None)], contract)
    several = [choice for choice in files if len(choice.refs) > 1]
    multi = _best_file(several, contract)
    return max(
        (multi, single, _joined_files(several, contract)),
        key=lambda choice: (len(contract.delivered(choice.refs)), len(choice.refs)),
    )


def _bands_inside(raster: _Raster, contract: SensorContract) -> dict[str, tuple[_Raster, int]]:
    """Contract bands inside a multi-band file, by its labels, else wavelengths, else usual order if its key says MS."""
    told = _told(raster, contract)
    found: dict[str, tuple[_Raster, int]] = {}
    for index, labels in enumerate(told.labels, start=1):
        if name := _first_band(labels, contract):
            found.setdefault(name, (told, index))
    if any(raster.labels) or _key_rank(raster.key, contract.ms_asset_keys) is None:
        return found
    # Where not even their number is declared, as many as the sensor can have: a file with fewer is refused later.
    delivery = contract.delivery_of(raster.band_count or len(contract.band_sets[0].bands))
    usual = {name: (raster, index) for index, name in enumerate(delivery.bands if delivery else (), start=1)}
    fits = all(name in usual and usual[name][1] == index for name, (_, index) in found.items())
    return usual if fits and len(found) < len(usual) else found


def _told(raster: _Raster, contract: SensorContract) -> _Raster:
    """The raster with bands without a known name labelled by wavelength: each that alone lies in one band's range.

    Names come first: neither PAN nor a band that another one is named as is told so.
    """
    named = {_first_band(labels, contract) for labels in raster.labels} - {None}
    pan = set(map(fold, contract.pan_labels))
    lies_in = [
        None if pan & set(labels) or _first_band(labels, contract) else _band_at(wavelength, contract)
        for labels, wavelength in zip(raster.labels, raster.wavelengths, strict=True)
    ]
    labels = tuple(
        (fold(name),) if name and name not in named and lies_in.count(name) == 1 else labels
        for name, labels in zip(lies_in, raster.labels, strict=True)
    )
    return replace(raster, labels=labels)


def _band_at(wavelength: float | None, contract: SensorContract) -> str | None:
    """The one band in whose range a wavelength lies; None where several hold it, or none."""
    inside = [band.name for band in contract.bands if wavelength is not None and band.holds(wavelength)]
    return inside[0] if len(inside) == 1 else None


def _first_band(labels: Iterable[str], contract: SensorContract) -> str | None:
    return next((band.name for label in labels if (band := contract.find_band(label))), None)


def _best_file(files: Sequence[_Choice], contract: SensorContract) -> _Choice:
    """The file that covers most; tiled when several cover as much and no key of the contract prefers one."""

    def merit(choice: _Choice) -> tuple[int, int, int]:
        raster = next(iter(choice.refs.values()))[0]
        rank = _key_rank(raster.key, contract.ms_asset_keys)
        preference = -rank if rank is not None else -len(contract.ms_asset_keys)
        return (len(contract.delivered(choice.refs)), len(choice.refs), preference)

    if not files:
        return _Choice({})
    best = max(files, key=merit)
    return _Choice(best.refs, tiled=sum(merit(choice) == merit(best) for choice in files) > 1)


def _joined_files(files: Sequence[_Choice], contract: SensorContract) -> _Choice:
    """Bands that are spread over several multi-band files (Pléiades Neo: RGB and NED); tiled where they overlap."""
    refs: dict[str, tuple[_Raster, int]] = {}
    tiled = False
    for choice in files:
        if refs.keys().isdisjoint(choice.refs):
            refs.update(choice.refs)
        else:
            tiled = tiled or choice.refs.keys() <= refs.keys()
    return _Choice(refs, tiled=tiled) if contract.delivered(refs) else _Choice({})


def _single_bands(rasters: Sequence[_Raster], contract: SensorContract) -> _Choice:
    """Contract bands in files of their own; the asset key decides, then the label."""
    found: dict[str, tuple[_Raster, int]] = {}
    tiled = False
    for raster in rasters:
        labels = (fold(raster.key), *(raster.labels[0] if raster.labels else ()))
        if name := _first_band(labels, contract):
            tiled = tiled or name in found
            found.setdefault(name, (raster, 1))
    return _Choice(found, tiled=tiled)


def ratio_fault(pan: Mapping[str, Any], ms: Mapping[str, Any], contract: SensorContract) -> str | None:
    """Why the declared grids cannot have the contract's ratio; None where one of them agrees, or none says.

    Producers contradict themselves (gsd of the acquisition, one resolution for all bands), so one fitting figure is
    enough to leave the rest to the file headers.
    """
    found = declared_ratios(pan, ms)
    if contract.name == _any_sensor().name:
        fits = any(ratio > SAME_PIXELS for _, ratio in found)
    else:
        fits = any(abs(ratio / contract.ratio - 1) <= RATIO_TOLERANCE for _, ratio in found)
    if fits or not found:
        return None
    listed = ", ".join(f"{ratio:.3f} by {name}" for name, ratio in found)
    if all(ratio < SAME_PIXELS for _, ratio in found):
        return f"PAN and MS have (nearly) the same pixels, ratio {listed}: there is nothing to sharpen"
    return f"MS pixels over PAN pixels: {listed}; expected {contract.ratio}; check the item or the product"
