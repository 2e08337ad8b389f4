"""The flows under Prefect's own server: whole runs as processes, killed and started again, and inside the harness."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from listening import listening
from PIL import Image
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import SyncClientContext
from prefect.exceptions import FailedRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)
from prefect.states import Cancelled, Cancelling, Running
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console
from small_archive import add_scene, backdate, classical_contracts, classical_in, lose_workers, settings_in, silent
from test_held import settings_with

from pancrafter import discovery, processes, runs
from pancrafter.errors import CatalogUnavailableError, LeaseLostError, PancrafterError, SinkError
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.processes import lease_owner
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import SceneKey, State
from pancrafter.steps import Outcome
from pancrafter.store import SceneStore

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """``python -m flows`` as its own process group, with its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """``kill -9`` on the process group; Prefect's local server, a group of its own, goes too."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(timeout=60)


def _start(root: Path, name: str) -> Run:
    environment = os.environ | {"PANCRAFTER_BLOCK_PX": "128", "PREFECT_LOGGING_LEVEL": "INFO"}
    for inherited in ("PREFECT_HOME", "PREFECT_API_URL"):
        environment.pop(inherited, None)
    command = [sys.executable, "-m", "flows", "--source", str(root / "source"), "--sink", str(root / "sink")]
    command += ["--state-dir", str(root / "state")]
    log = root / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Run(process, log)


def _finished_shards(store_folder: Path) -> dict[str, int]:
    """Modification time of the shard of every block that is marked done."""
    store = SceneStore.open(str(store_folder))
    rows, cols = np.nonzero(store.done_flags())
    return {
        f"{row}/{col}": (store_folder / "sharpened" / "c" / "0" / str(row) / str(col)).stat().st_mtime_ns
        for row, col in zip(rows.tolist(), cols.tolist(), strict=True)
    }


def _pixels(root: Path) -> np.ndarray:
    (path,) = (root / "sink").rglob("sharpened*.tif")
    with rasterio.open(path) as source:
        return source.read()


@pytest.mark.slow
def test_killed_run_continues_without_recomputing_and_ends_the_same(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=512)

    killed = _start(tmp_path, "killed")
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("state/staged/*.zarr/done/c/*/*[0-9]"))) < 3:  # what is being written ends otherwise
        assert killed.process.poll() is None, f"the run ended before it could be killed:\n{killed.output}"
        assert time.monotonic() < deadline, f"no block was finished in time:\n{killed.output}"
        time.sleep(0.02)
    killed.kill()
    (store,) = (tmp_path / "state" / "staged").glob("*.zarr")
    done = _finished_shards(store)
    assert 3 <= len(done) < 16
    assert not list((tmp_path / "sink").rglob("*.tif")), "something was published by a run that was killed"

    again = _start(tmp_path, "again")
    later: dict[str, int] = {}
    while again.process.poll() is None and time.monotonic() < deadline + 240:
        with contextlib.suppress(OSError, PancrafterError):  # the store of a finished scene goes away while we look
            found = _finished_shards(store)
            if "classical result instead" not in again.output:  # a fallback does write every block again
                later |= found
        time.sleep(0.1)
    assert again.process.wait(timeout=60) == 0, again.output
    assert f"{len(done)} of 16 blocks were finished before" in again.output
    assert {block: later[block] for block in done} == done, "a finished block was written again"

    started = time.monotonic()
    once_more = _start(tmp_path, "once-more")
    assert once_more.process.wait(timeout=60) == 0, once_more.output
    assert "nothing to do" in once_more.output
    assert time.monotonic() - started < 30

    undisturbed = settings_in(tmp_path / "other", source=str(tmp_path / "source"))
    (outcome,) = runs.run(undisturbed, lambda _: None)
    assert outcome.verdict in {"published", "fallback"}
    assert np.array_equal(_pixels(tmp_path), _pixels(tmp_path / "other"))


@pytest.fixture(scope="module")
def prefect_server():
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.mark.usefixtures("prefect_server")
def test_nightly_reports_the_bad_scene_and_finishes_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.blocks.webhook import Webhook

    from flows.area import ScenesFailedError, nightly
    from flows.upkeep import redrive

    add_scene(tmp_path / "source", "good", side_px=128, day=2)
    add_scene(tmp_path / "source", "bad", side_px=128, seed=2).ms.write_bytes(b"not a tiff")
    with listening() as (url, heard):
        Webhook(url=url, method="POST", allow_private_urls=True).save("morning", overwrite=True)
        with pytest.raises(ScenesFailedError, match="1 of 2 scenes failed: geoeye-1/bad") as caught:
            nightly(settings_in(tmp_path, device="auto"), notify="morning")
    assert [told["state"] for told in heard] == ["Failed"]
    complaints = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any(line.startswith("geoeye-1/bad: ") for line in complaints)
    verdicts = {outcome.key: outcome.verdict for outcome in caught.value.outcomes}
    assert verdicts["geoeye-1/bad"] == "failed"
    assert verdicts["geoeye-1/good"] in {"published", "fallback"}
    with get_client(sync_client=True) as client:
        names = {run.name.split(" ")[0] for run in client.read_task_runs()}
        newest = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
        artifacts = {artifact.key: artifact.description for artifact in reversed(newest)}
        (run,) = [run for run in client.read_flow_runs() if run.name == f"nightly {tmp_path / 'source'}"]
    assert {"stage", "sharpen", "assess", "publish"} <= names
    assert {"scenes", "failures"} <= artifacts.keys()
    assert artifacts["progress"] == "2 of 2 scenes", "a failed one is done too"
    assert f"process:{lease_owner()}" in run.tags
    assert run.state is not None
    assert run.state.is_failed()
    retried = nightly(settings_in(tmp_path), return_state=True)
    assert retried.message == "nothing to do; waiting for a person: 1 dead"
    assert redrive(settings_in(tmp_path)) == ["geoeye-1/bad"]


def test_make_run_says_what_to_do_about_scenes_that_wait_for_a_person(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.__main__ import main

    add_scene(tmp_path / "source", "bad", side_px=128).ms.write_bytes(b"not a tiff")
    settings = settings_in(tmp_path)
    runs.run(settings, lambda _: None)
    places = ["--source", settings.source, "--sink", settings.sink, "--state-dir", settings.state_dir]
    assert main(places) == 0
    assert "failed: see `pancrafter ledger list --state dead`; after a fix" in capsys.readouterr().out


def drop_pan(catalog: Path, item_id: str) -> None:
    """Let the item of a scene have no PAN, so that it is refused."""
    (path,) = catalog.rglob(f"{item_id}.json")
    item = json.loads(path.read_text())
    path.write_text(json.dumps(item | {"assets": {"ms": item["assets"]["ms"]}}))


@pytest.mark.parametrize(
    ("option", "refused"),
    [("--from=2025-05-01", 1), ("--from=2025-05-02", 0), ("--to=2025-05-01", 1), ("--bbox=0,0,1,1", 0)],
)
def test_make_run_looks_at_the_part_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, refused: int
) -> None:
    from flows.__main__ import main

    add_scene(tmp_path / "source", "no-pan", side_px=128, acquired=datetime(2025, 5, 1, 12, tzinfo=UTC))
    drop_pan(tmp_path / "source", "no-pan")
    places = (f"--{name}={tmp_path / name}" for name in ("source", "sink", "state-dir"))
    assert main([*places, option]) == 0
    assert ("1 refused in this search" in capsys.readouterr().out) == bool(refused)


@pytest.mark.parametrize(
    ("source", "failed", "code"),
    [("archive", ["damaged"], 0), ("archive", ["damaged", "c/other"], 1), ("elsewhere", ["damaged"], 1)],
)
def test_make_run_fails_for_all_but_what_its_sample_damages(source: str, failed: list[str], code: int) -> None:
    from flows.__main__ import _conclude
    from pancrafter.simulate.archive import damaged_scenes

    (damaged,) = damaged_scenes()
    keys = [key.replace("damaged", damaged) for key in failed]
    outcomes = [Outcome(key=key, sensor="", verdict="failed", reason="why") for key in keys]
    assert _conclude(Console(quiet=True), Settings(source=source), outcomes) == code


@pytest.mark.parametrize("scenes", [[], ["good"]])
def test_the_page_tells_what_was_refused_in_the_look_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: list[str]
) -> None:
    from flows import __main__ as program

    classical_contracts(tmp_path / "contracts")
    for name in ("no-pan", *scenes):
        add_scene(tmp_path / "source", name, side_px=128)
    drop_pan(tmp_path / "source", "no-pan")
    monkeypatch.setenv("PANCRAFTER_CONTRACTS_DIR", str(tmp_path / "contracts"))
    monkeypatch.setattr(program, "_run_nightly", lambda settings: runs.run(settings, silent))
    places = (f"--{name}={tmp_path / name}" for name in ("source", "sink", "state-dir"))
    assert program.main(list(places)) == 0
    assert "geoeye-1/no-pan" in (tmp_path / "sink" / "report.html").read_text()


@pytest.mark.parametrize("scenes", [[], ["good"]])
def test_make_run_fails_for_the_scene_that_its_first_look_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scenes: list[str]
) -> None:
    from flows import __main__ as program

    add_scene(tmp_path / "source", "lost", side_px=128)
    settings = classical_in(tmp_path)
    lose_workers(settings)
    for name in scenes:
        add_scene(tmp_path / "source", name, side_px=128)
    monkeypatch.setenv("PANCRAFTER_CONTRACTS_DIR", str(tmp_path / "contracts"))
    monkeypatch.setattr(program, "_run_nightly", lambda settings: [])
    places = ["--source", settings.source, "--sink", settings.sink, "--state-dir", settings.state_dir]
    assert program.main(places) == 1
    assert "5 attempts ended in silence" in capsys.readouterr().out
    assert program.main(places) == 0, "told once"


def test_make_run_names_a_setting_that_does_not_fit_and_one_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.__main__ import main

    monkeypatch.setenv("PANCRAFTER_WORKERS", "two")
    monkeypatch.setenv("PANCRAFTER_DEVCE", "cuda")
    assert main(["--source", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "stopped: PANCRAFTER_WORKERS: found 'two'; input should be a valid integer" in said.out
    assert "PANCRAFTER_DEVCE is no setting and counts for nothing; is PANCRAFTER_DEVICE meant?" in said.err


@pytest.mark.usefixtures("prefect_server")
def test_a_scene_that_was_interrupted_does_not_count_as_done(tmp_path: Path) -> None:
    from flows.area import backfill, nightly
    from pancrafter.selection import Selection

    classical_contracts(tmp_path / "contracts")
    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path, contracts_dir=str(tmp_path / "contracts"))
    (tmp_path / "sink").mkdir()
    (tmp_path / "sink" / "geoeye-1-sharpened").write_text("no folder: the sink's fault, which ends the run")
    add_scene(tmp_path / "source", "no-pan", side_px=128)
    drop_pan(tmp_path / "source", "no-pan")
    for state in (nightly(settings, return_state=True), backfill(settings, Selection(), return_state=True)):
        assert re.fullmatch(r"stopped: .*geoeye-1-sharpened.*; before that: 1 refused", str(state.message))
        with get_client(sync_client=True) as client:
            newest = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
        progress, table = (next(one for one in newest if one.key == key) for key in ("progress", "scenes"))
        assert progress.description == "0 of 1 scenes"
        assert [row["scene"] for row in json.loads(str(table.data))] == ["geoeye-1/no-pan"]


@pytest.mark.usefixtures("prefect_server")
def test_of_very_many_scenes_the_page_of_a_run_shows_the_first_and_failures_before_the_rest() -> None:
    from flows.report import failures_of, leave_artifacts

    verdicts = ["refused"] * 300 + ["published"] * 10 + ["failed"] * 30
    outcomes = [Outcome(key=f"c/{n}", sensor="", verdict=verdict, reason="why") for n, verdict in enumerate(verdicts)]
    outcomes[-1] = outcomes[-1].model_copy(update={"key": "c/$(id)"})

    @flow
    def night() -> None:
        leave_artifacts(outcomes[-30:] * 7, "pancrafter redrive KEY")
        leave_artifacts(outcomes, "pancrafter redrive KEY")

    night()
    with get_client(sync_client=True) as client:
        newest = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
        table = next(artifact for artifact in newest if artifact.key == "scenes")
    shown = [row["verdict"] for row in json.loads(str(table.data))]
    assert shown == ["failed"] * 30 + ["published"] * 10 + ["refused"] * 160
    assert table.description == "What became of 200 of 340 scenes"
    assert failures_of(outcomes).startswith("c/310: why; c/311: why; ")
    assert failures_of(outcomes).endswith("; c/329: why; and 10 more")
    failures, many = [str(artifact.data) for artifact in newest if artifact.key == "failures"][:2]
    assert "`pancrafter redrive c/338`" in failures
    assert "`pancrafter redrive 'c/$(id)'`" in failures, "somebody will paste it"
    assert many.count("after a fix") == 200
    assert many.endswith("\n- and 10 more, as the ledger lists them")


@pytest.mark.usefixtures("prefect_server")
def test_a_run_does_not_end_because_prefect_does_not_take_its_page(caplog: pytest.LogCaptureFixture) -> None:
    from flows.report import Progress, leave_artifacts

    gone = {
        PREFECT_API_URL: "http://127.0.0.1:1/api",
        PREFECT_CLIENT_MAX_RETRIES: 0,
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
    }

    @flow
    def night() -> str:
        progress = Progress(2, "scenes")
        with temporary_settings(gone), SyncClientContext(httpx_settings={}):  # not the client of before
            progress.step()
            Progress(1, "scenes").step()
            leave_artifacts([Outcome(key="c/1", sensor="", verdict="published")], "pancrafter redrive KEY")
        return "over"

    assert night() == "over"
    assert caplog.text.count("not shown in Prefect, whose server did not take it: ConnectError") == 3


@pytest.mark.usefixtures("prefect_server")
def test_a_run_shows_a_small_picture_and_does_not_end_for_want_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store that kept it may be gone by now."""
    from flows.report import leave_artifacts

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    Image.new("RGBA", (2000, 500)).save(tmp_path / "overview.png")

    @flow
    def night() -> None:
        for place in (tmp_path, "s3://gone"):
            outcome = Outcome(key="c/1", sensor="", verdict="published", picture_href=f"{place}/overview.png")
            leave_artifacts([outcome], "pancrafter redrive KEY")

    night()
    with get_client(sync_client=True) as client:
        newest = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
        shown = next(str(artifact.data) for artifact in newest if artifact.key == "before-after")
    kind, _, data = shown.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (900, 225)
    assert "no picture of c/1: EndpointConnectionError: " in caplog.text


