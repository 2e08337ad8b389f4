"""The output catalog: a static, self-contained STAC catalog on a folder or an S3 bucket.

Order makes it safe. Assets come first, then the item's JSON (the switch), then the link in the collection, then the
collection's link in the catalog. A reader never meets a link without its document, nor an item without its assets,
and a publisher that dies leaves at most unreferenced files that the next attempt overwrites.

A collection links its first ``ITEMS_IN_COLLECTION`` items itself. Further ones are linked from a page for their day
of acquisition (collection -> month -> day -> item, all plain STAC catalogs), so that what is read and written per item
does not grow with the archive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import posixpath
import random
import shutil
import time
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import fsspec
import pystac
from pydantic import Field
from pystac.errors import DeprecatedWarning
from pystac.stac_io import DefaultStacIO

from pancrafter import killpoints
from pancrafter.cog import validate_cog
from pancrafter.errors import CatalogUnavailableError, InvalidSceneError, PancrafterError, SinkError
from pancrafter.item import MASK, QUALITY, SCHEMA_FILE, SHARPENED, THUMBNAIL, AssetFile, multihash_of, stac_license
from pancrafter.processes import lease_owner
from pancrafter.types import Record
from pancrafter.validation import own_schema_text, validate_document, validate_item

Json = dict[str, Any]  # Any: parsed JSON

_MEDIA_JSON, _MEDIA_GEOJSON = "application/json", "application/geo+json"
_CHUNK = 8 * 2**20
_RANGE = 32 * 2**20
_TRIES = 50
_LONGEST_WAIT_S = 2.0
_READERS = 8
ITEMS_IN_COLLECTION = 200
"""Items that a collection links itself before it begins to link pages of days: a bound on what a publication moves."""

_PAGES = "by-day"
_SOURCE_FIELD = "pancrafter:source"
_ITEM_ASSETS: Json = {
    SHARPENED: {"type": str(pystac.MediaType.COG), "roles": ["data"], "title": "Sharpened image, all bands"},
    MASK: {
        "type": str(pystac.MediaType.COG),
        "roles": ["data-mask", "metadata"],
        "title": "Reasons for distrust, bits",
    },
    QUALITY: {
        "type": str(pystac.MediaType.COG),
        "roles": ["metadata", "quality"],
        "title": "Consistency with the multispectral input, per block of MS pixels",
    },
    THUMBNAIL: {"type": str(pystac.MediaType.PNG), "roles": ["thumbnail"], "title": "Preview"},
}


class CollectionInfo(Record):
    """What an output collection says about itself; extents come from its items."""

    id: str
    title: str
    description: str
    license: str = "other"
    providers: tuple[dict[str, Any], ...] = ()
    keywords: tuple[str, ...] = ("pansharpened",)
    relation: Literal["child", "related"] = Field(
        default="child", description="How the root links to it; related: readers that walk for products pass it by."
    )
    item_assets: dict[str, Any] | None = Field(default=None, description="None: those of a sharpened scene.")


class Published(Record):
    """Where a published item lies. ``changed`` is False if exactly this item was there before."""

    collection_id: str
    item_id: str
    href: str = Field(description="Absolute address of the item.")
    changed: bool
    superseded: str | None = Field(default=None, description="Id of the older item that points to this one now.")
    assets: dict[str, str] = Field(description="Absolute address per asset key.")


class StaticSink:
    """A static STAC catalog that this process may add to.

    Several processes may publish at the same time: a lock file (folder) or conditional writes (S3) keep the shared
    documents whole.

    Args:
        uri: Folder, ``file://`` or ``s3://bucket/prefix``. Nothing is touched before the first call.
        title: Title of the root catalog when it is made.
        storage_options: Options of the fsspec file system, such as ``endpoint_url``.
    """

    def __init__(self, uri: str, *, title: str = "Sharpened imagery", storage_options: Json | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.title = title
        self._options = storage_options or {}
        self._store: _Store | None = None
        self._linked: set[str] = set()  # documents that were found linked from the root: no publisher unlinks these

    @property
    def store(self) -> _Store:
        """The storage behind the catalog, opened on first use."""
        if self._store is None:
            self._store = _open_store(self.uri, self._options)
        return self._store

    @property
    def catalog_href(self) -> str:
        """Address of the root catalog."""
        return self.store.address("catalog.json")

    def check_writable(self) -> None:
        """Write and remove a small object.

        Raises:
            SinkError: The sink cannot be written.
        """
        probe = f".probe-{_signature()}"
        self.store.write(probe, b"pancrafter", "text/plain")
        self.store.delete(probe)

    def publish(
        self,
        item: pystac.Item,
        assets: Sequence[AssetFile],
        *,
        collection: CollectionInfo,
        supersedes: str | None = None,
        guard: Callable[[], None] | None = None,
    ) -> Published:
        """Put an item and its files into the catalog as the current version; doing it again changes nothing.

        An item that was superseded becomes current again, and what had taken its place is superseded in turn.

        Args:
            item: From ``pancrafter.item.build_item``.
            assets: Its finished local files.
            collection: The collection to add it to; made or kept as it is.
            supersedes: Id of an older item of the collection; it, or what took its place since, stays readable, marked
                as deprecated, and points here. There is nothing to mark if it is gone.
            guard: Called right before the item becomes visible; it raises if this worker may no longer publish.

        Raises:
            InvalidSceneError: A file or the item is not valid; nothing became visible.
            SinkError: The sink failed; nothing half-done is visible.
            CatalogUnavailableError: The object store gives no answer; nothing half-done is visible.
        """
        folder = f"{collection.id}/{item.id}"
        present = self._read(_item_name(collection.id, item.id))
        superseded = self._newest_other(collection.id, item.id, supersedes or _successor_of(present))
        document = self._document(item, assets, collection.id, superseded, present)
        validate_item(document)
        for asset in assets:
            _check_file(asset)
        changed = not self._is_there(collection.id, document, present)
        if changed:
            self._ensure_root(document)
            for asset in assets:
                self._put_asset(asset, f"{folder}/{_asset_name(asset, document)}")
                killpoints.at("asset-put")
            if guard is not None:
                guard()
            killpoints.at("before-switch")
            replaced = self._switch(f"{folder}/{item.id}.json", document)
            killpoints.at("item-written")
            if replaced is not None and _page_name(replaced) != _page_name(document):
                self._unlink(collection.id, replaced)
        linked = self._link(collection, document)
        killpoints.at("linked")
        if superseded is not None:
            self._deprecate(collection.id, superseded, item.id)
        names = {f"{folder}/{_asset_name(asset, document)}" for asset in assets}
        try:
            published = self._read_back(collection.id, item.id, changed=changed, compared=names)
        except PancrafterError:
            self._linked.clear()  # somebody took the catalog apart: the next attempt looks at every link
            raise
        self._linked |= linked
        return published.model_copy(update={"superseded": superseded})

    def read_back(self, collection_id: str, item_id: str, *, changed: bool = False) -> Published:
        """Find an item the way a reader does, from the root with pystac, and compare sizes and checksums of its files.

        Raises:
            SinkError: It cannot be found, or a file is missing or differs.
        """
        return self._read_back(collection_id, item_id, changed=changed, compared=frozenset())

    def _read_back(
        self, collection_id: str, item_id: str, *, changed: bool, compared: frozenset[str] | set[str]
    ) -> Published:
        """See ``read_back``. Of files whose checksums were ``compared`` a moment ago only the sizes are looked at."""
        item = self._walk_to(collection_id, item_id)
        addresses: dict[str, str] = {}
        for key, asset in item.assets.items():
            name = posixpath.normpath(f"{collection_id}/{item_id}/{asset.href}")
            size, checksum = asset.extra_fields["file:size"], asset.extra_fields["file:checksum"]
            self._compare(name, size, None if name in compared else checksum)
            addresses[key] = self.store.address(name)
        return Published(
            collection_id=collection_id,
            item_id=item_id,
            href=self.store.address(_item_name(collection_id, item_id)),
            changed=changed,
            assets=addresses,
        )

    def exists(self, collection_id: str, item_id: str) -> bool:
        """The item is linked from its collection and its document is there."""
        document = self._read(_item_name(collection_id, item_id))
        if document is None:
            return False
        return any(
            _leads_to(link, item_id)
            for name in (f"{collection_id}/collection.json", _page_name(document))
            for link in _links_of(self._read(name), "item")
        )

    def collection_ids(self) -> tuple[str, ...]:
        """Ids of the collections that the catalog links to."""
        return tuple(posixpath.dirname(_plain(link["href"])) for link in _links_of(self._read("catalog.json"), "child"))

    def item_ids(self, collection_id: str) -> tuple[str, ...]:
        """Ids of the items that a collection links to, itself or by its pages, each once."""
        return tuple(dict.fromkeys(_linked_id(link) for link in self._item_links(collection_id)))

    def item(self, collection_id: str, item_id: str) -> Json:
        """The document of one item.

        Raises:
            SinkError: It is not there.
        """
        found = self._read(_item_name(collection_id, item_id))
        if found is None:
            raise SinkError(f"{self.store.address(_item_name(collection_id, item_id))}: no such item; publish it again")
        return found

    def withdraw(self, collection_id: str, item_id: str, *, announce: Callable[[Json], object] | None = None) -> None:
        """Take an item out of the catalog: first the link, then its files, the document last, so it can be repeated.

        Args:
            collection_id: Its collection.
            item_id: The item.
            announce: Called with the document when no link leads to it any more.

        Raises:
            SinkError: It is not there.
        """
        document = self.item(collection_id, item_id)
        self._unlink(collection_id, document)
        if announce is not None:
            announce(document)
        for asset in document["assets"].values():
            self.store.delete(posixpath.normpath(f"{collection_id}/{item_id}/{asset['href']}"))
        self.store.delete(_item_name(collection_id, item_id))

    def items(self, collection_id: str | None = None) -> Iterator[Json]:
        """Item documents of one collection or of all, as dictionaries."""
        for name in [collection_id] if collection_id else self.collection_ids():
            for item_id in self.item_ids(name):
                found = self._read(_item_name(name, item_id))
                if found is not None:
                    yield found

    def find_by_source(self, collection_id: str, source_item_id: str) -> list[Json]:
        """Item documents made from a source item, newest first; deprecated ones are among them, after the others."""
        links = self._item_links(collection_id)
        ids = [_linked_id(link) for link in links if link.get(_SOURCE_FIELD) == source_item_id]
        found = [document for one in ids if (document := self._read(_item_name(collection_id, one))) is not None]
        newest_first = sorted(found, key=lambda document: str(document["properties"]["created"]), reverse=True)
        return sorted(newest_first, key=lambda document: bool(document["properties"].get("deprecated")))

    def orphans(self, collection_id: str) -> tuple[str, ...]:
        """Files of the collection that no item refers to: leftovers of dead attempts and replaced assets."""
        referenced = {f"{collection_id}/collection.json"}
        names = self.store.list_names(collection_id)
        for name in names:
            parts = name.split("/")
            if len(parts) == 3 and parts[2] == f"{parts[1]}.json":
                referenced |= {name, *self.files_of(collection_id, parts[1])}
        unknown = set(names) - referenced
        return tuple(sorted(name for name in unknown if not name.startswith(f"{collection_id}/{_PAGES}/")))

    def files_of(self, collection_id: str, item_id: str) -> frozenset[str]:
        """Names of the files that an item's document refers to; none if there is no document."""
        document = self._read(_item_name(collection_id, item_id)) or {"assets": {}}
        hrefs = [asset["href"] for asset in document["assets"].values()]
        return frozenset(posixpath.normpath(f"{collection_id}/{item_id}/{href}") for href in hrefs)

    def drafts(self) -> tuple[tuple[str, str], ...]:
        """Files that are being written, with the process (as in ``pancrafter.processes``) that does it."""
        names = self.store.list_drafts()
        return tuple((name, "/".join(posixpath.basename(name).split("-", 1)[1].split("~")[:3])) for name in names)

    def document(self, collection_id: str, item_id: str) -> Json | None:
        """An item's document, linked or not; None if there is none."""
        return self._read(_item_name(collection_id, item_id))

    def _newest_other(self, collection_id: str, item_id: str, version: str | None) -> str | None:
        """The newest version from ``version`` on that is there, but for the item itself.

        What is known as the older version may have been superseded by a publication that was never confirmed.
        """
        versions: list[str] = []
        while version is not None and version not in {item_id, *versions}:
            document = self._read(_item_name(collection_id, version))
            if document is None:
                break
            versions.append(version)
            version = _successor_of(document)
        return versions[-1] if versions else None

    def _document(
        self,
        item: pystac.Item,
        assets: Sequence[AssetFile],
        collection_id: str,
        superseded: str | None,
        present: Json | None,
    ) -> Json:
        document: Json = item.to_dict(include_self_link=False, transform_hrefs=False)
        if document.get("collection") != collection_id:
            raise InvalidSceneError(
                f"item {item.id}: is of collection {document.get('collection')!r}, not {collection_id!r}"
            )
        if {asset.key for asset in assets} != set(document["assets"]):
            raise InvalidSceneError(
                f"item {item.id}: assets {sorted(document['assets'])} but files for {sorted(a.key for a in assets)}"
            )
        for asset in assets:
            document["assets"][asset.key]["href"] = f"./{_asset_name(asset, document)}"
        if present is not None:  # keeps what it came after: links to older versions never lead in a circle
            earlier = _links_of(present, "predecessor-version")
            document["links"] += [link for link in earlier if _linked_id(link) != item.id]
        elif superseded is not None:
            document["links"].append(_version_link("predecessor-version", superseded))
        return document

    def _is_there(self, collection_id: str, document: Json, present: Json | None) -> bool:
        """The same item (apart from its times and cost) is already published and current, with all its files."""
        if present is None or _essence(present) != _essence(document):
            return False
        folder = f"{collection_id}/{document['id']}"
        for asset in document["assets"].values():
            name = posixpath.normpath(f"{folder}/{asset['href']}")
            size = asset["file:size"]
            if self.store.size(name) != size or self.store.multihash(name, size) != asset["file:checksum"]:
                return False
        return True

    def _ensure_root(self, document: Json) -> None:
        if document["collection"] in self._linked:
            return
        schema = f"schemas/{SCHEMA_FILE}"
        text = own_schema_text().encode()
        if self.store.read(schema) != text:
            self.store.write(schema, text, "application/schema+json")
        if self._read("catalog.json") is None:
            self._update("catalog.json", lambda old: old or _new_catalog(self.title))

    def _put_asset(self, asset: AssetFile, name: str) -> None:
        self.store.put(Path(asset.path), name, asset.media_type)
        self._compare(name, asset.size_bytes, asset.checksum)

    def _compare(self, name: str, size: int, checksum: str | None) -> None:
        found_size = self.store.size(name)
        if found_size != size:
            raise SinkError(f"{self.store.address(name)}: {found_size} bytes there, expected {size}; publish again")
        found = checksum if checksum is None else self.store.multihash(name, size)
        if found != checksum:
            raise SinkError(f"{self.store.address(name)}: checksum is {found}, expected {checksum}; publish again")

    def _switch(self, name: str, document: Json) -> Json | None:
        """Write the item; from here on it counts. A replaced item keeps its time of creation; it is returned."""
        old = self._read(name)
        if old is not None:
            document["properties"]["created"] = old["properties"]["created"]
        self.store.write(name, _dump(document), _MEDIA_GEOJSON)
        return old

    def _link(self, collection: CollectionInfo, document: Json) -> set[str]:
        """Link an item from below to above, so that no reader meets a link that leads nowhere.

        Returns:
            What need not be linked again: the collection, and the item's page if it has one.
        """
        name = f"{collection.id}/collection.json"
        known = self.store.read_tagged(name)
        direct = _has_room_for(self._parsed(name, known.data), document)
        day, month = _page_name(document), _month_name(document)
        if not direct:
            self._update(day, lambda old: _with_item_link(old or _new_page(day, document), document, "../"))
        if not direct and day not in self._linked:
            self._update(month, lambda old: _with_page(old or _new_page(month, document), day))

        def grow(old: Json | None) -> Json:
            if direct and not _has_room_for(old, document):
                raise _FullMeanwhileError
            grown = _with_extent(old or _new_collection(collection, document), document)
            return _with_item_link(grown, document, "./") if direct else _with_page(grown, _month_name(document))

        try:
            self._update(name, grow, known)
        except _FullMeanwhileError:  # others were faster; one that publishes the same item may link it from its page
            return self._link(collection, document)
        if collection.id not in self._linked:
            self._update("catalog.json", lambda old: _with_child(old or _new_catalog(self.title), collection))
        return {collection.id} if direct else {collection.id, day}

    def _unlink(self, collection_id: str, document: Json) -> None:
        for name in (f"{collection_id}/collection.json", _page_name(document)):
            if self._read(name) is not None:
                self._update(name, lambda old: _without_item(old or {}, document["id"]))

    def _item_links(self, collection_id: str) -> list[Json]:
        """Links to items in the collection and on its pages; many pages are read at once."""
        collection = self._read(f"{collection_id}/collection.json")
        links = _links_of(collection, "item")
        pages = [f"{collection_id}/{_plain(link['href'])}" for link in _links_of(collection, "child")]
        with ThreadPoolExecutor(_READERS) as pool:
            while pages:
                read = list(zip(pages, pool.map(self._read, pages), strict=True))
                links += [link for _, page in read for link in _links_of(page, "item")]
                pages = [
                    posixpath.normpath(f"{posixpath.dirname(name)}/{link['href']}")
                    for name, page in read
                    for link in _links_of(page, "child")
                ]
        return links

    def _deprecate(self, collection_id: str, old_id: str, new_id: str) -> None:
        def mark(old: Json | None) -> Json:
            if old is None:
                raise SinkError(f"{collection_id}/{old_id}: removed while {new_id} took its place; publish again")
            if old["properties"].get("deprecated") and _successor_of(old) == new_id:
                return old
            changed: Json = json.loads(json.dumps(old))
            changed["properties"] |= {"deprecated": True, "updated": _now()}
            others = [link for link in changed["links"] if link["rel"] not in {"successor-version", "latest-version"}]
            changed["links"] = [
                *others,
                _version_link("successor-version", new_id),
                _version_link("latest-version", new_id),
            ]
            validate_item(changed)
            return changed

        self._update(_item_name(collection_id, old_id), mark)

    def _update(self, name: str, change: Callable[[Json | None], Json], known: _Tagged | None = None) -> None:
        """Read, change and write one shared document without losing what others write meanwhile."""

        def on_bytes(data: bytes | None) -> bytes:
            old = self._parsed(name, data)
            new = change(old)
            if data is not None and new == old:
                return data
            validate_document(_with_new_links_only(old, new))
            return _dump(new)

        self.store.update(name, on_bytes, _MEDIA_GEOJSON if name.count("/") == 2 else _MEDIA_JSON, known)

    def _read(self, name: str) -> Json | None:
        return self._parsed(name, self.store.read(name))

    def _parsed(self, name: str, data: bytes | None) -> Json | None:
        if data is None:
            return None
        try:
            parsed: Json = json.loads(data)
        except ValueError as err:
            raise SinkError(f"{self.store.address(name)}: is not JSON ({err}); restore or remove it") from err
        return parsed

    def _walk_to(self, collection_id: str, item_id: str) -> pystac.Item:
        """Root catalog, child link, collection or page of the item's day, item link: every step through pystac."""
        stac_io = _SinkIO(self.store)
        name = _item_name(collection_id, item_id)
        document = self.item(collection_id, item_id)
        try:
            root = pystac.Catalog.from_file(self.catalog_href, stac_io=stac_io)
            wanted = f"/{collection_id}/collection.json"
            links = [link for link in root.links if link.rel in {"child", "related"}]
            child = next(link.absolute_href for link in links if link.absolute_href.endswith(wanted))
            parent = pystac.Collection.from_file(child, stac_io=stac_io)
            href = self._item_href(parent, document, stac_io)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecatedWarning)  # a superseded item is read back like any other
                item = pystac.Item.from_dict(document, href=href)
        except StopIteration as err:
            raise SinkError(
                f"{self.catalog_href}: no link leads to {collection_id}/{item_id}; publish it again"
            ) from err
        except (OSError, ValueError, pystac.STACError) as err:
            raise SinkError(f"{self.catalog_href}: {collection_id}/{item_id} cannot be read back ({err})") from err
        if (item.id, item.collection_id, href) != (item_id, collection_id, self.store.address(name)):
            raise SinkError(f"{href}: holds {item.collection_id}/{item.id}, expected {collection_id}/{item_id}")
        return item

    def _item_href(self, collection: pystac.Collection, document: Json, stac_io: DefaultStacIO) -> str:
        """Where the collection, or its page of the item's day, says that the item is; StopIteration if nowhere."""
        pages: list[pystac.Catalog] = [collection]
        for name in (_month_name(document), _page_name(document)):
            found = [link.absolute_href for link in pages[-1].get_child_links()]
            pages += [pystac.Catalog.from_file(h, stac_io=stac_io) for h in found if h.endswith(f"/{name}")]
        wanted = f"/{document['id']}/{document['id']}.json"
        links = (str(link.absolute_href) for page in pages for link in page.get_item_links())
        return next(href for href in links if href.endswith(wanted))


