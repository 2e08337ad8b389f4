"""Discovery over a served folder, real HTTP servers on loopback, and everything that can go wrong with them."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import psutil
import pystac
import pytest
from listening import Quiet, QuietFiles, http_server, serving_files
from small_archive import write_catalog

from pancrafter import catalog, catalog_reading
from pancrafter.access import Access, HostProfile
from pancrafter.catalog import PAGE_SIZE, discover, judge_document
from pancrafter.crawl import absolute, crawl
from pancrafter.errors import SourceError
from pancrafter.sensors import load_contracts
from pancrafter.serve import serving
from pancrafter.types import Refusal, Scene

CONTRACTS = load_contracts()
START = datetime(2025, 1, 1, tzinfo=UTC)
COUNT = 12


def make_item(n: int, **properties: Any) -> pystac.Item:
    west = float(n)
    corners = [[west, 0], [west + 0.5, 0], [west + 0.5, 1], [west, 1], [west, 0]]
    item = pystac.Item(
        f"scene-{n:02d}",
        {"type": "Polygon", "coordinates": [corners]},
        [west, 0, west + 0.5, 1],
        START + timedelta(days=n),
        {"platform": "worldview-2", **properties},
    )
    bands = {"pan": ["pan"], "ms": ["blue", "green", "red", "nir"]}
    for key, names in bands.items():
        labels = [{"name": name, "common_name": name} for name in names]
        item.add_asset(key, pystac.Asset(f"{key}-{n}.tif", roles=["data"], extra_fields={"eo:bands": labels}))
    return item


def make_catalog(folder: Path, count: int = COUNT) -> Path:
    root = pystac.Catalog("archive", "An archive for tests.")
    for name, numbers in (("even", range(0, count, 2)), ("odd", range(1, count, 2))):
        items = [make_item(n) for n in numbers]
        provider = pystac.Provider("ACME", roles=[pystac.ProviderRole.PRODUCER])
        extent = pystac.Extent.from_items(items)
        collection = pystac.Collection(name, "Half of it.", extent, license="CC-BY-4.0", providers=[provider])
        collection.add_items(items)
        root.add_child(collection)
    root.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    for n in range(count):
        home = folder / ("odd" if n % 2 else "even") / f"scene-{n:02d}"
        for key in ("pan", "ms"):
            (home / f"{key}-{n}.tif").write_bytes(b"x" * (n + 1))
    return folder


def answering(answer: Callable[[BaseHTTPRequestHandler, int], tuple[int, Any]]) -> type[BaseHTTPRequestHandler]:
    """A handler whose n-th request (from 0) is answered with (status, JSON or text); of a redirect where it leads."""
    count = iter(range(10_000))

    class Handler(Quiet):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.body = json.loads(self.rfile.read(length)) if length else {}
            status, content = answer(self, next(count))
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            if status == HTTPStatus.TEMPORARY_REDIRECT:
                self.send_header("Location", content)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

    return Handler


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_catalog(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def sources(archive: Path) -> Iterator[dict[str, str]]:
    """The same archive as a folder, its root file, a static catalog over HTTP, and an API."""
    with serving_files(archive) as static, serving(archive) as api:
        yield {
            "folder": str(archive),
            "file": str(archive / "catalog.json"),
            "file url": (archive / "catalog.json").as_uri(),
            "static": f"{static}/catalog.json",
            "api": api,
        }


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_reading, "RETRIES", 0)


def found(source: str, **window: Any) -> list[Scene | Refusal]:
    return list(discover(source, contracts=CONTRACTS, **window))


def numbers(verdicts: list[Scene | Refusal]) -> list[int]:
    assert all(isinstance(verdict, Scene) for verdict in verdicts), verdicts
    return sorted(int(verdict.item_id[-2:]) for verdict in verdicts)


KINDS = ["folder", "file", "file url", "static", "api"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({}, range(COUNT)),
        ({"since": datetime(2025, 1, 4, tzinfo=UTC), "until": datetime(2025, 1, 6, tzinfo=UTC)}, [3, 4, 5]),
        ({"since": datetime(2025, 1, 11)}, [10, 11]),  # noqa: DTZ001 - a time without zone is UTC
        ({"until": datetime(2025, 1, 1, 23, 59, tzinfo=UTC)}, [0]),
        ({"bbox": (2.2, -5, 4.1, 5)}, [2, 3, 4]),
        ({"bbox": (2.6, 0, 2.9, 1)}, []),
        ({"bbox": (170, -5, 0.2, 5)}, [0]),
        ({"collections": ["odd"], "until": datetime(2025, 1, 5, tzinfo=UTC)}, [1, 3]),
    ],
)
def test_window(sources: dict[str, str], kind: str, window: dict[str, Any], expected: Any) -> None:
    assert numbers(found(sources[kind], **window)) == list(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_paging(sources: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PAGE_SIZE", 5)
    assert numbers(found(sources[kind])) == list(range(COUNT))


def test_local_hrefs_are_the_files_themselves(sources: dict[str, str], archive: Path) -> None:
    home = archive / "odd" / "scene-03"
    for kind in ("folder", "file url", "api"):
        scene = next(verdict for verdict in found(sources[kind]) if verdict.item_id == "scene-03")
        assert isinstance(scene, Scene)
        assert scene.pan.href == str(home / "pan-3.tif")
        assert scene.source_href == str(home / "scene-03.json")
        assert scene.collection == "odd"


def test_hrefs_of_a_remote_catalog_are_absolute(sources: dict[str, str]) -> None:
    base = sources["static"].removesuffix("/catalog.json")
    scene = next(verdict for verdict in found(sources["static"]) if verdict.item_id == "scene-03")
    assert isinstance(scene, Scene)
    assert scene.pan.href == f"{base}/odd/scene-03/pan-3.tif"
    assert {ref.href for ref in scene.ms} == {f"{base}/odd/scene-03/ms-3.tif"}
    assert scene.source_href == f"{base}/odd/scene-03/scene-03.json"


@pytest.mark.parametrize("kind", KINDS)
def test_licence_and_providers_come_from_the_collection(sources: dict[str, str], kind: str) -> None:
    scene = found(sources[kind], until=START)[0]
    assert isinstance(scene, Scene)
    assert scene.properties["license"] == "CC-BY-4.0"
    assert scene.properties["providers"][0]["name"] == "ACME"


def test_fingerprint_sees_a_replaced_local_file(tmp_path: Path) -> None:
    make_catalog(tmp_path, 2)
    before = {verdict.item_id: verdict.fingerprint for verdict in found(str(tmp_path))}  # type: ignore[union-attr]
    assert before == {verdict.item_id: verdict.fingerprint for verdict in found(str(tmp_path))}  # type: ignore[union-attr]
    (tmp_path / "odd" / "scene-01" / "ms-1.tif").write_bytes(b"something else")
    after = {verdict.item_id: verdict.fingerprint for verdict in found(str(tmp_path))}  # type: ignore[union-attr]
    assert after["scene-00"] == before["scene-00"]
    assert after["scene-01"] != before["scene-01"]


def break_items(folder: Path) -> None:
    """One item each that is no JSON, gone, no item, of an impossible date, and without assets."""
    (folder / "even" / "scene-00" / "scene-00.json").write_text("{ not json")
    (folder / "even" / "scene-02" / "scene-02.json").unlink()
    (folder / "even" / "scene-04" / "scene-04.json").write_text('{"type": "Feature", "id": "scene-04"}')
    for number, change in ((6, {"properties": {"datetime": "2025-13-45"}}), (8, {"assets": {}})):
        file = folder / "even" / f"scene-{number:02d}" / f"scene-{number:02d}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize("over_http", [False, True])
def test_broken_items_are_reported_and_the_rest_found(tmp_path: Path, *, over_http: bool) -> None:
    make_catalog(tmp_path)
    break_items(tmp_path)
    with serving_files(tmp_path) as url:
        verdicts = found(f"{url}/catalog.json" if over_http else str(tmp_path))
    scenes = [verdict for verdict in verdicts if isinstance(verdict, Scene)]
    refusals = [verdict for verdict in verdicts if isinstance(verdict, Refusal)]
    assert numbers(list(scenes)) == [1, 3, 5, 7, 9, 10, 11]
    assert len(refusals) == 5
    assert {refusal.code for refusal in refusals} == {"malformed"}
    assert {refusal.collection for refusal in refusals} == {"even"}
    assert all(f"scene-{n:02d}" in " ".join(r.item_id for r in refusals) for n in (0, 2, 4, 6, 8))


def test_items_are_chosen_by_more_ids_than_a_page_holds(tmp_path: Path) -> None:
    make_catalog(tmp_path, 4)
    ids = ("scene-03", *(f"unknown-{number}" for number in range(PAGE_SIZE)), "scene-02", "scene-03")
    assert numbers(found(str(tmp_path), ids=ids)) == [2, 3]
    with serving(tmp_path) as url:
        assert numbers(found(url, ids=ids)) == [2, 3]


def test_connections_end_with_the_search(tmp_path: Path) -> None:
    make_catalog(tmp_path, 2)
    with serving(tmp_path) as url:
        gc.disable()  # Python ends them when it looks for cycles, which may be a hundred searches later
        try:
            assert numbers(found(url)) == [0, 1]
            left = [
                one for one in psutil.Process().net_connections() if one.raddr and one.raddr.port == urlsplit(url).port
            ]
        finally:
            gc.enable()
    assert left == []


@pytest.mark.parametrize("kind", ["folder", "api"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"properties": {"eo:cloud_cover": float("nan")}}, "not JSON compliant"),
        ({"properties": {"gsd": float("-inf")}}, "not JSON compliant"),
        ({"properties": {"gsd": 10**400}}, "too large"),
        ({"properties": {"title": "half a pair: \ud83d"}}, "surrogates"),
        ({"assets": {"\ud83d": {"href": "./x.tif"}}}, "surrogates"),
        ({"collection": {"id": "even"}}, "not the id of one"),
        ({"properties": {"datetime": "0001-01-01T00:00:00+05:00"}}, "out of range"),
        ({"properties": {"datetime": "9999-12-31T23:59:59-05:00"}}, "out of range"),
    ],
)
def test_one_item_that_is_no_json_does_not_sink_the_search(
    tmp_path: Path, kind: str, change: dict[str, Any], problem: str
) -> None:
    make_catalog(tmp_path, 4)
    file = tmp_path / "even" / "scene-00" / "scene-00.json"
    body = json.loads(file.read_text())
    for name, value in change.items():
        body[name] = body[name] | value if isinstance(body[name], dict) else value
    file.write_text(json.dumps(body))
    if kind == "api":
        with serving(tmp_path) as url:
            assert numbers(found(url)) == [1, 2, 3]
        return
    verdicts = found(str(tmp_path))
    (refusal,) = [verdict for verdict in verdicts if isinstance(verdict, Refusal)]
    assert (refusal.code, refusal.collection) == ("malformed", "even")
    assert problem in refusal.reason
    assert numbers([verdict for verdict in verdicts if isinstance(verdict, Scene)]) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["folder", "static"])
@pytest.mark.parametrize("geometry", [5, {"type": "Blob"}, {"type": "Polygon", "coordinates": [[["a", 0]]]}])
def test_one_footprint_that_is_none_does_not_sink_a_search_by_area(tmp_path: Path, kind: str, geometry: Any) -> None:
    make_catalog(tmp_path, 4)
    file = tmp_path / "even" / "scene-00" / "scene-00.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"geometry": geometry}))
    with serving_files(tmp_path) as url:
        verdicts = found(f"{url}/catalog.json" if kind == "static" else str(tmp_path), bbox=(-1, -1, 2.2, 2))
    assert {verdict.item_id for verdict in verdicts} == {"scene-00", "scene-01", "scene-02"}


@pytest.mark.parametrize("kind", ["folder", "static"])
def test_broken_documents_of_one_name_are_several(tmp_path: Path, kind: str) -> None:
    make_catalog(tmp_path, 2)
    file = tmp_path / "even" / "collection.json"
    body = json.loads(file.read_text())
    for name in ("a", "b", "c"):
        (tmp_path / "even" / name).mkdir()
        (tmp_path / "even" / name / "item.json").write_text("{ not json")
        body["links"].append({"rel": "item", "href": f"./{name}/item.json"})
    file.write_text(json.dumps(body))
    with serving_files(tmp_path) as url:
        verdicts = found(f"{url}/catalog.json?token=a/secret" if kind == "static" else str(tmp_path))
    refused = sorted(verdict.item_id for verdict in verdicts if isinstance(verdict, Refusal))
    assert refused == ["even/a/item.json", "even/b/item.json", "even/c/item.json"]


def test_signatures_of_links_stay_out_of_reasons(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{ not json")
    (tmp_path / "odd.json").write_text('{"type": "Feature", "id": "odd", "properties": {}, "assets": {}, "links": 5}')
    hrefs = ["./bad.json?sig=SECRET", "./odd.json?sig=SECRET", "./gone.json?X-Amz-Signature=SECRET", "//[x?sig=SECRET"]
    links = [{"rel": "item", "href": href} for href in hrefs]
    root = {"type": "Catalog", "id": "c", "stac_version": "1.1.0", "description": "d", "links": links}
    (tmp_path / "catalog.json").write_text(json.dumps(root))
    with serving_files(tmp_path) as url:
        verdicts = found(f"{url}/catalog.json?token=SECRET")
        with pytest.raises(SourceError, match=r"bad\.json\?\.\.\.: ") as failure:
            found(f"{url}/bad.json?token=SECRET")
    assert len(verdicts) == 4
    assert "SECRET" not in f"{verdicts} {failure.value}"


NO_ADDRESSES = ["http://[bad", "//[", "s3://[x", "\x00.json", "\ud83d.json", "file:///%00.json"]


@pytest.mark.parametrize("kind", ["folder", "static"])
def test_links_that_are_no_addresses_do_not_sink_the_search(tmp_path: Path, kind: str) -> None:
    make_catalog(tmp_path, 2)
    file = tmp_path / "even" / "collection.json"
    body = json.loads(file.read_text())
    body["links"] += [{"rel": "item", "href": href} for href in NO_ADDRESSES]
    file.write_text(json.dumps(body))
    with serving_files(tmp_path) as url:
        verdicts = found(f"{url}/catalog.json?token=secret" if kind == "static" else str(tmp_path))
    assert numbers([verdict for verdict in verdicts if isinstance(verdict, Scene)]) == [0, 1]
    refusals = [verdict for verdict in verdicts if isinstance(verdict, Refusal)]
    assert {(refusal.code, refusal.collection) for refusal in refusals} == {("malformed", "even")}
    first = next(n for n, link in enumerate(body["links"]) if link["href"] == NO_ADDRESSES[0])
    assert {refusal.item_id for refusal in refusals} >= {f"even/collection.json#/links/{first + n}" for n in range(3)}
    followed = NO_ADDRESSES if kind == "folder" else [href for href in NO_ADDRESSES if not href.startswith("file:")]
    assert len(refusals) == len(followed)


@pytest.mark.parametrize("href", [*NO_ADDRESSES, "http://a:b:c/x.tif"])
def test_assets_that_are_no_addresses_do_not_sink_the_search(tmp_path: Path, href: str) -> None:
    make_catalog(tmp_path, 2)
    file = tmp_path / "even" / "scene-00" / "scene-00.json"
    body = json.loads(file.read_text())
    body["assets"]["pan"]["href"] = href.replace("json", "tif")
    file.write_text(json.dumps(body))
    with serving_files(tmp_path) as url:
        for source in (str(tmp_path), f"{url}/catalog.json"):
            verdicts = found(source)
            assert len(verdicts) == 2
            assert "scene-01" in {verdict.item_id for verdict in verdicts if isinstance(verdict, Scene)}


def test_collections_and_titles_that_are_no_json_do_not_sink_the_search(tmp_path: Path) -> None:
    make_catalog(tmp_path, 4)
    for path, change in (("even/collection.json", {"gsd": float("nan")}), ("catalog.json", {"title": "\ud83d"})):
        body = json.loads((tmp_path / path).read_text())
        (tmp_path / path).write_text(json.dumps(body | change))
    verdicts = found(str(tmp_path))
    (refusal,) = [verdict for verdict in verdicts if isinstance(verdict, Refusal)]
    assert "expected a valid STAC collection" in refusal.reason
    assert numbers([verdict for verdict in verdicts if isinstance(verdict, Scene)]) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["folder", "static"])
def test_times_of_change_beyond_the_calendar_are_none(tmp_path: Path, kind: str) -> None:
    make_catalog(tmp_path, 2)
    file = tmp_path / "even" / "scene-00" / "scene-00.json"
    body = json.loads(file.read_text())
    body["properties"]["updated"] = "0001-01-01T00:00:00+05:00"
    file.write_text(json.dumps(body))
    with serving_files(tmp_path) as url:
        source = f"{url}/catalog.json" if kind == "static" else str(tmp_path)
        assert numbers(found(source, changed_since=START)) == [0, 1]


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_parts_of_scenes_from_the_ends_of_the_calendar_wait(tmp_path: Path, moment: str) -> None:
    make_catalog(tmp_path, 2)
    file = tmp_path / "even" / "scene-00" / "scene-00.json"
    body = json.loads(file.read_text())
    body["properties"] |= {"platform": "cbers-4", "datetime": moment}
    body["assets"] = {"B1": body["assets"]["pan"]}
    file.write_text(json.dumps(body))
    (refusal,) = [verdict for verdict in found(str(tmp_path), collections=["even"]) if isinstance(verdict, Refusal)]
    assert refusal.waits


def test_a_catalog_that_links_in_circles(tmp_path: Path) -> None:
    make_catalog(tmp_path, 2)
    file = tmp_path / "odd" / "collection.json"
    body = json.loads(file.read_text())
    body["links"] += [{"rel": "child", "href": "../catalog.json"}, {"rel": "item", "href": "./scene-01/scene-01.json"}]
    file.write_text(json.dumps(body))
    assert len(list(crawl(str(tmp_path / "catalog.json")))) == 5


def test_a_server_that_gives_one_catalog_for_every_address() -> None:
    links = [{"rel": "child", "href": f"./{name}/catalog.json"} for name in "ab"]
    root = {"type": "Catalog", "id": "c", "stac_version": "1.1.0", "description": "d", "links": links}
    with http_server(answering(lambda *_: (200, root))) as url:
        verdicts = found(f"{url}/catalog.json")
    assert sorted(verdict.item_id for verdict in verdicts) == ["a/catalog.json", "b/catalog.json"]
    assert all("the same document as one that leads to it" in verdict.reason for verdict in verdicts)


def test_a_wide_catalog_is_walked_with_bounded_concurrency(tmp_path: Path) -> None:
    children = [{"rel": "child", "href": f"./{n}.json"} for n in range(300)]
    (tmp_path / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "root", "links": children}))
    running, most, lock = 0, 0, threading.Lock()

    def read(href: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            if href.endswith("catalog.json"):
                return Path(href).read_text()
            return json.dumps({"type": "Catalog", "id": href, "links": []})
        finally:
            with lock:
                running -= 1

    assert len(list(crawl(str(tmp_path / "catalog.json"), read, workers=3))) == 301
    assert most <= 3


def test_a_remote_catalog_cannot_reach_local_files(tmp_path: Path) -> None:
    secret = make_catalog(tmp_path / "local", 2)
    links = [{"rel": "child", "href": (secret / "catalog.json").as_uri()}]
    root = {"type": "Catalog", "id": "evil", "stac_version": "1.1.0", "description": "d", "links": links}
    with http_server(answering(lambda *_: (200, root))) as url:
        assert found(f"{url}/catalog.json") == []


class _Inflating(Quiet):
    """Answers with a megabyte of blanks and a catalog: packed to some kilobytes, or in chunks that name no length."""

    def do_GET(self) -> None:
        document = b" " * 2**20 + b'{"type": "Catalog", "id": "c", "description": "d", "links": []}'
        self.send_response(200)
        if self.path.startswith("/packed"):
            body = gzip.compress(document)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
        else:
            body = document
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked has had enough
            self.wfile.write(body)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize("path", ["packed.json", "endless.json"])
def test_documents_are_bounded_whatever_the_server_says(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    with http_server(_Inflating) as url:
        assert found(f"{url}/{path}") == []
        monkeypatch.setattr(catalog_reading, "MAX_DOCUMENT_BYTES", 2**20)
        with pytest.raises(SourceError, match="more than 1048576 bytes"):
            found(f"{url}/{path}")


class _Dripping(Quiet):
    """Answers with a byte now and then, as long as somebody listens."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(b" ")
                time.sleep(0.01)


