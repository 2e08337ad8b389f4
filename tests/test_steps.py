"""The whole path of a scene without an orchestrator, on good and on bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import published_scene
import pystac
import pytest
import rasterio
import rioxarray
from listening import serving_files
from networks import random_network
from rio_cogeo import cog_validate
from small_archive import (
    GSD_M,
    RATIO,
    add_scene,
    backdate,
    classical_in,
    lose_workers,
    settings_in,
    silent,
    write_raster,
)

from pancrafter import discovery, runs, steps
from pancrafter.access import Access
from pancrafter.catalog_links import CollectionInfo
from pancrafter.census import take_census
from pancrafter.changes import ChangeFeed
from pancrafter.compute import Compute
from pancrafter.errors import (
    ContractError,
    InvalidSceneError,
    LedgerError,
    PancrafterError,
    SinkError,
    SourceError,
    TransientReadError,
    UnexpectedError,
)
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.model.names import DEFAULT_WEIGHTS, weights_path
from pancrafter.model.weights import save_checkpoint
from pancrafter.models import products_of
from pancrafter.plan import make_plan
from pancrafter.publish import StaticSink
from pancrafter.report import write_report
from pancrafter.sensors import contracts_of
from pancrafter.settings import Settings
from pancrafter.states import Lease, SceneKey, State, Work
from pancrafter.sweep import sweep
from pancrafter.types import Refusal, Scene
from pancrafter.validation import validate_item


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A run over one good scene and one of each kind of bad one."""
    root = tmp_path_factory.mktemp("run")
    catalog = root / "source"
    add_scene(catalog, "good", day=2)
    bad = {name: add_scene(catalog, name, seed=i + 2, side_px=128, day=3) for i, name in enumerate(_SPOILERS)}
    for name, scene in bad.items():
        _SPOILERS[name](scene)
    settings = settings_in(root)
    outcomes = runs.run(settings, silent)
    return settings, {outcome.key.split("/")[1]: outcome for outcome in outcomes}


