"""The output catalog as one STAC GeoParquet file: search without a server, by DuckDB, geopandas or rustac.

Needs the extra ``geoparquet`` (rustac, 33 MB); the pipeline itself does without.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from pancrafter.errors import PancrafterError

if TYPE_CHECKING:
    from pancrafter.publish import StaticSink

SNAPSHOT = "items.parquet"


class SnapshotError(PancrafterError):
    """The snapshot cannot be made here."""

    kind = "system"


def write_snapshot(sink: StaticSink, target: Path | None = None) -> tuple[str, int]:
    """Write all items of the catalog's products; returns where, and how many.

    Hrefs of assets and links become relative to the catalog's folder, where the file lies unless ``target`` is given.

    Raises:
        SnapshotError: rustac is not installed, or there is nothing to write.
        SinkError: The catalog cannot be read or written.
    """
    try:
        import rustac
    except ImportError as err:
        raise SnapshotError("writing GeoParquet needs rustac: pip install 'pancrafter[geoparquet]'") from err
    items = [_from_root(item) for item in sink.items()]
    if not items:
        raise SnapshotError(f"{sink.catalog_href}: no items to write; publish some first")

    async def write(path: Path) -> None:
        await rustac.write(str(path), items, format="geoparquet")

    if target is not None:
        asyncio.run(write(target))
        return str(target), len(items)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / SNAPSHOT
        asyncio.run(write(draft))
        sink.store.put(draft, SNAPSHOT, "application/vnd.apache.parquet")
    return sink.store.address(SNAPSHOT), len(items)


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
