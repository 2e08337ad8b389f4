"""Census and sweep: every way in which source, ledger, files and catalog can disagree is found and mended."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from small_archive import add_scene, settings_in, silent

from pancrafter import runs, steps, summary
from pancrafter.census import Census, command, take_census
from pancrafter.ledger import open_ledger
from pancrafter.processes import is_gone, lease_owner
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import SceneKey, State
from pancrafter.sweep import find_leftovers, sweep


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two published scenes; each test works on a copy."""
    root = tmp_path_factory.mktemp("census")
    for day in (1, 2):
        add_scene(root / "source", f"day-{day}", side_px=128, seed=day, day=day)
    runs.run(settings_in(root), silent)
    return root


@pytest.fixture
def settings(published: Path, tmp_path: Path) -> Settings:
    """The same run, the ledger moved with its sink to another place; the source stays where it is."""
    shutil.copytree(published / "sink", tmp_path / "sink")
    shutil.copytree(published / "state", tmp_path / "state")
    moved = settings_in(tmp_path, source=str(published / "source"))
    with sqlite3.connect(tmp_path / "state" / "ledger.db") as connection:
        connection.execute("UPDATE scene SET sink = ?", (moved.sink,))
    connection.close()
    return moved


def _findings(census: Census) -> dict[str, str]:
    return {difference.what: difference.finding for difference in census.differences}


def _item_folder(settings: Settings, name: str) -> Path:
    (folder,) = (Path(settings.sink) / "geoeye-1-sharpened").glob(f"{name}_psh-*")
    return folder


def test_finished_run_is_clean(settings: Settings) -> None:
    census = take_census(settings, checksums=True)
    assert census.clean, census.differences
    assert (census.source_scenes, census.ledger, census.catalog_items) == (2, {"confirmed": 2}, 2)
    otherwise = take_census(settings.model_copy(update={"precision": "bfloat16"}))
    assert set(_findings(otherwise).values()) == {"changed, or would be made differently now"}


