"""Servers that die during a run, a disk that is full, and a restore after everything was lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import s3fs
from real_stack import is_of, need_servers
from small_archive import add_scene

from infra.stack import postgres_programs
from pancrafter import runs, steps
from pancrafter.backup import back_up, bring_back
from pancrafter.census import take_census
from pancrafter.errors import PancrafterError
from pancrafter.ledger import open_ledger
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.stac_api import StacApi
from pancrafter.states import State
from pancrafter.sweep import sweep

pytestmark = pytest.mark.services
PROJECT = Path(__file__).resolve().parents[2]
COLLECTION = "geoeye-1-sharpened"
ADVICE = ("check ", "is the STAC API up", "run again", "try again", "tried again", "look at", "free some space")
MOST_RUNS = 12
OVER = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
MOMENTS = {
    "postgres": "staging",
    "dask-scheduler": "staging",
    "dask-worker-gpu": "staging",
    "dask-worker-cpu": "staging",
    "archive": "staging",
    "s3": "publishing",
    "ceph-osd": "publishing",
    "ceph-mon": "publishing",
    "ceph-mgr": "publishing",
    "stac-api": "publishing",
}
"""When each server is killed: at the report after which the run needs it next."""


def folder_of(urls: dict[str, str]) -> Path:
    return Path(urls["PANCRAFTER_STATE_DIR"]).parent


def kill(urls: dict[str, str], name: str) -> int:
    """``kill -9``; the stack starts it again."""
    pid = int((folder_of(urls) / f"{name}.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_until_back(urls: dict[str, str], name: str, old: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid = int((folder_of(urls) / f"{name}.pid").read_text() or 0)
        if pid not in {0, old} and psutil.pid_exists(pid):
            return
        time.sleep(0.2)
    pytest.fail(f"{name} was not started again")


def offer(archive: Path, settings: Settings, item_id: str, seed: int) -> str:
    """A new scene in the archive, once the source's server knows it."""
    add_scene(archive, item_id, side_px=128, seed=seed, day=seed)
    deadline = time.monotonic() + 60
    address = f"{settings.source}/collections/geoeye-1/items/{item_id}"
    while time.monotonic() < deadline:
        try:
            if httpx.get(address, timeout=10).status_code == 200:
                return f"geoeye-1/{item_id}"
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    return pytest.fail(f"{address} does not appear")


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)


def ask_prefect(urls: dict[str, str], method: str, path: str, body: object = None) -> dict[str, Any]:
    """The answer of Prefect's API, once its server is there."""
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = httpx.request(method, urls["PREFECT_API_URL"] + path, json=body, timeout=30)
            return dict(answer.raise_for_status().json())
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def state_of(settings: Settings, key: str) -> State | None:
    with open_ledger(settings) as ledger:
        return next((row.state for row in ledger.rows(sink=settings.sink) if str(row.key) == key), None)


def run_until_done(settings: Settings, key: str, report: steps.Report) -> list[str]:
    """Runs, and the documented next steps, until the scene is confirmed; what the runs in between said.

    A run that stopped leaves its scene claimed. Its process would be gone, which a sweep sees at once; this one lives,
    so its lease has to run out.
    """
    said = []
    settings = settings.model_copy(update={"lease_s": 10})
    for _ in range(MOST_RUNS):
        try:
            said += [outcome.reason for outcome in runs.run(settings, report) if outcome.failed]
            with open_ledger(settings) as ledger:
                (row,) = [row for row in ledger.rows(sink=settings.sink) if str(row.key) == key]
                if row.state is State.CONFIRMED:
                    return said
                sweep(settings)
                ledger.redrive(sink=settings.sink, states=["eligible", "dead"])
        except (PancrafterError, OSError) as error:
            said.append(f"{type(error).__name__}: {error}")
        time.sleep(2)
    return pytest.fail(f"{key} was not finished: {said}")


