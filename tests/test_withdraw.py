"""Taking a product back: whatever interrupts it, repeating it finishes it, and the feed hears of it once."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from small_archive import add_scene, classical_in, settings_in, silent
from typer.testing import CliRunner

from pancrafter import discovery, object_store, runs, steps, withdrawal
from pancrafter.changes import ChangeFeed
from pancrafter.cli import app
from pancrafter.errors import InvalidSceneError, LeaseLostError
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import SceneKey, State

COLLECTION = "geoeye-1-sharpened"


@pytest.fixture
def published(tmp_path: Path) -> Settings:
    """A run that has published one scene."""
    add_scene(tmp_path / "source", "S1", side_px=128)
    settings = classical_in(tmp_path)
    runs.run(settings, silent)
    return settings


def key_of(settings: Settings) -> SceneKey:
    return SceneKey(sink=settings.sink, collection="geoeye-1", item_id="S1")


def withdraw(settings: Settings, ledger: Ledger) -> tuple[str, ...]:
    return withdrawal.withdraw(key_of(settings), "licence", settings, ledger)


def events_of(settings: Settings) -> list[tuple[str, str | None]]:
    return [(change.type, change.reason) for change in ChangeFeed(StaticSink(settings.sink).store).events()]


def _power_cut(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (Ledger, "mark_refused"),
        (StaticSink, "withdraw"),
        (ChangeFeed, "announce"),
        (object_store._Folder, "delete"),
    ],
)
def test_an_interrupted_withdrawal_is_finished_by_repeating_it(
    published: Settings, monkeypatch: pytest.MonkeyPatch, where: type, what: str
) -> None:
    (item_id,) = StaticSink(published.sink).item_ids(COLLECTION)
    with open_ledger(published) as ledger:
        monkeypatch.setattr(where, what, _power_cut)
        with pytest.raises(KeyboardInterrupt):
            withdraw(published, ledger)
        monkeypatch.undo()
        assert withdraw(published, ledger) == (item_id,)
        assert withdraw(published, ledger) == (), "nothing is left to do"
        row = ledger.show(key_of(published))
    assert row is not None
    assert (row.state, row.code, row.reason) == (State.REFUSED, "withdrawn", "licence")
    assert events_of(published) == [("new", None), ("withdrawn", "licence")]
    assert not [path for path in (Path(published.sink) / COLLECTION / item_id).iterdir() if path.is_file()]
    assert StaticSink(published.sink).item_ids(COLLECTION) == ()
    assert runs.run(published, silent) == []


def test_a_product_that_comes_back_is_news_each_time(published: Settings) -> None:
    """Under its old id: readers drop events whose id they know."""
    with open_ledger(published) as ledger:
        for _ in range(2):
            withdraw(published, ledger)
            ledger.redrive([key_of(published)])
            assert [outcome.verdict for outcome in runs.run(published, silent)] == ["published"]
    assert [kind for kind, _ in events_of(published)] == ["new", "withdrawn", "new", "withdrawn", "new"]
    assert ChangeFeed(StaticSink(published.sink).store).repair(StaticSink(published.sink)) == ()


@pytest.mark.parametrize("ledger_is", ["lost", "older", "of the place before"])
def test_a_withdrawal_outlives_what_the_ledger_knows_of_it(published: Settings, tmp_path: Path, ledger_is: str) -> None:
    """The catalog's own feed tells; a person may still have the product made again, and readers hear of that."""
    state = Path(published.state_dir)
    if ledger_is == "older":
        shutil.copytree(state, tmp_path / "saved")
    with open_ledger(published) as ledger:
        withdraw(published, ledger)
    settings = published
    if ledger_is == "of the place before":
        settings = published.model_copy(update={"sink": str(tmp_path / "moved")})
        Path(published.sink).rename(settings.sink)
    else:
        shutil.rmtree(state)
    if ledger_is == "older":
        (tmp_path / "saved").rename(state)
    assert runs.run(settings, silent) == []
    with open_ledger(settings) as ledger:
        row = ledger.show(key_of(settings))
        assert row is not None
        assert (row.state, row.code, row.reason) == (State.REFUSED, "withdrawn", "licence")
        ledger.redrive([key_of(settings)])
        assert [outcome.verdict for outcome in runs.run(settings, silent)] == ["published"]
        assert discovery.discover(settings, ledger).eligible == ()
        assert ledger.counts(settings.sink)[State.CONFIRMED] == 1
    assert [kind for kind, _ in events_of(settings)] == ["new", "withdrawn", "new"]


