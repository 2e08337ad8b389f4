"""Where a run publishes and keeps its state: a folder and SQLite, or the servers of a stack; read as readers do."""

from __future__ import annotations

import hashlib
import json
import posixpath
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import fsspec
import pystac
import rasterio
from pystac.stac_io import DefaultStacIO

Json = dict[str, Any]


class UnreachableError(Exception):
    """A server gives no answer now: nothing can be said about what it holds."""


@dataclass(frozen=True)
class Place:
    """Addresses of one run, and what its processes have to find in their environment for them."""

    sink: str
    ledger: str
    catalog_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Everything in a folder."""
        return cls(str(folder / "sink"), f"sqlite:///{folder / 'state' / 'ledger.db'}")


class Files:
    """The files of a sink, through fsspec. Names are relative to its root."""

    def __init__(self, sink: str) -> None:
        options = {"use_listings_cache": False, "config_kwargs": _IMPATIENT} if "://" in sink else {}
        self._filesystem, self._root = fsspec.core.url_to_fs(sink, **options)
        self._is_remote = "://" in sink
        self.sink = sink
        if self._is_remote:
            self._filesystem.retries = 1

    def read(self, name: str) -> bytes | None:
        """Content; None where there is no such file."""
        found = self._asked("cat_file", name)
        return None if found is None else bytes(found)

    def stamp(self, name: str) -> tuple[int, str] | None:
        """Size, and something that changes whenever the file does."""
        found = self._asked("info", name)
        return None if found is None else (found["size"], str(found.get("ETag") or found.get("mtime")))

    def names(self) -> list[str]:
        """All files."""
        return [path.removeprefix(self._root).lstrip("/") for path in self._filesystem.find(self._root)]

    def name_of(self, href: str) -> str:
        """Name of a file whose absolute address is known."""
        return href.removeprefix(self.sink).lstrip("/")

    def _asked(self, method: str, name: str) -> Any:
        try:
            return getattr(self._filesystem, method)(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as err:
            if self._is_remote:  # the libraries below have many words for a server that dies
                raise UnreachableError(str(err)) from err
            raise


_IMPATIENT = {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 1}}


class _FilesIO(DefaultStacIO):
    """Lets pystac read them."""

    def __init__(self, files: Files) -> None:
        super().__init__()
        self._files = files

    def read_text_from_href(self, href: str, *_: Any, **__: Any) -> str:
        data = self._files.read(self._files.name_of(href))
        assert data is not None, f"{href} is not there"
        return data.decode()


def ask(url: str, *, method: str = "GET") -> Json | None:
    """The JSON answer of a STAC API; None for 404."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
            return dict(json.loads(answer.read() or b"{}"))
    except urllib.error.HTTPError as err:
        if err.code == 404:
            return None
        raise UnreachableError(f"{url}: {err.code}") from err
    except (OSError, ValueError) as err:
        raise UnreachableError(f"{url}: {err}") from err


def published(sink: str) -> dict[str, str]:
    """Output item id -> sha256 of the sharpened image, of every current item from the root, each file decoded."""
    files = Files(sink)
    root = pystac.Catalog.from_file(f"{sink}/catalog.json", stac_io=_FilesIO(files))
    found: dict[str, str] = {}
    for item in root.get_items(recursive=True):
        assert item.id not in found, f"{item.id} is linked twice"
        found[item.id] = _image_sha256(files, item)
    return found


def published_in_api(sink: str, catalog_url: str) -> dict[str, str]:
    """The same through the search of the STAC API."""
    from pystac_client import Client

    client, files, found = Client.open(catalog_url), Files(sink), {}
    for item in client.search(limit=1).items():
        if "sharpened" in item.assets:
            assert item.id not in found, f"{item.id} is there twice"
            found[item.id] = _image_sha256(files, item)
    return found


def _image_sha256(files: Files, item: pystac.Item) -> str:
    href = item.assets["sharpened"].get_absolute_href()
    assert href is not None
    data = files.read(files.name_of(href))
    assert data is not None, f"{href} is not there"
    with rasterio.MemoryFile(data) as memory, memory.open() as image:
        assert image.read().any()
    return hashlib.sha256(data).hexdigest()


def announced(sink: str) -> list[str]:
    """Ids of the items whose publication the change feed tells, once for each time."""
    files = Files(sink)
    events = [
        json.loads(line)
        for name in files.names()
        if name.startswith("changes/")
        for line in (files.read(name) or b"").splitlines()
    ]
    return [event["item_id"] for event in events if event["type"] == "new"]


def unreferenced(sink: str) -> list[str]:
    """Files that nothing refers to and that are no part of every catalog."""
    files = Files(sink)
    names = set(files.names())
    wanted = {".lock", "report.html"}
    for name in names:
        folder, depth = posixpath.dirname(name), name.count("/")
        kept = name.startswith(("changes/", "schemas/")) or name.endswith("/collection.json")
        if kept or (depth == 0 and name.endswith(".json")):
            wanted.add(name)
        elif depth == 2 and name.endswith(".json"):
            item = json.loads(files.read(name) or b"{}")
            wanted |= {name, *(posixpath.normpath(f"{folder}/{asset['href']}") for asset in item["assets"].values())}
    return sorted(names - wanted)