@pytest.mark.usefixtures("prefect_server")
def test_backfill_takes_only_its_period_and_repeats_nothing(tmp_path: Path) -> None:
    from flows.area import backfill
    from pancrafter.plan import Budget, OverBudgetError
    from pancrafter.selection import Selection

    settings = classical_in(tmp_path)
    for day in (1, 3, 5):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    selection = Selection(since=datetime(2025, 5, 2, tzinfo=UTC), until=datetime(2025, 5, 6, tzinfo=UTC))
    planned = backfill(settings, selection, plan_only=True, return_state=True)
    assert planned.message == "plan only: 2 scenes to sharpen"
    with pytest.raises(OverBudgetError, match="2 scenes"):
        backfill(settings, selection, budget=Budget(scenes=1))
    assert not (tmp_path / "sink").exists()
    assert [o.key for o in backfill(settings, selection, window_days=2)] == ["geoeye-1/day-5", "geoeye-1/day-3"]
    page = (tmp_path / "sink" / "report.html").read_text()
    assert ["day-5" in page, "day-3" in page, "day-1" in page] == [True, True, False], "one page of all windows"
    assert backfill(settings, selection) == []


@pytest.mark.usefixtures("prefect_server")
def test_one_scene_by_its_key(tmp_path: Path) -> None:
    from flows.scene import sharpen_scene

    for day in (1, 5):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    settings = settings_in(tmp_path, device="auto")
    classical_contracts(tmp_path / "contracts")
    others = settings.model_copy(update={"contracts_dir": str(tmp_path / "contracts")})
    with open_ledger(others) as ledger:
        assert "geoeye-1/day-1" in discovery.discover(others, ledger).eligible
    outcome = sharpen_scene("geoeye-1/day-1", settings)
    assert outcome is not None, "who asks for a scene gets it, whatever another run had planned"
    assert outcome.key == "geoeye-1/day-1"
    assert sharpen_scene("geoeye-1/day-1", settings) is None
    with get_client(sync_client=True) as client:
        mine = [run for run in client.read_flow_runs() if run.name == "geoeye-1/day-1" and run.state]
        tables = [artifact.data for artifact in client.read_artifacts() if artifact.key == "scenes"]
    assert any(f"process:{lease_owner()}" in run.tags for run in mine)
    assert {str(run.state.message).partition(";")[0] for run in mine} == {
        f"1 {outcome.verdict}",
        "nothing was done, the scene is confirmed",
    }
    assert any('"geoeye-1/day-1"' in str(table) for table in tables)