def _truncate(scene) -> None:
    scene.ms.write_bytes(scene.ms.read_bytes()[: scene.ms.stat().st_size // 3])


def _remove(scene) -> None:
    scene.ms.unlink()


def _other_crs(scene) -> None:
    with rasterio.open(scene.ms) as source:
        values = source.read()
    write_raster(scene.ms, values, GSD_M * RATIO, crs="EPSG:32633")


_SPOILERS = {"truncated": _truncate, "missing": _remove, "other-crs": _other_crs}
"""One that is found when headers, one when grids, one when pixels are looked at; others are tests of ``cube``."""

_MESSAGES = {
    "truncated": ("asset ms", "truncated or damaged"),
    "missing": ("asset ms", "ms.tif"),
    "other-crs": ("EPSG:32632", "EPSG:32633"),
}


def test_good_scene_is_published_readable_and_valid(finished) -> None:
    settings, outcomes = finished
    outcome = outcomes["good"]
    assert outcome.verdict in {"published", "fallback"}
    catalog = pystac.Catalog.from_file(str(Path(settings.sink) / "catalog.json"))
    (item,) = catalog.get_items(recursive=True)
    validate_item(json.loads(Path(item.get_self_href()).read_text()))
    assert item.properties["pancrafter:source"]["item_id"] == "good"
    for key in ("sharpened", "mask"):
        path = item.assets[key].get_absolute_href()
        assert cog_validate(path, strict=True, quiet=True)[0]
    image = rioxarray.open_rasterio(item.assets["sharpened"].get_absolute_href())
    assert image.shape == (4, 256, 256)
    assert image.dtype == np.uint16
    assert image.rio.resolution() == (GSD_M, -GSD_M)
    for key in ("thumbnail", "overview"):
        assert Path(item.assets[key].get_absolute_href()).stat().st_size > 1000


@pytest.mark.parametrize("name", sorted(_SPOILERS))
def test_bad_scene_fails_with_a_message_and_publishes_nothing(finished, name: str) -> None:
    settings, outcomes = finished
    outcome = outcomes[name]
    assert outcome.verdict == "failed"
    assert name in outcome.reason
    for part in _MESSAGES[name]:
        assert part in outcome.reason
    assert not [path for path in Path(settings.sink).rglob("*") if name in path.name]


def test_second_run_has_nothing_to_do(finished) -> None:
    settings, _ = finished
    with open_ledger(settings) as ledger:
        found = discovery.discover(settings, ledger)
        counts = ledger.counts(settings.sink)
    assert found.eligible == ()
    assert counts[State.CONFIRMED] == 1
    assert counts[State.DEAD] == len(_SPOILERS)


def test_nothing_unfinished_is_left_behind(finished) -> None:
    settings, _ = finished
    state = Path(settings.state_dir)
    assert not list((state / "attempts").glob("*"))
    assert not list((state / "staged").glob("good*"))


def test_mended_scene_is_found_again(finished, tmp_path: Path) -> None:
    settings, _ = finished
    source = tmp_path / "source"
    shutil.copytree(settings.source, source)
    shutil.copytree(settings.sink, tmp_path / "sink")
    shutil.copytree(settings.state_dir, tmp_path / "state")
    moved = settings_in(tmp_path)
    add_scene(tmp_path / "fresh", "missing", seed=4, side_px=128, day=3)
    shutil.copy(tmp_path / "fresh/files/missing/ms.tif", source / "files/missing/ms.tif")
    with open_ledger(moved) as ledger:
        found = discovery.discover(moved, ledger)
    assert "geoeye-1/missing" in found.eligible


def test_output_that_vanished_is_made_again(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path)
    runs.run(settings, silent)
    with open_ledger(settings) as ledger:
        assert discovery.discover(settings, ledger).eligible == ()
    shutil.rmtree(settings.sink)
    with open_ledger(settings) as ledger:
        assert discovery.discover(settings, ledger).eligible == ("geoeye-1/scene",)


def test_what_was_planned_is_measured_in_the_ledger_and_in_the_item(tmp_path: Path) -> None:
    """Bytes, seconds, disk and money of a scene, once its like is known."""
    for day in (1, 2):
        add_scene(tmp_path / "source", f"day-{day}", side_px=256, seed=day, day=day)
    settings = classical_in(tmp_path, price_per_hour=36.0, keep_staged=True)
    runs.run(settings.model_copy(update={"ids": ("day-1",)}), silent)
    planned = make_plan(settings.model_copy(update={"ids": ("day-2",)}))
    runs.run(settings, silent)
    with open_ledger(settings) as ledger:
        (row,) = [row for row in ledger.rows() if row.key.item_id == "day-2"]
    measured, cost = row.measures, _item_of(settings, "day-2")["properties"]["pancrafter:cost"]
    assert planned.pixel_bytes == measured["bytes_read"] == cost["bytes_read"]
    assert measured["staging_bytes"] == cost["staging_bytes"]
    assert (measured["pixels"], cost.get("gpu_seconds")) == (256 * 256, None)
    (kept,) = (tmp_path / "state" / "staged").glob("day-2*")
    assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) == cost["staging_bytes"]
    assert planned.staging_bytes / 20 < measured["staging_bytes"] <= planned.staging_bytes, "planned as an upper bound"
    steps_seconds = sum(measured[f"{step}_seconds"] for step in ("stage", "sharpen", "assess"))
    assert cost["seconds"] == pytest.approx(steps_seconds)
    assert cost["sharpen_seconds"] == pytest.approx(measured["sharpen_seconds"])
    assert cost["mpx_per_s"] == pytest.approx(256 * 256 / 1e6 / cost["sharpen_seconds"])
    assert steps_seconds < measured["seconds"], "publishing comes on top, and an item cannot know what its own took"
    assert planned.seconds is not None
    assert planned.money == pytest.approx(planned.seconds / 100)
    assert measured["money"] == pytest.approx(measured["seconds"] / 100)
    assert cost["money"] == pytest.approx(cost["seconds"] / 100)


def test_a_scene_costs_what_all_attempts_at_it_took_and_a_product_made_anew_what_that_took(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "S1", side_px=128)
    settings = classical_in(tmp_path)
    with open_ledger(settings) as ledger:
        (key,) = discovery.discover(settings, ledger).eligible
        with pytest.raises(KeyboardInterrupt):
            _sharpen_for_an_hour_and_stop(key, settings, ledger)
        runs.run(settings, silent)
        (row,) = ledger.rows()
        cost = _item_of(settings, "S1")["properties"]["pancrafter:cost"]
        assert 4500 < row.measures["seconds"] < 4560
        assert 4500 < cost["seconds"] < 4560
        assert 3600 <= cost["sharpen_seconds"] < 3630
        ledger.redrive([row.key])
        runs.run(settings, silent)
        (row,) = ledger.rows()
        assert row.measures["seconds"] < 60


def _sharpen_for_an_hour_and_stop(key: str, settings: Settings, ledger: Ledger) -> None:
    with steps.claimed(ledger, key, settings, silent) as work:
        assert work is not None
        steps.sharpen(work, steps.stage(work, settings, Compute(), ledger), settings, Compute(), ledger, silent)
        ledger.note(work.lease, stage_seconds=600.0, sharpen_seconds=3600.0, assess_seconds=300.0)
        raise KeyboardInterrupt


def _item_of(settings: Settings, scene: str) -> dict:
    (path,) = Path(settings.sink).glob(f"*/{scene}_psh-*/*.json")
    return json.loads(path.read_text())


def test_an_error_nobody_foresaw_counts_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for day in (1, 2):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    settings = classical_in(tmp_path)

    def defect(text: str) -> None:
        if "day-1: staging" in text:
            raise TypeError("nobody thought of this")

    first, second = runs.run(settings, defect)
    assert (first.key, first.verdict) == ("geoeye-1/day-1", "retry later")
    assert first.reason == "scene geoeye-1/day-1: TypeError: nobody thought of this"
    assert (second.key, second.failed) == ("geoeye-1/day-2", False)
    assert "in defect" in caplog.text, "with its traceback"
    key = SceneKey(sink=settings.sink, collection="geoeye-1", item_id="day-1")
    with Ledger(settings.ledger, max_attempts=2, backoff_s=0) as ledger:
        assert ledger.show(key).attempts == 1
        ledger.redrive([key])
        for state in (State.ELIGIBLE, State.DEAD):
            with pytest.raises(UnexpectedError), steps.claimed(ledger, str(key), settings, silent):
                raise KeyError("bands")
            assert ledger.show(key).state is state
        assert ledger.show(key).reason == "scene geoeye-1/day-1: KeyError: 'bands'"
        ledger.redrive([key])
        with pytest.raises(KeyboardInterrupt), steps.claimed(ledger, str(key), settings, silent):
            raise KeyboardInterrupt
        assert (ledger.show(key).state, ledger.show(key).attempts) == (State.ELIGIBLE, 0)


def test_a_scene_of_a_contract_that_is_not_given_any_more_is_named_and_kept(tmp_path: Path) -> None:
    """As after a run with --contracts-dir, when it is left out."""
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path)
    contracts = contracts_of(settings)
    with open_ledger(settings) as ledger:
        (found,) = discovery.look(settings, contracts)
        work = discovery.work_of(found, settings, contracts)
        own = work.model_copy(update={"scene": found.model_copy(update={"sensor": "own-1"})})
        ledger.record_found(settings.sink, [own])
        with (
            pytest.raises(ContractError, match=r"no sensor contract 'own-1'; known are .*--contracts-dir"),
            steps.claimed(ledger, "geoeye-1/scene", settings, silent),
        ):
            pass
        (row,) = ledger.rows()
    assert (row.state, row.attempts) == (State.ELIGIBLE, 0)


