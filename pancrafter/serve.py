"""A read-only STAC API over any static catalog on local disk, so that search is real with nothing installed.

stac-fastapi speaks the protocol; what is in the catalog, and what meets a search, ``catalog_index`` knows.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import reprlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import Field, model_validator

from pancrafter.catalog_index import BadQueryError, CatalogIndex, Page, Query, load_index, rank_of, readable_by_all
from pancrafter.errors import SourceError

MAX_PAGE = 1000
"""Items of a page, whatever is asked for: our own are 10 kB each, and take ten times that in memory."""

MAX_BODY_BYTES = 4 * 2**20
"""Of a question: checking what is wrong with a longer one would take seconds and gigabytes."""

SORT_1_0 = "https://api.stacspec.org/v1.0.0/item-search#sort"
"""Declared beside the extension's own 1.1 class, which pystac-client 0.9 does not know; the requests are the same."""

QUERYABLES = "http://www.opengis.net/def/rel/ogc/1.0/queryables"
"""Relation of the link that tells what filters can ask for."""


def app_over(index: CatalogIndex) -> FastAPI:
    """A read-only STAC API (core, item search, sort, CQL2 filter, paging) over an index."""
    logging.getLogger("stac_fastapi.types.config").setLevel(logging.ERROR)  # it warns of unset titles at import
    from stac_fastapi.api.app import StacApi
    from stac_fastapi.api.models import (
        ItemCollectionUri,
        create_get_request_model,
        create_post_request_model,
        create_request_model,
    )
    from stac_fastapi.extensions import TokenPaginationExtension
    from stac_fastapi.extensions.filter import FilterExtension, SearchFilterExtension
    from stac_fastapi.extensions.sort import SearchSortExtension
    from stac_fastapi.types.config import ApiSettings

    sort = SearchSortExtension()
    sort.conformance_classes = [*sort.conformance_classes, SORT_1_0]
    # Of the two only this one offers the queryables of a collection, but it promises filters on its items too.
    filtering = FilterExtension(
        client=_filters_client(index), conformance_classes=SearchFilterExtension().conformance_classes
    )
    extensions = [filtering, sort, TokenPaginationExtension()]
    settings = ApiSettings(
        stac_fastapi_title=index.title,
        stac_fastapi_description=index.description,
        stac_fastapi_landing_id=index.root.parent.name or "catalog",
        enable_response_models=False,
    )
    app = FastAPI(title=index.title, description=index.description, openapi_url="/api", docs_url="/api.html")
    items_model: Any = create_request_model(
        "Items", base_model=ItemCollectionUri, extensions=[TokenPaginationExtension()], request_type="GET"
    )
    StacApi(
        app=app,
        router=APIRouter(route_class=_StrictRoute),
        settings=settings,
        client=_client(index, extensions),
        extensions=extensions,
        search_get_request_model=create_get_request_model(extensions),
        search_post_request_model=_without_crashes(create_post_request_model(extensions)),
        items_get_request_model=items_model,
        middlewares=[],
    )
    app.add_exception_handler(RequestValidationError, _told)
    return app


