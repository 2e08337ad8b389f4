"""The change feed of an output catalog: what became new, was superseded or withdrawn, in plain objects beside it.

One small JSON-lines object per event, under ``changes/date=YYYY-MM-DD/``: nothing is ever rewritten, so any number of
publishers may announce at once, on a folder as on object storage, and readers need no server. Names start with the
moment, so a listing is in order. Announcing happens after an item was read back; a crash may announce an event twice,
with the same ``id``, and readers drop the second one (``ChangeFeed.events`` does). An item that becomes current again
after it was superseded begins another turn, whose events have other ids.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from pancrafter.errors import SinkError
from pancrafter.times import in_utc
from pancrafter.types import Bbox, Json, Record, longitudes

if TYPE_CHECKING:
    from pancrafter.object_store import ObjectStore
    from pancrafter.publish import StaticSink

Kind = Literal["new", "superseded", "withdrawn"]

FOLDER = "changes"
OVERLAP = timedelta(minutes=10)
"""Readers that poll should look back this much further: clocks of publishers differ."""

_NAME = re.compile(r"changes/date=(\d{4}-\d\d-\d\d)/(\d{8}T\d{6}\.\d{6}Z)-([a-z]+)-([0-9a-f]{16})\.jsonl")
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_DAYS_LISTED_ONE_BY_ONE = 400
_READERS = 8


class Change(Record):
    """One event. Addresses are relative to the root of the catalog, so that a moved or mirrored catalog stays right."""

    id: str = Field(description="Follows from type, item and version; the same event always has the same id.")
    type: Kind
    time: datetime = Field(description="When it was announced.")
    collection: str
    item_id: str
    href: str = Field(description="The item's document, relative to the catalog's folder.")
    bbox: Bbox | None
    acquired: str | None = Field(description="Acquisition time of the item.")
    source: Json = Field(description="Collection, item id and fingerprint of the source.")
    successor: str | None = Field(default=None, description="Id of the item that takes its place (superseded).")
    reason: str | None = Field(default=None, description="Why it was taken back (withdrawn).")

    @property
    def name(self) -> str:
        """Name of its object, relative to the catalog's folder."""
        return f"{FOLDER}/date={self.time:%Y-%m-%d}/{self.time.strftime(_STAMP)}-{self.type}-{self.id}.jsonl"


