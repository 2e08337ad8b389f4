"""Scenes whose PAN and MS, or whose bands, are items of their own: which belong together, and which come late."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from scipy import ndimage
from small_archive import write_catalog, write_raster

from pancrafter import runs
from pancrafter.catalog import MAX_PARTNER_SEARCHES, discover
from pancrafter.ledger import open_ledger
from pancrafter.plan import make_plan
from pancrafter.recognise import REQUESTER_PAYS
from pancrafter.sensors import load_contracts
from pancrafter.serve import serving
from pancrafter.settings import Settings
from pancrafter.states import SceneKey, State
from pancrafter.types import Refusal, Scene

CONTRACTS = load_contracts()
Body = dict[str, Any]


def real(shared_data: Path, pattern: str) -> Body:
    body: Body = json.loads(next((shared_data / "stac").glob(pattern)).read_text())
    return body


def found(source: str, **window: Any) -> tuple[list[Scene], dict[str, str]]:
    """Scenes, and the refusal code of every other item."""
    entries = list(discover(source, contracts=CONTRACTS, **window))
    refused = {entry.item_id: entry.code for entry in entries if isinstance(entry, Refusal)}
    return [entry for entry in entries if isinstance(entry, Scene)], refused


# --- real items -------------------------------------------------------------------------------------------------------


def bands_of_one_scene(shared_data: Path) -> list[Body]:
    """BAND0 and BAND1 as published; BAND2 to BAND4 made from BAND1, which differ from it in band and file only."""
    pan, blue = (real(shared_data, f"terradue-stars/cbers4a-per-band/*BAND{n}.json") for n in (0, 1))
    parts = [pan, blue]
    for number, colour in ((2, "green"), (3, "red"), (4, "nir")):
        text = json.dumps(blue).replace("BAND1", f"BAND{number}").replace("band-1", f"band-{number}")
        parts.append(json.loads(text.replace('"blue"', f'"{colour}"')))
    return parts


def halves(shared_data: Path) -> tuple[Body, Body]:
    """PAN5M as published, and the PAN10M item moved to the same place and 2 s away, as PAN10M of that scene is."""
    pan, ms = (real(shared_data, f"cbers-ams-kepler/ref_CBERS_4_PAN{size}M*.json") for size in (5, 10))
    ms |= {"geometry": pan["geometry"], "bbox": pan["bbox"], "id": "CBERS_4_PAN10M_20161009_219_050_L2"}
    ms["properties"] |= {name: pan["properties"][name] for name in ("cbers:path", "cbers:row", "proj:epsg")}
    ms["properties"]["datetime"] = "2016-10-09T17:14:40Z"
    return pan, ms


def test_items_of_one_band_are_joined(shared_data: Path, tmp_path: Path) -> None:
    (scene,), refused = found(write_catalog(tmp_path, bands_of_one_scene(shared_data)))
    assert scene.item_id == "CBERS_4A_WPM_20200730_209_139_L4"
    assert scene.bands == ("blue", "green", "red", "nir")
    assert [ref.href.rsplit("_", 1)[1] for ref in (scene.pan, *scene.ms)] == [f"BAND{n}.tif" for n in range(5)]
    assert refused == {f"CBERS_4A_WPM_20200730_209_139_L4_BAND{n}": "joined" for n in range(5)}


def test_they_wait_until_all_are_there(shared_data: Path, tmp_path: Path) -> None:
    scenes, refused = found(write_catalog(tmp_path, bands_of_one_scene(shared_data)[:4]))
    assert scenes == []
    assert list(refused.values()) == ["part_of_scene"] * 4


def test_pan_and_ms_of_two_collections_are_joined(shared_data: Path, tmp_path: Path) -> None:
    pan, ms = halves(shared_data)
    (scene,), refused = found(write_catalog(tmp_path, [ms, pan]))
    assert (scene.sensor, scene.collection, scene.item_id) == ("cbers-4-pan", "CBERS4-PAN5M", pan["id"])
    assert scene.bands == ("green", "red", "nir")
    assert [ref.key for ref in (scene.pan, *scene.ms)] == ["B1", "B2", "B3", "B4"]
    assert (Path(scene.source_href).name, [Path(href).name for href in scene.further_source_hrefs]) == (
        "1.json",
        ["0.json"],
    )
    assert refused == {ms["id"]: "joined"}


def test_a_joined_scene_costs_its_reader_what_any_of_its_items_does(shared_data: Path, tmp_path: Path) -> None:
    pan, ms = halves(shared_data)
    ms["assets"]["B2"][REQUESTER_PAYS] = True
    (scene,), _ = found(write_catalog(tmp_path, [ms, pan]))
    assert scene.properties[REQUESTER_PAYS] is True
    assert scene.properties["platform"] == pan["properties"]["platform"]


def test_a_joined_scene_with_a_file_that_must_not_be_read_is_refused(shared_data: Path, tmp_path: Path) -> None:
    pan, ms = halves(shared_data)
    ms["assets"]["B2"]["href"] = "http://169.254.169.254/b.tif"
    assert found(write_catalog(tmp_path, [ms, pan])) == ([], {ms["id"]: "joined", pan["id"]: "forbidden_href"})


def test_the_published_pair_of_different_scenes_is_not_joined(shared_data: Path, tmp_path: Path) -> None:
    items = [real(shared_data, f"cbers-ams-kepler/ref_CBERS_4_PAN{size}M*.json") for size in (5, 10)]
    scenes, refused = found(write_catalog(tmp_path, items))
    assert scenes == []
    assert set(refused.values()) == {"part_of_scene"}


@pytest.mark.parametrize(
    ("change", "joins"),
    [
        ({"datetime": "2016-10-09T17:14:43Z"}, True),
        ({"datetime": "2016-10-09T17:14:44Z"}, False),
        ({"datetime": "2016-10-08T17:14:38Z"}, False),
        ({"platform": "CBERS4"}, True),
        ({"platform": "CBERS-4A"}, False),
        ({"cbers:row": 51}, False),
        ({"cbers:data_type": "L4"}, False),
        ({"processing:level": "L4"}, False),
        ({"instruments": ["MUX"]}, False),
        ({"instruments": ["AWFI"]}, False),
    ],
)
def test_what_parts_must_have_in_common(shared_data: Path, tmp_path: Path, change: Body, *, joins: bool) -> None:
    pan, ms = halves(shared_data)
    ms["properties"] |= change
    assert bool(found(write_catalog(tmp_path, [pan, ms]))[0]) is joins


@pytest.mark.parametrize(("shift_deg", "joins"), [(0.1, True), (0.4, False), (5.0, False)])
def test_parts_must_overlap(shared_data: Path, tmp_path: Path, shift_deg: float, *, joins: bool) -> None:
    pan, ms = halves(shared_data)
    rings = [[[[x + shift_deg, y] for x, y in ring] for ring in polygon] for polygon in ms["geometry"]["coordinates"]]
    ms = ms | {"geometry": {"type": "MultiPolygon", "coordinates": rings}}
    assert bool(found(write_catalog(tmp_path, [pan, ms]))[0]) is joins


def test_pixel_sizes_of_another_ratio_are_not_joined(shared_data: Path, tmp_path: Path) -> None:
    pan, ms = halves(shared_data)
    pan["assets"]["B1"]["gsd"] = 5.0
    for key in ("B2", "B3", "B4"):
        ms["assets"][key]["gsd"] = 20.0
    assert found(write_catalog(tmp_path, [pan, ms]))[0] == []


def test_of_two_versions_the_later_is_taken_and_equal_ones_are_not_guessed(shared_data: Path, tmp_path: Path) -> None:
    pan, ms = halves(shared_data)
    again = json.loads(json.dumps(ms).replace("CBERS_4_PAN10M", "V2_CBERS_4_PAN10M"))
    assert found(write_catalog(tmp_path / "equal", [pan, ms, again]))[0] == []
    again["properties"]["updated"] = "2017-01-01T00:00:00Z"
    ms["properties"]["updated"] = "2016-12-01T00:00:00Z"
    (scene,), refused = found(write_catalog(tmp_path / "later", [pan, again, ms]))
    assert "V2_CBERS_4_PAN10M" in scene.ms[0].href
    assert refused == {again["id"]: "joined", ms["id"]: "part_of_scene"}


# --- parts that lie outside the window --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "api"])
def test_a_part_that_came_earlier_is_looked_up(shared_data: Path, tmp_path: Path, kind: str) -> None:
    """Only PAN is new; its MS was updated long before the look-back began."""
    pan, ms = halves(shared_data)
    pan["properties"]["updated"], ms["properties"]["updated"] = "2016-10-20T00:00:00Z", "2016-10-10T00:00:00Z"
    source = write_catalog(tmp_path, [pan, ms])
    since = datetime(2016, 10, 19, tzinfo=UTC)
    if kind == "api":
        with serving(tmp_path) as url:
            (scene,), refused = found(url, changed_since=since)
    else:
        (scene,), refused = found(source, changed_since=since)
    assert (scene.item_id, refused) == (pan["id"], {ms["id"]: "joined"})


def test_a_part_outside_the_window_alone_is_nobodys_business(shared_data: Path, tmp_path: Path) -> None:
    pan, ms = halves(shared_data)
    other = json.loads(json.dumps(pan).replace("20161009", "20170101").replace("2016-10-09T", "2017-01-01T"))
    source = write_catalog(tmp_path, [pan, ms, other])
    scenes, refused = found(source, ids=[other["id"]])
    assert (scenes, refused) == ([], {other["id"]: "part_of_scene"})


def test_the_search_for_parts_is_bounded(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred halves that wait take a hundred searches, and the two whose other half exists are found."""
    from pystac_client import Client

    pan, ms = halves(shared_data)
    days = [f"2016-{month:02}-{day:02}" for month in range(1, 9) for day in range(1, 26)]
    lonely = [json.loads(json.dumps(pan).replace("2016-10-09T", f"{day}T").replace("20161009", day)) for day in days]
    for body in lonely:
        body["properties"]["updated"] = "2016-10-20T00:00:00Z"
    partners = [
        json.loads(json.dumps(ms).replace("2016-10-09T", f"{day}T").replace("20161009", day)) for day in days[::150]
    ]
    for body in partners:
        body["properties"]["updated"] = "2016-01-01T00:00:00Z"
    asked: list[Any] = []
    search = Client.search

    def counted(self: Client, **options: Any) -> Any:
        asked.append(options)
        return search(self, **options)

    monkeypatch.setattr(Client, "search", counted)
    source = write_catalog(tmp_path, [*lonely, *partners])
    scenes, refused = found(source, changed_since=datetime(2016, 10, 19, tzinfo=UTC))
    assert len(asked) == 1 + MAX_PARTNER_SEARCHES
    assert sorted(scene.item_id for scene in scenes) == sorted(body["id"] for body in (lonely[0], lonely[150]))
    assert sum(code == "part_of_scene" for code in refused.values()) == 198


