"""Verdicts: the table of real documents, metadata that contradict themselves, and what other producers write."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pancrafter.catalog import check_document
from pancrafter.examine import declared_grid, declared_ratios, examine
from pancrafter.judge import Judgement
from pancrafter.sensors import contract_schema, load_contracts, parse_contract

CONTRACTS = load_contracts()

VERDICTS: dict[str, tuple[str, str | None]] = {
    "cbers-ams-kepler/ref_CBERS_4A_WPM": ("needs_header", None),
    "cbers-ams-kepler/ref_CBERS_4_PAN10M": ("pair", "part_of_scene"),
    "cbers-ams-kepler/ref_CBERS_4_PAN5M": ("pair", "part_of_scene"),
    "dea-ga-ls8c/": ("eligible", None),
    "maxar-opendata/item_": ("eligible", None),
    "maxar-opendata/events_catalog": ("refused", "no_item"),
    "maxar-opendata/hotosm": ("refused", "no_item"),
    "mlm-model-items/": ("refused", "no_imagery"),
    "planetary-computer-landsat/LC08_L2SP": ("refused", "no_pan"),
    "planetary-computer-landsat/landsat": ("refused", "no_item"),
    "spec-examples-stac-1.1/": ("refused", "no_pan"),
    "terradue-stars/bka/": ("defect", None),
    "terradue-stars/blacksky/BSG-102": ("refused", "no_ms"),
    "terradue-stars/blacksky/BSG-108": ("refused", "ratio_mismatch"),
    "terradue-stars/cas500/": ("eligible", None),
    "terradue-stars/cbers4a-per-band/": ("pair", "part_of_scene"),
    "terradue-stars/gaofen/": ("eligible", None),
    "terradue-stars/geosat2/DE2_PM4": ("needs_header", None),
    "terradue-stars/geosat2/DE2_PSH": ("refused", "already_sharpened"),
    "terradue-stars/kompsat/": ("defect", None),
    "terradue-stars/landsat/": ("defect", None),
    "terradue-stars/maxar-legacy/WV01": ("refused", "no_ms"),
    "terradue-stars/maxar-legacy/": ("refused", "no_pan"),
    "terradue-stars/perusat/": ("eligible", None),
    "terradue-stars/pleiades/DS_PHR1A": ("eligible", None),
    "terradue-stars/pleiades/DS_PHR1B": ("refused", "already_sharpened"),
    "terradue-stars/satellogic/": ("refused", "no_pan"),
    "terradue-stars/spot67/": ("refused", "already_sharpened"),
    "terradue-stars/vision1/": ("refused", "already_sharpened"),
    "usgs-landsatlook/LC09_L1TP": ("eligible", None),
    "usgs-landsatlook/": ("refused", "no_pan"),
}
"""What the description of the collected documents expects of each, by the beginning of its path (longest counts).

