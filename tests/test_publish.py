"""Whatever happens to a publisher, a reader only ever sees whole items."""

from __future__ import annotations

import functools
import json
import os
import posixpath
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from listening import Quiet, http_server
from published_scene import files, item, recipe

from pancrafter import catalog_links, object_store
from pancrafter.catalog_links import CollectionInfo, successor_of
from pancrafter.errors import CatalogUnavailableError, InvalidSceneError, LeaseLostError, SinkError
from pancrafter.item import AssetFile, multihash_of
from pancrafter.publish import Published, StaticSink
from pancrafter.validation import validate_document, validate_item

COLLECTION = CollectionInfo(
    id="wv3-sharpened", title="WorldView-3, sharpened", description="Sharpened scenes.", license="CC-BY-NC-4.0"
)
NAME = COLLECTION.id


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> tuple[AssetFile, ...]:
    return files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def other_assets(tmp_path_factory: pytest.TempPathFactory) -> tuple[AssetFile, ...]:
    return files(tmp_path_factory.mktemp("other"), seed=1)


def put(sink: StaticSink, assets: tuple[AssetFile, ...], item_id: str = "S1-sharp", **options: Any) -> Published:
    made = item(assets, item_id, **options.pop("made", {}))
    return sink.publish(made, assets, collection=options.pop("collection", COLLECTION), **options)


