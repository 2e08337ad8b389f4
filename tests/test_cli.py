"""The command as a user types it: what it prints, writes and returns, on good and on bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dask
import distributed  # noqa: F401 - its defaults come before what tests set
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from command import call, fails, parsed
from networks import random_network
from rasterio.vrt import WarpedVRT
from rio_cogeo import cog_validate
from small_archive import GSD_M, ORIGIN, RATIO, add_scene, classical_contracts, write_raster
from typer.main import get_command
from typer.testing import Result

from pancrafter import cli
from pancrafter.cli.archive import _free_port
from pancrafter.ledger import Ledger
from pancrafter.model.weights import save_checkpoint
from pancrafter.options import parse_moment
from pancrafter.sensors import get_contract, parse_contract
from pancrafter.settings import Settings
from pancrafter.simulate import archive as simulated
from pancrafter.types import Refusal
from pancrafter.version import code_commit, code_version

ONE_TILE = ("--block-px", 192, "--threads", 1)
PROJECT = Path(__file__).resolve().parents[1]
SIZE = ("size", "--scenes", 10, "--rates", PROJECT / "infra" / "sizing-rates.json")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained network: it never passes the quality rule, so runs publish the classical result."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(path, random_network(attention="none"), {})
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good scene and one whose MS file is cut off."""
    folder = tmp_path_factory.mktemp("archive")
    add_scene(folder, "good", side_px=192, seed=1, day=2)
    damaged = add_scene(folder, "damaged", side_px=128, seed=2, day=3)
    damaged.ms.write_bytes(damaged.ms.read_bytes()[: damaged.ms.stat().st_size // 3])
    return folder


@pytest.fixture(scope="module")
def places(archive: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that name source, sink, state and weights."""
    root = tmp_path_factory.mktemp("run")
    where = ["--source", archive, "--sink", root / "sink", "--state-dir", root / "state"]
    return [*where, "--weights", weights]


@pytest.fixture(scope="module")
def first_run(places: list[object]) -> tuple[Result, dict]:
    report = Path(str(places[3])).parent / "report.json"
    planned = parsed("plan", *places, "--json")
    result = call("run", *places, "--workers", 0, "--block-px", 128, "--json", report)
    return result, {"report": json.loads(report.read_text()), "plan": planned}


def pair_files(scene_folder: Path) -> tuple[Path, Path]:
    return scene_folder / "pan.tif", scene_folder / "ms.tif"


@pytest.fixture
def pair(archive: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the good scene's files that a test may spoil."""
    copies = tmp_path / "GE01_pan.tif", tmp_path / "GE01_ms.tif"
    for source, target in zip(pair_files(archive / "files" / "good"), copies, strict=True):
        shutil.copyfile(source, target)
    return copies


def rewritten(path: Path, **changes: object) -> Path:
    """The same pixels with another header."""
    with rasterio.open(path) as source:
        values, profile = source.read(), source.profile
    path.unlink()
    with rasterio.open(path, "w", **{name: v for name, v in (profile | changes).items() if v is not None}) as target:
        target.write(values)
    return path


# --- run, plan, ledger ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_is_that_of_the_package(asked: str) -> None:
    result = call(asked)
    assert result.exit_code == 0
    version, commit = code_version(), code_commit()
    assert re.match(r"\d+\.\d+\.\d+", version)
    assert result.stdout == (f"pancrafter {version}, commit {commit}\n" if commit else f"pancrafter {version}\n")


def test_run_shows_table_catalog_and_picture_and_fails_for_the_damaged_scene(first_run: tuple, places: list) -> None:
    result, _ = first_run
    sink = Path(places[3])
    assert result.exit_code == 1
    row = next(line for line in result.stdout.splitlines() if line.startswith("good")).split()
    assert row[:4] == ["good", "geoeye-1", "fallback", "0.04"]
    assert "the file is truncated or damaged; fetch it again" in " ".join(result.stdout.split())
    assert f"output catalog: {sink}/catalog.json" in result.stdout
    assert "failed: see `pancrafter ledger list --state dead`; after a fix, `pancrafter" in result.stdout
    picture = re.search(r"before/after: +(\S+)", result.stdout)
    assert picture
    assert Path(picture[1]).read_bytes().startswith(b"\x89PNG")
    assert "geoeye-1/good: staging" in result.stderr


def test_run_report_is_json_and_agrees_with_the_ledger(first_run: tuple) -> None:
    report = first_run[1]["report"]
    assert report["exit_code"] == 1
    assert report["ledger"] == {"confirmed": 1, "dead": 1}
    verdicts = {outcome["key"]: outcome["verdict"] for outcome in report["outcomes"]}
    assert verdicts == {"geoeye-1/good": "fallback", "geoeye-1/damaged": "failed"}
    assert Path(report["catalog"]).is_file()


def test_plan_foretells_the_run_and_touches_nothing(first_run: tuple, archive: Path, tmp_path: Path) -> None:
    plan = first_run[1]["plan"]
    assert (plan["found"], plan["scenes"], plan["sensors"]) == (2, 2, {"geoeye-1": 2})
    assert (plan["mpx"], plan["mpx_known"]) == (pytest.approx((192**2 + 128**2) / 1e6), 2)
    files = [path for name in ("good", "damaged") for path in pair_files(archive / "files" / name)]
    assert (plan["read_bytes"], plan["read_bytes_known"]) == (sum(path.stat().st_size for path in files), 2)
    untouched = ["--sink", tmp_path / "sink", "--state-dir", tmp_path / "state"]
    assert "to sharpen: 2 scenes (2 geoeye-1)" in call("plan", "--source", archive, *untouched).stdout
    assert list(tmp_path.iterdir()) == []


def test_second_run_has_nothing_to_do_and_says_so(first_run: tuple, places: list) -> None:
    result = call("run", *places, "--workers", 0, "--block-px", 128)
    assert result.exit_code == 0
    assert "nothing to do: 2 scenes known: 1 confirmed, 1 dead" in result.stdout
    assert "pancrafter ledger list --state dead" in result.stdout
    assert f"output catalog: {places[3]}/catalog.json" in result.stdout


def test_a_run_that_finds_nothing_says_what_it_looked_for(first_run: tuple, places: list) -> None:
    result = call("run", *places, "--workers", 0, "--collection", "nosuch", "--from", "2025-05-01")
    assert result.exit_code == 0
    said = f"nothing found: 0 items in {places[1]} match (collection nosuch; from 2025-05-01 00:00:00+00:00)"
    assert said in result.stderr
    assert "nothing found" not in call("run", *places, "--workers", 0).stderr
    assert (
        f"0 items found in {places[1]} (collection nosuch)\n" in call("plan", *places, "--collection", "nosuch").stdout
    )


def test_plan_after_the_run_knows_what_is_done(first_run: tuple, places: list) -> None:
    text = call("plan", *places).stdout
    assert re.search(r"^done +1 ", text, re.MULTILINE)
    assert re.search(r"^dead +1 ", text, re.MULTILINE)
    assert text.rstrip().endswith("nothing to do")


def test_other_weights_or_another_precision_would_supersede(first_run: tuple, places: list, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.safetensors", random_network(seed=5, attention="none"), {})
    for choice in ([*places[:-1], tmp_path / "other.safetensors"], [*places, "--precision", "bfloat16"]):
        plan = parsed("plan", *choice, "--json")
        assert {line["verdict"]: line["scenes"] for line in plan["lines"]} == {"changed": 2}


def test_lost_output_would_be_made_again(first_run: tuple, places: list, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(Path(places[3]).parent, root)
    with Ledger(f"sqlite:///{root}/state/ledger.db") as ledger:
        assert len(ledger.rows(sink=str(places[3]))) == 2
    moved = Path(places[3]).with_name("moved")
    Path(places[3]).rename(moved)
    try:
        plan = parsed("plan", *places[:4], "--state-dir", root / "state", *places[6:], "--json")
    finally:
        moved.rename(places[3])
    assert {line["verdict"]: line["scenes"] for line in plan["lines"]} == {"lost": 1, "dead": 1}
    assert plan["scenes"] == 1


def test_dates_choose_scenes(archive: Path, tmp_path: Path) -> None:
    where = ["--source", archive, "--state-dir", tmp_path, "--sink", tmp_path / "sink", "--json"]
    assert parsed("plan", *where, "--from", "2025-05-03")["found"] == 1
    assert parsed("plan", *where, "--to", "2025-05-02")["found"] == 1
    assert parsed("plan", *where, "--to", "2025-05-01")["found"] == 0
    assert parsed("plan", *where, "--bbox", "-10,-10,-9,-9")["found"] == 0
    assert parsed("plan", *where, "--limit", "1")["scenes"] == 1


def test_a_date_as_upper_bound_means_its_whole_day() -> None:
    assert parse_moment("--to", "2025-05-02", end_of_day=True) == datetime(2025, 5, 2, 23, 59, 59, 999_999, UTC)
    exact = "2025-05-02T00:00Z"
    assert parse_moment("--to", exact, end_of_day=True) == datetime.fromisoformat(exact)


def test_ledger_list_show_and_why(first_run: tuple, places: list) -> None:
    state = places[4:6]
    listed = parsed("ledger", "list", *state, "--json")
    assert {row["item_id"]: row["state"] for row in listed} == {"good": "confirmed", "damaged": "dead"}
    assert [row["item_id"] for row in parsed("ledger", "list", *state, "--state", "dead", "--json")] == ["damaged"]
    assert "2 listed; 2 scenes known: 1 confirmed, 1 dead" in call("ledger", "list", *state).stdout
    row = parsed("ledger", "show", "geoeye-1/good", *state, "--json")
    assert row["measures"]["quality"]["hqnr"] > 0
    assert "measures.quality.hqnr" in call("ledger", "show", "good", *state).stdout
    events = parsed("ledger", "why", "damaged", *state, "--json")
    assert [event["after"] for event in events] == ["eligible", "claimed", "failed", "dead"]
    told = call("ledger", "why", "damaged", *state).stdout
    assert told.startswith("geoeye-1/damaged is dead: ")
    assert "attempt 1, fence 1" in told


def test_ledger_redrive_gives_another_try(first_run: tuple, places: list, tmp_path: Path) -> None:
    shutil.copytree(places[5], tmp_path / "state")
    state = ["--state-dir", tmp_path / "state"]
    assert "0 redriven" in call("ledger", "redrive", "--code", "NoSuchError", *state).stdout
    result = call("ledger", "redrive", "--contains", "TRUNCATED", *state)
    assert result.exit_code == 0
    assert "eligible again: geoeye-1/damaged" in result.stdout
    again = call("ledger", "redrive", "damaged", *state)
    assert again.exit_code == 1
    assert "left as it is: geoeye-1/damaged: is eligible already" in again.stderr
    assert parsed("ledger", "show", "damaged", *state, "--json")["state"] == "eligible"


def test_some_of_very_many_redriven_scenes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancrafter.cli.ledger.MOST_NAMED", 1)
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        ledger.record_found("sink", [Refusal(collection="c", item_id=n, code="no_pan", reason="") for n in "abc"])
    result = call("ledger", "redrive", "--state", "refused", "--state-dir", tmp_path)
    assert result.stderr.startswith("left as it is: c/a: refused from its metadata")
    assert result.stderr.count("\n") == 1
    assert result.stdout == "and 2 more: see `pancrafter ledger list`\n0 redriven, 3 left\n"


def test_ledger_mistakes(first_run: tuple, places: list, tmp_path: Path) -> None:
    state = places[4:6]
    assert "no scene 'nobody' in ledger" in fails(1, "ledger", "why", "nobody", *state)
    assert "`pancrafter withdraw geoeye-1/good --reason TEXT`" in fails(1, "ledger", "refuse", "good", "bad", *state)
    assert "found 'ded', expected one of found, refused, eligible" in fails(
        2, "ledger", "list", "--state", "ded", *state
    )
    assert "not both" in fails(2, "ledger", "redrive", "good", "--state", "dead", *state)
    assert "no ledger at" in fails(2, "ledger", "list", "--state-dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_sink_is_known_by_any_of_its_names(
    first_run: tuple, places: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = shutil.copytree(places[5], tmp_path / "state")
    monkeypatch.chdir(places[3].parent)
    for sink in ("sink", "./sink/", f"{places[3]}/"):
        where = ["--sink", sink, "--state-dir", state]
        assert len(parsed("ledger", "list", *where, "--json")) == 2
        assert parsed("ledger", "show", "damaged", *where, "--json")["state"] == "dead"
    assert "1 redriven, 0 left" in call("redrive", *where, "--contains", "truncated").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "--sink", "{sink}", "--state-dir", "typo"], "no ledger at "),
        (["size", "--scenes", 1, "--mpx", 1, "--sink", "{sink}", "--state-dir", "typo"], "no ledger at "),
        (["models", "remake", "open-compact", "--with", "open-compact", "--state-dir", "typo"], "no ledger at "),
        (["report", "typo", "--state-dir", "{state}"], "no catalog at "),
        (["models", "list", "--sink", "typo"], "no catalog at "),
        (["models", "products", "open-compact", "--sink", "typo"], "no catalog at "),
        (["backup", "kept", "--sink", "typo", "--state-dir", "{state}"], "no such catalog"),
        (["models", "products", "typo", "--sink", "{sink}"], "no model 'typo' in "),
        (
            ["models", "remake", "typo", "--with", "x", "--plan", "--sink", "{sink}", "--state-dir", "{state}"],
            "no model 'typo' in ",
        ),
    ],
)
def test_a_mistyped_place_is_no_empty_one(
    first_run: tuple, places: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(2, *(str(word).format(sink=places[3], state=places[5]) for word in words))
    assert list(tmp_path.iterdir()) == []


def test_shipped_weights_are_listed_without_a_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "open-compact" in call("models", "list").stdout


def test_a_shipped_model_that_made_nothing_is_no_mistake(first_run: tuple, places: list) -> None:
    assert parsed("models", "products", "open-compact", "--sink", places[3], "--json") == []


def test_scene_in_two_sinks_must_be_named_in_full(first_run: tuple, places: list, tmp_path: Path) -> None:
    shutil.copytree(places[5], tmp_path / "state")
    other = ["--sink", tmp_path / "other", "--state-dir", tmp_path / "state", "--workers", 0, "--block-px", 128]
    assert call("run", *places[:2], *other, *places[6:], "--from", "2025-05-03").exit_code == 1
    state = ["--state-dir", tmp_path / "state"]
    assert "means 2 scenes" in fails(1, "ledger", "show", "damaged", *state)
    row = parsed("ledger", "show", "damaged", "--sink", tmp_path / "other", *state, "--json")
    assert row["sink"] == str(tmp_path / "other")


def test_weights_of_no_use_stop_a_run_before_a_scene_is_read(archive: Path, weights: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(weights.read_bytes()[:-1])
    options = ["--sink", tmp_path / "sink", "--state-dir", tmp_path / "state", "--workers", 0, "--weights", torn]
    result = call("run", "--source", archive, *options)
    assert result.exit_code == 2
    assert "torn.safetensors is not a readable safetensors file" in result.stderr
    assert "stopped: 2 scenes known: 2 eligible" in result.stdout
    assert not (tmp_path / "state" / "staged").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--source", "/nowhere/archive", "source /nowhere/archive does not exist; expected a STAC API URL"),
        ("--weights", "no-such-weights", "weights 'no-such-weights' not found"),
        ("--source", "/no\nwhere", "source /no where does not exist"),
        ("--sink", "/proc/sink", "/proc/sink"),
        ("--sink", "", "--sink: found '', expected a folder or an address"),
        ("--source", "", "--source: found ''"),
        ("--state-dir", "", "--state-dir: found ''"),
        ("--sink", "memory://sink", "give a folder or s3://"),
        ("--sink", "ftp://127.0.0.1:1/sink", "give a folder or s3://"),
        ("--device", "abacus", "device 'abacus' cannot be used here"),
        ("--block-px", 96, "--block-px: found 96; input should be greater than or equal to 128"),
        ("--workers", -1, "--workers: found -1"),
        ("--limit", 0, "--limit: found 0"),
        ("--bbox", "1,2,3", "--bbox: found '1,2,3', expected west,south,east,north"),
        ("--bbox", "0,50,1,40", "expected west, south, east, north in degrees with south below north"),
        ("--from", "yesterday", "--from: found 'yesterday', expected a date like 2025-04-01"),
        ("--to", "2025", "--to: found '2025', expected a date"),
        ("--json", "/nowhere/report.json", "--json /nowhere/report.json: cannot be written"),
    ],
)
def test_what_stops_a_run_is_one_line_and_code_2(
    archive: Path, tmp_path: Path, option: str, value: object, message: str
) -> None:
    where = {"--source": archive, "--sink": tmp_path / "sink", "--state-dir": tmp_path / "state", "--workers": 0}
    words = [word for pair in (where | {option: value}).items() for word in pair]
    assert message in fails(2, "run", *words)


def test_a_run_that_stopped_tells_what_it_had_done(tmp_path: Path) -> None:
    classical_contracts(tmp_path / "contracts")
    for name in ("no-pan", "scene"):
        add_scene(tmp_path / "source", name, side_px=128)
    (path,) = (tmp_path / "source").rglob("no-pan.json")
    item = json.loads(path.read_text())
    path.write_text(json.dumps(item | {"assets": {"ms": item["assets"]["ms"]}}))
    (tmp_path / "sink").mkdir()
    (tmp_path / "sink" / "geoeye-1-sharpened").write_text("no folder: the sink's fault, which ends the run")
    places = (f"--{name}={tmp_path / name}" for name in ("source", "sink", "state-dir"))
    result = call("run", *places, "--contracts-dir", tmp_path / "contracts", "--workers", 0, "--json", "-")
    assert result.exit_code == 2
    assert [outcome["key"] for outcome in json.loads(result.stdout)["outcomes"]] == ["geoeye-1/no-pan"]
    assert "no PAN: found ms; expected a PAN asset" in result.stderr
    assert "stopped: 2 scenes known: 1 eligible, 1 refused" in result.stderr


@pytest.mark.parametrize("command", ["run", "backfill", "plan", "census"])
@pytest.mark.parametrize("source", ["{}", "{}/", "{}/catalog.json", "file://{}/catalog.json", "{}/files/.."])
def test_an_archive_is_no_place_for_its_products(tmp_path: Path, command: str, source: str) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "archive")
    where = ["--source", source.format(tmp_path / "link"), "--sink", tmp_path / "archive", "--state-dir", tmp_path]
    assert "which is the source; expected another place" in fails(2, command, *where)
    assert list((tmp_path / "archive").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "sink", "same"),
    [
        ("catalog.json", ".", True),
        ("catalog.json", "products", False),
        ("c/collection.json", ".", True),
        ("c", ".", True),
        ("c", "products", False),
        ("c/item.json", ".", False),
        ("s3://bucket/out/catalog.json", "s3://bucket/out/", True),
        ("s3://bucket/out/", "s3://bucket/out", True),
    ],
)
def test_documents_belong_to_the_archive_of_their_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sink: str, *, same: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "catalog.json").write_text(json.dumps({"links": []}))
    (tmp_path / "c" / "collection.json").write_text(json.dumps({"links": [{"rel": "root", "href": "../catalog.json"}]}))
    (tmp_path / "c" / "item.json").write_text(json.dumps({"links": [{"href": 5}]}))
    assert Settings(source=source, sink=sink).sink_is_source == same


