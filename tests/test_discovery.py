"""Discovery against servers that misbehave as real ones do, what is new since then, and GeoParquet."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from listening import Quiet, QuietFiles, http_server
from small_archive import write_catalog

from pancrafter.access import Access, HostProfile
from pancrafter.catalog import discover
from pancrafter.catalog_index import CatalogIndex, load_index
from pancrafter.errors import SourceError
from pancrafter.sensors import load_contracts
from pancrafter.serve import serving
from pancrafter.types import Refusal, Scene

CONTRACTS = load_contracts()
Answer = Callable[[BaseHTTPRequestHandler, str], None]


def item(item_id: str, **properties: Any) -> dict[str, Any]:
    ring = [[9.0, 50.0], [9.1, 50.0], [9.1, 50.1], [9.0, 50.0]]
    bands = [{"name": name, "common_name": name} for name in ("blue", "green", "red", "nir")]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": item_id, "links": [], "collection": "c",
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [9.0, 50.0, 9.1, 50.1],
        "properties": {"datetime": "2025-03-01T10:00:00Z", "platform": "worldview-2", **properties},
        "assets": {
            "pan": {"href": "https://example.com/p.tif", "eo:bands": [{"name": "pan", "common_name": "pan"}]},
            "ms": {"href": "https://example.com/m.tif", "eo:bands": bands},
        },
    }  # fmt: skip


def ids(source: str, **options: Any) -> list[str]:
    return sorted(verdict.item_id for verdict in discover(source, contracts=CONTRACTS, **options))


# --- what is new ------------------------------------------------------------------------------------------------------


ARRIVALS = (
    item("old", updated="2025-03-02T00:00:00Z"),
    item("replaced", created="2025-03-02T00:00:00Z", updated="2025-04-02T00:00:00Z"),
    item("late", datetime="2024-01-01T00:00:00Z", created="2025-04-03T00:00:00Z"),
    item("silent"),
    item("created-long-ago", created="2025-01-02T00:00:00Z"),
    item("unreadable", updated="yesterday"),
)
NEW = ["late", "replaced", "silent", "unreadable"]
SINCE = datetime(2025, 4, 1, tzinfo=UTC)


def test_new_items_of_a_static_catalog(tmp_path: Path) -> None:
    write_catalog(tmp_path, ARRIVALS)
    with _answering(_files(tmp_path)) as url:
        assert ids(f"{url}/catalog.json", changed_since=SINCE) == NEW
        assert len(ids(f"{url}/catalog.json")) == 6


@pytest.fixture
def no_queryables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pystac_client.Client.get_queryables", lambda _: {"properties": {}})


@pytest.mark.usefixtures("no_queryables")
def test_new_items_of_an_api_that_cannot_filter_by_change(tmp_path: Path) -> None:
    """No queryables: everything in the window is looked at, and what is old is left out here."""
    write_catalog(tmp_path, ARRIVALS)
    with serving(tmp_path) as url:
        assert ids(url, changed_since=SINCE) == NEW
        assert ids(url, changed_since=SINCE, since=datetime(2025, 1, 1, tzinfo=UTC)) == [
            "replaced",
            "silent",
            "unreadable",
        ]


def test_new_items_of_an_api_that_filters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``updated`` among the queryables the server is asked, and items without it are not lost."""
    from pystac_client import Client

    write_catalog(tmp_path, ARRIVALS)
    asked: list[Any] = []
    search = Client.search

    def recorded(self: Client, **options: Any) -> Any:
        asked.append(options.get("filter"))
        return search(self, **options)

    monkeypatch.setattr(Client, "search", recorded)
    with serving(tmp_path) as url:
        assert ids(url, changed_since=SINCE) == [
            name for name in NEW if name != "unreadable"
        ]  # no server can compare it
        ids(url)
    assert asked[0]["op"] == "or"
    assert {"op": "isNull", "args": [{"property": "updated"}]} in asked[0]["args"]
    assert asked[1] is None