Where it names two outcomes (no PAN and a defect, header and a defect) the order in `pancrafter.judge` decides.
"""

DEFECTS = {
    "terradue-stars/bka/": "int8",
    "terradue-stars/landsat/": "width and height are swapped",
    "terradue-stars/kompsat/": "width and height are swapped",
    "terradue-stars/maxar-legacy/WV": "cannot be metres; taken as degrees",
    "terradue-stars/satellogic/2022": "proj:epsg is '32737' (str)",
    "spec-examples-stac-1.1/raster-v2_item-planet": "width and height are swapped",
}
"""Every defect there is to report; all other documents have none."""


def _documents(shared_data: Path) -> dict[str, dict[str, Any]]:
    root = shared_data / "stac"
    return {str(file.relative_to(root)): json.loads(file.read_text()) for file in sorted(root.rglob("*.json"))}


def _judge(body: dict[str, Any]) -> Judgement:
    return check_document(body, "https://example.com/items/a/item.json", CONTRACTS)


def test_every_real_document_has_its_verdict(shared_data: Path) -> None:
    documents = _documents(shared_data)
    assert len(documents) == 48
    for name, body in documents.items():
        expected = max((prefix for prefix in VERDICTS if name.startswith(prefix)), key=len)
        found = _judge(body)
        assert (found.verdict, found.code) == VERDICTS[expected], (name, found.reason)
        assert len(found.reason) > 20
        assert (found.pan is not None) == (found.verdict in {"eligible", "needs_header", "defect"}), name


def test_every_defect_is_reported_and_no_other(shared_data: Path) -> None:
    for name, body in _documents(shared_data).items():
        expected = next((text for prefix, text in DEFECTS.items() if name.startswith(prefix)), None)
        found = _judge(body)
        if expected is None:
            assert found.defects == (), name
        else:
            assert found.defects, name
            assert all(expected in defect for defect in found.defects), (name, found.defects)
            assert found.defects[0] in found.reason
            more = len(found.defects) - 1
            assert found.code or found.reason.endswith(f" (and {more} more)" if more else found.defects[0]), name


def test_verdicts_do_not_depend_on_the_id(shared_data: Path) -> None:
    for name, body in _documents(shared_data).items():
        renamed = _judge(body | {"id": "renamed"})
        assert renamed.verdict == _judge(body).verdict, name


def test_declared_grids_of_a_landsat_scene(shared_data: Path) -> None:
    (body,) = (b for n, b in _documents(shared_data).items() if n.startswith("usgs-landsatlook/LC09_L1TP"))
    found = _judge(body)
    assert found.pan_grid is not None
    assert found.ms_grid is not None
    assert (found.pan_grid.crs, found.pan_grid.shape, found.pan_grid.pixel_size) == ("EPSG:32637", (15361, 15181), 15)
    assert (found.ms_grid.shape, found.ms_grid.inherited_shape) == ((7681, 7591), True)


def test_the_two_descriptions_of_one_scene_agree_after_the_swap_is_undone(shared_data: Path) -> None:
    """USGS and a second producer describe LC09 166/072: the same grid, once the second one's shape is turned."""
    documents = _documents(shared_data)
    usgs = next(b for n, b in documents.items() if n.startswith("usgs-landsatlook/LC09_L1TP"))
    other = next(b for n, b in documents.items() if n.startswith("terradue-stars/landsat/LC09_L1TP"))
    rows, cols = declared_grid(usgs, "pan").shape or (0, 0)
    assert f"taken as [{rows}, {cols}]" in " ".join(_judge(other).defects)


# --- made-up items: how else it could be written ----------------------------------------------------------------------


SQUARE = {"type": "Polygon", "coordinates": [[[9.0, 50.0], [9.1, 50.0], [9.1, 50.1], [9.0, 50.1], [9.0, 50.0]]]}


def _bands(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "common_name": name} for name in names]


def _item(assets: dict[str, dict[str, Any]], **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": properties.pop("stac_version", "1.0.0"),
        "id": properties.pop("id", "scene-1"),
        "geometry": SQUARE,
        "bbox": [9.0, 50.0, 9.1, 50.1],
        "properties": {"datetime": "2025-03-01T10:00:00Z", "platform": "worldview-2", **properties},
        "links": [],
        "assets": {key: {"href": f"./{key}.tif", **fields} for key, fields in assets.items()},
    }


PAN = {"eo:bands": _bands("pan"), "proj:shape": [800, 800]}
MS = {"eo:bands": _bands("blue", "green", "red", "nir"), "proj:shape": [200, 200]}


@pytest.mark.parametrize("version", ["0.9.0", "1.0.0-beta.2", "1.0.0-rc.2", "1.0.0", "1.0.1", "1.1.0"])
def test_every_stac_version(version: str) -> None:
    assert _judge(_item({"pan": PAN, "ms": MS}, stac_version=version)).verdict == "eligible"


@pytest.mark.parametrize(
    ("projection", "verdict", "crs"),
    [
        ({"proj:epsg": 32632}, "eligible", "EPSG:32632"),
        ({"proj:epsg": None}, "eligible", None),
        ({}, "eligible", None),
        ({"proj:code": "EPSG:32632"}, "eligible", "EPSG:32632"),
        ({"proj:code": None, "proj:wkt2": "PROJCRS[...]"}, "eligible", None),
        ({"proj:code": "epsg:32632"}, "eligible", "EPSG:32632"),
        ({"proj:epsg": "32632"}, "defect", "EPSG:32632"),
        ({"proj:epsg": 32632.0}, "defect", None),
        ({"proj:epsg": True}, "defect", None),
        ({"proj:code": 32632}, "defect", None),
        ({"proj:epsg": 32632, "proj:code": "EPSG:32633"}, "defect", "EPSG:32633"),
    ],
)
def test_ways_to_write_a_crs(projection: dict[str, Any], verdict: str, crs: str | None) -> None:
    found = _judge(_item({"pan": PAN, "ms": MS}, **projection))
    assert (found.verdict, found.pan_grid.crs if found.pan_grid else None) == (verdict, crs), found


