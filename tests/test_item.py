"""The item says what the files and records say, is valid STAC and gives nothing secret away."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from published_scene import BANDS, GRID, QUALITY, SHAPE, files, item, recipe, staged

from pancrafter import changes, report
from pancrafter.catalog_links import extent_box
from pancrafter.errors import GridMismatchError
from pancrafter.item import AssetFile, Cost, build_item, footprint, ground_sample_distance_m, stac_license
from pancrafter.types import PixelGrid
from pancrafter.validation import validate_item


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> tuple[AssetFile, ...]:
    return files(tmp_path_factory.mktemp("files"))


def as_dict(assets: tuple[AssetFile, ...], **changed: Any) -> dict[str, Any]:
    document: dict[str, Any] = item(assets, **changed).to_dict(include_self_link=False, transform_hrefs=False)
    return document


def test_is_valid_with_all_extensions_declared(assets: tuple[AssetFile, ...]) -> None:
    document = as_dict(assets)
    validate_item(document)
    names = {uri.split("/")[-3] for uri in document["stac_extensions"]}
    assert names == {"projection", "raster", "eo", "file", "processing", "version", "classification", "view"}
    assert document["stac_version"] == "1.1.0"


def test_agrees_with_the_file(assets: tuple[AssetFile, ...]) -> None:
    asset = as_dict(assets)["assets"]["sharpened"]
    with rasterio.open(assets[0].path) as source:
        assert [band["name"] for band in asset["bands"]] == list(source.descriptions)
        assert [band["raster:scale"] for band in asset["bands"]] == list(source.scales)
        assert [band["raster:offset"] for band in asset["bands"]] == list(source.offsets)
        assert (asset["nodata"], asset["data_type"]) == (source.nodata, source.dtypes[0])
        assert asset["raster:scale"] == source.scales[0]
        properties = as_dict(assets)["properties"]
        assert properties["proj:code"] == f"EPSG:{source.crs.to_epsg()}"
        assert properties["proj:shape"] == list(source.shape)
        assert properties["proj:transform"] == list(source.transform)[:6]
        assert properties["proj:bbox"] == list(source.bounds)
        assert asset["gsd"] == source.res[0]
        first = source.read(1, masked=True)
        assert asset["bands"][0]["statistics"]["mean"] == pytest.approx(float(first.mean()))
    data = Path(assets[0].path).read_bytes()
    assert asset["file:size"] == len(data)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()


def test_bands_carry_wavelengths_and_a_warning_beyond_pan(assets: tuple[AssetFile, ...]) -> None:
    blue, *_, nir = as_dict(assets)["assets"]["sharpened"]["bands"]
    assert (blue["eo:common_name"], blue["eo:center_wavelength"]) == ("blue", 0.478)
    assert "description" not in blue
    assert "inferred" in nir["description"]


def test_mask_bits_are_described(assets: tuple[AssetFile, ...]) -> None:
    fields = as_dict(assets)["assets"]["mask"]["classification:bitfields"]
    assert {entry["name"]: 1 << entry["offset"] for entry in fields} == {
        "no_ms": 1,
        "no_pan": 2,
        "edge": 4,
        "saturated": 8,
        "low_consistency": 16,
    }
    assert [[one["value"] for one in entry["classes"]] for entry in fields] == [[0, 1]] * 5


def test_thumbnail_is_not_located(assets: tuple[AssetFile, ...]) -> None:
    thumbnail = as_dict(assets)["assets"]["thumbnail"]
    assert thumbnail["proj:code"] is None
    assert thumbnail["proj:shape"] == list(assets[2].shape_yx)
    assert thumbnail["type"] == "image/png"


def test_provenance_quality_and_cost(assets: tuple[AssetFile, ...]) -> None:
    document = as_dict(assets)
    properties = document["properties"]
    assert properties["pancrafter:source"] == {"collection": "wv3-raw", "item_id": "S1", "fingerprint": "f" * 64}
    assert properties["pancrafter:recipe"]["weights_sha256"] == "a" * 64
    assert properties["pancrafter:recipe"]["digest"] == recipe().digest
    for name, value in QUALITY.model_dump(exclude_none=True).items():
        assert properties[f"pancrafter:{name}"] == value
    assert "pancrafter:classical_hqnr" not in properties
    assert properties["pancrafter:cost"] == {"seconds": 12.5, "mpx_per_s": 0.4, "device": "cpu"}
    assert properties["pancrafter:alignment"] == {
        "ratio": 4,
        "phase_yx": [1.5, 1.5],
        "band_shift_yx": [[0.0, 0.0]] * 4,
        "shift_confidence": [0.9, 0.8, 0.9, 0.5],
        "measured_mtf": 0.2,
        "mtf_shape": 3.5,
    }
    links = {link["rel"]: link["href"] for link in document["links"]}
    assert links["derived_from"] == "https://example.com/stac/S1.json"
    assert links["collection"] == "../collection.json"


def test_what_is_carried_from_the_source(assets: tuple[AssetFile, ...]) -> None:
    properties = as_dict(assets)["properties"]
    assert (properties["platform"], properties["view:off_nadir"], properties["eo:cloud_cover"]) == (
        "worldview-3",
        12,
        3,
    )
    assert properties["license"] == "other"
    assert properties["providers"] == [{"name": "V", "roles": ["producer"], "url": "https://v.example/about"}]
    assert "view:azimuth" not in properties, "beyond what STAC allows"
    assert "secret:thing" not in properties
    assert "instruments" not in properties, "a value that STAC does not allow is left behind"


def test_nothing_secret(assets: tuple[AssetFile, ...]) -> None:
    text = json.dumps(as_dict(assets))
    assert "SECRET" not in text
    assert "user:pw" not in text


def test_unmeasured_is_absent_not_nan(assets: tuple[AssetFile, ...]) -> None:
    quality = QUALITY.model_copy(update={"hqnr": math.nan, "reduced_ergas": None})
    made = build_item(
        staged(),
        quality,
        item_id="x",
        collection_id="c",
        recipe=recipe(),
        bands=BANDS,
        assets=assets,
        cost=Cost(seconds=1),
    )
    assert not {"pancrafter:hqnr", "pancrafter:reduced_ergas"} & set(made.properties)
    validate_item(json.loads(json.dumps(made.to_dict(transform_hrefs=False), allow_nan=False)))


def test_fallback_is_labelled(assets: tuple[AssetFile, ...]) -> None:
    classical = recipe(method="mtf-glp-hpm", weights=None, weights_sha256=None)
    document = as_dict(assets, recipe=classical, fallback=True)
    validate_item(document)
    assert document["properties"]["title"] == "S1, pansharpened (classical fallback: mtf-glp-hpm)"
    assert document["properties"]["pancrafter:fallback"] is True
    assert "by mtf-glp-hpm. " in document["properties"]["processing:lineage"]


def test_an_order_of_bands_that_was_assumed_is_told(assets: tuple[AssetFile, ...]) -> None:
    told = [
        as_dict(assets, staged=staged().model_copy(update={"assumed_order": assumed}))["properties"]
        for assumed in (False, True)
    ]
    assert ["usual order" in properties["processing:lineage"] for properties in told] == [False, True]


def test_another_source_or_recipe_is_another_version(assets: tuple[AssetFile, ...]) -> None:
    redelivered = staged()
    redelivered = redelivered.model_copy(
        update={"scene": redelivered.scene.model_copy(update={"fingerprint": "0" * 64})}
    )
    made = (item(assets), item(assets, recipe=recipe(method="gsa")), item(assets, staged=redelivered))
    versions = [one.properties["version"] for one in made]
    assert len(set(versions)) == 3
    assert item(assets).properties["version"] == versions[0]


@pytest.mark.parametrize(
    "changed",
    [{"method": "gsa"}, {"weights_sha256": "c" * 64}, {"settings": {"precision": "bf16"}}, {"format_version": 9}],
)
def test_every_part_of_the_recipe_counts(changed: dict[str, Any]) -> None:
    assert recipe(**changed).digest != recipe().digest
    assert recipe().digest == recipe().digest


@pytest.mark.parametrize(
    ("found", "expected"),
    [("proprietary", "other"), ("CC-BY-4.0", "CC-BY-4.0"), ("My own terms!", "other"), ("various", "other")],
)
def test_license(found: str, expected: str) -> None:
    assert stac_license(found) == expected


def test_footprint_is_counter_clockwise_and_covers_the_grid() -> None:
    geometry, bbox = footprint(GRID)
    outline = shapely.from_geojson(json.dumps(geometry))
    assert outline.is_valid
    assert outline.exterior.is_ccw
    assert outline.bounds == pytest.approx(bbox)
    # UTM 33N: easting 500000 is 15 degrees east; 300 m of northing are 0.0027 degrees.
    assert bbox[0] == pytest.approx(15.0, abs=1e-6)
    assert bbox[3] - bbox[1] == pytest.approx(SHAPE[0] * 0.5 / 111_000, rel=0.01)
    assert len(geometry["coordinates"][0]) == 33


@pytest.mark.parametrize(
    ("crs", "easting"),
    [
        ('LOCAL_CS["site plan",UNIT["metre",1]]', 10.0),
        ("IAU_2015:49910", 10.0),
        ("EPSG:32633", 1e9),
        ("EPSG:32633", 5e7),
    ],
)
def test_a_grid_that_lies_nowhere_on_the_earth_is_refused(crs: str, easting: float) -> None:
    grid = PixelGrid(crs=crs, transform=(0.5, 0, easting, 0, -0.5, 4e6), shape_yx=SHAPE)
    with pytest.raises(GridMismatchError, match="cannot be put into longitude and latitude"):
        footprint(grid)


def test_a_scene_across_the_antimeridian_is_cut_and_stays_small_everywhere() -> None:
    """As a footprint, in its collection's extent, on the report's map, and for who follows the changes of an area."""
    grid = PixelGrid(crs="EPSG:32601", transform=(100.0, 0, 150_000.0, 0, -100.0, 200_000.0), shape_yx=(300, 600))
    geometry, bbox = footprint(grid)
    assert geometry["type"] == "MultiPolygon"
    assert (bbox[0] > 179, bbox[2] < -179) == (True, True)
    item = {"id": "x", "bbox": bbox, "geometry": geometry, "properties": {"title": "x"}}
    assert extent_box(item) == [-180.0, bbox[1], 180.0, bbox[3]]
    assert report._map([item]).count("<polygon") == 2
    assert changes._touch(bbox, (-180.0, bbox[1], -179.9, bbox[3]))
    assert not changes._touch(bbox, (0.0, bbox[1], 10.0, bbox[3]))


@pytest.mark.parametrize(
    ("crs", "pixel", "corner"),
    [
        ("EPSG:32760", 30, (800_000, 8_000_000)),
        ("EPSG:3031", 30, (-50_000, -900_000)),
        ("EPSG:3413", 25, (-300_000, 300_000)),
        ("EPSG:3857", 1, (20_036_508, 100_000)),
        ("EPSG:4326", 0.001, (179.9, 10.0)),
    ],
)
def test_a_footprint_across_the_antimeridian_is_the_grids_in_any_crs(
    crs: str, pixel: float, corner: tuple[float, float]
) -> None:
    """Two polygons wound as RFC 7946 asks, which hold the grid's pixels and little else."""
    grid = PixelGrid(crs=crs, transform=(pixel, 0, corner[0], 0, -pixel, corner[1]), shape_yx=(2000, 2000))
    geometry, bbox = footprint(grid)
    outline = shapely.from_geojson(json.dumps(geometry))
    assert outline.is_valid
    assert [part.exterior.is_ccw for part in outline.geoms] == [True, True]
    steps = np.linspace(0, 2000 * pixel, 41)
    xs, ys = (side.ravel() for side in np.meshgrid(corner[0] + steps, corner[1] - steps))
    lons, lats = map(np.array, rasterio.warp.transform(crs, "EPSG:4326", xs, ys))
    east_of_0 = lons % 360
    assert [bbox[0], bbox[2] + 360] == pytest.approx([east_of_0.min(), east_of_0.max()], abs=1e-6)
    wide = outline.buffer(0.01 * (bbox[2] + 360 - bbox[0]))
    assert shapely.contains_xy(wide, (lons + 180) % 360 - 180, lats).all()