def seen_by_reader(root: Path) -> list[str]:
    """Ids a reader finds from the root; everything that is linked must exist, be valid and have whole files."""
    if not (root / "catalog.json").exists():
        return []
    catalog = json.loads((root / "catalog.json").read_text())
    validate_document(catalog)
    found = []
    for child in (link for link in catalog["links"] if link["rel"] == "child"):
        collection_path = root / child["href"]
        collection = json.loads(collection_path.read_text())
        validate_document(collection)
        for link in (link for link in collection["links"] if link["rel"] == "item"):
            item_path = collection_path.parent / link["href"]
            document = json.loads(item_path.read_text())
            validate_document(document)
            for asset in document["assets"].values():
                path = item_path.parent / asset["href"]
                assert (path.stat().st_size, multihash_of(path)) == (asset["file:size"], asset["file:checksum"])
            found.append(document["id"])
    return found


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_published_item_is_found_and_whole(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    root = tmp_path / "out"
    published = put(StaticSink(str(root)), assets)
    assert published.changed
    assert Path(published.href) == root / NAME / "S1-sharp" / "S1-sharp.json"
    assert seen_by_reader(root) == ["S1-sharp"]
    sink = StaticSink(root.as_uri())
    assert sink.exists(NAME, "S1-sharp")
    assert not sink.exists(NAME, "S2-sharp")
    assert not sink.exists("other", "S1-sharp")
    assert [found["id"] for found in sink.items()] == ["S1-sharp"]
    assert [found["id"] for found in sink.find_by_source(NAME, "S1")] == ["S1-sharp"]
    assert sink.find_by_source(NAME, "S2") == []
    assert sink.orphans(NAME) == ()
    collection = json.loads((root / NAME / "collection.json").read_text())
    assert collection["license"] == "CC-BY-NC-4.0"
    assert set(collection["item_assets"]) == {"sharpened", "mask", "quality", "thumbnail"}
    assert collection["summaries"]["proj:code"] == ["EPSG:32633"]


def test_ordinary_tools_open_it_even_after_moving(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    import odc.stac
    import rioxarray

    put(StaticSink(str(tmp_path / "out")), assets)
    (tmp_path / "out").rename(tmp_path / "moved")
    catalog = pystac.Catalog.from_file(str(tmp_path / "moved" / "catalog.json"))
    (found,) = catalog.get_items(recursive=True)
    assert found.get_collection().id == NAME
    assert found.get_root().id == "pancrafter"
    assert found.datetime == datetime(2024, 5, 1, 10, 20, 30, tzinfo=UTC)
    href = found.assets["sharpened"].get_absolute_href()
    with rasterio.open(assets[0].path) as source:
        expected = source.read()
    opened = rioxarray.open_rasterio(href)
    np.testing.assert_array_equal(opened.values, expected)
    assert opened.rio.crs.to_epsg() == 32633
    opened.close()
    loaded = odc.stac.load([found], bands=["sharpened.3", "mask"])
    np.testing.assert_array_equal(loaded["sharpened.3"].values[0], expected[2])
    assert loaded["mask"].values.max() == 1
    described = next(link for link in found.links if link.rel == "describedby")
    assert json.loads(Path(described.absolute_href).read_text())["x-prefix"] == "pancrafter:"


def test_ids_may_be_as_long_as_names_of_files(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    put(StaticSink(str(tmp_path)), assets, "S" * 250)
    assert seen_by_reader(tmp_path) == ["S" * 250]


def test_pystac_client_opens_it(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    import pystac_client

    put(StaticSink(str(tmp_path)), assets)
    with pytest.warns(pystac_client.warnings.NoConformsTo):
        client = pystac_client.Client.open(str(tmp_path / "catalog.json"))
    with pytest.warns(pystac_client.warnings.FallbackToPystac):
        assert [found.id for found in client.get_items(recursive=True)] == ["S1-sharp"]


def test_again_changes_nothing(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    sink = StaticSink(str(tmp_path))
    put(sink, assets)
    before = tree(tmp_path)
    later = {"now": datetime(2025, 1, 1, tzinfo=UTC)}
    assert not put(sink, assets, made=later).changed
    assert tree(tmp_path) == before


def test_version_of_an_earlier_release_stays_with_its_files(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    sink, made = StaticSink(str(tmp_path)), item(assets)
    made.properties["version"] = recipe().digest[:12]
    sink.publish(made, assets, collection=COLLECTION)
    before = tree(tmp_path)
    assert not put(sink, assets).changed
    assert tree(tmp_path) == before
    put(sink, assets, made={"recipe": recipe(method="gsa")})
    assert sink.item(NAME, "S1-sharp")["properties"]["version"] != recipe().digest[:12]


def test_replacing_keeps_created_and_old_files(
    tmp_path: Path, assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]
) -> None:
    sink = StaticSink(str(tmp_path))
    put(sink, assets)
    old_files = {path for path in tree(tmp_path) if path.endswith(".tif")}
    assert put(sink, other_assets, made={"now": datetime(2025, 1, 1, tzinfo=UTC)}).changed
    (found,) = sink.items()
    assert found["properties"]["created"] == "2024-06-01T12:00:00Z"
    assert found["properties"]["updated"] == "2025-01-01T00:00:00Z"
    assert old_files <= set(tree(tmp_path)), "a reader may still hold the old item"
    assert seen_by_reader(tmp_path) == ["S1-sharp"]
    orphans = sink.orphans(NAME)
    assert any("sharpened" in name for name in orphans)
    assert set(orphans) <= old_files | {name for name in tree(tmp_path) if "thumbnail" in name}


def test_orphans_are_looked_for_in_no_more_items_than_may_have_some(
    tmp_path: Path,
    assets: tuple[AssetFile, ...],
    other_assets: tuple[AssetFile, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = StaticSink(str(tmp_path))
    for name in ("whole", "replaced", "strange", "begun"):
        put(sink, assets, name)
    put(sink, other_assets, "replaced", made={"now": datetime(2025, 1, 1, tzinfo=UTC)})
    (tmp_path / NAME / "strange" / "mask.tif.aux.xml").write_text("not ours")
    (tmp_path / NAME / "begun" / "begun.json").unlink()
    read = sink.store.read
    asked: list[str] = []
    monkeypatch.setattr(sink.store, "read", lambda name: asked.append(name) or read(name))
    orphans = sink.orphans(NAME)
    assert {posixpath.dirname(name).removeprefix(f"{NAME}/") for name in orphans} == {"replaced", "strange", "begun"}
    assert not set(orphans) & (sink.files_of(NAME, "replaced") | sink.files_of(NAME, "strange"))
    assert not [name for name in asked if "whole" in name or "begun" in name]


def test_superseding(tmp_path: Path, assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]) -> None:
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "S1-a")
    newer = {"recipe": recipe(weights="better"), "now": datetime(2025, 1, 1, tzinfo=UTC)}
    put(sink, other_assets, "S1-b", supersedes="S1-a", made=newer)
    before = tree(tmp_path)
    assert not put(sink, other_assets, "S1-b", supersedes="S1-a", made=newer).changed
    assert tree(tmp_path) == before
    old, newest = sink.find_by_source(NAME, "S1")
    assert (newest["id"], old["id"]) == ("S1-b", "S1-a")
    assert old["properties"]["deprecated"] is True
    hrefs = {link["rel"]: link["href"] for link in old["links"]}
    assert hrefs["successor-version"] == hrefs["latest-version"] == "../S1-b/S1-b.json"
    assert {link["rel"]: link["href"] for link in newest["links"]}["predecessor-version"] == "../S1-a/S1-a.json"
    assert seen_by_reader(tmp_path) == ["S1-a", "S1-b"]


def test_superseding_a_product_that_declared_to_be_a_model(
    tmp_path: Path, assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]
) -> None:
    """As all products of a network did once, against the schema of that extension."""
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "S1-a")
    (document,) = tmp_path.rglob("S1-a.json")
    declared = json.loads(document.read_text())
    declared["stac_extensions"].append("https://stac-extensions.github.io/mlm/v1.4.0/schema.json")
    document.write_text(json.dumps(declared))
    put(sink, other_assets, "S1-b", supersedes="S1-a")
    old = json.loads(document.read_text())
    assert old["properties"]["deprecated"] is True
    validate_item(old)


def version_links(document: dict[str, Any]) -> dict[str, str]:
    return {link["rel"]: link["title"] for link in document["links"] if link["rel"].endswith("-version")}


def test_a_superseded_item_becomes_current_again(
    tmp_path: Path, assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]
) -> None:
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "S1-a")
    put(sink, other_assets, "S1-b", supersedes="S1-a")
    for supersedes in ("S1-b", None):  # None: the newer one was switched in, but its publisher died before it said so
        again = put(sink, assets, "S1-a", supersedes=supersedes)
        assert (again.changed, again.superseded) == (True, ("S1-b",))
        current, older = sink.find_by_source(NAME, "S1")
        assert (current["id"], current["properties"].get("deprecated"), version_links(current)) == ("S1-a", None, {})
        assert older["properties"]["deprecated"] is True
        assert version_links(older) == {
            "predecessor-version": "S1-a", "successor-version": "S1-a", "latest-version": "S1-a",
        }  # fmt: skip
        assert not put(sink, assets, "S1-a", supersedes=supersedes).changed
        assert put(sink, other_assets, "S1-b", supersedes="S1-a").superseded == ("S1-a",)


def test_a_version_between_that_was_never_confirmed_is_superseded(
    tmp_path: Path, assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]
) -> None:
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "S1-a")
    put(sink, other_assets, "S1-b", supersedes="S1-a")
    later = {"now": datetime(2090, 1, 1, tzinfo=UTC)}
    assert put(sink, other_assets, "S1-c", supersedes="S1-a", made=later).superseded == ("S1-b",)
    assert [found["id"] for found in sink.items() if not found["properties"].get("deprecated")] == ["S1-c"]


