"""The embedded STAC API, asked through pystac-client over loopback, against answers worked out from the items."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pystac
import pytest
import requests
from pystac_client import Client

from pancrafter import catalog_index, serve
from pancrafter.catalog_index import BadQueryError, CatalogIndex, Query, load_index
from pancrafter.crawl import Document, Fault
from pancrafter.errors import SourceError
from pancrafter.serve import serving

COUNT = 45
START = datetime(2025, 1, 1, tzinfo=UTC)


def make_item(n: int) -> pystac.Item:
    west, south = -20.0 + n, 10.0 + n / 2
    corners = [[west, south], [west + 1, south], [west + 1, south + 0.5], [west, south + 0.5], [west, south]]
    item = pystac.Item(
        f"scene-{n:03d}",
        {"type": "Polygon", "coordinates": [corners]},
        [west, south, west + 1, south + 0.5],
        START + timedelta(days=n),
        {"eo:cloud_cover": (n * 7) % 100, "platform": "worldview-2"} | ({"gsd": 0.5} if n % 2 else {}),
    )
    item.add_asset("pan", pystac.Asset(f"./scene-{n:03d}-pan.tif", media_type=pystac.MediaType.COG, roles=["data"]))
    return item


def make_catalog(folder: Path, count: int = COUNT, *, collections: int = 2) -> Path:
    catalog = pystac.Catalog("test-catalog", "A catalog for tests.", title="Tests")
    groups: dict[int, list[pystac.Item]] = {}
    for n in range(count):
        groups.setdefault(n % collections, []).append(make_item(n))
    for group, items in groups.items():
        collection = pystac.Collection(f"c{group}", "Half of it.", pystac.Extent.from_items(items), license="CC0-1.0")
        collection.add_items(items)
        catalog.add_child(collection)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder


@pytest.fixture(scope="module")
def catalog_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_catalog(tmp_path_factory.mktemp("catalog"))


@pytest.fixture(scope="module")
def url(catalog_dir: Path) -> Iterator[str]:
    with serving(catalog_dir) as base:
        yield base


@pytest.fixture
def client(url: str) -> Client:
    return Client.open(url)


def ids(client: Client, **search: Any) -> list[str]:
    return [item.id for item in client.search(**search).items()]


def expected(*numbers: int) -> set[str]:
    return {f"scene-{n:03d}" for n in numbers}


# --- the protocol ---------------------------------------------------------------------------------------------------


def test_landing_page_and_conformance(url: str) -> None:
    landing = requests.get(url, timeout=10).json()
    rels = {link["rel"] for link in landing["links"]}
    assert landing["title"] == "Tests"
    assert {"self", "root", "data", "conformance", "search", "service-desc", "service-doc"} <= rels
    conforms = requests.get(f"{url}/conformance", timeout=10).json()["conformsTo"]
    for wanted in ("/core", "/item-search", "/ogcapi-features", "item-search#sort", "item-search#filter"):
        assert any(name.endswith(wanted) for name in conforms), wanted
    assert any("cql2" in name for name in conforms)
    assert landing["conformsTo"] == conforms


def test_links_of_the_landing_page_lead_somewhere(url: str) -> None:
    for link in requests.get(url, timeout=10).json()["links"]:
        if link.get("method", "GET") == "GET":
            assert requests.get(link["href"], timeout=10).status_code == 200, link


def test_collections_and_items_by_address(url: str) -> None:
    collections = requests.get(f"{url}/collections", timeout=10).json()
    assert [body["id"] for body in collections["collections"]] == ["c0", "c1"]
    collection = requests.get(f"{url}/collections/c1", timeout=10).json()
    items_link = next(link["href"] for link in collection["links"] if link["rel"] == "items")
    page = requests.get(items_link, params={"limit": 100}, timeout=10).json()
    assert {feature["id"] for feature in page["features"]} == expected(*range(1, COUNT, 2))
    self_link = next(link["href"] for link in page["features"][0]["links"] if link["rel"] == "self")
    assert requests.get(self_link, timeout=10).json()["id"] == page["features"][0]["id"]


def test_served_items_are_valid_core_stac(client: Client, url: str) -> None:
    item = next(client.search(max_items=1).items())
    again = pystac.Item.from_dict(item.to_dict(), migrate=False)
    assert again.to_dict()["stac_version"] == item.to_dict()["stac_version"]
    rels = [link.rel for link in item.links]
    assert len({rel for rel in rels if rel in ("self", "root", "parent", "collection", "canonical")}) == 5
    assert rels.count("self") == 1
    pystac.Collection.from_dict(requests.get(f"{url}/collections/c0", timeout=10).json())


def test_asset_hrefs_are_file_urls_that_clients_leave_alone(client: Client, catalog_dir: Path) -> None:
    item = next(client.search(ids=["scene-000"]).items())
    path = catalog_dir / "c0" / "scene-000" / "scene-000-pan.tif"
    assert item.assets["pan"].href == path.as_uri()
    assert item.assets["pan"].get_absolute_href() == path.as_uri()


def test_links_to_other_files_are_file_urls_that_clients_leave_alone(tmp_path: Path) -> None:
    make_catalog(tmp_path, 1, collections=1)
    documents = tmp_path / "c0" / "scene-000" / "scene-000.json", tmp_path / "c0" / "collection.json"
    schema = tmp_path / "schemas" / "a schema.json"
    for document in documents:
        body = json.loads(document.read_text())
        link = {"rel": "describedby", "href": os.path.relpath(schema, document.parent)}
        document.write_text(json.dumps(body | {"links": [*body["links"], link]}))
    with serving(tmp_path) as url:
        client = Client.open(url)
        for served in (next(client.search().items()), client.get_collection("c0")):
            assert served.get_single_link("describedby").get_absolute_href() == schema.as_uri()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/collections/nope", 404),
        ("/collections/nope/items", 404),
        ("/collections/nope/queryables", 404),
        ("/collections/c0/items/nope", 404),
        ("/search?filter=this is not cql2 (", 400),
        ("/search?filter=" + "(" * 3000 + "gsd=1" + ")" * 3000, 400),
        ("/search?filter=" + "(" * 40, 400),
        ("/search?filter=gsd=" + "2^" * 5000 + "2", 400),
        ("/search?token=somewhere", 400),
        ("/search?bbox=1,2,3", 400),
        ("/search?datetime=yesterday", 400),
        ("/search?sortby=bad'field", 400),
        ("/search?sortby=" + "gsd," * 3000 + "gsd", 400),
        ("/search?intersects={}", 400),
        ('/search?intersects={"type":"FeatureCollection","features":[]}', 400),
        ('/search?intersects={"type":"LineString","coordinates":[[0,0]]}', 400),
        ('/search?intersects={"type":"Point","coordinates":[0,0,0,0]}', 400),
        ('/search?intersects={"type":"Polygon","coordinates":[]}', 400),
        ("/search?intersects=" + "[" * 3000, 400),
        ("/search?bbox=NaN,0,1,1", 400),
        ("/search?bbox=0,0,1e400,1", 400),
        ('/search?bbox=0,0,1,1&intersects={"type":"Point","coordinates":[0,0]}', 400),
        ("/search?token=²", 400),
        ("/collections/c0/items?token=next:²", 400),
        ("/search?datetime=0001-01-01T00:00:00%2B05:00/..", 400),
        ("/search?datetime=../9999-12-31T23:59:59-05:00", 400),
    ],
)
def test_wrong_questions_get_client_errors(url: str, path: str, status: int) -> None:
    assert requests.get(url + path, timeout=10).status_code == status


@pytest.mark.parametrize("body", [[], 5, {"token": "²"}, {"datetime": "0001-01-01T00:00:00+05:00/.."}])
def test_wrong_bodies_get_client_errors(url: str, body: Any) -> None:
    assert requests.post(f"{url}/search", json=body, timeout=10).status_code == 400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"bbox": [0, 0, 1e400, 1]}', "the body is not JSON: Out of range float"),
        ('{"limit": NaN}', "the body is not JSON: Out of range float"),
        ('{"bbox": [' + "9" * 400 + ", 0, 1, 1]}", "the body is not JSON: int too large"),
        ('{"ids": ["\\ud800"]}', "the body is not JSON: 'utf-8' codec"),
        ('{"filter": ' + '{"op": "not", "args": [' * 2000 + "true" + "]}" * 2000 + "}", "maximum recursion depth"),
        ('{"bbox": []}', "bbox has 0 numbers, expected 4 or 6"),
        ('{"limit": 0}', '"limit is 0: Input should be greater than 0"'),
        ('{"ids": [1, 2]}', '"ids.0 is 1: Input should be a valid string"'),
    ],
)
def test_a_body_that_cannot_be_used_is_told_why(url: str, body: str, reason: str) -> None:
    headers = {"content-type": "application/json"}
    answer = requests.post(f"{url}/search", data=body, headers=headers, timeout=10)
    assert answer.status_code == 400
    assert reason in answer.text


def test_filters_are_nested_as_deep_as_json_can_be_read(url: str) -> None:
    body = '{"limit": 1, "filter": ' + '{"op": "not", "args": [' * 250 + "true" + "]}" * 250 + "}"
    answer = requests.post(f"{url}/search", data=body, headers={"content-type": "application/json"}, timeout=10)
    assert len(answer.json()["features"]) == 1


def test_a_long_body_is_not_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_BODY_BYTES", 20)
    assert requests.post(f"{url}/search", json={"ids": ["scene0"]}, timeout=10).ok
    answer = requests.post(f"{url}/search", json={"ids": ["scene-001"]}, timeout=10)
    assert answer.status_code == 413
    assert "the body has 22 bytes, expected at most 20" in answer.text


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_read_only(url: str, method: str) -> None:
    answer = requests.request(method, f"{url}/collections/c0/items", json={}, timeout=10)
    assert answer.status_code == 405


# --- search ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("limit", [4, 15, 45, 100])
def test_paging_gives_each_item_once_newest_first(client: Client, method: str, limit: int) -> None:
    search = client.search(method=method, limit=limit)
    found = [item.id for item in search.items()]
    assert found == [f"scene-{n:03d}" for n in reversed(range(COUNT))]
    assert search.matched() == COUNT


def test_many_ids_are_found_at_once(catalog_dir: Path) -> None:
    wanted = [f"scene-{n}" for n in range(300_000)] + ["scene-007", "scene-044"]
    page = load_index(catalog_dir).search(Query(ids=wanted, collections=["c0", "c1", *wanted]))
    assert [item["id"] for item in page.items] == ["scene-044", "scene-007"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_are_no_larger_than_memory_allows(client: Client, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_PAGE", 20)
    pages = [[item.id for item in page] for page in client.search(method=method, limit=10_000).pages()]
    assert [len(page) for page in pages] == [20, 20, 5]
    assert [name for page in pages for name in page] == [f"scene-{n:03d}" for n in reversed(range(COUNT))]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("search", "numbers"),
    [
        ({"datetime": "2025-01-03/2025-01-05"}, [2, 3, 4]),
        ({"datetime": "../2025-01-02T00:00:00Z"}, [0, 1]),
        ({"datetime": "2025-02-13T12:00:00Z/.."}, [44]),
        ({"datetime": "2025-01-04T00:00:00Z"}, [3]),
        ({"bbox": [-18.5, 0, -17.5, 90]}, [1, 2]),
        ({"bbox": [-180, -90, 180, 10.2]}, [0]),
        ({"bbox": [170, -90, -19.5, 90]}, [0]),
        ({"intersects": {"type": "Point", "coordinates": [-9.5, 15.2]}}, [10]),
        ({"ids": ["scene-003", "scene-007", "other"]}, [3, 7]),
        ({"collections": ["c1"], "datetime": "2025-01-03/2025-01-05"}, [3]),
    ],
)
def test_search(client: Client, method: str, search: dict[str, Any], numbers: list[int]) -> None:
    assert set(ids(client, method=method, limit=4, **search)) == expected(*numbers)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("eo:cloud_cover < 15", [0, 1, 2, 15, 16, 29, 30, 43, 44]),
        ("gsd = 0.5 AND eo:cloud_cover >= 98", []),
        ("gsd = 0.5 AND eo:cloud_cover >= 91", [13]),
        ("id = 'scene-007' OR collection = 'nope'", [7]),
        ("datetime >= TIMESTAMP('2025-02-13T00:00:00Z')", [43, 44]),
    ],
)
def test_cql2_text(client: Client, text: str, numbers: list[int]) -> None:
    """By GET: pystac-client 0.9 cannot post text."""
    assert set(ids(client, method="GET", limit=4, filter=text, filter_lang="cql2-text")) == expected(*numbers)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cql2_json(client: Client, method: str) -> None:
    clauses = [
        {"op": "<", "args": [{"property": "eo:cloud_cover"}, 15]},
        {"op": "=", "args": [{"property": "platform"}, "worldview-2"]},
        {"op": ">", "args": [{"property": "gsd"}, 0.1]},
    ]
    found = ids(client, method=method, filter={"op": "and", "args": clauses}, filter_lang="cql2-json", limit=2)
    assert set(found) == expected(1, 15, 29, 43)
    assert len(found) == 4


def test_queryables_are_the_properties_of_the_items(client: Client, url: str) -> None:
    addressed = {"id", "collection", "geometry"}
    everywhere = client.get_queryables()
    assert set(everywhere["properties"]) == addressed | {"datetime", "eo:cloud_cover", "platform"}
    assert everywhere["properties"]["datetime"] == {"type": "string", "format": "date-time"}
    assert everywhere["properties"]["eo:cloud_cover"] == {"type": "number"}
    assert everywhere["$id"] == f"{url}/queryables"
    of_one = client.get_collection("c1").get_queryables()
    assert set(of_one["properties"]) == set(everywhere["properties"]) | {"gsd"}
    assert client.get_merged_queryables(["c0", "c1"])["properties"] == of_one["properties"]


def test_queryables_of_mixed_and_of_no_values(tmp_path: Path) -> None:
    make_catalog(tmp_path, 2, collections=1)
    for number, values in ((0, {"a": 1, "b": True, "c": None}), (1, {"a": "x", "b": False, "c": None})):
        file = tmp_path / "c0" / f"scene-00{number}" / f"scene-00{number}.json"
        body = json.loads(file.read_text())
        file.write_text(json.dumps(body | {"properties": body["properties"] | values}))
    found = load_index(tmp_path).queryables()
    assert {name: found[name] for name in "abc"} == {
        "a": {"type": ["number", "string"]},
        "b": {"type": "boolean"},
        "c": {},
    }


def test_an_l_shaped_footprint_is_not_its_bounding_box(tmp_path: Path) -> None:
    catalog = pystac.Catalog("c", "d")
    corner = [[0, 0], [10, 0], [10, 1], [1, 1], [1, 10], [0, 10], [0, 0]]
    catalog.add_item(pystac.Item("l", {"type": "Polygon", "coordinates": [corner]}, [0, 0, 10, 10], START, {}))
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    index = load_index(tmp_path)
    assert index.search(Query(bbox=(5, 5, 9, 9))).items == []
    assert [item["id"] for item in index.search(Query(bbox=(5, 0.5, 9, 9))).items] == ["l"]


def test_items_across_the_antimeridian(tmp_path: Path) -> None:
    catalog = pystac.Catalog("c", "d")
    halves = [
        [[[179, 0], [180, 0], [180, 1], [179, 1], [179, 0]]],
        [[[-180, 0], [-179, 0], [-179, 1], [-180, 1], [-180, 0]]],
    ]
    catalog.add_item(pystac.Item("fiji", {"type": "MultiPolygon", "coordinates": halves}, [179, 0, -179, 1], START, {}))
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    index = load_index(tmp_path)
    for bbox, hits in [
        ((179.5, 0, 179.9, 1), 1),
        ((-179.9, 0, -179.5, 1), 1),
        ((0, 0, 10, 1), 0),
        ((178, 0, -178, 1), 1),
    ]:
        assert len(index.search(Query(bbox=bbox)).items) == hits, bbox


@pytest.mark.parametrize(
    ("field", "key"),
    [("id", lambda n: n), ("properties.eo:cloud_cover", lambda n: (n * 7) % 100), ("datetime", lambda n: n)],
)
@pytest.mark.parametrize("sign", ["-", "+"])
def test_sort(client: Client, field: str, key: Any, sign: str) -> None:
    order = sorted(range(COUNT), key=key, reverse=sign == "-")
    assert ids(client, sortby=sign + field, limit=10) == [f"scene-{n:03d}" for n in order]


def test_matched_is_exact_under_filters(catalog_dir: Path) -> None:
    page = load_index(catalog_dir).search(Query(cql2="eo:cloud_cover < 15", limit=2, offset=2))
    assert (len(page.items), page.matched, page.next_offset) == (2, 9, 4)


def test_counting_stops_where_it_would_cost(catalog_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_index, "COUNT_LIMIT", 10)
    page = load_index(catalog_dir).search(Query(cql2="eo:cloud_cover < 90", limit=2))
    assert (len(page.items), page.matched, page.next_offset) == (2, None, 2)


@pytest.mark.parametrize(
    "asked",
    [{}, {"bbox": (-180, -90, 180, 90)}, {"sort": [("properties.eo:cloud_cover", "desc")]}, {"cql2": "gsd = 0.5"}],
)
def test_a_page_goes_on_where_the_one_before_it_ended(
    catalog_dir: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_index, "COUNT_LIMIT", 10)
    index, steps, offset = load_index(catalog_dir), list[int](), 0
    whole = [item["id"] for item in load_index(catalog_dir).search(Query(limit=COUNT, **asked)).items]
    index._db.set_progress_handler(lambda: steps.append(0), 1)
    found, costs = list[str](), list[int]()
    while offset is not None:
        steps.clear()
        page = index.search(Query(limit=5, offset=offset, **asked))
        found += [item["id"] for item in page.items]
        costs.append(len(steps))
        offset = page.next_offset
    assert found == whole
    assert costs[-1] < costs[0] / 2


def test_searches_in_turns_keep_their_places(catalog_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_index, "KEPT_SEARCHES", 1)
    index = load_index(catalog_dir)
    for offset in (30, 0, 40):
        for collection in ("c0", "c1"):
            page = index.search(Query(collections=[collection], limit=2, offset=offset // 2))
            newest = COUNT - 1 - offset - (collection == "c1")
            assert [item["id"] for item in page.items] == [f"scene-{newest:03d}", f"scene-{newest - 2:03d}"]


def test_a_search_that_failed_begins_again(catalog_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, calls, genuine = load_index(catalog_dir), iter(range(COUNT + 10)), catalog_index._meets

    def meets(*asked: Any) -> bool:
        if next(calls) == 3:
            raise MemoryError
        return genuine(*asked)

    monkeypatch.setattr(catalog_index, "_meets", meets)
    everything = Query(bbox=(-180, -90, 180, 90), limit=COUNT)
    with pytest.raises(MemoryError):
        index.search(everything)
    assert len(index.search(everything).items) == COUNT


def test_questions_are_answered_while_a_search_looks_at_items(
    catalog_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, genuine, answers = load_index(catalog_dir), catalog_index._meets, list[int]()
    with ThreadPoolExecutor(1) as another:

        def meets(*asked: Any) -> bool:
            answers.append(len(another.submit(index.search, Query(ids=["scene-001"])).result(timeout=10).items))
            return genuine(*asked)

        monkeypatch.setattr(catalog_index, "_meets", meets)
        assert len(index.search(Query(bbox=(-180, -90, 180, 90), limit=COUNT)).items) == COUNT
    assert answers == [1] * COUNT


def test_an_index_is_closed_between_questions(catalog_dir: Path) -> None:
    """One that is asked while its database is closed ends the whole process: who interrupts a search would see that."""
    index = load_index(catalog_dir)
    with ThreadPoolExecutor(1) as another:
        with index._lock:
            closing = another.submit(index.close)
            assert not wait([closing], timeout=0.1).done
            assert index.collections()
        closing.result(timeout=10)


def test_an_item_that_changes_while_a_search_looks_at_it_is_found(tmp_path: Path, reads: list[str]) -> None:
    make_catalog(tmp_path, 6, collections=1)
    index, genuine, looked = load_index(tmp_path), catalog_index._meets, list[int]()

    def meets(*asked: Any) -> bool:
        looked.append(0)
        if len(looked) == 2:
            change_item(tmp_path, 1, stac_extensions=["changed"])
            index.refresh()
        return genuine(*asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog_index, "_meets", meets)
        items = index.search(Query(bbox=(-180, -90, 180, 90))).items
    assert {item["id"] for item in items} == expected(*range(6))
    assert items[-2]["stac_extensions"] == ["changed"]
    assert "scene-001.json" in reads


def test_parentheses_in_texts_are_not_nested(catalog_dir: Path) -> None:
    text = "(((((((((''((("
    assert load_index(catalog_dir).search(Query(cql2=f"gsd > 0 and platform <> '{text}'")).items
    with pytest.raises(BadQueryError, match=r"longer than 2000 characters or nested more than 8 deep"):
        load_index(catalog_dir).search(Query(cql2=f"platform = '))))' and {'(' * 9}gsd=1{')' * 9}"))


@pytest.mark.parametrize("asked", ["gsd > 0 or nearby(gsd) = 1", {"op": "nearby", "args": [{"property": "gsd"}]}])
def test_a_function_that_cql2_has_not_is_no_empty_answer(catalog_dir: Path, asked: Any) -> None:
    with pytest.raises(BadQueryError, match="the filter calls nearby, expected operators and functions of CQL2 only"):
        load_index(catalog_dir).search(Query(cql2=asked))


def test_bad_filter_says_so(catalog_dir: Path) -> None:
    with pytest.raises(BadQueryError, match="not valid CQL2"):
        load_index(catalog_dir).search(Query(cql2="((("))


# --- files ----------------------------------------------------------------------------------------------------------


def test_malformed_files_are_reported_and_the_rest_served(tmp_path: Path) -> None:
    make_catalog(tmp_path, 8, collections=1)
    item = tmp_path / "c0" / "scene-00{}" / "scene-00{}.json"
    Path(str(item).format(0, 0)).write_text("{ not json")
    Path(str(item).format(1, 1)).write_text('{"type": "Feature", "id": "x"}')
    Path(str(item).format(2, 2)).unlink()
    for number, change in [(3, {"properties": {}}), (4, {"assets": {"pan": {}}}), (5, {"bbox": [1, 2]})]:
        file = Path(str(item).format(number, number))
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    twin = Path(str(item).format(6, 6))
    twin.write_text(json.dumps(json.loads(twin.read_text()) | {"id": "scene-007"}))
    index = load_index(tmp_path)
    assert [item["id"] for item in index.search(Query()).items] == ["scene-007"]
    assert len(index.faults) == 7
    assert all(fault.collection_id == "c0" and fault.href in fault.reason for fault in index.faults)
    assert any("has the id scene-007 of" in fault.reason for fault in index.faults)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ({"updated": "2025-03-01T00:00:00Z"}, {"updated": "2025-03-01T01:00:00+02:00"}, "c0"),
        ({"updated": "2025-03-01T00:00:00Z"}, {"updated": "2025-03-02T00:00:00Z"}, "redelivered"),
        ({}, {"created": "2025-03-02T00:00:00Z"}, "redelivered"),
        ({"updated": "last week"}, {}, "c0"),
    ],
)
def test_of_two_deliveries_of_an_item_the_newer_one_is_served(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], kept: str
) -> None:
    make_catalog(tmp_path, 2, collections=1)
    first, again = tmp_path / "c0" / "scene-001" / "scene-001.json", tmp_path / "redelivered" / "scene-001.json"
    again.parent.mkdir()
    body = json.loads(first.read_text())
    for file, changes in ((first, old), (again, new)):
        file.write_text(json.dumps(body | {"properties": body["properties"] | changes}))
    collection = tmp_path / "c0" / "collection.json"
    document = json.loads(collection.read_text())
    document["links"].insert(0, {"rel": "item", "href": "../redelivered/scene-001.json"})
    collection.write_text(json.dumps(document))
    index = load_index(tmp_path)
    served, left_out = (first, again) if kept == "c0" else (again, first)
    (item,) = index.search(Query(ids=["scene-001"], bbox=(-180, -90, 180, 90))).items
    assert item["links"][-1] == {"rel": "canonical", "type": "application/json", "href": served.as_uri()}
    ((href, reason),) = [(fault.href, fault.reason) for fault in index.faults]
    assert href == str(left_out)
    assert f"has the id scene-001 of {served}" in reason


def test_items_outside_collections_get_one(tmp_path: Path) -> None:
    catalog = pystac.Catalog("c", "d")
    catalog.add_item(make_item(1))
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    index = load_index(tmp_path)
    assert [body["id"] for body in index.collections()] == ["uncollected"]
    assert index.item("uncollected", "scene-001") is not None
    pystac.Collection.from_dict(index.collections()[0])


@pytest.mark.parametrize(
    ("collection", "item"),
    [
        ("c0", "2025/05/a"),
        ("by/year", "a b/%2F?"),
        ("by%2Fyear", "a%2Fb"),
        ("c0", "a%b"),
        ("by/year", "a%2Fb"),
        ("by%2Fyear", "a/b"),
    ],
)
def test_names_with_slashes_are_reached_by_their_own_links(tmp_path: Path, collection: str, item: str) -> None:
    make_catalog(tmp_path, 1, collections=1)
    (document,) = (tmp_path / "c0").glob("*/*.json")
    parent = tmp_path / "c0" / "collection.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"id": item, "collection": collection}))
    parent.write_text(json.dumps(json.loads(parent.read_text()) | {"id": collection}))
    with serving(tmp_path) as url:
        (found,) = Client.open(url).search().items()
        links = {link.rel: link.href for link in found.links}
        assert requests.get(links["self"], timeout=10).json()["id"] == item
        owner = requests.get(links["collection"], timeout=10).json()
        assert owner["id"] == collection
        of_owner = {link["rel"]: link["href"] for link in owner["links"]}
        assert [one["id"] for one in requests.get(of_owner["items"], timeout=10).json()["features"]] == [item]
        assert "eo:cloud_cover" in requests.get(of_owner[serve.QUERYABLES], timeout=10).json()["properties"]


def test_changed_files_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_index, "RECHECK_S", 0.0)
    make_catalog(tmp_path, 3, collections=1)
    with serving(tmp_path) as url:
        client = Client.open(url)
        assert len(ids(client)) == 3
        make_catalog(tmp_path, 4, collections=1)
        os.utime(tmp_path / "c0" / "collection.json")
        assert set(ids(client)) == expected(0, 1, 2, 3)


@pytest.mark.parametrize(
    ("search", "change"),
    [
        ({}, "added"),
        ({"bbox": [-180, -90, 180, 90]}, "added"),
        ({"sortby": "-properties.eo:cloud_cover"}, "added"),
        ({}, "last one changed"),
        ({"bbox": [-180, -90, 180, 90]}, "last one gone"),
    ],
)
@pytest.mark.usefixtures("reads")
def test_pages_give_each_item_once_while_the_catalog_changes(
    tmp_path: Path, search: dict[str, Any], change: str
) -> None:
    make_catalog(tmp_path, 9, collections=1)
    pages = list[list[str]]()
    with serving(tmp_path) as url:
        for page in Client.open(url).search(limit=3, **search).pages():
            pages.append([item.id for item in page])
            (last,) = [int(name[-3:]) for name in pages[-1][-1:]]
            if change == "added" and len(pages) < 3:
                make_catalog(tmp_path, 9 + len(pages), collections=1)
            elif change == "last one changed":
                change_item(tmp_path, last, stac_extensions=["changed"])
            elif change == "last one gone":
                (tmp_path / "c0" / f"scene-{last:03d}" / f"scene-{last:03d}.json").unlink()
    found = [name for names in pages for name in names]
    assert expected(*range(9)) <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.usefixtures("reads")
def test_an_item_that_moves_takes_no_others_along(tmp_path: Path) -> None:
    """Sorted by the time of their change, one that changes goes to the end: the next page must not begin there."""
    make_catalog(tmp_path, 9, collections=1)
    found = list[str]()
    with serving(tmp_path) as url:
        for page in Client.open(url).search(limit=3, sortby="+properties.updated,+id").pages():
            if not found:
                moved = make_item(2).to_dict()["properties"] | {"updated": "2026-01-01T00:00:00Z"}
                change_item(tmp_path, 2, properties=moved)
            found += [item.id for item in page]
    assert found == [f"scene-{n:03d}" for n in (*range(9), 2)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, as they are read; nothing is too soon to look again."""
    monkeypatch.setattr(catalog_index, "RECHECK_S", 0.0)
    genuine, names = catalog_index.read_local, list[str]()

    def read(href: str) -> str:
        names.append(Path(href).name)
        return genuine(href)

    monkeypatch.setattr(catalog_index, "read_local", read)
    return names