def test_a_few_of_very_many_differences_are_shown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger may hold 100,000 scenes that wait."""
    monkeypatch.setattr(summary, "MOST_DIFFERENCES", 1)
    shutil.rmtree(settings.sink)
    census, printed = take_census(settings), io.StringIO()
    summary.print_census(Console(file=printed), census)
    assert [name for name in _findings(census) if name in printed.getvalue()] == ["geoeye-1/day-1"]
    assert "1 more: see `pancrafter census --json`" in printed.getvalue()
    assert printed.getvalue().endswith("\n2 differences\n")
    other = census.differences[0].model_copy(update={"what": "damaged", "fix": "pancrafter redrive"})
    more = census.model_copy(update={"differences": (*census.differences, other)})
    assert summary.shown_of(more) == (other,), "what waits does not hide it"
    one, printed = census.model_copy(update={"differences": census.differences[:1]}), io.StringIO()
    summary.print_census(Console(file=printed), one)
    assert printed.getvalue().endswith("\n1 difference\n")


def test_fixes_name_commands_on_the_same_places(settings: Settings) -> None:
    shutil.rmtree(settings.sink)
    fixes = {difference.fix for difference in take_census(settings).differences}
    options = f"--source {settings.source} --sink {settings.sink} --state-dir {settings.state_dir}"
    assert fixes == {f"pancrafter run {options}"}
    runs.run(settings, silent)
    assert take_census(settings).clean


def test_a_run_that_mends_has_the_window_and_what_decides_the_products(settings: Settings) -> None:
    shutil.rmtree(settings.sink)
    narrowed = settings.model_copy(
        update={
            "contracts_dir": "my contracts",
            "weights": "other",
            "precision": "bfloat16",
            "until": datetime(2025, 5, 1, 23, 59, 59, 999_999, tzinfo=UTC),
            "bbox": (-180.0, -90.0, 180.0, 90.0),
            "collections": ("geoeye-1", "other"),
            "ids": ("day-1", "day-2"),
        }
    )
    places = f"--source {settings.source} --sink {settings.sink} --state-dir {settings.state_dir}"
    made = "--contracts-dir 'my contracts' --weights other --precision bfloat16"
    window = "--to 2025-05-01T23:59:59.999999+00:00 --bbox -180.0,-90.0,180.0,90.0"
    chosen = "--collection geoeye-1 --collection other --ids FILE"
    assert command("run", narrowed) == f"pancrafter run {places} {made} {window} {chosen}"
    assert command("sweep", narrowed) == f"pancrafter sweep --sink {settings.sink} --state-dir {settings.state_dir}"


def test_a_scene_outside_of_the_window_is_mended_by_a_run_that_looks_beyond(settings: Settings) -> None:
    with open_ledger(settings) as ledger:
        ledger.redrive([SceneKey(sink=settings.sink, collection="geoeye-1", item_id=f"day-{day}") for day in (1, 2)])
    narrowed = settings.model_copy(update={"since": datetime(2025, 5, 2, tzinfo=UTC)})
    fixes = {difference.what: difference.fix for difference in take_census(narrowed).differences}
    assert fixes["geoeye-1/day-2"] == command("run", narrowed)
    assert fixes["geoeye-1/day-1"] == command("run", settings)


def test_scene_that_discovery_never_saw(settings: Settings, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(settings.source, source, copy_function=shutil.copy2)
    add_scene(source, "day-3", side_px=128, seed=3, day=3)
    chosen = settings.model_copy(update={"source": str(source), "until": datetime(2090, 1, 1, tzinfo=UTC)})
    (difference,) = (d for d in take_census(chosen).differences if d.what == "geoeye-1/day-3")
    assert (difference.finding, difference.fix) == ("is not in the ledger", command("run", chosen))


def test_products_that_a_new_ledger_does_not_know(settings: Settings, tmp_path: Path) -> None:
    lost = settings.model_copy(update={"state_dir": str(tmp_path / "new")})
    found = {d.what: d for d in take_census(lost).differences if d.place == "catalog"}
    products = {f"geoeye-1-sharpened/{_item_folder(settings, day).name}" for day in ("day-1", "day-2")}
    assert found.keys() == products
    assert all("not in this ledger" in d.finding and d.fix == command("run", lost) for d in found.values())
    assert take_census(lost.model_copy(update={"ids": ("other",)})).notes == (), "nobody looked whether they are gone"


@pytest.mark.parametrize("damage", ["shortened", "changed", "missing"])
def test_damaged_file_is_found_and_made_again(settings: Settings, damage: str) -> None:
    (file,) = _item_folder(settings, "day-1").glob("sharpened-*.tif")
    good = file.read_bytes()
    damages = {"shortened": good[:-10], "changed": good[:-10] + bytes(10)}
    file.write_bytes(damages[damage]) if damage in damages else file.unlink()
    census = take_census(settings, checksums=True)
    (difference,) = [d for d in census.differences if d.what == "geoeye-1/day-1"]
    assert difference.place == "files"
    assert difference.fix.startswith("pancrafter redrive geoeye-1/day-1 ")
    with open_ledger(settings) as ledger:
        ledger.redrive([SceneKey(sink=settings.sink, collection="geoeye-1", item_id="day-1")])
    (outcome,) = runs.run(settings, silent)
    assert not outcome.failed, outcome.reason
    assert file.read_bytes() == good
    assert take_census(settings, checksums=True).clean


def test_item_of_unknown_origin_and_unlinked_item(settings: Settings) -> None:
    collection = Path(settings.sink) / "geoeye-1-sharpened" / "collection.json"
    document = json.loads(collection.read_text())
    links = [link for link in document["links"] if "day-1" not in link["href"]]
    foreign = {"rel": "item", "href": "./foreign/foreign.json", "type": "application/geo+json"}
    collection.write_text(json.dumps(document | {"links": [*links, foreign]}))
    found = _findings(take_census(settings))
    assert "not in the catalog" in found["geoeye-1/day-1"]
    assert "neither document nor scene" in found["geoeye-1-sharpened/foreign"]


def test_scene_that_left_the_source(settings: Settings, tmp_path: Path) -> None:
    add_scene(tmp_path / "other", "day-9", side_px=128)
    census = take_census(settings.model_copy(update={"source": str(tmp_path / "other")}))
    assert "2 published, but gone from the source meanwhile" in census.notes
    lost = settings.model_copy(update={"source": str(tmp_path / "other"), "state_dir": str(tmp_path / "new")})
    census = take_census(lost)
    assert "2 published, but gone from the source meanwhile" in census.notes
    assert {d.what for d in census.differences} == {"geoeye-1/day-9"}, "no run could take the others over"
    with open_ledger(settings) as ledger:
        ledger.redrive([SceneKey(sink=settings.sink, collection="geoeye-1", item_id="day-1")])
    with sqlite3.connect(Path(settings.state_dir) / "ledger.db") as connection:  # ids are strangers'
        connection.execute("UPDATE scene SET item_id = item_id || '; true', output_item_id = 'lost'")
    connection.close()
    census = take_census(settings.model_copy(update={"source": str(tmp_path / "other")}))
    found = {difference.what: difference for difference in census.differences}
    assert "gone from the source" in found["geoeye-1/day-1; true"].finding
    assert found["geoeye-1/day-1; true"].fix.startswith("pancrafter ledger refuse 'geoeye-1/day-1; true' 'gone ")
    assert found["geoeye-1/day-2; true"].fix.startswith("pancrafter redrive 'geoeye-1/day-2; true' ")


@pytest.mark.parametrize(("code", "differs"), [("withdrawn", True), ("by-hand", False)])
def test_product_of_a_refused_scene_in_the_catalog(settings: Settings, code: str, *, differs: bool) -> None:
    """What is withdrawn goes; where a newer version is refused, the older one stays."""
    old_id = _item_folder(settings, "day-1").name
    with sqlite3.connect(Path(settings.state_dir) / "ledger.db") as connection:
        connection.execute(
            "UPDATE scene SET state = 'refused', code = ?, reason = 'a licence', output_item_id = 'newer', "
            "supersedes = output_item_id WHERE item_id = 'day-1'",
            (code,),
        )
    connection.close()
    found = {d.what: d for d in take_census(settings).differences if d.place == "catalog"}
    assert found.keys() == ({"geoeye-1/day-1"} if differs else set())
    if differs:
        difference = found["geoeye-1/day-1"]
        assert difference.finding == f"is refused (withdrawn), but {old_id} is in the catalog"
        assert difference.fix.startswith("pancrafter withdraw geoeye-1/day-1 --reason 'a licence' ")


@pytest.mark.parametrize("window", ["since", "until", "changed_since", "bbox", "aoi", "collections", "ids"])
def test_scene_outside_of_the_window_is_not_called_gone(settings: Settings, tmp_path: Path, window: str) -> None:
    far = tmp_path / "far.json"
    far.write_text(json.dumps({"type": "Polygon", "coordinates": [[[100, 0], [101, 0], [101, 1], [100, 1], [100, 0]]]}))
    narrow = {
        "since": datetime(2090, 1, 1, tzinfo=UTC),
        "until": datetime(1990, 1, 1, tzinfo=UTC),
        "changed_since": datetime(2090, 1, 1, tzinfo=UTC),
        "bbox": (100.0, 0.0, 101.0, 1.0),
        "aoi": str(far),
        "collections": ("other",),
        "ids": ("other",),
    }
    with open_ledger(settings) as ledger:
        ledger.redrive([SceneKey(sink=settings.sink, collection="geoeye-1", item_id="day-1")])
    census = take_census(settings.model_copy(update={window: narrow[window]}))
    assert not census.whole_source
    assert census.notes == (), "nobody looked whether day-2 is gone"
    assert _findings(census)["geoeye-1/day-1"] == "waits to be sharpened"


def test_sweep_frees_dead_workers_and_removes_only_what_nobody_holds(settings: Settings) -> None:
    host = lease_owner().split("/")[0]
    state, key = Path(settings.state_dir), SceneKey(sink=settings.sink, collection="geoeye-1", item_id="day-1")
    item_id, other_id = _item_folder(settings, "day-1").name, _item_folder(settings, "day-2").name
    with open_ledger(settings) as ledger:
        ledger.redrive([key])
        lease = ledger.claim(key, f"{host}/999999/1", 900, recipe=ledger.show(key).recipe)
        assert lease is not None
    attempts = [steps.attempt_name(item_id, settings.sink, lease.fence), steps.attempt_name(other_id, settings.sink, 1)]
    kept, gone = (steps.store_name(name, settings.sink) for name in (item_id, other_id))
    for name in (*(f"attempts/{name}" for name in attempts), f"staged/{gone}", "staged/x", f"staged/{kept}"):
        (state / name).mkdir(parents=True)
    sink = Path(settings.sink)
    orphan = sink / "geoeye-1-sharpened" / other_id / "mask-old-00000000.tif"
    draft = sink / "geoeye-1-sharpened" / f".draft-{host}~999999~1~abc-collection.json"
    living = sink / "geoeye-1-sharpened" / f".draft-{lease_owner().replace('/', '~')}~abc-collection.json"
    foreign = sink / "geoeye-1-sharpened" / "not-ours" / "file.tif"
    foreign.parent.mkdir()
    forgotten, unknown = (draft.with_name(f".draft-elsewhere~1~{n}~abc-collection.json") for n in (1, 2))
    for path in (orphan, draft, living, foreign, forgotten, unknown):
        path.write_bytes(b"x")
    days_ago = time.time() - 3 * 86400
    for path in (living, forgotten):
        os.utime(path, (days_ago, days_ago))
    found = _findings(take_census(settings))
    assert "worker" in found["geoeye-1/day-1"]
    assert not any("not-ours" in what for what in found)
    swept = sweep(settings)
    assert [str(k) for k in swept.freed] == ["geoeye-1/day-1"]
    assert sorted(path.name for path in (state / "staged").iterdir()) == [kept], "its blocks are kept"
    assert not list((state / "attempts").iterdir())
    assert [path.exists() for path in (orphan, draft, living, foreign)] == [False, False, True, True]
    assert (forgotten.exists(), unknown.exists()) == (False, True), "a container, or the version before, left them"
    living.unlink()
    unknown.unlink()
    shutil.rmtree(state / "staged" / kept)
    runs.run(settings, silent)
    assert take_census(settings).clean
    assert sweep(settings).removed == ()


def test_staged_pixels_of_a_held_scene_and_those_that_are_to_be_kept_are_no_leftovers(settings: Settings) -> None:
    store = steps.store_name(_item_folder(settings, "day-2").name, settings.sink)
    (Path(settings.state_dir) / "staged" / store).mkdir(parents=True)
    sink = StaticSink(settings.sink)
    with open_ledger(settings) as ledger:
        assert [found.name for found in find_leftovers(settings, ledger, sink)] == [store]
        assert not list(find_leftovers(settings.model_copy(update={"keep_staged": True}), ledger, sink))
        with sqlite3.connect(Path(settings.state_dir) / "ledger.db") as connection:
            connection.execute("UPDATE scene SET state = 'held' WHERE item_id = 'day-2'")
        connection.close()
        assert not list(find_leftovers(settings, ledger, sink))


def test_scene_that_kills_its_worker_is_given_up(settings: Settings) -> None:
    host = lease_owner().split("/")[0]
    key = SceneKey(sink=settings.sink, collection="geoeye-1", item_id="day-1")
    with open_ledger(settings) as ledger:
        ledger.redrive([key])
        for _ in range(5):
            assert ledger.claim(key, f"{host}/999999/1", 900, recipe=ledger.show(key).recipe) is not None
            ledger.sweep(is_gone=is_gone)
        row = ledger.show(key)
    assert row is not None
    assert row.state is State.DEAD
    assert "memory" in (row.reason or "")
    assert "1 dead" in " ".join(take_census(settings).notes)