def test_providers_that_are_none_and_what_is_secret_of_others_are_left_out(tmp_path: Path) -> None:
    scene = add_scene(tmp_path / "source", "scene", side_px=128)
    (path,) = (path for path in (tmp_path / "source").rglob("*.json") if path.stem == scene.item_id)
    for number, (found, kept) in enumerate(
        (
            ({"name": "USGS"}, None),
            (
                [
                    "USGS",
                    {"url": "x"},
                    {"name": "ACME", "roles": ["boss", "host"], "url": "https://acme.example/?sig=SECRET"},
                    {"name": "None such", "url": "https://[draft"},
                    {"name": "Stranger", "url": " java\tscript://x/%0aalert(1)"},
                ],
                [
                    {"name": "ACME", "roles": ["host"], "url": "https://acme.example/"},
                    {"name": "None such"},
                    {"name": "Stranger"},
                ],
            ),
        )
    ):
        item = json.loads(path.read_text())
        item["properties"]["providers"] = found
        path.write_text(json.dumps(item))
        settings = classical_in(tmp_path, sink=str(tmp_path / f"sink-{number}"))
        (outcome,) = runs.run(settings, silent)
        assert not outcome.failed, outcome.reason
        published = json.loads(Path(outcome.item_href).read_text())
        collection = json.loads((Path(settings.sink) / "geoeye-1-sharpened" / "collection.json").read_text())
        validate_item(published)
        assert published["properties"].get("providers") == kept
        assert collection.get("providers") == (kept or [])


def test_new_content_supersedes_the_old_item(tmp_path: Path) -> None:
    scene = add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path)
    (first,) = runs.run(settings, silent)
    with rasterio.open(scene.pan) as source:
        values = source.read()
    write_raster(scene.pan, values + 3, GSD_M)
    (second,) = runs.run(settings, silent)
    old, new = (json.loads(Path(outcome.item_href).read_text()) for outcome in (first, second))
    assert old["id"] != new["id"]
    assert old["properties"]["deprecated"] is True
    relations = {link["rel"]: link["href"] for link in new["links"]}
    assert old["id"] in relations["predecessor-version"]


