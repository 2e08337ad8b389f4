"""Servers that refuse, fail or are slow during a run: what is said, and that nothing is lost or published twice."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from listening import Quiet
from small_archive import add_scene, classical_in

from pancrafter import catalog_reading, runs, withdrawal
from pancrafter.access import Access
from pancrafter.backup import back_up, bring_back
from pancrafter.census import take_census
from pancrafter.errors import PancrafterError
from pancrafter.ledger import open_ledger
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import State


class CatalogServer(ThreadingHTTPServer):
    """A catalog with Transactions that keeps what it is sent; ``refusal`` is its answer to items while it is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.documents: dict[str, Any] = {}
        self.refusal = 0
        self.refused = 0
        self.wait_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(Quiet):
    server: CatalogServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(self.server.wait_s)
        document = self.server.documents.get(self.path)
        self._answer(404 if document is None else 200, document or {})

    def do_POST(self) -> None:
        document = self._sent()
        place = f"{self.path}/{document['id']}"
        if self._refuses():
            self._answer(self.server.refusal, {"detail": "geometry is not to my taste"})
        elif place in self.server.documents:
            self._answer(409, {})
        else:
            self.server.documents[place] = document
            self._answer(201, document)

    def do_PUT(self) -> None:
        self.server.documents[self.path] = self._sent()
        self._answer(200, {})

    def do_DELETE(self) -> None:
        self._answer(200, self.server.documents.pop(self.path))

    def _refuses(self) -> bool:
        refuses = bool(self.server.refusal) and self.path.endswith("/items")
        self.server.refused += refuses
        return refuses

    def _sent(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # who asked has given up
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[CatalogServer]:
    with CatalogServer() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path, server: CatalogServer) -> Settings:
    add_scene(tmp_path / "source", "one", side_px=128, seed=1)
    return classical_in(tmp_path, catalog_url=server.url)


@contextlib.contextmanager
def no_connection_left(server: CatalogServer) -> Iterator[None]:
    """What the block opens it also ends: Python would when it looks for cycles, maybe a hundred scenes later."""
    gc.disable()
    try:
        yield
        left = [one for one in psutil.Process().net_connections() if one.raddr and one.raddr.port == server.server_port]
    finally:
        gc.enable()
    assert left == []


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (422, State.DEAD, "mend the item's metadata"),
        (400, State.DEAD, "geometry"),
        (503, State.ELIGIBLE, "tried again"),
    ],
)
def test_an_item_that_the_sink_refuses_is_published_once_after_the_fix(
    settings: Settings, server: CatalogServer, status: int, state: State, words: str
) -> None:
    server.refusal = status
    (outcome,) = runs.run(settings, lambda _: None)
    assert outcome.failed
    assert words in outcome.reason
    assert server.refused >= 1
    assert not [place for place in server.documents if "/items/" in place]
    with open_ledger(settings) as ledger:
        (row,) = ledger.rows(sink=settings.sink)
        assert row.state is state
        ledger.redrive(sink=settings.sink, states=[state])
    server.refusal = 0
    (outcome,) = runs.run(settings, lambda _: None)
    assert not outcome.failed
    (place,) = [place for place in server.documents if "/items/" in place]
    assert (place.rpartition("/")[2],) == StaticSink(settings.sink).item_ids("geoeye-1-sharpened")
    assert take_census(settings, checksums=True).clean
    assert runs.run(settings, lambda _: None) == []


def test_an_item_that_is_there_already_is_updated(settings: Settings, server: CatalogServer) -> None:
    """409, as after a run that died between sending an item and noting it."""
    (outcome,) = runs.run(settings, lambda _: None)
    (place,) = [place for place in server.documents if "/items/" in place]
    server.documents[place]["properties"]["title"] = "from an attempt that died"
    with open_ledger(settings) as ledger:
        (row,) = ledger.rows(sink=settings.sink)
        ledger.redrive([row.key], states=list(State))
    with no_connection_left(server):
        (outcome,) = runs.run(settings, lambda _: None)
    assert not outcome.failed
    assert server.documents[place]["properties"]["title"] != "from an attempt that died"
    assert take_census(settings, checksums=True).clean