@dataclass(frozen=True)
class _Tagged:
    """A document as it was read, and what tells its version from others where the storage knows that."""

    data: bytes | None
    etag: str | None = None


class _Store(ABC):
    """The few operations the catalog needs; names are relative to its root.

    Failures are ``SinkError``, or ``CatalogUnavailableError`` where a server gives no answer and may do so later.
    """

    @abstractmethod
    def address(self, name: str) -> str: ...

    @abstractmethod
    def read(self, name: str) -> bytes | None: ...

    @abstractmethod
    def size(self, name: str) -> int | None: ...

    @abstractmethod
    def multihash(self, name: str, size: int) -> str:
        """Checksum of a file of this ``size`` in bytes."""

    @abstractmethod
    def write(self, name: str, data: bytes, media_type: str) -> None: ...

    @abstractmethod
    def put(self, source: Path, name: str, media_type: str) -> None: ...

    @abstractmethod
    def get(self, name: str, target: Path) -> None: ...

    def read_tagged(self, name: str) -> _Tagged:
        """To be handed to ``update``, which need not read again then."""
        return _Tagged(self.read(name))

    @abstractmethod
    def update(
        self, name: str, change: Callable[[bytes | None], bytes], media_type: str, known: _Tagged | None = None
    ) -> None: ...

    @abstractmethod
    def delete(self, name: str) -> None: ...

    @abstractmethod
    def list_names(self, folder: str) -> list[str]: ...

    def list_drafts(self) -> list[str]:
        """Names that readers never look at, of files that are being written."""
        return []

    def exists(self, name: str) -> bool:
        return self.size(name) is not None


