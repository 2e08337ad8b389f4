from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from pancrafter.errors import ContractError, GridMismatchError, InvalidSceneError, SinkError
from pancrafter.ingest import add_pair
from pancrafter.ingest_arrays import add_pairs_directory
from pancrafter.item import footprint
from pancrafter.pair_files import read_pixels
from pancrafter.recognise import recognise
from pancrafter.sensors import load_contracts
from pancrafter.types import PixelGrid, Scene
from pancrafter.validation import validate_document
from pancrafter.vendor_files import Georeference, parse_georeference

WV3 = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir1", "nir2")


def write(
    path: Path,
    count: int = 1,
    size: int = 32,
    step: float = 1.0,
    *,
    corner: tuple[float, float] = (400_000.0, 5_600_000.0),
    crs: str | None = "EPSG:32633",
    seed: int = 0,
    descriptions: Sequence[str] = (),
    tags: dict[str, str] | None = None,
    **profile: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"driver": "GTiff", "count": count, "height": size, "width": size, "dtype": "uint16", **profile}
    if crs:
        settings |= {"crs": crs, "transform": Affine(step, 0, corner[0], 0, -step, corner[1])}
    data = np.random.default_rng(seed).integers(1, 2000, (count, settings["height"], settings["width"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings) as out:
            out.write(data.astype(settings["dtype"]))
            if descriptions:
                out.descriptions = tuple(descriptions)
            out.update_tags(**(tags or {}))
    return path


@pytest.fixture
def pan(tmp_path: Path) -> Path:
    return write(tmp_path / "in" / "scene_pan.tif", size=32, step=0.5)


@pytest.fixture
def ms(tmp_path: Path) -> Path:
    return write(tmp_path / "in" / "scene_ms.tif", count=8, size=8, step=2.0)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


def items(catalog: Path) -> dict[str, pystac.Item]:
    """Every item, found by following links from the root, valid against the schemas, with all its files there."""
    root = pystac.Catalog.from_file((catalog / "catalog.json").as_posix())
    validate_document(root.to_dict(transform_hrefs=False))
    found = {}
    for collection in root.get_children():
        validate_document(collection.to_dict(transform_hrefs=False))
        for item in collection.get_items():
            validate_document(item.to_dict(transform_hrefs=False))
            for asset in item.assets.values():
                href = asset.get_absolute_href()
                assert href is not None
                assert Path(href).is_file()
            found[item.id] = item
    return found


def recognised(item: pystac.Item) -> Scene:
    scene = recognise(item, load_contracts())
    assert isinstance(scene, Scene), scene
    return scene


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what the item says -------------------------------------------------------------------------------------------


def test_a_pair_becomes_a_valid_item_that_discovery_accepts(catalog: Path, pan: Path, ms: Path) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    result = add_pair(catalog, "worldview-3", pan, [ms], acquired=moment, properties={"eo:cloud_cover": 3})
    assert (result.item_id, result.change, result.bands, result.datetime_from) == ("scene_pan", "added", WV3, "option")
    item = items(catalog)["scene_pan"]
    scene = recognised(item)
    assert (scene.sensor, scene.bands, scene.acquired) == ("worldview-3", WV3, "2024-05-06T07:08:09Z")
    assert [ref.band for ref in scene.ms] == list(range(1, 9))
    assert Path(scene.pan.href) == pan
    fields = {key: asset.extra_fields for key, asset in item.assets.items()}
    assert fields["pan"]["proj:code"] == "EPSG:32633"
    assert fields["pan"]["proj:shape"] == [32, 32]
    assert fields["ms"]["proj:transform"] == [2.0, 0.0, 400_000.0, 0.0, -2.0, 5_600_000.0]
    assert (fields["pan"]["gsd"], fields["ms"]["gsd"], item.properties["gsd"]) == (0.5, 2.0, 0.5)
    assert fields["ms"]["data_type"] == "uint16"
    assert fields["ms"]["file:size"] == ms.stat().st_size
    assert fields["ms"]["file:checksum"] == "1220" + hashlib.sha256(ms.read_bytes()).hexdigest()
    assert fields["ms"]["bands"][6] == {
        "name": "nir1",
        "eo:common_name": "nir08",
        "eo:center_wavelength": load_contracts()["worldview-3"].bands[6].center_um,
        "eo:full_width_half_max": load_contracts()["worldview-3"].bands[6].fwhm_um,
    }
    assert item.properties["platform"] == "worldview-3"
    assert item.properties["eo:cloud_cover"] == 3
    assert item.properties["ingest:georeference"] == "file header"
    assert {uri.split("/")[3] for uri in item.stac_extensions} == {"projection", "eo", "file"}, "those it has fields of"


def test_files_need_not_be_read_for_their_checksums(catalog: Path, pan: Path, ms: Path) -> None:
    added = [add_pair(catalog, "worldview-3", pan, [ms], checksums=checksums) for checksums in (False, False, True)]
    assert [scene.change for scene in added] == ["added", "unchanged", "updated"]
    fields = json.loads(Path(added[0].item_path).read_text())["assets"]
    assert fields["pan"]["file:size"] == pan.stat().st_size
    assert fields["pan"]["file:checksum"].startswith("1220")


def test_a_mask_beside_a_file_is_copied_with_it(catalog: Path, pan: Path, ms: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(ms, "r+") as source:
        source.write_mask(np.eye(*source.shape, dtype=bool))
        expected = source.dataset_mask()
    assert ms.with_name(f"{ms.name}.msk").is_file()
    item = json.loads(Path(add_pair(catalog, "worldview-3", pan, [ms], copy=True).item_path).read_text())
    copied = catalog / "worldview-3" / item["id"] / item["assets"]["ms"]["href"]
    with rasterio.open(copied) as made:
        assert np.array_equal(made.dataset_mask(), expected)


def test_the_footprint_is_where_the_pixels_are(catalog: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms])
    bbox = items(catalog)["scene_pan"].bbox
    with rasterio.open(pan) as source:
        expected = rasterio.warp.transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    np.testing.assert_allclose(bbox, expected, atol=1e-6)


def test_a_footprint_across_the_antimeridian_is_cut() -> None:
    grid = PixelGrid(crs="EPSG:32601", transform=(1000.0, 0, 100_000, 0, -1000.0, 100_000), shape_yx=(100, 200))
    geometry, bbox = footprint(grid)
    assert geometry["type"] == "MultiPolygon"
    west, south, east, north = bbox
    assert west > 170
    assert east < -170
    assert 0 <= south < north < 1


def test_nodata_scale_and_offset_are_carried_together_or_per_band(catalog: Path, tmp_path: Path, pan: Path) -> None:
    ms = write(tmp_path / "in" / "x.tif", count=8, size=8, step=2.0, nodata=0)
    with rasterio.open(ms, "r+") as out:
        out.scales, out.offsets = (0.1,) * 8, tuple(float(i) for i in range(8))
    add_pair(catalog, "worldview-3", pan, [ms])
    fields = items(catalog)["scene_pan"].assets["ms"].extra_fields
    assert (fields["nodata"], fields["raster:scale"]) == (0, 0.1)
    assert "raster:offset" not in fields
    assert [band["raster:offset"] for band in fields["bands"]] == [float(i) for i in range(8)]
    assert any("/raster/" in uri for uri in items(catalog)["scene_pan"].stac_extensions)
    assert "nodata" not in items(catalog)["scene_pan"].assets["pan"].extra_fields


def test_nodata_beyond_64_bits_is_not_written_as_an_integer(catalog: Path, tmp_path: Path) -> None:
    lowest = float(np.finfo(np.float32).min)
    pan = write(tmp_path / "in" / "p1.tif", step=0.5, dtype="float32", nodata=lowest)
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=8, step=2.0, dtype="float32")
    text = Path(add_pair(catalog, "worldview-3", pan, [ms]).item_path).read_text()
    assert f'"nodata": {lowest!r}' in text


def test_nodata_that_is_not_a_number_stays_valid(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", step=0.5, dtype="float32", nodata=float("nan"))
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=8, step=2.0, dtype="float32")
    add_pair(catalog, "worldview-3", pan, [ms])
    assert items(catalog)["p1"].assets["pan"].extra_fields["nodata"] == "nan"


def test_one_file_per_band_is_told_by_its_name(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "LC08_L1TP_166072_B8.TIF", size=32, step=15, corner=(300_007.5, 4_000_007.5))
    numbers = {"B4": "red", "B2": "blue", "B3": "green"}
    files = [
        write(tmp_path / "in" / f"LC08_L1TP_166072_{n}.TIF", size=16, step=30, corner=(300_000, 4_000_000))
        for n in numbers
    ]
    result = add_pair(catalog, "landsat-8", pan, files)
    assert (result.bands, result.bands_from) == (("red", "blue", "green"), "file names")
    scene = recognised(items(catalog)[result.item_id])
    assert scene.bands == ("blue", "green", "red")
    assert [Path(ref.href).stem[-2:] for ref in scene.ms] == ["B2", "B3", "B4"]


def test_the_bands_of_a_file_are_told_by_option_then_description_then_custom(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", step=0.5)
    plain = write(tmp_path / "in" / "plain.tif", count=4, size=8, step=2.0)
    described = write(
        tmp_path / "in" / "told.tif", count=4, size=8, step=2.0, descriptions=("Red", "GREEN", "blue", "nir")
    )
    by_custom = add_pair(catalog, "worldview-2", pan, [plain], item_id="a")
    assert (by_custom.bands, by_custom.bands_from) == (("blue", "green", "red", "nir1"), "usual order of the sensor")
    by_file = add_pair(catalog, "worldview-2", pan, [described], item_id="b")
    assert (by_file.bands, by_file.bands_from) == (("red", "green", "blue", "nir1"), "band descriptions")
    by_option = add_pair(catalog, "worldview-2", pan, [described], item_id="c", bands=["nir1", "red", "green", "blue"])
    assert (by_option.bands, by_option.bands_from) == (("nir1", "red", "green", "blue"), "option")
    assert [ref.band for ref in recognised(items(catalog)["c"]).ms] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("tags", "ns", "expected"),
    [
        ({"TIFFTAG_DATETIME": "2019:03:04 05:06:07"}, None, ("2019-03-04T05:06:07Z", "TIFF tag")),
        ({"ACQUISITIONDATETIME": "2018-01-02 03:04:05"}, "IMAGERY", ("2018-01-02T03:04:05Z", "file header")),
        ({"TIFFTAG_DATETIME": "yesterday"}, None, ("2001-09-09T01:46:40Z", "file time")),
    ],
)
def test_the_acquisition_time_says_where_it_is_from(
    catalog: Path, pan: Path, ms: Path, tags: dict[str, str], ns: str | None, expected: tuple[str, str]
) -> None:
    with rasterio.open(pan, "r+") as out:
        out.update_tags(ns=ns, **tags)
    os.utime(pan, (1_000_000_000, 1_000_000_000))
    result = add_pair(catalog, "worldview-3", pan, [ms])
    assert (result.acquired, result.datetime_from) == expected
    assert items(catalog)["scene_pan"].properties["ingest:datetime_from"] == expected[1]


def test_the_platform_is_the_satellite_the_user_named(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", size=32, step=15)
    ms = write(tmp_path / "in" / "m1.tif", count=6, size=16, step=30)
    add_pair(catalog, "Landsat 9 OLI", pan, [ms])
    item = items(catalog)["p1"]
    assert item.properties["platform"] == "landsat-9"
    assert recognised(item).sensor == "landsat-8"


def test_geographic_pixels_have_a_gsd_in_metres(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", step=5e-6, corner=(12.0, 47.0), crs="EPSG:4326")
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=8, step=2e-5, corner=(12.0, 47.0), crs="EPSG:4326")
    add_pair(catalog, "worldview-3", pan, [ms])
    assert items(catalog)["p1"].assets["pan"].extra_fields["gsd"] == pytest.approx(0.5566, abs=1e-4)


# --- the catalog --------------------------------------------------------------------------------------------------


def test_adding_again_changes_nothing(catalog: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms])
    before = tree(catalog)
    os.utime(pan)  # touched, same pixels: the guessed acquisition time stays
    assert add_pair(catalog, "worldview-3", pan, [ms]).change == "unchanged"
    assert tree(catalog) == before


def test_an_item_that_declares_more_extensions_is_the_same_item(catalog: Path, pan: Path, ms: Path) -> None:
    """As those of earlier versions do: one that is written anew counts as delivered anew."""
    path = Path(add_pair(catalog, "worldview-3", pan, [ms]).item_path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"stac_extensions": ["https://stac-extensions.github.io/raster/x"]}))
    before = tree(catalog)
    assert add_pair(catalog, "worldview-3", pan, [ms]).change == "unchanged"
    assert tree(catalog) == before


