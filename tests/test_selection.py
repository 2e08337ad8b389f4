"""Which part of an archive a backfill is about."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
from command import call
from pydantic import ValidationError
from small_archive import add_scene, settings_in

from pancrafter import discovery, runs
from pancrafter.ledger import open_ledger
from pancrafter.plan import Budget, OverBudgetError, check_budget, make_plan, plan_text, verdict_on
from pancrafter.selection import Area, Selection, SelectionError, made_by, read_ids, windows, windows_of
from pancrafter.sensors import contracts_of
from pancrafter.settings import Settings
from pancrafter.states import State
from pancrafter.types import Scene


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three scenes of three days, the first one sharpened."""
    root = tmp_path_factory.mktemp("selection")
    for day in (1, 2, 3):
        add_scene(root / "source", f"day-{day}", side_px=128, seed=day, day=day)
    settings = settings_in(root)
    runs.run(settings.model_copy(update={"ids": ("day-1",)}), lambda _: None)
    return settings


def _keys(settings: Settings) -> list[str]:
    return sorted(entry.item_id for entry in discovery.look(settings, contracts_of(settings)))


def _area(path: Path, west: float, south: float) -> str:
    ring = [(west, south), (west + 1, south), (west + 1, south + 1), (west, south + 1), (west, south)]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    features = [{"type": "Feature", "geometry": found} for found in (geometry, None)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def test_ids_and_area_limit_what_is_looked_at(archive: Settings, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("# wanted\ngeoeye-1/day-3\n\nday-1\nday-1\n", encoding="utf-8-sig")  # as some editors save it
    assert read_ids(str(ids)) == ("geoeye-1/day-3", "day-3", "day-1")
    assert _keys(archive.model_copy(update={"ids": read_ids(str(ids))})) == ["day-1", "day-3"]
    here, elsewhere = _area(tmp_path / "here.json", 8.5, 43.5), _area(tmp_path / "there.json", 100, 10)
    assert _keys(archive.model_copy(update={"aoi": here})) == ["day-1", "day-2", "day-3"]
    assert _keys(archive.model_copy(update={"aoi": elsewhere})) == []
    assert _keys(archive.model_copy(update={"aoi": here, "bbox": (100.0, 10.0, 101.0, 11.0)})) == []
    assert _keys(archive.model_copy(update={"collections": ("others",)})) == []
    assert Area.from_file(elsewhere).meets({"type": "Polygon"}), "what cannot be placed is not dropped unseen"
    both = Selection(ids_file=str(ids), made_with=archive.weights).applied_to(archive)
    assert both.ids == ("day-1",), "everything given must hold"


def test_ids_with_slashes_are_found_with_and_without_their_collection(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("maxar/30/123/S1\n30/123/S2\n")
    assert {"30/123/S1", "30/123/S2"} <= set(read_ids(str(tmp_path / "ids.txt")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no GeoJSON"),
        ('{"type": "Point"}', "no GeoJSON"),
        ("[]", "no GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "has no geometry"),
    ],
)
def test_area_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "area.json").write_text(text)
    with pytest.raises(SelectionError, match=message):
        Area.from_file(str(tmp_path / "area.json"))
    with pytest.raises(SelectionError, match="GeoJSON file"):
        Area.from_file(str(tmp_path / "nothing.json"))


def test_what_was_made_with_certain_weights(archive: Settings) -> None:
    assert made_by(archive.sink, archive.weights) == ("day-1",)
    assert made_by(archive.sink, f"./elsewhere/{archive.weights}.safetensors") == ("day-1",), "folders do not matter"
    with pytest.raises(SelectionError, match=r"nothing in .* was made with them"):
        made_by(archive.sink, "older-weights")


def test_windows_cover_the_period_newest_first() -> None:
    since, until = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 3, 5, 12, tzinfo=UTC)
    pieces = list(windows(since, until, 30))
    assert (pieces[0][1], pieces[-1][0]) == (until, since)
    assert all(later[0] == earlier[1] for later, earlier in pairwise(pieces))
    assert all(timedelta() < end - start <= timedelta(days=30) for start, end in pieces)
    assert list(windows(since, until, 10_000_000)) == [(since, until)], "days before the calendar begins"


@pytest.mark.parametrize("model", [Settings, Selection])
def test_a_period_ends_with_its_last_day_and_not_before_it_begins(model: type[Settings | Selection]) -> None:
    day = model.model_validate({"since": "2025-05-31", "until": "2025-05-31"})
    assert (day.since, day.until) == (
        datetime(2025, 5, 31, tzinfo=UTC),
        datetime(2025, 5, 31, 23, 59, 59, 999_999, UTC),
    )
    assert model.model_validate({"until": date(2025, 5, 31)}).until == day.until
    assert model.model_validate({"since": day.until, "until": day.until}).since == day.until
    for exact in ("2025-05-31T00:00:00Z", datetime(2025, 5, 31, tzinfo=UTC), "1748649600"):
        assert model.model_validate({"until": exact}).until == datetime(2025, 5, 31, tzinfo=UTC)
    with pytest.raises(ValidationError, match=r"\(2025-06-01 .* after it ends \(2025-05-31 .*; exchange the two"):
        model.model_validate({"since": "2025-06-01", "until": "2025-05-31"})


def test_a_selection_and_settings_that_leave_no_period_are_refused() -> None:
    settings = Settings.model_validate({"since": "2025-05-01"})
    with pytest.raises(SelectionError, match=r"begins \(2025-05-01 .* ends \(2025-04-30 .*give both"):
        Selection.model_validate({"until": "2025-04-30"}).applied_to(settings)


def test_an_open_period_ends_now_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Anchorage")
    time.tzset()
    try:
        settings = Settings.model_validate({"since": (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%d")})
        (_, end), *_ = windows_of(settings, 30)
        assert end is not None
        assert abs(end - datetime.now(UTC)) < timedelta(minutes=1)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_plan_counts_bytes_as_staging_does_and_knows_measured_rates(archive: Settings) -> None:
    places = {"sink": archive.sink + "-none", "state_dir": archive.state_dir + "-none"}
    first = make_plan(archive.model_copy(update={"ids": ("day-1",)} | places))
    with open_ledger(archive) as ledger:
        (row,) = [row for row in ledger.rows() if row.key.item_id == "day-1"]
        (rate,) = ledger.rates()
    assert first.pixel_bytes == pytest.approx(row.measures["bytes_read"], rel=0.05)
    assert first.seconds is None
    ahead = make_plan(archive)
    assert (ahead.scenes, ahead.measured_scenes) == (2, 1)
    assert ahead.seconds == pytest.approx(2 * rate.seconds)  # scenes of the same size and sensor
    assert ahead.pixel_bytes == pytest.approx(2 * rate.bytes_read)
    priced = make_plan(archive.model_copy(update={"price_per_hour": 3600.0}))
    assert priced.money == pytest.approx(priced.seconds)


@pytest.mark.parametrize("limit", [None, 3])
def test_plan_does_not_hold_all_scenes(archive: Settings, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    monkeypatch.setattr("pancrafter.ledger.BATCH", 5)
    found = next(iter(discovery.look(archive, contracts_of(archive))))
    assert isinstance(found, Scene)
    living: WeakValueDictionary[int, Scene] = WeakValueDictionary()
    held = []

    def many(*_: object) -> Iterator[Scene]:
        for number in range(50):
            scene = found.model_copy(update={"item_id": f"S{number}"})
            living[number] = scene
            held.append(len(living))
            yield scene

    monkeypatch.setattr("pancrafter.plan.look", many)
    plan = make_plan(archive.model_copy(update={"limit": limit}))
    assert (plan.found, plan.scenes) == (50, limit or 50)
    assert max(held) < 20


PAST, FUTURE = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
OTHER = {"state": State.ELIGIBLE, "fingerprint": "another"}
BACK = OTHER | {"supersedes": "what the work makes"}


@pytest.mark.parametrize(
    ("row", "published", "verdict"),
    [
        (None, False, "new"),
        (None, True, "done"),  # by a ledger that was lost
        ({}, True, "done"),
        ({}, False, "lost"),
        ({"state": State.ELIGIBLE}, False, "waiting"),
        ({"state": State.ELIGIBLE, "not_before": PAST}, False, "waiting"),
        ({"state": State.ELIGIBLE, "not_before": FUTURE}, False, "paused"),
        ({"state": State.STAGED}, False, "in work"),
        ({"state": State.STAGED, "fingerprint": "another"}, False, "in work"),
        ({"state": State.HELD}, False, "held"),
        ({"state": State.REFUSED, "recipe": "another"}, False, "refused"),
        ({"state": State.DEAD, "recipe": "another"}, False, "changed"),
        (OTHER, True, "changed"),
        (BACK, False, "changed"),
        (BACK, True, "done"),
        (BACK | {"measures": {"seconds": 1}}, True, "changed"),  # what takes its place was begun
    ],
)
def test_verdicts_of_a_plan(archive: Settings, row: dict[str, Any] | None, *, published: bool, verdict: str) -> None:
    contracts = contracts_of(archive)
    (scene,) = (entry for entry in discovery.look(archive, contracts) if entry.item_id == "day-1")
    assert isinstance(scene, Scene)
    work = discovery.work_of(scene, archive, contracts)
    with open_ledger(archive) as ledger:
        (confirmed,) = (known for known in ledger.rows() if known.key.item_id == "day-1")
        now = ledger.now()
    changes = (
        {"measures": {}} | (row or {}) | ({"supersedes": work.output_item_id} if row and "supersedes" in row else {})
    )
    known = None if row is None else confirmed.model_copy(update=changes)
    assert verdict_on(known, work, now=now, published=published) == verdict


@pytest.mark.parametrize(
    ("known", "said"), [(2, None), (1, ", known for 1 of 2 scenes"), (0, "unknown (remote files)")]
)
def test_plan_says_of_each_figure_how_much_of_it_is_known(archive: Settings, known: int, said: str | None) -> None:
    plan = make_plan(archive).model_copy(update={"mpx_known": known, "read_bytes_known": known})
    figures = [
        line for line in plan_text(plan).splitlines() if line.startswith(("PAN size:", "to read:", "disk:", "work:"))
    ]
    assert len(figures) == 4
    assert all(line.endswith(said) if said else "known" not in line for line in figures), figures


def test_plan_counts_what_the_reader_is_charged_for(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "S1", side_px=128)
    (path,) = (tmp_path / "source").rglob("S1.json")
    item = json.loads(path.read_text())
    item["assets"]["pan"]["storage:requester_pays"] = True
    path.write_text(json.dumps(item))
    plan = make_plan(settings_in(tmp_path))
    assert (plan.requester_pays, plan.requester_pays_bytes) == (1, plan.read_bytes)
    assert plan.read_bytes > 0
    places = (f"--{name}={tmp_path / name}" for name in ("source", "sink", "state-dir"))
    command = ["backfill", "--plan", *places]
    assert "1 scene at the reader's cost, allowed none" in call(*command).stderr
    assert call(*command, "--requester-pays").exit_code == 0


def test_plan_above_its_budget_is_refused(archive: Settings) -> None:
    plan = make_plan(archive)
    check_budget(plan, Budget(scenes=2, read_gb=plan.read_bytes / 1e9, hours=10))
    check_budget(plan.model_copy(update={"scenes": 0, "seconds": None}), Budget(hours=1, money=1))
    with pytest.raises(OverBudgetError, match="GB to read and 1 scene of unknown size, allowed 1 GB"):
        check_budget(plan.model_copy(update={"read_bytes_known": 1}), Budget(read_gb=1))
    with pytest.raises(OverBudgetError, match=r"2 scenes, allowed 1; .*GB to read, allowed 0 GB"):
        check_budget(plan, Budget(scenes=1, read_gb=0))
    with pytest.raises(OverBudgetError, match=r"allowed 5 \(no price is set: PANCRAFTER_PRICE_PER_HOUR"):
        check_budget(plan, Budget(money=5))
    with pytest.raises(OverBudgetError, match=r"allowed 1 \(nothing was measured .* make a few scenes first"):
        check_budget(plan.model_copy(update={"seconds": None}), Budget(hours=1))
    with pytest.raises(OverBudgetError, match=r"allowed 1 \(the size of 2 scenes is not known"):
        check_budget(plan.model_copy(update={"mpx_known": 0}), Budget(hours=1))
    charged = plan.model_copy(update={"requester_pays": 2})
    with pytest.raises(OverBudgetError, match="2 scenes at the reader's cost"):
        check_budget(charged, Budget())
    check_budget(charged, Budget(requester_pays=True))