class _Folder(_Store):
    """A local folder: files are written beside their place, flushed and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def address(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        with self._named(name):
            try:
                return (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def size(self, name: str) -> int | None:
        with self._named(name):
            try:
                return (self.root / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def multihash(self, name: str, size: int) -> str:  # noqa: ARG002 (a file ends by itself)
        with self._named(name):
            return multihash_of(self.root / name)

    def write(self, name: str, data: bytes, media_type: str) -> None:  # noqa: ARG002 (files have no media type)
        def fill(draft: Path) -> None:
            draft.write_bytes(data)

        self._place(name, fill)

    def put(self, source: Path, name: str, media_type: str) -> None:  # noqa: ARG002
        def fill(draft: Path) -> None:
            with source.open("rb") as read, draft.open("wb") as written:
                while chunk := read.read(_CHUNK):
                    written.write(chunk)

        self._place(name, fill)

    def get(self, name: str, target: Path) -> None:
        with self._named(name):
            shutil.copyfile(self.root / name, target)

    def update(
        self,
        name: str,
        change: Callable[[bytes | None], bytes],
        media_type: str,
        known: _Tagged | None = None,  # noqa: ARG002 (only what is read under the lock is true)
    ) -> None:
        with self._locked():
            old = self.read(name)
            new = change(old)
            if new != old:
                self.write(name, new, media_type)

    def delete(self, name: str) -> None:
        with self._named(name):
            (self.root / name).unlink(missing_ok=True)

    def list_names(self, folder: str) -> list[str]:
        base = self.root / folder
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in base.rglob("*")
            if path.is_file() and not path.name.startswith(".draft-")
        )

    def list_drafts(self) -> list[str]:
        found = [path for kind in ("draft", "probe") for path in self.root.rglob(f".{kind}-*~*~*~*")]
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def _place(self, name: str, fill: Callable[[Path], None]) -> None:
        target = self.root / name
        draft = target.with_name(f".draft-{_signature()}-{target.name}")
        with self._named(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                fill(draft)
                _flush(draft)
                draft.replace(target)
                _flush(target.parent)
            finally:
                draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among threads and processes of hosts that share the folder; freed by the system on any death."""
        with self._named(".lock"):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            advice = {
                errno.ENOSPC: "the disk is full: free some space",
                errno.EDQUOT: "the quota is used up: free some space",
                errno.EACCES: "no permission: change it or choose another sink",
                errno.EPERM: "no permission: change it or choose another sink",
                errno.EROFS: "the file system is read-only: choose another sink",
            }.get(err.errno or 0, "check the path and the disk")
            raise SinkError(f"{self.address(name)}: {err.strerror or err}; {advice}") from err


