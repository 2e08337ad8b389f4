"""A tiny source archive of real GeoTIFFs: simulated 4-band scenes, added the way vendor files are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from pancrafter import discovery, steps
from pancrafter.ingest import add_pair
from pancrafter.ledger import open_ledger
from pancrafter.sensors import get_contract
from pancrafter.settings import Settings
from pancrafter.simulate.imaging import image_scene, random_model, truth_wavelengths
from pancrafter.simulate.truth import make_truth

RATIO = 4
ORIGIN = (500_000.0, 4_900_000.0)
GSD_M = 0.5


@dataclass(frozen=True)
class SmallScene:
    """One scene of the archive and where its files are."""

    item_id: str
    pan: Path
    ms: Path


def write_catalog(folder: Path, items: Iterable[dict[str, Any]]) -> str:
    """A static catalog of items as they are given; the path of its document."""
    folder.mkdir(exist_ok=True)
    links = []
    for number, item in enumerate(items):
        (folder / f"{number}.json").write_text(json.dumps(item))
        links.append({"rel": "item", "href": f"./{number}.json"})
    root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "x", "links": links}
    (folder / "catalog.json").write_text(json.dumps(root))
    return str(folder / "catalog.json")


def write_raster(path: Path, values: NDArray, gsd_m: float, *, crs: str = "EPSG:32632", origin=ORIGIN, nodata=None):
    profile = {
        "driver": "GTiff",
        "width": values.shape[2],
        "height": values.shape[1],
        "count": len(values),
        "dtype": values.dtype,
        "crs": crs,
        "transform": from_origin(*origin, gsd_m, gsd_m),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 128,
        "blockysize": 128,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **profile) as target:
        target.write(values)


def add_scene(
    catalog: Path, item_id: str, *, side_px: int = 256, seed: int = 1, day: int = 1, acquired: datetime | None = None
) -> SmallScene:
    """Simulate a GeoEye-1-like pair and add it to a catalog, as of a day in May 2025 or of another moment."""
    rng = np.random.default_rng(seed)
    contract = get_contract("geoeye-1")
    model, wavelengths = random_model(rng, contract, contract.bands), truth_wavelengths(contract.bands)
    pair = image_scene(make_truth(rng, (side_px, side_px), wavelengths, GSD_M, style="suburb"), model, rng)
    folder = catalog / "files" / item_id
    folder.mkdir(parents=True)
    scene = SmallScene(item_id, folder / "pan.tif", folder / "ms.tif")
    write_raster(scene.pan, pair.pan[None], GSD_M)
    write_raster(scene.ms, pair.ms, GSD_M * RATIO)
    moment = acquired or datetime(2025, 5, day, tzinfo=UTC)
    add_pair(catalog, "geoeye-1", scene.pan, [scene.ms], item_id=item_id, acquired=moment)
    return scene


def backdate(catalog: Path, item_id: str, moment: datetime) -> None:
    """Let the item of a scene say that it was entered at that moment."""
    (path,) = (path for path in catalog.rglob("*.json") if path.stem == item_id)
    item = json.loads(path.read_text())
    item["properties"] |= dict.fromkeys(("created", "updated"), moment.isoformat())
    path.write_text(json.dumps(item))


def classical_contracts(folder: Path) -> None:
    """A folder with a contract for the scenes above that sharpens them without the network, which is quick."""
    folder.mkdir(parents=True, exist_ok=True)
    text = resources.files("pancrafter").joinpath("contracts/geoeye-1.yaml").read_text()
    (folder / "geoeye-1.yaml").write_text(text.replace("weights: default", "weights: none"))


def settings_in(root: Path, **changed: Any) -> Settings:
    """A run in this process from ``root/source`` to ``root/sink``, in small blocks; other settings by name."""
    places = {"source": str(root / "source"), "sink": str(root / "sink"), "state_dir": str(root / "state")}
    return Settings.model_validate(places | {"workers": 0, "block_px": 128} | changed)


def classical_in(root: Path, **changed: Any) -> Settings:
    """As ``settings_in``, with the contracts of ``classical_contracts``, which lie in ``root`` then."""
    classical_contracts(root / "contracts")
    return settings_in(root, contracts_dir=str(root / "contracts"), **changed)


def silent(_: str) -> None:
    """A report to nobody."""


def lose_workers(settings: Settings) -> None:
    """Let the only scene be in work, after the death of as many workers as it may have, by one that is dead as well."""
    host = steps.lease_owner().split("/")[0]
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        (row,) = ledger.rows()
        for _ in range(5):
            ledger.sweep(is_gone=lambda _: True)
            assert ledger.claim(row.key, f"{host}/999999/1", 900, recipe=row.recipe) is not None