@pytest.mark.parametrize("server", MOMENTS)
def test_a_run_outlives_the_death_of(
    server: str, urls: dict[str, str], settings: Settings, archive: Path, outcomes: list[steps.Outcome]
) -> None:
    killed: list[int] = []

    def report(text: str) -> None:
        if not killed and MOMENTS[server] in text:
            killed.append(kill(urls, server))

    key = offer(archive, settings, f"while-{server}", 3 + list(MOMENTS).index(server))
    said = run_until_done(settings, key, report)
    assert killed, "the server was to die during the run"
    wait_until_back(urls, server, killed[0])
    for message in said:
        assert any(advice in message for advice in ADVICE), message
        assert urls["AWS_SECRET_ACCESS_KEY"] not in message


@pytest.mark.parametrize("server", ["prefect", "prefect-worker"])
def test_a_deployment_run_outlives_the_death_of(
    server: str, urls: dict[str, str], settings: Settings, archive: Path, outcomes: list[steps.Outcome]
) -> None:
    """The run waits for Prefect's server; with its worker it ends and frees its scene, and the next one finishes."""
    key = offer(archive, settings, f"while-{server}", 20 + len(server) % 7)
    deployment = ask_prefect(urls, "GET", "/deployments/name/nightly/nightly")
    parameters = {"parameters": {"lookback_days": None}}
    run = ask_prefect(urls, "POST", f"/deployments/{deployment['id']}/create_flow_run", parameters)
    wait(lambda: state_of(settings, key) in {State.CLAIMED, State.STAGED}, f"{key} is in work")
    killed = kill(urls, server)
    wait_until_back(urls, server, killed)
    wait(lambda: ask_prefect(urls, "GET", f"/flow_runs/{run['id']}")["state_type"] in OVER, "the run is over")
    run_until_done(settings, key, lambda _: None)


def test_after_all_deaths_nothing_is_lost_or_twice(settings: Settings, urls: dict[str, str]) -> None:
    taken = take_census(settings, checksums=True)
    assert taken.differences == ()
    assert taken.catalog_items == taken.source_scenes
    found = httpx.get(f"{settings.catalog_url}/collections/{COLLECTION}/items?limit=100").json()["features"]
    assert sorted(item["id"] for item in found) == sorted(StaticSink(settings.sink).item_ids(COLLECTION))