def content(index: CatalogIndex) -> Any:
    boxes = index._db.execute(
        "SELECT i.id, x0, x1, y0, y1 FROM boxes JOIN items i ON i.n=item ORDER BY 1, 2"
    ).fetchall()
    count = index._db.execute("SELECT count(*) FROM boxes").fetchone()
    return index.collections(), index.search(Query(limit=100)).items, index.faults, boxes, count


def change_links(folder: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    file = folder / "c0" / "collection.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps(body | {"links": change(body["links"])}))


def change_item(folder: Path, number: int, **change: Any) -> None:
    file = folder / "c0" / f"scene-{number:03d}" / f"scene-{number:03d}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "reread"),
    [
        (lambda folder: change_item(folder, 3, bbox=[0, 0, 1, 1]), {"scene-003.json"}),
        (lambda folder: change_item(folder, 3, id="scene-004"), {"scene-003.json"}),
        (lambda folder: (folder / "c0" / "scene-003" / "scene-003.json").unlink(), {"scene-003.json"}),
        (lambda folder: change_links(folder, lambda links: links[:-2]), set()),
        (
            lambda folder: change_links(folder, lambda links: [*links, {"rel": "item", "href": "./new.json"}]),
            {"new.json"},
        ),
        (lambda folder: (folder / "catalog.json").write_text((folder / "bare.json").read_text()), {"scene-000.json"}),
    ],
    ids=["changed", "renamed", "gone", "unlinked", "linked", "no collection"],
)
def test_only_what_changed_is_read_again(
    tmp_path: Path, reads: list[str], change: Callable[[Path], Any], reread: set[str]
) -> None:
    make_catalog(tmp_path, 6, collections=1)
    bare = json.loads((tmp_path / "catalog.json").read_text())
    bare["links"] = [{"rel": "item", "href": "./c0/scene-000/scene-000.json"}]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    shutil.copy(tmp_path / "c0" / "scene-005" / "scene-005.json", tmp_path / "c0" / "new.json")
    index = load_index(tmp_path)
    index.search(Query(limit=2))
    reads.clear()
    index.refresh()
    assert not reads
    change(tmp_path)
    index.refresh()
    assert set(reads) - {"catalog.json", "collection.json"} == reread
    assert content(index) == content(load_index(tmp_path))


