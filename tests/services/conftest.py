"""The servers of `make stack`, started once for all tests of this folder, and two scenes that went through them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from real_stack import is_of, need_servers
from small_archive import add_scene

from pancrafter import runs, steps
from pancrafter.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 420


def start(archive: Path, log: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """A stack in its own process, and the lines it prints."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.stack", "up", "--archive", str(archive)],
            cwd=PROJECT,
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + START_LIMIT_S
    while "# ready" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the stack does not get ready:\n{log.read_text()}")
        time.sleep(0.2)
    lines = log.read_text().splitlines()
    return process, dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.fixture(scope="package")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="package")
def urls(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of a running stack, whose archive holds two scenes; they are in the environment as well."""
    need_servers()
    for day in (1, 2):
        add_scene(archive, f"day-{day}", side_px=128, seed=day, day=day)
    process, found = start(archive, tmp_path_factory.mktemp("log") / "stack.log")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in found.items():
            if not name.startswith("PANCRAFTER_"):
                environment.setenv(name, value)
        yield found
    folder = Path(found["PANCRAFTER_STATE_DIR"]).parent
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert not folder.exists()
    assert not [one for one in psutil.process_iter() if is_of(one, folder)], "something of the stack is still alive"


@pytest.fixture(scope="package")
def settings(urls: dict[str, str]) -> Settings:
    return Settings(
        source=urls["PANCRAFTER_SOURCE"],
        sink=urls["PANCRAFTER_SINK"],
        state_dir=urls["PANCRAFTER_STATE_DIR"],
        catalog_url=urls["PANCRAFTER_CATALOG_URL"],
        ledger_url=urls["PANCRAFTER_LEDGER_URL"],
        dask_scheduler=urls["PANCRAFTER_DASK_SCHEDULER"],
        block_px=128,
    )


@pytest.fixture(scope="package")
def outcomes(settings: Settings) -> list[steps.Outcome]:
    return runs.run(settings, lambda _: None)