def test_a_changed_file_updates_the_item_and_its_fingerprint(catalog: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms])
    first = recognised(items(catalog)["scene_pan"])
    write(ms, count=8, size=8, step=2.0, seed=9)
    assert add_pair(catalog, "worldview-3", pan, [ms]).change == "updated"
    assert recognised(items(catalog)["scene_pan"]).fingerprint != first.fingerprint
    assert len(items(catalog)) == 1


def test_scenes_and_sensors_join_one_catalog(catalog: Path, tmp_path: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms], acquired=datetime(2024, 1, 2, tzinfo=UTC))
    corner = (500_000.0, 5_700_000.0)
    pan2 = write(tmp_path / "in" / "b.tif", step=0.5, corner=corner, seed=1)
    ms2 = write(tmp_path / "in" / "b_ms.tif", count=8, size=8, step=2.0, corner=corner, seed=1)
    add_pair(catalog, "worldview-3", pan2, [ms2], acquired=datetime(2023, 1, 2, tzinfo=UTC))
    add_pair(catalog, "worldview-2", pan2, [ms2])
    assert sorted(
        (i.collection_id, i.id) for i in pystac.Catalog.from_file(catalog / "catalog.json").get_items(recursive=True)
    ) == [
        ("worldview-2", "b"),
        ("worldview-3", "b"),
        ("worldview-3", "scene_pan"),
    ]
    collection = json.loads((catalog / "worldview-3" / "collection.json").read_text())
    west, south, east, north = collection["extent"]["spatial"]["bbox"][0]
    for item in items(catalog).values():
        assert item.bbox
        assert west <= item.bbox[0] <= item.bbox[2] <= east
        assert south <= item.bbox[1] <= item.bbox[3] <= north
    assert collection["extent"]["temporal"]["interval"] == [["2023-01-02T00:00:00Z", "2024-01-02T00:00:00Z"]]


