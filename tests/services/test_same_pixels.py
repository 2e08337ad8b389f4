"""The servers change nothing in what is made: the defaults without any server give the same bytes."""

from __future__ import annotations

import posixpath
from pathlib import Path

import httpx
import pytest

from pancrafter import runs, steps
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.validation import validate_document

pytestmark = pytest.mark.services


def contents(settings: Settings) -> dict[str, bytes]:
    """Every published image file by item and asset."""
    sink, collection = StaticSink(settings.sink), "geoeye-1-sharpened"
    return {
        f"{item['id']}/{key}": sink.store.read(posixpath.normpath(f"{collection}/{item['id']}/{asset['href']}")) or b""
        for item in sink.items(collection)
        for key, asset in item["assets"].items()
    }


def test_embedded_defaults_and_full_stack_give_identical_files(
    settings: Settings, outcomes: list[steps.Outcome], archive: Path, tmp_path: Path
) -> None:
    embedded = Settings(
        source=str(archive), sink=str(tmp_path / "out"), state_dir=str(tmp_path / "state"), block_px=128, workers=0
    )
    assert [outcome.failed for outcome in runs.run(embedded, lambda _: None)] == [False, False]
    on_servers, here = contents(settings), contents(embedded)
    assert sorted(on_servers) == sorted(here)
    assert len([name for name in here if name.endswith("/sharpened")]) == 2
    assert all(here.values())
    assert [name for name, data in here.items() if on_servers[name] != data] == []


def test_what_the_api_returns_is_valid_stac(settings: Settings, outcomes: list[steps.Outcome]) -> None:
    answer = httpx.get(f"{settings.catalog_url}/collections/geoeye-1-sharpened/items").json()
    assert len(answer["features"]) == 2
    for item in answer["features"]:
        validate_document(item)
        assert {link["rel"] for link in item["links"]} >= {"self", "collection", "parent", "root", "derived_from"}
    collection = httpx.get(f"{settings.catalog_url}/collections/geoeye-1-sharpened").json()
    validate_document(collection)
    classes = httpx.get(f"{settings.catalog_url}/conformance").json()["conformsTo"]
    assert any(uri.endswith("/item-search") for uri in classes)


@pytest.mark.parametrize("name", ["pancrafter:hqnr", "pancrafter:d_s", "pancrafter:consistency_ergas"])
def test_quality_can_be_searched(settings: Settings, outcomes: list[steps.Outcome], name: str) -> None:
    """Above the lower and below the higher value, by CQL2: exactly the one item, and both for the whole range."""
    from pystac_client import Client

    assert settings.catalog_url is not None
    client = Client.open(settings.catalog_url)
    items = list(client.search(collections=["geoeye-1-sharpened"]).items())
    low, high = sorted(items, key=lambda item: item.properties[name])

    def ids(operator: str, value: float) -> list[str]:
        condition = {"op": operator, "args": [{"property": name}, value]}
        found = client.search(collections=["geoeye-1-sharpened"], filter=condition, filter_lang="cql2-json", limit=1)
        return sorted(item.id for item in found.items())

    assert low.properties[name] < high.properties[name]
    assert ids(">", low.properties[name]) == [high.id]
    assert ids("<", high.properties[name]) == [low.id]
    assert ids(">=", low.properties[name]) == sorted([low.id, high.id])
