"""The output catalog in a STAC API: what the static catalog holds, sent to a server with the Transaction extension.

The static catalog stays the truth and is written first; the API is its index for search. Sending again changes
nothing, so a publisher that died in between is repeated by the next attempt, and ``send_all`` fills an empty server.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any
from urllib.parse import quote

import httpx

from pancrafter.access import OPEN_TO_ALL, Access, reader_for
from pancrafter.errors import AccessError, CatalogUnavailableError, InvalidSceneError, SinkError
from pancrafter.publish import StaticSink
from pancrafter.types import Json

TIMEOUT_S = 60.0
_WORDS = 500
_VERSION_LINKS = frozenset({"predecessor-version", "successor-version", "latest-version"})
_KEPT_BY_SERVER = ("assets", "bbox", "geometry", "properties")


class StacApi:
    """A STAC API with Transactions that this process may write to.

    Args:
        url: Address of the landing page.
        access: Whose profiles say with which headers hosts are asked; beside them ``.netrc`` counts.
        client: HTTP client, for tests; by default one that reads proxies and ``.netrc`` from the environment.
    """

    def __init__(self, url: str, access: Access = OPEN_TO_ALL, client: httpx.Client | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = client or httpx.Client(
            timeout=TIMEOUT_S, follow_redirects=True, event_hooks={"request": [_Headers(access)]}
        )

    def close(self) -> None:
        """End the connections; Python would keep them until it looks for cycles."""
        self._client.close()

    def send(self, sink: StaticSink, collection_id: str, item_id: str) -> str:
        """Insert or update an item of the static catalog, and its collection, and read it back.

        Returns:
            Address of the item in the API.

        Raises:
            InvalidSceneError: The server finds the item invalid; its words are in the message.
            SinkError: The server cannot be written to (no Transactions, no permission), or returns something else.
            CatalogUnavailableError: No answer, or a failure of the server that may pass.
        """
        self._send_collection(sink, collection_id)
        return self._send_item(sink, collection_id, item_id)

    def delete(self, collection_id: str, item_id: str) -> None:
        """Take an item out of the API; one that is not there is no error.

        Raises:
            SinkError: The server cannot be written to.
            CatalogUnavailableError: No answer, or a failure of the server that may pass.
        """
        self._ask("DELETE", _address(collection_id, item_id), accept={httpx.codes.NOT_FOUND})

    def send_all(self, sink: StaticSink) -> int:
        """Insert or update everything the static catalog links to; returns the number of items."""
        count = 0
        for collection_id in sink.collection_ids():
            self._send_collection(sink, collection_id)
            for item_id in sink.item_ids(collection_id):
                self._send_item(sink, collection_id, item_id)
                count += 1
        return count

    def _send_collection(self, sink: StaticSink, collection_id: str) -> None:
        """Sent only if it differs from what the server has: most items change neither extent nor summaries."""
        document = self._collection(sink, collection_id)
        answer = self._ask("GET", _address(collection_id), accept={httpx.codes.NOT_FOUND})
        known = answer.json() if answer.is_success else {}
        if any(_said(known.get(name)) != _said(value) for name, value in document.items() if name != "links"):
            self._upsert("/collections", _address(collection_id), document)

    def _send_item(self, sink: StaticSink, collection_id: str, item_id: str) -> str:
        address = _address(collection_id, item_id)
        document = self._item(sink, collection_id, item_id)
        self._upsert(posixpath.dirname(address), address, document)
        found = self._ask("GET", address).json()
        differing = [name for name in _KEPT_BY_SERVER if _said(found.get(name)) != _said(document[name])]
        if differing:
            raise SinkError(
                f"{self.url}{address}: {', '.join(differing)} differ from what was sent; look at the server"
            )
        return f"{self.url}{address}"

    def _upsert(self, place: str, address: str, document: Json) -> None:
        answer = self._ask("POST", place, document, accept={httpx.codes.CONFLICT})
        if answer.status_code == httpx.codes.CONFLICT:
            self._ask("PUT", address, document)

    def _ask(
        self, method: str, path: str, document: Json | None = None, accept: set[int] | None = None
    ) -> httpx.Response:
        where = f"{method} {self.url}{path}"
        try:
            answer = self._client.request(method, f"{self.url}{path}", json=document)
        except httpx.TransportError as err:
            raise CatalogUnavailableError(
                f"{where}: {type(err).__name__}: {err}; is the STAC API up? It is tried again"
            ) from err
        code, words = answer.status_code, answer.text[:_WORDS]
        if answer.is_success or code in (accept or ()):
            return answer
        if code in {httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY}:
            raise InvalidSceneError(f"{where}: the STAC API refuses it ({code}): {words}; mend the item's metadata")
        if answer.is_server_error or code in {httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS}:
            raise CatalogUnavailableError(
                f"{where}: the STAC API fails ({code}): {words}; it is tried again; if it stays so, look at its log "
                "and at the free space of its database"
            )
        raise SinkError(
            f"{where}: {code} {words}; expected a STAC API with Transactions and the right to "
            "write; a profile in PANCRAFTER_ACCESS gives a host its credentials"
        )

    def _collection(self, sink: StaticSink, collection_id: str) -> Json:
        document = _read(sink, f"{collection_id}/collection.json")
        return document | {"links": [link for link in document["links"] if "://" in link["href"]]}

    def _item(self, sink: StaticSink, collection_id: str, item_id: str) -> Json:
        """The document with absolute addresses; links among the files are left to the server."""
        folder = f"{collection_id}/{item_id}"
        document = _read(sink, f"{folder}/{item_id}.json")
        assets = {
            key: asset | {"href": sink.store.address(posixpath.normpath(f"{folder}/{asset['href']}"))}
            for key, asset in document["assets"].items()
        }
        kept = [self._link(link, collection_id) for link in document["links"]]
        return document | {"assets": assets, "links": [link for link in kept if link is not None]}

    def _link(self, link: dict[str, Any], collection_id: str) -> dict[str, Any] | None:  # Any: parsed JSON
        if link["rel"] in _VERSION_LINKS:
            item_id = posixpath.basename(link["href"]).removesuffix(".json")
            return link | {"href": f"{self.url}{_address(collection_id, item_id)}"}
        if link["href"].startswith("/"):
            return link | {"href": f"file://{quote(link['href'])}"}  # or clients would look for it on the server
        return link if "://" in link["href"] else None


class _Headers:
    """Gives a request the headers of its host's profile, and takes off those that a redirect brought from another."""

    def __init__(self, access: Access) -> None:
        self._reader = reader_for(access)
        self._given: set[str] = set()

    def __call__(self, request: httpx.Request) -> None:
        for name in self._given:
            request.headers.pop(name, None)
        try:
            _, headers = self._reader.request(str(request.url))
        except (InvalidSceneError, AccessError) as err:  # no fault of the scene that is sent
            raise SinkError(str(err)) from err
        self._given |= headers.keys()
        request.headers.update(headers)


def _address(collection_id: str, item_id: str | None = None) -> str:
    """Of a collection, or of an item in it, below the landing page."""
    collection = f"/collections/{quote(collection_id, safe='')}"
    return collection if item_id is None else f"{collection}/items/{quote(item_id, safe='')}"


def _said(value: Any) -> Any:  # Any: parsed JSON
    """A document without its nulls: pgstac does not keep them."""
    if isinstance(value, dict):
        return {name: _said(inner) for name, inner in value.items() if inner is not None}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def _read(sink: StaticSink, name: str) -> Json:
    data = sink.store.read(name)
    if data is None:
        raise SinkError(f"{sink.store.address(name)}: is not there; publish it again")
    parsed: Json = json.loads(data)
    return parsed
