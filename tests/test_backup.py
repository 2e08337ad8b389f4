"""Backup, wipe, restore on the defaults; the same on S3, pgstac and PostgreSQL is in tests/services."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from published_scene import files, item
from small_archive import add_scene, classical_in, settings_in
from typer.testing import CliRunner

from pancrafter import runs
from pancrafter.backup import _rank, back_up, bring_back, copy_catalog
from pancrafter.catalog_links import CollectionInfo
from pancrafter.census import take_census
from pancrafter.cli import app
from pancrafter.discovery import discover
from pancrafter.errors import PancrafterError
from pancrafter.ledger import open_ledger
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.withdrawal import withdraw


def test_backup_wipe_restore_leaves_the_census_clean(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "one", side_px=128)
    settings = settings_in(tmp_path, sink=str(tmp_path / "out"))
    assert [outcome.verdict for outcome in runs.run(settings, lambda _: None)] != ["failed"]
    options = ["--sink", settings.sink, "--state-dir", settings.state_dir]
    place = str(tmp_path / "backup")
    done = CliRunner().invoke(app, ["backup", place, *options])
    assert done.exit_code == 0, done.output
    assert "0 there already; ledger: copied" in done.output
    rights = {path: path.stat().st_mode & 0o777 for path in tmp_path.glob("*/ledger.db*")}
    assert {path.parent.name for path in rights} == {"state", "backup"}
    assert set(rights.values()) == {0o600}, "hrefs may hold keys"
    before = contents(tmp_path / "out")
    assert "catalog: 0 files copied" in CliRunner().invoke(app, ["backup", place, *options]).output
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "state")
    assert not take_census(settings).clean
    shutil.rmtree(tmp_path / "state")  # the census has opened a fresh ledger there
    done = CliRunner().invoke(app, ["restore", place, *options])
    assert done.exit_code == 0, done.output
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "state" / "ledger.db").stat().st_mode & 0o777 == 0o600
    assert take_census(settings, checksums=True).clean
    assert runs.run(settings, lambda _: None) == []
    with pytest.raises(PancrafterError, match=r"ledger\.db: in the way; move aside"):
        bring_back(settings, place)


def test_what_is_left_of_a_catalog_is_newer_than_its_backup(tmp_path: Path) -> None:
    """The ledger is lost, and since the backup one product was withdrawn and another one published."""
    for name, day in (("one", 1), ("two", 2)):
        add_scene(tmp_path / "source", name, side_px=128, day=day)
    settings = settings_in(tmp_path)
    runs.run(settings.model_copy(update={"ids": ("one",)}), lambda _: None)
    back_up(settings, str(tmp_path / "backup"))
    with open_ledger(settings) as ledger:
        withdraw(ledger.rows()[0].key, "licence", settings, ledger)
    runs.run(settings.model_copy(update={"ids": ("two",)}), lambda _: None)
    before = contents(tmp_path / "sink")
    shutil.rmtree(tmp_path / "state")
    restored = bring_back(settings, str(tmp_path / "backup"))
    assert (restored.copied, restored.ledger) == (0, "put back")
    assert contents(tmp_path / "sink") == before
    with open_ledger(settings) as ledger:
        assert [(row.state, row.code) for row in ledger.rows()] == [("refused", "withdrawn")]


def test_no_link_to_what_was_withdrawn_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a collection nor on its pages."""
    monkeypatch.setattr("pancrafter.catalog_links.ITEMS_IN_COLLECTION", 1)
    for name, day in (("one", 1), ("two", 2), ("three", 2)):
        add_scene(tmp_path / "source", name, side_px=128, day=day)
    settings = classical_in(tmp_path)
    runs.run(settings, lambda _: None)
    back_up(settings, str(tmp_path / "backup"))
    with open_ledger(settings) as ledger:
        for row in ledger.rows():
            if row.key.item_id != "three":
                withdraw(row.key, "licence", settings, ledger)
    for name in ("collection.json", "by-day/2025-05-02.json"):
        (tmp_path / "sink" / "geoeye-1-sharpened" / name).unlink()
    bring_back(settings.model_copy(update={"state_dir": str(tmp_path / "new")}), str(tmp_path / "backup"))
    (left,) = StaticSink(settings.sink).item_ids("geoeye-1-sharpened")
    assert left.startswith("three_psh-")
    assert StaticSink(settings.sink).exists("geoeye-1-sharpened", left)
    back_up(settings, str(tmp_path / "backup"))
    shutil.rmtree(settings.sink)
    bring_back(settings.model_copy(update={"state_dir": str(tmp_path / "newer")}), str(tmp_path / "backup"))
    assert not list((tmp_path / "sink" / "geoeye-1-sharpened").glob("one_psh-*")), "a backup keeps its files"


