"""From a source catalog to scenes: STAC APIs are searched, static catalogs walked, local folders served and searched.

How servers are asked is left to `catalog_reading`, GeoParquet to `geoparquet`. What leaves is a `Scene` or a `Refusal`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pancrafter.access import Access, said_by, spelled_out, without_secrets
from pancrafter.crawl import REMOTE_WORKERS, Document, Fault, absolute, crawl, is_local, kind_of, local_path, printable
from pancrafter.errors import SourceError
from pancrafter.hrefs import scheme_of
from pancrafter.joining import bounds_of, join_parts, later
from pancrafter.judge import Judgement, judge, judge_other
from pancrafter.recognise import UNCOLLECTED, Part, digest_of, part_of, recognise
from pancrafter.sensors import SensorContract
from pancrafter.times import in_utc, rfc3339
from pancrafter.types import JOINED, Bbox, Refusal, Scene, longitudes

if TYPE_CHECKING:
    import pystac
    from pystac_client import Client, ItemSearch
    from pystac_client.stac_api_io import StacApiIO

PAGE_SIZE = 100
MAX_PARTNER_SEARCHES = 100
"""Searches of an API for the missing parts of scenes in one look; more are merged, none is left out."""

_DOCUMENT_SCHEMES = frozenset({"", "file", "http", "https", "s3", "gs", "az", "abfs", "abfss"})
"""What items are linked to by; anything else (a script) is no address of one."""

INHERITED = ("license", "providers")
"""Item properties that STAC keeps in the collection."""


@dataclass(frozen=True)
class _Found:
    """One item as JSON, with where it really lives and the body of its collection."""

    body: dict[str, Any]
    self_href: str
    collection: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Window:
    """What is asked for; open where None. Bounds are inclusive and in UTC."""

    since: datetime | None
    until: datetime | None
    bbox: Bbox | None
    collections: Sequence[str]
    ids: frozenset[str] = frozenset()
    changed_since: datetime | None = None
    new_since: datetime | None = None


def discover(
    source: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    bbox: Bbox | None = None,
    contracts: Mapping[str, SensorContract],
    collections: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    changed_since: datetime | None = None,
    new_since: datetime | None = None,
    access: Access = Access(),  # noqa: B008 - frozen
) -> Iterator[Scene | Refusal]:
    """Every item of ``source`` in the window, as a scene to sharpen or a refusal with its reason; none is dropped.

    Items that hold a part of a scene are joined by the rule of their contract, also with parts outside the window; the
    scene comes with a refusal ``joined`` for each of its items. A part without the others is refused as
    ``part_of_scene``, which means that it waits.

    Args:
        source: URL of a STAC API; URL of a static catalog document; path of a local catalog or its folder; path or
            URL of a STAC GeoParquet file, or of a folder of them that is called like one, on disk or S3 (needs the
            ``geoparquet`` extra).
        since: Earliest acquisition time; a time without zone is UTC.
        until: Latest acquisition time.
        bbox: West, south, east, north in degrees; west above east crosses the antimeridian.
        contracts: Sensor contracts by name.
        collections: Ids of the collections to look at; None means all.
        ids: Ids of the items to look for; None means all. An API is asked for these only.
        changed_since: Only items whose ``updated`` (else ``created``) is not earlier. Items that say neither are kept,
            as many servers say nothing: whoever asks must know what was done already.
        new_since: Only items acquired or changed since then, so that late deliveries count. Those that do not say when
            they changed count by acquisition. Servers that cannot be asked for changes are gone through, within the
            other limits.
        access: What may be read; items whose assets lie elsewhere are refused, documents that do are not followed.

    Raises:
        SourceError: The source cannot be reached, is not STAC, or broke off in the middle.
    """
    window = _Window(
        since=_utc(since),
        until=_utc(until),
        bbox=_checked(bbox),
        collections=tuple(collections or ()),
        ids=frozenset(ids or ()),
        changed_since=_utc(changed_since),
        new_since=_utc(new_since),
    )
    rules = access.trusting(source)
    with _opened(source, rules) as catalog:
        seen: set[tuple[str, str]] = set()
        parts: dict[str, tuple[Part, Refusal]] = {}
        for found in chain(catalog.faults, catalog.find(window)):
            item, verdict = (None, found) if isinstance(found, Refusal) else _judge(found, contracts)
            verdict = _permitted(verdict, rules)
            if (verdict.collection, verdict.item_id) in seen:
                continue
            seen.add((verdict.collection, verdict.item_id))
            if item is not None and isinstance(verdict, Refusal) and verdict.waits:
                parts[verdict.key] = (part_of(item, contracts), verdict)
            else:
                yield verdict
        whole = seen - {(part.collection, part.item_id) for part, _ in parts.values()}
        for entry in _joined(parts, catalog, window, contracts):
            if not (isinstance(entry, Scene) and (entry.collection, entry.item_id) in whole):
                yield _permitted(_pin(entry) if isinstance(entry, Scene) else entry, rules)


def _joined(
    parts: Mapping[str, tuple[Part, Refusal]],
    catalog: _Catalog,
    window: _Window,
    contracts: Mapping[str, SensorContract],
) -> Iterator[Scene | Refusal]:
    """Scenes that the parts make up with each other or with others of the catalog, and what became of every part."""
    own = [part for part, _ in parts.values()]
    joined = join_parts(own, contracts)
    if joined.waiting and window != _Window(None, None, None, ()):
        partners = {
            part.key: part
            for sought in _partner_windows(joined.waiting, contracts, catalog.searches)
            for part in _parts_in(catalog.find(sought), contracts)
        }
        joined = join_parts([*own, *(part for key, part in partners.items() if key not in parts)], contracts)
    scenes = [(scene, members) for scene, members in joined.scenes if any(part.key in parts for part in members)]
    yield from (scene for scene, _ in scenes)
    for key, (part, scene) in {part.key: (part, scene) for scene, members in scenes for part in members}.items():
        if key != scene.key:
            reason = f"its bands belong to the scene {scene.key}"
            yield Refusal(
                collection=part.collection, item_id=part.item_id, code=JOINED, reason=reason, sensor=part.sensor
            )
    yield from (parts[part.key][1] for part in joined.waiting if part.key in parts)


def _parts_in(found: Iterator[_Found | Refusal], contracts: Mapping[str, SensorContract]) -> Iterator[Part]:
    for entry in found:
        item, verdict = (None, entry) if isinstance(entry, Refusal) else _judge(entry, contracts)
        if item is not None and isinstance(verdict, Refusal) and verdict.waits:
            yield part_of(item, contracts)


def _partner_windows(
    waiting: Sequence[Part], contracts: Mapping[str, SensorContract], searches: int
) -> Iterator[_Window]:
    """Where and when the missing parts must have been acquired, in at most ``searches`` windows; None is left out."""
    wanted = sorted(
        (datetime.fromisoformat(part.acquired), timedelta(seconds=rule.max_seconds), bounds)
        for part in waiting
        if (bounds := bounds_of(part)) and (rule := contracts[part.sensor].join)
    )
    size = -(-len(wanted) // searches)
    for start in range(0, len(wanted), size or 1):
        group = wanted[start : start + size]
        west, south, east, north = zip(*(bounds for *_, bounds in group), strict=True)
        yield _Window(
            since=min(later(moment, -reach) for moment, reach, _ in group),
            until=max(later(moment, reach) for moment, reach, _ in group),
            bbox=(max(min(west), -180.0), max(min(south), -90.0), min(max(east), 180.0), min(max(north), 90.0)),
            collections=(),
        )


def _permitted(verdict: Scene | Refusal, rules: Access) -> Scene | Refusal:
    """The verdict, or a refusal if an asset lies where nothing may be read."""
    for asset in (verdict.pan, *verdict.ms) if isinstance(verdict, Scene) else ():
        if fault := rules.fault(asset.href):
            return Refusal(
                collection=verdict.collection,
                item_id=verdict.item_id,
                code="forbidden_href",
                reason=f"asset {asset.key}: {fault}",
                sensor=verdict.sensor,
            )
    return verdict


def judge_document(body: dict[str, Any], href: str, contracts: Mapping[str, SensorContract]) -> Scene | Refusal:
    """What discovery would make of a single item document that lies at ``href``."""
    return _judge(_Found(body, href), contracts)[1]


def check_document(body: dict[str, Any], href: str, contracts: Mapping[str, SensorContract]) -> Judgement:
    """The verdict on a single STAC document of any kind, as ``pancrafter sensors check`` asks for it."""
    kind = kind_of(body)
    if kind in ("Catalog", "Collection"):
        return judge_other(body, kind)
    return judge(body, judge_document(body, href, contracts))


def _judge(
    found: _Found, contracts: Mapping[str, SensorContract]
) -> tuple[pystac.Item, Scene | Refusal] | tuple[None, Refusal]:
    import pystac

    properties, links = found.body.get("properties"), found.body.get("links")
    inherited = {name: found.collection[name] for name in INHERITED if name in found.collection}
    body = found.body | {
        "properties": inherited | properties if isinstance(properties, dict) else properties,
    }
    if isinstance(links, list):  # relative hrefs count from where the item was found, not from where it once was
        body["links"] = [link for link in links if not (isinstance(link, dict) and link.get("rel") == "self")]
    try:
        item = pystac.Item.from_dict(body, migrate=True)
        item.set_self_href(found.self_href)
        verdict = recognise(item, contracts)
    except Exception as error:  # noqa: BLE001 - pystac raises whatever a malformed document trips over
        reason = f"{found.self_href}: {type(error).__name__}: {error}; expected a valid STAC item"
        return None, _malformed(found.body.get("id"), found.body.get("collection"), found.self_href, reason)
    return item, _pin(verdict) if isinstance(verdict, Scene) else verdict


def _malformed(item_id: object, collection: object, href: str, reason: str) -> Refusal:
    name = item_id if isinstance(item_id, str) and item_id else PurePosixPath(urlsplit(href).path).name or href
    owner = collection if isinstance(collection, str) and collection else UNCOLLECTED
    shown = printable(without_secrets(reason))
    return Refusal(collection=spelled_out(owner), item_id=spelled_out(name), code="malformed", reason=shown)


def _refused_document(fault: Fault, root: str) -> Refusal:
    """A broken document, named by its place below the root of the catalog: many are called ``item.json``."""
    place = _address(fault.href).removeprefix(f"{_address(root).rpartition('/')[0]}/")
    return _malformed(place, fault.collection_id, fault.href, fault.reason)


def _address(href: str) -> str:
    """Without the query, which may hold a signature."""
    return href if is_local(href) else urlsplit(href)._replace(query="").geturl()


def _pin(scene: Scene) -> Scene:
    """The scene with size and time of its local files in the fingerprint: their items rarely carry checksums."""
    hrefs = dict.fromkeys((scene.pan.href, *(ref.href for ref in scene.ms)))
    facts = [(href, *_file_facts(href)) for href in hrefs if is_local(href)]
    return scene.model_copy(update={"fingerprint": digest_of([scene.fingerprint, facts])}) if facts else scene


def _file_facts(href: str) -> tuple[int, int]:
    """Size and modification time (ns); zeros for a missing file, which staging will report with its asset."""
    try:
        status = local_path(href).stat()
    except (OSError, ValueError):  # the latter for a zero byte
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else in_utc(moment)


def _checked(bbox: Sequence[float] | None) -> Bbox | None:
    if bbox is None:
        return None
    west, south, east, north = bbox
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        found = ", ".join(f"{value:g}" for value in bbox)
        raise SourceError(f"bbox {found}: expected west, south, east, north in degrees with south below north")
    return (west, south, east, north)


# --- kinds of sources -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Catalog:
    """An opened source: ``find`` looks for items in a window, at most ``searches`` times for missing parts."""

    find: Callable[[_Window], Iterator[_Found | Refusal]]
    searches: int = 1
    faults: tuple[Refusal, ...] = ()


@contextmanager
def _opened(source: str, rules: Access) -> Iterator[_Catalog]:
    from pancrafter.catalog_reading import asking, object_reader
    from pancrafter.geoparquet import is_geoparquet

    if is_geoparquet(urlsplit(source).path):
        yield _Catalog(partial(_find_geoparquet, source, rules))
    elif is_local(source):
        with _opened_folder(local_path(source), rules) as catalog:
            yield catalog
    elif urlsplit(source).scheme in ("http", "https"):
        with asking(rules) as io:
            yield _open_http(source, io)
    else:
        with asking(rules) as io:
            yield _Catalog(partial(_find_static, source, object_reader(source, rules, io)))


def _find_geoparquet(source: str, rules: Access, window: _Window) -> Iterator[_Found | Refusal]:
    from pancrafter.geoparquet import read_items

    for address, item in read_items(source, rules):
        document = Document(_own_href(item, address), "Item", item, None)
        if _inside(document, window):
            yield _Found(item, document.href)


@contextmanager
def _opened_folder(path: Path, rules: Access) -> Iterator[_Catalog]:
    """Serve the folder and search it, so that the local case runs the code of the real one."""
    from pancrafter.catalog_index import load_index
    from pancrafter.catalog_reading import asking, open_api
    from pancrafter.serve import serving

    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; give a STAC API URL or the folder of a catalog.json")
    index = load_index(path)
    faults = tuple(_refused_document(fault, str(index.root)) for fault in index.faults)
    with closing(index), serving(index) as url, asking(rules.trusting(url)) as io:
        search = partial(_search, open_api(url, io), is_at_hand=True)
        yield _Catalog(search, MAX_PARTNER_SEARCHES, faults)


def _open_http(source: str, io: StacApiIO) -> _Catalog:
    from pystac_client import ConformanceClasses

    from pancrafter.catalog_reading import open_api

    root = _root_document(source, io)
    links = [link for link in root.get("links", []) if isinstance(link, dict)]
    if any(link.get("rel") == "search" for link in links) or root.get("conformsTo"):
        client = open_api(source, io)
        if client.conforms_to(ConformanceClasses.ITEM_SEARCH):
            return _Catalog(partial(_search, client), MAX_PARTNER_SEARCHES)
        if not any(link.get("rel") in ("child", "item") for link in links):
            tried = "its landing page declares neither item search nor child links"
            raise SourceError(f"{source}: a STAC API that cannot be searched ({tried}); use one with item search")
    return _Catalog(partial(_find_static, source, io.read_text))


def _root_document(source: str, io: StacApiIO) -> dict[str, Any]:
    try:
        root = io.read_json(source)
    except Exception as error:  # APIError, JSON errors and what requests lets through: all mean "no catalog here"
        place, advice = without_secrets(source), "check the address and the connection"
        raise SourceError(f"GET {place}: {said_by(error)}; expected a STAC API or catalog; {advice}") from error
    if kind_of(root) is None or root.get("type") == "Feature":
        place = without_secrets(source)
        raise SourceError(f"GET {place}: found JSON that is no STAC catalog; give the landing page or catalog.json")
    return dict(root)


# --- STAC API -------------------------------------------------------------------------------------------------------


def _search(client: Client, window: _Window, *, is_at_hand: bool = False) -> Iterator[_Found | Refusal]:
    origin = client.get_self_href() or "the STAC API"
    collections: dict[str, Mapping[str, Any]] = {}
    for feature in _features(client, window, origin, is_at_hand=is_at_hand):
        if not isinstance(feature, dict):
            yield _malformed(None, None, origin, f"{origin}: found a feature that is no JSON object")
            continue
        name = feature.get("collection")
        if isinstance(name, str) and name not in collections:
            collections[name] = _collection(client, name)
        if _recent(feature.get("properties"), window):
            yield _Found(feature, _own_href(feature, origin), collections.get(str(name), {}))


def _features(client: Client, window: _Window, origin: str, *, is_at_hand: bool) -> Iterator[Any]:
    """All features of all pages, as JSON so that one malformed item cannot sink its page.

    A catalog that ``is_at_hand`` is gone through instead of being asked for changes.
    """
    if len(window.ids) > PAGE_SIZE:
        ids = sorted(window.ids)
        for start in range(0, len(ids), PAGE_SIZE):
            part = replace(window, ids=frozenset(ids[start : start + PAGE_SIZE]))
            yield from _features(client, part, origin, is_at_hand=is_at_hand)
        return
    cql2 = None if is_at_hand else _changed_filter(client, window)
    if window.new_since and not is_at_hand:
        acquired = max(window.since or window.new_since, window.new_since)
        yield from _found_features(client, replace(window, since=acquired), origin, None)
        if cql2 is None:
            logging.getLogger(__name__).warning(
                "%s cannot filter by the time of a change: only what was acquired since %s is looked at; late "
                "deliveries are for a backfill",
                origin,
                f"{acquired:%Y-%m-%d %H:%M}",
            )
            return
    yield from _found_features(client, window, origin, cql2)


def _found_features(client: Client, window: _Window, origin: str, cql2: dict[str, Any] | None) -> Iterator[Any]:
    search = client.search(
        method=_search_method(client),
        ids=sorted(window.ids) or None,
        collections=list(window.collections) or None,
        bbox=window.bbox,
        datetime=_query_interval(window),
        limit=PAGE_SIZE,
        filter=cql2,
        filter_lang="cql2-json" if cql2 else None,
    )
    count, previous = 0, ""
    for page in _pages(search, origin):
        if (digest := digest_of(page["features"])) == previous:
            raise SourceError(f"{origin}: paging gives the same page again after {count} items; report it to its owner")
        previous = digest
        count += len(page["features"])
        yield from page["features"]


def _changed_filter(client: Client, window: _Window) -> dict[str, Any] | None:
    """CQL2 for servers that filter and know when items changed; None for others, whose items are looked at here."""
    from pystac_client import ConformanceClasses

    since = window.changed_since or window.new_since
    if since is None or not client.conforms_to(ConformanceClasses.FILTER):
        return None
    known = _queryables(client)
    if "updated" not in known:  # `created` alone would miss what was replaced
        return None
    silent = {"op": "isNull", "args": [{"property": "updated"}]}
    created = "created" in known and not window.changed_since
    return {"op": "or", "args": [_at_least("updated", since), _at_least("created", since) if created else silent]}


def _at_least(name: str, moment: datetime) -> dict[str, Any]:
    return {"op": ">=", "args": [{"property": name}, {"timestamp": rfc3339(moment)}]}


def _queryables(client: Client) -> frozenset[str]:
    try:
        return frozenset(client.get_queryables().get("properties", {}))
    except Exception:  # noqa: BLE001 - many servers promise filters and offer no queryables
        return frozenset()


def _pages(search: ItemSearch, origin: str) -> Iterator[dict[str, Any]]:
    try:
        yield from search.pages_as_dicts()
    except Exception as error:  # see _root_document
        raise SourceError(f"{origin}: the search broke off: {said_by(error)}; run it again") from error


def _search_method(client: Client) -> str:
    """POST where the landing page offers it, as long parameters do not fit into a URL."""
    methods = {str(link.extra_fields.get("method", "GET")).upper() for link in client.get_links("search")}
    return "POST" if "POST" in methods else "GET"


def _query_interval(window: _Window) -> str | None:
    if window.since is None and window.until is None:
        return None
    return "/".join(".." if moment is None else rfc3339(moment) for moment in (window.since, window.until))


def _collection(client: Client, name: str) -> Mapping[str, Any]:
    """The collection's document; empty when the API does not give it, as only licence and providers depend on it."""
    try:
        collection = client.get_collection(name)
        return dict(collection.to_dict()) if collection else {}
    except Exception:  # noqa: BLE001 - see above: nothing that decides a verdict depends on it
        return {}