class _StrictRequest(Request):
    """Its body is of bounded size, and of what Python takes for JSON only what is JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            body, size = bytearray(), 0
            async for chunk in self.stream():  # to its end: nobody listens to an answer before
                size += len(chunk)
                body += chunk if size <= MAX_BODY_BYTES else b""
            if size > MAX_BODY_BYTES:
                reason = f"the body has {size} bytes, expected at most {MAX_BODY_BYTES}; ask for less at a time"
                raise HTTPException(413, reason)
            self._body = bytes(body)
        return self._body

    async def json(self) -> Any:
        try:
            found = json.loads(await self.body())
            readable_by_all(found)
        except (ValueError, OverflowError, RecursionError) as error:
            raise HTTPException(400, f"the body is not JSON: {error}; expected a JSON object") from error
        return found


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        answer = super().get_route_handler()

        async def answer_strictly(request: Request) -> Any:
            return await answer(_StrictRequest(request.scope, request.receive))

        return answer_strictly


async def _told(_: Any, error: Any) -> Any:
    """The answer that says what is wrong with a question, without repeating all of it."""
    wrong = [
        f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]} is {reprlib.repr(one['input'])}: {one['msg']}"
        for one in error.errors()
    ]
    return JSONResponse({"code": type(error).__name__, "description": "; ".join(wrong)}, status_code=400)


def _without_crashes(model: Any) -> Any:
    """The model of a search's body, for which what crashes its own validators is a wrong body like any other.

    The first wrong entry of a list is enough: to name all of a million takes gigabytes. What an area is, `_query_boxes`
    decides, as for GET.
    """
    from stac_pydantic.api.extensions.sort import SortExtension

    class SearchPostRequest(model):  # type: ignore[misc]
        collections: list[str] | None = Field(None, fail_fast=True)
        ids: list[str] | None = Field(None, fail_fast=True)
        bbox: list[float] | None = Field(None, fail_fast=True)
        intersects: dict[str, Any] | None = None
        sortby: list[SortExtension] | None = Field(None, fail_fast=True)

        @model_validator(mode="wrap")
        @classmethod
        def _understood(cls, body: object, validated: Callable[[object], Any]) -> Any:
            if not isinstance(body, dict):
                raise ValueError("expected a JSON object")  # noqa: TRY004 - pydantic reports only ValueError
            try:
                return validated(body)
            except OverflowError as error:
                raise ValueError("datetime is outside the years 1 to 9999 in UTC") from error

    return SearchPostRequest


def _client(index: CatalogIndex, extensions: list[Any]) -> Any:
    """The stac-fastapi client over ``index``; its base is imported late and taken as Any, as our answers are JSON."""
    import attr
    from stac_fastapi.types.core import BaseCoreClient

    base_class: Any = BaseCoreClient

    @attr.s
    class Client(base_class):  # type: ignore[misc]
        """Answers the routes of the core and search specifications."""

        def all_collections(self, request: Any = None, **_: Any) -> dict[str, Any]:
            return _all_collections(index, request)

        def get_collection(self, collection_id: str, request: Any = None, **_: Any) -> dict[str, Any]:
            index.refresh()
            body = _collection(index, collection_id)
            return _with_links(body, _collection_links(_base(request), body["id"]))

        def get_item(self, item_id: str, collection_id: str, request: Any = None, **_: Any) -> dict[str, Any]:
            index.refresh()
            names = itertools.product(*((part, unquote(part)) for part in (collection_id, item_id)))
            found = next(filter(None, itertools.starmap(index.item, names)), None)
            body = _required(found, f"item {item_id} of collection {collection_id}")
            return _with_links(body, _item_links(_base(request), body))

        def item_collection(self, collection_id: str, request: Any = None, **asked: Any) -> Any:
            found = self.get_collection(collection_id, request=request)
            return _answer(index, request, asked | {"collections": [found["id"]]})

        def get_search(self, request: Any = None, **asked: Any) -> Any:
            return _answer(index, request, asked | {"filter": asked.get("filter_expr")})

        def post_search(self, search_request: Any, request: Any = None, **_: Any) -> Any:
            as_given = {"intersects": search_request.intersects, "filter": search_request.filter_expr}
            dumped = search_request.model_dump(exclude={"intersects", "filter_expr"}, mode="json")
            return _answer(index, request, dumped | as_given)

    client_class: Any = Client
    return client_class(extensions=extensions, landing_page_id=index.root.parent.name or "catalog")


def _filters_client(index: CatalogIndex) -> Any:
    """The stac-fastapi client that tells what filters can ask for; see `_client`."""
    from stac_fastapi.extensions.filter.client import BaseFiltersClient

    base_class: Any = BaseFiltersClient

    class FiltersClient(base_class):  # type: ignore[misc]
        """Answers the routes of queryables."""

        def get_queryables(self, collection_id: str | None = None, request: Any = None, **_: Any) -> dict[str, Any]:
            index.refresh()
            if collection_id is not None:
                collection_id = _collection(index, collection_id)["id"]
            return {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": str(request.url),
                "type": "object",
                "title": f"Queryables of {collection_id or index.title}",
                "properties": index.queryables(collection_id),
                "additionalProperties": True,
            }

    return FiltersClient()


def _collection(index: CatalogIndex, part: str) -> dict[str, Any]:
    """The collection that a part of an address names; see `_part`."""
    return _required(index.collection(part) or index.collection(unquote(part)), f"collection {part}")


def _part(name: str) -> str:
    """A name as one part of an address: slashes coded twice, as servers take apart what they have decoded once."""
    once = quote(name, safe="")
    return quote(once, safe="") if "/" in name else once


def _required(body: dict[str, Any] | None, what: str) -> dict[str, Any]:
    if body is None:
        from stac_fastapi.types.errors import NotFoundError

        raise NotFoundError(f"{what} not found")
    return body


def _all_collections(index: CatalogIndex, request: Any) -> dict[str, Any]:
    index.refresh()
    base = _base(request)
    found = [_with_links(body, _collection_links(base, body["id"])) for body in index.collections()]
    links = [_link("self", f"{base}/collections"), _link("root", f"{base}/")]
    return {"collections": found, "links": links, "numberMatched": len(found), "numberReturned": len(found)}


def _answer(index: CatalogIndex, request: Any, asked: Mapping[str, Any]) -> Any:
    """The page as a response: of a mere dict FastAPI looks at each value once more, and answers nobody meanwhile."""
    from stac_fastapi.types.errors import InvalidQueryParameter
    from stac_fastapi.types.rfc3339 import str_to_interval

    index.refresh()
    moments = asked.get("datetime")
    interval = str_to_interval(moments) if isinstance(moments, str) else moments
    try:
        query = _query(asked, interval if isinstance(interval, tuple) else (interval, interval))
        page = index.search(query)
    except BadQueryError as error:
        raise InvalidQueryParameter(str(error)) from error
    return JSONResponse(_feature_collection(page, query.sort, request), media_type="application/geo+json")


def _query(asked: Mapping[str, Any], interval: tuple[datetime | None, datetime | None]) -> Query:
    if asked.get("bbox") and asked.get("intersects"):
        raise BadQueryError("bbox and intersects are both given; ask for one area")
    offset, after = _place(asked.get("token"))
    return Query(
        collections=asked.get("collections") or (),
        ids=asked.get("ids") or (),
        bbox=asked.get("bbox"),
        intersects=_parsed(asked.get("intersects")),
        interval=interval,
        cql2=_parsed(asked.get("filter")) if asked.get("filter_lang") == "cql2-json" else asked.get("filter"),
        sort=_sort(asked.get("sortby")),
        limit=min(int(asked.get("limit") or 10), MAX_PAGE),
        offset=offset,
        after=after,
    )


def _parsed(value: Any) -> Any:
    """GET requests carry JSON objects as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadQueryError(f"not JSON: {error}") from error