def test_a_scene_that_was_refused_before_is_known_as_withdrawn_too(published: Settings) -> None:
    """A newer result was rejected, the older one was still to be seen and is taken back: it may return as news."""
    contract = Path(published.contracts_dir or "") / "geoeye-1.yaml"
    text = contract.read_text()
    contract.write_text(text.replace("title: ", "title: New ", 1))
    with open_ledger(published) as ledger:
        discovery.discover(published, ledger)
        ledger.mark_refused(key_of(published), "rejected", "blurry")
        assert len(withdraw(published, ledger)) == 1
        assert withdraw(published, ledger) == ()
        row = ledger.show(key_of(published))
        assert row is not None
        assert (row.code, row.reason) == ("withdrawn", "licence")
        ledger.redrive([key_of(published)])
    contract.write_text(text)
    assert [outcome.verdict for outcome in runs.run(published, silent)] == ["published"]
    assert [kind for kind, _ in events_of(published)] == ["new", "withdrawn", "new"]


@pytest.mark.parametrize("name", ["S1", "geoeye-1/S1"])
def test_a_product_that_the_ledger_does_not_know_is_withdrawn(published: Settings, tmp_path: Path, name: str) -> None:
    """The ledger was lost, and the source has it no more; should it come back, it stays withdrawn."""
    add_scene(tmp_path / "other", "S2", side_px=128)
    shutil.rmtree(published.state_dir)
    elsewhere = published.model_copy(update={"source": str(tmp_path / "other")})
    with open_ledger(published) as ledger:
        discovery.discover(elsewhere, ledger)
    options = ["--reason", "licence", "--sink", published.sink, "--state-dir", published.state_dir]
    done = CliRunner().invoke(app, ["withdraw", name, *options])
    assert done.exit_code == 0, done.output
    assert events_of(published) == [("new", None), ("withdrawn", "licence")]
    assert "and no product of one in" in CliRunner().invoke(app, ["withdraw", "S3", *options]).output
    with open_ledger(published) as ledger:
        assert discovery.discover(published, ledger).eligible == ()


def test_what_came_back_is_taken_over_by_a_ledger_that_knows_of_neither(published: Settings) -> None:
    with open_ledger(published) as ledger:
        withdraw(published, ledger)
        ledger.redrive([key_of(published)])
    runs.run(published, silent)
    shutil.rmtree(published.state_dir)
    assert runs.run(published, silent) == []
    with open_ledger(published) as ledger:
        assert ledger.counts(published.sink)[State.CONFIRMED] == 1
        assert len(withdraw(published, ledger)) == 1
    assert [kind for kind, _ in events_of(published)] == ["new", "withdrawn", "new", "withdrawn"]


def test_what_readers_see_is_withdrawn_while_a_newer_version_waits(published: Settings) -> None:
    (item_id,) = StaticSink(published.sink).item_ids(COLLECTION)
    contract = Path(published.contracts_dir or "") / "geoeye-1.yaml"
    contract.write_text(contract.read_text().replace("title: ", "title: New ", 1))
    with open_ledger(published) as ledger:
        assert discovery.discover(published, ledger).eligible == ("geoeye-1/S1",)
        assert withdraw(published, ledger) == (item_id,)
        assert discovery.discover(published, ledger).eligible == ()
    assert StaticSink(published.sink).item_ids(COLLECTION) == ()
    assert events_of(published)[-1] == ("withdrawn", "licence")


def test_what_was_withdrawn_stays_withdrawn_by_another_path_to_the_same_places(
    published: Settings, tmp_path: Path
) -> None:
    with open_ledger(published) as ledger:
        withdraw(published, ledger)
    (tmp_path / "link").symlink_to(tmp_path)
    for way in (tmp_path / "link", tmp_path / "sink" / ".."):
        other = settings_in(way, source=published.source, contracts_dir=published.contracts_dir)
        assert (other.sink, other.state_dir) == (published.sink, published.state_dir)
        assert runs.run(other, silent) == []