class _Bucket(_Store):
    """An object store through fsspec: an object appears whole or not at all, shared ones are written conditionally."""

    def __init__(self, filesystem: Any, root: str, scheme: str) -> None:  # Any: fsspec ships no types
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.scheme = scheme

    def address(self, name: str) -> str:
        return f"{self.scheme}://{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        return self.read_tagged(name).data

    def read_tagged(self, name: str) -> _Tagged:
        """One request. ``cat_file`` would ask for the size first, and does not tell the ETag."""
        bucket, _, key = self._path(name).partition("/")
        with self._named(name):
            try:
                answer = self.filesystem.call_s3("get_object", Bucket=bucket, Key=key)
                data = fsspec.asyn.sync(self.filesystem.loop, answer["Body"].read)
            except FileNotFoundError:
                return _Tagged(None)
        # Ceph up to 16 compares without the quotes that belong to an ETag; others take it either way.
        return _Tagged(bytes(data), answer["ETag"].strip('"'))

    def size(self, name: str) -> int | None:
        with self._named(name):
            try:
                return int(self.filesystem.info(self._path(name), refresh=True)["size"])
            except FileNotFoundError:
                return None

    def multihash(self, name: str, size: int) -> str:
        """In ranges, each tried again by itself; ``open`` would ask for the size first."""
        digest, path = hashlib.sha256(), self._path(name)
        with self._named(name):
            for start in range(0, size, _RANGE):
                digest.update(self.filesystem.cat_file(path, start=start, end=min(size, start + _RANGE)))
        return "1220" + digest.hexdigest()

    def write(self, name: str, data: bytes, media_type: str) -> None:
        with self._named(name):
            self.filesystem.pipe_file(self._path(name), data, ContentType=media_type)

    def put(self, source: Path, name: str, media_type: str) -> None:
        with self._named(name):
            self.filesystem.put_file(str(source), self._path(name), ContentType=media_type)

    def get(self, name: str, target: Path) -> None:
        with self._named(name):
            self.filesystem.get_file(self._path(name), str(target))

    def update(
        self, name: str, change: Callable[[bytes | None], bytes], media_type: str, known: _Tagged | None = None
    ) -> None:
        """Compare-and-swap on the object's ETag (If-Match, If-None-Match), tried again while others are faster."""
        bucket, _, key = self._path(name).partition("/")
        for attempt in range(_TRIES):
            if attempt:  # a random pause, growing: many publishers would overtake each other for ever
                time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, 0.01 * 2**attempt)))  # noqa: S311
            old = known if known is not None and not attempt else self.read_tagged(name)
            new = change(old.data)
            if new == old.data:
                return
            condition = {"IfNoneMatch": "*"} if old.etag is None else {"IfMatch": old.etag}
            with self._named(name):
                try:
                    self.filesystem.call_s3(
                        "put_object", Bucket=bucket, Key=key, Body=new, ContentType=media_type, **condition
                    )
                except OSError as err:
                    if _status(err) not in {409, 412}:  # somebody is writing, or has written
                        raise
                else:
                    self.filesystem.invalidate_cache(self._path(name))
                    return
        raise SinkError(f"{self.address(name)}: {_TRIES} writes in a row were overtaken by others; publish again")

    def delete(self, name: str) -> None:
        with self._named(name):
            self.filesystem.rm_file(self._path(name))

    def list_names(self, folder: str) -> list[str]:
        with self._named(folder):
            try:
                found = self.filesystem.find(self._path(folder), refresh=True)
            except FileNotFoundError:
                return []
        return sorted(path.removeprefix(f"{self.root}/") for path in found)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError
        from botocore.exceptions import ConnectionError as NoConnectionError
        from s3fs.core import S3_RETRYABLE_ERRORS

        try:
            yield
        except (OSError, ValueError, BotoCoreError, *S3_RETRYABLE_ERRORS) as err:
            said = f"{self.address(name)}: {type(err).__name__}: {err}"
            if isinstance(err, (NoConnectionError, *S3_RETRYABLE_ERRORS)) or _status(err) >= 500:
                raise CatalogUnavailableError(f"{said}; is the object store up? It is tried again") from err
            raise SinkError(f"{said}; check bucket, credentials and endpoint") from err