def test_a_delivery_comes_back_when_the_newer_one_is_gone(tmp_path: Path, reads: list[str]) -> None:
    make_catalog(tmp_path, 2, collections=1)
    change_item(tmp_path, 1, id="scene-000")
    index = load_index(tmp_path)
    assert [Path(fault.href).name for fault in index.faults] == ["scene-001.json"]
    change_item(tmp_path, 0, id="scene-002")
    index.refresh()
    assert {item["id"] for item in index.search(Query()).items} == expected(0, 2)
    assert content(index) == content(load_index(tmp_path))


def test_a_catalog_that_cannot_be_read_for_a_while_stays_as_it_was(tmp_path: Path, reads: list[str]) -> None:
    make_catalog(tmp_path, 3, collections=1)
    index = load_index(tmp_path)
    before, root = content(index), (tmp_path / "catalog.json").read_text()
    (tmp_path / "catalog.json").write_text(root[:9])
    with pytest.raises(SourceError, match="give the folder of a STAC catalog"):
        index.refresh()
    assert content(index) == before
    (tmp_path / "catalog.json").write_text(root)
    change_item(tmp_path, 1, id="scene-009")
    index.refresh()
    assert {item["id"] for item in index.search(Query()).items} == expected(0, 2, 9)


def test_questions_are_answered_while_changes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_index, "RECHECK_S", 0.0)
    make_catalog(tmp_path, 3, collections=1)
    index, genuine, answers = load_index(tmp_path), catalog_index.read_local, list[int]()

    def ask() -> int:
        index.refresh()
        return len(index.search(Query(ids=["scene-001"])).items)

    with ThreadPoolExecutor(1) as another:

        def read(href: str) -> str:
            answers.append(another.submit(ask).result(timeout=10))
            return genuine(href)

        monkeypatch.setattr(catalog_index, "read_local", read)
        change_item(tmp_path, 1, id="scene-004")
        index.refresh()
        assert answers == [1, 1, 1]
        assert ask() == 0