@pytest.mark.parametrize(
    ("pan", "ms", "properties", "verdict"),
    [
        ({"proj:shape": None}, {}, {}, "needs_header"),
        ({"proj:shape": None}, {"proj:shape": None}, {"proj:shape": [800, 800]}, "needs_header"),
        ({}, {"proj:shape": None}, {"proj:shape": [200, 200]}, "eligible"),
        ({"proj:shape": None}, {}, {"proj:shape": [800, 800]}, "eligible"),
        ({"proj:shape": "800x800"}, {}, {}, "needs_header"),
        ({"proj:shape": [800, 800, 1]}, {}, {}, "needs_header"),
        ({"gsd": 0.5}, {"gsd": 2.0}, {"gsd": 0.5}, "eligible"),
        ({"gsd": 4.5e-06}, {"gsd": 1.8e-05}, {}, "defect"),
        ({"gsd": "0.5 m"}, {"gsd": "2 m"}, {}, "defect"),
        ({"raster:spatial_resolution": 0.5, "raster:bands": [{"spatial_resolution": 0.6}]}, {}, {}, "defect"),
        ({"raster:spatial_resolution": 0.5, "raster:bands": [{"spatial_resolution": 0.54}]}, {}, {}, "eligible"),
        (
            {"raster:bands": [{"spatial_resolution": 2.0}]},
            {"raster:bands": [{"spatial_resolution": 2.0}]},
            {},
            "defect",
        ),
        ({"raster:bands": [{"data_type": "int8"}]}, {}, {}, "defect"),
        ({"raster:bands": [{"data_type": "uint16", "nodata": "inf"}]}, {}, {}, "defect"),
        ({"raster:bands": [{"data_type": "float32", "nodata": "nan"}]}, {}, {}, "eligible"),
        ({"data_type": "int8"}, {}, {}, "defect"),
        (
            {},
            {"bands": [{"name": name, "data_type": "int8"} for name in ("blue", "green", "red", "nir")]},
            {},
            "defect",
        ),
        ({"gsd": 0.5, "raster:bands": [{"spatial_resolution": 0.3}]}, {}, {}, "eligible"),
        ({"proj:shape": [0, 0]}, {}, {}, "needs_header"),
        ({"proj:shape": ["800", "800"]}, {}, {}, "needs_header"),
        ({"proj:shape": [800.0, 800.0]}, {}, {}, "needs_header"),
        ({}, {}, {"proj:epsg": 32632, "proj:code": "epsg:32632"}, "eligible"),
        ({}, {}, {"end_datetime": "2025-03-01"}, "defect"),
        ({}, {}, {"datetime": "2025-03-01 10:00:00"}, "defect"),
        ({}, {}, {"datetime": "2025-03-01T10:00:00.1234567Z"}, "eligible"),
    ],
)
def test_what_is_missing_or_contradicts_itself(
    pan: dict[str, Any], ms: dict[str, Any], properties: dict[str, Any], verdict: str
) -> None:
    assets = {"pan": PAN | pan, "ms": MS | ms}
    assets = {key: {k: v for k, v in fields.items() if v is not None} for key, fields in assets.items()}
    found = _judge(_item(assets, **properties))
    assert found.verdict == verdict, found