@pytest.mark.usefixtures("no_retries")
def test_a_document_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_reading, "MAX_DOCUMENT_S", 0.1)
    with http_server(_Dripping) as url, pytest.raises(SourceError, match=r"has not ended after 0\.1 s"):
        found(f"{url}/catalog.json")


def test_documents_of_an_object_store_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    root = {"type": "Catalog", "id": "c", "stac_version": "1.1.0", "description": "d" * 2000, "links": []}
    fsspec.filesystem("memory").pipe({"/big/catalog.json": json.dumps(root).encode()})
    assert found("memory://big/catalog.json") == []
    monkeypatch.setattr(catalog_reading, "MAX_DOCUMENT_BYTES", 2000)
    with pytest.raises(SourceError, match="more than 2000 characters"):
        found("memory://big/catalog.json")


def test_a_catalog_in_an_object_store_may_link_by_https(tmp_path: Path) -> None:
    """As published catalogs do, whose links are absolute."""
    make_catalog(tmp_path, 2)
    with serving_files(tmp_path) as url:
        links = [{"rel": "child", "href": f"{url}/{name}/collection.json"} for name in ("even", "odd")]
        root = {"type": "Catalog", "id": "c", "stac_version": "1.1.0", "description": "d", "links": links}
        fsspec.filesystem("memory").pipe({"/published/catalog.json": json.dumps(root).encode()})
        allowed = found("memory://published/catalog.json", access=Access(hosts=("127.0.0.1",)))
        refused = found("memory://published/catalog.json")
    assert numbers(allowed) == [0, 1]
    assert [verdict.code for verdict in refused if isinstance(verdict, Refusal)] == ["malformed", "malformed"]
    assert all("private address" in verdict.reason for verdict in refused if isinstance(verdict, Refusal))


