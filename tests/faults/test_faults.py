"""A short fault campaign; the long one is ``make faults RUNS=200 SEED=1``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
RUNS = 10


@pytest.mark.slow
def test_killed_runs_lose_nothing(tmp_path: Path) -> None:
    """In a process of its own: the campaign copies itself, which a process with threads must not."""
    command = [sys.executable, "-m", "faults", "--runs", str(RUNS), "--seed", "7", "--only", "process", "--quality"]
    command += ["classical", "--seconds", "50", "--folder", str(tmp_path / "faults")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT / "tests"), str(PROJECT)])}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    played, killed = (int(number) for number in re.match(r"faults: (\d+) runs \(seed 7\), (\d+) killed", last).groups())
    assert 3 <= played <= RUNS
    assert killed, last
    assert last.endswith(" 0 losses")