@pytest.mark.usefixtures("prefect_server")
def test_one_scene_that_is_held_fails_with_the_reason_at_once_and_ever_after(tmp_path: Path) -> None:
    from flows.scene import sharpen_scene
    from flows.upkeep import redrive

    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_with(tmp_path, max_consistency=0.001, max_of_detail=0, on_miss="hold")
    for before in ("", "nothing was done, the scene is "):
        with pytest.raises(FailedRun, match=f"^{before}held: consistency ERGAS"):
            sharpen_scene("geoeye-1/scene", settings)
    assert redrive(settings) == ["geoeye-1/scene"]


@pytest.mark.usefixtures("prefect_server")
def test_one_scene_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """There is no Dask cluster at that address: it is not opened for nothing."""
    from flows.scene import _left_as_it_is, sharpen_scene

    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path, dask_scheduler="tcp://127.0.0.1:1")
    for key in ("geoeye-1/typo", "other/scene"):
        with pytest.raises(FailedRun, match=r"not found in .*/source; look at the spelling"):
            sharpen_scene(key, settings)
    with open_ledger(settings) as ledger:
        assert not ledger.rows(), "only what was asked for is looked for"
        discovery.discover(settings, ledger)
        ledger.mark_refused(SceneKey.parse("geoeye-1/scene", settings.sink), "by-hand", "cloudy")
    with pytest.raises(FailedRun, match="nothing was done, the scene is refused: cloudy"):
        sharpen_scene("geoeye-1/scene", settings)
    with open_ledger(settings) as ledger:
        (row,) = ledger.rows()
    ends = {state: _left_as_it_is(row.model_copy(update={"state": state}), settings) for state in State}
    for_a_person = {State.FOUND, State.REFUSED, State.HELD, State.DEAD}
    assert {state for state, end in ends.items() if end.is_failed()} == for_a_person