def test_a_file_that_changes_right_after_it_was_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_index, "RECHECK_S", 0.0)
    root = make_catalog(tmp_path / "root", 3, collections=1)
    grown = make_catalog(tmp_path / "grown", 4, collections=1)
    genuine, published = catalog_index.crawl, []

    def crawl(*arguments: Any, **options: Any) -> Iterator[Document | Fault]:
        for found in genuine(*arguments, **options):
            if found.href.endswith("collection.json") and not published:
                published.append(shutil.copytree(grown / "c0", root / "c0", dirs_exist_ok=True))
            yield found

    monkeypatch.setattr(catalog_index, "crawl", crawl)
    index = load_index(root)
    index.refresh()
    assert {item["id"] for item in index.search(Query()).items} == expected(0, 1, 2, 3)


@pytest.mark.parametrize("content", [None, "{}", "[]", "nonsense", '{"type": "FeatureCollection", "features": []}'])
def test_no_catalog_there(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "catalog.json").write_text(content)
    with pytest.raises(SourceError, match="STAC catalog"), serving(tmp_path):
        pass


def test_server_stops_and_frees_its_port(catalog_dir: Path) -> None:
    with serving(catalog_dir) as url:
        assert requests.get(url, timeout=10).ok
    with pytest.raises(requests.ConnectionError, match="refused"):
        requests.get(url, timeout=2)


def test_start_is_quick(catalog_dir: Path) -> None:
    """Imports are paid by now; the rest must stay far below the two seconds promised with them."""
    began = time.perf_counter()
    with serving(catalog_dir):
        elapsed = time.perf_counter() - began
    assert elapsed < 1.5
