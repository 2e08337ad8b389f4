"""A sweep beside living workers: it removes what dead ones left, and nothing that is worked on or published."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from small_archive import add_scene, classical_contracts, settings_in, silent
from test_ledger import work

from pancrafter import killpoints, runs, steps
from pancrafter.census import take_census
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.processes import lease_owner
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import Lease, SceneKey, Standing, State
from pancrafter.sweep import Leftover, find_leftovers, sweep

COLLECTION = "geoeye-1-sharpened"
KEY = "geoeye-1/day-1"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    add_scene(root / "source", "day-1", side_px=128)
    classical_contracts(root / "contracts")
    return root


@pytest.fixture
def settings(source: Path, tmp_path: Path) -> Settings:
    return settings_in(tmp_path, source=str(source / "source"), contracts_dir=str(source / "contracts"))


def _key(settings: Settings) -> SceneKey:
    return SceneKey.parse(KEY, settings.sink)


def _item_id(settings: Settings) -> str:
    (item_id,) = StaticSink(settings.sink).item_ids(COLLECTION)
    return item_id


def _claim_again(settings: Settings) -> Lease:
    with open_ledger(settings) as ledger:
        ledger.redrive([_key(settings)])
        row = ledger.show(_key(settings))
        assert row is not None
        lease = ledger.claim(row.key, lease_owner(), 900, recipe=str(row.recipe))
    assert lease is not None
    return lease


def _confirm(settings: Settings, lease: Lease) -> None:
    with open_ledger(settings) as ledger:
        for state in (State.STAGED, State.SHARPENED, State.ASSESSED, State.PUBLISHED, State.CONFIRMED):
            ledger.advance(lease, state)


def _by_another_recipe(settings: Settings, contracts: Path, *, mtf: float = 0.15) -> Settings:
    contracts.mkdir()
    text = (Path(str(settings.contracts_dir)) / "geoeye-1.yaml").read_text()
    (contracts / "geoeye-1.yaml").write_text(text.replace("pan_mtf: 0.16", f"pan_mtf: {mtf}"))
    return settings.model_copy(update={"contracts_dir": str(contracts)})


@pytest.mark.parametrize("point", ["item-written", "announced"])
def test_what_an_interrupted_run_published_does_not_stay_beside_what_another_recipe_made(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Earlier versions left it current in the catalog, which the census tells, or without a link."""

    def stop(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(killpoints, "at", stop)
        with pytest.raises(KeyboardInterrupt):
            runs.run(settings, silent)
    for file in Path(settings.sink, COLLECTION).glob("*/*"):
        os.utime(file, (0, 0))
    settings = _by_another_recipe(settings, tmp_path / "contracts")
    with monkeypatch.context() as patch:
        patch.setattr(StaticSink, "_older", lambda *_: ())
        runs.run(settings, silent)
    commands = {one.fix.split(" --")[0] for one in take_census(settings).differences}
    assert commands == {"pancrafter sweep", *([f"pancrafter redrive {KEY}"] if point == "announced" else [])}
    with open_ledger(settings) as ledger:
        ledger.redrive([_key(settings)] if point == "announced" else [])
        runs.run(settings, silent)
        sweep(settings)
        (row,) = ledger.rows()
    assert take_census(settings).clean
    items = list(StaticSink(settings.sink).items(COLLECTION))
    assert [item["id"] for item in items if not item["properties"].get("deprecated")] == [row.output_item_id]
    assert {file.parent.name for file in Path(settings.sink, COLLECTION).glob("*/*")} == {item["id"] for item in items}


def test_what_another_ledger_publishes_of_the_same_scene_is_left_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.run(settings, silent)
    other = _by_another_recipe(settings, tmp_path / "contracts").model_copy(update={"state_dir": str(tmp_path / "b")})
    removed: list[Leftover] = []

    def sweep_meanwhile(point: str) -> None:
        if point == "item-written":
            assert take_census(settings).clean
            removed.extend(sweep(settings).removed)

    monkeypatch.setattr(killpoints, "at", sweep_meanwhile)
    assert [outcome.verdict for outcome in runs.run(other, silent)] == ["published"]
    assert removed == []


def test_older_versions_stay_where_the_links_to_them_are_lost(settings: Settings, tmp_path: Path) -> None:
    for number in range(3):
        runs.run(_by_another_recipe(settings, tmp_path / str(number), mtf=0.15 - number / 100), silent)
    published = sorted(Path(settings.sink, COLLECTION).glob("*/*"))
    for file in published:
        os.utime(file, (0, 0))
    collection = Path(settings.sink, COLLECTION, "collection.json")
    document = json.loads(collection.read_text())
    collection.write_text(json.dumps(document | {"links": [one for one in document["links"] if one["rel"] != "item"]}))
    assert sweep(settings).removed == ()
    assert sorted(Path(settings.sink, COLLECTION).glob("*/*")) == published


@pytest.mark.parametrize("leased", [True, False])
def test_item_that_is_published_while_names_are_listed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, leased: bool
) -> None:
    """The worker's assets are there when the sweep lists; it writes the item and confirms before the ledger is read.

    One whose lease was lost does so too, but nothing of it is in the ledger.
    """
    runs.run(settings, silent)
    lease, item_id = _claim_again(settings) if leased else None, _item_id(settings)
    item = Path(settings.sink) / COLLECTION / item_id / f"{item_id}.json"
    document = item.read_bytes()
    item.unlink()
    list_orphans = StaticSink.orphans

    def list_before_the_item_is_written(
        sink: StaticSink, collection_id: str, planned: Collection[str]
    ) -> tuple[str, ...]:
        orphans = list_orphans(sink, collection_id, planned)
        assert len(orphans) == 5
        item.write_bytes(document)
        if lease is not None:
            _confirm(settings, lease)
        return orphans

    with monkeypatch.context() as patch:
        patch.setattr(StaticSink, "orphans", list_before_the_item_is_written)
        assert sweep(settings).removed == ()
    assert take_census(settings, checksums=True).clean