def _sort(sortby: Any) -> list[tuple[str, str]]:
    """``[(field, asc|desc)]`` from the POST form (objects) or the GET form (``-field``)."""
    terms = sortby.split(",") if isinstance(sortby, str) else sortby or ()
    return [
        (term["field"], term.get("direction", "asc"))
        if isinstance(term, dict)
        else (term.lstrip("+-"), "desc" if term.startswith("-") else "asc")
        for term in terms
    ]


def _token(offset: int, last: Mapping[str, Any], sort: Sequence[tuple[str, str]]) -> str:
    """Where a page goes on: after how many items, and after which."""
    name = ":".join(quote(last[part], safe="") for part in ("collection", "id"))
    return f"next:{offset}:{name}:{rank_of(last, sort)}"


def _place(token: str | None) -> tuple[int, tuple[str, str, str] | None]:
    """Offset and last item of a token; see `_token`."""
    if not token:
        return 0, None
    parts = re.fullmatch("next:([0-9]{1,18}):([^:]+):([^:]+):([0-9a-f]{8})", token)
    if not parts:
        raise BadQueryError(f"unknown paging token {reprlib.repr(token)}; expected that of a link to the next page")
    return int(parts[1]), (unquote(parts[2]), unquote(parts[3]), parts[4])


def _base(request: Any) -> str:
    return str(request.base_url).rstrip("/")