def test_a_census_says_first_that_there_is_no_catalog(archive: Path, tmp_path: Path) -> None:
    sink = tmp_path / "typo"
    result = call("census", "--source", archive, "--sink", sink, "--state-dir", tmp_path / "state")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"no catalog at {sink}/catalog.json; give --sink of the run, or run first\n")


@pytest.mark.parametrize("command", ["run", "census"])
def test_a_state_folder_that_cannot_be_made_is_named(archive: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    where = ["--source", archive, "--sink", tmp_path / "sink", "--state-dir", tmp_path / "file" / "state"]
    assert f"state folder {tmp_path / 'file' / 'state'}: cannot be made" in fails(2, command, *where)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [("tcp://127.0.0.1:1", "Timed out trying to connect"), ("nonsense", "missing port number")],
)
def test_a_dask_scheduler_that_does_not_answer_is_named(
    archive: Path, tmp_path: Path, scheduler: str, message: str
) -> None:
    where = ["--source", archive, "--sink", tmp_path / "sink", "--state-dir", tmp_path / "state"]
    with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
        line = fails(2, "run", *where, "--dask-scheduler", scheduler)
    assert f"Dask scheduler {scheduler}: " in line
    assert message in line
    with Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}") as ledger:
        assert {row.attempts for row in ledger.rows()} == {0}