def test_what_changed_and_was_published_since_the_backup_is_taken_over(tmp_path: Path) -> None:
    """Its id follows from source and recipe, so it has the pixels that would be made now."""
    add_scene(tmp_path / "source", "S1", side_px=128)
    settings = classical_in(tmp_path)
    runs.run(settings, lambda _: None)
    back_up(settings, str(tmp_path / "backup"))
    contract = tmp_path / "contracts" / "geoeye-1.yaml"
    contract.write_text(contract.read_text().replace("title: ", "title: New ", 1))
    (outcome,) = runs.run(settings, lambda _: None)
    assert outcome.verdict == "published"
    shutil.rmtree(settings.state_dir)
    bring_back(settings, str(tmp_path / "backup"))
    assert runs.run(settings, lambda _: None) == []
    with open_ledger(settings) as ledger:
        (row,) = ledger.rows()
        assert (row.state, row.output_item_id) == ("confirmed", Path(outcome.item_href or "").stem)


@pytest.mark.parametrize("recognised", [True, False])
def test_a_ledger_of_another_sink_is_gone_on_with_or_said(tmp_path: Path, *, recognised: bool) -> None:
    """One that an earlier version wrote does not know the catalog by anything but its place."""
    add_scene(tmp_path / "source", "S1", side_px=128)
    settings = settings_in(tmp_path)
    runs.run(settings, lambda _: None)
    back_up(settings, str(tmp_path / "kept"))
    shutil.rmtree(settings.state_dir)
    assert bring_back(settings, str(tmp_path / "kept")).ledger == "put back"
    other = settings_in(tmp_path / "other", source=settings.source)
    if not recognised:
        with sqlite3.connect(tmp_path / "kept" / "ledger.db") as connection:
            connection.execute("DELETE FROM catalog")
        connection.close()
    said = bring_back(other, str(tmp_path / "kept")).ledger
    with open_ledger(other) as ledger:
        assert len(ledger.rows(sink=other.sink)) == recognised
    assert (f"but it is of {settings.sink}, and knows nothing of {other.sink}" in said) is not recognised


def test_what_sqlite_kept_beside_a_ledger_is_in_the_way_too(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "one", side_px=128)
    settings = settings_in(tmp_path)
    runs.run(settings, lambda _: None)
    back_up(settings, str(tmp_path / "backup"))
    ledger = Path(settings.state_dir) / "ledger.db"
    ledger.unlink()
    log = ledger.with_name("ledger.db-wal")
    log.write_bytes(b"of a process that was killed")
    with pytest.raises(PancrafterError, match=r"ledger\.db-wal: in the way; move aside"):
        bring_back(settings, str(tmp_path / "backup"))
    log.unlink()
    bring_back(settings, str(tmp_path / "backup"))


def contents(folder: Path) -> dict[str, bytes]:
    names = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_copies_go_in_the_order_of_publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancrafter.catalog_links.ITEMS_IN_COLLECTION", 0)
    assets = files(tmp_path / "files")
    sink = StaticSink(str(tmp_path / "out"))
    collection = CollectionInfo(id="wv3-sharpened", title="WV3", description="Sharpened.")
    sink.publish(item(assets), assets, collection=collection)
    names = sorted(sink.store.list_names(""), key=_rank)
    assert sink.store.sizes("") == {name: (tmp_path / "out" / name).stat().st_size for name in names}
    order = ["S1-sharp.json", "2024-05-01.json", "2024-05.json", "collection.json", "catalog.json"]
    places = [next(k for k, name in enumerate(names) if name.endswith(f"/{end}") or name == end) for end in order]
    ranks = [_rank(names[place])[0] for place in places]
    assert ranks == sorted(set(ranks)), "files of one rank are copied in no order"
    assert max(k for k, name in enumerate(names) if name.endswith((".tif", ".png"))) < places[0]
    target = StaticSink(str(tmp_path / "copy"))
    assert copy_catalog(sink, target)[0] == len(names) - 1, "all but the lock"
    document = tmp_path / "out" / "catalog.json"
    document.write_text(document.read_text().replace("1.1.0", "1.1.1"))
    assert copy_catalog(sink, target)[0] == 1, "documents that kept their size differ too"
    assert contents(tmp_path / "copy") == contents(tmp_path / "out")


def test_decisions_are_saved_where_nothing_is_published_yet(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "one", side_px=128)
    settings = settings_in(tmp_path)
    with open_ledger(settings) as ledger:
        discover(settings, ledger)
        ledger.mark_refused(ledger.rows()[0].key, "by-hand", "licence")
    saved = back_up(settings, str(tmp_path / "backup"))
    assert (saved.copied, saved.ledger) == (0, "copied")
    shutil.rmtree(settings.state_dir)
    assert bring_back(settings, str(tmp_path / "backup")).ledger == "put back"
    assert runs.run(settings, lambda _: None) == []


def test_missing_places_are_said(tmp_path: Path) -> None:
    settings = Settings(sink=str(tmp_path / "out"), state_dir=str(tmp_path / "state"))
    with pytest.raises(PancrafterError, match="no such catalog; give --sink"):
        back_up(settings, str(tmp_path / "backup"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "catalog.json").write_text("{}")
    with pytest.raises(PancrafterError, match="no such ledger; give --state-dir"):
        back_up(settings, str(tmp_path / "backup"))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.db").write_text("something else")
    with pytest.raises(PancrafterError, match=r"not a database; expected a ledger, and room for .*TMPDIR"):
        back_up(settings, str(tmp_path / "backup"))
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "none"), "--sink", settings.sink])
    assert done.exit_code == 2
    assert "no backup there" in done.output