@pytest.mark.usefixtures("prefect_server")
def test_what_parameters_leave_out_is_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters as JSON and a run as Prefect's worker starts it."""
    from prefect.flow_engine import run_flow

    from flows.area import nightly

    add_scene(tmp_path / "source", "scene", side_px=256)
    classical_contracts(tmp_path / "contracts")
    for name, value in {
        "CONTRACTS_DIR": str(tmp_path / "contracts"),
        "DEVICE": "cpu:0",
        "SINK": str(tmp_path / "not here"),
        "LEDGER_URL": f"sqlite:///{tmp_path / 'the-ledger.db'}",
        "WORKERS": "0",
        "BLOCK_PX": "256",
    }.items():
        monkeypatch.setenv(f"PANCRAFTER_{name}", value)
    given = {"source": str(tmp_path / "source"), "sink": str(tmp_path / "sink"), "state_dir": str(tmp_path / "state")}
    parameters = {"settings": given | {"block_px": 128, "catalog_url": ""}}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(nightly, parameters=parameters)
        (outcome,) = run_flow(nightly, flow_run=client.read_flow_run(run.id))
    assert outcome.verdict in {"published", "fallback"}
    (item,) = [item for item in StaticSink(given["sink"]).items() if "pancrafter:source" in item["properties"]]
    assert item["properties"]["pancrafter:recipe"]["method"] == "mtf-glp-fs", "the contracts of the worker count"
    with Ledger(f"sqlite:///{tmp_path / 'the-ledger.db'}") as ledger:
        (row,) = ledger.rows()
    assert row.measures["device"] == "cpu:0"
    assert row.measures["blocks"] == 4, "what the parameters name counts"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_what_prefect_refuses_is_no_attempt_of_the_scene(tmp_path: Path) -> None:
    """A limit without any slot: the step is asked for three times, then the run stops."""
    from flows.area import nightly
    from flows.tasks import GPU_LIMIT

    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = settings_in(tmp_path)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, limit=0)
        try:
            with pytest.raises(PancrafterError, match=r"Prefect: .*look whether its server answers"):
                nightly(settings)
        finally:
            client.delete_global_concurrency_limit_by_name(GPU_LIMIT)
    with open_ledger(settings) as ledger:
        (row,) = ledger.rows()
    assert (row.state, row.attempts) == (State.ELIGIBLE, 0)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("error", "tries"), [(CatalogUnavailableError, 3), (LeaseLostError, 1), (SinkError, 1)])
