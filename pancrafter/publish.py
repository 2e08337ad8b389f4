"""The output catalog: a static, self-contained STAC catalog on a folder or an S3 bucket.

Order makes it safe. Assets come first, then the item's JSON (the switch), then the link in the collection, then the
collection's link in the catalog. A reader never meets a link without its document, nor an item without its assets,
and a publisher that dies leaves at most unreferenced files that the next attempt overwrites.

A collection links its first ``ITEMS_IN_COLLECTION`` items itself. Further ones are linked from a page for their day
of acquisition (collection -> month -> day -> item, all plain STAC catalogs), so that what is read and written per item
does not grow with the archive.
"""

from __future__ import annotations

import json
import posixpath
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pystac
from pydantic import Field
from pystac.errors import DeprecatedWarning
from pystac.stac_io import DefaultStacIO

from pancrafter import killpoints
from pancrafter.catalog_links import (
    MEDIA_GEOJSON,
    MEDIA_JSON,
    PAGES,
    SOURCE_FIELD,
    CollectionInfo,
    dump,
    essence,
    has_room_for,
    item_name,
    leads_to,
    linked_id,
    links_of,
    month_name,
    new_catalog,
    new_collection,
    new_page,
    page_name,
    plain_href,
    successor_of,
    version_link,
    with_child,
    with_extent,
    with_item_link,
    with_new_links_only,
    with_page,
    without_item,
    without_successor,
)
from pancrafter.cog import validate_cog
from pancrafter.errors import InvalidSceneError, PancrafterError, SinkError
from pancrafter.item import SCHEMA_FILE, AssetFile, multihash_of
from pancrafter.object_store import ObjectStore, Tagged, open_store, signature
from pancrafter.types import Json, Record
from pancrafter.validation import own_schema_text, validate_document, validate_item

_READERS = 8
_ASSET_NAME = re.compile(r"(?P<key>.+)-[0-9a-f]{12}-[0-9a-f]{8}\.\w+")


class Published(Record):
    """Where a published item lies. ``changed`` is False if exactly this item was there before."""

    collection_id: str
    item_id: str
    href: str = Field(description="Absolute address of the item.")
    changed: bool
    superseded: tuple[str, ...] = Field(default=(), description="Ids of the older items that point to this one now.")
    assets: dict[str, str] = Field(description="Absolute address per asset key.")


