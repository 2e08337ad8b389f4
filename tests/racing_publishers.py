"""Several processes that publish into one catalog and one STAC API at once, and the count of what arrived."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import pystac_client
from published_scene import BANDS, QUALITY, recipe, staged

from pancrafter import catalog_links
from pancrafter.catalog_links import ITEMS_IN_COLLECTION, CollectionInfo
from pancrafter.cog import Block, write_cog
from pancrafter.item import AssetFile, Cost, build_item, cog_asset
from pancrafter.publish import StaticSink
from pancrafter.stac_api import StacApi
from pancrafter.types import PixelGrid

COLLECTION = CollectionInfo(id="race-sharpened", title="Race", description="Items of publishers that race.")
SIDE_PX = 64
FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Race:
    """How many publish what. Every ``twice_every``-th item is published by its neighbour as well."""

    items: int
    publishers: int
    per_day: int
    sink: str
    api: str | None
    folder: str
    twice_every: int = 20
    in_collection: int = ITEMS_IN_COLLECTION
    seconds: float = float("inf")
    done: tuple[int, ...] = ()

    def share_of(self, publisher: int) -> Iterator[int]:
        for number in range(self.items):
            shared = number % self.twice_every == 0 and (number + 1) % self.publishers == publisher
            if (number % self.publishers == publisher or shared) and number >= self.start_of(publisher):
                yield number

    def start_of(self, publisher: int) -> int:
        """The first number that an earlier leg of the race left to a publisher."""
        return self.done[publisher] if self.done else 0


@dataclass(frozen=True)
class Times:
    """What one publisher published until time was up, and seconds that it spent on the catalog and on the API."""

    numbers: tuple[int, ...]
    sink_s: float
    api_s: float
    by_tenth_s: tuple[float, ...]


def item_id(number: int) -> str:
    return f"item-{number:06d}"


def make_file(folder: Path) -> AssetFile:
    folder.mkdir(parents=True, exist_ok=True)
    grid = PixelGrid(
        crs="EPSG:32633", transform=(0.5, 0.0, 500000.0, 0.0, -0.5, 4600000.0), shape_yx=(SIDE_PX, SIDE_PX)
    )
    values = np.random.default_rng(0).integers(1, 2000, (4, SIDE_PX, SIDE_PX)).astype(np.uint16)
    block = Block((slice(0, SIDE_PX), slice(0, SIDE_PX)), values, np.ones((SIDE_PX, SIDE_PX), bool))
    names = [band.name for band in BANDS]
    written = write_cog(
        folder / "sharpened.tif", [block], grid=grid, count=4, dtype="uint16", nodata=0, band_names=names
    )
    return cog_asset("sharpened", written)


def make_item(asset: AssetFile) -> pystac.Item:
    return build_item(
        staged(),
        QUALITY,
        item_id=item_id(0),
        collection_id=COLLECTION.id,
        recipe=recipe(),
        bands=BANDS,
        assets=[asset],
        cost=Cost(seconds=1, mpx_per_s=1, device="cpu"),
        now=FIRST_DAY,
    )


def publish_share(race: Race, publisher: int) -> Times:
    """One publisher: its items in order, each into the catalog, then into the API."""
    catalog_links.ITEMS_IN_COLLECTION = race.in_collection
    asset = make_file(Path(race.folder) / str(publisher))
    sink, api = StaticSink(race.sink), None if race.api is None else StacApi(race.api)
    sink_s = api_s = 0.0
    laps: list[float] = []
    numbers: list[int] = []
    pattern = make_item(asset)
    deadline = time.monotonic() + race.seconds
    for number in race.share_of(publisher):
        if time.monotonic() > deadline:
            break
        made = pattern.clone()
        made.id = item_id(number)
        made.datetime = FIRST_DAY + timedelta(days=number // race.per_day)
        start = time.perf_counter()
        published = sink.publish(made, [asset], collection=COLLECTION)
        middle = time.perf_counter()
        if api is not None:
            api.send(sink, published.collection_id, published.item_id)
        end = time.perf_counter()
        sink_s, api_s = sink_s + middle - start, api_s + end - middle
        laps.append(middle - start)
        numbers.append(number)
    size = max(1, len(laps) // 10)
    means = [sum(laps[start : start + size]) / size for start in range(0, len(laps) - size + 1, size)]
    return Times(tuple(numbers), sink_s, api_s, tuple(means))


def run(race: Race) -> tuple[list[Times], float]:
    """All publishers at once; their times, and the seconds that it took."""
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(race.publishers) as pool:
        times = pool.starmap(publish_share, [(race, k) for k in range(race.publishers)], chunksize=1)
    return times, time.perf_counter() - start


def faults(race: Race, times: Sequence[Times], progress: Callable[[str], object] = lambda _: None) -> list[str]:
    """What is lost or twice in the catalog, among its files, and in the API's search; nothing if all is well."""
    expected = sorted({item_id(number) for one in times for number in one.numbers})
    sink = StaticSink(race.sink)
    links = [link["href"].rsplit("/", 2)[-2] for link in sink._item_links(COLLECTION.id)]
    found = [_difference("links of the catalog", expected, links)]
    names = [name.split("/") for name in sink.store.list_names(COLLECTION.id)]
    documents = [parts[1] for parts in names if len(parts) == 3 and parts[2] == f"{parts[1]}.json"]
    found += [_difference("documents of the catalog", expected, documents)]
    found += [f"orphan {name}" for name in sink.orphans(COLLECTION.id)]
    progress(f"catalog: {len(links)} links, {len(documents)} documents")
    if race.api is not None:
        client = pystac_client.Client.open(race.api)
        searched = [item.id for item in client.search(collections=[COLLECTION.id], limit=500).items()]
        found += [_difference("search", expected, searched)]
        progress(f"STAC API: search returns {len(searched)} items")
    return [fault for fault in found if fault]


def _difference(where: str, expected: Sequence[str], found: Sequence[str]) -> str:
    lost, twice = set(expected) - set(found), len(found) - len(set(found))
    strange = set(found) - set(expected)
    return f"{where}: {len(lost)} lost, {twice} twice, {len(strange)} unknown" if lost or twice or strange else ""