def test_a_catalog_in_an_object_store_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text(json.dumps(make_item(0).to_dict()))
    store, asked = fsspec.filesystem("memory"), []

    def answer(request: BaseHTTPRequestHandler, _: int) -> tuple[int, Any]:
        asked.append(request.path)
        return 200, make_item(0).to_dict()

    with http_server(answering(answer)) as url:
        local = f"file://{tmp_path}/private.json"
        hrefs = [
            f"{url}/item.json",
            f"local://{tmp_path}/private.json",
            f"simplecache::{local}",
            f"memory://x::{local}",
        ]
        links = [{"rel": "item", "href": href} for href in ("./scene.json", *hrefs)]
        root = {"type": "Catalog", "id": "c", "stac_version": "1.1.0", "description": "d", "links": links}
        store.pipe({"/c/catalog.json": json.dumps(root).encode()})
        store.pipe({"/c/scene.json": json.dumps(make_item(1).to_dict()).encode()})
        verdicts = found("memory://c/catalog.json")
    refusals = [verdict for verdict in verdicts if isinstance(verdict, Refusal) and verdict.code == "malformed"]
    assert len(refusals) == len(hrefs)
    assert {verdict.item_id for verdict in verdicts} - {refusal.item_id for refusal in refusals} == {"scene-01"}
    faults = ("leads out of memory://", "has the private address 127.0.0.1")
    assert all(any(fault in refusal.reason for fault in faults) for refusal in refusals)
    assert asked == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A catalog of one scene in s3://archive, and nothing in this process that opens it."""
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "credentials").write_text("[archive]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    forget = fsspec.get_filesystem_class("s3").clear_instance_cache  # connections that know of other environments
    forget()
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        writer = fsspec.filesystem("s3", key="a", secret="b", skip_instance_cache=True)
        links = [{"rel": "item", "href": "./scene.json"}]
        root = {"type": "Catalog", "id": "c", "stac_version": "1.1.0", "description": "d", "links": links}
        writer.makedirs("archive", exist_ok=True)
        for name, body in (("catalog.json", root), ("scene.json", make_item(1).to_dict())):
            writer.pipe_file(f"archive/{name}", json.dumps(body).encode(), ACL="public-read")
        yield
    finally:
        server.stop()
        forget()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    "profile",
    [
        {"kind": "anonymous"},
        {"kind": "aws", "aws_profile": "archive"},
        {"kind": "aws", "aws_profile": "archive", "aws_region": "eu-central-1", "requester_pays": True},
    ],
)
def test_a_catalog_in_a_bucket_is_read_as_its_profile_says(profile: dict[str, Any]) -> None:
    rules = Access(profiles=(HostProfile(match=("s3://archive",), **profile),), allow_spending=True)
    assert numbers(found("s3://archive/catalog.json", access=rules)) == [1]


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("profiles", "reason"),
    [
        ((), "credentials"),
        ((HostProfile(match=("s3://archive",), kind="aws", aws_profile="other"),), r"profile \(other\) could not be"),
        ((HostProfile(match=("s3://archive",), kind="aws", requester_pays=True),), "this run may not spend"),
    ],
)
def test_a_bucket_that_may_not_be_read_is_named(profiles: tuple[HostProfile, ...], reason: str) -> None:
    with pytest.raises(SourceError, match=rf"s3://archive/catalog\.json: .*{reason}"):
        found("s3://archive/catalog.json", access=Access(profiles=profiles))


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("./b/c.json", "/data/a/x.json", "/data/a/b/c.json"),
        ("../c.json", "/data/a/x.json", "/data/c.json"),
        ("/abs/c.json", "/data/x.json", "/abs/c.json"),
        ("file:///abs/c%20d.json", "/data/x.json", "/abs/c d.json"),
        ("https://h/c.json", "/data/x.json", "https://h/c.json"),
        ("../c.json", "https://h/a/b/x.json", "https://h/a/c.json"),
        ("../c.json", "s3://bucket/a/b/x.json", "s3://bucket/a/c.json"),
    ],
)
def test_absolute(href: str, base: str, expected: str) -> None:
    assert absolute(href, base) == expected