class StaticSink:
    """A static STAC catalog that this process may add to.

    Several processes may publish at the same time: a lock file (folder) or conditional writes (S3) keep the shared
    documents whole.

    Args:
        uri: Folder, ``file://`` or ``s3://bucket/prefix``. Nothing is touched before the first call.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._store: ObjectStore | None = None
        self._linked: set[str] = set()  # documents that were found linked from the root: no publisher unlinks these

    @property
    def store(self) -> ObjectStore:
        """The storage behind the catalog, opened on first use."""
        if self._store is None:
            self._store = open_store(self.uri)
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
        probe = f".probe-{signature()}"
        self.store.write(probe, b"pancrafter", "text/plain")
        self.store.delete(probe)

    def publish(
        self,
        item: pystac.Item,
        assets: Sequence[AssetFile],
        *,
        collection: CollectionInfo,
        supersedes: str | None = None,
        guard: Callable[[], object] | None = None,
    ) -> Published:
        """Put an item and its files into the catalog as the current version; doing it again changes nothing.

        An item that was superseded becomes current again, and what took its place is superseded in turn; so is what an
        interrupted publication left current of the same source item.

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
        present = self.document(collection.id, item.id)
        superseded = self._newest_other(collection.id, item.id, supersedes or successor_of(present))
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
            replaced = self._switch(item_name(collection.id, item.id), document)
            killpoints.at("item-written")
            if replaced is not None and page_name(replaced) != page_name(document):
                self.unlink(collection.id, replaced)
        linked = self._link(collection, document)
        killpoints.at("linked")
        older = self._older(document, superseded, linked.siblings)
        for older_id in older:
            self._deprecate(collection.id, older_id, item.id)
        names = {f"{folder}/{_asset_name(asset, document)}" for asset in assets}
        try:
            published = self.read_back(collection.id, item.id, changed=changed, compared=names)
        except PancrafterError:
            self._linked.clear()  # somebody took the catalog apart: the next attempt looks at every link
            raise
        self._linked |= linked.lasting
        return published.model_copy(update={"superseded": older})

    def read_back(
        self, collection_id: str, item_id: str, *, changed: bool = False, compared: Collection[str] = ()
    ) -> Published:
        """Find an item the way a reader does, from the root with pystac, and compare sizes and checksums of its files.

        Of files whose checksums were ``compared`` a moment ago only the sizes are looked at.

        Raises:
            SinkError: It cannot be found, or a file is missing or differs.
        """
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
            href=self.store.address(item_name(collection_id, item_id)),
            changed=changed,
            assets=addresses,
        )

    def exists(self, collection_id: str, item_id: str) -> bool:
        """The item is linked from its collection and its document is there."""
        document = self.document(collection_id, item_id)
        if document is None:
            return False
        return any(
            leads_to(link, item_id)
            for name in (f"{collection_id}/collection.json", page_name(document))
            for link in links_of(self._read(name), "item")
        )

    def collection_ids(self) -> tuple[str, ...]:
        """Ids of the collections that the catalog links to."""
        return tuple(
            posixpath.dirname(plain_href(link["href"])) for link in links_of(self._read("catalog.json"), "child")
        )

    def item_ids(self, collection_id: str) -> tuple[str, ...]:
        """Ids of the items that a collection links to, itself or by its pages, each once."""
        return tuple(self.sources(collection_id))

    def sources(self, collection_id: str) -> dict[str, str | None]:
        """Id of the source item of each item that a collection links to; None where the link does not say."""
        return {linked_id(link): link.get(SOURCE_FIELD) for link in self._item_links(collection_id)}

    def item(self, collection_id: str, item_id: str) -> Json:
        """The document of one item.

        Raises:
            SinkError: It is not there.
        """
        found = self.document(collection_id, item_id)
        if found is None:
            raise SinkError(f"{self.store.address(item_name(collection_id, item_id))}: no such item; publish it again")
        return found

    def withdraw(self, collection_id: str, item_id: str, *, announce: Callable[[Json], object] | None = None) -> None:
        """Take an item out of the catalog: first all links to it, then its files, the document last; may be repeated.

        What it had superseded stays deprecated.

        Args:
            collection_id: Its collection.
            item_id: The item.
            announce: Called with the document when no link leads to it any more.

        Raises:
            SinkError: It is not there.
        """
        document = self.item(collection_id, item_id)
        self.unlink(collection_id, document)
        for older in self.find_by_source(collection_id, document["properties"][SOURCE_FIELD]["item_id"]):
            if successor_of(older) == item_id:
                self._update(item_name(collection_id, older["id"]), lambda old: without_successor(old or {}))
        if announce is not None:
            announce(document)
        for asset in document["assets"].values():
            self.store.delete(posixpath.normpath(f"{collection_id}/{item_id}/{asset['href']}"))
        self.store.delete(item_name(collection_id, item_id))

    def items(self, collection_id: str | None = None) -> Iterator[Json]:
        """Item documents of one collection or of all, as dictionaries."""
        for name in [collection_id] if collection_id else self.collection_ids():
            for item_id in self.item_ids(name):
                found = self.document(name, item_id)
                if found is not None:
                    yield found

    def find_by_source(self, collection_id: str, source_item_id: str) -> list[Json]:
        """Item documents made from a source item; deprecated ones are among them."""
        links = self._item_links(collection_id)
        ids = [linked_id(link) for link in links if link.get(SOURCE_FIELD) == source_item_id]
        return [document for one in ids if (document := self.document(collection_id, one)) is not None]

    def orphans(self, collection_id: str, planned: Collection[str] = ()) -> tuple[str, ...]:
        """Files of the collection that no item refers to: leftovers of dead attempts and replaced assets.

        An item that no link leads to is such a leftover too, unless its id is ``planned`` or it is deprecated: it was
        in the catalog then, whose links are damaged. A linked or planned one with one file per asset is not read: an
        attempt, finished or not, puts a file for the same assets.
        """
        unknown: list[str] = []
        listed = self.store.list_names(collection_id)
        known = {*self.item_ids(collection_id), *planned}  # after the files: an item is linked last
        for folder, names in groupby(listed, posixpath.dirname):
            if folder == f"{collection_id}/{PAGES}":
                continue
            files, item_id = set(names), posixpath.basename(folder)
            files.discard(f"{collection_id}/collection.json")
            document = item_name(collection_id, item_id)
            if document in files and (item_id in known or self._is_deprecated(document)):
                files.remove(document)
                files -= files if _is_one_per_asset(files) else self.files_of(collection_id, item_id)
            unknown += files
        return tuple(sorted(unknown))

    def files_of(self, collection_id: str, item_id: str) -> frozenset[str]:
        """Names of the files that an item's document refers to; none if there is no document."""
        document = self.document(collection_id, item_id) or {"assets": {}}
        hrefs = [asset["href"] for asset in document["assets"].values()]
        return frozenset(posixpath.normpath(f"{collection_id}/{item_id}/{href}") for href in hrefs)

    def _is_deprecated(self, name: str) -> bool:
        document = self._read(name)
        return document is not None and bool(document["properties"].get("deprecated"))

    def drafts(self) -> tuple[tuple[str, str, datetime], ...]:
        """Files that are being written, by which process (``pancrafter.processes``), and when they changed last."""
        return tuple(
            (name, "/".join(posixpath.basename(name).split("-", 1)[1].split("~")[:3]), changed)
            for name, changed in self.store.list_drafts()
        )

    def document(self, collection_id: str, item_id: str) -> Json | None:
        """An item's document, linked or not; None if there is none."""
        return self._read(item_name(collection_id, item_id))

    def is_current(self, collection_id: str, item_id: str) -> bool:
        """Whether an item is there, linked or not, and was not superseded."""
        document = self.document(collection_id, item_id)
        return document is not None and not document["properties"].get("deprecated")

    def _newest_other(self, collection_id: str, item_id: str, version: str | None) -> str | None:
        """The newest version from ``version`` on that is there, but for the item itself.

        What is known as the older version may have been superseded by a publication that was never confirmed.
        """
        versions: list[str] = []
        while version is not None and version not in {item_id, *versions}:
            document = self.document(collection_id, version)
            if document is None:
                break
            versions.append(version)
            version = successor_of(document)
        return versions[-1] if versions else None

    def _older(self, document: Json, superseded: str | None, siblings: set[str]) -> tuple[str, ...]:
        """Ids of what an item takes the place of: ``superseded``, and what else of its source is older and current.

        What a first attempt marked is named again: it may have died before it told the feed and the STAC API.
        """
        found = [] if superseded is None else [superseded]
        for sibling in sorted(siblings - {superseded, document["id"]}):
            other = self.document(document["collection"], sibling)
            if other is None:
                continue
            current = not other["properties"].get("deprecated")
            older = current and other["properties"]["updated"] < document["properties"]["updated"]
            found += [sibling] if older or successor_of(other) == document["id"] else []
        return tuple(found)

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
        if present is not None and _recipe_of(present) == _recipe_of(document):
            # Earlier releases made it from the recipe alone; readers may hold the names of files that follow from it.
            document["properties"]["version"] = present["properties"]["version"]
        for asset in assets:
            document["assets"][asset.key]["href"] = f"./{_asset_name(asset, document)}"
        if present is not None:  # keeps what it came after: links to older versions never lead in a circle
            earlier = links_of(present, "predecessor-version")
            document["links"] += [link for link in earlier if linked_id(link) != item.id]
        elif superseded is not None:
            document["links"].append(version_link("predecessor-version", superseded))
        return document

    def _is_there(self, collection_id: str, document: Json, present: Json | None) -> bool:
        """The same item (apart from its times and cost) is already published and current, with all its files."""
        if present is None or essence(present) != essence(document):
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
            self._update("catalog.json", lambda old: old or new_catalog())

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
        self.store.write(name, dump(document), MEDIA_GEOJSON)
        return old

    def _link(self, collection: CollectionInfo, document: Json) -> _Linked:
        """Link an item from below to above, so that no reader meets a link that leads nowhere."""
        name = f"{collection.id}/collection.json"
        known = self.store.read_tagged(name)
        direct = has_room_for(self._parsed(name, known.data), document)
        day, month = page_name(document), month_name(document)
        siblings: set[str] = set()

        def grow_page(old: Json | None) -> Json:
            siblings.update(_siblings(old, document))
            return with_item_link(old or new_page(day, document), document, "../")

        if not direct:
            self._update(day, grow_page)
        if not direct and day not in self._linked:
            self._update(month, lambda old: with_page(old or new_page(month, document), day))

        def grow(old: Json | None) -> Json:
            if direct and not has_room_for(old, document):
                raise _FullMeanwhileError
            siblings.update(_siblings(old, document))
            grown = with_extent(old or new_collection(collection, document), document)
            return with_item_link(grown, document, "./") if direct else with_page(grown, month_name(document))

        try:
            self._update(name, grow, known)
        except _FullMeanwhileError:  # others were faster; one that publishes the same item may link it from its page
            return self._link(collection, document)
        if collection.id not in self._linked:
            self._update("catalog.json", lambda old: with_child(old or new_catalog(), collection))
        return _Linked({collection.id} if direct else {collection.id, day}, siblings)

    def unlink(self, collection_id: str, document: Json) -> None:
        """Take the links to an item out of its collection and its page; its document and its files stay."""
        for name in (f"{collection_id}/collection.json", page_name(document)):
            if self._read(name) is not None:
                self._update(name, lambda old: without_item(old or {}, document["id"]))

    def _item_links(self, collection_id: str) -> list[Json]:
        """Links to items in the collection and on its pages; many pages are read at once."""
        collection = self._read(f"{collection_id}/collection.json")
        links = links_of(collection, "item")
        pages = [f"{collection_id}/{plain_href(link['href'])}" for link in links_of(collection, "child")]
        with ThreadPoolExecutor(_READERS) as pool:
            while pages:
                read = list(zip(pages, pool.map(self._read, pages), strict=True))
                links += [link for _, page in read for link in links_of(page, "item")]
                pages = [
                    posixpath.normpath(f"{posixpath.dirname(name)}/{link['href']}")
                    for name, page in read
                    for link in links_of(page, "child")
                ]
        return links

    def _deprecate(self, collection_id: str, old_id: str, new_id: str) -> None:
        def mark(old: Json | None) -> Json:
            if old is None:
                raise SinkError(f"{collection_id}/{old_id}: removed while {new_id} took its place; publish again")
            if old["properties"].get("deprecated") and successor_of(old) == new_id:
                return old
            changed = without_successor(old)
            changed["properties"]["deprecated"] = True
            # Products declared it before, which only items of models may.
            changed["stac_extensions"] = [one for one in changed.get("stac_extensions", []) if "/mlm/" not in one]
            changed["links"] += [version_link("successor-version", new_id), version_link("latest-version", new_id)]
            validate_item(changed)
            return changed

        self._update(item_name(collection_id, old_id), mark)

    def _update(self, name: str, change: Callable[[Json | None], Json], known: Tagged | None = None) -> None:
        """Read, change and write one shared document without losing what others write meanwhile."""

        def on_bytes(data: bytes | None) -> bytes:
            old = self._parsed(name, data)
            new = change(old)
            if data is not None and new == old:
                return data
            validate_document(with_new_links_only(old, new))
            return dump(new)

        self.store.update(name, on_bytes, MEDIA_GEOJSON if name.count("/") == 2 else MEDIA_JSON, known)

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
        name = item_name(collection_id, item_id)
        document = self.item(collection_id, item_id)
        try:
            root = pystac.Catalog.from_file(self.catalog_href, stac_io=stac_io)
            wanted = f"/{collection_id}/collection.json"
            links = [link for link in root.links if link.rel in {"child", "related"}]
            child = next(link.absolute_href for link in links if link.absolute_href.endswith(wanted))
            parent = pystac.Collection.from_file(child, stac_io=stac_io)
            href = self._item_href(parent, document, stac_io)
            # a superseded item is read back like any other
            with warnings.catch_warnings(action="ignore", category=DeprecatedWarning):
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
        for name in (month_name(document), page_name(document)):
            found = [link.absolute_href for link in pages[-1].get_child_links()]
            pages += [pystac.Catalog.from_file(h, stac_io=stac_io) for h in found if h.endswith(f"/{name}")]
        wanted = f"/{document['id']}/{document['id']}.json"
        links = (str(link.absolute_href) for page in pages for link in page.get_item_links())
        return next(href for href in links if href.endswith(wanted))


