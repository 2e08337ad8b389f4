"""The searchable content of a static catalog on local disk: an in-memory index of its files, which are the truth.

SQLite holds it (R*Tree for space, JSON for sorting), built from the files when it is made; what changes later is read
again. cql2 decides filters.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import sqlite3
import threading
import time
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from cql2 import Expr
from shapely import box, union_all
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from pancrafter.crawl import Document, Fault, absolute, crawl, printable, read_local
from pancrafter.errors import SourceError
from pancrafter.recognise import UNCOLLECTED
from pancrafter.times import in_utc
from pancrafter.types import Bbox, longitudes

COUNT_LIMIT = 2000
"""Candidates up to which a filtered search counts all matches; beyond, counting would cost more than the page."""

MAX_FILTER_CHARS, MAX_FILTER_DEPTH = 2000, 8
"""Of a filter as text: cql2 takes twice as long per open parenthesis, and long chains of operators exceed its stack."""

MAX_SORT_FIELDS = 16
"""Of a search: SQLite bounds them too, by an error of its own."""

CQL2_OPERATORS = frozenset((
    "and", "or", "not", "=", "<>", "<", ">", "<=", ">=", "like", "between", "in", "isNull", "casei", "accenti", "+",
    "-", "*", "/", "%", "div", "^", "s_contains", "s_crosses", "s_disjoint", "s_equals", "s_intersects", "s_overlaps",
    "s_touches", "s_within", "t_after", "t_before", "t_contains", "t_disjoint", "t_during", "t_equals",
    "t_finishedBy", "t_finishes", "t_intersects", "t_meets", "t_metBy", "t_overlappedBy", "t_overlaps", "t_startedBy",
    "t_starts", "a_containedBy", "a_contains", "a_equals", "a_overlaps"
))  # fmt: skip
"""Those of the standard; what else a filter calls is a function of its own, which no item could meet."""

KEPT_SEARCHES = 16
"""Searches whose place is remembered, so that their next page goes on there instead of beginning again."""

RECHECK_S = 2.0
"""Shortest time between two looks at the files of the catalog."""

_REBUILT_LINKS = frozenset({"self", "root", "parent", "collection", "items", "child", "item", "canonical"})

_TYPES = {"text": "string", "integer": "number", "real": "number", "true": "boolean", "false": "boolean"}
"""JSON types whose name in SQLite is another one."""

_TIMES = frozenset({"datetime", "start_datetime", "end_datetime", "created", "updated"})

_ADDRESSED = {
    "id": {"type": "string"},
    "collection": {"type": "string"},
    "geometry": {"$ref": "https://geojson.org/schema/Geometry.json"},
}
"""What filters can ask of every item besides its properties."""

_DDL = """
CREATE TABLE collections(id TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE items(
    n INTEGER PRIMARY KEY AUTOINCREMENT, collection TEXT NOT NULL, id TEXT NOT NULL, t0 TEXT NOT NULL, t1 TEXT NOT NULL,
    changed TEXT NOT NULL, href TEXT NOT NULL, parent TEXT, body TEXT NOT NULL);
CREATE INDEX items_by_name ON items(collection, id);
CREATE INDEX items_by_time ON items(t0, t1);
CREATE INDEX items_by_id ON items(id);
CREATE VIRTUAL TABLE boxes USING rtree(n, x0, x1, y0, y1, +item);
"""


class BadQueryError(ValueError):
    """A search parameter the API must answer with status 400."""


@dataclass(frozen=True)
class Query:
    """One search. ``bbox`` is west, south, east, north; ``interval`` is inclusive, None means open."""

    collections: Sequence[str] = ()
    ids: Sequence[str] = ()
    bbox: Sequence[float] | None = None
    intersects: Mapping[str, Any] | None = None
    interval: tuple[datetime | None, datetime | None] = (None, None)
    cql2: str | Mapping[str, Any] | None = None
    sort: Sequence[tuple[str, str]] = ()
    limit: int = 10
    offset: int = 0
    after: tuple[str, str, str] | None = None
    """Collection, id and rank of the item that came last, at ``offset`` then: new ones may come before it since."""


@dataclass(frozen=True)
class Page:
    """Items of one search page, where the next one starts (None: last), and the total where it was cheap to count."""

    items: list[dict[str, Any]]
    next_offset: int | None
    matched: int | None


@dataclass
class _Search:
    """What meets a query: its candidates in their order, looked at as far as pages asked for them."""

    candidates: Sequence[int]
    """Numbers of all rows that may meet it."""
    meets: Callable[[int], bool]
    """Whether a row does."""
    found: MutableSequence[int] = field(default_factory=lambda: array("q"))
    """Places of those candidates that do."""
    seen: int = 0
    """Candidates looked at."""

    def page(self, start: int, end: int) -> tuple[Sequence[int], bool, int | None]:
        """Row numbers of one page, whether there are more, and the total where it is known or cheap to count."""
        countable = len(self.candidates) <= COUNT_LIMIT
        while self.seen < len(self.candidates) and (countable or len(self.found) <= end):
            self._look()
        matched = len(self.found) if self.seen == len(self.candidates) else None
        return [self.candidates[place] for place in self.found[start:end]], len(self.found) > end, matched

    def place_after(self, number: int, offset: int) -> int:
        """Where the page begins that follows a row; the row was before ``offset``, and its place may be gone."""
        if number not in self.candidates:
            return max(0, offset - 1)
        place = self.candidates.index(number)
        while self.seen <= place:
            self._look()
        return bisect_right(self.found, place)

    def _look(self) -> None:
        if self.meets(self.candidates[self.seen]):
            self.found.append(self.seen)
        self.seen += 1


class _GoneError(Exception):
    """A row was replaced while a search was under way."""


@dataclass
class CatalogIndex:
    """The searchable content of a static catalog. Thread-safe; ``faults`` are the files left out and why."""

    root: Path
    faults: tuple[Fault, ...] = ()
    title: str = ""
    description: str = ""
    _db: sqlite3.Connection = field(init=False, repr=False)
    _files: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)
    _checked_s: float = field(init=False, repr=False)
    _searches: dict[str, _Search] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)
    _refreshing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.executescript(_DDL)
        self._update(set())

    def close(self) -> None:
        """Give the memory back; Python would keep it until it looks for cycles, and an app over the index is in one."""
        with self._lock:  # a thread of a server that was stopped may still search
            self._db.close()
        self._files = {}

    def refresh(self) -> None:
        """Read again what has changed; looks at most every ``RECHECK_S``. Others are answered as before meanwhile."""
        if not self._refreshing.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._checked_s < RECHECK_S:
                return
            self._checked_s = time.monotonic()
            if changed := {path for path, stamp in self._files.items() if _stamp(path) != stamp}:
                self._update(changed)
        finally:
            self._refreshing.release()

    def collections(self) -> list[dict[str, Any]]:
        """All collections, by id."""
        with self._lock:
            rows = self._db.execute("SELECT body FROM collections ORDER BY id").fetchall()
        return [json.loads(body) for (body,) in rows]

    def collection(self, collection_id: str) -> dict[str, Any] | None:
        """One collection, None if there is none."""
        with self._lock:
            row = self._db.execute("SELECT body FROM collections WHERE id=?", (collection_id,)).fetchone()
        return json.loads(row[0]) if row else None

    def item(self, collection_id: str, item_id: str) -> dict[str, Any] | None:
        """One item, None if there is none."""
        sql = "SELECT body FROM items WHERE collection=? AND id=?"
        with self._lock:
            row = self._db.execute(sql, (collection_id, item_id)).fetchone()
        return json.loads(row[0]) if row else None

    def queryables(self, collection_id: str | None = None) -> dict[str, dict[str, Any]]:
        """JSON schemas of the properties that items of a collection have; without one, of each collection."""
        sql = "SELECT DISTINCT i.collection, p.key, p.type FROM items i, json_each(i.body, '$.properties') p"
        known: dict[str, dict[str, set[str]]] = {}
        with self._lock:
            rows = self._db.execute(f"{sql} WHERE i.collection=coalesce(?, i.collection)", (collection_id,)).fetchall()
        for collection, name, kind in rows:
            known.setdefault(collection, {}).setdefault(name, set()).add(kind)
        common = set[str]().union(*known.values()).intersection(*known.values())
        kinds = {name: set[str]().union(*(names[name] for names in known.values())) for name in sorted(common)}
        return _ADDRESSED | {name: _schema(name, found) for name, found in kinds.items()}

    def search(self, query: Query) -> Page:
        """One page of the items that meet ``query``, newest first unless sorted otherwise.

        Raises:
            BadQueryError: The filter, geometry, bbox or sort field cannot be understood.
        """
        try:
            return self._page(query)
        except _GoneError:
            with self._lock:  # against changes, so that this time nothing is gone
                return self._page(query)

    def _page(self, query: Query) -> Page:
        """One page; others are answered meanwhile, as a filter may have to look at every item."""
        key = repr(replace(query, limit=0, offset=0, after=None))
        with self._lock:
            searches = self._searches  # an update begins another, and what is put into this one is forgotten
            search = searches.pop(key, None)
        search = search or self._new_search(query)
        last = self._number(*query.after, query.sort) if query.after else None
        start = query.offset if last is None else search.place_after(last, query.offset)
        end = start + query.limit
        numbers, has_more, matched = search.page(start, end)
        items = [json.loads(self._body(number)) for number in numbers]
        with self._lock:
            searches[key] = search  # only now: one that fails must begin again
            if len(searches) > KEPT_SEARCHES:
                del searches[next(iter(searches))]
        return Page(items, end if has_more else None, matched)

    def _new_search(self, query: Query) -> _Search:
        where, values = _where(query)
        geometry, expression = _geometry(query), _expression(query.cql2)
        sql = f"FROM items i WHERE {where} ORDER BY {_order(query.sort)}"
        with self._lock:  # numbers only: SQLite would keep the bodies of all that it sorts
            candidates = array("q", (number for (number,) in self._db.execute(f"SELECT i.n {sql}", values)))
        search = _Search(candidates, lambda number: _meets(self._body(number), geometry, expression))
        if geometry is None and expression is None:  # they all do
            search.found.extend(range(len(candidates)))
            search.seen = len(candidates)
        return search

    def _number(self, collection_id: str, item_id: str, rank: str, sort: Sequence[tuple[str, str]]) -> int:
        """The row of an item; 0, which no row has, if it is gone or is at another place than by its rank then."""
        with self._lock:
            sql = "SELECT n, body FROM items WHERE collection=? AND id=?"
            row = self._db.execute(sql, (collection_id, item_id)).fetchone()
        return int(row[0]) if row and rank_of(json.loads(row[1]), sort) == rank else 0

    def _body(self, number: int) -> str:
        with self._lock:
            row = self._db.execute("SELECT body FROM items WHERE n=?", (number,)).fetchone()
        if row is None:
            raise _GoneError
        return str(row[0])

    def _update(self, changed: set[str]) -> None:
        """Read items that are new or ``changed``, and all documents with links, and put them in place of the old."""
        with self._lock:
            rows = self._db.execute("SELECT n, href, parent FROM items").fetchall()
        unchanged = {(href, parent) for _, href, parent in rows if href not in changed}
        files: dict[str, tuple[int, int]] = {}
        kept: set[str] = set()

        def read(href: str) -> str:
            files[href] = _stamp(href)  # before: what changes from here on is read again
            return read_local(href)

        def is_known(href: str, parent: str | None) -> bool:
            if (href, parent) not in unchanged:
                return False
            files[href] = self._files[href]
            kept.add(href)
            return True

        found = crawl(str(self.root), read, is_known=is_known)
        documents = list(found) if self._files else found  # at first nobody waits, and they would fill the memory
        with self._lock:
            self._searches = {}
            with self._db:  # all or nothing
                faults = self._replace(documents, [(number,) for number, href, _ in rows if href not in kept])
            self._files, self.faults = files, tuple(sorted(faults, key=lambda fault: fault.href))
            self._checked_s = time.monotonic()

    def _replace(self, documents: Iterable[Document | Fault], outdated: Sequence[tuple[int]]) -> list[Fault]:
        db, faults = self._db, list[Fault]()
        db.executemany("DELETE FROM items WHERE n=?", outdated)
        _remove_lone_boxes(db)
        db.execute("DELETE FROM collections")
        for found in documents:
            if isinstance(found, Fault) and found.href == str(self.root):
                raise SourceError(f"{found.reason}; give the folder of a STAC catalog")
            fault = found if isinstance(found, Fault) else self._insert(db, found)
            if fault:
                faults.append(fault)
        faults.extend(_removed_twins(db))
        _add_orphanage(db)
        return faults

    def _insert(self, db: sqlite3.Connection, document: Document) -> Fault | None:
        if document.href == str(self.root):
            self.title = printable(str(document.body.get("title") or document.body["id"]))
            self.description = printable(str(document.body.get("description") or self.title))
        insert = {"Collection": _insert_collection, "Item": _insert_item}.get(document.kind)
        try:
            if insert:
                insert(db, document)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            collection_id = document.collection["id"] if document.collection else None
            reason = f"{document.href}: {error}; expected a valid STAC {document.kind.lower()}"
            return Fault(document.href, reason, collection_id)
        return None


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - half the time, of which each look takes it for every file
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


# --- from files to rows ---------------------------------------------------------------------------------------------


def _portable(document: Document) -> dict[str, Any]:
    """The document with absolute hrefs, and without the links that only made sense among the files."""
    body = dict(document.body)
    links = [link for link in body.get("links", []) if isinstance(link, dict) and isinstance(link.get("href"), str)]
    kept = [link for link in links if link.get("rel") not in _REBUILT_LINKS]
    canonical = {"rel": "canonical", "type": "application/json", "href": Path(document.href).as_uri()}
    body["links"] = [*(link | {"href": _address(link["href"], document.href)} for link in kept), canonical]
    return body


def _insert_collection(db: sqlite3.Connection, document: Document) -> None:
    body = _portable(document)
    db.execute("INSERT OR REPLACE INTO collections VALUES(?,?)", (body["id"], readable_by_all(body)))


def _insert_item(db: sqlite3.Connection, document: Document) -> None:
    body = _portable(document)
    body["assets"] = {key: _absolute_asset(asset, document.href) for key, asset in body["assets"].items()}
    body["collection"] = body.get("collection") or (document.collection or {}).get("id") or UNCOLLECTED
    if not isinstance(body["collection"], str):
        raise TypeError(f"collection is {body['collection']!r}, not the id of one")
    start, end = _interval(body["properties"])
    boxes = _boxes(body)
    changed, text = _changed(body["properties"]), readable_by_all(body)
    parent = document.collection["id"] if document.collection else None
    row = (body["collection"], body["id"], _iso(start), _iso(end), changed, document.href, parent, text)
    columns = "collection, id, t0, t1, changed, href, parent, body"
    number = db.execute(f"INSERT INTO items({columns}) VALUES(?,?,?,?,?,?,?,?)", row).lastrowid
    for west, south, east, north in boxes:
        db.execute("INSERT INTO boxes(x0, x1, y0, y1, item) VALUES(?,?,?,?,?)", (west, east, south, north, number))


def readable_by_all(body: Mapping[str, Any]) -> str:
    """The document as text. Python reads and writes more than JSON has, and one such value spoils a whole answer.

    Raises:
        ValueError: A number is not finite, or a text is no Unicode.
        OverflowError: A number exceeds floating point.
    """
    text = json.dumps(body, allow_nan=False, ensure_ascii=False)
    text.encode()
    json.loads(text, parse_int=_within_floats)
    return text


def _within_floats(digits: str) -> int:
    number = int(digits)
    float(number)
    return number


def _absolute_asset(asset: object, base: str) -> dict[str, Any]:
    if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
        raise TypeError("an asset has no href")
    return asset | {"href": _address(asset["href"], base)}


def _address(href: str, base: str) -> str:
    """``href`` as URL: a path would be taken for one on this server by clients that resolve it against the item's."""
    target = absolute(href, base)
    return Path(target).as_uri() if target.startswith("/") else target


def _interval(properties: Mapping[str, Any]) -> tuple[datetime, datetime]:
    start = properties.get("start_datetime") or properties.get("datetime")
    end = properties.get("end_datetime") or properties.get("datetime")
    if not isinstance(start, str) or not isinstance(end, str):
        raise TypeError("no datetime and no start_datetime with end_datetime")
    return _instant(start), _instant(end)


def _changed(properties: Mapping[str, Any]) -> str:
    """When the item was changed, as text that sorts; empty where it does not say."""
    try:
        return _iso(_instant(properties.get("updated") or properties.get("created")))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return ""


def _instant(text: str) -> datetime:
    return in_utc(datetime.fromisoformat(text))


def _iso(moment: datetime) -> str:
    """Fixed-width text in UTC that sorts like the time it says."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def _boxes(body: Mapping[str, Any]) -> list[Bbox]:
    """Bounding boxes of an item's footprint; two where it crosses the antimeridian, none without a geometry."""
    if body.get("geometry") is None:
        return []
    bbox = body.get("bbox") or shape(body["geometry"]).bounds
    return _split(bbox)


def _split(bbox: Sequence[float]) -> list[Bbox]:
    if len(bbox) not in (4, 6):
        raise ValueError(f"bbox has {len(bbox)} numbers, expected 4 or 6")
    west, south, east, north = (float(bbox[i]) for i in ((0, 1, 2, 3) if len(bbox) == 4 else (0, 1, 3, 4)))
    if not all(map(math.isfinite, (west, south, east, north))):
        raise ValueError(f"its bounds are {west}, {south}, {east}, {north}, which are not all finite numbers")
    if not south <= north:
        raise ValueError(f"bbox has south {south} above north {north}")
    return [(w, south, e, north) for w, e in longitudes(west, east)]


def _removed_twins(db: sqlite3.Connection) -> list[Fault]:
    """Of items with one name the one that was changed last stays, else the first by address; faults of the others."""
    rows = db.execute(
        "SELECT n, collection, id, href, first_value(href) OVER same FROM items "
        "WINDOW same AS (PARTITION BY collection, id ORDER BY changed DESC, href)"
    )
    twins = [row for row in rows if row[3] != row[4]]
    if twins:
        db.executemany("DELETE FROM items WHERE n=?", [(number,) for number, *_ in twins])
        _remove_lone_boxes(db)
    advice = "give the items of a collection ids of their own, or link the valid one only"
    return [
        Fault(href, f"{href}: has the id {name} of {kept}, which is newer or comes first and is kept; {advice}", owner)
        for _, owner, name, href, kept in twins
    ]


def _remove_lone_boxes(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM boxes WHERE item NOT IN (SELECT n FROM items)")


def _add_orphanage(db: sqlite3.Connection) -> None:
    """Collections for the items whose collection has no document of its own."""
    rows = db.execute("SELECT DISTINCT collection FROM items WHERE collection NOT IN (SELECT id FROM collections)")
    for (name,) in rows.fetchall():
        span = db.execute("SELECT min(t0), max(t1) FROM items WHERE collection=?", (name,)).fetchone()
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[f"{t}Z" for t in span]]}}
        description = "Items whose files name no collection document."
        body = {"type": "Collection", "stac_version": "1.1.0", "id": name, "description": description}
        body |= {"license": "other", "extent": extent, "links": []}
        db.execute("INSERT INTO collections VALUES(?,?)", (name, json.dumps(body)))


