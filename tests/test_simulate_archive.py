"""The sample archive: what a reader of the catalog and of the files relies on."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom
from rio_cogeo.cogeo import cog_validate

from pancrafter.errors import SinkError
from pancrafter.recognise import recognise
from pancrafter.sensors import load_contracts
from pancrafter.simulate.archive import (
    TRUTH_FOLDER,
    Footprint,
    SceneRecipe,
    sample_scenes,
    simulate_archive,
    sound_scenes,
)
from pancrafter.types import Refusal, Scene
from pancrafter.validation import validate_item


def small_scenes() -> tuple[SceneRecipe, ...]:
    """The sample scenes, cut down to a few hundred pixels."""
    sides = {"landsat-8": 159}
    return tuple(replace(recipe, pan_shape=(sides.get(recipe.sensor, 160),) * 2) for recipe in sample_scenes())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_archive(tmp_path_factory.mktemp("archive") / "sample", 5, scenes=small_scenes())


@pytest.fixture(scope="module")
def verdicts(archive: Path) -> dict[str, Scene | Refusal]:
    contracts = load_contracts()
    return {item.id: recognise(item, contracts) for item in pystac.Catalog.from_file(archive).get_items(recursive=True)}


def _scene(verdicts: dict[str, Scene | Refusal], prefix: str) -> Scene:
    found = next(verdict for name, verdict in verdicts.items() if name.startswith(prefix))
    assert isinstance(found, Scene)
    return found


def test_items_are_valid_and_links_lead_to_files(archive: Path) -> None:
    catalog = pystac.Catalog.from_file(archive)
    catalog.validate()
    items = list(catalog.get_items(recursive=True))
    assert len({item.datetime for item in items}) == len(items) == 5
    for item in items:
        content = item.to_dict() | {"stac_extensions": []}  # the core schema is at hand without a network
        pystac.Item.from_dict(content).validate()
        collection = item.get_collection()
        assert collection is not None
        assert item.collection_id == collection.id
        for asset in item.assets.values():
            assert not Path(asset.href).is_absolute()
            path = Path(asset.get_absolute_href() or "")
            assert path.is_file()
            assert TRUTH_FOLDER not in path.relative_to(archive.parent).parts


def test_item_with_current_extensions_satisfies_their_schemas(archive: Path) -> None:
    items = pystac.Catalog.from_file(archive).get_items(recursive=True)
    bundle = next(item for item in items if item.id.startswith("WV03"))
    assert len(bundle.stac_extensions) == 4
    validate_item(bundle.to_dict())


def test_three_scenes_are_recognised_and_the_vendor_product_is_refused(verdicts: dict[str, Scene | Refusal]) -> None:
    refused = [verdict for verdict in verdicts.values() if isinstance(verdict, Refusal)]
    assert [refusal.code for refusal in refused] == ["already_sharpened"]
    assert len(_scene(verdicts, "WV03").bands) == 8
    assert len(_scene(verdicts, "GE01_20250503").bands) == 4
    assert _scene(verdicts, "LC09").bands == ("blue", "green", "red", "nir", "swir1", "swir2")


def test_truncated_file_fails_on_reading(verdicts: dict[str, Scene | Refusal]) -> None:
    broken = _scene(verdicts, "GE01_20250608")
    with rasterio.open(broken.pan.href) as pan:
        assert pan.read(1).min() >= 1
    with pytest.raises(RasterioIOError), rasterio.open(broken.ms[0].href) as ms:
        ms.read()


def test_landsat_pan_is_2n_minus_1_and_centre_aligned(verdicts: dict[str, Scene | Refusal]) -> None:
    scene = _scene(verdicts, "LC09")
    with rasterio.open(scene.pan.href) as pan, rasterio.open(scene.ms[0].href) as ms:
        assert (pan.height, pan.width) == (2 * ms.height - 1, 2 * ms.width - 1) == (159, 159)
        assert (pan.transform.c - ms.transform.c, pan.transform.f - ms.transform.f) == (7.5, -7.5)
        assert pan.xy(2 * 7, 2 * 9) == ms.xy(7, 9)
    assert len({ref.href for ref in scene.ms}) == 6


def test_bundles_are_edge_aligned_and_metadata_equals_the_header(archive: Path) -> None:
    for item in pystac.Catalog.from_file(archive).get_items(recursive=True):
        for key, asset in item.assets.items():
            if "proj:transform" not in asset.extra_fields:
                continue
            with rasterio.open(asset.get_absolute_href()) as raster:
                assert list(raster.transform)[:6] == asset.extra_fields["proj:transform"], key
                assert list(raster.shape) == asset.extra_fields["proj:shape"]
                assert raster.nodata == 0
        if "pan_analytic" in item.assets:
            with (
                rasterio.open(item.assets["pan_analytic"].get_absolute_href()) as pan,
                rasterio.open(item.assets["ms_analytic"].get_absolute_href()) as ms,
            ):
                assert pan.bounds == ms.bounds


def test_values_stay_in_the_sensors_range_and_files_are_cogs(verdicts: dict[str, Scene | Refusal]) -> None:
    for prefix in ("WV03", "GE01_20250503", "LC09"):
        scene = _scene(verdicts, prefix)
        limit = load_contracts()[scene.sensor].dn_max
        for href in {scene.pan.href, *(ref.href for ref in scene.ms)}:
            valid, faults, _ = cog_validate(href, strict=True)
            assert valid, faults
            with rasterio.open(href) as raster:
                assert raster.read().max() <= limit
                assert raster.read().std() > 0.02 * raster.read().mean()


def test_nodata_border_is_consistent(verdicts: dict[str, Scene | Refusal], archive: Path) -> None:
    scene = _scene(verdicts, "GE01_20250503")
    with rasterio.open(scene.pan.href) as pan, rasterio.open(scene.ms[0].href) as ms:
        pan_valid, ms_valid = pan.read(1) > 0, (ms.read() > 0)
        footprint = transform_geom("EPSG:4326", pan.crs, scene.geometry)
        inside = geometry_mask([footprint], pan.shape, pan.transform, invert=True)
    with rasterio.open(archive.parent / TRUTH_FOLDER / f"{scene.item_id}.tif") as truth:
        np.testing.assert_array_equal((truth.read() > 0).all(axis=0), pan_valid)
    assert 0.5 < pan_valid.mean() < 0.99
    assert (ms_valid == ms_valid[0]).all()
    blocks = pan_valid.reshape(40, 4, 40, 4)
    assert not (ms_valid[0] & ~blocks.all(axis=(1, 3))).any()  # a valid MS pixel lies on valid PAN pixels only
    assert (ms_valid[0] | ~blocks.all(axis=(1, 3))).mean() > 0.85
    assert (inside == pan_valid).mean() > 0.995


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(archive: Path, tmp_path: Path) -> None:
    first = [replace(recipe, pan_shape=(160, 160)) for recipe in small_scenes()[:1]]
    again = simulate_archive(tmp_path / "again", 5, scenes=first).parent
    other = simulate_archive(tmp_path / "other", 6, scenes=first).parent
    rasters = sorted(path.relative_to(again) for path in again.rglob("*.tif"))
    assert len(rasters) == 3
    for name in rasters:
        assert (again / name).read_bytes() == (archive.parent / name).read_bytes()
        assert (again / name).read_bytes() != (other / name).read_bytes()


def test_second_run_changes_nothing(archive: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.parent.rglob("*")}
    made: list[str] = []
    assert simulate_archive(archive.parent, 5, on_scene=made.append) == archive
    assert made == []
    assert before == {path: path.stat().st_mtime_ns for path in archive.parent.rglob("*")}


def test_folders_that_hold_something_else_are_left_alone(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SinkError, match="not empty and holds no simulated archive"):
        simulate_archive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SinkError, match="found a file, expected a folder"):
        simulate_archive(tmp_path / "thesis.txt")
    with pytest.raises(SinkError, match=r"of seed 5, format .* expected seed 7"):
        simulate_archive(archive.parent, 7)


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    tiny = [replace(small_scenes()[3], pan_shape=(64, 64))]
    made = simulate_archive(tmp_path / "a", scenes=tiny).parent
    lost = next(made.rglob("*.tif"))
    lost.unlink()
    with pytest.raises(SinkError, match=rf"{lost.name}: found no bytes, expected .* simulate again"):
        simulate_archive(made, scenes=tiny)


def test_sound_archive_is_the_same_without_the_damage(tmp_path: Path) -> None:
    assert sum(recipe.truncated_asset is not None for recipe in sample_scenes()) == 1
    assert [replace(recipe, truncated_asset=None) for recipe in sample_scenes()] == list(sound_scenes())
    tiny = [replace(recipe, pan_shape=(64, 64), footprint=None) for recipe in sound_scenes()[4:]]
    made = simulate_archive(tmp_path / "a", scenes=tiny)
    assert simulate_archive(tmp_path / "a", scenes=tiny) == made
    for path in made.parent.rglob("*.tif"):
        with rasterio.open(path) as file:
            file.read()
    with pytest.raises(SinkError, match="with no file damaged on purpose, expected one with a file damaged"):
        simulate_archive(tmp_path / "a", scenes=[replace(tiny[0], truncated_asset="ms")])


def test_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_archive(tmp_path / "a", scenes=small_scenes()[:1], on_scene=stop)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """Files may not grow further, as on a full disk; GDAL's own errors are neither OSError nor RasterioError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(SinkError, match="cannot write the sample archive"):
            simulate_archive(tmp_path / "a", scenes=small_scenes()[:1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_footprint_measures_distance_to_its_border() -> None:
    square = Footprint(angle_deg=0.0, half_width=0.25, half_height=0.25)
    rows = np.arange(100)
    assert square.covers(rows, rows, (100, 100), 0.0).sum() == 50 * 50
    assert square.covers(rows, rows, (100, 100), 5.0).sum() == 40 * 40
    assert square.corners((100, 100)) == [(25.0, 25.0), (75.0, 25.0), (75.0, 75.0), (25.0, 75.0)]
