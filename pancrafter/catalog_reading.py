"""Asks servers and object stores for documents of catalogs, under the access rules.

What is read is bounded in size and time, tried again where that may help, and asked for with the credentials of its
host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pystac
from pystac_client import Client
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from pancrafter.access import Access, reader_for, said_by, without_secrets
from pancrafter.crawl import REMOTE_WORKERS
from pancrafter.errors import SourceError

MAX_EMPTY_PAGES = 20
"""Pages without items in a row before a search ends all the same: some servers give a next page without end."""

TIMEOUT_S = (10.0, 60.0)
"""Seconds to connect and to wait for data of one request."""

RETRIES = 4
"""Attempts after the first for one request; waits 0.5, 1, 2, 4 s, or what the server asks for."""

MAX_RETRY_AFTER_S = 60
"""Longest wait that a server may ask for: some name the end of their maintenance, hours away."""

MAX_DOCUMENT_BYTES = 256 * 2**20
MAX_DOCUMENT_S = 900.0
"""For one answer as a whole: the time-outs of requests begin anew with every byte."""


class _Guarded(HTTPAdapter):
    """Asks the access rules before every request, so also before each hop of a redirect.

    A copy of the request gets the credentials of its host, so that a redirect does not take them along. Where the
    next page is, strangers say: they must not have those credentials used to change something elsewhere.
    """

    def __init__(self, rules: Access, searched: set[str | None], **options: Any) -> None:  # Any: those of requests
        super().__init__(**options)
        self._rules = rules
        self._searched = searched

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:  # Any: requests is untyped here
        if fault := self._rules.fault(request.url, resolve=True):
            raise SourceError(f"{request.url}: {fault}")
        methods = ("GET", "POST") if urlsplit(request.url).hostname in self._searched else ("GET",)
        if request.method not in methods:
            # without a password; the whole address could push out what to do about it
            place = urlsplit(request.url).netloc.rpartition("@")[2]
            raise SourceError(
                f"the catalog leads to {place} by {request.method}, which might change something there; expected "
                "GET, or POST to the host that is searched; if that is the same API, give its landing page at "
                f"{place} as the source, else tell the catalog's owner"
            )
        request = request.copy()
        request.url, headers = reader_for(self._rules).request(request.url)
        request.headers.update(headers)
        response = super().send(request, *args, **kwargs)
        _read_bounded(response)
        return response


class _GoingOn(StacApiIO):
    """Pages without items are passed over: servers that filter behind their paging send some; usual is to stop."""

    def __init__(self, rules: Access) -> None:
        super().__init__(timeout=TIMEOUT_S)
        self._searched = set[str | None]()
        retry = Retry(
            total=RETRIES,
            backoff_factor=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=("GET", "POST"),  # searching changes nothing, so POST may be repeated
            respect_retry_after_header=True,
            retry_after_max=MAX_RETRY_AFTER_S,
            raise_on_status=False,  # so that the last answer, and what the server says in it, reaches the message
        )
        for scheme in ("http://", "https://"):
            guarded = _Guarded(rules, self._searched, max_retries=retry, pool_maxsize=REMOTE_WORKERS)
            self.session.mount(scheme, guarded)

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        self._searched.add(urlsplit(url).hostname)
        page, empty = self.read_json(url, method=method, parameters=parameters), 0
        while True:
            if page.get("features") or page.get("collections"):
                empty = 0
                yield page
            else:
                empty += 1
            following = next((link for link in page.get("links", []) if link["rel"] == "next"), None)
            if following is None:
                return
            if empty == MAX_EMPTY_PAGES:
                logging.getLogger(__name__).warning(
                    "%s: the search ends after %d pages without items, although there are more", url, empty
                )
                return
            page = self.read_json(pystac.Link.from_dict(following), parameters=parameters)


@contextmanager
def asking(rules: Access) -> Iterator[StacApiIO]:
    """What asks servers; its connections end with the block: Python would keep them until it looks for cycles."""
    io = _GoingOn(rules)
    with closing(io.session):
        yield io


def _read_bounded(response: Any) -> None:  # Any: requests is untyped here
    """Read an answer in parts, as they come and unpacked: neither its packed size nor a stated one is a bound."""
    content, end = bytearray(), time.monotonic() + MAX_DOCUMENT_S
    while part := response.raw.read1(2**16, decode_content=True):
        content += part
        if time.monotonic() > end:
            response.close()
            place = without_secrets(response.url)
            raise SourceError(f"{place}: has not ended after {MAX_DOCUMENT_S:g} s; look at the server or the network")
        if len(content) > MAX_DOCUMENT_BYTES:
            response.close()
            place = without_secrets(response.url)
            raise SourceError(f"{place}: answers with more than {MAX_DOCUMENT_BYTES} bytes; that is no STAC page")
    response._content = bytes(content)  # noqa: SLF001 - where requests keeps what was read


def open_api(url: str, io: StacApiIO) -> Client:
    """A client of the STAC API at ``url``.

    Raises:
        SourceError: Nothing answers there, or it is not STAC.
    """
    try:
        return Client.open(url, stac_io=io)
    except Exception as error:  # APIError, JSON errors and what requests lets through
        place = without_secrets(url)
        raise SourceError(f"GET {place}: {said_by(error)}; expected a STAC API; check the address") from error


def object_reader(root: str, rules: Access, io: StacApiIO) -> Callable[[str], str]:
    """Reads documents of a catalog in an object store; published ones name their bucket's documents by https."""

    def read(href: str) -> str:
        is_web = urlsplit(href).scheme in ("http", "https")
        return str(io.read_text(href)) if is_web else _read_object(root, rules, href)

    return read


def _read_object(root: str, rules: Access, href: str) -> str:
    """Text of a document in the store of the catalog at ``root``; links of strangers lead to no other place."""
    import fsspec

    store, (scheme, _, place) = root.partition("://")[0], href.partition("://")
    if scheme != store or "::" in place:  # fsspec would open "x::file:///etc/passwd" too
        raise OSError(f"the link leads out of {store}://, where the catalog lies; copy the document there")
    with fsspec.open(href, "rt", encoding="utf-8", **reader_for(rules).object_options(href)) as file:
        text = str(file.read(MAX_DOCUMENT_BYTES + 1))
    if len(text) > MAX_DOCUMENT_BYTES:
        raise OSError(f"holds more than {MAX_DOCUMENT_BYTES} characters; that is no STAC document")
    return text