def _link(rel: str, href: str, media_type: str = "application/json") -> dict[str, str]:
    return {"rel": rel, "type": media_type, "href": href}


def _with_links(body: dict[str, Any], links: list[dict[str, str]]) -> dict[str, Any]:
    return body | {"links": [*links, *body.get("links", [])]}


def _collection_links(base: str, collection_id: str) -> list[dict[str, str]]:
    here = f"{base}/collections/{_part(collection_id)}"
    items = _link("items", f"{here}/items", "application/geo+json")
    queryables = _link(QUERYABLES, f"{here}/queryables", "application/schema+json")
    return [_link("self", here), _link("parent", f"{base}/"), _link("root", f"{base}/"), items, queryables]


def _item_links(base: str, item: Mapping[str, Any]) -> list[dict[str, str]]:
    collection = f"{base}/collections/{_part(item['collection'])}"
    here = _link("self", f"{collection}/items/{_part(item['id'])}", "application/geo+json")
    return [here, _link("collection", collection), _link("parent", collection), _link("root", f"{base}/")]


def _feature_collection(page: Page, sort: Sequence[tuple[str, str]], request: Any) -> dict[str, Any]:
    base = _base(request)
    features = [_with_links(item, _item_links(base, item)) for item in page.items]
    links: list[dict[str, Any]] = [_link("root", f"{base}/"), _link("self", str(request.url), "application/geo+json")]
    if page.next_offset is not None:
        links.append(_next_link(request, _token(page.next_offset, page.items[-1], sort)))
    body = {"type": "FeatureCollection", "features": features, "links": links, "numberReturned": len(features)}
    return body | ({"numberMatched": page.matched} if page.matched is not None else {})


def _next_link(request: Any, token: str) -> dict[str, Any]:
    if request.method == "POST":
        posted = {"method": "POST", "merge": True, "body": {"token": token}}
        return _link("next", str(request.url), "application/geo+json") | posted
    href = str(request.url.include_query_params(token=token))
    return _link("next", href, "application/geo+json") | {"method": "GET"}


# --- the server -----------------------------------------------------------------------------------------------------


@contextmanager
def serving(catalog_dir: Path | CatalogIndex) -> Iterator[str]:
    """Base URL of the STAC API over ``catalog_dir``, served on a free loopback port inside the ``with`` block.

    Raises:
        SourceError: There is no catalog, or the server did not start.
    """
    index = catalog_dir if isinstance(catalog_dir, CatalogIndex) else load_index(catalog_dir)
    # No log_config: uvicorn's resets the whole process's logging, which deadlocks with Prefect's log handler.
    config = uvicorn.Config(
        app_over(index),
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    with _listener() as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],), name=f"stac-api-{port}", daemon=True)
        thread.start()
        try:
            _await_start(server, thread)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def _listener() -> socket.socket:
    """A listening loopback socket that says it is TCP: without, asyncio leaves Nagle on and answers stall for 40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def _await_start(server: Any, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise SourceError("the embedded STAC API did not start on 127.0.0.1; see the log above for its reason")
        time.sleep(0.005)


def serve_forever(index: CatalogIndex, host: str, port: int) -> None:
    """Serve a catalog until interrupted."""
    uvicorn.run(app_over(index), host=host, port=port, log_level="info", ws="none", lifespan="off")