def test_period_and_area_limit_what_is_done(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    inside = settings_in(tmp_path, since=datetime(2025, 5, 2, tzinfo=UTC), until=datetime(2025, 5, 2, 12, tzinfo=UTC))
    with open_ledger(inside) as ledger:
        assert discovery.discover(inside, ledger).eligible == ("geoeye-1/day-2",)
    elsewhere = settings_in(tmp_path, bbox=(100.0, 10.0, 101.0, 11.0))
    with open_ledger(elsewhere) as ledger:
        assert discovery.discover(elsewhere, ledger).eligible == ()


def test_a_look_for_what_is_new_takes_what_was_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancrafter.ledger.BATCH", 1)
    now = datetime.now(UTC)
    for day in (1, 2):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
        backdate(tmp_path / "source", f"day-{day}", datetime(2025, 5, day, tzinfo=UTC))
    settings, night = settings_in(tmp_path), classical_in(tmp_path, new_since=now - timedelta(days=10))
    with open_ledger(settings) as ledger:

        def to_do(**limits) -> tuple[str, ...]:
            return discovery.discover(night.model_copy(update=limits), ledger).eligible

        assert to_do() == (), "not found yet, and old"
        discovery.discover(settings, ledger)
        recipes = {row.recipe for row in ledger.rows()}
        assert to_do(limit=1) == ("geoeye-1/day-1",)
        (beyond,) = (row for row in ledger.rows() if row.recipe in recipes)
        assert beyond.key.item_id == "day-2", "of very many only as many as the limit are looked at"
        assert to_do(bbox=(100.0, 10.0, 101.0, 11.0)) == ()
        assert to_do(collections=("others",)) == ()
        assert to_do(ids=("day-2",)) == ("geoeye-1/day-2",)
        assert to_do(until=datetime(2025, 5, 1, 12, tzinfo=UTC)) == ("geoeye-1/day-1",)
        assert to_do(since=datetime(2025, 5, 1, 12, tzinfo=UTC)) == ("geoeye-1/day-2",)
        assert to_do(access=Access(roots=(str(tmp_path / "elsewhere"),))) == (), "another run may read these"
        area = {"type": "Polygon", "coordinates": [[[100, 10], [101, 10], [101, 11], [100, 10]]]}
        (tmp_path / "area.json").write_text(json.dumps(area))
        assert to_do(aoi=str(tmp_path / "area.json")) == ()
        own = beyond.scene.model_copy(update={"item_id": "day-0", "sensor": "own-1"})
        ledger.record_found(settings.sink, [Work(scene=own, recipe="own", output_item_id="own")])
        assert to_do() == ("geoeye-1/day-1", "geoeye-1/day-2"), "what another run has the contract of is left to it"
        assert not recipes & {row.recipe for row in ledger.rows()}, "by the present recipe"
        add_scene(tmp_path / "source", "new", side_px=128, seed=3, acquired=now)
        found = discovery.discover(night, ledger)
        assert (found.eligible, found.left_over) == (("geoeye-1/new", "geoeye-1/day-1", "geoeye-1/day-2"), 2)
        found = discovery.discover(night.model_copy(update={"limit": 1}), ledger)
        assert (found.eligible, found.left_over) == (("geoeye-1/new",), 0)
        (first,) = (row for row in ledger.rows() if row.key.item_id == "day-1")
        assert ledger.claim(first.key, steps.lease_owner(), 900, recipe=str(first.recipe))
        assert to_do() == ("geoeye-1/new", "geoeye-1/day-2")


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere", "does not exist"), ("http://127.0.0.1:9/stac", "127.0.0.1:9"), ("{tmp}/plain", "catalog")],
)
def test_source_that_cannot_be_searched(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "catalog.json").write_text('{"hello": "world"}')
    settings = settings_in(tmp_path, source=source.format(tmp=tmp_path))
    with open_ledger(settings) as ledger, pytest.raises(SourceError, match=message):
        discovery.discover(settings, ledger)