def _schema(name: str, kinds: set[str]) -> dict[str, Any]:
    """Schema of a property by the kinds of its values, as SQLite names them."""
    types = sorted({_TYPES.get(kind, kind) for kind in kinds} - {"null"})
    dated = {"format": "date-time"} if name in _TIMES else {}
    return ({"type": types[0] if len(types) == 1 else types} if types else {}) | dated


# --- search ---------------------------------------------------------------------------------------------------------


def _where(query: Query) -> tuple[str, list[Any]]:
    """SQL condition and its values for everything SQLite can decide; space by bounding boxes only."""
    parts, values = ["1"], list[Any]()
    collection = "+i.collection" if query.ids else "i.collection"  # else SQLite tries each id in each collection
    for column, wanted in ((collection, query.collections), ("i.id", query.ids)):
        if wanted:
            parts.append(f"{column} IN (SELECT value FROM json_each(?))")  # noqa: S608 - SQLite bounds how many ? it takes
            values.append(json.dumps(wanted))
    if boxes := _query_boxes(query):
        touches = " OR ".join("(x1>=? AND x0<=? AND y1>=? AND y0<=?)" for _ in boxes)
        parts.append(f"i.n IN (SELECT item FROM boxes WHERE {touches})")  # noqa: S608 - placeholders only
        values += [value for west, south, east, north in boxes for value in (west, east, south, north)]
    start, end = query.interval
    if start:
        parts.append("i.t1>=?")
        values.append(_asked_moment(start))
    if end:
        parts.append("i.t0<=?")
        values.append(_asked_moment(end))
    return " AND ".join(parts), values