def test_faults_of_the_environment_are_named_after_their_variable(archive: Path, tmp_path: Path) -> None:
    where = ["--source", archive, "--state-dir", tmp_path, "--sink", tmp_path / "sink"]
    line = fails(2, "run", *where, env={"PANCRAFTER_LEASE_S": "-5"})
    assert "PANCRAFTER_LEASE_S: found '-5'; input should be greater than 0" in line
    line = fails(2, "run", *where, env={"PANCRAFTER_BBOX": "1 2 3 4"})
    assert "PANCRAFTER_BBOX: found '1 2 3 4'; " in line
    assert "as JSON" in line
    assert "lists are written as JSON" in fails(2, "run", *where, env={"PANCRAFTER_COLLECTIONS": "one,two"})
    assert """JSON, like '{"hosts": [""" in fails(2, "run", *where, env={"PANCRAFTER_ACCESS": "x"})
    twice = fails(2, "run", *where, env={"PANCRAFTER_ACCESS": '{"hosts": ["a"], "roots": [], "hosts": ["b"]}'})
    assert """field "access" """ in twice
    assert "'hosts' is given twice; keep one of them" in twice
    line = fails(2, "run", *where, env={"PANCRAFTER_ACCESS": '{"profiles": [{"match": ["a"], "hots": 1}]}'})
    assert "PANCRAFTER_ACCESS, profiles, 0, hots: found 1; extra inputs" in line


