"""The output catalog as one STAC GeoParquet file: search without a server, by DuckDB, geopandas or rustac.

Needs the extra ``geoparquet`` (rustac, 33 MB); the pipeline itself does without.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from pancrafter.errors import PancrafterError

if TYPE_CHECKING:
    from pancrafter.publish import StaticSink

SNAPSHOT = "items.parquet"
BATCH = 500
"""Items in memory at once."""


class SnapshotError(PancrafterError):
    """The snapshot cannot be made here."""

    kind = "system"


def write_snapshot(sink: StaticSink, target: Path | None = None) -> tuple[str, int]:
    """Write all items of the catalog's products; returns where, and how many.

    Hrefs of assets and links become relative to the catalog's folder, where the file lies unless ``target`` is given.

    Raises:
        SnapshotError: rustac is not installed, there is nothing to write, or the file cannot be written.
        SinkError: The catalog cannot be read or written.
    """
    try:
        import rustac
    except ImportError as err:
        raise SnapshotError("writing GeoParquet needs rustac: pip install 'pancrafter[geoparquet]'") from err
    if target is not None and target.exists() and not target.is_file():
        raise SnapshotError(f"{target}: is no regular file; give the name of a file to write")
    try:
        with tempfile.TemporaryDirectory() as folder:
            spool, draft = Path(folder) / "items.jsonl.gz", Path(folder) / SNAPSHOT
            first, count = _spooled(sink, spool)
            if not first:
                raise SnapshotError(f"{sink.catalog_href}: no items to write; publish some first")

            async def write(path: str) -> None:
                async with rustac.geoparquet_writer(first, path) as writer:
                    with gzip.open(spool, "rt", encoding="utf-8") as lines:
                        while batch := [json.loads(line) for line in islice(lines, BATCH)]:
                            await writer.write(batch)

            try:
                asyncio.run(write(str((target or draft).absolute())))
            finally:
                _let_threads_leave()
            if target is not None:
                return str(target), count
            sink.store.put(draft, SNAPSHOT, "application/vnd.apache.parquet")
    except (rustac.RustacError, OSError) as err:
        raise SnapshotError(
            f"{target or sink.store.address(SNAPSHOT)}: cannot be written ({err}); check path, rights and free space, "
            f"also of {tempfile.gettempdir()} (TMPDIR)"
        ) from err
    return sink.store.address(SNAPSHOT), count


def _let_threads_leave() -> None:
    """Wait, a second at most, until no thread of rustac is in Python: one that still is when Python ends crashes it."""
    for _ in range(1000):
        known = {thread.ident for thread in threading.enumerate()}
        if sys._current_frames().keys() <= known:  # noqa: SLF001 - documented, and the only way to see such threads
            return
        time.sleep(0.001)


def _spooled(sink: StaticSink, spool: Path) -> tuple[list[dict[str, Any]], int]:
    """Items that together have everything that any has, and the number of all; the others are put into ``spool``.

    The columns of the file are made from the items that are written first: what only later ones have would be lost.
    """
    first: list[dict[str, Any]] = []
    known: set[tuple[str, ...]] = set()
    count = 0
    with gzip.open(spool, "wt", compresslevel=1, encoding="utf-8") as lines:
        for item in map(_from_root, sink.items()):
            count += 1
            if new := set(_kinds(item)) - known:
                known |= new
                first.append(item)
            else:
                lines.write(json.dumps(item) + "\n")
    return first, count


def _kinds(value: object, *path: str) -> Iterator[tuple[str, ...]]:
    """Where a document has values, and of which type."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _kinds(part, *path, name)
    elif isinstance(value, list):
        for part in value:
            yield from _kinds(part, *path, "[]")
    yield (*path, type(value).__name__)


def _from_root(item: dict[str, Any]) -> dict[str, Any]:
    """The item with addresses as seen from the catalog's folder."""
    base = f"http://root/{item['collection']}/{item['id']}/"

    def move(entry: dict[str, Any]) -> dict[str, Any]:
        href = entry["href"]
        return (
            entry
            if "://" in href or href.startswith("/")
            else entry | {"href": urljoin(base, href)[len("http://root/") :]}
        )

    return item | {
        "assets": {key: move(asset) for key, asset in item["assets"].items()},
        "links": [move(link) for link in item["links"]],
    }