@pytest.mark.parametrize(
    ("assets", "properties", "code"),
    [
        ({"PMS": MS}, {"platform": "SPOT-7"}, "already_sharpened"),
        ({"image": MS | {"title": "Pan-sharpened, 4 bands"}}, {"platform": "SPOT-7"}, "already_sharpened"),
        ({"image": MS | {"description": "pansharpened by the vendor"}}, {}, "already_sharpened"),
        ({"image": MS}, {"id": "X_PSH_20250101"}, "already_sharpened"),
        ({"image": MS}, {"title": "WorldView-2 pansharpened ortho"}, "already_sharpened"),
        ({"visual": MS}, {}, "already_sharpened"),
        ({"ortho_pansharpened": MS, "ortho_visual": MS}, {"platform": "SkySat"}, "already_sharpened"),
        (
            {"ortho_panchromatic": PAN | {"gsd": 0.5}, "ortho_analytic": MS | {"gsd": 0.5, "proj:shape": [800, 800]}},
            {"platform": "SkySatCollect"},
            "ratio_mismatch",
        ),
        ({"pan": PAN, "ms": MS | {"proj:shape": [800, 800]}}, {"platform": "sputnik"}, "ratio_mismatch"),
        ({"pan": PAN, "ms": MS}, {"platform": "sputnik"}, "unknown_sensor"),
        ({"pan-r1": PAN, "pan-r2": PAN, "ms": MS}, {"platform": "sputnik"}, "unknown_sensor"),
        ({"red": {"eo:bands": _bands("red")}}, {"platform": "sputnik"}, "no_pan"),
        ({"B1": {"eo:bands": _bands("pan")}}, {"platform": "sputnik"}, "no_ms"),
        ({"vv": {"type": "application/json", "href": "./x.json"}}, {"platform": "sentinel-1"}, "no_imagery"),
    ],
)
def test_refused_with_the_reason_that_helps_most(
    assets: dict[str, dict[str, Any]], properties: dict[str, Any], code: str
) -> None:
    found = _judge(_item(assets, **properties))
    assert (found.verdict, found.code) == ("refused", code), found.reason


@pytest.mark.parametrize(
    ("properties", "note"),
    [
        ({}, "no CRS in the metadata"),
        ({"proj:wkt2": "PROJCRS[...]"}, None),
        ({"proj:code": "EPSG:32632", "processing:level": "L1B"}, "level L1B: probably sensor geometry"),
        ({"proj:code": "EPSG:32632", "processing:level": "L1B ortho"}, None),
        ({"proj:code": "EPSG:32632", "id": "LC09_20250301_RT"}, "real-time tier"),
        ({"proj:code": "EPSG:32632", "landsat:collection_category": "RT"}, "real-time tier"),
    ],
)
def test_doubts_are_noted(properties: dict[str, Any], note: str | None) -> None:
    found = _judge(_item({"pan": PAN, "ms": MS}, **properties)).notes
    assert [text[: len(note or "")] for text in found] == ([note] if note else [])


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"href": "./p.TIF?sig=x", "type": "image/jp2"}, "pan: media type is 'image/jp2' for a .tif"),
        ({"href": "./p.tif", "type": "image/tiff; application=geotiff; profile=cloud-optimized"}, None),
        ({"href": "./p.jp2", "type": "image/jp2"}, None),
        ({"raster:bands": [{}, {}]}, "pan: 1 bands are named and 2 described"),
        ({"raster:bands": [{}]}, None),
        ({"eo:bands": [], "bands": _bands("pan"), "raster:bands": [{}, {}]}, "pan: 1 bands are named and 2 described"),
        ({"eo:bands": [], "raster:bands": [{}, {}]}, None),
    ],
)
def test_doubts_about_an_asset_are_noted(fields: dict[str, Any], note: str | None) -> None:
    found = examine(_item({"pan": PAN | fields}, **{"proj:code": "EPSG:32632"})).notes
    assert [text[: len(note or "")] for text in found] == ([note] if note else [])


TRANSFORM = [0.5, 0, 5e5, 0, -0.5, 5e6]


@pytest.mark.parametrize(
    ("asset", "properties", "transform", "pixel_size"),
    [
        ({"proj:transform": TRANSFORM}, {}, TRANSFORM, 0.5),
        ({"proj:transform": [*TRANSFORM, 0, 0, 1]}, {}, [*TRANSFORM, 0, 0, 1], 0.5),
        ({}, {"proj:transform": [-0.5, *TRANSFORM[1:]]}, [-0.5, *TRANSFORM[1:]], 0.5),
        ({"gsd": 0.4}, {"proj:transform": TRANSFORM}, TRANSFORM, 0.4),
        ({"proj:shape": [800, 800]}, {"proj:transform": TRANSFORM}, None, None),  # that of another asset
        ({"proj:transform": ["0.5", *TRANSFORM[1:]]}, {}, None, None),
        ({"proj:transform": [0, 0.5, 5e5, -0.5, 0, 5e6], "gsd": 0.5}, {}, None, 0.5),  # turned
        ({"bands": [{"raster:spatial_resolution": 0.5, "gsd": 0.4}]}, {}, None, 0.5),
        ({"bands": [{"gsd": 0.4}], "raster:bands": [{"spatial_resolution": -0.5}]}, {}, None, 0.5),
        ({"bands": [{"gsd": 0.4}]}, {}, None, 0.4),
        ({"gsd": True, "raster:spatial_resolution": float("inf")}, {}, None, None),
    ],
)
def test_pixel_size_comes_from_what_is_most_exact(
    asset: dict[str, Any], properties: dict[str, Any], transform: list[float] | None, pixel_size: float | None
) -> None:
    found = declared_grid(
        _item({"pan": asset | {"proj:code": "EPSG:32633"}}, **properties, **{"proj:code": "EPSG:32632"}), "pan"
    )
    assert (found.transform, found.pixel_size) == (None if transform is None else tuple(transform), pixel_size)
    assert found.crs == "EPSG:32633", "that of the asset counts"