def test_a_restore_fills_the_api_and_leaves_no_connection(settings: Settings, server: CatalogServer) -> None:
    runs.run(settings, lambda _: None)
    back_up(settings, f"{settings.sink}-backup")
    sent = dict(server.documents)
    server.documents.clear()
    elsewhere = settings.model_copy(update={"state_dir": f"{settings.state_dir}-new"})
    with no_connection_left(server):
        assert bring_back(elsewhere, f"{settings.sink}-backup").sent == 1
    assert server.documents == sent


def test_a_source_that_does_not_answer_in_time_ends_the_run_with_its_name(
    settings: Settings, server: CatalogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.wait_s = 3.0
    monkeypatch.setattr(catalog_reading, "TIMEOUT_S", (0.2, 0.2))
    slow = settings.model_copy(update={"source": server.url, "catalog_url": None})
    with pytest.raises(PancrafterError, match=server.url):
        runs.run(slow, lambda _: None)
    server.wait_s = 0.0
    (outcome,) = runs.run(settings, lambda _: None)
    assert not outcome.failed


def test_a_profile_whose_headers_are_not_there_stops_no_scene_of_others_and_none_is_given_up(
    settings: Settings, server: CatalogServer, tmp_path: Path
) -> None:
    add_scene(tmp_path / "source", "two", side_px=128, seed=1)
    (item,) = (tmp_path / "source").rglob("one.json")
    document = json.loads(item.read_text())
    for asset in document["assets"].values():
        asset["href"] = f"http://localhost:{server.server_port}/{asset['href']}"
    item.write_text(json.dumps(document))
    profile = {"match": ["http://localhost"], "kind": "headers", "headers_file": str(tmp_path / "gone.json")}
    access = Access.model_validate({"allow_private": True, "profiles": [profile]})
    nightly = settings.model_copy(update={"access": access, "limit": 1})
    (waiting,) = runs.run(nightly, lambda _: None)
    assert waiting.verdict == "retry later"
    assert re.search(r"gone\.json is not readable as a JSON object .*mend the profile", waiting.reason)
    page = (Path(settings.sink) / "report.html").read_text()
    assert re.search(r"waiting for another try.*gone\.json is not readable", page, re.DOTALL)
    assert [outcome.verdict for outcome in runs.run(nightly, lambda _: None)] == ["published"], "its turn comes last"
    with open_ledger(settings) as ledger:
        assert [(row.state, row.attempts) for row in ledger.rows()] == [(State.ELIGIBLE, 0), (State.CONFIRMED, 0)]


def test_a_profile_of_the_sink_whose_headers_are_not_there_stops_the_run(
    settings: Settings, server: CatalogServer, tmp_path: Path
) -> None:
    profile = {"match": [server.url], "kind": "headers", "headers_file": str(tmp_path / "gone.json")}
    access = Access.model_validate({"allow_private": True, "profiles": [profile]})
    with pytest.raises(runs.RunStoppedError, match=r"gone\.json is not readable"):
        runs.run(settings.model_copy(update={"access": access}), lambda _: None)


def test_the_servers_older_version_does_not_lead_to_a_withdrawn_one(settings: Settings, server: CatalogServer) -> None:
    contract = Path(settings.contracts_dir or "") / "geoeye-1.yaml"
    for title in ("title: ", "title: New "):
        contract.write_text(contract.read_text().replace("title: ", title, 1))
        runs.run(settings, lambda _: None)
    with open_ledger(settings) as ledger, no_connection_left(server):
        (row,) = ledger.rows()
        (withdrawn,) = withdrawal.withdraw(row.key, "licence", settings, ledger)
    (older,) = [document for place, document in server.documents.items() if "/items/" in place]
    assert older["properties"]["deprecated"]
    assert withdrawn not in json.dumps(older["links"])