# --- the whole way ----------------------------------------------------------------------------------------------------


def write_scene(folder: Path) -> None:
    """PAN of 5 m and three MS files of 10 m of one texture, as CBERS-4 delivers them."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    texture = ndimage.gaussian_filter(rng.normal(size=(256, 256)), 1.2)
    pan = np.clip(120 + 60 * texture / texture.std(), 1, 250)
    write_raster(folder / "BAND1.tif", pan[None].astype(np.uint8), 5.0, crs="EPSG:32615")
    coarse = ndimage.gaussian_filter(pan, 1.0).reshape(128, 2, 128, 2).mean((1, 3))
    for number in (2, 3, 4):
        band = np.clip(coarse * (0.6 + 0.1 * number), 1, 250)[None]
        write_raster(folder / f"BAND{number}.tif", band.astype(np.uint8), 10.0, crs="EPSG:32615")


def on_disk(body: Body, folder: Path, moment: str) -> Body:
    """An item whose bands are the local files, changed at ``moment``."""
    body = json.loads(json.dumps(body))
    body["properties"]["updated"] = moment
    for key, asset in body["assets"].items():
        if key.startswith("B"):
            asset["href"] = str(folder / f"BAND{key[1:]}.tif")
    return body


def test_a_late_half_makes_the_scene_on_a_later_night(shared_data: Path, tmp_path: Path) -> None:
    """Night one finds MS alone, which waits; on night two, whose window holds PAN alone, the scene is made."""
    pan, ms = halves(shared_data)
    write_scene(tmp_path / "files")
    pan = on_disk(pan, tmp_path / "files", "2016-10-20T01:00:00Z")
    ms = on_disk(ms, tmp_path / "files", "2016-10-10T01:00:00Z")
    source, sink = tmp_path / "source", tmp_path / "sink"
    settings = Settings(source=str(source), sink=str(sink), state_dir=str(tmp_path / "state"), workers=0, block_px=128)
    key = {
        name: SceneKey(sink=str(sink), collection=body["collection"], item_id=body["id"])
        for name, body in (("pan", pan), ("ms", ms))
    }
    write_catalog(source, [ms])
    assert [line.verdict for line in make_plan(settings).lines] == ["incomplete"]
    (outcome,) = runs.run(settings, lambda _: None)
    assert (outcome.verdict, outcome.failed) == ("waiting", False)
    with open_ledger(settings) as ledger:
        row = ledger.show(key["ms"])
        assert row is not None
        assert (row.state, row.code) == (State.FOUND, "part_of_scene")

    write_catalog(source, [ms, pan])
    night = settings.model_copy(update={"changed_since": datetime(2016, 10, 19, tzinfo=UTC)})
    (outcome,) = runs.run(night, lambda _: None)
    assert outcome.verdict in {"published", "fallback", "held"}, outcome.reason
    with open_ledger(settings) as ledger:
        rows = {name: ledger.show(each) for name, each in key.items()}
    assert rows["ms"] is not None
    assert (rows["ms"].state, rows["ms"].code) == (State.REFUSED, "joined")
    assert rows["pan"] is not None
    assert rows["pan"].state is State.CONFIRMED, outcome
    assert outcome.item_href is not None
    item = pystac.Item.from_file(outcome.item_href)
    sources = [
        Path(link.href).name
        for link in item.links
        if link.rel == "derived_from" and "mlm:name" not in link.extra_fields
    ]
    assert sources == ["1.json", "0.json"]
    assert runs.run(settings, lambda _: None) == []