def test_a_catalog_with_its_files_can_be_moved(catalog: Path, tmp_path: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms], copy=True)
    original = pan.read_bytes()
    moved = catalog.rename(tmp_path / "moved")
    pan.unlink()
    ms.unlink()
    scene = recognised(items(moved)["scene_pan"])
    assert Path(scene.pan.href).read_bytes() == original


def test_files_inside_the_catalog_folder_are_referenced_relatively(catalog: Path) -> None:
    pan = write(catalog / "files" / "p1.tif", step=0.5)
    ms = write(catalog / "files" / "m1.tif", count=8, size=8, step=2.0)
    add_pair(catalog, "worldview-3", pan, [ms])
    document = json.loads((catalog / "worldview-3" / "p1" / "p1.json").read_text())
    assert document["assets"]["pan"]["href"] == "../../files/p1.tif"
    assert items(catalog)


def test_an_id_is_not_given_to_two_scenes(catalog: Path, tmp_path: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms], item_id="x")
    other_pan = write(tmp_path / "in" / "q.tif", step=0.5, seed=5)
    other_ms = write(tmp_path / "in" / "q_ms.tif", count=8, size=8, step=2.0, seed=5)
    with pytest.raises(InvalidSceneError, match="item x exists already for other files"):
        add_pair(catalog, "worldview-3", other_pan, [other_ms], item_id="x")
    assert Path(recognised(items(catalog)["x"]).pan.href) == pan


@pytest.mark.parametrize("framed", [False, True])
def test_copies_of_another_scene_are_replaced_only_by_an_id_that_is_given(
    catalog: Path, tmp_path: Path, *, framed: bool
) -> None:
    """Two orders with a scene x each: both would be called after their folder."""

    def add(order: str, item_id: str | None = None) -> str:
        folder = tmp_path / order / "x"
        return add_pair(
            catalog, "worldview-3", folder / "pan.tif", [folder / "ms.tif"], item_id=item_id, copy=not framed,
            georeference=parse_georeference("EPSG:32631 500000 5700000 0.5") if framed else None,
        ).change  # fmt: skip

    for seed, order in enumerate(("a", "b")):
        crs = None if framed else "EPSG:32631"
        write(tmp_path / order / "x" / "pan.tif", step=0.5, seed=seed, crs=crs)
        write(tmp_path / order / "x" / "ms.tif", count=8, size=8, step=2.0, seed=seed, crs=crs)
        for name in ("pan.tif", "ms.tif"):
            os.utime(tmp_path / order / "x" / name, (1e9 + seed, 1e9 + seed))
    assert [add("a"), add("a")] == ["added", "unchanged"]
    before = tree(catalog)
    with pytest.raises(InvalidSceneError, match="item x exists already with copies of other content"):
        add("b")
    assert tree(catalog) == before
    assert add("b", "x") == "updated"