def test_full_disk_stops_with_advice_and_loses_nothing(archive: Path, tmp_path: Path) -> None:
    """The state folder is on a disk of 400 kB, mounted for this one process; then it has room."""
    local = tmp_path / "archive"
    add_scene(local, "large", side_px=512)
    place = tmp_path / "place"
    (place / "state").mkdir(parents=True)
    options = f"--source {local} --sink {tmp_path / 'out'} --state-dir {place / 'state'} --block-px 256 --workers 0"
    run = f"{sys.executable} -m pancrafter.cli run {options}"
    small = f"mount -t tmpfs -o size=400k tmpfs {place / 'state'} && exec {run}"
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    done = subprocess.run(
        [*namespace, "sh", "-c", small], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode in {1, 2}, said
    assert "Traceback" not in said
    assert "No space left" in said or "disk is full" in said or "database or disk is full" in said, said
    assert "space" in said.lower()
    settings = Settings(
        source=str(local), sink=str(tmp_path / "out"), state_dir=str(place / "state"), block_px=256, workers=0
    )
    assert [outcome.failed for outcome in runs.run(settings, lambda _: None)] == [False]
    assert take_census(settings, checksums=True).clean


SMALL_SERVERS = """
import json, sys, time
from pathlib import Path
from infra.stack import Family, Stack

folder = Path(sys.argv[1])
family = Family(folder)
stack = Stack(family, folder)
stack.start_catalog()
print(json.dumps({"pid": family.janitor.pid} | stack.urls), flush=True)
while True:
    family.mend()
    time.sleep(0.5)
"""


@contextlib.contextmanager
def servers_on_a_small_disk(size: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """PostgreSQL and a STAC API whose folder is a disk of its own; where it can be seen from here."""
    folder = Path(tempfile.mkdtemp())  # not below that of the test, which PostgreSQL's own user may not enter
    mounted = f'mount -t tmpfs -o size={size},mode=711 tmpfs {folder} && exec {sys.executable} -c "$0" {folder}'
    command = ["unshare", "--mount", "sh", "-c", mounted, SMALL_SERVERS]
    main = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    try:
        found = json.loads(main.stdout.readline())
        yield Path(f"/proc/{found.pop('pid')}/root{folder}"), found
    finally:
        main.kill()
        main.wait(60)
        wait(lambda: not any(is_of(process, folder) for process in psutil.process_iter()), "the servers end")
        folder.rmdir()


def fill(disk: Path) -> Path:
    """Take all the space there is."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    return filler


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL's disk is mounted as root")
def test_full_disk_of_a_server_stops_with_advice_and_loses_nothing(archive: Path, tmp_path: Path) -> None:
    """The disk of PostgreSQL is full before the ledger is made, then again when the first item is to be published."""
    need_servers()
    local = tmp_path / "archive"
    add_scene(local, "scene", side_px=128)
    with servers_on_a_small_disk("400m") as (disk, urls):
        settings = Settings(
            source=str(local),
            sink=str(tmp_path / "out"),
            state_dir=str(tmp_path / "state"),
            catalog_url=urls["PANCRAFTER_CATALOG_URL"],
            ledger_url=urls["PANCRAFTER_LEDGER_URL"],
            block_px=128,
            workers=0,
            lease_s=10,  # the full disk may also keep the scene from being given back
        )
        filler = fill(disk)
        with pytest.raises(PancrafterError, match=r"ledger postgresql.*check .*free space"):
            runs.run(settings, lambda _: None)
        filler.unlink()
        said: list[str] = []

        def report(text: str) -> None:
            said.append(text)
            if "publishing" in text:
                fill(disk)

        try:
            runs.run(settings, report)
        except PancrafterError as error:
            said.append(str(error))
        assert any("free space" in text for text in said), said
        filler.unlink()
        run_until_done(settings, "geoeye-1/scene", lambda _: None)
        assert take_census(settings, checksums=True).clean
        (item,) = httpx.get(f"{settings.catalog_url}/collections/{COLLECTION}/items").json()["features"]
        assert StaticSink(settings.sink).item_ids(COLLECTION) == (item["id"],)


def test_backup_wipe_restore(urls: dict[str, str], settings: Settings, outcomes: list[steps.Outcome], tmp_path) -> None:
    """Ledger with pg_dump, catalog with `pancrafter backup`, STAC API from the catalog; all of it is lost between."""
    programs = postgres_programs()
    assert programs is not None
    assert settings.ledger_url is not None
    address = settings.ledger_url.replace("postgresql+psycopg", "postgresql")
    dump = str(tmp_path / "ledger.dump")
    subprocess.run([programs / "pg_dump", "--format=custom", f"--file={dump}", address], check=True, timeout=120)
    back_up(settings, str(tmp_path / "backup"))
    before = sorted(StaticSink(settings.sink).item_ids(COLLECTION))

    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    s3fs.S3FileSystem().rm(settings.sink, recursive=True)
    shutil.rmtree(settings.state_dir, ignore_errors=True)
    assert settings.catalog_url is not None
    for item_id in before:
        StacApi(settings.catalog_url).delete(COLLECTION, item_id)

    restore = [programs / "pg_restore", "--clean", "--if-exists", f"--dbname={address}", dump]
    subprocess.run(restore, check=True, timeout=120)
    restored = bring_back(settings, str(tmp_path / "backup"))
    assert restored.sent == len(before)
    taken = take_census(settings, checksums=True)
    assert (taken.differences, taken.catalog_items) == ((), len(before))
    found = httpx.get(f"{settings.catalog_url}/collections/{COLLECTION}/items?limit=100").json()["features"]
    assert sorted(item["id"] for item in found) == before
    assert runs.run(settings, lambda _: None) == []
