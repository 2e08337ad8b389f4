"""Several orchestrators on one ledger: every scene is worked on once, whoever finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_archive import add_scene, classical_contracts

from faults.campaign import COLLECTION
from faults.processes import PROJECT
from pancrafter.census import take_census
from pancrafter.ingest import add_pair
from pancrafter.ledger import Ledger
from pancrafter.settings import Settings
from pancrafter.states import State

SCENES = int(os.environ.get("PANCRAFTER_SHARED_SCENES", "6"))
"""Scenes to share; 50 in the long version."""


@pytest.mark.slow
def test_two_nightlies_and_a_backfill_do_each_scene_once(tmp_path: Path) -> None:
    first = add_scene(tmp_path / "source", "scene-000", side_px=128)
    for number in range(1, SCENES):
        folder = tmp_path / "source" / "files" / f"scene-{number:03d}"
        shutil.copytree(first.pan.parent, folder)
        add_pair(
            tmp_path / "source",
            COLLECTION,
            folder / "pan.tif",
            [folder / "ms.tif"],
            item_id=folder.name,
            acquired=datetime(2025, 5, 1 + number % 28, tzinfo=UTC),
        )
    contracts = tmp_path / "contracts"
    classical_contracts(contracts)
    places = ["--source", str(tmp_path / "source"), "--sink", str(tmp_path / "sink")]
    places += ["--state-dir", str(tmp_path / "state"), "--contracts-dir", str(contracts), "--workers", "0"]
    command = [sys.executable, "-m", "pancrafter.cli", "run", *places, "--block-px", "128"]
    nightly: list[str] = []
    backfill = ["--from", "2025-05-01", "--to", "2025-05-20"]
    logs = [(tmp_path / f"{number}.log").open("w") for number in range(3)]
    runs = [
        subprocess.Popen([*command, *period], cwd=PROJECT, stdout=log, stderr=log)
        for period, log in zip((nightly, nightly, backfill), logs, strict=True)
    ]
    for run, log in zip(runs, logs, strict=True):
        assert run.wait(timeout=550) == 0, Path(log.name).read_text()[-2000:]
        log.close()
    with Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}") as ledger:
        rows = ledger.rows()
        steps = {str(row.key): [event.after for event in ledger.why(row.key)] for row in rows}
        owners = {event.who for row in rows for event in ledger.why(row.key) if event.after is State.CLAIMED}
    assert len(rows) == SCENES
    for key, states in steps.items():
        assert states.count(State.CLAIMED) == states.count(State.CONFIRMED) == 1, key
    assert len(owners) > 1, "one process did everything: nothing was shared"
    settings = Settings(
        source=str(tmp_path / "source"),
        sink=str(tmp_path / "sink"),
        state_dir=str(tmp_path / "state"),
        contracts_dir=str(contracts),
    )
    census = take_census(settings)
    assert census.clean, census.differences