def test_a_mistyped_variable_is_warned_of_once(first_run: tuple, places: list) -> None:
    options = ["--sink", places[3], "--state-dir", places[5], "--reason", "none"]
    spelt = {"PANCRAFTER_SINKK": "x", "PANCRAFTER_FLAVOUR": "x"}
    others = {"PANCRAFTER_HOME": "x", "PANCRAFTER_METRICS_SERVICE_PORT": "1", "PANCRAFTER_PORT_80_TCP": "tcp://1:80"}
    result = call("withdraw", "no-such", *options, env=spelt | others)
    assert result.stderr.splitlines()[:-1] == [
        "warning: PANCRAFTER_FLAVOUR is no setting and counts for nothing",
        "warning: PANCRAFTER_SINKK is no setting and counts for nothing; is PANCRAFTER_SINK meant?",
    ]


def test_environment_counts_where_no_option_is_given(first_run: tuple, places: list) -> None:
    environment = {"PANCRAFTER_STATE_DIR": str(places[5])}
    assert call("ledger", "list", env=environment).exit_code == 0


def test_auto_device_is_not_guessed_for_another_machine() -> None:
    assert "name the device of its workers" in fails(
        2, "run", "--source", ".", "--dask-scheduler", "tcp://127.0.0.1:1", "--device", "auto"
    )


def test_json_report_on_stdout_leaves_tables_to_stderr(first_run: tuple, places: list) -> None:
    result = call("run", *places, "--workers", 0, "--json", "-")
    assert json.loads(result.stdout)["outcomes"] == []
    assert "nothing to do" in result.stderr


# --- sharpen --------------------------------------------------------------------------------------------------------


def test_sharpened_pair_equals_what_the_pipeline_publishes(first_run: tuple, archive: Path, tmp_path: Path) -> None:
    href = next(o["item_href"] for o in first_run[1]["report"]["outcomes"] if o["verdict"] == "fallback")
    published = json.loads(Path(href).read_text())["assets"]["sharpened"]["href"]
    out = tmp_path / "out.tif"
    made = parsed(
        "sharpen", *pair_files(archive / "files" / "good"), out, "--sensor", "geoeye-1", "--method", "mtf-glp-fs",
        "--block-px", 128, "--json",
    )  # fmt: skip
    with rasterio.open(out) as ours, rasterio.open(Path(href).parent / published) as theirs:
        assert np.array_equal(ours.read(), theirs.read())
        assert (ours.transform, ours.crs, ours.nodata, ours.dtypes) == (
            theirs.transform, theirs.crs, theirs.nodata, theirs.dtypes,
        )  # fmt: skip
        assert ours.tags()["PANCRAFTER_METHOD"] == "mtf-glp-fs"
    assert cog_validate(out, strict=True)[0]
    assert (made["bands"], made["window_px"]) == (["blue", "green", "red", "nir"], 128)
    assert made["size_bytes"] == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


@pytest.mark.parametrize(("bands", "warned"), [([], True), (["--bands", "red,green,blue,nir"], False)])
def test_an_order_of_bands_that_was_assumed_is_told(
    archive: Path, tmp_path: Path, bands: list[str], *, warned: bool
) -> None:
    pan, ms = pair_files(archive / "files" / "good")
    unnamed = tmp_path / "unnamed.tif"
    with rasterio.open(ms) as source, rasterio.open(unnamed, "w", **source.profile) as copy:
        copy.write(source.read())
    result = call(
        "sharpen", pan, unnamed, tmp_path / "out.tif", "--sensor", "spot-6", "--method", "brovey", *bands, *ONE_TILE
    )
    assert result.exit_code == 0, result.output
    said = "warning: nothing names the bands of MS, so the usual order of spot-6 was taken (red, green, blue, nir)"
    assert (said in result.stderr) == warned