@pytest.mark.parametrize(
    ("changes", "shape", "north", "taken"),
    [
        ({}, [2225, 4421], 0.02, "[4421, 2225]"),
        ({}, [4421, 2225], 0.02, None),
        ({}, [2225, 2226], 0.010069, None),  # fits either way
        ({}, [2300, 4421], 0.02, None),  # fits neither way
        ({"type": "MultiPolygon"}, [2225, 4421], 0.02, "[4421, 2225]"),
        ({"coordinates": None}, [2225, 4421], 0.02, None),
        ({"crs": "EPSG:999999"}, [2225, 4421], 0.02, None),
    ],
)
def test_rows_and_columns_that_are_exchanged(
    changes: dict[str, Any], shape: list[int], north: float, taken: str | None
) -> None:
    """0.01 degrees of longitude are 1112.7 m in UTM there, 0.02 of latitude 2210.6 m."""
    ring = [[9.0, 0.0], [9.01, 0.0], [9.01, north], [9.0, north], [9.0, 0.0]]
    geometry = {"type": "Polygon", "coordinates": [[ring]] if "type" in changes else [ring]} | changes
    pan = PAN | {"proj:shape": shape, "gsd": 0.5}
    item = _item({"pan": pan}, **{"proj:code": changes.get("crs", "EPSG:32632")}) | {"geometry": geometry}
    assert [text.split("taken as ")[1] for text in examine(item).defects] == ([taken] if taken else [])


@pytest.mark.parametrize(
    ("key", "band", "says_pan"),
    [("pan", {}, True), ("B8", {"description": "Panchromatic"}, True), ("B2", {"description": "JAPAN, blue"}, False)],
)
def test_a_collection_tells_whether_its_items_hold_pan(key: str, band: dict[str, str], *, says_pan: bool) -> None:
    assets = {key: {"eo:bands": [band]}, "red": {"eo:bands": [{"name": "B4"}]}}
    found = _judge({"type": "Collection", "id": "c", "links": [], "item_assets": assets})
    assert found.code == "no_item"
    assert ("none of its item_assets" in found.reason) is not says_pan


def test_ms_bands_may_be_spread_over_two_files() -> None:
    """Pléiades Neo: red, green, blue in one file; NIR, red edge and deep blue in another."""
    assets = {
        "P": PAN,
        "MS-FS-RGB": {"eo:bands": _bands("red", "green", "blue"), "proj:shape": [200, 200]},
        "MS-FS-NED": {"eo:bands": _bands("nir", "rededge", "coastal"), "proj:shape": [200, 200]},
    }
    found = _judge(_item(assets, platform="PNEO3"))
    assert (found.verdict, found.bands) == ("eligible", ("deepblue", "blue", "green", "red", "rededge", "nir"))
    assert [(ref.key[-3:], ref.band) for ref in found.ms] == [
        ("NED", 3), ("RGB", 3), ("RGB", 2), ("RGB", 1), ("NED", 2), ("NED", 1)
    ]  # fmt: skip
    tiles = {f"{key}-R{row}C1": fields for key, fields in assets.items() for row in (1, 2)}
    assert _judge(_item(tiles, platform="PNEO3")).code == "tiled_product"