def test_a_lost_link_is_put_back(catalog: Path, pan: Path, ms: Path) -> None:
    add_pair(catalog, "worldview-3", pan, [ms])
    (catalog / "worldview-3" / "collection.json").unlink()
    (catalog / "catalog.json").unlink()
    assert add_pair(catalog, "worldview-3", pan, [ms]).change == "unchanged"
    assert list(items(catalog)) == ["scene_pan"]


def test_a_folder_name_replaces_a_stem_that_says_nothing(catalog: Path, tmp_path: Path, ms: Path) -> None:
    pan = write(tmp_path / "Order 17" / "PAN.tif", step=0.5)
    assert add_pair(catalog, "worldview-3", pan, [ms]).item_id == "Order-17"


def _add_many(catalog: Path, pan: Path, ms: Path, numbers: range) -> None:
    for number in numbers:
        add_pair(catalog, "worldview-3", pan, [ms], item_id=f"i{number}")


def test_two_processes_do_not_lose_links(catalog: Path, pan: Path, ms: Path) -> None:
    context = multiprocessing.get_context("fork")
    parts = [range(6), range(6, 12)]
    processes = [context.Process(target=_add_many, args=(catalog, pan, ms, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert sorted(items(catalog)) == sorted(f"i{n}" for n in range(12))


# --- what is refused ----------------------------------------------------------------------------------------------


def _fails(catalog: Path, sensor: str, pan: Path, ms: Sequence[Path], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        add_pair(catalog, sensor, pan, ms, copy=True)
    assert not list(catalog.rglob("*.json")), "something was left behind"
    assert not list(catalog.rglob("*.tif")), "something was left behind"


def test_missing_files_and_other_formats_are_named(catalog: Path, tmp_path: Path, pan: Path, ms: Path) -> None:
    _fails(catalog, "worldview-3", tmp_path / "no.tif", [ms], InvalidSceneError, r"no\.tif: no such file")
    text = tmp_path / "text.tif"
    text.write_text("hello")
    _fails(catalog, "worldview-3", pan, [text], InvalidSceneError, r"text\.tif: not a readable raster")
    _fails(catalog, "worldview-3", pan, [], InvalidSceneError, "no MS file given")
    _fails(catalog, "worldview-3", pan, [pan], InvalidSceneError, "same file is given twice")


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64"])
def test_complex_pixels_are_refused(catalog: Path, tmp_path: Path, ms: Path, dtype: str) -> None:
    path = tmp_path / "radar.tif"
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5.6e6)}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=32, width=32, dtype=dtype, **place):
        pass
    _fails(catalog, "worldview-3", path, [ms], InvalidSceneError, rf"radar\.tif: pixels are {dtype}, expected integers")


def test_unknown_sensors_are_refused(catalog: Path, pan: Path, ms: Path) -> None:
    _fails(catalog, "worldview-9", pan, [ms], ContractError, "no sensor contract 'worldview-9'; known are")
    _fails(catalog, "generic", pan, [ms], ContractError, "needs the real sensor")


def test_wrong_bands_are_refused(catalog: Path, tmp_path: Path, pan: Path, ms: Path) -> None:
    five = write(tmp_path / "in" / "five.tif", count=5, size=8, step=2.0)
    _fails(
        catalog,
        "worldview-3",
        pan,
        [five],
        InvalidSceneError,
        r"five\.tif: found 5 bands, expected for worldview-3 8 \(",
    )
    two = write(tmp_path / "in" / "two.tif", count=2, size=8, step=2.0, descriptions=("red", "nir1"))
    _fails(catalog, "worldview-3", pan, [two], InvalidSceneError, r"found bands red, nir1, expected")
    _fails(catalog, "worldview-3", ms, [pan], InvalidSceneError, "found 1 bands")
    wide = write(tmp_path / "in" / "wide.tif", count=4, size=32, step=0.5)
    _fails(catalog, "worldview-3", wide, [ms], InvalidSceneError, r"wide\.tif: has 4 bands, expected PAN with one")
    _fails(catalog, "worldview-3", pan, [two, five], InvalidSceneError, "expected one band per file")


def test_named_bands_must_fit(catalog: Path, pan: Path, ms: Path) -> None:
    with pytest.raises(InvalidSceneError, match="has 8 bands, but 2 were named"):
        add_pair(catalog, "worldview-3", pan, [ms], bands=["red", "blue"])
    with pytest.raises(InvalidSceneError, match="a band is named twice"):
        add_pair(catalog, "worldview-3", pan, [ms], bands=["red"] * 8)
    with pytest.raises(ContractError, match="no band 'infrared'"):
        add_pair(catalog, "worldview-3", pan, [ms], bands=["infrared", *WV3[1:]])


def test_grids_that_do_not_pair_are_refused(catalog: Path, tmp_path: Path, pan: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"step": 1.5}, r"\(MS\): found an MS to PAN pixel ratio of 3 .* expected 4"),
        ({"step": 2.0, "corner": (900_000.0, 1.0)}, "expected an overlap"),
        ({"step": 2.0, "crs": "EPSG:32632"}, "PAN is in EPSG:32633 and MS in EPSG:32632"),
    ]
    for number, (options, match) in enumerate(cases):
        ms = write(tmp_path / "in" / f"ms{number}.tif", count=8, size=8, **options)
        _fails(catalog, "worldview-3", pan, [ms], GridMismatchError, match)
    files = [write(tmp_path / "in" / f"{b}.tif", size=8 + i, step=2.0) for i, b in enumerate(("red", "green", "blue"))]
    _fails(catalog, "worldview-3", pan, files, GridMismatchError, "MS bands on different grids")