def test_scene_that_is_claimed_after_its_leftovers_were_found(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.run(settings, silent)
    item_id = _item_id(settings)
    store = Path(settings.state_dir) / "staged" / steps.store_name(item_id, settings.sink)
    orphan = Path(settings.sink) / COLLECTION / item_id / "mask-old-00000000.tif"
    store.mkdir()
    orphan.write_bytes(b"x")
    leases: list[Lease] = []
    unclaimable = Ledger.unclaimable

    def claimed_before(ledger: Ledger, key: SceneKey) -> AbstractContextManager[Standing]:
        if not leases:
            leases.append(_claim_again(settings))
        return unclaimable(ledger, key)

    monkeypatch.setattr(Ledger, "unclaimable", claimed_before)
    assert sweep(settings).removed == ()
    assert store.is_dir()
    assert orphan.is_file()
    _confirm(settings, leases[0])
    assert {leftover.place for leftover in sweep(settings).removed} == {"staged", "sink"}
    assert not store.exists()
    assert not orphan.exists()


def test_store_and_attempt_of_another_sink_in_the_same_state_folder(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"sink": str(tmp_path / "other-sink")})
    runs.run(settings, silent)
    lease = _claim_again(settings)
    item_id, state = _item_id(settings), Path(settings.state_dir)
    work = (
        state / "staged" / steps.store_name(item_id, settings.sink),
        state / "attempts" / steps.attempt_name(item_id, settings.sink, lease.fence),
    )
    for folder in work:
        folder.mkdir()
    assert sweep(other).removed == ()
    assert [outcome.verdict for outcome in runs.run(other, silent)] == ["published"]
    assert sweep(settings).removed == ()
    assert all(folder.is_dir() for folder in work)
    _confirm(settings, lease)
    assert {leftover.place for leftover in sweep(settings).removed} == {"staged", "attempts"}
    assert not any(folder.exists() for folder in work)


def test_names_of_earlier_versions_go_when_nobody_works_on_the_scene(settings: Settings) -> None:
    runs.run(settings, silent)
    lease = _claim_again(settings)
    item_id, state = _item_id(settings), Path(settings.state_dir)
    old = (state / "staged" / f"{item_id}.zarr", state / "attempts" / f"{item_id}.{lease.fence}")
    for folder in old:
        (folder / "inner").mkdir(parents=True)
    assert sweep(settings).removed == ()
    _confirm(settings, lease)
    assert len(sweep(settings).removed) == 2
    assert not any(folder.exists() for folder in old)
    assert not list((state / "staged").iterdir())


def test_memory_is_for_what_is_left_over_not_for_all_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancrafter.ledger._PAGE", 50)
    settings, peaks = settings_in(tmp_path), []
    with open_ledger(settings) as ledger:
        for numbers in (range(500), range(500, 2500)):
            ledger.record_found(settings.sink, [work(f"scene-{number}") for number in numbers])
            tracemalloc.start()
            assert list(find_leftovers(settings, ledger, StaticSink(settings.sink))) == []
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2000 * 500