# --- sources that are none ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_retries")
def test_unreachable() -> None:
    with http_server(QuietFiles) as url:
        pass
    with pytest.raises(SourceError, match=rf"GET {url}.*expected a STAC API or catalog"):
        found(url)


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (200, "<html>hello</html>", "expected a STAC API"),
        (200, {"hello": "world"}, "found JSON that is no STAC catalog"),
        (200, [1, 2], "found JSON that is no STAC catalog"),
        (200, {"type": "Feature", "id": "x", "properties": {}, "assets": {}}, "no STAC catalog"),
        (404, "nope", "expected a STAC API"),
        (401, "log in first", "log in first"),
        (500, "sorry", "expected a STAC API"),
    ],
)
def test_not_stac(status: int, content: Any, message: str) -> None:
    with http_server(answering(lambda *_: (status, content))) as url, pytest.raises(SourceError, match=message):
        found(url)


@pytest.mark.parametrize("name", ["nowhere", "empty", "notes.txt"])
def test_local_paths_that_are_no_catalog(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SourceError, match=rf"{name}.*give .* catalog"):
        found(str(tmp_path / name))


@pytest.mark.parametrize("bbox", [(5, 0, 6, -1), (-181, 0, 6, 1), (0, 0, 6, float("nan"))])
def test_impossible_bbox(tmp_path: Path, bbox: tuple[float, ...]) -> None:
    with pytest.raises(SourceError, match="expected west, south, east, north"):
        found(str(tmp_path), bbox=bbox)