class _SinkIO(DefaultStacIO):
    """Lets pystac read through the sink's own storage."""

    def __init__(self, store: _Store) -> None:
        super().__init__()
        self.store = store

    def read_text_from_href(self, href: str, *_: Any, **__: Any) -> str:  # Any: pystac's own signature
        data = self.store.read(href.removeprefix(self.store.address("")).lstrip("/"))
        if data is None:
            raise FileNotFoundError(href)
        return data.decode()


def _open_store(uri: str, options: Json) -> _Store:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError, OSError) as err:  # some file systems connect at once
        raise SinkError(f"{uri}: not a usable sink ({err}); give a folder or s3://bucket/prefix") from err
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    if "file" in protocols:
        return _Folder(Path(path).absolute())
    if "s3" in protocols:
        return _Bucket(filesystem, path, "s3")
    raise SinkError(f"{uri}: storage {sorted(protocols)} cannot switch atomically here; give a folder or s3://…")


def _status(err: BaseException | None) -> int:
    """Status of an S3 answer, however s3fs has wrapped it; 0 if there was none."""
    while err is not None:
        response = getattr(err, "response", None) or {}
        if "ResponseMetadata" in response:
            return int(response["ResponseMetadata"].get("HTTPStatusCode", 0))
        err = err.__cause__
    return 0