DELIVERED = (
    *ARRIVALS,
    item("acquired", datetime="2025-04-01T12:00:00Z", updated="2025-04-01T13:00:00Z"),
    item("acquired-silent", datetime="2025-04-02T12:00:00Z"),
    item("entered", created="2025-04-02T00:00:00Z", updated="2025-03-02T00:00:00Z"),
)
DELIVERED_NEW = ["acquired", "acquired-silent", "entered", "late", "replaced"]


@pytest.mark.parametrize("kind", ["static", "folder", "geoparquet"])
def test_what_was_acquired_or_changed_since(tmp_path: Path, kind: str) -> None:
    """Late deliveries are found; what does not say when it changed counts by acquisition."""
    root = write_catalog(tmp_path, DELIVERED)
    with _answering(_files(tmp_path)) as files:
        source = {"static": f"{files}/catalog.json", "folder": str(root)}.get(kind)
        if source is None:
            import rustac

            source = str(tmp_path / "items.parquet")
            readable = [body for body in DELIVERED if body["id"] != "unreadable"]
            rustac.write_sync(source, {"type": "FeatureCollection", "features": readable})
        assert ids(source, new_since=SINCE) == DELIVERED_NEW
        floor = datetime(2025, 1, 1, tzinfo=UTC)
        assert ids(source, new_since=SINCE, since=floor) == [name for name in DELIVERED_NEW if name != "late"]


@pytest.mark.usefixtures("no_queryables")
def test_an_api_that_cannot_filter_by_change_is_asked_by_acquisition_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may hold millions of items: they are not gone through every night, and the log says what that leaves out."""
    write_catalog(tmp_path, DELIVERED)
    with serving(tmp_path) as api:
        assert ids(api, new_since=SINCE) == ["acquired", "acquired-silent"]
    assert "cannot filter by the time of a change" in caplog.text
    assert "since 2025-04-01 00:00" in caplog.text


@pytest.mark.parametrize("queryables", [("updated",), ("updated", "created")])
def test_what_was_acquired_or_changed_is_asked_of_an_api_that_filters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, queryables: tuple[str, ...]
) -> None:
    from pystac_client import Client

    write_catalog(tmp_path, DELIVERED)
    asked: list[Any] = []
    search = Client.search

    def recorded(self: Client, **options: Any) -> Any:
        asked.append((options.get("datetime"), options.get("filter")))
        return search(self, **options)

    monkeypatch.setattr(Client, "search", recorded)
    monkeypatch.setattr(Client, "get_queryables", lambda _: {"properties": {name: {} for name in queryables}})
    with serving(tmp_path) as url:
        expected = DELIVERED_NEW if "created" in queryables else [name for name in DELIVERED_NEW if name != "entered"]
        assert ids(url, new_since=SINCE) == expected
    (acquired, no_filter), (any_time, changed) = asked
    assert (acquired, no_filter) == ("2025-04-01T00:00:00Z/..", None)
    assert any_time is None
    assert [part["args"][0]["property"] for part in changed["args"]] == [queryables[0], queryables[-1]]


# --- servers that misbehave -------------------------------------------------------------------------------------------


def _answering(answer: Answer) -> AbstractContextManager[str]:
    class Handler(Quiet):
        def do_GET(self) -> None:
            answer(self, self.path)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer(self, self.path)

    return http_server(Handler)


def _send(to: BaseHTTPRequestHandler, body: Any, code: int = 200, **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    to.send_response(code)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()
    to.wfile.write(content)


def _files(folder: Path) -> Answer:
    def answer(to: BaseHTTPRequestHandler, path: str) -> None:
        file = folder / path.lstrip("/")
        _send(to, file.read_bytes()) if file.is_file() else _send(to, {"detail": "none"}, 404)

    return answer


def _api(pages: Callable[[BaseHTTPRequestHandler, int], tuple[list[Any], bool]]) -> Answer:
    """A minimal API whose pages are given by a function of their number: features, and whether there is a next one."""

    def answer(to: BaseHTTPRequestHandler, path: str) -> None:
        base = f"http://{to.headers['Host']}"
        if path.startswith("/search"):
            number = int(path.partition("page=")[2] or 0)
            features, more = pages(to, number)
            links = [{"rel": "next", "href": f"{base}/search?page={number + 1}", "method": "GET"}] if more else []
            _send(to, {"type": "FeatureCollection", "features": features, "links": links})
        elif path in ("/", ""):
            classes = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
            links = [{"rel": "search", "href": f"{base}/search", "type": "application/geo+json", "method": "GET"}]
            links.append({"rel": "self", "href": f"{base}/"})
            root = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "x"}
            _send(to, root | {"links": links, "conformsTo": classes})
        else:
            _send(to, {"detail": "none"}, 404)

    return answer


def test_duplicates_and_items_that_move_between_pages() -> None:
    """Something arrives while we page, so pages overlap: nothing twice, nothing lost."""

    def pages(_: BaseHTTPRequestHandler, number: int) -> tuple[list[Any], bool]:
        starts = (0, 8, 17)
        return [item(f"i{n:02}") for n in range(starts[number], starts[number] + 10)], number < 2

    with _answering(_api(pages)) as url:
        assert ids(url) == [f"i{n:02}" for n in range(27)]


# --- no way into other places -----------------------------------------------------------------------------------------


def test_redirects_and_links_do_not_lead_into_the_private_network(tmp_path: Path) -> None:
    """The source's own host is trusted; a link or a redirect to another private one is not followed."""
    reached: list[str] = []

    def secret(to: BaseHTTPRequestHandler, path: str) -> None:
        reached.append(path)
        _send(to, item("secret"))

    with _answering(secret) as inner:
        port = inner.rsplit(":", 1)[1]
        elsewhere = f"http://127.0.0.2:{port}"

        def answer(to: BaseHTTPRequestHandler, path: str) -> None:
            if path == "/moved.json":
                _send(to, b"", 302, Location=f"{elsewhere}/x.json")
            elif path == "/catalog.json":
                links = [{"rel": "item", "href": href} for href in ("/moved.json", f"{elsewhere}/y.json", "/good.json")]
                links += [{"rel": "item", "href": "file:///etc/hostname"}, {"rel": "child", "href": "ftp://x/c.json"}]
                root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "x", "links": links}
                _send(to, root)
            else:
                _send(to, item("good"))

        with _answering(answer) as url:
            verdicts = list(discover(f"{url}/catalog.json", contracts=CONTRACTS, access=Access()))
    assert reached == []
    assert [v.item_id for v in verdicts if isinstance(v, Scene)] == ["good"]
    refused = [v.reason for v in verdicts if isinstance(v, Refusal)]
    assert sum("private address 127.0.0.2" in reason for reason in refused) == 2, refused