# --- APIs that misbehave --------------------------------------------------------------------------------------------


def landing(url: str, *, conforms: bool = True) -> dict[str, Any]:
    classes = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
    links = [{"rel": "self", "href": url}, {"rel": "root", "href": url}]
    links += [{"rel": "search", "href": f"{url}/search", "type": "application/geo+json", "method": "GET"}]
    body = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "d", "links": links}
    return body | {"conformsTo": classes if conforms else classes[:1]}


def feature(n: int, **change: Any) -> dict[str, Any]:
    item = make_item(n)
    item.set_self_href(f"https://example.com/items/scene-{n:02d}")
    return item.to_dict() | {"collection": "c"} | change


def scripted(pages: Callable[[int], tuple[int, Any]]) -> type[BaseHTTPRequestHandler]:
    """An API without POST search whose n-th search request is answered by ``pages(n)``; ``next`` links are added."""
    searches = iter(range(10_000))

    def answer(request: BaseHTTPRequestHandler, _: int) -> tuple[int, Any]:
        url = f"http://{request.headers['Host']}"
        if not request.path.startswith("/search"):
            return (200, landing(url)) if request.path == "/" else (404, "no")
        n = next(searches)
        status, features = pages(n)
        if not isinstance(features, list):
            return status, features
        following = [{"rel": "next", "href": f"{url}/search?page={n + 1}"}] if features else []
        return status, {"type": "FeatureCollection", "features": features, "links": following}

    return answering(answer)