@pytest.mark.parametrize("in_collection", [200, 0])
def test_what_an_interrupted_publication_left_current_is_superseded(
    tmp_path: Path,
    assets: tuple[AssetFile, ...],
    other_assets: tuple[AssetFile, ...],
    monkeypatch: pytest.MonkeyPatch,
    in_collection: int,
) -> None:
    """It died after the link; another recipe made the scene then. A publisher that comes late supersedes nothing."""
    monkeypatch.setattr(catalog_links, "ITEMS_IN_COLLECTION", in_collection)
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "S1-a")
    monkeypatch.setattr(StaticSink, "_deprecate", lambda *_: None)
    put(sink, other_assets, "S1-b", supersedes="S1-a", made={"now": datetime(2025, 1, 1, tzinfo=UTC)})
    monkeypatch.undo()
    monkeypatch.setattr(catalog_links, "ITEMS_IN_COLLECTION", in_collection)
    now = {"now": datetime(2025, 1, 2, tzinfo=UTC)}
    for _ in ("first", "retried: what comes after a publication may have failed"):
        assert put(sink, other_assets, "S1-c", supersedes="S1-a", made=now).superseded == ("S1-a", "S1-b")
    assert put(sink, other_assets, "S1-late").superseded == ()
    successors = {found["id"]: successor_of(found) for found in sink.items()}
    assert successors == {"S1-a": "S1-c", "S1-b": "S1-c", "S1-c": None, "S1-late": None}