def test_what_people_decided_counts_where_a_link_leads_to_another_disk(published: Settings, tmp_path: Path) -> None:
    """The name that everybody uses stays, and the catalog is moved behind it."""
    add_scene(Path(published.source), "S2", side_px=128, seed=2)
    (tmp_path / "products").symlink_to(tmp_path / "sink")
    settings = settings_in(tmp_path, sink=str(tmp_path / "products"), contracts_dir=published.contracts_dir)
    with open_ledger(settings) as ledger:
        assert discovery.discover(settings, ledger).eligible == ("geoeye-1/S2",)
        ledger.mark_refused(SceneKey(sink=settings.sink, collection="geoeye-1", item_id="S2"), "by-hand", "blurry")
    (tmp_path / "sink").rename(tmp_path / "disk2")
    (tmp_path / "products").unlink()
    (tmp_path / "products").symlink_to(tmp_path / "disk2")
    moved = settings_in(tmp_path, sink=str(tmp_path / "products"), contracts_dir=published.contracts_dir)
    assert moved.sink != settings.sink
    with open_ledger(moved) as ledger:
        assert discovery.discover(moved, ledger).eligible == ()
        assert [(row.state, row.code) for row in ledger.rows(sink=moved.sink)] == [
            ("confirmed", None),
            ("refused", "by-hand"),
        ]


@pytest.mark.parametrize("withdrawn", [True, False])
def test_a_ledger_that_knows_the_sink_by_another_path_is_gone_on_with(
    published: Settings, tmp_path: Path, *, withdrawn: bool
) -> None:
    """Of a version that took paths as they were given: nothing is made again, least of all what was withdrawn."""
    with open_ledger(published) as ledger:
        if withdrawn:
            withdraw(published, ledger)
    (tmp_path / "link").symlink_to(tmp_path)
    with sqlite3.connect(tmp_path / "state" / "ledger.db") as connection:
        connection.execute("UPDATE scene SET sink = ?", (str(tmp_path / "link" / "sink"),))
        connection.execute("DELETE FROM catalog")
    connection.close()
    assert runs.run(published, silent) == []
    with open_ledger(published) as ledger:
        assert [row.key.sink for row in ledger.rows()] == [published.sink]


def test_a_ledger_that_knows_the_sink_by_two_paths_goes_on_with_both(published: Settings, tmp_path: Path) -> None:
    """As an earlier version left it that was given one and then the other."""
    add_scene(Path(published.source), "S2", side_px=128, seed=2)
    (tmp_path / "link").symlink_to(tmp_path)
    with open_ledger(published) as ledger:
        discovery.discover(published, ledger)
        ledger.mark_refused(SceneKey(sink=published.sink, collection="geoeye-1", item_id="S2"), "by-hand", "blurry")
    with sqlite3.connect(tmp_path / "state" / "ledger.db") as connection:
        connection.execute("UPDATE scene SET sink = ? WHERE item_id = 'S2'", (str(tmp_path / "link" / "sink"),))
        connection.execute("DELETE FROM catalog")
    connection.close()
    assert runs.run(published, silent) == []


def test_a_scene_in_work_is_not_withdrawn(published: Settings) -> None:
    with open_ledger(published) as ledger:
        key = key_of(published)
        ledger.redrive([key])
        with (
            steps.claimed(ledger, "geoeye-1/S1", published, silent),
            pytest.raises(LeaseLostError, match="is working on it"),
        ):
            withdraw(published, ledger)
    assert len(StaticSink(published.sink).item_ids(COLLECTION)) == 1


def test_a_scene_that_was_never_published_has_nothing_to_withdraw(published: Settings) -> None:
    add_scene(Path(published.source), "S2", side_px=128, seed=2)
    with open_ledger(published) as ledger:
        discovery.discover(published, ledger)
        with pytest.raises(InvalidSceneError, match="has no published item"):
            withdrawal.withdraw(key_of(published).model_copy(update={"item_id": "S2"}), "licence", published, ledger)
