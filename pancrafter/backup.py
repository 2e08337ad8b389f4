"""Backup and restore of what cannot be made again: the ledger (where it is a file) and the output catalog.

A PostgreSQL ledger is saved with ``pg_dump``; a STAC API needs no backup, it is filled from the catalog. The ledger is
copied before the catalog: what is published in between is known to the copied catalog alone, and the next run takes it
over. Copies go in the order of publication, so that also a reader of the copy only ever sees whole items. What is left
of a catalog is newer than its backup: its documents stay, and what was withdrawn since does not come back.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from pathlib import Path

from pancrafter.catalog_links import MEDIA_GEOJSON, MEDIA_JSON, PAGES
from pancrafter.changes import FOLDER as CHANGES
from pancrafter.changes import ChangeFeed
from pancrafter.discovery import enter_withdrawals, linked_items, recognise
from pancrafter.durable import flush
from pancrafter.errors import PancrafterError
from pancrafter.ledger import Ledger, batches, open_ledger
from pancrafter.ledger_tables import PRIVATE
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.stac_api import StacApi
from pancrafter.types import Record
from pancrafter.words import counted

CATALOG, LEDGER = "catalog", "ledger.db"
_SQLITE = "sqlite:///"
_READERS = 8


class BackupError(PancrafterError):
    """There is no backup at the place, or something is in its way."""

    kind = "system"


class Copied(Record):
    """What a backup or a restore did."""

    copied: int
    kept: int
    ledger: str
    sent: int | None = None

    def __str__(self) -> str:
        sent = "" if self.sent is None else f", {counted(self.sent, 'item')} sent to the STAC API"
        return f"catalog: {counted(self.copied, 'file')} copied, {self.kept} there already; ledger: {self.ledger}{sent}"


def back_up(settings: Settings, place: str) -> Copied:
    """Copy ledger and catalog to ``place``, a folder or ``s3://bucket/prefix``.

    Raises:
        SinkError: The catalog cannot be read, or the place cannot be written.
        BackupError: There is no catalog, and no scene that waits to be published there, or the ledger cannot be read.
    """
    source, target, ledger = StaticSink(settings.sink), StaticSink(place), _ledger_file(settings)
    if source.store.read("catalog.json") is None and not _knows_scenes(settings):
        raise BackupError(f"{source.catalog_href}: no such catalog; give --sink of the runs")
    said = "on a server, save it with pg_dump"
    if ledger is not None:
        if not ledger.is_file():
            raise BackupError(f"{ledger}: no such ledger; give --state-dir of the runs")
        with tempfile.TemporaryDirectory() as folder:
            snapshot = Path(folder) / LEDGER
            _snapshot(ledger, snapshot)
            target.store.put(snapshot, LEDGER, "application/vnd.sqlite3", rights=PRIVATE)
        said = "copied"
    copied, kept = copy_catalog(source, StaticSink(f"{place.rstrip('/')}/{CATALOG}"))
    return Copied(copied=copied, kept=kept, ledger=said)


def _knows_scenes(settings: Settings) -> bool:
    if not settings.has_ledger:
        return False
    with open_ledger(settings) as ledger:
        return any(ledger.counts(settings.sink).values())


def bring_back(settings: Settings, place: str) -> Copied:
    """Put catalog and ledger back from ``place``, and fill the STAC API of the settings from the catalog.

    Raises:
        BackupError: There is no backup at the place, or another ledger, or what SQLite kept beside it, is in the way.
        SinkError: A place cannot be read or written.
    """
    base, source = StaticSink(place), StaticSink(f"{place.rstrip('/')}/{CATALOG}")
    said, ledger, saved = "on a server, restore it with pg_restore", _ledger_file(settings), base.store.read(LEDGER)
    if saved is None and source.store.read("catalog.json") is None:
        raise BackupError(f"{source.catalog_href}: no backup there; give the place that `pancrafter backup` wrote to")
    if ledger is not None:
        said = "not in this backup"
        if saved is not None:
            beside = [ledger.with_name(ledger.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
            found = [str(path) for path in beside if path.exists()]
            if found:  # SQLite would play its log into whatever stands beside it
                raise BackupError(f"{', '.join(found)}: in the way; move aside, then restore again")
            ledger.parent.mkdir(parents=True, exist_ok=True)
            draft = ledger.with_name(f".{ledger.name}-restoring")
            draft.unlink(missing_ok=True)
            draft.touch(PRIVATE)
            draft.write_bytes(saved)
            flush(draft)
            draft.replace(ledger)
            said = "put back"
    sink = StaticSink(settings.sink)
    withdrawn = _withdrawn(source, sink)
    copied, kept = copy_catalog(source, sink, _superfluous(sink, withdrawn))
    for collection, item_id in withdrawn:
        document = source.document(collection, item_id)
        if document is not None:
            sink.unlink(collection, document)
    if ledger is not None and saved is not None:
        with open_ledger(settings) as opened:
            recognise(opened, sink, settings)
            said += _of_another_sink(opened, settings)
            enter_withdrawals(opened, sink, settings, linked_items(sink))
    sent = None
    if settings.catalog_url is not None:
        with closing(StacApi(settings.catalog_url, settings.access)) as api:
            sent = api.send_all(sink)
    return Copied(copied=copied, kept=kept, ledger=said, sent=sent)


def _of_another_sink(ledger: Ledger, settings: Settings) -> str:
    """What to say of a ledger that knows scenes, but none for this sink; nothing if it is of use here."""
    first = ledger.rows(limit=1)
    if not first or any(ledger.counts(settings.sink).values()):
        return ""
    old = first[0].key.sink
    return (
        f", but it is of {old}, and knows nothing of {settings.sink}: what was refused or held there is "
        f"made again here; restore to --sink {old} where that can be"
    )


def _withdrawn(*catalogs: StaticSink) -> frozenset[tuple[str, str]]:
    """Collection and id of the items that were withdrawn last, as these states of a catalog tell, older ones first."""
    events = (event for catalog in catalogs for event in ChangeFeed(catalog.store).events())
    last = {(event.collection, event.item_id): event.type for event in events}
    return frozenset(item for item, kind in last.items() if kind == "withdrawn")


def _superfluous(sink: StaticSink, withdrawn: Container[tuple[str, str]]) -> Callable[[str], bool]:
    """What of a backup the rest of a catalog does without: documents that it has, and items withdrawn since."""

    def superfluous(name: str) -> bool:
        parts = name.split("/")
        if len(parts) > 2 and (parts[0], parts[1]) in withdrawn:
            return True
        return name.endswith(".json") and _is_document(sink, name)

    return superfluous


def _is_document(sink: StaticSink, name: str) -> bool:
    try:
        return json.loads(sink.store.read(name) or b"") is not None
    except ValueError:
        return False


def copy_catalog(
    source: StaticSink, target: StaticSink, left_out: Callable[[str], bool] = lambda _: False
) -> tuple[int, int]:
    """Copy what is missing or differs, in the order of publication; returns the files copied and those left alone.

    Names of assets hold their checksum, so size is enough for them; documents are compared byte by byte.
    """
    sizes, there = source.store.sizes(""), target.store.sizes("")
    names = sorted((name for name in sizes if not Path(name).name.startswith(".")), key=_rank)  # locks and drafts stay

    def copy(name: str) -> bool:
        same = sizes[name] == there.get(name)
        if same and name.endswith(".json"):
            same = target.store.read(name) == source.store.read(name)
        if same or left_out(name):
            return False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            source.store.get(name, path)
            target.store.put(path, name, _media_type(name))
        return True

    with ThreadPoolExecutor(_READERS) as pool:
        ranks = (batches(rank) for _, rank in groupby(names, lambda name: _rank(name)[0]))
        copied = sum(sum(pool.map(copy, batch)) for rank in ranks for batch in rank)
    return copied, len(names) - copied


def _rank(name: str) -> tuple[int, str]:
    """Files first, then items, pages of days, of months, collections, the root, and last the change feed."""
    parts = name.split("/")
    if name.startswith(f"{CHANGES}/"):
        return 6, name
    if name == "catalog.json":
        return 5, name
    if parts[-1] == "collection.json":
        return 4, name
    if len(parts) == 3 and parts[1] == PAGES:
        return (2 if parts[2].count("-") == 2 else 3), name
    return (1 if _is_item(name) else 0), name


def _media_type(name: str) -> str:
    kinds = {
        ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
        ".png": "image/png",
        ".jsonl": "application/x-ndjson",
        ".html": "text/html",
        ".parquet": "application/vnd.apache.parquet",
    }
    return kinds.get(Path(name).suffix, MEDIA_GEOJSON if _is_item(name) else MEDIA_JSON)


def _is_item(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[2] == f"{parts[1]}.json"


def _ledger_file(settings: Settings) -> Path | None:
    return Path(settings.ledger.removeprefix(_SQLITE)) if settings.ledger.startswith(_SQLITE) else None


def _snapshot(ledger: Path, copy: Path) -> None:
    """SQLite's own backup: a whole database also while others write."""
    try:
        with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error as err:
        raise BackupError(
            f"{ledger}: {err}; expected a ledger, and room for a copy of it in {copy.parent.parent} (TMPDIR)"
        ) from err
