"""Fuzzing: damaged items and files end as verdicts or named errors, in bounded time and memory.

The short version runs always; ``PANCRAFTER_FUZZ=20000`` tries that many of each kind. Seeds are fixed, and a failure
names the one it came from.
"""

from __future__ import annotations

import json
import os
import resource
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
from test_cube import Pair, contract

from pancrafter.catalog import check_document
from pancrafter.cube import stage_scene
from pancrafter.errors import InvalidSceneError, TransientReadError
from pancrafter.judge import Judgement
from pancrafter.sensors import load_contracts
from pancrafter.types import Scene

CONTRACTS = load_contracts()
TRIES = int(os.environ.get("PANCRAFTER_FUZZ", "0"))
ITEM_TRIES = TRIES or 1500
FILE_TRIES = TRIES or 60

WORST: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 10**40, "", "\x00", "../../etc/passwd", "x" * 5000,
    [], {}, [[]], [None], {"a": {"b": []}}, "2025-13-45T99:99:99Z", "file:///etc/passwd", "http://169.254.169.254/",
    "/vsicurl/http://10.0.0.1/x", -(10**12), [1e300] * 9, ["a", 1, None], {"type": "Polygon", "coordinates": 7},
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, child in entries for place in _places(child, (*path, key))]


def _mutated(body: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A few values replaced, removed, doubled or exchanged with others."""
    body = deepcopy(body)
    for _ in range(rng.integers(1, 5)):
        places = _places(body)
        if not places:
            break
        *above, last = places[rng.integers(len(places))]
        parent = body
        for key in above:
            parent = parent[key]
        how = rng.integers(4)
        if how == 0:
            parent[last] = deepcopy(WORST[rng.integers(len(WORST))])
        elif how == 1:
            del parent[last]
        elif how == 2 and isinstance(parent, list):
            parent.append(deepcopy(parent[last]))
        else:
            *other_above, other = places[rng.integers(len(places))]
            source = body
            try:
                for key in other_above:
                    source = source[key]
                parent[last] = deepcopy(source[other])
            except (KeyError, IndexError, TypeError):
                continue
    return body


def test_any_item_gets_a_verdict(shared_data: Path) -> None:
    """Mutants of real documents: always one of the five verdicts with a reason, never an exception."""
    documents = [json.loads(path.read_text()) for path in sorted((shared_data / "stac").rglob("*.json"))]
    rng = np.random.default_rng(20260101)
    seen: dict[str, int] = {}
    for attempt in range(ITEM_TRIES):
        body = _mutated(documents[rng.integers(len(documents))], rng)
        try:
            found = check_document(body, "https://example.com/a/item.json", CONTRACTS)
            text = found.model_dump_json()
        except Exception as error:
            raise AssertionError(f"attempt {attempt} raised {error!r} on {json.dumps(body)[:2000]}") from error
        assert isinstance(found, Judgement)
        assert found.reason, attempt
        assert len(text) < 200_000, attempt
        seen[found.verdict] = seen.get(found.verdict, 0) + 1
    assert set(seen) == {"eligible", "needs_header", "pair", "refused", "defect"}, seen


def test_deeply_nested_and_huge_documents_are_refused_quickly() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = {"a": deep}
    bodies = [
        {"type": "Feature", "id": "deep", "properties": deep, "assets": {}, "geometry": None},
        {"type": "Feature", "id": "x", "properties": {}, "assets": {str(n): {} for n in range(5000)}, "geometry": {}},
        {"type": "Feature", "id": "x", "properties": {}, "assets": {}, "geometry": {"coordinates": [deep] * 50}},
        {"type": "Collection", "id": "x", "extent": [], "links": [], "item_assets": {"pan": "x", "b": {"bands": 5}}},
    ]
    for body in bodies:
        assert check_document(body, "https://example.com/item.json", CONTRACTS).verdict in {"defect", "refused"}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> tuple[Scene, dict[str, bytes]]:
    rng = np.random.default_rng(5)
    pair = Pair(
        pan=rng.integers(1, 2000, (128, 128)).astype(np.uint16), ms=rng.integers(1, 2000, (3, 32, 32)).astype(np.uint16)
    )
    scene = pair.write(tmp_path)
    return scene, {name: (tmp_path / name).read_bytes() for name in ("pan.tif", "ms.tif")}


def _stage(scene: Scene, folder: Path, name: str) -> str:
    """``ok``, or the class of the deliberate error; everything else is raised."""
    with dask.config.set(scheduler="synchronous"):
        try:
            stage_scene(scene, contract(), str(folder / name), block_px=64, reach_px=16)
        except (InvalidSceneError, TransientReadError) as error:
            return type(error).__name__ if "asset" in str(error) else f"nameless: {error}"
    return "ok"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_damaged_files_end_as_named_errors(good: tuple[Scene, dict[str, bytes]], tmp_path: Path) -> None:
    """Cut off, or with bytes changed anywhere (a header mostly): an error that names the asset, or pixels."""
    scene, contents = good
    rng = np.random.default_rng(7)
    outcomes: dict[str, int] = {}
    for attempt in range(FILE_TRIES):
        name = ("pan.tif", "ms.tif")[rng.integers(2)]
        data = bytearray(contents[name])
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        else:
            reach = 600 if rng.random() < 0.7 else len(data)
            for position in rng.integers(0, reach, rng.integers(1, 12)):
                data[position] = rng.integers(256)
        (tmp_path / name).write_bytes(bytes(data))
        try:
            outcome = _stage(scene, tmp_path, f"{attempt}.zarr")
        except Exception as error:
            raise AssertionError(f"attempt {attempt} ({name}) raised {error!r}") from error
        assert not outcome.startswith("nameless"), outcome
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        (tmp_path / name).write_bytes(contents[name])
    assert outcomes.get("InvalidSceneError", 0) + outcomes.get("GridMismatchError", 0) > FILE_TRIES / 3, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 * 2**20, "kibibytes: no absurd allocation"


def _tiff(
    width: int, height: int, *, tile: int | None = None, data: bytes = b"", tags: dict[int, Any] | None = None
) -> bytes:
    """The smallest little-endian BigTIFF header that claims a size; its only block is ``data``, deflated."""
    entries: dict[int, tuple[int, int]] = {
        256: (4, width), 257: (4, height), 258: (3, 16), 259: (3, 8), 262: (3, 1), 277: (3, 1), 339: (3, 1),
    }  # fmt: skip
    offset = 16 + 8 + 20 * 12 + 8
    if tile is None:
        entries |= {273: (16, offset), 278: (4, height), 279: (16, len(data))}
    else:
        entries |= {322: (4, tile), 323: (4, tile), 324: (16, offset), 325: (16, len(data))}
    body = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        body += struct.pack("<HHQQ", tag, kind, 1, value)
    return body.ljust(offset, b"\0") + data


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (_tiff(10**9, 10**9, tile=512), "cannot be read: .*zero number of tiles|claims"),
        (_tiff(2_000_000, 2_000_000, tile=512), "claims 2000000 x 2000000 pixels"),
        (_tiff(60_000, 60_000, data=b"x" * 100), r"one block of the file holds 6866 MiB"),
        (_tiff(30_000, 30_000, tile=32_768, data=b"x" * 100), r"one block of the file holds 2048 MiB"),
        (_tiff(40_000, 40_000, tile=512), "the header claims 3052 MiB of pixels, the file holds"),
    ],
)
def test_headers_that_cannot_be_true_are_refused_before_allocation(
    good: tuple[Scene, dict[str, bytes]], tmp_path: Path, content: bytes, match: str
) -> None:
    scene, _ = good
    (tmp_path / "pan.tif").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidSceneError, match=match):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_decompression_bomb_is_refused(good: tuple[Scene, dict[str, bytes]], tmp_path: Path) -> None:
    """A real file, all zero, sparse: 50000 x 50000 pixels in a few kilobytes."""
    scene, _ = good
    profile = {"driver": "GTiff", "height": 50_000, "width": 50_000, "count": 1, "dtype": "uint16", "sparse_ok": True}
    profile |= {"tiled": True, "compress": "zstd", "crs": "EPSG:32633", "bigtiff": "yes"}
    profile["transform"] = rasterio.transform.from_origin(5e5, 4e6, 0.5, 0.5)
    with rasterio.open(tmp_path / "pan.tif", "w", **profile):
        pass
    with pytest.raises(
        InvalidSceneError, match=r"asset pan: the header claims 4768 MiB of pixels, the file holds \d+ bytes"
    ):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64)


def test_the_bands_of_a_block_count_together(good: tuple[Scene, dict[str, bytes]], tmp_path: Path) -> None:
    """Where they are interleaved, none is decoded without the others: 8 times 128 MiB at once."""
    scene, _ = good
    profile = {"driver": "GTiff", "height": 8192, "width": 8192, "count": 8, "dtype": "uint16", "sparse_ok": True}
    profile |= {"tiled": True, "blockxsize": 8192, "blockysize": 8192, "interleave": "pixel", "crs": "EPSG:32633"}
    profile["transform"] = rasterio.transform.from_origin(5e5, 4e6, 0.5, 0.5)
    with rasterio.open(tmp_path / "pan.tif", "w", **profile):
        pass
    with pytest.raises(InvalidSceneError, match=r"asset pan: one block of the file holds 1024 MiB"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64)