def test_only_what_may_go_better_is_tried_again(error: type[PancrafterError], tries: int) -> None:
    from flows import tasks

    tried: list[str] = []

    def step() -> None:
        tried.append("once more")
        raise error("as planned")

    @flow
    def night() -> None:
        tasks.as_task(step).with_options(retry_delay_seconds=0)()

    with pytest.raises(error, match="as planned"):
        night()
    assert len(tried) == tries


@pytest.mark.usefixtures("prefect_server")
def test_missed_nights_become_one_window_and_the_webhook_hears_of_it(tmp_path: Path) -> None:
    from prefect.blocks.webhook import Webhook

    from flows.area import nightly

    now = datetime.now(UTC)
    settings = classical_in(tmp_path)
    for seed, (name, days) in enumerate((("yesterday", 1), ("before-the-gap", 21), ("long-ago", 40))):
        add_scene(tmp_path / "source", name, side_px=128, seed=seed, acquired=now - timedelta(days=days))
        backdate(tmp_path / "source", name, now - timedelta(days=days))
    with open_ledger(settings) as ledger:
        ledger.note_look(settings.sink, settings.source, now - timedelta(days=20), "the last night before the gap")
    with listening() as (url, heard):
        Webhook(url=url, method="POST", allow_private_urls=True).save("morning", overwrite=True)
        outcomes = nightly(settings, lookback_days=2, notify="morning")
    assert {outcome.key for outcome in outcomes} == {"geoeye-1/yesterday", "geoeye-1/before-the-gap"}
    (told,) = heard
    assert (told["flow"], told["state"]) == ("nightly", "Completed")
    assert "2 fallback" in told["text"] or "2 published" in told["text"]
    add_scene(tmp_path / "source", "missed", side_px=128, seed=4, acquired=now - timedelta(days=21))
    backdate(tmp_path / "source", "missed", now - timedelta(days=20))
    again = nightly(settings, lookback_days=2, notify="misspelt")
    assert again == [], "the gap is closed, and the window is short again"