def test_the_index_of_a_folder_goes_with_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill searches once per window; one index after the other would fill the memory."""
    made: list[CatalogIndex] = []
    monkeypatch.setattr("pancrafter.catalog_index.load_index", lambda path: made.append(load_index(path)) or made[-1])
    assert ids(str(write_catalog(tmp_path, [item("a")]))) == ["a"]
    (index,) = made
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        index.collections()


# --- GeoParquet -------------------------------------------------------------------------------------------------------


def test_geoparquet_is_a_source(shared_data: Path, tmp_path: Path) -> None:
    """Real items of several producers survive the way through a table; the window holds there, too."""
    import rustac

    folder = shared_data / "stac"
    real = [json.loads(next(folder.glob(name)).read_text()) for name in (
        "usgs-landsatlook/LC09_L1TP*.json", "terradue-stars/perusat/*.json", "terradue-stars/spot67/*SPOT6*.json"
    )]  # fmt: skip
    path = tmp_path / "items.parquet"
    rustac.write_sync(str(path), {"type": "FeatureCollection", "features": [*real, item("made-up")]})
    found = {v.item_id: v for v in discover(str(path), contracts=CONTRACTS)}
    assert len(found) == 4
    assert {type(found[body["id"]]) for body in real[:2]} == {Scene}
    spot = found[real[2]["id"]]
    assert isinstance(spot, Refusal)
    assert spot.code == "already_sharpened"
    assert ids(str(path), since=datetime(2025, 1, 1, tzinfo=UTC)) == ["made-up"]
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(SourceError, match="expected a STAC GeoParquet file"):
        ids(str(tmp_path / "bad.parquet"))


def _write_parquet(path: Path, *items: dict[str, Any]) -> None:
    import rustac

    path.parent.mkdir(parents=True, exist_ok=True)
    rustac.write_sync(str(path), {"type": "FeatureCollection", "features": items})


def test_a_folder_of_geoparquet_is_read_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large archives come so, and no more than one file is held."""
    import rustac

    archive = tmp_path / "archive.parquet"
    _write_parquet(archive / "month=1" / "part-0.parquet", item("a"), item("b"))
    _write_parquet(archive / "month=2" / "part-0.parquet", item("c"))
    (archive / "month=2" / "part-0.parquet").rename(archive / "month=2" / "part-0.PARQUET")
    (archive / "_SUCCESS").touch()
    reads: list[str] = []
    read = rustac.read_sync
    monkeypatch.setattr(rustac, "read_sync", lambda place, **options: reads.append(place) or read(place, **options))
    found = discover(str(archive), contracts=CONTRACTS)
    first = next(found)
    assert isinstance(first, Scene)
    assert first.source_href == str(archive / "month=1" / "part-0.parquet")
    assert len(reads) == 1
    assert [scene.item_id for scene in found] == ["b", "c"]
    assert ids(str(archive / "month=2" / "part-0.PARQUET")) == ["c"]
    (tmp_path / "empty.parquet").mkdir()
    with pytest.raises(SourceError, match=r"empty.parquet: neither a file nor a folder of any"):
        ids(str(tmp_path / "empty.parquet"))