def test_an_older_version_that_is_gone_needs_no_mark(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    sink = StaticSink(str(tmp_path))
    published = put(sink, assets, "S1-b", supersedes="S1-a")
    assert (published.changed, published.superseded) == (True, ())
    assert version_links(sink.item(NAME, "S1-b")) == {}
    assert not put(sink, assets, "S1-b", supersedes="S1-a").changed


def test_extents_grow(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    sink = StaticSink(str(tmp_path))
    for name, box, moment in (
        ("a", [10.0, 40.0, 11.0, 41.0], datetime(2024, 3, 1, tzinfo=UTC)),
        ("b", [9.0, 40.5, 10.5, 42.0], datetime(2023, 3, 1, tzinfo=UTC)),
    ):
        made = item(assets, name)
        made.bbox, made.datetime = box, moment
        sink.publish(made, assets, collection=COLLECTION)
    extent = json.loads((tmp_path / NAME / "collection.json").read_text())["extent"]
    assert extent["spatial"]["bbox"] == [[9.0, 40.0, 11.0, 42.0]]
    assert extent["temporal"]["interval"] == [["2023-03-01T00:00:00Z", "2024-03-01T00:00:00Z"]]


def operations(sink: StaticSink, before_each: Callable[[int], None]) -> None:
    """Call back before every change of the store, also before the rename that makes a file appear."""
    store, count = sink.store, iter(range(10**6))
    for name in ("write", "put", "update"):
        honest = getattr(store, name)

        def wrapped(*given: Any, honest: Callable[..., None] = honest) -> None:
            before_each(next(count))
            honest(*given)

        setattr(store, name, wrapped)
    flush = object_store.flush

    def flushing(path: Path) -> None:
        before_each(next(count))
        flush(path)

    object_store.flush = flushing


@pytest.fixture
def _restore_flush() -> Iterator[None]:
    honest = object_store.flush
    yield
    object_store.flush = honest


def die_at(step: int, count: int) -> None:
    if count == step:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("_restore_flush")
def test_killed_anywhere_nothing_half_done_is_visible(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    """A child process dies at each step in turn; its heir publishes the same item."""
    base = tmp_path / "base"
    put(StaticSink(str(base)), assets, "S0")
    clean = tmp_path / "clean"
    shutil.copytree(base, clean)
    put(StaticSink(str(clean)), assets, "S1-sharp")
    wanted = set(tree(clean))
    step, visible_before_the_end = 0, []
    while True:
        root = tmp_path / f"killed-{step}"
        shutil.copytree(base, root)
        child = os.fork()
        if child == 0:
            sink = StaticSink(str(root))
            operations(sink, functools.partial(die_at, step))
            put(sink, assets, "S1-sharp")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        seen = seen_by_reader(root)
        visible_before_the_end.append(seen)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert seen in (["S0"], ["S0", "S1-sharp"])
        put(StaticSink(str(root)), assets, "S1-sharp")
        assert seen_by_reader(root) == ["S0", "S1-sharp"]
        drafts = {name for name in tree(root) if "/.draft-" in name or name.startswith(".draft-")}
        assert set(tree(root)) - drafts == wanted
        step += 1
    assert step > 10
    assert visible_before_the_end[0] == visible_before_the_end[4] == ["S0"]
    assert visible_before_the_end[-1] == ["S0", "S1-sharp"]


@pytest.mark.usefixtures("_restore_flush")
def test_a_failure_anywhere_leaves_no_scratch(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    for step in range(0, 18, 3):
        root = tmp_path / str(step)
        sink = StaticSink(str(root))

        def fail(count: int, step: int = step) -> None:
            if count == step:
                raise OSError(28, "No space left on device")

        operations(sink, fail)
        with pytest.raises((SinkError, OSError), match="No space left"):
            put(sink, assets)
        assert seen_by_reader(root) == []
        assert not [name for name in tree(root) if ".draft-" in name]


def test_a_lost_lease_publishes_nothing(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    def lost() -> None:
        raise LeaseLostError("fencing number 3 is not 2")

    sink = StaticSink(str(tmp_path))
    with pytest.raises(LeaseLostError):
        put(sink, assets, guard=lost)
    assert seen_by_reader(tmp_path) == []
    assert not (tmp_path / NAME / "S1-sharp" / "S1-sharp.json").exists()


def test_two_processes_and_their_threads_all_end_up_linked(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    root = tmp_path / "out"

    def work(process: int) -> None:
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(put, StaticSink(str(root)), assets, f"S{process}-{k}") for k in range(4)]
            assert all(job.result().changed for job in jobs)

    children = []
    for process in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(process)
            except BaseException:  # noqa: BLE001 (a forked child must never return into pytest)
                os._exit(1)
            os._exit(0)
        children.append(child)
    sizes = set()
    while children:
        sizes.add(len(seen_by_reader(root)))  # polls while they write; fails on anything half-done
        done, status = os.waitpid(children[0], os.WNOHANG)
        if done:
            assert os.WEXITSTATUS(status) == 0
            children.pop(0)
    expected = sorted(f"S{process}-{k}" for process in range(2) for k in range(4))
    assert sorted(seen_by_reader(root)) == expected
    assert len(sizes) > 1


@pytest.mark.parametrize("where", ["file", "proc"])
def test_unwritable_sinks_are_named(tmp_path: Path, where: str, assets: tuple[AssetFile, ...]) -> None:
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" / "out" if where == "file" else Path("/proc/out")
    with pytest.raises(SinkError, match=str(root)):
        StaticSink(str(root)).check_writable()
    with pytest.raises(SinkError, match=str(root)):
        put(StaticSink(str(root)), assets)


def test_a_writable_sink_stays_empty(tmp_path: Path) -> None:
    StaticSink(str(tmp_path / "new")).check_writable()
    assert not tree(tmp_path)


def test_a_full_disk_is_said(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(SinkError, match="sharpened"):
            put(StaticSink(str(tmp_path)), assets)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert seen_by_reader(tmp_path) == []


@pytest.mark.parametrize("uri", ["nosuch://x/y", "memory://x"])
def test_unknown_storage_is_refused(uri: str) -> None:
    with pytest.raises(SinkError, match="give a folder or s3://"):
        StaticSink(uri).check_writable()


def test_files_that_changed_or_are_no_cog_are_refused(tmp_path: Path) -> None:
    made = files(tmp_path / "files")
    sink = StaticSink(str(tmp_path / "out"))
    Path(made[2].path).write_bytes(b"other")
    with pytest.raises(InvalidSceneError, match="changed since it was described"):
        put(sink, made)
    with rasterio.open(made[0].path) as source:
        pixels, profile = source.read(), source.profile | {"tiled": False, "blockysize": 1}
    with rasterio.open(made[0].path, "w", **profile) as striped:
        striped.write(pixels)
    broken = made[0].model_copy(
        update={"size_bytes": Path(made[0].path).stat().st_size, "checksum": multihash_of(made[0].path)}
    )
    with pytest.raises(InvalidSceneError, match="expected a valid COG"):
        put(sink, (broken, *made[1:2]))
    assert seen_by_reader(tmp_path / "out") == []


def test_a_file_that_arrives_spoilt_is_not_published(
    tmp_path: Path, assets: tuple[AssetFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = StaticSink(str(tmp_path))

    def spoil(source: Path, name: str, media_type: str) -> None:
        sink.store.write(name, source.read_bytes()[:-1] + b"x", media_type)

    monkeypatch.setattr(sink.store, "put", spoil)
    with pytest.raises(SinkError, match="checksum is 1220"):
        put(sink, assets)
    assert sink.document(NAME, "S1-sharp") is None


def test_an_invalid_item_is_refused(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    made = item(assets)
    made.properties["proj:shape"] = "big"
    with pytest.raises(InvalidSceneError, match=r"\[projection\] properties/proj:shape"):
        StaticSink(str(tmp_path)).publish(made, assets, collection=COLLECTION)
    with pytest.raises(InvalidSceneError, match="not 'elsewhere'"):
        put(StaticSink(str(tmp_path)), assets, collection=COLLECTION.model_copy(update={"id": "elsewhere"}))
    assert seen_by_reader(tmp_path) == []


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_read_back_notices_damage(tmp_path: Path, assets: tuple[AssetFile, ...], damage: str) -> None:
    sink = StaticSink(str(tmp_path))
    published = put(sink, assets)
    path = Path(published.assets["mask"])
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(SinkError, match=r"mask.*expected"):
        sink.read_back(NAME, "S1-sharp")
    with pytest.raises(SinkError, match="no such item"):
        sink.read_back(NAME, "S9")
    sink.unlink(NAME, sink.item(NAME, "S1-sharp"))
    with pytest.raises(SinkError, match="no link leads to"):
        sink.read_back(NAME, "S1-sharp")


@pytest.mark.usefixtures("s3")
def test_on_s3(assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]) -> None:
    sink = StaticSink("s3://bucket/out")
    sink.check_writable()
    published = put(sink, assets)
    assert published.href == "s3://bucket/out/wv3-sharpened/S1-sharp/S1-sharp.json"
    again = StaticSink("s3://bucket/out")
    assert not put(again, assets).changed
    put(again, other_assets, "S1-b", supersedes="S1-sharp", made={"recipe": recipe(weights="better")})
    assert [found["id"] for found in sink.find_by_source(NAME, "S1")] == ["S1-sharp", "S1-b"]
    assert sink.orphans(NAME) == ()
    sizes = sink.store.sizes("")
    assert published.assets["sharpened"].removeprefix("s3://bucket/out/") in sizes
    assert sizes == {name: sink.store.size(name) for name in sizes}
    assert sink.store.sizes("nothing") == {}
    assert sink.store.changed("nothing") is None
    changed = sink.store.changed("catalog.json")
    assert changed is not None
    assert abs(datetime.now(UTC) - changed) < timedelta(minutes=10)
    filesystem = sink.store.filesystem  # type: ignore[attr-defined]
    info = filesystem.call_s3("head_object", Bucket="bucket", Key=published.assets["sharpened"].split("/", 3)[3])
    assert info["ContentType"].startswith("image/tiff")


@pytest.mark.usefixtures("s3")
def test_two_publishers_on_s3_lose_nothing(assets: tuple[AssetFile, ...]) -> None:
    """Both read the collection before either writes it: the later one must notice and add to the earlier one's."""
    meeting, raced = threading.Barrier(2, timeout=30), []

    def work(name: str) -> None:
        sink = StaticSink("s3://bucket/race")
        honest, met = sink.store.read_tagged, []

        def slow(document: str) -> Any:
            answer = honest(document)
            if document.endswith("collection.json"):
                raced.append(name)
                if not met:
                    met.append(True)
                    meeting.wait()
            return answer

        sink.store.read_tagged = slow  # type: ignore[method-assign]
        put(sink, assets, name)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work, name) for name in ("a", "b")]:
            job.result()
    assert len(raced) >= 5, "each reads to link and to read back; one of them must have had to read again"
    assert sorted(StaticSink("s3://bucket/race").item_ids(NAME)) == ["a", "b"]


@pytest.mark.usefixtures("s3")
def test_missing_bucket_is_a_sink_error(assets: tuple[AssetFile, ...]) -> None:
    with pytest.raises(SinkError, match="s3://nobucket/x"):
        StaticSink("s3://nobucket/x").check_writable()
    with pytest.raises(SinkError, match="s3://nobucket/x"):
        put(StaticSink("s3://nobucket/x"), assets)


@pytest.mark.usefixtures("s3")
def test_object_store_that_gives_no_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(CatalogUnavailableError, match=r"s3://bucket/x/catalog\.json.*is the object store up"):
        StaticSink("s3://bucket/x").collection_ids()


@pytest.mark.usefixtures("s3")
def test_object_store_that_is_asked_too_much_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(Quiet):
        def do_GET(self) -> None:
            self.send_error(429, "Too Many Requests")

    with http_server(Busy) as url:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(CatalogUnavailableError, match="is the object store up"):
            StaticSink("s3://bucket/x").collection_ids()


@pytest.mark.usefixtures("s3")
def test_publishing_asks_an_object_store_few_questions(
    assets: tuple[AssetFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a full collection. Every file is sent once and read once."""
    monkeypatch.setattr(catalog_links, "ITEMS_IN_COLLECTION", 1)
    sink = StaticSink("s3://bucket/few")
    for name in ("a", "b"):
        put(sink, assets, name)
    asked: list[str] = []
    client = sink.store.filesystem.s3  # type: ignore[attr-defined]
    honest = client._make_api_call

    async def count(operation: str, about: dict[str, Any]) -> Any:
        asked.append(f"{operation} {about['Key'].rsplit('/', 1)[1].split('-')[0]}")
        return await honest(operation, about)

    monkeypatch.setattr(client, "_make_api_call", count)
    made = item(assets, "c")
    made.properties["pancrafter:source"]["item_id"] = "S2"
    sink.publish(made, assets, collection=COLLECTION)
    for asset in assets:
        assert asked.count(f"PutObject {asset.key}") == asked.count(f"GetObject {asset.key}") == 1
    assert len(asked) <= 11 + 4 * len(assets), asked


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_an_item_is_linked_once_where_others_fill_the_collection_meanwhile(
    tmp_path: Path, assets: tuple[AssetFile, ...], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Two publish the same item; between the slower one's look at the collection and its turn it got full."""
    monkeypatch.setattr(catalog_links, "ITEMS_IN_COLLECTION", 1)
    where = {"folder": str(tmp_path / "out"), "bucket": "s3://bucket/once"}[place]
    slow, fast = StaticSink(where), StaticSink(where)
    honest = slow.store.read_tagged
    overtaken: list[str] = []

    def overtake(name: str) -> Any:
        seen = honest(name)
        if name.endswith("collection.json") and not overtaken:
            overtaken.append(name)
            put(fast, assets, "other")
            put(fast, assets, "same")
        return seen

    monkeypatch.setattr(slow.store, "read_tagged", overtake)
    put(slow, assets, "same")
    assert overtaken
    links = [link["href"].rsplit("/", 1)[1] for link in StaticSink(where)._item_links(COLLECTION.id)]
    assert sorted(links) == ["other.json", "same.json"]


def test_catalog_that_was_taken_apart_is_linked_anew(tmp_path: Path, assets: tuple[AssetFile, ...]) -> None:
    """What a publisher knows to be linked is not looked at again, until reading back fails."""
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "a")
    (tmp_path / "catalog.json").unlink()
    with pytest.raises(SinkError, match=r"publish it again|cannot be read back"):
        put(sink, assets, "b")
    put(sink, assets, "b")
    assert seen_by_reader(tmp_path) == ["a", "b"]


def test_many_items_are_linked_by_day(
    tmp_path: Path, assets: tuple[AssetFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full collection links pages of days; readers find every item, and no publication rewrites all links."""
    monkeypatch.setattr(catalog_links, "ITEMS_IN_COLLECTION", 2)
    sink = StaticSink(str(tmp_path))
    days = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 2, "f": 40}
    for name, day in days.items():
        made = item(assets, name)
        made.datetime = datetime(2024, 3, 1, tzinfo=UTC) + timedelta(days=day - 1)
        sink.publish(made, assets, collection=COLLECTION)
        before = tree(tmp_path)
        assert not sink.publish(made, assets, collection=COLLECTION).changed
        assert tree(tmp_path) == before
    pages = {name for name in tree(tmp_path) if "/by-day/" in name}
    assert {name.rsplit("/", 1)[1] for name in pages} == {
        *("2024-03.json", "2024-03-01.json", "2024-03-02.json"),
        *("2024-04.json", "2024-04-09.json"),
    }
    for name in pages:
        validate_document(json.loads((tmp_path / name).read_text()))
    catalog = pystac.Catalog.from_file(str(tmp_path / "catalog.json"))
    found = list(catalog.get_items(recursive=True))
    assert sorted(one.id for one in found) == sorted(days)
    assert {one.get_collection().id for one in found} == {NAME}
    assert sorted(sink.item_ids(NAME)) == sorted(days)
    assert all(sink.exists(NAME, name) for name in days)
    assert sink.orphans(NAME) == ()
    sink.withdraw(NAME, "d")
    sink.withdraw(NAME, "a")
    assert sorted(sink.item_ids(NAME)) == ["b", "c", "e", "f"]
    assert not sink.exists(NAME, "d")


def test_no_link_leads_to_a_withdrawn_version(
    tmp_path: Path, assets: tuple[AssetFile, ...], other_assets: tuple[AssetFile, ...]
) -> None:
    sink = StaticSink(str(tmp_path))
    put(sink, assets, "S1-a")
    put(sink, other_assets, "S1-b", supersedes="S1-a")
    sink.withdraw(NAME, "S1-b")
    older = sink.item(NAME, "S1-a")
    validate_item(older)
    assert older["properties"]["deprecated"]
    assert "S1-b" not in json.dumps(older["links"])
    assert put(sink, other_assets, "S1-c", supersedes="S1-a").superseded == ("S1-a",)
    put(sink, assets, "S1-d", supersedes="S1-c")
    sink.withdraw(NAME, "S1-d")
    assert [successor_of(sink.item(NAME, name)) for name in ("S1-a", "S1-c")] == ["S1-c", None]


def test_item_that_moves_to_another_day_is_linked_once(
    tmp_path: Path, assets: tuple[AssetFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_links, "ITEMS_IN_COLLECTION", 0)
    sink = StaticSink(str(tmp_path))
    for day in (1, 2):
        made = item(assets)
        made.datetime = datetime(2024, 3, day, tzinfo=UTC)
        sink.publish(made, assets, collection=COLLECTION)
    assert sink.item_ids(NAME) == ("S1-sharp",)
    first, second = (json.loads((tmp_path / NAME / "by-day" / f"2024-03-0{day}.json").read_text()) for day in (1, 2))
    assert [link["rel"] for link in first["links"]].count("item") == 0
    assert [link["rel"] for link in second["links"]].count("item") == 1