@pytest.mark.usefixtures("prefect_server")
def test_a_night_goes_first_and_its_look_counts_from_its_begin_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The page of the first one is about all that it looks back to."""
    from flows import area

    asked: list[tuple[int, datetime | None, datetime | None, datetime]] = []

    def sharpen(settings: Settings, *, since: datetime | None) -> list[Outcome]:
        asked.append((settings.priority, settings.new_since, since, datetime.now(UTC)))
        return [Outcome(key="c/1", sensor="", verdict="failed", reason="why")]

    monkeypatch.setattr(area, "_sharpen", sharpen)
    left = {"name": "left", "tags": [f"process:{lease_owner().split('/')[0]}/999999/1"], "state": Running()}
    with get_client(sync_client=True) as client:
        client.create_flow_run(flow(lambda: None, name="night"), **left)
    for place, given in (("a", {}), ("b", {"priority": 20})):
        settings = settings_in(tmp_path, sink=str(tmp_path / place), **given)
        assert area.nightly(settings, lookback_days=2, return_state=True).is_failed()
    assert [priority for priority, *_ in asked] == [10, 20]
    _, new_since, page_since, began = asked[-1]
    with open_ledger(settings) as ledger:
        look = ledger.last_look(settings.sink, settings.source)
    assert look is not None
    assert look.started < began
    assert new_since == page_since == look.started - timedelta(days=2)
    assert "flow run left was left running by a process that is gone" in caplog.messages


@pytest.mark.usefixtures("prefect_server")
def test_the_webhook_hears_of_a_night_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.blocks.webhook import Webhook

    from flows import area

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(area, "_sharpen", interrupt)
    with listening() as (url, heard):
        Webhook(url=url, method="POST", allow_private_urls=True).save("morning", overwrite=True)
        with pytest.raises(KeyboardInterrupt):
            area.nightly(settings_in(tmp_path), notify="morning")
    assert [told["state"] for told in heard] == ["Crashed"]


@pytest.mark.usefixtures("prefect_server")
def test_nights_of_one_selection_do_not_hide_the_gap_of_another(tmp_path: Path) -> None:
    from flows.area import nightly

    now = datetime.now(UTC)
    everything = classical_in(tmp_path)
    paused, every_night = (
        everything.model_copy(update={"collections": (collection,)}) for collection in ("geoeye-1", "other")
    )
    add_scene(tmp_path / "source", "long-ago", side_px=128, acquired=now - timedelta(days=40))
    backdate(tmp_path / "source", "long-ago", now - timedelta(days=40))
    assert nightly(paused, lookback_days=2) == []
    with contextlib.closing(sqlite3.connect(Path(everything.state_dir) / "ledger.db")) as connection, connection:
        last_look = (now - timedelta(days=20)).replace(tzinfo=None).isoformat(sep=" ")
        connection.execute("UPDATE look SET started = ?", (last_look,))
    for settings in (every_night, everything):
        assert nightly(settings, lookback_days=2) == []
    add_scene(tmp_path / "source", "in-the-gap", side_px=128, seed=4, acquired=now - timedelta(days=21))
    backdate(tmp_path / "source", "in-the-gap", now - timedelta(days=21))
    for settings in (every_night, everything):
        assert nightly(settings, lookback_days=2) == [], "this one missed no night"
    assert [outcome.key for outcome in nightly(paused, lookback_days=2)] == ["geoeye-1/in-the-gap"]
    with open_ledger(everything) as ledger:
        assert ledger.last_look(everything.sink, everything.source) is not None, "of the whole source, as ever"


def test_the_api_refuses_to_redrive_states_that_do_not_exist() -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import ValidationError, validate

    from flows.upkeep import redrive

    schema = parameter_schema(redrive).model_dump_for_openapi()
    for states in ({}, {"states": schema["properties"]["states"]["default"]}, {"states": ["refused"]}):
        validate({"settings": {}, **states}, schema, raise_on_error=True)
    with pytest.raises(ValidationError, match="'bogus' is not one of"):
        validate({"settings": {}, "states": ["bogus"]}, schema, raise_on_error=True)


@pytest.mark.parametrize(
    ("name", "days", "good", "bad"),
    [
        ("nightly", "lookback_days", 0, -1),
        ("nightly", "lookback_days", 36_500, 10_000_000),
        ("backfill", "window_days", 1, 0),
    ],
)
def test_the_api_refuses_windows_of_no_calendar_or_without_end(name: str, days: str, good: int, bad: int) -> None:
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools.validation import ValidationError, validate

    from flows import area

    schema = parameter_schema(getattr(area, name)).model_dump_for_openapi()
    given = {"settings": {}} | ({"selection": {}} if name == "backfill" else {})
    validate(given | {days: good}, schema, raise_on_error=True)
    with pytest.raises(ValidationError, match=f"{bad} is (less than the minimum|greater than the maximum|not valid)"):
        validate(given | {days: bad}, schema, raise_on_error=True)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:1/api", "no Prefect server answers at http://127.0.0.1:1/api"),
        (None, "PREFECT_API_URL is not set"),
    ],
)
def test_commands_for_the_server_say_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str | None, said: str
) -> None:
    from flows import check, deploy

    monkeypatch.setattr(deploy, "SERVER_START_S", 0)
    with temporary_settings({PREFECT_API_URL: address}):
        assert check.main() == 1
        assert deploy.main([]) == 1
    out, err = capsys.readouterr()
    assert said in out
    assert said in err


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("looked_at", [{}, {"collections": ("geoeye-1",)}], ids=["older version", "other choice"])
def test_missed_nights_count_where_the_selection_has_changed(tmp_path: Path, looked_at: dict[str, object]) -> None:
    from flows.area import _looked_at, nightly

    now = datetime.now(UTC)
    everything = classical_in(tmp_path)
    for seed, days in enumerate((21, 40)):
        add_scene(tmp_path / "source", f"day-{days}", side_px=128, seed=seed, acquired=now - timedelta(days=days))
        backdate(tmp_path / "source", f"day-{days}", now - timedelta(days=days))
    with open_ledger(everything) as ledger:
        before = _looked_at(everything.model_copy(update=looked_at))
        ledger.note_look(everything.sink, before, now - timedelta(days=20), "the last night before the gap")
    chosen = everything.model_copy(update={"ids": ("day-21", "day-40")})
    assert [outcome.key for outcome in nightly(chosen, lookback_days=2)] == ["geoeye-1/day-21"]


@pytest.mark.usefixtures("prefect_server")
def test_the_page_of_a_night_tells_of_those_that_were_interrupted_before_it(tmp_path: Path) -> None:
    from flows.area import nightly

    now = datetime.now(UTC)
    settings = classical_in(tmp_path)

    def add(name: str) -> None:
        add_scene(tmp_path / "source", name, side_px=128, seed=len(name), acquired=now)

    add("reported")
    runs.run(settings, silent)
    with open_ledger(settings) as ledger:
        ledger.note_look(settings.sink, settings.source, now, "a night that ended")
    add("interrupted")
    runs.run(settings, silent)
    add("tonight")
    assert [outcome.key for outcome in nightly(settings, lookback_days=2)] == ["geoeye-1/tonight"]
    page = (Path(settings.sink) / "report.html").read_text()
    assert [name in page for name in ("reported", "interrupted", "tonight")] == [False, True, True]


@pytest.mark.usefixtures("prefect_server")
def test_runs_of_gone_processes_are_closed_those_of_unknown_ones_when_they_have_been_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.runs import _last_sign, crash_gone_runs

    @flow
    def night() -> None: ...

    @task
    def step() -> None: ...

    owners = {
        "gone": f"{lease_owner().split('/')[0]}/999999/1",
        "here": lease_owner(),
        "unknown": "restarted+12345678+12345678/1/1",
    }
    with get_client(sync_client=True) as client:
        ids = {
            name: client.create_flow_run(night, name=name, tags=[f"process:{owner}"], state=Running()).id
            for name, owner in owners.items()
        }
        stuck = client.create_flow_run(night, name="stuck", tags=[f"process:{owners['gone']}"], state=Running())
        client.set_flow_run_state(stuck.id, Cancelling(), force=True)
        client.create_flow_run(night, name="of others", state=Running())
        assert sorted(crash_gone_runs()) == ["gone", "stuck"]
        unknown = client.read_flow_run(ids["unknown"])
        assert unknown.state is not None
        assert _last_sign(client, unknown) == unknown.state.timestamp
        steps = [client.create_task_run(step, unknown.id, name, state=Running()) for name in ("1", "2")]
        assert _last_sign(client, unknown) == steps[1].start_time
        monkeypatch.setattr(processes, "SILENCE", timedelta(0))
        assert crash_gone_runs() == ["unknown"]
        here = client.read_flow_run(ids["here"])
        assert here.state is not None
        assert here.state.is_running()
        client.set_flow_run_state(here.id, Cancelled(), force=True)


@pytest.mark.usefixtures("prefect_server")
def test_upkeep_is_named_by_what_it_keeps_and_tells_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.blocks.webhook import Webhook

    from flows.upkeep import census, redrive, sweep

    add_scene(tmp_path / "source", "scene", side_px=128)
    settings = classical_in(tmp_path)
    for place in ("source", "state_dir", "contracts_dir"):  # left out, as a deployment may
        monkeypatch.setenv(f"PANCRAFTER_{place.upper()}", str(getattr(settings, place)))
    given = Settings(sink=settings.sink)
    redrive(given)
    gone = f"{lease_owner().split('/')[0]}/999999/1"
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        (row,) = ledger.rows()
        assert ledger.claim(row.key, gone, 900, recipe=str(row.recipe))
    with get_client(sync_client=True) as client:
        client.create_flow_run(flow(lambda: None, name="night"), name="left", tags=[f"process:{gone}"], state=Running())
    swept = sweep(given, return_state=True)
    assert swept.message == "1 freed, 0 dead, 0 leftovers removed, 1 flow run closed"
    assert "free again: geoeye-1/scene" in caplog.messages
    with pytest.raises(FailedRun, match=r"1 difference, .*; mend with: pancrafter run"):
        census(given)
    runs.run(settings, silent)
    (path,) = (tmp_path / "sink").rglob("sharpened*.tif")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert census(given)["differences"] == []
    with listening() as (url, heard):
        Webhook(url=url, method="POST", allow_private_urls=True).save("morning", overwrite=True)
        with pytest.raises(FailedRun, match="1 difference,"):
            census(given, checksums=True, notify="morning")
    assert [(told["flow"], told["state"]) for told in heard] == [("census", "Failed")]
    with get_client(sync_client=True) as client:
        names = {run.name for run in client.read_flow_runs() if f"process:{lease_owner()}" in run.tags}
        newest = client.read_artifacts(sort=ArtifactSort.CREATED_DESC)
    assert names >= {f"{name} {settings.sink}" for name in ("redrive", "sweep", "census")}
    table = next(artifact for artifact in newest if artifact.key == "census")
    (shown,) = json.loads(str(table.data))
    assert shown["fix"].startswith("pancrafter redrive geoeye-1/scene ")


@pytest.mark.usefixtures("prefect_server")
def test_late_deliveries_and_redriven_scenes_are_done_the_next_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.area import nightly
    from flows.upkeep import redrive

    now = datetime.now(UTC)
    settings = classical_in(tmp_path)
    add_scene(tmp_path / "source", "redriven", side_px=128, acquired=now - timedelta(days=12))
    backdate(tmp_path / "source", "redriven", now - timedelta(days=12))
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        ledger.mark_refused(ledger.rows()[0].key, "by hand", "cloudy")
    assert nightly(settings, lookback_days=10) == []
    for place in ("sink", "state_dir"):  # left out, as a deployment may
        monkeypatch.setenv(f"PANCRAFTER_{place.upper()}", getattr(settings, place))
    for others in ({"code": "other"}, {"reason_contains": "rainy"}):
        assert redrive(Settings(), states=("refused",), **others) == []
    assert redrive(Settings(sink=str(tmp_path / "other")), states=("refused",)) == []
    redrive(Settings(), states=("refused",))
    assert "eligible again: geoeye-1/redriven" in caplog.messages, "the log says which"
    add_scene(tmp_path / "source", "late", side_px=128, seed=4, acquired=now - timedelta(days=20))
    assert [outcome.key for outcome in nightly(settings, lookback_days=10)] == ["geoeye-1/late", "geoeye-1/redriven"]