def _own_href(feature: Mapping[str, Any], origin: str) -> str:
    """Where the item lives: its canonical link (our own server names the file there), else its self link.

    Published items link to it, so it must be the address of a document, and no script.
    """
    links = feature.get("links")
    known = [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []
    hrefs = [link.get("href") for rel in ("canonical", "self") for link in known if link.get("rel") == rel]
    href = next((href for href in hrefs if isinstance(href, str) and href), None)
    if href is None or scheme_of(href) not in _DOCUMENT_SCHEMES:
        return origin
    try:
        return str(local_path(href)) if href.startswith("file:") else absolute(href, origin)
    except ValueError:  # "http://[x": no address, so as good as none
        return origin


# --- static catalogs ------------------------------------------------------------------------------------------------


def _find_static(root: str, read: Any, window: _Window) -> Iterator[_Found | Refusal]:
    """Walk the catalog; what can be decided about the window is decided here, the rest is left to recognition."""
    for found in crawl(root, _as_os_errors(read), workers=REMOTE_WORKERS):
        if isinstance(found, Fault):
            if found.href == root:
                raise SourceError(f"{found.reason}; give the address of a STAC catalog.json")
            yield _refused_document(found, root)
        elif found.kind == "Item" and _inside(found, window):
            collection = found.collection or {}
            body = found.body | {"collection": found.body.get("collection") or collection.get("id")}
            yield _Found(body, found.href, collection)


def _as_os_errors(read: Any) -> Any:
    """``read`` with the errors of the HTTP and object-store libraries turned into what `crawl` reports as faults."""

    def reading(href: str) -> str:
        try:
            return str(read(href))
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise OSError(said_by(error)) from error

    return reading


def _inside(document: Document, window: _Window) -> bool:
    owner = document.body.get("collection") or (document.collection or {}).get("id")
    if window.collections and owner not in window.collections:
        return False
    if window.ids and document.body.get("id") not in window.ids:
        return False
    properties = document.body["properties"]
    recent = _recent(properties, window) and in_time(properties, window.since, window.until)
    return recent and in_space(document.body.get("geometry"), window.bbox)


def _recent(properties: Any, window: _Window) -> bool:  # Any: JSON of a document that may be malformed
    """Whether an item was changed, or is new, since the window says."""
    known = properties if isinstance(properties, dict) else {}
    changes = [moment for name in ("updated", "created") if (moment := _moment(known.get(name)))]
    if window.changed_since and changes and changes[0] < window.changed_since:
        return False
    since = window.new_since
    return since is None or in_time(known, since, None) or any(moment >= since for moment in changes)


def in_time(properties: Mapping[str, Any], since: datetime | None, until: datetime | None) -> bool:
    """Whether an item was acquired in the period, which may be open; True when it does not say. Times are in UTC."""
    start = _moment(properties.get("start_datetime") or properties.get("datetime"))
    end = _moment(properties.get("end_datetime") or properties.get("datetime"))
    if start is None or end is None:
        return True
    return (until is None or start <= until) and (since is None or end >= since)


def _moment(text: object) -> datetime | None:
    try:
        return _utc(datetime.fromisoformat(text)) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None


def in_space(geometry: object, bbox: Bbox | None) -> bool:
    """Whether a GeoJSON geometry touches ``bbox``; True when it cannot be read."""
    if bbox is None:
        return True
    from shapely import box, union_all
    from shapely.geometry import shape

    west, south, east, north = bbox
    wanted = union_all([box(w, south, e, north) for w, e in longitudes(west, east)])
    try:
        return bool(wanted.intersects(shape(geometry)))
    except Exception:  # noqa: BLE001 - a geometry nobody can read is refused as malformed later, not dropped here
        return True
