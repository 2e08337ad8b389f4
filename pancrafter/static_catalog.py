"""A static STAC catalog on a disk that items are added to, one writer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pystac

from pancrafter.errors import InvalidSceneError, SinkError
from pancrafter.recognise import recognise
from pancrafter.scratch import replace_file
from pancrafter.sensors import SensorContract
from pancrafter.times import timestamp
from pancrafter.types import Json, Refusal

Change = Literal["added", "updated", "unchanged"]


@contextmanager
def catalog_lock(folder: Path) -> Iterator[None]:
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


class StaticCatalog:
    """A static catalog: ``catalog.json``, ``SENSOR/collection.json``, ``SENSOR/ITEM/ITEM.json``, relative links."""

    def __init__(self, folder: Path, contract: SensorContract) -> None:
        self.root = folder.absolute()
        self.contract = contract
        self._catalog_path = self.root / "catalog.json"
        self._collection_path = self.root / contract.name / "collection.json"

    def item_path(self, item_id: str) -> Path:
        """Where the document of an item is, whether or not there is one yet."""
        return self.root / self.contract.name / item_id / f"{item_id}.json"

    def put(self, item: pystac.Item, contracts: Mapping[str, SensorContract]) -> Change:
        """Write an item and link it; item first, so that no link ever leads nowhere."""
        path = self.item_path(item.id)
        old = _read_json(path) if path.exists() else None
        now = timestamp()
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

    def _document(self, item: pystac.Item) -> Json:
        document: Json = item.to_dict(include_self_link=False, transform_hrefs=False)
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

    def _new_catalog(self) -> Json:
        catalog = pystac.Catalog(id=self.root.name or "catalog", description="PAN and MS imagery added from files.")
        document: Json = catalog.to_dict(include_self_link=False)
        document["links"] = [{"rel": "root", "href": "./catalog.json", "type": "application/json"}]
        return document

    def _new_collection(self, item: pystac.Item) -> Json:
        extent = pystac.Extent.from_items([item])
        collection = pystac.Collection(
            id=self.contract.name,
            title=self.contract.title,
            description=f"PAN and MS pairs of {self.contract.title}, added from files.",
            extent=extent,
            license="other",
        )
        document: Json = collection.to_dict(include_self_link=False)
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


def _check_same_pair(item: pystac.Item, old: Json, path: Path) -> None:
    """An id may be reused for the same files, changed or moved; not for a different pair."""
    pairs = [(asset, old["assets"].get(key, {})) for key, asset in item.assets.items()]
    moved = [new.href != before.get("href") for new, before in pairs]
    altered = [new.extra_fields.get("file:checksum") != before.get("file:checksum") for new, before in pairs]
    if all(moved) and all(altered):
        raise InvalidSceneError(
            f"{path}: item {item.id} exists already for other files ({pairs[0][1].get('href')}); "
            "give another id with --id"
        )


def _keep_file_time(item: pystac.Item, old: Json) -> None:
    """A file time is only a guess: touching a file must not turn the same pixels into a new acquisition."""
    same = all(
        asset.extra_fields.get("file:checksum") == old["assets"].get(key, {}).get("file:checksum")
        for key, asset in item.assets.items()
    )
    guessed = "file time"
    if same and item.properties["ingest:datetime_from"] == guessed == old["properties"].get("ingest:datetime_from"):
        item.datetime = pystac.utils.str_to_datetime(old["properties"]["datetime"])
        item.properties["datetime"] = old["properties"]["datetime"]


def _essence(document: Json) -> Json:
    """What an item says itself: not when it was written, nor whose words it uses, which its fields tell."""
    kept = {name: value for name, value in document["properties"].items() if name not in {"created", "updated"}}
    essence: Json = json.loads(json.dumps({**document, "properties": kept, "stac_extensions": None}))
    return essence


def _add_link(document: Json, rel: str, href: str, media_type: str) -> None:
    present = {urlsplit(str(link.get("href"))).path.removeprefix("./") for link in document["links"]}
    if href.removeprefix("./") not in present:
        document["links"].append({"rel": rel, "href": href, "type": media_type})


def _widen(extent: Json, item: pystac.Item) -> None:
    """Make the collection's extent hold the item; a box across the antimeridian widens it to all longitudes."""
    west, south, east, north = item.bbox or [-180.0, -90.0, 180.0, 90.0]
    if west > east:
        west, east = -180.0, 180.0
    box = extent["spatial"]["bbox"][0]
    extent["spatial"]["bbox"][0] = [min(box[0], west), min(box[1], south), max(box[2], east), max(box[3], north)]
    times = [item.properties["datetime"], *filter(None, extent["temporal"]["interval"][0])]
    times.sort(key=pystac.utils.str_to_datetime)
    extent["temporal"]["interval"][0] = [times[0], times[-1]]


def _read_json(path: Path) -> Json:
    try:
        document: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise SinkError(f"{path}: not readable as JSON ({err}); mend or remove the file") from err
    return document


def _write_json(path: Path, document: Json) -> None:
    text = json.dumps(document, indent=2)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