def _asked_moment(moment: datetime) -> str:
    try:
        return _iso(moment)
    except OverflowError as error:
        raise BadQueryError(f"datetime {moment.isoformat()} is outside the years 1 to 9999 in UTC") from error


def _query_boxes(query: Query) -> list[Bbox]:
    try:
        if query.intersects is not None:
            return _split(shape(query.intersects).bounds)
        return _split(query.bbox) if query.bbox is not None else []
    except Exception as error:  # shapely raises whatever a malformed geometry trips over
        expected = "expected bbox as west, south, east, north, or intersects as a GeoJSON geometry"
        raise BadQueryError(f"the area cannot be understood: {error}; {expected}") from error


def _geometry(query: Query) -> BaseGeometry | None:
    """The exact area asked for, as the bounding boxes only preselect."""
    if query.intersects is not None:
        return shape(query.intersects)
    if query.bbox is None:
        return None
    return union_all([box(*bounds) for bounds in _query_boxes(query)])


def _expression(cql2_filter: str | Mapping[str, Any] | None) -> Any:
    """The compiled filter (the class comes from an untyped extension module)."""
    if not cql2_filter:
        return None
    text = cql2_filter if isinstance(cql2_filter, str) else ""
    if len(text) > MAX_FILTER_CHARS or _depth(text) > MAX_FILTER_DEPTH:
        raise BadQueryError(
            f"the filter is longer than {MAX_FILTER_CHARS} characters or nested more than {MAX_FILTER_DEPTH} deep; "
            "simplify it, or send it as cql2-json"
        )
    try:
        expression = Expr(cql2_filter if isinstance(cql2_filter, str) else dict(cql2_filter))
        asked = set(_operators(expression.to_json()))
    except Exception as error:  # the extension module raises bare exceptions of its own
        raise BadQueryError(f"the filter is not valid CQL2: {error}") from error
    if unknown := sorted(asked - CQL2_OPERATORS):
        raise BadQueryError(f"the filter calls {', '.join(unknown)}, expected operators and functions of CQL2 only")
    return expression