def test_files_without_georeference_say_what_to_do(catalog: Path, tmp_path: Path, ms: Path) -> None:
    bare = write(tmp_path / "in" / "bare.tif", crs=None)
    _fails(catalog, "worldview-3", bare, [ms], InvalidSceneError, r"bare\.tif: found no CRS.*--assume-origin")
    points = [rasterio.control.GroundControlPoint(r, c, 12 + c / 100, 47 - r / 100) for r in (0, 31) for c in (0, 31)]
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(bare, "r+") as out:
        out.gcps = (points, rasterio.CRS.from_epsg(4326))
    _fails(catalog, "worldview-3", bare, [ms], InvalidSceneError, "ground control points or RPCs only.*orthorectify")


def test_what_discovery_would_refuse_is_not_added(catalog: Path, pan: Path, ms: Path) -> None:
    with pytest.raises(InvalidSceneError, match=r"discovery would refuse this item \(already_sharpened\)"):
        add_pair(catalog, "worldview-3", pan, [ms], properties={"processing:level": "pansharpened"})
    assert not list(catalog.rglob("*.json"))


def test_a_folder_that_is_no_catalog_is_refused(catalog: Path, tmp_path: Path, pan: Path, ms: Path) -> None:
    catalog.mkdir()
    (catalog / "catalog.json").write_text('{"name": "my web app"}')
    with pytest.raises(SinkError, match=r"catalog\.json: not a STAC catalog"):
        add_pair(catalog, "worldview-3", pan, [ms])
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match="cannot be written"):
        add_pair(tmp_path / "file" / "catalog", "worldview-3", pan, [ms])


# --- declared frames ----------------------------------------------------------------------------------------------


def test_a_declared_frame_is_written_into_copies_and_marked(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", size=300, crs=None, tags={"TIFFTAG_DATETIME": "2019:03:04 05:06:07"})
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=75, crs=None, nodata=0)
    before = tree(tmp_path / "in")
    frame = parse_georeference("EPSG:32633 400000 5600000 0.5")
    result = add_pair(catalog, "worldview-3", pan, [ms], georeference=frame)
    assert (result.synthetic_georeference, result.acquired) == (True, "2019-03-04T05:06:07Z")
    assert tree(tmp_path / "in") == before
    item = items(catalog)["p1"]
    assert item.properties["ingest:georeference"].startswith("assumed, not real")
    for key, source in (("pan", pan), ("ms", ms)):
        with rasterio.open(item.assets[key].get_absolute_href()) as copy:
            assert copy.transform == Affine(
                {"pan": 0.5, "ms": 2.0}[key], 0, 400_000, 0, -{"pan": 0.5, "ms": 2.0}[key], 5_600_000
            )
            pixels = copy.read()
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(source) as original:
            np.testing.assert_array_equal(pixels, original.read())
    assert item.assets["ms"].extra_fields["nodata"] == 0
    assert add_pair(catalog, "worldview-3", pan, [ms], georeference=frame).change == "unchanged"
    for path in (pan, ms):
        os.utime(path, (1e9, 1e9))
    assert add_pair(catalog, "worldview-3", pan, [ms], georeference=frame).change == "unchanged", "only touched"


def masked_by_file(path: Path, hidden: tuple[slice, slice], *, internal: bool) -> Path:
    """Give a file a mask that hides some of its pixels, inside it or beside it."""
    with rasterio.open(path) as source:
        shown = np.full(source.shape, 255, np.uint8)
    shown[hidden] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as out:
        out.write_mask(shown)
    return path


@pytest.mark.parametrize("framed", [True, False])
def test_files_of_one_name_in_several_folders_are_copied_apart(catalog: Path, tmp_path: Path, *, framed: bool) -> None:
    crs = None if framed else "EPSG:32633"
    pan = write(tmp_path / "in" / "pan" / "raw.tif", size=32, step=0.5, crs=crs, seed=9)
    bands = {name: write(tmp_path / "in" / name / "raw.tif", size=8, step=2.0, crs=crs, seed=i)
             for i, name in enumerate(("blue", "green", "red", "nir1"))}  # fmt: skip
    frame = parse_georeference("EPSG:32633 400000 5600000 0.5") if framed else None
    for change in ("added", "unchanged"):
        result = add_pair(
            catalog, "worldview-2", pan, list(bands.values()), item_id="x", bands=list(bands), copy=True,
            georeference=frame,
        )  # fmt: skip
        assert result.change == change
    assets = items(catalog)["x"].assets
    for key, source in (bands | {"pan": pan}).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(assets[key].get_absolute_href()) as copy, rasterio.open(source) as original:
                np.testing.assert_array_equal(copy.read(), original.read())


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("internal", [True, False])
def test_masks_and_colour_interpretation_survive_a_declared_frame(
    catalog: Path, tmp_path: Path, *, internal: bool
) -> None:
    pan = write(tmp_path / "in" / "p1.tif", size=300, crs=None)
    masked_by_file(pan, (slice(0, 290), slice(100, 299)), internal=internal)
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=75, crs=None)
    kinds = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, *[ColorInterp.undefined] * 5)
    with rasterio.open(ms, "r+") as out:
        out.colorinterp = kinds
    add_pair(catalog, "worldview-3", pan, [ms], georeference=parse_georeference("EPSG:32633 400000 5600000 0.5"))
    assets = items(catalog)["p1"].assets
    with rasterio.open(assets["pan"].get_absolute_href()) as copy, rasterio.open(pan) as original:
        np.testing.assert_array_equal(copy.dataset_mask(), original.dataset_mask())
        assert 0 < (copy.dataset_mask() == 0).mean() < 1
    with rasterio.open(assets["ms"].get_absolute_href()) as copy:
        assert copy.colorinterp == kinds
        assert copy.dataset_mask().all()
    assert sorted(path.name for path in (catalog / "worldview-3" / "p1").iterdir()) == ["m1.tif", "p1.json", "p1.tif"]


