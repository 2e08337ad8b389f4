"""A Dask worker that dies in the middle of a scene costs the block it was working on; without a cluster a run stops."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from small_archive import add_scene, classical_contracts, settings_in

from faults.processes import PROJECT, Started, spawn
from pancrafter import runs
from pancrafter.compute import open_compute
from pancrafter.errors import ClusterLostError, WorkerLostError
from pancrafter.killpoints import VARIABLE
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.ports import free_port
from pancrafter.settings import Settings
from pancrafter.states import State


def _finished(state: Path) -> dict[str, int]:
    """Modification times of the shards whose blocks are marked as done."""
    found = {}
    for flag in state.glob("staged/*.zarr/done/c/*/*[0-9]"):  # what is being written ends otherwise
        row, column = flag.parts[-2:]
        shard = flag.parents[3] / "sharpened" / "c" / "0" / row / column
        found[f"{row}/{column}"] = shard.stat().st_mtime_ns
    return found


@pytest.mark.slow
def test_killed_worker_costs_only_its_block(tmp_path: Path) -> None:
    add_scene(tmp_path / "source", "scene", side_px=512)
    classical_contracts(tmp_path / "contracts")
    token, state, log = tmp_path / "token", tmp_path / "state", tmp_path / "run.log"
    token.touch()
    places = ["--source", tmp_path / "source", "--sink", tmp_path / "sink", "--state-dir", state]
    options = ["--contracts-dir", tmp_path / "contracts", "--workers", 2, "--block-px", 128, "--keep-staged"]
    environment = os.environ | {VARIABLE: f"block-written:3:{token}", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "pancrafter.cli", "run", *map(str, [*places, *options])],
            cwd=PROJECT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
    first_seen: dict[str, int] = {}
    deadline = time.monotonic() + 400
    while run.poll() is None and time.monotonic() < deadline:
        first_seen = _finished(state) | first_seen
        time.sleep(0.02)
    assert run.wait(timeout=60) == 0, log.read_text()
    assert not token.exists(), "no worker was killed"
    assert first_seen, "no block was seen before the end"
    finished = _finished(state)
    assert len(finished) == 16
    assert {block: finished[block] for block in first_seen} == first_seen, "a finished block was written again"
    with Ledger(f"sqlite:///{state / 'ledger.db'}") as ledger:
        (row,) = ledger.rows()
        states = [event.after for event in ledger.why(row.key)]
    assert states.count(State.CLAIMED) == states.count(State.CONFIRMED) == 1, "the run itself had to start again"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts processes of a Dask cluster, all of which are killed in the end."""
    started: list[Started] = []

    def start(*arguments: str) -> Started:
        started.append(spawn([sys.executable, "-m", "dask", *arguments], tmp_path / "dask.log", {}))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(30)


def _scheduler(cluster: Callable[..., Started], address: str) -> Started:
    host, port = address.removeprefix("tcp://").split(":")
    return cluster("scheduler", "--host", host, "--port", port, "--no-dashboard", "--no-show")


def _worker(cluster: Callable[..., Started], address: str, *options: str) -> Started:
    return cluster("worker", address, "--nworkers", "1", "--nthreads", "1", "--no-dashboard", *options)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Two scenes, on a cluster that is not started yet."""
    for day in (1, 2):
        add_scene(tmp_path / "source", f"day-{day}", side_px=128, seed=day, day=day)
    classical_contracts(tmp_path / "contracts")
    address = f"tcp://127.0.0.1:{free_port()}"
    return settings_in(tmp_path, contracts_dir=str(tmp_path / "contracts"), dask_scheduler=address, worker_wait_s=3)


def _assert_untouched(settings: Settings) -> None:
    with open_ledger(settings) as ledger:
        rows = ledger.rows()
    assert [(row.state, row.attempts, row.code) for row in rows] == [(State.ELIGIBLE, 0, None)] * 2


def test_a_cluster_without_workers_stops_the_run(settings: Settings, cluster: Callable[..., Started]) -> None:
    """Dask itself would wait for ever; every other scene would too, and die of it after some nights."""
    _scheduler(cluster, settings.dask_scheduler)
    with pytest.raises(runs.RunStoppedError, match=r"the Dask cluster had no worker for 3 s; start one, then run"):
        runs.run(settings, print)
    _assert_untouched(settings)


def test_a_scheduler_that_dies_stops_the_run(settings: Settings, cluster: Callable[..., Started]) -> None:
    scheduler = _scheduler(cluster, settings.dask_scheduler)
    _worker(cluster, settings.dask_scheduler, "--resources", "GPU=1")

    def report(line: str) -> None:
        if line == "geoeye-1/day-1: staging":
            os.killpg(scheduler.pid, 9)

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "5s"}),
        pytest.raises(runs.RunStoppedError, match="the Dask scheduler was lost"),
    ):
        runs.run(settings, report)
    _assert_untouched(settings)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterLostError, match=rf"Dask scheduler {settings.dask_scheduler}: .* start it"),
    ):
        runs.run(settings, report)


def test_a_scheduler_that_comes_back_costs_what_was_in_work(
    settings: Settings, cluster: Callable[..., Started]
) -> None:
    scheduler = _scheduler(cluster, settings.dask_scheduler)
    _worker(cluster, settings.dask_scheduler)
    with open_compute(settings.model_copy(update={"worker_wait_s": 60})) as compute:
        calls = compute.map(time.sleep, [0, 600])
        assert next(calls) is None
        os.killpg(scheduler.pid, 9)
        scheduler.wait(30)
        _scheduler(cluster, settings.dask_scheduler)
        with pytest.raises(WorkerLostError, match="a Dask worker or scheduler was lost"):
            next(calls)
        _worker(cluster, settings.dask_scheduler)  # the first one ended with its scheduler
        assert list(compute.map(abs, [-1])) == [1]


def test_only_what_needs_a_gpu_is_given_up_for_want_of_one(settings: Settings, cluster: Callable[..., Started]) -> None:
    _scheduler(cluster, settings.dask_scheduler)
    _worker(cluster, settings.dask_scheduler)
    with open_compute(settings) as compute:
        assert list(compute.map(time.sleep, [6])) == [None]
        with pytest.raises(ClusterLostError, match="no worker with the resource GPU for 3 s; start one with --resour"):
            list(compute.map(abs, [-1], on_gpu=True))
