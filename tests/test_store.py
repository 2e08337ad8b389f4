"""The scene store: whole shards only, completeness last, progress that survives, nothing lost between writers."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from distributed.core import error_message

from pancrafter.errors import InvalidSceneError, SinkError, TransientReadError
from pancrafter.grid import pair_grids
from pancrafter.store import Mode, SceneStore
from pancrafter.types import AssetRef, PairGrid, PixelGrid, Scene, StagedScene, ValueRange

BANDS = ("blue", "green", "red")


def pair_grid() -> PairGrid:
    pan = PixelGrid(crs="EPSG:32633", transform=(0.5, 0, 5e5, 0, -0.5, 4e6), shape_yx=(100, 131))
    ms = PixelGrid(crs="EPSG:32633", transform=(2.0, 0, 5e5, 0, -2.0, 4e6), shape_yx=(25, 33))
    return pair_grids(pan, ms, 4)


def record(uri: str) -> StagedScene:
    scene = Scene(
        collection="tests",
        item_id="pair",
        sensor="test",
        acquired="2026-01-01T00:00:00Z",
        pan=AssetRef(key="pan", href="pan.tif"),
        ms=tuple(AssetRef(key="ms", href="ms.tif", band=band) for band in (1, 2, 3)),
        bands=BANDS,
        fingerprint="f",
        source_href="item.json",
        geometry={},
    )
    return StagedScene(
        scene=scene,
        store_uri=uri,
        grid=pair_grid(),
        dtype="uint16",
        dn_max=2047,
        nodata=None,
        pan_range=ValueRange(low=0, high=9),
        ms_ranges=(ValueRange(low=0, high=9),) * 3,
        band_shift_yx=((0.5, -0.25),) * 3,
        shift_confidence=(0.9,) * 3,
        valid_share=1.0,
    )


def create(uri: str) -> SceneStore:
    return SceneStore.create(uri, pair_grid(), bands=BANDS, staging="digest", crs_wkt="", block_px=32)


def fill(store: SceneStore, *, skip_last: bool = False) -> None:
    """Write every shard; PAN is all zeros, which must be stored like anything else."""
    windows = list(store.pan_windows())
    for window in windows[: len(windows) - skip_last]:
        shape = tuple(part.stop - part.start for part in window)
        store.write_pan(window, np.zeros(shape, np.uint16), np.ones(shape, np.uint8))
    for number, window in enumerate(store.ms_windows()):
        shape = tuple(part.stop - part.start for part in window)
        store.write_ms(window, np.full((3, *shape), number, np.uint16), np.ones(shape, np.uint8))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "scene.zarr")


@pytest.fixture
def store(uri: str) -> SceneStore:
    store = create(uri)
    fill(store)
    store.finish_staging(record(uri))
    return store


def test_round_trip_and_pickle_by_reference(store: SceneStore, uri: str) -> None:
    for opened in (SceneStore.open(uri), pickle.loads(pickle.dumps(store))):
        assert opened.complete
        assert opened.staged == record(uri)
        assert (opened.pan_shape_yx, opened.ms_shape_yx, opened.band_count) == ((100, 131), (25, 33), 3)
        assert opened.blocks_yx == (4, 5)
        assert opened.read_ms((slice(24, 25), slice(31, 33))).tolist() == [[[18, 19]]] * 3


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_copy_is_opened_when_it_is_used(uri: str, tmp_path: Path, mode: Mode) -> None:
    """Dask's scheduler unpickles the tasks on a machine that may have no such folder; workers must have it."""
    create(uri)
    store = SceneStore.open(uri, mode)
    pickled = pickle.dumps(store)
    elsewhere = Path(uri).rename(tmp_path / "elsewhere")
    copy = pickle.loads(pickled)
    assert not Path(uri).exists()
    with pytest.raises(TransientReadError, match=r"no staged scene at .*, let every worker see that folder") as told:
        _ = copy.complete
    assert isinstance(pickle.loads(error_message(told.value)["exception"].data), TransientReadError)
    shutil.rmtree(uri, ignore_errors=True)
    elsewhere.rename(uri)
    assert not copy.complete