def with_alpha(path: Path, place: int = -1) -> Path:
    """Have the header call one of the bands alpha."""
    with rasterio.open(path, "r+") as out:
        kinds = [ColorInterp.gray] + [ColorInterp.undefined] * (out.count - 1)
        kinds[place] = ColorInterp.alpha
        out.colorinterp = kinds
    return path


def test_alpha_is_no_band_of_the_image(catalog: Path, tmp_path: Path) -> None:
    pan = with_alpha(write(tmp_path / "in" / "p1.tif", count=2, step=0.5))
    ms = with_alpha(write(tmp_path / "in" / "m1.tif", count=9, size=8, step=2.0))
    assert add_pair(catalog, "worldview-3", pan, [ms]).bands == WV3
    scene = recognised(items(catalog)["p1"])
    assert (scene.pan.band, [ref.band for ref in scene.ms]) == (1, list(range(1, 9)))


def test_alpha_before_the_image_is_refused(catalog: Path, tmp_path: Path, pan: Path) -> None:
    ms = with_alpha(write(tmp_path / "in" / "m1.tif", count=5, size=8, step=2.0), place=0)
    _fails(
        catalog, "worldview-2", pan, [ms], InvalidSceneError, r"m1\.tif: of its 5 bands only \(2, 3, 4, 5\) are image"
    )


def test_a_band_that_gdal_merely_calls_alpha_is_taken_for_image_where_it_is_named(
    catalog: Path, tmp_path: Path, pan: Path
) -> None:
    """It calls the last of four bands of bytes that, of whatever colour."""
    four = ("blue", "green", "red", "nir1")
    ms = write(tmp_path / "in" / "m1.tif", count=4, size=8, step=2.0, dtype="uint8")
    _fails(
        catalog,
        "worldview-2",
        pan,
        [ms],
        InvalidSceneError,
        "found 3 bands beside alpha .*name what is image with --bands",
    )
    assert add_pair(catalog, "worldview-2", pan, [ms], item_id="a", bands=four).bands == four
    assert add_pair(catalog, "worldview-2", pan, [ms], item_id="c", bands=four[:3]).bands == four[:3]
    told = write(tmp_path / "in" / "m2.tif", count=4, size=8, step=2.0, dtype="uint8", descriptions=four)
    assert add_pair(catalog, "worldview-2", pan, [told], item_id="b").bands == four


@pytest.mark.parametrize("crs", [None, "EPSG:32633"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_palette_is_refused(catalog: Path, tmp_path: Path, crs: str | None) -> None:
    pan = write(tmp_path / "in" / "p1.tif", step=0.5, dtype="uint8", crs=crs)
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=8, step=2.0, crs=crs)
    with rasterio.open(pan, "r+") as out:
        out.write_colormap(1, {value: (value, 0, 255 - value) for value in range(256)})
    frame = None if crs else parse_georeference("EPSG:32633 0 0 0.5")
    with pytest.raises(InvalidSceneError, match=r"p1\.tif: its pixels are places in a palette.*-expand rgb"):
        add_pair(catalog, "worldview-3", pan, [ms], georeference=frame)


def test_errors_name_the_file_that_was_given_not_its_copy(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", count=2, size=32, crs=None)
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=8, crs=None)
    with pytest.raises(InvalidSceneError, match=rf"^{re.escape(str(pan))}: has 2 bands"):
        add_pair(catalog, "worldview-3", pan, [ms], georeference=parse_georeference("EPSG:32633 0 0 0.5"))


def test_a_damaged_file_is_blamed_on_the_source(catalog: Path, tmp_path: Path) -> None:
    pan = write(tmp_path / "in" / "p1.tif", size=300, crs=None, compress="deflate")
    ms = write(tmp_path / "in" / "m1.tif", count=8, size=75, crs=None)
    content = bytearray(pan.read_bytes())
    content[40_000:60_000] = b"\xff" * 20_000
    pan.write_bytes(content)
    with pytest.raises(InvalidSceneError, match=r"p1\.tif: its pixels cannot be read"):
        add_pair(catalog, "worldview-3", pan, [ms], georeference=parse_georeference("EPSG:32633 0 0 0.5"))
    assert not list(catalog.rglob("*.tif"))


def test_a_real_georeference_is_not_overwritten(catalog: Path, pan: Path, ms: Path) -> None:
    frame = Georeference(crs="EPSG:32633", x=0, y=0, gsd=1)
    with pytest.raises(InvalidSceneError, match="has a georeference already"):
        add_pair(catalog, "worldview-3", pan, [ms], georeference=frame)
    assert not list(catalog.rglob("*.tif"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("EPSG:32633 1 2", "expected 'EPSG:CODE X Y PIXELSIZE'"),
        ("EPSG:32633 1 2 -3", "expected 'EPSG:CODE X Y PIXELSIZE'"),
        ("EPSG:32633 1 two 3", "expected 'EPSG:CODE X Y PIXELSIZE'"),
        ("EPSG:99999999 1 2 3", "is unknown"),
        ("EPSG:4326 1 2 3", "is not projected"),
        ("", "expected 'EPSG:CODE X Y PIXELSIZE'"),
    ],
)
def test_a_declared_frame_must_be_complete(text: str, match: str) -> None:
    with pytest.raises(InvalidSceneError, match=match):
        parse_georeference(text)


# --- folders of pairs ---------------------------------------------------------------------------------------------


REAL = {
    "WV3_zpnn": ("worldview-3", WV3),
    "S6_vegetation": ("spot-6", ("blue", "green", "red", "nir")),
    "WV2_rotterdam1": ("worldview-2", ("blue", "green", "red", "nir1")),
    "WV2_rotterdam2": ("worldview-2", ("blue", "green", "red", "nir1")),  # rows were cut from it, nobody says which
    "L7_P090R083_07": ("landsat-7", ("blue", "green", "red", "nir", "swir1", "swir2")),
    "L8_istanbul": ("landsat-8", ("blue", "green", "red")),
    "L8_gulfcoast_ground": ("landsat-8", ("blue", "green", "red", "nir", "swir1", "swir2")),
    "GF2_rr_train0": ("gaofen-2", ("blue", "green", "red", "nir")),
    "GF2_train0": ("gaofen-2", ("blue", "green", "red", "nir")),
}


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pystac.Item]]:
    catalog = tmp_path_factory.mktemp("real") / "catalog"
    result = add_pairs_directory(catalog, shared_data / "pairs", [*REAL, "X8_zerosharpen"])
    assert {a.item_id for a in result.added} == set(REAL)
    assert [name for name, _ in result.skipped] == ["X8_zerosharpen"]
    assert "no sensor contract 'unknown (GF-2 or QB)'" in result.skipped[0][1]
    return catalog, items(catalog)