def test_an_item_does_not_lead_to_a_script() -> None:
    links = [{"rel": "self", "href": " javascript://x/%0aalert(1)"}]
    with http_server(scripted({0: (200, [feature(0, links=links)]), 1: (200, [])}.__getitem__)) as url:
        (scene,) = found(url)
        assert isinstance(scene, Scene)
        assert scene.source_href.startswith(url)


def test_malformed_features_do_not_sink_their_page() -> None:
    broken = [feature(1) | {"id": "b1", "geometry": 5}, feature(2) | {"properties": None}, {"id": "b3"}, "text"]
    pages = {0: (200, [feature(0), *broken, feature(3)]), 1: (200, [])}
    with http_server(scripted(pages.__getitem__)) as url:
        verdicts = found(url)
    assert [verdict.item_id for verdict in verdicts if isinstance(verdict, Scene)] == ["scene-00", "scene-03"]
    assert len(verdicts) == 6
    assert all(verdict.code == "malformed" for verdict in verdicts if isinstance(verdict, Refusal))


@pytest.mark.parametrize(
    ("links", "usable"),
    [
        (5, False),
        ([{"rel": ["self"], "href": "x"}], True),
        ([{"rel": "self", "href": "http://[bad"}], True),
        ([{"rel": "self", "href": 5}], True),
    ],
)
def test_features_with_malformed_links_do_not_sink_their_page(links: Any, *, usable: bool) -> None:
    pages = {0: (200, [feature(0, links=links), feature(1)]), 1: (200, [])}
    with http_server(scripted(pages.__getitem__)) as url:
        verdicts = found(url)
    assert [verdict.item_id for verdict in verdicts] == ["scene-00", "scene-01"]
    assert [isinstance(verdict, Scene) for verdict in verdicts] == [usable, True]