def _operators(node: Any) -> Iterator[str]:  # Any: JSON
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(node.get("op"), str):
        yield node["op"]
    for value in inner:
        yield from _operators(value)


def _depth(text: str) -> int:
    """How deep parentheses are nested in a filter, outside of its texts and quoted names."""
    steps = {"(": 1, ")": -1}
    return max(accumulate(steps.get(character, 0) for character in re.sub(r"'[^']*'|\"[^\"]*\"", "", text)), default=0)


def _meets(body: str, geometry: BaseGeometry | None, expression: Any) -> bool:
    item = json.loads(body)
    if geometry is not None and not (item.get("geometry") and _touches(geometry, item["geometry"])):
        return False
    return expression is None or _matches(expression, item)


def _touches(area: BaseGeometry, footprint: Any) -> bool:  # Any: JSON of an item that may be malformed
    """Whether a footprint is in the area; True when it cannot be read, as its item's box touches the area."""
    try:
        return bool(area.intersects(shape(footprint)))
    except Exception:  # noqa: BLE001 - shapely raises whatever a malformed geometry trips over
        return True


def _matches(expression: Any, item: Mapping[str, Any]) -> bool:
    """Whether the filter holds; a filter on a property that the item lacks does not."""
    try:
        return bool(expression.matches(item))
    except Exception:  # noqa: BLE001 - cql2 has no narrower class for "cannot be reduced to true or false"
        return False


