"""A Dask worker that dies in the middle of a scene costs the block it was working on; without any, a run gives up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_archive import add_scene, classical_contracts

from faults.processes import PROJECT, spawn
from pancrafter.killpoints import VARIABLE
from pancrafter.ledger import Ledger
from pancrafter.ports import free_port
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


def test_a_cluster_without_workers_is_named_and_the_scene_kept(tmp_path: Path) -> None:
    """Dask itself would wait for ever."""
    add_scene(tmp_path / "source", "scene", side_px=128)
    classical_contracts(tmp_path / "contracts")
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1]]
    started = spawn([*scheduler, "--no-dashboard", "--no-show"], tmp_path / "dask.log", {})
    places = ["--source", tmp_path / "source", "--sink", tmp_path / "sink", "--state-dir", tmp_path / "state"]
    options = ["--contracts-dir", tmp_path / "contracts", "--dask-scheduler", address]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pancrafter.cli", "run", *map(str, [*places, *options])],
            cwd=PROJECT, env=os.environ | {"PANCRAFTER_WORKER_WAIT_S": "3"}, capture_output=True, text=True,
            timeout=400, check=False,
        )  # fmt: skip
    finally:
        os.killpg(started.pid, 9)
        started.wait(30)
    assert done.returncode == 1, done.stderr
    assert "no worker with the resource GPU for 3 s" in done.stdout + done.stderr
    with Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}") as ledger:
        (row,) = ledger.rows()
    assert (row.state, row.code) == (State.ELIGIBLE, "WorkerLostError")