@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_recognised_with_the_right_pixels(
    shared_data: Path, real: tuple[Path, dict[str, pystac.Item]], name: str
) -> None:
    sensor, bands = REAL[name]
    scene = recognised(real[1][name])
    assert (scene.sensor, scene.bands) == (sensor, bands)
    meta = json.loads((shared_data / "pairs" / f"{name}.json").read_text())
    with np.load(shared_data / "pairs" / f"{name}.npz") as archive:
        with rasterio.open(scene.pan.href) as source:
            np.testing.assert_array_equal(source.read(1), archive["pan"])
        for band, ref in zip(bands, scene.ms, strict=True):
            stored = meta["bands"].index("nir" if band == "nir1" and "nir" in meta["bands"] else band)
            with rasterio.open(ref.href) as source:
                np.testing.assert_array_equal(source.read(ref.band), archive["ms"][stored])


def test_real_georeference_is_used_with_its_crop_and_offset(real: tuple[Path, dict[str, pystac.Item]]) -> None:
    def corner(name: str, key: str) -> tuple[float, float]:
        transform = real[1][name].assets[key].extra_fields["proj:transform"]
        return transform[2], transform[5]

    assert real[1]["L8_istanbul"].properties["ingest:georeference"] == "description"
    # "the PAN grid starts 7.5 m right-down of the MS grid"
    assert corner("L8_istanbul", "pan") == (667642.5, 4554217.5)
    assert corner("L8_istanbul", "ms") == (667635.0, 4554225.0)
    # PAN corner of the whole file, 480 MS rows = 960 PAN rows of 15 m further south; "7.5 m up-left of the MS grid"
    assert corner("L8_gulfcoast_ground", "pan") == (452467.5, 3408652.5 - 960 * 15)
    assert corner("L8_gulfcoast_ground", "ms") == (452475.0, 3408652.5 - 960 * 15 - 7.5)
    west, south, east, north = real[1]["WV2_rotterdam1"].bbox or []
    assert 4.3 < west < east < 4.5
    assert 51.8 < south < north < 52.0


def test_made_up_georeference_is_marked_and_has_the_true_pixel_size(real: tuple[Path, dict[str, pystac.Item]]) -> None:
    for name, gsd in {
        "WV3_zpnn": 0.3,
        "S6_vegetation": 1.5,
        "GF2_train0": 0.8,
        "WV2_rotterdam2": 0.5,
        "GF2_rr_train0": 3.2,
    }.items():
        item = real[1][name]
        assert item.properties["ingest:georeference"].startswith("assumed, not real"), name
        assert item.properties["gsd"] == gsd
    assert real[1]["GF2_rr_train0"].properties["ingest:reduced_resolution"] is True


def test_licence_source_and_date_are_carried(real: tuple[Path, dict[str, pystac.Item]]) -> None:
    rotterdam = real[1]["WV2_rotterdam2"].properties
    assert rotterdam["license"] == "CC-BY-SA-4.0"
    assert re.match(r"github\.com/CosmiQ/solaris [0-9a-f]{40}$", rotterdam["ingest:source"])
    wv3 = real[1]["WV3_zpnn"].properties
    assert wv3["license"] == "other"
    assert "non-profit" in wv3["ingest:license_text"]
    landsat = real[1]["L7_P090R083_07"].properties
    assert (landsat["datetime"], landsat["ingest:datetime_from"]) == ("2000-09-13T12:00:00Z", "description")


def test_adding_real_pairs_again_changes_nothing(shared_data: Path, real: tuple[Path, dict[str, pystac.Item]]) -> None:
    before = tree(real[0])
    result = add_pairs_directory(real[0], shared_data / "pairs", ["WV3_zpnn", "L8_istanbul"])
    assert [a.change for a in result.added] == ["unchanged"] * 2
    assert tree(real[0]) == before


