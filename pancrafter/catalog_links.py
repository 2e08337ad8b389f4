"""The documents of an output catalog, and how they change when an item comes or goes: pure functions of JSON."""

from __future__ import annotations

import json
import posixpath
from datetime import datetime
from typing import Any, Literal

import pystac
from pydantic import Field

from pancrafter.item import MASK, QUALITY, SHARPENED, THUMBNAIL, stac_license
from pancrafter.times import timestamp
from pancrafter.types import Json, Record

MEDIA_JSON = "application/json"
MEDIA_GEOJSON = "application/geo+json"
ITEMS_IN_COLLECTION = 200
"""Items that a collection links itself before it begins to link pages of days: a bound on what a publication moves."""

PAGES = "by-day"
SOURCE_FIELD = "pancrafter:source"
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

TITLE = "Sharpened imagery"
"""What an output catalog and its report page are called."""


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


def item_name(collection_id: str, item_id: str) -> str:
    """Where an item's document lies, relative to the catalog."""
    return f"{collection_id}/{item_id}/{item_id}.json"


def essence(document: Json) -> Json:
    """An item without what differs between two runs that made the same thing."""
    plain: Json = json.loads(json.dumps(document))
    for name in ("created", "updated", "processing:datetime", "pancrafter:cost"):
        plain["properties"].pop(name, None)
    return plain


def new_catalog() -> Json:
    """The root of a catalog without collections."""
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": "pancrafter",
        "title": TITLE,
        "description": "Pansharpened satellite imagery with its quality, provenance and cost.",
        "links": [{"rel": "root", "href": "./catalog.json", "type": MEDIA_JSON, "title": TITLE}],
    }


def new_collection(collection: CollectionInfo, first: Json) -> Json:
    """A collection without links, whose extent is that of its first item."""
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
            {"rel": "root", "href": "../catalog.json", "type": MEDIA_JSON},
            {"rel": "parent", "href": "../catalog.json", "type": MEDIA_JSON},
        ],
    }


def has_room_for(collection: Json | None, item: Json) -> bool:
    """Whether a collection is to link the item itself, or does already."""
    links = links_of(collection, "item")
    return len(links) < ITEMS_IN_COLLECTION or any(leads_to(link, item["id"]) for link in links)


def with_item_link(parent: Json, item: Json, up: str) -> Json:
    """The collection or page with a link to the item; ``up`` leads to the collection's folder.

    Links that lead nowhere, as their ids hold ``#`` or ``?``, are left out: earlier versions wrote them.
    """
    links = [link for link in parent["links"] if link["rel"] != "item" or not {"#", "?"} & set(link["href"])]
    if any(leads_to(link, item["id"]) for link in links):
        return parent | {"links": links}
    link = {
        "rel": "item",
        "href": f"{up}{item['id']}/{item['id']}.json",
        "type": MEDIA_GEOJSON,
        "title": item["properties"]["title"],
    }
    if SOURCE_FIELD in item["properties"]:
        link[SOURCE_FIELD] = item["properties"][SOURCE_FIELD]["item_id"]
    return parent | {"links": [*links, link]}


def without_item(parent: Json, item_id: str) -> Json:
    """The collection or page without its link to an item."""
    return parent | {"links": [link for link in parent["links"] if not leads_to(link, item_id)]}


def with_new_links_only(old: Json | None, new: Json) -> Json:
    """What there is to validate in a changed document: links that were there have been, and there may be hundreds."""
    known = _links(old)
    if new["type"] == "Feature":  # some of an item's links are bound to its fields
        return new
    return new | {"links": new["links"][len(known) :]} if new["links"][: len(known)] == known else new


def leads_to(link: Json, item_id: str) -> bool:
    """Whether it is the link to that item."""
    return link["rel"] == "item" and linked_id(link) == item_id


def linked_id(link: Json) -> str:
    """Id of a linked item. Those of earlier versions may hold slashes, and lie at ``ID/ID.json`` like all others."""
    place = str(link["href"]).removeprefix("../").removeprefix("./")
    folder = place[: (len(place) - len("/.json")) // 2]
    return folder if place == f"{folder}/{folder}.json" else place.rsplit("/", 2)[-2]


def page_name(item: Json) -> str:
    """The page that links an item of a large collection: that of the day of its acquisition."""
    return f"{item['collection']}/{PAGES}/{_span(item)[0][:10]}.json"


def month_name(item: Json) -> str:
    """The page of the month of its acquisition, which links that of the day."""
    return f"{item['collection']}/{PAGES}/{_span(item)[0][:7]}.json"


def new_page(name: str, item: Json) -> Json:
    """A page of a day or a month, still without links to items or pages."""
    period = posixpath.splitext(posixpath.basename(name))[0]
    parent = "../collection.json" if name == month_name(item) else posixpath.basename(month_name(item))
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": f"{item['collection']}-{period}",
        "title": period,
        "description": f"Items of {item['collection']} acquired in {period}.",
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": MEDIA_JSON},
            {"rel": "parent", "href": parent, "type": MEDIA_JSON},
        ],
    }


def with_page(parent: Json, page: str) -> Json:
    """The collection or month with a link to one of its pages."""
    name = posixpath.basename(page)
    href = f"./{PAGES}/{name}" if parent["type"] == "Collection" else f"./{name}"
    if any(link["href"] == href for link in parent["links"]):
        return parent
    link = {"rel": "child", "href": href, "type": MEDIA_JSON, "title": posixpath.splitext(name)[0]}
    return parent | {"links": [*parent["links"], link]}


def extent_box(item: Json) -> list[float]:
    """The item's box as a part of an extent: one across the antimeridian counts as all longitudes."""
    west, south, east, north = item["bbox"]
    return [west, south, east, north] if west <= east else [-180.0, south, 180.0, north]


def with_extent(collection: Json, item: Json) -> Json:
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


def with_child(catalog: Json, collection: CollectionInfo) -> Json:
    """The root with a link to a collection."""
    href = f"./{collection.id}/collection.json"
    if any(link["href"] == href for link in catalog["links"]):
        return catalog
    link = {"rel": collection.relation, "href": href, "type": MEDIA_JSON, "title": collection.title}
    return catalog | {"links": [*catalog["links"], link]}


def version_link(relation: str, item_id: str) -> Json:
    """A link from an item to another version of it, such as ``successor-version``."""
    return {"rel": relation, "href": f"../{item_id}/{item_id}.json", "type": MEDIA_GEOJSON, "title": item_id}


def successor_of(document: Json | None) -> str | None:
    """Id of the item that took the place of a superseded one."""
    return next((linked_id(link) for link in links_of(document, "successor-version")), None)


def without_successor(item: Json) -> Json:
    """The item without its links to newer versions of it, updated now."""
    changed: Json = json.loads(json.dumps(item))
    changed["properties"]["updated"] = timestamp()
    changed["links"] = [link for link in item["links"] if link["rel"] not in {"successor-version", "latest-version"}]
    return changed


def _links(document: Json | None) -> list[Json]:
    found: list[Json] = (document or {}).get("links", [])
    return found


def links_of(document: Json | None, relation: str) -> list[Json]:
    """The links of a relation; none where there is no document."""
    return [link for link in _links(document) if link["rel"] == relation]


def plain_href(href: str) -> str:
    """A relative href without the leading ``./``."""
    return href.removeprefix("./")


def dump(document: Json) -> bytes:
    """A document as it is written."""
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
