"""The change feed: on folders and S3, written by many at once, read without a server."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pancrafter.changes import Change, ChangeFeed
from pancrafter.cli import app
from pancrafter.errors import SinkError
from pancrafter.publish import StaticSink


def item(item_id: str = "a", *, west: float = 10.0, collection: str = "c", checksum: str = "1220aa") -> dict:
    return {
        "id": item_id,
        "collection": collection,
        "bbox": [west, 40.0, west + 1, 41.0],
        "properties": {
            "datetime": "2024-05-01T10:20:30Z",
            "created": datetime.now(UTC).isoformat(),
            "pancrafter:source": {"collection": "raw", "item_id": item_id, "fingerprint": "f"},
        },
        "assets": {"sharpened": {"href": "./x.tif", "file:checksum": checksum}},
        "links": [],
    }


@pytest.fixture(params=["folder", "s3"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> StaticSink:
    if request.param == "folder":
        return StaticSink(str(tmp_path / "out"))
    request.getfixturevalue("s3")
    return StaticSink("s3://bucket/out")


def test_events_are_found_by_time_area_and_collection(sink: StaticSink) -> None:
    feed = ChangeFeed(sink.store)
    assert list(feed.events()) == []
    start = datetime.now(UTC)
    first = feed.announce("new", item("a"))
    assert first is not None
    feed.announce("new", item("b", west=100.0, collection="d"))
    feed.announce("superseded", item("a"), successor="b")
    feed.announce("withdrawn", item("b", west=100.0, collection="d"), reason="wrong scene")
    found = list(feed.events(start))
    assert [(change.type, change.item_id) for change in found] == [
        ("new", "a"), ("new", "b"), ("superseded", "a"), ("withdrawn", "b"),
    ]  # fmt: skip
    assert found[0] == first
    assert found[0].href == "c/a/a.json"
    assert (found[2].successor, found[3].reason) == ("b", "wrong scene")
    assert feed.counts(start) == {"new": 2, "superseded": 1, "withdrawn": 1}
    assert feed.counts(found[2].time) == {"superseded": 1, "withdrawn": 1}
    assert [c.item_id for c in feed.events(bbox=(99, 39, 101, 42))] == ["b", "b"]
    assert [*feed.events(bbox=(-180, 60, 180, 80)), *feed.events(bbox=(-180, -80, 180, -60))] == []
    count, latest = feed.newest("new", first.time)
    assert (count, list(latest)) == (2, [found[1], found[0]])
    assert [c.item_id for c in feed.events(collections=["c"])] == ["a", "a"]
    assert list(feed.events(found[1].time, found[2].time)) == found[1:3]
    assert list(feed.events(datetime.now(UTC) + timedelta(seconds=1))) == []
    assert list(feed.events(datetime(1999, 1, 1))) == found  # noqa: DTZ001 (a person types it without a zone)


def test_all_events_lie_between_the_first_and_the_last_moment(tmp_path: Path) -> None:
    """Also where these lie outside the years 1 to 9999 in UTC."""
    feed = ChangeFeed(StaticSink(str(tmp_path)).store)
    feed.announce("new", item())
    first, last = map(datetime.fromisoformat, ("0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"))
    assert len(list(feed.events(first, last))) == 1
    assert list(feed.events(None, first)) == []


def test_an_event_is_announced_once(sink: StaticSink) -> None:
    feed = ChangeFeed(sink.store)
    assert feed.announce("new", item()) is not None
    assert feed.announce("new", item()) is None
    assert feed.announce("new", item(checksum="1220bb")) is not None  # other pixels under the same id
    # A publisher that died after writing and did not look: the second object is there, readers see one event.
    feed.announce("new", item(), once=False)
    assert len(sink.store.list_names("changes")) == 3
    assert len(list(feed.events())) == 2
    assert feed.counts(datetime.now(UTC) - timedelta(minutes=5)) == {"new": 2}


def test_an_item_that_becomes_current_again_is_announced_again(sink: StaticSink) -> None:
    feed, first, later = ChangeFeed(sink.store), item("a"), item("a")
    later["properties"]["created"] = first["properties"]["created"]
    later["properties"]["processing:datetime"] = "2099-01-01T00:00:00Z"
    feed.announce("new", first, once=False)
    feed.announce("superseded", first, successor="b", once=False)
    assert feed.announce("superseded", first, successor="b") is None
    for _ in range(2):  # a publisher that died in between does it again
        feed.announce("new", later, once=False)
    for _ in range(2):
        feed.announce("superseded", later, successor="c", once=False)
    found = list(feed.events())
    assert [(change.type, change.successor) for change in found] == [
        ("new", None), ("superseded", "b"), ("new", None), ("superseded", "c"),
    ]  # fmt: skip
    assert len({change.id for change in found}) == len(sink.store.list_names("changes")) == 4


def test_publishers_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def publish(number: int) -> None:
        together.wait()
        for k in range(10):
            ChangeFeed(StaticSink(str(tmp_path)).store).announce("new", item(f"{number}-{k}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(8)))
    found = list(ChangeFeed(StaticSink(str(tmp_path)).store).events())
    assert len({change.item_id for change in found}) == 80
    assert [change.time for change in found] == sorted(change.time for change in found)


def test_the_feed_is_plain_json_lines_by_day(tmp_path: Path) -> None:
    ChangeFeed(StaticSink(str(tmp_path)).store).announce("new", item())
    (file,) = tmp_path.glob("changes/date=*/*.jsonl")
    assert file.parent.name == f"date={datetime.now(UTC):%Y-%m-%d}"
    line = json.loads(file.read_text())
    assert {"id", "type", "time", "collection", "item_id", "href", "bbox", "acquired", "source"} == set(line)
    file.write_text("{}")
    with pytest.raises(SinkError, match="is no event of this feed"):
        list(ChangeFeed(StaticSink(str(tmp_path)).store).events())


def test_changes_command(tmp_path: Path) -> None:
    ChangeFeed(StaticSink(str(tmp_path)).store).announce("new", item())
    run = CliRunner().invoke(app, ["changes", str(tmp_path), "--since", "2024-01-01", "--bbox", "9,39,12,42", "--json"])
    assert run.exit_code == 0, run.output
    assert Change.model_validate_json(run.stdout).item_id == "a"
    run = CliRunner().invoke(app, ["changes", str(tmp_path), "--bbox", "50,39,52,42"])
    assert run.exit_code == 0
    assert "0 changes" in run.stderr