class _SinkIO(DefaultStacIO):
    """Lets pystac read through the sink's own storage."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self.store = store

    def read_text_from_href(self, href: str, *_: Any, **__: Any) -> str:  # Any: pystac's own signature
        data = self.store.read(href.removeprefix(self.store.address("")).lstrip("/"))
        if data is None:
            raise FileNotFoundError(href)
        return data.decode()


def _check_file(asset: AssetFile) -> None:
    path = Path(asset.path)
    if not path.is_file():
        raise InvalidSceneError(f"{path}: the file of asset {asset.key} is gone; make it again")
    if (path.stat().st_size, multihash_of(path)) != (asset.size_bytes, asset.checksum):
        raise InvalidSceneError(f"{path}: changed since it was described as asset {asset.key}; describe it again")
    if asset.raster is not None:
        validate_cog(path)


class _Linked(NamedTuple):
    """What came of linking an item."""

    lasting: set[str]
    """What need not be linked again: the collection, and the item's page if it has one."""
    siblings: set[str]
    """Ids of the items linked beside it that are made from the same source item."""


def _siblings(parent: Json | None, document: Json) -> set[str]:
    source = document["properties"].get(SOURCE_FIELD, {}).get("item_id")
    return {linked_id(link) for link in links_of(parent, "item") if source and link.get(SOURCE_FIELD) == source}


def _recipe_of(document: Json) -> str | None:
    """Digest of the recipe of a product; the item of a model has none."""
    digest: str | None = document["properties"].get("pancrafter:recipe", {}).get("digest")
    return digest


def _asset_name(asset: AssetFile, document: Json) -> str:
    """``<key>-<version>-<checksum>.<suffix>``: other content never takes the name of a file that readers may hold."""
    version = document["properties"]["version"]
    return f"{asset.key}-{version}-{asset.checksum[4:12]}{Path(asset.path).suffix.lower()}"


def _is_one_per_asset(names: Collection[str]) -> bool:
    """Whether all are names that ``_asset_name`` makes, each for another asset."""
    matched = [_ASSET_NAME.fullmatch(posixpath.basename(name)) for name in names]
    return None not in matched and len({found["key"] for found in matched if found}) == len(names)


class _FullMeanwhileError(Exception):
    """A collection that was to link an item itself links as many as it may by now."""
