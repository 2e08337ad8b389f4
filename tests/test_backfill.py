"""``pancrafter backfill``: a part of the archive, window after window, within a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import call
from small_archive import add_scene, classical_contracts
from typer.testing import Result

from pancrafter.cli.shared import Search
from pancrafter.selection import Selection

DAYS = (1, 2, 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of three days, and a contract that sharpens them without the network."""
    folder = tmp_path_factory.mktemp("backfill")
    for day in DAYS:
        add_scene(folder / "source", f"day-{day}", side_px=128, seed=day, day=day)
    classical_contracts(folder / "contracts")
    return folder


def backfill(root: Path, state: Path, *options: object) -> Result:
    words = ["backfill", "--source", root / "source", "--sink", state / "sink", "--state-dir", state / "state"]
    words += ["--contracts-dir", root / "contracts", *options]
    return call(*words)


def planned(root: Path, state: Path, *options: object) -> dict[str, Any]:
    result = backfill(root, state, "--plan", "--json", "-", *options)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def worked(root: Path, state: Path, *options: object) -> list[str]:
    result = backfill(root, state, "--workers", 0, "--block-px", 128, "--json", "-", *options)
    assert result.exit_code == 0, result.output
    return [outcome["key"] for outcome in json.loads(result.stdout)["outcomes"]]


def test_empty_windows_are_passed_over_without_a_word(root: Path, tmp_path: Path) -> None:
    result = backfill(root, tmp_path, "--from", "2024-04-01", "--to", "2024-05-01", "--window-days", 1)
    assert "0 items found in" in result.stderr
    assert "nothing found" not in result.stderr


def test_windows_newest_first_within_the_limit_and_going_on(root: Path, tmp_path: Path) -> None:
    period = ("--from", "2025-05-01", "--to", "2025-05-04", "--window-days", 1)
    assert worked(root, tmp_path, *period, "--limit", 2) == ["geoeye-1/day-3", "geoeye-1/day-2"]
    assert worked(root, tmp_path, *period) == ["geoeye-1/day-1"]
    again = backfill(root, tmp_path, *period)
    assert again.exit_code == 0
    assert "nothing to do" in again.stdout
    assert planned(root, tmp_path, *period)["scenes"] == 0


def test_report_page_is_about_all_windows(root: Path, tmp_path: Path) -> None:
    worked(root, tmp_path, "--from", "2025-05-01", "--to", "2025-05-04", "--window-days", 1)
    page = (tmp_path / "sink" / "report.html").read_text()
    assert "<b>3</b>published" in page
    assert all(f"day-{day}_psh-" in page for day in DAYS)


def test_plan_shows_and_touches_nothing(root: Path, tmp_path: Path) -> None:
    result = backfill(root, tmp_path, "--plan")
    assert result.exit_code == 0
    assert "to sharpen: 3 scenes (3 geoeye-1)" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_above_the_budget_starts_nothing(root: Path, tmp_path: Path) -> None:
    for limits, problem in (
        (("--max-scenes", 2), "3 scenes, allowed 2"),
        (("--max-read-gb", 0.000001), "GB to read, allowed 1e-06 GB"),
        (("--max-hours", 5), "an unknown amount of hours, allowed 5"),
        (("--max-money", 5), "an unknown amount of money, allowed 5"),
    ):
        for mode in ((), ("--plan",)):
            result = backfill(root, tmp_path, *limits, *mode)
            assert result.exit_code == 2
            assert "above the budget: " in result.stderr
            assert problem in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ids_area_and_period_choose(root: Path, tmp_path: Path) -> None:
    ids, area = tmp_path / "ids.txt", tmp_path / "area.json"
    ids.write_text("geoeye-1/day-3\nday-1\n")
    area.write_text(json.dumps({"type": "Polygon", "coordinates": [[[90, 0], [91, 0], [91, 1], [90, 1], [90, 0]]]}))
    assert planned(root, tmp_path, "--ids", ids)["scenes"] == 2
    assert planned(root, tmp_path, "--ids", ids, "--to", "2025-05-02")["scenes"] == 1
    assert planned(root, tmp_path, "--aoi", area)["scenes"] == 0
    assert planned(root, tmp_path, "--collection", "geoeye-1")["scenes"] == 3
    assert planned(root, tmp_path, "--bbox", "8.9,44.2,9.1,44.3")["scenes"] == 3


def test_times_without_zone_are_utc(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(root, tmp_path, "--from", "2025-05-01", "--to", "2025-05-02T12:00Z")["scenes"] == 2
    assert planned(root, tmp_path, "--from", "2025-05-02T00:00Z", "--to", "2025-05-02")["scenes"] == 1
    monkeypatch.setenv("PANCRAFTER_SINCE", "2025-05-02T00:00:00")
    assert planned(root, tmp_path, "--to", "2025-05-03T12:00Z")["scenes"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "2025-06-01", "--to", "2025-05-01"), "the period begins"),
        (("--ids", "nowhere.txt"), "give a text file with one item id per line"),
        (("--aoi", "nowhere.json"), "give a GeoJSON file"),
        (("--made-with", "older"), "nothing in"),
        (("--json", "/nowhere/report.json"), "--json /nowhere/report.json: cannot be written"),
        (("--source", "https://user:planted@host/stac"), "--source: found a secret; value error, holds a password"),
    ],
)
def test_selections_of_no_use(root: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = backfill(root, tmp_path, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "planted" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_deployment_has_the_same_fields() -> None:
    """What the form of the Prefect deployment asks for, the command line has too."""
    options = {{"ids": "ids_file"}.get(name, name) for name in Search.__dataclass_fields__}
    assert set(Selection.model_fields) <= options