def test_a_state_folder_that_may_not_be_used_ends_the_run_and_no_scene(uri: str) -> None:
    """Here a file lies where a folder belongs; without rights it is the same, but not for root."""
    Path(uri).write_text("")
    with pytest.raises(SinkError, match=r"scene\.zarr/.*cannot be opened: .*check the folder and its rights"):
        SceneStore.resume(f"{uri}/below.zarr", "digest")


def test_a_store_without_rights_ends_no_run_where_others_can_be_made(store: SceneStore, uri: str) -> None:
    Path(uri).chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(TransientReadError, match=r"cannot be read: .*Permission denied"):
            SceneStore.resume(uri, "digest")
    finally:
        os.seteuid(user)
        Path(uri).chmod(0o755)


def test_windows_cover_each_pixel_once(store: SceneStore) -> None:
    for windows, shape in ((store.pan_windows(), store.pan_shape_yx), (store.ms_windows(), store.ms_shape_yx)):
        count = np.zeros(shape, int)
        for window in windows:
            count[window] += 1
        assert (count == 1).all()


def test_incomplete_staging_has_no_record(uri: str) -> None:
    store = create(uri)
    fill(store)
    assert not SceneStore.open(uri).complete
    with pytest.raises(InvalidSceneError, match="has not finished; stage the scene again"):
        _ = store.staged
    with pytest.raises(InvalidSceneError, match="has not finished"):
        store.begin_sharpening("recipe")


def test_missing_shard_is_noticed_even_where_data_are_zero(uri: str) -> None:
    store = create(uri)
    fill(store, skip_last=True)
    with pytest.raises(TransientReadError, match="pan holds 19 chunks, expected 20"):
        store.finish_staging(record(uri))
    fill(store)
    for name in ("pan_valid", "ms", "ms_valid"):
        shard = next(path for path in Path(uri, name, "c").rglob("*") if path.is_file())
        lost = shard.rename(Path(uri).with_name("lost"))
        with pytest.raises(TransientReadError, match=f": {name} holds"):
            store.finish_staging(record(uri))
        lost.rename(shard)
    assert not SceneStore.open(uri).complete


def test_blocks_are_done_only_when_marked(store: SceneStore, uri: str) -> None:
    store.begin_sharpening("recipe")
    assert (store.block_count, store.done_count, len(store.pending_blocks())) == (20, 0, 20)
    store.write_block((3, 4), np.full((3, 4, 3), 7, np.uint16))
    assert store.done_count == 0
    store.mark_done((3, 4))
    fresh = SceneStore.open(uri, "r+")
    assert fresh.done_count == 1
    assert (3, 4) not in fresh.pending_blocks()
    assert fresh.read_sharpened(fresh.block_window((3, 4))).tolist() == np.full((3, 4, 3), 7).tolist()


def test_recipe_decides_whether_blocks_are_kept(store: SceneStore, uri: str) -> None:
    store.begin_sharpening("first")
    store.write_block((0, 0), np.ones((3, 32, 32), np.uint16))
    store.mark_done((0, 0))
    again = SceneStore.open(uri, "r+")
    again.begin_sharpening("first")
    assert again.done_count == 1
    again.begin_sharpening("second")
    assert (again.recipe, again.done_count) == ("second", 0)
    assert not again.read_sharpened((slice(0, 32), slice(0, 32))).any()
    assert SceneStore.open(uri).staged == record(uri)


