"""A reader who looks at the output catalog all the time, from the root, and must never see anything unfinished."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PAUSE_S = 0.1


def watch(sink: Path, stop: Path, report: Path) -> None:
    """Poll until ``stop`` exists; then write how often was looked, and what was wrong, to ``report``."""
    polls, faults, intact = 0, set(), {}
    while True:
        last = stop.exists()
        faults |= set(look(sink, intact))
        polls += 1
        if last:
            break
        time.sleep(PAUSE_S)
    report.write_text(json.dumps({"polls": polls, "faults": sorted(faults)}))


def look(sink: Path, intact: dict[Path, tuple[int, int]]) -> list[str]:
    """Follow every link once. ``intact`` remembers files whose checksum was right, by size and time."""
    faults: list[str] = []
    catalog = _read(sink / "catalog.json", faults, may_be_missing=True)
    for child in _links(catalog, "child"):
        path = sink / child
        collection = _read(path, faults)
        for link in _links(collection, "item"):
            item = path.parent / link
            for key, asset in (_read(item, faults) or {"assets": {}})["assets"].items():
                fault = _file_fault(item.parent / asset["href"], asset, intact)
                if fault:
                    faults.append(f"{item.name}: asset {key} {fault}")
    return faults


def _read(path: Path, faults: list[str], *, may_be_missing: bool = False) -> Json | None:
    try:
        document: Json = json.loads(path.read_bytes())
    except FileNotFoundError:
        if not may_be_missing:
            faults.append(f"{path.name} is linked but not there")
        return None
    except ValueError as err:
        faults.append(f"{path.name} is half written: {err}")
        return None
    return document


def _links(document: Json | None, relation: str) -> list[str]:
    return [link["href"] for link in (document or {}).get("links", []) if link["rel"] == relation]


def _file_fault(path: Path, asset: Json, intact: dict[Path, tuple[int, int]]) -> str | None:
    try:
        status = path.stat()
        seen = (status.st_size, status.st_mtime_ns)
        if intact.get(path) == seen:
            return None
        if status.st_size != asset["file:size"]:
            return f"has {status.st_size} bytes, not {asset['file:size']}"
        if "1220" + hashlib.sha256(path.read_bytes()).hexdigest() != asset["file:checksum"]:
            return "has another checksum"
    except FileNotFoundError:
        return "is not there"
    intact[path] = seen
    return None