def test_items_that_come_twice_are_one() -> None:
    pages = {0: (200, [feature(0), feature(1)]), 1: (200, [feature(1), feature(2)]), 2: (200, [])}
    with http_server(scripted(pages.__getitem__)) as url:
        assert numbers(found(url)) == [0, 1, 2]


def test_paging_that_never_ends_is_stopped() -> None:
    with (
        http_server(scripted(lambda _: (200, [feature(0)]))) as url,
        pytest.raises(SourceError, match="same page again"),
    ):
        found(url)


@pytest.mark.parametrize(
    "next_page",
    [
        {"href": "{other}/collections/c/items/a", "method": "DELETE"},
        {"href": "{other}/collections/c/items", "method": "POST", "body": {"id": "a"}},
        {"href": "{here}/moved", "method": "POST", "body": {"id": "a"}},
    ],
)
def test_a_source_cannot_have_other_catalogs_changed(next_page: dict[str, Any]) -> None:
    """They may be the one that results are sent to, for which there are credentials."""
    reached = list[str]()

    def answer(request: BaseHTTPRequestHandler, _: int) -> tuple[int, Any]:
        here = f"http://{request.headers['Host']}"
        if request.path == "/moved":
            return 307, f"{elsewhere}/collections/c/items"
        if not request.path.startswith("/search"):
            return 200, landing(here)
        link = {"rel": "next"} | next_page | {"href": next_page["href"].format(other=elsewhere, here=here)}
        return 200, {"type": "FeatureCollection", "features": [feature(0)], "links": [link]}

    with http_server(answering(lambda request, _: (200, reached.append(request.requestline)))) as there:
        elsewhere = there.replace("127.0.0.1", "localhost")
        with (
            http_server(answering(answer)) as url,
            pytest.raises(SourceError, match="which might change something there"),
        ):
            found(url, access=Access(allow_private=True))
    assert reached == []