def _order(sort: Sequence[tuple[str, str]]) -> str:
    if len(sort) > MAX_SORT_FIELDS:
        raise BadQueryError(f"sortby has {len(sort)} fields, expected at most {MAX_SORT_FIELDS}")
    terms = [f"{_sort_key(name)} {'DESC' if direction == 'desc' else 'ASC'}" for name, direction in sort]
    return ", ".join([*(terms or ["i.t0 DESC"]), "i.collection", "i.id"])


def rank_of(item: Mapping[str, Any], sort: Sequence[tuple[str, str]]) -> str:
    """What an item is sorted by, in short: if it changes, the item is no longer where it was."""
    names = [name.removeprefix("properties.") for name, _ in sort] or ["datetime"]
    values = [item["properties"].get(name) for name in (*names, "start_datetime")]
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"


def _sort_key(name: str) -> str:
    known = {"id": "i.id", "collection": "i.collection", "datetime": "i.t0"}
    plain = name.removeprefix("properties.")
    if plain in known:
        return known[plain]
    if not plain or not all(character.isalnum() or character in ":_-." for character in plain):
        raise BadQueryError(f"cannot sort by {reprlib.repr(name)}, expected the name of a property such as datetime")
    return f"json_extract(i.body, '$.properties.\"{plain}\"')"


# --- the catalog ----------------------------------------------------------------------------------------------------


def catalog_file(catalog_dir: Path) -> Path:
    """The root document of a catalog given as its folder or as the document itself.

    Raises:
        SourceError: There is none.
    """
    candidates = (
        [catalog_dir] if catalog_dir.is_file() else [catalog_dir / n for n in ("catalog.json", "collection.json")]
    )
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        looked = " and ".join(str(file) for file in candidates)
        raise SourceError(f"{catalog_dir}: no STAC catalog (looked for {looked}); give the folder of a catalog.json")
    return found.resolve()


def load_index(catalog_dir: Path) -> CatalogIndex:
    """Index of the static catalog in ``catalog_dir`` (a folder, or the path of its root document).

    Raises:
        SourceError: There is no catalog, or its root document is not STAC.
    """
    return CatalogIndex(catalog_file(catalog_dir))
