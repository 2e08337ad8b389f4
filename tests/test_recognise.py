"""Recognition: verdicts on real items of many producers, and each rule on its own with made-up ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest

from pancrafter.recognise import REQUESTER_PAYS, identify, recognise
from pancrafter.sensors import SensorContract, load_contracts
from pancrafter.types import Refusal, Scene

CONTRACTS = load_contracts()
BGRN = ("blue", "green", "red", "nir")
SIX = ("blue", "green", "red", "nir", "swir1", "swir2")
WV8 = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir1", "nir2")

ACCEPTED: dict[str, tuple[str, str, tuple[str, ...], list[tuple[str, int]]]] = {
    "maxar-opendata/item_": ("worldview-2", "pan_analytic", WV8, [("ms_analytic", n) for n in range(1, 9)]),
    "terradue-stars/perusat/": ("perusat-1", "PAN", BGRN, [("MS", 3), ("MS", 2), ("MS", 1), ("MS", 4)]),
    "cbers-ams-kepler/ref_CBERS_4A_WPM": ("cbers-4a-wpm", "B0", BGRN, [("B1", 1), ("B2", 1), ("B3", 1), ("B4", 1)]),
    "terradue-stars/geosat2/DE2_PM4": ("geosat-2", "L1D-PAN", BGRN, [("L1D-MS4", n) for n in (4, 3, 2, 1)]),
    "terradue-stars/bka/": ("kanopus-v", "L1C_PAN", BGRN, [("L1C_MUL", n) for n in (1, 2, 3, 4)]),
    "usgs-landsatlook/LC09_L1TP": (
        "landsat-8",
        "pan",
        SIX,
        [(key, 1) for key in ("blue", "green", "red", "nir08", "swir16", "swir22")],
    ),
    "dea-ga-ls8c/": (
        "landsat-8",
        "nbart_panchromatic",
        SIX,
        [(f"nbart_{key}", 1) for key in ("blue", "green", "red", "nir", "swir_1", "swir_2")],
    ),
    "terradue-stars/landsat/": ("landsat-8", "B8", SIX, [(f"B{n}", 1) for n in range(2, 8)]),
    "terradue-stars/pleiades/DS_PHR1A": ("pleiades", "P-R1C1", BGRN, [("MS-R1C1", n) for n in (3, 2, 1, 4)]),
    "terradue-stars/gaofen/GF1": ("gaofen-1", "PAN", BGRN, [("MSS", n) for n in (1, 2, 3, 4)]),
    "terradue-stars/gaofen/GF2": ("gaofen-2", "PAN", BGRN, [("MSS", n) for n in (1, 2, 3, 4)]),
    "terradue-stars/kompsat/": ("kompsat-3", "PAN", BGRN, [(f"MS{n}", 1) for n in (1, 2, 3, 4)]),
    "terradue-stars/cas500/": ("cas500-1", "L1G-P", BGRN, [(f"L1G-{c}", 1) for c in "BGRN"]),
}


def _real_items(shared_data: Path) -> dict[str, dict[str, Any]]:
    root = shared_data / "stac"
    texts = {str(file.relative_to(root)): json.loads(file.read_text()) for file in sorted(root.rglob("*.json"))}
    return {name: body for name, body in texts.items() if body.get("type") == "Feature"}


def _verdict(body: dict[str, Any], href: str = "https://example.com/items/a/item.json") -> Scene | Refusal:
    item = pystac.Item.from_dict(body, migrate=True)
    item.set_self_href(href)
    return recognise(item, CONTRACTS)


@pytest.mark.parametrize("prefix", ACCEPTED)
def test_real_items_accepted(shared_data: Path, prefix: str) -> None:
    items = {name: body for name, body in _real_items(shared_data).items() if name.startswith(prefix)}
    assert items
    sensor, pan, bands, ms = ACCEPTED[prefix]
    for name, body in items.items():
        scene = _verdict(body)
        assert isinstance(scene, Scene), (name, scene)
        assert (scene.sensor, scene.pan.key, scene.bands) == (sensor, pan, bands)
        assert [(ref.key, ref.band) for ref in scene.ms] == ms
        assert scene.pan.href.startswith(("https://", "s3://", "http://"))


def test_scaling_that_only_the_item_knows_comes_with_its_band(shared_data: Path) -> None:
    items = _real_items(shared_data)
    name = next(name for name in items if "kompsat/K3A" in name)
    scene = _verdict(items[name])
    assert isinstance(scene, Scene)
    assert [(ref.scale, ref.offset) for ref in scene.ms] == [
        (0.0362, -22.1416), (0.0249, -14.021), (0.0229, -13.0457), (0.013, -10.2834)
    ]  # fmt: skip


# --- rules, one by one ----------------------------------------------------------------------------------------------


def _bands(*names: str, style: str = "eo:bands") -> dict[str, Any]:
    key = "eo:common_name" if style == "bands" else "common_name"
    return {style: [{"name": f"b{i}", key: name} for i, name in enumerate(names)]}


def _item(assets: dict[str, dict[str, Any]], item_id: str = "scene-1", **properties: Any) -> dict[str, Any]:
    square = [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": item_id,
        "collection": "sources",
        "geometry": {"type": "Polygon", "coordinates": square},
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2025-03-01T10:00:00Z", "platform": "worldview-2", **properties},
        "links": [],
        "assets": {key: {"href": f"./{key}.tif", **fields} for key, fields in assets.items()},
    }


PAIR = {"pan": _bands("pan"), "ms": _bands("blue", "green", "red", "nir")}


@pytest.mark.parametrize("style", ["eo:bands", "bands"])
def test_both_band_styles_and_a_four_band_delivery(style: str) -> None:
    scene = _verdict(
        _item({"pan": _bands("pan", style=style), "ms": _bands("red", "green", "blue", "nir", style=style)})
    )
    assert isinstance(scene, Scene)
    assert scene.bands == ("blue", "green", "red", "nir1")
    assert [ref.band for ref in scene.ms] == [3, 2, 1, 4]
    assert scene.pan.href == "https://example.com/items/a/pan.tif"


@pytest.mark.parametrize("names", [{}, {"name": "x"}])
def test_bands_of_both_styles_are_named_by_the_one_that_names_them(names: dict[str, str]) -> None:
    ms = {"bands": [{"data_type": "uint16", **names}] * 4, **_bands("red", "green", "blue", "nir")}
    scene = _verdict(_item({"pan": {}, "ms": ms}))
    assert isinstance(scene, Scene)
    assert [ref.band for ref in scene.ms] == [3, 2, 1, 4]


def test_vrts_are_told_of_where_something_is_missing() -> None:
    refusal = _verdict(_item(PAIR | {"ms": {"href": "./ms.vrt", **PAIR["ms"]}}))
    assert isinstance(refusal, Refusal)
    assert "found pan, and VRTs (ms), which are not followed to other files" in refusal.reason


@pytest.mark.parametrize("platform", ["SPOT-7", "PHR1A", "PNEO4"])
def test_bands_without_names_follow_the_delivery_of_their_count(platform: str) -> None:
    ms = {"raster:bands": [{"data_type": "uint16"}] * 4}
    scene = _verdict(_item({"PAN": {}, "MS": ms}, platform=platform))
    assert isinstance(scene, Scene)
    assert scene.bands == BGRN
    assert [ref.band for ref in scene.ms] == [3, 2, 1, 4]


def _by_wavelength(*said: float | None, names: Sequence[str] = (), style: str = "eo:bands") -> dict[str, Any]:
    field = "eo:center_wavelength" if style == "bands" else "center_wavelength"
    bands = [{field: value} for value in said]
    return {style: [band | {"name": name} for band, name in zip(bands, names, strict=False)] or bands}


@pytest.mark.parametrize(
    ("ms", "numbers", "assumed"),
    [
        (_by_wavelength(0.659, 0.546, 0.478, 0.831), [3, 2, 1, 4], False),
        (_by_wavelength(0.831, 0.659, 0.546, 0.478, style="bands"), [4, 3, 2, 1], False),
        (_by_wavelength(659, 546, 478, 831), [3, 2, 1, 4], False),
        (_by_wavelength(0.659, 0.546, 0.478, 0.831, names="1234"), [3, 2, 1, 4], False),
        (_by_wavelength(0.478, 0.546, 0.659, 0.831), [1, 2, 3, 4], False),
        (_by_wavelength(0.478, 0.546, 0.659, 0.87), [1, 2, 3, 4], True),
        (_by_wavelength(0.478, None, None, None), [1, 2, 3, 4], True),
    ],
)
def test_bands_without_names_follow_their_wavelengths(ms: dict[str, Any], numbers: list[int], *, assumed: bool) -> None:
    """0.87 tells none, as two ranges hold it: the usual order is assumed where the others fit it."""
    scene = _verdict(_item({"pan": {"eo:bands": [{"center_wavelength": 0.659}]}, "ms": ms}))
    assert isinstance(scene, Scene), scene
    assert scene.bands == ("blue", "green", "red", "nir1")
    assert [ref.band for ref in scene.ms] == numbers
    assert {ref.assumed for ref in scene.ms} == {assumed}


@pytest.mark.parametrize("first", ["deep", "pan"])
def test_a_band_that_is_named_is_not_taken_from_one_by_its_wavelength(first: str) -> None:
    said = _by_wavelength(0.659, 0.478, 0.546, 0.659, 0.831, names=[first, "blue", "green", "red", "nir"])
    scene = _verdict(_item({"pan": {}, "ms": said}))
    assert isinstance(scene, Scene), scene
    assert [ref.band for ref in scene.ms] == [2, 3, 4, 5]


def test_a_wavelength_of_several_bands_tells_none() -> None:
    """Not the first of them, which may be PAN; with one for all bands the usual order is assumed."""
    refusal = _verdict(_item({"pan": {}, "ms": _by_wavelength(0.659, 0.478, 0.546, 0.659, 0.831)}))
    assert isinstance(refusal, Refusal), refusal
    assert "found MS bands blue, green, nir1; expected" in refusal.reason
    scene = _verdict(_item({"pan": {}, "ms": _by_wavelength(0.659, 0.659, 0.659, 0.659)}))
    assert isinstance(scene, Scene), scene
    assert [(ref.band, ref.assumed) for ref in scene.ms] == [(1, True), (2, True), (3, True), (4, True)]


def test_wavelengths_that_contradict_the_usual_order_are_never_overruled_by_it() -> None:
    verdict = _verdict(_item({"pan": {}, "ms": _by_wavelength(0.87, 0.659, 0.546, 0.478)}))
    assert isinstance(verdict, Scene), verdict
    assert (verdict.bands, [ref.band for ref in verdict.ms]) == (("blue", "green", "red"), [4, 3, 2])
    refusal = _verdict(_item({"pan": {}, "ms": _by_wavelength(0.659, None, 0.478, None)}))
    assert isinstance(refusal, Refusal), refusal
    assert "found MS bands blue, red; expected" in refusal.reason


@pytest.mark.parametrize("platform", ["WV02", "worldview-2", "WORLDVIEW_2", "WorldView 2"])
def test_platform_spelling_does_not_matter(platform: str) -> None:
    assert isinstance(_verdict(_item(PAIR, platform=platform)), Scene)


def test_platform_missing_falls_back_to_declared_hints() -> None:
    body = _item({"P": _bands("pan"), "MS": _bands("red", "green", "blue", "nir")}, instruments=["PHR-1A"])
    del body["properties"]["platform"]
    scene = _verdict(body)
    assert isinstance(scene, Scene)
    assert scene.sensor == "pleiades"
    body = _item(PAIR, item_id="GE01_20250101")
    del body["properties"]["platform"]
    assert _verdict(body).sensor == "geoeye-1"


@pytest.mark.parametrize(
    ("item_id", "sensor", "keys"),
    [
        ("CBERS_4A_WPM_20260702_198_142_L4", "cbers-4a-wpm", ["BAND0", "BAND1", "BAND2", "BAND3", "BAND4"]),
        ("K3A_20210113132915_32047_00039626_L1G", "kompsat-3", ["PAN", "MS1", "MS2", "MS3", "MS4"]),
        ("PNEO4_20211115135830_ORTHO", "pleiades-neo", ["PAN", "MS-FS"]),
        ("SV1-01_20180107_L2A0000347100_1109170063301_01", "superview-1", ["PAN", "MUX"]),
        ("WV04_20180825_110100001A2B3C00", "worldview-4", ["pan_analytic", "ms_analytic"]),
        ("LG02_20250725_200001A2B3C4D500", "worldview-legion", ["pan_analytic", "ms_analytic"]),
        ("S5_09537_5435_20070531", "spot-5", ["pan", "B1", "B2", "B3", "B4"]),
        ("S4_09537_5435_20060531", "spot-4", ["pan", "B1", "B2", "B3", "B4"]),
        ("MSC_080131020453_08126_10211230", "kompsat-2", ["PAN", "blue", "green", "red", "nir"]),
        ("MSC_210131020453_78126_10211230", "kompsat-2", ["PAN", "blue", "green", "red", "nir"]),
    ],
)
def test_producers_ids_stand_in_for_a_platform(item_id: str, sensor: str, keys: list[str]) -> None:
    body = _item({key: {} for key in keys}, item_id=item_id)
    del body["properties"]["platform"]
    scene = _verdict(body)
    assert isinstance(scene, Scene), scene
    assert scene.sensor == sensor


@pytest.mark.parametrize("contract", [c for c in CONTRACTS.values() if c.name != "generic"], ids=lambda c: c.name)
def test_every_hint_leads_to_its_own_sensor(contract: SensorContract) -> None:
    hints = [
        *({"platform": name} for name in contract.platforms),
        *({"constellation": name} for name in contract.constellations),
        *({"instruments": [name]} for name in contract.instruments),
        *({"id": re.sub(r"\[(.).*?\]", r"\1", prefix) + "1"} for prefix in contract.id_prefixes),
    ]
    for hint in hints:
        item = pystac.Item(hint.pop("id", "scene"), None, None, datetime(2025, 3, 1, tzinfo=UTC), dict(hint))
        found = identify(item, CONTRACTS)
        assert found is contract, (hint, item.id)


@pytest.mark.parametrize("item_id", ["S4_01_tile", "S5_10_2024", "MSC_site_3"])
def test_a_short_beginning_in_common_with_producers_ids_is_no_hint(item_id: str) -> None:
    item = pystac.Item(item_id, None, None, datetime(2025, 3, 1, tzinfo=UTC), {})
    assert identify(item, CONTRACTS) is None


def test_a_wrong_platform_is_not_overruled_by_hints() -> None:
    verdict = _verdict(_item(PAIR, item_id="GE01_20250101", platform="worldview-1"))
    assert isinstance(verdict, Refusal)
    assert verdict.code == "unknown_sensor"
    assert "worldview-1" in verdict.reason


@pytest.mark.parametrize(
    ("said", "assets", "charged"),
    [
        ({}, {}, None),
        ({REQUESTER_PAYS: True}, {}, True),
        ({}, {"ms": {REQUESTER_PAYS: True}}, True),
        ({}, {"thumbnail": {"roles": ["thumbnail"], REQUESTER_PAYS: True}}, None),
        ({REQUESTER_PAYS: True}, {"pan": {REQUESTER_PAYS: False}, "ms": {REQUESTER_PAYS: False}}, None),
    ],
)
def test_a_scene_knows_that_its_reader_is_charged(
    said: dict[str, Any], assets: dict[str, Any], charged: object
) -> None:
    scene = _verdict(_item({key: PAIR.get(key, {}) | assets.get(key, {}) for key in (*PAIR, *assets)}, **said))
    assert isinstance(scene, Scene)
    assert scene.properties.get(REQUESTER_PAYS) is charged


@pytest.mark.parametrize(
    ("assets", "properties", "code"),
    [
        ({"ms": PAIR["ms"]}, {}, "no_pan"),
        ({"pan": PAIR["pan"]}, {}, "no_ms"),
        ({"pan": PAIR["pan"], "thumbnail": {"roles": ["thumbnail"]}}, {}, "no_ms"),
        ({"thumbnail": {"roles": ["thumbnail"]}}, {}, "no_imagery"),
        ({"pan": PAIR["pan"], "ms": _bands("green", "red")}, {}, "bands_mismatch"),
        ({"pan": PAIR["pan"], "ortho_pansharpened": PAIR["ms"]}, {}, "already_sharpened"),
        ({"sharpened": PAIR["ms"]}, {}, "already_sharpened"),
        (PAIR, {"processing:level": "Pan-sharpened"}, "already_sharpened"),
        ({"pan": PAIR["pan"] | {"gsd": 0.5}, "ms": PAIR["ms"] | {"gsd": 0.5}}, {}, "ratio_mismatch"),
        ({"pan": PAIR["pan"] | {"gsd": 0.5}, "ms": PAIR["ms"] | {"gsd": 1.5}}, {}, "ratio_mismatch"),
        (
            {"pan": PAIR["pan"] | {"proj:shape": [80, 90]}, "ms": PAIR["ms"] | {"proj:shape": [90, 80]}},
            {},
            "ratio_mismatch",
        ),
        (
            {"P-R1C1": PAIR["pan"], "P-R2C1": PAIR["pan"], "MS-R1C1": PAIR["ms"]},
            {"platform": "spot-6"},
            "tiled_product",
        ),
        ({"P": PAIR["pan"], "MS-R1C1": PAIR["ms"], "MS-R2C1": PAIR["ms"]}, {"platform": "spot-6"}, "tiled_product"),
        (PAIR, {"platform": "sputnik"}, "unknown_sensor"),
        ({}, {}, "malformed"),
    ],
)
def test_refusals(assets: dict[str, Any], properties: dict[str, Any], code: str) -> None:
    verdict = _verdict(_item(assets, **properties))
    assert isinstance(verdict, Refusal), verdict
    assert verdict.code == code
    assert verdict.key == "sources/scene-1"
    assert len(verdict.reason) > 20


def test_no_geometry_is_malformed() -> None:
    verdict = _verdict(_item(PAIR) | {"geometry": None, "bbox": None})
    assert isinstance(verdict, Refusal)
    assert verdict.code == "malformed"


@pytest.mark.parametrize(
    "fields",
    [
        {"nodata": 65535, "raster:scale": 0.5},
        {"raster:bands": [{"nodata": 65535, "scale": 0.5}] * 4},
        {"bands": [{"name": name, "nodata": 65535, "raster:scale": 0.5} for name in BGRN]},
        {"nodata": "nan", "raster:bands": [{"nodata": 65535, "scale": 0.5, "offset": "none"}] * 4},
    ],
)
def test_what_the_item_says_of_nodata_and_scale_is_kept(fields: dict[str, Any]) -> None:
    item = _item(PAIR)
    item["assets"]["ms"] |= fields
    scene = _verdict(item)
    assert isinstance(scene, Scene), scene
    assert [(ref.nodata, ref.scale, ref.offset) for ref in scene.ms] == [(65535, 0.5, None)] * 4


@pytest.mark.parametrize("ratio", [3.997, 4.0, 1.99987 * 2])
def test_nearly_integer_ratios_are_left_to_the_headers(ratio: float) -> None:
    assets = {"pan": PAIR["pan"] | {"gsd": 0.5}, "ms": PAIR["ms"] | {"gsd": 0.5 * ratio}}
    assert isinstance(_verdict(_item(assets)), Scene)


def test_pair_wins_over_a_sharpened_picture_beside_it() -> None:
    scene = _verdict(
        _item(PAIR | {"visual": _bands("red", "green", "blue"), "pansharpened": _bands("red", "green", "blue", "nir")})
    )
    assert isinstance(scene, Scene)
    assert {ref.key for ref in scene.ms} == {"ms"}


def test_a_gray_band_labelled_pan_is_not_pan() -> None:
    """rio-stac labels any single gray band pan."""
    assets = {f"B{n}": _bands("pan") for n in range(2, 9)}
    scene = _verdict(_item(assets, platform="landsat-8"))
    assert isinstance(scene, Scene)
    assert scene.pan.key == "B8"
    assert [ref.key for ref in scene.ms] == ["B2", "B3", "B4", "B5", "B6", "B7"]


def test_masks_and_side_files_are_not_imagery() -> None:
    extras = {"pan-wf": {"roles": ["data", "world-file"]}, "ms_mask": {"roles": ["data-mask"], **_bands("pan")}}
    assert isinstance(_verdict(_item(PAIR | extras)), Scene)


def test_times_become_utc() -> None:
    body = _item(PAIR, start_datetime="2025-03-01T12:00:00+02:00", end_datetime="2025-03-01T12:01:00+02:00")
    body["properties"]["datetime"] = None
    scene = _verdict(body)
    assert isinstance(scene, Scene)
    assert datetime.fromisoformat(scene.acquired) == datetime(2025, 3, 1, 10, tzinfo=UTC)


def test_properties_are_carried() -> None:
    carried = {"constellation": "wv", "instruments": ["vnir"], "license": "other", "eo:cloud_cover": 3}
    scene = _verdict(_item(PAIR, **carried, **{"view:sun_elevation": 40.5, "secret": "x"}))
    assert isinstance(scene, Scene)
    assert scene.properties == carried | {"platform": "worldview-2", "view:sun_elevation": 40.5}


def _fingerprint(body: dict[str, Any]) -> str:
    scene = _verdict(body)
    assert isinstance(scene, Scene)
    return scene.fingerprint


def test_fingerprint_follows_the_source() -> None:
    base = _fingerprint(_item(PAIR))
    assert base == _fingerprint(_item(PAIR, **{"eo:cloud_cover": 7}))
    assert base == _fingerprint(_item(PAIR | {"visual": {"roles": ["visual"]}}))
    assert base != _fingerprint(_item(PAIR, updated="2025-04-01T00:00:00Z"))
    changed = {"pan": PAIR["pan"] | {"file:checksum": "1220aa"}, "ms": PAIR["ms"]}
    assert base != _fingerprint(_item(changed))


def test_signatures_never_enter_a_scene() -> None:
    body = _item(PAIR)
    plain = _fingerprint(
        body | {"assets": {k: a | {"href": f"https://h/{k}.tif?v=2"} for k, a in body["assets"].items()}}
    )
    signed = {k: a | {"href": f"https://h/{k}.tif?v=2&sig=SECRET&se=2025"} for k, a in body["assets"].items()}
    scene = _verdict(body | {"assets": signed})
    assert isinstance(scene, Scene)
    assert scene.fingerprint == plain
    assert "SECRET" not in scene.model_dump_json()


def test_files_by_their_urls_are_paths() -> None:
    scene = _verdict(_item({"pan": PAIR["pan"] | {"href": "file:///data/a%20b.tif"}, "ms": PAIR["ms"]}))
    assert isinstance(scene, Scene)
    assert scene.pan.href == "/data/a b.tif"
