"""The deployments on a real Prefect server and process worker: schedule, priorities, limits, cancel and retry act."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from faults.deployment import POOL, DeploymentRun, PrefectServer, is_engine
from faults.processes import MARK, family
from listening import listening
from prefect import flow
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running
from small_archive import add_scene, backdate, classical_contracts

from flows.runs import crash_gone_runs
from pancrafter.ledger import Ledger
from pancrafter.processes import lease_owner
from pancrafter.states import LedgerRow, State

pytestmark = pytest.mark.services
LIMIT_S = 400
GPU = "pancrafter-gpu"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """It gives no more than this at a time, as one with very many deployments of others gives 200."""
    server = PrefectServer(tmp_path_factory.mktemp("server") / "prefect")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_SERVER_API_DEFAULT_LIMIT", "4")
        try:
            assert server.process
            yield server
        finally:
            server.end()


class Site:
    """An archive, and the deployments that work on it."""

    def __init__(self, root: Path, server: PrefectServer) -> None:
        self.root, self.server, self.log = root, server, root / "worker.log"
        classical_contracts(root / "contracts")
        self.settings = {
            "source": str(root / "source"),
            "sink": str(root / "sink"),
            "state_dir": str(root / "state"),
            "contracts_dir": str(root / "contracts"),
            "workers": 0,
            "block_px": 128,
        }

    def start(self, deployment: str, **parameters: Any) -> DeploymentRun:
        return self.server.run(deployment, {"settings": self.settings} | parameters, str(self.root), self.log)

    def nightly(self, **parameters: Any) -> DeploymentRun:
        return self.start("nightly/nightly", lookback_days=None, **parameters)

    @contextlib.contextmanager
    def worker(self, *options: str, pool: str = POOL) -> Iterator[None]:
        worker = self.server.worker(self.log, {MARK: str(self.root)}, *options, pool=pool)
        try:
            yield
        finally:
            os.killpg(worker.pid, 9)
            worker.wait(30)

    def rows(self) -> list[LedgerRow]:
        if not (self.root / "state" / "ledger.db").exists():
            return []
        with Ledger(f"sqlite:///{self.root / 'state' / 'ledger.db'}") as ledger:
            return ledger.rows()

    def states(self) -> list[State]:
        return [row.state for row in self.rows()]

    def history(self) -> list[State]:
        """Every state that the only scene passed."""
        (row,) = self.rows()
        with Ledger(f"sqlite:///{self.root / 'state' / 'ledger.db'}") as ledger:
            return [event.after for event in ledger.why(row.key)]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)

    def state_of(self, run: DeploymentRun) -> dict[str, Any]:
        return dict(self.server.ask(f"/flow_runs/{run.run_id}"))


@pytest.fixture
def site(tmp_path: Path, server: PrefectServer) -> Site:
    return Site(tmp_path, server)


@contextlib.contextmanager
def gpu_taken(server: PrefectServer) -> Iterator[None]:
    """The only slot of the limit is in use, so that runs wait at their sharpening step."""
    taken = server.ask("/v2/concurrency_limits/increment", {"names": [GPU], "slots": 1, "mode": "concurrency"})
    assert taken
    try:
        yield
    finally:
        server.ask("/v2/concurrency_limits/decrement", {"names": [GPU], "slots": 1, "occupancy_seconds": 1})


def other_sweep(server: PrefectServer) -> str:
    """A deployment of somebody else, who calls it as we do and serves it by a program, so without a work pool."""
    flow = server.ask("/flows/", {"name": "etl"})["id"]
    sweep = {"name": "sweep", "flow_id": flow, "schedules": [{"schedule": {"cron": "5 5 * * *"}}]}
    return str(server.ask("/deployments/", sweep)["id"])


def test_schedule_fires_and_the_night_runs_by_itself(site: Site) -> None:
    deployment = site.server.ask("/deployments/name/nightly/nightly")
    (schedule,) = deployment["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (True, "15 1 * * *")
    add_scene(site.root / "source", "recent", side_px=128, acquired=datetime.now(UTC) - timedelta(days=1))
    add_scene(site.root / "source", "old", side_px=128)
    backdate(site.root / "source", "old", datetime(2025, 5, 2, tzinfo=UTC))
    here, address = f"/deployments/{deployment['id']}", f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
    tonight = {"settings": site.settings, "lookback_days": 10}
    site.server.ask(here, {"parameters": tonight}, method="PATCH")
    every_minute = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}
    site.server.ask(address, every_minute, method="PATCH")
    mine = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    try:
        with site.worker():
            site.wait(lambda: bool(site.server.ask("/flow_runs/filter", mine)), "a scheduled run completes")
    finally:
        site.server.ask(address, {"schedule": schedule["schedule"], "active": False}, method="PATCH")
    run = site.server.ask("/flow_runs/filter", mine)[-1]
    assert run["auto_scheduled"]
    assert [(row.key.item_id, row.state) for row in site.rows()] == [("recent", State.CONFIRMED)]


def test_nightly_goes_before_a_backfill_that_was_asked_for_earlier(site: Site) -> None:
    add_scene(site.root / "source", "scene", side_px=128)
    backfill = site.start("backfill/backfill", selection={})
    time.sleep(2)
    nightly = site.nightly()
    with site.worker("--limit", "1"):
        assert nightly.wait(LIMIT_S) == 0, nightly.state
        assert backfill.wait(LIMIT_S) == 0, backfill.state
    first, second = site.state_of(nightly), site.state_of(backfill)
    assert first["end_time"] <= second["start_time"]
    assert site.history().count(State.CONFIRMED) == 1
    assert "nothing to do" in backfill.state


def test_limits_cancel_and_another_run(site: Site) -> None:
    """One run waits for the GPU, a second one is not let in, the first is cancelled, and the next one finishes."""
    add_scene(site.root / "source", "scene", side_px=128)
    with site.worker(), listening() as (url, heard):
        with temporary_settings({PREFECT_API_URL: site.server.url}):
            Webhook(url=url, method="POST", allow_private_urls=True).save("morning", overwrite=True)
        with gpu_taken(site.server):
            waiting = site.nightly(notify="morning")
            site.wait(lambda: State.STAGED in site.states(), "the scene is staged")
            second = site.nightly()
            assert second.wait(LIMIT_S) == 71
            assert "concurrency limit reached" in second.state
            time.sleep(5)  # long enough for the sharpening of so small a scene
            assert waiting.poll() is None
            assert site.states() == [State.STAGED]
            cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
            site.server.ask(f"/flow_runs/{waiting.run_id}/set_state", cancelling)
            assert waiting.wait(LIMIT_S) == 71, waiting.state
            site.wait(lambda: not any(map(is_engine, family(str(site.root)))), "the cancelled run's process ends")
            assert not list(site.root.glob("sink/*/*"))
            site.wait(lambda: [told["state"] for told in heard] == ["Cancelled"], "the webhook hears of it")
        again = site.nightly()
        assert again.wait(LIMIT_S) == 0, again.state
    assert site.history().count(State.CONFIRMED) == 1


def test_what_is_paused_stays_paused_when_the_flows_are_deployed_again(site: Site) -> None:
    """Not what others have under the same name, and a deployment as a whole as well as its schedules."""

    def pause(deployment: dict[str, Any]) -> None:
        (schedule,) = deployment["schedules"]
        here = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
        site.server.ask(here, {"active": False}, method="PATCH")

    def states() -> list[tuple[bool, bool]]:
        found = (site.server.ask(f"/deployments/name/{name}") for name in ("sweep/sweep", "census/census", "etl/sweep"))
        return [(one["paused"], one["schedules"][0]["active"]) for one in found]

    other_sweep(site.server)
    pause(site.server.ask("/deployments/name/sweep/sweep"))
    census = site.server.ask("/deployments/name/census/census")["id"]
    site.server.ask(f"/deployments/{census}", {"paused": True}, method="PATCH")
    site.server.deploy()
    assert states() == [(False, False), (True, True), (False, True)]
    site.server.command("prefect", "--no-prompt", "deploy", "--all")
    assert states() == [(False, True)] * 3, "Prefect keeps what is paused by itself now; flows.deploy need not"
    pause(site.server.ask("/deployments/name/etl/sweep"))
    site.server.deploy()
    assert states() == [(False, True), (False, True), (False, False)]


def test_failed_run_is_retried_after_the_fix(site: Site) -> None:
    scene = add_scene(site.root / "source", "scene", side_px=128)
    good = scene.ms.read_bytes()
    scene.ms.write_bytes(b"not a tiff")
    with site.worker():
        run = site.nightly()
        assert run.wait(LIMIT_S) == 1
        assert "1 of 1 scenes failed: geoeye-1/scene" in run.state
        assert site.states() == [State.DEAD]
        scene.ms.write_bytes(good)
        redriven = site.start("redrive/redrive")
        assert redriven.wait(LIMIT_S) == 0
        assert redriven.state.endswith("1 redriven, 0 left")
        awaiting = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
        site.server.ask(f"/flow_runs/{run.run_id}/set_state", awaiting)
        run.status = None
        assert run.wait(LIMIT_S) == 0, run.state
    assert site.state_of(run)["run_count"] == 2
    assert site.history().count(State.CONFIRMED) == 1


def test_wrong_parameters_are_refused_before_anything_runs(site: Site) -> None:
    with pytest.raises(RuntimeError, match=r"409.*block_px"):
        site.start("nightly/nightly", settings=site.settings | {"block_px": "many"})
    with pytest.raises(RuntimeError, match=r"409.*selection"):
        site.start("backfill/backfill", selection={"cloud": 5})


def test_period_and_area_of_a_backfill_are_asked_for_once(site: Site) -> None:
    schema = site.server.ask("/deployments/name/backfill/backfill")["parameter_openapi_schema"]
    fields = {name: set(schema["definitions"][name]["properties"]) for name in ("WorkSettings", "Selection")}
    assert fields["Selection"] >= {"since", "until", "bbox", "aoi", "collections"}
    assert not fields["Selection"] & fields["WorkSettings"]
    with pytest.raises(RuntimeError, match=r"409.*bbox"):
        site.start("backfill/backfill", settings=site.settings | {"bbox": [0, 0, 1, 1]}, selection={})


def test_work_pools_that_are_missing_are_named_and_nothing_is_lost(site: Site) -> None:
    """Prefect itself lets runs wait without a word; ``python -m flows.check`` says what is wrong and what to do."""

    def check() -> str:
        done = site.server.command("flows.check")
        assert done.returncode == (0 if "waits in vain" in done.stdout else 1), done.stderr
        return done.stdout

    add_scene(site.root / "source", "scene", side_px=128)
    waiting = site.nightly()
    site.server.ask(f"/deployments/{other_sweep(site.server)}/create_flow_run", {})
    misspelt = "waits at work pool pancrafer, which no deployment uses; look at its --pool"
    with site.worker(pool="pancrafer"):
        site.wait(lambda: misspelt in check(), "the worker is named")
    for pool in ("pancrafer", "pancrafter"):
        deleted = site.server.command("prefect", "--no-prompt", "work-pool", "delete", pool)
        assert deleted.returncode == 0, deleted.stderr
    said = check()
    assert "deployment nightly has no work pool" in said
    assert "deployment sweep has no work pool" in said
    assert f"({waiting.run_id}) waits for a work pool that is gone" in said
    assert said.count("\n") == 7, said
    refused = site.server.command("prefect", "--no-prompt", "deploy", "--all")
    assert refused.returncode == 1
    assert "work pool 'pancrafter' which does not" in refused.stdout
    site.server.deploy()
    assert "has no work pool" not in check()
    cancelled = site.server.command("prefect", "flow-run", "cancel", waiting.run_id)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    with site.worker():
        site.wait(lambda: check() == GOOD, "everything is well again")
        assert site.nightly().wait(LIMIT_S) == 0
    assert site.states() == [State.CONFIRMED]


GOOD = "every deployment has a work pool with a living worker, and no run waits in vain\n"


def test_all_runs_whose_process_is_gone_are_closed(server: PrefectServer) -> None:
    """More than the server lists at a time."""
    gone = f"process:{lease_owner().split('/')[0]}/999999/1"
    with temporary_settings({PREFECT_API_URL: server.url}):
        with get_client(sync_client=True) as client:
            left = [client.create_flow_run(flow(lambda: None), tags=[gone], state=Running()).name for _ in range(9)]
        assert set(left) <= set(crash_gone_runs())