def test_sink_that_cannot_be_written(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    (tmp_path / "sink").write_text("a file, not a folder")
    settings = settings_in(tmp_path)
    with open_ledger(settings) as ledger, pytest.raises(SinkError, match="sink"):
        discovery.discover(settings, ledger)
    assert (tmp_path / "sink").read_text() == "a file, not a folder"


def test_lease_of_a_dead_process_is_freed(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path)
    host = steps.lease_owner().split("/")[0]
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        (row,) = ledger.rows(sink=settings.sink)
        assert ledger.claim(row.key, f"{host}/999999/1", 900, recipe=row.recipe) is not None
        assert discovery.discover(settings, ledger).eligible == ("geoeye-1/scene",)
        assert ledger.claim(row.key, steps.lease_owner(), 900, recipe=row.recipe) is not None
        assert discovery.discover(settings, ledger).eligible == ()


def test_a_lease_is_renewed_while_its_scene_is_in_work_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings, renew, renewed = classical_in(tmp_path, lease_s=0.3), Ledger.renew, threading.Semaphore(0)
    failures = [LedgerError("locked, this one time")]

    def keep(ledger: Ledger, lease: Lease) -> None:
        if failures:
            raise failures.pop()
        try:
            renew(ledger, lease)
        finally:
            renewed.release()

    monkeypatch.setattr(Ledger, "renew", keep)
    with open_ledger(settings) as ledger:
        (key,) = discovery.discover(settings, ledger).eligible
        with steps.claimed(ledger, key, settings, silent) as work:
            before = ledger.show(work.lease.key).lease_expires
            assert renewed.acquire(timeout=60)
            assert ledger.show(work.lease.key).lease_expires > before
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease of")]


def test_an_interruption_ends_the_run_although_the_lease_is_lost(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = classical_in(tmp_path)

    def interrupt(text: str) -> None:
        if "staging" in text:
            with open_ledger(settings) as ledger:
                assert ledger.sweep(is_gone=lambda _: True).freed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(settings, interrupt)


def test_a_scene_that_killed_its_workers_is_told_by_the_run_that_gives_it_up(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = classical_in(tmp_path)
    lose_workers(settings)
    (outcome,) = runs.run(settings, silent)
    assert (outcome.key, outcome.verdict) == ("geoeye-1/scene", "failed")
    assert "5 attempts ended in silence" in outcome.reason
    assert "5 attempts ended in silence" in (tmp_path / "sink" / "report.html").read_text()
    assert runs.run(settings, silent) == [], "told once"


def test_publishing_goes_on_where_the_feed_gave_no_answer(tmp_path: Path) -> None:
    """The flow tries a step again under the same lease; the item is there by then and the ledger knows."""
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings, compute = classical_in(tmp_path), Compute()
    (tmp_path / "sink").mkdir()
    (tmp_path / "sink" / "changes").write_text("in the way of the feed")
    with open_ledger(settings) as ledger:
        (key,) = discovery.discover(settings, ledger).eligible
        with steps.claimed(ledger, key, settings, silent) as work:
            staged = steps.stage(work, settings, compute, ledger)
            sharpened = steps.sharpen(work, staged, settings, compute, ledger, silent)
            assessed = steps.assess(work, staged, sharpened, settings, compute, ledger, silent)
            with pytest.raises(SinkError, match="changes"):
                steps.publish(work, staged, assessed, settings, ledger, silent)
            (tmp_path / "sink" / "changes").unlink()
            outcome = steps.publish(work, staged, assessed, settings, ledger, silent)
        (row,) = ledger.rows()
        assert [event.after for event in ledger.why(row.key)].count(State.PUBLISHED) == 1
    assert outcome.verdict in {"published", "fallback"}
    assert (row.state, row.measures["href"]) == (State.CONFIRMED, _sharpened_href(outcome))
    assert [change.type for change in ChangeFeed(StaticSink(settings.sink).store).events()] == ["new"]


@pytest.mark.parametrize(
    ("lost", "error", "message"),
    [
        ("sharpened/c/0/1/1", TransientReadError, "sharpened holds 12 chunks, expected 16"),
        ("pan_valid/c/0/0", InvalidSceneError, r"100\.000000% of the written pixels are valid, expected 97\.5"),
    ],
)
def test_pixels_that_were_lost_are_not_published(
    tmp_path: Path, lost: str, error: type[PancrafterError], message: str
) -> None:
    scene = add_scene(tmp_path / "source", "scene", side_px=256)
    with rasterio.open(scene.pan) as source:
        values = source.read()
    values[:, :40, :40] = 0
    write_raster(scene.pan, values, GSD_M, nodata=0)
    settings, compute = classical_in(tmp_path), Compute()
    with open_ledger(settings) as ledger:
        (key,) = discovery.discover(settings, ledger).eligible
        with steps.claimed(ledger, key, settings, silent) as work:
            staged = steps.stage(work, settings, compute, ledger)
            sharpened = steps.sharpen(work, staged, settings, compute, ledger, silent)
            assessed = steps.assess(work, staged, sharpened, settings, compute, ledger, silent)
            (Path(staged.store_uri) / lost).unlink()
            with pytest.raises(error, match=message):
                steps.publish(work, staged, assessed, settings, ledger, silent)
    assert not list(Path(settings.sink).glob("**/*.tif"))


def _sharpened_href(outcome: steps.Outcome) -> str:
    return pystac.Item.from_file(outcome.item_href).assets["sharpened"].get_absolute_href()


def test_output_catalog_opens_with_what_analysts_use(finished) -> None:
    """A STAC API client over the output, and a cube by odc-stac."""
    import odc.stac
    from pystac_client import Client

    from pancrafter.serve import serving

    settings, _ = finished
    with serving(Path(settings.sink)) as url:
        (item,) = Client.open(url).search(collections=["geoeye-1-sharpened"]).items()
    cube = odc.stac.load([item], bands=["sharpened.3"])
    assert cube.sizes["x"] == cube.sizes["y"] == 256
    assert int(cube["sharpened.3"].max()) > 0


@pytest.mark.usefixtures("s3")
def test_whole_path_to_s3(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path, sink="s3://bucket/catalog")
    (outcome,) = runs.run(settings, silent)
    assert outcome.item_href.startswith("s3://bucket/catalog/geoeye-1-sharpened/")
    with open_ledger(settings) as ledger:
        assert discovery.discover(settings, ledger).eligible == ()


_ON_A_FULL_DISK = """
import resource, signal, sys
from pancrafter import discovery, runs, steps
from pancrafter.ledger import open_ledger
from pancrafter.sensors import contracts_of
from pancrafter.settings import Settings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
settings = Settings.model_validate_json(sys.argv[1])
with open_ledger(settings) as ledger:
    discovery.discover(settings, ledger)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    runs.run(settings, print)
except steps.PancrafterError as error:
    print(type(error.__cause__).__name__, error)
    sys.exit(2)
"""


def test_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    """No file may grow beyond 200 kB: the COG of the scene is larger, the ledger and the staged shards are not."""
    add_scene(tmp_path / "source", "scene", side_px=512)
    settings = classical_in(tmp_path)
    command = [sys.executable, "-c", _ON_A_FULL_DISK, settings.model_dump_json(), "200000"]
    full = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert full.returncode == 2, full.stdout + full.stderr
    assert "SinkError" in full.stdout
    assert not list((tmp_path / "sink").rglob("*.json")) or not list((tmp_path / "sink").rglob("*.tif"))
    with open_ledger(settings) as ledger:
        assert discovery.discover(settings, ledger).eligible == ("geoeye-1/scene",)
    (outcome,) = runs.run(settings, silent)
    assert outcome.verdict in {"published", "fallback"}


# --- ids that hold slashes, or characters that end an address -------------------------------------------------------


def _source_called(root: Path, **changes: str) -> Settings:
    """An archive of one scene whose item has other ids than its file is called after."""
    add_scene(root / "source", "S1", side_px=128)
    path = root / "source" / "geoeye-1" / "S1" / "S1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return classical_in(root)


def test_item_whose_id_holds_a_slash_is_published_once(tmp_path: Path) -> None:
    settings = _source_called(tmp_path, id="2025/S1")
    assert [outcome.verdict for outcome in runs.run(settings, silent)] == ["published"]
    (item,) = StaticSink(settings.sink).items("geoeye-1-sharpened")
    assert item["id"].startswith("2025_S1_psh-")
    assert item["properties"]["pancrafter:source"]["item_id"] == "2025/S1"
    assert runs.run(settings, silent) == []
    assert take_census(settings, checksums=True).clean


def test_item_that_was_published_under_an_id_with_a_slash_is_superseded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, make_id = _source_called(tmp_path, id="2025/S1"), discovery.output_item_id
    with monkeypatch.context() as patch:  # as earlier versions called it
        patch.setattr(discovery, "output_item_id", lambda *given: make_id(*given).replace("2025_S1", "2025/S1"))
        runs.run(settings, silent)
    assert [outcome.verdict for outcome in runs.run(settings, silent)] == ["published"]
    states = {item["id"]: "deprecated" in item["properties"] for item in StaticSink(settings.sink).items()}
    assert sorted((name[:8], old) for name, old in states.items()) == [("2025/S1_", True), ("2025_S1_", False)]
    assert runs.run(settings, silent) == []
    assert {(leftover.place, leftover.name) for leftover in sweep(settings).removed} <= {
        ("staged", "2025"),
        ("attempts", "2025"),
    }
    assert take_census(settings, checksums=True).clean


@pytest.mark.parametrize("collection", ["org/geoeye-1", "geo#eye-1", "geo?eye-1", "geo;eye-1"])
def test_collection_whose_id_cannot_name_a_folder_is_refused(tmp_path: Path, collection: str) -> None:
    settings = _source_called(tmp_path, collection=collection)
    (outcome,) = runs.run(settings, silent)
    assert outcome.verdict == "refused"
    assert f"the collection {collection!r} holds {collection[3]!r}" in outcome.reason
    assert not Path(settings.sink).joinpath("catalog.json").exists()
    assert take_census(settings).clean


def test_item_whose_id_would_end_an_address_is_found_by_any_reader(tmp_path: Path) -> None:
    settings = _source_called(tmp_path, id="S1 #7?;%2F.é+(1)")
    assert [outcome.verdict for outcome in runs.run(settings, silent)] == ["published"]
    with serving_files(Path(settings.sink)) as url:
        for place in (settings.sink, url):
            (item,) = pystac.Catalog.from_file(f"{place}/catalog.json").get_items(recursive=True)
            assert item.id.startswith("S1__7___2F.é+(1)_psh-")
            assert item.properties["pancrafter:source"]["item_id"] == "S1 #7?;%2F.é+(1)"
    assert not {" ", "%"} & set(str(item.assets["mask"].get_absolute_href()))  # GDAL and curl refuse a space
    assert runs.run(settings, silent) == []


def test_link_that_an_earlier_version_left_to_an_id_that_ends_an_address_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, make_id = _source_called(tmp_path, id="S1#7"), discovery.output_item_id
    with monkeypatch.context() as patch:
        patch.setattr(discovery, "output_item_id", lambda *given: make_id(*given).replace("S1_7", "S1#7"))
        with pytest.raises(PancrafterError, match="no link leads to"):
            runs.run(settings, silent)
    assert [outcome.verdict for outcome in runs.run(settings, silent)] == ["published"]
    (item,) = pystac.Catalog.from_file(f"{settings.sink}/catalog.json").get_items(recursive=True)
    assert item.id.startswith("S1_7_psh-")


# --- the report page ------------------------------------------------------------------------------------------------


def test_report_page_of_a_run_that_stopped(tmp_path: Path) -> None:
    """The sink takes everything but the second scene: a file lies where its folder is to be."""
    for day in (1, 2, 3):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    (item,) = (tmp_path / "source").rglob("day-3.json")
    item.write_text(item.read_text().replace('"platform": "geoeye-1"', '"platform": "unknown"'))
    settings = classical_in(tmp_path)
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        in_the_way = next(row.output_item_id for row in ledger.rows() if row.key.item_id == "day-2")
    folder = Path(settings.sink) / "geoeye-1-sharpened"
    folder.mkdir(parents=True)
    (folder / str(in_the_way)).touch()
    with pytest.raises(runs.RunStoppedError, match="day-2") as stopped:
        runs.run(settings, silent)
    told = [(outcome.key, outcome.verdict) for outcome in stopped.value.outcomes]
    assert told == [("geoeye-1/day-3", "refused"), ("geoeye-1/day-1", "published")]
    page = (Path(settings.sink) / "report.html").read_text()
    assert "<b>1</b>published" in page
    assert "The run stopped before its end" in page


def test_report_page_of_a_night_that_only_refused_and_of_an_idle_one(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "S1", side_px=128)
    (item,) = (tmp_path / "source").rglob("S1.json")
    spoiled = item.read_text().replace('"platform": "geoeye-1"', '"platform": "unknown"')
    item.write_text(spoiled.replace('"id": "S1"', '"id": "$(id)"'))
    settings, lines = settings_in(tmp_path), []
    (outcome,) = runs.run(settings, lines.append)
    assert outcome.verdict == "refused"
    page = Path(settings.sink) / "report.html"
    assert "<b>1</b>refused" in page.read_text()
    assert "<code>pancrafter ledger why &#x27;geoeye-1/$(id)&#x27;</code>" in page.read_text(), "somebody will paste it"
    runs.run(settings, lines.append)
    assert lines == [f"report page: {page}"], "the page of the last news stays"


def test_report_page_says_of_how_many_products_its_sums_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (1, 2):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    settings = classical_in(tmp_path)
    runs.run(settings, silent)
    page = Path(settings.sink) / "report.html"
    assert "</b>Mpx</span>" in page.read_text()
    monkeypatch.setattr("pancrafter.report.MOST_SHOWN", 1)
    write_report(StaticSink(settings.sink))
    assert "<b>2</b>published" in page.read_text()
    assert "</b>Mpx of the last 1</span>" in page.read_text()


def test_report_page_has_each_product_once_and_says_which_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scene whose recipe changed and changed back: its first product was announced twice."""
    sink, assets = StaticSink(str(tmp_path / "sink")), published_scene.files(tmp_path / "files")
    collection = CollectionInfo(id="wv3-sharpened", title="WorldView-3", description="Sharpened scenes.")
    for year, name, older in ((2024, "a", None), (2025, "b", "a"), (2026, "a", "b")):
        made = published_scene.item(assets, name, now=datetime(year, 6, 1, tzinfo=UTC))
        steps.announce(sink, sink.publish(made, assets, collection=collection, supersedes=older))
    page = Path(write_report(sink)).read_text()
    assert "<b>2</b>published" in page
    assert "<b>1</b>superseded" in page
    rows = page.split("<tr>")
    assert [(f"{name}/{name}.json" in row, "superseded" in row) for name, row in zip("ba", rows[-2:], strict=True)] == [
        (True, True),
        (True, False),
    ]
    read = sink.store.read
    asked: list[str] = []
    monkeypatch.setattr(sink.store, "read", lambda name: asked.append(name) or read(name))
    monkeypatch.setattr("pancrafter.report.MOST_SHOWN", 1)
    write_report(sink)
    assert len([name for name in asked if name.startswith("changes/")]) == 1


def test_report_page_lists_the_first_of_many_refusals_and_counts_all(tmp_path: Path) -> None:
    settings, lines = settings_in(tmp_path), []
    refusals = [
        Refusal(collection="c", item_id=f"item-{number:03}", code="no_pan", reason="no PAN") for number in range(300)
    ]
    with open_ledger(settings) as ledger:
        ledger.record_found(settings.sink, refusals)
        runs.Run(settings, ledger, lines.append, since=datetime(2025, 1, 1, tzinfo=UTC)).leave_report()
        page = (Path(settings.sink) / "report.html").read_text()
        later = runs.Run(settings, ledger, lines.append, since=datetime(2125, 1, 1, tzinfo=UTC))
        later.leave_report()
        assert "refused" not in (Path(settings.sink) / "report.html").read_text()
        (Path(settings.sink) / "report.html").unlink()
        (Path(settings.sink) / "report.html").mkdir()
        later.leave_report()
    assert "<b>300</b>refused" in page
    assert page.count("ledger why c/item-") == 200
    assert "and 100 more" in page
    assert lines[:2] == [f"report page: {settings.sink}/report.html"] * 2
    assert lines[2].startswith("the report page was not written: "), "the run is not worse for it"


# --- weights from a file --------------------------------------------------------------------------------------------


def test_path_to_weights_is_no_part_of_recipe_and_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_scene(tmp_path / "source", "S1", side_px=128)
    home = tmp_path / "somebody's home"
    home.mkdir()
    monkeypatch.chdir(home)
    shutil.copyfile(weights_path(DEFAULT_WEIGHTS), "B.v2.safetensors")
    spellings = ("B.v2.safetensors", "./B.v2.safetensors", f"{home}/B.v2.safetensors")
    first, *others = [settings_in(tmp_path, weights=weights) for weights in spellings]
    assert [outcome.verdict for outcome in runs.run(first, silent)] == ["published"]
    assert [runs.run(settings, silent) for settings in others] == [[], []]
    sink = StaticSink(first.sink)
    (item,) = sink.items("geoeye-1-sharpened")
    assert item["properties"]["pancrafter:recipe"]["weights"] == "B.v2"
    assert [product.weights for product in products_of(sink, "B.v2")] == ["B.v2"]
    assert not [path for path in Path(first.sink).rglob("*.json") if home.name in path.read_text()]


def test_weights_chosen_by_name_keep_it_in_the_recipe(tmp_path: Path) -> None:
    """Their products would be made again otherwise."""
    add_scene(tmp_path / "source", "S1", side_px=128)
    settings = settings_in(tmp_path)
    contracts = contracts_of(settings)
    (scene,) = [entry for entry in discovery.look(settings, contracts) if isinstance(entry, Scene)]
    recipe = discovery.planned_recipe(scene, settings, contracts)
    assert recipe.weights == DEFAULT_WEIGHTS
    namesake = scene.model_copy(update={"collection": "other"})
    assert discovery.output_item_id(scene, recipe) != discovery.output_item_id(namesake, recipe), "both may be in work"


def test_a_scene_of_bands_that_the_network_does_not_take_waits_for_other_weights(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "S1", side_px=128)
    save_checkpoint(tmp_path / "three.safetensors", random_network(bands=3, attention="none"), {})
    unfit = settings_in(tmp_path, weights=str(tmp_path / "three.safetensors"))
    (waiting,) = runs.run(unfit, silent)
    assert waiting.verdict == "retry later"
    assert "three.safetensors take 3 bands at once, the scene has 4; choose weights" in waiting.reason
    assert not (tmp_path / "state" / "staged").exists(), "read for nothing"
    assert [outcome.verdict for outcome in runs.run(settings_in(tmp_path), silent)] == ["published"]