def _pair(folder: Path, name: str, *, arrays: dict[str, Any] | None = None, **meta: Any) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.ones((8, 8), np.uint16)
    stored = {"pan": pixels, "ms": np.ones((4, 2, 2), np.uint16)} if arrays is None else arrays
    np.savez(folder / f"{name}.npz", **stored)
    facts = {
        "sensor": "QuickBird",
        "bands": ["red", "green", "blue", "nir"],
        "ratio": 4,
        "gsd_m": {"pan": 0.6, "ms": 2.4},
        **meta,
    }
    (folder / f"{name}.json").write_text(json.dumps(facts))


def test_bad_pairs_are_skipped_with_a_reason_and_the_others_added(catalog: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    _pair(folder, "good")
    _pair(folder, "no_gsd", gsd_m=None)
    _pair(folder, "wrong_shape", arrays={"pan": np.ones((8, 8)), "ms": np.ones((4, 3, 2))})
    _pair(folder, "no_ms", arrays={"pan": np.ones((8, 8))})
    _pair(folder, "bands", bands=["red", "green", "blue", "swir"])
    _pair(folder, "no_json")
    (folder / "no_json.json").unlink()
    _pair(folder, "cut")
    (folder / "cut.npz").write_bytes((folder / "cut.npz").read_bytes()[:100])
    result = add_pairs_directory(catalog, folder)
    assert [a.item_id for a in result.added] == ["good"]
    reasons = dict(result.skipped)
    for name, part in {
        "no_gsd": "gsd_m.pan is missing",
        "wrong_shape": "expected (y, x) and (4, y/4, x/4)",
        "no_ms": "expected npz with arrays pan and ms",
        "bands": "no band 'swir'",
        "no_json": "no_json.json: not readable",
        "cut": "cut.npz: not readable",
    }.items():
        assert part in reasons[name]
    assert list(items(catalog)) == ["good"]
    assert {p.name for p in (catalog / "quickbird").iterdir()} == {"good", "collection.json"}


GEO = {"crs": "EPSG:32633", "transform": [1, 0, 5e5, 0, -1, 5e6], "bounds": [5e5, 5e6 - 8, 5e5 + 8, 5e6]}


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"ratio": "four"}, "ratio: Input should be a valid integer"),
        ({"ratio": 0}, "ratio: Input should be greater than or equal to 2"),
        ({"sensor": None}, "sensor: Input should be a valid string"),
        ({"bands": 4}, "bands: Input should be a valid tuple"),
        ({"gsd_m": 0.6}, "gsd_m: Input should be"),
        ({"gsd_m": {"pan": -0.6}}, "gsd_m.pan: Input should be greater than 0"),
        ({"georef": True, "geo": {"crs": "EPSG:32633", "transform": GEO["transform"]}}, "geo.bounds: Field required"),
        ({"georef": True, "geo": GEO | {"crs": "EPSG:1"}}, "geo.crs: Value error"),
        ({"georef": True, "geo": GEO | {"transform": [0, 0, 5e5, 0, -1, 5e6]}}, "geo.transform: Value error"),
        ({"arrays": {"pan": np.ones((8, 8), bool), "ms": np.ones((4, 2, 2), np.uint8)}}, "pan is bool, expected DN"),
        ({"arrays": {"pan": np.ones((8, 8), ">u2"), "ms": np.ones((4, 2, 2), np.uint8)}}, "pan is >u2, expected DN"),
        ({"arrays": {"pan": np.ones((0, 8)), "ms": np.ones((4, 0, 2))}}, "check arrays, bands and ratio"),
    ],
)
def test_a_description_or_pixels_of_another_kind_end_no_other_pair(
    catalog: Path, tmp_path: Path, meta: dict[str, Any], reason: str
) -> None:
    _pair(tmp_path / "pairs", "a_bad", **meta)
    _pair(tmp_path / "pairs", "good")
    result = add_pairs_directory(catalog, tmp_path / "pairs")
    assert [a.item_id for a in result.added] == ["good"]
    [(name, said)] = result.skipped
    assert name == "a_bad"
    assert reason in said


def test_an_npz_that_claims_more_than_the_memory_holds_is_skipped(catalog: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    _pair(folder, "good")
    _pair(folder, "bomb")
    header = io.BytesIO()
    claim = {"descr": "<u2", "fortran_order": False, "shape": (10**9, 10**9)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(folder / "bomb.npz", "w") as archive:
        for name in ("pan.npy", "ms.npy"):
            archive.writestr(name, header.getvalue())
    result = add_pairs_directory(catalog, folder)
    assert [a.item_id for a in result.added] == ["good"]
    assert "bomb.npz: not readable" in result.skipped[0][1]
    with pytest.raises(InvalidSceneError, match=r"bomb\.npz: not readable"):
        read_pixels(folder / "bomb.npz", with_truth=False)


def test_an_empty_folder_of_pairs_is_an_error(catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidSceneError, match=r"found no NAME\.npz"):
        add_pairs_directory(catalog, tmp_path)


def test_a_georeference_that_does_not_fit_the_arrays_is_not_believed(catalog: Path, tmp_path: Path) -> None:
    geo = {"crs": "EPSG:32633", "transform": [1, 0, 5e5, 0, -1, 5e6], "bounds": [5e5, 5e6 - 100, 5e5 + 100, 5e6]}
    _pair(tmp_path / "pairs", "crop_unknown", georef=True, geo=geo)
    result = add_pairs_directory(catalog, tmp_path / "pairs")
    assert result.added[0].synthetic_georeference
