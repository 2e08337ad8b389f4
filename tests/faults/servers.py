"""Runs on real servers: S3, PostgreSQL, a STAC API and Dask of ``infra.stack``, which live as long as the campaign."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from faults.places import Place, UnreachableError, ask
from faults.processes import Started, asked, spawn
from infra.stack import MARK as STACK_MARK

START_LIMIT_S = 600

SERVERS = {
    "S3 server": "s3",
    "database": "postgres",
    "STAC API": "stac-api",
    "Dask scheduler": "dask-scheduler",
    "Dask nanny": "dask-worker-gpu",
}
"""Victim -> what the stack calls it."""

STORAGE = ("S3 server", "database", "STAC API")
"""Those that no other kind of run has."""


class ServerStack:
    """One stack for many runs; each has its own prefix in the bucket and its own database for the ledger."""

    def __init__(self, folder: Path, archive: Path) -> None:
        folder.mkdir(parents=True)
        self._questions = folder
        self._log = folder / "stack.log"
        command = [sys.executable, "-m", "infra.stack", "up", "--archive", str(archive)]
        self._process: Started = spawn(command, self._log, {})
        self._until("gets ready", lambda: "# ready" in self._log.read_text())
        lines = self._log.read_text().splitlines()
        self._urls = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        self._folder = Path(self._urls["PANCRAFTER_STATE_DIR"]).parent
        self.scheduler = self._urls["PANCRAFTER_DASK_SCHEDULER"]
        self._api = self._urls["PANCRAFTER_CATALOG_URL"]

    def place(self, name: str) -> Place:
        """An empty place for a run, in which nothing of earlier runs can be seen."""
        self.wait()
        for collection in (ask(f"{self._api}/collections") or {})["collections"]:
            ask(f"{self._api}/collections/{collection['id']}", method="DELETE")
        base = self._urls["PANCRAFTER_LEDGER_URL"].rpartition("/")[0]
        asked(lambda: _make_database(f"{base}/postgres", name), self._questions)
        environment = {key: value for key, value in self._urls.items() if key.startswith("AWS_")}
        environment |= {"PANCRAFTER_CATALOG_URL": self._api, "PANCRAFTER_LEDGER_URL": f"{base}/{name}"}
        return Place(
            f"s3://{self._urls['PANCRAFTER_SINK'].split('/')[2]}/{name}", f"{base}/{name}", self._api, environment
        )

    def wait(self) -> None:
        """Wait until everything that was killed works again."""
        self._until("answers again", self._works)

    def pids(self, victim: str) -> list[int]:
        """Who plays a victim's part now."""
        if victim == "Dask worker":
            return [process.pid for process in self._workers()]
        with contextlib.suppress(OSError, ValueError):
            return [int((self._folder / f"{SERVERS[victim]}.pid").read_text())]
        return []

    def end_work(self) -> None:
        """End the workers that may still be at the blocks of a run that died; their nannies start new ones."""
        for process in self._workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(30)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)
        self._process.wait(START_LIMIT_S)

    def _works(self) -> bool:
        with contextlib.suppress(OSError, UnreachableError):
            urllib.request.urlopen(self._urls["AWS_ENDPOINT_URL"], timeout=10).close()
            host, port = self.scheduler.removeprefix("tcp://").split(":")
            socket.create_connection((host, int(port)), timeout=10).close()
            return ask(f"{self._api}/collections") is not None  # which asks PostgreSQL
        return False

    def _until(self, what: str, condition: object) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        assert callable(condition)
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the stack never {what}:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _workers(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_worker = any("spawn_main" in word for word in process.cmdline())
                if is_worker and process.environ().get(STACK_MARK) == str(self._folder):
                    yield process


def _make_database(address: str, name: str) -> bool:
    import psycopg

    with psycopg.connect(address.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload, unused-ignore]
    return True