class ChangeFeed:
    """Reads and extends the feed of one output catalog.

    Args:
        store: The catalog's storage, ``StaticSink.store``.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def announce(
        self,
        kind: Kind,
        item: Json,
        *,
        successor: str | None = None,
        reason: str | None = None,
        once: bool = True,
        returned: bool = False,
    ) -> Change | None:
        """Append one event about an item document; None when it had been announced before.

        Args:
            kind: What happened.
            item: The published document, as it was read back.
            successor: For ``superseded``.
            reason: For ``withdrawn``.
            once: Look through the feed first. A caller that knows it is the first saves that listing, unless the item
                had been published before.
            returned: The item was withdrawn once: its earlier events are older than its document.

        Raises:
            SinkError: The feed cannot be read or written.
        """
        look = once or returned or _was_made_again(item)
        known = self._ids_since(None if returned else _born(item)) if look else set()
        event_id = _event_id(kind, item, _turn(item, known, current=kind == "new"))
        return None if event_id in known else self._append(event_id, kind, item, successor, reason)

    def _append(self, event_id: str, kind: Kind, item: Json, successor: str | None, reason: str | None) -> Change:
        now = datetime.now(UTC)
        change = Change(
            id=event_id,
            type=kind,
            time=now,
            collection=item["collection"],
            item_id=item["id"],
            href=f"{item['collection']}/{item['id']}/{item['id']}.json",
            bbox=_flat(item.get("bbox")),
            acquired=item["properties"].get("datetime"),
            source=item["properties"].get("pancrafter:source", {}),
            successor=successor,
            reason=reason,
        )
        text = change.model_dump_json(exclude_none=True) + "\n"
        self._store.write(change.name, text.encode(), "application/x-ndjson")
        return change

    def events(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        bbox: Sequence[float] | None = None,
        collections: Sequence[str] = (),
    ) -> Iterator[Change]:
        """Events announced from ``since`` up to and with ``until``, oldest first, each id once.

        Args:
            since: Earliest moment of the announcement; a time without zone is UTC.
            until: Latest moment.
            bbox: West, south, east, north in degrees: only items that touch it.
            collections: Only these output collections; empty: all.

        Raises:
            SinkError: The feed cannot be read, or holds something else.
        """
        first, last = _utc(since), _utc(until)
        seen: set[str] = set()
        for name, stamp, event_id in self._names(first, last):
            if (first and stamp < first) or (last and stamp > last) or event_id in seen:
                continue
            seen.add(event_id)
            change = self._read(name)
            if collections and change.collection not in collections:
                continue
            if bbox is None or (change.bbox is not None and _touch(change.bbox, bbox)):
                yield change

    def newest(self, kind: Kind, since: datetime | None = None) -> tuple[int, Iterator[Change]]:
        """How many events of a kind were announced since then, as the names tell, and these events, latest first.

        An event is read when it is asked for; failures are those of ``events``.
        """
        first = _utc(since)
        names: dict[str, str] = {}
        for name, stamp, event_id in self._names(first, None):
            if name.endswith(f"-{kind}-{event_id}.jsonl") and (first is None or stamp >= first):
                names.setdefault(event_id, name)
        return len(names), map(self._read, reversed(names.values()))

    def first(self) -> str | None:
        """Name of the object of the first event; None if nothing was announced yet."""
        return next((name for name, _, _ in self._names(None, None)), None)

    def counts(self, since: datetime) -> dict[str, int]:
        """Events per type announced since then, from the names alone."""
        kinds = {
            event_id: _NAME.fullmatch(name) for name, stamp, event_id in self._names(since, None) if stamp >= since
        }
        return dict(Counter(matched[3] for matched in kinds.values() if matched))

    def withdrawals(self) -> dict[tuple[str, str], Change]:
        """The last withdrawal of a product of each source item, by its collection and id.

        The product may have been published again since. Names tell which events these are: no other one is read.

        Raises:
            SinkError: The feed cannot be read, or holds something else.
        """
        matched = map(_NAME.fullmatch, self._store.list_names(FOLDER))
        names = [found[0] for found in matched if found and found[3] == "withdrawn"]
        with ThreadPoolExecutor(_READERS) as pool:
            changes = list(pool.map(self._read, names))
        return {(one.source["collection"], one.source["item_id"]): one for one in changes if one.source}

    def repair(self, sink: StaticSink) -> tuple[Change, ...]:
        """Announce every item of the catalog that the feed does not know, and every superseded one."""
        known = self._ids_since(None)
        announced = []
        for item in sink.items():
            if "pancrafter:source" not in item["properties"]:
                continue
            current = not item["properties"].get("deprecated")
            kinds: list[Kind] = ["new"] if current else ["new", "superseded"]
            turn = _turn(item, known, current=current)
            for kind in kinds:
                if (event_id := _event_id(kind, item, turn)) not in known:
                    successor = _successor(item) if kind == "superseded" else None
                    announced.append(self._append(event_id, kind, item, successor, None))
        return tuple(announced)

    def _ids_since(self, first: datetime | None) -> set[str]:
        return {event_id for _, _, event_id in self._names(first, None)}

    def _names(self, first: datetime | None, last: datetime | None) -> Iterator[tuple[str, datetime, str]]:
        for folder in _folders(first, last):
            for name in self._store.list_names(folder):
                matched = _NAME.fullmatch(name)
                if matched is not None:
                    stamp = datetime.strptime(matched[2], _STAMP).replace(tzinfo=UTC)
                    yield name, stamp, matched[4]

    def _read(self, name: str) -> Change:
        data = self._store.read(name)
        try:
            return Change.model_validate_json(data or b"")
        except ValidationError as err:
            raise SinkError(f"{self._store.address(name)}: is no event of this feed ({err}); remove it") from err


def _folders(first: datetime | None, last: datetime | None) -> list[str]:
    """The days to list; the whole feed where there is no start or it is long ago."""
    if first is None:
        return [FOLDER]
    end: date = last.date() if last else max(datetime.now(UTC), first).date() + timedelta(days=1)
    days = (end - first.date()).days
    if days > _DAYS_LISTED_ONE_BY_ONE:
        return [FOLDER]
    return [f"{FOLDER}/date={first.date() + timedelta(days=day)}" for day in range(days + 1)]


def _event_id(kind: Kind, item: Json, turn: int) -> str:
    """Follows from what happened to which pixels: a re-made item (other files) is another event, as is another turn."""
    checksums = sorted(str(asset.get("file:checksum")) for asset in item["assets"].values())
    text = "\n".join([kind, item["collection"], item["id"], *checksums, *([str(turn)] if turn else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _turn(item: Json, known: set[str], *, current: bool) -> int:
    """How many times the item had been current before this time, or the last time, as the known events tell.

    A turn begins with ``new`` and is over once the item was superseded or withdrawn.
    """
    ends: tuple[Kind, ...] = ("superseded", "withdrawn")
    over = next(turn for turn in count() if not any(_event_id(end, item, turn) in known for end in ends))
    begun = current or over == 0 or _event_id("new", item, over) in known
    return over if begun else over - 1


def _was_made_again(item: Json) -> bool:
    """Whether the document took the place of an older one of the same id, which it has its time of creation from."""
    properties = item["properties"]
    return bool(properties.get("processing:datetime", properties.get("created")) != properties.get("created"))


def _born(item: Json) -> datetime | None:
    created = item["properties"].get("created")
    return datetime.fromisoformat(created) - OVERLAP if created else None


def _successor(item: Json) -> str | None:
    return next((link.get("title") for link in item["links"] if link["rel"] == "successor-version"), None)


def _flat(bbox: Sequence[float] | None) -> Bbox | None:
    if bbox is None:
        return None
    half = len(bbox) // 2
    return (bbox[0], bbox[1], bbox[half], bbox[half + 1])


def _touch(one: Sequence[float], other: Sequence[float]) -> bool:
    ranges, others = (longitudes(box[0], box[2]) for box in (one, other))
    along = any(a[0] <= b[1] and b[0] <= a[1] for a in ranges for b in others)
    return along and one[1] <= other[3] and other[1] <= one[3]


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    try:
        return in_utc(moment)
    except OverflowError:  # hours before the year 1 or after the year 9999: the end of what there is
        return datetime.min.replace(tzinfo=UTC) if moment.year == 1 else datetime.max.replace(tzinfo=UTC)