@pytest.mark.parametrize("then", ["first", "second"])
def test_crash_while_changing_recipe_starts_that_recipe_anew(
    store: SceneStore, uri: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of a half-made change belong to no recipe, so neither recipe keeps them."""
    store.begin_sharpening("first")
    store.write_block((0, 0), np.ones((3, 32, 32), np.uint16))
    store.mark_done((0, 0))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr("pancrafter.store._create_sharpened_arrays", crash)
        with pytest.raises(KeyboardInterrupt):
            store.begin_sharpening("second")
    crashed = SceneStore.open(uri, "r+")
    crashed.begin_sharpening(then)
    assert crashed.done_count == 0


def test_a_finished_block_that_is_gone_is_noticed_and_made_anew(store: SceneStore, uri: str) -> None:
    store.begin_sharpening("recipe")
    for block in store.pending_blocks():
        store.write_block(block, np.ones((3, *(p.stop - p.start for p in store.block_window(block))), np.uint16))
        store.mark_done(block)
    store.require_result()
    store.begin_sharpening("recipe")
    assert store.pending_blocks() == []
    (Path(uri) / "sharpened" / "c" / "0" / "2" / "1").unlink()
    with pytest.raises(TransientReadError, match="sharpened holds 57 chunks, expected 60"):
        SceneStore.open(uri).require_result()
    again = SceneStore.open(uri, "r+")
    again.begin_sharpening("recipe")
    assert len(again.pending_blocks()) == again.block_count


def test_parallel_writers_of_whole_blocks_lose_nothing(store: SceneStore, uri: str) -> None:
    store.begin_sharpening("recipe")
    expected = np.random.default_rng(1).integers(0, 65535, (3, 100, 131)).astype(np.uint16)

    def work(block: tuple[int, int]) -> None:
        mine = SceneStore.open(uri, "r+")
        y, x = mine.block_window(block)
        mine.write_block(block, expected[:, y, x])
        mine.mark_done(block)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, store.pending_blocks()))
    assert store.done_count == store.block_count
    assert np.array_equal(store.read_sharpened((slice(0, 100), slice(0, 131))), expected)


def test_parts_of_a_shard_cannot_be_written(store: SceneStore) -> None:
    with pytest.raises(ValueError, match=r"cuts a shard of \(32, 32\); one task writes whole shards"):
        store.write_pan((slice(0, 16), slice(0, 32)), np.zeros((16, 32), np.uint16), np.ones((16, 32), np.uint8))
    with pytest.raises(IndexError, match="reaches outside"):
        store.read_pan((slice(0, 101), slice(0, 32)))
    store.begin_sharpening("recipe")
    with pytest.raises(IndexError, match=r"done\[4:5, 0:1\] reaches outside \(4, 5\)"):
        store.mark_done((4, 0))
    with pytest.raises(ValueError, match=r"takes uint16 \(3, 32, 32\), found float64"):
        store.write_block((0, 0), np.zeros((3, 32, 32)))  # type: ignore[arg-type]


def test_sharpened_needs_begin(store: SceneStore) -> None:
    with pytest.raises(InvalidSceneError, match="no array 'done'; call begin_sharpening first"):
        store.pending_blocks()


def test_nothing_there_and_other_formats(tmp_path: Path, store: SceneStore, uri: str) -> None:
    with pytest.raises(InvalidSceneError, match=r"no staged scene at .*; stage the scene first"):
        SceneStore.open(str(tmp_path / "nothing"))
    store._group.attrs.update({"format_version": 99})
    with pytest.raises(InvalidSceneError, match="format version 99, expected 1; delete it"):
        SceneStore.open(uri)


def test_unwritable_place_is_the_sinks_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkError, match="check permissions and free space"):
        create(str(tmp_path / "file" / "scene.zarr"))


@pytest.mark.usefixtures("s3")
def test_same_code_on_object_storage() -> None:
    uri = "s3://bucket/scene.zarr"
    with pytest.raises(InvalidSceneError, match="no staged scene"):
        SceneStore.open(uri)
    store = create(uri)
    fill(store)
    store.finish_staging(record(uri))
    store.begin_sharpening("recipe")
    store.write_block((1, 2), np.full((3, 32, 32), 5, np.uint16))
    store.mark_done((1, 2))
    opened = SceneStore.open(uri)
    assert opened.staged == record(uri)
    assert opened.done_count == 1
    assert (opened.read_sharpened(opened.block_window((1, 2))) == 5).all()
    create(uri)
    assert not SceneStore.open(uri).complete