def test_geoparquet_in_a_bucket_is_read_as_its_profile_says(s3: str, tmp_path: Path) -> None:
    """The server has no TLS, as many in a cluster."""
    import fsspec

    _write_parquet(tmp_path / "items.parquet", item("a"))
    bucket = fsspec.filesystem("s3")
    bucket.put_file(str(tmp_path / "items.parquet"), "bucket/one.parquet", ACL="public-read")
    bucket.put_file(str(tmp_path / "items.parquet"), "bucket/many.parquet/0.parquet")
    assert ids("s3://bucket/one.parquet") == ids("s3://bucket/many.parquet") == ["a"]
    anonymous = Access(profiles=(HostProfile(match=("s3://bucket",), kind="anonymous"),))
    (scene,) = discover("s3://bucket/one.parquet", contracts=CONTRACTS, access=anonymous)
    assert isinstance(scene, Scene)
    assert scene.source_href == "s3://bucket/one.parquet"
    with pytest.raises(SourceError, match=r"s3://bucket/none.parquet: neither a file"):
        ids("s3://bucket/none.parquet")


@pytest.mark.usefixtures("s3")
def test_geoparquet_is_read_from_a_bucket_that_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read a file need not be one who may see what else there is."""

    class Unlisted(QuietFiles):
        def do_GET(self) -> None:
            self.send_error(403) if "list-type" in self.path else super().do_GET()

    _write_parquet(tmp_path / "bucket" / "one.parquet", item("a"))
    with http_server(partial(Unlisted, directory=str(tmp_path))) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert ids("s3://bucket/one.parquet") == ["a"]


def test_an_item_of_geoparquet_without_geometry_is_refused(tmp_path: Path) -> None:
    """As one of JSON is; rustac makes an empty polygon of it."""
    import duckdb

    whole, path = tmp_path / "whole.parquet", tmp_path / "items.parquet"
    _write_parquet(whole, item("a"), item("b"))
    without_b = "SELECT * REPLACE (CASE id WHEN 'a' THEN geometry END AS geometry)"
    duckdb.sql(f"COPY ({without_b} FROM '{whole}') TO '{path}'")
    verdicts = {verdict.item_id: verdict for verdict in discover(str(path), contracts=CONTRACTS)}
    assert isinstance(verdicts["a"], Scene)
    refused = verdicts["b"]
    assert isinstance(refused, Refusal)
    assert "no geometry" in refused.reason
