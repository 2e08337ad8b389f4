"""What the STAC API client makes of a server's answers. How a real server behaves is in tests/services."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from published_scene import files, item

from pancrafter.catalog_links import CollectionInfo
from pancrafter.errors import CatalogUnavailableError, InvalidSceneError, PancrafterError, SinkError
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.stac_api import StacApi

COLLECTION = CollectionInfo(id="wv3-sharpened", title="WorldView-3, sharpened", description="Sharpened scenes.")


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> StaticSink:
    root = tmp_path_factory.mktemp("sink")
    assets = files(root / "files")
    made = StaticSink(str(root / "out"))
    made.publish(item(assets), assets, collection=COLLECTION)
    return made


class Server:
    """Keeps what it is sent, answers 409 on a second POST, and loses or changes things on demand."""

    def __init__(self) -> None:
        self.documents: dict[str, dict] = {}
        self.requests: list[str] = []
        self.changed: dict = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        import json

        path = request.url.path
        self.requests.append(f"{request.method} {path}")
        if request.method in {"GET", "DELETE"} and path not in self.documents:
            return httpx.Response(404, json={"code": "NotFoundError"})
        if request.method == "DELETE":
            return httpx.Response(200, json=self.documents.pop(path))
        if request.method == "GET":
            return httpx.Response(200, json=self.documents[path] | self.changed)
        document = json.loads(request.content)
        place = path if request.method == "PUT" else f"{path}/{document['id']}"
        if request.method == "POST" and place in self.documents:
            return httpx.Response(409, json={"code": "ConflictError"})
        self.documents[place] = document
        return httpx.Response(200, json=document)

    def api(self) -> StacApi:
        return StacApi("http://stac", client=httpx.Client(transport=httpx.MockTransport(self.answer)))


def test_second_time_is_an_update(sink: StaticSink) -> None:
    server = Server()
    address = server.api().send(sink, COLLECTION.id, "S1-sharp")
    assert address == "http://stac/collections/wv3-sharpened/items/S1-sharp"
    server.requests.clear()
    server.api().send(sink, COLLECTION.id, "S1-sharp")
    place = "/collections/wv3-sharpened"
    item_again = [f"POST {place}/items", f"PUT {place}/items/S1-sharp", f"GET {place}/items/S1-sharp"]
    assert server.requests == [f"GET {place}", *item_again], "the collection has not changed, so it is not sent"
    server.documents[place]["extent"] = {}
    server.requests.clear()
    server.api().send(sink, COLLECTION.id, "S1-sharp")
    assert server.requests == [f"GET {place}", "POST /collections", f"PUT {place}", *item_again]


def test_deleting_can_be_repeated(sink: StaticSink) -> None:
    server = Server()
    server.api().send(sink, COLLECTION.id, "S1-sharp")
    for _ in range(2):
        server.api().delete(COLLECTION.id, "S1-sharp")
        assert list(server.documents) == ["/collections/wv3-sharpened"]


def test_addresses_are_absolute_and_links_among_files_are_gone(sink: StaticSink) -> None:
    server = Server()
    server.api().send_all(sink)
    document = server.documents["/collections/wv3-sharpened/items/S1-sharp"]
    assert all(Path(asset["href"]).is_file() for asset in document["assets"].values())
    assert all("://" in link["href"] for link in document["links"])
    assert server.documents["/collections/wv3-sharpened"]["links"] == []


def test_item_that_comes_back_changed_is_not_confirmed(sink: StaticSink) -> None:
    server = Server()
    server.changed = {"assets": {}}
    with pytest.raises(SinkError, match="S1-sharp: assets differ from what was sent"):
        server.api().send(sink, COLLECTION.id, "S1-sharp")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidSceneError),
        (422, InvalidSceneError),
        (401, SinkError),
        (405, SinkError),
        (429, CatalogUnavailableError),
        (503, CatalogUnavailableError),
    ],
)
def test_answers_become_the_right_kind_of_error(sink: StaticSink, status: int, error: type[PancrafterError]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="the server's words"))
    with pytest.raises(error, match=f"GET http://stac/collections/wv3-sharpened: .*{status}.*the server's words"):
        StacApi("http://stac", client=httpx.Client(transport=transport)).send_all(sink)


def test_silence_is_transient(sink: StaticSink) -> None:
    with pytest.raises(CatalogUnavailableError, match="is the STAC API up"):
        StacApi("http://127.0.0.1:9").send_all(sink)


def test_empty_addresses_of_a_deployment_count_as_not_set() -> None:
    settings = Settings.model_validate({"catalog_url": "", "ledger_url": "", "dask_scheduler": ""})
    assert settings.catalog_url is settings.dask_scheduler is None
    assert settings.ledger.startswith("sqlite:///")