@pytest.mark.parametrize(("crs", "pole"), [("EPSG:3413", 90.0), ("EPSG:3031", -90.0)])
def test_a_footprint_around_a_pole_is_of_all_longitudes(crs: str, pole: float) -> None:
    grid = PixelGrid(crs=crs, transform=(100.0, 0, -90_000.0, 0, -100.0, 110_000.0), shape_yx=(2000, 2000))
    geometry, bbox = footprint(grid)
    outline = shapely.from_geojson(json.dumps(geometry))
    assert (outline.geom_type, outline.is_valid, outline.exterior.is_ccw) == ("Polygon", True, True)
    assert (bbox[0], bbox[2]) == (-180.0, 180.0)
    assert pole in (bbox[1], bbox[3])
    # 90 to 156 km from the pole, of about 110 km a degree
    assert all(0.8 < abs(pole - lat) < 1.45 for lon, lat in outline.exterior.coords if lat != pole)


def test_ground_sample_distance() -> None:
    degrees = PixelGrid(crs="EPSG:4326", transform=(1e-5, 0, 15.0, 0, -1e-5, 60.005), shape_yx=(1000, 1000))
    feet = PixelGrid(crs="EPSG:2263", transform=(2.0, 0, 9e5, 0, -2.0, 2e5), shape_yx=(10, 10))
    assert ground_sample_distance_m(GRID) == 0.5
    assert ground_sample_distance_m(degrees) == pytest.approx(1.1132 * math.sqrt(0.5), rel=1e-3)
    assert ground_sample_distance_m(feet) == pytest.approx(0.6096, rel=1e-4)


@pytest.mark.parametrize(
    ("proj", "kind"),
    [
        ("+proj=tmerc +lat_0=41 +lon_0=15.3 +k=0.9 +x_0=500000 +y_0=4600000", "PROJCRS"),
        ("+proj=utm +zone=33 +ellps=intl +towgs84=-300,200,500", "BOUNDCRS"),  # EPSG:23033 but for 600 m
    ],
)
def test_a_crs_without_code_is_given_as_wkt(assets: tuple[AssetFile, ...], proj: str, kind: str) -> None:
    wkt = rasterio.crs.CRS.from_proj4(proj).to_wkt()
    pan = GRID.model_copy(update={"crs": wkt})
    source = staged()
    source = source.model_copy(update={"grid": source.grid.model_copy(update={"pan": pan})})
    made = build_item(
        source,
        QUALITY,
        item_id="x",
        collection_id="c",
        recipe=recipe(),
        bands=BANDS,
        assets=assets[2:],
        cost=Cost(seconds=1),
    )
    validate_item(made.to_dict(transform_hrefs=False))
    assert made.properties["proj:code"] is None
    assert made.properties["proj:wkt2"].startswith(kind)