def test_an_api_that_calls_itself_otherwise_is_searched_by_that_name() -> None:
    """Its gateway tells it the host of the first request only: further pages are at its own name, by POST."""

    def answer(request: BaseHTTPRequestHandler, _: int) -> tuple[int, Any]:
        here = f"http://{request.headers['Host']}"
        if not request.path.startswith("/search"):
            return (200, landing(here)) if request.path == "/" else (404, "no")
        n = int(request.path.partition("page=")[2] or 0)
        own = here.replace("127.0.0.1", "user:secret@localhost")
        links = [{"rel": "next", "href": f"{own}/search?page={n + 1}", "method": "POST"}] if n < 2 else []
        return 200, {"type": "FeatureCollection", "features": [feature(n)], "links": links}

    with http_server(answering(answer)) as url:
        with pytest.raises(SourceError, match=r"to localhost:\d+ by POST.* landing page at localhost:\d+ as"):
            found(url, access=Access(allow_private=True))
        assert numbers(found(url.replace("127.0.0.1", "localhost"))) == [0, 1, 2]


def test_pages_without_items_are_no_end() -> None:
    def answer(request: BaseHTTPRequestHandler, _: int) -> tuple[int, Any]:
        url = f"http://{request.headers['Host']}"
        if not request.path.startswith("/search"):
            return (200, landing(url)) if request.path == "/" else (404, "no")
        n = int(request.path.partition("page=")[2] or 0)
        features = [feature(n)] if n in (0, 3) else []
        link = {"rel": "next", "href": f"{url}/search?page={n + 1}"}
        return 200, {"type": "FeatureCollection", "features": features, "links": [link]}

    with http_server(answering(answer)) as url:
        assert numbers(found(url)) == [0, 3], "and empty pages without end are one"


@pytest.mark.usefixtures("no_retries")
def test_a_search_that_breaks_off_is_an_error_not_an_end() -> None:
    pages = {0: (200, [feature(0)]), 1: (500, "database gone")}
    with http_server(scripted(pages.__getitem__)) as url:
        verdicts = discover(url, contracts=CONTRACTS)
        assert next(verdicts).item_id == "scene-00"
        with pytest.raises(SourceError, match=r"broke off.*database gone"):
            list(verdicts)


def test_short_trouble_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_reading, "RETRIES", 2)
    pages = {0: (503, "busy"), 1: (200, [feature(0)]), 2: (429, "slow down"), 3: (200, [])}
    with http_server(scripted(pages.__getitem__)) as url:
        assert numbers(found(url)) == [0]


class _Closed(Quiet):
    """Asks to come back in six hours."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "21600")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_server_is_not_waited_for_as_long_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_reading, "RETRIES", 1)
    monkeypatch.setattr(catalog_reading, "MAX_RETRY_AFTER_S", 0.01)
    with http_server(_Closed) as url, pytest.raises(SourceError, match="503"):
        found(f"{url}/catalog.json")


def test_an_api_without_item_search() -> None:
    def answer(request: BaseHTTPRequestHandler, _: int) -> tuple[int, Any]:
        return 200, landing(f"http://{request.headers['Host']}", conforms=False)

    with http_server(answering(answer)) as url, pytest.raises(SourceError, match="cannot be searched"):
        found(url)


# --- single documents, and the sample archive -----------------------------------------------------------------------


def test_judging_one_document(shared_data: Path, tmp_path: Path) -> None:
    file = next((shared_data / "stac" / "maxar-opendata").glob("item_*.json"))
    copy = shutil.copy(file, tmp_path / "item.json")
    verdict = judge_document(json.loads(Path(copy).read_text()), str(copy), CONTRACTS)
    assert isinstance(verdict, Scene)
    assert verdict.pan.href == str(tmp_path / "103001010A705C00-pan.tif")
    bad = judge_document({"type": "Feature", "id": "x"}, "/x.json", CONTRACTS)
    assert isinstance(bad, Refusal)
    assert (bad.code, bad.item_id) == ("malformed", "x")


def test_real_items_through_a_folder_keep_their_verdicts(shared_data: Path, tmp_path: Path) -> None:
    """All real items in one served folder: what recognition says of each survives index, API and client."""
    documents = [json.loads(file.read_text()) for file in sorted((shared_data / "stac").rglob("*.json"))]
    items = [document for document in documents if document.get("type") == "Feature"]
    served = {verdict.item_id: verdict for verdict in found(write_catalog(tmp_path, items))}
    alone = [judge_document(item, str(tmp_path / "x.json"), CONTRACTS) for item in items]
    for verdict in alone:
        other = served[verdict.item_id]
        assert type(other) is type(verdict), (verdict, other)
        if isinstance(verdict, Refusal) and isinstance(other, Refusal):
            assert verdict.code == other.code
