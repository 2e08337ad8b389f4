"""A reader who looks at the output catalog all the time, from the root, and must never see anything unfinished."""

from __future__ import annotations

import hashlib
import json
import posixpath
import time
from pathlib import Path

from faults.places import Files, Json, UnreachableError, ask

PAUSE_S = 0.1
NEEDED = {"sharpened", "mask", "thumbnail"}
"""Assets without which a sharpened item is not whole."""


def watch(sink: str, catalog_url: str | None, stop: Path, report: Path) -> None:
    """Poll until ``stop`` exists; then write how often was looked, and what was wrong, to ``report``.

    A look during which a server died says nothing and does not count.
    """
    polls, faults = 0, set()
    reader = Reader(sink, catalog_url)
    while True:
        last = stop.exists()
        try:
            faults |= set(reader.look())
            polls += 1
        except UnreachableError:
            pass
        if last:
            break
        time.sleep(PAUSE_S)
    report.write_text(json.dumps({"polls": polls, "faults": sorted(faults)}))


class Reader:
    """Knows which files were right when it saw them, and reads them again only when they change."""

    def __init__(self, sink: str, catalog_url: str | None) -> None:
        self._files = Files(sink)
        self._catalog_url = catalog_url
        self._intact: dict[str, tuple[int, str]] = {}
        self._faults: list[str] = []

    def look(self) -> list[str]:
        """Follow every link once, and list what the STAC API has; returns what is wrong."""
        self._faults = []
        found = self._in_api()  # first: whatever is there must be in the files afterwards
        linked = self._in_files()
        self._faults += [f"{name} is in the STAC API, but not in the catalog" for name in sorted(found - linked)]
        return self._faults

    def _in_api(self) -> set[str]:
        found: set[str] = set()
        if self._catalog_url is None:
            return found
        for collection in (ask(f"{self._catalog_url}/collections") or {})["collections"]:
            if not collection["id"].endswith("-sharpened"):  # what models there are
                continue
            page = ask(f"{self._catalog_url}/collections/{collection['id']}/items?limit=100")
            for item in (page or {"features": []})["features"]:
                found.add(item["id"])
                hrefs = {key: self._files.name_of(asset["href"]) for key, asset in item["assets"].items()}
                self._check_assets(f"{item['id']} in the STAC API", item, hrefs)
        return found

    def _in_files(self) -> set[str]:
        found: set[str] = set()
        catalog = self._document("catalog.json", may_be_missing=True)
        for child in _links(catalog, "child"):
            folder = posixpath.dirname(posixpath.normpath(child))
            for link in _links(self._document(f"{folder}/collection.json"), "item"):
                name = posixpath.normpath(f"{folder}/{link}")
                item = self._document(name)
                if item is not None:
                    found.add(item["id"])
                    place = posixpath.dirname(name)
                    hrefs = {key: posixpath.normpath(f"{place}/{a['href']}") for key, a in item["assets"].items()}
                    self._check_assets(posixpath.basename(name), item, hrefs)
        return found

    def _document(self, name: str, *, may_be_missing: bool = False) -> Json | None:
        data = self._files.read(name)
        if data is None:
            if not may_be_missing:
                self._faults.append(f"{posixpath.basename(name)} is linked but not there")
            return None
        try:
            return dict(json.loads(data))
        except ValueError as err:
            self._faults.append(f"{posixpath.basename(name)} is half written: {err}")
            return None

    def _check_assets(self, what: str, item: Json, names: dict[str, str]) -> None:
        if not names.keys() >= NEEDED:
            self._faults.append(f"{what} has only the assets {sorted(names)}")
        for key, asset in item["assets"].items():
            fault = self._file_fault(names[key], asset)
            if fault:
                self._faults.append(f"{what}: asset {key} {fault}")

    def _file_fault(self, name: str, asset: Json) -> str | None:
        stamp = self._files.stamp(name)
        if stamp is None:
            return "is not there"
        if self._intact.get(name) == stamp:
            return None
        if stamp[0] != asset["file:size"]:
            return f"has {stamp[0]} bytes, not {asset['file:size']}"
        if "1220" + hashlib.sha256(self._files.read(name) or b"").hexdigest() != asset["file:checksum"]:
            return "has another checksum"
        self._intact[name] = stamp
        return None


def _links(document: Json | None, relation: str) -> list[str]:
    return [link["href"] for link in (document or {}).get("links", []) if link["rel"] == relation]