def _signature() -> str:
    """A fresh name that tells which process made it, so that what a dead one leaves behind can be removed."""
    return f"{lease_owner().replace('/', '~')}~{uuid.uuid4().hex[:12]}"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_file(asset: AssetFile) -> None:
    path = Path(asset.path)
    if not path.is_file():
        raise InvalidSceneError(f"{path}: the file of asset {asset.key} is gone; make it again")
    if (path.stat().st_size, multihash_of(path)) != (asset.size_bytes, asset.checksum):
        raise InvalidSceneError(f"{path}: changed since it was described as asset {asset.key}; describe it again")
    if asset.raster is not None:
        validate_cog(path)


def _asset_name(asset: AssetFile, document: Json) -> str:
    """``<key>-<version>-<checksum>.<suffix>``: other content never takes the name of a file that readers may hold."""
    version = document["properties"]["version"]
    return f"{asset.key}-{version}-{asset.checksum[4:12]}{Path(asset.path).suffix.lower()}"


def _item_name(collection_id: str, item_id: str) -> str:
    return f"{collection_id}/{item_id}/{item_id}.json"


def _essence(document: Json) -> Json:
    """An item without what differs between two runs that made the same thing."""
    plain: Json = json.loads(json.dumps(document))
    for name in ("created", "updated", "processing:datetime", "pancrafter:cost"):
        plain["properties"].pop(name, None)
    return plain