@pytest.mark.parametrize(
    ("platform", "pan", "ms", "sensor", "order"),
    [
        ("SPOT-7", "src_pan", "src_xs", "spot-6", "red, green, blue, nir"),
        ("PHR1A", "IMG_PHR1A_P_001_R1C1", "IMG_PHR1A_MS_001_R1C1", "pleiades", "red, green, blue, nir"),
        ("PHR 1B", "P", "XS", "pleiades", "red, green, blue, nir"),
        ("QuickBird-02", "pan", "mul", "quickbird", "blue, green, red, nir"),
        ("WORLDVIEW-3", "PAN", "MUL", "worldview-3", "coastal, blue, green, yellow, red, rededge, nir1, nir2"),
        ("GF-2", "PAN1", "MSS1", "gaofen-2", "blue, green, red, nir"),
    ],
)
def test_metadata_that_name_no_band_leave_their_number_to_the_header(
    platform: str, pan: str, ms: str, sensor: str, order: str
) -> None:
    found = _judge(_item({pan: {}, ms: {}}, platform=platform))
    assert (found.verdict, found.sensor) == ("needs_header", sensor), found.reason
    assert f"{ms}: no bands are named; taken in the order {order}, unless the file's header names them" in found.notes


@pytest.mark.parametrize("name", ["Pléiades", "PLEIADES", "Pleiades"])
def test_accents_do_not_matter(name: str) -> None:
    assert _judge(_item({"P": PAN, "MS": MS}, platform=None, constellation=name)).sensor == "pleiades"


def test_one_fitting_figure_is_enough_for_the_ratio() -> None:
    assets = {"pan": PAN | {"gsd": 2.0}, "ms": MS | {"gsd": 2.0}}
    found = _judge(_item(assets))
    assert found.verdict == "defect"
    assert "1.000 by gsd, 4.000 by size in pixels" in found.defects[0]


@pytest.mark.parametrize(
    ("pan", "ms", "ratios"),
    [([15361, 15181], [7681, 7591], [2.0]), ([800, 800], [200, 400], []), ([800, 800], [400, 200], [])],
)
def test_sizes_in_pixels_tell_the_ratio_where_both_sides_agree(
    pan: list[int], ms: list[int], ratios: list[float]
) -> None:
    found = declared_ratios({"proj:shape": pan}, {"proj:shape": ms})
    assert [ratio for _, ratio in found] == pytest.approx(ratios, rel=1e-3)


def test_what_is_examined_are_images_and_pairs() -> None:
    pixels = {"data_type": "int8"}
    assets = {"red": {"raster:bands": [pixels, pixels], "proj:shape": [800, 800], "gsd": 1.0}}
    assets["ms"] = {"proj:shape": [200, 200], "gsd": 2.0}
    assets["preview"] = {"roles": ["Thumbnail"], "raster:bands": [pixels]}
    (defect,) = examine(_item(assets)).defects
    assert defect.startswith("red: data_type is int8")


def test_malformed_documents_are_defects() -> None:
    for body in ({}, {"type": "Feature"}, _item({"pan": PAN}) | {"properties": None}, _item({"pan": PAN}) | {"id": 7}):
        found = _judge(deepcopy(body))
        assert (found.verdict, found.code) == ("defect", "malformed"), body


def test_examine_takes_any_json() -> None:
    assert examine({}).defects == ()
    assert examine({"assets": {"a": None, "b": {"proj:shape": [1, 2]}}, "properties": [], "geometry": 5}).defects == ()


# --- contract files ---------------------------------------------------------------------------------------------------


def test_the_published_schema_is_that_of_the_contracts() -> None:
    import jsonschema
    import yaml

    folder = Path(__file__).resolve().parents[1] / "pancrafter"
    published = json.loads((folder / "schemas" / "sensor-contract.json").read_text())
    assert published == contract_schema()
    validator = jsonschema.Draft202012Validator(published)
    for path in (folder / "contracts").glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text()))
    assert not validator.is_valid({"name": "x"})


@pytest.mark.parametrize(
    "platform",
    ["WV02", "WV03", "GE01", "QB02", "IKONOS", "Gaofen-1", "Gaofen-2", "PHR-1A", "Pléiades Neo 3", "PNEO4", "SPOT-6",
     "SPOT-7", "SkySat", "KOMPSAT-3", "KOMPSAT-3A", "CAS500-1", "CBERS-4A", "PeruSAT-1", "GEOSAT-2", "Vision-1",
     "Landsat-7", "LANDSAT_8", "LANDSAT_9", "LG01", "WorldView Legion 3", "SPOT 4", "SPOT5", "KOMPSAT-2"],
)  # fmt: skip
def test_every_promised_sensor_has_a_contract(platform: str) -> None:
    from pancrafter.sensors import contract_for_platform

    contract = contract_for_platform(platform.replace("é", "e"), CONTRACTS)
    assert contract is not None
    assert contract.source
    assert parse_contract(json.dumps(contract.model_dump(mode="json")), "x") == contract