def test_network_on_unknown_sensor_warns_and_signs_the_file(archive: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tif"
    pan, ms = pair_files(archive / "files" / "good")
    words = ["sharpen", pan, ms, "--weights", weights, "--device", "cpu", *ONE_TILE]
    result = call(*words, out)
    assert result.exit_code == 0, result.output
    assert "warning: sensor unknown" in result.stderr
    assert str(out) in result.stdout
    assert "4 bands (band-1, band-2, band-3, band-4), uint16, EPSG:32632" in result.stdout
    assert "pan-crafter, sensor unknown-sensor, ratio 4" in result.stdout
    with rasterio.open(out) as made, rasterio.open(pan) as source:
        assert (made.shape, made.transform, made.count) == (source.shape, source.transform, 4)
        assert made.read().std(axis=(1, 2)).min() > 0
        assert made.tags()["PANCRAFTER_WEIGHTS_SHA256"]
    parsed(*words, tmp_path / "fast.tif", "--precision", "bfloat16", "--json")
    with rasterio.open(out) as made, rasterio.open(tmp_path / "fast.tif") as fast:
        assert 0 < np.abs(made.read().astype(int) - fast.read()).mean() < 9


def test_sensor_is_inferred_from_file_name_and_header(pair: tuple[Path, Path], tmp_path: Path) -> None:
    glp = ["--method", "mtf-glp-fs", "--json"]
    assert parsed("sharpen", *pair, tmp_path / "a.tif", *glp)["sensor"] == "geoeye-1"
    generic = call("sharpen", *pair, tmp_path / "b.tif", "--sensor", "generic", *glp)
    assert json.loads(generic.stdout)["sensor"] == "unknown-sensor"
    assert generic.stderr.split() == ["reading", "sharpening", "writing"], "no warning: it was asked for"
    pan = pair[0].rename(tmp_path / "pan.tif")
    with rasterio.open(pan, "r+") as source:
        source.update_tags(ns="IMAGERY", SATELLITEID="QB02")
    assert parsed("sharpen", pan, pair[1], tmp_path / "c.tif", *glp)["sensor"] == "quickbird"


def test_one_file_per_band(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with rasterio.open(pair[1]) as source:
        values = source.read()
    files = [tmp_path / f"x_{name}.tif" for name in ("nir", "red", "green", "blue")]
    for path, band in zip(files, values[::-1], strict=True):
        write_raster(path, band[None], GSD_M * RATIO)
    glp = ["--method", "mtf-glp-fs", "--json"]
    made = parsed("sharpen", pair[0], *files, tmp_path / "split.tif", *glp)
    assert made["bands"] == ["blue", "green", "red", "nir"]
    parsed("sharpen", *pair, tmp_path / "whole.tif", *glp)
    with rasterio.open(tmp_path / "split.tif") as split, rasterio.open(tmp_path / "whole.tif") as whole:
        assert np.array_equal(split.read(), whole.read())


def test_classical_only_sensors_get_the_classical_method(pair: tuple[Path, Path], tmp_path: Path) -> None:
    classical_contracts(own := tmp_path / "contracts")
    made = parsed("sharpen", *pair, tmp_path / "a.tif", "--sensor", "geoeye-1", "--contracts-dir", own, "--json")
    assert made["method"] == "mtf-glp-fs"


def test_output_is_replaced_only_when_asked(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.tif"
    out.write_text("mine")
    assert "exists already; choose another name or give --overwrite" in fails(2, "sharpen", *pair, out)
    assert out.read_text() == "mine"
    assert call("sharpen", *pair, out, "--method", "mtf-glp-fs", "--overwrite").exit_code == 0
    assert cog_validate(out)[0]


def test_inputs_are_never_overwritten(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pan, ms = pair
    archive, mosaic = tmp_path / "pan.zip", tmp_path / "pan.vrt"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(pan, "pan.tif")
    with rasterio.open(pan) as source, WarpedVRT(source) as view:
        rasterio.shutil.copy(view, mosaic, driver="VRT")
    for given, behind in ((pan, pan), (f"file://{pan}", pan), (mosaic, pan), (f"/vsizip/{archive}/pan.tif", archive)):
        before = behind.read_bytes()
        refused = call("sharpen", given, ms, behind, "--overwrite")
        assert refused.exit_code == 2, given
        assert "is one of the inputs" in refused.stderr.splitlines()[-1], "others warn of the name of OUT"
        assert behind.read_bytes() == before


def _without_frame(pan: Path, ms: Path) -> list[object]:
    for path in (pan, ms):
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
            rewritten(path, crs=None, transform=None)
    return [pan, ms]


def _without_crs_of_ms(pan: Path, ms: Path) -> list[object]:
    return [pan, rewritten(ms, crs=None)]


def _other_crs(pan: Path, ms: Path) -> list[object]:
    return [pan, rewritten(ms, crs="EPSG:32633")]


def _elsewhere(pan: Path, ms: Path) -> list[object]:
    x, y = ORIGIN
    return [pan, rewritten(ms, transform=rasterio.transform.from_origin(x + 9999, y, 2, 2))]


def _odd_ratio(pan: Path, ms: Path) -> list[object]:
    return [pan, rewritten(ms, transform=rasterio.transform.from_origin(*ORIGIN, 1.8, 1.8))]


def _missing(pan: Path, ms: Path) -> list[object]:
    pan.unlink()
    return [pan, ms]


def _no_raster(pan: Path, ms: Path) -> list[object]:
    ms.write_text("<html>403 Forbidden</html>")
    return [pan, ms]


def _truncated(pan: Path, ms: Path) -> list[object]:
    ms.write_bytes(ms.read_bytes()[: ms.stat().st_size // 3])
    return [pan, ms]


@pytest.mark.parametrize(
    ("spoil", "options", "code", "message"),
    [
        (_missing, [], 1, "GE01_pan.tif: no such file"),
        (lambda pan, ms: [pan.parent, ms], [], 1, "is a folder, expected one file"),
        (_no_raster, [], 1, "GE01_ms.tif: not a readable raster"),
        (_truncated, [], 1, "truncated or damaged; fetch it again"),
        (_without_frame, [], 1, "found no CRS, expected a map projection and a geotransform"),
        (_without_crs_of_ms, [], 1, "GE01_ms.tif: found no CRS"),
        (_other_crs, [], 1, "PAN is in EPSG:32632 and MS in EPSG:32633, expected one CRS"),
        (_elsewhere, [], 1, "expected an overlap"),
        (_odd_ratio, [], 1, "pixel ratio of 3.6"),
        (lambda pan, ms: [ms, pan], [], 1, "MS pixels are 0.25 times the PAN pixels"),
        (lambda pan, ms: [ms, pan], ["--sensor", "geoeye-1"], 1, "are PAN and MS swapped"),
        (lambda *pair: [*pair], ["--sensor", "abacus-1"], 2, "no sensor contract 'abacus-1'"),
        (lambda *pair: [*pair], ["--sensor", "landsat-8"], 1, "pixel ratio of 4 along y, expected 2"),
        (lambda *pair: [*pair], ["--sensor", "geoeye-1", "--bands", "blue,green,red,swir"], 2, "has no band 'swir'"),
        (lambda *pair: [*pair], ["--bands", "red,green"], 1, "has 4 bands, but 2 were named"),
        (lambda *pair: [*pair], ["--weights", "none-such"], 2, "weights 'none-such' not found"),
        (lambda *pair: [*pair], ["--assume-origin", "here"], 1, "expected 'EPSG:CODE X Y PIXELSIZE'"),
        (lambda *pair: [*pair], ["--block-px", "130"], 2, "--block-px: found 130"),
        (lambda *pair: [*pair], ["--memory", "9MiB"], 2, "memory of 9 MiB is too small"),
    ],
)
def test_bad_pairs_fail_in_one_line_and_leave_nothing(
    pair: tuple[Path, Path], tmp_path: Path, spoil, options: list[str], code: int, message: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    words = spoil(*pair)
    method = [] if "--weights" in options else ["--method", "mtf-glp-fs"]
    result = call("sharpen", *words, folder / "out.tif", *method, *options)
    assert result.exit_code == code, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert list(folder.iterdir()) == []


def test_output_folder_must_exist(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "does not exist; make it first" in fails(2, "sharpen", *pair, tmp_path / "none" / "out.tif")
    assert "is a folder" in fails(2, "sharpen", *pair, tmp_path)


def test_a_name_of_another_format_is_told_before_the_work(pair: tuple[Path, Path], tmp_path: Path) -> None:
    said = call("sharpen", *pair, tmp_path / "none" / "out.png").stderr
    assert said.startswith(f"warning: OUT {tmp_path / 'none' / 'out.png'} will be a GeoTIFF (COG), whatever its name")
    assert "warning" not in fails(2, "sharpen", *pair, tmp_path / "none" / "out.TIF")


@pytest.mark.parametrize("out", ["-", "s3://bucket/out.tif", "file:///tmp/out.tif", "/vsis3/bucket/out.tif"])
def test_output_is_a_local_file(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    said = fails(2, "sharpen", *pair, "--method", "exp", "--", out)
    assert f"OUT: found {out!r}, expected a local file" in said
    assert sorted(tmp_path.iterdir()) == before


def test_files_without_georeference_can_be_given_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    words = _without_frame(*pair)
    frame = ["--assume-origin", "EPSG:32633 400000 5600000 0.5"]
    made = parsed("sharpen", *words, tmp_path / "out.tif", *frame, "--method", "mtf-glp-fs", "--json")
    assert made["crs"] == "EPSG:32633"
    with rasterio.open(tmp_path / "out.tif") as out:
        assert (out.transform.c, out.transform.f, out.transform.a) == (400000, 5600000, 0.5)


# --- archives -------------------------------------------------------------------------------------------------------


def test_simulate_counts_scenes_and_names_the_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipes = sorted(simulated.sample_scenes(), key=lambda recipe: recipe.truncated_asset is None)[:2]
    tiny = [replace(recipe, pan_shape=(64, 64), footprint=None) for recipe in recipes]
    monkeypatch.setattr(simulated, "sample_scenes", lambda: tuple(tiny))
    result = call("simulate", tmp_path / "sample", "--seed", 3)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "sample" / "catalog.json")
    first, second = result.stderr.splitlines()
    assert first == f"1/2 {tiny[0].item_id}"
    assert re.fullmatch(rf"2/2 {tiny[1].item_id}, ETA \d+ s", second)
    assert "found a simulated archive of seed 3" in fails(2, "simulate", tmp_path / "sample", "--seed", 4)
    assert call("simulate", tmp_path / "sound", "--sound").exit_code == 0
    for path in (tmp_path / "sound").rglob("*.tif"):
        with rasterio.open(path) as file:
            assert file.read().any(), "no file is damaged"


def test_catalog_add_makes_an_item_that_check_accepts(pair: tuple[Path, Path], tmp_path: Path) -> None:
    catalog = tmp_path / "catalog"
    words = ["catalog", "add", "--catalog", catalog, "--sensor", "GE01", *pair, "--id", "S1"]
    result = call(*words, "--datetime", "2025-05-02T10:00Z", "--bands", "blue,green,red,nir", "--copy")
    assert result.exit_code == 0, result.output
    assert re.match(
        r"added +geoeye-1/S1: blue, green, red, nir \(option\); acquired 2025-05-02T10:00:00Z", result.stdout
    )
    verdict = parsed("sensors", "check", catalog / "geoeye-1" / "S1" / "S1.json", "--json")
    assert (verdict["verdict"], verdict["sensor"], verdict["bands"]) == (
        "eligible", "geoeye-1", ["blue", "green", "red", "nir"],
    )  # fmt: skip
    place = {"key": "pan", "href": str(catalog / "geoeye-1/S1/GE01_pan.tif"), "band": 1}
    assert verdict["pan"] == place | {"assumed": False, "nodata": None, "scale": None, "offset": None}
    assert [asset["band"] for asset in verdict["ms"]] == [1, 2, 3, 4]


def test_catalog_add_knows_a_sensor_of_ones_own(pair: tuple[Path, Path], tmp_path: Path) -> None:
    own = call("sensors", "show", "geoeye-1").stdout.replace("name: geoeye-1", "name: my-sensor", 1)
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "mine.yaml").write_text(own)
    words = ["catalog", "add", "--catalog", tmp_path / "catalog", "--sensor", "my-sensor", *pair, "--id", "S1"]
    assert "with --contracts-dir" in fails(2, *words)
    result = call(*words, "--contracts-dir", tmp_path / "contracts")
    assert result.exit_code == 0, result.output
    assert "my-sensor/S1" in result.stdout


def test_catalog_add_of_pairs_names_what_it_skips(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    meta = {"sensor": "GE01", "bands": ["blue", "green", "red", "nir"], "ratio": 4, "gsd_m": {"pan": 0.5}}
    for name, ms_px in (("whole", 16), ("broken", 15)):
        pan, ms = rng.integers(1, 2000, (64, 64)), rng.integers(1, 2000, (4, ms_px, ms_px))
        np.savez(pairs / f"{name}.npz", pan=pan.astype(np.uint16), ms=ms.astype(np.uint16))
        (pairs / f"{name}.json").write_text(json.dumps(meta))
    words = ["catalog", "add", "--catalog", tmp_path / "catalog", "--pairs", pairs]
    result = call(*words)
    assert result.exit_code == 1
    assert "skipped broken: " in result.stderr
    assert "georeference assumed" in result.stdout
    assert result.stdout.rstrip().endswith("1 item in " + str(tmp_path / "catalog" / "catalog.json") + ", 1 skipped")
    again = call(*words, "--name", "whole")
    assert again.exit_code == 0
    assert again.stdout.startswith("unchanged geoeye-1/whole")


def test_real_pairs_go_the_same_way(shared_data: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog"
    result = call("catalog", "add", "--catalog", catalog, "--pairs", shared_data / "pairs", "--name", "GF2_train0")
    assert result.exit_code == 0, result.output
    assert "gaofen-2/GF2_train0" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sensor", "geoeye-1"], "expected --sensor NAME PAN MS..., or --pairs DIR"),
        (["pan.tif", "ms.tif"], "expected --sensor NAME PAN MS..., or --pairs DIR"),
        (["--pairs", ".", "--sensor", "geoeye-1"], "--sensor: not together with --pairs"),
        (
            ["--pairs", ".", "--datetime", "2025-05-02", "--bands", "red", "--assume-origin", "EPSG:32633 0 0 1"],
            "--datetime, --bands, --assume-origin: not together with --pairs",
        ),
        (["--pairs", ".", "--contracts-dir", "nowhere"], "nowhere"),
        (["--name", "x", "--sensor", "geoeye-1", "pan.tif", "ms.tif"], "--name: chooses among --pairs DIR"),
    ],
)
def test_catalog_add_says_what_it_needs(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in fails(2, "catalog", "add", "--catalog", tmp_path / "catalog", *words)
    assert not (tmp_path / "catalog").exists()


def test_catalog_add_refuses_files_without_frame(pair: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["catalog", "add", "--catalog", tmp_path / "c", "--sensor", "geoeye-1", *_without_frame(*pair)]
    assert "--assume-origin" in fails(1, *words)
    result = call(*words, "--assume-origin", "EPSG:32633 400000 5600000 0.5")
    assert "georeference assumed" in result.stdout


# --- sensors --------------------------------------------------------------------------------------------------------


def test_sensors_list(tmp_path: Path) -> None:
    assert re.search(r"^landsat-8 .*2  blue green red nir swir1 swir2", call("sensors", "list").stdout, re.MULTILINE)
    listed = {contract["name"]: contract for contract in parsed("sensors", "list", "--json")}
    assert listed["worldview-3"]["ratio"] == 4
    assert "no folder" in fails(2, "sensors", "list", "--contracts-dir", tmp_path / "none").replace("not a", "no")


def test_sensors_show_prints_a_contract_that_can_be_used(tmp_path: Path) -> None:
    text = call("sensors", "show", "WV03").stdout
    assert parse_contract(text, "stdout") == get_contract("worldview-3")
    (tmp_path / "mine.yaml").write_text(text.replace("name: worldview-3", "name: my-sensor", 1))
    shown = parsed("sensors", "show", "my-sensor", "--contracts-dir", tmp_path, "--json")
    assert shown["name"] == "my-sensor"
    assert "no sensor contract 'abacus'" in fails(2, "sensors", "show", "abacus")


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("maxar-opendata/item_*.json", "eligible", "recognised as worldview-2 with PAN and 8 MS bands"),
        ("terradue-stars/cbers4a-per-band/*BAND0.json", "pair", "only PAN of a scene"),
        ("terradue-stars/bka/*.json", "defect", "int8"),
        ("cbers-ams-kepler/ref_CBERS_4A*.json", "needs_header", "no grid is declared for both"),
        ("terradue-stars/pleiades/DS_PHR1B*.json", "refused", "sharpened by the vendor"),
        ("planetary-computer-landsat/LC08*.json", "refused", "expected a PAN asset"),
        ("maxar-opendata/events_catalog.json", "refused", "found a STAC Catalog, expected an item"),
    ],
)
def test_sensors_check_on_real_items(shared_data: Path, name: str, verdict: str, reason: str) -> None:
    (path,) = (shared_data / "stac").glob(name)
    found = parsed("sensors", "check", path, "--json")
    assert found["verdict"] == verdict
    assert reason in found["reason"]
    assert {"sensor", "bands", "pan", "code"} <= found.keys()
    assert call("sensors", "check", path).stdout.startswith(f"{verdict}: ")


def test_sensors_check_of_a_folder_is_one_table(shared_data: Path) -> None:
    table = call("sensors", "check", shared_data / "stac").stdout
    assert len(re.findall(r"\b(eligible|needs_header|pair|refused|defect) ", table)) >= 48
    found = parsed("sensors", "check", shared_data / "stac", "--json")
    assert len(found) == 48
    assert found["terradue-stars/gaofen/GF1_PMS1_E69.4_N33.3_20220624_L1A0006547030.json"]["verdict"] == "eligible"


def test_sensors_schema_describes_every_field() -> None:
    schema = parsed("sensors", "schema")
    assert "nodata" in schema["properties"]
    assert json.loads(json.dumps(schema)) == schema


def test_sensors_check_of_no_item(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert "not readable as JSON" in fails(1, "sensors", "check", path)
    path.write_text("[1, 2")
    assert "not readable as JSON" in fails(1, "sensors", "check", path)
    path.write_text("[1, 2]")
    assert "found a JSON list, expected a STAC item" in fails(1, "sensors", "check", path)
    path.write_text("{}")
    assert parsed("sensors", "check", path, "--json")["verdict"] == "defect"


# --- the rest -------------------------------------------------------------------------------------------------------


TINY_TRAINING = """
network: {bands: 1, width: 16, depth: [1, 1, 1], attention: none}
simulated_scenes: 1
simulated_px: 96
ratios: {4: 1.0}
patch_px: 32
batch: 2
steps: 2
warmup: 1
validate_every: 2
precision: float32
"""


def test_train_writes_weights_that_sharpen(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY_TRAINING)
    result = call("train", config, "--device", "cpu")
    assert result.exit_code == 0, result.output
    best = Path("runs") / "tiny" / "best.safetensors"
    assert result.stdout.rstrip().endswith(str(best))
    assert call("sharpen", *pair, tmp_path / "o.tif", "--weights", best, *ONE_TILE).exit_code == 0


def test_train_needs_a_folder_that_can_be_made(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY_TRAINING)
    assert "tiny.yaml/run: cannot be written" in fails(2, "train", config, config / "run", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenes", 0], "--scenes: found 0; input should be greater than or equal to 1"),
        (["--mpx", -1], "--mpx: found -1.0; input should be greater than 0"),
        (["--mpx", "nan"], "--mpx: found nan; input should be greater than 0"),
        (["--gpus", 0], "--gpus: found 0"),
        (["--interruptions", -1], "--interruptions: found -1.0"),
        (["--rates", "/nowhere/rates.json"], "--rates /nowhere/rates.json: "),
        (["--rates", PROJECT / "README.md"], "the file: Invalid JSON"),
    ],
)
def test_size_names_what_does_not_fit(words: list[object], message: str) -> None:
    assert message in fails(2, *SIZE, "--mpx", 10, *words)


def test_size_tells_money_only_where_prices_are_known() -> None:
    plain = call(*SIZE, "--mpx", 200).stdout
    assert "money" not in plain
    assert plain == call(*SIZE, "--mpx", 200, "--bands", 4).stdout != call(*SIZE, "--mpx", 200, "--bands", 8).stdout
    assert "money 1\n" in call(*SIZE, "--mpx", 200, "--gpu-price", 2, "--cpu-price", 0.04).stdout


def test_size_goes_by_the_finished_scenes_of_its_catalog(first_run: tuple, places: list, tmp_path: Path) -> None:
    shutil.copytree(places[5], tmp_path / "state")
    words = ["size", "--scenes", 1, "--mpx", 1, *places[2:4], "--state-dir", tmp_path / "state", "--json"]
    rates = parsed(*words)["rates"]
    with Ledger(f"sqlite:///{tmp_path}/state/ledger.db") as ledger:
        ledger.go_on("elsewhere", str(places[3]))
    finished = "(SELECT json_set(measures, '$.seconds', 1e6) FROM scene WHERE state = 'confirmed')"
    with closing(sqlite3.connect(tmp_path / "state" / "ledger.db")) as database, database:
        changed = f"UPDATE scene SET measures = {finished} WHERE sink = 'elsewhere' OR state = 'dead'"
        assert database.execute(changed).rowcount == 3
    assert parsed(*words)["rates"] == rates


def test_size_names_the_rate_that_is_missing(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text('{"stage": {"fixed_s": 1}}')
    line = fails(2, "size", "--scenes", 10, "--mpx", 10, "--rates", rates)
    assert f"--rates {rates}: stage.s_per_mpx: Field required" in line


@pytest.mark.parametrize(
    "words",
    [
        ["metrics", "--port", 80000],
        ["evaluate", ".", "--threads", 0],
        ["sharpen", "pan.tif", "ms.tif", "out.tif", "--threads", 0],
        ["size", "--scenes", 1, "--mpx", 1, "--bands", 0],
    ],
)
def test_numbers_out_of_range_are_usage_errors(words: list[object]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert f"Invalid value for '{words[-2]}'" in result.stderr


def test_metrics_names_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails(2, "metrics", "--port", port, "--state-dir", tmp_path)
    assert f"127.0.0.1:{port} cannot be listened on" in line


def test_train_names_the_field_that_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    assert "no such file" in fails(2, "train", config, tmp_path / "run")
    config.write_text(TINY_TRAINING.replace("precision: float32", "precision: float8"))
    assert "precision" in fails(1, "train", config, tmp_path / "run")


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pancrafter.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in 'torch numpy pydantic sqlalchemy rasterio dask'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    for command in ("run", "plan", "sharpen", "simulate", "catalog", "serve", "sensors", "ledger", "train", "version"):
        assert f" {command} " in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_characters_that_a_terminal_lacks_do_not_end_a_command() -> None:
    command = [sys.executable, "-m", "pancrafter.cli", "sensors", "list"]
    in_ascii = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT, env=in_ascii)
    assert done.returncode == 0, done.stderr
    assert r"Pl\xe9iades" in done.stdout


@pytest.mark.parametrize("command", ["run", "backfill", "plan"])
def test_help_names_the_defaults_of_settings(command: str) -> None:
    options = {option.name: option for option in get_command(cli.app).commands[command].params}
    told = {name: option.show_default for name, option in options.items() if isinstance(option.show_default, str)}
    fields = Settings.model_fields
    assert told == {
        name: str(fields[name].default)
        for name in options
        if name in fields and fields[name].default not in (None, (), False)
    }
    assert all(option.help for option in options.values())


def test_sharpening_loads_neither_the_ledger_nor_a_cluster(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Each would take longer than a small scene."""
    code = (
        "import sys\nfrom pancrafter.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in 'sqlalchemy distributed prefect xarray pandas'.split() if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "sharpen", *pair, tmp_path / "o.tif", "--method", "brovey"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.rstrip().endswith("[]")


def test_unknown_commands_and_missing_arguments_are_usage_errors(pair: tuple[Path, Path]) -> None:
    assert call("sharpn").exit_code == 2
    assert call("sharpen", *pair).exit_code == 2
    assert call("sharpen", *pair, "out.tif", "--method", "magic").exit_code == 2


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("pancrafter.plan.make_plan", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        call("plan", "--source", archive)


@contextmanager
def _started(*words: object) -> Iterator[subprocess.Popen]:
    command = [str(Path(sys.executable).with_name("pancrafter")), *map(str, words)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & ignores it  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_interrupted_run_ends_with_130_and_gives_the_scene_back(archive: Path, weights: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    options = ["--sink", tmp_path / "sink", "--state-dir", state, "--weights", weights, "--block-px", 128]
    with _started("run", "--source", archive, *options, "--workers", 1) as process:
        _wait_for_state(state, "good", "staged")
        time.sleep(0.3)
        _press_until_given_back(process, state, "good")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in out + err
    row = parsed("ledger", "show", "good", "--state-dir", state, "--json")
    assert (row["state"], row["attempts"]) == ("eligible", 0)


def _press_until_given_back(process: subprocess.Popen, state_dir: Path, item_id: str) -> None:
    """Ctrl-C as a person presses it: again when nothing happens, since Python drops what is raised in a callback."""
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with Ledger(f"sqlite:///{state_dir}/ledger.db") as ledger:
                if process.poll() is not None or any(row.state == "eligible" for row in ledger.find(item_id)):
                    return
            time.sleep(0.05)


def _wait_for_state(state_dir: Path, item_id: str, state: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (state_dir / "ledger.db").is_file():
            with Ledger(f"sqlite:///{state_dir}/ledger.db") as ledger:
                if any(row.state == state for row in ledger.find(item_id)):
                    return
        time.sleep(0.05)
    pytest.fail(f"{item_id} did not become {state} within {timeout_s} s")


def test_serve_answers_searches_until_interrupted(archive: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be listened on" in fails(2, "serve", archive, "--port", port)
    with _started("serve", archive, "--port", 0) as process:
        announced = re.search(r"at (http://\S+) ", process.stderr.readline())[1]
        found = _eventually(f"{announced}/search")
        assert {feature["id"] for feature in found["features"]} == {"good", "damaged"}
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode == 0


def test_a_port_that_another_server_has_just_left_is_free() -> None:
    """The side that ends a connection keeps it for a minute, so serve could not be started again at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            client.recv(1)
    assert _free_port("127.0.0.1", port) == port


def test_serve_needs_a_catalog(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "no STAC catalog" in fails(2, "serve", tmp_path, "--port", port)


def test_changes_needs_an_output_catalog(tmp_path: Path) -> None:
    """A mistyped place is not one without news."""
    assert "no output catalog" in fails(2, "changes", tmp_path / "nope", "--json")


def _eventually(url: str, timeout_s: float = 90) -> dict:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