def _new_catalog(title: str) -> Json:
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": "pancrafter",
        "title": title,
        "description": "Pansharpened satellite imagery with its quality, provenance and cost.",
        "links": [{"rel": "root", "href": "./catalog.json", "type": _MEDIA_JSON, "title": title}],
    }


def _new_collection(collection: CollectionInfo, first: Json) -> Json:
    start, end = _span(first)
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": collection.id,
        "title": collection.title,
        "description": collection.description,
        "keywords": list(collection.keywords),
        "license": stac_license(collection.license),
        "providers": list(collection.providers),
        "extent": {"spatial": {"bbox": [extent_box(first)]}, "temporal": {"interval": [[start, end]]}},
        "summaries": {},
        "item_assets": _ITEM_ASSETS if collection.item_assets is None else collection.item_assets,
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": _MEDIA_JSON},
            {"rel": "parent", "href": "../catalog.json", "type": _MEDIA_JSON},
        ],
    }


class _FullMeanwhileError(Exception):
    """A collection that was to link an item itself links as many as it may by now."""


def _has_room_for(collection: Json | None, item: Json) -> bool:
    """Whether a collection is to link the item itself, or does already."""
    links = _links_of(collection, "item")
    return len(links) < ITEMS_IN_COLLECTION or any(_leads_to(link, item["id"]) for link in links)


def _with_item_link(parent: Json, item: Json, up: str) -> Json:
    """The collection or page with a link to the item; ``up`` leads to the collection's folder."""
    if any(_leads_to(link, item["id"]) for link in parent["links"]):
        return parent
    link = {
        "rel": "item",
        "href": f"{up}{item['id']}/{item['id']}.json",
        "type": _MEDIA_GEOJSON,
        "title": item["properties"]["title"],
    }
    if _SOURCE_FIELD in item["properties"]:
        link[_SOURCE_FIELD] = item["properties"][_SOURCE_FIELD]["item_id"]
    return parent | {"links": [*parent["links"], link]}


