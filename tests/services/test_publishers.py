"""Publishers that race on S3 and a STAC API lose nothing; 10,000 items: tests/benchmarks/bench_publishers.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import racing_publishers
import s3fs

from pancrafter.item import multihash_of
from pancrafter.publish import StaticSink
from pancrafter.stac_api import StacApi

pytestmark = pytest.mark.services


def test_four_publishers_lose_nothing_and_publish_nothing_twice(urls: dict[str, str], tmp_path: Path) -> None:
    race = racing_publishers.Race(
        items=40,
        publishers=4,
        per_day=6,
        sink="s3://pancrafter/race",
        api=urls["PANCRAFTER_CATALOG_URL"],
        folder=str(tmp_path),
        twice_every=4,
        in_collection=10,
    )
    times, _ = racing_publishers.run(race)
    assert sum(len(one.numbers) for one in times) == 50, "ten items were published by two publishers"
    assert racing_publishers.faults(race, times) == []
    pages = StaticSink(race.sink).store.list_names("race-sharpened/by-day")
    assert len(pages) > 4


def test_racing_updates_of_one_object_are_all_kept(urls: dict[str, str]) -> None:
    """What the catalog's shared documents rest on, on a server that decides it atomically."""

    def count_up(_: int) -> None:
        store = StaticSink("s3://pancrafter/counted").store
        for _ in range(10):
            store.update("count.json", lambda old: str(int(old or b"0") + 1).encode(), "application/json")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(4)))
    assert StaticSink("s3://pancrafter/counted").store.read("count.json") == b"40"


def test_large_files_arrive_in_parts(urls: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    source.write_bytes(np.random.default_rng(0).bytes(110 * 2**20))
    store: Any = StaticSink("s3://pancrafter/parts").store
    store.put(source, "large.bin", "application/octet-stream")
    head = s3fs.S3FileSystem().call_s3("head_object", Bucket="pancrafter", Key="parts/large.bin")
    assert "-" in head["ETag"], "an ETag of a multipart upload counts its parts"
    assert store.size("large.bin") == source.stat().st_size
    assert store.multihash("large.bin", 110 * 2**20) == multihash_of(source)
    store.delete("large.bin")


def test_withdrawn_item_is_in_neither_catalog(urls: dict[str, str], tmp_path: Path) -> None:
    race = racing_publishers.Race(
        items=1,
        publishers=1,
        per_day=1,
        sink="s3://pancrafter/race",
        api=urls["PANCRAFTER_CATALOG_URL"],
        folder=str(tmp_path),
    )
    racing_publishers.publish_share(race, 0)
    assert race.api is not None
    api, sink = StacApi(race.api), StaticSink(race.sink)
    api.delete("race-sharpened", racing_publishers.item_id(0))
    sink.withdraw("race-sharpened", racing_publishers.item_id(0))
    api.delete("race-sharpened", racing_publishers.item_id(0))
    assert not sink.exists("race-sharpened", racing_publishers.item_id(0))
    path = f"/collections/race-sharpened/items/{racing_publishers.item_id(0)}"
    assert api._ask("GET", path, accept={404}).status_code == 404
