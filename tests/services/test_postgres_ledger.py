"""All tests of the ledger, migrations and races between processes among them, on a PostgreSQL of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.bench_ledger import private_postgres

from infra import stack

pytestmark = pytest.mark.services
PROJECT = Path(__file__).resolve().parents[2]


def test_the_ledger_keeps_its_promises_on_postgresql() -> None:
    try:
        stack.install()
        reason = stack.missing()
    except stack.StackError as error:
        reason = str(error)
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with private_postgres() as url:
        environment = os.environ | {"PANCRAFTER_TEST_POSTGRES": url}
        command = [sys.executable, "-m", "pytest", "-q", "-k", "postgresql", "tests/test_ledger.py"]
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 30, done.stdout