def _without_item(parent: Json, item_id: str) -> Json:
    return parent | {"links": [link for link in parent["links"] if not _leads_to(link, item_id)]}


def _with_new_links_only(old: Json | None, new: Json) -> Json:
    """What there is to validate in a changed document: links that were there have been, and there may be hundreds."""
    known = _links(old)
    if new["type"] == "Feature":  # some of an item's links are bound to its fields
        return new
    return new | {"links": new["links"][len(known) :]} if new["links"][: len(known)] == known else new


def _leads_to(link: Json, item_id: str) -> bool:
    return link["rel"] == "item" and _linked_id(link) == item_id


def _linked_id(link: Json) -> str:
    """Id of a linked item. Those of earlier versions may hold slashes, and lie at ``ID/ID.json`` like all others."""
    place = str(link["href"]).removeprefix("../").removeprefix("./")
    folder = place[: (len(place) - len("/.json")) // 2]
    return folder if place == f"{folder}/{folder}.json" else place.rsplit("/", 2)[-2]


def _page_name(item: Json) -> str:
    """The page that links an item of a large collection: that of the day of its acquisition."""
    return f"{item['collection']}/{_PAGES}/{_span(item)[0][:10]}.json"


def _month_name(item: Json) -> str:
    return f"{item['collection']}/{_PAGES}/{_span(item)[0][:7]}.json"


def _new_page(name: str, item: Json) -> Json:
    period = posixpath.splitext(posixpath.basename(name))[0]
    parent = "../collection.json" if name == _month_name(item) else posixpath.basename(_month_name(item))
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": f"{item['collection']}-{period}",
        "title": period,
        "description": f"Items of {item['collection']} acquired in {period}.",
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": _MEDIA_JSON},
            {"rel": "parent", "href": parent, "type": _MEDIA_JSON},
        ],
    }


def _with_page(parent: Json, page: str) -> Json:
    """The collection or month with a link to one of its pages."""
    name = posixpath.basename(page)
    href = f"./{_PAGES}/{name}" if parent["type"] == "Collection" else f"./{name}"
    if any(link["href"] == href for link in parent["links"]):
        return parent
    link = {"rel": "child", "href": href, "type": _MEDIA_JSON, "title": posixpath.splitext(name)[0]}
    return parent | {"links": [*parent["links"], link]}


def extent_box(item: Json) -> list[float]:
    """The item's box as a part of an extent: one across the antimeridian counts as all longitudes."""
    west, south, east, north = item["bbox"]
    return [west, south, east, north] if west <= east else [-180.0, south, 180.0, north]


def _with_extent(collection: Json, item: Json) -> Json:
    """The collection with extents and summaries that include the item."""
    grown: Json = json.loads(json.dumps(collection))
    box, added = grown["extent"]["spatial"]["bbox"], extent_box(item)
    box[0] = [*map(min, box[0][:2], added[:2]), *map(max, box[0][2:], added[2:])]
    (start, end), span = _span(item), grown["extent"]["temporal"]["interval"][0]
    span[0] = min(span[0], start, key=datetime.fromisoformat)
    span[1] = max(span[1], end, key=datetime.fromisoformat)
    for name in ("platform", "constellation", "gsd", "proj:code", "pancrafter:sensor", "pancrafter:method"):
        value, known = item["properties"].get(name), grown["summaries"].setdefault(name, [])
        if value is not None and value not in known:
            known.append(value)
            known.sort()
        if not known:
            del grown["summaries"][name]
    if "proj:code" in grown["summaries"]:
        uri = next(uri for uri in item["stac_extensions"] if "/projection/" in uri)
        grown["stac_extensions"] = sorted({*grown["stac_extensions"], uri})
    return grown


def _span(item: Json) -> tuple[str, str]:
    """First and last moment of an item; a model item has a validity instead of an acquisition."""
    moment, properties = item["properties"]["datetime"], item["properties"]
    return (moment, moment) if moment else (properties["start_datetime"], properties["end_datetime"])


def _with_child(catalog: Json, collection: CollectionInfo) -> Json:
    href = f"./{collection.id}/collection.json"
    if any(link["href"] == href for link in catalog["links"]):
        return catalog
    link = {"rel": collection.relation, "href": href, "type": _MEDIA_JSON, "title": collection.title}
    return catalog | {"links": [*catalog["links"], link]}


def _version_link(relation: str, item_id: str) -> Json:
    return {"rel": relation, "href": f"../{item_id}/{item_id}.json", "type": _MEDIA_GEOJSON, "title": item_id}


def _successor_of(document: Json | None) -> str | None:
    """Id of the item that took the place of a superseded one."""
    return next((_linked_id(link) for link in _links_of(document, "successor-version")), None)


def _links(document: Json | None) -> list[Json]:
    found: list[Json] = (document or {}).get("links", [])
    return found


def _links_of(document: Json | None, relation: str) -> list[Json]:
    return [link for link in _links(document) if link["rel"] == relation]


def _plain(href: str) -> str:
    return href.removeprefix("./")


def _dump(document: Json) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
