"""Walks a static STAC catalog link by link: documents as plain JSON, broken ones as faults, bounded concurrency.

Reading is the caller's (files, HTTP, S3), so this module knows neither pystac nor a network library.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from pancrafter.access import without_controls, without_secrets

Kind = Literal["Catalog", "Collection", "Item"]
ReadText = Callable[[str], str]

REMOTE_WORKERS = 16
"""Threads that read documents from elsewhere, and connections to one server."""


@dataclass(frozen=True)
class Document:
    """One STAC document. ``collection`` is its own or the nearest parent collection, where there is one."""

    href: str
    kind: Kind
    body: dict[str, Any]
    collection: dict[str, Any] | None
    lineage: frozenset[int] = field(default=frozenset(), repr=False)
    """Of one with links: hashes of its text and of those of the documents that led to it."""


@dataclass(frozen=True)
class Fault:
    """A document that could not be read or is not STAC; a link that is no address is one at ``#/links/NUMBER``."""

    href: str
    reason: str
    """May be shown: without the signatures that hrefs may hold."""
    collection_id: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", without_secrets(self.reason))


@dataclass(frozen=True)
class _Task:
    href: str
    collection: dict[str, Any] | None = field(repr=False)
    fault: str = ""
    """Why there is nothing to read."""
    lineage: frozenset[int] = field(default=frozenset(), repr=False)

    @property
    def collection_id(self) -> str | None:
        return self.collection["id"] if self.collection else None


def printable(text: str) -> str:
    """The text with ``?`` for control characters and what is no Unicode (half of a pair), which no database takes."""
    return without_controls(text).encode(errors="replace").decode()


def is_local(href: str) -> bool:
    """Whether ``href`` is a path or a ``file:`` URL."""
    return urlsplit(href).scheme in ("", "file")


def local_path(href: str) -> Path:
    """The path of a local ``href``."""
    return Path(url2pathname(urlsplit(href).path)) if href.startswith("file:") else Path(href)


def absolute(href: str, base: str) -> str:
    """``href`` as found in the document at ``base``; paths stay paths, without ``..``."""
    if urlsplit(href).scheme not in ("", "file"):
        return href
    if is_local(href) and is_local(base):
        return str((local_path(base).parent / local_path(href)).resolve())
    if href.startswith("file:"):
        return href
    return _urljoin(base, href)


def _urljoin(base: str, href: str) -> str:
    """``urljoin`` that also knows object-store schemes, which the standard library does not take for hierarchical."""
    scheme = urlsplit(base).scheme
    if scheme in ("http", "https"):
        return urljoin(base, href)
    joined = urljoin(base.replace(f"{scheme}://", "http://", 1), href)
    return joined.replace("http://", f"{scheme}://", 1)


def read_local(href: str) -> str:
    """Text of a local file."""
    return local_path(href).read_text(encoding="utf-8")


def crawl(
    root: str,
    read: ReadText = read_local,
    *,
    workers: int = 8,
    is_known: Callable[[str, str | None], bool] = lambda *_: False,
) -> Iterator[Document | Fault]:
    """Every document reachable from ``root`` by child and item links, in no promised order, each once.

    At most ``2 * workers`` documents are in flight. A remote catalog is not followed into local files.

    Args:
        root: Path or URL of a catalog, collection or item document.
        read: Returns the text of an href; ``OSError`` and ``ValueError`` become faults.
        workers: Threads that read.
        is_known: Whether the document at an href, reached from the collection with an id, can be left out.
    """
    pending = deque([_Task(root, None)])
    seen = {root}
    running: set[Future[Document | Fault]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix="crawl") as pool:
        try:
            while pending or running:
                while pending and len(running) < 2 * workers:
                    running.add(pool.submit(_fetch, pending.popleft(), read))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    document = future.result()
                    yield document
                    if isinstance(document, Document):
                        unseen = _unseen(_followed(document), seen)
                        pending.extend(task for task in unseen if not is_known(task.href, task.collection_id))
        finally:
            for future in running:
                future.cancel()


def _fetch(task: _Task, read: ReadText) -> Document | Fault:
    parent_id = task.collection_id
    if task.fault:
        return Fault(task.href, task.fault, parent_id)
    try:
        text = read(task.href)
        body = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        return Fault(task.href, f"{task.href}: {error}; expected a readable STAC JSON document", parent_id)
    kind = kind_of(body)
    if kind is None:
        return Fault(task.href, f"{task.href}: no STAC document (id, type and links were looked for)", parent_id)
    if kind == "Item":
        return Document(task.href, kind, body, task.collection)
    lineage = task.lineage | {hash(text)}
    if lineage == task.lineage:  # relative links would lead to further addresses of it, without end
        reason = f"{task.href}: is the same document as one that leads to it; look at the answers of its server"
        return Fault(task.href, reason, parent_id)
    return Document(task.href, kind, body, body if kind == "Collection" else task.collection, lineage)


def kind_of(body: object) -> Kind | None:
    """What STAC document ``body`` is, also for versions before 1.0 whose catalogs carry no type."""
    if not isinstance(body, dict) or not isinstance(body.get("id"), str) or not body["id"]:
        return None
    if body.get("type") == "Feature":
        well_formed = isinstance(body.get("properties"), dict) and isinstance(body.get("assets"), dict)
        return "Item" if well_formed else None
    if not isinstance(body.get("links"), list):
        return None
    return "Collection" if "extent" in body else "Catalog"


def _unseen(tasks: Iterator[_Task], seen: set[str]) -> Iterator[_Task]:
    for task in tasks:
        if task.href not in seen:
            seen.add(task.href)
            yield task


def _followed(document: Document) -> Iterator[_Task]:
    links = document.body.get("links") if document.kind != "Item" else None
    for number, link in enumerate(links if isinstance(links, list) else ()):
        if not isinstance(link, dict) or link.get("rel") not in ("child", "item"):
            continue
        href = link.get("href")
        if not isinstance(href, str) or not href:
            continue
        try:
            target = absolute(href, document.href)
            allowed = is_local(document.href) or not is_local(target)
        except ValueError as error:  # "http://[x", or a zero byte in a path
            fault = f"{document.href}: link {number} is {href!r}, expected an address or path ({error}); mend the link"
            yield _Task(f"{document.href}#/links/{number}", document.collection, fault)
            continue
        if allowed:
            yield _Task(target, document.collection, lineage=document.lineage)
